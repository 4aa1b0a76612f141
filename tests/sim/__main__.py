"""Every crash point: `python -m tests.sim` (`--help` lists its options).

Each scenario is played once as it should go, and every interaction of the use cases with their world is
written down. Then it is played again for each interaction and for each way in which that one may go wrong;
fresh ticks follow until nothing is left to do, and the invariants are checked from the outside. Then the
troubles that last (`tests.sim.trouble`) are played. Exit code 0 when all hold, 1 when one does not.

Many scenarios pass the same line of the product, so that most call sites go wrong in one way in dozens of
them. The whole command plays each of these; the test suite plays every call site in every way too, but in
three of its scenarios at most (`--scenarios 3`), spread over all scenarios by a hash.
"""

from layers.interruption import PROGRAM, at_once

if __name__ in PROGRAM:
    at_once()

import argparse
import contextlib
import gc
import json
import os
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from taskhook.archive import copy
from taskhook.core import ports
from taskhook.poller import invocation
from tests.sim import checks, trouble, witness
from tests.sim.injector import FaultInjector, Point, methods_of
from tests.sim.lasting import TROUBLES
from tests.sim.loop import seeded
from tests.sim.outcomes import OUTCOMES
from tests.sim.scenarios import SCENARIOS
from tests.sim.scene import Scene

SEED = 20261123
# Interactions tried per call site, of those that differ in what the tables hold; 3: first, last and middle.
EACH = 1
QUICK = 40
STORMS = 4  # histories per seed in which anything may go wrong at any time
STORM_SHARE = 0.02
PART = 10  # bytes; results have a few dozen
NEVER = {
    "Clock.now": "tells the time, and cannot fail",
    "CallerDirectory.cached": "looks into its own memory, and asks nothing of the world",
}


@dataclass
class Result:
    """What one replay, or several, have shown."""

    points: set[tuple[str, str, str]] = field(default_factory=set)  # scenario, call site, outcome
    methods: set[str] = field(default_factory=set)  # that were made to go wrong
    replays: int = 0
    violations: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: "Result") -> None:
        """Take another one in."""
        self.points |= other.points
        self.methods |= other.methods
        self.replays += other.replays
        self.violations += other.violations


def play(name: str, seed: int, *, plan: Point | None = None, storm: float = 0.0) -> Scene:
    """Play a scenario once."""
    scenario = SCENARIOS[name]
    beat = mock.patch.object(invocation, "BEAT", timedelta(seconds=scenario.beat))
    with seeded(seed) as dice, beat, mock.patch.object(copy, "PART", PART):
        scene = Scene(scenario.deployment(), FaultInjector(dice, plan, storm), scenario.beat)
        scene.run(scenario.script)
    return scene


type Calm = tuple[float, float]  # when the last task ended where nothing went wrong, and the last callback


def record(name: str, seed: int, *, each: int) -> tuple[list[Point], list[str], Calm]:
    """Play a scenario as it should go; give what may go wrong in it, what did unasked, and when it ended."""
    scene = play(name, seed)
    sites: dict[tuple[str, str], list[int]] = {}
    for (kind, site, _), number in scene.injector.seen.items():
        sites.setdefault((kind, site), []).append(number)
    points = [
        Point(number, site, outcome)
        for (kind, site), numbers in sites.items()
        for number in sorted(
            {
                numbers[min(round(step * (len(numbers) - 1) / max(each - 1, 1)), len(numbers) - 1)]
                for step in range(each)
            }
        )
        for outcome in OUTCOMES[kind]
    ]
    broken = [*checks.violations(scene), *checks.ends(scene, SCENARIOS[name].ends)]
    return sorted(points), broken, checks.ended_by(scene)


def replay(name: str, seed: int, points: Iterable[Point], calm: Calm) -> Result:
    """Play a scenario once for each point; `calm` is when it was through without any."""
    result = Result()
    for point in points:
        command = (
            f"python -m tests.sim --seed {seed} --scenario {name} --point '{point.number}:{point.outcome}'"
        )
        try:
            scene = play(name, seed, plan=point)
        except Exception as error:  # noqa: BLE001  # that is a finding too
            result.violations.append(
                {"scenario": name, **asdict(point), "command": command, "broken": [repr(error)], "trace": []}
            )
            continue
        result.replays += 1
        found = checks.violations(scene, point.outcome) + checks.too_late(scene, calm)
        if point.outcome in checks.HARMLESS:
            found += checks.ends(scene, SCENARIOS[name].ends)
        if scene.injector.diverged or not scene.injector.struck:
            found.append("the replay went another way than the record")
        else:
            result.points.add((name, point.site, point.outcome))
            result.methods |= {method for method, _ in scene.injector.struck}
        if found:
            result.violations.append(
                {
                    "scenario": name,
                    **asdict(point),
                    "seed": seed,
                    "command": command,
                    "broken": found,
                    "trace": scene.injector.trace[-80:],
                }
            )
    return result


def storms(name: str, seeds: Iterable[int]) -> Result:
    """Play a scenario with anything going wrong at any time."""
    result = Result()
    for seed in seeds:
        command = f"python -m tests.sim --seed {seed} --scenario {name} --storm"
        try:
            scene = play(name, seed, storm=STORM_SHARE)
        except Exception as error:  # noqa: BLE001  # that is a finding too
            result.violations.append(
                {"scenario": name, "seed": seed, "command": command, "broken": [repr(error)], "trace": []}
            )
            continue
        result.replays += 1
        found = checks.violations(scene, "thaw storm")
        if found:
            result.violations.append(
                {
                    "scenario": name,
                    "seed": seed,
                    "command": command,
                    "broken": found,
                    "trace": scene.injector.trace[-80:],
                }
            )
    return result


def wanted_methods() -> set[str]:
    """List every method of every port."""
    protocols = [
        value
        for value in vars(ports).values()
        if getattr(value, "_is_protocol", False) and value.__module__ == ports.__name__
    ]
    return {full for _, full in methods_of(*protocols)} - NEVER.keys()


def spread(points: dict[str, list[Point]], scenarios: int) -> dict[str, list[Point]]:
    """Leave every outcome of every call site in so many scenarios at most; a hash decides which."""
    where: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for name, some in points.items():
        for point in some:
            rank = zlib.crc32(f"{name} {point.site} {point.outcome}".encode())
            where[point.site, point.outcome].append((rank, name))
    kept = {of: {name for _, name in sorted(ranked)[:scenarios]} for of, ranked in where.items()}
    return {
        name: [point for point in some if name in kept[point.site, point.outcome]]
        for name, some in points.items()
    }


def explore(
    names: Iterable[str], seed: int, *, quick: bool, each: int, workers: int, scenarios: int | None = None
) -> tuple[Result, int]:
    """Record each scenario, and replay it point by point; with the number of points that there were.

    With `scenarios`, an outcome of a call site is played in so many of its scenarios at most.
    """
    result, points_there = Result(), 0
    recorded: dict[str, list[Point]] = {}
    calm: dict[str, Calm] = {}
    for name in names:
        recorded[name], broken, calm[name] = record(name, seed, each=each)
        if broken:
            command = f"python -m tests.sim --seed {seed} --scenario {name} --point 0:"
            result.violations.append(
                {
                    "scenario": name,
                    "outcome": "nothing went wrong",
                    "command": command,
                    "broken": broken,
                    "trace": [],
                }
            )
    if scenarios is not None:
        recorded = spread(recorded, scenarios)
    jobs: list[Any] = []
    for name, there in recorded.items():
        points = there[seed % QUICK :: QUICK] if quick else there
        points_there += len({(point.site, point.outcome) for point in points})
        jobs += [(replay, name, seed, points[start::8], calm[name]) for start in range(8)]
        if not quick:
            jobs.append((_storms_of, name, seed, range(STORMS)))
    for number, part in enumerate(_work(jobs, workers), start=1):
        result.add(part)
        end = "\r" if sys.stderr.isatty() else "\n"
        print(
            f"{number} of {len(jobs)} parts, {len(result.points)} points",
            end=end,
            file=sys.stderr,
            flush=True,
        )
    return result, points_there


def lasting(seed: int, workers: int) -> list[dict[str, Any]]:
    """Play the troubles that last; give those that break something."""
    with ProcessPoolExecutor(workers, initializer=_spare_the_collector) as pool:
        found = {name: pool.submit(trouble.play, name, seed) for name in TROUBLES}
        return [
            {
                "trouble": name,
                "seed": seed,
                "command": f"python -m tests.sim.trouble --seed {seed} {name}",
                "broken": job.result(),
                "trace": [],
            }
            for name, job in found.items()
            if job.result()
        ]


def _storms_of(name: str, seed: int, offsets: Iterable[int]) -> Result:
    return storms(name, [seed + 1 + offset for offset in offsets])


def _work(jobs: list[Any], workers: int) -> Iterator[Result]:
    if workers == 1:
        yield from (function(*arguments) for function, *arguments in jobs)
        return
    with ProcessPoolExecutor(workers, initializer=_spare_the_collector) as pool:
        pending = [pool.submit(function, *arguments) for function, *arguments in jobs]
        yield from (job.result() for job in pending)


def _spare_the_collector() -> None:
    """Look for garbage rarely: a replay leaves little behind, and all of what was imported stays."""
    gc.freeze()
    gc.set_threshold(100_000)


def main() -> int:
    """Explore, print, and write the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write points and violations there")
    parser.add_argument(
        "--seed", type=int, default=SEED, metavar="N", help=f"of everything that is drawn (default {SEED})"
    )
    parser.add_argument(
        "--scenario",
        choices=sorted(SCENARIOS),
        metavar="NAME",
        help=f"only this one, of {', '.join(SCENARIOS)}",
    )
    parser.add_argument("--quick", action="store_true", help=f"one of {QUICK} points: to see that it runs")
    parser.add_argument(
        "--each",
        type=int,
        default=EACH,
        metavar="N",
        help=f"interactions tried per call site (default {EACH})",
    )
    parser.add_argument(
        "--scenarios",
        type=int,
        metavar="N",
        help="play what may become of a call site in N of its scenarios at most (default: in all)",
    )
    parser.add_argument(
        "--points", action="store_true", help="the points alone, without the troubles that last"
    )
    parser.add_argument(
        "--point", metavar="N:OUTCOME", help="replay one interaction of --scenario, and print its trace"
    )
    parser.add_argument(
        "--storm",
        action="store_true",
        help="play --scenario once with anything going wrong, and print its trace",
    )
    parser.add_argument(
        "--history",
        type=Path,
        metavar="FILE",
        help="play --scenario once, and write what vendor, receivers and callers say, for tests.judge",
    )
    options = parser.parse_args()
    if options.point or options.storm or options.history:
        return _show(parser, options)
    began = time.monotonic()
    names = [options.scenario] if options.scenario else list(SCENARIOS)
    result, points_there = explore(
        names,
        options.seed,
        quick=options.quick,
        each=options.each,
        workers=os.cpu_count() or 1,
        scenarios=options.scenarios,
    )
    if not options.scenario and not options.quick and not options.points:
        result.violations += lasting(options.seed, os.cpu_count() or 1)
    never = sorted(wanted_methods() - result.methods) if not options.scenario and not options.quick else []
    for violation in result.violations:
        print("\n" + "\n  ".join([violation["command"], *violation["broken"], *violation["trace"]]))
    if never:
        print(f"\nnever went wrong, so nothing is known of them: {', '.join(never)}")
    missed = points_there - len(result.points)
    print(
        f"\n{len(result.points)} points in {len(names)} scenarios, {result.replays} replays, "
        f"{len(result.violations)} violations,"
        f" {missed} points missed, {time.monotonic() - began:.0f} s, seed {options.seed}"
    )
    if options.json:
        figures = {"points": len(result.points), "violations": len(result.violations), "missed": missed}
        options.json.write_text(
            json.dumps({**figures, "found": result.violations, "never_injected": never}, indent=2) + "\n"
        )
    return 1 if result.violations or never or missed else 0


def _show(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if not options.scenario:
        parser.error("--point, --storm and --history need --scenario")
    number, _, outcome = (options.point or "").partition(":")
    plan = Point(int(number) if outcome else -1, "", outcome) if options.point else None
    scene = play(options.scenario, options.seed, plan=plan, storm=STORM_SHARE if options.storm else 0.0)
    if options.history:
        options.history.write_text("\n".join(witness.lines(scene)) + "\n")
    found = checks.violations(scene, outcome or ("thaw storm" if options.storm else ""))
    if options.point:
        found += checks.too_late(scene, record(options.scenario, options.seed, each=EACH)[2])
    with contextlib.suppress(BrokenPipeError):
        print("\n".join([*scene.injector.trace, "", *(found or ["nothing is broken"])]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
