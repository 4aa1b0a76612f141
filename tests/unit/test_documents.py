"""All documents: links lead somewhere, tables that mirror code say what it says, a figure is one number."""

import json
import re
import shlex
from datetime import timedelta
from typing import Any

import pytest

from taskhook.api.examples import TASK_ID
from taskhook.archive.copy import MOST
from taskhook.core import limits, schedule
from taskhook.core.ports import EXTRA_DELIVERY_GAP
from taskhook.core.record import ARCHIVE_TIME, ErrorCode
from taskhook.core.reply import DeliveryError
from taskhook.core.task import MAX_COPIES, MAX_LOG
from taskhook.core.vendor import Action
from taskhook.grammar import parser
from taskhook.submit.media import PROBE_TIME
from taskhook.vendors import VENDORS
from taskhook.vendors.modellix import MODELS
from tests import documents
from tests.contract import document, operation
from tests.documents import PAGES, ROOT, page, section, table
from tests.local.stack import template
from tests.rows import each_row

CONTRACT, OPERATE = "functions/README.md", "functions/OPERATE.md"
MEASURED = ("what", "figure", "command", "measured")
NUMBER = r"(up to )?[\d,]+(\.\d+)?( to [\d,]+(\.\d+)?)?( (%|s|ms|KB|MB|times|dollars))?"


def code(cell: str) -> str:
    """Give what stands in a cell between back quotes."""
    [found] = re.findall(r"`([^`]+)`", cell)
    return str(found)


# --- every page -----------------------------------------------------------------------------------


def test_every_page_is_looked_at() -> None:
    """None is forgotten."""
    there = {
        *ROOT.glob("*.md"),
        *(file for room in ("events", "functions") for file in (ROOT / room).rglob("*.md")),
    }
    there |= {*(ROOT / "layers").glob("*.md"), *(ROOT / "tests").glob("*.md")}
    assert {str(file.relative_to(ROOT)) for file in there} == set(PAGES)


@each_row("name", PAGES)
def test_a_page_says_in_one_line_what_it_is(name: str) -> None:
    """A title, and one sentence of one line below it."""
    title, empty, summary, below = page(name).split("\n")[:4]
    assert (title[:2], empty, below) == ("# ", "", "")
    assert summary.strip("*").endswith(".")
    assert len(summary) <= 140


@each_row("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    """Files are there, and anchors on their pages."""
    for link in documents.links(name):
        path, _, anchor = link.partition("#")
        if path.startswith("https:"):
            continue
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in documents.anchors(str(target.resolve().relative_to(ROOT))), link


@each_row("name", PAGES)
def test_a_page_names_no_machine(name: str) -> None:
    """No path of the machine on which it was written."""
    assert re.findall(r"(?<![\w.])/(?:home|root|tmp|work|mnt|srv|Users)/", page(name)) == []


def test_pages_that_code_names_are_there() -> None:
    """In comments, messages and help."""
    kinds = ("*.py", "*.yaml", "*.yml", "*.js", "*.html", "*.css", "Makefile")
    rooms = [ROOT / room for room in ("functions", "layers", "tests", ".github")]
    files = [
        *ROOT.glob("*.yaml"),
        ROOT / "Makefile",
        *(file for room in rooms for kind in kinds for file in room.rglob(kind)),
    ]
    for file in files:
        for named in re.findall(r"[\w./-]+\.md\b", file.read_text()):
            assert (ROOT / named).exists() or (file.parent / named).exists(), (file, named)


@each_row("name", PAGES)
def test_commands_are_as_they_are_said(name: str) -> None:
    """What `make` is told to make is there; what `taskhook` is told to do in a block, it understands."""
    targets = re.findall(r"^\.PHONY: (\w+)$", page("Makefile"), re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", documents.prose(page(name)))
    lines = [line for block in documents.blocks(page(name)) for line in block.code.splitlines()]
    for text in (*spans, *lines):
        assert set(re.findall(r"(?:^|&& )make ([a-z]+)", text)) <= set(targets), text
    for line in lines:
        if re.match(r"(\.venv/bin/)?taskhook ", line):
            words = shlex.split(line.partition("<")[0], comments=True)
            parser().parse_args([word.replace("NAME", "me") for word in words[1:]])


# --- the contract ---------------------------------------------------------------------------------


def spoken(wait: timedelta) -> str:
    """Say a wait of the schedule."""
    for unit, name in ((3600, "h"), (60, "min"), (1, "s")):
        if wait.total_seconds() >= unit:
            return f"{wait.total_seconds() / unit:g} {name}"
    return "at once"


def test_the_schedule_is_the_codes() -> None:
    """What receivers read is what they get."""
    first, *others = map(spoken, schedule.RETRY_WAITS)
    contract = " ".join(section(CONTRACT, "Callbacks").split())
    assert (
        f"{first}, then after {', '.join(others)} (each ±{schedule.RETRY_JITTER:.0%}".replace("%", " %")
        in contract
    )
    hours = sum(schedule.RETRY_WAITS, timedelta(0)) // timedelta(hours=1)
    assert len(schedule.RETRY_WAITS) == 10, "README says ten"
    assert f"A callback is tried ten times over {hours} hours" in page("README.md")  # and some minutes


def test_the_error_codes_of_a_task_are_the_codes() -> None:
    """Each in a row of its own that can be linked to."""
    rows = table(section(CONTRACT, "Errors of a task"), "code", "means", "what to do")
    assert [code(row[0]) for row in rows] == list(ErrorCode)


def test_the_words_for_a_missing_status_are_the_codes() -> None:
    """With the same advice as in the OpenAPI document."""
    rows = table(section(CONTRACT, "Errors of a delivery"), "`error`", "what to do")
    assert [(code(row[0]), row[1]) for row in rows] == [(word, word.advice) for word in DeliveryError]
    error = document()["components"]["schemas"]["Attempt"]["properties"]["error"]
    assert error["enum"] == list(DeliveryError)
    assert all(word.advice and f"`{word}`: {word.advice}" in error["description"] for word in DeliveryError)


def test_every_error_can_be_linked_to() -> None:
    """By `#error-` and its status or word."""
    described = [
        operation["responses"] for item in document()["paths"].values() for operation in item.values()
    ]
    statuses = {status for responses in described for status in responses if status >= "4"}
    submit = set(document()["paths"]["/api/v1/alibaba/wan2.2-animate-mix"]["post"]["responses"])
    assert statuses == {status for status in submit if status >= "4"}
    wanted = {f"error-{name}" for name in (*statuses, *ErrorCode, *DeliveryError)}
    assert documents.anchors(CONTRACT) >= wanted
    rows = table(section(CONTRACT, "Answers"), "answer", "means", "what to do")
    guide = document()["x-guide"]  # as /docs and /llms.txt have them, in the same order
    told = [error["anchor"] for kind in ("errors", "task_errors", "delivery_errors") for error in guide[kind]]
    assert re.findall(r'<a id="(error-[^"]+)">', page(CONTRACT)) == told
    assert all(len(row) == 3 and all(row) for row in rows)


def test_the_fields_of_the_described_models_are_the_codes() -> None:
    """All of them are named, and their fields with the words of the OpenAPI document."""
    text = section(CONTRACT, "Submit")
    rows = table(text, "field", "need", "what")
    for model in MODELS.values():
        assert f"`{model.slug}`" in text
        fields = model.request.model_fields
        assert [code(row[0]) for row in rows] == list(fields)
        for (_, need, what), field in zip(rows, fields.values(), strict=True):
            assert (need == "required", what) == (field.is_required(), field.description)


def test_every_path_is_named() -> None:
    """Of those that the OpenAPI document describes."""
    contract = page(CONTRACT)
    for path in document()["paths"]:
        whole = path.removesuffix("/async")
        named = (
            "/r/…"
            if path.startswith("/r/")
            else whole.replace("alibaba/wan2.2-animate-move", "{provider}/{model}")
        )
        assert named in contract, path


@each_row("name", PAGES)
def test_every_call_that_is_named_is_there(name: str) -> None:
    """By the deployment or a vendor's own path; what has `…` in it, or braces of other words, is no path."""
    for verb, path in re.findall(r"`(GET|POST|DELETE) (/[^`? ]*)", page(name)):
        filled = re.sub(r"\{(task_)?id\}", TASK_ID, path)
        if not re.search("[…{]", filled):
            routed = [vendor.route(verb, filled, {}) for vendor in VENDORS.values()]
            theirs = any(one is not None and one.action is not Action.UNKNOWN for one in routed)
            assert operation(verb, filled) is not None or theirs, (verb, path)


def test_every_vendor_has_a_row() -> None:
    """With its paths."""
    rows = table(section(CONTRACT, "Vendors"), "vendor", "submit", "its own paths here")
    assert [row[0].lower() for row in rows] == list(VENDORS)


# --- limits, parameters, alarms -------------------------------------------------------------------


def test_the_limits_are_the_codes() -> None:
    """As far as code says them once."""
    said = dict(table(section(OPERATE, "Limits"), "what", "limit"))
    assert said["body of a request"] == f"{limits.MAX_BODY >> 10} KB"
    assert said["URL"] == f"{limits.MAX_URL} characters"
    assert said["`Idempotency-Key`"] == f"{limits.MAX_IDEMPOTENCY_KEY} characters"
    assert said["`reference`"] == f"{limits.MAX_REFERENCE} characters"
    assert said["tasks in one answer"] == str(limits.MAX_LISTED)
    assert said["redeliveries in one call"] == str(limits.MAX_REDELIVERED)
    hours = sum(schedule.RETRY_WAITS, timedelta(0)) // timedelta(hours=1)
    assert said["a callback's schedule"] == f"{len(schedule.RETRY_WAITS)} attempts in {hours} h"
    assert said["attempts that `log` keeps"] == str(MAX_LOG)
    assert said["redeliveries and receiver tests"].startswith(
        f"{timedelta(minutes=1) // EXTRA_DELIVERY_GAP} a "
    )
    assert said["a look at media"].startswith(f"{PROBE_TIME.total_seconds():g} s")
    assert said["an archived file"] == f"{MOST >> 30} GB"
    assert said["archived files of one task"] == str(MAX_COPIES)
    assert said["an archive's delay of a callback"] == spoken(ARCHIVE_TIME)
    contract = page(CONTRACT)
    assert f"the same for up to {limits.MAX_REDELIVERED} that are `undelivered`" in contract
    assert f"the body has more than {limits.MAX_BODY >> 10} KB" in contract
    parameters = {row[0]: row[1] for row in table(section(CONTRACT, "Submit"), "parameter", "where", "what")}
    assert f"at most {limits.MAX_IDEMPOTENCY_KEY} characters" in parameters["`Idempotency-Key`"]
    assert f"at most {limits.MAX_URL} characters" in parameters["`callback_url`"]
    assert f"at most {limits.MAX_REFERENCE} characters" in parameters["`reference`"]


def test_the_parameters_are_the_templates() -> None:
    """Names, order and defaults."""
    rows = table(section(OPERATE, "Parameters"), "parameter", "default", "what")
    parameters = template()["Parameters"]
    assert [code(row[0]) for row in rows] == list(parameters)
    for name, default, _ in rows:
        if name != "`PublicUrl`":
            assert default.strip("`") == str(parameters[code(name)].get("Default") or "none")


def test_every_alarm_has_a_row() -> None:
    """An operator that one wakes finds its name there, and what to do."""
    resources = template()["Resources"]
    alarms = {name for name, resource in resources.items() if resource["Type"] == "AWS::CloudWatch::Alarm"}
    rows = table(section(OPERATE, "What to do when"), "what", "do")
    named = [name for what, _ in rows if what.startswith("alarm ") for name in re.findall(r"`(\w+)`", what)]
    assert sorted(named) == sorted(alarms)
    assert {
        code(row[0]) for row in table(section(OPERATE, "Logs and metrics"), "alarm", "log lines behind it")
    } <= alarms


# --- receivers, decisions, figures ----------------------------------------------------------------


@pytest.mark.parametrize("folder", ["receivers/", ""])
def test_every_receiver_and_every_event_has_a_row(folder: str) -> None:
    """A link to each file that is there."""
    kind = "*" if folder else "*.json"
    there = {f"{folder}{file.name}" for file in (ROOT / "events" / folder).glob(kind) if file.is_file()}
    assert there - {f"{folder}README.md"} <= set(documents.links("events/README.md"))


def test_a_decision_has_at_most_three_lines() -> None:
    """With its date."""
    listed = re.findall(r"^- (.*(?:\n  .*)*)", section("layers/README.md", "Decisions"), re.MULTILINE)
    assert len(listed) > 20
    for decision in listed:
        assert re.match(r"\*\*\d{4}-\d\d-\d\d\. ", decision), decision
        assert decision.count("\n") < 3, decision
        assert max(map(len, decision.split("\n"))) <= 140, decision


def figures() -> list[list[str]]:
    """List the rows of all tables of figures."""
    found = documents.tables(page("tests/README.md"))
    return [row for head, *rows in found if tuple(head) == MEASURED for row in rows]


def test_a_figure_is_one_number_with_command_machine_and_date() -> None:
    """A range is one, too."""
    assert len(figures()) > 50
    for what, figure, command, measured in figures():
        assert re.fullmatch(NUMBER, figure), (what, figure)
        assert re.fullmatch(r"\d+ cores, \d{4}-\d\d-\d\d", measured), (what, measured)
        for bench in re.findall(r"make bench ARGS=(\w+)", command):
            assert (ROOT / f"tests/bench/{bench}.py").exists(), command


def figure(what: str) -> Any:
    """Give one figure by what it is of."""
    [found] = [row[1] for row in figures() if row[0] == what]
    return found


def test_the_contracts_callback_says_what_ours_says_of_a_task() -> None:
    """Whatever its vendor says beside."""
    text = (ROOT / "functions/README.md").read_text(encoding="utf-8")
    [sample] = re.findall(r'^(\{"type":"prediction\.task\.succeeded".*?)^```', text, re.MULTILINE | re.DOTALL)
    sent = document()["webhooks"]["prediction.task.succeeded"]["post"]["requestBody"]["content"]
    data = sent["application/json"]["example"]["data"]
    ours = ("status", "task_id", "upstream_task_id", "vendor", "model_id", "reference", "result")
    assert [name for name in json.loads(sample)["data"] if name in ours] == list(ours)
    assert set(ours) <= data.keys()
