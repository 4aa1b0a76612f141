"""What goes wrong between us and vendor or receiver: told truly, never paid twice, never lost."""

import re

import pytest
from standardwebhooks.webhooks import Webhook

from tests.e2e.conftest import Inbox, Json, Stack, User, Vendor, eventually

AMBIGUOUS = ("302", "408", "409", "425", "500", "502", "503", "504", "not_json", "code_nonzero", "wrong_id")
TAKEN_ANYWAY = {"not_json", "wrong_id", "drop_after"}


def submit_into(fault: str, user: User, vendor: Vendor, inbox: Inbox, marker: str) -> Json:
    """Submit while the vendor answers so, check the 502 of an unknown outcome, return the stored task."""
    with vendor.fault(fault):
        answer = user.submit(marker, callback_url=inbox.url(marker))
    assert (answer.status_code, answer.json()["code"]) == (502, 502)
    task = user.stored(marker)
    assert task["task_id"] in answer.json()["message"]
    assert re.search("unknown.*do not resubmit", answer.json()["message"])
    return task


def assert_watched_and_paid_at_most_once(
    task: Json, fault: str, user: User, vendor: Vendor, inbox: Inbox, marker: str
) -> None:
    """Check an unknown task: recovered by the vendor's webhook where it was taken, else pending."""
    assert len(vendor.paid(marker)) == (fault in TAKEN_ANYWAY)
    if fault in TAKEN_ANYWAY:
        assert user.ended(task["task_id"])["status"] == "success"
        assert [delivery["verified"] for delivery in inbox.deliveries(task["task_id"])] == [True]
        return
    now = user.task(task["task_id"])
    assert (now["status"], now["callback"]["state"]) == ("pending", "waiting")
    assert "upstream_task_id" not in now
    assert inbox.deliveries(task["task_id"]) == []


# --- the vendor's answer to the paid POST ---------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 415, 422])
def test_a_refusal_for_good_is_passed_on(
    user: User, vendor: Vendor, inbox: Inbox, marker: str, status: int
) -> None:
    """Same status and message; the task is stored as failed; the caller was told, so no callback is sent."""
    before = vendor.submits()
    with vendor.fault(str(status), message=f"no {marker} today"):
        answer = user.submit(marker, callback_url=inbox.url(marker))
    assert (answer.status_code, answer.json()["code"]) == (status, status)
    assert f"no {marker} today" in answer.json()["message"]
    task = user.stored(marker)
    assert (task["status"], task["callback"]["state"]) == ("failed", "none")
    assert task["error"] == {"code": "upstream_refused", "message": answer.json()["message"]}
    assert inbox.deliveries(task["task_id"]) == []
    assert vendor.submits() == before + 1
    assert vendor.paid(marker) == []


@pytest.mark.parametrize("status", [401, 402])
def test_a_refusal_of_this_deployment_frees_the_key(
    stack: Stack, user: User, vendor: Vendor, inbox: Inbox, marker: str, status: int
) -> None:
    """Vendor key or balance are the operator's trouble: 502; the idempotency key works once it is mended."""
    with vendor.fault(str(status)):
        answer = user.submit(marker, key=marker, callback_url=inbox.url(marker))
    assert (answer.status_code, answer.json()["code"]) == (502, 502)
    assert re.search("refused: this deployment's key or balance.*injected fault", answer.json()["message"])
    refused = user.stored(marker)
    assert (refused["status"], refused["error"]["code"], refused["callback"]["state"]) == (
        "failed",
        "upstream_refused",
        "none",
    )
    assert vendor.paid(marker) == []

    task_id = user.accepted(marker, key=marker, callback_url=inbox.url(marker))
    assert task_id == refused["task_id"]
    assert user.ended(task_id)["status"] == "success"
    [delivery] = inbox.deliveries(task_id)
    assert (
        Webhook(stack.signing_secret).verify(delivery["body"], delivery["headers"])["type"]
        == "prediction.task.succeeded"
    )
    assert len(vendor.paid(marker)) == 1


def test_a_rate_refusal_queues_the_task(user: User, vendor: Vendor, inbox: Inbox, marker: str) -> None:
    """The submitter gets 200 all the same, and its callback; the vendor was asked twice and paid once."""
    before = vendor.submits()
    with vendor.fault("429"):
        answer = user.submit(marker, callback_url=inbox.url(marker))
    assert answer.status_code == 200
    assert answer.json()["data"]["status"] == "pending"
    task = user.ended(answer.json()["data"]["task_id"])
    assert task["status"] == "success"
    assert [delivery["verified"] for delivery in inbox.deliveries(task["task_id"])] == [True]
    assert vendor.submits() == before + 2
    assert len(vendor.paid(marker)) == 1


@pytest.mark.parametrize("fault", AMBIGUOUS)
def test_an_answer_that_proves_nothing_is_called_unknown(
    user: User, vendor: Vendor, inbox: Inbox, marker: str, fault: str
) -> None:
    """502 with the task's id; the vendor's webhook recovers it if it was taken; the POST is not repeated."""
    before = vendor.submits()
    task = submit_into(fault, user, vendor, inbox, marker)
    assert_watched_and_paid_at_most_once(task, fault, user, vendor, inbox, marker)
    assert vendor.submits() == before + 1
    # three unknown outcomes in a row would pause the queue
    user.accepted(f"{marker}-after", callback_url=inbox.url(marker))


def test_a_dropped_connection_is_never_submitted_again(
    user: User, vendor: Vendor, inbox: Inbox, marker: str
) -> None:
    """Before or after the vendor took the task looks the same here; only its webhook tells them apart."""
    before = vendor.submits()
    dropped = {
        fault: submit_into(fault, user, vendor, inbox, f"{marker}-{fault}")
        for fault in ("drop_before", "drop_after")
    }
    user.ended(user.accepted(marker, callback_url=inbox.url(marker)))  # the poller has seen all three
    for fault, task in dropped.items():
        assert_watched_and_paid_at_most_once(task, fault, user, vendor, inbox, f"{marker}-{fault}")
    assert vendor.submits() == before + 3


# --- polls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", ["500", "503", "404", "drop_before", "drop_after", "not_json", "code_nonzero", "wrong_id"]
)
def test_a_poll_that_says_nothing_ends_nothing(
    user: User, vendor: Vendor, inbox: Inbox, marker: str, fault: str
) -> None:
    """The task stays as it is until a poll gets through."""
    with vendor.fault(fault, on="task", times=2):
        task_id = user.accepted(marker, callback_url=inbox.url(marker))
        eventually(lambda: (paid := vendor.paid(marker)) and paid[0]["requests"] >= 3)
    task = user.ended(task_id)
    assert task["status"] == "success"
    assert task["upstream_task_id"] == vendor.paid(marker)[0]["id"]
    assert [delivery["verified"] for delivery in inbox.deliveries(task_id)] == [True]
    assert len(vendor.paid(marker)) == 1


# --- the receiver ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "logged"), [(503, 503), (302, 302), (0, None)], ids=["503", "redirect", "dropped"]
)
def test_a_receiver_that_comes_back_gets_the_same_message(
    stack: Stack, user: User, vendor: Vendor, inbox: Inbox, marker: str, status: int, logged: int | None
) -> None:
    """The same id and the same bytes, newly signed, about 5 s later; the log tells of both attempts."""
    inbox.behave(
        marker, status, headers={"Location": inbox.url(f"{marker}-elsewhere")} if status == 302 else {}
    )
    task_id = user.accepted(marker, callback_url=inbox.url(marker))
    waiting = eventually(
        lambda: callback if (callback := user.task(task_id)["callback"])["attempts"] == 1 else None
    )
    assert waiting is not None
    assert waiting["state"] == "waiting"
    assert waiting["next_attempt_at"] is not None

    callback = user.ended(task_id)["callback"]
    first, second = inbox.deliveries(task_id)
    assert [first["status_answered"], second["status_answered"]] == [status, 200]
    assert first["headers"]["webhook-id"] == second["headers"]["webhook-id"]
    assert first["body"] == second["body"]
    assert first["path"] == second["path"] == f"/{marker}"
    for delivery in (first, second):
        Webhook(stack.signing_secret).verify(delivery["body"], delivery["headers"])
    assert [delivery["headers"]["x-modellix-retry-count"] for delivery in (first, second)] == ["0", "1"]
    assert second["received_at"] - first["received_at"] > 4

    assert (callback["attempts"], callback["next_attempt_at"]) == (2, None)
    assert [attempt.get("status") for attempt in callback["log"]] == [logged, 200]
    assert ("error" in callback["log"][0]) == (logged is None)
    assert len(vendor.paid(marker)) == 1
