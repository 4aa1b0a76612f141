"""How long a cold start takes: import and first event as a whole process, beside floor and naive layer.

*Floor*: untrimmed boto3 and one DynamoDB client, with byte code. *Naive*: the same handlers from a layer as
`pip` or a plain `sam build` leaves it. All on the same interpreter with nothing else on its path, in turns;
each figure is the median of the ratios of its round. The first event of submit is a submit (tables and secret
in MiniStack, the vendor's emulator), that of poll a tick with nothing due. A submit whose media are looked at
stands beside: it starts two parsers.

The ratios are of a whole processor. Beside them are init and first event apart, as Lambda has them: init with
a whole processor, the event with the function's share of one, where control groups can be written. MEMORY in
the environment, such as `submit=512 poll=256`, gives other shares than template.yaml's sizes do.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from tests import layer
from tests.bench.burst import memory_wanted
from tests.bench.surroundings import QUIET, surroundings
from tests.local import share, stack

DRIVER = Path(__file__).with_name("first_event.py")
FLOOR = "import sys; sys.path.insert(0, sys.argv[1]); import boto3; boto3.client('dynamodb')"


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Build the layers and let the processes take turns."""
    del seed  # nothing here is drawn by lot
    with tempfile.TemporaryDirectory() as folder:
        ours = layer.build(Path(folder, "ours"))
        naive = layer.naive(Path(folder, "naive"))
        floor = layer.floor(Path(folder, "floor"))
        commands = {
            "floor": ["-c", FLOOR, str(floor)],
            "submit": _first_event("submit", ours),
            "submit_media": _first_event("submit", ours),
            "poll": _first_event("poll", ours),
            "naive": _first_event("submit", naive),
            "naive_poll": _first_event("poll", naive),
        }
        runs, phases = asyncio.run(_rounds(commands, 3 if quick else 21))
    figures: dict[str, Any] = {
        f"{name}_vs_floor": _median_ratio(runs[name], runs["floor"]) for name in commands if name != "floor"
    }
    figures["ms"] = {name: round(statistics.median(taken) * 1000) for name, taken in runs.items()}
    figures["processor_of_first_event"] = "whole" if share.refusal() else "Lambda's share"
    for name, taken in phases.items():
        init, event = (round(statistics.median(part) * 1000) for part in zip(*taken, strict=True))
        figures[f"{name}_ms"] = {"init": init, "first_event": event}
    print(json.dumps(figures), file=sys.stderr, flush=True)
    return figures


def _first_event(function: str, packages: Path) -> list[str]:
    event = {"submit": "submit", "poll": "tick"}[function]
    milliseconds = {"submit": 20_000, "poll": 150_000}[function]
    folder, sample = stack.ROOT / "functions" / function, (stack.ROOT / f"events/{event}.json").read_text()
    return [str(DRIVER), str(folder), str(packages), sample, str(milliseconds)]


type Runs = dict[str, list[float]]
type Phases = dict[str, list[tuple[float, float]]]


async def _rounds(commands: dict[str, list[str]], rounds: int) -> tuple[Runs, Phases]:
    """Run each command once a round, after one that warms the files.

    Give the seconds of each run, and of its phases.
    """
    runs: Runs = {name: [] for name in commands}
    phases: Phases = {name: [] for name in commands if name in {"submit", "submit_media", "poll"}}
    async with surroundings() as environment:
        for turn in range(rounds + 1):
            order = list(commands) if turn % 2 else list(reversed(commands))
            for name in order:
                command, variables = commands[name], dict(environment)
                if "poll" in name:
                    variables["TASKS_TABLE"] = QUIET
                elif "media" in name:
                    variables |= {"MEDIA_CHECKS": "enforce", "CALLBACK_TARGETS": "any"}
                    command = [
                        word.replace("https://example.com/", f"{environment['MODELLIX_VENDOR_URL']}/media/")
                        for word in command
                    ]
                    command = [
                        word.replace("new_actor", "actor").replace("original_scene", "scene")
                        for word in command
                    ]
                took = await asyncio.to_thread(_run, command, variables)
                if turn:
                    runs[name].append(took)
                if turn and name in phases:
                    phases[name].append(
                        await asyncio.to_thread(_run_in_phases, command, variables, name.split("_")[0])
                    )
    return runs, phases


def _run(command: list[str], environment: dict[str, str]) -> float:
    """Run one process; give its seconds from start to end."""
    began = perf_counter()
    process = subprocess.run(
        [sys.executable, "-I", "-S", "-B", *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
    )
    took = perf_counter() - began
    if process.returncode or not _well("".join(process.stdout.splitlines()[-1:])):
        raise RuntimeError(f"{command[1]} ended with {process.returncode}: {process.stdout} {process.stderr}")
    return took


def _run_in_phases(command: list[str], environment: dict[str, str], function: str) -> tuple[float, float]:
    """Run one process, the event under the function's share; give the seconds of init and of the event."""
    resource = stack.template()["Resources"][f"{function.capitalize()}Function"]
    memory_mb = memory_wanted().get(function, resource["Properties"]["MemorySize"])
    python = [sys.executable, "-I", "-S", "-B", *command]
    began = perf_counter()
    with _started(python, environment | {"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(memory_mb)}) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        init = perf_counter() - began
        if isinstance(process, share.FunctionProcess):
            process.throttle()
        began = perf_counter()
        process.stdin.write("\n")
        process.stdin.flush()
        lines = []
        for line in process.stdout:  # what the function logs comes before its answer
            event = perf_counter() - began
            lines.append(line)
            if _well(line):
                return init, event
    raise RuntimeError(f"{command[1]}: {lines}")


def _started(command: list[str], environment: dict[str, str]) -> "subprocess.Popen[str]":
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "text": True,
    }
    if share.refusal():
        return subprocess.Popen(command, env=environment, **pipes)
    groups = share.stack_of(Path(environment["TMPDIR"]))  # they go with the account
    return share.FunctionProcess(command, env=environment, stack=groups, tell=print, **pipes)


def _well(answer: str) -> bool:
    """Tell a task that was accepted, and a tick that had nothing to do; the floor says nothing."""
    return not answer or any(sign in answer for sign in ('"statusCode": 200', '"steps": {}'))


def _median_ratio(ours: list[float], floor: list[float]) -> float:
    return round(statistics.median(one / other for one, other in zip(ours, floor, strict=True)), 2)
