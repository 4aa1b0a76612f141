"""Delivery attempts over aiohttp, through the guard.

One POST, 15 s in all, no redirects, the answer read to 2 KB.
"""

import asyncio
import html
import re
import ssl
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from time import perf_counter
from types import SimpleNamespace
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from taskhook.adapters.http.guard import error_class, exact_url, guarded_session
from taskhook.adapters.http.retry_after import retry_after
from taskhook.core.ports import ATTEMPT_TIME, SLOTS
from taskhook.core.reply import DeliveryError, Reply
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import MAX_EXCERPT

_READ = 2048  # bytes of an answer, also once it is unpacked
_TAKEN = 16 * 1024  # bytes of it as they came, with whatever stands between those that are read
_READ_S = 1
_MOST_RETRY_AFTER = timedelta(hours=48)  # twice the longest wait of the schedule: no receiver is granted more


class AiohttpCallbacks:
    """`CallbackSender`. Its session belongs to the event loop that first uses it."""

    def __init__(
        self,
        policy: TargetPolicy,
        *,
        limit: timedelta = ATTEMPT_TIME,
        resolver: AbstractResolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._limit = limit
        self._resolver = resolver  # None: the system's
        self._tls = tls  # likewise
        self._session: aiohttp.ClientSession | None = None

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send one attempt. Never raises: what went wrong is the reply."""
        exchange = _Exchange()
        try:
            self._policy.check_url(url)
            async with asyncio.timeout(self._limit.total_seconds()):
                await self._post(exact_url(url), headers, body, exchange)
        # A receiver may break in any way; none of them may break us.
        except Exception as error:  # noqa: BLE001
            if exchange.status is None:
                unnamed = exchange.looking_up and isinstance(error, TimeoutError)
                word = DeliveryError.DNS_UNAVAILABLE if unnamed else error_class(error)
                return Reply(error=word, elapsed=_since(exchange.began))
        # The status decides, whatever became of the body: that is for the log alone.
        answer = _excerpt(" ".join(filter(None, (exchange.leads_to, exchange.answer))))
        return Reply(
            status=exchange.status, answer=answer, retry_after=exchange.retry_after, elapsed=exchange.elapsed
        )

    async def _post(self, url: URL, headers: Mapping[str, str], body: bytes, exchange: "_Exchange") -> None:
        """Send one attempt, and once more where a kept connection is dead: the receiver never saw it."""
        sent = {"Accept-Encoding": "identity", **headers}
        while True:
            exchange.kept = False
            try:
                async with self._open().post(
                    url,
                    data=body,
                    headers=sent,
                    allow_redirects=False,
                    trace_request_ctx=exchange,
                ) as response:
                    exchange.status, exchange.elapsed = response.status, _since(exchange.began)
                    exchange.retry_after = retry_after(response.headers, most=_MOST_RETRY_AFTER)
                    exchange.leads_to = _leads_to(str(url), response)
                    exchange.answer = _as_text(await _first_bytes(response), response)
                    return
            except (aiohttp.ClientConnectionError, OSError):
                if exchange.status is not None or not exchange.kept:
                    raise

    async def close(self) -> None:
        """Close what is open; what is sent afterwards opens anew."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            trace = aiohttp.TraceConfig()
            trace.on_connection_reuseconn.append(_note_kept)
            trace.on_dns_resolvehost_start.append(_note_lookup)
            trace.on_dns_resolvehost_end.append(_note_name)
            self._session = guarded_session(
                self._policy,
                connections=SLOTS,
                # `asyncio.timeout` bounds the attempt, waiting for a connection included.
                timeout=aiohttp.ClientTimeout(total=None),
                resolver=self._resolver,
                tls=self._tls,
                most=_TAKEN,
                traces=[trace],
            )
        return self._session


@dataclass
class _Exchange:
    """What has come over the exchange so far."""

    began: float = field(default_factory=perf_counter)
    kept: bool = False  # the connection has been used before
    looking_up: bool = False
    status: int | None = None
    leads_to: str = ""
    answer: str = ""
    retry_after: timedelta | None = None
    elapsed: timedelta = timedelta(0)


async def _note_kept(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _: aiohttp.TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx.kept = True


async def _note_lookup(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _: aiohttp.TraceDnsResolveHostStartParams
) -> None:
    context.trace_request_ctx.looking_up = True


async def _note_name(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _: aiohttp.TraceDnsResolveHostEndParams
) -> None:
    context.trace_request_ctx.looking_up = False


async def _first_bytes(response: aiohttp.ClientResponse) -> bytes:
    try:
        async with asyncio.timeout(_READ_S):
            return await response.content.read(_READ)
    except (TimeoutError, aiohttp.ClientError, OSError):
        return b""


# --- what the receiver said -----------------------------------------------------------------------

_GZIP = b"\x1f\x8b"
# The names that zlib has of the formats; the second is a common mistake.
_WINDOWS = {
    "gzip": (31,),
    "x-gzip": (31,),
    "deflate": (15, -15),
}
_HTML = re.compile(r"\s*<(!doctype html|html|head|body)\b", re.IGNORECASE)
_UNSEEN = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style|svg|template)\b.*?(?:</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL
)
_TAG = re.compile(r"<[A-Za-z/!?][^>]*(?:>|\Z)")


def _leads_to(url: str, response: aiohttp.ClientResponse) -> str:
    """Tell where a redirect leads, without its query, which may hold secrets."""
    location = response.headers.get("location")
    if location is None or not HTTPStatus.MULTIPLE_CHOICES <= response.status < HTTPStatus.BAD_REQUEST:
        return ""
    try:
        parts = urlsplit(urljoin(url, location))
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return "-> <no URL>"
    host = parts.hostname or ""
    return f"-> {parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"


def _as_text(first: bytes, response: aiohttp.ClientResponse) -> str:
    """Give the first bytes of an answer as text: unpacked, and a page as one reads it."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding == "identity" and first.startswith(_GZIP):
        coding = "gzip"
    if coding != "identity" and first:
        unpacked = _unpacked(first, coding)
        if unpacked is None:
            return f"<{coding}, {response.content_length or len(first)} bytes>"
        first = unpacked
    text = first.decode(errors="replace")
    if "html" not in response.headers.get("content-type", "").lower() and not _HTML.match(text):
        return text
    return " ".join(html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", text))).split())


def _unpacked(packed: bytes, coding: str) -> bytes | None:
    """Unpack the beginning of an answer, as far as is read of any; None where it cannot be."""
    for window in _WINDOWS.get(coding, ()):
        try:
            return zlib.decompressobj(window).decompress(packed, _READ) or None
        except zlib.error:
            continue
    return None


def _excerpt(text: str) -> str:
    """Keep the first words, control characters escaped."""
    escaped = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text[:MAX_EXCERPT]
    )
    return escaped.encode()[:MAX_EXCERPT].decode(errors="ignore")


def _since(began: float) -> timedelta:
    return timedelta(seconds=perf_counter() - began)
