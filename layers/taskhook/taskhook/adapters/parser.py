"""The parser of media files: `mediainfo.py` is started once, and forks a process for each file."""

import asyncio
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from taskhook.adapters import mediainfo

PARSE_TIME = 2.0  # seconds, in which the parser also waits for what it asks for
_PROGRAM = mediainfo.__file__
# Lambda's interpreter finds its own library by this variable alone; nothing else is passed on.
_ENVIRONMENT = {"LD_LIBRARY_PATH": f"{sys.base_prefix}/lib"}

type Read = Callable[[int, int], Awaitable[bytes]]  # so many bytes from an offset; none where none can be had


class ParserError(Exception):
    """A parser has died, talked nonsense or taken too long; the text says which."""


class Parsed(BaseModel):
    """What a parser may say; one that was taken over can say no more than this."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    known: bool  # it is of a format that the parser knows
    tracks: tuple[Annotated[str, Field(pattern=r"^[A-Z][a-z]{1,9}$")], ...] = Field(max_length=6)
    width: Annotated[int, Field(ge=0, le=1 << 32)] | None = None
    height: Annotated[int, Field(ge=0, le=1 << 32)] | None = None
    seconds: tuple[Annotated[float, Field(ge=0)], ...] = Field(max_length=2)
    cut_off: bool
    confined: bool  # the kernel took the filter of system calls


class MediaParser:
    """Has files parsed. What is slow to load is loaded once: in Lambda's init, which is not billed."""

    def __init__(self) -> None:
        self._requests: socket.socket | None = None

    def start(self) -> None:
        """Start the process that forks a parser for each file."""
        ours, its = socket.socketpair()
        with its:
            started = subprocess.Popen(  # noqa: S603  # a program of this package
                [sys.executable, "-I", "-S", _PROGRAM, _packages()],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
            )
        self._requests = ours
        weakref.finalize(self, _end, started, ours)

    async def parse(self, read: Read, size: int, format_: str) -> Parsed:
        """Let a parser read what it wants of a file. Raises ParserError."""
        ours, its = socket.socketpair()
        try:
            with its:
                self._send(its)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        pid = 0
        try:
            async with asyncio.timeout(PARSE_TIME):
                pid = int((await reader.readline()).removeprefix(b"pid "))
                writer.write(f"{size} {format_}\n".encode())
                return await _serve(reader, writer, read)
        except TimeoutError as error:
            raise ParserError("took too long to read") from error
        except (ValueError, OSError) as error:
            raise ParserError("cannot be parsed") from error
        finally:
            writer.close()
            if pid and not reader.at_eof():  # it has not ended, so the number is still its own
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _send(self, connection: socket.socket) -> None:
        """Send a connection to the process that forks; where that has died, to a new one."""
        if self._requests is not None:
            with suppress(OSError):
                socket.send_fds(self._requests, [b"\0"], [connection.fileno()])
                return
        self.start()
        assert self._requests is not None  # noqa: S101  # just started
        socket.send_fds(self._requests, [b"\0"], [connection.fileno()])


def _end(started: subprocess.Popen[bytes], requests: socket.socket) -> None:
    """End the process that forks, which does so as nothing more can be sent to it."""
    requests.close()
    started.kill()
    started.wait()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, read: Read) -> Parsed:
    """Answer a parser's questions until it says what it found.

    Raises ValueError, which pydantic's errors are, and OSError.
    """
    while True:
        line = await reader.readline()
        question = re.fullmatch(rb"read (\d{1,18}) (\d{1,5})\n", line)
        if question is None:
            return Parsed.model_validate_json(line)
        data = await read(int(question[1]), int(question[2]))
        writer.write(struct.pack(">I", len(data)) + data)
        await writer.drain()


def _packages() -> str:
    """Tell where the parser's packages are."""
    found = find_spec("pymediainfo")
    assert found is not None  # noqa: S101  # the layer brings it
    assert found.origin is not None  # noqa: S101  # it is a file
    return str(Path(found.origin).parents[1])
