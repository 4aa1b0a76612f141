"""Tasks whose results are copied by another function before their callbacks go out."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from taskhook.core.errors import StaleTaskError
from taskhook.core.record import State
from taskhook.core.task import Task
from taskhook.poller.endings import Endings
from taskhook.poller.work import TICK, PollerPorts

ARCHIVES_AT_ONCE = 25  # invocations that copy; the account's others are for submits
ARCHIVE_LOOK = timedelta(
    seconds=5
)  # by then an invocation that was started has claimed its task, or is done with it
STEPS = 32  # under way


@dataclass(slots=True)
class _Entry:
    due: datetime
    claimed_until: datetime | None
    sent_at: datetime | None = None  # when an invocation was started that copies its results
    not_before: datetime | None = None


class Archiving:
    """The kind of work of a task that waits for its copies; of each only times are kept."""

    eager = False

    def __init__(self, *, ports: PollerPorts, endings: Endings, started: datetime) -> None:
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
        entry = self._entries.get(task.task_id)
        due = (
            self._started
            if self._is_over(task)
            else min(task.archive_by, task.claimed_until or self._started)
        )
        if entry is None:
            self._entries[task.task_id] = _Entry(due, task.claimed_until)
            return (
                task.archiving_since is not None
                and task.archiving_since >= self._started
                and not task.claimed(self._clock.now())
            )
        entry.claimed_until = task.claimed_until
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
        """Tell when the next task is looked at."""
        return min((entry.due for entry in self._entries.values()), default=None)

    async def admit(self, due_by: datetime) -> Iterable[str]:
        """Start what is due."""
        due = [task_id for task_id, entry in self._entries.items() if entry.due <= due_by]
        return due[: max(STEPS - self._steps, 0)]

    async def step(self, task_id: str) -> Task | None:
        """End a task whose results are archived, or can wait no longer.

        Else have them copied where no invocation does.
        """
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
        entry.sent_at, entry.claimed_until = None, task.claimed_until
        if self._ports.archiver is not None and not task.claimed(now):
            if self._may_start(now):
                entry.sent_at = now  # it counts while it is asked for
                if not await self._ports.archiver.start(task_id):
                    entry.sent_at = None
            entry.not_before = min(now + (TICK if entry.sent_at else ARCHIVE_LOOK), task.archive_by)
        return task

    def _is_over(self, task: Task) -> bool:
        """Whether a task waits for its copies no longer.

        Nor does it where archiving was switched off meanwhile.
        """
        return task.copied or self._ports.archiver is None or self._clock.now() >= task.archive_by

    def _may_start(self, now: datetime) -> bool:
        """Whether one more invocation may copy.

        Where not, those that do are looked at again, for some are done.
        """
        copying = [
            entry
            for entry in self._entries.values()
            if entry.sent_at or (entry.claimed_until and now < entry.claimed_until)
        ]
        if len(copying) < ARCHIVES_AT_ONCE:
            return True
        for entry in copying:
            entry.due = min(entry.due, max(now, (entry.sent_at or now) + ARCHIVE_LOOK))
        return False
