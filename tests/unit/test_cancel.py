"""A cancel of what the vendor has: what runs is canceled, and no result that was paid for is lost."""

from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from taskhook.core.errors import RejectedError
from taskhook.core.rate_limit import Allowance
from taskhook.core.record import CallbackState, ErrorCode, State
from taskhook.core.task import Task
from taskhook.core.vendor import FreeOutcome, PollKind, PollOutcome, Vendor
from taskhook.tasks import commands
from taskhook.vendors import VENDORS
from tests.rows import each_row
from tests.unit.test_poll import PollerWorld
from tests.unit.test_vendors import a_task
from tests.world import (
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

    async def cancel(self, upstream_task_id: str, *, operation: str | None = None) -> FreeOutcome:
        """Take it, or answer as told."""
        del operation
        self.cancels.append(upstream_task_id)
        return FreeOutcome(answered=self.status < 500, status=self.status)


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

    async def cancel(self, *, also_ended: bool = True) -> Task:
        """Cancel it, by a DELETE of the vendor's own unless it says otherwise."""
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
@pytest.mark.parametrize("then", [PollKind.FAILED, PollKind.MISSING])
async def test_its_callback_says_that_it_was_canceled(vendor: Vendor, then: PollKind) -> None:
    """Whether its vendor calls it failed from then on, or does not know it any more, as Runway does."""
    world, poller = CancelWorld(vendor), PollerWorld()
    await world.cancel()
    stored = world.tasks.items[world.task.task_id]
    url = {"callback": CallbackState.WAITING, "callback_url": "https://r.example.com/"}
    watched = await poller.tasks.add(stored.model_copy(update={"vendor": "modellix", **url}))
    poller.vendor.answers = {stored.upstream_task_id or "": then}
    await poller.run(timedelta(minutes=3))
    ended = poller.now_of(watched)
    assert (ended.error, ended.callback) == (ErrorCode.CANCELED, CallbackState.DELIVERED)


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
