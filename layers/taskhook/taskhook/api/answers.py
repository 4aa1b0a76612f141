"""The answers of the API: each is one of these models, and OpenAPI's schemas follow from them.

Over 400 lines, for the models name each other.

A field with a default is left out where it was not given. What vendors say, and what earlier versions have
stored, is passed on as it is: `SkipValidation` describes it, and refuses nothing.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, SerializeAsAny, SkipValidation

from taskhook.core import task as stored
from taskhook.core.caller import Caller, Credential
from taskhook.core.message import Json
from taskhook.core.models import Model
from taskhook.core.record import CallbackState, ErrorCode, Moment, State
from taskhook.core.reply import DeliveryError
from taskhook.delivery.samples import TestResult
from taskhook.tasks import totals as stored_totals
from taskhook.tasks.commands import Redelivery
from taskhook.tasks.query import STATUSES, Listing, Status

_NO_STATUS = (
    f"Why no status came, and what to do. "
    f"{'. '.join(f'`{error}`: {error.advice}' for error in DeliveryError)}."
)


def iso(moment: datetime) -> str:
    """Write a moment as answers do."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Time = Annotated[datetime, PlainSerializer(iso), Field(json_schema_extra={"format": "date-time"})]
Cursor = Annotated[str | None, Field(description="null: there is no more.")]
ReceiversStatus = Annotated[int | None, Field(description="The receiver's.")]
WhyNoStatus = Annotated[SkipValidation[DeliveryError] | None, Field(description=_NO_STATUS)]
Took = Annotated[int, Field(description="How long it took.")]
Said = Annotated[
    str, Field(description="Where a redirect leads (`-> URL`, without its query), then what was said.")
]


class Answer(BaseModel):
    """What a call is answered, or a part of that."""

    model_config = ConfigDict(frozen=True)

    def body(self) -> Json:
        """Give it as it goes over the wire."""
        return self.model_dump(exclude_unset=True, warnings=False)


class Success(Answer):
    """The envelope of every answer but errors and the list of models."""

    code: Literal[0]
    message: str
    data: SerializeAsAny[Answer]


class Error(Answer):
    """Why a call has failed."""

    code: int = Field(description="The HTTP status.")
    message: str


class Nothing(Answer):
    """There is nothing to say."""


# --- tasks ----------------------------------------------------------------------------------------


class GetResult(Answer):
    """Where to ask for the result."""

    method: str
    url: str


class Submitted(Answer):
    """A task that was accepted, in the vendor's form."""

    status: Status
    task_id: str
    model_id: str
    validated: bool = Field(default=True, description="false: the vendor alone knows what its model takes.")
    get_result: GetResult


class Resource(Answer):
    """A file of a result."""

    model_config = ConfigDict(extra="allow")

    url: str | None = None
    type: str | None = None


class Result(Answer):
    """The vendor's."""

    model_config = ConfigDict(extra="allow")

    resources: list[Resource] | None = None


class Failure(Answer):
    """Why a task has failed."""

    code: ErrorCode
    message: str


class Attempt(Answer):
    """One attempt to deliver a callback."""

    at: Time
    status: ReceiversStatus = None
    error: WhyNoStatus = None
    ms: Took
    answer: Said
    next_at: Time | None = None


class Callback(Answer):
    """What became of a task's callback."""

    state: CallbackState = Field(
        description="`waiting`: `pending` (not due yet, or not tried yet) or `retrying` (the last attempt "
        "failed, another one follows), as filters and totals tell them apart; `undelivered`: the schedule is "
        "through."
    )
    attempts: int = Field(description=f"All that were ever made; `log` has the last {stored.MAX_LOG}.")
    next_attempt_at: Time | None
    log: list[Attempt]


class Cost(Answer):
    """What the vendor says that something has cost."""

    amount: str = Field(description="A decimal number.")
    currency: str = Field(description="`USD`, `credits`, or as the vendor says.")


class Task(Answer):
    """A task as its vendor answers, with what only taskhook knows.

    Whatever else the vendor says is there too.
    """

    model_config = ConfigDict(extra="allow")

    status: Status
    task_id: str
    upstream_task_id: str | None = Field(default=None, description="The vendor's own id.")
    vendor: str = Field(description="Whose task it is.")
    model_id: str
    validated: bool = Field(default=True, description="false: the vendor alone knows what its model takes.")
    reference: str | None = Field(default=None, description="Yours.")
    result: SkipValidation[Result] | None = None
    duration: Any = Field(default=None, description="The vendor's: how long it took, in milliseconds.")
    billing: SkipValidation[Json] | None = Field(default=None, description="The vendor's.")
    cost: Cost | None = Field(default=None, description="What `billing` says, where that is an amount.")
    result_expires_at: Any = Field(
        default=None, description="Until when the vendor keeps the result, in its own form."
    )
    truncated: SkipValidation[bool] | None = Field(
        default=None, description="The vendor's answer was too large to be kept whole."
    )
    error: SkipValidation[Failure] | None = None
    callback_url: str | None = Field(default=None, description="Where the callback goes.")
    unchecked: dict[str, str] | None = Field(
        default=None, description="Why an input's media could not be checked."
    )
    callback: Callback
    created_at: Moment = Field(description="When it was accepted. Unix milliseconds, as all four.")
    submitted_at: Moment | None = Field(default=None, description="When the paid request went out.")
    taken_at: Moment | None = Field(default=None, description="When the vendor was known to have it.")
    ended_at: Moment | None = Field(default=None, description="When its end was known.")
    stage: State = Field(
        description="Where it stands here. `queued`: waits for a slot at the vendor, and can be canceled; "
        "`unknown`: whether the vendor took it is not known, and being watched.",
    )
    request: Json | None = Field(default=None, description="What the vendor was sent.")


class LookedAt(Answer):
    """How far the tasks were looked through: by most filters there is no index."""

    tasks: int = Field(description="How many were looked at, the newest first.")
    back_to: Time | None = Field(description="When the oldest of them was accepted; null: there was none.")


class TaskList(Answer):
    """A page of tasks, newest first."""

    tasks: list[Task]
    next_cursor: Cursor
    looked_at: LookedAt | None = Field(
        default=None, description="Where there may be more: it is what a filter was held against so far."
    )


class Totals(Answer):
    """How many of the newest tasks stand where."""

    accepted: int = Field(description="All of them.")
    running: int = Field(description="Not ended.")
    succeeded: int
    failed: int
    delivered: int = Field(description="Callbacks that were delivered,")
    pending: int = Field(description="that are not due yet, or were not tried yet,")
    retrying: int = Field(description="whose last attempt failed and another one follows,")
    exhausted: int = Field(description="and that ended undelivered.")
    callback_success: float | None = Field(
        description="`delivered` over all that were tried, 0 to 1; null: none was."
    )
    costs: list[Cost] = Field(description="What vendors say that they cost, one sum for each currency.")
    looked_at: LookedAt
    next_cursor: Annotated[str | None, Field(description="null: all of the time were counted.")]


class Message(Answer):
    """A callback as its next attempt would send it."""

    method: Literal["POST"]
    url: str
    headers: dict[str, str] = Field(
        description="As on every attempt but for the signature and its time, which are of now, and "
        "`x-modellix-retry-count`, which counts the attempts before. What HTTP itself needs is left out."
    )
    payload: str = Field(description="The body, the very bytes that every attempt sends, as text in UTF-8.")


class Redelivered(Answer):
    """How many messages go out again: they are spread by the caller's rate."""

    count: int
    last_attempt_at: Time | None = Field(description="When the last of them is due; null: there is none.")
    next_cursor: Cursor


# --- callbacks and deployment ---------------------------------------------------------------------


class Secret(Answer):
    """A secret that signs callbacks."""

    secret: str
    expires_at: Time | None = Field(description="null: for good.")


class Secrets(Answer):
    """The secrets that sign now."""

    secrets: list[Secret]


class Sample(Answer):
    """What a receiver said to a sample, in the words of the attempt log."""

    type: str
    webhook_id: str
    delivered: bool
    status: ReceiversStatus = None
    error: WhyNoStatus = None
    answer: Said
    ms: Took


class Samples(Answer):
    """What a receiver said to one sample of each event."""

    samples: list[Sample]


class KeyValidity(Answer):
    """Whether a token is good."""

    is_valid: bool


class Balance(Answer):
    """What is left of the account at the vendor."""

    balance: float


class Limits(Answer):
    """What a token may spend."""

    models: list[str] = Field(description="Patterns of the models that it may use, `*` for all.")
    per_day: int | None = Field(description="Tasks a day; null: any number.")
    left_today: int | None
    until: Time | None = Field(description="When the next day begins, in UTC.")


class KnownModel(Answer):
    """A model that can be asked for."""

    slug: str
    type: str
    description: str


class Models(Answer):
    """The known models."""

    models: list[KnownModel]


# --- made from what the use cases give ------------------------------------------------------------


def success(data: Answer, message: str = "success") -> Success:
    """Put an answer into its envelope."""
    return Success(code=0, message=message, data=data)


def submitted(task: stored.Task, origin: str) -> Submitted:
    """Say of an accepted task what its submitter is told; `origin` is the one that callers use."""
    url = f"{origin}/api/v1/tasks/{task.task_id}"
    got = GetResult(method="GET", url=url)
    told = {"status": Status.PENDING, "task_id": task.task_id, "model_id": task.model, "get_result": got}
    return Submitted.model_validate(told if task.validated else told | {"validated": False})


def task_answer(task: stored.Task) -> Success:
    """Render the vendor's task answer; the message is the callback's where there is one."""
    said = _said(task)
    return success(_shown(task, said), said.get("message", "success"))


def task_list(listing: Listing) -> TaskList:
    """Give a page of tasks, each as it is answered alone."""
    page: Json = {
        "tasks": [_shown(task, _said(task)) for task in listing.tasks],
        "next_cursor": listing.cursor,
    }
    if listing.cursor is not None:
        page["looked_at"] = LookedAt(tasks=listing.looked_at, back_to=listing.looked_back_to)
    return TaskList.model_validate(page)


def totals(counted: stored_totals.Totals) -> Totals:
    """Tell how many tasks stand where."""
    return Totals(
        accepted=counted.accepted,
        running=counted.running,
        succeeded=counted.tasks[State.SUCCESS],
        failed=counted.tasks[State.FAILED],
        delivered=counted.callbacks[CallbackState.DELIVERED],
        pending=counted.callbacks[CallbackState.WAITING] - counted.retrying,
        retrying=counted.retrying,
        exhausted=counted.callbacks[CallbackState.UNDELIVERED],
        callback_success=counted.callback_success,
        costs=[Cost(amount=f"{amount:f}", currency=name) for name, amount in sorted(counted.costs.items())],
        looked_at=LookedAt(tasks=counted.looked.at, back_to=counted.looked.back_to),
        next_cursor=counted.looked.cursor,
    )


def message(task: stored.Task, headers: dict[str, str]) -> Message:
    """Show a callback as it is sent."""
    return Message(method="POST", url=task.callback_url or "", headers=headers, payload=task.message or "")


def _said(task: stored.Task) -> Json:
    said: Json = json.loads(task.message or "{}")
    return said


def _shown(task: stored.Task, said: Json) -> Task:
    """Show a task with what its message says; of a name that is ours, what the vendor says is left out."""
    ours: Json = {
        "status": STATUSES[task.state],
        "task_id": task.task_id,
        "upstream_task_id": task.upstream_task_id,
        "vendor": task.vendor,
        "validated": None if task.validated else False,
        "model_id": task.model,
        "reference": task.reference,
        "callback_url": task.callback_url,
        "unchecked": task.unchecked or None,
        "callback": Callback(
            state=task.callback,
            attempts=task.attempts,
            next_attempt_at=task.next_attempt_at,
            log=[Attempt.model_validate(_given(dict(attempt))) for attempt in task.log],
        ),
        "created_at": task.accepted_at,
        "submitted_at": task.submitted_at,
        "taken_at": task.taken_at,
        "ended_at": task.ended_at,
        "stage": task.state,
        "request": json.loads(task.request) if task.request is not None else None,
        "cost": _cost(task, said.get("data", {})),
    }
    theirs = {name: value for name, value in said.get("data", {}).items() if name not in ours}
    return Task.model_validate(theirs | _given(ours))


def _cost(task: stored.Task, data: Json) -> Cost | None:
    cost = stored_totals.cost_of(task, data)
    return None if cost is None else Cost(amount=f"{cost.amount:f}", currency=cost.currency)


def redelivered(done: Redelivery) -> Redelivered:
    """Tell how many messages go out again, and when the last of them does."""
    return Redelivered(count=done.count, last_attempt_at=done.last_attempt_at, next_cursor=done.cursor)


def secrets(valid: Sequence[Credential]) -> Secrets:
    """List secrets in the clear."""
    return Secrets(secrets=[Secret(secret=one.value, expires_at=one.expires_at) for one in valid])


def samples(results: Iterable[TestResult]) -> Samples:
    """Tell what a receiver said to each sample."""
    return Samples(samples=[_sample(one) for one in results])


def _sample(result: TestResult) -> Sample:
    sent, reply = result.sample, result.reply
    said = _given({"status": reply.status, "error": reply.error})
    ms = round(reply.elapsed / timedelta(milliseconds=1))
    told = {
        "type": sent.event,
        "webhook_id": sent.webhook_id,
        "delivered": result.delivered,
        "answer": reply.answer,
        "ms": ms,
    }
    return Sample.model_validate(told | said)


def limits(caller: Caller, models: Sequence[str], *, left: int | None, until: datetime | None) -> Limits:
    """Tell what a caller may spend; its own patterns narrow down the deployment's."""
    return Limits(models=list(caller.models or models), per_day=caller.per_day, left_today=left, until=until)


def models(known: Iterable[Model]) -> Models:
    """List models; the vendor's answer has no envelope here."""
    return Models(
        models=[KnownModel(slug=one.slug, type=one.kind, description=one.description) for one in known]
    )


def _given(fields: Json) -> Json:
    return {name: value for name, value in fields.items() if value is not None}
