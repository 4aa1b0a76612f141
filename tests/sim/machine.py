"""A deployment whose containers may have clocks of their own: thousands of tasks in virtual time."""

import asyncio
import gc
import itertools
import json
import random
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

from taskhook.adapters.dynamodb.control import DynamoControl
from taskhook.adapters.dynamodb.items import plain
from taskhook.adapters.dynamodb.tasks import DynamoTasks
from taskhook.core.errors import RejectedError
from taskhook.core.record import CallbackState, State
from taskhook.core.task import Task
from taskhook.core.vendor import PollOutcome
from taskhook.poller.invocation import PollReport, poll
from taskhook.settings import MediaChecks, Switch
from taskhook.submit.submit import SubmitResult, submit
from taskhook.wiring import App
from tests.sim.deployment import MODEL, RETENTION, SUBMIT_CLAIM, TASKS, TICK
from tests.sim.loop import VirtualLoop
from tests.sim.spells import Receivers, Vendor
from tests.sim.table import Item, MemoryDynamo
from tests.world import SETTINGS, MemoryCallers, RecordingReporter, a_caller, a_key, a_request

SEED = 20261123
STOP = timedelta(seconds=120)


class SkewedClock:
    """`Clock`: a container's own, which may differ from the world's."""

    def __init__(self, loop: VirtualLoop, ahead: float) -> None:
        self._loop = loop
        self._ahead = timedelta(seconds=ahead)

    def now(self) -> datetime:
        """Tell what this container takes for the time; asked millions of times, mostly of right clocks."""
        moment = self._loop.now()
        return moment + self._ahead if self._ahead else moment

    async def sleep(self, duration: timedelta) -> None:
        """Wait in virtual time."""
        await self._loop.pause(max(duration.total_seconds(), 0.0))


@dataclass
class Run:
    """One invocation of a function."""

    began: float
    ended: float | None = None
    answer: Any = None


class InvokingWake:
    """`Wake`: starts the poll function on its own."""

    def __init__(self, poll: Callable[[Iterable[str]], None]) -> None:
        self._poll = poll

    async def wake(
        self, task_id: str, *, ended: bool = False, known_outcome: PollOutcome | None = None
    ) -> None:
        """Start it."""
        del ended, known_outcome
        self._poll([task_id])


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
        self.reported = RecordingReporter()
        self.names: dict[str, str] = {}  # of tasks, by id
        self.vendor, self.receivers = Vendor(self.loop), Receivers(self.loop, self.names)
        self.people = {name: a_caller(name) for name in callers}
        self.settings = SETTINGS.model_copy(
            update={
                "requests_per_minute": requests_per_minute,
                "long_poll": Switch.ON if long_poll else Switch.OFF,
                "media_checks": MediaChecks.OFF,
            }
        )
        self.of: dict[str, str] = {}  # callers, by task's name
        self.ahead: dict[str, float] = {}  # by task's name: the clock of the container that accepted it
        self.runs: list[Run] = []
        self.answers: Counter[str] = Counter()  # what submitters heard
        self.most_tasks = 0  # that stood in memory at once, where that was looked at
        self._directory = MemoryCallers(*self.people.values())
        self._clocks = {"poll": itertools.cycle(clocks), "submit": itertools.cycle(submit_clocks)}
        self._idle: dict[tuple[str, float], list[App]] = defaultdict(list)  # by function and clock
        self._lives: set[asyncio.Task[Any]] = set()
        self._submits: set[asyncio.Task[Any]] = set()
        self.loop.set_exception_handler(lambda _loop, _context: None)
        self._ticks = self.loop.create_task(self._tick())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.run_until_complete(self._clear())
        self.loop.close()

    # --- functions --------------------------------------------------------------------------------

    def poll(self, accepted: Iterable[str] = ()) -> None:
        """Invoke the poll function: a tick, or a wake with ids."""
        ids = tuple(accepted)

        async def run(app: App, _ahead: float) -> PollReport:
            stop = app.clock.now() + STOP
            return await poll(
                accepted=ids, scheduled=not ids, hard_stop=stop, rules=app.rules, ports=app.poller
            )

        self._invoke("poll", run)

    def submit(self, name: str, *, caller: str = "alice", url: str | None = None) -> asyncio.Task[None]:
        """Invoke the submit function; the receiver is one that answers where no other is named."""
        self.of[name] = caller
        body = {
            "image_url": f"https://example.com/{name}",
            "video_url": "https://example.com/v.mp4",
            "mode": "wan-std",
            "callback_url": url or f"https://ok-{caller}.example.com/",
        }
        person = self.people[caller]
        request = a_request(MODEL, body, caller=person)
        self.names[request.task_id] = name

        async def run(app: App, ahead: float) -> None:
            self.ahead[name] = ahead
            arrived_at = app.clock.now()
            try:
                answer: Any = await submit(
                    request,
                    caller=person,
                    arrived_at=arrived_at,
                    claim=SUBMIT_CLAIM,
                    inspection=None,
                    payment=app.payment,
                    admitting=app.admitting,
                )
            except RejectedError as error:
                answer = error
            self.answers[f"{answer.status}"] += 1
            if not isinstance(answer, SubmitResult):
                del self.names[request.task_id], self.of[name]

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
        """Store a task as submit would have left it `age` seconds ago, or an ended one to be delivered again.

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
        added = self._app().tasks.add(task)
        if self.loop.is_running():
            self._aside(added)
        else:
            self.loop.run_until_complete(added)

    def _invoke(
        self, function: str, run: Callable[[App, float], Coroutine[Any, Any, Any]]
    ) -> asyncio.Task[None]:
        ahead = next(self._clocks[function])
        idle = self._idle[function, ahead]
        app = idle.pop() if idle else self._app(ahead)
        this = Run(self.loop.time())
        self.runs.append(this)

        async def live() -> None:
            try:
                this.answer = await run(app, ahead)
            except Exception as error:  # noqa: BLE001  # the function fails, as it would
                this.answer = error
            finally:
                this.ended = self.loop.time()
                idle.append(app)

        return self._aside(live())

    def _aside(self, course: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        life = self.loop.create_task(course)
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)
        return life

    def _app(self, ahead: float = 0.0) -> App:
        """Start a warm process, whose clock is ahead by so many seconds."""
        clock = SkewedClock(self.loop, ahead)
        client: Any = self.table
        return App(
            self.settings,
            tasks=DynamoTasks(client, TASKS, clock=clock, reporter=self.reported),
            control=DynamoControl(client, TASKS, clock=clock),
            vendors={"modellix": self.vendor},
            vendor_keys={"modellix": a_key},
            webhook_urls=None,
            callbacks=self.receivers,
            callers=self._directory,
            wake=InvokingWake(self.poll),
            clock=clock,
            reporter=self.reported,
        )

    async def _aws(self, call: Callable[[], Any]) -> Any:
        await self.loop.pause(self.dice.uniform(0.002, 0.02))
        try:
            return call()
        finally:
            await self.loop.pause(self.dice.uniform(0.002, 0.02))

    # --- time -------------------------------------------------------------------------------------

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

    async def calm(
        self, within: float, *, besides: Callable[[Item], bool] = lambda _item: False
    ) -> list[str]:
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
        """Count again and again how many tasks stand in memory, all invocations together."""
        while True:
            await self.loop.pause(every)
            gc.collect()
            self.most_tasks = max(self.most_tasks, sum(isinstance(thing, Task) for thing in gc.get_objects()))

    def stop_ticks(self) -> None:
        """Let no more ticks come."""
        self._ticks.cancel()

    # --- looking around ---------------------------------------------------------------------------

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Give what is stored, by name."""
        items = [item for item in self.table.everything(TASKS) if "state" in item]
        return {self.names[item["task_id"]["S"]]: plain(item) for item in items}

    def errors(self) -> Counter[str]:
        """Count the ends by their error; tasks that have not ended by their state."""
        return Counter(str(task.get("error", task["state"])) for task in self.tasks().values())

    def late(self, caller: str | None = None, *, since: float = 0.0) -> list[float]:
        """Tell how long after its end each task's first attempt came, of those that ended since `since`."""
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
