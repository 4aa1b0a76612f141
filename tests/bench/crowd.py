"""What the poller holds beside a crowd: `python -m tests.bench.crowd KIND N`, in a process of its own.

Two invocations, one after the other: what the first has left behind counts too, for a process stays warm.

The real adapter reads a table in another process, so that what this one holds is the poller's. It makes its
items as they are asked for: N watched tasks none of which is due when the first begins (the vendor says of
each that it runs); N ended tasks of one caller whose host never answers, all due, that stand in `watch`
before their first attempt or in `retry`; or N tasks of 50 callers in the queue of a vendor that has no slot
free. Prints the peak of the resident memory in MB, and what it was before both, after everything that a poll
function imports.
"""

from layers.interruption import PROGRAM, at_once

if __name__ in PROGRAM:
    at_once()

import asyncio
import contextlib
import json
import multiprocessing
import re
import sys
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from botocore.exceptions import ClientError

from taskhook import wiring
from taskhook.adapters.dynamodb.control import DynamoControl
from taskhook.adapters.dynamodb.items import item
from taskhook.adapters.dynamodb.tasks import DynamoTasks, values_of
from taskhook.adapters.http import callbacks, vendor
from taskhook.core.ports import Admit
from taskhook.core.record import CallbackState, State, Submission, SubmitOutcome, milliseconds
from taskhook.core.reply import Reply
from taskhook.core.task import Task
from taskhook.core.vendor import FreeOutcome, PollKind, PollOutcome
from taskhook.poller.invocation import poll
from taskhook.wiring import App
from tests.sim.loop import VirtualLoop
from tests.sim.table import Item, MemoryDynamo, _range
from tests.world import SETTINGS, START, AtModellix, MemoryCallers, RecordingReporter, a_caller

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LOADED = (wiring, callbacks, vendor)  # as a poll function has them loaded
MODEL = "alibaba/wan2.2-animate-mix"
TABLE = "tasks"
STOP = timedelta(seconds=120)
RETENTION = timedelta(days=7)
KINDS = ("watched", "ended", "retry", "queued")
CALLERS = 50
PAGE = 8000  # rows of an index in 1 MB

type Bounds = list[tuple[str, str]]  # of sort keys: comparisons


class SortKeys(Sequence[str]):
    """The sort keys of many rows of one partition, in order, none of which is kept."""

    def __init__(self, kind: str, count: int) -> None:
        self.kind, self.size = kind, count
        self.partition = {"watched": "watch", "ended": "watch", "retry": "retry", "queued": "queue"}[kind]
        work = self.task(0).work_key
        assert work is not None
        self.form = work[1]
        self.item_form = json.dumps(item(values_of(self.task(0))))
        for number in (0, count // 2, count - 1):
            task = self.task(number)
            assert task.work_key == (self.partition, self.work_at(number))
            assert item(values_of(task)) == self.item(number)

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """Make the sort key of a row."""
        assert isinstance(index, int)
        if not 0 <= index < self.size:
            raise IndexError(index)
        return self.work_at(index)

    def work_at(self, number: int) -> str:
        """Make the sort key of a row from the first one's, without its task."""
        return self._of(number, self.form)

    def item(self, number: int) -> Any:
        """Make the item of a row's task from the first one's, in a fiftieth of the time."""
        return json.loads(self._of(number, self.item_form))

    def _of(self, number: int, form: str) -> str:
        own = {
            self._at(0): self._at(number),
            self._id(0): self._id(number),
            self._upstream(0): self._upstream(number),
            self._caller(0): self._caller(number),
        }
        for first, mine in own.items():
            form = form.replace(first, mine)
        return form

    def _at(self, number: int) -> str:
        return f"{milliseconds(START) - 1000 + number // 200:013d}"

    def _id(self, number: int) -> str:
        return f"tk_{number:022d}"

    def _upstream(self, number: int) -> str:
        return f"task-{number:010d}"

    def _caller(self, number: int) -> str:
        return f"caller{number // (self.size // CALLERS + 1):02d}" if self.kind == "queued" else "alice"

    def task(self, number: int) -> Task:
        """Make a task."""
        at = START - timedelta(seconds=1) + timedelta(milliseconds=number // 200)
        watched = Task(
            task_id=self._id(number),
            caller=self._caller(number),
            model=MODEL,
            request=None if self.kind == "watched" else '{"image_url":"https://example.com/a.jpg"}',
            fingerprint="f" * 22,
            callback_url="https://dead.example.com/hook/of/mine",
            reference="order-17",
            accepted_at=at,
            state=State.QUEUED if self.kind == "queued" else State.WATCHED,
            nonce="n" * 16,
            answer_status=200,
            submitted_at=None if self.kind == "queued" else at,
            taken_at=None if self.kind == "queued" else at,
            upstream_task_id=None if self.kind == "queued" else self._upstream(number),
            callback=CallbackState.WAITING,
        )
        if self.kind in {"watched", "queued"}:
            return watched
        url = f"https://file.example.com/{watched.task_id}.mp4?X-Amz-Signature={'ab12' * 16}"
        data = {
            "duration": 41230,
            "result": {"resources": [{"url": url, "type": "video", "width": 1366, "height": 768}]},
        }
        ended = watched.succeeded(data, at, retention=RETENTION, claim=at)
        return ended.redelivered(at) if self.kind == "retry" else ended


class CrowdedTable(MemoryDynamo):
    """A table with many rows of one partition; what is written of it is kept as any other item.

    Rows are found by their sort keys, in order, for a look at each of the crowd would take hours.
    """

    def __init__(self, keys: SortKeys) -> None:
        super().__init__({TABLE: "task_id"}, time=lambda: self.now)
        self.now = 0.0
        self._sort_keys = keys
        self._is_written = bytearray(len(keys))
        # of what was written, by partition, in order; and whose they are
        self._written: dict[str, list[str]] = defaultdict(list)
        self._ids: dict[str, str] = {}

    def query(self, **request: Any) -> dict[str, Any]:
        """Read a page of rows."""
        assert request["IndexName"] == "work"
        partition, within = _range(request, "work", "work_at")
        if start := request.get("ExclusiveStartKey"):
            within = [*within, (">", start["work_at"]["S"])]
        most = min(request.get("Limit", PAGE), PAGE)
        found = list(
            islice(merge(self._unwritten(partition, within), self._moved(partition, within)), most + 1)
        )
        rows = [
            {"task_id": {"S": task_id}, "work": {"S": partition}, "work_at": {"S": at}}
            for at, task_id in found[:most]
        ]
        return {"Items": rows, **({"LastEvaluatedKey": rows[-1]} if len(found) > most else {})}

    def _unwritten(self, partition: str, within: Bounds) -> Iterator[tuple[str, str]]:
        if partition != self._sort_keys.partition:
            return
        first, end = _span(self._sort_keys, within)
        while (first := self._is_written.find(0, first, end)) >= 0:
            yield self._sort_keys.work_at(first), f"tk_{first:022d}"
            first += 1

    def _moved(self, partition: str, within: Bounds) -> Iterator[tuple[str, str]]:
        keys = self._written[partition]
        first, end = _span(keys, within)
        return ((keys[number], self._ids[keys[number]]) for number in range(first, end))

    def _store(self, table: str, key: str, item: Item) -> None:
        before = super()._now(table, key) or {}
        super()._store(table, key, item)
        if not key.startswith("tk_") or "#" in key:
            return
        self._is_written[int(key.removeprefix("tk_"))] = True
        if "work" in before:
            keys, at = self._written[before["work"]["S"]], before["work_at"]["S"]
            del keys[bisect_left(keys, at)]
        if "work" in item:
            insort(self._written[item["work"]["S"]], item["work_at"]["S"])
            self._ids[item["work_at"]["S"]] = key

    def _now(self, table: str, key: str) -> Item | None:
        return super()._now(table, key) or self._made(key)

    def _then(self, table: str, key: str) -> Item | None:
        return super()._then(table, key) or self._made(key)

    def _made(self, key: str) -> Item | None:
        number, _, fingerprint = key.removeprefix("tk_").partition("#")
        if not key.startswith("tk_") or not number.isdecimal():
            return None
        if not fingerprint:
            made: Item = self._sort_keys.item(int(number))
            return made
        return item({"task_id": key, "request": self._sort_keys.task(int(number)).request})


def _span(keys: Sequence[str], within: Bounds) -> tuple[int, int]:
    """Tell which of the keys, from the first to before the second number, are within bounds."""
    first, end = 0, len(keys)
    for comparison, bound in within:
        match comparison:
            case ">":
                first = max(first, bisect_right(keys, bound))
            case ">=":
                first = max(first, bisect_left(keys, bound))
            case "<":
                end = min(end, bisect_left(keys, bound))
            case "<=":
                end = min(end, bisect_right(keys, bound))
    return first, end


def serve(table: CrowdedTable, calls: "Connection[Any, Any]") -> None:
    """Answer calls, each with its time, until the other side is gone."""
    with contextlib.suppress(EOFError):
        while True:
            method, table.now, request = calls.recv()
            try:
                calls.send(getattr(table, method)(**request))
            except ClientError as error:
                calls.send((error.response, error.operation_name))


class FarTable:
    """The client of a table in another process."""

    def __init__(self, calls: "Connection[Any, Any]", loop: VirtualLoop) -> None:
        self._calls, self._loop = calls, loop

    def put_item(self, **request: Any) -> Any:
        """Call it."""
        return self._call("put_item", request)

    def update_item(self, **request: Any) -> Any:
        """Call it."""
        return self._call("update_item", request)

    def get_item(self, **request: Any) -> Any:
        """Call it."""
        return self._call("get_item", request)

    def batch_get_item(self, **request: Any) -> Any:
        """Call it."""
        return self._call("batch_get_item", request)

    def query(self, **request: Any) -> Any:
        """Call it."""
        return self._call("query", request)

    def _call(self, method: str, request: dict[str, Any]) -> Any:
        self._calls.send((method, self._loop.time(), request))
        answer = self._calls.recv()
        if isinstance(answer, tuple):
            raise ClientError(*answer)
        return answer


class WorldClock:
    """`Clock` of the virtual loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now(self) -> Any:
        """Tell the time."""
        return self._loop.now()

    async def sleep(self, duration: timedelta) -> None:
        """Wait."""
        await self._loop.pause(max(duration.total_seconds(), 0.0))


class BusyVendor(AtModellix):
    """`TaskApi`: every task runs, and there is no slot for one more."""

    def __init__(self, clock: WorldClock) -> None:
        self._clock = clock
        self.asked = 0

    async def submit(
        self,
        model: str,
        request: bytes,
        *,
        webhook_url: str | None,
        limit: timedelta,
        admit: Admit | None = None,
        **_: object,
    ) -> SubmitOutcome:
        """Refuse."""
        del model, request, webhook_url, limit, admit
        self.asked += 1
        await self._clock.sleep(timedelta(seconds=0.4))
        return SubmitOutcome(submission=Submission.BUSY, status=429, message="Concurrent limit exceeded")

    async def balance(self) -> FreeOutcome:
        """Answer."""
        await self._clock.sleep(timedelta(seconds=0.2))
        return FreeOutcome(answered=True, status=200)

    async def poll(self, upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        """Say that it runs."""
        del upstream_task_id, hold
        self.asked += 1
        await self._clock.sleep(timedelta(seconds=0.2))
        return PollOutcome(kind=PollKind.PENDING)


class DeadHost:
    """`CallbackSender`: nothing answers."""

    def __init__(self, clock: WorldClock) -> None:
        self._clock = clock
        self.sent = 0

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Time out."""
        del url, headers, body
        self.sent += 1
        await self._clock.sleep(timedelta(seconds=15))
        return Reply(error="timeout", elapsed=timedelta(seconds=15))

    async def close(self) -> None:
        """Have nothing to close."""


def resident(word: str) -> int:
    """Read `VmRSS` or `VmHWM` of this process, in MB; `ru_maxrss` would begin with the parent's."""
    [kilobytes] = re.findall(rf"{word}:\s+([0-9]+) kB", Path("/proc/self/status").read_text())
    return round(int(kilobytes) / 1024)


def main() -> None:
    """Run one invocation and print what it held."""
    kind, count = sys.argv[1], int(sys.argv[2])
    loop = VirtualLoop(_at_once)
    asyncio.set_event_loop(loop)
    clock = WorldClock(loop)
    calls, far = multiprocessing.Pipe()
    table = multiprocessing.get_context("fork").Process(
        target=serve, args=(CrowdedTable(SortKeys(kind, count)), far), daemon=True
    )
    table.start()
    client: Any = FarTable(calls, loop)
    tasks = DynamoTasks(client, TABLE, clock=clock, reporter=RecordingReporter())
    api, hosts = BusyVendor(clock), DeadHost(clock)
    app = App(
        SETTINGS,
        tasks=tasks,
        control=DynamoControl(client, TABLE, clock=clock),
        vendors={"modellix": api},
        webhook_urls=None,
        callbacks=hosts,
        callers=MemoryCallers(
            a_caller("alice"), *(a_caller(f"caller{number:02d}") for number in range(CALLERS))
        ),
        clock=clock,
        reporter=RecordingReporter(),
    )
    before = resident("VmRSS")
    for _ in range(2):
        report = loop.run_until_complete(
            poll(scheduled=True, hard_stop=clock.now() + STOP, rules=app.rules, ports=app.poller)
        )
    figures = {"peak_mb": resident("VmHWM"), "before_mb": before, "asked": api.asked, "sent": hosts.sent}
    table.kill()
    print(json.dumps(figures | {"steps": report.steps, "seconds": round(loop.time())}))


async def _at_once(call: Any) -> Any:
    await asyncio.sleep(0.01)
    return call()


if __name__ == "__main__":
    main()
