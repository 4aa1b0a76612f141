"""Ark (BytePlus ModelArk, and Volcengine in China): its paths, and what its answers mean.

It calls a webhook unsigned, at each change of a task; its tasks are polled instead.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from taskhook.core import parameters
from taskhook.core.errors import RejectedError
from taskhook.core.message import MAX_NOTE, Json, finite, kept_data
from taskhook.core.models import Model
from taskhook.core.record import ErrorCode, State, Submission, SubmitOutcome
from taskhook.core.schedule import typical_minimum
from taskhook.core.task import Task
from taskhook.core.vendor import (
    IMAGE,
    NOT_THIS_TASK,
    VENDORS_CODE,
    Action,
    Example,
    HttpRequest,
    Listing,
    PaidRequest,
    PollKind,
    PollOutcome,
    Route,
    file_kind,
    is_canceled,
    kind_of,
    model_named,
    outcome_of,
    submission_of,
)

LINKS_LIVE = timedelta(hours=24)
_BELOW = "/api/v3/"
_TASKS = f"{_BELOW}contents/generations/tasks"
_TASK = re.compile(rf"{_TASKS}/([^/]+)")
_FILES = {"video_url": "video", "last_frame_url": "image", "file_url": "file"}  # of `content`
_OVERDUE = "AccountOverdueError"  # a 403 that no request can mend
_STATES = {
    State.QUEUED: "queued",
    State.SUBMITTING: "queued",
    State.UNKNOWN: "queued",
    State.WATCHED: "running",
    State.ARCHIVING: "running",
    State.SUCCESS: "succeeded",
    State.FAILED: "failed",
}
_ERRORS = {  # code and type
    HTTPStatus.UNAUTHORIZED: ("AuthenticationError", "Unauthorized"),
    HTTPStatus.FORBIDDEN: ("AccessDenied", "Forbidden"),
    HTTPStatus.NOT_FOUND: ("NotFound", "NotFound"),
    HTTPStatus.CONFLICT: ("OperationDenied", "Conflict"),
    HTTPStatus.TOO_MANY_REQUESTS: ("RateLimitExceeded", "TooManyRequests"),
    HTTPStatus.INTERNAL_SERVER_ERROR: ("InternalServiceError", "InternalServerError"),
    HTTPStatus.BAD_GATEWAY: ("InternalServiceError", "InternalServerError"),
    HTTPStatus.SERVICE_UNAVAILABLE: ("ServiceUnavailable", "ServiceUnavailable"),
}


class ArkForm:
    """The vendor's own answers."""

    def accepted(self, task: Task) -> Json:
        """Say that a task was accepted."""
        return {"id": task.task_id}

    def task(self, task: Task) -> Json:
        """Say how a task stands; of an ended one, what the vendor said, under our task id."""
        shown: Json = {
            "id": task.task_id,
            "model": task.model,
            "created_at": _seconds(task.accepted_at),
            "updated_at": _seconds(task.ended_at or task.taken_at or task.accepted_at),
        }
        shown |= {**(task.raw or {}), "id": task.task_id, "status": _status(task)}
        if task.state is State.SUCCESS and task.raw is None:  # it was too large to be kept whole
            shown["content"] = _content(task)
        elif task.state is State.FAILED and task.raw is None:
            error = task.said.get("error", {})
            shown["error"] = {"code": error.get("code", ""), "message": error.get("message", "")}
        return shown

    def canceled(self, _task: Task) -> Json:
        """Say nothing, as the vendor does."""
        return {}

    def listed(self, tasks: Sequence[Task], query: Mapping[str, str]) -> Json:
        """Give a page of those that the query wants."""
        wanted = [self.task(task) for task in tasks if _is_wanted(task, query)]
        size = parameters.number(query, "page_size", 10, 500)
        number = parameters.number(query, "page_num", 1, 500)
        return {"total": len(wanted), "items": wanted[size * (number - 1) : size * number]}

    def error(self, status: int, message: str) -> Json:
        """Say why a call has failed."""
        known = {int(one): words for one, words in _ERRORS.items()}
        code, kind = known.get(status, ("InvalidParameter", "BadRequest"))
        told = VENDORS_CODE.match(message)  # in what was refused, the vendor's own
        code, words = (told[1], told[2]) if told is not None else (code, message)
        return {"error": {"code": code, "message": words, "param": "", "type": kind}}


@dataclass(frozen=True)
class Ark:
    """The vendor. Only it knows what its models take: all are passed through."""

    name = "ark"
    title = "Ark (BytePlus ModelArk)"
    example = Example(
        f"`POST {_TASKS}`",
        _TASKS,
        {
            "model": "seedance-1-0-pro-250528",
            "content": [
                {"type": "text", "text": "she waves, then turns to the sea"},
                {"type": "image_url", "image_url": {"url": IMAGE}},
            ],
        },
    )
    origin = "https://ark.ap-southeast.bytepluses.com"
    hosts: Sequence[str] = ("ark.cn-beijing.volces.com",)
    requests_per_minute = 600
    # The most that `execution_expires_after` may say; without it a task has 48 hours. Then it is `expired`.
    longest_task = timedelta(hours=72)
    long_poll = False
    webhooks = False
    cancel_removes = True
    # It lists its tasks, but not by time: of many of one model none could be told from another.
    listing: Listing | None = None
    models: Mapping[str, Model] = MappingProxyType({})
    form = ArkForm()

    # --- what callers ask -------------------------------------------------------------------------

    def route(self, method: str, path: str, _query: Mapping[str, str]) -> Route | None:
        """Take all that is below `/api/v3/`: what is not served is refused in the vendor's form."""
        if not path.startswith(_BELOW):
            return None
        task = _TASK.fullmatch(path)
        match method:
            case "POST" if path == _TASKS:
                return Route(Action.SUBMIT)
            case "GET" if path == _TASKS:
                return Route(Action.LIST)
            case "GET" if task:
                return Route(Action.SHOW, task[1])
            case "DELETE" if task:
                return Route(Action.DELETE, task[1])
        return Route(Action.UNKNOWN)

    def paid_request(self, path: str, _headers: Mapping[str, str], body: Json) -> PaidRequest:
        """Read a submit; what its model takes, the vendor alone knows."""
        if "callback_url" in body:  # the vendor would call there itself, unsigned, about an id of its own
            raise parameters.wrong("callback_url", "is not taken here; give it as header 'X-Webhook-URL'")
        if path != _TASKS:
            raise RejectedError(HTTPStatus.NOT_FOUND, f"Resource not found: tasks are made at {_TASKS}")
        return PaidRequest(
            model_named(body), path, parameters.passed_on(body), identity=body, validated=False
        )

    def first_poll(self, model: str) -> timedelta:
        """Wait as long as the model's name tells."""
        return typical_minimum(model)

    # --- what the vendor is asked -----------------------------------------------------------------

    def authorization(self, key: str) -> Mapping[str, str]:
        """Give the bearer token."""
        return {"Authorization": f"Bearer {key}"}

    def submit(
        self, target: str, body: bytes, *, headers: Mapping[str, str], webhook_url: str | None
    ) -> HttpRequest:
        """Make the paid POST; `target` is its path."""
        del webhook_url
        return HttpRequest("POST", target, headers, body)

    def operation(self, upstream_task_id: str) -> str:
        """Give the path of a task."""
        return f"{_TASKS}/{quote(upstream_task_id, safe='')}"

    def poll(self, operation: str, *, hold: bool) -> HttpRequest:
        """Ask for a task."""
        del hold
        return HttpRequest("GET", operation)

    def cancel(self, operation: str) -> HttpRequest | None:
        """Cancel a task that is queued; one that runs the vendor refuses to cancel."""
        return HttpRequest("DELETE", operation)

    def free_request(self) -> HttpRequest:
        """Ask for the newest task."""
        return HttpRequest("GET", f"{_TASKS}?page_num=1&page_size=1")

    # --- what it answers --------------------------------------------------------------------------

    def read_submission(
        self, status: int, body: Json | None, *, retry_after: timedelta | None = None
    ) -> SubmitOutcome:
        """Classify the answer to the paid POST; `body` is None where it was not a JSON object."""
        body = body or {}
        submission, error = submission_of(status, body.get("id")), _error(body)
        if submission is Submission.REFUSED and error.get("code") == _OVERDUE:
            submission = Submission.REFUSED_HERE
        return outcome_of(submission, status, body.get("id"), _words(error), retry_after)

    def read_poll(self, body: Json, upstream_task_id: str) -> PollOutcome:
        """Read an answer about a task; what is not about this task, or has no status, says nothing."""
        status = body.get("status")
        if body.get("id") != upstream_task_id or not isinstance(status, str):
            return NOT_THIS_TASK
        kind = kind_of(status)
        if kind is PollKind.PENDING:
            return PollOutcome(kind=kind)
        raw = finite(body)
        if kind is PollKind.FAILED:
            why = _words(_error(raw)) or f"the vendor reported {status} without a reason"
            return PollOutcome(
                kind=kind,
                data=kept_data({"raw": raw}),
                message=why[:MAX_NOTE],
                canceled=is_canceled(status),
            )
        data: Json = {"result": {"resources": list(_files(raw))}, "raw": raw}
        if isinstance(raw.get("usage"), dict):
            data["usage"] = raw["usage"]
        ended = raw.get("updated_at")
        if isinstance(ended, int) and 0 < ended < _seconds(datetime.max.replace(tzinfo=UTC)):
            data["result_expires_at"] = (ended + round(LINKS_LIVE.total_seconds())) * 1000
        return PollOutcome(kind=kind, data=kept_data(data))


def _error(body: Json) -> Json:
    error = body.get("error")
    return error if isinstance(error, dict) else {}


def _words(error: Json) -> str:
    """Give the vendor's words, behind its code; empty where there are none."""
    return ": ".join(
        words for name in ("code", "message") if isinstance(words := error.get(name), str) and words
    )


def _files(raw: Json) -> Iterator[Json]:
    """List the files of a result, each with its type."""
    content: Any = raw.get("content")
    for name, kind in _FILES.items():
        url = content.get(name) if isinstance(content, dict) else None
        if isinstance(url, str):
            yield {"url": url, "type": file_kind(url, otherwise=kind)}


def _content(task: Task) -> Json:
    """Give the files of a result whose raw form was too large to be kept, each under the name of its type."""
    names = {kind: name for name, kind in reversed(_FILES.items())}
    files = task.said.get("result", {}).get("resources", [])
    return {names.get(file["type"], "file_url"): file["url"] for file in files}


def _status(task: Task) -> str:
    """Say where a task stands in the vendor's words, which tell canceled and expired from failed."""
    word = str((task.raw or {}).get("status"))
    if task.error is ErrorCode.CANCELED or (task.state is State.FAILED and is_canceled(word)):
        return "cancelled"
    is_late = task.error is ErrorCode.EXPIRED or (task.state is State.FAILED and word.lower() == "expired")
    return "expired" if is_late else _STATES[task.state]


def _is_wanted(task: Task, query: Mapping[str, str]) -> bool:
    ids = query.get("filter.task_ids", task.task_id).split(",")
    return (
        task.task_id in ids
        and query.get("filter.model", task.model) == task.model
        and query.get("filter.status", _status(task)) == _status(task)
    )


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


ARK = Ark()
