"""A vendor's task API over httpx.

Over 400 lines, for what an answer means stands beside how it is read.

One fresh connection for each paid POST, a few kept ones for everything that may be repeated.

httpx and not the faster aiohttp, because its trace tells a request that was never sent from one that may have
been taken.
"""

import asyncio
import contextlib
import json
import re
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from functools import cached_property
from http import HTTPStatus
from itertools import cycle
from typing import Any

import httpx
from pydantic_core import from_json

from taskhook.adapters.http import vendor_wire as wire
from taskhook.adapters.http.retry_after import requested_pause
from taskhook.adapters.http.vendor_wire import EndlessAnswerError
from taskhook.core.errors import KeyUnusableError
from taskhook.core.message import MAX_VENDOR_DATA, Json
from taskhook.core.ports import HOLD_TIME, HOLDS_AT_ONCE, LEAST_POST_TIME, POLLS_AT_ONCE, Admit, ApiKey
from taskhook.core.record import Submission, SubmitOutcome
from taskhook.core.vendor import (
    NO_HEADERS,
    FreeOutcome,
    HttpRequest,
    ListOutcome,
    PollKind,
    PollOutcome,
    Vendor,
)

POLL_TIME = timedelta(seconds=10)
MOST_PAUSE = timedelta(hours=1)  # that the vendor is granted by one answer
KEPT_CONNECTIONS = POLLS_AT_ONCE
# With each request httpcore looks at all connections of a client, and for each idle one at all again: a
# hundred in one took ten times what a poll takes.
HOLDING_CLIENTS = 5
MAX_ANSWER = 2 * 1024 * 1024  # bytes, of an answer's body
MAX_PIECES = 10_000  # of one body, each of which costs as much time as a large one
LARGE = 64 * 1024  # bytes; a larger answer is read and parsed alone, for parsed it takes twenty times as much
MAX_BALANCE = 64 * 1024
_REFUSALS: Mapping[int, PollKind] = {
    HTTPStatus.NOT_FOUND: PollKind.MISSING,
    HTTPStatus.TOO_MANY_REQUESTS: PollKind.THROTTLED,
    HTTPStatus.UNAUTHORIZED: PollKind.KEY_REFUSED,
    HTTPStatus.PAYMENT_REQUIRED: PollKind.KEY_REFUSED,
}
_SENT = "send_request_headers.started"
_MANY_DIGITS = 300  # more than any float has
_NOT_NOW = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_SENDABLE = re.compile(r"[!-~]+")  # what a bearer token may hold, and a header can carry


class _NoAnswerError(Exception):
    """The answer was not a JSON object, or in no encoding that was asked for."""


class _ForeignHostError(Exception):
    """The URL is on a host that is not the vendor's: the key must never go there."""


class HttpTaskApi:
    """`TaskApi` over HTTP.

    `vendor` says what is asked, and what its answers mean; `key` gives the API key, a fresh one after a
    refusal.

    `tls` says which authorities are trusted. With less than `least` left, a paid POST is not begun.
    """

    def __init__(
        self,
        origin: str,
        key: ApiKey,
        *,
        vendor: Vendor,
        tls: ssl.SSLContext,
        least: timedelta = LEAST_POST_TIME,
    ) -> None:
        self.vendor = vendor
        self.origin = origin.rstrip("/")
        self._key = key
        self._tls = tls
        self._least = least
        self._key_refused = False  # read the key again before it is used again: it may have been replaced
        self._large = asyncio.Semaphore(1)

    async def submit(
        self,
        target: str,
        request: bytes,
        *,
        webhook_url: str | None,
        limit: timedelta,
        headers: Mapping[str, str] = NO_HEADERS,
        admit: Admit | None = None,
    ) -> SubmitOutcome:
        """Send the paid POST, at most once where it may have been taken.

        A 401 or 402 proves that it was not; if the key has been replaced since, the POST is sent again with
        the new one.
        """
        made = self.vendor.submit(target, request, headers=headers, webhook_url=webhook_url)
        post = _Post(self._url(made.target), made, self._tls)
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

    async def _sent(self, post: "_Post", authorization: Mapping[str, str]) -> SubmitOutcome:
        async with post.sent_with(authorization) as response:
            asked_for = requested_pause(response.headers, most=MOST_PAUSE)
            post.answered = self._submission(response.status_code, None, asked_for)
            # Kept before the connection is closed, which may fail: an id that was read is paid for.
            post.answered = await self._read(
                response, lambda body, _: self._submission(response.status_code, body, asked_for)
            )
            return post.answered

    def _submission(self, status: int, body: Json | None, asked_for: timedelta | None) -> SubmitOutcome:
        """Read the answer to the paid POST; of a task that was taken, also where it is to be asked for."""
        outcome = self.vendor.read_submission(status, body, retry_after=asked_for)
        if outcome.submission is not Submission.TAKEN:
            return outcome
        operation = self.origin + self.vendor.operation(outcome.upstream_task_id)
        with contextlib.suppress(_ForeignHostError):  # the task is paid all the same, and has an id
            operation = self._url(outcome.operation or operation)
        return outcome.model_copy(update={"operation": operation})

    async def poll(
        self, upstream_task_id: str, *, operation: str | None = None, hold: bool = False
    ) -> PollOutcome:
        """Ask for a task; safe to repeat, so a kept connection will do.

        Held polls have connections of their own.
        """
        try:
            async with asyncio.timeout((HOLD_TIME if hold else POLL_TIME).total_seconds()):
                made = self.vendor.poll(operation or self.vendor.operation(upstream_task_id), hold=hold)
                client = next(self._holding) if hold else self._client
                async with await self._answer(client, made) as response:
                    self._key_refused = _refuses_key(response.status_code)
                    outcome = await self._read_poll(response, upstream_task_id)
                    return outcome.model_copy(
                        update={"retry_after": requested_pause(response.headers, most=MOST_PAUSE)}
                    )
        except KeyUnusableError as error:
            return PollOutcome(kind=PollKind.KEY_REFUSED, message=f"the vendor key cannot be used: {error}")
        # Wire, key or URL: whatever it was says nothing about the task.
        except Exception as error:  # noqa: BLE001
            return PollOutcome(kind=PollKind.UNAVAILABLE, message=type(error).__name__)

    async def _read_poll(self, response: httpx.Response, upstream_task_id: str) -> PollOutcome:
        if response.status_code in _REFUSALS:
            return PollOutcome(kind=_REFUSALS[response.status_code])
        if not response.is_success:  # 202 of a task that runs, 203 of a proxy: what it says is what counts
            message = f"the vendor answered {response.status_code}"
            return PollOutcome(kind=PollKind.UNAVAILABLE, message=message)
        try:
            outcome, size = await self._read(
                response, lambda body, size: (self.vendor.read_poll(body, upstream_task_id), size)
            )
        except (_NoAnswerError, EndlessAnswerError) as error:
            return PollOutcome(kind=PollKind.UNAVAILABLE, message=type(error).__name__)
        return outcome.model_copy(update={"size": size}) if outcome.kind.ended else outcome

    async def cancel(self, upstream_task_id: str, *, operation: str | None = None) -> FreeOutcome:
        """Ask the vendor to cancel a task."""
        made = self.vendor.cancel(operation or self.vendor.operation(upstream_task_id))
        if made is None:
            return FreeOutcome(answered=False, message="the vendor cancels no task")
        return await self._ask(made)

    async def tasks_made(self, model: str, *, since: datetime, until: datetime) -> ListOutcome:
        """List the account's tasks of a model that were made then."""
        listing = self.vendor.listing
        if listing is None:
            return ListOutcome(kind=PollKind.UNAVAILABLE, message="the vendor has no list")
        answer = await self._ask(listing.request(model, since=since, until=until))
        if answer.status != HTTPStatus.OK:
            status = HTTPStatus.UNAUTHORIZED if answer.no_key else answer.status
            kind = _REFUSALS.get(status, PollKind.UNAVAILABLE)
            return ListOutcome(kind=kind, message=answer.message, retry_after=answer.retry_after)
        made = listing.made(answer.body, model, since=since, until=until)
        return ListOutcome(
            kind=PollKind.SUCCEEDED,
            retry_after=answer.retry_after,
            upstream_task_ids=None if made is None else tuple(made),
        )

    async def balance(self) -> FreeOutcome:
        """Ask for what is free."""
        return await self._ask(self.vendor.free_request())

    async def _ask(self, made: HttpRequest) -> FreeOutcome:
        """Send a free request on a connection of its own: all kept ones may be busy with polls that hang."""
        status, asked_for = 0, None
        try:
            async with (
                asyncio.timeout(POLL_TIME.total_seconds()),
                self._new_client(1) as client,
                await self._answer(client, made) as response,
            ):
                status = response.status_code
                asked_for = requested_pause(response.headers, most=MOST_PAUSE)
                self._key_refused = _refuses_key(status)
                body = await self._read(response, lambda body, _: body, at_most=MAX_BALANCE)
                return FreeOutcome(answered=_serves(status), status=status, body=body, retry_after=asked_for)
        # Wire, key or URL; or an answer that is not JSON, which is one all the same.
        except Exception as error:  # noqa: BLE001
            return FreeOutcome(
                answered=_serves(status),
                status=status,
                no_key=isinstance(error, KeyUnusableError),
                message=type(error).__name__,
                retry_after=asked_for,
            )

    async def _answer(
        self, client: httpx.AsyncClient, made: HttpRequest
    ) -> contextlib.AbstractAsyncContextManager[httpx.Response]:
        """Send a request with the key. Raises KeyUnusableError, KeyUnavailableError, _ForeignHostError."""
        url, key = self._url(made.target), await self._authorization()
        return client.stream(made.method, url, content=made.body, headers={**made.headers, **key})

    def _url(self, target: str) -> str:
        """Give the URL of a path at the vendor's origin, or one at its hosts. Raises _ForeignHostError."""
        if target.startswith("/"):
            return self.origin + target
        if target.startswith(f"{self.origin}/"):
            return target
        try:
            url, known = httpx.URL(target), (httpx.URL(self.vendor.origin).host, *self.vendor.hosts)
        except httpx.InvalidURL as error:
            raise _ForeignHostError from error
        plain = url.scheme == "https" and url.port is None and not url.userinfo
        if plain and any(fnmatchcase(url.host, host) for host in known):
            return target
        raise _ForeignHostError

    async def _authorization(self, *, fresh: bool = False) -> Mapping[str, str]:
        """Give the headers with the key. Raises KeyUnusableError, KeyUnavailableError."""
        key = await self._key(fresh=fresh or self._key_refused)
        self._key_refused = _SENDABLE.fullmatch(key) is None
        if self._key_refused:
            raise KeyUnusableError("it is empty, or holds what no header can carry")
        return self.vendor.authorization(key)

    async def _read[T](
        self, response: httpx.Response, read: Callable[[Json, int], T], *, at_most: int = MAX_ANSWER
    ) -> T:
        """Read a JSON object of bounded size, and of it what `read` keeps; large answers one at a time.

        `read` is told how many bytes it was.

        Raises _NoAnswerError, EndlessAnswerError.
        """
        stream = response.extensions["network_stream"]
        assert isinstance(stream, wire.BoundedStream)  # noqa: S101  # our own transport made it
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
            return read(body, len(content))

    async def close(self) -> None:
        """Close what is open."""
        for kept in (self._client, *self._holding_clients):
            await kept.aclose()
        for name in ("_client", "_holding_clients", "_holding"):
            self.__dict__.pop(name, None)

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        return self._new_client(KEPT_CONNECTIONS)

    @cached_property
    def _holding(self) -> Iterator[httpx.AsyncClient]:
        return cycle(self._holding_clients)

    @cached_property
    def _holding_clients(self) -> list[httpx.AsyncClient]:
        return [self._new_client(HOLDS_AT_ONCE) for _ in range(HOLDING_CLIENTS)]

    def _new_client(self, connections: int) -> httpx.AsyncClient:
        return wire.client(self._tls, connections)


class _Post:
    """One paid POST, on a connection of its own: kept sockets die while a function is frozen."""

    def __init__(self, url: str, request: HttpRequest, tls: ssl.SSLContext) -> None:
        self._url = url
        self._request = request
        self._tls = tls
        self.sent = False
        self.answered: SubmitOutcome | None = None  # what the status alone says

    @contextlib.asynccontextmanager
    async def sent_with(self, authorization: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """Send it and give the answer. Raises whatever the wire does; `sent` says how far it came."""
        self.sent, self.answered = False, None
        made = self._request
        headers = {"Content-Type": "application/json", **made.headers, **authorization}
        extensions = {"trace": self._trace}
        async with (
            wire.client(self._tls, 1) as client,
            client.stream(
                made.method, self._url, content=made.body, headers=headers, extensions=extensions
            ) as response,
        ):
            yield response

    async def _trace(self, event: str, _info: Mapping[str, Any]) -> None:
        self.sent = self.sent or event.endswith(_SENT)


# --- the answers: what they mean ------------------------------------------------------------------


def _refuses_key(status: int) -> bool:
    """Tell whether an answer says that the key is of no use: it may have been replaced since."""
    return _REFUSALS.get(status) is PollKind.KEY_REFUSED


def _serves(status: int) -> bool:
    """Tell whether an answer shows a vendor that serves requests, if only to refuse them."""
    is_refusal = (
        HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _NOT_NOW
    )
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES or is_refusal


def _decoder(response: httpx.Response) -> Callable[[bytes, int], bytes] | None:
    """Give what decodes the body, up to so many bytes at a time; None where it comes as it is.

    Raises _NoAnswerError.
    """
    match response.headers.get("content-encoding", "identity").strip().lower():
        case "identity" | "":
            return None
        # Not asked for, but sent all the same: a paid task's id may be in it.
        case "gzip" | "x-gzip" | "deflate":
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
    """Parse what a strict reader refuses and a paid result may hold: NaN, huge numbers, half surrogates."""
    try:
        return _encodable(json.loads(content, parse_int=_whole_number))
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


def _whole_number(digits: str) -> float:
    return int(digits) if len(digits) < _MANY_DIGITS else float(digits)
