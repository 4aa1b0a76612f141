"""An emulator of DashScope's task API, in its own form: `output` beside `request_id`, states in capitals."""

import json
from datetime import datetime, timedelta, timezone
from typing import Any

from aiohttp import web

from tests.local.server import json_response
from tests.local.vendor import VendorEmulator
from tests.modellix.faults import Fault
from tests.modellix.vendor import Modellix, VendorTask
from tests.modellix.words import RefusedError, minified

_BEIJING = timezone(timedelta(hours=8))
_CODES = {400: "InvalidParameter", 401: "InvalidApiKey", 404: "NotFound", 429: "Throttling.RateQuota"}


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
    """Its tasks and limits."""

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
            return minified(self._told(task, word))
        if not task.answer:
            task.result_bytes = self.results.bytes
            task.answer = minified(self._ended(task))
        return task.answer

    def _told(self, task: VendorTask, word: str, **more: object) -> dict[str, Any]:
        output = {"task_id": task.id, "task_status": word, "submit_time": _beijing(task.submitted_at), **more}
        return {"request_id": f"req-{task.id}", "output": output}

    def _ended(self, task: VendorTask) -> dict[str, Any]:
        end = _beijing(task.ends_at)
        if task.outcome == "canceled":
            return self._told(task, "CANCELED", end_time=end)
        if task.outcome == "failed":
            words = {"code": "InvalidFile.NoHuman", "message": task.failure}
            return self._told(task, "FAILED", end_time=end, **({} if task.failed_form == "string" else words))
        results = {"video_url": f"{task.origin}/files/{task.id}.mp4"}
        ended = self._told(task, "SUCCEEDED", end_time=end, results=results)
        return {**ended, "usage": {"video_duration": 5.2, "video_ratio": "standard"}}


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
        """Render an error: a code beside the message."""
        code = _CODES.get(status, "InternalError")
        return minified({"request_id": "req", "code": code, "message": message})

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
        """List the newest tasks."""
        self.admit(request)
        rows = [
            {"task_id": task.id, "model_name": task.model, "gmt_create": round(task.submitted_at * 1000)}
            for task in reversed(self.vendor.tasks.values())
        ]
        size = int(request.query.get("page_size", "10"))
        listed = {"data": rows[:size], "total": len(rows), "page_no": 1, "page_size": size}
        return json_response(minified({"request_id": "req", **listed}))


def _beijing(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, _BEIJING).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
