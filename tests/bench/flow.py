"""Tasks that flow through a deployed stack while things go wrong, and what must be true in the end."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from standardwebhooks.webhooks import Webhook

from taskhook.vendors import VENDORS
from tests.bench.own_stack import started
from tests.judge import judge
from tests.modellix.faults import TASK_FAULTS
from tests.progress import STILL_S, Progress

ROOT = Path(__file__).parents[2]
SUBMITS_AT_ONCE = 8  # the emulated account starts a process for each
FRONT_S = 60.0  # the front door answers after 30 s at the latest
# Of the submits that the account serves when it does nothing else; the rest is for polls and callbacks.
MEASURED_SHARE = 0.7
FRESH_S = 60.0  # an attempt takes 15 s at most
REFUSED = {400, 403, 404, 405, 413, 415, 422}
STATUSES = ("302", "401", "402", "403", "404", "408", "409", "425", "429", "500", "503")
KEY_FAULTS = frozenset({"401", "402"})
SUBMIT_FAULTS = (*sorted(TASK_FAULTS), *STATUSES)
# A 404 is believed the second time, and 401 and 402 rest the polls for a minute: one of each kind is enough.
POLL_FAULTS = tuple(fault for fault in SUBMIT_FAULTS if fault != "402")
SETBACKS: tuple[dict[str, Any], ...] = (
    {"status": 503},
    {"status": 0},
    {"status": 500, "delay_s": 1.0},
    {"status": 302},
    {"status": 404},
)

type Json = dict[str, Any]
type Listing = Callable[[], Awaitable[list[Json]]]


@dataclass
class Sent:
    """One task as its submitter knows it."""

    number: int
    caller: str
    vendor: str
    task_id: str | None = None  # of an accepted one
    refused: bool = False
    tries: int = 0
    heard: str = "nothing"  # last


@dataclass
class Flow:
    """N tasks of several callers at several vendors, through one stack."""

    endpoint: str
    vendors: dict[str, str]  # origins, by name
    receiver: str
    callers: dict[str, tuple[str, str]]  # token and signing secret, by name
    mark: str
    seed: int
    task_seconds: tuple[float, float] = (1.0, 6.0)
    sent: list[Sent] = field(default_factory=list)
    # by the monotonic clock, one for each task that has its answer
    answered_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.http = httpx.AsyncClient(
            timeout=FRONT_S, trust_env=False, limits=httpx.Limits(max_connections=64)
        )
        self._answers = Progress()

    async def submit_all(self, tasks: int, *, most_per_second: float, measured: int = 0) -> float:
        """Submit as careful clients do, with a key each, until there is an answer. Give the tasks a second.

        The first `measured` tasks come as fast as they are answered; the others at a share of that rate, or
        at `most_per_second`.
        """
        slots = asyncio.Semaphore(SUBMITS_AT_ONCE)
        callers, vendors = sorted(self.callers), sorted(self.vendors)
        self.sent = [
            Sent(number, callers[number % len(callers)], vendors[number // len(callers) % len(vendors)])
            for number in range(tasks)
        ]
        seconds = [round(self.dice.uniform(*self.task_seconds), 2) for _ in self.sent]

        async def one(sent: Sent, at: float) -> None:
            await asyncio.sleep(max(at - time.monotonic(), 0))
            if sent.number % 2 == 0:  # of every three attempts one fails: those of even tasks are made twice
                await self._set_back(sent.number)
            await self._submit(sent, seconds[sent.number], slots)

        per_second = most_per_second
        await asyncio.gather(*(one(sent, 0) for sent in self.sent[:measured]))
        if measured:
            # the first start a process each
            began, ended = self.answered_at[SUBMITS_AT_ONCE - 1], self.answered_at[-1]
            per_second = min(most_per_second, MEASURED_SHARE * (measured - SUBMITS_AT_ONCE) / (ended - began))
        now = time.monotonic()
        await asyncio.gather(
            *(one(sent, now + number / per_second) for number, sent in enumerate(self.sent[measured:]))
        )
        return per_second

    async def _submit(self, sent: Sent, seconds: float, slots: asyncio.Semaphore) -> None:
        hook = f"{self.receiver}/{self.mark}/{sent.number}"
        media = f"{self.vendors[sent.vendor]}/media"
        image = f"{media}/actor.jpg?{self.mark}={sent.number}&task_seconds={seconds}"
        example = VENDORS[sent.vendor].example
        url, body = f"{self.endpoint}{example.path}", example.with_media(image, f"{media}/scene.mp4")
        headers = {
            **example.headers,
            "Authorization": f"Bearer {self.callers[sent.caller][0]}",
            "Idempotency-Key": f"{self.mark}-{sent.number}",
            "X-Webhook-URL": hook,
        }
        while self._answers.goes_on(len(self.answered_at)):
            sent.tries += 1
            with contextlib.suppress(httpx.TransportError):
                async with slots:
                    answer = await self.http.post(url, json=body, headers=headers)
                named = re.search(r"tk_[A-Za-z0-9_-]{22}", answer.text)
                if named and (answer.status_code == 200 or "Outcome unknown" in answer.text):
                    sent.task_id = named[0]
                sent.refused = sent.task_id is None and answer.status_code in REFUSED
                sent.heard = f"{answer.status_code} {answer.text[:200]}"
            if sent.task_id or sent.refused:
                self.answered_at.append(time.monotonic())
                return
            await asyncio.sleep(self.dice.uniform(0.5, 2))
        alone = (
            f"task {sent.number} got no answer in {sent.tries} tries, nor did any other for {STILL_S:.0f} s"
        )
        raise RuntimeError(f"{alone}; heard last: {sent.heard}")

    async def _set_back(self, number: int) -> None:
        behaviour = {"path": f"/{self.mark}/{number}", "times": 1, **SETBACKS[number // 2 % len(SETBACKS)]}
        (await self.http.post(f"{self.receiver}/_control", json=behaviour)).raise_for_status()

    async def inject(
        self, rounds: int, *, every_tasks: float, after: int = 0, spare: frozenset[str] = frozenset()
    ) -> Counter[str]:
        """Let the vendors in turn go wrong in every way they know, one after another, but for those spared.

        Once for every so many tasks that have been answered, from the task `after` on: a slow machine meets
        as many as a fast one.
        """
        injected: Counter[str] = Counter()
        due: float = after
        faults = [("submit", fault) for fault in SUBMIT_FAULTS] + [("task", fault) for fault in POLL_FAULTS]
        faults = [(on, fault) for on, fault in faults if fault not in spare]
        turns = itertools.cycle(sorted(self.vendors))
        for _ in range(rounds):
            self.dice.shuffle(faults)
            # Key faults come before any task is queued, which they would hold up for a minute.
            faults.sort(key=lambda one: one[1] not in KEY_FAULTS)
            for on, fault in faults:
                while len(self.answered_at) < due:  # noqa: ASYNC110  # a count is no event
                    await asyncio.sleep(0.05)
                more = {"seconds": 3.0} if fault == "slow" else {}
                origin = self.vendors[next(turns)]
                answer = await self.http.post(
                    f"{origin}/_control/faults", json={"on": on, "fault": fault, **more}
                )
                answer.raise_for_status()
                injected[f"{on} {fault}"] += 1
                due += 0 if fault in KEY_FAULTS else every_tasks
        return injected

    async def heal(self) -> None:
        """Take back the faults that no vendor has met yet."""
        for origin in self.vendors.values():
            (await self.http.delete(f"{origin}/_control/faults")).raise_for_status()

    async def settled(self, deliveries: Listing, *, patience_s: float, look_s: float = 2.0) -> None:
        """Wait for every accepted task's callback for as long as anything moves.

        Some have a long way: whether the vendor took what it did not answer, it may tell by itself, or a
        quarter of an hour does; and a receiver that failed twice is left alone for minutes. When only such
        are left, `patience_s` without a move are enough.
        """
        progress = Progress(max(STILL_S, patience_s))
        accepted = {sent.task_id: sent for sent in self.sent if sent.task_id}
        while True:
            came = await deliveries()
            called = {delivery["task_id"] for delivery in came if delivery["status_answered"] == 200}
            left = [sent for task_id, sent in accepted.items() if task_id not in called]
            counts = [
                (await self.http.get(f"{origin}/_control/counts")).json() for origin in self.vendors.values()
            ]
            seen = len(came), len(left), *((one["submits"], one["running"]) for one in counts)
            if not left or not progress.goes_on(seen):
                return
            if progress.still(seen) >= patience_s and all(
                map(_has_a_long_way, [await self._show(sent) for sent in left])
            ):
                return
            await asyncio.sleep(look_s)

    async def audit(self, deliveries: Listing) -> "Audit":
        """Look from outside: what the vendor was paid, what receivers got, what the API says of the rest."""
        upstream = await self._paid()
        messages: dict[str, list[Json]] = defaultdict(list)
        for delivery in await deliveries():
            messages[delivery["task_id"]].append(delivery)
        audit = Audit(accepted=0, refused=sum(sent.refused for sent in self.sent))
        audit.double_paid = sum(len(tasks) > 1 for tasks in upstream.values())
        for sent in self.sent:
            if sent.task_id is None:
                continue
            audit.accepted += 1
            came = messages[sent.task_id]
            taken = [delivery for delivery in came if delivery["status_answered"] == 200]
            audit.duplicates += max(len(taken) - 1, 0)
            if len({(one["headers"]["webhook-id"], one["body"]) for one in came}) > 1:
                audit.broken.append(f"{sent.task_id} has several ids or bodies")
            audit.broken += [f"{sent.task_id}: {why}" for one in came if (why := self._refute(sent, one))]
            if taken:
                audit.delivered += 1
                ended = next((task["ended_at"] for task in upstream[sent.number]), None)
                body = json.loads(taken[0]["body"])
                audit.outcomes[body["data"].get("error", {}).get("code", "success")] += 1
                if ended is not None and body["data"]["status"] == "success":
                    audit.late[sent.vendor].append(taken[0]["answered_at"] - ended)
                if body["data"]["status"] == "success" and not upstream[sent.number]:
                    audit.broken.append(f"{sent.task_id} is a success that the vendor does not know")
                continue
            audit.left.append(await self._show(sent))
        # meanwhile
        reached = {
            delivery["task_id"] for delivery in await deliveries() if delivery["status_answered"] == 200
        }
        audit.delivered += sum(task.get("task_id") in reached for task in audit.left)
        audit.left = [task for task in audit.left if task.get("task_id") not in reached]
        return audit

    async def _paid(self) -> dict[int, list[Json]]:
        """List what each vendor took, by the number of the task."""
        paid: dict[int, list[Json]] = defaultdict(list)
        for origin in self.vendors.values():
            control = (await self.http.get(f"{origin}/_control", timeout=120)).json()
            for task in control["tasks"]:
                if found := re.search(rf"[?&]{self.mark}=(\d+)&", json.dumps(task["request"])):
                    paid[int(found[1])].append(task)
        return paid

    def _refute(self, sent: Sent, delivery: Json) -> str | None:
        """Say what is wrong with a message; its age is that at which it came."""
        headers = delivery["headers"]
        at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
        good = Webhook(self.callers[sent.caller][1]).sign(headers["webhook-id"], at, delivery["body"])
        if good not in headers["webhook-signature"].split(" "):
            return "its signature is not its caller's"
        if abs(delivery["received_at"] - at.timestamp()) > FRESH_S:
            return "its timestamp was old when it came"
        return None

    async def _show(self, sent: Sent) -> Json:
        headers = {"Authorization": f"Bearer {self.callers[sent.caller][0]}"}
        answer = await self.http.get(f"{self.endpoint}/api/v1/tasks/{sent.task_id}", headers=headers)
        shown: Json = answer.json().get("data", {"status": f"answered {answer.status_code}"})
        return shown


def _has_a_long_way(task: Json) -> bool:
    callback = task.get("callback", {})
    return (
        task.get("stage") == "unknown"
        or callback.get("state") in {"none", "undelivered"}
        or callback.get("attempts", 0) > 1
    )


def judged(file: Path) -> dict[str, Any]:
    """Have a history judged by code that knows nothing of this: its hash, and what does not hold in it.

    Where HISTORY names a folder, the history is kept there.
    """
    found = judge(file.read_text().splitlines())
    for words in found:
        print(words, file=sys.stderr)
    if folder := os.environ.get("HISTORY"):
        shutil.copy(file, folder)
    with file.open("rb") as content:
        return {"judged": len(found), "history_sha256": hashlib.file_digest(content, "sha256").hexdigest()}


@dataclass
class Audit:
    """What came of the tasks."""

    accepted: int
    refused: int
    delivered: int = 0
    duplicates: int = 0
    double_paid: int = 0
    broken: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    # seconds from each vendor's end to the first 2xx
    late: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    left: list[Json] = field(default_factory=list)  # accepted and not called back, as the API shows them

    @property
    def lost(self) -> int:
        """Count those whose caller will hear nothing: not called back, on their way or given up."""
        on_its_way = {"waiting", "undelivered"}
        return sum(
            task.get("callback", {}).get("state") not in on_its_way
            and task.get("error", {}).get("code") != "upstream_refused"
            for task in self.left
        )


class Deliveries:
    """What a stack of one's own says on its stdout."""

    def __init__(self) -> None:
        self.all: list[Json] = []

    async def read(self, stdout: asyncio.StreamReader) -> None:
        """Read the stack's lines to their end."""
        while line := await stdout.readline():
            self.all.append(json.loads(line))

    async def listed(self) -> list[Json]:
        """List them."""
        return self.all


@contextlib.asynccontextmanager
async def own_stack(*flags: str) -> AsyncIterator[tuple[Json, Deliveries, int]]:
    """Start an embedded stack; give its first line, what it says of callbacks, and its process id."""
    deliveries = Deliveries()
    async with started(*flags, read=deliveries.read) as (ready, pid):
        yield ready, deliveries, pid


async def add_callers(ready: Json, names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Add callers beside the one that the stack comes with; give each one's token and signing secret."""
    known = {"local": (ready["token"], ready["signing_secret"])}
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": ready["aws_endpoint_url"],
        "AWS_DEFAULT_REGION": ready["aws_region"],
        "PATH": "/usr/bin:/bin",
    }
    for name in names:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "taskhook", "callers", "add", name, "--stack", ready["stack"], "--json"),
            cwd=ROOT,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        printed, _ = await process.communicate()
        caller = json.loads(printed)
        known[name] = (caller["token"], caller["signing_secret"])
    return known
