"""Runway: its paths, its version header, and what its answers mean; it has no webhooks of its own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from taskhook.core import parameters
from taskhook.core.errors import RejectedError
from taskhook.core.message import MAX_NOTE, Json, finite, kept_data, minified
from taskhook.core.models import Model
from taskhook.core.record import ErrorCode, State, SubmitOutcome
from taskhook.core.schedule import typical_minimum
from taskhook.core.task import Task
from taskhook.core.vendor import (
    IMAGE,
    NOT_THIS_TASK,
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

VERSION = "2024-11-06"  # of the API whose answers this file reads, where a caller asks for no other
_VERSION_HEADER = "X-Runway-Version"
_LEAST_GAP = timedelta(seconds=5)  # the vendor's page: more frequent looks at a task show nothing new

_BELOW = "/v1/"
_TASK = re.compile(r"tasks/([^/]+)")
# What makes a task; `generate` and `recipes` are groups of such paths.
_MAKES_TASK = re.compile(r"(?:(?:generate|recipes)/)?[a-z0-9_]{1,64}")
# What makes something else, which cannot be watched: a POST there must not be paid for as a task.
_NO_TASKS = {
    "avatar_conversations",
    "avatar_usage",
    "avatars",
    "documents",
    "generate",
    "organization",
    "realtime_sessions",
    "recipes",
    "routers",
    "tasks",
    "uploads",
    "voices",
    "workflow_invocations",
    "workflows",
}

# Words of the vendor for a task that has not ended.
_UNDER_WAY = {
    State.QUEUED: "THROTTLED",  # queued for the caller, as at the vendor
    State.SUBMITTING: "PENDING",
    State.UNKNOWN: "PENDING",
    State.WATCHED: "RUNNING",
    State.ARCHIVING: "RUNNING",
}


class RunwayForm:
    """The vendor's own answers. Its official SDK reads `status`, and what belongs to that."""

    def accepted(self, task: Task) -> Json:
        """Say that a task was accepted."""
        return {"id": task.task_id}

    def task(self, task: Task) -> Json:
        """Say how a task stands; of an ended one, what the vendor said, under our task id."""
        told: Json = {"id": task.task_id, "createdAt": _iso(task.accepted_at)}
        if not task.state.final:
            word = _UNDER_WAY[task.state]
            return told | {"status": word} | ({"progress": 0} if word == "RUNNING" else {})
        said = told | (task.raw or {}) | {"id": task.task_id, "status": _ended(task)}
        if task.state is State.SUCCESS:
            return {"output": _links(task)} | said
        if said["status"] == "CANCELLED":
            return said
        return {"failure": task.said.get("error", {}).get("message", ""), "failureCode": task.error} | said

    def canceled(self, task: Task) -> Json:
        """Say of a task that is canceled, or about to be, how it stands."""
        return self.task(task)

    def listed(self, tasks: Sequence[Task], _query: Mapping[str, str]) -> Json:
        """List tasks, which the vendor does not: no path of its own asks for it."""
        return {"tasks": [self.task(task) for task in tasks]}

    def error(self, _status: int, message: str) -> Json:
        """Say why a call has failed."""
        return {"error": message}


@dataclass(frozen=True)
class Runway:
    """The vendor. Only it knows what its models take: all are passed through."""

    name = "runway"
    title = "Runway"
    example = Example(
        "`POST /v1/image_to_video` and the like",
        f"{_BELOW}image_to_video",
        {"model": "gen4_turbo", "promptImage": IMAGE, "ratio": "1280:720"},
    )
    origin = "https://api.dev.runwayml.com"
    hosts: Sequence[str] = ()
    requests_per_minute = 1000  # its pages name none; its limits are of tasks that run, and of tasks a day
    longest_task = timedelta(0)
    long_poll = False
    webhooks = False
    cancel_removes = True
    listing: Listing | None = None
    models: Mapping[str, Model] = MappingProxyType({})
    form = RunwayForm()

    # --- what callers ask -------------------------------------------------------------------------

    def route(self, method: str, path: str, _query: Mapping[str, str]) -> Route | None:
        """Take all that is below `/v1/`: what is not served is refused in the vendor's form."""
        if not path.startswith(_BELOW):
            return None
        task = _TASK.fullmatch(path.removeprefix(_BELOW))
        match method:
            case "POST":
                return Route(Action.SUBMIT)
            case "GET" if task:
                return Route(Action.SHOW, task[1])
            case "DELETE" if task:
                return Route(Action.DELETE, task[1])
        return Route(Action.UNKNOWN)

    def paid_request(self, path: str, headers: Mapping[str, str], body: Json) -> PaidRequest:
        """Read a submit; the model is the body's, or else what the path asks for."""
        asked = path.removeprefix(_BELOW)
        if _MAKES_TASK.fullmatch(asked) is None or asked in _NO_TASKS:
            raise RejectedError(
                HTTPStatus.NOT_FOUND,
                f"Resource not found: '{path[:200]}' makes no task that could be watched; "
                "it would be, for example, /v1/image_to_video",
            )
        version = parameters.header(headers, _VERSION_HEADER, otherwise=VERSION)
        model = model_named(body, otherwise=asked)
        return PaidRequest(
            model,
            path,
            parameters.passed_on(body),
            identity={"path": asked, "version": version, "body": body},
            headers={_VERSION_HEADER: version},
            validated=False,
        )

    def first_poll(self, model: str) -> timedelta:
        """Tell it by the model's name, never sooner than the vendor wants to be asked."""
        return max(_LEAST_GAP, typical_minimum(model))

    # --- what the vendor is asked -----------------------------------------------------------------

    def authorization(self, key: str) -> Mapping[str, str]:
        """Give the bearer token."""
        return {"Authorization": f"Bearer {key}"}

    def submit(
        self,
        target: str,
        body: bytes,
        *,
        headers: Mapping[str, str],
        webhook_url: str | None,  # noqa: ARG002  # the vendor has no webhooks
    ) -> HttpRequest:
        """Make the paid POST; `target` is its path."""
        return HttpRequest("POST", target, {_VERSION_HEADER: VERSION, **headers}, body)

    def operation(self, upstream_task_id: str) -> str:
        """Give the path of a task."""
        return f"{_BELOW}tasks/{quote(upstream_task_id, safe='')}"

    def poll(self, operation: str, *, hold: bool) -> HttpRequest:  # noqa: ARG002  # it holds no poll
        """Ask for a task."""
        return _free("GET", operation)

    def cancel(self, operation: str) -> HttpRequest | None:
        """Ask to cancel a task; the vendor answers 404 about it from then on."""
        return _free("DELETE", operation)

    def free_request(self) -> HttpRequest:
        """Ask for the account's limits and credits."""
        return _free("GET", f"{_BELOW}organization")

    # --- what it answers --------------------------------------------------------------------------

    def read_submission(
        self, status: int, body: Json | None, *, retry_after: timedelta | None = None
    ) -> SubmitOutcome:
        """Classify the answer to the paid POST; `body` is None where it was not a JSON object."""
        body = body or {}
        submission = submission_of(status, body.get("id"))
        return outcome_of(submission, status, body.get("id"), _words(body.get("error")), retry_after)

    def read_poll(self, body: Json, upstream_task_id: str) -> PollOutcome:
        """Read an answer about a task; what is not about this task, or has no status, says nothing.

        When links end it does not say: the vendor keeps them for 24 to 48 hours from each look at the task.
        """
        status = body.get("status")
        if body.get("id") != upstream_task_id or not isinstance(status, str):
            return NOT_THIS_TASK
        kind = kind_of(status)
        if kind is PollKind.PENDING:  # THROTTLED, too: the vendor has it, and it waits for a slot there
            return PollOutcome(kind=kind)
        raw = finite(body)
        if kind is PollKind.FAILED:
            return PollOutcome(
                kind=PollKind.FAILED,
                data=kept_data({"raw": raw}),
                message=_failure(raw, status),
                canceled=is_canceled(status),
            )
        listed = raw.get("output")
        urls = [entry for entry in listed if isinstance(entry, str)] if isinstance(listed, list) else []
        data: Json = {
            "result": {"resources": [{"url": url, "type": file_kind(url, otherwise="video")} for url in urls]}
        }
        if isinstance(raw.get("cost"), dict):
            data["billing"] = raw["cost"]
        return PollOutcome(kind=PollKind.SUCCEEDED, data=kept_data(data | {"raw": raw}))


def _free(method: str, path: str) -> HttpRequest:
    return HttpRequest(method, path, {_VERSION_HEADER: VERSION})


def _words(error: object) -> object:
    """Give the vendor's words for a refusal: a sentence, or whatever else is there."""
    return minified(finite(error)) if error and not isinstance(error, str) else error


def _failure(raw: Json, status: str) -> str:
    """Say why a task has failed, as far as the vendor does."""
    words = [raw[name] for name in ("failureCode", "failure") if isinstance(raw.get(name), str) and raw[name]]
    return (": ".join(words) or f"the vendor reported {status} without a reason")[:MAX_NOTE]


def _ended(task: Task) -> str:
    """Give the vendor's word for how a task has ended, whatever its own spelling was."""
    if task.state is State.SUCCESS:
        return "SUCCEEDED"
    word: Any = (task.raw or {}).get("status")
    canceled = task.error is ErrorCode.CANCELED or (isinstance(word, str) and is_canceled(word))
    return "CANCELLED" if canceled else "FAILED"


def _links(task: Task) -> list[str]:
    """List the links of a result whose raw form was too large to be kept."""
    result = task.said.get("result", {})
    return [resource["url"] for resource in result.get("resources", [])]


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


RUNWAY = Runway()
