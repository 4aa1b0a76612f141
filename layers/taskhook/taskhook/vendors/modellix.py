"""Modellix: the models, what their requests and media may be, and what its answers mean."""

import math
from datetime import timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from taskhook.core.limits import MAX_URL
from taskhook.core.message import MAX_NOTE, Json, kept_data
from taskhook.core.models import MediaRule, Model
from taskhook.core.record import Submission, SubmitOutcome
from taskhook.core.vendor import PollKind, PollOutcome

_REFUSED_FOR_GOOD = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.CONTENT_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_CONTENT,
}

_REFUSED_HERE = {HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED}


def read_submission(status: int, body: Json | None, *, retry_after: timedelta | None = None) -> SubmitOutcome:
    """Classify the vendor's answer to the paid POST; `body` is None where it was not a JSON object."""
    body = body or {}
    message = str(body.get("message") or f"the vendor answered {status}")[:MAX_NOTE]
    data = body.get("data")
    upstream_task_id = data.get("task_id") if isinstance(data, dict) else None
    if status in _REFUSED_FOR_GOOD:
        submission = Submission.REFUSED
    elif status in _REFUSED_HERE:
        submission = Submission.REFUSED_HERE
    elif status == HTTPStatus.TOO_MANY_REQUESTS:
        submission = Submission.BUSY
    elif (
        HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES
        and body.get("code", 0) == 0
        and isinstance(upstream_task_id, str)
        and upstream_task_id
    ):
        return SubmitOutcome(
            submission=Submission.TAKEN,
            upstream_task_id=upstream_task_id,
            status=status,
            retry_after=retry_after,
        )
    else:
        submission = Submission.AMBIGUOUS
    return SubmitOutcome(submission=submission, status=status, message=message, retry_after=retry_after)


def _media_url(value: str) -> str:
    if not value.isascii() or any(character.isspace() or not character.isprintable() for character in value):
        raise ValueError("must be ASCII without spaces; percent-encode everything else")
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or parts.port == 0:
        raise ValueError("must be an http or https URL without a user name")
    return value


MediaUrl = Annotated[str, Field(max_length=MAX_URL), AfterValidator(_media_url)]


class Mode(StrEnum):
    """`wan-std` is faster and cheaper, `wan-pro` smoother."""

    STANDARD = "wan-std"
    PROFESSIONAL = "wan-pro"


class AnimateRequest(BaseModel):
    """A character image that replaces, or is moved like, the person in a reference video."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_url: MediaUrl = Field(
        description="Character image: JPG/JPEG/PNG/BMP/WEBP, sides 200 to 4096 px, at most 5 MB.",
        examples=["https://example.com/new_actor.jpg"],
    )
    video_url: MediaUrl = Field(
        description="Reference video: MP4/AVI/MOV, 2 to 30 s, sides 200 to 2048 px, at most 200 MB.",
        examples=["https://example.com/original_scene.mp4"],
    )
    mode: Mode = Field(
        description="`wan-std`: faster and cheaper; `wan-pro`: smoother.", examples=[Mode.STANDARD]
    )
    check_image: Annotated[bool, Field(strict=True)] = Field(
        default=True, description="Whether the vendor inspects the image."
    )


_ANIMATE_MEDIA = (
    MediaRule(
        field="image_url",
        track="Image",
        formats={"JPEG": "JPG/JPEG", "PNG": "PNG", "BMP": "BMP", "WebP": "WEBP"},
        most_bytes=5 << 20,
        least_side=200,
        most_side=4096,
        most_ratio=3,
        unless_off="check_image",
    ),
    MediaRule(
        field="video_url",
        track="Video",
        formats={"MPEG-4": "MP4 or MOV", "AVI": "AVI"},
        most_bytes=200 << 20,
        least_side=200,
        most_side=2048,
        most_ratio=3,
        least_seconds=2,
        most_seconds=30,
    ),
)

MODELS = {
    model.slug: model
    for model in (
        Model(
            slug="alibaba/wan2.2-animate-mix",
            kind="video-to-video",
            description="A character image replaces the person in a reference video.",
            request=AnimateRequest,
            media=_ANIMATE_MEDIA,
            typical_minimum=timedelta(seconds=20),
        ),
        Model(
            slug="alibaba/wan2.2-animate-move",
            kind="video-to-video",
            description="A character image moves like the person in a reference video.",
            request=AnimateRequest,
            media=_ANIMATE_MEDIA,
            typical_minimum=timedelta(seconds=20),
        ),
    )
}

_SUCCESS = {"success", "succeeded", "completed"}

_FAILURE = {"failed", "error", "canceled", "cancelled"}


def read_poll(body: Json, upstream_task_id: str) -> PollOutcome:
    """Read the vendor's answer about a task; what is not about this task, or has no status, says nothing."""
    data = body.get("data")
    if (
        not isinstance(data, dict)
        or data.get("task_id") != upstream_task_id
        or not isinstance(data.get("status"), str)
    ):
        return PollOutcome(kind=PollKind.UNAVAILABLE, message="the answer is not about this task")
    status = data["status"].lower()
    if status in _SUCCESS:
        return PollOutcome(kind=PollKind.SUCCEEDED, data=kept_data(_finite(data)))
    if status in _FAILURE:
        return PollOutcome(
            kind=PollKind.FAILED, data=kept_data(_finite(data)), message=_failure(body, data)[:MAX_NOTE]
        )
    return PollOutcome(kind=PollKind.PENDING)


def _failure(body: Json, data: Json) -> str:
    """Find the vendor's words.

    In `data.error` (an object or a string), or in `data.message`, or in `message`.
    """
    error = data.get("error")
    if isinstance(error, dict):
        words = [str(error[name]) for name in ("code", "message") if error.get(name)]
        error = ": ".join(words)
    for candidate in (error, data.get("message"), body.get("message")):
        if isinstance(candidate, str) and candidate and candidate != "success":
            return candidate
    return f"the vendor reported {data['status']}"


def _finite(value: Any) -> Any:
    """Put null for a number beyond a float's range.

    It reads as infinite, which no JSON can hold and no one could pass on.
    """
    match value:
        case dict():
            for name in value:
                value[name] = _finite(value[name])
        case list():
            for index, entry in enumerate(value):
                value[index] = _finite(entry)
        case float() if not math.isfinite(value):
            return None
    return value
