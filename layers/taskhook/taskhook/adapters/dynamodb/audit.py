"""Reads the whole table of tasks, for the operator's audit; a read unit for every 8 KB of it."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from taskhook.adapters.dynamodb.items import Attributes, Table
from taskhook.adapters.dynamodb.tasks import task_of
from taskhook.core.task import Task

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


async def stored_tasks(
    client: "DynamoDBClient", table: str
) -> AsyncIterator[tuple[str, Task | None, Attributes]]:
    """Give each task's id, the task (None: it cannot be read) and its attributes.

    Raises StoreUnavailableError.
    """
    tasks, cursor, first = Table(client, table, "task_id"), None, True
    while first or cursor is not None:
        first = False
        items: list[Attributes]
        items, cursor = await tasks.scan(cursor=cursor)
        for values in items:
            if "state" in values:  # the others are requests, and control items
                yield str(values["task_id"]), _read(values), values


def _read(values: Attributes) -> Task | None:
    try:
        return task_of(values)
    except (ValueError, TypeError):
        return None


def expiry(values: Attributes) -> datetime | None:
    """Read when TTL may delete an item."""
    seconds: Any = values.get("expires_at")
    return None if seconds is None else datetime.fromtimestamp(int(seconds), UTC)
