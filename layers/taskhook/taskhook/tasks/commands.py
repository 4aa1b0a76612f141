"""What a caller does with its tasks: cancel, redeliver."""

import asyncio
import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus

from taskhook.core.caller import Caller
from taskhook.core.errors import RejectedError, StaleTaskError, StoreUnavailableError
from taskhook.core.limits import MAX_LOOKED_AT
from taskhook.core.message import MAX_NOTE
from taskhook.core.ports import (
    EXTRA_DELIVERY_GAP,
    Clock,
    DeliveryRate,
    Reporter,
    TaskApi,
    TaskHistory,
    TaskStore,
    Wake,
)
from taskhook.core.rate_limit import Allowance
from taskhook.core.record import CallbackState, ErrorCode, State
from taskhook.core.task import Task
from taskhook.core.vendor import FreeOutcome, PollKind
from taskhook.tasks.query import FIRST_PAGE, LOOK_TIME, STATUSES, RedeliveryFilter, next_page, show

REDELIVERIES_AHEAD = timedelta(hours=1)  # of a caller's rate that may be reserved

CANCELED = "canceled by its caller; it was never paid"


async def cancel(
    task_id: str,
    *,
    caller: Caller,
    tasks: TaskStore,
    vendors: Mapping[str, TaskApi],
    allowances: Mapping[str, Allowance],
    wake: Wake | None,
    clock: Clock,
    reporter: Reporter,
    retention: timedelta,
    also_ended: bool = False,
) -> Task:
    """Take back a task that is still queued here, or ask the vendor that has it; its callback says so.

    With `also_ended` a task that has ended is fine, too. Raises RejectedError: 404, or 409 where it is too
    late.
    """
    task, now = await show(task_id, caller=caller, tasks=tasks), clock.now()
    if also_ended and task.state.final:
        return task
    api = vendors.get(task.vendor)
    if task.state is State.WATCHED and api is not None and api.vendor.cancel("") is not None:
        asked = await _VendorCancel(api, allowances[task.vendor], tasks, wake, clock).ask(task)
        if asked is not None:
            return asked
        if also_ended:
            return task
        raise RejectedError(
            HTTPStatus.CONFLICT, "Conflict: the task has ended at the vendor; its callback tells how"
        )
    try:
        if task.state is not State.QUEUED:
            raise RejectedError(
                HTTPStatus.CONFLICT,
                f"Conflict: only a queued task can be canceled; this one is {STATUSES[task.state]}",
            )
        canceled = task.failed(ErrorCode.CANCELED, CANCELED, now, retention=retention, claim=now)
        canceled = await tasks.swap(task, canceled)
    except StaleTaskError as stale:
        raise RejectedError(HTTPStatus.CONFLICT, "Conflict: the task is being submitted right now") from stale
    reporter.report(
        "task.ended", task_id=task_id, caller=caller.caller, state=canceled.state, error=canceled.error
    )
    if wake is not None and canceled.work_key is not None:
        await wake.wake(task_id)
    return canceled


@dataclass(frozen=True)
class _VendorCancel:
    """How a vendor is asked to cancel a task, within its budget."""

    api: TaskApi
    allowance: Allowance
    tasks: TaskStore
    wake: Wake | None
    clock: Clock

    async def ask(self, task: Task) -> Task | None:
        """Ask; None where the task has ended.

        That the vendor is asked is stored before the request, and forgotten only where it refuses: any other
        task may have been canceled, and what became of it polls tell. Raises RejectedError where the vendor
        refuses, does not know the task, or does not answer; StoreUnavailableError before it is asked.
        """
        now = self.clock.now()
        await self.allowance.require(now)
        if self.api.vendor.cancel_removes:
            await self.allowance.require(now)
            # A task that ends between this answer and the cancel is removed all the same: such a vendor has
            # no way to cancel only what has not ended. Both requests are in the budget already, so only one
            # write lies between them.
            match await self._kind_of(task):
                case PollKind.SUCCEEDED | PollKind.FAILED:
                    return None
                case PollKind.MISSING if task.canceled_at is not None:
                    return task
                case PollKind.MISSING:
                    raise _not_canceled("it does not know it")
        asked = await self._noted(task, now)
        if asked is None:
            return None
        said = await self.api.cancel(task.upstream_task_id or "", operation=task.operation)
        if HTTPStatus.OK <= said.status < HTTPStatus.MULTIPLE_CHOICES:
            if self.wake is not None:
                await self.wake.wake(task.task_id, ended=True)
            return asked
        return await self._not_taken(asked, said, now)

    async def _noted(self, task: Task, now: datetime) -> Task | None:
        """Store that the vendor is asked, where that is not stored yet; None where the task has ended."""
        while task.canceled_at is None:
            try:
                return await self.tasks.swap(task, task.cancel_asked(now))
            except StaleTaskError as stale:  # the poller has noted an answer, or the end
                if stale.current is None or stale.current.state is not State.WATCHED:
                    return None
                task = stale.current
        return task

    async def _not_taken(self, asked: Task, said: FreeOutcome, now: datetime) -> Task | None:
        """Forget a cancel that was refused; of a repeat, ask how the task stands: None for a success.

        A repeat is refused as well where the first one was taken, and then it is fine. Raises RejectedError
        for any other.
        """
        is_answer = said.answered and said.status != HTTPStatus.NOT_FOUND
        is_refused = said.no_key or is_answer or said.status == HTTPStatus.TOO_MANY_REQUESTS
        if is_refused and asked.canceled_at == now:
            with contextlib.suppress(StaleTaskError, StoreUnavailableError):  # what is lost is canceled then
                await self.tasks.swap(asked, asked.cancel_refused())
        elif is_answer:
            await self.allowance.require(self.clock.now())
            match await self._kind_of(asked):
                case PollKind.FAILED | PollKind.MISSING:
                    return asked
                case PollKind.SUCCEEDED:
                    return None
        if not said.answered:
            raise _no_answer()
        why = said.body.get("message") or said.body.get("error") or f"it answered {said.status}"
        raise _not_canceled(str(why.get("message", why) if isinstance(why, dict) else why))

    async def _kind_of(self, task: Task) -> PollKind:
        """Ask how a task stands; an end that was not seen yet is handed to the poller at once.

        Raises RejectedError where the vendor does not say.
        """
        outcome = await self.api.poll(task.upstream_task_id or "", operation=task.operation)
        if outcome.kind.ended and self.wake is not None:
            await self.wake.wake(task.task_id, ended=True, known_outcome=outcome)
        if outcome.kind.known or outcome.kind is PollKind.MISSING:
            return outcome.kind
        raise _no_answer()


def _not_canceled(why: str) -> RejectedError:
    return RejectedError(
        HTTPStatus.CONFLICT, f"Conflict: the vendor does not cancel the task: {why}"[:MAX_NOTE]
    )


def _no_answer() -> RejectedError:
    return RejectedError(
        HTTPStatus.SERVICE_UNAVAILABLE, "Service unavailable: the vendor does not answer", retry_after=5
    )


async def with_callback(task_id: str, *, caller: Caller, tasks: TaskStore) -> Task:
    """Read a task that has a callback to deliver. Raises RejectedError: 404, or 409."""
    task = await show(task_id, caller=caller, tasks=tasks)
    if not task.state.final:
        raise RejectedError(
            HTTPStatus.CONFLICT,
            f"Conflict: the task has not ended, it is {STATUSES[task.state]}; its callback will come by "
            "itself",
        )
    if task.callback is CallbackState.NONE:
        why = (
            "has no callback URL" if task.callback_url is None else "was refused in the answer to its submit"
        )
        raise RejectedError(HTTPStatus.CONFLICT, f"Conflict: there is no callback to deliver, the task {why}")
    return task


async def redeliver(
    task_id: str,
    *,
    caller: Caller,
    tasks: TaskStore,
    rate: DeliveryRate,
    wake: Wake | None,
    clock: Clock,
    reporter: Reporter,
) -> Task:
    """Have a task's message delivered again, by a fresh round of the schedule, when the caller's rate allows.

    A message that waits for its next attempt may be asked for too: a caller that has mended its receiver need
    not wait for hours. Raises RejectedError: 404, 409, or 429.
    """
    task = await with_callback(task_id, caller=caller, tasks=tasks)
    now = clock.now()
    again = None
    if not task.claimed(now):
        [at] = await _moments(1, caller=caller, rate=rate, now=now)
        again = await _again(task, at, tasks=tasks, reporter=reporter)
    if again is None:
        raise RejectedError(
            HTTPStatus.CONFLICT, "Conflict: the callback is being delivered right now", retry_after=30
        )
    if wake is not None:
        await wake.wake(task_id)
    return again


@dataclass(frozen=True)
class Redelivery:
    """How many messages one call puts back to work, when the last is due, and the cursor of the rest."""

    count: int
    last_attempt_at: datetime | None
    cursor: str | None


async def redeliver_many(
    wanted: RedeliveryFilter,
    *,
    caller: Caller,
    history: TaskHistory,
    tasks: TaskStore,
    rate: DeliveryRate,
    wake: Wake | None,
    clock: Clock,
    reporter: Reporter,
) -> Redelivery:
    """Have up to `wanted.limit` stored messages delivered again, newest first, at the caller's rate.

    Where the rate is reserved for an hour ahead it stops, and the cursor goes on from there. What is being
    delivered right now is left alone. Raises RejectedError (429) where it cannot even begin.
    """
    after, until = wanted.span
    done: dict[str, datetime | None] = {}  # and no task, for each has its message, which may be large
    cursor: str | None = until
    began, looked_at, limit = clock.now(), 0, FIRST_PAGE
    while looked_at < MAX_LOOKED_AT:
        room = wanted.limit - len(done)
        if cursor is None or after >= cursor or room == 0 or clock.now() >= began + LOOK_TIME:
            break
        limit = min(limit, MAX_LOOKED_AT - looked_at)
        page = await history.page(caller.caller, after=after, until=cursor, limit=limit)
        looked_at, limit = looked_at + limit, next_page(page.tasks)
        now = clock.now()
        matching = [task for task in page.tasks if wanted.matches(task) and not task.claimed(now)]
        chosen = matching[:room]
        try:
            moments = await _moments(len(chosen), caller=caller, rate=rate, now=now)
        except RejectedError:
            if not done:
                raise
            break
        writes = (
            _again(task, at, tasks=tasks, reporter=reporter) for task, at in zip(chosen, moments, strict=True)
        )
        written = await asyncio.gather(*writes)
        done |= {task.task_id: task.next_attempt_at for task in written if task is not None}
        cursor = matching[room - 1].created_key if len(matching) > room else page.cursor
    if wake is not None and done:
        await wake.wake(next(iter(done)))  # the leader finds the others
    return Redelivery(
        count=len(done),
        last_attempt_at=max((at for at in done.values() if at is not None), default=None),
        cursor=cursor if cursor is not None and after < cursor else None,
    )


async def _moments(count: int, *, caller: Caller, rate: DeliveryRate, now: datetime) -> list[datetime]:
    """Say when so many messages are due by the caller's rate.

    Raises RejectedError (429) where it is reserved for too long.
    """
    if count == 0:
        return []
    latest = now + REDELIVERIES_AHEAD
    first = await rate.reserve_deliveries(caller.caller, count, now=now, latest=latest)
    if first > latest:
        message = "Too many requests: as many of your redeliveries as go out in an hour wait already"
        raise RejectedError(
            HTTPStatus.TOO_MANY_REQUESTS, message, retry_after=math.ceil((first - latest).total_seconds())
        )
    return [first + EXTRA_DELIVERY_GAP * number for number in range(count)]


async def _again(task: Task, at: datetime, *, tasks: TaskStore, reporter: Reporter) -> Task | None:
    """Put one message back to work; None where another invocation has changed the task."""
    try:
        again = await tasks.swap(task, task.redelivered(at))
    except StaleTaskError:
        return None
    reporter.report("callback.redelivered", task_id=task.task_id, caller=task.caller, was=task.callback)
    return again
