import pytest

from tests.sim.lasting import TROUBLES
from tests.sim.trouble import play


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_that_lasts_costs_time_and_no_task(name: str) -> None:
    """Everything ends within the stated time, is paid at most once, and is not late for another caller."""
    assert play(name) == []
