"""The history of a run: what its vendor, its receivers and its callers would say, and no more."""

import json
from collections.abc import Iterator

from taskhook.adapters.dynamodb.items import plain
from taskhook.adapters.dynamodb.tasks import task_of
from taskhook.api import answers
from taskhook.core import signature
from taskhook.core.encryption import decrypt
from tests import history
from tests.sim.deployment import CALLERS, TASKS
from tests.sim.receivers import Visit
from tests.sim.scene import QUIET_WITHIN, Scene
from tests.world import MATERIAL, START


def lines(scene: Scene) -> list[str]:
    """Write a run down, when it is over."""
    began = START.timestamp()
    limits = {name: scene.rules.requests_to(one.vendor) for name, one in scene.vendors.items()}
    if any(scene.deployment.clocks):  # a window of the budget is then each process's own
        limits = dict.fromkeys(limits, 1_000_000)
    events = [history.deployment(began, limits), *scene.vendor.exchanges, *_visits(scene), *scene.calls]
    events += last_looks(scene)
    quiet = scene.ended_at < QUIET_WITHIN
    events.append(history.end(began + scene.loop.time(), quiet=quiet))
    return [json.dumps(event) for event in sorted(events, key=lambda event: float(event["at"]))]


def _visits(scene: Scene) -> Iterator[history.Event]:
    secrets: dict[str, str] = {}
    for caller in scene.table.everything(CALLERS):
        name = caller["caller"]["S"]
        for secret in plain(caller)["secrets"]:
            secrets[decrypt(secret["value"], material=MATERIAL, context=name)] = name
    for visit in scene.receivers.visits:
        yield history.receivers(
            visit.at.timestamp(),
            visit.url,
            until=START.timestamp() + visit.until,
            task=visit.headers["x-modellix-task-id"],
            id=visit.headers["webhook-id"],
            signer=_signer(visit, secrets),
            body=visit.body.decode(),
            status=visit.answered,
        )


def _signer(visit: Visit, secrets: dict[str, str]) -> str:
    id_, at = visit.headers["webhook-id"], int(visit.headers["webhook-timestamp"])
    given = visit.headers["webhook-signature"].split(" ")
    return next(
        (name for secret, name in secrets.items() if signature.sign(secret, id_, at, visit.body) in given), ""
    )


def last_looks(scene: Scene) -> Iterator[history.Event]:
    """Let each caller ask for each of its tasks."""
    at = START.timestamp() + scene.loop.time()
    for item in scene.table.everything(TASKS):
        if "state" in item and item["task_id"]["S"] in scene.names:
            task = task_of(plain(item))
            body = json.dumps(answers.task_answer(task).body()).encode()
            told = history.told_to_caller("task", 200, body)
            yield history.callers(at, task.caller, "task", until=at, task=task.task_id, **told)
