"""When a vendor is asked next: by age, held, or rarely.

Within its requests, and not while it wants to be left alone.
"""

import contextlib
import heapq
from collections.abc import Iterable
from datetime import datetime, timedelta

from taskhook.core import rate_limit, schedule
from taskhook.core.admission import AdmissionState
from taskhook.core.errors import StoreUnavailableError
from taskhook.core.ports import HOLD_TIME, HOLDS_AT_ONCE, POLLS_AT_ONCE, TaskApi
from taskhook.core.rate_limit import Allowance
from taskhook.core.task import LOST_CONFIRMATION, Task
from taskhook.core.vendor import PollKind, PollOutcome
from taskhook.poller.aside import Place
from taskhook.poller.long_poll import HELD_PROOF, HELD_SIGN
from taskhook.poller.work import PollerPorts, Rules, Standing
from taskhook.submit.payment import report_pause

PROBES = 2  # requests after a pause, until one is answered without another: as many as a look takes
PROBED_FOR = timedelta(minutes=2)  # after a pause
LEARNT_SHARE = 0.8  # of what tasks of a model took lately: by then one is polled first
PAUSE_TRIES = 3  # to store a pause beside the writes of others
MOST_ALONE = 3  # tasks in a row whose polls are refused, for it to be the trouble of each of them alone
LATE_GAPS = 4  # of its own; a task that has waited longer goes before all that have not


class Pacing:
    """What one invocation knows of one vendor."""

    def __init__(self, rules: Rules, ports: PollerPorts, api: TaskApi, *, standing: Standing) -> None:
        self._rules = rules
        self._ports = ports
        self.api = api
        self.vendor = api.vendor
        self._standing = standing
        self._clock = ports.clock
        self._support = ports.long_poll_support
        self.requests_per_minute = rules.requests_to(api.vendor)
        limit = rate_limit.window_limit(self.requests_per_minute)
        self.allowance = Allowance(
            ports.budget, api.vendor.name, self.requests_per_minute, reserve=rate_limit.reserve(limit)
        )
        self.admission = AdmissionState()  # as it was last read
        self.probing: dict[str, datetime] = {}  # by model: since when a poll tells whether the vendor holds
        self._plain: set[str] = set()  # polls under way that are not held, by task
        # Polls that the vendor was asked to hold, by task, with the model, and since when.
        self.held: dict[str, tuple[str, datetime]] = {}
        self._submits_paused_until: datetime | None = None  # pauses that this invocation has learnt of
        self._polls_paused_until: datetime | None = None
        self._pause_over: datetime | None = None  # the end of a pause that an answer has shown to be the last
        self._refused_in_a_row = 0  # polls

    # --- when a task is polled next ---------------------------------------------------------------

    def next_poll(
        self, task: Task, *, after: datetime, answered: bool = True, plain: bool = False
    ) -> datetime:
        """Tell when a task is polled next: by age, rarely where webhooks come, at once where polls are held.

        A poll that was not `answered` may have been the one that mattered, so no webhook is waited for after
        it. `plain` says that a poll of this task is not held. A task that the vendor did not know is asked
        about again as soon as a second such answer would be believed.
        """
        due = self._next_poll(task, after=after, answered=answered, plain=plain)
        confirmed = after if task.missing_since is None else task.missing_since + LOST_CONFIRMATION
        return min(due, confirmed) if after < confirmed else due

    def _next_poll(self, task: Task, *, after: datetime, answered: bool, plain: bool) -> datetime:
        taken_at = task.age_since
        first = self._first_poll(task)
        holding = self.holding(task, plain=plain)
        if holding and self._hold_is_free():
            return max(after, taken_at + first)
        if (
            self._webhook_comes(task)
            and not holding
            and answered
            and not self._hold_is_probed(task, plain=plain)
        ):
            return taken_at + schedule.next_rare_poll(after - taken_at)
        return taken_at + schedule.next_poll(after - taken_at, first=first)

    def _first_poll(self, task: Task) -> timedelta:
        """Tell at what age a task is polled first.

        A task whose model is not described is polled a little before such tasks have lately ended.
        """
        if self._rules.immediate:
            return timedelta(0)
        took = self.admission.took.get(task.model)
        if took is None or task.model in self.vendor.models:
            return self.vendor.first_poll(task.model)
        return max(schedule.MIN_GAP, timedelta(seconds=int(took * LEARNT_SHARE)))

    async def learn_time(self, task: Task, ran_until: datetime) -> None:
        """Learn how long a task took whose model is not described."""
        if task.model and task.model not in self.vendor.models:
            await self.store(self.admission.task_took(task.model, ran_until - task.age_since))

    def webhook_is_due(self, task: Task, *, plain: bool) -> bool:
        """Tell whether a vendor webhook should tell of the task's end."""
        return self._webhook_comes(task) and not self.holding(task, plain=plain)

    def _webhook_comes(self, task: Task) -> bool:
        """Tell whether a vendor webhook would tell of a task's end.

        None comes of a task that was submitted elsewhere, and none is acted on while the leader's held polls
        bring the same news.
        """
        view, now = self._standing.view, self._clock.now()
        return (
            task.submitted_at is not None
            and self.vendor.webhooks
            and view.webhooks_come(now)
            and not view.holds(task.model, now)
        )

    async def doubt_webhooks(self) -> None:
        """Trust vendor webhooks no longer, until the next true one: a task has ended without one."""
        self._standing.view = self._standing.view.model_copy(update={"webhook_at": None})
        with contextlib.suppress(StoreUnavailableError):
            await self._ports.leadership.webhook_came(None)

    # --- held polls -------------------------------------------------------------------------------

    def holding(self, task: Task, *, plain: bool) -> bool:
        """Whether a poll of this task would be held, as far as is known."""
        known = self._support.holding(task.model, self._clock.now())
        return bool(known) and self._holds_polls() and not plain

    def may_hold(self, task: Task, *, plain: bool) -> bool:
        """Whether the vendor is asked to hold the next poll of this task, for it does, or to find out."""
        if plain or not (self._holds_polls() and self._hold_is_free()):
            return False
        known = self._support.holding(task.model, self._clock.now())
        return known if known is not None else task.model not in self.probing

    def begin(self, task: Task, *, hold: bool, requests: int = 1) -> None:
        """Count a poll that starts, and spend its requests."""
        for _ in range(requests):
            self.allowance.spend()
        if hold:
            self.held[task.task_id] = task.model, self._clock.now()
            self.probing.setdefault(task.model, self._clock.now())
        else:
            self._plain.add(task.task_id)

    def end(self, task: Task, *, hold: bool) -> None:
        """Count a poll that is over, once."""
        if not hold:
            self._plain.discard(task.task_id)
        elif self.held.pop(task.task_id, None) is not None:
            self.probing.pop(task.model, None)

    def free_slots(self) -> int:
        """Tell how many polls may start beside those under way."""
        if self._refused_in_a_row or self.is_probing(self._clock.now()):
            return max(PROBES - len(self._plain), 0)
        holds = HOLDS_AT_ONCE - len(self.held) if self._holds_polls() else 0
        return holds + POLLS_AT_ONCE - len(self._plain)

    def _holds_polls(self) -> bool:
        return self.vendor.long_poll and self._rules.long_poll and self._standing.leads

    def _hold_is_free(self) -> bool:
        return len(self.held) < HOLDS_AT_ONCE

    def plain_is_free(self) -> bool:
        """Whether one more poll that is not held may be under way."""
        return len(self._plain) < POLLS_AT_ONCE

    def _hold_is_probed(self, task: Task, *, plain: bool) -> bool:
        """Tell whether the next poll finds out if the vendor holds it: that is cheaper than a webhook."""
        return self._support.holding(task.model, self._clock.now()) is None and self.may_hold(
            task, plain=plain
        )

    def believe_held_polls(self, now: datetime) -> bool:
        """Take a poll without an answer for held, before it is over; True where that is news."""
        news = False
        for model, began in self.probing.items():
            if now >= began + HELD_SIGN and self._support.holding(model, now) is None:
                self._support.found(model, now, holds=True)
                news = True
        return news

    def learn_hold(self, task: Task, outcome: PollOutcome, took: timedelta) -> bool:
        """Learn from a poll that the vendor was asked to hold; True where it was not held.

        One task that is refused says nothing of the others while a poll of the same model is held for longer,
        or was held lately.
        """
        now = self._clock.now()
        if outcome.kind.known and took >= HELD_PROOF:
            self._support.held(task.model, now, since=now - took)
            return False
        if outcome.kind.ended:
            return False  # the task has ended, which a vendor that holds tells at once too
        held_longer = any(model == task.model and now - since > took for model, since in self.held.values())
        if not held_longer and not self._support.held_since(task.model, now - HOLD_TIME):
            if outcome.kind is PollKind.PENDING:
                self._support.found(task.model, now, holds=False)
            else:
                self._support.refused(task.model, now)
        return True

    def learn_belied(self, task: Task) -> None:
        """Learn that a task has ended of which a held poll has just said that it runs."""
        self._support.belied(task.model, self._clock.now())

    # --- pauses -----------------------------------------------------------------------------------

    def paused_until(self, now: datetime) -> datetime:
        """Tell from when on the vendor may be asked; `now` where it may be."""
        return max(now, self.admission.polls_paused_until or now)

    def is_probing(self, now: datetime) -> bool:
        """Whether a pause is just over, and no answer has shown yet that no other one follows.

        Until then the vendor gets PROBES requests at a time, none of which it is asked to hold.
        """
        end = self.admission.polls_paused_until
        return end is not None and end != self._pause_over and end <= now < end + PROBED_FOR

    async def obey(self, task_id: str, outcome: PollOutcome, asked_at: datetime) -> timedelta | None:
        """Leave the vendor alone for as long as it asks, also in the invocations that follow.

        Where it answers about other tasks after such a pause, and refuses this one alone again, only this one
        is left alone: give for how long. Where it refuses more in a row, it is left alone as a whole: it has
        had more requests than it wants, and it is chance which tasks are refused.
        """
        now, pause = self._clock.now(), outcome.pause
        if pause is None:
            if self.is_probing(now):
                self._pause_over = self.admission.polls_paused_until
            self._refused_in_a_row = 0
            if outcome.kind is not PollKind.UNAVAILABLE:  # which says nothing, of this task or others
                await self.store(self.admission.poll_answered(task_id, asked_at))
            return None
        self._refused_in_a_row += 1
        if self._refused_in_a_row <= MOST_ALONE and self.admission.refused_polls.get(task_id):
            return pause
        refused = self.admission.poll_refused(task_id, now + pause)
        if now + pause <= self.paused_until(now):
            await self.store(refused)  # the vendor is left alone for as long already
            return None
        reason, reporter = outcome.pause_reason, self._ports.reporter
        report_pause(self.vendor.name, reason, now + pause, clock=self._clock, reporter=reporter)
        await self.store(refused)
        return None

    async def read_admission(self) -> None:
        """Read what is known of the way to the vendor. Raises StoreUnavailableError."""
        self.admission = await self._ports.admission.admission(self.vendor.name)
        await self._tell_own_pauses()

    async def store(self, admission: AdmissionState) -> None:
        """Store what was learnt of the way to the vendor, where it is news; obey it even if that fails."""
        if admission == self.admission:
            return
        if admission.paused_until != self.admission.paused_until:
            self._submits_paused_until = admission.paused_until
        if admission.polls_paused_until != self.admission.polls_paused_until:
            self._polls_paused_until = admission.polls_paused_until
        await self._write(admission)
        await self._tell_own_pauses()

    async def _tell_own_pauses(self) -> None:
        """Keep the pauses that this invocation has learnt; store them where another's write came first."""
        for _ in range(PAUSE_TRIES):
            if (paused := self._with_own_pauses()) == self.admission:
                return
            if not await self._write(paused):
                break  # it is obeyed here, and stored with the next look
        self.admission = self._with_own_pauses()

    def _with_own_pauses(self) -> AdmissionState:
        now, admission = self._clock.now(), self.admission
        if self._submits_paused_until is not None and self._submits_paused_until > now:
            admission = admission.pause(self._submits_paused_until)
        if self._polls_paused_until is not None and self._polls_paused_until > now:
            admission = admission.pause_polls(self._polls_paused_until)
        return admission

    async def _write(self, admission: AdmissionState) -> bool:
        """Write it in place of what was read last; False where the table does not answer."""
        old, self.admission = self.admission, admission
        try:
            self.admission = await self._ports.admission.set_admission(self.vendor.name, old, admission)
        except StoreUnavailableError:
            return False
        return True

    def most_urgent(self, waiting: Iterable[Place], count: int, now: datetime) -> list[Place]:
        """Choose up to `count` tasks whose poll is due.

        After a pause, one that was refused before comes after the others: it says nothing of them.
        """
        if self.is_probing(now) and (refused := self.admission.refused_polls):
            due = list(waiting)
            waiting = [place for place in due if place[1] not in refused] or due
        return most_urgent(waiting, count, now.timestamp())

    # --- requests ---------------------------------------------------------------------------------

    async def room(self, wanted: int, *, expected: int) -> int:
        """Tell how many of `wanted` requests may be made now.

        Where the table does not answer, no more are taken in this window.
        """
        try:
            return await self.allowance.room(wanted, self._clock.now(), expected=expected)
        except StoreUnavailableError:
            self.allowance.empty = True
            return min(wanted, self.allowance.left)


def most_urgent(waiting: Iterable[Place], count: int, now: float) -> list[Place]:
    """Choose up to `count` tasks whose poll is due."""
    return heapq.nsmallest(count, waiting, key=lambda place: urgency(place[0], place[2], now))


def urgency(due: float, accepted: float, now: float) -> tuple[bool, float]:
    """Order tasks whose poll is due, the smallest first: by lateness relative to the task's own gap.

    A task that has waited four of its own gaps goes before all that have not, and the longest wait first, so
    that its turn comes before the others are asked twice. All times are Unix seconds.
    """
    late = now - due
    gap = schedule.gap(timedelta(seconds=max(due - accepted, 0))).total_seconds()
    return (False, -late) if late > LATE_GAPS * gap else (True, -late / gap)
