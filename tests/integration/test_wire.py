"""The count of what leaves AWS, by which the bill's line for its transfer is reckoned."""

import asyncio
import json
from pathlib import Path

from aiohttp import web
from yarl import URL

from tests.local.server import serving
from tests.local.wire import Wire

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n12345"


async def test_requests_and_answers_are_counted_as_they_are_on_the_wire(tmp_path: Path) -> None:
    """To the byte, with the connections that were opened; calls that steer an emulator are none."""
    requests = [
        b"POST /a?b=%20 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        b"GET /media/a.jpg HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\n\r\n",
        b"GET /_control HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ]
    wire = Wire(tmp_path / "wire.json")
    app = web.Application(middlewares=[wire.of_requests("vendor"), wire.of_answers("caller")])
    app.router.add_route("*", "/{path:.*}", _answered)
    async with serving(app) as origin:
        port = URL(origin).port
        for sent in (requests[:-1], requests[-1:]):  # two connections
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for request in sent:
                writer.write(request)
                await reader.readuntil(b"12345")
            writer.close()
    assert json.loads((tmp_path / "wire.json").read_text()) == {
        "messages vendor": 2,
        "bytes vendor": len(requests[0]) + len(requests[-1]),
        "connections vendor": 2,
        "messages media": 1,
        "bytes media": len(requests[1]),
        "messages caller": 4,
        "bytes caller": 4 * len(ANSWER),
    }


async def _answered(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=b"12345", headers={"Content-Type": "text/plain"})
