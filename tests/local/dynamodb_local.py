"""AWS's own DynamoDB Local, where there are Java and Maven: it pages and counts units as DynamoDB does."""

import contextlib
import fcntl
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
POM = ROOT / "tests/local/dynamodb-local.xml"
JARS = ROOT / ".tools/dynamodb-local"
STARTS_WITHIN_S = 180.0  # a second on a quiet machine


class NotHereError(Exception):
    """It cannot run on this machine; the text says for want of what."""


@contextlib.contextmanager
def dynamodb_local() -> Iterator[str]:
    """Start one, empty and in memory, on a free port of loopback; give its URL. Raises NotHereError."""
    java = shutil.which("java")
    if java is None:
        raise NotHereError("there is no Java on this machine")
    _fetch()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    main = "software.amazon.dynamodb.services.local.main.ServerRunner"
    command = [
        java,
        f"-Djava.library.path={JARS}",
        "-cp",
        f"{JARS}/*",
        main,
        "-inMemory",
        "-sharedDb",
        "-port",
        str(port),
    ]
    # It leaves a file of its own where it runs.
    with subprocess.Popen(command, cwd=JARS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _await(port, server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def _fetch() -> None:
    """Let Maven bring the jars, once per version; of several processes one does, and the others wait."""
    JARS.parent.mkdir(parents=True, exist_ok=True)
    with JARS.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = JARS / f"{POM.stat().st_mtime_ns}.done"
        if not done.exists():
            _bring_jars(done)


def _bring_jars(done: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise NotHereError("there is no Maven on this machine")
    shutil.rmtree(JARS, ignore_errors=True)
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={JARS}"]
    fetched = subprocess.run(
        [maven, "-q", "-f", str(POM), *goal], capture_output=True, text=True, check=False
    )
    if fetched.returncode != 0:
        raise NotHereError(f"Maven could not fetch it: {fetched.stdout[-300:]}")
    done.touch()


def _await(port: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise NotHereError("it did not start")
