r"""A task: its states, the only transitions between them, and the bodies rendered from it.

```
              refused for now / not sent
   queued  <-----------------------------  submitting  ---- taken ---->  watched  ---->  success | failed
      |  \------- claimed to be paid ---------->  |                          ^               ^
      |                                           +-- ambiguous --> unknown --+---------------+  (submission_unknown)
      +---- expired, canceled ----------------------------------------------------------------+

   watched  ---- success, and results are archived here ---->  archiving  ---- copied, given up, or 15 min ---->  success
```

Every transition returns a new value, stored on condition that no other one was stored in between
(`ports.TaskStore.swap`). A *claim* is a transition too: it says until when no other invocation may act on the task.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from taskhook.core.message import MAX_NOTE, Json, file_numbers, kept_data, linked, minified, rendered

UNKNOWN_TIME = timedelta(minutes=15)  # how long an ambiguous submit is watched for the vendor's own word
LOST_AGE = timedelta(seconds=60)  # a younger task that the vendor does not know may still appear
LOST_CONFIRMATION = timedelta(seconds=30)  # between the two 404s that prove a task lost
EXPIRY_GRACE = timedelta(hours=48)  # past its deadline a task ends even if no poll gets through
ARCHIVE_TIME = timedelta(minutes=15)  # how long a callback waits for its results to be archived
MAX_COPIES = 10  # result files of one task that are archived; no known model has more
MAX_LOG = 20
MAX_EXCERPT = 160  # bytes of an answer kept in the log; a whole entry stays within 256


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


class IllegalTransitionError(Exception):
    """The task is in a state from which this transition does not exist: a bug, never an outcome."""


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


class Copy(BaseModel):
    """One result file on its way into the archive, as far as it has come."""

    model_config = ConfigDict(frozen=True)

    n: int  # of the vendor's resources
    token: str  # part of the file's key and of the link to it: what knows it may read the file; it cannot be guessed
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
        """Give the file's name in the archive, which its link says too: the file is found long after the task is gone."""
        return f"{task_id}/{self.n}/{self.token}"


class RetryKey(NamedTuple):
    """What the sort key of a waiting callback says, so that a slot can be chosen for it without reading its task."""

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


class Task(BaseModel):
    """One accepted submit, from the intent to the end of its callback. Unknown attributes are ignored: versions overlap."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    task_id: str
    caller: str
    model: str
    request: str | None = (
        None  # minified JSON, the bytes that the vendor gets; None where it was not read: it is stored apart
    )
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
    taken_at: Moment | None = None
    missing_since: Moment | None = None  # the first of the vendor's 404s
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
    uncounted: int = (
        0  # since then, those that the receiver answered with "soon", which the schedule does not count
    )
    answered_gone: bool = False  # since then, whether it has answered 410
    next_attempt_at: Moment | None = None
    log: tuple[Attempt, ...] = ()
    expires_at: Moment | None = None

    # --- what follows from the state -------------------------------------------------------------------------------------

    @property
    def webhook_id(self) -> str:
        """The message's id: one task, one message. An idempotency key makes the same task id again once the first is gone."""
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

        `watch` keeps its sort key through submitting, watching and a first delivery that is made at once, so that an
        ordinary task rewrites the index only once, at its end. The key in `retry` is read by `RetryKey`.
        """
        if self.state is State.QUEUED:
            return "queue", f"{self.caller}#{self.created_key}"
        if not self.state.final:
            return "watch", self.created_key
        if self.callback is not CallbackState.WAITING:
            return None
        if self.next_attempt_at is None:
            return "watch", self.created_key
        due = f"{milliseconds(self.next_attempt_at):013d}_{self.task_id}"
        return "retry", f"{due}#{self.caller}#{self.host}#{self.round}"

    @property
    def reusable(self) -> bool:
        """Whether the idempotency key may be used again: refused for a reason that was this deployment's, not the caller's.

        Not after the outcome was called unknown: a late refusal ends its task like any other, with a callback or without.
        """
        told = self.answer_status == HTTPStatus.BAD_GATEWAY and self.callback is CallbackState.NONE
        return told and not self.told_unknown and self.error is ErrorCode.UPSTREAM_REFUSED

    @property
    def host(self) -> str:
        """The host that the callback goes to, with its port."""
        return urlsplit(self.callback_url or "").netloc.lower()

    @property
    def round(self) -> int:
        """1 before the first attempt, 2 while the schedule repeats it, 3 where the message was asked for again."""
        if self.asked_again:
            return 3
        return 2 if self.attempts else 1

    @property
    def attempts_this_round(self) -> int:
        """How many attempts of the schedule's present round have been made."""
        return self.attempts - self.attempts_before_round - self.uncounted

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

    # --- transitions -----------------------------------------------------------------------------------------------------

    def claim_submit(self, now: datetime, *, until: datetime) -> Self:
        """Queued → submitting: the intent to pay, to be stored before the POST."""
        self._require(State.QUEUED)
        return self._to(state=State.SUBMITTING, submitted_at=now, claimed_until=until)

    def submitted(self, outcome: SubmitOutcome, now: datetime, *, retention: timedelta) -> Self:
        """Submitting → what the vendor's answer means; also unknown → that, when a late answer settles it after all."""
        self._require(State.SUBMITTING, State.UNKNOWN)
        answered = self.answer_status is not None
        match outcome.submission:
            case Submission.TAKEN:
                return self._answered(HTTPStatus.OK)._to(
                    state=State.WATCHED,
                    upstream_task_id=outcome.upstream_task_id,
                    taken_at=now,
                    claimed_until=None,
                )
            case Submission.BUSY | Submission.NOT_SENT:
                return self._requeued()
            case Submission.REFUSED_HERE if answered:
                return self._requeued()
            case Submission.REFUSED | Submission.REFUSED_HERE:
                told = self._answered(outcome.status, outcome.message)
                if outcome.submission is Submission.REFUSED_HERE:
                    trouble = f"Upstream refused: this deployment's key or balance, nothing was paid ({outcome.message})"
                    told = self._answered(HTTPStatus.BAD_GATEWAY, trouble[:MAX_NOTE])
                return told._failed(
                    ErrorCode.UPSTREAM_REFUSED,
                    outcome.message,
                    now,
                    retention=retention,
                    call_back=answered,
                    claim=None,
                )
            case Submission.AMBIGUOUS:
                return self.mark_unknown()

    def mark_unknown(self) -> Self:
        """Submitting → unknown: whether the vendor took the task is not known, and must not be tried out."""
        self._require(State.SUBMITTING)
        message = (
            f"Outcome unknown: whether the vendor took task {self.task_id} is being watched; do not resubmit"
        )
        told = self.told_unknown or self.answer_status is None
        return self._answered(HTTPStatus.BAD_GATEWAY, message)._to(
            state=State.UNKNOWN, claimed_until=None, told_unknown=told
        )

    def recovered(self, upstream_task_id: str, now: datetime) -> Self:
        """Unknown → watched: the vendor's own word has named the task."""
        self._require(State.UNKNOWN)
        return self._to(state=State.WATCHED, upstream_task_id=upstream_task_id, taken_at=now)

    def missing(self, now: datetime) -> Self:
        """Remember the first of the vendor's 404s."""
        self._require(State.WATCHED)
        return self._to(missing_since=now)

    def found(self) -> Self:
        """Forget the vendor's 404: the task was there again."""
        self._require(State.WATCHED)
        return self._to(missing_since=None)

    def succeeded(self, data: Json, now: datetime, *, retention: timedelta, claim: datetime | None) -> Self:
        """Watched → success, with the vendor's `data`.

        The same write claims the first delivery until `claim`; where that cannot be made at once (None), it is due from now on.
        """
        self._require(State.WATCHED)
        return self._to(state=State.SUCCESS)._ended(
            "success", kept_data(data), now, retention=retention, claim=claim
        )

    def archiving(self, data: Json, now: datetime, *, new_token: Callable[[], str]) -> Self:
        """Watched → archiving: keep the vendor's `data` until its files are copied, or the time for that is up."""
        self._require(State.WATCHED)
        kept = kept_data(data)
        copies = tuple(Copy(n=n, token=new_token()) for n in file_numbers(kept)[:MAX_COPIES])
        return self._to(
            state=State.ARCHIVING,
            result=minified(kept),
            archiving_since=now,
            missing_since=None,
            copies=copies,
        )

    def copying(self, copies: tuple[Copy, ...], *, until: datetime | None) -> Self:
        """Claim the copying until `until`, or give it up (None); remember how far it has come."""
        self._require(State.ARCHIVING)
        return self._to(copies=copies, claimed_until=until)

    def archived(
        self, origin: str | None, now: datetime, *, retention: timedelta, claim: datetime | None
    ) -> Self:
        """Archiving → success, with links at `origin` to what was copied (None: to nothing) and the vendor's to the rest.

        `claim` as in `succeeded`.
        """
        self._require(State.ARCHIVING)
        ended = self._to(state=State.SUCCESS, result=None)
        return ended._ended("success", kept_data(self._linked(origin)), now, retention=retention, claim=claim)

    def failed(
        self, error: ErrorCode, message: str, now: datetime, *, retention: timedelta, claim: datetime | None
    ) -> Self:
        """Queued, watched or unknown → failed; `claim` as in `succeeded`."""
        if error in {ErrorCode.QUEUE_EXPIRED, ErrorCode.CANCELED}:  # both say that nothing was paid
            self._require(State.QUEUED)
        else:
            self._require(State.WATCHED, State.UNKNOWN)
        return self._failed(error, message, now, retention=retention, call_back=True, claim=claim)

    def deferred(self, now: datetime) -> Self:
        """Leave a first delivery whose process died to the schedule of attempts: it is due from now on."""
        if self.callback is not CallbackState.WAITING or not self.state.final:
            raise IllegalTransitionError(f"{self.state}/{self.callback} has nothing to deliver")
        return self._to(claimed_until=None, next_attempt_at=now)

    def claim_delivery(self, *, until: datetime) -> Self:
        """Take the next delivery attempt, until `until`."""
        if self.callback is not CallbackState.WAITING or not self.state.final:
            raise IllegalTransitionError(f"{self.state}/{self.callback} has nothing to deliver")
        return self._to(claimed_until=until)

    def attempted(
        self,
        attempt: Attempt,
        *,
        delivered: bool,
        retry_at: datetime | None,
        now: datetime,
        retention: timedelta,
        soon: bool = False,
        gone: bool = False,
    ) -> Self:
        """Record one attempt: delivered, to be tried again at `retry_at`, or (None) undelivered.

        `soon` and `gone` are what the receiver's answer meant; the schedule goes by them.
        """
        if self.callback is not CallbackState.WAITING or not self.state.final:
            raise IllegalTransitionError(f"{self.state}/{self.callback} takes no attempt")
        recorded = self._to(
            attempts=self.attempts + 1,
            uncounted=self.uncounted + soon,
            answered_gone=self.answered_gone or gone,
            log=(*self.log, attempt)[-MAX_LOG:],
            claimed_until=None,
            next_attempt_at=retry_at,
        )
        if delivered:
            return recorded._to(
                callback=CallbackState.DELIVERED, next_attempt_at=None, expires_at=now + retention
            )
        if retry_at is None:
            return recorded._to(callback=CallbackState.UNDELIVERED, expires_at=now + retention)
        return recorded

    def redelivered(self, at: datetime) -> Self:
        """Put the stored message to work again, through a fresh round of the schedule that begins at `at`."""
        if self.callback is CallbackState.NONE or not self.state.final:
            raise IllegalTransitionError(f"{self.state}/{self.callback} has nothing to deliver again")
        return self._to(
            callback=CallbackState.WAITING,
            asked_again=True,
            attempts_before_round=self.attempts,
            uncounted=0,
            answered_gone=False,
            claimed_until=None,
            next_attempt_at=at,
            expires_at=None,
        )

    def _to(self, **changes: object) -> Self:
        return self.model_copy(update=changes)

    def _require(self, *states: State) -> None:
        if self.state not in states:
            raise IllegalTransitionError(f"{self.task_id} is {self.state}, not {' or '.join(states)}")

    def _answered(self, status: int, message: str | None = None) -> Self:
        """Fix what the submitter is told, for the first answer and every repeat; a queued task has its 200 already."""
        return (
            self
            if self.answer_status is not None
            else self._to(answer_status=int(status), answer_message=message)
        )

    def _requeued(self) -> Self:
        return self._answered(HTTPStatus.OK)._to(state=State.QUEUED, claimed_until=None, submitted_at=None)

    def _failed(
        self,
        error: ErrorCode,
        message: str,
        now: datetime,
        *,
        retention: timedelta,
        call_back: bool,
        claim: datetime | None,
    ) -> Self:
        task, message = self._to(state=State.FAILED, error=error), message[:MAX_NOTE]
        data: Json = {"error": {"code": error, "message": message}}
        return task._ended(message, data, now, retention=retention, call_back=call_back, claim=claim)

    def _ended(
        self,
        message: str,
        data: Json,
        now: datetime,
        *,
        retention: timedelta,
        claim: datetime | None,
        call_back: bool = True,
    ) -> Self:
        waiting = call_back and self.callback_url is not None
        ended = self._to(ended_at=now, missing_since=None)
        return ended._to(
            message=ended._render(message, data),
            callback=CallbackState.WAITING if waiting else CallbackState.NONE,
            claimed_until=claim if waiting else None,
            next_attempt_at=now if waiting and claim is None else None,
            expires_at=None if waiting else now + retention,
        )

    # --- bodies ----------------------------------------------------------------------------------------------------------

    def _linked(self, origin: str | None) -> Json:
        """Give the vendor's result with links to the copies in the place of its own."""
        keys = {
            copy.n: copy.key(self.task_id) for copy in self.copies if copy.archived and origin is not None
        }
        return linked(json.loads(self.result or "{}"), {n: f"{origin}/r/{key}" for n, key in keys.items()})

    def _render(self, message: str, data: Json) -> str:
        """Render the callback's body; the only place that does, called once per task."""
        assert self.ended_at is not None  # noqa: S101  # set by the only caller
        about = {
            "status": self.state,
            "task_id": self.task_id,
            "upstream_task_id": self.upstream_task_id,
            "model_id": self.model,
            "reference": self.reference,
        }
        return rendered(self.event, self.ended_at, message=message, about=about, data=data)
