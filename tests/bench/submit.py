"""CPU of a warm submit in the real handler, beside a bare one: the same writes, one POST, no framework.

Both run in one process, in turns, against MiniStack and the vendor's emulator in processes of their own;
there is a leader, as in a busy deployment, so that the poller is not woken. All threads count. Each figure is
the median over the rounds.
"""

import asyncio
import contextlib
import http.client
import importlib
import inspect
import json
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3

from tests.bench.first_event import Context
from tests.bench.surroundings import surroundings
from tests.local import stack

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

type Event = dict[str, Any]


def bare(event: Event, dynamodb: "DynamoDBClient", vendor: str, key: str) -> Event:
    """Take a token of the budget, store the task, POST, store what came: what every submit has to do."""
    body, task_id, now = json.loads(event["body"]), f"tk_{uuid.uuid4().hex[:22]}", int(time.time() * 1000)
    dynamodb.update_item(
        TableName="Tasks",
        Key={"task_id": {"S": f"budget#{now // 6000}"}},
        UpdateExpression="ADD used :one SET expires_at = :end",
        ConditionExpression="attribute_not_exists(used) OR used <= :rest",
        ExpressionAttributeValues={
            ":one": {"N": "1"},
            ":rest": {"N": "9089"},
            ":end": {"N": str(now // 1000 + 3600)},
        },
    )
    request = json.dumps({name: body[name] for name in ("image_url", "video_url", "mode")})
    dynamodb.put_item(
        TableName="Tasks",
        Item={
            "task_id": {"S": task_id},
            "caller": {"S": "alice"},
            "model": {"S": "alibaba/wan2.2-animate-mix"},
            "request": {"S": request},
            "callback_url": {"S": body["callback_url"]},
            "reference": {"S": body["reference"]},
            "accepted_at": {"N": str(now)},
            "state": {"S": "submitting"},
            "listed": {"S": f"{now}_{task_id}"},
            "work": {"S": "watch"},
            "work_at": {"S": f"{now}_{task_id}"},
        },
        ConditionExpression="attribute_not_exists(task_id)",
    )
    connection = http.client.HTTPConnection(vendor, timeout=13)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", "/api/v1/alibaba/wan2.2-animate-mix", request, headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    dynamodb.update_item(
        TableName="Tasks",
        Key={"task_id": {"S": task_id}},
        UpdateExpression="SET #state = :state, upstream_task_id = :upstream, taken_at = :now",
        ExpressionAttributeNames={"#state": "state"},
        ExpressionAttributeValues={
            ":state": {"S": "watched"},
            ":upstream": {"S": answer["data"]["task_id"]},
            ":now": {"N": str(int(time.time() * 1000))},
        },
    )
    return {
        "statusCode": 200,
        "body": json.dumps({"code": 0, "message": "success", "data": {"task_id": task_id}}),
    }


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Let both serve the same event in turns, in a process that does nothing else."""
    del seed  # nothing here is drawn by lot
    print(inspect.getsource(bare), file=sys.stderr)
    pairs = asyncio.run(_measured(10 if quick else 25, 3 if quick else 21))
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    figures = {
        "cpu_vs_bare": round(statistics.median(ours / theirs for ours, theirs in pairs), 2),
        "cpu_ms": {"handler": round(ours * 1000, 2), "bare": round(theirs * 1000, 2)},
    }
    print(json.dumps(figures), file=sys.stderr, flush=True)
    return figures


async def _measured(requests: int, rounds: int) -> list[tuple[float, float]]:
    async with surroundings() as environment:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as function:
            return await asyncio.wrap_future(function.submit(_rounds, environment, requests, rounds))


def _rounds(environment: dict[str, str], requests: int, rounds: int) -> list[tuple[float, float]]:
    """Give the CPU seconds per request of both, by round."""
    os.environ.update(environment)
    dynamodb: DynamoDBClient = boto3.client("dynamodb")
    secret = boto3.client("secretsmanager").get_secret_value(SecretId=environment["KEYS_SECRET"])[
        "SecretString"
    ]
    key = json.loads(secret)["modellix"]
    until = int((datetime.now(UTC) + timedelta(hours=1)).timestamp() * 1000)
    dynamodb.put_item(
        TableName="Tasks",
        Item={"task_id": {"S": "leadership"}, "leader": {"S": "another"}, "until": {"N": str(until)}},
    )
    event = json.loads((stack.ROOT / "events/submit.json").read_text())
    vendor = urlsplit(environment["MODELLIX_VENDOR_URL"]).netloc
    with Path(os.devnull).open("w") as log, contextlib.redirect_stdout(log):
        ways: tuple[Callable[[], Event], ...] = (
            lambda: importlib.import_module("functions.submit.app").handler(event, Context(20_000)),
            lambda: bare(event, dynamodb, vendor, key),
        )
        for way in ways:
            _cpu(way, 5)
        pairs = []
        for turn in range(rounds):
            first, second = ways if turn % 2 else reversed(ways)
            took = _cpu(first, requests), _cpu(second, requests)
            pairs.append(took if turn % 2 else took[::-1])
    return pairs


def _cpu(way: Callable[[], Event], requests: int) -> float:
    began = time.process_time()
    for _ in range(requests):
        answer = way()
        assert answer["statusCode"] == 200, answer
    return (time.process_time() - began) / requests
