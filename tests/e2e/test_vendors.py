"""All vendors side by side: their official clients, one receiver for all, one of them down."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from taskhook.vendors import VENDORS
from tests import history
from tests.e2e.conftest import (
    ANSWERED_WITHIN_S,
    ROOT,
    Inbox,
    Json,
    Stack,
    User,
    eventually,
)
from tests.judge import judge

PYTHON = ROOT / ".tools/sdks/bin/python"
CLIENTS = Path(__file__).parent / "sdks"
ANIMATE = VENDORS["dashscope"].example.path


class Control:
    """The controls of one emulated vendor."""

    def __init__(self, origin: str) -> None:
        self.http = httpx.Client(base_url=origin, timeout=ANSWERED_WITHIN_S, trust_env=False)

    def inject(self, fault: str, **more: object) -> None:
        """Let something go wrong."""
        self.http.post("/_control/faults", json={"fault": fault, **more}).raise_for_status()

    def paid(self, marker: str) -> list[Json]:
        """List the tasks that the vendor took for a test."""
        tasks = self.http.get("/_control").json()["tasks"]
        return [task for task in tasks if marker in json.dumps(task["request"])]

    def submits(self) -> int:
        """Count the submits that reached the vendor."""
        count: int = self.http.get("/_control").json()["submits"]
        return count


@pytest.fixture
def controls(stack: Stack) -> Iterator[dict[str, Control]]:
    """Give the controls of each vendor; no fault is left."""
    controls = {name: Control(origin) for name, origin in stack.vendors.items()}
    yield controls
    for control in controls.values():
        control.http.delete("/_control/faults")
        control.http.close()


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    """Give a plain client with the caller's token."""
    headers = {"Authorization": f"Bearer {stack.token}"}
    with httpx.Client(
        base_url=stack.endpoint, headers=headers, timeout=ANSWERED_WITHIN_S, trust_env=False
    ) as client:
        yield client


def run(client: str, *arguments: str) -> dict[str, Json]:
    """Run a program of an official client; give what it printed, by step."""
    done = subprocess.run(
        [PYTHON, CLIENTS / client, *arguments], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {line["step"]: line for line in map(json.loads, done.stdout.splitlines())}


def submit(http: httpx.Client, vendor: str, marker: str, hook: str, **headers: str) -> httpx.Response:
    """Submit a task in the vendor's own form."""
    image = f"https://media.invalid/actor.jpg?{marker}"
    example = VENDORS[vendor].example
    headers = {**example.headers, "X-Webhook-URL": hook, "X-Reference": marker, **headers}
    return http.post(example.path, json=example.with_media(image, image), headers=headers)


def test_the_history_of_all_vendors_holds(
    http: httpx.Client, inbox: Inbox, marker: str, history_file: Path
) -> None:
    """What all of them saw is judged by code that knows nothing of taskhook; a lie in it is found."""
    ids = {}
    for vendor in VENDORS:
        answer = submit(http, vendor, marker, inbox.url(marker), **{"Idempotency-Key": f"{vendor}-{marker}"})
        ids[vendor] = re.search(r"tk_[A-Za-z0-9_-]{22}", answer.text)[0]  # type: ignore[index]
    for vendor, task_id in ids.items():
        assert eventually(lambda task_id=task_id: inbox.deliveries(task_id))  # type: ignore[misc]
        assert http.get(VENDORS[vendor].operation(task_id)).status_code == 200  # its own path of a task
    lines = history.about(history_file, marker)
    events = [json.loads(line) for line in lines]
    polled = {one["vendor"] for one in events if one["event"] == "vendor" and one["state"] == "success"}
    assert polled == set(VENDORS)
    assert judge(lines) == []
    [first, *_] = [one for one in events if one.get("what") == "submit" and one["event"] == "vendor"]
    again = json.dumps(first | {"at": first["at"] + 1})
    assert any(words.startswith("1: ") for words in judge([*lines, again]))


def test_the_official_dashscope_client_works(
    stack: Stack, inbox: Inbox, controls: dict[str, Control], marker: str
) -> None:
    """It submits, fetches, waits, lists and cancels; the callback comes signed."""
    image = f"https://media.invalid/actor.jpg?{marker}"
    said = run("dashscope_client.py", stack.endpoint, stack.token, inbox.url(marker), image, marker)
    task_id = said["submit"]["output"]["task_id"]
    assert task_id.startswith("tk_")
    assert said["fetch"]["output"]["task_id"] == task_id
    assert (said["wait"]["output"]["task_status"], said["wait"]["output"]["task_id"]) == (
        "SUCCEEDED",
        task_id,
    )
    assert said["wait"]["output"]["results"]["video_url"].startswith(stack.vendors["dashscope"])
    assert said["wait"]["usage"]["video_ratio"] == "standard"
    assert said["list"]["status"] == 200
    assert said["cancel"]["status"] == 200
    assert said["canceled"]["output"]["task_status"] == "CANCELED"
    assert said["cancel"]["task_id"] in json.dumps(said["canceled_list"])
    assert said["unknown"]["status"] == 404
    [delivery] = eventually(lambda: inbox.deliveries(task_id))
    assert delivery["verified"]
    canceled = eventually(lambda: inbox.deliveries(said["cancel"]["task_id"]))[0]
    assert json.loads(canceled["body"])["type"] == "prediction.task.failed"
    assert len(controls["dashscope"].paid(marker)) == 2


def test_the_official_runway_client_works(
    stack: Stack, inbox: Inbox, controls: dict[str, Control], marker: str
) -> None:
    """It creates, retrieves, waits and deletes; the callback comes signed."""
    image = f"https://media.invalid/actor.jpg?{marker}"
    said = run("runway_client.py", stack.endpoint, stack.token, inbox.url(marker), image, "no")
    task_id = said["submit"]["id"]
    assert task_id.startswith("tk_")
    assert (said["wait"]["status"], said["wait"]["id"]) == ("SUCCEEDED", task_id)
    assert said["wait"]["output"][0].startswith(stack.vendors["runway"])
    [delivery] = eventually(lambda: inbox.deliveries(task_id))
    assert delivery["verified"]
    deleted = eventually(lambda: inbox.deliveries(said["delete"]["id"]))[0]
    assert json.loads(deleted["body"])["type"] == "prediction.task.failed"
    assert len(controls["runway"].paid(marker)) == 2


@pytest.mark.parametrize("fault", ["503", "drop_after", "drop_before", "not_json"])
def test_the_official_runway_client_pays_at_most_once(
    stack: Stack,
    http: httpx.Client,
    inbox: Inbox,
    controls: dict[str, Control],
    marker: str,
    fault: str,
) -> None:
    """On its own it would send the paid POST three times where the vendor fails."""
    # Three unknown outcomes in a row would have the next submit wait in the queue.
    settled = submit(http, "runway", f"before-{marker}", inbox.url(marker)).json()["id"]
    eventually(lambda: inbox.deliveries(settled))
    control, before = controls["runway"], controls["runway"].submits()
    control.inject(fault, on="submit", times=None)
    image = f"https://media.invalid/actor.jpg?{marker}"
    said = run("runway_client.py", stack.endpoint, stack.token, inbox.url(marker), image, "yes")
    assert said["refused"]["status"] == 502
    assert "do not resubmit" in said["refused"]["body"]["error"]
    assert control.submits() == before + 1
    assert len(control.paid(f"?{marker}")) <= 1


def test_one_receiver_serves_all_vendors(
    stack: Stack, http: httpx.Client, inbox: Inbox, user: User, marker: str
) -> None:
    """One form of callback: `vendor`, `resources[]`, and `raw` where the vendor's own form is another."""
    for vendor in VENDORS:
        answer = submit(http, vendor, f"{marker}-{vendor}", inbox.url(marker))
        assert answer.status_code == 200, answer.text
    bodies: dict[str, Any] = {}
    for vendor in VENDORS:
        task = eventually(
            lambda vendor=vendor: next(  # type: ignore[misc]  # of this turn
                (one for one in user.tasks() if one.get("reference") == f"{marker}-{vendor}"), None
            )
        )
        [delivery] = eventually(lambda task=task: inbox.deliveries(task["task_id"]))  # type: ignore[misc]
        assert delivery["verified"]
        bodies[vendor] = json.loads(delivery["body"])["data"]
    for vendor, data in bodies.items():
        [resource] = data["result"]["resources"]
        assert (data["vendor"], data["status"], resource["type"]) == (vendor, "success", "video")
        assert ("raw" in data) is (vendor != "modellix")


@pytest.mark.parametrize("down", [name for name in VENDORS if name != "modellix"])
def test_one_vendor_down_leaves_the_others_as_they_are(
    http: httpx.Client, inbox: Inbox, user: User, controls: dict[str, Control], marker: str, down: str
) -> None:
    """Its submits are unknown until they pause, and theirs are taken and called back.

    A fourth one would wait here, and be lost as a probe: for five minutes no other test could use the vendor.
    """
    controls[down].inject("503", on="submit", times=None)
    controls[down].inject("503", on="task", times=None)
    for number in range(3):
        submit(http, down, f"{marker}-{number}", inbox.url(marker))
    others = [vendor for vendor in VENDORS if vendor != down]
    for vendor in others:
        answer = submit(http, vendor, f"{marker}-{vendor}", inbox.url(marker))
        assert answer.status_code == 200, answer.text
    tasks = {one.get("reference"): one["task_id"] for one in user.tasks()}
    for vendor in others:
        task_id = tasks[f"{marker}-{vendor}"]
        assert eventually(lambda task_id=task_id: inbox.deliveries(task_id))  # type: ignore[misc]


def test_a_task_from_elsewhere_is_watched(
    stack: Stack, http: httpx.Client, inbox: Inbox, controls: dict[str, Control], marker: str
) -> None:
    """Submitted at the vendor itself, with its own client; the vendor is paid once, by that."""
    answer = submit(http, "runway", marker, inbox.url(marker))
    eventually(lambda: inbox.deliveries(answer.json()["id"]))
    [theirs] = controls["runway"].paid(marker)
    body = {"vendor": "runway", "task_id": theirs["id"], "callback_url": inbox.url(marker), "reference": "w"}
    watched = http.post("/api/v1/watch", json=body)
    assert watched.status_code == 200, watched.text
    task_id = watched.json()["data"]["task_id"]
    assert task_id != answer.json()["id"]
    [delivery] = eventually(lambda: inbox.deliveries(task_id))
    assert json.loads(delivery["body"])["data"]["upstream_task_id"] == theirs["id"]
    assert http.post("/api/v1/watch", json=body).json()["data"]["task_id"] == task_id
    assert len(controls["runway"].paid(marker)) == 1
    missing = http.post("/api/v1/watch", json={**body, "task_id": "another-account"})
    assert (missing.status_code, "has no task" in missing.json()["message"]) == (404, True)


@pytest.mark.parametrize(
    ("method", "path", "status", "form"),
    [
        ("POST", ANIMATE, 400, "code"),
        ("GET", ANIMATE, 404, "code"),
        ("GET", "/api/v1/tasks/?end_time=now", 400, "code"),
        ("POST", "/api/v1/services/aigc", 404, "code"),
        ("POST", "/v1/a/b", 404, "error"),
        ("POST", "/v1/uploads", 404, "error"),
        ("GET", "/v1/organization", 404, "error"),
        ("GET", "/v1/tasks/tk_0000000000000000000000", 404, "error"),
        ("DELETE", "/v1/tasks/tk_0000000000000000000000", 404, "error"),
        ("POST", "/v1/image_to_video", 400, "error"),
    ],
)
def test_what_is_wrong_is_said_in_the_vendors_form(
    http: httpx.Client, method: str, path: str, status: int, form: str
) -> None:
    """Of a path that is a vendor's, in its own envelope."""
    answer = http.request(method, path, json={"model": 7} if method == "POST" else None)
    assert (answer.status_code, form in answer.json()) == (status, True), answer.text
    assert answer.headers["x-should-retry"] == "false"
