"""DashScope's emulator over real sockets: its own form, whatever has become of a task."""

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.local.dashscope import DashScopeEmulator
from tests.local.server import serving
from tests.modellix.vendor import VendorProfile

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden/dashscope.json").read_text())
SUBMIT = GOLDEN["submits"][0]
ASYNC = {"X-DashScope-Async": "enable"}
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and spares each client the loading of certificates
HANGS_S = 60.0


@asynccontextmanager
async def vendor(**knobs: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an emulator and open an authenticated client on it."""
    defaults: dict[str, Any] = {"api_keys": ("k",), "task_seconds": 60.0}
    profile = VendorProfile(**(defaults | knobs))
    async with (
        serving(DashScopeEmulator(profile).app()) as origin,
        httpx.AsyncClient(
            base_url=origin,
            headers={"Authorization": "Bearer k"},
            timeout=HANGS_S,
            trust_env=False,
            verify=NO_TLS,
        ) as client,
    ):
        yield client


async def submit(client: httpx.AsyncClient, *, model: str = SUBMIT["model"]) -> str:
    """Submit a task and return its id."""
    body = {**SUBMIT["body"], "model": model}
    answer = await client.post(SUBMIT["path"], json=body, headers=ASYNC)
    assert answer.status_code == 200, answer.text
    task_id: str = answer.json()["output"]["task_id"]
    return task_id


async def status(client: httpx.AsyncClient, task_id: str) -> str:
    """Ask how a task stands."""
    answer = await client.get(f"/api/v1/tasks/{task_id}", params={"wait": "true"})
    assert answer.status_code == 200, answer.text
    word: str = answer.json()["output"]["task_status"]
    return word


async def inject(client: httpx.AsyncClient, **fault: Any) -> None:
    """Put a fault in force."""
    (await client.post("/_control/faults", json=fault)).raise_for_status()


def refused(answer: httpx.Response, status_code: int, code: str) -> None:
    """Expect a refusal in the vendor's form."""
    assert (answer.status_code, answer.json()["code"]) == (status_code, code), answer.text
    assert answer.json().keys() == {"request_id", "code", "message"}


async def test_a_task_is_canceled_while_it_is_pending() -> None:
    """Then it is over; a second time there is nothing to cancel."""
    async with vendor() as client:
        task_id = await submit(client)
        assert await status(client, task_id) == "PENDING"  # at once: no poll is held
        canceled = await client.post(f"/api/v1/tasks/{task_id}/cancel")
        assert (canceled.status_code, canceled.json().keys()) == (200, GOLDEN["canceled"].keys())
        assert await status(client, task_id) == "CANCELED"
        refused(await client.post(f"/api/v1/tasks/{task_id}/cancel"), 400, "UnsupportedOperation")
        assert await status(client, "no-such-task") == "UNKNOWN"


async def test_one_task_of_each_model_runs_at_once() -> None:
    """The next one is refused with another code than a full second."""
    async with vendor(concurrent=1) as client:
        await submit(client)
        body = SUBMIT["body"]
        again = await client.post(SUBMIT["path"], json=body, headers=ASYNC)
        refused(again, 429, "Throttling.AllocationQuota")
        await submit(client, model="wan2.2-animate-move")
        counts = (await client.get("/_control/counts")).json()
        assert (counts["paid_submits"], counts["running"], counts["refused_concurrency"]) == (2, 2, 1)
    async with vendor(rpm=1) as client:
        await submit(client)
        refused(await client.get("/api/v1/tasks/"), 429, "Throttling.RateQuota")


async def test_what_is_wrong_has_a_code() -> None:
    """Its own, or the one that a fault brings."""
    async with vendor() as client:
        path, body = SUBMIT["path"], SUBMIT["body"]
        refused(await client.post(path, json=body), 403, "AccessDenied")
        refused(await client.post(path, json={"model": "m"}, headers=ASYNC), 400, "InvalidParameter")
        refused(await client.post(path, content=b"no", headers=ASYNC), 400, "InvalidParameter")
        bad = {**ASYNC, "Authorization": "Bearer no"}
        refused(await client.post(path, json=body, headers=bad), 401, "InvalidApiKey")
        await inject(client, on="submit", fault="400", message="Arrearage: the account is overdue")
        refused(await client.post(path, json=body, headers=ASYNC), 400, "Arrearage")
        refused(await client.get("/api/v1/tasks/", params={"page_size": "101"}), 400, "InvalidParameter")
        refused(await client.get("/api/v1/tasks/", params={"start_time": "now"}), 400, "InvalidParameter")


@pytest.mark.parametrize(
    ("fault", "code"), [("failed", "InvalidFile.Size"), ("failed_string", None)], ids=["coded", "silent"]
)
async def test_media_faults_are_told_at_the_poll(fault: str, code: str | None) -> None:
    """By code and message, or not at all."""
    async with vendor() as client:
        task_id = await submit(client)
        await inject(client, on="task", fault=fault, message="InvalidFile.Size: the image is too large")
        assert await status(client, task_id) == "FAILED"
        output = (await client.get(f"/api/v1/tasks/{task_id}")).json()["output"]
        assert output.get("code") == code
        assert output.get("message") == ("the image is too large" if code else None)


async def test_the_list_is_narrowed_down_and_paged() -> None:
    """By model, state and time, newest first."""
    async with vendor() as client:
        ids = [await submit(client, model=f"m{number % 2}") for number in range(5)]

        async def listed(**query: str) -> dict[str, Any]:
            answer = await client.get("/api/v1/tasks/", params=query)
            body: dict[str, Any] = answer.json()
            return body

        everything = await listed()
        assert everything.keys() == GOLDEN["list"].keys()
        assert [row["task_id"] for row in everything["data"]] == ids[::-1]
        assert (await listed(model_name="m1"))["total"] == 2
        assert (await listed(status="SUCCEEDED"))["total"] == 0
        assert (await listed(end_time="20200101000000"))["total"] == 0
        assert (await listed(start_time="20200101000000"))["total"] == 5
        page = await listed(page_size="2", page_no="3")
        assert ([row["task_id"] for row in page["data"]], page["total_page"]) == (ids[:1], 3)


async def test_a_result_can_be_had() -> None:
    """By the link in the answer, which says when it ends."""
    async with vendor(task_seconds=0.0) as client:
        answer = (await client.get(f"/api/v1/tasks/{await submit(client)}")).json()
        link = answer["output"]["results"]["video_url"]
        assert "?Expires=" in link
        assert (await client.get(link)).headers["Content-Type"] == "video/mp4"
