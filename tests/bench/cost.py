"""What a million tasks and an idle month cost: tasks in the embedded stack, by what AWS would bill.

At the template's sizes, or those that MEMORY in the environment names (`submit=512 poll=256`), under Lambda's
share of a processor wherever control groups can be written.

Counted: invocations and their reported milliseconds (the vendor takes 400 ms for a submit and 200 ms for a
poll; what a function that does nothing is reported with, 50 ms, is the emulator's own and taken off), write
units as DynamoDB returns them with indexes, read units from item sizes, bytes of log (kept for 14 days, not
compressed), names of metrics, bytes kept, and bytes that leave AWS: requests to vendor, media and receivers,
and answers through API Gateway. What TLS adds to those is reckoned (`prices.py`); callers and vendor keep
their connections to the API. Not in it are the packets' own headers (some 0.25 dollars a million, if AWS
bills them), cold starts, Secrets Manager's calls at them, and what is off unless asked for: alarms,
dashboard, tracing, archive.

By the clock: 100 tasks of two minutes always running are 2.16 million a month; one invocation leads, and
reads, all that time, and most of them run while the others are counted. Kept: a month. Prices: `prices.py`.

Beside it the field's alternatives, by the same prices: ten polls a task, callback accepted at once. The
durable function runs.
"""

import asyncio
import contextlib
import io
import json
import re
import secrets
import statistics
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil

from tests.bench import prices
from tests.bench.burst import Functions, memory_wanted
from tests.bench.lateness import Deliveries, running_stack
from tests.bench.prices import GB, MILLION
from tests.local import stack
from tests.local.emulator import size

RUNNING, TASK_S = 100, 120
PER_MONTH = RUNNING * prices.MONTH_S / TASK_S  # tasks
MEMORY_MB = {
    name: stack.template()["Resources"][f"{name.capitalize()}Function"]["Properties"]["MemorySize"]
    for name in ("submit", "poll")
} | memory_wanted()
SUBMIT_GB, POLL_GB = MEMORY_MB["submit"] / 1024, MEMORY_MB["poll"] / 1024
STANDING = RUNNING - 20  # run all the time while the others come and go
LONG = 500  # bytes of a URL
AT_ONCE = 2  # submits: each looks at two files, in processes of their own, and there are two cores
TRIES = 3
SENT = ("bytes", "messages", "connections")  # what leaves AWS
SHOWN = (
    "api",
    "requests",
    "submit",
    "poll",
    "writes",
    "reads",
    "logs",
    "metrics",
    "kept",
    "transfer",
    "fixed",
)
LOG_DAYS = stack.template()["Parameters"]["LogRetentionDays"]["Default"]
LOG_GB = prices.LOG_GB + prices.LOG_GB_MONTH * LOG_DAYS / 30
_SYSTEM = re.compile(r"^(START|END|REPORT) ")  # which the template's SystemLogLevel leaves out on AWS
_REPORT = re.compile(r"^REPORT .*\tDuration: ([0-9.]+) ms\tBilled")


@dataclass
class Counted:
    """What has been billed so far, or between two looks."""

    at: float
    units: Counter[str]
    invocations: Counter[str] = field(default_factory=Counter)
    milliseconds: Counter[str] = field(default_factory=Counter)
    log_bytes: Counter[str] = field(default_factory=Counter)
    metrics: set[str] = field(default_factory=set)
    peak_mb: dict[str, int] = field(default_factory=dict)

    def since(self, other: "Counted") -> "Counted":
        """Tell what came after another look."""
        pairs = ("units", "invocations", "milliseconds", "log_bytes")
        return Counted(
            at=self.at - other.at,
            metrics=self.metrics,
            peak_mb=self.peak_mb,
            **{name: getattr(self, name) - getattr(other, name) for name in pairs},
        )

    def sum(self, kind: str) -> float:
        """Add up units of one kind: `write`, `read`, `bytes`, `messages`, `connections`."""
        return sum(units for name, units in self.units.items() if name.startswith(kind))


class Account:
    """A stack that runs, its meter and its logs."""

    def __init__(
        self, ready: dict[str, str], meter: Path, deliveries: Deliveries, client: httpx.AsyncClient
    ) -> None:
        self.ready, self.deliveries, self.client = ready, deliveries, client
        self._meter, self._wire = meter, meter.with_name(f"{meter.name}.wire")
        session = boto3.Session(
            region_name=ready["aws_region"], aws_access_key_id="test", aws_secret_access_key="test"
        )
        self.aws: Callable[[str], Any] = lambda service: session.client(
            service, endpoint_url=ready["aws_endpoint_url"]
        )
        self._logged = Counted(at=0, units=Counter())  # by what has been read of the logs, up to
        self._read_to: dict[tuple[str, str], str] = {}
        self._emulators_ms = 0.0
        self._submitted = self._awaited = 0
        self.unanswered = 0

    async def look(self) -> Counted:
        """Read the meter and the logs."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> Counted:
        for group in self.aws("logs").describe_log_groups()["logGroups"]:
            name = (
                "submit"
                if "Submit" in group["logGroupName"]
                else "poll"
                if "Poll" in group["logGroupName"]
                else "empty"
            )
            for message in self._new_lines(group["logGroupName"]):
                self._count(name, message)
        logged = self._logged
        return Counted(
            at=time.monotonic(),
            units=Counter(json.loads(self._meter.read_text()) | json.loads(self._wire.read_text())),
            invocations=logged.invocations.copy(),
            milliseconds=logged.milliseconds.copy(),
            log_bytes=logged.log_bytes.copy(),
            metrics=set(logged.metrics),
            peak_mb=self._peaks(),
        )

    def _count(self, name: str, message: str) -> None:
        if not _SYSTEM.match(message):
            self._logged.log_bytes[name] += len(message.encode()) + 26  # CloudWatch's own share of an event
        if report := _REPORT.match(message):
            self._logged.invocations[name] += 1
            self._logged.milliseconds[name] += max(1, round(float(report[1]) - self._emulators_ms))
        elif message.startswith('{"_aws"'):
            [directive] = json.loads(message)["_aws"]["CloudWatchMetrics"]
            self._logged.metrics |= {metric["Name"] for metric in directive["Metrics"]}

    def _new_lines(self, group: str) -> Iterator[str]:
        """Read on in each of a group's streams; the emulator's search ends after 10,000 lines, untold."""
        logs = self.aws("logs")
        for page in logs.get_paginator("describe_log_streams").paginate(logGroupName=group):
            for stream in page["logStreams"]:
                where = group, stream["logStreamName"]
                while True:
                    on = {"nextToken": self._read_to[where]} if where in self._read_to else {}
                    events = logs.get_log_events(
                        logGroupName=where[0], logStreamName=where[1], startFromHead=True, **on
                    )
                    self._read_to[where] = events["nextForwardToken"]
                    if not events["events"]:
                        break
                    yield from (event["message"] for event in events["events"])

    async def get_ready(self) -> None:
        """Learn what the emulator adds to each invocation, slow the vendor, and serve what starts cold."""
        self._emulators_ms = await asyncio.to_thread(self._empty_invocation)
        for on, seconds in (("submit", prices.VENDOR_SUBMIT_S), ("task", prices.VENDOR_POLL_S)):
            fault = {"on": on, "fault": "slow", "times": MILLION, "seconds": seconds}
            (
                await self.client.post(f"{self.ready['upstream']}/_control/faults", json=fault)
            ).raise_for_status()
        await self.serve(2 * AT_ONCE, url_bytes=0, task_s=1)

    def _empty_invocation(self, times: int = 40) -> float:
        """Measure the milliseconds reported of a function that does nothing: what the account takes."""
        functions, role = self.aws("lambda"), _role(self, "empty")
        package = io.BytesIO()
        with zipfile.ZipFile(package, "w") as archive:
            archive.writestr("empty.py", "def handler(event, context):\n    return None\n")
        functions.create_function(
            FunctionName="empty",
            Runtime="python3.13",
            Role=role,
            Handler="empty.handler",
            Code={"ZipFile": package.getvalue()},
        )
        functions.get_waiter("function_active_v2").wait(FunctionName="empty")
        for _ in range(times):
            functions.invoke(FunctionName="empty")
        reports = [
            float(found[1]) for line in self._new_lines("/aws/lambda/empty") if (found := _REPORT.match(line))
        ]
        return statistics.median(reports)

    def _peaks(self) -> dict[str, int]:
        """Ask the system for the most memory that a process of each function has had."""
        peaks: Counter[str] = Counter()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                environment = process.environ()
                function = environment.get("AWS_LAMBDA_FUNCTION_NAME", "")
                if function and environment.get("AWS_ENDPOINT_URL") == self.ready["aws_endpoint_url"]:
                    [peak] = re.findall(
                        r"VmHWM:\s+([0-9]+) kB", Path(f"/proc/{process.pid}/status").read_text()
                    )
                    name = "submit" if "Submit" in function else "poll"
                    peaks[name] = max(peaks[name], round(int(peak) / 1024))
        return dict(peaks)

    async def ticked(self, times: int) -> Counted:
        """Wait until poll has been invoked so often; give what was counted by then."""
        async with asyncio.timeout(60.0 * times + 60):
            # A log gives no sign when it grows.
            while (counted := await self.look()).invocations["poll"] < times:  # noqa: ASYNC110
                await asyncio.sleep(2)
        return counted

    async def serve(self, tasks: int, *, url_bytes: int, task_s: float) -> None:
        """Submit tasks, a few at once, and wait until every callback has come and is stored."""
        await self.submit(tasks, url_bytes=url_bytes, task_s=task_s)
        self._awaited += tasks
        async with asyncio.timeout(task_s + 240):
            await self.deliveries.at_least(self._awaited)
        await asyncio.sleep(5)

    async def submit(self, tasks: int, *, url_bytes: int, task_s: float) -> None:
        """Submit tasks, a few at once."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            body = {
                "image_url": _url(
                    f"{self.ready['upstream']}/media/actor.jpg?n={number}&task_seconds={task_s}&x=", url_bytes
                ),
                "video_url": _url(f"{self.ready['upstream']}/media/scene.mp4?x=", url_bytes),
                "mode": "wan-std",
                "callback_url": _url(f"{self.ready['receiver']}/bill?x=", url_bytes),
                "reference": f"order-{number}",
            }
            async with slots:
                for _ in range(TRIES):  # the emulated account drops a request now and then
                    answer = await self.client.post(
                        f"{self.ready['endpoint']}/api/v1/alibaba/wan2.2-animate-mix",
                        json=body,
                        headers={"Authorization": f"Bearer {self.ready['token']}"},
                    )
                    if answer.status_code == HTTPStatus.OK:
                        return
                    self.unanswered += 1
                raise RuntimeError(f"a submit was answered {answer.status_code} {answer.text[:300]}")

        await asyncio.gather(*(one(self._submitted + number) for number in range(tasks)))
        self._submitted += tasks

    def item_bytes(self) -> float:
        """Weigh what is kept of a task, on average: its items, its row of the index, what DynamoDB adds."""
        resource = self.aws("cloudformation").describe_stack_resource(
            StackName=self.ready["stack"], LogicalResourceId="Tasks"
        )
        table = resource["StackResourceDetail"]["PhysicalResourceId"]
        items = [
            item
            for page in self.aws("dynamodb").get_paginator("scan").paginate(TableName=table)
            for item in page["Items"]
        ]
        own = [item for item in items if item["task_id"]["S"].startswith("tk_")]
        tasks = [item for item in own if "state" in item]  # the others are requests
        rows = sum(
            size({name: item[name] for name in ("task_id", "caller", "listed")}) + 100 for item in tasks
        )
        return (rows + sum(size(item) + 100 for item in own)) / len(tasks)


def _url(start: str, length: int) -> str:
    """Make a URL of so many bytes that cannot be compressed, as signed URLs are; or as short as it is."""
    return start + secrets.token_urlsafe(length)[: max(0, length - len(start))]


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Run both modes and the durable function; give dollars."""
    del seed  # nothing here is drawn by lot
    long_tasks, short_tasks, slow_tasks = (40, 20, 20) if quick else (400, 100, 100)
    fast = asyncio.run(_fast(long_tasks, short_tasks, standing_s=20 if quick else 45))
    economy, idle_month = asyncio.run(_economy(slow_tasks, task_s=20 if quick else TASK_S - 20))
    figures: dict[str, Any] = {
        "memory_mb": MEMORY_MB,
        "processor": stack.processors()[0],
        "wru_per_task_short": fast["wru_short"],
        "wru_per_task_long": fast["wru_long"],
        "fast_per_million": _total(fast["dollars"]),
        "economy_per_million": _total(economy["dollars"]),
        "idle_month": _total(idle_month),
        "terms": {
            "fast": _rounded(fast["dollars"]),
            "economy": _rounded(economy["dollars"]),
            "idle": _rounded(idle_month),
        },
        "counted": {"fast": fast["counted"], "economy": economy["counted"]},
        "alternatives_per_million": _alternatives(fast["durable"]),
        "durable": fast["durable"],
    }
    print(json.dumps(figures, indent=1), file=sys.stderr, flush=True)
    return figures


async def _fast(long_tasks: int, short_tasks: int, *, standing_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        meter = Path(folder, "meter.json")
        async with (
            running_stack("--meter", str(meter), "--rpm", "100000", "--concurrent", "10000") as (
                ready,
                deliveries,
            ),
            httpx.AsyncClient(timeout=120) as client,
        ):
            await asyncio.to_thread(Functions, ready, tuple(MEMORY_MB))  # in their sizes
            account = Account(ready, meter, deliveries, client)
            await account.get_ready()
            began = await account.look()
            await account.submit(STANDING, url_bytes=0, task_s=3600)  # for as long as this takes
            before = await account.look()
            await asyncio.sleep(standing_s)
            still = (await account.look()).since(before)
            start = await account.look()
            await account.serve(short_tasks, url_bytes=0, task_s=5)
            middle = await account.look()
            await account.serve(long_tasks, url_bytes=LONG, task_s=5)
            end = await account.look()
            kept = await asyncio.to_thread(account.item_bytes)
            durable = await _durable(account)
    short, long, whole = middle.since(start), end.since(middle), end.since(began)
    per_task_s = TASK_S / RUNNING
    # A leader that hands over goes on for a moment; and not less than one, for the last report has not come.
    overlap = max(1.0, whole.milliseconds["poll"] / 1000 / whole.at)
    units = {
        kind: _besides(long, still, kind) / long_tasks + still.sum(kind) / still.at * per_task_s
        for kind in ("write", "read", *SENT)
    }
    dollars = _common(long, long_tasks, kept) | {
        "poll": per_task_s * overlap * POLL_GB * prices.LAMBDA_GB_SECOND * MILLION,
        "writes": units["write"] * prices.WRITE_UNIT * MILLION,
        "reads": units["read"] * prices.READ_UNIT * MILLION,
        "transfer": _transfer(units),
    }
    return {
        "dollars": dollars,
        "durable": durable,
        "wru_short": round(_besides(short, still, "write") / short_tasks, 2),
        "wru_long": round(_besides(long, still, "write") / long_tasks, 2),
        "counted": {"unanswered": account.unanswered}
        | _shown(long, long_tasks, kept)
        | {"standing_per_s": {k: round(v / still.at, 2) for k, v in still.units.items()}},
    }


def _besides(counted: Counted, still: Counted, kind: str) -> float:
    """Count units of one kind without those spent in that time anyway, for what goes on running."""
    return counted.sum(kind) - still.sum(kind) / still.at * counted.at


async def _economy(tasks: int, *, task_s: float) -> tuple[dict[str, Any], dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        meter = Path(folder, "meter.json")
        flags = ("--rpm", "100000", "--concurrent", "10000", "--parameter", "CallbackLatency=economy")
        async with (
            running_stack("--meter", str(meter), *flags) as (ready, deliveries),
            httpx.AsyncClient(timeout=120) as client,
        ):
            await asyncio.to_thread(Functions, ready, tuple(MEMORY_MB))  # in their sizes
            account = Account(ready, meter, deliveries, client)
            first = await account.ticked(1)  # with a cold start
            idle = (await account.ticked(first.invocations["poll"] + 1)).since(first)
            await account.get_ready()
            start = await account.look()
            await account.serve(tasks, url_bytes=LONG, task_s=task_s)
            end = await account.look()
            kept = await asyncio.to_thread(account.item_bytes)
    counted = end.since(start)
    ticks = idle.invocations["poll"]
    ticks_a_month = prices.MONTH_S / 60
    per_tick = {
        "requests": prices.LAMBDA_REQUEST,
        "poll": idle.milliseconds["poll"] / ticks / 1000 * POLL_GB * prices.LAMBDA_GB_SECOND,
        "writes": idle.sum("write") / ticks * prices.WRITE_UNIT,
        "reads": idle.sum("read") / ticks * prices.READ_UNIT,
        "logs": idle.log_bytes["poll"] / ticks / GB * LOG_GB,
    }
    idle_month = {name: dollars * ticks_a_month for name, dollars in per_tick.items()}
    idle_month["fixed"] = prices.SECRET_MONTH + ticks_a_month * prices.SCHEDULE
    dollars = _common(counted, tasks, kept) | {
        "poll": counted.milliseconds["poll"] / tasks / 1000 * POLL_GB * prices.LAMBDA_GB_SECOND * MILLION,
        "writes": counted.sum("write") / tasks * prices.WRITE_UNIT * MILLION,
        "reads": counted.sum("read") / tasks * prices.READ_UNIT * MILLION,
        "transfer": _transfer({kind: counted.sum(kind) / tasks for kind in SENT}),
    }
    return {"dollars": dollars, "counted": _shown(counted, tasks, kept)}, idle_month


def _transfer(sent: Mapping[str, float]) -> float:
    """Price a million times what a task sends out of AWS."""
    beside = sent["messages"] * prices.MESSAGE_BYTES + sent["connections"] * prices.CONNECTION_BYTES
    return (sent["bytes"] + beside) / GB * prices.TRANSFER_OUT_GB * MILLION


def _common(counted: Counted, tasks: int, kept: float) -> dict[str, float]:
    """Price a million tasks but for what depends on the mode."""
    monthly = prices.METRIC_MONTH * len(counted.metrics) / PER_MONTH
    fixed = (prices.SECRET_MONTH + prices.MONTH_S / 60 * prices.SCHEDULE) / PER_MONTH
    return {
        "api": counted.invocations["submit"]
        / tasks
        * prices.HTTP_API_REQUEST
        * MILLION,  # the vendor's webhooks come this way too
        "requests": sum(counted.invocations.values()) / tasks * prices.LAMBDA_REQUEST * MILLION,
        "submit": counted.milliseconds["submit"]
        / tasks
        / 1000
        * SUBMIT_GB
        * prices.LAMBDA_GB_SECOND
        * MILLION,
        "logs": sum(counted.log_bytes.values()) / tasks / GB * LOG_GB * MILLION,
        "metrics": monthly * MILLION,
        "kept": kept / GB * (prices.TABLE_GB_MONTH + prices.PITR_GB_MONTH) * MILLION,
        "fixed": fixed * MILLION,
    }


def _shown(counted: Counted, tasks: int, kept: float) -> dict[str, Any]:
    return {
        "units_per_task": {
            name: round(units / tasks, 2)
            for name, units in sorted(counted.units.items())
            if units / tasks >= 0.01
        },
        "invocations": {name: round(count / tasks, 2) for name, count in counted.invocations.items()},
        "ms": {name: round(spent / tasks) for name, spent in counted.milliseconds.items()},
        "log_bytes": {name: round(size / tasks) for name, size in counted.log_bytes.items()},
        "metrics": sorted(counted.metrics),
        "kept_bytes": round(kept),
        "peak_mb": counted.peak_mb,
    }


def _total(dollars: dict[str, float]) -> float:
    return round(sum(dollars.values()), 2)


def _rounded(dollars: dict[str, float]) -> dict[str, float]:
    return {name: round(dollars[name], 2) for name in SHOWN if name in dollars}


# --- the alternatives -----------------------------------------------------------------------------


def _alternatives(durable: dict[str, Any]) -> dict[str, float]:
    """Price the field's other ways, with what all of them need: API, invocation, 400 ms of submit."""
    seconds = 0.25 * prices.LAMBDA_GB_SECOND  # at 256 MB, as their authors reckon
    front = prices.HTTP_API_REQUEST + prices.LAMBDA_REQUEST + 0.4 * seconds
    polls = 10 * (prices.LAMBDA_REQUEST + 0.2 * seconds)
    deliver = prices.LAMBDA_REQUEST + 0.2 * seconds
    own_writes = 4 * prices.WRITE_UNIT
    # start, submit, the wait and its ten looks, deliver; what each of them writes
    operations, written = 14, 7500
    if durable.get("status") == "SUCCEEDED":
        operations, written = durable["operations"], durable["bytes_written"]
    kept = written / GB * prices.DURABLE_GB_MONTH / 2
    per_task = {
        "durable_functions": operations * prices.DURABLE_OPERATION
        + written / GB * prices.DURABLE_GB_WRITTEN
        + kept
        + polls
        + front,
        "step_functions_wait_loop": 33 * prices.TRANSITION + polls + deliver + front,
        "sqs_delay_queue": 12 * prices.SQS_REQUEST + polls + deliver + own_writes + front,
    }
    return {name: round(dollars * MILLION, 1) for name, dollars in per_task.items()}


async def _durable(account: Account) -> dict[str, Any]:
    """Run the same job as a durable function on the emulator, ten polls; count its operations and writes."""
    try:
        return await asyncio.to_thread(_run_durable, account)
    except Exception as error:  # noqa: BLE001  # its support is young; the arithmetic stands without it
        return {"did_not_run": f"{type(error).__name__}: {error}"}


def _run_durable(account: Account) -> dict[str, Any]:
    functions, role = account.aws("lambda"), _role(account, "durable")
    functions.meta.events.register("before-call.lambda.CreateFunction", _enable)
    functions.create_function(
        FunctionName="durable",
        Runtime="python3.13",
        Role=role,
        Handler="durable.handler",
        Code={"ZipFile": _durable_package()},
        Timeout=60,
        MemorySize=256,
        DurableConfig={"ExecutionTimeout": 600, "RetentionPeriodInDays": 14},
    )
    functions.get_waiter("function_active_v2").wait(FunctionName="durable")
    key_arn = account.aws("cloudformation").describe_stack_resource(
        StackName=account.ready["stack"], LogicalResourceId="Secret"
    )
    secret = account.aws("secretsmanager").get_secret_value(
        SecretId=key_arn["StackResourceDetail"]["PhysicalResourceId"]
    )
    media = account.ready["upstream"]
    event = {
        "vendor": media,
        "key": json.loads(secret["SecretString"])["modellix"],
        "model": "alibaba/wan2.2-animate-mix",
        "gap": 2,
        "callback_url": f"{account.ready['receiver']}/durable",
        "request": {
            "image_url": f"{media}/media/actor.jpg?task_seconds=19",
            "video_url": f"{media}/media/scene.mp4",
            "mode": "wan-std",
        },
    }
    # Not as an event: the emulator wakes again what was invoked for an answer, and nothing else.
    functions.invoke(FunctionName="durable", Qualifier="$LATEST", Payload=json.dumps(event).encode())
    deadline = time.monotonic() + 60
    executions: list[Any] = []
    while time.monotonic() < deadline:
        executions = functions.list_durable_executions_by_function(FunctionName="durable")[
            "DurableExecutions"
        ]
        if executions and executions[0]["Status"] != "RUNNING":
            break
        time.sleep(1)
    [execution] = executions
    arn = execution["DurableExecutionArn"]
    history = functions.get_durable_execution_history(
        DurableExecutionArn=arn, IncludeExecutionData=True, MaxItems=1000
    )["Events"]
    kinds = Counter(event["EventType"] for event in history)
    # each look after the first is an operation, and an invocation, of its own
    looks = kinds["InvocationCompleted"] - 1
    operations = kinds["ExecutionStarted"] + kinds["StepStarted"] + looks
    return {
        "status": execution["Status"],
        "operations": operations,
        "bytes_written": len(json.dumps(history, default=str)),
        "events": dict(kinds),
    }


def _role(account: Account, name: str) -> str:
    """Make a role for a function of the bench's own."""
    iam = account.aws("iam")
    trust = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    role = iam.create_role(
        RoleName=name, AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    )
    rights = {"Effect": "Allow", "Action": ["lambda:*", "logs:*"], "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [rights]})
    iam.put_role_policy(RoleName=name, PolicyName=name, PolicyDocument=document)
    arn: str = role["Role"]["Arn"]
    return arn


def _enable(params: dict[str, Any], **_: Any) -> None:
    """Say what MiniStack wants to hear and AWS does not know: there, having a DurableConfig is enough."""
    body = json.loads(params["body"])
    body["DurableConfig"]["Enabled"] = True
    params["body"] = json.dumps(body).encode()


def _durable_package() -> bytes:
    """Pack the handler and the SDK; the emulator brings boto3."""
    spec = find_spec("aws_durable_execution_sdk_python")
    assert spec is not None
    assert spec.origin is not None
    sdk = Path(spec.origin).parent
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(Path(__file__).with_name("durable.py"), "durable.py")
        for path in sdk.rglob("*.py"):
            archive.write(path, path.relative_to(sdk.parent))
    return packed.getvalue()
