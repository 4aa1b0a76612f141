"""Tasks that were submitted elsewhere are watched, and cost nothing."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from taskhook.core.admission import AdmissionState
from taskhook.core.errors import RejectedError
from taskhook.core.rate_limit import Allowance
from taskhook.core.record import CallbackState, State
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import Task
from taskhook.core.vendor import PollKind, PollOutcome
from taskhook.submit.takeover import take_over
from tests.unit.test_poll import PollerWorld
from tests.world import RecordingWake, a_caller

UPSTREAM = "task-elsewhere"
URL = "https://caller.example.com/hook"


@dataclass
class TakeoverWorld(PollerWorld):
    """A submit function's world, and a vendor that has one task from elsewhere."""

    woken: RecordingWake = field(default_factory=RecordingWake)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.vendor.taken[UPSTREAM] = self.clock.now()
        self.allowance = Allowance(self.control, "modellix", requests_per_minute=1000, admission=self.control)

    async def watch(self, *, caller: str = "alice", **changes: Any) -> Task:
        """Take the task over."""
        body = {"vendor": "modellix", "task_id": UPSTREAM, "callback_url": URL, **changes}
        return await take_over(
            {name: value for name, value in body.items() if value is not ...},
            caller=a_caller(caller),
            targets=TargetPolicy(),
            tasks=self.tasks,
            vendors={"modellix": self.vendor},
            allowances={"modellix": self.allowance},
            wake=self.woken,
            clock=self.clock,
            reporter=self.reported,
        )


@pytest.fixture
def world() -> TakeoverWorld:
    """Give a fresh world."""
    return TakeoverWorld()


async def test_a_running_task_is_watched_to_its_end_and_called_back(world: TakeoverWorld) -> None:
    """No paid request is made; everything else is as for a task of ours."""
    task = await world.watch(reference="mine")
    assert (task.state, task.upstream_task_id, task.reference) == (State.WATCHED, UPSTREAM, "mine")
    assert (world.woken.task_ids, world.woken.ended) == ([task.task_id], [])
    await world.run(timedelta(minutes=2))
    ended = world.now_of(task)
    assert (ended.state, ended.callback) == (State.SUCCESS, CallbackState.DELIVERED)
    assert world.vendor.submits == []


async def test_one_that_has_ended_is_ended_at_once(world: TakeoverWorld) -> None:
    """The poller is woken with what the vendor said."""
    world.clock.pass_by(timedelta(hours=1))
    task = await world.watch()
    told = world.woken.known_outcomes[task.task_id]
    assert (world.woken.ended, told.kind if told else None) == ([task.task_id], PollKind.SUCCEEDED)


async def test_the_same_task_again_is_the_first_one(world: TakeoverWorld) -> None:
    """Whatever else is said; another caller's, or another vendor's of that name, is another."""
    first, again, others = (
        await world.watch(),
        await world.watch(reference="x"),
        await world.watch(caller="bob"),
    )
    assert again.task_id == first.task_id != others.task_id
    assert again.reference is None
    assert len(world.vendor.polls) == 2


async def test_its_polls_wait_for_no_webhook(world: TakeoverWorld) -> None:
    """The vendor was given no address for a task that was submitted elsewhere."""
    world.control.leadership = world.control.leadership.model_copy(update={"webhook_at": world.clock.now()})
    world.vendor.task_time = timedelta(seconds=40)
    task = await world.watch()
    await world.run(timedelta(minutes=2))
    ended = world.now_of(task).ended_at
    assert ended is not None
    assert ended - task.accepted_at < timedelta(seconds=50)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (PollKind.MISSING, 404),
        (PollKind.KEY_REFUSED, 502),
        (PollKind.THROTTLED, 503),
        (PollKind.UNAVAILABLE, 503),
    ],
)
async def test_what_the_vendor_does_not_show_is_refused(
    world: TakeoverWorld, kind: PollKind, status: int
) -> None:
    """Nothing is stored: another account's task is a 404, and a vendor in trouble is asked again later."""
    world.vendor.poll_outcomes.append(PollOutcome(kind=kind))
    with pytest.raises(RejectedError) as rejected:
        await world.watch()
    assert (rejected.value.status, world.tasks.items) == (status, {})


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("vendor", "no-such-vendor"),
        ("vendor", ...),
        ("task_id", ""),
        ("task_id", "a b"),
        ("task_id", "x" * 256),
        ("task_id", 7),
        ("callback_url", "http://caller.example.com"),
        ("reference", "x" * 201),
        ("prompt", "x"),
    ],
)
async def test_what_is_wrong_is_named(world: TakeoverWorld, field_name: str, value: Any) -> None:
    """A 400 that names the field, without a request to the vendor."""
    with pytest.raises(RejectedError, match=f"'{field_name}'") as rejected:
        await world.watch(**{field_name: value})
    assert (rejected.value.status, world.vendor.polls) == (400, [])


async def test_it_is_asked_for_within_the_vendors_budget(world: TakeoverWorld) -> None:
    """Where no request is left, the caller is told to try again."""
    world.allowance.requests_per_minute = 11
    assert await world.allowance.take(world.clock.now())
    with pytest.raises(RejectedError) as rejected:
        await world.watch()
    assert (rejected.value.status, rejected.value.retry_after, world.vendor.polls) == (503, 6, [])


async def test_a_vendor_that_wants_to_be_left_alone_is_not_asked(world: TakeoverWorld) -> None:
    """The caller is told when to try again."""
    until = world.clock.now() + timedelta(minutes=30)
    world.control.the_admission = AdmissionState(polls_paused_until=until)
    with pytest.raises(RejectedError) as rejected:
        await world.watch()
    assert (rejected.value.status, rejected.value.retry_after) == (503, 1800)
    assert world.vendor.polls == []
    world.clock.pass_by(timedelta(minutes=30))
    assert (await world.watch()).state is State.WATCHED
