import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from standardwebhooks.webhooks import Webhook

from taskhook.core.caller import Credential
from taskhook.core.errors import RejectedError, StaleTaskError, StoreUnavailableError
from taskhook.core.message import Json
from taskhook.core.record import CallbackState, State
from taskhook.core.reply import Reply
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import Task
from taskhook.delivery import samples  # pytest would take `TestResult` for a test
from taskhook.delivery.attempt import DeliveryPorts, attempt
from taskhook.delivery.hosts import FAILURES, Hosts
from tests.rows import each_row
from tests.world import (
    START,
    FakeReceivers,
    MemoryCallers,
    MemoryControl,
    MemoryTasks,
    RecordingReporter,
    VirtualClock,
    a_caller,
)

ALICE = a_caller("alice")
RETENTION = timedelta(days=7)
JITTER = 0.1


@dataclass
class DeliveryWorld:
    """What a delivery needs, in memory, with one ended task."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    tasks: MemoryTasks = field(default_factory=MemoryTasks)
    control: MemoryControl = field(default_factory=MemoryControl)
    reported: RecordingReporter = field(default_factory=RecordingReporter)

    def __post_init__(self) -> None:
        self.receivers = FakeReceivers(self.clock)
        self.ports = DeliveryPorts(
            tasks=self.tasks,
            callbacks=self.receivers,
            callers=MemoryCallers(ALICE),
            hosts=Hosts(self.clock),
            clock=self.clock,
            reporter=self.reported,
            retention=RETENTION,
        )

    async def ended(self) -> Task:
        """Store a task that has just ended, its first delivery claimed."""
        task = Task(
            task_id="tk_1",
            caller="alice",
            model="alibaba/wan2.2-animate-mix",
            request="{}",
            fingerprint="",
            callback_url="https://r.example.com/hook",
            accepted_at=START,
            state=State.WATCHED,
            callback=CallbackState.WAITING,
        )
        return await self.tasks.add(
            task.succeeded({}, START, retention=RETENTION, claim=START + timedelta(seconds=30))
        )

    async def through(self, task: Task, *replies: Reply | int | str) -> Task:
        """Make attempts at their times until the receiver has said all this."""
        for said in replies:
            reply = (
                said
                if isinstance(said, Reply)
                else Reply(status=said)
                if isinstance(said, int)
                else Reply(error=said)
            )
            self.receivers.replies = deque([reply])
            assert task.callback is CallbackState.WAITING
            if task.next_attempt_at is not None:
                self.clock.pass_by(task.next_attempt_at - self.clock.now())
            task = await attempt(task, self.ports)
        return task

    def wait(self, task: Task) -> timedelta:
        """Tell how long the next attempt is off."""
        assert task.next_attempt_at is not None
        return task.next_attempt_at - self.clock.now()


def about(planned: timedelta) -> tuple[timedelta, timedelta]:
    """Give the bounds that jitter leaves."""
    return planned * (1 - JITTER), planned * (1 + JITTER)


@pytest.fixture
def world() -> DeliveryWorld:
    """Give a fresh world."""
    return DeliveryWorld()


SECONDS, MINUTES, HOURS = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


@pytest.mark.parametrize(
    ("replies", "planned"),
    [
        ((500,), 5 * SECONDS),
        (("dns",), 5 * SECONDS),
        ((302,), 5 * SECONDS),
        ((404, "timeout"), 5 * MINUTES),
        ((409,), 10 * SECONDS),
        ((425,) * 5, 10 * SECONDS),
        ((409,) * 6, 5 * SECONDS),
        ((409, 425, 409, 425, 409, 500), 5 * SECONDS),
        ((500, 409, 500), 5 * MINUTES),
        ((410,), HOURS),
        ((410, 500), 5 * MINUTES),
        ((500, 500, 410), HOURS),
        ((503,) * 9, 24 * HOURS),
        ((503,) * 9 + (409,), 10 * SECONDS),
    ],
)
async def test_what_follows_from_what_a_receiver_said(
    world: DeliveryWorld, replies: tuple[int | str, ...], planned: timedelta
) -> None:
    """The wait after each story, by the schedule or by the answer."""
    task = await world.through(await world.ended(), *replies)
    low, high = about(planned)
    assert low <= world.wait(task) <= high
    assert task.attempts == len(replies)


@pytest.mark.parametrize(
    "replies",
    [
        (410, 410),
        (410, 503, "reset", 410),
        (409, 410, 425, 410),
        ("dns",) * 10,
        (500, 302, 404, *[503] * 7),
        (503,) * 9 + (410,),
    ],
)
async def test_what_ends_it(world: DeliveryWorld, replies: tuple[int | str, ...]) -> None:
    """Gone twice, or ten counted attempts."""
    task = await world.through(await world.ended(), *replies)
    assert (task.callback, task.work_key, task.log[-1].next_at) == (CallbackState.UNDELIVERED, None, None)


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        (SECONDS, 4.5 * SECONDS, 5.5 * SECONDS),
        (2 * MINUTES, 2 * MINUTES, 2 * MINUTES),
        (5 * HOURS, 10 * MINUTES, 10 * MINUTES),
    ],
)
async def test_a_receiver_may_ask_for_patience(
    world: DeliveryWorld, asked: timedelta, least: timedelta, most: timedelta
) -> None:
    """Up to ten minutes at first, and never less than the schedule's own wait."""
    task = await world.through(await world.ended(), Reply(status=503, retry_after=asked))
    assert least <= world.wait(task) <= most


async def test_a_message_asked_for_again_has_a_round_of_its_own(world: DeliveryWorld) -> None:
    """The schedule begins anew, the count and the log go on, and what the receiver said is forgotten."""
    task = await world.through(await world.ended(), 409, 409, 410, 410)
    assert task.callback is CallbackState.UNDELIVERED
    task = await world.tasks.swap(task, task.redelivered(world.clock.now()))
    task = await world.through(task, *[409] * 5, 410)
    low, high = about(HOURS)
    assert low <= world.wait(task) <= high
    task = await world.through(task, *[500] * 9)
    assert (task.callback, task.attempts, len(task.log)) == (CallbackState.UNDELIVERED, 4 + 6 + 9, 19)
    counts = [headers["x-modellix-retry-count"] for _, _, headers, _ in world.receivers.attempts]
    assert counts == [str(number) for number in range(19)]
    assert len({headers["webhook-id"] for _, _, headers, _ in world.receivers.attempts}) == 1
    assert {body for *_, body in world.receivers.attempts} == {(task.message or "").encode()}


async def test_the_log_says_when_and_what(world: DeliveryWorld) -> None:
    """One entry, one line, one metric for each attempt."""
    task = await world.through(
        await world.ended(), Reply(status=503, answer="later", elapsed=timedelta(milliseconds=100)), 200
    )
    first, last = task.log
    assert (first.status, first.answer, first.ms, first.at) == (503, "later", 100, START)
    assert first.next_at is not None
    assert timedelta(seconds=4) < first.next_at - first.at < timedelta(seconds=6)
    assert (last.status, last.next_at) == (200, None)
    [(_, one), (_, two)] = [told for told in world.reported.events if told[0] == "callback.attempted"]
    assert (one["status"], one["attempt"], one["state"], two["status"], two["attempt"], two["state"]) == (
        503,
        1,
        "waiting",
        200,
        2,
        "delivered",
    )


async def test_the_claim_of_the_end_is_used_and_an_old_one_is_not(world: DeliveryWorld) -> None:
    """The first attempt writes once, a later one claims first; and one that is overtaken sends nothing."""
    task = await world.ended()
    writes = world.tasks.writes
    task = await world.through(task, 500)
    assert world.tasks.writes == writes + 1
    old = task
    task = await world.through(task, 500)
    assert world.tasks.writes == writes + 3
    with pytest.raises(StaleTaskError):
        await attempt(old, world.ports)
    assert len(world.receivers.attempts) == 2


class SlowTasks(MemoryTasks):
    """A table whose writes take effect at once and are answered late."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self.clock = clock
        self.write_times: deque[timedelta] = deque()

    async def swap(self, old: Task, new: Task) -> Task:
        """Write, and let the answer take its time."""
        stored = await super().swap(old, new)
        self.clock.pass_by(self.write_times.popleft() if self.write_times else timedelta(0))
        return stored


@each_row(
    ("write_seconds", "claims"),
    [((0.1,), 1), ((15,), 1), ((15.1, 0.1), 2), ((18.5, 15), 2), ((29.9, 0), 2), ((60, 1), 2)],
)
async def test_an_attempt_begins_only_where_its_claim_covers_all_of_it(
    write_seconds: tuple[float, ...], claims: int
) -> None:
    """The clock is read after the claim's write: no other claim before the 15 s of the attempt are over."""
    clock = VirtualClock()
    tasks = SlowTasks(clock)
    world = DeliveryWorld(clock=clock, tasks=tasks)
    task = await world.ended()
    clock.pass_by(timedelta(minutes=1))
    before = tasks.writes
    tasks.write_times.extend(timedelta(seconds=seconds) for seconds in write_seconds)
    done = await attempt(task, world.ports)
    [(sent_at, _, headers, _)] = world.receivers.attempts
    assert sent_at == START + timedelta(minutes=1, seconds=sum(write_seconds))
    assert headers["webhook-timestamp"] == str(int(sent_at.timestamp()))
    assert (done.callback, tasks.writes - before) == (CallbackState.DELIVERED, claims + 1)


async def test_a_table_too_slow_for_a_claim_keeps_the_attempt_from_being_made() -> None:
    """Nothing is sent; the claim ends by itself, and the next invocation goes on."""
    clock = VirtualClock()
    tasks = SlowTasks(clock)
    world = DeliveryWorld(clock=clock, tasks=tasks)
    task = await world.ended()
    clock.pass_by(timedelta(minutes=1))
    tasks.write_times.extend([timedelta(seconds=15.1)] * 5)
    with pytest.raises(StoreUnavailableError):
        await attempt(task, world.ports)
    assert (world.receivers.attempts, tasks.items["tk_1"].callback) == ([], CallbackState.WAITING)


@pytest.mark.parametrize(("left", "writes"), [(15, 1), (14.9, 2)])
async def test_a_claim_that_is_borne_already_must_cover_the_attempt(
    world: DeliveryWorld, left: float, writes: int
) -> None:
    """The 30 s of the terminal write serve for 15 s; then the attempt is claimed anew, for 30 s."""
    task = await world.ended()
    assert task.claimed_until == START + timedelta(seconds=30)
    world.clock.pass_by(timedelta(seconds=30 - left))
    before = world.tasks.writes
    seen: list[Task] = []
    send = world.receivers.send

    async def look(url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        seen.append(world.tasks.items["tk_1"])
        return await send(url, headers, body)

    # It looks at the table while the receiver has the request.
    world.receivers.send = look  # type: ignore[method-assign]
    began = world.clock.now()
    await attempt(task, world.ports)
    assert world.tasks.writes == before + writes
    assert seen[0].claimed_until == (START if writes == 1 else began) + timedelta(seconds=30)


async def test_a_breaker_that_opens_is_reported_once(world: DeliveryWorld) -> None:
    """With the caller, the host, what happened, and for how long the breaker is open."""
    await world.through(await world.ended(), *["timeout"] * FAILURES)
    [(_, facts)] = [told for told in world.reported.events if told[0] == "receiver.circuit_opened"]
    assert facts == {
        "caller": "alice",
        "host": "r.example.com",
        "status": None,
        "error": "timeout",
        "seconds": 60.0,
    }


# --- a receiver under test -------------------------------------------------------------------------


async def tried(world: DeliveryWorld, body: Json, caller: object = None) -> list[samples.TestResult]:
    """Try a receiver out as alice."""
    return await samples.send_test_callbacks(
        body,
        caller=ALICE if caller is None else caller,  # type: ignore[arg-type]  # a caller
        targets=TargetPolicy(),
        rate=world.control,
        callbacks=world.receivers,
        clock=world.clock,
        reporter=world.reported,
    )


async def test_a_sample_of_each_event_is_sent_signed_and_stored_nowhere(world: DeliveryWorld) -> None:
    """With the secrets that are valid now; what was said is told as in the attempt log."""
    rotated = ALICE.model_copy(
        update={
            "secrets": (
                *ALICE.secrets,
                Credential(value=a_caller().secrets[0].value, expires_at=START + timedelta(hours=1)),
                Credential(value=a_caller().secrets[0].value, expires_at=START),
            )
        }
    )
    world.receivers.replies.extend([Reply(status=204), Reply(error="timeout")])
    success, failure = await tried(world, {"callback_url": "https://r.example.com/hook"}, rotated)
    assert (success.delivered, failure.delivered) == (True, False)
    assert (success.reply.status, failure.reply.error) == (204, "timeout")
    types = []
    for _, url, headers, body in world.receivers.attempts:
        assert url == "https://r.example.com/hook"
        assert len(headers["webhook-signature"].split(" ")) == 2
        expected = Webhook(ALICE.secrets[0].value).sign(headers["webhook-id"], START, body.decode())
        assert headers["webhook-signature"].split(" ")[0] == expected
        types.append(json.loads(body)["type"])
        assert json.loads(body)["data"]["reference"] == "sample"
        assert headers["x-modellix-event"] == types[-1]
    assert types == ["prediction.task.succeeded", "prediction.task.failed"]
    assert len({headers["webhook-id"] for _, _, headers, _ in world.receivers.attempts}) == 2
    assert (world.tasks.writes, world.reported.count("callback.tested")) == (0, 2)


async def test_the_callers_default_is_tried_where_none_is_named(world: DeliveryWorld) -> None:
    """And where there is no default either, the request is wrong."""
    await tried(world, {}, ALICE.model_copy(update={"callback_url": "https://default.example.com/"}))
    assert {url for _, url, _, _ in world.receivers.attempts} == {"https://default.example.com/"}
    with pytest.raises(RejectedError, match="'callback_url'"):
        await tried(world, {})


async def test_receiver_tests_have_the_rate_of_redeliveries(world: DeliveryWorld) -> None:
    """Some are made at once; then a 429 tells when to come again; a wrong request costs nothing."""
    here: Json = {"callback_url": "https://r.example.com/hook"}
    world.receivers.answer_time = timedelta(0)
    for _ in range(20):
        with pytest.raises(RejectedError, match="'callback_url'"):
            await tried(world, {})
    for _ in range(6):
        await tried(world, here)
    with pytest.raises(RejectedError) as rejected:
        await tried(world, here)
    assert (rejected.value.status, rejected.value.retry_after) == (429, 2)
    assert len(world.receivers.attempts) == 12
    await tried(world, here, a_caller("bob"))
    world.clock.pass_by(timedelta(seconds=2))
    await tried(world, here)
    now = world.clock.now()
    # by redeliveries
    await world.control.reserve_deliveries("alice", 100, now=now, latest=now + timedelta(minutes=1))
    with pytest.raises(RejectedError) as rejected:
        await tried(world, here)
    assert rejected.value.retry_after == 102


@pytest.mark.parametrize(
    "body",
    [
        {"callback_url": "http://r.example.com/"},
        {"callback_url": "https://127.0.0.1/"},
        {"callback_url": 5},
        {"callback_url": None},
        {"url": "https://r.example.com/"},
    ],
)
async def test_a_target_that_is_no_callbacks_is_not_tried(world: DeliveryWorld, body: Json) -> None:
    """The same rules as for a submit, before anything is sent."""
    with pytest.raises(RejectedError) as rejected:
        await tried(world, body)
    assert (rejected.value.status, world.receivers.attempts) == (400, [])


# --- a claim that covers its attempt: what no test noticed before ---------------------------------


@pytest.mark.parametrize("passed_s", [0, 14, 16, 20, 29, 31, 300])
async def test_the_claim_lasts_as_long_as_the_attempt_may(world: DeliveryWorld, passed_s: int) -> None:
    """However old the claim of the terminal write is: as the request leaves, no other may begin for 15 s."""
    task = await world.ended()
    world.clock.pass_by(timedelta(seconds=passed_s))
    sent, covered_until = world.receivers.send, []

    async def send(url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        covered_until.append(world.tasks.items[task.task_id].claimed_until)
        return await sent(url, headers, body)

    world.receivers.send = send  # type: ignore[method-assign]  # a look at the table when the request leaves
    await attempt(task, world.ports)
    [until] = covered_until
    [(at, *_)] = world.receivers.attempts
    assert until is not None
    assert until - at >= timedelta(seconds=15)
