"""DynamoDB's attribute values: plain values in, `{"S": "…"}` out, and back.

Written here, for boto3's own serializer comes with all of boto3 and its S3 transfers: a twelfth of a cold start.
"""

from decimal import Decimal
from typing import Any

Attributes = dict[str, Any]


def item(attributes: Attributes) -> Attributes:
    """Write plain values as attribute values."""
    return {name: _typed(value) for name, value in attributes.items()}


def plain(item: Attributes) -> Attributes:
    """Read attribute values as plain ones; a whole number is an int, any other one a Decimal."""
    return {name: _untyped(value) for name, value in item.items()}


def _typed(value: Any) -> Attributes:
    match value:
        case None:
            return {"NULL": True}
        case bool():
            return {"BOOL": value}
        case str():
            return {"S": value}
        case bytes():
            return {"B": value}
        case int():
            return {"N": str(value)}
        case dict():
            return {"M": item(value)}
        case list() | tuple():
            return {"L": [_typed(entry) for entry in value]}
    raise TypeError(f"{type(value).__name__} is not stored here")


def _untyped(attribute: Attributes) -> Any:
    [(kind, value)] = attribute.items()
    match kind:
        case "NULL":
            return None
        case "N":
            return _number(value)
        case "M":
            return plain(value)
        case "L":
            return [_untyped(entry) for entry in value]
        case "NS":
            return {_number(entry) for entry in value}
        case "SS" | "BS":
            return set(value)
        case _:
            return value


def _number(digits: str) -> int | Decimal:
    try:
        return int(digits)
    except ValueError:
        return Decimal(digits)
