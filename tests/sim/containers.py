"""Warm processes of the functions: the real adapters over clients in memory, and what stays between invocations."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from taskhook.adapters.aws.lambdas import LambdaArchiver, LambdaWake
from taskhook.adapters.aws.s3 import S3Archive
from taskhook.adapters.aws.secrets import DEPLOYMENT_KEY, StackSecret, StoredKey
from taskhook.adapters.aws.webhook_urls import HookUrls
from taskhook.adapters.dynamodb.callers import DynamoCallers
from taskhook.adapters.dynamodb.control import DynamoControl
from taskhook.adapters.dynamodb.tasks import DynamoTasks
from taskhook.core import ports
from taskhook.core.message import Json
from taskhook.core.rate_limit import Allowance
from taskhook.poller.long_poll import LongPollSupport
from tests.sim.bucket import MemoryS3
from tests.sim.deployment import CALLERS, ORIGIN, TASKS, Deployment
from tests.sim.injector import FaultInjector
from tests.sim.table import MemoryDynamo
from tests.world import MATERIAL

type Start = Callable[[str, Json], object]  # of a function, by its name, with an event


@dataclass
class Container:
    """A warm process: what it keeps between invocations."""

    tasks: Any
    control: Any
    callers: Any
    hooks: Any
    wake: Any
    archiver: Any
    archive: Any
    habits: LongPollSupport
    looked_at: dict[str, datetime]
    allowance: Allowance


class LambdaClient:
    """The client with which functions start each other."""

    def __init__(self, start: Start) -> None:
        self._start = start

    def invoke(self, **request: Any) -> Json:
        """Start a function on its own."""
        self._start(request["FunctionName"], json.loads(request["Payload"]))
        return {}


class SecretsClient:
    """The client that knows the stack's keys."""

    def get_secret_value(self, **_request: Any) -> Json:
        """Give the keys."""
        return {"SecretString": json.dumps({"modellix": "some_key", "deployment_key": MATERIAL})}


def as_client(client: object) -> Any:
    """Take a client in memory for a real one."""
    return client


def own_key(injector: FaultInjector) -> Any:
    """Give the deployment's own key, behind the injector."""
    return injector.port(StoredKey(StackSecret(as_client(SecretsClient()), "arn"), DEPLOYMENT_KEY), ports.ApiKey)


def start_container(
    injector: FaultInjector,
    deployment: Deployment,
    *,
    table: MemoryDynamo,
    bucket: MemoryS3,
    clock: Any,
    reporter: Any,
    start: Start,
) -> Container:
    """Start a process: every adapter is new, and behind the injector."""
    stored = DynamoTasks(as_client(table), TASKS, clock=clock, reporter=reporter)
    tasks = injector.port(stored, ports.TaskStore, ports.WorkIndex, ports.TaskHistory)
    shared = DynamoControl(as_client(table), TASKS, clock=clock)
    control = injector.port(shared, ports.Lease, ports.Gates, ports.Budget, ports.DeliveryRate)
    key = own_key(injector)
    hooks = injector.port(HookUrls(ORIGIN, key), ports.Hooks)
    client = as_client(LambdaClient(start))
    wake = injector.port(LambdaWake(client, "poll", reporter), ports.Wake)
    archiver = injector.port(LambdaArchiver(client, "archive", reporter, wakes="poll"), ports.Archiver)
    archive = injector.port(S3Archive(as_client(bucket), "results"), ports.Archive)
    found = DynamoCallers(as_client(table), CALLERS, clock=clock, deployment_key=key)
    directory = injector.port(found, ports.CallerDirectory)
    return Container(
        tasks,
        control,
        directory,
        hooks if deployment.hints else None,
        wake if deployment.wakes else None,
        archiver if deployment.archives else None,
        archive,
        LongPollSupport(),
        {},
        Allowance(control, deployment.requests_per_minute),
    )
