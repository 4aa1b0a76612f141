"""The one code path that pays for a task."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from taskhook.core import rate_limit
from taskhook.core.admission import AdmissionState
from taskhook.core.errors import StaleTaskError, StoreUnavailableError
from taskhook.core.ports import (
    LEAST_POST_TIME,
    AdmissionStore,
    Admit,
    Clock,
    Reporter,
    TaskApi,
    TaskStore,
    WebhookUrls,
)
from taskhook.core.rate_limit import Allowance
from taskhook.core.record import State, Submission, SubmitOutcome
from taskhook.core.task import Task

# Past the end of a POST's time, for storing what came of it, where no caller waits.
SETTLE_TIME = timedelta(seconds=8)

STORE_TRY = timedelta(seconds=2.5)  # for storing an outcome once

STORE_TRY_LEAST = timedelta(seconds=0.5)  # where time is over already

LEARN_TRIES = 3  # to store what an answer says of the vendor, beside the writes of others

_STORE_STEP = timedelta(seconds=0.5)


@dataclass(frozen=True)
class PaymentPorts:
    """What it takes to pay for a task."""

    tasks: TaskStore
    vendors: Mapping[str, TaskApi]
    webhook_urls: WebhookUrls | None  # None: the vendor is not asked for webhooks
    clock: Clock
    reporter: Reporter
    retention: timedelta


async def pay(
    task: Task,
    *,
    deadline: datetime,
    payment: PaymentPorts,
    allowance: "Allowance | None" = None,
    settle_by: datetime | None = None,
) -> tuple[Task, SubmitOutcome]:
    """Send the paid POST of a task that this invocation has claimed as submitting, and store what came.

    At most one POST can ever be taken: nothing but a stored QUEUED allows another one, and only this claim's
    holder writes that, with proof. One request was taken from `allowance` when the task was claimed
    (`submitted_at`); one that leaves in a later window, and a second one, take their own. Never raises for
    want of the store: what could not be stored by `settle_by` (SETTLE_TIME past the deadline, if not given)
    becomes unknown by the poller (`Task.mark_unknown`).
    """
    end = min(deadline, task.claimed_until or deadline)
    if task.request is None:
        outcome = SubmitOutcome(submission=Submission.NOT_SENT, message="the request was not read")
    elif end - payment.clock.now() < LEAST_POST_TIME:
        # Or thawed too late: another process may be deciding about the task.
        outcome = SubmitOutcome(submission=Submission.NOT_SENT, message="no time was left")
    else:
        api = payment.vendors[task.vendor]
        urls = payment.webhook_urls if api.vendor.webhooks else None
        webhook_url = await urls.url(task.task_id) if urls is not None else None
        admit = {"admit": _admission(task, allowance, payment.clock)} if allowance is not None else {}
        # What is too little by now, the vendor's adapter does not begin with.
        limit = end - payment.clock.now()
        outcome = await api.submit(
            task.target or task.model,
            task.request.encode(),
            headers=task.headers,
            webhook_url=webhook_url,
            limit=limit,
            **admit,
        )
    # Before anything is stored: an id that is paid for is known from here on, whatever hangs.
    payment.reporter.report(
        "task.submitted",
        task_id=task.task_id,
        caller=task.caller,
        vendor=task.vendor,
        outcome=outcome.submission,
        status=outcome.status,
        upstream_task_id=outcome.upstream_task_id or None,
    )
    return await _settle(task, outcome, payment, settle_by or deadline + SETTLE_TIME), outcome


def _admission(task: Task, allowance: "Allowance", clock: Clock) -> Admit:
    """Make what is asked right before each request leaves: whether its window has room for it."""
    counted = rate_limit.window(task.submitted_at) if task.submitted_at is not None else None

    async def admit() -> bool:
        nonlocal counted
        now, window, counted = clock.now(), counted, None
        try:
            return window == rate_limit.window(now) or await allowance.take(now)
        except StoreUnavailableError:
            return False

    return admit


async def _settle(
    task: Task, outcome: SubmitOutcome, payment: PaymentPorts, until: datetime | None = None
) -> Task:
    """Store the outcome, patiently, for money may have been spent; a first try that fails is reported."""
    until, is_reported = until or payment.clock.now() + SETTLE_TIME, False
    while True:
        left = min(max(until - payment.clock.now(), STORE_TRY_LEAST), STORE_TRY)
        try:
            async with asyncio.timeout(left.total_seconds()):
                return await payment.tasks.swap(
                    task, task.submitted(outcome, payment.clock.now(), retention=payment.retention)
                )
        except StaleTaskError as stale:
            if (
                stale.current is None
                or stale.current.state is not State.UNKNOWN
                or outcome.submission is Submission.AMBIGUOUS
            ):
                return stale.current or task
            task = stale.current  # unknown meanwhile; the vendor's answer settles it after all
            continue
        # A table that is away, or rights that a deployment is just replacing.
        except Exception:  # noqa: BLE001
            if not is_reported:
                payment.reporter.report(
                    "task.outcome_unstored",
                    task_id=task.task_id,
                    outcome=outcome.submission,
                    upstream_task_id=outcome.upstream_task_id or None,
                )
            is_reported = True
        if payment.clock.now() + _STORE_STEP >= until:
            return _unstored(task, outcome, payment)
        await payment.clock.sleep(_STORE_STEP)


def _unstored(task: Task, outcome: SubmitOutcome, payment: PaymentPorts) -> Task:
    """Give what the caller is told where nothing says that the outcome was stored.

    A refusal is told as one: if it was stored after all, no callback follows it.
    """
    if task.state is not State.SUBMITTING:
        return task
    if outcome.submission in {Submission.REFUSED, Submission.REFUSED_HERE}:
        return task.submitted(outcome, payment.clock.now(), retention=payment.retention)
    return task.mark_unknown()


async def learn(
    vendor: str, change: Callable[[AdmissionState], AdmissionState], store: AdmissionStore
) -> tuple[AdmissionState, AdmissionState]:
    """Store what an answer has changed, also where another invocation's write comes first.

    Give what stood before, and what was made of it. Raises StoreUnavailableError.
    """
    for _ in range(LEARN_TRIES):
        known = await store.admission(vendor)
        learnt = change(known)
        if learnt == known:
            break
        stored = await store.set_admission(vendor, known, learnt)
        if stored.model_copy(update={"nonce": learnt.nonce}) == learnt:
            break
    return known, learnt


def report_pause(
    vendor: str, reason: str, until: datetime | None, *, clock: Clock, reporter: Reporter
) -> None:
    """Report for how long a vendor gets no submits, or no polls, and why; an alarm rings by the reason."""
    now = clock.now()
    seconds = round((max(until or now, now) - now).total_seconds())
    reporter.report("vendor.paused", vendor=vendor, reason=reason, seconds=seconds)
