"""The machine's clock."""

import asyncio
from datetime import UTC, datetime, timedelta


class SystemClock:
    """`Clock`: the machine's."""

    def now(self) -> datetime:
        """Tell the time, in UTC."""
        return datetime.now(UTC)

    async def sleep(self, duration: timedelta) -> None:
        """Let other coroutines run for so long."""
        await asyncio.sleep(duration.total_seconds())
