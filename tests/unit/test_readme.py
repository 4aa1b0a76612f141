import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from taskhook.core import schedule, signature
from taskhook.core.record import ErrorCode
from taskhook.core.reply import DeliveryError
from tests.contract import document
from tests.local.stack import template

README = (Path(__file__).parents[2] / "README.md").read_text()


def section(title: str) -> str:
    """Give one section of the README."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture
def verify() -> Any:
    """Execute the README's verification snippet and give its function."""
    [snippet] = re.findall(r"```python verify\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)  # noqa: S102  # that is the test
    return names["verify"]


def test_the_snippet_verifies_our_callbacks(verify: Any) -> None:
    """A receiver may copy it as it stands."""
    old, new = signature.new_secret(), signature.new_secret()
    headers = signature.headers([new, old], "msg_1", datetime.now(UTC), b'{"a":1}')
    assert verify(old, headers, b'{"a":1}')
    assert verify(new, headers, b'{"a":1}')


def test_the_snippet_refuses_what_is_not_ours(verify: Any) -> None:
    """Another secret, body, id or time."""
    secret = signature.new_secret()
    headers = signature.headers([secret], "msg_1", datetime.now(UTC), b"{}")
    stale = signature.headers([secret], "msg_1", datetime.fromtimestamp(time.time() - 301, UTC), b"{}")
    assert not verify(signature.new_secret(), headers, b"{}")
    assert not verify(secret, headers, b"{ }")
    assert not verify(secret, {**headers, "webhook-id": "msg_2"}, b"{}")
    assert not verify(secret, stale, b"{}")


ODD = [
    "",
    " ",
    "v1",
    "v1,",
    "v1,ü",
    "\xff\xfe",
    "١٧٦٤١٠٠٠٠٠",
    "²",
    "-1",
    "1e9",
    "nan",
    "9" * 5000,
    "\ud800",
    "a b\tc",
    "x" * 100_000,
    "\0",
    "%s{}",
]


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff\x00" * 1000])
def test_the_snippet_refuses_a_strangers_post_without_raising(verify: Any, body: bytes) -> None:
    """Each header missing or odd, alone and with good ones beside it: False, whatever it is."""
    secret = signature.new_secret()
    good = signature.headers([secret], "msg_1", datetime.now(UTC), body)
    assert verify(secret, {}, body) is False
    for name in good:
        assert verify(secret, {other: value for other, value in good.items() if other != name}, body) is False
        for odd in ODD:
            assert verify(secret, good | {name: odd}, body) is False
            assert verify(secret, dict.fromkeys(good, odd), body) is False


def test_the_parameters_are_the_templates() -> None:
    """Names and defaults of the table in Configuration."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section("Configuration"), re.MULTILINE)
    parameters = template()["Parameters"]
    assert [name for name, _ in rows] == list(parameters)
    for name, default in rows:
        if name != "PublicUrl":
            assert default.strip("`") == str(parameters[name].get("Default") or "none")


def test_every_alarm_has_a_row_in_operate() -> None:
    """An operator that one wakes finds its name there, and what to do."""
    resources = template()["Resources"]
    alarms = {name for name, resource in resources.items() if resource["Type"] == "AWS::CloudWatch::Alarm"}
    rows = re.findall(r"^\| alarm ((?:`\w+`(?:, )?)+) ", section("Operate"), re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(alarms)


def test_the_error_codes_and_the_schedule_are_the_codes() -> None:
    """What receivers read is what they get."""
    contract = section("The contract")
    assert set(ErrorCode) == {code for code in ErrorCode if f"`{code}`" in contract}
    assert len(schedule.RETRY_WAITS) == 10
    assert "at once, then after 5 s, 5 min, 30 min,\n2 h, 5 h, 10 h, 14 h, 20 h, 24 h" in contract


def test_the_words_for_a_missing_status_are_the_codes() -> None:
    """All of them are named, and the OpenAPI document says what to do about each."""
    contract = section("The contract")
    assert set(DeliveryError) == {word for word in DeliveryError if f"`{word}`" in contract}
    error = document()["components"]["schemas"]["Attempt"]["properties"]["error"]
    assert error["enum"] == list(DeliveryError)
    assert all(word.advice and f"`{word}`: {word.advice}" in error["description"] for word in DeliveryError)


def test_the_readme_is_short() -> None:
    """What has to be scrolled is not read."""
    assert README.count("\n") < 250
