"""The vendor's models that this deployment knows: what their requests may hold, and how long they take at least.

Limits are those of the vendor's pages for `wan2.2-animate-mix` and `-move` (which take the same fields).
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_URL = 2048


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

    image_url: MediaUrl = Field(description="Character image: JPG/JPEG/PNG/BMP/WEBP, sides 200 to 4096 px, at most 5 MB.")
    video_url: MediaUrl = Field(description="Reference video: MP4/AVI/MOV, 2 to 30 s, sides 200 to 2048 px, at most 200 MB.")
    mode: Mode = Field(description="`wan-std`: faster and cheaper; `wan-pro`: smoother.")
    check_image: Annotated[bool, Field(strict=True)] = Field(default=True, description="Whether the vendor inspects the image.")


@dataclass(frozen=True)
class Model:
    """One model of the vendor: its slug, what its request holds, and how soon its result can be there."""

    slug: str
    kind: str
    description: str
    request: type[BaseModel]
    typical_minimum: timedelta


MODELS = {
    model.slug: model
    for model in (
        Model(
            slug="alibaba/wan2.2-animate-mix",
            kind="video-to-video",
            description="A character image replaces the person in a reference video.",
            request=AnimateRequest,
            typical_minimum=timedelta(seconds=20),
        ),
        Model(
            slug="alibaba/wan2.2-animate-move",
            kind="video-to-video",
            description="A character image moves like the person in a reference video.",
            request=AnimateRequest,
            typical_minimum=timedelta(seconds=20),
        ),
    )
}
