"""httpx clients that follow and repeat nothing, over connections that bound what comes before a body."""

import encodings.idna  # noqa: F401  # as the next: else the first request loads it, at a share of a processor
import re
import select
import ssl
from collections.abc import Iterable
from typing import Any

import anyio._backends._asyncio  # noqa: F401
import httpcore
import httpx

MAX_HEAD = 128 * 1024  # bytes that may come before a body; one header may have 100 KB
MAX_INTERIM = 10  # answers 1xx before an answer
_BOUNDED = httpx.Timeout(None)  # asyncio.timeout bounds a request as a whole, which httpx cannot
_KEPT_S = 5.0  # how long an idle connection is kept, as httpx does
_INTERIM = re.compile(rb"(?:\A|\n\r?\n)HTTP/1\.[01] 1\d\d")


class EndlessAnswerError(Exception):
    """The answer was longer than any true one: its body, its headers, or what came before them."""


def trust() -> ssl.SSLContext:
    """Load the authorities that httpx trusts: 12 ms of a processor."""
    return httpx.create_ssl_context(trust_env=False)


def client(tls: ssl.SSLContext, connections: int) -> httpx.AsyncClient:
    """Make a client that follows no redirect, asks no proxy, repeats nothing, wants nothing compressed."""
    transport, headers = _Transport(tls, connections), {"Accept-Encoding": "identity"}
    return httpx.AsyncClient(
        transport=transport, headers=headers, trust_env=False, timeout=_BOUNDED, follow_redirects=False
    )


class _Transport(httpx.AsyncHTTPTransport):
    """httpx's own, over connections that bound what comes before a body."""

    def __init__(self, tls: ssl.SSLContext, connections: int) -> None:
        super().__init__(verify=tls, trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=_KEPT_S,
            retries=0,
            network_backend=_Network(),
        )


class _Network(httpcore.AnyIOBackend):
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect, as httpcore does."""
        return BoundedStream(await super().connect_tcp(host, port, timeout, local_address, socket_options))


class BoundedStream(httpcore.AsyncNetworkStream):
    """A connection that raises EndlessAnswerError where an answer's headers do not come to an end."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._socket = inner.get_extra_info("socket")
        self._ready = select.poll()
        if self._socket is not None and self._socket.fileno() >= 0:
            self._ready.register(self._socket.fileno(), select.POLLIN)
        self._head: int | None = None  # bytes of it so far; None: it is over
        self._interim = 0

    def head_is_over(self) -> None:
        """Leave the rest to the reader of the body."""
        self._head = None

    # Httpcore's.
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Read what has come."""
        data = await self._inner.read(max_bytes, timeout)
        if self._head is not None:
            self._head += len(data)
            self._interim += len(_INTERIM.findall(data))
            if self._head > MAX_HEAD or self._interim > MAX_INTERIM:
                raise EndlessAnswerError
        return data

    # Httpcore's.
    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Send a piece of a request, whose answer begins anew."""
        self._head = self._interim = 0
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection, whatever is under way on it."""
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's
    ) -> httpcore.AsyncNetworkStream:
        """Shake hands."""
        return BoundedStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Tell of the socket.

        Whether it is readable the pool asks of each kept connection twice for each request; anyio's own
        answer looks up all that it knows of the socket, which was a seventh of what a task that ends costs
        the poll function.
        """
        if info != "is_readable" or self._socket is None:
            return self._inner.get_extra_info(info)
        return self._socket.fileno() < 0 or bool(self._ready.poll(0))  # closed, or about to be
