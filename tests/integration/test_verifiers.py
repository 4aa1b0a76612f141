"""Our signatures before implementations that are not ours: each accepts what we sign, and refuses whatever was changed."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from taskhook import signature
from taskhook.task import State, Task

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "verifiers"
NPM_PACKAGE = "standardwebhooks@1.1.1"

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


def sent(*secrets: str, age: timedelta = timedelta(0)) -> Sent:
    """Sign a real callback with these secrets; the receiver holds the last of them."""
    now = datetime.now(UTC)
    task = Task(
        task_id="tk_1",
        caller="alice",
        model="alibaba/wan2.2-animate-mix",
        request="{}",
        fingerprint="",
        callback_url="https://r.example.com/",
        reference="größer als \u2028 😀",
        accepted_at=now,
        state=State.WATCHED,
    ).succeeded({"result": {"resources": []}}, now, retention=timedelta(0), claim=now)
    body = (task.message or "").encode()
    return Sent(secrets[-1], signature.headers(secrets, task.webhook_id, now - age, body), body)


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
            timeout=60,
        )
        assert ran.returncode in {0, 1}, f"{command} is broken"
        return ran.returncode == 0

    return verify


def _needed(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed here")
    return path


@pytest.fixture(scope="module")
def npm() -> Verifier:
    """Give the reference library for JavaScript, installed where the project keeps its tools."""
    node, npm = _needed("node"), _needed("npm")
    folder = ROOT / ".tools" / "verifiers"
    if not (folder / "node_modules" / "standardwebhooks").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        flags = (
            "--no-save",
            "--no-package-lock",
            "--omit-lockfile-registry-resolved",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
        )
        install = [npm, "install", "--prefix", str(folder), *flags, NPM_PACKAGE]
        try:
            installed = subprocess.run(install, check=False, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm could not install {NPM_PACKAGE} in two minutes")
        if installed.returncode != 0:
            pytest.skip(f"npm cannot install {NPM_PACKAGE}: {installed.stderr.strip()[-200:]}")
    return running(node, str(PROGRAMS / "verify.cjs"), NODE_PATH=str(folder / "node_modules"))


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Verifier:
    """Give a verifier that uses Go's standard library."""
    program = tmp_path_factory.mktemp("go") / "verify"
    environment = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "", "CGO_ENABLED": "0"}
    subprocess.run([_needed("go"), "build", "-o", program, PROGRAMS / "verify.go"], check=True, env=environment, timeout=250)
    return running(str(program))


@pytest.fixture(scope="module")
def openssl() -> Verifier:
    """Give a verifier that uses OpenSSL and a shell."""
    _needed("openssl")
    return running(_needed("bash"), str(PROGRAMS / "verify.sh"))


@pytest.fixture(params=["python", "npm", "go", "openssl"])
def verifies(request: pytest.FixtureRequest) -> Verifier:
    """Give each verifier in turn."""
    verifier: Verifier = python if request.param == "python" else request.getfixturevalue(request.param)
    return verifier


def test_what_we_sign_verifies_and_nothing_else_does(verifies: Verifier) -> None:
    """With the new and the old secret during a rotation; not with body, id, time or secret changed, nor too old or too new."""
    new, old = signature.new_secret(), signature.new_secret()
    good = sent(new, old)
    assert verifies(good)
    assert verifies(replace(good, secret=new))
    moved = str(int(good.headers["webhook-timestamp"]) + 1)
    tampered = {
        "body": replace(good, body=good.body.replace(b'"success"', b'"failure"', 1)),
        "id": good.with_header("webhook-id", good.headers["webhook-id"] + "0"),
        "time": good.with_header("webhook-timestamp", moved),
        "secret": replace(good, secret=signature.new_secret()),
        "old": sent(old, age=timedelta(minutes=6)),
        "early": sent(old, age=-timedelta(minutes=6)),
        "unsigned": good.with_header("webhook-signature", "v1,"),
    }
    assert [name for name, changed in tampered.items() if verifies(changed)] == []
