"""The history of an embedded stack, as it is ended."""

import json
from pathlib import Path

from tests import history
from tests.local.recorder import Recorder


def test_an_exchange_that_is_broken_off_after_the_end_is_none_of_the_history(tmp_path: Path) -> None:
    """A stack that is ended breaks off what is under way; each request would end with a trace."""
    recorder = Recorder(tmp_path / "history.jsonl")
    asked = history.end(1.0, quiet=False) | {"type": "vendor"}
    recorder.write(asked)
    recorder.close()
    recorder.write(asked)
    recorder.close()
    first, last = (json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines())
    assert (first, last["quiet"]) == (asked, False)
