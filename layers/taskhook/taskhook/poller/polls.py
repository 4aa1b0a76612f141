"""One step of a task at the vendor.

A poll and what follows from its answer, or the end that the task's age asks for.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from taskhook.core import schedule
from taskhook.core.errors import StaleTaskError
from taskhook.core.record import ErrorCode, State, Submission, SubmitOutcome
from taskhook.core.task import EXPIRY_GRACE, LOST_AGE, LOST_CONFIRMATION, Task
from taskhook.core.vendor import PollKind, PollOutcome
from taskhook.poller import adoption
from taskhook.poller.endings import Endings
from taskhook.poller.long_poll import CHECK_GAP, HELD_SIGN, NOT_HELD_FOR
from taskhook.poller.pacing import Pacing
from taskhook.poller.work import SCAN, PollerPorts, Rules, Standing


@dataclass(slots=True)
class Entry:
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
    is_check: bool = False  # the next one looks whether a held one has told the truth
    answered: bool = True  # the vendor answered its last poll
    asked: bool = False  # by this invocation
    # When the vendor's task is last known to have run; what follows may be lateness.
    ran_until: datetime | None = None

    def is_plain(self, now: datetime) -> bool:
        """Whether its next poll is not to be held."""
        return self.plain_next or (self.plain_until is not None and now < self.plain_until)


class Polls:
    """Asks the vendor about tasks, one at a time; what it learns on the way goes to Pacing."""

    def __init__(
        self,
        *,
        rules: Rules,
        ports: PollerPorts,
        pacing: Pacing,
        standing: Standing,
        endings: Endings,
        steps: Counter[str],
        replan_pending: Callable[[], None],
        wrote_unanswered: Callable[[Task], bool],
        started: datetime,
    ) -> None:
        self._rules = rules
        self._max_task_age = rules.task_age_at(pacing.vendor)
        self._ports = ports
        self._clock = ports.clock
        self._pacing = pacing
        self._standing = standing
        self._endings = endings
        self._steps = steps
        self._replan_pending = replan_pending
        self._wrote_unanswered = wrote_unanswered
        self._started = started
        self.asked = 0  # polls, and of them those that said nothing, with the last one's reason
        self.unanswered = 0
        self.complaint = ""
        self.deadline_used = 0.0  # by the polled task that came nearest to its own

    def due(self, task: Task, *, after: datetime, entry: Entry | None = None) -> datetime:
        """Tell when a task's next step is due, from the task and what is known of it."""
        now = self._clock.now()
        if self._is_unpaid(task):
            return self._started
        if task.claimed(now):  # another invocation is at it, so what is read now is soon old
            return min(task.claimed_until or now, now + SCAN)
        match task.state:
            case State.SUBMITTING:
                return self._started
            case State.UNKNOWN:
                return min(self._next_look(task, after=after) or task.unknown_until, task.unknown_until)
            case _ if entry is None:
                return self._pacing.next_poll(task, after=after)
            case _ if entry.plain_next:
                return now  # its held poll was refused, and may have been the one that mattered
            case _:
                return self._pacing.next_poll(
                    task, after=after, answered=entry.answered, plain=entry.is_plain(now)
                )

    async def step(self, entry: Entry) -> Task:
        """Ask the vendor about a task, or end it; settle a submit whose process has died.

        Raises StaleTaskError, StoreUnavailableError.
        """
        task = entry.task
        match task.state:
            case State.SUBMITTING if self._is_unpaid(task):
                return await self._requeue(task)
            case _ if task.claimed(self._clock.now()):
                return await self._look_again(task)
            case State.SUBMITTING:
                return await self._mark_unknown(task)
            case State.UNKNOWN if self.is_looked_for(task):
                return await self._look_for(task)
            case State.UNKNOWN if self._clock.now() < task.unknown_until:
                return task
            case State.UNKNOWN:
                return await self._endings.failed(
                    task, ErrorCode.SUBMISSION_UNKNOWN, "whether the vendor took the task was never learnt"
                )
            case _ if self.past_grace(task):
                return await self._endings.failed(
                    task, ErrorCode.EXPIRED, "the task's deadline passed without an answer of the vendor"
                )
            case _:
                return await self._poll(entry)

    async def _poll(self, entry: Entry) -> Task:
        task, asked_at, outcome = entry.task, self._clock.now(), entry.known_outcome
        entry.known_outcome = None
        webhook_is_due = (
            self._pacing.webhook_is_due(task, plain=entry.is_plain(asked_at))
            and not entry.webhook
            and not entry.hold
            and outcome is None
        )
        if webhook_is_due:  # it may have brought a wake here, that has ended the task
            task = await self._unchanged(task)
        if outcome is None:
            outcome = await self._ask(entry)
        self._steps["polled"] += 1
        entry.answered, entry.asked = outcome.kind.known, True
        self._measure(entry, outcome, asked_at)
        if webhook_is_due and outcome.kind.ended:
            await self._pacing.doubt_webhooks()
            self._replan_pending()
        return await self._polled(entry, task, outcome, asked_at=asked_at)

    async def _ask(self, entry: Entry) -> PollOutcome:
        """Ask the vendor; what a poll that it did not hold says is believed only of a task that has ended."""
        task, began = entry.task, self._clock.now()
        self.asked += 1
        is_check, entry.is_check, entry.plain_next = entry.is_check, False, False
        entry.not_before = began + schedule.MIN_GAP
        outcome = await self._pacing.api.poll(
            task.upstream_task_id or "", operation=task.operation, hold=entry.hold
        )
        if outcome.kind is PollKind.UNAVAILABLE:
            self.unanswered += 1
            self.complaint = outcome.message
        # That a held poll's key is refused the plain poll, which follows, confirms or not.
        is_unconfirmed = entry.hold and outcome.kind is PollKind.KEY_REFUSED
        if not is_unconfirmed:
            await self._obey(entry, outcome, began)
        self._pacing.end(task, hold=entry.hold)  # what follows may wait for the task's receiver
        now = self._clock.now()
        if not entry.hold:
            if is_check and outcome.kind.ended:
                self._pacing.learn_belied(task)
            return outcome
        if not self._pacing.learn_hold(task, outcome, now - began):
            entry.refusals = 0
            if now - began >= HELD_SIGN:
                entry.ran_until = now  # the vendor held it for as long as the task ran
            if outcome.kind is PollKind.PENDING:
                is_due = (began - task.age_since) // CHECK_GAP < (now - task.age_since) // CHECK_GAP
                entry.is_check = entry.plain_next = is_due
            return outcome
        entry.refusals += 1
        if entry.refusals > 1:
            entry.refusals, entry.plain_until = 0, now + NOT_HELD_FOR
        if outcome.kind is PollKind.PENDING:
            self._replan_pending()
            return outcome
        entry.plain_next, entry.not_before = True, None
        return PollOutcome(kind=PollKind.UNAVAILABLE, message="the poll was not held")

    async def _obey(self, entry: Entry, outcome: PollOutcome, asked_at: datetime) -> None:
        pause = await self._pacing.obey(entry.task.task_id, outcome, asked_at)
        if pause is not None:
            entry.not_before = self._clock.now() + pause
            self.unanswered += 1
            self.complaint = f"the vendor refuses to tell of task {entry.task.task_id}: {outcome.kind}"

    def _measure(self, entry: Entry, outcome: PollOutcome, asked_at: datetime) -> None:
        """Note how far the task is from its deadline, and until when it is known to have run at the vendor.

        Where this is the first look at a task that has ended, that was when another invocation looked, as far
        as is known.
        """
        taken_at = entry.task.age_since
        self.deadline_used = max(self.deadline_used, (asked_at - taken_at) / self._max_task_age)
        if outcome.kind is PollKind.PENDING:
            entry.ran_until = max(asked_at, entry.ran_until or asked_at)
        elif entry.ran_until is None:
            entry.ran_until = self._started if entry.webhook else max(taken_at, self._standing.looked_until)

    async def _polled(self, entry: Entry, task: Task, outcome: PollOutcome, *, asked_at: datetime) -> Task:
        taken_at = task.age_since
        match outcome.kind:
            case PollKind.SUCCEEDED:
                if task.submitted_at is not None:  # else it is not known since when it ran
                    await self._pacing.learn_time(task, self._clock.now())
                return await self._endings.succeeded(task, outcome, ran_until=entry.ran_until)
            case PollKind.FAILED:
                was_canceled = task.canceled_at is not None and outcome.canceled
                return await self._endings.failed(
                    task,
                    ErrorCode.CANCELED if was_canceled else ErrorCode.UPSTREAM_FAILED,
                    outcome.message,
                    raw=outcome.data.get("raw"),
                    size=outcome.size,
                    ran_until=entry.ran_until,
                )
            case PollKind.PENDING if asked_at >= taken_at + self._max_task_age:
                return await self._endings.failed(
                    task, ErrorCode.EXPIRED, "the task was not done by its deadline"
                )
            case PollKind.PENDING if task.missing_since is not None:
                return await self._ports.tasks.swap(task, task.found())
            case PollKind.MISSING if task.canceled_at is not None or asked_at >= taken_at + LOST_AGE:
                return await self._missing(task, asked_at)
            case _:
                return task

    async def _missing(self, task: Task, asked_at: datetime) -> Task:
        """Believe the vendor's 404 only the second time, a while later.

        A task that its vendor was asked to cancel is canceled then, any other one lost.
        """
        if task.missing_since is None:
            return await self._ports.tasks.swap(task, task.missing(asked_at))
        if asked_at < task.missing_since + LOST_CONFIRMATION:
            return task
        error, why = ErrorCode.LOST, "the vendor does not know the task any more"
        if task.canceled_at is not None:
            error, why = ErrorCode.CANCELED, "canceled at the vendor, which does not know it any more"
        return await self._endings.failed(task, error, why)

    def _is_unpaid(self, task: Task) -> bool:
        """Whether this invocation has claimed a task to pay for it, and has not, for it did not learn so."""
        return task.state is State.SUBMITTING and self._wrote_unanswered(task)

    async def _requeue(self, task: Task) -> Task:
        """Give a task back to the queue."""
        unpaid = SubmitOutcome(submission=Submission.NOT_SENT, message="the claim was not answered")
        return await self._ports.tasks.swap(
            task, task.submitted(unpaid, self._clock.now(), retention=self._rules.retention)
        )

    async def _mark_unknown(self, task: Task) -> Task:
        """Take over a submit whose process has died before it could store the vendor's answer."""
        self._steps["marked_unknown"] += 1
        unknown = await self._ports.tasks.swap(task, task.mark_unknown())
        self._ports.reporter.report(
            "task.submitted", task_id=task.task_id, caller=task.caller, outcome=Submission.AMBIGUOUS
        )
        return unknown

    def _next_look(self, task: Task, *, after: datetime) -> datetime | None:
        """Tell when a submit whose outcome is unknown is looked for; None where the vendor has no list."""
        if self._pacing.vendor.listing is None or task.submitted_at is None:
            return None
        paused_until = self._pacing.admission.polls_paused_until
        return adoption.next_look(task.submitted_at, after=after, paused_until=paused_until)

    def free_at(self, entry: Entry, asked_from: datetime) -> datetime:
        """Tell when a task's next step may start, where the vendor may be asked from then on."""
        if not self.asks_vendor(entry):
            return entry.due
        at = max(entry.due, asked_from)
        return min(at, entry.task.unknown_until) if entry.task.state is State.UNKNOWN else at

    def asks_vendor(self, entry: Entry) -> bool:
        """Whether the next step of a task asks the vendor."""
        if self.is_looked_for(entry.task):
            return True
        watched = entry.task.state is State.WATCHED and entry.known_outcome is None
        return watched and not self.past_grace(entry.task)  # one that is watched is claimed by no invocation

    def is_asked_about(self, task: Task) -> bool:
        """Whether the vendor tells, sooner or later, of a task in this state."""
        return task.state is State.WATCHED or self.is_looked_for(task)

    def is_looked_for(self, task: Task) -> bool:
        """Whether the next step of a task is a look at the vendor's list."""
        is_unknown = task.state is State.UNKNOWN and self._clock.now() < adoption.looked_for_until(task)
        return is_unknown and task.submitted_at is not None and self._pacing.vendor.listing is not None

    async def _look_for(self, task: Task) -> Task:
        """Look for a submit whose outcome is unknown in the vendor's list, and adopt what it made."""
        self._steps["looked_for"] += 1
        asked_at = self._clock.now()
        upstream_task_id = await adoption.found(
            task,
            api=self._pacing.api,
            tasks=self._ports.tasks,
            work=self._ports.work,
            obey=lambda said: self._pacing.obey(task.task_id, said, asked_at),
        )
        if upstream_task_id is None:
            return task
        recovered = await self._ports.tasks.swap(task, task.recovered(upstream_task_id, self._clock.now()))
        self._ports.reporter.report("task.recovered", task_id=task.task_id, caller=task.caller)
        return recovered

    async def _look_again(self, task: Task) -> Task:
        """Read how far the invocation that holds the claim has come; it may be done before the claim ends.

        Raises StaleTaskError where the task is gone.
        """
        current = await self._ports.tasks.get(task.task_id)
        if current is None:
            raise StaleTaskError(None)
        return current

    async def _unchanged(self, task: Task) -> Task:
        """Make sure that a request to the vendor is not wasted. Raises StaleTaskError."""
        current = await self._look_again(task)
        if current.nonce != task.nonce:
            raise StaleTaskError(current)
        return current

    def past_grace(self, task: Task) -> bool:
        """Whether a task is to end without asking the vendor once more."""
        return self._clock.now() >= task.age_since + self._max_task_age + EXPIRY_GRACE
