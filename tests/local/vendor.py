"""An emulator of Modellix's task API: real HTTP on loopback, limits, files, and faults on demand."""

from layers.interruption import PROGRAM, at_once

if __name__ in PROGRAM:
    at_once()

import argparse
import asyncio
import contextlib
import json
import math
import os
import signal
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Middleware

from tests.local.bulk import Bulk
from tests.local.server import ANSWER_HEADERS, DroppedError, control_body, enveloping, json_response, serving
from tests.modellix.faults import Fault, Faults, FaultTarget
from tests.modellix.vendor import MODELS, Modellix, Results, VendorProfile, VendorTask
from tests.modellix.words import RefusedError, minified, success_body

MEDIA = Path(__file__).parent / "media"
SAMPLES = ("actor.jpg", "scene.mp4")
RESULT = MEDIA / "result.mp4"
RESERVED_PROVIDERS = frozenset({"tasks", "apikey", "models", "team", "media"})


class VendorEmulator:
    """The server around one vendor: it takes requests, holds polls, calls webhooks, lets faults strike."""

    core: type[Modellix] = Modellix

    def __init__(self, profile: VendorProfile | None = None) -> None:
        """Start with no task and no fault."""
        self.vendor = self.core(profile, sample_bytes=RESULT.stat().st_size)
        self.faults = Faults()
        # by task: what held polls wait for
        self._ended: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._webhooks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    def app(self, *listening: Middleware) -> web.Application:
        """Build the application that serves this state, and `listening` to it."""
        middlewares = [*listening, enveloping(self.refusal)]
        app = web.Application(middlewares=middlewares, client_max_size=16 * 2**20)
        app.router.add_post("/_control/faults", self._add_fault)
        app.router.add_delete("/_control/faults", self._clear_faults)
        app.router.add_post("/_control/results", self._set_results)
        app.router.add_get("/_control", self._control)
        app.router.add_get("/_control/counts", self._counts)
        self.add_routes(app.router)
        app.router.add_get("/files/{name}", self._result_file)
        app.router.add_get("/media/{name}", self._sample)
        app.cleanup_ctx.append(self._lifetime)
        return app

    # --- the vendor's form ------------------------------------------------------------------------

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the vendor's own paths."""
        router.add_get("/api/v1/apikey/validate", self._validate_key)
        router.add_get("/api/v1/models", self._models)
        router.add_get("/api/v1/team/balance", self._balance)
        router.add_get("/api/v1/tasks/{task_id}", self.answer_task)
        router.add_post("/api/v1/{provider}/{model}", self.take_submit)
        router.add_post("/api/v1/{provider}/{model}/async", self.take_submit)

    def refusal(self, status: int, message: str) -> bytes:
        """Render an error."""
        return minified({"code": status, "message": message})

    def model_of(self, request: web.Request, body: bytes) -> str:
        """Read which model is asked for; raises RefusedError for one that the vendor does not have."""
        del body
        slug = f"{request.match_info['provider']}/{request.match_info['model']}"
        self.vendor.check_model(slug)
        return slug

    # --- control ----------------------------------------------------------------------------------

    async def _add_fault(self, request: web.Request) -> web.Response:
        self.faults.inject(await control_body(request, Fault))
        return json_response(success_body({}))

    async def _clear_faults(self, _: web.Request) -> web.Response:
        self.faults.clear()
        return json_response(success_body({}))

    async def _set_results(self, request: web.Request) -> web.Response:
        self.vendor.set_results(await control_body(request, Results))
        return json_response(success_body({}))

    async def _control(self, _: web.Request) -> web.Response:
        return json_response(minified(self.vendor.snapshot()))

    async def _counts(self, _: web.Request) -> web.Response:
        return json_response(minified(self.vendor.counts()))

    # --- the vendor's calls -----------------------------------------------------------------------

    async def take_submit(self, request: web.Request) -> web.StreamResponse:
        """Take a task."""
        if request.match_info.get("provider") in RESERVED_PROVIDERS:
            raise web.HTTPNotFound
        self.vendor.submits += 1
        body = await request.read()  # all of it first: a client that hangs up later has submitted
        key = self.admit(request)
        fault = await self.strike("submit", request)
        slug = self.model_of(request, body)
        if fault is not None and fault.fault == "code_nonzero":
            return _code_nonzero(fault)
        webhook_url, origin = request.headers.get("X-Webhook-URL"), str(request.url.origin())
        task = self.vendor.take(key, slug, body, webhook_url=webhook_url, origin=origin, fault=fault)
        self._expect_end(task)
        _interrupt(fault)
        if fault is not None and fault.fault == "not_json":
            return _not_json()
        # By a fault it is taken and paid, yet nothing in the answer names the task.
        return json_response(self.vendor.accepted(task, named=fault is None or fault.fault != "wrong_id"))

    async def answer_task(self, request: web.Request) -> web.StreamResponse:
        """Tell how far a task is."""
        task_id = request.match_info["task_id"]
        self.vendor.count_poll(task_id)
        self.admit(request)
        hold_s = self.vendor.hold_s(request.query.get("wait", ""), request.query.get("timeout"))
        fault = await self.strike("task", request)
        task = self.vendor.known(task_id)
        _interrupt(fault)
        if fault is not None and fault.fault == "not_json":
            return _not_json()
        if fault is not None and fault.fault == "code_nonzero":
            return _code_nonzero(fault)
        if fault is not None and fault.ends_badly:
            self.vendor.end(task, fault)
            self.see_end(task)
        if hold_s and not self.vendor.has_ended(task):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(hold_s):
                    await self._ended[task.id].wait()
        answer = self.vendor.answer(task)
        if fault is not None and fault.fault == "wrong_id":
            others = reversed(self.vendor.tasks)
            other = next((id_ for id_ in others if id_ != task.id), f"task-{uuid.uuid4().hex}")
            answer = answer.replace(b'"%b"' % task.id.encode(), b'"%b"' % other.encode())
        return json_response(answer)

    async def _validate_key(self, request: web.Request) -> web.Response:
        known = _bearer(request) in self.vendor.api_keys
        if known:
            self.admit(request)
        return json_response(success_body({"is_valid": known}))

    async def _models(self, request: web.Request) -> web.Response:
        self.admit(request)
        models = [
            {
                "slug": slug,
                "type": "video-to-video",
                "docs_url": f"https://docs.modellix.ai/{slug.replace('.', '-')}",
                "description": "Replaces or animates the character of a video.",
            }
            for slug in MODELS
        ]
        return json_response(minified({"models": models}))

    async def _balance(self, request: web.Request) -> web.Response:
        self.admit(request)
        fault = await self.strike("balance", request)
        _interrupt(fault)
        if fault is not None and fault.fault == "not_json":
            return _not_json()
        return json_response(success_body({"balance": 100.1234}))

    async def _result_file(self, request: web.Request) -> web.StreamResponse:
        fault = await self.strike("file", request)
        task = self.vendor.result(request.match_info["name"].removesuffix(".mp4"))
        if task is None:
            raise web.HTTPNotFound
        if task.result_bytes is not None and (fault is None or fault.fault in {"slow", "drop_after"}):
            bulk = Bulk(task.id, task.result_bytes)
            dropped = fault is not None and fault.fault == "drop_after"
            answer = await bulk.serve(
                request, rate=self.vendor.results.rate, until=bulk.size // 2 if dropped else None
            )
            _interrupt(fault)
            return answer
        return await _file(request, RESULT, fault)

    async def _sample(self, request: web.Request) -> web.StreamResponse:
        fault = await self.strike("media", request)
        if request.match_info["name"] not in SAMPLES:
            raise web.HTTPNotFound
        return await _file(request, MEDIA / request.match_info["name"], fault)

    # --- keys and faults --------------------------------------------------------------------------

    def admit(self, request: web.Request) -> str:
        """Return the caller's key once it is known and its window has room; the answer says how much."""
        key = _bearer(request)
        request[ANSWER_HEADERS] = self.vendor.admit(key)
        return key

    async def strike(self, target: FaultTarget, request: web.Request) -> Fault | None:
        """Use up the next fault for this call; those without a task happen here, the rest is returned."""
        fault = self.faults.strike(target)
        if fault is None:
            return None
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        if fault.fault == "drop_before":
            raise DroppedError
        if fault.status is not None:
            request[ANSWER_HEADERS] = self._status_fault_headers(fault, request)
            raise RefusedError(fault.status, fault.message or "injected fault")
        return fault

    def _status_fault_headers(self, fault: Fault, request: web.Request) -> dict[str, str]:
        headers: dict[str, str] = request.get(ANSWER_HEADERS, {})
        if fault.status == 429 and ANSWER_HEADERS in request:
            # The next call would be served, so that is what the headers say.
            headers |= {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(math.ceil(time.time()) + 1)}
            if self.vendor.profile.retry_after:
                headers |= {"Retry-After": "1"}
        if fault.headers is not None:
            headers = fault.headers
        if fault.status is not None and 300 <= fault.status < 400:
            # To itself: a client that follows shows up as one more request.
            headers = {"Location": str(request.url), **headers}
        return headers

    # --- what happens at a task's end -------------------------------------------------------------

    def _expect_end(self, task: VendorTask) -> None:
        self._timers[task.id] = asyncio.get_running_loop().call_later(
            task.ends_at - self.vendor.now(), self.see_end, task
        )

    def see_end(self, task: VendorTask) -> None:
        """Answer the polls that are held for a task that has ended, and call its webhook."""
        if not self.vendor.has_ended(task):  # the loop's clock is a little ahead of the vendor's
            self._expect_end(task)
        elif (timer := self._timers.pop(task.id, None)) is not None:
            timer.cancel()
            self._ended[task.id].set()
            if task.webhook_url is not None and self._session is not None:
                call = asyncio.get_running_loop().create_task(
                    self._call_webhook(task, task.webhook_url, self._session)
                )
                self._webhooks.add(call)
                call.add_done_callback(self._webhooks.discard)

    async def _call_webhook(self, task: VendorTask, url: str, session: aiohttp.ClientSession) -> None:
        """Post the vendor's native webhook, again only after 429, 5xx or a network error."""
        event = "succeeded" if task.outcome == "success" else task.outcome
        headers = {
            "Content-Type": "application/json",
            "X-Modellix-Event": f"prediction.task.{event}",
            "X-Modellix-Task-ID": task.id,
            "X-Modellix-Delivery-ID": uuid.uuid4().hex,
        }
        for retry_count, wait_s in enumerate((0.0, *self.vendor.profile.webhook_waits)):
            await asyncio.sleep(wait_s)
            task.webhook_attempts += 1
            attempt = headers | {"X-Modellix-Retry-Count": str(retry_count)}
            try:
                async with session.post(
                    url, data=self.vendor.answer(task), headers=attempt, allow_redirects=False
                ) as response:
                    if response.status != 429 and response.status < 500:
                        return
            except (aiohttp.ClientError, TimeoutError):
                continue

    async def _lifetime(self, _: web.Application) -> AsyncIterator[None]:
        """Own what outlives a request: the webhooks' client, those under way, the tasks' timers."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as self._session:
            yield
            for timer in self._timers.values():
                timer.cancel()
            for call in self._webhooks:
                call.cancel()
            await asyncio.gather(*self._webhooks, return_exceptions=True)
        self._session = None


def _bearer(request: web.Request) -> str:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _interrupt(fault: Fault | None) -> None:
    """Break off what has had its effect, where the fault says so."""
    if fault is not None and fault.fault == "drop_after":
        raise DroppedError


def _not_json() -> web.Response:
    return web.Response(text="<html><body>upstream connect error</body></html>", content_type="text/html")


def _code_nonzero(fault: Fault) -> web.Response:
    return json_response(minified({"code": 500, "message": fault.message or "Internal error"}))


async def _file(request: web.Request, path: Path, fault: Fault | None) -> web.StreamResponse:
    """Serve a file or a range; `drop_after` breaks off half-way, `not_json` is a page instead of media."""
    if fault is not None and fault.fault == "not_json":
        return _not_json()
    if fault is not None and fault.fault == "drop_after":
        content = await asyncio.to_thread(path.read_bytes)
        response = web.StreamResponse(
            headers={"Content-Length": str(len(content)), "Content-Type": "video/mp4"}
        )
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        raise DroppedError
    return web.FileResponse(path)


# --- as a process of its own ----------------------------------------------------------------------


async def _serve(profile: VendorProfile, port: int) -> None:
    """Serve until a signal comes or the parent dies."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    parent = os.getppid()
    async with serving(VendorEmulator(profile).app(), port=port) as origin:
        print(json.dumps({"upstream": origin, "api_key": profile.api_keys[0]}), flush=True)
        while not stop.is_set() and os.getppid() == parent:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await stop.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the emulator and print one JSON line with its origin and its first API key when it is ready."""
    default = VendorProfile()
    parser = argparse.ArgumentParser(prog="python -m tests.local.vendor", description=__doc__)
    add = parser.add_argument
    add("--port", type=int, default=0, help="0: any free port")
    add(
        "--api-key",
        action="append",
        metavar="KEY",
        help="accepted key, repeatable; without it one is generated",
    )
    add("--public-url", help="origin named in answers; without it the one that the client used")
    add("--task-seconds", type=float, default=default.task_seconds)
    add("--rpm", type=int, default=default.rpm, help="authenticated calls per key in any 60 s")
    add("--concurrent", type=int, default=default.concurrent, help="running tasks per key")
    add("--no-long-poll", dest="long_poll", action="store_false")
    add("--no-webhooks", dest="webhooks", action="store_false")
    add("--retention-seconds", type=float, default=default.retention_s)
    add("--retry-after", action="store_true", help="a rate refusal also carries Retry-After")
    add("--success-word", default=default.success_word)
    add("--expiry-form", choices=("ms", "iso", "absent"), default=default.expiry_form)
    options = parser.parse_args(arguments)
    profile = VendorProfile(
        api_keys=tuple(options.api_key or default.api_keys),
        public_url=options.public_url,
        task_seconds=options.task_seconds,
        rpm=options.rpm,
        concurrent=options.concurrent,
        long_poll=options.long_poll,
        webhooks=options.webhooks,
        retention_s=options.retention_seconds,
        retry_after=options.retry_after,
        success_word=options.success_word,
        expiry_form=options.expiry_form,
    )
    asyncio.run(_serve(profile, options.port))


if __name__ == "__main__":
    main()
