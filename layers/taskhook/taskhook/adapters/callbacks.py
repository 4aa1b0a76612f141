"""Delivery attempts over aiohttp, through the guard: one POST, 15 s in all, no redirects, the answer read to 2 KB."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from time import perf_counter
from types import SimpleNamespace

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from taskhook.adapters.guard import guarded_connector, trouble
from taskhook.deliver import ATTEMPT_TIME
from taskhook.hosts import SLOTS
from taskhook.ports import Reply
from taskhook.targets import TargetPolicy
from taskhook.task import MAX_EXCERPT

_READ = 2048  # bytes of an answer
_READ_TIME = 1  # seconds
_MOST_RETRY_AFTER = timedelta(hours=48)  # twice the longest wait of the schedule: more is granted to nobody


class AiohttpCallbacks:
    """`CallbackSender`. Its session belongs to the event loop that first uses it."""

    def __init__(self, policy: TargetPolicy, *, limit: timedelta = ATTEMPT_TIME, resolver: AbstractResolver | None = None) -> None:
        self._policy = policy
        self._limit = limit
        self._resolver = resolver  # None: the system's
        self._session: aiohttp.ClientSession | None = None

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send one attempt. Never raises: what went wrong is the reply."""
        wire = _Wire()
        try:
            self._policy.check_url(url)
            exactly = URL(url, encoded=True)  # as given, for callers sign URLs too
            async with asyncio.timeout(self._limit.total_seconds()):
                await self._post(exactly, headers, body, wire)
        except Exception as error:  # noqa: BLE001  # a receiver may break in any way; none of them may break us
            if wire.status is None:
                return Reply(error=trouble(error), elapsed=_since(wire.began))
        # The status decides, whatever became of the body: that is for the log alone.
        return Reply(status=wire.status, answer=_excerpt(wire.answer), retry_after=wire.retry_after, elapsed=wire.elapsed)

    async def _post(self, url: URL, headers: Mapping[str, str], body: bytes, wire: "_Wire") -> None:
        """Send it; once more where a kept connection turns out to be dead, which is no answer of the receiver's."""
        while True:
            wire.kept = False
            try:
                async with self._open().post(
                    url, data=body, headers=headers, allow_redirects=False, trace_request_ctx=wire
                ) as response:
                    wire.status, wire.elapsed = response.status, _since(wire.began)
                    wire.retry_after = _retry_after(response.headers.get("retry-after"))
                    wire.answer = await _first_bytes(response)
                    return
            except (aiohttp.ClientConnectionError, OSError):
                if wire.status is not None or not wire.kept:
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
            self._session = aiohttp.ClientSession(
                connector=guarded_connector(self._policy, connections=SLOTS, per_host=SLOTS, resolver=self._resolver),
                timeout=aiohttp.ClientTimeout(total=None),  # asyncio.timeout bounds the attempt, waiting for a place included
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                trace_configs=[trace],
            )
        return self._session


@dataclass
class _Wire:
    """What has come over the wire so far."""

    began: float = field(default_factory=perf_counter)
    kept: bool = False  # the connection has been used before
    status: int | None = None
    answer: bytes = b""
    retry_after: timedelta | None = None
    elapsed: timedelta = timedelta(0)


async def _note_kept(_session: aiohttp.ClientSession, context: SimpleNamespace, _: aiohttp.TraceConnectionReuseconnParams) -> None:
    context.trace_request_ctx.kept = True


async def _first_bytes(response: aiohttp.ClientResponse) -> bytes:
    try:
        async with asyncio.timeout(_READ_TIME):
            return await response.content.read(_READ)
    except (TimeoutError, aiohttp.ClientError, OSError):
        return b""


def _retry_after(value: str | None) -> timedelta | None:
    """Read `Retry-After`: seconds or a date, 48 h at most; None for nonsense."""
    if value is None:
        return None
    try:
        if re.fullmatch(r"[0-9]+", value):
            return min(timedelta(seconds=int(value[:10])), _MOST_RETRY_AFTER)
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # no calendar has such a date
        return None
    wait = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)
    return min(max(wait, timedelta(0)), _MOST_RETRY_AFTER)


def _excerpt(answer: bytes) -> str:
    """Keep the first bytes as text, control characters escaped."""
    text = answer[:MAX_EXCERPT].decode(errors="replace")
    escaped = "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in text)
    return escaped.encode()[:MAX_EXCERPT].decode(errors="ignore")


def _since(began: float) -> timedelta:
    return timedelta(seconds=perf_counter() - began)
