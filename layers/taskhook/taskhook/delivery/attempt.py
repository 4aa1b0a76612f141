"""Deliver callbacks: one signed attempt at a time, each claimed right before its request."""

import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from taskhook.core import schedule, signature
from taskhook.core.caller import Caller
from taskhook.core.errors import StoreUnavailableError
from taskhook.core.ports import ATTEMPT_TIME, CallbackSender, CallerDirectory, Clock, Reporter, TaskStore
from taskhook.core.record import Attempt, CallbackState
from taskhook.core.reply import DeliveryError, Reply, is_delivered
from taskhook.core.task import Task
from taskhook.delivery.hosts import Hosts

CLAIM = timedelta(seconds=30)
# Tried for one attempt, where each takes so long that its claim does not cover the attempt any more.
CLAIM_WRITES = 2


@dataclass(frozen=True)
class DeliveryPorts:
    """What it takes to deliver."""

    tasks: TaskStore
    callbacks: CallbackSender
    callers: CallerDirectory
    hosts: Hosts
    clock: Clock
    reporter: Reporter
    retention: timedelta


def claim_covers_attempt(task: Task, now: datetime) -> bool:
    """Tell whether the task's claim, if it is the asker's own, lasts for a whole attempt from now."""
    return task.claimed_until is not None and now + ATTEMPT_TIME <= task.claimed_until


async def attempt(task: Task, ports: DeliveryPorts, *, ran_until: datetime | None = None) -> Task:
    """Make the next delivery attempt and store what came of it.

    `task` is ended and waiting; its claim is used when it is this invocation's own (just stored by the
    terminal write) and still long enough, and taken first when not. `ran_until` is when the vendor's task is
    last known to have run: from then on, or else from its stored end, the callback counts as late. Raises
    StaleTaskError when another invocation has it, StoreUnavailableError, also where the table is too slow for
    a claim that covers an attempt: nothing is sent then.
    """
    caller = await _caller(task, ports)
    task = await _claimed(task, ports)
    reply = Reply(error=DeliveryError.CALLER_UNREADABLE)
    if caller is not None:
        reply = await send_attempt(task, caller, ports.clock.now(), ports.callbacks)
    _record(task, reply, ports)
    after = _settled(task, reply, ports.clock.now(), retention=ports.retention)
    made = after.log[-1]
    ports.reporter.report(
        "callback.attempted",
        task_id=task.task_id,
        caller=task.caller,
        attempt=after.attempts,
        status=made.status,
        error=made.error,
        ms=made.ms,
        state=after.callback,
        retry_in_s=None if made.next_at is None else round((made.next_at - made.at).total_seconds(), 1),
        late_s=_lateness(after, ports.clock.now(), ran_until),
    )
    return await ports.tasks.swap(task, after)


async def _claimed(task: Task, ports: DeliveryPorts) -> Task:
    """Claim the task so that a whole attempt is covered, measured after the claim's write."""
    for _ in range(CLAIM_WRITES):
        now = ports.clock.now()
        if claim_covers_attempt(task, now):
            return task
        task = await ports.tasks.swap(task, task.claim_delivery(until=now + CLAIM))
    if not claim_covers_attempt(task, ports.clock.now()):
        raise StoreUnavailableError("a claim's write takes longer than the claim can spare")
    return task


def _settled(task: Task, reply: Reply, now: datetime, *, retention: timedelta) -> Task:
    """Say what follows from one attempt: delivered, again at its time, or given up."""
    delivered = is_delivered(reply.status)
    soon = schedule.means_soon(reply.status, task.uncounted)
    wait = None
    if not delivered:
        wait = schedule.retry_wait(
            task.attempts_this_round + 1,
            jitter=random.random(),  # spreads load
            status=reply.status,
            uncounted=task.uncounted,
            answered_gone=task.answered_gone,
            retry_after=reply.retry_after,
        )
    retry_at = None if wait is None else now + wait
    made = Attempt(
        at=now - reply.elapsed,
        status=reply.status,
        error=reply.error,
        ms=round(reply.elapsed / timedelta(milliseconds=1)),
        answer=reply.answer,
        next_at=retry_at,
    )
    gone = reply.status == schedule.GONE
    return task.attempted(
        made, delivered=delivered, retry_at=retry_at, now=now, retention=retention, soon=soon, gone=gone
    )


def _lateness(task: Task, now: datetime, ran_until: datetime | None) -> float | None:
    """Tell how many seconds the receiver has waited at most; None where it still does, or asked again."""
    ended_at = ran_until or task.ended_at
    if task.callback is not CallbackState.DELIVERED or task.attempts_before_round or ended_at is None:
        return None
    return round((now - ended_at).total_seconds(), 2)


def _record(task: Task, reply: Reply, ports: DeliveryPorts) -> None:
    """Let the caller's other callbacks to this host profit from what this one met."""
    opened = ports.hosts.record(task.caller, task.host, reply)
    if opened is not None:
        ports.reporter.report(
            "receiver.circuit_opened",
            caller=task.caller,
            host=task.host,
            status=reply.status,
            error=reply.error,
            seconds=round(opened.total_seconds(), 1),
        )


async def _caller(task: Task, ports: DeliveryPorts) -> Caller | None:
    """Find the caller whose secret signs; None where its record is gone or broken.

    The schedule gives the operator time to mend it.
    """
    try:
        return await ports.callers.find(task.caller)
    except StoreUnavailableError:
        raise
    except Exception:  # noqa: BLE001  # a broken record costs an attempt, not the poller
        return None


async def send_attempt(task: Task, caller: Caller, now: datetime, callbacks: CallbackSender) -> Reply:
    """Sign a task's message afresh and send it once."""
    body = (task.message or "").encode()
    return await callbacks.send(task.callback_url or "", signed_headers(task, caller, now), body)


def signed_headers(task: Task, caller: Caller, now: datetime) -> dict[str, str]:
    """Give the headers of the next attempt at a task's message, signed now."""
    body = (task.message or "").encode()
    return {
        "content-type": "application/json",
        "user-agent": "taskhook",
        **signature.headers((secret.value for secret in caller.signing(now)), task.webhook_id, now, body),
        "x-modellix-event": task.event,
        "x-modellix-task-id": task.task_id,
        "x-modellix-delivery-id": task.webhook_id,
        "x-modellix-retry-count": str(task.attempts),
    }
