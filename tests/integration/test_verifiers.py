"""Our signatures before other implementations: each accepts what we sign, and refuses what was changed."""

import asyncio
import contextlib
import copy
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx
import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from taskhook.adapters.clock import SystemClock
from taskhook.adapters.http.callbacks import AiohttpCallbacks
from taskhook.core import signature
from taskhook.core.caller import Credential
from taskhook.core.message import Json
from taskhook.core.record import State
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import Task
from taskhook.core.vendor import PollKind
from taskhook.delivery.samples import send_test_callbacks
from taskhook.vendors import VENDORS
from tests.rows import each_row
from tests.vendor_answers import answer_of, upstream_of
from tests.world import MemoryControl, RecordingReporter, a_caller

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "verifiers"
RECEIVERS = ROOT / "events" / "receivers"
HANGS_S = 180.0  # against a hang; a loaded machine is no finding
FRAMEWORKS = ROOT / ".tools" / "receivers" / "bin"

type Verifier = Callable[["Sent"], bool]


@dataclass(frozen=True)
class Sent:
    """A callback as a receiver sees it, and the secret that the receiver holds."""

    secret: str
    headers: dict[str, str]
    body: bytes

    def with_header(self, name: str, value: str) -> Self:
        """Change one header."""
        return replace(self, headers=self.headers | {name: value})


def sent(
    *secrets: str, age: timedelta = timedelta(0), vendor: str = "modellix", data: Json | None = None
) -> Sent:
    """Sign a real callback with these secrets; the receiver holds the last of them."""
    now = datetime.now(UTC)
    data = data or {"result": {"resources": []}}
    task = Task(
        task_id=f"tk_{uuid.uuid4().hex[:22]}",
        caller="alice",
        vendor=vendor,
        model="alibaba/wan2.2-animate-mix",
        request="{}",
        fingerprint="",
        callback_url="https://r.example.com/",
        reference="größer als \u2028 😀",
        accepted_at=now,
        state=State.WATCHED,
    ).succeeded(data, now, retention=timedelta(0), claim=now)
    body = (task.message or "").encode()
    return Sent(secrets[-1], signature.headers(secrets, task.webhook_id, now - age, body), body)


def changed(good: Sent, secret: str) -> dict[str, Sent]:
    """Give what is not to be taken any more, each changed in one way; `secret` is one that signed it."""
    moved = str(int(good.headers["webhook-timestamp"]) + 1)
    return {
        "body": replace(good, body=good.body.replace(b'"success"', b'"failure"', 1)),
        "id": good.with_header("webhook-id", good.headers["webhook-id"] + "0"),
        "time": good.with_header("webhook-timestamp", moved),
        "old": sent(secret, age=timedelta(minutes=6)),
        "early": sent(secret, age=-timedelta(minutes=6)),
        "unsigned": good.with_header("webhook-signature", "v1,"),
    }


def python(received: Sent) -> bool:
    """Ask the reference library for Python."""
    try:
        Webhook(received.secret).verify(received.body, received.headers)
    except WebhookVerificationError:
        return False
    return True


def running(*command: str, **environment: str) -> Verifier:
    """Make a verifier of a program that tells by its exit code."""

    def verify(received: Sent) -> bool:
        names = {"ID": "webhook-id", "TIMESTAMP": "webhook-timestamp", "SIGNATURE": "webhook-signature"}
        values = {name: received.headers[header] for name, header in names.items()}
        ran = subprocess.run(
            command,
            input=received.body,
            env=os.environ | environment | values | {"SECRET": received.secret},
            check=False,
            timeout=HANGS_S,
        )
        assert ran.returncode in {0, 1}, f"{command} is broken"
        return ran.returncode == 0

    return verify


async def eventually(look: Callable[[], bool]) -> None:
    """Look again and again until it is so."""
    deadline = time.monotonic() + HANGS_S
    while not look():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def _needed(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed here")
    return path


@pytest.fixture(scope="module")
def packages() -> Path:
    """Install what the lock beside the verifiers names where the project keeps its tools: `node_modules`.

    `npm install --package-lock-only --omit-lockfile-registry-resolved` writes the lock, without addresses.
    """
    npm, folder = _needed("npm"), ROOT / ".tools" / "verifiers"
    locked, installed = PROGRAMS / "package-lock.json", folder / "complete"
    if not installed.exists() or installed.read_bytes() != locked.read_bytes():
        folder.mkdir(parents=True, exist_ok=True)
        installed.unlink(missing_ok=True)
        for file in (PROGRAMS / "package.json", locked):
            shutil.copy(file, folder)
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        try:
            done = subprocess.run(
                command, cwd=folder, check=False, capture_output=True, text=True, timeout=300
            )
        except subprocess.TimeoutExpired:
            pytest.skip("npm could not install the packages of the lock in five minutes")
        if done.returncode != 0:
            pytest.skip(f"npm cannot install the packages of the lock: {done.stderr.strip()[-200:]}")
        shutil.copy(locked, installed)
    return folder / "node_modules"


@pytest.fixture(scope="module")
def npm(packages: Path) -> Verifier:
    """Give the reference library for JavaScript."""
    return running(_needed("node"), str(PROGRAMS / "verify.cjs"), NODE_PATH=str(packages))


@dataclass
class Running:
    """A sample receiver that runs: where it listens, its secret, and where it keeps what it took."""

    url: str
    secret: str
    inbox: Callable[[], list[str]]

    def answer(self, received: Sent) -> int:
        """Send it a callback, and return the status of its answer."""
        headers = received.headers | {"content-type": "application/json"}
        return httpx.post(
            self.url, headers=headers, content=received.body, trust_env=False, timeout=HANGS_S
        ).status_code


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def _serving(command: list[str], secret: str, port: int, folder: Path) -> Iterator[Running]:
    """Start a sample that is a server of its own; what it prints is what it took."""
    printed = folder / "printed"
    with (
        printed.open("wb") as out,
        subprocess.Popen(
            command,
            cwd=RECEIVERS,
            env=os.environ | {"SECRET": secret, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=out,
            start_new_session=True,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + HANGS_S
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert process.poll() is None, f"{command} has ended"
                assert time.monotonic() < deadline, f"{command} does not listen"
                time.sleep(0.02)
            yield Running(
                f"http://127.0.0.1:{port}/hook",
                secret,
                lambda: printed.read_text(errors="replace").split("\n")[:-1],
            )
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # a server's workers too


@contextlib.contextmanager
def _serving_cgi(program: Path, secret: str, folder: Path) -> Iterator[Running]:
    """Run a sample as a web server runs a CGI program."""

    class Gateway(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = self.headers.get("content-length")
            body = (
                self.rfile.read(int(length) if length and re.fullmatch("[0-9]{1,7}", length) else -1)
                if length
                else b""
            )
            headers = {
                f"HTTP_{name.upper().replace('-', '_')}": value.encode("latin-1")
                for name, value in self.headers.items()
            }
            environment = (
                os.environ
                | headers
                | {"REQUEST_METHOD": self.command, "SECRET": secret, "INBOX": str(folder)}
            )
            if length:
                environment |= {"CONTENT_LENGTH": length}
            ran = subprocess.run([program], input=body, env=environment, capture_output=True, check=False)
            status = re.match(rb"Status: (\d{3})\r\n\r\n", ran.stdout)
            self.send_response(int(status[1]) if status and ran.returncode == 0 else 500)
            self.end_headers()

        do_GET = do_HEAD = do_PUT = do_DELETE = do_POST  # noqa: N815  # the base class names them so

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
            """Keep quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            # What a row of the others is.
            inbox = lambda: [file.read_text(errors="replace") for file in folder.glob("msg_*")]  # noqa: E731
            yield Running(f"http://127.0.0.1:{server.server_port}/hook", secret, inbox)
        finally:
            server.shutdown()
            thread.join()


SAMPLES = sorted(file.name for file in RECEIVERS.glob("receive*"))


def _command(name: str, port: int, folder: Path, request: pytest.FixtureRequest) -> list[str]:
    """Give the command that starts a sample which is a server, or runs in one."""
    program, address = RECEIVERS / name, f"127.0.0.1:{port}"
    match name:
        case "receive.py":
            return [sys.executable, name, str(port)]
        case "receive.mjs":
            return [_needed("node"), name, str(port)]
        case "receive.go":
            built = folder / "receive"
            environment = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "", "CGO_ENABLED": "0"}
            command = [_needed("go"), "build", "-o", str(built), str(program)]
            subprocess.run(command, check=True, env=environment, timeout=3 * HANGS_S)
            return [str(built), address]
        case "receive_express.mjs":  # beside its packages, where node looks for them
            shutil.copy(program, folder)
            (folder / "node_modules").symlink_to(request.getfixturevalue("packages"))
            return [_needed("node"), str(folder / name), str(port)]
        case "receive_nextjs.mjs":
            return [_needed("node"), str(PROGRAMS / "nextjs.mjs"), str(program), str(port)]
        case "receive_fastapi.py":
            return [_framework("uvicorn"), "receive_fastapi:app", "--port", str(port), "--no-access-log"]
        case _:
            served = ["--threads", "8", "--no-control-socket", "--bind", address, f"{program.stem}:app"]
            return [_framework("gunicorn"), *served]


def _framework(server: str) -> str:
    """Give a server out of the environment of the Python frameworks."""
    if not (FRAMEWORKS.parent / "complete").exists():
        pytest.skip("the Python frameworks are not installed: make tools")
    return str(FRAMEWORKS / server)


@pytest.fixture(scope="module", params=SAMPLES)
def receiver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Run each sample in turn, as its first lines say."""
    name, secret, folder = request.param, signature.new_secret(), tmp_path_factory.mktemp("receiver")
    if name == "receive.sh":
        for needed in ("bash", "openssl"):
            _needed(needed)
        with _serving_cgi(RECEIVERS / name, secret, folder) as running_cgi:
            yield running_cgi
        return
    port = _free_port()
    with _serving(_command(name, port, folder, request), secret, port, folder) as running_server:
        yield running_server


@pytest.fixture(params=["python", "npm"])
def verifies(request: pytest.FixtureRequest) -> Verifier:
    """Give each reference library in turn."""
    verifier: Verifier = python if request.param == "python" else request.getfixturevalue(request.param)
    return verifier


def test_what_we_sign_verifies_and_nothing_else_does(verifies: Verifier) -> None:
    """With new and old secret during a rotation; not with body, id, time or secret changed, or time off."""
    new, old = signature.new_secret(), signature.new_secret()
    good = sent(new, old)
    assert verifies(good)
    assert verifies(replace(good, secret=new))
    tampered = changed(good, old) | {"secret": replace(good, secret=signature.new_secret())}
    assert [name for name, received in tampered.items() if verifies(received)] == []


# --- the samples in events/receivers --------------------------------------------------------------


async def test_a_sample_takes_what_we_send(receiver: Running) -> None:
    """Samples of both events, sent as every callback is, by the sender with its guard; each is taken once."""
    caller = a_caller().model_copy(update={"secrets": (Credential(value=receiver.secret),)})
    targets, kept = TargetPolicy(relaxed=True), len(receiver.inbox())
    results = await send_test_callbacks(
        {"callback_url": receiver.url},
        caller=caller,
        targets=targets,
        rate=MemoryControl(),
        callbacks=AiohttpCallbacks(targets),
        clock=SystemClock(),
        reporter=RecordingReporter(),
    )
    assert [one.delivered for one in results] == [True, True]
    await eventually(lambda: len(receiver.inbox()) == kept + 2)
    assert {"tk_sample_success________", "tk_sample_failure________"} <= set(
        re.findall(r"tk_sample_\w+", str(receiver.inbox()))
    )


SUCCESSES: dict[str, Json] = {name: answer_of(name, PollKind.SUCCEEDED) for name in VENDORS}


async def test_a_sample_takes_the_callbacks_of_all_vendors(receiver: Running) -> None:
    """In one form; what the vendor said itself is beside it, where its own form is another."""
    before = set(receiver.inbox())
    for name, answer in SUCCESSES.items():
        data = VENDORS[name].read_poll(copy.deepcopy(answer), upstream_of(name)).data
        assert receiver.answer(sent(receiver.secret, vendor=name, data=data)) // 100 == 2
    await eventually(lambda: len(receiver.inbox()) >= len(before) + len(SUCCESSES))
    fresh = (json.loads(callback)["data"] for callback in set(receiver.inbox()) - before)
    taken = {data["vendor"]: data for data in fresh}
    assert taken.keys() == VENDORS.keys()
    for name, data in taken.items():
        assert data["result"]["resources"][0]["url"].startswith("https://")
        assert data["result"]["resources"][0]["type"] == "video"
        assert data.get("raw") == (None if name == "modellix" else SUCCESSES[name])


async def test_a_sample_takes_a_message_once(receiver: Running) -> None:
    """A repeat has the same id, and is answered as the first; also where two secrets sign in a rotation."""
    kept = len(receiver.inbox())
    first = sent(signature.new_secret(), receiver.secret)
    another = sent(receiver.secret)
    assert {receiver.answer(one) // 100 for one in (first, first, first, another)} == {2}
    await eventually(lambda: len(receiver.inbox()) >= kept + 2)
    assert len(receiver.inbox()) == kept + 2


async def test_a_sample_takes_any_bytes_that_are_signed(receiver: Running) -> None:
    """It verifies bytes, not text: none of them makes it fail, once or again."""
    for body in (b"\xff\x00\xfe", b"{}", b"\r\n", "\u2028 \ufeff".encode()):
        headers = signature.headers([receiver.secret], f"msg_{uuid.uuid4().hex}", datetime.now(UTC), body)
        signed = Sent(receiver.secret, headers, body)
        assert {receiver.answer(signed) // 100 for _ in range(2)} == {2}


def test_a_sample_refuses_what_is_not_ours(receiver: Running) -> None:
    """401, and nothing is kept; the receiver survives, whatever it is sent."""
    kept = receiver.inbox()
    good = sent(receiver.secret)
    hostile = changed(good, receiver.secret) | {
        "secret": sent(signature.new_secret()),
        "no headers": replace(good, headers={}),
        "no time": good.with_header("webhook-timestamp", ""),
        "no number": good.with_header("webhook-timestamp", "x[$(touch /tmp/$$)]"),
        "negative": good.with_header("webhook-timestamp", "-1"),
        "huge": good.with_header("webhook-timestamp", "9" * 400),
        "path": good.with_header("webhook-id", "../../etc/x"),
    }
    answers = {name: receiver.answer(received) for name, received in hostile.items()}
    assert answers == dict.fromkeys(hostile, 401)
    assert receiver.inbox() == kept


def test_a_sample_survives_a_sender_that_goes_away_half_way(receiver: Running) -> None:
    """A stranger may begin a request and leave; the next callback must find the receiver alive."""
    address = urlsplit(receiver.url)
    with socket.create_connection((address.hostname, address.port)) as stranger:
        stranger.sendall(b"POST /hook HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf")
        time.sleep(0.1)
    time.sleep(0.1)
    assert receiver.answer(sent(receiver.secret)) // 100 == 2


def _raw(method: bytes = b"POST", *headers: bytes, body: bytes = b"{}", length: bytes | None = None) -> bytes:
    """Write a request; its length is right unless it is given, and left out where that is empty."""
    told = str(len(body)).encode() if length is None else length
    lines = [
        method + b" /hook HTTP/1.1",
        b"host: x",
        *([b"content-length: " + told] if told else []),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


NOW = b"@now@"  # the time at which it is sent: a minute or an hour after this is read
SIGNED = (b"webhook-id: msg_1", b"webhook-timestamp: " + NOW)
HOSTILE = {
    "no header at all": b"POST /hook HTTP/1.1\r\n\r\n",
    "none of ours": _raw(),
    "no length": _raw(length=b""),
    "a word for a length": _raw(length=b"many"),
    "a negative length": _raw(length=b"-2"),
    "a length of 5,000 digits": _raw(length=b"9" * 5000),
    "a length without room for it": _raw(length=b"99999999999999"),
    "two lengths": _raw(b"POST", b"content-length: 3"),
    "less than it says": _raw(length=b"50"),
    "chunks": _raw(b"POST", b"transfer-encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n", length=b""),
    "chunks that are none": _raw(b"POST", b"transfer-encoding: chunked", body=b"zz\r\n{}\r\n", length=b""),
    "2 MB": _raw(b"POST", *SIGNED, b"webhook-signature: v1,AAAA", body=b"x" * 2_000_000),
    "GET": _raw(b"GET"),
    "PUT": _raw(b"PUT", *SIGNED, b"webhook-signature: v1,AAAA"),
    "DELETE": _raw(b"DELETE", body=b"", length=b""),
    "HEAD": _raw(b"HEAD", body=b"", length=b""),
    "no signature": _raw(b"POST", *SIGNED),
    "an empty signature": _raw(b"POST", *SIGNED, b"webhook-signature: v1,"),
    "UTF-8 for a signature": _raw(b"POST", *SIGNED, "webhook-signature: v1,größer 😀".encode()),
    "latin-1 for a signature": _raw(b"POST", *SIGNED, b"webhook-signature: v1,\xff\xfe"),
    "a thousand signatures": _raw(b"POST", *SIGNED, b"webhook-signature: " + b"v1,AAAA " * 1000),
    "a word for a time": _raw(
        b"POST", b"webhook-id: a", b"webhook-timestamp: x[$(exit)]", b"webhook-signature: v1,AAAA"
    ),
    "digits of another script": _raw(
        b"POST", b"webhook-id: a", "webhook-timestamp: ١٢".encode(), b"webhook-signature: v1,AAAA"
    ),
    "a time of 5,000 digits": _raw(
        b"POST", b"webhook-id: a", b"webhook-timestamp: " + b"9" * 5000, b"webhook-signature: v1,AAAA"
    ),
    "a time that is none": _raw(
        b"POST", b"webhook-id: a", b"webhook-timestamp: nan", b"webhook-signature: v1,AAAA"
    ),
    "an id that is code": _raw(
        b"POST",
        b"webhook-id: ../$(exit)`'\xff\"",
        b"webhook-timestamp: " + NOW,
        b"webhook-signature: v1,AAAA",
    ),
    "headers twice": _raw(
        b"POST", *SIGNED, *SIGNED, b"webhook-signature: v1,AAAA", b"webhook-signature: v1,BBBB"
    ),
    "no text": _raw(
        b"POST", *SIGNED, b"webhook-signature: v1,AAAA", b"content-type: image/png", body=bytes(range(256))
    ),
    "packed": _raw(
        b"POST", *SIGNED, b"webhook-signature: v1,AAAA", b"content-encoding: gzip", body=b"\x1f\x8b\x08"
    ),
    "no body": _raw(b"POST", *SIGNED, b"webhook-signature: v1,AAAA", body=b""),
}

BROKEN_OFF = {"less than it says", "a length without room for it"}  # the sender has gone before its end


def _answer(url: str, request: bytes) -> int:
    """Send some bytes and no more, and return the status of the answer; 0 where none came."""
    address, answer, request = urlsplit(url), b"", request.replace(NOW, str(int(time.time())).encode())
    with socket.create_connection((address.hostname, address.port), timeout=HANGS_S) as stranger:
        with contextlib.suppress(ConnectionError):
            stranger.sendall(request)
            with contextlib.suppress(
                OSError
            ):  # ENOTCONN, where the receiver has reset the connection meanwhile
                stranger.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := stranger.recv(65536):
                answer += part
    status = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)
    return int(status[1]) if status else 0


def test_a_sample_refuses_hostile_requests_and_stays_alive(receiver: Running) -> None:
    """4xx to each, or nothing to one that broke off; nothing is kept, and the next callback is taken."""
    kept = receiver.inbox()
    answers = {name: _answer(receiver.url, request) for name, request in HOSTILE.items()}
    refused = {name for name, status in answers.items() if 400 <= status < 500}
    silent = {name for name, status in answers.items() if status == 0}
    assert HOSTILE.keys() - refused - (silent & BROKEN_OFF) == set()
    assert receiver.inbox() == kept
    assert receiver.answer(sent(receiver.secret)) // 100 == 2


@each_row("name", SAMPLES)
def test_a_sample_is_short(name: str) -> None:
    """Under 40 lines that fit on a screen."""
    lines = (RECEIVERS / name).read_text().splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 160
