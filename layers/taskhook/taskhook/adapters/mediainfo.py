"""The parser of media files, each in a process of its own: `python -I -S mediainfo.py PACKAGES`.

It reads hostile files in native code. So it is started with nothing to steal. It loads what is slow to load
once, and sees no byte of a file itself: for each connection that it is sent over the socket on its stdin, it
forks a process, which has the connection as its stdin and stdout. That says `pid NUMBER`, is told
`SIZE FORMAT`, shuts itself in before it gets the first byte, and asks for each: `read OFFSET LENGTH`, which
four bytes of length and the bytes answer. Its last line is what it found, in JSON.
"""

import ctypes
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable

MEMORY = 128 << 20  # bytes of address space; an ordinary file needs 45 MB in all
CPU_TIME = 1  # seconds; an ordinary file needs 10 ms
READ = 8192  # bytes asked for at a time


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


def _prctl(option: int, *arguments: object) -> bool:
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


class _Library:
    """The few calls of libmediainfo that a look needs; pymediainfo brings it.

    Not through pymediainfo's own module: what that imports takes longer than all else that a look does.
    """

    _KINDS = ("Video", "Audio", "Text", "Other", "Image", "Menu")  # by their numbers from 1; 0 is the file
    _GENERAL, _VIDEO, _IMAGE = 0, 1, 5
    _FINISHED = 8
    _NOWHERE = (1 << 64) - 1

    def __init__(self, packages: str) -> None:
        folder = f"{packages}/pymediainfo"
        # pathlib is slow to load.
        name = next(name for name in os.listdir(folder) if name.startswith("libmediainfo"))  # noqa: PTH208
        self._calls = ctypes.CDLL(f"{folder}/{name}")
        pointer, text, size, number = ctypes.c_void_p, ctypes.c_wchar_p, ctypes.c_size_t, ctypes.c_uint64
        for name, result, *arguments in (
            ("New", pointer),
            ("Option", text, pointer, text, text),
            ("Open_Buffer_Init", size, pointer, number, number),
            ("Open_Buffer_Continue", size, pointer, ctypes.c_char_p, size),
            ("Open_Buffer_Continue_GoTo_Get", number, pointer),
            ("Open_Buffer_Finalize", size, pointer),
            ("Count_Get", size, pointer, ctypes.c_int, size),
            ("Get", text, pointer, ctypes.c_int, size, text, ctypes.c_int, ctypes.c_int),
        ):
            call = getattr(self._calls, f"MediaInfo_{name}")
            call.restype, call.argtypes = result, arguments
        self._handle = self._calls.MediaInfo_New()
        for option, value in (("CharSet", "UTF-8"), ("Complete", "1"), ("ParseSpeed", "0")):
            self._calls.MediaInfo_Option(self._handle, option, value)

    def parse(self, file: _Pipe, size: int) -> None:
        """Read of a file what it wants to, wherever it is."""
        self._calls.MediaInfo_Open_Buffer_Init(self._handle, size, 0)
        while data := file.read():
            if self._calls.MediaInfo_Open_Buffer_Continue(self._handle, data, len(data)) & self._FINISHED:
                break
            at = self._calls.MediaInfo_Open_Buffer_Continue_GoTo_Get(self._handle)
            if at != self._NOWHERE:
                self._calls.MediaInfo_Open_Buffer_Init(self._handle, size, file.seek(at))
        self._calls.MediaInfo_Open_Buffer_Finalize(self._handle)

    def found(self) -> dict[str, object]:
        """Tell what a verdict needs."""
        tracks = [kind for number, kind in enumerate(self._KINDS, 1) if self._count(number)]
        seen = self._VIDEO if "Video" in tracks else self._IMAGE
        sides = {name.lower(): self._get(seen, name) for name in ("Width", "Height")}
        milliseconds = [self._get(kind, "Duration") for kind in (self._GENERAL, seen)]
        return {
            "known": self._get(self._GENERAL, "Format") != "",
            "tracks": sorted(tracks),
            "cut_off": self._get(self._GENERAL, "IsTruncated") == "Yes",
            "seconds": [float(told) / 1000 for told in milliseconds if told],
            **{name: int(told) for name, told in sides.items() if told},
        }

    def _count(self, kind: int) -> int:
        tracks: int = self._calls.MediaInfo_Count_Get(self._handle, kind, -1)
        return tracks

    def _get(self, kind: int, name: str) -> str:
        """Read a fact of the first track of a kind; empty where there is none."""
        told: str = self._calls.MediaInfo_Get(self._handle, kind, 0, name, 1, 0)
        return told


def _json(value: object) -> str:
    """Write what was found as JSON: to load the module for that takes as long as two files to parse."""
    match value:
        case dict():
            return "{" + ",".join(f'"{name}":{_json(entry)}' for name, entry in value.items()) + "}"
        case list():
            return "[" + ",".join(map(_json, value)) + "]"
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{value}"'  # a word of this module's own
    return repr(value)


def serve(parse: Callable[[], None]) -> None:
    """Fork a process that does `parse` for each connection that is sent; end where no more can be sent."""
    hide_memory()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets the forked ones as they end
    with socket.socket(fileno=0) as requests:
        while True:
            asked, [*connection], *_ = socket.recv_fds(requests, 1, 1)
            if not asked:
                return
            if os.fork() == 0:
                os.dup2(connection[0], 0)  # no way is left to what is sent for others
                os.dup2(connection[0], 1)
                os.close(connection[0])
                try:
                    sys.stdout.write(f"pid {os.getpid()}\n")
                    sys.stdout.flush()
                    parse()
                finally:
                    os._exit(0)
            os.close(connection[0])


def main() -> None:
    """Parse files."""
    [packages] = sys.argv[1:]
    os.chdir("/")
    sys.path.append(packages)
    import imagesize  # type: ignore[import-untyped]  # noqa: PLC0415  # found only now; it has no stubs

    library = _Library(packages)

    def parse() -> None:
        size, format_ = sys.stdin.buffer.readline().decode().split()
        confined = shut_in()
        file = _Pipe(int(size))
        library.parse(file, int(size))
        found = library.found() | {"confined": confined}
        if format_ == "WebP" and found["known"]:  # MediaInfo does not tell its sides
            file.seek(0)
            width, height = imagesize.get(file)
            found |= {"width": width, "height": height} if width > 0 else {}
        sys.stdout.write(_json(found) + "\n")
        sys.stdout.flush()

    serve(parse)


if __name__ == "__main__":
    main()
