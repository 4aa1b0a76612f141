"""DashScope (Alibaba Cloud Model Studio): its paths, requests, answers and form.

Over 400 lines, for it alone has a list of its own and results in many places.

It calls no webhook that a request could name. An answer about a task comes with status 200 whatever has
become of it; times are Beijing's, without a zone.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from http import HTTPStatus
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlencode

from taskhook.core import parameters
from taskhook.core.errors import RejectedError
from taskhook.core.message import MAX_NOTE, Json, finite, kept_data
from taskhook.core.models import Model
from taskhook.core.record import ErrorCode, State, Submission, SubmitOutcome, milliseconds
from taskhook.core.schedule import typical_minimum
from taskhook.core.task import Task
from taskhook.core.vendor import (
    IMAGE,
    NOT_THIS_TASK,
    VENDORS_CODE,
    VIDEO,
    Action,
    Example,
    Form,
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

BEIJING = timezone(timedelta(hours=8))
LINKS_LIVE = timedelta(hours=24)
_SERVICES = "/api/v1/services/"
_TASKS = "/api/v1/tasks"
_SERVICE = re.compile(r"/api/v1/services(?:/[a-z0-9][a-z0-9_-]{0,63}){2,4}")
_LIST_WORDS = {"page_no", "page_size", "start_time", "end_time", "model_name"}
_PASSED = ("X-DashScope-WorkSpace", "X-DashScope-OssResourceResolve", "X-DashScope-DataInspection")
_PAGE = 100  # tasks at most on one page of the vendor's list
_MOST_FILES = 100  # of one result
# Where results are; `file_url` beside a transcription is the caller's own file.
_FILES = {
    "video_url": "video",
    "video": "video",
    "image_url": "image",
    "image": "image",
    "audio_url": "audio",
    "audio": "audio",
    "transcription_url": "text",
    "url": "",
}
_STATES = {
    State.QUEUED: "PENDING",
    State.SUBMITTING: "PENDING",
    State.UNKNOWN: "PENDING",
    State.WATCHED: "RUNNING",
    State.ARCHIVING: "RUNNING",
    State.SUCCESS: "SUCCEEDED",
    State.FAILED: "FAILED",
}
_CODES = {
    HTTPStatus.UNAUTHORIZED: "InvalidApiKey",
    HTTPStatus.FORBIDDEN: "AccessDenied",
    HTTPStatus.NOT_FOUND: "NotFound",
    HTTPStatus.CONFLICT: "UnsupportedOperation",
    HTTPStatus.TOO_MANY_REQUESTS: "Throttling",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalError",
    HTTPStatus.BAD_GATEWAY: "BadGateway",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailable",
}


@dataclass(frozen=True)
class DashScope:
    """The vendor."""

    name = "dashscope"
    title = "DashScope (Alibaba Cloud Model Studio)"
    example = Example(
        f"`POST {_SERVICES}{{group}}/{{task}}/{{function}}` with `X-DashScope-Async: enable`",
        f"{_SERVICES}aigc/image2video/video-synthesis",
        {
            "model": "wan2.2-animate-mix",
            "input": {"image_url": IMAGE, "video_url": VIDEO},
            "parameters": {"mode": "wan-std"},
        },
        {"X-DashScope-Async": "enable"},
    )
    origin = "https://dashscope-intl.aliyuncs.com"
    hosts: Sequence[str] = (
        "dashscope.aliyuncs.com",
        "dashscope-us.aliyuncs.com",
        "cn-hongkong.dashscope.aliyuncs.com",
        "*.maas.aliyuncs.com",
    )
    requests_per_minute = 1200  # 20 a second, of reads
    longest_task = timedelta(0)
    long_poll = False
    webhooks = False
    cancel_removes = False
    models: Mapping[str, Model] = MappingProxyType({})

    @property
    def listing(self) -> Listing:
        """Its list, by time."""
        return _LISTING

    @property
    def form(self) -> Form:
        """Its answers: `output` beside `request_id`."""
        return _FORM

    # --- what callers ask -------------------------------------------------------------------------

    def route(self, method: str, path: str, query: Mapping[str, str]) -> Route | None:
        """Take `POST /api/v1/services/…`, and the vendor's own list of tasks.

        The list is told from the deployment's by a word of its query, or by the slash at the end of its path.
        A single task has the path that it has in the deployment's own form.
        """
        if path.startswith(_SERVICES):
            return Route(Action.SUBMIT if method == "POST" else Action.UNKNOWN)
        is_list = path == f"{_TASKS}/" or (path == _TASKS and not _LIST_WORDS.isdisjoint(query))
        return Route(Action.LIST) if method == "GET" and is_list else None

    def paid_request(self, path: str, headers: Mapping[str, str], body: Json) -> PaidRequest:
        """Read a submit; what its model takes, the vendor alone knows."""
        if _SERVICE.fullmatch(path) is None:
            raise RejectedError(
                HTTPStatus.NOT_FOUND,
                "Resource not found: no such service; its path is /api/v1/services/{group}/{task}/{function}",
            )
        if headers.get("x-dashscope-async", "").strip().lower() != "enable":
            complaint = "must be 'enable': only asynchronous calls are taken here"
            raise parameters.wrong_header("X-DashScope-Async", complaint)
        passed = {name: parameters.header(headers, name) for name in _PASSED if headers.get(name.lower())}
        identity = {"path": path, "body": body, "headers": passed}
        sent = parameters.passed_on(body)
        return PaidRequest(model_named(body), path, sent, identity, headers=passed, validated=False)

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
        return HttpRequest("POST", target, {**headers, "X-DashScope-Async": "enable"}, body)

    def operation(self, upstream_task_id: str) -> str:
        """Give the path of a task."""
        return f"{_TASKS}/{quote(upstream_task_id, safe='')}"

    def poll(self, operation: str, *, hold: bool) -> HttpRequest:
        """Ask for a task."""
        del hold
        return HttpRequest("GET", operation)

    def cancel(self, operation: str) -> HttpRequest | None:
        """Cancel a task, which the vendor does while it is pending."""
        return HttpRequest("POST", f"{operation}/cancel")

    def free_request(self) -> HttpRequest:
        """Ask for the newest task."""
        return HttpRequest("GET", f"{_TASKS}/?page_no=1&page_size=1")

    # --- what it answers --------------------------------------------------------------------------

    def read_submission(
        self, status: int, body: Json | None, *, retry_after: timedelta | None = None
    ) -> SubmitOutcome:
        """Classify the answer to the paid POST; `body` is None where it was not a JSON object."""
        body = body or {}
        code, upstream_task_id = body.get("code"), _output(body).get("task_id")
        submission = submission_of(status, upstream_task_id)
        if submission is Submission.REFUSED and code == "Arrearage":  # the account is in debt
            submission = Submission.REFUSED_HERE
        words = [word for word in (code, body.get("message")) if isinstance(word, str) and word]
        return outcome_of(submission, status, upstream_task_id, ": ".join(words), retry_after)

    def read_poll(self, body: Json, upstream_task_id: str) -> PollOutcome:
        """Read an answer about a task; what is not about this task, or has no status, says nothing."""
        output = _output(body)
        status = output.get("task_status")
        if output.get("task_id") != upstream_task_id or not isinstance(status, str):
            return NOT_THIS_TASK
        if status.lower() == "unknown":  # expired, or another account's
            return PollOutcome(kind=PollKind.MISSING)
        kind = kind_of(status)
        if kind is PollKind.PENDING:
            return PollOutcome(kind=kind)
        message = _failure(output) if kind is PollKind.FAILED else ""
        return PollOutcome(kind=kind, data=_data(body, output), message=message, canceled=is_canceled(status))


def _output(body: Json) -> Json:
    output = body.get("output")
    return output if isinstance(output, dict) else {}


def _data(body: Json, output: Json) -> Json:
    found = dict(_files(output))  # a file that is named twice is one
    resources = [{"url": url, "type": kind} for url, kind in list(found.items())[:_MOST_FILES]]
    result: Json = {"resources": resources}
    text = "".join(_texts(output))
    if text:
        result["text"] = text
    data: Json = {"result": result, "raw": finite(body)}
    if isinstance(body.get("usage"), dict):
        data["usage"] = body["usage"]
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        ended = datetime.fromisoformat(output["end_time"]) if "end_time" in output else None
        if ended is not None:
            ended = ended if ended.tzinfo is not None else ended.replace(tzinfo=BEIJING)
            data["result_expires_at"] = milliseconds(ended + LINKS_LIVE)
    return kept_data(data)


def _files(part: Any) -> Iterator[tuple[str, str]]:
    """Find the files of a result, wherever they are in it, each with its type."""
    match part:
        case dict():
            for name, value in part.items():
                if name in _FILES and isinstance(value, str):
                    if value.startswith(("http://", "https://")):
                        yield value, _FILES[name] or file_kind(value, otherwise="image")
                else:
                    yield from _files(value)
        case list():
            for value in part:
                yield from _files(value)


def _texts(output: Json) -> Iterator[str]:
    """Find the text of a result: alone, or as the content of choices."""
    if isinstance(output.get("text"), str):
        yield output["text"]
    choices = output.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        message = choice.get("message") if isinstance(choice, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            yield content
        for piece in content if isinstance(content, list) else []:
            if isinstance(piece, dict) and isinstance(piece.get("text"), str):
                yield piece["text"]


def _failure(output: Json) -> str:
    """Find the vendor's words, which may be missing."""
    words = [output[name] for name in ("code", "message") if isinstance(output.get(name), str)]
    told = ": ".join(word for word in words if word)
    return (told or f"the vendor reported {output['task_status']}, and no reason")[:MAX_NOTE]


class _DashScopeListing:
    """Its list of the account's tasks, of which one page is read."""

    def request(self, model: str, *, since: datetime, until: datetime) -> HttpRequest:
        """Ask for as many as a page holds; its times are whole seconds."""
        query = {
            "model_name": model,
            "start_time": f"{since.astimezone(BEIJING):%Y%m%d%H%M%S}",
            "end_time": f"{until.astimezone(BEIJING) + timedelta(seconds=1):%Y%m%d%H%M%S}",
            "page_no": "1",
            "page_size": str(_PAGE),
        }
        return HttpRequest("GET", f"{_TASKS}/?{urlencode(query)}")

    def made(self, body: Json, model: str, *, since: datetime, until: datetime) -> list[str] | None:
        """Read the page; with a row that cannot be read nothing is certain."""
        rows, total = body.get("data"), body.get("total")
        if not isinstance(rows, list) or not isinstance(total, int) or total > len(rows):
            return None
        found = []
        for row in rows:
            match row:
                case {"task_id": str(task_id), "gmt_create": int(made_at), **more}:
                    is_wanted = milliseconds(since) <= made_at <= milliseconds(until)
                    if is_wanted and more.get("model_name") == model:
                        found.append(task_id)
                case _:
                    return None
        return found


class _DashScopeForm:
    """Its answers."""

    def accepted(self, task: Task) -> Json:
        """Give the id, and that it waits."""
        output = {"task_id": task.task_id, "task_status": "PENDING"}
        return {"request_id": task.task_id, "output": output}

    def task(self, task: Task) -> Json:
        """Give what the vendor said of an ended task, under our id; of any other, where it stands."""
        status = _status(task)
        output: Json = {
            "task_id": task.task_id,
            "task_status": status,
            "submit_time": _beijing(task.accepted_at),
        }
        if task.ended_at is not None:
            output["end_time"] = _beijing(task.ended_at)
        shown: Json = {"request_id": task.task_id, "output": output}
        if task.raw is not None:
            ours = {"output", "request_id"}
            shown |= {name: value for name, value in task.raw.items() if name not in ours}
            shown["output"] = {**_output(task.raw), "task_id": task.task_id, "task_status": status}
        elif task.state is State.FAILED:
            error = task.said.get("error", {})
            output |= {"code": error.get("code", ""), "message": error.get("message", "")}
        elif task.state is State.SUCCESS:  # what the vendor said was too large to be kept whole
            files = task.said.get("result", {}).get("resources", [])
            output["results"] = [{"url": file["url"]} for file in files]
        return shown

    def canceled(self, task: Task) -> Json:
        """Give no more than the vendor does."""
        return {"request_id": task.task_id}

    def listed(self, tasks: Sequence[Task], query: Mapping[str, str]) -> Json:
        """Give a page of those that the query wants."""
        for name in ("start_time", "end_time"):
            if name in query and re.fullmatch("[0-9]{14}", query[name]) is None:
                raise parameters.wrong(name, "must be a time of Beijing's as YYYYMMDDhhmmss")
        wanted = [task for task in tasks if _is_wanted(task, query)]
        size = parameters.number(query, "page_size", 10, 100)
        number = parameters.number(query, "page_no", 1, 10_000)
        page = wanted[size * (number - 1) : size * number]
        return {
            "request_id": "list",
            "data": [_row(task) for task in page],
            "total": len(wanted),
            "total_page": -(-len(wanted) // size),
            "page_no": number,
            "page_size": size,
        }

    def error(self, status: int, message: str) -> Json:
        """Say why a call has failed."""
        told = VENDORS_CODE.match(message)  # in what was refused, the vendor's own
        if told is not None:
            return {"request_id": "", "code": told[1], "message": told[2]}
        code = {int(known): word for known, word in _CODES.items()}.get(status, "InvalidParameter")
        return {"request_id": "", "code": code, "message": message}


def _status(task: Task) -> str:
    """Say where a task stands in the vendor's words; a canceled task is told from a failed one."""
    told = str(_output(task.raw or {}).get("task_status"))
    if task.error is ErrorCode.CANCELED or (task.state is State.FAILED and is_canceled(told)):
        return "CANCELED"
    return _STATES[task.state]


def _row(task: Task) -> Json:
    row: Json = {
        "task_id": task.task_id,
        "status": _status(task),
        "model_name": task.model,
        "gmt_create": milliseconds(task.accepted_at),
        "start_time": milliseconds(task.taken_at or task.accepted_at),
    }
    return row if task.ended_at is None else {**row, "end_time": milliseconds(task.ended_at)}


def _is_wanted(task: Task, query: Mapping[str, str]) -> bool:
    accepted = f"{task.accepted_at.astimezone(BEIJING):%Y%m%d%H%M%S}"
    return (
        query.get("model_name", task.model) == task.model
        and query.get("status", _status(task)) == _status(task)
        and query.get("start_time", "") <= accepted <= query.get("end_time", "9")
    )


def _beijing(moment: datetime) -> str:
    return f"{moment.astimezone(BEIJING):%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}"


_FORM = _DashScopeForm()
_LISTING = _DashScopeListing()
DASHSCOPE = DashScope()
