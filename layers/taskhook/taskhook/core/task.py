r"""A task: its states, the only transitions between them, and the bodies rendered from it.

```
              refused for now / not sent
   queued  <-----------------------------  submitting  ---- taken ---->  watched  ---->  success | failed
      |  \------- claimed to be paid ---------->  |                          ^               ^
      |                                           +-- ambiguous --> unknown --+---------------+
      +---- expired, canceled ----------------------------------------------------------------+

   watched  -- success, where results are archived -->  archiving  -- copied, given up, 15 min -->  success

   unknown fails as submission_unknown, where no word of the vendor comes.
```

Every transition returns a new value, stored on condition that no other one was stored in between
(`ports.TaskStore.swap`). A *claim* is a transition too: until then no other invocation may act on the task.
"""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Self

from taskhook.core.message import MAX_NOTE, Json, file_numbers, kept_data, linked, minified, rendered
from taskhook.core.record import (
    Attempt,
    CallbackState,
    Copy,
    ErrorCode,
    State,
    Submission,
    SubmitOutcome,
    TaskRecord,
)

LOST_AGE = timedelta(seconds=60)  # a younger task that the vendor does not know may still appear
LOST_CONFIRMATION = timedelta(seconds=30)  # between the two 404s that prove a task lost
EXPIRY_GRACE = timedelta(hours=48)  # past its deadline a task ends even if no poll gets through
MAX_COPIES = 10  # result files of one task that are archived; no known model has more
MAX_LOG = 20
OUTCOME_UNKNOWN = "Outcome unknown"  # how the message begins by which this 502 is told from others
MAX_EXCERPT = 160  # bytes of an answer kept in the log; a whole entry stays within 256


class IllegalTransitionError(Exception):
    """The task is in a state from which this transition does not exist: a bug, never an outcome."""


class Task(TaskRecord):
    """A task with the transitions that exist: each gives a new value, or raises IllegalTransitionError."""

    def claim_submit(self, now: datetime, *, until: datetime) -> Self:
        """Queued → submitting: the intent to pay, to be stored before the POST."""
        self._require(State.QUEUED)
        return self._to(state=State.SUBMITTING, submitted_at=now, claimed_until=until)

    def submitted(self, outcome: SubmitOutcome, now: datetime, *, retention: timedelta) -> Self:
        """Submitting, or unknown where a late answer settles it → what the vendor's answer means."""
        self._require(State.SUBMITTING, State.UNKNOWN)
        answered = self.answer_status is not None
        match outcome.submission:
            case Submission.TAKEN:
                return self._answered(HTTPStatus.OK)._to(
                    state=State.WATCHED,
                    upstream_task_id=outcome.upstream_task_id,
                    operation=outcome.operation,
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
                    trouble = (
                        f"Upstream refused: this deployment's key or balance, nothing was paid "
                        f"({outcome.message})"
                    )
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
        watched = f"whether the vendor took task {self.task_id} is being watched; do not resubmit"
        told = self.told_unknown or self.answer_status is None
        return self._answered(HTTPStatus.BAD_GATEWAY, f"{OUTCOME_UNKNOWN}: {watched}")._to(
            state=State.UNKNOWN, claimed_until=None, told_unknown=told
        )

    def recovered(self, upstream_task_id: str, now: datetime, *, operation: str | None = None) -> Self:
        """Unknown → watched: the vendor's own word has named the task."""
        self._require(State.UNKNOWN)
        return self._to(
            state=State.WATCHED, upstream_task_id=upstream_task_id, operation=operation, taken_at=now
        )

    def missing(self, now: datetime) -> Self:
        """Remember the first of the vendor's 404s."""
        self._require(State.WATCHED)
        return self._to(missing_since=now)

    def found(self) -> Self:
        """Forget the vendor's 404: the task was there again."""
        self._require(State.WATCHED)
        return self._to(missing_since=None)

    def cancel_asked(self, now: datetime) -> Self:
        """Remember, before the request, that the vendor is asked to cancel; how the task ends, it tells."""
        self._require(State.WATCHED)
        return self._to(canceled_at=now)

    def cancel_refused(self) -> Self:
        """Forget a cancel that the vendor has refused."""
        self._require(State.WATCHED)
        return self._to(canceled_at=None)

    def succeeded(self, data: Json, now: datetime, *, retention: timedelta, claim: datetime | None) -> Self:
        """Watched → success, with the vendor's `data`.

        The same write claims the first delivery until `claim`; where that cannot be made at once (None), it
        is due from now on.
        """
        self._require(State.WATCHED)
        return self._to(state=State.SUCCESS)._ended(
            "success", kept_data(data), now, retention=retention, claim=claim
        )

    def archiving(self, data: Json, now: datetime, *, new_token: Callable[[], str]) -> Self:
        """Watched → archiving: the vendor's `data` is kept until its files are copied, or time is up."""
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
        """Archiving → success, with links at `origin` (None: nowhere) to what was copied, else the vendor's.

        `claim` as in `succeeded`.
        """
        self._require(State.ARCHIVING)
        ended = self._to(state=State.SUCCESS, result=None)
        return ended._ended("success", kept_data(self._linked(origin)), now, retention=retention, claim=claim)

    def failed(
        self,
        error: ErrorCode,
        message: str,
        now: datetime,
        *,
        retention: timedelta,
        claim: datetime | None,
        raw: Json | None = None,
    ) -> Self:
        """Queued, watched or unknown → failed; `raw` is what the vendor said, `claim` as in `succeeded`."""
        if error is ErrorCode.CANCELED and self.canceled_at is not None:
            self._require(State.WATCHED)
        elif error in {ErrorCode.QUEUE_EXPIRED, ErrorCode.CANCELED}:  # both say that nothing was paid
            self._require(State.QUEUED)
        else:
            self._require(State.WATCHED, State.UNKNOWN)
        return self._failed(error, message, now, retention=retention, call_back=True, claim=claim, raw=raw)

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
        """Put the stored message to work again, through a fresh round of the schedule that begins at `at`.

        What waits already is never sent later than it was due.
        """
        if self.callback is CallbackState.NONE or not self.state.final:
            raise IllegalTransitionError(f"{self.state}/{self.callback} has nothing to deliver again")
        if self.callback is CallbackState.WAITING:  # without a time it is due since its claim is over
            at = min(at, self.next_attempt_at or self.claimed_until or at)
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
        """Fix what the submitter is told, for the first answer and every repeat; it never changes."""
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
        raw: Json | None = None,
    ) -> Self:
        task, message = self._to(state=State.FAILED, error=error), message[:MAX_NOTE]
        data: Json = {"error": {"code": error, "message": message}}
        if raw is not None:
            data["raw"] = raw
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

    @property
    def said(self) -> Json:
        """What the callback says of an ended task."""
        said: Json = json.loads(self.message or "{}").get("data", {})
        return said

    @property
    def raw(self) -> Json | None:
        """What the vendor said of an ended task, where its form is not the deployment's own."""
        raw: Json | None = self.said.get("raw")
        return raw

    # --- bodies -----------------------------------------------------------------------------------

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
            "vendor": self.vendor,
            "model_id": self.model,
            "reference": self.reference,
        }
        return rendered(self.event, self.ended_at, message=message, about=about, data=data)
