"""What became of a caller's newest tasks, counted when it is asked for.

Counters would be right at any size, and cost a write for each step of each task. This reads as many tasks as
a listing with a filter, writes nothing, and says how far it has looked.
"""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from taskhook.core.caller import Caller
from taskhook.core.message import Json
from taskhook.core.ports import Clock, TaskHistory
from taskhook.core.record import CallbackState, State
from taskhook.core.task import Task
from taskhook.tasks.query import Looked, TotalsFilter, look

_CURRENCIES = {"modellix": "USD"}  # of vendors whose documentation names it, and whose answers do not
_MOST = 10**12  # of an amount: what is more is none, and its sum would lose digits
_MOST_OF_A_NUMBER = 40  # characters, and digits behind the point
_MOST_OF_A_NAME = 20  # characters of a currency


class Cost(NamedTuple):
    """What a vendor says that a task has cost."""

    amount: Decimal
    currency: str


@dataclass
class Totals:
    """How many tasks stand where, what they have cost by currency, and how far the count goes."""

    looked: Looked
    accepted: int = 0
    tasks: Counter[State] = field(default_factory=Counter)
    callbacks: Counter[CallbackState] = field(default_factory=Counter)
    retrying: int = 0
    costs: dict[str, Decimal] = field(default_factory=dict)

    @property
    def running(self) -> int:
        """How many have not ended."""
        return self.accepted - self.tasks[State.SUCCESS] - self.tasks[State.FAILED]

    @property
    def callback_success(self) -> float | None:
        """The share of tried callbacks that were delivered; None where none was tried."""
        delivered = self.callbacks[CallbackState.DELIVERED]
        tried = delivered + self.retrying + self.callbacks[CallbackState.UNDELIVERED]
        return round(delivered / tried, 4) if tried else None


async def count(wanted: TotalsFilter, *, caller: Caller, history: TaskHistory, clock: Clock) -> Totals:
    """Count the newest of the caller's tasks that match."""
    after, until = wanted.span
    totals = Totals(Looked(until))
    async for task in look(totals.looked, after, caller=caller, history=history, clock=clock):
        if not wanted.matches(task):
            continue
        totals.accepted += 1
        totals.tasks[task.state] += 1
        totals.callbacks[task.callback] += 1
        totals.retrying += task.retrying
        cost = cost_of(task, task.said)
        if cost is not None:
            totals.costs[cost.currency] = totals.costs.get(cost.currency, Decimal(0)) + cost.amount
    return totals


def cost_of(task: Task, said: Json) -> Cost | None:
    """Read what the vendor says that a task has cost; None where that is no amount of something."""
    billing = said.get("billing")
    if not isinstance(billing, dict):
        return None
    if (credit := _amount(billing.get("credits"))) is not None:
        return Cost(credit, "credits")
    amount, currency = _amount(billing.get("amount")), billing.get("currency", _CURRENCIES.get(task.vendor))
    if amount is None or not isinstance(currency, str) or not 0 < len(currency) <= _MOST_OF_A_NAME:
        return None
    return Cost(amount, currency)


def _amount(value: object) -> Decimal | None:
    """Read a number of JSON, or a text that is one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        text = str(value)  # which fails for an integer of thousands of digits
        amount = Decimal(text) if len(text) <= _MOST_OF_A_NUMBER else None
    except (InvalidOperation, ValueError):
        return None
    if amount is None or not amount.is_finite() or abs(amount) >= _MOST:
        return None
    # Written out, 1e-50000000 would be as long as that.
    return amount if int(amount.as_tuple().exponent) > -_MOST_OF_A_NUMBER else None
