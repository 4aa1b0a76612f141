"""One cold start, as a process: `python -I -S -B first_event.py FUNCTION LAYER EVENT MILLISECONDS`.

Nothing is on its path but the standard library, the layer and the function; it imports the handler, says
`ready`, and serves one event once its standard input holds a line, or has ended.
"""

import json
import sys


class Context:
    """What the handlers ask of Lambda's context."""

    def __init__(self, milliseconds: int) -> None:
        self._milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        """Tell the time that is left."""
        return self._milliseconds


if __name__ == "__main__":
    function, layer, event, milliseconds = sys.argv[1:]
    sys.path[:0] = [function, layer]
    import app  # type: ignore[import-not-found]

    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(app.handler(json.loads(event), Context(int(milliseconds)))))
