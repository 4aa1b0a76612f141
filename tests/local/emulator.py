"""MiniStack, with two gaps closed: 1.5.33 knows `AWS::AccountId` and its like everywhere but in `Conditions`.

Our template needs the gap closed: it relaxes the rule for callback URLs by such a condition, so that no AWS
account can ever have it relaxed. And where a function fails, runs out of time or has no room, its HTTP API
answers as AWS's does. Runs in MiniStack's own environment, which is why nothing of MiniStack is imported by
name.

Where LAMBDA_ACCOUNT_CONCURRENCY says how many invocations the account runs at once, an event that finds no
room waits and is tried again, as in Lambda, until it is too old; MiniStack would lose it. The metrics
AsyncEventAge (milliseconds) and AsyncEventsDropped tell, as AWS's do.

It unpacks what workers run once, not once for each of them: the layer's 1,900 files cost a second to make,
and one to remove.

Where LAMBDA_CPU is `lambda`, a function's process gets Lambda's share of a processor and no more than its
memory (`share.py`). The log says of each cold start how long init and the first event took.

Where METER names a file, what DynamoDB is asked is counted into it, in the units that AWS bills: write units
as MiniStack reports them, indexes included; read units, which it gets wrong, from the sizes of what it
answers.
"""

import hashlib
import json
import logging
import math
import os
import signal
import subprocess
import threading
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.local import share

CLOUDFORMATION = "ministack.services.cloudformation"


def main() -> None:
    """Serve until killed."""
    responses = import_module("ministack.core.responses")
    evaluate = import_module(f"{CLOUDFORMATION}.engine")._evaluate_conditions

    def evaluate_with_pseudo_parameters(
        template: dict[str, Any], parameters: dict[str, Any]
    ) -> dict[str, bool]:
        pseudo = {
            "AWS::AccountId": {"Value": responses.get_account_id()},
            "AWS::Partition": {"Value": "aws"},
            "AWS::Region": {"Value": responses.get_region()},
        }
        conditions: dict[str, bool] = evaluate(template, pseudo | parameters)
        return conditions

    for name in ("engine", "handlers", "changesets", "stacks"):
        vars(import_module(f"{CLOUDFORMATION}.{name}"))["_evaluate_conditions"] = (
            evaluate_with_pseudo_parameters
        )
    functions = import_module("ministack.services.lambda_svc")
    vars(functions)[_SHAPE] = as_http_api(vars(functions)[_SHAPE])
    workers = vars(import_module("ministack.core.lambda_runtime"))
    unpacking = {"ZipFile": UnpackedOnce, "LargeFileError": zipfile.LargeZipFile}  # as MiniStack calls it
    workers["zipfile"] = SimpleNamespace(**{**vars(zipfile), **unpacking})
    workers["Worker"] = as_in_lambda(workers["Worker"])
    vars(functions)[_EXECUTE] = with_exit_errors(vars(functions)[_EXECUTE])
    record = vars(import_module("ministack.services.cloudwatch"))["record_metric"]
    vars(functions)["_execute_function"] = waiting_for_room(vars(functions)["_execute_function"], record)
    vars(functions)["invoke_async_with_retry"] = as_event(vars(functions)["invoke_async_with_retry"])
    vars(import_module("ministack.services.eventbridge"))["_dispatch_to_lambda"] = partial(tick, functions)
    if os.environ.get("LAMBDA_CPU") == "lambda":
        stack = share.stack_of(Path(os.environ["TMPDIR"]))
        process = partial(share.FunctionProcess, stack=stack, tell=logging.getLogger("share").warning)
        workers["subprocess"] = SimpleNamespace(**{**vars(subprocess), "Popen": process})
    if "METER" in os.environ:
        meter = Meter(Path(os.environ["METER"]))
        dynamodb = import_module("ministack.services.dynamodb")
        for name in ("put_item", "update_item", "delete_item", "get_item", "batch_get_item", "query", "scan"):
            vars(dynamodb)[f"_{name}"] = meter.counting(name, vars(dynamodb)[f"_{name}"])
    import_module("ministack.app").main()


_SHAPE = "lambda_execute_result_to_api_proxy_response"
type Shape = Callable[[dict[str, Any]], tuple[dict[str, Any] | None, str | None]]


def as_http_api(shape: Shape) -> Shape:
    """Show nothing of a function's error, as AWS's HTTP API does; MiniStack would show it."""

    def shaped(result: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
        if result.get("throttle"):
            return _refusal(503, "Service Unavailable"), None
        return (_refusal(500, "Internal Server Error"), None) if result.get("error") else shape(result)

    return shaped


def _refusal(status: int, message: str) -> dict[str, Any]:
    return {
        "statusCode": status,
        "headers": {"Content-Type": "application/json"},
        "body": json.dumps({"message": message}),
    }


_EXECUTE = "_execute_function_warm"
_EXITED = "Error: Runtime exited with error: "
type Execute = Callable[[dict[str, Any], Any, str], dict[str, Any]]


def as_in_lambda(worker: type[Any]) -> type[Any]:
    """Throttle a process once its init has ended, log its cold start, name its death as Lambda does."""

    class Worker(worker):  # type: ignore[misc]  # its base is found at run time
        _began = _ready = _answered = 0.0

        def _read_stderr(self) -> None:
            """Note when the process was started: MiniStack reads what it logs from then on."""
            self._began = time.monotonic()
            super()._read_stderr()

        def _spawn(self) -> None:
            super()._spawn()
            self._process = self._proc
            if isinstance(self._process, share.FunctionProcess):
                self._process.throttle()
            self._ready = time.monotonic()

        def invoke(self, event: Any, request_id: str, **more: Any) -> dict[str, Any]:
            self._answered = 0.0
            result: dict[str, Any] = super().invoke(event, request_id, **more)
            if result.get("cold_start"):
                first_event = (self._answered or time.monotonic()) - self._ready
                words = "cold start of %s: init %.0f ms, first event %.0f ms"
                _log.info(words, self.func_name, (self._ready - self._began) * 1000, first_event * 1000)
            if result.get("error") == "Worker process died":
                code = self._process.returncode or 0
                how = f"signal: {signal.strsignal(-code)}".lower() if code < 0 else f"exit status {code}"
                result["error"] = f"RequestId: {request_id} {_EXITED}{how}"
            return result

        def _drain_stderr_bounded(self, *waits: float) -> str:
            """Note when the event was answered: MiniStack now waits for what the function still logs."""
            self._answered = time.monotonic()
            return str(super()._drain_stderr_bounded(*waits))

    return Worker


def with_exit_errors(execute: Execute) -> Execute:
    """Name the error of a function whose process died as Lambda does."""

    def executed(function: dict[str, Any], event: Any, request_id: str) -> dict[str, Any]:
        result = execute(function, event, request_id)
        if result.get("error") and _EXITED in result["body"]["errorMessage"]:
            result["body"]["errorType"] = "Runtime.ExitError"
        return result

    return executed


type Invoke = Callable[[dict[str, Any], Any], None]
_oldest_s: ContextVar[float] = ContextVar(
    "how old an event may become, in seconds; 0: it is none", default=0.0
)


def as_event(invoke: Invoke) -> Invoke:
    """Say that what is invoked is an event, and how old it may become."""

    def invoked(function: dict[str, Any], event: Any) -> None:
        settings = function.get("event_invoke_config") or function.get("event_invoke_configs", {}).get(
            "$LATEST"
        )
        _oldest_s.set(float((settings or {}).get("MaximumEventAgeInSeconds", 21_600)))
        try:
            invoke(function, event)  # in a thread, with a copy of this context
        finally:
            _oldest_s.set(0.0)

    return invoked


def waiting_for_room(
    execute: Callable[..., dict[str, Any]], record: Callable[..., None]
) -> Callable[..., dict[str, Any]]:
    """Try an event that finds no room again, after 1 s and then ever later, until it is too old."""

    def executed(function: dict[str, Any], event: Any) -> dict[str, Any]:
        oldest_s, began, pause_s = _oldest_s.get(), time.monotonic(), 1.0
        name = {"FunctionName": (function.get("config") or function).get("FunctionName", "")}
        _oldest_s.set(0.0)  # MiniStack calls this again, from within
        try:
            while True:
                age_s = time.monotonic() - began
                result = execute(function, event)
                if not oldest_s:
                    return result
                if not result.get("throttle"):
                    record("AWS/Lambda", "AsyncEventAge", age_s * 1000, "Milliseconds", name)
                    return result
                if age_s >= oldest_s:
                    record("AWS/Lambda", "AsyncEventsDropped", 1, "Count", name)
                    return result
                time.sleep(min(pause_s, oldest_s - age_s))
                pause_s = min(pause_s * 2, 300.0)
        finally:
            _oldest_s.set(oldest_s)

    return executed


def tick(functions: Any, arn: str, payload: str) -> None:
    """Invoke a schedule's function as an event; MiniStack would have it run once, or not."""
    function, config, _ = functions._get_func_record_for_ref(arn)
    functions.invoke_async_with_retry(
        functions._execution_record_for_config(function, config), json.loads(payload)
    )


_log = logging.getLogger("lambda_runtime")


class UnpackedOnce(zipfile.ZipFile):
    """A function or a layer: unpacked by the first worker that needs it, a link to that for all others."""

    _one_unpacks = threading.Lock()  # `_lock` is what its base calls each file's own

    def namelist(self) -> list[str]:
        """Name nothing: MiniStack would follow each name, and `extractall` keeps all in its folder."""
        return []

    # The parameters are its base's.
    def extractall(self, path: Any = None, members: Any = None, pwd: Any = None) -> None:  # noqa: ARG002
        """Put a link in the place of an empty folder."""
        content = Path(str(self.filename)).read_bytes()
        unpacked = Path(os.environ["TMPDIR"]) / f"unpacked-{hashlib.sha256(content).hexdigest()[:16]}"
        with self._one_unpacks:
            if not unpacked.exists():
                fresh = unpacked.with_suffix(".new")
                super().extractall(fresh, super().namelist())
                fresh.rename(unpacked)
        Path(path).rmdir()
        Path(path).symlink_to(unpacked)


type Request = dict[str, Any]
type Answer = tuple[int, dict[str, str], str | bytes]


class Meter:
    """Calls, read units and write units, by operation and kind of item; the file holds the sums so far."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def counting(self, name: str, operation: Callable[[Request], Answer]) -> Callable[[Request], Answer]:
        """Wrap one operation."""

        def counted(request: Request) -> Answer:
            status, headers, body = operation(request | {"ReturnConsumedCapacity": "INDEXES"})
            kind = _kind(request)
            with self._lock:
                self._sums[f"calls {name} {kind}"] += 1
                if name in {"put_item", "update_item", "delete_item"}:
                    # A condition that failed costs what the item would have.
                    units = json.loads(body)["ConsumedCapacity"]["CapacityUnits"] if status == 200 else 1.0
                    self._sums[f"write {name} {kind}"] += units
                elif status == 200:
                    self._sums[f"read {name} {kind}"] += _read_units(request, json.loads(body))
                fresh = self._file.with_suffix(".new")
                fresh.write_text(json.dumps(self._sums))
                fresh.replace(self._file)
            return status, headers, body

        return counted


def _kind(request: Request) -> str:
    """Tell tasks from control items and callers by the key."""
    key = request.get("Key") or request.get("Item") or {}
    name = next(
        (value["S"] for field, value in key.items() if field in {"task_id", "caller"}),
        request.get("IndexName", "tasks"),
    )
    return "task" if name.startswith("tk_") else str(name).partition("#")[0]


def _read_units(request: Request, answer: Request) -> float:
    """Bill what was read: items one by one where named, together where searched; at least one unit."""
    named = (
        [answer.get("Item", {})]
        if "Key" in request
        else [item for items in answer.get("Responses", {}).values() for item in items]
    )
    sizes = [sum(map(size, answer["Items"]))] if "Items" in answer else [size(item) for item in named] or [0]
    return sum(max(1, math.ceil(one / 4096)) for one in sizes) * (
        1.0 if request.get("ConsistentRead") else 0.5
    )


def size(item: dict[str, Any]) -> int:
    """Weigh an item as DynamoDB does: names, values, numbers by digits, three bytes for a list or a map."""
    return sum(len(name.encode()) + _weight(*next(iter(value.items()))) for name, value in item.items())


def _weight(kind: str, value: Any) -> int:
    match kind:
        case "S":
            return len(value.encode())
        case "B":
            return len(value) * 3 // 4 if isinstance(value, str) else len(value)
        case "N":
            return math.ceil(len(value.strip("-")) / 2) + 1
        case "L":
            return 3 + sum(_weight(*next(iter(entry.items()))) + 1 for entry in value)
        case "M":
            return 3 + sum(
                len(name.encode()) + _weight(*next(iter(entry.items()))) + 1 for name, entry in value.items()
            )
        case _:
            return 1


if __name__ == "__main__":
    main()
