"""Delivery attempts against receivers that do everything a receiver can do, over real sockets."""

import asyncio
import gzip
import random
import socket
import ssl
import time
import warnings
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from taskhook.adapters.http.callbacks import AiohttpCallbacks
from taskhook.core.ports import ATTEMPT_TIME
from taskhook.core.record import CallbackState, State
from taskhook.core.reply import Reply
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import MAX_EXCERPT, Task
from taskhook.delivery import attempt as deliver
from taskhook.delivery.attempt import CLAIM, DeliveryPorts
from taskhook.delivery.hosts import MIN_RETRY_AFTER, Hosts
from tests import certificates
from tests.listener import (
    Connection,
    Listener,
    Script,
    answer,
    answering,
    free_port,
    hang_up,
    listening,
    raw,
    silent,
)
from tests.rows import each_row
from tests.vectors import naming
from tests.world import MemoryCallers, MemoryTasks, RecordingReporter, a_caller, open_until

HEADERS = {"content-type": "application/json", "webhook-id": "msg_1", "webhook-signature": "v1,abc v1,def"}
BODY = b'{"type":"prediction.task.succeeded"}'
# far more than any test takes on a loaded machine: nothing but the receiver ends the attempt
LONG = timedelta(seconds=60)
SHORT = timedelta(seconds=0.3)  # for receivers that never come to an end
MOST_SENT = 16 * 2**20  # what the buffers between the two ends hold, and no more


@asynccontextmanager
async def sending(
    limit: timedelta = LONG, *, tls: ssl.SSLContext | None = None, resolver: AbstractResolver | None = None
) -> AsyncIterator[AiohttpCallbacks]:
    """Make a sender that may reach loopback."""
    callbacks = AiohttpCallbacks(TargetPolicy(relaxed=True), limit=limit, tls=tls, resolver=resolver)
    try:
        yield callbacks
    finally:
        await callbacks.close()


async def attempt(script: Script, *, limit: timedelta = LONG, body: bytes = BODY) -> tuple[Reply, Listener]:
    """Send one attempt to a receiver that behaves as scripted."""
    async with listening(script) as listener, sending(limit) as callbacks:
        return await callbacks.send(f"{listener.origin}/hook", HEADERS, body), listener


def endless(start: bytes, piece: bytes) -> Script:
    """Answer with a beginning, and then with the same piece for as long as the sender takes it."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(start)
        while True:
            await connection.send(piece * max(1, 16384 // len(piece)))
            await asyncio.sleep(0)  # one loop serves both ends

    return script


async def drip(connection: Connection) -> None:
    """Send one byte of a header at a time, so that something always arrives and nothing ever ends."""
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        await connection.send(b"a")
        await asyncio.sleep(0.02)


async def early(connection: Connection) -> None:
    """Answer after the headers of the request, without reading its body."""
    await connection.head()
    await connection.send(answer(202, b"enough"))
    await asyncio.Event().wait()


@each_row("status", [200, 201, 202, 203, 204, 206, 226, 299])
async def test_any_2xx_is_told_with_its_status(status: int) -> None:
    """A status of the 200s comes back as it is."""
    reply, listener = await attempt(answering(answer(status)))
    assert (reply.status, reply.error, reply.answer) == (status, None, "")
    assert listener.connections == 1


@each_row("status", [300, 301, 302, 303, 304, 305, 307, 308])
async def test_redirect_is_told_and_not_followed(status: int) -> None:
    """A redirect is an answer like any other: the place that it names is never asked."""
    async with listening(answering(answer(200))) as elsewhere:
        reply, listener = await attempt(answering(answer(status, location=elsewhere.origin)))
        assert (reply.status, reply.error) == (status, None)
        assert (listener.connections, elsewhere.connections) == (1, 0)


@each_row(
    "status",
    [400, 401, 403, 404, 405, 408, 409, 410, 413, 425, 429, 451, 499, 500, 501, 502, 503, 504, 507, 599],
)
async def test_any_refusal_is_told_with_its_status_and_first_words(status: int) -> None:
    """A refusal comes back with its status and an excerpt, after one request and no more."""
    reply, listener = await attempt(answering(answer(status, b'{"error":"no"}', retry_after="120")))
    assert (reply.status, reply.error, reply.answer) == (status, None, '{"error":"no"}')
    assert len(listener.requests) == 1


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
    ],
)
async def test_interim_answer_is_not_the_answer(interim: bytes) -> None:
    """An answer of the 100s announces one; only what follows counts."""
    reply, _ = await attempt(raw(interim * 3, answer(201, b"done")))
    assert (reply.status, reply.answer) == (201, "done")


@each_row(
    ("script", "error"),
    [
        (hang_up, "reset"),
        (raw(reset=True), "reset"),
        (raw(), "reset"),
        (raw(b"HTTP/1.1 200"), "reset"),
        (raw(b"HTTP/1.1 200", reset=True), "reset"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"), "reset"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", reset=True), "reset"),
        (raw(b"HTTP/1.1 100 Continue\r\n\r\n"), "reset"),
        (raw(b"\x15\x03\x03\x00\x02\x02\x28"), "invalid_answer"),
        (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "invalid_answer"),
        (raw(b"<html>hello</html>\r\n\r\n"), "invalid_answer"),
        (raw(b"HTTP/1.1 abc OK\r\n\r\n"), "invalid_answer"),
        (raw(b"HTTP/1.1 20 OK\r\n\r\n"), "invalid_answer"),
        (raw(b"HTTP/1.1 200OK\r\n\r\n"), "invalid_answer"),
        (raw(b"HTTP/1.1 099 OK\r\n\r\n"), "invalid_answer"),
        (raw(b"220 mail.example.com ESMTP\r\n", hold=True), "invalid_answer"),  # it waits for us to speak
        (raw(b"HTTQ", hold=True), "invalid_answer"),
        (raw(b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0", hold=True), "http2_only"),
        (raw(b"\0\0\x06", b"\x04\0\0\0\0\0", hold=True), "http2_only"),
        (raw(b"\0\0\x06\x05\0\0\0\0\0", hold=True), "invalid_answer"),
        (raw(b"HTTP/1.1 200 OK\r\nX-Huge: " + b"a" * 1_000_000 + b"\r\n\r\n"), "header_too_large"),
        (raw(b"HTTP/1.1 200 " + b"a" * 1_000_000 + b"\r\n\r\n"), "header_too_large"),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 1001 + b"\r\n"), "header_too_large"),
        (raw(b"HTTP/1.1 103 Hints\r\n\r\n" * 11 + answer(200)), "too_many_interim"),
        (
            raw(*[b"HTTP/1.1 100 Continue\r\nX-Fat: " + b"a" * 40_000 + b"\r\n\r\n"] * 9, answer(200)),
            "header_too_large",
        ),
        (endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"), "too_many_interim"),
        (endless(b"", b"\r\n"), "header_too_large"),
        (endless(b"", b"\n"), "header_too_large"),
        (endless(b"HTTP/1.1 200 ", b"a"), "header_too_large"),
        (endless(b"HTTP/1.1 200 OK\r\n", b"a"), "header_too_large"),
        (endless(b"HTTP/1.1 200 OK\r\n", b"X-More: a\r\n"), "header_too_large"),
        (endless(b"HTTP/1.1 200 OK\r\nX-Folded: a\r\n", b" a\r\n"), "header_too_large"),
    ],
)
async def test_answer_that_never_comes_about_is_an_error(script: Script, error: str) -> None:
    """Without complete and sane headers there is no status, and the class of the error says why."""
    reply, listener = await attempt(script)
    assert (reply.status, reply.error, reply.answer) == (None, error, "")
    assert listener.connections == 1
    assert listener.sent < MOST_SENT


LINE = b"HTTP/1.1 200 OK\r\n"


@each_row(
    "sent",
    [
        LINE + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        LINE + b"Content-Length: 2, 2\r\n\r\nok",
        LINE + b"Content-Length: 002\r\n\r\nok",
        LINE + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        LINE + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        LINE + b"Transfer-Encoding: gzip, Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        LINE + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        LINE + b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\nTrailer: x\r\n\r\n",
        LINE + b"Transfer-Encoding: identity\r\n\r\nok",
        LINE + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nok",
        LINE + b"Content-Length: -1\r\n\r\nok",
        LINE + b"Content-Length: two\r\n\r\nok",
        LINE + b"Content-Length:\r\n\r\nok",
        LINE + b"Content-Length: 2\r\nContent-Type: a\r\nContent-Type: b\r\nServer: a\r\nServer: b\r\n\r\nok",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nok",
        b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1  200  Very   OK \r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 \xc3\xb6\xff\x01\x7f\0\t(;\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK " + b"a" * 20_000 + b"\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/2 200\r\nContent-Length: 2\r\n\r\nok",
        LINE + b"X-Folded: a\r\n b\r\n\tc\r\nContent-Length: 2\r\n\r\nok",
        LINE + b" folded: into nothing\r\nContent-Length: 2\r\n\r\nok",
        LINE + b"no header at all\r\nContent-Length: 2\r\n\r\nok",
        LINE + b"X Y: z\r\n: empty\r\nX-\xc3\xb6: y\r\nContent-Length : 2\r\n\r\nok",
        LINE + b"X-Raw: \x01\x02\0\x7f\xff\r\nContent-Length: 2\r\n\r\nok",
        LINE + b"Upgrade: h2c\r\nConnection: Upgrade, close\r\nContent-Length: 2\r\n\r\nok",
        LINE + b"Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nok",
        LINE + b"X-Long: " + b"a" * 8191 + b"\r\nContent-Length: 2\r\n\r\nok",
        LINE + b"Content-Security-Policy: " + b"a" * 34_000 + b"\r\nContent-Length: 2\r\n\r\nok",
        LINE + b"X-Huge: " + b"a" * 262_000 + b"\r\nContent-Length: 2\r\n\r\nok",
        LINE
        + b"Set-Cookie: a="
        + b"b" * 4000
        + b"\r\n"
        + b"Set-Cookie: c=d; Path=/\r\n" * 200
        + b"Content-Length: 2\r\n\r\nok",
        LINE + b"X-A: b\r\n" * 999 + b"Content-Length: 2\r\n\r\nok",
        LINE + b"X-A: b\r\n" * 1000 + b"\r\nok",
        *(
            b"HTTP/1.1 10%d Interim\r\nX-A: b\r\n\r\n" % kind * 10 + LINE + b"Content-Length: 2\r\n\r\nok"
            for kind in (0, 2, 3)
        ),
    ],
)
async def test_any_answer_that_other_clients_take_is_delivered(sent: bytes) -> None:
    """Whatever stands in the head of a 2xx, it is a delivery, in one piece or many, its body understood."""
    for pieces in (
        [sent],
        [sent[at : at + 1 + len(sent) // 7] for at in range(0, len(sent), 1 + len(sent) // 7)],
    ):
        reply, listener = await attempt(raw(*pieces))
        assert (reply.status, reply.error, reply.answer) == (200, None, "ok")
        assert listener.connections == 1


@each_row(
    ("rest", "connections"),
    [
        (b"Content-Length: 2\r\n\r\nok", 1),
        (b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", 1),
        (b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 1),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n", 2),
        (b"Content-Length: 2\r\nConnection: Close\r\n\r\nok", 2),
        (b"Content-Length: 2\r\n\r\nok and more than was announced", 2),
        (b"Content-Length: 2\r\n\r\nok" + answer(500), 2),
        (b"Content-Length: 0\r\nContent-Length: 9\r\n\r\nok", 2),
    ],
)
async def test_a_connection_is_used_again_only_where_its_answer_ended_for_certain(
    rest: bytes, connections: int
) -> None:
    """Where readers may differ about the end of a body, the next message goes over a fresh connection."""
    async with listening(answering(LINE + rest)) as listener, sending() as callbacks:
        for _ in range(2):
            assert (await callbacks.send(f"{listener.origin}/hook", HEADERS, BODY)).status == 200
        assert listener.connections == connections


async def test_what_a_kept_connection_says_unasked_is_not_kept() -> None:
    """A receiver that goes on talking after its answer fills no memory: the connection is closed."""
    talks_on, ended = endless(answer(204), answer(200)), asyncio.Semaphore(0)

    async def script(connection: Connection) -> None:
        try:
            await talks_on(connection)
        finally:
            ended.release()

    async with listening(script) as listener, sending() as callbacks:
        for _ in range(2):
            assert (await callbacks.send(f"{listener.origin}/hook", HEADERS, BODY)).status == 204
            async with asyncio.timeout(LONG.total_seconds()):
                await ended.acquire()
        assert (listener.connections, listener.sent < MOST_SENT) == (2, True)


@each_row(
    "script",
    [
        silent,
        drip,
        raw(hold=True),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", hold=True),
        raw(b"HTTP/1.1 103 Early Hints\r\n\r\n", hold=True),
    ],
    ids=["unread", "dripping", "unanswered", "unfinished headers", "an interim answer"],
)
async def test_slow_headers_end_with_the_attempts_time(script: Script) -> None:
    """Whatever a receiver does to gain time, without a status the attempt ends when its time is over."""
    reply, _ = await attempt(script, limit=SHORT)
    assert (reply.status, reply.error) == (None, "timeout")
    assert SHORT <= reply.elapsed < LONG


@each_row("status", [200, 503])
@each_row(
    ("rest", "ending"),
    [
        (b"Content-Length: 100\r\n\r\n", "hold"),
        (b"Content-Length: 100\r\n\r\npart", "hold"),
        (b"\r\n", "hold"),
        (b"Transfer-Encoding: chunked\r\n\r\n", "hold"),
        (b"Content-Length: 100\r\n\r\n", "reset"),
        (b"Content-Length: 100\r\n\r\npart", "reset"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\npa", "reset"),
        (b"Content-Length: 100\r\n\r\npart", "close"),
        (b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\njunk", "close"),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "hold"),
        (b"Transfer-Encoding: chunked\r\n\r\n\r\n", "close"),
        (b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", "hold"),
        (b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", "hold"),
        (b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc", "close"),
        (b"Transfer-Encoding: chunked\r\n\r\n0\r\nno trailer\r\n\r\n", "close"),
        (b"Content-Length: 99999999999999999999999999\r\n\r\n", "close"),
    ],
)
async def test_status_counts_whatever_becomes_of_the_body(status: int, rest: bytes, ending: str) -> None:
    """With the headers the attempt has its answer; a slow, broken or missing body is for the log alone."""
    script = raw(
        b"HTTP/1.1 %d Whatever\r\n%b" % (status, rest), reset=ending == "reset", hold=ending == "hold"
    )
    began = time.perf_counter()
    reply, _ = await attempt(script)
    took = timedelta(seconds=time.perf_counter() - began)
    assert (reply.status, reply.error) == (status, None)
    # It is the time to the status, not to the end of a body: a second is waited for the first byte of one.
    waited = ending == "hold" and not reply.answer
    assert reply.elapsed < took - timedelta(seconds=0.9 if waited else 0)


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 100\r\n\r\n",
        b"Content-Length: 100\r\n\r\npart",
        b"Transfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_status_counts_even_if_the_attempts_time_ends_in_the_body(rest: bytes) -> None:
    """A 200 shortly before the end of the attempt is delivered, although its body would take longer."""
    reply, _ = await attempt(raw(b"HTTP/1.1 200 OK\r\n" + rest, hold=True), limit=SHORT)
    assert (reply.status, reply.error) == (200, None)


@each_row(
    ("start", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65536),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n", b"a" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"a" * 65536 + b"\r\n"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n200\r\n" + b"a" * 512 + b"\r\n",
            b"1\r\na\r\n",
        ),
    ],
)
async def test_endless_body_is_cut_off(start: bytes, piece: bytes) -> None:
    """A body without end is read to its first bytes and dropped; what is read of it is bounded."""
    reply, listener = await attempt(endless(start, piece))
    assert (reply.status, reply.answer) == (200, "a" * MAX_EXCERPT)
    assert listener.sent < MOST_SENT


@each_row(
    ("start", "piece"),
    [
        (b"", b";extension=1"),
        (b"", b"0"),
        (b"1;", b"a"),
        (b"0\r\n", b"X-Trailer: a\r\n"),
        (b"0\r\nX-Trailer: ", b"a"),
        (b"0\r\n", b"a"),
    ],
)
@each_row("status", [200, 500])
async def test_endless_words_about_a_body_are_cut_off(status: int, start: bytes, piece: bytes) -> None:
    """Chunk sizes, extensions, trailers without end: no body; the status is known, and little is read."""
    head = b"HTTP/1.1 %d Whatever\r\nTransfer-Encoding: chunked\r\n\r\n" % status
    reply, listener = await attempt(endless(head + start, piece))
    assert (reply.status, reply.error) == (status, None)
    assert listener.sent < MOST_SENT


WORDS = b'{"error":"signature is missing"}'


@each_row(
    ("coding", "sent", "excerpt"),
    [
        ("gzip", gzip.compress(WORDS, mtime=0), WORDS.decode()),
        ("x-gzip", gzip.compress(WORDS, mtime=0), WORDS.decode()),
        ("GZIP", gzip.compress(WORDS, mtime=0), WORDS.decode()),
        ("deflate", zlib.compress(WORDS), WORDS.decode()),
        ("deflate", zlib.compress(WORDS, wbits=-15), WORDS.decode()),
        ("identity", gzip.compress(WORDS, mtime=0), WORDS.decode()),
        ("gzip", gzip.compress(b"a" * 10_000_000, mtime=0), "a" * MAX_EXCERPT),
        (
            "gzip",
            gzip.compress(random.Random(1).randbytes(6000).hex().encode(), 0, mtime=0),
            random.Random(1).randbytes(80).hex(),
        ),
        ("gzip", gzip.compress(WORDS, mtime=0)[:5], "<gzip, 5 bytes>"),
        ("gzip", b"junk", "<gzip, 4 bytes>"),
        ("br", b"\x0b\x02\x80" + b"z" * 809, "<br, 812 bytes>"),
        ("zstd", b"\x28\xb5\x2f\xfd" + b"z" * 5000, "<zstd, 5004 bytes>"),
        ("gzip, br", b"\x0b\x02\x80", "<gzip, br, 3 bytes>"),
        ("gzip", b"", ""),
    ],
)
async def test_compressed_answer_is_unpacked_or_named(coding: str, sent: bytes, excerpt: str) -> None:
    """None is asked for; one that comes is shown as its first words, or its name, and no bomb goes off."""
    reply, listener = await attempt(answering(answer(400, sent, content_encoding=coding)))
    assert (reply.status, reply.answer) == (400, excerpt)
    assert b"\r\naccept-encoding: identity\r\n" in listener.requests[0].lower()


@each_row(
    ("location", "excerpt"),
    [
        ("https://example.com/hook/", "-> https://example.com/hook/"),
        ("https://example.com/hook?token=secret#part", "-> https://example.com/hook"),
        ("https://user:secret@example.com:8443/hook", "-> https://example.com:8443/hook"),
        ("https://[2606:4700::1]/", "-> https://[2606:4700::1]/"),
        ("//other.example.com/x", "-> http://other.example.com/x"),
        ("/login?next=%2Fhook", "-> {origin}/login"),
        ("", "-> {origin}/hook"),
        ("https://[", "-> <no URL>"),
        ("https://example.com:port/", "-> <no URL>"),
        ("https://example.com/" + "a" * 9000, ""),
        ("https://example.com/" + "a" * 900, ("-> https://example.com/" + "a" * 900)[:MAX_EXCERPT]),
    ],
)
@each_row("status", [301, 302, 307, 308])
async def test_redirects_say_where_they_lead(status: int, location: str, excerpt: str) -> None:
    """Scheme, host and path are told, and nothing that may be a secret."""
    reply, listener = await attempt(answering(answer(status, location=location)))
    assert (reply.status, reply.answer) == (status, excerpt.format(origin=listener.origin))


async def test_the_words_of_a_redirect_follow_its_place() -> None:
    """Both are in the log."""
    reply, _ = await attempt(
        answering(answer(302, b"<p>Moved.</p>", location="https://example.com/", content_type="text/html"))
    )
    assert reply.answer == "-> https://example.com/ Moved."


async def test_a_place_that_is_no_redirect_is_not_told() -> None:
    """A `Location` beside another status is about something that was made."""
    reply, _ = await attempt(answering(answer(201, b"made", location="https://example.com/1")))
    assert reply.answer == "made"


FORBIDDEN_PAGE = b"""<!DOCTYPE html>
<html lang="en">
<head>
  <meta http-equiv="content-type" content="text/html; charset=utf-8">
  <title>403 Forbidden</title>
  <style>
    html * { padding:0; margin:0; }
    body > div { border-bottom:1px solid #ddd; }
  </style>
  <script>if (1 < 2) { document.write("<p>no</p>") }</script>
</head>
<body>
<!-- <p>not seen</p> -->
<div id="summary">
  <h1>Forbidden <span>(403)</span></h1>
  <p>CSRF&nbsp;verification failed. Request&#32;aborted.</p>
</div>
</body>
</html>
"""


@each_row(
    ("kind", "page", "excerpt"),
    [
        (
            "text/html; charset=utf-8",
            FORBIDDEN_PAGE,
            "403 Forbidden Forbidden (403) CSRF verification failed. Request aborted.",
        ),
        (
            "text/plain",
            FORBIDDEN_PAGE,
            "403 Forbidden Forbidden (403) CSRF verification failed. Request aborted.",
        ),
        ("application/xhtml+xml", b"<p>One</p><p>two</p>", "One two"),
        ("Text/HTML", b"<h1>No</h1>", "No"),
        ("text/html", b"<title>Busy</title><style>" + b"a" * 5000, "Busy"),
        ("text/html", b"<title>Busy</title><!-- " + b"a" * 5000, "Busy"),
        ("text/html", b"plain, 1 < 2", "plain, 1 < 2"),
        ("text/html", b"<html><body></body></html>", ""),
        ("text/html", b"<p>cut <a href='" + b"a" * 5000, "cut"),
        ("text/html", b"<p>\x1b[31mred &#27;[0m</p>", "\\x1b[31mred [0m"),
        ("application/json", b'{"page": "<html><b>x</b>"}', '{"page": "<html><b>x</b>"}'),
    ],
)
async def test_pages_are_shown_as_their_text(kind: str, page: bytes, excerpt: str) -> None:
    """Title and words of a page, without tags, scripts, styles and comments."""
    reply, _ = await attempt(answering(answer(403, page, content_type=kind)))
    assert (reply.status, reply.answer) == (403, excerpt)


async def test_a_compressed_page_is_shown_as_its_text() -> None:
    """One after the other."""
    packed = gzip.compress(FORBIDDEN_PAGE)
    reply, _ = await attempt(
        answering(answer(403, packed, content_type="text/html", content_encoding="gzip"))
    )
    assert "CSRF verification failed" in reply.answer


@each_row(
    ("sent", "status", "excerpt"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\nbye", 200, "bye"),
        (b"HTTP/1.0 204 No Content\r\n\r\n", 204, ""),
        (b"HTTP/1.0 500 Oops\r\nContent-Length: 3\r\n\r\nbye", 500, "bye"),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nbye", 200, "bye"),
    ],
)
async def test_http_1_0_is_understood(sent: bytes, status: int, excerpt: str) -> None:
    """A receiver of the old school is as good as any."""
    reply, _ = await attempt(raw(sent))
    assert (reply.status, reply.answer) == (status, excerpt)


async def test_answer_before_the_body_was_read_counts() -> None:
    """A receiver may answer without reading all of a large callback."""
    reply, _ = await attempt(early, body=b"x" * 1_000_000)
    assert (reply.status, reply.error) == (202, None)


@each_row(
    ("sent", "excerpt"),
    [
        (b"plain text", "plain text"),
        ("größer".encode(), "größer"),
        (b"a\r\nb\tc\x00d\x1b[31mred\x7f", "a\\r\\nb\\tc\\x00d\\x1b[31mred\\x7f"),
        ("a\u202eb\u2028c\u0085d\ufeffe".encode(), "a\\u202eb\\u2028c\\x85d\\ufeffe"),
        (b"bad \xff\xfe utf-8", "bad \ufffd\ufffd utf-8"),
        (b"", ""),
    ],
)
async def test_excerpt_has_control_characters_escaped(sent: bytes, excerpt: str) -> None:
    """What a receiver says cannot forge log lines or colour a terminal."""
    reply, _ = await attempt(answering(answer(400, sent)))
    assert reply.answer == excerpt


@each_row(
    "sent",
    [
        b"a" * 161,
        b"\x00" * 2048,
        "ä".encode() * 1000,
        b"x" + "ä".encode() * 1000,
        b"\xff" * 2048,
        "\U0001f600".encode() * 600,
    ],
)
async def test_excerpt_is_bounded(sent: bytes) -> None:
    """An excerpt is printable and fits the log, however long its characters get when they are escaped."""
    reply, _ = await attempt(answering(answer(200, sent)))
    assert 0 < len(reply.answer.encode()) <= MAX_EXCERPT
    assert reply.answer.isprintable()


async def test_refused_connection() -> None:
    """A port without a listener: the attempt says so."""
    port = await free_port()
    async with sending() as callbacks:
        reply = await callbacks.send(f"http://127.0.0.1:{port}/", HEADERS, BODY)
    assert (reply.status, reply.error) == (None, "refused")


async def test_name_that_does_not_exist() -> None:
    """A DNS failure is a class of its own; it is retried like any other error."""
    async with sending() as callbacks:
        reply = await callbacks.send("http://no-such-receiver.invalid:8080/", HEADERS, BODY)
    assert (reply.status, reply.error) == (None, "dns")


@dataclass
class FailingNames(AbstractResolver):
    """A resolver of which every answer is the same error."""

    error: OSError

    async def resolve(
        self,
        host: str,  # noqa: ARG002
        port: int = 0,  # noqa: ARG002
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002
    ) -> list[ResolveResult]:  # aiohttp's form
        """Fail."""
        raise self.error

    async def close(self) -> None:
        """Nothing is open."""


@each_row(
    ("error", "word"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "dns"),
        (socket.gaierror(), "dns"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), "dns_unavailable"),
        (socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure in name resolution"), "dns_unavailable"),
        (socket.gaierror(socket.EAI_SYSTEM, "System error"), "dns_unavailable"),
        (socket.gaierror(socket.EAI_NODATA, "No address associated with hostname"), "no_address"),
        (socket.gaierror(socket.EAI_ADDRFAMILY, "Address family for hostname not supported"), "no_address"),
    ],
)
async def test_what_a_resolver_says_is_told_apart(error: OSError, word: str) -> None:
    """No such name, a name server that is down, and a name without an address of use have a word each."""
    async with sending(resolver=FailingNames(error)) as callbacks:
        reply = await callbacks.send("http://receiver.example.com:8080/", HEADERS, BODY)
    assert (reply.status, reply.error) == (None, word)


@dataclass
class SilentNames(FailingNames):
    """A resolver that never answers."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Wait for ever."""
        await asyncio.Event().wait()
        return await super().resolve(host, port, family)


async def test_name_server_that_is_silent() -> None:
    """An attempt whose time is over before the name was found says so: no receiver was asked."""
    async with sending(SHORT, resolver=SilentNames(socket.gaierror())) as callbacks:
        reply = await callbacks.send("http://receiver.example.com:8080/", HEADERS, BODY)
    assert (reply.status, reply.error) == (None, "dns_unavailable")


async def test_address_without_a_route() -> None:
    """No connection can be opened to a broadcast address, which the system says at once."""
    async with sending() as callbacks:
        reply = await callbacks.send("http://255.255.255.255:8080/", HEADERS, BODY)
    assert (reply.status, reply.error) == (None, "unreachable")


@pytest.mark.parametrize(
    ("certificate", "trusted", "error"),
    [
        (certificates.GOOD, False, "tls_unknown_ca"),
        (certificates.EXPIRED, False, "tls_unknown_ca"),
        (certificates.WRONG_NAME, True, "tls_wrong_name"),
        (certificates.EXPIRED, True, "tls_expired"),
        (certificates.NOT_YET_VALID, True, "tls_expired"),
    ],
)
async def test_certificate_that_proves_nothing(
    tmp_path: Path,
    certificate: str,
    trusted: bool,  # noqa: FBT001
    error: str,
) -> None:  # a column
    """Why a certificate is refused is told, before a byte of the callback is sent."""
    tls = certificates.trusting() if trusted else None
    async with listening(answering(answer(200)), tls=certificates.serving(tmp_path, certificate)) as listener:
        async with sending(tls=tls) as callbacks:
            reply = await callbacks.send(f"{listener.origin}/hook", HEADERS, BODY)
        assert (reply.status, reply.error) == (None, error)
        assert listener.requests == []


async def test_certificate_that_is_in_order(tmp_path: Path) -> None:
    """What the test above refuses is refused for the certificate alone."""
    async with listening(answering(answer(200)), tls=certificates.serving(tmp_path)) as listener:
        async with sending(tls=certificates.trusting()) as callbacks:
            reply = await callbacks.send(f"{listener.origin}/hook", HEADERS, BODY)
        assert (reply.status, len(listener.requests)) == (200, 1)


def failing_handshake(tls: ssl.SSLContext) -> Script:
    """Shake hands until it fails, and say why: asyncio's own server closes before the alert is sent."""

    async def script(connection: Connection) -> None:
        came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = tls.wrap_bio(came, goes, server_side=True)
        while True:
            try:
                session.do_handshake()
            except ssl.SSLWantReadError:
                await connection.send(goes.read())
                came.write(await connection.reader.read(65536))
            except ssl.SSLError:
                await connection.send(goes.read())
                await connection.hold()
                return

    return script


async def failing_with(tls: ssl.SSLContext) -> Reply:
    """Send to a receiver with which no handshake comes about."""
    async with (
        listening(failing_handshake(tls)) as listener,
        sending(tls=certificates.trusting()) as callbacks,
    ):
        return await callbacks.send(listener.origin.replace("http", "https"), HEADERS, BODY)


async def test_receiver_that_speaks_old_tls_only(tmp_path: Path) -> None:
    """TLS 1.1 is not spoken any more."""
    tls = certificates.serving(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that is the point
        tls.minimum_version, tls.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    tls.set_ciphers("DEFAULT:@SECLEVEL=0")
    reply = await failing_with(tls)
    assert (reply.status, reply.error) == (None, "tls_version")


@pytest.mark.parametrize(
    ("version", "error"), [(ssl.TLSVersion.TLSv1_3, "tls_client_cert"), (ssl.TLSVersion.TLSv1_2, "tls")]
)
async def test_receiver_that_wants_a_client_certificate(
    tmp_path: Path, version: ssl.TLSVersion, error: str
) -> None:
    """TLS 1.3 says so; 1.2 says only that the handshake failed."""
    tls = certificates.serving(tmp_path)
    tls.verify_mode, tls.maximum_version = ssl.CERT_REQUIRED, version
    tls.load_verify_locations(cadata=certificates.AUTHORITY)
    reply = await failing_with(tls)
    assert (reply.status, reply.error) == (None, error)


async def test_receiver_without_a_cipher_in_common(tmp_path: Path) -> None:
    """A failure of the handshake that has no word of its own."""
    tls = certificates.serving(tmp_path)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    tls.set_ciphers("ECDHE-RSA-AES256-GCM-SHA384")  # of no use with its key
    reply = await failing_with(tls)
    assert (reply.status, reply.error) == (None, "tls")


async def test_receiver_that_speaks_http_2_whatever_was_agreed(tmp_path: Path) -> None:
    """Its first frame tells it, for it comes unasked."""

    async def script(connection: Connection) -> None:
        await connection.send(b"\0\0\0\x04\0\0\0\0\0")
        await connection.hold()

    tls = certificates.serving(tmp_path)
    async with listening(script, tls=tls) as listener, sending(tls=certificates.trusting()) as callbacks:
        reply = await callbacks.send(f"{listener.origin}/hook", HEADERS, BODY)
    assert (reply.status, reply.error) == (None, "http2_only")


@each_row(
    ("sent", "error"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "tls_not_spoken"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "tls_not_spoken"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "tls"),  # handshake failure: no cipher in common
        (b"\x15\x03\x03\x00\x02\x02\x46", "tls_version"),
        (b"\x15\x03\x03\x00\x02\x02\x70", "tls_wrong_name"),  # unrecognized name
        (b"\x15\x03\x03\x00\x02\x02\x78", "http2_only"),  # no application protocol
        (b"", "reset"),
    ],
)
async def test_receiver_that_shakes_no_hands(sent: bytes, error: str) -> None:
    """What a receiver says in place of a handshake is told apart."""

    async def script(connection: Connection) -> None:
        await connection.reader.read(1)
        if sent:
            await connection.send(sent)
            await connection.hold()

    async with listening(script) as listener, sending() as callbacks:
        reply = await callbacks.send(listener.origin.replace("http", "https"), HEADERS, BODY)
    assert (reply.status, reply.error) == (None, error)


async def test_handshake_that_hangs_ends_with_the_attempts_time() -> None:
    """A receiver that accepts and never shakes hands costs one attempt's time and no more."""
    async with listening(silent) as listener, sending(SHORT) as callbacks:
        reply = await callbacks.send(listener.origin.replace("http", "https"), HEADERS, BODY)
    assert (reply.status, reply.error) == (None, "timeout")


@each_row(
    "url",
    [
        "",
        "http://",
        "http://[",
        "ftp://127.0.0.1/",
        "http://user@127.0.0.1/",
        "http://127.0.0.1:99999/",
        "http://a b/",
    ],
)
async def test_url_that_cannot_be_called_is_an_error_not_an_exception(url: str) -> None:
    """Whatever stands in a record, the sender answers with a reply."""
    async with sending() as callbacks:
        reply = await callbacks.send(url, HEADERS, BODY)
    assert (reply.status, reply.error) == (None, "forbidden_target")


@each_row(
    "target",
    [
        "/",
        "/hook",
        "/a/./b/../c//d",
        "/a%2Fb%20c%7Ed;e=1,2",
        "/hook?x=%2F%3D%26&y=a+b&z=a%2Bb&sig=abc%3D%3D",
        "/hook?url=https%3A%2F%2Fexample.com%2F%3Fa%3D1",
        "/h%c3%b6ok?%C3%B6=%c3%b6",
        "/?",
        "/hook?",
        "?x=1",
        "",
        "?",
        "//hook//",
        "/%zz%?%",
        "/a[1]?b[]=2",
        "/~'()*!$&=:@",
        "/hook?a&b=&=c&&d=1?2/3:4@5",
    ],
)
async def test_url_is_called_as_it_was_given(target: str) -> None:
    """Path and query reach the receiver character by character: some are signed."""
    async with listening(answering(answer(200))) as listener, sending() as callbacks:
        assert (await callbacks.send(listener.origin + target, HEADERS, BODY)).status == 200
        asked = target if target.startswith("/") else f"/{target}"
        assert listener.requests[0].split(b"\r\n")[0].decode() == f"POST {asked} HTTP/1.1"


@each_row(
    "body",
    [b"", BODY, "größer \u2028 \U0001f600".encode(), b"\x00\xff", b"x" * 300_000],
    ids=["empty", "usual", "text", "bytes", "large"],
)
async def test_body_and_headers_arrive_byte_by_byte(body: bytes) -> None:
    """The signed bytes are the bytes that arrive, with the headers that sign them and an explicit length."""
    reply, listener = await attempt(answering(answer(200)), body=body)
    head, _, received = listener.requests[0].partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert (reply.status, received) == (200, body)
    assert {f"{name}: {value}" for name, value in HEADERS.items()} | {f"content-length: {len(body)}"} <= set(
        lines
    )


async def test_a_connection_serves_a_burst_and_nothing_is_remembered() -> None:
    """One connection for attempts in a row, none after the sender was closed, and never a cookie."""
    async with (
        listening(answering(answer(200, set_cookie="session=1; Path=/"))) as listener,
        sending() as callbacks,
    ):
        for _ in range(3):
            assert (await callbacks.send(f"{listener.origin}/hook", HEADERS, BODY)).status == 200
        assert listener.connections == 1
        await callbacks.close()
        assert (await callbacks.send(f"{listener.origin}/hook", HEADERS, BODY)).status == 200
        assert listener.connections == 2
        assert not any(b"cookie:" in request.lower() for request in listener.requests)


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_a_kept_connection_that_is_dead_is_no_failure_of_the_receiver(way: str) -> None:
    """A receiver that ends connections untold gets the message on a fresh one, within the same attempt."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(answer(200))
        await connection.request()  # and no answer to this one
        if way == "reset":
            connection.reset()

    async with listening(script) as listener, sending() as callbacks:
        replies = [await callbacks.send(f"{listener.origin}/hook", HEADERS, BODY) for _ in range(4)]
        assert [(reply.status, reply.error) for reply in replies] == [(200, None)] * 4
        assert listener.connections == 4


async def test_a_fresh_connection_that_breaks_is_a_failure() -> None:
    """The attempt is over then: no receiver is sent one attempt twice."""
    async with listening(raw(reset=True)) as listener, sending() as callbacks:
        assert (await callbacks.send(f"{listener.origin}/hook", HEADERS, BODY)).error == "reset"
        assert (listener.connections, len(listener.requests)) == (1, 1)


def http_date(offset: timedelta) -> str:
    """Write a moment as HTTP does."""
    return format_datetime(datetime.now(UTC) + offset, usegmt=True)


MINUTE, HOUR, MOST = timedelta(minutes=1), timedelta(hours=1), timedelta(hours=48)


@each_row("status", [301, 409, 429, 503])
async def test_retry_after_is_read_in_all_its_forms(status: int) -> None:
    """Seconds or any of HTTP's dates, bounded."""
    in_an_hour = datetime.now(UTC) + HOUR
    rows = (
        ("0", timedelta(0), timedelta(0)),
        ("120", 2 * MINUTE, 2 * MINUTE),
        ("00120", 2 * MINUTE, 2 * MINUTE),
        (" 120 ", 2 * MINUTE, 2 * MINUTE),
        ("99999999999999999999", MOST, MOST),
        (http_date(10 * HOUR), 8 * HOUR, 10 * HOUR),
        (http_date(-5 * MINUTE), timedelta(0), timedelta(0)),
        (in_an_hour.strftime("%A, %d-%b-%y %H:%M:%S GMT"), 0.5 * HOUR, HOUR),
        (in_an_hour.strftime("%a %b %d %H:%M:%S %Y"), 0.5 * HOUR, HOUR),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MOST, MOST),
    )
    for value, least, most in rows:
        with naming(value):
            reply, _ = await attempt(answering(answer(status, retry_after=value)))
            assert (reply.status, reply.retry_after is not None) == (status, True)
            assert least <= (reply.retry_after or timedelta(0)) <= most


@each_row(
    "value",
    [
        "",
        "soon",
        "-5",
        "+5",
        "1.5",
        "1e3",
        "5 minutes",
        "0x10",
        "Fri, 99 Dec 2026 00:00:00 GMT",
        "5, 6",
        "\u0663",
        "a" * 5000,
        "9" * 5000,
    ],
)
async def test_retry_after_that_says_nothing_is_ignored(value: str) -> None:
    """Nonsense is as good as no header."""
    header = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: %b\r\n\r\n" % value.encode()
    reply, _ = await attempt(raw(header))
    assert (reply.status, reply.retry_after) == (503, None)


async def test_silent_receiver_does_not_hold_up_another() -> None:
    """While one receiver takes all its time and all slots of its host, another is served at once."""
    async with (
        listening(silent) as slow,
        listening(answering(answer(200)), hosts=("127.0.0.2",)) as good,
        sending() as callbacks,
    ):
        waiting = [asyncio.create_task(callbacks.send(slow.origin, HEADERS, BODY)) for _ in range(40)]
        reply = await callbacks.send(f"http://127.0.0.2:{good.port}/", HEADERS, BODY)
        assert reply.status == 200
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_waiting_for_a_slot_is_part_of_the_attempts_time() -> None:
    """Behind a host's taken slots an attempt ends when its time is over, connected or not."""
    async with listening(silent) as slow, sending(SHORT) as callbacks:
        replies = await asyncio.gather(*(callbacks.send(slow.origin, HEADERS, BODY) for _ in range(40)))
    assert {reply.error for reply in replies} == {"timeout"}


def test_claim_covers_an_attempt() -> None:
    """The default time of an attempt is the contract's, and ends well before its claim does."""
    assert timedelta(seconds=15) == ATTEMPT_TIME
    assert 2 * ATTEMPT_TIME <= CLAIM


# --- what the engine does next --------------------------------------------------------------------

START = datetime(2026, 11, 23, tzinfo=UTC)
SCHEDULE, SOON = timedelta(seconds=5), timedelta(seconds=10)


@dataclass(frozen=True)
class Next:
    """What follows from an attempt: delivered, or another after about `wait`; whether the host is open."""

    wait: timedelta | None
    counted: bool = True
    rests: timedelta | None = None
    log: int | str = ""  # the status or the class of error


def on(status: int, **headers: str) -> Script:
    """Answer with this status, and a body where it may have one."""
    return answering(answer(status, b"" if status in {204, 304} else b"words", **headers))


def dated(status: int, offset: timedelta) -> Script:
    """Ask for an attempt at a date so far from when it is asked."""

    async def script(connection: Connection) -> None:
        await on(status, retry_after=http_date(offset))(connection)

    return script


def delivered_on(status: int) -> Next:
    """It is done."""
    return Next(None, log=status)


def retried_on(log: int | str, wait: timedelta = SCHEDULE) -> Next:
    """The schedule goes on."""
    return Next(wait, log=log)


def throttled_on(log: int, rests: timedelta = MIN_RETRY_AFTER, wait: timedelta = SCHEDULE) -> Next:
    """The schedule goes on, and the host has a rest."""
    return Next(wait, rests=rests, log=log)


BEHAVIOURS: list[tuple[str, Script, Next]] = [
    *[(f"{status}", on(status), delivered_on(status)) for status in (200, 201, 202, 204, 206, 299)],
    *[
        (f"{status}", on(status, location="/elsewhere"), retried_on(status))
        for status in (300, 301, 302, 303, 304, 307, 308)
    ],
    *[
        (f"{status}", on(status), retried_on(status))
        for status in (400, 401, 403, 404, 405, 408, 413, 415, 422, 451, 499)
    ],
    *[(f"{status}", on(status), retried_on(status)) for status in (500, 501, 503, 505, 507, 599)],
    *[(f"{status}", on(status), throttled_on(status)) for status in (429, 502, 504)],
    *[(f"{status}", on(status), Next(SOON, counted=False, log=status)) for status in (409, 425)],
    ("410", on(410), retried_on(410, HOUR)),
    ("101", on(101), retried_on(101)),
    ("100, then 200", raw(b"HTTP/1.1 100 Continue\r\n\r\n", answer(200)), delivered_on(200)),
    ("103, then 503", raw(b"HTTP/1.1 103 Early Hints\r\n\r\n", answer(503)), retried_on(503)),
    ("103 for ever", endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"), retried_on("too_many_interim")),
    ("999", raw(b"HTTP/1.1 999 Odd\r\n\r\n"), retried_on(999)),
    ("reset before anything", hang_up, retried_on("reset")),
    ("reset after the request", raw(reset=True), retried_on("reset")),
    ("closed after the request", raw(), retried_on("reset")),
    ("reset within the headers", raw(b"HTTP/1.1 200 OK\r\nX-A: b\r\n", reset=True), retried_on("reset")),
    (
        "reset after the headers",
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", reset=True),
        delivered_on(200),
    ),
    (
        "reset within the body",
        raw(b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\npart", reset=True),
        retried_on(500),
    ),
    ("silence", silent, retried_on("timeout")),
    ("slow headers", drip, retried_on("timeout")),
    ("slow body", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nslow", hold=True), delivered_on(200)),
    ("endless body", endless(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65536), delivered_on(200)),
    ("endless body of a failure", endless(b"HTTP/1.1 500 No\r\n\r\n", b"a" * 65536), retried_on(500)),
    (
        "huge header",
        raw(b"HTTP/1.1 200 OK\r\nX-Huge: " + b"a" * 1_000_000 + b"\r\n\r\n"),
        retried_on("header_too_large"),
    ),
    ("large header", raw(b"HTTP/1.1 200 OK\r\nX-Large: " + b"a" * 200_000 + b"\r\n\r\n"), delivered_on(200)),
    ("broken length", raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), delivered_on(200)),
    ("no HTTP", raw(b"SSH-2.0-OpenSSH_9.6\r\n"), retried_on("invalid_answer")),
    ("HTTP/1.0", raw(b"HTTP/1.0 200 OK\r\n\r\nbye"), delivered_on(200)),
    ("HTTP/1.0 failure", raw(b"HTTP/1.0 500 Oops\r\n\r\nbye"), retried_on(500)),
    ("answer before the body was read", early, delivered_on(202)),
    ("Retry-After: 0", on(503, retry_after="0"), retried_on(503)),
    ("Retry-After: 1", on(503, retry_after="1"), retried_on(503)),
    ("Retry-After: 120", on(503, retry_after="120"), retried_on(503, timedelta(minutes=2))),
    ("Retry-After: a date", dated(410, 105 * MINUTE), retried_on(410, 100 * MINUTE)),
    ("Retry-After: a date gone by", dated(503, -5 * MINUTE), retried_on(503)),
    ("Retry-After: a day", on(503, retry_after="86400"), retried_on(503, timedelta(minutes=10))),
    ("Retry-After: for ever", on(503, retry_after="9" * 20), retried_on(503, timedelta(minutes=10))),
    (
        "Retry-After: year 9999",
        on(500, retry_after="Fri, 31 Dec 9999 23:59:59 GMT"),
        retried_on(500, timedelta(minutes=10)),
    ),
    ("Retry-After: -5", on(503, retry_after="-5"), retried_on(503)),
    ("Retry-After: soon", on(503, retry_after="soon"), retried_on(503)),
    ("Retry-After on success", on(200, retry_after="120"), delivered_on(200)),
    ("Retry-After on a redirect", on(307, retry_after="60", location="/x"), retried_on(307, MINUTE)),
    ("Retry-After on 409", on(409, retry_after="60"), Next(MINUTE, counted=False, log=409)),
    ("Retry-After on 410", on(410, retry_after="5400"), retried_on(410, timedelta(minutes=90))),
    ("Retry-After on 429", on(429, retry_after="60"), throttled_on(429, rests=MINUTE, wait=MINUTE)),
]


@dataclass
class StoppedClock:
    """A clock that stands still, so that what is planned can be told exactly."""

    def now(self) -> datetime:
        """Tell the same time again."""
        return START

    async def sleep(self, duration: timedelta) -> None:
        """Never be asked."""
        raise AssertionError(duration)


async def delivery(url: str, callbacks: AiohttpCallbacks) -> tuple[Task, Hosts]:
    """Make the first delivery of a task; give the task as it is stored, and what is known of its host."""
    tasks, clock = MemoryTasks(), StoppedClock()
    hosts = Hosts(clock)
    task = Task(
        task_id="tk_1",
        caller="alice",
        model="alibaba/wan2.2-animate-mix",
        request="{}",
        fingerprint="",
        callback_url=url,
        accepted_at=START,
        state=State.WATCHED,
        callback=CallbackState.WAITING,
    )
    ended = await tasks.add(task.succeeded({}, START, retention=timedelta(days=7), claim=START + CLAIM))
    ports = DeliveryPorts(
        tasks=tasks,
        callbacks=callbacks,
        callers=MemoryCallers(a_caller()),
        hosts=hosts,
        clock=clock,
        reporter=RecordingReporter(),
        retention=timedelta(days=7),
    )
    return await deliver.attempt(ended, ports), hosts


def check(task: Task, hosts: Hosts, expected: Next) -> None:
    """Compare a task after its attempt with what the table says."""
    entry = task.log[-1]
    assert (entry.status or entry.error, entry.next_at) == (expected.log, task.next_attempt_at)
    assert task.callback is (CallbackState.DELIVERED if expected.wait is None else CallbackState.WAITING)
    if expected.wait is not None:
        assert task.next_attempt_at is not None
        assert expected.wait * 0.9 <= task.next_attempt_at - START <= expected.wait * 1.1
        assert (task.attempts_this_round, task.answered_gone) == (int(expected.counted), expected.log == 410)
    until = open_until(hosts, task.caller, task.host)
    assert (until and until - START) == expected.rests


@each_row(("script", "expected"), [row[1:] for row in BEHAVIOURS], ids=[row[0] for row in BEHAVIOURS])
async def test_what_the_engine_does_next(script: Script, expected: Next) -> None:
    """For every way a receiver may behave: what is stored, when the next attempt is, what its host gets."""
    limit = timedelta(seconds=0.7) if expected.log == "timeout" else LONG
    async with listening(script) as listener, sending(limit) as callbacks:
        check(*await delivery(f"{listener.origin}/hook", callbacks), expected)


async def test_what_the_engine_does_next_without_a_receiver(tmp_path: Path) -> None:
    """No listener, no such name, an untrusted certificate, a forbidden target: the schedule goes on."""
    tls = certificates.serving(tmp_path)
    async with listening(answering(answer(200)), tls=tls) as bad, sending() as callbacks:
        for url, error in (
            (f"http://127.0.0.1:{await free_port()}/", "refused"),
            ("http://no-such-receiver.invalid:8080/", "dns"),
            (f"{bad.origin}/hook", "tls_unknown_ca"),
            ("http://user@127.0.0.1/", "forbidden_target"),
        ):
            check(*await delivery(url, callbacks), retried_on(error))
