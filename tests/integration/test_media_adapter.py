import asyncio
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

from taskhook.adapters import media, mediainfo
from taskhook.adapters.media import AiohttpMediaProbe
from taskhook.models import MODELS, Judgement, Verdict
from taskhook.targets import NotPublicError, TargetPolicy
from tests.corpus import IMAGE, MB, ROWS, VIDEO, Row, boxes, image, video, write_stretched
from tests.fileserver import File, handing_out
from tests.listener import Connection, Listener, Script, answer, answering, listening, silent

RULES = {rule.field: rule for rule in MODELS["alibaba/wan2.2-animate-mix"].media}
LIMIT = timedelta(seconds=3)
LATER = timedelta(seconds=20)  # for what is not about time: a loaded machine is no finding
RELAXED = TargetPolicy(relaxed=True)
JPEG = image("JPEG", 300, 400)
LONG_JPEG = image("JPEG", 300, 400, icc_profile=bytes(300_000))  # not to be judged by its first range

type Look = Callable[..., Awaitable[Judgement]]


async def look(url: str, field: str = IMAGE, *, probe: AiohttpMediaProbe | None = None, limit: timedelta = LATER) -> Judgement:
    """Look at a URL, and judge what was seen."""
    return RULES[field].judge(await (probe or AiohttpMediaProbe(RELAXED)).look(url, limit=limit))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let parsers take their time on a loaded machine, but where a test is about it."""
    monkeypatch.setattr(media, "PARSE_TIME", LATER.total_seconds())


@pytest.fixture(autouse=True)
async def no_child_left() -> AsyncIterator[None]:
    """Whatever happens, no parser outlives its look."""
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before


# --- verdicts ---------------------------------------------------------------------------------------------------------------


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
        right = got.verdict is row.verdict and row.words in got.reason and (got.verdict is Verdict.FINE) == (got.reason == "")
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
    """A parser that jumps from one to the next is stopped; what it has seen decides nothing that it cannot."""
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


# --- hosts ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_a_file_that_is_surely_not_there_is_wrong(status: int) -> None:
    """The vendor would get the same answer."""
    async with listening(answering(answer(status, b"no"))) as listener:
        judged = await look(listener.origin)
    assert judged == Judgement(IMAGE, Verdict.WRONG, f"Invalid parameters: image_url cannot be fetched: its host answers {status}")


@pytest.mark.parametrize("status", [204, 302, 400, 405, 418, 429, 500, 503])
async def test_an_answer_that_proves_nothing_passes(status: int) -> None:
    """A host may be busy, or dislike us."""
    async with listening(answering(answer(status))) as listener:
        assert await look(listener.origin) == Judgement(IMAGE, Verdict.UNCHECKED, f"host answers {status}")


async def test_a_host_without_ranges_is_not_downloaded_from(tmp_path: Path) -> None:
    """It passes, but for what its first answer shows: a page, or a size above the limit."""
    write_stretched(video("mp4", 320, 240, 3), 150 * MB, tmp_path / "whole.mp4")
    files: dict[str, File] = {"whole.mp4": tmp_path / "whole.mp4", "page": b"<html>Sign in</html>", "small.jpg": JPEG}
    async with listening(handing_out(files, ranges=False)) as listener:
        passes = Judgement(VIDEO, Verdict.UNCHECKED, "no range support")
        assert await look(f"{listener.origin}/whole.mp4", VIDEO) == passes
        assert listener.sent < 20 * MB  # most of it in the buffers between us
        assert (await look(f"{listener.origin}/small.jpg")).reason == "no range support"
        assert "is text" in (await look(f"{listener.origin}/page")).reason
        assert "is 157286400 bytes long" in (await look(f"{listener.origin}/whole.mp4")).reason


async def test_a_host_without_ranges_may_be_slow_to_begin() -> None:
    """The first bytes of a bitmap alone look like text."""
    bitmap = image("BMP", 300, 400)

    async def in_two(connection: Connection) -> None:
        await connection.request()
        await connection.send(answer(200, content_length=str(len(bitmap))) + bitmap[:2])
        await asyncio.sleep(0.2)
        await connection.send(bitmap[2:])

    async with listening(in_two) as listener:
        assert await look(listener.origin) == Judgement(IMAGE, Verdict.UNCHECKED, "no range support")


@pytest.mark.parametrize(
    "said",
    [
        {"content_range": "bytes 10-2536/2537"},
        {"content_range": "bytes 0-2526/*"},
        {"content_range": "nonsense"},
        {"content_range": "bytes 0-2526/2527", "content_encoding": "gzip"},
        {},
    ],
)
async def test_a_range_that_is_none_is_not_believed(said: dict[str, str]) -> None:
    """Another part, of unknown size, compressed, or not said at all."""
    async with listening(answering(answer(206, JPEG, **said))) as listener:
        assert await look(listener.origin) == Judgement(IMAGE, Verdict.UNCHECKED, "no range support")


async def test_a_host_that_breaks_off_proves_nothing() -> None:
    """At once, within the first range, or before the second."""

    async def at_once(connection: Connection) -> None:
        connection.reset()

    async def within(connection: Connection) -> None:
        await connection.request()
        await connection.send(answer(206, JPEG, content_range=f"bytes 0-{len(JPEG) - 1}/{len(JPEG)}")[:-100])

    async def before_the_second(connection: Connection) -> None:
        await connection.request()
        await connection.send(answer(206, LONG_JPEG[:65536], content_range=f"bytes 0-65535/{len(LONG_JPEG)}", connection="close"))

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

    cases = ((silent, "slow host"), (slow_later(len(LONG_JPEG)), "slow host"), (slow_later(6 * MB), "bytes long"))
    for script, words in cases:
        async with listening(script) as listener:
            began = time.monotonic()
            judged = await look(listener.origin, limit=timedelta(seconds=0.7))
            assert time.monotonic() - began < 2
        assert words in judged.reason


async def test_nobody_listens() -> None:
    """The vendor may know better."""
    async with listening(silent) as listener:
        pass
    assert await look(listener.origin) == Judgement(IMAGE, Verdict.UNCHECKED, "connection refused")


# --- where requests go --------------------------------------------------------------------------------------------------------


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
            judged = await look(listener.origin, probe=AiohttpMediaProbe(Guarded(relaxed=True)))
        assert inner.connections == 0
    assert judged.verdict is Verdict.WRONG
    assert judged.reason.endswith("image_url leads to a host that the vendor cannot reach: its address is not public")


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/", "http://u:p@127.0.0.1/", "gopher:", "http://[", "{origin}/own"])
async def test_a_redirect_to_where_nobody_asks_proves_nothing(target: str) -> None:
    """Other schemes, credentials, nonsense, and this deployment itself, whose files the vendor may well fetch."""
    async with listening(silent) as own, listening(redirecting(lambda _: target.format(origin=own.origin))) as listener:
        policy = TargetPolicy(relaxed=True, own_origins=(own.origin,))
        judged = await look(listener.origin, probe=AiohttpMediaProbe(policy))
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
            ResolveResult(hostname=host, host=self.address, port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST)
        ]

    async def close(self) -> None:
        """Have nothing to close."""


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://2130706433:{port}/", "http://inner.example.com:{port}/"]
)
async def test_a_file_that_is_not_public_is_wrong_and_not_asked_for(url: str) -> None:
    """Spelled out, or by a name that leads there."""
    async with listening(silent) as listener:
        probe = AiohttpMediaProbe(TargetPolicy(), resolver=FixedResolver("127.0.0.1"))
        judged = await look(url.format(port=listener.port), probe=probe)
        assert listener.connections == 0
    assert judged.verdict is Verdict.WRONG
    assert "image_url leads to a host that the vendor cannot reach: its " in judged.reason


async def test_a_lookup_that_hangs_holds_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's own threads are for calls to AWS; a dead name server holds one for long after the look is over."""
    answers = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.wait(10) and [])
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    try:
        assert (await look("https://dead.example.com/a.jpg")).reason == "name does not resolve"
        async with asyncio.timeout(1):
            await asyncio.to_thread(int)
    finally:
        answers.set()


async def test_a_name_that_does_not_resolve_costs_a_second_and_that_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes, for the vendor may know it; and a name server that is silent holds up no caller for long."""
    passes = Judgement(IMAGE, Verdict.UNCHECKED, "name does not resolve")
    unknown, slow = FixedResolver(None), FixedResolver("127.0.0.1", pause=30)
    for resolver in (unknown, slow):
        probe = AiohttpMediaProbe(RELAXED, resolver=resolver)
        began = time.monotonic()
        for _ in range(3):
            assert await look("https://unknown.example.com/a.jpg", probe=probe) == passes
        assert time.monotonic() - began < 3
        assert resolver.asked == ["unknown.example.com"]
        monkeypatch.setattr(media, "monotonic", lambda: time.monotonic() + 61)
        await look("https://unknown.example.com/a.jpg", probe=probe)
        assert len(resolver.asked) == 2
        monkeypatch.undo()


# --- the parser ---------------------------------------------------------------------------------------------------------------


async def test_the_parser_is_shut_in() -> None:
    """No environment but where its interpreter lies, no files, no sockets, no processes, little memory and time."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def second_range_later(connection: Connection) -> None:
        for start, end in ((0, 65536), (65536, len(LONG_JPEG))):
            if start:
                asked.set()
                await go_on.wait()
            await connection.request()
            await connection.send(answer(206, LONG_JPEG[start:end], content_range=f"bytes {start}-{end - 1}/{len(LONG_JPEG)}"))
        await connection.hold()

    async with listening(second_range_later) as listener:
        looking = asyncio.create_task(look(listener.origin))
        await asyncio.wait_for(asked.wait(), 10)
        children: list[psutil.Process] = []
        async with asyncio.timeout(10):
            while not any(child.rlimit(psutil.RLIMIT_NOFILE) == (0, 0) for child in children):
                await asyncio.sleep(0.02)
                children = [child for child in psutil.Process().children() if mediainfo.__file__ in child.cmdline()]
        [child] = children
        assert set(child.environ()) <= {"LD_LIBRARY_PATH"}
        assert child.rlimit(psutil.RLIMIT_NPROC) == child.rlimit(psutil.RLIMIT_FSIZE) == child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert child.rlimit(psutil.RLIMIT_AS) == (mediainfo.MEMORY, mediainfo.MEMORY)
        assert child.rlimit(psutil.RLIMIT_CPU) == (mediainfo.CPU_TIME, mediainfo.CPU_TIME)
        assert child.net_connections() == []
        assert {opened.fd for opened in child.open_files()} == set()
        go_on.set()
        await looking


def test_what_is_shut_in_opens_nothing() -> None:
    """The limits hold: tried in a process that has shut itself in."""
    program = (
        "import importlib.util, os, socket, sys\n"
        f"spec = importlib.util.spec_from_file_location('m', {mediainfo.__file__!r})\n"
        "m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m); m._shut_in()\n"
        "for attempt in (lambda: open('/proc/self/environ'), socket.socket, lambda: os.dup(1), lambda: bytearray(1 << 28)):\n"
        "    try: attempt()\n"
        "    except (OSError, MemoryError) as error: print(type(error).__name__)\n"
    )
    tried = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert tried.stdout.split() == ["OSError", "OSError", "OSError", "MemoryError"]


FOUND = {"format": "PNG", "tracks": ["Image"], "width": 300, "height": 400, "seconds": [], "cut_off": False}
EVIL = {
    "burns": "while True: pass",
    "sleeps": "import time; time.sleep(60)",
    "dies": "import os; os.abort()",
    "floods": "print('x' * 1_000_000)",
    "wants too much": "print('read 5 1000000000000')",
    "wants what is before": "print('read -5 10')",
    "wants what is behind": "while True: print('read 99999999999 8192', flush=True)",
    "injects": f"print({json.dumps(FOUND | {'format': '<script>'})!r})",
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
async def test_a_parser_that_was_taken_over_gains_nothing(deed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs, dies, talks nonsense, or asks for ever: what comes is a verdict, in time, and it is gone."""
    path = tmp_path / "parser.py"
    path.write_text(EVIL[deed])
    monkeypatch.setattr(media, "_PROGRAM", str(path))
    monkeypatch.setattr(media, "PARSE_TIME", 0.6)
    large = JPEG + bytes(4 * MB)
    async with listening(handing_out({"a.jpg": large})) as listener:
        began = time.monotonic()
        judged = await look(f"{listener.origin}/a.jpg")
        assert time.monotonic() - began < 5
    assert judged.verdict is Verdict.UNCHECKED
    assert judged.reason in {"took too long to read", "cannot be parsed", "too much to read"}
    assert listener.sent < MB


# --- fuzz ---------------------------------------------------------------------------------------------------------------------


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
    *(video(kind, 320, 240, 3, codec=codec) for kind in ("mp4", "mov", "avi") for codec in ("mpeg4", "libx264")),
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
    monkeypatch.setattr(media, "PARSE_TIME", 2.0)
    dice, gate = random.Random(count), asyncio.Semaphore(3)
    files: dict[str, File] = {}

    async def tried(number: int, origin: str, content: bytes) -> str | None:
        async with gate:
            name = f"{number}"
            files[name] = content
            began = time.monotonic()
            judged = {field: await look(f"{origin}/{name}", field, limit=LIMIT) for field in (dice.choice((IMAGE, VIDEO)),)}
            took = time.monotonic() - began
            del files[name]
        odd = took > LIMIT.total_seconds() + 2 or any("connection" in one.reason for one in judged.values())
        return f"{number}: {took:.1f} s, {judged}" if odd else None

    async with listening(handing_out(files)) as listener:
        broken = [mutated(dice) for _ in range(count)]
        found: list[Any] = await asyncio.gather(*(tried(number, listener.origin, content) for number, content in enumerate(broken)))
        assert _read_at_most_once(listener, broken)
    assert [words for words in found if words is not None] == []


def _read_at_most_once(listener: Listener, files: list[bytes]) -> bool:
    """Tell whether no more was sent than the files hold, headers apart, with some ranges read twice."""
    return listener.sent < sum(map(len, files)) * 2 + 1000 * len(listener.requests)
