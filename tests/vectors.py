"""Where requests must not go, and where they may: one table, used at the URL check and on real connections.

Each entry is (class, what stands between `https://` and the path) for hosts, (class, whole URL) for URLs.
"""

import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address

_FORBIDDEN_HOSTS = {
    "this network": "0.0.0.0 0.0.0.1 0.1.2.3 0.10.0.1 0.255.255.255",
    "loopback": "127.0.0.1 127.0.0.2 127.0.0.53 127.1.1.1 127.255.255.255 [::1]",
    "private 10/8": "10.0.0.0 10.0.0.1 10.1.2.3 10.128.0.1 10.255.255.255",
    "private 172.16/12": "172.16.0.0 172.16.0.1 172.17.0.1 172.20.10.2 172.31.255.255",
    "private 192.168/16": "192.168.0.0 192.168.0.1 192.168.1.254 192.168.100.1 192.168.255.255",
    "carrier-grade NAT": "100.64.0.0 100.64.0.1 100.65.1.1 100.96.0.1 100.127.255.255",
    "link-local IPv4": "169.254.0.0 169.254.0.1 169.254.1.1 169.254.100.7 169.254.255.255",
    "cloud metadata": (
        "169.254.169.254 169.254.170.2 169.254.169.253 169.254.169.123 100.100.100.200 192.0.0.192"
        " [fd00:ec2::254]"
        " metadata.google.internal"
    ),
    "protocol assignments IPv4": "192.0.0.0 192.0.0.1 192.0.0.8 192.0.0.170 192.0.0.255",
    "anycast relays IPv4": "192.88.99.1 192.88.99.2 192.52.193.1 192.31.196.1 192.175.48.1",
    "documentation": (
        "192.0.2.1 192.0.2.255 198.51.100.1 198.51.100.255 203.0.113.1 203.0.113.255"
        " [2001:db8::1] [2001:db8:ffff:ffff:ffff:ffff:ffff:ffff] [3fff::1] [3fff:fff::1]"
    ),
    "benchmarking": "198.18.0.0 198.18.0.1 198.18.255.255 198.19.0.1 198.19.255.255 [2001:2::1]",
    "multicast IPv4": "224.0.0.1 224.0.0.251 232.1.1.1 233.252.0.1 239.255.255.250",
    "reserved IPv4": "240.0.0.0 240.0.0.1 250.1.2.3 255.255.255.254 255.255.255.255",
    "compatible": "[::] [::2] [::127.0.0.2] [::10.0.0.1] [::169.254.169.254] [::192.168.0.1] [::8.8.8.8]",
    "mapped": (
        "[::ffff:127.0.0.1] [::ffff:10.0.0.1] [::ffff:169.254.169.254] [::ffff:c0a8:1] [::ffff:0.0.0.0]"
        " [::ffff:8.8.8.8]"
        " [0:0:0:0:0:ffff:ac10:1]"
    ),
    "translated": (
        "[::ffff:0:127.0.0.1] [::ffff:0:10.0.0.1] [::ffff:0:169.254.169.254] [::ffff:0:192.168.0.1]"
        " [::ffff:0:8.8.8.8]"
    ),
    "NAT64": (
        "[64:ff9b::127.0.0.1] [64:ff9b::10.0.0.1] [64:ff9b::a9fe:a9fe] [64:ff9b::8.8.8.8] [64:ff9b:1::1]"
        " [64:ff9b:1:ffff::7f00:1]"
    ),
    "6to4": (
        "[2002::1] [2002:7f00:1::1] [2002:a00:1::1] [2002:a9fe:a9fe::1] [2002:c0a8:101::1] [2002:808:808::1]"
    ),
    "Teredo": (
        "[2001::] [2001::1] [2001:0:7f00:1::1] [2001:0:4136:e378:8000:63bf:3fff:fdd2] [2001:0:a9fe:a9fe::1]"
        " [2001:0:ffff:ffff:ffff:ffff:80ff:fffe]"
    ),
    "ISATAP": (
        "[2606:4700::5efe:7f00:1] [2606:4700::5efe:a00:1] [2606:4700::5efe:a9fe:a9fe]"
        " [2606:4700::200:5efe:c0a8:1]"
        " [2606:4700::200:5efe:808:808]"
    ),
    "unique-local": (
        "[fc00::] [fc00::1] [fd00::1] [fd12:3456:789a::1] [fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]"
    ),
    "link-local IPv6": "[fe80::] [fe80::1] [fe80::a9fe:a9fe] [fe90::1] [febf:ffff::1]",
    "site-local": "[fec0::] [fec0::1] [fed0::1] [fee0::1] [feff:ffff::1]",
    "multicast IPv6": "[ff00::] [ff01::1] [ff02::1] [ff02::fb] [ff05::2] [ff0e::1]",
    "protocol assignments IPv6": (
        "[2001:1::1] [2001:3::1] [2001:4:112::1] [2001:10::1] [2001:20::1] [2001:30::1] [2620:4f:8000::1]"
    ),
    "outside global unicast": (
        "[100::1] [100:0:0:1::1] [200::1] [400::1] [1fff::1] [4000::1] [5f00::1] [8000::1] [e000::1]"
    ),
    "local names": (
        "localhost LOCALHOST localhost. a.localhost localhost.localdomain.localhost printer.local db.internal"
        " ip-10-0-0-1.ec2.internal wiki.intranet router.home.arpa hidden.onion host.invalid host.test"
        " backend intranet"
        " localhost.localdomain nas.lan NAS.LAN. erp.corp receiver.example name.alt nas.home mx.mail"
        " db.private"
    ),
    "octal, hexadecimal, decimal": (
        "0177.0.0.1 017700000001 0x7f.0.0.1 0x7f000001 0X7F000001 2130706433 127.1 127.0.1 10.1 0xa.0.0.1"
        " 0300.0250.0.1"
        " 3232235521 0xa9fea9fe 2852039166 169.254.43518 0 0x0 00000000000 127.0.0.01"
    ),
    "dots": "127.0.0.1. 10.0.0.1. 169.254.169.254. 127.0.0.1.. 0x7f.1. 2130706433. .127.0.0.1 127..0.0.1",
    "percent-encoded": (
        "%31%32%37.0.0.1 127%2e0%2e0%2e1 127.0.0.%31 %6c%6f%63%61%6c%68%6f%73%74 localhost%2e"
        " localhost%00.example.com"
        " %5b::1%5d ex%61mple.com 127.0.0.1%23.example.com"
    ),
    "international": (
        "\uff11\uff12\uff17.\uff10.\uff10.\uff11 127\u30020\u30020\u30021"
        " \u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3"
        " \u2460\u2461\u2466.0.0.1 local\u00adhost exampl\u0435.com b\u00fccher.example.com"
        " \u0661\u0662\u0667.0.0.1"
    ),
    "brackets": "[127.0.0.1] [] [::1 ::1] [localhost] [v1.fe80::a] [::1]] [[::1]] [1::2::3] [12345::]"
    " [2606:4700:4700::1111]x [2606:4700:4700::1111]] [2606:4700:4700::1111].example.com host]x"
    " a[2606:4700:4700::1111]"
    " [2606:4700:4700::1111]:443x [2606:4700:4700::1111]:443:443",
    "zone ids": (
        "[fe80::1%25eth0] [fe80::1%eth0] [::1%25lo] [ff02::1%251] [2606:4700:4700::1111%25eth0]"
        " [2606:4700:4700::1111%1]"
    ),
    "malformed names": (
        "example.com.. example.com..."
        " -a.example.com a-.example.com a..example.com .example.com *.example.com a,b.example.com"
        " a!b.example.com a=b.example.com"
        f" {'a' * 64}.example.com {'.'.join(['a' * 60] * 5)}.com"
    ),
}

_FORBIDDEN_URLS = {
    "scheme": (
        "http://example.com/ http://example.com:443/ ftp://example.com/ file:///etc/passwd"
        " gopher://example.com/ ws://example.com/"
        " wss://example.com/ javascript:alert(1) data:text/plain,x //example.com/ /hook example.com/hook"
        " https:example.com"
    ),
    "port": (
        "https://example.com:0/ https://example.com:1/ https://example.com:22/ https://example.com:25/"
        " https://example.com:80/"
        " https://example.com:442/ https://example.com:444/ https://example.com:1023/"
        " https://example.com:65536/"
        " https://example.com:-443/ https://example.com:+443/ https://example.com:https/"
        " https://example.com:4_43/"
        " https://example.com:443:443/ https://example.com:08443/ https://example.com:0443/"
        " https://example.com:00000000443/"
        " https://[2606:4700:4700::1111]:08443/ https://example.com:443./ https://example.com:%34%34%33/"
    ),
    "userinfo": (
        "https://user@example.com/ https://user:pass@example.com/ https://:pass@example.com/"
        " https://@example.com/"
        " https://example.com@127.0.0.1/ https://127.0.0.1@example.com/ https://127.0.0.1:80@example.com:443/"
        " https://a@b@example.com/"
    ),
    "fragment": (
        "https://example.com/# https://example.com/#x https://example.com# https://example.com/?a=1#b"
        " https://example.com#@127.0.0.1/"
    ),
    "no host": (
        "https:// https:/// https:///hook https://:443/ https://?x https://. https://../ https:/example.com/"
    ),
    "odd spellings of public addresses": (
        "https://134744072/ https://0x08080808/ https://8.8.8.8./ https://8.8.2056/ https://010.8.8.8/"
        " https://8.526344/"
    ),
    "more than a host": (
        "https://1.1.1.1.1/ https://256.1.1.1/ https://1.1.1.0x/ https://1.1.1.999/ https://example.0/"
        " https://a.0xff/"
    ),
}

_ALLOWED_URLS = (
    "https://example.com https://example.com/ https://EXAMPLE.com/ HTTPS://example.com/"
    " https://example.com./ https://example.com:/"
    " https://example.com:443/ https://example.com:1024/ https://example.com:8443/hook"
    " https://example.com:65535/"
    " https://hooks.example.com/a/b;c=d?x=1&y=%20%2F&z=@:#".rstrip("#")
    + " https://xn--bcher-kva.example.com/ https://a_b.example.com/ https://127.example.com/"
    " https://localhost.example.com/"
    " https://internal.example.com/ https://local.example.com/ https://lan.example.com/"
    " https://nas-lan.com/ https://examplecorp.com/ https://1.1.1.1/ https://8.8.8.8:8443/"
    " https://9.255.255.255/"
    " https://11.0.0.0/ https://100.63.255.255/ https://100.128.0.0/ https://126.255.255.255/"
    " https://128.0.0.0/"
    " https://169.253.255.255/ https://169.255.0.0/ https://172.15.255.255/ https://172.32.0.0/"
    " https://192.0.1.0/"
    " https://192.0.3.0/ https://192.167.255.255/ https://192.169.0.0/ https://198.17.255.255/"
    " https://198.20.0.0/"
    " https://203.0.112.255/ https://203.0.114.0/ https://223.255.255.255/ https://[2606:4700:4700::1111]/"
    " https://[2001:4860:4860::8888]:8443/ https://[2600:1f18::1]/ https://[2a00:1450:4001::200e]/"
    " https://[2001:200::1]/"
    " https://[2003::1]/ https://[2620:4f:8001::1]/ https://[3ffe::1]/"
)

FORBIDDEN_HOSTS = tuple((kind, host) for kind, hosts in _FORBIDDEN_HOSTS.items() for host in hosts.split(" "))
FORBIDDEN_URLS = tuple((kind, url) for kind, urls in _FORBIDDEN_URLS.items() for url in urls.split(" "))
FORBIDDEN = tuple((kind, f"https://{host}/hook") for kind, host in FORBIDDEN_HOSTS) + FORBIDDEN_URLS
ALLOWED = tuple(_ALLOWED_URLS.split(" "))


@contextlib.contextmanager
def naming(row: object) -> Iterator[None]:
    """Name the row of a table at which a test fails."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"at {row!r}")
        raise


def numeric(host: str) -> str | None:
    """Tell which address the most lenient of parsers reads in a host, or None where it is a name."""
    try:
        return str(ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host.rstrip(".")))
    except (OSError, UnicodeError):
        return None


FORBIDDEN_ADDRESSES = tuple(
    sorted({address for _, host in FORBIDDEN_HOSTS if (address := numeric(host)) and "%" not in address})
)
