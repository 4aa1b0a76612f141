"""CPU per unchanged poll: the real use case and adapter, beside a bare httpx loop in one run."""

import asyncio
import inspect
import json
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from taskhook.adapters.clock import SystemClock
from taskhook.adapters.http.vendor import HttpTaskApi
from taskhook.adapters.http.vendor_wire import trust
from taskhook.core.ports import POLLS_AT_ONCE
from taskhook.core.record import State
from taskhook.core.task import Task
from taskhook.poller.invocation import poll
from taskhook.settings import CallbackLatency
from taskhook.vendors.modellix import MODELLIX
from taskhook.wiring import App
from tests.world import (
    SETTINGS,
    FakeReceivers,
    MemoryCallers,
    MemoryControl,
    MemoryTasks,
    RecordingReporter,
    VirtualClock,
    a_caller,
)

ROOT = Path(__file__).parents[2]
MODEL = "alibaba/wan2.2-animate-mix"


async def bare(client: httpx.AsyncClient, urls: list[str], headers: dict[str, str]) -> None:
    """GET every URL and parse the answer: what every client has to do."""
    slots = asyncio.Semaphore(POLLS_AT_ONCE)

    async def one(url: str) -> None:
        async with slots:
            answer = await client.get(url, headers=headers)
            assert answer.json()["data"]["status"] in {"pending", "processing"}

    await asyncio.gather(*(one(url) for url in urls))


def measure(*, quick: bool, seed: int) -> dict[str, float]:
    """Poll the same running tasks in turn by both, and compare their CPU pair by pair."""
    del seed  # nothing here is drawn by lot
    print(inspect.getsource(bare), file=sys.stderr)
    command = [
        sys.executable,
        "-m",
        "tests.local.vendor",
        "--port",
        "0",
        "--task-seconds",
        "999999",
        "--no-webhooks",
        "--no-long-poll",
    ]
    with subprocess.Popen(
        [*command, "--rpm", "100000000", "--concurrent", "1000000"], cwd=ROOT, stdout=subprocess.PIPE
    ) as vendor:
        assert vendor.stdout is not None
        ready = json.loads(vendor.stdout.readline())
        try:
            pairs = asyncio.run(
                _pairs(
                    ready["upstream"],
                    ready["api_key"],
                    tasks=100 if quick else 400,
                    rounds=5 if quick else 21,
                )
            )
        finally:
            vendor.terminate()
    ratios = [ours / theirs for ours, theirs in pairs]
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    figures = {"poll_cpu_vs_bare": round(statistics.median(ratios), 3)}
    print(
        f"ours {ours * 1e6:.0f} µs, bare {theirs * 1e6:.0f} µs per poll, ratio {figures['poll_cpu_vs_bare']}",
        file=sys.stderr,
    )
    return figures


async def _pairs(upstream: str, key: str, *, tasks: int, rounds: int) -> list[tuple[float, float]]:
    headers = {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=POLLS_AT_ONCE, max_keepalive_connections=POLLS_AT_ONCE)
    store = MemoryTasks()
    async with httpx.AsyncClient(limits=limits, trust_env=False) as client:
        for number in range(tasks):
            await store.add(await _running_task(client, upstream, headers, number))
        urls = [f"{upstream}/api/v1/tasks/{task.upstream_task_id}" for task in store.items.values()]

        async def the_key(*, fresh: bool) -> str:
            del fresh
            return key

        api = HttpTaskApi(upstream, the_key, vendor=MODELLIX, tls=trust())
        settings = SETTINGS.model_copy(
            update={"requests_per_minute": 100_000_000, "callback_latency": CallbackLatency.ECONOMY}
        )
        clock = SystemClock()
        app = App(
            settings,
            tasks=store,
            control=MemoryControl(),
            vendors={"modellix": api},
            webhook_urls=None,
            callbacks=FakeReceivers(VirtualClock()),
            callers=MemoryCallers(a_caller()),
            clock=clock,
            reporter=RecordingReporter(),
        )
        pairs = []
        for _ in range(rounds + 1):
            began = time.process_time()
            report = await poll(
                scheduled=True,
                hard_stop=clock.now() + timedelta(seconds=120),
                rules=app.rules,
                ports=app.poller,
            )
            between = time.process_time()
            await bare(client, urls, headers)
            ended = time.process_time()
            assert report.steps == {"polled": tasks}, report.steps
            pairs.append(((between - began) / tasks, (ended - between) / tasks))
        await api.close()
    return pairs[1:]  # the first opens connections


async def _running_task(
    client: httpx.AsyncClient, upstream: str, headers: dict[str, str], number: int
) -> Task:
    """Submit a task that does not end, and store it as taken an hour ago, so that it is due at every tick."""
    request = {
        "image_url": "https://example.com/a.jpg",
        "video_url": "https://example.com/v.mp4",
        "mode": "wan-std",
    }
    answer = await client.post(f"{upstream}/api/v1/{MODEL}", json=request, headers=headers)
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    return Task(
        task_id=f"tk_{number:022d}",
        caller="alice",
        model=MODEL,
        request=json.dumps(request),
        fingerprint="f",
        accepted_at=an_hour_ago,
        submitted_at=an_hour_ago,
        taken_at=an_hour_ago,
        answer_status=200,
        state=State.WATCHED,
        upstream_task_id=answer.json()["data"]["task_id"],
    )
