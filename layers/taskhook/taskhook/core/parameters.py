"""What callers send, read by a model.

Whatever is wrong with it is said in the vendor's manner, by the field's name.
"""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ValidationError

from taskhook.core.errors import RejectedError

_MOST_COMPLAINTS = 10
_MOST_OF_A_NAME = 100  # characters: it may be the caller's own
_PYDANTICS_WORDS = re.compile(r"^.*?\bshould\b")  # "Input should be …", "String should have …"


def read[M: BaseModel](model: type[M], values: Mapping[str, Any], *, what: str) -> M:
    """Read what `what` takes. Raises RejectedError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise rejected(error, what=what, known=model.model_fields) from error


def rejected(error: ValidationError, *, what: str, known: Iterable[str]) -> RejectedError:
    """Say what is wrong with each field, and for one that is not known which ones `what` takes."""
    complaints = []
    for detail in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in detail["loc"])[:_MOST_OF_A_NAME]
        match detail["type"]:
            case "missing":
                complaint = "is required"
            case "extra_forbidden":
                complaint = f"is not known; {what} takes {', '.join(known)}"
            case "value_error":
                complaint = str(detail["ctx"]["error"])
            case _:
                complaint = _PYDANTICS_WORDS.sub("must", detail["msg"])
        complaints.append(f"parameter '{name}' {complaint}")
    return RejectedError(
        HTTPStatus.BAD_REQUEST, f"Invalid parameters: {'; '.join(complaints[:_MOST_COMPLAINTS])}"
    )


def wrong(name: str, complaint: object) -> RejectedError:
    """Say what is wrong with one field."""
    return RejectedError(HTTPStatus.BAD_REQUEST, f"Invalid parameters: parameter '{name}' {complaint}")
