"""The same job as one durable function, as AWS documents them: submit, wait for the end, call back."""

import json
import urllib.request
from typing import Any

from aws_durable_execution_sdk_python import DurableContext, durable_execution
from aws_durable_execution_sdk_python.config import Duration
from aws_durable_execution_sdk_python.waits import WaitForConditionConfig, WaitForConditionDecision

type Json = dict[str, Any]


def _ask(url: str, key: str, body: Json | None = None) -> Json:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)  # noqa: S310  # loopback
    with urllib.request.urlopen(request, timeout=15) as answer:  # noqa: S310  # loopback
        read: Json = json.loads(answer.read() or b"{}")
        return read


@durable_execution
def handler(event: Json, context: DurableContext) -> Json:
    """Serve one task from its submit to its callback, suspended in between."""
    vendor, key = event["vendor"], event["key"]

    def poll(_state: Json, _: object) -> Json:
        data: Json = _ask(f"{vendor}/api/v1/tasks/{task_id}", key)["data"]
        return data

    def again(state: Json, _attempts: int) -> WaitForConditionDecision:
        if state["status"] in {"success", "failed"}:
            return WaitForConditionDecision.stop_polling()
        return WaitForConditionDecision.continue_waiting(Duration.from_seconds(event["gap"]))

    task_id = context.step(
        lambda _: _ask(f"{vendor}/api/v1/{event['model']}", key, event["request"])["data"]["task_id"],
        name="submit",
    )
    nothing_yet: Json = {}
    result = context.wait_for_condition(
        poll, WaitForConditionConfig(wait_strategy=again, initial_state=nothing_yet), name="poll"
    )
    context.step(lambda _: bool(_ask(event["callback_url"], key, {"data": result}) or True), name="deliver")
    return {"task_id": task_id}
