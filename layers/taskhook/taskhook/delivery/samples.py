"""Sample callbacks, sent to a receiver under test."""

import asyncio
import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus

from pydantic import BaseModel, ConfigDict, Field

from taskhook.core import parameters
from taskhook.core.caller import Caller
from taskhook.core.errors import RejectedError
from taskhook.core.message import Json
from taskhook.core.ports import CallbackSender, Clock, DeliveryRate, Reporter
from taskhook.core.record import CallbackState, ErrorCode, State
from taskhook.core.reply import Reply, is_delivered
from taskhook.core.targets import CallbackUrl, TargetPolicy
from taskhook.core.task import Task
from taskhook.delivery.attempt import send_attempt
from taskhook.vendors.modellix import MODELS

TESTS_AHEAD = timedelta(seconds=10)  # of a caller's rate, which a receiver test may use before its time


class ReceiverTest(BaseModel):
    """What a test of a receiver takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    callback_url: CallbackUrl | None = Field(default=None, description="Without it the caller's default.")


@dataclass(frozen=True)
class TestResult:
    """What a receiver said to a sample."""

    sample: Task
    reply: Reply

    @property
    def delivered(self) -> bool:
        """Whether a callback that is answered so counts as delivered."""
        return is_delivered(self.reply.status)


async def send_test_callbacks(
    body: Json,
    *,
    caller: Caller,
    targets: TargetPolicy,
    rate: DeliveryRate,
    callbacks: CallbackSender,
    clock: Clock,
    reporter: Reporter,
) -> list[TestResult]:
    """Send a signed sample of each event type to a receiver, once, as a callback would be sent.

    `callbacks` limits the attempt's time: the submit function waits for it. Raises RejectedError, 429 where
    the caller's rate is used up for the next seconds.
    """
    now = clock.now()
    samples = _samples(_receiver(body, caller, targets), caller, now)
    latest = now + TESTS_AHEAD
    first = await rate.reserve_deliveries(caller.caller, len(samples), now=now, latest=latest)
    if first > latest:
        message = (
            "Too many requests: redeliveries wait or receivers were tested just now; both share one "
            "rate of 60 a minute"
        )
        raise RejectedError(
            HTTPStatus.TOO_MANY_REQUESTS, message, retry_after=math.ceil((first - latest).total_seconds())
        )
    replies = await asyncio.gather(*(send_attempt(sample, caller, now, callbacks) for sample in samples))
    await callbacks.close()  # connections do not outlive a freeze
    for sample, reply in zip(samples, replies, strict=True):
        ms = round(reply.elapsed / timedelta(milliseconds=1))
        reporter.report(
            "callback.tested",
            caller=caller.caller,
            type=sample.event,
            status=reply.status,
            error=reply.error,
            ms=ms,
        )
    return [TestResult(sample, reply) for sample, reply in zip(samples, replies, strict=True)]


def _receiver(body: Json, caller: Caller, targets: TargetPolicy) -> str:
    """Read which receiver to try: the one named, or the caller's default. Raises RejectedError."""
    url = parameters.read(ReceiverTest, body, what="a test").callback_url or caller.callback_url
    if url is None:
        raise parameters.wrong("callback_url", "must be a URL, for there is no default")
    parameters.check_callback_url(url, targets)
    return url


def _samples(url: str, caller: Caller, now: datetime) -> list[Task]:
    """Make one ended task for each event type; they are sent, never stored."""
    [slug, *_] = MODELS
    watched = Task(
        task_id="",
        caller=caller.caller,
        model=slug,
        request="{}",
        fingerprint="",
        callback_url=url,
        reference="sample",
        accepted_at=now,
        state=State.WATCHED,
        upstream_task_id="task-sample",
        callback=CallbackState.WAITING,
    )
    succeeding, failing = (
        watched.model_copy(update={"task_id": f"tk_{name:_<22}"})
        for name in ("sample_success", "sample_failure")
    )
    data: Json = {"result": {"resources": [{"url": "https://example.com/sample.mp4", "type": "video"}]}}
    return [
        succeeding.succeeded(data, now, retention=timedelta(0), claim=now),
        failing.failed(
            ErrorCode.UPSTREAM_FAILED, "a sample of a failure", now, retention=timedelta(0), claim=now
        ),
    ]
