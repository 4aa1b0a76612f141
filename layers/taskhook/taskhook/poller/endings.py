"""The terminal write of a task, which also claims its first delivery where a slot is free."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

from taskhook.core.message import Json
from taskhook.core.record import CallbackState, ErrorCode
from taskhook.core.task import Task
from taskhook.core.vendor import PollOutcome
from taskhook.delivery.attempt import CLAIM
from taskhook.delivery.hosts import Hosts
from taskhook.poller.work import PollerPorts, Rules

PATIENCE = timedelta(seconds=5)  # of an end, for a slot that is in use; a first delivery without costs twice
SLOT_LOOK_GAP = timedelta(seconds=0.05)  # between looks whether one is free
MOST_WAITING = 100  # ends
# Bytes of the vendor's answers to them. Each is in memory, where parsed it takes twenty times as much.
MOST_WAITING_SIZE = 1024 * 1024


class Endings:
    """Ends tasks; what a first delivery needs to know is kept until it is made."""

    def __init__(self, *, rules: Rules, ports: PollerPorts, hosts: Hosts, steps: Counter[str]) -> None:
        self._rules = rules
        self._ports = ports
        self._hosts = hosts
        self._steps = steps
        self.reserved: set[str] = set()  # tasks whose first delivery is claimed, with a slot taken
        # When the vendor's task is last known to have run; what follows may be lateness.
        self.ran_until: dict[str, datetime] = {}
        self._waiting: dict[str, int] = {}  # ends that wait for a slot, each with the size of its answer
        self._lines: dict[tuple[str, str], asyncio.Lock] = {}

    async def succeeded(self, task: Task, outcome: PollOutcome, *, ran_until: datetime | None) -> Task:
        """End a task with the vendor's success, or begin to archive its results."""
        if self._ports.archiver is not None and self._rules.origin is not None:
            archiving = task.archiving(
                outcome.data, self._ports.clock.now(), new_token=lambda: secrets.token_hex(16)
            )
            if archiving.copies:
                return await self._ports.tasks.swap(task, archiving)
        return await self._end(
            task,
            lambda now, claim: task.succeeded(
                outcome.data, now, retention=self._rules.retention, claim=claim
            ),
            size=outcome.size,
            ran_until=ran_until,
        )

    async def archived(self, task: Task) -> Task:
        """End a task whose results are archived, or can wait for that no longer."""
        return await self._end(
            task,
            lambda now, claim: task.archived(
                self._rules.origin, now, retention=self._rules.retention, claim=claim
            ),
        )

    async def failed(
        self,
        task: Task,
        error: ErrorCode,
        message: str,
        *,
        raw: Json | None = None,
        size: int = 0,
        ran_until: datetime | None = None,
    ) -> Task:
        """End a task as failed; `raw` is what the vendor said of it, where its form is not ours.

        `size` is that of the vendor's answer, in bytes.
        """
        return await self._end(
            task,
            lambda now, claim: task.failed(
                error, message, now, retention=self._rules.retention, claim=claim, raw=raw
            ),
            size=size,
            ran_until=ran_until,
        )

    async def _end(
        self,
        task: Task,
        ended: Callable[[datetime, datetime | None], Task],
        *,
        size: int = 0,
        ran_until: datetime | None = None,
    ) -> Task:
        """Store the end; without a slot its first delivery is due at once, by the schedule of attempts."""
        slot = task.callback is CallbackState.WAITING and await self._slot(
            task, size=size, after_poll=ran_until is not None
        )
        now = self._ports.clock.now()
        try:
            stored = await self._ports.tasks.swap(task, ended(now, now + CLAIM if slot else None))
        except BaseException:
            if slot:
                self._hosts.leave(task.caller, task.host)
            raise
        if slot:
            self.reserved.add(task.task_id)
        if ran_until is not None and stored.callback is CallbackState.WAITING:
            self.ran_until[task.task_id] = ran_until
        self._steps["ended"] += 1
        self._ports.reporter.report(
            "task.ended", task_id=stored.task_id, caller=stored.caller, state=stored.state, error=stored.error
        )
        return stored

    async def _slot(self, task: Task, *, size: int, after_poll: bool) -> bool:
        """Take a slot for the first delivery; False where none is to be had soon.

        Of tasks that end together the first are delivered, which frees their slots, before the last are
        stored. The ends for one host wait in a line, of which the first one looks. An end that no poll has
        shown waits for none: it is one of the few steps at the table.
        """
        caller, host, now = task.caller, task.host, self._ports.clock.now()
        line = self._lines.setdefault((caller, host), asyncio.Lock())
        if not after_poll or not line.locked():
            entered = self._hosts.enter(caller, host)
            if entered or not after_poll or not self._hosts.frees_soon(caller, host):
                return entered
        if len(self._waiting) >= MOST_WAITING or sum(self._waiting.values()) + size > MOST_WAITING_SIZE:
            return self._hosts.enter(caller, host)
        self._waiting[task.task_id] = size
        try:
            async with line:
                while not (entered := self._hosts.enter(caller, host)):
                    if self._ports.clock.now() >= now + PATIENCE or not self._hosts.frees_soon(caller, host):
                        break
                    await self._ports.clock.sleep(SLOT_LOOK_GAP)
                return entered
        finally:
            del self._waiting[task.task_id]
