"""One run of one scenario: ticks come, the script is played, and all ends once nothing is left to do."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from taskhook.core.message import Json
from tests.sim.deployment import POLL_TIME, TASKS, TICK
from tests.sim.functions import Functions
from tests.sim.rivals import key_of, rivals_item
from tests.world import START

# virtual seconds; the schedule of callbacks takes a little over three days, the hard stop two
QUIET_WITHIN = 12 * 86400.0
MISS = 512  # minutes between ticks at most, while nothing changes: days pass in a few of them
PATIENCE = 3  # ticks without a change until then
PATIENT_STEP = 10.0


@dataclass
class Scene(Functions):
    """A deployment, and its course of time."""

    poison: set[str] = field(default_factory=set)  # ids of items that no version of ours can read
    expired: set[str] = field(default_factory=set)  # ids of tasks that TTL has deleted
    ended_at: float = 0.0
    acting: bool = True  # the scenario's script still runs
    patient: bool = False  # it waits for something that takes long
    tick: asyncio.Event = field(default_factory=asyncio.Event)  # the first one has come
    left_out_s: float = 0.0  # of ticks at once, while nothing changed; what is due waits as long
    _plays: asyncio.Task[None] = field(init=False)
    _acts: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._usual = {"": 0.0}
        self.injector.world = self
        self.lagging(None)

    # --- the course of time -----------------------------------------------------------------------

    def run(self, script: Callable[["Scene"], Awaitable[None]]) -> None:
        """Play the script while ticks come, then let ticks come until nothing is left to do."""
        self._acts = self.loop.create_task(self._act(script))
        self.begin()
        self._end()

    def begin(self) -> None:
        """Let ticks come; without a script, `go_on` goes step by step, and `finish` to the end."""
        self._plays = self.loop.create_task(self._play())

    def go_on(self, seconds: float) -> None:
        """Let a while pass."""
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def finish(self) -> None:
        """Let ticks come until nothing is left to do."""
        self.acting = False
        self._end()

    def _end(self) -> None:
        try:
            self.loop.run_until_complete(self._plays)
        finally:
            self.injector.over = True
            self.loop.run_until_complete(self.runner.clear())
            self.loop.close()

    async def _play(self) -> None:
        misses, unchanged, before = 1, 0, ""
        await asyncio.sleep(self.injector.dice.uniform(1, 59))
        while self.loop.time() < QUIET_WITHIN:
            if self._nothing_left() and await self.until(self.quiet, POLL_TIME):  # a leader needs no other
                break
            self.poll({})
            self.tick.set()
            await asyncio.sleep(TICK)
            now = self.fingerprint()
            unchanged = unchanged + 1 if now == before and (self.patient or not self.acting) else 0
            misses, before = min(misses * 2, MISS) if unchanged >= PATIENCE else 1, now
            left_out = self._idle_ticks() if self._only_retries() else min(misses - 1, self._idle_ticks())
            self.left_out_s = max(self.left_out_s, 0.0 if self._only_retries() else left_out * TICK)
            await asyncio.sleep(left_out * TICK)
        self.ended_at = self.loop.time()
        if self._acts is not None:
            await self._acts

    def _only_retries(self) -> bool:
        """Whether there is nothing to do but to wait for the next retry."""
        working = [item for item in self.table.working(TASKS) if item["task_id"]["S"] not in self.poison]
        return (
            bool(working)
            and all(item["work"]["S"] == "retry" for item in working)
            and (self.patient or not self.acting)
            and self.runner.all_ended()
        )

    def _idle_ticks(self) -> int:
        """Count the whole ticks before the one that finds the next retry: to miss one would make it late."""
        waiting = [item for item in self.table.working(TASKS) if item["work"]["S"] == "retry"]
        due = [
            int(item["work_at"]["S"].partition("_")[0])
            for item in waiting
            if item["task_id"]["S"] not in self.poison
        ]
        rest = (min(due) / 1000 - START.timestamp() - self.loop.time()) if due else QUIET_WITHIN
        return max(int(rest / TICK) - 1, 0)

    async def _act(self, script: Callable[["Scene"], Awaitable[None]]) -> None:
        await script(self)
        self.acting = False

    async def until(self, met: Callable[[], bool], within: float = 600.0, *, step: float = 0.2) -> bool:
        """Wait until something has come about; False when it does not. Long steps let ticks be left out."""
        self.patient = step >= PATIENT_STEP
        end = self.loop.time() + within
        while not met():
            if self.loop.time() >= end:
                return False
            await asyncio.sleep(step)
        return True

    def quiet(self) -> bool:
        """Whether nothing is under way and nothing is left to do."""
        return self._nothing_left() and self.runner.all_ended()

    def _nothing_left(self) -> bool:
        return (
            not self.acting
            and all(item["task_id"]["S"] in self.poison for item in self.table.working(TASKS))
            and self.runner.asides_done()
        )

    # --- what the injector asks -------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Describe the tasks' states, and the invocations under way."""
        rows = []
        for item in self.table.everything(TASKS):
            if "state" in item:
                words = [
                    item["state"]["S"],
                    item.get("callback", {}).get("S", ""),
                    item.get("attempts", {}).get("N", "0"),
                ]
                claimed = (
                    int(item.get("claimed_until", {}).get("N", "0")) / 1000 - START.timestamp()
                    > self.loop.time()
                )
                rows.append(f"{self.name_of(item['task_id']['S'])}:{':'.join(words)}:{claimed}")
        about = sorted(
            invocation.name.split(" ")[1] for invocation in self.invocations if not invocation.ended.is_set()
        )
        return "|".join([*sorted(rows), *about])

    def rival(self, request: Json) -> None:
        """Write the item first, as another invocation might that then dies."""
        table = request["TableName"]
        key = key_of(table, request)
        now, item = self.loop.now(), self.table.peek(table, key)
        self.table.write(table, rivals_item(table, request, item, now, readable=key not in self.poison))

    def lagging(self, lag: Callable[[str], float] | None) -> None:
        """Let reads of indexes and batches be that old; as usual, an item is some milliseconds behind."""
        usual = self._usual

        def usually(key: str) -> float:
            return usual.setdefault(key, self.injector.dice.uniform(0.005, 0.3))

        self.table.lag = lag or usually
