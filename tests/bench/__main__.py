"""The figures of tests/README.md: `python -m tests.bench [NAME…] [--json FILE] [--quick]`.

Exit code 0 when everything asked for was measured, 1 when something broke; never by a figure.
"""

from layers.interruption import PROGRAM, at_once, orderly

if __name__ in PROGRAM:
    at_once()

import argparse
import datetime as dt
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

BENCHES = (
    "archive",
    "arrivals",
    "burst",
    "coldstart",
    "cost",
    "delivery",
    "ended",
    "engine",
    "kills",
    "lateness",
    "load",
    "media",
    "quota",
    "size",
    "submit",
    "sweep",
    "trouble",
)
SEED = 20261123


def main() -> int:
    """Measure, print, and merge into one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; none: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--quick", action="store_true", help="fewer tasks and rounds: to see that it runs, not to quote"
    )
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(BENCHES)):
        parser.error(f"no such bench: {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    figures: dict[str, Any] = {}
    broken = False
    for name in options.names or BENCHES:
        print(f"== {name}", file=sys.stderr, flush=True)
        try:
            figures[name] = importlib.import_module(f"tests.bench.{name}").measure(
                quick=options.quick, seed=SEED
            )
        except Exception as error:  # noqa: BLE001  # one broken bench does not hide the others
            print(f"{name} broke: {type(error).__name__}: {error}", file=sys.stderr)
            broken = True
    figures["meta"] = {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "seed": SEED,
    }
    printed = json.dumps(figures, indent=2)
    print(printed)
    if options.json:
        options.json.write_text(printed + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    orderly(main)
