"""Trouble that lasts: `python -m tests.sim.trouble [NAME…] [--seed N] [--list]`.

The crash points of `tests.sim` are short faults, one at a time, in small scenes. Here a vendor, receivers, clocks or a table
are in trouble for minutes or hours, with up to 1,000 tasks of several callers, over the real adapter of the table and in
virtual time. Afterwards everything must end within a stated time, no caller may have been late for another's trouble, and
what the vendor provably never got must not be called unknown.
"""

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import math
import random
import sys
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self
from unittest import mock

from taskhook.adapters.dynamodb.items import stored_values
from taskhook.adapters.dynamodb.tasks import DynamoTasks
from taskhook.core.errors import RejectedError
from taskhook.core.ports import SLOTS, Admit, BalanceOutcome, PollKind, PollOutcome, Reply
from taskhook.core.rate_limit import Allowance
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import CallbackState, ErrorCode, State, Submission, SubmitOutcome, Task
from taskhook.delivery import hosts
from taskhook.poller import watch
from taskhook.poller.invocation import PollReport, poll
from taskhook.poller.work import Rules, World
from taskhook.submit.payment import Payer
from taskhook.submit.request import Order
from taskhook.submit.submit import Answer, Door, submit
from tests.sim.loop import VirtualLoop, seeded
from tests.sim.table import Item, MemoryDynamo
from tests.world import START, MemoryCallers, Told, a_caller

MODEL = "alibaba/wan2.2-animate-mix"
TASKS = "tasks"
SEED = 20261123
TICK = 60.0
FUNCTION_TIME = 150.0  # the poll function's own timeout
STOP = timedelta(seconds=120)
CLAIM = timedelta(seconds=35)
RETENTION = timedelta(days=7)
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
POLL_LIMIT, HOLD_LIMIT, HELD, SEND_LIMIT = 10.0, 50.0, 30.0, 15.0  # seconds: the adapters' own, and what the vendor holds
ASKED_PAUSE = timedelta(minutes=30)  # a vendor's `Retry-After`
RECEIVERS_PAUSE = timedelta(minutes=10)
MOST_UNKNOWN = 5
FEW = 100
ISOLATION = 2.0  # seconds by which another caller's trouble may make a callback later


@dataclass(frozen=True)
class Spell:
    """What somebody in the world is like for a while: from when until when, and to which tasks."""

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


class SkewedClock:
    """`Clock`: a container's own, which may differ from the world's."""

    def __init__(self, loop: VirtualLoop, ahead: float) -> None:
        self._loop = loop
        self.ahead = ahead

    def now(self) -> datetime:
        """Tell what this container takes for the time."""
        return self._loop.now() + timedelta(seconds=self.ahead)

    async def sleep(self, duration: timedelta) -> None:
        """Wait in virtual time."""
        await self._loop.pause(max(duration.total_seconds(), 0.0))


_POLLED = {
    "down": PollOutcome(kind=PollKind.UNAVAILABLE, message="the vendor answered 503"),
    "unreachable": PollOutcome(kind=PollKind.UNAVAILABLE, message="ConnectError"),
    "key refused": PollOutcome(kind=PollKind.KEY_REFUSED),
    "throttling": PollOutcome(kind=PollKind.THROTTLED, retry_after=ASKED_PAUSE),
    "confused": PollOutcome(kind=PollKind.UNAVAILABLE, message="the answer is not about this task"),
}


class Vendor:
    """`TaskApi`: runs tasks, holds polls where it does, and has its spells."""

    def __init__(self, machine: "Machine") -> None:
        self._machine = machine
        self.spells: list[Spell] = []
        self.task_time = 45.0
        self.places = 1_000_000
        self.holds = False
        self.posts: list[Post] = []
        self.polls: list[tuple[float, str]] = []  # when, and the task's name
        self.requests: list[float] = []
        self.tasks: dict[str, Upstream] = {}  # by the vendor's id
        self.ends: dict[str, float] = {}  # by name
        self.reported: set[str] = set()  # names whose end was told

    def mode(self, name: str) -> str:
        """Tell what the vendor is like to a task right now; empty: as it should be."""
        now = self._machine.loop.time()
        return next((spell.mode for spell in self.spells if spell.since <= now < spell.until and spell.touches(name)), "")

    def take(self, name: str, since: float, task_time: float | None = None) -> str:
        """Begin to work on a task; give the vendor's id."""
        upstream = f"up-{len(self.tasks)}"
        self.ends[name] = since + (self.task_time if task_time is None else task_time)
        self.tasks[upstream] = Upstream(name, since, self.ends[name])
        return upstream

    async def submit(
        self, model: str, request: bytes, *, hook: str | None, limit: timedelta, admit: Admit | None = None
    ) -> SubmitOutcome:
        """Take a task, or do as the spell says."""
        del model, hook
        pause = self._machine.loop.pause
        if admit is not None and not await admit():
            return SubmitOutcome(submission=Submission.NOT_SENT, message="not admitted")
        name = json.loads(request)["image_url"].rpartition("/")[2]
        post, mode = Post(name, self._machine.loop.time()), self.mode(name)
        self.posts.append(post)
        if mode == "unreachable":
            post.sent = False
            await pause(0.1)
            return SubmitOutcome(submission=Submission.NOT_SENT, message="ConnectError")
        self.requests.append(post.at)
        match mode:
            case "down" | "posts down":
                await pause(0.2)
                return SubmitOutcome(submission=Submission.AMBIGUOUS, status=503, message="Service unavailable")
            case "silent":
                await pause(limit.total_seconds())
                return SubmitOutcome(submission=Submission.AMBIGUOUS, message="TimeoutError")
            case "key refused":
                post.refused = True
                await pause(0.2)
                return SubmitOutcome(submission=Submission.REFUSED_HERE, status=401, message="Invalid API key")
            case "throttling":
                post.refused = True
                await pause(0.2)
                return SubmitOutcome(submission=Submission.BUSY, status=429, message="Too many requests", retry_after=ASKED_PAUSE)
            case "slow":
                await pause(9.5)
            case _:
                await pause(0.4)
        now = self._machine.loop.time()
        if sum(task.ends > now for task in self.tasks.values()) >= self.places:
            post.refused = True
            return SubmitOutcome(submission=Submission.BUSY, status=429, message="Concurrent limit exceeded")
        return SubmitOutcome(submission=Submission.TAKEN, upstream_task_id=self.take(name, now), status=200)

    async def poll(self, upstream_task_id: str, *, hold: bool = False) -> PollOutcome:
        """Tell how far a task is, or do as the spell says."""
        task, pause = self.tasks[upstream_task_id], self._machine.loop.pause
        mode = self.mode(task.name)
        self.polls.append((self._machine.loop.time(), task.name))
        if mode != "unreachable":
            self.requests.append(self._machine.loop.time())
        if hold and mode.startswith("wait ") and mode != "wait ignored":
            return await self._refuse_to_hold(mode.removeprefix("wait "))
        if mode == "silent":
            await pause(HOLD_LIMIT if hold else POLL_LIMIT)
            return PollOutcome(kind=PollKind.UNAVAILABLE, message="TimeoutError")
        await pause(9.5 if mode == "slow" else 0.2)
        if mode in _POLLED:
            return _POLLED[mode]
        if hold and self.holds and mode != "wait ignored":
            await pause(min(max(task.ends - self._machine.loop.time(), 0.0), HELD))
        if self._machine.loop.time() < task.ends:
            return PollOutcome(kind=PollKind.PENDING)
        self.reported.add(task.name)
        data = {"status": "success", "result": {"resources": [{"url": f"https://files.example.com/{upstream_task_id}.mp4"}]}}
        return PollOutcome(kind=PollKind.SUCCEEDED, data=data)

    async def balance(self) -> BalanceOutcome:
        """Tell the balance, or do as a spell says that touches every task."""
        mode, pause = self.mode(""), self._machine.loop.pause
        if mode != "unreachable":
            self.requests.append(self._machine.loop.time())
        await pause({"silent": POLL_LIMIT, "slow": 9.5}.get(mode, 0.2))
        status = {"down": 503, "unreachable": 0, "silent": 0, "throttling": 429, "key refused": 401}.get(mode, 200)
        return BalanceOutcome(answered=status in {200, 401}, status=status)

    async def _refuse_to_hold(self, how: str) -> PollOutcome:
        """Answer `?wait=true` with whatever a vendor, or a proxy before it, may."""
        seconds = {"cut": 10.0, "silent": HOLD_LIMIT}.get(how, 0.2)
        await self._machine.loop.pause(seconds)
        kinds = {"404": PollKind.MISSING, "429": PollKind.THROTTLED, "stale": PollKind.PENDING}
        return PollOutcome(kind=kinds.get(how, PollKind.UNAVAILABLE), message=how)


class Receivers:
    """`CallbackSender`: a host does what its name begins with, until all are mended."""

    def __init__(self, machine: "Machine") -> None:
        self._machine = machine
        self.mended_at = math.inf
        self.first: dict[str, float] = {}  # by task's name: when its first attempt came
        self.delivered: dict[str, float] = {}  # by task's name
        self.tries: Counter[str] = Counter()  # by task's name
        self.messages: dict[str, set[tuple[str, bytes]]] = defaultdict(set)  # by task's name: ids and bodies

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Take one attempt."""
        now, pause = self._machine.loop.time(), self._machine.loop.pause
        name = self._machine.names[headers["x-modellix-task-id"]]
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
            case "hostile":  # errors, answers that are none, hints of a redirect, and all of it slowly
                seconds, reply = ((0.1, 500), (5.0, None), (14.5, 302), (0.1, 425))[self.tries[name] % 4]
                await pause(seconds)
                return Reply(status=reply, error=None if reply else "protocol", elapsed=timedelta(seconds=seconds))
            case _:
                await pause(0.1)
                self.delivered.setdefault(name, self._machine.loop.time())
                return Reply(status=200, elapsed=timedelta(milliseconds=100))

    async def close(self) -> None:
        """Have nothing to close."""


@dataclass(frozen=True)
class Container:
    """A warm process: what it keeps between invocations, its clock among it."""

    clock: SkewedClock
    tasks: Any
    world: World
    allowance: Allowance


@dataclass
class Run:
    """One invocation of a function."""

    began: float
    ended: float | None = None
    answer: Any = None


class Woken:
    """`Wake`: starts the poll function on its own."""

    def __init__(self, machine: "Machine") -> None:
        self._machine = machine

    async def wake(self, task_id: str, *, ended: bool = False, told: PollOutcome | None = None) -> None:
        """Start it."""
        del ended, told
        self._machine.poll([task_id])


class Machine:
    """A small deployment in virtual time, with a tick every minute."""

    def __init__(
        self,
        seed: int = SEED,
        *,
        callers: Iterable[str] = ("alice", "bob"),
        requests_per_minute: int = 1000,
        clocks: tuple[float, ...] = (0.0,),
        submit_clocks: tuple[float, ...] = (0.0,),
        long_poll: bool = True,
        lag: float = 0.3,
    ) -> None:
        self.dice = random.Random(seed)
        self.loop = VirtualLoop(self._aws)
        self.table = MemoryDynamo({TASKS: "task_id"}, time=self.loop.time)
        lags: dict[str, float] = {}
        self.table.lag = lambda key: lags.setdefault(key, self.dice.uniform(0.0, lag))
        self.told = Told()
        self.vendor, self.receivers = Vendor(self), Receivers(self)
        self.people = {name: a_caller(name) for name in callers}
        self.rules = Rules(
            retention=RETENTION,
            max_task_age=timedelta(hours=24),
            max_queue_age=timedelta(hours=24),
            requests_per_minute=requests_per_minute,
            long_poll=long_poll,
        )
        self.names: dict[str, str] = {}  # of tasks, by id
        self.of: dict[str, str] = {}  # callers, by task's name
        self.ahead: dict[str, float] = {}  # by task's name: the clock of the container that accepted it
        self.runs: list[Run] = []
        self.answers: Counter[str] = Counter()  # what submitters heard
        self.most_tasks = 0  # that stood in memory at once, where that was looked at
        self._directory = MemoryCallers(*self.people.values())
        self._clocks = {"poll": itertools.cycle(clocks), "submit": itertools.cycle(submit_clocks)}
        self._idle: dict[tuple[str, float], list[Container]] = defaultdict(list)  # by function and clock
        self._lives: set[asyncio.Task[Any]] = set()
        self._submits: set[asyncio.Task[Any]] = set()
        self.loop.set_exception_handler(lambda _loop, _context: None)
        self._ticks = self.loop.create_task(self._tick())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.run_until_complete(self._clear())
        self.loop.close()

    # --- functions -------------------------------------------------------------------------------------------------------

    def poll(self, accepted: Iterable[str] = ()) -> None:
        """Invoke the poll function: a tick, or a wake with ids."""
        ids = tuple(accepted)

        async def run(container: Container) -> PollReport:
            stop = container.clock.now() + STOP
            return await poll(accepted=ids, scheduled=not ids, hard_stop=stop, rules=self.rules, world=container.world)

        self._invoke("poll", run)

    def submit(self, name: str, *, caller: str = "alice", url: str | None = None) -> asyncio.Task[None]:
        """Invoke the submit function; the receiver is one that answers where no other is named."""
        self.of[name] = caller
        body = {
            "image_url": f"https://example.com/{name}",
            "video_url": f"https://example.com/v.mp4?signature={'ab12' * 128 if len(self.of) % 2 else ''}",
            "mode": "wan-std",
            "callback_url": url or f"https://ok-{caller}.example.com/",
        }
        person = self.people[caller]
        order = Order.read(MODEL, body, caller=person, targets=TargetPolicy(), webhook_url=None, idempotency_key=None)
        self.names[order.task_id] = name

        async def run(container: Container) -> None:
            self.ahead[name] = container.clock.ahead
            door = Door(
                queue=container.tasks,
                gates=container.tasks,
                allowance=container.allowance,
                lease=container.tasks,
                wake=Woken(self),
                max_queued=1000,
            )
            payer = Payer(
                tasks=container.tasks,
                vendor=self.vendor,
                hooks=None,
                clock=container.clock,
                reporter=self.told,
                retention=RETENTION,
            )
            arrived_at = container.clock.now()
            try:
                answer: Any = await submit(
                    order, caller=person, arrived_at=arrived_at, claim=CLAIM, inspector=None, payer=payer, door=door
                )
            except RejectedError as error:
                answer = error
            self.answers[f"{answer.status}"] += 1
            if not isinstance(answer, Answer):
                del self.names[order.task_id], self.of[name]

        return self._invoke("submit", run)

    def place(
        self,
        state: State,
        name: str,
        *,
        caller: str = "alice",
        url: str | None = None,
        age: float = 0.0,
        task_time: float | None = None,
    ) -> None:
        """Store a task as submit would have left it `age` seconds ago, or one that has ended and is to be delivered again.

        `task_time` is how long the vendor works, where not as long as on any other.
        """
        at, since = self.loop.now() - timedelta(seconds=age), self.loop.time() - age
        watched = state is not State.QUEUED
        self.of[name] = caller
        task = Task(
            task_id=f"tk_{name:_<22}",
            caller=caller,
            model=MODEL,
            request=json.dumps({"image_url": f"https://example.com/{name}"}),
            fingerprint="f",
            callback_url=url or f"https://ok-{caller}.example.com/",
            accepted_at=at,
            state=State.WATCHED if watched else state,
            answer_status=200,
            submitted_at=at if watched else None,
            taken_at=at if watched else None,
            upstream_task_id=self.vendor.take(name, since, task_time) if watched else None,
            callback=CallbackState.WAITING,
        )
        self.names[task.task_id] = name
        if state is State.SUCCESS:
            task = task.succeeded({}, at, retention=RETENTION, claim=at).redelivered(at)
            self.vendor.reported.add(name)
        added = self._container().tasks.add(task)
        if self.loop.is_running():
            self._aside(added)
        else:
            self.loop.run_until_complete(added)

    def _invoke(self, function: str, run: Callable[[Container], Coroutine[Any, Any, Any]]) -> asyncio.Task[None]:
        ahead = next(self._clocks[function])
        idle = self._idle[function, ahead]
        container = idle.pop() if idle else self._container(ahead)
        this = Run(self.loop.time())
        self.runs.append(this)

        async def live() -> None:
            try:
                this.answer = await run(container)
            except Exception as error:  # noqa: BLE001  # the function fails, as it would
                this.answer = error
            finally:
                this.ended = self.loop.time()
                idle.append(container)

        return self._aside(live())

    def _aside(self, course: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        life = self.loop.create_task(course)
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)
        return life

    def _container(self, ahead: float = 0.0) -> Container:
        clock = SkewedClock(self.loop, ahead)
        client: Any = self.table
        tasks = DynamoTasks(client, TASKS, clock=clock, reporter=self.told)
        world = World(
            tasks=tasks,
            work=tasks,
            lease=tasks,
            gates=tasks,
            budget=tasks,
            vendor=self.vendor,
            hooks=None,
            callbacks=self.receivers,
            callers=self._directory,
            clock=clock,
            reporter=self.told,
        )
        return Container(clock, tasks, world, Allowance(tasks, self.rules.requests_per_minute))

    async def _aws(self, call: Callable[[], Any]) -> Any:
        await self.loop.pause(self.dice.uniform(0.002, 0.02))
        try:
            return call()
        finally:
            await self.loop.pause(self.dice.uniform(0.002, 0.02))

    # --- time ------------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        await self.loop.pause(self.dice.uniform(1, 59))
        while True:
            self.poll()
            await self.loop.pause(TICK + self.dice.uniform(-1, 1))

    async def _clear(self) -> None:
        left = [*self._lives, self._ticks]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.loop.run_until_complete(self.loop.pause(seconds))

    async def until(self, moment: float) -> None:
        """Wait, as a script does."""
        await self.loop.pause(max(moment - self.loop.time(), 0.0))

    async def calm(self, within: float, *, besides: Callable[[Item], bool] = lambda _item: False) -> list[str]:
        """Wait until no task has work to do; say which have when that takes too long."""
        end = self.loop.time() + within
        await self.loop.pause(1.0)  # until what was placed just now is there
        while left := [item for item in self.table.working(TASKS) if not besides(item)]:
            if self.loop.time() >= end:
                kinds = Counter(f"{item['state']['S']} in {item['work']['S']}" for item in left)
                return [f"{len(left)} tasks are not through {within:.0f} s after the trouble: {dict(kinds)}"]
            await self.loop.pause(5.0)
        return []

    async def watch_memory(self, every: float = 60.0) -> None:
        """Count again and again how many tasks stand in memory, all invocations together: the table keeps none."""
        while True:
            await self.loop.pause(every)
            gc.collect()
            self.most_tasks = max(self.most_tasks, sum(isinstance(thing, Task) for thing in gc.get_objects()))

    # --- looking around --------------------------------------------------------------------------------------------------

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Give what is stored, by name."""
        items = [item for item in self.table.everything(TASKS) if "state" in item]
        return {self.names[item["task_id"]["S"]]: stored_values(item) for item in items}

    def errors(self) -> Counter[str]:
        """Count the ends by their error; tasks that have not ended by their state."""
        return Counter(str(task.get("error", task["state"])) for task in self.tasks().values())

    def late(self, caller: str | None = None, *, since: float = 0.0) -> list[float]:
        """Tell how long after the vendor's end each first attempt came, of tasks that ended at or after `since`."""
        now = self.loop.time()
        return [
            self.receivers.first.get(name, now) - ends
            for name, ends in self.vendor.ends.items()
            if since <= ends < now and (caller is None or self.of[name] == caller)
        ]


def most_within(moments: Iterable[float], seconds: float) -> int:
    """Count the most moments that any stretch of time holds."""
    ordered = sorted(moments)
    return max((bisect_left(ordered, at + seconds) - number for number, at in enumerate(ordered)), default=0)


def violations(machine: Machine, *, most_unknown: int = 0, budget: bool = True) -> Iterator[str]:
    """List what must not be, whatever the trouble was."""
    posts: dict[str, list[Post]] = defaultdict(list)
    for post in machine.vendor.posts:
        posts[post.name].append(post)
    for name, made in posts.items():
        if sum(post.possible for post in made) > 1:
            yield f"{name} may have been paid more than once"
    tasks = machine.tasks()
    for name, task in tasks.items():
        yield from (f"{name} {words}" for words in _of_end(task, posts[name], reported=name in machine.vendor.reported))
    unknown = sum(task.get("error") == ErrorCode.SUBMISSION_UNKNOWN for task in tasks.values())
    if unknown > most_unknown:
        yield f"{unknown} tasks are unknown, not {most_unknown} at most"
    for name, messages in machine.receivers.messages.items():
        if len(messages) > 1:
            yield f"{name} was called back with {len(messages)} messages"
    allowed = machine.rules.requests_per_minute
    if budget and (most := most_within(machine.vendor.requests, 60.0)) > allowed:
        yield f"{most} requests in a minute of {allowed}"
    yield from _of_functions(machine)


def _of_end(task: dict[str, Any], posts: list[Post], *, reported: bool) -> Iterator[str]:
    """Compare a task's end with what the vendor got, and with what it said."""
    error = task.get("error")
    if task["state"] == State.SUCCESS and not reported:
        yield "is a success that the vendor never reported"
    if error == ErrorCode.SUBMISSION_UNKNOWN:
        if not any(post.possible for post in posts):
            yield "is called unknown, and the vendor never got it"
    elif error is not None and not (error == ErrorCode.UPSTREAM_REFUSED and any(post.refused for post in posts)):
        yield f"ended as {error}: {json.loads(task.get('message', '{}')).get('message')}"


def _of_functions(machine: Machine) -> Iterator[str]:
    """List what an operator would see: crashes, and functions that were killed for their time."""
    for event, facts in machine.told.events:
        if event in {"task.crashed", "queue.crashed", "task.unreadable"}:
            yield f"{event} {facts}"
    for run in machine.runs:
        if isinstance(run.answer, Exception):
            yield f"an invocation failed: {run.answer!r}"
        if (run.ended or machine.loop.time()) - run.began > FUNCTION_TIME:
            yield f"an invocation that began at {run.began:.0f} outlived its function"


# --- what lasts ----------------------------------------------------------------------------------------------------------------

Script = Callable[[Machine], Awaitable[list[str]]]


@dataclass(frozen=True)
class Trouble:
    """A script, which gives what it finds wrong, and what is allowed beyond that."""

    script: Script
    setting: dict[str, Any] = field(default_factory=dict)
    most_unknown: int = 0
    budget: bool = True  # the vendor's budget is kept
    small: bool = False  # the poller's memory has room for FEW tasks and as many callbacks that wait


TROUBLES: dict[str, Trouble] = {}


def _trouble(
    name: str = "", *, most_unknown: int = 0, budget: bool = True, small: bool = False, **setting: Any
) -> Callable[[Script], Script]:
    def keep(script: Script) -> Script:
        TROUBLES[name or script.__name__] = Trouble(script, setting, most_unknown, budget, small)
        return script

    return keep


def play(name: str, seed: int = SEED) -> list[str]:
    """Play one, and list what is wrong."""
    trouble = TROUBLES[name]
    with _memory_for_few(trouble.small), seeded(seed), Machine(seed, **trouble.setting) as machine:
        found = machine.loop.run_until_complete(trouble.script(machine))
        return [*found, *violations(machine, most_unknown=trouble.most_unknown, budget=trouble.budget)]


@contextlib.contextmanager
def _memory_for_few(really: bool) -> Iterator[None]:  # noqa: FBT001  # a switch of its own name
    """Let the poller keep few things in memory, so that a thousand tasks are as many for it as a hundred thousand."""
    bounds = (
        (watch, "LOADED", FEW),
        (hosts, "CALLER_WAITING", FEW),
        (hosts, "TOTAL_WAITING", 2 * FEW),
        (hosts, "WAITING_PER_SLOT", 2),
    )
    with contextlib.ExitStack() as room:
        for module, name, bound in bounds if really else ():
            room.enter_context(mock.patch.object(module, name, bound))
        yield


async def _stream(machine: Machine, *, until: float, every: float, callers: Mapping[str, str]) -> None:
    """Let each caller submit again and again; what its receivers are like stands behind its name."""
    for number in itertools.count():
        if machine.loop.time() >= until:
            return
        for caller, behaviour in callers.items():
            url = f"https://{behaviour}-{number if behaviour != 'ok' else 0}.{caller}.example.com/"
            machine.submit(f"{caller}{number}", caller=caller, url=url)
        await machine.loop.pause(every)


def _too_late(late: list[float], allowed: float) -> list[str]:
    """Say so where a callback was later than it may be."""
    return [f"a callback was {max(late):.1f} s late, not {allowed:.1f} s"] if late and max(late) > allowed else []


def _refuses_to_hold(how: str, *, some: bool, allowed: float) -> None:
    @_trouble(f"wait_{how}{'_for_some' if some else ''}")
    async def script(machine: Machine) -> list[str]:
        machine.vendor.holds = True
        touches = (lambda name: name.endswith(("1", "4", "8"))) if some else (lambda _name: True)
        machine.vendor.spells = [Spell(f"wait {how}", since=100.0, touches=touches)]
        await _stream(machine, until=14 * MINUTE, every=12.0, callers={"alice": "ok"})
        await machine.until(16 * MINUTE)
        return [*_too_late(machine.late("alice"), allowed), *await machine.calm(MINUTE)]


for _how, _allowed in (
    ("400", 10.0), ("404", 10.0), ("422", 10.0), ("429", 15.0), ("503", 10.0), ("redirect", 10.0), ("ignored", 10.0),
    ("stale", 10.0), ("cut", 20.0), ("silent", 2 * HOLD_LIMIT),
):  # fmt: skip
    _refuses_to_hold(_how, some=False, allowed=_allowed)
    _refuses_to_hold(_how, some=True, allowed=_allowed)


def _lasts(
    mode: str, seconds: float, *, within: float, most_unknown: int = 0, most_requests: float = math.inf, name: str = ""
) -> None:
    """Let the vendor be in trouble while tasks of four callers run, wait, and come."""

    @_trouble(
        name or mode.replace(" ", "_"),
        most_unknown=most_unknown,
        callers=("alice", "bob", "carol", "dave"),
        requests_per_minute=200,
    )
    async def script(machine: Machine) -> list[str]:
        callers = itertools.cycle(machine.people)
        machine.vendor.places, machine.vendor.task_time = 0, 30.0  # so that the next ones wait in the queue
        for number in range(100):
            machine.submit(f"q{number}", caller=next(callers))
        await machine.loop.pause(3.0)
        for number in range(20):
            machine.place(State.WATCHED, f"w{number}", caller=next(callers))
        began, machine.vendor.places = machine.loop.time(), 40
        machine.vendor.spells = [Spell(mode, until=began + seconds)]
        for number in range(10):
            await machine.loop.pause(seconds / 12)
            machine.submit(f"s{number}", caller=next(callers))
        await machine.until(began + seconds)
        asked = sum(at > began for at in machine.vendor.requests)
        found = [f"{asked} requests while it lasted, not {most_requests}"] if asked > most_requests else []
        return [*found, *await machine.calm(within)]


# Unknown outcomes are watched for a quarter of an hour; what the vendor has asked for may still last when it is well again.
_lasts("down", 10 * MINUTE, within=20 * MINUTE, most_unknown=MOST_UNKNOWN)
_lasts("down", 3 * HOUR, within=20 * MINUTE, most_unknown=40, name="down_for_hours")  # one probe every five minutes
_lasts("posts down", 10 * MINUTE, within=20 * MINUTE, most_unknown=MOST_UNKNOWN)
_lasts("silent", 20 * MINUTE, within=20 * MINUTE, most_unknown=MOST_UNKNOWN)
_lasts("unreachable", 30 * MINUTE, within=10 * MINUTE)
_lasts("key refused", 30 * MINUTE, within=10 * MINUTE)
_lasts("throttling", 2 * HOUR, within=40 * MINUTE, most_requests=80)  # a pause is over for all polls at once
_lasts("confused", HOUR, within=10 * MINUTE)
_lasts("slow", 30 * MINUTE, within=10 * MINUTE)


@_trouble(callers=("alice", "bob"), most_unknown=100)
async def one_callers_requests_break_the_vendor(machine: Machine) -> list[str]:
    """What one caller sends makes the vendor answer 503; another's goes on being paid and called back."""
    machine.vendor.task_time = 30.0
    machine.vendor.spells = [Spell("posts down", until=20 * MINUTE, touches=lambda name: name.startswith("bob"))]
    for number in range(60):
        machine.place(State.QUEUED, f"bob{number}", caller="bob")
    await _stream(machine, until=10 * MINUTE, every=15.0, callers={"alice": "ok"})
    await machine.until(21 * MINUTE)
    now = (START.timestamp() + machine.loop.time()) * 1000
    mine = [task for name, task in machine.tasks().items() if name.startswith("alice")]
    waited = max(task.get("submitted_at", now) - task["accepted_at"] for task in mine) / 1000
    found = [f"a task of another caller waited {waited:.0f} s to be paid"] if waited > 5 * MINUTE else []
    return [*found, *await machine.calm(20 * MINUTE)]


BAD_RECEIVERS = {"bob": "silent", "carol": "throttling", "dave": "hostile"}
_HALF_AN_HOUR = 30 * MINUTE


async def with_receivers(machine: Machine, behaviours: Mapping[str, str]) -> list[str]:
    """Let 1,000 tasks of four callers end: nine tenths at once, at receivers of their callers' kind, one tenth afterwards.

    All receivers are well again after half an hour.
    """
    machine.receivers.mended_at = _HALF_AN_HOUR
    for number in range(300):
        for caller, behaviour in behaviours.items():
            machine.place(
                State.WATCHED, f"{caller}{number}", caller=caller, url=f"https://{behaviour}-{number}.{caller}.example.com/"
            )
    await _stream(machine, until=10 * MINUTE, every=6.0, callers={"alice": "ok"})
    await machine.until(_HALF_AN_HOUR)
    # Before the repair three attempts have failed; the fourth comes half an hour after the third, or as much later as a host asked.
    return await machine.calm(HOUR)


def _late_beside(behaviours: Mapping[str, str], seed: int) -> float:
    """Tell how late a caller's callbacks come beside others' receivers."""
    with seeded(seed), Machine(seed, callers=("alice", *behaviours), requests_per_minute=100_000) as machine:
        machine.loop.run_until_complete(with_receivers(machine, behaviours))
        return max(machine.late("alice"))


@_trouble(callers=("alice", "bob", "carol", "dave"), requests_per_minute=100_000, small=True)
async def bad_receivers(machine: Machine) -> list[str]:
    """Three callers' receivers are silent, throttle, or answer anything; the fourth's callbacks come as if they were not there."""
    found = await with_receivers(machine, BAD_RECEIVERS)
    return [*found, *_too_late(machine.late("alice"), _late_alone() + ISOLATION)]


def _late_alone() -> float:
    """Tell how late the same caller's callbacks come where all others' receivers answer, in a world of its own."""
    running = asyncio.get_running_loop()
    asyncio.events._set_running_loop(None)  # two virtual worlds do not meet
    try:
        return _late_beside(dict.fromkeys(BAD_RECEIVERS, "ok"), SEED)
    finally:
        asyncio.events._set_running_loop(running)


@_trouble(callers=("alice", "bob"), requests_per_minute=100_000, small=True)
async def many_end_at_a_dead_host(machine: Machine) -> list[str]:
    """One caller's 800 tasks have one host, which is down; few of them stand in memory, and the other caller is not late."""
    memory = machine.loop.create_task(machine.watch_memory())
    machine.receivers.mended_at = 20 * MINUTE
    for number in range(800):
        machine.place(State.WATCHED, f"bob{number}", caller="bob", url="https://refusing-0.bob.example.com/")
    await _stream(machine, until=15 * MINUTE, every=10.0, callers={"alice": "ok"})
    await machine.until(20 * MINUTE)
    found = _too_late(machine.late("alice", since=2 * MINUTE), 5.0 + ISOLATION)
    found += await machine.calm(HOUR)
    memory.cancel()
    most = FEW + SLOTS + 100  # and some that are being read, or copied from what they were
    return [*found, *([f"{machine.most_tasks} tasks stood in memory, not {most}"] if machine.most_tasks > most else [])]


CLOCKS = (0.0, 300.0, -300.0, 45.0, -120.0)  # seconds by which a container's clock is ahead


@_trouble(clocks=CLOCKS, submit_clocks=CLOCKS[::-1], budget=False, lag=2.0)
async def clocks_differ(machine: Machine) -> list[str]:
    """Every container has its own idea of the time, up to five minutes off; a window of the budget is then each one's own."""
    machine.vendor.places = 8
    await _stream(machine, until=20 * MINUTE, every=15.0, callers={"alice": "ok", "bob": "ok"})
    return await machine.calm(20 * MINUTE)


@_trouble(submit_clocks=(0.0, 300.0, 0.0, -300.0), budget=False)
async def clocks_of_submits_differ(machine: Machine) -> list[str]:
    """Tasks that were accepted by a right clock are on time beside those of a wrong one, which are late by its error at most."""
    machine.vendor.task_time = 25.0
    for number in range(100):
        machine.submit(f"t{number}", caller="alice" if number % 2 else "bob")
        await machine.loop.pause(8.0)
    found = await machine.calm(10 * MINUTE)
    late = {name: first - machine.vendor.ends[name] for name, first in machine.receivers.first.items()}
    return [
        *found,
        *_too_late([seconds for name, seconds in late.items() if machine.ahead[name] == 0.0], 10.0),
        *_too_late([*late.values()], 330.0),
    ]


@_trouble(clocks=(0.0, 300.0, -300.0), budget=False)
async def clocks_of_pollers_differ(machine: Machine) -> list[str]:
    """Leaders with different clocks relieve each other; no callback is later than their clocks differ."""
    await _stream(machine, until=15 * MINUTE, every=15.0, callers={"alice": "ok", "bob": "ok"})
    found = await machine.calm(10 * MINUTE)
    return [*found, *_too_late(machine.late(), 330.0)]


@_trouble(callers=("alice", "bob", "carol"), requests_per_minute=100_000)
async def answers_are_cut(machine: Machine) -> list[str]:
    """Index answers end anywhere, batches leave keys out, and one key is left out for ten minutes; the others are on time."""
    machine.table.page = lambda: machine.dice.choice((1, 2, 5, 20, 100))
    stuck = {"alice20", "bob40", "carol60"}
    stuck_until = 12 * MINUTE

    def unprocessed(task_id: str) -> bool:
        is_stuck = machine.names.get(task_id) in stuck and machine.loop.time() < stuck_until
        return is_stuck or machine.dice.random() < 0.2  # one of five

    machine.table.unprocessed = unprocessed
    machine.vendor.places = 60
    await _stream(machine, until=10 * MINUTE, every=4.0, callers=dict.fromkeys(machine.people, "ok"))
    await machine.until(stuck_until)
    found = await machine.calm(10 * MINUTE)
    late = [first - machine.vendor.ends[name] for name, first in machine.receivers.first.items() if name not in stuck]
    return [*found, *_too_late(late, 15.0)]


@_trouble(requests_per_minute=500, long_poll=False)
async def slow_then_quick(machine: Machine) -> list[str]:
    """More is due than may be asked, and the vendor answers after 9.5 s; then it is quick again, and no minute sees too much."""
    machine.vendor.task_time = 5 * MINUTE
    machine.vendor.spells = [Spell("slow", since=30.0, until=3 * MINUTE)]
    for number in range(500):
        machine.place(State.WATCHED, f"w{number}")
    for number in range(50):
        machine.place(State.QUEUED, f"q{number}", caller="bob")
    return await machine.calm(30 * MINUTE)


def _expires(name: str, *, late: float) -> None:
    @_trouble(f"expires_{name}")
    async def script(machine: Machine) -> list[str]:
        """Let TTL delete what has expired, at once or days later: nothing before its time, and nothing stays for ever."""
        await _stream(machine, until=5 * MINUTE, every=20.0, callers={"alice": "ok", "bob": "ok"})
        found = await machine.calm(10 * MINUTE)
        ended_at, gone = machine.loop.time(), 0
        machine._ticks.cancel()  # nothing is left to do for days
        for day in range(1, 60):
            await machine.until(ended_at + day * DAY)
            for item in machine.table.expire(TASKS, START.timestamp() + machine.loop.time() - late):
                gone += "state" in item
                if "state" in item and "work" in item:
                    found.append(f"{item['task_id']['S']} was deleted while it had work")
                if "state" in item and machine.loop.time() - ended_at < RETENTION.total_seconds() - 20 * MINUTE:
                    found.append(f"{item['task_id']['S']} was deleted after {day} days")
        left = [item["task_id"]["S"] for item in machine.table.everything(TASKS) if "state" in item or "#" in item["task_id"]["S"]]
        return [
            *found,
            *([f"{len(left)} items never expire, {left[0]} among them"] if left else []),
            *([] if gone else ["none expired"]),
        ]


_expires("at_once", late=0.0)
_expires("late", late=2 * DAY)


def main() -> int:
    """Play, and print what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.trouble", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="none: all")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N")
    parser.add_argument("--list", action="store_true", help="name them, and play none")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - TROUBLES.keys()):
        parser.error(f"no such trouble: {', '.join(unknown)}")
    if options.list:
        print("\n".join(TROUBLES))
        return 0
    broken = 0
    for name in options.names or TROUBLES:
        began = time.process_time()
        found = play(name, options.seed)
        broken += bool(found)
        print(f"{name:40} {time.process_time() - began:5.1f} s  {'; '.join(found[:4]) or 'holds'}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
