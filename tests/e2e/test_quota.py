"""An account of 10 invocations at once, as new ones are: too few for all that would run; no task is lost."""

import pytest

from tests.bench import quota
from tests.bench.__main__ import SEED

TASKS = 40  # `make bench ARGS=quota` lets 300 flow


@pytest.mark.timeout(3600)  # it goes by what moves, and ends by itself when nothing does
async def test_where_invocations_are_turned_away_no_task_is_lost_and_no_tick_is_left_out() -> None:
    """Media are looked at, results copied; what finds no room waits, or its caller repeats it."""
    receipt = await quota.run(TASKS, SEED)
    assert receipt["throttled"]["submit"] > 0
    assert receipt["accepted"] == receipt["delivered"] == receipt["archived"] == TASKS
    assert (receipt["lost"], receipt["double_paid"], receipt["broken"]) == (0, 0, 0)
    assert receipt["events_dropped"]["poll"] == 0
