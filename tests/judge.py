"""Judges a history, and shares no code with what made it: `python -m tests.judge FILE`.

Each line is an exchange (`tests/README.md` has its fields). Exit code 0: the invariants hold; 1: they do not.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

Event = dict[str, Any]
FOR_NOW = {401, 402, 429}  # refusals that prove that nothing was taken: another try may follow
FINAL, ATTEMPTS, SILENT_S = {"success", "failed"}, 10, 48 * 3600.0  # after which a task ends unanswered
SAID = {"upstream_failed": {"failed"}, "lost": {"missing"}, "expired": {"pending"}, None: {"success"}}
UNPAID, KINDS = {"queue_expired", "canceled"}, {"deployment", "vendor", "receiver", "caller", "end"}
FEW, SETTLED_S, GRACE_S, AGAIN_S, AT_ONCE, NEVER, GONE = 12, 120.0, 5.0, 25.0, 2, 9e99, {"failed", "missing"}


def grouped(events: Iterable[Event], key: str) -> dict[Any, list[Event]]:
    """Part events by what they say of `key`."""
    groups: dict[Any, list[Event]] = defaultdict(list)
    for one in events:
        groups[one[key]].append(one)
    return groups


class History:
    """Exchanges by what they are about. Raises ValueError, KeyError, TypeError for what is no history."""

    def __init__(self, lines: Iterable[str]) -> None:
        by = grouped(sorted(map(json.loads, lines), key=lambda one: float(one["at"])), "event")
        if by.keys() - KINDS or not by["caller"]:
            raise ValueError("it holds what is no event, or no caller's request")
        self.limits: dict[str, int] = by["deployment"][0]["requests_per_minute"]
        self.vendor, self.came, self.calls, self.end = by["vendor"], by["receiver"], by["caller"], by["end"]
        posts = [one for one in self.vendor if one["what"] == "submit" and one["sent"]]
        views = [one for one in self.calls if one["what"] == "task" and one["state"]]
        told = [one for one in self.calls if one["state"] in {"accepted", "unknown"}]
        self.asked = grouped((one for one in self.calls if one["what"] == "submit"), "work")
        self.paid = grouped((one for one in posts if one["status"] not in FOR_NOW), "work")  # perhaps
        self.said = grouped((one for one in self.vendor if one["what"] == "poll"), "task")  # the vendor's id
        self.views, self.heard = grouped(views, "task"), grouped(self.came, "task")
        self.accepted = {one["task"]: one for one in reversed(told)}
        alone = {work for work, asked in self.asked.items() if len({one["intent"] for one in asked}) == 1}
        works = ((task, one["work"]) for task, one in self.accepted.items())
        self.posts = {task: self.paid[work] for task, work in works if work in alone}

    def reported(self, vendor_task: str | None, states: set[str]) -> float:
        """Tell when the vendor first said so; that it knows no such task counts when it says so again."""
        said = [one["at"] for one in self.said[vendor_task] if one["state"] in states - {"missing"}]
        gone = [one["at"] for one in self.said[vendor_task] if one["state"] in states & {"missing"}]
        return min((*said, *(at for at in gone if at > gone[0] + AGAIN_S)), default=NEVER)

    def ends(self, task: str) -> list[tuple[float, str, str | None, str | None]]:
        """List when it was said to have ended, how, why, and as which of the vendor's."""
        ends = [(one["until"], one["state"], one["error"], one["vendor_task"]) for one in self.views[task]]
        for one in self.heard[task]:
            data = json.loads(one["body"])["data"]
            why, id_ = data.get("error", {}).get("code"), data.get("upstream_task_id")
            ends.append((one["at"], data["status"], why, id_))
        return sorted((end for end in ends if end[1] in FINAL), key=lambda end: end[0])

    def pays_once(self) -> Iterator[str]:
        """1: of a request at most one POST may have been taken; no two tasks are one of the vendor's."""
        for work, posts in self.paid.items():
            asked = {one["intent"] for one in self.asked[work] if posts and one["at"] <= posts[-1]["at"]}
            if len(posts) > len(asked):
                yield f"1: {work}: {len(posts)} POSTs that may have been taken, of {len(asked)} requests"
        tasks: dict[Any, set[str]] = defaultdict(set)
        for task, call in self.accepted.items():
            for key in (call["intent"], *(end[3] for end in self.ends(task) if call["what"] == "submit")):
                tasks[key].add(task)
        yield from (f"1: {key} is {sorted(same)}" for key, same in tasks.items() if key and len(same) > 1)

    def loses_nothing(self) -> Iterator[str]:
        """2: where there is an end, all have ended, and callbacks are delivered, or given up by the rules."""
        for task, call in self.accepted.items() if self.end else ():
            last = (self.views[task] or [{"state": None, "callback": None, "error": None}])[-1]
            statuses, posts = {one["status"] or 0 for one in self.heard[task]}, self.posts.get(task, ())
            told = any(200 <= status < 300 for status in statuses)
            known = min((self.reported(post["task"], FINAL) for post in posts), default=NEVER)
            over = last["state"] in FINAL or (not last["state"] and known < self.end[-1]["at"] - SETTLED_S)
            if last["callback"] == "delivered" and not told:
                yield f"4: {task} is called delivered, and no receiver said so"
            elif last["callback"] == "undelivered" and last["attempts"] < ATTEMPTS and 410 not in statuses:
                yield f"2: {task} was given up after {last['attempts']} attempts"
            elif self.end[-1]["quiet"] and (last["callback"] == "waiting" or last["state"] not in FINAL):
                yield f"2: {task} has not ended when all is quiet"
            elif call["url"] and not told and last["callback"] in {None, "none"} and over:
                yield f"2: {task} is lost: its receiver was not told of its end"

    def tells_the_truth(self) -> Iterator[str]:
        """3, 4: one message, one id, one body; nothing is said that the vendor has not said before."""
        ids: dict[str, str] = {}
        for task in sorted(self.heard.keys() | self.views.keys()):
            ends, messages = self.ends(task), {(one["id"], one["body"]) for one in self.heard[task]}
            named = [(id_, json.loads(body)["data"]["task_id"]) for id_, body in messages]
            if len(named) > 1 or any(of != task or ids.setdefault(id_, task) != task for id_, of in named):
                yield f"3: {task} has several messages, or another's"
            if len({end[1:] for end in ends}) > 1:
                yield f"4: {task} ended in several ways"
            for at, state, error, vendor_task in ends[:1]:
                silent = error == "expired" and at > self.accepted.get(task, self.calls[0])["at"] + SILENT_S
                if any(view["at"] > at and view["state"] not in FINAL for view in self.views[task]):
                    yield f"4: {task} was called back before its end was stored"
                if error in SAID and self.reported(vendor_task, SAID[error]) > at and not silent:
                    yield f"4: {task} is {error or state}, which the vendor had not said"
                if error in UNPAID and self.posts.get(task) and self.reported(vendor_task, GONE) > at:
                    yield f"4: {task} is {error}, and may have been paid"

    def isolates(self) -> Iterator[str]:
        """5: callbacks go where their caller wants them, signed for it; no caller sees another's task."""
        for one in self.came:
            call = self.accepted.get(one["task"], {"url": None, "caller": one["signer"]})
            if call["url"] not in {None, one["url"]} or one["signer"] not in {None, call["caller"]}:
                yield f"5: {one['task']} was called back at {one['url']}, signed for {one['signer']}"
        for call in self.calls:
            shown = {call["task"], *call["tasks"]} & self.accepted.keys() if call["status"] == 200 else set()
            if any(self.accepted[task]["caller"] != call["caller"] for task in shown):
                yield f"5: {call['caller']} was shown another's of {sorted(shown)}"

    def spares_the_vendor(self) -> Iterator[str]:
        """7, 8: a vendor's limit a minute and the pauses it asks for are kept; its trouble costs few."""
        for vendor, mine in grouped((one for one in self.vendor if one["sent"]), "vendor").items():
            posts = (one for one in mine if one["what"] == "submit")
            rows = groupby(posts, key=lambda one: (one["status"] or 599) > 499)
            in_vain = [(8, list(row), FEW) for failed, row in rows if failed]
            for law, row, most in ((7, mine, self.limits[vendor]), *in_vain):
                if any(last["at"] < one["at"] + 60 for one, last in zip(row, row[most:], strict=False)):
                    yield f"{law}: {vendor} was sent more than {most} in a minute"
            for one in (one for one in mine if one["retry_after"] and one["until"]):
                kept, kinds = one["until"] + one["retry_after"], {one["what"], "submit"}
                on = [other["at"] for other in mine if other["what"] in kinds and other["at"] < kept]
                if sum(at > one["until"] + GRACE_S for at in on) > AT_ONCE:
                    yield f"7: {vendor} asked for a pause, and was asked on"


def judge(lines: Iterable[str]) -> list[str]:
    """List what does not hold in a history."""
    held = History(lines)
    laws = (held.pays_once, held.loses_nothing, held.tells_the_truth, held.isolates, held.spares_the_vendor)
    return [words for law in laws for words in law()]


if __name__ == "__main__":
    print(*(found := judge(Path(sys.argv[1]).read_text().splitlines())), f"{len(found)} violations", sep="\n")
    sys.exit(bool(found))
