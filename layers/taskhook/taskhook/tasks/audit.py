"""What a deployment's own items say of its promises: counts, and what should not be, each with what to do."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import NamedTuple

from taskhook.core.record import CallbackState, ErrorCode, State
from taskhook.core.schedule import RETRY_WAITS
from taskhook.core.task import EXPIRY_GRACE, Task

# What a tick, a paused vendor or a host that is tried less may add to a moment at which something is due.
SLACK = timedelta(minutes=15)
TTL_TIME = timedelta(days=7)  # by which DynamoDB has deleted what has expired; it says "a few days"
_POLLER = "see whether PollFunction runs, and its alarms: a tick every minute ends this"
_REPORT = "this is a defect of taskhook: report it with this item, which `aws dynamodb get-item` shows"


class StoredTask(NamedTuple):
    """A task's item: the task, None where it cannot be read, and what indexes and TTL see of it."""

    task_id: str
    task: Task | None
    work: bool = False
    indexed: bool = False
    expires_at: datetime | None = None


@dataclass(frozen=True)
class Limits:
    """What the deployment's parameters allow."""

    max_queue_age: timedelta
    max_task_age: timedelta  # of a vendor that this version does not know
    task_ages: Mapping[str, timedelta]  # by vendor


class Finding(NamedTuple):
    """What is wrong with a task, and what to do."""

    task_id: str
    problem: str
    advice: str


@dataclass
class Audit:
    """What was found: counts of tasks accepted since a moment, and every finding, however old."""

    counts: Counter[str] = field(
        default_factory=lambda: Counter(
            dict.fromkeys(("accepted", "running", "ended", "delivered", "exhausted", "unknown"), 0)
        )
    )
    findings: list[Finding] = field(default_factory=list)

    def add(self, stored: StoredTask, *, since: datetime, now: datetime, limits: Limits) -> None:
        """Take an item in."""
        task = stored.task
        if task is not None and task.accepted_at >= since:
            self.counts["accepted"] += 1
            self.counts["ended" if task.state.final else "running"] += 1
            self.counts["delivered"] += task.callback is CallbackState.DELIVERED
            self.counts["exhausted"] += task.callback is CallbackState.UNDELIVERED
            unknown = task.state is State.UNKNOWN or task.error is ErrorCode.SUBMISSION_UNKNOWN
            self.counts["unknown"] += unknown
        self.findings += [
            Finding(stored.task_id, *words) for words in _problems(stored, now=now, limits=limits)
        ]


type _Words = tuple[str, str]


def _problems(stored: StoredTask, *, now: datetime, limits: Limits) -> Iterator[_Words]:
    task = stored.task
    if task is None:
        yield (
            "cannot be read",
            "a newer version wrote it, or a hand: deploy that version again, or mend the item",
        )
        return
    if stored.work and stored.expires_at is not None:
        yield "has both `work` and `expires_at`: it may be deleted before it is through", _REPORT
    if not stored.work and stored.expires_at is None:
        yield "has neither `work` nor `expires_at`: no poller finds it, and it is never deleted", _REPORT
    if stored.work is not stored.indexed:
        yield "is not in the index of work as it should be", _REPORT
    if stored.expires_at is not None and now > stored.expires_at + TTL_TIME:
        yield "has expired and is still there", "switch TTL on the table's `expires_at` on again"
    if task.state.final:
        yield from _of_callback(task, now)
    else:
        yield from _of_course(task, now, limits)


def _of_course(task: Task, now: datetime, limits: Limits) -> Iterator[_Words]:
    """List what is wrong with a task that has not ended."""
    if task.state is State.SUBMITTING and _over(task.claimed_until, now):
        yield f"was claimed for its submit until {_at(task.claimed_until)}, and nothing came of it", _POLLER
    task_age = limits.task_ages.get(task.vendor, limits.max_task_age)
    deadlines = {
        State.QUEUED: (task.accepted_at + limits.max_queue_age, "MaxQueueHours"),
        State.UNKNOWN: (
            task.unknown_until,
            "the quarter of an hour for which an unknown outcome is watched",
        ),
        State.ARCHIVING: (task.archive_by, "the quarter of an hour for which a callback waits for copies"),
        State.WATCHED: (task.age_since + task_age, "MaxTaskHours"),
    }
    deadline, of = deadlines.get(task.state, (now, ""))
    if now > deadline + SLACK:
        advice = _POLLER
        if task.state is State.WATCHED:
            by = _at(deadline + EXPIRY_GRACE)
            advice = f"its vendor does not answer polls, see the alarm VendorRefuses; it ends by {by} at last"
        yield f"is {task.state} since before {_at(deadline)}, past {of}", advice


def _of_callback(task: Task, now: datetime) -> Iterator[_Words]:
    """List what is wrong with a task that has ended."""
    if task.callback_url is not None and task.callback is CallbackState.NONE and not _was_told(task):
        yield "has ended, and its caller is not told", _REPORT
    if task.callback is not CallbackState.NONE and task.message is None:
        yield "has a callback without a message", _REPORT
    if task.state is State.SUCCESS and not task.upstream_task_id:
        yield "is a success of no task of the vendor's", _REPORT
    if task.callback is CallbackState.WAITING:
        due = task.next_attempt_at or task.claimed_until or task.ended_at
        if _over(due, now):
            advice = f"{_POLLER}; or its receiver throttles or fails, and its own messages wait for it"
            yield f"has a message that was due at {_at(due)}, and was not sent", advice
    given_up = task.callback is CallbackState.UNDELIVERED and not task.answered_gone
    if given_up and task.attempts_this_round < len(RETRY_WAITS):
        what = f"was given up after {task.attempts_this_round} attempts"
        yield what, f"POST /api/v1/tasks/{task.task_id}/redeliver sends it again"


def _was_told(task: Task) -> bool:
    """Whether the answer to its submit said how it ended: a refusal, and nothing had been answered before."""
    was_accepted = task.answer_status in {None, HTTPStatus.OK} or task.told_unknown
    return task.error is ErrorCode.UPSTREAM_REFUSED and not was_accepted


def _over(until: datetime | None, now: datetime) -> bool:
    return until is None or now > until + SLACK


def _at(moment: datetime | None) -> str:
    return moment.isoformat(timespec="seconds") if moment is not None else "no time"
