"""Accept a task: store it, pay for it where there is time and a way, and answer."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from http import HTTPStatus

from taskhook.core.admission import AdmissionState, Kinds, kinds_of
from taskhook.core.caller import Caller
from taskhook.core.errors import (
    KeyMissingError,
    KeyUnavailableError,
    KeyUnusableError,
    RejectedError,
    StaleTaskError,
    StoreUnavailableError,
    TaskExistsError,
)
from taskhook.core.ports import (
    LEAST_POST_TIME,
    AdmissionStore,
    ApiKey,
    Clock,
    LeadershipStore,
    SpendStore,
    TaskStore,
    Wake,
    WorkIndex,
)
from taskhook.core.rate_limit import Allowance
from taskhook.core.record import State, Submission, SubmitOutcome
from taskhook.core.task import Task
from taskhook.submit.media import MediaInspection, inspect
from taskhook.submit.payment import STORE_TRY_LEAST, PaymentPorts, learn, pay, report_pause
from taskhook.submit.request import SubmitRequest
from taskhook.submit.spending import check_model, count

ANSWER_TIME = timedelta(seconds=13)  # by then the POST is over; the vendor's own client gives up at 15 s
ANSWER_DUE = timedelta(seconds=13.8)  # by then there is an answer, whatever hangs
REPEAT_WAIT = timedelta(seconds=8)  # how long a repeat waits for the first answer
# How long after a request without a key its client may say that it repeats it.
REPEATED_WITHIN = timedelta(minutes=2)
_REPEAT_STEP = timedelta(seconds=0.25)
_STORE_TIME = timedelta(seconds=0.5)  # for what lies between the probes and the POST


@dataclass(frozen=True)
class SubmitResult:
    """What the submitter is told of the task; `message` is empty where all is well."""

    status: int
    message: str
    task: Task


@dataclass(frozen=True)
class AdmissionPorts:
    """What stands between a submit and the vendor."""

    queue: WorkIndex
    admission: AdmissionStore
    allowances: Mapping[str, Allowance]  # by vendor
    leadership: LeadershipStore
    wake: Wake | None  # None: the tick is enough
    max_queued: int
    spent: SpendStore
    models: Sequence[str]  # patterns of the models that the deployment is open to
    keys: Mapping[str, ApiKey]  # by vendor


async def submit(
    request: SubmitRequest,
    *,
    caller: Caller,
    arrived_at: datetime,
    claim: timedelta,
    inspection: MediaInspection | None,
    payment: PaymentPorts,
    admitting: AdmissionPorts,
) -> SubmitResult:
    """Store the task, pay for it if there is time and a way, and answer; a repeat gets the first answer.

    `claim` is how long no other invocation may touch the task: longer than this function can live. Raises
    RejectedError, and StoreUnavailableError, which means that nothing was sent to the vendor.
    """
    answer_by = arrived_at + ANSWER_DUE
    settle_by = answer_by - STORE_TRY_LEAST
    try:
        async with _until(settle_by, payment.clock):
            begun = await _begin(
                request,
                caller=caller,
                arrived_at=arrived_at,
                claim=claim,
                inspection=inspection,
                payment=payment,
                admitting=admitting,
            )
    except TimeoutError as error:
        # What was being written may be there; then it becomes unknown, and is never paid for.
        raise StoreUnavailableError("no answer in time") from error
    if isinstance(begun, SubmitResult):
        return begun
    (task, admission), outcome = begun, None
    if task.state is State.SUBMITTING:
        deadline = arrived_at + ANSWER_TIME
        task, outcome = await pay(
            task,
            deadline=deadline,
            payment=payment,
            allowance=admitting.allowances[task.vendor],
            settle_by=settle_by,
        )
    with contextlib.suppress(TimeoutError):  # what is left undone, the poller does without being asked
        async with _until(answer_by, payment.clock):
            if outcome is not None:
                await _record_answer(task, outcome, admission, admitting=admitting, payment=payment)
            await _follow_up(task, outcome, admitting=admitting, payment=payment)
    return _answer(task)


async def _begin(
    request: SubmitRequest,
    *,
    caller: Caller,
    arrived_at: datetime,
    claim: timedelta,
    inspection: MediaInspection | None,
    payment: PaymentPorts,
    admitting: AdmissionPorts,
) -> tuple[Task, AdmissionState] | SubmitResult:
    """Store the task, submitting or queued, as the admission says; a known key gets the first answer."""
    deadline, now = arrived_at + ANSWER_TIME, payment.clock.now()
    request = await _recognised(request, caller=caller, arrived_at=arrived_at, payment=payment)
    first = await payment.tasks.get(request.task_id) if request.keyed else None
    admission = AdmissionState()
    if first is None or first.reusable:
        check_model(request, caller=caller, models=admitting.models)
        await _require_key(request.vendor, admitting)
        until = deadline - LEAST_POST_TIME - _STORE_TIME
        unchecked = await inspect(
            request,
            caller=caller,
            until=until,
            inspection=inspection,
            clock=payment.clock,
            reporter=payment.reporter,
        )
        now = payment.clock.now()
        admission = await admitting.admission.admission(request.vendor)
        paying = (
            now + LEAST_POST_TIME <= deadline
            and _is_open(admission, kinds_of(caller.caller, request.paid.model), now)
            and await admitting.allowances[request.vendor].take(now)
        )
        waiting = 0 if paying else await _queued(request.vendor, caller, admitting)
        await count(request, caller=caller, spent=admitting.spent, now=now)
        wanted = request.task(caller, now, unchecked=unchecked, claimed_until=now + claim if paying else None)
        task, is_new = await _accept(wanted, tasks=payment.tasks)
    else:
        waiting, task, is_new = 0, first, False
    if not is_new:
        _require_same(request, task)
        return await _first_answer(
            task, deadline=min(deadline, now + REPEAT_WAIT), tasks=payment.tasks, clock=payment.clock
        )
    queued = waiting + 1 if task.state is State.QUEUED else None
    payment.reporter.report(
        "task.accepted",
        task_id=task.task_id,
        caller=task.caller,
        vendor=task.vendor,
        model=task.model,
        queued=queued,
    )
    return task, admission


def _require_same(request: SubmitRequest, first: Task) -> None:
    if first.fingerprint != request.fingerprint:
        raise RejectedError(
            HTTPStatus.UNPROCESSABLE_CONTENT,
            "Invalid parameters: header 'Idempotency-Key' was used before with a different request",
        )


async def _require_key(vendor: str, admitting: AdmissionPorts) -> None:
    """Raise RejectedError where the deployment has no key of the vendor: a task would wait in vain.

    It rings no alarm, for it may be a vendor that was never set up. Where a key was lost, the poller rings it
    for the tasks that are under way.
    """
    try:
        await admitting.keys[vendor](fresh=False)
    except KeyMissingError as error:
        raise RejectedError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"Service unavailable: this deployment has no key of vendor '{vendor}'; its operator sets one "
            f"with `taskhook vendors set {vendor}`",
        ) from error
    except (KeyUnusableError, KeyUnavailableError):
        return  # which the submit itself will meet


async def _queued(vendor: str, caller: Caller, admitting: AdmissionPorts) -> int:
    """Count the caller's tasks that wait for the vendor. Raises RejectedError where no more may wait."""
    most = admitting.max_queued
    waiting = await admitting.queue.queue_length(vendor, caller.caller, at_most=most)
    if waiting >= most:
        message = f"{most} of your tasks are queued already; wait until some have ended"
        raise RejectedError(HTTPStatus.TOO_MANY_REQUESTS, f"Too many requests: {message}", retry_after=60)
    return waiting


async def _follow_up(
    task: Task, outcome: SubmitOutcome | None, *, admitting: AdmissionPorts, payment: PaymentPorts
) -> None:
    """Tell the poller, and later submits, what has become of the task."""
    waits, asked_for = task.state is State.QUEUED, outcome.retry_after if outcome is not None else None
    if waits or asked_for is not None:
        await _close_admission(task.vendor, admitting, payment, waits=waits, asked_for=asked_for)
    if admitting.wake is None or task.state.final or await _is_watched(admitting, payment.clock.now()):
        return
    await admitting.wake.wake(task.task_id)


def _until(moment: datetime, clock: Clock) -> asyncio.Timeout:
    """Raise TimeoutError where the block lasts longer."""
    return asyncio.timeout(max(0.0, (moment - clock.now()).total_seconds()))


async def _recognised(
    request: SubmitRequest, *, caller: Caller, arrived_at: datetime, payment: PaymentPorts
) -> SubmitRequest:
    """Give a request without a key the id of the one that it repeats, where its client counts repeats.

    The official SDKs count unasked; a count of 0 is another request, however alike. Only such requests cost
    one more write.
    """
    if request.keyed or request.retry_count is None:
        return request
    task_id = await payment.tasks.reserve(
        f"{caller.caller}#{request.fingerprint}",
        request.task_id,
        repeat=request.retry_count > 0,
        # Or a first request that was frozen for minutes would take what its repeat has reserved for expired.
        now=arrived_at,
        until=payment.clock.now() + REPEATED_WITHIN,
    )
    return replace(request, task_id=task_id, keyed=task_id != request.task_id)


async def _is_watched(admitting: AdmissionPorts, now: datetime) -> bool:
    """Tell whether there is a leader: it looks for tasks every 2 s, and once more as it resigns."""
    try:
        return (await admitting.leadership.view()).alive(now)
    except StoreUnavailableError:
        return False


def _is_open(admission: AdmissionState, kinds: Kinds, now: datetime) -> bool:
    """Tell whether a submit may ask the vendor: it overtakes no task that waits, and there is no trouble.

    While there is, only the poller submits, one task at a time.
    """
    is_held_up = admission.paused(now) or admission.in_trouble or admission.is_paused_for(kinds, now)
    return not admission.waiting and not is_held_up


async def _record_answer(
    task: Task,
    outcome: SubmitOutcome,
    before: AdmissionState,
    *,
    admitting: AdmissionPorts,
    payment: PaymentPorts,
) -> None:
    """Count unknown outcomes in a row, so that a vendor in trouble is not sent one task after the other."""
    unknown, vendor = outcome.submission is Submission.AMBIGUOUS, task.vendor
    kinds = kinds_of(task.caller, task.model)
    is_clear = outcome.submission in {Submission.TAKEN, Submission.REFUSED}
    if not unknown and not (is_clear and before.answered(kinds) != before):
        return
    with contextlib.suppress(Exception):  # what was paid for is answered; the next one counts
        now = payment.clock.now()

        def answer(known: AdmissionState) -> AdmissionState:
            return known.outcome_unknown(now, kinds=kinds) if unknown else known.answered(kinds)

        admission, learnt = await learn(vendor, answer, admitting.admission)
        if learnt.in_trouble:
            report_pause(
                vendor, "no_answer", learnt.paused_until, clock=payment.clock, reporter=payment.reporter
            )
        elif admission.in_trouble:
            payment.reporter.report("vendor.resumed", vendor=vendor)


async def _close_admission(
    vendor: str,
    admitting: AdmissionPorts,
    payment: PaymentPorts,
    *,
    waits: bool,
    asked_for: timedelta | None,
) -> None:
    """Let later submits queue behind a task that `waits`, or until the pause is over that the vendor wants.

    The poller opens the admission when no task waits any more.
    """
    with contextlib.suppress(Exception):  # it keeps the order fair, and the vendor says no again
        until = payment.clock.now() + asked_for if asked_for is not None else None

        def close(known: AdmissionState) -> AdmissionState:
            closed = known.model_copy(update={"waiting": known.waiting or waits})
            return closed if until is None else closed.pause(until)

        _, closed = await learn(vendor, close, admitting.admission)
        if asked_for:  # of no time is no pause
            report_pause(
                vendor, "throttled", closed.paused_until, clock=payment.clock, reporter=payment.reporter
            )


async def _accept(wanted: Task, *, tasks: TaskStore) -> tuple[Task, bool]:
    """Store the task unless its id is taken; give what stands there, and whether it is new.

    One conditional write is write-ahead, idempotency and deduplication.
    """
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


async def _first_answer(task: Task, *, deadline: datetime, tasks: TaskStore, clock: Clock) -> SubmitResult:
    """Give a repeat the first answer, waiting for it while the first request is still in flight."""
    while task.answer_status is None and task.claimed(clock.now()):
        if clock.now() >= deadline:
            raise RejectedError(
                HTTPStatus.CONFLICT,
                "Conflict: the first request, which this one repeats, is still in flight",
                retry_after=2,
            )
        await clock.sleep(_REPEAT_STEP)
        task = await tasks.get(task.task_id) or task
    return _answer(task)


def _answer(task: Task) -> SubmitResult:
    if task.answer_status is None:  # died before it knew; the poller will say the same
        task = task.mark_unknown()
    status = task.answer_status or HTTPStatus.OK
    return SubmitResult(status, task.answer_message or "", task)
