"""The program `taskhook`, also `python -m taskhook`: Ctrl-C ends it at once, from its first import on."""

import os
import signal
import sys
from typing import NoReturn


def command() -> NoReturn:
    """Be the program."""
    signal.signal(signal.SIGINT, _interrupted)
    from taskhook import cli  # noqa: PLC0415  # it takes a second, in which Ctrl-C would show a trace

    sys.exit(cli.main())


def _interrupted(_number: int, _frame: object) -> NoReturn:
    """Leave at once: a request under way is in a thread that cannot be stopped."""
    os.write(
        sys.stderr.fileno(),
        b"\ntaskhook: interrupted; `callers list` and `vendors list` tell what was done\n",
    )
    os._exit(130)


if __name__ == "__main__":
    command()
