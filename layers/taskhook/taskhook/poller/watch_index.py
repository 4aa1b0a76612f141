"""What there is to watch at one vendor, read once whole and then from where the last look ended."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

from taskhook.core.ports import Clock, Row, WorkIndex
from taskhook.poller.work import INDEX_LAG

WIDE_SCAN = timedelta(seconds=10)  # between looks from further back
CLOCK_SKEW = timedelta(minutes=5)


class WatchIndex:
    """Reads INDEX_LAG back at every look, and now and then further, for submitters whose clock is behind."""

    def __init__(self, index: WorkIndex, vendor: str, clock: Clock, *, started: datetime) -> None:
        self._index = index
        self._vendor = vendor
        self._clock = clock
        self._newest = started
        self._wide_scan_at = started
        self._queue_seen_at = started - INDEX_LAG
        self._is_read = False  # whole, once

    def queue_seen(self) -> None:
        """Note that tasks are queued: what leaves the queue enters `watch` at its old place."""
        self._queue_seen_at = self._clock.now()

    def look_back(self) -> None:
        """Read from further back at the next look: none may follow."""
        self._wide_scan_at = self._clock.now()

    async def pages(self) -> AsyncIterator[Sequence[Row]]:
        """Give all rows the first time, and where a queued task may have been submitted; else new ones.

        A look that was broken off is made again. Raises StoreUnavailableError.
        """
        now, newest, cursor = self._clock.now(), self._newest, None
        since = self._since(now)
        while True:
            rows, cursor = await self._index.watched(self._vendor, since, cursor=cursor)
            if rows:  # a submitter whose clock is ahead hides none that come after
                newest = max(newest, min(datetime.fromtimestamp(accepted(rows[-1]), UTC), now))
            yield rows
            if cursor is None:
                break
        self._newest, self._is_read = newest, True

    def _since(self, now: datetime) -> datetime | None:
        is_wide = not self._is_read or now >= self._wide_scan_at
        if is_wide:
            self._wide_scan_at = now + WIDE_SCAN
        if not self._is_read or (is_wide and now < self._queue_seen_at + INDEX_LAG + WIDE_SCAN):
            return None
        since = self._newest - INDEX_LAG
        return since - CLOCK_SKEW if is_wide else since


def accepted(row: Row) -> float:
    """Read when a row's task was accepted, in Unix seconds; a key that cannot be read hides no task."""
    try:
        return int(row.at[:13]) / 1000
    except ValueError:
        return 0.0
