"""Tasks at the vendor: asked about when it is time, ended when the vendor says so, or never does."""

import contextlib
import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from taskhook.core import rate_limit, schedule
from taskhook.core.errors import StaleTaskError, StoreUnavailableError
from taskhook.core.ports import PollKind, PollOutcome, Row
from taskhook.core.task import (
    EXPIRY_GRACE,
    LOST_AGE,
    LOST_CONFIRMATION,
    UNKNOWN_TIME,
    ErrorCode,
    State,
    Submission,
    Task,
)
from taskhook.poller.endings import Endings
from taskhook.poller.long_poll import HELD_SIGN, NOT_HELD_FOR
from taskhook.poller.pacing import KNOWN, Pacing, urgency
from taskhook.poller.work import INDEX_LAG, SCAN, Rules, World

LOADED = 2000  # tasks kept in memory; of those beyond, an id and two times
TABLE_STEPS = 32  # steps under way that only the table answers
WIDE_SCAN = timedelta(seconds=10)  # between looks from further back
CLOCK_SKEW = timedelta(minutes=5)
MOST_LEFT = 2000  # unserved poll times that a leader hands over

_OURS = {State.SUBMITTING, State.WATCHED, State.UNKNOWN}


@dataclass(slots=True)
class _Entry:
    """A task in memory; `due` is when its next step is."""

    task: Task
    due: datetime
    not_before: datetime | None = None  # of its next step, whatever else is said
    unserved: datetime | None = None  # a poll time that the predecessor left
    webhook: bool = False  # a vendor webhook has brought it here
    known_outcome: PollOutcome | None = None  # what the vendor said when that was checked
    polling: bool = False  # a poll is about to start or under way
    hold: bool = False  # which the vendor is asked to hold
    refusals: int = 0  # of held polls
    plain_until: datetime | None = None  # its polls are not held before
    plain_next: bool = False  # nor is the next one
    answered: bool = True  # the vendor answered its last poll
    asked: bool = False  # by this invocation
    ran_until: datetime | None = (
        None  # when the vendor's task is last known to have run; what follows may be lateness
    )


class Watch:
    """The kind of work of a task from its submit to its end. Whatever their number, only LOADED tasks are kept whole."""

    eager = False

    def __init__(
        self,
        *,
        rules: Rules,
        world: World,
        pacing: Pacing,
        endings: Endings,
        is_running: Callable[[str], bool],
        known: Callable[[str], bool],
        track: Callable[[Task], None],
        started: datetime,
    ) -> None:
        self._rules = rules
        self._world = world
        self._clock = world.clock
        self._pacing = pacing
        self._endings = endings
        self._is_running = is_running
        self._known = known
        self._track = track  # hands a task that was read to the kind that takes it
        self._started = (
            started  # of the invocation: what was due by then is served once by one that does not lead
        )
        self._entries: dict[str, _Entry] = {}
        self._later: dict[
            str, tuple[float, float]
        ] = {}  # not in memory: when due, and accepted, in Unix seconds
        self._overdue: dict[str, tuple[float, float]] = {}  # the same, of what is due
        self._by_due: list[tuple[float, str]] = []  # a heap over _later
        self._newest: datetime | None = None
        self._wide_scan_at = self._started
        self._table_steps = 0
        self._queue_seen_at = self._started - INDEX_LAG
        self._given: dict[str, datetime] = {}  # poll times that the predecessor left unserved
        self.asked = 0  # polls, and of them those that said nothing, with the last one's reason
        self.unanswered = 0
        self.complaint = ""
        self.deadline_used = 0.0  # by whichever polled task came nearest to its own

    # --- finding ---------------------------------------------------------------------------------------------------------

    def queue_seen(self) -> None:
        """Note that tasks are queued: what leaves the queue enters `watch` at its old place."""
        self._queue_seen_at = self._clock.now()

    def look_back(self) -> None:
        """Read from further back at the next look: none may follow."""
        self._wide_scan_at = self._clock.now()

    async def find(self) -> None:
        """Read all of `watch` the first time, then what came since.

        Now and then from further back, for submitters whose clock is behind; or from the beginning, where another
        invocation may have submitted a queued task.
        """
        now = self._clock.now()
        since = None if self._newest is None else self._newest - INDEX_LAG
        if since is None or now >= self._wide_scan_at:
            self._wide_scan_at = now + WIDE_SCAN
            queued_lately = now < self._queue_seen_at + INDEX_LAG + WIDE_SCAN
            since = None if since is None or queued_lately else since - CLOCK_SKEW
        newest, cursor = self._newest or self._started, None
        while True:
            rows, cursor = await self._world.work.watched(since, cursor=cursor)
            if rows:  # a submitter whose clock is ahead hides none that come after
                newest = max(newest, min(datetime.fromtimestamp(_accepted(rows[-1]), UTC), now))
            await self._take_rows([row for row in rows if not self._known(row.task_id)])
            if cursor is None:
                break
        self._newest = newest

    async def _take_rows(self, rows: list[Row]) -> None:
        """Read the tasks of new rows while there is room in memory; plan the rest by what their rows say."""
        room = max(LOADED - len(self._entries), 0)
        unread = {row.task_id: _accepted(row) for row in rows[:room]}
        for task in await self._world.tasks.read_many(list(unread)):
            unread.pop(task.task_id, None)
            self._track(task)
        self._look_later(unread, SCAN)
        for row in rows[room:]:
            accepted = _accepted(row)
            age = self._pacing.polled_until.timestamp() - accepted
            self._set_aside(
                row.task_id,
                accepted + schedule.next_poll(timedelta(seconds=age), first=timedelta(0)).total_seconds(),
                accepted,
            )

    def _set_aside(self, task_id: str, due: float, accepted: float) -> None:
        self._later[task_id] = due, accepted
        heapq.heappush(self._by_due, (due, task_id))

    def _wake_overdue(self, now: datetime) -> None:
        while self._by_due and self._by_due[0][0] <= now.timestamp():
            due, task_id = heapq.heappop(self._by_due)
            if task_id in self._later and self._later[task_id][0] == due:
                self._overdue[task_id] = self._later.pop(task_id)

    async def _load(self, task_ids: list[str]) -> None:
        """Read tasks that were set aside and are due."""
        accepted = {task_id: self._overdue.pop(task_id)[1] for task_id in task_ids}
        with contextlib.suppress(StoreUnavailableError):
            for task in await self._world.tasks.read_many(task_ids):
                accepted.pop(task.task_id, None)
                self._track(task)
        self._look_later(accepted, INDEX_LAG)

    def _look_later(self, accepted: Mapping[str, float], pause: timedelta) -> None:
        """Read tasks that were not to be had, by when they were accepted, after a pause."""
        for task_id, at in accepted.items():
            if not self._known(task_id):
                self._set_aside(task_id, (self._clock.now() + pause).timestamp(), at)

    # --- keeping ---------------------------------------------------------------------------------------------------------

    def takes(self, task: Task) -> bool:
        """Whether it is on its way to, or at, the vendor."""
        return task.state in _OURS

    def keep(self, task: Task) -> bool:
        """Look after a task from what was just read or stored."""
        entry, now = self._entries.get(task.task_id), self._clock.now()
        if entry is None:
            self.drop(task.task_id)
            entry = self._entries[task.task_id] = _Entry(
                task, self._due(task, after=self._pacing.polled_until)
            )
            left = self._given.pop(task.task_id, None)
            if left is not None and task.state is State.WATCHED:
                entry.unserved, entry.due = left, min(entry.due, left)
            return False
        entry.task = task
        again = self._due(task, after=now, entry=entry)
        entry.due = max(again, entry.not_before or again)
        if len(self._entries) > LOADED and entry.due > now + SCAN and not entry.webhook:
            del self._entries[task.task_id]
            self._set_aside(
                task.task_id, entry.due.timestamp(), (task.taken_at or task.accepted_at).timestamp()
            )
        return False

    def keep_ended(self, task: Task, outcome: PollOutcome | None) -> None:
        """Look after a task of which a vendor webhook has said that it has ended; `outcome` is what the vendor said, if known."""
        self._track(task)
        entry = self._entries.get(task.task_id)
        if entry is not None:
            entry.webhook, entry.known_outcome = True, outcome
            if task.state is State.WATCHED:
                entry.due = self._started

    def leave_to_leader(self) -> None:
        """Keep only what cannot wait for the leader's next scan: a task that is known to have ended."""
        for task_id in [
            task_id
            for task_id, entry in self._entries.items()
            if entry.task.state is State.WATCHED and not entry.webhook
        ]:
            del self._entries[task_id]

    def drop(self, task_id: str) -> None:
        """Look after a task no longer."""
        self._entries.pop(task_id, None)
        self._later.pop(task_id, None)
        self._overdue.pop(task_id, None)

    def knows(self, task_id: str) -> bool:
        """Whether the task is looked after."""
        return task_id in self._entries or task_id in self._later or task_id in self._overdue

    def postpone(self, task_id: str, pause: timedelta) -> None:
        """Try a step that has failed again after a pause."""
        if (entry := self._entries.get(task_id)) is not None:
            entry.not_before = self._clock.now() + pause
            entry.due = max(self._due(entry.task, after=self._clock.now(), entry=entry), entry.not_before)

    def running(self, *, besides: str = "") -> int:
        """Count the tasks that fill a slot at the vendor, as far as is known."""
        return len(self._entries) + len(self._later) + len(self._overdue) - (besides in self._entries)

    # --- when ------------------------------------------------------------------------------------------------------------

    def _due(self, task: Task, *, after: datetime, entry: _Entry | None = None) -> datetime:
        """Tell when a task's next step is due, from the task and what is known of it."""
        now = self._clock.now()
        if task.claimed(now):  # another invocation is at it, so what is read now is soon old
            return min(task.claimed_until or now, now + SCAN)
        match task.state:
            case State.SUBMITTING:
                return self._started
            case State.UNKNOWN:
                return (task.submitted_at or task.accepted_at) + UNKNOWN_TIME
            case _ if entry is None:
                return self._pacing.next_poll(task, after=after)
            case _ if entry.plain_next:
                return now  # its held poll was refused, and may have been the one that mattered
            case _:
                return self._pacing.next_poll(
                    task, after=after, answered=entry.answered, plain=self._is_plain(entry)
                )

    def _is_plain(self, entry: _Entry) -> bool:
        return entry.plain_next or (entry.plain_until is not None and self._clock.now() < entry.plain_until)

    def next_at(self) -> datetime | None:
        """Tell when the next step may start: when it is due, and the vendor may be asked if it must."""
        now = self._clock.now()
        free_at = self._pacing.paused_until(now)
        if free_at <= now:
            free_at = self._started  # for want of a request it is waited, not left to the next invocation
        times = [
            max(entry.due, free_at) if self._asks_vendor(entry) else entry.due
            for entry in self._entries.values()
        ]
        if self._overdue:
            times.append(free_at)
        if self._by_due:
            times.append(max(datetime.fromtimestamp(self._by_due[0][0], UTC), free_at))
        return min(times, default=None)

    def replan_all(self) -> None:
        """Plan all polls anew, from the first poll time that is not known to be served."""
        for entry in self._idle():
            if not entry.asked:
                due = self._pacing.next_poll(entry.task, after=self._pacing.polled_until)
                due = min(due, entry.unserved or due)
                entry.due = max(due, entry.not_before or due)

    def replan_pending(self) -> None:
        """Plan those polls anew that are not due yet, where it was learnt how else the ends of tasks are told, or are not."""
        now = self._clock.now()
        for entry in self._idle():
            if entry.due > now:
                due = self._pacing.next_poll(
                    entry.task, after=now, answered=entry.answered, plain=self._is_plain(entry)
                )
                entry.due = max(due, entry.not_before or now)

    def _idle(self) -> list[_Entry]:
        """List the tasks that wait for their next poll."""
        return [
            entry
            for task_id, entry in self._entries.items()
            if entry.task.state is State.WATCHED and not entry.webhook and not self._is_running(task_id)
        ]

    def all_answered(self) -> bool:
        """Whether no poll has been without an answer since."""
        return all(entry.answered for entry in self._entries.values())

    # --- hand-over -------------------------------------------------------------------------------------------------------

    def unserved(self) -> dict[str, datetime]:
        """List the poll times that are due and were not served, the most urgent ones."""
        now = self._clock.now()
        waiting = [
            (task_id, entry.due.timestamp(), (entry.task.taken_at or entry.task.accepted_at).timestamp())
            for task_id, entry in self._entries.items()
            if entry.task.state is State.WATCHED and entry.due <= now and not self._is_running(task_id)
        ]
        waiting += [(task_id, due, accepted) for task_id, (due, accepted) in self._overdue.items()]
        waiting = heapq.nsmallest(
            MOST_LEFT, waiting, key=lambda one: urgency(one[1], one[2], now.timestamp())
        )
        return {task_id: datetime.fromtimestamp(due, UTC) for task_id, due, _ in waiting}

    def inherit(self, left: Mapping[str, datetime]) -> None:
        """Take over the poll times that the predecessor has left unserved."""
        for task_id, due in left.items():
            entry = self._entries.get(task_id)
            if entry is not None:
                if not entry.asked and not self._is_running(task_id):
                    entry.unserved, entry.due = due, min(entry.due, due)
                continue
            self._given[task_id] = due  # for when it is read
            if (aside := self._later.pop(task_id, None) or self._overdue.get(task_id)) is not None:
                self._overdue[task_id] = min(due.timestamp(), aside[0]), aside[1]

    # --- starting --------------------------------------------------------------------------------------------------------

    async def admit(self, due_by: datetime) -> Iterable[str]:
        """Start what the table answers at once; of the polls, the most urgent ones for which there are requests."""
        now = self._clock.now()
        if self._pacing.believe_held_polls(now):
            self.replan_all()
        self._wake_overdue(min(now, due_by))
        started: list[str] = []
        polls: list[str] = []
        for task_id, entry in self._entries.items():
            if entry.due > due_by or self._is_running(task_id):
                continue
            if self._asks_vendor(entry):
                polls.append(task_id)
            elif self._table_steps + len(started) < TABLE_STEPS or entry.known_outcome is not None:
                started.append(task_id)
        if (polls or self._overdue) and self._pacing.paused_until(now) <= now:
            started += await self._admit_polls(polls, now, due_by)
        return started

    async def _admit_polls(self, polls: list[str], now: datetime, due_by: datetime) -> list[str]:
        slots = self._pacing.free_slots()
        room = await self._pacing.room(
            min(len(polls) + len(self._overdue), slots), expected=self._expected(now)
        )
        if room == 0:
            return []
        waiting = [
            (task_id, self._entries[task_id].due.timestamp(), _since(self._entries[task_id].task))
            for task_id in polls
        ]
        waiting += [(task_id, due, accepted) for task_id, (due, accepted) in self._overdue.items()]
        chosen = heapq.nsmallest(room, waiting, key=lambda one: urgency(one[1], one[2], now.timestamp()))
        await self._load([task_id for task_id, *_ in chosen if task_id in self._overdue])
        started = []
        for task_id, *_ in chosen:
            entry = self._entries.get(task_id)
            if (
                entry is None
                or self._is_running(task_id)
                or entry.due > max(due_by, now)
                or not self._asks_vendor(entry)
            ):
                continue  # read just now, and not due after all, or begun by another event meanwhile
            entry.hold = self._pacing.may_hold(entry.task, plain=self._is_plain(entry))
            if not entry.hold and not self._pacing.plain_is_free():
                continue
            self._pacing.begin(entry.task, hold=entry.hold)
            entry.polling = True
            started.append(task_id)
        return started

    def _expected(self, now: datetime) -> int:
        """Count the requests that are likely to be made by the end of the budget's window."""
        end = rate_limit.window_end(now)
        return sum(
            entry.due < end and not self._is_running(task_id) for task_id, entry in self._entries.items()
        )

    def _asks_vendor(self, entry: _Entry) -> bool:
        watched = entry.task.state is State.WATCHED and entry.known_outcome is None
        return watched and not self._past_hard_stop(entry.task) and not entry.task.claimed(self._clock.now())

    # --- one step --------------------------------------------------------------------------------------------------------

    async def step(self, task_id: str) -> Task | None:
        """Ask the vendor about a task, or end it; settle a submit whose process has died."""
        entry = self._entries[task_id]
        self._table_steps += not entry.polling
        try:
            return await self._advance(entry)
        finally:
            if entry.polling:
                self._pacing.end(entry.task, hold=entry.hold)
            else:
                self._table_steps -= 1
            entry.polling = entry.hold = False

    async def _advance(self, entry: _Entry) -> Task:
        task = entry.task
        match task.state:
            case _ if task.claimed(self._clock.now()):
                return await self._look_again(task)
            case State.SUBMITTING:
                return await self._mark_unknown(task)
            case State.UNKNOWN:
                return await self._endings.failed(
                    task, ErrorCode.SUBMISSION_UNKNOWN, "whether the vendor took the task was never learnt"
                )
            case _ if self._past_hard_stop(task):
                return await self._endings.failed(
                    task, ErrorCode.EXPIRED, "the task's deadline passed without an answer of the vendor"
                )
            case _:
                return await self._poll(entry)

    async def _poll(self, entry: _Entry) -> Task:
        task, asked_at, outcome = entry.task, self._clock.now(), entry.known_outcome
        entry.known_outcome = None
        webhook_is_due = (
            self._pacing.webhook_is_due(task, plain=self._is_plain(entry))
            and not entry.webhook
            and not entry.hold
            and outcome is None
        )
        if webhook_is_due:  # it may have brought a wake here, that has ended the task
            task = await self._unchanged(task)
        if outcome is None:
            outcome = await self._ask(entry)
        self._endings.steps["polled"] += 1
        entry.answered, entry.asked = outcome.kind in KNOWN, True
        self._measure(entry, outcome, asked_at)
        if webhook_is_due and outcome.kind in {PollKind.SUCCEEDED, PollKind.FAILED}:
            await self._pacing.doubt_webhooks()
            self.replan_pending()
        return await self._polled(entry, task, outcome, asked_at=asked_at)

    async def _ask(self, entry: _Entry) -> PollOutcome:
        """Ask the vendor; what a poll that it did not hold says is believed only of a task that has ended."""
        task, began = entry.task, self._clock.now()
        self.asked += 1
        entry.plain_next = False
        entry.not_before = began + schedule.MIN_GAP
        outcome = await self._world.vendor.poll(task.upstream_task_id or "", hold=entry.hold)
        if outcome.kind is PollKind.UNAVAILABLE:
            self.unanswered += 1
            self.complaint = outcome.message
        await self._pacing.obey(outcome)
        if not entry.hold:
            return outcome
        self._pacing.end(task, hold=True)
        now = self._clock.now()
        if not self._pacing.learn_hold(task, outcome, now - began):
            entry.refusals = 0
            if now - began >= HELD_SIGN:
                entry.ran_until = now  # the vendor held it for as long as the task ran
            return outcome
        entry.refusals += 1
        if entry.refusals > 1:
            entry.refusals, entry.plain_until = 0, now + NOT_HELD_FOR
        if outcome.kind is PollKind.PENDING:
            self.replan_pending()
            return outcome
        entry.plain_next, entry.not_before = True, None
        return PollOutcome(kind=PollKind.UNAVAILABLE, message="the poll was not held")

    def _measure(self, entry: _Entry, outcome: PollOutcome, asked_at: datetime) -> None:
        """Note how far the task is from its deadline, and until when it is known to have run at the vendor.

        Where this is the first look at a task that has ended, that was when another invocation looked, as far as is known.
        """
        taken_at = entry.task.taken_at or entry.task.accepted_at
        self.deadline_used = max(self.deadline_used, (asked_at - taken_at) / self._rules.max_task_age)
        if outcome.kind is PollKind.PENDING:
            entry.ran_until = max(asked_at, entry.ran_until or asked_at)
        elif entry.ran_until is None:
            entry.ran_until = self._started if entry.webhook else max(taken_at, self._pacing.looked_until)

    async def _polled(self, entry: _Entry, task: Task, outcome: PollOutcome, *, asked_at: datetime) -> Task:
        taken_at = task.taken_at or task.accepted_at
        match outcome.kind:
            case PollKind.SUCCEEDED:
                return await self._endings.succeeded(task, outcome, ran_until=entry.ran_until)
            case PollKind.FAILED:
                return await self._endings.failed(
                    task, ErrorCode.UPSTREAM_FAILED, outcome.message, ran_until=entry.ran_until
                )
            case PollKind.PENDING if asked_at >= taken_at + self._rules.max_task_age:
                return await self._endings.failed(
                    task, ErrorCode.EXPIRED, "the task was not done by its deadline"
                )
            case PollKind.PENDING if task.missing_since is not None:
                return await self._world.tasks.swap(task, task.found())
            case PollKind.MISSING if asked_at >= taken_at + LOST_AGE:
                return await self._missing(task, asked_at)
            case _:
                return task

    async def _missing(self, task: Task, asked_at: datetime) -> Task:
        """Believe the vendor's 404 only the second time, a while later."""
        if task.missing_since is None:
            return await self._world.tasks.swap(task, task.missing(asked_at))
        if asked_at >= task.missing_since + LOST_CONFIRMATION:
            return await self._endings.failed(
                task, ErrorCode.LOST, "the vendor does not know the task any more"
            )
        return task

    async def _mark_unknown(self, task: Task) -> Task:
        """Take over a submit whose process has died before it could store the vendor's answer."""
        self._endings.steps["marked_unknown"] += 1
        unknown = await self._world.tasks.swap(task, task.mark_unknown())
        self._world.reporter.tell(
            "task.submitted", task_id=task.task_id, caller=task.caller, outcome=Submission.AMBIGUOUS
        )
        return unknown

    async def _look_again(self, task: Task) -> Task:
        """See how far the holder of the claim has come: what it leaves to do is not to wait for the claim's end."""
        current = await self._world.tasks.get(task.task_id)
        if current is None:
            raise StaleTaskError(None)
        return current

    async def _unchanged(self, task: Task) -> Task:
        """Make sure that a request to the vendor is not wasted. Raises StaleTaskError."""
        current = await self._look_again(task)
        if current.nonce != task.nonce:
            raise StaleTaskError(current)
        return current

    def _past_hard_stop(self, task: Task) -> bool:
        return (
            self._clock.now() >= (task.taken_at or task.accepted_at) + self._rules.max_task_age + EXPIRY_GRACE
        )


def _accepted(row: Row) -> float:
    try:
        return int(row.at[:13]) / 1000
    except ValueError:  # a key that cannot be read hides no task
        return 0.0


def _since(task: Task) -> float:
    return (task.taken_at or task.accepted_at).timestamp()
