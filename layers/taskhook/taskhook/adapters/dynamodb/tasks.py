"""Tasks, lease and callers in DynamoDB: one conditional write for every change, whose failure may show our own success.

botocore writes again when an answer was lost. Every conditional write therefore carries a fresh nonce and asks for the item
that made the condition fail: if that item bears our nonce, the first try had succeeded.
"""

import contextlib
import secrets
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from taskhook.adapters.dynamodb.items import (
    Attributes,
    ConditionFailedError,
    attributes,
    call,
    is_apart,
    packed,
    plain,
    request_key,
    stored_values,
    with_request,
)
from taskhook.adapters.dynamodb.items import item as _item
from taskhook.core.admission import Gate
from taskhook.core.errors import (
    StaleTaskError,
    StoreUnavailableError,
    TaskExistsError,
)
from taskhook.core.ports import EXTRA_DELIVERY_GAP, Clock, LeaseView, Reporter, Row, Rows, TaskPage
from taskhook.core.task import Task, milliseconds

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

_GET_MANY = 100  # BatchGetItem's own limit
_PAGE = 1000  # rows of an index; a page of 1 MB has 8,000, which take 40 MB until they are read
_WRITE_AGAIN = timedelta(seconds=0.5)
_UNPROCESSED_WAITS = tuple(timedelta(seconds=seconds) for seconds in (0.1, 0.2, 0.4))  # between answers that give nothing
_PUSH_BACK = timedelta(minutes=10)
_LEASE, _GATE = "lease", "gate"
_BUDGET_KEPT_S = 3600
_RESERVED = "repeat#"
_RESERVED_KEPT = timedelta(days=1)  # after the latest moment that may have been reserved
_RESERVE_TRIES = 3
_MS = timedelta(milliseconds=1)
_REQUESTS_KEPT = timedelta(days=40)  # where nobody says
_BULK: Attributes = {"request": None, "message": None, "result": None}
_HANDED_OVER_KEPT_S = 600


class DynamoTasks:
    """The `Tasks` table: `TaskStore`, `WorkIndex`, `TaskHistory`, `Lease`, `Gates`, `Budget`, `DeliveryRate` over one client."""

    def __init__(
        self, client: "DynamoDBClient", table: str, *, clock: Clock, reporter: Reporter, requests_kept: timedelta = _REQUESTS_KEPT
    ) -> None:
        self._client = client
        self._table = table
        self._clock = clock
        self._reporter = reporter
        self._requests_kept = requests_kept  # those that are stored apart, from their tasks' acceptance on

    # --- TaskStore -------------------------------------------------------------------------------------------------------

    async def add(self, task: Task) -> Task:
        """Store a new task. Raises TaskExistsError, StoreUnavailableError; safe to repeat."""
        task = task.model_copy(update={"nonce": secrets.token_hex(8)})
        await self._keep_request(task)
        try:
            await self._write(
                self._client.put_item,
                TableName=self._table,
                Item=_item(attributes(task)),
                ConditionExpression="attribute_not_exists(task_id)",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except ConditionFailedError as failed:
            current = self._read(failed.item)
            if current is None:
                raise StoreUnavailableError("the task's item cannot be read") from failed
            if current.nonce != task.nonce:
                raise TaskExistsError(current) from failed
        return task

    async def get(self, task_id: str) -> Task | None:
        """Read the task as of now; an item that cannot be read is told and pushed back."""
        item = await self._item(task_id)
        task = self._read(item)
        if task is None and item is not None and "work" in item:
            await self._push_back(item)
        return task

    async def whole(self, task: Task) -> Task:
        """Give the task with its request, where that is still kept."""
        return task if task.request is not None else with_request(task, await self._item(request_key(task)))

    async def _item(self, key: str) -> Attributes | None:
        answer = await call(self._client.get_item, TableName=self._table, Key=_item({"task_id": key}), ConsistentRead=True)
        item: Attributes | None = answer.get("Item")
        return item

    async def _keep_request(self, task: Task) -> None:
        """Store a long request apart, before its task: it is written once, and the task several times.

        Its key says what it holds, so that a repeat, or another request with the same idempotency key, spoils nothing.
        """
        if task.request is not None and is_apart(task):
            until = int((task.accepted_at + self._requests_kept).timestamp())
            apart = {"task_id": request_key(task), "request": packed(task.request), "expires_at": until}
            await self._write(self._client.put_item, TableName=self._table, Item=_item(apart))

    async def reserve(self, request: str, task_id: str, *, repeat: bool, now: datetime, until: datetime) -> str:
        """Give the id for the task of a request: `task_id`, or the one that is reserved. Safe to repeat."""
        key = _item({"task_id": f"{_RESERVED}{request}"})
        end = {":until": milliseconds(until), ":end": int(until.timestamp()) + 1}
        free = "attribute_not_exists(task_id) OR kept_until <= :now"
        if not repeat:
            free = "attribute_not_exists(task_id) OR kept_until <= :now OR overtaken = :overtaken"
        values = {":id": task_id, ":overtaken": repeat, ":now": milliseconds(now), **end}
        try:
            await self._write(
                self._client.update_item,
                TableName=self._table,
                Key=key,
                UpdateExpression="SET reserved = :id, overtaken = :overtaken, kept_until = :until, expires_at = :end",
                ConditionExpression=free,
                ExpressionAttributeValues=_item(values),
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except ConditionFailedError as failed:
            found = stored_values(failed.item or {})
        else:
            return task_id
        with contextlib.suppress(ConditionFailedError):  # another request has reserved an id of its own meanwhile
            await self._write(
                self._client.update_item,
                TableName=self._table,
                Key=key,
                UpdateExpression="SET overtaken = :overtaken, kept_until = :until, expires_at = :end",
                ConditionExpression="reserved = :id",
                ExpressionAttributeValues=_item({":id": found["reserved"], ":overtaken": repeat and found["overtaken"], **end}),
            )
        return str(found["reserved"])

    async def swap(self, old: Task, new: Task) -> Task:
        """Store `new` if the table still holds `old`. Raises StaleTaskError, StoreUnavailableError; safe to repeat.

        Names the attributes that change and no other: what a newer version has added to the item stays.
        """
        new = new.model_copy(update={"nonce": secrets.token_hex(8)})
        before, after = attributes(old), attributes(new)
        if new.accepted_at != old.accepted_at:  # another task under the same idempotency key: nothing of its request stays
            await self._keep_request(new)
            before["request"] = b""
        changed = {name: value for name, value in after.items() if before.get(name) != value}
        names = {f"#{index}": name for index, name in enumerate((*changed, *(before.keys() - after.keys())))}
        values = {f":{index}": value for index, value in enumerate(changed.values())}
        update = "SET " + ", ".join(f"#{index} = :{index}" for index in range(len(changed)))
        if removed := list(names)[len(changed) :]:
            update += " REMOVE " + ", ".join(removed)
        try:
            await self._write(
                self._client.update_item,
                TableName=self._table,
                Key=_item({"task_id": old.task_id}),
                UpdateExpression=update,
                ConditionExpression="nonce = :old",
                ExpressionAttributeNames=names,
                ExpressionAttributeValues=_item({**values, ":old": old.nonce}),
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except ConditionFailedError as failed:
            current = self._read(failed.item)
            if current is None or current.nonce != new.nonce:
                raise StaleTaskError(current) from failed
        return new

    async def _write(self, method: Callable[..., Any], **request: Any) -> None:
        """Write on condition, once more if no answer came: it bears the same nonce, so that it knows the first one's success."""
        try:
            await call(method, **request)
        except StoreUnavailableError:
            await self._clock.sleep(_WRITE_AGAIN)
            await call(method, **request)

    # --- WorkIndex -------------------------------------------------------------------------------------------------------

    async def watched(self, since: datetime | None, *, cursor: Any = None) -> Rows:
        """Read a page of what was accepted at or after `since` and is not left to the schedule of attempts."""
        return await self._rows("watch", "work_at >= :at", {":at": _key_of(since)}, cursor=cursor)

    async def retries(self, since: datetime | None, before: datetime, *, cursor: Any = None) -> Rows:
        """Read a page of the callbacks whose next attempt is due from `since` to `before`, the earliest first."""
        values = {":from": _key_of(since), ":to": _key_of(before)}
        return await self._rows("retry", "work_at BETWEEN :from AND :to", values, cursor=cursor)

    async def queue_waits(self) -> bool:
        """Tell whether any task is queued."""
        return bool((await self._rows("queue", "work_at > :at", {":at": " "}, limit=1)).rows)

    async def queue_length(self, caller: str, *, at_most: int) -> int:
        """Count a caller's queued tasks, up to `at_most`."""
        values, found, cursor = {":from": f"{caller}#", ":to": f"{caller}$"}, 0, None
        while found < at_most:
            rows, cursor = await self._rows("queue", "work_at BETWEEN :from AND :to", values, limit=at_most, cursor=cursor)
            found += len(rows)
            if cursor is None:
                break
        return min(found, at_most)

    async def queue_heads(self) -> list[Task]:
        """List each caller's oldest queued task: one row per caller, skipping from name to name."""
        heads: list[str] = []
        after = " "
        while found := (await self._rows("queue", "work_at > :at", {":at": after}, limit=1)).rows:
            heads.append(found[0].task_id)
            after = found[0].at.partition("#")[0] + "$"  # the first string after every `name#…`
        return await self._tasks(heads)

    async def _rows(
        self, partition: str, condition: str, values: dict[str, str], *, limit: int = _PAGE, cursor: Any = None
    ) -> Rows:
        """Read a page of index rows, `limit` at most."""
        request: Attributes = {"Limit": limit}
        while True:  # a page may be empty although more follow
            if cursor is not None:
                request["ExclusiveStartKey"] = cursor
            answer = await call(
                self._client.query,
                TableName=self._table,
                IndexName="work",
                KeyConditionExpression=f"#work = :work AND {condition}",
                ExpressionAttributeNames={"#work": "work"},
                ExpressionAttributeValues=_item({":work": partition, **values}),
                **request,
            )
            rows = [Row(item["task_id"]["S"], item["work_at"]["S"]) for item in answer["Items"]]
            cursor = answer.get("LastEvaluatedKey")
            if rows or cursor is None:
                return Rows(rows, cursor)

    async def read_many(self, task_ids: Sequence[str]) -> list[Task]:
        """Read tasks, in this order, without request, message and result; what is gone or unreadable is left out."""
        return [task.model_copy(update=_BULK) for task in await self._tasks(task_ids)]

    async def _tasks(self, task_ids: Sequence[str], *, all_of_them: bool = False) -> list[Task]:
        found: dict[str, Task] = {}
        for start in range(0, len(task_ids), _GET_MANY):  # one after the other: a hundred may be 16 MB
            for item in await self._get_many(list(task_ids[start : start + _GET_MANY]), all_of_them=all_of_them):
                task = self._read(item)
                if task is not None:
                    found[task.task_id] = task
                else:
                    with contextlib.suppress(StoreUnavailableError):
                        await self._push_back(item)
        return [found[task_id] for task_id in task_ids if task_id in found]

    async def _get_many(self, task_ids: list[str], *, all_of_them: bool = False) -> list[Attributes]:
        """Read items, again and again while some come; what a throttled partition keeps back in spite of waiting is left out.

        The next look finds it. Where `all_of_them` are wanted, raises StoreUnavailableError instead.
        """
        items: list[Attributes] = []
        keys = [_item({"task_id": task_id}) for task_id in task_ids]
        waits = iter(_UNPROCESSED_WAITS)
        while keys:
            answer = await call(self._client.batch_get_item, RequestItems={self._table: {"Keys": keys}})
            found = answer["Responses"].get(self._table, [])
            items += found
            keys = answer["UnprocessedKeys"].get(self._table, {}).get("Keys", [])
            if not keys or found:
                continue
            wait = next(waits, None)
            if wait is None:
                self._reporter.tell("tasks.left_out", count=len(keys))
                if all_of_them:
                    raise StoreUnavailableError("some items are throttled")
                return items
            await self._clock.sleep(wait)
        return items

    async def _push_back(self, unreadable: Attributes) -> None:
        """Move an item that cannot be read out of the way, counted; it is never deleted, and read again later."""
        item = plain({name: unreadable[name] for name in ("task_id", "work", "work_at") if name in unreadable})
        at, task_id = str(item.get("work_at")), item.get("task_id")
        before, when = ("", at) if item.get("work") == "retry" else (at[: at.find("#") + 1], at[at.find("#") + 1 :])
        if when > f"{milliseconds(self._clock.now()):013d}":
            return  # pushed back already, and still seen because its caller has nothing else to do
        self._reporter.tell("task.unreadable", task_id=str(task_id))
        if item.get("work") not in {"queue", "retry"}:
            return  # `watch` is swept whole, so nothing waits behind it
        later = f"{before}{milliseconds(self._clock.now() + _PUSH_BACK):013d}{when[13:]}"
        with contextlib.suppress(ConditionFailedError):  # somebody else moved it
            await call(
                self._client.update_item,
                TableName=self._table,
                Key=_item({"task_id": task_id}),
                UpdateExpression="SET work_at = :later ADD unreadable :one",
                ConditionExpression="work_at = :at",
                ExpressionAttributeValues=_item({":later": later, ":at": at, ":one": 1}),
            )

    # --- TaskHistory -----------------------------------------------------------------------------------------------------

    async def page(self, caller: str, *, after: str, until: str, limit: int) -> TaskPage:
        """Read up to `limit` tasks whose sort key is above `after` and below `until`, newest first."""
        rows: list[Attributes] = []
        request: Attributes = {}
        while True:  # an answer may end after any row
            answer = await call(
                self._client.query,
                TableName=self._table,
                IndexName="by_caller",
                KeyConditionExpression="caller = :caller AND listed BETWEEN :after AND :until",
                ExpressionAttributeValues=_item({":caller": caller, ":after": after or "0", ":until": until}),
                ScanIndexForward=False,
                Limit=limit + 1,  # BETWEEN includes its upper bound
                **request,
            )
            rows += [row for row in map(stored_values, answer["Items"]) if row["listed"] != until]
            if len(rows) >= limit or "LastEvaluatedKey" not in answer:
                break
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
        more = len(rows) > limit or "LastEvaluatedKey" in answer
        cursor = rows[:limit][-1]["listed"] if rows and more else None
        tasks = await self._tasks([row["task_id"] for row in rows[:limit]], all_of_them=True)
        apart = await self._get_many([request_key(task) for task in tasks if task.request is None], all_of_them=True)
        requests = {item["task_id"]["S"]: item for item in apart}
        return TaskPage(tasks=tuple(with_request(task, requests.get(request_key(task))) for task in tasks), cursor=cursor)

    # --- Lease, Gates, Budget: control items in the same table, under keys that no task has ------------------------------

    async def view(self) -> LeaseView:
        """Read the lease as of now."""
        return LeaseView.model_validate(await self._control(_LEASE))

    async def take(self, seen: LeaseView, new: LeaseView, *, takeover: bool) -> bool:
        """Store `new` as holder, if the holder is still the one `seen`, or whoever it is when `takeover`."""
        until = milliseconds(new.until) if new.until else 0
        values = {":holder": new.holder, ":until": until, ":held": list(new.held_models)}
        condition = {}
        if not takeover:  # two wakes at once: the second finds the first one's name; a repeat finds its own
            values[":seen"] = seen.holder
            condition = {"ConditionExpression": "attribute_not_exists(holder) OR holder = :seen OR holder = :holder"}
        update = "SET holder = :holder, #until = :until, held_models = :held REMOVE left_at"
        return await self._update_control(_LEASE, update, values, names={"#until": "until"}, **condition)

    async def release(self, holder: str, *, left_at: datetime | None = None) -> None:
        """Give the lease up if `holder` still has it; `left_at` says that nothing was due by then."""
        values, update = {":holder": holder, ":over": 0}, "SET #until = :over"
        if left_at is not None:
            values[":left"] = milliseconds(left_at)
            update += ", left_at = :left"
        condition = "holder = :holder"
        await self._update_control(_LEASE, update, values, names={"#until": "until"}, ConditionExpression=condition)

    async def hinted(self, at: datetime | None) -> None:
        """Remember when a hint last proved true; None forgets it."""
        await self._update_control(_LEASE, "SET hinted_at = :at", {":at": milliseconds(at) if at else 0})

    async def hand_over(self, holder: str, unserved: Mapping[str, datetime]) -> None:
        """Leave to the successor of `holder` which poll times were due and not served."""
        left = {task_id: milliseconds(due) for task_id, due in unserved.items()}
        end = int(self._clock.now().timestamp()) + _HANDED_OVER_KEPT_S
        await self._update_control(f"{_LEASE}#{holder}", "SET unserved = :left, expires_at = :end", {":left": left, ":end": end})

    async def handed_over(self, holder: str) -> dict[str, datetime] | None:
        """Read what `holder` has left; None where it has said nothing (yet)."""
        left = (await self._control(f"{_LEASE}#{holder}")).get("unserved")
        return None if left is None else {task_id: datetime.fromtimestamp(due / 1000, UTC) for task_id, due in left.items()}

    async def gate(self) -> Gate:
        """Read the gate as of now."""
        return Gate.model_validate(await self._control(_GATE))

    async def set_gate(self, old: Gate, new: Gate) -> Gate:
        """Store `new` if `old` still stands; give what stands then."""
        new = new.model_copy(update={"nonce": secrets.token_hex(8)})
        fields = new.model_dump(exclude_none=True)
        update = "SET " + ", ".join(f"#{name} = :{name}" for name in fields)
        if removed := [f"#{name}" for name in Gate.model_fields if name not in fields]:
            update += " REMOVE " + ", ".join(removed)
        stored = await self._update_control(
            _GATE,
            update,
            {":old": old.nonce, **{f":{name}": value for name, value in fields.items()}},
            names={f"#{name}": name for name in Gate.model_fields},
            ConditionExpression="attribute_not_exists(task_id) OR nonce = :old",
        )
        return new if stored else await self.gate()

    async def take_tokens(self, wanted: int, *, window: int, limit: int) -> int:
        """Take up to `wanted` requests out of the `limit` of a window; give how many."""
        if wanted <= 0 or limit <= 0:
            return 0
        taken = min(wanted, limit)
        values = {":taken": taken, ":rest": limit - taken, ":end": int(self._clock.now().timestamp()) + _BUDGET_KEPT_S}
        request = {
            "TableName": self._table,
            "Key": _item({"task_id": f"budget#{window}"}),
            "UpdateExpression": "ADD used :taken SET expires_at = :end",
            "ConditionExpression": "attribute_not_exists(used) OR used <= :rest",
            "ExpressionAttributeValues": _item(values),
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        try:
            await call(self._client.update_item, **request)
        except ConditionFailedError as failed:
            left = limit - int(stored_values(failed.item or {}).get("used", limit))
            return await self.take_tokens(min(taken, left), window=window, limit=limit) if 0 < left < taken else 0
        return taken

    async def reserve_deliveries(self, caller: str, count: int, *, now: datetime, latest: datetime) -> datetime:
        """Reserve `count` moments of a caller's rate; give the first, which is after `latest` where nothing was reserved."""
        span, start = count * EXTRA_DELIVERY_GAP // _MS, milliseconds(now)
        last = start + (latest - now) // _MS
        request = {
            "TableName": self._table,
            "Key": _item({"task_id": f"redelivery#{caller}"}),
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        end = int((latest + _RESERVED_KEPT).timestamp())
        for _ in range(_RESERVE_TRIES):
            try:
                await call(
                    self._client.update_item,
                    **request,
                    UpdateExpression="SET next_at = :next, expires_at = :end",
                    ConditionExpression="attribute_not_exists(next_at) OR next_at < :now",
                    ExpressionAttributeValues=_item({":next": start + span, ":now": start, ":end": end}),
                )
            except ConditionFailedError as failed:
                free = int(stored_values(failed.item or {}).get("next_at", start))
            else:
                return now
            if free > last:
                return now + (free - start) * _MS
            with contextlib.suppress(ConditionFailedError):  # another invocation was faster: look again
                answer = await call(
                    self._client.update_item,
                    **request,
                    UpdateExpression="ADD next_at :span SET expires_at = :end",
                    ConditionExpression="next_at >= :now AND next_at <= :last",
                    ExpressionAttributeValues=_item({":span": span, ":now": start, ":last": last, ":end": end}),
                    ReturnValues="UPDATED_NEW",
                )
                ended = int(stored_values(answer["Attributes"])["next_at"])
                return now + (ended - span - start) * _MS
        raise StoreUnavailableError("the caller's rate changes too fast")

    async def _control(self, key: str) -> Attributes:
        return stored_values(await self._item(key) or {})

    async def _update_control(
        self, key: str, update: str, values: Attributes, *, names: Attributes | None = None, **more: str
    ) -> bool:
        request: Attributes = {"ExpressionAttributeNames": names} if names else {}
        try:
            await call(
                self._client.update_item,
                TableName=self._table,
                Key=_item({"task_id": key}),
                UpdateExpression=update,
                ExpressionAttributeValues=_item(values),
                **request,
                **more,
            )
        except ConditionFailedError:
            return False
        return True

    def _read(self, item: Attributes | None) -> Task | None:
        try:
            return Task.model_validate(stored_values(item)) if item else None
        except (TypeError, ValueError, ArithmeticError, zlib.error):
            return None


def _key_of(moment: datetime | None) -> str:
    """Give where a time begins in a sort key; None is before all."""
    return f"{milliseconds(moment):013d}" if moment else "0"
