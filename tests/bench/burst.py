"""What the functions' memory decides: submit's own time, and callbacks of tasks that end in the same second.

The deployed stack under Lambda's share of a processor, wherever control groups can be written. Submit's own
time is from the request at the front door to its answer, a task after the other and the function warm, less
what the vendor's emulator takes on its own for the same POST; its price is with what a vendor takes
(`prices.py`). A look has ended with a verdict where the task names none of its media as unchecked. Lateness
is from each task's own end to the receiver's 2xx. MEMORY in the environment, such as `submit=512 poll=1024`,
gives the functions other sizes than template.yaml does.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from http import HTTPStatus
from typing import Any

import boto3
import httpx

from tests.bench import prices
from tests.bench.lateness import MODEL_PATH, SUBMITS_AT_ONCE, Deliveries, running_stack
from tests.local import stack

AT_ONCE, QUICK = 100, 20
LEAD_S = 45.0  # for all submits before the common end
WARM = 3  # requests that are not counted
SETTLED_WITHIN_S = 180.0
TRIES = 4


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Measure one stack; give the sizes with the figures."""
    del seed  # nothing here is drawn by lot
    figures = asyncio.run(_measured(QUICK if quick else AT_ONCE, 5 if quick else 40))
    print(json.dumps(figures), file=sys.stderr, flush=True)
    return figures


async def _measured(tasks: int, looks: int) -> dict[str, Any]:
    # Held polls tell of the ends. With webhooks, which come beside them, 100 at once would be 100 cold
    # starts on the few cores of this machine; in Lambda each has its own.
    flags = ("--rpm", "100000", "--concurrent", "1000", "--parameter", "VendorWebhooks=off")
    async with running_stack(*flags) as (ready, deliveries), httpx.AsyncClient(timeout=120) as client:
        functions = await asyncio.to_thread(Functions, ready, ("submit", "poll"))
        figures: dict[str, Any] = {"memory_mb": functions.sizes}
        looked = [await _submit(client, ready) for _ in range(looks + WARM)][WARM:]
        await asyncio.to_thread(functions.leave_media_alone)
        plain = [await _submit(client, ready) for _ in range(looks + WARM)][WARM:]
        alone = statistics.median([await _at_the_vendor(client, ready) for _ in range(looks)])
        figures["submit_ms"] = _milliseconds([took - alone for took, _ in plain])
        figures["submit_with_media_ms"] = _milliseconds([took - alone for took, _ in looked])
        figures["lambda_dollars_of_a_million"] = {
            "submit": _dollars([took - alone for took, _ in plain], functions.sizes["submit"]),
            "submit_with_media": _dollars([took - alone for took, _ in looked], functions.sizes["submit"]),
        }
        figures["verdict_share"] = round(statistics.mean(verdict for _, verdict in looked), 3)
        figures["burst"] = await _burst(client, ready, deliveries, tasks)
    return figures


class Functions:
    """The stack's functions, in the sizes that MEMORY names, else in template.yaml's."""

    def __init__(self, ready: dict[str, str], names: tuple[str, ...]) -> None:
        session = boto3.Session(
            region_name=ready["aws_region"], aws_access_key_id="test", aws_secret_access_key="test"
        )
        self._lambda: Any = session.client("lambda", endpoint_url=ready["aws_endpoint_url"])
        formation = session.client("cloudformation", endpoint_url=ready["aws_endpoint_url"])
        self._names, self.sizes = {}, {}
        for name in names:
            resource = formation.describe_stack_resource(
                StackName=stack.STACK, LogicalResourceId=f"{name.capitalize()}Function"
            )
            self._names[name] = resource["StackResourceDetail"]["PhysicalResourceId"]
            if memory_mb := memory_wanted().get(name):
                self._update(name, MemorySize=memory_mb)
            self.sizes[name] = self._configuration(name)["MemorySize"]

    def leave_media_alone(self) -> None:
        """Let submit look at no media."""
        variables = self._configuration("submit")["Environment"]["Variables"] | {"MEDIA_CHECKS": "off"}
        self._update("submit", Environment={"Variables": variables})

    def _configuration(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._lambda.get_function_configuration(FunctionName=self._names[name])
        return found

    def _update(self, name: str, **values: Any) -> None:
        self._lambda.update_function_configuration(FunctionName=self._names[name], **values)
        self._lambda.get_waiter("function_updated_v2").wait(FunctionName=self._names[name])


def memory_wanted() -> dict[str, int]:
    """Read MEMORY: megabytes by function."""
    pairs = (pair.split("=") for pair in os.environ.get("MEMORY", "").split())
    return {name: int(memory_mb) for name, memory_mb in pairs}


def _body(ready: dict[str, str], seconds: float) -> dict[str, str]:
    return {
        "image_url": f"{ready['upstream']}/media/actor.jpg?task_seconds={max(seconds, 0):.3f}",
        "video_url": f"{ready['upstream']}/media/scene.mp4",
        "mode": "wan-std",
    }


async def _submit(client: httpx.AsyncClient, ready: dict[str, str]) -> tuple[float, bool]:
    """Submit a task that ends soon; give the seconds it took, and whether its media got a verdict."""
    headers = {"Authorization": f"Bearer {ready['token']}"}
    body = _body(ready, 1)
    began = time.perf_counter()
    answer = await client.post(f"{ready['endpoint']}{MODEL_PATH}", json=body, headers=headers)
    took = time.perf_counter() - began
    answer.raise_for_status()
    return took, not answer.json()["data"].get("unchecked")


async def _idle(client: httpx.AsyncClient, ready: dict[str, str]) -> None:
    """Wait until no task runs, and the leader has seen the last one's end."""
    counts = f"{ready['upstream']}/_control/counts"
    while (await client.get(counts)).json()["running"]:  # noqa: ASYNC110  # a count is no event
        await asyncio.sleep(0.5)
    await asyncio.sleep(3)


async def _at_the_vendor(client: httpx.AsyncClient, ready: dict[str, str]) -> float:
    """Refuse a POST at the vendor, which costs it as much as taking one; give the seconds."""
    began = time.perf_counter()
    await client.post(f"{ready['upstream']}{MODEL_PATH}", json=_body(ready, 1))
    return time.perf_counter() - began


async def _burst(
    client: httpx.AsyncClient, ready: dict[str, str], deliveries: Deliveries, tasks: int
) -> dict[str, Any]:
    """Have so many tasks end in the same second; tell how late their callbacks are."""
    # As many processes of submit as there are submits at once, all of them warm: their ends would be apart
    # else.
    for _ in range(WARM):
        await asyncio.gather(*(_submit(client, ready) for _ in range(SUBMITS_AT_ONCE)))
    await _idle(client, ready)
    slots, end_at = asyncio.Semaphore(SUBMITS_AT_ONCE), time.time() + LEAD_S * max(tasks / AT_ONCE, 0.4)
    delay, unanswered = 0.2, 0

    async def submit(number: int) -> None:
        nonlocal delay, unanswered
        async with slots:
            body = _body(ready, end_at - time.time() - delay)
            body |= {"callback_url": f"{ready['receiver']}/burst/{number}"}
            headers = {"Authorization": f"Bearer {ready['token']}", "Idempotency-Key": f"burst-{number}"}
            for _ in range(TRIES):
                began = time.perf_counter()
                answer = await client.post(f"{ready['endpoint']}{MODEL_PATH}", json=body, headers=headers)
                if answer.status_code == HTTPStatus.OK:
                    break
                unanswered += 1
            answer.raise_for_status()
            delay = 0.8 * delay + 0.2 * (time.perf_counter() - began)

    await asyncio.gather(*(submit(number) for number in range(tasks)))
    spare = end_at - time.time()
    async with asyncio.timeout(max(spare, 0) + SETTLED_WITHIN_S):
        await deliveries.at_least(tasks)
    control = (await client.get(f"{ready['upstream']}/_control")).json()
    ended = {
        task["id"]: task["ended_at"] for task in control["tasks"] if task["id"] in deliveries.answered_at
    }
    first = min(ended.values())
    late = sorted(deliveries.answered_at[task] - at for task, at in ended.items())
    return {
        "tasks": len(late),
        "unanswered": unanswered,
        "spare_s": round(spare, 1),
        "ends_spread_s": round(max(ended.values()) - first, 2),
        "p50_s": round(statistics.median(late), 2),
        "last_s": round(max(deliveries.answered_at.values()) - max(ended.values()), 2),
        "max_s": round(late[-1], 2),
    }


def _dollars(own_s: list[float], memory_mb: int) -> float:
    """Price the time of a million submits: their own, and what they wait for the vendor."""
    seconds = statistics.mean(own_s) + prices.VENDOR_SUBMIT_S
    return round(seconds * memory_mb / 1024 * prices.LAMBDA_GB_SECOND * prices.MILLION, 1)


def _milliseconds(seconds: list[float]) -> dict[str, int]:
    ordered = sorted(seconds)
    return {
        "p50": round(statistics.median(ordered) * 1000),
        "p95": round(ordered[int(len(ordered) * 0.95) - 1] * 1000),
        "max": round(ordered[-1] * 1000),
    }
