"""The emulated vendor without its server, in virtual time: what would take days takes none."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from taskhook.core.message import Json
from taskhook.core.record import Submission
from taskhook.core.vendor import PollKind
from taskhook.vendors.modellix import MODELLIX
from tests.modellix.faults import Fault
from tests.modellix.vendor import Modellix, Results, VendorProfile, VendorTask
from tests.modellix.words import RefusedError
from tests.rows import each_row

KEY, MODEL = "mdlx-test", "alibaba/wan2.2-animate-mix"
BODY = (
    b'{"image_url": "https://example.com/a.jpg", "video_url": "https://example.com/b.mp4", "mode": "wan-std"}'
)
DAY = 86400.0
GOLDEN: Json = json.loads((Path(__file__).parents[1] / "golden/modellix.json").read_text())
UPSTREAM: str = GOLDEN["accepted"]["data"]["task_id"]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds


def vendor(clock: Clock, **knobs: Any) -> Modellix:
    """Make a vendor with one key."""
    return Modellix(VendorProfile(api_keys=(KEY,), **knobs), now=clock, sample_bytes=77)


def take(one: Modellix, fault: Fault | None = None, body: bytes = BODY) -> VendorTask:
    """Submit a task."""
    return one.take(KEY, MODEL, body, webhook_url=None, origin="https://vendor.example.com", fault=fault)


def data_of(one: Modellix, task: VendorTask) -> Any:
    """Give what is said of a task."""
    return json.loads(one.answer(task))["data"]


def test_a_task_ends_in_its_time_and_is_known_for_a_week() -> None:
    """Its last answer never changes; a second after its retention it is not found."""
    clock = Clock()
    one = vendor(clock, task_seconds=100.0)
    task = take(one)
    seen = []
    for seconds in (0.0, 24.0, 1.0, 74.5, 0.5):
        clock.pass_by(seconds)
        seen.append(data_of(one, task)["status"])
    assert seen == ["pending", "pending", "processing", "processing", "success"]
    last = one.answer(task)
    assert data_of(one, task)["duration"] == 100_000
    clock.pass_by(7 * DAY - 0.1)
    assert one.answer(one.known(task.id)) == last
    clock.pass_by(0.1)
    assert one.result(task.id) is None
    with pytest.raises(RefusedError, match="not found"):
        one.known(task.id)


def test_slots_are_free_again_when_tasks_end() -> None:
    """A task too many is refused, counted, and not paid for."""
    clock = Clock()
    one = vendor(clock, task_seconds=10.0, concurrent=2)
    take(one)
    clock.pass_by(5)
    take(one)
    with pytest.raises(RefusedError) as refused:
        take(one)
    assert refused.value.message.startswith("Concurrent limit exceeded")
    assert (one.running(KEY), one.refused_concurrency, len(one.tasks)) == (2, 1, 2)
    clock.pass_by(5)
    take(one)
    assert one.counts()["running"] == 2


def test_the_window_slides() -> None:
    """A call gives its room back after a minute; a refused one has taken none, and says when to come back."""
    clock = Clock()
    one = vendor(clock, rpm=2, retry_after=True)
    assert one.admit(KEY)["X-RateLimit-Remaining"] == "1"
    clock.pass_by(20)
    one.admit(KEY)
    with pytest.raises(RefusedError) as refused:
        one.admit(KEY)
    assert refused.value.headers["Retry-After"] == "40"
    clock.pass_by(40)
    assert one.admit(KEY)["X-RateLimit-Remaining"] == "0"
    assert one.refused_rate == 1
    with pytest.raises(RefusedError, match="invalid API key"):
        one.admit("mdlx-wrong")


def test_a_fault_ends_a_task_badly_unless_it_has_ended() -> None:
    """A terminal state never changes."""
    clock = Clock()
    one = vendor(clock, task_seconds=10.0)
    canceled, done, doomed = (
        take(one),
        take(one),
        take(one, Fault(on="submit", fault="failed_string", message="no person")),
    )
    one.end(canceled, Fault(on="task", fault="canceled"))
    clock.pass_by(10)
    one.end(done, Fault(on="task", fault="failed"))
    assert [data_of(one, task)["status"] for task in (canceled, done, doomed)] == [
        "canceled",
        "success",
        "failed",
    ]
    assert data_of(one, doomed)["error"] == "no person"
    assert (data_of(one, canceled)["duration"], one.result(canceled.id)) == (0, None)


def test_a_task_takes_as_long_as_its_image_asks_and_its_result_is_as_large_as_told_at_its_end() -> None:
    """What is said of results later changes nothing for it."""
    clock = Clock()
    one = vendor(clock, task_seconds=10.0)
    usual, long = take(one), take(one, body=BODY.replace(b"a.jpg", b"a.jpg?task_seconds=12.5"))
    clock.pass_by(10)
    one.set_results(Results(bytes=1000))
    clock.pass_by(2.4)
    assert not one.has_ended(long)
    clock.pass_by(0.1)
    sizes = [data_of(one, task)["result"]["resources"][0]["size"] for task in (usual, long)]
    assert sizes == [77, 1000]
    one.set_results(Results(gone=True))
    assert one.result(long.id) is None


# --- what the documents say -----------------------------------------------------------------------


@pytest.mark.parametrize("submit", GOLDEN["submits"], ids=lambda submit: str(submit["model"]))
def test_a_submit_is_read_as_documented(submit: Json) -> None:
    """A described model's strictly, any other's as it came."""
    paid = MODELLIX.paid_request(submit["path"], {}, submit["body"])
    assert (paid.model, paid.validated) == (submit["model"], submit["validated"])
    assert json.loads(paid.body) == submit["body"]


def test_an_accepted_task_is_read_as_documented() -> None:
    """With the id that the answer names."""
    outcome = MODELLIX.read_submission(200, GOLDEN["accepted"])
    assert (outcome.submission, outcome.upstream_task_id) == (Submission.TAKEN, UPSTREAM)


@each_row("error", GOLDEN["errors"], ids=lambda error: str(error["message"]))
def test_refusals_are_read_as_documented(error: Json) -> None:
    """By their status, in the vendor's words."""
    outcome = MODELLIX.read_submission(error["code"], error)
    expected = {
        401: Submission.REFUSED_HERE,
        402: Submission.REFUSED_HERE,
        429: Submission.BUSY,
        503: Submission.AMBIGUOUS,
    }
    assert outcome.submission is expected.get(error["code"], Submission.REFUSED)
    assert outcome.message == error["message"]


@each_row(
    ("name", "fault", "at", "kind"),
    [
        ("pending", None, 0, PollKind.PENDING),
        ("processing", None, 4, PollKind.PENDING),
        ("success", None, 8, PollKind.SUCCEEDED),
        ("failed", "failed", 8, PollKind.FAILED),
        ("canceled", "canceled", 8, PollKind.FAILED),
    ],
)
def test_a_task_is_answered_and_read_as_documented(
    name: str, fault: str | None, at: float, kind: PollKind
) -> None:
    """The emulator's answer has the fields of the documents', and both mean the same."""
    clock, golden = Clock(), GOLDEN["tasks"][name]
    one = vendor(clock, task_seconds=8.0)
    task = take(one, Fault(on="submit", fault=fault) if fault is not None else None)
    assert json.loads(one.accepted(task))["data"].keys() == GOLDEN["accepted"]["data"].keys()
    clock.pass_by(at)
    answer = json.loads(one.answer(task))
    assert answer.keys() == golden.keys()
    assert answer["data"].keys() == golden["data"].keys()
    assert answer["data"]["status"] == golden["data"]["status"]
    read = MODELLIX.read_poll(copy.deepcopy(golden), UPSTREAM)
    assert (read.kind, MODELLIX.read_poll(answer, task.id).kind) == (kind, kind)
    if kind is PollKind.SUCCEEDED:
        assert read.data["result"] == golden["data"]["result"]
        assert answer["data"]["result"].keys() == golden["data"]["result"].keys()
        [resource], [documented] = (one["result"]["resources"] for one in (answer["data"], golden["data"]))
        assert resource.keys() == documented.keys()
