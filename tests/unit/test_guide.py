"""What /docs and /llms.txt tell people and models, held against the code that keeps it."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskhook.api import guide, llms
from taskhook.core import signature
from taskhook.core.limits import MAX_BODY, MAX_IDEMPOTENCY_KEY, MAX_REFERENCE, MAX_URL
from taskhook.core.ports import ATTEMPT_TIME
from taskhook.core.record import ErrorCode
from taskhook.core.reply import DeliveryError
from taskhook.core.schedule import RETRY_JITTER, RETRY_WAITS
from taskhook.core.vendor import Action
from taskhook.vendors import VENDORS
from tests.contract import SERVER, document

UNITS = {"h": timedelta(hours=1), "min": timedelta(minutes=1), "s": timedelta(seconds=1)}


@pytest.fixture
def told() -> str:
    """Give the text for models."""
    return llms.text(SERVER, ("alibaba/*", "runway/*"))


def operations() -> dict[str, Any]:
    """Give every operation of the API, as `GET /path`."""
    return {
        f"{method.upper()} {path}": operation
        for path, item in document()["paths"].items()
        for method, operation in item.items()
    }


def test_every_error_is_told_once() -> None:
    """Every status of an operation, every code, every word, each under an anchor of its own."""
    facts = document()["x-guide"]
    assert facts == guide.facts()
    anchors = [row["anchor"] for kind in ("errors", "task_errors", "delivery_errors") for row in facts[kind]]
    assert len(set(anchors)) == len(anchors)
    assert all(re.fullmatch(r"error-[a-z0-9_-]+", anchor) for anchor in anchors)
    statuses = {
        status
        for one in operations().values()
        for status in one["responses"]
        if not status.startswith(("2", "3"))
    }
    assert {f"error-{status}" for status in statuses} <= set(anchors)
    assert {row["answer"].split()[0] for row in facts["errors"][:-1]} == statuses
    assert [row["code"] for row in facts["task_errors"]] == list(ErrorCode)
    assert [row["code"] for row in facts["delivery_errors"]] == list(DeliveryError)
    rows = [*facts["errors"], *facts["task_errors"]]
    assert all(row["when"].endswith(".") and row["do"].endswith(".") for row in rows)


def test_the_schedule_is_the_schedule() -> None:
    """In words that can be read back."""

    def meant(word: str) -> timedelta:
        number, _, unit = word.partition(" ")
        return int(number) * UNITS[unit]

    first, *later = guide.waits()
    assert first == "at once"
    assert (timedelta(0), *map(meant, later)) == RETRY_WAITS


def test_a_model_is_told_the_facts(told: str) -> None:
    """Origin, calls, headers, schedule, limits, errors and links are the deployment's; about a page."""
    assert 500 < len(told.split()) < 1300
    assert set(re.findall(r"https://[\w.]*tasks\.[\w.]+", told)) == {SERVER}
    assert f"]({SERVER}/docs)" in told
    assert f"]({SERVER}/openapi.json)" in told
    shown = {
        name: one
        for name, one in operations().items()
        if not name.startswith(("POST /api/v1/alibaba", "GET /r/"))
    }
    for name in shown:
        assert name.removesuffix("/async") in told
    for header in signature.headers([signature.new_secret()], "msg_1", datetime.now(UTC), b""):
        assert f"`{header}`" in told
    assert (
        f"at once, then after {', '.join(guide.waits()[1:])} (each ±{RETRY_JITTER:.0%}".replace("%", " %")
        in told
    )
    assert f"2xx within {ATTEMPT_TIME.total_seconds():.0f} s" in told
    for limit in (MAX_BODY >> 10, MAX_IDEMPOTENCY_KEY, MAX_URL, MAX_REFERENCE):
        assert f"at most {limit} " in told.replace(".", " ")
    for row in [*guide.facts()["errors"], *guide.facts()["task_errors"]]:
        assert row["when"] in told
        assert row["do"] in told
    assert "alibaba/*, runway/*" in told


def test_the_vendors_ways_are_those_that_are_taken(told: str) -> None:
    """Each vendor is named, and the path that a model is told is one at which it takes tasks."""
    for vendor in VENDORS:
        assert vendor in told.lower()
    ways = {
        "modellix": "/api/v1/{provider}/{model}",
        "dashscope": "/api/v1/services/{group}/{task}/{function}",
        "runway": "/v1/image_to_video",
    }
    assert ways.keys() == VENDORS.keys()
    for vendor, path in ways.items():
        assert f"`POST {path}`" in told
        routed = VENDORS[vendor].route("POST", re.sub(r"[{}]", "", path), {})
        assert routed is not None
        assert routed.action is Action.SUBMIT
    assert "`X-DashScope-Async: enable`" in told
