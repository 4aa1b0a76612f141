"""Callbacks per second through the whole engine, and what dead hosts cost a good one.

*Throughput*: claim and record on an in-memory store, signature, guard, and a connection of its own for every
callback, beside two loops that do nothing but POST the same bytes: aiohttp's and httpx's clients as they
come, 100 connections each. The receivers run in a process of their own, the three take turns, and each ratio
is the median over the rounds.

*Isolation*: 100 callbacks to a good host are due at once, first alone, then behind 1,000 that have been due
for longer to a host that accepts and never answers, and 1,000 to one that refuses; the p95 is of the time
from the start of the invocation to the good host's answer. Fresh tables each time, the two take turns, and
the ratio is again the median over the rounds.
"""

import asyncio
import json
import socket
import statistics
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp
import httpx

from taskhook.adapters.clock import SystemClock
from taskhook.adapters.http.callbacks import AiohttpCallbacks
from taskhook.core.record import CallbackState, State
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import Task
from taskhook.delivery.attempt import DeliveryPorts, attempt
from taskhook.delivery.hosts import Candidate, Hosts, Order
from taskhook.poller.invocation import poll
from taskhook.wiring import App
from tests.world import (
    SETTINGS,
    FakeVendor,
    MemoryCallers,
    MemoryControl,
    MemoryTasks,
    RecordingReporter,
    VirtualClock,
    a_caller,
)

ROOT = Path(__file__).parents[2]
CONNECTIONS = 100
# an engine gives one host 20 slots: five fill 100 connections
HOSTS = tuple(f"127.0.0.{number}" for number in range(1, 6))
RETENTION = timedelta(days=7)
RESULT = {
    "result": {
        "resources": [{"url": "https://files.example.com/results/0123456789abcdef.mp4", "type": "video"}]
    }
}

Send = Callable[[list[Task]], Awaitable[float]]


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Measure both; the figures named in the project's goals first."""
    callbacks, rounds = (400, 2) if quick else (2000, 9)
    with receivers(HOSTS) as port:
        rates = asyncio.run(_rates(port, callbacks, rounds))
    dead, rounds = (100, 2) if quick else (1000, 11)
    with receivers(("127.0.0.1",)) as port, receivers(("127.0.0.2",), "--silent") as silent:
        alone, beside = asyncio.run(_isolation(port, silent, dead, rounds))
    figures = {
        "vs_bare_aiohttp": _median_ratio(rates["engine"], rates["aiohttp"]),
        "vs_plain_httpx": _median_ratio(rates["engine"], rates["httpx"]),
        "good_p95_ratio": _median_ratio(beside, alone),
        "per_second": {name: round(statistics.median(values)) for name, values in rates.items()},
        "good_p95_ms": {
            "alone": round(statistics.median(alone) * 1000),
            "beside_dead": round(statistics.median(beside) * 1000),
        },
    }
    print(json.dumps(figures), file=sys.stderr, flush=True)
    return figures


def _median_ratio(ours: list[float], others: list[float]) -> float:
    return round(statistics.median(one / other for one, other in zip(ours, others, strict=True)), 2)


# --- throughput -----------------------------------------------------------------------------------


async def _rates(port: int, callbacks: int, rounds: int) -> dict[str, list[float]]:
    """Let the three take turns; give callbacks per second, by round."""
    rates: dict[str, list[float]] = {"engine": [], "aiohttp": [], "httpx": []}
    ways: dict[str, Send] = {"engine": _engine, "aiohttp": _bare_aiohttp, "httpx": _plain_httpx}
    for send in ways.values():  # whatever is loaded late
        await send(_tasks(HOSTS, port, 50))
    for turn in range(rounds):
        order = list(ways) if turn % 2 else list(reversed(ways))
        for name in order:
            share = callbacks // 4 if name == "httpx" else callbacks
            rates[name].append(share / await ways[name](_tasks(HOSTS, port, share)))
    return rates


async def _engine(tasks: list[Task]) -> float:
    """Deliver through the engine: a slot, a claim, a signature, the guard, and what came of it stored."""
    store, clock = MemoryTasks(), SystemClock()
    stored = [await store.add(task) for task in tasks]
    callbacks = AiohttpCallbacks(TargetPolicy(relaxed=True))
    hosts = Hosts(clock)
    ports = DeliveryPorts(
        tasks=store,
        callbacks=callbacks,
        callers=MemoryCallers(a_caller()),
        hosts=hosts,
        clock=clock,
        reporter=RecordingReporter(),
        retention=RETENTION,
    )

    unoffered, running = deque(stored), set[asyncio.Task[None]]()

    def offer_next() -> bool:
        task = unoffered[0]
        return hosts.offer(Candidate(task.task_id, task.caller, task.host, Order.FIRST))

    async def deliver(candidate: Candidate) -> None:
        await attempt(store.items[candidate.task_id], ports)
        hosts.leave(candidate.caller, candidate.host)

    began = perf_counter()
    while unoffered or hosts.waiting() or running:
        while unoffered and offer_next():
            unoffered.popleft()
        while (candidate := hosts.next()) is not None:
            running.add(asyncio.create_task(deliver(candidate)))
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for finished in done:
            finished.result()
    took = perf_counter() - began
    await callbacks.close()
    assert all(task.callback is CallbackState.DELIVERED for task in store.items.values())
    return took


async def _bare_aiohttp(tasks: list[Task]) -> float:
    """POST the same bytes with aiohttp's client, its connections kept."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:

        async def post(task: Task) -> None:
            async with session.post(task.callback_url or "", data=(task.message or "").encode()) as response:
                await response.read()
                assert response.status == httpx.codes.OK

        return await _in_turn(tasks, post)


async def _plain_httpx(tasks: list[Task]) -> float:
    """POST the same bytes with httpx's client, its connections kept."""
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:

        async def post(task: Task) -> None:
            response = await client.post(task.callback_url or "", content=(task.message or "").encode())
            assert response.status_code == httpx.codes.OK

        return await _in_turn(tasks, post)


async def _in_turn(tasks: list[Task], post: Callable[[Task], Awaitable[None]]) -> float:
    """Let 100 workers post until nothing is left."""
    left: Iterator[Task] = iter(tasks)

    async def work() -> None:
        for task in left:
            await post(task)

    began = perf_counter()
    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return perf_counter() - began


# --- isolation ------------------------------------------------------------------------------------


async def _isolation(port: int, silent: int, dead: int, rounds: int) -> tuple[list[float], list[float]]:
    """Let both take turns; give the p95 of each round, in seconds."""
    await _p95(port, silent, 0)
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(await _p95(port, silent, 0))
        beside.append(await _p95(port, silent, dead))
    return alone, beside


async def _p95(port: int, silent: int, dead: int) -> float:
    """Run one invocation of the poller over a fresh store, until the good host has all its callbacks."""
    store, clock = MemoryTasks(), SystemClock()
    told = Answered(100)
    now = clock.now()
    long_due = [*_tasks(("127.0.0.2",), silent, dead), *_tasks(("127.0.0.3",), _refusing_port(), dead)]
    for task in long_due:
        await store.add(task.redelivered(now - timedelta(minutes=5)))
    good = _tasks(("127.0.0.1",), port, 100)
    told.wanted = {(await store.add(task.redelivered(now - timedelta(minutes=1)))).task_id for task in good}
    callbacks = AiohttpCallbacks(TargetPolicy(relaxed=True), limit=timedelta(seconds=3))
    app = App(
        SETTINGS,
        tasks=store,
        control=MemoryControl(),
        vendors={"modellix": FakeVendor(VirtualClock())},
        webhook_urls=None,
        callbacks=callbacks,
        callers=MemoryCallers(a_caller()),
        clock=clock,
        reporter=told,
    )
    began = perf_counter()
    invocation = asyncio.create_task(
        poll(
            scheduled=True, hard_stop=clock.now() + timedelta(seconds=120), rules=app.rules, ports=app.poller
        )
    )
    try:
        await told.all_there.wait()
    finally:
        invocation.cancel()
        await asyncio.gather(invocation, return_exceptions=True)
        await callbacks.close()
    times = sorted(at - began for at in told.times)
    return times[94]


class Answered(RecordingReporter):
    """A reporter that notes when each of the wanted callbacks was answered."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.enough = count
        self.wanted: set[str] = set()
        self.times: list[float] = []
        self.all_there = asyncio.Event()

    def report(self, event: str, **facts: str | float | None) -> None:
        """Note the time."""
        if event == "callback.attempted" and facts["task_id"] in self.wanted:
            self.times.append(perf_counter())
            if len(self.times) == self.enough:
                self.all_there.set()


# --- what both need -------------------------------------------------------------------------------


def _tasks(hosts: tuple[str, ...], port: int, count: int) -> list[Task]:
    """Make ended tasks whose first delivery is unclaimed, over these hosts."""
    now = datetime.now(UTC)
    made = []
    for number in range(count):
        task = Task(
            task_id=f"tk_{port}_{number:016d}",
            caller="alice",
            model="alibaba/wan2.2-animate-mix",
            request="{}",
            fingerprint="",
            callback_url=f"http://{hosts[number % len(hosts)]}:{port}/hook",
            accepted_at=now - timedelta(hours=1),
            state=State.WATCHED,
            callback=CallbackState.WAITING,
        )
        made.append(task.succeeded(RESULT, now, retention=RETENTION, claim=now))
    return made


@contextmanager
def receivers(hosts: tuple[str, ...], *flags: str) -> Iterator[int]:
    """Start receivers on loopback in a process of their own; give their port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.sink", *hosts, *flags], cwd=ROOT, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _refusing_port() -> int:
    """Find a port of 127.0.0.3 without a listener."""
    with socket.socket() as free:
        free.bind(("127.0.0.3", 0))
        port: int = free.getsockname()[1]
        return port
