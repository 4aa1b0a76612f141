from collections import Counter
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskhook.core.errors import ForbiddenTargetError, NotPublicError
from taskhook.core.limits import MAX_URL
from taskhook.core.targets import MEDIA, TargetPolicy, is_public
from tests.rows import each_row
from tests.vectors import ALLOWED, FORBIDDEN, FORBIDDEN_ADDRESSES, FORBIDDEN_HOSTS, naming, numeric

PUBLIC = TargetPolicy()
RELAXED = TargetPolicy(relaxed=True)


def allowed(policy: TargetPolicy, url: str) -> bool:
    """Tell what the policy thinks of a URL."""
    try:
        policy.check_url(url)
    except ForbiddenTargetError:
        return False
    return True


def test_table_is_large_enough() -> None:
    """The table has at least 120 distinct targets, however spelled, and at least five of each class."""
    distinct = {numeric(host) or host.lower().rstrip(".") for _, host in FORBIDDEN_HOSTS}
    assert len(distinct) >= 120
    assert len(FORBIDDEN_ADDRESSES) >= 120
    assert min(Counter(kind for kind, _ in FORBIDDEN).values()) >= 5
    assert len(set(FORBIDDEN)) == len(FORBIDDEN)


def test_forbidden_url_is_refused() -> None:
    """No spelling of a forbidden target passes the URL check, and the refusal does not repeat the URL."""
    for row in FORBIDDEN:
        with naming(row), pytest.raises(ForbiddenTargetError) as refused:
            PUBLIC.check_url(row[1])
        assert row[1] not in str(refused.value), row


def test_forbidden_address_is_refused() -> None:
    """What a name resolves to is held against the same ranges as what a URL spells out."""
    for address in FORBIDDEN_ADDRESSES:
        assert not is_public(address), address
        with naming(address), pytest.raises(ForbiddenTargetError):
            PUBLIC.check_address(address)


def test_allowed_url_passes() -> None:
    """Public names and addresses pass, right up to the edges of the forbidden ranges."""
    for url in ALLOWED:
        with naming(url):
            PUBLIC.check_url(url)


@each_row("address", ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2a00:1450:4001::200e"])
def test_public_address_passes(address: str) -> None:
    """A public unicast address may be connected to."""
    assert is_public(address)
    PUBLIC.check_address(address)


@each_row(
    "text",
    [
        "",
        "localhost",
        "example.com",
        "1.1.1",
        "0x1010101",
        "16843009",
        "1.1.1.1/32",
        "1.1.1.1 ",
        "[2606:4700::1]",
        "01.1.1.1",
    ],
)
def test_what_is_not_an_address_is_not_public(text: str) -> None:
    """Only a plain numeric address can be public."""
    assert not is_public(text)


@given(address=st.ip_addresses())
def test_nothing_is_public_that_the_standard_library_calls_special(
    address: IPv4Address | IPv6Address,
) -> None:
    """For any address, Python's copy of IANA's registries is never stricter than ours."""
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_link_local:
        assert not is_public(str(address))


@given(address=st.ip_addresses(v=4))
def test_no_form_that_carries_an_ipv4_address_is_public(address: IPv4Address) -> None:
    """Mapped, compatible, translated, NAT64, 6to4, ISATAP: refused even where they carry a public address."""
    carried = int(address)
    forms = [
        carried,
        0xFFFF << 32 | carried,
        0xFFFF << 48 | carried,
        0x64FF9B << 96 | carried,
        0x2002 << 112 | carried << 80 | 1,
        0x26064700 << 96 | 0x5EFE << 32 | carried,
        0x26064700 << 96 | 0x2005EFE << 32 | carried,
    ]
    assert [str(IPv6Address(form)) for form in forms if is_public(str(IPv6Address(form)))] == []


@pytest.mark.parametrize("policy", [PUBLIC, RELAXED], ids=["public", "relaxed"])
def test_characters_that_parsers_disagree_about_are_refused(policy: TargetPolicy) -> None:
    """White space, control characters, delimiters and non-ASCII are refused anywhere in a URL."""
    urls = (
        "https://example.com/{}",
        "https://exam{}ple.com/",
        "{}https://example.com/",
        "https://example.com/?a={}b",
    )
    codes = (*range(0x21), *b'"<>\\^`{|}', 0x7F, 0x80, 0xE9, 0x2028, 0x202E, 0x1F600)
    odd = [url.replace("{}", chr(code)) for code in codes for url in urls]
    assert [url for url in odd if allowed(policy, url)] == []


@pytest.mark.parametrize(("length", "passes"), [(MAX_URL, True), (MAX_URL + 1, False), (100_000, False)])
def test_length_is_bounded(length: int, passes: bool) -> None:  # noqa: FBT001  # a column of the table
    """A URL of 2,048 characters is the longest."""
    url = "https://example.com/".ljust(length, "a")
    assert allowed(PUBLIC, url) is passes
    assert allowed(RELAXED, url) is passes


OWN = "https://hook.example.com"


@each_row(
    "url",
    [
        OWN,
        "https://hook.example.com/",
        "https://HOOK.example.COM/x",
        "https://hook.example.com./",
        "https://hook.example.com:/",
        "https://hook.example.com:443/?x",
        "https://hook.example.com:8443/",
        "https://HOOK.example.com.:65535/x",
    ],
)
@each_row(
    "own_origin",
    [OWN, "https://Hook.example.com/", "https://hook.example.com:8443", "https://hook.example.com./"],
)
def test_own_host_is_refused_on_every_port(own_origin: str, url: str) -> None:
    """A deployment never calls itself, however its name is written, whatever else answers on its host."""
    policy = TargetPolicy(own_origins=("", own_origin))
    for scheme in ("https", "http"):
        with pytest.raises(ForbiddenTargetError):
            policy.check_url(url.replace("https", scheme, 1), MEDIA)
    assert not allowed(policy, url)


@each_row(
    "url",
    [
        "https://a.hook.example.com/",
        "https://hook.example.com.example.org/",
        "https://ahook.example.com/",
        "https://example.com/?https://hook.example.com/",
    ],
)
def test_neighbours_of_the_own_host_may_be_called(url: str) -> None:
    """Only the host itself is this deployment; and without an origin of its own nothing is."""
    assert allowed(TargetPolicy(own_origins=(OWN,)), url)
    assert allowed(TargetPolicy(own_origins=("",)), OWN)


@each_row(
    ("url", "refused"),
    [
        ("http://127.0.0.1:8080/hook", True),
        ("http://127.0.0.1:8081/hook", False),
        ("https://127.0.0.1:8080/", True),
        ("http://127.0.0.1/", False),
    ],
)
def test_own_port_is_refused_on_a_shared_host(*, url: str, refused: bool) -> None:
    """In the emulated account all is on one host; there the port tells deployment from receivers."""
    assert allowed(TargetPolicy(own_origins=("http://127.0.0.1:8080",), relaxed=True), url) is not refused


@each_row(
    "url",
    [
        "http://127.0.0.1:1/hook",
        "http://localhost/",
        "http://localhost:80/",
        "http://[::1]:8080/",
        "http://receiver:3000/hook",
        "http://10.0.0.1:22/",
        "https://127.0.0.1/",
        "https://example.com:81/",
        "http://example.com/",
    ],
)
def test_relaxed_allows_http_loopback_and_any_port(url: str) -> None:
    """The emulated account may call what runs on the developer's machine; a public deployment may not."""
    assert allowed(RELAXED, url)
    assert not allowed(PUBLIC, url)


@each_row(
    "url",
    [
        "ftp://localhost/",
        "file:///etc/passwd",
        "http://user@localhost/",
        "http://localhost/#x",
        "http://localhost:65536/",
        "http://localhost:x/",
        "http://",
        "http://:80/",
        "http://a..b/",
        "http://[::1/",
        "localhost:80",
    ],
)
def test_relaxed_still_refuses_what_is_no_plain_url(url: str) -> None:
    """Relaxing opens addresses and ports, not the form of a URL."""
    assert not allowed(RELAXED, url)


@each_row("address", FORBIDDEN_ADDRESSES[::20])
def test_relaxed_connects_anywhere(address: str) -> None:
    """The relaxed policy lets every address through, which is why only the emulated account has it."""
    RELAXED.check_address(address)


@pytest.mark.parametrize(
    "url", ["http://example.com/a.jpg", "http://example.com:80/a.jpg", "https://example.com:8443/a.jpg"]
)
def test_media_may_also_come_over_http(url: str) -> None:
    """The vendor fetches both."""
    PUBLIC.check_url(url, MEDIA)


@each_row(
    "url",
    [
        "ftp://example.com/a",
        "http://example.com:25/a",
        "https://u:p@example.com/a",
        "http://example.com/" + "a" * MAX_URL,
        "http:///a",
    ],
)
def test_media_come_from_no_other_place(url: str) -> None:
    """Other schemes and ports, credentials, and what is too long."""
    with pytest.raises(ForbiddenTargetError):
        PUBLIC.check_url(url, MEDIA)


def test_media_on_no_public_address_are_told_from_what_is_only_not_asked() -> None:
    """The vendor cannot reach them either, which is certain."""
    for row in FORBIDDEN:
        if row[0].startswith(("loopback", "private", "link-local", "cloud")):
            with naming(row), pytest.raises(NotPublicError):
                PUBLIC.check_url(row[1], MEDIA)
