"""Hands out files by ranges on loopback, over the raw listener that counts every byte."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

from tests.listener import Connection, Script, answer

type File = bytes | Path


def handing_out(files: Mapping[str, File], *, ranges: bool = True, pause: float = 0.0) -> Script:
    """Serve each file under its name, `pause` seconds after it was asked for."""

    async def script(connection: Connection) -> None:
        while request := await connection.request():
            await asyncio.sleep(pause)
            name = request.split(b" ", 2)[1].decode().rpartition("/")[2].partition("?")[0]
            if name not in files:
                await connection.send(answer(404))
                continue
            file = files[name]
            size = len(file) if isinstance(file, bytes) else file.stat().st_size
            wanted = re.search(rb"\r\nrange: bytes=(\d+)-(\d+)\r\n", request, re.IGNORECASE)
            if wanted is None or not ranges:
                await _send_all(connection, file, size)
                continue
            first, last = int(wanted[1]), min(int(wanted[2]), size - 1)
            if first >= size:
                await connection.send(answer(416, content_range=f"bytes */{size}"))
                continue
            await connection.send(
                answer(206, part(file, first, last), content_range=f"bytes {first}-{last}/{size}")
            )

    return script


async def _send_all(connection: Connection, file: File, size: int) -> None:
    await connection.send(answer(200, content_length=str(size)))
    for start in range(0, size, 65536):
        await connection.send(part(file, start, min(start + 65536, size) - 1))


def part(file: File, first: int, last: int) -> bytes:
    """Read a range, both ends inclusive."""
    if isinstance(file, bytes):
        return file[first : last + 1]
    with file.open("rb") as opened:
        opened.seek(first)
        return opened.read(last + 1 - first)
