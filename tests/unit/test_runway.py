"""Runway's file: what callers may ask, what the vendor is asked, and what any answer of it means."""

import copy
import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskhook.core.errors import RejectedError
from taskhook.core.message import MAX_VENDOR_DATA, Json
from taskhook.core.record import ErrorCode, State, Submission, SubmitOutcome
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import Task
from taskhook.core.vendor import Action, PollKind, PollOutcome, Route
from taskhook.submit.request import SubmitRequest
from taskhook.vendors import VENDORS
from taskhook.vendors.runway import RUNWAY, VERSION
from tests.local.runway import RunwayTasks
from tests.modellix.faults import Fault
from tests.modellix.vendor import VendorProfile, VendorTask
from tests.rows import each_row
from tests.world import START, a_caller

GOLDEN: Json = json.loads((Path(__file__).parents[1] / "golden/runway.json").read_text())
SUBMIT = GOLDEN["submits"][0]
PATH, BODY = SUBMIT["path"], SUBMIT["body"]
UPSTREAM: str = GOLDEN["accepted"]["id"]
DAY = timedelta(days=1)

ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["SUCCEEDED", "FAILED", "https://files.example.com/a.mp4", UPSTREAM]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["id", "status", "createdAt", "output", "failure", "failureCode", "error", "cost"])
ANSWERS = st.dictionaries(NAMES | st.text(max_size=6), ANY_JSON, max_size=9)


def read(
    body: Json | None = None, *, path: str = PATH, headers: Mapping[str, str] | None = None
) -> SubmitRequest:
    """Read a submit as the API does; header names are lower-case."""
    return SubmitRequest.read(
        RUNWAY,
        path,
        BODY if body is None else body,
        caller=a_caller("alice"),
        targets=TargetPolicy(),
        headers=headers or {},
    )


def refused(status: int, *words: str, **submit: Any) -> None:
    """Expect a refusal that holds the words, and can be sent in the vendor's form."""
    with pytest.raises(RejectedError) as rejected:
        read(**submit)
    assert rejected.value.status == status
    for word in words:
        assert word in rejected.value.message
    told = RUNWAY.form.error(status, rejected.value.message)
    assert told == {"error": rejected.value.message}
    json.dumps(told, ensure_ascii=False).encode()


def told(name: str) -> PollOutcome:
    """Read one of the vendor's answers."""
    return RUNWAY.read_poll(copy.deepcopy(GOLDEN["tasks"][name]), UPSTREAM)


def a_task(**headers: str) -> Task:
    """Make a task that waits for its turn."""
    return read(headers=headers).task(a_caller("alice"), START, unchecked={}, claimed_until=None)


def watched() -> Task:
    """Make a task that the vendor has."""
    taken = SubmitOutcome(submission=Submission.TAKEN, upstream_task_id=UPSTREAM)
    return a_task().claim_submit(START, until=START).submitted(taken, START, retention=DAY)


def ended(outcome: PollOutcome) -> Task:
    """End a task as the poller does."""
    if outcome.kind is PollKind.SUCCEEDED:
        return watched().succeeded(outcome.data, START, retention=DAY, claim=None)
    return watched().failed(
        ErrorCode.UPSTREAM_FAILED,
        outcome.message,
        START,
        retention=DAY,
        claim=None,
        raw=outcome.data.get("raw"),
    )


# --- what callers ask -----------------------------------------------------------------------------


def test_it_is_in_the_registry() -> None:
    """Beside the others, by its name."""
    assert VENDORS["runway"] is RUNWAY


@each_row("submit", GOLDEN["submits"], ids=lambda submit: str(submit["path"]))
def test_a_submit_is_passed_on_as_it_came(submit: Json) -> None:
    """Its path, its body minified, the version, and not a word of ours."""
    request = read(submit["body"], path=submit["path"])
    paid = request.paid
    assert (request.vendor, paid.model, paid.validated) == ("runway", submit["model"], False)
    assert json.loads(paid.body) == submit["body"]
    assert ": " not in paid.body.replace(submit["body"].get("promptText", ": "), "")
    sent = RUNWAY.submit(paid.target, paid.body.encode(), headers=paid.headers, webhook_url=None)
    assert (sent.method, sent.target, sent.body) == ("POST", submit["path"], paid.body.encode())
    assert sent.headers == {"X-Runway-Version": VERSION}


def test_what_is_ours_travels_as_headers() -> None:
    """The vendor's body may hold fields of the same names, which are the vendor's."""
    request = read(
        BODY | {"reference": {"type": "video"}},
        headers={
            "x-webhook-url": "https://hooks.example.com/taskhook",
            "x-reference": "order 7",
            "x-runway-version": "2025-01-01",
        },
    )
    assert (request.callback_url, request.reference) == ("https://hooks.example.com/taskhook", "order 7")
    assert json.loads(request.paid.body)["reference"] == {"type": "video"}
    assert request.paid.headers == {"X-Runway-Version": "2025-01-01"}


@each_row(
    ("method", "path", "route"),
    [
        ("POST", "/v1/image_to_video", Route(Action.SUBMIT)),
        ("POST", "/v1/no/such/path", Route(Action.SUBMIT)),
        ("GET", "/v1/tasks/tk_1", Route(Action.SHOW, "tk_1")),
        ("DELETE", "/v1/tasks/tk_1", Route(Action.DELETE, "tk_1")),
        ("GET", "/v1/tasks/", Route(Action.UNKNOWN)),
        ("GET", "/v1/tasks/tk_1/x", Route(Action.UNKNOWN)),
        ("GET", "/v1/organization", Route(Action.UNKNOWN)),
        ("DELETE", "/v1/voices/1", Route(Action.UNKNOWN)),
        ("GET", "/api/v1/tasks/tk_1", None),
        ("POST", "/v1", None),
        ("POST", "/v2/image_to_video", None),
    ],
)
def test_paths(method: str, path: str, route: Route | None) -> None:
    """What is below /v1/ is the vendor's, and so is the form in which the rest of it is refused."""
    assert RUNWAY.route(method, path, {}) == route


@each_row(
    "path",
    [
        "/v1/",
        "/v1/tasks",
        "/v1/organization",
        "/v1/uploads",
        "/v1/recipes",
        "/v1/workflows/7",
        "/v1/Image_To_Video",
        "/v1/image_to_video/",
        "/v1/image_to_video/x",
        "/v1/" + "a" * 65,
        "/v1/a%20b",
        "/v1/image_to_video\n",
    ],
)
def test_a_path_that_makes_no_task_is_refused(path: str) -> None:
    """By its name; an upload, say, would be paid for and never found again."""
    refused(404, "makes no task", path=path)


@each_row("model", ["", "a" * 129, "gen 4", "gen4\n", "ü", 7, None, ["gen4_turbo"], {}, True])
def test_an_odd_model_is_refused(model: object) -> None:
    """By the field's name."""
    refused(400, "'model'", body=BODY | {"model": model})


def test_a_model_is_the_paths_where_the_body_names_none() -> None:
    """As for what has one model alone; any name is passed through."""
    assert (
        read({"videoUri": "https://example.com/a.mp4"}, path="/v1/video_upscale").paid.model
        == "video_upscale"
    )
    assert read(BODY | {"model": "new/model:2.1-x"}).paid.model == "new/model:2.1-x"


def nested(levels: int) -> list[Any]:
    """Nest lists."""
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (nested(64), "64 levels"),
        ([{"a": "\ud800"}], "surrogate"),
        ({"a": [float("inf")]}, "too large"),
    ],
)
def test_what_cannot_be_passed_on_is_refused(value: object, words: str) -> None:
    """By the field's name."""
    refused(400, "'promptText'", words, body=BODY | {"promptText": value})


def test_nesting_has_room() -> None:
    """The deepest that may be is passed on."""
    assert json.loads(read(BODY | {"x": nested(63)}).paid.body)["x"] == nested(63)


@each_row("version", ["", "a" * 201, "2024-11-06\r\nX-Evil: 1", "ü"])
def test_an_odd_version_is_refused(version: str) -> None:
    """By the header's name: it goes to the vendor."""
    refused(400, "'X-Runway-Version'", headers={"x-runway-version": version})


def test_repeats_are_told_from_others() -> None:
    """By path, version and body: the same body means another thing at another path."""
    same = read(headers={"x-runway-version": VERSION}).fingerprint
    assert read().fingerprint == same
    others = [
        read(path="/v1/video_to_video"),
        read(headers={"x-runway-version": "2025-01-01"}),
        read(BODY | {"seed": 8}),
    ]
    assert len({same, *(other.fingerprint for other in others)}) == 4


def test_tasks_are_polled_as_their_models_take() -> None:
    """Never sooner than the vendor wants to be asked."""
    assert RUNWAY.first_poll("gen4_turbo") == timedelta(seconds=20)
    assert RUNWAY.first_poll("eleven_text_to_sound_v2") == timedelta(seconds=5)


# --- what the vendor is asked ---------------------------------------------------------------------


def test_requests() -> None:
    """All say the version; a strange id stays one segment of the path."""
    assert RUNWAY.authorization("key_1") == {"Authorization": "Bearer key_1"}
    operation = RUNWAY.operation("a/b?c")
    assert operation == "/v1/tasks/a%2Fb%3Fc"
    asked = [RUNWAY.poll(operation, hold=True), RUNWAY.cancel(operation), RUNWAY.free_request()]
    assert [(one.method, one.target) for one in asked if one] == [
        ("GET", operation),
        ("DELETE", operation),
        ("GET", "/v1/organization"),
    ]
    assert all(one is not None and one.headers == {"X-Runway-Version": VERSION} for one in asked)


# --- what it answers ------------------------------------------------------------------------------


@each_row(
    ("status", "submission"),
    [
        *((status, Submission.REFUSED) for status in (400, 403, 404, 405, 413, 415, 422)),
        *((status, Submission.REFUSED_HERE) for status in (401, 402)),
        (429, Submission.BUSY),
        *((status, Submission.AMBIGUOUS) for status in (200, 202, 204, 302, 408, 409, 500, 502, 503, 504)),
    ],
)
@each_row("body", [None, {}, {"error": "words"}, {"id": ""}, {"id": 7}, {"id": None}])
def test_answers_without_an_id(status: int, submission: Submission, body: Json | None) -> None:
    """The status alone decides."""
    outcome = RUNWAY.read_submission(status, body, retry_after=DAY)
    assert (outcome.submission, outcome.status, outcome.retry_after) == (submission, status, DAY)
    expected = "words" if body == {"error": "words"} else f"the vendor answered {status}"
    assert outcome.message == expected


@each_row("status", [int(status) for status in GOLDEN["errors"]])
def test_the_vendors_words_are_told(status: int) -> None:
    """Those of its documents."""
    body = GOLDEN["errors"][str(status)]
    assert RUNWAY.read_submission(status, body).message == body["error"]


def test_a_task_is_taken() -> None:
    """With an id, by any 2xx; whatever else is there."""
    for status in (200, 201, 202):
        outcome = RUNWAY.read_submission(status, GOLDEN["accepted"] | {"estimatedCost": {"credits": 25}})
        assert (outcome.submission, outcome.upstream_task_id) == (Submission.TAKEN, UPSTREAM)
    assert RUNWAY.read_submission(500, GOLDEN["accepted"]).submission is Submission.AMBIGUOUS


@pytest.mark.parametrize("name", ["pending", "throttled", "running"])
def test_a_task_that_goes_on(name: str) -> None:
    """THROTTLED is no answer to the poll: the vendor has the task, and queues it."""
    assert told(name) == PollOutcome(kind=PollKind.PENDING)


def test_a_word_that_is_new_keeps_a_task_going() -> None:
    """It would be lost otherwise."""
    assert RUNWAY.read_poll({"id": UPSTREAM, "status": "DREAMING"}, UPSTREAM).kind is PollKind.PENDING


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("success succeeded succeed completed complete done ready finished", PollKind.SUCCEEDED),
        (
            "failed fail failure error expired banned aborted rejected canceled cancelled moderated",
            PollKind.FAILED,
        ),
    ],
)
def test_every_terminal_word_ends_a_task(words: str, kind: PollKind) -> None:
    """In any case; the vendor's form says it in the vendor's word, which its SDK knows."""
    for word in words.split():
        for spelled in (word, word.upper(), word.title()):
            outcome = RUNWAY.read_poll({"id": UPSTREAM, "status": spelled}, UPSTREAM)
            assert outcome.kind is kind
            shown = RUNWAY.form.task(ended(outcome))["status"]
            assert shown in ({"SUCCEEDED"} if kind is PollKind.SUCCEEDED else {"FAILED", "CANCELLED"})


def test_a_success() -> None:
    """Its files by kind, its cost, and its own answer; when links end it does not say."""
    outcome = told("succeeded")
    raw = GOLDEN["tasks"]["succeeded"]
    assert outcome.data == {
        "result": {
            "resources": [
                {"url": raw["output"][0], "type": "video"},
                {"url": raw["output"][1], "type": "image"},
            ]
        },
        "billing": {"credits": 25},
        "raw": raw,
    }


@each_row(
    ("answer", "message"),
    [
        (
            GOLDEN["tasks"]["failed"],
            "INTERNAL.BAD_OUTPUT.CODE01: The generated video did not pass the checks.",
        ),
        (GOLDEN["tasks"]["cancelled"], "the vendor reported CANCELLED without a reason"),
        ({"status": "FAILED", "failure": None}, "the vendor reported FAILED without a reason"),
        ({"status": "FAILED", "failure": "", "failureCode": "SAFETY"}, "SAFETY"),
        ({"status": "FAILED", "failure": {"a": 1}}, "the vendor reported FAILED without a reason"),
        ({"status": "FAILED", "failure": "x" * 5000}, "x" * 1000),
    ],
)
def test_a_failure_says_why(answer: Json, message: str) -> None:
    """Or plainly that the vendor does not."""
    outcome = RUNWAY.read_poll(copy.deepcopy(answer) | {"id": UPSTREAM}, UPSTREAM)
    assert (outcome.kind, outcome.message) == (PollKind.FAILED, message)


@each_row(
    "answer",
    [
        {},
        {"id": "another"} | {"status": "SUCCEEDED"},
        {"id": UPSTREAM},
        {"id": UPSTREAM, "status": None},
        {"id": UPSTREAM, "status": ["FAILED"]},
        {"id": [UPSTREAM], "status": "FAILED"},
        {"error": "There is no such task."},
    ],
)
def test_what_is_not_about_the_task_says_nothing(answer: Json) -> None:
    """It is asked again."""
    assert RUNWAY.read_poll(answer, UPSTREAM).kind is PollKind.UNAVAILABLE


@given(answer=ANSWERS, is_ours=st.booleans())
def test_any_answer_is_read_and_shown(answer: Json, *, is_ours: bool) -> None:
    """Whatever it is made of: without a crash, in numbers that JSON has, and in the vendor's form."""
    if is_ours:
        answer = answer | {"id": UPSTREAM}
    outcome = RUNWAY.read_poll(answer, UPSTREAM)
    json.dumps(outcome.data, allow_nan=False)
    assert len(outcome.message) <= 1000
    if outcome.kind in {PollKind.SUCCEEDED, PollKind.FAILED}:
        task = ended(outcome)
        shown = RUNWAY.form.task(task)
        assert shown["id"] == task.task_id
        assert shown["status"] in {"SUCCEEDED", "FAILED", "CANCELLED"}
        assert all(
            isinstance(file["url"], str) for file in outcome.data.get("result", {}).get("resources", [])
        )
    else:
        assert outcome.kind in {PollKind.PENDING, PollKind.UNAVAILABLE}


@given(status=st.integers(min_value=100, max_value=599), body=st.none() | ANSWERS)
def test_any_answer_to_a_submit_is_read(status: int, body: Json | None) -> None:
    """It is taken only by a 2xx with an id."""
    outcome = RUNWAY.read_submission(status, body)
    taken = 200 <= status < 300 and isinstance((body or {}).get("id"), str) and (body or {})["id"] != ""
    assert (outcome.submission is Submission.TAKEN) == taken
    assert len(outcome.message) <= 1000


@given(body=st.dictionaries(st.text(max_size=8), ANY_JSON, max_size=6), path=st.text(max_size=20))
def test_any_submit_is_read_or_refused(body: Json, path: str) -> None:
    """With words that can be sent."""
    for asked in ("/v1/image_to_video", f"/v1/{path}"):
        try:
            paid = RUNWAY.paid_request(asked, {}, body)
        except RejectedError as rejected:
            status = rejected.status
        else:
            status = 200
            assert json.loads(paid.body) == body
        assert status in {200, 400, 404}


# --- its form -------------------------------------------------------------------------------------


def test_the_form_of_a_task_on_its_way() -> None:
    """The vendor's words, and all that its SDK reads."""
    queued = a_task()
    assert RUNWAY.form.accepted(queued) == {"id": queued.task_id}
    submitting = queued.claim_submit(START, until=START)
    shown = [RUNWAY.form.task(task) for task in (queued, submitting, submitting.mark_unknown(), watched())]
    assert [one["status"] for one in shown] == ["THROTTLED", "PENDING", "PENDING", "RUNNING"]
    assert shown[0] == {
        "id": queued.task_id,
        "createdAt": START.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "status": "THROTTLED",
    }
    assert shown[3]["progress"] == 0
    archiving = watched().archiving(told("succeeded").data, START, new_token=lambda: "t")
    assert RUNWAY.form.task(archiving)["status"] == "RUNNING"


@pytest.mark.parametrize("name", ["succeeded", "failed", "cancelled"])
def test_the_form_of_a_task_that_has_ended(name: str) -> None:
    """What the vendor said, under our id."""
    task = ended(told(name))
    assert RUNWAY.form.task(task) == GOLDEN["tasks"][name] | {"id": task.task_id}
    assert RUNWAY.form.canceled(task) == RUNWAY.form.task(task)
    assert RUNWAY.form.listed([task], {}) == {"tasks": [RUNWAY.form.task(task)]}


def test_the_form_of_a_failure_of_which_the_vendor_knows_nothing() -> None:
    """Its words are ours."""
    lost = watched().failed(ErrorCode.LOST, "gone", START, retention=DAY, claim=None)
    assert (
        RUNWAY.form.task(lost).items()
        >= {"status": "FAILED", "failure": "gone", "failureCode": "lost"}.items()
    )
    canceled = a_task().failed(ErrorCode.CANCELED, "canceled", START, retention=DAY, claim=None)
    assert (canceled.state, RUNWAY.form.task(canceled)["status"]) == (State.FAILED, "CANCELLED")
    assert "failure" not in RUNWAY.form.task(canceled)


def test_an_answer_that_is_too_large_keeps_its_links() -> None:
    """The raw form goes first."""
    output = [f"https://files.example.com/{'x' * 990}/{n}.mp4" for n in range(150)]
    assert 2 * len(output) * 1000 > MAX_VENDOR_DATA
    task = ended(RUNWAY.read_poll({"id": UPSTREAM, "status": "SUCCEEDED", "output": output}, UPSTREAM))
    assert task.raw is None
    assert RUNWAY.form.task(task)["output"] == output


def test_links_of_copies_stand_in_the_vendors_form_too() -> None:
    """So the SDK downloads what is kept."""
    archiving = watched().archiving(told("succeeded").data, START, new_token=lambda: "t")
    copies = tuple(copy.model_copy(update={"archived": copy.n == 0}) for copy in archiving.copies)
    task = archiving.copying(copies, until=None).archived(
        "https://taskhook.example.com", START, retention=DAY, claim=None
    )
    output = RUNWAY.form.task(task)["output"]
    assert output[0].startswith("https://taskhook.example.com/r/")
    assert output[1] == GOLDEN["tasks"]["succeeded"]["output"][1]


# --- its emulator ---------------------------------------------------------------------------------


def test_the_emulator_answers_as_the_documents_do() -> None:
    """Its answers have the fields of the golden ones, and mean the same."""
    seconds = [1_800_000_000.0]
    vendor = RunwayTasks(VendorProfile(api_keys=("k",), task_seconds=8.0), now=lambda: seconds[0])

    def take(fault: str | None = None) -> VendorTask:
        doom = Fault(on="submit", fault=fault) if fault is not None else None
        body, origin = json.dumps(BODY).encode(), "https://runway.example.com"
        return vendor.take("k", "gen4_turbo", body, webhook_url=None, origin=origin, fault=doom)

    good, bad, gone = take(), take("failed"), take("canceled")
    assert json.loads(vendor.accepted(good)).keys() == GOLDEN["accepted"].keys()
    seen = [(good, "throttled", PollKind.PENDING), (good, "running", PollKind.PENDING)]
    seen += [(good, "succeeded", PollKind.SUCCEEDED), (bad, "failed", PollKind.FAILED)]
    for (task, name, kind), at in zip(
        [*seen, (gone, "cancelled", PollKind.FAILED)], (0, 4, 8, 8, 8), strict=True
    ):
        seconds[0] = task.submitted_at + at
        answer = json.loads(vendor.answer(task))
        assert answer["status"] == GOLDEN["tasks"][name]["status"]
        assert answer.keys() <= GOLDEN["tasks"][name].keys() | {"progress"}
        assert RUNWAY.read_poll(answer, task.id).kind is kind
