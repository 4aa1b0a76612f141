"""What the vendor's answers to submits mean for the next one."""

from datetime import datetime

from taskhook.core import rate_limit
from taskhook.core.admission import PROBE, AdmissionState, Kinds, kinds_of
from taskhook.core.record import Submission, SubmitOutcome
from taskhook.core.task import Task
from taskhook.core.vendor import KEY_PAUSE
from taskhook.poller.pacing import Pacing
from taskhook.poller.watch import Watch
from taskhook.poller.work import PAUSE_SHORT, PollerPorts
from taskhook.submit.payment import report_pause


class SubmitAnswers:
    """Says whether one more task may be risked, and learns from what becomes of it."""

    def __init__(self, ports: PollerPorts, pacing: Pacing, watch: Watch, *, started: datetime) -> None:
        self._ports = ports
        self._clock = ports.clock
        self._pacing = pacing
        self._vendor = pacing.vendor.name
        self._watch = watch
        self.blocked_until = started
        self.budget_until = started  # no request is left before
        self._answered_until = started  # it has answered what is free: the next request may be a task's
        self.refused_now = ""  # the kind of which the vendor has just refused a task
        self._slot_was_free = False  # for that task, as far as was known

    async def may_submit(self) -> bool:
        """Tell whether a request is left for a task, and after trouble that the vendor answers at all."""
        return await self._vendor_answers() and await self._request_is_left()

    async def learn(self, task: Task, outcome: SubmitOutcome, running: int, *, served: str) -> bool:
        """Remember what the answer says of the vendor; False where the queue has to wait."""
        was_in_trouble = self._pacing.admission.in_trouble
        goes_on = await self._learn_of(task, outcome, running, served=served)
        if outcome.submission is not Submission.BUSY and outcome.retry_after is not None:
            await self._pacing.store(self._pacing.admission.pause(self._clock.now() + outcome.retry_after))
        if outcome.retry_after:  # of no time is no pause
            self._report_pause("throttled")
        if was_in_trouble and not self._pacing.admission.in_trouble:
            self._ports.reporter.report("vendor.resumed", vendor=self._vendor)
        return goes_on

    async def _learn_of(self, task: Task, outcome: SubmitOutcome, running: int, *, served: str) -> bool:
        now, admission, kinds = self._clock.now(), self._pacing.admission, kinds_of(task.caller, task.model)
        was_refused, self.refused_now = self.refused_now, ""
        match outcome.submission:
            case Submission.BUSY:
                await self._pacing.store(
                    admission.refused(running, now, kinds=kinds, retry_after=outcome.retry_after)
                )
                if not was_refused and self._tells_kinds_apart(admission, kinds, running):
                    by_model, by_caller = kinds
                    self._slot_was_free = admission.slots is not None
                    self.refused_now = by_caller if self._slot_was_free else by_model
                return self.refused_now != ""
            case Submission.REFUSED_HERE:
                await self._pause_for_key(admission.answered(kinds))
            case Submission.NOT_SENT:
                self.blocked_until = now + PAUSE_SHORT
            case Submission.AMBIGUOUS:
                await self._pacing.store(admission.outcome_unknown(now, kinds=kinds, served=served))
                if self._pacing.admission.in_trouble:
                    self._report_pause("no_answer")
                return not self._pacing.admission.in_trouble
            case Submission.TAKEN:
                known = admission.taken(running, kinds=kinds, served=served)
                is_suspect_again = known.suspect == admission.suspect or self._slot_was_free
                if was_refused and known.suspect and is_suspect_again:
                    known = known.pause_kind(known.suspect, now)
                await self._pacing.store(known)
                return True
            case Submission.REFUSED:
                await self._pacing.store(admission.answered(kinds))
                return True
        return False

    def _tells_kinds_apart(self, admission: AdmissionState, kinds: Kinds, running: int) -> bool:
        """Whether a task of another kind is tried right after one of these kinds was refused.

        Not where only one slot more was tried for: the next such try, of another kind, tells as much. Always
        where a slot should have been free; else once a probe's time, and again where this kind is suspect,
        which one that was taken may have made it.
        """
        if admission.slots is not None:
            return not admission.is_full(running)
        was_long_ago = admission.probed_at is None or self._clock.now() >= admission.probed_at + PROBE
        return was_long_ago or admission.suspect in kinds

    async def _request_is_left(self) -> bool:
        now = self._clock.now()
        limit = rate_limit.window_limit(self._pacing.requests_per_minute)
        if await self._ports.budget.take_tokens(self._vendor, 1, window=rate_limit.window(now), limit=limit):
            return True
        self.budget_until = rate_limit.window_end(now)
        return False

    async def _vendor_answers(self) -> bool:
        """Make sure, after trouble, that the vendor answers a free request before a task is risked."""
        if not self._pacing.admission.in_trouble or self._clock.now() < self._answered_until:
            return True
        if not await self._request_is_left():
            return False
        said = await self._pacing.api.balance()
        if said.answered or await self._poll_is_answered():
            # Where a window has one request, it is the next one's.
            self._answered_until = self._clock.now() + 2 * rate_limit.WINDOW
            return True
        if said.no_key:
            await self._pause_for_key(self._pacing.admission)
        else:
            await self._pacing.store(self._pacing.admission.unanswered(self._clock.now()))
            self._report_pause("no_answer")
        return False

    async def _poll_is_answered(self) -> bool:
        """Ask about a task that runs: what else is free may be in a trouble of its own, for long."""
        running = self._watch.a_running_task()
        if running is None or not await self._request_is_left():
            return False
        said = await self._pacing.api.poll(running.upstream_task_id or "", operation=running.operation)
        return said.kind.known

    async def _pause_for_key(self, admission: AdmissionState) -> None:
        """Leave the vendor alone for a while, and let its alarm ring."""
        await self._pacing.store(admission.pause(self._clock.now() + KEY_PAUSE))
        self._report_pause("key_refused")

    def _report_pause(self, reason: str) -> None:
        """Report for how long nothing is submitted."""
        until, reporter = self._pacing.admission.paused_until, self._ports.reporter
        report_pause(self._vendor, reason, until, clock=self._clock, reporter=reporter)
