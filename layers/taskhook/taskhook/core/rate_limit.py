"""How many requests a vendor gets.

Windows of a shared budget, and the blocks that a process takes out of them.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus

from taskhook.core.errors import RejectedError
from taskhook.core.ports import AdmissionStore, Budget

WINDOW = timedelta(seconds=6)

_WINDOWS = 11  # a sliding minute touches at most this many windows


def window(now: datetime) -> int:
    """Number the window that `now` lies in."""
    return int(now.timestamp() // WINDOW.total_seconds())


def window_end(now: datetime) -> datetime:
    """Tell when the window that `now` lies in is over."""
    return datetime.fromtimestamp((window(now) + 1) * WINDOW.total_seconds(), now.tzinfo)


def window_limit(requests_per_minute: int) -> int:
    """Tell how many requests fit into one window, so that no minute at all sees more than allowed."""
    return max(1, requests_per_minute // _WINDOWS)


def reserve(limit: int) -> int:
    """Tell how much of a window the poller leaves to submits."""
    return limit // 4


@dataclass
class Allowance:
    """Requests that this process may make out of a vendor's budget, taken in blocks.

    It is kept while the process stays warm. The first block of a window is what the window before used, so
    that a busy process pays for one write a window, not for one a request; at most an eighth of all, for what
    is not used lapses. `reserve` of each window is left to others. `admission` tells of the pauses that the
    vendor has asked for.
    """

    tokens: Budget
    vendor: str
    requests_per_minute: int
    reserve: int = 0
    admission: AdmissionStore | None = None
    window: int = -1
    left: int = 0
    used: int = 0
    empty: bool = False  # nothing is to be had in this window any more

    async def room(self, wanted: int, now: datetime, *, expected: int = 0) -> int:
        """Tell how many of `wanted` requests may be made now; `expected` are likely by the end of the window.

        Raises StoreUnavailableError.
        """
        limit, number, before = window_limit(self.requests_per_minute), window(now), 0
        if number != self.window:
            before = self.used if number == self.window + 1 else 0
            self.window, self.left, self.used, self.empty = number, 0, 0, False
        if wanted > self.left and not self.empty:
            block = max(wanted, expected, min(before, limit // 8)) - self.left
            taken = await self.tokens.take_tokens(
                self.vendor, block, window=number, limit=limit - self.reserve
            )
            self.left += taken
            self.empty = taken == 0
        return min(wanted, self.left)

    def spend(self) -> None:
        """Make one of the requests that there is room for."""
        self.left -= 1
        self.used += 1

    async def require(self, now: datetime) -> None:
        """Count one request that a caller waits for, or the vendor itself.

        Raises RejectedError where none is left, or the vendor has asked for a pause; StoreUnavailableError.
        """
        known = await self.admission.admission(self.vendor) if self.admission is not None else None
        if known is not None and known.polls_paused_until is not None and now < known.polls_paused_until:
            raise RejectedError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "Service unavailable: the vendor wants to be left alone for now",
                retry_after=math.ceil((known.polls_paused_until - now).total_seconds()),
            )
        if not await self.take(now):
            raise RejectedError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "Service unavailable: no request to the vendor is left for now",
                retry_after=round(WINDOW.total_seconds()),
            )

    async def take(self, now: datetime) -> bool:
        """Tell whether one more request may be made, and count it. Raises StoreUnavailableError."""
        if await self.room(1, now) == 0:
            return False
        self.spend()
        return True
