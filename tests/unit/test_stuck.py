"""What hangs, in whatever way: the test fails alone, the run goes on, and pytest has the last word."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = """
import asyncio, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor

import pytest

async def test_waits_for_what_never_comes():
    await asyncio.Event().wait()

async def test_waits_while_another_task_is_busy():
    async def spin():
        while True:
            for _ in range(10_000):
                pass
            await asyncio.sleep(0)
    busy = asyncio.create_task(spin())
    await asyncio.Event().wait()

async def test_suppresses_every_error():
    while True:
        try:
            await asyncio.sleep(60)
        except Exception:
            pass

def test_waits_for_a_process():
    subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"], capture_output=True)

def test_waits_for_a_thread_and_again_as_it_leaves():
    with ThreadPoolExecutor() as threads:
        threads.submit(time.sleep, 3).result()

def test_waits_for_a_lock():
    lock = threading.Lock()
    with lock:
        lock.acquire()

@pytest.fixture
async def never_there():
    await asyncio.Event().wait()
    yield

@pytest.fixture
async def never_gone():
    yield
    await asyncio.Event().wait()

def test_needs_what_never_comes(never_there):
    pass

def test_leaves_what_never_goes(never_gone):
    pass

@pytest.fixture(scope="session")
def broken():
    raise RuntimeError("the stack's last words")

def test_needs_what_is_broken(broken):
    pass

def test_needs_it_too(broken):
    pass

async def test_is_fine():
    await asyncio.sleep(0)
"""


def test_what_hangs_fails_alone(tmp_path: Path) -> None:
    """Every other test is run, each failure names its reason, and the last line is pytest's."""
    (tmp_path / "test_hangs.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\ntimeout = 1\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        "-ra",
        "--tb=short",
        str(tmp_path),
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert re.search(r"=+ 6 failed, 2 passed, 4 errors in ", ran.stdout.splitlines()[-1]), (
        ran.stdout + ran.stderr
    )
    assert ran.stdout.count("stuck: not through after 1 s") >= 8
    assert "in test_waits_for_a_lock" in ran.stdout  # where the thread stood
    assert "test_waits_for_what_never_comes" in ran.stdout  # where the task stood
    assert "the stack's last words" in ran.stdout
