"""What a store of tasks must do: versions and rows, and no more (`tests/integration/test_reference.py`).

It knows no table, no nonce and no index: a task has a number of writes, and what is found where follows from
what was written last. A lagging answer may show any row that was true within the lag.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from taskhook.core.record import CallbackState, State, milliseconds
from taskhook.core.task import Task

FINAL = {State.SUCCESS, State.FAILED}

type Place = tuple[str, str, str]  # partition, sort key, task


@dataclass
class Reference:
    """The tasks as they are, and what has been true of them before."""

    now: Callable[[], float] = lambda: 0.0
    tasks: dict[str, Task] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)  # by task; the version that stands
    requests: dict[str, str | None] = field(default_factory=dict)
    reserved: dict[str, tuple[str, bool, float]] = field(default_factory=dict)
    places: dict[Place, tuple[float, float | None]] = field(default_factory=dict)  # since when, until when

    def add(self, task: Task) -> int | None:
        """Store a new task, as version 0; None where there is one of that id."""
        if task.task_id in self.tasks:
            return None
        self.requests[task.task_id] = task.request
        return self._store(task, 0)

    def swap(self, task_id: str, version: int, new: Task) -> int | None:
        """Store the next version of a task; None where another one stands."""
        if self.writes.get(task_id) != version:
            return None
        return self._store(new, version + 1)

    def _store(self, task: Task, version: int) -> int:
        before = {
            place for place, (_, until) in self.places.items() if place[2] == task.task_id and until is None
        }
        self.tasks[task.task_id], self.writes[task.task_id] = task, version
        after = {place for place in [place_of(task)] if place is not None}
        for place in before - after:
            self.places[place] = self.places[place][0], self.now()
        for place in after - before:
            self.places[place] = self.now(), None
        return version

    def forget(self, task_id: str) -> None:
        """Take back what was added last: its write was never made."""
        del self.tasks[task_id], self.writes[task_id], self.requests[task_id]
        self.places = {place: when for place, when in self.places.items() if place[2] != task_id}

    def reserve(self, request: str, task_id: str, *, repeat: bool, now: float, until: float) -> str:
        """Give the id of a request: the reserved one to repeats, and to a first that was overtaken."""
        held, overtaken, end = self.reserved.get(request, (task_id, repeat, now - 1))
        if end <= now or (not repeat and not overtaken):
            held, overtaken = task_id, repeat
        self.reserved[request] = held, overtaken and repeat, until
        return held

    def rows(self, partition: str, *, since: str = "0", before: str = "~") -> list[tuple[str, str]]:
        """List a partition's sort keys and tasks in order."""
        return sorted(
            (at, task_id)
            for (part, at, task_id), (_, until) in self.places.items()
            if part == partition and until is None and since <= at < before
        )

    def may_show(self, partition: str, rows: Iterable[tuple[str, str]], lag: float) -> list[tuple[str, str]]:
        """List the rows that no answer may hold: those that were not true within the lag."""
        return [
            (at, task_id)
            for at, task_id in rows
            if (seen := self.places.get((partition, at, task_id))) is None
            or (seen[1] is not None and seen[1] < self.now() - lag)
        ]

    def must_show(self, partition: str, rows: Iterable[tuple[str, str]], lag: float) -> list[tuple[str, str]]:
        """List the rows that an answer must hold and does not: those that have been true for the lag."""
        shown = set(rows)
        return [
            (at, task_id)
            for (part, at, task_id), (since, until) in self.places.items()
            if part == partition and until is None and since < self.now() - lag and (at, task_id) not in shown
        ]

    def heads(self, partition: str) -> list[str]:
        """List each caller's oldest task of a queue, by caller."""
        first: dict[str, str] = {}
        for at, task_id in self.rows(partition):
            first.setdefault(at.partition("#")[0], task_id)
        return [first[caller] for caller in sorted(first)]

    def history(self, caller: str, limit: int) -> list[str]:
        """List a caller's newest tasks."""
        mine = [task for task in self.tasks.values() if task.caller == caller]
        mine.sort(key=lambda task: (milliseconds(task.accepted_at), task.task_id), reverse=True)
        return [task.task_id for task in mine[:limit]]


def place_of(task: Task) -> Place | None:
    """Tell where a task is found; None where there is nothing left to do about it."""
    of_vendor = "" if task.vendor == "modellix" else f"#{task.vendor}"
    at = f"{milliseconds(task.accepted_at):013d}_{task.task_id}"
    if task.state is State.QUEUED:
        return f"queue{of_vendor}", f"{task.caller}#{at}", task.task_id
    if task.state not in FINAL:
        return f"watch{of_vendor}", at, task.task_id
    if task.callback is not CallbackState.WAITING:
        return None
    if task.next_attempt_at is None:
        return f"watch{of_vendor}", at, task.task_id
    due = f"{milliseconds(task.next_attempt_at):013d}_{task.task_id}"
    number = 3 if task.asked_again else 2 if task.attempts else 1
    host = (task.callback_url or "").split("/")[2]
    return "retry", f"{due}#{task.caller}#{host}#{number}", task.task_id
