"""Looks at media over aiohttp, through the guard.

A few ranges of the file, handed to the parser.
"""

import asyncio
from contextlib import closing
from datetime import timedelta
from http import HTTPStatus
from socket import AddressFamily
from time import monotonic

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from taskhook.adapters import mediainfo
from taskhook.adapters.http import magic
from taskhook.adapters.http.fetch import TooManyRedirectsError, content_range, fetch, is_encoded
from taskhook.adapters.http.guard import SystemResolver, causes, error_class, guarded_session
from taskhook.adapters.parser import MediaParser, ParserError
from taskhook.core.errors import ForbiddenTargetError, NotPublicError
from taskhook.core.models import MediaFacts
from taskhook.core.ports import Reporter
from taskhook.core.reply import DeliveryError
from taskhook.core.targets import TargetPolicy

MOST_BYTES = 900_000  # of one file, however large it is
_FIRST = 65536  # bytes: the whole index of an ordinary video that has it in front
_LEAST, _MOST = 8192, 65536  # bytes of a later range: few after a jump, more while the parser reads on
_GONE = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
_NAME_TIME, _NAME_KEPT = 1.0, 60.0  # seconds: to look a name up, and to remember that it was in vain
_REASONS: dict[str, str] = {
    **dict.fromkeys(("dns", "dns_unavailable", "no_address"), "name does not resolve"),
    **dict.fromkeys((word for word in DeliveryError if word.startswith("tls")), "no TLS connection"),
    "timeout": "slow host",
    "refused": "connection refused",
}


class AiohttpMediaProbe:
    """`MediaProbe`.

    It keeps nothing open between two looks; names that do not resolve are remembered for a minute.

    Once it is made, nothing else that runs as this user can read this process's memory, nor its environment:
    the parser could try.
    """

    def __init__(
        self, policy: TargetPolicy, reporter: Reporter, *, resolver: AbstractResolver | None = None
    ) -> None:
        self._policy = policy
        self._reporter = reporter
        self._resolver = resolver  # None: the system's
        self._unknown: dict[str, float] = {}
        self._told = False
        self._parser = MediaParser()
        mediainfo.hide_memory()

    def start(self) -> None:
        """Start what looks need before the first of them."""
        self._parser.start()

    async def look(self, url: str, *, limit: timedelta) -> MediaFacts:
        """Read what a verdict needs. Never raises: what went wrong is among the facts."""
        remote = _RangeReader(self._policy)
        seen = MediaFacts()
        try:
            async with asyncio.timeout(limit.total_seconds()):
                resolver = _QuickResolver(self._unknown, self._resolver or SystemResolver(1))
                no_other = aiohttp.ClientTimeout(total=None)  # asyncio.timeout bounds the look as a whole
                async with guarded_session(
                    self._policy, connections=1, timeout=no_other, resolver=resolver
                ) as session:
                    with closing(remote):
                        await remote.open(session, url)
                        seen = await self._parsed(remote)
        # A host or a file may break in any way; none of them may break us.
        except Exception as error:  # noqa: BLE001
            remote.note(error)
        known = {"failure": remote.failure, "doubt": remote.doubt, "size": remote.size, "text": remote.text}
        return seen.model_copy(update=known)

    async def _parsed(self, remote: "_RangeReader") -> MediaFacts:
        """Have the file parsed where the vendor takes its format; any other is only named."""
        if remote.format not in magic.PARSED:
            return MediaFacts(format=remote.format)
        try:
            parsed = await self._parser.parse(remote.read, remote.parsed_size, remote.format)
        except ParserError as error:
            raise _DoubtError(str(error)) from error
        if not (parsed.confined or self._told):
            self._told = True
            self._reporter.report("parser.unconfined")
        facts = parsed.model_dump(exclude={"known", "confined"})
        return MediaFacts(format=remote.format if parsed.known else "", **facts)


class _DoubtError(Exception):
    """It cannot be told; the text says why."""


class _FailureError(Exception):
    """It surely is no such file; the text says why."""


class _QuickResolver(AbstractResolver):
    """Waits for no name longer than a second, nor within the next minute for one that was not found."""

    def __init__(self, unknown: dict[str, float], resolver: AbstractResolver) -> None:
        self._unknown = unknown
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: AddressFamily = AddressFamily.AF_INET
    ) -> list[ResolveResult]:
        """Look a name up. Raises OSError as any resolver."""
        for name in [name for name, until in self._unknown.items() if until < monotonic()]:
            del self._unknown[name]
        if host in self._unknown:
            raise OSError("the name was not found a moment ago")
        try:
            async with asyncio.timeout(_NAME_TIME):
                return await self._resolver.resolve(host, port, family)
        except OSError as error:  # too late included
            self._unknown[host] = monotonic() + _NAME_KEPT
            raise OSError("the name was not found") from error

    async def close(self) -> None:
        """Close what is open."""
        await self._resolver.close()


class _RangeReader:
    """A file behind a URL, read by ranges.

    Where its host knows none, as far into the one answer as there is need and room.
    """

    def __init__(self, policy: TargetPolicy) -> None:
        self.failure = ""
        self.doubt = ""
        self.size: int | None = None
        self.text = False
        self.format = ""  # as its first bytes say
        self._policy = policy
        self._session: aiohttp.ClientSession | None = None
        self._url = ""  # where redirects have led
        self._whole: aiohttp.ClientResponse | None = None  # the answer of a host that knows no ranges
        self._left = MOST_BYTES
        self._windows: list[tuple[int, bytes]] = [(0, b"")]  # the beginning, and the last range
        self._next = _LEAST

    @property
    def parsed_size(self) -> int:
        """How long the file is for the parser: as long as what is there of one whose size is not known."""
        return len(self._windows[0][1]) if self.size is None else self.size

    def note(self, error: Exception) -> None:
        """Remember why the look is over."""
        hidden = next((cause for cause in causes(error) if isinstance(cause, NotPublicError)), None)
        if hidden is not None:
            self.failure = f"leads to a host that the vendor cannot reach: its {hidden}"
        elif isinstance(error, _FailureError):
            self.failure = str(error)
        elif isinstance(error, _DoubtError):
            self.doubt = str(error)
        elif isinstance(error, TooManyRedirectsError):
            self.doubt = "too many redirects"
        elif isinstance(error, ForbiddenTargetError):
            self.doubt = "not asked from here"
        else:
            self.doubt = _REASONS.get(error_class(error), "connection broke")

    async def open(self, session: aiohttp.ClientSession, url: str) -> None:
        """Find the file, and read how it begins. Raises what `note` understands."""
        self._session = session
        response = await fetch(session, self._policy, url, _range(0, _FIRST))
        self._url = str(response.url)
        if response.status == HTTPStatus.OK:
            await self._open_whole(response)
        elif (size := self._size_told(response)) is not None:
            async with response:
                self._windows[0] = (0, await self._take(response, min(_FIRST, size)))
            self.size = size
        else:  # many hosts turn ranges away, and no whole file
            response.close()
            await self._open_whole(await fetch(session, self._policy, self._url))
        self._name(self._windows[0][1][: magic.LOOK])

    @staticmethod
    def _size_told(response: aiohttp.ClientResponse) -> int | None:
        """Tell how large the file is of which this is the first range; None where it is not that."""
        told = content_range(response)
        if (
            response.status != HTTPStatus.PARTIAL_CONTENT
            or told is None
            or told[0] != 0
            or is_encoded(response)
        ):
            return None
        return told[1]

    async def _open_whole(self, response: aiohttp.ClientResponse) -> None:
        self._whole = response
        if response.status in _GONE:
            raise _FailureError(f"cannot be fetched: its host answers {response.status}")
        if response.status != HTTPStatus.OK:
            raise _DoubtError(f"host answers {response.status}")
        if is_encoded(response):
            raise _DoubtError("host answers compressed")
        self.size = response.content_length
        await self._read_on(magic.LOOK if self.size is not None else MOST_BYTES)
        if self.size is None and response.content.at_eof():
            self.size = len(self._windows[0][1])
        elif self.size is None:
            self.doubt = "unknown size"

    def close(self) -> None:
        """Leave what is not read to its end."""
        if self._whole is not None:
            self._whole.close()

    def _name(self, head: bytes) -> None:
        if magic.is_page(head):
            # A challenge to robots, perhaps, or a page to sign in, which the vendor may not see.
            self.size = None
            raise _DoubtError("host answers with a page")
        self.text = magic.is_text(head)
        self.format = "" if self.text else magic.name(head)

    async def read(self, offset: int, length: int) -> bytes:
        """Give `length` bytes from `offset`, and none where no more can be had.

        The parser then says what it knows.
        """
        try:
            if self._kept(offset, length) is None and offset < self.parsed_size:
                await (self._read_on(offset + length) if self._whole else self._read_range(offset, length))
        except Exception as error:  # noqa: BLE001  # whatever it is, what was read so far may be enough
            self.note(error)
        return self._kept(offset, length) or b""

    async def _read_on(self, end: int) -> None:
        """Read on in the answer that gives the whole file."""
        assert self._whole is not None  # noqa: S101  # where this is called
        if end > MOST_BYTES:
            raise _DoubtError("no range support")
        _, head = self._windows[0]
        while len(head) < end and (more := await self._whole.content.read(MOST_BYTES - len(head))):
            head += more
            self._windows[0] = (0, head)

    async def _read_range(self, offset: int, length: int) -> None:
        start, window = self._windows[-1]
        reads_on = start <= offset <= start + len(window)
        self._next = min(self._next * 2, _MOST) if reads_on else _LEAST
        end = min(offset + max(self._next, length), self.parsed_size)
        if end - offset > self._left:
            raise _DoubtError("too much to read")
        assert self._session is not None  # noqa: S101  # set by `open`
        async with await fetch(
            self._session, self._policy, self._url, _range(offset, end - offset)
        ) as response:
            if (
                response.status != HTTPStatus.PARTIAL_CONTENT
                or content_range(response) != (offset, self.size)
                or is_encoded(response)
            ):
                raise _DoubtError("file changed or host gave up")
            self._windows[1:] = [(offset, await self._take(response, end - offset))]

    async def _take(self, response: aiohttp.ClientResponse, length: int) -> bytes:
        self._left -= length
        return await response.content.readexactly(length)

    def _kept(self, offset: int, length: int) -> bytes | None:
        for start, window in self._windows:
            if start <= offset and offset + length <= start + len(window):
                return window[offset - start : offset - start + length]
        return None


def _range(offset: int, length: int) -> dict[str, str]:
    return {"Range": f"bytes={offset}-{offset + length - 1}"}
