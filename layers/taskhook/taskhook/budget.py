"""How many requests the vendor gets, and how many of its places are filled: pure arithmetic over time windows and refusals."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from taskhook.task import Moment, Task

WINDOW = timedelta(seconds=6)
_WINDOWS = 11  # a sliding minute touches at most this many windows
PROBE = timedelta(minutes=1)  # between two tries for one place more than the vendor was known to have


def window(now: datetime) -> int:
    """Number the window that `now` lies in."""
    return int(now.timestamp() // WINDOW.total_seconds())


def window_end(now: datetime) -> datetime:
    """Tell when the window that `now` lies in is over."""
    return datetime.fromtimestamp((window(now) + 1) * WINDOW.total_seconds(), now.tzinfo)


def window_limit(requests_per_minute: int) -> int:
    """Tell how many requests fit into one window, so that no minute, wherever it begins, sees more than allowed."""
    return max(1, requests_per_minute // _WINDOWS)


def reserve(limit: int) -> int:
    """Tell how much of a window the poller leaves to submits."""
    return limit // 4


class Gate(BaseModel):
    """What is known of the way to the vendor: whether tasks wait before it, and how many it runs at once.

    While anything waits, submits queue behind it without asking, so that nobody overtakes.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    waiting: bool = False
    places: int | None = None  # running tasks at which the vendor refused one more; None: it never has
    probed_at: Moment | None = None  # when the last such refusal came
    paused_until: Moment | None = None  # the vendor refused the key, or asked for a pause
    served: str = ""  # the caller whose turn was last, where more than one waits
    nonce: str = ""

    def paused(self, now: datetime) -> bool:
        """Whether nothing at all should be submitted."""
        return self.paused_until is not None and now < self.paused_until

    def next_try(self, running: int, now: datetime) -> datetime:
        """Tell when one more task may be submitted while `running` are: now where a place is free, else at the next probe."""
        soonest = max(now, self.paused_until or now)
        if self.places is None or running < self.places or self.probed_at is None:
            return soonest
        return max(soonest, self.probed_at + PROBE)

    def refused(self, running: int, now: datetime) -> "Gate":
        """Learn from a refusal: there are as many places as were filled."""
        return self.model_copy(update={"waiting": True, "places": running, "probed_at": now})

    def taken(self, running: int, *, served: str) -> "Gate":
        """Learn from an acceptance while `running` others ran: there is a place more than was known, if that many."""
        places = self.places if self.places is None or running < self.places else running + 1
        return self.model_copy(update={"places": places, "served": served})

    def in_turn(self, heads: Iterable[Task]) -> list[Task]:
        """Order the callers' oldest tasks by whose turn it is: by name, beginning after the caller that was served last."""
        return sorted(heads, key=lambda task: (task.caller <= self.served, task.caller))

    def pause(self, until: datetime) -> "Gate":
        """Submit nothing before `until`."""
        return self.model_copy(update={"paused_until": until})
