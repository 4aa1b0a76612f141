"""Both handlers with the sample events, on a real table and an emulated vendor in a process of its own."""

import base64
import copy
import gzip
import hashlib
import importlib
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import httpx
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext
from standardwebhooks.webhooks import Webhook

from taskhook.api import guide, routes
from taskhook.vendors.modellix import MODELS
from taskhook.wiring import App
from tests.contract import check_answer, document
from tests.local import stack
from tests.local.vendor import RESULT
from tests.world import MATERIAL, a_caller, as_stored, token_of

if TYPE_CHECKING:
    from taskhook.adapters.dynamodb.callers import DynamoCallers

ROOT = Path(__file__).parents[2]
Event = dict[str, Any]
Ask = Callable[..., "Heard"]


class Heard:
    """What an HTTP event was answered."""

    def __init__(self, answer: Event) -> None:
        self.status: int = answer["statusCode"]
        self.headers = {name.lower(): value for name, value in answer.get("headers", {}).items()}
        self.body: Event = json.loads(answer["body"])


class SubmitContext(LambdaContext):
    """A context with as much time as the template gives."""

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        """Tell the time that is left."""
        return 20_000


class PollContext(LambdaContext):
    """A context with as much time as the template gives."""

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        """Tell the time that is left."""
        return 150_000


def sample(name: str) -> Event:
    """Read a sample event."""
    event: Event = json.loads((ROOT / "events" / f"{name}.json").read_text())
    return event


@pytest.fixture(scope="module")
def upstream() -> Iterator[Event]:
    """Start a vendor whose tasks are done at once; give its origin and a key."""
    vendor = subprocess.Popen(
        [sys.executable, "-m", "tests.local.vendor", "--port", "0", "--task-seconds", "0", "--no-webhooks"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    with vendor:
        assert vendor.stdout is not None
        yield json.loads(vendor.stdout.readline())
        vendor.terminate()


@pytest.fixture
def deployed(
    monkeypatch: pytest.MonkeyPatch,
    account_url: str,
    tasks_table: str,
    callers_table: str,
    dynamo_callers: "DynamoCallers",
    upstream: Event,
) -> Iterator[None]:
    """Give the functions an environment as the template does, and two callers."""
    httpx.delete(f"{upstream['upstream']}/_control/faults")
    credentials = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": stack.REGION,
    }
    secrets = boto3.client(
        "secretsmanager",
        endpoint_url=account_url,
        region_name=stack.REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    keys = {"modellix": upstream["api_key"], "deployment_key": MATERIAL}
    secret = secrets.create_secret(Name=f"keys-{tasks_table}", SecretString=json.dumps(keys))
    environment = credentials | {
        "AWS_ENDPOINT_URL": account_url,
        "STACK_NAME": "shop",
        "TASKS_TABLE": tasks_table,
        "CALLERS_TABLE": callers_table,
        "MODELLIX_VENDOR_URL": upstream["upstream"],
        "KEYS_SECRET": secret["ARN"],
        "PUBLIC_URL": "https://tasks.example.com",
        "API_URL": "https://abcdefghij.execute-api.us-east-1.amazonaws.com",
        "POLL_FUNCTION": "poll",
        "CALLBACK_TARGETS": "any",
        "CALLBACK_LATENCY": "economy",
        "FIRST_POLL": "immediate",
        "REQUESTS_PER_MINUTE": "1000",
        "LONG_POLL": "on",
        "VENDOR_WEBHOOKS": "on",
        "MEDIA_CHECKS": "off",  # with a network the sample's host is there, and has no such files
        "MAX_QUEUED": "1000",
        "MAX_TASK_HOURS": "24",
        "MAX_QUEUE_HOURS": "24",
        "RETENTION_DAYS": "7",
        "ARCHIVES_AT_ONCE": "2",
        "POWERTOOLS_METRICS_NAMESPACE": "taskhook",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("alice", "bob"):
        caller = as_stored(a_caller(name))
        dynamo_callers.table.client.put_item(
            TableName=callers_table,
            Item={
                "caller": {"S": caller.caller},
                "tokens": {"L": [{"M": {"value": {"S": caller.tokens[0].value}}}]},
                "secrets": {"L": [{"M": {"value": {"S": caller.secrets[0].value}}}]},
                "created_at": {"N": "0"},
            },
        )
    forget()
    yield
    forget()


def function(name: str) -> Any:
    """Give a function's module, loaded as at a cold start where none is warm."""
    return importlib.import_module(f"functions.{name}.app")


def submit_handler(event: Event, context: LambdaContext) -> Event:
    """Have the submit function answer."""
    answer: Event = function("submit").handler(event, context)
    return answer


def poll_handler(event: Event, context: LambdaContext) -> Event:
    """Have the poll function serve an event."""
    report: Event = function("poll").handler(event, context)
    return report


def archive_handler(event: Event, context: LambdaContext) -> Event:
    """Have the archive function serve an event."""
    report: Event = function("archive").handler(event, context)
    return report


def forget() -> None:
    """End the functions that are warm; the next event is a cold start, and its log is of its own test."""
    for name in ("submit", "poll", "archive"):
        warm = sys.modules.pop(f"functions.{name}.app", None)
        if warm is not None:
            warm.app.run(close(warm.app))
            warm.app.runner.close()
    # A logger of that name would keep the handler of the first one, whose stream ends with its test.
    logging.Logger.manager.loggerDict.pop("taskhook", None)


async def close(app: App) -> None:
    """Close what a function leaves open while it stays warm."""
    for api in app.vendors.values():
        await api.close()  # type: ignore[attr-defined]  # the real one
    await app.callbacks.close()
    await app.test_callbacks.close()


def explained(heard: Heard) -> str:
    """Give the header that leads from an error to the row of `/docs` that explains it."""
    anchor = "502-unknown" if "Outcome unknown" in str(heard.body) else heard.status
    assert f"error-{anchor}" in {row["anchor"] for row in guide.facts()["errors"]}
    return f'<https://tasks.example.com/docs#error-{anchor}>; rel="help"'


@pytest.fixture
def ask(deployed: None) -> Ask:
    """Send the submit function a sample event, changed."""

    def send(
        name: str = "submit",
        *,
        token: str | None = None,
        headers: Event | None = None,
        raw: str | None = None,
        **changes: Any,
    ) -> Heard:
        event = copy.deepcopy(sample(name))
        for header, value in {"authorization": token, **(headers or {})}.items():
            if value is not None:
                event["headers"][header] = value
        if "body" in event:
            body = json.loads(event["body"]) | changes
            event["body"] = (
                raw
                if raw is not None
                else json.dumps({key: value for key, value in body.items() if value is not Ellipsis})
            )
        else:
            event |= changes
            event["requestContext"]["http"] |= {"path": event["rawPath"]}
        heard = Heard(submit_handler(event, SubmitContext()))
        check_answer(event["requestContext"]["http"]["method"], event["rawPath"], heard.status, heard.body)
        repeat = [heard.headers.get("x-should-retry") == "false", "retry-after" in heard.headers]
        assert sum(repeat) == (heard.status >= 400), "an error says either not to repeat or when to"
        assert heard.headers.get("link") == (explained(heard) if heard.status >= 400 else None)
        return heard

    return send


def stored(table: str, client: Any) -> int:
    """Count the items of a table."""
    count: int = client.scan(TableName=table, Select="COUNT")["Count"]
    return count


def test_from_submit_to_tick_with_the_sample_events(ask: Ask, upstream: Event) -> None:
    """The sample submit is taken, shown, listed, and ended by the sample tick."""
    submitted = ask(callback_url=...)
    assert (submitted.status, submitted.body["code"], submitted.body["message"]) == (200, 0, "success")
    data = submitted.body["data"]
    assert re.fullmatch(r"tk_[A-Za-z0-9_-]{22}", data["task_id"])
    assert data == {
        "status": "pending",
        "task_id": data["task_id"],
        "model_id": "alibaba/wan2.2-animate-mix",
        "get_result": {"method": "GET", "url": f"https://tasks.example.com/api/v1/tasks/{data['task_id']}"},
    }
    path = f"/api/v1/tasks/{data['task_id']}"
    assert ask("task", rawPath=path).body["data"]["status"] == "processing"
    report = poll_handler(sample("tick"), PollContext())
    assert report["steps"] == {"polled": 1, "ended": 1}
    shown = ask("task", rawPath=path).body["data"]
    assert (shown["status"], shown["reference"], shown["callback"]["state"]) == ("success", "order-1", "none")
    assert shown["result"]["resources"][0]["url"].startswith(upstream["upstream"])
    listing = ask("list", queryStringParameters={"status": "success"}).body["data"]
    assert [task["task_id"] for task in listing["tasks"]] == [data["task_id"]]
    assert ask("list").body["data"] == {"tasks": [], "next_cursor": None}


def test_metrics_are_the_stacks_own_and_an_idle_tick_has_none(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several stacks live in one account; and a metric costs while it is written."""
    ask(callback_url=...)
    poll_handler(sample("tick"), PollContext())
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    written = [line for line in lines if "_aws" in line]
    assert [line.get("service") for line in written] == ["shop", "shop"]
    assert [line for line in lines if "_aws" not in line and "service" in line] == []
    assert (written[0]["TaskAccepted"], written[1]["VendorPolled"]) == ([1.0], [1.0])
    poll_handler(sample("tick"), PollContext())
    assert capsys.readouterr().out == ""


def test_a_wake_serves_its_ids(ask: Ask) -> None:
    """The sample wake with a real id ends that task; with an unknown one it does nothing."""
    assert poll_handler(sample("wake"), PollContext())["steps"] == {}
    task_id = ask(callback_url=...).body["data"]["task_id"]
    assert poll_handler({"ended": [task_id]}, PollContext())["steps"]["ended"] == 1


def test_an_archived_result_is_led_to(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, account_url: str, upstream: Event
) -> None:
    """From success through the archive to the bytes, by the answer's link; without archive no such path."""
    s3 = boto3.client(
        "s3",
        endpoint_url=account_url,
        region_name=stack.REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    s3.create_bucket(Bucket="kept")
    monkeypatch.setenv("RESULTS_BUCKET", "kept")
    monkeypatch.setenv("ARCHIVE_FUNCTION", "not-there")  # so that the tick starts nothing, and this test does
    forget()
    task_id = ask(callback_url=...).body["data"]["task_id"]
    path = f"/api/v1/tasks/{task_id}"
    assert poll_handler(sample("tick"), PollContext())["steps"] == {"polled": 1}
    assert ask("task", rawPath=path).body["data"]["status"] == "processing"
    assert archive_handler(sample("archive") | {"wake": None}, PollContext()) == {"files": {}}
    assert archive_handler({"archive": [task_id], "wake": None}, PollContext()) == {"files": {"archived": 1}}
    assert poll_handler(sample("tick"), PollContext())["steps"] == {"ended": 1}
    [resource] = ask("task", rawPath=path).body["data"]["result"]["resources"]
    assert resource["source_url"].startswith(upstream["upstream"])

    event = sample("task") | {"rawPath": resource["url"].removeprefix("https://tasks.example.com")}
    event["requestContext"]["http"] |= {"path": event["rawPath"]}
    del event["headers"]["authorization"]
    led = submit_handler(event, SubmitContext())
    assert (led["statusCode"], led["body"]) == (302, "")
    got = httpx.get(led["headers"]["Location"], trust_env=False)
    assert (got.content, got.headers["content-type"]) == (RESULT.read_bytes(), "video/mp4")
    monkeypatch.delenv("RESULTS_BUCKET")
    forget()
    assert Heard(submit_handler(event, SubmitContext())).status == 404
    s3.close()


def test_a_queued_task_can_be_canceled_and_a_taken_one_cannot(ask: Ask, upstream: Event) -> None:
    """The answer is the task's; what is paid is not taken back, and another's task is not found."""
    httpx.post(f"{upstream['upstream']}/_control/faults", json={"on": "submit", "fault": "429"})
    queued = ask(callback_url=...).body["data"]["task_id"]
    again = ask(callback_url=...).body["data"]["task_id"]
    path = f"/api/v1/tasks/{queued}"
    cancel = sample("task") | {"rawPath": f"{path}/cancel"}
    cancel["requestContext"]["http"] |= {"method": "POST", "path": f"{path}/cancel"}
    canceled = Heard(submit_handler(cancel, SubmitContext()))
    assert (canceled.status, canceled.body["data"]["error"]["code"]) == (200, "canceled")
    assert ask("task", rawPath=path).body["data"]["status"] == "failed"
    assert Heard(submit_handler(cancel, SubmitContext())).status == 409
    cancel["rawPath"] = cancel["requestContext"]["http"]["path"] = (
        "/api/v1/tasks/tk_0000000000000000000000/cancel"
    )
    assert Heard(submit_handler(cancel, SubmitContext())).status == 404
    while not poll_handler(sample("tick"), PollContext())["steps"].get("submitted", 0):
        # the vendor has asked for a pause of a second or two, which a tick of the economy does not wait for
        time.sleep(0.1)
    assert ask("task", rawPath=f"/api/v1/tasks/{again}").body["data"]["status"] == "processing"


def test_in_economy_there_are_no_vendor_webhooks(ask: Ask) -> None:
    """The poller could not act on one before the tick, so the vendor is not asked for any."""
    event = sample("task")
    event["rawPath"] = event["requestContext"]["http"]["path"] = "/hooks/tk_0000000000000000000000/x"
    event["requestContext"]["http"]["method"] = "POST"
    assert Heard(submit_handler(event, SubmitContext())).status == 404


def test_both_submit_paths_are_one(ask: Ask) -> None:
    """The vendor's older suffix works too."""
    event = sample("submit")
    event["rawPath"] += "/async"
    event["requestContext"]["http"]["path"] += "/async"
    assert Heard(submit_handler(event, SubmitContext())).status == 200


def test_the_callers_never_see_each_other(ask: Ask) -> None:
    """Another caller's task is a 404, and not in the listing."""
    task_id = ask().body["data"]["task_id"]
    bob = f"Bearer {token_of('bob')}"
    assert ask("task", token=bob, rawPath=f"/api/v1/tasks/{task_id}").status == 404
    assert ask("list", token=bob, queryStringParameters={}).body["data"]["tasks"] == []


def test_validate_says_whether_the_token_is_good(ask: Ask) -> None:
    """In the vendor's form: never a 401."""
    for token, good in ((None, True), ("Bearer x", False), ("", False)):
        heard = ask("task", token=token, rawPath="/api/v1/apikey/validate")
        assert (heard.status, heard.body["data"]) == (200, {"is_valid": good})


def test_models_come_without_envelope(ask: Ask) -> None:
    """As the vendor's own client wants them."""
    heard = ask("task", rawPath="/api/v1/models")
    assert [model["slug"] for model in heard.body["models"]] == [
        "alibaba/wan2.2-animate-mix",
        "alibaba/wan2.2-animate-move",
    ]


def test_the_balance_is_the_vendors(ask: Ask, upstream: Event) -> None:
    """Kept for a while, so that the vendor is asked once; and only for callers."""
    asked = [ask("task", rawPath="/api/v1/team/balance") for _ in range(3)]
    assert [(heard.status, heard.body["data"]) for heard in asked] == [(200, {"balance": 100.1234})] * 3
    assert ask("task", token="Bearer x", rawPath="/api/v1/team/balance").status == 401
    forget()
    httpx.post(f"{upstream['upstream']}/_control/faults", json={"on": "balance", "fault": "503"})
    away = ask("task", rawPath="/api/v1/team/balance")
    assert (away.status, away.headers["retry-after"]) == (503, "10")


def test_an_answer_waits_for_the_end_of_its_task(ask: Ask) -> None:
    """One that has ended is answered at once; what is asked for must be clear."""
    task_id = ask(callback_url=...).body["data"]["task_id"]
    path = f"/api/v1/tasks/{task_id}"
    poll_handler(sample("tick"), PollContext())
    waited = ask("task", rawPath=path, queryStringParameters={"wait": "true"})
    assert waited.body["data"]["status"] == "success"
    assert ask("task", rawPath=path, queryStringParameters={"wait": "false"}).body == waited.body
    assert ask("task", rawPath=path, queryStringParameters={"wait": "x"}).status == 400
    assert (
        ask(
            "task", rawPath="/api/v1/tasks/tk_0000000000000000000000", queryStringParameters={"wait": "true"}
        ).status
        == 404
    )


def test_the_api_describes_itself(ask: Ask) -> None:
    """OpenAPI 3.1, with every route, without a token."""
    document = ask("task", token="none", rawPath="/openapi.json").body
    assert document["openapi"] == "3.1.0"
    assert document["servers"] == [{"url": "https://tasks.example.com"}]
    assert "/api/v1/alibaba/wan2.2-animate-mix/async" in document["paths"]


@pytest.mark.parametrize(
    "path",
    [
        "/console.html",
        "/api/v1/nothing",
        "/api/v1/tasks/x/y/z",
        "/api/v2/tasks",
        "/%00",
        "/api/v1/tasks/leadership",
    ],
)
def test_any_other_path_is_a_404_in_the_envelope(ask: Ask, path: str) -> None:
    """Every path reaches submit, so every answer wears the envelope."""
    heard = ask("task", rawPath=path)
    assert (heard.status, heard.body["code"]) == (404, 404)
    assert heard.body["message"].startswith("Resource not found: ")


@pytest.mark.parametrize("provider", ["tasks", "callbacks", "apikey", "models", "team", "media"])
def test_reserved_words_are_no_providers(ask: Ask, provider: str) -> None:
    """A POST there is a path that does not exist, not an unknown model."""
    event = sample("submit")
    event["rawPath"] = event["requestContext"]["http"]["path"] = f"/api/v1/{provider}/model"
    heard = Heard(submit_handler(event, SubmitContext()))
    assert (heard.status, "no such path with this method" in heard.body["message"]) == (404, True)


BAD = [
    ("image_url is required", {"image_url": ...}, "image_url"),
    ("video_url is required", {"video_url": ...}, "video_url"),
    ("mode is required", {"mode": ...}, "mode"),
    ("an extra field", {"prompt": "x"}, "prompt"),
    ("a number for a URL", {"image_url": 5}, "image_url"),
    ("null for a URL", {"video_url": None}, "video_url"),
    ("a list for a mode", {"mode": []}, "mode"),
    ("an unknown mode", {"mode": "wan-max"}, "mode"),
    ("a word for a boolean", {"check_image": "yes"}, "check_image"),
    ("a non-ASCII URL", {"image_url": "https://example.com/ü.jpg"}, "image_url"),
    ("a non-http URL", {"video_url": "ftp://example.com/v.mp4"}, "video_url"),
    ("no URL at all", {"image_url": "new_actor.jpg"}, "image_url"),
    ("a number for a callback", {"callback_url": 5}, "callback_url"),
    ("an empty callback", {"callback_url": ""}, "callback_url"),
    ("a callback with userinfo", {"callback_url": "https://u:p@example.com/"}, "callback_url"),
    ("a callback with a fragment", {"callback_url": "https://example.com/#x"}, "callback_url"),
    ("a callback with a bad scheme", {"callback_url": "gopher://example.com/"}, "callback_url"),
    ("a callback that is too long", {"callback_url": "https://example.com/" + "x" * 2048}, "callback_url"),
    ("a callback at this deployment", {"callback_url": "https://tasks.example.com/x"}, "callback_url"),
    ("a long reference", {"reference": "x" * 201}, "reference"),
    ("a number for a reference", {"reference": 1}, "reference"),
    ("half a surrogate pair", {"reference": "\ud800"}, "reference"),
]


@pytest.mark.parametrize(("changes", "name"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_field_is_a_400_that_names_it(
    ask: Ask, upstream: Event, dynamodb: Any, tasks_table: str, changes: Event, name: str
) -> None:
    """And nothing is stored, and the vendor hears nothing."""
    before = httpx.get(f"{upstream['upstream']}/_control").json()["submits"]
    heard = ask(**changes)
    assert (heard.status, heard.body["code"]) == (400, 400)
    assert f"'{name}'" in heard.body["message"]
    assert stored(tasks_table, dynamodb) == 0
    assert httpx.get(f"{upstream['upstream']}/_control").json()["submits"] == before


@pytest.fixture
def inspected(deployed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let media be looked at."""
    monkeypatch.setenv("MEDIA_CHECKS", "enforce")
    forget()


@pytest.mark.parametrize(
    ("field", "name", "words"),
    [
        (
            "image_url",
            "scene.mp4",
            "Invalid format: image_url is MPEG-4; it must be JPG/JPEG or PNG or BMP or WEBP",
        ),
        ("video_url", "actor.jpg", "Invalid format: video_url is JPEG; it must be MP4 or MOV or AVI"),
        ("video_url", "gone.mp4", "Invalid parameters: video_url cannot be fetched: its host answers 404"),
    ],
)
def test_bad_media_are_a_400_before_anything_is_stored_or_paid(
    ask: Ask,
    inspected: None,
    upstream: Event,
    dynamodb: Any,
    tasks_table: str,
    field: str,
    name: str,
    words: str,
) -> None:
    """Whatever their name."""
    before = httpx.get(f"{upstream['upstream']}/_control").json()["submits"]
    media = {"image_url": "https://media.invalid/a.jpg", "video_url": "https://media.invalid/v.mp4"}
    heard = ask(**media | {field: f"{upstream['upstream']}/media/{name}"})
    assert (heard.status, heard.body["message"]) == (400, words)
    assert stored(tasks_table, dynamodb) == 0
    assert httpx.get(f"{upstream['upstream']}/_control").json()["submits"] == before


def test_good_media_pass_and_what_could_not_be_checked_is_shown(
    ask: Ask, inspected: None, upstream: Event
) -> None:
    """With the task, by input; a task whose media were all seen says nothing of it."""
    good = {
        name: f"{upstream['upstream']}/media/{file}"
        for name, file in (("image_url", "actor.jpg"), ("video_url", "scene.mp4"))
    }
    shown = []
    for changes in (good, good | {"image_url": "https://media.invalid/a.jpg"}):
        task_id = ask(callback_url=..., **changes).body["data"]["task_id"]
        shown.append(ask("task", rawPath=f"/api/v1/tasks/{task_id}").body["data"].get("unchecked"))
    assert shown == [None, {"image_url": "name does not resolve"}]


@pytest.mark.parametrize(
    ("checks", "unchecked"),
    [
        (
            "record",
            {"image_url": "Invalid format: image_url is MPEG-4; it must be JPG/JPEG or PNG or BMP or WEBP"},
        ),
        ("off", None),
    ],
)
def test_the_deployment_decides_what_bad_media_mean(
    ask: Ask, upstream: Event, monkeypatch: pytest.MonkeyPatch, checks: str, unchecked: Event | None
) -> None:
    """They may be recorded only, or never looked at."""
    monkeypatch.setenv("MEDIA_CHECKS", checks)
    forget()
    media = f"{upstream['upstream']}/media/scene.mp4"
    task_id = ask(callback_url=..., image_url=media, video_url=media).body["data"]["task_id"]
    assert ask("task", rawPath=f"/api/v1/tasks/{task_id}").body["data"].get("unchecked") == unchecked


def paid(upstream: Event) -> int:
    """Count what the vendor was paid."""
    count: int = httpx.get(f"{upstream['upstream']}/_control").json()["paid_submits"]
    return count


FAULTS = [("drop_after", 502, 1), ("401", 502, 0), ("422", 422, 0), ("slow", 200, 1)]


@pytest.mark.parametrize(("fault", "status", "cost"), FAULTS, ids=[row[0] for row in FAULTS])
def test_the_repeat_of_a_client_that_counts_them_is_the_first_request_again(
    ask: Ask, upstream: Event, fault: str, status: int, cost: int
) -> None:
    """Without a key, whatever came of the first: its answer again, with no advice to repeat in vain."""
    httpx.post(
        f"{upstream['upstream']}/_control/faults",
        json={"on": "submit", "fault": fault, "seconds": 0.5, "times": 1},
    )
    before = paid(upstream)
    first = ask(callback_url=..., headers={"x-stainless-retry-count": "0"})
    assert (first.status, first.headers.get("x-should-retry")) == (status, "false" if status != 200 else None)
    if fault == "401":
        return  # a repeat is of no use now; one all the same is a new submit under the same id
    again = [ask(callback_url=..., headers={"x-stainless-retry-count": count}) for count in ("1", "2")]
    assert [(one.status, one.body) for one in again] == [(first.status, first.body)] * 2
    assert paid(upstream) == before + cost


def test_two_requests_that_are_alike_are_two(ask: Ask, upstream: Event) -> None:
    """With a count of 0, a count that is none, or no count at all."""
    before = paid(upstream)
    for headers in (
        {"x-stainless-retry-count": "0"},
        {"x-stainless-retry-count": "0"},
        {"x-stainless-retry-count": "x"},
        {},
    ):
        assert ask(callback_url=..., headers=headers).status == 200
    assert paid(upstream) == before + 4


def test_our_own_fault_is_not_to_be_repeated(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a crash has left behind is not known."""
    monkeypatch.setitem(vars(function("submit").app), "tasks", None)
    heard = ask("list")
    assert (heard.status, heard.headers["x-should-retry"]) == (500, "false")


def test_a_table_that_is_away_says_when_to_repeat(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, deployed: None
) -> None:
    """Nothing was sent to the vendor, so a repeat is safe."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget()
    heard = ask()
    assert (heard.status, heard.headers["retry-after"]) == (503, "5")


NOT_JSON = [
    "",
    "no",
    '{"a":1',
    "[]",
    '"x"',
    "null",
    '{"mode":"wan-std","mode":"wan-pro"}',
    '{"mode":NaN}',
    '{"mode":-Infinity}',
    "[" * 30_000,
    '{"a":' * 10_000 + "1" + "}" * 10_000,
    "1" * 5000,
    '{"\\ud800":1}',
]


@pytest.mark.parametrize("raw", NOT_JSON, ids=lambda raw: raw[:12] or "nothing")
def test_what_is_no_json_object_is_a_400(ask: Ask, dynamodb: Any, tasks_table: str, raw: str) -> None:
    """Duplicate keys, NaN and deep nesting among it."""
    for name in ("submit", "redeliver_many", "test_callback"):
        heard = ask(name, raw=raw)
        assert (heard.status, heard.body["code"]) == (400, 400)
        json.dumps(heard.body, ensure_ascii=False).encode()  # as Lambda sends it
    assert stored(tasks_table, dynamodb) == 0


def test_a_body_of_other_bytes_is_a_400(ask: Ask) -> None:
    """Whatever API Gateway took for binary is not UTF-8."""
    event = sample("submit") | {"body": base64.b64encode(b'{"\xff\xfe"}').decode(), "isBase64Encoded": True}
    assert Heard(submit_handler(event, SubmitContext())).status == 400
    assert Heard(submit_handler(event | {"body": "abc"}, SubmitContext())).status == 400


def test_what_is_broken_off_is_not_told_as_begun_or_not(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancel whose vendor hangs may have been sent: neither the table is blamed, nor is that denied."""
    monkeypatch.setitem(App.run.__kwdefaults__ or {}, "limit", timedelta(0))
    heard = ask("task")
    assert (heard.status, heard.body["message"]) == (
        503,
        "Service unavailable: no answer in time; nothing was paid, try again",
    )
    assert heard.headers["retry-after"] == "5"


def test_a_body_over_64_kb_is_a_413(ask: Ask) -> None:
    """Measured in bytes, before it is parsed."""
    assert ask(raw="x" * (64 * 1024 + 1)).status == 413
    assert ask(raw="ü" * (32 * 1024 + 1)).status == 413
    assert ask(raw="x" * (64 * 1024)).status == 400


@pytest.mark.parametrize(
    ("name", "value", "body"),
    [
        ("Idempotency-Key", "", {}),
        ("Idempotency-Key", "k" * 256, {}),
        ("X-Webhook-URL", "https://other.example.com/", {}),
        ("X-Webhook-URL", "https://other.example.com/", {"callback_url": []}),
        ("X-Webhook-URL", "x", {"callback_url": ...}),
        ("X-Reference", "r" * 201, {"reference": ...}),
    ],
)
def test_a_bad_header_is_a_400_that_names_it(
    ask: Ask, dynamodb: Any, tasks_table: str, name: str, value: str, body: Event
) -> None:
    """An over-long key or reference, and a webhook URL that is bad or differs from the body's."""
    heard = ask(headers={name.lower(): value}, **body)
    assert heard.status == 400
    assert f"header '{name}'" in heard.body["message"]
    assert stored(tasks_table, dynamodb) == 0


@pytest.mark.parametrize(
    "token",
    [
        "",
        "Bearer",
        "Bearer x",
        "Basic eDp5",
        f"Bearer {token_of('alice')[:-1]}_",
        "Bearer thk_carol_" + "c" * 43,
    ],
)
def test_without_a_good_token_everything_is_a_401(
    ask: Ask, dynamodb: Any, tasks_table: str, token: str
) -> None:
    """Before the body is even looked at."""
    for heard in (ask(token=token, raw="no"), ask("list", token=token), ask("task", token=token)):
        assert (heard.status, heard.body["code"]) == (401, 401)
    assert stored(tasks_table, dynamodb) == 0


# --- redelivery, secrets, a receiver under test ----------------------------------------------------


class Inbox:
    """A receiver in a thread: keeps what it is sent, and answers what it is told."""

    def __init__(self) -> None:
        inbox = self
        self.received: list[tuple[dict[str, str], str]] = []
        self.status = 200

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                inbox.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(inbox.status)
                self.end_headers()
                self.wfile.write(b"noted")

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    """Start a receiver."""
    receiver = Inbox()
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


def delivered(ask: Ask, inbox: Inbox) -> str:
    """Take a task to its delivered callback; give its id."""
    task_id: str = ask(callback_url=inbox.url).body["data"]["task_id"]
    assert poll_handler(sample("tick"), PollContext())["steps"]["delivered"] == 1
    return task_id


def test_a_callback_is_delivered_again(ask: Ask, inbox: Inbox) -> None:
    """The sample event with a real id: same id, same bytes, a signature of its own; and the log goes on."""
    task_id = delivered(ask, inbox)
    heard = ask("redeliver", rawPath=f"/api/v1/tasks/{task_id}/redeliver")
    assert (heard.status, heard.body["data"]["callback"]["state"]) == (200, "waiting")
    assert heard.body["data"]["callback"]["next_attempt_at"] is not None
    poll_handler(sample("tick"), PollContext())
    (first, message), (second, again) = inbox.received
    assert (first["webhook-id"], message) == (second["webhook-id"], again)
    assert (first["x-modellix-retry-count"], second["x-modellix-retry-count"]) == ("0", "1")
    Webhook(ask("secret").body["data"]["secrets"][0]["secret"]).verify(again, second)
    callback = ask("task", rawPath=f"/api/v1/tasks/{task_id}").body["data"]["callback"]
    assert (callback["state"], callback["attempts"], [entry["answer"] for entry in callback["log"]]) == (
        "delivered",
        2,
        ["noted", "noted"],
    )


def test_many_callbacks_are_delivered_again(ask: Ask, inbox: Inbox) -> None:
    """The sample event asks for what was given up; a delivered task needs `state`; bad fields are named."""
    delivered(ask, inbox)
    assert ask("redeliver_many", since=...).body["data"] == {
        "count": 0,
        "last_attempt_at": None,
        "next_cursor": None,
    }
    data = ask("redeliver_many", since=..., state="delivered").body["data"]
    assert (data["count"], data["next_cursor"]) == (1, None)
    assert data["last_attempt_at"] is not None
    assert (
        ask("redeliver_many", since=..., state="delivered", token=f"Bearer {token_of('bob')}").body["data"][
            "count"
        ]
        == 0
    )
    poll_handler(sample("tick"), PollContext())
    assert len(inbox.received) == 2
    heard = ask("redeliver_many", limit=501)
    assert (heard.status, "'limit'" in heard.body["message"]) == (400, True)


def test_what_cannot_be_delivered_again_is_a_conflict_that_says_why(ask: Ask) -> None:
    """And what is not there, or another's, is a 404."""
    task_id = ask(callback_url=...).body["data"]["task_id"]
    path = f"/api/v1/tasks/{task_id}/redeliver"
    heard = ask("redeliver", rawPath=path)
    assert (heard.status, "has not ended" in heard.body["message"]) == (409, True)
    poll_handler(sample("tick"), PollContext())
    heard = ask("redeliver", rawPath=path)
    assert (heard.status, "no callback URL" in heard.body["message"]) == (409, True)
    assert (
        ask("redeliver").status
        == ask("redeliver", rawPath=path, token=f"Bearer {token_of('bob')}").status
        == 404
    )


def test_a_callback_is_shown_as_it_is_sent(ask: Ask, inbox: Inbox) -> None:
    """To its caller alone, once there is one: as the delivery was, with a good signature of its own."""
    running = ask(callback_url=inbox.url).body["data"]["task_id"]
    assert ask("task", rawPath=f"/api/v1/tasks/{running}/callback").status == 409
    poll_handler(sample("tick"), PollContext())
    path = f"/api/v1/tasks/{running}/callback"
    heard = ask("task", rawPath=path)
    shown = heard.body["data"]
    [(headers, body)] = inbox.received
    assert (heard.headers["cache-control"], shown["method"], shown["url"]) == ("no-store", "POST", inbox.url)
    assert shown["payload"] == body
    changed = {"webhook-timestamp", "webhook-signature", "x-modellix-retry-count"}
    same = shown["headers"].keys() - changed
    assert {name: shown["headers"][name] for name in same} == {name: headers[name] for name in same}
    assert changed < shown["headers"].keys() <= {name.lower() for name in headers}
    secret = ask("secret").body["data"]["secrets"][0]["secret"]
    Webhook(secret).verify(shown["payload"], shown["headers"])
    assert secret not in json.dumps(heard.body)
    assert ask("task", rawPath=path, token=f"Bearer {token_of('bob')}").status == 404
    assert ask("task", rawPath=path, token="Bearer x").status == 401
    unwanted = ask(callback_url=...).body["data"]["task_id"]
    poll_handler(sample("tick"), PollContext())
    assert ask("task", rawPath=f"/api/v1/tasks/{unwanted}/callback").status == 409


def test_tasks_are_searched_and_counted(ask: Ask, inbox: Inbox) -> None:
    """By reference, either id, and host; what a receiver refused is retrying, in the totals too."""
    inbox.status = 503
    first = ask(callback_url=inbox.url, reference="order-17").body["data"]["task_id"]
    ask(callback_url=..., reference="order-18")
    poll_handler(sample("tick"), PollContext())
    vendors = ask("task", rawPath=f"/api/v1/tasks/{first}").body["data"]["upstream_task_id"]

    def found(**query: str) -> list[str]:
        listed = ask("list", queryStringParameters=query).body["data"]["tasks"]
        return [task["reference"] for task in listed]

    assert found(reference_prefix="order-1") == ["order-18", "order-17"]
    for query in (
        {"reference": "order-17"},
        {"search": "ORDER-17"},
        {"search": vendors},
        {"upstream_task_id": vendors},
        {"task_id": first},
        {"callback": "retrying"},
        {"callback": "waiting", "host": "127.0.0.1", "vendor": "modellix", "model": "alibaba/*"},
    ):
        assert found(**query) == ["order-17"], query
    path = "/api/v1/tasks/totals"
    told = ask("list", rawPath=path, queryStringParameters={"since": "2026-01-01"}).body["data"]
    assert (told["accepted"], told["succeeded"], told["retrying"], told["delivered"]) == (2, 2, 1, 0)
    assert told["costs"] == [{"amount": "0.4800", "currency": "USD"}]
    assert (told["looked_at"]["tasks"], told["next_cursor"]) == (2, None)
    bob = f"Bearer {token_of('bob')}"
    empty = ask("list", rawPath=path, token=bob, queryStringParameters={}).body["data"]
    assert (empty["accepted"], empty["callback_success"], empty["looked_at"]["back_to"]) == (0, None, None)
    bad = ask("list", rawPath=path, queryStringParameters={"limit": "5"})
    assert (bad.status, "'limit' is not known; a count takes since" in bad.body["message"]) == (400, True)


def test_the_secrets_are_the_callers_own(ask: Ask, deployed: None, dynamodb: Any) -> None:
    """With their end where they have one, and never to be kept by a cache."""
    alice, bob = ask("secret"), ask("secret", token=f"Bearer {token_of('bob')}")
    assert alice.headers["cache-control"] == "no-store"
    [secret] = alice.body["data"]["secrets"]
    assert secret["secret"].startswith("whsec_")
    assert secret["expires_at"] is None
    assert bob.body["data"]["secrets"] != [secret]


def test_a_receiver_is_tried_out(ask: Ask, inbox: Inbox, dynamodb: Any, tasks_table: str) -> None:
    """At a real receiver: a signed sample of each event, what was said to each; only the rate is stored."""
    inbox.status = 503
    heard = ask("test_callback", callback_url=inbox.url)
    assert heard.status == 200
    secret = ask("secret").body["data"]["secrets"][0]["secret"]
    for headers, body in inbox.received:
        Webhook(secret).verify(body, headers)
    said = [
        (one["type"], one["status"], one["answer"], one["delivered"]) for one in heard.body["data"]["samples"]
    ]
    assert said == [(f"prediction.task.{how}", 503, "noted", False) for how in ("succeeded", "failed")]
    ids = {headers["webhook-id"] for headers, _ in inbox.received}
    assert ids == {one["webhook_id"] for one in heard.body["data"]["samples"]}
    [rate] = dynamodb.scan(TableName=tasks_table)["Items"]
    assert rate["task_id"]["S"] == "redelivery#alice"
    assert rate.keys() == {"task_id", "next_at", "expires_at"}


def test_a_silent_receiver_holds_a_worker_for_five_seconds(ask: Ask) -> None:
    """A test's attempt is shorter than a callback's."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        heard = ask("test_callback", callback_url=f"http://127.0.0.1:{silent.getsockname()[1]}/")
    samples = heard.body["data"]["samples"]
    assert [one["error"] for one in samples] == ["timeout"] * 2
    assert all(5000 <= one["ms"] < 15_000 for one in samples)


def test_only_what_may_be_called_back_is_tried_out(ask: Ask) -> None:
    """The rules of a submit, and the token's."""
    assert ask("test_callback", callback_url="gopher://x.example.com/").status == 400
    assert ask("test_callback", callback_url=...).status == 400
    for name in ("redeliver", "redeliver_many", "test_callback", "secret"):
        assert ask(name, token="Bearer x").status == 401


def test_every_route_is_described(ask: Ask) -> None:
    """What OpenAPI names exists, and what exists is named; the vendor's webhook is the vendor's alone."""
    described = {
        (method.upper(), path)
        for path, operations in ask("task", token="none", rawPath="/openapi.json").body["paths"].items()
        for method in operations
    }
    served: set[tuple[str, str]] = set()
    for route in [*routes.resolver._static_routes, *routes.resolver._dynamic_routes]:
        served.add((str(route.method), route.path.replace("<", "{").replace(">", "}")))
    served -= {(method, "/(.+)") for method in ("GET", "POST", "DELETE")}  # whose paths are the vendors'
    slugs = (*MODELS, "{provider}/{model}")
    served |= {("POST", f"/api/v1/{slug}{suffix}") for slug in slugs for suffix in ("", "/async")}
    for_people = {(method, path) for method in ("GET", "HEAD") for path in ("/", "/docs")}
    assert (
        described
        == {route for route in served if not route[1].startswith(("/hooks/", "/openapi", "/llms"))}
        - for_people
    )


def test_the_examples_of_errors_are_the_real_ones(ask: Ask) -> None:
    """Word for word, for those that a caller brings about."""
    task_id = ask(headers={"idempotency-key": "once"}, callback_url=...).body["data"]["task_id"]
    real = [
        ask(mode="x"),
        ask(token="Bearer x"),
        ask("task", rawPath="/api/v1/tasks/tk_0000000000000000000000"),
        ask("redeliver", rawPath=f"/api/v1/tasks/{task_id}/redeliver"),
        ask(raw="x" * (64 * 1024 + 1)),
        ask(headers={"idempotency-key": "once"}, callback_url=..., mode="wan-pro"),
    ]
    examples: dict[str, Event] = {}
    for item in document()["paths"].values():
        for operation in item.values():
            for status, response in operation["responses"].items():
                if "content" not in response:
                    continue  # a redirect
                examples[status] = response["content"]["application/json"]["example"]
    assert [(heard.status, heard.body) for heard in real] == [
        (int(status), examples[status]) for status in ("400", "401", "404", "409", "413", "422")
    ]


def test_the_example_of_a_task_is_like_a_real_one(ask: Ask, inbox: Inbox) -> None:
    """What a delivered task has, the example has, no more and no less; a listing shows the same."""
    task_id = delivered(ask, inbox)
    shown = ask("task", rawPath=f"/api/v1/tasks/{task_id}").body["data"]
    answer = document()["paths"]["/api/v1/tasks/{task_id}"]["get"]["responses"]["200"]["content"][
        "application/json"
    ]
    assert set(shown) == set(answer["example"]["data"])
    assert set(shown["request"]) == set(json.loads(sample("submit")["body"])) - {"callback_url", "reference"}
    assert ask("list", queryStringParameters={}).body["data"]["tasks"] == [shown]


# --- the pages for people -------------------------------------------------------------------------


def page(path: str, method: str = "GET", **headers: str) -> Event:
    """Ask for a page, and give the whole answer."""
    event = sample("task")
    event["rawPath"] = event["requestContext"]["http"]["path"] = path
    event["requestContext"]["http"]["method"] = method
    event["headers"] = {name.replace("_", "-"): value for name, value in headers.items()}
    answer: Event = submit_handler(event, SubmitContext())
    answer["headers"] = {name.lower(): value for name, value in answer["headers"].items()}
    return answer


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_is_confined_to_what_it_brings(deployed: None, path: str) -> None:
    """Without a token, in one answer; the policy allows its own script and style alone, by hash."""
    answer = page(path)
    assert (answer["statusCode"], answer["headers"]["content-type"]) == (200, "text/html; charset=utf-8")
    assert "<script>" in answer["body"]
    assert not re.search(r"""\b(src|href)=["'](https?:)?//|@import|url\(""", answer["body"])
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", answer["body"]
    )
    policy = dict(part.split(" ", 1) for part in answer["headers"]["content-security-policy"].split("; "))
    for kind in ("script", "style"):
        [content] = re.findall(f"<{kind}>(.*?)</{kind}>", answer["body"], re.DOTALL)
        assert not re.search(r"/\* \S+\.(js|css) \*/", content)  # each file is in its place
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data: https: http:",
        "media-src": "https: http:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert answer["headers"]["referrer-policy"] == "no-referrer"
    assert answer["headers"]["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/llms.txt"])
def test_what_changes_at_a_deployment_only_is_sent_small_and_once(deployed: None, path: str) -> None:
    """Compressed for a browser that takes it, not sent to one that has it."""
    plain, small = page(path), page(path, accept_encoding="br, gzip")
    assert small["headers"]["content-encoding"] == "gzip"
    assert gzip.decompress(base64.b64decode(small["body"])).decode() == plain["body"]
    again = page(path, accept_encoding="gzip", if_none_match=plain["headers"]["etag"])
    assert (again["statusCode"], again["body"]) == (304, "")
    assert page(path, if_none_match='W/"another"')["statusCode"] == 200


def test_a_model_is_told_of_this_deployment(deployed: None) -> None:
    """As plain text, without a token, with the deployment's own origin."""
    answer = page("/llms.txt")
    assert (answer["statusCode"], answer["headers"]["content-type"]) == (200, "text/plain; charset=utf-8")
    assert answer["body"].startswith("# taskhook\n")
    assert "https://tasks.example.com/api/v1/alibaba/wan2.2-animate-mix\n" in answer["body"]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_request_for_the_head_gets_no_body(deployed: None, path: str) -> None:
    """And the same headers."""
    head, whole = page(path, "HEAD"), page(path)
    assert (head["statusCode"], head["body"], head["headers"]) == (200, "", whole["headers"])


def test_a_model_that_the_vendor_does_not_have_is_refused_in_its_words(ask: Ask) -> None:
    """Whether there is a model that is not described here, the vendor alone knows."""
    event = sample("submit")
    event["rawPath"] = event["requestContext"]["http"]["path"] = "/api/v1/alibaba/wan9"
    heard = Heard(submit_handler(event, SubmitContext()))
    assert (heard.status, heard.body["message"]) == (
        404,
        "Resource not found: model 'alibaba/wan9' not found",
    )


def test_secrets_urls_and_payloads_stay_out_of_the_log(
    ask: Ask, inspected: None, capsys: pytest.CaptureFixture[str], upstream: Event
) -> None:
    """Neither tokens nor keys nor what the caller sent."""
    media = {
        "image_url": "https://media.invalid/new_actor.jpg",
        "video_url": f"{upstream['upstream']}/media/new_actor.mp4",
    }
    ask(**media, check_image=True)
    ask(
        **media | {"video_url": media["image_url"]},
        callback_url="http://127.0.0.1:9/secret-path",
        reference="my-private-reference",
    )
    ask(raw="{}", headers={"idempotency-key": "private-key"})
    poll_handler(sample("tick"), PollContext())
    out, err = capsys.readouterr()
    assert "callback.attempted" in out
    assert out.count('"media.checked"') == 4
    for private in (
        token_of("alice"),
        upstream["api_key"],
        "secret-path",
        "my-private-reference",
        "new_actor",
        "whsec_",
        "private-key",
    ):
        assert private not in out + err
