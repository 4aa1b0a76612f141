"""Tasks whose results are copied by another function before their callbacks go out."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from taskhook.core.errors import StaleTaskError
from taskhook.core.record import State
from taskhook.core.task import Task
from taskhook.poller.endings import Endings
from taskhook.poller.work import TICK, PollerPorts, Rules

START_AGAIN = timedelta(seconds=5)  # where an invocation could not be started
# By then an invocation that was started has claimed its task, or is done with it, also after a cold start.
BEGUN = timedelta(seconds=15)
LOOK_GAP = timedelta(seconds=1)  # between looks at one that copies, while others wait for its slot
STEPS = 32  # under way


@dataclass(slots=True)
class _Entry:
    due: datetime
    until: datetime  # when it waits for its copies no longer
    claimed_until: datetime | None
    sent_at: datetime | None = None  # when an invocation was started that copies its results
    not_before: datetime | None = None
    looked_at: datetime | None = None

    def copies(self, now: datetime) -> bool:
        """Whether an invocation copies its results, as far as is known."""
        return self.sent_at is not None or (self.claimed_until is not None and now < self.claimed_until)

    def waits(self, now: datetime) -> bool:
        """Whether an invocation is still to be started."""
        return not self.copies(now) and now < self.until


class Archiving:
    """The kind of work of a task that waits for its copies; of each only times are kept.

    So many invocations as the deployment allows copy at once: the account's others are for submits and ticks.
    A task that waits for a slot is not read meanwhile.
    """

    eager = False

    def __init__(self, *, rules: Rules, ports: PollerPorts, endings: Endings, started: datetime) -> None:
        self._at_once = rules.archives_at_once
        self._ports = ports
        self._clock = ports.clock
        self._endings = endings
        self._started = started
        self._entries: dict[str, _Entry] = {}
        self._steps = 0

    async def find(self) -> None:
        """Find nothing: these tasks stand in `watch`, where they are read."""

    def takes(self, task: Task) -> bool:
        """Whether it waits for its copies."""
        return task.state is State.ARCHIVING

    def keep(self, task: Task) -> bool:
        """Look after a task; at once where it has just begun to wait."""
        entry, now = self._entries.get(task.task_id), self._clock.now()
        until = self._started if self._is_over(task) else task.archive_by
        due = min(until, task.claimed_until or self._started)
        if entry is None:
            just_now = task.archiving_since is not None and task.archiving_since >= self._started
            at_once = just_now and not task.claimed(now) and self._free_slots(now) > 0
            self._entries[task.task_id] = _Entry(due, until, task.claimed_until)
            return at_once
        entry.claimed_until, entry.until = task.claimed_until, until
        entry.due = max(due, entry.not_before or due)
        return False

    def drop(self, task_id: str) -> None:
        """Look after a task no longer."""
        self._entries.pop(task_id, None)

    def knows(self, task_id: str) -> bool:
        """Whether the task is looked after."""
        return task_id in self._entries

    def postpone(self, task_id: str, pause: timedelta) -> None:
        """Try a step that has failed again after a pause."""
        if (entry := self._entries.get(task_id)) is not None:
            entry.due = entry.not_before = self._clock.now() + pause

    def next_at(self) -> datetime | None:
        """Tell when the next task is looked at; one that waits for a slot is not, before its time is up."""
        now = self._clock.now()
        is_full = self._free_slots(now) <= 0
        times = (
            entry.until if is_full and entry.waits(now) else entry.due for entry in self._entries.values()
        )
        return min(times, default=None)

    async def admit(self, due_by: datetime) -> Iterable[str]:
        """Start what is due and has a slot.

        Where no slot is left, those that copy are looked at too, for some of them may be done.
        """
        now = self._clock.now()
        slots, saturated = self._free_slots(now), False
        admitted: list[str] = []
        for task_id, entry in self._entries.items():
            if entry.due > due_by or len(admitted) >= STEPS - self._steps:
                continue
            if entry.waits(now):
                if slots <= 0:
                    saturated = True
                    continue
                slots -= 1
            admitted.append(task_id)
        if saturated:
            for entry in self._entries.values():
                if entry.copies(now):
                    last = entry.looked_at or entry.sent_at
                    entry.due = min(entry.due, now if last is None else last + LOOK_GAP)
        return admitted

    def _free_slots(self, now: datetime) -> int:
        """Tell how many more invocations may copy."""
        return self._at_once - sum(entry.copies(now) for entry in self._entries.values())

    async def step(self, task_id: str) -> Task | None:
        """End a task whose results are archived or that can wait no longer; else have them copied."""
        self._steps += 1
        try:
            return await self._advance(task_id, self._entries[task_id])
        finally:
            self._steps -= 1

    async def _advance(self, task_id: str, entry: _Entry) -> Task:
        task, now = await self._ports.tasks.get(task_id), self._clock.now()
        if task is None:
            raise StaleTaskError(None)
        if task.state is not State.ARCHIVING:
            return task
        if self._is_over(task):
            return await self._endings.archived(task)
        entry.looked_at, entry.claimed_until = now, task.claimed_until
        if task.claimed(now) or self._ports.archiver is None:
            entry.sent_at = None
        elif entry.sent_at is None or now >= entry.sent_at + BEGUN:
            entry.sent_at = entry.not_before = None
            if self._free_slots(now) > 0:
                entry.sent_at = entry.looked_at = now  # it counts while it is asked for
                if not await self._ports.archiver.start(task_id):
                    entry.sent_at = None
                entry.not_before = min(now + (TICK if entry.sent_at else START_AGAIN), task.archive_by)
        return task

    def _is_over(self, task: Task) -> bool:
        """Whether a task waits for its copies no longer, or archiving was switched off meanwhile."""
        return task.copied or self._ports.archiver is None or self._clock.now() >= task.archive_by
