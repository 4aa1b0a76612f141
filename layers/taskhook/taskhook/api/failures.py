"""The errors that calls end with, as OpenAPI has them.

When each comes, in which words, and whether a repeat is safe.
"""

from taskhook.api import examples, schemas
from taskhook.api.answers import Error
from taskhook.core.limits import MAX_BODY
from taskhook.core.message import Json

_REFUSED = "The vendor refused the request for good, and these are its words; nothing was paid."
# Of each error: when it comes, and the words of one.
_ERRORS = {
    400: (
        "The request is wrong; the message names the field.",
        "Invalid parameters: parameter 'mode' must be 'wan-std' or 'wan-pro'",
    ),
    401: (
        "The token is missing, malformed, wrong or disabled.",
        "Authentication failed: send 'Authorization: Bearer thk_…', a token of this deployment",
    ),
    403: (_REFUSED, "Forbidden: this model is not open to this key"),
    404: ("There is no such path, model, task or result.", "Resource not found: there is no such task"),
    405: (_REFUSED, "Method not allowed"),
    409: (
        (
            "Not now or not ever, and the message says why: the request that this one repeats is in flight, "
            "there is no callback, …"
        ),
        "Conflict: the task has not ended, it is processing; its callback will come by itself",
    ),
    413: (
        f"The body is larger than {MAX_BODY >> 10} KB.",
        f"Invalid parameters: the body is larger than {MAX_BODY} bytes",
    ),
    415: (_REFUSED, "Unsupported Media Type"),
    422: (
        "The Idempotency-Key was used with a different request, or the vendor refused the request.",
        "Invalid parameters: header 'Idempotency-Key' was used before with a different request",
    ),
    429: (
        "As many of your tasks or redeliveries as may wait here wait already, or the API's own throttle.",
        "Too many requests: 1000 of your tasks are queued already; wait until some have ended",
    ),
    500: ("Our fault; the log has the trace.", "Internal error: see the log of the submit function"),
    502: (
        (
            "The vendor refused this deployment and nothing was paid, or the outcome is unknown and watched; "
            "see the message."
        ),
        f"Outcome unknown: whether the vendor took task {examples.TASK_ID} is being watched; do not resubmit",
    ),
    503: (
        (
            "The task table did not answer, and nothing was sent to the vendor; or, of the balance, "
            "the vendor did not."
        ),
        "Service unavailable: the task table did not answer; nothing was sent to the vendor, try again",
    ),
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


def failures(*statuses: int) -> Json:
    """Describe these errors, and the 500 that any call may end with."""
    described: Json = {}
    for status in (*statuses, 500):
        when, message = _ERRORS[status]
        described[str(status)] = {
            "description": when,
            "headers": _REPEATS.get(status, _NO_RETRY),
            "content": {
                "application/json": {
                    "schema": schemas.reference(Error),
                    "example": Error(code=status, message=message).body(),
                }
            },
        }
    return described
