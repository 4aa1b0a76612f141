"""Random histories with several troubles at once: `python -m tests.sim.swarm [--hours N | --seed N …]`.

Each history is an hour of a deployment with six callers: some of the troubles below, all mixed, over the
calls that `tests.sim` knows and a storm of small faults. Afterwards everything must end within a stated time,
and the invariants are checked twice: with all that is known of the world, and by `tests/judge.py` from the
history alone. A rare state that was not reached once fails the whole run. Exit code 0 when all holds, else 1.
"""

from layers.interruption import PROGRAM, at_once

if __name__ in PROGRAM:
    at_once()

import argparse
import asyncio
import contextlib
import gc
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import timedelta
from unittest import mock

from taskhook.archive import copy
from taskhook.core.record import CallbackState, State, Submission
from taskhook.poller import invocation
from tests.judge import judge
from tests.sim import checks, witness
from tests.sim.deployment import TASKS, Deployment
from tests.sim.injector import FREEZE, FaultInjector, Invocation
from tests.sim.loop import seeded
from tests.sim.scene import Scene
from tests.world import START, a_caller

SEED = 20261126
HOUR, PART = 3600.0, 10
TROUBLE_ENDS = 3000.0  # seconds into the hour; what comes after finds the world as it should be
# Stated: so long after the last trouble every task has ended, and every callback is delivered or given up.
TASKS_END_WITHIN, ALL_ENDS_WITHIN = 45 * 60.0, 4 * 86_400.0
CALLERS = tuple(f"caller{number}" for number in range(6))
RECEIVERS = (
    "ok",
    "ok",
    "ok",
    "ok-slow",
    "500-ok",
    "timeout-503-ok",
    "429-ok",
    "410-ok",
    "425-ok",
    "503-503-ok",
)
REFUSALS = (Submission.BUSY, Submission.REFUSED, Submission.REFUSED_HERE, Submission.NOT_SENT)
TASKS_OF_A_HISTORY = 14
LEAST = 30  # histories, however slow the machine is: of the first 14 of SEED each rare state is in one

RARE = (
    "an unknown outcome, then the vendor's webhook",
    "a hand-over in the middle of a delivery",
    "a key used again after 402",
    "TTL beside a redelivery",
    "an archive killed twice",
    "an outage of the table with tasks in the queue",
    "one vendor down while another takes tasks",
    "another version's attribute kept to the end",
    "clocks that differ",
)


class Herd(Scene):
    """A scene that notes which rare states it has reached."""

    reached: Counter[str]
    ticks: list[float]

    def poll(self, event: dict[str, object]) -> Invocation:
        """Note when ticks come."""
        if not event:
            self.ticks.append(self.loop.time())
        return super().poll(event)


@dataclass
class History:
    """One history, drawn from a seed."""

    seed: int
    dice: random.Random = field(init=False)
    made: list[tuple[str, str, str | None]] = field(default_factory=list)  # name, caller, key

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        draw = self.dice.random
        self.two_vendors, self.clocks_differ, self.archives = draw() < 0.5, draw() < 0.3, draw() < 0.3
        webhooks = draw() < 0.5
        self.deployment = Deployment(
            slots=self.dice.choice((2, 4, 1_000_000, 1_000_000)),
            webhooks=webhooks,
            holds=draw() < 0.3,
            wakes=webhooks or draw() < 0.8,
            archives=self.archives,
            pace=4.0 if self.archives else 0.5,
            max_queued=8,
            immediate=draw() < 0.3,
            others=("dashscope",) if self.two_vendors else (),
            clocks=(0.0, 1.5, -1.5, 20.0) if self.clocks_differ else (0.0,),
            newer=draw() < 0.4,
        )
        self.storm = self.dice.choice((0.0, 0.0, 0.003, 0.01))

    def play(self) -> tuple[list[str], Counter[str], Herd]:
        """Play it; give what is wrong, which rare states were reached, and the scene."""
        beat = mock.patch.object(invocation, "BEAT", timedelta(seconds=4))
        with seeded(self.seed) as dice, beat, mock.patch.object(copy, "PART", PART):
            people = {name: a_caller(name) for name in CALLERS}
            scene = Herd(self.deployment, FaultInjector(dice, storm=self.storm), 4.0, people=people)
            scene.reached, scene.ticks = Counter(), []
            scene.run(self._script)  # type: ignore[arg-type]  # a herd is a scene
        found = [*judge(witness.lines(scene)), *_broken(scene)]
        return found, scene.reached + _reached(scene), scene

    async def _script(self, scene: Herd) -> None:
        """Let callers ask, and troubles come, for an hour; then, days later, TTL beside redeliveries."""
        moments = sorted(self.dice.uniform(0, TROUBLE_ENDS) for _ in range(TASKS_OF_A_HISTORY))
        actors = [self._submit(scene, at) for at in moments]
        actors += [
            self._again(scene, self.dice.choice(moments) + self.dice.uniform(1, 300)) for _ in range(8)
        ]
        kinds = (self._kill, self._freeze, self._double, self._outage, self._cool, self._outage_of_queue)
        for _ in range(self.dice.randint(0, 8)):
            actors.append(self.dice.choice(kinds)(scene, self.dice.uniform(0, TROUBLE_ENDS)))
        if self.two_vendors and self.dice.random() < 0.7:
            actors.append(self._vendor_is_down(scene, self.dice.uniform(0, TROUBLE_ENDS - 900)))
        if self.archives:
            actors.append(self._kill_archives(scene))
        if self.dice.random() < 0.3:
            actors.append(self._reuse(scene, self.dice.uniform(0, TROUBLE_ENDS)))
        await asyncio.gather(*actors)
        await asyncio.sleep(max(HOUR - scene.loop.time(), 0))
        await scene.until(lambda: not _running(scene), TASKS_END_WITHIN, step=20)
        left = _running(scene)
        if left:
            scene.vendor.oddities.append(
                f"{len(left)} tasks have not ended {TASKS_END_WITHIN:.0f} s after: {left}"
            )
        if self.dice.random() < 0.3:
            await self._expire(scene)

    async def _submit(self, scene: Herd, at: float) -> None:
        await asyncio.sleep(at)
        caller, key = self.dice.choice(CALLERS), self.dice.choice((None, "k", "l"))
        name = f"{caller}.{key}" if key else f"{caller}.n{len(self.made)}"
        if name not in {made for made, *_ in self.made}:
            fate = self.dice.random()
            scene.vendor.times[name] = self.dice.choice((3.0, 22.0, 90.0, 400.0))
            if fate < 0.25:
                scene.vendor.script[name] = [self.dice.choice((*REFUSALS, "silent", "dropped", "silent"))]
        self.made.append((name, caller, key))
        url = f"https://{caller}.example.com/{name}/{self.dice.choice(RECEIVERS)}"
        vendor = self.dice.choice(tuple(scene.vendors)) if not key else None
        late = self.dice.choice((0.0, 0.0, 0.0, 6.0))
        scene.submit(name, caller=caller, key=key, late=late, vendor=vendor, callback_url=url)

    async def _again(self, scene: Herd, at: float) -> None:
        """Cancel, redeliver, list, or repeat a request."""
        await asyncio.sleep(at)
        if not self.made:
            return
        name, caller, _ = self.dice.choice(self.made)
        match self.dice.randrange(4):
            case 0:
                scene.cancel(name, caller)
            case 1:
                scene.redeliver(name, caller)
            case 2:
                scene.redeliver_many(CallbackState.UNDELIVERED, caller)
            case _:
                scene.listing(caller)

    def _victim(self, scene: Herd, words: str = "") -> Invocation | None:
        alive = [one for one in scene.invocations if not one.ended.is_set() and words in one.name]
        return self.dice.choice(alive) if alive else None

    async def _kill(self, scene: Herd, at: float) -> None:
        await asyncio.sleep(at)
        if (victim := self._victim(scene)) is not None:
            victim.kill()

    async def _freeze(self, scene: Herd, at: float) -> None:
        await asyncio.sleep(at)
        if (victim := self._victim(scene)) is not None:
            victim.thawed, victim.frozen_until = True, scene.loop.time() + FREEZE

    async def _double(self, scene: Herd, at: float) -> None:
        await asyncio.sleep(at)
        if (victim := self._victim(scene)) is not None:
            victim.again()

    async def _cool(self, scene: Herd, at: float) -> None:
        await asyncio.sleep(at)
        scene.cool()

    async def _outage(self, scene: Herd, at: float) -> None:
        await asyncio.sleep(at)
        self._begin_outage(scene)

    async def _outage_of_queue(self, scene: Herd, at: float) -> None:
        """Wait for a queue, then let the table be away."""
        await asyncio.sleep(at)
        await scene.until(lambda: bool(_in(scene, State.QUEUED)), TROUBLE_ENDS - at, step=1)
        self._begin_outage(scene)

    def _begin_outage(self, scene: Herd) -> None:
        scene.injector.outage_until = scene.loop.time() + self.dice.choice((5.0, 30.0, 120.0))
        scene.injector.note("!!! the table is away")
        if _in(scene, State.QUEUED):
            scene.reached["an outage of the table with tasks in the queue"] += 1

    async def _vendor_is_down(self, scene: Herd, at: float) -> None:
        await asyncio.sleep(at)
        one, other = scene.vendors.values()
        down, up = (one, other) if self.dice.random() < 0.5 else (other, one)
        began, down.down = scene.loop.time() + START.timestamp(), True
        scene.injector.note(f"!!! {down.vendor.name} is down")
        await asyncio.sleep(self.dice.uniform(60, 900))
        down.down = False
        asked = [
            one for one in scene.vendor.exchanges if one["vendor"] == up.vendor.name and one["at"] > began
        ]
        if any(one["what"] == "submit" and one["task"] for one in asked):
            scene.reached["one vendor down while another takes tasks"] += 1

    async def _kill_archives(self, scene: Herd) -> None:
        """Kill the archiver of a task as often as one is seen at work, up to three times."""
        killed: Counter[str] = Counter()
        while scene.loop.time() < TROUBLE_ENDS and killed.total() < 3:
            await asyncio.sleep(2)
            if (
                any(scene.bucket.uploads.values())
                and (victim := self._victim(scene, " archive ")) is not None
            ):
                victim.kill()
                killed[victim.name.rpartition(" ")[2]] += 1
                await asyncio.sleep(20)
        if max(killed.values(), default=0) > 1:
            scene.reached["an archive killed twice"] += 1

    async def _reuse(self, scene: Herd, at: float) -> None:
        """The vendor says 402; the same key is used again a while later."""
        await asyncio.sleep(at)
        caller, name = self.dice.choice(CALLERS), f"reused{len(self.made)}"
        scene.vendor.script[name] = [Submission.REFUSED_HERE]
        for pause in (30.0, 60.0, 0.0):
            url = f"https://{caller}.example.com/{name}/ok"
            await scene.submit(name, caller=caller, key=name, callback_url=url).ended.wait()
            await asyncio.sleep(pause)

    async def _expire(self, scene: Herd) -> None:
        """A week later TTL deletes what has expired, while its caller has it delivered once more."""
        await scene.until(lambda: False, scene.settings.retention.total_seconds() + 90_000, step=3600)
        scene.calls += witness.last_looks(scene)
        now = START.timestamp() + scene.loop.time()
        for item in [*scene.table.everything(TASKS)]:
            task_id = item["task_id"]["S"]
            if "state" not in item or int(item.get("expires_at", {"N": "99999999999"})["N"]) > now:
                continue
            asked = scene.redeliver(scene.name_of(task_id).split("/")[0], item["caller"]["S"])
            await asyncio.sleep(self.dice.uniform(0, 0.1))
            gone = {one["task_id"]["S"] for one in scene.table.expire(TASKS, now)}
            scene.expired |= gone
            scene.reached["TTL beside a redelivery"] += bool(gone) and not asked.ended.is_set()
            await asked.ended.wait()


def _in(scene: Scene, *states: State) -> list[str]:
    items = scene.table.everything(TASKS)
    return [item["task_id"]["S"] for item in items if "state" in item and item["state"]["S"] in states]


def _running(scene: Scene) -> list[str]:
    return [scene.name_of(one) for one in _in(scene, *(state for state in State if not state.final))]


def _broken(scene: Herd) -> Iterator[str]:
    """List what must not be, whatever the trouble was, by all that is known of the world."""
    yield from checks.of_anything(scene)
    yield from (words for words in scene.vendor.oddities if "have not ended" in words)
    if scene.ended_at > HOUR + TASKS_END_WITHIN + ALL_ENDS_WITHIN and not scene.expired:
        yield f"it was not quiet before {scene.ended_at:.0f} s"
    for task_id in scene.table.novel:
        item = scene.table.peek(TASKS, task_id)
        if item is not None and "novelty" not in item:
            yield f"{scene.name_of(task_id)} has lost what another version wrote"


def _reached(scene: Herd) -> Counter[str]:
    """Count the rare states that can be told from what is left."""
    reached: Counter[str] = Counter()
    items = [item for item in scene.table.everything(TASKS) if "state" in item]
    reached["clocks that differ"] += any(scene.deployment.clocks)
    reached["another version's attribute kept to the end"] += any("novelty" in item for item in items)
    unknown = {post.name for post in scene.vendor.posts if post.seen is Submission.AMBIGUOUS}
    refused = {post.name for post in scene.vendor.posts if post.seen is Submission.REFUSED_HERE}
    taken = {post.name for post in scene.vendor.posts if post.seen is Submission.TAKEN}
    reached["a key used again after 402"] += bool({name for name in refused & taken if "reused" in name})
    for item in items:
        names = scene.names[item["task_id"]["S"]]
        adopted = "upstream_task_id" in item and names <= unknown - taken
        reached["an unknown outcome, then the vendor's webhook"] += adopted
    for visit in scene.receivers.visits:
        at = checks.age(visit.at)
        reached["a hand-over in the middle of a delivery"] += any(
            at < tick < visit.until for tick in scene.ticks
        )
    return reached


# --- as a command ---------------------------------------------------------------------------------


def played(seed: int) -> tuple[int, list[str], Counter[str], float]:
    """Play one history; give its seed, what is wrong, what it has reached, and the processor's seconds."""
    began = time.process_time()
    try:
        found, reached, _ = History(seed).play()
    except Exception as error:  # noqa: BLE001  # that is a finding too
        found, reached = [repr(error)], Counter()
    return seed, found, reached, time.process_time() - began


def swarm(first: int, *, cpu_s: float, least: int, workers: int) -> tuple[int, list[str], Counter[str]]:
    """Play histories until so many seconds of processors are used, and `least` of them in any case."""
    broken: list[str] = []
    reached: Counter[str] = Counter(dict.fromkeys(RARE, 0))
    done, used = 0, 0.0
    for seed, found, states, seconds in _work(first, workers, cpu_s=cpu_s, least=least):
        done, used = done + 1, used + seconds
        reached.update({name: 1 for name, count in states.items() if count})
        if found:
            broken.append("\n  ".join([f"python -m tests.sim.swarm --seed {seed} --histories 1", *found]))
        end = "\r" if sys.stderr.isatty() else "\n"
        print(f"{done} histories, {used:.0f} s, {len(broken)} broken", end=end, file=sys.stderr, flush=True)
    return done, broken, reached


def _work(
    first: int, workers: int, *, cpu_s: float, least: int
) -> Iterator[tuple[int, list[str], Counter[str], float]]:
    """Play seed after seed in processes, with no more begun than may be needed."""
    used, begun = 0.0, 0
    running: set[Future[tuple[int, list[str], Counter[str], float]]] = set()
    with ProcessPoolExecutor(workers, initializer=gc.freeze) as pool:
        while begun < least or used < cpu_s or running:
            while len(running) < workers and (begun < least or used < cpu_s):
                running.add(pool.submit(played, first + begun))
                begun += 1
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for one in ended:
                yield one.result()
                used += one.result()[3]


def main() -> int:
    """Play, and print what is wrong, and how often each rare state was reached."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.swarm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help="of the first history")
    parser.add_argument("--hours", type=float, metavar="N", help="of processors; default: one minute")
    parser.add_argument("--histories", type=int, metavar="N", help="so many, and no more")
    options = parser.parse_args()
    if options.histories == 1:
        found, _, scene = History(options.seed).play()
        with contextlib.suppress(BrokenPipeError):
            print("\n".join([*scene.injector.trace, "", *(found or ["nothing is broken"])]))
        return 1 if found else 0
    cpu_s = 0.0 if options.histories else (options.hours or 1 / 60) * 3600
    workers = os.cpu_count() or 1
    done, broken, reached = swarm(
        options.seed, cpu_s=cpu_s, least=options.histories or LEAST, workers=workers
    )
    print("\n" + "\n\n".join(broken))
    for name in RARE:
        print(f"{reached[name]:5} of {done}  {name}")
    never = [name for name in RARE if not reached[name]]
    print(
        f"{done} histories, {len(broken)} broken, {len(never)} rare states never reached, seed {options.seed}"
    )
    return 1 if broken or (never and not options.histories) else 0


if __name__ == "__main__":
    sys.exit(main())
