"""`make tools` with real installers, interrupted at random. TASKHOOK_INTERRUPTS=30: thirty times."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.local.stack import ROOT

NEEDED = (
    "Makefile",
    "pyproject.toml",
    "README.md",
    ".python-version",
    "requirements-dev.txt",
    "layers",
    "tests/local",
)
WORKS = (
    (".venv/bin/python", "-c", "import taskhook, pytest, boto3, aiohttp, cfnlint"),
    (".venv/bin/taskhook", "--help"),
    (".tools/sam/bin/sam", "--version"),
    (".tools/ministack/bin/python", "-c", "import ministack.app"),
)
LONGEST_S = 240


def clone(folder: Path) -> Path:
    """Make a fresh clone, as far as `make tools` looks at it."""
    for name in NEEDED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


def make(folder: Path) -> subprocess.Popen[bytes]:
    """Start `make tools` without an uv on the path, so that it has to be fetched too."""
    found = [
        part
        for part in os.environ["PATH"].split(os.pathsep)
        if not Path(part, "uv").exists() and ".venv" not in part
    ]
    environment = os.environ | {"PATH": os.pathsep.join(found)}
    return subprocess.Popen(
        ["make", "tools"], cwd=folder, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )


def assert_whole(folder: Path) -> None:
    """Run `make tools` to its end, and use what it made."""
    assert make(folder).wait(LONGEST_S) == 0
    for command in WORKS:
        subprocess.run(
            [folder / command[0], *command[1:]],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=LONGEST_S,
        )


def test_an_interrupted_installation_is_finished_by_the_next_run(tmp_path: Path) -> None:
    """By Ctrl-C, by a kill of everything, or by a kill of make alone, whose installer goes on."""
    dice = random.Random(int(os.environ.get("TASKHOOK_SEED", "20261125")))
    began = time.monotonic()
    assert_whole(clone(tmp_path / "whole"))
    whole = time.monotonic() - began
    for number in range(int(os.environ.get("TASKHOOK_INTERRUPTS", "2"))):
        folder = clone(tmp_path / str(number))
        process = make(folder)
        moment = dice.uniform(0, whole)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            if number % 3 == 2:
                process.kill()
            else:
                os.killpg(process.pid, (signal.SIGINT, signal.SIGKILL)[number % 3])
        process.wait(LONGEST_S)
        assert_whole(folder)
        shutil.rmtree(folder)
        print(f"{number}: ended after {moment:.1f} s, whole afterwards")  # noqa: T201  # thirty take a while
