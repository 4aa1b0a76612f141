"""Modellix: its paths, its models, what their requests and media may be, and what its answers mean."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from taskhook.core import parameters
from taskhook.core.errors import RejectedError
from taskhook.core.limits import MAX_MODEL, MAX_URL
from taskhook.core.message import MAX_NOTE, Json, finite, kept_data, minified
from taskhook.core.models import MediaRule, Model
from taskhook.core.record import Submission, SubmitOutcome
from taskhook.core.schedule import typical_minimum
from taskhook.core.vendor import (
    IMAGE,
    NOT_THIS_TASK,
    OWN_FIELDS,
    VIDEO,
    Action,
    Example,
    HttpRequest,
    Listing,
    PaidRequest,
    PollKind,
    PollOutcome,
    Route,
    kind_of,
    outcome_of,
    submission_of,
)


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
        description="Character image: JPG/JPEG/PNG/BMP/WEBP, sides 200 to 4096 px, ratio 1:3 to 3:1, at most "
        "5 MB.",
        examples=["https://example.com/new_actor.jpg"],
    )
    video_url: MediaUrl = Field(
        description="Reference video: MP4/AVI/MOV, 2 to 30 s, sides 200 to 2048 px, ratio 1:3 to 3:1, at "
        "most 200 MB.",
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


# Never a provider: paths of the deployment, and of other vendors.
_RESERVED = {"tasks", "callbacks", "apikey", "models", "team", "media", "watch", "services"}
SLUG_PART = rf"[a-z0-9][A-Za-z0-9._-]{{0,{MAX_MODEL - 1}}}"  # provider, or model


@dataclass(frozen=True)
class Modellix:
    """The vendor. What its form lacks, the deployment's own answers have: they are the same form."""

    name = "modellix"
    title = "Modellix"
    example = Example(
        "`POST /api/v1/{provider}/{model}`",
        "/api/v1/alibaba/wan2.2-animate-mix",
        {"image_url": IMAGE, "video_url": VIDEO, "mode": "wan-std"},
    )
    origin = "https://api.modellix.ai"
    hosts: Sequence[str] = ()
    requests_per_minute = 1000
    longest_task = timedelta(0)
    long_poll = True
    webhooks = True
    cancel_removes = False
    listing: Listing | None = None
    models = MODELS
    form = None

    # --- what callers ask -------------------------------------------------------------------------

    def route(self, method: str, path: str, _query: Mapping[str, str]) -> Route | None:
        """Take `POST /api/v1/{provider}/{model}`, with or without `/async`; the rest is the deployment's."""
        return Route(Action.SUBMIT) if method == "POST" and _slug(path) is not None else None

    def paid_request(self, path: str, _headers: Mapping[str, str], body: Json) -> PaidRequest:
        """Read a submit: of a described model strictly, of any other as it came."""
        slug = _slug(path) or ""
        if any(re.fullmatch(SLUG_PART, part) is None for part in slug.split("/")):
            raise RejectedError(
                HTTPStatus.NOT_FOUND, f"Resource not found: '{slug[:200]}' is no name of a model"
            )
        model = MODELS.get(slug)
        if model is None:
            return PaidRequest(slug, slug, parameters.passed_on(body), identity=body, validated=False)
        try:
            fields = model.request.model_validate(body)
        except ValidationError as error:
            known = (*model.request.model_fields, *OWN_FIELDS)
            raise parameters.rejected(error, what="this model", known=known) from error
        return PaidRequest(
            slug,
            slug,
            minified(fields.model_dump(mode="json", exclude_unset=True)),
            identity=fields.model_dump(mode="json"),
            media=tuple(
                (rule, getattr(fields, rule.field))
                for rule in model.media
                if not rule.unless_off or getattr(fields, rule.unless_off)
            ),
        )

    def first_poll(self, model: str) -> timedelta:
        """Wait for the typical minimum of a described model, of others as far as the name tells."""
        known = MODELS.get(model)
        return known.typical_minimum if known is not None else typical_minimum(model)

    # --- what the vendor is asked -----------------------------------------------------------------

    def authorization(self, key: str) -> Mapping[str, str]:
        """Give the bearer token."""
        return {"Authorization": f"Bearer {key}"}

    def submit(
        self, target: str, body: bytes, *, headers: Mapping[str, str], webhook_url: str | None
    ) -> HttpRequest:
        """Make the paid POST; `target` is the model's slug."""
        webhook = {"X-Webhook-URL": webhook_url} if webhook_url else {}
        return HttpRequest("POST", f"/api/v1/{quote(target)}", {**headers, **webhook}, body)

    def operation(self, upstream_task_id: str) -> str:
        """Give the path of a task."""
        return f"/api/v1/tasks/{quote(upstream_task_id, safe='')}"

    def poll(self, operation: str, *, hold: bool) -> HttpRequest:
        """Ask for a task."""
        return HttpRequest("GET", f"{operation}?wait=true" if hold else operation)

    def cancel(self, _operation: str) -> HttpRequest | None:
        """Have no way to cancel a task."""
        return None

    def free_request(self) -> HttpRequest:
        """Ask for the account's balance."""
        return HttpRequest("GET", "/api/v1/team/balance")

    # --- what it answers --------------------------------------------------------------------------

    def read_submission(
        self, status: int, body: Json | None, *, retry_after: timedelta | None = None
    ) -> SubmitOutcome:
        """Classify the vendor's answer to the paid POST; `body` is None where it was not a JSON object."""
        body = body or {}
        data = body.get("data")
        upstream_task_id = data.get("task_id") if isinstance(data, dict) else None
        submission = submission_of(status, upstream_task_id)
        if submission is Submission.TAKEN and body.get("code", 0) != 0:
            submission = Submission.AMBIGUOUS
        return outcome_of(submission, status, upstream_task_id, body.get("message"), retry_after)

    def read_poll(self, body: Json, upstream_task_id: str) -> PollOutcome:
        """Read an answer about a task; what is not about this task, or has no status, says nothing."""
        data = body.get("data")
        if (
            not isinstance(data, dict)
            or data.get("task_id") != upstream_task_id
            or not isinstance(data.get("status"), str)
        ):
            return NOT_THIS_TASK
        kind = kind_of(data["status"])
        if kind is PollKind.PENDING:
            return PollOutcome(kind=kind)
        message = _failure(body, data)[:MAX_NOTE] if kind is PollKind.FAILED else ""
        return PollOutcome(kind=kind, data=kept_data(finite(data)), message=message)


def _slug(path: str) -> str | None:
    """Read the model out of the path of a submit, None where it is another path."""
    match path.split("/"):
        case ["", "api", "v1", provider, model] | ["", "api", "v1", provider, model, "async"]:
            return f"{provider}/{model}" if provider not in _RESERVED else None
    return None


MODELLIX = Modellix()
