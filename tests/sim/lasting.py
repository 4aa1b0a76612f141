"""The troubles that last, one after another: what is in trouble how long, and what must hold."""

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from taskhook.core.ports import SLOTS
from taskhook.core.record import State
from tests.sim.deployment import RETENTION, TASKS
from tests.sim.loop import seeded
from tests.sim.machine import SEED, Machine
from tests.sim.spells import HOLD_LIMIT, Spell
from tests.world import START

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
MOST_UNKNOWN = 5
FEW = 100
ISOLATION = 2.0  # seconds by which another caller's trouble may make a callback later

Script = Callable[[Machine], Awaitable[list[str]]]


@dataclass(frozen=True)
class Trouble:
    """A script, which gives what it finds wrong, and what is allowed beyond that."""

    script: Script
    setting: dict[str, Any] = field(default_factory=dict)
    most_unknown: int = 0
    budget: bool = True  # the vendor's budget is kept
    small: bool = False  # the poller's memory has room for FEW tasks and as many callbacks that wait


TROUBLES: dict[str, Trouble] = {}


def _trouble(
    name: str = "", *, most_unknown: int = 0, budget: bool = True, small: bool = False, **setting: Any
) -> Callable[[Script], Script]:
    def keep(script: Script) -> Script:
        TROUBLES[name or script.__name__] = Trouble(script, setting, most_unknown, budget, small)
        return script

    return keep


async def _stream(machine: Machine, *, until: float, every: float, callers: Mapping[str, str]) -> None:
    """Let each caller submit again and again; what its receivers are like stands behind its name."""
    for number in itertools.count():
        if machine.loop.time() >= until:
            return
        for caller, behaviour in callers.items():
            url = f"https://{behaviour}-{number if behaviour != 'ok' else 0}.{caller}.example.com/"
            machine.submit(f"{caller}{number}", caller=caller, url=url)
        await machine.loop.pause(every)


def _too_late(late: list[float], allowed: float) -> list[str]:
    """Say so where a callback was later than it may be."""
    return (
        [f"a callback was {max(late):.1f} s late, not {allowed:.1f} s"]
        if late and max(late) > allowed
        else []
    )


def _refuses_to_hold(how: str, *, some: bool, allowed: float) -> None:
    @_trouble(f"wait_{how}{'_for_some' if some else ''}")
    async def script(machine: Machine) -> list[str]:
        machine.vendor.holds = True
        touches = (lambda name: name.endswith(("1", "4", "8"))) if some else (lambda _name: True)
        machine.vendor.spells = [Spell(f"wait {how}", since=100.0, touches=touches)]
        await _stream(machine, until=14 * MINUTE, every=12.0, callers={"alice": "ok"})
        await machine.until(16 * MINUTE)
        return [*_too_late(machine.late("alice"), allowed), *await machine.calm(MINUTE)]


for _how, _allowed in (
    *((how, 10.0) for how in ("400", "404", "422", "503", "redirect", "ignored", "stale")),
    *(("429", 15.0), ("cut", 20.0), ("silent", 2 * HOLD_LIMIT)),
):
    _refuses_to_hold(_how, some=False, allowed=_allowed)
    _refuses_to_hold(_how, some=True, allowed=_allowed)


def _lasts(
    mode: str,
    seconds: float,
    *,
    within: float,
    most_unknown: int = 0,
    most_requests: float = math.inf,
    name: str = "",
) -> None:
    """Let the vendor be in trouble while tasks of four callers run, wait, and come."""

    @_trouble(
        name or mode.replace(" ", "_"),
        most_unknown=most_unknown,
        callers=("alice", "bob", "carol", "dave"),
        requests_per_minute=200,
    )
    async def script(machine: Machine) -> list[str]:
        callers = itertools.cycle(machine.people)
        machine.vendor.slots, machine.vendor.task_time = 0, 30.0  # so that the next ones wait in the queue
        for number in range(100):
            machine.submit(f"q{number}", caller=next(callers))
        await machine.loop.pause(3.0)
        for number in range(20):
            machine.place(State.WATCHED, f"w{number}", caller=next(callers))
        began, machine.vendor.slots = machine.loop.time(), 40
        machine.vendor.spells = [Spell(mode, until=began + seconds)]
        for number in range(10):
            await machine.loop.pause(seconds / 12)
            machine.submit(f"s{number}", caller=next(callers))
        await machine.until(began + seconds)
        asked = sum(at > began for at in machine.vendor.requests)
        found = [f"{asked} requests while it lasted, not {most_requests}"] if asked > most_requests else []
        return [*found, *await machine.calm(within)]


# Unknown outcomes are watched for a quarter of an hour; what the vendor has asked for may still last when it
# is well again.
_lasts("down", 10 * MINUTE, within=20 * MINUTE, most_unknown=MOST_UNKNOWN)
# one probe every five minutes
_lasts("down", 3 * HOUR, within=20 * MINUTE, most_unknown=40, name="down_for_hours")
_lasts("posts down", 10 * MINUTE, within=20 * MINUTE, most_unknown=MOST_UNKNOWN)
_lasts("silent", 20 * MINUTE, within=20 * MINUTE, most_unknown=MOST_UNKNOWN)
_lasts("unreachable", 30 * MINUTE, within=10 * MINUTE)
_lasts("key refused", 30 * MINUTE, within=10 * MINUTE)
_lasts("throttling", 2 * HOUR, within=40 * MINUTE, most_requests=30)  # after a pause two polls go first
_lasts("confused", HOUR, within=10 * MINUTE)
_lasts("slow", 30 * MINUTE, within=10 * MINUTE)


@_trouble(callers=("alice", "bob"), most_unknown=100)
async def one_callers_requests_break_the_vendor(machine: Machine) -> list[str]:
    """What one caller sends makes the vendor answer 503; another's goes on being paid and called back."""
    machine.vendor.task_time = 30.0
    machine.vendor.spells = [
        Spell("posts down", until=20 * MINUTE, touches=lambda name: name.startswith("bob"))
    ]
    for number in range(60):
        machine.place(State.QUEUED, f"bob{number}", caller="bob")
    await _stream(machine, until=10 * MINUTE, every=15.0, callers={"alice": "ok"})
    await machine.until(21 * MINUTE)
    now = (START.timestamp() + machine.loop.time()) * 1000
    mine = [task for name, task in machine.tasks().items() if name.startswith("alice")]
    waited = max(task.get("submitted_at", now) - task["accepted_at"] for task in mine) / 1000
    longest = 5 * MINUTE + 5  # a pause as long as can be, then a look and the free request
    found = [f"a task of another caller waited {waited:.0f} s to be paid"] if waited > longest else []
    return [*found, *await machine.calm(20 * MINUTE)]


BAD_RECEIVERS = {"bob": "silent", "carol": "throttling", "dave": "hostile"}
_HALF_AN_HOUR = 30 * MINUTE


async def with_receivers(machine: Machine, behaviours: Mapping[str, str]) -> list[str]:
    """Let 1,000 tasks of four callers end: nine tenths at once, at receivers of a kind, one tenth later.

    All receivers are well again after half an hour.
    """
    machine.receivers.mended_at = _HALF_AN_HOUR
    for number in range(300):
        for caller, behaviour in behaviours.items():
            machine.place(
                State.WATCHED,
                f"{caller}{number}",
                caller=caller,
                url=f"https://{behaviour}-{number}.{caller}.example.com/",
            )
    await _stream(machine, until=10 * MINUTE, every=6.0, callers={"alice": "ok"})
    await machine.until(_HALF_AN_HOUR)
    # Before the repair three attempts have failed; the fourth comes half an hour after the third, or as much
    # later as a host asked.
    return await machine.calm(HOUR)


def _late_beside(behaviours: Mapping[str, str], seed: int) -> float:
    """Tell how late a caller's callbacks come beside others' receivers."""
    with seeded(seed), Machine(seed, callers=("alice", *behaviours), requests_per_minute=100_000) as machine:
        machine.loop.run_until_complete(with_receivers(machine, behaviours))
        return max(machine.late("alice"))


@_trouble(callers=("alice", "bob", "carol", "dave"), requests_per_minute=100_000, small=True)
async def bad_receivers(machine: Machine) -> list[str]:
    """Three callers' hosts are silent, throttle or answer anything; the fourth's callbacks are not late."""
    found = await with_receivers(machine, BAD_RECEIVERS)
    return [*found, *_too_late(machine.late("alice"), _late_alone() + ISOLATION)]


def _late_alone() -> float:
    """Tell how late the same caller's callbacks come where all other receivers answer, in its own world."""
    running = asyncio.get_running_loop()
    asyncio.events._set_running_loop(None)  # two virtual worlds do not meet
    try:
        return _late_beside(dict.fromkeys(BAD_RECEIVERS, "ok"), SEED)
    finally:
        asyncio.events._set_running_loop(running)


@_trouble(callers=("alice", "bob"), requests_per_minute=100_000, small=True)
async def many_end_at_a_dead_host(machine: Machine) -> list[str]:
    """One caller's 800 tasks have one host, which is down; few stand in memory, no other caller is late."""
    memory = machine.loop.create_task(machine.watch_memory())
    machine.receivers.mended_at = 20 * MINUTE
    for number in range(800):
        machine.place(State.WATCHED, f"bob{number}", caller="bob", url="https://refusing-0.bob.example.com/")
    await _stream(machine, until=15 * MINUTE, every=10.0, callers={"alice": "ok"})
    await machine.until(20 * MINUTE)
    found = _too_late(machine.late("alice", since=2 * MINUTE), 5.0 + ISOLATION)
    found += await machine.calm(HOUR)
    memory.cancel()
    most = FEW + SLOTS + 100  # and some that are being read, or copied from what they were
    return [
        *found,
        *([f"{machine.most_tasks} tasks stood in memory, not {most}"] if machine.most_tasks > most else []),
    ]


CLOCKS = (0.0, 300.0, -300.0, 45.0, -120.0)  # seconds by which a container's clock is ahead


@_trouble(clocks=CLOCKS, submit_clocks=CLOCKS[::-1], budget=False, lag=2.0)
async def clocks_differ(machine: Machine) -> list[str]:
    """Every container's clock is up to five minutes off; a window of the budget is then each one's own."""
    machine.vendor.slots = 8
    await _stream(machine, until=20 * MINUTE, every=15.0, callers={"alice": "ok", "bob": "ok"})
    return await machine.calm(20 * MINUTE)


@_trouble(submit_clocks=(0.0, 300.0, 0.0, -300.0), budget=False)
async def clocks_of_submits_differ(machine: Machine) -> list[str]:
    """Tasks accepted by a right clock are on time beside those of a wrong one, late by its error at most."""
    machine.vendor.task_time = 25.0
    for number in range(100):
        machine.submit(f"t{number}", caller="alice" if number % 2 else "bob")
        await machine.loop.pause(8.0)
    found = await machine.calm(10 * MINUTE)
    late = {name: first - machine.vendor.ends[name] for name, first in machine.receivers.first.items()}
    return [
        *found,
        *_too_late([seconds for name, seconds in late.items() if machine.ahead[name] == 0.0], 10.0),
        *_too_late([*late.values()], 330.0),
    ]


@_trouble(clocks=(0.0, 300.0, -300.0), budget=False)
async def clocks_of_pollers_differ(machine: Machine) -> list[str]:
    """Leaders with different clocks hand over to each other; no callback is later than clocks differ."""
    await _stream(machine, until=15 * MINUTE, every=15.0, callers={"alice": "ok", "bob": "ok"})
    found = await machine.calm(10 * MINUTE)
    return [*found, *_too_late(machine.late(), 330.0)]


@_trouble(callers=("alice", "bob", "carol"), requests_per_minute=100_000)
async def answers_are_cut(machine: Machine) -> list[str]:
    """Index answers end anywhere, batches leave keys out, one key for ten minutes; the others are on time."""
    machine.table.page = lambda: machine.dice.choice((1, 2, 5, 20, 100))
    stuck = {"alice20", "bob40", "carol60"}
    stuck_until = 12 * MINUTE

    def unprocessed(task_id: str) -> bool:
        is_stuck = machine.names.get(task_id) in stuck and machine.loop.time() < stuck_until
        return is_stuck or machine.dice.random() < 0.2  # one of five

    machine.table.unprocessed = unprocessed
    machine.vendor.slots = 60
    await _stream(machine, until=10 * MINUTE, every=4.0, callers=dict.fromkeys(machine.people, "ok"))
    await machine.until(stuck_until)
    found = await machine.calm(10 * MINUTE)
    late = [
        first - machine.vendor.ends[name]
        for name, first in machine.receivers.first.items()
        if name not in stuck
    ]
    return [*found, *_too_late(late, 15.0)]


@_trouble(requests_per_minute=500, long_poll=False)
async def slow_then_quick(machine: Machine) -> list[str]:
    """More is due than may be asked, the vendor answers in 9.5 s, then at once; no minute sees too much."""
    machine.vendor.task_time = 5 * MINUTE
    machine.vendor.spells = [Spell("slow", since=30.0, until=3 * MINUTE)]
    for number in range(500):
        machine.place(State.WATCHED, f"w{number}")
    for number in range(50):
        machine.place(State.QUEUED, f"q{number}", caller="bob")
    return await machine.calm(30 * MINUTE)


def _expires(name: str, *, late: float) -> None:
    @_trouble(f"expires_{name}")
    async def script(machine: Machine) -> list[str]:
        """Let TTL delete what has expired, at once or days later: nothing too early, nothing for ever."""
        await _stream(machine, until=5 * MINUTE, every=20.0, callers={"alice": "ok", "bob": "ok"})
        found = await machine.calm(10 * MINUTE)
        ended_at, gone = machine.loop.time(), 0
        machine.stop_ticks()  # nothing is left to do for days
        for day in range(1, 60):
            await machine.until(ended_at + day * DAY)
            for item in machine.table.expire(TASKS, START.timestamp() + machine.loop.time() - late):
                gone += "state" in item
                if "state" in item and "work" in item:
                    found.append(f"{item['task_id']['S']} was deleted while it had work")
                if (
                    "state" in item
                    and machine.loop.time() - ended_at < RETENTION.total_seconds() - 20 * MINUTE
                ):
                    found.append(f"{item['task_id']['S']} was deleted after {day} days")
        left = [
            item["task_id"]["S"]
            for item in machine.table.everything(TASKS)
            if "state" in item or "#" in item["task_id"]["S"]
        ]
        return [
            *found,
            *([f"{len(left)} items never expire, {left[0]} among them"] if left else []),
            *([] if gone else ["none expired"]),
        ]


_expires("at_once", late=0.0)
_expires("late", late=2 * DAY)
