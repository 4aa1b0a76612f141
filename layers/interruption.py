"""Ctrl-C ends a program of this repository with exit code 130 and without a trace, from its first import on.

Python itself would show a trace, and imports take up to a second. So a program that is run calls `at_once`
before it imports what takes long; what has children or files to clear away runs its `main` by `orderly`.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

INTERRUPTED = 130
# A process that `multiprocessing` has spawned imports the program again, by the second name.
PROGRAM = frozenset({"__main__", "__mp_main__"})


def at_once() -> None:
    """From here on, let Ctrl-C end this process, and the processes of its pools, wherever they are."""
    signal.signal(signal.SIGINT, _leave)


def _leave(_number: int, _frame: object) -> NoReturn:
    if (pools := sys.modules.get("multiprocessing")) is not None:  # not imported for this alone
        for process in pools.active_children():
            process.kill()
    os._exit(INTERRUPTED)


def orderly(main: Callable[[], int]) -> NoReturn:
    """Be a program: at Ctrl-C let `main` end what it has started; its forks end at once."""
    os.register_at_fork(after_in_child=at_once)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    at_once()
    sys.exit(code)
