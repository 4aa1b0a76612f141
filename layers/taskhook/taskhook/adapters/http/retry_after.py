"""How long the other side asks to be left alone, as `Retry-After` and the fields of rate limits tell it."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

_SECONDS = re.compile(r"[0-9]{1,20}")  # more digits are nonsense
_LATEST = 2**33  # Unix seconds; later ones no calendar of Python's need know


def retry_after(headers: Mapping[str, str], *, most: timedelta) -> timedelta | None:
    """Read `Retry-After`, in seconds or as a date (RFC 9110, 10.2.3): `most` at most.

    None where there is none, or nonsense.
    """
    value = headers.get("retry-after", "").strip()
    try:
        if _SECONDS.fullmatch(value):
            return min(timedelta(seconds=min(int(value), _LATEST)), most)
        moment = parsedate_to_datetime(value)
        return _until(moment if moment.tzinfo else moment.replace(tzinfo=UTC), most)
    except (ValueError, OverflowError):  # no calendar has such a date
        return None


def requested_pause(headers: Mapping[str, str], *, most: timedelta) -> timedelta | None:
    """Read `Retry-After`, else `X-RateLimit-Reset` (Unix seconds) where `X-RateLimit-Remaining` is 0.

    None as above.
    """
    asked = retry_after(headers, most=most)
    if asked is not None:
        return asked
    try:
        if int(headers.get("x-ratelimit-remaining", "1")) > 0:
            return None
        return _until(
            datetime.fromtimestamp(min(int(headers.get("x-ratelimit-reset", "")), _LATEST), UTC), most
        )
    except (ValueError, OverflowError):
        return None


def _until(moment: datetime, most: timedelta) -> timedelta:
    return min(max(moment.astimezone(UTC) - datetime.now(UTC), timedelta(0)), most)
