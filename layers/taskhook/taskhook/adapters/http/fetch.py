"""One GET of a stranger's file, as the looks at media and the archive send it.

Guarded at every hop, and read with doubt.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urldefrag, urljoin

import aiohttp

from taskhook.adapters.http.guard import exact_url
from taskhook.core.targets import MEDIA, TargetPolicy

MOST_HOPS = 3
_REDIRECTS = {
    HTTPStatus.MOVED_PERMANENTLY,
    HTTPStatus.FOUND,
    HTTPStatus.SEE_OTHER,
    HTTPStatus.TEMPORARY_REDIRECT,
    HTTPStatus.PERMANENT_REDIRECT,
}
# Hosts that turn programs away look for a browser's first word; what is asking stands behind it.
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "Mozilla/5.0 (compatible; taskhook/0.2)"}
# Anything else that hosts put there (`aws-chunked`, `utf-8`) names no coding, and browsers take the bytes as
# they are.
_CODINGS = re.compile(r"\b(gzip|deflate|compress|br|zstd|dcb|dcz)\b", re.IGNORECASE)


class TooManyRedirectsError(Exception):
    """The file lies behind more than MOST_HOPS redirects."""


async def fetch(
    session: aiohttp.ClientSession, policy: TargetPolicy, url: str, headers: Mapping[str, str] | None = None
) -> aiohttp.ClientResponse:
    """Ask for a file, and on where redirects lead; the answer's body is not read yet.

    Raises ForbiddenTargetError, TooManyRedirectsError, ValueError, and what aiohttp raises.
    """
    for _ in range(MOST_HOPS + 1):
        url = urldefrag(url).url
        policy.check_url(url, MEDIA)
        response = await session.get(
            exact_url(url), headers={**_HEADERS, **(headers or {})}, allow_redirects=False
        )
        location = response.headers.get("location")
        if response.status not in _REDIRECTS or location is None:
            return response
        response.close()
        url = urljoin(url, location)
    raise TooManyRedirectsError


def content_range(response: aiohttp.ClientResponse) -> tuple[int, int | None] | None:
    """Read where a range begins, and how long the whole file is, where that is told.

    None where no range is told.
    """
    told = re.fullmatch(
        r"bytes (\d{1,18})-\d{1,18}/(?:(\d{1,18})|\*)", response.headers.get("content-range", "")
    )
    return (int(told[1]), int(told[2]) if told[2] else None) if told else None


def is_encoded(response: aiohttp.ClientResponse) -> bool:
    """Tell whether the body is compressed, although no coding was asked for.

    Its bytes and length are not the file's.
    """
    return _CODINGS.search(response.headers.get("content-encoding", "")) is not None
