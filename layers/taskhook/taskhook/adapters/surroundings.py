"""What surrounds a function: its clock, its log and metrics, the addresses of the vendor's webhooks, and the other function."""

import asyncio
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import Metrics, MetricUnit
from botocore.exceptions import BotoCoreError, ClientError

from taskhook.encryption import derived_key
from taskhook.ports import ApiKey, PollOutcome, Reporter

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient


class SystemClock:
    """`Clock`: the machine's."""

    def now(self) -> datetime:
        """Tell the time, in UTC."""
        return datetime.now(UTC)

    async def sleep(self, duration: timedelta) -> None:
        """Wait."""
        await asyncio.sleep(duration.total_seconds())


# Facts that are measured too, not only the lines that they stand in counted.
_MEASURES = {
    "late_s": ("Lateness", MetricUnit.Seconds),
    "deadline_used": ("DeadlineUsed", MetricUnit.Percent),
    "queued": ("QueueLength", MetricUnit.Count),
    "oldest_queued_s": ("OldestQueued", MetricUnit.Seconds),
}
# An alarm in the emulated account looks at one metric, so what shall ring alike is counted under one name.
_SAME = {"TaskSubmittedRefusedHere": "VendorRefused", "VendorPausedKeyRefused": "VendorRefused"}
# Each metric costs while it is written. Where all goes well, TaskAccepted and the samples of Lateness count a task.
_LINES_ONLY = {"TaskSubmittedTaken", "TaskEndedSuccess", "CallbackAttemptedDelivered"}


class LogReporter:
    """`Reporter`: one log line per outcome, and a metric that counts it; some facts are measured."""

    def __init__(self, logger: Logger, metrics: Metrics) -> None:
        self._logger = logger
        self._metrics = metrics

    def tell(self, event: str, **facts: str | float | None) -> None:
        """Write the line `event` with its facts."""
        self._logger.info(event, extra={name: value for name, value in facts.items() if value is not None})
        counter = _metric(event, facts)
        if counter not in _LINES_ONLY:
            self._metrics.add_metric(name=counter, unit=MetricUnit.Count, value=float(facts.get("count") or 1))
        for fact, (name, unit) in _MEASURES.items():
            if (value := facts.get(fact)) is not None:
                self._metrics.add_metric(name=name, unit=unit, value=float(value))


def _metric(event: str, facts: dict[str, str | float | None]) -> str:
    """Name the metric: `task.ended` with state `failed` is TaskEndedFailed."""
    words = [*event.replace(".", "_").split("_")]
    words += str(facts.get("state") or facts.get("outcome") or facts.get("reason") or "").split("_")
    name = "".join(word.capitalize() for word in words)
    return _SAME.get(name, name)


_MOST_TOLD = 200_000  # bytes; an asynchronous invocation takes 256 KB


class LambdaWake:
    """`Wake`: an asynchronous invocation of the poll function."""

    def __init__(self, client: "LambdaClient", function: str, reporter: Reporter) -> None:
        self._client = client
        self._function = function
        self._reporter = reporter

    async def wake(self, task_id: str, *, ended: bool = False, told: PollOutcome | None = None) -> None:
        """Ask for this task to be looked at; a failure is told and left to the tick."""
        payload = json.dumps({"ended" if ended else "accepted": [task_id]}).encode()
        if told is not None:
            longer = json.dumps({"ended": {task_id: told.model_dump(mode="json", exclude_defaults=True)}}).encode()
            payload = longer if len(longer) <= _MOST_TOLD else payload
        try:
            await asyncio.to_thread(self._client.invoke, FunctionName=self._function, InvocationType="Event", Payload=payload)
        except (BotoCoreError, ClientError) as error:
            self._reporter.tell("poll.wake_failed", task_id=task_id, error=type(error).__name__)


class LambdaArchiver:
    """`Archiver`: an asynchronous invocation of the archive function, which is told whom to wake when it is done."""

    def __init__(self, client: "LambdaClient", function: str, reporter: Reporter, *, wakes: str | None) -> None:
        self._client = client
        self._function = function
        self._reporter = reporter
        self._wakes = wakes

    async def start(self, task_id: str) -> bool:
        """Have a task's results copied; a failure is told, and may be tried again."""
        payload = json.dumps({"archive": [task_id], "wake": self._wakes}).encode()
        try:
            await asyncio.to_thread(self._client.invoke, FunctionName=self._function, InvocationType="Event", Payload=payload)
        except (BotoCoreError, ClientError) as error:
            self._reporter.tell("archive.start_failed", task_id=task_id, error=type(error).__name__)
            return False
        return True


_HOOK_TIME = timedelta(seconds=2)  # for reading the key, where it is not known yet: a submit does not wait for a convenience


class HookUrls:
    """`Hooks`: the token is an HMAC of the task's id, under a key that is derived for this use alone."""

    def __init__(self, public_url: str, deployment_key: ApiKey) -> None:
        self._public_url = public_url
        self._deployment_key = deployment_key

    async def url(self, task_id: str) -> str | None:
        """Make the address for a task, None where the key cannot be read."""
        token = await self._token(task_id)
        return None if token is None else f"{self._public_url}/hooks/{task_id}/{token}"

    async def valid(self, task_id: str, token: str) -> bool | None:
        """Tell whether this is that task's token, in constant time; None where the key cannot be read."""
        expected = await self._token(task_id)
        return None if expected is None else hmac.compare_digest(token.encode(), expected.encode())

    async def _token(self, task_id: str) -> str | None:
        try:
            async with asyncio.timeout(_HOOK_TIME.total_seconds()):
                material = await self._deployment_key(fresh=False)
        except Exception:  # noqa: BLE001  # whatever keeps the key from being read, there is the poll
            return None
        return hmac.digest(derived_key(material, "hook tokens"), task_id.encode(), "sha256").hex()[:32]
