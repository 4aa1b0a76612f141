"""Delivery attempts against receivers that do everything a receiver can do, over real sockets."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from taskhook import deliver
from taskhook.adapters.callbacks import AiohttpCallbacks
from taskhook.deliver import ATTEMPT_TIME, CLAIM, Courier
from taskhook.hosts import MIN_RETRY_AFTER, Hosts, host_of
from taskhook.ports import Reply
from taskhook.targets import TargetPolicy
from taskhook.task import MAX_EXCERPT, CallbackState, State, Task
from tests.listener import Connection, Listener, Script, answer, answering, free_port, listening, silent
from tests.world import MemoryCallers, MemoryTasks, Told, a_caller

HEADERS = {"content-type": "application/json", "webhook-id": "msg_1", "webhook-signature": "v1,abc v1,def"}
BODY = b'{"type":"prediction.task.succeeded"}'
LONG = timedelta(seconds=30)  # far more than any test takes: nothing but the receiver ends the attempt
SHORT = timedelta(seconds=0.3)  # for receivers that never come to an end

# A certificate for 127.0.0.1 that nobody vouches for, with its worthless key.
UNTRUSTED = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgZcsCjhur6IHaCQwR
vE+FFJBXJ4LUZ7Fo1Ulru2AkuEChRANCAARCWj6vZR9Cgr8QaaoILRnQdCUiOu8c
AoOgsw3BcDO2N8uKGfkEGnaWcy7kNyVS8l9CfacU7OhuVAAGV1WgMIWg
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBjzCCATagAwIBAgIUDOo5qiyN5BTzVEaxkvITP/oxvn8wCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyMzIxNTIzMVoYDzIxMjYxMDMw
MjE1MjMxWjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARCWj6vZR9Cgr8QaaoILRnQdCUiOu8cAoOgsw3BcDO2N8uKGfkEGnaW
cy7kNyVS8l9CfacU7OhuVAAGV1WgMIWgo2QwYjAdBgNVHQ4EFgQURv12EGn2GUXv
4VOCG8VJMGT2hAIwHwYDVR0jBBgwFoAURv12EGn2GUXv4VOCG8VJMGT2hAIwDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0cAMEQC
IFCaAOGD8o2pdnySM1e3PO2mBFeM8zndATn1KrrG8jhMAiAFBQhQN3yoLy0Kw+So
IzBXQMhrDoFZ4Bsai7I1Z4jHtQ==
-----END CERTIFICATE-----
"""


@asynccontextmanager
async def sending(limit: timedelta = LONG) -> AsyncIterator[AiohttpCallbacks]:
    """Make a sender that may reach loopback."""
    callbacks = AiohttpCallbacks(TargetPolicy(relaxed=True), limit=limit)
    try:
        yield callbacks
    finally:
        await callbacks.close()


async def attempt(script: Script, *, limit: timedelta = LONG, body: bytes = BODY) -> tuple[Reply, Listener]:
    """Send one attempt to a receiver that behaves as scripted."""
    async with listening(script) as listener, sending(limit) as callbacks:
        return await callbacks.send(f"{listener.origin}/hook", HEADERS, body), listener


def raw(*pieces: bytes, reset: bool = False, hold: bool = False) -> Script:
    """Read the request, write these bytes, then close, reset, or keep the connection open."""

    async def script(connection: Connection) -> None:
        await connection.request()
        for piece in pieces:
            await connection.send(piece)
        if hold:
            await connection.hold()
        if reset:
            connection.reset()

    return script


def endless(start: bytes, piece: bytes) -> Script:
    """Answer with a beginning, and then with the same piece for as long as anybody takes it."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(start)
        while True:
            await connection.send(piece)

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


async def hang_up(connection: Connection) -> None:
    """Reset the connection before anything is read."""
    connection.reset()


@pytest.mark.parametrize("status", [200, 201, 202, 203, 204, 206, 226, 299])
async def test_any_2xx_is_told_with_its_status(status: int) -> None:
    """A status of the 200s comes back as it is."""
    reply, listener = await attempt(answering(answer(status)))
    assert (reply.status, reply.error, reply.answer) == (status, None, "")
    assert listener.connections == 1


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308])
async def test_redirect_is_told_and_not_followed(status: int) -> None:
    """A redirect is an answer like any other: the place that it names is never asked."""
    async with listening(answering(answer(200))) as elsewhere:
        reply, listener = await attempt(answering(answer(status, location=elsewhere.origin)))
        assert (reply.status, reply.error) == (status, None)
        assert (listener.connections, elsewhere.connections) == (1, 0)


@pytest.mark.parametrize(
    "status", [400, 401, 403, 404, 405, 408, 409, 410, 413, 425, 429, 451, 499, 500, 501, 502, 503, 504, 507, 599]
)
async def test_any_refusal_is_told_with_its_status_and_first_words(status: int) -> None:
    """A refusal comes back with its status and an excerpt, after one request and no more."""
    reply, listener = await attempt(answering(answer(status, b'{"error":"no"}', retry_after="120")))
    assert (reply.status, reply.error, reply.answer) == (status, None, '{"error":"no"}')
    assert len(listener.requests) == 1


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n"]
)
async def test_interim_answer_is_not_the_answer(interim: bytes) -> None:
    """An answer of the 100s announces one; only what follows counts."""
    reply, _ = await attempt(raw(interim * 3, answer(201, b"done")))
    assert (reply.status, reply.answer) == (201, "done")


@pytest.mark.parametrize(
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
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "invalid_answer"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), "invalid_answer"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), "invalid_answer"),
        (raw(b"HTTP/1.1 200 OK\r\nX-Huge: " + b"a" * 1_000_000 + b"\r\n\r\n"), "invalid_answer"),
        (raw(b"HTTP/1.1 200 " + b"a" * 1_000_000 + b"\r\n\r\n"), "invalid_answer"),
    ],
)
async def test_answer_that_never_comes_about_is_an_error(script: Script, error: str) -> None:
    """Without complete and sane headers there is no status, and the class of the error says why."""
    reply, listener = await attempt(script)
    assert (reply.status, reply.error, reply.answer) == (None, error, "")
    assert listener.connections == 1


@pytest.mark.parametrize(
    "script",
    [
        silent,
        drip,
        raw(hold=True),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", hold=True),
        endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    ],
    ids=["unread", "dripping", "unanswered", "unfinished headers", "interim for ever"],
)
async def test_slow_headers_end_with_the_attempts_time(script: Script) -> None:
    """Whatever a receiver does to gain time, without a status the attempt ends when its time is over."""
    reply, _ = await attempt(script, limit=SHORT)
    assert (reply.status, reply.error) == (None, "timeout")
    assert SHORT <= reply.elapsed < LONG


async def test_endless_headers_are_bounded() -> None:
    """Headers without end are cut off by size or by time, long before they fill the memory."""
    reply, listener = await attempt(
        endless(b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"a" * 4000 + b"\r\n"), limit=timedelta(seconds=3)
    )
    assert reply.status is None
    assert reply.error in {"invalid_answer", "timeout"}
    assert listener.sent < 16 * 2**20


@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize(
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
    ],
)
async def test_status_counts_whatever_becomes_of_the_body(status: int, rest: bytes, ending: str) -> None:
    """Once the headers are there the attempt has its answer; a slow, broken or missing body is for the log alone."""
    script = raw(b"HTTP/1.1 %d Whatever\r\n%b" % (status, rest), reset=ending == "reset", hold=ending == "hold")
    reply, _ = await attempt(script)
    assert (reply.status, reply.error) == (status, None)
    assert reply.elapsed < timedelta(seconds=1)  # the time to the status, not to the end of the body


@pytest.mark.parametrize(
    "rest", [b"Content-Length: 100\r\n\r\n", b"Content-Length: 100\r\n\r\npart", b"Transfer-Encoding: chunked\r\n\r\n"]
)
async def test_status_counts_even_if_the_attempts_time_ends_in_the_body(rest: bytes) -> None:
    """A 200 shortly before the end of the attempt is delivered, although its body would take longer."""
    reply, _ = await attempt(raw(b"HTTP/1.1 200 OK\r\n" + rest, hold=True), limit=SHORT)
    assert (reply.status, reply.error) == (200, None)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65536),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n", b"a" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"a" * 65536 + b"\r\n"),
    ],
)
async def test_endless_body_is_cut_off(start: bytes, piece: bytes) -> None:
    """A body without end is read to its first bytes and dropped; what the receiver can press into us is bounded."""
    reply, listener = await attempt(endless(start, piece))
    assert (reply.status, reply.answer) == (200, "a" * MAX_EXCERPT)
    assert listener.sent < 16 * 2**20  # what the buffers between the two ends hold, and no more


async def test_compressed_answer_is_not_unpacked() -> None:
    """What claims to be compressed is kept as it came, so that no bomb goes off."""
    reply, _ = await attempt(answering(answer(200, b"\x1f\x8b\x08\x00", content_encoding="gzip")))
    assert (reply.status, reply.answer) == (200, "\\x1f\ufffd\\x08\\x00")


@pytest.mark.parametrize(
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


@pytest.mark.parametrize(
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


@pytest.mark.parametrize(
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
    """An excerpt is printable and fits its place in the log, however long its characters get when they are escaped."""
    reply, _ = await attempt(answering(answer(200, sent)))
    assert 0 < len(reply.answer.encode()) <= MAX_EXCERPT
    assert reply.answer.isprintable()


async def test_refused_connection() -> None:
    """Nobody listens: the attempt says so."""
    port = await free_port()
    async with sending() as callbacks:
        reply = await callbacks.send(f"http://127.0.0.1:{port}/", HEADERS, BODY)
    assert (reply.status, reply.error) == (None, "refused")


async def test_name_that_does_not_exist() -> None:
    """A DNS failure is a class of its own; it is retried like any other error."""
    async with sending() as callbacks:
        reply = await callbacks.send("http://no-such-receiver.invalid:8080/", HEADERS, BODY)
    assert (reply.status, reply.error) == (None, "dns")


async def test_untrusted_certificate(tmp_path: Path) -> None:
    """A certificate that nobody vouches for is refused before a byte of the callback is sent."""
    (tmp_path / "untrusted.pem").write_text(UNTRUSTED)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "untrusted.pem")
    async with listening(answering(answer(200)), tls=tls) as listener, sending() as callbacks:
        reply = await callbacks.send(f"{listener.origin}/hook", HEADERS, BODY)
        assert (reply.status, reply.error) == (None, "tls")
        assert listener.requests == []


@pytest.mark.parametrize(
    "sent", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28"], ids=["plain HTTP", "alert"]
)
async def test_receiver_that_speaks_no_tls(sent: bytes) -> None:
    """An https URL whose receiver speaks something else is a TLS error."""

    async def script(connection: Connection) -> None:
        await connection.reader.read(1)
        await connection.send(sent)
        await connection.hold()

    async with listening(script) as listener, sending() as callbacks:
        reply = await callbacks.send(listener.origin.replace("http", "https"), HEADERS, BODY)
    assert (reply.status, reply.error) == (None, "tls")


async def test_handshake_that_hangs_ends_with_the_attempts_time() -> None:
    """A receiver that accepts and never shakes hands costs one attempt's time and no more."""
    async with listening(silent) as listener, sending(SHORT) as callbacks:
        reply = await callbacks.send(listener.origin.replace("http", "https"), HEADERS, BODY)
    assert (reply.status, reply.error) == (None, "timeout")


@pytest.mark.parametrize(
    "url", ["", "http://", "http://[", "ftp://127.0.0.1/", "http://user@127.0.0.1/", "http://127.0.0.1:99999/", "http://a b/"]
)
async def test_url_that_cannot_be_called_is_an_error_not_an_exception(url: str) -> None:
    """Whatever stands in a record, the sender answers with a reply."""
    async with sending() as callbacks:
        reply = await callbacks.send(url, HEADERS, BODY)
    assert (reply.status, reply.error) == (None, "forbidden_target")


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/hook",
        "/a/./b/../c//d",
        "/a%2Fb%20c%7Ed;e=1,2",
        "/hook?x=%2F%3D%26&y=a+b&z=a%2Bb&sig=abc%3D%3D",
        "/hook?url=https%3A%2F%2Fexample.com%2F%3Fa%3D1",
        "/h%c3%b6ok?%C3%B6=%c3%b6",
        "/hook?a&b=&=c&&d=1?2/3:4@5",
    ],
)
async def test_url_is_called_as_it_was_given(target: str) -> None:
    """Path and query reach the receiver character by character: some are signed."""
    async with listening(answering(answer(200))) as listener, sending() as callbacks:
        assert (await callbacks.send(listener.origin + target, HEADERS, BODY)).status == 200
        assert listener.requests[0].split(b"\r\n")[0].decode() == f"POST {target} HTTP/1.1"


@pytest.mark.parametrize(
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
    assert {f"{name}: {value}" for name, value in HEADERS.items()} | {f"content-length: {len(body)}"} <= set(lines)


async def test_a_connection_serves_a_burst_and_nothing_is_remembered() -> None:
    """One connection for attempts that follow each other, none after the sender was closed, and never a cookie."""
    async with listening(answering(answer(200, set_cookie="session=1; Path=/"))) as listener, sending() as callbacks:
        for _ in range(3):
            assert (await callbacks.send(f"{listener.origin}/hook", HEADERS, BODY)).status == 200
        assert listener.connections == 1
        await callbacks.close()
        assert (await callbacks.send(f"{listener.origin}/hook", HEADERS, BODY)).status == 200
        assert listener.connections == 2
        assert not any(b"cookie:" in request.lower() for request in listener.requests)


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_a_kept_connection_that_is_dead_is_no_failure_of_the_receiver(way: str) -> None:
    """A receiver that ends connections without saying so gets the message on a fresh one, within the same attempt."""

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
    """The attempt is over then: nobody is sent the same thing twice for an attempt that failed by itself."""
    async with listening(raw(reset=True)) as listener, sending() as callbacks:
        assert (await callbacks.send(f"{listener.origin}/hook", HEADERS, BODY)).error == "reset"
        assert (listener.connections, len(listener.requests)) == (1, 1)


def http_date(offset: timedelta) -> str:
    """Write a moment as HTTP does."""
    return format_datetime(datetime.now(UTC) + offset, usegmt=True)


MINUTE, HOUR, MOST = timedelta(minutes=1), timedelta(hours=1), timedelta(hours=48)


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("0", timedelta(0), timedelta(0)),
        ("120", 2 * MINUTE, 2 * MINUTE),
        ("00120", 2 * MINUTE, 2 * MINUTE),
        (" 120 ", 2 * MINUTE, 2 * MINUTE),
        ("99999999999999999999", MOST, MOST),
        ("9" * 5000, MOST, MOST),
        (http_date(HOUR), 0.5 * HOUR, HOUR),  # written when the tests were collected, which may be minutes ago
        (http_date(-5 * MINUTE), timedelta(0), timedelta(0)),
        ((datetime.now(UTC) + HOUR).strftime("%A, %d-%b-%y %H:%M:%S GMT"), 0.5 * HOUR, HOUR),
        ((datetime.now(UTC) + HOUR).strftime("%a %b %d %H:%M:%S %Y"), 0.5 * HOUR, HOUR),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MOST, MOST),
    ],
)
@pytest.mark.parametrize("status", [301, 409, 429, 503])
async def test_retry_after_is_read_in_all_its_forms(status: int, value: str, least: timedelta, most: timedelta) -> None:
    """Seconds or any of HTTP's dates, bounded."""
    reply, _ = await attempt(answering(answer(status, retry_after=value)))
    assert (reply.status, reply.retry_after is not None) == (status, True)
    assert least <= (reply.retry_after or timedelta(0)) <= most


@pytest.mark.parametrize(
    "value",
    ["", "soon", "-5", "+5", "1.5", "1e3", "5 minutes", "0x10", "Fri, 99 Dec 2026 00:00:00 GMT", "5, 6", "\u0663", "a" * 5000],
)
async def test_retry_after_that_says_nothing_is_ignored(value: str) -> None:
    """Nonsense is as good as no header."""
    header = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: %b\r\n\r\n" % value.encode()
    reply, _ = await attempt(raw(header))
    assert (reply.status, reply.retry_after) == (503, None)


async def test_silent_receiver_does_not_hold_up_another() -> None:
    """While one receiver takes all its time, and all the places that one host gets, another is served at once."""
    async with listening(silent) as slow, listening(answering(answer(200)), hosts=("127.0.0.2",)) as good, sending() as callbacks:
        waiting = [asyncio.create_task(callbacks.send(slow.origin, HEADERS, BODY)) for _ in range(40)]
        reply = await callbacks.send(f"http://127.0.0.2:{good.port}/", HEADERS, BODY)
        assert reply.status == 200
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_waiting_for_a_place_is_part_of_the_attempts_time() -> None:
    """Behind a host's full places an attempt ends when its time is over, connected or not."""
    async with listening(silent) as slow, sending(SHORT) as callbacks:
        replies = await asyncio.gather(*(callbacks.send(slow.origin, HEADERS, BODY) for _ in range(40)))
    assert {reply.error for reply in replies} == {"timeout"}


def test_claim_covers_an_attempt() -> None:
    """The default time of an attempt is the contract's, and ends well before its claim does."""
    assert timedelta(seconds=15) == ATTEMPT_TIME
    assert 2 * ATTEMPT_TIME <= CLAIM


# --- what the engine does next ---------------------------------------------------------------------------------------------

START = datetime(2026, 11, 23, tzinfo=UTC)
SCHEDULE, SOON = timedelta(seconds=5), timedelta(seconds=10)


@dataclass(frozen=True)
class Next:
    """What follows from one attempt: delivered, or another one after about `wait`; and whether the host rests meanwhile."""

    wait: timedelta | None
    counted: bool = True
    rests: timedelta | None = None
    log: int | str = ""  # the status or the class of error


def on(status: int, **headers: str) -> Script:
    """Answer with this status, and a body where it may have one."""
    return answering(answer(status, b"" if status in {204, 304} else b"words", **headers))


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
    *[(f"{status}", on(status, location="/elsewhere"), retried_on(status)) for status in (300, 301, 302, 303, 304, 307, 308)],
    *[(f"{status}", on(status), retried_on(status)) for status in (400, 401, 403, 404, 405, 408, 413, 415, 422, 451, 499)],
    *[(f"{status}", on(status), retried_on(status)) for status in (500, 501, 503, 505, 507, 599)],
    *[(f"{status}", on(status), throttled_on(status)) for status in (429, 502, 504)],
    *[(f"{status}", on(status), Next(SOON, counted=False, log=status)) for status in (409, 425)],
    ("410", on(410), retried_on(410, HOUR)),
    ("101", on(101), retried_on(101)),
    ("100, then 200", raw(b"HTTP/1.1 100 Continue\r\n\r\n", answer(200)), delivered_on(200)),
    ("103, then 503", raw(b"HTTP/1.1 103 Early Hints\r\n\r\n", answer(503)), retried_on(503)),
    ("103 for ever", endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"), retried_on("timeout")),
    ("999", raw(b"HTTP/1.1 999 Odd\r\n\r\n"), retried_on(999)),
    ("reset before anything", hang_up, retried_on("reset")),
    ("reset after the request", raw(reset=True), retried_on("reset")),
    ("closed after the request", raw(), retried_on("reset")),
    ("reset within the headers", raw(b"HTTP/1.1 200 OK\r\nX-A: b\r\n", reset=True), retried_on("reset")),
    ("reset after the headers", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", reset=True), delivered_on(200)),
    ("reset within the body", raw(b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\npart", reset=True), retried_on(500)),
    ("silence", silent, retried_on("timeout")),
    ("slow headers", drip, retried_on("timeout")),
    ("slow body", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nslow", hold=True), delivered_on(200)),
    ("endless body", endless(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65536), delivered_on(200)),
    ("endless body of a failure", endless(b"HTTP/1.1 500 No\r\n\r\n", b"a" * 65536), retried_on(500)),
    ("huge header", raw(b"HTTP/1.1 200 OK\r\nX-Huge: " + b"a" * 1_000_000 + b"\r\n\r\n"), retried_on("invalid_answer")),
    ("no HTTP", raw(b"SSH-2.0-OpenSSH_9.6\r\n"), retried_on("invalid_answer")),
    ("HTTP/1.0", raw(b"HTTP/1.0 200 OK\r\n\r\nbye"), delivered_on(200)),
    ("HTTP/1.0 failure", raw(b"HTTP/1.0 500 Oops\r\n\r\nbye"), retried_on(500)),
    ("answer before the body was read", early, delivered_on(202)),
    ("Retry-After: 0", on(503, retry_after="0"), retried_on(503)),
    ("Retry-After: 1", on(503, retry_after="1"), retried_on(503)),
    ("Retry-After: 120", on(503, retry_after="120"), retried_on(503, timedelta(minutes=2))),
    ("Retry-After: a date", on(410, retry_after=http_date(105 * MINUTE)), retried_on(410, 100 * MINUTE)),
    ("Retry-After: a date gone by", on(503, retry_after=http_date(-5 * MINUTE)), retried_on(503)),
    ("Retry-After: a day", on(503, retry_after="86400"), retried_on(503, timedelta(minutes=10))),
    ("Retry-After: for ever", on(503, retry_after="9" * 400), retried_on(503, timedelta(minutes=10))),
    ("Retry-After: year 9999", on(500, retry_after="Fri, 31 Dec 9999 23:59:59 GMT"), retried_on(500, timedelta(minutes=10))),
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
    courier = Courier(
        tasks=tasks,
        callbacks=callbacks,
        callers=MemoryCallers(a_caller()),
        hosts=hosts,
        clock=clock,
        reporter=Told(),
        retention=timedelta(days=7),
    )
    return await deliver.attempt(ended, courier), hosts


def check(task: Task, hosts: Hosts, expected: Next) -> None:
    """Compare a task after its attempt with what the table says."""
    entry = task.log[-1]
    assert (entry.status or entry.error, entry.next_at) == (expected.log, task.next_attempt_at)
    assert task.callback is (CallbackState.DELIVERED if expected.wait is None else CallbackState.WAITING)
    if expected.wait is not None:
        assert task.next_attempt_at is not None
        assert expected.wait * 0.9 <= task.next_attempt_at - START <= expected.wait * 1.1
        assert (task.tried, task.gone) == (int(expected.counted), expected.log == 410)
    open_until = hosts.open_until(task.caller, host_of(task))
    assert (open_until and open_until - START) == expected.rests


@pytest.mark.parametrize(("script", "expected"), [row[1:] for row in BEHAVIOURS], ids=[row[0] for row in BEHAVIOURS])
async def test_what_the_engine_does_next(script: Script, expected: Next) -> None:
    """For every way in which a receiver may behave: what is stored, when the next attempt is, and what its host gets."""
    async with listening(script) as listener, sending(timedelta(seconds=0.7)) as callbacks:
        check(*await delivery(f"{listener.origin}/hook", callbacks), expected)


async def test_what_the_engine_does_next_without_a_receiver(tmp_path: Path) -> None:
    """Nobody listens, the name does not exist, the certificate is nobody's, the target is forbidden: the schedule goes on."""
    (tmp_path / "untrusted.pem").write_text(UNTRUSTED)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "untrusted.pem")
    async with listening(answering(answer(200)), tls=tls) as bad, sending() as callbacks:
        for url, error in (
            (f"http://127.0.0.1:{await free_port()}/", "refused"),
            ("http://no-such-receiver.invalid:8080/", "dns"),
            (f"{bad.origin}/hook", "tls"),
            ("http://user@127.0.0.1/", "forbidden_target"),
        ):
            check(*await delivery(url, callbacks), retried_on(error))
