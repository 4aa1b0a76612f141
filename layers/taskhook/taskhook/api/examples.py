"""Examples for the description of the API, made by the code that makes the real ones."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from taskhook.api.answers import Limits
from taskhook.core.caller import Caller, Credential
from taskhook.core.message import Json
from taskhook.core.models import Model
from taskhook.core.record import Attempt, CallbackState, ErrorCode, State, Submission, SubmitOutcome
from taskhook.core.task import Task
from taskhook.tasks import commands
from taskhook.tasks.query import Looked
from taskhook.tasks.totals import Totals
from taskhook.vendors.modellix import MODELS

SUBMITTED = datetime(2026, 11, 23, 15, 2, 40, 120000, tzinfo=UTC)
ENDED = SUBMITTED + timedelta(seconds=84.4)
LATER = ENDED + timedelta(minutes=5)
TASK_ID = "tk_8sYPZtwvYeZ3gXxYh3nM4A"
URL = "https://you.example.com/hook"
REFERENCE = "order-17"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105  # the one of the standard's own examples
ANY_REQUEST: Json = {"prompt": "A lighthouse in a storm", "image_url": "https://example.com/sea.jpg"}
_NO_TIME = timedelta(0)  # nothing of this is kept


def request(model: Model) -> Json:
    """Give the vendor's own example of a request."""
    return {name: field.examples[0] for name, field in model.request.model_fields.items() if field.examples}


def media(request: Json, origin: str) -> Json:
    """Give a request with media at `origin` in the place of those that exist nowhere."""
    there = {"image": f"{origin}/actor.jpg", "video": f"{origin}/scene.mp4"}
    return request | {
        name: there[name.removesuffix("_url")] for name in request if name.removesuffix("_url") in there
    }


def accepted(model: Model) -> Task:
    """Give a task about to be paid for."""
    return Task(
        task_id=TASK_ID,
        caller="you",
        model=model.slug,
        request=json.dumps(request(model)),
        fingerprint="",
        callback_url=URL,
        reference=REFERENCE,
        accepted_at=SUBMITTED,
        submitted_at=SUBMITTED,
        state=State.SUBMITTING,
        callback=CallbackState.WAITING,
    )


def passed_through() -> Task:
    """Give a task of a model that is not described here."""
    known = accepted(next(iter(MODELS.values())))
    return known.model_copy(update={"model": "kling/kling-v2.6-i2v", "validated": False})


def limits() -> Limits:
    """Give what a token may spend."""
    return Limits(models=["alibaba/*"], per_day=100, left_today=58, until=datetime(2026, 11, 24, tzinfo=UTC))


def succeeded() -> Task:
    """Give a task whose success has been delivered."""
    data: Json = {
        "duration": 83500,
        "result": {"resources": [{"url": "https://example.com/result.mp4", "type": "video"}]},
        "billing": {"amount": "0.2400"},
        "result_expires_at": 1796075999265,
    }
    return _delivered(_watched().succeeded(data, ENDED, retention=_NO_TIME, claim=ENDED))


def failed() -> Task:
    """Give a task whose failure has been delivered."""
    why = "The input image has no human body or multiple human bodies."
    return _delivered(
        _watched().failed(ErrorCode.UPSTREAM_FAILED, why, ENDED, retention=_NO_TIME, claim=ENDED)
    )


def canceled() -> Task:
    """Give a task that was taken back."""
    busy = SubmitOutcome(submission=Submission.BUSY)
    queued = accepted(next(iter(MODELS.values()))).submitted(busy, SUBMITTED, retention=_NO_TIME)
    return queued.failed(ErrorCode.CANCELED, commands.CANCELED, ENDED, retention=_NO_TIME, claim=ENDED)


def totals() -> Totals:
    """Give a count of some tasks."""
    return Totals(
        Looked(None, 58, SUBMITTED),
        accepted=58,
        tasks=Counter({State.SUCCESS: 50, State.FAILED: 3}),
        callbacks=Counter(
            {CallbackState.DELIVERED: 49, CallbackState.WAITING: 7, CallbackState.UNDELIVERED: 1}
        ),
        retrying=2,
        costs={"USD": Decimal("12.0000")},
    )


def you() -> Caller:
    """Give a caller with its secret."""
    secret = Credential(value=SECRET)
    return Caller(caller="you", tokens=(), secrets=(secret,), created_at=SUBMITTED)


def _watched() -> Task:
    taken = SubmitOutcome(submission=Submission.TAKEN, upstream_task_id="task-17c0ffee")
    return accepted(next(iter(MODELS.values()))).submitted(
        taken, SUBMITTED + timedelta(seconds=0.9), retention=_NO_TIME
    )


def _delivered(task: Task) -> Task:
    made = Attempt(at=ENDED, status=200, ms=38, answer="ok")
    return task.attempted(made, delivered=True, retry_at=None, now=ENDED, retention=_NO_TIME)
