"""A vendor and receivers that are in trouble for a while, in virtual time."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from taskhook.core.ports import Admit
from taskhook.core.record import Submission, SubmitOutcome
from taskhook.core.reply import Reply
from taskhook.core.vendor import FreeOutcome, PollKind, PollOutcome
from tests.sim.loop import VirtualLoop
from tests.world import AtModellix, a_success

# seconds: the adapters' own, and what the vendor holds
POLL_LIMIT, HOLD_LIMIT, HELD, SEND_LIMIT = 10.0, 50.0, 30.0, 15.0
ASKED_PAUSE = timedelta(minutes=30)  # a vendor's `Retry-After`
RECEIVERS_PAUSE = timedelta(minutes=10)


@dataclass(frozen=True)
class Spell:
    """What the vendor is like for a while: from when until when, and to which tasks."""

    mode: str
    since: float = 0.0
    until: float = math.inf
    touches: Callable[[str], bool] = lambda _name: True


@dataclass
class Post:
    """A paid POST: when it left, and what became of it at the vendor."""

    name: str
    at: float
    sent: bool = True
    refused: bool = False  # for now, with proof

    @property
    def possible(self) -> bool:
        """Whether it may have been taken, for all that its sender knew."""
        return self.sent and not self.refused


@dataclass
class Upstream:
    """A task at the vendor."""

    name: str
    since: float
    ends: float


_POLLED = {
    "down": PollOutcome(kind=PollKind.UNAVAILABLE, message="the vendor answered 503"),
    "unreachable": PollOutcome(kind=PollKind.UNAVAILABLE, message="ConnectError"),
    "key refused": PollOutcome(kind=PollKind.KEY_REFUSED),
    "throttling": PollOutcome(kind=PollKind.THROTTLED, retry_after=ASKED_PAUSE),
    "confused": PollOutcome(kind=PollKind.UNAVAILABLE, message="the answer is not about this task"),
}


class Vendor(AtModellix):
    """`TaskApi`: runs tasks, holds polls where it does, and has its spells."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.spells: list[Spell] = []
        self.task_time = 45.0
        self.slots = 1_000_000
        self.holds = False
        self.posts: list[Post] = []
        self.polls: list[tuple[float, str]] = []  # when, and the task's name
        self.requests: list[float] = []
        self.tasks: dict[str, Upstream] = {}  # by the vendor's id
        self.ends: dict[str, float] = {}  # by name
        self.reported: set[str] = set()  # names whose end was told

    def mode(self, name: str) -> str:
        """Tell what the vendor is like to a task right now; empty: as it should be."""
        now = self._loop.time()
        return next(
            (spell.mode for spell in self.spells if spell.since <= now < spell.until and spell.touches(name)),
            "",
        )

    def take(self, name: str, since: float, task_time: float | None = None) -> str:
        """Begin to work on a task; give the vendor's id."""
        upstream = f"up-{len(self.tasks)}"
        self.ends[name] = since + (self.task_time if task_time is None else task_time)
        self.tasks[upstream] = Upstream(name, since, self.ends[name])
        return upstream

    async def submit(
        self,
        model: str,
        request: bytes,
        *,
        webhook_url: str | None,
        limit: timedelta,
        admit: Admit | None = None,
        **_: object,
    ) -> SubmitOutcome:
        """Take a task, or do as the spell says."""
        del model, webhook_url
        pause = self._loop.pause
        if admit is not None and not await admit():
            return SubmitOutcome(submission=Submission.NOT_SENT, message="not admitted")
        name = json.loads(request)["image_url"].rpartition("/")[2]
        post, mode = Post(name, self._loop.time()), self.mode(name)
        self.posts.append(post)
        if mode == "unreachable":
            post.sent = False
            await pause(0.1)
            return SubmitOutcome(submission=Submission.NOT_SENT, message="ConnectError")
        self.requests.append(post.at)
        match mode:
            case "down" | "posts down":
                await pause(0.2)
                return SubmitOutcome(
                    submission=Submission.AMBIGUOUS, status=503, message="Service unavailable"
                )
            case "silent":
                await pause(limit.total_seconds())
                return SubmitOutcome(submission=Submission.AMBIGUOUS, message="TimeoutError")
            case "key refused":
                post.refused = True
                await pause(0.2)
                return SubmitOutcome(
                    submission=Submission.REFUSED_HERE, status=401, message="Invalid API key"
                )
            case "throttling":
                post.refused = True
                await pause(0.2)
                return SubmitOutcome(
                    submission=Submission.BUSY,
                    status=429,
                    message="Too many requests",
                    retry_after=ASKED_PAUSE,
                )
            case "slow":
                await pause(9.5)
            case _:
                await pause(0.4)
        now = self._loop.time()
        if sum(task.ends > now for task in self.tasks.values()) >= self.slots:
            post.refused = True
            return SubmitOutcome(submission=Submission.BUSY, status=429, message="Concurrent limit exceeded")
        return SubmitOutcome(submission=Submission.TAKEN, upstream_task_id=self.take(name, now), status=200)

    async def poll(self, upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        """Tell how far a task is, or do as the spell says."""
        task, pause = self.tasks[upstream_task_id], self._loop.pause
        mode = self.mode(task.name)
        self.polls.append((self._loop.time(), task.name))
        if mode != "unreachable":
            self.requests.append(self._loop.time())
        if hold and mode.startswith("wait ") and mode != "wait ignored":
            return await self._refuse_to_hold(mode.removeprefix("wait "))
        if mode == "silent":
            await pause(HOLD_LIMIT if hold else POLL_LIMIT)
            return PollOutcome(kind=PollKind.UNAVAILABLE, message="TimeoutError")
        await pause(9.5 if mode == "slow" else 0.2)
        if mode in _POLLED:
            return _POLLED[mode]
        if hold and self.holds and mode != "wait ignored":
            await pause(min(max(task.ends - self._loop.time(), 0.0), HELD))
        if self._loop.time() < task.ends:
            return PollOutcome(kind=PollKind.PENDING)
        self.reported.add(task.name)
        return a_success(upstream_task_id)

    async def balance(self) -> FreeOutcome:
        """Tell the balance, or do as a spell says that touches every task."""
        mode, pause = self.mode(""), self._loop.pause
        if mode != "unreachable":
            self.requests.append(self._loop.time())
        await pause({"silent": POLL_LIMIT, "slow": 9.5}.get(mode, 0.2))
        status = {"down": 503, "unreachable": 0, "silent": 0, "throttling": 429, "key refused": 401}.get(
            mode, 200
        )
        return FreeOutcome(answered=status in {200, 401}, status=status)

    async def _refuse_to_hold(self, how: str) -> PollOutcome:
        """Answer `?wait=true` with whatever a vendor, or a proxy before it, may."""
        seconds = {"cut": 10.0, "silent": HOLD_LIMIT}.get(how, 0.2)
        await self._loop.pause(seconds)
        kinds = {"404": PollKind.MISSING, "429": PollKind.THROTTLED, "stale": PollKind.PENDING}
        return PollOutcome(kind=kinds.get(how, PollKind.UNAVAILABLE), message=how)


class Receivers:
    """`CallbackSender`: a host does what its name begins with, until all are mended."""

    def __init__(self, loop: VirtualLoop, names: Mapping[str, str]) -> None:
        """`names` has the tasks' names by their ids."""
        self._loop, self._names = loop, names
        self.mended_at = math.inf
        self.first: dict[str, float] = {}  # by task's name: when its first attempt came
        self.delivered: dict[str, float] = {}  # by task's name
        self.tries: Counter[str] = Counter()  # by task's name
        self.messages: dict[str, set[tuple[str, bytes]]] = defaultdict(set)  # by task's name: ids and bodies

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Take one attempt."""
        now, pause = self._loop.time(), self._loop.pause
        name = self._names[headers["x-modellix-task-id"]]
        self.first.setdefault(name, now)
        self.messages[name].add((headers["webhook-id"], body))
        self.tries[name] += 1
        behaviour = "ok" if now >= self.mended_at else url.removeprefix("https://").partition("-")[0]
        match behaviour:
            case "silent":
                await pause(SEND_LIMIT)
                return Reply(error="timeout", elapsed=timedelta(seconds=SEND_LIMIT))
            case "refusing":
                await pause(0.01)
                return Reply(error="refused", elapsed=timedelta(milliseconds=10))
            case "throttling":
                await pause(0.1)
                return Reply(status=429, retry_after=RECEIVERS_PAUSE, elapsed=timedelta(milliseconds=100))
            case "hostile":  # errors, answers that are none, redirects, and all of it slowly
                seconds, reply = ((0.1, 500), (5.0, None), (14.5, 302), (0.1, 425))[self.tries[name] % 4]
                await pause(seconds)
                return Reply(
                    status=reply, error=None if reply else "protocol", elapsed=timedelta(seconds=seconds)
                )
            case _:
                await pause(0.1)
                self.delivered.setdefault(name, self._loop.time())
                return Reply(status=200, elapsed=timedelta(milliseconds=100))

    async def close(self) -> None:
        """Have nothing to close."""
