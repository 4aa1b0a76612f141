from datetime import timedelta
from typing import Any

import pytest

from taskhook.adapters.dynamodb.audit import expiry
from taskhook.adapters.dynamodb.items import plain
from taskhook.adapters.dynamodb.tasks import task_of, values_of
from taskhook.core.record import CallbackState, ErrorCode, State, Submission, SubmitOutcome, milliseconds
from taskhook.core.task import Task
from taskhook.tasks.audit import Audit, Limits, StoredTask
from tests.rows import each_row
from tests.sim.__main__ import SEED, play
from tests.sim.deployment import TASKS
from tests.sim.injector import Point
from tests.world import START

RETENTION = timedelta(days=30)
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
LIMITS = Limits(max_queue_age=DAY, max_task_age=DAY, task_ages={"ark": 3 * DAY, "runway": DAY})
TAKEN = SubmitOutcome(submission=Submission.TAKEN, upstream_task_id="up", status=200)
UNKNOWN = SubmitOutcome(submission=Submission.AMBIGUOUS)


def a_task(state: State = State.SUBMITTING, **more: Any) -> Task:
    """Make a task that was accepted at the start."""
    return Task(
        task_id="tk_1",
        caller="alice",
        model="alibaba/wan2.2-animate-mix",
        fingerprint="f",
        callback_url="https://r.example.com/",
        accepted_at=START,
        state=state,
        claimed_until=START + MINUTE if state is State.SUBMITTING else None,
        **more,
    )


def watched() -> Task:
    """Make one that the vendor has taken."""
    return a_task().submitted(TAKEN, START, retention=RETENTION)


def ended() -> Task:
    """Make one whose first delivery is claimed."""
    return watched().succeeded({}, START, retention=RETENTION, claim=START + MINUTE)


def audited(*items: dict[str, Any], after: timedelta, since: timedelta = DAY) -> Audit:
    """Audit items, so long after the start."""
    audit, now = Audit(), START + after
    for values in items:
        try:
            task = task_of(values)
        except ValueError:
            task = None
        stored = StoredTask(values["task_id"], task, "work" in values, "work_at" in values, expiry(values))
        audit.add(stored, since=now - since, now=now, limits=LIMITS)
    return audit


def changed(task: Task, **changes: Any) -> dict[str, Any]:
    """Give a task's item with other attributes; None takes one away."""
    values = values_of(task) | changes
    return {name: value for name, value in values.items() if value is not None}


def refused(**changes: Any) -> dict[str, Any]:
    """Give the item of a task that the vendor refused, and of which no callback tells."""
    final = {"callback": None, "work": None, "work_at": None, "expires_at": 2**31}
    return changed(ended(), state="failed", error=ErrorCode.UPSTREAM_REFUSED, **(final | changes))


@pytest.mark.parametrize("status", [400, 502])
def test_a_refusal_that_was_the_answer_to_the_submit_needs_no_callback(status: int) -> None:
    """Its caller knows."""
    assert audited(refused(answer_status=status), after=MINUTE).findings == []


@each_row(
    ("values", "soon", "late", "words"),
    [
        (changed(watched()), DAY, DAY + HOUR, "past MaxTaskHours"),
        (changed(watched(), vendor="ark"), 3 * DAY, 3 * DAY + HOUR, "past MaxTaskHours"),
        (changed(watched(), vendor="runway"), DAY, DAY + HOUR, "past MaxTaskHours"),
        (changed(a_task(State.QUEUED)), DAY, DAY + HOUR, "past MaxQueueHours"),
        (changed(a_task()), 15 * MINUTE, HOUR, "was claimed for its submit until"),
        (
            changed(
                a_task().submitted(UNKNOWN, START, retention=RETENTION), submitted_at=milliseconds(START)
            ),
            20 * MINUTE,
            HOUR,
            "past the quarter of an hour for which an unknown",
        ),
        (
            changed(watched(), state="archiving", archiving_since=milliseconds(START)),
            20 * MINUTE,
            HOUR,
            "past the quarter of an hour for which a callback waits",
        ),
        (changed(ended()), 15 * MINUTE, HOUR, "has a message that was due at"),
        (
            changed(ended(), next_attempt_at=milliseconds(START + HOUR)),
            HOUR,
            2 * HOUR,
            "has a message that was due at",
        ),
    ],
)
def test_what_is_overdue_is_told_once_it_is(
    values: dict[str, Any], soon: timedelta, late: timedelta, words: str
) -> None:
    """Not before: what a tick or a paused vendor adds is no finding."""
    assert audited(values, after=soon).findings == []
    [finding] = audited(values, after=late).findings
    assert words in finding.problem
    assert finding.advice


@each_row(
    ("values", "words"),
    [
        (changed(watched(), expires_at=int(START.timestamp()) + 9_999_999), "both `work` and `expires_at`"),
        (changed(watched(), work=None, work_at=None), "neither `work` nor `expires_at`"),
        (changed(watched(), work_at=None), "not in the index of work"),
        (changed(watched(), state="dreaming"), "cannot be read"),
        (changed(ended(), message=None), "a callback without a message"),
        (changed(ended(), upstream_task_id=None), "is a success of no task"),
        (
            changed(ended(), callback="undelivered", attempts=3, work=None, work_at=None, expires_at=2**31),
            "was given up after 3 attempts",
        ),
        (
            changed(ended(), callback=None, work=None, work_at=None, expires_at=2**31),
            "has ended, and its caller is not told",
        ),
        *(
            (refused(**answered), "has ended, and its caller is not told")
            for answered in (
                {"answer_status": 200},
                {"answer_status": None},
                {"answer_status": 502, "told_unknown": True},
            )
        ),
    ],
)
def test_what_breaks_a_promise_is_told_however_young_it_is(values: dict[str, Any], words: str) -> None:
    """With what to do about it."""
    [finding] = audited(values, after=MINUTE).findings
    assert words in finding.problem
    assert finding.advice


def test_what_ttl_should_have_deleted_is_told() -> None:
    """DynamoDB takes days; a week is too long."""
    values = changed(ended(), callback="delivered", attempts=1, work=None, work_at=None)
    values["expires_at"] = int((START + DAY).timestamp())
    assert audited(values, after=7 * DAY).findings == []
    [finding] = audited(values, after=9 * DAY).findings
    assert "has expired" in finding.problem


def test_tasks_are_counted_by_what_became_of_them() -> None:
    """Those accepted since the moment that was asked for; findings are of all."""
    final = {"work": None, "work_at": None, "expires_at": 2**31}
    items = (
        changed(watched()),
        changed(ended(), callback=CallbackState.DELIVERED, attempts=1, **final),
        changed(ended(), callback=CallbackState.UNDELIVERED, attempts=10, **final),
        changed(ended(), state="failed", error=ErrorCode.SUBMISSION_UNKNOWN, callback="delivered", **final),
    )
    counts = {"accepted": 4, "running": 1, "ended": 3, "delivered": 2, "exhausted": 1, "unknown": 1}
    assert audited(*items, after=MINUTE).counts == counts
    assert audited(*items, after=2 * DAY).counts.total() == 0
    assert len(audited(*items, after=2 * DAY).findings) == 1


SCENARIOS = (
    *("submits", "submits_without_url", "is_refused", "receiver_410", "is_never_known", "waits_too_long"),
    *("archives_too_late", "cancels@dashscope", "uses_the_key_again"),
)


@each_row("name", SCENARIOS)
def test_what_the_product_leaves_behind_is_no_finding(name: str) -> None:
    """Every task of a scenario, when all is quiet."""
    scene = play(name, SEED, plan=Point(-1, "", ""))
    items = [plain(item) for item in scene.table.everything(TASKS) if "state" in item]
    audit = audited(*items, after=timedelta(seconds=scene.ended_at), since=30 * DAY)
    assert audit.counts["accepted"] == audit.counts["ended"] == len(items) > 0
    assert audit.findings == []
