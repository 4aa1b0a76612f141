"""The receipt: thousands of tasks over HTTP, vendors and receivers fail; how many are lost, or paid twice.

Media are not looked at: two parsers a task are what two cores can do least of, and nothing is lost or paid by
them.
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.flow import KEY_FAULTS, Flow, add_callers, judged, own_stack
from tests.bench.kills import UNKNOWN_S, summary

TASKS, QUICK = 10_000, 500
MOST_PER_SECOND = (
    8.0  # what the emulated account serves on two cores; with more, it is its queue that is measured
)
MEASURED = 40  # the first tasks tell what it serves on this machine
FAULT_EVERY = 16  # tasks


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Submit, wait for every callback, and count. `TASKS` in the environment sets another number."""
    return asyncio.run(
        run(
            int(os.environ.get("TASKS", QUICK if quick else TASKS)),
            seed,
            patience_s=90 if quick else UNKNOWN_S,
        )
    )


async def run(tasks: int, seed: int, *, patience_s: float, fault_every: int = FAULT_EVERY) -> dict[str, Any]:
    """Let so many tasks flow through a stack of its own, a vendor failing once for every `fault_every`.

    Gives the receipt when all are through, or nothing moves any more; its history is judged.
    """
    with tempfile.TemporaryDirectory() as folder:
        history = Path(folder) / "load.jsonl"
        receipt = await _flow(tasks, seed, history, patience_s=patience_s, fault_every=fault_every)
        return receipt | judged(history)


async def _flow(
    tasks: int, seed: int, history: Path, *, patience_s: float, fault_every: int
) -> dict[str, Any]:
    flags = (
        "--task-seconds",
        "5",
        "--rpm",
        "100000",
        "--concurrent",
        "1000",
        "--parameter",
        "MediaChecks=off",
        "--history",
        str(history),
    )
    async with own_stack(*flags) as (ready, deliveries, _):
        callers = await add_callers(ready, ("kim", "lee", "max"))
        flow = Flow(ready["endpoint"], ready["vendors"], ready["receiver"], callers, "n", seed)
        began = time.monotonic()
        rounds = asyncio.create_task(
            flow.inject(rounds=10_000, every_tasks=fault_every, after=MEASURED, spare=KEY_FAULTS)
        )
        submitting = asyncio.create_task(
            flow.submit_all(tasks, most_per_second=MOST_PER_SECOND, measured=MEASURED)
        )
        try:
            while not submitting.done():
                await asyncio.wait((submitting,), timeout=10)
                told = f"{len(flow.answered_at)} answered, {len(deliveries.all)} callbacks"
                print(f"{time.monotonic() - began:6.0f} s  {told}", file=sys.stderr, flush=True)
            per_second = await submitting
            submitted_s = time.monotonic() - began
        finally:  # Ctrl-C included: neither goes on while the stack ends
            rounds.cancel()
            submitting.cancel()
            await asyncio.gather(rounds, submitting, return_exceptions=True)
        await flow.heal()
        await flow.settled(deliveries.listed, patience_s=patience_s)
        audit = await flow.audit(deliveries.listed)
        await flow.http.aclose()
    return summary(audit) | {
        "late": {vendor: quantiles(late) for vendor, late in sorted(audit.late.items())},
        "tasks": tasks,
        "submitted_in_s": round(submitted_s),
        "per_second": round(per_second, 1),
        "callers": len(callers),
        "vendors": len(flow.vendors),
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Order what was measured; give its p50, p95 and p99."""
    ordered = sorted(seconds)
    return {
        f"p{part}_s": round(ordered[min(len(ordered) * part // 100, len(ordered) - 1)], 3)
        for part in (50, 95, 99)
    }
