"""What has been found out about the vendor's held polls, by model."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

HELD_SIGN = timedelta(seconds=1)  # a poll that has no answer by then is probably held
HELD_PROOF = timedelta(seconds=5)  # a pending that took this long was held; one that came sooner was not
NOT_HELD_FOR = timedelta(minutes=10)  # until a vendor that did not hold is tried again
MOST_REFUSALS = 2  # answers in a row that were not held ones
# Of a task's age, after which the next held poll that says pending is followed by a plain one. No multiple of
# a tick, or it would always meet the poll that a hand-over drops.
CHECK_GAP = timedelta(seconds=170)


@dataclass
class LongPollSupport:
    """What is known of held polls, kept while the process stays warm.

    Nothing depends on it: a poll that is not held is repeated plainly at once.
    """

    holds: dict[str, bool] = field(default_factory=dict)
    found_at: dict[str, datetime] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    belied_at: dict[str, datetime] = field(default_factory=dict)

    def holding(self, model: str, now: datetime) -> bool | None:
        """Whether the vendor holds polls about this model open; None: to be found out."""
        if self.holds.get(model) is False and now >= self.found_at[model] + NOT_HELD_FOR:
            return None
        return self.holds.get(model)

    def found(self, model: str, now: datetime, *, holds: bool) -> None:
        """Remember what a poll has shown."""
        self.holds[model], self.found_at[model] = holds, now

    def held(self, model: str, now: datetime, *, since: datetime) -> None:
        """Learn from a poll that was held; nothing where others have shown meanwhile that polls are not."""
        if self.holds.get(model) is False and self.found_at[model] >= since:
            return
        self.refusals.pop(model, None)
        self.found(model, now, holds=True)

    def held_since(self, model: str, moment: datetime) -> bool:
        """Whether the vendor was found to hold polls about the model since then."""
        return self.holds.get(model, False) and self.found_at[model] > moment

    def belied(self, model: str, now: datetime) -> None:
        """Learn from a task that has ended, and of which a held poll has just said that it runs.

        It may have ended in that very moment; twice in a while shows that held polls tell nothing.
        """
        before = self.belied_at.get(model)
        self.belied_at[model] = now
        if before is not None and now < before + NOT_HELD_FOR:
            self.found(model, now, holds=False)

    def refused(self, model: str, now: datetime) -> None:
        """Learn from a poll that was not held although asked to: after two in a row none is asked to."""
        self.refusals[model] = self.refusals.get(model, 0) + 1
        if self.refusals[model] >= MOST_REFUSALS:
            self.refusals.pop(model)
            self.found(model, now, holds=False)

    def held_models(self) -> tuple[str, ...]:
        """List the models whose polls the vendor holds."""
        return tuple(sorted(model for model, holds in self.holds.items() if holds))
