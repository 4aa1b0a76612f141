"""Looks at media over aiohttp, through the guard: a few ranges of the file, handed to a parser in a process of its own."""

import asyncio
import re
import struct
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from socket import AddressFamily
from time import monotonic
from typing import Annotated
from urllib.parse import urldefrag, urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import BaseModel, ConfigDict, Field
from yarl import URL

from taskhook.adapters import mediainfo
from taskhook.adapters.guard import SystemResolver, guarded_connector, trouble
from taskhook.models import MediaFacts
from taskhook.targets import MEDIA, ForbiddenTargetError, NotPublicError, TargetPolicy

MOST_HOPS = 3
MOST_BYTES = 900_000  # of one file, however large it is
PARSE_TIME = 2.0  # seconds, in which the parser also waits for what it asks for
_FIRST = 65536  # bytes: the whole index of an ordinary video that has it in front
_LEAST, _MOST = 8192, 65536  # bytes of a later range: few after a jump, more while the parser reads on
_TEXT = 512  # bytes that tell a text from anything else
_GONE = {401, 403, 404, 410}
_REDIRECTS = {301, 302, 303, 307, 308}
_NAME_TIME, _NAME_KEPT = 1.0, 60.0  # seconds: to look a name up, and to remember that it was in vain
_REASONS = {"dns": "name does not resolve", "timeout": "slow host", "tls": "no TLS connection", "refused": "connection refused"}


class AiohttpMediaProbe:
    """`MediaProbe`. It keeps nothing open between two looks; names that do not resolve are remembered for a minute."""

    def __init__(self, policy: TargetPolicy, *, resolver: AbstractResolver | None = None) -> None:
        self._policy = policy
        self._resolver = resolver  # None: the system's
        self._unknown: dict[str, float] = {}

    async def look(self, url: str, *, limit: timedelta) -> MediaFacts:
        """Read what a verdict needs. Never raises: what went wrong is among the facts."""
        remote = _Remote(url, self._policy)
        seen = MediaFacts()
        try:
            async with asyncio.timeout(limit.total_seconds()):
                resolver = _QuickResolver(self._unknown, self._resolver or SystemResolver(1))
                async with aiohttp.ClientSession(
                    connector=guarded_connector(self._policy, connections=1, per_host=1, resolver=resolver),
                    timeout=aiohttp.ClientTimeout(total=None),  # asyncio.timeout bounds the look as a whole
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    trust_env=False,
                ) as session:
                    await remote.open(session)
                    if remote.size and not remote.text:
                        seen = MediaFacts(**(await _parse(remote)).model_dump())
        except Exception as error:  # noqa: BLE001  # a host or a file may break in any way; none of them may break us
            remote.note(error)
        known = {"failure": remote.failure, "doubt": remote.doubt, "size": remote.size, "text": remote.text}
        return seen.model_copy(update=known)


class _DoubtError(Exception):
    """It cannot be told; the text says why."""


class _FailureError(Exception):
    """It surely is no such file; the text says why."""


class _QuickResolver(AbstractResolver):
    """Waits for no name longer than a second, nor within the next minute for one that was not found."""

    def __init__(self, unknown: dict[str, float], resolver: AbstractResolver) -> None:
        self._unknown = unknown
        self._resolver = resolver

    async def resolve(self, host: str, port: int = 0, family: AddressFamily = AddressFamily.AF_INET) -> list[ResolveResult]:
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


class _Remote:
    """A file behind a URL, read by ranges."""

    def __init__(self, url: str, policy: TargetPolicy) -> None:
        self.failure = ""
        self.doubt = ""
        self.size: int | None = None
        self.text = False
        self._url = urldefrag(url).url
        self._policy = policy
        self._session: aiohttp.ClientSession | None = None
        self._left = MOST_BYTES
        self._windows: list[tuple[int, bytes]] = []  # the first range, and the last one
        self._next = _LEAST

    def note(self, error: Exception) -> None:
        """Remember why the look is over."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, NotPublicError):
                self.failure = f"leads to a host that the vendor cannot reach: its {cause}"
                return
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, _FailureError):
            self.failure = str(error)
        elif isinstance(error, _DoubtError):
            self.doubt = str(error)
        elif isinstance(error, ForbiddenTargetError):
            self.doubt = "not asked from here"
        else:
            self.doubt = _REASONS.get(trouble(error), "connection broke")

    async def open(self, session: aiohttp.ClientSession) -> None:
        """Follow the redirects to the file, and read its first range. Raises what `note` understands."""
        self._session = session
        for _ in range(MOST_HOPS + 1):
            self._policy.check_url(self._url, MEDIA)
            async with self._ask(0, _FIRST) as response:
                location = response.headers.get("location")
                if response.status not in _REDIRECTS or location is None:
                    await self._begin(response)
                    return
                self._url = urldefrag(urljoin(self._url, location)).url
        raise _DoubtError("too many redirects")

    async def _begin(self, response: aiohttp.ClientResponse) -> None:
        match response.status:
            case 206:
                first, self.size = _content_range(response)
                if first != 0:
                    raise _DoubtError("no range support")
                head = await self._take(response, 0, min(_FIRST, self.size))
                self._windows.append((0, head))
                self.text = _is_text(head)
            case 200:
                self.size = response.content_length
                if not response.headers.get("content-encoding"):
                    self.text = _is_text(await _first_bytes(response))
                raise _DoubtError("no range support")
            case 416 if re.fullmatch(r"bytes \*/0", response.headers.get("content-range", "")):
                self.size = 0
            case status if status in _GONE:
                raise _FailureError(f"cannot be fetched: its host answers {status}")
            case status:
                raise _DoubtError(f"host answers {status}")

    async def read(self, offset: int, length: int) -> bytes:
        """Give `length` bytes from `offset`, and none where no more can be had: the parser then says what it knows."""
        if (found := self._kept(offset, length)) is not None:
            return found
        if self.size is None or offset >= self.size:
            return b""
        start, window = self._windows[-1]
        reads_on = start <= offset <= start + len(window)
        self._next = min(self._next * 2, _MOST) if reads_on else _LEAST
        end = min(offset + max(self._next, length), self.size)
        if end - offset > self._left:
            self.doubt = "too much to read"
            return b""
        try:
            async with self._ask(offset, end - offset) as response:
                if response.status != 206 or _content_range(response) != (offset, self.size):  # noqa: PLR2004  # HTTP
                    raise _DoubtError("file changed or host gave up")  # noqa: TRY301  # noted right below
                self._windows[1:] = [(offset, await self._take(response, offset, end))]
        except Exception as error:  # noqa: BLE001  # whatever it is, what was read so far may be enough
            self.note(error)
            return b""
        return self._kept(offset, length) or b""

    def _ask(self, offset: int, length: int) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        assert self._session is not None  # noqa: S101  # set by `open`
        return self._session.get(
            URL(self._url, encoded=True),  # as given, for it may be signed
            headers={
                "Range": f"bytes={offset}-{offset + length - 1}",
                "Accept-Encoding": "identity",
                "User-Agent": "taskhook",  # some hosts turn a library's own name away
            },
            allow_redirects=False,
        )

    async def _take(self, response: aiohttp.ClientResponse, start: int, end: int) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _DoubtError("no range support")
        self._left -= end - start
        return await response.content.readexactly(end - start)

    def _kept(self, offset: int, length: int) -> bytes | None:
        for start, window in self._windows:
            if start <= offset and offset + length <= start + len(window):
                return window[offset - start : offset - start + length]
        return None


def _content_range(response: aiohttp.ClientResponse) -> tuple[int, int]:
    """Read where a range begins, and how long the file is."""
    found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", response.headers.get("content-range", ""))
    if found is None:
        raise _DoubtError("no range support")
    return int(found[1]), int(found[2])


async def _first_bytes(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.content.readexactly(_TEXT)
    except asyncio.IncompleteReadError as all_of_it:
        return all_of_it.partial


def _is_text(head: bytes) -> bool:
    """Tell whether a file begins as a page or a message does: no media format does."""
    head = head[:_TEXT]
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character was cut in two
            return False
        text = head[: error.start].decode("utf-8-sig")
    return bool(text) and all(character.isprintable() or character in "\t\n\r\f" for character in text)


# --- the parser ---------------------------------------------------------------------------------------------------------------

_PROGRAM = mediainfo.__file__
# Lambda's interpreter finds its own library by this variable alone; nothing else is passed on.
_ENVIRONMENT = {"LD_LIBRARY_PATH": f"{sys.base_prefix}/lib"}


class _Parsed(BaseModel):
    """What the parser may say; whoever has taken it over can say no more than this."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Annotated[str, Field(pattern=r"^[A-Za-z0-9 ._+/-]{0,40}$")]
    tracks: tuple[Annotated[str, Field(pattern=r"^[A-Z][a-z]{1,9}$")], ...] = Field(max_length=6)
    width: Annotated[int, Field(ge=0, le=1 << 32)] | None = None
    height: Annotated[int, Field(ge=0, le=1 << 32)] | None = None
    seconds: tuple[Annotated[float, Field(ge=0)], ...] = Field(max_length=2)
    cut_off: bool


async def _parse(remote: _Remote) -> _Parsed:
    """Let the parser read what it wants of the file. Raises _DoubtError where it dies, talks nonsense or takes too long."""
    parser = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", _PROGRAM, _packages(), str(remote.size),
        stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=_ENVIRONMENT, cwd="/",
    )  # fmt: skip
    try:
        async with asyncio.timeout(PARSE_TIME):
            return await _serve(parser, remote)
    except TimeoutError as error:
        raise _DoubtError("took too long to read") from error
    except (ValueError, OSError) as error:
        raise _DoubtError("cannot be parsed") from error
    finally:
        if parser.returncode is None:
            parser.kill()
        await parser.communicate()  # `wait` alone would wait for ever where it has said more than was read


async def _serve(parser: Process, remote: _Remote) -> _Parsed:
    """Answer the parser's questions until it says what it found. Raises ValueError, which pydantic's errors are, and OSError."""
    assert parser.stdin is not None  # noqa: S101  # asked for
    assert parser.stdout is not None  # noqa: S101  # likewise
    while True:
        line = await parser.stdout.readline()
        question = re.fullmatch(rb"read (\d{1,18}) (\d{1,5})\n", line)
        if question is None:
            return _Parsed.model_validate_json(line)
        data = await remote.read(int(question[1]), int(question[2]))
        parser.stdin.write(struct.pack(">I", len(data)) + data)
        await parser.stdin.drain()


def _packages() -> str:
    """Tell where the parser's packages are."""
    found = find_spec("pymediainfo")
    assert found is not None  # noqa: S101  # the layer brings it
    assert found.origin is not None  # noqa: S101  # it is a file
    return str(Path(found.origin).parents[1])
