"""Trouble that lasts: `python -m tests.sim.trouble [NAME…] [--seed N] [--list]`.

The crash points of `tests.sim` are short faults, one at a time, in small scenes. Here a vendor, receivers,
clocks or a table are in trouble for minutes or hours, with up to 1,000 tasks of several callers, over the
real adapter of the table and in virtual time. Afterwards everything must end within a stated time, no caller
may have been late for another's trouble, and what the vendor provably never got must not be called unknown.
"""

from layers.interruption import PROGRAM, at_once

if __name__ in PROGRAM:
    at_once()

import argparse
import contextlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from unittest import mock

from taskhook.core.record import ErrorCode, State
from taskhook.delivery import hosts
from taskhook.poller import watch
from tests.sim.lasting import FEW, TROUBLES
from tests.sim.loop import seeded
from tests.sim.machine import SEED, Machine, most_within
from tests.sim.spells import Post

FUNCTION_TIME = 150.0  # the poll function's own timeout


def play(name: str, seed: int = SEED) -> list[str]:
    """Play one, and list what is wrong."""
    trouble = TROUBLES[name]
    with _memory_for_few(trouble.small), seeded(seed), Machine(seed, **trouble.setting) as machine:
        found = machine.loop.run_until_complete(trouble.script(machine))
        return [*found, *violations(machine, most_unknown=trouble.most_unknown, budget=trouble.budget)]


@contextlib.contextmanager
def _memory_for_few(really: bool) -> Iterator[None]:  # noqa: FBT001  # a switch of its own name
    """Let the poller keep few things in memory, so that a thousand tasks are like a hundred thousand."""
    bounds = (
        (watch, "LOADED", FEW),
        (hosts, "CALLER_WAITING", FEW),
        (hosts, "TOTAL_WAITING", 2 * FEW),
        (hosts, "WAITING_PER_SLOT", 2),
    )
    with contextlib.ExitStack() as room:
        for module, name, bound in bounds if really else ():
            room.enter_context(mock.patch.object(module, name, bound))
        yield


def violations(machine: Machine, *, most_unknown: int = 0, budget: bool = True) -> Iterator[str]:
    """List what must not be, whatever the trouble was."""
    posts: dict[str, list[Post]] = defaultdict(list)
    for post in machine.vendor.posts:
        posts[post.name].append(post)
    for name, made in posts.items():
        if sum(post.possible for post in made) > 1:
            yield f"{name} may have been paid more than once"
    tasks = machine.tasks()
    for name, task in tasks.items():
        yield from (
            f"{name} {words}"
            for words in _of_end(task, posts[name], reported=name in machine.vendor.reported)
        )
    unknown = sum(task.get("error") == ErrorCode.SUBMISSION_UNKNOWN for task in tasks.values())
    if unknown > most_unknown:
        yield f"{unknown} tasks are unknown, not {most_unknown} at most"
    for name, messages in machine.receivers.messages.items():
        if len(messages) > 1:
            yield f"{name} was called back with {len(messages)} messages"
    allowed = machine.settings.requests_per_minute
    if budget and (most := most_within(machine.vendor.requests, 60.0)) > allowed:
        yield f"{most} requests in a minute of {allowed}"
    yield from _of_functions(machine)


def _of_end(task: dict[str, Any], posts: list[Post], *, reported: bool) -> Iterator[str]:
    """Compare a task's end with what the vendor got, and with what it said."""
    error = task.get("error")
    if task["state"] == State.SUCCESS and not reported:
        yield "is a success that the vendor never reported"
    if error == ErrorCode.SUBMISSION_UNKNOWN:
        if not any(post.possible for post in posts):
            yield "is called unknown, and the vendor never got it"
    elif error is not None and not (
        error == ErrorCode.UPSTREAM_REFUSED and any(post.refused for post in posts)
    ):
        yield f"ended as {error}: {json.loads(task.get('message', '{}')).get('message')}"


def _of_functions(machine: Machine) -> Iterator[str]:
    """List what an operator would see: crashes, and functions that were killed for their time."""
    for event, facts in machine.reported.events:
        if event in {"task.crashed", "task.unreadable"}:
            yield f"{event} {facts}"
    for run in machine.runs:
        if isinstance(run.answer, Exception):
            yield f"an invocation failed: {run.answer!r}"
        if (run.ended or machine.loop.time()) - run.began > FUNCTION_TIME:
            yield f"an invocation that began at {run.began:.0f} outlived its function"


def main() -> int:
    """Play, and print what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.trouble",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="none: all")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N")
    parser.add_argument("--list", action="store_true", help="name them, and play none")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - TROUBLES.keys()):
        parser.error(f"no such trouble: {', '.join(unknown)}")
    if options.list:
        print("\n".join(TROUBLES))
        return 0
    broken = 0
    for name in options.names or TROUBLES:
        began = time.process_time()
        found = play(name, options.seed)
        broken += bool(found)
        print(
            f"{name:40} {time.process_time() - began:5.1f} s  {'; '.join(found[:4]) or 'holds'}", flush=True
        )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
