"""What operators are shown: alarms and dashboard as deployed, and the metrics that these look at."""

import json
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from tests import watched
from tests.e2e.conftest import ALARM_EMAIL, ROOT, Inbox, Stack, User, Vendor, eventually
from tests.progress import Progress


@pytest.fixture(scope="module")
def account(stack: Stack) -> boto3.Session:
    """The emulated account, as its administrator."""
    return boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name=stack.aws_region)


def client(account: boto3.Session, service: str, stack: Stack) -> Any:
    """Open a client on the account."""
    return account.client(service, endpoint_url=stack.aws_endpoint_url)


def physical(account: boto3.Session, stack: Stack, logical: str) -> str:
    """Give the name that a resource was deployed under."""
    cloudformation = client(account, "cloudformation", stack)
    described = cloudformation.describe_stack_resource(StackName=stack.stack, LogicalResourceId=logical)
    name: str = described["StackResourceDetail"]["PhysicalResourceId"]
    return name


@pytest.fixture(scope="module")
def alarms(account: boto3.Session, stack: Stack) -> list[dict[str, Any]]:
    """The alarms as they are deployed."""
    found: list[dict[str, Any]] = client(account, "cloudwatch", stack).describe_alarms()["MetricAlarms"]
    return found


@pytest.fixture(scope="module")
def dashboard(account: boto3.Session, stack: Stack) -> dict[str, Any]:
    """The dashboard as it is deployed."""
    shown = client(account, "cloudwatch", stack).get_dashboard(
        DashboardName=physical(account, stack, "Board")
    )
    body: dict[str, Any] = json.loads(shown["DashboardBody"])
    return body


def written(account: boto3.Session, stack: Stack) -> Iterator[watched.Metric]:
    """List the metrics of this stack that its log lines hold."""
    pages = client(account, "logs", stack).get_paginator("filter_log_events")
    for function in ("SubmitLogs", "PollLogs"):
        for page in pages.paginate(logGroupName=physical(account, stack, function)):
            lines = [
                json.loads(event["message"])
                for event in page["events"]
                if event["message"].startswith('{"_aws"')
            ]
            for line in lines:
                assert line["service"] == stack.stack
                for group in line["_aws"]["CloudWatchMetrics"]:
                    yield from ((group["Namespace"], metric["Name"]) for metric in group["Metrics"])


def bring_to_its_last_attempt(account: boto3.Session, stack: Stack, task_id: str) -> None:
    """Let a waiting callback look as it does three days later, one attempt before the end."""
    client(account, "dynamodb", stack).update_item(
        TableName=physical(account, stack, "Tasks"),
        Key={"task_id": {"S": task_id}},
        UpdateExpression="SET attempts = :nine, nonce = :fresh",
        ConditionExpression="attempts BETWEEN :one AND :eight",
        ExpressionAttributeValues={
            ":nine": {"N": "9"},
            ":one": {"N": "1"},
            ":eight": {"N": "8"},
            ":fresh": {"S": "three days later"},
        },
    )


def tick(account: boto3.Session, stack: Stack) -> None:
    """Let the clock strike early: an invocation ends, and writes its metrics, when it has handed over."""
    tick = (ROOT / "events/tick.json").read_bytes()
    function = physical(account, stack, "PollFunction")
    client(account, "lambda", stack).invoke(FunctionName=function, InvocationType="Event", Payload=tick)


def forget_webhooks(account: boto3.Session, stack: Stack) -> None:
    """Let the poller ask by itself, as where the vendor has not called a true webhook yet."""
    client(account, "dynamodb", stack).update_item(
        TableName=physical(account, stack, "Tasks"),
        Key={"task_id": {"S": "leadership"}},
        UpdateExpression="SET webhook_at = :never",
        ExpressionAttributeValues={":never": {"N": "0"}},
    )


def test_alarms_tell_the_address_that_was_given(
    account: boto3.Session, stack: Stack, alarms: list[dict[str, Any]]
) -> None:
    """All of them, and no other address."""
    topic = physical(account, stack, "AlarmTopic")
    subscriptions = client(account, "sns", stack).list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
    assert [(one["Protocol"], one["Endpoint"]) for one in subscriptions] == [("email", ALARM_EMAIL)]
    assert len(alarms) == 11
    assert {tuple(alarm["AlarmActions"]) for alarm in alarms} == {(topic,)}


def test_an_alarm_looks_at_this_stack_alone(
    account: boto3.Session, stack: Stack, alarms: list[dict[str, Any]]
) -> None:
    """Its functions, its table, and what it writes under its own name: others live in the same account."""
    own = {physical(account, stack, name) for name in ("SubmitFunction", "PollFunction", "Tasks")} | {
        stack.stack
    }
    assert {alarm["Dimensions"][0]["Value"] for alarm in alarms} == own


def test_every_metric_that_is_watched_is_written(
    account: boto3.Session,
    stack: Stack,
    user: User,
    vendor: Vendor,
    inbox: Inbox,
    marker: str,
    alarms: Any,
    dashboard: Any,
) -> None:
    """By its very name, once what it counts has happened; or it is AWS's own."""
    for fault in ("402", "503"):
        with vendor.fault(fault):
            assert user.submit(f"{marker}-{fault}", callback_url=inbox.url(marker)).status_code == 502
    with vendor.fault("failed_message"):
        user.ended(user.accepted(f"{marker}-failed&task_seconds=0.1", callback_url=inbox.url(marker)))
    inbox.behave(f"{marker}-down", 500, times=None)
    with vendor.fault("500", on="task"):
        vendor.inject("429", on="task", headers={"Retry-After": "1"})
        # Where no webhook is waited for, and the task runs for long enough, the faults are met by the poller.
        forget_webhooks(account, stack)
        down = user.accepted(f"{marker}-down&task_seconds=10", callback_url=inbox.url(f"{marker}-down"))
        eventually(lambda: user.task(down)["callback"]["attempts"] >= 1)
    bring_to_its_last_attempt(account, stack, down)
    with vendor.fault("429", times=3, headers={"Retry-After": "1"}):
        queued = [
            user.accepted(f"{marker}-queued-{number}", callback_url=inbox.url(marker)) for number in range(2)
        ]
        eventually(lambda: any("upstream_task_id" in user.task(task_id) for task_id in queued))
    user.ended(down, callback="undelivered")
    for task_id in queued:
        user.ended(task_id)
    user.http.post(f"/api/v1/tasks/{queued[0]}/redeliver").raise_for_status()

    own = {
        metric
        for metric in watched.of_alarms(alarms) | watched.of_dashboard(dashboard)
        if not metric[0].startswith("AWS/")
    }
    assert {namespace for namespace, _ in own} == {"taskhook"}
    progress, missed = Progress(), own
    while missed and progress.goes_on(missed):
        tick(account, stack)
        time.sleep(2)
        missed = own - set(written(account, stack))
    assert missed == set()
