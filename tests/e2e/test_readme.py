"""README's samples as a reader runs them: what they submit comes back, is verified, and is taken once."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Self

import httpx
import pytest

from tests.documents import block
from tests.e2e.conftest import Admin, Inbox, Json, Stack, User, eventually, printed

CURL = block("README.md", "bash")
SAMPLES = {
    "python": ("sample.py", block("README.md", "python"), sys.executable),
    "javascript": ("sample.mjs", block("README.md", "javascript"), "node"),
}
PORT = "8000"  # of the samples: a test takes a free one


@dataclass(frozen=True)
class Reader:
    """A caller with what `make local` tells to export, and the same caller as other tests have one."""

    user: User
    exported: dict[str, str]

    @classmethod
    def new(cls, stack: Stack, admin: Admin, name: str) -> Self:
        """Add a caller, whose idempotency keys are its own."""
        [line] = re.findall(r"^export (.*\\\n.*)$", printed(stack), re.MULTILINE)
        exported = dict(one.split("=", 1) for one in shlex.split(line.replace("\\\n", "")))
        assert (exported["TOKEN"], exported["SECRET"]) == (stack.token, stack.signing_secret)
        added = admin("add", name)
        own = {"TOKEN": added["token"], "SECRET": added["signing_secret"]}
        return cls(User(stack, added["token"]), exported | own)

    def environment(self, hook: str) -> dict[str, str]:
        """Give what a sample runs with; no proxy of this machine stands between."""
        unbuffered = {"PYTHONUNBUFFERED": "1"}  # as in a terminal, where each line is seen at once
        return os.environ | self.exported | unbuffered | {"HOOK": hook, "no_proxy": "*", "NO_PROXY": "*"}


class Sample:
    """A sample that runs: what it has printed, line by line."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    def line(self, number: int) -> str:
        """Wait for a line, as long as the sample lives."""
        return eventually(lambda: self.lines[number] if len(self.lines) > number or self._dead() else "")

    def verified(self) -> list[Json]:
        """Give the callbacks that it has printed so far."""
        return [
            json.loads(line.removeprefix("verified ")) for line in self.lines if line.startswith("verified ")
        ]

    def _dead(self) -> bool:
        assert self._process.poll() is None, f"the sample has ended; it printed {self.lines}"
        return False

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def free_port() -> int:
    """Give a port at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(params=list(SAMPLES))
def running(
    request: pytest.FixtureRequest, stack: Stack, admin: Admin, tmp_path: Path
) -> Iterator[tuple[Reader, Sample, str]]:
    """Start a sample as README says; give its reader and the URL at which it receives."""
    name, code, program = SAMPLES[request.param]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed here")
    port = str(free_port())
    assert code.count(PORT) == 1
    (tmp_path / name).write_text(code.replace(PORT, port))
    reader, hook = Reader.new(stack, admin, f"readme-{request.param}"), f"http://127.0.0.1:{port}/hook"
    sample = Sample([program, str(tmp_path / name)], reader.environment(hook))
    with reader.user.http:
        try:
            yield reader, sample, hook
        finally:
            sample.close()


def test_a_sample_submits_receives_and_verifies(running: tuple[Reader, Sample, str]) -> None:
    """A redelivery is not taken again; a stranger gets a 401, and the sample lives on."""
    reader, sample, hook = running
    answer = json.loads(sample.line(0))
    task_id = answer["data"]["task_id"]
    told = json.loads(sample.line(1).removeprefix("verified "))
    assert (told["data"]["task_id"], told["data"]["status"]) == (task_id, "success")
    reader.user.ended(task_id)
    strange: list[Json] = [
        {"content": b"{}"},
        {"headers": {"webhook-signature": "v1,AAAA", "webhook-timestamp": "²".encode(), "webhook-id": "x"}},
        {"content": iter([b"{}"])},  # in chunks
    ]
    answers = [httpx.post(hook, trust_env=False, timeout=30, **one).status_code for one in strange]
    assert set(answers) <= {HTTPStatus.UNAUTHORIZED, HTTPStatus.BAD_REQUEST}
    assert reader.user.http.post(f"/api/v1/tasks/{task_id}/redeliver").status_code == HTTPStatus.OK
    eventually(lambda: reader.user.task(task_id)["callback"]["attempts"] == 2)
    reader.user.ended(task_id)
    assert sample.verified() == [told]


def shell(script: str, *arguments: str, environment: dict[str, str], given: str = "") -> tuple[int, str]:
    """Run a script in bash; give its exit code and what it printed."""
    done = subprocess.run(
        ["bash", "-c", script, "bash", *arguments],
        env=environment,
        input=given.encode(),
        stdout=subprocess.PIPE,
        check=False,
    )
    return done.returncode, done.stdout.decode()


def test_curl_submits_once_and_the_shell_verifies(
    stack: Stack, admin: Admin, inbox: Inbox, marker: str
) -> None:
    """The block pasted twice is one task; what was changed on its way is refused."""
    for program in ("bash", "curl", "openssl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed here")
    reader = Reader.new(stack, admin, "readme-curl")
    environment = reader.environment(inbox.url(marker))
    with reader.user.http:
        submitted = [shell(CURL, environment=environment) for _ in range(2)]
        assert submitted[0] == submitted[1]
        task_id = json.loads(submitted[0][1])["data"]["task_id"]
        reader.user.ended(task_id)
    [delivery] = inbox.deliveries(task_id)
    signed = [delivery["headers"][f"webhook-{name}"] for name in ("id", "timestamp", "signature")]
    changed = [[signed[0] + "0", *signed[1:]], [signed[0], str(int(signed[1]) + 1), signed[2]]]
    odd = [[signed[0], time, signed[2]] for time in ("", "x", "$(exit)", "9" * 13, "1764170000")]

    def verify(headers: list[str], body: str) -> bool:
        code, _ = shell(CURL + 'verify "$@"', *headers, environment=environment, given=body)
        return code == 0

    assert verify(signed, delivery["body"])
    assert not verify(signed, delivery["body"] + " ")
    assert not any(verify(headers, delivery["body"]) for headers in (*changed, *odd))
    environment["SECRET"] = ""  # with which no signature can be made
    assert not verify([*signed[:2], "v1,"], delivery["body"])
