import asyncio
import contextlib
import ctypes
import gc
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from taskhook.adapters import mediainfo, parser
from taskhook.adapters.http import media
from taskhook.adapters.http.media import AiohttpMediaProbe
from taskhook.core.errors import NotPublicError
from taskhook.core.models import Judgement, Verdict
from taskhook.core.targets import TargetPolicy
from taskhook.vendors.modellix import MODELS
from tests.corpus import IMAGE, MB, ROWS, VIDEO, Row, boxes, image, video, write_stretched
from tests.fileserver import File, handing_out
from tests.listener import Connection, Listener, Script, answer, answering, listening, silent
from tests.rows import each_row
from tests.world import RecordingReporter

RULES = {rule.field: rule for rule in MODELS["alibaba/wan2.2-animate-mix"].media}
LIMIT = timedelta(seconds=3)
HANGS_S = 60.0  # more than that after a limit is no busy machine
LATER = timedelta(seconds=60)  # for what is not about time: a loaded machine is no finding
MEDIAINFO = mediainfo.__file__
RELAXED = TargetPolicy(relaxed=True)
JPEG = image("JPEG", 300, 400)
LONG_JPEG = image("JPEG", 300, 400, icc_profile=bytes(300_000))  # not to be judged by its first range

type Look = Callable[..., Awaitable[Judgement]]


async def look(
    url: str, field: str = IMAGE, *, probe: AiohttpMediaProbe | None = None, limit: timedelta = LATER
) -> Judgement:
    """Look at a URL, and judge what was seen."""
    return RULES[field].judge(
        await (probe or AiohttpMediaProbe(RELAXED, RecordingReporter())).look(url, limit=limit)
    )


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let parsers take their time on a loaded machine, but where a test is about it."""
    monkeypatch.setattr(parser, "PARSE_TIME", LATER.total_seconds())


@pytest.fixture(autouse=True)
async def no_parser_left() -> AsyncIterator[None]:
    """Whatever happens, no parser outlives its look."""
    yield
    await gone()


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [IMAGE, VIDEO])
async def test_every_file_of_the_corpus_gets_its_verdict(field: str) -> None:
    """Every format, each limit from both sides, and what is made to deceive; none costs a megabyte."""
    rows = [row for row in ROWS if row.field == field]
    assert len(rows) == len({row.name for row in rows}) > 60
    gate = asyncio.Semaphore(4)

    async def judged(row: Row, files: dict[str, File], origin: str) -> str | None:
        async with gate:
            files[row.name] = await asyncio.to_thread(row.make)
            got = await look(f"{origin}/{row.name}", field)
            del files[row.name]
        right = (
            got.verdict is row.verdict
            and row.words in got.reason
            and (got.verdict is Verdict.FINE) == (got.reason == "")
        )
        return None if right else f"{row.name}: {got.verdict} {got.reason!r}, not {row.verdict} {row.words!r}"

    files: dict[str, File] = {}
    async with listening(handing_out(files)) as listener:
        found = await asyncio.gather(*(judged(row, files, listener.origin) for row in rows))
    assert [words for words in found if words is not None] == []


@pytest.mark.parametrize("flags", ["", "faststart"])
async def test_of_two_hundred_megabytes_less_than_one_is_read(flags: str, tmp_path: Path) -> None:
    """Wherever the index is; right at the limit, and a byte above it."""
    sample = video("mp4", 320, 240, 30, fps=30, codec="libx264", sound=True, flags=flags)
    sizes = {"heavy.mp4": 200 * MB, "heavier.mp4": 200 * MB + 1}
    for name, size in sizes.items():
        write_stretched(sample, size, tmp_path / name)
    async with listening(handing_out({name: tmp_path / name for name in sizes})) as listener:
        assert await look(f"{listener.origin}/heavy.mp4", VIDEO) == Judgement(VIDEO, Verdict.FINE)
        assert listener.sent < MB // 2
        assert listener.connections == 1
        judged = await look(f"{listener.origin}/heavier.mp4", VIDEO)
    assert "video_url is 209715201 bytes long; it must be at most 209715200 (200 MB)" in judged.reason


async def test_a_video_in_many_fragments_is_read_within_the_bound(tmp_path: Path) -> None:
    """A parser that jumps from one to the next is stopped; what it has seen decides no more than it can."""
    pieces = video("mp4", 320, 240, 29, fps=10, flags="frag_every_frame+empty_moov+default_base_moof")
    spread = tmp_path / "spread.mp4"
    _spread(pieces, spread, gap=100_000)
    async with listening(handing_out({"spread.mp4": spread})) as listener:
        judged = await look(f"{listener.origin}/spread.mp4", VIDEO)
    assert judged in {Judgement(VIDEO, Verdict.UNCHECKED, "too much to read"), Judgement(VIDEO, Verdict.FINE)}
    assert listener.sent < 1_000_000


def _spread(mp4: bytes, path: Path, *, gap: int) -> None:
    """Put an empty box of `gap` bytes before every fragment."""
    with path.open("wb") as file:
        for name, start, end in boxes(mp4):
            if name == b"moof":
                file.write(gap.to_bytes(4, "big") + b"free")
                file.seek(gap - 8, 1)
            file.write(mp4[start:end])


# --- hosts ----------------------------------------------------------------------------------------


def by_range(ranged: bytes, whole: Script) -> Script:
    """Answer requests for a range with `ranged`, and others as `whole` does."""

    async def script(connection: Connection) -> None:
        while head := await connection.reader.readuntil(b"\r\n\r\n"):
            connection.listener.requests.append(head)
            if b"\r\nrange:" in head.lower():
                await connection.send(ranged)
            else:
                connection.reader.feed_data(head)
                await whole(connection)

    return script


@pytest.mark.parametrize("status", [404, 410])
async def test_a_file_that_is_surely_not_there_is_wrong(status: int) -> None:
    """The vendor would get the same answer; it was asked for without a range too."""
    async with listening(answering(answer(status, b"no"))) as listener:
        judged = await look(listener.origin)
    assert judged == Judgement(
        IMAGE, Verdict.WRONG, f"Invalid parameters: image_url cannot be fetched: its host answers {status}"
    )
    assert [b"\r\nrange:" in request.lower() for request in listener.requests] == [True, False]


@each_row("status", [204, 206, 302, 400, 401, 403, 405, 416, 418, 429, 451, 500, 503])
async def test_an_answer_that_proves_nothing_passes(status: int) -> None:
    """A host may be busy, or dislike us, or want a `Referer`."""
    async with listening(
        answering(answer(status, b"" if status == 204 else b"<html>Are you a robot?</html>"))
    ) as listener:
        assert await look(listener.origin) == Judgement(IMAGE, Verdict.UNCHECKED, f"host answers {status}")
        assert len(listener.requests) == 2


@each_row(
    "refusal",
    [
        *(answer(status) for status in (400, 403, 404, 405, 410, 416, 429, 500, 503)),
        answer(206, JPEG, content_range="bytes 10-2536/2537"),
        answer(206, JPEG, content_range="bytes 0-2526/*"),
        answer(206, JPEG, content_range=f"bytes 0-2526/{'9' * 5000}"),
        answer(206, JPEG, content_range="nonsense"),
        answer(206, JPEG, content_range="bytes 0-2526/2527", content_encoding="gzip"),
        answer(206, JPEG),
    ],
)
async def test_a_host_that_refuses_ranges_is_asked_for_the_file(refusal: bytes) -> None:
    """Whatever it says to a range: refused, another part, of unknown size, compressed, or not told at all."""
    clip = video("mp4", 320, 240, 3)
    for field, content in ((IMAGE, JPEG), (VIDEO, clip)):
        async with listening(by_range(refusal, answering(answer(200, content)))) as listener:
            assert await look(listener.origin, field) == Judgement(field, Verdict.FINE)


async def test_a_host_that_wants_a_browser_gets_an_honest_one() -> None:
    """The name begins as theirs do, and says what asks."""

    async def picky(connection: Connection) -> None:
        while request := await connection.request():
            wanted = b"user-agent: mozilla/5.0 (compatible; taskhook/" in request.lower()
            await connection.send(answer(200, JPEG) if wanted else answer(403))

    async with listening(picky) as listener:
        assert await look(listener.origin) == Judgement(IMAGE, Verdict.FINE)


async def test_of_a_host_without_ranges_as_much_is_read_as_is_needed(tmp_path: Path) -> None:
    """What lies behind the bound stays unknown; what the first answer shows is certain: format, size."""
    sample = video("mp4", 320, 240, 3)
    for name, content in (("end", sample), ("front", video("mp4", 320, 240, 3, flags="faststart"))):
        write_stretched(content, 150 * MB, tmp_path / name)
    files: dict[str, File] = {name: tmp_path / name for name in ("end", "front")}
    files |= {
        "page": b"<html>Sign in</html>",
        "small.jpg": JPEG,
        "large.jpg": LONG_JPEG + bytes(4 * MB),
        "small.mp4": sample,
    }
    async with listening(handing_out(files, ranges=False)) as listener:
        assert await look(f"{listener.origin}/front", VIDEO) == Judgement(VIDEO, Verdict.FINE)
        assert await look(f"{listener.origin}/end", VIDEO) == Judgement(
            VIDEO, Verdict.UNCHECKED, "no range support"
        )
        assert listener.sent < 40 * MB  # most of it in the buffers between us
        assert await look(f"{listener.origin}/small.mp4", VIDEO) == Judgement(VIDEO, Verdict.FINE)
        for name in ("small.jpg", "large.jpg"):
            assert await look(f"{listener.origin}/{name}") == Judgement(IMAGE, Verdict.FINE)
        assert (await look(f"{listener.origin}/page")).reason == "host answers with a page"
        assert "is 157286400 bytes long" in (await look(f"{listener.origin}/end")).reason


@each_row(
    ("content", "judged"),
    [
        (JPEG, Judgement(IMAGE, Verdict.FINE)),
        (b"", Judgement(IMAGE, Verdict.WRONG, "Invalid format: image_url is empty")),
        (JPEG + bytes(2 * MB), Judgement(IMAGE, Verdict.UNCHECKED, "unknown size")),
        (image("JPEG", 100, 400) + bytes(2 * MB), "is 100x400 px"),
        (image("GIF", 300, 400) + bytes(2 * MB), "is GIF"),
    ],
)
async def test_a_file_of_which_no_length_is_told(content: bytes, judged: Judgement | str) -> None:
    """A short one shows its size by its end; of a long one only what is certain counts."""
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part)
        for start in range(0, len(content), 65536)
        if (part := content[start : start + 65536])
    )
    for head, body in (
        (b"transfer-encoding: chunked", chunks + b"0\r\n\r\n"),
        (b"connection: close", content),
    ):

        async def script(
            connection: Connection, sent: bytes = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body
        ) -> None:
            await connection.request()
            await connection.send(sent)

        async with listening(script) as listener:
            found = await look(listener.origin)
        assert found == judged if isinstance(judged, Judgement) else judged in found.reason


async def test_a_compressed_answer_proves_nothing_but_for_a_coding_that_is_none() -> None:
    """As browsers do, the bytes are taken as they are where the coding is unknown: hosts write anything."""
    for coding, judged in (
        *(
            (name, Judgement(IMAGE, Verdict.UNCHECKED, "host answers compressed"))
            for name in ("gzip", "x-gzip", "br", "aws-chunked, ZSTD")
        ),
        *((name, Judgement(IMAGE, Verdict.FINE)) for name in ("identity", "aws-chunked", "utf-8", "")),
    ):
        async with listening(answering(answer(200, JPEG, content_encoding=coding))) as listener:
            assert await look(listener.origin) == judged, coding


async def test_a_host_without_ranges_may_be_slow_to_begin() -> None:
    """The first bytes of a bitmap alone look like text."""
    bitmap = image("BMP", 300, 400)

    async def in_two(connection: Connection) -> None:
        await connection.request()
        await connection.send(answer(200, content_length=str(len(bitmap))) + bitmap[:2])
        await asyncio.sleep(0.2)
        await connection.send(bitmap[2:])

    async with listening(in_two) as listener:
        assert await look(listener.origin) == Judgement(IMAGE, Verdict.FINE)


async def _for_ever(connection: Connection, begin: bytes, again: bytes, pause: float) -> None:
    await connection.request()
    await connection.send(begin)
    while True:
        await connection.send(again)
        await asyncio.sleep(pause)


@each_row(
    ("begin", "again", "pause"),
    [
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100, 0.0),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", 0.01),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n\xff\r\n", 0.01),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1", b";extension" * 100, 0.0),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"trailer: x\r\n", 0.01),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", b"\xff", 0.01),
        (
            b"HTTP/1.1 206 OK\r\ncontent-length: 100000\r\ncontent-range: bytes 0-65535/100000\r\n\r\n",
            b"\xff",
            0.01,
        ),
    ],
    ids=["interim answers", "headers", "chunks", "chunk extensions", "trailers", "whole", "range"],
)
async def test_an_answer_without_end_is_left(begin: bytes, again: bytes, pause: float) -> None:
    """Whatever comes on and on, in drips or floods: the look ends in time, and says why it knows nothing."""
    async with (
        listening(lambda connection: _for_ever(connection, begin, again, pause)) as listener,
        asyncio.timeout(HANGS_S),
    ):
        judged = await look(listener.origin, limit=timedelta(seconds=0.7))
    assert judged.verdict is Verdict.UNCHECKED
    assert judged.reason in {"slow host", "connection broke"}


async def test_redirects_in_drips_are_left() -> None:
    """Each of them in time, all of them together not."""

    async def script(connection: Connection) -> None:
        while await connection.request():
            await asyncio.sleep(0.3)
            await connection.send(answer(302, location="/"))

    async with listening(script) as listener:
        assert await look(listener.origin, limit=timedelta(seconds=0.7)) == Judgement(
            IMAGE, Verdict.UNCHECKED, "slow host"
        )


async def test_a_host_that_breaks_off_proves_nothing() -> None:
    """At once, within the first range, or before the second."""

    async def at_once(connection: Connection) -> None:
        connection.reset()

    async def within(connection: Connection) -> None:
        await connection.request()
        await connection.send(answer(206, JPEG, content_range=f"bytes 0-{len(JPEG) - 1}/{len(JPEG)}")[:-100])

    async def before_the_second(connection: Connection) -> None:
        await connection.request()
        await connection.send(
            answer(
                206, LONG_JPEG[:65536], content_range=f"bytes 0-65535/{len(LONG_JPEG)}", connection="close"
            )
        )

    for script in (at_once, within, before_the_second):
        async with listening(_once(script)) as listener:
            judged = await look(listener.origin)
        assert judged == Judgement(IMAGE, Verdict.UNCHECKED, "connection broke"), script


def _once(script: Script) -> Script:
    """Serve the first connection, and reset every other one."""
    served: list[Connection] = []

    async def first_only(connection: Connection) -> None:
        served.append(connection)
        if len(served) > 1:
            connection.reset()
        else:
            await script(connection)

    return first_only


async def test_a_slow_host_is_not_waited_for() -> None:
    """Neither for its first byte nor for a later range; a size that is known by then still counts."""

    def slow_later(size: int) -> Script:
        async def script(connection: Connection) -> None:
            await connection.request()
            await connection.send(answer(206, LONG_JPEG[:65536], content_range=f"bytes 0-65535/{size}"))
            await connection.hold()

        return script

    cases = (
        (silent, "slow host"),
        (slow_later(len(LONG_JPEG)), "slow host"),
        (slow_later(6 * MB), "bytes long"),
    )
    for script, words in cases:
        async with listening(script) as listener:
            judged = await look(listener.origin, limit=timedelta(seconds=0.7))
        assert words in judged.reason


async def test_a_port_without_a_listener() -> None:
    """The vendor may know better."""
    async with listening(silent) as listener:
        pass
    assert await look(listener.origin) == Judgement(IMAGE, Verdict.UNCHECKED, "connection refused")


# --- where requests go ----------------------------------------------------------------------------


def redirecting(target: Callable[[int], str | None], file: bytes = JPEG) -> Script:
    """Answer the nth request with a redirect to the nth target, and with a file where there is none."""
    seen = 0

    async def script(connection: Connection) -> None:
        nonlocal seen
        while await connection.request():
            seen += 1
            if (location := target(seen)) is None:
                await connection.send(answer(206, file, content_range=f"bytes 0-{len(file) - 1}/{len(file)}"))
            else:
                await connection.send(answer(302, location=location))

    return script


async def test_three_redirects_are_followed_and_no_fourth() -> None:
    """Relative ones too."""
    async with listening(redirecting(lambda seen: f"/{seen}" if seen <= 3 else None)) as listener:
        assert await look(f"{listener.origin}/a?b=c#d") == Judgement(IMAGE, Verdict.FINE)
        paths = [request.split(b" ")[1] for request in listener.requests]
        assert paths == [b"/a?b=c", b"/1", b"/2", b"/3"]
    async with listening(redirecting(lambda seen: f"/{seen}" if seen <= 4 else None)) as listener:
        assert await look(listener.origin) == Judgement(IMAGE, Verdict.UNCHECKED, "too many redirects")
        assert len(listener.requests) == 4


async def test_every_hop_is_guarded() -> None:
    """A redirect to an address that is not public opens no connection there."""

    class Guarded(TargetPolicy):
        def check_address(self, address: str) -> None:
            if address != "127.0.0.1":
                raise NotPublicError("address is not public")

    async with listening(silent, hosts=("127.0.0.2",)) as inner:
        target = f"http://127.0.0.2:{inner.port}/"
        async with listening(redirecting(lambda _: target)) as listener:
            judged = await look(
                listener.origin, probe=AiohttpMediaProbe(Guarded(relaxed=True), RecordingReporter())
            )
        assert inner.connections == 0
    assert judged.verdict is Verdict.WRONG
    assert judged.reason.endswith(
        "image_url leads to a host that the vendor cannot reach: its address is not public"
    )


@each_row("target", ["ftp://127.0.0.1/", "http://u:p@127.0.0.1/", "gopher:", "http://[", "{origin}/own"])
async def test_a_redirect_to_where_no_look_goes_proves_nothing(target: str) -> None:
    """Other schemes, credentials, nonsense, and this deployment, whose files the vendor may well fetch."""
    async with (
        listening(silent) as own,
        listening(redirecting(lambda _: target.format(origin=own.origin))) as listener,
    ):
        policy = TargetPolicy(relaxed=True, own_origins=(own.origin,))
        judged = await look(listener.origin, probe=AiohttpMediaProbe(policy, RecordingReporter()))
        assert (own.connections, len(listener.requests)) == (0, 1)
    assert judged.verdict is Verdict.UNCHECKED


class FixedResolver(AbstractResolver):
    """Gives every name one address, or no answer for a while."""

    def __init__(self, address: str | None, pause: float = 0.0) -> None:
        self.address = address
        self.pause = pause
        self.asked: list[str] = []

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002  # the base class's own
    ) -> list[ResolveResult]:
        """Look it up."""
        self.asked.append(host)
        await asyncio.sleep(self.pause)
        if self.address is None:
            raise OSError(socket.EAI_NONAME, "Name or service not known")
        return [
            ResolveResult(
                hostname=host,
                host=self.address,
                port=port,
                family=socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Have nothing to close."""


@each_row(
    "url",
    [
        "http://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://2130706433:{port}/",
        "http://inner.example.com:{port}/",
    ],
)
async def test_a_file_that_is_not_public_is_wrong_and_not_asked_for(url: str) -> None:
    """Spelled out, or by a name that leads there."""
    async with listening(silent) as listener:
        probe = AiohttpMediaProbe(TargetPolicy(), RecordingReporter(), resolver=FixedResolver("127.0.0.1"))
        judged = await look(url.format(port=listener.port), probe=probe)
        assert listener.connections == 0
    assert judged.verdict is Verdict.WRONG
    assert "image_url leads to a host that the vendor cannot reach: its " in judged.reason


async def test_a_lookup_that_hangs_holds_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's threads are for calls to AWS; a dead name server holds one long after the look is over."""
    answers = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.wait(LATER.total_seconds()) and [])
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    try:
        assert (await look("https://dead.example.com/a.jpg")).reason == "name does not resolve"
        async with asyncio.timeout(LATER.total_seconds() / 2):
            await asyncio.to_thread(int)
    finally:
        answers.set()


async def test_a_name_that_does_not_resolve_costs_a_second_and_that_once_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It passes, for the vendor may know it; and a name server that is silent holds up no caller for long."""
    passes = Judgement(IMAGE, Verdict.UNCHECKED, "name does not resolve")
    unknown, slow = FixedResolver(None), FixedResolver("127.0.0.1", pause=600)  # as good as never
    for resolver in (unknown, slow):
        probe = AiohttpMediaProbe(RELAXED, RecordingReporter(), resolver=resolver)
        for _ in range(3):
            assert await look("https://unknown.example.com/a.jpg", probe=probe) == passes
        assert resolver.asked == ["unknown.example.com"]
        monkeypatch.setattr(media, "monotonic", lambda: time.monotonic() + 61)
        await look("https://unknown.example.com/a.jpg", probe=probe)
        assert len(resolver.asked) == 2
        monkeypatch.undo()


# --- the parser -----------------------------------------------------------------------------------


def forked(deed: str) -> str:
    """Make a program that does this for each file, in place of parsing."""
    return (
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('m', {MEDIAINFO!r})\n"
        "m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m)\n"
        f"def deed():\n    exec({deed!r}, {{}})\n    import sys; sys.stdout.flush()\n"
        "m.serve(deed)\n"
    )


def is_parser(process: psutil.Process) -> bool:
    """Tell by its command line, which a process that has ended has not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return mediainfo.__file__ in process.cmdline()
    return False


def is_forked(process: psutil.Process) -> bool:
    """Tell a parser whose parent is one, too; a process that has ended has no parent."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = process.parent()
        return parent is not None and is_parser(process) and is_parser(parent)
    return False


def forking() -> set[psutil.Process]:
    """List the processes that fork parsers: of this test's probe, and of others that are warm still."""
    return {child for child in psutil.Process().children() if is_parser(child)}


def parsers() -> list[psutil.Process]:
    """List the processes that were forked for a file each."""
    return [child for child in psutil.Process().children(recursive=True) if is_forked(child)]


async def gone() -> None:
    """Wait until no file is parsed any more."""
    async with asyncio.timeout(LATER.total_seconds()):
        while parsers():  # noqa: ASYNC110  # another process's end is no event here
            await asyncio.sleep(0.02)


async def test_a_look_that_is_canceled_leaves_no_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is what forks the parsers lost with it: the next file is parsed."""
    path = tmp_path / "parser.py"
    monkeypatch.setattr(parser, "_PROGRAM", str(path))
    path.write_text(forked("import time; time.sleep(600)"))
    monkeypatch.setattr(mediainfo, "__file__", str(path))  # by which a parser is known
    probe = AiohttpMediaProbe(RELAXED, RecordingReporter())
    async with listening(handing_out({"a.jpg": JPEG})) as listener:
        for _ in range(3):
            looking = asyncio.create_task(look(f"{listener.origin}/a.jpg", probe=probe))
            async with asyncio.timeout(LATER.total_seconds()):
                while not parsers():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            looking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await looking
            await gone()


async def test_where_what_forks_the_parsers_has_died_it_is_started_again() -> None:
    """A file that is parsed just then passes unchecked; the next one is looked at."""
    others, probe = forking(), AiohttpMediaProbe(RELAXED, RecordingReporter())
    async with listening(handing_out({"a.jpg": JPEG})) as listener:
        for _ in range(3):
            assert await look(f"{listener.origin}/a.jpg", probe=probe) == Judgement(IMAGE, Verdict.FINE)
            [forks] = forking() - others
            forks.kill()
            psutil.wait_procs([forks])


async def test_one_process_forks_all_parsers_and_ends_with_the_probe() -> None:
    """What is slow to load is loaded once, before the first look."""
    others, probe = forking(), AiohttpMediaProbe(RELAXED, RecordingReporter())
    probe.start()
    started = forking() - others
    async with listening(handing_out({"a.jpg": JPEG})) as listener:
        await asyncio.gather(*(look(f"{listener.origin}/a.jpg", probe=probe) for _ in range(5)))
    assert len(started) == 1
    assert forking() - others == started
    del probe
    gc.collect()
    assert forking() <= others


async def test_the_parser_is_shut_in() -> None:
    """No environment but its interpreter's, no files, no sockets, no processes, little memory and time."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def second_range_later(connection: Connection) -> None:
        for start, end in ((0, 65536), (65536, len(LONG_JPEG))):
            if start:
                asked.set()
                await go_on.wait()
            await connection.request()
            await connection.send(
                answer(206, LONG_JPEG[start:end], content_range=f"bytes {start}-{end - 1}/{len(LONG_JPEG)}")
            )
        await connection.hold()

    async with listening(second_range_later) as listener:
        looking = asyncio.create_task(look(listener.origin))
        await asyncio.wait_for(asked.wait(), LATER.total_seconds())
        children: list[psutil.Process] = []
        async with asyncio.timeout(LATER.total_seconds()):
            while not any(child.rlimit(psutil.RLIMIT_NOFILE) == (0, 0) for child in children):
                await asyncio.sleep(0.02)
                children = parsers()
        [child] = children
        assert set(child.environ()) <= {"LD_LIBRARY_PATH"}
        assert (
            child.rlimit(psutil.RLIMIT_NPROC)
            == child.rlimit(psutil.RLIMIT_FSIZE)
            == child.rlimit(psutil.RLIMIT_CORE)
            == (0, 0)
        )
        assert child.rlimit(psutil.RLIMIT_AS) == (mediainfo.MEMORY, mediainfo.MEMORY)
        assert child.rlimit(psutil.RLIMIT_CPU) == (mediainfo.CPU_TIME, mediainfo.CPU_TIME)
        assert child.net_connections() == []
        assert {opened.fd for opened in child.open_files()} == set()
        assert child.num_fds() == 3  # its connection, twice, and where stderr is lost
        go_on.set()
        await looking


def test_what_is_shut_in_opens_nothing() -> None:
    """The limits hold: tried in a process that has shut itself in."""
    program = (
        "import importlib.util, os, socket, sys\n"
        f"spec = importlib.util.spec_from_file_location('m', {mediainfo.__file__!r})\n"
        "m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m)\n"
        "m._refuse_calls = lambda: False; m.shut_in()\n"  # as where the kernel knows no such filter
        "forbidden = [lambda: open('/proc/self/environ'), socket.socket]\n"
        "forbidden += [lambda: os.dup(1), lambda: bytearray(1 << 28)]\n"
        "for attempt in forbidden:\n"
        "    try: attempt()\n"
        "    except (OSError, MemoryError) as error: print(type(error).__name__)\n"
    )
    tried = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert tried.stdout.split() == ["OSError", "OSError", "OSError", "MemoryError"]


# Run as a user without rights, as on Lambda: a process, and its child that was taken over and tries what it
# may do.
TAKEN_OVER = """
import ctypes, errno, importlib.util, json, os, signal, sys
path, hidden, confined = sys.argv[1], *map(int, sys.argv[2:])
spec = importlib.util.spec_from_file_location("m", path)
m = importlib.util.module_from_spec(spec)
spec.loader.exec_module(m)
if os.getuid() == 0:
    os.setgroups([]), os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(4, 1, 0, 0, 0)  # as it is after a start, and not after a change of user
if hidden:
    m.hide_memory()
secret, room, parent = ctypes.create_string_buffer(b"secret"), ctypes.create_string_buffer(16), os.getpid()

class Piece(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("length", ctypes.c_size_t))

def piece(buffer):
    return ctypes.byref(Piece(ctypes.addressof(buffer), 6))

def fork():
    if (made := libc.fork()) == 0:
        os._exit(0)
    return made

attempts = {
    "read its memory": lambda: libc.process_vm_readv(parent, piece(room), 1, piece(secret), 1, 0),
    "write its memory": lambda: libc.process_vm_writev(parent, piece(secret), 1, piece(secret), 1, 0),
    "open its memory": lambda: libc.open(f"/proc/{parent}/mem".encode(), os.O_RDWR),
    "read its environment": lambda: libc.open(f"/proc/{parent}/environ".encode(), os.O_RDONLY),
    "trace it": lambda: libc.ptrace(0x4206, parent, 0, 0),  # PTRACE_SEIZE, which does not stop it
    "limit it": lambda: libc.prlimit(parent, 7, None, ctypes.byref((ctypes.c_ulong * 2)())),
    "signal it": lambda: libc.kill(parent, signal.SIGCONT),
    "signal its thread": lambda: libc.tgkill(parent, parent, signal.SIGCONT),
    "make a socket": lambda: libc.socket(2, 1, 0),
    "connect": lambda: libc.connect(0, b"\\2\\0" + bytes(14), 16),
    "open to write": lambda: libc.open(b"/dev/null", os.O_WRONLY),
    "execute": lambda: libc.execve(b"/nowhere", None, None),
    "fork": fork,
    "make executable memory": lambda: libc.mprotect(ctypes.c_void_p(ctypes.addressof(room) & ~4095), 4096, 7),
    "lift its limits": lambda: libc.setrlimit(7, ctypes.byref((ctypes.c_ulong * 2)())),
    "take the filter off": lambda: libc.prctl(22, 0, 0, 0, 0),
}
reader, writer = os.pipe()
if os.fork() == 0:
    held = m.shut_in() if confined else None
    found = {}
    for name, attempt in attempts.items():
        ctypes.set_errno(0)
        found[name] = errno.errorcode[ctypes.get_errno()] if attempt() < 0 else ""
    os.write(writer, json.dumps({"uid": os.getuid(), "held": held, "found": found}).encode())
    os._exit(0)
os.wait()
print(os.read(reader, 65536).decode())
"""
OF_ITS_PARENT = {"read its memory", "write its memory", "open its memory", "read its environment", "trace it"}


def taken_over(*, hidden: bool, confined: bool) -> dict[str, str]:
    """Try all of it; give what each attempt met."""
    command = [
        sys.executable,
        "-I",
        "-c",
        TAKEN_OVER,
        mediainfo.__file__,
        str(int(hidden)),
        str(int(confined)),
    ]
    done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert done["uid"] != 0
    if done["held"] is False:
        pytest.skip("this kernel takes no filter of system calls")
    found: dict[str, str] = done["found"]
    return found


def test_what_a_parser_could_do_that_is_not_shut_in() -> None:
    """Without this, the two tests below would prove nothing."""
    found = taken_over(hidden=False, confined=False)
    assert {name for name, error in found.items() if error == ""} >= OF_ITS_PARENT | {
        "limit it",
        "signal it",
        "fork",
        "make a socket",
    }
    assert set(found.values()) <= {"", "ENOTSOCK", "ENOENT", "EINVAL"}


def test_a_process_that_has_hidden_its_memory_shows_none() -> None:
    """Where the kernel takes no filter, this is what holds."""
    found = taken_over(hidden=True, confined=False)
    assert {found[name] for name in OF_ITS_PARENT} == {"EPERM", "EACCES"}


def test_what_is_shut_in_can_only_parse() -> None:
    """The kernel refuses everything else, whatever the parent looks like."""
    found = taken_over(hidden=False, confined=True)
    assert len(found) == 16
    assert set(found.values()) == {"EPERM"}, found


def test_every_architecture_has_its_own_filter() -> None:
    """No call is named twice, and each is looked for under the number that it has there."""
    filters = {name: mediainfo._filter(*machine) for name, machine in mediainfo._MACHINES.items()}
    assert len(set(filters.values())) == len(filters) == 2
    calls = (mediainfo._CALLS | mediainfo._MEMORY_CALLS).values()
    assert all(len(column) == len(set(column)) for column in zip(*calls, strict=True))


async def test_the_probe_hides_its_memory() -> None:
    """From the parser, which runs as the same user."""
    libc = ctypes.CDLL(None)
    libc.prctl(4, 1, 0, 0, 0)
    AiohttpMediaProbe(RELAXED, RecordingReporter())
    assert libc.prctl(3, 0, 0, 0, 0) == 0


async def test_a_kernel_without_the_filter_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look goes on with what holds."""
    told = RecordingReporter()
    for confined in (True, False):
        path = tmp_path / "parser.py"
        path.write_text(forked(f"print({json.dumps(FOUND | {'confined': confined})!r})"))
        monkeypatch.setattr(parser, "_PROGRAM", str(path))
        probe = AiohttpMediaProbe(RELAXED, told)
        async with listening(handing_out({"a.jpg": JPEG})) as listener:
            for _ in range(2):
                assert await look(f"{listener.origin}/a.jpg", probe=probe) == Judgement(IMAGE, Verdict.FINE)
        assert told.events == [("parser.unconfined", {})][: not confined]


async def test_nothing_but_the_vendors_formats_reaches_the_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything else is named, or not known, by its first bytes alone."""
    path = tmp_path / "parser.py"
    path.write_text(forked(f"open({str(tmp_path / 'called')!r}, 'w')"))
    monkeypatch.setattr(parser, "_PROGRAM", str(path))
    others: list[bytes] = [image(kind, 300, 400) for kind in ("GIF", "TIFF", "JPEG2000", "ICO", "AVIF")]
    others += [
        video(kind, 320, 240, 3, codec=codec, fps=25)
        for kind, codec in (("matroska", "mpeg4"), ("mpegts", "mpeg4"), ("flv", "flv"))
    ]
    others += [
        bytes(5000),
        random.Random(1).randbytes(5000),
        b"\x7fELF" + bytes(500),
        b"RIFF" + bytes(500),
        b"BM" + bytes(500),
    ]
    async with listening(
        handing_out({str(number): content for number, content in enumerate(others)})
    ) as listener:
        for number in range(len(others)):
            judged = await look(f"{listener.origin}/{number}")
            assert judged.verdict is Verdict.WRONG or judged.reason == "unknown format", (number, judged)
        assert not (tmp_path / "called").exists()
    async with listening(handing_out({"a.jpg": JPEG})) as listener:
        await look(f"{listener.origin}/a.jpg")
    assert (tmp_path / "called").exists()


FOUND = {
    "known": True,
    "tracks": ["Image"],
    "width": 300,
    "height": 400,
    "seconds": [],
    "cut_off": False,
    "confined": True,
}
EVIL = {
    "burns": "while True: pass",
    "sleeps": "import time; time.sleep(60)",
    "dies": "import os; os.abort()",
    "floods": "print('x' * 1_000_000)",
    "wants too much": "print('read 5 1000000000000')",
    "wants what is before": "print('read -5 10')",
    "wants what is behind": "while True: print('read 99999999999 8192', flush=True)",
    "injects": f"print({json.dumps(FOUND | {'tracks': ['<script>']})!r})",
    "is no number": f"print({json.dumps(FOUND | {'seconds': [float('nan')]})!r})",
    "is no integer": f"print({json.dumps(FOUND | {'width': 'wide'})!r})",
    "says more": f"print({json.dumps(FOUND | {'failure': 'x'})!r})",
    "asks for ever": """
import sys
at = 0
while True:
    print("read", at, 8192, flush=True)
    sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(4)))
    at += 99999
""",
}


@pytest.mark.parametrize("deed", EVIL)
async def test_a_parser_that_was_taken_over_gains_nothing(
    deed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs, dies, talks nonsense, or asks for ever: what comes is a verdict, in time, and it is gone."""
    path = tmp_path / "parser.py"
    path.write_text(forked(EVIL[deed]))
    monkeypatch.setattr(parser, "_PROGRAM", str(path))
    monkeypatch.setattr(parser, "PARSE_TIME", 0.6)
    large = JPEG + bytes(4 * MB)
    async with listening(handing_out({"a.jpg": large})) as listener:
        judged = await look(f"{listener.origin}/a.jpg")
    assert judged.verdict is Verdict.UNCHECKED
    assert judged.reason in {"took too long to read", "cannot be parsed", "too much to read"}
    assert listener.sent < MB


# --- fuzz -----------------------------------------------------------------------------------------


def mutated(dice: random.Random) -> bytes:
    """Break one of the good files: bits, lengths, order, or end."""
    content = bytearray(dice.choice(_SEEDS))
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(min(len(content), dice.choice((64, 512, len(content)))))
        match dice.randrange(5):
            case 0:
                content[at] ^= 1 << dice.randrange(8)
            case 1:
                content[at : at + 4] = dice.choice(
                    (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\x80\0\0\0")
                )
            case 2:
                content[at : at + dice.randint(1, 64)] = dice.randbytes(dice.randint(0, 64))
            case 3:
                other = dice.randrange(len(content))
                content[at : at + 32] = content[other : other + 32]
            case _ if len(content) > 200:
                del content[dice.randrange(100, len(content)) :]
    return bytes(content)


_SEEDS = [
    *(image(kind, 300, 400) for kind in ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")),
    image("JPEG", 300, 400, exif=b"Exif\0\0II*\0\x08\0\0\0" + bytes(500)),
    *(
        video(kind, 320, 240, 3, codec=codec)
        for kind in ("mp4", "mov", "avi")
        for codec in ("mpeg4", "libx264")
    ),
    video("mp4", 320, 240, 3, codec="libx264", flags="frag_keyframe+empty_moov"),
    video("matroska", 320, 240, 3),
    video("mpegts", 320, 240, 3, fps=25),
]


@pytest.mark.timeout(1800)
async def test_no_broken_file_crashes_hangs_or_is_read_past_its_bound(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same broken files every time; `--mutations N` tries others and more."""
    count: int = request.config.getoption("--mutations")
    monkeypatch.setattr(parser, "PARSE_TIME", 2.0)
    dice, gate = random.Random(count), asyncio.Semaphore(3)
    files: dict[str, File] = {}

    async def tried(number: int, origin: str, content: bytes) -> str | None:
        async with gate:
            name = f"{number}"
            files[name] = content
            began = time.monotonic()
            judged = {
                field: await look(f"{origin}/{name}", field, limit=LIMIT)
                for field in (dice.choice((IMAGE, VIDEO)),)
            }
            took = time.monotonic() - began
            del files[name]
        odd = took > LIMIT.total_seconds() + HANGS_S or any(
            "connection" in one.reason for one in judged.values()
        )
        return f"{number}: {took:.1f} s, {judged}" if odd else None

    async with listening(handing_out(files)) as listener:
        broken = [mutated(dice) for _ in range(count)]
        found: list[Any] = await asyncio.gather(
            *(tried(number, listener.origin, content) for number, content in enumerate(broken))
        )
        assert _read_at_most_once(listener, broken)
    assert [words for words in found if words is not None] == []


def _read_at_most_once(listener: Listener, files: list[bytes]) -> bool:
    """Tell whether no more was sent than the files hold, headers apart, with some ranges read twice."""
    return listener.sent < sum(map(len, files)) * 2 + 1000 * len(listener.requests)
