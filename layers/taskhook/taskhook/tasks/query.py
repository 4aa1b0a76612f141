"""What a caller may see of its own tasks, and by which filters it finds them."""

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from taskhook.core import parameters
from taskhook.core.caller import Caller
from taskhook.core.errors import RejectedError
from taskhook.core.limits import (
    MAX_LISTED,
    MAX_LOOKED_AT,
    MAX_LOOKED_MB,
    MAX_REDELIVERED,
    MAX_REFERENCE,
    MAX_SEARCH,
    MAX_UPSTREAM_ID,
    PRINTABLE,
    TASK_ID,
)
from taskhook.core.ports import Clock, TaskHistory, TaskStore
from taskhook.core.record import CallbackState, State, milliseconds
from taskhook.core.task import Task

# Bytes of one answer. Lambda refuses more than 6 MB, and an answer within an answer may be twice as long.
_MAX_SIZE = 1_500_000
PAGE = 100  # tasks read at a time, of MAX_LOOKED_AT at most; a rare filter goes on with the cursor
FIRST_PAGE = 25  # until it is known how large they are
_MOST_READ = MAX_LOOKED_MB * 1024 * 1024
LOOK_TIME = timedelta(seconds=4)  # after which no further page is read
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


class CallbackStatus(StrEnum):
    """Where a callback stands, in the words of people; `waiting` and `failed` are other words for some.

    `pending`: it is not due yet, or has not been tried yet. `retrying`: the last attempt failed, and another
    one follows. `undelivered`: the schedule is through. `waiting` is the first two, `failed` the last.
    """

    NONE = "none"
    PENDING = "pending"
    RETRYING = "retrying"
    DELIVERED = "delivered"
    FAILED = "failed"
    WAITING = "waiting"
    UNDELIVERED = "undelivered"

    def matches(self, task: Task) -> bool:
        """Tell whether a task's callback stands so."""
        match self:
            case CallbackStatus.PENDING:
                return task.callback is CallbackState.WAITING and not task.retrying
            case CallbackStatus.RETRYING:
                return task.retrying
            case CallbackStatus.FAILED:
                return task.callback is CallbackState.UNDELIVERED
            case _:
                return task.callback == self.value


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


def _whole_number(value: object) -> object:
    """Read a number of a query, written with digits alone. Raises ValueError."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value) is None:
        raise ValueError("must be a whole number, written with digits")
    return value


Word = Annotated[str, Field(min_length=1, max_length=MAX_SEARCH, pattern=PRINTABLE)]
ShortWord = Annotated[str, Field(min_length=1, max_length=32, pattern=PRINTABLE)]
UpstreamId = Annotated[str, Field(min_length=1, max_length=MAX_UPSTREAM_ID, pattern=PRINTABLE)]
Time = Annotated[datetime, BeforeValidator(_moment)]
Cursor = Annotated[str, AfterValidator(_cursor)]


class _Wanted(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    what: ClassVar[str]  # takes these parameters

    since: Time | None = Field(default=None, description="Accepted then or later.")
    until: Time | None = Field(default=None, description="Accepted before.")
    cursor: Cursor | None = Field(default=None, description="The `next_cursor` of the answer before.")
    vendor: ShortWord | None = Field(default=None, description="Of this vendor.")
    model: Word | None = Field(
        default=None, description="Of this model, or of those that a pattern such as `alibaba/*` fits."
    )
    host: Annotated[Word, AfterValidator(str.lower)] | None = Field(
        default=None, description="Whose callback goes to this host, with its port or without."
    )

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

    def matches(self, task: Task) -> bool:
        """Tell whether a task of the right time is wanted."""
        return (
            (self.vendor is None or task.vendor == self.vendor)
            and (self.model is None or fnmatchcase(task.model, self.model))
            and (self.host is None or self.host in {task.host, task.host.rpartition(":")[0]})
        )


class Filter(_Wanted):
    """Which of the caller's tasks to list."""

    what = "a listing"

    status: Status | None = None
    callback: CallbackStatus | None = Field(
        default=None,
        description="Where the callback stands. `pending`: not due yet, or not tried yet; `retrying`: the "
        "last attempt failed, another one follows; `undelivered`: the schedule is through. `waiting` is "
        "`pending` or `retrying`, `failed` is `undelivered`.",
    )
    search: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_SEARCH,
        description="The task's id or the vendor's, or how its reference begins, in upper or lower case.",
    )
    task_id: ShortWord | None = Field(default=None, description="The task with this id.")
    upstream_task_id: UpstreamId | None = Field(
        default=None, description="Which the vendor knows by this id."
    )
    reference: str | None = Field(
        default=None, min_length=1, max_length=MAX_REFERENCE, description="With exactly this reference."
    )
    reference_prefix: str | None = Field(
        default=None, min_length=1, max_length=MAX_SEARCH, description="Whose reference begins so."
    )
    limit: Annotated[int, BeforeValidator(_whole_number)] = Field(default=20, ge=1, le=MAX_LISTED)

    @property
    def id(self) -> str | None:
        """The id of the one task that can be meant, if one is given."""
        word = self.task_id or self.search or ""
        return word if re.fullmatch(TASK_ID, word) else None

    @property
    def is_narrow(self) -> bool:
        """Whether some tasks of the right time may not match."""
        return bool(self.model_dump(exclude_none=True, exclude={"since", "until", "cursor", "limit"}))

    def matches(self, task: Task) -> bool:
        """Tell whether a task of the right time is wanted."""
        reference = task.reference or ""
        return (
            super().matches(task)
            and (self.status is None or STATUSES[task.state] == self.status)
            and (self.callback is None or self.callback.matches(task))
            and self.task_id in {None, task.task_id}
            and self.upstream_task_id in {None, task.upstream_task_id}
            and self.reference in {None, reference}
            and reference.startswith(self.reference_prefix or "")
            and self._finds(task)
        )

    def _finds(self, task: Task) -> bool:
        if self.search is None or self.search in {task.task_id, task.upstream_task_id}:
            return True
        return (task.reference or "").casefold().startswith(self.search.casefold())


class TotalsFilter(_Wanted):
    """Which of the caller's tasks to count."""

    what = "a count"


class RedeliveryFilter(_Wanted):
    """Which of the caller's messages to deliver again."""

    what = "a redelivery"

    state: Literal["undelivered", "failed", "retrying", "delivered"] = Field(
        default="undelivered",
        description="Where their callbacks stand; `retrying` ones go out now and not at their time. "
        "`failed` is `undelivered`.",
    )
    limit: int = Field(default=PAGE, ge=1, le=MAX_REDELIVERED, strict=True)

    def matches(self, task: Task) -> bool:
        """Tell whether a task of the right time is wanted; one that was asked for already is on its way."""
        is_on_its_way = task.callback is CallbackState.WAITING and task.round_begins
        return super().matches(task) and CallbackStatus(self.state).matches(task) and not is_on_its_way


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


class Listing(NamedTuple):
    """A page of tasks, newest first: how many were looked at for it, and back to when."""

    tasks: list[Task]
    cursor: str | None
    looked_at: int
    looked_back_to: datetime | None


async def list_tasks(
    wanted: Filter, *, caller: Caller, history: TaskHistory, tasks: TaskStore, clock: Clock
) -> Listing:
    """List the caller's tasks, newest first.

    There is no index by anything but time: of at most MAX_LOOKED_AT tasks, or as many as can be read in
    bounded size and time, those are found that match. Only what has a task's id is read by that.
    """
    after, until = wanted.span
    if wanted.id is not None:
        task = await tasks.get(wanted.id)
        is_own = task is not None and task.caller == caller.caller and after <= task.created_key < until
        if task is not None and is_own and wanted.matches(task):
            return Listing(await history.with_requests([task]), None, 1, task.accepted_at)
    if wanted.task_id is not None:
        return Listing([], None, 0, None)
    found: list[Task] = []
    looked_for: list[int] = []  # how many were looked at until each was found
    looked = Looked(until)
    most = MAX_LOOKED_AT if wanted.is_narrow else wanted.limit  # where each is wanted, no more need be read
    async for task in look(looked, after, caller=caller, history=history, clock=clock, most=most):
        if wanted.matches(task):
            found.append(task)
            looked_for.append(looked.at)
        if len(found) == wanted.limit:
            looked.cursor = task.created_key
            break
    listed, size = await history.with_requests(found), 0
    for number, task in enumerate(listed, start=1):
        size += _size(task) + len((task.request or "").encode())
        if size > _MAX_SIZE and number < len(listed):
            return Listing(listed[:number], task.created_key, looked_for[number - 1], task.accepted_at)
    return Listing(listed, looked.cursor, looked.at, looked.back_to)


def _size(task: Task) -> int:
    """Tell how many bytes a task takes, as far as they may be many."""
    return sum(len((text or "").encode()) for text in (task.message, task.result)) + 256 * len(task.log)


def _page_of(largest: int, room: int) -> int:
    """Tell how many tasks are read at once, where the largest so far has this size."""
    return min(PAGE, max(1, room // largest))


def next_page(tasks: Iterable[Task]) -> int:
    """Tell how many tasks are read after these, where none of them are kept."""
    return _page_of(max((_size(task) for task in tasks), default=1) or 1, _MOST_READ)


@dataclass
class Looked:
    """How far a look at a caller's tasks has come; `cursor` is None once there are no more."""

    cursor: str | None
    at: int = 0
    back_to: datetime | None = None


async def look(
    looked: Looked,
    after: str,
    *,
    caller: Caller,
    history: TaskHistory,
    clock: Clock,
    most: int = MAX_LOOKED_AT,
) -> AsyncIterator[Task]:
    """Go through a caller's tasks from `looked.cursor` back to `after`, `most` of them at most.

    No page is read after LOOK_TIME, or once they were MAX_LOOKED_MB large.
    """
    until, read, largest = clock.now() + LOOK_TIME, 0, 0
    limit = FIRST_PAGE
    while looked.cursor is not None and after < looked.cursor:
        limit = min(limit, most - looked.at)
        if limit == 0 or read >= _MOST_READ or (looked.at and clock.now() >= until):
            break
        page = await history.page(caller.caller, after=after, until=looked.cursor, limit=limit)
        sizes = [_size(task) for task in page.tasks]
        read, largest = read + sum(sizes), max(largest, *sizes, 1)
        limit = _page_of(largest, _MOST_READ - read)
        looked.cursor = page.cursor
        for task in page.tasks:
            looked.at += 1
            looked.back_to = task.accepted_at
            yield task
    if looked.cursor is not None and after >= looked.cursor:  # no time at all
        looked.cursor = None


async def newest(vendor: str, *, caller: Caller, history: TaskHistory, clock: Clock) -> list[Task]:
    """List the newest of the caller's tasks of one vendor, of as many as one call looks at."""
    everything = look(Looked("~"), "0", caller=caller, history=history, clock=clock)
    return [task async for task in everything if task.vendor == vendor]


def _listed(moment: datetime) -> str:
    """Give the lowest sort key of a moment.

    No task is older than 1970, or younger than what 13 digits can tell (2286).
    """
    return f"{min(max(milliseconds(moment), 0), 9_999_999_999_999):013d}"
