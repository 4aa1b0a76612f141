"""What a vendor's answers mean.

The files in `vendors` read them, and are pure: no call of theirs can go wrong.
"""

from datetime import timedelta
from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from taskhook.core.message import Json
from taskhook.core.record import SubmitOutcome


class PollKind(StrEnum):
    """What a look at the vendor's task showed."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    MISSING = "missing"  # 404
    THROTTLED = "throttled"  # 429
    KEY_REFUSED = "key_refused"  # 401, 402
    UNAVAILABLE = "unavailable"  # anything else: says nothing about the task


class PollOutcome(BaseModel):
    """One look at the vendor's task; `data` is the vendor's own when it has ended."""

    model_config = ConfigDict(frozen=True)

    kind: PollKind
    data: Json = {}
    message: str = ""
    # For how long the vendor wants to be left alone, whatever it said of the task.
    retry_after: timedelta | None = None


class BalanceOutcome(BaseModel):
    """One look at the account at the vendor, which tells too whether the vendor answers at all."""

    model_config = ConfigDict(frozen=True)

    answered: bool  # any 2xx or 4xx but 408, 425 and 429: the vendor is there, and serves requests
    status: int = 0  # 0: no answer came
    body: Json = {}  # the vendor's own; empty where it was no JSON object, or too large
    message: str = ""  # why there is no answer


class VendorAnswers(Protocol):
    """What a vendor's answers mean."""

    def read_submission(
        self, status: int, body: Json | None, *, retry_after: timedelta | None = None
    ) -> SubmitOutcome:
        """Classify the answer to the paid POST; `body` is None where it was not a JSON object."""

    def read_poll(self, body: Json, upstream_task_id: str) -> PollOutcome:
        """Read a 2xx about a task; what is not about this task, or has no status, says nothing."""
