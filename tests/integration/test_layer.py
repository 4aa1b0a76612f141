"""The layer: what it weighs, what is in it, and that a cold start loads nothing new."""

import json
import subprocess
import sys
from importlib import metadata
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

import pytest

from tests import layer
from tests.bench.surroundings import QUIET, surroundings
from tests.integration.test_template import GRANTS
from tests.local import stack

# A commit that raises it says why, after measuring again: `make bench ARGS="coldstart size"`.
ZIPPED_MB = 19.7  # of the larger architecture; a layer more than a tenth above it fails
# by functions that answer no HTTP
NEVER_LOADED = {"taskhook.api", "taskhook.api.routes", "aws_lambda_powertools.event_handler"}
COSTS_NOTHING = {"encodings.utf_8_sig"}  # a hundred lines
ARCHITECTURES = ("arm64", "x86_64")
WITHOUT_CLIENT = {"logs", "xray"}  # rights of Lambda itself


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build one layer for each architecture."""
    return {name: layer.build(tmp_path_factory.mktemp(name), name) for name in ARCHITECTURES}


def test_two_builds_are_one_layer(layers: dict[str, Path], tmp_path: Path) -> None:
    """Names, modes, times and contents follow from the commit alone."""
    assert layer.digest(layer.build(tmp_path)) == layer.digest(layers[stack.ARCHITECTURE])


def test_it_has_not_grown(layers: dict[str, Path]) -> None:
    """A layer that grew by more than a tenth needs a commit that says why."""
    assert max(len(layer.zipped(built)) for built in layers.values()) / 1_000_000 <= ZIPPED_MB * 1.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_modules_are_for_its_processor(layers: dict[str, Path], architecture: str) -> None:
    """One wrong wheel, and every cold start fails."""
    machines = {module.name: layer.machine(module) for module in layers[architecture].rglob("*.so")}
    assert set(machines.values()) == {architecture}
    assert len(machines) >= 9


def test_compiled_modules_load(layers: dict[str, Path]) -> None:
    """Nothing that the loader needs went with what a debugger needs."""
    packages = layers[stack.ARCHITECTURE]
    names = [
        ".".join(module.relative_to(packages).parts).split(".cpython")[0] for module in packages.rglob("*.so")
    ]
    isolated(f"import importlib; [importlib.import_module(name) for name in {names}]", packages)


def test_all_of_it_has_byte_code(layers: dict[str, Path]) -> None:
    """Compiled for the target's Python, and believed without a look at the source."""
    for source in layers["arm64"].rglob("*.py"):
        compiled = source.parent / "__pycache__" / f"{source.stem}.cpython-313.pyc"
        header = compiled.read_bytes()[:8]
        assert (header[:4], header[4]) == (MAGIC_NUMBER, 0b01), source


def test_licences_and_versions_stay(layers: dict[str, Path]) -> None:
    """Every package says what it is and under which licence."""
    distributions = list(metadata.distributions(path=[str(layers["arm64"])]))
    locked = [line for line in (layer.SOURCE / "requirements.txt").read_text().splitlines() if "==" in line]
    assert {f"{one.name}=={one.version}".replace("_", "-") for one in distributions} <= {
        line.split(" ")[0] for line in locked
    }
    for info in layers["arm64"].glob("*.dist-info"):
        names = {path.name.upper() for path in info.rglob("*") if path.is_file()}
        assert any(name.startswith(("LICEN", "COPYING")) for name in names), info.name


def test_botocore_describes_what_the_roles_may_use(layers: dict[str, Path]) -> None:
    """A service that a role gained and the layer does not know would fail in the cloud alone."""
    rights = {
        action.partition(":")[0]
        for role in ("SubmitRole", "PollRole", "ArchiveRole")
        for action, _ in GRANTS[role]
    }
    described = {path.name for path in (layers["arm64"] / "botocore/data").iterdir() if path.is_dir()}
    assert described == rights - WITHOUT_CLIENT


async def test_a_poller_loads_nothing_that_answers_http(layers: dict[str, Path]) -> None:
    """Import and first event: one import in the wrong place would make every cold start longer."""
    report = "import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules))\n"
    driver = report + (stack.ROOT / "tests/bench/first_event.py").read_text()
    async with surroundings() as environment:
        folder, sample = stack.ROOT / "functions/poll", (stack.ROOT / "events/tick.json").read_text()
        environment |= {"TASKS_TABLE": QUIET}
        printed = isolated(
            driver, folder, layers[stack.ARCHITECTURE], sample, "150000", environment=environment
        )
    [*_, answer, modules] = printed.splitlines()
    assert '"steps": {}' in answer, answer
    assert "taskhook.wiring" in modules.split()
    assert set(modules.split()) & NEVER_LOADED == set()


@pytest.mark.parametrize(
    ("function", "event", "looks"),
    [("submit", "submit", "off"), ("submit", "submit", "record"), ("poll", "tick", "off")],
)
async def test_the_first_event_loads_no_module_and_looks_at_nothing_old(
    layers: dict[str, Path], function: str, event: str, looks: str
) -> None:
    """Init has a whole processor, an event a seventh of one."""
    report = """
import atexit, gc, json, sys
loaded = lambda: sorted(set(sys.modules) - at_init)
atexit.register(lambda: print(json.dumps([loaded(), gc.isenabled(), gc.get_freeze_count()])))
"""
    driver = (stack.ROOT / "tests/bench/first_event.py").read_text()
    driver = report + driver.replace('print("ready"', 'at_init = set(sys.modules); print("ready"')
    folder, sample = stack.ROOT / "functions" / function, (stack.ROOT / f"events/{event}.json").read_text()
    sample = sample.replace("new_actor", "actor").replace("original_scene", "scene")
    async with surroundings() as environment:
        sample = sample.replace("https://example.com", f"{environment['MODELLIX_VENDOR_URL']}/media")
        environment |= {"MEDIA_CHECKS": looks, "CALLBACK_TARGETS": "any"}
        printed = isolated(
            driver, folder, layers[stack.ARCHITECTURE], sample, "20000", environment=environment
        )
    [*_, answer, at_exit] = printed.splitlines()
    assert '"statusCode": 200' in answer or '"steps": {}' in answer, answer
    loaded, collects, frozen = json.loads(at_exit)
    assert set(loaded) - COSTS_NOTHING == set()
    assert (collects, frozen > 10_000) == (True, True)


def isolated(program: str, *arguments: Any, environment: dict[str, str] | None = None) -> str:
    """Run a program over the standard library and its first argument's packages; return what it printed."""
    paths = "import sys; sys.path[:0] = [sys.argv[-1]]\n" if len(arguments) == 1 else ""
    run = [sys.executable, "-I", "-S", "-B", "-c", paths + program, *map(str, arguments)]
    done = subprocess.run(
        run, env=environment or {}, stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
