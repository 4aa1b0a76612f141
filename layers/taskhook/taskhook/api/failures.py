"""The errors that calls end with: when each comes, what to do, its words, and whether a repeat is safe."""

from http import HTTPStatus
from typing import NamedTuple

from taskhook.api import examples, schemas
from taskhook.api.answers import Error
from taskhook.core.limits import MAX_BODY
from taskhook.core.message import Json
from taskhook.core.task import OUTCOME_UNKNOWN


class _Failure(NamedTuple):
    """One kind of answer that is an error; `anchor` is where pages explain it, behind `error-`."""

    anchor: str
    status: int
    answer: str  # as people tell it from others
    when: str
    do: str
    message: str


_UNKNOWN = (
    f"{OUTCOME_UNKNOWN}: whether the vendor took task {examples.TASK_ID} is being watched; do not resubmit"
)
_REFUSED = "The vendor refused the request for good, and the message has its words. Nothing was paid."
_FAILURES = (
    _Failure(
        "400",
        400,
        "400",
        "The request is wrong; the message names the field. Nothing was paid.",
        "Mend it, and send it with a new key.",
        "Invalid parameters: parameter 'mode' must be 'wan-std' or 'wan-pro'",
    ),
    _Failure(
        "401",
        401,
        "401",
        "The token is missing, malformed, wrong or disabled.",
        "Send `Authorization: Bearer thk_…`; the operator gives a new token.",
        "Authentication failed: send 'Authorization: Bearer thk_…', a token of this deployment",
    ),
    _Failure(
        "403",
        403,
        "403",
        "The model is not open to you, or the vendor refused the request. Nothing was paid.",
        "Choose a model of `GET /api/v1/limits`, or ask the operator.",
        "Forbidden: this model is not open to this key",
    ),
    _Failure(
        "404",
        404,
        "404",
        "There is no such path, model, task or result, or it is another caller's task.",
        "Check path and id.",
        "Resource not found: there is no such task",
    ),
    _Failure("405", 405, "405", _REFUSED, "Read the message.", "Method not allowed"),
    _Failure(
        "409",
        409,
        "409",
        "The request that this one repeats is in flight; or what is asked does not fit the task's state.",
        "Where there is `Retry-After`, repeat then with the same key; else the message says why not.",
        "Conflict: the task has not ended, it is processing; its callback will come by itself",
    ),
    _Failure(
        "413",
        413,
        "413",
        f"The body is larger than {MAX_BODY >> 10} KB.",
        "Give files as URLs.",
        f"Invalid parameters: the body is larger than {MAX_BODY} bytes",
    ),
    _Failure("415", 415, "415", _REFUSED, "Read the message.", "Unsupported Media Type"),
    _Failure(
        "422",
        422,
        "422",
        "The `Idempotency-Key` was used with a different request, or the vendor refused the request.",
        "Give each task a key of its own.",
        "Invalid parameters: header 'Idempotency-Key' was used before with a different request",
    ),
    _Failure(
        "429",
        429,
        "429",
        "Too many of your tasks or redeliveries wait here already, or the day's tasks are used up.",
        "Repeat after `Retry-After`; `GET /api/v1/limits` tells what is left.",
        "Too many requests: 1000 of your tasks are queued already; wait until some have ended",
    ),
    _Failure(
        "500",
        500,
        "500",
        "Our fault; the log has the trace.",
        "Repeat once with the same key, and tell the operator.",
        "Internal error: see the log of the submit function",
    ),
    _Failure(
        "502",
        502,
        '502 "refused …", "failed …"',
        "The vendor refused this deployment's key or balance, or told no balance. Nothing was paid.",
        "Tell the operator; repeat later, the same key may be used again.",
        "Upstream refused: this deployment's key or balance",
    ),
    _Failure(
        "502-unknown",
        502,
        f'502 "{OUTCOME_UNKNOWN}"',
        "The vendor's answer was lost; the task that the message names is watched.",
        "Do not submit it again: its callback tells the end.",
        _UNKNOWN,
    ),
    _Failure(
        "503",
        503,
        "503",
        "Task table, secret or vendor did not answer, or the vendor has no key here. Nothing was paid.",
        "Repeat after `Retry-After` with the same key; without that header tell the operator.",
        "Service unavailable: the task table did not answer; nothing was paid, try again",
    ),
)
# What API Gateway says by itself: no operation describes it.
_GATEWAY = {
    "anchor": "error-gateway",
    "answer": "429, 500, 503 without `code`, or no answer",
    "when": "API Gateway's own, or a time-out: the outcome is unknown.",
    "do": "Repeat with the same `Idempotency-Key`: nothing is paid twice.",
}
_LINK = {
    "Link": {
        "description": 'Where this error is explained: `<…/docs#error-…>; rel="help"`.',
        "schema": {"type": "string"},
    }
}
_RETRY_AFTER = {
    "Retry-After": {"description": "Seconds after which a repeat is safe.", "schema": {"type": "integer"}}
}
_NO_RETRY = {
    "x-should-retry": {
        "description": "A repeat would be wrong or useless.",
        "schema": {"type": "string", "const": "false"},
    }
}
# The others are not to be repeated.
_REPEATS = {
    409: _RETRY_AFTER | _NO_RETRY,
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}


def table() -> list[Json]:
    """List every kind of error, each once: its anchor, the answer, when it comes, and what to do."""
    rows = [
        {"anchor": f"error-{one.anchor}", "answer": one.answer, "when": one.when, "do": one.do}
        for one in _FAILURES
    ]
    return [*rows, _GATEWAY]


def help_link(server: str, status: int, message: str) -> str:
    """Give the header `Link` of an error answer: where `/docs` explains it."""
    is_unknown = status == HTTPStatus.BAD_GATEWAY and message.startswith(OUTCOME_UNKNOWN)
    anchor = "502-unknown" if is_unknown else str(int(status))
    return f'<{server}/docs#error-{anchor}>; rel="help"'


def failures(*statuses: int) -> Json:
    """Describe these errors, and the 500 that any call may end with."""
    described: Json = {}
    for status in (*statuses, 500):
        kinds = [one for one in _FAILURES if one.status == status]
        described[str(status)] = {
            "description": " Or: ".join(one.when for one in kinds),
            "headers": _LINK | _REPEATS.get(status, _NO_RETRY),
            "content": {
                "application/json": {
                    "schema": schemas.reference(Error),
                    "example": Error(code=status, message=kinds[-1].message).body(),
                }
            },
        }
    return described
