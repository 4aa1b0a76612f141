"""An emulator of Modellix's task API: real HTTP on loopback, real limits, real files, and faults on demand."""

import argparse
import asyncio
import contextlib
import json
import math
import os
import re
import secrets
import signal
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from tests.local.bulk import Bulk

MEDIA = Path(__file__).parent / "media"
SAMPLES = ("actor.jpg", "scene.mp4")
RESULT = MEDIA / "result.mp4"
MODELS = ("alibaba/wan2.2-animate-mix", "alibaba/wan2.2-animate-move")
MODES = ("wan-std", "wan-pro")
RESERVED_PROVIDERS = frozenset({"tasks", "apikey", "models", "team", "media"})
LONG_POLL_DEFAULT_S = 30.0
LONG_POLL_MAX_S = 45.0
SLOW_DEFAULT_S = 2.0
FAILURE_MESSAGE = "The input image has no human body or multiple human bodies."

type FailedForm = Literal["message", "string", "object", "both"]
type FaultTarget = Literal["submit", "task", "balance", "file", "media"]

FAILED_FAULTS: dict[str, FailedForm] = {
    "failed": "both",
    "failed_message": "message",
    "failed_string": "string",
    "failed_object": "object",
}
FILE_FAULTS = frozenset({"slow", "drop_before", "drop_after", "not_json"})
TASK_FAULTS = FILE_FAULTS | {"code_nonzero", "wrong_id", "canceled", *FAILED_FAULTS}
CATEGORIES = {
    400: "Invalid parameters",
    401: "Authentication failed",
    402: "Insufficient balance",
    404: "Resource not found",
    429: "Rate limit exceeded",
    503: "Service unavailable",
}
# The headers that the answer to this request carries, known as soon as its key is.
ANSWER_HEADERS = web.RequestKey("answer_headers", dict[str, str])


def new_key() -> str:
    """Return an API key of the vendor's form."""
    return f"mdlx-{secrets.token_hex(16)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorProfile:
    """How this vendor behaves while nobody injects a fault."""

    api_keys: tuple[str, ...] = field(default_factory=lambda: (new_key(),))
    public_url: str | None = None  # None: the origin that the client used
    task_seconds: float = 8.0
    rpm: int = 1000  # in any rate_window_s
    rate_window_s: float = 60.0
    concurrent: int = 100
    long_poll: bool = True
    hints: bool = True
    hint_waits: tuple[float, ...] = (1.0, 5.0, 15.0)  # between the tries of one hint
    retention_s: float = 7 * 86400.0
    retry_after: bool = False  # undocumented by the vendor, honoured by its clients
    success_word: str = "success"
    expiry_form: Literal["ms", "iso", "absent"] = "ms"


class Fault(BaseModel):
    """What goes wrong with the next `times` calls of one kind; `times` null lasts until cleared."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    on: FaultTarget
    fault: str
    times: int | None = Field(default=1, ge=1)
    seconds: float | None = Field(default=None, ge=0)  # a delay before any fault; `slow` has a default
    message: str | None = None
    headers: dict[str, str] | None = None  # of a status fault: exactly these instead of X-RateLimit-*

    @field_validator("fault")
    @classmethod
    def _possible_there(cls, fault: str, info: ValidationInfo) -> str:
        if fault.isascii() and fault.isdigit() and len(fault) == 3 and 200 <= int(fault) <= 599:
            return fault
        target: FaultTarget | None = info.data.get("on")
        known = TASK_FAULTS if target in {"submit", "task", None} else FILE_FAULTS
        if fault not in known:
            msg = f"must be a status from 200 to 599 or one of {', '.join(sorted(known))}"
            raise ValueError(msg)
        return fault

    @property
    def status(self) -> int | None:
        """The HTTP status to answer with, when this fault is one."""
        return int(self.fault) if self.fault.isdigit() else None

    @property
    def delay_s(self) -> float:
        """How long to wait before anything else happens."""
        if self.seconds is not None:
            return self.seconds
        return SLOW_DEFAULT_S if self.fault == "slow" else 0.0


class Results(BaseModel):
    """What result files are like from now on; `bytes` holds for tasks that end, everything else at once."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bytes: int | None = Field(default=None, ge=1)  # null: the sample
    rate: int | None = Field(default=None, ge=1)  # bytes a second
    gone: bool = False  # every link is dead


@dataclass(slots=True)
class _ArmedFault:
    fault: Fault
    left: int | None


@dataclass(slots=True, kw_only=True)
class VendorTask:
    """One task that was paid for."""

    id: str
    api_key: str
    model: str
    request: dict[str, Any]
    origin: str
    webhook_url: str | None
    submitted_at: float
    outcome: Literal["success", "failed", "canceled"] = "success"
    failed_form: FailedForm = "both"
    failure: str = FAILURE_MESSAGE
    requests: int = 1
    hint_attempts: int = 0
    ended_at: float | None = None
    bulk: Bulk | None = None  # its result; None: the sample
    # Rendered once: terminal answers stay byte-identical until they expire.
    answer: bytes = b""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None


class RefusedError(Exception):
    """A request that is answered with the vendor's error envelope."""

    def __init__(self, status: int, detail: str, *, category: str | None = None) -> None:
        """Word it as the vendor does: category, then detail."""
        super().__init__(detail)
        self.status = status
        self.message = f"{category or CATEGORIES.get(status) or reason_phrase(status)}: {detail}"


class DroppedError(Exception):
    """A request whose connection is closed without an answer."""


def reason_phrase(status: int) -> str:
    """Return the standard phrase of a status, also for unassigned ones."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"


def success_body(data: Any) -> bytes:
    """Render the success envelope."""
    return minified({"code": 0, "message": "success", "data": data})


def minified(value: Any) -> bytes:
    """Render JSON the way the vendor's servers do."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def json_response(body: bytes, status: int = 200) -> web.Response:
    """Answer with JSON that is already rendered."""
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")


def error_response(status: int, message: str) -> web.Response:
    """Answer with the error envelope, or with nothing where the status forbids a body."""
    if status in {204, 205, 304}:
        return web.Response(status=status)
    return json_response(minified({"code": status, "message": message}), status)


async def control_body[T: BaseModel](request: web.Request, form: type[T]) -> T:
    """Parse a control call; a wrong one is refused with the name of its first wrong field."""
    try:
        return form.model_validate_json(await request.read())
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "body"
        raise RefusedError(400, f"parameter '{name}': {first['msg']}") from error


@web.middleware
async def envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Dress every refusal in the envelope, and drop the connections that are to be dropped."""
    try:
        response = await handler(request)
    except RefusedError as error:
        response = error_response(error.status, error.message)
    except (DroppedError, ConnectionResetError):  # by a fault, or by the client in the middle of its request
        if request.transport is not None:
            request.transport.close()
        return web.Response()  # never written: its connection is gone
    except (web.HTTPMethodNotAllowed, web.HTTPNotFound):
        response = error_response(404, f"Resource not found: {request.method} {request.path}")
    except web.HTTPRequestEntityTooLarge as error:
        response = error_response(413, f"Request entity too large: {error.text}")
    if not response.prepared:
        response.headers.update(request.get(ANSWER_HEADERS, {}))
    return response


@contextlib.asynccontextmanager
async def serving(app: web.Application, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve an application on a loopback socket and yield its origin; held requests end with it."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class VendorEmulator:
    """The state of one vendor: its tasks, its limits, the faults in force and what it counted."""

    def __init__(self, profile: VendorProfile | None = None) -> None:
        """Start with no task and no fault."""
        self.profile = profile or VendorProfile()
        self.api_keys = set(self.profile.api_keys)  # may change while running, as keys are rotated
        self.tasks: dict[str, VendorTask] = {}
        self.submits = 0
        self.polls = 0
        self.refused_rate = 0
        self.refused_concurrency = 0
        self._faults: defaultdict[FaultTarget, deque[_ArmedFault]] = defaultdict(deque)
        self._windows: defaultdict[str, deque[float]] = defaultdict(deque)
        self._running: Counter[str] = Counter()
        self._hints: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._results = Results()

    def app(self) -> web.Application:
        """Build the application that serves this state."""
        app = web.Application(middlewares=[envelope], client_max_size=16 * 2**20)
        app.router.add_post("/_control/faults", self._add_fault)
        app.router.add_delete("/_control/faults", self._clear_faults)
        app.router.add_post("/_control/results", self._set_results)
        app.router.add_get("/_control", self._control)
        app.router.add_get("/_control/counts", self._counts)
        app.router.add_get("/api/v1/apikey/validate", self._validate_key)
        app.router.add_get("/api/v1/models", self._models)
        app.router.add_get("/api/v1/team/balance", self._balance)
        app.router.add_get("/api/v1/tasks/{task_id}", self._task)
        app.router.add_post("/api/v1/{provider}/{model}", self._submit)
        app.router.add_post("/api/v1/{provider}/{model}/async", self._submit)
        app.router.add_get("/files/{name}", self._result_file)
        app.router.add_get("/media/{name}", self._sample)
        app.cleanup_ctx.append(self._lifetime)
        return app

    # --- control ----------------------------------------------------------------------------------------------------

    def inject(self, fault: Fault) -> None:
        """Put a fault behind those already in force for the same kind of call; a call meets one fault."""
        self._faults[fault.on].append(_ArmedFault(fault, fault.times))

    def clear_faults(self) -> None:
        """Forget every fault that has not struck yet."""
        self._faults.clear()

    def counts(self) -> dict[str, int]:
        """Return what was counted."""
        return {
            "paid_submits": len(self.tasks),
            "submits": self.submits,
            "polls": self.polls,
            "refused_rate": self.refused_rate,
            "refused_concurrency": self.refused_concurrency,
            "running": self._running.total(),
        }

    def snapshot(self) -> dict[str, Any]:
        """Return what was counted, and every task that was paid for, oldest first."""
        return {
            **self.counts(),
            "tasks": [
                {
                    "id": task.id,
                    "submitted_at": task.submitted_at,
                    "ended_at": task.ended_at,
                    "requests": task.requests,
                    "status": self._status(task),
                    "model": task.model,
                    "request": task.request,
                    "webhook_url": task.webhook_url,
                    "hint_attempts": task.hint_attempts,
                }
                for task in self.tasks.values()
            ],
        }

    async def _add_fault(self, request: web.Request) -> web.Response:
        self.inject(await control_body(request, Fault))
        return json_response(success_body({}))

    async def _clear_faults(self, _: web.Request) -> web.Response:
        self.clear_faults()
        return json_response(success_body({}))

    async def _set_results(self, request: web.Request) -> web.Response:
        self._results = await control_body(request, Results)
        return json_response(success_body({}))

    async def _control(self, _: web.Request) -> web.Response:
        return json_response(minified(self.snapshot()))

    async def _counts(self, _: web.Request) -> web.Response:
        return json_response(minified(self.counts()))

    # --- the vendor's calls -----------------------------------------------------------------------------------------

    async def _submit(self, request: web.Request) -> web.StreamResponse:
        provider, model = request.match_info["provider"], request.match_info["model"]
        if provider in RESERVED_PROVIDERS:
            raise web.HTTPNotFound
        self.submits += 1
        body = await request.read()  # all of it first: a client that hangs up later has submitted
        key = self._admit(request)
        fault = await self._strike("submit", request)
        slug = f"{provider}/{model}"
        if slug not in MODELS:
            raise RefusedError(404, f"model '{slug}' not found")
        if fault is not None and fault.fault == "code_nonzero":
            return json_response(minified({"code": 500, "message": fault.message or "Internal error"}))
        fields = _validated_fields(body)
        webhook_url = self._webhook_url(request)
        if self._running[key] >= self.profile.concurrent:
            self.refused_concurrency += 1
            raise RefusedError(429, f"at most {self.profile.concurrent} running tasks", category="Concurrent limit exceeded")

        task = VendorTask(
            id=f"task-{uuid.uuid4().hex}",
            api_key=key,
            model=slug,
            request=fields,
            origin=self.profile.public_url or str(request.url.origin()),
            webhook_url=webhook_url,
            submitted_at=time.time(),
        )
        self._begin(task, fault)
        if fault is not None and fault.fault == "drop_after":
            raise DroppedError
        if fault is not None and fault.fault == "not_json":
            return _not_json()
        answer: dict[str, Any] = {
            "status": "pending",
            "task_id": task.id,
            "model_id": slug,
            "get_result": {"method": "GET", "url": f"{task.origin}/api/v1/tasks/{task.id}"},
        }
        if fault is not None and fault.fault == "wrong_id":
            # Taken and paid, yet nothing in the answer names the task.
            answer |= {"task_id": None, "get_result": None}
        return json_response(success_body(answer))

    async def _task(self, request: web.Request) -> web.StreamResponse:
        self.polls += 1
        task = self.tasks.get(request.match_info["task_id"])
        if task is not None:
            task.requests += 1
        self._admit(request)
        hold_s = self._hold_s(request)
        fault = await self._strike("task", request)
        if task is None or self._expired(task):
            raise RefusedError(404, f"task '{request.match_info['task_id']}' not found")
        if fault is not None and fault.fault == "drop_after":
            raise DroppedError
        if fault is not None and fault.fault == "not_json":
            return _not_json()
        if fault is not None and fault.fault == "code_nonzero":
            return json_response(minified({"code": 500, "message": fault.message or "Internal error"}))
        if fault is not None and (fault.fault == "canceled" or fault.fault in FAILED_FAULTS):
            self._doom(task, fault)
            self._end(task)
        if hold_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(hold_s):
                    await task.ended.wait()
        answer = task.answer or success_body(self._identity(task, self._status(task)))
        if fault is not None and fault.fault == "wrong_id":
            other = next((id_ for id_ in reversed(self.tasks) if id_ != task.id), f"task-{uuid.uuid4().hex}")
            answer = answer.replace(b'"task_id":"%b"' % task.id.encode(), b'"task_id":"%b"' % other.encode())
        return json_response(answer)

    async def _validate_key(self, request: web.Request) -> web.Response:
        known = _bearer(request) in self.api_keys
        if known:
            self._admit(request)
        return json_response(success_body({"is_valid": known}))

    async def _models(self, request: web.Request) -> web.Response:
        self._admit(request)
        models = [
            {
                "slug": slug,
                "type": "video-to-video",
                "docs_url": f"https://docs.modellix.ai/{slug.replace('.', '-')}",
                "description": "Replaces or animates the character of a video.",
            }
            for slug in MODELS
        ]
        return json_response(minified({"models": models}))

    async def _balance(self, request: web.Request) -> web.Response:
        self._admit(request)
        fault = await self._strike("balance", request)
        if fault is not None and fault.fault == "drop_after":
            raise DroppedError
        if fault is not None and fault.fault == "not_json":
            return _not_json()
        return json_response(success_body({"balance": 100.1234}))

    async def _result_file(self, request: web.Request) -> web.StreamResponse:
        fault = await self._strike("file", request)
        task = self.tasks.get(request.match_info["name"].removesuffix(".mp4"))
        if task is None or task.outcome != "success" or task.ended_at is None or self._expired(task) or self._results.gone:
            raise web.HTTPNotFound
        if task.bulk is not None and (fault is None or fault.fault in {"slow", "drop_after"}):
            dropped = fault is not None and fault.fault == "drop_after"
            answer = await task.bulk.serve(request, rate=self._results.rate, until=task.bulk.size // 2 if dropped else None)
            if dropped:
                raise DroppedError
            return answer
        return await _file(request, RESULT, fault)

    async def _sample(self, request: web.Request) -> web.StreamResponse:
        fault = await self._strike("media", request)
        if request.match_info["name"] not in SAMPLES:
            raise web.HTTPNotFound
        return await _file(request, MEDIA / request.match_info["name"], fault)

    # --- limits and faults ------------------------------------------------------------------------------------------

    def _admit(self, request: web.Request) -> str:
        """Return the caller's key once it is known and its window has room; a refused call takes no room."""
        key = _bearer(request)
        if key not in self.api_keys:
            raise RefusedError(401, "invalid API key")
        window, now = self._windows[key], time.monotonic()
        while window and window[0] <= now - self.profile.rate_window_s:
            window.popleft()
        room = len(window) < self.profile.rpm
        if room:
            window.append(now)
        freed_in_s = (window[0] if window else now) + self.profile.rate_window_s - now
        headers = {
            "X-RateLimit-Limit": str(self.profile.rpm),
            "X-RateLimit-Remaining": str(self.profile.rpm - len(window)),
            "X-RateLimit-Reset": str(math.ceil(time.time() + freed_in_s)),
        }
        request[ANSWER_HEADERS] = headers
        if not room:
            self.refused_rate += 1
            if self.profile.retry_after:
                headers["Retry-After"] = str(math.ceil(freed_in_s))
            raise RefusedError(429, f"at most {self.profile.rpm} requests per minute")
        return key

    async def _strike(self, target: FaultTarget, request: web.Request) -> Fault | None:
        """Use up the fault that is next for this call; those that need no task happen here, the rest is returned."""
        queue = self._faults[target]
        if not queue:
            return None
        armed = queue[0]
        if armed.left is not None:
            armed.left -= 1
            if armed.left == 0:
                queue.popleft()
        fault = armed.fault
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        if fault.fault == "drop_before":
            raise DroppedError
        if fault.status is not None:
            request[ANSWER_HEADERS] = self._status_fault_headers(fault, request)
            raise RefusedError(fault.status, fault.message or "injected fault")
        return fault

    def _status_fault_headers(self, fault: Fault, request: web.Request) -> dict[str, str]:
        headers: dict[str, str] = request.get(ANSWER_HEADERS, {})
        if fault.status == 429 and ANSWER_HEADERS in request:
            # The next call would be served, so that is what the headers say.
            headers |= {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(math.ceil(time.time()) + 1)}
            if self.profile.retry_after:
                headers |= {"Retry-After": "1"}
        if fault.headers is not None:
            headers = fault.headers
        if fault.status is not None and 300 <= fault.status < 400:
            # To itself: a client that follows shows up as one more request.
            headers = {"Location": str(request.url), **headers}
        return headers

    def _webhook_url(self, request: web.Request) -> str | None:
        """Return where the hint goes; unlike the vendor's, http and loopback are allowed here."""
        url = request.headers.get("X-Webhook-URL")
        if url is None or not self.profile.hints:
            return None
        if not _is_http_url(url):
            raise RefusedError(400, "header 'X-Webhook-URL' must be an http or https URL")
        return url

    def _hold_s(self, request: web.Request) -> float:
        if not self.profile.long_poll or request.query.get("wait", "").lower() not in {"true", "1"}:
            return 0.0
        timeout = request.query.get("timeout")
        if timeout is None:
            return LONG_POLL_DEFAULT_S
        try:
            seconds = float(timeout)
        except ValueError:
            seconds = math.nan
        if not seconds >= 0:
            raise RefusedError(400, f"parameter 'timeout' must be a number of seconds, got '{timeout}'", category="Invalid format")
        return min(seconds, LONG_POLL_MAX_S)

    # --- a task's life ----------------------------------------------------------------------------------------------

    def _begin(self, task: VendorTask, fault: Fault | None) -> None:
        if fault is not None and (fault.fault == "canceled" or fault.fault in FAILED_FAULTS):
            self._doom(task, fault)
        self.tasks[task.id] = task
        self._running[task.api_key] += 1
        task.timer = asyncio.get_running_loop().call_later(self._seconds(task), self._end, task)

    def _seconds(self, task: VendorTask) -> float:
        """How long a task takes: as its image's URL asks (`?task_seconds=12.5`), else as all do."""
        asked = re.search(r"[?&]task_seconds=([0-9]{1,6}(?:\.[0-9]{1,3})?)(?:&|$)", str(task.request.get("image_url", "")))
        return float(asked[1]) if asked else self.profile.task_seconds

    def _doom(self, task: VendorTask, fault: Fault) -> None:
        """Decide that a task which still runs ends badly; a terminal state never changes."""
        if task.ended_at is None:
            task.outcome = "canceled" if fault.fault == "canceled" else "failed"
            task.failed_form = FAILED_FAULTS.get(fault.fault, "both")
            task.failure = fault.message or FAILURE_MESSAGE

    def _end(self, task: VendorTask) -> None:
        if task.ended_at is not None:
            return
        if task.timer is not None:
            task.timer.cancel()
        task.ended_at = time.time()
        task.bulk = Bulk(task.id, self._results.bytes) if self._results.bytes else None
        task.answer = self._terminal_answer(task, task.ended_at)
        self._running[task.api_key] -= 1
        task.ended.set()
        if task.webhook_url is not None and self._session is not None:
            hint = asyncio.get_running_loop().create_task(self._hint(task, task.webhook_url, self._session))
            self._hints.add(hint)
            hint.add_done_callback(self._hints.discard)

    def _status(self, task: VendorTask) -> str:
        if task.ended_at is not None:
            return self.profile.success_word if task.outcome == "success" else task.outcome
        return "pending" if time.time() - task.submitted_at < self._seconds(task) / 4 else "processing"

    def _expired(self, task: VendorTask) -> bool:
        return task.ended_at is not None and time.time() >= task.ended_at + self.profile.retention_s

    def _identity(self, task: VendorTask, status: str) -> dict[str, Any]:
        return {"status": status, "task_id": task.id, "model_id": task.model}

    def _terminal_answer(self, task: VendorTask, ended_at: float) -> bytes:
        data = self._identity(task, self._status(task)) | {"duration": round((ended_at - task.submitted_at) * 1000)}
        message = "success"
        if task.outcome == "success":
            data |= {
                "result": {
                    "resources": [
                        {
                            "url": f"{task.origin}/files/{task.id}.mp4",
                            "type": "video",
                            "width": 320,
                            "height": 240,
                            "format": "mp4",
                            "role": "primary",
                            "duration": 4.0,
                            "size": task.bulk.size if task.bulk is not None else RESULT.stat().st_size,
                        }
                    ],
                    "metadata": {"video_count": 1, "request_id": f"req-{task.id.removeprefix('task-')}"},
                    "extensions": {"submit_time": _iso(task.submitted_at), "end_time": _iso(ended_at)},
                },
                "billing": {"status": "succeeded", "amount": "0.2400"},
            }
            expires_at = ended_at + self.profile.retention_s
            if self.profile.expiry_form == "ms":
                data["result_expires_at"] = int(expires_at * 1000)
            elif self.profile.expiry_form == "iso":
                data["result_expires_at"] = _iso(expires_at)
        elif task.outcome == "failed":
            if task.failed_form in {"message", "both"}:
                message = task.failure
                data["message"] = task.failure
            if task.failed_form == "string":
                data["error"] = task.failure
            if task.failed_form in {"object", "both"}:
                data["error"] = {"code": "InvalidFile.NoHuman", "message": task.failure}
        return minified({"code": 0, "message": message, "data": data})

    async def _hint(self, task: VendorTask, url: str, session: aiohttp.ClientSession) -> None:
        """Post the vendor's native webhook, again only after 429, 5xx or a network error."""
        headers = {
            "Content-Type": "application/json",
            "X-Modellix-Event": f"prediction.task.{'succeeded' if task.outcome == 'success' else task.outcome}",
            "X-Modellix-Task-ID": task.id,
            "X-Modellix-Delivery-ID": uuid.uuid4().hex,
        }
        for retry_count, wait_s in enumerate((0.0, *self.profile.hint_waits)):
            await asyncio.sleep(wait_s)
            task.hint_attempts += 1
            attempt = headers | {"X-Modellix-Retry-Count": str(retry_count)}
            try:
                async with session.post(url, data=task.answer, headers=attempt, allow_redirects=False) as response:
                    if response.status != 429 and response.status < 500:
                        return
            except (aiohttp.ClientError, TimeoutError):
                continue

    async def _lifetime(self, _: web.Application) -> AsyncIterator[None]:
        """Own what outlives a request: the client of the hints, the hints under way, the timers of the tasks."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as self._session:
            yield
            for task in self.tasks.values():
                if task.timer is not None:
                    task.timer.cancel()
            for hint in self._hints:
                hint.cancel()
            await asyncio.gather(*self._hints, return_exceptions=True)
        self._session = None


def _bearer(request: web.Request) -> str:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _is_http_url(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.startswith(("http://", "https://")) and " " not in value


def _validated_fields(body: bytes) -> dict[str, Any]:
    """Check a submit in the vendor's order and words; fields it does not know are let through."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "invalid JSON format", category="Invalid format") from error
    if not isinstance(fields, dict):
        raise RefusedError(400, "request body must be a JSON object", category="Invalid format")
    for name in ("image_url", "video_url", "mode"):
        if fields.get(name) in (None, ""):
            raise RefusedError(400, f"parameter '{name}' is required")
    for name in ("image_url", "video_url"):
        if not _is_http_url(fields[name]):
            raise RefusedError(400, f"parameter '{name}' must be an ASCII http or https URL", category="Invalid format")
    if fields["mode"] not in MODES:
        raise RefusedError(400, f"parameter 'mode' must be one of {', '.join(MODES)}, got '{fields['mode']}'")
    if not isinstance(fields.get("check_image", True), bool):
        raise RefusedError(400, "parameter 'check_image' must be a boolean", category="Invalid format")
    return fields


def _not_json() -> web.Response:
    return web.Response(text="<html><body>upstream connect error</body></html>", content_type="text/html")


async def _file(request: web.Request, path: Path, fault: Fault | None) -> web.StreamResponse:
    """Serve a file, ranges included; `drop_after` breaks off in the middle, `not_json` is a page instead of media."""
    if fault is not None and fault.fault == "not_json":
        return _not_json()
    if fault is not None and fault.fault == "drop_after":
        content = await asyncio.to_thread(path.read_bytes)
        response = web.StreamResponse(headers={"Content-Length": str(len(content)), "Content-Type": "video/mp4"})
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        raise DroppedError
    return web.FileResponse(path)


def _iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# --- as a process of its own ------------------------------------------------------------------------------------------


async def _serve(profile: VendorProfile, port: int) -> None:
    """Serve until a signal comes or the parent dies."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    parent = os.getppid()
    async with serving(VendorEmulator(profile).app(), port=port) as origin:
        print(json.dumps({"upstream": origin, "api_key": profile.api_keys[0]}), flush=True)
        while not stop.is_set() and os.getppid() == parent:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await stop.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the emulator and print one JSON line with its origin and its first API key when it is ready."""
    default = VendorProfile()
    parser = argparse.ArgumentParser(prog="python -m tests.local.vendor", description=__doc__)
    add = parser.add_argument
    add("--port", type=int, default=0, help="0: any free port")
    add("--api-key", action="append", metavar="KEY", help="accepted key, repeatable; without it one is generated")
    add("--public-url", help="origin named in answers; without it the one that the client used")
    add("--task-seconds", type=float, default=default.task_seconds)
    add("--rpm", type=int, default=default.rpm, help="authenticated calls per key in any 60 s")
    add("--concurrent", type=int, default=default.concurrent, help="running tasks per key")
    add("--no-long-poll", dest="long_poll", action="store_false")
    add("--no-hints", dest="hints", action="store_false")
    add("--retention-seconds", type=float, default=default.retention_s)
    add("--retry-after", action="store_true", help="a rate refusal also carries Retry-After")
    add("--success-word", default=default.success_word)
    add("--expiry-form", choices=("ms", "iso", "absent"), default=default.expiry_form)
    options = parser.parse_args(arguments)
    profile = VendorProfile(
        api_keys=tuple(options.api_key or default.api_keys),
        public_url=options.public_url,
        task_seconds=options.task_seconds,
        rpm=options.rpm,
        concurrent=options.concurrent,
        long_poll=options.long_poll,
        hints=options.hints,
        retention_s=options.retention_seconds,
        retry_after=options.retry_after,
        success_word=options.success_word,
        expiry_form=options.expiry_form,
    )
    asyncio.run(_serve(profile, options.port))


if __name__ == "__main__":
    main()
