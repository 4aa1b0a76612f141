"""What a result costs that is archived: how long its callback waits, and dollars a GB.

The deployed stack under Lambda's share of a processor, one file after another, the function warm. MEMORY in
the environment, such as `archive=1024`, gives the function another size than template.yaml does. Dollars are
of the copy alone: Lambda's time and S3's requests. What a GB costs while it is kept, and when a receiver
fetches it over the internet, stands beside; what comes in costs nothing.
"""

import asyncio
import json
import re
import statistics
import sys
from typing import Any

import boto3
import httpx

from taskhook.archive.copy import PART
from tests.bench import prices
from tests.bench.burst import Functions
from tests.bench.lateness import MODEL_PATH, Deliveries, running_stack
from tests.local import stack

MB = 2**20
SIZES_MB, QUICK_MB = (1, 24, 300), (1, 24)
TIMES = 3
WITHIN_S = 300.0
_DURATION = re.compile(r"^REPORT .*\tDuration: ([0-9.]+) ms\tBilled")


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Copy files of several sizes; give seconds and dollars."""
    del seed  # nothing here is drawn by lot
    figures = asyncio.run(_measured(QUICK_MB if quick else SIZES_MB))
    print(json.dumps(figures), file=sys.stderr, flush=True)
    return figures


async def _measured(sizes_mb: tuple[int, ...]) -> dict[str, Any]:
    flags = ("--rpm", "100000", "--concurrent", "1000", "--parameter", "ArchiveResults=on")
    async with running_stack(*flags) as (ready, deliveries), httpx.AsyncClient(timeout=120) as client:
        functions = await asyncio.to_thread(Functions, ready, ("archive",))
        memory_mb = functions.sizes["archive"]
        figures: dict[str, Any] = {"memory_mb": memory_mb}
        await _archived(client, ready, deliveries, MB)
        for size_mb in sizes_mb:
            known = len(await asyncio.to_thread(_durations, ready))
            late = [await _archived(client, ready, deliveries, size_mb * MB) for _ in range(TIMES)]
            billed_ms = (await asyncio.to_thread(_durations, ready))[known:]
            seconds = sum(billed_ms) / 1000 / TIMES
            gb = size_mb * MB / prices.GB
            lambda_ = seconds * memory_mb / 1024 * prices.LAMBDA_GB_SECOND + prices.LAMBDA_REQUEST
            puts = (-(-size_mb * MB // PART) + 2) * prices.S3_PUT  # begun, put part by part, completed
            figures[f"{size_mb}_mb"] = {
                "callback_late_s": round(statistics.median(late), 2),
                "billed_s": round(seconds, 2),
                "mb_per_s": round(size_mb / seconds, 1),
                "dollars_per_gb": {"lambda": round(lambda_ / gb, 5), "s3_requests": round(puts / gb, 5)},
            }
    days = stack.template()["Parameters"]["ArchiveDays"]["Default"]
    figures["dollars_per_gb_kept"] = round(days / 30 * prices.S3_GB_MONTH, 3)
    figures["dollars_per_gb_fetched"] = prices.TRANSFER_OUT_GB
    return figures


async def _archived(
    client: httpx.AsyncClient, ready: dict[str, str], deliveries: Deliveries, size: int
) -> float:
    """Have one task end with a file of so many bytes; give the seconds from its end to its callback's 2xx."""
    upstream, headers = ready["upstream"], {"Authorization": f"Bearer {ready['token']}"}
    (await client.post(f"{upstream}/_control/results", json={"bytes": size})).raise_for_status()
    body = {
        "image_url": f"{upstream}/media/actor.jpg?task_seconds=2",
        "video_url": f"{upstream}/media/scene.mp4",
        "mode": "wan-std",
        "callback_url": f"{ready['receiver']}/archive",
    }
    before = len(deliveries.answered_at)
    answer = await client.post(f"{ready['endpoint']}{MODEL_PATH}", json=body, headers=headers)
    answer.raise_for_status()
    async with asyncio.timeout(WITHIN_S):
        await deliveries.at_least(before + 1)
    newest = max(deliveries.answered_at, key=lambda task: deliveries.answered_at[task])
    ended: dict[str, float] = {
        task["id"]: task["ended_at"] for task in (await client.get(f"{upstream}/_control")).json()["tasks"]
    }
    return deliveries.answered_at[newest] - ended[newest]


def _durations(ready: dict[str, str]) -> list[float]:
    """Read the milliseconds of each invocation of the function so far."""
    session = boto3.Session(
        region_name=ready["aws_region"], aws_access_key_id="test", aws_secret_access_key="test"
    )
    logs = session.client("logs", endpoint_url=ready["aws_endpoint_url"])
    groups = [group["logGroupName"] for group in logs.describe_log_groups()["logGroups"]]
    pages = (
        page
        for group in groups
        if "Archive" in group
        for page in logs.get_paginator("filter_log_events").paginate(logGroupName=group)
    )
    lines = sorted((event["timestamp"], event["message"]) for page in pages for event in page["events"])
    return [float(found[1]) for _, message in lines if (found := _DURATION.match(message))]
