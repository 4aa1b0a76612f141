"""Strangers' answers over aiohttp.

Their heads are read here, within bounds and as leniently as curl and Go read them.

aiohttp's parser refuses a header over 8 KB, two equal lengths, or a folded line, and it reads interim answers
without end. It is given a plain copy of each head instead: what it makes of the body cannot take the status
back.
"""

import asyncio
import re
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from taskhook.core.reply import DeliveryError

MOST_HEAD = 256 * 1024  # bytes of one head
MOST_HEADERS = 1000  # lines of one head
MOST_INTERIM = 10  # answers of the 100s before the one that counts

_LONGEST = 8000  # bytes of a header that is passed on; no adapter has a use for a longer one
_MOST_DIGITS = 18  # of a length
_STATUS = re.compile(rb"HTTP/([0-9](?:\.[0-9])?)[ \t]+([1-9][0-9]{2})(?:[ \t].*)?", re.DOTALL)
_END = re.compile(rb"\n\r?\n")
_IN_NAMES = b"0123456789abcdefghijklmnopqrstuvwxyz!#$%&'*+-.^_`|~"
_CONTROL = bytes({*range(0x20), 0x7F} - {0x09})
# SETTINGS, which such a server sends first.
_HTTP2 = re.compile(rb"\x00[\x00-\xff]{2}\x04[\x00\x01]\x00\x00\x00\x00", re.DOTALL)
# What says where the body ends is said anew; cookies are kept nowhere; for the last, aiohttp refuses the
# whole answer.
_DROPPED = {b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", b"trailer"}
_DROPPED |= {b"set-cookie", b"sec-websocket-key1"}
_SWITCHING = HTTPStatus.SWITCHING_PROTOCOLS
_FIRST_FINAL = HTTPStatus.OK
_FRAME_HEAD = 9  # bytes that an HTTP/2 frame begins with


class AnswerError(aiohttp.ClientError):
    """What came is no answer, or goes beyond the bounds."""

    def __init__(self, word: DeliveryError) -> None:
        super().__init__(word.value)
        self.word = word


class Head:
    """The heads of one answer, interim ones included, as their bytes come in."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._left = MOST_HEAD  # for all of them, and the blank lines between
        self._interim = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Take more bytes; give a plain copy of the final head, and what follows it, once it is there.

        Raises AnswerError.
        """
        searched = max(0, len(self._buffer) - 2)  # the end may have come in part
        self._buffer += data
        while True:
            self._begin()
            end = _END.search(self._buffer, searched)
            size = end.end() if end else len(self._buffer)
            if size > self._left:
                raise AnswerError(DeliveryError.HEADER_TOO_LARGE)
            if end is None:
                return None
            head, rest = bytes(self._buffer[: end.start()]), bytes(self._buffer[size:])
            status, copy = _read(head)
            if status >= _FIRST_FINAL or status == _SWITCHING:
                return copy, rest
            self._interim += 1
            if self._interim > MOST_INTERIM:
                raise AnswerError(DeliveryError.TOO_MANY_INTERIM)
            self._left -= size
            self._buffer[:] = rest
            searched = 0

    def _begin(self) -> None:
        """Skip blank lines, and tell at once what will never be an answer.

        Its server may wait for us to speak.
        """
        if self._buffer.startswith((b"\r", b"\n")):
            kept = self._buffer.lstrip(b"\r\n")
            self._left -= len(self._buffer) - len(kept)
            self._buffer = kept
        begin = bytes(self._buffer[:_FRAME_HEAD])
        if _HTTP2.match(begin):
            raise AnswerError(DeliveryError.HTTP2_ONLY)
        waits = begin[:1] == b"\0" and len(begin) < _FRAME_HEAD
        if not waits and not begin.startswith(b"HTTP/"[: len(begin)]):
            raise AnswerError(DeliveryError.INVALID_ANSWER)


def _read(head: bytes) -> tuple[int, bytes]:
    """Read one head; give its status, and a copy that every parser understands alike. Raises AnswerError."""
    if head.count(b"\n") > MOST_HEADERS:
        raise AnswerError(DeliveryError.HEADER_TOO_LARGE)
    first, *lines = head.split(b"\n")
    found = _STATUS.fullmatch(first.rstrip(b"\r"))
    if found is None:
        raise AnswerError(DeliveryError.INVALID_ANSWER)
    status = int(found[2])
    fields: list[tuple[bytes, bytes]] = []
    for line in lines:
        if line[:1] in {b" ", b"\t"} and fields:
            fields[-1] = (fields[-1][0], fields[-1][1] + b" " + line.strip())
            continue
        name, _, value = line.partition(b":")
        fields.append((name.strip().lower(), value.strip()))
    kept = [
        name + b": " + value.translate(None, _CONTROL)
        for name, value in fields
        if name
        and name not in _DROPPED
        and len(name) + len(value) <= _LONGEST
        and not name.translate(None, _IN_NAMES)
    ]
    return status, b"\r\n".join(
        [b"HTTP/1.1 %d -" % status, *kept, *_framing(found[1], status, fields), b"\r\n"]
    )


def _framing(version: bytes, status: int, fields: list[tuple[bytes, bytes]]) -> list[bytes]:
    """Say where the body ends. A connection is used again only where its end is beyond doubt."""
    values: dict[bytes, list[bytes]] = {b"content-length": [], b"transfer-encoding": [], b"connection": []}
    for name, value in fields:
        if name in values:
            values[name] += [part.strip().lower() for part in value.split(b",")]
    lengths, codings, connection = (
        set(values[b"content-length"]),
        values[b"transfer-encoding"],
        values[b"connection"],
    )
    close = [b"Connection: close"]
    lasts = (
        status != _SWITCHING
        and b"close" not in connection
        and (version == b"1.1" or b"keep-alive" in connection)
    )
    if codings:
        framing = [b"Transfer-Encoding: chunked"] if codings[-1] == b"chunked" else []
        return framing if framing and lasts and not lengths else framing + close
    if len(lengths) == 1 and (length := lengths.pop()).isdigit() and len(length) <= _MOST_DIGITS:
        framing = [b"Content-Length: " + length]
        return framing if lasts else framing + close
    return close if lengths or not lasts else []


class BoundedAnswers(ResponseHandler):
    """aiohttp's protocol, given heads that were read here, and at most `most` bytes of a body, if set."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, most: int | None = None) -> None:
        super().__init__(loop)
        self._head: Head | None = None
        self._most = most
        self._room: int | None = None

    def set_response_params(self, **options: Any) -> None:
        """Expect an answer."""
        self._head, self._room = Head(), self._most
        super().set_response_params(**options | {"max_headers": MOST_HEADERS + 2})

    def data_received(self, data: bytes) -> None:
        """Read on, be it the head or the body."""
        if self._parser is None:
            # Nothing was asked: aiohttp holds a bounded piece of it, and uses the connection no more.
            super().data_received(data)
            return
        if self._head is not None:
            try:
                found = self._head.feed(data)
            except AnswerError as error:
                self.set_exception(error)
                self._drop()
                return
            if found is None:
                return
            self._head = None
            head, data = found
            super().data_received(head)  # by itself, so that nothing in the body can take it back
        elif data and self._payload is not None and self._payload.is_eof():
            self._drop()  # more than the answer: it would be kept for ever
            return
        if self._room is not None:
            data, self._room = data[: self._room], self._room - len(data[: self._room])
            if not self._room:
                self.force_close()
                self._pause_transport_reading()
        if data:
            super().data_received(data)

    def _drop(self) -> None:
        if self.transport is not None:
            self.transport.abort()
