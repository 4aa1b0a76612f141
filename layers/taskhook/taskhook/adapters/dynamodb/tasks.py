"""Tasks in DynamoDB: one conditional write for every change, whose failure may show our own success.

An item has plain attributes, which read well in the AWS console. A task's request is an item of its own,
written once and before its task; the task's own item stays small, for writes are billed by its size.
"""

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from taskhook.adapters.dynamodb.items import Attributes, ConditionFailedError, Table, change
from taskhook.core.errors import StaleTaskError, StoreUnavailableError, TaskExistsError
from taskhook.core.ports import Clock, Reporter, Row, Rows, TaskPage
from taskhook.core.record import milliseconds, partition
from taskhook.core.task import Task

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

_GET_MANY = 100  # BatchGetItem's own limit
_PAGE = 1000  # rows of an index; a page of 1 MB has 8,000, which take 40 MB until they are read
_WRITE_AGAIN = timedelta(seconds=0.5)
# Between answers that give nothing.
_UNPROCESSED_WAITS = tuple(timedelta(seconds=seconds) for seconds in (0.1, 0.2, 0.4))
_PUSH_BACK = timedelta(minutes=10)
_RESERVED = "repeat#"
_REQUESTS_KEPT = timedelta(days=40)  # where it is not said
_BULK: Attributes = {"message": None, "result": None}


def values_of(task: Task) -> Attributes:
    """Give the attributes of a task's item.

    Names as they are, defaults left out, and what the indexes and TTL need.
    """
    values = task.model_dump(exclude_defaults=True, exclude={"request"})
    values["listed"] = task.created_key
    if task.work_key is not None:
        values["work"], values["work_at"] = task.work_key
    if task.expires_at is not None:
        values["expires_at"] = milliseconds(task.expires_at) // 1000  # TTL counts in seconds
    return values


def task_of(values: Attributes) -> Task:
    """Read a task from the attributes of its item.

    Raises ValueError or TypeError where they are no task's.
    """
    if "expires_at" in values:
        values = values | {"expires_at": values["expires_at"] * 1000}
    return Task.model_validate(values)


def request_key(task: Task) -> str:
    """Name the item of a task's request.

    It says what it holds: a repeat, or another request under the key, spoils nothing.
    """
    return f"{task.task_id}#{task.fingerprint}"


class DynamoTasks:
    """`TaskStore`, `WorkIndex` and `TaskHistory`: the tasks of the `Tasks` table, and its two indexes."""

    def __init__(
        self,
        client: "DynamoDBClient",
        table: str,
        *,
        clock: Clock,
        reporter: Reporter,
        requests_kept: timedelta = _REQUESTS_KEPT,
    ) -> None:
        self.table = Table(client, table, "task_id")
        self._clock = clock
        self._reporter = reporter
        self._requests_kept = requests_kept  # from their tasks' acceptance on

    # --- TaskStore --------------------------------------------------------------------------------

    async def add(self, task: Task) -> Task:
        """Store a new task. Raises TaskExistsError, StoreUnavailableError; safe to repeat."""
        task = task.model_copy(update={"nonce": secrets.token_hex(8)})
        await self._keep_request(task)
        try:
            await self._write(self.table.put, values_of(task), condition="attribute_not_exists(task_id)")
        except ConditionFailedError as failed:
            current = self._read(failed.found)
            if current is None:
                raise StoreUnavailableError("the task's item cannot be read") from failed
            if current.nonce != task.nonce:
                raise TaskExistsError(current) from failed
        return task

    async def get(self, task_id: str) -> Task | None:
        """Read the task as of now; an item that cannot be read is reported and pushed back."""
        values = await self.table.get(task_id)
        task = self._read(values)
        if task is None and values is not None and "work" in values:
            await self._push_back(values)
        return task

    async def with_request(self, task: Task) -> Task:
        """Give the task with its request, where that is still kept."""
        return task if task.request is not None else _with(task, await self.table.get(request_key(task)))

    async def _keep_request(self, task: Task) -> None:
        if task.request is not None:
            until = int((task.accepted_at + self._requests_kept).timestamp())
            kept = {"task_id": request_key(task), "request": task.request, "expires_at": until}
            await self._write(self.table.put, kept)

    async def reserve(
        self, request: str, task_id: str, *, repeat: bool, now: datetime, until: datetime
    ) -> str:
        """Give the id for the task of a request: `task_id`, or the one that is reserved. Safe to repeat."""
        key = f"{_RESERVED}{request}"
        end = {":until": milliseconds(until), ":end": int(until.timestamp()) + 1}
        free = "attribute_not_exists(task_id) OR kept_until <= :now"
        if not repeat:
            free = "attribute_not_exists(task_id) OR kept_until <= :now OR overtaken = :overtaken"
        update = "SET reserved = :id, overtaken = :overtaken, kept_until = :until, expires_at = :end"
        values = {":id": task_id, ":overtaken": repeat, ":now": milliseconds(now), **end}
        try:
            await self._write(self.table.update, key, update, values, condition=free)
        except ConditionFailedError as failed:
            found = failed.found or {}
        else:
            return task_id
        prolong = "SET overtaken = :overtaken, kept_until = :until, expires_at = :end"
        values = {":id": found["reserved"], ":overtaken": repeat and found["overtaken"], **end}
        with contextlib.suppress(ConditionFailedError):  # another request has reserved its own meanwhile
            await self._write(self.table.update, key, prolong, values, condition="reserved = :id")
        return str(found["reserved"])

    async def swap(self, old: Task, new: Task) -> Task:
        """Store `new` if the table still holds `old`.

        Raises StaleTaskError, StoreUnavailableError; safe to repeat.

        Names the attributes that change and no other: what a newer version has added to the item stays.
        """
        new = new.model_copy(update={"nonce": secrets.token_hex(8)})
        if new.accepted_at != old.accepted_at:  # another task under the same idempotency key
            await self._keep_request(new)
        update, names, values = change(values_of(old), values_of(new))
        values[":old"] = old.nonce
        try:
            await self._write(
                self.table.update, old.task_id, update, values, names=names, condition="nonce = :old"
            )
        except ConditionFailedError as failed:
            current = self._read(failed.found)
            if current is None or current.nonce != new.nonce:
                raise StaleTaskError(current) from failed
        except StoreUnavailableError as error:
            error.nonce = new.nonce
            raise
        return new

    async def _write(self, method: Callable[..., Awaitable[Any]], *arguments: Any, **on: Any) -> None:
        """Write, once more if no answer came: the same nonce shows whether the first had succeeded."""
        try:
            await method(*arguments, **on)
        except StoreUnavailableError:
            await self._clock.sleep(_WRITE_AGAIN)
            await method(*arguments, **on)

    # --- WorkIndex --------------------------------------------------------------------------------

    async def watched(self, vendor: str, since: datetime | None, *, cursor: Any = None) -> Rows:
        """Read a page of what was accepted from `since` on and is not left to the schedule of attempts."""
        return await self._rows(
            partition("watch", vendor), "work_at >= :at", {":at": _key_of(since)}, cursor=cursor
        )

    async def retries(self, since: datetime | None, before: datetime, *, cursor: Any = None) -> Rows:
        """Read a page of callbacks that are due from `since` to `before`, the earliest first."""
        values = {":from": _key_of(since), ":to": _key_of(before)}
        return await self._rows("retry", "work_at BETWEEN :from AND :to", values, cursor=cursor)

    async def queue_waits(self, vendor: str) -> bool:
        """Tell whether any task is queued for the vendor."""
        return bool(
            (await self._rows(partition("queue", vendor), "work_at > :at", {":at": " "}, limit=1)).rows
        )

    async def queue_length(self, vendor: str, caller: str, *, at_most: int) -> int:
        """Count a caller's tasks that are queued for the vendor, up to `at_most`."""
        queue = partition("queue", vendor)
        values, found, cursor = {":from": f"{caller}#", ":to": f"{caller}$"}, 0, None
        while found < at_most:
            rows, cursor = await self._rows(
                queue, "work_at BETWEEN :from AND :to", values, limit=at_most, cursor=cursor
            )
            found += len(rows)
            if cursor is None:
                break
        return min(found, at_most)

    async def queue_heads(self, vendor: str) -> list[Task]:
        """List each caller's oldest queued task: one row per caller, skipping from name to name."""
        heads: list[str] = []
        queue, after = partition("queue", vendor), " "
        while found := (await self._rows(queue, "work_at > :at", {":at": after}, limit=1)).rows:
            heads.append(found[0].task_id)
            after = found[0].at.partition("#")[0] + "$"  # the first string after every `name#…`
        return await self._tasks(heads)

    async def queue_of(self, vendor: str, caller: str) -> list[Task]:
        """List the oldest of a caller's tasks that are queued for the vendor, up to a hundred."""
        values = {":from": f"{caller}#", ":to": f"{caller}$"}
        queue, condition = partition("queue", vendor), "work_at BETWEEN :from AND :to"
        rows = (await self._rows(queue, condition, values, limit=_GET_MANY)).rows
        return await self._tasks([row.task_id for row in rows])

    async def _rows(
        self,
        partition: str,
        condition: str,
        values: dict[str, str],
        *,
        limit: int = _PAGE,
        cursor: Any = None,
    ) -> Rows:
        """Read a page of index rows, `limit` at most."""
        wanted, values, names = (
            f"#work = :work AND {condition}",
            {":work": partition, **values},
            {"#work": "work"},
        )
        while True:  # a page may be empty although more follow
            found, cursor = await self.table.query(
                "work", wanted, values, cursor=cursor, ExpressionAttributeNames=names, Limit=limit
            )
            if found or cursor is None:
                return Rows([Row(row["task_id"], row["work_at"]) for row in found], cursor)

    async def read_many(self, task_ids: Sequence[str]) -> list[Task]:
        """Read tasks, in this order, without message and result; what is gone or unreadable is left out."""
        return [task.model_copy(update=_BULK) for task in await self._tasks(task_ids)]

    async def _tasks(self, task_ids: Sequence[str], *, all_of_them: bool = False) -> list[Task]:
        found: dict[str, Task] = {}
        for values in await self._get_many(task_ids, all_of_them=all_of_them):
            task = self._read(values)
            if task is not None:
                found[task.task_id] = task
            else:
                with contextlib.suppress(StoreUnavailableError):
                    await self._push_back(values)
        return [found[task_id] for task_id in task_ids if task_id in found]

    async def _get_many(self, keys: Sequence[str], *, all_of_them: bool = False) -> list[Attributes]:
        """Read items, a hundred after the other: those may be 16 MB."""
        items: list[Attributes] = []
        for start in range(0, len(keys), _GET_MANY):
            items += await self._get_batch(keys[start : start + _GET_MANY], all_of_them=all_of_them)
        return items

    async def _get_batch(self, keys: Sequence[str], *, all_of_them: bool) -> list[Attributes]:
        """Read items, again and again while some come.

        What a throttled partition keeps back in spite of waiting is left out, for the next look; where
        `all_of_them` are wanted, raises StoreUnavailableError instead.
        """
        items: list[Attributes] = []
        waits = iter(_UNPROCESSED_WAITS)
        while keys:
            found, keys = await self.table.get_some(keys)
            items += found
            if not keys or found:
                continue
            wait = next(waits, None)
            if wait is None:
                self._reporter.report("tasks.left_out", count=len(keys))
                if all_of_them:
                    raise StoreUnavailableError("some items are throttled")
                return items
            await self._clock.sleep(wait)
        return items

    async def _push_back(self, unreadable: Attributes) -> None:
        """Move an item that cannot be read out of the way, counted; it is read again later, never deleted."""
        at, task_id = str(unreadable.get("work_at")), str(unreadable["task_id"])
        work = unreadable.get("work")
        before, when = ("", at) if work == "retry" else (at[: at.find("#") + 1], at[at.find("#") + 1 :])
        if when > f"{milliseconds(self._clock.now()):013d}":
            return  # pushed back already, and still seen because its caller has nothing else to do
        self._reporter.report("task.unreadable", task_id=task_id)
        if not str(work).startswith(("queue", "retry")):
            return  # `watch` is swept whole, so nothing waits behind it
        later = f"{before}{milliseconds(self._clock.now() + _PUSH_BACK):013d}{when[13:]}"
        update, values = "SET work_at = :later ADD unreadable :one", {":later": later, ":at": at, ":one": 1}
        with contextlib.suppress(ConditionFailedError):  # another poller moved it
            await self.table.update(task_id, update, values, condition="work_at = :at")

    # --- TaskHistory ------------------------------------------------------------------------------

    async def page(self, caller: str, *, after: str, until: str, limit: int) -> TaskPage:
        """Read up to `limit` tasks whose sort key is above `after` and below `until`, newest first."""
        rows: list[dict[str, str]] = []
        condition = "caller = :caller AND listed BETWEEN :after AND :until"
        values, cursor = {":caller": caller, ":after": after or "0", ":until": until}, None
        most = limit + 1  # BETWEEN includes its upper bound
        while True:  # an answer may end after any row
            found, cursor = await self.table.query(
                "by_caller", condition, values, cursor=cursor, ScanIndexForward=False, Limit=most
            )
            rows += [row for row in found if row["listed"] != until]
            if len(rows) >= limit or cursor is None:
                break
        more = len(rows) > limit or cursor is not None
        page = rows[:limit]
        tasks = await self._tasks([row["task_id"] for row in page], all_of_them=True)
        return TaskPage(tasks=tuple(tasks), cursor=page[-1]["listed"] if page and more else None)

    async def with_requests(self, tasks: Sequence[Task]) -> list[Task]:
        """Give tasks with their requests, where those are still kept."""
        kept = await self._get_many([request_key(task) for task in tasks], all_of_them=True)
        requests = {values["task_id"]: values for values in kept}
        return [_with(task, requests.get(request_key(task))) for task in tasks]

    def _read(self, values: Attributes | None) -> Task | None:
        try:
            return task_of(values) if values else None
        except (TypeError, ValueError):
            return None


def _with(task: Task, kept: Attributes | None) -> Task:
    """Give a task its request; as it is where that is gone or cannot be read."""
    request = (kept or {}).get("request")
    return task.model_copy(update={"request": request}) if isinstance(request, str) else task


def _key_of(moment: datetime | None) -> str:
    """Give where a time begins in a sort key; None is before all."""
    return f"{milliseconds(moment):013d}" if moment else "0"
