"""A vendor's task API over httpx: one fresh connection for each paid POST, a few kept ones for everything that may be repeated.

httpx and not the faster aiohttp, because its trace tells a request that was never sent from one that may have been taken.
"""

import asyncio
import contextlib
import json
import re
import select
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import timedelta
from functools import cached_property
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpcore
import httpx
from pydantic_core import from_json

from taskhook.adapters.http.retry_after import requested_pause
from taskhook.core.errors import KeyUnusableError
from taskhook.core.message import MAX_VENDOR_DATA, Json
from taskhook.core.ports import (
    HOLD_TIME,
    HOLDS_AT_ONCE,
    LEAST_POST_TIME,
    POLLS_AT_ONCE,
    Admit,
    ApiKey,
    BalanceOutcome,
    PollKind,
    PollOutcome,
)
from taskhook.core.task import Submission, SubmitOutcome
from taskhook.core.vendor import VendorAnswers

POLL_TIME = timedelta(seconds=10)
MOST_PAUSE = timedelta(hours=1)  # that the vendor is granted by one answer
KEPT_CONNECTIONS = POLLS_AT_ONCE
MAX_ANSWER = 2 * 1024 * 1024  # bytes, of an answer's body
MAX_HEAD = 128 * 1024  # bytes that may come before a body; one header may have 100 KB
MAX_INTERIM = 10  # answers 1xx before an answer
MAX_PIECES = 10_000  # of one body, each of which costs as much time as a large one
LARGE = 64 * 1024  # bytes; a larger answer is read and parsed alone, for parsed it takes twenty times as much
MAX_BALANCE = 64 * 1024
_BOUNDED = httpx.Timeout(None)  # asyncio.timeout bounds a request as a whole, which httpx cannot
_SENT = "send_request_headers.started"
_MANY_DIGITS = 300  # more than any float has
_KEPT_S = 5.0  # how long an idle connection is kept, as httpx does
_NOT_NOW = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_INTERIM = re.compile(rb"(?:\A|\n\r?\n)HTTP/1\.[01] 1\d\d")
_SENDABLE = re.compile(r"[!-~]+")  # what a bearer token may hold, and a header can carry


class _NoAnswerError(Exception):
    """The answer was not a JSON object, or in no encoding that was asked for."""


class EndlessAnswerError(Exception):
    """The answer was longer than any true one: its body, its headers, or what came before them."""


class HttpTaskApi:
    """`TaskApi` over HTTP. `answers` says what the vendor's answers mean; `key` gives the API key, a fresh one after a refusal.

    With less than `least` left, a paid POST is not begun.
    """

    def __init__(
        self, base_url: str, key: ApiKey, *, answers: VendorAnswers, least: timedelta = LEAST_POST_TIME
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._key = key
        self._answers = answers
        self._least = least
        self._key_refused = False  # read the key again before it is used again: it may have been replaced
        self._large = asyncio.Semaphore(1)

    async def submit(
        self, model: str, request: bytes, *, hook: str | None, limit: timedelta, admit: Admit | None = None
    ) -> SubmitOutcome:
        """Send the paid POST, at most once where it may have been taken.

        A 401 or 402 proves that it was not; if the key has been replaced since, the POST is sent again with the new one.
        """
        post = _Post(f"{self._base_url}/api/v1/{quote(model)}", request, hook, self._tls)
        loop = asyncio.get_running_loop()
        begin_by = loop.time() + (limit - self._least).total_seconds()

        async def may_begin() -> bool:
            """Look at time and budget right before a POST: what came before it may have taken long."""
            return loop.time() <= begin_by and (admit is None or await admit()) and loop.time() <= begin_by

        try:
            async with asyncio.timeout(limit.total_seconds()):
                key = await self._authorization()
                if not await may_begin():
                    return SubmitOutcome(
                        submission=Submission.NOT_SENT, message="no time or no request was left"
                    )
                outcome = await self._sent(post, key)
                if outcome.submission is Submission.REFUSED_HERE:
                    fresh = await self._authorization(fresh=True)
                    if fresh != key and await may_begin():
                        outcome = await self._sent(post, fresh)
                return outcome
        except Exception as error:  # noqa: BLE001  # whatever it was: only proof makes it "not sent"
            if post.answered:  # but not readably: the status alone decides
                return post.answered
            if post.sent:
                return SubmitOutcome(submission=Submission.AMBIGUOUS, message=type(error).__name__)
            if isinstance(error, KeyUnusableError):
                return SubmitOutcome(
                    submission=Submission.REFUSED_HERE, message=f"the vendor key cannot be used: {error}"
                )
            return SubmitOutcome(submission=Submission.NOT_SENT, message=type(error).__name__)

    async def _sent(self, post: "_Post", authorization: str) -> SubmitOutcome:
        async with post.sent_with(authorization) as response:
            asked_for = requested_pause(response.headers, most=MOST_PAUSE)
            post.answered = self._answers.read_submission(response.status_code, None, retry_after=asked_for)
            # Kept before the connection is closed, which may fail: an id that was read is paid for.
            post.answered = await self._read(
                response,
                lambda body: self._answers.read_submission(response.status_code, body, retry_after=asked_for),
            )
            return post.answered

    async def poll(self, upstream_task_id: str, *, hold: bool = False) -> PollOutcome:
        """Ask for a task; safe to repeat, so a kept connection will do. Held polls have connections of their own."""
        try:
            async with asyncio.timeout((HOLD_TIME if hold else POLL_TIME).total_seconds()):
                url = f"{self._base_url}/api/v1/tasks/{quote(upstream_task_id, safe='')}{'?wait=true' if hold else ''}"
                client = self._holding_client if hold else self._client
                headers = {"Authorization": await self._authorization()}
                async with client.stream("GET", url, headers=headers) as response:
                    self._key_refused = response.status_code in {
                        httpx.codes.UNAUTHORIZED,
                        httpx.codes.PAYMENT_REQUIRED,
                    }
                    outcome = await self._read_poll(response, upstream_task_id)
                    return outcome.model_copy(
                        update={"retry_after": requested_pause(response.headers, most=MOST_PAUSE)}
                    )
        except KeyUnusableError as error:
            return PollOutcome(kind=PollKind.KEY_REFUSED, message=f"the vendor key cannot be used: {error}")
        except Exception as error:  # noqa: BLE001  # wire, key or URL: whatever it was says nothing about the task
            return PollOutcome(kind=PollKind.UNAVAILABLE, message=type(error).__name__)

    async def _read_poll(self, response: httpx.Response, upstream_task_id: str) -> PollOutcome:
        match response.status_code:
            case httpx.codes.NOT_FOUND:
                return PollOutcome(kind=PollKind.MISSING)
            case httpx.codes.TOO_MANY_REQUESTS:
                return PollOutcome(kind=PollKind.THROTTLED)
            case httpx.codes.UNAUTHORIZED | httpx.codes.PAYMENT_REQUIRED:
                return PollOutcome(kind=PollKind.KEY_REFUSED)
            case httpx.codes.OK:
                try:
                    return await self._read(
                        response, lambda body: self._answers.read_poll(body, upstream_task_id)
                    )
                except (_NoAnswerError, EndlessAnswerError) as error:
                    return PollOutcome(kind=PollKind.UNAVAILABLE, message=type(error).__name__)
            case status:
                return PollOutcome(kind=PollKind.UNAVAILABLE, message=f"the vendor answered {status}")

    async def balance(self) -> BalanceOutcome:
        """Ask for the account's balance, on a connection of its own: polls that hang keep none of those that are kept free."""
        status = 0
        try:
            async with asyncio.timeout(POLL_TIME.total_seconds()), self._new_client(1) as client:
                headers = {"Authorization": await self._authorization()}
                async with client.stream(
                    "GET", f"{self._base_url}/api/v1/team/balance", headers=headers
                ) as response:
                    status = response.status_code
                    self._key_refused = status in {httpx.codes.UNAUTHORIZED, httpx.codes.PAYMENT_REQUIRED}
                    body = await self._read(response, lambda body: body, at_most=MAX_BALANCE)
                    return BalanceOutcome(answered=_serves(status), status=status, body=body)
        except Exception as error:  # noqa: BLE001  # wire, key or URL; or an answer that is not JSON, which is one all the same
            return BalanceOutcome(answered=_serves(status), status=status, message=type(error).__name__)

    async def _authorization(self, *, fresh: bool = False) -> str:
        """Give the header's value. Raises KeyUnusableError, KeyUnavailableError."""
        key = await self._key(fresh=fresh or self._key_refused)
        self._key_refused = _SENDABLE.fullmatch(key) is None
        if self._key_refused:
            raise KeyUnusableError("it is empty, or holds what no header can carry")
        return f"Bearer {key}"

    async def _read[T](
        self, response: httpx.Response, read: Callable[[Json], T], *, at_most: int = MAX_ANSWER
    ) -> T:
        """Read a JSON object of bounded size, and of it what `read` keeps; only one answer that is large at a time.

        Raises _NoAnswerError, EndlessAnswerError.
        """
        stream = response.extensions["network_stream"]
        assert isinstance(stream, _Wire)  # noqa: S101  # our own transport made it
        stream.head_is_over()
        content, pieces, decode, is_alone = bytearray(), 0, _decoder(response), False
        async with contextlib.AsyncExitStack() as alone:
            async for piece in response.aiter_raw():
                if not is_alone and (decode or len(content) + len(piece) > LARGE):
                    await alone.enter_async_context(self._large)
                    is_alone = True
                content += decode(piece, at_most + 1 - len(content)) if decode else piece
                pieces += 1
                if len(content) > at_most or pieces > MAX_PIECES:
                    raise EndlessAnswerError
            body = _object(content)
            if len(content) > MAX_VENDOR_DATA:
                _shorten(body)
            return read(body)

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
        return _client(self._tls, connections)


class _Post:
    """One paid POST, on a connection of its own: kept sockets die while a function is frozen."""

    def __init__(self, url: str, request: bytes, hook: str | None, tls: ssl.SSLContext) -> None:
        self._url = url
        self._request = request
        self._hook = {"X-Webhook-URL": hook} if hook else {}
        self._tls = tls
        self.sent = False
        self.answered: SubmitOutcome | None = None  # what the status alone says

    @contextlib.asynccontextmanager
    async def sent_with(self, authorization: str) -> AsyncIterator[httpx.Response]:
        """Send it and give the answer. Raises whatever the wire does; `sent` says how far it came."""
        self.sent, self.answered = False, None
        headers = {"Authorization": authorization, "Content-Type": "application/json", **self._hook}
        extensions = {"trace": self._trace}
        async with (
            _client(self._tls, 1) as client,
            client.stream(
                "POST", self._url, content=self._request, headers=headers, extensions=extensions
            ) as response,
        ):
            yield response

    async def _trace(self, event: str, _info: Mapping[str, Any]) -> None:
        self.sent = self.sent or event.endswith(_SENT)


# --- the wire: what comes before an answer's body is bounded too -----------------------------------------------------------


def _client(tls: ssl.SSLContext, connections: int) -> httpx.AsyncClient:
    """Make a client that follows no redirect, asks no proxy, tries nothing twice, and wants nothing compressed."""
    transport, headers = _Transport(tls, connections), {"Accept-Encoding": "identity"}
    return httpx.AsyncClient(
        transport=transport, headers=headers, trust_env=False, timeout=_BOUNDED, follow_redirects=False
    )


class _Transport(httpx.AsyncHTTPTransport):
    """httpx's own, over connections that bound what comes before a body."""

    def __init__(self, tls: ssl.SSLContext, connections: int) -> None:
        super().__init__(verify=tls, trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=_KEPT_S,
            retries=0,
            network_backend=_Network(),
        )


class _Network(httpcore.AnyIOBackend):
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect, as httpcore does."""
        return _Wire(await super().connect_tcp(host, port, timeout, local_address, socket_options))


class _Wire(httpcore.AsyncNetworkStream):
    """A connection that raises EndlessAnswerError where an answer's headers do not come to an end."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._socket = inner.get_extra_info("socket")
        self._ready = select.poll()
        if self._socket is not None and self._socket.fileno() >= 0:
            self._ready.register(self._socket.fileno(), select.POLLIN)
        self._head: int | None = None  # bytes of it so far; None: it is over
        self._interim = 0

    def head_is_over(self) -> None:
        """Leave the rest to the reader of the body."""
        self._head = None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  # httpcore's
        """Read what has come."""
        data = await self._inner.read(max_bytes, timeout)
        if self._head is not None:
            self._head += len(data)
            self._interim += len(_INTERIM.findall(data))
            if self._head > MAX_HEAD or self._interim > MAX_INTERIM:
                raise EndlessAnswerError
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109  # httpcore's
        """Send a piece of a request, whose answer begins anew."""
        self._head = self._interim = 0
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close it."""
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's
    ) -> httpcore.AsyncNetworkStream:
        """Shake hands."""
        return _Wire(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Tell of the socket.

        Whether it is readable the pool asks of each kept connection twice for each request; anyio's own answer looks
        up all that it knows of the socket, which was a seventh of what a task that ends costs the poll function.
        """
        if info != "is_readable" or self._socket is None:
            return self._inner.get_extra_info(info)
        return self._socket.fileno() < 0 or bool(self._ready.poll(0))  # closed, or about to be


# --- the answers: what they mean -----------------------------------------------------------------------------------------------


def _serves(status: int) -> bool:
    """Tell whether an answer shows a vendor that serves requests, if only to refuse them."""
    is_refusal = (
        HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _NOT_NOW
    )
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES or is_refusal


def _decoder(response: httpx.Response) -> Callable[[bytes, int], bytes] | None:
    """Give what decodes the body, up to so many bytes at a time; None where it comes as it is. Raises _NoAnswerError."""
    match response.headers.get("content-encoding", "identity").strip().lower():
        case "identity" | "":
            return None
        case (
            "gzip" | "x-gzip" | "deflate"
        ):  # not asked for, but sent all the same: a paid task's id may be in it
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress  # 32: either of the two headers
    raise _NoAnswerError


def _shorten(body: Json) -> None:
    """Take off what a long answer may lose, before time is spent on it."""
    data = body.get("data")
    result = data.get("result") if isinstance(data, dict) else None
    if isinstance(data, dict) and isinstance(result, dict):
        lost = [result.pop(name) for name in ("metadata", "extensions") if name in result]
        data |= {"truncated": True} if lost else {}


def _object(content: bytearray) -> Json:
    """Parse a JSON object. Raises _NoAnswerError."""
    try:
        body = from_json(content, allow_inf_nan=False)
    except ValueError:
        body = _leniently(content)
    if not isinstance(body, dict):
        raise _NoAnswerError
    return body


def _leniently(content: bytearray) -> Any:
    """Parse what a strict reader refuses whole, and a paid result may hold: NaN, a number of any length, half a surrogate pair."""
    try:
        return _encodable(json.loads(content, parse_int=_whole))
    except (ValueError, RecursionError) as error:
        raise _NoAnswerError from error


def _encodable(value: Any) -> Any:
    match value:
        case dict():
            return {_encodable(name): _encodable(entry) for name, entry in value.items()}
        case list():
            return [_encodable(entry) for entry in value]
        case str():
            return value.encode(errors="replace").decode()
    return value


def _whole(digits: str) -> float:
    return int(digits) if len(digits) < _MANY_DIGITS else float(digits)
