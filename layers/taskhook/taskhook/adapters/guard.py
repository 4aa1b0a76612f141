"""The one guard: every connection to a URL that a caller gave is opened by a socket that has checked where it goes."""

import asyncio
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from taskhook.targets import ForbiddenTargetError, TargetPolicy

_KEPT = 1.0  # seconds for which a connection is kept: through a burst, and shorter than servers keep theirs

type _AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[object, ...]]


class SystemResolver(AbstractResolver):
    """Looks names up on threads of its own: a dead name server holds one for long, and calls to AWS must not wait for it."""

    def __init__(self, lookups: int) -> None:
        self._threads = ThreadPoolExecutor(lookups, thread_name_prefix="lookup")

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """Look a name up. Raises OSError."""
        ask = partial(socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found_family, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Begin no lookup any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class _GuardedResolver(AbstractResolver):
    """Refuses a name if any of its addresses is forbidden: where several may be raced, the first to refuse must end the race."""

    def __init__(self, policy: TargetPolicy, resolver: AbstractResolver) -> None:
        self._policy = policy
        self._resolver = resolver

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """Look a name up. Raises ForbiddenTargetError, and OSError as any resolver."""
        found = await self._resolver.resolve(host, port, family)
        for address in found:
            self._policy.check_address(address["host"])
        return found

    async def close(self) -> None:
        """Close what is open."""
        await self._resolver.close()


def guarded_connector(
    policy: TargetPolicy, *, connections: int, per_host: int, resolver: AbstractResolver | None = None
) -> aiohttp.TCPConnector:
    """Make a connector whose sockets refuse forbidden addresses with ForbiddenTargetError, before a byte is sent.

    aiohttp calls the factory with the very address that is about to be connected, for names, literals and odd spellings
    alike; so nothing can change between the check and the use. A connection that is used again is one that was checked.
    `resolver` is the system's where None.
    """

    def open_socket(address: _AddressInfo) -> socket.socket:
        family, kind, protocol, _, target = address
        policy.check_address(str(target[0]))
        opened = socket.socket(family, kind, protocol)
        opened.setblocking(False)  # noqa: FBT003  # the standard library's own signature
        return opened

    return aiohttp.TCPConnector(
        limit=connections,
        limit_per_host=per_host,
        resolver=_GuardedResolver(policy, resolver or SystemResolver(connections)),
        socket_factory=open_socket,
        use_dns_cache=False,
        keepalive_timeout=_KEPT,
    )


def trouble(error: Exception) -> str:
    """Name the class of error as logs show it; causes are looked into, for aiohttp wraps what its connector met."""
    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case ForbiddenTargetError():
                return "forbidden_target"
            case TimeoutError():
                return "timeout"
            case socket.gaierror() | aiohttp.ClientConnectorDNSError():
                return "dns"
            case ssl.SSLError() | ssl.CertificateError():
                return "tls"
            case ConnectionRefusedError():
                return "refused"
            case ConnectionResetError() | aiohttp.ServerDisconnectedError():
                return "reset"
        cause = cause.__cause__ or cause.__context__
    return "invalid_answer" if isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError) else "connection"
