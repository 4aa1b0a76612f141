"""Ark's emulator over real sockets: what becomes of a task that is deleted hangs on how it stands."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from taskhook.vendors.ark import ARK
from tests.local.ark import ArkEmulator
from tests.local.server import serving
from tests.modellix.vendor import VendorProfile
from tests.vendor_answers import golden

SUBMIT = golden("ark")["submits"][0]
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and spares each client the loading of certificates


@asynccontextmanager
async def vendor(task_seconds: float) -> AsyncIterator[tuple[ArkEmulator, httpx.AsyncClient]]:
    """Serve an emulator and open an authenticated client on it."""
    emulator = ArkEmulator(VendorProfile(api_keys=("k",), task_seconds=task_seconds))
    async with (
        serving(emulator.app()) as origin,
        httpx.AsyncClient(
            base_url=origin,
            headers={"Authorization": "Bearer k"},
            timeout=60.0,
            trust_env=False,
            verify=NO_TLS,
        ) as client,
    ):
        yield emulator, client


async def submit(client: httpx.AsyncClient) -> str:
    """Submit a task; give its path."""
    answer = await client.post(SUBMIT["path"], json=SUBMIT["body"])
    assert answer.status_code == 200, answer.text
    return ARK.operation(answer.json()["id"])


async def test_what_is_queued_is_canceled_and_stays() -> None:
    """Once: what was canceled cannot be deleted."""
    async with vendor(60.0) as (_, client):
        task = await submit(client)
        assert (await client.get(task)).json()["status"] == "queued"
        assert [(await client.delete(task)).status_code for _ in range(2)] == [200, 409]
        assert (await client.get(task)).json()["status"] == "cancelled"


async def test_what_runs_is_not_canceled() -> None:
    """And the refusal says so in the vendor's form."""
    async with vendor(60.0) as (emulator, client):
        task = await submit(client)
        [taken] = emulator.vendor.tasks.values()
        taken.submitted_at -= 30
        assert (await client.get(task)).json()["status"] == "running"
        refused = await client.delete(task)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "OperationDenied")
        assert (await client.get(task)).json()["status"] == "running"


async def test_what_has_ended_is_removed_with_its_result() -> None:
    """Neither is found any more."""
    async with vendor(0.0) as (_, client):
        task = await submit(client)
        shown = (await client.get(task)).json()
        assert (shown["status"], (await client.get(shown["content"]["video_url"])).status_code) == (
            "succeeded",
            200,
        )
        assert (await client.delete(task)).status_code == 200
        gone = [(await client.get(url)).status_code for url in (task, shown["content"]["video_url"])]
        assert gone == [404, 404]


@pytest.mark.parametrize(
    ("body", "status"), [({}, 400), ({"model": "m"}, 400), ({"model": 7, "content": [1]}, 400)]
)
async def test_what_is_wrong_is_refused(body: dict[str, object], status: int) -> None:
    """In the vendor's form; and what is free to ask for tells of the newest task."""
    async with vendor(60.0) as (_, client):
        refused = await client.post(SUBMIT["path"], json=body)
        assert (refused.status_code, refused.json()["error"]["type"]) == (status, "BadRequest")
        free = ARK.free_request().target
        assert (await client.get(free)).json() == {"total": 0, "items": []}
        await submit(client)
        assert len((await client.get(free)).json()["items"]) == 1
