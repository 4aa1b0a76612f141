"""Waiting without a clock: for as long as anything moves, however slow the machine is."""

import time

# Two ticks, a claim of a killed submit, and what a busy machine adds: what moves at all has no such pause.
STILL_S = 240.0


class Progress:
    """Tells whether what is waited for gets on: what was seen has changed within `still_s` seconds."""

    def __init__(self, still_s: float = STILL_S) -> None:
        self.still_s = still_s
        self._seen: object = None
        self._changed_at = time.monotonic()

    def still(self, seen: object) -> float:
        """Tell for how many seconds the same has been seen as now."""
        if seen != self._seen:
            self._seen, self._changed_at = seen, time.monotonic()
        return time.monotonic() - self._changed_at

    def goes_on(self, seen: object) -> bool:
        """Tell whether waiting makes sense."""
        return self.still(seen) < self.still_s
