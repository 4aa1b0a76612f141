"""The archive function: a task whose results are to be copied in, a report out."""

import gc

gc.disable()  # none of what init makes is garbage: looking for some is a twelfth of init

import os
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from taskhook.archive.copy import RESERVE, archive
from taskhook.settings import Settings
from taskhook.wiring import App

app = App(Settings.of(os.environ)).built("runner", "tasks", "archive", "originals")
gc.freeze()  # nor is it looked at later, which takes 30 ms of a processor: 200 of the function's share
gc.enable()


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Copy the results of `{"archive": [ids], "wake": function}`.

    The poll function named is woken when all are.
    """
    remaining = timedelta(milliseconds=context.get_remaining_time_in_millis())
    hard_stop = app.clock.now() + remaining - RESERVE
    try:
        report = app.run(
            archive(event["archive"], hard_stop=hard_stop, ports=app.archiving(event["wake"])), limit=None
        )
    finally:
        app.flush_metrics()
    return asdict(report)
