"""Modellix's task API over httpx: one fresh connection for each paid POST, a few kept ones for everything that may be repeated.

httpx and not the faster aiohttp, because its trace tells a request that was never sent from one that may have been taken.
"""

import asyncio
import math
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any
from urllib.parse import quote

import httpx
from pydantic_core import from_json

from taskhook.ports import HOLD_TIME, HOLDS_AT_ONCE, POLLS_AT_ONCE, ApiKey, BalanceOutcome, PollKind, PollOutcome
from taskhook.task import Json, Submission, SubmitOutcome, kept_data, read_submission

POLL_TIME = timedelta(seconds=10)
KEPT_CONNECTIONS = POLLS_AT_ONCE
MAX_ANSWER = 2 * 1024 * 1024  # bytes; parsed, an answer takes twenty times as much
_BOUNDED = httpx.Timeout(None)  # asyncio.timeout bounds a request as a whole, which httpx cannot
_SENT = "send_request_headers.started"

_SUCCESS = {"success", "succeeded", "completed"}
_FAILURE = {"failed", "error", "canceled", "cancelled"}


class _NoAnswerError(Exception):
    """The answer was too large or not a JSON object."""


class ModellixApi:
    """`TaskApi` for Modellix. `key` gives the API key; asked for a fresh one after the vendor refused it."""

    def __init__(self, base_url: str, key: ApiKey) -> None:
        self._base_url = base_url.rstrip("/")
        self._key = key
        self._key_refused = False  # read the key again before the next poll: it may have been replaced

    async def submit(self, model: str, request: bytes, *, hook: str | None, limit: timedelta) -> SubmitOutcome:
        """Send the paid POST, at most once where it may have been taken.

        A 401 or 402 proves that it was not; if the key has been replaced since, the POST is sent again with the new one.
        """
        post = _Post(f"{self._base_url}/api/v1/{quote(model)}", request, hook, self._tls)
        try:
            async with asyncio.timeout(limit.total_seconds()):
                began = asyncio.get_running_loop().time()
                key = await self._key(fresh=False)
                outcome = await post.send(key)
                in_time = asyncio.get_running_loop().time() - began < limit.total_seconds() / 2
                if outcome.submission is Submission.REFUSED_HERE and in_time and (fresh := await self._key(fresh=True)) != key:
                    outcome = await post.send(fresh)
                return outcome
        except Exception as error:  # noqa: BLE001  # whatever it was: only proof makes it "not sent"
            if post.status:  # answered, but not readably: the status alone decides
                return read_submission(post.status, None)
            submission = Submission.AMBIGUOUS if post.sent else Submission.NOT_SENT
            return SubmitOutcome(submission=submission, message=type(error).__name__)

    async def poll(self, upstream_task_id: str, *, hold: bool = False) -> PollOutcome:
        """Ask for a task; safe to repeat, so a kept connection will do. Held polls have connections of their own."""
        try:
            async with asyncio.timeout((HOLD_TIME if hold else POLL_TIME).total_seconds()):
                url = f"{self._base_url}/api/v1/tasks/{quote(upstream_task_id, safe='')}{'?wait=true' if hold else ''}"
                client = self._holding_client if hold else self._client
                headers = {"Authorization": f"Bearer {await self._key(fresh=self._key_refused)}"}
                async with client.stream("GET", url, headers=headers) as response:
                    self._key_refused = response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.PAYMENT_REQUIRED}
                    return await _read_poll(response, upstream_task_id)
        except Exception as error:  # noqa: BLE001  # wire, key or URL: whatever it was says nothing about the task
            return PollOutcome(kind=PollKind.UNAVAILABLE, message=type(error).__name__)

    async def balance(self) -> BalanceOutcome:
        """Ask for the account's balance: a request that is free, and safe to repeat."""
        status = 0
        try:
            async with asyncio.timeout(POLL_TIME.total_seconds()):
                headers = {"Authorization": f"Bearer {await self._key(fresh=False)}"}
                async with self._client.stream("GET", f"{self._base_url}/api/v1/team/balance", headers=headers) as response:
                    status = response.status_code
                    return BalanceOutcome(answered=_serves(status), status=status, body=await _object(response))
        except Exception as error:  # noqa: BLE001  # wire, key or URL; or an answer that is not JSON, which is one all the same
            return BalanceOutcome(answered=_serves(status), status=status, message=type(error).__name__)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx.create_ssl_context(trust_env=False)

    async def close(self) -> None:
        """Close what is open."""
        for kept in ("_client", "_holding_client"):
            if kept in self.__dict__:
                await self.__dict__.pop(kept).aclose()

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        return self._new_client(KEPT_CONNECTIONS)

    @cached_property
    def _holding_client(self) -> httpx.AsyncClient:
        return self._new_client(HOLDS_AT_ONCE)

    def _new_client(self, connections: int) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        return httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=_BOUNDED, follow_redirects=False, limits=limits)


class _Post:
    """One paid POST, on a connection of its own: kept sockets die while a function is frozen."""

    def __init__(self, url: str, request: bytes, hook: str | None, tls: ssl.SSLContext) -> None:
        self._url = url
        self._request = request
        self._hook = {"X-Webhook-URL": hook} if hook else {}
        self._tls = tls
        self.sent = False
        self.status = 0

    async def send(self, key: str) -> SubmitOutcome:
        """Send it and read the answer. Raises whatever the wire does; `sent` and `status` say how far it came."""
        self.sent, self.status = False, 0
        transport = httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False, retries=0)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **self._hook}
        extensions = {"trace": self._trace}
        async with (
            httpx.AsyncClient(transport=transport, trust_env=False, timeout=_BOUNDED, follow_redirects=False) as client,
            client.stream("POST", self._url, content=self._request, headers=headers, extensions=extensions) as response,
        ):
            self.status = response.status_code
            return read_submission(self.status, await _object(response), retry_after=_retry_after(response))

    async def _trace(self, event: str, _info: Mapping[str, Any]) -> None:
        self.sent = self.sent or event.endswith(_SENT)


def _serves(status: int) -> bool:
    """Tell whether an answer shows a vendor that serves requests, if only to refuse them."""
    return 200 <= status < 500 and not 300 <= status < 400 and status not in {408, 425, 429}  # noqa: PLR2004  # HTTP


async def _read_poll(response: httpx.Response, upstream_task_id: str) -> PollOutcome:
    retry_after = _retry_after(response)
    match response.status_code:
        case httpx.codes.NOT_FOUND:
            return PollOutcome(kind=PollKind.MISSING)
        case httpx.codes.TOO_MANY_REQUESTS:
            return PollOutcome(kind=PollKind.THROTTLED, retry_after=retry_after)
        case httpx.codes.UNAUTHORIZED | httpx.codes.PAYMENT_REQUIRED:
            return PollOutcome(kind=PollKind.KEY_REFUSED, retry_after=retry_after)
        case httpx.codes.OK:
            return read_poll(await _object(response), upstream_task_id)
        case status:
            return PollOutcome(kind=PollKind.UNAVAILABLE, message=f"the vendor answered {status}")


def read_poll(body: Json, upstream_task_id: str) -> PollOutcome:
    """Read the vendor's answer about a task; what is not about this task, or has no status, says nothing."""
    data = body.get("data")
    if not isinstance(data, dict) or data.get("task_id") != upstream_task_id or not isinstance(data.get("status"), str):
        return PollOutcome(kind=PollKind.UNAVAILABLE, message="the answer is not about this task")
    status = data["status"].lower()
    if status in _SUCCESS:
        return PollOutcome(kind=PollKind.SUCCEEDED, data=kept_data(_finite(data)))
    if status in _FAILURE:
        return PollOutcome(kind=PollKind.FAILED, data=data, message=_failure(body, data))
    return PollOutcome(kind=PollKind.PENDING)


def _failure(body: Json, data: Json) -> str:
    """Find the vendor's words: in `data.error` (an object or a string), or in `data.message`, or in `message`."""
    error = data.get("error")
    if isinstance(error, dict):
        words = [str(error[name]) for name in ("code", "message") if error.get(name)]
        error = ": ".join(words)
    for candidate in (error, data.get("message"), body.get("message")):
        if isinstance(candidate, str) and candidate and candidate != "success":
            return candidate
    return f"the vendor reported {data['status']}"


def _finite(value: Any) -> Any:
    """Put null for a number beyond a float's range: it reads as infinite, which no JSON can hold and nobody could pass on."""
    match value:
        case dict():
            return {name: _finite(entry) for name, entry in value.items()}
        case list():
            return [_finite(entry) for entry in value]
        case float():
            return value if math.isfinite(value) else None
        case _:
            return value


async def _object(response: httpx.Response) -> Json:
    """Read a JSON object of bounded size. Raises _NoAnswerError."""
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER:
            raise _NoAnswerError
    try:
        body = from_json(bytes(content), allow_inf_nan=False)
    except ValueError as error:
        raise _NoAnswerError from error
    if not isinstance(body, dict):
        raise _NoAnswerError
    return body


def _retry_after(response: httpx.Response) -> timedelta | None:
    """Read `Retry-After` (seconds or a date), else `X-RateLimit-Reset` (Unix seconds) where nothing remains; None for nonsense."""
    after = response.headers.get("retry-after", "").strip()
    reset = response.headers.get("x-ratelimit-reset", "")
    try:
        if after != "":
            return timedelta(seconds=min(int(after), 3600)) if after.isdecimal() else _until(parsedate_to_datetime(after))
        if response.headers.get("x-ratelimit-remaining") == "0" and reset.isdecimal():
            return _until(datetime.fromtimestamp(min(int(reset), 2**33), UTC))
    except (ValueError, OverflowError):  # too many digits, or a date that no calendar has
        return None
    return None


def _until(moment: datetime) -> timedelta:
    wait = moment.astimezone(UTC) - datetime.now(UTC)
    return min(max(wait, timedelta(seconds=1)), timedelta(hours=1))
