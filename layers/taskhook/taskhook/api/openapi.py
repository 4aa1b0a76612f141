"""The API described in OpenAPI 3.1, from the request models that validate it and, for examples, from the code that answers.

The vendor's `/hooks/…` is left out on purpose: its path carries a token, and it is nobody else's business.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel

from taskhook.api import answers
from taskhook.core import signature
from taskhook.core.message import Json
from taskhook.core.models import Model
from taskhook.core.ports import DeliveryError, Reply
from taskhook.core.task import Attempt, CallbackState, ErrorCode, State, Submission, SubmitOutcome, Task
from taskhook.tasks import commands
from taskhook.vendors.modellix import MODELS

_DESCRIPTION = """\
Submit as to the vendor, plus a callback URL; the result comes as a signed webhook.

Every answer is `{"code": 0, "message": "success", "data": …}`, every error `{"code": <HTTP status>, "message": "…"}`. \
An error carries `x-should-retry: false` where a repeat would be wrong or useless, and `Retry-After` where it is safe.

An answer without `code` (`{"message": "…"}` with status 429, 500 or 503) is API Gateway's own, and so is none at all: \
the outcome is unknown. Send the same request again with the same `Idempotency-Key`; without one it might be paid twice."""
_TAGS = {
    "Submit": "One operation for each model; the older path of the vendor, with `/async`, is the same.",
    "Tasks": "Your own tasks, for as long as this deployment keeps them. Another caller's task does not exist for you.",
    "Callbacks": "Your signing secrets, and a receiver tried out.",
    "Deployment": "In the vendor's own form, so that its clients work here.",
    "Events": "What is posted to a task's callback URL. Every attempt carries the same `webhook-id` and the same bytes.",
}
_SUBMITTED = datetime(2026, 11, 23, 15, 2, 40, 120000, tzinfo=UTC)
_ENDED = _SUBMITTED + timedelta(seconds=84.4)
_URL = "https://you.example.com/hook"
_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105  # the one of the standard's own examples

_NO_STATUS = f"Why no status came, and what to do. {'. '.join(f'`{error}`: {error.advice}' for error in DeliveryError)}."
_REFUSED = "The vendor refused the request for good, and these are its words; nothing was paid."

# Of each error: when it comes, and the words of one.
_ERRORS = {
    "400": (
        "The request is wrong; the message names the field.",
        "Invalid parameters: parameter 'mode' must be 'wan-std' or 'wan-pro'",
    ),
    "401": (
        "The token is missing, malformed, wrong or disabled.",
        "Authentication failed: send 'Authorization: Bearer thk_…', a token of this deployment",
    ),
    "403": (_REFUSED, "Forbidden: this model is not open to this key"),
    "404": ("There is no such path, model, task or result.", "Resource not found: there is no such task"),
    "405": (_REFUSED, "Method not allowed"),
    "409": (
        "Not now or not ever, and the message says why: the request that this one repeats is in flight, there is no callback, …",
        "Conflict: the task has not ended, it is processing; its callback will come by itself",
    ),
    "413": ("The body is larger than 64 KB.", "Invalid parameters: the body is larger than 65536 bytes"),
    "415": (_REFUSED, "Unsupported Media Type"),
    "422": (
        "The Idempotency-Key was used with a different request, or the vendor refused the request.",
        "Invalid parameters: header 'Idempotency-Key' was used before with a different request",
    ),
    "429": (
        "As many of your tasks or redeliveries as may wait here wait already, or the API's own throttle.",
        "Too many requests: 1000 of your tasks are queued already; wait until some have ended",
    ),
    "500": ("Our fault; the log has the trace.", "Internal error: see the log of the submit function"),
    "502": (
        "The vendor refused this deployment and nothing was paid, or the outcome is unknown and watched; see the message.",
        "Outcome unknown: whether the vendor took task tk_8sYPZtwvYeZ3gXxYh3nM4A is being watched; do not resubmit",
    ),
    "503": (
        "The task table did not answer, and nothing was sent to the vendor; or, of the balance, the vendor did not.",
        "Service unavailable: the task table did not answer; nothing was sent to the vendor, try again",
    ),
}


def document(server: str) -> Json:
    """Describe every route; `server` is the origin that callers use."""
    paths: dict[str, Any] = {}
    for model in MODELS.values():
        for suffix in ("", "/async"):
            paths[f"/api/v1/{model.slug}{suffix}"] = {"post": _submit(model, suffix, server)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "taskhook", "version": "1", "description": _DESCRIPTION},
        "servers": [{"url": server}],
        "security": [{"token": []}],
        "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
        "paths": paths | _tasks() | _results() | _callbacks() | _deployment(),
        "webhooks": {task.event: {"post": _webhook(task)} for task in (_succeeded(), _failed())},
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "`thk_<caller>_<43 characters>`"}},
            "schemas": _schemas(),
        },
    }


# --- operations -----------------------------------------------------------------------------------------------------------


def _submit(model: Model, suffix: str, server: str) -> Json:
    name = "submit_" + model.slug.replace("/", "_").replace(".", "_").replace("-", "_") + suffix.replace("/", "_")
    operation = _operation(
        name,
        "Submit" if not suffix else "Deployment",
        model.description,
        answer="SubmitAnswer",
        data=answers.submitted_data(_accepted(model), server),
        errors=["400", "401", "403", "404", "405", "409", "413", "415", "422", "429", "502", "503"],
    )
    operation["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {
                "schema": _request_schema(model.request),
                "example": _request(model) | {"callback_url": _URL, "reference": "order-17"},
            }
        },
    }
    operation["parameters"] = [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "The same key with the same request gets the first answer again; nothing is paid twice.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
            "example": "order-17",
        },
        {
            "name": "X-Webhook-URL",
            "in": "header",
            "description": "The same as `callback_url`, as the vendor has it.",
            "schema": {"type": "string", "format": "uri", "maxLength": 2048},
            "example": _URL,
        },
        {
            "name": "X-Stainless-Retry-Count",
            "in": "header",
            "description": "As official SDKs send it. From 1 on, and without a key, this is the request again that the same "
            "caller sent within two minutes; 0 is another one, however alike.",
            "schema": {"type": "string", "pattern": "^[0-9]{1,3}$"},
            "example": "0",
        },
    ]
    return operation


def _tasks() -> dict[str, Any]:
    of_task = [
        {"name": "task_id", "in": "path", "required": True, "schema": {"type": "string"}, "example": "tk_8sYPZtwvYeZ3gXxYh3nM4A"}
    ]
    waits = {
        "name": "wait",
        "in": "query",
        "description": "Answer as soon as the task has ended, or as it stands after 13 s: ask again then.",
        "schema": {"type": "string", "enum": ["true", "false"], "default": "false"},
    }
    listed = _operation(
        "listTasks",
        "Tasks",
        "List your tasks, newest first. A rare filter may give few or none and a `next_cursor`: go on with it.",
        answer="TaskList",
        data={"tasks": [answers.task_answer(_succeeded())["data"]], "next_cursor": None},
        errors=["400", "401", "503"],
    )
    filters: dict[str, dict[str, Any]] = {
        "status": {"type": "string", "enum": ["pending", "processing", "success", "failed"]},
        "callback": {"type": "string", "enum": list(CallbackState), "description": "The state of the callback."},
        "since": {"type": "string", "format": "date-time", "description": "Accepted then or later."},
        "until": {"type": "string", "format": "date-time", "description": "Accepted before."},
        "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
        "cursor": {"type": "string", "description": "The `next_cursor` of the answer before."},
    }
    listed["parameters"] = [{"name": name, "in": "query", "schema": schema} for name, schema in filters.items()]
    operations = {
        "": ("get", "showTask", "Show one task: the vendor's answer, and what became of its callback.", _succeeded(), ("400",)),
        "/cancel": (
            "post",
            "cancelTask",
            "Take back a task that is still queued here. It was never paid; its callback says `canceled`.",
            _canceled(),
            ("409",),
        ),
        "/redeliver": (
            "post",
            "redeliverTask",
            "Deliver a callback again: same id, same bytes, fresh signature, a fresh round of the schedule.",
            _succeeded().redelivered(_ENDED + timedelta(minutes=5)),
            ("409",),
        ),
    }
    shown = {}
    for suffix, (method, name, summary, task, more) in operations.items():
        data = answers.task_answer(task)["data"]
        operation = _operation(name, "Tasks", summary, answer="TaskAnswer", data=data, errors=["401", "404", *more, "503"])
        parameters = of_task if suffix else [*of_task, waits]
        shown[f"/api/v1/tasks/{{task_id}}{suffix}"] = {method: operation | {"parameters": parameters}}
    return {"/api/v1/tasks": {"get": listed}, **shown, "/api/v1/tasks/redeliver": {"post": _redeliver()}}


def _results() -> Json:
    answers = _operation(
        "followLink",
        "Tasks",
        "Lead to an archived result; the link is its own token, and works for as long as the file is kept.",
        answer="Error",
        data={},
        errors=["404", "503"],
    )
    location = {"description": "Good for some minutes.", "schema": {"type": "string", "format": "uri"}}
    found = {"302": {"description": "Where the result is right now.", "headers": {"Location": location}}}
    errors = {status: answer for status, answer in answers["responses"].items() if status != "200"}
    parts = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "example": example}
        for name, example in (("task_id", "tk_8sYPZtwvYeZ3gXxYh3nM4A"), ("n", "0"), ("token", "9f86d081884c7d659a2feaa0c55ad015"))
    ]
    followed = answers | {"responses": found | errors, "parameters": parts, "security": []}
    return {"/r/{task_id}/{n}/{token}": {"get": followed}}


def _redeliver() -> Json:
    operation = _operation(
        "redeliverTasks",
        "Tasks",
        "Deliver many callbacks again, newest first, 60 a minute; go on with `cursor` while `next_cursor` is not null.",
        answer="Redelivered",
        data=answers.redelivery_answer(commands.Redelivery(count=3, last_attempt_at=_ENDED + timedelta(minutes=5), cursor=None)),
        errors=["400", "401", "413", "429", "503"],
    )
    when = {"type": "string", "format": "date-time", "description": "By time of acceptance."}
    fields: dict[str, dict[str, Any]] = {
        "state": {"type": "string", "enum": [CallbackState.UNDELIVERED, CallbackState.DELIVERED], "default": "undelivered"},
        "since": when,
        "until": when,
        "limit": {"type": "integer", "minimum": 1, "maximum": 500, "default": 100},
        "cursor": {"type": "string"},
    }
    return operation | _json_body(fields, {"state": "undelivered", "since": answers.iso(_SUBMITTED), "limit": 500})


def _callbacks() -> dict[str, Any]:
    samples = [
        answers.tried_answer(task, Reply(status=200, elapsed=timedelta(milliseconds=38), answer="ok"), delivered=True)
        for task in (_succeeded(), _failed())
    ]
    tried = _operation(
        "tryReceiver",
        "Callbacks",
        "Send a signed sample of each event to a receiver, and tell what it said.",
        answer="Samples",
        data={"samples": samples},
        errors=["400", "401", "413", "429", "503"],
    )
    url = {"type": "string", "format": "uri", "maxLength": 2048, "description": "Without it the caller's default."}
    secrets = _operation(
        "showSecrets",
        "Callbacks",
        "Give the secrets that sign your callbacks now; while one is being replaced, both sign.",
        answer="Secrets",
        data={"secrets": [{"secret": _SECRET, "expires_at": None}]},
        errors=["401", "503"],
    )
    return {
        "/api/v1/callbacks/secret": {"get": secrets},
        "/api/v1/callbacks/test": {"post": tried | _json_body({"callback_url": url}, {"callback_url": _URL})},
    }


def _deployment() -> dict[str, Any]:
    key = _operation(
        "validateKey",
        "Deployment",
        "Tell whether the token is good; never a 401.",
        answer="KeyAnswer",
        data={"is_valid": True},
        errors=["503"],
    )
    key["security"] = [{"token": []}, {}]
    balance = _operation(
        "showBalance",
        "Deployment",
        "Tell what is left, in USD, of the account at the vendor that pays for all callers; as of at most a minute ago.",
        answer="Balance",
        data={"balance": 12.3456},
        errors=["401", "502", "503"],
    )
    models = _operation(
        "listModels",
        "Deployment",
        "List the known models; this answer has no envelope.",
        answer="Models",
        data={},
        errors=["401", "503"],
    )
    models["responses"]["200"]["content"]["application/json"]["example"] = answers.models_answer()
    paths = {"/api/v1/apikey/validate": key, "/api/v1/team/balance": balance, "/api/v1/models": models}
    return {path: {"get": operation} for path, operation in paths.items()}


def _operation(name: str, tag: str, summary: str, *, answer: str, data: Json, errors: list[str]) -> Json:
    done = {"schema": {"$ref": f"#/components/schemas/{answer}"}, "example": {"code": 0, "message": "success", "data": data}}
    responses: dict[str, Any] = {"200": {"description": "Done.", "content": {"application/json": done}}}
    for status in [*errors, "500"]:
        description, message = _ERRORS[status]
        failed = {"schema": {"$ref": "#/components/schemas/Error"}, "example": {"code": int(status), "message": message}}
        responses[status] = {"description": description, "content": {"application/json": failed}}
        responses[status]["headers"] = {
            name: header for name, header in _REPEATS.items() if name not in _REPEATED.get(status, {"Retry-After"})
        }
    return {"operationId": name, "tags": [tag], "summary": summary, "responses": responses}


_REPEATS: Json = {
    "Retry-After": {"description": "Seconds after which a repeat is safe.", "schema": {"type": "integer"}},
    "x-should-retry": {"description": "A repeat would be wrong or useless.", "schema": {"type": "string", "const": "false"}},
}
_REPEATED: dict[str, set[str]] = {"409": set(), "429": {"x-should-retry"}, "503": {"x-should-retry"}}  # which one does not come


def _json_body(fields: dict[str, dict[str, Any]], example: Json) -> Json:
    schema = {"type": "object", "properties": fields, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


def _webhook(task: Task) -> Json:
    body = (task.message or "").encode()
    standard = signature.headers([_SECRET], task.webhook_id, _ENDED, body)
    sent = {
        "webhook-id": ("The message's id, the same on every attempt: deduplicate on it.", standard["webhook-id"]),
        "webhook-timestamp": ("Unix seconds of this attempt.", standard["webhook-timestamp"]),
        "webhook-signature": (
            "`v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`, one for each valid secret, separated by a space.",
            standard["webhook-signature"],
        ),
        "X-Modellix-Event": ("As `type`.", task.event),
        "X-Modellix-Task-ID": ("As `data.task_id`.", task.task_id),
        "X-Modellix-Delivery-ID": ("As `webhook-id`.", task.webhook_id),
        "X-Modellix-Retry-Count": ("How many attempts there were before this one.", "0"),
    }
    answers = {
        "2XX": "Delivered. Anything else, or nothing within 15 s, is tried again by the schedule, for 75 h.",
        "409": "Soon: in 10 s, up to five times, not counted. 425 is the same.",
        "410": "Gone: once more in an hour; a second 410 is the end.",
        "429": "Too fast: nothing of yours goes to this host for a while, and `Retry-After` is obeyed. So with 502 and 504.",
    }
    how = "succeeded" if task.state is State.SUCCESS else "failed"
    return {
        "operationId": f"task_{how}",
        "tags": ["Events"],
        "summary": f"A task has {how}.",
        "security": [],
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": about, "schema": {"type": "string"}, "example": example}
            for name, (about, example) in sent.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": f"#/components/schemas/Task{how.title()}"}, "example": json.loads(body)}
            },
        },
        "responses": {status: {"description": description} for status, description in answers.items()},
    }


# --- examples: made by the code that makes the real ones ------------------------------------------------------------------


def _request(model: Model) -> Json:
    return {name: field.examples[0] for name, field in model.request.model_fields.items() if field.examples}


def _accepted(model: Model) -> Task:
    return Task(
        task_id="tk_8sYPZtwvYeZ3gXxYh3nM4A",
        caller="you",
        model=model.slug,
        request=json.dumps(_request(model)),
        fingerprint="",
        callback_url=_URL,
        reference="order-17",
        accepted_at=_SUBMITTED,
        submitted_at=_SUBMITTED,
        state=State.SUBMITTING,
        callback=CallbackState.WAITING,
    )


def _watched() -> Task:
    taken = SubmitOutcome(submission=Submission.TAKEN, upstream_task_id="task-17c0ffee")
    return _accepted(next(iter(MODELS.values()))).submitted(taken, _SUBMITTED + timedelta(seconds=0.9), retention=timedelta(0))


def _delivered(task: Task) -> Task:
    made = Attempt(at=_ENDED, status=200, ms=38, answer="ok")
    return task.attempted(made, delivered=True, retry_at=None, now=_ENDED, retention=timedelta(0))


def _succeeded() -> Task:
    data: Json = {
        "duration": 83500,
        "result": {"resources": [{"url": "https://example.com/result.mp4", "type": "video"}]},
        "billing": {"amount": "0.2400"},
        "result_expires_at": 1796075999265,
    }
    return _delivered(_watched().succeeded(data, _ENDED, retention=timedelta(0), claim=_ENDED))


def _failed() -> Task:
    why = "The input image has no human body or multiple human bodies."
    return _delivered(_watched().failed(ErrorCode.UPSTREAM_FAILED, why, _ENDED, retention=timedelta(0), claim=_ENDED))


def _canceled() -> Task:
    busy = SubmitOutcome(submission=Submission.BUSY)
    queued = _accepted(next(iter(MODELS.values()))).submitted(busy, _SUBMITTED, retention=timedelta(0))
    return queued.failed(ErrorCode.CANCELED, commands.CANCELED, _ENDED, retention=timedelta(0), claim=_ENDED)


# --- schemas --------------------------------------------------------------------------------------------------------------


def _request_schema(request: type[BaseModel]) -> Json:
    schema = request.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    schema["properties"] |= {
        "callback_url": {
            "type": ["string", "null"],
            "format": "uri",
            "maxLength": 2048,
            "description": "Where the signed result is posted; without it the caller's default, or none.",
        },
        "reference": {"type": ["string", "null"], "maxLength": 200, "description": "Comes back in answers and callback."},
    }
    return schema


def _schemas() -> Json:
    requests = {
        definition: schema
        for model in MODELS.values()
        for definition, schema in model.request.model_json_schema().get("$defs", {}).items()
    }
    text = {"type": "string"}
    moment = {"type": "string", "format": "date-time"}
    maybe = {"type": ["string", "null"], "format": "date-time"}
    status = {"type": "string", "enum": ["pending", "processing", "success", "failed"]}
    get_result = _object(["method", "url"], method=text, url=text)
    submitted = _object(
        ["status", "task_id", "model_id", "get_result"], status=status, task_id=text, model_id=text, get_result=get_result
    )
    said = {
        "status": {"type": "integer", "description": "The receiver's."},
        "error": {"type": "string", "enum": list(DeliveryError), "description": _NO_STATUS},
        "ms": {"type": "integer", "description": "How long it took."},
        "answer": {"type": "string", "description": "Where a redirect leads (`-> URL`, without its query), then what was said."},
    }
    sample = _object(
        ["type", "webhook_id", "delivered", "ms", "answer"], type=text, webhook_id=text, delivered={"type": "boolean"}, **said
    )
    secret = _object(["secret", "expires_at"], secret=text, expires_at=maybe | {"description": "null: for good."})
    model = _object(["slug", "type", "description"], slug=text, type=text, description=text)
    cursor = {"type": ["string", "null"], "description": "null: there is no more."}
    return requests | {
        "Error": _object(["code", "message"], code={"type": "integer", "description": "The HTTP status."}, message=text),
        "SubmitAnswer": _envelope(submitted),
        "Task": _task(),
        "TaskAnswer": _envelope({"$ref": "#/components/schemas/Task"}),
        "TaskList": _envelope(
            _object(
                ["tasks", "next_cursor"],
                tasks={"type": "array", "items": {"$ref": "#/components/schemas/Task"}},
                next_cursor=cursor,
            )
        ),
        "Balance": _envelope(_object(["balance"], balance={"type": "number"})),
        "KeyAnswer": _envelope(_object(["is_valid"], is_valid={"type": "boolean"})),
        "Attempt": _object(["at", "ms", "answer"], at=moment, next_at=moment, **said),
        "Redelivered": _envelope(
            _object(
                ["count", "last_attempt_at", "next_cursor"],
                count={"type": "integer"},
                last_attempt_at=maybe | {"description": "When the last of them is due; null: there is none."},
                next_cursor=cursor,
            )
        ),
        "Samples": _envelope(_object(["samples"], samples={"type": "array", "items": sample})),
        "Secrets": _envelope(_object(["secrets"], secrets={"type": "array", "items": secret})),
        "Models": _object(["models"], models={"type": "array", "items": model}),
        "TaskSucceeded": _event(State.SUCCESS, ["result"], result=_RESULT),
        "TaskFailed": _event(State.FAILED, ["error"], error=_failure()),
    }


_VENDORS: Json = {"additionalProperties": True}  # whatever else the vendor says is passed on
_RESULT: Json = {
    "type": "object",
    "description": "The vendor's.",
    "properties": {
        "resources": {
            "type": "array",
            "items": {"type": "object", "properties": {"url": {"type": "string"}, "type": {"type": "string"}}} | _VENDORS,
        }
    },
} | _VENDORS


def _failure() -> Json:
    return _object(["code", "message"], code={"type": "string", "enum": list(ErrorCode)}, message={"type": "string"})


def _task() -> Json:
    text = {"type": "string"}
    task = _object(
        ["status", "task_id", "model_id", "stage", "callback", "created_at"],
        status={
            "type": "string",
            "enum": ["pending", "processing", "success", "failed"],
            "description": "`pending`: the vendor does not have the task yet; `processing`: it has.",
        },
        task_id=text,
        model_id=text,
        upstream_task_id=text | {"description": "The vendor's own id."},
        reference=text | {"description": "Yours."},
        unchecked={"type": "object", "description": "Why an input's media could not be checked.", "additionalProperties": text},
        stage={
            "type": "string",
            "enum": list(State),
            "description": "Where it stands here. `queued`: waits for a place at the vendor, and can be canceled; "
            "`rescue`: whether the vendor took it is not known, and being watched.",
        },
        created_at={"type": "integer", "description": "When it was accepted. Unix milliseconds, as all four."},
        submitted_at={"type": "integer", "description": "When the paid request went out."},
        taken_at={"type": "integer", "description": "When the vendor was known to have it."},
        ended_at={"type": "integer", "description": "When its end was known."},
        result=_RESULT,
        duration={"description": "The vendor's: how long it took, in milliseconds."},
        billing={"type": "object", "description": "The vendor's."},
        result_expires_at={"description": "Until when the vendor keeps the result, in its own form."},
        truncated={"type": "boolean", "description": "The vendor's answer was too large to be kept whole."},
        error=_failure(),
        callback=_object(
            ["state", "attempts", "next_attempt_at", "log"],
            state={"type": "string", "enum": list(CallbackState)},
            attempts={"type": "integer", "description": "All that were ever made; `log` has the last 20."},
            next_attempt_at={"type": ["string", "null"], "format": "date-time"},
            log={"type": "array", "items": {"$ref": "#/components/schemas/Attempt"}},
        ),
        callback_url=text | {"description": "Where the callback goes."},
        request={"type": "object", "description": "What the vendor was sent."},
    )
    return task | _VENDORS


def _event(state: State, required: list[str], **more: Any) -> Json:
    text = {"type": "string"}
    event = "prediction.task.succeeded" if state is State.SUCCESS else "prediction.task.failed"
    data = _object(
        ["status", "task_id", "model_id", *required],
        status={"type": "string", "const": state},
        task_id=text,
        upstream_task_id=text,
        model_id=text,
        reference=text,
        **more,
    )
    if state is State.SUCCESS:
        data |= _VENDORS
    return _object(
        ["type", "timestamp", "code", "message", "data"],
        type={"type": "string", "const": event},
        timestamp={"type": "string", "format": "date-time", "description": "When the task ended."},
        code={"type": "integer", "const": 0},
        message=text,
        data=data,
    )


def _envelope(data: Json) -> Json:
    return _object(["code", "message", "data"], code={"type": "integer", "const": 0}, message={"type": "string"}, data=data)


def _object(required: list[str], **properties: Any) -> Json:
    return {"type": "object", "required": required, "properties": properties}
