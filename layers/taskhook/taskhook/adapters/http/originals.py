"""The vendor's result files over aiohttp, through the guard.

One open answer, read piece by piece as the copy is made.
"""

import asyncio
import re
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus

import aiohttp
from aiohttp.abc import AbstractResolver

from taskhook.adapters.http.fetch import TooManyRedirectsError, content_range, fetch, is_encoded
from taskhook.adapters.http.guard import causes, guarded_session
from taskhook.core.errors import (
    ForbiddenTargetError,
    SourceChangedError,
    SourceGoneError,
    SourceUnavailableError,
)
from taskhook.core.ports import Piece
from taskhook.core.targets import TargetPolicy

# For one read, what is skipped before it included; a file of a usual size at 70 KB/s is too late anyway.
PIECE_TIME = timedelta(minutes=2)
PATIENCE = timedelta(seconds=20)  # with a server that sends nothing; half of it until it is connected
# A signed link that has expired says 403.
_GONE = {
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.GONE,
}
_SKIP = 256 * 1024
_MAX_TAG = 256  # characters; a longer one is a stranger's whim, and would be stored
_MEDIA_TYPE = re.compile(r"(image|video|audio)/[A-Za-z0-9.+-]{1,64}")


@dataclass
class _OpenResponse:
    """An answer that is being read."""

    url: str
    response: aiohttp.ClientResponse
    at: int = 0  # the next byte
    size: int | None = None  # of the whole file
    tag: str = field(default="")

    @property
    def ends_surely(self) -> bool:
        """Whether an end that is no error is the file's.

        Its length was told, or the last chunk of the whole was marked.
        """
        chunked = "chunked" in self.response.headers.get("transfer-encoding", "").lower()
        return self.size is not None or (self.response.status == HTTPStatus.OK and chunked)

    @property
    def media_type(self) -> str:
        """What the server says the file is, if that is a medium: a link shows nothing else."""
        named = self.response.headers.get("content-type", "").partition(";")[0].strip()
        return named if _MEDIA_TYPE.fullmatch(named) else "application/octet-stream"


class AiohttpOriginals:
    """`Originals`.

    Pieces that follow each other come from one answer, also of a server that knows no ranges.
    """

    def __init__(
        self,
        policy: TargetPolicy,
        *,
        resolver: AbstractResolver | None = None,
        patience: timedelta = PATIENCE,
        piece_time: timedelta = PIECE_TIME,
    ) -> None:
        self._policy = policy
        self._resolver = resolver  # None: the system's
        silence_s = patience.total_seconds()
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=silence_s / 2, sock_read=silence_s)
        self._piece_time = piece_time
        self._session: aiohttp.ClientSession | None = None
        self._open: _OpenResponse | None = None

    async def read(self, url: str, *, start: int, length: int, tag: str | None) -> Piece:
        """Read up to `length` bytes from `start` on.

        Raises SourceGoneError, SourceChangedError, SourceUnavailableError.
        """
        try:
            async with asyncio.timeout(self._piece_time.total_seconds()):  # a drip is as good as silence
                opened = self._open
                if (
                    opened is None
                    or (opened.url, opened.at) != (url, start)
                    or (tag is not None and opened.tag != tag)
                ):
                    opened = await self._ask(url, start, tag)
                piece = await _take(opened, length)
                if piece.last and opened.at and not opened.ends_surely:
                    await self._check_end(opened)
                return piece
        except (SourceGoneError, SourceChangedError, SourceUnavailableError):
            self._leave()
            raise
        except TooManyRedirectsError:
            raise SourceGoneError("too_many_redirects") from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, ForbiddenTargetError) as error:
            self._leave()
            if any(isinstance(cause, ForbiddenTargetError) for cause in causes(error)):
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

    async def _ask(self, url: str, start: int, tag: str | None) -> _OpenResponse:
        """Ask for the rest of a file, of this version; skip what is there where the server sends it all."""
        self._leave()
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and tag and tag.startswith('"'):  # a strong one: another version comes whole
            headers["If-Range"] = tag
        self._open = opened = _OpenResponse(url, await fetch(self._client(), self._policy, url, headers))
        _read_head(opened, start)
        if tag is not None and opened.tag != tag:
            raise SourceChangedError
        while opened.at < start:
            skipped = await opened.response.content.read(min(start - opened.at, _SKIP))
            if not skipped:
                raise SourceChangedError
            opened.at += len(skipped)
        return opened

    async def _check_end(self, opened: _OpenResponse) -> None:
        """Make sure that a file ends where an answer did that told no length: it may have been cut there.

        Raises SourceUnavailableError where there is more, SourceGoneError where the server does not tell.
        """
        response = await fetch(self._client(), self._policy, opened.url, {"Range": f"bytes={opened.at}-"})
        try:
            behind = _OpenResponse(opened.url, response)
            _read_head(behind, opened.at)
        except SourceChangedError:
            return  # the server has no such bytes
        finally:
            response.close()
        if behind.size is None and not behind.at:
            raise SourceGoneError("unknown_length")
        if behind.size != opened.at:
            raise SourceUnavailableError("cut_short")

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = guarded_session(
                self._policy, connections=2, timeout=self._timeout, resolver=self._resolver
            )
        return self._session


def _read_head(opened: _OpenResponse, start: int) -> None:
    """Learn from the answer which bytes of what come. Raises the errors of `Originals.read`."""
    status, headers = opened.response.status, opened.response.headers
    opened.tag = (headers.get("etag") or headers.get("last-modified") or "")[:_MAX_TAG]
    if status == HTTPStatus.OK:
        opened.size = opened.response.content_length
    elif status == HTTPStatus.PARTIAL_CONTENT and start:
        told = content_range(opened.response)
        if told is None or told[0] != start:
            raise SourceUnavailableError("wrong_range")
        opened.at, opened.size = told
    elif status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
        raise SourceChangedError  # it was longer
    elif status in _GONE:
        raise SourceGoneError(f"status_{status}")
    else:
        raise SourceUnavailableError(f"status_{status}")
    if is_encoded(opened.response):  # although it was asked not to be; another try would get the same
        raise SourceGoneError("compressed")


async def _take(opened: _OpenResponse, length: int) -> Piece:
    """Read a piece, whole unless the file ends."""
    data = bytearray()
    while len(data) < length and (chunk := await opened.response.content.read(length - len(data))):
        data += chunk
    opened.at += len(data)
    last = (
        opened.at == opened.size
        if opened.size is not None
        else len(data) < length or opened.response.content.at_eof()
    )
    if len(data) < length and not last:
        raise SourceUnavailableError("cut_short")
    return Piece(data=bytes(data), size=opened.size, tag=opened.tag, media_type=opened.media_type, last=last)
