"""A raw TCP server on loopback: it counts what reaches it, and answers what no HTTP server would."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

type Script = Callable[["Connection"], Awaitable[None]]


@dataclass
class Connection:
    """One accepted connection, as a script sees it."""

    listener: "Listener"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self) -> bytes:
        """Read a request's headers; empty when the client closes instead."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            self.listener.received += error.partial
            return b""
        self.listener.received += head
        return head

    async def request(self) -> bytes:
        """Read a whole request; empty when the client closes instead."""
        head = await self.head()
        length = next(
            (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0"
        )
        body = await self.reader.readexactly(int(length.partition(b":")[2]))
        self.listener.received += body
        if head:
            self.listener.requests.append(head + body)
        return head + body

    async def send(self, data: bytes) -> None:
        """Write, and wait until it is on its way."""
        self.writer.write(data)
        await self.writer.drain()
        self.listener.sent += len(data)

    async def hold(self) -> None:
        """Keep the connection open until the client closes it."""
        while data := await self.reader.read(65536):
            self.listener.received += data

    def reset(self) -> None:
        """Break the connection with a RST instead of an orderly end."""
        self.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.writer.transport.abort()


@dataclass
class Listener:
    """What has reached the server so far."""

    port: int = 0
    tls: bool = False
    connections: int = 0
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0
    received: bytearray = field(default_factory=bytearray)
    requests: list[bytes] = field(default_factory=list)

    @property
    def origin(self) -> str:
        """Where the server is."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def listening(
    script: Script, *, tls: ssl.SSLContext | None = None, hosts: tuple[str, ...] = ("127.0.0.1",)
) -> AsyncIterator[Listener]:
    """Serve every connection with `script`; when it ends, the connection is closed."""
    listener = Listener(tls=tls is not None)
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        listener.connections += 1
        listener.accepted.set()
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await script(Connection(listener, reader, writer))
        finally:
            running.discard(task)
            writer.close()

    servers = [await asyncio.start_server(serve, hosts[0], 0, ssl=tls)]
    listener.port = servers[0].sockets[0].getsockname()[1]
    try:
        servers += [await asyncio.start_server(serve, host, listener.port, ssl=tls) for host in hosts[1:]]
        yield listener
    finally:
        for server in servers:
            server.close()
        for task in running:
            task.cancel()
        for server in servers:
            server.abort_clients()
            await server.wait_closed()


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """Render an HTTP/1.1 answer; an underscore in a header's name stands for a hyphen."""
    fields = {"content_length": str(len(body))} | headers
    lines = [
        f"HTTP/1.1 {status} Whatever",
        *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items()),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def answering(*answers: bytes) -> Script:
    """Answer the requests of a connection one after the other, the last answer for ever."""

    async def script(connection: Connection) -> None:
        left = list(answers)
        while await connection.request():
            await connection.send(left.pop(0) if len(left) > 1 else left[0])

    return script


def raw(*pieces: bytes, reset: bool = False, hold: bool = False) -> Script:
    """Read the request, write these bytes, then close, reset, or keep the connection open."""

    async def script(connection: Connection) -> None:
        await connection.request()
        for piece in pieces:
            await connection.send(piece)
        if hold:
            await connection.hold()
        if reset:
            connection.reset()

    return script


async def hang_up(connection: Connection) -> None:
    """Reset the connection before anything is read."""
    connection.reset()


async def silent(connection: Connection) -> None:
    """Take everything and answer nothing."""
    await connection.hold()


async def free_port() -> int:
    """Find a port without a listener."""
    async with listening(silent) as listener:
        return listener.port
