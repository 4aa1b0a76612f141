import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.sim.__main__ import SEED, play
from tests.sim.histories import Histories
from tests.sim.seam import Point

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_nothing_that_may_go_wrong_breaks_anything(tmp_path: Path) -> None:
    """Every call on a port, in every scenario, goes wrong in every way: the whole of `python -m tests.sim`."""
    command = [sys.executable, "-m", "tests.sim", "--json", str(tmp_path / "figures.json")]
    explored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert explored.returncode == 0, explored.stdout[-20_000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["violations"], figures["never_injected"], figures["missed"]) == (0, [], 0)
    assert figures["points"] > 10_000


def test_no_history_of_many_callers_breaks_anything() -> None:
    """Whatever they ask for, and whoever is killed or frozen meanwhile."""
    rules = settings(
        max_examples=100, stateful_step_count=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(Histories, settings=rules)


def test_an_item_that_cannot_be_read_keeps_nobody_lingering() -> None:
    """The simulator found a poller that wrote the lease every two seconds, for as long as such an item stood in the queue."""
    scene = play("is_deployed", SEED, plan=Point(-1, "", ""))
    ticks = len(scene.invocations)
    assert sum("Lease.take" in line for line in scene.seam.trace) <= 2 * ticks
