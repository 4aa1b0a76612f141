"""What the invocations of the poller know of each other."""

from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from taskhook.core.record import Moment

WEBHOOK_TRUST = timedelta(hours=1)  # how long one true webhook makes others expected


class LeadershipView(BaseModel):
    """The leader, until when it leads, whose polls the vendor holds, and when its webhook last proved true.

    `drained_at` is when the last leader left because nothing was due any more; None where one leads, or has
    died.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    leader: str = ""
    until: Moment | None = None
    held_models: tuple[str, ...] = ()
    webhook_at: Moment | None = None
    drained_at: Moment | None = None

    def alive(self, now: datetime) -> bool:
        """Whether a leader is there."""
        return self.until is not None and now < self.until

    def holds(self, model: str, now: datetime) -> bool:
        """Whether a held poll brings the news of this model's tasks."""
        return self.alive(now) and model in self.held_models

    def webhooks_come(self, now: datetime) -> bool:
        """Whether vendor webhooks are known to come."""
        return self.webhook_at is not None and now < self.webhook_at + WEBHOOK_TRUST
