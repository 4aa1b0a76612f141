"""CPU of the poll function for each task that ends.

The poll that shows it, the terminal write, the callback, its result.

The real handler serves ticks, each of which finds so many tasks ended at the vendor; account, vendor and
receiver are in processes of their own. All threads count. What a tick costs that finds nothing is taken off.
The figure is the median of the rounds, of a whole processor: under a function's share the same work takes
that much longer.
"""

import asyncio
import contextlib
import importlib
import json
import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx

from taskhook.core.record import CallbackState, State
from taskhook.core.task import Task
from taskhook.settings import Settings
from taskhook.wiring import App
from tests.bench.first_event import Context
from tests.bench.own_stack import end
from tests.bench.surroundings import surroundings
from tests.local import stack

MODEL = "alibaba/wan2.2-animate-mix"
IN_MS = 150_000  # of an invocation


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Let ticks serve tasks that have ended."""
    del seed  # nothing here is drawn by lot
    idle, busy, tasks = asyncio.run(_measured(20 if quick else 100, 2 if quick else 9))
    figures = {
        "cpu_ms_per_task": round((statistics.median(busy) - statistics.median(idle)) / tasks * 1000, 2)
    }
    figures["cpu_ms_idle_tick"] = round(statistics.median(idle) * 1000, 2)
    print(json.dumps(figures), file=sys.stderr, flush=True)
    return figures


async def _measured(tasks: int, rounds: int) -> tuple[list[float], list[float], int]:
    async with surroundings() as environment:
        sink = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.bench.sink", "127.0.0.1"),
            cwd=stack.ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert sink.stdout is not None
            receiver = f"http://127.0.0.1:{int(await sink.stdout.readline())}/bench"
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as function:
                run = function.submit(_rounds, environment, receiver, tasks, rounds)
                return *(await asyncio.wrap_future(run)), tasks
        finally:
            await end(sink)


def _rounds(
    environment: dict[str, str], receiver: str, tasks: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Give the CPU seconds of each tick that finds nothing, and of each that finds so many tasks ended."""
    os.environ.update(environment | {"CALLBACK_TARGETS": "any", "AWS_LAMBDA_FUNCTION_NAME": "poll"})
    idle, busy = [], []
    with Path(os.devnull).open("w") as log, contextlib.redirect_stdout(log):
        handler = importlib.import_module("functions.poll.app").handler
        app = App(Settings.of(os.environ))
        for turn in range(rounds + 1):
            app.run(_put_ended(app, tasks, receiver), limit=None)
            app.run(app.control.table.delete("leadership"))  # no leader has asked about them, so all are due
            time.sleep(1.0)  # they end
            took, report = _cpu(handler)
            assert report["steps"]["delivered"] == tasks, report
            nothing, _ = _cpu(handler)
            if turn:  # the first is cold
                busy.append(took)
                idle.append(nothing)
    return idle, busy


def _cpu(handler: Callable[..., Any]) -> tuple[float, Any]:
    began = time.process_time()
    report = handler({}, Context(IN_MS))
    return time.process_time() - began, report


async def _put_ended(app: App, tasks: int, receiver: str) -> None:
    """Have the vendor take tasks that end at once, and store them as watched for an hour."""
    key = await app.secret.key("modellix", fresh=False)
    upstream = app.settings.vendor_origins["modellix"]
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, trust_env=False) as vendor:

        async def put(number: int) -> None:
            request = {
                "image_url": f"{upstream}/media/actor.jpg?n={number}&task_seconds=0.1",
                "video_url": f"{upstream}/media/scene.mp4",
                "mode": "wan-std",
            }
            answer = await vendor.post(f"{upstream}/api/v1/{MODEL}", json=request)
            an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
            await app.tasks.add(
                Task(
                    task_id=f"tk_{secrets.token_urlsafe(17)[:22]}",
                    caller="alice",
                    model=MODEL,
                    request=json.dumps(request),
                    fingerprint=secrets.token_urlsafe(17)[:22],
                    callback_url=receiver,
                    callback=CallbackState.WAITING,
                    accepted_at=an_hour_ago,
                    submitted_at=an_hour_ago,
                    taken_at=an_hour_ago,
                    answer_status=200,
                    state=State.WATCHED,
                    upstream_task_id=answer.json()["data"]["task_id"],
                )
            )

        await asyncio.gather(*(put(number) for number in range(tasks)))
