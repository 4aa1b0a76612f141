"""The receipt: thousands of tasks over HTTP, with a vendor and receivers that fail; how many are lost, how many paid twice.

Nobody looks at media: two parsers a task are what two cores can do least of, and nothing is lost or paid by them.
"""

import asyncio
import os
import sys
import time
from typing import Any

from tests.bench.flow import KEY_FAULTS, Flow, add_callers, own_stack
from tests.bench.kills import RESCUE_S, summary

TASKS, QUICK = 10_000, 500
PER_SECOND = 8.0  # what the emulated account serves on two cores; with more, it is its queue that is measured
FAULTS_EVERY_S = 2.0


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Submit, wait for every callback, and count. `TASKS` in the environment sets another number."""
    return asyncio.run(run(int(os.environ.get("TASKS", QUICK if quick else TASKS)), seed, patience=90 if quick else RESCUE_S))


async def run(tasks: int, seed: int, *, patience: float) -> dict[str, Any]:
    """Let so many tasks flow through a stack of its own; give the receipt, `patience` seconds after the last at the latest."""
    flags = ("--task-seconds", "5", "--rpm", "100000", "--concurrent", "1000", "--parameter", "MediaChecks=off")
    async with own_stack(*flags) as (ready, deliveries, _):
        callers = await add_callers(ready, ("kim", "lee", "max"))
        flow = Flow(ready["endpoint"], ready["upstream"], ready["receiver"], callers, "n", seed)
        began = time.monotonic()
        rounds = asyncio.create_task(flow.inject(rounds=10_000, every_s=FAULTS_EVERY_S, spare=KEY_FAULTS))
        submitting = asyncio.create_task(flow.submit_all(tasks, per_second=PER_SECOND))
        while not submitting.done():
            await asyncio.wait((submitting,), timeout=10)
            done = sum(sent.task_id is not None or sent.refused for sent in flow.sent)
            print(
                f"{time.monotonic() - began:6.0f} s  {done} answered, {len(deliveries.all)} callbacks", file=sys.stderr, flush=True
            )
        await submitting
        submitted_s = time.monotonic() - began
        rounds.cancel()
        await asyncio.gather(rounds, return_exceptions=True)
        (await flow.http.delete(f"{ready['upstream']}/_control/faults")).raise_for_status()
        await flow.settled(deliveries.listed, within_s=patience)
        audit = await flow.audit(deliveries.listed)
        await flow.http.aclose()
    late = sorted(audit.late)

    def share(part: float) -> float | None:
        return round(late[min(int(len(late) * part), len(late) - 1)], 3) if late else None

    figures = {**summary(audit), "p50_s": share(0.50), "p95_s": share(0.95), "p99_s": share(0.99)}
    return figures | {"tasks": tasks, "submitted_in_s": round(submitted_s), "callers": len(callers)}
