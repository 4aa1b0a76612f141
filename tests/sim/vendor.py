"""A vendor that keeps the truth: what was posted and taken, and what it has told of it."""

import asyncio
import copy
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from taskhook.core import ports
from taskhook.core.record import State, Submission, SubmitOutcome
from taskhook.core.vendor import FreeOutcome, ListOutcome, PollKind, PollOutcome
from taskhook.vendors import VENDORS
from tests import history
from tests.sim.deployment import LATER_MODEL, MODEL, Deployment
from tests.sim.injector import FaultInjector, Invocation, running
from tests.world import START, AtModellix, a_success

_STRUCK = {
    "throttled": PollKind.THROTTLED,
    "key refused": PollKind.KEY_REFUSED,
    "missing": PollKind.MISSING,
}
_FORGETS = {"runway"}  # vendors that do not know a task any more which was canceled
_STATES = {
    PollKind.PENDING: "pending",
    PollKind.SUCCEEDED: "success",
    PollKind.FAILED: "failed",
    PollKind.MISSING: "missing",
}


@dataclass
class Post:
    """A paid POST, and what its sender could know of it."""

    name: str
    at: datetime
    sender: str
    seen: Submission | None = None  # None: the sender died before it knew
    taken: bool = False

    @property
    def possible(self) -> bool:
        """Whether it could have been taken, for all that the sender knew."""
        return self.seen not in {Submission.BUSY, Submission.NOT_SENT, Submission.REFUSED_HERE}


@dataclass
class Upstream:
    """A task at the vendor."""

    name: str
    since: float
    webhook_url: str | None
    ends: float
    fails: bool
    vendor: str = ""  # where it is, of several in one world
    known: bool = True  # False: the vendor has lost it
    canceled: bool = False  # while it ran
    reported: PollKind | None = None  # the end, once it was told


class SimVendor(AtModellix):
    """`TaskApi`: keeps the truth of what was taken, and of what it has told."""

    def __init__(
        self,
        injector: FaultInjector,
        deployment: Deployment,
        *,
        states_of: Callable[[str], set[str]],
        webhook: Callable[[str, str], Invocation],
        aside: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """`states_of` tells a task's states in the table, `webhook` calls ours, `aside` starts something."""
        self._injector, self._loop, self._deployment = injector, injector.loop, deployment
        self.vendor = VENDORS[deployment.vendor]
        self._states_of, self._webhook, self._aside = states_of, webhook, aside
        self.posts: list[Post] = []
        self.tasks: dict[str, Upstream] = {}
        self.requests: list[float] = []
        self.exchanges: list[history.Event] = []
        self.oddities: list[str] = []  # what is odd at the moment it happens
        # by name: what becomes of its POSTs
        self.script: dict[str, list[Submission | str]] = defaultdict(list)
        self.refuses: list[Submission] = []  # what becomes of the next POSTs, of whatever task
        self.misses: list[PollKind] = []  # what becomes of the next polls
        self.down = False  # it answers 503 to everything
        self.times: dict[str, float] = {}  # by name: how long it works, where not as long as on any other

    def beside(self, name: str) -> "SimVendor":
        """Make another vendor beside this one, in the same world; requests and moods are its own."""
        other = copy.copy(self)
        other.vendor, other.requests = VENDORS[name], []
        other.refuses, other.misses = [], []
        return other

    async def submit(
        self,
        model: str,
        request: bytes,
        *,
        webhook_url: str | None,
        limit: timedelta,
        admit: ports.Admit | None = None,
        **_: object,
    ) -> SubmitOutcome:
        """Take the task, or refuse it."""
        assert model in {MODEL, self.vendor.example.path, LATER_MODEL}
        if admit is not None and not await admit():
            return SubmitOutcome(submission=Submission.NOT_SENT, message="no request was left")
        name = json.loads(request)["image_url"].rpartition("/")[2]
        post = Post(name, self._loop.now(), running())
        self.posts.append(post)
        exchange = self._asked("submit", work=name)
        if limit <= timedelta(0):
            self.oddities.append(f"{name} was posted with no time left")
        states = self._states_of(name)
        if not states & {State.SUBMITTING, State.UNKNOWN}:
            self.oddities.append(f"{name} was posted while the table said {states or 'nothing'}")

        async def effect() -> SubmitOutcome:
            await asyncio.sleep(0.4)
            return self._decide(post, webhook_url)

        async def strike(outcome: str) -> SubmitOutcome:
            return await self._strike(outcome, effect, limit)

        answer: SubmitOutcome = await self._injector.interact("submit", effect, strike)
        post.seen = answer.submission
        exchange["sent"] = post.seen is not Submission.NOT_SENT
        waits = answer.retry_after.total_seconds() if answer.retry_after is not None else None
        self._answered(
            exchange, status=answer.status, task=answer.upstream_task_id or None, retry_after=waits
        )
        return answer

    def _asked(self, what: str, **facts: Any) -> history.Event:
        self.requests.append(self._loop.time())
        at = START.timestamp() + self._loop.time()
        self.exchanges.append(history.vendors(at, self.vendor.name, what, **facts))
        return self.exchanges[-1]

    def _answered(self, exchange: history.Event, **facts: Any) -> None:
        exchange |= {"until": START.timestamp() + self._loop.time(), **facts}

    def has(self, name: str) -> None:
        """Have a task that was submitted elsewhere."""
        now = self._loop.time()
        ends = now + self.times.get(name, self._deployment.task_time)
        self.tasks[f"up-elsewhere-{name}"] = Upstream(name, now, None, ends, fails=name.startswith("bad"))

    def _decide(self, post: Post, webhook_url: str | None) -> SubmitOutcome:
        now = self._loop.time()
        if self.down:
            return SubmitOutcome(submission=Submission.AMBIGUOUS, status=503, message="down")
        planned: Submission | str | None = None
        if self.script[post.name]:
            planned = self.script[post.name].pop(0)
        elif self.refuses:
            planned = self.refuses.pop(0)
        if planned in {Submission.REFUSED, Submission.REFUSED_HERE, Submission.BUSY, Submission.NOT_SENT}:
            status = {Submission.REFUSED: 400, Submission.REFUSED_HERE: 402, Submission.BUSY: 429}.get(
                Submission(planned), 0
            )
            return SubmitOutcome(submission=Submission(planned), status=status, message="no")
        if planned == "dropped":
            return SubmitOutcome(submission=Submission.AMBIGUOUS, message="the connection broke")
        if sum(task.since <= now < task.ends for task in self.tasks.values()) >= self._deployment.slots:
            return SubmitOutcome(submission=Submission.BUSY, status=429, message="Concurrent limit exceeded")
        post.taken = True
        upstream = f"up-{len(self.tasks)}-{post.name}"
        ends = now + self.times.get(post.name, self._deployment.task_time)
        is_bad = post.name.startswith("bad")
        self.tasks[upstream] = Upstream(
            post.name, now, webhook_url, ends, fails=is_bad, vendor=self.vendor.name
        )
        if webhook_url is not None:
            self._aside(self._call_webhooks(upstream))
        if planned == "silent":
            return SubmitOutcome(submission=Submission.AMBIGUOUS, message="the answer broke off")
        return SubmitOutcome(submission=Submission.TAKEN, upstream_task_id=upstream, status=200)

    async def _strike(
        self, outcome: str, effect: Callable[[], Awaitable[SubmitOutcome]], limit: timedelta
    ) -> SubmitOutcome:
        refusals = {
            "not sent": SubmitOutcome(submission=Submission.NOT_SENT, message="no connection"),
            "busy": SubmitOutcome(
                submission=Submission.BUSY, status=429, message="Concurrent limit exceeded"
            ),
            "too many": SubmitOutcome(
                submission=Submission.BUSY,
                status=429,
                message="Rate limit",
                retry_after=timedelta(seconds=10),
            ),
            "key refused": SubmitOutcome(submission=Submission.REFUSED_HERE, status=401, message="bad key"),
            "refused": SubmitOutcome(submission=Submission.REFUSED, status=422, message="bad image"),
        }
        if outcome in refusals:
            return refusals[outcome]
        if outcome == "slow":
            await asyncio.sleep(max(limit.total_seconds() - 1, 0))
            return await effect()
        if outcome == "answer lost":
            await effect()
        await asyncio.sleep(limit.total_seconds())
        return SubmitOutcome(submission=Submission.AMBIGUOUS, message="no answer in time")

    async def poll(self, upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        """Tell how far a task is."""
        exchange = self._asked("poll", task=upstream_task_id)

        async def effect() -> PollOutcome:
            await asyncio.sleep(0.2)
            return await self._look(upstream_task_id, hold=hold)

        async def strike(outcome: str) -> PollOutcome:
            if outcome == "slow":
                await asyncio.sleep(10)
                return await effect()
            return PollOutcome(kind=_STRUCK.get(outcome, PollKind.UNAVAILABLE), message=outcome)

        answer: PollOutcome = await self._injector.interact("poll", effect, strike)
        self._answered(exchange, status=200, state=_STATES.get(answer.kind))
        return answer

    async def cancel(self, upstream_task_id: str, *, operation: str | None = None) -> FreeOutcome:
        """End a task that runs: it fails at once, or is forgotten; remove one that has ended, as some do."""
        del operation
        self._asked("other")

        async def effect() -> FreeOutcome:
            await asyncio.sleep(0.2)
            task = self.tasks[upstream_task_id]
            if self._loop.time() < task.ends:
                task.ends, task.fails, task.canceled = self._loop.time(), True, True
                task.known = self.vendor.name not in _FORGETS
            elif self.vendor.cancel_removes:
                task.known = False
                if not task.fails and task.reported is None:
                    self.oddities.append(f"the result of {task.name} was removed before anyone had seen it")
            return FreeOutcome(answered=True, status=200)

        async def strike(outcome: str) -> FreeOutcome:
            if outcome in {"slow", "answer lost"}:
                await asyncio.sleep(9)
                told = await effect()
                return told if outcome == "slow" else FreeOutcome(answered=False, message=outcome)
            status = {"key refused": 401, "missing": 404}.get(outcome, 503)
            return FreeOutcome(answered=status < 500, status=status, message=outcome)

        answer: FreeOutcome = await self._injector.interact("cancel", effect, strike)
        return answer

    async def tasks_made(self, model: str, *, since: datetime, until: datetime) -> ListOutcome:
        """List what was made, where the vendor has a list."""
        if self.vendor.listing is None:
            return ListOutcome(kind=PollKind.UNAVAILABLE)
        self._asked("other")

        async def effect() -> ListOutcome:
            await asyncio.sleep(0.2)
            first, last = ((moment - START).total_seconds() for moment in (since, until))
            made = [
                upstream
                for upstream, task in self.tasks.items()
                if first <= task.since <= last and task.vendor == self.vendor.name
            ]
            return ListOutcome(kind=PollKind.SUCCEEDED, upstream_task_ids=tuple(made))

        async def strike(outcome: str) -> ListOutcome:
            return ListOutcome(kind=_STRUCK.get(outcome, PollKind.UNAVAILABLE))

        del model
        listed: ListOutcome = await self._injector.interact("poll", effect, strike)
        return listed

    async def balance(self) -> FreeOutcome:
        """Tell the balance, where the vendor answers."""
        self._asked("other")

        async def effect() -> FreeOutcome:
            await asyncio.sleep(0.2)
            if self.down:
                return FreeOutcome(answered=False, status=503)
            return FreeOutcome(
                answered=True, status=200, body={"code": 0, "message": "success", "data": {"balance": 1.0}}
            )

        async def strike(outcome: str) -> FreeOutcome:
            if outcome == "slow":
                await asyncio.sleep(10)
                return await effect()
            answered, status = (
                outcome in {"key refused", "missing"},
                {"key refused": 401, "missing": 404, "throttled": 429},
            )
            return FreeOutcome(answered=answered, status=status.get(outcome, 503), message=outcome)

        answer: FreeOutcome = await self._injector.interact("poll", effect, strike)
        return answer

    async def _look(self, upstream_task_id: str, *, hold: bool) -> PollOutcome:
        task = self.tasks.get(upstream_task_id)
        if self.down:
            return PollOutcome(kind=PollKind.UNAVAILABLE, message="down")
        if self.misses:
            return PollOutcome(kind=self.misses.pop(0), message="no")
        if task is None or not task.known:
            return PollOutcome(kind=PollKind.MISSING, message="Task not found")
        if hold and self._deployment.holds:
            await asyncio.sleep(min(max(task.ends - self._loop.time(), 0), 30))
        if self._loop.time() < task.ends:
            return PollOutcome(kind=PollKind.PENDING)
        if task.fails:
            task.reported = PollKind.FAILED
            return PollOutcome(kind=PollKind.FAILED, message="the video is too long", canceled=task.canceled)
        task.reported = PollKind.SUCCEEDED
        return a_success(upstream_task_id)

    async def _call_webhooks(self, upstream_task_id: str) -> None:
        """Call our webhook when the task has ended, a few times until it is taken."""
        task = self.tasks[upstream_task_id]
        await asyncio.sleep(task.ends - self._loop.time())
        for pause in (0.0, 5.0, 30.0, 60.0):
            await asyncio.sleep(pause)
            visit = self._webhook(task.webhook_url or "", upstream_task_id)
            await visit.ended.wait()
            if visit.answer is None and not visit.dead:
                return
