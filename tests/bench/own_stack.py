"""An embedded stack of a bench's own, in a process of its own."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

type Read = Callable[[asyncio.StreamReader], Coroutine[Any, Any, None]]


@contextlib.asynccontextmanager
async def started(*flags: str, read: Read) -> AsyncIterator[tuple[dict[str, Any], int]]:
    """Start it; give its first line and its process id. `read` gets what it says of callbacks, to the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.local", "--port", "0", *flags),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        limit=2**24,
    )
    stdout = process.stdout
    assert stdout is not None
    try:
        ready = json.loads(await stdout.readline() or "null")
        if ready is None:
            raise RuntimeError("the stack did not start")
        reading = asyncio.create_task(read(stdout))
        yield ready, process.pid
    finally:
        process.terminate()
        await process.wait()
    await reading
