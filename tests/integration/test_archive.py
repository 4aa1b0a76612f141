"""The archive's adapters: emulated S3, originals from real servers, and both in little memory."""

import asyncio
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import boto3
import httpx
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.abc import ResolveResult
from botocore.config import Config

from taskhook.adapters.aws.s3 import CLIENT, S3Archive
from taskhook.adapters.clock import SystemClock
from taskhook.adapters.http.originals import AiohttpOriginals
from taskhook.archive.copy import PART, ArchivePorts, archive
from taskhook.core.errors import (
    ArchiveUnavailableError,
    SourceChangedError,
    SourceGoneError,
    SourceUnavailableError,
)
from taskhook.core.ports import Piece
from taskhook.core.record import State
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import Task
from tests.integration.test_guard import LOOPBACK, Names
from tests.listener import Connection, Script, answer, answering, free_port, listening
from tests.local import stack
from tests.local.bulk import BLOCK, Bulk
from tests.local.server import serving
from tests.rows import each_row
from tests.world import START, MemoryArchive, MemoryTasks, RecordingReporter

Archive = MemoryArchive | S3Archive
FIVE = 5 * 2**20  # S3 takes no shorter part but the last
RELAXED = TargetPolicy(relaxed=True)
BULK = Bulk("sample", 3 * BLOCK + 5)
WHOLE = b"".join(BULK.blocks())


def exactly(reason: str) -> str:
    """Match this text and no more: a reason goes to the log, and must name nothing else."""
    return f"^{reason}$"


# --- S3: the fake and the real one take the same exam ---------------------------------------------


def s3_client(url: str) -> Any:
    """Make a client as wiring does."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=stack.REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(**CLIENT),
    )


def test_a_link_names_the_regions_own_endpoint() -> None:
    """The global one redirects a browser that follows a link into a young bucket."""
    client = boto3.client(
        "s3",
        region_name="eu-west-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(**CLIENT),
    )
    url = client.generate_presigned_url(
        "get_object", Params={"Bucket": "results", "Key": "a/0/t"}, ExpiresIn=600
    )
    assert url.startswith("https://results.s3.eu-west-1.amazonaws.com/a/0/t?X-Amz-Algorithm=AWS4-HMAC-SHA256")
    client.close()


@pytest.fixture(params=["memory", "s3"])
def kept(request: pytest.FixtureRequest) -> Iterator[Archive]:
    """Give each archive in turn."""
    if request.param == "memory":
        yield MemoryArchive()
        return
    client = s3_client(request.getfixturevalue("account_url"))
    bucket = f"results-{os.urandom(4).hex()}"
    client.create_bucket(Bucket=bucket)
    yield S3Archive(client, bucket)
    client.close()


async def test_parts_become_a_file(kept: Archive) -> None:
    """In the order of their numbers; a part put twice is there once."""
    upload = await kept.begin("a/0/t", "video/mp4")
    assert await kept.parts("a/0/t", upload) == []
    assert await kept.link("a/0/t") is None
    for number, data in ((1, b"1" * FIVE), (2, b"x"), (2, b"2" * 7), (1, b"1" * FIVE)):
        await kept.put("a/0/t", upload, number, data)
    assert await kept.parts("a/0/t", upload) == [FIVE, 7]
    await kept.finish("a/0/t", upload)
    assert await kept.parts("a/0/t", upload) is None
    url = await kept.link("a/0/t")
    assert url is not None
    if isinstance(kept, S3Archive):
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            got = await client.get(url)
        assert (got.status_code, got.content, got.headers["content-type"]) == (
            200,
            b"1" * FIVE + b"2" * 7,
            "video/mp4",
        )


@pytest.mark.parametrize(
    ("media_type", "disposition"),
    [
        ("video/mp4", None),
        ("IMAGE/PNG", None),
        ("audio/mpeg", None),
        ("image/svg+xml", "attachment"),
        ("video/x+xml", "attachment"),
        ("text/html", "attachment"),
        ("image/png; x=text/html", "attachment"),
        ("application/octet-stream", "attachment"),
    ],
)
async def test_what_may_hold_a_script_is_not_shown(
    account_url: str, media_type: str, disposition: str | None
) -> None:
    """A browser saves it; pictures, sounds and videos it may show."""
    client = s3_client(account_url)
    bucket = f"results-{os.urandom(4).hex()}"
    client.create_bucket(Bucket=bucket)
    kept = S3Archive(client, bucket)
    upload = await kept.begin("a/0/t", media_type)
    await kept.put("a/0/t", upload, 1, b"<script>")
    await kept.finish("a/0/t", upload)
    url = await kept.link("a/0/t")
    assert url is not None
    async with httpx.AsyncClient(trust_env=False) as http:
        got = await http.get(url)
    assert (got.status_code, got.headers.get("content-disposition")) == (200, disposition)
    client.close()


async def test_what_comes_after_the_end_is_refused(kept: Archive) -> None:
    """Nothing is added to an upload that has ended, and nothing made of it; dropping it again is no error."""
    upload = await kept.begin("b/0/t", "")
    await kept.put("b/0/t", upload, 1, b"x")
    for _ in range(2):
        await kept.drop("b/0/t", upload)
    assert await kept.parts("b/0/t", upload) is None
    with pytest.raises(ArchiveUnavailableError):
        await kept.put("b/0/t", upload, 1, b"x")
    with pytest.raises(ArchiveUnavailableError):
        await kept.finish("b/0/t", upload)


async def test_a_gap_ends_the_list(account_url: str) -> None:
    """What lies behind it is put again."""
    client = s3_client(account_url)
    client.create_bucket(Bucket="gaps")
    kept = S3Archive(client, "gaps")
    upload = await kept.begin("c", "")
    for number in (1, 2, 4):
        await kept.put("c", upload, number, b"x")
    assert await kept.parts("c", upload) == [1, 1]
    client.close()


async def test_an_archive_that_is_not_there_is_unavailable() -> None:
    """Refusals and broken connections are one error, and its text names neither bucket nor key."""
    client = s3_client(f"http://127.0.0.1:{await free_port()}")
    with pytest.raises(ArchiveUnavailableError, match=exactly("EndpointConnectionError")):
        await S3Archive(client, "results").begin("secret", "")
    client.close()


# --- originals ------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def originals() -> AsyncIterator[AiohttpOriginals]:
    """Give a reader that may go to loopback, and closes what it opens."""
    reader = AiohttpOriginals(RELAXED, patience=timedelta(seconds=2))
    yield reader
    await reader.close()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[tuple[str, list[str]]]:
    """Serve a file with and without ranges, and redirects; give the origin and the ranges asked for."""
    asked: list[str] = []

    async def ranged(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("range", ""))
        return await BULK.serve(request)

    async def whole(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("range", ""))
        return web.Response(body=WHOLE, headers={"ETag": BULK.tag})

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for block in BULK.blocks():
            await response.write(block)
        return response

    async def redirected(request: web.Request) -> web.StreamResponse:
        left = int(request.match_info["left"])
        raise web.HTTPFound(f"/hops/{left - 1}" if left else "/ranged")

    app = web.Application()
    app.router.add_get("/ranged", ranged)
    app.router.add_get("/whole", whole)
    app.router.add_get("/endless", endless)
    app.router.add_get("/hops/{left}", redirected)
    async with serving(app) as origin:
        yield origin, asked


async def read_all(
    originals: AiohttpOriginals, url: str, *, start: int = 0, tag: str | None = None
) -> tuple[bytes, list[Piece]]:
    """Read to the end, in pieces of a little over a block."""
    pieces: list[Piece] = []
    while not pieces or not pieces[-1].last:
        at = start + sum(len(piece.data) for piece in pieces)
        pieces.append(
            await originals.read(url, start=at, length=BLOCK + 1, tag=pieces[0].tag if pieces else tag)
        )
    return b"".join(piece.data for piece in pieces), pieces


@pytest.mark.parametrize(
    ("path", "size"), [("ranged", BULK.size), ("whole", BULK.size), ("endless", None), ("hops/2", BULK.size)]
)
async def test_a_file_is_read_in_pieces_of_one_answer(
    originals: AiohttpOriginals, server: tuple[str, list[str]], path: str, size: int | None
) -> None:
    """Whole but for the last, with the size where the server tells it, and asked for once."""
    origin, asked = server
    read, pieces = await read_all(originals, f"{origin}/{path}")
    assert read == WHOLE
    assert {len(piece.data) for piece in pieces[:-1]} == {BLOCK + 1}
    assert {piece.size for piece in pieces} == {size}
    assert asked == ([""] if path != "endless" else [])


@pytest.mark.parametrize("path", ["ranged", "whole"])
async def test_reading_goes_on_behind_what_is_there(
    originals: AiohttpOriginals, server: tuple[str, list[str]], path: str
) -> None:
    """By a range; where the server knows none, what is there is read past."""
    origin, asked = server
    read, _ = await read_all(originals, f"{origin}/{path}", start=BLOCK + 7, tag=BULK.tag)
    assert read == WHOLE[BLOCK + 7 :]
    assert asked == [f"bytes={BLOCK + 7}-"]


@pytest.mark.parametrize("path", ["ranged", "whole"])
async def test_another_version_is_not_gone_on_with(
    originals: AiohttpOriginals, server: tuple[str, list[str]], path: str
) -> None:
    """Whether the server honours `If-Range` or not."""
    origin, _ = server
    with pytest.raises(SourceChangedError):
        await originals.read(f"{origin}/{path}", start=BLOCK, length=BLOCK, tag='"another"')
    with pytest.raises(SourceChangedError):
        await originals.read(f"{origin}/{path}", start=BULK.size + 1, length=BLOCK, tag=None)


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        (400, SourceUnavailableError, "status_400"),
        (401, SourceUnavailableError, "status_401"),
        (403, SourceGoneError, "status_403"),
        (404, SourceGoneError, "status_404"),
        (410, SourceGoneError, "status_410"),
        (405, SourceUnavailableError, "status_405"),
        (408, SourceUnavailableError, "status_408"),
        (429, SourceUnavailableError, "status_429"),
        (500, SourceUnavailableError, "status_500"),
        (503, SourceUnavailableError, "status_503"),
        (204, SourceUnavailableError, "status_204"),
        (206, SourceUnavailableError, "status_206"),
    ],
)
async def test_what_a_status_means(
    originals: AiohttpOriginals, status: int, error: type[Exception], reason: str
) -> None:
    """Gone for good, or worth another try."""
    async with listening(answering(answer(status))) as listener:
        with pytest.raises(error, match=exactly(reason)):
            await originals.read(f"{listener.origin}/x?signature=secret", start=0, length=10, tag=None)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", "ClientPayloadError"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", "ClientPayloadError"),
        (b"nonsense\r\n\r\n", "AnswerError"),
        (b"", "ServerDisconnectedError"),
    ],
    ids=["short", "cut", "nonsense", "nothing"],
)
async def test_an_answer_that_breaks_off_is_worth_another_try(
    originals: AiohttpOriginals, sent: bytes, reason: str
) -> None:
    """Half a piece is none."""

    async def script(connection: Any) -> None:
        await connection.request()
        await connection.send(sent)

    async with listening(script) as listener:
        with pytest.raises(SourceUnavailableError, match=exactly(reason)):
            await originals.read(f"{listener.origin}/x", start=0, length=10, tag=None)


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "br", "identity, zstd"])
async def test_compressed_bytes_are_not_kept(originals: AiohttpOriginals, coding: str) -> None:
    """They would be no video, and their length not the file's; neither at the start nor behind a part."""
    for status, start, more in ((200, 0, {}), (206, 10, {"content_range": "bytes 10-19/20"})):
        async with listening(
            answering(answer(status, b"0123456789", content_encoding=coding, **more))
        ) as listener:
            with pytest.raises(SourceGoneError, match=exactly("compressed")):
                await originals.read(f"{listener.origin}/x", start=start, length=10, tag=None)


@pytest.mark.parametrize("coding", ["identity", "", "aws-chunked", "binary"])
async def test_a_coding_that_is_none_is_taken_for_none(originals: AiohttpOriginals, coding: str) -> None:
    """Some storage hands out what an uploader wrote there."""
    async with listening(answering(answer(200, b"0123456789", content_encoding=coding))) as listener:
        piece = await originals.read(f"{listener.origin}/x", start=0, length=20, tag=None)
    assert (piece.data, piece.last) == (b"0123456789", True)


def without_length(then: bytes) -> Script:
    """Give ten bytes without a length, and close; answer a request for what lies behind them with `then`."""

    async def script(connection: Connection) -> None:
        request = await connection.request()
        await connection.send(
            then if b"range: bytes=10-" in request.lower() else b"HTTP/1.0 200 OK\r\n\r\n0123456789"
        )

    return script


@pytest.mark.parametrize("length", [10, 20])
@pytest.mark.parametrize(
    ("then", "error", "reason"),
    [
        (answer(416, content_range="bytes */10"), None, ""),
        (answer(416), None, ""),
        (answer(200, b"0123456789"), None, ""),
        (answer(200, b"0123456789abc"), SourceUnavailableError, "cut_short"),
        (answer(206, b"abc", content_range="bytes 10-12/13"), SourceUnavailableError, "cut_short"),
        (answer(206, b"abc", content_range="bytes 10-12/*"), SourceUnavailableError, "cut_short"),
        (answer(503), SourceUnavailableError, "status_503"),
        (answer(404), SourceGoneError, "status_404"),
        (b"HTTP/1.0 200 OK\r\n\r\n0123456789", SourceGoneError, "unknown_length"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", SourceGoneError, "unknown_length"),
        (b"", SourceUnavailableError, "ServerDisconnectedError"),
    ],
)
async def test_an_end_that_may_be_a_cut_is_looked_at_again(
    originals: AiohttpOriginals, then: bytes, error: type[Exception] | None, reason: str, length: int
) -> None:
    """A connection that closes may be broken: complete is what the server says is complete."""
    async with listening(without_length(then)) as listener:

        async def read() -> list[Piece]:
            pieces = [await originals.read(f"{listener.origin}/x", start=0, length=length, tag=None)]
            if not pieces[-1].last:  # whether it ends there was not known yet
                pieces.append(await originals.read(f"{listener.origin}/x", start=10, length=length, tag=None))
            return pieces

        if error is None:
            pieces = await read()
            assert b"".join(piece.data for piece in pieces) == b"0123456789"
            assert pieces[-1].last
        else:
            with pytest.raises(error, match=exactly(reason)):
                await read()


async def test_a_range_of_a_file_of_unknown_size_proves_no_end(originals: AiohttpOriginals) -> None:
    """It ends where the server ended it."""
    async with listening(answering(answer(206, b"0123456789", content_range="bytes 5-14/*"))) as listener:
        with pytest.raises(SourceUnavailableError, match=exactly("wrong_range")):
            await originals.read(f"{listener.origin}/x", start=5, length=20, tag=None)
        assert [b"range: bytes=5-\r\n" in request.lower() for request in listener.requests] == [True, False]
        assert b"range: bytes=15-\r\n" in listener.requests[1].lower()


@each_row(
    ("begin", "again"),
    [
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1", b";extension"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"trailer: x\r\n"),
    ],
    ids=["interim answers", "headers", "drips", "chunk extensions", "trailers"],
)
async def test_an_answer_without_end_is_left(begin: bytes, again: bytes) -> None:
    """Though something comes all the time."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(begin)
        while True:
            await connection.send(again)
            await asyncio.sleep(0.01)

    originals = AiohttpOriginals(RELAXED, patience=timedelta(seconds=10), piece_time=timedelta(seconds=0.5))
    async with listening(script) as listener, asyncio.timeout(20):
        with pytest.raises(SourceUnavailableError):
            await originals.read(f"{listener.origin}/x", start=0, length=10_000, tag=None)
    await originals.close()


async def test_a_wrong_range_is_not_taken_for_the_right_one(originals: AiohttpOriginals) -> None:
    """Bytes from elsewhere would make a copy that looks whole."""
    for range_ in ("bytes 0-9/20", "bytes x", "", f"bytes 10-19/{'9' * 5000}"):
        async with listening(answering(answer(206, b"0123456789", content_range=range_))) as listener:
            with pytest.raises(SourceUnavailableError, match=exactly("wrong_range")):
                await originals.read(f"{listener.origin}/x", start=10, length=10, tag=None)


async def test_a_tag_is_bounded(originals: AiohttpOriginals) -> None:
    """It is stored with the task, whose item has a limit."""
    async with listening(answering(answer(200, b"x", etag='"' + "e" * 5000 + '"'))) as listener:
        piece = await originals.read(f"{listener.origin}/x", start=0, length=10, tag=None)
    assert len(piece.tag) == 256


async def test_silence_is_bounded() -> None:
    """A server that stops sending does not hold the archiver up for long."""

    async def script(connection: Any) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
        await connection.hold()

    originals = AiohttpOriginals(RELAXED, patience=timedelta(seconds=0.2))
    async with listening(script) as listener:
        with pytest.raises(SourceUnavailableError, match="Timeout"):
            await originals.read(f"{listener.origin}/x", start=0, length=10, tag=None)
    await originals.close()


@each_row(
    "url", ["http://127.0.0.1/", "https://127.0.0.1/", "https://169.254.169.254/", "file:///etc/passwd", "x"]
)
async def test_only_public_places_are_asked(url: str) -> None:
    """The vendor's link is a stranger's URL; no other try would change that."""
    originals = AiohttpOriginals(TargetPolicy())
    with pytest.raises(SourceGoneError, match=exactly("forbidden_target")):
        await originals.read(url, start=0, length=10, tag=None)
    await originals.close()


class NoNames(Names):
    """Knows no name."""

    async def resolve(
        self,
        host: str,
        port: int = 0,  # noqa: ARG002
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002
    ) -> list[ResolveResult]:  # aiohttp's form
        """Note what was asked; a forbidden URL is never resolved."""
        self.asked.append(host)
        raise OSError(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize(
    "url", ["http://files.example.com/x", "http://files.example.com:80/x#t=1", "https://files.example.com/x"]
)
async def test_a_link_may_be_a_plain_one(url: str) -> None:
    """A vendor's storage often gives such; a fragment is the browser's, and not asked for."""
    names = NoNames([])
    originals = AiohttpOriginals(TargetPolicy(), resolver=names)
    with pytest.raises(SourceUnavailableError):
        await originals.read(url, start=0, length=10, tag=None)
    assert names.asked == ["files.example.com"]
    await originals.close()


async def test_a_name_that_leads_inside_is_refused_on_the_connection() -> None:
    """What the name resolves to is checked too, and nothing is sent."""
    originals = AiohttpOriginals(TargetPolicy(), resolver=Names([LOOPBACK]))
    with pytest.raises(SourceGoneError, match=exactly("forbidden_target")):
        await originals.read("https://files.example.com/x", start=0, length=10, tag=None)
    await originals.close()


async def test_redirects_are_few_and_checked(
    originals: AiohttpOriginals, server: tuple[str, list[str]]
) -> None:
    """At most three, none of them to where a link must not lead."""
    origin, asked = server
    with pytest.raises(SourceGoneError, match=exactly("too_many_redirects")):
        await originals.read(f"{origin}/hops/3", start=0, length=10, tag=None)
    async with listening(answering(answer(302, location="gopher://files.example.com/"))) as listener:
        with pytest.raises(SourceGoneError, match=exactly("forbidden_target")):
            await originals.read(f"{listener.origin}/x", start=0, length=10, tag=None)
    assert asked == []


# --- both together --------------------------------------------------------------------------------


class Sink:
    """An S3 client that keeps nothing but the number of bytes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def create_multipart_upload(self, **_request: Any) -> dict[str, Any]:
        """Begin an upload."""
        return {"UploadId": "u"}

    def upload_part(self, **request: Any) -> dict[str, Any]:
        """Count a part."""
        self.sizes.append(len(request["Body"]))
        return {}

    def list_parts(self, **_request: Any) -> dict[str, Any]:
        """List the parts."""
        return {
            "Parts": [
                {"PartNumber": number, "Size": size, "ETag": "e"}
                for number, size in enumerate(self.sizes, start=1)
            ]
        }

    def complete_multipart_upload(self, **_request: Any) -> dict[str, Any]:
        """Make nothing of them."""
        return {}


async def test_a_large_file_takes_the_memory_of_a_few_parts() -> None:
    """However large it is: two parts, and what lies in the sockets."""
    large = Bulk("large", 16 * PART)

    async def serve(request: web.Request) -> web.StreamResponse:
        return await large.serve(request)

    app = web.Application()
    app.router.add_get("/large.mp4", serve)
    client: Any = Sink()
    async with serving(app) as origin:
        tasks = MemoryTasks()
        watched = Task(
            task_id="tk_large",
            caller="alice",
            model="alibaba/wan2.2-animate-mix",
            request="{}",
            fingerprint="f",
            accepted_at=START,
            state=State.WATCHED,
        )
        data = {"result": {"resources": [{"url": f"{origin}/large.mp4"}]}}
        clock = SystemClock()
        task = await tasks.add(watched.archiving(data, clock.now(), new_token=lambda: "t"))
        ports = ArchivePorts(
            tasks=tasks,
            archive=S3Archive(client, "results"),
            originals=AiohttpOriginals(RELAXED),
            wake=None,
            clock=clock,
            reporter=RecordingReporter(),
        )
        tracemalloc.start()
        try:
            report = await archive([task.task_id], hard_stop=clock.now() + timedelta(minutes=1), ports=ports)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert report.files == {"archived": 1}
    assert client.sizes == [PART] * 16
    assert most < 6 * PART  # it is three and a half; what else this process remembers has room too
