import contextlib
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from taskhook.core.errors import RejectedError
from taskhook.core.ports import LeaseView, PollKind, PollOutcome
from taskhook.core.task import State, Task
from taskhook.submit.vendor_webhook import hint
from taskhook.wiring import App
from tests.unit.test_poll import Floor
from tests.world import SETTINGS, FixedHooks, Woken


@dataclass
class HookDesk(Floor):
    """A submit function's world where the vendor leaves hints."""

    woken: Woken = field(default_factory=Woken)
    rpm: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        desk = App(
            SETTINGS.model_copy(update={"requests_per_minute": self.rpm}),
            tasks=self.tasks,
            vendor=self.vendor,
            webhook_urls=FixedHooks(),
            wake=self.woken,
            clock=self.clock,
            reporter=self.told,
        ).vendor_webhooks
        assert desk is not None
        self.desk = desk

    async def hint(self, task: Task, upstream_task_id: str = "task-t", token: str | None = None) -> None:
        """Let the vendor leave a hint about a task."""
        await hint(task.task_id, token or f"token-of-{task.task_id}", upstream_task_id, desk=self.desk)


@pytest.fixture
def floor() -> HookDesk:
    """Give a fresh world."""
    return HookDesk()


async def test_a_true_hint_wakes_the_poller_and_is_remembered(floor: HookDesk) -> None:
    """The vendor was asked, said that the task has ended, and from now on hints are expected."""
    task = await floor.add(State.WATCHED)
    floor.clock.pass_by(floor.vendor.task_time)
    await floor.hint(task)
    assert (floor.woken.ended, len(floor.vendor.polls)) == ([task.task_id], 1)
    told = floor.woken.told[task.task_id]
    assert told is not None
    assert told.kind is PollKind.SUCCEEDED  # and is not asked for again
    assert floor.tasks.lease.hints(floor.clock.now())
    assert floor.now_of(task) == task
    assert floor.facts("vendor.polled") == [{"task_id": task.task_id, "kind": "succeeded"}]  # a request of the budget, too


async def test_only_so_many_looks_are_remembered(floor: HookDesk) -> None:
    """A process that stays warm for long does not grow."""
    floor.vendor.task_time = timedelta(0)
    for number in range(1200):
        await floor.hint(await floor.add(State.WATCHED, str(number)), f"task-{number}")
        floor.clock.pass_by(timedelta(seconds=6))
    assert len(floor.desk.looked_at) == 1000


async def test_a_hint_that_the_vendor_does_not_confirm_changes_nothing(floor: HookDesk) -> None:
    """A hint is never believed. It may be early, and is the only one: so the vendor is asked to repeat it."""
    task = await floor.add(State.WATCHED)
    with pytest.raises(RejectedError) as rejected:
        await floor.hint(task)
    assert (rejected.value.status, floor.woken.ended, floor.tasks.lease.hinted_at, floor.now_of(task)) == (503, [], None, task)
    floor.clock.pass_by(floor.vendor.task_time)
    await floor.hint(task)
    assert floor.woken.ended == [task.task_id]


@pytest.mark.parametrize("token", ["", "x", "token-of-tk_other"])
async def test_a_wrong_token_is_a_404_and_asks_nobody(floor: HookDesk, token: str) -> None:
    """Whoever guesses learns nothing, not even whether there is such a task."""
    task = await floor.add(State.WATCHED)
    with pytest.raises(RejectedError) as rejected:
        await floor.hint(task, token=token or "-")
    assert rejected.value.status == 404
    assert floor.vendor.polls == []


async def test_a_token_that_cannot_be_checked_is_asked_to_come_again(floor: HookDesk) -> None:
    """Where the key cannot be read, a true hint is not answered like a forged one, and nothing crashes."""

    class NoKey(FixedHooks):
        async def valid(self, _task_id: str, _token: str) -> None:
            """Know nothing."""

    floor.desk = replace(floor.desk, hooks=NoKey())
    task = await floor.add(State.WATCHED)
    with pytest.raises(RejectedError) as rejected:
        await floor.hint(task)
    assert (rejected.value.status, rejected.value.retry_after, floor.vendor.polls) == (503, 5, [])


async def test_a_flood_asks_the_vendor_once_a_second(floor: HookDesk) -> None:
    """However many hints come about one task."""
    task = await floor.add(State.WATCHED)
    began = floor.clock.now()
    while floor.clock.now() < began + timedelta(seconds=3):
        with pytest.raises(RejectedError, match="Service unavailable"):
            await floor.hint(task)
        floor.clock.pass_by(timedelta(milliseconds=10))
    assert len(floor.vendor.polls) == 3


async def test_hints_share_the_vendors_budget(floor: HookDesk) -> None:
    """Where no request is left, the vendor is told to try again."""
    task = await floor.add(State.WATCHED)
    window = int(floor.clock.now().timestamp() // 6)
    await floor.tasks.take_tokens(1000, window=window, limit=1000)
    with pytest.raises(RejectedError) as rejected:
        await floor.hint(task)
    assert (rejected.value.status, rejected.value.retry_after, floor.vendor.polls) == (503, 6, [])


async def test_a_hint_about_a_held_poll_is_left_alone(floor: HookDesk) -> None:
    """Whoever lingers with held polls has the news already."""
    task = await floor.add(State.WATCHED)
    until = floor.clock.now() + timedelta(minutes=1)
    floor.tasks.lease = LeaseView(holder="x", until=until, held_models=(task.model,))
    await floor.hint(task)
    assert floor.vendor.polls == []
    floor.tasks.lease = LeaseView(holder="x", until=until, held_models=("another/model",))
    floor.clock.pass_by(floor.vendor.task_time)
    await floor.hint(task)
    assert len(floor.vendor.polls) == 1


async def test_a_hint_during_the_submit_is_asked_to_come_again(floor: HookDesk) -> None:
    """No callback before the submit's answer is stored."""
    task = await floor.add(State.SUBMITTING)
    with pytest.raises(RejectedError) as rejected:
        await floor.hint(task)
    assert (rejected.value.status, floor.now_of(task)) == (503, task)


@pytest.mark.parametrize("ended", [True, False])
async def test_a_hint_rescues_an_ambiguous_task(floor: HookDesk, ended: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """The vendor names its task; asked with our key it knows it, and the task is adopted."""
    task = await floor.add(State.RESCUE)
    floor.vendor.taken["task-late"] = floor.clock.now() - (floor.vendor.task_time if ended else timedelta(0))
    with contextlib.nullcontext() if ended else pytest.raises(RejectedError, match="does not show the end"):
        await floor.hint(task, "task-late")
    adopted = floor.now_of(task)
    assert (adopted.state, adopted.upstream_task_id) == (State.WATCHED, "task-late")
    assert floor.woken.task_ids == [task.task_id]
    assert floor.woken.ended == ([task.task_id] if ended else [])
    assert floor.woken.told.get(task.task_id) is None  # it is asked for again, of the task that is stored then


async def test_a_task_that_the_vendor_does_not_know_is_not_adopted(floor: HookDesk) -> None:
    """A hint that names somebody else's task, or none, rescues nothing."""
    task = await floor.add(State.RESCUE)
    floor.vendor.poll_outcomes.append(PollOutcome(kind=PollKind.MISSING))
    await floor.hint(task, "task-unknown")
    await floor.hint(task, "")
    assert floor.now_of(task) == task


async def test_a_hint_about_an_ended_task_is_answered_and_forgotten(floor: HookDesk) -> None:
    """The vendor may repeat itself."""
    task = await floor.add(State.WATCHED)
    now = floor.clock.now()
    await floor.tasks.swap(task, task.succeeded({}, now, retention=timedelta(days=7), claim=now))
    await floor.hint(task)
    assert floor.vendor.polls == []


async def test_a_hint_that_cannot_be_checked_is_asked_to_come_again(floor: HookDesk) -> None:
    """The vendor repeats it on a 503; else the news would wait for the next rare poll."""
    task = await floor.add(State.WATCHED)
    floor.vendor.poll_outcomes.append(PollOutcome(kind=PollKind.UNAVAILABLE))
    with pytest.raises(RejectedError) as rejected:
        await floor.hint(task)
    assert rejected.value.status == 503
