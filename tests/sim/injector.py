"""Injects faults between the use cases and their world: every call on a port is counted, and may go wrong."""

import asyncio
import contextlib
import random
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

from botocore.exceptions import ClientError, ReadTimeoutError

from tests.sim.loop import VirtualLoop
from tests.sim.outcomes import KINDS, OUTCOMES, TABLE

FREEZE = 300.0  # seconds that a frozen invocation does not notice
HOLD = 3.0  # seconds that a call is held while a twin runs
OUTAGE = 20.0
STORM = 1800.0  # virtual seconds; what comes after finds the world as it should be
LATE = 7.0  # what the SDK's two tries of 3 s may take
STALE = 20.0  # seconds, within what the poller allows for (`poll.INDEX_LAG`)


@dataclass(frozen=True, order=True)
class Point:
    """One interaction that goes wrong in one way: the `number`th of the run."""

    number: int
    site: str
    outcome: str


@dataclass
class PortCall:
    """One call of a port's method, by which line of which use case; a lasting trouble lasts as long as it."""

    site: str
    methods: tuple[str, ...]
    stuck: str | None = None


@dataclass(eq=False)
class Invocation:
    """One run of a function, which may be killed, frozen, and repeated."""

    name: str
    again: Callable[[], "Invocation"]  # starts another one that was asked the same
    dead: bool = False
    thawed: bool = False
    frozen_until: float = 0.0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    answer: Any = None

    def kill(self) -> None:
        """End it at once: nothing that it had planned happens."""
        self.dead = True
        self.ended.set()


class KilledError(BaseException):
    """The process was killed between two lines of code."""


INVOCATION: ContextVar[Invocation | None] = ContextVar("invocation", default=None)
_CALL: ContextVar[PortCall | None] = ContextVar("call", default=None)


class SimulatedWorld(Protocol):
    """What the injector asks of the scene."""

    def fingerprint(self) -> str:
        """Describe what stands in the tables, to tell an interaction from its repetition."""

    def rival(self, request: dict[str, Any]) -> None:
        """Let another process write the item first."""

    def lagging(self, lag: Callable[[str], float] | None) -> None:
        """Let reads of indexes and batches be that old; None: as usual."""


@dataclass
class FaultInjector:
    """Counts interactions, remembers them, and lets one of them go wrong."""

    dice: random.Random
    plan: Point | None = None
    storm: float = 0.0  # the share of interactions that go wrong at random
    loop: VirtualLoop = field(init=False)
    world: SimulatedWorld = field(init=False)
    over: bool = False
    count: int = 0
    seen: dict[tuple[str, str, str], int] = field(default_factory=dict)
    met: set[str] = field(default_factory=set)  # methods of ports that were called
    trace: list[str] = field(default_factory=list)
    struck: list[tuple[str, str]] = field(default_factory=list)
    outage_until: float = 0.0
    diverged: bool = False

    def __post_init__(self) -> None:
        self.loop = VirtualLoop(self.aws)
        # of a killed invocation, which no caller awaits
        self.loop.set_exception_handler(lambda _loop, _context: None)

    # --- ports ------------------------------------------------------------------------------------

    def port(self, inner: object, *protocols: type) -> Any:
        """Put the injector before an object that implements the protocols."""
        return _Ported(inner, self, protocols)

    async def aws(self, call: Callable[[], Any]) -> Any:
        """Make a blocking call of an AWS client, which `asyncio.to_thread` brings here."""
        assert isinstance(call, partial)
        method, request = call.args[0], call.keywords

        async def effect() -> Any:
            return method(**request)

        async def strike(outcome: str) -> Any:
            return await self._strike_aws(outcome, effect, request)

        return await self.interact(KINDS[method.__name__], effect, strike, what=method.__name__)

    async def interact(
        self,
        kind: str,
        effect: Callable[[], Awaitable[Any]],
        strike: Callable[[str], Awaitable[Any]],
        *,
        what: str = "",
    ) -> Any:
        """Let one interaction happen, or go wrong as planned."""
        invocation, call = INVOCATION.get(), _CALL.get()
        if invocation is None:
            return await effect()  # the simulator's own
        if self._hindered(invocation):
            await self._stand(invocation)
        outcome = call.stuck if call is not None and call.stuck else self._next(kind, invocation, call, what)
        await self.loop.pause(self.dice.uniform(0.001, 0.02))
        if self._hindered(invocation):
            await self._stand(invocation)
        try:
            if outcome is None and what and self.loop.time() < self.outage_until and kind in TABLE:
                outcome = "unavailable"
            if outcome is None:
                return await effect()
            return await self._common(outcome, invocation, call, effect, strike)
        finally:
            if "read" not in kind:
                await self.loop.pause(self.dice.uniform(0.001, 0.02))
            if self._hindered(invocation):
                await self._stand(invocation)

    def tell(self) -> None:
        """Let one line be told, unless the process is killed right there."""
        invocation = INVOCATION.get()
        if invocation is None or invocation.dead:
            return
        if self._next("tell", invocation, _CALL.get(), "") is not None:
            self.note(f"{invocation.name} dies")
            invocation.kill()
            raise KilledError

    async def sleep(self, duration: timedelta) -> None:
        """Let an invocation wait, or never wake."""
        invocation = INVOCATION.get()
        assert invocation is not None

        async def effect() -> None:
            await self.loop.pause(max(duration.total_seconds(), 0))

        await self._stand(invocation)
        outcome = self._next("sleep", invocation, _CALL.get(), "")
        if outcome is None:
            await effect()
        else:
            await self._common(outcome, invocation, None, effect, impossible)
        await self._stand(invocation)

    def note(self, line: str) -> None:
        """Write into the trace."""
        self.trace.append(f"{self.loop.time():11.3f} {line}")

    # --- what goes wrong --------------------------------------------------------------------------

    def _next(self, kind: str, invocation: Invocation, call: PortCall | None, what: str) -> str | None:
        number = self.count
        self.count += 1
        site = f"{call.site if call else '?'}{' ' + what if what else ''}"
        if call is not None:
            self.met.update(call.methods)
        if self.plan is not None:
            if kind not in {"sleep", "lagging read"}:
                self.note(f"{invocation.name} {site}")
            if number != self.plan.number:
                return None
            self.diverged = site != self.plan.site
            return self._struck(invocation, site, self.plan.outcome, call)
        if self.storm:
            if self.loop.time() > STORM or self.dice.random() >= self.storm * (
                0.02 if kind == "sleep" else 1
            ):
                return None
            return self._struck(invocation, site, self.dice.choice(OUTCOMES[kind]), call)
        # A poller asks the same again and again: what stands in the tables tells one question from its
        # repetition.
        self.seen.setdefault((kind, site, self.world.fingerprint()), number)
        return None

    def _struck(self, invocation: Invocation, site: str, outcome: str, call: PortCall | None) -> str:
        self.note(f"!!! {invocation.name} {site}: {outcome}")
        self.struck += [(method, outcome) for method in (call.methods if call else ())]
        return outcome

    def _hindered(self, invocation: Invocation) -> bool:
        return self.over or invocation.dead or invocation.frozen_until > self.loop.time()

    async def _stand(self, invocation: Invocation) -> None:
        """Let the dead and the frozen do nothing."""
        while True:
            if self.over:
                raise asyncio.CancelledError
            if invocation.dead:
                await self.loop.create_future()
            rest = invocation.frozen_until - self.loop.time()
            if rest <= 0:
                return
            await asyncio.sleep(rest)

    async def _common(
        self,
        outcome: str,
        invocation: Invocation,
        call: PortCall | None,
        effect: Callable[[], Awaitable[Any]],
        strike: Callable[[str], Awaitable[Any]],
    ) -> Any:
        """Let happen what can happen to any call."""
        what, _, when = outcome.partition(" ")
        if when == "for good" and call is not None:
            call.stuck = outcome
        if what not in {"died", "thaw", "twin"}:
            return await strike(outcome)
        if when == "after":
            try:
                return await effect()
            finally:
                await self._befall(what, invocation)
        await self._befall(what, invocation)
        return await effect()

    async def _befall(self, what: str, invocation: Invocation) -> None:
        match what:
            case "died":
                invocation.kill()
                await self._stand(invocation)
            case "thaw":
                invocation.thawed, invocation.frozen_until = True, self.loop.time() + FREEZE
                await self._stand(invocation)
            case "twin":
                invocation.again()
                await asyncio.sleep(HOLD)

    async def _strike_aws(  # noqa: C901, PLR0912  # one case per outcome
        self, outcome: str, effect: Callable[[], Awaitable[Any]], request: dict[str, Any]
    ) -> Any:
        match outcome:
            # the answer was lost, and the SDK sends the same request again
            case "sdk retry" | "sdk retry late":
                await effect()
                if outcome == "sdk retry late":
                    await asyncio.sleep(LATE - HOLD)
                return await effect()
            case "answer lost" | "answer lost for good":
                with contextlib.suppress(ClientError):
                    await effect()
                await asyncio.sleep(LATE)
                raise ReadTimeoutError(endpoint_url="https://aws.example.com/")
            case "lost":
                return {}
            case "twice":
                await effect()
                return await effect()
            case "late":
                await asyncio.sleep(LATE - HOLD)
                return await effect()
            case "slow":
                await asyncio.sleep(LATE)
                return await effect()
            case "throttled":
                raise ClientError({"Error": {"Code": "ThrottlingException", "Message": "slow down"}}, "Call")
            case "outage":
                self.outage_until = self.loop.time() + OUTAGE
                raise ReadTimeoutError(endpoint_url="https://aws.example.com/")
            case "beaten":
                self.world.rival(request)
                return await effect()
            case "stale" | "out of order":
                ages: dict[str, float] = {}

                def lag(key: str) -> float:
                    return (
                        STALE if outcome == "stale" else ages.setdefault(key, self.dice.choice((0.0, STALE)))
                    )

                self.world.lagging(lag)
                try:
                    return await effect()
                finally:
                    self.world.lagging(None)
            case _:
                raise ReadTimeoutError(endpoint_url="https://aws.example.com/")


class InjectedClock:
    """`Clock`: the loop's own, whose sleepers may never wake."""

    def __init__(self, injector: FaultInjector, ahead: float = 0.0) -> None:
        """Be a process's own, which may be ahead by so many seconds."""
        self._injector = injector
        self._ahead = timedelta(seconds=ahead)

    def now(self) -> datetime:
        """Tell the virtual time."""
        moment = self._injector.loop.now()
        return moment + self._ahead if self._ahead else moment

    async def sleep(self, duration: timedelta) -> None:
        """Wait in virtual time."""
        await self._injector.sleep(duration)


@cache
def methods_of(*protocols: type) -> list[tuple[str, str]]:
    """List what protocols ask for: the method, and its full name."""
    return [
        (name, f"{protocol.__name__}.{name}")
        for protocol in protocols
        for name in vars(protocol)
        if callable(getattr(protocol, name)) and (not name.startswith("_") or name == "__call__")
    ]


class _Ported:
    """An object behind the injector: every method knows which line calls it."""

    def __init__(self, inner: object, injector: FaultInjector, protocols: tuple[type, ...]) -> None:
        for name, full in methods_of(*protocols):
            setattr(
                self, name if name != "__call__" else "call", _ported(getattr(inner, name), full, injector)
            )
        for protocol in protocols:
            for name, value in vars(protocol).items():
                if isinstance(value, property):  # facts, which no fault can touch
                    setattr(self, name, getattr(inner, name))
        self.inner = inner

    def __call__(self, **arguments: Any) -> Any:
        return self.call(**arguments)  # type: ignore[attr-defined]  # set above


def _ported(method: Callable[..., Any], full: str, injector: FaultInjector) -> Callable[..., Any]:
    async def follow(call: PortCall, *arguments: Any, **named: Any) -> Any:
        token = _CALL.set(call)
        try:
            return await method(*arguments, **named)
        finally:
            _CALL.reset(token)

    def asynchronous(*arguments: Any, **named: Any) -> Any:
        return follow(_call(full, sys._getframe(1)), *arguments, **named)

    def told(*arguments: Any, **named: Any) -> Any:
        token = _CALL.set(_call(full, sys._getframe(1)))
        try:
            injector.tell()
        finally:
            _CALL.reset(token)
        method(*arguments, **named)

    if full.endswith(".now"):
        return method
    return told if full == "Reporter.report" else asynchronous


def _call(full: str, frame: Any) -> PortCall:
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    outer = _CALL.get()
    site = _site(full, frame.f_code.co_filename, frame.f_lineno)
    if outer is None:
        return PortCall(site, (full,))
    return PortCall(f"{outer.site} > {site}", (full, *outer.methods))  # an adapter may need a port itself


@cache
def _site(full: str, path: str, line: int) -> str:
    return f"{full} {Path(path).name}:{line}"


async def nothing() -> None:
    """Have no effect."""


async def impossible(outcome: str) -> Any:
    """Be what becomes of a call to which this cannot happen."""
    raise AssertionError(outcome)


def running() -> str:
    """Name the invocation that runs here."""
    invocation = INVOCATION.get()
    return invocation.name if invocation is not None else "?"
