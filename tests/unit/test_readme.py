"""README: short, in plain sentences, with samples to copy, which `tests/e2e/test_readme.py` runs."""

import ast
import json
import os
import re
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from layers import template
from taskhook.core import signature
from tests import documents
from tests.documents import ROOT, page
from tests.strangers import ODD
from tests.unit.test_documents import figure

README = page("README.md")
# Where each command of README is run, or what it runs.
RUN = {
    "make local": "tests/e2e/conftest.py",
    "make deploy": "tests/e2e/test_deploy.py",
    "make caller": "tests/e2e/test_deploy.py",
    "make destroy": "tests/e2e/test_deploy.py",
}


def test_readme_is_short() -> None:
    """Samples, tables and all, as `wc -w` counts."""
    assert len(README.split()) <= 1000


def test_its_sentences_are_short() -> None:
    """One that has to be read twice is not read."""
    long = [sentence for sentence in documents.sentences(README) if len(sentence.split()) > 28]
    assert long == []


def test_its_tables_are_read_at_a_glance() -> None:
    """Few words in a cell."""
    cells = [cell for rows in documents.tables(README) for row in rows for cell in row]
    assert cells
    assert [cell for cell in cells if len(cell.split()) > 20] == []


def test_every_block_is_run() -> None:
    """The samples by `tests/e2e/test_readme.py`; each command by the file that is named here."""
    blocks = documents.blocks(README)
    runs = (ROOT / "tests/e2e/test_readme.py").read_text()
    assert [block.info for block in blocks if block.info] == ["bash", "python", "javascript"]
    assert all(f'block("README.md", "{block.info}")' in runs for block in blocks if block.info)
    commands = [
        line.partition("#")[0] for block in blocks if not block.info for line in block.code.splitlines()
    ]
    assert commands[:2] == ["git clone https://github.com/OWNER/taskhook.git", "cd taskhook"]
    assert {" ".join(command.split()[:2]) for command in commands[2:]} == set(RUN)
    assert "exec python -m tests.local $(ARGS)" in page("Makefile")
    for command, where in RUN.items():
        verb = command.removeprefix("make ")
        assert ('"-m", "tests.local"' if verb == "local" else f'make(stack, "{verb}"') in page(where), command


def test_its_figures_are_measured_ones() -> None:
    """Each stands in `tests/README.md`, with its command."""
    text = " ".join(README.split())
    for words, what in (
        ("a million tasks cost about {} dollars", "a million tasks, `fast`"),
        ("a polling loop costs about {} dollars a million tasks", "a million tasks as a Step Functions loop"),
        ("asks {} times a task where", "a script that asks every 2 s, and delivers nothing: requests a task"),
    ):
        assert words.format(re.sub(r" \w+$", "", figure(what))) in text
    few, many = (float(figure(f"{way}: requests a task")) for way in ("vendor webhooks", "polls by age"))
    assert f"where taskhook asks {few:.0f} to {many:.0f} times" in text
    days = template.load()["Parameters"]["RetentionDays"]["Default"]
    assert f"it is kept for {days} days (`RetentionDays`)" in text
    assert 0.4 < float(figure("a month without tasks").removesuffix(" dollars")) < 0.6, "about 50 cents"


# --- verification ---------------------------------------------------------------------------------


@pytest.fixture(params=["README.md", "functions/README.md"])
def verify(request: pytest.FixtureRequest) -> Any:
    """Give the function `verify` of a page, without what stands around it."""
    info = "python" if request.param == "README.md" else "python verify"
    tree = ast.parse(documents.block(request.param, info))
    tree.body = [
        part
        for part in tree.body
        if isinstance(part, ast.Import) or (isinstance(part, ast.FunctionDef) and part.name == "verify")
    ]
    names: dict[str, Any] = {}
    exec(compile(tree, request.param, "exec"), names)  # noqa: S102  # that is the test
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


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed here")
def test_the_javascript_takes_ours_and_nothing_else() -> None:
    """Neither what was changed, old, early, odd or missing; and it raises at none of them."""
    old, new, body = signature.new_secret(), signature.new_secret(), '{"a":"größer"}'
    now = datetime.now(UTC)
    good = signature.headers([new, old], "msg_1", now, body.encode())
    moved = [
        signature.headers([old], "msg_1", now + timedelta(seconds=by), body.encode()) for by in (-310, 310)
    ]
    missing = [{name: good[name] for name in good if name != left_out} for left_out in good]
    odd = [good | {name: one} for name in good for one in ODD if one.isprintable()]
    wrong = [({}, body), (good, body + " "), *((headers, body) for headers in (*moved, *missing, *odd))]
    script = documents.block("README.md", "javascript").partition("createServer(async")[0]
    script += (
        f"const told = {json.dumps([(good, body), *wrong])}.map(([sent, text]) => verify(sent, text));\n"
    )
    script += "console.log(JSON.stringify(told));\n"
    done = subprocess.run(
        ["node", "--input-type=module", "-"],
        input=script,
        env=os.environ | {"SECRET": old},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [True] + [False] * len(wrong)


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
