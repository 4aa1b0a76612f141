"""The process that outlives the stack by a moment: however the stack ends, nothing of it stays.

It makes the stack's folder, starts the command it is given as the leader of a process group, and watches a
pipe that only the stack holds. When the pipe closes (an orderly end, or `kill -9` of the stack) or the leader
dies, it kills the whole group, and removes the folder and the control groups of the functions' processes.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.local import share

LOG = "emulator.log"
DIES_WITHIN_S, CLEARED_WITHIN_S = 5.0, 10.0  # at once, but on a machine that is very busy
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Print one line with the folder and the group, then wait for the end."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: sys.exit())
    parent, *command = sys.argv[1:]
    Path(parent).mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="stack-", dir=parent))
    leader: subprocess.Popen[bytes] | None = None
    try:
        with (folder / LOG).open("wb") as log:
            environment = {**os.environ, "TMPDIR": str(folder)}
            leader = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, process_group=0
            )
        os.write(
            sys.stdout.fileno(), json.dumps({"folder": str(folder), "group": leader.pid}).encode() + b"\n"
        )
        while _lives(leader) and not select.select([sys.stdin], [], [], 0.5)[0]:
            pass
        if not _lives(leader):
            lines = (folder / LOG).read_text(errors="replace").splitlines()
            os.write(sys.stderr.fileno(), "\n".join([*lines[-20:], "the emulated account ended\n"]).encode())
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if leader is not None:
            os.killpg(leader.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                leader.wait(DIES_WITHIN_S)
        clear(folder)


def _lives(leader: subprocess.Popen[bytes]) -> bool:
    """Look without reaping: until the leader is reaped, the number of its group cannot become another's."""
    return os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def clear(folder: Path) -> None:
    """Remove the folder and the control groups of a stack whose processes were killed.

    Tries again while a dying process still writes; says what it has to leave.
    """
    deadline = time.monotonic() + CLEARED_WITHIN_S
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
    left = [str(folder)] if folder.exists() else []
    try:
        share.remove_all(share.stack_of(folder))
    except OSError as error:
        left.append(f"control groups ({error})")
    if left:
        os.write(sys.stderr.fileno(), f"this could not be removed: {', '.join(left)}\n".encode())


if __name__ == "__main__":
    main()
