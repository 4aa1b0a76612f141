"""What taskhook needs from the world.

One Protocol per need, the errors each may raise, the guarantees each gives. Over 400 lines, for it is read as
one page.

An expected outcome is a value, not an exception; every error below is a surprise that the use cases must
survive.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from taskhook.core.admission import AdmissionState
from taskhook.core.caller import Caller
from taskhook.core.leadership import LeadershipView
from taskhook.core.models import MediaFacts
from taskhook.core.record import SubmitOutcome
from taskhook.core.reply import Reply
from taskhook.core.task import Task
from taskhook.core.vendor import NO_HEADERS, FreeOutcome, ListOutcome, PollOutcome, Vendor

EXTRA_DELIVERY_GAP = timedelta(seconds=1)  # between a caller's redeliveries and receiver tests: 60 a minute
# Of a delivery, in all; what a claim must still cover when the first byte is sent.
ATTEMPT_TIME = timedelta(seconds=15)
SLOTS = 300  # deliveries at once
HOLD_TIME = timedelta(seconds=50)  # the vendor holds a poll for 45 s at most
LEAST_POST_TIME = timedelta(seconds=8)  # with less left, the paid POST is not begun
POLLS_AT_ONCE = 20
HOLDS_AT_ONCE = 100


class TaskStore(Protocol):
    """The tasks, each read and written consistently. Every method may raise StoreUnavailableError.

    A task comes without its request, from here and from the index of work; `with_request` adds it.
    """

    async def add(self, task: Task) -> Task:
        """Store a new task. Raises TaskExistsError; safe to repeat."""

    async def get(self, task_id: str) -> Task | None:
        """Read the task as of now."""

    async def read_many(self, task_ids: Sequence[str]) -> list[Task]:
        """Read tasks for planning, perhaps as they were a moment ago, without request, message and result.

        What is gone or cannot be had now is left out; an item that cannot be read is reported, pushed back
        and left out.
        """

    async def with_request(self, task: Task) -> Task:
        """Give the task with its request; without, where that is kept no longer."""

    async def reserve(
        self, request: str, task_id: str, *, repeat: bool, now: datetime, until: datetime
    ) -> str:
        """Give the id for the task of a request without an idempotency key: `task_id`, or an earlier one.

        `request` says which caller asks for what; the id stays reserved for it `until` then. A repeat gets
        the id that is reserved for the same request, and so does a first request that its own repeat has
        overtaken; each of them prolongs it. Safe to repeat.
        """

    async def swap(self, old: Task, new: Task) -> Task:
        """Store `new` if the table still holds `old`, and return it with its nonce.

        Raises StaleTaskError, and StoreUnavailableError with the nonce of what may be stored all the same;
        safe to repeat.
        """


class Row(NamedTuple):
    """A row of the index of work: the task, and the sort key under which it stands."""

    task_id: str
    at: str


class Rows(NamedTuple):
    """A page of rows in order; `cursor` leads to the next, None on the last."""

    rows: Sequence[Row]
    cursor: Any = None


class WorkIndex(Protocol):
    """Tasks with work to do.

    The answers may lag behind the table by seconds: they say where to look, never what is true.

    Every method may raise StoreUnavailableError.
    """

    async def watched(self, vendor: str, since: datetime | None, *, cursor: Any = None) -> Rows:
        """Read a page of a vendor's tasks that are not left to the schedule of attempts.

        Of those, the tasks that were accepted from `since` on; None: all.
        """

    async def retries(self, since: datetime | None, before: datetime, *, cursor: Any = None) -> Rows:
        """Read a page of callbacks that are due from `since` (None: ever) to `before`, the earliest first."""

    async def queue_waits(self, vendor: str) -> bool:
        """Tell whether any task is queued for the vendor."""

    async def queue_length(self, vendor: str, caller: str, *, at_most: int) -> int:
        """Count a caller's tasks that are queued for the vendor, up to `at_most`."""

    async def queue_heads(self, vendor: str) -> list[Task]:
        """List each caller's oldest task that is queued for the vendor."""

    async def queue_of(self, vendor: str, caller: str) -> list[Task]:
        """List the oldest of a caller's tasks that are queued for the vendor, up to a hundred."""


class TaskPage(BaseModel):
    """A page of a caller's tasks, newest first, without their requests; `cursor` is None on the last."""

    model_config = ConfigDict(frozen=True)

    tasks: tuple[Task, ...]
    cursor: str | None


class TaskHistory(Protocol):
    """A caller's tasks by time of acceptance. May raise StoreUnavailableError."""

    async def page(self, caller: str, *, after: str, until: str, limit: int) -> TaskPage:
        """Read up to `limit` tasks whose sort key is above `after` and below `until`, newest first."""

    async def with_requests(self, tasks: Sequence[Task]) -> list[Task]:
        """Give tasks with their requests, where those are still kept."""


class LeadershipStore(Protocol):
    """The leadership of pollers. It saves work; nothing depends on it for correctness.

    May raise StoreUnavailableError.
    """

    async def view(self) -> LeadershipView:
        """Read the leadership as of now."""

    async def acquire(self, seen: LeadershipView, new: LeadershipView, *, takeover: bool) -> bool:
        """Store `new` as leader, if the leader is still the one `seen`, or in any case when `takeover`."""

    async def resign(self, leader: str, *, drained_at: datetime | None = None) -> None:
        """Give the leadership up if `leader` still has it; `drained_at` says that nothing was due by then."""

    async def webhook_came(self, at: datetime | None) -> None:
        """Remember when a vendor webhook last proved true; None forgets it."""

    async def hand_over(self, leader: str, unserved: Mapping[str, datetime]) -> None:
        """Leave to the successor of `leader` which poll times were due and not served."""

    async def handed_over(self, leader: str) -> dict[str, datetime] | None:
        """Read what `leader` has left; None where it has said nothing (yet)."""


class AdmissionStore(Protocol):
    """The admission before each vendor, read consistently and written only on change.

    May raise StoreUnavailableError.
    """

    async def admission(self, vendor: str) -> AdmissionState:
        """Read what is known of the way to a vendor; of one that was never stored, an open way."""

    async def set_admission(self, vendor: str, old: AdmissionState, new: AdmissionState) -> AdmissionState:
        """Store `new` if `old` still stands; give what stands then. A change that is lost does no harm."""


class Budget(Protocol):
    """Each vendor's request budget, shared by all invocations. May raise StoreUnavailableError."""

    async def take_tokens(self, vendor: str, wanted: int, *, window: int, limit: int) -> int:
        """Take up to `wanted` requests out of the `limit` of a window; give how many.

        What is not used lapses.
        """


class DeliveryRate(Protocol):
    """Each caller's rate of deliveries beyond first rounds. May raise StoreUnavailableError."""

    async def reserve_deliveries(
        self, caller: str, count: int, *, now: datetime, latest: datetime
    ) -> datetime:
        """Reserve `count` moments, EXTRA_DELIVERY_GAP apart, the first as soon as may be; give the first.

        Nothing is reserved where the first would be after `latest`. Moments that are not used lapse.
        """


class SpendStore(Protocol):
    """How many tasks each caller has had today. May raise StoreUnavailableError."""

    async def count_task(self, caller: str, task_id: str, *, day: str, at_most: int, until: datetime) -> bool:
        """Count one more task of the day, which ends at `until`; False where there were `at_most` already.

        The task that was counted last is not counted twice: its request may be repeated.
        """

    async def counted(self, caller: str, *, day: str) -> int:
        """Tell how many were counted."""


class WebhookUrls(Protocol):
    """The addresses for vendor webhooks; the token in them is derived, nothing is stored. Never raises."""

    async def url(self, task_id: str) -> str | None:
        """Make the address for a task, None where it cannot be made."""

    async def valid(self, task_id: str, token: str) -> bool | None:
        """Tell whether this is that task's token, in constant time.

        None where that cannot be told right now.
        """


class CallerDirectory(Protocol):
    """The callers. What reads the table may raise StoreUnavailableError."""

    async def cached(self, name: str) -> Caller | None:
        """Give one that was read within the last 60 s, without a read; None where none was."""

    async def read(self, name: str) -> Caller | None:
        """Read one as of now."""

    async def find(self, name: str) -> Caller | None:
        """Give the cached one, or read it; with its signing secrets decrypted."""


class CallerAdmin(Protocol):
    """What the admin command does with callers. Every method may raise StoreUnavailableError."""

    async def add(self, caller: Caller) -> bool:
        """Store a new caller; False if the name is taken."""

    async def read(self, name: str) -> Caller | None:
        """Read one as of now."""

    async def update(self, old: Caller, new: Caller) -> bool:
        """Store `new` if the table still holds `old`; False if not."""

    async def remove(self, caller: Caller) -> bool:
        """Delete a caller if the table still holds it as given; False if not."""

    async def encrypted(self, name: str, secret: str) -> str:
        """Encrypt a signing secret of the caller `name`, as it is stored."""

    async def every(self) -> list[Caller]:
        """List all, by name."""


class ApiKey(Protocol):
    """Gives a key of this deployment, read again when `fresh`.

    Raises KeyUnusableError, KeyUnavailableError.
    """

    async def __call__(self, *, fresh: bool) -> str:
        """Give the key."""


type Admit = Callable[[], Awaitable[bool]]


class TaskApi(Protocol):
    """The vendor. No method raises: whatever happens on the wire is an outcome."""

    @property
    def vendor(self) -> Vendor:
        """What it asks, and how it reads the answers."""

    @property
    def origin(self) -> str:
        """Where its API is."""

    async def submit(
        self,
        target: str,
        request: bytes,
        /,
        *,
        webhook_url: str | None,
        limit: timedelta,
        headers: Mapping[str, str] = NO_HEADERS,
        admit: Admit | None = None,
    ) -> SubmitOutcome:
        """Send the paid POST once and at most once, within `limit`.

        NOT_SENT only with proof that no byte of it left.

        `target` says where it goes, as the vendor's file reads it; `headers` are passed on. At `webhook_url`
        the vendor tells that the task has ended. `admit` is asked right before each request leaves: where it
        says no, or less than LEAST_POST_TIME is left, that request is not sent.
        """

    async def poll(
        self, upstream_task_id: str, *, operation: str | None = None, hold: bool = False
    ) -> PollOutcome:
        """Ask for a task, at its `operation` where it is known.

        With `hold`, ask the vendor to answer only when it has ended, or after a while (HOLD_TIME at most).
        """

    async def cancel(self, upstream_task_id: str, *, operation: str | None = None) -> FreeOutcome:
        """Ask a vendor that has a way to, to cancel a task: free, and safe to repeat."""

    async def tasks_made(self, model: str, *, since: datetime, until: datetime) -> ListOutcome:
        """List the account's tasks of a model that were made then, ended ones too, by the vendor's ids.

        None are listed where the vendor has no list, does not answer, or has more than it lists at once.
        """

    async def balance(self) -> FreeOutcome:
        """Ask for what is free and safe to repeat: the account's balance, where the vendor tells it."""


class CallbackSender(Protocol):
    """POSTs to callers' URLs, each through the guard. Never raises."""

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send one attempt, 15 s in all; redirects are not followed."""

    async def close(self) -> None:
        """Close what is open; sending opens anew."""


class MediaProbe(Protocol):
    """Looks at media files behind callers' URLs, each through the guard. Never raises."""

    async def look(self, url: str, *, limit: timedelta) -> MediaFacts:
        """Read what a verdict needs, within `limit` and less than 1 MB.

        What goes wrong is among the facts.
        """


class Wake(Protocol):
    """Starts the poller without waiting for the tick."""

    async def wake(
        self, task_id: str, *, ended: bool = False, known_outcome: PollOutcome | None = None
    ) -> None:
        """Ask for this task to be looked at, at once where it is known to have `ended`.

        Never raises: there is the tick.

        A `known_outcome` is handed on where it is not too large, and the vendor not asked for it again.
        """


class Archiver(Protocol):
    """Starts invocations that archive results, one for each task.

    Copying never takes the poller's time or memory.
    """

    async def start(self, task_id: str) -> bool:
        """Have a task's results copied; False where that could not be asked for. Never raises."""


class Archive(Protocol):
    """Where result files are kept, in uploads of parts that survive their invocation.

    All parts but the last have the same size. Every method may raise ArchiveUnavailableError, and is safe to
    repeat.
    """

    async def begin(self, key: str, media_type: str) -> str:
        """Begin an upload and give its name. One that is not ended is removed after a day."""

    async def parts(self, key: str, upload: str) -> list[int] | None:
        """List the sizes of the parts that are there, from the first on without a gap.

        None where the upload has ended.
        """

    async def put(self, key: str, upload: str, number: int, data: bytes) -> None:
        """Keep a part; the first one is number 1."""

    async def finish(self, key: str, upload: str) -> None:
        """Make the file of the upload's parts."""

    async def drop(self, key: str, upload: str) -> None:
        """End an upload without a file."""

    async def link(self, key: str) -> str | None:
        """Make a link to a file that works for some minutes; None where there is no such file."""


class Piece(BaseModel):
    """Some bytes of an original; shorter than was asked for only where it ends."""

    model_config = ConfigDict(frozen=True)

    data: bytes
    size: int | None  # of the whole, where its server tells
    tag: str  # names this version of it; empty where its server tells none
    media_type: str = ""
    last: bool = False


class Originals(Protocol):
    """The vendor's result files, each request through the guard.

    Holds one piece in memory, however large the file is.
    """

    async def read(self, url: str, *, start: int, length: int, tag: str | None) -> Piece:
        """Read up to `length` bytes from `start` on, of the version `tag` (None: whichever there is).

        Raises SourceGoneError, SourceChangedError, SourceUnavailableError.
        """

    async def close(self) -> None:
        """Close what is open; reading opens anew."""


class Clock(Protocol):
    """Time, so that a simulation can own it."""

    def now(self) -> datetime:
        """Tell the time, in UTC."""

    async def sleep(self, duration: timedelta) -> None:
        """Let other coroutines run for so long, in this clock's time."""


class Reporter(Protocol):
    """Where the use cases tell what happened: one line per outcome, named `noun.verb`. Never raises."""

    def report(self, event: str, **facts: str | float | None) -> None:
        """Tell one outcome, or `count` of them. Facts never hold secrets, URLs with queries, or payloads."""
