"""Servers on loopback whose answers wear the vendor's envelope."""

import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from pydantic import BaseModel, ValidationError

from tests.modellix.words import RefusedError, minified

# The headers that the answer to this request carries, known as soon as its key is.
ANSWER_HEADERS = web.RequestKey("answer_headers", dict[str, str])


class DroppedError(Exception):
    """A request whose connection is closed without an answer."""


def json_response(body: bytes, status: int = 200) -> web.Response:
    """Answer with JSON that is already rendered."""
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")


def _in_envelope(status: int, message: str) -> bytes:
    return minified({"code": status, "message": message})


async def control_body[T: BaseModel](request: web.Request, form: type[T]) -> T:
    """Parse a control call; a wrong one is refused with the name of its first wrong field."""
    try:
        return form.model_validate_json(await request.read())
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "body"
        raise RefusedError(400, f"parameter '{name}': {first['msg']}") from error


def enveloping(refusal: Callable[[int, str], bytes] = _in_envelope) -> Middleware:
    """Dress every refusal in the vendor's form, and drop the connections that are to be dropped."""

    def refused(status: int, message: str) -> web.Response:
        if status in {204, 205, 304}:  # which forbid a body
            return web.Response(status=status)
        return json_response(refusal(status, message), status)

    @web.middleware
    async def envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except RefusedError as error:
            response = refused(error.status, error.message)
            response.headers.update(error.headers)
        except (
            DroppedError,
            ConnectionResetError,
        ):  # by a fault, or by the client in the middle of its request
            if request.transport is not None:
                request.transport.close()
            return web.Response()  # never written: its connection is gone
        except (web.HTTPMethodNotAllowed, web.HTTPNotFound):
            response = refused(404, f"Resource not found: {request.method} {request.path}")
        except web.HTTPRequestEntityTooLarge as error:
            response = refused(413, f"Request entity too large: {error.text}")
        if not response.prepared:
            response.headers.update(request.get(ANSWER_HEADERS, {}))
        return response

    return envelope


envelope = enveloping()


@contextlib.asynccontextmanager
async def serving(app: web.Application, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve an application on a loopback socket and yield its origin; held requests end with it."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
