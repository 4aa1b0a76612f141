"""A task all the way: submit, store, poll, signed callback; repeats, other callers, listings."""

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.corpus import image, video
from tests.e2e.conftest import SUBMIT, Admin, Inbox, Json, Stack, User, Vendor, eventually, fetch
from tests.fileserver import handing_out
from tests.listener import listening

# wan2.2-animate-mix.txt, but for the host: on a machine with a network the vendor's is there, and has no such
# files.
EXAMPLE = {
    "image_url": "https://media.invalid/new_actor.jpg",
    "video_url": "https://media.invalid/original_scene.mp4",
    "mode": "wan-std",
}


def assert_one_verified(inbox: Inbox, task_id: str, secret: str) -> Json:
    """Check that a task has one delivery, verify it with the reference library, and return its body."""
    [delivery] = inbox.deliveries(task_id)
    assert delivery["verified"], delivery["reason"]
    body: Json = Webhook(secret).verify(delivery["body"], delivery["headers"])
    assert delivery["headers"]["webhook-id"].startswith(f"msg_{task_id}_")
    return body


# --- the whole way --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [SUBMIT, f"{SUBMIT}/async"])
def test_the_vendors_example_comes_back_as_a_signed_callback(
    stack: Stack, user: User, vendor: Vendor, inbox: Inbox, marker: str, path: str
) -> None:
    """The vendor's own request plus a callback URL, on both paths: pending, then one verified callback."""
    # both functions run from here on
    user.ended(user.accepted(f"warm-{marker}", callback_url=inbox.url(marker)))
    url = f"{EXAMPLE['image_url']}?{marker}"
    answer = user.http.post(path, json=EXAMPLE | {"image_url": url, "callback_url": inbox.url(marker)})

    assert answer.status_code == 200
    task_id = answer.json()["data"]["task_id"]
    result = {"method": "GET", "url": f"{stack.endpoint}/api/v1/tasks/{task_id}"}
    data = {
        "status": "pending",
        "task_id": task_id,
        "model_id": "alibaba/wan2.2-animate-mix",
        "get_result": result,
    }
    assert answer.json() == {"code": 0, "message": "success", "data": data}

    task = user.ended(task_id)
    [paid] = [paid for paid in vendor.paid(marker) if "warm-" not in paid["request"]["image_url"]]
    assert paid["request"] == EXAMPLE | {"image_url": url}
    body = assert_one_verified(inbox, task_id, stack.signing_secret)
    [delivery] = inbox.deliveries(task_id)
    assert delivery["received_at"] >= paid["ended_at"]

    assert (delivery["path"], delivery["status_answered"]) == (f"/{marker}", 200)
    expected = {
        "content-type": "application/json",
        "x-modellix-event": "prediction.task.succeeded",
        "x-modellix-task-id": task_id,
        "x-modellix-delivery-id": delivery["headers"]["webhook-id"],
        "x-modellix-retry-count": "0",
    }
    assert {name: delivery["headers"][name] for name in expected} == expected
    assert delivery["body"] == json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", body.pop("timestamp"))
    told = body.pop("data")
    assert body == {"type": "prediction.task.succeeded", "code": 0, "message": "success"}
    assert (told["status"], told["task_id"], told["upstream_task_id"]) == ("success", task_id, paid["id"])
    assert fetch(told["result"]["resources"][0]["url"]).headers["content-type"] == "video/mp4"
    assert told["billing"]["status"] == "succeeded"

    assert {name: task[name] for name in told} == told
    assert (task["callback"]["attempts"], task["callback"]["next_attempt_at"]) == (1, None)
    assert [attempt["status"] for attempt in task["callback"]["log"]] == [200]


def test_the_callback_url_may_be_a_header(
    stack: Stack, user: User, vendor: Vendor, inbox: Inbox, marker: str
) -> None:
    """`X-Webhook-URL` says the same as `callback_url`, alone or in agreement with it."""
    url = inbox.url(marker)
    for more in ({}, {"callback_url": url}):
        body = EXAMPLE | {"image_url": f"{EXAMPLE['image_url']}?{marker}"} | more
        answer = user.http.post(SUBMIT, json=body, headers={"X-Webhook-URL": url})
        assert answer.status_code == 200
        task_id = answer.json()["data"]["task_id"]
        user.ended(task_id)
        assert_one_verified(inbox, task_id, stack.signing_secret)
        assert inbox.deliveries(task_id)[0]["path"] == f"/{marker}"
    assert len(vendor.paid(marker)) == 2


def test_a_task_without_a_callback_url_is_only_watched(
    user: User, vendor: Vendor, inbox: Inbox, marker: str
) -> None:
    """No callback is sent, and the result is there to be fetched."""
    task_id = user.accepted(marker)
    task = eventually(lambda: task if (task := user.task(task_id))["status"] == "success" else None)
    assert task is not None
    assert task["callback"] == {"state": "none", "attempts": 0, "next_attempt_at": None, "log": []}
    assert task["result"]["resources"]
    assert inbox.deliveries(task_id) == []
    assert len(vendor.paid(marker)) == 1


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("failed_message", "The input image has no human body or multiple human bodies."),
        ("failed_string", "The input image has no human body or multiple human bodies."),
        ("failed_object", "InvalidFile.NoHuman: The input image has no human body or multiple human bodies."),
    ],
)
def test_a_failed_task_is_called_back_with_the_vendors_words(
    stack: Stack, user: User, vendor: Vendor, inbox: Inbox, marker: str, shape: str, words: str
) -> None:
    """In whichever of its shapes the vendor says why."""
    with vendor.fault(shape):
        task_id = user.accepted(marker, callback_url=inbox.url(marker))
    task = user.ended(task_id)
    body = assert_one_verified(inbox, task_id, stack.signing_secret)
    assert (body["type"], body["code"], body["message"]) == ("prediction.task.failed", 0, words)
    assert body["data"]["status"] == task["status"] == "failed"
    assert body["data"]["error"] == task["error"] == {"code": "upstream_failed", "message": words}
    assert inbox.deliveries(task_id)[0]["headers"]["x-modellix-event"] == "prediction.task.failed"
    assert len(vendor.paid(marker)) == 1


# --- idempotent repeats ---------------------------------------------------------------------------


def assert_repeats(user: User, marker: str, first: httpx.Response, callback_url: str) -> None:
    """Check that the same key gets the first answer, byte by byte, and is refused with another request."""
    repeat = user.submit(marker, key=marker, callback_url=callback_url)
    assert (repeat.status_code, repeat.content) == (first.status_code, first.content)
    other = user.submit(marker, key=marker, callback_url=callback_url, mode="wan-pro")
    assert (other.status_code, other.json()["code"]) == (422, 422)
    assert "Idempotency-Key" in other.json()["message"]


@pytest.mark.parametrize("ending", ["success", "failed"])
def test_a_repeat_gets_the_first_answer_while_the_task_runs_and_after_its_end(
    user: User, vendor: Vendor, inbox: Inbox, marker: str, ending: str
) -> None:
    """Watched, succeeded or failed: the same answer, one paid submit, one callback."""
    url = inbox.url(marker)
    with vendor.fault("503", on="task", times=None):  # no poll gets through, so the task stays watched
        if ending == "failed":
            vendor.inject("failed")
        first = user.submit(marker, key=marker, callback_url=url)
        task_id = first.json()["data"]["task_id"]
        assert_repeats(user, marker, first, url)
        assert user.task(task_id)["status"] == "processing"
    assert user.ended(task_id)["status"] == ending
    assert_repeats(user, marker, first, url)
    assert len(vendor.paid(marker)) == 1
    assert len(inbox.deliveries(task_id)) == 1


@pytest.fixture(scope="module")
def two_functions(user: User, vendor: Vendor) -> None:
    """Two submit functions run, so that a repeat meets the first in flight: a held one starts the second."""
    before = vendor.submits()
    with ThreadPoolExecutor() as threads, vendor.fault("slow", seconds=4):
        held = threads.submit(user.accepted, "held")
        eventually(lambda: vendor.submits() > before)
        user.http.get("/api/v1/apikey/validate").raise_for_status()
        held.result()


@pytest.mark.usefixtures("two_functions")
def test_a_repeat_waits_for_the_first_that_is_in_flight(
    user: User, vendor: Vendor, inbox: Inbox, marker: str
) -> None:
    """Two at once: the second waits for the first one's answer and gets the same."""
    before = vendor.submits()
    with ThreadPoolExecutor() as threads, vendor.fault("slow", seconds=5):
        first = threads.submit(user.submit, marker, key=marker, callback_url=inbox.url(marker))
        eventually(lambda: vendor.submits() > before)
        repeat = user.submit(marker, key=marker, callback_url=inbox.url(marker))
        assert first.result().status_code == 200, first.result().text
        assert (repeat.status_code, repeat.content) == (200, first.result().content)
    assert vendor.submits() == before + 1
    assert len(vendor.paid(marker)) == 1
    user.ended(repeat.json()["data"]["task_id"])


@pytest.mark.usefixtures("two_functions")
def test_a_repeat_does_not_wait_for_ever(user: User, vendor: Vendor, inbox: Inbox, marker: str) -> None:
    """The vendor takes the task after our time: 409 for the repeat, 502 for the first; paid once."""
    before = vendor.submits()
    with ThreadPoolExecutor() as threads, vendor.fault("slow", seconds=14):
        first = threads.submit(user.submit, marker, key=marker, callback_url=inbox.url(marker))
        eventually(lambda: vendor.submits() > before)
        repeat = user.submit(marker, key=marker, callback_url=inbox.url(marker))
        # it began when the first had five seconds left: the machine is too slow for this test
        if repeat.status_code == 502:
            assert repeat.content == first.result().content
        else:
            assert (repeat.status_code, repeat.json()["code"]) == (409, 409)
            assert int(repeat.headers["retry-after"]) > 0
        assert first.result().status_code == 502
    assert_repeats(user, marker, first.result(), inbox.url(marker))
    eventually(lambda: vendor.paid(marker))
    assert user.stored(marker)["status"] == "pending"
    assert vendor.submits() == before + 1


def test_a_repeat_of_a_queued_task_queues_nothing(
    stack: Stack, user: User, vendor: Vendor, inbox: Inbox, marker: str
) -> None:
    """While the vendor refuses for now: 200 pending, again and again; then paid once, with its callback."""
    with vendor.fault("429", times=None):
        first = user.submit(marker, key=marker, callback_url=inbox.url(marker))
        assert first.status_code == 200
        assert first.json()["data"]["status"] == "pending"
        task_id = first.json()["data"]["task_id"]
        before = vendor.submits()
        eventually(lambda: vendor.submits() > before)  # the queue is tried, and refused too
        assert_repeats(user, marker, first, inbox.url(marker))
        assert (user.task(task_id)["status"], user.task(task_id)["callback"]["state"]) == (
            "pending",
            "waiting",
        )
        assert vendor.paid(marker) == []
    user.ended(task_id)
    assert assert_one_verified(inbox, task_id, stack.signing_secret)["type"] == "prediction.task.succeeded"
    assert_repeats(user, marker, first, inbox.url(marker))
    assert len(vendor.paid(marker)) == 1


@pytest.mark.parametrize(("fault", "status"), [("503", 502), ("422", 422)], ids=["ambiguous", "refused"])
def test_a_repeat_of_a_failed_submit_gets_the_same_error(
    user: User, vendor: Vendor, inbox: Inbox, marker: str, fault: str, status: int
) -> None:
    """Outcome unknown, or refused for good: the key stays with that answer, though the vendor is well."""
    before = vendor.submits()
    with vendor.fault(fault):
        first = user.submit(marker, key=marker, callback_url=inbox.url(marker))
    assert first.status_code == status
    assert_repeats(user, marker, first, inbox.url(marker))
    assert vendor.submits() == before + 1
    assert vendor.paid(marker) == []


# --- callers --------------------------------------------------------------------------------------


def test_callers_never_see_each_other(
    stack: Stack, user: User, vendor: Vendor, inbox: Inbox, admin: Admin, marker: str
) -> None:
    """Another caller's task is 404, its listing empty; the same key is another task, with its own secret."""
    added = admin("add", f"bob-{marker[:8]}")
    bob = User(stack, added["token"])
    with bob.http:
        ours = user.accepted(marker, key=marker, callback_url=inbox.url(marker))
        answer = bob.http.get(f"/api/v1/tasks/{ours}")
        unknown = bob.http.get(f"/api/v1/tasks/{ours[:-1]}{'A' if ours[-1] != 'A' else 'B'}")
        assert (answer.status_code, answer.content) == (404, unknown.content)
        assert answer.json()["code"] == 404
        assert bob.tasks() == []

        his = bob.accepted(marker, key=marker, callback_url=inbox.url(marker))
        assert his != ours
        assert [task["task_id"] for task in bob.tasks()] == [his]
        assert user.http.get(f"/api/v1/tasks/{his}").status_code == 404
        bob.ended(his)
    user.ended(ours)
    assert_one_verified(inbox, ours, stack.signing_secret)
    [delivery] = inbox.deliveries(his)
    Webhook(added["signing_secret"]).verify(delivery["body"], delivery["headers"])
    with pytest.raises(WebhookVerificationError):
        Webhook(stack.signing_secret).verify(delivery["body"], delivery["headers"])
    assert len(vendor.paid(marker)) == 2


def test_the_admin_command_adds_rotates_and_disables(
    stack: Stack, vendor: Vendor, inbox: Inbox, admin: Admin, marker: str
) -> None:
    """The default URL is used; old and new secret both sign; a rotated or disabled token is refused."""
    name = f"carol-{marker[:8]}"
    added = admin("add", name, "--callback-url", inbox.url(marker))
    secret = admin("rotate", name, "--secret")["signing_secret"]
    token = admin("rotate", name, "--token", "--overlap", "0s")["token"]
    gone = admin("add", f"dora-{marker[:8]}")["token"]
    assert admin("disable", f"dora-{marker[:8]}")["disabled"] is True
    assert {caller["caller"] for caller in admin("list")} >= {name, "local"}

    for refused in (added["token"], gone):
        former = User(stack, refused)
        with former.http:
            assert former.submit(marker).status_code == 401
            assert former.http.get("/api/v1/apikey/validate").json()["data"] == {"is_valid": False}
    carol = User(stack, token)
    with carol.http:
        task_id = carol.accepted(marker)
        carol.ended(task_id)
    [delivery] = inbox.deliveries(task_id)
    assert delivery["path"] == f"/{marker}"
    for known in (added["signing_secret"], secret):
        Webhook(known).verify(delivery["body"], delivery["headers"])
    assert len(vendor.paid(marker)) == 1


def test_a_listing_has_pages_and_filters(
    stack: Stack, vendor: Vendor, inbox: Inbox, admin: Admin, marker: str
) -> None:
    """The newest first, `limit` at a time, each task on one page; filters by status and callback."""
    eve = User(stack, admin("add", f"eve-{marker[:8]}")["token"])
    with eve.http:
        ids = [eve.accepted(marker) for _ in range(4)]
        with vendor.fault("400"):
            assert eve.submit(marker, callback_url=inbox.url(marker)).status_code == 400
        eventually(lambda: len(eve.tasks(status="success")) == 4)

        pages: list[list[Json]] = []
        cursor: str | None = ""
        while cursor is not None:
            answer = eve.http.get(
                "/api/v1/tasks", params={"limit": 2} | ({"cursor": cursor} if cursor else {})
            )
            pages.append(answer.json()["data"]["tasks"])
            cursor = answer.json()["data"]["next_cursor"]
        assert [len(page) for page in pages] == [2, 2, 1]
        listed = [task for page in pages for task in page]
        assert [task["task_id"] for task in listed[1:]] == ids[::-1]
        assert listed[1:] == [eve.task(task_id) for task_id in ids[::-1]]

        assert eve.tasks(status="failed") == [listed[0]]
        assert [task["task_id"] for task in eve.tasks(status="success")] == ids[::-1]
        assert len(eve.tasks(callback="none")) == 5
        assert eve.tasks(callback="delivered") == []
        assert eve.tasks(since="2100-01-01T00:00:00Z") == []
        assert eve.tasks(since="2100-01-01T00:00:00Z", until="2000-01-01T00:00:00Z") == []
    assert len(vendor.paid(marker)) == 4


# --- the vendor's other calls ---------------------------------------------------------------------


def test_a_token_is_validated_without_a_401(stack: Stack, user: User) -> None:
    """`is_valid` says it, as at the vendor."""
    assert user.http.get("/api/v1/apikey/validate").json()["data"] == {"is_valid": True}
    wrong = httpx.get(
        f"{stack.endpoint}/api/v1/apikey/validate",
        headers={"Authorization": f"Bearer {stack.token[:-2]}xx"},
        trust_env=False,
    )
    assert wrong.status_code == 200
    assert wrong.json() == {"code": 0, "message": "success", "data": {"is_valid": False}}


def test_the_models_are_listed_as_the_vendor_lists_them(user: User) -> None:
    """Without the envelope."""
    answer = user.http.get("/api/v1/models")
    assert answer.status_code == 200
    assert "alibaba/wan2.2-animate-mix" in [model["slug"] for model in answer.json()["models"]]


def test_the_api_describes_itself(stack: Stack) -> None:
    """OpenAPI 3.1, without a token, with the address at which it is served."""
    answer = fetch(f"{stack.endpoint}/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    document = answer.json()
    assert document["openapi"].startswith("3.1")
    assert document["servers"] == [{"url": stack.endpoint}]
    assert {SUBMIT, f"{SUBMIT}/async", "/api/v1/tasks/{task_id}", "/api/v1/tasks"} <= set(document["paths"])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/"),
        ("GET", "/api/v1/nothing"),
        ("DELETE", "/api/v1/tasks/x"),
        ("PUT", SUBMIT),
        ("POST", "/api/v1/team/balance"),
    ],
)
def test_an_unknown_path_wears_the_envelope(user: User, method: str, path: str) -> None:
    """Every path reaches submit, so that a 404 looks like any other error."""
    answer = user.http.request(method, path)
    assert answer.status_code == 404
    assert answer.json()["code"] == 404
    assert set(answer.json()) == {"code", "message"}


# --- bad input ------------------------------------------------------------------------------------


def example(**changes: object) -> bytes:
    """Render the vendor's example with changes; None takes a field away."""
    return json.dumps(
        {name: value for name, value in (EXAMPLE | changes).items() if value is not None}
    ).encode()


@pytest.mark.parametrize(
    ("body", "headers", "path", "status", "named"),
    [
        (example(video_url=None), {}, SUBMIT, 400, "video_url"),
        (example(colour="red"), {}, SUBMIT, 400, "colour"),
        (example(mode="wan-max"), {}, SUBMIT, 400, "mode"),
        (example(check_image="yes"), {}, SUBMIT, 400, "check_image"),
        (example(image_url="https://example.com/新.jpg"), {}, SUBMIT, 400, "image_url"),
        (example(callback_url="https://user:pass@example.com/"), {}, SUBMIT, 400, "callback_url"),
        (example(reference="r" * 201), {}, SUBMIT, 400, "reference"),
        (
            example(callback_url="https://example.com/a"),
            {"X-Webhook-URL": "https://example.com/b"},
            SUBMIT,
            400,
            "X-Webhook-URL",
        ),
        (example(), {"Idempotency-Key": "k" * 256}, SUBMIT, 400, "Idempotency-Key"),
        (b"{", {}, SUBMIT, 400, "JSON"),
        (b"[1]", {}, SUBMIT, 400, "object"),
        (example()[:-1] + b',"mode":"wan-pro"}', {}, SUBMIT, 400, "twice"),
        (example()[:-1] + b',"check_image":NaN}', {}, SUBMIT, 400, "NaN"),
        (b"[" * 60_000, {}, SUBMIT, 400, "nested"),
        (example(reference="r" * 65_536), {}, SUBMIT, 413, "65536"),
        (example(), {"Authorization": "Bearer thk_mallory"}, SUBMIT, 401, "Bearer"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    user: User, vendor: Vendor, body: bytes, headers: dict[str, str], path: str, status: int, named: str
) -> None:
    """A 4xx in the envelope that names what is wrong; nothing is stored, nothing is sent to the vendor."""
    newest, submits = user.tasks(limit=1), vendor.submits()
    answer = user.http.post(path, content=body, headers={"Content-Type": "application/json", **headers})
    assert (answer.status_code, answer.json()["code"]) == (status, status)
    assert named in answer.json()["message"]
    assert set(answer.json()) == {"code", "message"}
    assert [task["task_id"] for task in user.tasks(limit=1)] == [task["task_id"] for task in newest]
    assert vendor.submits() == submits


# --- media ----------------------------------------------------------------------------------------


async def test_bad_media_are_refused_before_they_cost_anything(
    user: User, vendor: Vendor, marker: str
) -> None:
    """An image too narrow, a video too long, a file gone: a 400, no task, no submit; good ones are paid."""
    good, narrow = image("JPEG", 600, 800), image("PNG", 150, 4000)
    files = {
        "actor.jpg": good,
        "narrow.png": narrow,
        "scene.mp4": video("mp4", 640, 480, 5),
        "long.mp4": video("mp4", 320, 240, 31),
    }
    submits = vendor.submits()

    async def answer(image_name: str, video_name: str, key: str | None = None) -> tuple[int, str]:
        image_url, video_url = f"{shelf.origin}/{image_name}?{marker}", f"{shelf.origin}/{video_name}"
        heard = await asyncio.to_thread(
            user.submit, marker, key=key, image_url=image_url, video_url=video_url
        )
        return heard.status_code, heard.json()["message"]

    async with listening(handing_out(files)) as shelf:
        narrow_words = "Value out of range: image_url is 150x4000 px; each side must be 200 to 4096"
        assert await answer("narrow.png", "scene.mp4") == (400, narrow_words)
        long_words = "Value out of range: video_url is 31.000 s long; it must be 2 to 30 s"
        assert await answer("actor.jpg", "long.mp4", key=marker) == (400, long_words)
        assert await answer("narrow.png", "long.mp4") == (400, f"{narrow_words}. {long_words}")
        assert (await answer("gone.jpg", "scene.mp4"))[0] == 400
        assert (vendor.submits(), vendor.paid(marker)) == (submits, [])
        assert await answer("actor.jpg", "scene.mp4", key=marker) == (200, "success")
    assert len(vendor.paid(marker)) == 1
    assert "unchecked" not in user.stored(marker)


def test_media_that_cannot_be_seen_from_here_are_left_to_the_vendor(user: User, marker: str) -> None:
    """The task says of which, and why."""
    task = user.task(user.accepted(marker))
    assert task["unchecked"] == dict.fromkeys(("image_url", "video_url"), "name does not resolve")
