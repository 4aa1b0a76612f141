"""How much each receiver's host gets: places that grow with its answers, and a rest while it is down. Nothing is stored."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from taskhook.ports import Clock, Reply
from taskhook.task import Task

PLACES = 100  # deliveries at once, in all
MOST_PLACES = 20  # of them for one host
FIRST_PLACES = 5  # for a host that has not answered yet: many that are dead leave room for one that lives
ROOM = 75  # free places; with fewer, a host that has not answered holds one alone
FAILURES = 5  # in a row, which show that a host is down
REST = timedelta(seconds=60)  # of a host that is down, until one attempt tries it again: the next tick does so anyway
LEAST_THROTTLE = timedelta(seconds=5)
MOST_THROTTLE = timedelta(minutes=10)
WAITING_PER_PLACE = 20  # deliveries to one host that are kept in mind; of those beyond, only the ids

_THROTTLING = {429, 502, 504}
_OURS = {"caller_unreadable", "forbidden_target"}  # no attempt was made, so nothing was learnt of the host


@dataclass(frozen=True)
class Health:
    """What is known of one host; a breaker that every reply turns into a new one."""

    places: int = FIRST_PLACES
    failures: int = 0  # in a row: no answer at all
    rests_until: datetime | None = None

    def resting(self, now: datetime) -> bool:
        """Whether nothing is to be sent."""
        return self.rests_until is not None and now < self.rests_until

    def heard(self, reply: Reply, now: datetime) -> "Health":
        """Learn from one attempt. Any answer shows that the host is up; what it says of the message is the schedule's matter."""
        if reply.error in _OURS or self.resting(now):  # what was under way when the rest began tells nothing new
            return self
        if reply.status in _THROTTLING:
            rest = min(max(reply.retry_after or LEAST_THROTTLE, LEAST_THROTTLE), MOST_THROTTLE)
            return Health(places=max(1, self.places // 2), rests_until=now + rest)
        if reply.status is not None:
            return Health(places=min(MOST_PLACES, self.places + 1))
        if self.failures + 1 < FAILURES:
            return replace(self, failures=self.failures + 1)
        return Health(places=1, failures=FAILURES, rests_until=now + REST)


_UNKNOWN = Health()


def host_of(task: Task) -> str:
    """Name the host that a task's callback goes to, with its port."""
    return urlsplit(task.callback_url or "").netloc


class Hosts:
    """The places of one invocation: whoever waits gets the next one, hosts in turn, and goes away when its host rests."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._health: dict[str, Health] = {}
        self._taken: Counter[str] = Counter()
        self._free = PLACES
        self._waiting: dict[str, deque[asyncio.Future[bool]]] = {}

    @asynccontextmanager
    async def place(self, host: str) -> AsyncIterator[bool]:
        """Hold a place for one attempt; False, and no place, where the host rests."""
        granted = await self._enter(host)
        try:
            yield granted
        finally:
            if granted:
                self._leave(host)

    def heard(self, host: str, reply: Reply) -> timedelta | None:
        """Learn from one attempt; give how long the host rests if this is what sends it to rest."""
        now = self._clock.now()
        before = self._of(host)
        after = self._health[host] = before.heard(reply, now)
        if before.resting(now) or not after.resting(now) or after.rests_until is None:
            return None
        for waiting in self._waiting.pop(host, ()):
            if not waiting.done():
                waiting.set_result(False)
        return after.rests_until - now

    def rests_until(self, host: str) -> datetime | None:
        """Tell until when nothing is sent to a host; None where something may be."""
        until = self._of(host).rests_until
        return until if until is not None and self._clock.now() < until else None

    def crowded(self, host: str, waiting: int) -> bool:
        """Tell whether a host has no use for one more delivery, with so many waiting."""
        return waiting >= self._of(host).places * WAITING_PER_PLACE or self.rests_until(host) is not None

    def _of(self, host: str) -> Health:
        return self._health.get(host, _UNKNOWN)

    async def _enter(self, host: str) -> bool:
        if self.rests_until(host) is not None:
            return False
        if self._fits(host) and host not in self._waiting:
            self._take(host)
            return True
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(host, deque()).append(place)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.result():
                self._leave(host)
            raise

    def _take(self, host: str) -> None:
        self._taken[host] += 1
        self._free -= 1

    def _leave(self, host: str) -> None:
        self._taken[host] -= 1
        self._free += 1
        while waiting := [other for other in self._waiting if self._fits(other)]:
            self._grant(min(waiting, key=self._taken.__getitem__))

    def _grant(self, host: str) -> None:
        """Give a place to whoever has waited longest for this host."""
        queue = self._waiting[host]
        place = queue.popleft()
        if not queue:
            del self._waiting[host]
        if not place.done():  # not given up meanwhile
            self._take(host)
            place.set_result(True)

    def _fits(self, host: str) -> bool:
        taken, places = self._taken[host], self._of(host).places
        return self._free > 0 and taken < places and (taken == 0 or places > FIRST_PLACES or self._free >= ROOM)
