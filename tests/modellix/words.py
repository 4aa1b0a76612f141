"""What the vendor's answers are made of: its envelope, its refusals, and what it says of a wrong request."""

import json
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

MODES = ("wan-std", "wan-pro")
CATEGORIES = {
    400: "Invalid parameters",
    401: "Authentication failed",
    402: "Insufficient balance",
    404: "Resource not found",
    429: "Rate limit exceeded",
    503: "Service unavailable",
}


class RefusedError(Exception):
    """A request that is answered with the vendor's error envelope."""

    def __init__(
        self, status: int, detail: str, *, category: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        """Word it as the vendor does: category, then detail."""
        super().__init__(detail)
        self.status = status
        self.message = f"{category or CATEGORIES.get(status) or reason_phrase(status)}: {detail}"
        self.headers = headers or {}


def reason_phrase(status: int) -> str:
    """Return the standard phrase of a status, also for unassigned ones."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"


def success_body(data: Any) -> bytes:
    """Render the success envelope."""
    return minified({"code": 0, "message": "success", "data": data})


def minified(value: Any) -> bytes:
    """Render JSON the way the vendor's servers do."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def is_http_url(value: Any) -> bool:
    """Tell whether it is an address of the web: here http and loopback will do, which the vendor refuses."""
    return (
        isinstance(value, str)
        and value.isascii()
        and value.startswith(("http://", "https://"))
        and " " not in value
    )


def validated_fields(body: bytes) -> dict[str, Any]:
    """Check a submit in the vendor's order and words; fields it does not know are let through."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "invalid JSON format", category="Invalid format") from error
    if not isinstance(fields, dict):
        raise RefusedError(400, "request body must be a JSON object", category="Invalid format")
    for name in ("image_url", "video_url", "mode"):
        if fields.get(name) in (None, ""):
            raise RefusedError(400, f"parameter '{name}' is required")
    for name in ("image_url", "video_url"):
        if not is_http_url(fields[name]):
            raise RefusedError(
                400, f"parameter '{name}' must be an ASCII http or https URL", category="Invalid format"
            )
    if fields["mode"] not in MODES:
        raise RefusedError(400, f"parameter 'mode' must be one of {', '.join(MODES)}, got '{fields['mode']}'")
    if not isinstance(fields.get("check_image", True), bool):
        raise RefusedError(400, "parameter 'check_image' must be a boolean", category="Invalid format")
    return fields


def iso(timestamp: float) -> str:
    """Write a moment, given in seconds, as the vendor does."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
