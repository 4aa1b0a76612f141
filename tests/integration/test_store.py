"""One exam for the fake and the real table: what passes it may stand in for the other."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from taskhook.adapters.clock import SystemClock
from taskhook.adapters.dynamodb.callers import DynamoCallers
from taskhook.adapters.dynamodb.control import DynamoControl
from taskhook.adapters.dynamodb.tasks import DynamoTasks, request_key
from taskhook.core.admission import MOST_UNKNOWN, AdmissionState
from taskhook.core.caller import Credential
from taskhook.core.encryption import encrypt
from taskhook.core.errors import (
    DecryptionError,
    KeyUnavailableError,
    KeyUnusableError,
    StaleTaskError,
    StoreUnavailableError,
    TaskExistsError,
)
from taskhook.core.leadership import LeadershipView
from taskhook.core.ports import ApiKey, Rows
from taskhook.core.record import Attempt, ErrorCode, RetryKey, State, Submission, SubmitOutcome, milliseconds
from taskhook.core.task import Task
from tests.integration.conftest import made_from_template
from tests.sim.table import MemoryDynamo
from tests.world import (
    START,
    MemoryCallers,
    MemoryControl,
    MemoryTasks,
    RecordingReporter,
    VirtualClock,
    a_caller,
    deployment_key,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

RETENTION = timedelta(days=7)
TAKEN = SubmitOutcome(submission=Submission.TAKEN, upstream_task_id="task-1", status=200)

Step = Callable[[Task], Task]
Store = MemoryTasks | DynamoTasks
Control = MemoryControl | DynamoControl
Directory = MemoryCallers | DynamoCallers


def a_client() -> Any:
    """Make the client in memory that the simulator runs the real adapter on: it takes the exam too."""
    return MemoryDynamo({"Tasks": "task_id", "Callers": "caller"})


# the emulated account's, or any other endpoint; and AWS's own DynamoDB Local
DATABASES = ("dynamodb", "another_dynamodb")


def in_pages_of(store: Store, rows: int) -> None:
    """Let an answer of the index hold that many rows at most, as it holds a megabyte of them otherwise."""
    if isinstance(store, MemoryTasks):
        store.page_size = rows
        return
    client = store.table.client

    class Paged:
        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def query(self, **request: Any) -> Any:
            return client.query(**(request | {"Limit": min(rows, request.get("Limit", rows))}))

    store.table.client = cast("Any", Paged())


@pytest.fixture(params=["memory", "simulated", *DATABASES])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Give each store in turn."""
    if request.param == "memory":
        yield MemoryTasks()
    elif request.param == "simulated":
        yield DynamoTasks(a_client(), "Tasks", clock=SystemClock(), reporter=RecordingReporter())
    else:
        client = request.getfixturevalue(request.param)
        with made_from_template(client, "Tasks") as table:
            yield DynamoTasks(client, table, clock=SystemClock(), reporter=RecordingReporter())


@pytest.fixture(params=["memory", "simulated", *DATABASES])
def control(request: pytest.FixtureRequest) -> Iterator[Control]:
    """Give what invocations share beside the tasks, each in turn."""
    if request.param == "memory":
        yield MemoryControl()
    elif request.param == "simulated":
        yield DynamoControl(a_client(), "Tasks", clock=SystemClock())
    else:
        client = request.getfixturevalue(request.param)
        with made_from_template(client, "Tasks") as table:
            yield DynamoControl(client, table, clock=SystemClock())


@pytest.fixture(params=["memory", "simulated", *DATABASES])
def directory(request: pytest.FixtureRequest) -> Iterator[Directory]:
    """Give each directory of callers in turn."""
    if request.param == "memory":
        yield MemoryCallers()
    elif request.param == "simulated":
        yield DynamoCallers(a_client(), "Callers", clock=SystemClock(), deployment_key=deployment_key)
    else:
        client = request.getfixturevalue(request.param)
        with made_from_template(client, "Callers") as table:
            yield DynamoCallers(client, table, clock=SystemClock(), deployment_key=deployment_key)


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> "DynamoDBClient":
    """Give each database in turn, to tests that look at items."""
    client: DynamoDBClient = request.getfixturevalue(request.param)
    return client


@pytest.fixture
def tasks_table(database: "DynamoDBClient") -> Iterator[str]:
    """Give an empty `Tasks` table in it."""
    with made_from_template(database, "Tasks") as name:
        yield name


@pytest.fixture
def dynamo_tasks(database: "DynamoDBClient", tasks_table: str, told: RecordingReporter) -> DynamoTasks:
    """Give the real store on that table."""
    return DynamoTasks(database, tasks_table, clock=SystemClock(), reporter=told)


def a_task(number: int = 1, caller: str = "alice", state: State = State.SUBMITTING) -> Task:
    """Make a task that was accepted `number` seconds after the start."""
    return Task(
        task_id=f"tk_{number:022d}",
        caller=caller,
        model="alibaba/wan2.2-animate-mix",
        request='{"image_url":"https://example.com/ü.jpg"}',
        fingerprint="f",
        callback_url="https://r.example.com/",
        reference="",
        accepted_at=START + timedelta(seconds=number),
        state=state,
        claimed_until=START + timedelta(minutes=1) if state is State.SUBMITTING else None,
    )


def an_ended(task: Task) -> Task:
    """Take a submitting task to its end."""
    watched = task.submitted(TAKEN, START, retention=RETENTION)
    data = {"result": {"resources": [{"url": "https://x.example.com/ü.mp4", "width": 1366}]}}
    return watched.succeeded(data, START, retention=RETENTION, claim=START)


def bare(task: Task) -> Task:
    """Give a task as it is read: without its request."""
    return task.model_copy(update={"request": None})


def same(one: Task | None, other: Task) -> bool:
    """Compare everything but the request, and the nonce of the last write."""
    return one is not None and bare(one) == bare(other).model_copy(update={"nonce": one.nonce})


async def test_what_is_added_is_read(store: Store) -> None:
    """Every field comes back as it was."""
    added = await store.add(a_task())
    assert same(added, a_task())
    assert await store.get(added.task_id) == bare(added)
    assert await store.get("tk_0") is None


def _reserving(
    store: Store, task_id: str, *, repeat: bool, at: float = 0, request: str = "alice#f"
) -> Awaitable[str]:
    """Ask for an id, `at` seconds after the start, for ten seconds."""
    now = START + timedelta(seconds=at)
    return store.reserve(request, task_id, repeat=repeat, now=now, until=now + timedelta(seconds=10))


async def test_a_repeat_gets_the_id_of_its_first_request(store: Store) -> None:
    """That of the last one like it; a first request gets its own; other requests and callers are apart."""
    assert await _reserving(store, "a", repeat=False) == "a"
    assert await _reserving(store, "b", repeat=True, at=1) == "a"
    assert await _reserving(store, "c", repeat=False, at=2) == "c"
    assert await _reserving(store, "d", repeat=True, at=3) == "c"
    assert await _reserving(store, "e", repeat=True, at=3, request="bob#f") == "e"
    assert await _reserving(store, "f", repeat=True, at=4) == "c"


async def test_a_first_request_that_was_overtaken_is_its_repeats(store: Store) -> None:
    """Once: the next first request is another one."""
    assert await _reserving(store, "a", repeat=True) == "a"
    assert await _reserving(store, "b", repeat=True, at=1) == "a"
    assert await _reserving(store, "c", repeat=False, at=2) == "a"
    assert await _reserving(store, "d", repeat=True, at=3) == "a"
    assert await _reserving(store, "e", repeat=False, at=4) == "e"


@pytest.mark.parametrize("repeat", [True, False])
async def test_an_id_is_reserved_for_a_while(store: Store, *, repeat: bool) -> None:
    """Each request for it prolongs it, and not longer."""
    assert await _reserving(store, "a", repeat=True) == "a"
    assert await _reserving(store, "b", repeat=repeat, at=9) == "a"
    assert await _reserving(store, "c", repeat=True, at=18) == "a"
    assert await _reserving(store, "d", repeat=repeat, at=29) == "d"
    assert await _reserving(store, "e", repeat=True, at=40) == "e"
    assert await _reserving(store, "f", repeat=repeat, at=51) == "f"


async def test_repeats_at_once_get_one_id(store: Store) -> None:
    """Also with the first request among them, which may be the last to come."""
    found = await asyncio.gather(*(_reserving(store, name, repeat=True) for name in "abcde"))
    assert len(set(found)) == 1
    assert await _reserving(store, "f", repeat=False) == found[0]


async def test_a_repeat_changes_nothing_of_what_others_reserved_meanwhile() -> None:
    """Between its two writes the first request came after all, and another like it, which stays first."""
    table = MemoryDynamo({"Tasks": "task_id"})
    update = table.update_item
    store = DynamoTasks(cast("Any", table), "Tasks", clock=SystemClock(), reporter=RecordingReporter())
    assert await _reserving(store, "a", repeat=True) == "a"

    def interleaved(**request: Any) -> Any:
        try:
            return update(**request)
        except ClientError:
            table.update_item = update  # type: ignore[method-assign]  # once
            others = DynamoTasks(
                cast("Any", table), "Tasks", clock=SystemClock(), reporter=RecordingReporter()
            )
            assert asyncio.run(_two_first(others)) == ["a", "c"]
            raise

    table.update_item = interleaved  # type: ignore[method-assign]  # a table has no hooks
    assert await _reserving(store, "d", repeat=True) == "a"
    assert await _reserving(store, "e", repeat=False) == "e"


async def _two_first(store: DynamoTasks) -> list[str]:
    return [await _reserving(store, name, repeat=False) for name in "bc"]


async def test_what_is_copied_is_read(store: Store) -> None:
    """The result, how far its copies are, and that nothing of it stays when the message is rendered."""
    added = await store.add(a_task().submitted(TAKEN, START, retention=RETENTION))
    data = {
        "result": {
            "resources": [{"url": "https://x.example.com/ü.mp4"}, {"url": "https://x.example.com/2.mp4"}]
        }
    }
    archiving = await store.swap(added, added.archiving(data, START, new_token=lambda: "t" * 32))
    assert await store.get(added.task_id) == bare(archiving)
    done, going = archiving.copies
    copies = (
        done.model_copy(update={"archived": True, "size": 5_000_000_000, "tag": '"e"'}),
        going.model_copy(update={"upload": "u"}),
    )
    copying = await store.swap(archiving, archiving.copying(copies, until=START + timedelta(seconds=20)))
    assert await store.get(added.task_id) == bare(copying)
    assert [row.task_id for row in (await store.watched("modellix", None)).rows] == [added.task_id]
    origin = "https://tasks.example.com"
    ended = await store.swap(copying, copying.archived(origin, START, retention=RETENTION, claim=START))
    assert await store.get(added.task_id) == bare(ended)
    assert ended.result is None


async def test_an_id_is_taken_once(store: Store) -> None:
    """The second one gets the first one's task."""
    added = await store.add(a_task())
    with pytest.raises(TaskExistsError) as exists:
        await store.add(a_task(1, "bob"))
    assert exists.value.current == bare(added)


async def test_of_many_at_once_one_adds(store: Store) -> None:
    """The conditional put decides, not the order of arrival."""
    tries = await asyncio.gather(*(store.add(a_task()) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(result, Task) for result in tries) == 1
    assert sum(isinstance(result, TaskExistsError) for result in tries) == 4


async def test_every_transition_is_stored_and_read(store: Store) -> None:
    """From the intent to a delivered callback, and each write changes the nonce."""
    task = await store.add(a_task())
    made = Attempt(at=START, status=200, ms=12, answer="ok")
    nonces = {task.nonce}
    steps: tuple[Step, ...] = (
        lambda task: task.submitted(TAKEN, START, retention=RETENTION),
        lambda task: task.missing(START),
        lambda task: task.found(),
        lambda task: task.succeeded({"a": [1, {"b": None}]}, START, retention=RETENTION, claim=START),
        lambda task: task.attempted(made, delivered=False, retry_at=START, now=START, retention=RETENTION),
        lambda task: task.claim_delivery(until=START),
        lambda task: task.attempted(made, delivered=True, retry_at=None, now=START, retention=RETENTION),
    )
    for step in steps:
        wanted = step(task)
        task = await store.swap(task, wanted)
        assert same(task, wanted)
        assert await store.get(task.task_id) == bare(task)
        nonces.add(task.nonce)
    assert len(nonces) == 8


async def test_a_request_is_read_where_it_is_asked_for(store: Store) -> None:
    """It is stored once, and no later write of the task carries it, spoils it, or is billed for it."""
    request = json.dumps({"image_url": "https://example.com/ü.jpg"})
    task = await store.add(a_task().model_copy(update={"request": request}))
    for step in (an_ended, lambda task: task.redelivered(START)):
        found = await store.get(task.task_id)
        assert found is not None
        assert found.request is None
        assert (await store.with_request(found)).request == request
        task = await store.swap(found, step(found))
    assert (await store.with_request(task)).request == request
    refused = a_task(2).model_copy(update={"fingerprint": "g", "request": request, "accepted_at": START})
    again = await store.swap(
        task,
        refused.model_copy(update={"task_id": task.task_id, "request": request.replace("image", "video")}),
    )
    found = await store.get(again.task_id)
    assert found is not None
    assert (await store.with_request(found)).request == request.replace("image", "video")


async def test_a_request_is_an_item_of_its_own_that_expires(
    database: "DynamoDBClient", tasks_table: str
) -> None:
    """Plain text in it, not a word of it in the task's; another task under the same key brings its own."""
    store = DynamoTasks(
        database,
        tasks_table,
        clock=SystemClock(),
        reporter=RecordingReporter(),
        requests_kept=timedelta(days=9),
    )
    task = await store.add(a_task())
    other = a_task(2).model_copy(update={"task_id": task.task_id, "fingerprint": "g", "request": "{}"})
    await store.swap(task, other)

    def items(key: str) -> Any:
        return database.get_item(TableName=tasks_table, Key={"task_id": {"S": key}})["Item"]

    assert "request" not in items(task.task_id)
    for one in (a_task(), other):
        kept = items(request_key(one))
        end = str(int((one.accepted_at + timedelta(days=9)).timestamp()))  # TTL counts in seconds
        assert kept == {
            "task_id": {"S": request_key(one)},
            "request": {"S": one.request},
            "expires_at": {"N": end},
        }


async def test_a_request_that_is_gone_is_none(store: Store) -> None:
    """A task may outlive its request; it is still all there is to say."""
    task = a_task().model_copy(update={"request": None})
    assert (await store.with_request(await store.add(task))).request is None


@pytest.mark.parametrize("unreadable", [{"B": b"?"}, {"N": "1"}, {"NULL": True}])
async def test_a_request_that_cannot_be_read_is_none(unreadable: dict[str, Any]) -> None:
    """As one that another version wrote; it stays where it is."""
    table = MemoryDynamo({"Tasks": "task_id"})
    store = DynamoTasks(cast("Any", table), "Tasks", clock=SystemClock(), reporter=RecordingReporter())
    task = await store.add(a_task())
    odd = {"task_id": {"S": request_key(task)}, "request": unreadable}
    table.write("Tasks", odd)
    found = await store.get(task.task_id)
    assert found is not None
    assert (await store.with_request(found)).request is None
    [listed] = await store.with_requests((await store.page("alice", after="", until="~", limit=1)).tasks)
    assert listed.request is None
    assert table.peek("Tasks", request_key(task)) == odd


async def test_a_stale_write_changes_nothing(store: Store) -> None:
    """A writer that has seen an older task is told what stands there now."""
    old = await store.add(a_task())
    current = await store.swap(old, old.mark_unknown())
    with pytest.raises(StaleTaskError) as stale:
        await store.swap(old, old.submitted(TAKEN, START, retention=RETENTION))
    assert stale.value.current == bare(current)
    assert await store.get(old.task_id) == bare(current)


async def test_a_write_never_makes_a_task(store: Store) -> None:
    """What is gone stays gone."""
    with pytest.raises(StaleTaskError) as stale:
        await store.swap(a_task(), a_task().mark_unknown())
    assert stale.value.current is None
    assert await store.get(a_task().task_id) is None


async def test_a_key_that_is_free_again_takes_a_new_task(store: Store) -> None:
    """The new task replaces every field of the old one."""
    refused = SubmitOutcome(submission=Submission.REFUSED_HERE, status=402, message="pay")
    old = await store.add(a_task())
    old = await store.swap(old, old.submitted(refused, START, retention=RETENTION))
    fresh = a_task().model_copy(update={"accepted_at": START + timedelta(hours=1)})
    assert same(await store.swap(old, fresh), fresh)
    assert same(await store.get(fresh.task_id), fresh)
    assert [row.task_id for row in (await store.watched("modellix", None)).rows] == [fresh.task_id]


async def test_watch_holds_what_is_not_through_its_first_delivery(store: Store) -> None:
    """Submitting, watched, unknown, ended and not yet delivered; in order of acceptance, from a time on."""
    for number in (3, 1, 2, 4):
        await store.add(a_task(number))
    await store.add(a_task(5, state=State.QUEUED))
    ended = await store.get(a_task(2).task_id)
    assert ended is not None
    await store.swap(ended, an_ended(ended))
    assert [row.task_id[-1] for row in (await store.watched("modellix", None)).rows] == ["1", "2", "3", "4"]
    since = START + timedelta(seconds=2)
    assert [row.task_id[-1] for row in (await store.watched("modellix", since)).rows] == ["2", "3", "4"]


async def test_retry_holds_what_is_due_the_longest_overdue_first(store: Store) -> None:
    """Ended tasks move there after their first attempt, and leave when delivered."""
    for number, minutes in ((1, 20), (2, 10), (3, 30)):
        task = await store.add(a_task(number))
        task = await store.swap(task, an_ended(task))
        retry_at = START + timedelta(minutes=minutes)
        await store.swap(
            task,
            task.attempted(
                Attempt(at=START, status=500),
                delivered=False,
                retry_at=retry_at,
                now=START,
                retention=RETENTION,
            ),
        )
    assert [row.task_id[-1] for row in (await store.retries(None, START + timedelta(minutes=25))).rows] == [
        "2",
        "1",
    ]
    since = START + timedelta(minutes=15)
    assert [row.task_id[-1] for row in (await store.retries(since, START + timedelta(minutes=25))).rows] == [
        "1"
    ]
    assert (await store.retries(None, START + timedelta(minutes=10))).rows == []
    assert (await store.watched("modellix", None)).rows == []


async def test_a_message_asked_for_again_is_a_retry_due_now(store: Store) -> None:
    """The index finds every way into redelivery; nothing of earlier rounds is lost, nothing expires."""
    made = Attempt(at=START, status=410, next_at=START + timedelta(hours=1))
    steps: tuple[tuple[Step, ...], ...] = (
        (lambda task: task.attempted(made, delivered=True, retry_at=None, now=START, retention=RETENTION),),
        (
            lambda task: task.attempted(
                made, delivered=False, retry_at=None, now=START, retention=RETENTION, gone=True
            ),
        ),
        (
            lambda task: task.attempted(
                made,
                delivered=False,
                retry_at=START + timedelta(hours=9),
                now=START,
                retention=RETENTION,
                soon=True,
            ),
        ),
        (),
    )
    now = START + timedelta(minutes=5)
    again: Step = lambda task: task.redelivered(now)  # noqa: E731  # a step like the others
    for number, before in enumerate(steps):
        task = await store.add(a_task(number))
        for step in (an_ended, *before, again):
            wanted = step(task)
            task = await store.swap(task, wanted)
            assert same(await store.get(task.task_id), wanted)
    rows = (await store.retries(None, now + timedelta(seconds=1))).rows
    found = await store.read_many([row.task_id for row in rows])
    # The last one first: the claim of its first attempt ended before.
    assert [
        (task.task_id[-1], task.attempts, task.attempts_this_round, task.expires_at) for task in found
    ] == [
        ("3", 0, 0, None),
        ("0", 1, 0, None),
        ("1", 1, 0, None),
        ("2", 1, 0, None),
    ]
    assert (await store.watched("modellix", None)).rows == []


async def test_a_row_of_a_retry_says_whose_it_is(store: Store) -> None:
    """So that a slot can be chosen for it without reading its task."""
    task = await store.add(a_task(1))
    task = await store.swap(task, an_ended(task))
    await store.swap(task, task.redelivered(START))
    [row] = (await store.retries(None, START + timedelta(seconds=1))).rows
    assert RetryKey.read(row.at) == (START, task.caller, "r.example.com", 3)


async def test_rows_come_in_pages_that_leave_nothing_out(store: Store) -> None:
    """Wherever a page ends, the next one begins behind it."""
    for number in range(7):
        task = await store.add(a_task(number))
        task = await store.swap(task, an_ended(task))
        await store.swap(task, task.redelivered(START + timedelta(seconds=number)))
        await store.add(a_task(number + 10))
    in_pages_of(store, 2)

    async def retries(cursor: Any) -> Rows:
        return await store.retries(None, START + timedelta(hours=1), cursor=cursor)

    async def watched(cursor: Any) -> Rows:
        return await store.watched("modellix", None, cursor=cursor)

    for look in (retries, watched):
        found: list[str] = []
        page = await look(None)
        while True:
            found += [row.task_id for row in page.rows]
            if page.cursor is None:
                break
            page = await look(page.cursor)
        assert len(found) == len(set(found)) == 7


async def test_the_queue_is_counted_over_pages(store: Store) -> None:
    """Up to the number asked for, wherever a page ends."""
    for number in range(7):
        await store.add(a_task(number, state=State.QUEUED))
    in_pages_of(store, 2)
    assert [await store.queue_length("modellix", "alice", at_most=most) for most in (1, 5, 7, 100)] == [
        1,
        5,
        7,
        7,
    ]


async def test_the_queue_gives_each_callers_oldest(store: Store) -> None:
    """One caller with many tasks hides no other."""
    assert await store.queue_heads("modellix") == []
    assert not await store.queue_waits("modellix")
    for number, caller in ((4, "bob"), (2, "alice"), (1, "alice"), (3, "al"), (5, "alice-2"), (9, "zed")):
        await store.add(a_task(number, caller, State.QUEUED))
    assert [(task.caller, task.task_id[-1]) for task in await store.queue_heads("modellix")] == [
        ("al", "3"),
        ("alice", "1"),
        ("alice-2", "5"),
        ("bob", "4"),
        ("zed", "9"),
    ]
    assert {(await store.with_request(task)).request for task in await store.queue_heads("modellix")} == {
        a_task().request
    }
    assert await store.queue_waits("modellix")
    assert [task.task_id[-1] for task in await store.queue_of("modellix", "alice")] == ["1", "2"]
    assert await store.queue_of("modellix", "a") == []


async def test_history_is_the_callers_own_newest_first(store: Store) -> None:
    """Bounds are strict, pages follow each other, and the last has no cursor."""
    for number in range(1, 8):
        await store.add(a_task(number))
    await store.add(a_task(9, "bob"))
    page = await store.page("alice", after="", until="~", limit=4)
    assert [task.task_id[-1] for task in page.tasks] == ["7", "6", "5", "4"]
    assert page.cursor is not None
    rest = await store.page("alice", after="", until=page.cursor, limit=4)
    assert [task.task_id[-1] for task in rest.tasks] == ["3", "2", "1"]
    assert rest.cursor is None
    after = f"{milliseconds(START + timedelta(seconds=3)):013d}"
    bounded = await store.page("alice", after=after, until=a_task(5).created_key, limit=4)
    assert [task.task_id[-1] for task in bounded.tasks] == ["4", "3"]
    one_more = await store.page("alice", after="", until="~", limit=6)
    assert (len(one_more.tasks), one_more.cursor) == (6, one_more.tasks[-1].created_key)
    assert (await store.page("mallory", after="", until="~", limit=4)).tasks == ()
    assert {task.request for task in page.tasks} == {None}  # they are read for what is shown alone
    whole = await store.with_requests(page.tasks[1:3])
    assert [(task.task_id[-1], task.request) for task in whole] == [
        (number, a_task().request) for number in "65"
    ]
    assert await store.with_requests([]) == []


async def test_the_leadership_goes_to_one(control: Control) -> None:
    """A wake gets what it has seen free, a tick takes over, a resignation by another one changes nothing."""
    later = START + timedelta(minutes=2)
    seen = await control.view()
    assert not seen.alive(START)
    assert await control.acquire(seen, LeadershipView(leader="one", until=later), takeover=False)
    assert not await control.acquire(seen, LeadershipView(leader="two", until=later), takeover=False)
    assert await control.acquire(
        seen, LeadershipView(leader="three", until=later, held_models=("a/b", "c/d")), takeover=True
    )
    held = await control.view()
    assert (held.leader, held.held_models, held.alive(START), held.alive(later)) == (
        "three",
        ("a/b", "c/d"),
        True,
        False,
    )
    assert [held.holds("c/d", START), held.holds("e/f", START), held.holds("c/d", later)] == [
        True,
        False,
        False,
    ]
    await control.resign("one")
    assert (await control.view()).alive(START)
    await control.resign("three", drained_at=START)
    released = await control.view()
    assert not released.alive(START)
    assert released.drained_at == START
    assert await control.acquire(released, LeadershipView(leader="four", until=later), takeover=False)
    assert (await control.view()).drained_at is None


async def test_a_true_webhook_is_remembered_across_leaders(control: Control) -> None:
    """The next leader knows that webhooks come, until the poller doubts them."""
    await control.webhook_came(START)
    await control.acquire(await control.view(), LeadershipView(leader="one", until=START), takeover=True)
    assert (await control.view()).webhooks_come(START + timedelta(minutes=59))
    assert not (await control.view()).webhooks_come(START + timedelta(minutes=60))
    await control.webhook_came(None)
    assert not (await control.view()).webhooks_come(START)


async def test_the_admission_state_keeps_what_was_learnt_first(control: Control) -> None:
    """A change on top of an older view is dropped, and the caller sees what stands."""
    fresh = await control.admission("modellix")
    assert fresh == AdmissionState()
    refused = await control.set_admission("modellix", fresh, fresh.refused(2, START))
    assert (refused.waiting, refused.slots, refused.probed_at) == (True, 2, START)
    assert await control.admission("modellix") == refused
    assert await control.set_admission("modellix", fresh, fresh.pause(START)) == refused
    opened = await control.set_admission("modellix", refused, AdmissionState(nonce=refused.nonce))
    assert await control.admission("modellix") == opened
    assert (opened.waiting, opened.slots, opened.probed_at) == (False, None, None)


async def test_the_admission_state_keeps_what_was_learnt_of_models(control: Control) -> None:
    """Whatever their names hold."""
    fresh, model = await control.admission("modellix"), "a.b/c-d:e_f"
    learnt = fresh.task_took(model, timedelta(seconds=7)).refused(2, START, kinds=("x/y", "me x/y"))
    for _ in range(MOST_UNKNOWN):
        learnt = learnt.outcome_unknown(START, kinds=(model,))
    stored = await control.set_admission("modellix", fresh, learnt)
    assert await control.admission("modellix") == stored
    assert (stored.refused_kinds, stored.unknown_of[model], stored.took[model]) == (
        ("x/y", "me x/y"),
        MOST_UNKNOWN,
        7,
    )
    assert stored.is_paused_for((model,), START)


async def test_a_window_gives_no_more_than_its_limit(control: Control) -> None:
    """Many at once get as many as there are, each window on its own."""
    got = await asyncio.gather(*(control.take_tokens("modellix", 3, window=1, limit=10) for _ in range(8)))
    assert sum(got) == 10
    assert max(got) == 3
    assert await control.take_tokens("modellix", 1, window=1, limit=10) == 0
    assert await control.take_tokens("modellix", 2, window=1, limit=11) == 1
    assert await control.take_tokens("modellix", 20, window=2, limit=10) == 10
    assert await control.take_tokens("modellix", 0, window=3, limit=10) == 0


async def test_a_callers_rate_gives_each_moment_once(control: Control) -> None:
    """Many at once get moments without a gap between; each caller has its own; what is past lapses."""
    hour = timedelta(hours=1)
    got = await asyncio.gather(
        *(
            control.reserve_deliveries("alice", count, now=START, latest=START + hour)
            for count in (3, 1, 4, 1)
        )
    )
    taken = sorted(zip(got, (3, 1, 4, 1), strict=True))
    assert [first for first, _ in taken] == [
        START + timedelta(seconds=sum(count for _, count in taken[:n])) for n in range(4)
    ]
    later = START + timedelta(seconds=60)
    assert await control.reserve_deliveries("alice", 1, now=later, latest=later) == later
    assert await control.reserve_deliveries("bob", 2, now=START, latest=START) == START


async def test_beyond_the_latest_moment_nothing_is_reserved(control: Control) -> None:
    """The answer is when the next one would be, and stays so."""
    now = START + timedelta(microseconds=1500)
    for seconds in (0, 7200):
        assert await control.reserve_deliveries(
            "alice", 7200, now=now, latest=now + timedelta(seconds=seconds)
        ) - now == timedelta(seconds=seconds)
    for latest in (timedelta(hours=1), timedelta(seconds=14_399)):
        free = await control.reserve_deliveries("alice", 1, now=now, latest=now + latest)
        assert free - now == timedelta(seconds=14_400)
    assert (
        await control.reserve_deliveries("alice", 1, now=now, latest=now + timedelta(seconds=14_400)) == free
    )


class Overtaken(MemoryDynamo):
    """A client whose caller's rate another invocation changes right after it was looked at."""

    def __init__(self, seconds: int) -> None:
        super().__init__({"Tasks": "task_id"})
        self.next_at: int | None = milliseconds(START + timedelta(seconds=seconds))

    def update_item(self, **request: Any) -> dict[str, Any]:
        """Write; where that failed the first time, the cursor moves."""
        try:
            return super().update_item(**request)
        except ClientError:
            if self.next_at is not None:
                self.write(
                    "Tasks", {"task_id": {"S": "redelivery#alice"}, "next_at": {"N": str(self.next_at)}}
                )
                self.next_at = None
            raise


@pytest.mark.parametrize(("moved_to", "first"), [(20, 20), (70, 70), (-10, 0)])
async def test_a_moment_is_reserved_where_the_rate_stands_when_it_is_written(
    moved_to: int, first: int
) -> None:
    """Another invocation has moved it: in time, beyond the latest moment, or with a clock that is behind."""
    client = Overtaken(moved_to)
    control = DynamoControl(cast("DynamoDBClient", client), "Tasks", clock=SystemClock())
    latest = START + timedelta(seconds=60)
    assert await control.reserve_deliveries("alice", 5, now=START, latest=latest) == START
    assert await control.reserve_deliveries("alice", 5, now=START, latest=latest) == START + timedelta(
        seconds=first
    )
    kept = client.peek("Tasks", "redelivery#alice")
    assert kept is not None
    reserved = 0 if moved_to > 60 else 5
    assert kept["next_at"]["N"] == str(milliseconds(START + timedelta(seconds=first + reserved)))


async def test_the_queue_is_counted_per_caller(store: Store) -> None:
    """Names that begin alike are different callers."""
    for number, caller in enumerate(("alice", "alice", "alice", "alice-2", "al")):
        await store.add(a_task(number, caller, State.QUEUED))
    assert await store.queue_length("modellix", "alice", at_most=10) == 3
    assert await store.queue_length("modellix", "alice", at_most=2) == 2
    assert await store.queue_length("modellix", "bob", at_most=10) == 0


async def test_callers_are_kept_and_changed_on_condition(directory: Directory) -> None:
    """A name is taken once, and two changes at once cannot undo each other."""
    plain, sealed = a_caller("alice"), await directory.encrypted("alice", "whsec_old")
    alice = plain.model_copy(update={"secrets": (Credential(value=sealed),)})
    assert await directory.add(alice)
    assert not await directory.add(a_caller("alice").model_copy(update={"disabled": True}))
    assert await directory.read("alice") == await directory.cached("alice") == alice
    found = await directory.find("alice")
    assert found == plain.model_copy(update={"secrets": (Credential(value="whsec_old"),)}), (
        "its secrets can sign"
    )
    assert await directory.find("bob") is None
    rotated = alice.model_copy(update={"secrets": (Credential(value="whsec_new"), *alice.secrets)})
    disabled = alice.model_copy(update={"disabled": True})
    assert await directory.update(alice, disabled)
    assert not await directory.update(alice, rotated)
    elsewhere = disabled.model_copy(update={"callback_url": "https://example.com/hook"})
    assert await directory.update(disabled, elsewhere)
    assert not await directory.update(disabled, disabled.model_copy(update={"disabled": False}))
    assert await directory.update(elsewhere, disabled)
    earlier = a_caller("aa")
    assert await directory.add(earlier)
    assert await directory.every() == [earlier, disabled]
    assert await directory.read("bob") is None
    assert not await directory.remove(alice)
    assert await directory.cached("alice") == alice, "read before it was changed"
    assert await directory.remove(disabled)
    assert await directory.remove(disabled), "the first try's answer may have been lost"
    assert await directory.read("alice") is None
    assert await directory.cached("alice") is None


@dataclass
class Material:
    """The deployment's own key, of which this process has read an older one."""

    kept: str
    now: str
    asked: list[bool] = field(default_factory=list)

    async def __call__(self, *, fresh: bool) -> str:
        """Give it."""
        self.asked.append(fresh)
        self.kept = self.now if fresh else self.kept
        return self.kept


OLD_KEY, NEW_KEY = "b" * 64, "c" * 64


def sealed(value: str, material: str = NEW_KEY, *, until: datetime | None = None) -> Credential:
    """Give a signing secret of alice's as the table holds it."""
    return Credential(value=encrypt(value, material=material, context="alice"), expires_at=until)


async def found_by(material: ApiKey, *kept: Credential) -> list[str]:
    """Keep alice with these secrets, and tell which ones sign her callbacks."""
    directory = DynamoCallers(a_client(), "Callers", clock=VirtualClock(), deployment_key=material)
    await directory.add(a_caller("alice").model_copy(update={"secrets": kept}))
    found = await directory.find("alice")
    assert found is not None
    return [secret.value for secret in found.secrets]


async def test_a_secret_that_cannot_be_read_is_left_out_while_another_one_signs() -> None:
    """As one of before the deployment's key was replaced; nor is one read that is over."""
    material = Material(NEW_KEY, NEW_KEY)
    over = sealed("whsec_over", OLD_KEY, until=START - timedelta(seconds=1))
    assert await found_by(material, sealed("whsec_new"), sealed("whsec_old", OLD_KEY), over) == ["whsec_new"]
    assert material.asked == [False]


async def test_a_secret_that_is_over_signs_nothing() -> None:
    """However well it can be read."""
    over = sealed("whsec_over", until=START - timedelta(seconds=1))
    assert await found_by(Material(NEW_KEY, NEW_KEY), sealed("whsec_new"), over) == ["whsec_new"]


async def test_where_no_secret_can_be_read_the_deployments_key_is_read_again() -> None:
    """It may have been replaced since this process read it."""
    material = Material(OLD_KEY, NEW_KEY)
    assert await found_by(material, sealed("whsec_new")) == ["whsec_new"]
    assert material.asked == [False, True]


@pytest.mark.parametrize("failure", [KeyUnavailableError("throttled"), KeyUnusableError("denied")])
async def test_what_cannot_be_had_is_named(failure: Exception) -> None:
    """Where it is the secret, the table is not blamed."""

    async def material(*, fresh: bool) -> str:
        del fresh
        raise failure

    with pytest.raises(StoreUnavailableError) as unavailable:
        await found_by(material, sealed("whsec_new"))
    assert unavailable.value.what == "the stack's secret could not be read"
    assert StoreUnavailableError("x").what == "the task table did not answer"


async def test_where_no_secret_can_be_read_with_the_fresh_key_either_that_is_an_error() -> None:
    """The key is read again once, and no caller is given that cannot sign."""
    for kept in ([sealed("whsec_odd", "d" * 64)], [sealed("whsec_over", until=START - timedelta(seconds=1))]):
        material = Material(OLD_KEY, NEW_KEY)
        with pytest.raises(DecryptionError):
            await found_by(material, *kept)
        assert material.asked == [False, True]


# --- what only the real table can show ------------------------------------------------------------


class LostAnswers:
    """A DynamoDB client of which every write loses its answer and is repeated, as botocore does it."""

    def __init__(self, client: "DynamoDBClient") -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(**request: Any) -> Any:
            if name in {"put_item", "update_item", "delete_item"}:
                method(**request)
            return method(**request)

        return call


def lose_answers(adapter: DynamoTasks | DynamoControl | DynamoCallers) -> None:
    """Put a client that loses answers between an adapter and its table."""
    # It has every method.
    adapter.table.client = LostAnswers(adapter.table.client)  # type: ignore[assignment]


async def test_a_repeated_write_knows_its_own_success(store: Store) -> None:
    """The retry of a write whose answer was lost fails on the first one's nonce, and that is success."""
    if isinstance(store, MemoryTasks):
        pytest.skip("a dict loses no answers")
    lose_answers(store)
    added = await store.add(a_task())
    unknown = await store.swap(added, added.mark_unknown())
    assert await store.get(added.task_id) == bare(unknown)
    assert (await store.with_request(unknown)).request == a_task().request


async def test_a_write_that_was_never_answered_says_what_may_be_stored(store: Store) -> None:
    """By the nonce of the error its writer knows its own write again."""
    if isinstance(store, MemoryTasks):
        pytest.skip("a dict loses no answers")
    added, update_item = await store.add(a_task()), store.table.client.update_item

    def unanswered(**request: Any) -> Any:
        with contextlib.suppress(ClientError):  # the second time
            update_item(**request)
        raise ReadTimeoutError(endpoint_url="")

    store.table.client = SimpleNamespace(update_item=unanswered, get_item=store.table.client.get_item)  # type: ignore[assignment]
    with pytest.raises(StoreUnavailableError) as lost:
        await store.swap(added, added.mark_unknown())
    assert (await store.get(added.task_id)) == bare(
        added.mark_unknown().model_copy(update={"nonce": lost.value.nonce})
    )


async def test_a_repeated_write_of_a_control_item_knows_its_own_success(control: Control) -> None:
    """The leadership is this invocation's, and the admission state as it has left it."""
    if isinstance(control, MemoryControl):
        pytest.skip("a dict loses no answers")
    lose_answers(control)
    leadership = LeadershipView(leader="a", until=START + timedelta(minutes=1))
    assert await control.acquire(LeadershipView(), leadership, takeover=False)
    assert (await control.set_admission("modellix", AdmissionState(), AdmissionState(waiting=True))).waiting


async def test_a_repeated_write_of_a_caller_knows_its_own_success(directory: Directory) -> None:
    """Also where a caller is made, changed or removed."""
    if isinstance(directory, MemoryCallers):
        pytest.skip("a dict loses no answers")
    lose_answers(directory)
    caller = a_caller()
    assert await directory.add(caller)
    disabled = caller.model_copy(update={"disabled": True})
    assert await directory.update(caller, disabled)
    assert not await directory.add(caller)
    assert await directory.remove(disabled)


async def test_an_unreadable_item_that_another_writer_moved_stays_there() -> None:
    """Two pollers read it at once; the second push does not undo what came after the first."""
    now = 0.0
    table = MemoryDynamo({"Tasks": "task_id"}, time=lambda: now)
    store = DynamoTasks(cast("Any", table), "Tasks", clock=SystemClock(), reporter=RecordingReporter())
    item = {
        "task_id": {"S": "bad"},
        "work": {"S": "retry"},
        "work_at": {"S": "0000000000000_bad"},
        "state": {"S": "?"},
    }
    table.write("Tasks", item)
    now = 1.0
    table.write("Tasks", item | {"work_at": {"S": "0000000000009_bad"}})
    table.lag = lambda _key: 0.5
    assert await store.read_many([row.task_id for row in (await store.retries(None, START)).rows]) == []
    assert table.peek("Tasks", "bad") == item | {"work_at": {"S": "0000000000009_bad"}}


async def test_an_item_has_work_or_expires_but_never_both(
    database: "DynamoDBClient", tasks_table: str, dynamo_tasks: DynamoTasks
) -> None:
    """TTL must never take a task that still has something to do; its clock counts in seconds."""
    task = await dynamo_tasks.add(a_task())
    steps: list[Step] = [
        an_ended,
        lambda task: task.attempted(
            Attempt(at=START), delivered=True, retry_at=None, now=START, retention=RETENTION
        ),
    ]
    for step in [Task.model_copy, *steps]:
        task = await dynamo_tasks.swap(task, step(task))
        item = database.get_item(TableName=tasks_table, Key={"task_id": {"S": task.task_id}})["Item"]
        assert ("work" in item) is ("work_at" in item)
        assert ("work" in item) is not ("expires_at" in item)
    assert item["expires_at"] == {"N": str(int((START + RETENTION).timestamp()))}


async def test_what_a_newer_version_wrote_survives_our_writes(
    database: "DynamoDBClient", tasks_table: str, dynamo_tasks: DynamoTasks
) -> None:
    """During a deploy two versions run: unknown attributes are ignored and kept."""
    task = await dynamo_tasks.add(a_task())
    key = {"task_id": {"S": task.task_id}}
    database.update_item(
        TableName=tasks_table,
        Key=key,
        UpdateExpression="SET novelty = :v",
        ExpressionAttributeValues={":v": {"S": "kept"}},
    )
    read = await dynamo_tasks.get(task.task_id)
    assert read == bare(task)
    await dynamo_tasks.swap(task, task.mark_unknown())
    assert database.get_item(TableName=tasks_table, Key=key)["Item"]["novelty"] == {"S": "kept"}


@pytest.mark.parametrize("partition", ["watch", "queue", "retry"])
async def test_an_unreadable_item_is_told_and_hides_no_other(
    database: "DynamoDBClient",
    tasks_table: str,
    dynamo_tasks: DynamoTasks,
    told: RecordingReporter,
    partition: str,
) -> None:
    """It is pushed back where others wait behind it, counted, and never deleted."""
    at = {"watch": "0000000000000_bad", "queue": "alice#0000000000000_bad", "retry": "0000000000000_bad"}[
        partition
    ]
    bad = {"task_id": {"S": "bad"}, "work": {"S": partition}, "work_at": {"S": at}, "state": {"S": "?"}}
    database.put_item(TableName=tasks_table, Item=bad)
    queued = await dynamo_tasks.add(a_task(1, state=State.QUEUED))
    watched = await dynamo_tasks.add(a_task(2))

    async def read(look: Awaitable[Rows]) -> list[Task]:
        return await dynamo_tasks.read_many([row.task_id for row in (await look).rows])

    looks: dict[str, Callable[[], Awaitable[list[Task]]]] = {
        "watch": lambda: read(dynamo_tasks.watched("modellix", None)),
        "queue": lambda: dynamo_tasks.queue_heads("modellix"),
        "retry": lambda: read(dynamo_tasks.retries(None, START)),
    }
    look = looks[partition]
    await look()
    assert [task.task_id for task in await look()] == {
        "watch": [watched.task_id],
        "queue": [queued.task_id],
        "retry": [],
    }[partition]
    assert told.count("task.unreadable") >= 1
    item = database.get_item(TableName=tasks_table, Key={"task_id": {"S": "bad"}})["Item"]
    assert item.get("unreadable") == (None if partition == "watch" else {"N": "1"})


class Throttled(MemoryDynamo):
    """A table of which some keys come back unprocessed, so many times."""

    def __init__(self, stuck: dict[str, int], *, most: int = 100) -> None:
        super().__init__({"Tasks": "task_id"}, time=lambda: 0.0)
        self.stuck = stuck
        self.most = most  # items of one answer
        self.batches = 0

    def batch_get_item(self, **request: Any) -> dict[str, Any]:
        """Read some."""
        self.batches += 1
        keys = request["RequestItems"]["Tasks"]["Keys"]
        kept_back = [key for key in keys if self.stuck.get(key["task_id"]["S"], 0) > 0]
        for key in kept_back:
            self.stuck[key["task_id"]["S"]] -= 1
        served = [key for key in keys if key not in kept_back]
        served, kept_back = served[: self.most], [*served[self.most :], *kept_back]
        answer: dict[str, Any] = {"Responses": {"Tasks": []}, "UnprocessedKeys": {}}
        if served:
            answer |= super().batch_get_item(RequestItems={"Tasks": {"Keys": served}})
        answer["UnprocessedKeys"] = {"Tasks": {"Keys": kept_back}} if kept_back else {}
        return answer


async def throttled(
    stuck: dict[str, int], *, most: int = 100, tasks: int = 5
) -> tuple[DynamoTasks, Throttled, RecordingReporter]:
    """Make a store of five watched tasks on such a table."""
    table, told = Throttled(stuck, most=most), RecordingReporter()
    store = DynamoTasks(cast("Any", table), "Tasks", clock=VirtualClock(), reporter=told)
    for number in range(tasks):
        await store.add(a_task(number, state=State.WATCHED))
    return store, table, told


async def test_keys_that_come_back_unprocessed_are_asked_for_again() -> None:
    """As often as some come, and a few times where none does: nothing is dropped while that lasts."""
    for stuck, most in (
        ({a_task(2).task_id: 3}, 100),
        ({}, 1),
        (dict.fromkeys((a_task(n).task_id for n in range(5)), 3), 2),
    ):
        store, _, told = await throttled(stuck, most=most)
        found = await store.read_many([a_task(number).task_id for number in range(5)])
        assert [task.task_id for task in found] == [a_task(number).task_id for number in range(5)]
        assert told.events == []


async def test_a_key_that_stays_unprocessed_keeps_no_other_waiting() -> None:
    """It is left out, and told; the next look finds it."""
    store, table, told = await throttled({a_task(2).task_id: 10})
    task_ids = [a_task(number).task_id for number in range(5)]
    assert len(await store.read_many(task_ids)) == 4
    assert told.events == [("tasks.left_out", {"count": 1})]
    assert table.batches <= 6
    while table.stuck[a_task(2).task_id]:
        await store.read_many(task_ids)
    assert len(await store.read_many(task_ids)) == 5


async def test_a_list_for_a_caller_is_whole_or_none() -> None:
    """A task that is missing from it would be a lie; a 503 is none."""
    store, _, _ = await throttled({a_task(2).task_id: 10})
    with pytest.raises(StoreUnavailableError):
        await store.page("alice", after="", until="~", limit=10)
    store, _, _ = await throttled({a_task(2).task_id: 1})
    assert len((await store.page("alice", after="", until="~", limit=10)).tasks) == 5


async def test_more_tasks_than_a_batch_holds_are_all_found(dynamo_tasks: DynamoTasks) -> None:
    """BatchGetItem takes 100 keys; the sweep takes any number."""
    await asyncio.gather(*(dynamo_tasks.add(a_task(number)) for number in range(130)))
    rows = (await dynamo_tasks.watched("modellix", None)).rows
    assert len(await dynamo_tasks.read_many([row.task_id for row in rows])) == 130


def test_the_error_codes_are_the_contracts() -> None:
    """Receivers compare with these words."""
    assert set(ErrorCode) == {
        "upstream_failed",
        "upstream_refused",
        "submission_unknown",
        "queue_expired",
        "expired",
        "lost",
        "canceled",
    }


# --- answers that are cut, keys that are left out, and units: what no test noticed before ---------


def a_cut_client() -> Any:
    """Make a client in memory whose answers end after every row, whose batches first leave every key out."""
    client, asked = a_client(), set[str]()
    client.page = lambda: 1

    def unprocessed(key: str) -> bool:
        is_new = key not in asked
        asked.add(key)
        return is_new

    client.unprocessed = unprocessed
    return client


async def test_answers_that_end_anywhere_leave_nothing_out() -> None:
    """The queue and a caller's history are read to the end, over as many pages and batches as it takes."""
    tasks = DynamoTasks(a_cut_client(), "Tasks", clock=SystemClock(), reporter=RecordingReporter())
    for number in range(8):
        await tasks.add(a_task(number, "alice" if number < 5 else "bob", State.QUEUED))
    assert [
        await tasks.queue_length("modellix", caller, at_most=100) for caller in ("alice", "bob", "carol")
    ] == [
        5,
        3,
        0,
    ]
    assert [task.task_id for task in await tasks.queue_heads("modellix")] == [
        a_task(0).task_id,
        a_task(5).task_id,
    ]
    listed, until = [], "9"
    while True:
        page = await tasks.page("alice", after="", until=until, limit=2)
        listed += [task.task_id for task in page.tasks]
        if page.cursor is None:
            break
        until = page.cursor
    assert listed == [a_task(number).task_id for number in reversed(range(5))]


async def test_callers_beyond_the_first_page_are_listed() -> None:
    """A scan that ends after a row goes on behind it."""
    directory = DynamoCallers(a_cut_client(), "Callers", clock=SystemClock(), deployment_key=deployment_key)
    people = [a_caller(name) for name in ("alice", "bob", "carol")]
    for caller in people:
        await directory.add(caller)
    assert await directory.every() == people


async def test_what_expires_does_so_by_seconds() -> None:
    """TTL reads Unix seconds: with milliseconds nothing would ever be deleted."""
    client = a_client()
    tasks = DynamoTasks(client, "Tasks", clock=SystemClock(), reporter=RecordingReporter())
    task = await tasks.add(a_task().model_copy(update={"callback_url": None}))
    task = await tasks.swap(task, an_ended(task))
    end = (START + RETENTION).timestamp()
    assert client.expire("Tasks", end - 1) == []
    [gone] = client.expire("Tasks", end)
    assert gone["task_id"]["S"] == task.task_id
