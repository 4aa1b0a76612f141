"""An embedded stack of a bench's own, in a process of its own."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENDS_WITHIN_S = 120.0  # longer than a stack gives itself

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
        await end(process)
    await reading


async def end(process: asyncio.subprocess.Process) -> None:
    """Ask a process to end, and wait for it; Ctrl-C at a terminal may have ended it already."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), ENDS_WITHIN_S)
    except TimeoutError:
        process.kill()
        await process.wait()
