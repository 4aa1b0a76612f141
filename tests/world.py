"""The ports in memory: fakes that take the exam of the real adapters, a vendor and receivers."""

import asyncio
import json
import secrets
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import pytest

from taskhook.core import encryption, signature
from taskhook.core.admission import AdmissionState
from taskhook.core.caller import Caller, Credential
from taskhook.core.callers import hash_token
from taskhook.core.errors import (
    ArchiveUnavailableError,
    SourceChangedError,
    SourceGoneError,
    StaleTaskError,
    TaskExistsError,
)
from taskhook.core.leadership import LeadershipView
from taskhook.core.message import Json
from taskhook.core.models import MediaFacts
from taskhook.core.ports import EXTRA_DELIVERY_GAP, Admit, Piece, Row, Rows, TaskPage
from taskhook.core.record import Submission, SubmitOutcome, milliseconds, partition
from taskhook.core.reply import Reply
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import Task
from taskhook.core.vendor import FreeOutcome, ListOutcome, PollKind, PollOutcome, Vendor
from taskhook.delivery.hosts import Hosts
from taskhook.settings import CallbackLatency, CallbackTargets, FirstPoll, MediaChecks, Settings, Switch
from taskhook.submit.request import SubmitRequest
from taskhook.vendors.modellix import MODELLIX

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
GOOD_IMAGE = MediaFacts(size=100_000, format="JPEG", tracks=("Image",), width=600, height=800)
GOOD_VIDEO = MediaFacts(
    size=1_000_000, format="MPEG-4", tracks=("Video",), width=640, height=480, seconds=(5.0,)
)


def open_until(hosts: Hosts, caller: str, host: str) -> datetime | None:
    """Tell until when nothing is sent to a caller's host; None where something may be."""
    state = hosts._known(caller, host).state
    return state.open_until if state.is_open(hosts._clock.now()) else None


class VirtualClock:
    """Time that passes only while every task sleeps."""

    def __init__(self, start: datetime = START) -> None:
        self._now = start
        self._sleepers: list[tuple[datetime, asyncio.Future[None]]] = []
        self._turn = 0

    def now(self) -> datetime:
        """Tell the virtual time."""
        return self._now

    async def sleep(self, duration: timedelta) -> None:
        """Wait until time has moved on, which it does when every other task sleeps too."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now + max(duration, timedelta(0)), future))
        self._settle_anew()
        await future

    def pass_by(self, duration: timedelta) -> None:
        """Let time pass between two invocations."""
        self._now += duration

    def _settle_anew(self) -> None:
        self._turn += 1
        asyncio.get_running_loop().call_soon(self._settle, self._turn, 20)

    def _settle(self, turn: int, rounds: int) -> None:
        """Give every task some rounds of the loop to fall asleep too, then wake the one that is due first."""
        if turn != self._turn:
            return  # another task has fallen asleep since, and counts anew
        if rounds:
            asyncio.get_running_loop().call_soon(self._settle, turn, rounds - 1)
            return
        self._sleepers = [(at, future) for at, future in self._sleepers if not future.done()]
        if self._sleepers:
            at, future = min(self._sleepers, key=lambda sleeper: sleeper[0])
            self._now = max(self._now, at)
            future.set_result(None)
            self._settle_anew()


def _apart(task: Task) -> Task:
    """Leave the request out, as a store does."""
    return task.model_copy(update={"request": None})


class MemoryTasks:
    """`TaskStore`, `WorkIndex` and `TaskHistory` in a dict."""

    def __init__(self) -> None:
        self.items: dict[str, Task] = {}
        self.index: dict[str, tuple[str, str]] = {}  # the sparse index of work
        self.writes = 0
        self.read = 0  # tasks and requests, by `TaskHistory`
        self.reserved: dict[str, tuple[str, bool, datetime]] = {}
        self.page_size = 1000
        self._looks: Counter[int] = Counter()  # at the queue, by the writes before

    async def add(self, task: Task) -> Task:
        """Store a new task."""
        if task.task_id in self.items:
            raise TaskExistsError(_apart(self.items[task.task_id]))
        return self._store(task)

    async def get(self, task_id: str) -> Task | None:
        """Read a task."""
        return _apart(self.items[task_id]) if task_id in self.items else None

    async def with_request(self, task: Task) -> Task:
        """Read a task's request."""
        stored = self.items.get(task.task_id)
        return task.model_copy(update={"request": task.request or (stored.request if stored else None)})

    async def reserve(
        self, request: str, task_id: str, *, repeat: bool, now: datetime, until: datetime
    ) -> str:
        """Reserve an id, or give the one that is."""
        reserved, overtaken, end = self.reserved.get(request, (task_id, repeat, now - timedelta(seconds=1)))
        if end <= now or (not repeat and not overtaken):
            reserved, overtaken = task_id, repeat
        self.reserved[request] = reserved, overtaken and repeat, until
        return reserved

    async def swap(self, old: Task, new: Task) -> Task:
        """Store `new` if `old` is still there."""
        current = self.items.get(old.task_id)
        if current is None or current.nonce != old.nonce:
            raise StaleTaskError(_apart(current) if current else None)
        return self._store(
            new if new.request is not None else new.model_copy(update={"request": current.request})
        )

    def _store(self, task: Task) -> Task:
        self.writes += 1
        stored = task.model_copy(update={"nonce": secrets.token_hex(8)})
        self.items[task.task_id] = stored
        self.index.pop(task.task_id, None)
        if stored.work_key is not None:
            self.index[task.task_id] = stored.work_key
        return stored

    def _rows(self, partition: str) -> list[tuple[str, Task]]:
        rows = [
            (at, _apart(self.items[task_id]))
            for task_id, (work, at) in self.index.items()
            if work == partition
        ]
        return sorted(rows, key=lambda row: row[0])

    async def read_many(self, task_ids: Sequence[str]) -> list[Task]:
        """Read tasks without what is bulky."""
        found = [self.items[task_id] for task_id in task_ids if task_id in self.items]
        return [task.model_copy(update={"request": None, "message": None, "result": None}) for task in found]

    async def watched(self, vendor: str, since: datetime | None, *, cursor: Any = None) -> Rows:
        """Read a page of `watch`."""
        return self._page(partition("watch", vendor), since, None, cursor)

    async def retries(self, since: datetime | None, before: datetime, *, cursor: Any = None) -> Rows:
        """Read a page of `retry`."""
        return self._page("retry", since, before, cursor)

    def _page(self, partition: str, since: datetime | None, before: datetime | None, cursor: Any) -> Rows:
        start = max(f"{milliseconds(since):013d}" if since else "0", cursor or "0")
        end = f"{milliseconds(before):013d}" if before else "~"
        rows = sorted(
            (at, task_id)
            for task_id, (work, at) in self.index.items()
            if work == partition and start <= at < end
        )
        page = [Row(task_id, at) for at, task_id in rows if at != cursor][: self.page_size]
        return Rows(page, page[-1].at if len(rows) > len(page) and len(page) == self.page_size else None)

    async def queue_waits(self, vendor: str) -> bool:
        """Tell whether any task is queued."""
        return bool(self._rows(partition("queue", vendor)))

    async def queue_heads(self, vendor: str) -> list[Task]:
        """List each caller's oldest queued task; fails the test of a queue that looks for ever, in vain."""
        self._looks[self.writes] += 1
        if self._looks[self.writes] > 10_000:
            pytest.fail("the queue is looked at again and again, and nothing is written")
        heads: dict[str, Task] = {}
        for _, task in self._rows(partition("queue", vendor)):
            heads.setdefault(task.caller, task)
        return [heads[caller] for caller in sorted(heads)]

    async def queue_of(self, vendor: str, caller: str) -> list[Task]:
        """List the oldest of a caller's queued tasks."""
        queued = [task for _, task in self._rows(partition("queue", vendor)) if task.caller == caller]
        return queued[:100]

    async def page(self, caller: str, *, after: str, until: str, limit: int) -> TaskPage:
        """Read a page of a caller's tasks, newest first."""
        found = [
            task for task in self.items.values() if task.caller == caller and after < task.created_key < until
        ]
        found.sort(key=lambda task: task.created_key, reverse=True)
        page = tuple(task.model_copy(update={"request": None}) for task in found[:limit])
        self.read += len(page)
        return TaskPage(tasks=page, cursor=page[-1].created_key if len(found) > limit else None)

    async def with_requests(self, tasks: Sequence[Task]) -> list[Task]:
        """Read the requests of tasks."""
        self.read += len(tasks)
        return [await self.with_request(task) for task in tasks]

    async def queue_length(self, vendor: str, caller: str, *, at_most: int) -> int:
        """Count a caller's queued tasks."""
        return min(at_most, sum(task.caller == caller for _, task in self._rows(partition("queue", vendor))))


class MemoryControl:
    """`LeadershipStore`, `AdmissionStore`, `Budget` and `DeliveryRate` in memory."""

    def __init__(self) -> None:
        self.leadership = LeadershipView()
        self.left: dict[str, dict[str, datetime]] = {}  # by leaders to their successors
        self.admissions: dict[str, AdmissionState] = {}  # by vendor
        self.admission_writes = 0
        self.used: Counter[tuple[str, int]] = Counter()  # by vendor and window
        self.rates: dict[str, datetime] = {}
        self.spent: Counter[tuple[str, str]] = Counter()  # by caller and day
        self.counted_last: dict[tuple[str, str], str] = {}

    async def view(self) -> LeadershipView:
        """Read the leadership."""
        return self.leadership

    async def acquire(self, seen: LeadershipView, new: LeadershipView, *, takeover: bool) -> bool:
        """Take the leadership."""
        if not takeover and self.leadership.leader not in {"", seen.leader, new.leader}:
            return False
        self.leadership = new.model_copy(update={"webhook_at": self.leadership.webhook_at})
        return True

    async def resign(self, leader: str, *, drained_at: datetime | None = None) -> None:
        """Give the leadership up."""
        if self.leadership.leader == leader:
            self.leadership = self.leadership.model_copy(
                update={"until": None, "drained_at": drained_at or self.leadership.drained_at}
            )

    async def webhook_came(self, at: datetime | None) -> None:
        """Remember a true webhook."""
        self.leadership = self.leadership.model_copy(update={"webhook_at": at})

    async def hand_over(self, leader: str, unserved: Mapping[str, datetime]) -> None:
        """Leave poll times to a successor."""
        self.left[leader] = dict(unserved)

    async def handed_over(self, leader: str) -> dict[str, datetime] | None:
        """Read what was left."""
        return self.left.get(leader)

    @property
    def the_admission(self) -> AdmissionState:
        """The admission state of Modellix."""
        return self.admissions.get(MODELLIX.name, AdmissionState())

    @the_admission.setter
    def the_admission(self, admission: AdmissionState) -> None:
        self.admissions[MODELLIX.name] = admission

    async def admission(self, vendor: str) -> AdmissionState:
        """Read the admission state."""
        return self.admissions.get(vendor, AdmissionState())

    async def set_admission(self, vendor: str, old: AdmissionState, new: AdmissionState) -> AdmissionState:
        """Store the state if `old` still stands."""
        if self.admissions.get(vendor, AdmissionState()).nonce == old.nonce:
            self.admissions[vendor] = new.model_copy(update={"nonce": secrets.token_hex(8)})
            self.admission_writes += 1
        return self.admissions[vendor]

    async def reserve_deliveries(
        self, caller: str, count: int, *, now: datetime, latest: datetime
    ) -> datetime:
        """Reserve moments of a caller's rate."""
        first = max(now, self.rates.get(caller, now))
        if first <= latest:
            self.rates[caller] = first + EXTRA_DELIVERY_GAP * count
        return first

    async def count_task(self, caller: str, task_id: str, *, day: str, at_most: int, until: datetime) -> bool:
        """Count a task of the day."""
        assert until.isoformat() > day
        if self.counted_last.get((caller, day)) == task_id:
            return True
        if self.spent[caller, day] >= at_most:
            return False
        self.spent[caller, day] += 1
        self.counted_last[caller, day] = task_id
        return True

    async def counted(self, caller: str, *, day: str) -> int:
        """Tell how many were counted."""
        return self.spent[caller, day]

    async def take_tokens(self, vendor: str, wanted: int, *, window: int, limit: int) -> int:
        """Take requests out of a window."""
        taken = max(0, min(wanted, limit - self.used[vendor, window]))
        self.used[vendor, window] += taken
        return taken


async def a_key(*, fresh: bool) -> str:
    """Give a key, as `ApiKey` does."""
    return "fresh" if fresh else "kept"


class AtModellix:
    """What every fake of a vendor's API is asked beside submits, polls and balance."""

    vendor: Vendor = MODELLIX
    origin = "https://vendor.example.com"
    lists: list[str] | None = None
    list_outcomes: list[ListOutcome] = []  # noqa: RUF012  # each fake that needs some sets its own
    listings = 0
    answers: Mapping[str, PollKind] = MappingProxyType({})  # by the vendor's id: what polls are told

    async def cancel(self, upstream_task_id: str, *, operation: str | None = None) -> FreeOutcome:
        """Have no way to cancel a task."""
        del upstream_task_id, operation
        return FreeOutcome(answered=False)

    async def tasks_made(self, model: str, *, since: datetime, until: datetime) -> ListOutcome:
        """List what it was told to, if its vendor has a list."""
        del model, since, until
        self.listings += 1
        if self.list_outcomes:
            return self.list_outcomes.pop(0)
        listed = self.lists if self.vendor.listing is not None else None
        return ListOutcome(
            kind=PollKind.SUCCEEDED, upstream_task_ids=None if listed is None else tuple(listed)
        )


@dataclass
class FakeVendor(AtModellix):
    """`TaskApi`: answers what it is told to, counts what it is asked, and runs tasks in virtual time."""

    clock: VirtualClock
    task_time: timedelta = timedelta(seconds=30)
    submits: list[str] = field(default_factory=list)
    polls: list[tuple[datetime, str]] = field(default_factory=list)
    submit_outcomes: deque[SubmitOutcome] = field(default_factory=deque)
    poll_outcomes: deque[PollOutcome] = field(default_factory=deque)
    taken: dict[str, datetime] = field(default_factory=dict)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    webhook_urls: dict[str, str | None] = field(default_factory=dict)
    holds: bool = False
    answer_time: timedelta = timedelta(milliseconds=200)  # of a poll
    key_time: timedelta = timedelta(0)  # what reading the key takes before a POST
    slots: int = 1_000_000
    refused: int = 0
    answered: bool = True  # whether it answers when it is only asked for the balance
    balances: list[datetime] = field(default_factory=list)

    @property
    def running(self) -> int:
        """How many tasks run."""
        return sum(self.clock.now() < taken + self.task_time for taken in self.taken.values())

    async def submit(
        self,
        model: str,
        request: bytes,
        *,
        webhook_url: str | None,
        limit: timedelta,
        admit: Admit | None = None,
        **_: object,
    ) -> SubmitOutcome:
        """Take the task, or answer the next outcome told; or refuse it where all slots are taken."""
        assert limit > timedelta(0)
        assert model.startswith("alibaba/")
        if self.key_time:
            await self.clock.sleep(self.key_time)
        if admit is not None and not await admit():
            return SubmitOutcome(submission=Submission.NOT_SENT, message="no request was left")
        self.submits.append(json.loads(request)["image_url"])
        self.asked.set()
        await self.clock.sleep(timedelta(milliseconds=400))
        told = self.submit_outcomes.popleft() if self.submit_outcomes else None
        if told is not None and told.submission is not Submission.TAKEN:
            return told
        if self.running >= self.slots:
            self.refused += 1
            return SubmitOutcome(submission=Submission.BUSY, status=429, message="Concurrent limit exceeded")
        upstream_task_id = f"task-{len(self.taken)}"
        self.taken[upstream_task_id] = self.clock.now()
        self.webhook_urls[upstream_task_id] = webhook_url
        asked_for = told.retry_after if told is not None else None
        return SubmitOutcome(
            submission=Submission.TAKEN, upstream_task_id=upstream_task_id, status=200, retry_after=asked_for
        )

    async def poll(self, upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        """Say how far the task is, or answer the next outcome told; held as long as a holding vendor does."""
        self.polls.append((self.clock.now(), upstream_task_id))
        await self.clock.sleep(self.answer_time)
        if self.answers.get(upstream_task_id, PollKind.PENDING) is not PollKind.PENDING:
            return PollOutcome(kind=self.answers[upstream_task_id])
        if self.poll_outcomes:
            return self.poll_outcomes.popleft()
        if hold and self.holds:
            rest = self.taken[upstream_task_id] + self.task_time - self.clock.now()
            await self.clock.sleep(min(rest, timedelta(seconds=30)))
        if self.clock.now() < self.taken[upstream_task_id] + self.task_time:
            return PollOutcome(kind=PollKind.PENDING)
        return a_success(upstream_task_id)

    async def balance(self) -> FreeOutcome:
        """Tell the balance, or give no answer."""
        self.balances.append(self.clock.now())
        await self.clock.sleep(self.answer_time)
        if not self.answered:
            return FreeOutcome(answered=False, status=503, message="down")
        return FreeOutcome(
            answered=True, status=200, body={"code": 0, "message": "success", "data": {"balance": 12.3456}}
        )


def a_request(
    model: str, body: Json, *, caller: Caller, targets: TargetPolicy | None = None, **headers: str | None
) -> SubmitRequest:
    """Read a submit to Modellix; `headers` are named as in `idempotency_key`, and may be None."""
    sent = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    return SubmitRequest.read(
        MODELLIX, f"/api/v1/{model}", body, caller=caller, targets=targets or TargetPolicy(), headers=sent
    )


def a_success(upstream_task_id: str) -> PollOutcome:
    """Make what a vendor tells of a task that has ended well."""
    data = {
        "status": "success",
        "result": {"resources": [{"url": f"https://files.example.com/{upstream_task_id}.mp4"}]},
    }
    return PollOutcome(kind=PollKind.SUCCEEDED, data=data)


@dataclass
class FakeReceivers:
    """`CallbackSender`: keeps every attempt and answers 200, or what it is told."""

    clock: VirtualClock
    attempts: list[tuple[datetime, str, dict[str, str], bytes]] = field(default_factory=list)
    replies: deque[Reply] = field(default_factory=deque)
    answer_time: timedelta = timedelta(milliseconds=100)

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Take one attempt."""
        self.attempts.append((self.clock.now(), url, dict(headers), body))
        await self.clock.sleep(self.answer_time)
        return self.replies.popleft() if self.replies else Reply(status=200, elapsed=self.answer_time)

    async def close(self) -> None:
        """Have nothing to close."""


@dataclass
class FakeMedia:
    """`MediaProbe`: shows what it is told of a URL, and good media otherwise."""

    clock: VirtualClock
    facts: dict[str, MediaFacts] = field(default_factory=dict)
    looks: list[tuple[str, timedelta]] = field(default_factory=list)

    async def look(self, url: str, *, limit: timedelta) -> MediaFacts:
        """Look at it for a second."""
        self.looks.append((url, limit))
        await self.clock.sleep(timedelta(seconds=1))
        return self.facts.get(url, GOOD_VIDEO if ".mp4" in url else GOOD_IMAGE)


SETTINGS = Settings(
    stack_name="shop",
    tasks_table="Tasks",
    callers_table="Callers",
    keys_secret="arn:aws:secretsmanager:us-east-1:123456789012:secret:keys",
    public_url="https://tasks.example.com",
    api_url="https://abcdefghij.execute-api.us-east-1.amazonaws.com",
    poll_function="poll",
    callback_targets=CallbackTargets.PUBLIC,
    callback_latency=CallbackLatency.FAST,
    first_poll=FirstPoll.TYPICAL,
    requests_per_minute=1000,
    long_poll=Switch.ON,
    vendor_webhooks=Switch.ON,
    media_checks=MediaChecks.ENFORCE,
    max_queued=1000,
    max_task_hours=24,
    max_queue_hours=24,
    retention_days=7,
    archives_at_once=2,
)


class MemoryCallers:
    """`CallerDirectory` and `CallerAdmin` in a dict."""

    def __init__(self, *callers: Caller) -> None:
        self.items = {caller.caller: caller for caller in callers}
        self.kept: dict[str, Caller] = {}  # read before
        self.reads: list[str] = []

    async def cached(self, name: str) -> Caller | None:
        """Give one that was read before."""
        return self.kept.get(name)

    async def read(self, name: str) -> Caller | None:
        """Read one, and keep it."""
        self.reads.append(name)
        self.kept.pop(name, None)
        if name in self.items:
            self.kept[name] = self.items[name]
        return self.items.get(name)

    async def find(self, name: str) -> Caller | None:
        """Look one up."""
        return await self.cached(name) or await self.read(name)

    async def add(self, caller: Caller) -> bool:
        """Store a new one."""
        return self.items.setdefault(caller.caller, caller) is caller

    async def update(self, old: Caller, new: Caller) -> bool:
        """Store `new` if `old` is still there."""
        if self.items.get(old.caller) != old:
            return False
        self.items[old.caller] = new
        return True

    async def remove(self, caller: Caller) -> bool:
        """Delete one if it is still there as given."""
        if self.items.get(caller.caller, caller) != caller:
            return False
        self.items.pop(caller.caller, None)
        return True

    async def encrypted(self, name: str, secret: str) -> str:
        """Keep it as it is."""
        del name
        return secret

    async def every(self) -> list[Caller]:
        """List all."""
        return [self.items[name] for name in sorted(self.items)]


@dataclass
class RecordingReporter:
    """`Reporter`: keeps what it is told."""

    events: list[tuple[str, dict[str, str | int | float | None]]] = field(default_factory=list)

    def report(self, event: str, **facts: str | float | None) -> None:
        """Keep it."""
        self.events.append((event, facts))

    def count(self, event: str) -> int:
        """Count one kind."""
        return sum(told == event for told, _ in self.events)


@dataclass
class RecordingWake:
    """`Wake`: keeps the ids."""

    task_ids: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    known_outcomes: dict[str, PollOutcome | None] = field(default_factory=dict)

    async def wake(
        self, task_id: str, *, ended: bool = False, known_outcome: PollOutcome | None = None
    ) -> None:
        """Keep the id, and what is known of the end."""
        (self.ended if ended else self.task_ids).append(task_id)
        self.known_outcomes[task_id] = known_outcome


class MemoryArchive:
    """`Archive` in a dict."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.media_types: dict[str, str] = {}
        self.uploads: dict[tuple[str, str], dict[int, bytes]] = {}
        self.puts: list[tuple[str, int]] = []
        self.failing = 0  # how many of the next calls fail

    async def begin(self, key: str, media_type: str) -> str:
        """Begin an upload."""
        self._answer()
        upload = secrets.token_hex(8)
        self.uploads[key, upload], self.media_types[key] = {}, media_type
        return upload

    async def parts(self, key: str, upload: str) -> list[int] | None:
        """List the parts' sizes."""
        self._answer()
        parts = self.uploads.get((key, upload))
        return None if parts is None else [len(part) for _, part in sorted(parts.items())]

    async def put(self, key: str, upload: str, number: int, data: bytes) -> None:
        """Keep a part."""
        self._answer()
        self.puts.append((key, number))
        if (key, upload) not in self.uploads:
            raise ArchiveUnavailableError("NoSuchUpload")
        self.uploads[key, upload][number] = data

    async def finish(self, key: str, upload: str) -> None:
        """Make the file."""
        self._answer()
        if (key, upload) not in self.uploads:
            raise ArchiveUnavailableError("NoSuchUpload")
        self.files[key] = b"".join(part for _, part in sorted(self.uploads.pop((key, upload)).items()))

    async def drop(self, key: str, upload: str) -> None:
        """End an upload."""
        self._answer()
        self.uploads.pop((key, upload), None)

    async def link(self, key: str) -> str | None:
        """Make a link."""
        self._answer()
        return f"https://bucket.example.com/{key}?signature=1" if key in self.files else None

    def _answer(self) -> None:
        if self.failing:
            self.failing -= 1
            raise ArchiveUnavailableError("SlowDown")


@dataclass
class FakeOriginals:
    """`Originals` by URL, at a rate; what is not there is gone, and a read may break off or find a change."""

    clock: VirtualClock
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    reads: list[tuple[str, int]] = field(default_factory=list)
    errors: deque[Exception | None] = field(default_factory=deque)  # of the next reads
    tells_size: bool = True
    pace: timedelta = timedelta(seconds=1)  # of a read
    open: bool = False

    async def read(self, url: str, *, start: int, length: int, tag: str | None) -> Piece:
        """Read a piece."""
        self.open = True
        self.reads.append((url, start))
        await self.clock.sleep(self.pace)
        if self.errors and (error := self.errors.popleft()) is not None:
            raise error
        if url not in self.files:
            raise SourceGoneError("status_404")
        whole, its = self.files[url], self.tags.get(url, "v1")
        if tag is not None and tag != its:
            raise SourceChangedError
        data = whole[start : start + length]
        last = start + len(data) == len(whole) if self.tells_size else len(data) < length
        return Piece(
            data=data,
            size=len(whole) if self.tells_size else None,
            tag=its,
            media_type="video/mp4",
            last=last,
        )

    async def close(self) -> None:
        """Close what is open."""
        self.open = False


@dataclass
class RecordingArchiver:
    """`Archiver`: keeps the ids."""

    task_ids: list[str] = field(default_factory=list)
    failing: int = 0  # how many of the next starts fail

    async def start(self, task_id: str) -> bool:
        """Keep the id."""
        self.task_ids.append(task_id)
        self.failing -= 1
        return self.failing < 0


class FixedWebhookUrls:
    """`WebhookUrls` with a token that is easily guessed."""

    async def url(self, task_id: str) -> str | None:
        """Make the address."""
        return f"https://tasks.example.com/hooks/{task_id}/token-of-{task_id}"

    async def valid(self, task_id: str, token: str) -> bool | None:
        """Check the token."""
        return token == f"token-of-{task_id}"


def a_caller(name: str = "alice") -> Caller:
    """Make a caller with a known token (`token_of`) and a random secret."""
    return Caller(
        caller=name,
        tokens=(Credential(value=hash_token(token_of(name))),),
        secrets=(Credential(value=signature.new_secret()),),
        created_at=START,
    )


MATERIAL = "a" * 64


async def deployment_key(*, fresh: bool) -> str:
    """Be the deployment's own key."""
    del fresh
    return MATERIAL


def as_stored(caller: Caller) -> Caller:
    """Give a caller as the table holds it: its signing secrets encrypted under `MATERIAL`."""
    encrypted = [
        one.model_copy(
            update={"value": encryption.encrypt(one.value, material=MATERIAL, context=caller.caller)}
        )
        for one in caller.secrets
    ]
    return caller.model_copy(update={"secrets": tuple(encrypted)})


def token_of(name: str) -> str:
    """Tell the token of `a_caller(name)`."""
    return f"thk_{name}_{name[:1] * 43}"
