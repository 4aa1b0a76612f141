"""Certificates for receivers on loopback, made once with openssl, as no dependency can make them.

All are of one worthless key, and of an authority whose own key was thrown away; those in force last until
2126.
"""

import ssl
from pathlib import Path

AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBbzCCARSgAwIBAgIUJMMX2chSfzmIpElbseKzpdG11BAwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJYXV0aG9yaXR5MCAXDTI2MTEyNTE4NDI1MloYDzIxMjYxMTAx
MTg0MjUyWjAUMRIwEAYDVQQDDAlhdXRob3JpdHkwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASDg3aiSDAlm5XdTFzgopnJu6H+q4uC60gNkZVPkyNfBS3xunbmk4c0
j976xz8bHiPtHT6gNW+WCXOx5XwFPXuTo0IwQDAPBgNVHRMBAf8EBTADAQH/MA4G
A1UdDwEB/wQEAwICBDAdBgNVHQ4EFgQUbGiehZQz45qljh3LMGRBbVhg73EwCgYI
KoZIzj0EAwIDSQAwRgIhAP7H+1xWlNg+9iXrj4XJwVegp6eUNHXYKvVWrFZoXxgo
AiEA54gXxk5SR3DYlEHw8ngZjJWtWXE0Hsx8n2EXa+kvKzw=
-----END CERTIFICATE-----
"""

KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg5rLeW/+gLUR/Ku2n
tu7qmXxPSfWqp9M4A3+dQxfwjCahRANCAATZURXxO1ZdNdxYTGlsadNMs2oCmHqM
gaov1s+YcGlbfuJLqn3Cu1D09n+l7vzi1FsTTSXa+tP+YA+oXfTnt/d0
-----END PRIVATE KEY-----
"""

GOOD = """\
-----BEGIN CERTIFICATE-----
MIIBajCCARGgAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlhdXRob3Jp
dHkwIBcNMjYwMTAxMDAwMDAwWhgPMjEyNjAxMDEwMDAwMDBaMBMxETAPBgNVBAMM
CHJlY2VpdmVyMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE2VEV8TtWXTXcWExp
bGnTTLNqAph6jIGqL9bPmHBpW37iS6p9wrtQ9PZ/pe784tRbE00l2vrT/mAPqF30
57f3dKNTMFEwHwYDVR0jBBgwFoAUbGiehZQz45qljh3LMGRBbVhg73EwDwYDVR0R
BAgwBocEfwAAATAdBgNVHQ4EFgQUg8nnouV6C/cd/pz+UkYGigIfi3swCgYIKoZI
zj0EAwIDRwAwRAIgdY7m902FC4ViDDo+dxS7ZVyWHtcONtjSlq1ACa+oVZkCIHl+
OCjgOy1rdrVEi/Cu4QNLkWVQUzjyNgARQYM3I/Ne
-----END CERTIFICATE-----
"""

WRONG_NAME = """\
-----BEGIN CERTIFICATE-----
MIIBeDCCAR6gAwIBAgIBAjAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlhdXRob3Jp
dHkwIBcNMjYwMTAxMDAwMDAwWhgPMjEyNjAxMDEwMDAwMDBaMBMxETAPBgNVBAMM
CHJlY2VpdmVyMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE2VEV8TtWXTXcWExp
bGnTTLNqAph6jIGqL9bPmHBpW37iS6p9wrtQ9PZ/pe784tRbE00l2vrT/mAPqF30
57f3dKNgMF4wHwYDVR0jBBgwFoAUbGiehZQz45qljh3LMGRBbVhg73EwHAYDVR0R
BBUwE4IRb3RoZXIuZXhhbXBsZS5jb20wHQYDVR0OBBYEFIPJ56Llegv3Hf6c/lJG
BooCH4t7MAoGCCqGSM49BAMCA0gAMEUCIFlSzWDDoBexUb/MyHhj0MmywLqQB4M6
YW8nZNxXVmZNAiEA4YtRtKyUssa5X/uTAxrHKshDTEWbg+42DfINTOahlZk=
-----END CERTIFICATE-----
"""  # other.example.com

EXPIRED = """\
-----BEGIN CERTIFICATE-----
MIIBaDCCAQ+gAwIBAgIBAzAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlhdXRob3Jp
dHkwHhcNMjAwMTAxMDAwMDAwWhcNMjAwMTAyMDAwMDAwWjATMREwDwYDVQQDDAhy
ZWNlaXZlcjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNlRFfE7Vl013FhMaWxp
00yzagKYeoyBqi/Wz5hwaVt+4kuqfcK7UPT2f6Xu/OLUWxNNJdr60/5gD6hd9Oe3
93SjUzBRMB8GA1UdIwQYMBaAFGxonoWUM+OapY4dyzBkQW1YYO9xMA8GA1UdEQQI
MAaHBH8AAAEwHQYDVR0OBBYEFIPJ56Llegv3Hf6c/lJGBooCH4t7MAoGCCqGSM49
BAMCA0cAMEQCIAjVcmqQyQTwG3m2kXIgPd8C0rXpxvJ8pxEOhj+LIOwEAiBs8wu0
4RiVzKVS8eIuVnDgdrZ6znahEa5bIg74qUBF1w==
-----END CERTIFICATE-----
"""  # in 2020

NOT_YET_VALID = """\
-----BEGIN CERTIFICATE-----
MIIBbDCCAROgAwIBAgIBBDAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlhdXRob3Jp
dHkwIhgPMjEyNTAxMDEwMDAwMDBaGA8yMTI2MDEwMTAwMDAwMFowEzERMA8GA1UE
AwwIcmVjZWl2ZXIwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATZURXxO1ZdNdxY
TGlsadNMs2oCmHqMgaov1s+YcGlbfuJLqn3Cu1D09n+l7vzi1FsTTSXa+tP+YA+o
XfTnt/d0o1MwUTAfBgNVHSMEGDAWgBRsaJ6FlDPjmqWOHcswZEFtWGDvcTAPBgNV
HREECDAGhwR/AAABMB0GA1UdDgQWBBSDyeei5XoL9x3+nP5SRgaKAh+LezAKBggq
hkjOPQQDAgNHADBEAiBxqwq4SsxnG29AeyjZHx/ZkZ1RO6iexEvYl5EiqvBH3gIg
c8pp1C4ulhjKs+A9jFShxE+2lwDUY4kJgfVWKcta8ns=
-----END CERTIFICATE-----
"""  # before 2125


def serving(folder: Path, certificate: str = GOOD) -> ssl.SSLContext:
    """Make what a receiver serves with."""
    (folder / "receiver.pem").write_text(KEY + certificate)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "receiver.pem")
    return tls


def trusting() -> ssl.SSLContext:
    """Make what a client needs that trusts the authority alone, and is as strict as any."""
    tls = ssl.create_default_context(cadata=AUTHORITY)
    tls.set_alpn_protocols(["http/1.1"])
    return tls
