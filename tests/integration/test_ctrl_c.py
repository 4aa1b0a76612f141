"""Ctrl-C ends every program with exit code 130, without a trace, and with what it has started."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from layers.interruption import INTERRUPTED
from tests.bench.own_stack import end
from tests.local import stack
from tests.rows import each_row

WITHIN_S = 60.0  # against a real hang
PROGRAMS = (
    ("tests.local",),
    ("tests.local.vendor",),
    ("tests.bench", "size"),
    ("tests.bench.crowd", "watched", "1"),
    ("tests.bench.sink", "127.0.0.1"),
    ("tests.sim",),
    ("tests.sim.mutations", "--list"),
    ("tests.sim.swarm",),
    ("tests.sim.trouble",),
    ("taskhook", "callers", "list"),
    ("layers.deploy", "deploy"),
)
# Each program imports one of these early; by this name it finds a module that presses the key.
IMPORTED = ("argparse", "difflib", "json")
PRESSES = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"


@each_row("program", PROGRAMS)
def test_it_shows_no_trace_while_it_is_imported(program: tuple[str, ...], tmp_path: Path) -> None:
    """The first seconds of a program are imports, and a person may see the mistake right then."""
    for name in IMPORTED:
        (tmp_path / f"{name}.py").write_text(PRESSES)
    ran = subprocess.run(
        [sys.executable, "-m", *program],
        cwd=stack.ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert b"Traceback" not in ran.stderr
    assert ran.returncode == INTERRUPTED


# Two processes of a pool say that they work, and would work for ever.
POOL = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import os, time
from layers.interruption import PROGRAM, at_once, orderly
if __name__ in PROGRAM:
    at_once()
def work(_):
    os.write(1, b"works\\n")
    time.sleep(3600)
def main():
    with ProcessPoolExecutor(2, mp_context=get_context(HOW)) as pool:
        list(pool.map(work, range(2)))
if __name__ == "__main__":
    END
"""


@pytest.mark.parametrize("how", ["fork", "spawn"])
@pytest.mark.parametrize(
    ("whom", "end"),
    [("program", "main()"), ("group", "main()"), ("group", "orderly(main)")],
    ids=["program", "group", "group, orderly"],
)
def test_it_takes_the_processes_of_its_pool_along(tmp_path: Path, how: str, whom: str, end: str) -> None:
    """Whether a terminal sends the signal to all, or another program to the first one alone."""
    file = tmp_path / "program.py"
    file.write_text(POOL.replace("HOW", repr(how)).replace("END", end))
    environment = os.environ | {"PYTHONPATH": str(stack.ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, file], env=environment, start_new_session=True, **pipes
    ) as process:
        family = [psutil.Process(process.pid)]
        try:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(2)] == [b"works\n"] * 2
            family += family[0].children(recursive=True)
            if whom == "group":
                os.killpg(process.pid, signal.SIGINT)
            else:
                process.send_signal(signal.SIGINT)
            assert process.wait(WITHIN_S) == INTERRUPTED
            assert psutil.wait_procs(family, timeout=WITHIN_S)[1] == []
            assert b"Traceback" not in process.communicate(timeout=WITHIN_S)[1]
        finally:
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


async def test_a_supervisor_that_does_not_end_is_killed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stack does its work: no process and no folder of the account stays."""
    monkeypatch.setattr(stack, "ENDS_WITHIN_S", 0.2)
    monkeypatch.setattr(stack, "MINISTACK_PYTHON", sys.executable)
    monkeypatch.setattr(stack, "EMULATOR", "tests.local.vendor")  # lives until it is told to end
    async with stack.emulated_account() as account:
        leader = psutil.Process(account.group)
        account.supervisor.send_signal(signal.SIGSTOP)
    assert psutil.wait_procs([leader], timeout=WITHIN_S)[1] == []
    assert not account.folder.exists()
    assert "did not end within 0.2 s" in capsys.readouterr().err


async def test_a_command_that_is_given_up_is_not_waited_for_by_its_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A build's downloads hold its pipes for as long as they take; they die with the account."""
    monkeypatch.setattr(stack, "MINISTACK_PYTHON", sys.executable)
    monkeypatch.setattr(stack, "EMULATOR", "tests.local.vendor")
    async with stack.emulated_account() as account:
        command = asyncio.create_task(account.run("/bin/sh", "-c", "sleep 3600 & echo $! >child; wait"))
        file = account.folder / "child"
        while not (file.exists() and file.read_text().endswith("\n")):  # noqa: ASYNC110  # another's file
            await asyncio.sleep(0.01)
        child = psutil.Process(int(file.read_text()))
        command.cancel()
        assert await asyncio.wait([command], timeout=WITHIN_S) == ({command}, set())
    assert psutil.wait_procs([child], timeout=WITHIN_S)[1] == []


async def test_a_bench_may_end_what_the_key_has_ended() -> None:
    """At a terminal the signal reaches both; the bench is not to break by it, and go on with the next."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await process.wait()
    await end(process)
    assert process.returncode == 0


# A stack of which a part does not end when it is told to.
STUCK = """
import asyncio, contextlib, sys
from tests.local import __main__ as local
async def serve(_):
    print("serves", flush=True)
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
local.ENDS_WITHIN_S, local._serve = 0.2, serve
sys.exit(local.main())
"""


def test_a_stack_that_hangs_ends_all_the_same() -> None:
    """And says that it did not end as it should have."""
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], cwd=stack.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"serves\n"
            process.send_signal(signal.SIGINT)
            assert b"did not end within 0.2 s" in process.communicate(timeout=WITHIN_S)[1]
        finally:
            process.kill()
    assert process.returncode == 1
