"""Routes and envelope: HTTP in, one use case, HTTP out. The only importer of the HTTP resolver."""

import hashlib
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response, content_types

from taskhook import wiring
from taskhook.api import answers, strict_json
from taskhook.core import callers
from taskhook.core.errors import RejectedError, StoreUnavailableError
from taskhook.core.message import Json, minified
from taskhook.core.ports import Caller
from taskhook.submit.request import Order
from taskhook.submit.submit import ANSWER_DUE, ANSWER_TIME, submit
from taskhook.tasks import commands, query
from taskhook.tasks.query import Filter, RedeliveryFilter
from taskhook.vendors.modellix import MODELS

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from aws_lambda_powertools.utilities.typing import LambdaContext

RESERVED = frozenset({"tasks", "callbacks", "apikey", "models", "team", "media"})  # never a provider
NO_SUCH_PATH = "Resource not found: no such path; /openapi.json lists what there is"
CLAIM_MARGIN = timedelta(seconds=15)  # past the function's own end

app = APIGatewayHttpResolver()


def handle(event: dict[str, Any], context: "LambdaContext", *, pages: "Path") -> dict[str, Any]:
    """Answer one HTTP API event (payload format 2.0); `pages` is the folder of the pages for people."""
    app.append_context(arrived_at=wiring.clock().now(), pages=pages)
    answer: dict[str, Any] = app.resolve(event, context)
    return answer


# --- submit and tasks -----------------------------------------------------------------------------------------------------


@app.post("/api/v1/<provider>/<model>")
@app.post("/api/v1/<provider>/<model>/async")
def submit_task(provider: str, model: str) -> Response[str]:
    """Accept a task: the vendor's own request, plus where the result goes."""
    if provider in RESERVED:
        raise RejectedError(HTTPStatus.NOT_FOUND, NO_SUCH_PATH)
    arrived_at: datetime = app.context["arrived_at"]
    caller = _caller()
    order = Order.read(
        f"{provider}/{model}",
        _body(),
        caller=caller,
        targets=wiring.targets(),
        webhook_url=app.current_event.headers.get("x-webhook-url"),
        idempotency_key=app.current_event.headers.get("idempotency-key"),
        retry_count=app.current_event.headers.get("x-stainless-retry-count"),
    )
    remaining = timedelta(milliseconds=app.lambda_context.get_remaining_time_in_millis())
    answer = wiring.run(
        submit(
            order,
            caller=caller,
            arrived_at=arrived_at,
            claim=remaining + CLAIM_MARGIN,
            inspector=wiring.inspector(),
            payer=wiring.payer(),
            door=wiring.door(),
        ),
        limit=None,  # it has a time of its own, of which a paid POST must not be robbed
    )
    if answer.status != HTTPStatus.OK:
        return _error(answer.status, answer.message)
    return _success(answers.submitted(answer.task, wiring.settings().public_url))


@app.get("/api/v1/tasks/<task_id>")
def show_task(task_id: str) -> Response[str]:
    """Answer as the vendor does about a task, with `wait=true` as soon as it has ended."""
    arrived_at: datetime = app.context["arrived_at"]
    caller = _caller()
    if query.is_waiting(app.current_event.query_string_parameters or {}):
        until = arrived_at + ANSWER_TIME
        limit = arrived_at + ANSWER_DUE - wiring.clock().now()
        task = wiring.run(query.wait(task_id, caller=caller, tasks=wiring.tasks(), clock=wiring.clock(), until=until), limit=limit)
    else:
        task = wiring.run(query.show(task_id, caller=caller, tasks=wiring.tasks()))
    return _answer(answers.task_answer(task))


@app.get("/api/v1/tasks")
def list_tasks() -> Response[str]:
    """List the caller's own tasks, newest first."""
    caller = _caller()
    wanted = Filter.read(app.current_event.query_string_parameters or {})
    tasks, cursor = wiring.run(query.list_tasks(wanted, caller=caller, history=wiring.tasks()))
    return _success(answers.task_list(tasks, cursor))


@app.post("/api/v1/tasks/<task_id>/cancel")
def cancel_task(task_id: str) -> Response[str]:
    """Take back a task that is still queued here."""
    task = wiring.run(
        commands.cancel(
            task_id,
            caller=_caller(),
            tasks=wiring.tasks(),
            wake=wiring.wake(),
            clock=wiring.clock(),
            reporter=wiring.reporter(),
            retention=wiring.settings().retention,
        )
    )
    return _answer(answers.task_answer(task))


@app.post("/api/v1/tasks/<task_id>/redeliver")
def redeliver_task(task_id: str) -> Response[str]:
    """Have one callback delivered again."""
    task = wiring.run(
        commands.redeliver(
            task_id,
            caller=_caller(),
            tasks=wiring.tasks(),
            rate=wiring.tasks(),
            wake=wiring.wake(),
            clock=wiring.clock(),
            reporter=wiring.reporter(),
        )
    )
    return _answer(answers.task_answer(task))


@app.post("/api/v1/tasks/redeliver")
def redeliver_tasks() -> Response[str]:
    """Have many callbacks delivered again."""
    caller = _caller()
    done = wiring.run(
        commands.redeliver_many(
            RedeliveryFilter.read(_body()),
            caller=caller,
            history=wiring.tasks(),
            tasks=wiring.tasks(),
            rate=wiring.tasks(),
            wake=wiring.wake(),
            clock=wiring.clock(),
            reporter=wiring.reporter(),
        )
    )
    return _success(answers.redelivered(done))


# --- callbacks ------------------------------------------------------------------------------------------------------------


@app.get("/api/v1/callbacks/secret")
def show_secrets() -> Response[str]:
    """Give the secrets that sign the caller's callbacks."""
    return _success(answers.secrets(_signing_caller().signing(wiring.clock().now())))


@app.post("/api/v1/callbacks/test")
def try_receiver() -> Response[str]:
    """Send samples to a receiver, and tell what it said."""
    from taskhook.delivery.samples import try_out  # noqa: PLC0415  # submits never pay for it

    caller = _signing_caller()
    tried = wiring.run(
        try_out(
            _body(),
            caller=caller,
            targets=wiring.targets(),
            rate=wiring.tasks(),
            callbacks=wiring.receiver_tests(),
            clock=wiring.clock(),
            reporter=wiring.reporter(),
        )
    )
    samples = [answers.sample(one.sample, one.reply, delivered=one.delivered) for one in tried]
    return _success(answers.Samples(samples=samples))


@app.post("/hooks/<task_id>/<token>")
def take_hint(task_id: str, token: str) -> Response[str]:
    """Take the vendor's own webhook, as a hint."""
    from taskhook.submit.vendor_webhook import hint  # noqa: PLC0415  # submits never pay for it

    desk = wiring.hint_desk()
    if desk is None:
        raise RejectedError(HTTPStatus.NOT_FOUND, NO_SUCH_PATH)
    upstream_task_id = app.current_event.headers.get("x-modellix-task-id", "")
    wiring.run(hint(task_id, token, upstream_task_id, desk=desk))
    return _success(answers.Nothing())


@app.get("/r/<task_id>/<n>/<token>")
def follow_link(task_id: str, n: str, token: str) -> Response[str]:
    """Lead from the link in a callback to the result, for as long as that is kept."""
    from taskhook.archive.copy import link  # noqa: PLC0415  # submits never pay for it

    archive = wiring.archive()
    if archive is None:
        raise RejectedError(HTTPStatus.NOT_FOUND, NO_SUCH_PATH)
    url = wiring.run(link(f"{task_id}/{n}/{token}", archive=archive))
    headers = {"Location": url, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    return Response(status_code=int(HTTPStatus.FOUND), body="", headers=headers)


# --- in the vendor's own form ---------------------------------------------------------------------------------------------


@app.get("/api/v1/apikey/validate")
def validate_key() -> Response[str]:
    """Tell whether the token is good, without a 401."""
    return _success(answers.KeyValidity(is_valid=_authenticated() is not None))


@app.get("/api/v1/team/balance")
def show_balance() -> Response[str]:
    """Tell what is left of the account at the vendor that pays for all callers."""
    _caller()
    return _success(answers.Balance(balance=wiring.run(wiring.account().balance())))


@app.get("/api/v1/models")
def list_models() -> Response[str]:
    """List the known models."""
    _caller()
    return _answer(answers.models(MODELS.values()))


# --- for people, and for machines that want to know: nothing of it is loaded or read before somebody asks --------------------


@app.get("/", compress=True)
@app.head("/")
def show_console() -> Response[str]:
    """Show the console."""
    return _page("console")


@app.get("/docs", compress=True)
@app.head("/docs")
def show_docs() -> Response[str]:
    """Show the API's documentation."""
    return _page("docs")


@app.get("/openapi.json", compress=True)
def describe() -> Response[str]:
    """Describe this API in OpenAPI 3.1."""
    from taskhook.api import openapi  # noqa: PLC0415  # submits never pay for it

    return _cached(content_types.APPLICATION_JSON, openapi.text(wiring.settings().public_url), {})


# --- errors ---------------------------------------------------------------------------------------------------------------


@app.not_found
def not_found(_: Exception | None = None) -> Response[str]:
    """Answer any other path in the envelope too."""
    return _error(HTTPStatus.NOT_FOUND, NO_SUCH_PATH)


@app.exception_handler(RejectedError)
def rejected(error: RejectedError) -> Response[str]:
    """Say what is wrong with the request."""
    return _error(error.status, error.message, retry_after=error.retry_after)


@app.exception_handler(StoreUnavailableError)
def unavailable(error: StoreUnavailableError) -> Response[str]:
    """Say that nothing was begun."""
    wiring.logger().error("store.unavailable", extra={"error": str(error)})
    message = "Service unavailable: the task table did not answer; nothing was sent to the vendor, try again"
    return _error(HTTPStatus.SERVICE_UNAVAILABLE, message, retry_after=5)


@app.exception_handler(Exception)
def crashed(error: Exception) -> Response[str]:
    """Keep the stack trace in the log, and out of the answer."""
    wiring.logger().exception("request.crashed", extra={"error": type(error).__name__})
    return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error: see the log of the submit function")


# --- reading the request, writing the answer ------------------------------------------------------------------------------


def _authenticated() -> Caller | None:
    authorization = app.current_event.headers.get("authorization")
    return wiring.run(callers.authenticate(authorization, callers=wiring.callers(), now=wiring.clock().now()))


def _caller() -> Caller:
    caller = _authenticated()
    if caller is None:
        raise RejectedError(
            HTTPStatus.UNAUTHORIZED, "Authentication failed: send 'Authorization: Bearer thk_…', a token of this deployment"
        )
    return caller


def _signing_caller() -> Caller:
    """Give the caller with its signing secrets in the clear, for which the deployment's own key is read."""
    return wiring.run(wiring.callers().find(_caller().caller)) or _caller()


def _body() -> Json:
    return strict_json.read(app.current_event.body or "", is_base64=bool(app.current_event.is_base64_encoded))


def _success(data: answers.Answer) -> Response[str]:
    return _answer(answers.success(data))


def _error(status: int, message: str, *, retry_after: int | None = None) -> Response[str]:
    """Say what is wrong. Official SDKs repeat 408, 409, 429 and 5xx by themselves: only what names a time is to be repeated."""
    headers = {"x-should-retry": "false"} if retry_after is None else {"Retry-After": str(retry_after)}
    return _answer(answers.Error(code=status, message=message), status=status, headers=headers)


def _page(name: str) -> Response[str]:
    from taskhook.api import pages  # noqa: PLC0415  # submits never pay for it

    html = pages.read(app.context["pages"], name)
    return _cached("text/html; charset=utf-8", html, pages.headers(html))


def _cached(content_type: str, body: str, headers: dict[str, str]) -> Response[str]:
    """Answer with what changes at a deployment only: a browser that has it already is told so."""
    etag = f'W/"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'  # weak: the same for the compressed and the plain form
    headers = {"Cache-Control": "no-cache", "ETag": etag, "Vary": "Accept-Encoding", **headers}
    if etag in (app.current_event.headers.get("if-none-match") or ""):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, content_type=content_type, body="", headers=headers, compress=False)
    if app.current_event.http_method == "HEAD":
        body = ""
    return Response(status_code=HTTPStatus.OK, content_type=content_type, body=body, headers=headers)


def _answer(answer: answers.Answer, *, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response[str]:
    return Response(
        status_code=int(status),
        content_type=content_types.APPLICATION_JSON,
        body=minified(answer.body()),
        headers={"Cache-Control": "no-store", **(headers or {})},
    )
