"""The load receipt, small: several callers' tasks over HTTP, while vendor and receivers go wrong."""

import pytest

from tests.bench import load
from tests.bench.__main__ import SEED

TASKS, FAULT_EVERY, PATIENCE_S = 150, 8, 20.0  # `make bench ARGS=load` lets 10,000 flow


@pytest.mark.timeout(3600)  # it goes by what moves, and ends by itself when nothing does
async def test_of_many_tasks_none_is_lost_and_none_paid_twice() -> None:
    """Each is accepted or refused; what is not delivered in the end is on its way, or honestly given up."""
    receipt = await load.run(TASKS, SEED, patience_s=PATIENCE_S, fault_every=FAULT_EVERY)
    assert receipt["accepted"] + receipt["refused"] == TASKS
    assert (receipt["lost"], receipt["double_paid"], receipt["broken"], receipt["judged"]) == (0, 0, 0, 0)
    # what is left waits until it is unknown, or for its next attempt
    assert receipt["delivered"] > 0.9 * receipt["accepted"]
