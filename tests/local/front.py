"""The front door: one origin for callers, passed on byte by byte to the HTTP API in the emulated account."""

import json

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Middleware
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

# Of one connection only (RFC 9110, 7.6.1), or written anew for the next one.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
BODY_LIMIT = 10 * 2**20  # API Gateway's own
TIMEOUT_S = 30.0  # API Gateway's own


class Front:
    """Answers 503 until it is told where the API is."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        """Know no API yet."""
        self.upstream: str | None = None
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    def app(self, *listening: Middleware) -> web.Application:
        """Build the application that serves this door, and `listening` at it."""
        app = web.Application(middlewares=listening, client_max_size=BODY_LIMIT)
        app.router.add_route("*", r"/{path:[\s\S]*}", self._pass_on)  # a path may hold line breaks
        app.on_startup.append(self._start)
        app.on_cleanup.append(self._end)
        return app

    async def _start(self, _: web.Application) -> None:
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
            timeout=self._timeout,
        )

    async def _end(self, _: web.Application) -> None:
        if self._session is not None:
            await self._session.close()

    async def _pass_on(self, request: web.Request) -> web.Response:
        if self.upstream is None or self._session is None:
            return _refusal(503, "Service Unavailable")
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _refusal(413, "Request Entity Too Large")
        try:
            async with self._session.request(
                request.method,
                # The path as it came: neither decoded nor tidied up.
                URL(self.upstream + request.raw_path, encoded=True),
                headers=_end_to_end(request.headers),
                data=body or None,
                allow_redirects=False,
            ) as answer:
                content = await answer.read()
                return web.Response(
                    status=answer.status,
                    reason=answer.reason,
                    headers=_end_to_end(answer.headers),
                    body=content,
                )
        except (TimeoutError, aiohttp.ClientError):
            return _refusal(503, "Service Unavailable")


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP)


def _refusal(status: int, message: str) -> web.Response:
    """Answer in API Gateway's own form: what it refuses never reaches submit and wears no envelope."""
    return web.Response(
        body=json.dumps({"message": message}).encode(), status=status, content_type="application/json"
    )
