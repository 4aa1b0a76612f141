"""Writes the history of an embedded stack into a file, a line for each exchange when it is over."""

import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tests import history
from tests.local.receiver import Delivery

_CALLS_WITHOUT_A_TASK = ("/_control", "/files/", "/media/")


class Recorder:
    """One file, to which vendors, receiver and front door add; `end` says that nothing follows."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("w", buffering=1)
        self._numbers = itertools.count()

    def write(self, event: history.Event) -> None:
        """Add an exchange; one that is broken off when the history has ended is none of it."""
        if self._file.closed:
            return
        self._file.write(json.dumps(event) + "\n")

    def close(self) -> None:
        """End the history; what was under way may still be on its way."""
        if not self._file.closed:
            self.write(history.end(time.time(), quiet=False))
            self._file.close()

    def delivered(self, delivery: Delivery, origin: str) -> None:
        """Add what the receiver got; of the callers it knows the first one's secret alone."""
        self.write(
            history.receivers(
                delivery.received_at,
                f"{origin}{delivery.path}" + (f"?{delivery.query}" if delivery.query else ""),
                until=delivery.answered_at,
                task=delivery.task_id,
                id=delivery.headers.get("webhook-id"),
                signer="local" if delivery.verified else None,
                body=delivery.body,
                status=delivery.status_answered,
            )
        )

    def of_vendor(self, vendor: str) -> Middleware:
        """Listen to a vendor."""

        @web.middleware
        async def listening(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path.startswith(_CALLS_WITHOUT_A_TASK):
                return await handler(request)
            at, body = time.time(), await request.read()
            asked = request.path.rstrip("/").rpartition("/")[2]
            what, facts = "other", {"task": asked}
            if request.method == "POST" and asked != "cancel":
                what, facts = "submit", {"work": history.work_of(history.read_json(body))}
            elif request.method == "GET" and "/tasks/" in request.path and asked != "tasks":
                what = "poll"
            event = history.vendors(at, vendor, what, status=0, **facts)
            try:
                response = await handler(request)
                event |= _answered(request, response, what, asked)
            finally:
                self.write(event | {"until": time.time()})
            return response

        return listening

    def of_callers(self) -> Middleware:
        """Listen to callers at the front door."""

        @web.middleware
        async def listening(request: web.Request, handler: Handler) -> web.StreamResponse:
            at, body, number = time.time(), await request.read(), next(self._numbers)
            headers = {name.lower(): value for name, value in request.headers.items()}
            asked = history.asked_by_caller(request.method, request.path, headers, body)
            if asked is None:
                return await handler(request)
            event = history.callers(at, **asked)
            event["intent"] = event["intent"] or f"request {number}"
            try:
                response = await handler(request)
                event |= history.told_to_caller(event["what"], response.status, _body(response))
            finally:
                self.write(event | {"until": time.time()})
            return response

        return listening


def _answered(request: web.Request, response: web.StreamResponse, what: str, asked: str) -> history.Event:
    """Read a vendor's answer; where its connection was closed there was none."""
    if request.transport is None or request.transport.is_closing():
        return {}
    task, state = history.said_by_vendor(_body(response))
    facts: history.Event = {"status": response.status, "retry_after": _seconds(response.headers)}
    if what == "submit":
        return {**facts, "task": task if response.status == 200 else None}
    missing = response.status == 404
    return {**facts, "state": "missing" if missing else state if task == asked else None}


def _seconds(headers: Mapping[str, str]) -> float | None:
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _body(response: web.StreamResponse) -> bytes:
    body = response.body if isinstance(response, web.Response) else None
    return body if isinstance(body, bytes) else b""
