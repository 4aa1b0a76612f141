"""Virtual time: an event loop whose clock jumps to the next timer when idle, without an operating system."""

import asyncio
import contextlib
import random
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context
from datetime import datetime, timedelta
from heapq import heappop, heappush
from typing import Any

from tests.world import START

Threads = Callable[[Callable[[], Any]], Awaitable[Any]]


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs the same code in the same order every time; what would need a thread goes to `threads`."""

    def __init__(self, threads: Threads) -> None:
        super().__init__()
        self._threads = threads
        self._elapsed = 0.0
        self._last = 0.0, START
        self._clock_resolution = 1e-6
        self._ready: deque[Any]
        self._scheduled: list[Any]
        self._stopping: bool

    def time(self) -> float:
        """Tell the virtual seconds since the start."""
        return self._elapsed

    def now(self) -> datetime:
        """Tell the virtual time."""
        at, moment = self._last
        if at != self._elapsed:
            moment = START + timedelta(seconds=round(self._elapsed, 6))
            self._last = self._elapsed, moment
        return moment

    async def pause(self, seconds: float) -> None:
        """Wait; as `asyncio.sleep`, and cheaper."""
        over = self.create_future()
        self.call_at(self._elapsed + seconds, _end, over)
        await over

    def call_soon[*Ts](
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Run it in this round or the next; as the base class, without its checks."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at[*Ts](
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run it then; as the base class, without its checks."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]  # as the base class does
        heappush(self._scheduled, timer)
        return timer

    def _run_once(self) -> None:
        """Run the callbacks that are ready; when none is, move the clock to the next timer."""
        ready, timers = self._ready, self._scheduled
        while timers and timers[0]._cancelled:
            heappop(timers)._scheduled = False
        if not ready and not timers and not self._stopping:
            raise RuntimeError("every task waits, and nothing will ever happen")
        if timers and not ready and not self._stopping:
            self._elapsed = max(self._elapsed, timers[0]._when)
        while timers and timers[0]._when <= self._elapsed:
            timer = heappop(timers)
            timer._scheduled = False
            ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _timer_handle_cancelled(self, _handle: asyncio.TimerHandle) -> None:
        """Leave it where it is until its time has come."""

    def run_in_executor(  # type: ignore[override]  # awaited at once, it need not be a future
        self, _executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Hand a blocking call to the injector; `asyncio.to_thread` awaits what comes back."""
        assert not args
        return self._threads(func)

    def _write_to_self(self) -> None:
        """Need no waking: there is one thread."""


def _end(pause: asyncio.Future[None]) -> None:
    if not pause.done():
        pause.set_result(None)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[random.Random]:
    """Make everything that is drawn at random follow from `seed`: ids, nonces, jitter, the world's whims."""
    dice = random.Random(seed)
    before, token_hex, token_urlsafe = random.getstate(), secrets.token_hex, secrets.token_urlsafe
    names = random.Random(seed)
    random.seed(seed)
    secrets.token_hex = lambda nbytes=None: names.randbytes(nbytes or 32).hex()
    secrets.token_urlsafe = lambda nbytes=None: names.randbytes(nbytes or 32).hex()
    try:
        yield dice
    finally:
        random.setstate(before)
        secrets.token_hex, secrets.token_urlsafe = token_hex, token_urlsafe
