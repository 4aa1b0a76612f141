import subprocess
import sys
from pathlib import Path

import pytest

from taskhook.core.record import Submission, SubmitOutcome
from taskhook.core.task import Task
from tests.sim.swarm import RARE, SEED, played

ROOT = Path(__file__).parents[2]
CPU_S = 45.0


@pytest.mark.timeout(3600)  # it goes by processors' time
def test_no_history_of_several_troubles_breaks_anything() -> None:
    """And every rare state is reached; `python -m tests.sim.swarm --hours N` plays at length."""
    command = [sys.executable, "-m", "tests.sim.swarm", "--hours", str(CPU_S / 3600)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2000:]
    assert "0 broken, 0 rare states never reached" in run.stdout
    assert all(name in run.stdout for name in RARE)


def test_the_same_seed_is_the_same_history() -> None:
    """The command that is told with a violation plays it again."""
    first, second = played(SEED), played(SEED)
    assert first[:3] == second[:3]
    assert first[1] == []


def test_a_simulated_vendor_lists_no_task_of_another() -> None:
    """Or a submit whose outcome is unknown would be taken for a task that another vendor has."""
    assert played(5879)[1] == []


def test_the_swarm_notices_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown outcome that is queued again is paid twice, sooner or later."""
    submitted = Task.submitted

    def queued_again(task: Task, outcome: SubmitOutcome, *arguments: object, **more: object) -> Task:
        if outcome.submission is Submission.AMBIGUOUS:
            outcome = outcome.model_copy(update={"submission": Submission.BUSY})
        return submitted(task, outcome, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Task, "submitted", queued_again)
    found = [words for number in range(3) for words in played(SEED + number)[1]]
    assert any(words.startswith("1: ") for words in found)
