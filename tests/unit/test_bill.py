"""What is billed by the size of an item: each write of an ordinary task, with URLs as long as signed ones, is one unit."""

import secrets
from datetime import timedelta

import pytest

from taskhook.adapters.dynamodb.items import attributes, item, packed, stored_values
from taskhook.core.message import minified
from taskhook.core.task import Attempt, CallbackState, State, Submission, SubmitOutcome, Task
from tests.local.emulator import size
from tests.world import START

UNIT = 1024  # bytes
RETENTION = timedelta(days=30)


def a_url(length: int) -> str:
    """Make a URL that nobody can compress by much, as signed ones are."""
    return f"https://files.example.com/{secrets.token_urlsafe(length)}"[:length]


def from_submit_to_delivery(url_bytes: int) -> list[Task]:
    """List what is stored of a task, one after the other."""
    submitting = Task(
        task_id=f"tk_{secrets.token_urlsafe(17)[:22]}",
        caller="my-company",
        model="alibaba/wan2.2-animate-mix",
        request=minified({"image_url": a_url(url_bytes), "video_url": a_url(url_bytes), "mode": "wan-std"}),
        fingerprint=secrets.token_urlsafe(17)[:22],
        callback_url=a_url(url_bytes),
        reference="order-123456",
        accepted_at=START,
        state=State.SUBMITTING,
        submitted_at=START,
        claimed_until=START + timedelta(seconds=35),
        callback=CallbackState.WAITING,
        nonce=secrets.token_hex(8),
    )
    upstream_task_id = f"task-{secrets.token_hex(12)}"
    taken = SubmitOutcome(submission=Submission.TAKEN, upstream_task_id=upstream_task_id, status=200)
    watched = submitting.submitted(taken, START, retention=RETENTION)
    video = {"url": a_url(90), "type": "video", "width": 1280, "height": 720, "format": "mp4", "role": "primary", "size": 123456}
    data = {"result": {"resources": [video]}, "billing": {"amount": "0.2400"}, "result_expires_at": 1796075999265}
    ended = watched.succeeded(data, START, retention=RETENTION, claim=START + timedelta(seconds=30))
    attempt = Attempt(at=START, status=200, ms=120, answer="ok")
    return [
        submitting,
        watched,
        ended,
        ended.attempted(attempt, delivered=True, retry_at=None, now=START, retention=RETENTION),
    ]


def test_a_message_that_was_stored_without_a_look_beside_it_is_read_as_it_was() -> None:
    """So did an earlier version, and its tasks are still there."""
    ended = from_submit_to_delivery(60)[2]
    stored = item(attributes(ended) | {"message": packed(ended.message or "")})
    assert stored_values(stored)["message"] == ended.message


@pytest.mark.parametrize("url_bytes", [60, 100, 130, 200, 300, 500])
def test_each_write_of_an_ordinary_task_is_one_unit(url_bytes: int) -> None:
    """The request of a task with long URLs is stored apart; all else fits, up to the delivery and its log."""
    assert [size(item(attributes(task))) <= UNIT for task in from_submit_to_delivery(url_bytes)] == [True] * 4
