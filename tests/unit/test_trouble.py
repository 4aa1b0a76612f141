import pytest

from tests.sim.lasting import TROUBLES
from tests.sim.trouble import play


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_that_lasts_costs_time_and_no_task(name: str) -> None:
    """Everything ends within the time that the trouble states, is paid once at most, and is late for no other caller's sake."""
    assert play(name) == []
