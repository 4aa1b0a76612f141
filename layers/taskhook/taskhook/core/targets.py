"""Which URLs and addresses a request to a caller's URL may go to.

Public unicast, and nothing that only looks like it.

The URL check gives early, clear refusals; the address check is the guarantee, made on the very connection
that is used. Sources: IANA's special-purpose address registries for IPv4 and IPv6 (RFC 6890), RFC 6761 for
names.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from taskhook.core.errors import ForbiddenTargetError, NotPublicError
from taskhook.core.limits import MAX_URL

# `TargetPolicy` judges it.
CallbackUrl = Annotated[str, Field(json_schema_extra={"format": "uri", "maxLength": MAX_URL})]

_FORBIDDEN_V4 = [
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, cloud metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
]
# Outside 2000::/3 nothing is public unicast: mapped, compatible and translated IPv4, NAT64, unique-local,
# link-local, site-local, multicast and SRv6 addresses all lie there. Inside it, these are not.
_UNICAST_V6 = ip_network("2000::/3")
_FORBIDDEN_V6 = [
    ip_network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
]
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # an interface identifier that carries an IPv4 address (RFC 5214)

_DEFAULT_PORTS = {"http": 80, "https": 443}
_FIRST_FREE_PORT = 1024  # those below are for the services of the system
# Stricter than urlsplit: no text around brackets, no zone id, no port with a sign, a leading zero or a digit
# that is none.
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]@:]+)(:([1-9][0-9]{0,4})?)?")
_MAX_NAME = 253  # characters (RFC 1035)
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
# RFC 6761 and 6762, ICANN's private-use and never-delegated names, and what routers and offices call their
# own.
_LOCAL_NAMES = (
    *("localhost", "localdomain", "local", "internal", "intranet", "private", "lan", "home", "corp", "mail"),
    *("home.arpa", "alt", "example", "invalid", "onion", "test"),
)


@dataclass(frozen=True)
class Use:
    """What requests are for decides which schemes they may have, and which ports below 1024."""

    schemes: tuple[str, ...]
    ports: tuple[int, ...]


CALLBACK = Use(schemes=("https",), ports=(443,))
MEDIA = Use(schemes=("http", "https"), ports=(80, 443))


@dataclass(frozen=True)
class TargetPolicy:
    """Where requests may go. `relaxed` (the emulated account alone) allows http, loopback and any port."""

    own_origins: tuple[str, ...] = ()
    relaxed: bool = False

    def check_url(self, url: str, use: Use = CALLBACK) -> None:
        """Raise ForbiddenTargetError unless `url` may be asked.

        It needs a scheme of its use, that scheme's port or one from 1024 on, and a public host.
        """
        if len(url) > MAX_URL:
            raise ForbiddenTargetError(f"is {len(url)} characters long; at most {MAX_URL} are allowed")
        if not url.isascii() or any(character <= " " or character in '\\"<>^`{|}\x7f' for character in url):
            raise ForbiddenTargetError(
                "must be printable ASCII without spaces; percent-encode everything else"
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ForbiddenTargetError("is not a URL") from error
        schemes = MEDIA.schemes if self.relaxed else use.schemes
        if parts.scheme not in schemes:
            raise ForbiddenTargetError(f"must be an {' or '.join(schemes)} URL")
        if "@" in parts.netloc:
            raise ForbiddenTargetError("must not carry a user name or password")
        if "#" in url:
            raise ForbiddenTargetError("must not carry a fragment")
        if not self.relaxed and port is not None and port not in use.ports and port < _FIRST_FREE_PORT:
            raise ForbiddenTargetError(
                f"must use port {', '.join(map(str, use.ports))} or one from {_FIRST_FREE_PORT} to 65535"
            )
        if parts.netloc and not _AUTHORITY.fullmatch(parts.netloc):
            raise ForbiddenTargetError(
                "must name its host, and a port if any, in the plain form: host, IPv4 or [IPv6], :port"
            )
        if any(own and self._is_own(url, own) for own in self.own_origins):
            raise ForbiddenTargetError("must not point at this deployment")
        self._check_host(parts.netloc, parts.hostname or "")

    def check_address(self, address: str) -> None:
        """Raise NotPublicError unless a connection to this numeric address may be opened."""
        if not self.relaxed and not is_public(address):
            raise NotPublicError("address is not public")

    def _is_own(self, url: str, own: str) -> bool:
        """Tell whether a URL leads here.

        A deployment owns its host on every port; the emulated account shares one host.
        """
        asked, ours = _endpoint(url), _endpoint(own)
        return asked == ours if self.relaxed else asked[0] == ours[0]

    def _check_host(self, netloc: str, host: str) -> None:
        name = host.removesuffix(".")  # of the root, once
        if not name:
            raise ForbiddenTargetError("names no host")
        if netloc.startswith("[") or _looks_numeric(name):
            if self.relaxed:
                return
            try:
                address = ip_address(host)
            except ValueError as error:
                raise NotPublicError("host is not a plain dotted IPv4 or bracketed IPv6 address") from error
            self.check_address(str(address))
            return
        if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
            raise ForbiddenTargetError("host is not a valid name; write international names as xn--…")
        if not self.relaxed and (
            "." not in name or any(name == local or name.endswith("." + local) for local in _LOCAL_NAMES)
        ):
            raise NotPublicError("host is not a public name")


def _endpoint(url: str) -> tuple[str, int]:
    """Tell which host and port a URL names; an unspecified port is its scheme's."""
    parts = urlsplit(url)
    return (parts.hostname or "").rstrip("."), parts.port or _DEFAULT_PORTS[parts.scheme]


def _looks_numeric(name: str) -> bool:
    """Tell whether some parser would read the name as an IPv4 address: its last label is a number.

    Source: WHATWG URL.
    """
    last = name.rsplit(".", 1)[-1]
    return last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last) is not None


def is_public(address: str) -> bool:
    """Tell whether a numeric address is public unicast, and no form that carries another address."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _FORBIDDEN_V4)
    return _is_public_v6(ip)


def _is_public_v6(ip: IPv6Address) -> bool:
    return (
        ip in _UNICAST_V6
        and ip.scope_id is None
        and (int(ip) >> 32) & 0xFFFF_FFFF not in _ISATAP
        and not any(ip in network for network in _FORBIDDEN_V6)
    )
