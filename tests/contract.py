"""What the OpenAPI document promises, held against what was really answered."""

import re
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

from taskhook.api import openapi

Json = dict[str, Any]
SERVER = "https://tasks.example.com"


@cache
def document() -> Json:
    """Give the document."""
    return openapi.document(SERVER)


@cache
def _closed() -> Json:
    """Give the document with every object closed that is not said to be open: nothing else is answered."""

    def close(part: Any) -> Any:
        if isinstance(part, list):
            return [close(one) for one in part]
        if not isinstance(part, dict):
            return part
        closed = {name: close(one) for name, one in part.items()}
        return (
            {"additionalProperties": False, **closed}
            if part.get("type") == "object" and "properties" in part
            else closed
        )

    closed: Json = close(document())
    return closed


def check(value: object, schema: Json) -> None:
    """Assert that a value is as a schema of the document has it."""
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "components": _closed()["components"],
        "allOf": [schema],
    }
    validator = Draft202012Validator(whole, format_checker=FormatChecker())
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)] == []


def check_answer(method: str, path: str, status: int, body: object) -> None:
    """Assert that an answer is one that the document promises of this call; unknown paths promise nothing."""
    described = operation(method, path)
    if described is None:
        return
    assert str(status) in described["responses"], f"{method} {path} is not said to answer {status}"
    content = described["responses"][str(status)].get("content")
    if content is not None:
        check(body, content["application/json"]["schema"])


def operation(method: str, path: str) -> Json | None:
    """Find the operation that the document describes for a call, the literal paths first."""
    for template in sorted(document()["paths"], key=lambda template: "{" in template):
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path) and method.lower() in document()["paths"][template]:
            found: Json = document()["paths"][template][method.lower()]
            return found
    return None
