"""What a caller may see of its own tasks, take back, and have delivered again."""

import asyncio
import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from taskhook.models import MODELS
from taskhook.ports import (
    EXTRA_DELIVERY_GAP,
    BalanceOutcome,
    Caller,
    Clock,
    DeliveryRate,
    Reply,
    Reporter,
    StaleTaskError,
    TaskApi,
    TaskHistory,
    TaskStore,
    Wake,
)
from taskhook.submit import Allowance, RejectedError
from taskhook.task import Attempt, CallbackState, ErrorCode, Json, State, Task, milliseconds

MAX_LIMIT = 100
_MAX_SIZE = 1_500_000  # characters of one answer; Lambda refuses more than 6 MB
_PAGES = 10  # read at most for one answer; a rare filter goes on with the cursor
MAX_AGAIN = 500  # callbacks delivered again by one call
_AGAIN_PAGE = 100  # tasks read at a time for that
_WAIT_STEP = timedelta(seconds=1)  # between two looks at a task whose end is waited for
_BALANCE_KEPT = timedelta(seconds=60)
_BALANCE_AGAIN = timedelta(seconds=10)  # after an answer without one
REDELIVERIES_AHEAD = timedelta(hours=1)  # of a caller's rate that may be reserved
CANCELED = "canceled by its caller; it was never paid"
_TASK_ID = re.compile(r"tk_[A-Za-z0-9_-]{22}")
_STATUSES = {
    State.QUEUED: "pending",
    State.SUBMITTING: "pending",
    State.RESCUE: "pending",
    State.WATCHED: "processing",
    State.ARCHIVING: "processing",
    State.SUCCESS: "success",
    State.FAILED: "failed",
}


@dataclass(frozen=True)
class Filter:
    """Which of the caller's tasks to list; bounds are inclusive and exclusive, by time of acceptance."""

    status: str | None = None
    callback: CallbackState | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int = 20
    cursor: str | None = None

    @classmethod
    def read(cls, parameters: dict[str, str]) -> "Filter":
        """Validate the query parameters of a listing. Raises RejectedError."""
        known = {"status", "callback", "since", "until", "limit", "cursor"}
        if unknown := sorted(set(parameters) - known):
            raise _invalid(unknown[0], f"is not known; a listing takes {', '.join(sorted(known))}")
        status = parameters.get("status")
        if status is not None and status not in _STATUSES.values():
            raise _invalid("status", "must be one of pending, processing, success, failed")
        try:
            callback = CallbackState(parameters["callback"]) if "callback" in parameters else None
        except ValueError as error:
            raise _invalid("callback", f"must be one of {', '.join(CallbackState)}") from error
        limit = parameters.get("limit", "20")
        if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= MAX_LIMIT:
            raise _invalid("limit", f"must be between 1 and {MAX_LIMIT}")
        return cls(
            status=status,
            callback=callback,
            since=_moment("since", parameters.get("since")),
            until=_moment("until", parameters.get("until")),
            limit=int(limit),
            cursor=_cursor(parameters.get("cursor")),
        )

    @classmethod
    def read_again(cls, body: Json) -> "Filter":
        """Validate the body of a redelivery of many. Raises RejectedError."""
        known = {"state", "since", "until", "limit", "cursor"}
        if unknown := sorted(set(body) - known):
            raise _invalid(unknown[0], f"is not known; a redelivery takes {', '.join(sorted(known))}")
        for name in sorted(known - {"limit"}):
            if not isinstance(body.get(name), str | None):
                raise _invalid(name, "must be a string")
        state = body.get("state") or CallbackState.UNDELIVERED
        if state not in {CallbackState.DELIVERED, CallbackState.UNDELIVERED}:
            raise _invalid("state", "must be delivered or undelivered")
        limit = body.get("limit", _AGAIN_PAGE)
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_AGAIN:
            raise _invalid("limit", f"must be a number between 1 and {MAX_AGAIN}")
        return cls(
            callback=CallbackState(state),
            since=_moment("since", body.get("since")),
            until=_moment("until", body.get("until")),
            limit=limit,
            cursor=_cursor(body.get("cursor")),
        )

    @property
    def span(self) -> tuple[str, str]:
        """The sort keys between which to look, the lower one inclusive."""
        after = _listed(self.since) if self.since else "0"
        until = _listed(self.until) if self.until else "~"
        return after, min(until, self.cursor or until)

    def matches(self, task: Task) -> bool:
        """Tell whether a task of the right time is wanted."""
        return (self.status is None or _STATUSES[task.state] == self.status) and (
            self.callback is None or task.callback == self.callback
        )


async def show(task_id: str, *, caller: Caller, tasks: TaskStore) -> Task:
    """Find one of the caller's tasks. Raises RejectedError (404) for any other: what is another's does not exist."""
    return await tasks.whole(await _own(task_id, caller=caller, tasks=tasks))


async def wait(task_id: str, *, caller: Caller, tasks: TaskStore, clock: Clock, until: datetime) -> Task:
    """Find one of the caller's tasks as soon as it has ended, or as it stands `until` then. Raises RejectedError (404)."""
    task = await _own(task_id, caller=caller, tasks=tasks)
    while not task.state.final and clock.now() + _WAIT_STEP <= until:
        await clock.sleep(_WAIT_STEP)
        task = await _own(task_id, caller=caller, tasks=tasks)
    return await tasks.whole(task)


def is_waiting(parameters: dict[str, str]) -> bool:
    """Read whether the answer about a task is to wait for its end. Raises RejectedError."""
    asked = parameters.get("wait", "false")
    if asked not in {"true", "false"}:
        raise _invalid("wait", "must be true or false")
    return asked == "true"


async def _own(task_id: str, *, caller: Caller, tasks: TaskStore) -> Task:
    task = await tasks.get(task_id) if _TASK_ID.fullmatch(task_id) else None
    if task is None or task.caller != caller.caller:
        raise RejectedError(404, "Resource not found: there is no such task")
    return task


@dataclass
class Account:
    """The account at the vendor. What it said is kept for a while, so that no caller's curiosity takes the budget of submits."""

    vendor: TaskApi
    allowance: Allowance
    clock: Clock
    said: BalanceOutcome | None = None
    kept_until: datetime | None = None

    async def balance(self) -> float:
        """Give the balance, as of at most a minute ago. Raises RejectedError, StoreUnavailableError."""
        now = self.clock.now()
        if self.said is None or self.kept_until is None or now >= self.kept_until:
            if not await self.allowance.take(now):
                raise RejectedError(503, "Service unavailable: no request to the vendor is left right now", retry_after=6)
            self.said = await self.vendor.balance()
            self.kept_until = self.clock.now() + (_BALANCE_AGAIN if _balance(self.said) is None else _BALANCE_KEPT)
        balance = _balance(self.said)
        if balance is not None:
            return balance
        if self.said.status in {401, 402}:
            raise RejectedError(502, "Upstream refused: this deployment's key or balance")
        if self.said.answered:
            raise RejectedError(502, "Upstream failed: the vendor's answer holds no balance")
        again = round(_BALANCE_AGAIN / timedelta(seconds=1))
        raise RejectedError(503, "Service unavailable: the vendor does not answer", retry_after=again)


def _balance(said: BalanceOutcome) -> float | None:
    """Find a number that JSON can hold in what the vendor said of its account."""
    data = said.body.get("data")
    balance = data.get("balance") if isinstance(data, dict) else None
    is_number = isinstance(balance, int | float) and not isinstance(balance, bool) and math.isfinite(balance)
    return balance if is_number and 200 <= said.status < 300 else None  # noqa: PLR2004  # HTTP


async def cancel(
    task_id: str, *, caller: Caller, tasks: TaskStore, wake: Wake | None, clock: Clock, reporter: Reporter, retention: timedelta
) -> Task:
    """Take back a task that is still queued here; its callback says so. Raises RejectedError: 404, or 409 once it is paid."""
    task, now = await show(task_id, caller=caller, tasks=tasks), clock.now()
    try:
        if task.state is not State.QUEUED:
            raise RejectedError(409, f"Conflict: only a queued task can be canceled; this one is {_STATUSES[task.state]}")
        canceled = task.failed(ErrorCode.CANCELED, CANCELED, now, retention=retention, claim=now)
        canceled = await tasks.swap(task, canceled)
    except StaleTaskError as stale:
        raise RejectedError(409, "Conflict: the task is being submitted right now") from stale
    reporter.tell("task.ended", task_id=task_id, caller=caller.caller, state=canceled.state, error=canceled.error)
    if wake is not None and canceled.work is not None:
        await wake.wake(task_id)
    return canceled


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
    """Have a task's stored message delivered again, by a fresh round of the schedule that begins when the caller's rate allows.

    Also where it waits for its next attempt: a caller that has mended its receiver need not wait for hours.
    Raises RejectedError: 404, 409, or 429.
    """
    task = await show(task_id, caller=caller, tasks=tasks)
    if not task.state.final:
        raise RejectedError(
            409, f"Conflict: the task has not ended, it is {_STATUSES[task.state]}; its callback will come by itself"
        )
    if task.callback is CallbackState.NONE:
        why = "has no callback URL" if task.callback_url is None else "was refused in the answer to its submit"
        raise RejectedError(409, f"Conflict: there is no callback to deliver, the task {why}")
    now = clock.now()
    again = None
    if not task.claimed(now):
        [at] = await _moments(1, caller=caller, rate=rate, now=now)
        again = await _again(task, at, tasks=tasks, reporter=reporter)
    if again is None:
        raise RejectedError(409, "Conflict: the callback is being delivered right now", retry_after=30)
    if wake is not None:
        await wake.wake(task_id)
    return again


@dataclass(frozen=True)
class Redelivery:
    """How many messages one call puts back to work, when the last of them is due, and the cursor of the rest."""

    count: int
    last_attempt_at: datetime | None
    cursor: str | None


async def redeliver_many(
    wanted: Filter,
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

    Where the rate is reserved for an hour ahead it stops, and the cursor goes on from there. Raises RejectedError (429)
    where it cannot even begin.
    """
    after, until = wanted.span
    done: list[Task] = []
    cursor: str | None = until
    for _ in range(_PAGES):
        room = wanted.limit - len(done)
        if cursor is None or after >= cursor or room == 0:
            break
        page = await history.page(caller.caller, after=after, until=cursor, limit=_AGAIN_PAGE)
        matching = [task for task in page.tasks if wanted.matches(task)]
        chosen = matching[:room]
        try:
            moments = await _moments(len(chosen), caller=caller, rate=rate, now=clock.now())
        except RejectedError:
            if not done:
                raise
            break
        writes = (_again(task, at, tasks=tasks, reporter=reporter) for task, at in zip(chosen, moments, strict=True))
        done += [task for task in await asyncio.gather(*writes) if task is not None]
        cursor = matching[room - 1].listed if len(matching) > room else page.cursor
    if wake is not None and done:
        await wake.wake(done[0].task_id)  # the leader finds the others
    return Redelivery(
        count=len(done),
        last_attempt_at=max((task.next_attempt_at for task in done if task.next_attempt_at), default=None),
        cursor=cursor if cursor is not None and after < cursor else None,
    )


async def _moments(count: int, *, caller: Caller, rate: DeliveryRate, now: datetime) -> list[datetime]:
    """Say when so many messages are due by the caller's rate. Raises RejectedError (429) where it is reserved for too long."""
    if count == 0:
        return []
    latest = now + REDELIVERIES_AHEAD
    first = await rate.reserve_deliveries(caller.caller, count, now=now, latest=latest)
    if first > latest:
        message = "Too many requests: as many of your redeliveries as go out in an hour wait already"
        raise RejectedError(429, message, retry_after=math.ceil((first - latest).total_seconds()))
    return [first + EXTRA_DELIVERY_GAP * number for number in range(count)]


async def _again(task: Task, at: datetime, *, tasks: TaskStore, reporter: Reporter) -> Task | None:
    """Put one message back to work; None where another invocation has changed the task."""
    try:
        again = await tasks.swap(task, task.redelivered(at))
    except StaleTaskError:
        return None
    reporter.tell("callback.redelivered", task_id=task.task_id, caller=task.caller, was=task.callback)
    return again


async def list_tasks(wanted: Filter, *, caller: Caller, history: TaskHistory) -> tuple[list[Task], str | None]:
    """List the caller's tasks, newest first, with the cursor of the next page."""
    after, until = wanted.span
    if after >= until:  # no time at all, which a table may refuse to look for
        return [], None
    found: list[Task] = []
    size = 0
    for _ in range(_PAGES):
        page = await history.page(caller.caller, after=after, until=until, limit=wanted.limit)
        for task in page.tasks:
            if wanted.matches(task):
                found.append(task)
                size += len(task.message or "") + len(task.request or "")
            if len(found) == wanted.limit or size > _MAX_SIZE:
                return found, task.listed
        if page.cursor is None:
            return found, None
        until = page.cursor
    return found, until


def task_answer(task: Task) -> Json:
    """Render the vendor's task answer, with what only taskhook knows: upstream id, reference, callback, times, the request."""
    body: Json = json.loads(task.message) if task.message else {}
    data: Json = body.get("data") or {"status": _STATUSES[task.state], "task_id": task.task_id, "model_id": task.model}
    ours = {"upstream_task_id": task.upstream_task_id, "reference": task.reference, "callback_url": task.callback_url}
    data |= {name: value for name, value in ours.items() if value is not None}
    if task.unchecked:
        data["unchecked"] = task.unchecked
    data["callback"] = {
        "state": task.callback,
        "attempts": task.attempts,
        "next_attempt_at": iso(task.next_attempt_at),
        "log": [_entry(attempt) for attempt in task.log],
    }
    times = {
        "created_at": task.accepted_at,
        "submitted_at": task.submitted_at,
        "taken_at": task.taken_at,
        "ended_at": task.ended_at,
    }
    data |= {name: milliseconds(moment) for name, moment in times.items() if moment is not None}
    data["stage"] = task.state
    if task.request is not None:
        data["request"] = json.loads(task.request)
    return {"code": 0, "message": body.get("message", "success"), "data": data}


def submitted_data(task: Task, origin: str) -> Json:
    """Say of an accepted task what its submitter is told, in the vendor's form; `origin` is the one that callers use."""
    url = f"{origin}/api/v1/tasks/{task.task_id}"
    return {
        "status": "pending",
        "task_id": task.task_id,
        "model_id": task.model,
        "get_result": {"method": "GET", "url": url},
    }


def models_answer() -> Json:
    """List the known models; the vendor's answer has no envelope here."""
    return {"models": [{"slug": model.slug, "type": model.kind, "description": model.description} for model in MODELS.values()]}


def redelivery_answer(done: Redelivery) -> Json:
    """Tell how many messages go out again, and when the last of them does: they are spread by the caller's rate."""
    return {"count": done.count, "last_attempt_at": iso(done.last_attempt_at), "next_cursor": done.cursor}


def tried_answer(sample: Task, reply: Reply, *, delivered: bool) -> Json:
    """Tell what a receiver said to a sample, in the words of the attempt log."""
    said = reply.model_dump(include={"status", "error", "answer"}, exclude_none=True)
    ms = round(reply.elapsed / timedelta(milliseconds=1))
    return {"type": sample.event, "webhook_id": sample.webhook_id, "delivered": delivered, **said, "ms": ms}


def _entry(attempt: Attempt) -> Json:
    times = {"at": iso(attempt.at), "next_at": iso(attempt.next_at)}
    return attempt.model_dump(mode="json", exclude_none=True) | {name: time for name, time in times.items() if time is not None}


def _cursor(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[0-9]{13}_" + _TASK_ID.pattern, value):
        raise _invalid("cursor", "must be the next_cursor of an answer")
    return value


def _moment(name: str, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise _invalid(name, "must be an ISO 8601 time such as 2026-11-23T15:04:05Z") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _listed(moment: datetime) -> str:
    """Give the lowest sort key of a moment; no task is older than 1970, or younger than what 13 digits can tell (2286)."""
    return f"{min(max(milliseconds(moment), 0), 9_999_999_999_999):013d}"


def _invalid(name: str, complaint: str) -> RejectedError:
    return RejectedError(400, f"Invalid parameters: parameter '{name[:100]}' {complaint}")


def iso(moment: datetime | None) -> str | None:
    """Write a moment as answers do."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
