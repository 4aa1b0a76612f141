"""What a vendor's file says of a model: what its request and its media may be, and how media are judged."""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

# --- media ----------------------------------------------------------------------------------------


class MediaFacts(BaseModel):
    """What a look at a media file has shown; what could not be seen is left out."""

    model_config = ConfigDict(frozen=True)

    failure: str = ""  # why its URL surely gives no such file
    doubt: str = ""  # why the look ended before it was through
    size: int | None = None  # bytes
    text: bool = False  # it begins as messages and scripts do
    format: str = ""  # as its first bytes name it, where the parser agrees
    tracks: tuple[str, ...] = ()  # their kinds
    width: int | None = None
    height: int | None = None
    seconds: tuple[float, ...] = ()  # how long the file and its video say they are
    cut_off: bool = False  # it is shorter than it says itself


class Verdict(StrEnum):
    """Whether a media file keeps the vendor's limits."""

    FINE = "fine"
    WRONG = "wrong"  # beyond doubt
    UNCHECKED = "unchecked"  # the vendor will know


@dataclass(frozen=True)
class Judgement:
    """A verdict on one input, and why: for WRONG a message to the submitter, for UNCHECKED a few words."""

    field: str
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class MediaRule:
    """What the vendor takes for one input.

    A file is judged by its content alone, never by its name or content type.
    """

    field: str
    track: str  # the kind of track that makes the file what it should be
    formats: dict[str, str]  # our names, and the vendor's
    most_bytes: int
    least_side: int
    most_side: int
    most_ratio: int  # of the longer side to the shorter one
    least_seconds: float | None = None
    most_seconds: float | None = None
    unless_off: str | None = None  # the request's own switch that spares it the check

    def judge(self, facts: MediaFacts) -> Judgement:
        """Hold what was seen against the limits; only what is certain is wrong."""
        if wrong := self._wrong(facts):
            return Judgement(self.field, Verdict.WRONG, wrong)
        seen = self.track in facts.tracks and facts.width and (facts.seconds or self.least_seconds is None)
        if facts.format and seen and facts.size is not None:
            return (
                Judgement(self.field, Verdict.UNCHECKED, "cut off")
                if facts.cut_off
                else Judgement(self.field, Verdict.FINE)
            )
        why = facts.doubt or ("unknown duration" if facts.format else "unknown format")
        return Judgement(self.field, Verdict.UNCHECKED, why)

    def _wrong(self, facts: MediaFacts) -> str | None:
        name, kinds = self.field, " or ".join(self.formats.values())
        if facts.failure:
            return f"Invalid parameters: {name} {facts.failure}"
        if facts.size == 0:
            return f"Invalid format: {name} is empty"
        if facts.size is not None and facts.size > self.most_bytes:
            return (
                f"Value out of range: {name} is {facts.size} bytes long;"
                f" it must be at most {self.most_bytes} ({self.most_bytes >> 20} MB)"
            )
        if facts.text:
            return f"Invalid format: {name} is text, for example an error message; it must be {kinds}"
        if not facts.format:
            return None
        if facts.format not in self.formats:
            return f"Invalid format: {name} is {facts.format}; it must be {kinds}"
        if self.track not in facts.tracks or not facts.width or not facts.height:
            if facts.doubt:
                return None
            what = f"Invalid format: {name} has no {self.track.lower()} in it"
            return (
                f"{what}, only sound"
                if "Audio" in facts.tracks and self.track not in facts.tracks
                else f"{what} that can be read: it is broken, or cut off"
            )
        return self._out_of_range(facts, facts.width, facts.height)

    def _out_of_range(self, facts: MediaFacts, width: int, height: int) -> str | None:
        measured = f"Value out of range: {self.field} is"
        if not (self.least_side <= width <= self.most_side and self.least_side <= height <= self.most_side):
            return f"{measured} {width}x{height} px; each side must be {self.least_side} to {self.most_side}"
        if max(width, height) > self.most_ratio * min(width, height):
            return (
                f"{measured} {width}x{height} px; the ratio of its sides must be 1:{self.most_ratio} to "
                f"{self.most_ratio}:1"
            )
        if not facts.seconds or self.least_seconds is None or self.most_seconds is None:
            return None
        allowed = f"it must be {self.least_seconds:g} to {self.most_seconds:g} s"
        if min(facts.seconds) > self.most_seconds:
            return f"{measured} {min(facts.seconds):.3f} s long; {allowed}"
        # With a doubt, more of it may lie where was not looked.
        if max(facts.seconds) < self.least_seconds and not facts.doubt:
            return f"{measured} {max(facts.seconds):.3f} s long; {allowed}"
        return None


# --- the models -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """One model of a vendor: its slug, what its request and media may be, its least time to a result."""

    slug: str
    kind: str
    description: str
    request: type[BaseModel]
    media: tuple[MediaRule, ...]
    typical_minimum: timedelta
