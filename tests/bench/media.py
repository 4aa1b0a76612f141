"""What a look at media costs: bytes read, time and CPU, a video of 200 MB and an image, from near and far."""

import asyncio
import resource
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from taskhook.adapters.http.media import AiohttpMediaProbe
from taskhook.core.targets import TargetPolicy
from tests.corpus import MB, image, video, write_stretched
from tests.fileserver import File, handing_out
from tests.listener import listening
from tests.world import RecordingReporter

FAR = 0.05  # seconds that each request takes from a host that is not near
LIMIT = timedelta(seconds=3)


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Look at both at once, the video's index at its end and in front."""
    del seed  # nothing here is drawn by lot
    return {
        where: asyncio.run(_of(flags, rounds=3 if quick else 15))
        for where, flags in (("index_at_end", ""), ("index_in_front", "faststart"))
    }


async def _of(flags: str, *, rounds: int) -> dict[str, float]:
    sample = video("mp4", 320, 240, 30, fps=30, codec="libx264", sound=True, flags=flags)
    figures: dict[str, float] = {}
    with tempfile.NamedTemporaryFile(suffix=".mp4") as large:
        write_stretched(sample, 200 * MB, Path(large.name))
        files: dict[str, File] = {"scene.mp4": Path(large.name), "actor.jpg": image("JPEG", 600, 800)}
        for place, pause in (("near", 0.0), ("far", FAR)):
            async with listening(handing_out(files, pause=pause)) as listener:
                before = _cpu()
                times = [await _look(listener.origin, list(files)) for _ in range(rounds)]
            figures[f"{place}_ms"] = round(statistics.median(times) * 1000)
            figures["parsers_cpu_ms"] = round((_cpu() - before) / rounds * 1000)
            figures["bytes_read"] = listener.sent // rounds
            figures["requests"] = len(listener.requests) // rounds
    return figures


async def _look(origin: str, names: list[str]) -> float:
    probe = AiohttpMediaProbe(TargetPolicy(relaxed=True), RecordingReporter())
    began = time.perf_counter()
    seen = await asyncio.gather(*(probe.look(f"{origin}/{name}", limit=LIMIT) for name in names))
    took = time.perf_counter() - began
    assert all(facts.width and not facts.doubt for facts in seen), seen
    return took


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
