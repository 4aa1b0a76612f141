"""Heads of answers, whatever bytes and pieces they come in: what is passed on, and nothing else."""

import asyncio

import pytest
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpResponseParser
from hypothesis import given
from hypothesis import strategies as st

from taskhook.adapters.http.answers import MOST_HEAD, MOST_HEADERS, MOST_INTERIM, AnswerError, Head
from taskhook.core.reply import DeliveryError

LINES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"Content-Length: 5",
            b"content-length:5",
            b"Transfer-Encoding: chunked",
            b"Connection: close",
            b" folded",
        ]
    ),
    st.sampled_from(
        [
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Content-Length: 6",
            b"Transfer-Encoding: gzip",
            b"X: \0",
        ]
    ),
    st.sampled_from(
        [b"Sec-WebSocket-Key1: x", b"Content-Encoding: gzip", b"Connection: keep-alive", b"", b"Trailer: X"]
    ),
)
FIRST = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.0 503 ", b"HTTP/1.1 204", b"HTTP/1.1 101 Switching", b"HTTP/1.1 100 Go on"]
)
HEADS = st.builds(
    lambda first, lines, end: end.join([first, *lines]) + end + end,
    FIRST,
    st.lists(LINES, max_size=8),
    st.sampled_from([b"\r\n", b"\n"]),
)


def fed(*pieces: bytes) -> tuple[bytes, bytes] | DeliveryError | None:
    """Feed the pieces; give what comes of them, with all that follows the head."""
    head = Head()
    for number, piece in enumerate(pieces):
        try:
            found = head.feed(piece)
        except AnswerError as error:
            return error.word
        if found is not None:
            return found[0], found[1] + b"".join(pieces[number + 1 :])
    return None


@given(
    data=st.one_of(
        st.binary(max_size=300),
        HEADS.flatmap(lambda head: st.binary(max_size=20).map(lambda rest: head + rest)),
    )
)
def test_pieces_make_no_difference(data: bytes) -> None:
    """Whatever comes, it is understood the same in one piece and byte by byte."""
    assert fed(data) == fed(*(data[at : at + 1] for at in range(len(data))))


@given(heads=st.lists(HEADS, min_size=1, max_size=4))
async def test_what_is_passed_on_is_what_every_parser_takes(heads: list[bytes]) -> None:
    """Aiohttp's parser makes one message of it, of the same status, whatever the stranger's head."""
    found = fed(*heads)
    if not isinstance(found, tuple):
        return
    loop = asyncio.get_running_loop()
    parser = HttpResponseParser(
        ResponseHandler(loop), loop, 65536, max_headers=MOST_HEADERS + 2, read_until_eof=True
    )
    [(message, _)], upgraded, tail = parser.feed_data(found[0])
    assert (str(message.code).encode(), upgraded, tail) == (found[0][9:12], False, b"")
    assert message.code >= 200 or message.code == 101


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_bounds_are_exact(end: bytes) -> None:
    """So many bytes and headers are taken, and one more is not."""
    first = b"HTTP/1.1 200 OK" + end
    spare = MOST_HEAD - len(first + b"X: " + end + end)
    assert isinstance(fed(first + b"X: " + b"a" * spare + end + end), tuple)
    assert fed(first + b"X: " + b"a" * (spare + 1) + end + end) is DeliveryError.HEADER_TOO_LARGE
    assert isinstance(fed(first + (b"X: a" + end) * MOST_HEADERS + end), tuple)
    assert fed(first + (b"X: a" + end) * (MOST_HEADERS + 1) + end) is DeliveryError.HEADER_TOO_LARGE
    interim = b"HTTP/1.1 103 Hints" + end + end
    assert isinstance(fed(interim * MOST_INTERIM + first + end), tuple)
    assert fed(interim * (MOST_INTERIM + 1) + first + end) is DeliveryError.TOO_MANY_INTERIM


def test_only_what_may_serve_is_passed_on() -> None:
    """Framing is our own, cookies and what no adapter needs are dropped, odd bytes taken out."""
    head = b"HTTP/1.0 302 Found\nLOCATION : /a\x01b\nSet-Cookie: a=b\nX-Long: %b\n"
    head += b"X-Folded: a\n  b\nX Y: z\nConnection: keep-alive\n\n"
    assert fed(head % (b"a" * 9000) + b"rest") == (
        b"HTTP/1.1 302 -\r\nlocation: /ab\r\nx-folded: a b\r\n\r\n",
        b"rest",
    )
