import asyncio
import json
import math
import weakref
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from taskhook.api import answers
from taskhook.core.errors import RejectedError
from taskhook.core.limits import MAX_LOOKED_AT, MAX_LOOKED_MB, MAX_REDELIVERED
from taskhook.core.message import MAX_VENDOR_DATA
from taskhook.core.ports import TaskPage
from taskhook.core.rate_limit import Allowance
from taskhook.core.record import Attempt, CallbackState, State
from taskhook.core.task import Task
from taskhook.core.vendor import FreeOutcome
from taskhook.tasks import commands, query, totals
from taskhook.tasks.account import Account
from taskhook.tasks.query import Filter, RedeliveryFilter, TotalsFilter
from tests.rows import each_row
from tests.world import (
    START,
    FakeVendor,
    MemoryControl,
    MemoryTasks,
    RecordingReporter,
    RecordingWake,
    VirtualClock,
    a_caller,
)

ALICE = a_caller("alice")


def a_task(number: int, caller: str = "alice", state: State = State.WATCHED) -> Task:
    """Make a task that was accepted `number` seconds after the start."""
    return Task(
        task_id=f"tk_{number:022d}",
        caller=caller,
        model="alibaba/wan2.2-animate-mix",
        request="{}",
        fingerprint="f",
        accepted_at=START + timedelta(seconds=number),
        state=state,
        reference="my reference",
        upstream_task_id="task-1",
    )


@pytest.fixture
async def tasks() -> MemoryTasks:
    """Give alice 25 tasks, every fifth queued, and bob one."""
    store = MemoryTasks()
    for number in range(25):
        await store.add(a_task(number, state=State.QUEUED if number % 5 == 0 else State.WATCHED))
    await store.add(a_task(99, "bob"))
    return store


async def listed(tasks: MemoryTasks, **parameters: str) -> tuple[list[int], str | None]:
    """List by query parameters; give the tasks' numbers."""
    found = await query.list_tasks(
        Filter.read(parameters), caller=ALICE, history=tasks, tasks=tasks, clock=VirtualClock()
    )
    return [int(task.task_id[3:]) for task in found.tasks], found.cursor


async def test_only_a_queued_task_is_taken_back(tasks: MemoryTasks) -> None:
    """What the vendor has is paid for; so it stays."""
    with pytest.raises(RejectedError) as rejected:
        await commands.cancel(
            a_task(1).task_id,
            caller=ALICE,
            tasks=tasks,
            vendors={"modellix": FakeVendor(VirtualClock())},
            allowances={},
            wake=None,
            clock=VirtualClock(),
            reporter=RecordingReporter(),
            retention=timedelta(days=7),
        )
    assert rejected.value.status == 409


# --- an answer that waits -------------------------------------------------------------------------


async def waited(tasks: MemoryTasks, clock: VirtualClock, task_id: str, seconds: float = 13) -> Task:
    """Wait for a task's end for so long."""
    until = clock.now() + timedelta(seconds=seconds)
    return await query.wait(task_id, caller=ALICE, tasks=tasks, clock=clock, until=until)


async def test_an_answer_comes_as_soon_as_the_task_has_ended(tasks: MemoryTasks) -> None:
    """At once where it has already, within a second of its end, and whole."""
    clock, task = VirtualClock(), await tasks.get(a_task(1).task_id)
    assert task is not None
    waiting = asyncio.create_task(waited(tasks, clock, task.task_id))
    await clock.sleep(timedelta(seconds=5.5))
    await tasks.swap(
        task, task.succeeded({"result": {}}, clock.now(), retention=timedelta(days=7), claim=clock.now())
    )
    ended = await waiting
    assert (ended.state, ended.request) == (State.SUCCESS, "{}")
    assert clock.now() - START <= timedelta(seconds=6.5)
    before = clock.now()
    assert await waited(tasks, clock, task.task_id) == ended
    assert clock.now() == before


@pytest.mark.parametrize("seconds", [-5, 0, 0.5, 1, 13])
async def test_an_answer_waits_no_longer_than_it_may(tasks: MemoryTasks, seconds: float) -> None:
    """Then the task is shown as it stands, however late the request was begun."""
    clock = VirtualClock()
    task = await waited(tasks, clock, a_task(1).task_id, seconds)
    assert (task.state, clock.now() - START <= timedelta(seconds=max(seconds, 0))) == (State.WATCHED, True)


async def test_what_is_anothers_is_not_waited_for(tasks: MemoryTasks) -> None:
    """It does not exist, at once."""
    clock = VirtualClock()
    for task_id in (a_task(99).task_id, a_task(50).task_id, "leadership"):
        with pytest.raises(RejectedError) as rejected:
            await waited(tasks, clock, task_id)
        assert rejected.value.status == 404
    assert clock.now() == START


@each_row("value", ["", "1", "yes", "TRUE", "20"])
def test_wait_is_true_or_false(value: str) -> None:
    """Anything else is named."""
    assert query.is_waiting({"wait": "true"})
    assert not query.is_waiting({"wait": "false"})
    assert not query.is_waiting({"other": "true"})
    with pytest.raises(RejectedError, match="'wait'"):
        query.is_waiting({"wait": value})


# --- the balance ----------------------------------------------------------------------------------


def an_account(vendor: FakeVendor, clock: VirtualClock, *, requests_per_minute: int = 1000) -> Account:
    """Make an account at that vendor."""
    return Account(
        vendor=vendor, allowance=Allowance(MemoryControl(), "modellix", requests_per_minute), clock=clock
    )


async def test_the_balance_is_asked_for_once_a_minute() -> None:
    """However many callers ask."""
    clock = VirtualClock()
    vendor = FakeVendor(clock)
    account = an_account(vendor, clock)
    for _ in range(5):
        assert await account.balance() == 12.3456
        clock.pass_by(timedelta(seconds=11))
    assert len(vendor.balances) == 1
    clock.pass_by(timedelta(seconds=10))
    assert await account.balance() == 12.3456
    assert len(vendor.balances) == 2


async def test_a_vendor_that_does_not_answer_is_not_asked_all_the_time() -> None:
    """A caller that asks again and again takes nothing of what submits need."""
    clock = VirtualClock()
    vendor = FakeVendor(clock, answered=False)
    account = an_account(vendor, clock)
    for _ in range(5):
        with pytest.raises(RejectedError) as rejected:
            await account.balance()
        assert (rejected.value.status, rejected.value.retry_after) == (503, 10)
    assert len(vendor.balances) == 1
    vendor.answered = True
    clock.pass_by(timedelta(seconds=11))
    assert await account.balance() == 12.3456


async def test_without_budget_the_balance_is_not_asked_for() -> None:
    """The next window has some."""
    clock = VirtualClock()
    vendor = FakeVendor(clock)
    account = an_account(vendor, clock, requests_per_minute=11)
    await account.allowance.take(clock.now())
    with pytest.raises(RejectedError) as rejected:
        await account.balance()
    assert (rejected.value.status, rejected.value.retry_after, vendor.balances) == (503, 6, [])
    clock.pass_by(timedelta(seconds=6))
    assert await account.balance() == 12.3456


class Scripted(FakeVendor):
    """A vendor that says of the balance what it is told."""

    said = FreeOutcome(answered=True)

    async def balance(self) -> FreeOutcome:
        """Say it."""
        return self.said


ODD_BALANCES: list[Any] = ["12.3", None, True, [1], {}, math.inf, math.nan]


@each_row(
    ("said", "status"),
    [
        (FreeOutcome(answered=True, status=401, body={"code": 401}), 502),
        (FreeOutcome(answered=True, status=402, body={"data": {"balance": 1}}), 502),
        (FreeOutcome(answered=True, status=404), 502),
        (FreeOutcome(answered=False, status=429), 503),
        (FreeOutcome(answered=False), 503),
        *(
            (FreeOutcome(answered=True, status=200, body={"data": {"balance": odd}}), 502)
            for odd in ODD_BALANCES
        ),
        (FreeOutcome(answered=True, status=200, body={"data": []}), 502),
    ],
)
async def test_what_is_no_balance_is_not_told_as_one(said: FreeOutcome, status: int) -> None:
    """A refusal of this deployment and an answer without a number are 502, no answer is a 503."""
    clock = VirtualClock()
    vendor = Scripted(clock)
    vendor.said = said
    with pytest.raises(RejectedError) as rejected:
        await an_account(vendor, clock).balance()
    assert (rejected.value.status, rejected.value.retry_after is not None) == (status, status == 503)


async def test_pages_hold_every_task_once_newest_first(tasks: MemoryTasks) -> None:
    """Following the cursor gives all of the caller's own tasks and no other's."""
    numbers: list[int] = []
    page, cursor = await listed(tasks, limit="10")
    while cursor is not None:
        numbers += page
        page, cursor = await listed(tasks, limit="10", cursor=cursor)
    assert numbers + page == list(range(24, -1, -1))


async def test_a_rare_filter_pages_on_to_the_end(tasks: MemoryTasks) -> None:
    """A page with few matches is filled from the next ones."""
    numbers, cursor = await listed(tasks, status="pending", limit="3")
    assert numbers == [20, 15, 10]
    assert cursor is not None
    assert (await listed(tasks, status="pending", limit="3", cursor=cursor)) == ([5, 0], None)


async def test_since_is_inclusive_and_until_exclusive(tasks: MemoryTasks) -> None:
    """The bounds are times of acceptance."""
    numbers, _ = await listed(tasks, since="2026-11-23T12:00:03Z", until="2026-11-23T12:00:06+00:00")
    assert numbers == [5, 4, 3]


async def test_bounds_beyond_all_tasks_are_no_bounds(tasks: MemoryTasks) -> None:
    """Times with more or fewer digits than a sort key has sort where they belong."""
    for year in ("2286-12-31", "2300-01-01", "9999-12-31"):
        assert len((await listed(tasks, until=year, limit="100"))[0]) == 25
        assert (await listed(tasks, since=year)) == ([], None)
    assert len((await listed(tasks, since="0001-01-01", limit="100"))[0]) == 25


@each_row(
    ("parameters", "name"),
    [
        ({"status": "done"}, "status"),
        ({"callback": "maybe"}, "callback"),
        ({"since": "yesterday"}, "since"),
        ({"until": "2026-13-01"}, "until"),
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "٣"}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": ""}, "cursor"),
        ({"page": "2"}, "page"),
    ],
)
def test_a_bad_filter_is_refused_by_name(parameters: dict[str, str], name: str) -> None:
    """The message names the parameter."""
    with pytest.raises(RejectedError, match=f"parameter '{name}'") as rejected:
        Filter.read(parameters)
    assert rejected.value.status == 400


async def test_anothers_task_does_not_exist(tasks: MemoryTasks) -> None:
    """Callers never see each other; odd ids are not even looked up."""
    for task_id in (a_task(99, "bob").task_id, "tk_", "leadership", "tk_" + "x" * 22):
        with pytest.raises(RejectedError) as rejected:
            await query.show(task_id, caller=ALICE, tasks=tasks)
        assert rejected.value.status == 404


async def test_a_page_ends_where_its_answer_would_grow_too_large() -> None:
    """Messages and requests count; the cursor goes on from there, and nothing is left out."""
    tasks = MemoryTasks()
    for number in range(60):
        await tasks.add(
            a_task(number).model_copy(update={"request": json.dumps({"image_url": "x" * 60_000})})
        )
    found: list[Task] = []
    cursor: str | None = None
    for _ in range(3):
        wanted = Filter(limit=100, cursor=cursor)
        page = await query.list_tasks(wanted, caller=ALICE, history=tasks, tasks=tasks, clock=VirtualClock())
        assert len(page.tasks) < 30
        found, cursor = found + page.tasks, page.cursor
    assert [task.task_id for task in found] == [a_task(number).task_id for number in reversed(range(60))]


def large(number: int) -> Task:
    """Make an ended task whose message takes 250 KB."""
    message = json.dumps({"data": {"result": {"x": "\u00e9" * 125_000}}}, ensure_ascii=False)
    return an_ended(number, DELIVERED).model_copy(update={"message": message})


async def test_where_a_page_is_cut_by_size_only_what_was_looked_at_for_it_counts() -> None:
    """Bytes count, not characters; following the cursor counts each task once."""
    tasks = MemoryTasks()
    for number in range(20):
        await tasks.add(large(number))
    looked_at, found, cursor = 0, 0, None
    for _ in range(10):
        wanted = Filter(limit=100, cursor=cursor, model="alibaba/*")
        page = await query.list_tasks(wanted, caller=ALICE, history=tasks, tasks=tasks, clock=VirtualClock())
        assert sum(len((task.message or "").encode()) for task in page.tasks) < 2_000_000
        assert page.looked_at == len(page.tasks)
        looked_at, found, cursor = looked_at + page.looked_at, found + len(page.tasks), page.cursor
        if cursor is None:
            break
    assert (looked_at, found) == (20, 20)


async def test_large_tasks_are_looked_at_no_further_than_can_be_read() -> None:
    """A count or a rare filter reads 8 MB and a page, and says how far it came."""
    tasks = MemoryTasks()
    for number in range(120):
        await tasks.add(large(number))
    told = await counted(tasks)
    assert 30 <= tasks.read <= 60
    assert (told["accepted"], told["looked_at"]["tasks"]) == (tasks.read, tasks.read)
    assert told["next_cursor"] is not None
    tasks.read = 0
    wanted = Filter(search="none")
    page = await query.list_tasks(wanted, caller=ALICE, history=tasks, tasks=tasks, clock=VirtualClock())
    assert 30 <= tasks.read <= 60
    assert (page.looked_at, page.looked_back_to) == (tasks.read, a_task(120 - tasks.read).accepted_at)


async def test_a_slow_table_is_looked_at_for_a_few_seconds() -> None:
    """Then the answer is what was found so far; the cursor goes on, also of a redelivery."""
    world = RedeliveryWorld()
    for number in range(800):
        await world.tasks.add(an_ended(number, UNDELIVERED))
    read = world.tasks.page

    async def slowly(*where: str, **limits: Any) -> TaskPage:
        world.clock.pass_by(timedelta(seconds=1.5))
        return await read(*where, **limits)

    world.tasks.page = slowly  # type: ignore[method-assign]
    stored, clock = world.tasks, world.clock
    listed = await query.list_tasks(
        Filter(search="none"), caller=ALICE, history=stored, tasks=stored, clock=clock
    )
    assert (listed.cursor is not None, listed.looked_at) == (True, 225)
    told = await totals.count(TotalsFilter(), caller=ALICE, history=stored, clock=clock)
    assert (told.looked.cursor is not None, told.looked.at) == (True, 225)
    count, cursor = await world.many(limit=500)
    assert (count, cursor is not None) == (225, True)


async def test_the_answer_is_the_vendors_plus_what_only_we_know() -> None:
    """A running task shows status, upstream id, reference and the callback's state."""
    answer = answers.task_answer(a_task(1)).body()
    assert (answer["code"], answer["message"]) == (0, "success")
    assert answer["data"] == {
        "status": "processing",
        "task_id": a_task(1).task_id,
        "vendor": "modellix",
        "model_id": "alibaba/wan2.2-animate-mix",
        "upstream_task_id": "task-1",
        "reference": "my reference",
        "callback": {"state": CallbackState.NONE, "attempts": 0, "next_attempt_at": None, "log": []},
        "created_at": 1795435201000,
        "stage": "watched",
        "request": {},
    }


def test_the_answer_has_the_times_that_have_come_and_the_callbacks_url() -> None:
    """In the form of the vendor's own times."""
    times = {"submitted_at": START, "taken_at": START + timedelta(seconds=1)}
    data = answers.task_answer(
        a_task(1).model_copy(update={**times, "callback_url": "https://x.example.com/"})
    ).body()["data"]
    assert (data["submitted_at"], data["taken_at"], data["callback_url"]) == (
        1795435200000,
        1795435201000,
        "https://x.example.com/",
    )
    assert "ended_at" not in data


async def test_an_ended_tasks_answer_holds_the_callbacks_data() -> None:
    """What the receiver gets and what a poll gets are the same."""
    data = {
        "result": {"resources": [{"url": "https://x.example.com/1.mp4"}]},
        "billing": {"amount": "0.2400"},
    }
    ended = a_task(1).succeeded(data, START, retention=timedelta(days=7), claim=START)
    answer = answers.task_answer(ended).body()
    assert answer["data"]["status"] == "success"
    assert answer["data"]["result"] == data["result"]
    assert answer["data"]["billing"] == {"amount": "0.2400"}


# --- delivered again ------------------------------------------------------------------------------

RETENTION = timedelta(days=7)
UNDELIVERED, DELIVERED = CallbackState.UNDELIVERED, CallbackState.DELIVERED


def an_ended(number: int, callback: CallbackState, caller: str = "alice") -> Task:
    """Make an ended task whose callback stands so; where it has no say, none is wanted."""
    task = a_task(number, caller).model_copy(
        update={
            "callback_url": None if callback is CallbackState.NONE else "https://r.example.com/",
            "callback": CallbackState.NONE if callback is CallbackState.NONE else CallbackState.WAITING,
        }
    )
    ended = task.succeeded({}, START, retention=RETENTION, claim=START)
    if callback is CallbackState.NONE:
        return ended
    made = Attempt(at=START, status=200 if callback is DELIVERED else 500)
    retry_at = START + timedelta(hours=20) if callback is CallbackState.WAITING else None
    return ended.attempted(
        made, delivered=callback is DELIVERED, retry_at=retry_at, now=START, retention=RETENTION
    )


# --- searched -------------------------------------------------------------------------------------


def found_by(task: Task, **parameters: str) -> bool:
    """Tell whether a listing with these parameters finds a task."""
    return Filter.read(parameters).matches(task)


@each_row(
    ("parameters", "finds"),
    [
        ({"reference": "my reference"}, True),
        ({"reference": "my"}, False),
        ({"reference": "My reference"}, False),
        ({"reference_prefix": "my ref"}, True),
        ({"reference_prefix": "my reference"}, True),
        ({"reference_prefix": "reference"}, False),
        ({"reference_prefix": "My"}, False),
        ({"search": "MY REF"}, True),
        ({"search": "reference"}, False),
        ({"search": "task-1"}, True),
        ({"search": "task-"}, False),
        ({"search": "tk_0000000000000000000001"}, True),
        ({"upstream_task_id": "task-1"}, True),
        ({"upstream_task_id": "TASK-1"}, False),
        ({"task_id": "tk_0000000000000000000001"}, True),
        ({"task_id": "tk_0000000000000000000002"}, False),
        ({"vendor": "modellix"}, True),
        ({"vendor": "runway"}, False),
        ({"model": "alibaba/wan2.2-animate-mix"}, True),
        ({"model": "alibaba/*"}, True),
        ({"model": "alibaba"}, False),
        ({"model": "ALIBABA/*"}, False),
        ({"host": "r.example.com"}, True),
        ({"host": "R.Example.com:8443"}, True),
        ({"host": "r.example.com:443"}, False),
        ({"host": "example.com"}, False),
        ({"search": "my", "vendor": "runway"}, False),
        ({"search": "my", "status": "processing", "model": "*"}, True),
    ],
)
def test_a_task_is_found_by_what_is_asked_for(parameters: dict[str, str], finds: bool) -> None:  # noqa: FBT001  # the table's
    """Whole words and beginnings; only `search` does not care about upper and lower case."""
    task = a_task(1).model_copy(update={"callback_url": "https://r.example.com:8443/hook"})
    assert found_by(task, **parameters) is finds


def test_all_filters_together_fit_into_a_line_of_http() -> None:
    """However their characters are written: servers and gateways take 8,190 bytes, or some more."""
    longest = {"search": 128, "reference": 200, "reference_prefix": 128}
    words = {"upstream_task_id": 255, "model": 128, "host": 128, "vendor": 32, "task_id": 32}
    query = {name: "🎬" * most for name, most in longest.items()}
    query |= {name: "%" * most for name, most in words.items()}
    query |= {"status": "processing", "callback": "undelivered", "limit": "100"}
    query |= dict.fromkeys(("since", "until"), "2026-11-23T15:04:05.123456+00:00")
    query |= {"cursor": a_task(1).created_key}
    Filter.read(query)
    assert len(urlencode(query)) < 8000
    for name, most in (longest | words).items():
        with pytest.raises(RejectedError, match=f"parameter '{name}'"):
            Filter.read({name: "x" * (most + 1)})


@each_row("name", ["reference", "reference_prefix", "search", "upstream_task_id", "model", "host"])
def test_a_task_without_it_is_found_by_none(name: str) -> None:
    """Without reference, vendor's id and URL, nothing that is asked for fits; an empty word is refused."""
    bare = a_task(1).model_copy(update={"reference": None, "upstream_task_id": None, "model": "x"})
    assert not found_by(bare, **{name: "y"})
    with pytest.raises(RejectedError, match=f"parameter '{name}'"):
        Filter.read({name: ""})


def failing(number: int, *statuses: int | None, callback: CallbackState = CallbackState.WAITING) -> Task:
    """Make an ended task whose receiver has answered so; None is no answer."""
    log = tuple(Attempt(at=START, status=status, error=None if status else "dns") for status in statuses)
    return an_ended(number, callback).model_copy(update={"log": log, "attempts": len(log)})


@each_row(
    ("task", "words"),
    [
        (a_task(1), {"none"}),
        (a_task(1).model_copy(update={"callback": CallbackState.WAITING}), {"pending", "waiting"}),
        (failing(1), {"pending", "waiting"}),
        (failing(1, 503), {"retrying", "waiting"}),
        (failing(1, 204, None), {"retrying", "waiting"}),
        (failing(1, 503, 204), {"pending", "waiting"}),
        (failing(1, 500, callback=CallbackState.UNDELIVERED), {"failed", "undelivered"}),
        (failing(1, 500, 200, callback=CallbackState.DELIVERED), {"delivered"}),
    ],
)
def test_where_a_callback_stands_has_peoples_words(task: Task, words: set[str]) -> None:
    """And the stored ones, which are older."""
    everything = ("none", "pending", "retrying", "delivered", "failed", "waiting", "undelivered")
    assert {word for word in everything if found_by(task, callback=word)} == words


async def test_a_task_is_read_by_its_id(tasks: MemoryTasks) -> None:
    """Nothing is looked through for it; another caller's is not there, nor what other filters leave out."""
    mine, other = a_task(3).task_id, a_task(99, "bob").task_id
    for name in ("task_id", "search"):
        tasks.read = 0
        assert await listed(tasks, **{name: mine}) == ([3], None)
        assert tasks.read == 1
        assert await listed(tasks, **{name: mine, "status": "failed"}) == ([], None)
        assert await listed(tasks, **{name: mine, "until": "2026-11-23T12:00:03Z"}) == ([], None)
        assert await listed(tasks, **{name: other}) == ([], None)
    assert await listed(tasks, task_id="tk_nothing") == ([], None)


@pytest.mark.parametrize("limit", [1, 20, 100])
async def test_a_search_reads_a_bounded_number_and_says_so(limit: int) -> None:
    """At most 1,000 items with the requests; the cursor goes on, and in the end each is found once."""
    tasks = MemoryTasks()
    for number in range(2500):
        rare = number % 200 == 0
        await tasks.add(
            a_task(number).model_copy(update={"reference": f"{'rare' if rare else 'other'}/{number}"})
        )
    found: list[str | None] = []
    cursor: str | None = None
    for _ in range(20):
        tasks.read = 0
        wanted = Filter(search="RARE/", limit=limit, cursor=cursor)
        page = await query.list_tasks(wanted, caller=ALICE, history=tasks, tasks=tasks, clock=VirtualClock())
        assert tasks.read <= 1000
        assert page.looked_at <= MAX_LOOKED_AT
        found += [task.reference for task in page.tasks]
        assert all(task.request == "{}" for task in page.tasks)
        cursor = page.cursor
        if cursor is None:
            break
        shown = answers.task_list(page).body()
        assert shown["looked_at"]["tasks"] == page.looked_at
        assert shown["looked_at"]["back_to"] == answers.iso(page.looked_back_to or START)
    assert cursor is None
    assert found == [f"rare/{number}" for number in range(2400, -1, -200)]


async def test_a_plain_page_reads_no_more_than_it_shows(tasks: MemoryTasks) -> None:
    """Each task and its request."""
    assert len((await listed(tasks, limit="7"))[0]) == 7
    assert tasks.read == 14
    for number in range(25, 60):
        await tasks.add(a_task(number))
    tasks.read = 0
    assert len((await listed(tasks, limit="40"))[0]) == 40
    assert tasks.read == 80


# --- counted --------------------------------------------------------------------------------------


async def counted(tasks: MemoryTasks, **parameters: str) -> dict[str, Any]:
    """Count; give the answer."""
    wanted = TotalsFilter.read(parameters)
    return answers.totals(
        await totals.count(wanted, caller=ALICE, history=tasks, clock=VirtualClock())
    ).body()


async def test_totals_say_where_tasks_stand_and_what_they_cost() -> None:
    """By state of the task and of the callback, a sum for each currency, and how many were looked at."""
    tasks = MemoryTasks()
    billing: list[Any] = [{"amount": "0.2400"}, {"amount": 0.1}, {"credits": 25}, {"amount": "x"}, None, 7]
    states = [DELIVERED, DELIVERED, UNDELIVERED, CallbackState.WAITING, CallbackState.NONE, DELIVERED]
    for number, (said, callback) in enumerate(zip(billing, states, strict=True)):
        task = failing(number) if callback is CallbackState.WAITING else an_ended(number, callback)
        await tasks.add(task.model_copy(update={"message": json.dumps({"data": {"billing": said}})}))
    await tasks.add(failing(6, 503).model_copy(update={"state": State.FAILED}))
    await tasks.add(a_task(7))
    await tasks.add(a_task(8, "bob"))
    told = await counted(tasks)
    assert {name: told[name] for name in ("accepted", "running", "succeeded", "failed")} == {
        "accepted": 8,
        "running": 1,
        "succeeded": 6,
        "failed": 1,
    }
    assert {name: told[name] for name in ("delivered", "pending", "retrying", "exhausted")} == {
        "delivered": 3,
        "pending": 1,
        "retrying": 1,
        "exhausted": 1,
    }
    assert told["callback_success"] == 0.6
    assert told["costs"] == [
        {"amount": "0.3400", "currency": "USD"},
        {"amount": "25", "currency": "credits"},
    ]
    assert (told["looked_at"]["tasks"], told["next_cursor"]) == (8, None)
    some = await counted(tasks, since="2026-11-23T12:00:02Z", until="2026-11-23T12:00:05Z")
    assert (some["accepted"], some["delivered"], some["callback_success"]) == (3, 0, 0.0)
    assert (await counted(tasks, since="2027-01-01"))["callback_success"] is None
    assert (await counted(tasks, host="r.example.com"))["accepted"] == 6
    assert (await counted(tasks, vendor="runway"))["accepted"] == 0


async def test_totals_go_on_where_they_are_cut_off() -> None:
    """A call reads a bounded number; its parts add up."""
    tasks = MemoryTasks()
    for number in range(2000):
        await tasks.add(an_ended(number, DELIVERED))
    parts: list[int] = []
    cursor: str | None = "9" * 13 + "_tk_" + "z" * 22
    while cursor is not None:
        tasks.read = 0
        told = await counted(tasks, cursor=cursor)
        assert tasks.read == told["looked_at"]["tasks"] <= MAX_LOOKED_AT
        parts.append(told["delivered"])
        cursor = told["next_cursor"]
    assert parts == [900, 900, 200]


NO_AMOUNTS: list[Any] = [True, None, "", "NaN", "Infinity", "1e400", "9" * 50, {}, []]


@each_row(
    ("billing", "cost"),
    [
        ({"amount": "0.2400", "currency": "EUR"}, ("0.2400", "EUR")),
        ({"amount": "0.2400"}, ("0.2400", "USD")),
        ({"amount": 3, "status": "succeeded"}, ("3", "USD")),
        ({"credits": 2.5}, ("2.5", "credits")),
        ({"amount": "1e-7"}, ("0.0000001", "USD")),
        *(({"amount": odd}, None) for odd in NO_AMOUNTS),
        *(
            ({"amount": f"{sign}1e-{zeros}"}, None)
            for sign in ("", "-")
            for zeros in (40, 50_000_000, 10**15)
        ),
        ({"amount": "0e-50000000"}, None),
        ({"amount": "1." + "0" * 100_000}, None),
        ({"amount": "1", "currency": ""}, None),
        ({"amount": "1", "currency": {"x": 1}}, None),
        ({"amount": "1", "currency": "x" * 21}, None),
        ({}, None),
        ([], None),
        ("0.24", None),
    ],
)
def test_a_cost_is_said_where_the_vendor_says_one(billing: Any, cost: tuple[str, str] | None) -> None:
    """An amount of something; what is none is no cost, and stays in `billing`."""
    task = an_ended(1, DELIVERED)
    task = task.model_copy(update={"message": json.dumps({"data": {"billing": billing, "cost": "theirs"}})})
    data = answers.task_answer(task).body()["data"]
    assert data["billing"] == billing
    assert data.get("cost") == (None if cost is None else {"amount": cost[0], "currency": cost[1]})
    other = answers.task_answer(task.model_copy(update={"vendor": "other"})).body()["data"]
    assert ("cost" in other) == (cost is not None and cost[1] != "USD")


# --- put back to work -----------------------------------------------------------------------------


class RedeliveryWorld:
    """What redelivery needs, in memory."""

    def __init__(self) -> None:
        self.tasks, self.control = MemoryTasks(), MemoryControl()
        self.wake = RecordingWake()
        self.clock = VirtualClock(START + timedelta(hours=2))
        self.reported = RecordingReporter()

    async def one(self, task: Task) -> Task:
        """Redeliver one."""
        return await commands.redeliver(
            task.task_id,
            caller=ALICE,
            tasks=self.tasks,
            rate=self.control,
            wake=self.wake,
            clock=self.clock,
            reporter=self.reported,
        )

    async def redelivery(self, **body: Any) -> commands.Redelivery:
        """Redeliver many."""
        return await commands.redeliver_many(
            RedeliveryFilter.read(body),
            caller=ALICE,
            history=self.tasks,
            tasks=self.tasks,
            rate=self.control,
            wake=self.wake,
            clock=self.clock,
            reporter=self.reported,
        )

    async def many(self, **body: Any) -> tuple[int, str | None]:
        """Redeliver many; give how many, and the cursor."""
        done = await self.redelivery(**body)
        return done.count, done.cursor

    def waiting(self) -> list[int]:
        """Tell which tasks wait to be delivered within an hour and a half."""
        soon = self.clock.now() + timedelta(minutes=90)
        found = [
            task
            for task in self.tasks.items.values()
            if task.next_attempt_at is not None and task.next_attempt_at < soon
        ]
        return sorted(int(task.task_id[3:]) for task in found)

    def due(self) -> list[timedelta]:
        """Tell from now on when messages go out again."""
        times = [task.next_attempt_at for task in self.tasks.items.values()]
        return sorted(at - self.clock.now() for at in times if at is not None)


async def test_of_many_large_messages_few_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred of 256 KB each, no more than of a look at them."""
    world, seen, most = RedeliveryWorld(), list[weakref.ref[Task]](), 0
    for number in range(100):
        large = an_ended(number, UNDELIVERED).model_copy(update={"message": "x" * MAX_VENDOR_DATA})
        await world.tasks.add(large)
    swap = world.tasks.swap

    async def watched(old: Task, new: Task) -> Task:
        nonlocal most
        stored = (await swap(old, new)).model_copy()
        seen.extend((weakref.ref(old), weakref.ref(stored)))
        most = max(most, sum(one() is not None for one in seen))
        return stored

    monkeypatch.setattr(world.tasks, "swap", watched)
    assert (await world.redelivery(limit=500)).count == 100
    assert most * MAX_VENDOR_DATA <= 3 * MAX_LOOKED_MB * 1024 * 1024


@pytest.mark.parametrize("callback", [UNDELIVERED, DELIVERED, CallbackState.WAITING])
async def test_a_message_is_delivered_again_by_a_fresh_round(callback: CallbackState) -> None:
    """Whether it came, was given up, or waits for hours: due now, the same message, the poller woken."""
    world = RedeliveryWorld()
    task = await world.tasks.add(an_ended(1, callback))
    again = await world.one(task)
    assert again == world.tasks.items[task.task_id]
    assert (again.callback, again.next_attempt_at, again.expires_at) == (
        CallbackState.WAITING,
        world.clock.now(),
        None,
    )
    assert (again.message, again.webhook_id, again.attempts, again.attempts_this_round) == (
        task.message,
        task.webhook_id,
        1,
        0,
    )
    assert (world.wake.task_ids, world.reported.count("callback.redelivered")) == ([task.task_id], 1)


async def test_without_a_callback_there_is_nothing_to_deliver_again() -> None:
    """The conflict says why, and nothing is written."""
    world = RedeliveryWorld()
    refused = an_ended(3, UNDELIVERED).model_copy(update={"callback": CallbackState.NONE})
    now = world.clock.now()
    claimed = an_ended(4, CallbackState.WAITING).claim_delivery(until=now + timedelta(seconds=1))
    for task, why in (
        (a_task(1), "has not ended, it is processing"),
        (an_ended(2, CallbackState.NONE), "has no callback URL"),
        (refused, "refused in the answer to its submit"),
        (claimed, "being delivered right now"),
    ):
        stored = await world.tasks.add(task)
        with pytest.raises(RejectedError, match=why) as rejected:
            await world.one(stored)
        assert rejected.value.status == 409
        assert world.tasks.items[task.task_id] == stored
    assert world.wake.task_ids == []


async def test_anothers_message_cannot_be_delivered_again() -> None:
    """It does not exist, by id or in bulk."""
    world = RedeliveryWorld()
    task = await world.tasks.add(an_ended(1, UNDELIVERED, "bob"))
    with pytest.raises(RejectedError) as rejected:
        await world.one(task)
    assert rejected.value.status == 404
    assert await world.many() == (0, None)
    assert world.tasks.items[task.task_id] == task


async def test_a_redelivery_that_is_overtaken_delivers_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that is claimed between the read and the write wins."""
    world = RedeliveryWorld()
    task = await world.tasks.add(an_ended(1, CallbackState.WAITING))
    read = world.tasks.get

    async def read_and_be_overtaken(task_id: str) -> Task | None:
        found = await read(task_id)
        assert found is not None
        await world.tasks.swap(found, found.claim_delivery(until=world.clock.now() + timedelta(seconds=30)))
        return found

    monkeypatch.setattr(world.tasks, "get", read_and_be_overtaken)
    with pytest.raises(RejectedError, match="right now"):
        await world.one(task)
    assert world.tasks.items[task.task_id].claimed(world.clock.now())


async def test_many_are_delivered_again_by_state_and_time() -> None:
    """Only what is asked for: by default what was given up; one wake for all."""
    world = RedeliveryWorld()
    for number in range(12):
        await world.tasks.add(an_ended(number, UNDELIVERED if number % 2 else DELIVERED))
    await world.tasks.add(an_ended(12, CallbackState.WAITING))
    await world.tasks.add(an_ended(13, CallbackState.NONE))
    assert await world.many(since="2026-11-23T12:00:03Z", until="2026-11-23T12:00:09Z") == (3, None)
    assert world.waiting() == [3, 5, 7]
    assert len(world.wake.task_ids) == 1
    assert await world.many(state="delivered", since="2026-11-23T12:00:10Z") == (1, None)
    assert world.waiting() == [3, 5, 7, 10]
    assert await world.many(since="2027-01-01") == (0, None)
    assert len(world.wake.task_ids) == 2


async def test_what_is_retrying_is_sent_now_once_and_by_host() -> None:
    """Not what is being delivered right now, was asked for already, or is not due for the first time."""
    world = RedeliveryWorld()
    for number in range(4):
        await world.tasks.add(failing(number, 503))
    other = {"callback_url": "https://other.example.com/"}
    await world.tasks.add(failing(4, None).model_copy(update=other))
    now = world.clock.now() + timedelta(seconds=20)
    await world.tasks.add(failing(5, 500).model_copy(update={"claimed_until": now}))
    await world.tasks.add(failing(6))
    await world.tasks.add(failing(7, 500, callback=UNDELIVERED))
    assert await world.many(state="retrying", host="OTHER.example.com") == (1, None)
    assert await world.many(state="retrying") == (4, None)
    assert await world.many(state="retrying") == (0, None)
    assert world.due()[:5] == [timedelta(seconds=number) for number in range(5)]
    assert await world.many(state="failed", host="other.example.com") == (0, None)
    assert await world.many(state="failed") == (1, None)
    again = world.tasks.items[failing(0).task_id]
    assert (again.callback, again.attempts, again.attempts_this_round) == (CallbackState.WAITING, 1, 0)
    assert world.tasks.items[failing(5).task_id].claimed_until == now


async def test_a_redelivery_reads_a_bounded_number() -> None:
    """However rare what is asked for."""
    world = RedeliveryWorld()
    for number in range(1500):
        await world.tasks.add(an_ended(number, DELIVERED))
    world.tasks.read = 0
    await world.many()
    assert world.tasks.read <= 1000


async def test_redeliveries_go_out_a_second_apart() -> None:
    """However many calls ask: nine bulk calls are no burst; each says when its last message is due."""
    world = RedeliveryWorld()
    for number in range(120):
        await world.tasks.add(an_ended(number, UNDELIVERED))
    done = await world.redelivery(limit=50)
    assert (done.count, done.last_attempt_at) == (50, world.clock.now() + timedelta(seconds=49))
    done = await world.redelivery(limit=500)
    assert (done.count, done.last_attempt_at) == (70, world.clock.now() + timedelta(seconds=119))
    for _ in range(7):
        assert await world.redelivery(limit=500) == commands.Redelivery(
            count=0, last_attempt_at=None, cursor=None
        )
    again = await world.one(world.tasks.items["tk_" + "0" * 22])  # waits, and is asked for again
    assert again.next_attempt_at == world.clock.now() + timedelta(seconds=119)
    assert world.due() == [timedelta(seconds=number) for number in range(120)]


async def test_what_waits_is_never_sent_later_for_being_asked_for() -> None:
    """One by one or in bulk, where an hour of the caller's rate is taken: the earlier time holds."""
    world = RedeliveryWorld()
    now, minute = world.clock.now(), timedelta(minutes=1)
    for number in range(2):
        await world.tasks.add(failing(number, 503).model_copy(update={"next_attempt_at": now + minute}))
    dead = failing(2, 503).model_copy(update={"next_attempt_at": None, "claimed_until": now - minute})
    await world.tasks.add(dead)  # of a process that died: due since its claim is over
    await world.tasks.add(failing(3, 503))  # at its own time in 20 hours
    await world.control.reserve_deliveries("alice", 1800, now=now, latest=now)
    assert (await world.one(world.tasks.items[failing(0).task_id])).next_attempt_at == now + minute
    assert (await world.redelivery(state="retrying")).count == 3
    assert world.due() == [-minute, minute, minute, timedelta(seconds=1801)]


async def test_a_rate_that_was_not_used_gives_no_burst() -> None:
    """After an hour the first message is due at once, the second a second later; other callers are apart."""
    world = RedeliveryWorld()
    for number in range(4):
        await world.tasks.add(an_ended(number, UNDELIVERED))
    await world.redelivery(limit=2)
    world.clock.pass_by(timedelta(hours=1))
    await world.control.reserve_deliveries("bob", 500, now=world.clock.now(), latest=world.clock.now())
    done = await world.redelivery(limit=2)
    assert done.last_attempt_at == world.clock.now() + timedelta(seconds=1)


async def test_no_more_than_an_hour_of_the_rate_is_reserved() -> None:
    """A bulk call stops there, its cursor goes on later; what cannot begin is a 429 with a time to come."""
    world = RedeliveryWorld()
    now = world.clock.now()
    for number in range(300):
        await world.tasks.add(an_ended(number, UNDELIVERED))
    await world.control.reserve_deliveries("alice", 3550, now=now, latest=now)
    done = await world.redelivery(limit=500)
    assert (done.count, done.last_attempt_at) == (125, now + timedelta(seconds=3674))
    for refused in (world.redelivery(cursor=done.cursor), world.one(world.tasks.items["tk_" + "0" * 22])):
        with pytest.raises(RejectedError) as rejected:
            await refused
        assert (rejected.value.status, rejected.value.retry_after) == (429, 75)
    world.clock.pass_by(timedelta(seconds=75))
    assert (await world.redelivery(cursor=done.cursor)).count == 25
    assert world.tasks.items["tk_" + "0" * 22].callback is UNDELIVERED


@each_row("limit", [1, 7, 100, 500])
async def test_following_the_cursor_delivers_each_once(limit: int) -> None:
    """Whatever the page, every message goes out again once."""
    world = RedeliveryWorld()
    for number in range(250):
        await world.tasks.add(an_ended(number, UNDELIVERED if number % 5 else DELIVERED))
    counts: list[int] = []
    cursor: str | None = None
    while not counts or cursor is not None:
        count, cursor = await world.many(limit=limit, **({"cursor": cursor} if cursor else {}))
        counts.append(count)
    assert (sum(counts), max(counts)) == (200, min(limit, 200))
    assert world.waiting() == [number for number in range(250) if number % 5]
    assert world.tasks.writes == 250 + 200


async def test_a_rare_state_is_looked_for_a_bounded_time() -> None:
    """Then the answer is what was found so far, and the cursor goes on."""
    world = RedeliveryWorld()
    for number in range(1500):
        await world.tasks.add(an_ended(number, DELIVERED if number else UNDELIVERED))
    count, cursor = await world.many()
    assert count == 0
    assert cursor is not None
    assert await world.many(cursor=cursor) == (1, None)


@each_row(
    ("body", "name"),
    [
        ({"state": "waiting"}, "state"),
        ({"state": 1}, "state"),
        ({"since": 5}, "since"),
        ({"since": "yesterday"}, "since"),
        ({"until": []}, "until"),
        ({"limit": 0}, "limit"),
        ({"limit": MAX_REDELIVERED + 1}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": "5"}, "limit"),
        ({"limit": 1.5}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": 1}, "cursor"),
        ({"status": "failed"}, "status"),
    ],
)
def test_a_bad_redelivery_is_refused_by_name(body: dict[str, Any], name: str) -> None:
    """The message names the field."""
    with pytest.raises(RejectedError, match=f"parameter '{name}'") as rejected:
        RedeliveryFilter.read(body)
    assert rejected.value.status == 400


@each_row(
    ("parameters", "sentence"),
    [
        ({"limit": "101"}, "'limit' must be less than or equal to 100"),
        *(
            ({"limit": odd}, "'limit' must be a whole number, written with digits")
            for odd in ("x", "5.0", "5e0", " 5", "+5", "1_0", "\u0665", "", "-1")
        ),
        ({"status": "done"}, "'status' must be 'pending', 'processing', 'success' or 'failed'"),
        ({"since": "soon"}, "'since' must be an ISO 8601 time such as 2026-11-23T15:04:05Z"),
        ({"cursor": "x"}, "'cursor' must be the next_cursor of an answer"),
        (
            {"page": "2"},
            (
                "'page' is not known; a listing takes since, until, cursor, vendor, model, host, status, "
                "callback, search, task_id, upstream_task_id, reference, reference_prefix, limit"
            ),
        ),
    ],
)
def test_the_message_says_what_would_be_right(parameters: dict[str, str], sentence: str) -> None:
    """A sentence about the parameter, and one for each where several are wrong."""
    with pytest.raises(RejectedError) as rejected:
        Filter.read(parameters)
    assert rejected.value.message == f"Invalid parameters: parameter {sentence}"
    with pytest.raises(RejectedError) as rejected:
        Filter.read({"callback": "?"} | parameters)
    assert (
        f"; parameter {sentence}" in rejected.value.message
        or f"parameter {sentence}; " in rejected.value.message
    )
