"""The parser of media files, in a process of its own: `python -I -S mediainfo.py PACKAGES SIZE FORMAT`.

It reads hostile files in native code. So it is started with nothing to steal, shuts itself in before it gets
the first byte, and asks its parent for each: `read OFFSET LENGTH` on stdout, answered on stdin by four bytes
of length and the bytes. The last line on stdout is what it found, in JSON.
"""

import ctypes
import json
import os
import resource
import struct
import sys
from collections.abc import Callable
from typing import Any

MEMORY = 128 << 20  # bytes of address space; an ordinary file needs 45 MB in all
CPU_TIME = 1  # seconds; an ordinary file needs 10 ms
READ = 8192  # bytes asked for at a time
_KINDS = {"Video", "Audio", "Image", "Text", "Other", "Menu"}


class _Pipe:
    """A seekable file whose bytes the parent has."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, length: int = READ) -> bytes:
        length = min(length if length >= 0 else READ, READ, self._size - self._at)
        if length <= 0:
            return b""
        sys.stdout.write(f"read {self._at} {length}\n")
        sys.stdout.flush()
        [length] = struct.unpack(">I", sys.stdin.buffer.read(4))
        data = sys.stdin.buffer.read(length)
        self._at += len(data)
        return data


# --- what the parser may not do -------------------------------------------------------------------

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2
# Classic BPF: a word of `struct seccomp_data`, jumps, a verdict.
_LOAD, _IF_EQUAL, _IF_SET, _RETURN = (
    0x20,
    0x15,
    0x45,
    0x06,
)
_NUMBER, _ARCHITECTURE, _THIRD_ARGUMENT = 0, 4, 32  # where they are in it, the low half of the argument
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # EPERM; the process
_PROT_EXEC = 4
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the table below, AUDIT_ARCH_…
# All that parsing needs once everything is loaded: the two pipes, memory, locks, the clock, and an end.
_CALLS = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "exit": (60, 93),
    "sigaltstack": (131, 132),
    "futex": (202, 98),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
}
_MEMORY_CALLS = {"mmap": (9, 222), "mprotect": (10, 226)}  # but not to make memory that can be executed


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter(column: int, architecture: int) -> bytes:
    """Compile the filter of system calls.

    Whatever it does not name is refused, other architectures' calls are the end.
    """
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for numbers in _CALLS.values():
        code += [(_IF_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ALLOW)]
    for numbers in _MEMORY_CALLS.values():
        code += [
            (_IF_EQUAL, 0, 4, numbers[column]),
            (_LOAD, 0, 0, _THIRD_ARGUMENT),
            (_IF_SET, 0, 1, _PROT_EXEC),
            (_RETURN, 0, 0, _REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        ]
    code.append((_RETURN, 0, 0, _REFUSE))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _prctl(option: int, *arguments: Any) -> bool:
    """Ask the kernel for a restriction of this process; False where it refuses, or is not Linux."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        return False
    padded = [*arguments, 0, 0, 0, 0][:4]
    return bool(
        prctl(option, *(ctypes.c_ulong(value) if isinstance(value, int) else value for value in padded)) == 0
    )


def hide_memory() -> None:
    """Keep this process's memory, environment and files from others that run as the same user."""
    _prctl(_PR_SET_DUMPABLE, 0)


def _refuse_calls() -> bool:
    """Have the kernel refuse every system call that parsing does not need; False where it does not."""
    machine = _MACHINES.get(os.uname().machine)
    if machine is None or not _prctl(_PR_SET_NO_NEW_PRIVS, 1):
        return False
    code = _filter(*machine)
    return _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(_Program(len(code) // 8, code)))


def shut_in() -> bool:
    """Give up files, sockets and processes for good, and all but a little memory and time.

    Tell whether calls are filtered.
    """
    limits = {
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_CPU: CPU_TIME,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 0,  # what is open stays open: the two pipes
    }
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))
    return _refuse_calls()


# --- parsing --------------------------------------------------------------------------------------


def _sides_of_webp() -> Callable[[Any], tuple[int, int]]:
    """Load what is slow to load, and needed for WebP alone: MediaInfo does not tell its sides."""
    import imagesize  # type: ignore[import-untyped]  # noqa: PLC0415  # it has no stubs

    sides: Callable[[Any], tuple[int, int]] = imagesize.get
    return sides


def main() -> None:
    """Parse one file."""
    packages, size, format_ = sys.argv[1:]
    sys.path.append(packages)
    from pymediainfo import MediaInfo  # noqa: PLC0415  # found just now

    MediaInfo.can_parse()  # loads the library, which stays
    sides = _sides_of_webp() if format_ == "WebP" else None
    confined = shut_in()
    file = _Pipe(int(size))
    answer = json.loads(MediaInfo.parse(file, parse_speed=0, buffer_size=READ, output="JSON"))
    tracks: list[dict[str, Any]] = (answer["media"] or {}).get("track", [])
    general, *others = tracks or [{}]
    found: dict[str, Any] = {
        "known": "Format" in general,
        "tracks": sorted({track["@type"] for track in others} & _KINDS),
        "cut_off": (general.get("extra") or {}).get("IsTruncated") == "Yes",
        "confined": confined,
    }
    seen = next((track for kind in ("Video", "Image") for track in others if track["@type"] == kind), {})
    found |= {name.lower(): int(seen[name]) for name in ("Width", "Height") if name in seen}
    found["seconds"] = [float(track["Duration"]) for track in (general, seen) if "Duration" in track]
    if sides is not None and found["known"]:
        file.seek(0)
        width, height = sides(file)
        found |= {"width": width, "height": height} if width > 0 else {}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
