import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from taskhook.core import schedule
from taskhook.core.admission import AdmissionState
from taskhook.core.errors import StoreUnavailableError
from taskhook.core.leadership import LeadershipView
from taskhook.core.ports import HOLDS_AT_ONCE, Admit, Rows
from taskhook.core.rate_limit import WINDOW, window
from taskhook.core.record import Attempt, CallbackState, ErrorCode, State, Submission, SubmitOutcome
from taskhook.core.reply import Reply
from taskhook.core.task import Task
from taskhook.core.vendor import Listing, ListOutcome, PollKind, PollOutcome
from taskhook.delivery.hosts import FIRST_SLOTS, Hosts
from taskhook.poller import watch
from taskhook.poller.endings import Endings
from taskhook.poller.invocation import BEAT, Ends, PollReport, ends_of, poll
from taskhook.poller.leadership import HAND_OVER
from taskhook.poller.pacing import Pacing
from taskhook.poller.scheduler import Scheduler
from taskhook.poller.watch import Watch
from taskhook.poller.work import DRAIN, INDEX_LAG, PAUSE_SHORT, SCAN, Rules, Standing
from taskhook.vendors.dashscope import DASHSCOPE
from taskhook.vendors.modellix import Modellix
from taskhook.wiring import App
from tests.world import (
    SETTINGS,
    FakeReceivers,
    FakeVendor,
    FixedWebhookUrls,
    MemoryCallers,
    MemoryControl,
    MemoryTasks,
    RecordingReporter,
    VirtualClock,
    a_caller,
)

RETENTION = timedelta(days=7)
STOP = timedelta(seconds=120)


def minutes(number: float) -> timedelta:
    """Give so many minutes."""
    return timedelta(minutes=number)


@dataclass
class PollerWorld:
    """A poll function's world in memory."""

    rules: Rules = field(
        default_factory=lambda: Rules(
            retention=RETENTION, max_task_age=timedelta(hours=24), max_queue_age=timedelta(hours=24)
        )
    )
    clock: VirtualClock = field(default_factory=VirtualClock)
    tasks: MemoryTasks = field(default_factory=MemoryTasks)
    control: MemoryControl = field(default_factory=MemoryControl)
    reported: RecordingReporter = field(default_factory=RecordingReporter)

    def __post_init__(self) -> None:
        self.ends: asyncio.Task[None] | None = None  # of a trouble
        self.vendor = FakeVendor(self.clock)
        self.receivers = FakeReceivers(self.clock)
        self.ports = App(
            SETTINGS,
            tasks=self.tasks,
            control=self.control,
            vendors={"modellix": self.vendor},
            webhook_urls=FixedWebhookUrls(),
            callbacks=self.receivers,
            callers=MemoryCallers(a_caller("alice"), a_caller("bob"), a_caller("carol")),
            clock=self.clock,
            reporter=self.reported,
        ).poller

    async def tick(self, *accepted: str, ended: tuple[str, ...] = (), told: Ends | None = None) -> PollReport:
        """Invoke the poll function: a tick, or a wake with ids."""
        return await poll(
            accepted=accepted,
            ended=told or dict.fromkeys(ended),
            scheduled=not (accepted or ended or told),
            hard_stop=self.clock.now() + STOP,
            rules=self.rules,
            ports=self.ports,
        )

    async def add(
        self, state: State, name: str = "t", caller: str = "alice", url: str | None = "https://r.example.com/"
    ) -> Task:
        """Store a task in a state, as submit would have left it just now."""
        now = self.clock.now()
        task = Task(
            task_id=f"tk_{name:_<22}",
            caller=caller,
            model="alibaba/wan2.2-animate-mix",
            request='{"image_url":"https://example.com/%s.jpg"}' % name,  # noqa: UP031  # braces
            fingerprint="f",
            callback_url=url,
            accepted_at=now,
            state=state,
            answer_status=None if state is State.SUBMITTING else 200,
            submitted_at=None if state is State.QUEUED else now,
            claimed_until=now + timedelta(seconds=35) if state is State.SUBMITTING else None,
            callback=CallbackState.WAITING if url else CallbackState.NONE,
        )
        if state is State.WATCHED:
            upstream = f"task-{name}"
            self.vendor.taken[upstream] = now
            task = task.model_copy(update={"upstream_task_id": upstream, "taken_at": now})
        return await self.tasks.add(task)

    def now_of(self, task: Task) -> Task:
        """Read the task as it stands."""
        return self.tasks.items[task.task_id]

    def facts(self, event: str) -> list[dict[str, Any]]:
        """List what was told of one kind of event."""
        return [facts for told, facts in self.reported.events if told == event]

    async def run(self, duration: timedelta) -> None:
        """Let ticks come, a minute from start to start (never two at once here), for a while."""
        end = self.clock.now() + duration
        while self.clock.now() < end:
            began = self.clock.now()
            await self.tick()
            self.clock.pass_by(max(began + timedelta(seconds=60) - self.clock.now(), timedelta(0)))


@pytest.fixture
def poller() -> PollerWorld:
    """Give a fresh world."""
    return PollerWorld()


async def test_an_idle_tick_writes_nothing(poller: PollerWorld) -> None:
    """Nothing due before the next tick: no write, no leadership, no wait."""
    began = poller.clock.now()
    report = await poller.tick()
    assert (report.led, report.steps, poller.tasks.writes, poller.control.leadership.leader) == (
        False,
        {},
        0,
        "",
    )
    assert poller.clock.now() == began
    assert poller.reported.events == []


async def test_a_wake_watches_to_the_end_and_delivers_at_once(poller: PollerWorld) -> None:
    """From the vendor's end to the receiver in less than 10 % of the task's time."""
    task = await poller.add(State.WATCHED)
    await poller.tick(task.task_id)
    ended = poller.now_of(task)
    assert (ended.state, ended.callback, ended.attempts) == (State.SUCCESS, CallbackState.DELIVERED, 1)
    [(at, url, headers, body)] = poller.receivers.attempts
    assert at - poller.vendor.taken["task-t"] - poller.vendor.task_time <= timedelta(seconds=3.3)
    assert (url, headers["webhook-id"], body.decode()) == (
        "https://r.example.com/",
        task.webhook_id,
        ended.message,
    )
    assert ended.expires_at is not None
    assert ended.work_key is None


async def test_an_unchanged_poll_writes_nothing(poller: PollerWorld) -> None:
    """However often the vendor says pending, the task is not written."""
    task = await poller.add(State.WATCHED)
    poller.vendor.task_time = timedelta(hours=1)
    await poller.tick(task.task_id)
    assert len(poller.vendor.polls) > 3
    assert poller.tasks.writes == 1


async def test_a_task_that_failed_at_the_vendor_is_called_back_with_its_words(poller: PollerWorld) -> None:
    """The vendor's message reaches the receiver."""
    task = await poller.add(State.WATCHED)
    poller.vendor.poll_outcomes.append(
        PollOutcome(kind=PollKind.FAILED, message="InvalidFile.Duration: too long")
    )
    await poller.tick(task.task_id)
    ended = poller.now_of(task)
    assert (ended.state, ended.error, ended.callback) == (
        State.FAILED,
        ErrorCode.UPSTREAM_FAILED,
        CallbackState.DELIVERED,
    )
    assert b"InvalidFile.Duration: too long" in poller.receivers.attempts[0][3]


async def test_without_a_url_the_task_just_ends(poller: PollerWorld) -> None:
    """A task that is only watched has no callback and expires."""
    task = await poller.add(State.WATCHED, url=None)
    await poller.tick(task.task_id)
    ended = poller.now_of(task)
    assert (ended.state, ended.callback, ended.work_key, poller.receivers.attempts) == (
        State.SUCCESS,
        CallbackState.NONE,
        None,
        [],
    )


async def test_a_receiver_that_was_down_gets_the_same_message_later(poller: PollerWorld) -> None:
    """All attempts carry the same id and bytes, and a fresh timestamp and signature."""
    task = await poller.add(State.WATCHED)
    poller.receivers.replies.extend([Reply(status=503), Reply(error="refused")])
    await poller.run(timedelta(minutes=8))
    assert poller.now_of(task).callback is CallbackState.DELIVERED
    times, _, headers, bodies = zip(*poller.receivers.attempts, strict=True)
    assert len(times) == 3
    assert len(set(bodies)) == len({header["webhook-id"] for header in headers}) == 1
    assert len({header["webhook-signature"] for header in headers}) == 3
    assert timedelta(seconds=4.5) <= times[1] - times[0] <= timedelta(seconds=6)
    assert timedelta(minutes=4.5) <= times[2] - times[1] <= timedelta(minutes=5.6)
    assert [header["x-modellix-retry-count"] for header in headers] == ["0", "1", "2"]


async def test_a_receiver_that_never_answers_ends_as_undelivered(poller: PollerWorld) -> None:
    """Ten attempts over 75 hours, then the task is kept and says so."""
    task = await poller.add(State.WATCHED)
    poller.receivers.replies.extend([Reply(status=500)] * 10)
    await poller.run(timedelta(hours=85))
    ended = poller.now_of(task)
    assert (ended.callback, ended.attempts, len(ended.log)) == (CallbackState.UNDELIVERED, 10, 10)
    assert ended.work_key is None
    took = poller.receivers.attempts[-1][0] - poller.receivers.attempts[0][0]
    assert timedelta(hours=68) <= took <= timedelta(hours=84)


async def test_a_dead_submit_becomes_unknown_and_ends_as_such(poller: PollerWorld) -> None:
    """A claim that ran out is never paid again: 15 minutes later the callback says so."""
    task = await poller.add(State.SUBMITTING)
    await poller.run(timedelta(minutes=2))
    assert poller.now_of(task).state is State.UNKNOWN
    assert poller.facts("task.submitted") == [
        {"task_id": task.task_id, "caller": "alice", "outcome": "ambiguous"}
    ]
    await poller.run(timedelta(minutes=15))
    ended = poller.now_of(task)
    assert (ended.error, ended.callback) == (ErrorCode.SUBMISSION_UNKNOWN, CallbackState.DELIVERED)
    assert poller.vendor.submits == []


@dataclass(frozen=True)
class Listed(Modellix):
    """A vendor that lists the account's tasks."""

    listing: Listing | None = DASHSCOPE.listing


@pytest.mark.parametrize(
    ("strangers", "rival", "polled", "adopted"),
    [
        (["up-1"], None, PollKind.PENDING, True),
        (["up-1", "up-2"], None, PollKind.PENDING, False),  # either may be it
        ([], None, PollKind.PENDING, False),
        (["up-1"], timedelta(seconds=29), PollKind.PENDING, False),  # or the other one's
        (["up-1"], timedelta(seconds=31), PollKind.PENDING, True),
        (["up-1"], None, PollKind.SUCCEEDED, False),  # it may have been ours, that has ended meanwhile
        (["up-1"], None, PollKind.UNAVAILABLE, False),
    ],
)
async def test_an_unknown_submit_is_adopted_where_the_vendors_list_leaves_no_doubt(
    poller: PollerWorld, strangers: list[str], rival: timedelta | None, polled: PollKind, *, adopted: bool
) -> None:
    """The only one of its model and time that runs, and that is none of ours; else it ends as unknown."""
    poller.vendor.vendor = Listed()
    poller.vendor.lists = ["task-own", *strangers]
    poller.rules = replace(poller.rules, immediate=True)
    task = await poller.add(State.UNKNOWN)
    if rival is not None:
        other = await poller.add(State.UNKNOWN, "rival")
        at = (other.submitted_at or poller.clock.now()) + rival
        await poller.tasks.swap(other, other.model_copy(update={"submitted_at": at}))
    await poller.add(State.WATCHED, "own")
    poller.vendor.task_time = minutes(30)
    poller.vendor.taken["up-1"] = poller.clock.now()
    poller.clock.pass_by(timedelta(seconds=58))
    poller.vendor.poll_outcomes.extend([PollOutcome(kind=PollKind.PENDING)] * 2)
    poller.vendor.answers = {"up-1": polled, "up-2": polled}
    await poller.run(timedelta(minutes=3))
    now = poller.now_of(task)
    assert (now.state, now.upstream_task_id) == (
        (State.WATCHED, "up-1") if adopted else (State.UNKNOWN, None)
    )
    await poller.run(timedelta(minutes=20))
    assert poller.now_of(task).error == (None if adopted else ErrorCode.SUBMISSION_UNKNOWN)


async def watched_at_once(poller: PollerWorld, count: int) -> list[Task]:
    """Add tasks of a vendor that holds polls and calls webhooks; a leader in a cold process learns that."""
    poller.rules = replace(poller.rules, immediate=True, requests_per_minute=100_000)
    poller.control.leadership = LeadershipView(webhook_at=poller.clock.now())
    poller.vendor.holds, poller.vendor.task_time = True, timedelta(seconds=14)
    return [await poller.add(State.WATCHED, f"t{number}") for number in range(count)]


async def test_tasks_that_were_asked_while_one_poll_shows_that_it_is_held_are_held_too(
    poller: PollerWorld,
) -> None:
    """Their webhooks are left to held polls from then on, so none of them waits for its next rare poll."""
    tasks = await watched_at_once(poller, 8)
    await poller.run(minutes(2))
    assert {poller.now_of(task).state for task in tasks} == {State.SUCCESS}
    assert max(lateness(poller)) <= timedelta(seconds=1)


async def test_tasks_beyond_the_polls_that_may_be_held_are_asked_by_age(poller: PollerWorld) -> None:
    """Their webhooks are left to held polls too, so none is asked as rarely as where webhooks tell."""
    tasks = await watched_at_once(poller, HOLDS_AT_ONCE + 20)
    poller.vendor.task_time = timedelta(seconds=40)
    await poller.run(minutes(3))
    assert {poller.now_of(task).state for task in tasks} == {State.SUCCESS}
    assert max(lateness(poller)) <= timedelta(seconds=4 + 1)  # a tenth of their age


async def test_own_tasks_are_told_from_others_on_every_page(poller: PollerWorld) -> None:
    """Of two that run here neither is taken for the one that is looked for."""
    poller.vendor.vendor = Listed()
    poller.vendor.lists = ["task-one", "task-two"]
    poller.vendor.task_time = minutes(30)
    task = await poller.add(State.UNKNOWN)
    await poller.add(State.WATCHED, "one")
    await poller.add(State.WATCHED, "two")
    poller.tasks.page_size = 1
    await poller.run(minutes(20))
    assert poller.now_of(task).error is ErrorCode.SUBMISSION_UNKNOWN


def look_asked(poller: PollerWorld) -> Callable[[], list[timedelta]]:
    """Let the vendor have a list, and give what tells how long after now it was asked."""
    began, times = poller.clock.now(), []
    poller.vendor.vendor, listed = Listed(), poller.vendor.tasks_made

    async def tasks_made(model: str, *, since: datetime, until: datetime) -> ListOutcome:
        times.append(poller.clock.now() - began)
        return await listed(model, since=since, until=until)

    poller.vendor.tasks_made = tasks_made  # type: ignore[method-assign]
    return lambda: times


@pytest.mark.parametrize("leads", [True, False])
async def test_a_look_waits_for_the_end_of_a_pause(poller: PollerWorld, *, leads: bool) -> None:
    """Through however many invocations; it is made once, and what it finds is adopted."""
    asked = look_asked(poller)
    poller.rules = replace(poller.rules, leads=leads)
    task = await poller.add(State.UNKNOWN)
    poller.vendor.taken["up-1"] = poller.clock.now()
    poller.vendor.task_time, poller.vendor.lists = minutes(30), ["up-1"]
    pause = poller.clock.now() + minutes(4)
    poller.control.the_admission = AdmissionState(polls_paused_until=pause)
    await poller.run(minutes(6))
    [at] = asked()
    assert minutes(4) <= at <= minutes(5)
    assert poller.now_of(task).upstream_task_id == "up-1"


@pytest.mark.parametrize(
    ("kind", "retry_after", "pause"),
    [
        (PollKind.THROTTLED, minutes(3), minutes(3)),
        (PollKind.UNAVAILABLE, minutes(3), minutes(3)),  # 503 with a time
        (PollKind.THROTTLED, None, PAUSE_SHORT),
        (PollKind.KEY_REFUSED, None, minutes(1)),
    ],
)
async def test_a_list_that_asks_for_a_pause_is_obeyed(
    poller: PollerWorld, kind: PollKind, retry_after: timedelta | None, pause: timedelta
) -> None:
    """By all that would ask this vendor, and by those that come after; then it is looked at again."""
    asked = look_asked(poller)
    task = await poller.add(State.UNKNOWN)
    poller.vendor.taken["up-1"] = poller.clock.now()
    poller.vendor.task_time, poller.vendor.lists = minutes(30), ["up-1"]
    poller.vendor.list_outcomes = [ListOutcome(kind=kind, retry_after=retry_after)]
    await poller.run(minutes(6))
    assert [facts["seconds"] for facts in poller.facts("vendor.paused")] == [pause.total_seconds()]
    first, second = asked()
    assert pause <= second - first <= pause + minutes(1)
    assert poller.now_of(task).upstream_task_id == "up-1"


async def test_a_pause_past_the_last_moment_ends_an_unknown_submit_in_time(poller: PollerWorld) -> None:
    """It is not looked for, and ends after its quarter of an hour."""
    asked = look_asked(poller)
    task = await poller.add(State.UNKNOWN)
    poller.control.the_admission = AdmissionState(polls_paused_until=poller.clock.now() + minutes(60))
    await poller.run(minutes(17))
    ended = poller.now_of(task)
    assert (ended.error, asked()) == (ErrorCode.SUBMISSION_UNKNOWN, [])
    assert ended.ended_at is not None
    assert ended.ended_at - task.accepted_at < minutes(16)


async def test_no_task_is_adopted_once_a_rival_may_have_ended(poller: PollerWorld) -> None:
    """What the other caller's submit has made is not taken for this one's, for want of the rival."""
    look_asked(poller)
    began = poller.clock.now()
    rival = await poller.add(State.UNKNOWN, "rival", caller="bob")
    poller.vendor.taken["up-rival"] = began
    poller.vendor.task_time, poller.vendor.lists = minutes(60), ["up-rival"]
    poller.clock.pass_by(timedelta(seconds=25))
    task = await poller.add(State.UNKNOWN)
    pause = AdmissionState(polls_paused_until=began + minutes(15) + timedelta(seconds=5))
    poller.control.the_admission = pause
    await poller.run(minutes(18))
    ended = [poller.now_of(each) for each in (rival, task)]
    assert [each.error for each in ended] == 2 * [ErrorCode.SUBMISSION_UNKNOWN]
    assert [each.upstream_task_id for each in ended] == [None, None]


async def test_a_look_for_which_no_request_is_left_is_made_in_the_next_window(
    poller: PollerWorld,
) -> None:
    """With one request left it waits; it is not lost."""
    asked = look_asked(poller)
    poller.rules = replace(poller.rules, requests_per_minute=44)
    task = await poller.add(State.UNKNOWN)
    poller.vendor.taken["up-1"] = poller.clock.now()
    poller.vendor.task_time, poller.vendor.lists = minutes(30), ["up-1"]
    due = poller.clock.now() + timedelta(seconds=60)
    for number in range(2):
        poller.control.used["modellix", window(due) + number] = 2  # of three, less a reserve
    await poller.run(minutes(2))
    [at] = asked()
    assert timedelta(seconds=66) <= at < timedelta(seconds=80)
    assert poller.now_of(task).upstream_task_id == "up-1"


async def test_no_more_than_two_looks_run_at_once(poller: PollerWorld) -> None:
    """Of twenty that are due, and all of them are made; the others' polls do not wait for them."""
    look_asked(poller)
    running, most, looked = 0, 0, 0

    async def tasks_made(*_: object, **__: object) -> ListOutcome:
        nonlocal running, most, looked
        running, looked = running + 1, looked + 1
        most = max(most, running)
        await poller.clock.sleep(timedelta(seconds=8))
        running -= 1
        return ListOutcome(kind=PollKind.UNAVAILABLE)

    poller.vendor.tasks_made = tasks_made  # type: ignore[method-assign]
    now = poller.clock.now()
    for number in range(20):
        unknown = await poller.add(State.UNKNOWN, f"u{number}")
        apart = now + timedelta(seconds=number / 10)
        other_model = {"submitted_at": apart, "model": f"maker/model-{number}"}
        await poller.tasks.swap(unknown, unknown.model_copy(update=other_model))
    poller.vendor.task_time = minutes(2)
    watched = await poller.add(State.WATCHED)
    await poller.run(minutes(4))
    assert (most, looked >= 20) == (2, True)
    ended = poller.now_of(watched).ended_at
    assert ended is not None
    assert ended - now < minutes(2) + timedelta(seconds=15)


async def test_a_delivery_that_died_is_made_again(poller: PollerWorld) -> None:
    """An ended task whose first delivery was claimed and never recorded is found and delivered."""
    task = await poller.add(State.WATCHED)
    now = poller.clock.now()
    await poller.tasks.swap(
        task, task.succeeded({}, now, retention=RETENTION, claim=now + timedelta(seconds=30))
    )
    await poller.run(timedelta(minutes=2))
    assert poller.now_of(task).callback is CallbackState.DELIVERED
    assert poller.receivers.attempts[0][0] >= now + timedelta(seconds=30)


async def test_queued_tasks_are_paid_once_callers_in_turn(poller: PollerWorld) -> None:
    """Two callers' queues are served alternately, and each task is sent once."""
    for name, caller in [("a1", "alice"), ("a2", "alice"), ("a3", "alice"), ("b1", "bob")]:
        await poller.add(State.QUEUED, name, caller)
        poller.clock.pass_by(timedelta(milliseconds=1))
    await poller.tick()
    assert [url.split("/")[-1] for url in poller.vendor.submits] == ["a1.jpg", "b1.jpg", "a2.jpg", "a3.jpg"]
    assert {task.state for task in poller.tasks.items.values()} <= {State.WATCHED, State.SUCCESS}


async def test_a_submit_whose_outcome_is_unknown_was_its_callers_turn(poller: PollerWorld) -> None:
    """The one after the pause is the other's, whose tasks wait behind no trouble of the first."""
    for name, caller in [(f"{caller[0]}{number}", caller) for caller in ("alice", "bob") for number in "123"]:
        await poller.add(State.QUEUED, name, caller)
        poller.clock.pass_by(timedelta(milliseconds=1))
    poller.vendor.submit_outcomes.extend([SubmitOutcome(submission=Submission.AMBIGUOUS, status=503)] * 3)
    await poller.run(timedelta(minutes=5))
    tried = [url.split("/")[-1].removesuffix(".jpg") for url in poller.vendor.submits]
    assert tried[:4] == ["a1", "b1", "a2", "b2"]


async def test_a_queued_task_waits_while_the_vendor_is_busy(poller: PollerWorld) -> None:
    """A refusal for now keeps it queued; when a slot is free it is paid, once."""
    task = await poller.add(State.QUEUED)
    poller.vendor.submit_outcomes.extend([SubmitOutcome(submission=Submission.BUSY, status=429)] * 3)
    began = poller.clock.now()
    await poller.run(timedelta(minutes=5))
    assert len(poller.vendor.submits) == 4
    assert poller.clock.now() - began >= timedelta(minutes=3)
    assert poller.now_of(task).upstream_task_id is not None


@pytest.mark.parametrize("submission", [Submission.REFUSED, Submission.AMBIGUOUS])
async def test_what_ends_a_queued_task_is_called_back(poller: PollerWorld, submission: Submission) -> None:
    """Its 200 is long given, so the callback is the only way to tell."""
    task = await poller.add(State.QUEUED)
    poller.vendor.submit_outcomes.append(SubmitOutcome(submission=submission, status=400, message="bad"))
    await poller.run(timedelta(minutes=18))
    assert (poller.now_of(task).state, poller.now_of(task).callback) == (
        State.FAILED,
        CallbackState.DELIVERED,
    )
    assert len(poller.vendor.submits) == 1


async def test_a_queued_task_whose_time_is_over_is_never_paid(poller: PollerWorld) -> None:
    """It ends as queue_expired, with its callback."""
    task = await poller.add(State.QUEUED)
    poller.clock.pass_by(timedelta(hours=24))
    await poller.tick()
    ended = poller.now_of(task)
    assert (ended.error, ended.callback, poller.vendor.submits) == (
        ErrorCode.QUEUE_EXPIRED,
        CallbackState.DELIVERED,
        [],
    )


async def test_a_queued_task_without_a_callback_whose_time_is_over_ends_too(poller: PollerWorld) -> None:
    """No delivery stores its end in passing."""
    tasks = [await poller.add(State.QUEUED, f"q{number}", url=None) for number in range(2)]
    poller.clock.pass_by(poller.rules.max_queue_age)
    writes = poller.tasks.writes
    await poller.tick()
    assert [poller.now_of(task).error for task in tasks] == [ErrorCode.QUEUE_EXPIRED] * 2
    assert poller.tasks.writes == writes + 2


async def test_a_pause_of_submits_keeps_no_task_past_its_time(poller: PollerWorld) -> None:
    """What waited too long ends at the next tick, of each caller one after the other; the young one stays."""
    old = [await poller.add(State.QUEUED, f"{who}{n}", who) for who in ("alice", "bob") for n in range(2)]
    poller.clock.pass_by(poller.rules.max_queue_age)
    young = await poller.add(State.QUEUED, "young")
    hour = poller.clock.now() + timedelta(hours=1)
    poller.control.the_admission = AdmissionState(waiting=True, paused_until=hour)
    await poller.tick()
    assert [poller.now_of(task).error for task in old] == [ErrorCode.QUEUE_EXPIRED] * 4
    assert [poller.now_of(task).callback for task in old] == [CallbackState.DELIVERED] * 4
    assert (poller.now_of(young).state, poller.vendor.submits) == (State.QUEUED, [])


async def test_queued_tasks_that_end_unpaid_hold_up_no_poll_and_no_delivery(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of one vendor, ended one after the other, are no matter of tasks that are due meanwhile."""
    old = [await poller.add(State.QUEUED, f"{number}") for number in range(300)]
    poller.clock.pass_by(poller.rules.max_queue_age)
    poller.rules = replace(poller.rules, immediate=True)
    watched, began = await poller.add(State.WATCHED, "watched"), poller.clock.now()
    poller.vendor.task_time = timedelta(seconds=2)
    hour = began + timedelta(hours=1)
    poller.control.the_admission = AdmissionState(waiting=True, paused_until=hour)
    swap = poller.tasks.swap

    async def slowly(old: Task, new: Task) -> Task:
        await poller.clock.sleep(timedelta(milliseconds=20))
        return await swap(old, new)

    monkeypatch.setattr(poller.tasks, "swap", slowly)
    await poller.tick()
    assert {poller.now_of(task).error for task in old} == {ErrorCode.QUEUE_EXPIRED}
    ended_at = poller.now_of(watched).ended_at
    assert ended_at is not None
    assert ended_at - began < timedelta(seconds=5)


async def test_a_refused_key_pauses_the_queue_and_fails_no_task(poller: PollerWorld) -> None:
    """401 on a queued task's POST leaves it queued for at least a minute."""
    task = await poller.add(State.QUEUED)
    poller.vendor.submit_outcomes.append(SubmitOutcome(submission=Submission.REFUSED_HERE, status=401))
    await poller.tick()
    assert poller.now_of(task).state is State.QUEUED
    assert len(poller.vendor.submits) == 1


async def test_the_deadline_counts_from_acceptance_and_needs_a_poll_past_it(poller: PollerWorld) -> None:
    """A task that is still pending past MaxTaskAge expires; a success seen then still counts."""
    late, done = await poller.add(State.WATCHED, "late"), await poller.add(State.WATCHED, "done")
    poller.clock.pass_by(timedelta(hours=25))
    poller.vendor.taken["task-late"] = poller.clock.now()
    await poller.tick()
    assert poller.now_of(late).error is ErrorCode.EXPIRED
    assert poller.now_of(done).state is State.SUCCESS


async def test_past_the_hard_stop_no_poll_is_needed(poller: PollerWorld) -> None:
    """48 hours past the deadline a task ends even if the vendor cannot be asked."""
    task = await poller.add(State.WATCHED)
    poller.clock.pass_by(timedelta(hours=72))
    await poller.tick()
    assert (poller.now_of(task).error, poller.vendor.polls) == (ErrorCode.EXPIRED, [])


async def test_a_task_unknown_to_the_vendor_is_lost_only_the_second_time(poller: PollerWorld) -> None:
    """A young 404 says nothing; later two of them, 30 s apart, end the task."""
    task = await poller.add(State.WATCHED)
    poller.vendor.poll_outcomes.extend([PollOutcome(kind=PollKind.MISSING)] * 60)
    await poller.tick(task.task_id)
    await poller.run(timedelta(minutes=3))
    first = next(at for at, _ in poller.vendor.polls if at >= task.accepted_at + timedelta(seconds=60))
    ended = poller.now_of(task)
    assert ended.error is ErrorCode.LOST
    assert ended.ended_at is not None
    assert ended.ended_at >= first + timedelta(seconds=30)


async def test_a_task_that_reappears_is_not_lost(poller: PollerWorld) -> None:
    """One 404 between good answers is forgotten."""
    task = await poller.add(State.WATCHED)
    poller.clock.pass_by(timedelta(minutes=2))
    poller.vendor.task_time = timedelta(minutes=5)
    poller.vendor.poll_outcomes.extend(
        [PollOutcome(kind=PollKind.MISSING), PollOutcome(kind=PollKind.PENDING)]
    )
    await poller.run(timedelta(minutes=6))
    assert poller.now_of(task).state is State.SUCCESS


async def test_what_404s_have_shown_is_stored_for_the_next_leader(poller: PollerWorld) -> None:
    """The first of them, and that it was followed by a good answer."""
    poller.rules = replace(poller.rules, leads=False)
    poller.vendor.task_time = timedelta(hours=1)
    task = await poller.add(State.WATCHED)
    poller.clock.pass_by(timedelta(minutes=2))
    poller.vendor.poll_outcomes.append(PollOutcome(kind=PollKind.MISSING))
    await poller.tick()
    assert poller.now_of(task).missing_since is not None
    poller.clock.pass_by(timedelta(minutes=1))
    await poller.tick()
    assert poller.now_of(task).missing_since is None


async def test_a_throttled_vendor_is_left_alone_for_as_long_as_it_says(poller: PollerWorld) -> None:
    """After a 429 with Retry-After no poll is made before its time is over."""
    task = await poller.add(State.WATCHED)
    poller.vendor.poll_outcomes.append(
        PollOutcome(kind=PollKind.THROTTLED, retry_after=timedelta(seconds=17))
    )
    await poller.tick(task.task_id)
    first, second = poller.vendor.polls[0][0], poller.vendor.polls[1][0]
    assert second - first >= timedelta(seconds=17)


async def test_one_poisoned_task_stops_no_other(poller: PollerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that one task triggers is told and stays with that task."""
    bad, good = await poller.add(State.WATCHED, "bad"), await poller.add(State.WATCHED, "good")
    asked = poller.vendor.poll

    async def poll_or_break(upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        if upstream_task_id == "task-bad":
            raise RuntimeError("poison")
        return await asked(upstream_task_id, hold=hold)

    monkeypatch.setattr(poller.vendor, "poll", poll_or_break)
    await poller.run(timedelta(minutes=2))
    assert poller.now_of(good).callback is CallbackState.DELIVERED
    assert poller.now_of(bad).state is State.WATCHED
    assert poller.reported.count("task.crashed") > 0


async def test_a_wake_leaves_the_watching_to_the_leader(poller: PollerWorld) -> None:
    """It serves its own ids and ends."""
    poller.control.leadership = LeadershipView(leader="other", until=poller.clock.now() + STOP)
    task = await poller.add(State.WATCHED)
    report = await poller.tick(task.task_id)
    assert (report.led, poller.control.leadership.leader, poller.vendor.polls) == (False, "other", [])


async def test_a_tick_takes_the_leadership_over_and_the_old_leader_leaves(poller: PollerWorld) -> None:
    """Within a scan the old leader sees that there is a new one, and starts nothing more."""
    poller.vendor.task_time = timedelta(hours=1)
    await poller.add(State.WATCHED)
    sleep = poller.clock.sleep
    replaced_at = poller.clock.now() + timedelta(seconds=30)

    async def sleep_and_be_replaced(duration: timedelta) -> None:
        await sleep(duration)
        if poller.clock.now() >= replaced_at:
            poller.control.leadership = LeadershipView(leader="newer", until=poller.clock.now() + STOP)

    poller.ports.clock.sleep = sleep_and_be_replaced  # type: ignore[method-assign]  # in its sleep
    await poller.tick()
    assert poller.clock.now() - replaced_at <= SCAN + BEAT
    assert poller.control.leadership.leader == "newer"


async def hand_over(poller: PollerWorld, task: Task, at: timedelta) -> None:
    """Let one invocation be woken for a task, and a tick take over a while later; polls are not held."""
    poller.rules = replace(poller.rules, long_poll=False)

    async def tick() -> None:
        await poller.clock.sleep(at)
        await poller.tick()

    await asyncio.gather(poller.tick(task.task_id), tick())


async def test_an_end_stored_during_the_hand_over_is_delivered_at_once(poller: PollerWorld) -> None:
    """The old leader claimed the delivery with the end; the new one need not wait for that claim."""
    poller.vendor.task_time, poller.vendor.answer_time = timedelta(seconds=25), timedelta(seconds=6)
    task = await poller.add(State.WATCHED)
    await hand_over(poller, task, timedelta(seconds=22))  # the poll of 20 s is answered at 26 s
    ended = poller.now_of(task)
    assert ended.ended_at is not None
    assert [at - ended.ended_at for at, *_ in poller.receivers.attempts] == [timedelta(0)]


async def test_no_attempt_begins_after_the_last_moment_under_a_claim_that_is_nearly_over(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of the end took 20 of the 30 s that it claims: the next invocation makes the attempt."""
    poller.vendor.holds, poller.vendor.task_time = True, STOP - DRAIN - timedelta(seconds=10)
    task, swap = await poller.add(State.WATCHED), poller.tasks.swap

    async def slowly(old: Task, new: Task) -> Task:
        stored = await swap(old, new)
        if old.state is State.WATCHED and new.state is State.SUCCESS:
            await poller.clock.sleep(timedelta(seconds=20))
        return stored

    monkeypatch.setattr(poller.tasks, "swap", slowly)
    await poller.tick(task.task_id)
    assert poller.now_of(task).state is State.SUCCESS
    assert poller.receivers.attempts == []
    monkeypatch.undo()
    await ticks(poller, minutes(2))
    assert poller.now_of(task).callback is CallbackState.DELIVERED


@pytest.mark.parametrize("at_s", [19, 21.5, 22.5, 28])  # before the poll, during it, and during the attempt
async def test_a_retry_is_not_late_for_a_hand_over(poller: PollerWorld, at_s: float) -> None:
    """The new leader has seen the old one's claim of the first attempt, and does not wait for its end."""
    poller.vendor.task_time, poller.vendor.answer_time = timedelta(seconds=22), timedelta(seconds=3)
    poller.receivers.answer_time = timedelta(seconds=10)
    poller.receivers.replies.append(Reply(status=503, elapsed=timedelta(seconds=10)))
    task = await poller.add(State.WATCHED)
    await hand_over(poller, task, timedelta(seconds=at_s))
    (first, *_), (second, *_) = poller.receivers.attempts
    assert timedelta(seconds=14) <= second - first <= timedelta(seconds=18)


@pytest.mark.parametrize("at_s", [21.8, 21.9, 21.95, 22.05])
async def test_a_point_of_polling_is_not_lost_between_two_invocations(
    poller: PollerWorld, at_s: float
) -> None:
    """The old leader looks no more once there is a new one; what came due since is the new one's."""
    poller.vendor.task_time = timedelta(seconds=21)
    task = await poller.add(State.WATCHED)
    poller.clock.pass_by(timedelta(milliseconds=130))  # so that the point lies between two beats
    await hand_over(poller, task, timedelta(seconds=at_s))
    ended = poller.now_of(task)
    assert ended.ended_at is not None
    # by the point of 22 s, not the one of 24.2 s
    assert ended.ended_at - ended.accepted_at < timedelta(seconds=23)


async def paid_by_another(poller: PollerWorld, queued: Task) -> None:
    """Take a task out of the queue and have the vendor take it."""
    now = poller.vendor.taken["task-t"] = poller.clock.now()
    outcome = SubmitOutcome(submission=Submission.TAKEN, upstream_task_id="task-t", status=200)
    submitting = queued.claim_submit(now, until=now + timedelta(minutes=1))
    await poller.tasks.swap(queued, submitting.submitted(outcome, now, retention=RETENTION))


async def test_a_task_that_another_invocation_took_out_of_the_queue_is_looked_after(
    poller: PollerWorld,
) -> None:
    """It enters the index of watched tasks at its acceptance, long before the newest that was seen there."""
    poller.rules = replace(poller.rules, long_poll=False)
    queued = await poller.add(State.QUEUED)
    poller.clock.pass_by(timedelta(minutes=5))
    poller.control.the_admission = AdmissionState(
        waiting=True, paused_until=poller.clock.now() + timedelta(hours=1)
    )
    await poller.add(State.WATCHED, "other")
    leading = asyncio.create_task(poller.tick())
    await poller.clock.sleep(timedelta(seconds=10))
    await paid_by_another(poller, queued)
    await leading
    assert poller.now_of(queued).callback is CallbackState.DELIVERED


async def test_a_task_that_leaves_the_queue_between_two_looks_is_seen_by_one_of_them(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two queries are two moments."""
    queued = await poller.add(State.QUEUED)
    poller.clock.pass_by(timedelta(minutes=5))
    looks = [poller.tasks.watched, poller.tasks.queue_waits]

    def leaving_after_the_first(look: Any) -> Any:
        async def see(*where: Any, **known: Any) -> Any:
            seen = await look(*where, **known)
            if looks:
                looks.clear()
                await paid_by_another(poller, queued)
            return seen

        return see

    for look in looks:
        monkeypatch.setattr(poller.tasks, look.__name__, leaving_after_the_first(look))
    await poller.tick()
    assert poller.now_of(queued).callback is CallbackState.DELIVERED


async def test_a_leader_that_leaves_claims_nothing_more(poller: PollerWorld) -> None:
    """Attempts fill the host's slots at the hand-over; one more is left, unclaimed, to the next leader."""
    poller.receivers.answer_time = timedelta(seconds=10)
    now = poller.clock.now()
    for number in range(FIRST_SLOTS + 1):
        task = await poller.add(State.WATCHED, str(number))
        await poller.tasks.swap(task, task.succeeded({}, now, retention=RETENTION, claim=now))

    async def take_over() -> None:
        await poller.clock.sleep(timedelta(seconds=3))
        poller.control.leadership = LeadershipView(leader="newer", until=poller.clock.now() + STOP)

    await asyncio.gather(poller.tick(), take_over())
    assert len(poller.receivers.attempts) == FIRST_SLOTS
    assert [
        task.claimed(poller.clock.now()) for task in poller.tasks.items.values() if task.attempts == 0
    ] == [False]


async def test_a_claimed_task_is_looked_at_once_a_scan(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poller that waits for another's claim reads no more often than it looks for work."""
    await poller.add(State.SUBMITTING)  # claimed for 35 s
    looks = []
    get = poller.tasks.get

    async def counted(task_id: str) -> Task | None:
        looks.append(poller.clock.now())
        return await get(task_id)

    monkeypatch.setattr(poller.tasks, "get", counted)
    await poller.tick()
    assert all(later - earlier >= SCAN for earlier, later in pairwise(looks))
    assert len(looks) > 5


async def test_a_queued_task_that_the_index_shows_late_holds_no_other_up(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another invocation has just paid the head of the queue; the caller behind it is served all the same."""
    late, queued = (
        await poller.add(State.WATCHED, "late", "alice"),
        await poller.add(State.QUEUED, "next", "bob"),
    )
    heads = poller.tasks.queue_heads

    async def lagging(vendor: str) -> list[Task]:
        return [late, *await heads(vendor)]

    monkeypatch.setattr(poller.tasks, "queue_heads", lagging)
    await poller.tick()
    assert poller.vendor.submits == ["https://example.com/next.jpg"]
    assert poller.now_of(queued).state is State.SUCCESS
    assert poller.reported.count("task.crashed") == 0


async def test_economy_makes_one_pass_a_tick(poller: PollerWorld) -> None:
    """No leads: what is due is done, and the rest waits for the next tick."""
    poller.rules = Rules(
        retention=RETENTION, max_task_age=timedelta(hours=24), max_queue_age=timedelta(hours=24), leads=False
    )
    task = await poller.add(State.WATCHED)
    poller.clock.pass_by(timedelta(seconds=25))
    began = poller.clock.now()
    report = await poller.tick()
    assert (report.led, len(poller.vendor.polls)) == (False, 1)
    assert poller.clock.now() - began < timedelta(seconds=1)
    await poller.run(timedelta(minutes=2))
    assert poller.now_of(task).callback is CallbackState.DELIVERED


@pytest.mark.parametrize("state", [State.WATCHED, State.ARCHIVING])
async def test_what_a_wake_brings_is_served_although_time_goes_on_meanwhile(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    """A real clock moves between any two looks at it; one that does not lead serves its ids all the same."""
    task = await poller.add(State.WATCHED)
    if state is State.ARCHIVING:
        data = {"result": {"resources": [{"url": "https://files.example.com/1.mp4"}]}}
        await poller.tasks.swap(task, task.archiving(data, poller.clock.now(), new_token=lambda: "t" * 32))
    poller.clock.pass_by(minutes(20))
    poller.control.leadership = LeadershipView(leader="other", until=poller.clock.now() + STOP)
    plain = poller.clock.now

    def now() -> datetime:
        poller.clock.pass_by(timedelta(microseconds=7))
        return plain()

    monkeypatch.setattr(poller.clock, "now", now)
    if state is State.ARCHIVING:
        await poller.tick(task.task_id)
    else:
        await poller.tick(ended=(task.task_id,))
    assert poller.now_of(task).callback is CallbackState.DELIVERED


async def test_a_removed_caller_is_an_error_of_the_attempt(poller: PollerWorld) -> None:
    """Without a record there is no secret to sign with; the schedule goes on and nothing is lost."""
    task = await poller.add(State.WATCHED, caller="mallory")
    await poller.tick(task.task_id)
    assert poller.now_of(task).log[0].error == "caller_unreadable"
    assert poller.now_of(task).callback is CallbackState.WAITING


# --- what an invocation tells of its load ---------------------------------------------------------


async def test_polls_are_told_once_with_the_time_that_tasks_have_used(poller: PollerWorld) -> None:
    """One line an invocation, whatever the number of tasks; the one nearest to its deadline counts."""
    for name in ("a", "b"):
        await poller.add(State.WATCHED, name)
    poller.clock.pass_by(timedelta(hours=18))
    for upstream in poller.vendor.taken:
        poller.vendor.taken[upstream] = poller.clock.now()
    await poller.tick()
    told = {"vendor": "modellix", "count": len(poller.vendor.polls), "deadline_used": 75.0}
    assert poller.facts("vendor.polled") == [told]
    assert poller.facts("vendor.unavailable") == []


async def test_polls_without_an_answer_are_told_once_with_the_reason(poller: PollerWorld) -> None:
    """An outage of the vendor is one line an invocation, not one a poll."""
    task = await poller.add(State.WATCHED)
    poller.vendor.poll_outcomes.extend([PollOutcome(kind=PollKind.UNAVAILABLE, message="ConnectTimeout")] * 3)
    await poller.tick(task.task_id)
    assert poller.facts("vendor.unavailable") == [
        {"vendor": "modellix", "count": 3, "error": "ConnectTimeout"}
    ]


@pytest.mark.parametrize(("holds", "least_s", "most_s"), [(True, 0, 1), (False, 2, 5)])
async def test_lateness_counts_from_when_the_task_is_last_known_to_have_run(
    poller: PollerWorld, *, holds: bool, least_s: float, most_s: float
) -> None:
    """A held poll sees the end itself; otherwise the poll before bounds how long it went unseen."""
    poller.vendor.holds = holds
    task = await poller.add(State.WATCHED)
    await poller.tick(task.task_id)
    [attempted] = poller.facts("callback.attempted")
    [true] = lateness(poller)
    assert true.total_seconds() <= attempted["late_s"]
    assert least_s <= attempted["late_s"] <= most_s


async def test_a_message_asked_for_again_is_not_late(poller: PollerWorld) -> None:
    """A redelivery waited because its caller did; a retry has kept the receiver waiting since the end."""
    poller.receivers.replies.append(Reply(status=500))
    task = await poller.add(State.WATCHED)
    await poller.run(timedelta(minutes=1))
    await poller.tasks.swap(poller.now_of(task), poller.now_of(task).redelivered(poller.clock.now()))
    await poller.tick()
    failed, delivered, again = poller.facts("callback.attempted")
    assert (failed["late_s"], again["late_s"]) == (None, None)
    assert 5 <= delivered["late_s"] <= 15


async def test_a_queue_that_waits_tells_its_oldest(poller: PollerWorld) -> None:
    """As far as it was looked at anyway; nothing is said where everything was served."""
    old = await poller.add(State.QUEUED, "old")
    poller.clock.pass_by(timedelta(hours=6))
    await poller.add(State.QUEUED, "new", "bob")
    poller.vendor.submit_outcomes.append(SubmitOutcome(submission=Submission.BUSY, status=429))
    await poller.tick()
    [waited] = poller.facts("queue.waited")
    assert waited == {"vendor": "modellix", "oldest_queued_s": 6 * 3600, "deadline_used": 25.0}
    await poller.run(timedelta(minutes=2))
    assert poller.now_of(old).upstream_task_id is not None
    poller.reported.events.clear()
    await poller.tick()
    assert poller.facts("queue.waited") == []


# --- held polls, webhooks, budget, slots ----------------------------------------------------------


def lateness(poller: PollerWorld) -> list[timedelta]:
    """Tell for each delivered task how long after its end the receiver heard of it."""
    ends = {
        task.task_id: poller.vendor.taken[task.upstream_task_id or ""] + poller.vendor.task_time
        for task in poller.tasks.items.values()
    }
    return [at - ends[headers["x-modellix-task-id"]] for at, _, headers, _ in poller.receivers.attempts]


async def test_a_vendor_that_holds_polls_is_found_out_and_asked_rarely(poller: PollerWorld) -> None:
    """One poll tells, then every task has one held poll at a time; the news comes at once."""
    poller.vendor.holds = True
    poller.vendor.task_time = timedelta(seconds=100)
    for number in range(10):
        await poller.add(State.WATCHED, f"t{number}")
    await poller.run(timedelta(minutes=3))
    assert len(lateness(poller)) == 10
    assert max(lateness(poller)) <= timedelta(seconds=1.5)
    assert len(poller.vendor.polls) <= 10 * 6
    assert poller.ports.long_poll_support.holds == {"alibaba/wan2.2-animate-mix": True}


async def test_a_vendor_that_does_not_hold_is_polled_by_the_schedule(poller: PollerWorld) -> None:
    """A pending that comes at once settles it; it is not asked to hold again for a while."""
    poller.vendor.task_time = timedelta(seconds=100)
    await poller.add(State.WATCHED)
    await poller.run(timedelta(minutes=3))
    assert poller.ports.long_poll_support.holds == {"alibaba/wan2.2-animate-mix": False}
    assert max(lateness(poller)) <= timedelta(seconds=10.5)
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(poller.vendor.polls)]
    assert min(gaps) >= timedelta(seconds=2)


async def test_long_poll_can_be_switched_off(poller: PollerWorld) -> None:
    """Then nothing is found out either."""
    poller.vendor.holds = True
    poller.rules = replace(poller.rules, long_poll=False)
    await poller.add(State.WATCHED)
    await poller.run(timedelta(minutes=2))
    assert poller.ports.long_poll_support.holds == {}


@pytest.mark.parametrize("led", [True, False])
async def test_a_task_that_a_webhook_names_is_asked_about_at_once(poller: PollerWorld, *, led: bool) -> None:
    """Whether another one leads or none, a wake with an ended task polls and delivers it."""
    until = poller.clock.now() + (2 * STOP if led else timedelta(0))
    poller.control.leadership = LeadershipView(leader="other", until=until, webhook_at=poller.clock.now())
    task = await poller.add(State.WATCHED)
    poller.clock.pass_by(poller.vendor.task_time)
    began = poller.clock.now()
    await poller.tick(ended=(task.task_id,))
    assert poller.now_of(task).callback is CallbackState.DELIVERED
    assert poller.clock.now() - began < timedelta(seconds=1)


@pytest.mark.parametrize("led", [True, False])
async def test_an_end_that_was_told_is_not_asked_for_again(poller: PollerWorld, *, led: bool) -> None:
    """The check of the webhook has asked already; nor does it need a request of the budget."""
    until = poller.clock.now() + (2 * STOP if led else timedelta(0))
    poller.control.leadership = LeadershipView(leader="other", until=until, webhook_at=poller.clock.now())
    poller.rules = replace(poller.rules, requests_per_minute=0)
    for name, told, state in (
        ("good", PollOutcome(kind=PollKind.SUCCEEDED, data={"result": {"resources": []}}), State.SUCCESS),
        ("bad", PollOutcome(kind=PollKind.FAILED, message="no human"), State.FAILED),
    ):
        task = await poller.add(State.WATCHED, name)
        await poller.tick(told={task.task_id: told})
        assert (poller.now_of(task).state, poller.now_of(task).callback) == (state, CallbackState.DELIVERED)
    assert poller.vendor.polls == []


async def test_what_was_told_is_used_once(poller: PollerWorld) -> None:
    """Where it could not be stored the vendor is asked, as it stands then."""
    task = await poller.add(State.WATCHED)
    poller.clock.pass_by(poller.vendor.task_time)
    swap, down = poller.tasks.swap, [True]

    async def once_down(old: Task, new: Task) -> Task:
        if down:
            down.pop()
            raise StoreUnavailableError("ThrottlingException")
        return await swap(old, new)

    poller.tasks.swap = once_down  # type: ignore[method-assign]  # the first write is lost
    await poller.tick(told={task.task_id: PollOutcome(kind=PollKind.SUCCEEDED, data={})})
    await poller.run(timedelta(minutes=1))
    assert poller.now_of(task).callback is CallbackState.DELIVERED
    assert len(poller.vendor.polls) == 1


def test_a_wake_may_name_what_has_ended_and_say_how() -> None:
    """A version before names ids only."""
    assert ends_of({"accepted": ["a"]}) == {}
    assert ends_of({"ended": ["a"]}) == {"a": None}
    told = PollOutcome(kind=PollKind.SUCCEEDED, data={"result": 1.0})
    assert ends_of({"ended": {"a": told.model_dump(mode="json", exclude_defaults=True), "b": None}}) == {
        "a": told,
        "b": None,
    }


async def test_a_retry_left_by_a_wake_is_not_late(poller: PollerWorld) -> None:
    """A wake delivers and leaves the retry to the leader, which still took the task for watched."""
    poller.control.leadership = LeadershipView(webhook_at=poller.clock.now())
    poller.rules = replace(poller.rules, long_poll=False)
    poller.vendor.task_time = timedelta(seconds=5)
    poller.receivers.replies.append(Reply(status=503))
    task, other = await poller.add(State.WATCHED), await poller.add(State.WATCHED, "other")
    now = poller.clock.now()
    ended = await poller.tasks.swap(other, other.succeeded({}, now, retention=RETENTION, claim=now))
    later = now + timedelta(seconds=55)  # for this the first one leads on
    await poller.tasks.swap(
        ended, ended.attempted(Attempt(at=now), delivered=False, retry_at=later, now=now, retention=RETENTION)
    )

    async def webhook() -> None:
        await poller.clock.sleep(timedelta(seconds=6))
        await poller.tick(ended=(task.task_id,))

    await asyncio.gather(poller.tick(), webhook())
    first, second = (at for at, *_, body in poller.receivers.attempts if task.task_id in body.decode())
    assert second - first <= timedelta(seconds=8)


async def test_a_successor_holds_the_held_polls_on(poller: PollerWorld) -> None:
    """The webhook was left to a poll that was dropped, so a new process asks at once all the same."""
    poller.vendor.holds = True
    task = await poller.add(State.WATCHED)
    poller.clock.pass_by(poller.vendor.task_time)
    now = poller.clock.now()
    poller.control.leadership = LeadershipView(
        leader="other", until=now + STOP, webhook_at=now, held_models=(task.model,)
    )
    await poller.tick()
    assert max(lateness(poller)) <= timedelta(seconds=1)


async def test_where_webhooks_come_polls_are_rare(poller: PollerWorld) -> None:
    """Once a minute is enough of a net."""
    poller.control.leadership = LeadershipView(webhook_at=poller.clock.now())
    poller.vendor.task_time = timedelta(seconds=150)
    poller.rules = replace(poller.rules, long_poll=False)
    await poller.add(State.WATCHED)
    await poller.run(timedelta(minutes=4))
    assert len(poller.vendor.polls) == 3
    assert poller.control.leadership.webhook_at is None  # it ended without a webhook


async def test_where_webhooks_come_it_is_still_found_out_whether_polls_are_held(poller: PollerWorld) -> None:
    """A held poll costs less than a webhook (two invocations, two requests); one poll is enough to know."""
    poller.control.leadership = LeadershipView(webhook_at=poller.clock.now())
    poller.vendor.holds = True
    poller.vendor.task_time = timedelta(seconds=50)
    for number in range(3):
        await poller.add(State.WATCHED, f"t{number}")
    await poller.run(timedelta(minutes=1))
    assert poller.control.leadership.held_models
    assert max(lateness(poller)) <= timedelta(seconds=1)


async def test_where_polls_are_not_held_one_poll_is_spent_on_finding_out(poller: PollerWorld) -> None:
    """All others stay as rare as webhooks make them."""
    poller.control.leadership = LeadershipView(webhook_at=poller.clock.now())
    poller.vendor.task_time = timedelta(seconds=200)
    began = poller.clock.now()
    for number in range(30):
        await poller.add(State.WATCHED, f"t{number}")
        poller.clock.pass_by(timedelta(seconds=0.3))
    await poller.run(timedelta(minutes=1))
    assert sum(at < began + timedelta(seconds=55) for at, _ in poller.vendor.polls) <= 2


async def test_what_was_polled_before_a_leader_left_is_not_polled_again(poller: PollerWorld) -> None:
    """A leader that leaves because nothing is due has polled up to then, and says so."""
    poller.control.leadership = LeadershipView(webhook_at=poller.clock.now())
    poller.vendor.task_time = timedelta(seconds=230)
    poller.rules = replace(poller.rules, long_poll=False)
    await poller.add(State.WATCHED)
    began = poller.clock.now()
    # so that each tick is followed by a point, and by nothing else
    poller.clock.pass_by(timedelta(seconds=20))
    await poller.run(timedelta(minutes=4))
    assert [round((at - began).total_seconds()) for at, _ in poller.vendor.polls] == [60, 120, 180, 240]


async def test_a_leader_that_leaves_after_an_unanswered_poll_does_not_call_it_served(
    poller: PollerWorld,
) -> None:
    """It may have been the one that mattered; the next leader asks again, before the next rare poll time."""
    poller.control.leadership = LeadershipView(webhook_at=poller.clock.now())
    poller.rules = replace(poller.rules, long_poll=False)
    poller.vendor.task_time = timedelta(seconds=475)
    await poller.add(State.WATCHED)
    began = poller.clock.now()
    poller.clock.pass_by(timedelta(seconds=5))
    ask = poller.vendor.poll

    async def poll(upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        if timedelta(seconds=479) < poller.clock.now() - began < timedelta(seconds=482):
            return PollOutcome(kind=PollKind.UNAVAILABLE, message="no")
        return await ask(upstream_task_id, hold=hold)

    poller.vendor.poll = poll  # type: ignore[method-assign]  # one poll time gets no answer
    await poller.run(timedelta(minutes=12))
    assert max(lateness(poller)) <= timedelta(seconds=15)


async def test_a_leader_that_leaves_without_having_seen_calls_nothing_served(poller: PollerWorld) -> None:
    """While the index is down, a wake serves its own task; the others' poll times are still to be served."""
    poller.rules = replace(poller.rules, long_poll=False, immediate=True)
    await poller.add(State.WATCHED)
    point = schedule.next_poll(timedelta(seconds=700), first=timedelta(0))
    poller.vendor.task_time = timedelta(seconds=15)
    # it ends a second before its point
    poller.vendor.taken["task-t"] = poller.clock.now() + point - timedelta(seconds=16)
    poller.clock.pass_by(point - timedelta(seconds=5))
    other = await poller.add(State.WATCHED, "other")
    watched = poller.tasks.watched

    async def down(*_: object, **__: object) -> Rows:
        raise StoreUnavailableError("ThrottlingException")

    poller.tasks.watched = down  # type: ignore[method-assign]  # for as long as the wake's invocation lives
    await poller.tick(other.task_id)
    poller.tasks.watched = watched  # type: ignore[method-assign]
    await poller.run(timedelta(minutes=4))
    assert max(lateness(poller)) <= timedelta(seconds=15)


async def test_lateness_is_told_as_what_it_may_have_been_at_most(poller: PollerWorld) -> None:
    """The leader that left did not ask just then: the last poll may be as old as poll times are apart."""
    poller.rules = replace(poller.rules, long_poll=False)
    poller.control.leadership = LeadershipView(webhook_at=poller.clock.now())
    poller.vendor.task_time = timedelta(seconds=63)
    await poller.add(State.WATCHED)
    poller.clock.pass_by(timedelta(seconds=15))
    await poller.add(State.WATCHED, "other")
    poller.clock.pass_by(timedelta(seconds=5))
    await poller.run(timedelta(minutes=4))
    told = [facts["late_s"] for facts in poller.facts("callback.attempted")]
    assert [late >= true.total_seconds() for late, true in zip(told, lateness(poller), strict=True)] == [
        True,
        True,
    ]


async def test_polls_are_rare_as_soon_as_webhooks_are_known_to_come(poller: PollerWorld) -> None:
    """The leader sees it in the leadership, and replans what it was about to ask."""
    poller.rules = replace(poller.rules, long_poll=False)
    poller.vendor.task_time = timedelta(seconds=200)
    await poller.add(State.WATCHED)
    began = poller.clock.now()

    async def learn() -> None:
        await poller.clock.sleep(timedelta(seconds=40))
        await poller.control.webhook_came(poller.clock.now())

    await asyncio.gather(poller.run(timedelta(minutes=3)), learn())
    asked = [round((at - began).total_seconds()) for at, _ in poller.vendor.polls]
    assert [at for at in asked if 43 <= at < 180] == [60, 120]


async def test_where_a_webhook_stays_away_no_task_waits_for_the_next(poller: PollerWorld) -> None:
    """A task that ended without one is found by a rare poll, and brings back the others' ordinary ones."""
    poller.control.leadership = LeadershipView(webhook_at=poller.clock.now())
    poller.vendor.task_time = timedelta(seconds=45)
    poller.rules = replace(poller.rules, long_poll=False)
    await poller.add(State.WATCHED)
    poller.clock.pass_by(timedelta(seconds=10))
    await poller.add(State.WATCHED, "later")
    await poller.run(timedelta(minutes=2))
    assert lateness(poller)[1] <= timedelta(seconds=8)


@pytest.mark.parametrize("holds", [True, False])
async def test_no_minute_sees_more_requests_than_allowed(poller: PollerWorld, *, holds: bool) -> None:
    """Wherever it begins, hand-overs included; and nothing is lost when requests are short."""
    poller.rules = replace(poller.rules, requests_per_minute=100)
    poller.vendor.holds = holds
    poller.vendor.task_time = timedelta(seconds=200)
    for number in range(60):
        await poller.add(State.WATCHED, f"t{number}")
    await poller.run(timedelta(minutes=10))
    times = [at for at, _ in poller.vendor.polls]
    busiest = max(sum(at <= other < at + timedelta(minutes=1) for other in times) for at in times)
    assert busiest <= 100
    assert all(task.callback is CallbackState.DELIVERED for task in poller.tasks.items.values())


async def test_two_slots_serve_any_queue_callers_in_turn(poller: PollerWorld) -> None:
    """Everything ends, nothing is paid twice, a newcomer is next, and a probe costs one refusal a minute."""
    poller.vendor.slots = 2
    poller.vendor.task_time = timedelta(seconds=45)
    for number in range(60):
        await poller.add(State.QUEUED, f"a{number:03}", "alice")
        poller.clock.pass_by(timedelta(milliseconds=1))
    await poller.run(timedelta(minutes=2))
    paid = len(poller.vendor.taken)
    newcomer = await poller.add(State.QUEUED, "b", "bob")
    began = poller.clock.now()
    await poller.run(timedelta(minutes=30))
    assert all(task.callback is CallbackState.DELIVERED for task in poller.tasks.items.values())
    accepted = [url for url in poller.vendor.submits if poller.vendor.submits.count(url) == 1]
    assert len(poller.vendor.taken) == 61
    assert accepted
    position = [
        task.task_id for task in sorted(poller.tasks.items.values(), key=lambda task: task.taken_at or began)
    ].index(newcomer.task_id)
    assert position <= paid + 2
    minutes = (poller.clock.now() - began) / timedelta(minutes=1) + 2
    assert poller.vendor.refused <= minutes + 1


async def test_admission_opens_when_no_task_waits_any_more(poller: PollerWorld) -> None:
    """And what was learnt of the vendor's slots is kept."""
    poller.control.the_admission = AdmissionState(waiting=True, slots=2, probed_at=poller.clock.now())
    await poller.add(State.QUEUED)
    await poller.tick()
    assert (poller.control.the_admission.waiting, poller.control.the_admission.slots) == (False, 2)


async def test_a_hung_poll_and_garbage_delay_no_other_task(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One task whose poll hangs, one whose answer is garbage, and 50 good ones, as late as without them."""
    alone = PollerWorld()
    for world, names in ((alone, []), (poller, ["hung", "garbage"])):
        for name in [*names, *(f"t{number}" for number in range(50))]:
            await world.add(State.WATCHED, name)
        asked = world.vendor.poll

        async def poll(
            upstream_task_id: str,
            *,
            hold: bool = False,
            asked: Any = asked,
            world: PollerWorld = world,
            **_: object,
        ) -> PollOutcome:
            if upstream_task_id == "task-hung":
                await world.clock.sleep(timedelta(seconds=10))
            if upstream_task_id in {"task-hung", "task-garbage"}:
                return PollOutcome(kind=PollKind.UNAVAILABLE)
            outcome: PollOutcome = await asked(upstream_task_id, hold=hold)
            return outcome

        monkeypatch.setattr(world.vendor, "poll", poll)
        await world.run(timedelta(minutes=2))
    good = lateness(poller)
    assert len(good) == 50
    assert max(good) <= max(lateness(alone)) + timedelta(seconds=0.3)


@pytest.mark.parametrize("behind_s", [0, 60])
async def test_a_wake_that_found_the_leadership_held_to_the_last_is_not_left_to_the_tick(
    poller: PollerWorld, behind_s: int
) -> None:
    """The leader looks once more after it has resigned, far enough back for a submitter's late clock."""
    poller.vendor.task_time = timedelta(seconds=20)
    late: list[Task] = []
    resign = poller.control.resign

    async def resign_at_the_last_moment(leader: str, *, drained_at: datetime | None = None) -> None:
        if not late:
            odd = await poller.add(State.WATCHED, "late")
            del poller.tasks.items[odd.task_id]
            shifted = odd.accepted_at - timedelta(seconds=behind_s)
            late.append(await poller.tasks.add(odd.model_copy(update={"accepted_at": shifted})))
            assert not (await poller.tick(late[0].task_id)).led
        await resign(leader, drained_at=drained_at)

    poller.control.resign = resign_at_the_last_moment  # type: ignore[method-assign]  # right after a wake
    await poller.tick((await poller.add(State.WATCHED)).task_id)
    assert poller.now_of(late[0]).callback is CallbackState.DELIVERED
    assert not poller.control.leadership.alive(poller.clock.now())


async def test_a_task_seen_while_it_is_submitted_is_watched_as_soon_as_it_is_taken(
    poller: PollerWorld,
) -> None:
    """The leader does not wait for the end of the submitter's claim."""
    poller.vendor.task_time = timedelta(seconds=25)
    await poller.add(State.WATCHED)  # keeps the leader
    late = await poller.add(State.SUBMITTING, "late")

    async def answer() -> None:
        await poller.clock.sleep(timedelta(seconds=5))
        now = poller.clock.now()
        poller.vendor.taken["task-late"] = now
        taken = SubmitOutcome(submission=Submission.TAKEN, upstream_task_id="task-late", status=200)
        await poller.tasks.swap(late, late.submitted(taken, now, retention=RETENTION))

    submitter = asyncio.create_task(answer())
    await poller.tick()
    await submitter
    ended = poller.now_of(late)
    assert ended.callback is CallbackState.DELIVERED
    assert ended.ended_at is not None
    assert ended.ended_at - poller.vendor.taken["task-late"] < timedelta(seconds=29)


async def test_after_an_unanswered_poll_no_webhook_is_waited_for(poller: PollerWorld) -> None:
    """It may have been the one that mattered."""
    poller.control.leadership = LeadershipView(webhook_at=poller.clock.now())
    poller.rules = replace(poller.rules, long_poll=False)
    await poller.add(State.WATCHED)
    poller.vendor.poll_outcomes.append(PollOutcome(kind=PollKind.UNAVAILABLE))
    await poller.run(timedelta(minutes=2))
    first, second = (at for at, _ in poller.vendor.polls[:2])
    assert second - first <= timedelta(seconds=10)


async def test_what_a_wake_has_ended_is_not_asked_about_again(poller: PollerWorld) -> None:
    """The leader reads the task before a rare poll: no request is wasted, and webhooks are not doubted."""
    poller.control.leadership = LeadershipView(webhook_at=poller.clock.now())
    poller.rules = replace(poller.rules, long_poll=False)
    task = await poller.add(State.WATCHED)

    async def tick() -> None:
        await poller.clock.sleep(timedelta(seconds=20))  # so that the rare poll at 60 s is this invocation's
        await poller.tick()

    async def webhook() -> None:
        await poller.clock.sleep(poller.vendor.task_time)
        await poller.tick(ended=(task.task_id,))

    await asyncio.gather(tick(), webhook())
    assert len(poller.vendor.polls) == 1
    assert poller.control.leadership.webhooks_come(poller.clock.now())


async def test_tasks_beyond_what_is_held_are_polled_by_age(poller: PollerWorld) -> None:
    """Tasks that find no hold free are not polled every two seconds; nor are webhooks waited for."""
    poller.vendor.holds = True
    poller.control.leadership = LeadershipView(webhook_at=poller.clock.now())
    poller.vendor.task_time = timedelta(seconds=90)
    poller.rules = replace(poller.rules, requests_per_minute=100_000)
    for number in range(130):
        await poller.add(State.WATCHED, f"t{number}")
    await poller.run(timedelta(minutes=3))
    asked = Counter(upstream_task_id for _, upstream_task_id in poller.vendor.polls)
    assert len(asked) == 130
    assert max(asked.values()) <= 25
    assert max(lateness(poller)) <= timedelta(seconds=10)


async def test_held_polls_take_no_requests_from_submits(poller: PollerWorld) -> None:
    """A window's block covers what will be asked in it, not what is asked; few more after a busy window."""
    poller.vendor.holds = True
    poller.vendor.task_time = timedelta(minutes=5)
    for number in range(40):
        await poller.add(State.WATCHED, f"t{number}")

    async def more() -> None:
        for number in range(20):
            await poller.clock.sleep(timedelta(seconds=2))
            await poller.add(State.WATCHED, f"more{number}")

    await asyncio.gather(poller.run(timedelta(minutes=2)), more())
    assert sum(poller.control.used.values()) <= 1.2 * len(poller.vendor.polls)


async def test_a_leader_that_stops_hard_resigns_before_it_drains(poller: PollerWorld) -> None:
    """Where the tick is late, a wake that comes during the last attempt finds no leader for its task."""
    poller.vendor.holds = True
    poller.vendor.task_time = timedelta(seconds=83)
    poller.receivers.answer_time = timedelta(seconds=15)
    await poller.add(State.WATCHED)

    async def wake() -> PollReport:
        await poller.clock.sleep(timedelta(seconds=90))
        return await poller.tick((await poller.add(State.WATCHED, "late")).task_id)

    _, woken = await asyncio.gather(poller.tick(), wake())
    assert woken.led


# --- receivers' hosts -----------------------------------------------------------------------------


async def seed(poller: PollerWorld, host: str, count: int, *, overdue: timedelta) -> list[Task]:
    """Add ended tasks whose next attempt at this host is overdue."""
    now = poller.clock.now()
    seeded = []
    for number in range(count):
        task = await poller.add(State.WATCHED, f"{host}-{number}", url=f"https://{host}.example.com/")
        ended = task.succeeded({}, now, retention=RETENTION, claim=now)
        seeded.append(await poller.tasks.swap(task, ended.redelivered(now - overdue)))
    return seeded


@pytest.fixture
def with_dead_hosts(poller: PollerWorld, monkeypatch: pytest.MonkeyPatch) -> PollerWorld:
    """Let host `silent` never answer, and host `refusing` refuse."""
    send = poller.receivers.send

    async def behave(url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if "silent" in url:
            await poller.clock.sleep(timedelta(seconds=15))
            return Reply(error="timeout")
        if "refusing" in url:
            return Reply(error="refused")
        return await send(url, headers, body)

    monkeypatch.setattr(poller.receivers, "send", behave)
    return poller


async def test_a_thousand_callbacks_to_dead_hosts_delay_no_other(with_dead_hosts: PollerWorld) -> None:
    """They have been due for longer; the good host's are out at once, what is skipped is not rewritten."""
    poller = with_dead_hosts
    dead = [
        *await seed(poller, "silent", 1000, overdue=timedelta(hours=1)),
        *await seed(poller, "refusing", 1000, overdue=timedelta(hours=1)),
    ]
    good = await seed(poller, "good", 100, overdue=timedelta(minutes=1))
    began = poller.clock.now()
    await poller.tick()
    assert all(poller.now_of(task).callback is CallbackState.DELIVERED for task in good)
    assert max(at for at, url, *_ in poller.receivers.attempts if "good" in url) - began <= timedelta(
        seconds=3
    )
    touched = sum(poller.now_of(task) != task for task in dead)
    assert 10 <= touched <= 20
    assert poller.reported.count("receiver.circuit_opened") == 2


async def test_many_dead_hosts_leave_room_for_one_that_lives(with_dead_hosts: PollerWorld) -> None:
    """As when a provider of many is down: their hosts hold some of the caller's slots, and some are left."""
    poller = with_dead_hosts
    for number in range(40):
        await seed(poller, f"silent{number}", 10, overdue=timedelta(hours=1))
    good = await seed(poller, "good", 50, overdue=timedelta(minutes=1))
    began = poller.clock.now()
    await poller.tick()
    assert all(poller.now_of(task).callback is CallbackState.DELIVERED for task in good)
    assert max(at for at, url, *_ in poller.receivers.attempts if "good" in url) - began <= timedelta(
        seconds=2
    )


async def test_a_host_that_is_back_gets_everything(
    with_dead_hosts: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was left aside while it was down is found again, and delivered once each."""
    poller = with_dead_hosts
    tasks = await seed(poller, "refusing", 700, overdue=timedelta(hours=1))
    await poller.tick()
    monkeypatch.undo()
    await poller.run(timedelta(minutes=10))
    assert all(poller.now_of(task).callback is CallbackState.DELIVERED for task in tasks)
    assert len(poller.receivers.attempts) == 700


async def test_a_host_that_throttles_is_left_alone_for_a_while(poller: PollerWorld) -> None:
    """One 429 speaks for all callbacks to the host, and for no other's."""
    poller.receivers.replies.append(Reply(status=429, retry_after=timedelta(seconds=20)))
    await seed(poller, "busy", 50, overdue=timedelta(minutes=2))
    await seed(poller, "good", 50, overdue=timedelta(minutes=1))
    began = poller.clock.now()
    await poller.tick()
    times: dict[str, list[timedelta]] = {"busy": [], "good": []}
    for at, url, *_ in poller.receivers.attempts:
        times["busy" if "busy" in url else "good"].append(at - began)
    assert len([at for at in times["busy"] if at < timedelta(seconds=20)]) <= 5
    assert len(times["busy"]) >= 50
    assert max(times["good"]) < timedelta(seconds=2)


async def test_a_message_asked_for_again_goes_out_with_the_wake(poller: PollerWorld) -> None:
    """Redelivery wakes the poller with the id; the same bytes go out at once."""
    [task] = await seed(poller, "good", 1, overdue=timedelta(0))
    await poller.tick(task.task_id)
    assert poller.now_of(task).callback is CallbackState.DELIVERED
    assert poller.receivers.attempts[0][3].decode() == task.message


async def test_admission_that_is_closed_while_the_queue_is_served_is_opened_all_the_same(
    poller: PollerWorld,
) -> None:
    """A submit closes it after the poller has read it; else later submits would queue behind no task."""
    await poller.add(State.QUEUED)
    heads = poller.tasks.queue_heads

    async def heads_and_a_late_submit(vendor: str) -> list[Task]:
        found = await heads(vendor)
        if found:
            await poller.control.set_admission(
                vendor, poller.control.the_admission, AdmissionState(waiting=True)
            )
        return found

    poller.tasks.queue_heads = heads_and_a_late_submit  # type: ignore[method-assign]  # a submit meanwhile
    await poller.tick()
    assert not poller.control.the_admission.waiting


# --- how long, since when, whose turn: what no test noticed before --------------------------------


async def test_a_task_that_is_being_paid_is_left_alone_for_a_minute(poller: PollerWorld) -> None:
    """However long the POST and its write take, no other invocation decides about the task meanwhile."""
    task = await poller.add(State.QUEUED)
    answered = asyncio.Event()

    async def submit(*_: object, **__: object) -> SubmitOutcome:
        poller.vendor.asked.set()
        await answered.wait()
        return SubmitOutcome(submission=Submission.TAKEN, upstream_task_id="task-0", status=200)

    poller.vendor.submit = submit  # type: ignore[method-assign]  # an answer that takes as long as it likes
    poller.vendor.taken["task-0"] = poller.clock.now()
    paying = asyncio.create_task(poller.tick())
    await poller.vendor.asked.wait()
    claimed = poller.now_of(task)
    assert claimed.claimed_until is not None
    poller.clock.pass_by(timedelta(seconds=55))
    await poller.tick(task.task_id)
    assert (poller.now_of(task).state, poller.now_of(task).nonce) == (State.SUBMITTING, claimed.nonce)
    answered.set()
    await paying
    assert poller.now_of(task).upstream_task_id == "task-0"


async def test_a_delivery_whose_process_died_is_made_again_within_the_minute(poller: PollerWorld) -> None:
    """Its claim lasts for one attempt and little more: 30 s after it was taken, the next one begins."""
    task = await poller.add(State.WATCHED)
    now = poller.clock.now()
    ended = task.succeeded({}, now, retention=RETENTION, claim=now).redelivered(now)
    await poller.tasks.swap(task, ended)
    poller.receivers.answer_time = timedelta(hours=1)
    dying = asyncio.create_task(poller.tick())
    while not poller.receivers.attempts:
        await poller.clock.sleep(timedelta(seconds=0.1))
    await _killed(dying)
    poller.receivers.answer_time = timedelta(seconds=0.1)
    await poller.tick()
    first, second = (at for at, *_ in poller.receivers.attempts)
    assert timedelta(seconds=15) <= second - first <= timedelta(seconds=35)


async def test_the_deadline_goes_by_when_the_vendor_was_asked(poller: PollerWorld) -> None:
    """An answer past the deadline says nothing of it: only a poll that is made past it ends the task."""
    poller.rules = replace(poller.rules, max_task_age=timedelta(seconds=60), long_poll=False)
    poller.vendor.task_time = timedelta(seconds=61)
    poller.vendor.answer_time = timedelta(seconds=9)
    asked = poller.vendor.poll

    async def poll_and_look_first(upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        pending = poller.clock.now() < poller.vendor.taken[upstream_task_id] + poller.vendor.task_time
        outcome = await asked(upstream_task_id, hold=hold)
        return PollOutcome(kind=PollKind.PENDING) if pending else outcome

    # The answer is of the moment when it was asked for.
    poller.vendor.poll = poll_and_look_first  # type: ignore[method-assign]
    task = await poller.add(State.WATCHED)
    await poller.run(timedelta(minutes=3))
    ended, polls = poller.now_of(task), [at - task.accepted_at for at, _ in poller.vendor.polls]
    assert any(at < poller.rules.max_task_age < at + poller.vendor.answer_time for at in polls), polls
    assert (ended.state, ended.error) == (State.SUCCESS, None)


@pytest.mark.parametrize("answer_s", [6, 7, 8, 9])
async def test_a_404_counts_from_when_the_vendor_was_asked(poller: PollerWorld, answer_s: int) -> None:
    """Only a poll past a minute of age may say that a task is lost, and only one 30 s later confirms it."""
    poller.rules = replace(poller.rules, long_poll=False)
    poller.vendor.answer_time = timedelta(seconds=answer_s)
    poller.vendor.poll_outcomes.extend([PollOutcome(kind=PollKind.MISSING)] * 100)
    task = await poller.add(State.WATCHED)
    swap, missing = poller.tasks.swap, []

    async def swap_and_note(old: Task, new: Task) -> Task:
        missing.extend([new.missing_since] if new.missing_since is not None else [])
        return await swap(old, new)

    poller.tasks.swap = swap_and_note  # type: ignore[method-assign]  # what is stored of it goes with the end
    await poller.run(timedelta(minutes=5))
    assert poller.now_of(task).error is ErrorCode.LOST
    assert timedelta(seconds=60) <= missing[0] - task.accepted_at <= timedelta(seconds=75)
    assert timedelta(seconds=30) <= poller.vendor.polls[-1][0] - missing[0] <= timedelta(seconds=45)


async def test_an_index_that_lags_hides_no_retry(poller: PollerWorld) -> None:
    """A callback whose row appears 20 s after it was due is delivered by the leader that is at work."""
    await poller.add(State.WATCHED, "running")
    poller.vendor.task_time = timedelta(seconds=100)
    task, now = await poller.add(State.WATCHED, "hidden"), poller.clock.now()
    await poller.tasks.swap(
        task, task.succeeded({}, now, retention=RETENTION, claim=now).redelivered(now + timedelta(seconds=5))
    )
    row = poller.tasks.index.pop(task.task_id)
    leader = asyncio.create_task(poller.tick())
    await poller.clock.sleep(timedelta(seconds=25))
    poller.tasks.index[task.task_id] = row
    await poller.clock.sleep(timedelta(seconds=10))
    delivered = poller.now_of(task).callback
    await leader
    assert delivered is CallbackState.DELIVERED


async def test_an_index_that_lags_hides_no_task(poller: PollerWorld) -> None:
    """Rows that appear more than 20 s late, behind younger ones, are found at the leader's next look."""
    await poller.add(State.WATCHED, "running")
    poller.vendor.task_time = timedelta(seconds=100)
    leader = asyncio.create_task(poller.tick())
    await poller.clock.sleep(timedelta(seconds=5))
    hidden = [await poller.add(State.WATCHED, f"hidden{number}") for number in range(4)]
    rows = [poller.tasks.index.pop(task.task_id) for task in hidden]
    await poller.clock.sleep(timedelta(seconds=5))
    await poller.add(State.WATCHED, "younger")
    await poller.clock.sleep(timedelta(seconds=15))
    shown: dict[str, datetime] = {}
    for task, row in zip(hidden, rows, strict=True):
        poller.tasks.index[task.task_id], shown[task.upstream_task_id or ""] = row, poller.clock.now()
        await poller.clock.sleep(timedelta(seconds=2.5))
    await poller.clock.sleep(timedelta(seconds=10))
    asked: dict[str, datetime] = {}
    for at, upstream in poller.vendor.polls:
        asked.setdefault(upstream, at)
    await leader
    assert max(asked[upstream] - at for upstream, at in shown.items()) <= timedelta(seconds=4)


async def test_an_ambiguous_submit_is_watched_from_its_post_on(poller: PollerWorld) -> None:
    """An hour in the queue leaves a task its quarter of an hour, for the vendor's word may come late."""
    task = await poller.add(State.QUEUED)
    poller.clock.pass_by(timedelta(hours=1))
    poller.vendor.submit_outcomes.append(
        SubmitOutcome(submission=Submission.AMBIGUOUS, status=503, message="no")
    )
    await poller.run(timedelta(minutes=13))
    assert (len(poller.vendor.submits), poller.now_of(task).state) == (1, State.UNKNOWN)
    await poller.run(timedelta(minutes=5))
    assert poller.now_of(task).error is ErrorCode.SUBMISSION_UNKNOWN


async def test_the_turn_goes_on_from_caller_to_caller(poller: PollerWorld) -> None:
    """With one slot, each invocation serves the caller whose turn it is, and not the first by name again."""
    poller.vendor.slots, poller.vendor.task_time = 1, timedelta(seconds=50)
    for number in range(3):
        for caller in ("bob", "alice"):
            await poller.add(State.QUEUED, f"{caller}{number}", caller=caller)
    await poller.run(timedelta(minutes=15))
    callers = ["alice" if "alice" in url else "bob" for url in _taken(poller)]
    assert callers == ["alice", "bob"] * 3


async def _killed(invocation: asyncio.Task[PollReport]) -> None:
    """End an invocation with everything that it has under way, as where its process dies."""
    lives = asyncio.all_tasks() - {asyncio.current_task()}
    assert invocation in lives
    for life in lives:
        life.cancel()
    await asyncio.gather(*lives, return_exceptions=True)


def _taken(poller: PollerWorld) -> list[str]:
    """List what was submitted and taken, in order: of the same task only the last POST can have been."""
    last = {url: number for number, url in enumerate(poller.vendor.submits)}
    return sorted(last, key=last.__getitem__)


async def test_what_lies_beyond_a_page_is_found(poller: PollerWorld) -> None:
    """However short the pages of the index are, all that is due is served by one invocation."""
    poller.tasks.page_size = 1
    poller.vendor.task_time = timedelta(seconds=100)
    watched = {(await poller.add(State.WATCHED, f"w{number}")).upstream_task_id for number in range(4)}
    ended = await seed(poller, "good", 4, overdue=timedelta(minutes=1))
    leader = asyncio.create_task(poller.tick())
    await poller.clock.sleep(timedelta(seconds=40))
    asked = {upstream for _, upstream in poller.vendor.polls}
    delivered = [poller.now_of(task).callback for task in ended]
    await leader
    assert asked == watched
    assert delivered == [CallbackState.DELIVERED] * 4


# --- trouble that lasts ---------------------------------------------------------------------------


async def ticks(poller: PollerWorld, duration: timedelta) -> None:
    """Let a tick come every minute, whatever the invocations before are at: leaders hand over."""
    end, running = poller.clock.now() + duration, []
    while poller.clock.now() < end:
        running.append(asyncio.create_task(poller.tick()))
        await poller.clock.sleep(minutes(1))
    for tick in running:
        await tick


REFUSALS = {
    "an error at once": (0.1, PollOutcome(kind=PollKind.UNAVAILABLE, message="the vendor answered 400")),
    "a 404": (0.1, PollOutcome(kind=PollKind.MISSING)),
    "a proxy that cuts it": (10, PollOutcome(kind=PollKind.UNAVAILABLE, message="ReadError")),
    "no answer at all": (50, PollOutcome(kind=PollKind.UNAVAILABLE, message="TimeoutError")),
    "an answer at once": (0.1, PollOutcome(kind=PollKind.PENDING)),
}


@pytest.mark.parametrize("some", [False, True], ids=["all tasks", "some tasks"])
@pytest.mark.parametrize("learnt", [False, True], ids=["from the start", "after it held"])
@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_vendor_that_does_not_hold_polls_is_asked_plainly(
    poller: PollerWorld, *, refusal: str, learnt: bool, some: bool
) -> None:
    """Whatever it answers, for all tasks or some, from the start or later: the plain poll follows at once."""
    after_s, answer = REFUSALS[refusal]
    ask, refusing, held = poller.vendor.poll, [not learnt], Counter[bool]()
    poller.vendor.holds = True

    async def poll(upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        held[hold] += 1
        if hold and refusing[0] and not (some and upstream_task_id.endswith(("0", "2", "4"))):
            await poller.clock.sleep(timedelta(seconds=after_s))
            return answer
        return await ask(upstream_task_id, hold=hold)

    poller.vendor.poll = poll  # type: ignore[method-assign]  # a vendor of another kind
    poller.vendor.task_time = timedelta(seconds=70)
    if learnt:
        await poller.add(State.WATCHED, "first")
        await ticks(poller, minutes(1.5))
        refusing[0] = True
    for number in range(6):
        await poller.add(State.WATCHED, f"t{number}")
    await ticks(poller, minutes(5))
    bound = after_s + 10
    assert len(lateness(poller)) == 6 + learnt
    assert max(lateness(poller)) <= timedelta(seconds=bound)
    assert not any(task.missing_since for task in poller.tasks.items.values())


async def test_one_task_whose_holds_are_refused_takes_them_from_no_other(poller: PollerWorld) -> None:
    """While polls of the same model are held, a refusal is the task's own."""
    poller.vendor.holds = True
    poller.vendor.task_time = timedelta(seconds=100)
    ask = poller.vendor.poll

    async def poll(upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        if "odd" in upstream_task_id:
            return PollOutcome(kind=PollKind.UNAVAILABLE, message="not a JSON object")
        return await ask(upstream_task_id, hold=hold)

    poller.vendor.poll = poll  # type: ignore[method-assign]  # two tasks that cannot be read
    for name in ("odd1", "odd2", *(f"t{number}" for number in range(10))):
        await poller.add(State.WATCHED, name)
    await ticks(poller, minutes(3))
    assert len(lateness(poller)) == 10
    assert max(lateness(poller)) <= timedelta(seconds=2)


def outage(poller: PollerWorld, duration: timedelta, *, of: str) -> None:
    """Let the vendor answer 503 for a while: to `everything`, or to `submits` alone."""
    until, submit, poll = poller.clock.now() + duration, poller.vendor.submit, poller.vendor.poll

    async def failing(
        model: str,
        request: bytes,
        *,
        webhook_url: str | None,
        limit: timedelta,
        admit: Admit | None = None,
        **_: object,
    ) -> SubmitOutcome:
        if poller.clock.now() < until:
            poller.vendor.submits.append("503")
            await poller.clock.sleep(timedelta(seconds=0.2))
            return SubmitOutcome(submission=Submission.AMBIGUOUS, status=503, message="Service unavailable")
        poller.vendor.answered = True
        return await submit(model, request, webhook_url=webhook_url, limit=limit, admit=admit)

    async def silent(upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        if poller.clock.now() < until and of == "everything":
            return PollOutcome(kind=PollKind.UNAVAILABLE, message="the vendor answered 503")
        return await poll(upstream_task_id, hold=hold)

    async def over() -> None:
        await poller.clock.sleep(duration)
        poller.vendor.answered = True

    poller.vendor.answered = of != "everything"
    poller.vendor.submit, poller.vendor.poll = failing, silent  # type: ignore[method-assign]  # in trouble
    poller.ends = asyncio.create_task(over())


@pytest.mark.parametrize(("of", "most"), [("everything", 3), ("submits", 5)])
async def test_an_outage_of_the_vendor_spends_a_few_tasks_of_a_queue(
    poller: PollerWorld, of: str, most: int
) -> None:
    """Three unknown outcomes pause it; a free request, then one task, find out whether the vendor is back."""
    poller.rules = replace(poller.rules, long_poll=False)
    outage(poller, minutes(10), of=of)
    tasks = [
        await poller.add(State.QUEUED, f"q{number}", "alice" if number % 2 else "bob") for number in range(60)
    ]
    await ticks(poller, minutes(10))
    assert sum(poller.now_of(task).state is State.UNKNOWN for task in tasks) <= most
    await ticks(poller, minutes(30))
    ends = Counter(poller.now_of(task).error for task in tasks)
    assert ends[ErrorCode.SUBMISSION_UNKNOWN] <= most
    assert ends[None] == 60 - ends[ErrorCode.SUBMISSION_UNKNOWN]
    assert all(poller.now_of(task).callback is CallbackState.DELIVERED for task in tasks)


async def test_a_pause_that_the_vendor_asked_for_is_kept_by_later_leaders(poller: PollerWorld) -> None:
    """429 with `Retry-After: 1800` is obeyed over thirty ticks, by polls and submits; then all goes on."""
    poller.rules = replace(poller.rules, long_poll=False)
    task, queued = await poller.add(State.WATCHED), await poller.add(State.QUEUED, "q")
    poller.control.the_admission = AdmissionState(waiting=True, slots=1, probed_at=poller.clock.now())
    poller.vendor.poll_outcomes.append(PollOutcome(kind=PollKind.THROTTLED, retry_after=minutes(30)))
    await ticks(poller, minutes(29))
    assert (len(poller.vendor.polls), poller.vendor.submits) == (1, [])
    await ticks(poller, minutes(5))
    assert {poller.now_of(one).callback for one in (task, queued)} == {CallbackState.DELIVERED}


async def test_any_answer_may_ask_for_a_pause(poller: PollerWorld) -> None:
    """A 503 with `Retry-After`, and a 2xx after which no request is left."""
    poller.rules = replace(poller.rules, long_poll=False)
    poller.vendor.task_time = minutes(20)
    await poller.add(State.WATCHED)
    for kind in (PollKind.UNAVAILABLE, PollKind.PENDING):
        poller.vendor.poll_outcomes.append(PollOutcome(kind=kind, retry_after=timedelta(seconds=150)))
    await ticks(poller, minutes(7))
    first, second, third = (at for at, _ in poller.vendor.polls[:3])
    assert min(second - first, third - second) >= timedelta(seconds=150)


@pytest.mark.parametrize("retry_after_s", [None, 0, 1])
async def test_a_vendor_without_a_free_slot_is_probed_once_a_minute(
    poller: PollerWorld, retry_after_s: int | None
) -> None:
    """Whatever its refusals say of a time."""
    poller.rules = replace(poller.rules, long_poll=False)
    poller.vendor.task_time = minutes(30)
    wait = None if retry_after_s is None else timedelta(seconds=retry_after_s)
    poller.vendor.submit_outcomes.extend(
        [SubmitOutcome(submission=Submission.BUSY, status=429, retry_after=wait)] * 100
    )
    await poller.add(State.WATCHED)
    await poller.add(State.QUEUED, "q")
    await ticks(poller, minutes(5))
    assert 4 <= len(poller.vendor.submits) <= 6


async def test_an_old_task_has_its_turn_where_requests_are_short(poller: PollerWorld) -> None:
    """Young ones are due every two seconds and always will be; leaders hand on what they could not serve."""
    poller.rules = replace(poller.rules, requests_per_minute=100, long_poll=False)
    ends: dict[str, datetime] = {}

    async def poll(upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        assert not hold
        poller.vendor.polls.append((poller.clock.now(), upstream_task_id))
        await poller.clock.sleep(timedelta(seconds=0.2))
        return PollOutcome(
            kind=PollKind.SUCCEEDED if poller.clock.now() >= ends[upstream_task_id] else PollKind.PENDING
        )

    poller.vendor.poll = poll  # type: ignore[method-assign]  # each task takes its own time
    old = await poller.add(State.WATCHED, "old")
    poller.clock.pass_by(minutes(20))
    ends["task-old"] = poller.clock.now() + timedelta(seconds=30)

    async def young() -> None:
        for number in range(300):
            task = await poller.add(State.WATCHED, f"y{number}")
            ends[task.upstream_task_id or ""] = poller.clock.now() + minutes(2)
            await poller.clock.sleep(timedelta(seconds=2))

    await asyncio.gather(young(), ticks(poller, minutes(10)))
    ended = poller.now_of(old)
    assert ended.ended_at is not None
    assert ended.ended_at - ends["task-old"] <= 5 * minutes(1)


async def test_requests_are_counted_when_they_leave(poller: PollerWorld) -> None:
    """A vendor that was slow and is quick again sees no more in a minute than it allows."""
    poller.rules = replace(poller.rules, requests_per_minute=300, long_poll=False)
    began, sent = poller.clock.now(), []

    async def poll(upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        assert upstream_task_id
        assert not hold
        sent.append(poller.clock.now())
        await poller.clock.sleep(timedelta(seconds=9.5 if poller.clock.now() < began + minutes(2) else 0.1))
        return PollOutcome(kind=PollKind.PENDING)

    poller.vendor.poll = poll  # type: ignore[method-assign]  # slow, then quick
    for number in range(200):
        await poller.add(State.WATCHED, f"t{number}")
    await ticks(poller, minutes(4))
    assert max(sum(at <= other < at + minutes(1) for other in sent) for at in sent) <= 300


@pytest.mark.parametrize("ahead_s", [-300, -45, 45, 300])
async def test_a_submitter_whose_clock_is_wrong_hides_no_task(poller: PollerWorld, ahead_s: int) -> None:
    """Its task, and those that come after, are found by the leader within a few looks."""
    poller.rules = replace(poller.rules, long_poll=False)
    poller.vendor.task_time = timedelta(seconds=25)
    keeps_busy = await poller.add(State.WATCHED, "long")
    poller.vendor.taken["task-long"] += minutes(10)
    late: list[Task] = []

    async def submits() -> None:
        await poller.clock.sleep(timedelta(seconds=5))
        odd = await poller.add(State.WATCHED, "odd")
        shifted = odd.accepted_at + timedelta(seconds=ahead_s)
        del poller.tasks.items[odd.task_id]
        late.append(await poller.tasks.add(odd.model_copy(update={"accepted_at": shifted})))
        await poller.clock.sleep(timedelta(seconds=5))
        late.append(await poller.add(State.WATCHED, "next"))

    await asyncio.gather(poller.tick(keeps_busy.task_id), submits())
    for task in late:
        ended = poller.now_of(task)
        assert ended.ended_at is not None
        assert ended.ended_at - (task.taken_at or task.accepted_at) <= timedelta(seconds=40)


async def test_first_deliveries_that_cannot_be_made_leave_the_index_of_watched_tasks(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host is down while tasks go on ending: they wait in `retry`, each sweep of `watch` stays small."""
    poller.rules = replace(poller.rules, long_poll=False, requests_per_minute=100_000)
    send = poller.receivers.send

    async def behave(url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        return Reply(error="refused") if "dead" in url else await send(url, headers, body)

    monkeypatch.setattr(poller.receivers, "send", behave)
    dead = []
    for minute in range(4):
        dead += [
            await poller.add(State.WATCHED, f"d{minute}-{number}", url="https://dead.example.com/")
            for number in range(100)
        ]
        good = await poller.add(State.WATCHED, f"g{minute}", "bob")
        await ticks(poller, minutes(1))
    assert poller.now_of(good).callback is CallbackState.DELIVERED
    assert Counter(partition for partition, _ in poller.tasks.index.values()) == {"retry": 400}
    monkeypatch.undo()
    await poller.run(minutes(90))
    assert all(poller.now_of(task).callback is CallbackState.DELIVERED for task in dead)


async def test_of_what_has_ended_nothing_is_moved_that_another_invocation_has_claimed_meanwhile(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own write would be refused, and what it delivered would be delivered again."""
    now, claims, get = poller.clock.now(), {}, poller.tasks.get
    for number in range(300):
        task = await poller.add(State.WATCHED, str(number), url="https://refusing.example.com/")
        await poller.tasks.swap(task, task.succeeded({}, now, retention=RETENTION, claim=now))

    async def claimed(task_id: str) -> Task | None:
        task = await get(task_id)
        if task is not None and task_id not in claims:
            claim = task.claim_delivery(until=poller.clock.now() + minutes(3))
            claims[task_id] = (await poller.tasks.swap(task, claim)).nonce
        return await get(task_id)

    monkeypatch.setattr(poller.tasks, "get", claimed)
    await poller.tick()
    assert len(claims) > 100
    assert {task_id: poller.tasks.items[task_id].nonce for task_id in claims} == claims


async def test_what_has_ended_and_stands_among_the_watched_is_moved_where_it_cannot_be_delivered(
    with_dead_hosts: PollerWorld,
) -> None:
    """First deliveries whose processes died, to a dead host: none stays where each leader reads it whole."""
    poller = with_dead_hosts
    now = poller.clock.now()
    for number in range(300):
        task = await poller.add(State.WATCHED, str(number), url="https://refusing.example.com/")
        await poller.tasks.swap(task, task.succeeded({}, now, retention=RETENTION, claim=now))
    await ticks(poller, minutes(2))
    assert {partition for partition, _ in poller.tasks.index.values()} == {"retry"}


async def test_any_number_of_watched_tasks_is_served_with_a_few_in_memory(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those beyond an id and two times are kept; all end, and the index is read in pages."""
    monkeypatch.setattr(watch, "LOADED", 20)
    poller.tasks.page_size = 7
    poller.rules = replace(poller.rules, long_poll=False)
    tasks = []
    for number in range(100):
        tasks.append(await poller.add(State.WATCHED, f"t{number}"))
        poller.clock.pass_by(timedelta(seconds=0.1))
    await ticks(poller, minutes(3))
    assert all(poller.now_of(task).callback is CallbackState.DELIVERED for task in tasks)
    assert max(lateness(poller)) <= timedelta(seconds=15)


async def test_a_message_asked_for_again_is_found_behind_its_old_row(poller: PollerWorld) -> None:
    """The index still shows where it was delivered a moment ago; the new round is another row."""
    poller.vendor.task_time = minutes(5)
    await poller.add(State.WATCHED, "keeps the leader busy")
    [task] = await seed(poller, "good", 1, overdue=timedelta(0))

    async def again() -> None:
        await poller.clock.sleep(timedelta(seconds=10))
        now = poller.now_of(task)
        await poller.tasks.swap(now, now.redelivered(poller.clock.now()))

    await asyncio.gather(poller.tick(), again())
    first, second = (at for at, *_ in poller.receivers.attempts)
    assert timedelta(seconds=10) <= second - first <= timedelta(seconds=13)


async def test_a_caller_whose_requests_break_the_vendor_keeps_no_other_waiting(poller: PollerWorld) -> None:
    """Where one caller's requests break the vendor, the next probe is another caller's, and is taken."""
    submit = poller.vendor.submit

    async def submit_or_break(model: str, request: bytes, **more: Any) -> SubmitOutcome:
        if b"alice" in request:
            await poller.clock.sleep(timedelta(seconds=0.2))
            return SubmitOutcome(submission=Submission.AMBIGUOUS, status=503, message="no")
        return await submit(model, request, **more)

    poller.vendor.submit = submit_or_break  # type: ignore[method-assign]  # it breaks by what it is asked
    for number in range(12):
        await poller.add(State.QUEUED, f"alice{number}", caller="alice")
    await poller.run(timedelta(minutes=1))
    assert poller.control.the_admission.in_trouble
    good = [await poller.add(State.QUEUED, f"bob{number}", caller="bob") for number in range(2)]
    await poller.run(timedelta(minutes=12))
    assert [poller.now_of(task).state for task in good] == [State.SUCCESS] * 2


# --- where a request, a table or an index is not to be had for a moment ---------------------------


@pytest.mark.parametrize("loaded", [2000, 5])
async def test_economy_asks_about_all_that_is_due_over_as_many_windows_as_that_takes(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch, loaded: int
) -> None:
    """A window has six requests; an invocation that does not lead waits for the next, whatever it keeps."""
    monkeypatch.setattr(watch, "LOADED", loaded)
    poller.rules = replace(poller.rules, leads=False, requests_per_minute=66)
    tasks = [await poller.add(State.WATCHED, f"t{number}") for number in range(20)]
    poller.clock.pass_by(poller.vendor.task_time)
    began = poller.clock.now()
    await poller.tick()
    assert all(poller.now_of(task).callback is CallbackState.DELIVERED for task in tasks)
    assert timedelta(seconds=12) <= poller.clock.now() - began <= timedelta(seconds=30)


async def test_economy_submits_all_that_is_queued_over_as_many_windows_as_that_takes(
    poller: PollerWorld,
) -> None:
    """One window has six requests; an invocation that does not lead waits for the next one."""
    poller.rules = replace(poller.rules, leads=False, requests_per_minute=66)
    tasks = [await poller.add(State.QUEUED, f"q{number:02}") for number in range(20)]
    began = poller.clock.now()
    await poller.tick()
    assert [poller.now_of(task).state for task in tasks] == [State.WATCHED] * 20
    assert timedelta(seconds=12) <= poller.clock.now() - began <= timedelta(seconds=30)


@pytest.mark.parametrize("leads", [True, False])
async def test_where_a_window_has_one_request_the_queue_goes_on_after_an_outage(
    poller: PollerWorld,
    leads: bool,  # noqa: FBT001
) -> None:  # a parameter of the test
    """The free request takes its window's one; the task's has the next one's, and needs no other free one."""
    poller.rules = replace(poller.rules, leads=leads, long_poll=False, requests_per_minute=20)
    outage(poller, minutes(5), of="everything")
    tasks = [
        await poller.add(State.QUEUED, f"q{number}", "alice" if number % 2 else "bob") for number in range(8)
    ]
    await ticks(poller, minutes(40))
    ends = Counter(poller.now_of(task).error for task in tasks)
    assert ends == {None: 5, ErrorCode.SUBMISSION_UNKNOWN: 3}
    assert poller.vendor.balances
    assert not poller.control.the_admission.in_trouble


async def test_callbacks_whose_rows_come_while_their_tasks_are_asked_about_keep_no_slots(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another invocation ends them after a wake read them; each is delivered once, soon, over three slots."""
    poller.rules = replace(poller.rules, long_poll=False)
    tasks = [await poller.add(State.WATCHED, f"t{number}") for number in range(3 * FIRST_SLOTS)]
    poller.clock.pass_by(poller.vendor.task_time)
    take = poller.control.acquire

    async def end_them_first(seen: LeadershipView, new: LeadershipView, *, takeover: bool) -> bool:
        monkeypatch.undo()
        for task in tasks:
            await poller.tasks.swap(
                task, task.succeeded({}, poller.clock.now(), retention=RETENTION, claim=None)
            )
        return await take(seen, new, takeover=takeover)

    monkeypatch.setattr(poller.control, "acquire", end_them_first)
    began = poller.clock.now()
    await poller.tick(ended=tuple(task.task_id for task in tasks))
    assert [poller.now_of(task).callback for task in tasks] == [CallbackState.DELIVERED] * len(tasks)
    assert len(poller.receivers.attempts) == len(tasks)
    assert poller.receivers.attempts[-1][0] - began <= timedelta(seconds=5)


ODD_RETRIES = {
    "a round that is not known yet": "{due}_{task_id}#alice#r.example.com#9",
    "a round that is no number": "{due}_{task_id}#alice#r.example.com#³",
    "no time": "0-soon-----_{task_id}#alice#r.example.com#2",
    "nothing but a time": "{due}",
}


@pytest.mark.parametrize("odd", ODD_RETRIES)
async def test_a_retry_whose_row_is_odd_is_delivered_and_hides_no_other(
    poller: PollerWorld, odd: str
) -> None:
    """A later version of the poller may have written it; the row only says where to look."""
    first, second, third = await seed(poller, "r", 3, overdue=minutes(1))
    due = poller.tasks.index[second.task_id][1][:13]
    poller.tasks.index[second.task_id] = "retry", ODD_RETRIES[odd].format(due=due, task_id=second.task_id)
    await poller.tick()
    assert [poller.now_of(task).callback for task in (first, second, third)] == [CallbackState.DELIVERED] * 3


@pytest.mark.parametrize("loaded", [2000, 1])
async def test_a_watched_task_whose_row_is_odd_is_asked_about_and_hides_no_other(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch, loaded: int
) -> None:
    """A sort key that says no time is that of a task all the same, in memory or set aside."""
    monkeypatch.setattr(watch, "LOADED", loaded)
    tasks = [await poller.add(State.WATCHED, f"t{number}") for number in range(3)]
    poller.tasks.index[tasks[1].task_id] = "watch", f"soon_{tasks[1].task_id}"
    await ticks(poller, minutes(2))
    assert [poller.now_of(task).callback for task in tasks] == [CallbackState.DELIVERED] * 3


async def test_what_a_leader_that_has_died_did_not_serve_is_asked_for_once_it_says_nothing(
    poller: PollerWorld,
) -> None:
    """It died before a poll time that came before its successor; that time is not left for the next one."""
    poller.rules = replace(poller.rules, long_poll=False)
    poller.vendor.task_time = minutes(60)
    await poller.add(State.WATCHED)
    poller.clock.pass_by(timedelta(seconds=65))  # where webhooks come, it is asked about at 60 s and at 120 s
    began = poller.clock.now()
    poller.control.leadership = LeadershipView(leader="dead", until=began + STOP, webhook_at=began)
    await poller.tick()
    assert poller.vendor.polls[0][0] - began <= HAND_OVER + SCAN + BEAT


async def test_a_poisoned_task_rests_though_the_leader_before_has_died(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is planned anew then; but not what has just broken, which is tried again a minute later."""
    poller.rules = replace(poller.rules, long_poll=False)
    poller.vendor.task_time = minutes(60)
    await poller.add(State.WATCHED, "bad")
    await poller.add(State.WATCHED, "good")  # keeps the leader busy
    poller.clock.pass_by(minutes(1))
    poller.control.leadership = LeadershipView(leader="dead", until=poller.clock.now() + STOP)
    ask, broken = poller.vendor.poll, []

    async def poll_or_break(upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        if "bad" in upstream_task_id:
            broken.append(poller.clock.now())
            raise RuntimeError("poison")
        return await ask(upstream_task_id, hold=hold)

    monkeypatch.setattr(poller.vendor, "poll", poll_or_break)
    await poller.tick()
    assert poller.reported.count("task.crashed") == len(broken) >= 1
    assert all(later - earlier >= minutes(1) for earlier, later in pairwise(broken))


@pytest.mark.parametrize("shown_late", [False, True])
async def test_an_inherited_poll_time_is_served_though_all_is_planned_anew_meanwhile(
    poller: PollerWorld,
    shown_late: bool,  # noqa: FBT001
) -> None:  # a parameter of the test
    """For want of requests it waits; meanwhile another model's polls turn out to be held."""
    poller.rules = replace(poller.rules, requests_per_minute=20)
    poller.vendor.holds, poller.vendor.task_time = True, minutes(60)
    held, plain = await poller.add(State.WATCHED, "held"), await poller.add(State.WATCHED, "plain")
    plain = await poller.tasks.swap(plain, plain.model_copy(update={"model": "alibaba/another"}))
    poller.ports.long_poll_support.found(plain.model, poller.clock.now(), holds=False)
    poller.clock.pass_by(timedelta(seconds=24))
    began = poller.clock.now()
    # so that polls are rare
    poller.control.leadership = LeadershipView(leader="old", until=began + STOP, webhook_at=began)
    poller.control.left["old"] = {held.task_id: began - timedelta(seconds=10), plain.task_id: began}
    poller.control.used["modellix", window(began)] = 1  # the only request of this window
    row = poller.tasks.index.pop(plain.task_id)
    if not shown_late:
        poller.tasks.index[plain.task_id] = row
    leader = asyncio.create_task(poller.tick())
    await poller.clock.sleep(timedelta(seconds=3))
    poller.tasks.index[plain.task_id] = row
    await leader
    asked = {upstream: at - began for at, upstream in reversed(poller.vendor.polls)}
    assert timedelta(seconds=6) <= asked["task-held"] <= timedelta(seconds=7)
    assert timedelta(seconds=12) <= asked["task-plain"] <= timedelta(seconds=13)


async def test_an_inherited_poll_time_is_served_though_its_task_is_not_in_memory(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set aside by what its row says, it waits for a request; its own next poll time is much later."""
    monkeypatch.setattr(watch, "LOADED", 1)
    poller.rules = replace(poller.rules, long_poll=False, requests_per_minute=20)
    poller.vendor.task_time = minutes(600)
    await poller.add(State.WATCHED, "first")
    poller.clock.pass_by(timedelta(seconds=1))
    aside = await poller.add(State.WATCHED, "aside")
    poller.clock.pass_by(schedule.next_poll(minutes(120), first=timedelta(0)) + timedelta(seconds=5))
    began = poller.clock.now()
    poller.control.leadership = LeadershipView(leader="old", until=began + STOP)
    poller.control.left["old"] = {aside.task_id: began - timedelta(seconds=20)}
    poller.control.used["modellix", window(began)] = 1  # the only request of this window
    await poller.tick()
    assert min(at for at, upstream in poller.vendor.polls if "aside" in upstream) - began <= WINDOW + BEAT


async def test_a_queued_task_that_breaks_its_step_keeps_no_other_callers_waiting(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug that one task triggers is told, stays with its caller, and is tried again a minute later."""
    poller.rules = replace(poller.rules, long_poll=False)
    poller.vendor.task_time = minutes(10)
    bad = await poller.add(State.QUEUED, "bad", "alice")
    others = [await poller.add(State.QUEUED, f"other{number}", "bob") for number in range(2)]
    await poller.add(State.WATCHED, "long")  # keeps the leader busy
    with_request, tried = poller.tasks.with_request, []

    async def request_or_break(task: Task) -> Task:
        if task.task_id == bad.task_id:
            tried.append(poller.clock.now())
            if len(tried) == 1:
                raise RuntimeError("poison")
        return await with_request(task)

    async def submits() -> None:
        await poller.clock.sleep(timedelta(seconds=10))
        others.append(await poller.add(State.QUEUED, "later", "bob"))

    monkeypatch.setattr(poller.tasks, "with_request", request_or_break)
    await asyncio.gather(poller.tick(), submits())
    assert poller.facts("task.crashed") == [{"task_id": bad.task_id, "error": "RuntimeError"}]
    submitted = [poller.now_of(task).submitted_at for task in others]
    waited = [at - task.accepted_at for at, task in zip(submitted, others, strict=True) if at is not None]
    assert len(waited) == len(others)
    assert max(waited) <= timedelta(seconds=3)
    first, second = tried
    assert minutes(1) <= second - first <= minutes(1) + timedelta(seconds=3)
    assert poller.now_of(bad).state is State.WATCHED


async def test_a_queued_task_that_breaks_its_step_keeps_no_leader(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing else is to do, the next tick tries it again."""
    bad = await poller.add(State.QUEUED, "bad")
    began = poller.clock.now()

    async def broken(task: Task) -> Task:
        raise RuntimeError(task.task_id)

    with monkeypatch.context() as context:
        context.setattr(poller.tasks, "with_request", broken)
        await poller.tick()
    assert poller.clock.now() - began <= 2 * SCAN
    await poller.tick()
    assert poller.now_of(bad).state is State.SUCCESS


async def test_admission_opens_though_what_broke_its_step_has_left_the_queue(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another invocation has ended it meanwhile; later submits do not queue behind nothing."""
    poller.rules = replace(poller.rules, long_poll=False)
    poller.vendor.task_time = minutes(10)
    poller.control.the_admission = AdmissionState(waiting=True)
    bad = await poller.add(State.QUEUED, "bad")
    for number in range(5):  # they keep the leader busy
        await poller.add(State.WATCHED, f"long{number}")
        poller.clock.pass_by(timedelta(seconds=1.3))

    async def broken(task: Task) -> Task:
        raise RuntimeError(task.task_id)

    async def end() -> None:
        await poller.clock.sleep(timedelta(seconds=10))
        ended = bad.failed(ErrorCode.QUEUE_EXPIRED, "no", poller.clock.now(), retention=RETENTION, claim=None)
        await poller.tasks.swap(bad, ended)

    monkeypatch.setattr(poller.tasks, "with_request", broken)
    await asyncio.gather(poller.tick(), end())
    assert poller.reported.count("task.crashed") == 1
    assert not poller.control.the_admission.waiting


@pytest.mark.parametrize("spoken_of", [[], ["b"]], ids=["an empty index", "another caller's in the index"])
async def test_a_queued_task_that_a_wake_names_is_submitted_though_the_index_lags(
    poller: PollerWorld, spoken_of: list[str]
) -> None:
    """It is read by its id, after what the index shows."""
    for name in spoken_of:
        await poller.add(State.QUEUED, name, "bob")
    task = await poller.add(State.QUEUED, "named")
    del poller.tasks.index[task.task_id]
    await poller.tick(task.task_id)
    assert [url.split("/")[-1] for url in poller.vendor.submits] == [
        f"{name}.jpg" for name in [*spoken_of, "named"]
    ]
    assert poller.now_of(task).state is State.SUCCESS


async def test_a_paid_task_that_the_index_still_calls_queued_is_not_ended_as_never_paid(
    poller: PollerWorld,
) -> None:
    """However long it had waited in the queue, and while nothing may be submitted."""
    paid = await poller.add(State.WATCHED)
    poller.vendor.taken["task-t"] += poller.rules.max_queue_age  # it still runs
    poller.clock.pass_by(poller.rules.max_queue_age)
    poller.rules = replace(poller.rules, max_task_age=2 * poller.rules.max_queue_age)
    poller.control.the_admission = AdmissionState(
        waiting=True, paused_until=poller.clock.now() + timedelta(minutes=30)
    )

    async def lagging(vendor: str) -> list[Task]:
        del vendor
        return [await poller.tasks.get(paid.task_id) or paid]

    async def waits(vendor: str) -> bool:
        del vendor
        return True

    poller.tasks.queue_heads, poller.tasks.queue_waits = lagging, waits  # type: ignore[method-assign]
    await poller.tick()
    assert poller.now_of(paid).error is None
    assert poller.facts("task.crashed") == []


@pytest.mark.parametrize("trouble", [False, True])
async def test_queued_tasks_that_waited_too_long_end_whatever_the_vendor_says_to_others(
    poller: PollerWorld,
    trouble: bool,  # noqa: FBT001
) -> None:  # a parameter of the test
    """The first caller is refused, or no task may be risked; the other's old tasks need no request."""
    old = [await poller.add(State.QUEUED, f"old{number}", "bob") for number in range(3)]
    poller.clock.pass_by(poller.rules.max_queue_age)
    young = await poller.add(State.QUEUED, "young", "alice")
    if trouble:
        poller.control.the_admission, poller.vendor.answered = AdmissionState(waiting=True, unknown=3), False
    else:
        poller.vendor.submit_outcomes.append(SubmitOutcome(submission=Submission.BUSY, status=429))
    await poller.tick()
    assert [poller.now_of(task).error for task in old] == [ErrorCode.QUEUE_EXPIRED] * 3
    assert [poller.now_of(task).callback for task in old] == [CallbackState.DELIVERED] * 3
    assert len(poller.vendor.submits) == (0 if trouble else 1)
    assert poller.now_of(young).state is State.QUEUED


async def test_a_pause_that_comes_with_an_acceptance_is_kept_though_that_ends_the_trouble(
    poller: PollerWorld,
) -> None:
    """The task taken after three unknown outcomes shows that the vendor is back, and asks for a pause."""
    poller.rules = replace(poller.rules, long_poll=False)
    poller.control.the_admission = AdmissionState(waiting=True, unknown=3)
    for number in range(2):
        await poller.add(State.QUEUED, f"q{number}")
    poller.vendor.submit_outcomes.append(
        SubmitOutcome(submission=Submission.TAKEN, status=200, retry_after=minutes(10))
    )
    await ticks(poller, minutes(9))
    assert (len(poller.vendor.submits), poller.control.the_admission.in_trouble) == (1, False)
    await ticks(poller, minutes(3))
    assert len(poller.vendor.submits) == 2


def leave_out_once(poller: PollerWorld, task: Task, how: str) -> None:
    """Let the first read of this task among others find it throttled: it is left out, or the read fails."""
    read_many, left_out = poller.tasks.read_many, [task.task_id]

    async def throttled(task_ids: Sequence[str]) -> list[Task]:
        found = await read_many(task_ids)
        if not left_out or left_out[0] not in task_ids:
            return found
        missing = left_out.pop()
        if how == "fails":
            raise StoreUnavailableError("ThrottlingException")
        return [one for one in found if one.task_id != missing]

    poller.tasks.read_many = throttled  # type: ignore[method-assign]  # a partition that is busy for a moment


async def test_a_task_that_a_read_leaves_out_at_the_first_look_is_read_at_the_next(
    poller: PollerWorld,
) -> None:
    """It was accepted long before, so that no later look comes across its row."""
    task = await poller.add(State.WATCHED)
    poller.clock.pass_by(minutes(60))
    began = poller.clock.now()
    leave_out_once(poller, task, "left out")
    await poller.tick()
    assert poller.now_of(task).callback is CallbackState.DELIVERED
    assert poller.receivers.attempts[0][0] - began <= 2 * SCAN


@pytest.mark.parametrize("how", ["left out", "fails"])
async def test_a_task_that_cannot_be_read_when_it_is_due_is_read_a_while_later(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It was set aside by what its row says; the leader that is at work looks at it again."""
    monkeypatch.setattr(watch, "LOADED", 1)
    poller.rules = replace(poller.rules, long_poll=False)
    await poller.add(State.WATCHED, "first")  # keeps the leader, which is to ask about it in 50 s
    poller.vendor.taken["task-first"] += minutes(600)
    poller.clock.pass_by(timedelta(seconds=1))
    task = await poller.add(State.WATCHED, "aside")
    poller.clock.pass_by(schedule.next_poll(minutes(60), first=timedelta(0)) + timedelta(seconds=9))
    began = poller.clock.now()
    leave_out_once(poller, task, how)
    await poller.tick()
    assert poller.now_of(task).callback is CallbackState.DELIVERED
    assert poller.receivers.attempts[-1][0] - began <= INDEX_LAG + SCAN


async def test_a_table_that_is_away_for_a_moment_is_no_fault_of_a_queued_task(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again as soon as after any such failure, and not told as broken."""
    task = await poller.add(State.QUEUED)
    swap, down = poller.tasks.swap, [True]

    async def once_down(old: Task, new: Task) -> Task:
        if down:
            down.pop()
            raise StoreUnavailableError("ThrottlingException")
        return await swap(old, new)

    monkeypatch.setattr(poller.tasks, "swap", once_down)
    began = poller.clock.now()
    await poller.tick()
    submitted = poller.now_of(task).submitted_at
    assert submitted is not None
    assert submitted - began <= PAUSE_SHORT + BEAT
    assert poller.reported.count("task.crashed") == 0


async def test_a_poll_that_is_not_begun_takes_no_slot(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While requests are asked for, another event has begun a step of the task."""
    task, running, now = await poller.add(State.WATCHED), set[str](), poller.clock.now()
    poller.clock.pass_by(minutes(1))
    standing = Standing.at(now)
    pacing = Pacing(poller.rules, poller.ports, poller.ports.vendors["modellix"], standing=standing)
    kind = Watch(
        rules=poller.rules,
        ports=poller.ports,
        pacing=pacing,
        standing=standing,
        endings=Endings(rules=poller.rules, ports=poller.ports, hosts=Hosts(poller.clock), steps=Counter()),
        steps=Counter(),
        is_running=running.__contains__,
        known=running.__contains__,
        track=lambda _: None,
        wrote_unanswered=lambda _: False,
        started=now,
    )
    kind.keep(task)
    take_tokens, free = poller.control.take_tokens, pacing.free_slots()

    async def take_and_begin(vendor: str, wanted: int, *, window: int, limit: int) -> int:
        running.add(task.task_id)
        return await take_tokens(vendor, wanted, window=window, limit=limit)

    monkeypatch.setattr(poller.control, "take_tokens", take_and_begin)
    assert list(await kind.admit(poller.clock.now())) == []
    assert pacing.free_slots() == free
    running.clear()
    assert list(await kind.admit(poller.clock.now())) == [task.task_id]
    assert pacing.free_slots() == free - 1


def test_a_step_that_is_over_may_be_dropped(poller: PollerWorld) -> None:
    """A leader that leaves drops its held polls, and drains what is left, whatever it takes for held."""
    Scheduler(clock=poller.clock, reporter=poller.reported).cancel(["over"])


class OneDue:
    """A kind of work of which one task is due."""

    eager = False

    async def admit(self, _: datetime) -> list[str]:
        """Let it start."""
        return ["task"]


async def test_a_step_that_is_cancelled_before_it_has_begun_is_not_waited_for(poller: PollerWorld) -> None:
    """As where all of a process is cancelled at once: a leader that drains would never end."""
    scheduler = Scheduler(clock=poller.clock, reporter=poller.reported)
    due: Any = OneDue()
    scheduler.assign([due], closed=lambda: False)
    await scheduler.start()
    scheduler.cancel(["task"])
    drained = asyncio.create_task(scheduler.drain())
    for _ in range(100):
        await asyncio.sleep(0)
    assert drained.done() or not drained.cancel()


async def test_the_first_poll_of_an_undescribed_model_is_learnt(poller: PollerWorld) -> None:
    """By its name first, then by what its tasks took; a described one keeps its own."""
    poller.rules = replace(poller.rules, long_poll=False)
    poller.vendor.task_time = timedelta(seconds=100)
    for name, model in (("first", "kling/kling-v2.6-i2v"), ("second", "kling/kling-v2.6-i2v")):
        task = (await poller.add(State.WATCHED, name)).model_copy(update={"model": model})
        poller.tasks.items[task.task_id] = task
        began, before = poller.clock.now(), len(poller.vendor.polls)
        await poller.run(timedelta(minutes=3))
        assert poller.now_of(task).state is State.SUCCESS
        asked = poller.vendor.polls[before][0] - began
        if name == "first":
            assert timedelta(seconds=20) <= asked < timedelta(seconds=24)
        else:
            assert timedelta(seconds=75) <= asked < timedelta(seconds=95)
    assert 95 <= poller.control.the_admission.took["kling/kling-v2.6-i2v"] <= 112


async def test_a_callback_at_which_another_invocation_is_is_read_now_and_then(poller: PollerWorld) -> None:
    """Not again and again, and soon after the other one's claim is over it is attempted."""
    task = await poller.add(State.WATCHED)
    now = poller.clock.now()
    claim = now + timedelta(seconds=25)
    await poller.tasks.swap(task, task.succeeded({}, now, retention=RETENTION, claim=claim))
    reads, get = [], poller.tasks.get

    async def counted(task_id: str) -> Task | None:
        reads.append(poller.clock.now())
        return await get(task_id)

    poller.tasks.get = counted  # type: ignore[method-assign]
    await poller.tick()
    [(at, *_)] = poller.receivers.attempts
    assert claim <= at <= claim + timedelta(seconds=3)
    assert len(reads) <= 20  # once a scan
