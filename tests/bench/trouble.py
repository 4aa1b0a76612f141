"""What lasting trouble costs: each figure is the worst that a task, a caller or the vendor met.

All but two are measured in virtual time, over the real use cases and the real adapter of the table, in
`tests.sim.machine`: how fast this computer is does not matter. Memory and hostile receivers are measured for
real. How each figure is come by stands with its function.
"""

import json
import subprocess
import sys
from bisect import bisect_left, bisect_right
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from taskhook.core.record import ErrorCode, State
from tests.bench.crowd import KINDS
from tests.bench.hostile import hostile_1xx_ratio
from tests.sim.lasting import HOUR, MINUTE
from tests.sim.loop import seeded
from tests.sim.machine import Machine, most_within
from tests.sim.spells import Spell

ROOT = Path(__file__).parents[2]
REFUSALS = ("400", "404", "422", "503", "redirect")


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Bring one trouble after the other."""
    memory = {kind: _peak_mb(kind, 5_000 if quick else 100_000) for kind in KINDS}
    figures: dict[str, Any] = {
        "wait_refused_late_s": max(
            _wait_refused_late(how, seed) for how in (REFUSALS[:1] if quick else REFUSALS)
        ),
        "outage_unknown_of_400": _outage_unknown("down", seed),
        "outage_posts_only_unknown_of_400": _outage_unknown("posts down", seed),
        "watched_100k_peak_mb": max(memory.values()),
        "starved_gaps": _starved_gaps(seed, minutes=8 if quick else 40),
        "polls_in_pause": _polls_in_pause(seed),
        "isolation_late_s": max(
            _isolation_late(kind, seed, hosts=200 if quick else 1000) for kind in ("first", "again")
        ),
        "hostile_1xx_ratio": hostile_1xx_ratio(quick=quick),
        "rpm_overrun": max(_rpm_overrun(queued, seed, scale=4 if quick else 1) for queued in (0, 100)),
        "peak_mb": memory,
    }
    print(json.dumps(figures), file=sys.stderr, flush=True)
    return figures


# --- a vendor in trouble --------------------------------------------------------------------------


def _wait_refused_late(how: str, seed: int) -> float:
    """Tell how late the latest callback is where the vendor first holds polls, then refuses `?wait=true`.

    A task every 12 s for 20 minutes, each 45 s long; the errors begin after 100 s and do not end. Counted
    from the vendor's end of a task to the first attempt; a task that is not called back at all is late until
    the end of the run.
    """
    with seeded(seed), Machine(seed) as machine:
        machine.vendor.holds = True
        machine.vendor.spells = [Spell(f"wait {how}", since=100.0)]

        async def script() -> None:
            for number in range(100):
                machine.submit(f"t{number}", caller="alice" if number % 2 else "bob")
                await machine.loop.pause(12.0)
            await machine.loop.pause(10 * MINUTE)

        machine.loop.run_until_complete(script())
        return round(max(machine.late()), 1)


def _outage_unknown(mode: str, seed: int) -> int:
    """Count the `submission_unknown` among 400 tasks in the queue when an outage of ten minutes begins.

    Two callers; every POST (and every poll too, unless only POSTs fail) is answered 503. Half an hour later
    nothing is under way any more, so that each unknown outcome has been told.
    """
    with seeded(seed), Machine(seed) as machine:
        machine.vendor.slots = 0

        async def script() -> None:
            for number in range(400):
                machine.submit(f"q{number}", caller="alice" if number % 2 else "bob")
                await machine.loop.pause(0.01)
            await machine.loop.pause(3.0)
            machine.vendor.slots = 1_000_000
            machine.vendor.spells = [Spell(mode, until=machine.loop.time() + 10 * MINUTE)]
            await machine.loop.pause(40 * MINUTE)

        machine.loop.run_until_complete(script())
        errors = machine.errors()
        return errors[ErrorCode.SUBMISSION_UNKNOWN] + errors[State.UNKNOWN]


def _polls_in_pause(seed: int) -> int:
    """Count the polls that leave within the pause, after the first 429 with `Retry-After: 1800`.

    Ten tasks run; a new invocation takes over every minute.
    """
    with seeded(seed), Machine(seed) as machine:
        machine.vendor.spells = [Spell("throttling", until=HOUR)]
        for number in range(10):
            machine.place(State.WATCHED, f"t{number}", task_time=2 * HOUR)
        machine.run(40 * MINUTE)
        heard = machine.vendor.polls[0][0] + 0.2
        return sum(heard < at < heard + 30 * MINUTE for at, _ in machine.vendor.polls)


def _rpm_overrun(queued: int, seed: int, *, scale: int) -> float:
    """Tell the most requests, polls and submits alike, that left within any 60 s, over those allowed.

    1,000 running tasks and some in the queue want more than 1,000 requests a minute. The vendor answers after
    9.5 s for two and a half minutes, so that requests pile up behind those under way, and then at once.
    """
    allowed = 1000 // scale
    with seeded(seed), Machine(seed, requests_per_minute=allowed, long_poll=False) as machine:
        machine.vendor.spells = [Spell("slow", since=30.0, until=3 * MINUTE)]
        for number in range(allowed):
            machine.place(State.WATCHED, f"t{number}", task_time=HOUR)
        for number in range(queued):
            machine.place(State.QUEUED, f"q{number}", caller="bob")
        machine.run(5 * MINUTE)
        return round(most_within(machine.vendor.requests, 60.0) / allowed, 3)


# --- others in trouble ----------------------------------------------------------------------------


def _starved_gaps(seed: int, *, minutes: int) -> float:
    """Tell how many of its own gaps a task waited at most for its next poll, while another had two.

    One task is an hour old; twelve others run beside it, and whenever one of them ends, after 30 s to 2 min,
    the next comes. They want about twice the 100 requests a minute that are allowed. A task's own gap is 10 %
    of its age, from 2 to 60 s; its wait begins with the poll before (or with its first, 20 s after its
    start), and ends with the next, or never.
    """
    with seeded(seed), Machine(seed, requests_per_minute=100, long_poll=False) as machine:
        began: dict[str, float] = {"old": -HOUR}
        machine.place(State.WATCHED, "old", age=HOUR, task_time=3 * HOUR)

        async def script() -> None:
            running: list[str] = []
            for number in range(minutes * 60):
                running = [name for name in running if machine.vendor.ends[name] > machine.loop.time()]
                while len(running) < 12:
                    name = f"y{number}-{len(running)}"
                    machine.place(State.WATCHED, name, task_time=30.0 + (number * 7 + len(running) * 11) % 90)
                    began[name] = machine.loop.time()
                    running.append(name)
                await machine.loop.pause(1.0)

        machine.loop.run_until_complete(script())
        return round(max(_waits(machine, began)), 1)


def _waits(machine: Machine, began: dict[str, float]) -> list[float]:
    """List the waits between polls in gaps, of those during which another task was asked twice."""
    asked: dict[str, list[float]] = defaultdict(list)
    for at, name in machine.vendor.polls:
        asked[name].append(at)
    waits = [0.0]
    for name, born in began.items():
        ended = min(machine.vendor.ends[name], machine.loop.time())
        moments = [max(born + 20.0, 0.0), *asked[name]]
        if moments[-1] < ended:
            moments.append(machine.loop.time())
        for since, until in pairwise(moments):
            gap = min(max(0.1 * (since - born), 2.0), 60.0)
            if (until - since) / gap > max(waits) and any(
                bisect_left(others, until) - bisect_right(others, since) > 1
                for other, others in asked.items()
                if other != name
            ):
                waits.append((until - since) / gap)
    return waits


def _isolation_late(kind: str, seed: int, *, hosts: int) -> float:
    """Tell how much later a caller's callbacks come beside silent hosts than beside hosts that answer.

    The other caller's tasks all end at once (`first`), or all their messages are due to be delivered again
    (`again`), each at a host of its own that accepts and answers nothing. Six tasks of the one caller come
    meanwhile, seven seconds apart; the figure is of the one that loses most.
    """
    silent, well = (_late(kind, behaviour, seed, hosts) for behaviour in ("silent", "ok"))
    return round(max(0.0, *(mine - its for mine, its in zip(silent, well, strict=True))), 1)


def _late(kind: str, behaviour: str, seed: int, hosts: int) -> list[float]:
    with seeded(seed), Machine(seed, requests_per_minute=100_000) as machine:
        machine.vendor.task_time = 30.0
        for number in range(hosts):
            state = State.WATCHED if kind == "first" else State.SUCCESS
            machine.place(
                state,
                f"b{number}",
                caller="bob",
                url=f"https://{behaviour}-{number}.bob.example.com/",
                age=1.0,
            )
        for number in range(6):
            machine.run(7.0)
            machine.place(State.WATCHED, f"a{number}")
        machine.run(20 * MINUTE)
        return machine.late("alice")


# --- memory ---------------------------------------------------------------------------------------


def _peak_mb(kind: str, count: int) -> int:
    """Tell what an invocation beside so many tasks holds at its peak; see `tests.bench.crowd`."""
    command = [sys.executable, "-m", "tests.bench.crowd", kind, str(count)]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=1200)
    print(f"{count} {kind}: {ran.stdout.strip()}", file=sys.stderr, flush=True)
    peak: int = json.loads(ran.stdout)["peak_mb"]
    return peak
