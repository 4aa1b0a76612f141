"""What a caller may see of its own tasks, take back, and have delivered again."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from taskhook.core import parameters
from taskhook.core.caller import Caller
from taskhook.core.errors import RejectedError
from taskhook.core.limits import MAX_LISTED, MAX_REDELIVERED, TASK_ID
from taskhook.core.ports import Clock, TaskHistory, TaskStore
from taskhook.core.record import CallbackState, State, milliseconds
from taskhook.core.task import Task

_MAX_SIZE = 1_500_000  # characters of one answer; Lambda refuses more than 6 MB
PAGES = 10  # read at most for one answer; a rare filter goes on with the cursor
AGAIN_PAGE = 100  # tasks read at a time to have callbacks delivered again
_WAIT_STEP = timedelta(seconds=1)  # between two looks at a task whose end is waited for


class Status(StrEnum):
    """`pending`: the vendor does not have the task yet; `processing`: it has."""

    PENDING = "pending"
    PROCESSING = "processing"
    SUCCESS = "success"
    FAILED = "failed"


STATUSES = {
    State.QUEUED: Status.PENDING,
    State.SUBMITTING: Status.PENDING,
    State.UNKNOWN: Status.PENDING,
    State.WATCHED: Status.PROCESSING,
    State.ARCHIVING: Status.PROCESSING,
    State.SUCCESS: Status.SUCCESS,
    State.FAILED: Status.FAILED,
}


def _moment(value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(value)  # type: ignore[arg-type]  # anything may be sent
    except (TypeError, ValueError) as error:
        raise ValueError("must be an ISO 8601 time such as 2026-11-23T15:04:05Z") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _cursor(value: str) -> str:
    if not re.fullmatch(r"[0-9]{13}_" + TASK_ID, value):
        raise ValueError("must be the next_cursor of an answer")
    return value


Time = Annotated[datetime, BeforeValidator(_moment)]
Cursor = Annotated[str, AfterValidator(_cursor)]


class _Wanted(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    what: ClassVar[str]  # takes these parameters

    since: Time | None = Field(default=None, description="Accepted then or later.")
    until: Time | None = Field(default=None, description="Accepted before.")
    cursor: Cursor | None = Field(default=None, description="The `next_cursor` of the answer before.")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Validate what a caller sent. Raises RejectedError."""
        return parameters.read(cls, values, what=cls.what)

    @property
    def span(self) -> tuple[str, str]:
        """The sort keys between which to look, the lower one inclusive."""
        after = _listed(self.since) if self.since else "0"
        until = _listed(self.until) if self.until else "~"
        return after, min(until, self.cursor or until)


class Filter(_Wanted):
    """Which of the caller's tasks to list."""

    what = "a listing"

    status: Status | None = None
    callback: CallbackState | None = Field(default=None, description="The state of the callback.")
    limit: int = Field(default=20, ge=1, le=MAX_LISTED)

    def matches(self, task: Task) -> bool:
        """Tell whether a task of the right time is wanted."""
        return (self.status is None or STATUSES[task.state] == self.status) and (
            self.callback is None or task.callback == self.callback
        )


class RedeliveryFilter(_Wanted):
    """Which of the caller's messages to deliver again."""

    what = "a redelivery"

    state: Literal[CallbackState.UNDELIVERED, CallbackState.DELIVERED] = CallbackState.UNDELIVERED
    limit: int = Field(default=AGAIN_PAGE, ge=1, le=MAX_REDELIVERED, strict=True)

    def matches(self, task: Task) -> bool:
        """Tell whether a task of the right time is wanted."""
        return task.callback == self.state


class ShowQuery(BaseModel):
    """How to be told of one task."""

    wait: Literal["true", "false"] = Field(
        default="false",
        description="Answer as soon as the task has ended, or as it stands after 13 s: ask again then.",
    )


async def show(task_id: str, *, caller: Caller, tasks: TaskStore) -> Task:
    """Find one of the caller's tasks.

    Raises RejectedError (404) for any other: what is another's does not exist.
    """
    return await tasks.with_request(await _own(task_id, caller=caller, tasks=tasks))


async def wait(task_id: str, *, caller: Caller, tasks: TaskStore, clock: Clock, until: datetime) -> Task:
    """Find one of the caller's tasks as soon as it has ended, or as it stands `until` then.

    Raises RejectedError (404).
    """
    task = await _own(task_id, caller=caller, tasks=tasks)
    while not task.state.final and clock.now() + _WAIT_STEP <= until:
        await clock.sleep(_WAIT_STEP)
        task = await _own(task_id, caller=caller, tasks=tasks)
    return await tasks.with_request(task)


def is_waiting(values: Mapping[str, str]) -> bool:
    """Read whether the answer about a task is to wait for its end. Raises RejectedError."""
    return parameters.read(ShowQuery, values, what="a look at a task").wait == "true"


async def _own(task_id: str, *, caller: Caller, tasks: TaskStore) -> Task:
    task = await tasks.get(task_id) if re.fullmatch(TASK_ID, task_id) else None
    if task is None or task.caller != caller.caller:
        raise RejectedError(HTTPStatus.NOT_FOUND, "Resource not found: there is no such task")
    return task


async def list_tasks(
    wanted: Filter, *, caller: Caller, history: TaskHistory
) -> tuple[list[Task], str | None]:
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
                return found, task.created_key
        if page.cursor is None:
            return found, None
        until = page.cursor
    return found, until


async def newest(vendor: str, *, caller: Caller, history: TaskHistory) -> list[Task]:
    """List the newest of the caller's tasks of one vendor, of PAGES pages at most."""
    found: list[Task] = []
    until: str | None = "~"
    for _ in range(PAGES):
        if until is None:
            break
        page = await history.page(caller.caller, after="0", until=until, limit=MAX_LISTED)
        found += [task for task in page.tasks if task.vendor == vendor]
        until = page.cursor
    return found


def _listed(moment: datetime) -> str:
    """Give the lowest sort key of a moment.

    No task is older than 1970, or younger than what 13 digits can tell (2286).
    """
    return f"{min(max(milliseconds(moment), 0), 9_999_999_999_999):013d}"
