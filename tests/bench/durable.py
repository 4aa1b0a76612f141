"""The same job as one durable function, the way AWS's own documentation would have it: submit, wait for the end, call back."""

import json
import urllib.request
from typing import Any

from aws_durable_execution_sdk_python import DurableContext, StepContext, durable_execution
from aws_durable_execution_sdk_python.config import Duration

type Json = dict[str, Any]


def _ask(url: str, key: str, body: Json | None = None) -> Json:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)  # noqa: S310  # loopback
    with urllib.request.urlopen(request, timeout=15) as answer:  # noqa: S310  # loopback
        read: Json = json.loads(answer.read() or b"{}")
        return read


@durable_execution
def handler(event: Json, context: DurableContext) -> Json:
    """Serve one task from its submit to its callback, suspended in between."""
    vendor, key = event["vendor"], event["key"]

    def poll(_: StepContext) -> Json:
        data: Json = _ask(f"{vendor}/api/v1/tasks/{task_id}", key)["data"]
        return data

    task_id = context.step(
        lambda _: _ask(f"{vendor}/api/v1/{event['model']}", key, event["request"])["data"]["task_id"], name="submit"
    )
    # A loop, and not `wait_for_condition`: the emulator wakes an execution from its waits, and from no step's retry.
    while (state := context.step(poll, name="poll"))["status"] not in {"success", "failed"}:
        context.wait(Duration.from_seconds(event["gap"]), name="gap")
    context.step(lambda _: bool(_ask(event["callback_url"], key, {"data": state}) or True), name="deliver")
    return {"task_id": task_id}
