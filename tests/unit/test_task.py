import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from taskhook.core.message import MAX_NOTE, MAX_VENDOR_DATA, Json, minified
from taskhook.core.record import Attempt, CallbackState, ErrorCode, RetryKey, State, Submission, SubmitOutcome
from taskhook.core.task import MAX_LOG, IllegalTransitionError, Task
from taskhook.vendors.modellix import MODELLIX
from tests.rows import each_row
from tests.world import START, a_caller, a_request

RETENTION = timedelta(days=7)
CLAIM = timedelta(seconds=30)
HOOK = "https://hooks.example.com/taskhook"
MAX_ITEM = 400 * 1024  # DynamoDB's limit
BODY = {"image_url": "https://example.com/a.jpg", "video_url": "https://example.com/b.mp4", "mode": "wan-std"}
DATA: Json = {
    "status": "success",
    "result": {"resources": [{"url": "https://files.example.com/1.mp4"}]},
    "billing": {"amount": "0.24"},
}


def accepted(*, url: str | None = HOOK, paying: bool = True, reference: str | None = None) -> Task:
    """Make a task as submit does: about to be paid, or queued."""
    body = BODY | ({"callback_url": url} if url else {}) | ({"reference": reference} if reference else {})
    request = a_request("alibaba/wan2.2-animate-mix", body, caller=a_caller(), idempotency_key="k")
    return request.task(a_caller(), START, unchecked={}, claimed_until=START + CLAIM if paying else None)


def outcome(submission: Submission, status: int = 0, message: str = "the vendor's words") -> SubmitOutcome:
    """Make the outcome of a paid POST."""
    taken = submission is Submission.TAKEN
    return SubmitOutcome(
        submission=submission,
        upstream_task_id="task-1" if taken else "",
        status=status,
        message="" if taken else message,
    )


def watched(*, url: str | None = HOOK) -> Task:
    """Make a task that the vendor took."""
    return accepted(url=url).submitted(outcome(Submission.TAKEN, 200), START, retention=RETENTION)


def succeeded(data: Json | None = None, *, url: str | None = HOOK, reference: str | None = None) -> Task:
    """Make a task that ended well."""
    taken = accepted(url=url, reference=reference).submitted(
        outcome(Submission.TAKEN, 200), START, retention=RETENTION
    )
    return taken.succeeded(DATA if data is None else data, START, retention=RETENTION, claim=START + CLAIM)


def answered(task: Task) -> Task:
    """Say that the submitter of a queued task has its 200, and claim the task to be paid."""
    return task.claim_submit(START, until=START + CLAIM)


def item_size(task: Task) -> int:
    """Weigh the item as DynamoDB does: names and values in UTF-8, 3 bytes for a list, 1 for each entry."""

    def size(value: object) -> int:
        match value:
            case dict():
                return 3 + sum(1 + len(name.encode()) + size(entry) for name, entry in value.items())
            case list() | tuple():
                return 3 + sum(1 + size(entry) for entry in value)
            case str():
                return len(value.encode())
            case _:
                return 21

    return size(task.model_dump(mode="json", exclude_none=True)) + 200  # its place in the indexes


# --- the state machine ----------------------------------------------------------------------------


class TaskMachine(RuleBasedStateMachine):
    """Calls any transition in any state, and compares the outcome with the module's picture."""

    task: Task
    now: datetime

    @initialize(url=st.sampled_from([None, HOOK]), paying=st.booleans())
    def accept(self, url: str | None, paying: bool) -> None:  # noqa: FBT001  # hypothesis fills it
        """Begin as submit does."""
        self.now = START
        self.task = accepted(url=url, paying=paying)
        self.first = self.task
        self.message: str | None = None
        self.told: tuple[int, str | None] | None = None
        self.ended = False
        self.through = False

    def step(self, legal: set[State], transition: Callable[[], Task], *, delivering: bool = False) -> bool:
        """Take a transition that exists exactly in these states, for a delivery only while one is waiting."""
        before = self.task
        expected = before.state in legal and (not delivering or before.callback is CallbackState.WAITING)
        self.now += timedelta(milliseconds=1)
        try:
            self.task = transition()
        except IllegalTransitionError:
            assert not expected, f"{before.state}/{before.callback} refused a legal transition"
            return False
        assert expected, f"{before.state}/{before.callback} allowed an illegal transition"
        assert before is not self.task
        return True

    @rule(seconds=st.integers(1, 100_000))
    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    @rule()
    def claim_submit(self) -> None:
        """Claim to pay."""
        if self.step({State.QUEUED}, lambda: self.task.claim_submit(self.now, until=self.now + CLAIM)):
            assert (self.task.state, self.task.submitted_at) == (State.SUBMITTING, self.now)
            assert self.task.claimed(self.now)

    @rule(submission=st.sampled_from([Submission.NOT_SENT, Submission.BUSY]))
    def requeue(self, submission: Submission) -> None:
        """Learn that nothing was taken, for a reason that passes."""
        legal = {State.SUBMITTING, State.UNKNOWN}
        if self.step(
            legal, lambda: self.task.submitted(outcome(submission, 429), self.now, retention=RETENTION)
        ):
            assert (self.task.state, self.task.claimed_until, self.task.submitted_at) == (
                State.QUEUED,
                None,
                None,
            )

    @rule(submission=st.sampled_from([Submission.REFUSED, Submission.REFUSED_HERE]))
    def refuse(self, submission: Submission) -> None:
        """Learn that the vendor refuses."""
        before = self.task
        status = 422 if submission is Submission.REFUSED else 401
        legal = {State.SUBMITTING, State.UNKNOWN}
        if self.step(
            legal, lambda: self.task.submitted(outcome(submission, status), self.now, retention=RETENTION)
        ):
            if submission is Submission.REFUSED_HERE and before.answer_status is not None:
                assert self.task.state is State.QUEUED
            else:
                assert self.task.error is ErrorCode.UPSTREAM_REFUSED
                calls_back = before.answer_status is not None and before.callback_url is not None
                assert (self.task.callback is CallbackState.WAITING) is calls_back

    @rule()
    def take(self) -> None:
        """Learn that the vendor took the task, perhaps late."""
        legal = {State.SUBMITTING, State.UNKNOWN}
        if self.step(
            legal, lambda: self.task.submitted(outcome(Submission.TAKEN, 200), self.now, retention=RETENTION)
        ):
            assert (self.task.state, self.task.upstream_task_id, self.task.taken_at) == (
                State.WATCHED,
                "task-1",
                self.now,
            )

    @rule(died=st.booleans())
    def outcome_unknown(self, died: bool) -> None:  # noqa: FBT001  # hypothesis fills it
        """Learn nothing, from the vendor or from a dead invocation."""
        ambiguous = outcome(Submission.AMBIGUOUS, 500)
        if self.step(
            {State.SUBMITTING},
            lambda: (
                self.task.mark_unknown()
                if died
                else self.task.submitted(ambiguous, self.now, retention=RETENTION)
            ),
        ):
            assert (self.task.state, self.task.claimed_until) == (State.UNKNOWN, None)

    @rule()
    def adopt(self) -> None:
        """Hear the task's name from the vendor."""
        if self.step({State.UNKNOWN}, lambda: self.task.recovered("task-2", self.now)):
            assert (self.task.state, self.task.upstream_task_id) == (State.WATCHED, "task-2")

    @rule()
    def miss(self) -> None:
        """Hear that the vendor does not know the task."""
        if self.step({State.WATCHED}, lambda: self.task.missing(self.now)):
            assert self.task.missing_since == self.now

    @rule()
    def find(self) -> None:
        """Hear that it does."""
        if self.step({State.WATCHED}, self.task.found):
            assert self.task.missing_since is None

    @rule()
    def ask_to_cancel(self) -> None:
        """Be about to ask the vendor to cancel it."""
        if self.step({State.WATCHED}, lambda: self.task.cancel_asked(self.now)):
            assert self.task.canceled_at == self.now

    @rule()
    def refuse_to_cancel(self) -> None:
        """Hear that the vendor does not."""
        if self.step({State.WATCHED}, self.task.cancel_refused):
            assert self.task.canceled_at is None

    @rule(slot=st.booleans())
    def succeed(self, slot: bool) -> None:  # noqa: FBT001  # filled in
        """Hear of the success, with a slot for the first delivery or without."""
        claim = self.now + CLAIM if slot else None
        if self.step(
            {State.WATCHED}, lambda: self.task.succeeded(DATA, self.now, retention=RETENTION, claim=claim)
        ):
            waits = self.task.callback_url is not None
            assert self.task.state is State.SUCCESS
            assert self.task.claimed(self.now) is (slot and waits)
            assert self.task.next_attempt_at == (self.now if waits and not slot else None)

    @rule(error=st.sampled_from(ErrorCode))
    def fail(self, error: ErrorCode) -> None:
        """End badly."""
        unpaid = error in {ErrorCode.QUEUE_EXPIRED, ErrorCode.CANCELED}
        legal = {State.QUEUED} if unpaid else {State.WATCHED, State.UNKNOWN}
        if error is ErrorCode.CANCELED and self.task.canceled_at is not None:
            legal = {State.WATCHED}
        if self.step(
            legal,
            lambda: self.task.failed(error, "why", self.now, retention=RETENTION, claim=self.now + CLAIM),
        ):
            assert (self.task.state, self.task.error) == (State.FAILED, error)
            assert (self.task.callback is CallbackState.WAITING) is (self.task.callback_url is not None)

    @rule(files=st.integers(0, 3))
    def archive(self, files: int) -> None:
        """Succeed, where results are archived."""
        data = {
            "result": {"resources": [{"url": f"https://files.example.com/{n}.mp4"} for n in range(files)]}
        }
        if self.step(
            {State.WATCHED}, lambda: self.task.archiving(data, self.now, new_token=lambda: "t" * 32)
        ):
            assert (self.task.state, len(self.task.copies), self.task.archiving_since) == (
                State.ARCHIVING,
                files,
                self.now,
            )
            assert self.task.copied is (files == 0)

    @rule(settled=st.booleans(), on=st.booleans())
    def copy(self, settled: bool, on: bool) -> None:  # noqa: FBT001  # filled in
        """Note how far the copies are, and go on with them or not."""
        copies = tuple(copy.model_copy(update={"archived": settled}) for copy in self.task.copies)
        until = self.now + CLAIM if on else None
        if self.step({State.ARCHIVING}, lambda: self.task.copying(copies, until=until)):
            assert (self.task.copies, self.task.claimed(self.now)) == (copies, on)

    @rule(linked=st.booleans())
    def end_archiving(self, linked: bool) -> None:  # noqa: FBT001  # filled in
        """End with what is copied."""
        before, origin = self.task, "https://tasks.example.com" if linked else None
        if self.step(
            {State.ARCHIVING},
            lambda: self.task.archived(origin, self.now, retention=RETENTION, claim=self.now + CLAIM),
        ):
            listed = json.loads(self.task.message or "")["data"]["result"]["resources"]
            assert [file["archived"] for file in listed] == [
                copy.archived and linked for copy in before.copies
            ]
            assert [file.get("source_url", file["url"]) for file in listed] == [
                before.original(copy) for copy in before.copies
            ]
            assert self.task.result is None

    @rule()
    def defer(self) -> None:
        """Leave a delivery whose process died to the schedule."""
        before = self.task
        if self.step({State.SUCCESS, State.FAILED}, lambda: self.task.deferred(self.now), delivering=True):
            assert (self.task.next_attempt_at, self.task.claimed_until) == (self.now, None)
            assert (self.task.attempts, self.task.message) == (before.attempts, before.message)

    @rule()
    def claim_delivery(self) -> None:
        """Claim an attempt."""
        if self.step(
            {State.SUCCESS, State.FAILED},
            lambda: self.task.claim_delivery(until=self.now + CLAIM),
            delivering=True,
        ):
            assert self.task.claimed(self.now)

    @rule(
        delivered=st.booleans(),
        again=st.booleans(),
        soon=st.booleans(),
        gone=st.booleans(),
        status=st.integers(100, 599) | st.none(),
    )
    def attempt(self, *, delivered: bool, again: bool, soon: bool, gone: bool, status: int | None) -> None:
        """Record an attempt."""
        before = self.task
        retry_at = self.now + timedelta(hours=1) if again and not delivered else None
        made = Attempt(at=self.now, status=status, error=None if status else "reset")
        if self.step(
            {State.SUCCESS, State.FAILED},
            lambda: self.task.attempted(
                made,
                delivered=delivered,
                retry_at=retry_at,
                now=self.now,
                retention=RETENTION,
                soon=soon,
                gone=gone,
            ),
            delivering=True,
        ):
            expected = (
                CallbackState.DELIVERED
                if delivered
                else CallbackState.WAITING
                if again
                else CallbackState.UNDELIVERED
            )
            assert (self.task.callback, self.task.next_attempt_at) == (expected, retry_at)
            assert (self.task.attempts, self.task.log[-1], self.task.claimed_until) == (
                before.attempts + 1,
                made,
                None,
            )
            assert (self.task.attempts_this_round, self.task.uncounted) == (
                before.attempts_this_round + (not soon),
                before.uncounted + soon,
            )
            assert self.task.answered_gone is (before.answered_gone or gone)

    @rule()
    def redeliver(self) -> None:
        """Have the message delivered again."""
        before = self.task
        if before.callback is CallbackState.NONE:  # also where it has ended
            with pytest.raises(IllegalTransitionError):
                before.redelivered(self.now)
        elif self.step({State.SUCCESS, State.FAILED}, lambda: self.task.redelivered(self.now)):
            self.through = False
            assert self.task.work_key is not None
            assert self.task.work_key[0] == "retry"
            waited_for = before.next_attempt_at or before.claimed_until
            waits = before.callback is CallbackState.WAITING
            due = min(self.now, waited_for) if waits and waited_for is not None else self.now
            expected = (due, before.caller, before.host, 3)
            assert RetryKey.read(self.task.work_key[1]) == expected
            assert (
                self.task.attempts_this_round,
                self.task.uncounted,
                self.task.answered_gone,
                self.task.claimed_until,
            ) == (
                0,
                0,
                False,
                None,
            )
            assert (self.task.message, self.task.webhook_id) == (before.message, before.webhook_id)
            assert (self.task.attempts, self.task.log) == (before.attempts, before.log)

    @invariant()
    def work_or_expiry(self) -> None:
        """An item has work to do or a date of expiry, never both and never neither."""
        assert (self.task.work_key is None) is (self.task.expires_at is not None)

    @invariant()
    def expiry_leaves_the_retention_time(self) -> None:
        """What expires stays for the whole retention time after its end."""
        assert (
            self.task.expires_at is None
            or self.task.ended_at is None
            or self.task.expires_at >= self.task.ended_at + RETENTION
        )

    @invariant()
    def message_is_rendered_once(self) -> None:
        """There is a message exactly when the task has ended, and it never changes."""
        assert (self.task.message is not None) is self.task.state.final
        assert self.message in {None, self.task.message}
        self.message = self.task.message

    @invariant()
    def end_is_the_end(self) -> None:
        """A final state stays, with its time and its error."""
        if self.ended:
            assert self.task.state.final
        self.ended = self.task.state.final
        assert (self.task.ended_at is not None) is self.task.state.final
        assert (self.task.error is not None) is (self.task.state is State.FAILED)

    @invariant()
    def callback_only_with_a_url(self) -> None:
        """Nothing waits without a URL; what is delivered or given up stays so until asked for again."""
        if self.task.callback_url is None:
            assert (self.task.callback, self.task.attempts) == (CallbackState.NONE, 0)
        if self.through:
            assert self.task.callback in {CallbackState.DELIVERED, CallbackState.UNDELIVERED}
        self.through = self.task.callback in {CallbackState.DELIVERED, CallbackState.UNDELIVERED}

    @invariant()
    def sort_key_never_moves(self) -> None:
        """Whatever the way, `watch` is sorted by acceptance, and the first delivery is still part of it."""
        if self.task.work_key is not None:
            partition, key = self.task.work_key
            if partition == "watch":
                assert key == self.first.created_key
            if self.task.state in {State.SUBMITTING, State.WATCHED, State.UNKNOWN, State.ARCHIVING} or (
                self.task.state.final and self.task.attempts == 0 and self.task.next_attempt_at is None
            ):
                assert partition == "watch"
            assert (partition == "queue") is (self.task.state is State.QUEUED)
            assert (partition == "retry") is (self.task.next_attempt_at is not None)

    @invariant()
    def first_answer_stays(self) -> None:
        """What the submitter was told is told to every repeat."""
        told = (
            None if self.task.answer_status is None else (self.task.answer_status, self.task.answer_message)
        )
        assert self.told in {None, told}
        self.told = told
        if self.task.state in {State.QUEUED, State.UNKNOWN, State.WATCHED, State.ARCHIVING}:
            assert told is not None

    @invariant()
    def log_is_bounded(self) -> None:
        """The log keeps the last attempts."""
        assert len(self.task.log) == min(self.task.attempts, MAX_LOG)

    @invariant()
    def nothing_is_lost_on_the_way_to_the_table(self) -> None:
        """What is stored and read again is the same task."""
        assert Task.model_validate(self.task.model_dump(mode="json", exclude_none=True)) == self.task

    @invariant()
    def identity_stays(self) -> None:
        """What makes the task that task never changes."""
        names = (
            "task_id",
            "caller",
            "model",
            "request",
            "fingerprint",
            "callback_url",
            "reference",
            "accepted_at",
        )
        assert [getattr(self.task, name) for name in names] == [getattr(self.first, name) for name in names]


def test_state_machine() -> None:
    """Any order of transitions keeps to the documented ones, and to every rule about what a task holds."""
    run_state_machine_as_test(
        TaskMachine, settings=settings(max_examples=300, stateful_step_count=40, deadline=None)
    )


# --- the ways through it --------------------------------------------------------------------------


def test_sort_key_is_the_same_from_submit_to_first_delivery() -> None:
    """An ordinary task rewrites the work index once, at its end."""
    submitting = accepted()
    taken = submitting.submitted(outcome(Submission.TAKEN, 200), START, retention=RETENTION)
    ended = taken.succeeded(DATA, START, retention=RETENTION, claim=START + CLAIM)
    claimed = ended.claim_delivery(until=START + CLAIM)
    assert {task.work_key for task in (submitting, taken, ended, claimed)} == {
        ("watch", submitting.created_key)
    }
    done = claimed.attempted(
        Attempt(at=START, status=200), delivered=True, retry_at=None, now=START, retention=RETENTION
    )
    assert (done.work_key, done.expires_at) == (None, START + RETENTION)


def test_sort_key_is_the_same_when_unknown_and_recovered() -> None:
    """An ambiguous task stays where it is, too, until it is adopted or given up."""
    submitting = accepted()
    doubted = submitting.mark_unknown()
    adopted = doubted.recovered("task-1", START)
    given_up = doubted.failed(
        ErrorCode.SUBMISSION_UNKNOWN, "never learnt", START, retention=RETENTION, claim=START + CLAIM
    )
    assert {task.work_key for task in (submitting, doubted, adopted, given_up)} == {
        ("watch", submitting.created_key)
    }


def test_retry_is_sorted_by_its_time() -> None:
    """From the second attempt on, the next attempt's time is the sort key."""
    later, soon = (
        succeeded()
        .attempted(
            Attempt(at=START, status=500),
            delivered=False,
            retry_at=START + wait,
            now=START,
            retention=RETENTION,
        )
        .work_key
        for wait in (timedelta(hours=24), timedelta(seconds=5))
    )
    assert later is not None
    assert soon is not None
    assert (later[0], soon[0], soon < later) == ("retry", "retry", True)


def test_queue_is_sorted_by_caller_and_time() -> None:
    """One query finds a caller's oldest queued task."""
    task = accepted(paying=False)
    other = task.model_copy(update={"accepted_at": START + timedelta(seconds=1), "task_id": "tk_0"})
    assert task.work_key is not None
    assert other.work_key is not None
    assert task.work_key[0] == "queue"
    assert task.work_key[1].startswith("alice#")
    assert task.work_key[1] < other.work_key[1]


def test_direct_refusal_answers_and_does_not_call_back() -> None:
    """A caller that was refused has been told; a callback would tell it twice."""
    task = accepted().submitted(outcome(Submission.REFUSED, 422, "no such mode"), START, retention=RETENTION)
    assert (task.state, task.error, task.callback) == (
        State.FAILED,
        ErrorCode.UPSTREAM_REFUSED,
        CallbackState.NONE,
    )
    assert (task.answer_status, task.answer_message, task.expires_at) == (
        422,
        "no such mode",
        START + RETENTION,
    )
    assert not task.reusable


def test_refusal_from_the_queue_calls_back() -> None:
    """A caller that was told 200 learns of the refusal by its callback."""
    task = answered(accepted(paying=False)).submitted(
        outcome(Submission.REFUSED, 422, "no such mode"), START, retention=RETENTION
    )
    assert (task.state, task.error, task.callback) == (
        State.FAILED,
        ErrorCode.UPSTREAM_REFUSED,
        CallbackState.WAITING,
    )
    assert (task.answer_status, task.next_attempt_at) == (200, START)
    assert json.loads(task.message or "")["data"]["error"] == {
        "code": "upstream_refused",
        "message": "no such mode",
    }


@pytest.mark.parametrize("status", [401, 402])
def test_own_trouble_ends_a_direct_submit_with_502(status: int) -> None:
    """Where this deployment's key or balance is refused, the caller hears 502 and may use its key again."""
    task = accepted().submitted(outcome(Submission.REFUSED_HERE, status), START, retention=RETENTION)
    assert (task.state, task.error, task.callback) == (
        State.FAILED,
        ErrorCode.UPSTREAM_REFUSED,
        CallbackState.NONE,
    )
    assert (task.answer_status, task.reusable) == (502, True)


@pytest.mark.parametrize("submission", [Submission.REFUSED_HERE, Submission.BUSY, Submission.NOT_SENT])
def test_what_is_refused_for_now_goes_back_to_the_queue(submission: Submission) -> None:
    """A queued task waits on, at its old place, with its 200."""
    queued = accepted(paying=False)
    task = answered(queued).submitted(outcome(submission), START, retention=RETENTION)
    assert (task.state, task.answer_status, task.work_key) == (State.QUEUED, 200, queued.work_key)


@pytest.mark.parametrize("submission", [Submission.BUSY, Submission.NOT_SENT])
def test_direct_submit_is_queued_with_200(submission: Submission) -> None:
    """A submitter never hears of the vendor's rate: its task waits."""
    task = accepted().submitted(outcome(submission, 429), START, retention=RETENTION)
    assert (task.state, task.answer_status, task.callback) == (State.QUEUED, 200, CallbackState.WAITING)


@pytest.mark.parametrize(("paying", "status"), [(True, 502), (False, 200)])
def test_ambiguous_outcome_is_called_ambiguous(*, paying: bool, status: int) -> None:
    """A direct caller hears 502 with the task's id and not to resubmit; a queued one has its 200."""
    task = accepted(paying=paying)
    task = (task if paying else answered(task)).submitted(
        outcome(Submission.AMBIGUOUS, 500), START, retention=RETENTION
    )
    assert (task.state, task.answer_status) == (State.UNKNOWN, status)
    if paying:
        assert task.task_id in (task.answer_message or "")
        assert "do not resubmit" in (task.answer_message or "")


def test_an_unknown_outcome_that_comes_late_adds_nothing_to_a_recovered_task() -> None:
    """Once a claim has run out, only what settles the matter counts."""
    with pytest.raises(IllegalTransitionError):
        accepted().mark_unknown().submitted(outcome(Submission.AMBIGUOUS), START, retention=RETENTION)


@pytest.mark.parametrize("submission", [Submission.BUSY, Submission.NOT_SENT, Submission.REFUSED_HERE])
def test_late_proof_that_nothing_was_taken_queues_an_unknown_task(submission: Submission) -> None:
    """The submitter was told that the outcome is unknown; now it is known, and the callback will come."""
    task = accepted().mark_unknown().submitted(outcome(submission, 429), START, retention=RETENTION)
    assert (task.state, task.answer_status) == (State.QUEUED, 502)


def test_attempt_is_illegal_before_the_end() -> None:
    """Nothing can be delivered that has not ended, though its callback is waiting."""
    task = watched()
    assert task.callback is CallbackState.WAITING
    with pytest.raises(IllegalTransitionError):
        task.attempted(
            Attempt(at=START, status=200), delivered=True, retry_at=None, now=START, retention=RETENTION
        )


def test_log_keeps_the_last_attempts() -> None:
    """The log is bounded, the count is not."""
    task = succeeded()
    for number in range(MAX_LOG + 5):
        task = task.attempted(
            Attempt(at=START, status=500 + number),
            delivered=False,
            retry_at=START,
            now=START,
            retention=RETENTION,
        )
    assert (task.attempts, len(task.log), task.log[-1].status) == (25, 20, 524)


def test_unknown_attributes_are_ignored() -> None:
    """An item that a newer version wrote can still be read."""
    assert Task.model_validate(watched().model_dump(mode="json") | {"invented_later": {"x": 1}}) == watched()


# --- bodies ---------------------------------------------------------------------------------------


def test_message_of_a_success() -> None:
    """The body is the vendor's answer in the documented envelope, minified, with our id and theirs."""
    task = succeeded(reference="order 7")
    assert task.message == minified(json.loads(task.message or ""))
    assert json.loads(task.message) == {
        "type": "prediction.task.succeeded",
        "timestamp": "2026-11-23T12:00:00Z",
        "code": 0,
        "message": "success",
        "data": {
            "status": "success",
            "task_id": task.task_id,
            "upstream_task_id": "task-1",
            "vendor": "modellix",
            "model_id": "alibaba/wan2.2-animate-mix",
            "reference": "order 7",
            "result": {"resources": [{"url": "https://files.example.com/1.mp4"}]},
            "billing": {"amount": "0.24"},
        },
    }
    assert task.event == "prediction.task.succeeded"


@each_row("code", list(ErrorCode))
def test_message_of_a_failure(code: ErrorCode) -> None:
    """The body names the error, and the words both where the vendor's clients and where ours look."""
    before = accepted(paying=False) if code in {ErrorCode.QUEUE_EXPIRED, ErrorCode.CANCELED} else watched()
    task = before.failed(code, "x" * 5000, START, retention=RETENTION, claim=START + CLAIM)
    body = json.loads(task.message or "")
    assert (body["type"], task.event) == ("prediction.task.failed", "prediction.task.failed")
    assert (body["data"]["status"], body["data"]["error"]) == (
        "failed",
        {"code": code, "message": "x" * MAX_NOTE},
    )
    assert body["message"] == "x" * MAX_NOTE


def test_vendor_cannot_speak_for_us() -> None:
    """What is ours to say is not taken from the vendor's data."""
    hostile: Json = {
        "status": "SUCCEEDED",
        "task_id": "theirs",
        "upstream_task_id": "other",
        "model_id": "m",
        "reference": "r",
        "get_result": {},
        "vendor": "other",
        "error": "x",
    }
    data = json.loads(succeeded(hostile).message or "")["data"]
    assert data == {
        "status": "success",
        "task_id": accepted().task_id,
        "upstream_task_id": "task-1",
        "vendor": "modellix",
        "model_id": accepted().model,
    }


def resources(count: int, filler: str) -> list[Json]:
    """Make this many results."""
    return [
        {"url": f"https://files.example.com/{number}.mp4", "type": "video", "note": filler}
        for number in range(count)
    ]


HUGE: dict[str, Json] = {
    "metadata": {"result": {"resources": resources(3, ""), "metadata": "m" * 300_000}},
    "metadata in many bytes": {"result": {"resources": resources(3, ""), "metadata": "\u4e2d" * 100_000}},
    "characters few, bytes many": {
        "result": {"resources": resources(3, ""), "extensions": "\U0001f600" * 70_000}
    },
    "extensions": {
        "result": {
            "resources": resources(3, ""),
            "extensions": {str(number): number for number in range(40_000)},
        }
    },
    "resources": {"result": {"resources": resources(6000, "")}},
    "resources in many bytes": {"result": {"resources": resources(2000, "\U0001f600" * 50)}},
    "one resource": {"result": {"resources": resources(1, "\u4e2d" * 200_000)}},
    "quotes": {"result": {"resources": resources(1, ""), "metadata": '"\\' * 100_000}},
    "billing": {"result": {"resources": resources(3, "")}, "billing": {"note": "b" * 300_000}},
    "expiry": {"result": {"resources": resources(3, "")}, "result_expires_at": "9" * 300_000},
    "result is text": {"result": "r" * 300_000},
    "result is a list": {"result": ["r" * 300_000]},
    "resources is text": {"result": {"resources": "r" * 300_000}},
    "unknown field": {"result": {"resources": resources(3, "")}, "invented_later": "x" * 300_000},
    "key": {"result": {"resources": resources(3, "")}, "k" * 300_000: 1},
}


@each_row("data", HUGE.values(), ids=HUGE)
def test_huge_answer_is_truncated_and_says_so(data: Json) -> None:
    """An answer over 256 KB stays a success, loses what is not the result, and says `truncated`."""
    small: Json = {"billing": {"amount": "0.24"}, "result_expires_at": 1790000000000}
    task = succeeded(small | data)
    body = json.loads(task.message or "")
    assert (task.state, body["data"]["status"], body["data"]["truncated"]) == (State.SUCCESS, "success", True)
    assert len((task.message or "").encode()) <= MAX_VENDOR_DATA + 2000
    for name in small.keys() - data.keys():
        assert body["data"][name] == small[name]


@each_row("name", ["metadata", "metadata in many bytes", "extensions", "billing", "unknown field"])
def test_truncation_keeps_the_result(name: str) -> None:
    """As long as the resources fit, all of them are kept."""
    assert json.loads(succeeded(HUGE[name]).message or "")["data"]["result"]["resources"] == resources(3, "")


def test_truncation_keeps_as_many_resources_as_fit() -> None:
    """Of too many resources the first ones are kept."""
    kept = json.loads(succeeded(HUGE["resources"]).message or "")["data"]["result"]["resources"]
    assert len(kept) >= 1500
    assert kept == resources(6000, "")[: len(kept)]


@each_row("filler", ["m", "\u00e4", "\u4e2d", "\U0001f600"])
@each_row(("spare", "truncated"), [(0, False), (-1, True)])
def test_limit_is_exact_in_bytes(*, filler: str, spare: int, truncated: bool) -> None:
    """Bytes are counted, not characters: the last answer that fits is kept whole, one byte more is not."""
    room = MAX_VENDOR_DATA - spare - len(minified({"result": {"metadata": ""}}).encode())
    text = filler * (room // len(filler.encode()))
    text += "a" * (room - len(text.encode()))
    data = json.loads(succeeded({"result": {"metadata": text}}).message or "")["data"]
    assert data.get("truncated", False) is truncated


def test_ordinary_answer_is_kept_whole() -> None:
    """What is within the limit is passed on unchanged, unknown fields and all."""
    data = {
        "result": {"resources": resources(3, "\u4e2d"), "metadata": {"a": [1, None]}, "extensions": {}},
        "duration": 5,
        "new": {"x": "y"},
    }
    kept = json.loads(succeeded(data).message or "")["data"]
    assert {name: kept[name] for name in data} == data
    assert "truncated" not in kept


@each_row("data", HUGE.values(), ids=HUGE)
def test_largest_item_fits_the_table(data: Json) -> None:
    """With the longest of everything else, the largest message still makes an item that DynamoDB takes."""
    task = succeeded(data).model_copy(
        update={
            "request": minified(BODY | {"image_url": "i" * 2048, "video_url": "v" * 2048}),
            "callback_url": "c" * 2048,
            "reference": "\U0001f600" * 200,
            "answer_message": "\U0001f600" * MAX_NOTE,
            "upstream_task_id": "u" * 512,
            "nonce": "n" * 32,
        }
    )
    for _ in range(MAX_LOG):
        made = Attempt(at=START, error="forbidden_target", ms=15000, answer="\U0001f600" * 40)
        task = task.attempted(made, delivered=False, retry_at=START, now=START, retention=RETENTION)
    assert item_size(task) < MAX_ITEM


@each_row("data", HUGE.values(), ids=HUGE)
def test_largest_archiving_item_fits_the_table(data: Json) -> None:
    """With copies under way, and when the links to them are in the message."""
    task = watched().archiving(data, START, new_token=lambda: "t" * 32)
    under_way = {"upload": "u" * 512, "tag": "e" * 256, "size": 2**31, "archived": True}
    copies = tuple(copy.model_copy(update=under_way) for copy in task.copies)
    task = task.copying(copies, until=START).model_copy(
        update={
            "request": minified(BODY | {"image_url": "i" * 2048, "video_url": "v" * 2048}),
            "callback_url": "c" * 2048,
            "reference": "\U0001f600" * 200,
            "upstream_task_id": "u" * 512,
        }
    )
    assert item_size(task) < MAX_ITEM
    ended = task.archived("https://" + "o" * 250, START, retention=RETENTION, claim=START)
    for _ in range(MAX_LOG):
        made = Attempt(at=START, error="forbidden_target", ms=15000, answer="\U0001f600" * 40)
        ended = ended.attempted(made, delivered=False, retry_at=START, now=START, retention=RETENTION)
    assert item_size(ended) < MAX_ITEM


# --- what the vendor's answer to the paid POST means ----------------------------------------------

TAKEN_BODY: Json = {"code": 0, "message": "success", "data": {"task_id": "task-1"}}


def meaning(status: int) -> Submission:
    """Read the table of the design for an answer that names no task."""
    for statuses, submission in (
        ((400, 403, 404, 405, 413, 415, 422), Submission.REFUSED),
        ((401, 402), Submission.REFUSED_HERE),
        ((429,), Submission.BUSY),
    ):
        if status in statuses:
            return submission
    return Submission.AMBIGUOUS


def test_meaning_of_every_status() -> None:
    """Each status means what the table says, whether the body speaks for it, against it, or is missing."""
    for status in range(100, 600):
        error: Json = {"code": status, "message": "words"}
        taken = Submission.TAKEN if status in range(200, 300) else meaning(status)
        read = [MODELLIX.read_submission(status, body).submission for body in (error, None, TAKEN_BODY)]
        assert read == [meaning(status), meaning(status), taken], status


@each_row("status", [200, 201, 202, 299])
@each_row(
    "body",
    [TAKEN_BODY, {"data": {"task_id": "task-1"}}, {"code": 0, "data": {"task_id": "task-1", "x": 1}, "y": 2}],
)
def test_taken_names_the_task(status: int, body: Json) -> None:
    """A string id under any 2xx is a taken task; `code` may be left out."""
    read = MODELLIX.read_submission(status, body)
    assert (read.submission, read.upstream_task_id, read.status, read.message) == (
        Submission.TAKEN,
        "task-1",
        status,
        "",
    )


NO_OBJECTS: tuple[object, ...] = (None, [], "task-1", 1, {}, [{"task_id": "task-1"}])
NO_IDS: tuple[object, ...] = (None, "", 1, 1.5, True, [], ["task-1"], {"id": "task-1"})
NO_SUCCESSES: tuple[object, ...] = (1, -1, 200, 500, "0", "", None, [], {})
UNTAKEN: tuple[Json | None, ...] = (
    None,
    {},
    {"task_id": "task-1"},
    *({"code": 0, "data": data} for data in NO_OBJECTS),
    *({"code": 0, "data": {"task_id": task_id}} for task_id in NO_IDS),
    *({"code": code, "data": {"task_id": "task-1"}} for code in NO_SUCCESSES),
)


@each_row("body", UNTAKEN, ids=str)
def test_2xx_without_proof_is_ambiguous(body: Json | None) -> None:
    """A 2xx without a string id, or with a code that is not 0, may have been paid for."""
    assert MODELLIX.read_submission(200, body).submission is Submission.AMBIGUOUS


@each_row(
    ("body", "message"),
    [
        ({"message": "Invalid parameters: parameter 'mode'"}, "Invalid parameters: parameter 'mode'"),
        ({"message": "x" * 5000}, "x" * MAX_NOTE),
        ({"message": ""}, "the vendor answered 400"),
        ({"message": None}, "the vendor answered 400"),
        ({"message": {"a": 1}}, "{'a': 1}"),
        ({}, "the vendor answered 400"),
        (None, "the vendor answered 400"),
    ],
)
def test_refusal_keeps_the_vendors_words(body: Json | None, message: str) -> None:
    """The caller gets the vendor's own message, bounded, or else the status."""
    read = MODELLIX.read_submission(400, body)
    assert (read.status, read.message) == (400, message)


@pytest.mark.parametrize("status", [429, 401, 503])
def test_retry_after_is_passed_on(status: int) -> None:
    """What the vendor says about when to come back is kept."""
    assert MODELLIX.read_submission(status, None, retry_after=timedelta(seconds=7)).retry_after == timedelta(
        seconds=7
    )


def test_moments_keep_milliseconds() -> None:
    """Times are stored as the vendor writes them, and come back in UTC."""
    moment = datetime(2026, 11, 23, 15, 4, 5, 678_000, UTC)
    stored = watched().missing(moment).model_dump(mode="json")
    assert stored["missing_since"] == 1795446245678
    assert Task.model_validate(stored).missing_since == moment


def test_a_task_that_succeeded_after_a_cancel_stays_a_success() -> None:
    """Its vendor was asked to cancel it, and was through with it by then."""
    asked = watched().cancel_asked(START)
    assert asked.failed(ErrorCode.CANCELED, "", START, retention=RETENTION, claim=None).state is State.FAILED
    ended = asked.succeeded(DATA, START, retention=RETENTION, claim=None)
    with pytest.raises(IllegalTransitionError):
        ended.failed(ErrorCode.CANCELED, "", START, retention=RETENTION, claim=None)
