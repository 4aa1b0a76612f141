import pytest

from tests.sim.__main__ import SEED, explore, play, wanted_methods
from tests.sim.scenarios import SCENARIOS
from tests.sim.seam import Point


@pytest.mark.timeout(120)
def test_some_of_everything_that_may_go_wrong_breaks_nothing() -> None:
    """A small share of the crash points, the same every time; `python -m tests.sim` tries the rest."""
    result, points = explore(SCENARIOS, SEED, quick=True, every=False, each=1, workers=1)
    assert [(violation["command"], violation["broken"]) for violation in result.violations] == []
    assert len(result.points) == points > 100
    assert wanted_methods() > result.methods > {"TaskStore.swap", "TaskApi.submit", "CallbackSender.send"}


def test_an_item_that_cannot_be_read_keeps_nobody_lingering() -> None:
    """The simulator found a poller that wrote the lease every two seconds, for as long as such an item stood in the queue."""
    scene = play("is_deployed", SEED, plan=Point(-1, "", ""))
    ticks = len(scene.invocations)
    assert sum("Lease.take" in line for line in scene.seam.trace) <= 2 * ticks
