"""The account at the vendor that pays for all callers."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus

from taskhook.core.errors import RejectedError
from taskhook.core.ports import Clock, TaskApi
from taskhook.core.rate_limit import Allowance
from taskhook.core.vendor import FreeOutcome

_BALANCE_KEPT = timedelta(seconds=60)

_BALANCE_AGAIN = timedelta(seconds=10)  # after an answer without one


@dataclass
class Account:
    """The account at the vendor.

    What it said is kept for a while, so that no caller's curiosity takes the budget of submits.
    """

    vendor: TaskApi
    allowance: Allowance
    clock: Clock
    said: FreeOutcome | None = None
    kept_until: datetime | None = None

    async def balance(self) -> float:
        """Give the balance, as of at most a minute ago. Raises RejectedError, StoreUnavailableError."""
        now = self.clock.now()
        if self.said is None or self.kept_until is None or now >= self.kept_until:
            await self.allowance.require(now)
            self.said = await self.vendor.balance()
            self.kept_until = self.clock.now() + (
                _BALANCE_AGAIN if _balance(self.said) is None else _BALANCE_KEPT
            )
        balance = _balance(self.said)
        if balance is not None:
            return balance
        if self.said.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED}:
            raise RejectedError(HTTPStatus.BAD_GATEWAY, "Upstream refused: this deployment's key or balance")
        if self.said.answered:
            raise RejectedError(
                HTTPStatus.BAD_GATEWAY, "Upstream failed: the vendor's answer holds no balance"
            )
        again = round(_BALANCE_AGAIN / timedelta(seconds=1))
        raise RejectedError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Service unavailable: the vendor does not answer",
            retry_after=again,
        )


def _balance(said: FreeOutcome) -> float | None:
    """Find a number that JSON can hold in what the vendor said of its account."""
    data = said.body.get("data")
    balance = data.get("balance") if isinstance(data, dict) else None
    is_number = isinstance(balance, int | float) and not isinstance(balance, bool) and math.isfinite(balance)
    return balance if is_number and HTTPStatus.OK <= said.status < HTTPStatus.MULTIPLE_CHOICES else None
