"""DashScope as its first model has it: one task runs at a time, no poll is held, no webhook comes."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from statistics import mean

import pytest

from taskhook.core.ports import Admit
from taskhook.core.record import CallbackState, State, Submission, SubmitOutcome
from taskhook.core.vendor import PollKind, PollOutcome
from taskhook.poller.invocation import poll
from taskhook.vendors.dashscope import DASHSCOPE
from taskhook.wiring import App
from tests.unit.test_poll import STOP, PollerWorld
from tests.world import (
    SETTINGS,
    AtModellix,
    FixedWebhookUrls,
    MemoryCallers,
    VirtualClock,
    a_caller,
    a_success,
)


@dataclass
class OneSlot(AtModellix):
    """`TaskApi`: runs one task at a time, each as long as its lot says."""

    clock: VirtualClock
    about: timedelta
    vendor = DASHSCOPE
    lots: Random = field(default_factory=lambda: Random(20261126))
    ends: dict[str, datetime] = field(default_factory=dict)
    took: dict[str, timedelta] = field(default_factory=dict)
    polls: Counter[str] = field(default_factory=Counter)
    seen: dict[str, datetime] = field(default_factory=dict)
    refused: list[datetime] = field(default_factory=list)

    async def submit(
        self, target: str, request: bytes, *, admit: Admit | None = None, **_: object
    ) -> SubmitOutcome:
        """Take a task where none runs."""
        del target, request
        assert admit is None or await admit()
        await self.clock.sleep(timedelta(milliseconds=400))
        now = self.clock.now()
        if any(now < end for end in self.ends.values()):
            self.refused.append(now)
            return SubmitOutcome(submission=Submission.BUSY, status=429, message="Throttling.AllocationQuota")
        name = f"up-{len(self.ends)}"
        self.took[name] = self.about * self.lots.uniform(0.8, 1.2)
        self.ends[name] = now + self.took[name]
        return SubmitOutcome(submission=Submission.TAKEN, upstream_task_id=name, status=200)

    async def poll(self, upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        """Say how far the task is; never held."""
        assert not hold
        self.polls[upstream_task_id] += 1
        await self.clock.sleep(timedelta(milliseconds=200))
        if self.clock.now() < self.ends[upstream_task_id]:
            return PollOutcome(kind=PollKind.PENDING)
        self.seen[upstream_task_id] = self.clock.now()
        return a_success(upstream_task_id)


@pytest.mark.parametrize(("queued", "about_s"), [(200, 30), (8, 600)])
async def test_queued_tasks_pass_through_one_slot(queued: int, about_s: int) -> None:
    """All are delivered, in time and for few requests; at most one submit a minute is refused."""
    world = PollerWorld()
    vendor = OneSlot(world.clock, timedelta(seconds=about_s))
    ports = App(
        SETTINGS,
        tasks=world.tasks,
        control=world.control,
        vendors={"dashscope": vendor},
        webhook_urls=FixedWebhookUrls(),
        callbacks=world.receivers,
        callers=MemoryCallers(a_caller("alice"), a_caller("bob")),
        clock=world.clock,
        reporter=world.reported,
    ).poller
    for number in range(queued):
        task = await world.add(State.QUEUED, f"q{number}", "alice" if number % 2 else "bob")
        ours = task.model_copy(update={"vendor": "dashscope", "model": "wan2.2-animate-mix"})
        await world.tasks.swap(task, ours)
    began = world.clock.now()
    invocations = []
    while len(vendor.seen) < queued and world.clock.now() < began + vendor.about * queued * 2:
        invocations.append(
            asyncio.create_task(
                poll(
                    accepted=(),
                    ended={},
                    scheduled=True,
                    hard_stop=world.clock.now() + STOP,
                    rules=world.rules,
                    ports=ports,
                )
            )
        )
        await world.clock.sleep(timedelta(minutes=1))
    await asyncio.gather(*invocations)
    states = Counter(task.callback for task in world.tasks.items.values())
    assert states == {CallbackState.DELIVERED: queued}
    assert len(vendor.ends) == queued  # each was paid once
    minutes = (world.clock.now() - began) / timedelta(minutes=1)
    late = mean((vendor.seen[name] - vendor.ends[name]) / vendor.took[name] for name in vendor.ends)
    assert late <= 0.1
    assert mean(vendor.polls.values()) <= 20
    # A task may be taken for one that has ended and was not asked about yet: then the next is tried at once.
    assert len(vendor.refused) <= minutes
