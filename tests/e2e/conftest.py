"""The embedded stack as a user has it: `python -m tests.local` in a process of its own."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract import check_answer
from tests.progress import Progress

ROOT = Path(__file__).parents[2]
STEP_WITHIN_S = 400.0  # of its start, the longest of which is `sam build`: a minute on a quiet machine
ENDED_WITHIN_S = 120.0  # seconds on a quiet machine
ALARM_EMAIL = "ops@example.com"
MADE_UP: set[str] = set()  # tasks that a test put into the table itself: no audit can be right about them


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What the stack says of itself in its first line."""

    endpoint: str
    token: str
    signing_secret: str
    receiver: str
    upstream: str
    vendors: dict[str, str]  # where each is, by name
    aws_endpoint_url: str
    aws_region: str
    stack: str


class Started(subprocess.Popen[bytes]):
    """A stack in a process of its own, on free ports, without the vendor's real key."""

    def __init__(self, *flags: str) -> None:
        self.address: Stack | None = None  # once it is ready
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the process does
        environment = {name: value for name, value in os.environ.items() if name != "MODELLIX_API_KEY"}
        command = [sys.executable, "-m", "tests.local", "--port", "0", *flags]
        super().__init__(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=self._complaints)

    def said(self) -> str:
        """Give everything that it has said on its stderr."""
        size = os.fstat(self._complaints.fileno()).st_size
        return os.pread(self._complaints.fileno(), size, 0).decode(errors="replace")

    def last_words(self) -> str:
        """Say how it is, with the last lines of what it said."""
        how = "lives" if self.poll() is None else f"has ended with {self.returncode}"
        return f"the stack {how}; it said last:\n" + "\n".join(self.said().splitlines()[-30:])

    def ended(self) -> int:
        """Wait for its end; give the exit code."""
        return self.wait(ENDED_WITHIN_S)

    def close(self) -> None:
        """End it, by force where asking does not help."""
        self.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.ended()
        self.kill()
        self.wait()
        self._complaints.close()
        if self.stdout is not None:
            self.stdout.close()


_living: list[Started] = []


@contextlib.contextmanager
def started(*flags: str) -> Iterator[Started]:
    """Start a stack; it has ended when the block ends."""
    process = Started(*flags)
    _living.append(process)
    try:
        yield process
    except BaseException:
        sys.stderr.write(process.said())
        raise
    finally:
        _living.remove(process)
        process.close()


def ready(process: Started) -> Stack:
    """Wait for the first line, for as long as the start gets on."""
    assert process.stdout is not None
    progress = Progress(STEP_WITHIN_S)
    while not select.select([process.stdout], [], [], 1.0)[0]:
        if not progress.goes_on(process.said()):
            pytest.fail(f"the stack does not get ready. {process.last_words()}", pytrace=False)
    line = process.stdout.readline()
    if not line:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.ended()
        pytest.fail(f"the stack did not get ready. {process.last_words()}", pytrace=False)
    process.address = Stack(**json.loads(line))
    return process.address


def printed(stack: Stack) -> str:
    """Give what a stack printed for people when it was ready."""
    return next(process.said() for process in _living if process.address == stack)


@pytest.fixture(autouse=True)
def _stacks_live() -> None:
    """Say why, where a stack that a test wants has ended meanwhile."""
    for process in _living:
        if process.poll() is not None:
            pytest.fail(process.last_words(), pytrace=False)


@pytest.fixture(scope="session")
def history_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stack's history is written."""
    return tmp_path_factory.mktemp("history") / "stack.jsonl"


@pytest.fixture(scope="session")
def stack(history_file: Path) -> Iterator[Stack]:
    """One stack for all tests, watched; its vendor works two seconds on a task and is generous.

    Its functions have whole processors: a verdict on media must not hang on how busy the machine is. Lambda's
    share is for `tests/integration/test_share.py`, benches, and stacks that tests start for themselves.
    """
    watching = ("Dashboard=on", "Alarms=on", f"AlarmEmail={ALARM_EMAIL}")
    with started(
        *("--cpu", "full", "--task-seconds", "2", "--rpm", "100000", "--history", str(history_file)),
        *(f"--parameter={switch}" for switch in watching),
    ) as process:
        address = ready(process)
        yield address
        findings = [one for one in audited(address)["findings"] if one["task_id"] not in MADE_UP]
        assert findings == [], "a task breaks a promise when all tests are through"


def audited(stack: Stack) -> "Json":
    """Run `taskhook audit` on a stack, as its operator does; every finding is one too many."""
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": stack.aws_endpoint_url,
        "AWS_DEFAULT_REGION": stack.aws_region,
        "PATH": "/usr/bin:/bin",
    }
    command = [sys.executable, "-m", "taskhook", "audit", "--since", "7d", "--stack", stack.stack, "--json"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout, run.stderr
    found: Json = json.loads(run.stdout)
    assert run.returncode == (1 if found["findings"] else 0)
    return found


# --- what a user of it has: a client, the vendor's controls, a receiver ---------------------------

ANSWERED_WITHIN_S = 60.0  # 14 s where nothing else is at work, as unit tests prove in virtual time
STILL_S = 180.0  # three ticks, or two and what a busy machine adds
# after so many waits in vain: what is broken for good is no reason to wait for hours
IMPATIENT_S, IN_VAIN = 30.0, 3
SUBMIT = "/api/v1/alibaba/wan2.2-animate-mix"

type Json = dict[str, Any]
type Admin = Callable[..., Any]


_in_vain: list[str] = []


def eventually[T](look: Callable[[], T]) -> T:
    """Look again and again until something truthy is seen, and return it; give up when nothing moves."""
    progress = Progress(STILL_S if len(_in_vain) < IN_VAIN else IMPATIENT_S)
    began = counted_at = time.monotonic()
    counts: list[str] = []
    while not (seen := look()):
        if time.monotonic() - counted_at > 1:
            counts, counted_at = movements(), time.monotonic()
        if not progress.goes_on((repr(seen), counts)):
            _in_vain.append(repr(seen))
            pytest.fail(
                f"not within {time.monotonic() - began:.0f} s, and nothing moves; "
                f"seen last: {seen!r}; counted: {counts}"
            )
        time.sleep(0.1)
    return seen


def fetch(url: str) -> httpx.Response:
    """Get what is at a URL, without any token."""
    return httpx.get(url, timeout=ANSWERED_WITHIN_S, trust_env=False)


def movements() -> list[str]:
    """Count what has come to vendors and receivers, but polls, which go on while a task is watched."""
    counts = []
    for stack in (process.address for process in _living if process.address is not None):
        vendor, receiver = (
            fetch(f"{url}/_control/counts").json() for url in (stack.upstream, stack.receiver)
        )
        counts.append(
            f"{vendor['submits']} submits, {vendor['running']} run, {receiver['deliveries']} deliveries"
        )
    return counts


def promised(answer: httpx.Response) -> None:
    """Hold every answer to what the API says of itself; the gateway's own, without a code, is none of it."""
    answer.read()
    body = answer.json() if "json" in answer.headers.get("content-type", "") else None
    if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE and body == {"message": "Service Unavailable"}:
        return
    check_answer(answer.request.method, answer.request.url.path, answer.status_code, body)


class User:
    """A caller of the API; tests know their own tasks by a marker in image URL and reference."""

    def __init__(self, stack: Stack, token: str) -> None:
        self.http = httpx.Client(
            base_url=stack.endpoint,
            headers={"Authorization": f"Bearer {token}"},
            timeout=ANSWERED_WITHIN_S,
            trust_env=False,
            event_hooks={"response": [promised]},
        )

    def submit(
        self, marker: str, *, path: str = SUBMIT, key: str | None = None, **more: object
    ) -> httpx.Response:
        """Submit the vendor's example with a marker."""
        body = {
            # a name that resolves nowhere: no look at it
            "image_url": f"https://media.invalid/new_actor.jpg?{marker}",
            "video_url": "https://media.invalid/original_scene.mp4",
            "mode": "wan-std",
            "reference": marker,
            **more,
        }
        return self.http.post(path, json=body, headers={"Idempotency-Key": key} if key else {})

    def accepted(self, marker: str, **more: Any) -> str:
        """Submit what must be accepted, and return the task's id."""
        answer = self.submit(marker, **more)
        assert answer.status_code == 200, answer.text
        task_id: str = answer.json()["data"]["task_id"]
        return task_id

    def task(self, task_id: str) -> Json:
        """Show a task."""
        answer = self.http.get(f"/api/v1/tasks/{task_id}")
        assert answer.status_code == 200, answer.text
        data: Json = answer.json()["data"]
        return data

    def tasks(self, **parameters: str | int) -> list[Json]:
        """List the tasks."""
        answer = self.http.get("/api/v1/tasks", params=parameters)
        assert answer.status_code == 200, answer.text
        found: list[Json] = answer.json()["data"]["tasks"]
        return found

    def stored(self, marker: str) -> Json:
        """Find a task among the newest, where the answer to its submit does not name it."""
        [found] = [task for task in self.tasks() if task.get("reference") == marker]
        return found

    def ended(self, task_id: str, callback: str = "delivered") -> Json:
        """Wait until a task has ended and its callback too; after a 503 ask again, as the contract says."""

        def look() -> Json | None:
            answer = self.http.get(f"/api/v1/tasks/{task_id}")
            if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
                return None
            assert answer.status_code == HTTPStatus.OK, answer.text
            task: Json = answer.json()["data"]
            return task if task["callback"]["state"] == callback else None

        return eventually(look) or {}


class Vendor:
    """The controls of the emulated vendor."""

    def __init__(self, stack: Stack) -> None:
        self.http = httpx.Client(base_url=stack.upstream, timeout=ANSWERED_WITHIN_S, trust_env=False)

    def inject(self, fault: str, *, on: str = "submit", **more: object) -> None:
        """Let something go wrong, by default once."""
        self.http.post("/_control/faults", json={"on": on, "fault": fault, **more}).raise_for_status()

    @contextlib.contextmanager
    def fault(self, fault: str, *, on: str = "submit", **more: object) -> Iterator[None]:
        """Let something go wrong while the block lasts, by default once; its end clears every fault."""
        self.inject(fault, on=on, **more)
        try:
            yield
        finally:
            self.http.delete("/_control/faults").raise_for_status()

    def submits(self) -> int:
        """Count the submits that reached the vendor, taken or not."""
        count: int = self.http.get("/_control").json()["submits"]
        return count

    def paid(self, marker: str) -> list[Json]:
        """List the tasks that the vendor took for a test."""
        return [
            task
            for task in self.http.get("/_control").json()["tasks"]
            if marker in task["request"]["image_url"]
        ]


class Inbox:
    """The receiver of the callbacks."""

    def __init__(self, stack: Stack) -> None:
        self.http = httpx.Client(base_url=stack.receiver, timeout=ANSWERED_WITHIN_S, trust_env=False)

    def url(self, marker: str) -> str:
        """Give a test a callback URL of its own."""
        return str(self.http.base_url.join(f"/{marker}"))

    def behave(self, marker: str, status: int, **more: object) -> None:
        """Answer the next delivery to a test's URL with a status; 0 closes the connection."""
        self.http.post("/_control", json={"path": f"/{marker}", "status": status, **more}).raise_for_status()

    def deliveries(self, task_id: str) -> list[Json]:
        """List the deliveries about a task."""
        found: list[Json] = self.http.get("/_control", params={"task_id": task_id}).json()["deliveries"]
        return found


@pytest.fixture(scope="session")
def user(stack: Stack) -> Iterator[User]:
    """The caller that the stack comes with."""
    user = User(stack, stack.token)
    with user.http:
        yield user


@pytest.fixture(scope="session")
def vendor(stack: Stack) -> Iterator[Vendor]:
    """The vendor, where things go wrong on demand."""
    vendor = Vendor(stack)
    with vendor.http:
        yield vendor


@pytest.fixture(scope="session")
def inbox(stack: Stack) -> Iterator[Inbox]:
    """The receiver, which verifies what it gets."""
    inbox = Inbox(stack)
    with inbox.http:
        yield inbox


@pytest.fixture(scope="session")
def admin(stack: Stack) -> Admin:
    """The admin command, run against the stack; a call returns what it prints."""
    environment = os.environ | {
        "AWS_ENDPOINT_URL": stack.aws_endpoint_url,
        "AWS_DEFAULT_REGION": stack.aws_region,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }

    def run(*arguments: str) -> Any:
        command = [sys.executable, "-m", "taskhook", "callers", *arguments, "--stack", stack.stack, "--json"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def marker() -> str:
    """A word that no other test uses."""
    return uuid.uuid4().hex
