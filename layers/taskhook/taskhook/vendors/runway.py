"""Runway: its paths, requests, answers and form. It has no webhooks, and queues what it cannot run yet."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from taskhook.core.message import MAX_NOTE, Json, finite, kept_data, minified
from taskhook.core.models import Model
from taskhook.core.record import State, SubmitOutcome
from taskhook.core.schedule import typical_minimum
from taskhook.core.task import Task
from taskhook.core.vendor import (
    FAILURE,
    SUCCESS,
    Action,
    Form,
    HttpRequest,
    PaidRequest,
    PollKind,
    PollOutcome,
    Route,
    model_named,
    outcome_of,
    submission_of,
)

_VERSION = "2024-11-06"  # where the caller names none
_SUBMIT = re.compile(r"/v1/(?!tasks$|organization$)([a-z0-9_]{1,64})")
_TASK = re.compile(r"/v1/tasks/([^/]+)")
_STATES = {
    State.QUEUED: "PENDING",
    State.SUBMITTING: "PENDING",
    State.UNKNOWN: "PENDING",
    State.WATCHED: "RUNNING",
    State.ARCHIVING: "RUNNING",
    State.SUCCESS: "SUCCEEDED",
    State.FAILED: "FAILED",
}
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
_AUDIO = (".mp3", ".wav", ".m4a", ".flac")


@dataclass(frozen=True)
class Runway:
    """The vendor."""

    name = "runway"
    origin = "https://api.dev.runwayml.com"
    hosts: Sequence[str] = ()
    requests_per_minute = 300
    long_poll = False
    webhooks = False
    models: Mapping[str, Model] = MappingProxyType({})

    @property
    def form(self) -> Form:
        """Its answers have no envelope."""
        return _FORM

    # --- what callers ask -------------------------------------------------------------------------

    def route(self, method: str, path: str, _query: Mapping[str, str]) -> Route | None:
        """Take `POST /v1/{what is made}`, and `GET` and `DELETE /v1/tasks/{id}`."""
        if method == "POST":
            return Route(Action.SUBMIT) if _SUBMIT.fullmatch(path) else None
        actions = {"GET": Action.SHOW, "DELETE": Action.DELETE}
        found = _TASK.fullmatch(path)
        return Route(actions[method], found[1]) if found is not None and method in actions else None

    def paid_request(self, path: str, headers: Mapping[str, str], body: Json) -> PaidRequest:
        """Read a submit; what its model takes, the vendor alone knows."""
        model = model_named(body, otherwise=path.rpartition("/")[2])
        passed = {"X-Runway-Version": headers.get("x-runway-version", _VERSION)[:100]}
        identity = {"path": path, "body": body}
        return PaidRequest(model, path, minified(body), identity, headers=passed, validated=False)

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
        """Make the paid POST."""
        del webhook_url
        return HttpRequest("POST", target, headers, body)

    def operation(self, upstream_task_id: str) -> str:
        """Give the path of a task."""
        return f"/v1/tasks/{quote(upstream_task_id, safe='')}"

    def poll(self, operation: str, *, hold: bool) -> HttpRequest:
        """Ask for a task."""
        del hold
        return HttpRequest("GET", operation, {"X-Runway-Version": _VERSION})

    def cancel(self, operation: str) -> HttpRequest | None:
        """Cancel a task that runs; the vendor deletes one that has ended."""
        return HttpRequest("DELETE", operation, {"X-Runway-Version": _VERSION})

    def free_request(self) -> HttpRequest:
        """Ask for the organization."""
        return HttpRequest("GET", "/v1/organization", {"X-Runway-Version": _VERSION})

    # --- what it answers --------------------------------------------------------------------------

    def read_submission(
        self, status: int, body: Json | None, *, retry_after: timedelta | None = None
    ) -> SubmitOutcome:
        """Classify the answer to the paid POST; `body` is None where it was not a JSON object."""
        body = body or {}
        submission = submission_of(status, body.get("id"))
        return outcome_of(submission, status, body.get("id"), body.get("error"), retry_after)

    def read_poll(self, body: Json, upstream_task_id: str) -> PollOutcome:
        """Read an answer about a task; what is not about this task, or has no status, says nothing."""
        status = body.get("status")
        if body.get("id") != upstream_task_id or not isinstance(status, str):
            return PollOutcome(kind=PollKind.UNAVAILABLE, message="the answer is not about this task")
        word = status.lower()
        if word in SUCCESS:
            return PollOutcome(kind=PollKind.SUCCEEDED, data=_data(body))
        if word in FAILURE:
            return PollOutcome(kind=PollKind.FAILED, data=_data(body), message=_failure(body))
        return PollOutcome(kind=PollKind.PENDING)


def _data(body: Json) -> Json:
    output = body.get("output")
    urls = [url for url in output if isinstance(url, str)] if isinstance(output, list) else []
    result = {"resources": [{"url": url, "type": _kind(url)} for url in urls]}
    return kept_data({"result": result, "raw": finite(body)})


def _kind(url: str) -> str:
    """Tell what a file is by its name; what says nothing is a video."""
    path = url.partition("?")[0].lower()
    return "image" if path.endswith(_IMAGES) else "audio" if path.endswith(_AUDIO) else "video"


def _failure(body: Json) -> str:
    """Find the vendor's words, which may be missing."""
    words = [body[name] for name in ("failureCode", "failure") if isinstance(body.get(name), str)]
    told = ": ".join(word for word in words if word)
    return (told or f"the vendor reported {body['status']}, and no reason")[:MAX_NOTE]


class _RunwayForm:
    """Its answers: the task alone."""

    def accepted(self, task: Task) -> Json:
        """Give the id."""
        return {"id": task.task_id}

    def task(self, task: Task) -> Json:
        """Give what the vendor said of an ended task, under our id; of any other, where it stands."""
        created = task.accepted_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        shown: Json = {"id": task.task_id, "status": _STATES[task.state], "createdAt": created}
        if task.raw is not None:
            return {
                **shown,
                **{name: value for name, value in task.raw.items() if name not in {"id", "status"}},
            }
        if task.state is State.FAILED:
            shown |= {"failure": _told(task).get("message", ""), "failureCode": str(task.error).upper()}
        return shown

    def canceled(self, _task: Task) -> Json:
        """Have nothing to say: 204."""
        return {}

    def listed(self, tasks: Sequence[Task], _query: Mapping[str, str]) -> Json:
        """List tasks, which the vendor itself does not."""
        return {"tasks": [self.task(task) for task in tasks]}

    def error(self, _status: int, message: str) -> Json:
        """Say why a call has failed."""
        return {"error": message}


def _told(task: Task) -> dict[str, Any]:
    error: dict[str, Any] = task.said.get("error", {})
    return error


_FORM = _RunwayForm()
RUNWAY = Runway()
