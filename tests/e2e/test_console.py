"""The console and the documentation as people have them: in a browser, against the embedded stack."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import boto3
import httpx
import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Dialog,
    Locator,
    Page,
    Request,
    Route,
    ViewportSize,
    expect,
    sync_playwright,
)
from standardwebhooks.webhooks import Webhook

from taskhook.adapters.dynamodb.items import item
from taskhook.adapters.dynamodb.tasks import request_key, values_of
from taskhook.core.record import Attempt, CallbackState, ErrorCode, State
from taskhook.core.task import Task
from taskhook.vendors import VENDORS
from tests.e2e.conftest import MADE_UP, Admin, Inbox, Json, Stack, User, Vendor, eventually

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
PASSIVE = {"image", "media"}  # what may come from elsewhere, after a click

LARGEST_PICTURE = 150_000
SHOWN_WITHIN_S = 180.0  # against what never comes; it is looked for again and again
HOSTILE = "\"'><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"

ZONE = "Europe/Berlin"

type Scheme = Literal["light", "dark"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")


class Visitor:
    """A caller in front of the console, which notes what the browser complains of and what it loads."""

    def __init__(self, browser: Browser, stack: Stack, **context: Any) -> None:
        self._stack = stack
        self._context = browser.new_context(
            base_url=stack.endpoint, locale="en-GB", timezone_id=ZONE, **context
        )
        self.page = self._context.new_page()
        self.page.set_default_timeout(SHOWN_WITHIN_S * 1000)
        # statuses that a test provokes, and that the browser therefore reports
        self.expected: set[int] = set()
        self.complaints: list[str] = []
        self.elsewhere: list[tuple[str, str]] = []  # kind and address of what was asked of another origin
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self._asked)
        self.page.on("request", self._requested)

    def _heard(self, message: ConsoleMessage) -> None:
        status = re.search(r"responded with a status of (\d+)", message.text)
        if message.type in {"error", "warning"} and not (status and int(status[1]) in self.expected):
            self.complaints.append(message.text)

    def _asked(self, dialog: Dialog) -> None:
        self.complaints.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _requested(self, request: Request) -> None:
        if not request.url.startswith((f"{self._stack.endpoint}/", "data:")):
            self.elsewhere.append((request.resource_type, request.url))

    def signed_in(self, token: str, address: str = "/") -> "Visitor":
        """Open an address as a caller."""
        script = f"if (location.href !== 'about:blank') sessionStorage.setItem('token', '{token}')"
        self._context.add_init_script(script)
        self.page.goto("about:blank")  # a change of the fragment alone would not load the page anew
        self.page.goto(address)
        return self

    @contextlib.contextmanager
    def offline(self) -> Iterator[None]:
        """Lose the network while the block lasts."""
        self._context.set_offline(offline=True)
        yield
        self._context.set_offline(offline=False)

    def leave(self) -> None:
        """Go, content: nothing was complained of, and nothing but films and pictures came from elsewhere."""
        self._context.close()
        assert self.complaints == []
        assert {kind for kind, _ in self.elsewhere} <= PASSIVE

    # --- what is on the page ----------------------------------------------------------------------

    def heading(self, name: str | re.Pattern[str]) -> Locator:
        """Find a heading."""
        return self.page.get_by_role("heading", name=name)

    def button(self, name: str) -> Locator:
        """Find a button."""
        return self.page.get_by_role("button", name=name, exact=True)

    def step(self, text: str) -> Locator:
        """Find a step of a task's timeline."""
        return self.page.locator(".timeline li").filter(has_text=text)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all visitors."""
    expect.set_options(timeout=SHOWN_WITHIN_S * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, stack: Stack) -> Iterator[Callable[..., Visitor]]:
    """Bring visitors in; at the end of a test each of them must be content."""
    visitors: list[Visitor] = []

    def come(**context: Any) -> Visitor:
        visitors.append(Visitor(browser, stack, **context))
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.leave()


@pytest.fixture
def newcomer(stack: Stack, admin: Admin, marker: str) -> Iterator[User]:
    """Add a caller without any tasks."""
    newcomer = User(stack, admin("add", f"new-{marker[:8]}")["token"])
    with newcomer.http:
        yield newcomer


def token_of(user: User) -> str:
    """Give a user's token."""
    return user.http.headers["authorization"].removeprefix("Bearer ")


@pytest.fixture
def store_many(stack: Stack) -> Callable[[list[Task]], None]:
    """Put tasks into the table as they are, past the API and its rules."""
    account = boto3.Session(
        aws_access_key_id="test", aws_secret_access_key="test", region_name=stack.aws_region
    )
    outputs = account.client("cloudformation", endpoint_url=stack.aws_endpoint_url).describe_stacks(
        StackName=stack.stack
    )
    table = next(
        out["OutputValue"] for out in outputs["Stacks"][0]["Outputs"] if out["OutputKey"] == "TasksTable"
    )
    client = account.client("dynamodb", endpoint_url=stack.aws_endpoint_url)

    def store(tasks: list[Task]) -> None:
        MADE_UP.update(task.task_id for task in tasks)
        puts = [
            {"PutRequest": {"Item": item(values)}}
            for task in tasks
            for values in ({"task_id": request_key(task), "request": task.request}, values_of(task))
        ]
        for start in range(0, len(puts), 25):  # as many as a batch may have
            answer = client.batch_write_item(RequestItems={table: puts[start : start + 25]})
            assert answer["UnprocessedItems"] == {}

    return store


@pytest.fixture
def stored(store_many: Callable[[list[Task]], None]) -> Callable[[Task], None]:
    """Put one task into the table."""
    return lambda task: store_many([task])


def a_task(user: User, number: int, **changes: Any) -> Task:
    """Make a task of a user's, ended yesterday."""
    then = datetime.now(UTC) - timedelta(days=1, seconds=number)
    caller = token_of(user).split("_")[1]
    task = Task(
        task_id=f"tk_{os.urandom(11).hex()}",
        caller=caller,
        model="alibaba/wan2.2-animate-mix",
        request="{}",
        fingerprint="",
        reference=f"number {number}",
        accepted_at=then,
        submitted_at=then,
        upstream_task_id=f"task-{number}",
        state=State.WATCHED,
    )
    ended = task.succeeded(
        {"result": {"resources": []}}, then + timedelta(seconds=70), retention=timedelta(days=7), claim=then
    )
    return ended.model_copy(update=changes)


def assert_accessible(page: Page) -> None:
    """Let axe look at the page: it finds nothing serious."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    told = [
        (one["id"], [node["html"] for node in one["nodes"]])
        for one in found
        if one["impact"] in {"serious", "critical"}
    ]
    assert told == [], page.url


# --- the whole way --------------------------------------------------------------------------------


def test_from_sign_in_to_redelivery(
    stack: Stack, user: User, inbox: Inbox, visit: Callable[..., Visitor], marker: str, tmp_path: Path
) -> None:
    """Sign in, submit, watch the task end, see a callback refused and arrive, look at the film, redeliver."""
    visitor = visit(viewport={"width": 1200, "height": 860})
    page = visitor.page
    page.goto("/")
    page.get_by_label("Caller token").fill(stack.token)
    visitor.button("Sign in").click()
    expect(visitor.heading("Tasks")).to_be_visible()

    path = f"campaign/{marker[:6]}"
    inbox.behave(path, 503, body="deploying, back in a moment")
    page.get_by_role("link", name="Submit a task").click()
    page.get_by_label("image_url").fill(f"{stack.upstream}/media/actor.jpg")
    page.get_by_label("video_url").fill(f"{stack.upstream}/media/scene.mp4")
    page.get_by_label("mode", exact=True).select_option("wan-pro")
    page.get_by_label("callback_url").fill(inbox.url(path))
    page.get_by_label("reference").fill("campaign-42/scene-7")
    visitor.button("Submit").click()

    expect(visitor.heading("campaign-42/scene-7")).to_be_visible()
    task_id = urlsplit(page.url).fragment.removeprefix("/tasks/")
    for step in ("Accepted", "Submitted to the vendor", "Processing", "Succeeded"):
        expect(visitor.step(step)).to_be_visible()
    refused = visitor.step("Callback, attempt 1: answered 503")
    expect(refused).to_contain_text("deploying, back in a moment")
    expect(visitor.step("Callback, attempt 2: answered 200")).to_be_visible()
    assert [delivery["status_answered"] for delivery in inbox.deliveries(task_id)] == [503, 200]

    assert visitor.elsewhere == []  # no film before it is asked for
    visitor.button("Show the video").click()
    # waiting in the page takes an eval
    eventually(lambda: page.evaluate("document.querySelector('video')?.readyState === 4"))
    [result] = user.task(task_id)["result"]["resources"]
    assert {url for _, url in visitor.elsewhere} == {result["url"]}
    taken = page.screenshot(path=os.environ.get("PICTURE", str(tmp_path / "console.png")))
    assert len(taken) < LARGEST_PICTURE

    visitor.button("Redeliver callback").click()
    expect(visitor.step("Callback, attempt 3: answered 200")).to_be_visible()
    deliveries = inbox.deliveries(task_id)
    assert all(delivery["verified"] for delivery in deliveries)
    assert len({(delivery["headers"]["webhook-id"], delivery["body"]) for delivery in deliveries}) == 1
    assert page.evaluate("document.querySelector('video') !== null")  # it has gone on playing

    page.get_by_role("link", name="Tasks", exact=True).click()
    row = page.get_by_role("row").filter(has_text=task_id)
    expect(row).to_contain_text("success")
    expect(row).to_contain_text("delivered")
    visitor.button("Sign out").click()
    expect(visitor.heading("Sign in")).to_be_visible()
    assert page.evaluate("sessionStorage.length + localStorage.length + document.cookie.length") == 0


def test_the_form_is_filled_in_again_and_says_what_the_server_says(
    stack: Stack, user: User, vendor: Vendor, inbox: Inbox, visit: Callable[..., Visitor], marker: str
) -> None:
    """The server's words stand beside the fields they name; a task can be submitted again with a change."""
    task_id = user.accepted(marker, callback_url=inbox.url(marker))
    visitor = visit().signed_in(token_of(user), f"/#/submit?from={task_id}")
    visitor.expected = {400}
    page, video = visitor.page, visitor.page.get_by_label("video_url")
    expect(page.get_by_label("image_url")).to_have_value(re.compile(marker))
    expect(page.get_by_label("callback_url")).to_have_value(inbox.url(marker))
    video.fill("")
    page.get_by_label("callback_url").fill("gopher://example.com")
    page.get_by_label("mode", exact=True).select_option("")
    visitor.button("Submit").click()
    expect(video).to_have_attribute("aria-invalid", "true")
    expect(video).to_be_focused()
    expect(page.locator("#field-video_url-complaint")).to_have_text("Is required")
    expect(page.locator("#field-mode-complaint")).to_have_text("Is required")
    video.fill("https://media.invalid/original_scene.mp4")
    page.get_by_label("mode", exact=True).select_option("wan-std")
    visitor.button("Submit").click()
    expect(page.locator("#field-callback_url-complaint")).to_have_text("Must be an http or https URL")
    page.get_by_label("callback_url").fill(inbox.url(marker))
    video.fill(f"{stack.upstream}/media/actor.jpg")
    visitor.button("Submit").click()
    # what a look at the file has shown
    expect(page.locator("#field-video_url-complaint")).to_contain_text("must be")
    assert len(vendor.paid(marker)) == 1
    video.fill("https://media.invalid/original_scene.mp4")
    visitor.button("Submit").click()
    expect(visitor.step("Succeeded")).to_be_visible()
    expect(page.get_by_text("Not checked here: video_url, name does not resolve.")).to_be_visible()
    assert len(vendor.paid(marker)) == 2


def test_a_lost_answer_is_no_second_payment(
    user: User, vendor: Vendor, visit: Callable[..., Visitor], marker: str
) -> None:
    """A caller that presses Submit again after the network was away has paid once."""
    visitor = visit().signed_in(token_of(user), "/#/submit")
    page = visitor.page
    visitor.button("Fill in the example").click()
    page.get_by_label("image_url").fill(f"https://media.invalid/new_actor.jpg?{marker}")
    page.get_by_label("video_url").fill("https://media.invalid/original_scene.mp4")
    page.get_by_label("callback_url").fill("")
    page.route(re.compile("/api/v1/alibaba/"), lambda route: (route.fetch(), route.abort()))
    visitor.button("Submit").click()
    expect(page.get_by_role("alert")).to_contain_text("nothing is paid twice")
    page.unroute(re.compile("/api/v1/alibaba/"))
    visitor.expected = {500}
    of_the_gateway = {"status": 500, "json": {"message": "Internal Server Error"}}
    page.route(re.compile("/api/v1/alibaba/"), lambda route: (route.fetch(), route.fulfill(**of_the_gateway)))
    visitor.button("Submit").click()
    expect(page.get_by_role("alert")).to_contain_text(
        "Internal Server Error; Press Submit again: with the same key"
    )
    page.unroute(re.compile("/api/v1/alibaba/"))
    visitor.button("Submit").click()
    expect(visitor.step("Accepted")).to_be_visible()
    assert len(vendor.paid(marker)) == 1
    visitor.complaints = [text for text in visitor.complaints if "ERR_FAILED" not in text]


def test_any_request_of_any_vendor_is_submitted_as_json(
    stack: Stack, inbox: Inbox, visit: Callable[..., Visitor], marker: str
) -> None:
    """And what its vendor has already is watched; both are shown with their vendor."""
    visitor = visit().signed_in(stack.token, "/#/submit")
    page = visitor.page
    page.get_by_role("link", name="Any other model").click()
    expect(visitor.heading("Submit any model")).to_be_visible()
    page.get_by_label("Vendor").select_option("runway")
    page.get_by_label("Request, as JSON").fill("{")
    visitor.button("Submit").click()
    expect(page.get_by_role("alert")).to_contain_text("is not JSON")
    image = f"https://media.invalid/{marker}.jpg"
    page.get_by_label("Request, as JSON").fill(f'{{"model":"gen4_turbo","promptImage":"{image}"}}')
    page.get_by_label("callback_url").fill(inbox.url(marker))
    page.get_by_label("reference").fill(f"any-{marker}")
    visitor.button("Submit").click()
    expect(visitor.heading(f"any-{marker}")).to_be_visible()
    expect(page.get_by_text("gen4_turbo", exact=True)).to_be_visible()
    expect(visitor.step("Succeeded")).to_be_visible()
    task_id = urlsplit(page.url).fragment.removeprefix("/tasks/")
    headers = {"Authorization": f"Bearer {stack.token}"}
    shown = httpx.get(f"{stack.endpoint}/api/v1/tasks/{task_id}", headers=headers, trust_env=False).json()

    page.goto("/#/watch")
    visitor.expected = {400}
    page.get_by_label("vendor").fill("no-such-vendor")
    page.get_by_label("task_id").fill(shown["data"]["upstream_task_id"])
    visitor.button("Watch").click()
    expect(page.get_by_text(f"Must be one of {', '.join(sorted(VENDORS))}")).to_be_visible()
    page.get_by_label("vendor").fill("runway")
    page.get_by_label("reference").fill(f"watched-{marker}")
    visitor.button("Watch").click()
    expect(visitor.heading(f"watched-{marker}")).to_be_visible()
    expect(visitor.step("Succeeded")).to_be_visible()


# --- tasks ----------------------------------------------------------------------------------------


def test_the_list_lives(newcomer: User, inbox: Inbox, visit: Callable[..., Visitor], marker: str) -> None:
    """Empty at first, it shows a task from acceptance to its end; it rests while it is hidden."""
    visitor = visit()
    page, clock = visitor.page, visitor.page.clock
    clock.install()
    visitor.signed_in(token_of(newcomer))
    expect(page.get_by_text("No tasks yet.")).to_be_visible()
    task_id = newcomer.accepted(marker, callback_url=inbox.url(marker))
    clock.run_for(5_000)
    row = page.get_by_role("row").filter(has_text=task_id)
    expect(row).to_be_visible()
    newcomer.ended(task_id)
    clock.run_for(5_000)
    expect(row).to_contain_text("delivered")

    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true, configurable: true})")
    clock.run_for(10_000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    clock.run_for(3_600_000)
    assert asked == []
    with page.expect_request("**/api/v1/tasks?*"):
        page.evaluate("delete document.hidden, document.dispatchEvent(new Event('visibilitychange'))")


def test_filters_and_pages(
    newcomer: User, stored: Callable[[Task], None], visit: Callable[..., Visitor]
) -> None:
    """By callback and time, page by page and back, in the address so that it can be kept."""
    for number in range(30):
        stored(
            a_task(
                newcomer, number, callback=CallbackState.UNDELIVERED if number == 29 else CallbackState.NONE
            )
        )
    visitor = visit().signed_in(token_of(newcomer))
    page, rows = visitor.page, visitor.page.locator("tbody tr")
    expect(rows).to_have_count(25)
    visitor.button("Older »").click()
    expect(rows).to_have_count(5)
    expect(rows.first).to_contain_text("number 25")
    page.reload()
    expect(rows).to_have_count(5)
    visitor.button("Newest").click()
    expect(rows.first).to_contain_text("number 0")
    page.get_by_text("Filters", exact=True).click()
    page.get_by_label("Callback").select_option("undelivered")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("number 29")
    expect(visitor.button("Redeliver all of them")).to_be_visible()
    visitor.button("Clear filters").click()
    page.get_by_label("Callback").select_option("retrying")
    expect(page.get_by_text("No task matches.")).to_be_visible()
    expect(visitor.button("Retry all of them now")).to_have_count(
        0
    )  # nothing is offered where there is nothing
    visitor.button("Clear filters").click()
    visitor.button("week").click()
    expect(rows).to_have_count(25)
    page.get_by_label("Tasks on a page").select_option("50")
    expect(rows).to_have_count(30)
    visitor.button("hour").click()
    expect(page.get_by_text("No task matches.")).to_be_visible()
    visitor.button("Clear filters").click()
    expect(rows).to_have_count(25)
    page.get_by_label("Model").fill("kling/*")
    page.get_by_label("Model").press("Enter")
    expect(page.get_by_text("No task matches.")).to_be_visible()
    visitor.button("Clear filters").click()
    page.get_by_label("Vendor").select_option("modellix")
    expect(rows).to_have_count(25)
    page.get_by_label("Accepted from").fill(
        (datetime.now(ZoneInfo(ZONE)) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M")
    )
    expect(page.get_by_text("No task matches.")).to_be_visible()


def test_what_is_chosen_next_is_for_the_view_that_was_asked_for(
    newcomer: User, stored: Callable[[Task], None], visit: Callable[..., Visitor]
) -> None:
    """However fast it follows: here, before the browser tells that the address has changed."""
    stored(a_task(newcomer, 1))
    visitor = visit().signed_in(token_of(newcomer))
    page = visitor.page
    page.get_by_text("Filters", exact=True).click()
    page.get_by_label("Model").fill("kling/*")
    page.get_by_label("Model").press("Enter")
    expect(page.get_by_text("No task matches.")).to_be_visible()
    page.evaluate("""() => {
        const buttons = [...document.querySelectorAll("button")];
        buttons.find((one) => one.textContent === "Clear filters").click();
        const vendor = document.getElementById("filter-vendor");
        vendor.value = "modellix";
        vendor.dispatchEvent(new Event("change"));
    }""")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert page.url.endswith("#/tasks?vendor=modellix")


def test_what_a_field_says_as_its_view_is_left_is_not_heard(
    user: User, visit: Callable[..., Visitor]
) -> None:
    """A filter that was typed and not applied does not undo the way back: address and view fit."""
    visitor = visit().signed_in(token_of(user), "/#/callbacks")
    page = visitor.page
    expect(visitor.heading("Callbacks")).to_be_visible()
    page.get_by_role("link", name="Tasks", exact=True).click()
    page.get_by_text("Filters", exact=True).click()
    page.get_by_label("Model").press_sequentially("kling")
    page.evaluate("history.back()")
    expect(visitor.heading("Callbacks")).to_be_visible()
    assert page.url.endswith("/#/callbacks")


def test_the_skip_link_leaves_the_view_as_it_is(
    user: User, visit: Callable[..., Visitor], marker: str
) -> None:
    """The list goes on by itself after it."""
    visitor = visit().signed_in(token_of(user))
    page = visitor.page
    expect(visitor.heading("Tasks")).to_be_visible()
    page.get_by_role("link", name="Skip to content").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#main$"))
    task_id = user.accepted(marker)
    expect(page.get_by_role("row").filter(has_text=task_id)).to_be_visible()


def test_a_queued_task_is_taken_back(
    user: User, vendor: Vendor, visit: Callable[..., Visitor], marker: str
) -> None:
    """After a question; what it would have cost is not paid."""
    with vendor.fault("429", times=None):
        task_id = user.accepted(marker)
        visitor = visit().signed_in(token_of(user), f"/#/tasks/{task_id}")
        visitor.expected = {409}  # the poller may just be submitting the task
        expect(visitor.step("Queued")).to_contain_text("Not paid for yet.")

        def taken_back() -> bool:
            if visitor.button("Cancel task").is_visible():
                visitor.button("Cancel task").click()
                visitor.button("Cancel the task").click()
            visitor.page.wait_for_timeout(500)
            return visitor.step("Failed").is_visible()

        eventually(taken_back)
        expect(visitor.step("Failed")).to_contain_text("canceled")
    assert vendor.paid(marker) == []


def test_a_vendor_that_can_cancel_is_asked_to(
    stack: Stack, inbox: Inbox, visit: Callable[..., Visitor], marker: str
) -> None:
    """After a question, for a task that it has; a vendor that cannot is offered no such thing."""
    asked: list[str] = []

    def answered(route: Route) -> None:
        asked.append(route.request.method)
        route.fulfill(json={"code": 0, "message": "success", "data": {}})

    body: Json = {"model": "gen4_turbo", "promptImage": f"https://media.invalid/{marker}.jpg"}
    headers = {"Authorization": f"Bearer {stack.token}", "X-Webhook-URL": inbox.url(marker)}
    submit = f"{stack.endpoint}{VENDORS['runway'].example.path}"
    task_id = httpx.post(submit, json=body, headers=headers, trust_env=False, timeout=60).json()["id"]
    asking = f"{stack.endpoint}/api/v1/tasks/{task_id}"
    shown = httpx.get(asking, headers=headers, trust_env=False, timeout=60).json()

    def as_one_that_it_has(route: Route) -> None:
        data = shown["data"] | {"stage": "watched", "status": "processing", "vendor": vendor_of_it}
        route.fulfill(json=shown | {"data": data})

    vendor_of_it = "modellix"
    visitor = visit()
    visitor.page.route(re.compile(f"/tasks/{task_id}$"), as_one_that_it_has)
    visitor.page.route(re.compile(f"/tasks/{task_id}/cancel$"), answered)
    visitor.signed_in(stack.token, f"/#/tasks/{task_id}")
    expect(visitor.step("Processing")).to_be_visible()
    expect(visitor.button("Cancel task")).to_have_count(0)
    vendor_of_it = "runway"
    visitor.page.reload()
    visitor.button("Cancel task").click()
    expect(visitor.page.get_by_text("is the vendor's to say")).to_be_visible()
    visitor.button("Cancel the task").click()
    expect(visitor.page.get_by_text("The vendor was asked to cancel it.").first).to_be_visible()
    assert asked == ["POST"]


def hostile_task(user: User, state: State) -> Task:
    """Make a task whose every field is an attack; only what decides about rules of our own is not."""
    said: Json = {HOSTILE: HOSTILE, "url": "javascript:window.broken = 1", "type": HOSTILE}
    data = dict.fromkeys(
        ("status", "task_id", "model_id", "reference", "result_expires_at", "billing", "truncated", HOSTILE),
        HOSTILE,
    )
    outcome: Json = {
        "error": {"code": HOSTILE, "message": HOSTILE},
        "result": {"resources": [said, HOSTILE, None]},
    }
    now = datetime.now(UTC)
    return a_task(user, 0).model_copy(
        update={
            "model": HOSTILE,
            "reference": HOSTILE,
            "request": json.dumps({HOSTILE: HOSTILE, "image_url": f"https://example.com/{HOSTILE}"}),
            "callback_url": HOSTILE,
            "upstream_task_id": HOSTILE,
            "state": state,
            "error": ErrorCode.UPSTREAM_FAILED,
            "message": json.dumps({"message": HOSTILE, "data": data | outcome}),
            "callback": CallbackState.UNDELIVERED,
            "attempts": 2,
            "log": (
                Attempt(at=now, status=500, answer=HOSTILE),
                Attempt(at=now, error=HOSTILE, answer=HOSTILE),
            ),
        }
    )


@pytest.mark.parametrize("state", [State.SUCCESS, State.FAILED])
def test_what_is_hostile_shows_as_text(
    newcomer: User,
    inbox: Inbox,
    stored: Callable[[Task], None],
    visit: Callable[..., Visitor],
    marker: str,
    state: State,
) -> None:
    """Every field of a task, and what a receiver answers, is text: no element, no link, no script."""
    task = hostile_task(newcomer, state)
    stored(task)
    inbox.behave(marker, 200, body=HOSTILE, times=2)
    visitor = visit().signed_in(token_of(newcomer))
    page = visitor.page
    shown = page.get_by_text(HOSTILE, exact=True)
    expect(page.get_by_role("row").filter(has_text=HOSTILE)).to_have_count(1)

    page.goto(f"/#/tasks/{task.task_id}")
    expect(visitor.heading(HOSTILE)).to_be_visible()
    page.get_by_text("The API's answer").click()
    assert shown.count() >= 6  # heading, id, model, vendor's id, URL, answers
    assert page.locator("main :is(script, img, iframe, video)").count() == 0
    assert page.locator("main a[href^='javascript' i]").count() == 0

    page.goto(f"/#/submit?from={task.task_id}")
    expect(page.get_by_label("reference")).to_have_value(HOSTILE)
    page.goto("/#/callbacks")
    page.get_by_label("Callback URL").fill(inbox.url(marker))
    visitor.button("Send samples").click()
    expect(shown).to_have_count(2)
    assert page.evaluate("window.broken") is None


ODD: list[Any] = [
    {},
    {"toString": None, "valueOf": 1},
    {"url": {"a": [1]}},
    [],
    [None, ["https://example.com/a.mp4"]],
    0,
    -1.5,
    True,
    None,
    "",
]


def test_what_a_vendor_may_say_in_any_place_breaks_no_page(
    newcomer: User, stored: Callable[[Task], None], visit: Callable[..., Visitor]
) -> None:
    """An object, list, number or null in place of a link or text is shown as it came; a link is one."""
    files = [*({"url": one, "type": one} for one in ODD), *ODD, {"url": "https://example.com/good.mp4"}]
    results: list[Any] = [{"resources": files}, {"resources": {"url": "x"}}, *ODD]
    tasks = [
        a_task(newcomer, number, message=json.dumps({"data": {"result": result, "stage": "success"} | odd}))
        for number, result in enumerate(results)
        for odd in (
            {
                "result_expires_at": ODD[number % len(ODD)],
                "billing": {"amount": ODD[number % len(ODD)]},
                "truncated": [],
            },
        )
    ]
    for task in tasks:
        stored(task)
    visitor = visit().signed_in(token_of(newcomer))
    expect(visitor.page.locator("tbody tr")).to_have_count(len(tasks))
    for number, task in enumerate(tasks):
        visitor.page.goto(f"/#/tasks/{task.task_id}")
        expect(visitor.heading(f"number {number}")).to_be_visible()
        expect(visitor.heading("Result")).to_be_visible()
        expect(visitor.page.get_by_text("The API's answer")).to_be_visible()
        if number == 0:
            expect(visitor.page.locator("main a.url")).to_have_text(["https://example.com/good.mp4"])
            expect(visitor.page.locator("main .url").first).to_have_text('{"url":{},"type":{}}')
    visitor.page.goto(f"/#/submit?from={tasks[0].task_id}")
    expect(visitor.page.get_by_label("reference")).to_have_value("number 0")


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_wrong_token_and_one_that_ends(
    stack: Stack, newcomer: User, admin: Admin, visit: Callable[..., Visitor], marker: str
) -> None:
    """Neither gets in, and a caller that was in is told why not any more."""
    visitor = visit()
    page = visitor.page
    page.clock.install()
    page.goto("/#/tasks")
    page.get_by_label("Caller token").fill("thk_mallory_" + "x" * 43)
    visitor.button("Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("This deployment does not accept that token.")
    page.get_by_label("Caller token").fill(token_of(newcomer))
    visitor.button("Sign in").click()
    expect(page.get_by_text("No tasks yet.")).to_be_visible()
    visitor.expected = {401}
    page.evaluate("sessionStorage.setItem('token', sessionStorage.getItem('token').slice(0, -4) + 'gone')")
    page.clock.run_for(5_000)
    expect(page.get_by_role("alert")).to_contain_text("Your token is not accepted any more")
    expect(visitor.heading("Sign in")).to_be_visible()


def test_an_api_that_is_away_and_comes_back(newcomer: User, visit: Callable[..., Visitor]) -> None:
    """What was seen stays, with the reason and when it is tried again; then the view lives on by itself."""
    visitor = visit()
    page, clock, alert = visitor.page, visitor.page.clock, visitor.page.get_by_role("alert")
    clock.install()
    visitor.signed_in(token_of(newcomer))
    expect(page.get_by_text("No tasks yet.")).to_be_visible()
    with visitor.offline():
        clock.run_for(5_000)
        expect(alert).to_contain_text("No answer")
    visitor.button("Try again").click()
    expect(alert).to_have_count(0)
    busy = {"status": 429, "headers": {"retry-after": "7"}, "json": {"message": "Too Many Requests"}}
    page.route(re.compile("/api/v1/tasks"), lambda route: route.fulfill(**busy))
    clock.run_for(5_000)
    expect(alert).to_contain_text("Too Many Requests. Trying again every 7 s.")
    page.unroute(re.compile("/api/v1/tasks"))
    clock.run_for(7_000)
    expect(alert).to_have_count(0)
    assert all("ERR_INTERNET_DISCONNECTED" in text or "429" in text for text in visitor.complaints)
    visitor.complaints.clear()


def test_an_error_leads_to_what_it_means(user: User, visit: Callable[..., Visitor]) -> None:
    """To the row that the header `Link` names, in a tab of its own: what is filled in here stays."""
    visitor = visit()
    visitor.expected = {400}
    page = visitor.signed_in(token_of(user), "/#/tasks?since=yesterday").page
    with page.expect_popup() as opened:
        page.get_by_role("alert").get_by_role("link", name="What this means").click()
    expect(opened.value).to_have_url(re.compile("/docs#error-400$"))
    expect(opened.value.locator("#error-400")).to_be_visible()


def test_there_is_no_such_task_or_page(user: User, visit: Callable[..., Visitor]) -> None:
    """Both are said, with a way back."""
    visitor = visit()
    visitor.expected = {404}
    visitor.signed_in(token_of(user), "/#/tasks/tk_0000000000000000000000")
    expect(visitor.heading("No such task")).to_be_visible()
    for address in (
        "nowhere",
        "constructor",
        "__proto__",
        "toString/x",
        "tasks/a/b",
        "submit/x",
        "watch/x",
        "callbacks/x",
        "/tasks",
    ):
        visitor.page.goto("/#/tasks")
        expect(visitor.heading("Tasks")).to_be_visible()
        visitor.page.goto(f"/#/{address}")
        expect(visitor.heading("There is no such page")).to_be_visible()
    for task_id in ("constructor", "..", ".", "redeliver", "%", "tk_x", "%2e%2e%2fmodels"):
        visitor.page.goto("/#/tasks")
        expect(visitor.heading("Tasks")).to_be_visible()
        visitor.page.goto(f"/#/tasks/{task_id}")
        expect(visitor.heading("No such task")).to_be_visible()
    visitor.page.get_by_role("link", name="To the tasks").click()
    expect(visitor.heading("Tasks")).to_be_visible()


# --- for every reader -----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_accessible(
    user: User, inbox: Inbox, visit: Callable[..., Visitor], marker: str, scheme: Scheme
) -> None:
    """In the eyes of axe, in light and dark, and on a phone; the keyboard alone gets to the content."""
    task_id = user.accepted(marker, callback_url=inbox.url(marker))
    user.ended(task_id)
    visitor = visit(color_scheme=scheme, reduced_motion="reduce")
    visitor.expected = {400}
    page = visitor.page
    page.goto("/")
    expect(visitor.heading("Sign in")).to_be_visible()
    assert_accessible(page)
    visitor.signed_in(token_of(user), "/#/tasks")
    expect(page.get_by_role("row").filter(has_text=task_id)).to_be_visible()
    assert_accessible(page)
    page.goto(f"/#/tasks/{task_id}")
    expect(visitor.step("Callback, attempt 1")).to_be_visible()
    page.get_by_text("The API's answer").click()
    assert_accessible(page)
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360  # nothing to push aside
    page.goto("/#/submit")
    visitor.button("Submit").click()
    expect(page.locator("#field-image_url-complaint")).to_have_text("Is required")
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for address, title in (("any?vendor=dashscope", "Submit any model"), ("watch", "Watch a task")):
        page.goto(f"/#/{address}")
        expect(visitor.heading(title)).to_be_visible()
        expect(page.get_by_label("callback_url")).to_be_visible()
        assert_accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.goto("/#/callbacks")
    page.get_by_label("Callback URL").fill(inbox.url(marker))
    visitor.button("Send samples").click()
    visitor.button("Show the secrets").click()
    expect(page.get_by_text("whsec_")).to_be_visible()
    expect(page.locator(".samples .good")).to_have_count(2)
    assert_accessible(page)


def test_the_keyboard_is_enough(user: User, visit: Callable[..., Visitor], marker: str) -> None:
    """The list is three stops away, the header before them; a refresh leaves the focus where it is."""
    task_id = user.accepted(marker)
    user.ended(task_id, "none")
    visitor = visit().signed_in(token_of(user))
    page = visitor.page
    link = page.get_by_role("link", name=marker, exact=True)
    expect(link).to_be_visible()
    page.reload()
    expect(link).to_be_visible()
    page.keyboard.press("Shift+Tab")
    expect(visitor.button("Sign out")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Tab")
    expect(page.locator(".tasks .title").first).to_be_focused()
    link.focus()
    later = user.accepted(f"later-{marker}")
    expect(page.get_by_role("row").filter(has_text=later)).to_be_visible()
    expect(link).to_be_focused()
    page.keyboard.press("Enter")
    expect(visitor.heading(marker)).to_be_visible()


# --- what an operator of receivers does ------------------------------------------------------------


def fresh(user: User, number: int, callback: str, url: str) -> Task:
    """Make a task of the last hour whose callback stands so, in the words of the console."""
    end = datetime.now(UTC) - timedelta(minutes=number)
    task = a_task(user, number).model_copy(
        update={
            "accepted_at": end - timedelta(seconds=70),
            "submitted_at": end - timedelta(seconds=70),
            "taken_at": end - timedelta(seconds=69),
            "ended_at": end,
            "upstream_task_id": f"task-{os.urandom(16).hex()}",
            "reference": f"{callback}/{number}",
            "callback_url": url,
            "callback": CallbackState.WAITING,
            "claimed_until": None,
            "nonce": "stored",  # what is changed must have one
        }
    )
    task = task.model_copy(update={"message": task._render("success", {"billing": {"amount": "0.2400"}})})
    if callback == "running":
        return task.model_copy(update={"state": State.WATCHED, "ended_at": None, "message": None})
    status = 204 if callback == "delivered" else 503
    later = datetime.now(UTC) + timedelta(hours=1) if callback == "retrying" else None
    made = Attempt(at=end, status=status, ms=41, answer="" if status == 204 else "deploying", next_at=later)
    return task.attempted(made, delivered=status == 204, retry_at=later, now=end, retention=timedelta(days=7))


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")]
)
def test_where_callbacks_stand_is_seen_at_once(
    newcomer: User,
    inbox: Inbox,
    stored: Callable[[Task], None],
    visit: Callable[..., Visitor],
    marker: str,
    width: int,
    scheme: Scheme,
) -> None:
    """A strip of totals, a word and a colour for each state, ids in one piece, nothing to push aside."""
    tasks = {
        word: fresh(newcomer, number, word, inbox.url(marker))
        for number, word in enumerate(("running", "delivered", "retrying", "failed"))
    }
    for task in tasks.values():
        stored(task)
    visitor = visit(color_scheme=scheme, reduced_motion="reduce", viewport={"width": width, "height": 800})
    page = visitor.signed_in(token_of(newcomer)).page
    strip = page.get_by_role("region", name="The last 24 hours")
    for name, value in (("accepted", 4), ("delivered", 1), ("retrying", 1), ("undelivered", 1)):
        expect(strip.locator("div").filter(has_text=re.compile(f"^{name}{value}$"))).to_have_count(1)
    expect(strip).to_contain_text("33.3 %")
    expect(strip).to_contain_text("0.72")
    row = {word: page.get_by_role("row").filter(has_text=task.task_id) for word, task in tasks.items()}
    expect(row["running"].locator(".of-callback")).to_contain_text("pendingafter the end")
    expect(row["retrying"].locator(".of-callback")).to_contain_text("retryinganswered 503")
    expect(row["retrying"].locator(".of-callback")).to_contain_text("1 attempt, next in")
    expect(row["failed"].locator(".of-callback")).to_contain_text("undeliveredanswered 503")
    words = [row[word].locator(".of-callback .word") for word in tasks]
    assert len({word.evaluate("(it) => getComputedStyle(it).color") for word in words}) == len(words)
    assert_accessible(page)
    whole_ids(page, width)

    page.get_by_text("Filters", exact=True).click()
    page.get_by_label("Callback").select_option("retrying")
    expect(visitor.button("Retry all of them now")).to_be_visible()
    assert_accessible(page)
    whole_ids(page, width)
    page.goto(f"/#/tasks/{tasks['retrying'].task_id}")
    expect(visitor.button("Retry now")).to_be_visible()
    expect(page.get_by_text("callback retrying")).to_be_visible()
    page.get_by_text("What was sent and came back").click()
    expect(page.get_by_text("signed anew")).to_be_visible()
    page.keyboard.press("?")
    expect(visitor.heading("Keys")).to_be_visible()
    assert_accessible(page)
    visitor.button("Close").click()
    whole_ids(page, width)
    page.goto("/#/submit")
    expect(visitor.heading("The same from your code")).to_be_visible()
    assert_accessible(page)
    whole_ids(page, width)
    page.goto("/#/tasks?search=retr")
    expect(page.locator("tbody tr")).to_have_count(1)


def whole_ids(page: Page, width: int) -> None:
    """Assert that no id goes over two lines, and that nothing is wider than the page."""
    broken = "(all) => all.filter((id) => id.getBoundingClientRect().height > 30).map((id) => id.textContent)"
    assert page.locator(".id").evaluate_all(broken) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_link_survives_the_sign_in(
    newcomer: User, inbox: Inbox, stored: Callable[[Task], None], visit: Callable[..., Visitor]
) -> None:
    """It leads on as soon as the caller is signed in, also where the session ended in between."""
    task = fresh(newcomer, 1, "delivered", inbox.url("x"))
    stored(task)
    visitor = visit()
    visitor.expected = {401}
    page = visitor.page

    def sign_in() -> None:
        page.get_by_label("Caller token").fill(token_of(newcomer))
        visitor.button("Sign in").click()

    page.goto(f"/#/tasks/{task.task_id}")
    sign_in()
    expect(visitor.heading("delivered/1")).to_be_visible()
    page.goto("/#/tasks?search=deliv&callback=delivered")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.evaluate("sessionStorage.setItem('token', sessionStorage.getItem('token').slice(0, -4) + 'gone')")
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("Your token is not accepted any more")
    sign_in()
    expect(page.locator("tbody tr")).to_contain_text("delivered/1")
    assert "search=deliv" in page.url


def test_a_task_is_found_by_what_is_known_of_it(
    newcomer: User, inbox: Inbox, stored: Callable[[Task], None], visit: Callable[..., Visitor]
) -> None:
    """By the beginning of its reference, its id, the vendor's id; what is not there is said to be missing."""
    task = fresh(newcomer, 1, "delivered", inbox.url("x"))
    stored(task)
    stored(fresh(newcomer, 2, "failed", inbox.url("x")))
    visitor = visit().signed_in(token_of(newcomer))
    page, rows = visitor.page, visitor.page.locator("tbody tr")
    expect(rows).to_have_count(2)
    field = page.get_by_role("searchbox", name="Search")
    expect(field).to_have_attribute("placeholder", "Reference or id, then Enter")
    for words in ("DELIVERED/", f" {task.upstream_task_id} "):
        page.locator("h1").click()
        page.keyboard.press("/")
        expect(field).to_be_focused()
        page.keyboard.type(words)
        page.keyboard.press("Enter")
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text(task.task_id)
    field.fill("elivered")
    field.press("Enter")
    expect(page.get_by_text("No task matches.")).to_be_visible()
    field.fill(task.task_id)
    field.press("Enter")
    expect(visitor.heading("delivered/1")).to_be_visible()
    page.keyboard.press("/")
    expect(field).to_be_focused()
    expect(rows).to_have_count(2)
    page.route(
        re.compile(r"/api/v1/tasks\?"),
        lambda route: route.fulfill(
            json={
                "code": 0,
                "message": "success",
                "data": {
                    "tasks": [],
                    "next_cursor": f"1795000000000_{task.task_id}",
                    "looked_at": {"tasks": 900, "back_to": "2026-11-19T12:00:00.000Z"},
                },
            }
        ),
    )
    field.fill("far away")
    field.press("Enter")
    expect(page.get_by_text("900 tasks were looked at, back to 19 Nov 2026, 13:00:00")).to_be_visible()
    visitor.button("Look further back »").click()
    expect(page).to_have_url(re.compile("cursor=1795000000000"))


def test_the_keys(
    newcomer: User, inbox: Inbox, stored: Callable[[Task], None], visit: Callable[..., Visitor]
) -> None:
    """`j` and `k` move, Enter opens, `?` tells; in a field they are letters, and they can be switched off."""
    for number in range(3):
        stored(fresh(newcomer, number, "delivered", inbox.url("x")))
    visitor = visit().signed_in(token_of(newcomer))
    page, links = visitor.page, visitor.page.locator(".tasks .title")
    expect(links).to_have_count(3)
    for key, at in (("j", 0), ("j", 1), ("j", 2), ("j", 2), ("k", 1)):
        page.keyboard.press(key)
        expect(links.nth(at)).to_be_focused()
    page.keyboard.press("Enter")
    expect(visitor.heading("delivered/1")).to_be_visible()
    page.keyboard.press("?")
    expect(visitor.heading("Keys")).to_be_visible()
    page.get_by_label("Single keys act in this tab").uncheck()
    page.keyboard.press("Escape")
    expect(visitor.heading("Keys")).to_have_count(0)
    page.keyboard.press("?")
    page.keyboard.press("/")
    expect(visitor.heading("Keys")).to_have_count(0)
    expect(visitor.heading("delivered/1")).to_be_visible()
    visitor.button("Keys").click()
    page.get_by_label("Single keys act in this tab").check()
    visitor.button("Close").click()
    page.keyboard.type("/j?/k")
    expect(page.get_by_role("searchbox", name="Search")).to_have_value("j?/k")


def test_an_attempt_can_be_made_again_by_hand(
    newcomer: User, inbox: Inbox, stored: Callable[[Task], None], visit: Callable[..., Visitor], marker: str
) -> None:
    """The copied command is the callback: the same bytes, signed so that the receiver takes it."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    task = fresh(newcomer, 1, "retrying", inbox.url(marker))
    stored(task)
    visitor = visit(permissions=["clipboard-read", "clipboard-write"])
    page = visitor.signed_in(token_of(newcomer), f"/#/tasks/{task.task_id}").page
    page.get_by_text("What was sent and came back").click()
    details = page.locator("details.attempt")
    expect(details).to_contain_text("x-modellix-retry-count0")
    expect(details).to_contain_text("answered 503")
    visitor.button("Copy the request as curl").click()
    command = page.evaluate("navigator.clipboard.readText()")
    assert "whsec_" not in details.inner_text() + command
    subprocess.run(["bash", "-c", command], check=True, capture_output=True, timeout=60)
    [delivery] = inbox.deliveries(task.task_id)
    assert delivery["headers"]["webhook-id"] == task.webhook_id
    assert delivery["body"] == task.message
    assert verified(newcomer, delivery)


def verified(user: User, delivery: Json) -> bool:
    """Verify a delivery with the user's own secret."""
    [secret] = user.http.get("/api/v1/callbacks/secret").json()["data"]["secrets"]
    return bool(Webhook(secret["secret"]).verify(delivery["body"], delivery["headers"]))


def test_what_is_retrying_is_sent_now_by_host(
    newcomer: User, inbox: Inbox, stored: Callable[[Task], None], visit: Callable[..., Visitor], marker: str
) -> None:
    """With the count first, and the progress; what another host is to get goes on waiting."""
    url = inbox.url(marker)
    mine = [fresh(newcomer, number, "retrying", url) for number in range(2)]
    for task in (*mine, fresh(newcomer, 3, "retrying", "https://elsewhere.invalid/hook")):
        stored(task)
    visitor = visit().signed_in(token_of(newcomer), "/#/tasks?callback=retrying")
    page, rows = visitor.page, visitor.page.locator("tbody tr")
    expect(page.get_by_text("3 callbacks waiting for the next attempt.")).to_be_visible()
    page.get_by_label("Receiver's host").fill(urlsplit(url).netloc.upper())
    page.get_by_label("Receiver's host").press("Enter")
    expect(page.get_by_text("2 callbacks waiting for the next attempt.")).to_be_visible()
    visitor.button("Retry all of them now").click()
    expect(page.locator(".notice")).to_contain_text("2 on their way again")
    for task in mine:
        assert newcomer.ended(task.task_id)["callback"]["attempts"] == 2
        assert [delivery["status_answered"] for delivery in inbox.deliveries(task.task_id)] == [200]
    expect(page.get_by_text("No task matches.")).to_be_visible()
    expect(page.locator(".notice")).to_have_count(0)  # what was said is over
    page.goto("/#/tasks?callback=retrying")
    expect(rows).to_have_count(1)


def test_the_form_is_shown_as_code(
    stack: Stack, user: User, visit: Callable[..., Visitor], marker: str
) -> None:
    """In three languages, each of which runs; with the form's key, so that all of them are one task."""
    visitor = visit().signed_in(stack.token, "/#/submit")
    page, code = visitor.page, visitor.page.get_by_role("region", name="Code", exact=True)
    visitor.button("Fill in the example").click()
    expect(page.get_by_label("image_url")).to_have_value(f"{stack.upstream}/media/actor.jpg")
    page.get_by_label("callback_url").fill("")
    page.get_by_label("reference").fill(f'it\'s "{marker}"')
    expect(code).to_contain_text(marker)
    assert stack.token not in page.content()
    runs = {
        "curl": ["bash", "-c"],
        "Python": [sys.executable, "-c"],
        "JavaScript": ["node", "--input-type=module", "-e"],
    }
    environment = {**os.environ, "TOKEN": stack.token, "NO_PROXY": "*"}
    for language, command in runs.items():
        visitor.button(language).click()
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run(
            [*command, code.text_content() or ""],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert '"status":"pending"' in done.stdout
    visitor.button("Submit").click()
    expect(visitor.heading(f'it\'s "{marker}"')).to_be_visible()
    found = user.tasks(search=f"it's \"{marker}")
    assert [task["reference"] for task in found] == [f'it\'s "{marker}"']


def test_without_example_media_none_are_offered(user: User, visit: Callable[..., Visitor]) -> None:
    """A real deployment has none, and its form names nothing that does not exist."""
    visitor = visit()
    page = visitor.page

    def real(route: Route) -> None:
        document = route.fetch().json()
        del document["info"]["x-example-media"]
        route.fulfill(json=document)

    page.route(re.compile("/openapi.json"), real)
    visitor.signed_in(token_of(user), "/#/submit")
    expect(visitor.button("Submit")).to_be_visible()
    expect(visitor.button("Fill in the example")).to_have_count(0)
    assert "example.com" not in page.locator("main").inner_html()
    page.goto("/#/any?vendor=dashscope")
    expect(page.get_by_label("Request, as JSON")).to_have_value(re.compile('"image_url": ""'))


MANY = 500
AT_ONCE = 50  # rows at most that one step adds: few milliseconds of any browser's


def test_five_hundred_tasks_make_no_slow_frame(
    newcomer: User, inbox: Inbox, store_many: Callable[[list[Task]], None], visit: Callable[..., Visitor]
) -> None:
    """They are drawn a few at a time, and a refresh touches only the rows whose tasks have changed."""
    store_many([fresh(newcomer, number, "delivered", inbox.url("x")) for number in range(MANY)])
    visitor = visit()
    page = visitor.page
    page.clock.install()
    page.add_init_script(
        "window.drawn = [];"
        "const rows = (list) => list.flatMap((one) => [...one.addedNodes]).reduce((sum, node) => sum"
        " + (node.matches?.('tbody tr') ? 1 : node.querySelectorAll?.('tbody tr').length ?? 0), 0);"
        "new MutationObserver((list) => drawn.push(rows(list)))"
        ".observe(document, {childList: true, subtree: true})"
    )
    visitor.signed_in(token_of(newcomer), f"/#/tasks?size={MANY}")
    rows = page.locator("tbody tr")

    def drawn() -> bool:
        page.clock.run_for(100)
        return rows.count() == MANY

    eventually(drawn)
    page.evaluate(
        "window.touched = 0;"
        "new MutationObserver((list) => list.forEach((one) => touched += one.addedNodes.length"
        " + one.removedNodes.length)).observe(document.querySelector('tbody'), {childList: true})"
    )
    task_id = newcomer.accepted("one-more")
    newcomer.ended(task_id, "none")
    page.clock.run_for(16_000)
    expect(page.get_by_role("row").filter(has_text=task_id)).to_be_visible()
    assert page.evaluate("window.touched") == 2  # one came, one left the page
    steps: list[int] = page.evaluate("window.drawn")
    assert sum(steps) >= MANY
    assert max(steps) <= AT_ONCE


# --- the documentation ----------------------------------------------------------------------------

DESK, PHONE = ViewportSize(width=1280, height=900), ViewportSize(width=360, height=740)
LONGEST = 8000  # pixels


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_documentation_shows_everything(
    user: User, visit: Callable[..., Visitor], scheme: Scheme
) -> None:
    """Every operation with its parameters, fields and examples, every event and error; without a token."""
    document = user.http.get("/openapi.json").json()
    visitor = visit(color_scheme=scheme, viewport=DESK)
    page = visitor.page
    page.goto("/docs")
    expect(visitor.heading("The API of taskhook")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollHeight") < LONGEST
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    items = {path: item for path, item in document["paths"].items() if not path.endswith("/async")}
    operations = [
        (title, operation)
        for title, item in {**items, **document["webhooks"]}.items()
        for operation in item.values()
    ]
    expect(page.locator("details.operation")).to_have_count(len(operations))
    for title, operation in operations:
        text = page.locator(f"#{operation['operationId']}").text_content() or ""
        expected = [title, operation["summary"].replace("`", "")]
        expected += [parameter["name"] for parameter in operation.get("parameters", [])]
        if "Events" not in operation["tags"]:  # whose answers are the receiver's, told under Retries
            expected += [status for status in operation["responses"] if status != "200"]
        for holder in (operation.get("requestBody", {}), operation["responses"].get("200", {})):
            expected += [
                json.dumps(one["example"], indent=2, ensure_ascii=False)
                for one in holder.get("content", {}).values()
            ]
        assert [part for part in expected if part not in text] == [], title
    shown = page.locator("main").text_content() or ""
    fields = {
        name for schema in document["components"]["schemas"].values() for name in schema.get("properties", {})
    }
    assert [name for name in fields - {"code", "message", "data"} if name not in shown] == []
    assert "where it applies" not in shown
    facts = document["x-guide"]
    for row in (*facts["errors"], *facts["task_errors"], *facts["delivery_errors"]):
        expect(page.locator(f"tr#{row['anchor']}")).to_contain_text(row["do"].replace("`", ""))
    assert_accessible(page)
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert_accessible(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_documentation_begins_with_the_guide(visit: Callable[..., Visitor], scheme: Scheme) -> None:
    """Beside it there is an index on a desk; on a phone nothing stands before it, and nothing is too wide."""
    visitor = visit(color_scheme=scheme, viewport=DESK)
    page = visitor.page
    page.goto("/docs")
    expect(page.locator("main h2")).to_have_text(
        ["Submit", "Receive and verify", "Retries", "Errors", "Reference"]
    )
    index = page.get_by_role("navigation", name="On this page")
    for anchor in index.get_by_role("link").evaluate_all("(all) => all.map((one) => one.hash)"):
        expect(page.locator(anchor)).to_have_count(1)
    page.set_viewport_size(PHONE)
    expect(index).to_be_hidden()
    expect(visitor.heading("The API of taskhook")).to_be_in_viewport()
    expect(page.get_by_role("tab", name="curl").first).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_a_link_into_the_documentation_shows_what_it_names(visit: Callable[..., Visitor]) -> None:
    """An error, and a call that is closed else; from elsewhere, and from the page itself."""
    visitor = visit(viewport=DESK)
    page = visitor.page
    page.goto("/docs#error-502-unknown")
    expect(page.locator("tr#error-502-unknown")).to_be_in_viewport()
    expect(page.locator("tr#error-502-unknown")).not_to_have_css("background-color", "rgba(0, 0, 0, 0)")
    expect(page.locator("#showTask")).not_to_have_attribute("open", "")
    page.goto("/docs#showTask")
    expect(page.locator("#showTask").get_by_text("Call", exact=True)).to_be_in_viewport()
    page.locator("#showTask").get_by_role("link", name="404").click()
    expect(page.locator("tr#error-404")).to_be_in_viewport()
    expect(page.locator("tr#error-502-unknown")).to_have_css("background-color", "rgba(0, 0, 0, 0)")
    page.get_by_role("link", name="prediction.task.failed").click()
    expect(page.locator("#task_failed").get_by_text("Example", exact=True)).to_be_in_viewport()
    page.goto("/docs#<img src=x onerror='window.broken = 1'>")
    expect(visitor.heading("The API of taskhook")).to_be_visible()
    assert page.evaluate("window.broken") is None


def test_the_samples_of_the_documentation_work(
    stack: Stack, user: User, inbox: Inbox, visit: Callable[..., Visitor], marker: str, tmp_path: Path
) -> None:
    """As copied, in each language, but for the media: a task comes of each, and its callback verifies."""
    visitor = visit(viewport=DESK)
    page = visitor.page
    page.goto("/docs")
    samples: dict[str, dict[str, str]] = {"submit": {}, "receive": {}}
    for language in ("curl", "Python", "JavaScript"):
        page.locator("#submit").get_by_role("tab", name=language).click()
        expect(page.locator("#submit").get_by_role("tab", selected=True)).to_have_text(language)
        for name, texts in samples.items():
            texts[language] = page.locator(f"#{name} [role=tabpanel]").text_content() or ""
    page.locator("#submit").get_by_role("tab", selected=True).press("ArrowRight")  # round
    expect(page.locator("#submit").get_by_role("tab", selected=True)).to_have_text("curl")
    expect(page.locator("#submit").get_by_role("tab", selected=True)).to_be_focused()

    commands = {"curl": ["bash", "-c"], "Python": [sys.executable, "-c"]}
    if (node := shutil.which("node")) is not None:
        commands["JavaScript"] = [node, "--input-type=module", "-e"]
    for language, command in commands.items():
        text = samples["submit"][language].replace("https://example.com/", f"https://media.invalid/{marker}/")
        text = text.replace("https://you.example.com/hook", inbox.url(marker))
        text = text.replace("order-17", f"{marker}-{language}")
        ran = subprocess.run(
            [*command, text],
            env=os.environ | {"TOKEN": token_of(user)},
            capture_output=True,
            text=True,
            check=True,
        )
        answer = json.loads(ran.stdout[ran.stdout.index("{") :])
        assert answer["code"] == 0
        task_id = answer["data"]["task_id"]
        assert user.ended(task_id)["reference"] == f"{marker}-{language}"
        [delivery] = inbox.deliveries(task_id)
        names: dict[str, Any] = {}
        exec(samples["receive"]["Python"], names)  # noqa: S102  # that is the test
        headers = {name.lower(): value for name, value in delivery["headers"].items()}
        secret = user.http.get("/api/v1/callbacks/secret").json()["data"]["secrets"][0]["secret"]
        assert names["verify"](secret, headers, delivery["body"].encode())
