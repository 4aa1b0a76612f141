import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskhook.api import answers
from taskhook.core.message import minified
from taskhook.core.record import Attempt, CallbackState, State
from taskhook.core.reply import Reply
from taskhook.core.task import Task
from taskhook.delivery import samples  # pytest would take `TestResult` for a test
from taskhook.tasks.query import Listing
from tests.contract import check, document
from tests.rows import each_row
from tests.world import START

RETENTION = timedelta(days=7)


def a_task(**changes: Any) -> Task:
    """Make a watched task."""
    task = Task(
        task_id="tk_" + "0" * 22,
        caller="alice",
        model="alibaba/wan2.2-animate-mix",
        fingerprint="f",
        accepted_at=START,
        state=State.WATCHED,
        callback_url="https://r.example.com/",
        callback=CallbackState.WAITING,
    )
    return task.model_copy(update=changes)


def shown(data: dict[str, Any]) -> dict[str, Any]:
    """Give what is answered of a task whose vendor says so of its success."""
    ended = a_task().succeeded(data, START, retention=RETENTION, claim=START)
    answer = answers.task_answer(ended).body()
    minified(answer).encode()
    return dict(answer["data"])


@each_row(
    "odd",
    [
        {"result": None},
        {"result": []},
        {"result": {"resources": "none"}},
        {"result": {"resources": [1, None, {"url": 5}]}},
        {"billing": "free", "truncated": "a bit", "duration": None, "result_expires_at": [None]},
        {"metadata": {"a": {"b": [1.5, None]}}, "model_dump": 1, "body": 2, "__class__": 3, "": 4},
        {"large": 10**25, "small": 1e-320},
    ],
)
def test_what_a_vendor_says_is_passed_on_whatever_it_is(odd: dict[str, Any]) -> None:
    """Its nulls too: a client of the vendor reads these answers."""
    assert {name: value for name, value in shown(odd).items() if name in odd} == odd


def test_a_result_may_be_nested_as_deeply_as_it_came() -> None:
    """Deeper than serializers of models go; a listing that holds such a task is answered too."""
    nested: Any = 1
    for _ in range(900):
        nested = [nested]
    assert shown({"result": nested, "metadata": nested})["metadata"] == nested
    ended = a_task().succeeded({"metadata": nested}, START, retention=RETENTION, claim=START)
    listed = answers.success(answers.task_list(Listing([ended, a_task()], None, 2, START))).body()["data"]
    assert [task["status"] for task in listed["tasks"]] == ["success", "processing"]


def test_what_is_ours_to_say_the_vendor_does_not() -> None:
    """Not even where we have nothing to say: what `unchecked` or `request` means is the contract's."""
    ours = {
        "unchecked": 1,
        "request": "x",
        "callback": None,
        "stage": "theirs",
        "submitted_at": "now",
        "callback_url": 0,
    }
    data = shown(ours)
    assert (data["stage"], data["callback"]["state"], data["callback_url"]) == (
        "success",
        "waiting",
        "https://r.example.com/",
    )
    assert not data.keys() & {"unchecked", "request", "submitted_at"}


def test_the_log_has_what_happened_and_no_more() -> None:
    """A status or the reason for none, and the time of the next attempt where there is one."""
    made = (
        Attempt(at=START, status=503, ms=38, answer="busy", next_at=START + timedelta(seconds=5)),
        Attempt(at=START + timedelta(seconds=5), error="an_error_of_another_version", ms=0),
    )
    log = answers.task_answer(a_task(log=made)).body()["data"]["callback"]["log"]
    assert log == [
        {
            "at": "2026-11-23T12:00:00.000Z",
            "status": 503,
            "ms": 38,
            "answer": "busy",
            "next_at": "2026-11-23T12:00:05.000Z",
        },
        {"at": "2026-11-23T12:00:05.000Z", "error": "an_error_of_another_version", "ms": 0, "answer": ""},
    ]


def test_a_time_is_told_in_utc_and_to_the_millisecond() -> None:
    """Wherever it was written, and where it has no fraction."""
    assert answers.iso(datetime(2026, 11, 23, 12, tzinfo=UTC)) == "2026-11-23T12:00:00.000Z"
    assert answers.iso(datetime.fromisoformat("2026-11-23T13:00:00.0129+01:00")) == "2026-11-23T12:00:00.012Z"


def test_null_is_said_where_the_contract_has_it_and_nowhere_else() -> None:
    """`next_cursor` and `next_attempt_at` are always there; what has not happened is not."""
    listed = answers.task_list(Listing([a_task()], None, 1, START)).body()
    assert listed["next_cursor"] is None
    [task] = listed["tasks"]
    assert task["callback"]["next_attempt_at"] is None
    assert None not in task.values()
    sent = a_task().succeeded({}, START, retention=RETENTION, claim=START)
    assert (
        "status"
        not in answers.samples([samples.TestResult(sent, Reply(error="timeout"))]).body()["samples"][0]
    )


@pytest.mark.parametrize(
    "task", [a_task(), a_task(state=State.QUEUED, request="{}", unchecked={"image_url": "unknown format"})]
)
def test_an_answer_is_as_its_schema(task: Task) -> None:
    """Also one that no example shows."""
    schema = document()["paths"]["/api/v1/tasks/{task_id}"]["get"]["responses"]["200"]["content"][
        "application/json"
    ]["schema"]
    check(json.loads(minified(answers.task_answer(task).body())), schema)
