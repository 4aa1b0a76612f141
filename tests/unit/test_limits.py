import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskhook.core.limits import (
    MAX_IDEMPOTENCY_KEY,
    MAX_LISTED,
    MAX_REDELIVERED,
    MAX_REFERENCE,
    MAX_SEARCH,
    MAX_URL,
    TASK_ID,
)
from taskhook.submit.request import _task_id
from tests.contract import document
from tests.rows import each_row

ROOT = Path(__file__).parents[2]
LIMITS = ("maximum", "maxLength", "pattern")


def limits() -> Iterator[tuple[str, str, Any]]:
    """Give every limit of what may be asked, by the operation and the name of what it limits."""
    for item in document()["paths"].values():
        for operation in item.values():
            named = {one["name"]: one["schema"] for one in operation.get("parameters", [])}
            if "requestBody" in operation:
                named |= operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
            for name, schema in named.items():
                yield from (
                    (operation["operationId"], name, schema[limit]) for limit in LIMITS if limit in schema
                )


@each_row(
    "limit",
    [
        ("listTasks", "limit", MAX_LISTED),
        ("redeliverTasks", "limit", MAX_REDELIVERED),
        ("tryReceiver", "callback_url", MAX_URL),
        ("submit_alibaba_wan2_2_animate_mix", "image_url", MAX_URL),
        ("submit_alibaba_wan2_2_animate_mix", "callback_url", MAX_URL),
        ("submit_alibaba_wan2_2_animate_mix", "X-Webhook-URL", MAX_URL),
        ("submit_alibaba_wan2_2_animate_mix", "reference", MAX_REFERENCE),
        ("submit_alibaba_wan2_2_animate_mix", "Idempotency-Key", MAX_IDEMPOTENCY_KEY),
        ("showTask", "task_id", f"^{TASK_ID}$"),
        ("cancelTask", "task_id", f"^{TASK_ID}$"),
    ],
)
def test_the_description_has_the_limits_that_are_enforced(limit: tuple[str, str, Any]) -> None:
    """Each from the one place that says it."""
    assert limit in set(limits())


def test_the_console_says_no_other_limit() -> None:
    """It knows a task's id when it sees one, and asks for as many redeliveries at a time as it may."""
    scripts = "".join(path.read_text() for path in sorted((ROOT / "functions/submit").rglob("*.js")))
    assert f"/^{TASK_ID}$/" in scripts
    assert f"maxlength: {MAX_SEARCH}," in scripts
    assert f'state: "undelivered", limit: {MAX_REDELIVERED} ' in scripts


@pytest.mark.parametrize("key", [None, "order-17"])
def test_a_task_gets_an_id_like_the_one_that_is_described(key: str | None) -> None:
    """At random, or from its idempotency key."""
    pattern = next(
        pattern for operation, name, pattern in limits() if (operation, name) == ("showTask", "task_id")
    )
    assert re.fullmatch(pattern, _task_id("alice", key))
