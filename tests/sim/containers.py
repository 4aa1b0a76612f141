"""Warm processes of the functions: real adapters over clients in memory, and what outlives invocations."""

import json
from collections.abc import Callable
from typing import Any

from taskhook.adapters.aws.lambdas import LambdaArchiver, LambdaWake
from taskhook.adapters.aws.s3 import S3Archive
from taskhook.adapters.aws.secrets import DEPLOYMENT_KEY, StackSecret, StoredKey
from taskhook.adapters.aws.webhook_urls import SignedWebhookUrls
from taskhook.adapters.dynamodb.callers import DynamoCallers
from taskhook.adapters.dynamodb.control import DynamoControl
from taskhook.adapters.dynamodb.tasks import DynamoTasks
from taskhook.core import ports
from taskhook.core.message import Json
from taskhook.settings import CallbackLatency, Settings, Switch
from taskhook.vendors import VENDORS
from taskhook.wiring import App
from tests.sim.bucket import MemoryS3
from tests.sim.deployment import CALLERS, ORIGIN, TASKS
from tests.sim.injector import FaultInjector
from tests.sim.table import MemoryDynamo, NewerVersion
from tests.world import MATERIAL

type Start = Callable[[str, Json], object]  # of a function, by its name, with an event


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
        keys = dict.fromkeys(VENDORS, "some_key") | {"deployment_key": MATERIAL}
        return {"SecretString": json.dumps(keys)}


def as_client(client: object) -> Any:
    """Take a client in memory for a real one."""
    return client


def own_key(injector: FaultInjector, name: str = DEPLOYMENT_KEY) -> Any:
    """Give the deployment's own key, or a vendor's, behind the injector."""
    return injector.port(StoredKey(StackSecret(as_client(SecretsClient()), "arn"), name), ports.ApiKey)


def start_container(
    injector: FaultInjector,
    settings: Settings,
    *,
    table: MemoryDynamo | NewerVersion,
    bucket: MemoryS3,
    start: Start,
    **ports_of_the_world: Any,
) -> App:
    """Start a process: every adapter is new, behind the injector; `ports_of_the_world` surround it."""
    clock, reporter = ports_of_the_world["clock"], ports_of_the_world["reporter"]
    stored = DynamoTasks(as_client(table), TASKS, clock=clock, reporter=reporter)
    shared = DynamoControl(as_client(table), TASKS, clock=clock)
    key, client = own_key(injector), as_client(LambdaClient(start))
    wake = injector.port(LambdaWake(client, "poll", reporter), ports.Wake)
    wakes = settings.callback_latency is CallbackLatency.FAST
    archiver = LambdaArchiver(client, "archive", reporter, wakes="poll" if wakes else None)
    directory = DynamoCallers(as_client(table), CALLERS, clock=clock, deployment_key=key)
    return App(
        settings,
        tasks=injector.port(stored, ports.TaskStore, ports.WorkIndex, ports.TaskHistory),
        control=injector.port(
            shared,
            *(ports.LeadershipStore, ports.AdmissionStore, ports.Budget, ports.DeliveryRate),
            ports.SpendStore,
        ),
        vendor_keys={name: own_key(injector, name) for name in VENDORS},
        callers=injector.port(directory, ports.CallerDirectory),
        webhook_urls=injector.port(SignedWebhookUrls(ORIGIN, key), ports.WebhookUrls)
        if settings.vendor_webhooks is Switch.ON
        else None,
        wake=wake if wakes else None,
        wake_of=lambda _function: wake,
        archiver=injector.port(archiver, ports.Archiver) if settings.results_bucket else None,
        archive=injector.port(S3Archive(as_client(bucket), "results"), ports.Archive),
        **ports_of_the_world,
    )
