"""The only file that names concrete classes.

One `App` holds every object of a deployment, each built once. Over 400 lines, for it is one list.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cached_property
from typing import Any, Self

import boto3
from aws_lambda_powertools import Logger, Metrics
from botocore.config import Config

from taskhook.adapters.aws.lambdas import LambdaArchiver, LambdaWake
from taskhook.adapters.aws.s3 import CLIENT, S3Archive
from taskhook.adapters.aws.secrets import DEPLOYMENT_KEY, StackSecret, StoredKey
from taskhook.adapters.aws.telemetry import LogReporter
from taskhook.adapters.aws.webhook_urls import SignedWebhookUrls
from taskhook.adapters.clock import SystemClock
from taskhook.adapters.dynamodb.callers import DynamoCallers
from taskhook.adapters.dynamodb.control import DynamoControl
from taskhook.adapters.dynamodb.tasks import DynamoTasks
from taskhook.adapters.http.callbacks import AiohttpCallbacks
from taskhook.adapters.http.media import AiohttpMediaProbe
from taskhook.adapters.http.originals import AiohttpOriginals
from taskhook.adapters.http.vendor import HttpTaskApi
from taskhook.adapters.http.vendor_wire import trust
from taskhook.archive.copy import ArchivePorts
from taskhook.core.errors import OutOfTimeError
from taskhook.core.ports import (
    ATTEMPT_TIME,
    ApiKey,
    Archive,
    Archiver,
    CallbackSender,
    Clock,
    MediaProbe,
    Originals,
    Reporter,
    TaskApi,
    Wake,
    WebhookUrls,
)
from taskhook.core.rate_limit import Allowance
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import EXPIRY_GRACE
from taskhook.poller.work import PollerPorts, Rules
from taskhook.settings import CallbackLatency, CallbackTargets, FirstPoll, MediaChecks, Settings, Switch
from taskhook.submit.media import MediaInspection
from taskhook.submit.payment import PaymentPorts
from taskhook.submit.submit import AdmissionPorts
from taskhook.submit.vendor_webhook import WebhookPorts
from taskhook.tasks.account import Account
from taskhook.vendors import VENDORS
from taskhook.vendors.modellix import MODELLIX

_AWS_THREADS = 32
# How long one call of AWS may take: each try its time to connect and its time without a byte, and a wait of
# up to a second between two tries. tests/unit/test_times.py adds them up for every path of every function.
CONNECT_S, READ_S, TRIES = 1, 2, 2
WAKE_READ_S = 1  # in a single try: there is the tick
# For what a request of the API does once it is known whose it is, submits apart.
API_TIME = timedelta(seconds=12)
TEST_TIME = timedelta(seconds=5)  # of an attempt at a receiver under test


class App:
    """Every object of a deployment, by name. `overrides` take the place of any, and what uses it gets it.

    Over 300 lines, for it is a list: parted, it would say in two places what is made of what. Raises
    TypeError for an override that no object is named by.
    """

    def __init__(self, settings: Settings, **overrides: Any) -> None:
        for name, given in overrides.items():
            if not isinstance(vars(App).get(name), cached_property):
                raise TypeError(f"App has no {name!r} that could be overridden")
            self.__dict__[name] = given  # a cached property gives what stands under its name
        self.settings = settings

    def built(self, *names: str) -> Self:
        """Build what these names stand for, with all that it is made of.

        At Lambda's init, where the processor is whole.
        """
        for name in names:
            getattr(self, name)
        return self

    # --- running ----------------------------------------------------------------------------------

    @cached_property
    def runner(self) -> asyncio.Runner:
        """One event loop for as long as the function stays warm.

        Clients belong to the loop that made them.
        """
        kept = asyncio.Runner()
        kept.get_loop().set_default_executor(ThreadPoolExecutor(_AWS_THREADS, thread_name_prefix="aws"))
        return kept

    def run[T](self, coroutine: Coroutine[Any, Any, T], *, limit: timedelta | None = API_TIME) -> T:
        """Run a use case to its end, or for `limit`. Raises OutOfTimeError where that is over."""

        async def limited() -> T:
            async with asyncio.timeout(limit.total_seconds() if limit is not None else None):
                return await coroutine

        try:
            return self.runner.run(limited())
        except TimeoutError as error:
            raise OutOfTimeError("no answer in time") from error

    # --- time, log, metrics -----------------------------------------------------------------------

    @cached_property
    def clock(self) -> Clock:
        """The machine's clock."""
        return SystemClock()

    @cached_property
    def logger(self) -> Logger:
        """JSON lines in the function's log group."""
        # The stubs lack it; a name such as Task-6 says nothing.
        logging.logAsyncioTasks = False  # type: ignore[attr-defined]
        logger = Logger(service="taskhook", location=None, use_rfc3339=True)
        logger.remove_keys(["service"])  # the same in each line, and each byte of a line is paid for
        return logger

    @cached_property
    def metrics(self) -> Metrics:
        """Outcomes, counted in the embedded metric format; each stack has its own."""
        return Metrics(namespace="taskhook", service=self.settings.stack_name)

    def flush_metrics(self) -> None:
        """Write what was counted; nothing where nothing was, so that an idle tick costs no metric."""
        if self.metrics.metric_set:
            self.metrics.flush_metrics()

    @cached_property
    def reporter(self) -> Reporter:
        """Log and metrics, for the use cases."""
        return LogReporter(self.logger, self.metrics)

    # --- tables and keys --------------------------------------------------------------------------

    @cached_property
    def dynamodb(self) -> Any:
        """The client of both tables."""
        return self._client("dynamodb")

    @cached_property
    def tasks(self) -> DynamoTasks:
        """The tasks and their indexes."""
        own = self.settings
        task_age = max(self.rules.task_age_at(vendor) for vendor in VENDORS.values())
        kept = own.max_queue_age + task_age + EXPIRY_GRACE + own.retention
        return DynamoTasks(
            self.dynamodb, own.tasks_table, clock=self.clock, reporter=self.reporter, requests_kept=kept
        )

    @cached_property
    def control(self) -> DynamoControl:
        """What the invocations share beside the tasks: leadership, admission, budget, rates of deliveries."""
        return DynamoControl(self.dynamodb, self.settings.tasks_table, clock=self.clock)

    @cached_property
    def callers(self) -> DynamoCallers:
        """The callers."""
        return DynamoCallers(
            self.dynamodb, self.settings.callers_table, clock=self.clock, deployment_key=self.deployment_key
        )

    @cached_property
    def secret(self) -> StackSecret:
        """The keys: the vendor's, and the deployment's own."""
        return StackSecret(self._client("secretsmanager"), self.settings.keys_secret)

    @cached_property
    def deployment_key(self) -> ApiKey:
        """The random material from which this deployment derives its own keys."""
        return StoredKey(self.secret, DEPLOYMENT_KEY)

    @cached_property
    def vendor_keys(self) -> Mapping[str, ApiKey]:
        """The vendors' API keys, by vendor."""
        return {name: StoredKey(self.secret, name) for name in VENDORS}

    # --- the vendors ------------------------------------------------------------------------------

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """The authorities that vouch for vendors, read once for all of them."""
        return trust()

    @cached_property
    def vendors(self) -> Mapping[str, TaskApi]:
        """The vendors, by name."""
        origins, keys = self.settings.vendor_origins, self.vendor_keys
        return {
            name: HttpTaskApi(origins.get(name, vendor.origin), keys[name], vendor=vendor, tls=self.tls)
            for name, vendor in VENDORS.items()
        }

    @cached_property
    def allowances(self) -> Mapping[str, Allowance]:
        """How many requests to each vendor this process has leave for."""
        return {
            name: Allowance(self.control, name, self.rules.requests_to(api.vendor), admission=self.control)
            for name, api in self.vendors.items()
        }

    @cached_property
    def account(self) -> Account:
        """The account at Modellix, and what it said last."""
        return Account(
            vendor=self.vendors[MODELLIX.name], allowance=self.allowances[MODELLIX.name], clock=self.clock
        )

    @cached_property
    def webhook_urls(self) -> WebhookUrls | None:
        """The addresses for the vendor's webhooks.

        None where they are switched off, or would be acted on by the tick only.
        """
        if (
            self.settings.vendor_webhooks is Switch.OFF
            or self.settings.callback_latency is CallbackLatency.ECONOMY
        ):
            return None
        return SignedWebhookUrls(self.settings.public_url, self.deployment_key)

    # --- callers' URLs ----------------------------------------------------------------------------

    @cached_property
    def targets(self) -> TargetPolicy:
        """Where requests to callers' URLs may go."""
        return TargetPolicy(
            own_origins=(self.settings.public_url, self.settings.api_url),
            relaxed=self.settings.callback_targets is CallbackTargets.ANY,
        )

    @cached_property
    def callbacks(self) -> CallbackSender:
        """The sender of callbacks."""
        return AiohttpCallbacks(self.targets, limit=ATTEMPT_TIME)

    @cached_property
    def test_callbacks(self) -> CallbackSender:
        """The sender of samples, whose attempts are short: the submit function waits for them."""
        return AiohttpCallbacks(self.targets, limit=TEST_TIME)

    @cached_property
    def media_probe(self) -> MediaProbe:
        """The probe of media, with its parser started."""
        probe = AiohttpMediaProbe(self.targets, self.reporter)
        probe.start()
        return probe

    # --- the other functions, and the archive -----------------------------------------------------

    @cached_property
    def wake(self) -> Wake | None:
        """The way to start the poller; None in the economy mode, where the tick is enough."""
        if self.settings.callback_latency is CallbackLatency.ECONOMY:
            return None
        return self.wake_of(self.settings.poll_function)

    @cached_property
    def wake_of(self) -> Callable[[str], Wake]:
        """The way to start a poll function, by its name."""
        client = self._client("lambda", tries=1, read_s=WAKE_READ_S)
        return lambda function: LambdaWake(client, function, self.reporter)

    @cached_property
    def archiver(self) -> Archiver | None:
        """The way to have results archived; None where they are not."""
        if not self.settings.archive_function:
            return None
        wakes = (
            None
            if self.settings.callback_latency is CallbackLatency.ECONOMY
            else self.settings.aws_lambda_function_name
        )
        return LambdaArchiver(
            self._client("lambda", tries=1), self.settings.archive_function, self.reporter, wakes=wakes
        )

    @cached_property
    def archive(self) -> Archive | None:
        """Where results are kept; None where they are not."""
        if not self.settings.results_bucket:
            return None
        return S3Archive(
            self._client("s3", connect_s=20, read_s=20, tries=3, **CLIENT), self.settings.results_bucket
        )

    @cached_property
    def originals(self) -> Originals:
        """The vendor's result files."""
        return AiohttpOriginals(self.targets)

    # --- what each use case takes -----------------------------------------------------------------

    @cached_property
    def inspection(self) -> MediaInspection | None:
        """How media are looked at before a task is taken; None where the deployment does not want it."""
        checks = self.settings.media_checks
        return (
            None
            if checks is MediaChecks.OFF
            else MediaInspection(probe=self.media_probe, enforce=checks is MediaChecks.ENFORCE)
        )

    @cached_property
    def payment(self) -> PaymentPorts:
        """What it takes to pay for a task."""
        return PaymentPorts(
            tasks=self.tasks,
            vendors=self.vendors,
            webhook_urls=self.webhook_urls,
            clock=self.clock,
            reporter=self.reporter,
            retention=self.settings.retention,
        )

    @cached_property
    def admitting(self) -> AdmissionPorts:
        """What stands between a submit and the vendor."""
        return AdmissionPorts(
            queue=self.tasks,
            admission=self.control,
            allowances=self.allowances,
            leadership=self.control,
            wake=self.wake,
            max_queued=self.settings.max_queued,
            spent=self.control,
            models=self.settings.open_models,
            keys=self.vendor_keys,
        )

    @cached_property
    def vendor_webhooks(self) -> WebhookPorts | None:
        """What it takes to check a vendor webhook; None where none are asked for."""
        if self.webhook_urls is None or self.wake is None:
            return None
        return WebhookPorts(
            webhook_urls=self.webhook_urls,
            tasks=self.tasks,
            vendors=self.vendors,
            leadership=self.control,
            allowances=self.allowances,
            admission=self.control,
            wake=self.wake,
            clock=self.clock,
            reporter=self.reporter,
            looked_at={},
        )

    @cached_property
    def rules(self) -> Rules:
        """What the deployment decided about polling."""
        own = self.settings
        return Rules(
            retention=own.retention,
            max_task_age=own.max_task_age,
            max_queue_age=own.max_queue_age,
            requests_per_minute=own.requests_per_minute,
            long_poll=own.long_poll is Switch.ON,
            immediate=own.first_poll is FirstPoll.IMMEDIATE,
            leads=own.callback_latency is CallbackLatency.FAST,
            archives_at_once=own.archives_at_once,
            origin=own.public_url if own.results_bucket else None,
        )

    @cached_property
    def poller(self) -> PollerPorts:
        """The ports of the poller."""
        return PollerPorts(
            tasks=self.tasks,
            work=self.tasks,
            leadership=self.control,
            admission=self.control,
            budget=self.control,
            vendors=self.vendors,
            webhook_urls=self.webhook_urls,
            callbacks=self.callbacks,
            callers=self.callers,
            clock=self.clock,
            reporter=self.reporter,
            archiver=self.archiver,
        )

    def archiving(self, wakes: str | None) -> ArchivePorts:
        """What it takes to archive; `wakes` is the function that waits for it."""
        assert self.archive is not None, (  # noqa: S101
            "the archive function exists where results are archived, and nowhere else"
        )
        return ArchivePorts(
            tasks=self.tasks,
            archive=self.archive,
            originals=self.originals,
            wake=self.wake_of(wakes) if wakes else None,
            clock=self.clock,
            reporter=self.reporter,
        )

    # --- AWS --------------------------------------------------------------------------------------

    @cached_property
    def aws(self) -> boto3.Session:
        """The session that all clients come from."""
        return boto3.Session()

    def _client(
        self,
        service: Any,
        *,
        tries: int = TRIES,
        connect_s: int = CONNECT_S,
        read_s: int = READ_S,
        **more: Any,
    ) -> Any:
        config = Config(
            connect_timeout=connect_s,
            read_timeout=read_s,
            retries={"mode": "standard", "total_max_attempts": tries},
            max_pool_connections=_AWS_THREADS,
            tcp_keepalive=True,
            # Worked out anew for each request, a long name and a look at what the service looks at too are an
            # eighth of a submit.
            user_agent="taskhook",
            parameter_validation=False,
            **more,
        )
        return self.aws.client(service, config=config)
