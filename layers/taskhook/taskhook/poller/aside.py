"""Watched tasks that are not kept whole.

Of each when its next poll is due, its id, and when it was accepted.
"""

import contextlib
import heapq
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta

from taskhook.core.errors import StoreUnavailableError
from taskhook.core.ports import Clock, TaskStore
from taskhook.core.task import Task
from taskhook.poller.work import INDEX_LAG

READ_AT_ONCE = 100  # of which only their rows are known: one request to the table

type Place = tuple[float, str, float]


class SetAside:
    """Times are Unix seconds.

    A task stands in one of two places: it waits until its poll is due, or it is overdue. `track` hands a task
    that was read to the kind of work that takes it.
    """

    def __init__(
        self,
        tasks: TaskStore,
        clock: Clock,
        *,
        track: Callable[[Task], None],
        known: Callable[[str], bool],
    ) -> None:
        self._tasks = tasks
        self._clock = clock
        self._track = track
        self._known = known
        self._later: dict[str, Place] = {}
        self._by_due: list[Place] = []  # a heap over it; what has left it stays until it is due
        self._overdue: dict[str, Place] = {}
        self._unread: list[str] = []  # of which only their rows are known; some may have been dropped since

    def __contains__(self, task_id: str) -> bool:
        """Whether the task is set aside."""
        return task_id in self._later or task_id in self._overdue

    def __len__(self) -> int:
        """Count the tasks."""
        return len(self._later) + len(self._overdue)

    def add(self, task_id: str, *, due: float, accepted: float) -> None:
        """Remember a task until its poll is due."""
        self._later[task_id] = place = due, task_id, accepted
        heapq.heappush(self._by_due, place)

    def drop(self, task_id: str) -> None:
        """Forget a task."""
        self._later.pop(task_id, None)
        self._overdue.pop(task_id, None)

    def clear(self) -> None:
        """Forget all of them."""
        for kept in (self._later, self._by_due, self._overdue, self._unread):
            kept.clear()

    def wake(self, now: float) -> None:
        """Let those that are due by now be overdue."""
        while self._by_due and self._by_due[0][0] <= now:
            place = heapq.heappop(self._by_due)
            if self._later.get(place[1]) is place:
                self._overdue[place[1]] = self._later.pop(place[1])

    def bring_forward(self, task_id: str, due: float) -> None:
        """Let a task be overdue since an earlier time, where it is set aside."""
        place = self._later.pop(task_id, None) or self._overdue.get(task_id)
        if place is not None:
            self._overdue[task_id] = min(due, place[0]), task_id, place[2]

    def overdue_count(self) -> int:
        """Count what is due."""
        return len(self._overdue)

    def overdue(self) -> Iterable[Place]:
        """Give what is due."""
        return self._overdue.values()

    def next_at(self) -> float | None:
        """Tell when the next one is due that is not overdue yet, at the earliest."""
        return self._by_due[0][0] if self._by_due else None

    # --- reading ----------------------------------------------------------------------------------

    async def load(self, task_ids: Iterable[str]) -> None:
        """Read tasks that are overdue, and look after them."""
        unread = {task_id: self._overdue.pop(task_id)[2] for task_id in task_ids}
        with contextlib.suppress(StoreUnavailableError):
            for task in await self._tasks.read_many(list(unread)):
                unread.pop(task.task_id, None)
                self._track(task)
        self.look_later(unread, INDEX_LAG)

    def look_later(self, unread: Mapping[str, float], pause: timedelta) -> None:
        """Read tasks that were not to be had, by when they were accepted, after a pause."""
        for task_id, at in unread.items():
            if not self._known(task_id):
                self.add(task_id, due=(self._clock.now() + pause).timestamp(), accepted=at)

    def only_row_read(self, task_id: str) -> None:
        """Note that of a task only its row was read."""
        self._unread.append(task_id)

    def has_unread(self) -> bool:
        """Whether there may be tasks of which only their rows were read."""
        return bool(self._unread)

    async def read_unread(self, *, waits: Callable[[Task], bool]) -> None:
        """Read some of those tasks, and look after them; the others `waits` says can wait for their turn.

        Each is read once: where that fails it has its turn, and the next leader reads it.
        """
        with contextlib.suppress(StoreUnavailableError):
            for task in await self._tasks.read_many(self._drawn()):
                if task.task_id in self and not waits(task):
                    self._track(task)

    def _drawn(self) -> list[str]:
        """Draw READ_AT_ONCE of them, so that not all leaders begin with the same ones."""
        drawn: list[str] = []
        while self._unread and len(drawn) < READ_AT_ONCE:
            number = random.randrange(len(self._unread))
            self._unread[number], self._unread[-1] = self._unread[-1], self._unread[number]
            task_id = self._unread.pop()
            if task_id in self:
                drawn.append(task_id)
        return drawn
