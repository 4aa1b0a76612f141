"""The vendor's result files over aiohttp, through the guard: one open answer, read piece by piece as the copy is made."""

import asyncio
import re
from dataclasses import dataclass, field
from urllib.parse import urldefrag, urljoin

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from taskhook.adapters.guard import guarded_connector
from taskhook.ports import Piece, SourceChangedError, SourceGoneError, SourceUnavailableError
from taskhook.targets import MEDIA, ForbiddenTargetError, TargetPolicy

_HOPS = 3
_AGAIN = {408, 425, 429}  # besides 5xx: what may work in a while
_SKIP = 256 * 1024
_MAX_TAG = 256  # characters; a longer one is a stranger's whim, and would be stored
_MEDIA_TYPE = re.compile(r"(image|video|audio)/[A-Za-z0-9.+-]{1,64}")


@dataclass
class _Open:
    """An answer that is being read."""

    url: str
    response: aiohttp.ClientResponse
    at: int = 0  # the next byte
    size: int | None = None  # of the whole file
    tag: str = field(default="")

    @property
    def media_type(self) -> str:
        """What the server says the file is, if that is a medium: whoever follows a link shall be shown nothing else."""
        named = self.response.headers.get("content-type", "").partition(";")[0].strip()
        return named if _MEDIA_TYPE.fullmatch(named) else "application/octet-stream"


class AiohttpOriginals:
    """`Originals`. Pieces that follow each other come from one answer, also of a server that knows no ranges."""

    def __init__(self, policy: TargetPolicy, *, resolver: AbstractResolver | None = None, patience: float = 20) -> None:
        self._policy = policy
        self._resolver = resolver  # None: the system's
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=patience / 2, sock_read=patience)
        self._session: aiohttp.ClientSession | None = None
        self._open: _Open | None = None

    async def read(self, url: str, *, start: int, length: int, tag: str | None) -> Piece:
        """Read up to `length` bytes from `start` on. Raises SourceGoneError, SourceChangedError, SourceUnavailableError."""
        try:
            opened = self._open
            if opened is None or (opened.url, opened.at) != (url, start) or (tag is not None and opened.tag != tag):
                opened = await self._ask(url, start, tag)
            return await _take(opened, length)
        except (SourceGoneError, SourceChangedError, SourceUnavailableError):
            self._leave()
            raise
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._leave()
            if _forbidden(error):
                raise SourceGoneError("forbidden_target") from None
            raise SourceUnavailableError(type(error).__name__) from None
        except asyncio.CancelledError:
            self._leave()
            raise

    async def close(self) -> None:
        """Close what is open; reading opens anew."""
        self._leave()
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _leave(self) -> None:
        if self._open is not None:
            self._open.response.close()
            self._open = None

    async def _ask(self, url: str, start: int, tag: str | None) -> _Open:
        """Ask for the rest of a file, of this version, and read up to where it begins where the server sends all of it."""
        self._leave()
        headers = {"accept-encoding": "identity", "user-agent": "taskhook"}
        if start:
            headers["range"] = f"bytes={start}-"
            if tag and tag.startswith('"'):  # a strong one: another version comes whole
                headers["if-range"] = tag
        self._open = opened = _Open(url, await self._follow(url, headers))
        _read_head(opened, start)
        if tag is not None and opened.tag != tag:
            raise SourceChangedError
        while opened.at < start:
            skipped = await opened.response.content.read(min(start - opened.at, _SKIP))
            if not skipped:
                raise SourceChangedError
            opened.at += len(skipped)
        return opened

    async def _follow(self, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """Send the request, and on to where redirects lead, each of them checked."""
        for _ in range(_HOPS + 1):
            url = urldefrag(url).url
            self._policy.check_url(url, MEDIA)
            response = await self._client().get(URL(url, encoded=True), headers=headers, allow_redirects=False)
            if response.status not in {301, 302, 303, 307, 308}:
                return response
            response.close()
            url = urljoin(url, response.headers.get("location", ""))
        raise SourceGoneError("too_many_redirects")

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=guarded_connector(self._policy, connections=2, per_host=2, resolver=self._resolver),
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


def _read_head(opened: _Open, start: int) -> None:
    """Learn from the answer which bytes of what come. Raises the errors of `Originals.read`."""
    status, headers = opened.response.status, opened.response.headers
    opened.tag = (headers.get("etag") or headers.get("last-modified") or "")[:_MAX_TAG]
    if status == 200:  # noqa: PLR2004  # HTTP
        length = headers.get("content-length")
        opened.size = int(length) if length is not None else None
    elif status == 206 and start:  # noqa: PLR2004  # HTTP
        came = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)", headers.get("content-range", ""))
        if came is None or int(came[1]) != start:
            raise SourceUnavailableError("wrong_range")
        opened.at = start
        opened.size = int(came[2]) if came[2] != "*" else None
    elif status == 416 and start:  # noqa: PLR2004  # HTTP
        raise SourceChangedError  # it was longer
    elif 400 <= status < 500 and status not in _AGAIN:  # noqa: PLR2004  # HTTP
        raise SourceGoneError(f"status_{status}")
    else:
        raise SourceUnavailableError(f"status_{status}")


async def _take(opened: _Open, length: int) -> Piece:
    """Read a piece, whole unless the file ends."""
    data = bytearray()
    while len(data) < length and (chunk := await opened.response.content.read(length - len(data))):
        data += chunk
    opened.at += len(data)
    last = opened.at == opened.size if opened.size is not None else len(data) < length or opened.response.content.at_eof()
    if len(data) < length and not last:
        raise SourceUnavailableError("cut_short")
    return Piece(data=bytes(data), size=opened.size, tag=opened.tag, media_type=opened.media_type, last=last)


def _forbidden(error: BaseException | None) -> bool:
    """Tell whether the guard has refused; aiohttp wraps what its connector met."""
    while error is not None:
        if isinstance(error, ForbiddenTargetError):
            return True
        error = error.__cause__ or error.__context__
    return False
