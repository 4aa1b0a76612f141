"""A cancel that reaches a vendor's emulator over real sockets, while its task runs, and once it has ended."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest

from taskhook.adapters.http.vendor import HttpTaskApi
from taskhook.adapters.http.vendor_wire import trust
from taskhook.core.rate_limit import Allowance
from taskhook.core.record import Submission
from taskhook.core.task import Task
from taskhook.core.vendor import PollKind, PollOutcome, Vendor
from taskhook.tasks import commands
from taskhook.vendors import VENDORS
from tests.local.emulators import EMULATORS
from tests.local.server import serving
from tests.local.vendor import VendorEmulator
from tests.modellix.vendor import VendorProfile
from tests.unit.test_vendors import a_task, headers_of
from tests.world import MemoryControl, MemoryTasks, RecordingReporter, RecordingWake, VirtualClock, a_caller

REMOVING = [vendor for vendor in VENDORS.values() if vendor.cancel_removes]
EACH = pytest.mark.parametrize("vendor", REMOVING, ids=[vendor.name for vendor in REMOVING])


async def a_key(*, fresh: bool) -> str:
    """Give the key."""
    del fresh
    return "k"


@dataclass
class Course:
    """A task of ours at an emulator."""

    api: HttpTaskApi
    emulator: VendorEmulator
    task: Task
    woken: RecordingWake

    async def poll(self) -> PollOutcome:
        """Ask for the task."""
        return await self.api.poll(self.task.upstream_task_id or "", operation=self.task.operation)

    async def cancel(self) -> None:
        """Cancel it, as its vendor's own DELETE does."""
        tasks, name = MemoryTasks(), self.api.vendor.name
        await tasks.add(self.task)
        await commands.cancel(
            self.task.task_id,
            caller=a_caller("alice"),
            tasks=tasks,
            vendors={name: self.api},
            allowances={name: Allowance(MemoryControl(), name, requests_per_minute=1000)},
            wake=self.woken,
            clock=VirtualClock(),
            reporter=RecordingReporter(),
            retention=timedelta(days=7),
            also_ended=True,
        )


@asynccontextmanager
async def course(vendor: Vendor) -> AsyncIterator[Course]:
    """Submit a task to an emulator of the vendor."""
    emulator = EMULATORS[vendor.name](VendorProfile(api_keys=("k",), task_seconds=60.0))
    async with serving(emulator.app()) as origin:
        api = HttpTaskApi(origin, a_key, vendor=vendor, tls=trust(), least=timedelta(0))
        try:
            body = vendor.example.with_media("https://x.invalid/a.jpg", "https://x.invalid/b.mp4")
            paid = vendor.paid_request(vendor.example.path, headers_of(vendor), body)
            taken = await api.submit(
                paid.target,
                paid.body.encode(),
                webhook_url=None,
                limit=timedelta(seconds=30),
                headers=paid.headers,
            )
            assert taken.submission is Submission.TAKEN, taken
            ours = {"upstream_task_id": taken.upstream_task_id, "operation": taken.operation}
            yield Course(api, emulator, a_task(vendor).model_copy(update=ours), RecordingWake())
        finally:
            await api.close()


@EACH
async def test_a_result_outlives_a_cancel_that_comes_too_late(vendor: Vendor) -> None:
    """The task has ended a moment ago, and no poller has seen it yet."""
    async with course(vendor) as one:
        one.emulator.vendor.end(one.emulator.vendor.known(one.task.upstream_task_id or ""))
        await one.cancel()
        assert (await one.poll()).kind is PollKind.SUCCEEDED
        assert one.woken.ended == [one.task.task_id]


@EACH
async def test_what_has_not_ended_is_canceled(vendor: Vendor) -> None:
    """It has failed from then on, or is not known; the poller is told to look."""
    async with course(vendor) as one:
        await one.cancel()
        assert (await one.poll()).kind in {PollKind.FAILED, PollKind.MISSING}
        assert one.woken.ended == [one.task.task_id]
