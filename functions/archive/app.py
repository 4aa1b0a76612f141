"""The archive function: a task whose results are to be copied in, a report out."""

import gc

gc.disable()  # see submit

from dataclasses import asdict
from datetime import timedelta
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from taskhook import wiring
from taskhook.archive.copy import archive

gc.freeze()
gc.enable()

RESERVE = timedelta(seconds=35)  # for the note of how far it has come, however slow the table is


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Copy the results of `{"archive": [ids], "wake": function}`; the poll function named is woken when all are."""
    remaining = timedelta(milliseconds=context.get_remaining_time_in_millis())
    try:
        report = wiring.run(
            archive(
                event["archive"], hard_stop=wiring.clock().now() + remaining - RESERVE, desk=wiring.archive_desk(event["wake"])
            ),
            limit=None,
        )
    finally:
        wiring.flush_metrics()
    return asdict(report)
