"""Tasks that wait for one vendor to take them.

Callers in turn, within its slots, and not while it is in trouble.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from taskhook.core.admission import kinds_of
from taskhook.core.errors import StaleTaskError, StoreUnavailableError
from taskhook.core.record import ErrorCode, State
from taskhook.core.task import Task
from taskhook.poller.pacing import Pacing
from taskhook.poller.submit_answers import SubmitAnswers
from taskhook.poller.watch import Watch
from taskhook.poller.work import PAUSE_LONG, SCAN, PollerPorts, Rules
from taskhook.submit.payment import PaymentPorts, pay

PAY_CLAIM = timedelta(seconds=60)
PAY_TIME = timedelta(seconds=13)
KEY = "the queue of "  # and its vendor: of the one entry, for tasks are submitted one after the other


class Queue:
    """The kind of work of a vendor's queued tasks; of them nothing is kept but whether there are any."""

    eager = False

    def __init__(
        self,
        *,
        rules: Rules,
        ports: PollerPorts,
        pacing: Pacing,
        watch: Watch,
        closed: Callable[[], bool],
        track: Callable[[Task], None],
        steps: Counter[str],
        started: datetime,
    ) -> None:
        self._rules = rules
        self._ports = ports
        self._clock = ports.clock
        self._pacing = pacing
        self._vendor = pacing.vendor.name
        self._key = KEY + self._vendor
        self._watch = watch
        self._closed = closed
        self._track = track
        self._steps = steps
        self._waits = False  # tasks are queued
        self._started = started
        self._has_looked = False  # once also while nothing may be submitted: what waited too long ends
        self._answers = SubmitAnswers(ports, pacing, watch, started=started)
        # Tasks that a wake or a step has named; the index may show them late.
        self._named: dict[str, None] = {}
        self._skipped: dict[str, datetime] = {}  # heads that broke their step, until when
        self._only_skipped_until = started  # as far as is known, nothing else is queued
        self._payment = PaymentPorts(
            tasks=ports.tasks,
            vendors=ports.vendors,
            webhook_urls=ports.webhook_urls,
            clock=ports.clock,
            reporter=ports.reporter,
            retention=rules.retention,
        )
        self.longest_wait: timedelta | None = None  # of a task that could not be served

    async def find(self) -> None:
        """Look whether any are queued."""
        self._waits = self._waits or await self._ports.work.queue_waits(self._vendor)
        if self._waits:
            self._watch.index.queue_seen()
            await self._pacing.read_admission()

    def takes(self, task: Task) -> bool:
        """Whether it is queued."""
        return task.state is State.QUEUED and task.vendor == self._vendor

    def keep(self, task: Task) -> bool:
        """Remember that some are queued."""
        self._waits = True
        self._named[task.task_id] = None
        return False

    def drop(self, task_id: str) -> None:
        """Have nothing to drop."""

    def knows(self, _task_id: str) -> bool:
        """Know none by name."""
        return False

    def postpone(self, _task_id: str, pause: timedelta) -> None:
        """Try again after a pause."""
        self._answers.blocked_until = self._clock.now() + pause

    def leave_to_leader(self) -> None:
        """Leave the queue to the leader."""
        self._waits = False

    def next_at(self) -> datetime | None:
        """Tell when the next queued task may be submitted."""
        if not self._waits:
            return None
        now = self._clock.now()
        due = max(self._due(now), self._only_skipped_until)
        # For want of a request it is waited, not left to the next invocation.
        return due if due > now else self._started

    def _due(self, now: datetime) -> datetime:
        return max(self._answers.blocked_until, self._pacing.admission.next_try(self._watch.running(), now))

    async def admit(self, due_by: datetime) -> Iterable[str]:
        """Start when there is a way to the vendor, and once whether there is one or not."""
        now = self._clock.now()
        is_due = max(self._due(now), self._answers.budget_until) <= max(now, due_by) or not self._has_looked
        if not (self._waits and is_due):
            return []
        self._has_looked = True
        return [self._key]

    async def step(self, _task_id: str) -> Task | None:
        """Submit queued tasks, callers in turn, until the vendor refuses or none is left.

        While nothing may be submitted, end only what waited too long. Raises StoreUnavailableError.
        """
        await self._pacing.read_admission()
        is_paused = self._due(self._clock.now()) > self._clock.now()
        self._only_skipped_until = self._started
        self._answers.refused_now, found = "", False
        while heads := await self._heads():
            found, served = True, False
            # They end whatever the vendor says to the others.
            over_age = [head for head in heads if self._is_over_age(head)]
            for head in over_age or self._in_turn(heads, is_paused=is_paused):
                try:
                    if self._closed() or not await self._serve(head, alone=len(heads) == 1):
                        self._note_wait(heads)
                        return None
                    served = True
                    if self._answers.refused_now:  # others may go before the rest of these
                        break
                except StaleTaskError:  # another invocation has it, or the index shows it late
                    continue
                except StoreUnavailableError:
                    raise
                # One poisoned task keeps no other caller's waiting.
                except Exception as error:  # noqa: BLE001
                    self._ports.reporter.report(
                        "task.crashed", task_id=head.task_id, error=type(error).__name__
                    )
                    self._skipped[head.task_id] = self._clock.now() + PAUSE_LONG
            if not served:
                self._answers.blocked_until = self._clock.now() + SCAN
                return None
        await self._look_once_more(found=found)
        return None

    async def _look_once_more(self, *, found: bool) -> None:
        """Let later submits ask the vendor themselves, if nothing is queued any more."""
        if self._skipped:  # what others queue meanwhile is found at the next look
            self._answers.blocked_until = max(self._answers.blocked_until, self._clock.now() + SCAN)
            self._only_skipped_until = min(self._skipped.values())
            return
        # It cannot be read: the next tick looks again.
        if not found and await self._ports.work.queue_waits(self._vendor):
            self._answers.blocked_until = self._clock.now() + PAUSE_LONG
        await self._pacing.read_admission()  # a submit may have set `waiting` since
        await self._pacing.store(self._pacing.admission.model_copy(update={"waiting": False}))
        self._waits = self._pacing.admission.waiting  # set again in this very moment: look again

    def _in_turn(self, heads: list[Task], *, is_paused: bool) -> list[Task]:
        """Order the callers' oldest tasks; those that may not be submitted have no turn, and wait."""
        admission, running = self._pacing.admission, self._watch.running()
        ready = [] if is_paused else admission.in_turn(heads, running, self._clock.now())
        if not ready:
            self._note_wait(heads)
        return ready

    def _note_wait(self, heads: list[Task]) -> None:
        """Note since when the oldest of the callers' oldest tasks waits."""
        waited = self._clock.now() - min(head.accepted_at for head in heads)
        self.longest_wait = max(waited, self.longest_wait or waited)

    async def _heads(self) -> list[Task]:
        """Give each caller's oldest task, or those that were named and that the index does not show yet."""
        heads = await self._ports.work.queue_heads(self._vendor)
        if not heads and self._named:
            named, self._named = self._named, {}
            read = [await self._ports.tasks.get(task_id) for task_id in named]
            heads = [task for task in read if task is not None and task.state is State.QUEUED]
        now = self._clock.now()
        self._skipped = {task_id: until for task_id, until in self._skipped.items() if now < until}
        return [await self._passing(head) for head in heads if head.task_id not in self._skipped]

    async def _passing(self, head: Task) -> Task:
        """Give a caller's oldest task, or one behind it of the model that is held up least."""
        if self._held_up(head) == (False, 0):
            return head
        queued = await self._ports.work.queue_of(self._vendor, head.caller)
        others = [task for task in queued if task.state is State.QUEUED and task.task_id not in self._skipped]
        return min([head, *others], key=self._held_up)

    def _held_up(self, task: Task) -> tuple[bool, int]:
        """Tell whether a task's kind is paused or was just refused, and how far others go before it."""
        kinds, admission = kinds_of(task.caller, task.model), self._pacing.admission
        is_paused = admission.is_paused_for(kinds, self._clock.now())
        is_paused = is_paused or self._answers.refused_now == task.model
        return is_paused, admission.doubts(kinds[:1], self._watch.running())

    def _is_over_age(self, task: Task) -> bool:
        return self._clock.now() >= task.accepted_at + self._rules.max_queue_age

    async def _serve(self, task: Task, *, alone: bool) -> bool:
        """Submit one queued task, or end it where it waited too long; False where the queue has to wait.

        Raises StaleTaskError where the task is not queued any more.
        """
        now = self._clock.now()
        if task.state is not State.QUEUED:
            raise StaleTaskError(task)
        if self._is_over_age(task):
            return await self._expire(task, "waited too long for a free slot at the vendor")
        # Since another caller's turn of just now.
        if self._pacing.admission.is_paused_for(kinds_of(task.caller, task.model), now):
            return True
        if self._due(now) > now and not self._tells_apart(task, now):
            return False
        task = await self._ports.tasks.with_request(task)
        if task.request is None:
            return await self._expire(task, "was kept without a request that can be read")
        if not await self._answers.may_submit():
            return False
        now = self._clock.now()
        claimed = await self._ports.tasks.swap(task, task.claim_submit(now, until=now + PAY_CLAIM))
        running = self._watch.running(besides=task.task_id)
        paid, outcome = await pay(claimed, deadline=now + PAY_TIME, payment=self._payment)
        self._steps["submitted"] += 1
        self._track(paid)
        return await self._answers.learn(task, outcome, running, served="" if alone else task.caller)

    def _tells_apart(self, task: Task, now: datetime) -> bool:
        """Whether a task finds out if only those of the kind are refused that was refused just now."""
        is_other = self._answers.refused_now not in {"", *kinds_of(task.caller, task.model)}
        return is_other and self._answers.blocked_until <= now and not self._pacing.admission.paused(now)

    async def _expire(self, task: Task, why: str) -> bool:
        message = f"the task {why}; it was never paid"
        ended = task.failed(
            ErrorCode.QUEUE_EXPIRED, message, self._clock.now(), retention=self._rules.retention, claim=None
        )
        stored = await self._ports.tasks.swap(task, ended)
        self._ports.reporter.report(
            "task.ended", task_id=task.task_id, caller=task.caller, state=stored.state, error=stored.error
        )
        self._track(stored)  # its delivery keeps no other task in the queue waiting
        return True
