"""What /docs and /llms.txt tell people and models, held against the code that keeps it."""

import ast
import base64
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskhook.api import failures, guide, llms
from taskhook.core import signature
from taskhook.core.limits import MAX_BODY, MAX_IDEMPOTENCY_KEY, MAX_REFERENCE, MAX_URL
from taskhook.core.ports import ATTEMPT_TIME
from taskhook.core.record import ErrorCode
from taskhook.core.reply import DeliveryError
from taskhook.core.schedule import RETRY_JITTER, RETRY_WAITS
from taskhook.core.vendor import Action
from taskhook.vendors import VENDORS
from tests import documents
from tests.contract import SERVER, document
from tests.strangers import ODD

type Case = tuple[str, dict[str, str], bytes]  # secret, headers, body
type Verifier = Callable[[list[Case]], list[bool]]

FRESH_AND_MORE = guide.FRESH + timedelta(seconds=10)
UNITS = {"h": timedelta(hours=1), "min": timedelta(minutes=1), "s": timedelta(seconds=1)}


@pytest.fixture
def told() -> str:
    """Give the text for models."""
    return llms.text(SERVER)


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


def test_every_error_answer_links_to_where_it_is_explained() -> None:
    """From each example of the OpenAPI document to a row of `/docs` and of the contract."""
    rows = {row["anchor"] for row in guide.facts()["errors"]}
    led = set()
    for one in operations().values():
        for status, response in one["responses"].items():
            if status < "4":
                continue
            assert "Link" in response["headers"]
            error = response["content"]["application/json"]["example"]
            link = failures.help_link(SERVER, error["code"], error["message"])
            [anchor] = re.findall(rf'^<{SERVER}/docs#([^>]+)>; rel="help"$', link)
            assert anchor.startswith(f"error-{status}")
            led.add(anchor)
    refused = failures.help_link(SERVER, 502, "Upstream refused: this deployment's key or balance")
    assert refused == f'<{SERVER}/docs#error-502>; rel="help"'
    verbatim = failures.help_link(SERVER, 400, "Outcome unknown to this vendor")
    assert verbatim == f'<{SERVER}/docs#error-400>; rel="help"'
    assert led | {"error-502", "error-gateway"} == rows
    assert rows <= documents.anchors("functions/README.md")


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
    assert "open to your token: GET /api/v1/limits" in told  # strangers are not told of any restriction


def test_the_vendors_ways_are_those_that_are_taken(told: str) -> None:
    """Each vendor is named, and the path that a model is told is one at which it takes tasks."""
    assert "`X-DashScope-Async: enable`" in told
    for vendor in VENDORS.values():
        assert vendor.name in vendor.title.lower()
        assert f"- {vendor.title}: {vendor.example.way}" in told
        way = re.match(r"`POST (/[^`]+)`", vendor.example.way)
        assert way is not None
        for path in (re.sub(r"[{}]", "", way[1]), vendor.example.path):
            routed = vendor.route("POST", path, {})
            assert routed is not None
            assert routed.action is Action.SUBMIT


# --- the samples of /docs -------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed here")


def evaluated(expression: str) -> Any:
    """Let node evaluate an expression beside the page's samples."""
    script = (ROOT / "functions/submit/docs/samples.js").read_text(encoding="utf-8")
    script += f"\nconsole.log(JSON.stringify({expression}))"
    done = subprocess.run([str(NODE), "-"], input=script, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(params=["Python", "JavaScript"])
def verifies(request: pytest.FixtureRequest, tmp_path: Path) -> Verifier:
    """Give what the page's function says of each of many callbacks, in one language at a time."""
    sample = evaluated(f"verifySamples({guide.FRESH.total_seconds():.0f})")[request.param]
    if request.param == "Python":
        names: dict[str, Any] = {}
        exec(sample, names)  # noqa: S102  # that is the test
        return lambda cases: [names["verify"](*case) for case in cases]

    (tmp_path / "verify.mjs").write_text(sample)
    (tmp_path / "ask.mjs").write_text(
        'import { readFileSync } from "node:fs";\n'
        'import { verify } from "./verify.mjs";\n'
        "const cases = JSON.parse(readFileSync(0));\n"
        'const told = cases.map(([key, sent, body]) => verify(key, sent, Buffer.from(body, "base64")));\n'
        "console.log(JSON.stringify(told));\n"
    )

    def ask(cases: list[Case]) -> list[bool]:
        given = json.dumps([(one[0], one[1], base64.b64encode(one[2]).decode()) for one in cases])
        command = [str(NODE), str(tmp_path / "ask.mjs")]
        told: list[bool] = json.loads(
            subprocess.run(command, input=given.encode(), capture_output=True, check=True).stdout
        )
        return told

    return ask


@needs_node
def test_the_sample_takes_ours_and_nothing_else(verifies: Verifier) -> None:
    """Either secret of a rotation; not what was changed, old, early, odd or missing, and it never raises."""
    old, new, other = (signature.new_secret() for _ in range(3))
    now, body = datetime.now(UTC), '{"a":"größer 😀"}'.encode()
    good = signature.headers([old, new], "msg_1", now, body)
    assert verifies([(old, good, body), (new, good, body)]) == [True, True]
    moved = [
        signature.headers([old], "msg_1", now + shift, body) for shift in (-FRESH_AND_MORE, FRESH_AND_MORE)
    ]
    wrong: list[Case] = [
        (other, good, body),
        (old, good, body + b" "),
        (old, {}, body),
        (old, {}, b"\xff\x00"),
    ]
    wrong += [(old, headers, body) for headers in moved]
    for name in good:
        wrong.append((old, {one: value for one, value in good.items() if one != name}, body))
        wrong += [(old, good | {name: odd}, body) for odd in ODD]
        wrong += [(old, dict.fromkeys(good, odd), b"") for odd in ODD]
    assert verifies(wrong) == [False] * len(wrong)


@needs_node
def test_a_sample_says_what_the_example_says() -> None:
    """Python's words for true, false and null outside of strings, and quotes that end no shell's string."""
    body = {"a": True, "b": [False, None, 1.5], "c": "true and null, 'quoted', \"twice\"", "d": {"e": "ü 😀"}}
    call = {"method": "POST", "url": "http://localhost:9/x", "key": "it's", "body": body}
    samples = evaluated(f"callSamples({json.dumps(call)})")

    [sent] = [
        node
        for node in ast.walk(ast.parse(samples["Python"]))
        if isinstance(node, ast.keyword) and node.arg == "json"
    ]
    assert ast.literal_eval(sent.value) == body
    words = shlex.split(samples["curl"])
    assert json.loads(words[words.index("-d") + 1]) == body
    assert "Idempotency-Key: it's" in words
    stub = "globalThis.fetch = async (...given) => (console.log(JSON.stringify(given)), new Response());\n"
    command = [str(NODE), "--input-type=module", "-e", stub + samples["JavaScript"]]
    url, options = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    )
    assert (url, options["method"], json.loads(options["body"])) == (call["url"], "POST", body)
    assert options["headers"]["Idempotency-Key"] == "it's"
