"""What is billed by the size of an item: the write units of an ordinary task, submit to delivery."""

import math
import secrets
from datetime import timedelta

import pytest

from taskhook.adapters.dynamodb.items import Attributes, item
from taskhook.adapters.dynamodb.tasks import request_key, values_of
from taskhook.core.message import minified
from taskhook.core.record import Attempt, CallbackState, State, Submission, SubmitOutcome, milliseconds
from taskhook.core.task import Task
from tests.local.emulator import size
from tests.world import START

UNIT = 1024  # bytes
RETENTION = timedelta(days=30)


def a_url(length: int) -> str:
    """Make a URL of that length."""
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
    video = {
        "url": a_url(90),
        "type": "video",
        "width": 1280,
        "height": 720,
        "format": "mp4",
        "role": "primary",
        "size": 123456,
    }
    data = {
        "result": {"resources": [video]},
        "billing": {"amount": "0.2400"},
        "result_expires_at": 1796075999265,
    }
    ended = watched.succeeded(data, START, retention=RETENTION, claim=START + timedelta(seconds=30))
    attempt = Attempt(at=START, status=200, ms=120, answer="ok")
    return [
        submitting,
        watched,
        ended,
        ended.attempted(attempt, delivered=True, retry_at=None, now=START, retention=RETENTION),
    ]


def rows_of(values: Attributes) -> set[tuple[str, ...]]:
    """List the rows of the indexes that an item has: DynamoDB bills a unit for each change."""
    indexes = ("caller", "listed"), ("work", "work_at")
    return {
        (*keys, *(str(values[key]) for key in keys))
        for keys in indexes
        if keys[0] in values and keys[1] in values
    }


def units(tasks: list[Task]) -> list[int]:
    """Bill each write of a task, its request's first: the item's larger weight, and the rows that change."""
    request = {
        "task_id": request_key(tasks[0]),
        "request": tasks[0].request,
        "expires_at": milliseconds(START) // 1000,
    }
    billed, before = [math.ceil(size(item(request)) / UNIT)], Attributes()
    for task in tasks:
        after = values_of(task)
        weight = max(size(item(before)), size(item(after)))
        billed.append(math.ceil(weight / UNIT) + len(rows_of(before) ^ rows_of(after)))
        before = after
    return billed


@pytest.mark.parametrize(
    ("url_bytes", "billed"),
    [
        (60, [1, 3, 1, 2, 3]),
        (200, [1, 3, 1, 2, 3]),
        (500, [2, 3, 1, 2, 3]),  # as long as signed ones
    ],
)
def test_an_ordinary_task_takes_ten_write_units(url_bytes: int, billed: list[int]) -> None:
    """Its request, and four writes of its own; the contract allows fourteen, budget and leader included."""
    assert units(from_submit_to_delivery(url_bytes)) == billed
