"""All functions are killed with SIGKILL, again and again, while tasks of three vendors flow and are archived.

Vendors and receivers fail meanwhile.
"""

import asyncio
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import psutil

from tests.bench.flow import ROOT, Audit, Flow, add_callers, judged, own_stack
from tests.local.stack import EMULATOR

# an ambiguous submit is given up after a quarter of an hour, and its callback comes at the third attempt
UNKNOWN_S = 22 * 60
_READ = {"0", "63"}  # the system call, on x86-64 and on arm64


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Let 300 tasks flow under at least 50 kills; each ends with its callback, or honestly."""
    return asyncio.run(_measure(quick=quick, seed=seed))


async def _measure(*, quick: bool, seed: int) -> dict[str, Any]:
    tasks, kills = (60, 15) if quick else (300, 60)
    with tempfile.TemporaryDirectory() as folder:
        history = Path(folder) / "kills.jsonl"
        figures = await _under_kills(tasks, kills, history, quick=quick, seed=seed)
        return figures | judged(history)


async def _under_kills(tasks: int, kills: int, history: Path, *, quick: bool, seed: int) -> dict[str, Any]:
    served = ("--task-seconds", "5", "--rpm", "100000", "--parameter", "ArchiveResults=on")
    flags = (*served, "--history", str(history))
    async with own_stack(*flags) as (ready, deliveries, _):
        ticks = asyncio.create_task(hurry(ready["aws_endpoint_url"], ready["aws_region"], ready["stack"]))
        callers = await add_callers(ready, ("kim", "lee"))
        flow = Flow(ready["endpoint"], ready["vendors"], ready["receiver"], callers, "n", seed)
        killer = Killer(
            ready["aws_endpoint_url"], random.Random(seed), gap_s=(0.2, 1.0) if quick else (0.5, 4.0)
        )
        injected, _, _ = await asyncio.gather(
            flow.inject(rounds=1 if quick else 3, every_tasks=0.8),
            flow.submit_all(tasks, most_per_second=5 if quick else 2),
            killer.run(kills, in_flight=0 if quick else 35),
        )
        await flow.heal()
        await flow.settled(deliveries.listed, patience_s=60 if quick else UNKNOWN_S)
        audit = await flow.audit(deliveries.listed)
        await flow.http.aclose()
        ticks.cancel()
    return {"tasks": tasks, "faults": len(injected), **killer.figures(), **summary(audit)}


def summary(audit: Audit) -> dict[str, Any]:
    """Say what came of the tasks."""
    for words in audit.broken:
        print(words, file=sys.stderr)
    for task in audit.left:
        callback = task.get("callback", {})
        age = time.time() - float(task.get("submitted_at") or task.get("created_at") or 0) / 1000
        said = task.get("stage"), task.get("error"), callback.get("state"), callback.get("attempts")
        print("left:", task.get("task_id"), *said, f"{age:.0f} s after its submit", file=sys.stderr)
    return {
        "accepted": audit.accepted,
        "refused": audit.refused,
        "delivered": audit.delivered,
        "left": len(audit.left),
        "lost": audit.lost,
        "duplicates": audit.duplicates,
        "double_paid": audit.double_paid,
        "broken": len(audit.broken),
        "outcomes": dict(audit.outcomes),
    }


async def hurry(account_url: str, region: str, stack: str, *, every_s: float = 6.0) -> None:
    """Let ticks come ten times as often: killed pollers come back sooner, meet more often."""
    account = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name=region)
    cloudformation, functions = (
        account.client(name, endpoint_url=account_url) for name in ("cloudformation", "lambda")
    )
    described = cloudformation.describe_stack_resource(StackName=stack, LogicalResourceId="PollFunction")
    name = described["StackResourceDetail"]["PhysicalResourceId"]
    event = (ROOT / "events/tick.json").read_bytes()
    while True:
        await asyncio.sleep(every_s)
        await asyncio.to_thread(functions.invoke, FunctionName=name, InvocationType="Event", Payload=event)


class Killer:
    """Kills worker processes of one emulated account, by their ids."""

    def __init__(
        self, account_url: str, dice: random.Random, *, gap_s: tuple[float, float] = (0.2, 1.0)
    ) -> None:
        self.port = str(urlsplit(account_url).port)
        self.dice = dice
        self.gap_s = gap_s
        self.killed: Counter[str] = Counter()
        self.in_flight = 0
        self._emulator: psutil.Process | None = None

    async def run(self, kills: int, *, in_flight: int) -> None:
        """Kill so many, at random moments, until enough of them were at work."""
        while self.killed.total() < kills or self.in_flight < in_flight:
            await asyncio.sleep(self.dice.uniform(*self.gap_s))
            await asyncio.to_thread(self._kill_one)

    def _kill_one(self) -> None:
        """Kill one process; of the function that was killed less often, where both have some."""
        workers = self._workers()
        function = min(workers, key=lambda name: self.killed[name], default=None)
        if function is None:
            return
        at_work = [worker for worker in workers[function] if _at_work(worker.pid)]
        victim = self.dice.choice(at_work or workers[function])
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGSTOP)  # so that what is seen of it stays true
            while victim.status() not in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}:
                time.sleep(0.005)
            if victim.status() == psutil.STATUS_ZOMBIE:  # it was dead already
                return
            self.in_flight += _at_work(victim.pid)
            victim.kill()
            self.killed[function] += 1

    def _workers(self) -> dict[str, list[psutil.Process]]:
        """List the workers by function: children of this account's emulator, which runs below this process.

        Only those that have a connection: where one dies while it is imported, MiniStack throws away all of
        its kind.
        """
        if self._emulator is None:
            [self._emulator] = filter(self._is_emulator, psutil.Process().children(recursive=True))
        found: dict[str, list[psutil.Process]] = {}
        for process in self._emulator.children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if any(part.endswith("_worker.py") for part in process.cmdline()) and process.net_connections(
                    "tcp"
                ):
                    name = process.environ()["AWS_LAMBDA_FUNCTION_NAME"]
                    found.setdefault(name.split("-")[1].removesuffix("Function").lower(), []).append(process)
        return found

    def _is_emulator(self, process: psutil.Process) -> bool:
        """Tell by its port and its program; every process below it has the same environment."""
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            return process.environ().get("GATEWAY_PORT") == self.port and process.cmdline()[1:3] == [
                "-m",
                EMULATOR,
            ]
        return False

    def figures(self) -> dict[str, Any]:
        """Say what was killed."""
        return {"kills": self.killed.total(), "in_flight": self.in_flight, "by_function": dict(self.killed)}


def _at_work(pid: int) -> bool:
    """Tell whether an invocation is in flight: an idle worker reads its standard input."""
    try:
        number, first, *_ = [*Path(f"/proc/{pid}/syscall").read_text().split(), ""]
    except OSError:
        return False
    return not (number in _READ and first == "0x0")
