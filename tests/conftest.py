"""What holds for every test: which process runs it where several do (`make test`), and what becomes of a hanging one.

A test that hangs fails alone, and says where everything stood; the run goes on and ends with pytest's own summary.
pytest-timeout says which test has how long. What happens then is done here: its `thread` would end the whole run,
and the error that its `signal` raises is lost where a task of the event loop happens to run.
"""

import asyncio
import contextlib
import faulthandler
import signal
import sys
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("patient", deadline=None)  # a loaded machine is no finding
settings.load_profile("patient")

LIMIT = pytest.StashKey[float]()
AGAIN_S = 30.0  # what is tidied up after the first interruption may hang too

# The groups that take longest begin first, or one process would be busy with them when all others have ended.
LONGEST = ("stack", "tests/e2e/test_load.py", "tests/e2e/test_install.py", "tests/unit/test_sim.py")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep a file's tests in one process, and in one all that use the stack.

    The stack is then deployed once, and one test at a time breaks its vendor.
    """
    if item.get_closest_marker("xdist_group") is None:
        needs_stack = "stack" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("stack" if needs_stack else item.nodeid.partition("::")[0]))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest groups, where several processes share the run."""
    if hasattr(config, "workerinput"):
        items.sort(
            key=lambda item: LONGEST.index(group) if (group := _group(item)) in LONGEST else len(LONGEST)
        )


def _group(item: pytest.Item) -> str:
    """Name the tests among which an item stays, in one process."""
    marker = item.get_closest_marker("xdist_group")
    assert marker is not None
    name: str = marker.args[0]
    return name


class StuckError(KeyboardInterrupt):
    """A test is interrupted; an event loop passes on this kind of error alone, whichever of its tasks it strikes."""


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """Note how long each phase of a test may take, and keep pytest-timeout from more."""
    item.stash[LIMIT] = settings.timeout
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Limit what comes before a test."""
    return (yield from _limited(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Limit a test."""
    return (yield from _limited(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Limit what comes after a test."""
    return (yield from _limited(item))


def _limited(item: pytest.Item) -> Generator[None, Any, Any]:
    """Interrupt a phase of a test when its time is over, and again while it goes on."""
    limit = item.stash.get(LIMIT, 0.0)
    before = signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, limit, AGAIN_S)
    try:
        return (yield)
    except StuckError:
        reason = f"stuck: not through after {limit:.0f} s; where everything stood is on stderr"
        raise pytest.fail.Exception(reason, pytrace=False) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _interrupt(*_: object) -> None:
    """Say where each thread and each task stands, and interrupt the main thread."""
    faulthandler.dump_traceback(2)
    with contextlib.suppress(RuntimeError):  # no loop runs
        for task in asyncio.all_tasks():
            task.print_stack(file=sys.stderr)
    raise StuckError
