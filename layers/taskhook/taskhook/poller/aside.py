"""Watched tasks that are not kept whole.

Of each its id, when its next poll is due, and when it was accepted.
"""

import heapq
from collections.abc import Iterable


class SetAside:
    """Times are Unix seconds.

    A task stands in one of two places: it waits until its poll is due, or it is overdue.
    """

    def __init__(self) -> None:
        self._later: dict[str, tuple[float, float]] = {}  # when due, and accepted
        self._by_due: list[tuple[float, str]] = []  # a heap over it; what has left it stays until it is due
        self._overdue: dict[str, tuple[float, float]] = {}

    def __contains__(self, task_id: str) -> bool:
        """Whether the task is set aside."""
        return task_id in self._later or task_id in self._overdue

    def __len__(self) -> int:
        """Count the tasks."""
        return len(self._later) + len(self._overdue)

    def add(self, task_id: str, *, due: float, accepted: float) -> None:
        """Remember a task until its poll is due."""
        self._later[task_id] = due, accepted
        heapq.heappush(self._by_due, (due, task_id))

    def drop(self, task_id: str) -> None:
        """Forget a task."""
        self._later.pop(task_id, None)
        self._overdue.pop(task_id, None)

    def wake(self, now: float) -> None:
        """Let those that are due by now be overdue."""
        while self._by_due and self._by_due[0][0] <= now:
            due, task_id = heapq.heappop(self._by_due)
            if task_id in self._later and self._later[task_id][0] == due:
                self._overdue[task_id] = self._later.pop(task_id)

    def bring_forward(self, task_id: str, due: float) -> None:
        """Let a task be overdue since an earlier time, where it is set aside."""
        place = self._later.pop(task_id, None) or self._overdue.get(task_id)
        if place is not None:
            self._overdue[task_id] = min(due, place[0]), place[1]

    def overdue_count(self) -> int:
        """Count what is due."""
        return len(self._overdue)

    def overdue(self) -> list[tuple[str, float, float]]:
        """List what is due: id, since when, and when accepted."""
        return [(task_id, due, accepted) for task_id, (due, accepted) in self._overdue.items()]

    def take(self, task_ids: Iterable[str]) -> dict[str, float]:
        """Forget overdue tasks; give when each was accepted."""
        return {task_id: self._overdue.pop(task_id)[1] for task_id in task_ids if task_id in self._overdue}

    def next_at(self) -> float | None:
        """Tell when the next one is due that is not overdue yet, at the earliest."""
        return self._by_due[0][0] if self._by_due else None
