"""Lambda's share of a processor, and its limit of memory, for the processes of the emulated account.

Lambda gives a function memory / 1,769 MB of a virtual processor, by a quota of CPU time in each short period;
its init is free of the throttle, for at most 10 s. Control groups do the same, of version 1 or 2, where they
can be written. A group takes in whatever its first process starts, threads and children alike.

Runs inside MiniStack's own environment: standard library only.
"""

import contextlib
import itertools
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

type Cpu = Literal["lambda", "full"]

ROOT = Path("/sys/fs/cgroup")
WHOLE_MB = 1769  # that much memory comes with one virtual processor
INIT_S = 10.0  # of processor time: so long, init is free of the throttle, on a machine that is busy too
# About Lambda's own. With the kernel's default of 100 ms an event that computes for less than a seventh of
# that, at 256 MB, would pass as if there were no throttle, and what is throttled would wait in steps five
# times as long.
PERIOD_US = 20_000
_REMOVED_WITHIN_S = 10.0  # at once, but for a process that is slow to die


def share(memory_mb: int) -> float:
    """Give the part of a processor that comes with so much memory; over 1 for more than one processor."""
    return memory_mb / WHOLE_MB


def refusal(root: Path = ROOT) -> str | None:
    """Say why functions cannot be held to their share here; None where they can. Tries it out."""
    if not any((root / sign).exists() for sign in ("cgroup.controllers", "cpu/cpu.cfs_quota_us")):
        return "this system has no control groups for processors"
    stack = f"taskhook-trial-{os.getpid()}"
    try:
        group = Group(stack, "1", 128, root)
        group.throttle()
        subprocess.run(group.entering(["true"]), check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"control groups cannot be written: {error}"
    finally:
        with contextlib.suppress(OSError):
            remove_all(stack, root)
    return None


def stack_of(folder: Path) -> str:
    """Name the groups of a stack by its folder, which no other living stack has."""
    return f"taskhook-{folder.name}"


def folders(stack: str, root: Path = ROOT) -> list[Path]:
    """Find the folders that hold the groups of a stack."""
    return [
        folder
        for hierarchy in (root / "cpu", root / "memory", root)
        if (folder := hierarchy / stack).exists()
    ]


def remove_all(stack: str, root: Path = ROOT) -> None:
    """Kill what lives in the groups of a stack, and remove them.

    Raises OSError where one cannot be removed.
    """
    for folder in folders(stack, root):
        for group in filter(Path.is_dir, folder.iterdir()):
            _remove(group)
        _remove(folder)


class Group:
    """A control group of one function's process.

    Memory is limited from its start, the processor once it is throttled.

    Raises OSError where it cannot be made.
    """

    def __init__(self, stack: str, name: str, memory_mb: int, root: Path = ROOT) -> None:
        self._memory_mb = memory_mb
        self._version_2 = (root / "cgroup.controllers").exists()
        hierarchies = (root, root) if self._version_2 else (root / "cpu", root / "memory")
        self.cpu, self.memory = (hierarchy / stack / name for hierarchy in hierarchies)
        self._folders = tuple(dict.fromkeys((self.cpu, self.memory)))
        for folder in self._folders:
            folder.parent.mkdir(exist_ok=True)
            if self._version_2:
                for above in (root, folder.parent):
                    (above / "cgroup.subtree_control").write_text("+cpu +memory")
            folder.mkdir()
        # A group's weight counts within the group above it, which itself weighs as one process unless told.
        # Not more: what functions took in their init, the emulated account with their tables would lack.
        self._weigh(self.cpu.parent, 10)
        limit, swap = (
            ("memory.max", "memory.swap.max")
            if self._version_2
            else ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        )
        (self.memory / limit).write_text(str(memory_mb << 20))
        with contextlib.suppress(OSError):  # where the kernel does not count swap
            (self.memory / swap).write_text("0" if self._version_2 else str(memory_mb << 20))

    def entering(self, command: Iterable[str]) -> list[str]:
        """Give the command that enters this group and then becomes `command`.

        So all that it allocates is counted.
        """
        into = "".join(
            f"echo $$ >{shlex.quote(str(folder / 'cgroup.procs'))} && " for folder in self._folders
        )
        return ["/bin/sh", "-c", f'{into}exec "$0" "$@"', *command]

    def throttle(self) -> None:
        """Hold it to its share from now on, and let it have that on a busy machine too.

        Its weight goes before others'.
        """
        quota = round(PERIOD_US * share(self._memory_mb))
        self._weigh(self.cpu, 100)
        if self._version_2:
            (self.cpu / "cpu.max").write_text(f"{quota} {PERIOD_US}")
        else:
            (self.cpu / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (self.cpu / "cpu.cfs_quota_us").write_text(str(quota))

    def _weigh(self, folder: Path, times: int) -> None:
        """Let a group have so many times what a process beside it has, as far as it is not throttled."""
        weight, one = ("cpu.weight", 100) if self._version_2 else ("cpu.shares", 1024)
        (folder / weight).write_text(str(one * times))

    def killed(self) -> int:
        """Count the processes that were killed because the group was over its memory."""
        events = self.memory / ("memory.events" if self._version_2 else "memory.oom_control")
        counts = dict(line.split() for line in events.read_text().splitlines())
        return int(counts.get("oom_kill", 0))

    def remove(self) -> None:
        """Kill what still lives in it, and remove it; raises OSError where that does not succeed."""
        for folder in self._folders:
            _remove(folder)


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + _REMOVED_WITHIN_S
    while True:
        with contextlib.suppress(OSError):
            for pid in (folder / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


class FunctionProcess(subprocess.Popen[str]):
    """A process of a function, in a group of its own that is removed at its end; throttled after its init.

    Takes what `Popen` takes; the function's memory is in the environment, as Lambda has it there.
    """

    _numbers = itertools.count(1)

    def __init__(
        self,
        command: list[str],
        *,
        env: dict[str, str],
        stack: str,
        tell: Callable[[str], None],
        **options: Any,
    ) -> None:
        self._what = f"a process of {env.get('AWS_LAMBDA_FUNCTION_NAME', command[-1])}"
        self._tell = tell
        self.group = Group(
            stack, f"{os.getpid()}-{next(self._numbers)}", int(env["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"])
        )
        try:
            super().__init__(self.group.entering(command), env=env, **options)
        except BaseException:
            self.group.remove()
            raise
        self._throttled = threading.Event()
        threading.Thread(target=self._throttle_a_long_init, daemon=True).start()
        threading.Thread(target=self._see_off, daemon=True).start()

    def throttle(self) -> None:
        """Init has ended, or has taken too long."""
        self._throttled.set()
        try:
            self.group.throttle()
        except OSError:
            if self.poll() is None:
                raise  # and where it has ended meanwhile, there is nothing to throttle

    def _throttle_a_long_init(self) -> None:
        clock = (~self.pid << 3) | 2  # counts a process's processor time: see clock_getcpuclockid(3)
        with contextlib.suppress(OSError):  # it has ended
            while (left := INIT_S - time.clock_gettime(clock)) > 0:
                if self._throttled.wait(max(left, 0.1)):
                    return
            self.throttle()

    def _see_off(self) -> None:
        with contextlib.suppress(ChildProcessError):  # MiniStack has reaped it; where not, that is left to it
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self._throttled.set()
        if self.group.killed():
            self._tell(f"{self._what} was killed: out of memory")
        self.group.remove()
