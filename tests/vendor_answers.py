"""What each vendor's documents say that it answers, as `tests/golden/NAME.json` has it, rewritten."""

import json
from pathlib import Path

from taskhook.core.message import Json
from taskhook.core.vendor import PollKind
from taskhook.vendors import VENDORS


def golden(vendor: str) -> Json:
    """Read a vendor's: `submits`, `accepted`, `tasks` by what has become of them, `errors` by status."""
    read: Json = json.loads((Path(__file__).parent / f"golden/{vendor}.json").read_text())
    return read


def upstream_of(vendor: str) -> str:
    """Give the id that its answers are about."""
    taken = VENDORS[vendor].read_submission(200, golden(vendor)["accepted"])
    assert taken.upstream_task_id is not None
    return taken.upstream_task_id


def answer_of(vendor: str, kind: PollKind) -> Json:
    """Give its first answer of a kind."""
    read, upstream = VENDORS[vendor].read_poll, upstream_of(vendor)
    answers: list[Json] = list(golden(vendor)["tasks"].values())
    return next(answer for answer in answers if read(answer, upstream).kind is kind)
