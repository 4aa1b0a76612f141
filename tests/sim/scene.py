"""A deployment in memory: both functions over the real adapters of the table, a vendor and receivers that keep the truth."""

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from taskhook.adapters.aws.lambdas import LambdaArchiver, LambdaWake
from taskhook.adapters.aws.s3 import S3Archive
from taskhook.adapters.aws.secrets import DEPLOYMENT_KEY, StackSecret, StoredKey
from taskhook.adapters.aws.webhook_urls import HookUrls
from taskhook.adapters.dynamodb import items
from taskhook.adapters.dynamodb.callers import DynamoCallers
from taskhook.adapters.dynamodb.items import attributes, stored_values
from taskhook.adapters.dynamodb.tasks import DynamoTasks
from taskhook.api import answers
from taskhook.archive.copy import ArchiveReport, Desk, archive, link
from taskhook.core import callers, ports
from taskhook.core.errors import RejectedError, SourceChangedError, SourceGoneError, SourceUnavailableError
from taskhook.core.message import Json
from taskhook.core.models import MediaFacts
from taskhook.core.ports import BalanceOutcome, Piece, PollKind, PollOutcome, Reply
from taskhook.core.rate_limit import Allowance
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import CallbackState, State, Submission, SubmitOutcome, Task
from taskhook.delivery.attempt import CLAIM
from taskhook.delivery.samples import try_out
from taskhook.poller.invocation import PollReport, ends_of, poll
from taskhook.poller.long_poll import LongPollSupport
from taskhook.poller.queue import PAY_CLAIM
from taskhook.poller.work import Rules, World
from taskhook.submit.media import Inspector
from taskhook.submit.payment import Payer
from taskhook.submit.request import Order
from taskhook.submit.submit import Answer, Door, submit
from taskhook.submit.vendor_webhook import HintDesk, hint
from taskhook.tasks import commands, query
from tests.sim.bucket import MemoryS3
from tests.sim.loop import VirtualLoop
from tests.sim.seam import INVOCATION, Invocation, Seam, SeamClock, _impossible
from tests.sim.table import Item, MemoryDynamo
from tests.world import GOOD_IMAGE, GOOD_VIDEO, MATERIAL, START, Told, a_caller, as_stored

MODEL = "alibaba/wan2.2-animate-mix"
TASKS, CALLERS = "tasks", "callers"
ORIGIN = "https://tasks.example.com"
SIGNATURE = "?sig=" + "".join(hashlib.sha256(bytes([n])).hexdigest() for n in range(16))  # that nobody can compress by much
SUBMIT_TIME, POLL_TIME, ARCHIVE_TIME = 20.0, 150.0, 900.0  # the functions' own timeouts, as template.yaml has them
SUBMIT_CLAIM = timedelta(seconds=SUBMIT_TIME + 15)
RESERVE = timedelta(seconds=30)
RETENTION = timedelta(days=7)
TICK = 60.0
QUIET_WITHIN = 12 * 86400.0  # virtual seconds; the schedule of callbacks takes a little over three days, the hard stop two
MISS = 512  # minutes between ticks at most, while nothing changes: days pass in a few of them
PATIENCE = 3  # ticks without a change until then
PATIENT_STEP = 10.0


@dataclass
class Deployment:
    """What the deployment and its vendor are like."""

    requests_per_minute: int = 1000
    signed: bool = False  # media have long URLs, so that a request is stored apart
    max_task_age: timedelta = timedelta(hours=24)
    max_queue_age: timedelta = timedelta(hours=24)
    max_queued: int = 10
    wakes: bool = True
    hints: bool = False
    holds: bool = False  # the vendor holds polls open
    places: int = 1_000_000
    task_time: float = 22.0
    retention: timedelta = RETENTION
    immediate: bool = False
    inspects: bool = False  # media are looked at
    archives: bool = False
    pace: float = 0.5  # seconds for which a part of a result is read
    changes: bool = False  # a result is another one after its second part was read
    serves: bool = True  # the vendor's file server answers


@dataclass
class Post:
    """A paid POST, and what its sender could know of it."""

    name: str
    at: datetime
    sender: str
    seen: Submission | None = None  # None: the sender died before it knew
    taken: bool = False

    @property
    def possible(self) -> bool:
        """Whether it could have been taken, for all that the sender knew."""
        return self.seen not in {Submission.BUSY, Submission.NOT_SENT, Submission.REFUSED_HERE}


@dataclass
class Upstream:
    """A task at the vendor."""

    name: str
    since: float
    hook: str | None
    ends: float
    fails: bool
    known: bool = True  # False: the vendor has lost it
    reported: PollKind | None = None  # the end, once it was told


@dataclass
class Visit:
    """One request that reached a receiver."""

    at: datetime
    url: str
    headers: dict[str, str]
    body: bytes
    sender: str
    status: int | None
    stored: Item | None  # the task's item at that moment
    until: float = 0.0


class SimVendor:
    """`TaskApi`: keeps the truth of what was taken, and what it has told to whom."""

    def __init__(self, scene: "Scene") -> None:
        self._scene = scene
        self.posts: list[Post] = []
        self.tasks: dict[str, Upstream] = {}
        self.requests: list[float] = []
        self.told: list[str] = []  # what is odd at the moment it happens
        self.script: dict[str, list[Submission | str]] = defaultdict(list)  # by name: what becomes of its POSTs
        self.refuses: list[Submission] = []  # what becomes of the next POSTs, whoever they are
        self.misses: list[PollKind] = []  # what becomes of the next polls
        self.times: dict[str, float] = {}  # by name: how long it works, where not as long as on any other

    async def submit(
        self, model: str, request: bytes, *, hook: str | None, limit: timedelta, admit: ports.Admit | None = None
    ) -> SubmitOutcome:
        """Take the task, or refuse it."""
        assert model.startswith("alibaba/")
        if admit is not None and not await admit():
            return SubmitOutcome(submission=Submission.NOT_SENT, message="no request was left")
        scene, name = self._scene, json.loads(request)["image_url"].rpartition("/")[2]
        post = Post(name, scene.loop.now(), _sender())
        self.posts.append(post)
        self.requests.append(scene.loop.time())
        if limit <= timedelta(0):
            self.told.append(f"{name} was posted with no time left")
        states = {str(item["state"]["S"]) for item in scene.items_of(name)}
        if not states & {State.SUBMITTING, State.RESCUE}:
            self.told.append(f"{name} was posted while the table said {states or 'nothing'}")

        async def effect() -> SubmitOutcome:
            await asyncio.sleep(0.4)
            return self._decide(post, hook)

        async def strike(outcome: str) -> SubmitOutcome:
            return await self._strike(outcome, effect, limit)

        answer: SubmitOutcome = await scene.seam.interact("submit", effect, strike)
        post.seen = answer.submission
        return answer

    def _decide(self, post: Post, hook: str | None) -> SubmitOutcome:
        now = self._scene.loop.time()
        planned: Submission | str | None = None
        if self.script[post.name]:
            planned = self.script[post.name].pop(0)
        elif self.refuses:
            planned = self.refuses.pop(0)
        if planned in {Submission.REFUSED, Submission.REFUSED_HERE, Submission.BUSY, Submission.NOT_SENT}:
            status = {Submission.REFUSED: 400, Submission.REFUSED_HERE: 402, Submission.BUSY: 429}.get(Submission(planned), 0)
            return SubmitOutcome(submission=Submission(planned), status=status, message="no")
        if planned == "dropped":
            return SubmitOutcome(submission=Submission.AMBIGUOUS, message="the connection broke")
        running = sum(task.since <= now < task.ends for task in self.tasks.values())
        if running >= self._scene.deployment.places:
            return SubmitOutcome(submission=Submission.BUSY, status=429, message="Concurrent limit exceeded")
        post.taken = True
        upstream = f"up-{len(self.tasks)}-{post.name}"
        ends = now + self.times.get(post.name, self._scene.deployment.task_time)
        self.tasks[upstream] = Upstream(post.name, now, hook, ends, fails=post.name.startswith("bad"))
        if hook is not None:
            self._scene.aside(self._leave_hints(upstream))
        if planned == "silent":
            return SubmitOutcome(submission=Submission.AMBIGUOUS, message="the answer broke off")
        return SubmitOutcome(submission=Submission.TAKEN, upstream_task_id=upstream, status=200)

    async def _strike(self, outcome: str, effect: Callable[[], Awaitable[SubmitOutcome]], limit: timedelta) -> SubmitOutcome:
        refusals = {
            "not sent": SubmitOutcome(submission=Submission.NOT_SENT, message="no connection"),
            "busy": SubmitOutcome(submission=Submission.BUSY, status=429, message="Concurrent limit exceeded"),
            "too many": SubmitOutcome(
                submission=Submission.BUSY, status=429, message="Rate limit", retry_after=timedelta(seconds=10)
            ),
            "key refused": SubmitOutcome(submission=Submission.REFUSED_HERE, status=401, message="bad key"),
            "refused": SubmitOutcome(submission=Submission.REFUSED, status=422, message="bad image"),
        }
        if outcome in refusals:
            return refusals[outcome]
        if outcome == "slow":
            await asyncio.sleep(max(limit.total_seconds() - 1, 0))
            return await effect()
        if outcome == "answer lost":
            await effect()
        await asyncio.sleep(limit.total_seconds())
        return SubmitOutcome(submission=Submission.AMBIGUOUS, message="no answer in time")

    async def poll(self, upstream_task_id: str, *, hold: bool = False) -> PollOutcome:
        """Tell how far a task is."""
        self.requests.append(self._scene.loop.time())

        async def effect() -> PollOutcome:
            await asyncio.sleep(0.2)
            return await self._look(upstream_task_id, hold=hold)

        async def strike(outcome: str) -> PollOutcome:
            if outcome == "slow":
                await asyncio.sleep(10)
                return await effect()
            kinds = {"throttled": PollKind.THROTTLED, "key refused": PollKind.KEY_REFUSED, "missing": PollKind.MISSING}
            return PollOutcome(kind=kinds.get(outcome, PollKind.UNAVAILABLE), message=outcome)

        answer: PollOutcome = await self._scene.seam.interact("poll", effect, strike)
        return answer

    async def balance(self) -> BalanceOutcome:
        """Tell the balance, where the vendor answers."""
        self.requests.append(self._scene.loop.time())

        async def effect() -> BalanceOutcome:
            await asyncio.sleep(0.2)
            return BalanceOutcome(answered=True, status=200, body={"code": 0, "message": "success", "data": {"balance": 1.0}})

        async def strike(outcome: str) -> BalanceOutcome:
            if outcome == "slow":
                await asyncio.sleep(10)
                return await effect()
            answered, status = outcome in {"key refused", "missing"}, {"key refused": 401, "missing": 404, "throttled": 429}
            return BalanceOutcome(answered=answered, status=status.get(outcome, 503), message=outcome)

        answer: BalanceOutcome = await self._scene.seam.interact("poll", effect, strike)
        return answer

    async def _look(self, upstream_task_id: str, *, hold: bool) -> PollOutcome:
        task = self.tasks.get(upstream_task_id)
        if self.misses:
            return PollOutcome(kind=self.misses.pop(0), message="no")
        if task is None or not task.known:
            return PollOutcome(kind=PollKind.MISSING, message="Task not found")
        if hold and self._scene.deployment.holds:
            await asyncio.sleep(min(max(task.ends - self._scene.loop.time(), 0), 30))
        if self._scene.loop.time() < task.ends:
            return PollOutcome(kind=PollKind.PENDING)
        if task.fails:
            task.reported = PollKind.FAILED
            return PollOutcome(kind=PollKind.FAILED, message="the video is too long")
        task.reported = PollKind.SUCCEEDED
        data = {"status": "success", "result": {"resources": [{"url": f"https://files.example.com/{upstream_task_id}.mp4"}]}}
        return PollOutcome(kind=PollKind.SUCCEEDED, data=data)

    async def _leave_hints(self, upstream_task_id: str) -> None:
        """Call our hook when the task has ended, a few times until somebody takes it."""
        task = self.tasks[upstream_task_id]
        await asyncio.sleep(task.ends - self._scene.loop.time())
        for pause in (0.0, 5.0, 30.0, 60.0):
            await asyncio.sleep(pause)
            visit = self._scene.hint(task.hook or "", upstream_task_id)
            await visit.ended.wait()
            if visit.answer is None and not visit.dead:
                return


class SimMedia:
    """`MediaProbe`: good media, but for the names that begin with `ugly`; keeps what it has shown to whom."""

    def __init__(self, scene: "Scene") -> None:
        self._scene = scene
        self.shown: dict[str, list[bool]] = defaultdict(list)  # by task's name: whether its image might be good
        self.warned: set[str] = set()  # who has seen a bad one

    async def look(self, url: str, *, limit: timedelta) -> MediaFacts:
        """Look at one."""
        name = url.rpartition("/")[2]
        if name.endswith(".mp4"):
            return GOOD_VIDEO

        async def effect() -> MediaFacts:
            await asyncio.sleep(0.3)
            return self._show(name, good=not name.startswith("ugly"))

        async def strike(outcome: str) -> MediaFacts:
            if outcome == "wrong":
                return self._show(name, good=False)
            await asyncio.sleep(limit.total_seconds())
            self.shown[name].append(True)
            return MediaFacts(doubt="slow host")

        facts: MediaFacts = await self._scene.seam.interact("look", effect, strike)
        return facts

    def _show(self, name: str, *, good: bool) -> MediaFacts:
        self.shown[name].append(good)
        if not good:
            self.warned.add(_sender())
        return GOOD_IMAGE if good else MediaFacts(failure="cannot be fetched: its host answers 404")


class SimReceivers:
    """`CallbackSender`: receivers that behave as their URL says, and keep every request."""

    def __init__(self, scene: "Scene") -> None:
        self._scene = scene
        self.visits: list[Visit] = []
        self.samples: list[Visit] = []  # of no task

    async def send(self, url: str, headers: Any, body: bytes) -> Reply:
        """Take one attempt."""
        scene = self._scene
        visit = Visit(
            scene.loop.now(), url, dict(headers), body, _sender(), None, scene.table.peek(TASKS, headers["x-modellix-task-id"])
        )

        visits = self.samples if "_sample_" in headers["x-modellix-task-id"] else self.visits

        async def effect() -> Reply:
            visits.append(visit)
            visit.at, visit.stored = scene.loop.now(), scene.table.peek(TASKS, headers["x-modellix-task-id"])
            await asyncio.sleep(0.1)
            reply = self._reply(url, visits)
            visit.status, visit.until = reply.status, scene.loop.time()
            return reply

        async def strike(outcome: str) -> Reply:
            if outcome == "refused":
                return Reply(error="refused")
            if outcome == "timed out":
                await asyncio.sleep(15)
                return Reply(error="timeout", elapsed=timedelta(seconds=15))
            if outcome == "error":
                visits.append(visit)
                visit.status = 500
                return Reply(status=500, elapsed=timedelta(milliseconds=10))
            if outcome == "slow":
                await asyncio.sleep(14)
                return await effect()
            await effect()
            visit.status = None
            await asyncio.sleep(14.5)
            return Reply(error="timeout", elapsed=timedelta(seconds=15))

        answer: Reply = await scene.seam.interact("send", effect, strike)
        return answer

    def _reply(self, url: str, visits: list[Visit]) -> Reply:
        """Behave: `https://r.example.com/500-503+40-ok` answers 500, 503 with `Retry-After: 40`, and the last word for ever."""
        words = url.rpartition("/")[2].split("-")
        before = sum(visit.url == url for visit in visits) - 1
        word, _, retry_after = words[min(before, len(words) - 1)].partition("+")
        elapsed = timedelta(milliseconds=100)
        if word == "ok":
            return Reply(status=200, elapsed=elapsed)
        if word.isdigit():
            return Reply(
                status=int(word), retry_after=timedelta(seconds=int(retry_after)) if retry_after else None, elapsed=elapsed
            )
        return Reply(error=word, elapsed=elapsed)

    async def close(self) -> None:
        """Have nothing to close; whoever closes may die there all the same."""
        await self._scene.seam.interact("close", _nothing, _impossible)


async def _nothing() -> None:
    """Have no effect."""


class SimOriginals:
    """`Originals`: the vendor's files, a few parts each, that may change under whoever copies them."""

    def __init__(self, scene: "Scene") -> None:
        self._scene = scene
        self.versions: dict[str, int] = defaultdict(int)
        self.reads = 0

    def content(self, url: str, version: int) -> bytes:
        """Give a version of a file."""
        return f"{version} {url[-10:]}".encode() * 3

    async def read(self, url: str, *, start: int, length: int, tag: str | None) -> Piece:
        """Read a piece."""

        async def effect() -> Piece:
            await asyncio.sleep(self._scene.deployment.pace)
            if not self._scene.deployment.serves:
                raise SourceUnavailableError("status_503")
            self.reads += 1
            if self._scene.deployment.changes and self.reads == 2:
                self.versions[url] += 1
            version = self.versions[url]
            if tag is not None and tag != str(version):
                raise SourceChangedError
            whole = self.content(url, version)
            data = whole[start : start + length]
            return Piece(data=data, size=len(whole), tag=str(version), last=start + len(data) == len(whole))

        async def strike(outcome: str) -> Piece:
            if outcome == "gone":
                raise SourceGoneError("status_404")
            if outcome == "changed":
                self.versions[url] += 1
            if outcome == "slow":
                await asyncio.sleep(40)
            if outcome == "reset":
                raise SourceUnavailableError("reset")
            return await effect()

        answer: Piece = await self._scene.seam.interact("fetch", effect, strike)
        return answer

    async def close(self) -> None:
        """Have nothing to close; whoever closes may die there all the same."""
        await self._scene.seam.interact("close", _nothing, _impossible)


class _LambdaClient:
    def __init__(self, scene: "Scene") -> None:
        self._scene = scene

    def invoke(self, **request: Any) -> Json:
        """Start a function on its own."""
        start = {"poll": self._scene.poll, "archive": self._scene.archive}[request["FunctionName"]]
        start(json.loads(request["Payload"]))
        return {}


class _SecretsClient:
    def get_secret_value(self, **_request: Any) -> Json:
        """Give the keys."""
        return {"SecretString": json.dumps({"modellix": "some_key", "deployment_key": MATERIAL})}


@dataclass
class _Container:
    """A warm process: what it keeps between invocations."""

    tasks: Any
    callers: Any
    hooks: Any
    wake: Any
    archiver: Any
    archive: Any
    habits: LongPollSupport
    looked_at: dict[str, datetime]
    allowance: Allowance


@dataclass
class Scene:
    """One run of one scenario."""

    deployment: Deployment
    seam: Seam
    beat: float = 2.0
    people: dict[str, ports.Caller] = field(default_factory=lambda: {name: a_caller(name) for name in ("alice", "bob")})
    table: MemoryDynamo = field(init=False)
    told: Told = field(default_factory=Told)
    answers: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))  # by task's name: what its submitter heard
    invocations: list[Invocation] = field(default_factory=list)
    names: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # of tasks, by id
    poison: set[str] = field(default_factory=set)  # ids of items that no version of ours can read
    ended_at: float = 0.0
    acting: bool = True  # the scenario's script still runs
    patient: bool = False  # it waits for something that takes long
    tick: asyncio.Event = field(default_factory=asyncio.Event)  # the first one has come
    _idle: dict[str, list[_Container]] = field(default_factory=lambda: defaultdict(list))
    _plays: asyncio.Task[None] = field(init=False)
    _acts: asyncio.Task[None] | None = None
    _asides: list[asyncio.Task[Any]] = field(default_factory=list)
    _lives: list[asyncio.Task[Any]] = field(default_factory=list)
    _pristine: Context = field(default_factory=copy_context)

    def __post_init__(self) -> None:
        self.loop: VirtualLoop = self.seam.loop
        self.table = MemoryDynamo({TASKS: "task_id", CALLERS: "caller"}, time=self.loop.time)
        self.seam.backstage = self
        self._usual = {"": 0.0}
        self.lagging(None)
        self.vendor = SimVendor(self)
        self.media = SimMedia(self)
        self.receivers = SimReceivers(self)
        self.originals, self.bucket = SimOriginals(self), MemoryS3()
        self.clock = self.seam.port(SeamClock(self.seam), ports.Clock)
        self.reporter = self.seam.port(self.told, ports.Reporter)
        self.rules = Rules(
            retention=self.deployment.retention,
            max_task_age=self.deployment.max_task_age,
            max_queue_age=self.deployment.max_queue_age,
            requests_per_minute=self.deployment.requests_per_minute,
            immediate=self.deployment.immediate,
            linger=self.deployment.wakes,
            long_poll=self.deployment.holds,
            origin=ORIGIN if self.deployment.archives else None,
        )
        own_key = self.seam.port(StoredKey(StackSecret(_client(_SecretsClient()), "arn"), DEPLOYMENT_KEY), ports.ApiKey)
        admin = DynamoCallers(_client(self.table), CALLERS, clock=self.clock, deployment_key=own_key)
        self.admin = self.seam.port(admin, ports.CallerAdmin)
        for caller in self.people.values():
            self.loop.run_until_complete(self.admin.inner.add(as_stored(caller)))

    # --- functions -------------------------------------------------------------------------------------------------------

    def submit(
        self,
        name: str,
        *,
        caller: str = "alice",
        key: str | None = None,
        count: str | None = None,
        late: float = 0.0,
        **changes: Any,
    ) -> Invocation:
        """Invoke the submit function as its API does; what the submitter hears is kept under the task's name.

        `count` is how often the submitter says that it has repeated the request.
        """
        body = {
            "image_url": f"https://example.com/{name}",
            "video_url": f"https://example.com/v.mp4{SIGNATURE if self.deployment.signed else ''}",
            "mode": "wan-std",
            "callback_url": f"https://r.example.com/{name}/ok",
            **changes,
        }
        order = Order.read(
            MODEL,
            body,
            caller=self.people[caller],
            targets=TargetPolicy(),
            webhook_url=None,
            idempotency_key=key,
            retry_count=count,
        )
        self.names[order.task_id].add(name)

        async def run(container: _Container) -> Any:
            return await submit(
                order,
                caller=self.people[caller],
                arrived_at=self.loop.now() - timedelta(seconds=late),
                claim=SUBMIT_CLAIM,
                inspector=Inspector(lambda: self._media_port, enforce=True) if self.deployment.inspects else None,
                payer=Payer(
                    tasks=container.tasks,
                    vendor=self._vendor_port,
                    hooks=container.hooks,
                    clock=self.clock,
                    reporter=self.reporter,
                    retention=self.deployment.retention,
                ),
                door=Door(
                    queue=container.tasks,
                    gates=container.tasks,
                    allowance=container.allowance,
                    lease=container.tasks,
                    wake=container.wake,
                    max_queued=self.deployment.max_queued,
                ),
            )

        def start() -> Invocation:
            twin: Callable[[], Invocation] = start if key is not None else lambda: self.poll({})  # an API call is not made twice
            return self._invoke(f"submit {name}", "submit", run, twin, SUBMIT_TIME, heard=self.answers[name])

        return start()

    def poll(self, event: Json) -> Invocation:
        """Invoke the poll function with a tick or a wake."""
        accepted, ended = event.get("accepted", []), ends_of(event)

        async def run(container: _Container) -> PollReport:
            return await poll(
                accepted=accepted,
                ended=ended,
                scheduled=not (accepted or ended),
                hard_stop=self.loop.now() + timedelta(seconds=POLL_TIME) - RESERVE,
                rules=self.rules,
                world=World(
                    tasks=container.tasks,
                    work=container.tasks,
                    lease=container.tasks,
                    gates=container.tasks,
                    budget=container.tasks,
                    vendor=self._vendor_port,
                    hooks=container.hooks,
                    callbacks=self._receivers_port,
                    callers=container.callers,
                    clock=self.clock,
                    reporter=self.reporter,
                    archiver=container.archiver,
                    habits=container.habits,
                ),
            )

        name = f"wake {','.join(sorted(self.name_of(task_id) for task_id in (*accepted, *ended)))}" if event else "tick"
        return self._invoke(name, "poll", run, lambda: self.poll(event), POLL_TIME)

    def archive(self, event: Json) -> Invocation:
        """Invoke the archive function."""

        async def run(container: _Container) -> ArchiveReport:
            return await archive(
                event["archive"],
                hard_stop=self.loop.now() + timedelta(seconds=ARCHIVE_TIME) - RESERVE,
                desk=Desk(
                    tasks=container.tasks,
                    archive=container.archive,
                    originals=self.seam.port(self.originals, ports.Originals),
                    wake=container.wake,
                    clock=self.clock,
                    reporter=self.reporter,
                ),
            )

        name = f"archive {','.join(sorted(self.name_of(task_id) for task_id in event['archive']))}"
        return self._invoke(name, "archive", run, lambda: self.archive(event), ARCHIVE_TIME)

    def follow(self, name: str) -> Invocation:
        """Invoke the submit function with the link in a task's callback."""

        async def run(container: _Container) -> str:
            task = await container.tasks.get(self.id_of(name))
            [resource] = json.loads(task.message)["data"]["result"]["resources"]
            return await link(resource["url"].removeprefix(f"{ORIGIN}/r/"), archive=container.archive)

        return self._invoke(f"follow {name}", "submit", run, lambda: self.follow(name), SUBMIT_TIME)

    def hint(self, hook: str, upstream_task_id: str) -> Invocation:
        """Invoke the submit function with the vendor's webhook."""
        *_, task_id, token = hook.split("/")

        async def run(container: _Container) -> None:
            desk = HintDesk(
                hooks=container.hooks,
                tasks=container.tasks,
                vendor=self._vendor_port,
                lease=container.tasks,
                allowance=container.allowance,
                wake=container.wake,
                clock=self.clock,
                reporter=self.reporter,
                looked_at=container.looked_at,
            )
            await hint(task_id, token, upstream_task_id, desk=desk)

        return self._invoke(f"hint {self.name_of(task_id)}", "submit", run, lambda: self.hint(hook, upstream_task_id), SUBMIT_TIME)

    def cancel(self, name: str, caller: str = "alice") -> Invocation:
        """Invoke the submit function to take a task back."""

        async def run(container: _Container) -> Any:
            return await commands.cancel(
                self.id_of(name),
                caller=self.people[caller],
                tasks=container.tasks,
                wake=container.wake,
                clock=self.clock,
                reporter=self.reporter,
                retention=self.deployment.retention,
            )

        return self._invoke(f"cancel {name}", "submit", run, lambda: self.cancel(name, caller), SUBMIT_TIME)

    def redeliver(self, name: str, caller: str = "alice") -> Invocation:
        """Invoke the submit function to have a message delivered again."""

        async def run(container: _Container) -> Any:
            return await commands.redeliver(
                self.id_of(name),
                caller=self.people[caller],
                tasks=container.tasks,
                rate=container.tasks,
                wake=container.wake,
                clock=self.clock,
                reporter=self.reporter,
            )

        return self._invoke(f"redeliver {name}", "submit", run, lambda: self.redeliver(name, caller), SUBMIT_TIME)

    def redeliver_many(self, state: CallbackState, caller: str = "alice") -> Invocation:
        """Invoke the submit function to have every message of that state delivered again."""

        async def run(container: _Container) -> Any:
            return await commands.redeliver_many(
                query.RedeliveryFilter.read({"state": state}),
                caller=self.people[caller],
                history=container.tasks,
                tasks=container.tasks,
                rate=container.tasks,
                wake=container.wake,
                clock=self.clock,
                reporter=self.reporter,
            )

        return self._invoke(f"redeliver {state}", "submit", run, lambda: self.redeliver_many(state, caller), SUBMIT_TIME)

    def try_out(self, url: str, caller: str = "alice") -> Invocation:
        """Invoke the submit function to send a receiver samples."""

        async def run(container: _Container) -> Any:
            return await try_out(
                {"callback_url": url},
                caller=self.people[caller],
                targets=TargetPolicy(),
                rate=container.tasks,
                callbacks=self._receivers_port,
                clock=self.clock,
                reporter=self.reporter,
            )

        return self._invoke(f"try {caller}", "submit", run, lambda: self.try_out(url, caller), SUBMIT_TIME)

    def listing(self, caller: str = "alice") -> Invocation:
        """Invoke the submit function to list tasks, and to authenticate."""

        async def run(container: _Container) -> Any:
            authorization = f"Bearer thk_{caller}_{caller[:1] * 43}"
            known = await callers.authenticate(authorization, callers=container.callers, now=self.clock.now())
            if known is None:
                return []
            tasks, _ = await query.list_tasks(query.Filter(limit=2), caller=known, history=container.tasks)
            return [answers.task_answer(task).body() for task in tasks]

        return self._invoke(f"list {caller}", "submit", run, lambda: self.listing(caller), SUBMIT_TIME)

    def command(self, name: str, run: Callable[[Any], Awaitable[Any]]) -> Invocation:
        """Run the admin command, which the operator repeats when it failed."""

        async def act(_container: _Container) -> Any:
            return await run(self.admin)

        return self._invoke(name, "admin", act, lambda: self.command(name, run), 60.0)

    def _invoke(
        self,
        name: str,
        function: str,
        run: Callable[[_Container], Coroutine[Any, Any, Any]],
        again: Callable[[], Invocation],
        limit: float,
        heard: list[Any] | None = None,
    ) -> Invocation:
        idle = self._idle[function]
        container = idle.pop() if idle else self._start_container()
        invocation = Invocation(f"#{len(self.invocations)} {name}", again)
        self.invocations.append(invocation)

        async def live() -> None:
            INVOCATION.set(invocation)
            self.seam.note(f"{invocation.name} begins")
            try:
                invocation.answer = await run(container)
            except RejectedError as error:
                invocation.answer = error
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001  # the function fails, as it would
                invocation.answer = error
            finally:
                if not invocation.dead and not self.seam.over:
                    self.seam.note(f"{invocation.name} ends: {_brief(invocation.answer)}")
                    idle.append(container)
                    if heard is not None:
                        heard.append(invocation.answer)
                invocation.ended.set()

        def time_out() -> None:
            if not invocation.ended.is_set() and not invocation.thawed:
                self.seam.note(f"{invocation.name} has run out of time")
                invocation.kill()

        self._lives.append(self.loop.create_task(live(), context=self._pristine.copy()))
        self.loop.call_later(limit, time_out)
        return invocation

    def _start_container(self) -> _Container:
        protocols = (
            ports.TaskStore,
            ports.WorkIndex,
            ports.TaskHistory,
            ports.Lease,
            ports.Gates,
            ports.Budget,
            ports.DeliveryRate,
        )
        tasks = self.seam.port(DynamoTasks(_client(self.table), TASKS, clock=self.clock, reporter=self.reporter), *protocols)
        key = self.seam.port(StoredKey(StackSecret(_client(_SecretsClient()), "arn"), DEPLOYMENT_KEY), ports.ApiKey)
        hooks = self.seam.port(HookUrls(ORIGIN, key), ports.Hooks)
        wake = self.seam.port(LambdaWake(_client(_LambdaClient(self)), "poll", self.reporter), ports.Wake)
        archiver = self.seam.port(
            LambdaArchiver(_client(_LambdaClient(self)), "archive", self.reporter, wakes="poll"), ports.Archiver
        )
        archive = self.seam.port(S3Archive(_client(self.bucket), "results"), ports.Archive)
        found = DynamoCallers(_client(self.table), CALLERS, clock=self.clock, deployment_key=key)
        directory = self.seam.port(found, ports.CallerDirectory)
        return _Container(
            tasks,
            directory,
            hooks if self.deployment.hints else None,
            wake if self.deployment.wakes else None,
            archiver if self.deployment.archives else None,
            archive,
            LongPollSupport(),
            {},
            Allowance(tasks, self.deployment.requests_per_minute),
        )

    @property
    def _vendor_port(self) -> Any:
        return self.seam.port(self.vendor, ports.TaskApi)

    @property
    def _media_port(self) -> Any:
        return self.seam.port(self.media, ports.MediaProbe)

    @property
    def _receivers_port(self) -> Any:
        return self.seam.port(self.receivers, ports.CallbackSender)

    # --- the world's own course ------------------------------------------------------------------------------------------

    def run(self, script: Callable[["Scene"], Awaitable[None]]) -> None:
        """Play the script while ticks come, then let ticks come until nothing is left to do."""
        self._acts = self.loop.create_task(self._act(script))
        self.begin()
        self._end()

    def begin(self) -> None:
        """Let ticks come; who has no script goes on step by step, to the finish."""
        self._plays = self.loop.create_task(self._play())

    def go_on(self, seconds: float) -> None:
        """Let everybody go on for a while."""
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def finish(self) -> None:
        """Let ticks come until nothing is left to do."""
        self.acting = False
        self._end()

    def _end(self) -> None:
        try:
            self.loop.run_until_complete(self._plays)
        finally:
            self.seam.over = True
            self.loop.run_until_complete(self._clear())
            self.loop.close()

    async def _clear(self) -> None:
        left = asyncio.all_tasks(self.loop) - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, *self._asides, *self._lives, return_exceptions=True)

    async def _play(self) -> None:
        misses, unchanged, before = 1, 0, ""
        await asyncio.sleep(self.seam.dice.uniform(1, 59))
        while self.loop.time() < QUIET_WITHIN:
            if self._nothing_left() and await self.until(self.quiet, POLL_TIME):  # who lingers needs no company
                break
            self.poll({})
            self.tick.set()
            await asyncio.sleep(TICK)
            now = self.fingerprint()
            unchanged = unchanged + 1 if now == before and (self.patient or not self.acting) else 0
            misses, before = min(misses * 2, MISS) if unchanged >= PATIENCE else 1, now
            await asyncio.sleep(TICK * (self._idle_ticks() if self._only_retries() else min(misses - 1, self._idle_ticks())))
        self.ended_at = self.loop.time()
        if self._acts is not None:
            await self._acts

    def _only_retries(self) -> bool:
        """Whether there is nothing to do but to wait for the next retry."""
        working = [item for item in self.table.working(TASKS) if item["task_id"]["S"] not in self.poison]
        return (
            bool(working)
            and all(item["work"]["S"] == "retry" for item in working)
            and (self.patient or not self.acting)
            and all(invocation.ended.is_set() for invocation in self.invocations)
        )

    def _idle_ticks(self) -> int:
        """Count the whole ticks before the one that finds the next retry: none of those may be missed, or it would be late."""
        waiting = [item for item in self.table.working(TASKS) if item["work"]["S"] == "retry"]
        due = [int(item["work_at"]["S"].partition("_")[0]) for item in waiting if item["task_id"]["S"] not in self.poison]
        rest = (min(due) / 1000 - START.timestamp() - self.loop.time()) if due else QUIET_WITHIN
        return max(int(rest / TICK) - 1, 0)

    async def _act(self, script: Callable[["Scene"], Awaitable[None]]) -> None:
        await script(self)
        self.acting = False

    def aside(self, course: Coroutine[Any, Any, None]) -> None:
        """Let something of the world's go its way beside."""
        self._asides.append(self.loop.create_task(course, context=self._pristine.copy()))

    def quiet(self) -> bool:
        """Whether nothing is under way and nothing is left to do."""
        return self._nothing_left() and all(invocation.ended.is_set() for invocation in self.invocations)

    def _nothing_left(self) -> bool:
        return (
            not self.acting
            and all(item["task_id"]["S"] in self.poison for item in self.table.working(TASKS))
            and all(task.done() for task in self._asides)
        )

    # --- what the seam asks ----------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Describe the tasks' states, and who is about."""
        rows = []
        for item in self.table.everything(TASKS):
            if "state" in item:
                words = [item["state"]["S"], item.get("callback", {}).get("S", ""), item.get("attempts", {}).get("N", "0")]
                claimed = int(item.get("claimed_until", {}).get("N", "0")) / 1000 - START.timestamp() > self.loop.time()
                rows.append(f"{self.name_of(item['task_id']['S'])}:{':'.join(words)}:{claimed}")
        about = sorted(invocation.name.split(" ")[1] for invocation in self.invocations if not invocation.ended.is_set())
        return "|".join([*sorted(rows), *about])

    def rival(self, request: Json) -> None:
        """Write the item first, as another invocation might that then dies."""
        table = request["TableName"]
        key = (request.get("Key") or request["Item"])["task_id" if table == TASKS else "caller"]["S"]
        item = self.table.peek(table, key)
        if table == CALLERS:
            token = {"M": {"value": {"S": "rival"}}}
            self.table.write(table, (request.get("Item") or dict(item or request["Key"])) | {"tokens": {"L": [token]}})
        elif key.startswith("tk_"):
            self.table.write(table, self._rivals(item, request))
        else:
            self.table.write(table, dict(item or request["Key"]) | self._rivals_control(key))

    def _rivals(self, item: Item | None, request: Json) -> Item:
        """Take a task one step further, or take nothing but the right to do so."""
        if item is None:
            added: Item = request["Item"]
            return added | {"nonce": {"S": "rival"}}
        if item["task_id"]["S"] in self.poison:
            return item | {"work_at": request["ExpressionAttributeValues"][":later"]}
        task, now = Task.model_validate(stored_values(item)), self.loop.now()
        if task.state is State.QUEUED:
            task = task.claim_submit(now, until=now + PAY_CLAIM)
        elif task.state is State.SUBMITTING:
            task = task.doubted()
        elif task.callback is CallbackState.WAITING and task.state.final:
            task = task.claim_delivery(until=now + CLAIM)
        return items.item(attributes(task.model_copy(update={"nonce": "rival"})))

    def _rivals_control(self, key: str) -> Item:
        if key == "lease":
            until = str(round((self.loop.now() + timedelta(seconds=90)).timestamp() * 1000))
            return {"holder": {"S": "rival"}, "until": {"N": until}, "held_models": {"L": []}}
        if key == "gate":
            return {"nonce": {"S": "rival"}, "waiting": {"BOOL": True}}
        return {"used": {"N": "1000000"}}

    def lagging(self, lag: Callable[[str], float] | None) -> None:
        """Let reads of indexes and batches be that old; as usual, an item is some milliseconds behind."""
        usual = self._usual

        def usually(key: str) -> float:
            return usual.setdefault(key, self.seam.dice.uniform(0.005, 0.3))

        self.table.lag = lag or usually

    def cool(self) -> None:
        """Forget the warm processes."""
        self._idle.clear()

    # --- looking around --------------------------------------------------------------------------------------------------

    def name_of(self, task_id: str) -> str:
        """Tell a task's name, or its id where the world did not make it."""
        return "/".join(sorted(self.names.get(task_id, ()))) or task_id

    def id_of(self, name: str) -> str:
        """Tell the id of a task by its name."""
        return next((task_id for task_id, names in self.names.items() if name in names), "tk_" + "0" * 22)

    def items_of(self, name: str) -> list[Item]:
        """List the items of a task."""
        return [item for task_id, names in self.names.items() if name in names and (item := self.table.peek(TASKS, task_id))]

    async def until(self, met: Callable[[], bool], within: float = 600.0, *, step: float = 0.2) -> bool:
        """Wait, as a script does, until something has come about; False when it does not. Long steps let ticks be left out."""
        self.patient = step >= PATIENT_STEP
        end = self.loop.time() + within
        while not met():
            if self.loop.time() >= end:
                return False
            await asyncio.sleep(step)
        return True


def _client(client: object) -> Any:
    """Take a client in memory for a real one."""
    return client


def _sender() -> str:
    invocation = INVOCATION.get()
    return invocation.name if invocation is not None else "?"


def _brief(answer: Any) -> str:
    match answer:
        case Answer():
            return f"{answer.status} {answer.task.state}"
        case RejectedError():
            return f"{answer.status} {answer.message}"
        case PollReport():
            return f"{answer.steps} lingered={answer.lingered}"
        case ArchiveReport():
            return str(answer.files)
        case _:
            return repr(answer)[:200]
