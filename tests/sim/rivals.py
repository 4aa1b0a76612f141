"""What another invocation might write first, which then dies."""

from datetime import datetime, timedelta

from taskhook.adapters.dynamodb import items
from taskhook.adapters.dynamodb.tasks import task_of, values_of
from taskhook.core.message import Json
from taskhook.core.record import CallbackState, State
from taskhook.delivery.attempt import CLAIM
from taskhook.poller.queue import PAY_CLAIM
from tests.sim.deployment import CALLERS, TASKS
from tests.sim.table import Item


def rivals_item(table: str, request: Json, item: Item | None, now: datetime, *, readable: bool) -> Item:
    """Give what stands in the place of the item that a request is about to write."""
    key = key_of(table, request)
    if table == CALLERS:
        token = {"M": {"value": {"S": "rival"}}}
        return (request.get("Item") or dict(item or request["Key"])) | {"tokens": {"L": [token]}}
    if "#" in key and "Item" in request:  # a task's request: the rival brings the same
        brought: Item = request["Item"]
        return brought
    if key.startswith("tk_"):
        return _task(request, item, now, readable=readable)
    return dict(item or request["Key"]) | _control(key, now)


def key_of(table: str, request: Json) -> str:
    """Tell which item a request is about to write."""
    key: str = (request.get("Key") or request["Item"])["task_id" if table == TASKS else "caller"]["S"]
    return key


def _task(request: Json, item: Item | None, now: datetime, *, readable: bool) -> Item:
    """Take a task one step further, or take nothing but the right to do so."""
    if item is None:
        added: Item = request["Item"]
        return added | {"nonce": {"S": "rival"}}
    if not readable:
        return item | {"work_at": request["ExpressionAttributeValues"][":later"]}
    task = task_of(items.plain(item))
    of_another_version = {name: item[name] for name in item.keys() - items.item(values_of(task)).keys()}
    if task.state is State.QUEUED:
        task = task.claim_submit(now, until=now + PAY_CLAIM)
    elif task.state is State.SUBMITTING:
        task = task.mark_unknown()
    elif task.callback is CallbackState.WAITING and task.state.final:
        task = task.claim_delivery(until=now + CLAIM)
    return items.item(values_of(task.model_copy(update={"nonce": "rival"}))) | of_another_version


def _control(key: str, now: datetime) -> Item:
    if key == "leadership":
        until = str(round((now + timedelta(seconds=90)).timestamp() * 1000))
        return {"leader": {"S": "rival"}, "until": {"N": until}, "held_models": {"L": []}}
    if key == "admission":
        return {"nonce": {"S": "rival"}, "waiting": {"BOOL": True}}
    return {"used": {"N": "1000000"}}
