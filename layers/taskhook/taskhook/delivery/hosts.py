"""Which delivery may start now: slots by caller and host, and a breaker for hosts in trouble.

Nothing is stored.

Everything learnt is kept by (caller, host): what one caller meets at a shared host says nothing to another
caller.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import IntEnum
from http import HTTPStatus

from taskhook.core.ports import SLOTS, Clock
from taskhook.core.reply import DeliveryError, Reply

RESERVED_SLOTS = 60  # of them for callers that hold none
HOST_SLOTS = 20  # at most, for one host of one caller
FIRST_SLOTS = 3  # for a host that has not answered yet
FAILURES = 5  # in a row without an answer, which open the breaker
# Of a breaker that failures have opened; then one attempt tries the host again.
OPEN_TIME = timedelta(seconds=60)
MIN_RETRY_AFTER = timedelta(seconds=5)
MAX_RETRY_AFTER = timedelta(minutes=10)
WAITING_PER_SLOT = 20  # candidates for one host that wait in memory
CALLER_WAITING = 1000  # candidates of one caller
TOTAL_WAITING = 5000  # with so many waiting, a caller gets no more than FEW_WAITING
FEW_WAITING = 20
IDLE_HOSTS = 5000  # without attempts or candidates, of which something learnt is remembered

_THROTTLING = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT}
# Nothing was sent, so nothing was learnt of the host.
_NOT_ATTEMPTED = {DeliveryError.CALLER_UNREADABLE, DeliveryError.FORBIDDEN_TARGET}


class Order(IntEnum):
    """What goes first among one caller's candidates."""

    FIRST = 1  # first attempts
    REPEAT = 2
    REDELIVERY = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A callback that is due and waits for a slot."""

    task_id: str
    caller: str
    host: str
    order: Order


@dataclass(frozen=True, slots=True)
class BreakerState:
    """What one caller's attempts have shown of one host; every reply turns it into a new one."""

    slots: int = FIRST_SLOTS
    answered: bool = False  # the last attempt got an answer
    failures: int = 0  # in a row: no answer at all
    open_until: datetime | None = None

    def is_open(self, now: datetime) -> bool:
        """Whether nothing is to be sent."""
        return self.open_until is not None and now < self.open_until

    def record(self, reply: Reply, now: datetime) -> "BreakerState":
        """Learn from one attempt.

        Any answer shows that the host is up; what it says of the message is the schedule's matter.
        """
        # What was under way when the breaker opened is no news.
        if reply.error in _NOT_ATTEMPTED or self.is_open(now):
            return self
        if reply.status in _THROTTLING:
            wait = min(max(reply.retry_after or MIN_RETRY_AFTER, MIN_RETRY_AFTER), MAX_RETRY_AFTER)
            return BreakerState(slots=max(1, self.slots // 2), answered=True, open_until=now + wait)
        if reply.status is not None:
            return BreakerState(slots=min(HOST_SLOTS, self.slots + 1), answered=True)
        if self.failures + 1 < FAILURES:
            return replace(self, answered=False, failures=self.failures + 1)
        return BreakerState(slots=1, failures=FAILURES, open_until=now + OPEN_TIME)


_UNKNOWN = BreakerState()


@dataclass(slots=True)
class _Host:
    """One host of one caller: what is known of it, what it holds, and what waits for it, oldest first."""

    state: BreakerState = _UNKNOWN
    held: int = 0
    waiting: dict[Order, dict[str, None]] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        return not self.held and not self.waiting


@dataclass(slots=True)
class _Caller:
    """One caller: its slots, the number of its candidates, and its hosts' turns.

    In a turn are the hosts that have a candidate of this order and are not saturated, those that answer apart
    from those that do not; each with the number it drew, so that the two lines are served as one.
    """

    held: int = 0
    doubtful: int = 0  # slots held for hosts that have not answered
    waiting: Counter[Order] = field(default_factory=Counter)
    turns: dict[tuple[Order, bool], dict[str, int]] = field(default_factory=dict)


class Hosts:
    """The slots and breakers of one invocation.

    Callers in turn, then a caller's first attempts before its repeats before its redeliveries, and among
    these its hosts in turn. A caller that holds slots gets one more only while more are free (beyond the
    reserve) than it holds: alone it has 120, a second one half of what is left, and with time all have the
    same. What it holds for hosts that have not answered is bounded more tightly, so that its dead hosts leave
    slots for those that answer.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._hosts: dict[tuple[str, str], _Host] = {}
        # Known hosts without attempts or candidates, longest idle first.
        self._idle: dict[tuple[str, str], None] = {}
        self._callers: dict[str, _Caller] = {}  # with attempts or candidates
        self._caller_turns: dict[str, None] = {}  # callers with candidates; the first one is next
        self._waiting: dict[str, Candidate] = {}
        self._dropped: list[str] = []
        self._free = SLOTS
        self._drawn = 0

    # --- slots ------------------------------------------------------------------------------------

    def enter(self, caller: str, host: str) -> bool:
        """Take a slot for a first attempt right now.

        False where none is to be had, or an earlier first attempt waits.
        """
        known = self._known(caller, host)
        fits = (
            not known.state.is_open(self._clock.now())
            and known.held < known.state.slots
            and Order.FIRST not in known.waiting
            and self._may_start(
                self._callers.get(caller) or _Caller(), Order.FIRST, answered=known.state.answered
            )
        )
        if fits:
            self._take(caller, host)
        return fits

    def frees_soon(self, caller: str, host: str) -> bool:
        """Whether a slot of this host may be free in a moment: attempts run, and none has failed."""
        known = self._known(caller, host)
        return known.held > 0 and known.state.failures == 0 and not known.state.is_open(self._clock.now())

    def leave(self, caller: str, host: str) -> None:
        """Give a slot back."""
        known, its = self._hosts[caller, host], self._callers[caller]
        known.held -= 1
        its.held -= 1
        its.doubtful -= not known.state.answered
        self._free += 1
        self._changed(caller, host)

    def next(self) -> Candidate | None:
        """Give the candidate that may start now, its slot taken: `leave` gives it back.

        None where none may start.
        """
        if self._free == 0:
            return None
        for caller in self._caller_turns:
            its = self._callers[caller]
            turn = self._turn(its)
            if turn is None:
                continue
            order, host = turn
            candidate = self._waiting[next(iter(self._hosts[caller, host].waiting[order]))]
            del self._caller_turns[caller]  # to the end of the turns, where more of its candidates wait
            self._remove(candidate)
            self._take(caller, host)
            return candidate
        return None

    # --- breakers ---------------------------------------------------------------------------------

    def record(self, caller: str, host: str, reply: Reply) -> timedelta | None:
        """Learn from one attempt; give how long the breaker is open if this reply is what opened it.

        The candidates for a host whose breaker opens wait no longer: `dropped` names them.
        """
        now = self._clock.now()
        known = self._known(caller, host)
        before, known.state = known.state, known.state.record(reply, now)
        if caller in self._callers:
            self._callers[caller].doubtful += known.held * (before.answered - known.state.answered)
        opened = known.state.is_open(now) and not before.is_open(now)
        if opened:
            gone = [task_id for tasks in known.waiting.values() for task_id in tasks]
            self._dropped += gone
            for task_id in gone:
                self.withdraw(task_id)
        self._hosts[caller, host] = known
        self._changed(caller, host)
        return known.state.open_until - now if opened and known.state.open_until is not None else None

    # --- candidates -------------------------------------------------------------------------------

    def has_room(self, candidate: Candidate) -> bool:
        """Tell whether this one may wait in memory: not while the breaker is open, nor beyond the bounds.

        Only what goes before it or with it counts, so that redeliveries never take a first attempt's room.
        """
        known = self._known(candidate.caller, candidate.host)
        its = self._callers.get(candidate.caller) or _Caller()
        orders = [order for order in Order if order <= candidate.order]
        at_host = sum(len(known.waiting.get(order, ())) for order in orders)
        of_caller = sum(its.waiting[order] for order in orders)
        most = CALLER_WAITING if len(self._waiting) < TOTAL_WAITING else FEW_WAITING
        closed = not known.state.is_open(self._clock.now())
        return closed and at_host < known.state.slots * WAITING_PER_SLOT and of_caller < most

    def offer(self, candidate: Candidate) -> bool:
        """Let a due callback wait for a slot; False where there is no room.

        One that waits already stays where it is.
        """
        if candidate.task_id in self._waiting:
            return True
        if not self.has_room(candidate):
            return False
        caller, host, order = candidate.caller, candidate.host, candidate.order
        known = self._hosts.setdefault((caller, host), _Host())
        known.waiting.setdefault(order, {})[candidate.task_id] = None
        self._callers.setdefault(caller, _Caller()).waiting[order] += 1
        self._waiting[candidate.task_id] = candidate
        self._changed(caller, host)
        return True

    def withdraw(self, task_id: str) -> None:
        """Let a callback wait no longer, if it does."""
        if task_id in self._waiting:
            candidate = self._waiting[task_id]
            self._remove(candidate)
            self._changed(candidate.caller, candidate.host)

    def dropped(self) -> list[str]:
        """Name the candidates whose breaker has opened, each once.

        They wait no longer; the index has them.
        """
        gone, self._dropped = self._dropped, []
        return gone

    def waiting(self) -> int:
        """Count the candidates."""
        return len(self._waiting)

    def __contains__(self, task_id: object) -> bool:
        """Whether a callback waits for a slot."""
        return task_id in self._waiting

    # --- what follows from a change ---------------------------------------------------------------

    def _known(self, caller: str, host: str) -> _Host:
        return self._hosts.get((caller, host)) or _Host()

    def _may_start(self, its: _Caller, order: Order, *, answered: bool) -> bool:
        if its.held == 0:
            return self._free > 0
        spare = self._free - RESERVED_SLOTS
        return its.held < spare and (answered or its.doubtful * (1 + order) < spare)

    def _turn(self, its: _Caller) -> tuple[Order, str] | None:
        """Tell whose turn it is among one caller's hosts; None where none of them may have a slot."""
        for order in Order:
            heads = [
                next((number, host) for host, number in its.turns[order, answered].items())
                for answered in (True, False)
                if (order, answered) in its.turns and self._may_start(its, order, answered=answered)
            ]
            if heads:
                return order, min(heads)[1]
        return None

    def _take(self, caller: str, host: str) -> None:
        known = self._hosts.setdefault((caller, host), _Host())
        its = self._callers.setdefault(caller, _Caller())
        known.held += 1
        its.held += 1
        its.doubtful += not known.state.answered
        self._free -= 1
        for turn in its.turns.values():  # its turn is over
            turn.pop(host, None)
        self._changed(caller, host)

    def _remove(self, candidate: Candidate) -> None:
        known = self._hosts[candidate.caller, candidate.host]
        del self._waiting[candidate.task_id]
        del known.waiting[candidate.order][candidate.task_id]
        if not known.waiting[candidate.order]:
            del known.waiting[candidate.order]
        self._callers[candidate.caller].waiting[candidate.order] -= 1

    def _changed(self, caller: str, host: str) -> None:
        """Bring the turns of a host and its caller in line with what they hold and what waits.

        A host of which something was learnt is remembered, up to IDLE_HOSTS of them.
        """
        key, known = (caller, host), self._hosts[caller, host]
        its = self._callers.get(caller)
        if its is not None:
            for order in Order:
                for answered in (True, False):
                    ready = (
                        order in known.waiting
                        and known.held < known.state.slots
                        and known.state.answered is answered
                    )
                    self._line_up(its, (order, answered), host, ready=ready)
            if any(its.waiting.values()):
                self._caller_turns.setdefault(caller)
            else:
                self._caller_turns.pop(caller, None)
                if its.held == 0:
                    del self._callers[caller]
        self._idle.pop(key, None)
        if known.idle and known.state == _UNKNOWN:
            del self._hosts[key]
        elif known.idle:
            self._idle[key] = None
            if len(self._idle) > IDLE_HOSTS:
                oldest = next(iter(self._idle))
                del self._idle[oldest], self._hosts[oldest]

    def _line_up(self, its: _Caller, line: tuple[Order, bool], host: str, *, ready: bool) -> None:
        turn = its.turns.get(line, {})
        if ready and host not in turn:
            self._drawn += 1
            its.turns.setdefault(line, {})[host] = self._drawn
        elif not ready:
            turn.pop(host, None)
            if not turn:
                its.turns.pop(line, None)
