"""What people read first, /docs and /llms.txt alike: each fact from the code that keeps it."""

from datetime import timedelta

from taskhook.api import failures
from taskhook.core.limits import (
    MAX_BODY,
    MAX_IDEMPOTENCY_KEY,
    MAX_LISTED,
    MAX_REDELIVERED,
    MAX_REFERENCE,
    MAX_URL,
)
from taskhook.core.message import Json
from taskhook.core.ports import ATTEMPT_TIME
from taskhook.core.record import ErrorCode
from taskhook.core.reply import DeliveryError
from taskhook.core.schedule import GONE_WAIT, MOST_PATIENCE, MOST_SOON, RETRY_JITTER, RETRY_WAITS, SOON_WAIT
from taskhook.vendors import VENDORS

FRESH = timedelta(minutes=5)  # what receivers are told to take, as Standard Webhooks' libraries do

_MINUTE, _HOUR = timedelta(minutes=1), timedelta(hours=1)

# Why a task failed, and what its caller can do.
_TASK_ERRORS = {
    ErrorCode.UPSTREAM_FAILED: (
        "The vendor tried, and reports a failure.",
        "Read its message; a new submit is a new payment.",
    ),
    ErrorCode.UPSTREAM_REFUSED: (
        "The vendor refused the request; nothing was paid.",
        "Mend the request, and submit it as a new task.",
    ),
    ErrorCode.SUBMISSION_UNKNOWN: (
        "The vendor's answer to the paid request was lost, and in 15 min nothing showed a task.",
        "Look into the vendor's own list whether it was paid; then decide.",
    ),
    ErrorCode.QUEUE_EXPIRED: (
        "It waited for the vendor for too long; it was never paid.",
        "Submit it again when the vendor has slots.",
    ),
    ErrorCode.EXPIRED: ("The vendor worked on it for too long.", "Look into the vendor's own list."),
    ErrorCode.LOST: (
        "The vendor does not know the task any more.",
        "Ask the vendor: it was taken, and may be billed.",
    ),
    ErrorCode.CANCELED: ("It was canceled.", "Nothing."),
}

# What a receiver's answer brings about.
ANSWERS = (
    ("2xx", f"Delivered, where it comes within {ATTEMPT_TIME.total_seconds():.0f} s."),
    (
        "409, 425",
        f"Again in {SOON_WAIT.total_seconds():.0f} s, up to {MOST_SOON} times, beside the schedule.",
    ),
    ("410", f"Once more in {GONE_WAIT // _HOUR} h; a second 410 is the end."),
    ("429, 502, 504", "By the schedule; meanwhile your other callbacks to this host wait too."),
    (
        "`Retry-After`, with any failure",
        f"Then: not before the schedule, nor after twice its wait or {MOST_PATIENCE // _MINUTE} min.",
    ),
    ("Anything else, a redirect, or nothing", "By the schedule."),
)


def facts() -> Json:
    """Give what the OpenAPI document cannot say in its own words: errors, retries and limits."""
    return {
        "vendors": vendors(),
        "errors": failures.table(),
        "task_errors": [
            {"anchor": f"error-{code}", "code": str(code), "when": when, "do": do}
            for code, (when, do) in _TASK_ERRORS.items()
        ],
        "delivery_errors": [
            {"anchor": f"error-{word}", "code": str(word), "do": word.advice} for word in DeliveryError
        ],
        "retries": {
            "waits": waits(),
            "jitter_percent": round(RETRY_JITTER * 100),
            "total_hours": sum(RETRY_WAITS, timedelta(0)) // _HOUR,
            "answer_within_s": round(ATTEMPT_TIME.total_seconds()),
            "fresh_s": round(FRESH.total_seconds()),
            "answers": [{"answer": answer, "means": means} for answer, means in ANSWERS],
        },
        "limits": {
            "body_kb": MAX_BODY >> 10,
            "idempotency_key": MAX_IDEMPOTENCY_KEY,
            "callback_url": MAX_URL,
            "reference": MAX_REFERENCE,
            "listed": MAX_LISTED,
            "redelivered": MAX_REDELIVERED,
        },
    }


def vendors() -> list[Json]:
    """Say where each vendor's tasks are submitted here, with an example that has `{image}` and `{video}`.

    And whether it can be asked to cancel a task that it has.
    """
    return [
        {
            "vendor": vendor.name,
            "name": vendor.title,
            "submit": vendor.example.way,
            "path": vendor.example.path,
            "headers": dict(vendor.example.headers),
            "body": vendor.example.body,
            "cancels": vendor.cancel("") is not None,
        }
        for vendor in VENDORS.values()
    ]


def waits() -> list[str]:
    """Say the wait before each attempt in words, such as `at once`, `5 s`, `5 min` or `2 h`."""
    return [_said(wait) for wait in RETRY_WAITS]


def _said(wait: timedelta) -> str:
    for unit, name in ((_HOUR, "h"), (_MINUTE, "min"), (timedelta(seconds=1), "s")):
        if wait and wait % unit == timedelta(0):
            return f"{wait // unit} {name}"
    return "at once"
