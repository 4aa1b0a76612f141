"""Where it bends: tasks that arrive at a constant rate, however long their answers take.

A stack of its own for each rate, functions under Lambda's share of a processor, a vendor that takes 400 ms
for a submit and 200 ms for a poll; nothing is asked twice, so that a submit that is not taken counts as
refused. Media are not looked at: two parsers a task are what two cores can do least of. Lateness is from each
task's end at the vendor to the receiver's 2xx. RATES in the environment, such as `1 4`, names other rates.
"""

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from tests.bench import prices
from tests.bench.cost import POLL_GB, SUBMIT_GB, Account, Counted
from tests.bench.lateness import MODEL_PATH, Deliveries, running_stack
from tests.bench.load import quantiles
from tests.bench.prices import MILLION

RATES = (1, 4, 8, 16)  # tasks a second
LASTS_S, QUICK_S = 90.0, 15.0
TASK_S = (5.0, 15.0)  # the shortest and the longest
WARM = 8  # tasks at once that start a process each, before the arrivals
PATIENCE_S = 120.0  # for what is still on its way when the last has arrived
ANSWERED_WITHIN_S = 35.0  # the front door answers after 30 s at the latest


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Measure each rate; a figure of dollars is of a million tasks at that rate."""
    figures = {}
    for rate in map(float, os.environ.get("RATES", " ".join(map(str, RATES))).split()):
        figures[f"{rate:g}"] = asyncio.run(_at(rate, QUICK_S if quick else LASTS_S, random.Random(seed)))
        print(f"{rate:g} a second {json.dumps(figures[f'{rate:g}'])}", file=sys.stderr, flush=True)
    return figures


async def _at(rate: float, lasts_s: float, dice: random.Random) -> dict[str, Any]:
    flags = ("--rpm", "100000", "--concurrent", "10000", "--parameter", "MediaChecks=off")
    with tempfile.TemporaryDirectory() as folder:
        meter = Path(folder, "meter.json")
        async with (
            running_stack("--meter", str(meter), *flags) as (ready, deliveries),
            httpx.AsyncClient(
                timeout=ANSWERED_WITHIN_S, limits=httpx.Limits(max_connections=None), trust_env=False
            ) as client,
        ):
            account = Account(ready, meter, deliveries, client)
            await account.get_ready()
            before = len(deliveries.answered_at) + WARM
            await asyncio.gather(*(_submit(client, ready, 1.0) for _ in range(WARM)))
            await deliveries.at_least(before)
            began, earlier = await account.look(), set(deliveries.answered_at)
            answers, arriving_s = await _arrive(client, ready, rate, lasts_s, dice)
            taken = sum(status == HTTPStatus.OK for status, _ in answers)
            unfinished = await _settled(deliveries, before + taken)
            counted = (await account.look()).since(began)
            control = (await client.get(f"{ready['upstream']}/_control", timeout=120)).json()
    late = [
        deliveries.answered_at[task["id"]] - task["ended_at"]
        for task in control["tasks"]
        if task["id"] in deliveries.answered_at.keys() - earlier
    ]
    refused = Counter(str(status) for status, _ in answers if status != HTTPStatus.OK)
    return {
        "tasks": len(answers),
        "arrived_per_s": round(len(answers) / arriving_s, 2),
        "refused": dict(refused),
        "called_back": len(late),
        "on_their_way": unfinished,
        "late": quantiles(late),
        "answer": quantiles([took for status, took in answers if status == HTTPStatus.OK]),
        "dollars_per_million": _dollars(counted, max(taken, 1)),
    }


async def _arrive(
    client: httpx.AsyncClient, ready: dict[str, str], rate: float, lasts_s: float, dice: random.Random
) -> tuple[list[tuple[int, float]], float]:
    """Submit at a constant rate; give each one's status and seconds, and how long the arrivals took."""
    began, arriving = time.monotonic(), []
    for number in range(round(rate * lasts_s)):
        await asyncio.sleep(max(began + number / rate - time.monotonic(), 0))
        arriving.append(asyncio.create_task(_submit(client, ready, dice.uniform(*TASK_S))))
    took = time.monotonic() - began
    return await asyncio.gather(*arriving), took


async def _submit(client: httpx.AsyncClient, ready: dict[str, str], task_s: float) -> tuple[int, float]:
    """Submit a task; give the status, 0 where there was none, and the seconds."""
    body = {
        "image_url": f"{ready['upstream']}/media/actor.jpg?task_seconds={task_s:.3f}",
        "video_url": f"{ready['upstream']}/media/scene.mp4",
        "mode": "wan-std",
        "callback_url": f"{ready['receiver']}/arrivals",
    }
    began = time.monotonic()
    try:
        answer = await client.post(
            f"{ready['endpoint']}{MODEL_PATH}",
            json=body,
            headers={"Authorization": f"Bearer {ready['token']}"},
        )
    except httpx.TransportError:
        return 0, time.monotonic() - began
    return answer.status_code, time.monotonic() - began


async def _settled(deliveries: Deliveries, wanted: int) -> int:
    """Wait for the callbacks that are still to come; give how many did not within the time."""
    try:
        async with asyncio.timeout(TASK_S[1] + PATIENCE_S):
            await deliveries.at_least(wanted)
    except TimeoutError:
        pass
    return max(wanted - len(deliveries.answered_at), 0)


def _dollars(counted: Counted, tasks: int) -> float:
    """Price what was counted: requests, functions, table and logs."""
    seconds = {name: spent / 1000 for name, spent in counted.milliseconds.items()}
    dollars: float = (
        counted.invocations["submit"] * prices.HTTP_API_REQUEST
        + sum(counted.invocations.values()) * prices.LAMBDA_REQUEST
        + (seconds.get("submit", 0) * SUBMIT_GB + seconds.get("poll", 0) * POLL_GB) * prices.LAMBDA_GB_SECOND
        + counted.sum("write") * prices.WRITE_UNIT
        + counted.sum("read") * prices.READ_UNIT
        + sum(counted.log_bytes.values()) / prices.GB * prices.LOG_GB
    )
    return round(dollars / tasks * MILLION, 1)
