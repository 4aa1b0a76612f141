"""The same random operations against a model of the store, the fake, and the adapter over three tables."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import pytest
from botocore.exceptions import ReadTimeoutError

from taskhook.adapters.dynamodb.tasks import DynamoTasks
from taskhook.core.errors import StaleTaskError, StoreUnavailableError, TaskExistsError
from taskhook.core.ports import Rows
from taskhook.core.record import CallbackState, State, partition
from taskhook.core.task import Task
from tests.integration.conftest import made_from_template
from tests.reference import Reference
from tests.sim.table import MemoryDynamo
from tests.world import START, MemoryTasks, RecordingReporter, VirtualClock

CALLERS, VENDORS, IDS = ("alice", "bob"), ("modellix", "dashscope"), 8
OPERATIONS = {"fake": 800, "simulated": 800, "lagging": 800, "dynamodb": 100, "another_dynamodb": 100}
LAG_S = 3.0
type Store = MemoryTasks | DynamoTasks


class Unreliable:
    """A client of which some answers are lost: botocore asks again, or gives up after the write was made."""

    def __init__(self, client: Any, dice: random.Random) -> None:
        self._client, self._dice = client, dice
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(**request: Any) -> Any:
            if name not in {"put_item", "update_item"}:
                return method(**request)
            fate = self._dice.random()
            if fate < 0.2:
                method(**request)
                self.lost += 1
            answer = method(**request)
            if fate > 0.9:
                self.lost += 1
                raise ReadTimeoutError(endpoint_url="https://dynamodb.example.com/")
            return answer

        return call


class Player:
    """Draws operations, makes them on a store and on the model, and compares what both say."""

    def __init__(self, store: Store, *, seed: int, lag: float = 0.0) -> None:
        self.store, self.dice, self.lag = store, random.Random(seed), lag
        self.time = 0.0
        self.model = Reference(now=lambda: self.time)
        self.versions: dict[str, list[Task]] = {}  # as the store gave them
        self.seen: set[str] = set()  # what has come about

    async def play(self, operations: int) -> None:
        """Make so many, and look at everything in the end."""
        kinds = (self.add, self.swap, self.swap, self.swap, self.read, self.rows, self.queues, self.reserve)
        for _ in range(operations):
            self.time += self.dice.choice((0.0, 0.1, 1.0))
            await self.dice.choice(kinds)()
        self.time += 2 * LAG_S
        for kind in (self.read, self.rows, self.queues):
            await kind()

    def draw(self, task_id: str) -> Task:
        """Make up what a task might be."""
        number = int(task_id[-3:])
        state = self.dice.choice(tuple(State))
        waiting = state.final and self.dice.random() < 0.7
        return Task(
            task_id=task_id,
            caller=CALLERS[number % 2],
            vendor=VENDORS[number // 2 % 2],
            model="m",
            request=f'{{"n":{number}}}',
            fingerprint="f",
            callback_url=f"https://r{number % 3}.example.com:8443/x",
            accepted_at=START + timedelta(seconds=number // 2),
            state=state,
            message='{"data":{}}' if state.final else None,
            callback=CallbackState.WAITING if waiting else CallbackState.NONE,
            attempts=self.dice.choice((0, 3)),
            asked_again=self.dice.random() < 0.2,
            next_attempt_at=START + timedelta(seconds=self.dice.randrange(100))
            if waiting and self.dice.random() < 0.7
            else None,
            expires_at=START + timedelta(days=9) if state.final and not waiting else None,
        )

    def an_id(self) -> str:
        """Choose a task, that there may not be."""
        return f"tk_{self.dice.randrange(IDS):03d}"

    async def add(self) -> None:
        """Add a task: the first one under an id wins."""
        task_id = self.an_id()
        task, stood = self.draw(task_id), task_id in self.model.tasks
        version = self.model.add(task)
        stored: Task | None = None
        current: Task | None = None
        try:
            stored = await self.store.add(task)
        except TaskExistsError as exists:
            current = exists.current
        except StoreUnavailableError:  # the write may have been made: what stands is read
            self.seen.add("lost")
            found = await self.store.get(task_id)
            if found is None:  # its request alone was
                assert not stood
                self.model.forget(task_id)
                return
            stored = None if stood else found
        if current is not None:
            self.seen.add("exists")
            assert version is None
            assert same(current, self.model.tasks[task_id])
        if stored is not None:
            assert version == 0
            self.versions[task_id] = [stored]

    async def swap(self) -> None:
        """Write over a version: the last one wins, any other is stale."""
        task_id = self.an_id()
        known = self.versions.get(task_id)
        if not known:
            return
        number = max(len(known) - 1 - self.dice.choice((0, 0, 0, 1, 2)), 0)
        new = self.draw(task_id)
        version = self.model.swap(task_id, number, new)
        stored: Task | None = None
        current: Task | None = None
        try:
            stored = await self.store.swap(known[number], known[number].model_copy(update=changes(new)))
        except StaleTaskError as stale:
            current = stale.current
        except StoreUnavailableError:
            self.seen.add("lost")
            stored = await self.store.get(task_id) if version is not None else None
        if current is not None:
            self.seen.add("stale")
            assert version is None
            assert same(current, self.model.tasks[task_id])
        if stored is not None:
            assert version == number + 1
            known.append(stored)

    async def read(self) -> None:
        """Read tasks one by one, at once, and with their requests."""
        for task_id in (f"tk_{number:03d}" for number in range(IDS)):
            task, wanted = await self.store.get(task_id), self.model.tasks.get(task_id)
            assert (task is None) == (wanted is None)
            if task is not None and wanted is not None:
                assert same(task, wanted)
                assert (await self.store.with_request(task)).request == self.model.requests[task_id]
        if not self.lag:
            many = await self.store.read_many([f"tk_{number:03d}" for number in range(IDS)])
            assert {task.task_id for task in many} == self.model.tasks.keys()
            assert all(task.message is None for task in many)
        caller, limit = self.dice.choice(CALLERS), self.dice.randint(1, IDS)
        if not self.lag:
            page = await self.store.page(caller, after="0", until="~", limit=limit)
            assert [task.task_id for task in page.tasks] == self.model.history(caller, limit)

    async def rows(self) -> None:
        """Read partitions of the index of work, page by page."""
        for vendor in VENDORS:
            place, since = partition("watch", vendor), START + timedelta(seconds=self.dice.randrange(3))
            found, cursor, first = [], None, True
            while first or cursor is not None:
                rows: Rows = await self.store.watched(vendor, since, cursor=cursor)
                found += [(row.at, row.task_id) for row in rows.rows]
                cursor, first = rows.cursor, False
            self.compare(place, found, since=f"{round(since.timestamp() * 1000):013d}")
        before = START + timedelta(seconds=self.dice.randrange(100))
        retries = await self.store.retries(None, before)
        found = [(row.at, row.task_id) for row in retries.rows]
        self.compare("retry", found, before=f"{round(before.timestamp() * 1000):013d}")

    def compare(self, place: str, found: list[tuple[str, str]], **within: str) -> None:
        """Hold rows against the model's: the same, or, where the index lags, none but what was true."""
        assert found == sorted(found)
        if not self.lag:
            assert found == self.model.rows(place, **within)
            return
        assert self.model.may_show(place, found, self.lag) == []
        wanted = self.model.rows(place, **within)
        assert [row for row in self.model.must_show(place, found, self.lag) if row in wanted] == []
        self.seen |= {"lags"} if found != wanted else set()

    async def queues(self) -> None:
        """Ask what waits, for whom, and how much of it."""
        for vendor in VENDORS if not self.lag else ():
            place = partition("queue", vendor)
            assert await self.store.queue_waits(vendor) == bool(self.model.rows(place))
            heads = await self.store.queue_heads(vendor)
            assert [head.task_id for head in heads] == self.model.heads(place)
            for caller in CALLERS:
                mine = [at for at, _ in self.model.rows(place) if at.startswith(f"{caller}#")]
                most = self.dice.randint(1, IDS)
                assert await self.store.queue_length(vendor, caller, at_most=most) == min(len(mine), most)

    async def reserve(self) -> None:
        """Reserve ids for requests without a key."""
        request, repeat = self.dice.choice("ab"), self.dice.random() < 0.5
        now, task_id = START + timedelta(seconds=round(self.time)), self.an_id()
        until = now + timedelta(seconds=self.dice.choice((1, 20)))
        at, end = now.timestamp(), until.timestamp()
        try:
            got = await self.store.reserve(request, task_id, repeat=repeat, now=now, until=until)
        except StoreUnavailableError:
            self.seen.add("lost")
            # Made or half made: the same again settles it, as a submit's repeat does.
            self.model.reserved.pop(request, None)
            return
        if self.is_unreliable or request not in self.model.reserved:
            self.model.reserved[request] = got, repeat, end
            return
        assert got == self.model.reserve(request, task_id, repeat=repeat, now=at, until=end)

    @property
    def is_unreliable(self) -> bool:
        """Whether answers are lost."""
        return isinstance(self.store, DynamoTasks) and isinstance(self.store.table.client, Unreliable)


def changes(new: Task) -> dict[str, Any]:
    """List what a new version says, but for what no version may change."""
    kept = {"task_id", "caller", "vendor", "request", "nonce", "accepted_at"}
    return {name: getattr(new, name) for name in Task.model_fields if name not in kept}


def same(one: Task, other: Task) -> bool:
    """Compare all but requests and nonces."""
    blank = {"nonce": "", "request": None}
    return one.model_copy(update=blank) == other.model_copy(update=blank)


@dataclass
class Ground:
    """Where it is played: a kind of store, and the client and table of one with a database."""

    kind: str
    client: Any = None
    table: str = ""


@pytest.fixture(params=OPERATIONS)
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """Give each kind in turn."""
    if not request.param.endswith("dynamodb"):
        yield Ground(request.param)
        return
    client = request.getfixturevalue(request.param)
    with made_from_template(client, "Tasks") as table:
        yield Ground(request.param, client, table)


@pytest.mark.parametrize("seed", range(2))
async def test_a_store_does_as_the_model(ground: Ground, seed: int) -> None:
    """Whatever is asked, in whatever order."""
    await played(ground, seed, lossy=False)


async def test_a_store_of_lost_answers_does_as_the_model(ground: Ground) -> None:
    """A write whose answer was lost has been made once, whether it was repeated or told as a failure."""
    if ground.kind == "fake":
        pytest.skip("a dict loses no answers")
    await played(ground, 7, lossy=True)


async def played(ground: Ground, seed: int, *, lossy: bool) -> None:
    """Play against a store of a kind."""
    clock, reporter, dice = VirtualClock(), RecordingReporter(), random.Random(seed)
    lag = LAG_S if ground.kind == "lagging" else 0.0
    store: Store = MemoryTasks()
    if ground.kind != "fake":
        client = ground.client
        if client is None:
            client = MemoryDynamo({"Tasks": "task_id"}, time=lambda: player.time)
            client.lag = lambda _key: dice.uniform(0, lag)
        asked: Any = Unreliable(client, dice) if lossy else client
        store = DynamoTasks(asked, ground.table or "Tasks", clock=clock, reporter=reporter)
    player = Player(store, seed=seed, lag=lag)
    await player.play(OPERATIONS[ground.kind])
    assert {"exists", "stale"} <= player.seen
    assert not lag or "lags" in player.seen
    assert not lossy or cast("Any", store).table.client.lost > 10
    assert not re.search("crashed|unreadable", str(reporter.events))
