"""Cheap receivers: `python -m tests.bench.sink [--silent|--interim] HOST…` prints its port and answers."""

from layers.interruption import PROGRAM, at_once

if __name__ in PROGRAM:
    at_once()

import argparse
import asyncio

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n"


class Sink(asyncio.Protocol):
    """Reads requests with a Content-Length, and answers each with an empty 200; `silent`, it never does."""

    silent = False

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to answer."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        if self.silent:
            return
        self._read += data
        while True:
            head, separator, rest = self._read.partition(b"\r\n\r\n")
            length = next(
                (
                    int(line[15:])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                ),
                0,
            )
            if not separator or len(rest) < length:
                return
            self._read = rest[length:]
            self._transport.write(_ANSWER)


class Interim(asyncio.Protocol):
    """Answers every request with interim answers, and with nothing else for as long as they are taken."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._taken = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to answer."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, _: bytes) -> None:
        """Begin."""
        self.resume_writing()

    def pause_writing(self) -> None:
        """Wait until some have been taken."""
        self._taken = False

    def resume_writing(self) -> None:
        """Send as many as are taken."""
        self._taken = True
        while self._taken and not self._transport.is_closing():
            self._transport.write(_INTERIM * 1000)


async def main() -> None:
    """Serve for ever."""
    parser = argparse.ArgumentParser()
    parser.add_argument("hosts", nargs="+")
    parser.add_argument("--silent", action="store_true")
    parser.add_argument("--interim", action="store_true")
    options = parser.parse_args()
    Sink.silent = options.silent
    loop = asyncio.get_running_loop()
    kind = Interim if options.interim else Sink
    first, *others = options.hosts
    servers = [await loop.create_server(kind, first, 0, backlog=2048)]
    port = servers[0].sockets[0].getsockname()[1]
    servers += [await loop.create_server(kind, host, port, backlog=2048) for host in others]
    print(port, flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main())
