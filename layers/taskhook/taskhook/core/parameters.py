"""What callers send, read by a model.

Whatever is wrong with it is said in the vendor's manner, by the field's name.
"""

import math
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ValidationError

from taskhook.core.errors import ForbiddenTargetError, RejectedError
from taskhook.core.message import Json, minified
from taskhook.core.targets import TargetPolicy
from taskhook.core.vendor import NO_HEADERS

_MOST_COMPLAINTS = 10
MOST_OF_A_NAME = 100  # characters: it may be the caller's own
_MOST_DEPTH = 64  # of what is passed on: some parsers end at about 200
_MOST_OF_A_HEADER = 200  # characters
_HEADER = re.compile(rf"[ -~]{{1,{_MOST_OF_A_HEADER}}}")
_PYDANTICS_WORDS = re.compile(r"^.*?\bshould\b")  # "Input should be …", "String should have …"


def read[M: BaseModel](
    model: type[M], values: Mapping[str, Any], *, what: str, headers: Mapping[str, str] = NO_HEADERS
) -> M:
    """Read what `what` takes; `headers` has, by field, the header that it came in. Raises RejectedError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise rejected(error, what=what, known=model.model_fields, headers=headers) from error


def rejected(
    error: ValidationError, *, what: str, known: Iterable[str], headers: Mapping[str, str] = NO_HEADERS
) -> RejectedError:
    """Say what is wrong with each field, and for one that is not known which ones `what` takes."""
    complaints = []
    for detail in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in detail["loc"])[:MOST_OF_A_NAME]
        match detail["type"]:
            case "missing":
                complaint = "is required"
            case "extra_forbidden":
                complaint = f"is not known; {what} takes {', '.join(known)}"
            case "value_error":
                complaint = str(detail["ctx"]["error"])
            case _:
                complaint = _PYDANTICS_WORDS.sub("must", detail["msg"])
        complaints.append(f"{_as_given(name, headers)} {complaint}")
    return RejectedError(
        HTTPStatus.BAD_REQUEST, f"Invalid parameters: {'; '.join(complaints[:_MOST_COMPLAINTS])}"
    )


def wrong(name: str, complaint: object, *, headers: Mapping[str, str] = NO_HEADERS) -> RejectedError:
    """Say what is wrong with one field, under the name of the header that it came in, if it did."""
    what = f"{_as_given(name, headers)} {complaint}"
    return RejectedError(HTTPStatus.BAD_REQUEST, f"Invalid parameters: {what}")


def wrong_header(name: str, complaint: str) -> RejectedError:
    """Say what is wrong with a header."""
    return wrong(name, complaint, headers={name: name})


def _as_given(name: str, headers: Mapping[str, str]) -> str:
    return f"header '{headers[name]}'" if name in headers else f"parameter '{name}'"


def check_callback_url(
    url: str | None, targets: TargetPolicy, *, headers: Mapping[str, str] = NO_HEADERS
) -> None:
    """Raise RejectedError where a caller names a URL that may not be called back."""
    if url is not None:
        try:
            targets.check_url(url)
        except ForbiddenTargetError as error:
            raise wrong("callback_url", error, headers=headers) from error


def number(query: Mapping[str, str], name: str, otherwise: int, most: int) -> int:
    """Read a number of a query, from 1 up. Raises RejectedError."""
    value = query.get(name, str(otherwise))
    if re.fullmatch(r"[0-9]{1,6}", value) is None or not 1 <= int(value) <= most:
        raise wrong(name, f"must be 1 to {most}")
    return int(value)


def header(headers: Mapping[str, str], name: str, *, otherwise: str = "") -> str:
    """Read a header that is passed on to a vendor; names are lower-case. Raises RejectedError."""
    value = headers.get(name.lower(), otherwise)
    if _HEADER.fullmatch(value) is None:
        raise wrong_header(name, f"must be 1 to {_MOST_OF_A_HEADER} printable characters of ASCII")
    return value


def passed_on(body: Json) -> str:
    """Write a request minified as it came, of which only its vendor knows what it may hold.

    Raises RejectedError for what cannot be sent, or not be read by every parser: more than _MOST_DEPTH
    levels, half a surrogate pair, a number beyond a float's range.
    """
    for name, value in body.items():
        complaint = _unsendable(value, _MOST_DEPTH)
        if complaint:
            raise wrong(name[:MOST_OF_A_NAME], complaint)
    return minified(body)


def _unsendable(value: object, depth: int) -> str:
    """Say why a value of some JSON cannot be passed on; empty where it can."""
    match value:
        case dict() | list() if depth <= 1:
            return f"is nested more than {_MOST_DEPTH} levels deep"
        case dict():
            return next(filter(None, (_unsendable(entry, depth - 1) for entry in value.values())), "")
        case list():
            return next(filter(None, (_unsendable(entry, depth - 1) for entry in value)), "")
        case str() if any("\ud800" <= character <= "\udfff" for character in value):
            return "holds half a surrogate pair"
        case float() if not math.isfinite(value):
            return "holds a number that is too large"
    return ""
