"""DashScope's file and emulator against the golden answers, and against any other."""

import copy
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskhook.core.errors import RejectedError
from taskhook.core.message import MAX_VENDOR_DATA, Json
from taskhook.core.record import ErrorCode, State, Submission, SubmitOutcome, milliseconds
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import Task
from taskhook.core.vendor import Action, PollKind, PollOutcome, Route
from taskhook.submit.request import SubmitRequest
from taskhook.vendors import VENDORS
from taskhook.vendors.dashscope import DASHSCOPE
from tests.local.dashscope import DashScopeTasks
from tests.modellix.faults import Fault
from tests.modellix.vendor import VendorProfile, VendorTask
from tests.modellix.words import RefusedError
from tests.rows import each_row
from tests.world import START, a_caller

GOLDEN: Json = json.loads((Path(__file__).parents[1] / "golden/dashscope.json").read_text())
SUBMIT = GOLDEN["submits"][0]
PATH, BODY = SUBMIT["path"], SUBMIT["body"]
UPSTREAM: str = GOLDEN["accepted"]["output"]["task_id"]
ASYNC = {"x-dashscope-async": "enable"}
DAY = timedelta(days=1)
END = datetime(
    2026, 3, 24, 17, 37, 31, 910_000, UTC
)  # of the golden success, which says it in Beijing's time

ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["SUCCEEDED", "2026-03-25 01:37:31.910", "https://files.example.com/a.mp4", UPSTREAM]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["code", "message", "results", "video_url", "url", "choices", "content", "text", "usage", "end_time"]
)
PARTS = st.dictionaries(NAMES | st.text(max_size=6), ANY_JSON, max_size=8)


def read(body: Json | None = None, *, path: str = PATH, **headers: str) -> SubmitRequest:
    """Read a submit as the API does; `_` stands for `-` in a header's name."""
    given_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return SubmitRequest.read(
        DASHSCOPE,
        path,
        BODY if body is None else body,
        caller=a_caller("alice"),
        targets=TargetPolicy(),
        headers={**ASYNC, **given_headers},
    )


def told(name: str) -> PollOutcome:
    """Read one of the vendor's answers."""
    return DASHSCOPE.read_poll(copy.deepcopy(GOLDEN["tasks"][name]), UPSTREAM)


def a_task() -> Task:
    """Make a task that waits for its turn."""
    return read().task(a_caller("alice"), START, unchecked={}, claimed_until=None)


def watched() -> Task:
    """Make a task that the vendor has."""
    taken = SubmitOutcome(submission=Submission.TAKEN, upstream_task_id=UPSTREAM)
    return a_task().claim_submit(START, until=START).submitted(taken, START, retention=DAY)


def ended(outcome: PollOutcome) -> Task:
    """End a task as the poller does."""
    if outcome.kind is PollKind.SUCCEEDED:
        return watched().succeeded(outcome.data, START, retention=DAY, claim=None)
    raw = outcome.data.get("raw")
    return watched().failed(
        ErrorCode.UPSTREAM_FAILED, outcome.message, START, retention=DAY, claim=None, raw=raw
    )


# --- what callers ask -----------------------------------------------------------------------------


def test_it_is_in_the_registry() -> None:
    """Beside the others, by its name."""
    assert VENDORS["dashscope"] is DASHSCOPE


@each_row("submit", GOLDEN["submits"], ids=lambda submit: str(submit["model"]))
def test_a_submit_is_passed_on_as_it_came(submit: Json) -> None:
    """Its path and its body, minified; always asynchronous, and with no word of ours."""
    request = read(submit["body"], path=submit["path"], x_webhook_url="https://hooks.example.com/t")
    paid = request.paid
    assert DASHSCOPE.route("POST", submit["path"], {}) == Route(Action.SUBMIT)
    assert (request.vendor, paid.model, paid.validated) == ("dashscope", submit["model"], False)
    assert (json.loads(paid.body), request.callback_url) == (submit["body"], "https://hooks.example.com/t")
    sent = DASHSCOPE.submit(paid.target, paid.body.encode(), headers=paid.headers, webhook_url="https://x")
    assert (sent.method, sent.target) == ("POST", submit["path"])
    assert sent.headers == {"X-DashScope-Async": "enable"}


@each_row(
    ("method", "path", "query", "route"),
    [
        ("GET", "/api/v1/tasks/", {}, Route(Action.LIST)),
        ("GET", "/api/v1/tasks/", {"status": "FAILED"}, Route(Action.LIST)),
        ("GET", "/api/v1/tasks", {"model_name": "m"}, Route(Action.LIST)),
        ("GET", "/api/v1/tasks", {"status": "failed"}, None),
        ("GET", "/api/v1/tasks", {}, None),
        ("GET", "/api/v1/tasks/tk_1", {}, None),
        ("POST", "/api/v1/tasks/", {}, None),
        ("POST", "/api/v1/services", {}, None),
        ("POST", "/api/v1/services/", {}, Route(Action.SUBMIT)),
        ("GET", PATH, {}, Route(Action.UNKNOWN)),
        ("DELETE", PATH, {}, Route(Action.UNKNOWN)),
    ],
)
def test_paths(method: str, path: str, query: dict[str, str], route: Route | None) -> None:
    """What is below its services is the vendor's, and so is the form in which the rest of it is refused."""
    assert DASHSCOPE.route(method, path, query) == route


@each_row(
    "path",
    ["", "aigc", "a/b/c/d/e", "aigc//video-synthesis", "aigc/../keys", "a/b/c\n", "A/b/c"],
)
def test_a_path_that_is_no_service_is_refused(path: str) -> None:
    """Before anything is stored."""
    with pytest.raises(RejectedError, match="no such service") as rejected:
        read(path=f"/api/v1/services/{path}")
    assert rejected.value.status == 404
    assert DASHSCOPE.form.error(404, rejected.value.message)["code"] == "NotFound"


@each_row("model", ["", "a" * 129, "wan 2", "wan\n", "ü", 7, None, ["wan"], {}, True])
def test_an_odd_model_is_refused(model: object) -> None:
    """By the field's name, in the vendor's form."""
    with pytest.raises(RejectedError, match="'model'") as rejected:
        read({**BODY, "model": model})
    told_wrong = DASHSCOPE.form.error(rejected.value.status, rejected.value.message)
    assert (told_wrong["code"], "'model'" in told_wrong["message"]) == ("InvalidParameter", True)


def test_repeats_are_told_from_others() -> None:
    """By path, body and the vendor's own headers: the same body means another thing at another path."""
    others = [
        read(path=GOLDEN["submits"][1]["path"]),
        read({**BODY, "parameters": {}}),
        read(x_dashscope_workspace="w"),
    ]
    assert read().fingerprint == read().fingerprint
    assert len({read().fingerprint, *(other.fingerprint for other in others)}) == 4


# --- what it answers ------------------------------------------------------------------------------


@each_row("error", GOLDEN["errors"], ids=lambda error: str(error["code"]))
def test_the_vendors_refusals(error: Json) -> None:
    """Its account and key are this deployment's affair, its quotas a matter of time, all else is for good."""
    outcome = DASHSCOPE.read_submission(error["status"], error)
    expected = {
        "Arrearage": Submission.REFUSED_HERE,
        "InvalidApiKey": Submission.REFUSED_HERE,
        "Throttling.RateQuota": Submission.BUSY,
        "Throttling.AllocationQuota": Submission.BUSY,
    }
    assert outcome.submission is expected.get(error["code"], Submission.REFUSED)
    assert outcome.message == f"{error['code']}: {error['message']}"


def test_a_task_is_taken() -> None:
    """With the id that the answer names."""
    outcome = DASHSCOPE.read_submission(200, GOLDEN["accepted"])
    assert (outcome.submission, outcome.upstream_task_id) == (Submission.TAKEN, UPSTREAM)


@each_row(
    ("name", "kind"),
    [
        ("pending", PollKind.PENDING),
        ("running", PollKind.PENDING),
        ("succeeded", PollKind.SUCCEEDED),
        ("partly", PollKind.SUCCEEDED),
        ("transcribed", PollKind.SUCCEEDED),
        ("described", PollKind.SUCCEEDED),
        ("failed", PollKind.FAILED),
        ("failed_silently", PollKind.FAILED),
        ("canceled", PollKind.FAILED),
        ("unknown", PollKind.MISSING),
    ],
)
def test_every_state(name: str, kind: PollKind) -> None:
    """All of them come with status 200."""
    assert told(name).kind is kind


@each_row(
    ("name", "resources"),
    [
        ("succeeded", [("https://results.example.com/clip.mp4?Expires=1774460251", "video")]),
        ("partly", [("https://results.example.com/1.png?Expires=1774460193", "image")]),
        ("transcribed", [("https://results.example.com/talk.json?Expires=1774460185", "text")]),
        ("described", [("https://results.example.com/2.png", "image")]),
    ],
)
def test_a_success(name: str, resources: list[tuple[str, str]]) -> None:
    """Its files, wherever they are, what it took, and its own answer beside them."""
    data = told(name).data
    assert [(one["url"], one["type"]) for one in data["result"]["resources"]] == resources
    assert data["raw"] == GOLDEN["tasks"][name]
    assert data["usage"] == GOLDEN["tasks"][name]["usage"]
    assert data["result"].get("text") == ("A kite." if name == "described" else None)


@each_row(
    ("end_time", "ends"),
    [
        ("2026-03-25 01:37:31.910", milliseconds(END + DAY)),
        ("2026-03-24T17:37:31.910Z", milliseconds(END + DAY)),
        ("9999-12-31 23:59:59.999", None),
        ("yesterday", None),
        ("", None),
        (None, None),
        (1774460251, None),
        (["2026-03-25 01:37:31.910"], None),
    ],
)
def test_links_live_a_day(end_time: object, ends: int | None) -> None:
    """From its end in Beijing's time, unless a zone is told; of an odd time nothing follows."""
    output = {**GOLDEN["tasks"]["succeeded"]["output"], "end_time": end_time}
    assert DASHSCOPE.read_poll({"output": output}, UPSTREAM).data.get("result_expires_at") == ends


def test_a_failure_says_why_or_that_the_vendor_does_not() -> None:
    """Media faults are told at the poll; now and then there is no word at all."""
    assert told("failed").message == "InvalidFile.Duration: The video lasts 31 s; 2 s to 30 s are possible."
    assert told("failed_silently").message == "the vendor reported FAILED, and no reason"
    assert told("canceled").message == "the vendor reported CANCELED, and no reason"
    odd = {"task_id": UPSTREAM, "task_status": "Failed", "code": 7, "message": "x" * 5000}
    assert DASHSCOPE.read_poll({"output": odd}, UPSTREAM).message == "x" * 1000


@given(parts=PARTS, usage=ANY_JSON, word=st.sampled_from(["SUCCEEDED", "FAILED", "CANCELED", "RUNNING"]))
def test_any_answer_is_read_and_shown(parts: Json, usage: Any, word: str) -> None:
    """Whatever its parts are: what is kept can be stored, and is told in the vendor's form."""
    body = {"usage": usage, "output": {**parts, "task_id": UPSTREAM, "task_status": word}}
    outcome = DASHSCOPE.read_poll(body, UPSTREAM)
    if outcome.kind is PollKind.PENDING:
        return
    task = ended(outcome)
    output = DASHSCOPE.form.task(task)["output"]
    assert (output["task_id"], output["task_status"]) == (task.task_id, word)
    assert DASHSCOPE.form.listed([task], {"status": word})["data"][0]["status"] == word
    json.dumps(output, allow_nan=False)
    assert len(outcome.message) <= 1000
    for file in outcome.data["result"]["resources"]:
        assert file["url"].startswith(("http://", "https://"))
        assert file["type"] in {"video", "image", "audio", "text"}


@given(body=st.dictionaries(st.sampled_from(["output", "code", "message"]) | st.text(max_size=6), ANY_JSON))
def test_an_answer_in_any_form_says_nothing(body: Json) -> None:
    """It is never an end that no one told of, and never a task that no one named."""
    assert DASHSCOPE.read_poll(body, UPSTREAM).kind is PollKind.UNAVAILABLE
    output = body.get("output")
    named = output.get("task_id") if isinstance(output, dict) else None
    if not (isinstance(named, str) and named):
        assert DASHSCOPE.read_submission(200, body).submission is Submission.AMBIGUOUS
    assert len(DASHSCOPE.read_submission(400, body).message) <= 1000


@given(body=st.dictionaries(st.text(max_size=8), ANY_JSON, max_size=6), path=st.text(max_size=20))
def test_any_submit_is_read_or_refused(body: Json, path: str) -> None:
    """With words that can be sent."""
    for asked in (PATH, f"/api/v1/services/{path}"):
        for named in (body, {**body, "model": "m"}):
            try:
                paid = DASHSCOPE.paid_request(asked, ASYNC, named)
            except RejectedError as rejected:
                status, words = rejected.status, DASHSCOPE.form.error(rejected.status, rejected.message)
                assert words["message"]
            else:
                status = 200
                assert json.loads(paid.body) == named
            assert status in {200, 400, 404}


# --- its form -------------------------------------------------------------------------------------


def test_the_form_of_a_task_on_its_way() -> None:
    """The vendor's words; what its poller alone knows is not told."""
    queued = a_task()
    assert DASHSCOPE.form.accepted(queued).keys() == GOLDEN["accepted"].keys()
    assert DASHSCOPE.form.accepted(queued)["output"] == {
        "task_id": queued.task_id,
        "task_status": "PENDING",
    }
    submitting = queued.claim_submit(START, until=START)
    archiving = watched().archiving(told("succeeded").data, START, new_token=lambda: "t")
    tasks = (queued, submitting, submitting.mark_unknown(), watched(), archiving)
    words = [DASHSCOPE.form.task(task)["output"]["task_status"] for task in tasks]
    assert words == ["PENDING", "PENDING", "PENDING", "RUNNING", "RUNNING"]
    assert DASHSCOPE.form.canceled(queued).keys() == GOLDEN["canceled"].keys()


@each_row(
    "name", ["succeeded", "partly", "transcribed", "described", "failed", "failed_silently", "canceled"]
)
def test_the_form_of_a_task_that_has_ended(name: str) -> None:
    """What the vendor said, under our id."""
    task = ended(told(name))
    expected = copy.deepcopy(GOLDEN["tasks"][name])
    expected["output"]["task_id"] = expected["request_id"] = task.task_id
    assert DASHSCOPE.form.task(task) == expected


def test_the_form_of_a_failure_of_which_the_vendor_knows_nothing() -> None:
    """Its words are ours."""
    lost = DASHSCOPE.form.task(watched().failed(ErrorCode.LOST, "gone", START, retention=DAY, claim=None))
    assert lost["output"].items() >= {"task_status": "FAILED", "code": "lost", "message": "gone"}.items()
    taken_back = a_task().failed(ErrorCode.CANCELED, "canceled", START, retention=DAY, claim=None)
    assert (taken_back.state, DASHSCOPE.form.task(taken_back)["output"]["task_status"]) == (
        State.FAILED,
        "CANCELED",
    )


def test_an_answer_that_is_too_large_keeps_its_links() -> None:
    """The vendor's own form is lost, its files are told all the same."""
    results = [{"url": f"https://results.example.com/{'x' * 4000}/{n}.png"} for n in range(50)]
    assert 2 * len(json.dumps(results)) > MAX_VENDOR_DATA > len(json.dumps(results))
    output = {"task_id": UPSTREAM, "task_status": "SUCCEEDED", "results": results}
    task = ended(DASHSCOPE.read_poll({"output": output}, UPSTREAM))
    assert task.raw is None
    assert DASHSCOPE.form.task(task)["output"]["results"] == results


def test_links_of_copies_stand_in_the_vendors_form_too() -> None:
    """So its SDK downloads what is kept."""
    archiving = watched().archiving(told("succeeded").data, START, new_token=lambda: "t")
    copies = tuple(one.model_copy(update={"archived": True}) for one in archiving.copies)
    task = archiving.copying(copies, until=None).archived(
        "https://taskhook.example.com", START, retention=DAY, claim=None
    )
    link = DASHSCOPE.form.task(task)["output"]["results"]["video_url"]
    assert link.startswith("https://taskhook.example.com/r/")


def test_the_form_of_a_list() -> None:
    """It has the vendor's fields, and is narrowed down by state, canceled tasks included."""
    tasks = [watched(), ended(told("succeeded")), ended(told("failed")), ended(told("canceled"))]
    listed = DASHSCOPE.form.listed(tasks, {})
    assert listed.keys() == GOLDEN["list"].keys()
    assert listed["data"][1].keys() <= GOLDEN["list"]["data"][0].keys()
    words = ["RUNNING", "SUCCEEDED", "FAILED", "CANCELED"]
    assert [row["status"] for row in listed["data"]] == words
    for word in words:
        assert DASHSCOPE.form.listed(tasks, {"status": word})["total"] == 1


@each_row("name", ["start_time", "end_time"])
@each_row("value", ["", "yesterday", "20261123", "2026-11-23 20:00:00", "202611232000000"])
def test_an_odd_time_of_a_list_is_refused(name: str, value: str) -> None:
    """By its name: it would find nothing, and say nothing."""
    with pytest.raises(RejectedError, match=f"'{name}'") as rejected:
        DASHSCOPE.form.listed([], {name: value})
    assert rejected.value.status == 400


@each_row("error", GOLDEN["errors"], ids=lambda error: str(error["code"]))
def test_a_refusal_of_the_vendors_is_passed_on(error: Json) -> None:
    """In the vendor's form; a code of one word becomes what the status means."""
    outcome = DASHSCOPE.read_submission(error["status"], error)
    shown = DASHSCOPE.form.error(error["status"], outcome.message)
    assert shown.keys() == {"request_id", "code", "message"}
    if re.search(r"[a-z][A-Z.]", error["code"]):
        assert (shown["code"], shown["message"]) == (error["code"], error["message"])


# --- its emulator ---------------------------------------------------------------------------------


class Emulated:
    """The emulator's tasks and limits, in virtual time."""

    def __init__(self, **knobs: Any) -> None:
        self.seconds = 1_800_000_000.0
        profile = VendorProfile(api_keys=("k",), task_seconds=8.0, **knobs)
        self.vendor = DashScopeTasks(profile, now=lambda: self.seconds)

    def take(
        self, fault: str | None = None, *, model: str = "wan2.2-animate-mix", message: str = ""
    ) -> VendorTask:
        """Submit a task."""
        doom = Fault(on="submit", fault=fault, message=message or None) if fault is not None else None
        body, origin = json.dumps(BODY).encode(), "https://dashscope.example.com"
        return self.vendor.take("k", model, body, webhook_url="https://x", origin=origin, fault=doom)

    def answer(self, task: VendorTask) -> Json:
        """Ask for a task."""
        answer: Json = json.loads(self.vendor.answer(task))
        return answer


def test_the_emulator_answers_as_the_documents_do() -> None:
    """Its answers have the fields of the golden ones, and mean the same."""
    emulated = Emulated()
    good, bad = emulated.take(), emulated.take("failed", message="InvalidFile.Duration: 31 s are too much")
    silent, gone = emulated.take("failed_string"), emulated.take("canceled")
    assert json.loads(emulated.vendor.accepted(good)).keys() == GOLDEN["accepted"].keys()
    for task, name, at in (
        (good, "pending", 0),
        (good, "running", 4),
        (good, "succeeded", 8),
        (bad, "failed", 8),
        (silent, "failed_silently", 8),
        (gone, "canceled", 8),
    ):
        emulated.seconds = task.submitted_at + at
        answer, golden = emulated.answer(task), GOLDEN["tasks"][name]
        assert answer.keys() == golden.keys(), name
        assert answer["output"].keys() == golden["output"].keys(), name
        assert answer["output"]["task_status"] == golden["output"]["task_status"]
        outcome = DASHSCOPE.read_poll(answer, task.id)
        assert (outcome.kind, outcome.data.keys()) == (told(name).kind, told(name).data.keys())
    assert emulated.answer(bad)["output"]["code"] == "InvalidFile.Duration"
    assert emulated.answer(bad)["output"]["message"] == "31 s are too much"


def test_the_emulators_tasks_and_links_live_a_day() -> None:
    """Then the task is unknown, and its result is gone."""
    emulated = Emulated()
    task = emulated.take()
    emulated.seconds += 8
    assert task.webhook_url is None
    link = emulated.answer(task)["output"]["results"]["video_url"]
    assert int(link.partition("Expires=")[2]) == task.ends_at + 86_400
    emulated.seconds += 86_399
    assert emulated.vendor.known(task.id) is task
    emulated.seconds += 1
    assert emulated.vendor.result(task.id) is None
    with pytest.raises(RefusedError, match="not found"):
        emulated.vendor.known(task.id)


def test_the_emulator_runs_so_many_tasks_of_each_model() -> None:
    """A task of another model is taken all the same."""
    emulated = Emulated(concurrent=1)
    emulated.take()
    with pytest.raises(RefusedError) as refused:
        emulated.take()
    assert refused.value.status == 429
    emulated.take(model="wan2.2-animate-move")
    assert emulated.vendor.counts()["running"] == 2
    emulated.seconds += 8
    emulated.take()
    assert emulated.vendor.counts()["refused_concurrency"] == 1


# --- the list, in which a submit whose outcome is unknown is looked for ---------------------------


def a_row(**more: Any) -> Json:
    """Make a row of the list as the vendor gives it."""
    made_at = milliseconds(START)
    row: Json = {"task_id": "up-1", "status": "RUNNING", "model_name": "wan2.2-animate-mix"}
    return {**row, "gmt_create": made_at, "start_time": made_at, "region": "ap-southeast-1"} | more


def made(*rows: Any, **more: Any) -> list[str] | None:
    """Read a page with these rows."""
    body: Json = {"request_id": "req", "data": list(rows), "total": len(rows), "page_no": 1} | more
    second = timedelta(seconds=1)
    return DASHSCOPE.listing.made(body, "wan2.2-animate-mix", since=START - second, until=START + second)


def test_the_list_is_asked_for_a_model_and_a_time_of_beijings() -> None:
    """Whole seconds, the last one included; as many rows as a page holds."""
    since = datetime(2026, 3, 24, 17, 37, 31, 910_000, UTC)
    made = DASHSCOPE.listing.request("a b", since=since, until=since + timedelta(seconds=30))
    assert made.target == (
        "/api/v1/tasks/?model_name=a+b&start_time=20260325013731&end_time=20260325013802&page_no=1&page_size=100"
    )
    assert (made.method, made.body) == ("GET", None)


def test_of_the_list_what_was_made_counts() -> None:
    """Of the model and the time that were asked for, whatever else the vendor lists; ended ones too."""
    late = milliseconds(START + timedelta(seconds=2))
    other = a_row(task_id="up-2", status="PENDING")
    ended = [a_row(task_id="up-3", status="SUCCEEDED")]
    strange = (a_row(model_name="wan2.2-animate-move"), a_row(gmt_create=late))
    assert made(a_row(), other, *ended, *strange) == ["up-1", "up-2", "up-3"]
    assert made() == []


@each_row("row", [None, 1, {}, {"task_id": "up-2"}, a_row(task_id=2), a_row(gmt_create="now")])
def test_with_a_row_that_cannot_be_read_nothing_is_certain(row: Any) -> None:
    """It may be the task."""
    assert made(a_row(), row) is None


@each_row("more", [{"total": 2}, {"total": None}, {"total": "1"}, {"data": None}])
def test_a_page_that_is_not_the_whole_list_says_nothing(more: Json) -> None:
    """There may be another candidate beyond it."""
    assert made(a_row(), **more) is None


def test_the_emulators_list_is_read() -> None:
    """As the file asks for it."""
    emulated = Emulated()
    task = emulated.take()
    made_at = datetime.fromtimestamp(task.submitted_at, UTC)
    since, until = made_at - timedelta(seconds=1), made_at + timedelta(seconds=1)
    made = DASHSCOPE.listing.request(BODY["model"], since=since, until=until)
    listed = emulated.vendor.listed(dict(parse_qsl(urlsplit(made.target).query)))
    assert DASHSCOPE.listing.made(listed, BODY["model"], since=since, until=until) == [task.id]
