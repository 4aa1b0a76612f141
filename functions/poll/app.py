"""The poll function: the tick or a wake in, a report out."""

import gc

gc.disable()  # see submit

from dataclasses import asdict
from datetime import timedelta
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from taskhook import wiring
from taskhook.poller.invocation import ends_of, poll

gc.freeze()
gc.enable()

RESERVE = timedelta(seconds=30)  # between the loop's hard stop and the function's own end


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Serve a tick of the schedule, or a wake: `{"accepted": [ids]}` or `{"ended": {id: what the vendor said}}`."""
    remaining = timedelta(milliseconds=context.get_remaining_time_in_millis())
    accepted, ended = event.get("accepted", []), ends_of(event)
    try:
        report = wiring.run(
            poll(
                accepted=accepted,
                ended=ended,
                scheduled=not (accepted or ended),
                hard_stop=wiring.clock().now() + remaining - RESERVE,
                rules=wiring.poll_rules(),
                world=wiring.poll_world(),
            ),
            limit=None,
        )
    finally:
        wiring.flush_metrics()
    return asdict(report)
