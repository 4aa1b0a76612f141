"""The API's own description, used against it."""

import contextlib
from typing import Any

import boto3
import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.conftest import ANSWERED_WITHIN_S, Stack, eventually, fetch

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 12  # of each call, in each mode


def stored(stack: Stack) -> set[str]:
    """List the ids of all tasks in the table."""
    account = boto3.Session(
        aws_access_key_id="test", aws_secret_access_key="test", region_name=stack.aws_region
    )
    cloudformation = account.client("cloudformation", endpoint_url=stack.aws_endpoint_url)
    table = cloudformation.describe_stack_resource(StackName=stack.stack, LogicalResourceId="Tasks")
    name = table["StackResourceDetail"]["PhysicalResourceId"]
    pages = (
        account.client("dynamodb", endpoint_url=stack.aws_endpoint_url)
        .get_paginator("scan")
        .paginate(TableName=name)
    )
    ids = {item["task_id"]["S"] for page in pages for item in page["Items"]}
    # its request stands beside a task
    return {task_id for task_id in ids if task_id.startswith("tk_") and "#" not in task_id}


def operations(stack: Stack) -> dict[str, Any]:
    """Read the description that the deployment gives of itself."""
    document = fetch(f"{stack.endpoint}/openapi.json").raise_for_status().json()
    results: list[Any] = list(schemathesis.openapi.from_dict(document).get_all_operations())
    return {result.ok().label: result.ok() for result in results}


def test_an_encoded_line_feed_in_a_path_reaches_the_api(stack: Stack) -> None:
    """Whatever is asked for wears the envelope; the fuzz found a front door that answered by itself."""
    answer = fetch(f"{stack.endpoint}/api/v1/%0A")
    assert (answer.status_code, answer.json()["code"]) == (404, 404)


SUBMITS = ("/api/v1/alibaba/", "/api/v1/{provider}/")


def was_refused(stack: Stack, task_id: str) -> bool:
    """Tell whether the vendor refused a task: whether there is a model, the vendor alone knows."""
    headers = {"Authorization": f"Bearer {stack.token}"}
    answer = httpx.get(f"{stack.endpoint}/api/v1/tasks/{task_id}", headers=headers, trust_env=False)
    return bool(answer.json()["data"].get("error", {}).get("code") == "upstream_refused")


def test_no_request_crashes_the_api_or_leaves_a_trace_where_it_was_refused(stack: Stack) -> None:
    """Whatever is sent: no 5xx, no answer beyond the description, no task that the caller was not told."""
    before, accepted, calls = stored(stack), set[str](), 0
    headers = {"Authorization": f"Bearer {stack.token}"}

    def attack(operation: Any, mode: GenerationMode) -> None:
        @seed(20261123)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            nonlocal calls
            calls += 1
            answer = case.call(base_url=stack.endpoint, headers=headers, timeout=ANSWERED_WITHIN_S)
            if answer.status_code == 200 and case.path.startswith(SUBMITS):
                accepted.add(answer.json()["data"]["task_id"])
            case.validate_response(answer, checks=CHECKS)

        with contextlib.suppress(Unsatisfiable):  # nothing that could be asked of this call is wrong
            send()

    described = operations(stack)
    for operation in described.values():
        for mode in GenerationMode:
            attack(operation, mode)
    assert calls > 10 * len(described)

    def traced() -> bool:
        """Look at what is stored: what was accepted, and what the vendor itself has refused."""
        others = stored(stack) - before
        return accepted <= others and all(was_refused(stack, task_id) for task_id in others - accepted)

    eventually(traced)
