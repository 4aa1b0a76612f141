"""Files of any size, never stored: bytes that follow from a seed, served as a file server does."""

import asyncio
import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from aiohttp import web

BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class Bulk:
    """A file of `size` bytes; the same seed makes the same bytes."""

    seed: str
    size: int

    @property
    def tag(self) -> str:
        """Name this version of it."""
        return f'"{hashlib.sha256(f"{self.seed} {self.size}".encode()).hexdigest()[:16]}"'

    def blocks(self, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes from `start` on."""
        for number in range(start // BLOCK, -(-self.size // BLOCK)):
            block = random.Random(f"{self.seed} {number}").randbytes(min(BLOCK, self.size - number * BLOCK))
            yield block[max(start - number * BLOCK, 0) :]

    def digest(self) -> str:
        """Give the SHA-256 of the whole."""
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()

    async def serve(
        self, request: web.Request, *, rate: int | None = None, until: int | None = None
    ) -> web.StreamResponse:
        """Answer with the file or the rest of it, at most `rate` bytes a second; stop short at `until`."""
        wanted = re.fullmatch(r"bytes=([0-9]+)-", request.headers.get("range", ""))
        start = int(wanted[1]) if wanted and request.headers.get("if-range", self.tag) == self.tag else 0
        if start >= self.size:
            return web.Response(
                status=416, headers={"Content-Range": f"bytes */{self.size}", "ETag": self.tag}
            )
        headers = {"Content-Length": str(self.size - start), "Content-Type": "video/mp4", "ETag": self.tag}
        if start:
            headers["Content-Range"] = f"bytes {start}-{self.size - 1}/{self.size}"
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        await response.prepare(request)
        for number, block in enumerate(self.blocks(start)):
            if until is not None and start + number * BLOCK >= until:
                break
            await response.write(block)
            await asyncio.sleep(len(block) / rate if rate else 0)
        return response
