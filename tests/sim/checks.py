"""The invariants, from the outside: what the vendor was asked, receivers got, and the tables hold."""

import json
from bisect import bisect_left
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby
from typing import Any

from taskhook.adapters.dynamodb.items import plain
from taskhook.adapters.dynamodb.tasks import request_key, task_of
from taskhook.core import signature
from taskhook.core.encryption import decrypt
from taskhook.core.record import ARCHIVE_TIME, ErrorCode, State, Submission, milliseconds
from taskhook.core.schedule import RETRY_JITTER, RETRY_WAITS
from taskhook.core.task import LOST_CONFIRMATION
from taskhook.core.vendor import PollKind
from taskhook.submit.submit import SubmitResult
from tests.judge import judge
from tests.sim import witness
from tests.sim.deployment import CALLERS, ORIGIN, TASKS, TICK
from tests.sim.receivers import Visit
from tests.sim.scene import QUIET_WITHIN, Scene
from tests.sim.table import Item
from tests.sim.vendor import Upstream
from tests.world import MATERIAL, START

# By how much one fault makes the last task of a scenario end later, and the last attempt of its callbacks:
# a quarter of an hour for an unknown outcome, five minutes for a frozen process, some for the ticks that are
# left out while nothing changes; one more step of a receiver's schedule. Virtual seconds. An attempt may come
# later still by one more wait of its schedule, and by ticks that were left out.
TASK_LATER, ATTEMPT_LATER = 1800.0, 2 * 3600.0
SLACK = 4.0  # seconds: a hand-over takes two, a few calls the rest

# Where no process dies, freezes or loses an answer, a receiver that said 2xx hears nothing more.
_EXACT = {"", "twin before", "twin after", "stale", "out of order", "sdk retry", "lost", "twice", "late"}
# Where no more than an answer was lost that the SDK asked for again, everything ends as if nothing had been.
HARMLESS = {"sdk retry"}
# Where no process dies, freezes or has to wait for an answer, nothing is late either.
_PUNCTUAL = {"", "twin before", "twin after", "sdk retry", "twice"}
_KNOWN_END = {ErrorCode.CANCELED, ErrorCode.QUEUE_EXPIRED}


def violations(scene: Scene, outcome: str = "") -> list[str]:
    """List what should not be; `outcome` is what went wrong on purpose."""
    found = [*scene.vendor.oddities] if not outcome.startswith("thaw") else []
    found += _of_quiet(scene)
    found += _of_payments(scene)
    found += _of_media(scene)
    found += _of_budget(scene) if not outcome.startswith("thaw") else []
    for task_id in scene.names:
        item = scene.table.peek(TASKS, task_id)
        if item is not None:
            task = plain(item)
            found += [f"{scene.name_of(task_id)}: {words}" for words in _of_task(scene, task, outcome)]
            found += [f"{scene.name_of(task_id)}: {words}" for words in _of_copies(scene, task)]
    found += _of_answers(scene, outcome)
    found += _of_messages(scene, outcome)
    for event, facts in scene.reported.events:
        if event == "task.crashed":
            found.append(f"{event} {facts}")
    for invocation in scene.invocations:
        if isinstance(invocation.answer, Exception) and type(invocation.answer).__module__ == "builtins":
            found.append(f"{invocation.name} crashed: {invocation.answer!r}")
    return [*found, *(judge(witness.lines(scene)) if scene.calls else ())]  # without callers, no history


def of_anything(scene: Scene) -> list[str]:
    """List what should not be, whatever went wrong, and however often; TTL may have deleted some tasks."""
    found = [*_of_quiet(scene), *_of_payments(scene), *_of_messages(scene, "thaw")]
    for name, heard in scene.answers.items():
        told = [answer for answer in heard if isinstance(answer, SubmitResult)]
        if told and not scene.items_of(name) and not {one.task.task_id for one in told} <= scene.expired:
            found.append(f"{name} was answered, and is not there")
    crashed = [f"{event} {facts}" for event, facts in scene.reported.events if event == "task.crashed"]
    failed = [
        f"{one.name} crashed: {one.answer!r}"
        for one in scene.invocations
        if isinstance(one.answer, Exception) and type(one.answer).__module__ == "builtins"
    ]
    return [*found, *crashed, *failed]


def ended_by(scene: Scene) -> tuple[float, float]:
    """Tell when the last task ended, and when the last attempt of a callback was made."""
    items = _items(scene)
    tasks = [float(item["ended_at"]["N"]) / 1000 - START.timestamp() for item in items if "ended_at" in item]
    attempts = [age(visit.at) for visit in scene.receivers.visits]
    return max(tasks, default=0.0), max(attempts, default=0.0)


def _items(scene: Scene) -> list[Item]:
    return [item for names in scene.names.values() for name in names for item in scene.items_of(name)]


def too_late(scene: Scene, calm: tuple[float, float]) -> list[str]:
    """Compare with when all was through where nothing went wrong; one fault costs a stated time at most."""
    (task, attempt), (calm_task, calm_attempt) = ended_by(scene), calm
    found = []
    if task > calm_task + TASK_LATER:
        found.append(f"a task ended {task - calm_task:.0f} s later for it, not {TASK_LATER:.0f} s at most")
    allowed = max(ATTEMPT_LATER, scene.left_out_s + ATTEMPT_LATER / 2, _one_wait_more(scene))
    if attempt > calm_attempt + allowed:
        late = attempt - calm_attempt
        found.append(f"a callback was through {late:.0f} s later for it, not {allowed:.0f} s at most")
    return found


def _one_wait_more(scene: Scene) -> float:
    """Tell how long the schedule waits before the last attempt of the task that was tried most."""
    tries = [int(item.get("attempts", {"N": "1"})["N"]) for item in _items(scene)]
    last = min(max(tries, default=1), len(RETRY_WAITS)) - 1
    return RETRY_WAITS[last].total_seconds() * (1 + RETRY_JITTER)


def ends(scene: Scene, wanted: dict[str, str]) -> list[str]:
    """List the tasks that did not end as they do when nothing goes wrong."""
    got = {
        name: f"{item['state']['S']} {item.get('callback', {'S': 'none'})['S']}"
        for name in wanted
        for item in scene.items_of(name)
    }
    return [
        f"{name} ended {got.get(name)}, not {end}" for name, end in wanted.items() if got.get(name) != end
    ]


def _of_quiet(scene: Scene) -> Iterator[str]:
    if scene.ended_at >= QUIET_WITHIN:
        working = [
            f"{scene.name_of(item['task_id']['S'])} {item['state']['S']}"
            for item in scene.table.working(TASKS)
        ]
        yield f"it never gets quiet: {working}"
    for item in scene.table.everything(TASKS):
        task_id = item["task_id"]["S"]
        if "state" in item and ("work" in item) is ("expires_at" in item) and task_id not in scene.poison:
            yield f"{scene.name_of(task_id)} has work and expires, or neither"
        if ("work" in item) is not ("work_at" in item):
            yield f"{scene.name_of(task_id)} has work and is not in the index of work"
    for task_id in scene.poison:
        item_ = scene.table.peek(TASKS, task_id)
        if item_ is None or "work" not in item_:
            yield f"{task_id} could not be read, and is gone"


def _of_payments(scene: Scene) -> Iterator[str]:
    by_name = sorted(scene.vendor.posts, key=lambda post: post.name)
    for name, posts in groupby(by_name, key=lambda post: post.name):
        possible = [post.sender for post in posts if post.possible]
        if len(possible) > 1:
            yield f"{name} may have been paid {len(possible)} times, by {possible}"
        if sum(task.name == name for task in scene.vendor.tasks.values()) > 1:
            yield f"{name} was paid twice"


def _of_media(scene: Scene) -> Iterator[str]:
    for name, shown in scene.media.shown.items():
        if not any(shown) and any(f'/{name}"' in _request_of(scene, item) for item in scene.items_of(name)):
            yield f"{name} is there, and its media were never good"
    for post in scene.vendor.posts:
        if post.sender in scene.media.warned:
            yield f"{post.name} was paid by {post.sender}, which had seen that its media are bad"


def _request_of(scene: Scene, item: Item) -> str:
    kept = scene.table.peek(TASKS, request_key(task_of(plain(item))))
    assert kept is not None
    request: str = kept["request"]["S"]
    return request


def _of_budget(scene: Scene) -> Iterator[str]:
    limit, requests = scene.rules.requests_to(scene.vendor.vendor), sorted(scene.vendor.requests)
    for number, at in enumerate(requests):
        if bisect_left(requests, at + 60) - number > limit:
            yield f"more than {limit} requests in the minute from {at:.1f} on"
            return


def _of_task(scene: Scene, task: dict[str, Any], outcome: str) -> Iterator[str]:
    name = scene.name_of(task["task_id"])
    state, callback, error = task["state"], task.get("callback", "none"), task.get("error")
    if not State(state).final:
        yield f"is {state} when all is quiet"
        return
    if callback == "waiting":
        yield "still waits for its callback when all is quiet"
    told_directly = error == ErrorCode.UPSTREAM_REFUSED and task.get("answer_status") != 200
    if (callback == "none" and "callback_url" in task and not told_directly) or (
        callback != "none" and "callback_url" not in task
    ):
        yield f"its callback is {callback}, its URL {task.get('callback_url')}, its error {error}"
    visits = [
        visit for visit in scene.receivers.visits if visit.headers["x-modellix-task-id"] == task["task_id"]
    ]
    answered = [visit for visit in visits if visit.status is not None and 200 <= visit.status < 300]
    if callback == "delivered" and not answered:
        yield "is called delivered, and no receiver said so"
    gone = any(visit.status == 410 for visit in visits)
    if callback == "undelivered" and task.get("attempts", 0) < len(RETRY_WAITS) and not gone:
        yield f"is undelivered after {task.get('attempts')} attempts"
    if outcome in _EXACT and len(answered) > 1 + sum(
        "redeliver" in invocation.name for invocation in scene.invocations
    ):
        yield f"was delivered {len(answered)} times"
    if outcome in _PUNCTUAL:
        yield from _of_time(scene, task, [age(visit.at) for visit in visits], outcome)
    yield from _of_truth(scene, task, name)


def _of_time(scene: Scene, task: dict[str, Any], visits: list[float], outcome: str) -> Iterator[str]:
    """Compare when receivers were called with when they should be: after the end, after each attempt."""
    slack = SLACK + scene.beat + (0 if scene.deployment.wakes else TICK)
    upstream = scene.vendor.tasks.get(task.get("upstream_task_id", ""))
    found = task.get("error") in {None, ErrorCode.UPSTREAM_FAILED} or "canceled_at" in task
    # what is copied first has a time of its own
    if visits and upstream is not None and found and not scene.deployment.archives:
        late = visits[0] - upstream.ends
        may = slack + (0.0 if scene.deployment.holds and not outcome else _until_found(scene, upstream))
        may += 0.0 if upstream.known else LOST_CONFIRMATION.total_seconds()
        if late > may:
            yield f"was called back {late:.1f} s after its end, not within {may:.1f} s"
    promised = [
        float(attempt["next_at"]) / 1000 - START.timestamp()
        for attempt in task.get("log", [])
        if "next_at" in attempt
    ]
    if not any("redeliver" in invocation.name for invocation in scene.invocations):
        for number, (due, came) in enumerate(zip(promised, visits[1:], strict=False), start=2):
            if not due - 0.5 <= came <= due + slack:
                yield f"attempt {number} came {came - due:.1f} s after the moment that its log names"


def _until_found(scene: Scene, upstream: Upstream) -> float:
    """Tell how soon a task's end is found by its age: where polls are not held, or not yet known to be."""
    took = upstream.ends - upstream.since
    first = 0.0 if scene.deployment.immediate else 20.0
    return max(first - took, min(max(2.0, took * 0.1), 60.0))


def _of_truth(scene: Scene, task: dict[str, Any], name: str) -> Iterator[str]:
    names = set(name.split("/"))
    upstream = scene.vendor.tasks.get(task.get("upstream_task_id", ""))
    if upstream is not None and upstream.name not in names:
        yield f"goes by the vendor's task of {upstream.name}"
    reported = upstream.reported if upstream is not None else None
    posts = [post for post in scene.vendor.posts if post.name in names]
    error = task.get("error")
    if task["state"] == State.SUCCESS and reported is not PollKind.SUCCEEDED:
        yield "is a success that the vendor never reported"
    if error == ErrorCode.UPSTREAM_FAILED and reported is not PollKind.FAILED:
        yield "is a failure that the vendor never reported"
    if error in _KNOWN_END and any(post.possible for post in posts) and not _was_canceled(task, upstream):
        yield f"is {error}, and may have been paid"
    if error in {ErrorCode.LOST, ErrorCode.UPSTREAM_FAILED} and upstream is not None and upstream.canceled:
        yield f"is called {error}, and was canceled"
    if error == ErrorCode.UPSTREAM_REFUSED and not any(
        post.seen in {Submission.REFUSED, Submission.REFUSED_HERE} for post in posts
    ):
        yield "is called refused, and never was"
    if error == ErrorCode.SUBMISSION_UNKNOWN and "upstream_task_id" in task:
        yield "is called unknown, and its id is known"
    if error == ErrorCode.LOST and upstream is not None and upstream.known:
        yield "is called lost, and the vendor has it"
    if (
        error == ErrorCode.EXPIRED
        and (task["ended_at"] - task["taken_at"]) / 1000
        < scene.rules.task_age_at(scene.vendor.vendor).total_seconds()
    ):
        yield "expired before its deadline"


def _was_canceled(task: dict[str, Any], upstream: Upstream | None) -> bool:
    """Whether its vendor was asked to cancel it, and has told that it is canceled, or has forgotten it."""
    ended = upstream is not None and (
        (upstream.canceled and upstream.reported is PollKind.FAILED) or not upstream.known
    )
    return "canceled_at" in task and ended


def _of_copies(scene: Scene, task: dict[str, Any]) -> Iterator[str]:
    if not scene.deployment.archives or task["state"] != State.SUCCESS:
        return
    if "result" in task or "archiving_since" not in task:
        yield "has ended past the archive"
        return
    waited = (task["ended_at"] - task["archiving_since"]) / 1000
    [resource] = json.loads(task["message"])["data"]["result"]["resources"]
    if not resource["archived"]:
        if "source_url" in resource or resource["url"].startswith(ORIGIN):
            yield "leads to a copy that there is none of"
        if waited < ARCHIVE_TIME.total_seconds() and not any("given_up" in copy for copy in task["copies"]):
            yield f"has waited only {waited} s for its copy"
        return
    content, url = (
        scene.bucket.files.get(resource["url"].removeprefix(f"{ORIGIN}/r/")),
        resource["source_url"],
    )
    if content not in {
        scene.originals.content(url, version) for version in range(scene.originals.versions[url] + 1)
    }:
        yield f"its copy is none: {content!r}"
    if waited > ARCHIVE_TIME.total_seconds() + 120 and not scene.injector.struck:
        yield f"has waited {waited} s for its copy"


def _of_answers(scene: Scene, outcome: str) -> Iterator[str]:
    for name, heard in scene.answers.items():
        answers = [answer for answer in heard if isinstance(answer, SubmitResult)]
        if answers and not scene.items_of(name):
            yield f"{name} was answered, and is not there"
        by_message = {(answer.status, answer.task.accepted_at) for answer in answers}
        if not outcome.startswith("thaw") and len(by_message) != len(
            {accepted_at for _, accepted_at in by_message}
        ):
            yield f"{name} was answered differently: {sorted(str(status) for status, _ in by_message)}"


def _of_messages(scene: Scene, outcome: str) -> Iterator[str]:
    visits = sorted(scene.receivers.visits, key=lambda visit: visit.headers["x-modellix-task-id"])
    for task_id, group in groupby(visits, key=lambda visit: visit.headers["x-modellix-task-id"]):
        name, listed = scene.name_of(task_id), list(group)
        if len({visit.headers["webhook-id"] for visit in listed}) > 1:
            yield f"{name}: its message has several ids"
        if len({visit.body for visit in listed}) > 1:
            yield f"{name}: its message has several bodies"
        for visit in listed:
            yield from (f"{name}: {words}" for words in _of_visit(scene, visit))
        if not outcome.startswith("thaw") and any(
            one is not other
            and one.at <= other.at
            and milliseconds(other.at) / 1000 - START.timestamp() < one.until
            for one in listed
            for other in listed
        ):
            yield f"{name}: two attempts at once"


def _of_visit(scene: Scene, visit: Visit) -> Iterator[str]:
    stored: Item = visit.stored or {}
    body = json.loads(visit.body)
    if not State(stored.get("state", {"S": "queued"})["S"]).final:
        yield "was called back before its end was stored"
    elif plain(stored)["message"].encode() != visit.body:
        yield "was called back with another message than the stored one"
    if body["type"] == "prediction.task.succeeded":
        upstream = scene.vendor.tasks[body["data"]["upstream_task_id"]]
        if upstream.reported is not PollKind.SUCCEEDED or upstream.name not in visit_names(scene, visit):
            yield "was called back with a success that is not its own"
    caller = scene.table.peek(CALLERS, stored["caller"]["S"]) or {}
    name, stored_secrets = stored["caller"]["S"], plain(caller)["secrets"]
    secrets = [decrypt(secret["value"], material=MATERIAL, context=name) for secret in stored_secrets]
    at, given = int(visit.headers["webhook-timestamp"]), visit.headers["webhook-signature"].split(" ")
    if not {signature.sign(secret, visit.headers["webhook-id"], at, visit.body) for secret in secrets} & set(
        given
    ):
        yield "carries no signature of its caller"


def age(moment: datetime) -> float:
    """Tell how many virtual seconds after the start a moment lies."""
    return (milliseconds(moment) - milliseconds(START)) / 1000


def visit_names(scene: Scene, visit: Visit) -> set[str]:
    """Name the tasks that a request is about."""
    return scene.names[visit.headers["x-modellix-task-id"]]
