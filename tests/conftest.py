"""What holds for every test: which process runs it (`make test`), and what becomes of one that hangs.

A test that hangs fails alone, and says where everything stood; the run goes on to pytest's summary.
pytest-timeout says which test has how long. What happens then is done here: its `thread` would end the whole
run, and the error that its `signal` raises is lost where a task of the event loop happens to run.
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

# What takes longest begins first, or one process would be busy with it when all others have ended.
LONGEST = (
    "tests/e2e/test_kills.py",
    "tests/e2e/test_load.py",
    "tests/unit/test_sim.py",
    "tests/e2e/test_operations.py",
    "tests/e2e/",
    "tests/unit/test_trouble.py",
    "tests/unit/test_swarm.py",
    "tests/unit/test_model.py",
    "tests/integration/",
    "",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first where several processes share the run, each of them taking file by file."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: next(n for n, name in enumerate(LONGEST) if item.nodeid.startswith(name)))


class StuckError(KeyboardInterrupt):
    """A test is interrupted; an event loop passes on this kind of error alone, whichever task it strikes."""


def pytest_configure() -> None:
    """Take Ctrl-C as a terminal would send it.

    A shell starts what runs in its background with SIGINT ignored, and every program that a test starts would
    inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
