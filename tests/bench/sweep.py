"""What a tick costs beside a large backlog that is not due: 100,000 queued tasks, 100,000 waiting callbacks.

On AWS's DynamoDB Local, which pages and counts units as DynamoDB does. Every call of the tick is counted.
"""

import asyncio
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3

from taskhook.adapters.clock import SystemClock
from taskhook.adapters.dynamodb.control import DynamoControl
from taskhook.adapters.dynamodb.tasks import DynamoTasks
from taskhook.poller.invocation import poll
from taskhook.wiring import App
from tests.local import stack
from tests.local.dynamodb_local import dynamodb_local
from tests.world import (
    SETTINGS,
    FakeReceivers,
    FakeVendor,
    MemoryCallers,
    RecordingReporter,
    VirtualClock,
    a_caller,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

CALLERS = 50
TICKS = 15


def measure(*, quick: bool, seed: int) -> dict[str, float]:
    """Fill two tables, one ten times the other, and let ticks look at each."""
    del seed  # nothing here is drawn by lot
    large = 10_000 if quick else 100_000
    with dynamodb_local() as url:
        client = _client(url)
        tables = [_filled(client, "small", large // 10), _filled(client, "large", large)]
        # In a process of its own, as a function is: this one has held all the items.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as function:
            (small_ms, _, _), (large_ms, used, peak_mb) = [
                function.submit(_ticks, url, table).result() for table in tables
            ]
    figures = {
        "rru_per_tick": used["read"],
        "writes": used["writes"],
        "peak_mb": peak_mb,
        "time_ratio": round(large_ms / small_ms, 2),
    }
    print(
        f"{large} queued and {large} in retry: a tick took {large_ms:.1f} ms and used {dict(used)}",
        file=sys.stderr,
    )
    return figures


def _client(url: str) -> "DynamoDBClient":
    client: DynamoDBClient = boto3.client(
        "dynamodb",
        endpoint_url=url,
        region_name=stack.REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    return client


def _filled(client: "DynamoDBClient", name: str, count: int) -> str:
    """Make a table as the template has it, with `count` queued tasks, `count` callbacks of next year."""
    stack.make_table(client, "Tasks", name)
    paused = int((datetime.now(UTC) + timedelta(hours=1)).timestamp() * 1000)
    client.put_item(
        TableName=name,
        Item={"task_id": {"S": "admission"}, "waiting": {"BOOL": True}, "paused_until": {"N": str(paused)}},
    )
    rows = list(_items(count))
    chunks = [rows[start : start + 25] for start in range(0, len(rows), 25)]
    with ThreadPoolExecutor(8) as threads:
        for number, _ in enumerate(
            threads.map(lambda chunk: client.batch_write_item(RequestItems={name: chunk}), chunks)
        ):
            if number % 2000 == 0:
                print(f"{name}: {number * 25} of {len(rows)} items", file=sys.stderr, flush=True)
    return name


def _items(count: int) -> Iterator[dict[str, Any]]:
    next_year = int((datetime.now(UTC) + timedelta(days=365)).timestamp() * 1000)
    for number in range(count):
        caller = f"caller-{number % CALLERS}"
        for work, at in (
            ("queue", f"{caller}#{number:013d}"),
            ("retry", f"{next_year + number:013d}_{number}"),
        ):
            item = {
                "task_id": f"tk_{work}{number:017d}",
                "work": work,
                "work_at": at,
                "caller": caller,
                "listed": f"{number:013d}",
            }
            yield {"PutRequest": {"Item": {name: {"S": value} for name, value in item.items()}}}


def _ticks(url: str, table: str) -> tuple[float, Counter[str], int]:
    """Let ticks come; give one's median time in ms, what the last one used, and the peak memory in MB."""
    client = _client(url)
    used: Counter[str] = Counter()

    def ask(params: dict[str, Any], **_: Any) -> None:
        params["ReturnConsumedCapacity"] = "TOTAL"

    def count(parsed: dict[str, Any], model: Any, **_: Any) -> None:
        consumed = parsed.get("ConsumedCapacity", [])
        for units in consumed if isinstance(consumed, list) else [consumed]:
            used["read"] += units["CapacityUnits"]
            used[model.name] += units["CapacityUnits"]
        used["writes"] += model.name not in {"Query", "GetItem", "BatchGetItem"}

    client.meta.events.register("provide-client-params.dynamodb.*", ask)
    client.meta.events.register("after-call.dynamodb.*", count)
    times = []
    for _ in range(TICKS):
        used.clear()
        began = time.perf_counter()
        asyncio.run(_tick(client, table))
        times.append((time.perf_counter() - began) * 1000)
    # Not `ru_maxrss`: a process begins with that of the one that started it, which has held all the items.
    [peak] = re.findall(r"VmHWM:\s+([0-9]+) kB", Path("/proc/self/status").read_text())
    return statistics.median(times), used, round(int(peak) / 1024)


async def _tick(client: "DynamoDBClient", table: str) -> None:
    clock, told = SystemClock(), RecordingReporter()
    tasks = DynamoTasks(client, table, clock=clock, reporter=told)
    virtual = VirtualClock()
    app = App(
        SETTINGS,
        tasks=tasks,
        control=DynamoControl(client, table, clock=clock),
        vendors={"modellix": FakeVendor(virtual)},
        webhook_urls=None,
        callbacks=FakeReceivers(virtual),
        callers=MemoryCallers(a_caller()),
        clock=clock,
        reporter=told,
    )
    report = await poll(
        scheduled=True, hard_stop=clock.now() + timedelta(seconds=120), rules=app.rules, ports=app.poller
    )
    assert not report.led, "nothing was due"
