"""Accept a task, and the one code path that pays for it."""

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taskhook import budget
from taskhook.budget import Gate
from taskhook.models import MODELS, Judgement, MediaRule, Model, Verdict
from taskhook.ports import (
    LEAST_POST_TIME,
    Admit,
    Budget,
    Caller,
    Clock,
    Gates,
    Hooks,
    Lease,
    MediaProbe,
    Reporter,
    StaleTaskError,
    StoreUnavailableError,
    TaskApi,
    TaskExistsError,
    TaskStore,
    Wake,
    WorkIndex,
)
from taskhook.targets import ForbiddenTargetError, TargetPolicy
from taskhook.task import CallbackState, Json, State, Submission, SubmitOutcome, Task, minified

ANSWER_TIME = timedelta(seconds=13)  # by then the POST is over; the vendor's own client gives up at 15 s
ANSWER_DUE = timedelta(seconds=13.8)  # by then there is an answer, whatever hangs
SETTLE_TIME = timedelta(seconds=8)  # past the end of a POST's time, for storing what came of it, where no caller waits
PROBE_TIME = timedelta(seconds=3)  # for all media of a request together, out of the time that the POST does not need
REPEAT_WAIT = timedelta(seconds=8)  # how long a repeat waits for the first answer
REPEATED_WITHIN = timedelta(minutes=2)  # how long after a request without a key its client may say that it repeats it
_REPEAT_STEP = timedelta(seconds=0.25)
_STORE_TIME = timedelta(seconds=0.5)  # for what lies between the probes and the POST
STORE_TRY = timedelta(seconds=2.5)  # for storing an outcome once
STORE_TRY_LEAST = timedelta(seconds=0.5)  # where time is over already
_STORE_STEP = timedelta(seconds=0.5)


class RejectedError(Exception):
    """The request is not acceptable: an HTTP status and a message that names the field. Nothing was stored."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


class _OwnFields(BaseModel):
    """What a submit may hold beside the model's own fields."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    callback_url: str | None = None
    reference: str | None = Field(default=None, max_length=200)


@dataclass(frozen=True)
class Order:
    """A valid submit request: what the vendor gets, where the result goes, and under which id."""

    task_id: str
    keyed: bool  # the id is an earlier request's too: it follows from an idempotency key, or is a repeat's
    model: str
    request: str
    media: tuple[tuple[MediaRule, str], ...]  # what is to be looked at, and where it is
    fingerprint: str
    callback_url: str | None
    reference: str | None
    retry_count: int | None = None  # how often its client has repeated it already, where it counts that

    @classmethod
    def read(
        cls,
        slug: str,
        body: Json,
        *,
        caller: Caller,
        targets: TargetPolicy,
        webhook_url: str | None,
        idempotency_key: str | None,
        retry_count: str | None = None,
    ) -> Self:
        """Validate a submit; the last three are `X-Webhook-URL`, `Idempotency-Key`, `X-Stainless-Retry-Count`.

        Raises RejectedError.
        """
        model = MODELS.get(slug)
        if model is None:
            raise RejectedError(404, f"Resource not found: model '{slug}' is not known here; known are {', '.join(sorted(MODELS))}")
        if idempotency_key is not None and not (0 < len(idempotency_key) <= 255 and idempotency_key.isprintable()):  # noqa: PLR2004  # the contract's number
            raise RejectedError(400, "Invalid parameters: header 'Idempotency-Key' must be 1 to 255 printable characters")
        try:
            own = _OwnFields.model_validate(body)
            fields = model.request.model_validate(
                {name: value for name, value in body.items() if name not in _OwnFields.model_fields}
            )
        except ValidationError as error:
            raise RejectedError(400, _explain(error, model)) from error
        if webhook_url is not None and own.callback_url is not None and webhook_url != own.callback_url:
            raise RejectedError(400, "Invalid parameters: parameter 'callback_url' and header 'X-Webhook-URL' differ; give one")
        callback_url = own.callback_url if own.callback_url is not None else webhook_url
        if callback_url is not None:
            try:
                targets.check_url(callback_url)
            except ForbiddenTargetError as error:
                raise RejectedError(400, f"Invalid parameters: parameter 'callback_url' {error}") from error
        counted = re.fullmatch("[0-9]{1,3}", retry_count or "")
        identity = [slug, fields.model_dump(mode="json"), callback_url, own.reference]
        return cls(
            task_id=_task_id(caller.caller, idempotency_key),
            keyed=idempotency_key is not None,
            model=slug,
            request=minified(fields.model_dump(mode="json", exclude_unset=True)),
            media=tuple(
                (rule, getattr(fields, rule.field))
                for rule in model.media
                if not rule.unless_off or getattr(fields, rule.unless_off)
            ),
            fingerprint=_digest(json.dumps(identity, sort_keys=True)),
            callback_url=callback_url or caller.callback_url,
            reference=own.reference,
            retry_count=int(counted[0]) if counted else None,
        )

    def task(self, caller: Caller, now: datetime, *, unchecked: dict[str, str], claimed_until: datetime | None) -> Task:
        """Make the task: submitting under a claim, or queued where there is no time to pay before the answer is due."""
        paying = claimed_until is not None
        return Task(
            task_id=self.task_id,
            caller=caller.caller,
            model=self.model,
            request=self.request,
            fingerprint=self.fingerprint,
            callback_url=self.callback_url,
            reference=self.reference,
            unchecked=unchecked,
            accepted_at=now,
            state=State.SUBMITTING if paying else State.QUEUED,
            submitted_at=now if paying else None,
            claimed_until=claimed_until,
            answer_status=None if paying else 200,
            callback=CallbackState.WAITING if self.callback_url else CallbackState.NONE,
        )


@dataclass(frozen=True)
class Answer:
    """What the submitter is told of the task; `message` is empty where all is well."""

    status: int
    message: str
    task: Task


@dataclass(frozen=True)
class Inspector:
    """Who looks at media before a task is taken."""

    probe: Callable[[], MediaProbe]  # made when something is to be looked at, and not before
    enforce: bool  # False: what is wrong passes, and the task says so


@dataclass(frozen=True)
class Payer:
    """What it takes to pay for a task."""

    tasks: TaskStore
    vendor: TaskApi
    hooks: Hooks | None  # None: the vendor is not asked for hints
    clock: Clock
    reporter: Reporter
    retention: timedelta


@dataclass
class Allowance:
    """Requests that this process may make out of the vendor's budget, taken in blocks; kept while it stays warm.

    The first block of a window is what the window before used, so that a busy process pays for one write a window, not for
    one a request; at most an eighth of all, for what is not used lapses. `reserve` of each window is left to others.
    """

    tokens: Budget
    requests_per_minute: int
    reserve: int = 0
    window: int = -1
    left: int = 0
    used: int = 0
    empty: bool = False  # nothing is to be had in this window any more

    async def room(self, wanted: int, now: datetime, *, expected: int = 0) -> int:
        """Tell how many of `wanted` requests may be made now; `expected` are likely to be by the end of the window.

        Raises StoreUnavailableError.
        """
        limit, window, before = budget.window_limit(self.requests_per_minute), budget.window(now), 0
        if window != self.window:
            before = self.used if window == self.window + 1 else 0
            self.window, self.left, self.used, self.empty = window, 0, 0, False
        if wanted > self.left and not self.empty:
            block = max(wanted, expected, min(before, limit // 8)) - self.left
            taken = await self.tokens.take_tokens(block, window=window, limit=limit - self.reserve)
            self.left += taken
            self.empty = taken == 0
        return min(wanted, self.left)

    def spend(self) -> None:
        """Make one of the requests that there is room for."""
        self.left -= 1
        self.used += 1

    async def take(self, now: datetime) -> bool:
        """Tell whether one more request may be made, and count it. Raises StoreUnavailableError."""
        if await self.room(1, now) == 0:
            return False
        self.spend()
        return True


@dataclass(frozen=True)
class Door:
    """What stands between a submit and the vendor."""

    queue: WorkIndex
    gates: Gates
    allowance: Allowance
    lease: Lease
    wake: Wake | None  # None: the tick is enough
    max_queued: int


async def submit(
    order: Order,
    *,
    caller: Caller,
    arrived_at: datetime,
    claim: timedelta,
    inspector: Inspector | None,
    payer: Payer,
    door: Door,
) -> Answer:
    """Store the task, pay for it if there is time and a way, and answer; a repeat of the same key gets the first answer.

    `claim` is how long nobody else may touch the task: longer than this function can live. Raises RejectedError, and
    StoreUnavailableError, which means that nothing was sent to the vendor.
    """
    answer_by = arrived_at + ANSWER_DUE
    settle_by = answer_by - STORE_TRY_LEAST
    try:
        async with _until(settle_by, payer.clock):
            begun = await _begin(
                order, caller=caller, arrived_at=arrived_at, claim=claim, inspector=inspector, payer=payer, door=door
            )
    except TimeoutError as error:  # what was being written may be there; then it is reaped, and never paid for
        raise StoreUnavailableError("no answer in time") from error
    if isinstance(begun, Answer):
        return begun
    (task, gate), outcome = begun, None
    if task.state is State.SUBMITTING:
        deadline = arrived_at + ANSWER_TIME
        task, outcome = await pay(task, deadline=deadline, payer=payer, allowance=door.allowance, settle_by=settle_by)
    with contextlib.suppress(TimeoutError):  # what is left undone, the poller does without being asked
        async with _until(answer_by, payer.clock):
            if outcome is not None:
                await _record_answer(door, gate, outcome, payer.clock.now())
            await _follow_up(task, outcome, door, payer.clock)
    return _answer(task)


async def _begin(
    order: Order,
    *,
    caller: Caller,
    arrived_at: datetime,
    claim: timedelta,
    inspector: Inspector | None,
    payer: Payer,
    door: Door,
) -> tuple[Task, Gate] | Answer:
    """Store the task, submitting or queued, by what the gate says; or give the first answer again where its key is known."""
    deadline, now = arrived_at + ANSWER_TIME, payer.clock.now()
    order = await _recognised(order, caller=caller, arrived_at=arrived_at, payer=payer)
    first = await payer.tasks.get(order.task_id) if order.keyed else None
    gate = Gate()
    if first is None or first.reusable:
        until = deadline - LEAST_POST_TIME - _STORE_TIME
        unchecked = await _inspect(
            order, caller=caller, until=until, inspector=inspector, clock=payer.clock, reporter=payer.reporter
        )
        now = payer.clock.now()
        gate = await door.gates.gate()
        paying = now + LEAST_POST_TIME <= deadline and _is_open(gate, now) and await door.allowance.take(now)
        waiting = 0 if paying else await door.queue.queue_length(caller.caller, at_most=door.max_queued)
        if waiting >= door.max_queued:
            message = f"Too many requests: {door.max_queued} of your tasks are queued already; wait until some have ended"
            raise RejectedError(429, message, retry_after=60)
        wanted = order.task(caller, now, unchecked=unchecked, claimed_until=now + claim if paying else None)
        task, is_new = await _accept(wanted, tasks=payer.tasks)
    else:
        waiting, task, is_new = 0, first, False
    if not is_new:
        if task.fingerprint != order.fingerprint:
            raise RejectedError(422, "Invalid parameters: header 'Idempotency-Key' was used before with a different request")
        return await _first_answer(task, deadline=min(deadline, now + REPEAT_WAIT), tasks=payer.tasks, clock=payer.clock)
    queued = waiting + 1 if task.state is State.QUEUED else None
    payer.reporter.tell("task.accepted", task_id=task.task_id, caller=task.caller, model=task.model, queued=queued)
    return task, gate


async def _follow_up(task: Task, outcome: SubmitOutcome | None, door: Door, clock: Clock) -> None:
    """Tell the poller, and those who come later, what has become of the task."""
    waits, asked_for = task.state is State.QUEUED, outcome.retry_after if outcome is not None else None
    if waits or asked_for is not None:
        until = clock.now() + asked_for if asked_for is not None else None
        await _close_gate(door, waits=waits, until=until)
    if door.wake is not None and not task.state.final and not await _is_watched(door, clock.now()):
        await door.wake.wake(task.task_id)


def _until(moment: datetime, clock: Clock) -> asyncio.Timeout:
    """Raise TimeoutError where the block lasts longer."""
    return asyncio.timeout(max(0.0, (moment - clock.now()).total_seconds()))


async def _recognised(order: Order, *, caller: Caller, arrived_at: datetime, payer: Payer) -> Order:
    """Give a request without a key the id of the request that it repeats, where its client counts its repeats.

    What the official SDKs do unasked; a count of 0 is another request, however alike. Only such requests cost a write more.
    """
    if order.keyed or order.retry_count is None:
        return order
    task_id = await payer.tasks.reserve(
        f"{caller.caller}#{order.fingerprint}",
        order.task_id,
        repeat=order.retry_count > 0,
        now=arrived_at,  # or a first request that was frozen for minutes would take what its repeat has reserved for expired
        until=payer.clock.now() + REPEATED_WITHIN,
    )
    return replace(order, task_id=task_id, keyed=task_id != order.task_id)


async def _inspect(
    order: Order, *, caller: Caller, until: datetime, inspector: Inspector | None, clock: Clock, reporter: Reporter
) -> dict[str, str]:
    """Look at all media at once, within PROBE_TIME and not past `until`; tell what could not be checked.

    Raises RejectedError where something is wrong.
    """
    if inspector is None or not order.media:
        return {}
    probe = inspector.probe() if clock.now() < until else None
    limit = min(PROBE_TIME, until - clock.now())  # what it took to make the probe is gone
    if probe is None or limit <= timedelta(0):
        judged = [Judgement(rule.field, Verdict.UNCHECKED, "no time was left") for rule, _ in order.media]
    else:
        seen = await asyncio.gather(*(probe.look(url, limit=limit) for _, url in order.media))
        judged = [rule.judge(facts) for (rule, _), facts in zip(order.media, seen, strict=True)]
    for one in judged:
        if one.verdict is not Verdict.FINE:
            reporter.tell(
                "media.checked", caller=caller.caller, model=order.model, input=one.field, outcome=one.verdict, reason=one.reason
            )
    wrong = [one.reason for one in judged if one.verdict is Verdict.WRONG]
    if wrong and inspector.enforce:
        raise RejectedError(400, ". ".join(wrong))
    return {one.field: one.reason for one in judged if one.verdict is not Verdict.FINE}


async def _is_watched(door: Door, now: datetime) -> bool:
    """Tell whether somebody lingers, who will find the task by itself: it looks every two seconds, and once more as it leaves."""
    try:
        return (await door.lease.view()).alive(now)
    except StoreUnavailableError:
        return False


def _is_open(gate: Gate, now: datetime) -> bool:
    """Tell whether a submit may ask the vendor: no task waits that would be overtaken, and the vendor is not in trouble.

    While it is, only the poller submits, one task at a time.
    """
    return not gate.waiting and not gate.paused(now) and not gate.in_trouble


async def _record_answer(door: Door, before: Gate, outcome: SubmitOutcome, now: datetime) -> None:
    """Count outcomes in a row that are not known, so that a vendor in trouble is not asked to take one task after the other."""
    unknown = outcome.submission is Submission.AMBIGUOUS
    if not unknown and (before.unknown == 0 or outcome.submission not in {Submission.TAKEN, Submission.REFUSED}):
        return
    with contextlib.suppress(Exception):  # what was paid for is answered; the next one counts
        gate = await door.gates.gate()
        await door.gates.set_gate(gate, gate.outcome_unknown(now) if unknown else gate.answered())


async def _close_gate(door: Door, *, waits: bool, until: datetime | None) -> None:
    """Let those who come later queue behind a task that `waits`, and `until` then where the vendor asked for a pause.

    The poller opens the gate when no task waits any more.
    """
    with contextlib.suppress(Exception):  # it keeps the order fair, and the vendor says no again
        gate = await door.gates.gate()
        closed = gate.model_copy(update={"waiting": gate.waiting or waits})
        if until is not None:
            closed = closed.pause(until)
        if closed != gate:
            await door.gates.set_gate(gate, closed)


async def pay(
    task: Task,
    *,
    deadline: datetime,
    payer: Payer,
    allowance: "Allowance | None" = None,
    settle_by: datetime | None = None,
) -> tuple[Task, SubmitOutcome]:
    """Send the paid POST of a task that is stored as submitting, under a claim of this invocation's own, and store what came.

    At most one POST can ever be taken: nothing but a stored QUEUED allows another one, and only this claim's holder writes
    that, with proof. One request was taken from `allowance` when the task was claimed (`submitted_at`); one that leaves in
    a later window, and a second one, take their own. Never raises for want of the store: what could not be stored by
    `settle_by` (SETTLE_TIME past the deadline, if not given) is reaped as ambiguous.
    """
    end = min(deadline, task.claimed_until or deadline)
    if task.request is None:
        outcome = SubmitOutcome(submission=Submission.NOT_SENT, message="the request was not read")
    elif end - payer.clock.now() < LEAST_POST_TIME:  # or thawed too late: another process may be deciding about the task
        outcome = SubmitOutcome(submission=Submission.NOT_SENT, message="no time was left")
    else:
        hook = await payer.hooks.url(task.task_id) if payer.hooks is not None else None
        admit = {"admit": _admission(task, allowance, payer.clock)} if allowance is not None else {}
        limit = end - payer.clock.now()  # what is too little by now, the vendor's adapter does not begin with
        outcome = await payer.vendor.submit(task.model, task.request.encode(), hook=hook, limit=limit, **admit)
    payer.reporter.tell(  # before anything is stored: an id that is paid for is known from here on, whatever hangs
        "task.submitted",
        task_id=task.task_id,
        caller=task.caller,
        outcome=outcome.submission,
        status=outcome.status,
        upstream_task_id=outcome.upstream_task_id or None,
    )
    return await _settle(task, outcome, payer, settle_by or deadline + SETTLE_TIME), outcome


def _admission(task: Task, allowance: "Allowance", clock: Clock) -> Admit:
    """Make what is asked right before each request leaves: whether it may, by the budget of the window that it leaves in."""
    counted = budget.window(task.submitted_at) if task.submitted_at is not None else None

    async def admit() -> bool:
        nonlocal counted
        now, window, counted = clock.now(), counted, None
        try:
            return window == budget.window(now) or await allowance.take(now)
        except StoreUnavailableError:
            return False

    return admit


async def _settle(task: Task, outcome: SubmitOutcome, payer: Payer, until: datetime | None = None) -> Task:
    """Store the outcome, patiently: money may have been spent. What was not stored at once is told before the next try."""
    until, told = until or payer.clock.now() + SETTLE_TIME, False
    while True:
        left = min(max(until - payer.clock.now(), STORE_TRY_LEAST), STORE_TRY)
        try:
            async with asyncio.timeout(left.total_seconds()):
                return await payer.tasks.swap(task, task.submitted(outcome, payer.clock.now(), retention=payer.retention))
        except StaleTaskError as stale:
            if stale.current is None or stale.current.state is not State.RESCUE or outcome.submission is Submission.AMBIGUOUS:
                return stale.current or task
            task = stale.current  # reaped meanwhile; the vendor's answer settles it after all
            continue
        except Exception:  # noqa: BLE001  # a table that is away, or rights that a deployment is just replacing
            if not told:
                payer.reporter.tell(
                    "task.outcome_unstored",
                    task_id=task.task_id,
                    outcome=outcome.submission,
                    upstream_task_id=outcome.upstream_task_id or None,
                )
            told = True
        if payer.clock.now() + _STORE_STEP >= until:
            return task.doubted() if task.state is State.SUBMITTING else task
        await payer.clock.sleep(_STORE_STEP)


async def _accept(wanted: Task, *, tasks: TaskStore) -> tuple[Task, bool]:
    """Store the task unless its id is taken; one conditional write is write-ahead, idempotency and deduplication."""
    try:
        return await tasks.add(wanted), True
    except TaskExistsError as exists:
        first = exists.current
    if not first.reusable:
        return first, False
    try:
        return await tasks.swap(first, wanted), True
    except StaleTaskError as stale:
        if stale.current is None:
            raise StoreUnavailableError("the task is gone") from stale
        return stale.current, False


async def _first_answer(task: Task, *, deadline: datetime, tasks: TaskStore, clock: Clock) -> Answer:
    """Give a repeat the first answer, waiting for it while the first request is still in flight."""
    while task.answer_status is None and task.claimed(clock.now()):
        if clock.now() >= deadline:
            raise RejectedError(409, "Conflict: the first request, which this one repeats, is still in flight", retry_after=2)
        await clock.sleep(_REPEAT_STEP)
        task = await tasks.get(task.task_id) or task
    return _answer(task)


def _answer(task: Task) -> Answer:
    if task.answer_status is None:  # died before it knew; the poller will say the same
        task = task.doubted()
    status = task.answer_status or 200
    return Answer(status, task.answer_message or "", task)


def _explain(error: ValidationError, model: Model) -> str:
    """Say in the vendor's manner what is wrong with which field, and what to do about it."""
    known = ", ".join((*model.request.model_fields, *_OwnFields.model_fields))
    complaints = []
    for detail in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in detail["loc"])[:100]
        match detail["type"]:
            case "missing":
                complaints.append(f"parameter '{name}' is required")
            case "extra_forbidden":
                complaints.append(f"parameter '{name}' is not known; this model takes {known}")
            case "value_error":
                complaints.append(f"parameter '{name}' {detail['ctx']['error']}")
            case _:
                complaints.append(f"parameter '{name}': {detail['msg'][:1].lower()}{detail['msg'][1:]}")
    return "Invalid parameters: " + "; ".join(complaints[:10])


def _task_id(caller: str, idempotency_key: str | None) -> str:
    """Derive the id from caller and key, so that a repeat meets the first; random without a key. 132 bits either way."""
    if idempotency_key is None:
        return f"tk_{secrets.token_urlsafe(17)[:22]}"
    digest = hashlib.sha256(f"{caller}\0{idempotency_key}".encode()).digest()
    return f"tk_{base64.urlsafe_b64encode(digest).decode()[:22]}"


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()[:22]
