"""The port of a vendor: what it is asked, what its answers mean, and the form in which its callers ask.

The files in `vendors` are pure: requests out, answers read, no clock and no I/O. One HTTP engine sends for
all of them, and it alone knows what was not sent.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from taskhook.core.errors import RejectedError
from taskhook.core.limits import MAX_MODEL
from taskhook.core.message import MAX_NOTE, Json
from taskhook.core.models import MediaRule, Model
from taskhook.core.record import Submission, SubmitOutcome
from taskhook.core.task import Task

OWN_FIELDS = ("callback_url", "reference")  # of a submit in the deployment's own form, beside the model's
KEY_PAUSE = timedelta(seconds=60)  # where it refuses the key
THROTTLED_PAUSE = timedelta(seconds=5)  # where it names no time
# How the message of a refusal begins that has the vendor's own code and words.
VENDORS_CODE = re.compile(r"([A-Z][a-z]+[A-Z.][A-Za-z.]*): (.+)", re.DOTALL)
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class PollKind(StrEnum):
    """What a look at the vendor's task showed."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    MISSING = "missing"  # 404
    THROTTLED = "throttled"  # 429
    KEY_REFUSED = "key_refused"  # 401, 402
    UNAVAILABLE = "unavailable"  # anything else: says nothing about the task

    @property
    def ended(self) -> bool:
        """Whether the vendor says that the task has ended."""
        return self in {PollKind.SUCCEEDED, PollKind.FAILED}

    @property
    def known(self) -> bool:
        """Whether the vendor says how the task stands."""
        return self is PollKind.PENDING or self.ended


class PollOutcome(BaseModel):
    """One look at the vendor's task.

    `data` is what the callback says of an ended one: `result.resources[]`, each with `url` and `type`, and
    what else the vendor says; where its own answer has another form, that is there whole as `raw`.
    """

    model_config = ConfigDict(frozen=True)

    kind: PollKind
    data: Json = {}
    message: str = ""
    canceled: bool = False  # the vendor's own word for the failure says so
    size: int = 0  # of the answer that tells of an end, in bytes; parsed it takes many times as much
    # For how long the vendor wants to be left alone, whatever it said of the task.
    retry_after: timedelta | None = None

    @property
    def pause(self) -> timedelta | None:
        """For how long the vendor is to be left alone; None where it may be asked on.

        `Retry-After` of no time, or a date that is over by our clock, names none.
        """
        if self.kind is PollKind.KEY_REFUSED:
            return max(KEY_PAUSE, self.retry_after or KEY_PAUSE)
        return self.retry_after or (THROTTLED_PAUSE if self.kind is PollKind.THROTTLED else None)

    @property
    def pause_reason(self) -> str:
        """Say why, as `vendor.paused` does."""
        return "key_refused" if self.kind is PollKind.KEY_REFUSED else "throttled"


class FreeOutcome(BaseModel):
    """What the vendor said to a free request, which tells too whether the vendor answers at all."""

    model_config = ConfigDict(frozen=True)

    answered: bool  # any 2xx or 4xx but 408, 425 and 429: the vendor is there, and serves requests
    status: int = 0  # 0: no answer came
    no_key: bool = False  # nothing was asked, for there is no key that can be sent
    body: Json = {}  # the vendor's own; empty where it was no JSON object, or too large
    message: str = ""  # why there is no answer
    retry_after: timedelta | None = None


class ListOutcome(PollOutcome):
    """What the vendor said when it was asked for the account's tasks; `kind` as of a poll, or SUCCEEDED."""

    upstream_task_ids: tuple[str, ...] | None = None  # None: no list, or not all of it


NOT_THIS_TASK = PollOutcome(kind=PollKind.UNAVAILABLE, message="the answer is not about this task")

# Words for the end of a task, of all vendors and in lower case; any other word keeps a task polling.
SUCCESS = {"success", "succeeded", "succeed", "completed", "complete", "done", "ready", "finished"}
_CANCELED = {"canceled", "cancelled", "aborted"}
FAILURE = _CANCELED | {"failed", "fail", "failure", "error", "expired", "banned", "rejected", "moderated"}
_ENDINGS = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".gif"),
    "video": (".mp4", ".mov", ".webm", ".avi"),
    "audio": (".mp3", ".wav", ".m4a", ".flac", ".pcm", ".opus"),
}
_REFUSED_FOR_GOOD = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.CONTENT_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_CONTENT,
}
_REFUSED_HERE = {HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED}
_MODEL = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:/-]{{0,{MAX_MODEL - 1}}}")


def submission_of(status: int, upstream_task_id: object) -> Submission:
    """Class the answer to a paid POST by its status, and by the id of the task that it names, if any."""
    if status in _REFUSED_FOR_GOOD:
        return Submission.REFUSED
    if status in _REFUSED_HERE:
        return Submission.REFUSED_HERE
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Submission.BUSY
    is_success = HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES
    is_named = isinstance(upstream_task_id, str) and bool(upstream_task_id)
    return Submission.TAKEN if is_success and is_named else Submission.AMBIGUOUS


def outcome_of(
    submission: Submission,
    status: int,
    upstream_task_id: object,
    message: object,
    retry_after: timedelta | None,
) -> SubmitOutcome:
    """Make the outcome of a paid POST, with the vendor's words where it has any."""
    if submission is Submission.TAKEN:
        return SubmitOutcome(
            submission=submission,
            upstream_task_id=str(upstream_task_id),
            status=status,
            retry_after=retry_after,
        )
    words = str(message) if message else f"the vendor answered {status}"
    return SubmitOutcome(
        submission=submission, status=status, message=words[:MAX_NOTE], retry_after=retry_after
    )


def kind_of(word: str) -> PollKind:
    """Read a vendor's word for where a task stands, in any case."""
    word = word.lower()
    return PollKind.SUCCEEDED if word in SUCCESS else PollKind.FAILED if word in FAILURE else PollKind.PENDING


def is_canceled(word: str) -> bool:
    """Whether a vendor's word for a failed task says that it was canceled."""
    return word.lower() in _CANCELED


def file_kind(url: str, *, otherwise: str) -> str:
    """Tell what a result is by the name of its file; `otherwise` where that says nothing."""
    path = url.partition("?")[0].lower()
    return next((kind for kind, endings in _ENDINGS.items() if path.endswith(endings)), otherwise)


def model_named(body: Json, *, otherwise: str | None = None) -> str:
    """Read the field `model` of a submit. Raises RejectedError."""
    model = body.get("model", otherwise)
    if not isinstance(model, str) or _MODEL.fullmatch(model) is None:
        raise RejectedError(
            HTTPStatus.BAD_REQUEST,
            f"Invalid parameters: parameter 'model' must be a name: 1 to {MAX_MODEL} letters, digits and "
            "._:/-",
        )
    return model


class HttpRequest(NamedTuple):
    """What is sent to a vendor; `target` is a path at its origin, or a URL at one of its hosts."""

    method: str
    target: str
    headers: Mapping[str, str] = NO_HEADERS
    body: bytes | None = None


class Action(StrEnum):
    """What a caller asks for by a path of the vendor's own."""

    SUBMIT = "submit"
    SHOW = "show"
    CANCEL = "cancel"
    DELETE = "delete"  # cancels what runs; what has ended stays here for as long as its result
    LIST = "list"
    UNKNOWN = "unknown"  # below the vendor's paths, but not served here


class Route(NamedTuple):
    """A path of the vendor's own, as it is served here."""

    action: Action
    task_id: str = ""  # ours, for SHOW, CANCEL and DELETE


@dataclass(frozen=True)
class PaidRequest:
    """What the vendor gets for a task, read and validated as far as its model is described here."""

    model: str
    target: str  # the path of the POST, or a model's slug from which it follows
    body: str  # minified JSON
    identity: Json  # what makes two requests the same
    headers: Mapping[str, str] = NO_HEADERS  # the caller's own that are passed on
    media: tuple[tuple[MediaRule, str], ...] = ()  # what is to be looked at, and where it is
    validated: bool = True  # False: the vendor alone knows what its model takes


IMAGE, VIDEO = "{image}", "{video}"  # where media stand in the body of an example


@dataclass(frozen=True)
class Example:
    """A submit of the vendor's, as /docs and the console show it, and as tests and the simulator send it."""

    way: str  # how any submit goes, in Markdown, for /docs and /llms.txt; begins with `POST …`
    path: str
    body: Json
    headers: Mapping[str, str] = NO_HEADERS

    def with_media(self, image: str, video: str) -> Json:
        """Give the body with these URLs in it."""
        filled: Json = _filled(self.body, {IMAGE: image, VIDEO: video})
        return filled


def _filled(value: Any, media: Mapping[str, str]) -> Any:
    match value:
        case dict():
            return {name: _filled(entry, media) for name, entry in value.items()}
        case list():
            return [_filled(entry, media) for entry in value]
        case str():
            return media.get(value, value)
    return value


class Form(Protocol):
    """The form of a vendor's answers, where it is not the deployment's own, which is Modellix's."""

    def accepted(self, task: Task) -> Json:
        """Say that a task was accepted."""

    def task(self, task: Task) -> Json:
        """Say how a task stands; of an ended one, what the vendor said, under our task id."""

    def canceled(self, task: Task) -> Json:
        """Say that a task is canceled, or about to be."""

    def listed(self, tasks: Sequence[Task], query: Mapping[str, str]) -> Json:
        """List tasks, given newest first and already narrowed down to this vendor's, as `query` wants it."""

    def error(self, status: int, message: str) -> Json:
        """Say why a call has failed."""


class Listing(Protocol):
    """A vendor's list of the account's tasks, in which a submit whose outcome is unknown is looked for."""

    def request(self, model: str, *, since: datetime, until: datetime) -> HttpRequest:
        """Ask for the tasks of a model that were made then."""

    def made(self, body: Json, model: str, *, since: datetime, until: datetime) -> list[str] | None:
        """Read their ids, of ended ones too; None where the answer may lack one."""


class Vendor(Protocol):
    """One vendor."""

    @property
    def name(self) -> str:
        """Its name in settings, keys, items and callbacks: lower-case letters and digits."""

    @property
    def title(self) -> str:
        """Its name for people."""

    @property
    def example(self) -> Example:
        """What a submit looks like."""

    @property
    def origin(self) -> str:
        """Where its API is, where a deployment says nothing else."""

    @property
    def hosts(self) -> Sequence[str]:
        """Other hosts to which its key may be sent; `*.example.com` stands for all below."""

    @property
    def requests_per_minute(self) -> int:
        """How many requests it allows, where a deployment says nothing else."""

    @property
    def longest_task(self) -> timedelta:
        """How long it may work on a task before it gives up by itself; zero where its pages do not say."""

    @property
    def long_poll(self) -> bool:
        """Whether it may hold a poll until the task has ended."""

    @property
    def webhooks(self) -> bool:
        """Whether it can be given an address to tell of a task's end."""

    @property
    def cancel_removes(self) -> bool:
        """Whether its cancel removes a task that has ended, and with it a result that was paid for."""

    @property
    def models(self) -> Mapping[str, Model]:
        """The models that are described here, by name; all others are passed through."""

    @property
    def listing(self) -> Listing | None:
        """How it lists the account's tasks; None where it does not."""

    @property
    def form(self) -> Form | None:
        """The form of its answers; None: the deployment's own."""

    # --- what callers ask -------------------------------------------------------------------------

    def route(self, method: str, path: str, query: Mapping[str, str]) -> Route | None:
        """Tell what a caller asks for by this path; None where it is not one of the vendor's."""

    def paid_request(self, path: str, headers: Mapping[str, str], body: Json) -> PaidRequest:
        """Read a submit; header names are lower-case, `body` is without OWN_FIELDS. Raises RejectedError."""

    def first_poll(self, model: str) -> timedelta:
        """Tell at what age a task is polled first, before anything is learnt of its model."""

    # --- what the vendor is asked -----------------------------------------------------------------

    def authorization(self, key: str) -> Mapping[str, str]:
        """Give the headers that carry the key."""

    def submit(
        self, target: str, body: bytes, *, headers: Mapping[str, str], webhook_url: str | None
    ) -> HttpRequest:
        """Make the paid POST."""

    def operation(self, upstream_task_id: str) -> str:
        """Give what a poll needs of a task by its id: a path."""

    def poll(self, operation: str, *, hold: bool) -> HttpRequest:
        """Ask for a task; `operation` is the path as above, or a URL. With `hold`, only when it has ended."""

    def cancel(self, operation: str) -> HttpRequest | None:
        """Ask to cancel a task; None where the vendor cannot."""

    def free_request(self) -> HttpRequest:
        """Ask for what costs nothing, to see whether the vendor answers."""

    # --- what it answers --------------------------------------------------------------------------

    def read_submission(
        self, status: int, body: Json | None, *, retry_after: timedelta | None = None
    ) -> SubmitOutcome:
        """Classify the answer to the paid POST; `body` is None where it was not a JSON object."""

    def read_poll(self, body: Json, upstream_task_id: str) -> PollOutcome:
        """Read a 2xx about a task; what is not about this task, or has no status, says nothing."""


def task_age(vendor: Vendor, limit: timedelta) -> timedelta:
    """Tell how old a task gets where a deployment says `limit`.

    None is given up, for it is paid, that its vendor may still end.
    """
    return max(limit, vendor.longest_task)
