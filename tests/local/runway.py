"""An emulator of Runway's task API, in its own form: the task alone, or `{"error": …}`."""

from typing import Any

from aiohttp import web

from tests.local.dashscope import object_of
from tests.local.server import json_response
from tests.local.vendor import VendorEmulator
from tests.modellix.faults import Fault
from tests.modellix.vendor import Modellix, VendorTask
from tests.modellix.words import RefusedError, iso, minified


class RunwayTasks(Modellix):
    """Its tasks and limits."""

    def fields(self, body: bytes) -> dict[str, Any]:
        """Read a submit."""
        return object_of(body)

    def accepted(self, task: VendorTask, *, named: bool = True) -> bytes:
        """Render the answer to a submit."""
        return minified({"id": task.id} if named else {})

    def answer(self, task: VendorTask) -> bytes:
        """Render the answer to a poll."""
        if not self.has_ended(task):
            word = {"pending": "THROTTLED"}.get(self.status(task), "RUNNING")
            return minified(self._told(task, word, progress=0.5))
        if not task.answer:
            task.result_bytes = self.results.bytes
            task.answer = minified(self._ended(task))
        return task.answer

    def _told(self, task: VendorTask, word: str, **more: object) -> dict[str, Any]:
        return {"id": task.id, "status": word, "createdAt": iso(task.submitted_at), **more}

    def _ended(self, task: VendorTask) -> dict[str, Any]:
        if task.outcome == "canceled":
            return self._told(task, "CANCELLED")
        if task.outcome == "failed":
            words = {"failure": task.failure, "failureCode": "INPUT_PREPROCESSING.INTERNAL"}
            return self._told(task, "FAILED", **({} if task.failed_form == "string" else words))
        output = [f"{task.origin}/files/{task.id}.mp4"]
        return self._told(task, "SUCCEEDED", output=output, cost={"credits": 25})


class RunwayEmulator(VendorEmulator):
    """The server around it."""

    core = RunwayTasks

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the vendor's own paths."""
        router.add_get("/v1/organization", self.organization)
        router.add_get("/v1/tasks/{task_id}", self.answer_task)
        router.add_delete("/v1/tasks/{task_id}", self.delete)
        router.add_post("/v1/{what:[a-z0-9_/]+}", self.take_submit)

    def refusal(self, _status: int, message: str) -> bytes:
        """Render an error."""
        return minified({"error": message})

    def model_of(self, request: web.Request, body: bytes) -> str:
        """Read the model out of the body."""
        if "X-Runway-Version" not in request.headers:
            raise RefusedError(400, "header 'X-Runway-Version' is required")
        model = object_of(body).get("model", request.match_info["what"])
        if not isinstance(model, str):
            raise RefusedError(400, "model must be a string")
        return model

    async def organization(self, request: web.Request) -> web.Response:
        """Tell of the account."""
        self.admit(request)
        return json_response(minified({"creditBalance": 1000}))

    async def delete(self, request: web.Request) -> web.Response:
        """Cancel a task that runs, or remove the result of one that has ended: it is not known then."""
        self.admit(request)
        task = self.vendor.known(request.match_info["task_id"])
        task.removed = True
        self.vendor.end(task, Fault(on="task", fault="canceled"))
        self.see_end(task)
        return web.Response(status=204)


EMULATOR = RunwayEmulator
