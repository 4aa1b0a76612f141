"""The emulator over real sockets: what it answers, refuses and counts, and how it fails when told to."""

import asyncio
import hashlib
import json
import re
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from tests.local.bulk import Bulk
from tests.local.receiver import Behaviour, Receiver
from tests.local.server import serving
from tests.local.vendor import RESULT, VendorEmulator
from tests.modellix.vendor import MODELS, VendorProfile
from tests.rows import each_row

ROOT = Path(__file__).parents[2]
KEY = "mdlx-test"
HANGS_S = 60.0  # against a hang; a loaded machine is no finding
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and spares each client the loading of certificates
SUBMIT = "/api/v1/alibaba/wan2.2-animate-mix"
FIELDS = {"image_url": "http://example.com/a.jpg", "video_url": "http://example.com/b.mp4", "mode": "wan-std"}


@asynccontextmanager
async def vendor(**knobs: Any) -> AsyncIterator[tuple[VendorEmulator, httpx.AsyncClient]]:
    """Serve an emulator and open an authenticated client on it."""
    defaults: dict[str, Any] = {"api_keys": (KEY,), "task_seconds": 0.0}
    emulator = VendorEmulator(VendorProfile(**(defaults | knobs)))
    async with (
        serving(emulator.app()) as origin,
        httpx.AsyncClient(
            base_url=origin,
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=HANGS_S,
            trust_env=False,
            verify=NO_TLS,
        ) as client,
    ):
        yield emulator, client


async def submit(client: httpx.AsyncClient, **headers: str) -> str:
    """Submit a valid task and return its id."""
    answer = await client.post(SUBMIT, json=FIELDS, headers=headers)
    assert answer.status_code == 200, answer.text
    task_id: str = answer.json()["data"]["task_id"]
    return task_id


async def ended(client: httpx.AsyncClient, task_id: str) -> dict[str, Any]:
    """Return the terminal answer of a task by one held poll."""
    answer = await client.get(f"/api/v1/tasks/{task_id}", params={"wait": "true", "timeout": "45"})
    body: dict[str, Any] = answer.json()
    assert body["data"]["status"] not in {"pending", "processing"}
    return body


async def inject(client: httpx.AsyncClient, **fault: Any) -> None:
    """Put a fault in force."""
    answer = await client.post("/_control/faults", json=fault)
    assert answer.status_code == 200, answer.text


async def control(client: httpx.AsyncClient) -> dict[str, Any]:
    """Return what the emulator counted."""
    body: dict[str, Any] = (await client.get("/_control")).json()
    return body


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition, with a bound against a hang."""
    async with asyncio.timeout(HANGS_S):
        while not await condition():  # noqa: ASYNC110 the other side is a server, not an event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", [SUBMIT, f"{SUBMIT}/async", f"/api/v1/{MODELS[1]}"])
async def test_submit_answers_a_pending_task(path: str) -> None:
    """Both paths of a model answer with the documented form and point at the emulator itself."""
    async with vendor(task_seconds=60) as (_, client):
        answer = await client.post(path, json=FIELDS)
        data = answer.json()["data"]
        assert (answer.status_code, answer.json()["code"], answer.json()["message"]) == (200, 0, "success")
        assert re.fullmatch(r"task-[0-9a-f]{32}", data["task_id"])
        assert data["status"] == "pending"
        assert data["model_id"] in path
        assert data["get_result"] == {
            "method": "GET",
            "url": f"{client.base_url}/api/v1/tasks/{data['task_id']}".replace("//api", "/api"),
        }
        assert (await client.get(data["get_result"]["url"])).json()["data"]["status"] == "pending"


async def test_task_runs_from_pending_to_success_and_stays_byte_identical() -> None:
    """A task passes through pending and processing to a success whose bytes never change."""
    async with vendor(task_seconds=0.8) as (_, client):
        task_id = await submit(client)
        seen: list[str] = []
        last = b""

        async def succeeded() -> bool:
            nonlocal last
            last = (await client.get(f"/api/v1/tasks/{task_id}")).content
            seen.append(json.loads(last)["data"]["status"])
            return seen[-1] == "success"

        await until(succeeded)
        assert list(dict.fromkeys(seen)) == ["pending", "processing", "success"]
        assert (await client.get(f"/api/v1/tasks/{task_id}")).content == last
        assert (await client.get(f"/api/v1/tasks/{task_id}?wait=true")).content == last


async def test_success_carries_the_union_of_documented_fields() -> None:
    """A success has resources, metadata, extensions, an amount as text, a duration, an expiry in ms."""
    async with vendor(task_seconds=0.05) as (_, client):
        began = time.time()
        data = (await ended(client, await submit(client)))["data"]
        took = time.time() - began
        assert data["status"] == "success"
        assert data["billing"] == {"status": "succeeded", "amount": "0.2400"}
        assert 50 <= data["duration"] <= took * 1000
        assert -1 <= data["result_expires_at"] / 1000 - (began + 7 * 86400) <= took + 1
        assert {"metadata", "extensions", "resources"} <= data["result"].keys()
        resource = data["result"]["resources"][0]
        assert (resource["type"], resource["format"], resource["role"], resource["size"]) == (
            "video",
            "mp4",
            "primary",
            RESULT.stat().st_size,
        )


async def test_result_is_a_real_mp4_with_ranges() -> None:
    """The resource of a success is downloadable in full and in part, by GET and HEAD."""
    async with vendor() as (_, client):
        url = (await ended(client, await submit(client)))["data"]["result"]["resources"][0]["url"]
        whole = await client.get(url)
        part = await client.get(url, headers={"Range": "bytes=4-7"})
        assert whole.content == RESULT.read_bytes()
        assert (part.status_code, part.content) == (206, b"ftyp")
        assert (await client.head(url)).headers["Content-Length"] == str(RESULT.stat().st_size)
        assert (await client.get("/files/task-unknown.mp4")).status_code == 404


async def test_sample_media_exist() -> None:
    """The sample image and video are served as what they are, with ranges."""
    async with vendor() as (_, client):
        image, video = (
            await client.get("/media/actor.jpg"),
            await client.get("/media/scene.mp4", headers={"Range": "bytes=0-31"}),
        )
        assert (image.headers["Content-Type"], image.content[:3], image.content[-2:]) == (
            "image/jpeg",
            b"\xff\xd8\xff",
            b"\xff\xd9",
        )
        assert (video.status_code, video.headers["Content-Type"], video.content[4:8]) == (
            206,
            "video/mp4",
            b"ftyp",
        )
        assert (await client.get("/media/vendor.py")).status_code == 404


async def test_expired_task_is_not_found() -> None:
    """Past its retention a task and its file are gone."""
    async with vendor(retention_s=0.3) as (_, client):
        task_id = await submit(client)
        url = (await ended(client, task_id))["data"]["result"]["resources"][0]["url"]

        async def gone() -> bool:
            return (await client.get(f"/api/v1/tasks/{task_id}")).status_code == 404

        await until(gone)
        assert (await client.get(url)).status_code == 404


async def test_profile_varies_the_words_of_a_success() -> None:
    """A profile may say completed, give the expiry as ISO text or leave it out."""
    async with vendor(success_word="completed", expiry_form="iso") as (_, client):
        data = (await ended(client, await submit(client)))["data"]
        assert data["status"] == "completed"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", data["result_expires_at"])
    async with vendor(expiry_form="absent") as (_, client):
        assert "result_expires_at" not in (await ended(client, await submit(client)))["data"]


@each_row(
    ("content", "message"),
    [
        (
            {"video_url": "http://e/b", "mode": "wan-std"},
            "Invalid parameters: parameter 'image_url' is required",
        ),
        ({**FIELDS, "video_url": None}, "Invalid parameters: parameter 'video_url' is required"),
        (
            {"image_url": "http://e/a", "video_url": "http://e/b"},
            "Invalid parameters: parameter 'mode' is required",
        ),
        (
            {**FIELDS, "mode": "wan-max"},
            "Invalid parameters: parameter 'mode' must be one of wan-std, wan-pro, got 'wan-max'",
        ),
        (
            {**FIELDS, "image_url": "ftp://e/a"},
            "Invalid format: parameter 'image_url' must be an ASCII http or https URL",
        ),
        (
            {**FIELDS, "video_url": "http://e/ü"},
            "Invalid format: parameter 'video_url' must be an ASCII http or https URL",
        ),
        (
            {**FIELDS, "image_url": 1},
            "Invalid format: parameter 'image_url' must be an ASCII http or https URL",
        ),
        ({**FIELDS, "check_image": "yes"}, "Invalid format: parameter 'check_image' must be a boolean"),
        ([], "Invalid format: request body must be a JSON object"),
        (b"{", "Invalid format: invalid JSON format"),
    ],
)
async def test_invalid_submit_is_refused_in_the_vendors_words(content: Any, message: str) -> None:
    """A wrong body is a 400 in the envelope, costs nothing and is still counted as a submit."""
    async with vendor() as (emulator, client):
        answer = await client.post(
            SUBMIT, content=content if isinstance(content, bytes) else json.dumps(content)
        )
        assert (answer.status_code, answer.json()) == (400, {"code": 400, "message": message})
        assert (emulator.vendor.submits, len(emulator.vendor.tasks)) == (1, 0)


async def test_unknown_things_are_404_in_the_envelope() -> None:
    """Unknown models, tasks, paths and methods all answer 404 with the envelope."""
    async with vendor() as (emulator, client):
        calls = [
            ("POST", "/api/v1/alibaba/WAN2.2-animate-mix"),
            ("GET", "/api/v1/tasks/task-unknown"),
            ("GET", SUBMIT),
            ("POST", "/api/v1/tasks/redeliver"),
            ("DELETE", "/nowhere"),
        ]
        for method, path in calls:
            answer = await client.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (404, 404), path
            assert answer.json()["message"].startswith("Resource not found: ")
        assert emulator.vendor.submits == 1


@each_row("authorization", ["", "Bearer mdlx-wrong", f"Basic {KEY}", "Bearer"])
async def test_bad_keys_are_refused(authorization: str) -> None:
    """A key that is not accepted gets 401 everywhere, except that validation says false."""
    async with vendor() as (emulator, client):
        client.headers["Authorization"] = authorization
        for method, path in (
            ("POST", SUBMIT),
            ("GET", "/api/v1/tasks/x"),
            ("GET", "/api/v1/models"),
            ("GET", "/api/v1/team/balance"),
        ):
            answer = await client.request(method, path, json=FIELDS if method == "POST" else None)
            assert (answer.status_code, answer.json()["code"]) == (401, 401)
        validation = await client.get("/api/v1/apikey/validate")
        assert (validation.status_code, validation.json()["data"]) == (200, {"is_valid": False})
        assert not emulator.vendor.tasks


async def test_key_can_be_rotated_while_tasks_run() -> None:
    """A rotated key sees the tasks of the old one, which is refused from then on."""
    async with vendor() as (emulator, client):
        task_id = await submit(client)
        emulator.vendor.api_keys = {"mdlx-new"}
        assert (await client.get(f"/api/v1/tasks/{task_id}")).status_code == 401
        client.headers["Authorization"] = "Bearer mdlx-new"
        assert (await client.get(f"/api/v1/tasks/{task_id}")).status_code == 200


async def test_account_calls_answer_in_their_own_forms() -> None:
    """Validation and balance wear the envelope, the list of models does not."""
    async with vendor() as (_, client):
        assert (await client.get("/api/v1/apikey/validate")).json() == {
            "code": 0,
            "message": "success",
            "data": {"is_valid": True},
        }
        assert isinstance((await client.get("/api/v1/team/balance")).json()["data"]["balance"], float)
        models = (await client.get("/api/v1/models")).json()
        assert list(models) == ["models"]
        assert [model["slug"] for model in models["models"]] == list(MODELS)


async def test_rate_limit_counts_submits_and_polls_together() -> None:
    """The call past the limit is a 429 with the window's headers, is counted, and touches nothing."""
    async with vendor(rpm=3, retry_after=True) as (emulator, client):
        began = time.time()
        task_id = await submit(client)
        second = await client.get(f"/api/v1/tasks/{task_id}")
        await client.get("/api/v1/models")
        refused = await client.post(SUBMIT, json=FIELDS)
        assert (second.headers["X-RateLimit-Limit"], second.headers["X-RateLimit-Remaining"]) == ("3", "1")
        assert refused.status_code == 429
        assert refused.json()["message"].startswith("Rate limit exceeded: ")
        assert refused.headers["X-RateLimit-Remaining"] == "0"
        took = time.time() - began
        assert 59 <= int(refused.headers["X-RateLimit-Reset"]) - began <= 61 + took
        assert 59 - took <= int(refused.headers["Retry-After"]) <= 60
        counted = await control(client)
        assert (counted["submits"], counted["paid_submits"], counted["refused_rate"], counted["polls"]) == (
            2,
            1,
            1,
            1,
        )
        assert emulator.vendor.refused_concurrency == 0


async def test_rate_window_slides() -> None:
    """Each call gives its room back when it leaves the window, and refused calls never took any."""
    async with vendor(rpm=2, rate_window_s=1.0) as (emulator, client):
        started = time.monotonic()
        assert [(await client.get("/api/v1/models")).status_code for _ in range(3)] == [200, 200, 429]

        async def served_again() -> bool:
            return (await client.get("/api/v1/models")).status_code == 200

        await until(served_again)
        assert time.monotonic() - started >= 1.0
        assert emulator.vendor.refused_rate > 2


async def test_rate_refusal_has_no_retry_after_by_default() -> None:
    """The vendor documents X-RateLimit-Reset only."""
    async with vendor(rpm=1) as (_, client):
        await client.get("/api/v1/models")
        refused = await client.get("/api/v1/models")
        assert refused.status_code == 429
        assert "X-RateLimit-Reset" in refused.headers
        assert "Retry-After" not in refused.headers


async def test_limits_are_per_key() -> None:
    """One key at its limits leaves the other key its own."""
    async with vendor(api_keys=(KEY, "mdlx-other"), rpm=2, concurrent=1, task_seconds=60) as (_, client):
        await submit(client)
        assert (await client.post(SUBMIT, json=FIELDS)).status_code == 429
        await submit(client, Authorization="Bearer mdlx-other")


async def test_concurrency_limit_frees_a_slot_when_a_task_ends() -> None:
    """A submit beyond the running tasks is refused without Retry-After, and taken once one has ended."""
    async with vendor(concurrent=1, task_seconds=60, retry_after=True) as (_, client):
        task_id = await submit(client)
        refused = await client.post(SUBMIT, json=FIELDS)
        assert (refused.status_code, refused.json()["code"]) == (429, 429)
        assert refused.json()["message"].startswith("Concurrent limit exceeded: ")
        assert "Retry-After" not in refused.headers
        await inject(client, on="task", fault="failed_message")
        await ended(client, task_id)
        await submit(client)
        counted = await control(client)
        assert (
            counted["submits"],
            counted["paid_submits"],
            counted["refused_concurrency"],
            counted["running"],
        ) == (3, 2, 1, 1)


async def test_long_poll_returns_as_soon_as_the_task_ends() -> None:
    """A held poll is answered by the end of its task, long before its timeout."""
    async with vendor(task_seconds=0.3) as (_, client):
        task_id = await submit(client)
        answer = await client.get(f"/api/v1/tasks/{task_id}?wait=true&timeout=45", timeout=HANGS_S)
        assert answer.json()["data"]["status"] == "success"
        answered_at, [task] = time.time(), (await control(client))["tasks"]
        assert answered_at < task["submitted_at"] + 45


async def test_long_poll_times_out_with_a_snapshot() -> None:
    """A held poll that reaches its timeout answers with the state of that moment."""
    async with vendor(task_seconds=60) as (_, client):
        task_id = await submit(client)
        started = time.monotonic()
        answer = await client.get(f"/api/v1/tasks/{task_id}?wait=true&timeout=0.2")
        assert (answer.status_code, answer.json()["data"]["status"]) == (200, "pending")
        assert time.monotonic() - started >= 0.2
        assert (await client.get(f"/api/v1/tasks/{task_id}?wait=true&timeout=soon")).status_code == 400


@pytest.mark.parametrize(("long_poll", "query"), [(False, "?wait=true"), (True, ""), (True, "?timeout=30")])
async def test_poll_is_not_held_without_long_poll(*, long_poll: bool, query: str) -> None:
    """A vendor without long polls ignores `wait`, and one with them never holds unasked."""
    async with vendor(task_seconds=60, long_poll=long_poll) as (_, client):
        # of 30 that it would be held
        answer = await client.get(f"/api/v1/tasks/{await submit(client)}{query}", timeout=20)
        assert answer.json()["data"]["status"] == "pending"


async def test_held_polls_do_not_hold_up_the_end_of_the_server() -> None:
    """Stopping the server drops the polls it holds at once."""
    async with vendor(task_seconds=60) as (emulator, client):
        task_id = await submit(client)
        held = asyncio.create_task(
            client.get(f"/api/v1/tasks/{task_id}?wait=true&timeout=45", timeout=2 * HANGS_S)
        )

        async def arrived() -> bool:
            return emulator.vendor.polls == 1

        await until(arrived)
    assert not emulator.vendor.has_ended(emulator.vendor.tasks[task_id])  # or else the poll had its answer
    with pytest.raises(httpx.TransportError):
        await held


@each_row(
    "status",
    [
        "400",
        "401",
        "402",
        "403",
        "404",
        "405",
        "408",
        "409",
        "413",
        "415",
        "422",
        "425",
        "429",
        "500",
        "502",
        "503",
        "504",
    ],
)
@each_row("target", ["submit", "task"])
async def test_status_faults_answer_in_the_envelope_as_often_as_asked(target: str, status: str) -> None:
    """Any status can be injected for n calls of one kind, after which that kind is served again."""
    async with vendor() as (emulator, client):
        task_id = await submit(client)
        await inject(client, on=target, fault=status, times=2)
        call = client.post(SUBMIT, json=FIELDS), client.post(SUBMIT, json=FIELDS)
        if target == "task":
            for unused in call:
                unused.close()
            call = client.get(f"/api/v1/tasks/{task_id}"), client.get(f"/api/v1/tasks/{task_id}")
        for answer in [await one for one in call]:
            assert (answer.status_code, answer.json()["code"]) == (int(status), int(status))
            assert "data" not in answer.json()
        assert len(emulator.vendor.tasks) == 1
        await ended(client, await submit(client))


async def test_injected_429_says_when_to_come_back() -> None:
    """An injected rate refusal promises room within a second or two, and is not counted as the limit's."""
    async with vendor() as (emulator, client):
        await inject(client, on="submit", fault="429")
        began = time.time()
        answer = await client.post(SUBMIT, json=FIELDS)
        assert answer.json()["message"].startswith("Rate limit exceeded: ")
        assert 0 <= int(answer.headers["X-RateLimit-Reset"]) - began <= 2 + time.time() - began
        assert emulator.vendor.refused_rate == 0


async def test_status_fault_can_choose_its_words_and_headers() -> None:
    """A fault's own message and headers replace the usual ones."""
    async with vendor() as (_, client):
        await inject(client, on="submit", fault="429", message="slow down", headers={"Retry-After": "7"})
        answer = await client.post(SUBMIT, json=FIELDS)
        assert answer.json()["message"] == "Rate limit exceeded: slow down"
        assert answer.headers["Retry-After"] == "7"
        assert "X-RateLimit-Reset" not in answer.headers


async def test_redirect_fault_points_at_itself() -> None:
    """A 302 carries a Location, which a client that follows would be counted for."""
    async with vendor() as (emulator, client):
        await inject(client, on="submit", fault="302")
        answer = await client.post(SUBMIT, json=FIELDS)
        assert (answer.status_code, answer.headers["Location"]) == (
            302,
            f"{str(client.base_url).rstrip('/')}{SUBMIT}",
        )
        assert (emulator.vendor.submits, len(emulator.vendor.tasks)) == (1, 0)


@pytest.mark.parametrize(("fault", "paid"), [("drop_before", 0), ("drop_after", 1)])
async def test_dropped_submit_is_counted_and_paid_only_after(fault: str, paid: int) -> None:
    """A dropped submit reached the vendor; it costs money only when dropped after the task was created."""
    async with vendor() as (_, client):
        await inject(client, on="submit", fault=fault)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(SUBMIT, json=FIELDS)
        counted = await control(client)
        assert (counted["submits"], counted["paid_submits"]) == (1, paid)
        assert [task["request"] for task in counted["tasks"]] == [FIELDS] * paid


async def test_slow_submit_is_paid_although_the_client_gave_up() -> None:
    """A slow submit goes on after its client has hung up."""
    async with vendor() as (_, client):
        await inject(client, on="submit", fault="slow", seconds=1)
        with pytest.raises(httpx.ReadTimeout):
            await client.post(SUBMIT, json=FIELDS, timeout=httpx.Timeout(HANGS_S, read=0.1))

        async def paid() -> bool:
            return bool((await control(client))["paid_submits"] == 1)

        await until(paid)


async def test_unusable_submit_answers() -> None:
    """A 200 may be no JSON, carry a code, or lack an id; only the coded one leaves no task behind."""
    async with vendor() as (emulator, client):
        for fault in ("not_json", "code_nonzero", "wrong_id"):
            await inject(client, on="submit", fault=fault)
        html, coded, nameless = [await client.post(SUBMIT, json=FIELDS) for _ in range(3)]
        with pytest.raises(json.JSONDecodeError):
            html.json()
        assert coded.json()["code"] != 0
        assert nameless.json()["code"] == 0
        assert not isinstance(nameless.json()["data"]["task_id"], str)
        assert [html.status_code, coded.status_code, nameless.status_code] == [200, 200, 200]
        assert (emulator.vendor.submits, len(emulator.vendor.tasks)) == (3, 2)


async def test_unusable_task_answers_leave_the_task_alone() -> None:
    """Drops, pages, codes and foreign ids on polls pass, and the task still ends well."""
    async with vendor(task_seconds=0.1) as (_, client):
        other, task_id = await submit(client), await submit(client)
        for fault in ("drop_before", "drop_after", "not_json", "code_nonzero", "wrong_id"):
            await inject(client, on="task", fault=fault)
        path = f"/api/v1/tasks/{task_id}"
        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(path)
        html, coded, foreign = [await client.get(path) for _ in range(3)]
        assert html.headers["Content-Type"].startswith("text/html")
        assert (coded.status_code, coded.json()["code"]) == (200, 500)
        assert foreign.json()["data"]["task_id"] == other
        assert (await ended(client, task_id))["data"]["status"] == "success"


@each_row("target", ["submit", "task"])
@each_row(
    ("fault", "in_envelope", "in_data", "in_error"),
    [
        ("failed_message", True, True, None),
        ("failed_string", False, False, str),
        ("failed_object", False, False, dict),
        ("failed", True, True, dict),
    ],
)
async def test_failed_tasks_take_every_form(
    target: str, fault: str, *, in_envelope: bool, in_data: bool, in_error: type | None
) -> None:
    """A task fails at its end when the submit was told to, at once when a poll was, in the form asked for."""
    async with vendor(task_seconds=0.05 if target == "submit" else 60) as (_, client):
        if target == "submit":
            await inject(client, on="submit", fault=fault, message="no person")
        task_id = await submit(client)
        if target == "task":
            await inject(client, on="task", fault=fault, message="no person")
        answer = await ended(client, task_id)
        data = answer["data"]
        assert (answer["code"], data["status"]) == (0, "failed")
        assert (answer["message"] == "no person") is in_envelope
        assert (data.get("message") == "no person") is in_data
        assert (type(data["error"]) if "error" in data else None) is in_error
        assert "result" not in data
        assert (await ended(client, task_id)) == answer


async def test_task_fault_never_changes_a_terminal_state() -> None:
    """A task that has succeeded stays so, whatever is injected."""
    async with vendor() as (_, client):
        task_id = await submit(client)
        before = await ended(client, task_id)
        await inject(client, on="task", fault="failed_string")
        assert await ended(client, task_id) == before
        assert (await client.get(before["data"]["result"]["resources"][0]["url"])).status_code == 200
        assert (await control(client))["tasks"][0]["status"] == "success"


async def test_file_faults_hit_downloads_only() -> None:
    """A download can be refused, cut off in the middle, or be no media; samples have their own faults."""
    async with vendor() as (_, client):
        url = (await ended(client, await submit(client)))["data"]["result"]["resources"][0]["url"]
        for fault in ("503", "drop_after", "not_json"):
            await inject(client, on="file", fault=fault)
        assert (await client.get("/media/scene.mp4")).status_code == 200
        assert (await client.get(url)).status_code == 503
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(url)
        assert (await client.get(url)).headers["Content-Type"].startswith("text/html")
        assert (await client.get(url)).content == RESULT.read_bytes()
        await inject(client, on="media", fault="404")
        assert (await client.get("/media/scene.mp4")).status_code == 404


async def test_result_files_may_be_of_any_size() -> None:
    """Bytes that follow from the task's id, whole or from anywhere on; as slow as asked, cut off, or gone."""
    async with vendor() as (_, client):
        await client.post("/_control/results", json={"bytes": 2**21 + 7})
        task_id = await submit(client)
        [resource] = (await ended(client, task_id))["data"]["result"]["resources"]
        url, bulk = resource["url"], Bulk(task_id, 2**21 + 7)
        whole = (await client.get(url)).content
        assert (resource["size"], len(whole), hashlib.sha256(whole).hexdigest()) == (
            bulk.size,
            bulk.size,
            bulk.digest(),
        )
        rest = await client.get(url, headers={"Range": "bytes=1048577-", "If-Range": bulk.tag})
        assert (rest.status_code, rest.headers["Content-Range"]) == (
            206,
            f"bytes 1048577-{bulk.size - 1}/{bulk.size}",
        )
        assert rest.content == whole[1048577:]
        assert (
            await client.get(url, headers={"Range": "bytes=1-", "If-Range": '"other"'})
        ).status_code == 200
        assert (await client.get(url, headers={"Range": f"bytes={bulk.size}-"})).status_code == 416
        await inject(client, on="file", fault="drop_after")
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(url)
        await client.post("/_control/results", json={"rate": 4 * 2**20})
        began = time.monotonic()
        assert (await client.get(url)).content == whole
        assert time.monotonic() - began > 0.4
        await client.post("/_control/results", json={"gone": True})
        assert (await client.get(url)).status_code == 404
        assert (await client.post("/_control/results", json={"bytes": 0})).status_code == 400


async def test_faults_last_as_long_as_asked() -> None:
    """A fault strikes once by default, and without an end until it is cleared."""
    async with vendor() as (_, client):
        await inject(client, on="submit", fault="500")
        await inject(client, on="submit", fault="503", times=None)
        statuses = [(await client.post(SUBMIT, json=FIELDS)).status_code for _ in range(4)]
        assert statuses == [500, 503, 503, 503]
        assert (await client.delete("/_control/faults")).json()["code"] == 0
        await submit(client)


@each_row(
    ("fault", "field"),
    [
        ({"fault": "500"}, "on"),
        ({"on": "poll", "fault": "500"}, "on"),
        ({"on": "submit"}, "fault"),
        ({"on": "submit", "fault": "explode"}, "fault"),
        ({"on": "submit", "fault": "199"}, "fault"),
        ({"on": "submit", "fault": 500}, "fault"),
        ({"on": "file", "fault": "wrong_id"}, "fault"),
        ({"on": "submit", "fault": "500", "times": 0}, "times"),
        ({"on": "submit", "fault": "500", "times": "2"}, "times"),
        ({"on": "submit", "fault": "slow", "seconds": -1}, "seconds"),
        ({"on": "submit", "fault": "slow", "second": 1}, "second"),
        ([], "body"),
    ],
)
async def test_wrong_control_bodies_name_the_field(fault: Any, field: str) -> None:
    """A fault that cannot be is a 400 in the envelope that names what is wrong, and changes nothing."""
    async with vendor() as (_, client):
        answer = await client.post("/_control/faults", json=fault)
        assert (answer.status_code, answer.json()["code"]) == (400, 400)
        assert f"parameter '{field}'" in answer.json()["message"]
        await submit(client)


async def test_control_tells_the_life_of_each_task() -> None:
    """The report has every task with its times, its requests and what it was submitted with."""
    async with vendor(task_seconds=60) as (_, client):
        started = time.time()
        task_id = await submit(client)
        await client.get(f"/api/v1/tasks/{task_id}")
        running = (await control(client))["tasks"][0]
        assert (running["id"], running["requests"], running["ended_at"], running["request"]) == (
            task_id,
            2,
            None,
            FIELDS,
        )
        assert started - 1 <= running["submitted_at"] <= time.time() + 1
        await inject(client, on="task", fault="canceled")
        await ended(client, task_id)
        over = (await control(client))["tasks"][0]
        assert (over["requests"], over["status"]) == (3, "canceled")
        assert running["submitted_at"] <= over["ended_at"] <= time.time() + 1


@pytest.mark.parametrize(
    ("fault", "event"), [(None, "succeeded"), ("failed_object", "failed"), ("canceled", "canceled")]
)
async def test_webhook_carries_the_task_answer_and_the_vendors_headers(fault: str | None, event: str) -> None:
    """The native webhook posts the bytes of the task answer with four headers once the task has ended."""
    receiver = Receiver()
    async with serving(receiver.app()) as hooks, vendor(task_seconds=0.05) as (_, client):
        if fault is not None:
            await inject(client, on="submit", fault=fault)
        task_id = await submit(client, **{"X-Webhook-URL": f"{hooks}/hooks/1"})

        async def received() -> bool:
            return bool(receiver.deliveries)

        await until(received)
        webhook = receiver.deliveries[0]
        assert (webhook.path, webhook.task_id) == ("/hooks/1", task_id)
        assert webhook.headers["x-modellix-event"] == f"prediction.task.{event}"
        assert (webhook.headers["x-modellix-task-id"], webhook.headers["x-modellix-retry-count"]) == (
            task_id,
            "0",
        )
        assert webhook.headers["x-modellix-delivery-id"]
        assert webhook.body == (await client.get(f"/api/v1/tasks/{task_id}")).text


async def test_webhook_is_repeated_for_server_errors_only() -> None:
    """A webhook is sent again after a drop, 429 and 5xx, with the same delivery id; not after another 4xx."""
    receiver = Receiver()
    async with serving(receiver.app()) as hooks, vendor(webhook_waits=(0.01,) * 5) as (emulator, client):
        for status in (0, 429, 503, 404):
            receiver.behave(Behaviour(path="/hooks/1", status=status))
        task_id = await submit(client, **{"X-Webhook-URL": f"{hooks}/hooks/1"})

        async def refused() -> bool:
            return len(receiver.deliveries) == 4 and not emulator._webhooks  # whether it has given up

        await until(refused)
        assert [webhook.headers["x-modellix-retry-count"] for webhook in receiver.deliveries] == [
            "0",
            "1",
            "2",
            "3",
        ]
        assert len({webhook.headers["x-modellix-delivery-id"] for webhook in receiver.deliveries}) == 1
        assert emulator.vendor.tasks[task_id].webhook_attempts == 4


async def test_webhooks_can_be_switched_off_or_refused() -> None:
    """Without webhooks the header is ignored; with them it must be a URL."""
    async with vendor(webhooks=False) as (emulator, client):
        task_id = await submit(client, **{"X-Webhook-URL": "http://127.0.0.1:9/"})
        await ended(client, task_id)
        assert emulator.vendor.tasks[task_id].webhook_attempts == 0
    async with vendor() as (emulator, client):
        answer = await client.post(SUBMIT, json=FIELDS, headers={"X-Webhook-URL": "ftp://127.0.0.1/"})
        assert (answer.status_code, len(emulator.vendor.tasks)) == (400, 0)


async def test_webhooks_under_way_end_with_the_server() -> None:
    """A webhook that still waits for its next try is cancelled when the server stops."""
    unreachable = web.Application()
    async with serving(unreachable) as hooks:
        pass
    async with vendor(webhook_waits=(60.0,)) as (emulator, client):
        await submit(client, **{"X-Webhook-URL": hooks})

        async def tried() -> bool:
            return any(task.webhook_attempts for task in emulator.vendor.tasks.values())

        await until(tried)
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 60  # the webhook would wait for longer
    assert not emulator._webhooks  # nothing is left behind


async def test_runs_as_a_process_of_its_own() -> None:
    """The command prints its origin and key as one JSON line, serves with its flags and ends on SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.local.vendor",
        "--rpm",
        "7",
        "--api-key",
        KEY,
        "--task-seconds",
        "0",
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), HANGS_S))
        assert ready["api_key"] == KEY
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=ready["upstream"], headers=headers, trust_env=False) as client:
            assert (await client.get("/api/v1/models")).headers["X-RateLimit-Limit"] == "7"
            assert (await ended(client, await submit(client)))["data"]["status"] == "success"
        process.terminate()
        assert await asyncio.wait_for(process.wait(), HANGS_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_process_ends_when_its_parent_dies() -> None:
    """A parent that is killed leaves no emulator behind."""
    command = f"{sys.executable} -m tests.local.vendor & wait"
    parent = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None
    json.loads(await asyncio.wait_for(parent.stdout.readline(), HANGS_S))
    parent.kill()
    await parent.wait()
    # The orphan holds the other end of the pipe until it has ended.
    assert await asyncio.wait_for(parent.stdout.read(), HANGS_S) == b""
