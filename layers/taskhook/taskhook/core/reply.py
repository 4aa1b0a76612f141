"""What comes of one delivery attempt, with a word for each cause and what can be done about it."""

from datetime import timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Self

from pydantic import BaseModel, ConfigDict


class DeliveryError(StrEnum):
    """Why a delivery attempt brought no status, and what can be done about it.

    All of them are tried again by the schedule.
    """

    advice: str

    def __new__(cls, word: str, advice: str = "") -> Self:
        """Make a word with its advice."""
        made = str.__new__(cls, word)
        made._value_, made.advice = word, advice
        return made

    DNS = "dns", "no such name: mend the URL or the DNS record"
    DNS_UNAVAILABLE = (
        "dns_unavailable",
        "the name's DNS servers gave no answer: look at the zone and its servers",
    )
    NO_ADDRESS = (
        "no_address",
        "the name has no address that can be reached from here, often IPv6 only: add an A record",
    )
    FORBIDDEN_TARGET = (
        "forbidden_target",
        "the URL or an address of its name is not public, or is this deployment's: use another",
    )
    REFUSED = "refused", "nothing listens there: start the receiver, or mend the port"
    UNREACHABLE = "unreachable", "no route to the address: look at firewall and DNS record"
    RESET = (
        "reset",
        "the connection was closed before an answer: look into the log of the receiver or its proxy",
    )
    TIMEOUT = (
        "timeout",
        "no answer within 15 s: answer at once and work afterwards; or a firewall drops packets",
    )
    TLS_UNKNOWN_CA = (
        "tls_unknown_ca",
        "self-signed, or an intermediate certificate is missing: serve the whole chain of a public CA",
    )
    TLS_WRONG_NAME = "tls_wrong_name", "the certificate is for another name: get one for the URL's host"
    TLS_EXPIRED = (
        "tls_expired",
        "the certificate has expired or is not valid yet: renew it, or mend the clock",
    )
    TLS_VERSION = "tls_version", "only TLS 1.1 or older is spoken: switch TLS 1.2 or 1.3 on"
    TLS_CLIENT_CERT = (
        "tls_client_cert",
        "a client certificate is wanted, and there is none: rely on the signature instead",
    )
    TLS_NOT_SPOKEN = "tls_not_spoken", "the port speaks no TLS: mend the port, or put a TLS proxy in front"
    TLS = (
        "tls",
        (
            "the handshake failed in another way: no cipher in common, or a client certificate is wanted "
            "under TLS 1.2"
        ),
    )
    HTTP2_ONLY = "http2_only", "only HTTP/2 is spoken: allow HTTP/1.1"
    HEADER_TOO_LARGE = "header_too_large", "the answer has headers over 256 KB, or more than 1,000: send less"
    TOO_MANY_INTERIM = "too_many_interim", "more than 10 interim (1xx) answers: send the final one"
    INVALID_ANSWER = "invalid_answer", "what came is not HTTP: mend the port or the receiver"
    CALLER_UNREADABLE = (
        "caller_unreadable",
        "this deployment cannot read the signing secret: tell its operator",
    )
    CONNECTION = "connection", "it failed in another way: look into the log of the receiver or its proxy"


def is_delivered(status: int | None) -> bool:
    """Whether an answer says that the receiver has the message: any 2xx does."""
    return status is not None and HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


class Reply(BaseModel):
    """What came of one delivery attempt: a status, or the class of error that kept one from coming."""

    model_config = ConfigDict(frozen=True)

    status: int | None = None
    error: str | None = None  # a DeliveryError
    # Where a redirect leads; then the first words of what was said, as one line of printable text.
    answer: str = ""
    retry_after: timedelta | None = None  # what the receiver asks for, from now on
    elapsed: timedelta = timedelta(0)
