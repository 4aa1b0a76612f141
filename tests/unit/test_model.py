"""The formal model of a task's course: SPIN looks at every order of its steps."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[1] / "sim/task.pml"
GUARDS = re.findall(r"^#define (\w+) +true", MODEL.read_text(), re.MULTILINE)
# Without these a task waits for ever; without any other something happens that must not.
NEEDED_TO_END = {"TICKS_COME", "CLAIMS_END"}
SAFETY = (
    ("-O1", "-DSAFETY", "-DNOCLAIM"),
    ("-E",),
)  # assertions; that all processes wait is no error of its own
ENDS = ("-O1", "-DNFAIR=3"), ("-a", "-f")  # the formula, with every process getting its turn

pytestmark = pytest.mark.skipif(
    not (shutil.which("spin") and shutil.which("gcc")),
    reason="SPIN or gcc is not on this machine: `apt-get install spin gcc libc6-dev` brings both",
)


def searched(folder: Path, way: tuple[tuple[str, ...], tuple[str, ...]], **constants: str) -> tuple[int, int]:
    """Search a model with other constants; give the number of errors and of states."""
    model = MODEL.read_text()
    for name, value in constants.items():
        model, found = re.subn(rf"^(#define {name}) +\w+", rf"\1 {value}", model, flags=re.MULTILINE)
        assert found == 1
    (folder / "task.pml").write_text(model)
    compiling, searching = way
    for command in (
        ("spin", "-a", "task.pml"),
        ("gcc", "-w", *compiling, "-o", "pan", "pan.c"),
        ("./pan", "-m200000", *searching),
    ):
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
    assert "max search depth too small" not in run.stdout
    errors, states = re.search(r"errors: (\d+)", run.stdout), re.search(r"(\d+) states, stored", run.stdout)
    assert errors, run.stdout
    assert states, run.stdout
    return int(errors[1]), int(states[1])


def test_nothing_bad_can_happen(tmp_path: Path) -> None:
    """One death, one frozen process, one refusal, one webhook, one hand-over, in every order: 4 M states."""
    errors, states = searched(tmp_path, SAFETY)
    assert errors == 0
    assert states > 1_000_000


@pytest.mark.parametrize("constants", [{"FREEZES": "0"}, {"DEATHS": "0"}], ids=["dies", "freezes"])
def test_every_accepted_task_is_told_or_given_up(tmp_path: Path, constants: dict[str, str]) -> None:
    """Whichever process dies or freezes, as long as ticks come."""
    errors, states = searched(tmp_path, ENDS, **constants)
    assert errors == 0
    assert states > 100_000


@pytest.mark.parametrize("guard", GUARDS)
def test_each_guard_is_needed(tmp_path: Path, guard: str) -> None:
    """Taken away, it is missed: the model is no weaker than what it describes."""
    way, more = (ENDS, {"DEATHS": "2", "FREEZES": "0"}) if guard in NEEDED_TO_END else (SAFETY, {})
    (_, *compiling), searching = way  # soon found: not worth a faster program
    errors, _ = searched(tmp_path, (tuple(compiling), searching), **more, **{guard: "false"})
    assert errors == 1


def test_the_model_is_short() -> None:
    """It can be read in one sitting; every guard in it is tried above."""
    assert len(MODEL.read_text().splitlines()) < 200
    assert len(GUARDS) > 8
    assert set(GUARDS) > NEEDED_TO_END
