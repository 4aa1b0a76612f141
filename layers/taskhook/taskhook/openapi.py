"""The API described in OpenAPI 3.1, from the same request models that validate it."""

from typing import Any

from pydantic import BaseModel

from taskhook.models import MODELS, Model
from taskhook.task import CallbackState, ErrorCode

_STATUS_TEXT = {
    "400": "The request is wrong; the message names the field.",
    "401": "The token is missing, malformed, wrong or disabled.",
    "404": "There is no such path, model, task or result.",
    "409": "Not now or not ever, and the message says why: the first request with this key is in flight, there is no callback, …",
    "413": "The body is larger than 64 KB.",
    "422": "The Idempotency-Key was used with a different request, or the vendor refused the request.",
    "429": "Too many requests.",
    "502": "The vendor refused this deployment and nothing was paid, or the outcome is unknown and watched; see the message.",
    "503": "The task table did not answer; nothing was sent to the vendor.",
}


def document(server: str) -> dict[str, Any]:
    """Describe every route; `server` is the origin that callers use."""
    paths: dict[str, Any] = {}
    for model in MODELS.values():
        for suffix in ("", "/async"):
            paths[f"/api/v1/{model.slug}{suffix}"] = {"post": _submit(model, suffix)}
    paths |= {
        "/api/v1/tasks": {"get": _list()},
        "/api/v1/tasks/{task_id}": {"get": _of_task("showTask", "Show one task.", ["401", "404", "503"])},
        "/api/v1/tasks/{task_id}/cancel": {
            "post": _of_task("cancelTask", "Take back a task that is still queued here.", ["401", "404", "409", "503"])
        },
        "/api/v1/tasks/{task_id}/redeliver": {
            "post": _of_task("redeliverTask", "Deliver a callback again: same id, same bytes.", ["401", "404", "409", "503"])
        },
        "/api/v1/tasks/redeliver": {"post": _redeliver()},
        "/api/v1/callbacks/secret": {
            "get": _operation(
                "showSecrets",
                "Give the secrets that sign your callbacks.",
                {"$ref": "#/components/schemas/Secrets"},
                ["401", "503"],
            )
        },
        "/api/v1/callbacks/test": {"post": _try_out()},
        "/r/{task_id}/{n}/{token}": {"get": _follow()},
        "/api/v1/apikey/validate": {
            "get": _operation("validateKey", "Tell whether the token is good.", {"$ref": "#/components/schemas/KeyAnswer"}, ["503"])
        },
        "/api/v1/models": {
            "get": _operation("listModels", "List the known models.", {"$ref": "#/components/schemas/Models"}, ["401", "503"])
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "taskhook",
            "version": "1",
            "description": "Submit as to the vendor, plus a callback URL; the result comes as a signed webhook.",
        },
        "servers": [{"url": server}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "`thk_<caller>_<43 characters>`"}},
            "schemas": _schemas(),
        },
    }


def _submit(model: Model, suffix: str) -> dict[str, Any]:
    name = "submit_" + model.slug.replace("/", "_").replace(".", "_").replace("-", "_") + suffix.replace("/", "_")
    operation = _operation(
        name,
        model.description,
        {"$ref": "#/components/schemas/SubmitAnswer"},
        ["400", "401", "404", "409", "413", "422", "429", "502", "503"],
    )
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _request_schema(model.request)}}}
    operation["parameters"] = [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "The same key with the same request gets the first answer again; nothing is paid twice.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
        },
        {
            "name": "X-Webhook-URL",
            "in": "header",
            "description": "The same as `callback_url`, as the vendor has it.",
            "schema": {"type": "string", "format": "uri", "maxLength": 2048},
        },
    ]
    return operation


def _request_schema(request: type[BaseModel]) -> dict[str, Any]:
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


def _of_task(name: str, summary: str, errors: list[str]) -> dict[str, Any]:
    operation = _operation(name, summary, {"$ref": "#/components/schemas/TaskAnswer"}, errors)
    operation["parameters"] = [{"name": "task_id", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation


def _follow() -> dict[str, Any]:
    operation = _operation("followLink", "Lead to an archived result; the link is its own token.", {}, ["404", "503"])
    operation["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in ("task_id", "n", "token")
    ]
    location = {"description": "For some minutes.", "schema": {"type": "string", "format": "uri"}}
    del operation["responses"]["200"]
    operation["responses"]["302"] = {"description": "Where the result is right now.", "headers": {"Location": location}}
    return operation | {"security": []}


def _redeliver() -> dict[str, Any]:
    operation = _operation(
        "redeliverTasks", "Deliver many callbacks again.", {"$ref": "#/components/schemas/Redelivered"}, ["400", "401", "503"]
    )
    when = {"type": "string", "format": "date-time", "description": "By time of acceptance."}
    fields: dict[str, dict[str, Any]] = {
        "state": {"type": "string", "enum": [CallbackState.UNDELIVERED, CallbackState.DELIVERED], "default": "undelivered"},
        "since": when,
        "until": when,
        "limit": {"type": "integer", "minimum": 1, "maximum": 500, "default": 100},
        "cursor": {"type": "string"},
    }
    return operation | _json_body(fields)


def _try_out() -> dict[str, Any]:
    operation = _operation(
        "tryReceiver", "Send a signed sample of each event.", {"$ref": "#/components/schemas/Samples"}, ["400", "401", "503"]
    )
    url = {"type": "string", "format": "uri", "maxLength": 2048, "description": "Without it the caller's default."}
    return operation | _json_body({"callback_url": url})


def _json_body(fields: dict[str, dict[str, Any]]) -> dict[str, Any]:
    schema = {"type": "object", "properties": fields, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _list() -> dict[str, Any]:
    operation = _operation(
        "listTasks", "List the caller's tasks, newest first.", {"$ref": "#/components/schemas/TaskList"}, ["400", "401", "503"]
    )
    filters: dict[str, dict[str, Any]] = {
        "status": {"type": "string", "enum": ["pending", "processing", "success", "failed"]},
        "callback": {"type": "string", "enum": list(CallbackState)},
        "since": {"type": "string", "format": "date-time"},
        "until": {"type": "string", "format": "date-time"},
        "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
        "cursor": {"type": "string"},
    }
    operation["parameters"] = [{"name": name, "in": "query", "schema": schema} for name, schema in filters.items()]
    return operation


def _operation(name: str, summary: str, answer: dict[str, Any], errors: list[str]) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": "Done.", "content": {"application/json": {"schema": answer}}}}
    for status in [*errors, "500"]:
        responses[status] = {
            "description": _STATUS_TEXT.get(status, "Our fault; the log has the trace."),
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
    return {"operationId": name, "summary": summary, "responses": responses}


def _schemas() -> dict[str, Any]:
    requests = {
        definition: schema
        for model in MODELS.values()
        for definition, schema in model.request.model_json_schema().get("$defs", {}).items()
    }
    text = {"type": "string"}
    status = {"type": "string", "enum": ["pending", "processing", "success", "failed"]}
    task = _object(
        ["status", "task_id", "model_id", "callback", "created_at"],
        status=status,
        task_id=text,
        model_id=text,
        upstream_task_id=text,
        reference=text,
        unchecked={"type": "object", "description": "Why an input's media could not be checked.", "additionalProperties": text},
        created_at={"type": "integer", "description": "Unix milliseconds."},
        result={"type": "object", "description": "The vendor's, with `resources[]`; an archived one has `source_url` too."},
        error=_object(["code", "message"], code={"type": "string", "enum": list(ErrorCode)}, message=text),
        callback=_object(
            ["state", "attempts", "next_attempt_at", "log"],
            state={"type": "string", "enum": list(CallbackState)},
            attempts={"type": "integer"},
            next_attempt_at={"type": ["string", "null"], "format": "date-time"},
            log={"type": "array", "items": {"$ref": "#/components/schemas/Attempt"}},
        ),
    )
    get_result = _object(["method", "url"], method=text, url=text)
    submitted = _object(
        ["status", "task_id", "model_id", "get_result"], status=status, task_id=text, model_id=text, get_result=get_result
    )
    attempt = {
        "status": {"type": "integer", "description": "The receiver's."},
        "error": {"type": "string", "description": "What kept a status from coming."},
        "ms": {"type": "integer"},
        "answer": {"type": "string", "description": "The first bytes, control characters escaped."},
    }
    moment = {"type": "string", "format": "date-time"}
    sample = _object(
        ["type", "webhook_id", "delivered", "ms", "answer"], type=text, webhook_id=text, delivered={"type": "boolean"}, **attempt
    )
    secret = _object(["secret", "expires_at"], secret=text, expires_at={"type": ["string", "null"], "format": "date-time"})
    model = _object(["slug", "type", "description"], slug=text, type=text, description=text)
    return requests | {
        "Error": _object(["code", "message"], code={"type": "integer"}, message=text),
        "SubmitAnswer": _envelope(submitted),
        "Task": task,
        "TaskAnswer": _envelope({"$ref": "#/components/schemas/Task"}),
        "TaskList": _envelope(
            _object(
                ["tasks", "next_cursor"],
                tasks={"type": "array", "items": {"$ref": "#/components/schemas/Task"}},
                next_cursor={"type": ["string", "null"]},
            )
        ),
        "KeyAnswer": _envelope(_object(["is_valid"], is_valid={"type": "boolean"})),
        "Attempt": _object(["at", "ms", "answer"], at=moment, next_at=moment, **attempt),
        "Redelivered": _envelope(
            _object(["count", "next_cursor"], count={"type": "integer"}, next_cursor={"type": ["string", "null"]})
        ),
        "Samples": _envelope(_object(["samples"], samples={"type": "array", "items": sample})),
        "Secrets": _envelope(_object(["secrets"], secrets={"type": "array", "items": secret})),
        "Models": _object(["models"], models={"type": "array", "items": model}),
    }


def _envelope(data: dict[str, Any]) -> dict[str, Any]:
    return _object(["code", "message", "data"], code={"type": "integer", "const": 0}, message={"type": "string"}, data=data)


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}
