"""Takes each task one step further when that is due; knows no vendor, no leadership and no kind of work."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from taskhook.core.errors import StaleTaskError, StoreUnavailableError
from taskhook.core.ports import Clock, Reporter
from taskhook.core.task import Task
from taskhook.poller.work import PAUSE_LONG, PAUSE_SHORT, Work


class Scheduler:
    """Runs at most one step of a task at a time; what goes wrong in a step stays with its task."""

    def __init__(self, *, clock: Clock, reporter: Reporter) -> None:
        self._clock = clock
        self._reporter = reporter
        self._kinds: Sequence[Work] = ()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._closed: Callable[[], bool] = lambda: False
        self.steps: Counter[str] = Counter()
        self._unanswered: set[str] = set()  # nonces of writes that may have happened

    def assign(self, kinds: Sequence[Work], *, closed: Callable[[], bool]) -> None:
        """Name the kinds of work; a task is of the first that takes it. Once `closed`, nothing is begun."""
        self._kinds, self._closed = kinds, closed

    async def find(self) -> None:
        """Look for work of every kind. Raises StoreUnavailableError."""
        for kind in self._kinds:
            await kind.find()

    def track(self, task: Task) -> None:
        """Look after a task from what was just read of it; a step that runs will read for itself."""
        if task.task_id not in self._running:
            self._hand_on(task.task_id, task)

    def knows(self, task_id: str) -> bool:
        """Whether the task is looked after."""
        return task_id in self._running or any(kind.knows(task_id) for kind in self._kinds)

    def is_running(self, task_id: str) -> bool:
        """Whether a step of the task is under way."""
        return task_id in self._running

    def wrote_unanswered(self, task: Task) -> bool:
        """Whether a task stands as a write of this invocation has left it, whose answer never came.

        Its claim is this invocation's own, and no step goes on under it.
        """
        return task.nonce in self._unanswered

    def is_busy(self) -> bool:
        """Whether a step is under way."""
        return bool(self._running)

    def next_at(self) -> datetime | None:
        """Tell when the next step may start; None where nothing is left to do."""
        return min((at for kind in self._kinds if (at := kind.next_at()) is not None), default=None)

    async def start(self, due_by: datetime | None = None) -> None:
        """Begin the steps that are due by now, or were by `due_by`."""
        for kind in self._kinds:
            await self._start(kind, due_by)

    async def _start(self, kind: Work, due_by: datetime | None) -> None:
        if self._closed():
            return
        for task_id in await kind.admit(due_by or self._clock.now()):
            if task_id not in self._running:
                self._running[task_id] = asyncio.create_task(self._run(kind, task_id, due_by))

    async def _run(self, kind: Work, task_id: str, due_by: datetime | None) -> None:
        now_with: Work | None = kind
        try:
            while now_with is not None:
                now_with = await self._step(now_with, task_id)
        finally:  # also where a held poll was dropped
            self._running.pop(task_id, None)
        for other in self._kinds:
            if other.eager:
                await self._start(other, due_by)

    async def _step(self, kind: Work, task_id: str) -> Work | None:
        """Take one step; give the kind whose step follows at once."""
        try:
            task = await kind.step(task_id)
        except StaleTaskError as stale:  # another invocation has taken it further
            task = stale.current
        except StoreUnavailableError as error:
            if error.nonce:
                self._unanswered.add(error.nonce)
            kind.postpone(task_id, PAUSE_SHORT)
            return None
        # One poisoned task never stops the others; it is reported, and tried again.
        except Exception as error:  # noqa: BLE001
            self._reporter.report("task.crashed", task_id=task_id, error=type(error).__name__)
            kind.postpone(task_id, PAUSE_LONG)
            return None
        return self._hand_on(task_id, task)

    def _hand_on(self, task_id: str, task: Task | None) -> Work | None:
        """Give a task to the kind that takes it, and to no other; name that kind if its step follows."""
        taken = next((kind for kind in self._kinds if task is not None and kind.takes(task)), None)
        for kind in self._kinds:
            if kind is not taken:
                kind.drop(task_id)
        return taken if taken is not None and task is not None and taken.keep(task) else None

    async def wait(self, beat: timedelta) -> bool:
        """Wait until a step that is under way has finished, for a beat at most; False where none is."""
        if not self._running:
            return False
        over = asyncio.ensure_future(self._clock.sleep(beat))
        await asyncio.wait((*self._running.values(), over), return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        return True

    async def drain(self) -> None:
        """Let what has begun finish: it is bounded, and shorter than DRAIN."""
        while self._running:
            await asyncio.wait(self._running.values())
            for task_id in [task_id for task_id, step in self._running.items() if step.done()]:
                del self._running[task_id]  # one that was cancelled before it began has not done so itself

    def cancel(self, task_ids: Iterable[str]) -> None:
        """Drop steps that are under way."""
        for task_id in task_ids:
            if (running := self._running.get(task_id)) is not None:
                running.cancel()
