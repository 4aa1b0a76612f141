"""What holds for every vendor's file, and the forms of those whose answers are not the deployment's own."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskhook.core.errors import RejectedError
from taskhook.core.record import CallbackState, ErrorCode, State, Submission
from taskhook.core.task import Task
from taskhook.core.vendor import FAILURE, SUCCESS, Action, PollKind, Vendor
from taskhook.vendors import VENDORS
from taskhook.vendors.dashscope import DASHSCOPE
from taskhook.vendors.modellix import MODELLIX
from taskhook.vendors.runway import RUNWAY
from taskhook.wiring import App
from tests.rows import each_row
from tests.vendor_answers import answer_of, golden, upstream_of
from tests.world import SETTINGS, START

ID = "0385dc79-5ff8-4d82-bcb6-000000000001"
ANIMATE = "/api/v1/services/aigc/image2video/video-synthesis"
ASYNC = {"x-dashscope-async": "enable"}
EACH = pytest.mark.parametrize("vendor", VENDORS.values(), ids=[*VENDORS])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    *("id", "task_id", "status", "task_status", "code", "message", "data", "output", "result", "error"),
    *("failure", "failureCode", "results", "choices", "video_url", "url", "usage", "end_time", "text"),
)


def told(vendor: Vendor, status: object, **more: Any) -> dict[str, Any]:
    """Give an answer of the vendor about a task, in its form: a golden one with this status, and more."""
    answer = answer_of(vendor.name, PollKind.PENDING)
    about: dict[str, Any] = json.loads(json.dumps(answer).replace(upstream_of(vendor.name), ID))
    inner = inner_of(about)
    [word] = {"status", "task_status"} & inner.keys()
    inner |= {word: status, **more}
    return about


def headers_of(vendor: Vendor) -> dict[str, str]:
    """Give the headers of its example, as they arrive here."""
    return {name.lower(): value for name, value in vendor.example.headers.items()}


def inner_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Find the part of an answer that is about the task."""
    inner: dict[str, Any] = answer.get("data", answer.get("output", answer))
    return inner


def taken(vendor: Vendor) -> dict[str, Any]:
    """Give an answer to a paid POST that names a task."""
    return told(vendor, "PENDING")


def a_task(vendor: Vendor, state: State = State.WATCHED, **changes: Any) -> Task:
    """Make a task of the vendor."""
    return Task(
        task_id="tk_" + "x" * 22,
        caller="alice",
        vendor=vendor.name,
        model="wan2.2-animate-mix",
        fingerprint="",
        accepted_at=START,
        state=state,
        upstream_task_id=ID,
        taken_at=START,
        **changes,
    )


# --- of every vendor ------------------------------------------------------------------------------


@EACH
@each_row(
    ("status", "submission"),
    [
        (400, Submission.REFUSED),
        (401, Submission.REFUSED_HERE),
        (402, Submission.REFUSED_HERE),
        (403, Submission.REFUSED),
        (404, Submission.REFUSED),
        (405, Submission.REFUSED),
        (408, Submission.AMBIGUOUS),
        (409, Submission.AMBIGUOUS),
        (413, Submission.REFUSED),
        (415, Submission.REFUSED),
        (422, Submission.REFUSED),
        (425, Submission.AMBIGUOUS),
        (429, Submission.BUSY),
        (500, Submission.AMBIGUOUS),
        (503, Submission.AMBIGUOUS),
        (302, Submission.AMBIGUOUS),
    ],
)
def test_a_paid_post_is_classed_by_its_status(vendor: Vendor, status: int, submission: Submission) -> None:
    """Only a refusal proves that nothing was paid; a status that is none is ambiguous, whatever is in it."""
    answers: list[dict[str, Any] | None] = [None, {}, taken(vendor)]
    for body in answers:
        assert vendor.read_submission(status, body).submission is submission


@EACH
def test_a_paid_post_is_taken_where_it_names_a_task(vendor: Vendor) -> None:
    """A 2xx without a task's id is ambiguous."""
    outcome = vendor.read_submission(200, taken(vendor), retry_after=timedelta(seconds=3))
    assert (outcome.submission, outcome.upstream_task_id) == (Submission.TAKEN, ID)
    assert outcome.retry_after == timedelta(seconds=3)
    odd: list[Any] = [None, {}, {"id": 7}, {"output": {"task_id": ""}}, {"output": []}, {"data": 1}]
    for body in odd:
        assert vendor.read_submission(200, body).submission is Submission.AMBIGUOUS


@EACH
def test_every_word_for_an_end_is_known_and_any_other_keeps_polling(vendor: Vendor) -> None:
    """In any case, for all vendors the same."""
    for words, kind in ((SUCCESS, PollKind.SUCCEEDED), (FAILURE, PollKind.FAILED)):
        for word in words:
            for spelled in (word, word.upper(), word.title()):
                assert vendor.read_poll(told(vendor, spelled), ID).kind is kind, spelled
    for word in ("PENDING", "RUNNING", "THROTTLED", "processing", "", "paused", "unheard-of"):
        assert vendor.read_poll(told(vendor, word), ID).kind is PollKind.PENDING, word


@EACH
def test_a_cancel_is_told_from_a_failure_by_the_vendors_word(vendor: Vendor) -> None:
    """In any case, where the vendor can cancel."""
    for word in FAILURE if vendor.cancel("") is not None else ():
        for spelled in (word, word.upper(), word.title()):
            said = vendor.read_poll(told(vendor, spelled), ID)
            assert said.canceled is (word in {"canceled", "cancelled", "aborted"}), spelled


@EACH
def test_what_is_not_about_the_task_says_nothing(vendor: Vendor) -> None:
    """Another id, or a status that is no word."""
    assert vendor.read_poll(told(vendor, "SUCCEEDED"), "another").kind is PollKind.UNAVAILABLE
    odd: list[Any] = [None, 7, ["SUCCEEDED"], {}]
    for status in odd:
        assert vendor.read_poll(told(vendor, status), ID).kind is PollKind.UNAVAILABLE


@EACH
def test_a_failure_without_words_says_so(vendor: Vendor) -> None:
    """Its message names the vendor's word for it."""
    assert "FAILED" in vendor.read_poll(told(vendor, "FAILED"), ID).message


@EACH
@given(data=st.data())
def test_no_answer_is_too_odd(vendor: Vendor, data: st.DataObject) -> None:
    """Whatever its parts are, an answer is read, and what is kept of it can be written as JSON."""
    parts = data.draw(st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=5))
    ended = told(vendor, data.draw(st.sampled_from(["SUCCEEDED", "FAILED"])))
    inner_of(ended).update({name: value for name, value in parts.items() if name not in {"task_id", "id"}})
    for body in (parts, ended):
        outcome = vendor.read_poll(body, ID)
        json.dumps(outcome.data, allow_nan=False)
        vendor.read_submission(200, body)
        vendor.read_submission(400, body)


@EACH
def test_its_example_is_taken(vendor: Vendor) -> None:
    """As it stands, with the media in it; and it makes a task."""
    body = vendor.example.with_media("https://example.com/a.jpg", "https://example.com/b.mp4")
    paid = vendor.paid_request(vendor.example.path, headers_of(vendor), body)
    assert json.loads(paid.body) == body
    assert "https://example.com/a.jpg" in paid.body
    assert vendor.route("POST", vendor.example.path, {}) == (Action.SUBMIT, "")


@EACH
def test_its_golden_submits_are_passed_on(vendor: Vendor) -> None:
    """With their model, as they came."""
    for submit in golden(vendor.name)["submits"]:
        paid = vendor.paid_request(submit["path"], headers_of(vendor), submit["body"])
        assert (paid.model, json.loads(paid.body)) == (submit["model"], submit["body"])


@EACH
def test_its_golden_answers_are_read(vendor: Vendor) -> None:
    """A task that goes on, one that has files, and one that has failed and says why."""
    read, upstream = vendor.read_poll, upstream_of(vendor.name)
    success, failure = (answer_of(vendor.name, kind) for kind in (PollKind.SUCCEEDED, PollKind.FAILED))
    assert read(answer_of(vendor.name, PollKind.PENDING), upstream).data == {}
    files = read(success, upstream).data["result"]["resources"]
    assert files
    assert all(file["url"].startswith("https://") and file["type"] for file in files)
    assert "without a reason" not in read(failure, upstream).message


@EACH
def test_its_key_goes_into_one_header(vendor: Vendor) -> None:
    """And the path of a task holds its id and nothing else of it."""
    assert vendor.authorization("k") == {"Authorization": "Bearer k"}
    path = vendor.operation("a/../b?c#d é")
    assert path.startswith("/")
    assert not set(path) & set("?#é ")
    assert path.count("/") == vendor.operation("x").count("/")
    assert vendor.poll(path, hold=False).method == "GET"
    assert vendor.free_request().method == "GET"


@EACH
def test_what_cannot_be_passed_on_is_refused(vendor: Vendor) -> None:
    """By the field's name: no one could store it, or send it."""
    path = vendor.example.path if vendor is not MODELLIX else "/api/v1/kling/any"  # one that is not described
    headers = headers_of(vendor)
    deep = json.loads("[" * 64 + "]" * 64)
    for odd in ("\ud800", [float("inf")], {"a": {"b": ["\udfff"]}}, deep):
        with pytest.raises(RejectedError, match="'input'") as rejected:
            vendor.paid_request(path, headers, {"model": "m", "input": odd})
        assert rejected.value.status == 400
    vendor.paid_request(path, headers, {"model": "m", "input": "\U0001f600"})


@pytest.mark.parametrize(
    ("vendor", "path", "name"),
    [
        (DASHSCOPE, ANIMATE, "X-DashScope-WorkSpace"),
        (RUNWAY, "/v1/image_to_video", "X-Runway-Version"),
    ],
)
def test_a_header_that_no_request_can_carry_is_refused(vendor: Vendor, path: str, name: str) -> None:
    """By its name: the paid request could never be sent."""
    for odd in ("ü", "a\r\nb: c", "x" * 201):
        with pytest.raises(RejectedError, match=name):
            vendor.paid_request(path, {**ASYNC, name.lower(): odd}, {"model": "m"})


# --- DashScope ------------------------------------------------------------------------------------


def test_dashscopes_paths() -> None:
    """Services, and its own list of tasks; a single task has the deployment's own path."""
    submit = DASHSCOPE.route("POST", ANIMATE, {})
    assert submit is not None
    assert submit.action is Action.SUBMIT
    for query in ({"page_no": "1"}, {"start_time": "20261123000000"}):
        listed = DASHSCOPE.route("GET", "/api/v1/tasks/", query)
        assert listed is not None
        assert listed.action is Action.LIST
    assert DASHSCOPE.route("GET", "/api/v1/tasks", {"limit": "5"}) is None
    assert DASHSCOPE.route("GET", ANIMATE, {}) == (Action.UNKNOWN, "")
    assert DASHSCOPE.route("POST", "/api/v1/kling/v2", {}) is None


def test_a_request_to_dashscope_is_passed_on() -> None:
    """As it came, with the headers that are the vendor's, and always asynchronous."""
    body = {"model": "wan2.2-animate-mix", "input": {"image_url": "u"}, "parameters": {"mode": "wan-std"}}
    headers = {**ASYNC, "x-dashscope-workspace": "w1", "x-else": "no"}
    paid = DASHSCOPE.paid_request(ANIMATE, headers, body)
    assert (paid.model, paid.target, json.loads(paid.body)) == ("wan2.2-animate-mix", ANIMATE, body)
    made = DASHSCOPE.submit(paid.target, b"{}", headers=paid.headers, webhook_url="https://x.example.com")
    assert made.headers == {"X-DashScope-WorkSpace": "w1", "X-DashScope-Async": "enable"}
    assert (made.method, made.target, made.body) == ("POST", ANIMATE, b"{}")


@each_row(
    ("path", "headers", "body", "status", "named"),
    [
        (ANIMATE, {}, {"model": "m"}, 400, "X-DashScope-Async"),
        (ANIMATE, {"x-dashscope-async": "disable"}, {"model": "m"}, 400, "X-DashScope-Async"),
        ("/api/v1/services/aigc", ASYNC, {"model": "m"}, 404, "service"),
        ("/api/v1/services/../keys/x/y", ASYNC, {"model": "m"}, 404, "service"),
        (ANIMATE, ASYNC, {}, 400, "model"),
        (ANIMATE, ASYNC, {"model": 7}, 400, "model"),
        (ANIMATE, ASYNC, {"model": "a b"}, 400, "model"),
        (ANIMATE, ASYNC, {"model": "x" * 129}, 400, "model"),
    ],
)
def test_what_dashscope_would_not_take_is_refused_by_name(
    path: str, headers: dict[str, str], body: dict[str, Any], status: int, named: str
) -> None:
    """Before anything is stored."""
    with pytest.raises(RejectedError, match=named) as rejected:
        DASHSCOPE.paid_request(path, headers, body)
    assert rejected.value.status == status


def test_dashscopes_unknown_is_a_missing_task_and_arrearage_this_deployments() -> None:
    """Both come with a status that says something else."""
    assert DASHSCOPE.read_poll(told(DASHSCOPE, "UNKNOWN"), ID).kind is PollKind.MISSING
    outcome = DASHSCOPE.read_submission(400, {"code": "Arrearage", "message": "overdue"})
    assert (outcome.submission, outcome.message) == (Submission.REFUSED_HERE, "Arrearage: overdue")


@each_row(
    ("output", "resources"),
    [
        ({"video_url": "https://x/a.mp4"}, [("https://x/a.mp4", "video")]),
        ({"results": {"video_url": "https://x/a"}}, [("https://x/a", "video")]),
        (
            {"results": [{"url": "https://x/1.png"}, {"code": "InternalError"}, {"url": "https://x/2.png"}]},
            [("https://x/1.png", "image"), ("https://x/2.png", "image")],
        ),
        (
            {"results": [{"file_url": "https://mine/a.wav", "transcription_url": "https://x/t.json"}]},
            [("https://x/t.json", "text")],
        ),
        (
            {"choices": [{"message": {"content": [{"image": "https://x/c.png"}, {"text": "done"}]}}]},
            [("https://x/c.png", "image")],
        ),
        ({"video_url": 7, "results": None}, []),
    ],
)
def test_dashscopes_results_are_found_wherever_they_are(
    output: dict[str, Any], resources: list[tuple[str, str]]
) -> None:
    """Each once, with its type, and the vendor's own answer beside them."""
    body = told(DASHSCOPE, "SUCCEEDED", end_time="2026-03-25 01:37:31.910", **output)
    data = DASHSCOPE.read_poll(body | {"usage": {"video_duration": 5.2}}, ID).data
    assert [(one["url"], one["type"]) for one in data["result"]["resources"]] == resources
    assert (data["raw"]["output"]["task_id"], data["usage"]) == (ID, {"video_duration": 5.2})
    expires = datetime.fromtimestamp(data["result_expires_at"] / 1000, UTC)
    assert expires == datetime(2026, 3, 25, 17, 37, 31, 910000, UTC)


def test_dashscopes_form() -> None:
    """Our id everywhere, its words for states, and what it said of a task that has ended."""
    form, task = DASHSCOPE.form, a_task(DASHSCOPE)
    assert form.accepted(task)["output"] == {"task_id": task.task_id, "task_status": "PENDING"}
    assert form.task(task)["output"]["task_status"] == "RUNNING"
    body = told(DASHSCOPE, "SUCCEEDED", results={"video_url": "https://x/a.mp4"}) | {"usage": {"n": 1}}
    data = DASHSCOPE.read_poll(body, ID).data
    ended = form.task(task.succeeded(data, START, retention=timedelta(days=7), claim=None))
    assert ended["output"]["results"] == {"video_url": "https://x/a.mp4"}
    assert (ended["output"]["task_id"], ended["usage"]) == (task.task_id, {"n": 1})
    failed = task.failed(
        ErrorCode.UPSTREAM_FAILED, "InvalidFile.Size: too big", START, retention=timedelta(1), claim=None
    )
    output = form.task(failed)["output"]
    assert (output["task_status"], output["code"]) == ("FAILED", "upstream_failed")
    assert form.error(400, "InvalidURL: it is missing") == {
        "request_id": "",
        "code": "InvalidURL",
        "message": "it is missing",
    }
    assert form.error(401, "Authentication failed: no token")["code"] == "InvalidApiKey"
    assert form.error(499, "x")["code"] == "InvalidParameter"


def test_dashscopes_list_is_narrowed_down_and_paged() -> None:
    """By model, state and Beijing's time."""
    tasks = [
        a_task(DASHSCOPE).model_copy(update={"task_id": f"tk_{number:022d}", "model": f"m{number % 2}"})
        for number in range(25)
    ]
    listed = DASHSCOPE.form.listed
    page = listed(tasks, {"page_no": "3"})
    assert (len(page["data"]), page["total"], page["total_page"], page["page_no"]) == (5, 25, 3, 3)
    assert listed(tasks, {"model_name": "m1", "page_size": "100"})["total"] == 12
    assert listed(tasks, {"status": "SUCCEEDED", "page_no": "1"})["total"] == 0
    assert listed(tasks, {"start_time": "20261123200000"})["total"] == 25  # noon in UTC
    assert listed(tasks, {"end_time": "20261123195959"})["total"] == 0
    for query in ({"page_no": "0"}, {"page_size": "101"}, {"page_no": "x"}):
        with pytest.raises(RejectedError, match="page_"):
            listed(tasks, query)


# --- Runway ---------------------------------------------------------------------------------------


@each_row(
    ("method", "path", "action", "task_id"),
    [
        ("POST", "/v1/image_to_video", Action.SUBMIT, ""),
        ("POST", "/v1/character_performance", Action.SUBMIT, ""),
        ("GET", "/v1/tasks/tk_1", Action.SHOW, "tk_1"),
        ("DELETE", "/v1/tasks/tk_1", Action.DELETE, "tk_1"),
    ],
)
def test_runways_paths(method: str, path: str, action: Action, task_id: str) -> None:
    """Whatever is made, and its tasks."""
    assert RUNWAY.route(method, path, {}) == (action, task_id)


def test_a_request_to_runway_is_passed_on_with_its_version() -> None:
    """A caller's own version, or the one that is known here; a model's name, or what is made."""
    body = {"model": "gen4_turbo", "promptImage": "https://x/a.jpg", "ratio": "1280:720"}
    paid = RUNWAY.paid_request("/v1/image_to_video", {"x-runway-version": "2025-01-01"}, body)
    assert (paid.model, json.loads(paid.body)) == ("gen4_turbo", body)
    made = RUNWAY.submit(paid.target, b"{}", headers=paid.headers, webhook_url=None)
    assert (made.target, made.headers) == ("/v1/image_to_video", {"X-Runway-Version": "2025-01-01"})
    plain = RUNWAY.paid_request("/v1/video_upscale", {}, {"videoUri": "https://x/a.mp4"})
    assert (plain.model, plain.headers) == ("video_upscale", {"X-Runway-Version": "2024-11-06"})
    with pytest.raises(RejectedError, match="model"):
        RUNWAY.paid_request("/v1/image_to_video", {}, {"model": ["x"]})


def test_runways_form() -> None:
    """The task alone, under our id."""
    form, task = RUNWAY.form, a_task(RUNWAY, callback=CallbackState.NONE)
    assert form.accepted(task) == {"id": task.task_id}
    running = form.task(task)
    assert (running["id"], running["status"], running["createdAt"][:4]) == (task.task_id, "RUNNING", "2026")
    body = told(RUNWAY, "SUCCEEDED", output=["https://x/a.mp4", "https://x/b.png?c", 7], createdAt="t")
    data = RUNWAY.read_poll(body, ID).data
    assert [one["type"] for one in data["result"]["resources"]] == ["video", "image"]
    ended = form.task(task.succeeded(data, START, retention=timedelta(days=7), claim=None))
    assert (ended["id"], ended["status"], ended["output"][0]) == (
        task.task_id,
        "SUCCEEDED",
        "https://x/a.mp4",
    )
    told_why = RUNWAY.read_poll(told(RUNWAY, "FAILED", failure="no", failureCode="SAFETY.INPUT"), ID)
    assert told_why.message == "SAFETY.INPUT: no"
    failed = task.failed(
        ErrorCode.UPSTREAM_FAILED, told_why.message, START, retention=timedelta(1), claim=None
    )
    assert (form.task(failed)["status"], form.task(failed)["failure"]) == ("FAILED", "SAFETY.INPUT: no")
    assert form.error(429, "x") == {"error": "x"}


def test_the_authorities_are_loaded_once_for_all_vendors() -> None:
    """Each time takes what a tenth of a second of a function's share gives."""
    app = App(SETTINGS, secret=None)
    vendors: list[Any] = list(app.vendors.values())
    assert {vendor._tls for vendor in vendors} == {app.tls}
