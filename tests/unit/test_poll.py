import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from taskhook.core import schedule
from taskhook.core.admission import Gate
from taskhook.core.errors import StoreUnavailableError
from taskhook.core.ports import Admit, LeaseView, PollKind, PollOutcome, Reply, Rows
from taskhook.core.rate_limit import WINDOW, window
from taskhook.core.task import Attempt, CallbackState, ErrorCode, State, Submission, SubmitOutcome, Task
from taskhook.delivery.hosts import FIRST_SLOTS, Hosts
from taskhook.poller import watch
from taskhook.poller.endings import Endings
from taskhook.poller.invocation import BEAT, Ends, PollReport, ends_of, poll
from taskhook.poller.leadership import HAND_OVER
from taskhook.poller.pacing import Pacing
from taskhook.poller.scheduler import Scheduler
from taskhook.poller.watch import Watch
from taskhook.poller.work import INDEX_LAG, PAUSE_SHORT, SCAN, Rules
from taskhook.wiring import App
from tests.world import SETTINGS, FakeReceivers, FakeVendor, FixedHooks, MemoryCallers, MemoryTasks, Told, VirtualClock, a_caller

RETENTION = timedelta(days=7)
STOP = timedelta(seconds=120)


@dataclass
class Floor:
    """A poll function's world in memory."""

    rules: Rules = field(
        default_factory=lambda: Rules(retention=RETENTION, max_task_age=timedelta(hours=24), max_queue_age=timedelta(hours=24))
    )
    clock: VirtualClock = field(default_factory=VirtualClock)
    tasks: MemoryTasks = field(default_factory=MemoryTasks)
    told: Told = field(default_factory=Told)

    def __post_init__(self) -> None:
        self.ends: asyncio.Task[None] | None = None  # of a trouble
        self.vendor = FakeVendor(self.clock)
        self.receivers = FakeReceivers(self.clock)
        self.world = App(
            SETTINGS,
            tasks=self.tasks,
            vendor=self.vendor,
            webhook_urls=FixedHooks(),
            callbacks=self.receivers,
            callers=MemoryCallers(a_caller("alice"), a_caller("bob")),
            clock=self.clock,
            reporter=self.told,
        ).poller

    async def tick(self, *accepted: str, ended: tuple[str, ...] = (), told: Ends | None = None) -> PollReport:
        """Invoke the poll function: a tick, or a wake with ids."""
        return await poll(
            accepted=accepted,
            ended=told or dict.fromkeys(ended),
            scheduled=not (accepted or ended or told),
            hard_stop=self.clock.now() + STOP,
            rules=self.rules,
            world=self.world,
        )

    async def add(self, state: State, name: str = "t", caller: str = "alice", url: str | None = "https://r.example.com/") -> Task:
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
        return [facts for told, facts in self.told.events if told == event]

    async def run(self, duration: timedelta) -> None:
        """Let ticks come, a minute from start to start (never two at once here), for a while."""
        end = self.clock.now() + duration
        while self.clock.now() < end:
            began = self.clock.now()
            await self.tick()
            self.clock.pass_by(max(began + timedelta(seconds=60) - self.clock.now(), timedelta(0)))


@pytest.fixture
def floor() -> Floor:
    """Give a fresh world."""
    return Floor()


async def test_an_idle_tick_writes_nothing(floor: Floor) -> None:
    """Nothing due before the next tick: no write, no lease, no wait."""
    began = floor.clock.now()
    report = await floor.tick()
    assert (report.lingered, report.steps, floor.tasks.writes, floor.tasks.lease.holder) == (False, {}, 0, "")
    assert floor.clock.now() == began
    assert floor.told.events == []


async def test_a_wake_watches_to_the_end_and_delivers_at_once(floor: Floor) -> None:
    """From the vendor's end to the receiver in less than 10 % of the task's time."""
    task = await floor.add(State.WATCHED)
    await floor.tick(task.task_id)
    ended = floor.now_of(task)
    assert (ended.state, ended.callback, ended.attempts) == (State.SUCCESS, CallbackState.DELIVERED, 1)
    [(at, url, headers, body)] = floor.receivers.attempts
    assert at - floor.vendor.taken["task-t"] - floor.vendor.task_time <= timedelta(seconds=3.3)
    assert (url, headers["webhook-id"], body.decode()) == ("https://r.example.com/", task.webhook_id, ended.message)
    assert ended.expires_at is not None
    assert ended.work is None


async def test_an_unchanged_poll_writes_nothing(floor: Floor) -> None:
    """However often the vendor says pending, the task is not written."""
    task = await floor.add(State.WATCHED)
    floor.vendor.task_time = timedelta(hours=1)
    await floor.tick(task.task_id)
    assert len(floor.vendor.polls) > 3
    assert floor.tasks.writes == 1


async def test_a_task_that_failed_at_the_vendor_is_called_back_with_its_words(floor: Floor) -> None:
    """The vendor's message reaches the receiver."""
    task = await floor.add(State.WATCHED)
    floor.vendor.poll_outcomes.append(PollOutcome(kind=PollKind.FAILED, message="InvalidFile.Duration: too long"))
    await floor.tick(task.task_id)
    ended = floor.now_of(task)
    assert (ended.state, ended.error, ended.callback) == (State.FAILED, ErrorCode.UPSTREAM_FAILED, CallbackState.DELIVERED)
    assert b"InvalidFile.Duration: too long" in floor.receivers.attempts[0][3]


async def test_without_a_url_the_task_just_ends(floor: Floor) -> None:
    """A task that is only watched has no callback and expires."""
    task = await floor.add(State.WATCHED, url=None)
    await floor.tick(task.task_id)
    ended = floor.now_of(task)
    assert (ended.state, ended.callback, ended.work, floor.receivers.attempts) == (State.SUCCESS, CallbackState.NONE, None, [])


async def test_a_receiver_that_was_down_gets_the_same_message_later(floor: Floor) -> None:
    """All attempts carry the same id and bytes, and a fresh timestamp and signature."""
    task = await floor.add(State.WATCHED)
    floor.receivers.replies.extend([Reply(status=503), Reply(error="refused")])
    await floor.run(timedelta(minutes=8))
    assert floor.now_of(task).callback is CallbackState.DELIVERED
    times, _, headers, bodies = zip(*floor.receivers.attempts, strict=True)
    assert len(times) == 3
    assert len(set(bodies)) == len({header["webhook-id"] for header in headers}) == 1
    assert len({header["webhook-signature"] for header in headers}) == 3
    assert timedelta(seconds=4.5) <= times[1] - times[0] <= timedelta(seconds=6)
    assert timedelta(minutes=4.5) <= times[2] - times[1] <= timedelta(minutes=5.6)
    assert [header["x-modellix-retry-count"] for header in headers] == ["0", "1", "2"]


async def test_a_receiver_that_never_answers_ends_as_undelivered(floor: Floor) -> None:
    """Ten attempts over 75 hours, then the task is kept and says so."""
    task = await floor.add(State.WATCHED)
    floor.receivers.replies.extend([Reply(status=500)] * 10)
    await floor.run(timedelta(hours=85))
    ended = floor.now_of(task)
    assert (ended.callback, ended.attempts, len(ended.log)) == (CallbackState.UNDELIVERED, 10, 10)
    assert ended.work is None
    took = floor.receivers.attempts[-1][0] - floor.receivers.attempts[0][0]
    assert timedelta(hours=68) <= took <= timedelta(hours=84)


async def test_a_dead_submit_is_reaped_as_unknown_and_ends_as_such(floor: Floor) -> None:
    """A claim that ran out is never paid again: 15 minutes later the callback says that nobody knows."""
    task = await floor.add(State.SUBMITTING)
    await floor.run(timedelta(minutes=2))
    assert floor.now_of(task).state is State.RESCUE
    assert floor.facts("task.submitted") == [{"task_id": task.task_id, "caller": "alice", "outcome": "ambiguous"}]
    await floor.run(timedelta(minutes=15))
    ended = floor.now_of(task)
    assert (ended.error, ended.callback) == (ErrorCode.SUBMISSION_UNKNOWN, CallbackState.DELIVERED)
    assert floor.vendor.submits == []


async def test_a_delivery_that_died_is_made_again(floor: Floor) -> None:
    """An ended task whose first delivery was claimed and never recorded is found and delivered."""
    task = await floor.add(State.WATCHED)
    now = floor.clock.now()
    await floor.tasks.swap(task, task.succeeded({}, now, retention=RETENTION, claim=now + timedelta(seconds=30)))
    await floor.run(timedelta(minutes=2))
    assert floor.now_of(task).callback is CallbackState.DELIVERED
    assert floor.receivers.attempts[0][0] >= now + timedelta(seconds=30)


async def test_queued_tasks_are_paid_once_callers_in_turn(floor: Floor) -> None:
    """Two callers' queues are served alternately, and each task is sent once."""
    for name, caller in [("a1", "alice"), ("a2", "alice"), ("a3", "alice"), ("b1", "bob")]:
        await floor.add(State.QUEUED, name, caller)
        floor.clock.pass_by(timedelta(milliseconds=1))
    await floor.tick()
    assert [url.split("/")[-1] for url in floor.vendor.submits] == ["a1.jpg", "b1.jpg", "a2.jpg", "a3.jpg"]
    assert {task.state for task in floor.tasks.items.values()} <= {State.WATCHED, State.SUCCESS}


async def test_a_queued_task_waits_while_the_vendor_is_busy(floor: Floor) -> None:
    """A refusal for now keeps it queued; when a place is free it is paid, once."""
    task = await floor.add(State.QUEUED)
    floor.vendor.submit_outcomes.extend([SubmitOutcome(submission=Submission.BUSY, status=429)] * 3)
    began = floor.clock.now()
    await floor.run(timedelta(minutes=5))
    assert len(floor.vendor.submits) == 4
    assert floor.clock.now() - began >= timedelta(minutes=3)
    assert floor.now_of(task).upstream_task_id is not None


@pytest.mark.parametrize("submission", [Submission.REFUSED, Submission.AMBIGUOUS])
async def test_what_ends_a_queued_task_is_called_back(floor: Floor, submission: Submission) -> None:
    """Its 200 is long given, so the callback is the only way to tell."""
    task = await floor.add(State.QUEUED)
    floor.vendor.submit_outcomes.append(SubmitOutcome(submission=submission, status=400, message="bad"))
    await floor.run(timedelta(minutes=18))
    assert (floor.now_of(task).state, floor.now_of(task).callback) == (State.FAILED, CallbackState.DELIVERED)
    assert len(floor.vendor.submits) == 1


async def test_a_queued_task_whose_time_is_over_is_never_paid(floor: Floor) -> None:
    """It ends as queue_expired, with its callback."""
    task = await floor.add(State.QUEUED)
    floor.clock.pass_by(timedelta(hours=24))
    await floor.tick()
    ended = floor.now_of(task)
    assert (ended.error, ended.callback, floor.vendor.submits) == (ErrorCode.QUEUE_EXPIRED, CallbackState.DELIVERED, [])


async def test_a_refused_key_pauses_the_queue_and_fails_nobody(floor: Floor) -> None:
    """401 on a queued task's POST leaves it queued for at least a minute."""
    task = await floor.add(State.QUEUED)
    floor.vendor.submit_outcomes.append(SubmitOutcome(submission=Submission.REFUSED_HERE, status=401))
    await floor.tick()
    assert floor.now_of(task).state is State.QUEUED
    assert len(floor.vendor.submits) == 1


async def test_the_deadline_counts_from_acceptance_and_needs_a_poll_past_it(floor: Floor) -> None:
    """A task that is still pending past MaxTaskAge expires; a success seen then still counts."""
    late, done = await floor.add(State.WATCHED, "late"), await floor.add(State.WATCHED, "done")
    floor.clock.pass_by(timedelta(hours=25))
    floor.vendor.taken["task-late"] = floor.clock.now()
    await floor.tick()
    assert floor.now_of(late).error is ErrorCode.EXPIRED
    assert floor.now_of(done).state is State.SUCCESS


async def test_past_the_hard_stop_no_poll_is_needed(floor: Floor) -> None:
    """48 hours past the deadline a task ends even if the vendor cannot be asked."""
    task = await floor.add(State.WATCHED)
    floor.clock.pass_by(timedelta(hours=72))
    await floor.tick()
    assert (floor.now_of(task).error, floor.vendor.polls) == (ErrorCode.EXPIRED, [])


async def test_a_task_unknown_to_the_vendor_is_lost_only_the_second_time(floor: Floor) -> None:
    """A young 404 says nothing; later two of them, 30 s apart, end the task."""
    task = await floor.add(State.WATCHED)
    floor.vendor.poll_outcomes.extend([PollOutcome(kind=PollKind.MISSING)] * 60)
    await floor.tick(task.task_id)
    await floor.run(timedelta(minutes=3))
    first = next(at for at, _ in floor.vendor.polls if at >= task.accepted_at + timedelta(seconds=60))
    ended = floor.now_of(task)
    assert ended.error is ErrorCode.LOST
    assert ended.ended_at is not None
    assert ended.ended_at >= first + timedelta(seconds=30)


async def test_a_task_that_reappears_is_not_lost(floor: Floor) -> None:
    """One 404 between good answers is forgotten."""
    task = await floor.add(State.WATCHED)
    floor.clock.pass_by(timedelta(minutes=2))
    floor.vendor.task_time = timedelta(minutes=5)
    floor.vendor.poll_outcomes.extend([PollOutcome(kind=PollKind.MISSING), PollOutcome(kind=PollKind.PENDING)])
    await floor.run(timedelta(minutes=6))
    assert floor.now_of(task).state is State.SUCCESS


async def test_what_404s_have_shown_is_stored_for_whoever_comes_next(floor: Floor) -> None:
    """The first of them, and that it was followed by a good answer."""
    floor.rules = replace(floor.rules, linger=False)
    floor.vendor.task_time = timedelta(hours=1)
    task = await floor.add(State.WATCHED)
    floor.clock.pass_by(timedelta(minutes=2))
    floor.vendor.poll_outcomes.append(PollOutcome(kind=PollKind.MISSING))
    await floor.tick()
    assert floor.now_of(task).missing_since is not None
    floor.clock.pass_by(timedelta(minutes=1))
    await floor.tick()
    assert floor.now_of(task).missing_since is None


async def test_a_throttled_vendor_is_left_alone_for_as_long_as_it_says(floor: Floor) -> None:
    """After a 429 with Retry-After no poll is made before its time is over."""
    task = await floor.add(State.WATCHED)
    floor.vendor.poll_outcomes.append(PollOutcome(kind=PollKind.THROTTLED, retry_after=timedelta(seconds=17)))
    await floor.tick(task.task_id)
    first, second = floor.vendor.polls[0][0], floor.vendor.polls[1][0]
    assert second - first >= timedelta(seconds=17)


async def test_one_poisoned_task_stops_nobody(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that one task triggers is told and stays with that task."""
    bad, good = await floor.add(State.WATCHED, "bad"), await floor.add(State.WATCHED, "good")
    asked = floor.vendor.poll

    async def poll_or_break(upstream_task_id: str, *, hold: bool = False) -> PollOutcome:
        if upstream_task_id == "task-bad":
            raise RuntimeError("poison")
        return await asked(upstream_task_id, hold=hold)

    monkeypatch.setattr(floor.vendor, "poll", poll_or_break)
    await floor.run(timedelta(minutes=2))
    assert floor.now_of(good).callback is CallbackState.DELIVERED
    assert floor.now_of(bad).state is State.WATCHED
    assert floor.told.count("task.crashed") > 0


async def test_a_wake_leaves_the_watching_to_whoever_holds_the_lease(floor: Floor) -> None:
    """It serves its own ids and ends."""
    floor.tasks.lease = LeaseView(holder="other", until=floor.clock.now() + STOP)
    task = await floor.add(State.WATCHED)
    report = await floor.tick(task.task_id)
    assert (report.lingered, floor.tasks.lease.holder, floor.vendor.polls) == (False, "other", [])


async def test_a_tick_takes_the_lease_over_and_the_old_holder_leaves(floor: Floor) -> None:
    """Within a scan the old invocation sees that it is relieved, and starts nothing more."""
    floor.vendor.task_time = timedelta(hours=1)
    await floor.add(State.WATCHED)
    sleep = floor.clock.sleep
    relieved_at = floor.clock.now() + timedelta(seconds=30)

    async def sleep_and_be_relieved(duration: timedelta) -> None:
        await sleep(duration)
        if floor.clock.now() >= relieved_at:
            floor.tasks.lease = LeaseView(holder="newer", until=floor.clock.now() + STOP)

    floor.world.clock.sleep = sleep_and_be_relieved  # type: ignore[method-assign]  # the world moves while we sleep
    await floor.tick()
    assert floor.clock.now() - relieved_at <= SCAN + BEAT
    assert floor.tasks.lease.holder == "newer"


async def hand_over(floor: Floor, task: Task, at: timedelta) -> None:
    """Let one invocation be woken for a task, and a tick take over from it a while later; polls are not held."""
    floor.rules = replace(floor.rules, long_poll=False)

    async def tick() -> None:
        await floor.clock.sleep(at)
        await floor.tick()

    await asyncio.gather(floor.tick(task.task_id), tick())


async def test_an_end_stored_while_being_relieved_is_delivered_at_once(floor: Floor) -> None:
    """The relieved invocation has claimed the delivery with the end; nobody has to wait until that claim is over."""
    floor.vendor.task_time, floor.vendor.answer_time = timedelta(seconds=25), timedelta(seconds=6)
    task = await floor.add(State.WATCHED)
    await hand_over(floor, task, timedelta(seconds=22))  # the poll of 20 s is answered at 26 s
    ended = floor.now_of(task)
    assert ended.ended_at is not None
    assert [at - ended.ended_at for at, *_ in floor.receivers.attempts] == [timedelta(0)]


@pytest.mark.parametrize("at_s", [19, 21.5, 22.5, 28])  # before the poll, during it, and during the attempt
async def test_a_retry_is_not_late_for_a_hand_over(floor: Floor, at_s: float) -> None:
    """The new invocation has seen the old one's claim of the first attempt, and does not wait for that to be over."""
    floor.vendor.task_time, floor.vendor.answer_time = timedelta(seconds=22), timedelta(seconds=3)
    floor.receivers.answer_time = timedelta(seconds=10)
    floor.receivers.replies.append(Reply(status=503, elapsed=timedelta(seconds=10)))
    task = await floor.add(State.WATCHED)
    await hand_over(floor, task, timedelta(seconds=at_s))
    (first, *_), (second, *_) = floor.receivers.attempts
    assert timedelta(seconds=14) <= second - first <= timedelta(seconds=18)


@pytest.mark.parametrize("at_s", [21.8, 21.9, 21.95, 22.05])
async def test_a_point_of_polling_is_not_lost_between_two_invocations(floor: Floor, at_s: float) -> None:
    """The old one looks no more once it is relieved, and what came due since its last beat is the new one's."""
    floor.vendor.task_time = timedelta(seconds=21)
    task = await floor.add(State.WATCHED)
    floor.clock.pass_by(timedelta(milliseconds=130))  # so that the point lies between two beats
    await hand_over(floor, task, timedelta(seconds=at_s))
    ended = floor.now_of(task)
    assert ended.ended_at is not None
    assert ended.ended_at - ended.accepted_at < timedelta(seconds=23)  # by the point of 22 s, not the one of 24.2 s


async def paid_by_another(floor: Floor, queued: Task) -> None:
    """Take a task out of the queue and have the vendor take it."""
    now = floor.vendor.taken["task-t"] = floor.clock.now()
    outcome = SubmitOutcome(submission=Submission.TAKEN, upstream_task_id="task-t", status=200)
    submitting = queued.claim_submit(now, until=now + timedelta(minutes=1))
    await floor.tasks.swap(queued, submitting.submitted(outcome, now, retention=RETENTION))


async def test_a_task_that_another_invocation_took_out_of_the_queue_is_looked_after(floor: Floor) -> None:
    """It enters the index of watched tasks at the time of its acceptance, long before the newest that was seen there."""
    floor.rules = replace(floor.rules, long_poll=False)
    queued = await floor.add(State.QUEUED)
    floor.clock.pass_by(timedelta(minutes=5))
    floor.tasks.the_gate = Gate(waiting=True, paused_until=floor.clock.now() + timedelta(hours=1))
    await floor.add(State.WATCHED, "other")
    lingering = asyncio.create_task(floor.tick())
    await floor.clock.sleep(timedelta(seconds=10))
    await paid_by_another(floor, queued)
    await lingering
    assert floor.now_of(queued).callback is CallbackState.DELIVERED


async def test_a_task_that_leaves_the_queue_between_two_looks_is_seen_by_one_of_them(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two queries are two moments."""
    queued = await floor.add(State.QUEUED)
    floor.clock.pass_by(timedelta(minutes=5))
    looks = [floor.tasks.watched, floor.tasks.queue_waits]

    def leaving_after_the_first(look: Any) -> Any:
        async def see(*where: Any, **known: Any) -> Any:
            seen = await look(*where, **known)
            if looks:
                looks.clear()
                await paid_by_another(floor, queued)
            return seen

        return see

    for look in looks:
        monkeypatch.setattr(floor.tasks, look.__name__, leaving_after_the_first(look))
    await floor.tick()
    assert floor.now_of(queued).callback is CallbackState.DELIVERED


async def test_whoever_leaves_claims_nothing_more(floor: Floor) -> None:
    """Attempts fill the host's slots when the invocation is relieved; one more is left, unclaimed, to the next leader."""
    floor.receivers.answer_time = timedelta(seconds=10)
    now = floor.clock.now()
    for number in range(FIRST_SLOTS + 1):
        task = await floor.add(State.WATCHED, str(number))
        await floor.tasks.swap(task, task.succeeded({}, now, retention=RETENTION, claim=now))

    async def relieve() -> None:
        await floor.clock.sleep(timedelta(seconds=3))
        floor.tasks.lease = LeaseView(holder="newer", until=floor.clock.now() + STOP)

    await asyncio.gather(floor.tick(), relieve())
    assert len(floor.receivers.attempts) == FIRST_SLOTS
    assert [task.claimed(floor.clock.now()) for task in floor.tasks.items.values() if task.attempts == 0] == [False]


async def test_a_claimed_task_is_looked_at_once_a_scan(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for another's claim reads no more often than it looks for work."""
    await floor.add(State.SUBMITTING)  # claimed for 35 s
    looks = []
    get = floor.tasks.get

    async def counted(task_id: str) -> Task | None:
        looks.append(floor.clock.now())
        return await get(task_id)

    monkeypatch.setattr(floor.tasks, "get", counted)
    await floor.tick()
    assert all(later - earlier >= SCAN for earlier, later in pairwise(looks))
    assert len(looks) > 5


async def test_a_queued_task_that_the_index_shows_late_holds_nobody_up(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of the queue was paid by another invocation a moment ago; the caller behind it is served all the same."""
    late, queued = await floor.add(State.WATCHED, "late", "alice"), await floor.add(State.QUEUED, "next", "bob")
    heads = floor.tasks.queue_heads

    async def lagging() -> list[Task]:
        return [late, *await heads()]

    monkeypatch.setattr(floor.tasks, "queue_heads", lagging)
    await floor.tick()
    assert floor.vendor.submits == ["https://example.com/next.jpg"]
    assert floor.now_of(queued).state is State.SUCCESS
    assert floor.told.count("queue.crashed") == 0


async def test_economy_makes_one_pass_a_tick(floor: Floor) -> None:
    """No linger: what is due is done, and the rest waits for the next tick."""
    floor.rules = Rules(retention=RETENTION, max_task_age=timedelta(hours=24), max_queue_age=timedelta(hours=24), linger=False)
    task = await floor.add(State.WATCHED)
    floor.clock.pass_by(timedelta(seconds=25))
    began = floor.clock.now()
    report = await floor.tick()
    assert (report.lingered, len(floor.vendor.polls)) == (False, 1)
    assert floor.clock.now() - began < timedelta(seconds=1)
    await floor.run(timedelta(minutes=2))
    assert floor.now_of(task).callback is CallbackState.DELIVERED


@pytest.mark.parametrize("state", [State.WATCHED, State.ARCHIVING])
async def test_what_a_wake_brings_is_served_although_time_goes_on_meanwhile(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    """A real clock moves between any two looks at it; an invocation that does not lead serves its ids all the same."""
    task = await floor.add(State.WATCHED)
    if state is State.ARCHIVING:
        data = {"result": {"resources": [{"url": "https://files.example.com/1.mp4"}]}}
        await floor.tasks.swap(task, task.archiving(data, floor.clock.now(), new_token=lambda: "t" * 32))
    floor.clock.pass_by(minutes(20))
    floor.tasks.lease = LeaseView(holder="other", until=floor.clock.now() + STOP)
    plain = floor.clock.now

    def now() -> datetime:
        floor.clock.pass_by(timedelta(microseconds=7))
        return plain()

    monkeypatch.setattr(floor.clock, "now", now)
    if state is State.ARCHIVING:
        await floor.tick(task.task_id)
    else:
        await floor.tick(ended=(task.task_id,))
    assert floor.now_of(task).callback is CallbackState.DELIVERED


async def test_a_removed_caller_is_an_error_of_the_attempt(floor: Floor) -> None:
    """Without a record there is no secret to sign with; the schedule goes on and nothing is lost."""
    task = await floor.add(State.WATCHED, caller="nobody")
    await floor.tick(task.task_id)
    assert floor.now_of(task).log[0].error == "caller_unreadable"
    assert floor.now_of(task).callback is CallbackState.WAITING


# --- what an invocation tells of its load ----------------------------------------------------------------------------------


async def test_polls_are_told_once_with_the_time_that_tasks_have_used(floor: Floor) -> None:
    """One line an invocation, whatever the number of tasks; the one nearest to its deadline counts."""
    for name in ("a", "b"):
        await floor.add(State.WATCHED, name)
    floor.clock.pass_by(timedelta(hours=18))
    for upstream in floor.vendor.taken:
        floor.vendor.taken[upstream] = floor.clock.now()
    await floor.tick()
    assert floor.facts("vendor.polled") == [{"count": len(floor.vendor.polls), "deadline_used": 75.0}]
    assert floor.facts("vendor.unavailable") == []


async def test_polls_without_an_answer_are_told_once_with_the_reason(floor: Floor) -> None:
    """An outage of the vendor is one line an invocation, not one a poll."""
    task = await floor.add(State.WATCHED)
    floor.vendor.poll_outcomes.extend([PollOutcome(kind=PollKind.UNAVAILABLE, message="ConnectTimeout")] * 3)
    await floor.tick(task.task_id)
    assert floor.facts("vendor.unavailable") == [{"count": 3, "error": "ConnectTimeout"}]


@pytest.mark.parametrize(("holds", "least_s", "most_s"), [(True, 0, 1), (False, 2, 5)])
async def test_lateness_counts_from_when_the_task_is_last_known_to_have_run(
    floor: Floor, *, holds: bool, least_s: float, most_s: float
) -> None:
    """A held poll sees the end itself; otherwise the poll before bounds how long it went unseen."""
    floor.vendor.holds = holds
    task = await floor.add(State.WATCHED)
    await floor.tick(task.task_id)
    [attempted] = floor.facts("callback.attempted")
    [true] = lateness(floor)
    assert true.total_seconds() <= attempted["late_s"]
    assert least_s <= attempted["late_s"] <= most_s


async def test_a_message_asked_for_again_is_not_late(floor: Floor) -> None:
    """Whoever redelivers has waited because they wanted to; a retry has kept the receiver waiting since the end."""
    floor.receivers.replies.append(Reply(status=500))
    task = await floor.add(State.WATCHED)
    await floor.run(timedelta(minutes=1))
    await floor.tasks.swap(floor.now_of(task), floor.now_of(task).redelivered(floor.clock.now()))
    await floor.tick()
    failed, delivered, again = floor.facts("callback.attempted")
    assert (failed["late_s"], again["late_s"]) == (None, None)
    assert 5 <= delivered["late_s"] <= 15


async def test_a_queue_that_waits_tells_its_oldest(floor: Floor) -> None:
    """As far as it was looked at anyway; nothing is said where everything was served."""
    old = await floor.add(State.QUEUED, "old")
    floor.clock.pass_by(timedelta(hours=6))
    await floor.add(State.QUEUED, "new", "bob")
    floor.vendor.submit_outcomes.append(SubmitOutcome(submission=Submission.BUSY, status=429))
    await floor.tick()
    [waited] = floor.facts("queue.waited")
    assert waited == {"oldest_queued_s": 6 * 3600, "deadline_used": 25.0}
    floor.told.events.clear()
    await floor.run(timedelta(minutes=2))
    assert floor.now_of(old).upstream_task_id is not None
    assert floor.facts("queue.waited") == []


# --- held polls, hints, budget, places -------------------------------------------------------------------------------------


def lateness(floor: Floor) -> list[timedelta]:
    """Tell for each delivered task how long after its end the receiver heard of it."""
    ends = {
        task.task_id: floor.vendor.taken[task.upstream_task_id or ""] + floor.vendor.task_time
        for task in floor.tasks.items.values()
    }
    return [at - ends[headers["x-modellix-task-id"]] for at, _, headers, _ in floor.receivers.attempts]


async def test_a_vendor_that_holds_polls_is_found_out_and_asked_rarely(floor: Floor) -> None:
    """One poll tells, then every task has one held poll at a time; the news comes at once."""
    floor.vendor.holds = True
    floor.vendor.task_time = timedelta(seconds=100)
    for number in range(10):
        await floor.add(State.WATCHED, f"t{number}")
    await floor.run(timedelta(minutes=3))
    assert len(lateness(floor)) == 10
    assert max(lateness(floor)) <= timedelta(seconds=1.5)
    assert len(floor.vendor.polls) <= 10 * 6
    assert floor.world.habits.holds == {"alibaba/wan2.2-animate-mix": True}


async def test_a_vendor_that_does_not_hold_is_polled_by_the_schedule(floor: Floor) -> None:
    """A pending that comes at once settles it; it is not asked to hold again for a while."""
    floor.vendor.task_time = timedelta(seconds=100)
    await floor.add(State.WATCHED)
    await floor.run(timedelta(minutes=3))
    assert floor.world.habits.holds == {"alibaba/wan2.2-animate-mix": False}
    assert max(lateness(floor)) <= timedelta(seconds=10.5)
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(floor.vendor.polls)]
    assert min(gaps) >= timedelta(seconds=2)


async def test_long_poll_can_be_switched_off(floor: Floor) -> None:
    """Then nothing is found out either."""
    floor.vendor.holds = True
    floor.rules = replace(floor.rules, long_poll=False)
    await floor.add(State.WATCHED)
    await floor.run(timedelta(minutes=2))
    assert floor.world.habits.holds == {}


@pytest.mark.parametrize("lingering", [True, False])
async def test_a_hinted_task_is_asked_about_at_once(floor: Floor, lingering: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Whoever lingers, or nobody, a wake with an ended task polls and delivers it."""
    until = floor.clock.now() + (2 * STOP if lingering else timedelta(0))
    floor.tasks.lease = LeaseView(holder="other", until=until, hinted_at=floor.clock.now())
    task = await floor.add(State.WATCHED)
    floor.clock.pass_by(floor.vendor.task_time)
    began = floor.clock.now()
    await floor.tick(ended=(task.task_id,))
    assert floor.now_of(task).callback is CallbackState.DELIVERED
    assert floor.clock.now() - began < timedelta(seconds=1)


@pytest.mark.parametrize("lingering", [True, False])
async def test_an_end_that_was_told_is_not_asked_for_again(floor: Floor, lingering: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Whoever checked the hint has asked already; nor does it need a request of the budget."""
    until = floor.clock.now() + (2 * STOP if lingering else timedelta(0))
    floor.tasks.lease = LeaseView(holder="other", until=until, hinted_at=floor.clock.now())
    floor.rules = replace(floor.rules, requests_per_minute=0)
    for name, told, state in (
        ("good", PollOutcome(kind=PollKind.SUCCEEDED, data={"result": {"resources": []}}), State.SUCCESS),
        ("bad", PollOutcome(kind=PollKind.FAILED, message="no human"), State.FAILED),
    ):
        task = await floor.add(State.WATCHED, name)
        await floor.tick(told={task.task_id: told})
        assert (floor.now_of(task).state, floor.now_of(task).callback) == (state, CallbackState.DELIVERED)
    assert floor.vendor.polls == []


async def test_what_was_told_is_used_once(floor: Floor) -> None:
    """Where it could not be stored the vendor is asked, as it stands then."""
    task = await floor.add(State.WATCHED)
    floor.clock.pass_by(floor.vendor.task_time)
    swap, down = floor.tasks.swap, [True]

    async def once_down(old: Task, new: Task) -> Task:
        if down:
            down.pop()
            raise StoreUnavailableError("ThrottlingException")
        return await swap(old, new)

    floor.tasks.swap = once_down  # type: ignore[method-assign]  # the first write is lost
    await floor.tick(told={task.task_id: PollOutcome(kind=PollKind.SUCCEEDED, data={})})
    await floor.run(timedelta(minutes=1))
    assert floor.now_of(task).callback is CallbackState.DELIVERED
    assert len(floor.vendor.polls) == 1


def test_a_wake_may_name_what_has_ended_and_say_how() -> None:
    """A version before names ids only."""
    assert ends_of({"accepted": ["a"]}) == {}
    assert ends_of({"ended": ["a"]}) == {"a": None}
    told = PollOutcome(kind=PollKind.SUCCEEDED, data={"result": 1.0})
    assert ends_of({"ended": {"a": told.model_dump(mode="json", exclude_defaults=True), "b": None}}) == {"a": told, "b": None}


async def test_a_retry_left_by_a_wake_is_not_late(floor: Floor) -> None:
    """A wake without the lease delivers and leaves the retry; who lingers, and still took the task for watched, makes it."""
    floor.tasks.lease = LeaseView(hinted_at=floor.clock.now())
    floor.rules = replace(floor.rules, long_poll=False)
    floor.vendor.task_time = timedelta(seconds=5)
    floor.receivers.replies.append(Reply(status=503))
    task, other = await floor.add(State.WATCHED), await floor.add(State.WATCHED, "other")
    now = floor.clock.now()
    ended = await floor.tasks.swap(other, other.succeeded({}, now, retention=RETENTION, claim=now))
    later = now + timedelta(seconds=55)  # for this the first one lingers
    await floor.tasks.swap(ended, ended.attempted(Attempt(at=now), delivered=False, retry_at=later, now=now, retention=RETENTION))

    async def hint() -> None:
        await floor.clock.sleep(timedelta(seconds=6))
        await floor.tick(ended=(task.task_id,))

    await asyncio.gather(floor.tick(), hint())
    first, second = (at for at, *_, body in floor.receivers.attempts if task.task_id in body.decode())
    assert second - first <= timedelta(seconds=8)


async def test_who_takes_over_from_held_polls_holds_them_on(floor: Floor) -> None:
    """The hint was left to a poll that was dropped, so a process that knows nothing yet asks at once all the same."""
    floor.vendor.holds = True
    task = await floor.add(State.WATCHED)
    floor.clock.pass_by(floor.vendor.task_time)
    now = floor.clock.now()
    floor.tasks.lease = LeaseView(holder="other", until=now + STOP, hinted_at=now, held_models=(task.model,))
    await floor.tick()
    assert max(lateness(floor)) <= timedelta(seconds=1)


async def test_where_hints_come_polls_are_rare(floor: Floor) -> None:
    """Once a minute is enough of a net."""
    floor.tasks.lease = LeaseView(hinted_at=floor.clock.now())
    floor.vendor.task_time = timedelta(seconds=150)
    floor.rules = replace(floor.rules, long_poll=False)
    await floor.add(State.WATCHED)
    await floor.run(timedelta(minutes=4))
    assert len(floor.vendor.polls) == 3
    assert floor.tasks.lease.hinted_at is None  # it ended without a hint


async def test_where_hints_come_it_is_still_found_out_whether_polls_are_held(floor: Floor) -> None:
    """A held poll costs less than a hint, which takes two invocations and two requests; one poll is enough to know."""
    floor.tasks.lease = LeaseView(hinted_at=floor.clock.now())
    floor.vendor.holds = True
    floor.vendor.task_time = timedelta(seconds=50)
    for number in range(3):
        await floor.add(State.WATCHED, f"t{number}")
    await floor.run(timedelta(minutes=1))
    assert floor.tasks.lease.held_models
    assert max(lateness(floor)) <= timedelta(seconds=1)


async def test_where_polls_are_not_held_one_poll_is_spent_on_finding_out(floor: Floor) -> None:
    """All others stay as rare as hints make them."""
    floor.tasks.lease = LeaseView(hinted_at=floor.clock.now())
    floor.vendor.task_time = timedelta(seconds=200)
    began = floor.clock.now()
    for number in range(30):
        await floor.add(State.WATCHED, f"t{number}")
        floor.clock.pass_by(timedelta(seconds=0.3))
    await floor.run(timedelta(minutes=1))
    assert sum(at < began + timedelta(seconds=55) for at, _ in floor.vendor.polls) <= 2


async def test_what_was_polled_before_somebody_left_is_not_polled_again(floor: Floor) -> None:
    """Whoever leaves because nothing is due has served every point until then, and says so."""
    floor.tasks.lease = LeaseView(hinted_at=floor.clock.now())
    floor.vendor.task_time = timedelta(seconds=230)
    floor.rules = replace(floor.rules, long_poll=False)
    await floor.add(State.WATCHED)
    began = floor.clock.now()
    floor.clock.pass_by(timedelta(seconds=20))  # so that each tick is followed by a point, and by nothing else
    await floor.run(timedelta(minutes=4))
    assert [round((at - began).total_seconds()) for at, _ in floor.vendor.polls] == [60, 120, 180, 240]


async def test_who_leaves_after_an_unanswered_poll_does_not_call_it_served(floor: Floor) -> None:
    """It may have been the one that mattered; whoever comes next asks again, and does not wait for the next rare point."""
    floor.tasks.lease = LeaseView(hinted_at=floor.clock.now())
    floor.rules = replace(floor.rules, long_poll=False)
    floor.vendor.task_time = timedelta(seconds=475)
    await floor.add(State.WATCHED)
    began = floor.clock.now()
    floor.clock.pass_by(timedelta(seconds=5))
    ask = floor.vendor.poll

    async def poll(upstream_task_id: str, *, hold: bool = False) -> PollOutcome:
        if timedelta(seconds=479) < floor.clock.now() - began < timedelta(seconds=482):
            return PollOutcome(kind=PollKind.UNAVAILABLE, message="no")
        return await ask(upstream_task_id, hold=hold)

    floor.vendor.poll = poll  # type: ignore[method-assign]  # one point meets nobody
    await floor.run(timedelta(minutes=12))
    assert max(lateness(floor)) <= timedelta(seconds=15)


async def test_who_leaves_without_having_seen_calls_nothing_served(floor: Floor) -> None:
    """While the index cannot be read, a wake serves its own task; the points of the others are still to be served."""
    floor.rules = replace(floor.rules, long_poll=False, immediate=True)
    await floor.add(State.WATCHED)
    point = schedule.next_poll(timedelta(seconds=700), first=timedelta(0))
    floor.vendor.task_time = timedelta(seconds=15)
    floor.vendor.taken["task-t"] = floor.clock.now() + point - timedelta(seconds=16)  # it ends a second before its point
    floor.clock.pass_by(point - timedelta(seconds=5))
    other = await floor.add(State.WATCHED, "other")
    watched = floor.tasks.watched

    async def down(*_: object, **__: object) -> Rows:
        raise StoreUnavailableError("ThrottlingException")

    floor.tasks.watched = down  # type: ignore[method-assign]  # for as long as the wake's invocation lives
    await floor.tick(other.task_id)
    floor.tasks.watched = watched  # type: ignore[method-assign]
    await floor.run(timedelta(minutes=4))
    assert max(lateness(floor)) <= timedelta(seconds=15)


async def test_lateness_is_told_as_what_it_may_have_been_at_most(floor: Floor) -> None:
    """Whoever left did not ask just then: the last poll may be as old as the points are apart."""
    floor.rules = replace(floor.rules, long_poll=False)
    floor.tasks.lease = LeaseView(hinted_at=floor.clock.now())
    floor.vendor.task_time = timedelta(seconds=63)
    await floor.add(State.WATCHED)
    floor.clock.pass_by(timedelta(seconds=15))
    await floor.add(State.WATCHED, "other")
    floor.clock.pass_by(timedelta(seconds=5))
    await floor.run(timedelta(minutes=4))
    told = [facts["late_s"] for facts in floor.facts("callback.attempted")]
    assert [late >= true.total_seconds() for late, true in zip(told, lateness(floor), strict=True)] == [True, True]


async def test_polls_are_rare_as_soon_as_hints_are_known_to_come(floor: Floor) -> None:
    """Whoever lingers sees it in the lease, and thinks again about what it was about to ask."""
    floor.rules = replace(floor.rules, long_poll=False)
    floor.vendor.task_time = timedelta(seconds=200)
    await floor.add(State.WATCHED)
    began = floor.clock.now()

    async def learn() -> None:
        await floor.clock.sleep(timedelta(seconds=40))
        await floor.tasks.hinted(floor.clock.now())

    await asyncio.gather(floor.run(timedelta(minutes=3)), learn())
    asked = [round((at - began).total_seconds()) for at, _ in floor.vendor.polls]
    assert [at for at in asked if 43 <= at < 180] == [60, 120]


async def test_where_a_hint_stays_away_nobody_waits_for_the_next(floor: Floor) -> None:
    """A task that has ended without one is found by a rare poll, and brings back the ordinary ones of all others."""
    floor.tasks.lease = LeaseView(hinted_at=floor.clock.now())
    floor.vendor.task_time = timedelta(seconds=45)
    floor.rules = replace(floor.rules, long_poll=False)
    await floor.add(State.WATCHED)
    floor.clock.pass_by(timedelta(seconds=10))
    await floor.add(State.WATCHED, "later")
    await floor.run(timedelta(minutes=2))
    assert lateness(floor)[1] <= timedelta(seconds=8)


@pytest.mark.parametrize("holds", [True, False])
async def test_no_minute_sees_more_requests_than_allowed(floor: Floor, holds: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """Wherever it begins, hand-overs included; and nothing is lost when requests are short."""
    floor.rules = replace(floor.rules, requests_per_minute=100)
    floor.vendor.holds = holds
    floor.vendor.task_time = timedelta(seconds=200)
    for number in range(60):
        await floor.add(State.WATCHED, f"t{number}")
    await floor.run(timedelta(minutes=10))
    times = [at for at, _ in floor.vendor.polls]
    busiest = max(sum(at <= other < at + timedelta(minutes=1) for other in times) for at in times)
    assert busiest <= 100
    assert all(task.callback is CallbackState.DELIVERED for task in floor.tasks.items.values())


async def test_two_places_serve_any_queue_callers_in_turn(floor: Floor) -> None:
    """Everything ends, nothing is paid twice, a newcomer is next in turn, and a probe costs one refusal a minute."""
    floor.vendor.places = 2
    floor.vendor.task_time = timedelta(seconds=45)
    for number in range(60):
        await floor.add(State.QUEUED, f"a{number:03}", "alice")
        floor.clock.pass_by(timedelta(milliseconds=1))
    await floor.run(timedelta(minutes=2))
    paid = len(floor.vendor.taken)
    newcomer = await floor.add(State.QUEUED, "b", "bob")
    began = floor.clock.now()
    await floor.run(timedelta(minutes=30))
    assert all(task.callback is CallbackState.DELIVERED for task in floor.tasks.items.values())
    accepted = [url for url in floor.vendor.submits if floor.vendor.submits.count(url) == 1]
    assert len(floor.vendor.taken) == 61
    assert accepted
    position = [task.task_id for task in sorted(floor.tasks.items.values(), key=lambda task: task.taken_at or began)].index(
        newcomer.task_id
    )
    assert position <= paid + 2
    minutes = (floor.clock.now() - began) / timedelta(minutes=1) + 2
    assert floor.vendor.refused <= minutes + 1


async def test_the_gate_opens_when_nobody_waits_any_more(floor: Floor) -> None:
    """And what was learnt of the vendor's places is kept."""
    floor.tasks.the_gate = Gate(waiting=True, places=2, probed_at=floor.clock.now())
    await floor.add(State.QUEUED)
    await floor.tick()
    assert (floor.tasks.the_gate.waiting, floor.tasks.the_gate.places) == (False, 2)


async def test_a_hung_poll_and_garbage_delay_nobody(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One task whose poll hangs, one whose answer is garbage, and 50 good ones, as late as without them."""
    alone = Floor()
    for world, names in ((alone, []), (floor, ["hung", "garbage"])):
        for name in [*names, *(f"t{number}" for number in range(50))]:
            await world.add(State.WATCHED, name)
        asked = world.vendor.poll

        async def poll(upstream_task_id: str, *, hold: bool = False, asked: Any = asked, world: Floor = world) -> PollOutcome:
            if upstream_task_id == "task-hung":
                await world.clock.sleep(timedelta(seconds=10))
            if upstream_task_id in {"task-hung", "task-garbage"}:
                return PollOutcome(kind=PollKind.UNAVAILABLE)
            outcome: PollOutcome = await asked(upstream_task_id, hold=hold)
            return outcome

        monkeypatch.setattr(world.vendor, "poll", poll)
        await world.run(timedelta(minutes=2))
    good = lateness(floor)
    assert len(good) == 50
    assert max(good) <= max(lateness(alone)) + timedelta(seconds=0.3)


@pytest.mark.parametrize("behind_s", [0, 60])
async def test_a_wake_that_found_the_lease_held_to_the_last_is_not_left_to_the_tick(floor: Floor, behind_s: int) -> None:
    """The holder looks once more after it has given the lease up, and far enough back for a submitter whose clock is behind."""
    floor.vendor.task_time = timedelta(seconds=20)
    late: list[Task] = []
    release = floor.tasks.release

    async def release_at_the_last_moment(holder: str, *, left_at: datetime | None = None) -> None:
        if not late:
            odd = await floor.add(State.WATCHED, "late")
            del floor.tasks.items[odd.task_id]
            shifted = odd.accepted_at - timedelta(seconds=behind_s)
            late.append(await floor.tasks.add(odd.model_copy(update={"accepted_at": shifted})))
            assert not (await floor.tick(late[0].task_id)).lingered
        await release(holder, left_at=left_at)

    floor.tasks.release = release_at_the_last_moment  # type: ignore[method-assign]  # the wake comes right before
    await floor.tick((await floor.add(State.WATCHED)).task_id)
    assert floor.now_of(late[0]).callback is CallbackState.DELIVERED
    assert not floor.tasks.lease.alive(floor.clock.now())


async def test_a_task_seen_while_it_is_submitted_is_watched_as_soon_as_it_is_taken(floor: Floor) -> None:
    """Whoever lingers does not wait for the end of the submitter's claim."""
    floor.vendor.task_time = timedelta(seconds=25)
    await floor.add(State.WATCHED)  # keeps the poller lingering
    late = await floor.add(State.SUBMITTING, "late")

    async def answer() -> None:
        await floor.clock.sleep(timedelta(seconds=5))
        now = floor.clock.now()
        floor.vendor.taken["task-late"] = now
        taken = SubmitOutcome(submission=Submission.TAKEN, upstream_task_id="task-late", status=200)
        await floor.tasks.swap(late, late.submitted(taken, now, retention=RETENTION))

    submitter = asyncio.create_task(answer())
    await floor.tick()
    await submitter
    ended = floor.now_of(late)
    assert ended.callback is CallbackState.DELIVERED
    assert ended.ended_at is not None
    assert ended.ended_at - floor.vendor.taken["task-late"] < timedelta(seconds=29)


async def test_after_an_unanswered_poll_no_hint_is_waited_for(floor: Floor) -> None:
    """It may have been the one that mattered."""
    floor.tasks.lease = LeaseView(hinted_at=floor.clock.now())
    floor.rules = replace(floor.rules, long_poll=False)
    await floor.add(State.WATCHED)
    floor.vendor.poll_outcomes.append(PollOutcome(kind=PollKind.UNAVAILABLE))
    await floor.run(timedelta(minutes=2))
    first, second = (at for at, _ in floor.vendor.polls[:2])
    assert second - first <= timedelta(seconds=10)


async def test_what_a_wake_has_ended_is_not_asked_about_again(floor: Floor) -> None:
    """Who lingers looks at the table before a rare poll: no request is wasted, and the hint that came is not doubted."""
    floor.tasks.lease = LeaseView(hinted_at=floor.clock.now())
    floor.rules = replace(floor.rules, long_poll=False)
    task = await floor.add(State.WATCHED)

    async def tick() -> None:
        await floor.clock.sleep(timedelta(seconds=20))  # so that the rare poll at 60 s is this invocation's
        await floor.tick()

    async def hint() -> None:
        await floor.clock.sleep(floor.vendor.task_time)
        await floor.tick(ended=(task.task_id,))

    await asyncio.gather(tick(), hint())
    assert len(floor.vendor.polls) == 1
    assert floor.tasks.lease.hints(floor.clock.now())


async def test_tasks_beyond_what_is_held_are_polled_by_age(floor: Floor) -> None:
    """A vendor that holds polls is not asked every two seconds about those that find no hold free; nor are hints waited for."""
    floor.vendor.holds = True
    floor.tasks.lease = LeaseView(hinted_at=floor.clock.now())
    floor.vendor.task_time = timedelta(seconds=90)
    floor.rules = replace(floor.rules, requests_per_minute=100_000)
    for number in range(130):
        await floor.add(State.WATCHED, f"t{number}")
    await floor.run(timedelta(minutes=3))
    asked = Counter(upstream_task_id for _, upstream_task_id in floor.vendor.polls)
    assert len(asked) == 130
    assert max(asked.values()) <= 25
    assert max(lateness(floor)) <= timedelta(seconds=10)


async def test_held_polls_take_no_requests_from_submits(floor: Floor) -> None:
    """A block for the window covers what will be asked in it, not what is asked already; and little more after a busy window."""
    floor.vendor.holds = True
    floor.vendor.task_time = timedelta(minutes=5)
    for number in range(40):
        await floor.add(State.WATCHED, f"t{number}")

    async def more() -> None:
        for number in range(20):
            await floor.clock.sleep(timedelta(seconds=2))
            await floor.add(State.WATCHED, f"more{number}")

    await asyncio.gather(floor.run(timedelta(minutes=2)), more())
    assert sum(floor.tasks.used.values()) <= 1.2 * len(floor.vendor.polls)


async def test_who_stops_hard_gives_the_lease_up_before_it_drains(floor: Floor) -> None:
    """Where the tick is late, a wake that comes while the last attempt runs has nobody to leave its task to."""
    floor.vendor.holds = True
    floor.vendor.task_time = timedelta(seconds=83)
    floor.receivers.answer_time = timedelta(seconds=15)
    await floor.add(State.WATCHED)

    async def wake() -> PollReport:
        await floor.clock.sleep(timedelta(seconds=90))
        return await floor.tick((await floor.add(State.WATCHED, "late")).task_id)

    _, woken = await asyncio.gather(floor.tick(), wake())
    assert woken.lingered


# --- receivers' hosts ------------------------------------------------------------------------------------------------------


async def seed(floor: Floor, host: str, count: int, *, overdue: timedelta) -> list[Task]:
    """Add ended tasks whose next attempt at this host is overdue."""
    now = floor.clock.now()
    seeded = []
    for number in range(count):
        task = await floor.add(State.WATCHED, f"{host}-{number}", url=f"https://{host}.example.com/")
        ended = task.succeeded({}, now, retention=RETENTION, claim=now)
        seeded.append(await floor.tasks.swap(task, ended.redelivered(now - overdue)))
    return seeded


@pytest.fixture
def with_dead_hosts(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> Floor:
    """Let host `silent` never answer, and host `refusing` refuse."""
    send = floor.receivers.send

    async def behave(url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if "silent" in url:
            await floor.clock.sleep(timedelta(seconds=15))
            return Reply(error="timeout")
        if "refusing" in url:
            return Reply(error="refused")
        return await send(url, headers, body)

    monkeypatch.setattr(floor.receivers, "send", behave)
    return floor


async def test_a_thousand_callbacks_to_dead_hosts_delay_nobody(with_dead_hosts: Floor) -> None:
    """They have been due for longer, and yet the good host's are out at once; what is skipped is not rewritten."""
    floor = with_dead_hosts
    dead = [
        *await seed(floor, "silent", 1000, overdue=timedelta(hours=1)),
        *await seed(floor, "refusing", 1000, overdue=timedelta(hours=1)),
    ]
    good = await seed(floor, "good", 100, overdue=timedelta(minutes=1))
    began = floor.clock.now()
    await floor.tick()
    assert all(floor.now_of(task).callback is CallbackState.DELIVERED for task in good)
    assert max(at for at, url, *_ in floor.receivers.attempts if "good" in url) - began <= timedelta(seconds=3)
    touched = sum(floor.now_of(task) != task for task in dead)
    assert 10 <= touched <= 20
    assert floor.told.count("receiver.rested") == 2


async def test_many_dead_hosts_leave_room_for_one_that_lives(with_dead_hosts: Floor) -> None:
    """As when a provider is down that serves many customers: their hosts hold some of the caller's slots, and some are left."""
    floor = with_dead_hosts
    for number in range(40):
        await seed(floor, f"silent{number}", 10, overdue=timedelta(hours=1))
    good = await seed(floor, "good", 50, overdue=timedelta(minutes=1))
    began = floor.clock.now()
    await floor.tick()
    assert all(floor.now_of(task).callback is CallbackState.DELIVERED for task in good)
    assert max(at for at, url, *_ in floor.receivers.attempts if "good" in url) - began <= timedelta(seconds=2)


async def test_a_host_that_is_back_gets_everything(with_dead_hosts: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left aside while it was down is found again, and delivered once each."""
    floor = with_dead_hosts
    tasks = await seed(floor, "refusing", 700, overdue=timedelta(hours=1))
    await floor.tick()
    monkeypatch.undo()
    await floor.run(timedelta(minutes=10))
    assert all(floor.now_of(task).callback is CallbackState.DELIVERED for task in tasks)
    assert len(floor.receivers.attempts) == 700


async def test_a_host_that_throttles_is_left_alone_for_a_while(floor: Floor) -> None:
    """One 429 speaks for all callbacks to the host, and for nobody else's."""
    floor.receivers.replies.append(Reply(status=429, retry_after=timedelta(seconds=20)))
    await seed(floor, "busy", 50, overdue=timedelta(minutes=2))
    await seed(floor, "good", 50, overdue=timedelta(minutes=1))
    began = floor.clock.now()
    await floor.tick()
    times: dict[str, list[timedelta]] = {"busy": [], "good": []}
    for at, url, *_ in floor.receivers.attempts:
        times["busy" if "busy" in url else "good"].append(at - began)
    assert len([at for at in times["busy"] if at < timedelta(seconds=20)]) <= 5
    assert len(times["busy"]) >= 50
    assert max(times["good"]) < timedelta(seconds=2)


async def test_a_message_asked_for_again_goes_out_with_the_wake(floor: Floor) -> None:
    """Redelivery wakes the poller with the id; the same bytes go out at once."""
    [task] = await seed(floor, "good", 1, overdue=timedelta(0))
    await floor.tick(task.task_id)
    assert floor.now_of(task).callback is CallbackState.DELIVERED
    assert floor.receivers.attempts[0][3].decode() == task.message


async def test_a_gate_that_is_closed_while_the_queue_is_served_is_opened_all_the_same(floor: Floor) -> None:
    """A submit closes it after the worker has read it; left closed, later submits would queue behind nobody."""
    await floor.add(State.QUEUED)
    heads = floor.tasks.queue_heads

    async def heads_and_a_late_submit() -> list[Task]:
        found = await heads()
        if found:
            await floor.tasks.set_gate(floor.tasks.the_gate, Gate(waiting=True))
        return found

    floor.tasks.queue_heads = heads_and_a_late_submit  # type: ignore[method-assign]  # the world moves meanwhile
    await floor.tick()
    assert not floor.tasks.the_gate.waiting


# --- how long, since when, whose turn: what no test noticed before ------------------------------------------------------------


async def test_a_task_that_is_being_paid_is_left_alone_for_a_minute(floor: Floor) -> None:
    """However long the POST and the write after it take, no other invocation decides about the task meanwhile."""
    task = await floor.add(State.QUEUED)
    answered = asyncio.Event()

    async def submit(*_: object, **__: object) -> SubmitOutcome:
        floor.vendor.asked.set()
        await answered.wait()
        return SubmitOutcome(submission=Submission.TAKEN, upstream_task_id="task-0", status=200)

    floor.vendor.submit = submit  # type: ignore[method-assign]  # an answer that takes as long as it likes
    floor.vendor.taken["task-0"] = floor.clock.now()
    paying = asyncio.create_task(floor.tick())
    await floor.vendor.asked.wait()
    claimed = floor.now_of(task)
    assert claimed.claimed_until is not None
    floor.clock.pass_by(timedelta(seconds=55))
    await floor.tick(task.task_id)
    assert (floor.now_of(task).state, floor.now_of(task).nonce) == (State.SUBMITTING, claimed.nonce)
    answered.set()
    await paying
    assert floor.now_of(task).upstream_task_id == "task-0"


async def test_a_delivery_whose_process_died_is_made_again_within_the_minute(floor: Floor) -> None:
    """Its claim lasts for one attempt and little more: 30 s after it was taken, the next one begins."""
    task = await floor.add(State.WATCHED)
    now = floor.clock.now()
    ended = task.succeeded({}, now, retention=RETENTION, claim=now).redelivered(now)
    await floor.tasks.swap(task, ended)
    floor.receivers.answer_time = timedelta(hours=1)
    dying = asyncio.create_task(floor.tick())
    while not floor.receivers.attempts:
        await floor.clock.sleep(timedelta(seconds=0.1))
    await _killed(dying)
    floor.receivers.answer_time = timedelta(seconds=0.1)
    await floor.tick()
    first, second = (at for at, *_ in floor.receivers.attempts)
    assert timedelta(seconds=15) <= second - first <= timedelta(seconds=35)


async def test_the_deadline_goes_by_when_the_vendor_was_asked(floor: Floor) -> None:
    """An answer that comes past the deadline says nothing of it: only a poll that is made past it ends the task."""
    floor.rules = replace(floor.rules, max_task_age=timedelta(seconds=60), long_poll=False)
    floor.vendor.task_time = timedelta(seconds=61)
    floor.vendor.answer_time = timedelta(seconds=9)
    asked = floor.vendor.poll

    async def poll_and_look_first(upstream_task_id: str, *, hold: bool = False) -> PollOutcome:
        pending = floor.clock.now() < floor.vendor.taken[upstream_task_id] + floor.vendor.task_time
        outcome = await asked(upstream_task_id, hold=hold)
        return PollOutcome(kind=PollKind.PENDING) if pending else outcome

    floor.vendor.poll = poll_and_look_first  # type: ignore[method-assign]  # the answer is of the moment when it was asked for
    task = await floor.add(State.WATCHED)
    await floor.run(timedelta(minutes=3))
    ended, polls = floor.now_of(task), [at - task.accepted_at for at, _ in floor.vendor.polls]
    assert any(at < floor.rules.max_task_age < at + floor.vendor.answer_time for at in polls), polls
    assert (ended.state, ended.error) == (State.SUCCESS, None)


@pytest.mark.parametrize("answer_s", [6, 7, 8, 9])
async def test_a_404_counts_from_when_the_vendor_was_asked(floor: Floor, answer_s: int) -> None:
    """Only a poll made past a minute of age may say that a task is lost, and only one made 30 s later confirms it."""
    floor.rules = replace(floor.rules, long_poll=False)
    floor.vendor.answer_time = timedelta(seconds=answer_s)
    floor.vendor.poll_outcomes.extend([PollOutcome(kind=PollKind.MISSING)] * 100)
    task = await floor.add(State.WATCHED)
    swap, missing = floor.tasks.swap, []

    async def swap_and_note(old: Task, new: Task) -> Task:
        missing.extend([new.missing_since] if new.missing_since is not None else [])
        return await swap(old, new)

    floor.tasks.swap = swap_and_note  # type: ignore[method-assign]  # what is stored of it goes with the end
    await floor.run(timedelta(minutes=5))
    assert floor.now_of(task).error is ErrorCode.LOST
    assert timedelta(seconds=60) <= missing[0] - task.accepted_at <= timedelta(seconds=75)
    assert timedelta(seconds=30) <= floor.vendor.polls[-1][0] - missing[0] <= timedelta(seconds=45)


async def test_an_index_that_lags_hides_no_retry(floor: Floor) -> None:
    """A callback whose row appears 20 s after it was due is delivered by the leader that is at work."""
    await floor.add(State.WATCHED, "running")
    floor.vendor.task_time = timedelta(seconds=100)
    task, now = await floor.add(State.WATCHED, "hidden"), floor.clock.now()
    await floor.tasks.swap(task, task.succeeded({}, now, retention=RETENTION, claim=now).redelivered(now + timedelta(seconds=5)))
    row = floor.tasks.index.pop(task.task_id)
    leader = asyncio.create_task(floor.tick())
    await floor.clock.sleep(timedelta(seconds=25))
    floor.tasks.index[task.task_id] = row
    await floor.clock.sleep(timedelta(seconds=10))
    delivered = floor.now_of(task).callback
    await leader
    assert delivered is CallbackState.DELIVERED


async def test_an_index_that_lags_hides_no_task(floor: Floor) -> None:
    """Rows that appear more than 20 s late, behind younger ones, are found at the next look of the leader that is at work."""
    await floor.add(State.WATCHED, "running")
    floor.vendor.task_time = timedelta(seconds=100)
    leader = asyncio.create_task(floor.tick())
    await floor.clock.sleep(timedelta(seconds=5))
    hidden = [await floor.add(State.WATCHED, f"hidden{number}") for number in range(4)]
    rows = [floor.tasks.index.pop(task.task_id) for task in hidden]
    await floor.clock.sleep(timedelta(seconds=5))
    await floor.add(State.WATCHED, "younger")
    await floor.clock.sleep(timedelta(seconds=15))
    shown: dict[str, datetime] = {}
    for task, row in zip(hidden, rows, strict=True):
        floor.tasks.index[task.task_id], shown[task.upstream_task_id or ""] = row, floor.clock.now()
        await floor.clock.sleep(timedelta(seconds=2.5))
    await floor.clock.sleep(timedelta(seconds=10))
    asked: dict[str, datetime] = {}
    for at, upstream in floor.vendor.polls:
        asked.setdefault(upstream, at)
    await leader
    assert max(asked[upstream] - at for upstream, at in shown.items()) <= timedelta(seconds=4)


async def test_an_ambiguous_submit_is_watched_from_its_post_on(floor: Floor) -> None:
    """A task that waited an hour in the queue has its quarter of an hour all the same, for the vendor's word may come late."""
    task = await floor.add(State.QUEUED)
    floor.clock.pass_by(timedelta(hours=1))
    floor.vendor.submit_outcomes.append(SubmitOutcome(submission=Submission.AMBIGUOUS, status=503, message="no"))
    await floor.run(timedelta(minutes=13))
    assert (len(floor.vendor.submits), floor.now_of(task).state) == (1, State.RESCUE)
    await floor.run(timedelta(minutes=5))
    assert floor.now_of(task).error is ErrorCode.SUBMISSION_UNKNOWN


async def test_the_turn_goes_on_from_caller_to_caller(floor: Floor) -> None:
    """With one slot, each invocation serves the caller whose turn it is, and not the first by name again."""
    floor.vendor.places, floor.vendor.task_time = 1, timedelta(seconds=50)
    for number in range(3):
        for caller in ("bob", "alice"):
            await floor.add(State.QUEUED, f"{caller}{number}", caller=caller)
    await floor.run(timedelta(minutes=15))
    callers = ["alice" if "alice" in url else "bob" for url in _taken(floor)]
    assert callers == ["alice", "bob"] * 3


async def _killed(invocation: asyncio.Task[PollReport]) -> None:
    """End an invocation with everything that it has under way, as where its process dies."""
    lives = asyncio.all_tasks() - {asyncio.current_task()}
    assert invocation in lives
    for life in lives:
        life.cancel()
    await asyncio.gather(*lives, return_exceptions=True)


def _taken(floor: Floor) -> list[str]:
    """List what was submitted and taken, in order: of the same task only the last POST can have been."""
    last = {url: number for number, url in enumerate(floor.vendor.submits)}
    return sorted(last, key=last.__getitem__)


async def test_what_lies_beyond_a_page_is_found(floor: Floor) -> None:
    """However short the pages of the index are, all that is due is served by one invocation."""
    floor.tasks.page_size = 1
    floor.vendor.task_time = timedelta(seconds=100)
    watched = {(await floor.add(State.WATCHED, f"w{number}")).upstream_task_id for number in range(4)}
    ended = await seed(floor, "good", 4, overdue=timedelta(minutes=1))
    leader = asyncio.create_task(floor.tick())
    await floor.clock.sleep(timedelta(seconds=40))
    asked = {upstream for _, upstream in floor.vendor.polls}
    delivered = [floor.now_of(task).callback for task in ended]
    await leader
    assert asked == watched
    assert delivered == [CallbackState.DELIVERED] * 4


# --- trouble that lasts ----------------------------------------------------------------------------------------------------


def minutes(number: float) -> timedelta:
    """Give so many minutes."""
    return timedelta(minutes=number)


async def ticks(floor: Floor, duration: timedelta) -> None:
    """Let a tick come every minute, whatever the invocations before are at: leaders hand over."""
    end, running = floor.clock.now() + duration, []
    while floor.clock.now() < end:
        running.append(asyncio.create_task(floor.tick()))
        await floor.clock.sleep(minutes(1))
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
async def test_a_vendor_that_does_not_hold_polls_is_asked_plainly(floor: Floor, refusal: str, learnt: bool, some: bool) -> None:  # noqa: FBT001  # parameters of the test
    """Whatever it answers instead, for all tasks or for some, from the start or later on: the plain poll follows at once."""
    after_s, answer = REFUSALS[refusal]
    ask, refusing, held = floor.vendor.poll, [not learnt], Counter[bool]()
    floor.vendor.holds = True

    async def poll(upstream_task_id: str, *, hold: bool = False) -> PollOutcome:
        held[hold] += 1
        if hold and refusing[0] and not (some and upstream_task_id.endswith(("0", "2", "4"))):
            await floor.clock.sleep(timedelta(seconds=after_s))
            return answer
        return await ask(upstream_task_id, hold=hold)

    floor.vendor.poll = poll  # type: ignore[method-assign]  # a vendor of another kind
    floor.vendor.task_time = timedelta(seconds=70)
    if learnt:
        await floor.add(State.WATCHED, "first")
        await ticks(floor, minutes(1.5))
        refusing[0] = True
    for number in range(6):
        await floor.add(State.WATCHED, f"t{number}")
    await ticks(floor, minutes(5))
    bound = after_s + 10
    assert len(lateness(floor)) == 6 + learnt
    assert max(lateness(floor)) <= timedelta(seconds=bound)
    assert not any(task.missing_since for task in floor.tasks.items.values())


async def test_one_task_whose_holds_are_refused_takes_them_from_no_other(floor: Floor) -> None:
    """While polls of the same model are held, a refusal is the task's own."""
    floor.vendor.holds = True
    floor.vendor.task_time = timedelta(seconds=100)
    ask = floor.vendor.poll

    async def poll(upstream_task_id: str, *, hold: bool = False) -> PollOutcome:
        if "odd" in upstream_task_id:
            return PollOutcome(kind=PollKind.UNAVAILABLE, message="not a JSON object")
        return await ask(upstream_task_id, hold=hold)

    floor.vendor.poll = poll  # type: ignore[method-assign]  # two tasks that cannot be read
    for name in ("odd1", "odd2", *(f"t{number}" for number in range(10))):
        await floor.add(State.WATCHED, name)
    await ticks(floor, minutes(3))
    assert len(lateness(floor)) == 10
    assert max(lateness(floor)) <= timedelta(seconds=2)


def outage(floor: Floor, duration: timedelta, *, of: str) -> None:
    """Let the vendor answer 503 for a while: to `everything`, or to `submits` alone."""
    until, submit, poll = floor.clock.now() + duration, floor.vendor.submit, floor.vendor.poll

    async def failing(
        model: str, request: bytes, *, hook: str | None, limit: timedelta, admit: Admit | None = None
    ) -> SubmitOutcome:
        if floor.clock.now() < until:
            floor.vendor.submits.append("503")
            await floor.clock.sleep(timedelta(seconds=0.2))
            return SubmitOutcome(submission=Submission.AMBIGUOUS, status=503, message="Service unavailable")
        floor.vendor.answered = True
        return await submit(model, request, hook=hook, limit=limit, admit=admit)

    async def silent(upstream_task_id: str, *, hold: bool = False) -> PollOutcome:
        if floor.clock.now() < until and of == "everything":
            return PollOutcome(kind=PollKind.UNAVAILABLE, message="the vendor answered 503")
        return await poll(upstream_task_id, hold=hold)

    async def over() -> None:
        await floor.clock.sleep(duration)
        floor.vendor.answered = True

    floor.vendor.answered = of != "everything"
    floor.vendor.submit, floor.vendor.poll = failing, silent  # type: ignore[method-assign]  # a vendor in trouble
    floor.ends = asyncio.create_task(over())


@pytest.mark.parametrize(("of", "most"), [("everything", 3), ("submits", 5)])
async def test_an_outage_of_the_vendor_spends_a_few_tasks_of_a_queue(floor: Floor, of: str, most: int) -> None:
    """Three unknown outcomes pause it; then a free request, and one task, find out whether the vendor is back."""
    floor.rules = replace(floor.rules, long_poll=False)
    outage(floor, minutes(10), of=of)
    tasks = [await floor.add(State.QUEUED, f"q{number}", "alice" if number % 2 else "bob") for number in range(60)]
    await ticks(floor, minutes(10))
    assert sum(floor.now_of(task).state is State.RESCUE for task in tasks) <= most
    await ticks(floor, minutes(30))
    ends = Counter(floor.now_of(task).error for task in tasks)
    assert ends[ErrorCode.SUBMISSION_UNKNOWN] <= most
    assert ends[None] == 60 - ends[ErrorCode.SUBMISSION_UNKNOWN]
    assert all(floor.now_of(task).callback is CallbackState.DELIVERED for task in tasks)


async def test_a_pause_that_the_vendor_asked_for_is_kept_by_those_who_follow(floor: Floor) -> None:
    """429 with `Retry-After: 1800` is obeyed over thirty ticks, for polls and submits, and then everything goes on."""
    floor.rules = replace(floor.rules, long_poll=False)
    task, queued = await floor.add(State.WATCHED), await floor.add(State.QUEUED, "q")
    floor.tasks.the_gate = Gate(waiting=True, places=1, probed_at=floor.clock.now())
    floor.vendor.poll_outcomes.append(PollOutcome(kind=PollKind.THROTTLED, retry_after=minutes(30)))
    await ticks(floor, minutes(29))
    assert (len(floor.vendor.polls), floor.vendor.submits) == (1, [])
    await ticks(floor, minutes(5))
    assert {floor.now_of(one).callback for one in (task, queued)} == {CallbackState.DELIVERED}


async def test_any_answer_may_ask_for_a_pause(floor: Floor) -> None:
    """A 503 with `Retry-After`, and a 2xx after which no request is left."""
    floor.rules = replace(floor.rules, long_poll=False)
    floor.vendor.task_time = minutes(20)
    await floor.add(State.WATCHED)
    for kind in (PollKind.UNAVAILABLE, PollKind.PENDING):
        floor.vendor.poll_outcomes.append(PollOutcome(kind=kind, retry_after=timedelta(seconds=150)))
    await ticks(floor, minutes(7))
    first, second, third = (at for at, _ in floor.vendor.polls[:3])
    assert min(second - first, third - second) >= timedelta(seconds=150)


@pytest.mark.parametrize("retry_after_s", [None, 0, 1])
async def test_a_vendor_without_a_free_slot_is_probed_once_a_minute(floor: Floor, retry_after_s: int | None) -> None:
    """Whatever its refusals say of a time."""
    floor.rules = replace(floor.rules, long_poll=False)
    floor.vendor.task_time = minutes(30)
    wait = None if retry_after_s is None else timedelta(seconds=retry_after_s)
    floor.vendor.submit_outcomes.extend([SubmitOutcome(submission=Submission.BUSY, status=429, retry_after=wait)] * 100)
    await floor.add(State.WATCHED)
    await floor.add(State.QUEUED, "q")
    await ticks(floor, minutes(5))
    assert 4 <= len(floor.vendor.submits) <= 6


async def test_an_old_task_has_its_turn_where_requests_are_short(floor: Floor) -> None:
    """Young ones are due every two seconds and always will be; leaders hand on what they could not serve."""
    floor.rules = replace(floor.rules, requests_per_minute=100, long_poll=False)
    ends: dict[str, datetime] = {}

    async def poll(upstream_task_id: str, *, hold: bool = False) -> PollOutcome:
        assert not hold
        floor.vendor.polls.append((floor.clock.now(), upstream_task_id))
        await floor.clock.sleep(timedelta(seconds=0.2))
        return PollOutcome(kind=PollKind.SUCCEEDED if floor.clock.now() >= ends[upstream_task_id] else PollKind.PENDING)

    floor.vendor.poll = poll  # type: ignore[method-assign]  # each task takes its own time
    old = await floor.add(State.WATCHED, "old")
    floor.clock.pass_by(minutes(20))
    ends["task-old"] = floor.clock.now() + timedelta(seconds=30)

    async def young() -> None:
        for number in range(300):
            task = await floor.add(State.WATCHED, f"y{number}")
            ends[task.upstream_task_id or ""] = floor.clock.now() + minutes(2)
            await floor.clock.sleep(timedelta(seconds=2))

    await asyncio.gather(young(), ticks(floor, minutes(10)))
    ended = floor.now_of(old)
    assert ended.ended_at is not None
    assert ended.ended_at - ends["task-old"] <= 5 * minutes(1)


async def test_requests_are_counted_when_they_leave(floor: Floor) -> None:
    """A vendor that was slow and is quick again sees no more in a minute than it allows."""
    floor.rules = replace(floor.rules, requests_per_minute=300, long_poll=False)
    began, sent = floor.clock.now(), []

    async def poll(upstream_task_id: str, *, hold: bool = False) -> PollOutcome:
        assert upstream_task_id
        assert not hold
        sent.append(floor.clock.now())
        await floor.clock.sleep(timedelta(seconds=9.5 if floor.clock.now() < began + minutes(2) else 0.1))
        return PollOutcome(kind=PollKind.PENDING)

    floor.vendor.poll = poll  # type: ignore[method-assign]  # slow, then quick
    for number in range(200):
        await floor.add(State.WATCHED, f"t{number}")
    await ticks(floor, minutes(4))
    assert max(sum(at <= other < at + minutes(1) for other in sent) for at in sent) <= 300


@pytest.mark.parametrize("ahead_s", [-300, -45, 45, 300])
async def test_a_submitter_whose_clock_is_wrong_hides_no_task(floor: Floor, ahead_s: int) -> None:
    """Its task, and those that come after, are found by the leader within a few looks."""
    floor.rules = replace(floor.rules, long_poll=False)
    floor.vendor.task_time = timedelta(seconds=25)
    keeps_busy = await floor.add(State.WATCHED, "long")
    floor.vendor.taken["task-long"] += minutes(10)
    late: list[Task] = []

    async def submits() -> None:
        await floor.clock.sleep(timedelta(seconds=5))
        odd = await floor.add(State.WATCHED, "odd")
        shifted = odd.accepted_at + timedelta(seconds=ahead_s)
        del floor.tasks.items[odd.task_id]
        late.append(await floor.tasks.add(odd.model_copy(update={"accepted_at": shifted})))
        await floor.clock.sleep(timedelta(seconds=5))
        late.append(await floor.add(State.WATCHED, "next"))

    await asyncio.gather(floor.tick(keeps_busy.task_id), submits())
    for task in late:
        ended = floor.now_of(task)
        assert ended.ended_at is not None
        assert ended.ended_at - (task.taken_at or task.accepted_at) <= timedelta(seconds=40)


async def test_first_deliveries_that_cannot_be_made_leave_the_index_of_watched_tasks(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host is down while tasks go on ending: they wait in `retry`, each leader's sweep of `watch` stays small."""
    floor.rules = replace(floor.rules, long_poll=False, requests_per_minute=100_000)
    send = floor.receivers.send

    async def behave(url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        return Reply(error="refused") if "dead" in url else await send(url, headers, body)

    monkeypatch.setattr(floor.receivers, "send", behave)
    dead = []
    for minute in range(4):
        dead += [await floor.add(State.WATCHED, f"d{minute}-{number}", url="https://dead.example.com/") for number in range(100)]
        good = await floor.add(State.WATCHED, f"g{minute}", "bob")
        await ticks(floor, minutes(1))
    assert floor.now_of(good).callback is CallbackState.DELIVERED
    assert Counter(partition for partition, _ in floor.tasks.index.values()) == {"retry": 400}
    monkeypatch.undo()
    await floor.run(minutes(90))
    assert all(floor.now_of(task).callback is CallbackState.DELIVERED for task in dead)


async def test_what_has_ended_and_stands_among_the_watched_is_moved_where_it_cannot_be_delivered(with_dead_hosts: Floor) -> None:
    """First deliveries whose processes died, to a host that is down now: none stays where each leader reads it whole."""
    floor = with_dead_hosts
    now = floor.clock.now()
    for number in range(300):
        task = await floor.add(State.WATCHED, str(number), url="https://refusing.example.com/")
        await floor.tasks.swap(task, task.succeeded({}, now, retention=RETENTION, claim=now))
    await ticks(floor, minutes(2))
    assert {partition for partition, _ in floor.tasks.index.values()} == {"retry"}


async def test_any_number_of_watched_tasks_is_served_with_a_few_in_memory(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those beyond an id and two times are kept; all end, and the index is read in pages."""
    monkeypatch.setattr(watch, "LOADED", 20)
    floor.tasks.page_size = 7
    floor.rules = replace(floor.rules, long_poll=False)
    tasks = []
    for number in range(100):
        tasks.append(await floor.add(State.WATCHED, f"t{number}"))
        floor.clock.pass_by(timedelta(seconds=0.1))
    await ticks(floor, minutes(3))
    assert all(floor.now_of(task).callback is CallbackState.DELIVERED for task in tasks)
    assert max(lateness(floor)) <= timedelta(seconds=15)


async def test_a_message_asked_for_again_is_found_behind_its_old_row(floor: Floor) -> None:
    """The index still shows where it was delivered a moment ago; the new round is another row."""
    floor.vendor.task_time = minutes(5)
    await floor.add(State.WATCHED, "keeps the leader busy")
    [task] = await seed(floor, "good", 1, overdue=timedelta(0))

    async def again() -> None:
        await floor.clock.sleep(timedelta(seconds=10))
        now = floor.now_of(task)
        await floor.tasks.swap(now, now.redelivered(floor.clock.now()))

    await asyncio.gather(floor.tick(), again())
    first, second = (at for at, *_ in floor.receivers.attempts)
    assert timedelta(seconds=10) <= second - first <= timedelta(seconds=13)


async def test_an_unknown_outcome_was_its_callers_turn(floor: Floor) -> None:
    """Where one caller's requests break the vendor, the probe after the pause is another caller's, and is taken."""
    submit = floor.vendor.submit

    async def submit_or_break(model: str, request: bytes, **more: Any) -> SubmitOutcome:
        if b"alice" in request:
            await floor.clock.sleep(timedelta(seconds=0.2))
            return SubmitOutcome(submission=Submission.AMBIGUOUS, status=503, message="no")
        return await submit(model, request, **more)

    floor.vendor.submit = submit_or_break  # type: ignore[method-assign]  # it breaks by what it is asked
    for number in range(12):
        await floor.add(State.QUEUED, f"alice{number}", caller="alice")
    await floor.run(timedelta(minutes=1))
    assert floor.tasks.the_gate.in_trouble
    good = [await floor.add(State.QUEUED, f"bob{number}", caller="bob") for number in range(2)]
    await floor.run(timedelta(minutes=12))
    assert [floor.now_of(task).state for task in good] == [State.SUCCESS] * 2


# --- where a request, a table or an index is not to be had for a moment -----------------------------------------------------


@pytest.mark.parametrize("loaded", [2000, 5])
async def test_economy_asks_about_all_that_is_due_over_as_many_windows_as_that_takes(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, loaded: int
) -> None:
    """One window has six requests; an invocation that does not lead waits for the next one, whatever it keeps in memory."""
    monkeypatch.setattr(watch, "LOADED", loaded)
    floor.rules = replace(floor.rules, linger=False, requests_per_minute=66)
    tasks = [await floor.add(State.WATCHED, f"t{number}") for number in range(20)]
    floor.clock.pass_by(floor.vendor.task_time)
    began = floor.clock.now()
    await floor.tick()
    assert all(floor.now_of(task).callback is CallbackState.DELIVERED for task in tasks)
    assert timedelta(seconds=12) <= floor.clock.now() - began <= timedelta(seconds=30)


async def test_economy_submits_all_that_is_queued_over_as_many_windows_as_that_takes(floor: Floor) -> None:
    """One window has six requests; an invocation that does not lead waits for the next one."""
    floor.rules = replace(floor.rules, linger=False, requests_per_minute=66)
    tasks = [await floor.add(State.QUEUED, f"q{number:02}") for number in range(20)]
    began = floor.clock.now()
    await floor.tick()
    assert [floor.now_of(task).state for task in tasks] == [State.WATCHED] * 20
    assert timedelta(seconds=12) <= floor.clock.now() - began <= timedelta(seconds=30)


@pytest.mark.parametrize("linger", [True, False])
async def test_where_a_window_has_one_request_the_queue_goes_on_after_an_outage(floor: Floor, linger: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """The free request takes the one of its window; the task's own has the next one's, and needs no other free one first."""
    floor.rules = replace(floor.rules, linger=linger, long_poll=False, requests_per_minute=20)
    outage(floor, minutes(5), of="everything")
    tasks = [await floor.add(State.QUEUED, f"q{number}", "alice" if number % 2 else "bob") for number in range(8)]
    await ticks(floor, minutes(40))
    ends = Counter(floor.now_of(task).error for task in tasks)
    assert ends == {None: 5, ErrorCode.SUBMISSION_UNKNOWN: 3}
    assert floor.vendor.balances
    assert not floor.tasks.the_gate.in_trouble


async def test_callbacks_whose_rows_come_while_their_tasks_are_asked_about_keep_no_slots(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another invocation ends them after a wake has read them; each is delivered once, and soon, to a host with three slots."""
    floor.rules = replace(floor.rules, long_poll=False)
    tasks = [await floor.add(State.WATCHED, f"t{number}") for number in range(3 * FIRST_SLOTS)]
    floor.clock.pass_by(floor.vendor.task_time)
    take = floor.tasks.take

    async def end_them_first(seen: LeaseView, new: LeaseView, *, takeover: bool) -> bool:
        monkeypatch.undo()
        for task in tasks:
            await floor.tasks.swap(task, task.succeeded({}, floor.clock.now(), retention=RETENTION, claim=None))
        return await take(seen, new, takeover=takeover)

    monkeypatch.setattr(floor.tasks, "take", end_them_first)
    began = floor.clock.now()
    await floor.tick(ended=tuple(task.task_id for task in tasks))
    assert [floor.now_of(task).callback for task in tasks] == [CallbackState.DELIVERED] * len(tasks)
    assert len(floor.receivers.attempts) == len(tasks)
    assert floor.receivers.attempts[-1][0] - began <= timedelta(seconds=5)


ODD_RETRIES = {
    "a round that is not known yet": "{due}_{task_id}#alice#r.example.com#9",
    "a round that is no number": "{due}_{task_id}#alice#r.example.com#³",
    "no time": "0-soon-----_{task_id}#alice#r.example.com#2",
    "nothing but a time": "{due}",
}


@pytest.mark.parametrize("odd", ODD_RETRIES)
async def test_a_retry_whose_row_is_odd_is_delivered_and_hides_no_other(floor: Floor, odd: str) -> None:
    """A later version of the poller may have written it; the row only says where to look."""
    first, second, third = await seed(floor, "r", 3, overdue=minutes(1))
    due = floor.tasks.index[second.task_id][1][:13]
    floor.tasks.index[second.task_id] = "retry", ODD_RETRIES[odd].format(due=due, task_id=second.task_id)
    await floor.tick()
    assert [floor.now_of(task).callback for task in (first, second, third)] == [CallbackState.DELIVERED] * 3


@pytest.mark.parametrize("loaded", [2000, 1])
async def test_a_watched_task_whose_row_is_odd_is_asked_about_and_hides_no_other(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, loaded: int
) -> None:
    """A sort key that says no time is that of a task all the same, in memory or set aside."""
    monkeypatch.setattr(watch, "LOADED", loaded)
    tasks = [await floor.add(State.WATCHED, f"t{number}") for number in range(3)]
    floor.tasks.index[tasks[1].task_id] = "watch", f"soon_{tasks[1].task_id}"
    await ticks(floor, minutes(2))
    assert [floor.now_of(task).callback for task in tasks] == [CallbackState.DELIVERED] * 3


async def test_what_a_leader_that_has_died_did_not_serve_is_asked_for_once_it_says_nothing(floor: Floor) -> None:
    """It died before a poll time that came before its successor; that time is not left for the next one, a minute later."""
    floor.rules = replace(floor.rules, long_poll=False)
    floor.vendor.task_time = minutes(60)
    await floor.add(State.WATCHED)
    floor.clock.pass_by(timedelta(seconds=65))  # where webhooks come, it is asked about at 60 s and at 120 s
    began = floor.clock.now()
    floor.tasks.lease = LeaseView(holder="dead", until=began + STOP, hinted_at=began)
    await floor.tick()
    assert floor.vendor.polls[0][0] - began <= HAND_OVER + SCAN + BEAT


async def test_a_poisoned_task_rests_though_the_leader_before_has_died(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is planned anew then; but not what has just broken, which is tried again a minute later."""
    floor.rules = replace(floor.rules, long_poll=False)
    floor.vendor.task_time = minutes(60)
    await floor.add(State.WATCHED, "bad")
    await floor.add(State.WATCHED, "good")  # keeps the leader busy
    floor.clock.pass_by(minutes(1))
    floor.tasks.lease = LeaseView(holder="dead", until=floor.clock.now() + STOP)
    ask, broken = floor.vendor.poll, []

    async def poll_or_break(upstream_task_id: str, *, hold: bool = False) -> PollOutcome:
        if "bad" in upstream_task_id:
            broken.append(floor.clock.now())
            raise RuntimeError("poison")
        return await ask(upstream_task_id, hold=hold)

    monkeypatch.setattr(floor.vendor, "poll", poll_or_break)
    await floor.tick()
    assert floor.told.count("task.crashed") == len(broken) >= 1
    assert all(later - earlier >= minutes(1) for earlier, later in pairwise(broken))


@pytest.mark.parametrize("shown_late", [False, True])
async def test_an_inherited_poll_time_is_served_though_all_is_planned_anew_meanwhile(floor: Floor, shown_late: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """For want of requests it waits; meanwhile another model's polls turn out to be held."""
    floor.rules = replace(floor.rules, requests_per_minute=20)
    floor.vendor.holds, floor.vendor.task_time = True, minutes(60)
    held, plain = await floor.add(State.WATCHED, "held"), await floor.add(State.WATCHED, "plain")
    plain = await floor.tasks.swap(plain, plain.model_copy(update={"model": "alibaba/another"}))
    floor.world.habits.found(plain.model, floor.clock.now(), holds=False)
    floor.clock.pass_by(timedelta(seconds=24))
    began = floor.clock.now()
    floor.tasks.lease = LeaseView(holder="old", until=began + STOP, hinted_at=began)  # so that polls are rare
    floor.tasks.left["old"] = {held.task_id: began - timedelta(seconds=10), plain.task_id: began}
    floor.tasks.used[window(began)] = 1  # the only request of this window
    row = floor.tasks.index.pop(plain.task_id)
    if not shown_late:
        floor.tasks.index[plain.task_id] = row
    leader = asyncio.create_task(floor.tick())
    await floor.clock.sleep(timedelta(seconds=3))
    floor.tasks.index[plain.task_id] = row
    await leader
    asked = {upstream: at - began for at, upstream in reversed(floor.vendor.polls)}
    assert timedelta(seconds=6) <= asked["task-held"] <= timedelta(seconds=7)
    assert timedelta(seconds=12) <= asked["task-plain"] <= timedelta(seconds=13)


async def test_an_inherited_poll_time_is_served_though_its_task_is_not_in_memory(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was set aside by what its row says, and there it waits for a request; its own next poll time is much later."""
    monkeypatch.setattr(watch, "LOADED", 1)
    floor.rules = replace(floor.rules, long_poll=False, requests_per_minute=20)
    floor.vendor.task_time = minutes(600)
    await floor.add(State.WATCHED, "first")
    floor.clock.pass_by(timedelta(seconds=1))
    aside = await floor.add(State.WATCHED, "aside")
    floor.clock.pass_by(schedule.next_poll(minutes(120), first=timedelta(0)) + timedelta(seconds=5))
    began = floor.clock.now()
    floor.tasks.lease = LeaseView(holder="old", until=began + STOP)
    floor.tasks.left["old"] = {aside.task_id: began - timedelta(seconds=20)}
    floor.tasks.used[window(began)] = 1  # the only request of this window
    await floor.tick()
    assert min(at for at, upstream in floor.vendor.polls if "aside" in upstream) - began <= WINDOW + BEAT


async def test_a_queued_task_that_breaks_its_step_keeps_no_other_callers_waiting(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug that one task triggers is told and stays with its caller; it is tried again a minute later, by the same leader."""
    floor.rules = replace(floor.rules, long_poll=False)
    floor.vendor.task_time = minutes(10)
    bad = await floor.add(State.QUEUED, "bad", "alice")
    others = [await floor.add(State.QUEUED, f"other{number}", "bob") for number in range(2)]
    await floor.add(State.WATCHED, "long")  # keeps the leader busy
    whole, tried = floor.tasks.whole, []

    async def whole_or_break(task: Task) -> Task:
        if task.task_id == bad.task_id:
            tried.append(floor.clock.now())
            if len(tried) == 1:
                raise RuntimeError("poison")
        return await whole(task)

    async def submits() -> None:
        await floor.clock.sleep(timedelta(seconds=10))
        others.append(await floor.add(State.QUEUED, "later", "bob"))

    monkeypatch.setattr(floor.tasks, "whole", whole_or_break)
    await asyncio.gather(floor.tick(), submits())
    assert floor.facts("task.crashed") == [{"task_id": bad.task_id, "error": "RuntimeError"}]
    submitted = [floor.now_of(task).submitted_at for task in others]
    waited = [at - task.accepted_at for at, task in zip(submitted, others, strict=True) if at is not None]
    assert len(waited) == len(others)
    assert max(waited) <= timedelta(seconds=3)
    first, second = tried
    assert minutes(1) <= second - first <= minutes(1) + timedelta(seconds=3)
    assert floor.now_of(bad).state is State.WATCHED


async def test_a_queued_task_that_breaks_its_step_keeps_no_leader(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing else is to do, the next tick tries it again."""
    bad = await floor.add(State.QUEUED, "bad")
    began = floor.clock.now()

    async def broken(task: Task) -> Task:
        raise RuntimeError(task.task_id)

    with monkeypatch.context() as context:
        context.setattr(floor.tasks, "whole", broken)
        await floor.tick()
    assert floor.clock.now() - began <= 2 * SCAN
    await floor.tick()
    assert floor.now_of(bad).state is State.SUCCESS


async def test_the_gate_opens_though_what_broke_its_step_has_left_the_queue(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another invocation has ended it meanwhile; later submits do not queue behind nothing."""
    floor.rules = replace(floor.rules, long_poll=False)
    floor.vendor.task_time = minutes(10)
    floor.tasks.the_gate = Gate(waiting=True)
    bad = await floor.add(State.QUEUED, "bad")
    for number in range(5):  # they keep the leader busy
        await floor.add(State.WATCHED, f"long{number}")
        floor.clock.pass_by(timedelta(seconds=1.3))

    async def broken(task: Task) -> Task:
        raise RuntimeError(task.task_id)

    async def end() -> None:
        await floor.clock.sleep(timedelta(seconds=10))
        ended = bad.failed(ErrorCode.QUEUE_EXPIRED, "no", floor.clock.now(), retention=RETENTION, claim=None)
        await floor.tasks.swap(bad, ended)

    monkeypatch.setattr(floor.tasks, "whole", broken)
    await asyncio.gather(floor.tick(), end())
    assert floor.told.count("task.crashed") == 1
    assert not floor.tasks.the_gate.waiting


@pytest.mark.parametrize("spoken_of", [[], ["b"]], ids=["an empty index", "another caller's in the index"])
async def test_a_queued_task_that_a_wake_names_is_submitted_though_the_index_lags(floor: Floor, spoken_of: list[str]) -> None:
    """It is read by its id, after what the index shows."""
    for name in spoken_of:
        await floor.add(State.QUEUED, name, "bob")
    task = await floor.add(State.QUEUED, "named")
    del floor.tasks.index[task.task_id]
    await floor.tick(task.task_id)
    assert [url.split("/")[-1] for url in floor.vendor.submits] == [f"{name}.jpg" for name in [*spoken_of, "named"]]
    assert floor.now_of(task).state is State.SUCCESS


@pytest.mark.parametrize("trouble", [False, True])
async def test_queued_tasks_that_waited_too_long_end_whatever_the_vendor_says_to_others(floor: Floor, trouble: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """The caller whose turn comes first is refused, or no task may be risked; the other caller's old tasks need no request."""
    old = [await floor.add(State.QUEUED, f"old{number}", "bob") for number in range(3)]
    floor.clock.pass_by(floor.rules.max_queue_age)
    young = await floor.add(State.QUEUED, "young", "alice")
    if trouble:
        floor.tasks.the_gate, floor.vendor.answered = Gate(waiting=True, unknown=3), False
    else:
        floor.vendor.submit_outcomes.append(SubmitOutcome(submission=Submission.BUSY, status=429))
    await floor.tick()
    assert [floor.now_of(task).error for task in old] == [ErrorCode.QUEUE_EXPIRED] * 3
    assert [floor.now_of(task).callback for task in old] == [CallbackState.DELIVERED] * 3
    assert len(floor.vendor.submits) == (0 if trouble else 1)
    assert floor.now_of(young).state is State.QUEUED


async def test_a_pause_that_comes_with_an_acceptance_is_kept_though_that_ends_the_trouble(floor: Floor) -> None:
    """The task that is taken after three unknown outcomes shows that the vendor is back, and that it wants to be left alone."""
    floor.rules = replace(floor.rules, long_poll=False)
    floor.tasks.the_gate = Gate(waiting=True, unknown=3)
    for number in range(2):
        await floor.add(State.QUEUED, f"q{number}")
    floor.vendor.submit_outcomes.append(SubmitOutcome(submission=Submission.TAKEN, status=200, retry_after=minutes(10)))
    await ticks(floor, minutes(9))
    assert (len(floor.vendor.submits), floor.tasks.the_gate.in_trouble) == (1, False)
    await ticks(floor, minutes(3))
    assert len(floor.vendor.submits) == 2


def leave_out_once(floor: Floor, task: Task, how: str) -> None:
    """Let the first read of this task among others find it throttled: it is left out, or the whole read fails."""
    read_many, left_out = floor.tasks.read_many, [task.task_id]

    async def throttled(task_ids: Sequence[str]) -> list[Task]:
        found = await read_many(task_ids)
        if not left_out or left_out[0] not in task_ids:
            return found
        missing = left_out.pop()
        if how == "fails":
            raise StoreUnavailableError("ThrottlingException")
        return [one for one in found if one.task_id != missing]

    floor.tasks.read_many = throttled  # type: ignore[method-assign]  # a partition that is busy for a moment


async def test_a_task_that_a_read_leaves_out_at_the_first_look_is_read_at_the_next(floor: Floor) -> None:
    """It was accepted long before, so that no later look comes across its row."""
    task = await floor.add(State.WATCHED)
    floor.clock.pass_by(minutes(60))
    began = floor.clock.now()
    leave_out_once(floor, task, "left out")
    await floor.tick()
    assert floor.now_of(task).callback is CallbackState.DELIVERED
    assert floor.receivers.attempts[0][0] - began <= 2 * SCAN


@pytest.mark.parametrize("how", ["left out", "fails"])
async def test_a_task_that_cannot_be_read_when_it_is_due_is_read_a_while_later(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It was set aside by what its row says; the leader that is at work looks at it again."""
    monkeypatch.setattr(watch, "LOADED", 1)
    floor.rules = replace(floor.rules, long_poll=False)
    await floor.add(State.WATCHED, "first")  # keeps the leader, which is to ask about it in 50 s
    floor.vendor.taken["task-first"] += minutes(600)
    floor.clock.pass_by(timedelta(seconds=1))
    task = await floor.add(State.WATCHED, "aside")
    floor.clock.pass_by(schedule.next_poll(minutes(60), first=timedelta(0)) + timedelta(seconds=9))
    began = floor.clock.now()
    leave_out_once(floor, task, how)
    await floor.tick()
    assert floor.now_of(task).callback is CallbackState.DELIVERED
    assert floor.receivers.attempts[-1][0] - began <= INDEX_LAG + SCAN


async def test_a_table_that_is_away_for_a_moment_is_no_fault_of_a_queued_task(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again as soon as after any such failure, and not told as broken."""
    task = await floor.add(State.QUEUED)
    swap, down = floor.tasks.swap, [True]

    async def once_down(old: Task, new: Task) -> Task:
        if down:
            down.pop()
            raise StoreUnavailableError("ThrottlingException")
        return await swap(old, new)

    monkeypatch.setattr(floor.tasks, "swap", once_down)
    began = floor.clock.now()
    await floor.tick()
    submitted = floor.now_of(task).submitted_at
    assert submitted is not None
    assert submitted - began <= PAUSE_SHORT + BEAT
    assert floor.told.count("task.crashed") == 0


async def test_a_poll_that_is_not_begun_takes_no_slot(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """While requests are asked for, another event has begun a step of the task."""
    task, running, now = await floor.add(State.WATCHED), set[str](), floor.clock.now()
    floor.clock.pass_by(minutes(1))
    pacing = Pacing(floor.rules, floor.world, started=now)
    kind = Watch(
        rules=floor.rules,
        world=floor.world,
        pacing=pacing,
        endings=Endings(rules=floor.rules, world=floor.world, hosts=Hosts(floor.clock), steps=Counter()),
        is_running=running.__contains__,
        known=running.__contains__,
        track=lambda _: None,
        started=now,
    )
    kind.keep(task)
    take_tokens, free = floor.tasks.take_tokens, pacing.free_slots()

    async def take_and_begin(wanted: int, *, window: int, limit: int) -> int:
        running.add(task.task_id)
        return await take_tokens(wanted, window=window, limit=limit)

    monkeypatch.setattr(floor.tasks, "take_tokens", take_and_begin)
    assert list(await kind.admit(floor.clock.now())) == []
    assert pacing.free_slots() == free
    running.clear()
    assert list(await kind.admit(floor.clock.now())) == [task.task_id]
    assert pacing.free_slots() == free - 1


def test_a_step_that_is_over_may_be_dropped(floor: Floor) -> None:
    """Who leaves drops its held polls, and drains what is left, whatever it takes for held."""
    Scheduler(clock=floor.clock, reporter=floor.told).cancel(["over"])
