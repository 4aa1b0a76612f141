"""What is known of a task: where it stands, what its submitter was told, how its callback fares."""

import json
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from taskhook.core.reply import is_delivered

UNKNOWN_TIME = timedelta(minutes=15)  # how long an ambiguous submit is watched for the vendor's own word
ARCHIVE_TIME = timedelta(minutes=15)  # how long a callback waits for its results to be archived


class State(StrEnum):
    """Where a task stands; the last two are final."""

    QUEUED = "queued"
    SUBMITTING = "submitting"
    WATCHED = "watched"
    UNKNOWN = "unknown"
    ARCHIVING = "archiving"
    SUCCESS = "success"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether the vendor's part is over."""
        return self in {State.SUCCESS, State.FAILED}


class CallbackState(StrEnum):
    """Where a task's callback stands."""

    NONE = "none"
    WAITING = "waiting"
    DELIVERED = "delivered"
    UNDELIVERED = "undelivered"


class ErrorCode(StrEnum):
    """Why a task failed."""

    UPSTREAM_FAILED = "upstream_failed"
    UPSTREAM_REFUSED = "upstream_refused"
    SUBMISSION_UNKNOWN = "submission_unknown"
    QUEUE_EXPIRED = "queue_expired"
    EXPIRED = "expired"
    LOST = "lost"
    CANCELED = "canceled"


def _from_milliseconds(value: Any) -> Any:
    if isinstance(value, datetime):
        return value
    try:
        return datetime.fromtimestamp(int(value) / 1000, UTC)
    except (TypeError, OverflowError, OSError) as error:
        raise ValueError("must be Unix milliseconds") from error


def milliseconds(moment: datetime) -> int:
    """Convert to Unix milliseconds, as the vendor writes its times."""
    return round(moment.timestamp() * 1000)


Moment = Annotated[datetime, BeforeValidator(_from_milliseconds), PlainSerializer(milliseconds)]


class Submission(StrEnum):
    """What the vendor's answer to the paid POST means."""

    TAKEN = "taken"
    REFUSED = "refused"  # for good: the request is wrong
    REFUSED_HERE = "refused_here"  # for now: this deployment's key or balance
    BUSY = "busy"  # for now: rate or concurrency
    NOT_SENT = "not_sent"  # proof that no byte of the request was sent
    AMBIGUOUS = "ambiguous"


class SubmitOutcome(BaseModel):
    """The class of the answer to one paid POST, with what the caller is told."""

    model_config = ConfigDict(frozen=True)

    submission: Submission
    upstream_task_id: str = ""
    operation: str | None = None  # what polls need, where it is more than the id
    status: int = 0
    message: str = ""
    retry_after: timedelta | None = None


class Attempt(BaseModel):
    """One delivery attempt, as the caller sees it in the log."""

    model_config = ConfigDict(frozen=True)

    at: Moment
    status: int | None = None
    error: str | None = None
    ms: int = 0
    answer: str = ""
    next_at: Moment | None = None  # of the attempt after this one

    @property
    def delivered(self) -> bool:
        """Whether the receiver has the message."""
        return is_delivered(self.status)


class Copy(BaseModel):
    """One result file on its way into the archive, as far as it has come."""

    model_config = ConfigDict(frozen=True)

    n: int  # of the vendor's resources
    # Part of the file's key and of the link to it: what knows it may read the file; it cannot be guessed.
    token: str
    upload: str | None = None  # where what was copied so far is kept
    size: int | None = None  # of the original, and
    tag: str | None = None  # which version of it: a copy is never made of two
    archived: bool = False
    given_up: str | None = None  # why there will be no copy

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return self.archived or self.given_up is not None

    def key(self, task_id: str) -> str:
        """Give the file's name in the archive; its link holds it, and works when the task is gone."""
        return f"{task_id}/{self.n}/{self.token}"


class RetryKey(NamedTuple):
    """What the sort key of a waiting callback says: a slot can be chosen without reading its task."""

    due: datetime
    caller: str
    host: str
    round: int  # 1: the first attempt, 2: one of the schedule's repeats, 3: asked for again

    @classmethod
    def read(cls, at: str) -> Self:
        """Read a sort key of the index's `retry` partition; what it does not say is empty."""
        key, _, rest = at.partition("#")
        caller, _, rest = rest.partition("#")
        host, _, number = rest.rpartition("#")
        try:
            due = datetime.fromtimestamp(int(key[:13]) / 1000, UTC)
        except ValueError:  # a key that cannot be read hides no task
            due = datetime.fromtimestamp(0, UTC)
        return cls(due, caller, host, int(number) if number in {"1", "2", "3"} else 2)


FIRST_VENDOR = "modellix"


def partition(kind: str, vendor: str) -> str:
    """Name the partition of the index of work in which a vendor's tasks wait for a kind of work.

    That of the first vendor has no vendor's name: its tasks were there before there were others.
    """
    return kind if vendor == FIRST_VENDOR else f"{kind}#{vendor}"


class TaskRecord(BaseModel):
    """One accepted submit, from the intent to the end of its callback.

    Unknown attributes are ignored: versions overlap.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    task_id: str
    caller: str
    vendor: str = FIRST_VENDOR
    model: str
    target: str = ""  # where the paid POST goes, as the vendor's file reads it; empty: the model says it
    headers: dict[str, str] = {}  # of the caller, passed on to the vendor
    validated: bool = True  # False: the vendor alone knows what the model takes
    # Minified JSON, the bytes that the vendor gets; None where it was not read: it is stored apart.
    request: str | None = None
    fingerprint: str
    callback_url: str | None = None
    reference: str | None = None
    unchecked: dict[str, str] = {}  # by input: why its media could not be held against the vendor's limits
    accepted_at: Moment
    state: State
    nonce: str = ""  # of the last write; the store sets a fresh one with every write
    claimed_until: Moment | None = None

    submitted_at: Moment | None = None  # when the paid POST was claimed
    answer_status: int | None = None  # what the submitter was told; None: nothing yet
    answer_message: str | None = None
    told_unknown: bool = False  # the submitter was told that the outcome is unknown
    upstream_task_id: str | None = None
    operation: str | None = None  # the URL at which it is asked for, whatever the settings say by then
    taken_at: Moment | None = None
    missing_since: Moment | None = None  # the first of the vendor's 404s
    canceled_at: Moment | None = None  # when the vendor was asked to cancel it, and did not refuse
    result: str | None = None  # what the vendor said of its success, until the message is rendered
    archiving_since: Moment | None = None
    copies: tuple[Copy, ...] = ()

    ended_at: Moment | None = None
    error: ErrorCode | None = None
    message: str | None = None  # the callback's body, rendered once
    callback: CallbackState = CallbackState.NONE
    attempts: int = 0  # all that were ever made
    asked_again: bool = False  # the message was, by its caller
    attempts_before_round: int = 0  # attempts before that
    # Since then, those that the receiver answered with "soon", which the schedule does not count.
    uncounted: int = 0
    answered_gone: bool = False  # since then, whether it has answered 410
    next_attempt_at: Moment | None = None
    log: tuple[Attempt, ...] = ()
    expires_at: Moment | None = None

    # --- what follows from the state --------------------------------------------------------------

    @property
    def webhook_id(self) -> str:
        """The message's id. A task has one message.

        The time of acceptance is part of it, for an idempotency key makes the same task id again once the
        first is gone.
        """
        return f"msg_{self.task_id}_{milliseconds(self.accepted_at)}"

    @property
    def event(self) -> str:
        """The event type of the terminal state."""
        return "prediction.task.succeeded" if self.state is State.SUCCESS else "prediction.task.failed"

    @property
    def created_key(self) -> str:
        """The sort key among the caller's tasks: by acceptance, unique."""
        return f"{milliseconds(self.accepted_at):013d}_{self.task_id}"

    @property
    def work_key(self) -> tuple[str, str] | None:
        """Partition and sort key in the index of work to do; None when there is none.

        `watch` keeps its sort key through submitting, watching and a first delivery that is made at once, so
        that an ordinary task rewrites the index only once, at its end. The key in `retry` is read by
        `RetryKey`.
        """
        watch = partition("watch", self.vendor), self.created_key
        if self.state is State.QUEUED:
            return partition("queue", self.vendor), f"{self.caller}#{self.created_key}"
        if not self.state.final:
            return watch
        if self.callback is not CallbackState.WAITING:
            return None
        if self.next_attempt_at is None:
            return watch
        due = f"{milliseconds(self.next_attempt_at):013d}_{self.task_id}"
        return "retry", f"{due}#{self.caller}#{self.host}#{self.round}"

    @property
    def reusable(self) -> bool:
        """Whether the idempotency key may be used again: a refusal was this deployment's fault.

        Never after the submitter was told that the outcome is unknown: then a late refusal ends the task like
        any other.
        """
        told = self.answer_status == HTTPStatus.BAD_GATEWAY and self.callback is CallbackState.NONE
        return told and not self.told_unknown and self.error is ErrorCode.UPSTREAM_REFUSED

    @property
    def retrying(self) -> bool:
        """Whether the last attempt at its callback failed, and another one follows."""
        waits = self.state.final and self.callback is CallbackState.WAITING
        return waits and bool(self.log) and not self.log[-1].delivered

    @property
    def host(self) -> str:
        """The host that the callback goes to, with its port."""
        return urlsplit(self.callback_url or "").netloc.lower()

    @property
    def round(self) -> int:
        """1 before the first attempt, 2 while the schedule repeats it, 3 where it was asked for again."""
        if self.asked_again:
            return 3
        return 2 if self.attempts else 1

    @property
    def round_begins(self) -> bool:
        """Whether it was asked for again, and no attempt was made since."""
        return self.asked_again and self.attempts == self.attempts_before_round

    @property
    def attempts_this_round(self) -> int:
        """How many attempts of the schedule's present round have been made."""
        return self.attempts - self.attempts_before_round - self.uncounted

    @property
    def age_since(self) -> datetime:
        """From when on its age counts: the vendor's acceptance, where that is known."""
        return self.taken_at or self.accepted_at

    @property
    def unknown_until(self) -> datetime:
        """How long the vendor's own word about an unknown outcome is waited for."""
        return (self.submitted_at or self.accepted_at) + UNKNOWN_TIME

    @property
    def archive_by(self) -> datetime:
        """When the callback waits for the archive no longer."""
        return (self.archiving_since or self.accepted_at) + ARCHIVE_TIME

    @property
    def copied(self) -> bool:
        """Whether nothing is left to be archived."""
        return all(copy.settled for copy in self.copies)

    def original(self, copy: Copy) -> str:
        """Give the vendor's link to a file."""
        url: str = json.loads(self.result or "{}")["result"]["resources"][copy.n]["url"]
        return url

    def claimed(self, now: datetime) -> bool:
        """Tell whether an invocation may be acting on the task right now."""
        return self.claimed_until is not None and now < self.claimed_until
