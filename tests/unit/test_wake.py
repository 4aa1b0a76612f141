"""What the poller is woken with."""

import json
from typing import Any, cast

import pytest

from taskhook.adapters.aws.lambdas import LambdaWake
from taskhook.core.vendor import PollKind, PollOutcome
from taskhook.poller.invocation import ends_of
from tests.world import RecordingReporter


class Functions:
    """Lambda's API, as far as it is used."""

    def __init__(self) -> None:
        self.invoked: list[dict[str, Any]] = []

    def invoke(self, **request: Any) -> None:
        """Keep the request."""
        self.invoked.append(request)


@pytest.mark.parametrize(("size", "handed_on"), [(10, True), (190_000, True), (210_000, False)])
async def test_what_the_vendor_said_is_handed_on_where_it_is_not_too_large(
    size: int,
    handed_on: bool,  # noqa: FBT001
) -> None:  # a parameter
    """An asynchronous invocation takes 256 KB; a poller that is woken without it asks again."""
    functions = Functions()
    told = PollOutcome(
        kind=PollKind.SUCCEEDED, data={"result": {"resources": [{"url": "x" * size, "ü": 4.0}]}}
    )
    await LambdaWake(cast("Any", functions), "poll", RecordingReporter()).wake(
        "tk_1", ended=True, known_outcome=told
    )
    [request] = functions.invoked
    assert (request["FunctionName"], request["InvocationType"]) == ("poll", "Event")
    assert ends_of(json.loads(request["Payload"])) == {"tk_1": told if handed_on else None}


async def test_a_task_to_look_after_is_named() -> None:
    """It has not ended, so nothing was said."""
    functions = Functions()
    await LambdaWake(cast("Any", functions), "poll", RecordingReporter()).wake("tk_1")
    assert json.loads(functions.invoked[0]["Payload"]) == {"accepted": ["tk_1"]}
