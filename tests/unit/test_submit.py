import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from taskhook.adapters.aws.telemetry import _metric as metric_of
from taskhook.core import rate_limit
from taskhook.core.admission import MOST_UNKNOWN, AdmissionState
from taskhook.core.caller import Caller
from taskhook.core.errors import RejectedError, StoreUnavailableError
from taskhook.core.leadership import LeadershipView
from taskhook.core.models import MediaFacts
from taskhook.core.ports import Admit, ApiKey
from taskhook.core.rate_limit import Allowance
from taskhook.core.record import CallbackState, ErrorCode, State, Submission, SubmitOutcome
from taskhook.core.task import Task
from taskhook.submit.media import MediaInspection
from taskhook.submit.payment import STORE_TRY_LEAST, PaymentPorts, pay
from taskhook.submit.submit import SubmitResult, submit
from taskhook.wiring import App
from tests.world import (
    SETTINGS,
    FakeMedia,
    FakeVendor,
    FixedWebhookUrls,
    MemoryControl,
    MemoryTasks,
    RecordingReporter,
    RecordingWake,
    VirtualClock,
    a_caller,
    a_key,
    a_request,
)

MODEL = "alibaba/wan2.2-animate-mix"
BODY = {"image_url": "https://example.com/a.jpg", "video_url": "https://example.com/v.mp4", "mode": "wan-std"}
CLAIM = timedelta(seconds=35)
RETENTION = timedelta(days=7)


@dataclass
class SubmitWorld:
    """A submit function's world in memory."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    tasks: MemoryTasks = field(default_factory=MemoryTasks)
    control: MemoryControl = field(default_factory=MemoryControl)
    reported: RecordingReporter = field(default_factory=RecordingReporter)
    woken: RecordingWake = field(default_factory=RecordingWake)
    caller: Caller = field(default_factory=a_caller)

    def __post_init__(self) -> None:
        self.allowance = Allowance(self.control, "modellix", requests_per_minute=1000)
        self.vendor = FakeVendor(self.clock)
        self.media = FakeMedia(self.clock)
        self.inspection: MediaInspection | None = None
        self.models = "*"
        self.keys: dict[str, ApiKey] = {"modellix": a_key}

    async def submit(
        self,
        key: str | None = None,
        *,
        late: timedelta = timedelta(0),
        count: str | None = None,
        **changes: Any,
    ) -> SubmitResult:
        """Submit the example, `late` after it arrived; `count` is how often its client has repeated it."""
        body = {**BODY, "callback_url": "https://caller.example.com/hook", **changes}
        request = a_request(
            MODEL, body, caller=self.caller, idempotency_key=key, x_stainless_retry_count=count
        )
        app = App(
            SETTINGS.model_copy(update={"max_queued": 3, "models": self.models}),
            tasks=self.tasks,
            control=self.control,
            vendors={"modellix": self.vendor},
            vendor_keys=self.keys,
            webhook_urls=FixedWebhookUrls(),
            allowances={"modellix": self.allowance},
            wake=self.woken,
            clock=self.clock,
            reporter=self.reported,
        )
        return await submit(
            request,
            caller=self.caller,
            arrived_at=self.clock.now() - late,
            claim=CLAIM,
            inspection=self.inspection,
            payment=app.payment,
            admitting=app.admitting,
        )

    @property
    def only_task(self) -> Task:
        """The one task that is stored."""
        [task] = self.tasks.items.values()
        return task


@pytest.fixture
def world() -> SubmitWorld:
    """Give a fresh world."""
    return SubmitWorld()


async def never(*_: object, **__: object) -> Any:
    """Hang, as a table does that accepts connections and says nothing."""
    await asyncio.get_running_loop().create_future()


def briefly(_until: object, _clock: object) -> asyncio.Timeout:
    """Give what hangs a moment."""
    return asyncio.timeout(0.05)


def outcome(submission: Submission, status: int = 0, message: str = "") -> SubmitOutcome:
    """Make an outcome of the paid POST."""
    return SubmitOutcome(submission=submission, status=status, message=message)


async def test_a_taken_task_is_watched_and_the_poller_woken(world: SubmitWorld) -> None:
    """The way it goes when all is well."""
    answer = await world.submit()
    assert (answer.status, answer.task.state, answer.task.upstream_task_id) == (200, State.WATCHED, "task-0")
    assert world.tasks.items[answer.task.task_id] == answer.task
    assert world.woken.task_ids == [answer.task.task_id]
    assert world.tasks.writes == 2


async def test_the_intent_is_stored_before_the_post(world: SubmitWorld) -> None:
    """A crash in the middle of the POST leaves a claimed task behind, never nothing."""
    posting = asyncio.create_task(world.submit())
    await world.vendor.asked.wait()
    assert world.only_task.state is State.SUBMITTING
    assert world.only_task.claimed_until == world.clock.now() + CLAIM
    posting.cancel()


async def test_without_the_store_nothing_is_sent(world: SubmitWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """An intent that could not be stored is never paid for."""

    async def fail(_task: Task) -> Task:
        raise StoreUnavailableError("down")

    monkeypatch.setattr(world.tasks, "add", fail)
    with pytest.raises(StoreUnavailableError):
        await world.submit()
    assert world.vendor.submits == []


@pytest.mark.parametrize(
    ("submission", "state"), [(Submission.BUSY, State.QUEUED), (Submission.NOT_SENT, State.QUEUED)]
)
async def test_refused_for_now_is_queued_and_answered_pending(
    world: SubmitWorld, submission: Submission, state: State
) -> None:
    """What the vendor provably did not take waits here, and the caller need not know."""
    world.vendor.submit_outcomes.append(outcome(submission, 429, "busy"))
    answer = await world.submit()
    assert (
        answer.status,
        world.only_task.state,
        world.only_task.work_key and world.only_task.work_key[0],
    ) == (200, state, "queue")
    assert world.woken.task_ids == [world.only_task.task_id]


async def test_refused_for_good_is_told_and_never_called_back(world: SubmitWorld) -> None:
    """The vendor's own status and message reach the caller, which knows already."""
    world.vendor.submit_outcomes.append(outcome(Submission.REFUSED, 422, "Invalid parameters: bad image"))
    answer = await world.submit()
    assert (answer.status, answer.message) == (422, "Invalid parameters: bad image")
    task = world.only_task
    assert (task.state, task.error, task.callback, task.work_key) == (
        State.FAILED,
        ErrorCode.UPSTREAM_REFUSED,
        CallbackState.NONE,
        None,
    )
    assert task.expires_at == world.clock.now() + RETENTION
    assert world.woken.task_ids == []


async def test_a_refusal_of_this_deployment_frees_the_key(world: SubmitWorld) -> None:
    """After 401 or 402 the same key may be used again, and then it counts."""
    world.vendor.submit_outcomes.append(outcome(Submission.REFUSED_HERE, 402, "Insufficient balance"))
    first = await world.submit("key-1")
    assert (first.status, first.task.error) == (502, ErrorCode.UPSTREAM_REFUSED)
    assert "Insufficient balance" in first.message
    second = await world.submit("key-1")
    assert (second.status, second.task.state, second.task.task_id) == (200, State.WATCHED, first.task.task_id)
    assert len(world.vendor.submits) == 2
    assert len(world.vendor.taken) == 1


async def test_an_ambiguous_outcome_is_called_ambiguous(world: SubmitWorld) -> None:
    """The answer names the task, says that it is watched, and tells the caller not to resubmit."""
    world.vendor.submit_outcomes.append(outcome(Submission.AMBIGUOUS))
    answer = await world.submit()
    assert answer.status == 502
    assert answer.task.task_id in answer.message
    assert "do not resubmit" in answer.message
    assert world.only_task.state is State.UNKNOWN


@pytest.mark.parametrize(
    "submission", [Submission.TAKEN, Submission.REFUSED, Submission.BUSY, Submission.AMBIGUOUS]
)
async def test_a_repeat_gets_the_first_answer(world: SubmitWorld, submission: Submission) -> None:
    """Whatever the outcome was, the same key and request never pay again."""
    world.vendor.submit_outcomes.append(outcome(submission, 400, "no"))
    first = await world.submit("key-1")
    second = await world.submit("key-1")
    assert (second.status, second.message, second.task.nonce) == (
        first.status,
        first.message,
        first.task.nonce,
    )
    assert len(world.vendor.submits) == 1


async def test_a_repeat_after_the_end_gets_the_first_answer(world: SubmitWorld) -> None:
    """A task that has failed since was pending when it was first answered."""
    first = await world.submit("key-1")
    failed = first.task.failed(
        ErrorCode.EXPIRED, "late", world.clock.now(), retention=RETENTION, claim=world.clock.now()
    )
    await world.tasks.swap(first.task, failed)
    assert (await world.submit("key-1")).status == 200


async def test_the_same_key_with_another_request_is_refused(world: SubmitWorld) -> None:
    """A key stands for one request."""
    await world.submit("key-1")
    with pytest.raises(RejectedError) as rejected:
        await world.submit("key-1", reference="other")
    assert rejected.value.status == 422
    assert len(world.vendor.submits) == 1


async def test_two_at_once_with_one_key_pay_once_and_agree(world: SubmitWorld) -> None:
    """The second waits for the first one's answer."""
    one, two = await asyncio.gather(world.submit("key-1"), world.submit("key-1"))
    assert (one.status, one.task.task_id) == (two.status, two.task.task_id)
    assert len(world.vendor.submits) == 1


async def test_a_repeat_in_flight_gives_up_after_eight_seconds(world: SubmitWorld) -> None:
    """A 409 with Retry-After says that the first one is not through."""
    first = asyncio.create_task(world.submit("key-1"))
    await world.vendor.asked.wait()
    first.cancel()
    began = world.clock.now()
    with pytest.raises(RejectedError) as rejected:
        await world.submit("key-1")
    assert (rejected.value.status, rejected.value.retry_after) == (409, 2)
    assert world.clock.now() - began == timedelta(seconds=8)


# --- repeats of clients that count them, without a key --------------------------------------------


@pytest.mark.parametrize("submission", list(Submission))
async def test_a_counted_repeat_is_the_first_request_again(
    world: SubmitWorld, submission: Submission
) -> None:
    """Whatever came of the first, its answer comes again; the vendor is asked once where it may be paid."""
    world.vendor.submit_outcomes.append(outcome(submission, 422, "no"))
    first = await world.submit(count="0")
    again = [await world.submit(count=count) for count in ("1", "2")]
    # nothing was paid, and the id may be used again
    asked = 2 if submission is Submission.REFUSED_HERE else 1
    assert len(world.vendor.submits) == asked
    assert {one.task.task_id for one in again} == {first.task.task_id}
    if submission is not Submission.REFUSED_HERE:
        assert {(one.status, one.message) for one in again} == {(first.status, first.message)}


async def test_a_counted_repeat_in_flight_waits_for_the_first(world: SubmitWorld) -> None:
    """As one with a key does, and several at once too; also where the first is still looking at media."""
    world.inspection = MediaInspection(world.media, enforce=True)
    answers = await asyncio.gather(
        world.submit(count="0"), *(world.submit(count=count) for count in ("1", "1", "2"))
    )
    assert len(world.vendor.submits) == 1
    assert {(one.status, one.task.task_id) for one in answers} == {(200, world.only_task.task_id)}


async def test_a_counted_repeat_whose_first_never_came_is_paid_once(world: SubmitWorld) -> None:
    """The first was lost before it was here; and where it comes late after all, it is its repeat's."""
    answers = [await world.submit(count=count) for count in ("1", "2", "0")]
    assert len(world.vendor.submits) == 1
    assert len({one.task.task_id for one in answers}) == 1
    # and this one is another request
    assert (await world.submit(count="0")).task.task_id != answers[0].task.task_id


async def test_a_counted_repeat_is_known_for_two_minutes_after_the_one_before(world: SubmitWorld) -> None:
    """A chain of repeats may last longer; a repeat after that is a new request."""
    first = await world.submit(count="0")
    for count in ("1", "2"):
        world.clock.pass_by(timedelta(seconds=119))
        assert (await world.submit(count=count)).task.task_id == first.task.task_id
    world.clock.pass_by(timedelta(seconds=121))
    assert (await world.submit(count="3")).task.task_id != first.task.task_id
    assert len(world.vendor.submits) == 2


@pytest.mark.parametrize(
    "changes", [{"mode": "wan-pro"}, {"reference": "b"}, {"callback_url": "https://b.example.com/"}]
)
async def test_a_counted_repeat_of_another_request_is_none(
    world: SubmitWorld, changes: dict[str, Any]
) -> None:
    """Nor is one of another caller."""
    await world.submit(count="0")
    await world.submit(count="1", **changes)
    world.caller = a_caller("bob")
    await world.submit(count="1")
    assert len(world.tasks.items) == 3


@pytest.mark.parametrize("count", [None, "", "x", "-1", "1.0", "²", "1000", "1\n"])
async def test_without_a_count_nothing_is_reserved(world: SubmitWorld, count: str | None) -> None:
    """An ordinary submit costs the same, alike or not; so does one with a key, whose count says nothing."""
    await world.submit(count=count)
    await world.submit(count=count)
    await world.submit("key", count="1")
    assert len(world.vendor.submits) == 3
    assert world.tasks.reserved == {}


async def test_a_repeat_after_a_crash_is_told_that_the_outcome_is_unknown(world: SubmitWorld) -> None:
    """A claim that has run out without an answer is the same as an ambiguous answer."""
    first = asyncio.create_task(world.submit("key-1"))
    await world.vendor.asked.wait()
    first.cancel()
    world.clock.pass_by(CLAIM)
    assert (await world.submit("key-1")).status == 502
    assert len(world.vendor.submits) == 1


async def test_with_too_little_time_left_the_task_is_queued_unpaid(world: SubmitWorld) -> None:
    """With less than 8 s of 13 s left the POST is not begun."""
    answer = await world.submit(late=timedelta(seconds=5.1))
    assert (answer.status, answer.task.state, world.vendor.submits) == (200, State.QUEUED, [])
    assert world.woken.task_ids == [answer.task.task_id]


async def test_a_late_answer_is_adopted_after_the_poller_called_it_unknown(world: SubmitWorld) -> None:
    """The poller called the outcome unknown while the POST was under way; the vendor's id still counts."""
    posting = asyncio.create_task(world.submit())
    await world.vendor.asked.wait()
    await world.tasks.swap(world.only_task, world.only_task.mark_unknown())
    await posting
    assert (world.only_task.state, world.only_task.upstream_task_id) == (State.WATCHED, "task-0")


async def test_a_late_refusal_keeps_its_callback(world: SubmitWorld) -> None:
    """The caller was told "unknown", the callback tells the rest; a repeat of the key makes no other task."""
    world.vendor.submit_outcomes.append(outcome(Submission.REFUSED, 400, "bad image"))
    posting = asyncio.create_task(world.submit("key-1"))
    await world.vendor.asked.wait()
    await world.tasks.swap(world.only_task, world.only_task.mark_unknown())
    await posting
    assert (await world.submit("key-1")).status == 502
    assert (world.only_task.error, world.only_task.callback) == (
        ErrorCode.UPSTREAM_REFUSED,
        CallbackState.WAITING,
    )
    assert len(world.vendor.submits) == 1


async def test_an_outcome_that_cannot_be_stored_is_called_unknown(
    world: SubmitWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table fails after the POST: the caller hears the truth, the log gets the vendor's id."""

    async def fail(_old: Task, _new: Task) -> Task:
        raise StoreUnavailableError("down")

    monkeypatch.setattr(world.tasks, "swap", fail)
    assert (await world.submit()).status == 502
    assert ("task.outcome_unstored", "task-0") in [
        (event, facts.get("upstream_task_id")) for event, facts in world.reported.events
    ]


@pytest.mark.parametrize("stored", [True, False])
async def test_a_refusal_whose_write_is_not_answered_is_told_as_one(
    world: SubmitWorld, monkeypatch: pytest.MonkeyPatch, *, stored: bool
) -> None:
    """Where it was stored no callback follows, so the caller must not be told to wait for one."""
    swap = world.tasks.swap

    async def unanswered(old: Task, new: Task) -> Task:
        if stored and world.tasks.items[old.task_id].nonce == old.nonce:
            await swap(old, new)
        raise StoreUnavailableError("no answer")

    monkeypatch.setattr(world.tasks, "swap", unanswered)
    world.vendor.submit_outcomes.append(outcome(Submission.REFUSED, 422, "Invalid parameters: bad image"))
    answer = await world.submit()
    assert (answer.status, answer.task.error) == (422, ErrorCode.UPSTREAM_REFUSED)


async def test_what_was_paid_for_is_told_before_it_is_stored(
    world: SubmitWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vendor's id is in the log before the first write, the write's failure before the second."""
    told: list[list[str]] = []

    async def fail(_old: Task, _new: Task) -> Task:
        told.append(
            [event for event, facts in world.reported.events if facts.get("upstream_task_id") == "task-0"]
        )
        raise StoreUnavailableError("down")

    monkeypatch.setattr(world.tasks, "swap", fail)
    began = world.clock.now()
    await world.submit()
    assert told[:2] == [["task.submitted"], ["task.submitted", "task.outcome_unstored"]]
    assert told[-1] == told[1]  # once, however long it is tried
    assert len(told) > 10
    assert world.clock.now() - began <= timedelta(seconds=14)


DENIED = ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "UpdateItem")


async def test_what_was_paid_for_is_stored_though_the_table_refuses_for_a_while(
    world: SubmitWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a deployment replaces rights: the write is tried again, and the log has the id meanwhile."""
    swap, refusals = world.tasks.swap, [DENIED, DENIED]

    async def refuse(old: Task, new: Task) -> Task:
        if refusals:
            raise refusals.pop()
        return await swap(old, new)

    monkeypatch.setattr(world.tasks, "swap", refuse)
    answer = await world.submit()
    assert (answer.status, world.only_task.state, world.only_task.upstream_task_id) == (
        200,
        State.WATCHED,
        "task-0",
    )
    assert world.reported.count("task.outcome_unstored") == 1


@pytest.mark.parametrize("call", ["admission", "set_admission"])
@pytest.mark.parametrize(
    ("before", "told", "state"),
    [
        (AdmissionState(unknown=1), SubmitOutcome(submission=Submission.TAKEN, status=200), State.WATCHED),
        (
            AdmissionState(),
            SubmitOutcome(submission=Submission.TAKEN, status=200, retry_after=timedelta(minutes=1)),
            State.WATCHED,
        ),
        (AdmissionState(), SubmitOutcome(submission=Submission.AMBIGUOUS, status=503), State.UNKNOWN),
        (AdmissionState(), SubmitOutcome(submission=Submission.BUSY, status=429), State.QUEUED),
    ],
    ids=["known again", "a pause", "an unknown outcome", "a refusal for now"],
)
async def test_what_is_stored_is_answered_though_the_admission_state_cannot_be_written(
    world: SubmitWorld,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    before: AdmissionState,
    told: SubmitOutcome,
    state: State,
) -> None:
    """The table refuses once the vendor has answered; the caller hears the outcome of its own task."""
    world.control.the_admission = before
    world.vendor.submit_outcomes.append(told)
    plain = getattr(world.control, call)

    async def refuse(*arguments: Any) -> Any:
        if world.vendor.submits:
            raise DENIED
        return await plain(*arguments)

    monkeypatch.setattr(world.control, call, refuse)
    answer = await world.submit()
    assert (answer.status, answer.task.state) == (502 if state is State.UNKNOWN else 200, state)


async def test_a_table_that_hangs_before_the_post_is_a_503_in_time(
    world: SubmitWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller hears of it within 14 s of its request, and nothing is sent."""
    monkeypatch.setattr(world.tasks, "add", never)
    with pytest.raises(StoreUnavailableError):
        await world.submit(late=timedelta(seconds=13.29))
    assert world.vendor.submits == []


@pytest.mark.parametrize("hangs", ["get", "admission", "take_tokens", "queue_length"])
async def test_whatever_hangs_before_the_post_is_a_503_in_time(
    world: SubmitWorld, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    """Each question of the table on the way to the POST."""
    monkeypatch.setattr(world.control if hangs in {"admission", "take_tokens"} else world.tasks, hangs, never)
    monkeypatch.setattr("taskhook.submit.submit.ANSWER_DUE", STORE_TRY_LEAST + timedelta(milliseconds=20))
    world.control.the_admission = world.control.the_admission.model_copy(
        update={"waiting": hangs == "queue_length"}
    )
    with pytest.raises(StoreUnavailableError):
        await world.submit("key-1")
    assert world.vendor.submits == []


async def test_a_table_that_hangs_after_the_post_is_told_and_answered_in_time(
    world: SubmitWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has the vendor's id after the first try, and the caller hears that the outcome is not known."""
    monkeypatch.setattr("taskhook.submit.payment.STORE_TRY", timedelta(milliseconds=1))
    monkeypatch.setattr(world.tasks, "swap", never)
    began = world.clock.now()
    answer = await world.submit()
    assert (answer.status, len(world.vendor.taken)) == (502, 1)
    assert world.reported.count("task.outcome_unstored") == 1
    assert world.clock.now() - began <= timedelta(seconds=14)


@pytest.mark.parametrize("hangs", ["view", "admission"])
async def test_what_hangs_once_the_outcome_is_stored_holds_up_no_answer(
    world: SubmitWorld, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    """The poller finds the task without being woken."""
    world.vendor.submit_outcomes.append(outcome(Submission.BUSY, 429, "busy"))
    answered, admission = asyncio.Event(), world.control.admission

    async def once(vendor: str) -> AdmissionState:
        if answered.is_set():
            await never()
        answered.set()
        return await admission(vendor)

    monkeypatch.setattr(world.control, hangs, never if hangs == "view" else once)
    monkeypatch.setattr("taskhook.submit.submit._until", briefly)
    assert (await world.submit()).task.state is State.QUEUED


async def test_a_request_is_counted_in_the_window_that_it_leaves_in(world: SubmitWorld) -> None:
    """Where write or key was slow, the token of the window before has lapsed, and a new one is taken."""
    world.clock.pass_by(timedelta(seconds=3))
    window = rate_limit.window(world.clock.now())
    world.vendor.key_time = timedelta(seconds=2)
    await world.submit()
    assert dict(world.control.used) == {("modellix", window): 1}
    world.clock.pass_by(rate_limit.window_end(world.clock.now()) - world.clock.now() + timedelta(seconds=5))
    await world.submit()
    assert dict(world.control.used) == {("modellix", window + later): 1 for later in range(3)}
    assert len(world.vendor.taken) == 2


async def test_a_second_request_takes_a_token_of_its_own(world: SubmitWorld) -> None:
    """After a 401 the POST leaves again with a fresh key: two requests of the vendor's minute."""

    class Refusing(FakeVendor):
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
            """Be asked twice."""
            assert admit is not None
            assert await admit()
            return await super().submit(model, request, webhook_url=webhook_url, limit=limit, admit=admit)

    world.vendor = Refusing(world.clock)
    await world.submit()
    assert dict(world.control.used) == {("modellix", rate_limit.window(world.clock.now())): 2}


async def test_where_no_request_is_left_when_it_would_leave_the_task_is_queued(world: SubmitWorld) -> None:
    """It was not sent, so it waits; nor is it where the table cannot tell."""
    world.clock.pass_by(timedelta(seconds=5))
    later = rate_limit.window(world.clock.now()) + 1
    world.control.used["modellix", later] = 1000
    world.vendor.key_time = timedelta(seconds=2)
    assert ((await world.submit()).task.state, world.vendor.submits) == (State.QUEUED, [])


async def test_a_pause_is_kept_though_the_task_was_taken(world: SubmitWorld) -> None:
    """The vendor says with any answer that nothing remains: the next submit waits, and no task waits yet."""
    world.vendor.submit_outcomes.append(
        SubmitOutcome(submission=Submission.TAKEN, status=200, retry_after=timedelta(seconds=30))
    )
    assert (await world.submit()).task.state is State.WATCHED
    assert world.control.the_admission.paused_until == world.clock.now() + timedelta(seconds=30)
    assert not world.control.the_admission.waiting
    assert (await world.submit()).task.state is State.QUEUED


async def test_a_key_that_cannot_be_used_is_told_and_frees_the_idempotency_key(world: SubmitWorld) -> None:
    """As a 401 is: nothing was sent, the answer says what is wrong, and the alarm's metric is counted."""
    world.vendor.submit_outcomes.append(
        outcome(Submission.REFUSED_HERE, 0, "the vendor key cannot be used: no text")
    )
    first = await world.submit("key-1")
    assert (first.status, "the vendor key cannot be used" in first.message, first.task.reusable) == (
        502,
        True,
        True,
    )
    facts = next(facts for event, facts in world.reported.events if event == "task.submitted")
    assert metric_of("task.submitted", facts) == "VendorRefused"
    assert (await world.submit("key-1")).status == 200


async def test_a_late_refusal_without_a_url_frees_nothing(world: SubmitWorld) -> None:
    """The caller was told that the outcome is unknown, not to resubmit: its key is this task's for good."""
    world.vendor.submit_outcomes.append(outcome(Submission.REFUSED, 400, "bad image"))
    posting = asyncio.create_task(world.submit("key-1", callback_url=None))
    await world.vendor.asked.wait()
    await world.tasks.swap(world.only_task, world.only_task.mark_unknown())
    await posting
    assert (world.only_task.error, world.only_task.callback) == (
        ErrorCode.UPSTREAM_REFUSED,
        CallbackState.NONE,
    )
    assert not world.only_task.reusable
    assert (await world.submit("key-1", callback_url=None)).status == 502
    assert len(world.vendor.submits) == 1


async def test_the_callers_default_url_is_used_and_its_absence_is_fine(world: SubmitWorld) -> None:
    """Without a URL the caller's default gets the callback; without that the task is only watched."""
    assert (await world.submit(callback_url=None)).task.callback is CallbackState.NONE
    world.caller = world.caller.model_copy(update={"callback_url": "https://default.example.com/"})
    assert (await world.submit(callback_url=None)).task.callback_url == "https://default.example.com/"


async def test_the_vendor_is_told_where_its_webhook_goes(world: SubmitWorld) -> None:
    """The hook carries our own task id and a token."""
    answer = await world.submit()
    task_id = answer.task.task_id
    assert world.vendor.webhook_urls == {
        "task-0": f"https://tasks.example.com/hooks/{task_id}/token-of-{task_id}"
    }


async def test_while_one_task_waits_no_other_overtakes_it(world: SubmitWorld) -> None:
    """After one refusal for now, later submits queue behind it unasked; the state is written once."""
    world.vendor.slots = 0
    for _ in range(3):
        assert (await world.submit()).task.state is State.QUEUED
    assert (len(world.vendor.submits), world.control.admission_writes) == (1, 1)
    lengths = [facts["queued"] for told, facts in world.reported.events if told == "task.accepted"]
    assert lengths == [None, 2, 3]  # of the queue as the task joins it; the first was to be paid


def told_of(world: SubmitWorld, event: str) -> list[dict[str, Any]]:
    """List what was reported of one kind."""
    return [facts for told, facts in world.reported.events if told == event]


async def test_a_pause_that_a_submit_begins_is_told(world: SubmitWorld) -> None:
    """As the poller's are: the vendor wants it, or three outcomes in a row are not known."""
    busy = SubmitOutcome(submission=Submission.BUSY, status=429, retry_after=timedelta(minutes=20))
    world.vendor.submit_outcomes.append(busy)
    await world.submit()
    told = {"vendor": "modellix", "reason": "throttled", "seconds": 1200}
    assert told_of(world, "vendor.paused") == [told]


async def test_a_refusal_that_asks_for_no_pause_is_not_told_as_one(world: SubmitWorld) -> None:
    """`Retry-After: 0` of a vendor whose slots are taken."""
    busy = SubmitOutcome(submission=Submission.BUSY, status=429, retry_after=timedelta(0))
    world.vendor.submit_outcomes.append(busy)
    await world.submit()
    assert told_of(world, "vendor.paused") == []


async def test_a_vendor_in_trouble_is_told_of_when_the_third_outcome_is_unknown(world: SubmitWorld) -> None:
    """And not before."""
    for number in range(MOST_UNKNOWN):
        assert told_of(world, "vendor.paused") == []
        world.vendor.submit_outcomes.append(outcome(Submission.AMBIGUOUS, 503, "down"))
        await world.submit(f"key-{number}")
    told = {"vendor": "modellix", "reason": "no_answer", "seconds": 10}
    assert told_of(world, "vendor.paused") == [told]


async def test_an_answer_that_ends_the_trouble_is_told(world: SubmitWorld) -> None:
    """Of a submit that was under way when the trouble began."""
    world.control.the_admission = AdmissionState(unknown=MOST_UNKNOWN - 1)
    submit_to = world.vendor.submit

    async def meanwhile(*arguments: Any, **more: Any) -> SubmitOutcome:
        world.control.the_admission = AdmissionState(unknown=MOST_UNKNOWN)
        return await submit_to(*arguments, **more)

    world.vendor.submit = meanwhile  # type: ignore[method-assign]
    await world.submit()
    assert told_of(world, "vendor.resumed") == [{"vendor": "modellix"}]


async def test_a_full_queue_is_a_429_and_stores_nothing(world: SubmitWorld) -> None:
    """A caller's own queue has an end, and the answer says what to do."""
    world.vendor.slots = 0
    for _ in range(3):
        await world.submit()
    with pytest.raises(RejectedError, match="3 of your tasks are queued") as rejected:
        await world.submit()
    assert (rejected.value.status, rejected.value.retry_after) == (429, 60)
    assert len(world.tasks.items) == 3
    world.caller = a_caller("bob")
    assert (await world.submit()).status == 200


async def test_a_repeat_gets_its_answer_even_when_the_queue_is_full(world: SubmitWorld) -> None:
    """The key is looked up before anything is refused."""
    world.vendor.slots = 0
    first = await world.submit("key-1")
    for _ in range(2):
        await world.submit()
    assert (await world.submit("key-1")).task.nonce == first.task.nonce


async def test_without_budget_the_task_is_queued_unasked(world: SubmitWorld) -> None:
    """A window's requests are shared by all callers; what does not fit waits for the next one."""
    world.allowance.requests_per_minute = 22
    states = [(await world.submit()).task.state for _ in range(3)]
    assert states == [State.WATCHED, State.WATCHED, State.QUEUED]
    assert len(world.vendor.submits) == 2


async def test_a_busy_process_takes_a_windows_requests_at_once(world: SubmitWorld) -> None:
    """As many as in the window before, at most an eighth of all; after a quiet one, each by itself."""
    taken: list[int] = []
    take_tokens = world.control.take_tokens

    async def counted(vendor: str, wanted: int, *, window: int, limit: int) -> int:
        taken.append(wanted)
        return await take_tokens(vendor, wanted, window=window, limit=limit)

    world.control.take_tokens = counted  # type: ignore[method-assign]  # to see what is asked for
    for requests, expected in (
        (3, [1, 1, 1]),
        (4, [3, 1]),
        (2, [4]),
        (20, [2, *[1] * 18]),
        (12, [11, 1]),
        (0, []),
        (1, [1]),
    ):
        for _ in range(requests):
            assert await world.allowance.take(world.clock.now())
        assert taken == expected
        taken.clear()
        world.clock.pass_by(rate_limit.WINDOW)


async def test_what_is_left_of_a_block_lapses(world: SubmitWorld) -> None:
    """Another window's requests are not this one's: together they would break the vendor's minute."""
    world.allowance.requests_per_minute = 88
    window = rate_limit.window(world.clock.now())
    assert await world.control.take_tokens("modellix", 8, window=window, limit=8) == 8
    world.allowance.window, world.allowance.left = window - 1, 5
    assert not await world.allowance.take(world.clock.now())


async def test_a_paused_way_queues(world: SubmitWorld) -> None:
    """While the vendor refuses the key, tasks of the queue are not tried, and new ones wait with them."""
    world.control.the_admission = world.control.the_admission.pause(world.clock.now() + timedelta(minutes=1))
    assert (await world.submit()).task.state is State.QUEUED
    world.clock.pass_by(timedelta(minutes=1))


async def test_a_pause_that_the_vendor_asks_for_is_kept_by_all_processes(world: SubmitWorld) -> None:
    """A submit's 429 with Retry-After stops the poller too, which would try the task at once."""
    busy = SubmitOutcome(submission=Submission.BUSY, status=429, retry_after=timedelta(seconds=30))
    world.vendor.submit_outcomes.append(busy)
    await world.submit()
    assert world.control.the_admission.next_try(0, world.clock.now()) == world.clock.now() + timedelta(
        seconds=30
    )
    assert world.control.the_admission.waiting


async def test_the_poller_is_not_woken_while_there_is_a_leader(world: SubmitWorld) -> None:
    """The leader finds the task by itself; an invocation less to pay for."""
    world.control.leadership = LeadershipView(leader="x", until=world.clock.now() + timedelta(seconds=10))
    await world.submit()
    assert world.woken.task_ids == []
    world.clock.pass_by(timedelta(seconds=10))
    await world.submit()
    assert len(world.woken.task_ids) == 1


@pytest.mark.parametrize(
    ("claim_s", "left_s"), [(7, 60), (60, 7)], ids=["its claim ends", "the answer is due"]
)
async def test_without_time_for_an_answer_nothing_is_sent(
    world: SubmitWorld, claim_s: float, left_s: float
) -> None:
    """Right before the first byte: a submitter that thawed late, or whose claim ends, does not pay."""
    now = world.clock.now()
    request = a_request(MODEL, BODY, caller=world.caller)
    task = await world.tasks.add(
        request.task(world.caller, now, unchecked={}, claimed_until=now + timedelta(seconds=claim_s))
    )
    payment = PaymentPorts(
        tasks=world.tasks,
        vendors={"modellix": world.vendor},
        webhook_urls=None,
        clock=world.clock,
        reporter=world.reported,
        retention=RETENTION,
    )
    paid, _ = await pay(task, deadline=now + timedelta(seconds=left_s), payment=payment)
    assert (world.vendor.submits, paid.state) == ([], State.QUEUED)


@pytest.mark.parametrize("key", ["", "k" * 256, "a\x00b"], ids=["empty", "too long", "unprintable"])
async def test_an_idempotency_key_is_1_to_255_printable_characters(world: SubmitWorld, key: str) -> None:
    """Nothing is stored for any other."""
    with pytest.raises(RejectedError) as rejected:
        await world.submit(key)
    assert (rejected.value.status, world.tasks.items) == (400, {})


# --- media ----------------------------------------------------------------------------------------

SMALL = MediaFacts(size=1000, format="PNG", tracks=("Image",), width=150, height=4000)
IMAGE_TOO_SMALL = "Value out of range: image_url is 150x4000 px; each side must be 200 to 4096"


@pytest.fixture
def inspected(world: SubmitWorld) -> SubmitWorld:
    """Give a fresh world that looks at media."""
    world.inspection = MediaInspection(probe=world.media, enforce=True)
    return world


async def test_media_that_break_a_limit_are_refused_before_anything_is_stored(inspected: SubmitWorld) -> None:
    """The message names the input, what was measured, and the limit; the key may be used again."""
    inspected.media.facts[BODY["image_url"]] = SMALL
    with pytest.raises(RejectedError) as rejected:
        await inspected.submit("k")
    assert (rejected.value.status, rejected.value.message) == (400, IMAGE_TOO_SMALL)
    assert (inspected.tasks.items, inspected.vendor.submits, inspected.woken.task_ids) == ({}, [], [])
    assert sum(inspected.control.used.values()) == 0
    assert (await inspected.submit("k", image_url="https://example.com/better.jpg")).status == 200


async def test_both_media_are_wrong_and_both_are_named(inspected: SubmitWorld) -> None:
    """A caller that mends a request wants to do it once."""
    inspected.media.facts |= {
        BODY["image_url"]: SMALL,
        BODY["video_url"]: MediaFacts(failure="cannot be fetched: its host answers 404"),
    }
    with pytest.raises(RejectedError) as rejected:
        await inspected.submit()
    assert (
        rejected.value.message
        == IMAGE_TOO_SMALL + ". Invalid parameters: video_url cannot be fetched: its host answers 404"
    )


async def test_media_are_looked_at_at_once_and_in_time(inspected: SubmitWorld) -> None:
    """Both within three seconds, which leaves ten for the POST."""
    before = inspected.clock.now()
    answer = await inspected.submit()
    assert inspected.media.looks == [
        (BODY["image_url"], timedelta(seconds=3)),
        (BODY["video_url"], timedelta(seconds=3)),
    ]
    assert answer.task.submitted_at == answer.task.accepted_at == before + timedelta(seconds=1)
    assert (answer.task.unchecked, answer.task.claimed_until) == ({}, None)
    # what is as usual costs no line
    assert "media.checked" not in {event for event, _ in inspected.reported.events}


@pytest.mark.parametrize(
    ("late", "limit", "state"),
    [(3, 1.5, State.WATCHED), (4.6, None, State.WATCHED), (5.5, None, State.QUEUED), (9, None, State.QUEUED)],
)
async def test_a_late_request_is_looked_at_as_long_as_the_post_can_spare(
    inspected: SubmitWorld, late: float, limit: float | None, state: State
) -> None:
    """What a cold start has used up is not taken from the vendor's time; with none left the task says so."""
    answer = await inspected.submit(late=timedelta(seconds=late))
    assert [given.total_seconds() for _, given in inspected.media.looks] == [limit] * 2 * (limit is not None)
    assert answer.task.state is state
    assert answer.task.unchecked == (
        {} if limit else dict.fromkeys(("image_url", "video_url"), "no time was left")
    )


async def test_what_could_not_be_checked_passes_and_is_noted(inspected: SubmitWorld) -> None:
    """The vendor will know."""
    inspected.media.facts[BODY["video_url"]] = MediaFacts(doubt="name does not resolve")
    answer = await inspected.submit()
    assert (answer.status, answer.task.unchecked) == (200, {"video_url": "name does not resolve"})
    assert inspected.only_task.unchecked == answer.task.unchecked


async def test_a_repeat_never_looks(inspected: SubmitWorld) -> None:
    """Its first answer stands, whatever has become of the file."""
    first = await inspected.submit("k")
    inspected.media.facts[BODY["image_url"]] = SMALL
    assert (await inspected.submit("k")).task.nonce == first.task.nonce
    assert len(inspected.media.looks) == 2


async def test_a_key_that_may_be_used_again_looks_again(inspected: SubmitWorld) -> None:
    """What it accepts is a new task."""
    inspected.vendor.submit_outcomes.append(outcome(Submission.REFUSED_HERE, 402, "balance"))
    await inspected.submit("k")
    inspected.media.facts[BODY["image_url"]] = SMALL
    with pytest.raises(RejectedError):
        await inspected.submit("k")


async def test_the_requests_own_switch_spares_the_image(inspected: SubmitWorld) -> None:
    """As the vendor documents it; the video is looked at all the same."""
    inspected.media.facts[BODY["image_url"]] = SMALL
    assert (await inspected.submit(check_image=False)).status == 200
    assert [url for url, _ in inspected.media.looks] == [BODY["video_url"]]


async def test_what_is_wrong_is_only_recorded_where_the_deployment_says_so(inspected: SubmitWorld) -> None:
    """It passes, and the task says what the vendor will probably say too."""
    inspected.inspection = MediaInspection(probe=inspected.media, enforce=False)
    inspected.media.facts[BODY["image_url"]] = SMALL
    answer = await inspected.submit()
    assert (answer.status, answer.task.unchecked) == (200, {"image_url": IMAGE_TOO_SMALL})


async def test_what_needs_no_look_gets_none(world: SubmitWorld) -> None:
    """Neither where it is switched off, nor for a request that is not valid or a key that is known."""
    await world.submit("k")
    world.inspection = MediaInspection(probe=world.media, enforce=True)
    await world.submit("k")
    with pytest.raises(RejectedError):
        await world.submit("k", mode="no such mode")
    assert world.media.looks == []


async def test_submits_pause_after_three_unknown_outcomes_in_a_row(world: SubmitWorld) -> None:
    """The fourth is queued, not lost to the same outage; a clear answer in between starts anew."""
    for submission in (Submission.AMBIGUOUS, Submission.AMBIGUOUS, Submission.TAKEN):
        world.vendor.submit_outcomes.append(outcome(submission))
        await world.submit()
    world.vendor.submit_outcomes.extend([outcome(Submission.AMBIGUOUS)] * 10)
    for _ in range(6):
        await world.submit()
    states = Counter(task.state for task in world.tasks.items.values())
    assert states == {State.UNKNOWN: 5, State.WATCHED: 1, State.QUEUED: 3}
    assert len(world.vendor.submits) == 6
