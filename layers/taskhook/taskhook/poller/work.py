"""What the poller works with: its rules, its ports, and the protocol of a kind of work."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, Self

from taskhook.core.leadership import LeadershipView
from taskhook.core.ports import (
    AdmissionStore,
    Archiver,
    Budget,
    CallbackSender,
    CallerDirectory,
    Clock,
    LeadershipStore,
    Reporter,
    TaskApi,
    TaskStore,
    WebhookUrls,
    WorkIndex,
)
from taskhook.core.record import FIRST_VENDOR
from taskhook.core.task import Task
from taskhook.core.vendor import Vendor, task_age
from taskhook.poller.long_poll import LongPollSupport

TICK = timedelta(seconds=60)
SCAN = timedelta(seconds=2)  # between looks at the index and the leadership
INDEX_LAG = timedelta(seconds=30)  # how far the index may lag behind the table
DRAIN = timedelta(seconds=35)  # before the end of an invocation: longer than any claimed step takes
RESERVE = timedelta(seconds=30)  # between the end of an invocation's drain and that of its function
PAUSE_SHORT = timedelta(seconds=5)  # where the other side names no time
PAUSE_LONG = timedelta(seconds=60)  # after a bug, or while the vendor refuses the key


@dataclass(frozen=True)
class Rules:
    """What the deployment decided about polling."""

    retention: timedelta
    max_task_age: timedelta
    max_queue_age: timedelta
    requests_per_minute: int = 1000  # to Modellix; of other vendors their files say it
    immediate: bool = False  # poll from the vendor's acceptance on, not from the model's typical minimum
    leads: bool = True  # an invocation may stay as the leader
    long_poll: bool = True
    archives_at_once: int = 2  # invocations that copy results
    origin: str | None = None  # of links to archived results; None: results are not archived

    def task_age_at(self, vendor: Vendor) -> timedelta:
        """Tell how old a task of this vendor's gets."""
        return task_age(vendor, self.max_task_age)

    def requests_to(self, vendor: Vendor) -> int:
        """Tell how many requests a minute a vendor gets at most."""
        return self.requests_per_minute if vendor.name == FIRST_VENDOR else vendor.requests_per_minute


@dataclass(frozen=True)
class PollerPorts:
    """The ports of the poller."""

    tasks: TaskStore
    work: WorkIndex
    leadership: LeadershipStore
    admission: AdmissionStore
    budget: Budget
    vendors: Mapping[str, TaskApi]
    webhook_urls: WebhookUrls | None
    callbacks: CallbackSender
    callers: CallerDirectory
    clock: Clock
    reporter: Reporter
    archiver: Archiver | None = None
    long_poll_support: LongPollSupport = field(default_factory=LongPollSupport)


@dataclass
class Standing:
    """Where an invocation stands among the pollers, and what it knows of the others."""

    # Poll times up to then were served by others; those after it are this invocation's.
    polled_until: datetime
    # An end that came before was found by others, so that one which is found now came later.
    looked_until: datetime
    leads: bool = False  # whether this invocation is the leader
    view: LeadershipView = field(default_factory=LeadershipView)  # as it was last read

    @classmethod
    def at(cls, started: datetime) -> Self:
        """Stand as one that knows of no other does: what came due since the last tick may be unserved."""
        return cls(polled_until=started - TICK, looked_until=started - TICK)


class Work(Protocol):
    """A kind of work.

    Its entries are known by the ids of their tasks; what else it keeps of them is its own.
    """

    eager: bool  # whether a step that has finished may let another one start at once

    async def find(self) -> None:
        """Look for what there is to do. Raises StoreUnavailableError."""

    def takes(self, task: Task) -> bool:
        """Whether a task in this state is this kind's."""

    def keep(self, task: Task) -> bool:
        """Look after a task from what was just read or stored; True where its next step follows at once."""

    def drop(self, task_id: str) -> None:
        """Look after a task no longer."""

    def knows(self, task_id: str) -> bool:
        """Whether the task is looked after."""

    def next_at(self) -> datetime | None:
        """Tell when the next step may start, pauses included; None where nothing is left to do."""

    async def admit(self, due_by: datetime) -> Iterable[str]:
        """Name the steps due by then that may start now, most urgent first; take their slots and requests."""

    async def step(self, task_id: str) -> Task | None:
        """Take a task one step further and give it as it is then; None where there is nothing to hand on.

        Raises StaleTaskError, StoreUnavailableError.
        """

    def postpone(self, task_id: str, pause: timedelta) -> None:
        """Try a step that has failed again after a pause."""
