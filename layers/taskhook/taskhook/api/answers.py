"""The answers of the API."""

import json
from datetime import UTC, datetime, timedelta

from taskhook.core.message import Json
from taskhook.core.ports import (
    Reply,
)
from taskhook.core.task import Attempt, Task, milliseconds
from taskhook.tasks.commands import Redelivery
from taskhook.tasks.query import STATUSES
from taskhook.vendors.modellix import MODELS


def task_answer(task: Task) -> Json:
    """Render the vendor's task answer, with what only taskhook knows: upstream id, reference, callback, times, the request."""
    body: Json = json.loads(task.message) if task.message else {}
    data: Json = body.get("data") or {"status": STATUSES[task.state], "task_id": task.task_id, "model_id": task.model}
    ours = {"upstream_task_id": task.upstream_task_id, "reference": task.reference, "callback_url": task.callback_url}
    data |= {name: value for name, value in ours.items() if value is not None}
    if task.unchecked:
        data["unchecked"] = task.unchecked
    data["callback"] = {
        "state": task.callback,
        "attempts": task.attempts,
        "next_attempt_at": iso(task.next_attempt_at),
        "log": [_entry(attempt) for attempt in task.log],
    }
    times = {
        "created_at": task.accepted_at,
        "submitted_at": task.submitted_at,
        "taken_at": task.taken_at,
        "ended_at": task.ended_at,
    }
    data |= {name: milliseconds(moment) for name, moment in times.items() if moment is not None}
    data["stage"] = task.state
    if task.request is not None:
        data["request"] = json.loads(task.request)
    return {"code": 0, "message": body.get("message", "success"), "data": data}


def submitted_data(task: Task, origin: str) -> Json:
    """Say of an accepted task what its submitter is told, in the vendor's form; `origin` is the one that callers use."""
    url = f"{origin}/api/v1/tasks/{task.task_id}"
    return {
        "status": "pending",
        "task_id": task.task_id,
        "model_id": task.model,
        "get_result": {"method": "GET", "url": url},
    }


def models_answer() -> Json:
    """List the known models; the vendor's answer has no envelope here."""
    return {"models": [{"slug": model.slug, "type": model.kind, "description": model.description} for model in MODELS.values()]}


def redelivery_answer(done: Redelivery) -> Json:
    """Tell how many messages go out again, and when the last of them does: they are spread by the caller's rate."""
    return {"count": done.count, "last_attempt_at": iso(done.last_attempt_at), "next_cursor": done.cursor}


def tried_answer(sample: Task, reply: Reply, *, delivered: bool) -> Json:
    """Tell what a receiver said to a sample, in the words of the attempt log."""
    said = reply.model_dump(include={"status", "error", "answer"}, exclude_none=True)
    ms = round(reply.elapsed / timedelta(milliseconds=1))
    return {"type": sample.event, "webhook_id": sample.webhook_id, "delivered": delivered, **said, "ms": ms}


def _entry(attempt: Attempt) -> Json:
    times = {"at": iso(attempt.at), "next_at": iso(attempt.next_at)}
    return attempt.model_dump(mode="json", exclude_none=True) | {name: time for name, time in times.items() if time is not None}


def iso(moment: datetime | None) -> str | None:
    """Write a moment as answers do."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
