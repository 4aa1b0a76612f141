"""A table of plain values.

Attribute values on the wire, calls off the event loop, and what stood where a condition failed.

botocore writes again when an answer was lost. A write whose condition fails therefore asks for the item that
made it fail: if that is what the write would have stored, the first try had succeeded.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.exceptions import BotoCoreError, ClientError

from taskhook.core.errors import StoreUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

Attributes = dict[str, Any]

# Ours, and not to be waited out.
_BUGS = {
    "ValidationException",
    "AccessDeniedException",
    "ResourceNotFoundException",
}
_serialize, _deserialize = TypeSerializer().serialize, TypeDeserializer().deserialize


def item(values: Attributes) -> Attributes:
    """Write plain values as attribute values. Raises TypeError for a float, which would lose digits."""
    return {name: _serialize(value) for name, value in values.items()}


def plain(item: Attributes) -> Attributes:
    """Read attribute values as plain ones; every number is a Decimal."""
    return {name: _deserialize(value) for name, value in item.items()}


class ConditionFailedError(Exception):
    """The condition of a write did not hold; `found` is what stood there, None where nothing did."""

    def __init__(self, found: Attributes | None) -> None:
        super().__init__()
        self.found = found


class Change(NamedTuple):
    """The parts of an update: its expression, and what its placeholders stand for."""

    update: str
    names: dict[str, str]
    values: Attributes


def change(before: Attributes, after: Attributes) -> Change:
    """Make the update from one set of values to another: it names the attributes that differ and no other."""
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    removed = before.keys() - after.keys()
    names = {f"#{number}": name for number, name in enumerate((*changed, *removed))}
    update = "SET " + ", ".join(f"#{number} = :{number}" for number in range(len(changed)))
    if removed:
        update += " REMOVE " + ", ".join(list(names)[len(changed) :])
    return Change(update, names, {f":{number}": value for number, value in enumerate(changed.values())})


class Table:
    """A table whose items have one key of text.

    Every method may raise StoreUnavailableError, a write ConditionFailedError.
    """

    def __init__(self, client: "DynamoDBClient", name: str, key: str) -> None:
        self.client = client
        self._name = name
        self._key = key

    async def get(self, key: str) -> Attributes | None:
        """Read an item as of now."""
        answer = await self._call(self.client.get_item, Key=item({self._key: key}), ConsistentRead=True)
        return plain(answer["Item"]) if "Item" in answer else None

    async def get_some(self, keys: Sequence[str]) -> tuple[list[Attributes], list[str]]:
        """Read up to 100 items, perhaps as they were a moment ago.

        Give those that came, and the keys to be asked for again.
        """
        wanted = {self._name: {"Keys": [item({self._key: key}) for key in keys]}}
        answer = await _call(self.client.batch_get_item, RequestItems=wanted)
        left = answer["UnprocessedKeys"].get(self._name, {}).get("Keys", [])
        return [plain(found) for found in answer["Responses"].get(self._name, [])], [
            key[self._key]["S"] for key in left
        ]

    async def query(
        self, index: str, condition: str, values: Attributes, *, cursor: Any = None, **more: Any
    ) -> tuple[list[dict[str, str]], Any]:
        """Read a page of an index that holds keys only, all of them text.

        Give its rows, and the cursor to the next page.
        """
        request = {
            "IndexName": index,
            "KeyConditionExpression": condition,
            "ExpressionAttributeValues": item(values),
            **more,
        }
        answer = await self._call(self.client.query, **request, **_after(cursor))
        rows = [{name: text["S"] for name, text in row.items()} for row in answer["Items"]]
        return rows, answer.get("LastEvaluatedKey")

    async def scan(self, *, cursor: Any = None) -> tuple[list[Attributes], Any]:
        """Read a page of all items; give it, and the cursor to the next page."""
        answer = await self._call(self.client.scan, **_after(cursor))
        return [plain(found) for found in answer["Items"]], answer.get("LastEvaluatedKey")

    async def put(self, new: Attributes, **on: Any) -> None:
        """Store an item in the place of any other; `on` as in `_on`."""
        await self._call(self.client.put_item, Item=item(new), **_on(**on))

    async def update(
        self, key: str, update: str, values: Attributes, *, returned: str = "NONE", **on: Any
    ) -> Attributes:
        """Change an item, which is made where it is missing; give the attributes that were `returned`.

        `on` as in `_on`.
        """
        request = {"Key": item({self._key: key}), "UpdateExpression": update, "ReturnValues": returned}
        answer = await self._call(self.client.update_item, **request, **_on(values=values, **on))
        return plain(answer.get("Attributes", {}))

    async def delete(self, key: str, **on: Any) -> None:
        """Delete an item; `on` as in `_on`."""
        await self._call(self.client.delete_item, Key=item({self._key: key}), **_on(**on))

    async def _call(self, method: Callable[..., Any], **request: Any) -> Any:
        return await _call(method, TableName=self._name, **request)


def _on(
    *, condition: str = "", names: dict[str, str] | None = None, values: Attributes | None = None
) -> Attributes:
    """Give the parts of a write that say on which condition, and what the placeholders in it stand for."""
    parts: Attributes = {}
    if condition:
        parts |= {"ConditionExpression": condition, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
    if names:
        parts["ExpressionAttributeNames"] = names
    if values:
        parts["ExpressionAttributeValues"] = item(values)
    return parts


def _after(cursor: Any) -> Attributes:
    return {} if cursor is None else {"ExclusiveStartKey": cursor}


async def _call(method: Callable[..., Any], **request: Any) -> Any:
    """Call DynamoDB off the event loop. Raises StoreUnavailableError, ConditionFailedError."""
    try:
        return await asyncio.to_thread(method, **request)
    except ClientError as error:
        if error.response["Error"]["Code"] == "ConditionalCheckFailedException":
            found: Attributes = {**error.response}
            raise ConditionFailedError(plain(found["Item"]) if "Item" in found else None) from error
        if error.response["Error"]["Code"] in _BUGS:
            raise
        raise StoreUnavailableError(error.response["Error"]["Code"]) from error
    except BotoCoreError as error:
        raise StoreUnavailableError(type(error).__name__) from error
