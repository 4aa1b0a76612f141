"""What a history says, a line of JSON for each exchange; `tests/judge.py` reads it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Json = Any
WORDS = {  # vendors' words of a task's state, in small letters; any other one: not ended
    **dict.fromkeys(("success", "succeeded"), "success"),
    **dict.fromkeys(("failed", "canceled", "cancelled"), "failed"),
    "unknown": "missing",
}
RESERVED = {"tasks", "callbacks", "apikey", "models", "team", "media", "watch", "limits"}
_TASK = re.compile(r"tk_[A-Za-z0-9_-]{22}")


def deployment(at: float, requests_per_minute: Mapping[str, int]) -> Event:
    """Say how many requests a minute each vendor allows."""
    return {"at": at, "event": "deployment", "requests_per_minute": dict(requests_per_minute)}


def end(at: float, *, quiet: bool) -> Event:
    """Say that nothing follows; `quiet`: nothing was left to do."""
    return {"at": at, "event": "end", "quiet": quiet}


def vendors(at: float, vendor: str, what: str, **facts: Any) -> Event:
    """Say what a vendor was asked: submit, poll or other; `task` is its own id, `status` 0: no answer."""
    blank = {"until": None, "sent": True, "status": None, "retry_after": None}
    of_task = {"work": None, "task": None, "state": None}
    return {"at": at, "event": "vendor", "vendor": vendor, "what": what, **blank, **of_task, **facts}


def receivers(at: float, url: str, **facts: Any) -> Event:
    """Say what a receiver got; `signer` is the caller whose secret signed it, None: not known."""
    blank = {"until": None, "task": None, "id": None, "signer": None, "body": "", "status": None}
    return {"at": at, "event": "receiver", "url": url, **blank, **facts}


def callers(at: float, caller: str, what: str, **facts: Any) -> Event:
    """Say what a caller asked: submit, watch, task or other; repeats have the `intent` of the first."""
    blank: Event = {"until": None, "status": None, "state": None, "error": None, "task": None, "tasks": []}
    asked = {"intent": None, "work": None, "url": None}
    of_task = {"vendor_task": None, "callback": None, "attempts": 0}
    return {"at": at, "event": "caller", "caller": caller, "what": what, **asked, **blank, **of_task, **facts}


def about(file: Path, mark: str) -> list[str]:
    """Choose what a history says of the tasks whose work, or whose callback URL, has a mark."""
    events = [json.loads(line) for line in file.read_text().splitlines()]
    tasks = {one["task"] for one in events if mark in f"{one.get('work')} {one.get('url')}"} - {None}
    # Of a submit whose answer was lost only what came later names the vendor's task.
    for one in events:
        if one.get("task") in tasks:
            said = (read_json(one["body"]) or {}).get("data", {}) if one["event"] == "receiver" else {}
            tasks |= {one.get("vendor_task"), said.get("upstream_task_id")} - {None}
    return [
        json.dumps(one)
        for one in events
        if one["event"] in {"deployment", "end"}
        or mark in f"{one.get('work')} {one.get('url')}"
        or one["task"] in tasks
    ]


def read_json(body: bytes | str) -> Json:
    """Read JSON; None for what is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def work_of(body: Json) -> str:
    """Name what a request asks for, the same before and behind taskhook: its URLs, or else its prompts."""
    urls: list[str] = []
    texts: list[str] = []
    stack: list[tuple[str, Json]] = [("", body)]
    while stack:
        name, value = stack.pop()
        if isinstance(value, dict):
            stack += value.items()
        elif isinstance(value, list):
            stack += [(name, one) for one in value]
        elif isinstance(value, str) and name not in {"callback_url", "reference"}:
            (urls if "://" in value else texts if "prompt" in name.lower() else []).append(value)
    return " ".join(sorted(urls or texts))


def said_by_vendor(body: bytes) -> tuple[str | None, str | None]:
    """Read which task a vendor's answer names, and how far it says that it is."""
    answer = read_json(body)
    if not isinstance(answer, dict) or answer.get("code", 0) != 0:
        return None, None
    data = next((answer[name] for name in ("data", "output") if isinstance(answer.get(name), dict)), answer)
    id_, word = data.get("task_id", data.get("id")), data.get("task_status", data.get("status"))
    state = WORDS.get(word.lower(), "pending") if isinstance(word, str) else None
    return (id_ if isinstance(id_, str) else None), state


def asked_by_caller(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Event | None:
    """Read what a caller asks; None for what is no caller's. Header names are in small letters."""
    token = re.match(r"thk_([a-z0-9-]+)_", headers.get("authorization", "").removeprefix("Bearer ").strip())
    if token is None:
        return None
    caller, parts, fields = token[1], path.strip("/").split("/"), read_json(body)
    if method == "GET":
        named = _TASK.fullmatch(parts[-1])
        return {"caller": caller, "what": "task" if named else "other", "task": named and named[0]}
    url = fields.get("callback_url") if isinstance(fields, dict) else None
    asked: Event = {"caller": caller, "url": url or headers.get("x-webhook-url"), "intent": None}
    if "idempotency-key" in headers:
        asked["intent"] = f"{caller} {headers['idempotency-key']}"
    if method == "POST" and parts[:3] == ["api", "v1", "watch"]:
        return {**asked, "what": "watch"}
    if method == "POST" and not (parts[:2] == ["api", "v1"] and parts[2:3] and parts[2] in RESERVED):
        return {**asked, "what": "submit", "work": work_of(fields)}
    return {"caller": caller, "what": "other"}


def told_to_caller(what: str, status: int, body: bytes) -> Event:
    """Read what a caller is told."""
    text, answer = body.decode(errors="replace"), read_json(body)
    named = sorted(set(_TASK.findall(text)))
    told: Event = {"status": status, "tasks": named if status == 200 else []}
    data = answer.get("data", answer) if isinstance(answer, dict) else {}
    if what in {"submit", "watch"} and named:
        unknown = "Outcome unknown" in text
        told |= {
            "task": named[0],
            "state": "accepted" if status == 200 else "unknown" if unknown else "refused",
        }
    elif what == "task" and status == 200 and isinstance(data, dict) and "callback" in data:
        # In another vendor's form it does not say what became of the callback, nor whose task it is.
        _, state = said_by_vendor(body)
        callback, error = data.get("callback") or {}, data.get("error") or {}
        told |= {
            "state": state,
            "error": error.get("code") if isinstance(error, dict) else None,
            "vendor_task": data.get("upstream_task_id"),
            "callback": callback.get("state") if isinstance(callback, dict) else None,
            "attempts": callback.get("attempts", 0) if isinstance(callback, dict) else 0,
        }
    return told
