"""A request's body, read as one JSON object and no more leniently than any parser behind it would."""

import base64
import json
from http import HTTPStatus
from typing import Any

from taskhook.core.errors import RejectedError
from taskhook.core.limits import MAX_BODY
from taskhook.core.message import Json
from taskhook.core.parameters import MOST_OF_A_NAME


def read(raw: str, *, is_base64: bool = False) -> Json:
    """Read a body as Lambda gives it.

    At most MAX_BODY bytes, no key twice, no NaN, no half of a surrogate pair as a key.

    Raises RejectedError.
    """
    try:
        content = base64.b64decode(raw) if is_base64 else raw.encode(errors="replace")
    except ValueError as error:
        raise RejectedError(HTTPStatus.BAD_REQUEST, "Invalid format: the body is not base64") from error
    if len(content) > MAX_BODY:
        raise RejectedError(
            HTTPStatus.CONTENT_TOO_LARGE, f"Invalid parameters: the body is larger than {MAX_BODY} bytes"
        )
    try:
        body = json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise RejectedError(
            HTTPStatus.BAD_REQUEST, "Invalid format: the JSON is nested too deeply"
        ) from error
    except ValueError as error:
        raise RejectedError(
            HTTPStatus.BAD_REQUEST, f"Invalid format: invalid JSON format ({error})"
        ) from error
    if not isinstance(body, dict):
        raise RejectedError(HTTPStatus.BAD_REQUEST, "Invalid format: the body must be a JSON object")
    return body


def _object(pairs: list[tuple[str, Any]]) -> Json:
    read: Json = {}
    for name, value in pairs:
        if not _is_text(name):
            raise ValueError("a key is no text")
        if name in read:
            raise ValueError(f"the key '{name[:MOST_OF_A_NAME]}' is given twice")
        read[name] = value
    return read


def _is_text(name: str) -> bool:
    """Tell whether a string can be sent: half a surrogate pair, which JSON can spell, cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
