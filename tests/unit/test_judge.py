import ast
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests import judge
from tests.rows import each_row
from tests.sim.__main__ import SEED, play
from tests.sim.injector import Point
from tests.sim.witness import lines

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tests/judge.py"

type Events = list[dict[str, Any]]
type Plant = Callable[[Events], object]
PLANTS: list[tuple[str, str, Plant]] = []  # scenario, number of the invariant, what is done to its history


@cache
def written(name: str) -> tuple[str, ...]:
    """Give the history of a scenario that goes as it should."""
    return tuple(lines(play(name, SEED, plan=Point(-1, "", ""))))


def plant(scenario: str, number: str) -> Callable[[Plant], Plant]:
    """Keep a way to break an invariant in a history."""

    def keep(act: Plant) -> Plant:
        PLANTS.append((scenario, number, act))
        return act

    return keep


def the(events: Events, event: str, what: str | None = None, n: int = 0) -> dict[str, Any]:
    """Find the nth event of a kind."""
    return [one for one in events if one["event"] == event and what in {None, one.get("what")}][n]


def copy(events: Events, one: dict[str, Any], after_s: float, **changes: Any) -> None:
    """Let it happen again, a while later."""
    events.append(json.loads(json.dumps(one)) | {"at": one["at"] + after_s, **changes})


@plant("submits", "1")
def pays_again(events: Events) -> None:
    """A second POST that may have been taken."""
    copy(events, the(events, "vendor", "submit"), 30)


@plant("submits", "1")
def pays_again_after_silence(events: Events) -> None:
    """A second POST after one without an answer."""
    the(events, "vendor", "submit").update(status=0, task=None)
    copy(events, the(events, "vendor", "submit"), 30, status=200, task="up-0-a")


@plant("submits", "1")
def pays_unasked(events: Events) -> None:
    """A POST of what no caller has asked for."""
    copy(events, the(events, "vendor", "submit"), 30, work="nothing")


@plant("submits", "1")
def pays_before_it_was_asked(events: Events) -> None:
    """A POST that left before its caller asked."""
    the(events, "vendor", "submit")["at"] -= 100


@plant("waits_for_slots", "1")
def takes_one_vendors_task_for_two(events: Events) -> None:
    """Two tasks with one of the vendor's."""
    first, *others = [one for one in events if one["event"] == "caller" and one["what"] == "task"]
    for other in others:
        other["vendor_task"] = first["vendor_task"]


@plant("repeats_with_key", "1")
def gives_a_repeat_a_task_of_its_own(events: Events) -> None:
    """The same key, another task."""
    told = [one for one in events if one["event"] == "caller" and one["state"] == "accepted"]
    told[-1]["task"] = "tk_another"


@plant("submits", "2")
def loses_a_callback(events: Events) -> None:
    """No callback, and nothing that says that it will come."""
    events.remove(the(events, "receiver"))
    the(events, "caller", "task").update(callback="none")


@plant("submits", "2")
def never_ends(events: Events) -> None:
    """A task that still runs when all is quiet."""
    events.remove(the(events, "receiver"))
    the(events, "caller", "task").update(state="pending", callback="none")


@plant("submits", "2")
def forgets_a_task(events: Events) -> None:
    """A task of which nothing is said any more."""
    events.remove(the(events, "receiver"))
    events.remove(the(events, "caller", "task"))


@plant("submits", "2")
def forgets_a_task_in_an_open_history(events: Events) -> None:
    """The same where other tasks are still on their way."""
    forgets_a_task(events)
    the(events, "end").update(quiet=False, at=the(events, "end")["at"] + 600)


@plant("receiver_500", "2")
def gives_up_too_early(events: Events) -> None:
    """Undelivered after three attempts."""
    next(one for one in events if one.get("callback") == "undelivered")["attempts"] = 3


@plant("receiver_410_ok", "3")
def changes_the_body(events: Events) -> None:
    """Another body at the second attempt."""
    body = json.loads(the(events, "receiver", n=-1)["body"])
    the(events, "receiver", n=-1)["body"] = json.dumps(body | {"timestamp": "2027"})


@plant("receiver_410_ok", "3")
def changes_the_id(events: Events) -> None:
    """Another `webhook-id` at the second attempt."""
    the(events, "receiver", n=-1)["id"] = "msg_other"


@plant("waits_for_slots", "3")
def uses_an_id_twice(events: Events) -> None:
    """One `webhook-id` for two tasks."""
    the(events, "receiver", n=1)["id"] = the(events, "receiver")["id"]


@plant("submits", "4")
def succeeds_unreported(events: Events) -> None:
    """A success that the vendor never reported."""
    for one in events:
        if one["event"] == "vendor" and one["state"] == "success":
            one["state"] = "pending"


@plant("submits", "4")
def calls_back_too_early(events: Events) -> None:
    """A callback before the vendor said so."""
    the(events, "receiver")["at"] -= 20


@plant("fails", "4")
def fails_unreported(events: Events) -> None:
    """A failure that the vendor never reported."""
    for one in events:
        if one["event"] == "vendor" and one["state"] == "failed":
            one["state"] = "success"


@plant("submits", "4")
def takes_its_end_back(events: Events) -> None:
    """A task that is pending after its callback."""
    copy(events, the(events, "caller", "task"), -1, state="pending", callback="none")


@plant("submits", "4")
def ends_otherwise(events: Events) -> None:
    """A callback of a success, an answer of a failure."""
    the(events, "caller", "task").update(state="failed", error="upstream_failed")


@plant("submits", "4")
def cancels_what_was_paid(events: Events) -> None:
    """Called cancelled, and it was paid."""
    events.remove(the(events, "receiver"))
    the(events, "caller", "task").update(
        state="failed", error="canceled", callback="undelivered", attempts=10
    )


def believes_the_first_404(events: Events) -> None:
    """Ends a task when the vendor has said but once that it does not know it."""
    missing = [one for one in events if one["event"] == "vendor" and one["state"] == "missing"]
    assert len(missing) > 1
    for one in missing[1:]:
        one["state"] = None


PLANTS += [(name, "4", believes_the_first_404) for name in ("is_lost", "cancels@runway")]


@plant("submits", "4")
def calls_it_delivered(events: Events) -> None:
    """Delivered, and no receiver said so."""
    the(events, "receiver")["status"] = 500


@plant("waits_for_slots", "5")
def calls_another_back(events: Events) -> None:
    """A callback to another caller's URL."""
    the(events, "receiver", n=0)["url"] = the(events, "receiver", n=1)["url"]


@plant("submits", "5")
def signs_for_another(events: Events) -> None:
    """A callback signed with another caller's secret."""
    the(events, "receiver")["signer"] = "bob"


@plant("submits", "5")
def signs_with_nothing(events: Events) -> None:
    """A callback that no caller's secret has signed."""
    the(events, "receiver")["signer"] = ""


@plant("submits", "5")
def shows_a_task_to_another(events: Events) -> None:
    """A list with another caller's task."""
    task = the(events, "caller", "task")["task"]
    copy(
        events,
        the(events, "caller", "task"),
        0,
        what="other",
        task=None,
        caller="bob",
        tasks=[task],
        state=None,
    )


@plant("submits", "7")
def asks_too_much(events: Events) -> None:
    """More polls in a minute than the vendor allows."""
    the(events, "deployment")["requests_per_minute"] = {"modellix": 3}
    for _ in range(4):
        copy(events, the(events, "vendor", "poll"), 0.1)


@plant("submits", "7")
def ignores_a_pause(events: Events) -> None:
    """`Retry-After: 60`, and polls go on."""
    the(events, "vendor", "poll").update(status=429, state=None, retry_after=60)
    for second in (10, 20, 30):
        copy(events, the(events, "vendor", "poll"), second, status=200, retry_after=None)


@plant("submits", "8")
def spends_its_queue_on_a_vendor_in_trouble(events: Events) -> None:
    """One POST after another into 503."""
    post, call = the(events, "vendor", "submit"), the(events, "caller", "submit")
    for number in range(15):
        names = {"work": f"more {number}", "intent": f"more {number}", "task": f"tk_{number}", "url": None}
        copy(events, call, number, **names)
        copy(events, post, number + 0.5, status=503, task=None, work=f"more {number}")
    the(events, "end")["quiet"] = False


@each_row(("scenario", "number", "act"), PLANTS, ids=[act.__name__ for *_, act in PLANTS])
def test_a_planted_violation_is_found(scenario: str, number: str, act: Plant) -> None:
    """The same history without it holds."""
    assert judge.judge(written(scenario)) == []
    events: Events = [json.loads(line) for line in written(scenario)]
    act(events)
    found = judge.judge(map(json.dumps, events))
    assert any(words.startswith(f"{number}: ") for words in found), found


def test_ten_violations_at_least_are_planted_in_every_invariant_that_a_history_shows() -> None:
    """1 to 5, 7 and 8; the sixth, that an unchanged poll writes nothing, is none of a history's."""
    assert len(PLANTS) >= 10
    assert {number for _, number, _ in PLANTS} == set("1234578")


@each_row("text", ["", "{}", "no JSON", '{"at": 1, "event": "gossip"}', '{"at": 1, "event": "end"}'])
def test_what_is_no_history_is_not_called_good(text: str) -> None:
    """An empty file proves nothing."""
    with pytest.raises((ValueError, LookupError, TypeError)):
        judge.judge(text.splitlines())


def test_the_judge_is_short_and_knows_nothing_of_the_product() -> None:
    """It imports the standard library alone."""
    source = FILE.read_text()
    assert len(source.splitlines()) <= 150
    imported = {
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    }
    assert {str(name).partition(".")[0] for name in imported} <= sys.stdlib_module_names


def test_its_exit_code_tells(tmp_path: Path) -> None:
    """0 where all holds, 1 where something does not or there is no history."""
    good, bad, none = tmp_path / "good", tmp_path / "bad", tmp_path / "none"
    good.write_text("\n".join(written("submits")))
    events = [json.loads(line) for line in written("submits")]
    pays_again(events)
    bad.write_text("\n".join(map(json.dumps, events)))
    for file, code in ((good, 0), (bad, 1), (none, 1)):
        run = subprocess.run([sys.executable, FILE, file], capture_output=True, check=False)
        assert run.returncode == code, run
