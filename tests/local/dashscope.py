"""An emulator of DashScope's task API, in its own form: `output` beside `request_id`, states in capitals."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

from aiohttp import web

from tests.local.server import DroppedError, json_response
from tests.local.vendor import VendorEmulator
from tests.modellix.faults import Fault
from tests.modellix.vendor import Modellix, VendorProfile, VendorTask
from tests.modellix.words import RefusedError, minified

_BEIJING = timezone(timedelta(hours=8))
_DAY_S = 86_400.0
_CODES = {
    400: "InvalidParameter",
    401: "InvalidApiKey",
    403: "AccessDenied",
    404: "NotFound",
    429: "Throttling.RateQuota",
}
_CATEGORIES = {  # of refusals, by which the status alone does not tell the code
    "Concurrent limit exceeded": "Throttling.AllocationQuota",
    "UnsupportedOperation": "UnsupportedOperation",
}
_CODED = re.compile(r"([A-Z][A-Za-z.]*): (.+)", re.DOTALL)


def object_of(body: bytes) -> dict[str, Any]:
    """Read a JSON object; raises RefusedError for anything else."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "the body is not JSON") from error
    if not isinstance(fields, dict):
        raise RefusedError(400, "the body is not a JSON object")
    return fields


class DashScopeTasks(Modellix):
    """Its tasks and limits: so many running tasks of each model; tasks and links live a day at most."""

    def __init__(self, profile: VendorProfile | None = None, **more: Any) -> None:
        """Start with no task; it holds no poll, and calls no webhook."""
        profile = profile or VendorProfile()
        lives_s = min(profile.retention_s, _DAY_S)
        super().__init__(replace(profile, retention_s=lives_s, long_poll=False, webhooks=False), **more)

    def group(self, key: str, slug: str) -> str:
        """Name the tasks that share one limit: those of a model."""
        return f"{key} {slug}"

    def fields(self, body: bytes) -> dict[str, Any]:
        """Read a submit: a model and its input."""
        fields = object_of(body)
        if not isinstance(fields.get("input"), dict):
            raise RefusedError(400, "Field required: input")
        return fields

    def accepted(self, task: VendorTask, *, named: bool = True) -> bytes:
        """Render the answer to a submit."""
        output = {"task_id": task.id, "task_status": "PENDING"} if named else {"task_status": "PENDING"}
        return minified({"output": output, "request_id": f"req-{task.id}"})

    def answer(self, task: VendorTask) -> bytes:
        """Render the answer to a poll."""
        if not self.has_ended(task):
            word = {"pending": "PENDING"}.get(self.status(task), "RUNNING")
            times = {} if word == "PENDING" else {"scheduled_time": self._scheduled(task)}
            return minified(self._told(task, word, **times))
        if not task.answer:
            task.result_bytes = self.results.bytes
            task.answer = minified(self._ended(task))
        return task.answer

    def _told(self, task: VendorTask, word: str, **more: object) -> dict[str, Any]:
        output = {"task_id": task.id, "task_status": word, "submit_time": _beijing(task.submitted_at), **more}
        return {"request_id": f"req-{task.id}", "output": output}

    def _scheduled(self, task: VendorTask) -> str:
        """Give when it began to run: a quarter of its time has passed then, or it has ended before."""
        return _beijing(min(task.submitted_at + self._seconds(task.request) / 4, task.ends_at))

    def _ended(self, task: VendorTask) -> dict[str, Any]:
        end = _beijing(task.ends_at)
        if task.outcome == "canceled":
            return self._told(task, "CANCELED", end_time=end)
        times = {"scheduled_time": self._scheduled(task), "end_time": end}
        if task.outcome == "failed":
            code, message = _coded(task.failure, "InvalidFile.NoHuman")
            words = {} if task.failed_form == "string" else {"code": code, "message": message}
            return self._told(task, "FAILED", **times, **words)
        expires = int(task.ends_at + self.profile.retention_s)
        results = {"video_url": f"{task.origin}/files/{task.id}.mp4?Expires={expires}"}
        ended = self._told(task, "SUCCEEDED", **times, results=results)
        return {**ended, "usage": {"video_duration": 5.2, "video_ratio": "standard"}}

    def listed(self, query: Mapping[str, str]) -> dict[str, Any]:
        """List the newest tasks that a query wants; raises RefusedError."""
        after, until = _moment(query, "start_time", 0), _moment(query, "end_time", 2**62)
        wanted = [
            row
            for row in map(self._row, reversed(self.tasks.values()))
            if query.get("model_name", row["model_name"]) == row["model_name"]
            and query.get("status", row["status"]) == row["status"]
            and after <= row["gmt_create"] <= until
        ]
        number, size = _whole(query, "page_no", 1, 100_000), _whole(query, "page_size", 10, 100)
        return {
            "request_id": "req",
            "data": wanted[size * (number - 1) : size * number],
            "total": len(wanted),
            "total_page": -(-len(wanted) // size),
            "page_no": number,
            "page_size": size,
        }

    def _row(self, task: VendorTask) -> dict[str, Any]:
        row = {
            "task_id": task.id,
            "status": json.loads(self.answer(task))["output"]["task_status"],
            "model_name": task.model,
            "gmt_create": round(task.submitted_at * 1000),
            "start_time": round(task.submitted_at * 1000),
            "region": "ap-southeast-1",
            "request_id": f"req-{task.id}",
        }
        return row | ({"end_time": round(task.ends_at * 1000)} if self.has_ended(task) else {})


class DashScopeEmulator(VendorEmulator):
    """The server around it."""

    core = DashScopeTasks

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the vendor's own paths."""
        router.add_post("/api/v1/services/{group}/{task}/{function}", self.take_submit)
        router.add_get("/api/v1/tasks/{task_id}", self.answer_task)
        router.add_post("/api/v1/tasks/{task_id}/cancel", self.cancel)
        router.add_get("/api/v1/tasks/", self.list_tasks)

    def refusal(self, status: int, message: str) -> bytes:
        """Render an error: a code beside the message, which may bring its own (`Arrearage: overdue`)."""
        category, _, detail = message.partition(": ")
        code, words = _coded(detail, _CATEGORIES.get(category) or _CODES.get(status, "InternalError"))
        return minified({"request_id": "req", "code": code, "message": words})

    def model_of(self, request: web.Request, body: bytes) -> str:
        """Read the model out of the body; only asynchronous calls are taken."""
        if request.headers.get("X-DashScope-Async") != "enable":
            raise RefusedError(403, "current user api does not support synchronous calls")
        model = object_of(body).get("model")
        if not isinstance(model, str):
            raise RefusedError(400, "Field required: model")
        return model

    async def answer_task(self, request: web.Request) -> web.StreamResponse:
        """Tell how far a task is; one that is not known is UNKNOWN, with status 200."""
        try:
            return await super().answer_task(request)
        except RefusedError as refused:
            if refused.status != 404:
                raise
        output = {"task_id": request.match_info["task_id"], "task_status": "UNKNOWN"}
        return json_response(minified({"request_id": "req", "output": output}))

    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel a task that is pending."""
        self.admit(request)
        task = self.vendor.known(request.match_info["task_id"])
        if self.vendor.status(task) != "pending":
            raise RefusedError(400, "the task is not pending", category="UnsupportedOperation")
        self.vendor.end(task, Fault(on="task", fault="canceled"))
        self.see_end(task)
        return json_response(minified({"request_id": "req"}))

    async def list_tasks(self, request: web.Request) -> web.Response:
        """List the newest tasks; it is what costs nothing to ask for, so it strikes as `balance`."""
        self.admit(request)
        fault = await self.strike("balance", request)
        if fault is not None and fault.fault == "drop_after":
            raise DroppedError
        assert isinstance(self.vendor, DashScopeTasks)
        return json_response(minified(self.vendor.listed(request.query)))


def _coded(message: str, otherwise: str) -> tuple[str, str]:
    """Part a code from the words behind it, where there is one."""
    match = _CODED.fullmatch(message)
    return (match[1], match[2]) if match is not None else (otherwise, message)


def _moment(query: Mapping[str, str], name: str, otherwise: int) -> int:
    """Read a time of Beijing's in milliseconds; raises RefusedError."""
    if name not in query:
        return otherwise
    try:
        moment = datetime.strptime(query[name], "%Y%m%d%H%M%S").replace(tzinfo=_BEIJING)
    except ValueError as error:
        raise RefusedError(400, f"{name} must be YYYYMMDDhhmmss") from error
    return round(moment.timestamp() * 1000)


def _whole(query: Mapping[str, str], name: str, otherwise: int, most: int) -> int:
    """Read a number; raises RefusedError."""
    value = query.get(name, str(otherwise))
    if not value.isascii() or not value.isdigit() or not 1 <= int(value[:7]) <= most:
        raise RefusedError(400, f"{name} must be 1 to {most}")
    return int(value)


def _beijing(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, _BEIJING).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


EMULATOR = DashScopeEmulator
