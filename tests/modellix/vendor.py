"""Modellix as its pages describe it, without a wire: its tasks and limits, in whatever time it is given."""

import json
import math
import re
import secrets
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tests.modellix.faults import FAILED_FAULTS, FailedForm, Fault
from tests.modellix.words import RefusedError, is_http_url, iso, minified, success_body, validated_fields

MODELS = ("alibaba/wan2.2-animate-mix", "alibaba/wan2.2-animate-move")
LONG_POLL_DEFAULT_S = 30.0
LONG_POLL_MAX_S = 45.0
FAILURE_MESSAGE = "The input image has no human body or multiple human bodies."


def new_key() -> str:
    """Return an API key of the vendor's form."""
    return f"mdlx-{secrets.token_hex(16)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorProfile:
    """How this vendor behaves while nothing injects a fault."""

    api_keys: tuple[str, ...] = field(default_factory=lambda: (new_key(),))
    public_url: str | None = None  # None: the origin that the client used
    task_seconds: float = 8.0
    rpm: int = 1000  # in any rate_window_s
    rate_window_s: float = 60.0
    concurrent: int = 100
    long_poll: bool = True
    webhooks: bool = True
    webhook_waits: tuple[float, ...] = (1.0, 5.0, 15.0)  # between the tries of one webhook
    retention_s: float = 7 * 86400.0
    retry_after: bool = False  # undocumented by the vendor, honoured by its clients
    success_word: str = "success"
    expiry_form: Literal["ms", "iso", "absent"] = "ms"


class Results(BaseModel):
    """What result files are like from now on; `bytes` holds for tasks that end, everything else at once."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bytes: int | None = Field(default=None, ge=1)  # null: the sample
    rate: int | None = Field(default=None, ge=1)  # bytes a second
    gone: bool = False  # every link is dead


@dataclass(slots=True, kw_only=True)
class VendorTask:
    """One task that was paid for; times are seconds of the clock that its vendor was given."""

    id: str
    api_key: str
    model: str
    request: dict[str, Any]
    origin: str
    webhook_url: str | None
    submitted_at: float
    ends_at: float
    outcome: Literal["success", "failed", "canceled"] = "success"
    failed_form: FailedForm = "both"
    failure: str = FAILURE_MESSAGE
    requests: int = 1
    webhook_attempts: int = 0
    result_bytes: int | None = None  # None: the sample
    # Rendered once, at the first look after its end: terminal answers stay byte-identical until they expire.
    answer: bytes = b""
    removed: bool = False  # and its result with it


class Modellix:
    """The state of one vendor: its tasks, its limits and what it counted.

    Nothing in it waits: a task has ended once `now` is there, and what an answer says is worked out when it
    is asked for.
    """

    def __init__(
        self,
        profile: VendorProfile | None = None,
        *,
        now: Callable[[], float] = time.time,
        sample_bytes: int = 0,
    ) -> None:
        """Start with no task; `now` gives seconds, `sample_bytes` is the size of the usual result."""
        self.profile = profile or VendorProfile()
        self.now = now
        self.api_keys = set(self.profile.api_keys)  # may change while running, as keys are rotated
        self.tasks: dict[str, VendorTask] = {}
        self.results = Results()
        self.submits = 0
        self.polls = 0
        self.refused_rate = 0
        self.refused_concurrency = 0
        self._sample_bytes = sample_bytes
        self._windows: defaultdict[str, deque[float]] = defaultdict(deque)
        self._running: defaultdict[str, list[VendorTask]] = defaultdict(list)

    # --- control ----------------------------------------------------------------------------------

    def set_results(self, results: Results) -> None:
        """Change what result files are like; those of tasks that have ended keep their size."""
        for task in self.tasks.values():
            self.answer(task)
        self.results = results

    def counts(self) -> dict[str, int]:
        """Return what was counted."""
        return {
            "paid_submits": len(self.tasks),
            "submits": self.submits,
            "polls": self.polls,
            "refused_rate": self.refused_rate,
            "refused_concurrency": self.refused_concurrency,
            "running": sum(map(self.running, self._running)),
        }

    def snapshot(self) -> dict[str, Any]:
        """Return what was counted, and every task that was paid for, oldest first."""
        return {
            **self.counts(),
            "tasks": [
                {
                    "id": task.id,
                    "submitted_at": task.submitted_at,
                    "ended_at": task.ends_at if self.has_ended(task) else None,
                    "requests": task.requests,
                    "status": self.status(task),
                    "model": task.model,
                    "request": task.request,
                    "webhook_url": task.webhook_url,
                    "webhook_attempts": task.webhook_attempts,
                }
                for task in self.tasks.values()
            ],
        }

    # --- limits and rules -------------------------------------------------------------------------

    def admit(self, key: str) -> dict[str, str]:
        """Let a key make one call; give the headers that say what is left of its window.

        Raises RefusedError for an unknown key, and for a full window, of which a refused call takes nothing.
        """
        if key not in self.api_keys:
            raise RefusedError(401, "invalid API key")
        window, now, length = self._windows[key], self.now(), self.profile.rate_window_s
        while window and window[0] <= now - length:
            window.popleft()
        has_space = len(window) < self.profile.rpm
        if has_space:
            window.append(now)
        freed_in_s = length - (now - window[0] if window else 0.0)
        headers = {
            "X-RateLimit-Limit": str(self.profile.rpm),
            "X-RateLimit-Remaining": str(self.profile.rpm - len(window)),
            "X-RateLimit-Reset": str(math.ceil(now + freed_in_s)),
        }
        if not has_space:
            self.refused_rate += 1
            if self.profile.retry_after:
                headers["Retry-After"] = str(math.ceil(freed_in_s))
            raise RefusedError(429, f"at most {self.profile.rpm} requests per minute", headers=headers)
        return headers

    def count_poll(self, task_id: str) -> None:
        """Count a poll, refused or not."""
        self.polls += 1
        if task_id in self.tasks:
            self.tasks[task_id].requests += 1

    def hold_s(self, wait: str, timeout: str | None) -> float:
        """Tell for how many seconds a poll is held at most, by its query; 0: not at all."""
        if not self.profile.long_poll or wait.lower() not in {"true", "1"}:
            return 0.0
        if timeout is None:
            return LONG_POLL_DEFAULT_S
        try:
            seconds = float(timeout)
        except ValueError:
            seconds = math.nan
        if not seconds >= 0:
            raise RefusedError(
                400,
                f"parameter 'timeout' must be a number of seconds, got '{timeout}'",
                category="Invalid format",
            )
        return min(seconds, LONG_POLL_MAX_S)

    def check_model(self, slug: str) -> None:
        """Raise RefusedError for a model that this vendor does not have."""
        if slug not in MODELS:
            raise RefusedError(404, f"model '{slug}' not found")

    def running(self, group: str) -> int:
        """Count the tasks of a group that have not ended."""
        self._running[group] = [task for task in self._running[group] if not self.has_ended(task)]
        return len(self._running[group])

    def group(self, key: str, slug: str) -> str:
        """Name the tasks that share one limit of running tasks: here those of a key."""
        del slug
        return key

    # --- a task's life ----------------------------------------------------------------------------

    def take(
        self,
        key: str,
        slug: str,
        body: bytes,
        *,
        webhook_url: str | None,
        origin: str,
        fault: Fault | None = None,
    ) -> VendorTask:
        """Take a task, which is paid for from then on; raises RefusedError for a wrong or surplus one."""
        fields = self.fields(body)
        hook = webhook_url if self.profile.webhooks else None
        if hook is not None and not is_http_url(hook):
            raise RefusedError(400, "header 'X-Webhook-URL' must be an http or https URL")
        group = self.group(key, slug)
        if self.running(group) >= self.profile.concurrent:
            self.refused_concurrency += 1
            raise RefusedError(
                429, f"at most {self.profile.concurrent} running tasks", category="Concurrent limit exceeded"
            )
        now = self.now()
        task = VendorTask(
            id=f"task-{uuid.uuid4().hex}",
            api_key=key,
            model=slug,
            request=fields,
            origin=self.profile.public_url or origin,
            webhook_url=hook,
            submitted_at=now,
            ends_at=now + self._seconds(fields),
        )
        if fault is not None and fault.ends_badly:
            _doom(task, fault)
        self.tasks[task.id] = task
        self._running[group].append(task)
        return task

    def fields(self, body: bytes) -> dict[str, Any]:
        """Read a submit; raises RefusedError for a wrong one."""
        return validated_fields(body)

    def _seconds(self, fields: dict[str, Any]) -> float:
        """How long a task takes: as a URL of it asks (`?task_seconds=12.5`), else as all do."""
        asked = re.search(r"[?&]task_seconds=([0-9]{1,6}(?:\.[0-9]{1,3})?)(?:&|\")", json.dumps(fields))
        return float(asked[1]) if asked else self.profile.task_seconds

    def end(self, task: VendorTask, fault: Fault | None = None) -> None:
        """End a task now, badly where a fault says so; a terminal state never changes."""
        if self.has_ended(task):
            return
        if fault is not None:
            _doom(task, fault)
        task.ends_at = self.now()

    def has_ended(self, task: VendorTask) -> bool:
        """Whether it has a terminal state."""
        return self.now() >= task.ends_at

    def known(self, task_id: str) -> VendorTask:
        """Find a task that can still be asked for; raises RefusedError for any other id."""
        task = self.tasks.get(task_id)
        if task is None or self._has_expired(task):
            raise RefusedError(404, f"task '{task_id}' not found")
        return task

    def result(self, task_id: str) -> VendorTask | None:
        """Find the task whose result can be downloaded."""
        task = self.tasks.get(task_id)
        if (
            task is None
            or task.outcome != "success"
            or not self.has_ended(task)
            or self._has_expired(task)
            or self.results.gone
        ):
            return None
        self.answer(task)  # which settles how large it is
        return task

    def _has_expired(self, task: VendorTask) -> bool:
        return task.removed or self.now() >= task.ends_at + self.profile.retention_s

    # --- what is said of a task -------------------------------------------------------------------

    def status(self, task: VendorTask) -> str:
        """Say how far a task is, in the vendor's words."""
        if self.has_ended(task):
            return self.profile.success_word if task.outcome == "success" else task.outcome
        return "pending" if self.now() - task.submitted_at < self._seconds(task.request) / 4 else "processing"

    def accepted(self, task: VendorTask, *, named: bool = True) -> bytes:
        """Render the answer to a submit, by a fault one that does not name the task."""
        get_result = {"method": "GET", "url": f"{task.origin}/api/v1/tasks/{task.id}"}
        return success_body(
            {
                "status": "pending",
                "task_id": task.id if named else None,
                "model_id": task.model,
                "get_result": get_result if named else None,
            }
        )

    def answer(self, task: VendorTask) -> bytes:
        """Render the answer to a poll."""
        if not self.has_ended(task):
            return success_body(self._identity(task))
        if not task.answer:
            task.result_bytes = self.results.bytes
            task.answer = self._terminal_answer(task)
        return task.answer

    def _identity(self, task: VendorTask) -> dict[str, Any]:
        return {"status": self.status(task), "task_id": task.id, "model_id": task.model}

    def _terminal_answer(self, task: VendorTask) -> bytes:
        data = self._identity(task) | {"duration": round((task.ends_at - task.submitted_at) * 1000)}
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
                            "size": task.result_bytes or self._sample_bytes,
                        }
                    ],
                    "metadata": {"video_count": 1, "request_id": f"req-{task.id.removeprefix('task-')}"},
                    "extensions": {"submit_time": iso(task.submitted_at), "end_time": iso(task.ends_at)},
                },
                "billing": {"status": "succeeded", "amount": "0.2400"},
            }
            expires_at = task.ends_at + self.profile.retention_s
            if self.profile.expiry_form == "ms":
                data["result_expires_at"] = int(expires_at * 1000)
            elif self.profile.expiry_form == "iso":
                data["result_expires_at"] = iso(expires_at)
        elif task.outcome == "failed":
            if task.failed_form in {"message", "both"}:
                message = task.failure
                data["message"] = task.failure
            if task.failed_form == "string":
                data["error"] = task.failure
            if task.failed_form in {"object", "both"}:
                data["error"] = {"code": "InvalidFile.NoHuman", "message": task.failure}
        return minified({"code": 0, "message": message, "data": data})


def _doom(task: VendorTask, fault: Fault) -> None:
    task.outcome = "canceled" if fault.fault == "canceled" else "failed"
    task.failed_form = FAILED_FAULTS.get(fault.fault, "both")
    task.failure = fault.message or FAILURE_MESSAGE
