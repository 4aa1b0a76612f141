"""The loop: find the tasks with work due, and take each one step further until nothing is due before the next tick."""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from taskhook import budget, deliver, schedule
from taskhook.budget import Gate
from taskhook.hosts import Hosts, host_of
from taskhook.models import MODELS
from taskhook.ports import (
    HOLDS_AT_ONCE,
    POLLS_AT_ONCE,
    Archiver,
    Budget,
    CallbackSender,
    CallerDirectory,
    Clock,
    Gates,
    Hooks,
    Lease,
    LeaseView,
    PollKind,
    PollOutcome,
    Reporter,
    StaleTaskError,
    StoreUnavailableError,
    TaskApi,
    TaskStore,
    WorkIndex,
)
from taskhook.submit import Allowance, Payer, pay
from taskhook.task import (
    HARD_STOP,
    LOST_AGE,
    LOST_CONFIRMATION,
    RESCUE_TIME,
    ErrorCode,
    Json,
    State,
    Submission,
    SubmitOutcome,
    Task,
)

TICK = timedelta(seconds=60)
SCAN = timedelta(seconds=2)  # between looks at the index and the lease
BEAT = timedelta(seconds=0.25)  # between looks at what is due
INDEX_LAG = timedelta(seconds=30)  # how far the index may lag behind the table
DRAIN = timedelta(seconds=35)  # before the hard stop: longer than any claimed step takes
PAY_CLAIM = timedelta(seconds=60)
PAY_TIME = timedelta(seconds=13)
PAUSE_SHORT = timedelta(seconds=5)  # where nobody names a time
PAUSE_KEY = timedelta(seconds=60)
ARCHIVES_AT_ONCE = 25  # invocations that copy; the account's others are for submits
ARCHIVE_LOOK = timedelta(seconds=5)  # by then an invocation that was started has claimed its task, or is done with it
HOLD_SIGN = timedelta(seconds=1)  # a poll that has no answer by then is probably held
HOLD_PROOF = timedelta(seconds=5)  # a pending that took this long was held; one that came sooner was not
HOLD_DOUBT = timedelta(minutes=10)  # until a vendor that did not hold is tried again


@dataclass(frozen=True)
class Rules:
    """What the deployment decided about polling."""

    retention: timedelta
    max_task_age: timedelta
    max_queue_age: timedelta
    requests_per_minute: int = 1000
    immediate: bool = False  # poll from the vendor's acceptance on, not from the model's typical minimum
    linger: bool = True
    long_poll: bool = True
    origin: str | None = None  # of links to archived results; None: results are not archived


@dataclass
class Habits:
    """What this process has found out about the vendor, by model; kept while it stays warm, for nothing depends on it."""

    holds: dict[str, bool] = field(default_factory=dict)
    found_at: dict[str, datetime] = field(default_factory=dict)

    def holding(self, model: str, now: datetime) -> bool | None:
        """Whether the vendor holds polls about this model open; None: to be found out."""
        if self.holds.get(model) is False and now >= self.found_at[model] + HOLD_DOUBT:
            return None
        return self.holds.get(model)

    def found(self, model: str, now: datetime, *, holds: bool) -> None:
        """Remember what a poll has shown."""
        self.holds[model], self.found_at[model] = holds, now

    def held_models(self) -> tuple[str, ...]:
        """List the models whose polls the vendor holds."""
        return tuple(sorted(model for model, holds in self.holds.items() if holds))


@dataclass(frozen=True)
class World:
    """The ports of the loop."""

    tasks: TaskStore
    work: WorkIndex
    lease: Lease
    gates: Gates
    budget: Budget
    vendor: TaskApi
    hooks: Hooks | None
    callbacks: CallbackSender
    callers: CallerDirectory
    clock: Clock
    reporter: Reporter
    archiver: Archiver | None = None
    habits: Habits = field(default_factory=Habits)


@dataclass(frozen=True)
class PollReport:
    """What one invocation did, by kind of step."""

    steps: dict[str, int]
    lingered: bool


type Ends = Mapping[str, PollOutcome | None]


def ends_of(event: Json) -> Ends:
    """Read which tasks a wake says have ended, and what the vendor said of each, where that is known."""
    ended = event.get("ended", {})
    named = ended if isinstance(ended, dict) else dict.fromkeys(ended)
    return {task_id: PollOutcome.model_validate(told) if told else None for task_id, told in named.items()}


async def poll(
    *, accepted: Iterable[str] = (), ended: Ends | None = None, scheduled: bool, hard_stop: datetime, rules: Rules, world: World
) -> PollReport:
    """Serve the ids of a wake, then whatever else is due; linger under the lease while more is due before the next tick.

    `accepted` names tasks to look after, `ended` tasks whose end is stored at once, and the vendor asked about it where it is
    not said. A scheduled invocation takes the lease over, a wake only when it is free. Writes nothing where nothing is due.
    """
    return await _Loop(rules, world, hard_stop).run(tuple(accepted), ended or {}, scheduled=scheduled)


@dataclass
class _Tracked:
    """A task that this invocation looks after; `due` is when its next step is."""

    task: Task
    due: datetime
    running: asyncio.Task[None] | None = None
    held: bool = False  # its poll waits at the vendor, and may be dropped
    hinted: bool = False  # a hint has brought it here
    told: PollOutcome | None = None  # what the vendor said when the hint was checked
    answered: bool = True  # the vendor answered its last poll
    ran_until: datetime | None = None  # when the vendor's task is last known to have run; what follows may be lateness
    sent_at: datetime | None = None  # when an invocation was started that copies its results
    not_before: datetime | None = None  # of its next step, whatever else is said


class _Loop:
    """One invocation's work; the answers of the index are hints, every write is conditional."""

    def __init__(self, rules: Rules, world: World, hard_stop: datetime) -> None:
        self.rules = rules
        self.world = world
        self.clock = world.clock
        self.name = secrets.token_hex(8)
        self.started = self.clock.now()
        self.hard_stop = hard_stop
        self.lingers = False
        self.has_lease = False
        self.closing = False  # nothing more is begun
        self.blind = False  # what there is to do could not be looked for
        # Where nobody polled before, every point since the last tick is still to be served; and when one was, only roughly known.
        self.polled_until = self.looked_until = self.started - TICK
        self.tracked: dict[str, _Tracked] = {}
        self.steps: Counter[str] = Counter()
        self.newest: datetime | None = None
        self.lease = LeaseView()
        self.gate = Gate()
        self.queue_waits = False
        self.queue_seen_at = self.started - INDEX_LAG
        self.queue_blocked_until = self.started
        self.queue_worker: asyncio.Task[None] | None = None
        self.vendor_paused_until = self.started
        self.limit = budget.window_limit(rules.requests_per_minute)
        self.allowance = Allowance(world.budget, rules.requests_per_minute, reserve=budget.reserve(self.limit))
        self.probing: dict[str, datetime] = {}  # by model: since when a poll tells whether the vendor holds
        self.polls = asyncio.Semaphore(POLLS_AT_ONCE)
        self.hosts = Hosts(world.clock)
        self.parked: dict[str, str] = {}  # ids of due callbacks whose host has no use for them now, with that host
        self.asked = 0  # polls, and of them those that said nothing, with the last one's reason
        self.unanswered = 0
        self.complaint = ""
        self.deadline_used = 0.0  # by whichever polled task came nearest to its own
        self.longest_wait: timedelta | None = None  # of a task in the queue that could not be served
        self.payer = Payer(
            tasks=world.tasks,
            vendor=world.vendor,
            hooks=world.hooks,
            clock=world.clock,
            reporter=world.reporter,
            retention=rules.retention,
        )
        self.courier = deliver.Courier(
            tasks=world.tasks,
            callbacks=world.callbacks,
            callers=world.callers,
            hosts=self.hosts,
            clock=world.clock,
            reporter=world.reporter,
            retention=rules.retention,
        )

    async def run(self, accepted: tuple[str, ...], ended: Ends, *, scheduled: bool) -> PollReport:
        try:
            for task_id in (*accepted, *ended):
                task = await self.world.tasks.get(task_id)
                if task is not None:
                    self._track(task, hinted=task_id in ended, told=ended.get(task_id))
            if scheduled:
                await self._scan()
            if self.rules.linger and self._has_work():
                await self._take_lease(takeover=scheduled)
            if self.lingers:
                await self._linger(scanned=scheduled)
            else:
                if not scheduled:
                    self._leave_to_the_lingering()
                await self._serve_once()
        finally:
            if self.has_lease:  # first: who comes during the drain must not leave anything to this invocation
                with contextlib.suppress(StoreUnavailableError):
                    await self.world.lease.release(self.name)
            await self._drain()
            self._tell_load()
        return PollReport(steps=dict(self.steps), lingered=self.lingers)

    def _tell_load(self) -> None:
        """Tell what this invocation has learnt on its way of how much there is to do; nothing where it did nothing."""
        if self.asked:
            self.world.reporter.tell("vendor.polled", count=self.asked, deadline_used=round(100 * self.deadline_used, 1))
        if self.unanswered:
            self.world.reporter.tell("vendor.unavailable", count=self.unanswered, error=self.complaint)
        if self.longest_wait is not None:
            self.world.reporter.tell(
                "queue.waited",
                oldest_queued_s=round(self.longest_wait.total_seconds()),
                deadline_used=round(100 * (self.longest_wait / self.rules.max_queue_age), 1),
            )

    def _leave_to_the_lingering(self) -> None:
        """Keep only what cannot wait for its next scan: a task that is known to have ended."""
        self.queue_waits = False
        for task_id in [
            task_id for task_id, entry in self.tracked.items() if entry.task.state is State.WATCHED and not entry.hinted
        ]:
            del self.tracked[task_id]

    async def _take_lease(self, *, takeover: bool) -> bool:
        now = self.clock.now()
        self.lease = await self.world.lease.view()
        alive = self.lease.alive(now)
        if alive and not takeover:
            return False
        if alive:  # hints that came until now were left to its held polls, so these must be held on
            for model in self.lease.held_models:
                if self.world.habits.holding(model, now) is None:
                    self.world.habits.found(model, now, holds=True)
        if not await self.world.lease.take(self.lease, self._my_lease(), takeover=takeover):
            return False
        if alive:  # it serves the points up to its last beat, and sees within SCAN that it is relieved
            self.polled_until = self.looked_until = now - 2 * BEAT
        elif self.lease.left_at is not None:
            self.polled_until = max(self.polled_until, self.lease.left_at)
        self.lingers = self.has_lease = True
        self._reconsider()
        return True

    def _my_lease(self) -> LeaseView:
        held = self.world.habits.held_models() if self.rules.long_poll else ()
        return LeaseView(holder=self.name, until=self.hard_stop, held_models=held)

    async def _linger(self, *, scanned: bool) -> None:
        next_scan = self.clock.now() + SCAN if scanned else self.clock.now()
        while self.clock.now() < self.hard_stop - DRAIN:
            if self.clock.now() >= next_scan:
                next_scan = self.clock.now() + SCAN
                trusted = self.lease.hints(self.clock.now())
                try:
                    self.lease = await self.world.lease.view()
                    if self.lease.holder != self.name:
                        return
                    if self.lease.hints(self.clock.now()) is not trusted:
                        self._think_again()
                    if (
                        self.lease.held_models != self._my_lease().held_models
                    ):  # found out meanwhile; then hints are not waited for, or are
                        await self.world.lease.take(self.lease, self._my_lease(), takeover=False)
                    await self._scan()
                    self.blind = False
                except StoreUnavailableError as error:
                    self.blind = True
                    self.world.reporter.tell("poll.scan_failed", error=str(error))
            await self._start_due()
            if not self._has_work() and not await self._more_came():
                return
            await self.clock.sleep(BEAT)

    async def _more_came(self) -> bool:
        """Give the lease up, then look once more: a wake that found it held until now has left its task to this invocation."""
        try:
            await self.world.lease.release(self.name, left_at=self._served_until())
            self.has_lease = False
            await self._scan()
            return self._has_work() and await self._take_lease(takeover=False)
        except StoreUnavailableError:
            return False

    def _served_until(self) -> datetime | None:
        """Tell until when every point of polling was served, where nothing is due any more; None where one may not have been."""
        unanswered = any(not entry.answered for entry in self.tracked.values())
        if unanswered or self.blind or self._paused():
            return None
        return min(self.clock.now(), self.hard_stop - DRAIN)

    async def _serve_once(self) -> None:
        """Do what was due at the start, each once, waiting for the requests that takes; and the queue."""
        await self._start_due(self.started)
        while not self._closed():
            running = self._begun()
            if running:
                await asyncio.wait(running)
            elif self._paused() or all(entry.due > self.started for entry in self.tracked.values()):
                return
            else:
                await self.clock.sleep(BEAT)  # until the budget has room again
            await self._start_due(self.started)

    def _paused(self) -> bool:
        return self.clock.now() < self.vendor_paused_until

    def _closed(self) -> bool:
        """Whether it is too late to begin anything: whoever comes next will."""
        return self.closing or self.clock.now() >= self.hard_stop - DRAIN

    async def _drain(self) -> None:
        """Begin nothing more, drop held polls, and let the rest finish: what has begun is bounded, and shorter than DRAIN."""
        self.closing = True
        for entry in self.tracked.values():
            if entry.running and entry.held:
                entry.running.cancel()
        if running := self._begun():
            await asyncio.wait(running)
        await self.world.callbacks.close()  # connections do not outlive a freeze

    def _begun(self) -> list[asyncio.Task[None]]:
        """List what is under way."""
        steps = [entry.running for entry in self.tracked.values() if entry.running]
        return [*steps, self.queue_worker] if self.queue_worker else steps

    # --- what there is to do ---------------------------------------------------------------------------------------------

    def _horizon(self) -> datetime:
        """Until when work is this invocation's to wait for; the next tick finds what comes later."""
        return min(self.hard_stop - DRAIN, max(self.started + TICK, self.clock.now() + SCAN))

    def _has_work(self) -> bool:
        horizon = self._horizon()
        if self.queue_worker or (self.queue_waits and self._queue_due(self.clock.now()) < horizon):
            return True
        return any(entry.running or self._startable(entry) < horizon for entry in self.tracked.values())

    def _startable(self, entry: _Tracked) -> datetime:
        """Tell when an entry's step may begin: when it is due, and the vendor may be asked if it must."""
        return max(entry.due, self.vendor_paused_until) if self._asks_vendor(entry) else entry.due

    def _asks_vendor(self, entry: _Tracked) -> bool:
        return entry.task.state is State.WATCHED and entry.told is None and not self._past_hard_stop(entry.task)

    async def _scan(self) -> None:
        """Look for work: the queue, all of `watch` the first time, then what came since, and the retries.

        In this order, which tasks go too. While any are queued `watch` is looked through whole: whoever leaves the queue
        enters it at its old place.
        """
        self.queue_waits = self.queue_waits or await self.world.work.queue_waits()
        if self.queue_waits:
            self.queue_seen_at = self.clock.now()
        left_lately = self.clock.now() < self.queue_seen_at + INDEX_LAG
        since = None if self.newest is None or left_lately else self.newest - INDEX_LAG
        found = await self.world.work.watched(since, known=self.tracked)
        self.newest = max([self.newest or self.started, *(task.accepted_at for task in found)])
        for task in found:
            self._track(task)
        await self._scan_retries()
        if self.queue_waits and not self.queue_worker:
            self.gate = await self.world.gates.gate()

    async def _scan_retries(self) -> None:
        """Look for retries, past those whose host rests or has enough waiting: they stay where they are, unwritten."""
        crowd = Counter(host_of(entry.task) for entry in self.tracked.values() if entry.task.state.final)
        self.parked = {task_id: host for task_id, host in self.parked.items() if self.hosts.crowded(host, crowd[host])}
        # Who is still tracked as watched has been taken further by a wake, if its row is here.
        known = {task_id for task_id, entry in self.tracked.items() if entry.running or entry.task.state.final} | self.parked.keys()
        while found := await self.world.work.retries(self._horizon(), known=known):
            for task in found:
                known.add(task.task_id)
                host = host_of(task)
                if self.hosts.crowded(host, crowd[host]):
                    self.parked[task.task_id] = host
                else:
                    crowd[host] += 1
                    self._track(task)

    def _track(self, task: Task, *, hinted: bool = False, told: PollOutcome | None = None) -> None:
        """Look after a task from what was just read of it; a step that runs will read for itself."""
        known = self.tracked.get(task.task_id)
        if task.state is State.QUEUED:
            self.queue_waits = True
        elif task.work is not None and (known is None or known.running is None):
            due = self.started if hinted and task.state is State.WATCHED else self._due(task)
            self.tracked[task.task_id] = _Tracked(task, due, hinted=hinted, told=told)

    def _due(self, task: Task) -> datetime:
        """Tell when a task's next step is due, from the task alone."""
        now = self.clock.now()
        if task.state is State.ARCHIVING:
            return self.started if self._archived(task) else min(task.archive_by, task.claimed_until or self.started)
        if task.claimed(now):  # somebody is at it, so what is read now is soon old
            return min(task.claimed_until or now, now + SCAN)
        match task.state:
            case State.SUBMITTING:
                return self.started
            case State.RESCUE:
                return (task.submitted_at or task.accepted_at) + RESCUE_TIME
            case State.WATCHED:
                return self._next_poll(task, after=self.polled_until)
            case _:
                rested = self.hosts.rests_until(host_of(task))
                return max(task.next_attempt_at or self.started, rested or self.started)

    def _next_poll(self, task: Task, *, after: datetime, answered: bool = True) -> datetime:
        """Tell when the vendor is asked next: by the schedule, rarely where hints come, at once where it holds polls open.

        A poll that was not `answered` may have been the one that mattered, so no hint is waited for after it.
        """
        taken_at = task.taken_at or task.accepted_at
        model = MODELS.get(task.model)
        first = timedelta(0) if self.rules.immediate or model is None else model.typical_minimum
        if self._holding(task) and self._hold_is_free():
            return max(after, taken_at + first)
        hinted = self.lease.hints(self.clock.now()) and not self._holding(task)  # else hints are left to held polls
        if hinted and answered and not self._hold_is_asked(task):
            return taken_at + schedule.next_rare_poll(after - taken_at)
        return taken_at + schedule.next_poll(after - taken_at, first=first)

    def _reconsider(self) -> None:
        """Plan all polls anew, from the first point that is not known to be served."""
        for entry in self._idle():
            entry.due = self._next_poll(entry.task, after=self.polled_until)

    def _think_again(self) -> None:
        """Plan anew those polls that are not due yet, where it was learnt how else the ends of tasks are told, or are not."""
        now = self.clock.now()
        for entry in self._idle():
            if entry.due > now:
                entry.due = max(self._next_poll(entry.task, after=now, answered=entry.answered), entry.not_before or now)

    def _idle(self) -> list[_Tracked]:
        """List the tasks that wait for their next poll."""
        return [
            entry
            for entry in self.tracked.values()
            if entry.running is None and entry.task.state is State.WATCHED and not entry.hinted
        ]

    def _running(self, *, besides: str = "") -> int:
        """Count the tasks that fill a place at the vendor, as far as is known."""
        filling = {State.SUBMITTING, State.WATCHED, State.RESCUE}
        return sum(entry.task.state in filling for task_id, entry in self.tracked.items() if task_id != besides)

    # --- doing it --------------------------------------------------------------------------------------------------------

    async def _start_due(self, due_by: datetime | None = None) -> None:
        """Begin the steps that are due by now, or were by `due_by`."""
        now = self.clock.now()
        self._believe_held_polls(now)
        asking = []
        for entry in self.tracked.values():
            if entry.running is not None or entry.due > (due_by or now):
                continue
            if self._asks_vendor(entry):
                asking.append(entry)
            else:
                self._start(entry)
        if self._paused():
            return
        if asking:
            # When requests are short, the most overdue relative to its age goes first.
            asking.sort(key=lambda entry: (entry.due - now) / max(now - entry.task.accepted_at, BEAT))
            for entry in asking[: await self._requests(len(asking))]:
                self.allowance.spend()
                self._start(entry)
        if self.queue_waits and self.queue_worker is None and now >= self._queue_due(now):
            self.queue_worker = asyncio.create_task(self._work_queue())

    def _start(self, entry: _Tracked) -> None:
        entry.running = asyncio.create_task(self._step(entry))

    async def _requests(self, wanted: int) -> int:
        """Tell how many of `wanted` requests may be made now; where the table does not answer, no more in this window."""
        now = self.clock.now()
        end = budget.window_end(now)
        expected = sum(entry.due < end and not entry.held for entry in self.tracked.values() if entry.task.state is State.WATCHED)
        try:
            return await self.allowance.room(wanted, now, expected=expected)
        except StoreUnavailableError:
            self.allowance.empty = True
            return min(wanted, self.allowance.left)

    async def _step(self, entry: _Tracked) -> None:
        """Take one task one step further. Whatever happens to it stays with it."""
        task: Task | None = entry.task
        try:
            task = await self._advance(entry)
        except StaleTaskError as stale:  # somebody else has taken it further
            task = stale.current
        except StoreUnavailableError:
            entry.not_before = self.clock.now() + PAUSE_SHORT
        except Exception as error:  # noqa: BLE001  # one poisoned task never stops the others; it is told, and tried again
            self.world.reporter.tell("task.crashed", task_id=entry.task.task_id, error=type(error).__name__)
            entry.not_before = self.clock.now() + PAUSE_KEY
        finally:  # also where a held poll was dropped
            entry.running = None
        if task is None or task.work is None or task.state is State.QUEUED:
            del self.tracked[entry.task.task_id]
            return
        watched = task.state is State.WATCHED
        again = self._next_poll(task, after=self.clock.now(), answered=entry.answered) if watched else self._due(task)
        entry.task, entry.due = task, max(again, entry.not_before or self.started)

    async def _advance(self, entry: _Tracked) -> Task:
        task = entry.task
        match task.state:
            case State.ARCHIVING:
                return await self._archive(entry)
            case _ if task.claimed(self.clock.now()):
                return await self._look_again(task)
            case State.SUBMITTING:
                return await self._reap(task)
            case State.RESCUE:
                return await self._end_failed(
                    task, ErrorCode.SUBMISSION_UNKNOWN, "whether the vendor took the task was never learnt"
                )
            case State.WATCHED if self._past_hard_stop(task):
                return await self._end_failed(task, ErrorCode.EXPIRED, "the task's deadline passed without an answer of the vendor")
            case State.WATCHED:
                asked_at = self.clock.now()
                hint_is_due = self._hint_is_due(entry, asked_at) and not self._may_hold(task)
                if hint_is_due:  # which may have brought a wake here, that has ended the task
                    task = await self._unchanged(task)
                outcome, entry.told = entry.told or await self._ask(entry), None
                self.steps["polled"] += 1
                entry.answered = outcome.kind in {PollKind.PENDING, PollKind.SUCCEEDED, PollKind.FAILED}
                self._measure(entry, outcome, asked_at)
                if hint_is_due and outcome.kind in {PollKind.SUCCEEDED, PollKind.FAILED}:
                    await self._doubt_hints()
                entry.task = await self._polled(task, outcome, asked_at=asked_at)
                return await self._archive(entry) if entry.task.state is State.ARCHIVING else entry.task
            case _:
                return await self._deliver(task)

    async def _reap(self, task: Task) -> Task:
        """Take over a submit whose process has died before it could store the vendor's answer."""
        self.steps["reaped"] += 1
        doubted = await self.world.tasks.swap(task, task.doubted())
        self.world.reporter.tell("task.submitted", task_id=task.task_id, caller=task.caller, outcome=Submission.AMBIGUOUS)
        return doubted

    async def _look_again(self, task: Task) -> Task:
        """See how far whoever has claimed the task has come: what it leaves to do is not to wait for the claim's end."""
        current = await self.world.tasks.get(task.task_id)
        if current is None:
            raise StaleTaskError(None)
        return current

    async def _unchanged(self, task: Task) -> Task:
        """Make sure that a request to the vendor is not wasted. Raises StaleTaskError."""
        current = await self._look_again(task)
        if current.nonce != task.nonce:
            raise StaleTaskError(current)
        return current

    async def _polled(self, task: Task, outcome: PollOutcome, *, asked_at: datetime) -> Task:
        now = self.clock.now()
        taken_at = task.taken_at or task.accepted_at
        match outcome.kind:
            case PollKind.SUCCEEDED if (archiving := self._archiving(task, outcome)) is not None:
                return await self.world.tasks.swap(task, archiving)
            case PollKind.SUCCEEDED:
                claim = self._first_claim(task, now)
                return await self._end(task, task.succeeded(outcome.data, now, retention=self.rules.retention, claim=claim))
            case PollKind.FAILED:
                return await self._end_failed(task, ErrorCode.UPSTREAM_FAILED, outcome.message)
            case PollKind.PENDING if asked_at >= taken_at + self.rules.max_task_age:
                return await self._end_failed(task, ErrorCode.EXPIRED, "the task was not done by its deadline")
            case PollKind.PENDING if task.missing_since is not None:
                return await self.world.tasks.swap(task, task.found())
            case PollKind.MISSING if asked_at >= taken_at + LOST_AGE:
                return await self._missing(task, asked_at)
            case PollKind.THROTTLED | PollKind.KEY_REFUSED:
                self._pause_vendor(key_refused=outcome.kind is PollKind.KEY_REFUSED, retry_after=outcome.retry_after)
                return task
            case _:
                return task

    async def _missing(self, task: Task, asked_at: datetime) -> Task:
        """Believe the vendor's 404 only the second time, a while later."""
        if task.missing_since is None:
            return await self.world.tasks.swap(task, task.missing(asked_at))
        if asked_at >= task.missing_since + LOST_CONFIRMATION:
            return await self._end_failed(task, ErrorCode.LOST, "the vendor does not know the task any more")
        return task

    async def _end_failed(self, task: Task, error: ErrorCode, message: str) -> Task:
        now = self.clock.now()
        claim = self._first_claim(task, now)
        return await self._end(task, task.failed(error, message, now, retention=self.rules.retention, claim=claim))

    def _archiving(self, task: Task, outcome: PollOutcome) -> Task | None:
        """Give what a success becomes while its results are archived; None where there is nothing to archive."""
        if self.world.archiver is None or self.rules.origin is None:
            return None
        archiving = task.archiving(outcome.data, self.clock.now(), new_token=lambda: secrets.token_hex(16))
        return archiving if archiving.copies else None

    def _archived(self, task: Task) -> bool:
        """Whether a task waits for its copies no longer; nor does it where archiving was switched off meanwhile."""
        return task.copied or self.world.archiver is None or self.clock.now() >= task.archive_by

    async def _archive(self, entry: _Tracked) -> Task:
        """End a task whose results are archived, or can wait for that no longer; have them copied where nobody does."""
        task, now = await self._look_again(entry.task), self.clock.now()
        if task.state is not State.ARCHIVING:
            return task
        if self._archived(task):
            claim = self._first_claim(task, now)
            return await self._end(task, task.archived(self.rules.origin, now, retention=self.rules.retention, claim=claim))
        entry.sent_at = None
        if self.world.archiver is not None and not task.claimed(now):
            if self._may_archive(now):
                entry.sent_at = now  # it counts while it is asked for
                if not await self.world.archiver.start(task.task_id):
                    entry.sent_at = None
            entry.not_before = min(now + (TICK if entry.sent_at else ARCHIVE_LOOK), task.archive_by)
        return task

    def _may_archive(self, now: datetime) -> bool:
        """Whether one more invocation may copy; where not, those that do are looked at again, for some are done."""
        archiving = [entry for entry in self.tracked.values() if entry.task.state is State.ARCHIVING]
        copying = [entry for entry in archiving if entry.sent_at or entry.task.claimed(now)]
        if len(copying) < ARCHIVES_AT_ONCE:
            return True
        for entry in copying:
            entry.due = min(entry.due, max(now, (entry.sent_at or now) + ARCHIVE_LOOK))
        return False

    def _first_claim(self, task: Task, now: datetime) -> datetime:
        """Tell until when the terminal write claims the first delivery: not at all where the host rests, and it cannot follow."""
        return now if self.hosts.rests_until(host_of(task)) else now + deliver.CLAIM

    async def _end(self, task: Task, ended: Task) -> Task:
        """Store the end, which claims the first delivery too, and deliver at once."""
        ended = await self._store_end(task, ended)
        return await self._deliver(ended) if ended.work is not None else ended

    async def _store_end(self, task: Task, ended: Task) -> Task:
        ended = await self.world.tasks.swap(task, ended)
        self.steps["ended"] += 1
        self.world.reporter.tell("task.ended", task_id=ended.task_id, caller=ended.caller, state=ended.state, error=ended.error)
        return ended

    async def _deliver(self, task: Task) -> Task:
        """Make an attempt when its host has a place for it; leave the task as it is where the host rests.

        Once closed, no new claim is taken. A terminal write's own is still used: nobody else may, for as long as it lasts.
        """
        async with self.hosts.place(host_of(task)) as granted:
            if not granted or (self._closed() and not deliver.covered(task, self.clock.now())):
                return task
            self.steps["delivered"] += 1
            entry = self.tracked.get(task.task_id)
            return await deliver.attempt(task, self.courier, ran_until=entry.ran_until if entry else None)

    # --- asking the vendor -----------------------------------------------------------------------------------------------

    async def _ask(self, entry: _Tracked) -> PollOutcome:
        """Ask about a task; held where the vendor is known to hold polls open, or where this one shall tell whether it does."""
        task = entry.task
        entry.not_before = self.clock.now() + schedule.MIN_GAP
        if not self._may_hold(task):
            async with self.polls:
                if self._closed() or self._paused():
                    return PollOutcome(kind=PollKind.UNAVAILABLE, message="not asked")
                return await self._poll(task, hold=False)
        began = self.clock.now()
        self.probing.setdefault(task.model, began)
        entry.held = True
        try:
            outcome = await self._poll(task, hold=True)
        finally:
            entry.held = False
            self.probing.pop(task.model, None)
        took = self.clock.now() - began
        if took >= HOLD_SIGN and outcome.kind is not PollKind.UNAVAILABLE:
            entry.ran_until = self.clock.now()  # the vendor held it for as long as the task ran
        if took >= HOLD_PROOF and outcome.kind is not PollKind.UNAVAILABLE:
            self.world.habits.found(task.model, self.clock.now(), holds=True)
        elif outcome.kind is PollKind.PENDING:
            self.world.habits.found(task.model, self.clock.now(), holds=False)
            self._think_again()
        return outcome

    async def _poll(self, task: Task, *, hold: bool) -> PollOutcome:
        self.asked += 1
        outcome = await self.world.vendor.poll(task.upstream_task_id or "", hold=hold)
        if outcome.kind is PollKind.UNAVAILABLE:
            self.unanswered += 1
            self.complaint = outcome.message
        return outcome

    def _measure(self, entry: _Tracked, outcome: PollOutcome, asked_at: datetime) -> None:
        """Note how far the task is from its deadline, and until when it is known to have run at the vendor.

        Where this is the first look at a task that has ended, that was when somebody else looked, as far as is known.
        """
        taken_at = entry.task.taken_at or entry.task.accepted_at
        self.deadline_used = max(self.deadline_used, (asked_at - taken_at) / self.rules.max_task_age)
        if outcome.kind is PollKind.PENDING:
            entry.ran_until = max(asked_at, entry.ran_until or asked_at)
        elif entry.ran_until is None:
            entry.ran_until = self.started if entry.hinted else max(taken_at, self.looked_until)

    async def _doubt_hints(self) -> None:
        """Trust hints no longer when a task has ended without one; the next true one is trusted again."""
        self.lease = self.lease.model_copy(update={"hinted_at": None})
        self._think_again()
        with contextlib.suppress(StoreUnavailableError):
            await self.world.lease.hinted(None)

    def _hint_is_due(self, entry: _Tracked, now: datetime) -> bool:
        """Tell whether a hint should tell of the task's end, and has not brought it here."""
        return self.lease.hints(now) and not entry.hinted and not self._holding(entry.task)

    def _may_hold(self, task: Task) -> bool:
        if not (self.rules.long_poll and self.lingers and self._hold_is_free()):
            return False
        known = self.world.habits.holding(task.model, self.clock.now())
        return known if known is not None else task.model not in self.probing

    def _hold_is_free(self) -> bool:
        return sum(entry.held for entry in self.tracked.values()) < HOLDS_AT_ONCE

    def _holding(self, task: Task) -> bool:
        """Whether a poll of this task would be held, as far as is known."""
        known = self.world.habits.holding(task.model, self.clock.now())
        return bool(known) and self.rules.long_poll and self.lingers

    def _hold_is_asked(self, task: Task) -> bool:
        """Tell whether the next poll of this task is to show if the vendor holds it: a held one is cheaper than a hint."""
        return self.world.habits.holding(task.model, self.clock.now()) is None and self._may_hold(task)

    def _believe_held_polls(self, now: datetime) -> None:
        """Take a poll without an answer for held, before it is over, so that the others need not wait for the proof."""
        for model, began in self.probing.items():
            if now >= began + HOLD_SIGN and self.world.habits.holding(model, now) is None:
                self.world.habits.found(model, now, holds=True)
                self._reconsider()

    def _pause_vendor(self, *, key_refused: bool, retry_after: timedelta | None) -> None:
        pause = PAUSE_KEY if key_refused else retry_after or PAUSE_SHORT
        self.vendor_paused_until = max(self.vendor_paused_until, self.clock.now() + pause)
        self.world.reporter.tell(
            "vendor.paused", reason="key_refused" if key_refused else "throttled", seconds=pause.total_seconds()
        )

    def _past_hard_stop(self, task: Task) -> bool:
        return self.clock.now() >= (task.taken_at or task.accepted_at) + self.rules.max_task_age + HARD_STOP

    # --- the queue -------------------------------------------------------------------------------------------------------

    def _queue_due(self, now: datetime) -> datetime:
        """Tell when the next queued task may be submitted, from `now` on."""
        return max(self.queue_blocked_until, self.gate.next_try(self._running(), now))

    async def _work_queue(self) -> None:
        """Submit queued tasks, callers in turn, until the vendor refuses or none is left."""
        try:
            self.gate = await self.world.gates.gate()
            found = False
            while heads := await self.world.work.queue_heads():
                found, served = True, False
                for head in self.gate.in_turn(heads):
                    try:
                        if self._closed() or not await self._serve_queued(head, alone=len(heads) == 1):
                            waited = self.clock.now() - min(head.accepted_at for head in heads)
                            self.longest_wait = max(waited, self.longest_wait or waited)
                            return
                        served = True
                    except StaleTaskError:  # somebody else has it, or the index shows it late
                        continue
                if not served:
                    self.queue_blocked_until = self.clock.now() + SCAN
                    return
            if (
                not found and await self.world.work.queue_waits()
            ):  # it cannot be read: the next tick looks again, nobody lingers for it
                self.queue_blocked_until = self.clock.now() + PAUSE_KEY
            self.gate = await self.world.gates.gate()  # a submit may have closed it since
            await self._set_gate(self.gate.model_copy(update={"waiting": False}))
            self.queue_waits = self.gate.waiting  # closed again in this very moment: look again
        except StoreUnavailableError:
            self.queue_blocked_until = self.clock.now() + PAUSE_SHORT
        except Exception as error:  # noqa: BLE001  # the queue waits, everything else goes on
            self.world.reporter.tell("queue.crashed", error=type(error).__name__)
            self.queue_blocked_until = self.clock.now() + PAUSE_KEY
        finally:
            self.queue_worker = None

    async def _serve_queued(self, task: Task, *, alone: bool) -> bool:
        """Submit one queued task, or end it where it waited too long; False where the queue has to wait.

        Raises StaleTaskError where the task is not queued any more.
        """
        now = self.clock.now()
        if task.state is not State.QUEUED:
            raise StaleTaskError(task)
        if now >= task.accepted_at + self.rules.max_queue_age:
            return await self._expire_queued(task, "waited too long for a free place at the vendor")
        if self._queue_due(now) > now:
            return False
        task = await self.world.tasks.whole(task)
        if task.request is None:
            return await self._expire_queued(task, "was kept without a request that can be read")
        if await self.world.budget.take_tokens(1, window=budget.window(now), limit=self.limit) == 0:
            self.queue_blocked_until = budget.window_end(now)
            return False
        claimed = await self.world.tasks.swap(task, task.claim_submit(now, until=now + PAY_CLAIM))
        running = self._running(besides=task.task_id)
        paid, outcome = await pay(claimed, deadline=now + PAY_TIME, payer=self.payer)
        self.steps["submitted"] += 1
        self._track(paid)
        return await self._learn(outcome, running, served="" if alone else task.caller)

    async def _expire_queued(self, task: Task, why: str) -> bool:
        message = f"the task {why}; it was never paid"
        now = self.clock.now()
        expired = task.failed(ErrorCode.QUEUE_EXPIRED, message, now, retention=self.rules.retention, claim=now)
        self._track(await self._store_end(task, expired))  # its delivery keeps nobody else in the queue waiting
        return True

    async def _learn(self, outcome: SubmitOutcome, running: int, *, served: str) -> bool:
        """Remember what the answer says of the vendor's places; False where the queue has to wait."""
        now = self.clock.now()
        match outcome.submission:
            case Submission.BUSY if outcome.retry_after is not None:  # too many requests, not too many tasks
                await self._set_gate(self.gate.pause(now + outcome.retry_after))
            case Submission.BUSY:
                await self._set_gate(self.gate.refused(running, now))
            case Submission.REFUSED_HERE:
                await self._set_gate(self.gate.pause(now + PAUSE_KEY))
                self.world.reporter.tell("vendor.paused", reason="key_refused", seconds=PAUSE_KEY.total_seconds())
            case Submission.NOT_SENT:
                self.queue_blocked_until = now + PAUSE_SHORT
            case Submission.TAKEN:
                await self._set_gate(self.gate.taken(running, served=served))
                return True
            case _:
                return True
        return False

    async def _set_gate(self, gate: Gate) -> None:
        """Store what was learnt of the way to the vendor, where it is news."""
        if gate != self.gate:
            self.gate = await self.world.gates.set_gate(self.gate, gate)
