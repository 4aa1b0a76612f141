"""A cancel of what the vendor has: what runs is canceled, and no result that was paid for is lost."""

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from unittest.mock import AsyncMock

import pytest

from taskhook.core.errors import RejectedError, StaleTaskError, StoreUnavailableError
from taskhook.core.rate_limit import Allowance
from taskhook.core.record import CallbackState, ErrorCode, State
from taskhook.core.task import LOST_CONFIRMATION, Task
from taskhook.core.vendor import FreeOutcome, PollKind, PollOutcome, Vendor
from taskhook.tasks import commands
from taskhook.vendors import VENDORS
from taskhook.vendors.runway import RUNWAY
from tests.rows import each_row
from tests.unit.test_poll import PollerWorld
from tests.unit.test_vendors import ID, a_task, told
from tests.world import (
    START,
    FakeVendor,
    MemoryControl,
    MemoryTasks,
    RecordingReporter,
    RecordingWake,
    VirtualClock,
    a_caller,
    a_success,
)

CANCELING = [vendor for vendor in VENDORS.values() if vendor.cancel("") is not None]
REMOVING = [vendor for vendor in CANCELING if vendor.cancel_removes]
EACH = pytest.mark.parametrize("vendor", CANCELING, ids=[vendor.name for vendor in CANCELING])
EACH_THAT_REMOVES = pytest.mark.parametrize("vendor", REMOVING, ids=[vendor.name for vendor in REMOVING])
ENDED = (a_success("task-1"), PollOutcome(kind=PollKind.FAILED, message="no human in the video"))


@dataclass
class CancelingVendor(FakeVendor):
    """One that takes a cancel, and keeps it."""

    cancels: list[str] = field(default_factory=list)
    status: int = 200
    no_key: bool = False
    after: PollOutcome | None = None  # what it says of the task once it was asked to cancel it
    meanwhile: Callable[[], Awaitable[object]] | None = None  # what happens while it is asked

    async def cancel(self, upstream_task_id: str, *, operation: str | None = None) -> FreeOutcome:
        """Take it, or answer as told; 0: no answer comes."""
        del operation
        self.cancels.append(upstream_task_id)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        if self.after is not None:
            self.poll_outcomes.append(self.after)
        return FreeOutcome(
            answered=0 < self.status < 500 and self.status != 429, status=self.status, no_key=self.no_key
        )


class CancelWorld:
    """A caller, and its task that a vendor has."""

    def __init__(self, vendor: Vendor, *, requests_per_minute: int = 1000) -> None:
        self.clock, self.tasks, self.woken = VirtualClock(), MemoryTasks(), RecordingWake()
        self.api = CancelingVendor(self.clock)
        self.api.vendor = vendor
        self.task = a_task(vendor)
        assert self.task.upstream_task_id is not None
        self.api.taken[self.task.upstream_task_id] = self.clock.now()
        self.allowance = Allowance(MemoryControl(), vendor.name, requests_per_minute=requests_per_minute)

    @property
    def stored(self) -> Task:
        """The task as it stands."""
        return self.tasks.items[self.task.task_id]

    async def cancel(self, *, also_ended: bool = True) -> Task:
        """Cancel it, by a DELETE of the vendor's own unless it says otherwise."""
        if self.task.task_id not in self.tasks.items:
            await self.tasks.add(self.task)
        return await commands.cancel(
            self.task.task_id,
            caller=a_caller("alice"),
            tasks=self.tasks,
            vendors={self.api.vendor.name: self.api},
            allowances={self.api.vendor.name: self.allowance},
            wake=self.woken,
            clock=self.clock,
            reporter=RecordingReporter(),
            retention=timedelta(days=7),
            also_ended=also_ended,
        )

    async def watched(self, *answers: PollKind, hours: int = 0) -> tuple[PollerWorld, Task]:
        """Hand it to a poller, which finds it so many hours old, and whose vendor answers so at first."""
        poller = PollerWorld()
        poller.clock.pass_by(timedelta(hours=hours))
        url = {"callback": CallbackState.WAITING, "callback_url": "https://r.example.com/"}
        task = await poller.tasks.add(self.stored.model_copy(update={"vendor": "modellix", **url}))
        poller.vendor.task_time = timedelta(hours=hours, minutes=10)
        poller.vendor.taken[task.upstream_task_id or ""] = self.clock.now()
        poller.vendor.poll_outcomes.extend(PollOutcome(kind=kind) for kind in answers)
        return poller, task


async def unanswered(vendor: Vendor) -> CancelWorld:
    """Give a world in which a cancel met no answer five seconds ago."""
    world = CancelWorld(vendor)
    world.api.status = 503
    with pytest.raises(RejectedError):
        await world.cancel()
    world.clock.pass_by(timedelta(seconds=5))
    return world


@EACH
def test_a_delete_is_called_one_that_removes(vendor: Vendor) -> None:
    """No vendor's file forgets to say so."""
    made = vendor.cancel("/x")
    assert made is not None
    assert vendor.cancel_removes or made.method != "DELETE"


@EACH
async def test_what_runs_is_canceled_at_its_vendor(vendor: Vendor) -> None:
    """Once; what becomes of it, polls tell."""
    world = CancelWorld(vendor)
    assert (await world.cancel()).state is State.WATCHED
    assert world.api.cancels == [world.task.upstream_task_id]


@EACH
@pytest.mark.parametrize("word", ["canceled", None])
async def test_its_callback_says_that_it_was_canceled(vendor: Vendor, word: str | None) -> None:
    """Whether its vendor says so from then on, or does not know it any more, as Runway does."""
    world = CancelWorld(vendor)
    await world.cancel()
    poller, task = await world.watched(*[PollKind.MISSING] * 100 if word is None else ())
    if word is not None:
        poller.vendor.poll_outcomes.append(vendor.read_poll(told(vendor, word), ID))
    await poller.run(timedelta(minutes=3))
    ended = poller.now_of(task)
    assert (ended.error, ended.callback) == (ErrorCode.CANCELED, CallbackState.DELIVERED)


@EACH
@each_row("status", [200, 503])
async def test_what_failed_although_its_cancel_was_asked_for_has_failed(vendor: Vendor, status: int) -> None:
    """Its vendor says so, in a word that is not that of a cancel; whether it took the cancel or not."""
    world = CancelWorld(vendor)
    world.api.status = status
    with contextlib.suppress(RejectedError):
        await world.cancel()
    poller, task = await world.watched()
    poller.vendor.poll_outcomes.append(vendor.read_poll(told(vendor, "FAILED"), ID))
    await poller.run(timedelta(minutes=3))
    assert (world.stored.canceled_at is None, poller.now_of(task).error) == (False, ErrorCode.UPSTREAM_FAILED)


@each_row("hours", [0, 1])
async def test_that_it_is_not_known_any_more_is_believed_the_second_time(hours: int) -> None:
    """As of any task, 30 s after the first, however rarely a task of its age is asked about."""
    world = CancelWorld(RUNWAY)
    await world.cancel()
    poller, task = await world.watched(*[PollKind.MISSING] * 100, hours=hours)
    await poller.run(timedelta(minutes=3))
    first, last = poller.vendor.polls[0][0], poller.vendor.polls[-1][0]
    assert poller.now_of(task).error is ErrorCode.CANCELED
    assert LOST_CONFIRMATION <= last - first <= LOST_CONFIRMATION + timedelta(seconds=5)


async def test_one_404_ends_no_task_that_was_canceled() -> None:
    """The vendor took the cancel, and finished the task all the same."""
    world = CancelWorld(RUNWAY)
    await world.cancel()
    poller, task = await world.watched(PollKind.MISSING)
    await poller.run(timedelta(minutes=12))
    assert (poller.now_of(task).state, poller.now_of(task).error) == (State.SUCCESS, None)


@EACH
@each_row("status", [0, 500, 503, 404])
async def test_a_cancel_whose_answer_says_nothing_may_have_been_taken(vendor: Vendor, status: int) -> None:
    """The caller is told that it is not known; where the task is not either, it is canceled, not lost."""
    world = CancelWorld(vendor)
    world.api.status = status
    with pytest.raises(RejectedError) as rejected:
        await world.cancel()
    assert rejected.value.status == (409 if status == 404 else 503)
    poller, task = await world.watched(*[PollKind.MISSING] * 100)
    await poller.run(timedelta(minutes=3))
    assert poller.now_of(task).error is ErrorCode.CANCELED


@EACH
async def test_a_cancel_without_an_answer_ends_no_task_that_goes_on(vendor: Vendor) -> None:
    """It had not reached the vendor."""
    world = CancelWorld(vendor)
    world.api.status = 503
    with pytest.raises(RejectedError):
        await world.cancel()
    poller, task = await world.watched()
    await poller.run(timedelta(minutes=12))
    assert poller.now_of(task).state is State.SUCCESS


@EACH
async def test_a_process_that_dies_while_it_cancels_leaves_word(vendor: Vendor) -> None:
    """The vendor may have taken the cancel by then."""
    world = CancelWorld(vendor)

    async def dies() -> None:
        raise SystemExit

    world.api.meanwhile = dies
    with pytest.raises(SystemExit):
        await world.cancel()
    assert world.stored.canceled_at is not None


@EACH
@each_row("status", [401, 409, 429])
async def test_a_cancel_that_is_refused_is_forgotten(vendor: Vendor, status: int) -> None:
    """What fails later has failed, and was not canceled; what is lost then is lost."""
    world = CancelWorld(vendor)
    world.api.status = status
    with pytest.raises(RejectedError):
        await world.cancel()
    assert world.stored.canceled_at is None


@EACH
async def test_a_cancel_for_which_there_was_no_key_is_forgotten(vendor: Vendor) -> None:
    """Nothing was asked; the caller asks again."""
    world = CancelWorld(vendor)
    world.api.no_key, world.api.status = True, 0
    with pytest.raises(RejectedError) as rejected:
        await world.cancel()
    assert (rejected.value.status, world.stored.canceled_at) == (503, None)


@EACH
async def test_a_cancel_is_asked_again_where_no_answer_came(vendor: Vendor) -> None:
    """It is not taken for done; that it is refused now may be because the first one was taken."""
    world = await unanswered(vendor)
    first = world.stored.canceled_at
    world.api.status, world.api.after = 409, PollOutcome(kind=PollKind.FAILED, canceled=True)
    assert (await world.cancel()).canceled_at == first
    assert (len(world.api.cancels), world.stored.canceled_at) == (2, first)


@EACH
async def test_a_cancel_that_is_refused_while_the_task_goes_on_is_not_told_as_done(vendor: Vendor) -> None:
    """No answer came to the first one, which the vendor may as well not have had."""
    world = await unanswered(vendor)
    world.api.status = 409
    with pytest.raises(RejectedError, match="does not cancel the task"):
        await world.cancel()


@EACH
async def test_a_repeated_cancel_of_what_has_succeeded_is_too_late(vendor: Vendor) -> None:
    """The vendor refuses it, and is asked why."""
    world = await unanswered(vendor)
    world.api.status, world.api.after = 409, a_success(ID)
    with pytest.raises(RejectedError, match="has ended"):
        await world.cancel(also_ended=False)
    assert world.woken.ended == [world.task.task_id]


@EACH
async def test_a_repeated_cancel_that_is_refused_asks_within_the_budget(vendor: Vendor) -> None:
    """How the task stands is one more request."""
    world = CancelWorld(vendor)
    await world.cancel()
    world.clock.pass_by(timedelta(seconds=5))
    world.allowance = Allowance(MemoryControl(), vendor.name, requests_per_minute=22)  # two a window
    asked = 1 + vendor.cancel_removes
    for _ in range(2 - asked):
        await world.allowance.require(world.clock.now())
    world.api.status = 409
    with pytest.raises(RejectedError, match="no request to the vendor is left") as rejected:
        await world.cancel()
    assert rejected.value.status == 503


@EACH_THAT_REMOVES
async def test_a_cancel_that_is_repeated_once_the_task_is_gone_is_fine(vendor: Vendor) -> None:
    """The first one was taken, as far as can be known."""
    world = CancelWorld(vendor)
    await world.cancel()
    world.api.poll_outcomes.append(PollOutcome(kind=PollKind.MISSING))
    assert (await world.cancel()).canceled_at is not None
    assert len(world.api.cancels) == 1


@EACH
async def test_the_refusal_of_one_request_forgets_no_cancel_of_another(vendor: Vendor) -> None:
    """Two at once: the one that comes second is refused because the first was taken."""
    world, first = CancelWorld(vendor), VirtualClock().now() - timedelta(seconds=1)
    await world.tasks.add(world.task)
    swap = world.tasks.swap

    async def beaten(old: Task, new: Task) -> Task:
        world.tasks.swap = swap  # type: ignore[method-assign]
        await swap(old, old.cancel_asked(first))
        return await swap(old, new)

    world.tasks.swap = beaten  # type: ignore[method-assign]
    world.api.status, world.api.after = 409, PollOutcome(kind=PollKind.MISSING)
    assert (await world.cancel()).canceled_at == first
    assert world.stored.canceled_at == first


@EACH
async def test_what_the_poller_notes_meanwhile_stops_no_cancel(vendor: Vendor) -> None:
    """Only an end does: then the vendor is not asked."""
    for change, asked in (({"missing_since": START}, 1), ({"state": State.SUCCESS}, 0)):
        world = CancelWorld(vendor)
        read, task = await world.tasks.add(world.task), world.task
        await world.tasks.swap(read, task.model_copy(update=change))
        world.tasks.get = AsyncMock(return_value=read)  # type: ignore[method-assign]  # just before
        canceled = await world.cancel()
        assert (len(world.api.cancels), canceled.canceled_at is not None) == (asked, asked == 1)


@EACH
async def test_a_cancel_that_cannot_be_noted_is_not_asked_for(vendor: Vendor) -> None:
    """The table does not answer; the caller asks again."""
    world = CancelWorld(vendor)
    await world.tasks.add(world.task)
    world.tasks.swap = AsyncMock(side_effect=StoreUnavailableError)  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailableError):
        await world.cancel()
    assert world.api.cancels == []


@EACH
async def test_a_refusal_that_cannot_be_noted_is_told(vendor: Vendor) -> None:
    """The caller hears what the vendor said, whatever the table does."""
    for trouble in (StoreUnavailableError(), StaleTaskError(None)):
        world = CancelWorld(vendor)
        world.api.status = 409

        async def away(world: CancelWorld = world, trouble: Exception = trouble) -> None:
            world.tasks.swap = AsyncMock(side_effect=trouble)  # type: ignore[method-assign]

        world.api.meanwhile = away
        with pytest.raises(RejectedError, match="does not cancel"):
            await world.cancel()


@EACH_THAT_REMOVES
@pytest.mark.parametrize("ended", ENDED, ids=["success", "failed"])
async def test_what_has_just_ended_is_not_removed(vendor: Vendor, ended: PollOutcome) -> None:
    """Its result would be gone; the poller is told of its end, and a DELETE is answered as ever."""
    world = CancelWorld(vendor)
    world.api.poll_outcomes.append(ended)
    assert (await world.cancel()).task_id == world.task.task_id
    assert world.api.cancels == []
    assert (world.woken.ended, world.woken.known_outcomes) == (
        [world.task.task_id],
        {world.task.task_id: ended},
    )


@EACH_THAT_REMOVES
async def test_a_plain_cancel_of_what_has_just_ended_is_too_late(vendor: Vendor) -> None:
    """As it is for a task whose end is stored."""
    world = CancelWorld(vendor)
    world.api.poll_outcomes.append(a_success("task-1"))
    with pytest.raises(RejectedError, match="has ended") as rejected:
        await world.cancel(also_ended=False)
    assert (rejected.value.status, world.api.cancels) == (409, [])
    assert world.woken.ended == [world.task.task_id]


@EACH_THAT_REMOVES
@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (PollKind.MISSING, 409),
        (PollKind.THROTTLED, 503),
        (PollKind.KEY_REFUSED, 503),
        (PollKind.UNAVAILABLE, 503),
    ],
)
async def test_where_it_cannot_be_told_nothing_is_removed(
    vendor: Vendor, kind: PollKind, status: int
) -> None:
    """The caller asks again; what the vendor does not know it cannot cancel."""
    world = CancelWorld(vendor)
    world.api.poll_outcomes.append(PollOutcome(kind=kind))
    with pytest.raises(RejectedError) as rejected:
        await world.cancel()
    assert (rejected.value.status, world.api.cancels, world.woken.ended) == (status, [], [])


@EACH_THAT_REMOVES
async def test_the_look_and_the_cancel_are_two_requests(vendor: Vendor) -> None:
    """Where the vendor's budget has one left, nothing is removed."""
    world = CancelWorld(vendor, requests_per_minute=11)  # one a window
    with pytest.raises(RejectedError) as rejected:
        await world.cancel()
    assert (rejected.value.status, world.api.cancels) == (503, [])


@EACH
@each_row(("said", "status"), [(400, 409), (409, 409), (503, 503)])
async def test_a_vendor_that_does_not_cancel_says_so(vendor: Vendor, said: int, status: int) -> None:
    """Refused, or without an answer."""
    world = CancelWorld(vendor)
    world.api.status = said
    with pytest.raises(RejectedError) as rejected:
        await world.cancel()
    assert rejected.value.status == status
