"""The official `runwayml` SDK where the way to the deployment breaks: it repeats by itself, and pays once."""

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.conftest import ANSWERED_WITHIN_S, Inbox, Stack, eventually
from tests.e2e.test_vendors import Control, run

# Their fixtures: a module's own are found by name.
from tests.e2e.test_vendors import controls as controls  # noqa: PLC0414


class _Breaking(http.server.BaseHTTPRequestHandler):
    """Passes a request on; of the first so many POSTs, the client gets no answer."""

    upstream = ""
    in_flight = False  # break before the answer is there, not after
    left = 0
    lock = threading.Lock()
    counts: list[str]  # what the client says of its repeats, by POST

    def do_POST(self) -> None:
        """Pass it on, once."""
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        with self.lock:
            self.counts.append(self.headers.get("x-stainless-retry-count", ""))
            breaks, type(self).left = self.left > 0, self.left - 1
        if breaks and self.in_flight:
            threading.Thread(target=self._forward, args=(headers, body)).start()
            self._break_off()
            return
        answer = self._forward(headers, body)
        if breaks:
            self._break_off()
            return
        self.send_response(answer.status_code)
        for name in ("content-type", "x-should-retry", "retry-after"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _forward(self, headers: dict[str, str], body: bytes) -> httpx.Response:
        return httpx.post(
            self.upstream + self.path,
            headers=headers,
            content=body,
            timeout=ANSWERED_WITHIN_S,
            trust_env=False,
        )

    def _break_off(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def breaking(upstream: str, *, times: int, in_flight: bool) -> Iterator[tuple[str, list[str]]]:
    """Serve a way that breaks; give its origin, and the counts that the client has sent."""
    counts: list[str] = []
    facts = {"upstream": upstream, "left": times, "in_flight": in_flight, "counts": counts}
    handler = type("Breaking", (_Breaking,), facts)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", counts
        server.shutdown()


@pytest.mark.parametrize("in_flight", [False, True], ids=["after the answer", "in flight"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_repeat_is_recognised(
    stack: Stack, inbox: Inbox, controls: dict[str, Control], marker: str, *, times: int, in_flight: bool
) -> None:
    """The SDK sends no key, but counts its repeats: they get the first answer, and one callback comes."""
    if in_flight:
        controls["runway"].inject("slow", on="submit", seconds=3.0)
    image = f"https://media.invalid/actor.jpg?{marker}"
    with breaking(stack.endpoint, times=times, in_flight=in_flight) as (origin, counts):
        said = run("runway_client.py", origin, stack.token, inbox.url(marker), image, "yes")
    assert counts == [str(number) for number in range(times + 1)]
    task_id = said["submit"]["id"]
    [delivery] = eventually(lambda: inbox.deliveries(task_id))
    assert delivery["verified"]
    assert len(controls["runway"].paid(marker)) == 1


def test_a_full_vendor_is_no_error(
    stack: Stack, inbox: Inbox, controls: dict[str, Control], marker: str
) -> None:
    """Its 429 has the task wait here: the SDK repeats nothing, and the task is taken as soon as it can be."""
    controls["runway"].inject("429", on="submit")
    image = f"https://media.invalid/actor.jpg?{marker}"
    said = run("runway_client.py", stack.endpoint, stack.token, inbox.url(marker), image, "yes")
    assert eventually(lambda: inbox.deliveries(said["submit"]["id"]))
    assert len(controls["runway"].paid(marker)) == 1
