"""What receivers that answer 103 without end cost others: deliveries beside five such, over those without.

Ten workers POST callbacks to good hosts for a few seconds, each with a short pause in between; beside them,
or not, five hostile receivers get an attempt each, and the next one second after it has ended. The receivers
run in processes of their own, and the two cases take turns.
"""

import asyncio
import statistics
from datetime import timedelta
from time import perf_counter

from taskhook.adapters.http.callbacks import AiohttpCallbacks
from taskhook.core.targets import TargetPolicy
from tests.bench.delivery import receivers

GOOD = tuple(f"127.0.0.{number}" for number in range(1, 6))
HOSTILE = tuple(f"127.0.0.{number}" for number in range(11, 16))
WORKERS = 10
PAUSE = 0.05  # seconds: what is measured is whether the loop is free, not the processor
HEADERS = {"content-type": "application/json", "webhook-id": "msg_1"}
BODY = b"{}" * 200


def hostile_1xx_ratio(*, quick: bool = False) -> float:
    """Measure; 1.0 is that they cost nothing."""
    rounds, window = (2, 1.0) if quick else (7, 3.0)
    with receivers(GOOD) as good, receivers(HOSTILE, "--interim") as hostile:
        return asyncio.run(_ratio(good, hostile, rounds, window))


async def _ratio(good: int, hostile: int, rounds: int, window: float) -> float:
    await _delivered(good, None, 0.2)  # whatever is loaded late
    ratios = []
    for _ in range(rounds):
        alone = await _delivered(good, None, window)
        ratios.append(await _delivered(good, hostile, window) / alone)
    return round(statistics.median(ratios), 2)


async def _delivered(good: int, hostile: int | None, window: float) -> int:
    """Count what the good hosts took within so many seconds."""
    callbacks = AiohttpCallbacks(TargetPolicy(relaxed=True), limit=timedelta(seconds=15))
    ends = perf_counter() + window
    delivered = 0

    async def deliver(host: str) -> None:
        nonlocal delivered
        while perf_counter() < ends:
            reply = await callbacks.send(f"http://{host}:{good}/hook", HEADERS, BODY)
            assert reply.status is not None
            delivered += perf_counter() < ends
            await asyncio.sleep(PAUSE)

    async def provoke(host: str) -> None:
        while True:
            await callbacks.send(f"http://{host}:{hostile}/hook", HEADERS, BODY)
            await asyncio.sleep(1)

    beside = [asyncio.create_task(provoke(host)) for host in HOSTILE] if hostile is not None else []
    await asyncio.gather(*(deliver(GOOD[number % len(GOOD)]) for number in range(WORKERS)))
    for task in beside:
        task.cancel()
    await asyncio.gather(*beside, return_exceptions=True)
    await callbacks.close()
    return delivered
