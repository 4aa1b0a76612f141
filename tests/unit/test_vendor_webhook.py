import contextlib
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from taskhook.core.errors import RejectedError
from taskhook.core.leadership import LeadershipView
from taskhook.core.record import State
from taskhook.core.task import Task
from taskhook.core.vendor import PollKind, PollOutcome
from taskhook.submit.vendor_webhook import check_webhook
from taskhook.wiring import App
from tests.unit.test_poll import PollerWorld
from tests.world import SETTINGS, FixedWebhookUrls, RecordingWake


@dataclass
class WebhookWorld(PollerWorld):
    """A submit function's world where the vendor calls webhooks."""

    woken: RecordingWake = field(default_factory=RecordingWake)
    rpm: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        ports = App(
            SETTINGS.model_copy(update={"requests_per_minute": self.rpm}),
            tasks=self.tasks,
            control=self.control,
            vendors={"modellix": self.vendor},
            webhook_urls=FixedWebhookUrls(),
            wake=self.woken,
            clock=self.clock,
            reporter=self.reported,
        ).vendor_webhooks
        assert ports is not None
        self.webhook_ports = ports

    async def webhook(self, task: Task, upstream_task_id: str = "task-t", token: str | None = None) -> None:
        """Let the vendor call the webhook of a task."""
        await check_webhook(
            task.task_id, token or f"token-of-{task.task_id}", upstream_task_id, ports=self.webhook_ports
        )


@pytest.fixture
def world() -> WebhookWorld:
    """Give a fresh world."""
    return WebhookWorld()


async def test_a_true_webhook_wakes_the_poller_and_is_remembered(world: WebhookWorld) -> None:
    """The vendor was asked, said that the task has ended, and from now on webhooks are expected."""
    task = await world.add(State.WATCHED)
    world.clock.pass_by(world.vendor.task_time)
    await world.webhook(task)
    assert (world.woken.ended, len(world.vendor.polls)) == ([task.task_id], 1)
    told = world.woken.known_outcomes[task.task_id]
    assert told is not None
    assert told.kind is PollKind.SUCCEEDED  # and is not asked for again
    assert world.control.leadership.webhooks_come(world.clock.now())
    assert world.now_of(task) == task
    # a request of the budget, too
    assert world.facts("vendor.polled") == [
        {"task_id": task.task_id, "vendor": "modellix", "kind": "succeeded"}
    ]


async def test_only_so_many_looks_are_remembered(world: WebhookWorld) -> None:
    """A process that stays warm for long does not grow."""
    world.vendor.task_time = timedelta(0)
    for number in range(1200):
        await world.webhook(await world.add(State.WATCHED, str(number)), f"task-{number}")
        world.clock.pass_by(timedelta(seconds=6))
    assert len(world.webhook_ports.looked_at) == 1000


async def test_a_webhook_that_the_vendor_does_not_confirm_changes_nothing(world: WebhookWorld) -> None:
    """A webhook is never believed. It may be early, and the only one: so the vendor is asked to repeat it."""
    task = await world.add(State.WATCHED)
    with pytest.raises(RejectedError) as rejected:
        await world.webhook(task)
    assert (
        rejected.value.status,
        world.woken.ended,
        world.control.leadership.webhook_at,
        world.now_of(task),
    ) == (
        503,
        [],
        None,
        task,
    )
    world.clock.pass_by(world.vendor.task_time)
    await world.webhook(task)
    assert world.woken.ended == [task.task_id]


@pytest.mark.parametrize("token", ["", "x", "token-of-tk_other"])
async def test_a_wrong_token_is_a_404_and_does_not_ask_the_vendor(world: WebhookWorld, token: str) -> None:
    """A guess learns nothing, not even whether there is such a task."""
    task = await world.add(State.WATCHED)
    with pytest.raises(RejectedError) as rejected:
        await world.webhook(task, token=token or "-")
    assert rejected.value.status == 404
    assert world.vendor.polls == []


async def test_a_token_that_cannot_be_checked_is_asked_to_come_again(world: WebhookWorld) -> None:
    """Where the key cannot be read, a true webhook is not answered like a forged one, and nothing crashes."""

    class NoKey(FixedWebhookUrls):
        async def valid(self, _task_id: str, _token: str) -> None:
            """Know nothing."""

    world.webhook_ports = replace(world.webhook_ports, webhook_urls=NoKey())
    task = await world.add(State.WATCHED)
    with pytest.raises(RejectedError) as rejected:
        await world.webhook(task)
    assert (rejected.value.status, rejected.value.retry_after, world.vendor.polls) == (503, 5, [])


async def test_a_flood_asks_the_vendor_once_a_second(world: WebhookWorld) -> None:
    """However many webhooks come about one task."""
    task = await world.add(State.WATCHED)
    began = world.clock.now()
    while world.clock.now() < began + timedelta(seconds=3):
        with pytest.raises(RejectedError, match="Service unavailable"):
            await world.webhook(task)
        world.clock.pass_by(timedelta(milliseconds=10))
    assert len(world.vendor.polls) == 3


async def test_webhooks_share_the_vendors_budget(world: WebhookWorld) -> None:
    """Where no request is left, the vendor is told to try again."""
    task = await world.add(State.WATCHED)
    window = int(world.clock.now().timestamp() // 6)
    await world.control.take_tokens("modellix", 1000, window=window, limit=1000)
    with pytest.raises(RejectedError) as rejected:
        await world.webhook(task)
    assert (rejected.value.status, rejected.value.retry_after, world.vendor.polls) == (503, 6, [])


async def test_a_webhook_about_a_held_poll_is_left_alone(world: WebhookWorld) -> None:
    """A leader with held polls has the news already."""
    task = await world.add(State.WATCHED)
    until = world.clock.now() + timedelta(minutes=1)
    world.control.leadership = LeadershipView(leader="x", until=until, held_models=(task.model,))
    await world.webhook(task)
    assert world.vendor.polls == []
    world.control.leadership = LeadershipView(leader="x", until=until, held_models=("another/model",))
    world.clock.pass_by(world.vendor.task_time)
    await world.webhook(task)
    assert len(world.vendor.polls) == 1


async def test_a_webhook_during_the_submit_is_asked_to_come_again(world: WebhookWorld) -> None:
    """No callback before the submit's answer is stored."""
    task = await world.add(State.SUBMITTING)
    with pytest.raises(RejectedError) as rejected:
        await world.webhook(task)
    assert (rejected.value.status, world.now_of(task)) == (503, task)


@pytest.mark.parametrize("ended", [True, False])
async def test_a_webhook_recovers_an_ambiguous_task(world: WebhookWorld, *, ended: bool) -> None:
    """The vendor names its task; asked with our key it knows it, and the task is adopted."""
    task = await world.add(State.UNKNOWN)
    world.vendor.taken["task-late"] = world.clock.now() - (world.vendor.task_time if ended else timedelta(0))
    with contextlib.nullcontext() if ended else pytest.raises(RejectedError, match="does not show the end"):
        await world.webhook(task, "task-late")
    adopted = world.now_of(task)
    assert (adopted.state, adopted.upstream_task_id) == (State.WATCHED, "task-late")
    assert world.woken.task_ids == [task.task_id]
    assert world.woken.ended == ([task.task_id] if ended else [])
    # it is asked for again, of the task that is stored then
    assert world.woken.known_outcomes.get(task.task_id) is None


async def test_a_task_that_the_vendor_does_not_know_is_not_adopted(world: WebhookWorld) -> None:
    """A webhook that names another submit's task, or none, recovers nothing."""
    task = await world.add(State.UNKNOWN)
    world.vendor.poll_outcomes.append(PollOutcome(kind=PollKind.MISSING))
    await world.webhook(task, "task-unknown")
    await world.webhook(task, "")
    assert world.now_of(task) == task


async def test_a_webhook_about_an_ended_task_is_answered_and_forgotten(world: WebhookWorld) -> None:
    """The vendor may repeat itself."""
    task = await world.add(State.WATCHED)
    now = world.clock.now()
    await world.tasks.swap(task, task.succeeded({}, now, retention=timedelta(days=7), claim=now))
    await world.webhook(task)
    assert world.vendor.polls == []


async def test_a_webhook_that_cannot_be_checked_is_asked_to_come_again(world: WebhookWorld) -> None:
    """The vendor repeats it on a 503; else the news would wait for the next rare poll."""
    task = await world.add(State.WATCHED)
    world.vendor.poll_outcomes.append(PollOutcome(kind=PollKind.UNAVAILABLE))
    with pytest.raises(RejectedError) as rejected:
        await world.webhook(task)
    assert rejected.value.status == 503


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (PollOutcome(kind=PollKind.THROTTLED, retry_after=timedelta(minutes=30)), "throttled"),
        (PollOutcome(kind=PollKind.UNAVAILABLE, retry_after=timedelta(minutes=30)), "throttled"),
        (PollOutcome(kind=PollKind.KEY_REFUSED), "key_refused"),
    ],
)
async def test_a_pause_that_the_vendor_asks_for_holds_for_its_webhooks_too(
    world: WebhookWorld, outcome: PollOutcome, reason: str
) -> None:
    """However many come, it is asked once; the poller obeys as well, and finds the ends when it is over."""
    tasks = [await world.add(State.WATCHED, f"w{number}") for number in range(20)]
    world.clock.pass_by(world.vendor.task_time)
    world.vendor.poll_outcomes.append(outcome)
    for number, task in enumerate(tasks):
        with pytest.raises(RejectedError) as rejected:
            await world.webhook(task, f"task-w{number}")
        assert (rejected.value.status, bool(rejected.value.retry_after)) == (503, True)
    assert len(world.vendor.polls) == 1
    assert [told["reason"] for told in world.facts("vendor.paused")] == [reason]
    assert world.control.the_admission.paused(world.clock.now())
    if outcome.retry_after:  # longer than an invocation
        await world.tick()
        assert len(world.vendor.polls) == 1
    await world.run(timedelta(minutes=35))
    assert {world.now_of(task).state for task in tasks} == {State.SUCCESS}
