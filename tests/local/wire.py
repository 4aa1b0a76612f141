"""Counts what leaves AWS: requests to vendors, media hosts and receivers, and answers to callers.

Heads and bodies as they are on the wire, how many there were, and how many connections the functions opened.
"""

import json
from collections import Counter
from pathlib import Path
from weakref import WeakSet

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware


class Wire:
    """The sums so far, by kind and by whom they went to; the file holds them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._sums: Counter[str] = Counter()
        self._known: WeakSet[object] = WeakSet()

    def of_requests(self, to: str) -> Middleware:
        """Count the requests that a server gets; those for media apart."""

        @web.middleware
        async def listening(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not request.path.startswith("/_control"):
                name = "media" if request.path.startswith("/media/") else to
                first = len(f"{request.method} {request.raw_path} HTTP/1.1\r\n")
                heads = sum(len(header) + len(value) + 4 for header, value in request.raw_headers)
                self._add(name, first + heads + 2 + (request.content_length or 0))
                if request.transport is not None and request.transport not in self._known:
                    self._known.add(request.transport)
                    self._sums[f"connections {name}"] += 1
                self._save()
            return await handler(request)

        return listening

    def of_answers(self, to: str) -> Middleware:
        """Count the answers of a server, with the headers that it gives them itself."""

        @web.middleware
        async def listening(request: web.Request, handler: Handler) -> web.StreamResponse:
            answer = await handler(request)
            heads = sum(len(header) + len(value) + 4 for header, value in answer.headers.items())
            body = answer.body if isinstance(answer, web.Response) else None
            first = len(f"HTTP/1.1 {answer.status} {answer.reason}\r\n")
            self._add(to, first + heads + 2 + (len(body) if isinstance(body, bytes) else 0))
            self._save()
            return answer

        return listening

    def _add(self, name: str, size: int) -> None:
        self._sums[f"messages {name}"] += 1
        self._sums[f"bytes {name}"] += size

    def _save(self) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(self._sums))
        fresh.replace(self._file)
