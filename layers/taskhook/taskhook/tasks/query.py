"""What a caller may see of its own tasks, take back, and have delivered again."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

from taskhook.core.errors import RejectedError
from taskhook.core.limits import MAX_LISTED, MAX_REDELIVERED, TASK_ID
from taskhook.core.message import Json
from taskhook.core.ports import Caller, Clock, TaskHistory, TaskStore
from taskhook.core.task import CallbackState, State, Task, milliseconds

_MAX_SIZE = 1_500_000  # characters of one answer; Lambda refuses more than 6 MB
PAGES = 10  # read at most for one answer; a rare filter goes on with the cursor
AGAIN_PAGE = 100  # tasks read at a time for that
_WAIT_STEP = timedelta(seconds=1)  # between two looks at a task whose end is waited for
STATUSES = {
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
        if status is not None and status not in STATUSES.values():
            raise _invalid("status", "must be one of pending, processing, success, failed")
        try:
            callback = CallbackState(parameters["callback"]) if "callback" in parameters else None
        except ValueError as error:
            raise _invalid("callback", f"must be one of {', '.join(CallbackState)}") from error
        limit = parameters.get("limit", "20")
        if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= MAX_LISTED:
            raise _invalid("limit", f"must be between 1 and {MAX_LISTED}")
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
        limit = body.get("limit", AGAIN_PAGE)
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_REDELIVERED:
            raise _invalid("limit", f"must be a number between 1 and {MAX_REDELIVERED}")
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
        return (self.status is None or STATUSES[task.state] == self.status) and (
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
    task = await tasks.get(task_id) if re.fullmatch(TASK_ID, task_id) else None
    if task is None or task.caller != caller.caller:
        raise RejectedError(HTTPStatus.NOT_FOUND, "Resource not found: there is no such task")
    return task


async def list_tasks(wanted: Filter, *, caller: Caller, history: TaskHistory) -> tuple[list[Task], str | None]:
    """List the caller's tasks, newest first, with the cursor of the next page."""
    after, until = wanted.span
    if after >= until:  # no time at all, which a table may refuse to look for
        return [], None
    found: list[Task] = []
    size = 0
    for _ in range(PAGES):
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


def _cursor(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[0-9]{13}_" + TASK_ID, value):
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
    return RejectedError(HTTPStatus.BAD_REQUEST, f"Invalid parameters: parameter '{name[:100]}' {complaint}")
