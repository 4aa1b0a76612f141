"""The one guard.

Every connection to a URL that a caller gave is opened by a socket that has checked where it goes.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from taskhook.adapters.http.answers import AnswerError, BoundedAnswers
from taskhook.core.errors import ForbiddenTargetError
from taskhook.core.reply import DeliveryError
from taskhook.core.targets import TargetPolicy

_KEPT_S = 1.0  # for which a connection is kept: through a burst, and shorter than servers keep theirs

type _AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[object, ...]]


class SystemResolver(AbstractResolver):
    """Looks names up on threads of its own.

    A dead name server holds one for long, and calls to AWS must not wait for it.
    """

    def __init__(self, lookups: int) -> None:
        self._threads = ThreadPoolExecutor(lookups, thread_name_prefix="lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look a name up. Raises OSError."""
        name = host.removesuffix(".")  # not all systems find a name of theirs with the root's dot
        ask = partial(
            socket.getaddrinfo, name, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
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
    """Refuses a name if any of its addresses is forbidden.

    Where several may be raced, the first to refuse must end the race.
    """

    def __init__(self, policy: TargetPolicy, resolver: AbstractResolver) -> None:
        self._policy = policy
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look a name up. Raises ForbiddenTargetError, and OSError as any resolver."""
        found = await self._resolver.resolve(host, port, family)
        for address in found:
            self._policy.check_address(address["host"])
        return found

    async def close(self) -> None:
        """Close what is open."""
        await self._resolver.close()


class _GuardedConnector(aiohttp.TCPConnector):
    """A connector whose connections read no more of an answer than is bounded."""

    def __init__(self, *, most: int | None, **options: Any) -> None:
        super().__init__(**options)
        protocol: Callable[..., ResponseHandler] = BoundedAnswers
        # Of every connection; aiohttp has no parameter for it.
        self._factory = partial(protocol, self._loop, most=most)


def guarded_session(
    policy: TargetPolicy,
    *,
    connections: int,
    timeout: aiohttp.ClientTimeout,
    resolver: AbstractResolver | None = None,
    tls: ssl.SSLContext | None = None,
    most: int | None = None,
    traces: list[aiohttp.TraceConfig] | None = None,
) -> aiohttp.ClientSession:
    """Make a session whose sockets raise ForbiddenTargetError for such addresses, before a byte is sent.

    It keeps no cookies, asks no proxy and unpacks no answer. Heads of answers are bounded, and bodies to
    `most` bytes where given. `resolver` and `tls` are the system's where None.
    """
    return aiohttp.ClientSession(
        connector=guarded_connector(policy, connections=connections, resolver=resolver, tls=tls, most=most),
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        trace_configs=traces,
    )


def guarded_connector(
    policy: TargetPolicy,
    *,
    connections: int,
    resolver: AbstractResolver | None = None,
    tls: ssl.SSLContext | None = None,
    most: int | None = None,
) -> aiohttp.TCPConnector:
    """Make the connector of such a session.

    aiohttp calls the factory with the very address that is about to be connected, for names, literals and odd
    spellings alike; so nothing can change between the check and the use. A connection that is used again is
    one that was checked.
    """

    def open_socket(address: _AddressInfo) -> socket.socket:
        family, kind, protocol, _, target = address
        policy.check_address(str(target[0]))
        opened = socket.socket(family, kind, protocol)
        opened.setblocking(False)  # noqa: FBT003  # the standard library's own signature
        return opened

    return _GuardedConnector(
        most=most,
        limit=connections,
        limit_per_host=connections,
        resolver=_GuardedResolver(policy, resolver or SystemResolver(connections)),
        socket_factory=open_socket,
        ssl=tls or True,
        use_dns_cache=False,
        keepalive_timeout=_KEPT_S,
    )


def exact_url(url: str) -> URL:
    """Make a URL that is asked for character by character as it was given.

    Some are signed, and `/?` is not `/`.
    """
    parts = urlsplit(url)
    asked = url.partition("//")[2][len(parts.netloc) :]
    # With the query in it, for yarl drops an empty one.
    path = asked if asked.startswith("/") else f"/{asked}"
    return URL.build(scheme=parts.scheme, authority=parts.netloc.lower(), path=path, encoded=True)


# --- what went wrong ------------------------------------------------------------------------------

# Where the system has them.
_NO_ADDRESS = {getattr(socket, name, -1) for name in ("EAI_NODATA", "EAI_ADDRFAMILY")}
_SYSTEM = {
    **dict.fromkeys(
        (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN), DeliveryError.UNREACHABLE
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM), DeliveryError.UNREACHABLE),  # a firewall of ours
    **dict.fromkeys((errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL), DeliveryError.NO_ADDRESS),
}
# OpenSSL's X509_V_ERR_*.
_CERTIFICATE = {
    **dict.fromkeys((9, 10), DeliveryError.TLS_EXPIRED),
    **dict.fromkeys((2, 18, 19, 20, 21, 24, 27), DeliveryError.TLS_UNKNOWN_CA),
    **dict.fromkeys((62, 64), DeliveryError.TLS_WRONG_NAME),
}
# OpenSSL's reasons; an alert about a certificate is about ours, for it comes from the other side.
_HANDSHAKE = {
    "UNSUPPORTED_PROTOCOL": DeliveryError.TLS_VERSION,
    "TLSV1_ALERT_PROTOCOL_VERSION": DeliveryError.TLS_VERSION,
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": DeliveryError.TLS_CLIENT_CERT,
    "SSLV3_ALERT_BAD_CERTIFICATE": DeliveryError.TLS_CLIENT_CERT,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": DeliveryError.TLS_CLIENT_CERT,
    "SSLV3_ALERT_NO_CERTIFICATE": DeliveryError.TLS_CLIENT_CERT,
    "TLSV1_UNRECOGNIZED_NAME": DeliveryError.TLS_WRONG_NAME,
    "TLSV1_ALERT_UNRECOGNIZED_NAME": DeliveryError.TLS_WRONG_NAME,
    "WRONG_VERSION_NUMBER": DeliveryError.TLS_NOT_SPOKEN,
    "RECORD_LAYER_FAILURE": DeliveryError.TLS_NOT_SPOKEN,
    "UNEXPECTED_EOF_WHILE_READING": DeliveryError.RESET,
}


def error_class(error: BaseException) -> DeliveryError:
    """Name the class of an error; causes are looked into, for aiohttp wraps what its connector met."""
    chain = list(causes(error))
    for cause in chain:
        if (word := _word(cause)) is not None:
            return word
    if any(isinstance(cause, ssl.SSLError) for cause in chain):
        return DeliveryError.TLS
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError):
        return DeliveryError.INVALID_ANSWER
    return DeliveryError.CONNECTION


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Give an error and what it was raised from: aiohttp wraps what its connector met."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _word(error: BaseException) -> DeliveryError | None:
    """Name what this very error says; None where its cause says more, or nothing does."""
    match error:
        case AnswerError():
            return error.word
        case ForbiddenTargetError():
            return DeliveryError.FORBIDDEN_TARGET
        case ssl.SSLCertVerificationError():
            return _CERTIFICATE.get(getattr(error, "verify_code", 0))  # aiohttp's own has none
        # An alert for which Python has no reason.
        case ssl.SSLError() if "no application protocol" in str(error):
            return DeliveryError.HTTP2_ONLY
        case ssl.SSLError():
            return _HANDSHAKE.get(getattr(error, "reason", None) or "")
        case TimeoutError():
            return DeliveryError.TIMEOUT
        case aiohttp.ClientConnectorDNSError():
            return _lookup(error)
        case ConnectionError() | aiohttp.ServerDisconnectedError():
            return DeliveryError.REFUSED if isinstance(error, ConnectionRefusedError) else DeliveryError.RESET
        case OSError() if not isinstance(error, aiohttp.ClientError):
            return _SYSTEM.get(error.errno or 0)
    return None


def _lookup(error: BaseException) -> DeliveryError:
    """Name what the resolver says; anything but its own errors is a name that was given up."""
    code = next((cause.errno for cause in causes(error) if isinstance(cause, socket.gaierror)), None)
    if code in _NO_ADDRESS:
        return DeliveryError.NO_ADDRESS
    return DeliveryError.DNS if code in {None, socket.EAI_NONAME} else DeliveryError.DNS_UNAVAILABLE
