"""Tasks whose media are looked at and whose results are archived, in an account of 10 invocations at once.

A new AWS account has no more. Submits come eight at once, again with their key where the gateway turns them
away, and one callback in three fails at first. Ages are of events (ticks, wakes, copies to be made) until
they ran; one that grows too old is dropped.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

import boto3

from tests.bench.flow import Flow, own_stack
from tests.bench.kills import summary

TASKS, QUICK = 300, 20
EXECUTIONS = 10
RESULT_BYTES = 2**20
FUNCTIONS = ("submit", "poll", "archive")


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Submit, wait for every callback, and count. `TASKS` in the environment sets another number."""
    figures = asyncio.run(run(int(os.environ.get("TASKS", QUICK if quick else TASKS)), seed))
    print(json.dumps(figures), file=sys.stderr, flush=True)
    return figures


async def run(tasks: int, seed: int) -> dict[str, Any]:
    """Let so many tasks flow through a stack of its own; give what came of them, and what had to wait."""
    flags = ("--executions", str(EXECUTIONS), "--rpm", "100000", "--concurrent", "1000")
    async with own_stack(*flags, "--parameter", "ArchiveResults=on") as (ready, deliveries, _):
        vendors = {"modellix": ready["upstream"]}
        callers = {"local": (ready["token"], ready["signing_secret"])}
        flow = Flow(ready["endpoint"], vendors, ready["receiver"], callers, "q", seed)
        results = await flow.http.post(f"{ready['upstream']}/_control/results", json={"bytes": RESULT_BYTES})
        results.raise_for_status()
        began = time.time()
        await flow.submit_all(tasks, most_per_second=1000)
        submitted_s = time.time() - began
        await flow.settled(deliveries.listed, patience_s=60)
        audit = await flow.audit(deliveries.listed)
        await flow.http.aclose()
        metrics = await asyncio.to_thread(_metrics, ready)
    files = {
        one["task_id"]: json.loads(one["body"])["data"].get("result", {}).get("resources", [])
        for one in deliveries.all
    }
    late = sorted(audit.late["modellix"])
    return {
        "tasks": tasks,
        **summary(audit),
        "archived": sum(all(file["archived"] for file in of_one) for of_one in files.values()),
        "submitted_in_s": round(submitted_s),
        "tries_per_submit": round(sum(sent.tries for sent in flow.sent) / tasks, 2),
        "late_p50_s": round(late[len(late) // 2], 1),
        "late_max_s": round(late[-1], 1),
        **metrics,
    }


def _metrics(ready: dict[str, str]) -> dict[str, dict[str, float]]:
    """Read what CloudWatch counted of each function so far."""
    session = boto3.Session(
        region_name=ready["aws_region"], aws_access_key_id="test", aws_secret_access_key="test"
    )
    formation, cloudwatch = (
        session.client(name, endpoint_url=ready["aws_endpoint_url"])
        for name in ("cloudformation", "cloudwatch")
    )
    read: dict[str, dict[str, float]] = {}
    for figure, metric, statistic in (
        ("throttled", "Throttles", "Sum"),
        ("events_dropped", "AsyncEventsDropped", "Sum"),
        ("oldest_event_ms", "AsyncEventAge", "Maximum"),
    ):
        read[figure] = {}
        for function in FUNCTIONS:
            resource = formation.describe_stack_resource(
                StackName=ready["stack"], LogicalResourceId=f"{function.capitalize()}Function"
            )
            name = resource["StackResourceDetail"]["PhysicalResourceId"]
            points = cloudwatch.get_metric_statistics(
                Namespace="AWS/Lambda",
                MetricName=metric,
                Dimensions=[{"Name": "FunctionName", "Value": name}],
                StartTime=time.time() - 7200,
                EndTime=time.time() + 60,
                Period=86_400,
                Statistics=[statistic],
            )["Datapoints"]
            values = [point[statistic] for point in points]
            read[figure][function] = round(max(values, default=0) if statistic == "Maximum" else sum(values))
    return read
