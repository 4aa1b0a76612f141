"""The other functions, invoked without waiting."""

import asyncio
import json
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from taskhook.core.ports import Reporter
from taskhook.core.vendor import PollOutcome

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient


_MOST_TOLD = 200_000  # bytes; an asynchronous invocation takes 256 KB


class LambdaWake:
    """`Wake`: an asynchronous invocation of the poll function."""

    def __init__(self, client: "LambdaClient", function: str, reporter: Reporter) -> None:
        self._client = client
        self._function = function
        self._reporter = reporter

    async def wake(
        self, task_id: str, *, ended: bool = False, known_outcome: PollOutcome | None = None
    ) -> None:
        """Ask for this task to be looked at; a failure is reported and left to the tick."""
        payload = json.dumps({"ended" if ended else "accepted": [task_id]}).encode()
        if known_outcome is not None:
            longer = json.dumps(
                {"ended": {task_id: known_outcome.model_dump(mode="json", exclude_defaults=True)}}
            ).encode()
            payload = longer if len(longer) <= _MOST_TOLD else payload
        try:
            await asyncio.to_thread(
                self._client.invoke, FunctionName=self._function, InvocationType="Event", Payload=payload
            )
        except (BotoCoreError, ClientError) as error:
            self._reporter.report("poll.wake_failed", task_id=task_id, error=type(error).__name__)


class LambdaArchiver:
    """`Archiver`: asynchronous invocations of the archive function, each told which function to wake."""

    def __init__(
        self, client: "LambdaClient", function: str, reporter: Reporter, *, wakes: str | None
    ) -> None:
        self._client = client
        self._function = function
        self._reporter = reporter
        self._wakes = wakes

    async def start(self, task_id: str) -> bool:
        """Have a task's results copied; a failure is reported, and may be tried again."""
        payload = json.dumps({"archive": [task_id], "wake": self._wakes}).encode()
        try:
            await asyncio.to_thread(
                self._client.invoke, FunctionName=self._function, InvocationType="Event", Payload=payload
            )
        except (BotoCoreError, ClientError) as error:
            self._reporter.report("archive.start_failed", task_id=task_id, error=type(error).__name__)
            return False
        return True
