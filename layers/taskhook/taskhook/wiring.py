"""The only file that names concrete classes. Each is built once, when first asked for; nothing happens on import."""

import asyncio
import logging
import os
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools import Logger, Metrics
from botocore.config import Config
from botocore.session import Session

from taskhook.adapters.aws.lambdas import LambdaArchiver, LambdaWake
from taskhook.adapters.aws.secrets import DEPLOYMENT_KEY, MODELLIX, StackSecret, StoredKey
from taskhook.adapters.aws.telemetry import LogReporter
from taskhook.adapters.aws.webhook_urls import HookUrls
from taskhook.adapters.clock import SystemClock
from taskhook.adapters.dynamodb.callers import DynamoCallers
from taskhook.adapters.dynamodb.tasks import DynamoTasks
from taskhook.adapters.http.vendor import ModellixApi
from taskhook.core.errors import StoreUnavailableError
from taskhook.core.ports import ATTEMPT_TIME, Archive, CallbackSender, MediaProbe, Reply, Reporter, Wake
from taskhook.core.rate_limit import Allowance
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import HARD_STOP
from taskhook.settings import CallbackLatency, CallbackTargets, FirstPoll, MediaChecks, Settings, Switch
from taskhook.submit.media import Inspector
from taskhook.submit.payment import Payer
from taskhook.submit.submit import Door

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

    from taskhook.archive.copy import Desk
    from taskhook.poller.work import Rules, World
    from taskhook.submit.vendor_webhook import HintDesk
    from taskhook.tasks.account import Account

_AWS_THREADS = 32
# How long one call of AWS may take: each try its time to connect and its time without a byte, and a wait of up to a second
# between two tries. tests/unit/test_times.py adds them up for every path of every function.
CONNECT_S, READ_S, TRIES = 1, 2, 2
WAKE_READ_S = 1  # in a single try: there is the tick
API_TIME = timedelta(seconds=12)  # for what a request of the API does once it is known whose it is, submits apart
_TEST_TIME = timedelta(seconds=5)  # of an attempt at a receiver under test


@cache
def settings() -> Settings:
    """Read the environment. Raises `pydantic.ValidationError` naming what is missing."""
    return Settings.of(os.environ)


@cache
def runner() -> asyncio.Runner:
    """Keep one event loop for as long as the function stays warm: clients belong to the loop that made them."""
    kept = asyncio.Runner()
    kept.get_loop().set_default_executor(ThreadPoolExecutor(_AWS_THREADS, thread_name_prefix="aws"))
    return kept


def run[T](coroutine: Coroutine[Any, Any, T], *, limit: timedelta | None = API_TIME) -> T:
    """Run a use case to its end, or for `limit`. Raises StoreUnavailableError where that is over."""

    async def limited() -> T:
        async with asyncio.timeout(limit.total_seconds() if limit is not None else None):
            return await coroutine

    try:
        return runner().run(limited())
    except TimeoutError as error:
        raise StoreUnavailableError("no answer in time") from error


@cache
def logger() -> Logger:
    """Write JSON lines to the function's log group."""
    logging.logAsyncioTasks = False  # type: ignore[attr-defined]  # the stubs lack it; a name such as Task-6 tells nobody anything
    return Logger(service="taskhook", location=None, use_rfc3339=True)


@cache
def metrics() -> Metrics:
    """Count outcomes, in the embedded metric format; each stack has its own."""
    return Metrics(namespace="taskhook", service=settings().stack_name)


def flush_metrics() -> None:
    """Write what was counted; nothing where nothing was, so that an idle tick costs no metric."""
    if metrics().metric_set:
        metrics().flush_metrics()


@cache
def reporter() -> Reporter:
    """Tell outcomes to log and metrics."""
    return LogReporter(logger(), metrics())


@cache
def clock() -> SystemClock:
    """The machine's clock."""
    return SystemClock()


@cache
def tasks() -> DynamoTasks:
    """The tasks, their indexes and the lease."""
    own = settings()
    return DynamoTasks(
        _dynamodb(),
        own.tasks_table,
        clock=clock(),
        reporter=reporter(),
        requests_kept=own.max_queue_age + own.max_task_age + HARD_STOP + own.retention,
    )


@cache
def callers() -> DynamoCallers:
    """The callers."""
    return DynamoCallers(_dynamodb(), settings().callers_table, clock=clock(), deployment_key=deployment_key())


@cache
def secret() -> StackSecret:
    """The keys: the vendor's, and the deployment's own."""
    return StackSecret(_client("secretsmanager"), settings().keys_secret)


def vendor_key() -> StoredKey:
    """The vendor's API key."""
    return StoredKey(secret(), MODELLIX)


def deployment_key() -> StoredKey:
    """The random material from which this deployment derives its own keys."""
    return StoredKey(secret(), DEPLOYMENT_KEY)


@cache
def vendor() -> ModellixApi:
    """The vendor."""
    return ModellixApi(settings().vendor_url, vendor_key())


@cache
def hooks() -> HookUrls | None:
    """The addresses for the vendor's hints; None where hints are switched off, or nobody could act on them before the tick."""
    if settings().hints is Switch.OFF or settings().callback_latency is CallbackLatency.ECONOMY:
        return None
    return HookUrls(settings().public_url, deployment_key())


@cache
def callbacks() -> CallbackSender:
    """The sender of callbacks."""
    return _LateCallbacks()


@cache
def receiver_tests() -> CallbackSender:
    """The sender of samples, whose attempts are short: the submit function waits for them."""
    return _LateCallbacks(limit=_TEST_TIME)


class _LateCallbacks:
    """`CallbackSender` that loads aiohttp with its first attempt: a third of a cold start, and an idle tick sends nothing."""

    def __init__(self, limit: timedelta | None = None) -> None:
        self._limit = limit  # of an attempt; None: a callback's
        self._sender: CallbackSender | None = None

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send one attempt."""
        if self._sender is None:
            from taskhook.adapters.http.callbacks import AiohttpCallbacks  # noqa: PLC0415  # see above

            self._sender = AiohttpCallbacks(targets(), limit=self._limit or ATTEMPT_TIME)
        return await self._sender.send(url, headers, body)

    async def close(self) -> None:
        """Close what is open."""
        if self._sender is not None:
            await self._sender.close()


@cache
def media_probe() -> MediaProbe:
    """The probe of media; aiohttp is loaded here, where something is looked at."""
    from taskhook.adapters.http.media import AiohttpMediaProbe  # noqa: PLC0415  # a submit that looks at nothing never pays for it

    return AiohttpMediaProbe(targets(), reporter())


def inspector() -> Inspector | None:
    """Who looks at media; None where the deployment does not want it."""
    checks = settings().media_checks
    return None if checks is MediaChecks.OFF else Inspector(probe=media_probe, enforce=checks is MediaChecks.ENFORCE)


@cache
def targets() -> TargetPolicy:
    """Where requests to callers' URLs may go."""
    return TargetPolicy(
        own_origins=(settings().public_url, settings().api_url),
        relaxed=settings().callback_targets is CallbackTargets.ANY,
    )


@cache
def wake() -> Wake | None:
    """The way to start the poller; None in the economy mode, where the tick is enough."""
    if settings().callback_latency is CallbackLatency.ECONOMY:
        return None
    return LambdaWake(_client("lambda", tries=1, read_s=WAKE_READ_S), settings().poll_function, reporter())


def payer() -> Payer:
    """What it takes to pay for a task."""
    return Payer(tasks=tasks(), vendor=vendor(), hooks=hooks(), clock=clock(), reporter=reporter(), retention=settings().retention)


@cache
def allowance() -> Allowance:
    """Say how many requests to the vendor this process has leave for."""
    return Allowance(tasks(), settings().requests_per_minute)


def door() -> Door:
    """What stands between a submit and the vendor."""
    return Door(
        queue=tasks(),
        gates=tasks(),
        allowance=allowance(),
        lease=tasks(),
        wake=wake(),
        max_queued=settings().max_queued,
    )


@cache
def account() -> "Account":
    """The account at the vendor, and what it said last."""
    from taskhook.tasks.account import Account  # noqa: PLC0415  # poll never pays for it

    return Account(vendor=vendor(), allowance=allowance(), clock=clock())


@cache
def hint_desk() -> "HintDesk | None":
    """What it takes to check a hint; None where there are none."""
    from taskhook.submit.vendor_webhook import HintDesk  # noqa: PLC0415  # submits never pay for it

    checked, woken = hooks(), wake()
    if checked is None or woken is None:
        return None
    return HintDesk(
        hooks=checked,
        tasks=tasks(),
        vendor=vendor(),
        lease=tasks(),
        allowance=allowance(),
        wake=woken,
        clock=clock(),
        reporter=reporter(),
        looked_at={},
    )


@cache
def archive() -> Archive | None:
    """Where results are kept; None where they are not. S3 is loaded here, and nowhere else."""
    if not settings().results_bucket:
        return None
    from taskhook.adapters.aws.s3 import CLIENT, S3Archive  # noqa: PLC0415  # nobody else pays for it

    return S3Archive(_client("s3", connect_s=20, read_s=20, tries=3, **CLIENT), settings().results_bucket)


@cache
def archiver() -> LambdaArchiver | None:
    """The way to have results archived; None where they are not."""
    if not settings().archive_function:
        return None
    wakes = None if settings().callback_latency is CallbackLatency.ECONOMY else os.environ["AWS_LAMBDA_FUNCTION_NAME"]
    return LambdaArchiver(_client("lambda", tries=1), settings().archive_function, reporter(), wakes=wakes)


@cache
def archive_desk(wakes: str | None) -> "Desk":
    """What it takes to archive; `wakes` is the function that waits for it."""
    from taskhook.adapters.http.originals import AiohttpOriginals  # noqa: PLC0415  # nobody else pays for it
    from taskhook.archive.copy import Desk  # noqa: PLC0415

    kept = archive()
    assert kept is not None, "the archive function exists where results are archived, and nowhere else"  # noqa: S101
    return Desk(
        tasks=tasks(),
        archive=kept,
        originals=AiohttpOriginals(targets()),
        wake=LambdaWake(_client("lambda", tries=1, read_s=WAKE_READ_S), wakes, reporter()) if wakes else None,
        clock=clock(),
        reporter=reporter(),
    )


def poll_rules() -> "Rules":
    """What the deployment decided about polling."""
    from taskhook.poller.work import Rules  # noqa: PLC0415  # submit never pays for it

    return Rules(
        retention=settings().retention,
        max_task_age=settings().max_task_age,
        max_queue_age=settings().max_queue_age,
        requests_per_minute=settings().requests_per_minute,
        long_poll=settings().long_poll is Switch.ON,
        immediate=settings().first_poll is FirstPoll.IMMEDIATE,
        linger=settings().callback_latency is CallbackLatency.FAST,
        origin=settings().public_url if settings().results_bucket else None,
    )


@cache
def poll_world() -> "World":
    """The ports of the loop."""
    from taskhook.poller.work import World  # noqa: PLC0415  # submit never pays for it

    return World(
        tasks=tasks(),
        work=tasks(),
        lease=tasks(),
        gates=tasks(),
        budget=tasks(),
        vendor=vendor(),
        hooks=hooks(),
        callbacks=callbacks(),
        callers=callers(),
        clock=clock(),
        reporter=reporter(),
        archiver=archiver(),
    )


@cache
def _dynamodb() -> "DynamoDBClient":
    client: DynamoDBClient = _client("dynamodb")
    return client


@cache
def _aws() -> Session:
    """What `boto3.client` stands on, and makes the same clients; boto3 itself is a twelfth of a cold start, for S3 transfers."""
    return Session()


def _client(service: str, *, tries: int = TRIES, connect_s: int = CONNECT_S, read_s: int = READ_S, **more: Any) -> Any:
    config = Config(
        connect_timeout=connect_s,
        read_timeout=read_s,
        retries={"mode": "standard", "total_max_attempts": tries},
        max_pool_connections=_AWS_THREADS,
        tcp_keepalive=True,
        # Worked out anew for each request, a long name and a look at what the service looks at too are an eighth of a submit.
        user_agent="taskhook",
        parameter_validation=False,
        **more,
    )
    return _aws().create_client(service, config=config)
