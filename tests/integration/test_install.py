"""`make tools`, ended at every step by installers that leave halves: the next run makes it whole."""

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.local.stack import ROOT

FILES = (
    "Makefile",
    "pyproject.toml",
    ".python-version",
    "requirements-dev.txt",
    "tests/local/sam.txt",
    "tests/local/ministack.txt",
    "tests/local/sdks.txt",
    "tests/local/receivers.txt",
)
ENVIRONMENTS = (".venv", ".tools/sam", ".tools/ministack", ".tools/sdks", ".tools/receivers")

# Each step may be the last one, of the whole group (a terminal's Ctrl-C, a kill of everything) or of make
# alone.
STEP = f"""#!{sys.executable} -IS
import os, pathlib, shutil, signal, sys, time
world = pathlib.Path(os.environ["WORLD"])
def step(write):
    with (world / "steps").open("a") as steps:
        steps.write("x")
    write()
    if (world / "steps").stat().st_size == int(os.environ.get("LAST", "0")):
        if os.environ["HOW"] == "make":
            os.kill(os.getppid(), signal.SIGKILL)
            (world / "orphan").touch()
            while not (world / "go").exists():
                time.sleep(0.01)
        else:
            os.killpg(0, int(os.environ["HOW"]))
            time.sleep(60)
def package(folder, name, content):
    # As installers do it: what is described is believed to be there.
    if not (folder / f"{{name}}.dist-info").exists():
        step(lambda: (folder / f"{{name}}.dist-info").touch())
        step(content)
"""
UV = (
    STEP
    + """
if os.environ.get("FAILS") in sys.argv:
    sys.exit(1)
command = sys.argv[1]
folder = pathlib.Path(sys.argv[-1] if command == "venv" else sys.argv[sys.argv.index("--python") + 1])
if command == "venv":
    step(lambda: (folder / "bin").mkdir(parents=True, exist_ok=True))
elif "sync" in sys.argv:
    package(folder, "packages", lambda: (folder / "packages").touch())
else:
    package(folder, "taskhook", lambda: (folder / "taskhook").touch())
"""
)
PYTHON3 = (
    STEP
    + f"""
if sys.argv[1] == "-c":
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
if sys.argv[2] == "venv":
    (folder := pathlib.Path(sys.argv[3]) / "bin").mkdir(parents=True)
    step(lambda: shutil.copy(__file__, folder / "python"))
else:
    home = pathlib.Path(__file__).parent
    package(home.parent, "uv", lambda: shutil.copy(world / "uv.py", home / "uv"))
"""
)


def clone(folder: Path) -> Path:
    """Make a fresh clone, as far as `make tools` looks at it, beside the installers that it finds."""
    for name in FILES:
        (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "clone" / name)
    (folder / "bin").mkdir()
    for path, text in ((folder / "uv.py", UV), (folder / "bin/python3", PYTHON3)):
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder / "clone"


def make(folder: Path, *, said: int = subprocess.DEVNULL, **more: str) -> subprocess.Popen[bytes]:
    """Start `make tools` in a group of its own."""
    path = os.pathsep.join((str(folder.parent / "bin"), "/usr/bin", "/bin"))
    environment = {"PATH": path, "WORLD": str(folder.parent), "HOME": str(folder.parent)} | more
    return subprocess.Popen(
        ["make", "tools"], cwd=folder, env=environment, start_new_session=True, stderr=said
    )


def assert_whole(folder: Path) -> None:
    """Run `make tools` to its end, find everything, and nothing to do the next time."""
    assert make(folder).wait(60) == 0
    for name in ENVIRONMENTS:
        assert (folder / name / "packages").exists(), name
    assert (folder / ".venv/taskhook").exists()
    before = (folder.parent / "steps").stat().st_size
    assert make(folder).wait(60) == 0
    assert (folder.parent / "steps").stat().st_size == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "SIGKILL"])
def test_whatever_step_is_the_last_the_next_run_begins_anew(tmp_path: Path, how: signal.Signals) -> None:
    """Half of a package looks installed, so that half an environment is deleted, never mended."""
    assert_whole(clone(tmp_path / "whole"))
    steps = (tmp_path / "whole/steps").stat().st_size
    assert steps > 10
    for last in range(1, steps + 1):
        folder = clone(tmp_path / str(last))
        assert make(folder, LAST=str(last), HOW=str(int(how))).wait(60) != 0
        assert_whole(folder)


def test_an_update_that_was_ended_begins_anew(tmp_path: Path) -> None:
    """Also where the environment was whole before its lock changed."""
    folder = clone(tmp_path / "update")
    assert_whole(folder)
    (tmp_path / "update/steps").unlink()
    (folder / "requirements-dev.txt").touch()
    assert make(folder, LAST="1", HOW=str(int(signal.SIGKILL))).wait(60) != 0
    (folder / ".venv/packages").unlink()  # what the update was about to write again
    assert_whole(folder)


def test_an_installer_that_outlives_its_make_is_waited_for(tmp_path: Path) -> None:
    """Two at once would delete what the other one writes."""
    folder = clone(tmp_path / "orphan")
    first = make(folder, LAST="5", HOW="make")
    assert first.wait(60) != 0
    second = make(folder)
    (tmp_path / "orphan/go").touch()
    assert second.wait(60) == 0
    assert_whole(folder)


def test_a_failure_tells_of_the_usual_reason(tmp_path: Path) -> None:
    """The installer trusts its own certificate authorities, and cannot say how it trusts a company's."""
    folder = clone(tmp_path / "company")
    with make(folder, said=subprocess.PIPE, FAILS="sync") as process:
        assert b"UV_SYSTEM_CERTS=1" in process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert_whole(folder)


def test_ctrl_c_while_another_make_is_waited_for_shows_no_trace(tmp_path: Path) -> None:
    """The other one may install for minutes."""
    folder = clone(tmp_path / "waiting")
    (folder / ".tools").mkdir()
    with (folder / ".tools/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with make(folder, said=subprocess.PIPE) as process:
            waiting = psutil.Process(process.pid)
            while not any(file.path == lock.name for one in waiting.children() for file in one.open_files()):
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGINT)
            assert b"Traceback" not in process.communicate(timeout=60)[1]
    assert_whole(folder)
