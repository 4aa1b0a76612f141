"""The leader stays and works until the next tick.

It saves work; correctness rests on the conditional writes alone.
"""

import contextlib
from collections.abc import Mapping
from datetime import datetime, timedelta

from taskhook.core.errors import StoreUnavailableError
from taskhook.core.leadership import LeadershipView
from taskhook.poller.work import SCAN, TICK, PollerPorts, Rules, Standing

HAND_OVER = 3 * SCAN  # by then the old leader has seen that another leads, and has said what it leaves


class Leadership:
    """One invocation's part in it; what it learns from the other leaders goes into its standing."""

    def __init__(
        self, name: str, hard_stop: datetime, *, rules: Rules, ports: PollerPorts, standing: Standing
    ) -> None:
        self._name = name
        self._hard_stop = hard_stop
        self._rules = rules
        self._ports = ports
        self._clock = ports.clock
        self._standing = standing
        self._predecessor = ""  # whose unserved poll times are to come
        self._taken_over_at = self._clock.now()
        self.holds = False  # whether this invocation is stored as the leader

    async def acquire(self, *, takeover: bool, beat: timedelta) -> bool:
        """Become the leader, in place of another one where `takeover`. Raises StoreUnavailableError."""
        now, standing = self._clock.now(), self._standing
        view = standing.view = await self._ports.leadership.view()
        alive = view.alive(now)
        if alive and not takeover:
            return False
        if alive:  # vendor webhooks that came until now were left to its held polls, so these must be held on
            for model in view.held_models:
                if self._ports.long_poll_support.holding(model, now) is None:
                    self._ports.long_poll_support.found(model, now, holds=True)
        if not await self._ports.leadership.acquire(view, self._mine(), takeover=takeover):
            return False
        # It serves the poll times up to its last beat, sees within SCAN that another leads, and says what it
        # leaves.
        if alive:
            standing.polled_until = standing.looked_until = now - 2 * beat
            self._predecessor, self._taken_over_at = view.leader, now
        elif view.drained_at is not None:
            standing.polled_until = max(standing.polled_until, view.drained_at)
        self.holds = standing.leads = True
        return True

    async def refresh(self) -> bool:
        """Look whether this invocation still leads, and say what it holds. Raises StoreUnavailableError."""
        self._standing.view = await self._ports.leadership.view()
        if self._standing.view.leader != self._name:
            return False
        # Found out meanwhile; then webhooks are not waited for, or are.
        if self._standing.view.held_models != self._mine().held_models:
            await self._ports.leadership.acquire(self._standing.view, self._mine(), takeover=False)
        return True

    async def inherited(self) -> dict[str, datetime] | None:
        """Read, once, which poll times the predecessor has left unserved; None while it may still say so.

        Where it says nothing in time it has died, and every poll time since the last tick may be unserved:
        the answer is empty and `standing.polled_until` is moved back. Raises StoreUnavailableError.
        """
        if not self._predecessor:
            return None
        left = await self._ports.leadership.handed_over(self._predecessor)
        if left is None:
            if self._clock.now() < self._taken_over_at + HAND_OVER:
                return None
            self._standing.polled_until = self._standing.looked_until = self._taken_over_at - TICK
            left = {}
        self._predecessor = ""
        return left

    async def resign(self, *, served_until: datetime | None = None) -> None:
        """Give the leadership up; `served_until` says that nothing was due by then.

        Raises StoreUnavailableError.
        """
        await self._ports.leadership.resign(self._name, drained_at=served_until)
        self.holds = False

    async def leave_to_successor(self, unserved: Mapping[str, datetime]) -> None:
        """Say which poll times this invocation leaves unserved."""
        with contextlib.suppress(StoreUnavailableError):
            await self._ports.leadership.hand_over(self._name, unserved)

    def _mine(self) -> LeadershipView:
        held = self._ports.long_poll_support.held_models() if self._rules.long_poll else ()
        return LeadershipView(leader=self._name, until=self._hard_stop, held_models=held)
