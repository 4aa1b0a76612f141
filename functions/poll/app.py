"""The poll function: the tick or a wake in, a report out."""

import gc

gc.disable()  # none of what init makes is garbage: looking for some is a twelfth of init

import os
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from taskhook.poller.invocation import ends_of, poll
from taskhook.poller.work import RESERVE
from taskhook.settings import Settings
from taskhook.wiring import App

app = App(Settings.of(os.environ)).built("runner", "rules", "poller")
gc.freeze()  # nor is it looked at later, which takes 30 ms of a processor: 200 of the function's share
gc.enable()


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Serve a tick of the schedule, or a wake.

    A wake is `{"accepted": [ids]}`, `{"ended": [ids]}`, or `{"ended": {id: what the vendor said}}`.
    """
    remaining = timedelta(milliseconds=context.get_remaining_time_in_millis())
    accepted, ended = event.get("accepted", []), ends_of(event)
    try:
        report = app.run(
            poll(
                accepted=accepted,
                ended=ended,
                scheduled=not (accepted or ended),
                hard_stop=app.clock.now() + remaining - RESERVE,
                rules=app.rules,
                ports=app.poller,
            ),
            limit=None,
        )
    finally:
        app.flush_metrics()
    return asdict(report)
