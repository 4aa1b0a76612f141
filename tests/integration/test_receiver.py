"""The receiver of callbacks over real sockets: what it verifies, records and answers."""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from tests.local.receiver import Delivery, Receiver
from tests.local.server import serving
from tests.rows import each_row

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # the specification's own sample
OTHER_SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"  # made up
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and spares each client the loading of certificates
BODY = '{"type":"prediction.task.succeeded","data":{"task_id":"t-1"}}'


@asynccontextmanager
async def receiving(receiver: Receiver) -> AsyncIterator[httpx.AsyncClient]:
    """Serve a receiver and open a client on it."""
    async with (
        serving(receiver.app()) as origin,
        httpx.AsyncClient(base_url=origin, timeout=60, trust_env=False, verify=NO_TLS) as client,
    ):
        yield client


def signed(body: str = BODY, secret: str = SECRET, *, age_s: float = 0.0) -> dict[str, str]:
    """Return the headers of a message signed by the reference library."""
    timestamp = int(time.time() - age_s)
    signature = Webhook(secret).sign("msg_1", datetime.fromtimestamp(timestamp, UTC), body)
    return {"webhook-id": "msg_1", "webhook-timestamp": str(timestamp), "webhook-signature": signature}


async def recorded(client: httpx.AsyncClient, query: str = "") -> list[dict[str, Any]]:
    """Return what the receiver recorded."""
    deliveries: list[dict[str, Any]] = (await client.get(f"/_control{query}")).json()["deliveries"]
    return deliveries


async def test_signed_delivery_is_verified_and_recorded() -> None:
    """A delivery on any path is recorded with its headers, its exact body, both times and the verdict."""
    heard: list[Delivery] = []
    receiver = Receiver([SECRET], on_delivery=heard.append)
    async with receiving(receiver) as client:
        started = time.time()
        answer = await client.post("/a/b%20c?x=1", content=BODY, headers={**signed(), "X-Custom": "Yes"})
        assert (answer.status_code, answer.content) == (200, b"")
        (delivery,) = await recorded(client)
        assert (delivery["path"], delivery["query"], delivery["body"], delivery["task_id"]) == (
            "/a/b c",
            "x=1",
            BODY,
            "t-1",
        )
        assert (delivery["verified"], delivery["reason"], delivery["status_answered"]) == (True, None, 200)
        assert (delivery["headers"]["webhook-id"], delivery["headers"]["x-custom"]) == ("msg_1", "Yes")
        assert started - 1 <= delivery["received_at"] <= delivery["answered_at"] <= time.time() + 1
        assert heard == receiver.deliveries


@each_row(
    ("headers", "content", "reason"),
    [  # signed when the test runs: the suite may take longer than a timestamp is young
        (dict, BODY, "Missing required headers"),
        (signed, BODY + " ", "No matching signature found"),
        (lambda: signed(secret=OTHER_SECRET), BODY, "No matching signature found"),
        (lambda: signed(age_s=3600), BODY, "Message timestamp too old"),
        (lambda: signed(age_s=-3600), BODY, "Message timestamp too new"),
        (lambda: signed() | {"webhook-signature": "v1,AAAA  v1,AAAA"}, BODY, "Malformed"),
        (lambda: signed() | {"webhook-signature": "v1,*"}, BODY, ""),
        (lambda: signed() | {"webhook-timestamp": "yesterday"}, BODY, "Invalid Signature Headers"),
        (signed, b"\xff", "Malformed"),
    ],
)
async def test_bad_signatures_are_recorded_with_the_reason(
    headers: Callable[[], dict[str, str]], content: str | bytes, reason: str
) -> None:
    """A delivery that does not verify is recorded all the same and answered as any other."""
    async with receiving(Receiver([SECRET])) as client:
        assert (await client.post("/hook", content=content, headers=headers())).status_code == 200
        (delivery,) = await recorded(client)
        assert delivery["verified"] is False
        assert delivery["reason"].startswith(reason)


async def test_empty_and_non_json_bodies_can_be_verified() -> None:
    """The verdict is about the signature, whatever the body is."""
    async with receiving(Receiver([SECRET])) as client:
        for body in ("", "not json", "[" * 100_000):
            await client.post("/hook", content=body, headers=signed(body))
        assert [delivery["verified"] for delivery in await recorded(client)] == [True, True, True]


async def test_secrets_can_be_added_while_running() -> None:
    """Any known secret verifies, and one added later counts from then on."""
    receiver = Receiver()
    async with receiving(receiver) as client:
        await client.post("/hook", content=BODY, headers=signed())
        receiver.add_secret(OTHER_SECRET)
        receiver.add_secret(SECRET)
        await client.post("/hook", content=BODY, headers=signed())
        first, second = await recorded(client)
        assert (first["verified"], first["reason"], second["verified"]) == (
            False,
            "No signing secret is known",
            True,
        )


async def test_deliveries_are_found_by_task() -> None:
    """The list can be narrowed to one task, named by the body or by the vendor's header."""
    async with receiving(Receiver()) as client:
        for task_id in ("t-1", "t-2"):
            await client.post("/hook", json={"data": {"task_id": task_id}})
        await client.post("/hook", content="{}", headers={"X-Modellix-Task-ID": "t-2"})
        await client.post("/hook", json={"data": [1]})
        assert [delivery["task_id"] for delivery in await recorded(client, "?task_id=t-2")] == ["t-2", "t-2"]
        assert [delivery["task_id"] for delivery in await recorded(client, "?task_id=")] == [
            "t-1",
            "t-2",
            "t-2",
            None,
        ]
        assert await recorded(client, "?task_id=t-3") == []


async def test_behaviour_answers_the_next_deliveries_of_its_path() -> None:
    """A behaviour sets status, headers and body for n deliveries to one path, after which 200 is back."""
    async with receiving(Receiver()) as client:
        slow_down = {
            "path": "/hook",
            "status": 503,
            "headers": {"Retry-After": "7"},
            "body": "later",
            "times": 2,
        }
        assert (await client.post("/_control", json=slow_down)).json()["code"] == 0
        await client.post("/_control", json={"path": "/hook", "status": 410})
        assert (await client.post("/elsewhere")).status_code == 200
        answers = [await client.post("/hook") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [503, 503, 410, 200]
        assert (answers[0].headers["Retry-After"], answers[0].text) == ("7", "later")
        assert "Retry-After" not in answers[2].headers
        assert [delivery["status_answered"] for delivery in await recorded(client)] == [
            200,
            503,
            503,
            410,
            200,
        ]


async def test_behaviours_can_last_and_be_forgotten() -> None:
    """Without an end a behaviour lasts until all are forgotten, which keeps the record."""
    async with receiving(Receiver()) as client:
        await client.post("/_control", json={"path": "/hook", "status": 500, "times": None})
        assert [(await client.post("/hook")).status_code for _ in range(3)] == [500, 500, 500]
        await client.delete("/_control")
        assert (await client.post("/hook")).status_code == 200
        assert len(await recorded(client)) == 4


async def test_delayed_answer_is_recorded_as_held_back() -> None:
    """A held delivery is in the record at once, and gets its answer's time later."""
    receiver = Receiver()
    async with receiving(receiver) as client:
        await client.post("/_control", json={"path": "/hook", "delay_s": 0.4})
        answer = asyncio.create_task(client.post("/hook"))
        async with asyncio.timeout(60):
            while not receiver.deliveries:  # noqa: ASYNC110 the receiver has no event to wait for
                await asyncio.sleep(0.01)
        (held,) = await recorded(client)
        assert (held["answered_at"], held["status_answered"]) == (None, None)
        assert (await answer).status_code == 200
        (over,) = await recorded(client)
        assert over["answered_at"] - over["received_at"] >= 0.4


async def test_status_zero_closes_the_connection() -> None:
    """A delivery can be received and never answered."""
    async with receiving(Receiver()) as client:
        await client.post("/_control", json={"path": "/hook", "status": 0})
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/hook", content=BODY)
        (delivery,) = await recorded(client)
        assert (delivery["body"], delivery["status_answered"]) == (BODY, 0)


@each_row(
    ("behaviour", "field"),
    [
        ({"status": 500}, "path"),
        ({"path": "hook"}, "path"),
        ({"path": "/hook", "status": "500"}, "status"),
        ({"path": "/hook", "status": 99}, "status"),
        ({"path": "/hook", "headers": {"A": 1}}, "headers.A"),
        ({"path": "/hook", "delay_s": -1}, "delay_s"),
        ({"path": "/hook", "times": 0}, "times"),
        ({"path": "/hook", "delay": 1}, "delay"),
    ],
)
async def test_wrong_control_bodies_name_the_field(behaviour: dict[str, Any], field: str) -> None:
    """A behaviour that cannot be is a 400 in the envelope that names what is wrong, and changes nothing."""
    async with receiving(Receiver()) as client:
        answer = await client.post("/_control", content=json.dumps(behaviour))
        assert (answer.status_code, answer.json()["code"]) == (400, 400)
        assert f"parameter '{field}'" in answer.json()["message"]
        assert (await client.post("/hook")).status_code == 200
