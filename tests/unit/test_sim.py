import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.progress import Progress
from tests.sim import checks
from tests.sim.__main__ import SEED, play, record, replay
from tests.sim.histories import Histories
from tests.sim.injector import Point

ROOT = Path(__file__).parents[2]


PART_WITHIN_S = 600.0  # there are hundreds, of a second or two each


@pytest.mark.timeout(6 * 3600)  # it goes by its parts
def test_nothing_that_may_go_wrong_breaks_anything(tmp_path: Path) -> None:
    """Every call on a port goes wrong in every way, in three of its scenarios at most.

    `python -m tests.sim` plays it in all of them. What lasts is `test_trouble.py`'s.
    """
    figures_file = str(tmp_path / "figures.json")
    command = [sys.executable, "-m", "tests.sim", "--points", "--scenarios", "3", "--json", figures_file]
    found, parts = tmp_path / "found", tmp_path / "parts"
    with (
        found.open("w") as stdout,
        parts.open("w") as stderr,
        subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=stderr, process_group=0) as explored,
    ):
        progress = Progress(PART_WITHIN_S)
        try:
            while explored.poll() is None:
                assert progress.goes_on(parts.stat().st_size), f"it stands still: {parts.read_text()[-200:]}"
                with contextlib.suppress(subprocess.TimeoutExpired):
                    explored.wait(1)
        finally:
            if explored.poll() is None:
                os.killpg(explored.pid, signal.SIGKILL)  # its workers too
    assert explored.returncode == 0, found.read_text()[-20_000:] + parts.read_text()[-2000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["violations"], figures["never_injected"], figures["missed"]) == (0, [], 0)
    assert figures["points"] > 2_500


def test_what_ends_too_late_is_told_with_the_command_that_plays_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After one fault tasks and callbacks are through within a stated time."""
    points, broken, calm = record("is_never_known", SEED, each=1)
    assert broken == []
    point = next(point for point in points if point.outcome == "thaw before")
    assert replay("is_never_known", SEED, [point], calm).violations == []
    monkeypatch.setattr(checks, "TASK_LATER", -1000.0)
    [violation] = replay("is_never_known", SEED, [point], calm).violations
    assert any("later for it, not" in words for words in violation["broken"])
    where = f"--scenario is_never_known --point '{point.number}:thaw before'"
    assert violation["command"] == f"python -m tests.sim --seed {SEED} {where}"


def test_no_history_of_many_callers_breaks_anything() -> None:
    """Whatever they ask for, and whichever process is killed or frozen meanwhile."""
    rules = settings(
        max_examples=100,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Histories, settings=rules)


def test_an_item_that_cannot_be_read_keeps_no_leader() -> None:
    """The simulator found a poller that wrote the leadership every 2 s while such an item was queued."""
    scene = play("is_deployed", SEED, plan=Point(-1, "", ""))
    acquired = sum("LeadershipStore.acquire" in line for line in scene.injector.trace)
    assert 0 < acquired <= 2 * len(scene.invocations)
