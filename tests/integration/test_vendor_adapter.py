"""The vendor's API over real sockets: what each thing on the wire means, and nothing is paid twice."""

import asyncio
import gc
import gzip
import json
import time
import tracemalloc
import warnings
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from taskhook.adapters.http.vendor import HOLDING_CLIENTS, LARGE, MAX_ANSWER, HttpTaskApi, _Post
from taskhook.adapters.http.vendor_wire import MAX_HEAD, MAX_INTERIM, trust
from taskhook.core.errors import KeyUnavailableError, KeyUnusableError
from taskhook.core.message import kept_data
from taskhook.core.ports import HOLDS_AT_ONCE, ApiKey
from taskhook.core.record import Submission, SubmitOutcome
from taskhook.core.vendor import FreeOutcome, PollKind, PollOutcome
from taskhook.vendors.dashscope import DASHSCOPE
from taskhook.vendors.modellix import MODELLIX
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
from tests.local.server import serving
from tests.local.vendor import VendorEmulator
from tests.modellix.faults import Fault
from tests.modellix.vendor import VendorProfile
from tests.rows import each_row

MODEL = "alibaba/wan2.2-animate-mix"
REQUEST = b'{"image_url":"http://example.com/a.jpg","video_url":"http://example.com/b.mp4","mode":"wan-std"}'
KEY = "mdlx-test"
LONG = timedelta(seconds=60)  # far more than any test takes, also on a loaded machine
IN_1000_S = "in 1000 s"  # by the clock of the moment in which it is sent
SHORT = timedelta(seconds=0.3)  # for a vendor that never answers
TAKEN = b'{"code":0,"message":"success","data":{"status":"pending","task_id":"task-1"}}'


@dataclass
class Keys:
    """The vendor's key in its safe: each look finds the next, the last for ever; an exception is raised."""

    kept: list[str | Exception] = field(default_factory=lambda: [KEY])
    asked: list[bool] = field(default_factory=list)

    async def __call__(self, *, fresh: bool) -> str:
        """Give the key, the next one if it is to be fresh."""
        self.asked.append(fresh)
        if fresh and len(self.kept) > 1:
            self.kept.pop(0)
        key = self.kept[0]
        if isinstance(key, Exception):
            raise key
        return key


@asynccontextmanager
async def calling(
    origin: str, keys: ApiKey | None = None, least: timedelta = timedelta(0)
) -> AsyncIterator[HttpTaskApi]:
    """Make the adapter, and close the connections that it keeps for its polls."""
    api = HttpTaskApi(origin, keys or Keys(), vendor=MODELLIX, tls=trust(), least=least)
    try:
        yield api
    finally:
        await api.close()


@asynccontextmanager
async def emulated(
    keys: Keys | None = None, **knobs: Any
) -> AsyncIterator[tuple[VendorEmulator, HttpTaskApi]]:
    """Serve the emulator and make the adapter for it."""
    profile: dict[str, Any] = {"api_keys": (KEY,), "task_seconds": 60.0} | knobs
    emulator = VendorEmulator(VendorProfile(**profile))
    async with serving(emulator.app()) as origin, calling(origin, keys) as api:
        yield emulator, api


async def submit(script: Script, *, limit: timedelta = LONG) -> tuple[SubmitOutcome, Listener]:
    """Pay once at a vendor that behaves as scripted."""
    async with listening(script) as listener, calling(listener.origin) as api:
        return await api.submit(MODEL, REQUEST, webhook_url=None, limit=limit), listener


async def poll(script: Script, task_id: str = "task-1") -> PollOutcome:
    """Poll once at a vendor that behaves as scripted."""
    async with listening(script) as listener, calling(listener.origin) as api:
        return await api.poll(task_id)


async def hang_up_in_the_request(connection: Connection) -> None:
    """Reset the connection after the request's headers."""
    await connection.head()
    connection.reset()


def expected_submission(status: int) -> Submission:
    """Read the table of the design for an answer that names no task."""
    if status in {400, 403, 404, 405, 413, 415, 422}:
        return Submission.REFUSED
    if status in {401, 402}:
        return Submission.REFUSED_HERE
    return Submission.BUSY if status == 429 else Submission.AMBIGUOUS


# --- the paid POST: answered ----------------------------------------------------------------------


async def test_taken() -> None:
    """A submit that the vendor took names the task that the vendor has, and was paid once."""
    async with emulated() as (emulator, api):
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        (task,) = emulator.vendor.snapshot()["tasks"]
        assert (outcome.submission, outcome.upstream_task_id) == (Submission.TAKEN, task["id"])
        assert (outcome.operation or "").endswith(f"/api/v1/tasks/{task['id']}")
        assert (task["request"], emulator.vendor.submits) == (json.loads(REQUEST), 1)


async def test_request_on_the_wire() -> None:
    """The POST carries the stored bytes, the key and a length to the model's path, through no proxy."""
    _, listener = await submit(answering(answer(200, TAKEN)))
    (request,) = listener.requests
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    assert first == f"POST /api/v1/{MODEL} HTTP/1.1"
    assert body == REQUEST
    assert {
        f"Authorization: Bearer {KEY}",
        "Content-Type: application/json",
        f"Content-Length: {len(REQUEST)}",
    } <= set(lines)


@each_row("status", [200, 201, 202, 299])
async def test_any_2xx_with_an_id_is_taken(status: int) -> None:
    """The vendor's clients take any 2xx, and so do we."""
    outcome, _ = await submit(answering(answer(status, TAKEN)))
    assert (outcome.submission, outcome.upstream_task_id) == (Submission.TAKEN, "task-1")


STATUSES = (300, 301, 302, 303, 304, 307, 308, *range(400, 432), 451, 499, *range(500, 512), 520, 524, 599)


@each_row("status", STATUSES)
async def test_each_refusal_means_what_the_table_says(status: int) -> None:
    """Each status is classed as the design says, keeps the vendor's words, and is never tried again."""
    async with emulated() as (emulator, api):
        emulator.faults.inject(Fault(on="submit", fault=str(status), message="too bad"))
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        assert (outcome.submission, outcome.status) == (expected_submission(status), status)
        assert "too bad" in outcome.message or status == 304
        assert (emulator.vendor.submits, len(emulator.vendor.tasks)) == (1, 0)


@each_row("status", [301, 302, 303, 307, 308])
async def test_redirect_is_not_followed(status: int) -> None:
    """A redirected POST would be paid to another server; it is not sent anywhere else."""
    async with listening(answering(answer(200, TAKEN))) as elsewhere:
        outcome, listener = await submit(
            answering(answer(status, location=elsewhere.origin + f"/api/v1/{MODEL}"))
        )
        assert (outcome.submission, outcome.status) == (Submission.AMBIGUOUS, status)
        assert (listener.connections, elsewhere.connections) == (1, 0)


@each_row("status", [400, 401, 402, 403, 404, 405, 413, 415, 422, 429])
@each_row("body", [b"", b"<html>", b"[]", b'{"message":', b"\xff\xfe", b'"text"', b"null"])
async def test_status_alone_decides_where_the_body_cannot_be_read(status: int, body: bytes) -> None:
    """A gateway's HTML under a 4xx refuses as well as the vendor's JSON does."""
    outcome, _ = await submit(answering(answer(status, body)))
    assert (outcome.submission, outcome.status) == (expected_submission(status), status)
    assert outcome.message == f"the vendor answered {status}"


@each_row(
    "body",
    [
        b"",
        b"<html><body>upstream connect error</body></html>",
        b"null",
        b"[]",
        b'"task-1"',
        b"{}",
        TAKEN[:-1],
        TAKEN + b"x",
        b"\xff" + TAKEN,
        TAKEN.replace(b'"task-1"', b"1"),
        TAKEN.replace(b'"task-1"', b"null"),
        TAKEN.replace(b'"task-1"', b'["task-1"]'),
        TAKEN.replace(b'"task-1"', b"true"),
        TAKEN.replace(b'"task-1"', b'""'),
        TAKEN.replace(b'"code":0', b'"code":500'),
        TAKEN.replace(b'"code":0', b'"code":"0"'),
        TAKEN.replace(b'"code":0', b'"code":null'),
        b'{"code":0,"data":{}}',
        b'{"code":0,"data":null}',
        b'{"code":0,"task_id":"task-1"}',
        TAKEN.replace(b'"code":0', b'"code":NaN'),
        b"[" * 100_000,
        b" " * (MAX_ANSWER + 1) + TAKEN,
    ],
    ids=lambda body: repr(body[:40]),
)
async def test_2xx_that_names_no_task_is_ambiguous(body: bytes) -> None:
    """A 200 that cannot be read, or that contradicts itself, may have been paid for."""
    outcome, listener = await submit(answering(answer(200, body)))
    assert (outcome.submission, outcome.status, outcome.upstream_task_id) == (Submission.AMBIGUOUS, 200, "")
    assert len(listener.requests) == 1


@pytest.mark.parametrize("fault", ["not_json", "code_nonzero", "wrong_id"])
async def test_emulated_answer_without_proof_is_ambiguous(fault: str) -> None:
    """The emulator's faulty answers are ambiguous, and indeed some were paid for."""
    async with emulated() as (emulator, api):
        emulator.faults.inject(Fault(on="submit", fault=fault))
        assert (
            await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        ).submission is Submission.AMBIGUOUS
        assert (emulator.vendor.submits, len(emulator.vendor.tasks)) == (
            1,
            0 if fault == "code_nonzero" else 1,
        )


@each_row(
    ("headers", "at_least", "at_most"),
    [
        ({"retry_after": "7"}, 7, 7),
        ({"retry_after": " 7 "}, 7, 7),
        ({"retry_after": "0"}, 0, 0),
        ({"retry_after": "999999999999"}, 3600, 3600),
        ({"retry_after": IN_1000_S}, 500, 1001),
        ({"retry_after": format_datetime(datetime.now(UTC) + timedelta(days=400), usegmt=True)}, 3600, 3600),
        ({"retry_after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0, 0),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": IN_1000_S}, 500, 1001),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": "9" * 30}, 3600, 3600),
        ({"retry_after": "7", "x_ratelimit_remaining": "0", "x_ratelimit_reset": IN_1000_S}, 7, 7),
    ],
)
async def test_time_to_come_back_is_read(headers: dict[str, str], at_least: float, at_most: float) -> None:
    """`Retry-After` in both forms, else the rate limit's reset, tells when to come back, within an hour."""
    later = datetime.now(UTC) + timedelta(seconds=1000)
    written = {
        "retry_after": format_datetime(later, usegmt=True),
        "x_ratelimit_reset": str(int(later.timestamp())),
    }
    headers = {name: written[name] if value == IN_1000_S else value for name, value in headers.items()}
    refused = answering(answer(429, b'{"code":429,"message":"slow down"}', **headers))
    outcome, _ = await submit(refused)
    polled = await poll(refused)
    assert (outcome.submission, outcome.message, polled.kind) == (
        Submission.BUSY,
        "slow down",
        PollKind.THROTTLED,
    )
    for wait in (outcome.retry_after, polled.retry_after):
        assert wait is not None
        assert timedelta(seconds=at_least) <= wait <= timedelta(seconds=at_most)


@each_row(
    "headers",
    [
        {},
        {"retry_after": ""},
        {"retry_after": "soon"},
        {"retry_after": "-1"},
        {"retry_after": "1.5"},
        {"retry_after": "9" * 5000},
        {"retry_after": "Sun, 06 Nov 99999 08:49:37 GMT"},
        {"retry_after": "Mon, 01 Jan 0001 00:00:00 +1400"},
        {"retry_after": "Fri, 31 Dec 9999 23:59:59 -1400"},
        {"x_ratelimit_remaining": "0"},
        {"x_ratelimit_remaining": "0", "x_ratelimit_reset": "soon"},
        {"x_ratelimit_remaining": "0", "x_ratelimit_reset": "9" * 5000},
        {"x_ratelimit_remaining": "3", "x_ratelimit_reset": str(int(time.time()) + 1000)},
    ],
    ids=lambda headers: repr(headers)[:60],
)
async def test_nonsense_about_when_to_come_back_is_ignored(headers: dict[str, str]) -> None:
    """A header that makes no sense never spoils its answer, least of all one that was paid for."""
    busy, _ = await submit(answering(answer(429, b'{"message":"slow down"}', **headers)))
    assert (busy.submission, busy.message) == (Submission.BUSY, "slow down")
    taken, _ = await submit(answering(answer(200, TAKEN, **headers)))
    assert (taken.submission, taken.upstream_task_id) == (Submission.TAKEN, "task-1")
    polled = await poll(answering(answer(429, b"{}", **headers)))
    assert polled.kind is PollKind.THROTTLED
    assert {busy.retry_after, polled.retry_after} <= {None, timedelta(0)}


async def test_refusal_for_rate_is_busy() -> None:
    """Both of the vendor's limits are told as busy, and cost nothing."""
    async with emulated(concurrent=1) as (emulator, api):
        outcomes = [
            (await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)).submission for _ in range(2)
        ]
        assert outcomes == [Submission.TAKEN, Submission.BUSY]
        assert len(emulator.vendor.tasks) == 1
    async with emulated(rpm=1) as (emulator, api):
        began = datetime.now(UTC)
        await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        assert outcome.submission is Submission.BUSY
        assert outcome.retry_after is not None
        assert (
            timedelta(seconds=58) - (datetime.now(UTC) - began) < outcome.retry_after <= timedelta(seconds=62)
        )
        assert len(emulator.vendor.tasks) == 1


# --- the paid POST: sent, and no answer -----------------------------------------------------------


@each_row(
    "script",
    [
        raw(),
        raw(reset=True),
        hang_up_in_the_request,
        raw(b"HTTP/1.1 200"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n", reset=True),
        raw(b"HTTP/1.1 429 Too Many Requests\r\nContent-Len", reset=True),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(TAKEN), TAKEN[:-1]),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(TAKEN), TAKEN[:-1], reset=True),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\njunk"),
        raw(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
        raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
        raw(b"\x15\x03\x03\x00\x02\x02\x28"),
        raw(b"HTTP/1.1 200 OK\r\nX-Huge: " + b"a" * 1_000_000 + b"\r\n\r\n"),
    ],
)
async def test_broken_answer_is_ambiguous(script: Script) -> None:
    """Once a byte was sent, what breaks before the answer is complete is unknown, and not tried again."""
    outcome, listener = await submit(script)
    assert outcome.submission is Submission.AMBIGUOUS
    assert listener.connections == 1


async def test_connection_that_breaks_at_once_is_ambiguous_or_proven_unsent() -> None:
    """A connection reset as it is accepted is "not sent" only if no byte was written."""
    outcome, listener = await submit(hang_up)
    assert outcome.submission in {Submission.AMBIGUOUS, Submission.NOT_SENT}
    assert listener.connections == 1


@pytest.mark.parametrize(("fault", "paid"), [("drop_before", 0), ("drop_after", 1)])
async def test_dropped_connection_is_ambiguous(fault: str, paid: int) -> None:
    """Whether the vendor took the task before it dropped the connection cannot be told from here."""
    async with emulated() as (emulator, api):
        emulator.faults.inject(Fault(on="submit", fault=fault))
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        assert (outcome.submission, outcome.upstream_task_id) == (Submission.AMBIGUOUS, "")
        assert (emulator.vendor.submits, len(emulator.vendor.tasks)) == (1, paid)


@each_row(
    "script",
    [
        raw(hold=True),
        raw(b"HTTP/1.1 200 OK\r\nContent-Type:", hold=True),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", hold=True),
        raw(b"HTTP/1.1 100 Continue\r\n\r\n", hold=True),
    ],
    ids=["no answer", "unfinished headers", "unfinished body", "continue"],
)
async def test_timeout_after_sending_is_ambiguous(script: Script) -> None:
    """When the time is over after the request was sent, the vendor may have it."""
    outcome, listener = await submit(script, limit=SHORT)
    assert outcome.submission is Submission.AMBIGUOUS
    assert len(listener.requests) == 1


@each_row("status", [400, 401, 402, 429])
async def test_refusal_whose_body_never_comes_is_still_a_refusal(status: int) -> None:
    """The status of a refusal proves that nothing was taken, however its body ends."""
    head = b"HTTP/1.1 %d Whatever\r\nContent-Length: 100\r\n\r\n" % status
    for script in (raw(head, hold=True), raw(head + b"{", reset=True)):
        outcome, _ = await submit(script, limit=SHORT)
        assert (outcome.submission, outcome.status) == (expected_submission(status), status)


async def test_slow_vendor_is_waited_for_within_the_limit() -> None:
    """An answer that takes its time is an answer, as long as it comes within the limit."""
    async with emulated() as (emulator, api):
        emulator.faults.inject(Fault(on="submit", fault="slow", seconds=0.3))
        assert (await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)).submission is Submission.TAKEN
        emulator.faults.inject(Fault(on="submit", fault="slow", seconds=10))
        assert (
            await api.submit(MODEL, REQUEST, webhook_url=None, limit=SHORT)
        ).submission is Submission.AMBIGUOUS


# --- the paid POST: not sent, proven --------------------------------------------------------------


async def test_refused_connection_is_not_sent() -> None:
    """Without a listener nothing was sent, and nothing paid."""
    async with calling(f"http://127.0.0.1:{await free_port()}") as api:
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
    assert (outcome.submission, outcome.message) == (Submission.NOT_SENT, "ConnectError")


async def test_unknown_name_is_not_sent() -> None:
    """Without an address there is no connection."""
    async with calling("http://no-such-vendor.invalid") as api:
        assert (
            await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        ).submission is Submission.NOT_SENT


async def test_untrusted_vendor_is_sent_nothing(tmp_path: Path) -> None:
    """A certificate that no authority vouches for ends the matter before key or request are shown."""
    tls = certificates.serving(tmp_path)
    async with listening(answering(answer(200, TAKEN)), tls=tls) as listener, calling(listener.origin) as api:
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        polled = await api.poll("task-1")
        assert (outcome.submission, polled.kind) == (Submission.NOT_SENT, PollKind.UNAVAILABLE)
        assert (listener.requests, bytes(listener.received)) == ([], b"")


@pytest.mark.parametrize(
    "sent",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28", b""],
    ids=["plain HTTP", "alert", "closed"],
)
async def test_failed_handshake_is_not_sent(sent: bytes) -> None:
    """Whatever breaks the handshake, the request was never begun, nor is the connection tried again."""

    async def script(connection: Connection) -> None:
        await connection.reader.read(1)
        await connection.send(sent)

    async with listening(script) as listener, calling(listener.origin.replace("http", "https")) as api:
        assert (
            await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        ).submission is Submission.NOT_SENT
        assert listener.connections == 1  # trying again is the queue's business


async def test_timeout_before_sending_is_not_sent() -> None:
    """When the time is over while the handshake hangs, the request was never begun."""
    async with listening(silent) as listener, calling(listener.origin.replace("http", "https")) as api:
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=SHORT)
        assert (outcome.submission, outcome.message) == (Submission.NOT_SENT, "TimeoutError")
        assert REQUEST not in listener.received
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()  # httpcore leaves the socket to the collector when a handshake is cancelled


@pytest.mark.parametrize("failure", [KeyUnavailableError("throttled"), OSError("no safe")])
async def test_key_that_cannot_be_read_now_is_not_sent(failure: Exception) -> None:
    """Without a key no connection is opened, for a submit or for a poll; the next one reads it again."""
    keys = Keys([failure])
    async with listening(answering(answer(200, TAKEN))) as listener, calling(listener.origin, keys) as api:
        assert (
            await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        ).submission is Submission.NOT_SENT
        assert (await api.poll("task-1")).kind is PollKind.UNAVAILABLE
        assert (await api.balance()).answered is False
        assert listener.connections == 0
        keys.kept = [KEY]
        assert (await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)).submission is Submission.TAKEN


async def test_key_that_takes_too_long_is_not_sent() -> None:
    """Reading the key is part of the limit."""

    async def never(*, fresh: bool) -> str:
        await asyncio.Event().wait()
        return KEY

    async with listening(answering(answer(200, TAKEN))) as listener, calling(listener.origin, never) as api:
        assert (
            await api.submit(MODEL, REQUEST, webhook_url=None, limit=SHORT)
        ).submission is Submission.NOT_SENT
        assert listener.connections == 0


UNSENDABLE = [
    "",
    " ",
    "mdlx\r\nX-Evil: 1",
    "mdlx-a\nb",
    "mdlx\tx",
    "mdlx x",
    "mdlx-\u4e2d",
    "mdlx-ü",
    "mdlx-\x00",
    "mdlx-\x7f",
    "\ud800",
]


@each_row("key", [*UNSENDABLE, KeyUnusableError("AccessDeniedException")])
async def test_key_that_cannot_be_sent_is_refused_here(key: str | Exception) -> None:
    """A damaged, missing or forbidden secret is this deployment's trouble: no connection, nothing unknown."""
    async with (
        listening(answering(answer(200, TAKEN))) as listener,
        calling(listener.origin, Keys([key])) as api,
    ):
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        polled = await api.poll("task-1")
        assert (outcome.submission, polled.kind) == (Submission.REFUSED_HERE, PollKind.KEY_REFUSED)
        assert "the vendor key cannot be used" in outcome.message
        assert (await api.balance()).answered is False
        assert (listener.connections, bytes(listener.received)) == (0, b"")


async def test_key_that_cannot_be_sent_is_read_again() -> None:
    """Where the secret has been mended, the next request finds it."""
    keys = Keys(["", KEY])
    async with emulated(keys) as (emulator, api):
        assert (await api.poll("task-1")).kind is PollKind.KEY_REFUSED
        assert (await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)).submission is Submission.TAKEN
        assert (keys.asked, emulator.vendor.submits) == ([False, True], 1)


async def test_fresh_key_that_cannot_be_sent_leaves_the_refusal() -> None:
    """The vendor's own words say more."""
    async with emulated(Keys(["mdlx-old", ""])) as (emulator, api):
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        assert (outcome.submission, outcome.status, emulator.vendor.submits) == (
            Submission.REFUSED_HERE,
            401,
            1,
        )


# --- the paid POST: what is looked at right before it ---------------------------------------------


async def test_post_is_not_begun_with_too_little_time() -> None:
    """A key that took long to read has used up the POST's time."""

    async def slowly(*, fresh: bool) -> str:
        del fresh
        await asyncio.sleep(0.2)
        return KEY

    least = LONG - timedelta(seconds=0.1)
    async with (
        listening(answering(answer(200, TAKEN))) as listener,
        calling(listener.origin, slowly, least) as api,
    ):
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        assert (outcome.submission, listener.connections) == (Submission.NOT_SENT, 0)
        assert (
            await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG + LONG)
        ).submission is Submission.TAKEN


async def test_second_post_is_not_begun_with_too_little_time() -> None:
    """After a 401 reading the new key took long: the refusal stands, and nothing is cut off half-way."""

    async def slowly(*, fresh: bool) -> str:
        await asyncio.sleep(3 if fresh else 0)
        return KEY if fresh else "mdlx-old"

    least = LONG - timedelta(seconds=2.9)
    async with (
        listening(answering(answer(401, b"{}"))) as listener,
        calling(listener.origin, slowly, least) as api,
    ):
        assert (
            await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        ).submission is Submission.REFUSED_HERE
        assert listener.connections == 1


async def test_leave_is_asked_before_each_post() -> None:
    """A second POST with a fresh key is a second request of the budget; without leave, none is sent."""
    leave: list[bool] = []

    async def admit() -> bool:
        return leave.pop(0)

    for given, submission, posts in (
        ([True, True], Submission.TAKEN, 2),
        ([True, False], Submission.REFUSED_HERE, 1),
        ([False], Submission.NOT_SENT, 0),
    ):
        leave[:] = given
        async with emulated(Keys(["mdlx-old", KEY])) as (emulator, api):
            outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG, admit=admit)
            assert (outcome.submission, emulator.vendor.submits, leave) == (submission, posts, [])


async def test_leave_that_never_comes_is_not_sent() -> None:
    """A table that hangs keeps the POST from leaving, and its time is bounded all the same."""

    async def never() -> bool:
        await asyncio.Event().wait()
        return True

    async with emulated() as (emulator, api):
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=SHORT, admit=never)
        assert (outcome.submission, emulator.vendor.submits) == (Submission.NOT_SENT, 0)


# --- the key --------------------------------------------------------------------------------------


async def test_replaced_key_is_read_again_on_401() -> None:
    """A 401 proves that nothing was taken; with a new key the POST is sent again, and paid once."""
    keys = Keys(["mdlx-old", KEY])
    async with emulated(keys) as (emulator, api):
        assert (await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)).submission is Submission.TAKEN
        assert (keys.asked, emulator.vendor.submits, len(emulator.vendor.tasks)) == ([False, True], 2, 1)


async def test_same_key_is_not_tried_twice() -> None:
    """Where the key has not changed, the refusal stands after one POST."""
    keys = Keys(["mdlx-old"])
    async with emulated(keys) as (emulator, api):
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        assert (outcome.submission, outcome.status) == (Submission.REFUSED_HERE, 401)
        assert (keys.asked, emulator.vendor.submits) == ([False, True], 1)


async def test_fresh_key_is_tried_only_once() -> None:
    """A fresh key that is refused too ends the matter."""
    keys = Keys(["mdlx-old", "mdlx-older", KEY])
    async with emulated(keys) as (emulator, api):
        assert (
            await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        ).submission is Submission.REFUSED_HERE
        assert emulator.vendor.submits == 2


async def test_fresh_key_that_cannot_be_read_leaves_the_refusal() -> None:
    """The 401 is what is known, and it proves that nothing was taken."""
    async with emulated(Keys(["mdlx-old", OSError("no safe")])) as (emulator, api):
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        assert (outcome.submission, outcome.status, emulator.vendor.submits) == (
            Submission.REFUSED_HERE,
            401,
            1,
        )


@pytest.mark.parametrize(
    ("second", "meaning"),
    [
        (raw(), Submission.AMBIGUOUS),
        (raw(hold=True), Submission.AMBIGUOUS),
        (hang_up_in_the_request, Submission.AMBIGUOUS),
    ],
)
async def test_second_post_that_breaks_is_ambiguous(second: Script, meaning: Submission) -> None:
    """The first answer's proof does not cover the second POST."""
    scripts = [answering(answer(401, b"{}")), second]

    async def script(connection: Connection) -> None:
        await scripts.pop(0)(connection)

    async with listening(script) as listener, calling(listener.origin, Keys(["mdlx-old", KEY])) as api:
        assert (await api.submit(MODEL, REQUEST, webhook_url=None, limit=SHORT)).submission is meaning
        assert listener.connections == 2


async def test_poll_reads_the_key_again_after_401() -> None:
    """The poll after a refused one asks for a fresh key, the one after a good one does not."""
    keys = Keys(["mdlx-old", KEY])
    async with emulated(keys) as (_, api):
        assert [(await api.poll("task-1")).kind for _ in range(3)] == [
            PollKind.KEY_REFUSED,
            PollKind.MISSING,
            PollKind.MISSING,
        ]
        assert keys.asked == [False, True, False]


# --- connections ----------------------------------------------------------------------------------


async def test_each_post_has_a_connection_of_its_own_and_polls_share_one() -> None:
    """A kept connection may be dead after a freeze: nothing is paid over one; polls keep theirs."""
    body = b'{"code":0,"data":{"task_id":"task-1","status":"pending"}}'
    async with listening(answering(answer(200, body))) as listener, calling(listener.origin) as api:
        for polls in range(3):
            assert (await api.poll("task-1")).kind is PollKind.PENDING
            assert listener.connections == 1, polls
        for posts in range(3):
            assert (
                await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
            ).submission is Submission.TAKEN
            assert listener.connections == 2 + posts
        assert (await api.poll("task-1")).kind is PollKind.PENDING
        assert listener.connections == 4


async def test_post_closes_its_connection() -> None:
    """Nothing is left open by a submit, whatever became of it."""
    closed = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(answer(200, TAKEN))
        await connection.hold()
        closed.set()

    async with listening(script) as listener, calling(listener.origin) as api:
        await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        async with asyncio.timeout(LONG.total_seconds()):
            await closed.wait()


@pytest.mark.parametrize("second", [False, True], ids=["the first POST", "the second one"])
@pytest.mark.parametrize("hangs", [False, True], ids=["breaks", "hangs"])
async def test_an_id_that_was_read_counts_whatever_closing_the_connection_does(
    monkeypatch: pytest.MonkeyPatch, *, hangs: bool, second: bool
) -> None:
    """It is paid for, so that neither an error nor the end of the time makes it unknown."""
    sent_with = _Post.sent_with

    @asynccontextmanager
    async def closed_badly(post: _Post, authorization: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        async with sent_with(post, authorization) as response:
            yield response
        if response.status_code == 200:
            if hangs:
                await asyncio.get_running_loop().create_future()
            raise OSError("cannot be closed")

    monkeypatch.setattr(_Post, "sent_with", closed_badly)
    async with emulated(Keys(["mdlx-old", KEY] if second else [KEY])) as (emulator, api):
        outcome = await api.submit(
            MODEL, REQUEST, webhook_url=None, limit=timedelta(seconds=3) if hangs else LONG
        )
        (task,) = emulator.vendor.snapshot()["tasks"]
        assert (outcome.submission, outcome.upstream_task_id) == (Submission.TAKEN, task["id"])
        assert (outcome.operation or "").endswith(f"/api/v1/tasks/{task['id']}")


async def test_poll_survives_a_dead_kept_connection() -> None:
    """A kept connection that the vendor has closed costs at most one poll."""
    body = b'{"code":0,"data":{"task_id":"task-1","status":"pending"}}'
    async with listening(raw(answer(200, body))) as listener, calling(listener.origin) as api:
        kinds = [(await api.poll("task-1")).kind for _ in range(4)]
        assert kinds[0] is PollKind.PENDING
        assert PollKind.PENDING in kinds[1:]
        assert set(kinds) <= {PollKind.PENDING, PollKind.UNAVAILABLE}


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
async def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Through a proxy the trace could not prove anything, so none is taken from the environment."""
    async with listening(silent) as proxy, emulated() as (_, _):
        monkeypatch.setenv(variable, proxy.origin)
        async with emulated() as (_, api):
            assert (
                await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
            ).submission is Submission.TAKEN
            assert (await api.poll("task-1")).kind is PollKind.MISSING
        assert proxy.connections == 0


# --- polls ----------------------------------------------------------------------------------------


def task_body(status: object, *, task_id: object = "task-1", outer: str = "success", **data: Any) -> bytes:
    """Render the vendor's task answer."""
    return json.dumps(
        {"code": 0, "message": outer, "data": {"status": status, "task_id": task_id, **data}}
    ).encode()


async def test_poll_follows_a_task_to_its_success() -> None:
    """A running task is pending, an ended one carries what the vendor says of the result."""
    async with emulated() as (emulator, api):
        task_id = (await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)).upstream_task_id
        assert await api.poll(task_id) == PollOutcome(kind=PollKind.PENDING)
        task = emulator.vendor.known(task_id)
        emulator.vendor.end(task)
        outcome = await api.poll(task_id)
        assert (outcome.kind, outcome.data) == (
            PollKind.SUCCEEDED,
            kept_data(json.loads(emulator.vendor.answer(task))["data"]),
        )


@each_row(
    ("fault", "message"),
    [
        ("failed_message", "no body"),
        ("failed_string", "no body"),
        ("failed_object", "InvalidFile.NoHuman: no body"),
        ("failed", "InvalidFile.NoHuman: no body"),
        ("canceled", "the vendor reported canceled"),
    ],
)
async def test_failure_is_understood_in_each_form(fault: str, message: str) -> None:
    """The vendor's words are found in the message, in a string or in an object."""
    async with emulated() as (emulator, api):
        task_id = (await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)).upstream_task_id
        emulator.faults.inject(Fault(on="task", fault=fault, message="no body"))
        outcome = await api.poll(task_id)
        assert (outcome.kind, outcome.message) == (PollKind.FAILED, message)


@each_row(
    ("data", "outer", "words"),
    [
        ({"error": {"code": "E1", "message": "broken"}}, "success", "E1: broken"),
        ({"error": {"message": "broken"}}, "success", "broken"),
        ({"error": {"code": "E1"}}, "success", "E1"),
        ({"error": {"code": 7, "message": None}}, "success", "7"),
        ({"error": {}}, "outer", "outer"),
        ({"error": {}, "message": "inner"}, "outer", "inner"),
        ({"error": "broken"}, "outer", "broken"),
        ({"error": ""}, "outer", "outer"),
        ({"error": None, "message": None}, "outer", "outer"),
        ({"error": ["x"]}, "outer", "outer"),
        ({"message": "inner"}, "outer", "inner"),
        ({"message": "success"}, "success", "the vendor reported failed"),
        ({}, "success", "the vendor reported failed"),
    ],
)
async def test_words_of_a_failure(data: dict[str, Any], outer: str, words: str) -> None:
    """The most specific words win, and there are always some."""
    outcome = await poll(answering(answer(200, task_body("failed", outer=outer, **data))))
    assert (outcome.kind, outcome.message) == (PollKind.FAILED, words)


def spelled(*words: str) -> list[str]:
    """Spell each word in every case that a vendor might think of."""
    return [form for word in words for form in (word, word.upper(), word.capitalize())]


@each_row(
    ("status", "kind"),
    [
        *((word, PollKind.SUCCEEDED) for word in spelled("success", "succeeded", "completed", "done")),
        *((word, PollKind.FAILED) for word in spelled("failed", "error", "canceled", "cancelled", "fail")),
        *(
            (word, PollKind.PENDING)
            for word in spelled("pending", "processing", "running", "queued", "unknown")
        ),
        *((word, PollKind.PENDING) for word in ("", "success ", "successful", "\u017fuccess", "\u4e2d")),
    ],
)
async def test_status_words(status: str, kind: PollKind) -> None:
    """The vendor's words count in any case; any other word keeps polling."""
    assert (await poll(answering(answer(200, task_body(status))))).kind is kind


@each_row(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"{}",
        b'"success"',
        task_body("success")[:-1],
        b"\xff" + task_body("success"),
        b"[" * 100_000,
        task_body("success", task_id="task-2"),
        task_body("success", task_id="TASK-1"),
        task_body("success", task_id=None),
        task_body("success", task_id=1),
        task_body("success", task_id=["task-1"]),
        task_body(None),
        task_body(1),
        task_body(["success"]),
        b'{"code":0,"data":null}',
        b'{"code":0,"data":["success"]}',
        b'{"code":0,"status":"success","task_id":"task-1"}',
        b'{"code":500,"message":"Internal error"}',
        task_body("success", note="x" * MAX_ANSWER),
    ],
    ids=lambda body: repr(body[:60]),
)
async def test_garbage_says_nothing_about_the_task(body: bytes) -> None:
    """An answer that is not JSON, not about this task, or endless is no news: neither success nor failure."""
    assert (await poll(answering(answer(200, body)))).kind is PollKind.UNAVAILABLE


async def test_number_beyond_a_floats_range_does_not_spoil_a_success() -> None:
    """Such a number reads as infinite, which no JSON can hold; it becomes null, and the success stays one."""
    body = task_body("success", score=1, list=[{"a": 1}]).replace(b": 1", b": -1e400")
    outcome = await poll(answering(answer(200, body)))
    assert (outcome.kind, outcome.data["score"], outcome.data["list"]) == (
        PollKind.SUCCEEDED,
        None,
        [{"a": None}],
    )
    assert json.dumps(outcome.data, allow_nan=False)


async def test_large_answer_is_read() -> None:
    """A success of megabytes is a success, cut down to what a table holds before it is kept in memory."""
    outcome = await poll(answering(answer(200, task_body("success", note="x" * (MAX_ANSWER - 1000)))))
    assert (outcome.kind, outcome.data) == (
        PollKind.SUCCEEDED,
        {"result": {"resources": []}, "truncated": True},
    )


async def test_how_large_the_answer_of_an_ended_task_was_is_known() -> None:
    """Those that wait to be stored are bounded by it; of a task that runs nothing waits."""
    for status, size in (("success", 50_000), ("failed", 50_000), ("processing", 0)):
        body = task_body(status, note="x" * (50_000 - len(task_body(status, note=""))))
        assert (await poll(answering(answer(200, body)))).size == size


async def test_endless_answer_is_dropped() -> None:
    """An answer without end is given up at its limit, not when the memory is full."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while True:
            await connection.send(b" " * 65536)

    async with listening(script) as listener, calling(listener.origin) as api:
        assert (await api.poll("task-1")).kind is PollKind.UNAVAILABLE
        assert listener.sent < MAX_ANSWER + 16 * 2**20


@each_row(
    ("status", "kind"),
    [
        (404, PollKind.MISSING),
        (429, PollKind.THROTTLED),
        (401, PollKind.KEY_REFUSED),
        (402, PollKind.KEY_REFUSED),
        *(
            (status, PollKind.UNAVAILABLE)
            for status in (201, 204, 206, 301, 302, 304, 307, 400, 403, 405, 408, 409, 410, 422, 425, 451)
        ),
        *((status, PollKind.UNAVAILABLE) for status in (500, 501, 502, 503, 504, 520, 599)),
    ],
)
async def test_status_of_a_poll(status: int, kind: PollKind) -> None:
    """Only a 404 says that the task is missing; every other refusal is about the request, not the task."""
    async with emulated() as (emulator, api):
        task_id = (await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)).upstream_task_id
        emulator.faults.inject(Fault(on="task", fault=str(status)))
        outcome = await api.poll(task_id)
        assert outcome.kind is kind
        assert emulator.vendor.polls == 1
        assert (await api.poll(task_id)).kind is PollKind.PENDING  # the refusal leaves nothing behind


@each_row(
    ("status", "word", "kind"),
    [
        (201, "success", PollKind.SUCCEEDED),
        (202, "processing", PollKind.PENDING),
        (203, "failed", PollKind.FAILED),
        (302, "success", PollKind.UNAVAILABLE),
    ],
)
async def test_what_a_success_of_any_number_says_of_the_task_counts(
    status: int, word: str, kind: PollKind
) -> None:
    """202 of a task that runs, 203 of a proxy: else a paid result would never be seen."""
    assert (await poll(answering(answer(status, task_body(word))))).kind is kind


@each_row("fault", ["drop_before", "drop_after", "not_json", "code_nonzero", "wrong_id"])
async def test_faulty_poll_says_nothing_about_the_task(fault: str) -> None:
    """A poll that goes wrong is no news, and the next one is."""
    async with emulated() as (emulator, api):
        task_id = (await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)).upstream_task_id
        emulator.faults.inject(Fault(on="task", fault=fault))
        assert (await api.poll(task_id)).kind is PollKind.UNAVAILABLE
        assert (await api.poll(task_id)).kind is PollKind.PENDING


@each_row(
    "script",
    [
        hang_up,
        raw(reset=True),
        raw(b"HTTP/1.1 200 OK\r\nConte"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", reset=True),
        raw(b"junk\r\n\r\n"),
    ],
)
async def test_broken_poll_says_nothing_about_the_task(script: Script) -> None:
    """Whatever breaks on the wire, a poll is an outcome and never an exception."""
    assert (await poll(script)).kind is PollKind.UNAVAILABLE


async def test_poll_of_an_unreachable_vendor_says_nothing() -> None:
    """No listener, or no such name: the task may be doing fine."""
    for origin in (f"http://127.0.0.1:{await free_port()}", "http://no-such-vendor.invalid"):
        async with calling(origin) as api:
            assert (await api.poll("task-1")).kind is PollKind.UNAVAILABLE


async def test_missing_task_is_missing() -> None:
    """A task that the vendor does not know is told as such."""
    async with emulated() as (_, api):
        assert await api.poll("task-unknown") == PollOutcome(kind=PollKind.MISSING)


@each_row("task_id", ["a/b", "a?b=c", "a#b", "a b", "a%2Fb", "\u4e2d", "a\r\nX: y", "~._-:@+=", "x" * 512])
async def test_any_id_is_asked_for_as_one_path_segment(task_id: str) -> None:
    """An id is the vendor's to choose; it reaches the path quoted, and nothing else of the request."""
    async with (
        listening(answering(answer(200, task_body("pending", task_id=task_id)))) as listener,
        calling(listener.origin) as api,
    ):
        assert (await api.poll(task_id)).kind is PollKind.PENDING
        path = listener.requests[0].split(b" ")[1].decode()
        assert path.startswith("/api/v1/tasks/")
        assert not set("/?# ") & set(path.removeprefix("/api/v1/tasks/"))


async def test_id_too_long_for_a_url_says_nothing() -> None:
    """An id that no URL can hold is an outcome too."""
    async with calling("http://127.0.0.1:9") as api:
        assert (await api.poll("x" * 70_000)).kind is PollKind.UNAVAILABLE


async def test_slash_at_the_end_of_the_base_url_does_not_matter() -> None:
    """`https://api.example.com/` and `https://api.example.com` are the same vendor."""
    async with listening(answering(answer(200, TAKEN))) as listener, calling(listener.origin + "/") as api:
        assert (await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)).submission is Submission.TAKEN
        assert listener.requests[0].startswith(f"POST /api/v1/{MODEL} ".encode())


# --- answers without end, and large ones ----------------------------------------------------------


TASK = b'{"code":0,"data":{"task_id":"task-1","status":"pending"}}'


def without_end(before: bytes, again: bytes) -> Script:
    """Read the request, write `before`, then `again` for ever."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(before)
        while True:
            await connection.send(again)
            await asyncio.sleep(0)  # the reader is in the same process

    return script


def compressed(body: bytes, encoding: str = "gzip") -> bytes:
    """Render an answer in an encoding that was not asked for."""
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    return answer(200, packed, content_encoding=encoding)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "interim answers": without_end(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 1000),
    "interim answers, one by one": without_end(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "interim answers, cut anywhere": without_end(b"HTTP/1.1 10", b"2 Processing\r\n\r\nHTTP/1.1 10"),
    "headers": without_end(b"HTTP/1.1 200 OK\r\n", b"X-Again: yes\r\n" * 1000),
    "one header": without_end(b"HTTP/1.1 200 OK\r\nX-Long: ", b"a" * 65536),
    "an empty line": without_end(b"", b"\r\n" * 1000),
    "a body": without_end(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536),
    "tiny chunks": without_end(CHUNKED, b"1\r\n \r\n" * 1000),
    "a chunk's extension": without_end(CHUNKED + b"1;x=", b"a" * 65536),
    "trailers": without_end(CHUNKED + b"1\r\n{\r\n0\r\n", b"X-Again: yes\r\n" * 1000),
    "a bomb": raw(compressed(b" " * 200 * 2**20)),
    "a deflated bomb": raw(compressed(b" " * 200 * 2**20, "deflate")),
}


async def test_polls_that_are_held_stand_in_no_long_list() -> None:
    """As many as may be are held at once; of their connections httpcore looks at few with each request."""
    async with emulated(task_seconds=0.3) as (_, api):
        made = [await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG) for _ in range(3)]
        polls = [
            api.poll(made[number % 3].upstream_task_id or "", hold=True) for number in range(HOLDS_AT_ONCE)
        ]
        assert {outcome.kind for outcome in await asyncio.gather(*polls)} == {PollKind.SUCCEEDED}
        pools = [client._transport._pool for client in api._holding_clients]  # type: ignore[attr-defined]
        assert sum(len(pool.connections) for pool in pools) <= HOLDS_AT_ONCE
        assert max(len(pool.connections) for pool in pools) <= HOLDS_AT_ONCE / HOLDING_CLIENTS


@each_row("script", ENDLESS.values(), ids=ENDLESS.keys())
async def test_an_answer_without_end_is_dropped_soon(script: Script) -> None:
    """Long before its time: by its bytes, its pieces, or what comes before. A POST may have been taken."""
    async with listening(script) as listener, calling(listener.origin) as api:
        assert (await api.poll("task-1")).kind is PollKind.UNAVAILABLE
        assert (await api.poll("task-1", hold=True)).kind is PollKind.UNAVAILABLE
        assert (
            await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        ).submission is Submission.AMBIGUOUS
        assert listener.sent < 3 * (MAX_ANSWER + 16 * 2**20)  # what the sockets buffer is the machine's


@pytest.mark.parametrize("script", [without_end(b"", b"HTTP/1.1 102 Processing\r\n\r\n"), ENDLESS["a body"]])
async def test_an_answer_without_end_is_called_so(script: Script) -> None:
    """The log says what the matter is."""
    assert (await poll(script)).message == "EndlessAnswerError"


async def test_slow_bodies_end_with_the_time() -> None:
    """A byte now and then keeps a request no longer than any other."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await connection.send(b" ")
            await asyncio.sleep(0.01)

    outcome, _ = await submit(script, limit=SHORT)
    assert outcome.submission is Submission.AMBIGUOUS


async def test_a_few_interim_answers_are_no_matter() -> None:
    """As a proxy sends them."""
    interim = b"HTTP/1.1 102 Processing\r\n\r\n" * MAX_INTERIM
    outcome, _ = await submit(raw(interim + answer(200, TAKEN)))
    assert outcome.submission is Submission.TAKEN
    assert (await poll(raw(interim + answer(200, TASK)))).kind is PollKind.PENDING


async def test_what_comes_before_a_body_is_counted_anew_on_a_kept_connection() -> None:
    """A process that polls for days has read any number of bytes over one."""
    interim = b"HTTP/1.1 102 Processing\r\n\r\n" * MAX_INTERIM
    async with (
        listening(answering(interim + answer(200, TASK + b" " * MAX_HEAD))) as listener,
        calling(listener.origin) as api,
    ):
        assert [(await api.poll("task-1")).kind for _ in range(3)] == [PollKind.PENDING] * 3
        assert listener.connections == 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_answer_is_read_though_it_was_not_asked_for(encoding: str) -> None:
    """The id of a paid task may be in it."""
    async with listening(raw(compressed(TAKEN, encoding))) as listener, calling(listener.origin) as api:
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        assert (outcome.submission, outcome.upstream_task_id) == (Submission.TAKEN, "task-1")
        assert b"accept-encoding: identity" in listener.requests[0].lower()


async def test_many_large_answers_at_once_take_the_memory_of_one() -> None:
    """Each is read and parsed alone; what is kept of it is small."""
    metadata = [{"a": number % 10} for number in range(60_000)]
    body = task_body("success", result={"resources": [{"url": "https://x/1.mp4"}], "metadata": metadata})
    assert LARGE < len(body) < MAX_ANSWER
    peaks = []
    async with listening(answering(answer(200, body))) as listener, calling(listener.origin) as api:
        for polls in (1, 6):
            gc.collect()
            tracemalloc.start()
            outcomes = await asyncio.gather(*(api.poll("task-1") for _ in range(polls)))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert {outcome.kind for outcome in outcomes} == {PollKind.SUCCEEDED}
            assert outcomes[0].data == {
                "result": {"resources": [{"url": "https://x/1.mp4"}]},
                "truncated": True,
            }
    assert peaks[1] < 1.5 * peaks[0]


async def test_a_large_answer_that_never_comes_to_its_end_keeps_no_small_one_waiting() -> None:
    """Only large ones wait for each other."""

    async def script(connection: Connection) -> None:
        request = await connection.request()
        if b"/task-2 " in request:
            await connection.send(answer(200, TASK.replace(b"task-1", b"task-2")))
            return
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b" " * (LARGE + 1))
        await connection.hold()

    async with listening(script) as listener, calling(listener.origin) as api:
        hanging = asyncio.create_task(api.poll("task-1"))
        await listener.accepted.wait()
        assert (await api.poll("task-2")).kind is PollKind.PENDING
        hanging.cancel()


@each_row(
    ("text", "value"),
    [
        (b'"cut \\ud83d"', "cut ?"),
        (b"9" * 5000, None),
        (b"-" + b"9" * 5000, None),
        (b"1e400", None),
        (b"NaN", None),
        (b"-Infinity", None),
        (b'"\\ud83d\\ude00"', "😀"),
    ],
)
async def test_a_value_that_no_strict_reader_takes_does_not_spoil_a_paid_result(
    text: bytes, value: object
) -> None:
    """A prompt cut in the middle of an emoji, or a number of thousands of digits, in the answer."""
    body = (
        task_body("success", n=0, result={"resources": []})
        .replace(b'"n": 0', b'"n": ' + text)
        .replace(b'"n":0', b'"n":' + text)
    )
    outcome = await poll(answering(answer(200, body)))
    assert (outcome.kind, outcome.data["n"]) == (PollKind.SUCCEEDED, value)
    assert json.dumps(outcome.data, allow_nan=False, ensure_ascii=False).encode()
    taken = TAKEN.replace(b'"status"', b'"n":' + text + b',"status"')
    assert (await submit(answering(answer(200, taken))))[0].upstream_task_id == "task-1"


# --- how long the vendor wants to be left alone ---------------------------------------------------


@each_row("status", [200, 401, 402, 404, 429, 500, 502, 503, 504])
async def test_every_answer_about_a_task_tells_the_pause_that_the_vendor_asks_for(status: int) -> None:
    """Whatever it says of the task."""
    outcome = await poll(answering(answer(status, TASK, retry_after="120")))
    assert outcome.retry_after == timedelta(seconds=120)
    assert (await poll(answering(answer(status, TASK)))).retry_after is None


@each_row("body", [b"", b"<html>", task_body("success"), task_body("failed")])
async def test_a_success_and_an_unreadable_answer_tell_the_pause_too(body: bytes) -> None:
    """They are what they are, and more."""
    plain, asking = [
        await poll(answering(answer(200, body, **headers))) for headers in ({}, {"retry_after": "7"})
    ]
    assert asking == plain.model_copy(update={"retry_after": timedelta(seconds=7)})


@each_row(
    ("remaining", "reset_in", "least", "most"),
    [
        ("0", 90, 85, 91),
        ("-1", 90, 85, 91),
        ("0", -100, 0, 0),
        ("0", 0, 0, 0),
        ("0", 10**8, 3600, 3600),
        ("1", 90, None, None),
    ],
)
async def test_where_nothing_remains_the_pause_lasts_until_the_reset(
    remaining: str, reset_in: int, least: int | None, most: int | None
) -> None:
    """On a 2xx as on any other, at most for an hour; one that is over asks for none."""
    headers = {"x_ratelimit_remaining": remaining, "x_ratelimit_reset": str(int(time.time()) + reset_in)}
    pauses = [
        (await poll(answering(answer(200, TASK, **headers)))).retry_after,
        (await submit(answering(answer(200, TAKEN, **headers))))[0].retry_after,
    ]
    for pause in pauses:
        assert (pause is None) == (least is None)
        if pause is not None and least is not None and most is not None:
            assert least <= pause.total_seconds() <= most


async def test_nonsense_in_one_header_leaves_the_other() -> None:
    """The rate's own headers count where `Retry-After` cannot be read."""
    reset = str(int(time.time()) + 60)
    for nonsense in ("soon", "-5", "9" * 5000, "Wed, 99 Foo 2026 00:00:00 GMT"):
        script = answering(
            answer(429, b"{}", retry_after=nonsense, x_ratelimit_remaining="0", x_ratelimit_reset=reset)
        )
        pause = (await poll(script)).retry_after
        assert pause is not None
        assert 50 < pause.total_seconds() <= 3600


async def test_an_unknown_outcome_tells_the_pause() -> None:
    """503 with `Retry-After`, whether its body can be read or not."""
    for script in (
        answering(answer(503, b"{}", retry_after="120")),
        raw(b"HTTP/1.1 503 X\r\nRetry-After: 120\r\nContent-Length: 9\r\n\r\n"),
    ):
        outcome, _ = await submit(script)
        assert (outcome.submission, outcome.retry_after) == (Submission.AMBIGUOUS, timedelta(seconds=120))


# --- the balance: whether the vendor answers at all -----------------------------------------------


async def balance(script: Script, keys: ApiKey | None = None) -> FreeOutcome:
    """Ask once at a vendor that behaves as scripted."""
    async with listening(script) as listener, calling(listener.origin, keys) as api:
        return await api.balance()


async def test_the_balance_is_told_as_the_vendor_tells_it() -> None:
    """Its own JSON, with the status."""
    async with emulated() as (emulator, api):
        told = await api.balance()
        assert told == FreeOutcome(
            answered=True, status=200, body={"code": 0, "message": "success", "data": {"balance": 100.1234}}
        )
        assert emulator.vendor.submits == 0


@each_row(
    ("status", "answered"),
    [
        *((status, True) for status in (200, 204, 400, 401, 402, 403, 404, 422)),
        *((status, False) for status in (301, 302, 408, 425, 429)),
    ]
    + [(status, False) for status in (500, 502, 503, 504, 599)],
)
async def test_a_vendor_that_refuses_is_there_and_one_that_fails_is_not(
    *, status: int, answered: bool
) -> None:
    """Whatever the body is: a proxy's HTML under a 404 was served too."""
    for body in (b'{"code":1,"message":"no"}', b"<html>"):
        told = await balance(answering(answer(status, body if status != 204 else b"")))
        assert (told.answered, told.status) == (answered, status)


async def test_a_refused_key_is_read_again_when_the_balance_is_asked_for_next() -> None:
    """Once: what is free is asked after trouble; a key replaced meanwhile must not look like more of it."""
    keys = Keys(["mdlx-old", KEY])
    async with emulated(keys) as (_, api):
        assert [(await api.balance()).status for _ in range(3)] == [401, 200, 200]
        assert keys.asked == [False, True, False]


@pytest.mark.parametrize("script", [silent, hang_up, raw(b"nonsense\r\n\r\n"), raw(b"HTTP/1.1 200 OK\r\n")])
async def test_a_vendor_that_says_nothing_does_not_answer(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken or silent, and nothing is raised."""
    monkeypatch.setattr("taskhook.adapters.http.vendor.POLL_TIME", SHORT)
    told = await balance(script)
    assert (told.answered, told.status, told.body) == (False, 0, {})


async def test_an_endless_balance_is_dropped() -> None:
    """It was answered, and is not kept."""
    told = await balance(answering(answer(200, b" " * (MAX_ANSWER + 1))))
    assert (told.answered, told.status, told.body) == (True, 200, {})


# --- where the key may go -------------------------------------------------------------------------


@each_row(
    "operation",
    [
        "https://evil.example.com/api/v1/tasks/x",
        "https://api.modellix.ai.evil.example.com/api/v1/tasks/x",
        "https://evil.example.com/?https://api.modellix.ai/",
        "https://api.modellix.ai@evil.example.com/x",
        "https://api.modellix.ai:8443/x",
        "http://api.modellix.ai/api/v1/tasks/x",
        "ftp://api.modellix.ai/x",
        "api.modellix.ai/x",
        "https://[api.modellix.ai/x",
        "https://api.modellix.ai\\@evil.example.com/x",
    ],
)
async def test_the_key_goes_to_no_other_host(operation: str) -> None:
    """A URL in a task that is not its vendor's is not asked, and says nothing of the task."""
    async with listening(answering(answer(200, TAKEN))) as listener, calling(listener.origin) as api:
        outcome = await api.poll("task-1", operation=operation)
    assert (outcome.kind, listener.requests) == (PollKind.UNAVAILABLE, [])


async def test_a_task_is_asked_for_where_it_was_submitted_whatever_the_settings_say_now() -> None:
    """At the vendor's own host too, where a proxy is the origin by now; a path is one at the origin."""
    api = HttpTaskApi("https://proxy.example.com", Keys(), vendor=DASHSCOPE, tls=trust())
    for url in (
        "https://dashscope.aliyuncs.com/api/v1/tasks/x",
        "https://dashscope-intl.aliyuncs.com/api/v1/tasks/x",
        "https://w1.ap-southeast-1.maas.aliyuncs.com/api/v1/tasks/x",
        "https://proxy.example.com/api/v1/tasks/x",
    ):
        assert api._url(url) == url
    assert api._url("//evil.example.com/x") == "https://proxy.example.com//evil.example.com/x"


@each_row("named", ["https://evil.example.com/poll/1", "https://[", "poll/1", "\0"])
async def test_a_polling_url_of_another_host_loses_no_paid_task(named: str) -> None:
    """The task has an id, by which it is asked for at the vendor's own origin."""

    class Elsewhere(type(MODELLIX)):  # type: ignore[misc]  # a vendor whose answer names a URL
        def read_submission(self, *arguments: Any, **more: Any) -> SubmitOutcome:
            """Name a URL of a host that is not the vendor's."""
            outcome: SubmitOutcome = super().read_submission(*arguments, **more)
            return outcome.model_copy(update={"operation": named})

    async with listening(answering(answer(200, TAKEN))) as listener:
        api = HttpTaskApi(listener.origin, Keys(), vendor=Elsewhere(), tls=trust(), least=timedelta(0))
        outcome = await api.submit(MODEL, REQUEST, webhook_url=None, limit=LONG)
        await api.close()
    assert outcome.submission is Submission.TAKEN
    assert outcome.operation == f"{listener.origin}/api/v1/tasks/task-1"


# --- the list of the account's tasks --------------------------------------------------------------


@each_row(
    ("status", "kind"),
    [
        (429, PollKind.THROTTLED),
        (503, PollKind.UNAVAILABLE),
        (401, PollKind.KEY_REFUSED),
        (200, PollKind.SUCCEEDED),
    ],
)
async def test_the_list_tells_what_pause_is_asked_for(status: int, kind: PollKind) -> None:
    """As a poll does, whatever the status; and tasks only where there is a whole list."""
    page = json.dumps({"data": [], "total": 0}).encode()
    async with listening(answering(answer(status, page, retry_after="120"))) as listener:
        api = HttpTaskApi(listener.origin, Keys(), vendor=DASHSCOPE, tls=trust())
        now = datetime.now(UTC)
        listed = await api.tasks_made("wan2.2-animate-mix", since=now, until=now)
        await api.close()
    assert (listed.kind, listed.retry_after) == (kind, timedelta(seconds=120))
    assert listed.upstream_task_ids == (() if status == 200 else None)
