"""MiniStack, with two gaps closed: 1.5.33 knows `AWS::AccountId` and its like everywhere but in `Conditions`.

Our template needs the gap closed: it relaxes the rule for callback URLs by such a condition, so that no AWS
account can ever have it relaxed. And where a function fails, runs out of time or has no room, its HTTP API
answers as AWS's does. Runs in MiniStack's own environment, which is why nothing of MiniStack is imported by
name.

It unpacks what workers run once, not once for each of them: the layer's 1,900 files cost a second to make,
and one to remove.

Where METER names a file, what DynamoDB is asked is counted into it, in the units that AWS bills: write units
as MiniStack reports them, indexes included; read units, which it gets wrong, from the sizes of what it
answers.
"""

import hashlib
import json
import math
import os
import threading
import zipfile
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
    workers["zipfile"] = SimpleNamespace(**{**vars(zipfile), "ZipFile": UnpackedOnce})
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


class UnpackedOnce(zipfile.ZipFile):
    """A function or a layer: unpacked by the first worker that needs it, a link to that for all others."""

    _lock = threading.Lock()

    def namelist(self) -> list[str]:
        """Name nothing: MiniStack would follow each name, and `extractall` keeps all in its folder."""
        return []

    # The parameters are its base's.
    def extractall(self, path: Any = None, members: Any = None, pwd: Any = None) -> None:  # noqa: ARG002
        """Put a link in the place of an empty folder."""
        content = Path(str(self.filename)).read_bytes()
        unpacked = Path(os.environ["TMPDIR"]) / f"unpacked-{hashlib.sha256(content).hexdigest()[:16]}"
        with self._lock:
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
