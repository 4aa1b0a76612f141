"""Callbacks that are due: each gets a slot in its turn, and one attempt."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from itertools import islice

from taskhook.core.errors import StaleTaskError
from taskhook.core.ports import SLOTS, Row
from taskhook.core.record import CallbackState, RetryKey
from taskhook.core.task import Task
from taskhook.delivery.attempt import DeliveryPorts, attempt, claim_covers_attempt
from taskhook.delivery.hosts import Candidate, Hosts, Order
from taskhook.poller.endings import Endings
from taskhook.poller.work import INDEX_LAG, SCAN, PollerPorts, Rules

AHEAD = 2 * SCAN  # rows that are due by then are kept in memory
MOST_PLANNED = 5000  # of them
DEFERRED_AT_ONCE = 16
SWEEP_GAP = timedelta(seconds=5)  # between two looks for rows that there was no room for


class Delivery:
    """The kind of work of an ended task.

    What cannot be attempted soon stays in the index, unwritten and not in memory.
    """

    eager = True

    def __init__(
        self,
        *,
        rules: Rules,
        ports: PollerPorts,
        hosts: Hosts,
        endings: Endings,
        steps: Counter[str],
        horizon: Callable[[], datetime],
        closed: Callable[[], bool],
        is_running: Callable[[str], bool],
        wrote_unanswered: Callable[[Task], bool],
    ) -> None:
        self._ports = ports
        self._clock = ports.clock
        self._hosts = hosts
        self._endings = endings
        self._steps = steps
        self._horizon = horizon
        self._closed = closed
        self._is_running = is_running
        self._wrote_unanswered = wrote_unanswered
        self._delivery_ports = DeliveryPorts(
            tasks=ports.tasks,
            callbacks=ports.callbacks,
            callers=ports.callers,
            hosts=hosts,
            clock=ports.clock,
            reporter=ports.reporter,
            retention=rules.retention,
        )
        # Claimed with their ends, by this invocation: their attempts follow at once.
        self._claimed: dict[str, Task] = {}
        self._slots: dict[str, Candidate] = {}  # of steps that were admitted
        self._failed: dict[str, Candidate] = {}  # of steps that have just broken off
        # Tasks that no attempt can be made for soon, and that do not stand in `retry`.
        self._misplaced: dict[str, None] = {}
        self._deferring: set[str] = set()
        self._later: list[tuple[datetime, str, Candidate]] = []  # a heap
        self._planned: dict[str, datetime] = {}  # what stands in it, by task
        # Tasks read for an attempt; the index may still show their old rows.
        self._read_at: dict[str, datetime] = {}
        self._looked_until: datetime | None = None
        self._next_row_at: datetime | None = None  # of the first row that was too early to keep
        self._left_out = False  # rows were seen that there was no room for
        self._sweep_at = self._clock.now()
        self._offered = 0

    # --- finding ----------------------------------------------------------------------------------

    async def find(self) -> None:
        """Read all callbacks that are due the first time, and again for what was left out; else new ones."""
        now = self._clock.now()
        self._read_at = {task_id: at for task_id, at in self._read_at.items() if now < at + INDEX_LAG}
        sweep = self._looked_until is None or self._sweep_is_due(now)
        since = None if sweep or self._looked_until is None else self._looked_until - INDEX_LAG
        if sweep:
            self._left_out, self._offered = False, 0
        self._next_row_at = None
        cursor = None
        while True:
            rows, cursor = await self._ports.work.retries(since, self._horizon(), cursor=cursor)
            if not all(self._take(row, now) for row in rows) or cursor is None:
                break
        if sweep:
            self._sweep_at = now + SWEEP_GAP
        self._looked_until = now

    def _sweep_is_due(self, now: datetime) -> bool:
        drained = self._offered > 0 and self._hosts.waiting() < SLOTS
        return self._left_out and (drained or now >= self._sweep_at)

    def _take(self, row: Row, now: datetime) -> bool:
        """Keep what a row says; False where it and all that follow are too early."""
        key = RetryKey.read(row.at)
        if key.due > now + AHEAD or (key.due > now and len(self._later) >= MOST_PLANNED):
            self._next_row_at = key.due
            return False
        read_at = self._read_at.get(row.task_id)
        if (
            (read_at is None or key.due > read_at)
            and not self._is_running(row.task_id)
            and not self.knows(row.task_id)
        ):
            self._plan(Candidate(row.task_id, key.caller, key.host, Order(key.round)), key.due, now)
        return True

    def _plan(self, candidate: Candidate, due: datetime, now: datetime) -> bool:
        """Let a callback wait for a slot, or first until it is due; False where there is no room for it."""
        if due > now:
            self._planned[candidate.task_id] = due
            heapq.heappush(self._later, (due, candidate.task_id, candidate))
        elif self._hosts.offer(candidate):
            self._offered += 1
        else:
            self._left_out = True
            return False
        return True

    # --- keeping ----------------------------------------------------------------------------------

    def takes(self, task: Task) -> bool:
        """Whether it has ended and its callback waits."""
        return task.state.final and task.callback is CallbackState.WAITING

    def keep(self, task: Task) -> bool:
        """Look after a callback; True where its first attempt was claimed with the end, and follows."""
        now, task_id = self._clock.now(), task.task_id
        if task_id in self._endings.reserved:
            self._endings.reserved.remove(task_id)
            self._slots[task_id], self._claimed[task_id] = _candidate(task), task
            return True
        due = task.next_attempt_at or now
        if self._is_anothers(task):  # so what is read now is soon old
            due = min(task.claimed_until or now, now + SCAN)
        if due < self._horizon() and self._planned.get(task_id) != due:
            there_is_room = self._plan(_candidate(task), due, now)
            if not there_is_room and task.next_attempt_at is None:
                self._misplaced[task_id] = None
        return False

    def drop(self, task_id: str) -> None:
        """Look after a callback no longer."""
        self._hosts.withdraw(task_id)
        self._planned.pop(task_id, None)
        self._misplaced.pop(task_id, None)
        self._endings.ran_until.pop(task_id, None)

    def knows(self, task_id: str) -> bool:
        """Whether the callback is looked after."""
        return task_id in self._hosts or task_id in self._planned or task_id in self._misplaced

    def postpone(self, task_id: str, pause: timedelta) -> None:
        """Try an attempt that has failed for a reason of our own again after a pause."""
        candidate = self._failed.pop(task_id, None)
        if candidate is not None:
            self._plan(candidate, self._clock.now() + pause, self._clock.now())

    # --- when -------------------------------------------------------------------------------------

    def next_at(self) -> datetime | None:
        """Tell when the next attempt may start."""
        now = self._clock.now()
        times = [self._later[0][0]] if self._later else []
        times += [now] if self._hosts.waiting() or self._misplaced else []
        times += [self._next_row_at] if self._next_row_at is not None else []
        return min(times, default=None)

    async def admit(self, due_by: datetime) -> Iterable[str]:
        """Give slots to those that are due, in turn, as long as there are any."""
        now = self._clock.now()
        while self._later and self._later[0][0] <= min(now, due_by):
            due, _, candidate = heapq.heappop(self._later)
            if self._planned.get(candidate.task_id) == due:
                del self._planned[candidate.task_id]
                self._plan(candidate, now, now)
        started = []
        while (chosen := self._hosts.next()) is not None:
            if self._is_running(chosen.task_id):  # the step that ends it, as it turns out: that goes first
                self._hosts.leave(chosen.caller, chosen.host)
                self._plan(chosen, now + SCAN, now)
                continue
            self._slots[chosen.task_id] = chosen
            started.append(chosen.task_id)
        self._left_out = bool(self._hosts.dropped()) or self._left_out
        for task_id in list(islice(self._misplaced, max(DEFERRED_AT_ONCE - len(self._deferring), 0))):
            del self._misplaced[task_id]
            self._deferring.add(task_id)
            started.append(task_id)
        return started

    # --- one step ---------------------------------------------------------------------------------

    async def step(self, task_id: str) -> Task | None:
        """Make one attempt in the slot that was given, or leave a callback to the schedule of attempts."""
        if task_id in self._deferring:
            return await self._defer(task_id)
        candidate = self._slots.pop(task_id)
        try:
            return await self._attempt(task_id)
        except StaleTaskError:
            raise
        except Exception:
            self._failed[task_id] = candidate
            raise
        finally:
            self._hosts.leave(candidate.caller, candidate.host)

    async def _attempt(self, task_id: str) -> Task | None:
        mine = self._claimed.pop(task_id, None)
        task = mine or await self._ports.tasks.get(task_id)
        now = self._read_at[task_id] = self._clock.now()
        if task is None or not self.takes(task):
            return task
        if mine is None and (self._is_anothers(task) or (task.next_attempt_at or now) > now):
            return task
        if self._closed() and not (mine is not None and claim_covers_attempt(mine, now)):
            return task
        self._steps["delivered"] += 1
        return await attempt(task, self._delivery_ports, ran_until=self._endings.ran_until.get(task_id))

    def _is_anothers(self, task: Task) -> bool:
        """Whether another invocation is at it."""
        return task.claimed(self._clock.now()) and not self._wrote_unanswered(task)

    async def _defer(self, task_id: str) -> Task | None:
        """Move a first delivery whose process died out of `watch`, which is read whole by each leader."""
        try:
            task, now = await self._ports.tasks.get(task_id), self._clock.now()
            if task is None or not self.takes(task) or task.next_attempt_at is not None or task.claimed(now):
                return task
            return await self._ports.tasks.swap(task, task.deferred(now))
        finally:
            self._deferring.discard(task_id)


def _candidate(task: Task) -> Candidate:
    return Candidate(task.task_id, task.caller, task.host, Order(task.round))
