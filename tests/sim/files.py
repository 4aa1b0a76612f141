"""Files at other hosts: the media of requests, and the vendor's results."""

import asyncio
from collections import defaultdict
from datetime import timedelta

from taskhook.core.errors import SourceChangedError, SourceGoneError, SourceUnavailableError
from taskhook.core.models import MediaFacts
from taskhook.core.ports import Piece
from tests.sim.deployment import Deployment
from tests.sim.injector import FaultInjector, impossible, nothing, running
from tests.world import GOOD_IMAGE, GOOD_VIDEO


class SimMedia:
    """`MediaProbe`: good media, but for names that begin with `ugly`; keeps what each invocation saw."""

    def __init__(self, injector: FaultInjector) -> None:
        self._injector = injector
        # by task's name: whether its image might be good
        self.shown: dict[str, list[bool]] = defaultdict(list)
        self.warned: set[str] = set()  # invocations that have seen a bad one

    async def look(self, url: str, *, limit: timedelta) -> MediaFacts:
        """Look at one."""
        name = url.rpartition("/")[2]
        if name.endswith(".mp4"):
            return GOOD_VIDEO

        async def effect() -> MediaFacts:
            await asyncio.sleep(0.3)
            return self._show(name, good=not name.startswith("ugly"))

        async def strike(outcome: str) -> MediaFacts:
            if outcome == "wrong":
                return self._show(name, good=False)
            await asyncio.sleep(limit.total_seconds())
            self.shown[name].append(True)
            return MediaFacts(doubt="slow host")

        facts: MediaFacts = await self._injector.interact("look", effect, strike)
        return facts

    def _show(self, name: str, *, good: bool) -> MediaFacts:
        self.shown[name].append(good)
        if not good:
            self.warned.add(running())
        return GOOD_IMAGE if good else MediaFacts(failure="cannot be fetched: its host answers 404")


class SimOriginals:
    """`Originals`: the vendor's files, a few parts each, that may change while they are copied."""

    def __init__(self, injector: FaultInjector, deployment: Deployment) -> None:
        self._injector, self._deployment = injector, deployment
        self.versions: dict[str, int] = defaultdict(int)
        self.reads = 0

    def content(self, url: str, version: int) -> bytes:
        """Give a version of a file."""
        return f"{version} {url[-10:]}".encode() * 3

    async def read(self, url: str, *, start: int, length: int, tag: str | None) -> Piece:
        """Read a piece."""

        async def effect() -> Piece:
            await asyncio.sleep(self._deployment.pace)
            if not self._deployment.serves:
                raise SourceUnavailableError("status_503")
            self.reads += 1
            if self._deployment.changes and self.reads == 2:
                self.versions[url] += 1
            version = self.versions[url]
            if tag is not None and tag != str(version):
                raise SourceChangedError
            whole = self.content(url, version)
            data = whole[start : start + length]
            return Piece(data=data, size=len(whole), tag=str(version), last=start + len(data) == len(whole))

        async def strike(outcome: str) -> Piece:
            if outcome == "gone":
                raise SourceGoneError("status_404")
            if outcome == "changed":
                self.versions[url] += 1
            if outcome == "slow":
                await asyncio.sleep(40)
            if outcome == "reset":
                raise SourceUnavailableError("reset")
            return await effect()

        answer: Piece = await self._injector.interact("fetch", effect, strike)
        return answer

    async def close(self) -> None:
        """Have nothing to close; its caller may die there all the same."""
        await self._injector.interact("close", nothing, impossible)
