"""Virtual time: an event loop whose clock jumps to the next timer when nobody can run, and touches no operating system."""

import asyncio
import contextlib
import random
import secrets
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from tests.world import START

Threads = Callable[[Callable[[], Any]], Awaitable[Any]]


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs the same code in the same order every time; what would block in a thread goes through `threads` instead."""

    def __init__(self, threads: Threads) -> None:
        super().__init__()
        self._threads = threads
        self._elapsed = 0.0
        self._last = 0.0, START
        self._clock_resolution = 1e-6
        self._selector = self

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

    def select(self, timeout: float | None) -> list[object]:
        """Wait, as the base class asks its selector to: by moving the clock."""
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        self._elapsed += max(timeout, 0)
        return []

    def run_in_executor(  # type: ignore[override]  # what comes back is awaited at once, and need not be a future
        self, _executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Hand a blocking call to the seam; `asyncio.to_thread` awaits what comes back."""
        assert not args
        return self._threads(func)

    def _process_events(self, _events: object) -> None:
        """Have none."""

    def _write_to_self(self) -> None:
        """Need no waking: there is one thread."""


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[random.Random]:
    """Make everything that is drawn at random follow from `seed`: ids, nonces, jitter, and the world's own whims."""
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
