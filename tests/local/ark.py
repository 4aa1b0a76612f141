"""An emulator of Ark's task API, in its own form: the task alone, or `{"error": {"code", "message", …}}`."""

from typing import Any

from aiohttp import web

from taskhook.vendors.ark import LINKS_LIVE
from tests.local.dashscope import object_of
from tests.local.server import DroppedError, json_response
from tests.local.vendor import VendorEmulator
from tests.modellix.faults import Fault
from tests.modellix.vendor import Modellix, VendorTask
from tests.modellix.words import RefusedError, minified

_TASKS = "/api/v3/contents/generations/tasks"
_CODES = {
    400: ("InvalidParameter", "BadRequest"),
    401: ("AuthenticationError", "Unauthorized"),
    403: ("AccessDenied", "Forbidden"),
    404: ("ResourceNotFound", "NotFound"),
    409: ("OperationDenied", "Conflict"),
    429: ("RateLimitExceeded.EndpointRPMExceeded", "TooManyRequests"),
}


class ArkTasks(Modellix):
    """Its tasks and limits."""

    def fields(self, body: bytes) -> dict[str, Any]:
        """Read a submit: a model and its content."""
        fields = object_of(body)
        if not isinstance(fields.get("content"), list) or not fields["content"]:
            raise RefusedError(400, "content must be a list of texts and media")
        return fields

    def accepted(self, task: VendorTask, *, named: bool = True) -> bytes:
        """Render the answer to a submit."""
        return minified({"id": task.id} if named else {})

    def answer(self, task: VendorTask) -> bytes:
        """Render the answer to a poll."""
        if not self.has_ended(task):
            word, now = {"pending": "queued"}.get(self.status(task), "running"), self.now()
            return minified(self._told(task, word, now))
        if not task.answer:
            task.result_bytes = self.results.bytes
            task.answer = minified(self._ended(task))
        return task.answer

    def _told(self, task: VendorTask, word: str, at: float, **more: object) -> dict[str, Any]:
        times = {"created_at": int(task.submitted_at), "updated_at": int(at)}
        return {"id": task.id, "model": task.model, "status": word, **times, **more}

    def _ended(self, task: VendorTask) -> dict[str, Any]:
        if task.outcome == "canceled":
            return self._told(task, "cancelled", task.ends_at)
        if task.outcome == "failed":
            error = {"code": "OutputVideoSensitiveContentDetected", "message": task.failure}
            said = {} if task.failed_form == "string" else {"error": error}
            return self._told(task, "failed", task.ends_at, **said)
        expires = int(LINKS_LIVE.total_seconds())
        content = {"video_url": f"{task.origin}/files/{task.id}.mp4?X-Tos-Expires={expires}"}
        usage = {"completion_tokens": 108900, "total_tokens": 108900}
        return self._told(task, "succeeded", task.ends_at, error=None, content=content, usage=usage)


class ArkEmulator(VendorEmulator):
    """The server around it."""

    core = ArkTasks

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the vendor's own paths."""
        router.add_post(_TASKS, self.take_submit)
        router.add_get(_TASKS, self.list_tasks)
        router.add_get(f"{_TASKS}/{{task_id}}", self.answer_task)
        router.add_delete(f"{_TASKS}/{{task_id}}", self.delete)

    def refusal(self, status: int, message: str) -> bytes:
        """Render an error."""
        code, kind = _CODES.get(status, ("InternalServiceError", "InternalServerError"))
        return minified({"error": {"code": code, "message": message, "param": "", "type": kind}})

    def model_of(self, request: web.Request, body: bytes) -> str:
        """Read the model out of the body."""
        del request
        model = object_of(body).get("model")
        if not isinstance(model, str):
            raise RefusedError(400, "model is required")
        return model

    async def list_tasks(self, request: web.Request) -> web.Response:
        """List the newest task; it is what costs nothing to ask for, so it strikes as `balance`."""
        self.admit(request)
        fault = await self.strike("balance", request)
        if fault is not None and fault.fault == "drop_after":
            raise DroppedError
        newest = [task for task in self.vendor.tasks.values() if not task.removed][-1:]
        items = b",".join(map(self.vendor.answer, newest))
        return web.Response(
            body=b'{"total":%d,"items":[%b]}' % (len(self.vendor.tasks), items),
            content_type="application/json",
        )

    async def delete(self, request: web.Request) -> web.Response:
        """Cancel a task that is queued, remove one that has ended; refuse any other, as its documents say."""
        self.admit(request)
        task = self.vendor.known(request.match_info["task_id"])
        if self.vendor.has_ended(task) and task.outcome != "canceled":
            task.removed = True
        elif not self.vendor.has_ended(task) and self.vendor.status(task) == "pending":
            self.vendor.end(task, Fault(on="task", fault="canceled"))
            self.see_end(task)
        else:
            raise RefusedError(409, "the task is running, or was canceled")
        return json_response(minified({}))


EMULATOR = ArkEmulator
