"""Ark's file: what is its own beside what `test_vendors.py` asks of every vendor's; and its emulator."""

import copy
import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskhook.core.errors import RejectedError
from taskhook.core.message import MAX_VENDOR_DATA, Json
from taskhook.core.record import ErrorCode, State, Submission
from taskhook.core.task import Task
from taskhook.core.vendor import Action, PollKind, PollOutcome, Route
from taskhook.vendors.ark import ARK
from tests.local.ark import ArkTasks
from tests.modellix.faults import Fault
from tests.modellix.vendor import VendorProfile, VendorTask
from tests.rows import each_row
from tests.unit.test_vendors import ANYTHING, a_task
from tests.vendor_answers import golden, upstream_of
from tests.world import START

GOLDEN = golden("ark")
UPSTREAM = upstream_of("ark")
TASKS = "/api/v3/contents/generations/tasks"
BODY: Json = GOLDEN["submits"][0]["body"]
DAY = timedelta(days=1)
NAMES = st.sampled_from(["id", "status", "model", "content", "error", "usage", "updated_at", "created_at"])


def told(name: str) -> PollOutcome:
    """Read one of the vendor's answers."""
    return ARK.read_poll(copy.deepcopy(GOLDEN["tasks"][name]), UPSTREAM)


def ended(outcome: PollOutcome) -> Task:
    """End a task as the poller does."""
    task = a_task(ARK)
    if outcome.kind is PollKind.SUCCEEDED:
        return task.succeeded(outcome.data, START, retention=DAY, claim=None)
    raw = outcome.data.get("raw")
    return task.failed(ErrorCode.UPSTREAM_FAILED, outcome.message, START, retention=DAY, claim=None, raw=raw)


# --- what callers ask -----------------------------------------------------------------------------


@each_row(
    ("method", "path", "route"),
    [
        ("POST", TASKS, Route(Action.SUBMIT)),
        ("GET", TASKS, Route(Action.LIST)),
        ("GET", f"{TASKS}/tk_1", Route(Action.SHOW, "tk_1")),
        ("DELETE", f"{TASKS}/tk_1", Route(Action.DELETE, "tk_1")),
        ("POST", f"{TASKS}/tk_1", Route(Action.UNKNOWN)),
        ("POST", "/api/v3/images/generations", Route(Action.UNKNOWN)),
        ("GET", f"{TASKS}/tk_1/x", Route(Action.UNKNOWN)),
        ("DELETE", TASKS, Route(Action.UNKNOWN)),
        ("GET", "/api/v1/tasks/tk_1", None),
        ("POST", "/api/v3", None),
    ],
)
def test_paths(method: str, path: str, route: Route | None) -> None:
    """What is below /api/v3/ is the vendor's, and so is the form in which the rest of it is refused."""
    assert ARK.route(method, path, {}) == route


@each_row(
    ("path", "body", "status", "word"),
    [
        ("/api/v3/images/generations", BODY, 404, TASKS),
        (TASKS, {}, 400, "'model'"),
        (TASKS, BODY | {"model": 7}, 400, "'model'"),
        (TASKS, BODY | {"callback_url": "https://x.example.com"}, 400, "X-Webhook-URL"),
    ],
)
def test_what_is_no_task_to_watch_is_refused(path: str, body: Json, status: int, word: str) -> None:
    """Before anything is stored; a callback of the vendor's own would name an id that no caller saw."""
    with pytest.raises(RejectedError, match=word) as rejected:
        ARK.paid_request(path, {}, body)
    assert rejected.value.status == status


def test_requests() -> None:
    """A strange id stays one segment of the path; nothing of ours goes into the body."""
    assert ARK.operation("a/b?c") == f"{TASKS}/a%2Fb%3Fc"
    canceling = ARK.cancel(f"{TASKS}/x")
    assert canceling is not None
    assert (canceling.method, canceling.target) == ("DELETE", f"{TASKS}/x")
    sent = ARK.submit(TASKS, b"{}", headers={}, webhook_url="https://x.example.com")
    assert (sent.method, sent.target, sent.body, sent.headers) == ("POST", TASKS, b"{}", {})
    assert ARK.first_poll(BODY["model"]) == timedelta(seconds=20)


# --- what it answers ------------------------------------------------------------------------------


@each_row("error", GOLDEN["errors"], ids=lambda error: str(error["body"]["error"]["code"]))
def test_the_vendors_words_are_told(error: Json) -> None:
    """Behind its code; an account in debt is no fault of the request."""
    told, words = ARK.read_submission(error["status"], error["body"]), error["body"]["error"]
    assert told.message == f"{words['code']}: {words['message']}"
    expected = {
        400: Submission.REFUSED,
        401: Submission.REFUSED_HERE,
        403: Submission.REFUSED_HERE,
        404: Submission.REFUSED,
        429: Submission.BUSY,
        500: Submission.AMBIGUOUS,
    }
    assert told.submission is expected[error["status"]]


def test_another_403_is_about_the_request() -> None:
    """As for every vendor."""
    body = {"error": {"code": "AccessDenied", "message": "no"}}
    assert ARK.read_submission(403, body).submission is Submission.REFUSED


def test_a_success() -> None:
    """Its files by kind, its usage, its own answer, and until when its links live."""
    raw = GOLDEN["tasks"]["succeeded"]
    assert told("succeeded").data == {
        "result": {
            "resources": [
                {"url": raw["content"]["video_url"], "type": "video"},
                {"url": raw["content"]["last_frame_url"], "type": "image"},
            ]
        },
        "usage": raw["usage"],
        "result_expires_at": (raw["updated_at"] + 86_400) * 1000,
        "raw": raw,
    }


@each_row(
    ("answer", "message"),
    [
        (
            GOLDEN["tasks"]["failed"],
            "OutputVideoSensitiveContentDetected: The video did not pass the checks.",
        ),
        (GOLDEN["tasks"]["expired"], "the vendor reported expired without a reason"),
        (GOLDEN["tasks"]["cancelled"], "the vendor reported cancelled without a reason"),
        ({"status": "failed", "error": None}, "the vendor reported failed without a reason"),
        ({"status": "failed", "error": {"code": 7, "message": ""}}, "the vendor reported failed without a"),
        ({"status": "failed", "error": {"message": "x" * 5000}}, "x" * 1000),
    ],
)
def test_a_failure_says_why(answer: Json, message: str) -> None:
    """Or plainly that the vendor does not."""
    outcome = ARK.read_poll(copy.deepcopy(answer) | {"id": UPSTREAM}, UPSTREAM)
    assert outcome.kind is PollKind.FAILED
    assert outcome.message.startswith(message)
    assert len(outcome.message) <= 1000


@given(parts=st.dictionaries(NAMES, ANYTHING, max_size=8), status=st.sampled_from(["succeeded", "failed"]))
def test_any_answer_is_read_and_shown(parts: Json, status: str) -> None:
    """In numbers that JSON has, and in the vendor's form."""
    outcome = ARK.read_poll(parts | {"id": UPSTREAM, "status": status}, UPSTREAM)
    task = ended(outcome)
    shown = ARK.form.task(task)
    json.dumps([outcome.data, shown], allow_nan=False)
    assert (shown["id"], shown["status"]) == (task.task_id, status)


# --- its form -------------------------------------------------------------------------------------


@each_row("name", ["succeeded", "failed", "expired", "cancelled"])
def test_the_form_of_a_task_that_has_ended(name: str) -> None:
    """What the vendor said, under our id."""
    task = ended(told(name))
    assert ARK.form.task(task) == GOLDEN["tasks"][name] | {"id": task.task_id}


def test_the_form_of_a_task_on_its_way() -> None:
    """The vendor's words for where it stands."""
    words = [ARK.form.task(a_task(ARK, state))["status"] for state in (State.QUEUED, State.WATCHED)]
    assert words == ["queued", "running"]
    task = a_task(ARK)
    assert ARK.form.accepted(task) == {"id": task.task_id}
    assert ARK.form.canceled(task) == {}
    assert ARK.form.task(task).keys() == GOLDEN["tasks"]["running"].keys()


@pytest.mark.parametrize(
    ("error", "word"),
    [(ErrorCode.LOST, "failed"), (ErrorCode.CANCELED, "cancelled"), (ErrorCode.EXPIRED, "expired")],
)
def test_the_form_of_a_failure_of_which_the_vendor_knows_nothing(error: ErrorCode, word: str) -> None:
    """Its words are ours."""
    state = State.QUEUED if error is ErrorCode.CANCELED else State.WATCHED
    shown = ARK.form.task(a_task(ARK, state).failed(error, "gone", START, retention=DAY, claim=None))
    assert (shown["status"], shown["error"]) == (word, {"code": error, "message": "gone"})


def test_an_answer_that_is_too_large_keeps_its_links() -> None:
    """The raw form goes first."""
    body = GOLDEN["tasks"]["succeeded"] | {"notes": "x" * MAX_VENDOR_DATA}
    task = ended(ARK.read_poll(body, UPSTREAM))
    assert task.raw is None
    assert ARK.form.task(task)["content"] == GOLDEN["tasks"]["succeeded"]["content"]


def test_its_list_is_narrowed_down_and_paged() -> None:
    """By model, state and ids."""
    tasks = [
        a_task(ARK).model_copy(update={"task_id": f"tk_{number:022d}", "model": f"m{number % 2}"})
        for number in range(25)
    ]
    listed = ARK.form.listed
    page = listed(tasks, {"page_num": "3"})
    assert (len(page["items"]), page["total"]) == (5, 25)
    assert listed(tasks, {"filter.model": "m1", "page_size": "100"})["total"] == 12
    assert listed(tasks, {"filter.status": "succeeded"}) == {"total": 0, "items": []}
    assert listed(tasks, {"filter.task_ids": f"{tasks[3].task_id},{tasks[7].task_id}"})["total"] == 2
    with pytest.raises(RejectedError, match="page_num"):
        listed(tasks, {"page_num": "0"})


@each_row(
    ("status", "message", "code"),
    [
        (400, "InvalidParameter.Ratio: no such ratio", "InvalidParameter.Ratio"),
        (400, "Invalid parameters: parameter 'model' is required", "InvalidParameter"),
        (401, "Authentication failed: no token", "AuthenticationError"),
        (404, "Resource not found: no such task", "NotFound"),
        (409, "Conflict: too late", "OperationDenied"),
        (503, "Service unavailable: later", "ServiceUnavailable"),
    ],
)
def test_its_errors(status: int, message: str, code: str) -> None:
    """With the vendor's own code where it said one."""
    error = ARK.form.error(status, message)["error"]
    assert error.keys() == GOLDEN["errors"][0]["body"]["error"].keys()
    assert error["code"] == code


# --- its emulator ---------------------------------------------------------------------------------


def test_the_emulator_answers_as_the_documents_do() -> None:
    """Its answers have fields of the golden ones, and mean the same."""
    seconds = [1_800_000_000.0]
    vendor = ArkTasks(VendorProfile(api_keys=("k",), task_seconds=8.0), now=lambda: seconds[0])

    def take(fault: str | None = None) -> VendorTask:
        doom = Fault(on="submit", fault=fault) if fault is not None else None
        body: Any = json.dumps(BODY).encode()
        return vendor.take(
            "k", BODY["model"], body, webhook_url=None, origin="https://ark.example.com", fault=doom
        )

    good, bad, silent, gone = take(), take("failed"), take("failed_string"), take("canceled")
    assert json.loads(vendor.accepted(good)).keys() == GOLDEN["accepted"].keys()
    for task, name, at in (
        (good, "queued", 0),
        (good, "running", 4),
        (good, "succeeded", 8),
        (bad, "failed", 8),
        (silent, "failed", 8),
        (gone, "cancelled", 8),
    ):
        seconds[0] = task.submitted_at + at
        answer = json.loads(vendor.answer(task))
        assert answer["status"] == GOLDEN["tasks"][name]["status"]
        assert answer.keys() <= GOLDEN["tasks"][name].keys()
        assert ARK.read_poll(answer, task.id).kind is told(name).kind
