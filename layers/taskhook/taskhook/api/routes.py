"""Routes and envelope: HTTP in, one use case, HTTP out. The only importer of the HTTP resolver.

Over 400 lines, for all routes are in one list.
"""

import hashlib
from datetime import datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response, content_types
from aws_lambda_powertools.utilities.typing import LambdaContext

from taskhook.api import answers, failures, llms, openapi, pages, strict_json
from taskhook.archive.copy import link
from taskhook.core import callers
from taskhook.core.caller import Caller
from taskhook.core.errors import RejectedError, StoreUnavailableError
from taskhook.core.message import Json, minified
from taskhook.core.task import Task
from taskhook.core.vendor import Action, Form, Route, Vendor
from taskhook.delivery.attempt import signed_headers
from taskhook.delivery.samples import send_test_callbacks
from taskhook.submit.request import SubmitRequest
from taskhook.submit.spending import left_today, next_midnight
from taskhook.submit.submit import ANSWER_DUE, ANSWER_TIME, submit
from taskhook.submit.takeover import take_over
from taskhook.submit.vendor_webhook import check_webhook
from taskhook.tasks import commands, query, totals
from taskhook.tasks.query import Filter, RedeliveryFilter, TotalsFilter
from taskhook.vendors import VENDORS
from taskhook.vendors.modellix import MODELS
from taskhook.wiring import App

NO_SUCH_PATH = "Resource not found: no such path with this method; /openapi.json lists what there is"
CLAIM_MARGIN = timedelta(seconds=15)  # past the function's own end

resolver = APIGatewayHttpResolver()


def handle(event: dict[str, Any], context: LambdaContext, *, app: App, pages: Path) -> dict[str, Any]:
    """Answer one HTTP API event (payload format 2.0); `pages` is the folder of the pages for people."""
    resolver.append_context(app=app, arrived_at=app.clock.now(), pages=pages, form=None)
    answer: dict[str, Any] = resolver.resolve(event, context)
    return answer


# --- submit and tasks -----------------------------------------------------------------------------


def _submit(vendor: Vendor) -> Response[str]:
    """Accept a task: the vendor's own request, plus where the result goes."""
    arrived_at: datetime = resolver.context["arrived_at"]
    caller, event = _caller(), resolver.current_event
    request = SubmitRequest.read(
        vendor, event.path, _body(), caller=caller, targets=_app().targets, headers=event.headers
    )
    remaining = timedelta(milliseconds=resolver.lambda_context.get_remaining_time_in_millis())
    result = _app().run(
        submit(
            request,
            caller=caller,
            arrived_at=arrived_at,
            claim=remaining + CLAIM_MARGIN,
            inspection=_app().inspection,
            payment=_app().payment,
            admitting=_app().admitting,
        ),
        limit=None,  # it has a time of its own, of which a paid POST must not be robbed
    )
    if result.status != HTTPStatus.OK:
        return _error(result.status, result.message)
    if vendor.form is not None:
        return _json(vendor.form.accepted(result.task))
    return _success(answers.submitted(result.task, _app().settings.public_url))


@resolver.get("/api/v1/tasks/totals")
def show_totals() -> Response[str]:
    """Count the caller's newest tasks."""
    caller = _caller()
    wanted = TotalsFilter.read(resolver.current_event.query_string_parameters or {})
    counted = _app().run(totals.count(wanted, caller=caller, history=_app().tasks, clock=_app().clock))
    return _success(answers.totals(counted))


@resolver.get("/api/v1/tasks/<task_id>")
def show_task(task_id: str) -> Response[str]:
    """Answer as the vendor does about a task, with `wait=true` as soon as it has ended."""
    arrived_at: datetime = resolver.context["arrived_at"]
    caller = _caller()
    if query.is_waiting(resolver.current_event.query_string_parameters or {}):
        until = arrived_at + ANSWER_TIME
        limit = arrived_at + ANSWER_DUE - _app().clock.now()
        task = _app().run(
            query.wait(task_id, caller=caller, tasks=_app().tasks, clock=_app().clock, until=until),
            limit=limit,
        )
    else:
        task = _app().run(query.show(task_id, caller=caller, tasks=_app().tasks))
    return _shown(task)


@resolver.get("/api/v1/tasks")
def list_tasks() -> Response[str]:
    """List the caller's own tasks, newest first."""
    if (routed := _routed()) is not None:  # by its query it is a vendor's
        return _in_form(*routed)
    caller = _caller()
    wanted = Filter.read(resolver.current_event.query_string_parameters or {})
    stored = _app().tasks
    listing = _app().run(
        query.list_tasks(wanted, caller=caller, history=stored, tasks=stored, clock=_app().clock)
    )
    return _success(answers.task_list(listing))


@resolver.get("/api/v1/tasks/<task_id>/callback")
def show_message(task_id: str) -> Response[str]:
    """Show a callback as it is sent."""
    caller, app = _signing_caller(), _app()
    task = app.run(commands.with_callback(task_id, caller=caller, tasks=app.tasks))
    return _success(answers.message(task, signed_headers(task, caller, app.clock.now())))


@resolver.post("/api/v1/tasks/<task_id>/cancel")
def cancel_task(task_id: str) -> Response[str]:
    """Take back a task that is still queued here, or ask its vendor to cancel it."""
    return _cancel(task_id)


@resolver.post("/api/v1/tasks/<task_id>/redeliver")
def redeliver_task(task_id: str) -> Response[str]:
    """Have one callback delivered again."""
    task = _app().run(
        commands.redeliver(
            task_id,
            caller=_caller(),
            tasks=_app().tasks,
            rate=_app().control,
            wake=_app().wake,
            clock=_app().clock,
            reporter=_app().reporter,
        )
    )
    return _shown(task)


@resolver.post("/api/v1/tasks/redeliver")
def redeliver_tasks() -> Response[str]:
    """Have many callbacks delivered again."""
    caller = _caller()
    done = _app().run(
        commands.redeliver_many(
            RedeliveryFilter.read(_body()),
            caller=caller,
            history=_app().tasks,
            tasks=_app().tasks,
            rate=_app().control,
            wake=_app().wake,
            clock=_app().clock,
            reporter=_app().reporter,
        )
    )
    return _success(answers.redelivered(done))


@resolver.post("/api/v1/watch")
def watch_task() -> Response[str]:
    """Take over a task that was submitted elsewhere."""
    app = _app()
    task = app.run(
        take_over(
            _body(),
            caller=_caller(),
            targets=app.targets,
            tasks=app.tasks,
            vendors=app.vendors,
            allowances=app.allowances,
            wake=app.wake,
            clock=app.clock,
            reporter=app.reporter,
        )
    )
    return _answer(answers.task_answer(task))


# --- callbacks ------------------------------------------------------------------------------------


@resolver.get("/api/v1/callbacks/secret")
def show_secrets() -> Response[str]:
    """Give the secrets that sign the caller's callbacks."""
    return _success(answers.secrets(_signing_caller().signing(_app().clock.now())))


@resolver.post("/api/v1/callbacks/test")
def try_receiver() -> Response[str]:
    """Send samples to a receiver, and tell what it said."""
    caller = _signing_caller()
    results = _app().run(
        send_test_callbacks(
            _body(),
            caller=caller,
            targets=_app().targets,
            rate=_app().control,
            callbacks=_app().test_callbacks,
            clock=_app().clock,
            reporter=_app().reporter,
        )
    )
    return _success(answers.samples(results))


@resolver.post("/hooks/<task_id>/<token>")
def take_webhook(task_id: str, token: str) -> Response[str]:
    """Take the vendor's own webhook, which is not believed."""
    ports = _app().vendor_webhooks
    if ports is None:
        raise RejectedError(HTTPStatus.NOT_FOUND, NO_SUCH_PATH)
    upstream_task_id = resolver.current_event.headers.get("x-modellix-task-id", "")
    _app().run(check_webhook(task_id, token, upstream_task_id, ports=ports))
    return _success(answers.Nothing())


@resolver.get("/r/<task_id>/<n>/<token>")
def follow_link(task_id: str, n: str, token: str) -> Response[str]:
    """Lead from the link in a callback to the result, for as long as that is kept."""
    archive = _app().archive
    if archive is None:
        raise RejectedError(HTTPStatus.NOT_FOUND, NO_SUCH_PATH)
    url = _app().run(link(f"{task_id}/{n}/{token}", archive=archive))
    headers = {"Location": url, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    return Response(status_code=int(HTTPStatus.FOUND), body="", headers=headers)


# --- in the vendor's own form ---------------------------------------------------------------------


@resolver.get("/api/v1/apikey/validate")
def validate_key() -> Response[str]:
    """Tell whether the token is good, without a 401."""
    return _success(answers.KeyValidity(is_valid=_authenticated() is not None))


@resolver.get("/api/v1/limits")
def show_limits() -> Response[str]:
    """Tell what the token may spend."""
    app, caller, now = _app(), _caller(), _app().clock.now()
    left = app.run(left_today(caller, spent=app.control, now=now))
    until = next_midnight(now) if left is not None else None
    return _success(answers.limits(caller, app.settings.open_models, left=left, until=until))


@resolver.get("/api/v1/team/balance")
def show_balance() -> Response[str]:
    """Tell what is left of the account at the vendor that pays for all callers."""
    _caller()
    return _success(answers.Balance(balance=_app().run(_app().account.balance())))


@resolver.get("/api/v1/models")
def list_models() -> Response[str]:
    """List the known models."""
    _caller()
    return _answer(answers.models(MODELS.values()))


# --- for people, and for machines that want to know -----------------------------------------------


@resolver.get("/", compress=True)
@resolver.head("/")
def show_console() -> Response[str]:
    """Show the console."""
    return _page("console")


@resolver.get("/docs", compress=True)
@resolver.head("/docs")
def show_docs() -> Response[str]:
    """Show the API's documentation."""
    return _page("docs")


@resolver.get("/openapi.json", compress=True)
def describe() -> Response[str]:
    """Describe this API in OpenAPI 3.1."""
    text = openapi.text(_app().settings.public_url, _app().settings.example_media)
    return _cached(content_types.APPLICATION_JSON, text, {})


@resolver.get("/llms.txt", compress=True)
def tell_models() -> Response[str]:
    """Tell a language model what this deployment is and how to use it."""
    return _cached("text/plain; charset=utf-8", llms.text(_app().settings.public_url), {})


# --- by a vendor's own paths ----------------------------------------------------------------------


@resolver.route("/(.+)", method=["GET", "POST", "DELETE"])
def ask_as_vendor() -> Response[str]:
    """Serve what the paths of vendors ask for. Registered last: the deployment's own paths go first."""
    routed = _routed()
    if routed is None:
        raise RejectedError(HTTPStatus.NOT_FOUND, NO_SUCH_PATH)
    return _in_form(*routed)


def _routed() -> tuple[Vendor, Route] | None:
    """Find the vendor whose path it is, and what is asked for."""
    event = resolver.current_event
    for vendor in VENDORS.values():
        query = event.query_string_parameters or {}
        if (found := vendor.route(event.http_method, event.path, query)) is not None:
            return vendor, found
    return None


def _in_form(vendor: Vendor, wanted: Route) -> Response[str]:
    """Serve a vendor's path; whatever goes wrong is said in the vendor's form."""
    resolver.append_context(form=vendor.form)
    match wanted.action:
        case Action.SUBMIT:
            return _submit(vendor)
        case Action.SHOW:
            return show_task(wanted.task_id)
        case Action.CANCEL:
            return _cancel(wanted.task_id)
        case Action.DELETE:
            _cancel(wanted.task_id, also_ended=True)
            return Response(status_code=int(HTTPStatus.NO_CONTENT), body="")
        case Action.LIST:
            return _listed(vendor)
        case Action.UNKNOWN:
            raise RejectedError(HTTPStatus.NOT_FOUND, NO_SUCH_PATH)


def _cancel(task_id: str, *, also_ended: bool = False) -> Response[str]:
    task = _app().run(
        commands.cancel(
            task_id,
            caller=_caller(),
            tasks=_app().tasks,
            vendors=_app().vendors,
            allowances=_app().allowances,
            wake=_app().wake,
            clock=_app().clock,
            reporter=_app().reporter,
            retention=_app().settings.retention,
            also_ended=also_ended,
        )
    )
    vendor = VENDORS.get(task.vendor)
    form = vendor.form if vendor is not None else None
    return _json(form.canceled(task)) if form is not None else _shown(task)


def _listed(vendor: Vendor) -> Response[str]:
    """List the caller's tasks of one vendor, as that does."""
    assert vendor.form is not None  # noqa: S101  # its own path asked for it
    tasks = _app().run(query.newest(vendor.name, caller=_caller(), history=_app().tasks, clock=_app().clock))
    return _json(vendor.form.listed(tasks, resolver.current_event.query_string_parameters or {}))


def _shown(task: Task) -> Response[str]:
    """Answer about a task in the form of its vendor, with `data` as the deployment's own form has it."""
    vendor = VENDORS.get(task.vendor)
    own = answers.task_answer(task)
    if vendor is None or vendor.form is None:
        return _answer(own)
    return _json({**vendor.form.task(task), "data": own.data.body()})


# --- errors ---------------------------------------------------------------------------------------


@resolver.not_found
def not_found(_: Exception | None = None) -> Response[str]:
    """Answer any other path in the envelope too."""
    return _error(HTTPStatus.NOT_FOUND, NO_SUCH_PATH)


@resolver.exception_handler(RejectedError)
def rejected(error: RejectedError) -> Response[str]:
    """Say what is wrong with the request."""
    return _error(error.status, error.message, retry_after=error.retry_after)


@resolver.exception_handler(StoreUnavailableError)
def unavailable(error: StoreUnavailableError) -> Response[str]:
    """Say that nothing was paid: of a submit nothing was sent, and any other request to a vendor is free."""
    _app().logger.error("store.unavailable", extra={"error": str(error)})
    message = f"Service unavailable: {error.what}; nothing was paid, try again"
    return _error(HTTPStatus.SERVICE_UNAVAILABLE, message, retry_after=5)


@resolver.exception_handler(Exception)
def crashed(error: Exception) -> Response[str]:
    """Keep the stack trace in the log, and out of the answer."""
    _app().logger.exception("request.crashed", extra={"error": type(error).__name__})
    return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error: see the log of the submit function")


# --- reading the request, writing the answer ------------------------------------------------------


def _app() -> App:
    """Give what the request that is being answered came in with."""
    app: App = resolver.context["app"]
    return app


def _authenticated() -> Caller | None:
    authorization = resolver.current_event.headers.get("authorization")
    return _app().run(callers.authenticate(authorization, callers=_app().callers, now=_app().clock.now()))


def _caller() -> Caller:
    caller = _authenticated()
    if caller is None:
        raise RejectedError(
            HTTPStatus.UNAUTHORIZED,
            "Authentication failed: send 'Authorization: Bearer thk_…', a token of this deployment",
        )
    return caller


def _signing_caller() -> Caller:
    """Give the caller with its signing secrets in the clear, for which the deployment's own key is read."""
    return _app().run(_app().callers.find(_caller().caller)) or _caller()


def _body() -> Json:
    event = resolver.current_event
    return strict_json.read(event.body or "", is_base64=bool(event.is_base64_encoded))


def _success(data: answers.Answer) -> Response[str]:
    return _answer(answers.success(data))


def _error(status: int, message: str, *, retry_after: int | None = None) -> Response[str]:
    """Say what is wrong, in the form of the vendor whose path it is.

    Official SDKs repeat 408, 409, 429 and 5xx by themselves: only what names a time is to be repeated.
    """
    headers = {"x-should-retry": "false"} if retry_after is None else {"Retry-After": str(retry_after)}
    headers["Link"] = failures.help_link(_app().settings.public_url, status, message)
    form: Form | None = resolver.context.get("form")
    body = (
        form.error(status, message)
        if form is not None
        else answers.Error(code=status, message=message).body()
    )
    return _json(body, status=status, headers=headers)


def _page(name: str) -> Response[str]:
    html = pages.read(resolver.context["pages"], name)
    return _cached("text/html; charset=utf-8", html, pages.headers(html))


def _cached(content_type: str, body: str, headers: dict[str, str]) -> Response[str]:
    """Answer with what changes at a deployment only: a browser that has it already is told so."""
    # Weak: the same for the compressed and the plain form.
    etag = f'W/"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'
    headers = {"Cache-Control": "no-cache", "ETag": etag, "Vary": "Accept-Encoding", **headers}
    if etag in (resolver.current_event.headers.get("if-none-match") or ""):
        return Response(
            status_code=HTTPStatus.NOT_MODIFIED,
            content_type=content_type,
            body="",
            headers=headers,
            compress=False,
        )
    if resolver.current_event.http_method == "HEAD":
        body = ""
    return Response(status_code=HTTPStatus.OK, content_type=content_type, body=body, headers=headers)


def _answer(
    answer: answers.Answer, *, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None
) -> Response[str]:
    return _json(answer.body(), status=status, headers=headers)


def _json(body: Json, *, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response[str]:
    return Response(
        status_code=int(status),
        content_type=content_types.APPLICATION_JSON,
        body=minified(body),
        headers={"Cache-Control": "no-store", **(headers or {})},
    )
