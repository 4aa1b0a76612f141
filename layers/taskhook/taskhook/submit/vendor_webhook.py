"""The vendor's own webhook says that a task has ended. Never believed: the vendor is asked, with our key."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus

from taskhook.core.errors import RejectedError, StaleTaskError, StoreUnavailableError
from taskhook.core.leadership import LeadershipView
from taskhook.core.ports import (
    AdmissionStore,
    Clock,
    LeadershipStore,
    Reporter,
    TaskApi,
    TaskStore,
    Wake,
    WebhookUrls,
)
from taskhook.core.rate_limit import Allowance
from taskhook.core.record import State
from taskhook.core.task import Task
from taskhook.core.vendor import PollKind, PollOutcome
from taskhook.submit.payment import learn, report_pause

LEAST_GAP = timedelta(seconds=1)  # between two looks at the same task
_REMEMBERED = 1000  # tasks whose last look this process remembers
_REFRESH = timedelta(minutes=10)  # between two notes that webhooks come


@dataclass(frozen=True)
class WebhookPorts:
    """What it takes to check a vendor webhook."""

    webhook_urls: WebhookUrls
    tasks: TaskStore
    vendors: Mapping[str, TaskApi]
    leadership: LeadershipStore
    allowances: Mapping[str, Allowance]  # by vendor
    admission: AdmissionStore
    wake: Wake
    clock: Clock
    reporter: Reporter
    looked_at: dict[str, datetime]  # kept while the process stays warm


async def check_webhook(task_id: str, token: str, upstream_task_id: str, *, ports: WebhookPorts) -> None:
    """Check what a webhook says of a task: wake the poller if it has ended, recover it if it was unknown.

    Raises RejectedError: 404 for a token that is not this task's, 503 where the vendor should try again in a
    while.
    """
    known = await ports.webhook_urls.valid(task_id, token)
    if known is None:
        raise RejectedError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Service unavailable: the token cannot be checked right now",
            retry_after=5,
        )
    task = await ports.tasks.get(task_id) if known else None
    if task is None:
        raise RejectedError(HTTPStatus.NOT_FOUND, "Resource not found: there is no such webhook address")
    if task.state is State.SUBMITTING:
        raise RejectedError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Service unavailable: the submit is still in flight",
            retry_after=5,
        )
    if task.state not in {State.WATCHED, State.UNKNOWN} or not (task.upstream_task_id or upstream_task_id):
        return
    now, leadership = ports.clock.now(), await ports.leadership.view()
    if task.state is State.WATCHED and leadership.holds(task.model, now):
        return  # that poll has the same news
    outcome = await _ask(task, upstream_task_id, now, ports)
    if outcome.kind is PollKind.MISSING and task.state is State.UNKNOWN:
        return  # not a task of ours
    if not outcome.kind.known:
        raise RejectedError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Service unavailable: the vendor gave no answer about the task",
            retry_after=5,
        )
    if task.state is State.UNKNOWN:
        await _adopt(task, upstream_task_id, ports)
    if outcome.kind is PollKind.PENDING:  # the webhook is early, and no other will come
        raise RejectedError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Service unavailable: the vendor does not show the end of the task yet",
            retry_after=2,
        )
    # What was said of an adopted task is asked again, of the one that is stored now.
    await _tell_poller(task_id, outcome if task.state is State.WATCHED else None, leadership, now, ports)


async def _ask(task: Task, upstream_task_id: str, now: datetime, ports: WebhookPorts) -> PollOutcome:
    """Ask the vendor within its budget, at most once a second about a task, and obey it.

    Raises RejectedError (503).
    """
    if now < ports.looked_at.get(task.task_id, now - LEAST_GAP) + LEAST_GAP:
        raise RejectedError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Service unavailable: the task was looked at a moment ago",
            retry_after=1,
        )
    await ports.allowances[task.vendor].require(now)
    _remember(ports.looked_at, task.task_id, now)
    outcome = await ports.vendors[task.vendor].poll(
        task.upstream_task_id or upstream_task_id, operation=task.operation
    )
    ports.reporter.report("vendor.polled", task_id=task.task_id, vendor=task.vendor, kind=outcome.kind)
    if (pause := outcome.pause) is not None:
        until = now + pause
        with contextlib.suppress(StoreUnavailableError):
            await learn(task.vendor, lambda known: known.poll_refused(task.task_id, until), ports.admission)
        report_pause(task.vendor, outcome.pause_reason, until, clock=ports.clock, reporter=ports.reporter)
    if outcome.kind is PollKind.UNAVAILABLE:
        ports.reporter.report(
            "vendor.unavailable", task_id=task.task_id, vendor=task.vendor, error=outcome.message
        )
    return outcome


async def _tell_poller(
    task_id: str,
    known_outcome: PollOutcome | None,
    leadership: LeadershipView,
    now: datetime,
    ports: WebhookPorts,
) -> None:
    """Wake the poller for a task that has ended, and let it know that webhooks come."""
    if leadership.webhook_at is None or now >= leadership.webhook_at + _REFRESH:
        await ports.leadership.webhook_came(now)
    await ports.wake.wake(task_id, ended=True, known_outcome=known_outcome)


async def _adopt(task: Task, upstream_task_id: str, ports: WebhookPorts) -> None:
    """Give an ambiguous task the id under which the vendor, asked with our key, knows it."""
    with contextlib.suppress(StaleTaskError):  # another invocation has settled it
        await ports.tasks.swap(task, task.recovered(upstream_task_id, ports.clock.now()))
        ports.reporter.report("task.recovered", task_id=task.task_id, caller=task.caller)
        await ports.wake.wake(task.task_id)


def _remember(looked_at: dict[str, datetime], task_id: str, now: datetime) -> None:
    looked_at.pop(task_id, None)
    looked_at[task_id] = now
    if len(looked_at) > _REMEMBERED:
        del looked_at[next(iter(looked_at))]
