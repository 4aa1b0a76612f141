"""The API described in OpenAPI 3.1.

Schemas and limits from the models of requests and answers, examples from `examples`. Over 400 lines, for it
is one document.

The vendor's `/hooks/…` is left out on purpose: its path carries a token, and it is the vendor's business
alone.
"""

import json
import re
from datetime import timedelta
from functools import cache
from typing import Any

from pydantic import BaseModel

from taskhook.api import answers, events, examples, guide, schemas
from taskhook.api.answers import Answer
from taskhook.api.failures import failures
from taskhook.core import signature
from taskhook.core.caller import Credential
from taskhook.core.limits import (
    MAX_IDEMPOTENCY_KEY,
    MAX_LOOKED_AT,
    MAX_LOOKED_MB,
    MAX_REDELIVERED,
    MAX_REFERENCE,
    MAX_URL,
    TASK_ID,
)
from taskhook.core.message import Json, minified
from taskhook.core.models import Model
from taskhook.core.record import State
from taskhook.core.reply import Reply
from taskhook.core.task import Task
from taskhook.delivery.attempt import signed_headers
from taskhook.delivery.samples import ReceiverTest, TestResult
from taskhook.submit.request import RETRY_COUNT, OwnFields
from taskhook.submit.takeover import Takeover
from taskhook.tasks.commands import Redelivery
from taskhook.tasks.query import Filter, Listing, RedeliveryFilter, ShowQuery, TotalsFilter
from taskhook.vendors.modellix import MODELS, SLUG_PART

_DESCRIPTION = """\
Send the vendor's own request plus a callback URL; the result comes as a signed webhook.

Every answer is `{"code": 0, "message": "success", "data": …}`, \
every error `{"code": <HTTP status>, "message": "…"}`. \
An error carries `x-should-retry: false` where a repeat would be wrong or useless, \
and `Retry-After` where it is safe; its header `Link` leads to what it means and what to do.

An answer without `code` (`{"message": "…"}` with status 429, 500 or 503) is API Gateway's own, \
and so is none at all: the outcome is unknown. Send the same request again with the same `Idempotency-Key`; \
without one it might be paid twice."""
_TAGS = {
    "Submit": "One operation for each model; the older path of the vendor, with `/async`, is the same.",
    "Tasks": "Your own tasks, for as long as they are kept here. Another caller's do not exist for you.",
    "Callbacks": "Your signing secrets, and a receiver under test.",
    "Deployment": "In the vendor's own form, so that its clients work here.",
    "Events": "What is posted to a task's callback URL. Every attempt has the same `webhook-id` and bytes.",
}

# --- the document ---------------------------------------------------------------------------------

_ANSWERS = (
    *(answers.Error, answers.Submitted, answers.Task, answers.TaskList, answers.Redelivered, answers.Secrets),
    *(answers.Totals, answers.Message),
    *(
        answers.Samples,
        answers.KeyValidity,
        answers.Balance,
        answers.Models,
        answers.Limits,
        events.TaskSucceeded,
        events.TaskFailed,
    ),
)


@cache
def text(server: str, media: str = "") -> str:
    """Write the document, once in the life of a process."""
    return minified(document(server, media))


def document(server: str, media: str = "") -> Json:
    """Describe every route; `server` is the origin that callers use.

    `media` is where media for examples are, in an emulated deployment; none exist where it is empty.
    """
    submits = {
        f"/api/v1/{model.slug if model is not None else '{provider}/{model}'}{suffix}": {
            "post": _submit(model, suffix, server, media)
        }
        for model in (*MODELS.values(), None)
        for suffix in ("", "/async")
    }
    ended: dict[type[Answer], Task] = {
        events.TaskSucceeded: examples.succeeded(),
        events.TaskFailed: examples.failed(),
    }
    token = {"type": "http", "scheme": "bearer", "description": "`thk_<caller>_<43 characters>`"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "taskhook", "version": "1", "description": _DESCRIPTION}
        | ({"x-example-media": media} if media else {}),
        "servers": [{"url": server}],
        "security": [{"token": []}],
        "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
        "paths": submits | _tasks() | _many_and_links() | _watch() | _callbacks() | _deployment(),
        "webhooks": {task.event: {"post": _webhook(body, task)} for body, task in ended.items()},
        "x-guide": guide.facts(),
        "components": {
            "securitySchemes": {"token": token},
            "schemas": schemas.components(_ANSWERS, [Filter, *(model.request for model in MODELS.values())]),
        },
    }


def _operation(name: str, tag: str, summary: str, responses: Json, **more: Any) -> Json:
    return {"operationId": name, "tags": [tag], "summary": summary, "responses": responses, **more}


def _done(answer: Answer) -> Json:
    """Describe an answer by one; what its envelope holds is named for itself."""
    schema = schemas.reference(type(answer))
    if isinstance(answer, answers.Success):
        envelope = schemas.inline(answers.Success, "serialization")
        schema = envelope | {
            "properties": envelope["properties"] | {"data": schemas.reference(type(answer.data))}
        }
    return {"200": {"description": "Done.", **_content(schema, answer.body())}}


def _body(schema: Json, example: Json) -> Json:
    return {"required": True, **_content(schema, example)}


def _content(schema: Json, example: Json) -> Json:
    return {"content": {"application/json": {"schema": schema, "example": example}}}


def _query(model: type[BaseModel]) -> list[Json]:
    # What a query does not say it leaves out: there is no null.
    properties = schemas.inline(model, "serialization")["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]


def _in_path(**parts: tuple[str, Json]) -> list[Json]:
    return [
        {"name": name, "in": "path", "required": True, "schema": schema, "example": example}
        for name, (example, schema) in parts.items()
    ]


# --- operations -----------------------------------------------------------------------------------

_TASK_ID = (examples.TASK_ID, {"type": "string", "pattern": f"^{TASK_ID}$"})


_ANY_MODEL = (
    "Any other model of the vendor. What it takes is not known here: the body goes to the vendor as it is, "
    'and the task says `"validated": false`.'
)
_NAME: Json = {"type": "string", "pattern": f"^{SLUG_PART}$"}
_ANY_SLUG = {"provider": ("kling", _NAME), "model": ("kling-v2.6-i2v", _NAME)}


def _submit(model: Model | None, suffix: str, server: str, media: str) -> Json:
    """Describe the submit of a model, or (None) of any that is not described here."""
    own, of_ours = schemas.inline(OwnFields)["properties"], {"callback_url": examples.URL}
    if model is None:
        name, about, taken = "any_model", _ANY_MODEL, examples.passed_through()
        schema: Json = {"type": "object", "properties": own, "additionalProperties": True}
        sent = examples.ANY_REQUEST
    else:
        name, about, taken = model.slug, model.description, examples.accepted(model)
        schema = schemas.inline(model.request)
        schema = schema | {"properties": schema["properties"] | own}
        sent, of_ours = examples.request(model), of_ours | {"reference": examples.REFERENCE}
    example = (examples.media(sent, media) if media else sent) | of_ours
    return _operation(
        "submit_" + re.sub(r"\W", "_", name + suffix),
        "Submit" if not suffix else "Deployment",
        about,
        _done(answers.success(answers.submitted(taken, server)))
        | failures(400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 502, 503),
        requestBody=_body(schema, example),
        parameters=[
            *(_in_path(**_ANY_SLUG) if model is None else ()),
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The same key with the same request gets the first answer again, unpaid.",
                "schema": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_IDEMPOTENCY_KEY,
                    "pattern": "^[ -~]+$",
                },
                "example": "order-17",
            },
            {
                "name": "X-Webhook-URL",
                "in": "header",
                "description": "The same as `callback_url`, as the vendor has it.",
                "schema": {"type": "string", "format": "uri", "maxLength": MAX_URL},
                "example": examples.URL,
            },
            {
                "name": "X-Reference",
                "in": "header",
                "description": "The same as `reference`.",
                "schema": {"type": "string", "maxLength": MAX_REFERENCE},
                "example": examples.REFERENCE,
            },
            {
                "name": "X-Stainless-Retry-Count",
                "in": "header",
                "description": "As official SDKs send it. From 1 on, and without a key, this is the request "
                "again that the same caller sent within two minutes; 0 is another one, however alike.",
                "schema": {"type": "string", "pattern": f"^{RETRY_COUNT}$"},
                "example": "0",
            },
        ],
    )


def _tasks() -> Json:
    return _task_lists() | _one_task()


def _task_lists() -> Json:
    shown = examples.succeeded()
    return {
        "/api/v1/tasks": {
            "get": _operation(
                "listTasks",
                "Tasks",
                "List your tasks, newest first. A rare filter may give few or none and a `next_cursor`: go "
                f"on with it. A call looks at {MAX_LOOKED_AT} tasks at most, fewer where they are large "
                f"({MAX_LOOKED_MB} MB) or slow to read, and says how far it looked.",
                _done(
                    answers.success(
                        answers.task_list(Listing([shown], shown.created_key, 1, shown.accepted_at))
                    )
                )
                | failures(400, 401, 503),
                parameters=_query(Filter),
            )
        },
        "/api/v1/tasks/totals": {
            "get": _operation(
                "showTotals",
                "Tasks",
                f"Count your newest tasks, {MAX_LOOKED_AT} at most and no more than {MAX_LOOKED_MB} MB; "
                "nothing is counted before you ask. Go on with `next_cursor` for older ones; add them up.",
                _done(answers.success(answers.totals(examples.totals()))) | failures(400, 401, 503),
                parameters=_query(TotalsFilter),
            )
        },
    }


def _one_task() -> Json:
    shown, again = examples.succeeded(), examples.succeeded().redelivered(examples.LATER)
    return {
        "/api/v1/tasks/{task_id}": {
            "get": _operation(
                "showTask",
                "Tasks",
                "Show one task: the vendor's answer, and what became of its callback.",
                _done(answers.task_answer(shown)) | failures(401, 404, 400, 503),
                parameters=_in_path(task_id=_TASK_ID) + _query(ShowQuery),
            )
        },
        "/api/v1/tasks/{task_id}/callback": {
            "get": _operation(
                "showCallback",
                "Tasks",
                "Show the callback of an ended task as it is sent, signed anew.",
                _done(
                    answers.success(
                        answers.message(shown, signed_headers(shown, examples.you(), examples.LATER))
                    )
                )
                | failures(401, 404, 409, 503),
                parameters=_in_path(task_id=_TASK_ID),
            )
        },
        "/api/v1/tasks/{task_id}/cancel": {
            "post": _operation(
                "cancelTask",
                "Tasks",
                "Take back a task that is queued here, which is never paid then, or ask the vendor that has "
                "it, where it can cancel; else 409. Its callback says `canceled`.",
                _done(answers.task_answer(examples.canceled())) | failures(401, 404, 409, 503),
                parameters=_in_path(task_id=_TASK_ID),
            )
        },
        "/api/v1/tasks/{task_id}/redeliver": {
            "post": _operation(
                "redeliverTask",
                "Tasks",
                "Deliver a callback again: same id, same bytes, fresh signature, a fresh round of the "
                "schedule.",
                _done(answers.task_answer(again)) | failures(401, 404, 409, 503),
                parameters=_in_path(task_id=_TASK_ID),
            )
        },
    }


def _many_and_links() -> Json:
    many = Redelivery(count=3, last_attempt_at=examples.LATER, cursor=None)
    wanted = {"state": "undelivered", "since": answers.iso(examples.SUBMITTED), "limit": MAX_REDELIVERED}
    return {
        "/api/v1/tasks/redeliver": {
            "post": _operation(
                "redeliverTasks",
                "Tasks",
                "Deliver many callbacks again, newest first, 60 a minute; go on with `cursor` while "
                "`next_cursor` is not null.",
                _done(answers.success(answers.redelivered(many))) | failures(400, 401, 413, 429, 503),
                requestBody=_body(schemas.inline(RedeliveryFilter), wanted),
            )
        },
        "/r/{task_id}/{n}/{token}": {
            "get": _operation(
                "followLink",
                "Tasks",
                "Lead to an archived result; the link is its own token, and works for as long as the file is "
                "kept.",
                {"302": {"description": "Where the result is right now.", "headers": {"Location": _LOCATION}}}
                | failures(404, 503),
                parameters=_in_path(
                    task_id=_TASK_ID,
                    n=("0", {"type": "string"}),
                    token=("9f86d081884c7d659a2feaa0c55ad015", {"type": "string"}),
                ),
                security=[],
            )
        },
    }


_LOCATION = {"description": "Good for some minutes.", "schema": {"type": "string", "format": "uri"}}


def _watch() -> Json:
    example = {"vendor": "modellix", "task_id": "task-17c0ffee", "callback_url": examples.URL}
    return {
        "/api/v1/watch": {
            "post": _operation(
                "watchTask",
                "Tasks",
                "Take over a task that was submitted elsewhere with this deployment's key of the vendor. "
                "It is never paid for; the same task again is the first one.",
                _done(answers.task_answer(examples.succeeded())) | failures(400, 401, 404, 413, 502, 503),
                requestBody=_body(schemas.inline(Takeover), example),
            )
        },
        "/api/v1/limits": {
            "get": _operation(
                "showLimits",
                "Deployment",
                "Tell what the token may spend.",
                _done(answers.success(examples.limits())) | failures(401, 503),
            )
        },
    }


def _callbacks() -> Json:
    secret = Credential(value=examples.SECRET)
    reply = Reply(status=200, elapsed=timedelta(milliseconds=38), answer="ok")
    results = [TestResult(task, reply) for task in (examples.succeeded(), examples.failed())]
    return {
        "/api/v1/callbacks/secret": {
            "get": _operation(
                "showSecrets",
                "Callbacks",
                "Give the secrets that sign your callbacks now; while one is being replaced, both sign.",
                _done(answers.success(answers.secrets([secret]))) | failures(401, 503),
            )
        },
        "/api/v1/callbacks/test": {
            "post": _operation(
                "tryReceiver",
                "Callbacks",
                "Send a signed sample of each event to a receiver, and tell what it said.",
                _done(answers.success(answers.samples(results))) | failures(400, 401, 413, 429, 503),
                requestBody=_body(schemas.inline(ReceiverTest), {"callback_url": examples.URL}),
            )
        },
    }


def _deployment() -> Json:
    return {
        "/api/v1/apikey/validate": {
            "get": _operation(
                "validateKey",
                "Deployment",
                "Tell whether the token is good; never a 401.",
                _done(answers.success(answers.KeyValidity(is_valid=True))) | failures(503),
                security=[{"token": []}, {}],
            )
        },
        "/api/v1/team/balance": {
            "get": _operation(
                "showBalance",
                "Deployment",
                "Tell what is left, in USD, of the account at the vendor that pays for all callers; as of at "
                "most a minute ago.",
                _done(answers.success(answers.Balance(balance=12.3456))) | failures(401, 502, 503),
            )
        },
        "/api/v1/models": {
            "get": _operation(
                "listModels",
                "Deployment",
                "List the known models; this answer has no envelope.",
                _done(answers.models(MODELS.values())) | failures(401, 503),
            )
        },
    }


def _webhook(body: type[Answer], task: Task) -> Json:
    message = (task.message or "").encode()
    standard = signature.headers([examples.SECRET], task.webhook_id, examples.ENDED, message)
    sent = {
        "webhook-id": (
            "The message's id, the same on every attempt: deduplicate on it.",
            standard["webhook-id"],
        ),
        "webhook-timestamp": ("Unix seconds of this attempt.", standard["webhook-timestamp"]),
        "webhook-signature": (
            (
                "`v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`, one for each valid secret, "
                "separated by a space."
            ),
            standard["webhook-signature"],
        ),
        "X-Modellix-Event": ("As `type`.", task.event),
        "X-Modellix-Task-ID": ("As `data.task_id`.", task.task_id),
        "X-Modellix-Delivery-ID": ("As `webhook-id`.", task.webhook_id),
        "X-Modellix-Retry-Count": ("How many attempts there were before this one.", "0"),
    }
    meanings = {
        "2XX": "Delivered. Anything else, or nothing within 15 s, is tried again by the schedule, for 75 h.",
        "409": "Soon: in 10 s, up to five times, not counted. 425 is the same.",
        "410": "Gone: once more in an hour; a second 410 is the end.",
        "429": "Too fast: this host gets none of yours for a while; `Retry-After` is obeyed. So 502, 504.",
    }
    how = "succeeded" if task.state is State.SUCCESS else "failed"
    return _operation(
        f"task_{how}",
        "Events",
        f"A task has {how}.",
        {status: {"description": meaning} for status, meaning in meanings.items()},
        security=[],
        parameters=[
            {
                "name": name,
                "in": "header",
                "required": True,
                "description": about,
                "schema": {"type": "string"},
                "example": example,
            }
            for name, (about, example) in sent.items()
        ],
        requestBody=_body(schemas.reference(body), json.loads(message)),
    )
