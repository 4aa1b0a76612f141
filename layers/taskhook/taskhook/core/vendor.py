"""What each file in `vendors` says of its vendor: pure, so that no call of it can go wrong in the middle."""

from datetime import timedelta
from typing import Protocol

from taskhook.core.message import Json
from taskhook.core.ports import PollOutcome
from taskhook.core.task import SubmitOutcome


class VendorAnswers(Protocol):
    """What a vendor's answers mean."""

    def read_submission(
        self, status: int, body: Json | None, *, retry_after: timedelta | None = None
    ) -> SubmitOutcome:
        """Classify the answer to the paid POST; `body` is None where it was not a JSON object."""

    def read_poll(self, body: Json, upstream_task_id: str) -> PollOutcome:
        """Read a 2xx about a task; what is not about this task, or has no status, says nothing."""
