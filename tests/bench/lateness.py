"""How late a callback is, and how many requests a task costs: the deployed stack with real tick and wakes.

Lateness is from the vendor's end (stamped by the emulator) to the receiver's 2xx (stamped by the receiver),
hand-overs between invocations included. Requests are those the emulator counted for the task, the submit
among them.
"""

import asyncio
import contextlib
import json
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from tests.bench.own_stack import end, started

ROOT = Path(__file__).parents[2]
MODEL_PATH = "/api/v1/alibaba/wan2.2-animate-mix"
SUBMITS_AT_ONCE = 8  # the emulated account starts a process for each


@dataclass(frozen=True)
class Load:
    """Tasks that arrive evenly, half of them short and half of them long."""

    tasks: int
    seconds: float
    short: tuple[float, float] = (5, 30)
    long: tuple[float, float] = (60, 120)

    def arrivals(self, seed: int) -> list[tuple[float, float]]:
        """List when each task comes and how long the vendor takes, in seconds."""
        dice = random.Random(seed)
        kinds = [self.short, self.long] * (self.tasks // 2)
        return [
            (self.seconds * number / len(kinds), round(dice.uniform(*kind), 3))
            for number, kind in enumerate(kinds)
        ]


@dataclass(frozen=True)
class Outcome:
    """What became of one task."""

    seconds: float
    late: float
    requests: int


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Run the load against each way of learning the end, a 60 s sweep, and a script that polls every 2 s."""
    load = Load(tasks=12, seconds=20, short=(5, 10), long=(12, 20)) if quick else Load(tasks=200, seconds=300)
    short_of_requests = (
        Load(tasks=12, seconds=20, short=(5, 10), long=(12, 20)) if quick else Load(tasks=100, seconds=300)
    )
    figures: dict[str, Any] = {}
    for name, flags in (
        ("long_poll", ("--no-webhooks",)),
        ("hints", ("--no-long-poll",)),  # the figure keeps the name that it has had
        ("plain", ("--no-long-poll", "--no-webhooks")),
    ):
        outcomes, _ = asyncio.run(_run(load, seed, 1000, flags))
        figures[name] = _summary(outcomes)
        print(f"{name:10} {json.dumps(figures[name])}", file=sys.stderr, flush=True)
    figures |= asyncio.run(_others(load, seed))
    outcomes, control = asyncio.run(_run(short_of_requests, seed, 100, ()))
    figures["at_100_rpm"] = {
        "refused_rate": control["refused_rate"],
        "lost": short_of_requests.tasks // 2 * 2 - len(outcomes),
        **_summary(outcomes),
    }
    print(f"at_100_rpm {json.dumps(figures['at_100_rpm'])}", file=sys.stderr, flush=True)
    return figures


def _summary(outcomes: list[Outcome]) -> dict[str, float]:
    late = sorted(outcome.late for outcome in outcomes)
    return {
        "p50_s": round(statistics.median(late), 3),
        "p95_s": round(late[int(len(late) * 0.95) - 1], 3),
        "max_s": round(late[-1], 3),
        "p50_share": round(statistics.median(outcome.late / outcome.seconds for outcome in outcomes), 3),
        "requests_per_task": round(statistics.mean(outcome.requests for outcome in outcomes), 2),
    }


def _request(upstream: str, number: int, seconds: float) -> dict[str, str]:
    """Write the vendor's own request, for a task that takes so long."""
    image_url = f"{upstream}/media/actor.jpg?n={number}&task_seconds={seconds}"
    return {"image_url": image_url, "video_url": f"{upstream}/media/scene.mp4", "mode": "wan-std"}


async def _run(
    load: Load, seed: int, rpm: int, flags: tuple[str, ...]
) -> tuple[list[Outcome], dict[str, Any]]:
    """Submit the load to a stack of its own and wait for every callback."""
    arrivals = load.arrivals(seed)
    async with running_stack(
        "--rpm", str(rpm), "--concurrent", "1000", "--parameter", f"RequestsPerMinute={rpm}", *flags
    ) as (
        ready,
        deliveries,
    ):
        slots = asyncio.Semaphore(SUBMITS_AT_ONCE)
        async with httpx.AsyncClient(timeout=120) as client:

            async def submit(number: int, at: float, seconds: float) -> None:
                await asyncio.sleep(at)
                body = _request(ready["upstream"], number, seconds) | {
                    "callback_url": f"{ready['receiver']}/bench"
                }
                async with slots:
                    headers = {"Authorization": f"Bearer {ready['token']}"}
                    answer = await client.post(f"{ready['endpoint']}{MODEL_PATH}", json=body, headers=headers)
                    answer.raise_for_status()

            await asyncio.gather(
                *(submit(number, at, seconds) for number, (at, seconds) in enumerate(arrivals))
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(deliveries.at_least(len(arrivals)), load.long[1] + 300)
            control = (await client.get(f"{ready['upstream']}/_control")).json()
    outcomes = []
    for task in control["tasks"]:
        answered_at = deliveries.answered_at.get(task["id"])
        if answered_at is not None:
            seconds = float(task["request"]["image_url"].rsplit("=", 1)[1])
            outcomes.append(
                Outcome(seconds=seconds, late=answered_at - task["ended_at"], requests=task["requests"])
            )
    return outcomes, control


async def _others(load: Load, seed: int) -> dict[str, Any]:
    """Run what else one could do, each with a vendor of its own; both have time enough on one machine."""
    economy = ("--no-long-poll", "--no-webhooks", "--parameter", "CallbackLatency=economy")
    (swept, _), (asked, control) = await asyncio.gather(
        _run(load, seed, 1000, economy), _fixed(load, seed, 1000)
    )
    figures = {
        "sweep_60s": _summary(swept),
        "fixed_2s": {"refused_rate": control["refused_rate"], **_summary(asked)},
    }
    for name, figure in figures.items():
        print(f"{name:10} {json.dumps(figure)}", file=sys.stderr, flush=True)
    return figures


async def _fixed(load: Load, seed: int, rpm: int) -> tuple[list[Outcome], dict[str, Any]]:
    """Do without taskhook: a script asks about each task every 2 s, and knows once it has the answer."""
    flags = ("--port", "0", "--rpm", str(rpm), "--concurrent", "1000", "--no-webhooks")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.local.vendor", *flags), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    vendor = json.loads(await process.stdout.readline())
    known: dict[str, tuple[float, float]] = {}  # by task: how long it took, and when its end was known
    try:
        headers = {"Authorization": f"Bearer {vendor['api_key']}"}
        async with httpx.AsyncClient(base_url=vendor["upstream"], headers=headers, timeout=60) as client:

            async def ask(method: str, path: str, **more: Any) -> dict[str, Any]:
                while True:
                    answer = await client.request(method, path, **more)
                    if answer.status_code == HTTPStatus.OK:
                        data: dict[str, Any] = answer.json()["data"]
                        return data
                    await asyncio.sleep(2)

            async def follow(number: int, at: float, seconds: float) -> None:
                await asyncio.sleep(at)
                body = _request(vendor["upstream"], number, seconds)
                task_id = (await ask("POST", MODEL_PATH, json=body))["task_id"]
                status = "pending"
                while status in {"pending", "processing"}:
                    await asyncio.sleep(2)
                    status = (await ask("GET", f"/api/v1/tasks/{task_id}"))["status"]
                known[task_id] = seconds, time.time()

            await asyncio.gather(
                *(follow(number, at, seconds) for number, (at, seconds) in enumerate(load.arrivals(seed)))
            )
            control = (await client.get("/_control")).json()
    finally:
        await end(process)
    ended = {task["id"]: task for task in control["tasks"]}
    outcomes = [
        Outcome(seconds=seconds, late=at - ended[task_id]["ended_at"], requests=ended[task_id]["requests"])
        for task_id, (seconds, at) in known.items()
    ]
    return outcomes, control


class Deliveries:
    """When each vendor task's callback was first answered with a 2xx."""

    def __init__(self) -> None:
        self.answered_at: dict[str, float] = {}
        self._came = asyncio.Condition()

    async def read(self, stdout: asyncio.StreamReader) -> None:
        """Read the stack's lines to their end."""
        while line := await stdout.readline():
            delivery = json.loads(line)
            if delivery["verified"] and delivery["status_answered"] == HTTPStatus.OK:
                upstream = json.loads(delivery["body"])["data"]["upstream_task_id"]
                self.answered_at.setdefault(upstream, delivery["answered_at"])
                async with self._came:
                    self._came.notify_all()

    async def at_least(self, count: int) -> None:
        """Wait until `count` tasks' callbacks have come."""
        async with self._came:
            await self._came.wait_for(lambda: len(self.answered_at) >= count)


@contextlib.asynccontextmanager
async def running_stack(*flags: str) -> AsyncIterator[tuple[dict[str, str], Deliveries]]:
    """Start the embedded stack; give its first line and what it says of callbacks."""
    deliveries = Deliveries()
    async with started(*flags, read=deliveries.read) as (ready, _):
        yield ready, deliveries
