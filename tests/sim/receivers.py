"""Receivers that behave as their URLs say, and keep every request."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from taskhook.core.reply import Reply
from tests.sim.deployment import TASKS
from tests.sim.injector import FaultInjector, impossible, nothing, running
from tests.sim.table import Item, MemoryDynamo

SLOW = 10.0  # seconds


@dataclass
class Visit:
    """One request that reached a receiver."""

    at: datetime
    url: str
    headers: dict[str, str]
    body: bytes
    sender: str
    status: int | None  # as its sender saw it
    stored: Item | None  # the task's item at that moment
    until: float = 0.0
    answered: int | None = None  # by the receiver, whether or not that arrived


class SimReceivers:
    """`CallbackSender`: receivers that behave as their URL says, and keep every request."""

    def __init__(self, injector: FaultInjector, table: MemoryDynamo) -> None:
        self._injector, self._loop, self._table = injector, injector.loop, table
        self.visits: list[Visit] = []
        self.samples: list[Visit] = []  # of no task

    async def send(self, url: str, headers: Any, body: bytes) -> Reply:
        """Take one attempt."""
        task_id = headers["x-modellix-task-id"]
        visit = Visit(
            self._loop.now(), url, dict(headers), body, running(), None, self._table.peek(TASKS, task_id)
        )
        visits = self.samples if "_sample_" in task_id else self.visits

        async def effect() -> Reply:
            visits.append(visit)
            visit.at, visit.stored = self._loop.now(), self._table.peek(TASKS, task_id)
            await asyncio.sleep(SLOW if url.endswith("-slow") else 0.1)
            reply = self._reply(url.removesuffix("-slow"), url, visits)
            visit.status, visit.until = reply.status, self._loop.time()
            visit.answered = reply.status
            return reply

        async def strike(outcome: str) -> Reply:
            if outcome == "refused":
                return Reply(error="refused")
            if outcome == "timed out":
                await asyncio.sleep(15)
                return Reply(error="timeout", elapsed=timedelta(seconds=15))
            if outcome == "error":
                visits.append(visit)
                visit.status = visit.answered = 500
                return Reply(status=500, elapsed=timedelta(milliseconds=10))
            if outcome == "slow":
                await asyncio.sleep(14)
                return await effect()
            await effect()
            visit.status = None
            await asyncio.sleep(14.5)
            return Reply(error="timeout", elapsed=timedelta(seconds=15))

        answer: Reply = await self._injector.interact("send", effect, strike)
        return answer

    def _reply(self, behaviour: str, url: str, visits: list[Visit]) -> Reply:
        """Behave: `https://r.example.com/500-503+40-ok` is 500, 503 with `Retry-After: 40`, then 200s.

        With `-slow` behind it, each of them takes long.
        """
        words = behaviour.rpartition("/")[2].split("-")
        before = sum(visit.url == url for visit in visits) - 1
        word, _, retry_after = words[min(before, len(words) - 1)].partition("+")
        elapsed = timedelta(milliseconds=100)
        if word == "ok":
            return Reply(status=200, elapsed=elapsed)
        if word.isdigit():
            return Reply(
                status=int(word),
                retry_after=timedelta(seconds=int(retry_after)) if retry_after else None,
                elapsed=elapsed,
            )
        return Reply(error=word, elapsed=elapsed)

    async def close(self) -> None:
        """Have nothing to close; its caller may die there all the same."""
        await self._injector.interact("close", nothing, impossible)
