"""Worker processes of both functions die in the middle of their work; no task is lost, none is paid twice."""

import asyncio
import random
from pathlib import Path

from tests import history
from tests.bench.flow import Flow
from tests.bench.kills import Killer, hurry
from tests.e2e.conftest import Inbox, Stack, Vendor
from tests.judge import judge

TASKS, KILLS = 40, 12
PATIENCE_S = 20.0


async def test_no_kill_loses_a_task_or_pays_for_one_twice(
    stack: Stack, vendor: Vendor, inbox: Inbox, marker: str, history_file: Path
) -> None:
    """SIGKILL while tasks flow, the vendor goes wrong in every way, and one attempt in three fails."""
    callers = {"local": (stack.token, stack.signing_secret)}
    flow = Flow(
        stack.endpoint,
        {"modellix": stack.upstream},
        stack.receiver,
        callers,
        f"m{marker}",
        seed=20261123,
        task_seconds=(1, 4),
    )
    killer = Killer(stack.aws_endpoint_url, random.Random(20261123))

    async def deliveries() -> list[dict[str, object]]:
        answer = await flow.http.get(f"{stack.receiver}/_control")
        return [one for one in answer.json()["deliveries"] if one["path"].startswith(f"/m{marker}/")]

    ticks = asyncio.create_task(hurry(stack.aws_endpoint_url, stack.aws_region, stack.stack))
    try:
        injected, _, _ = await asyncio.gather(
            flow.inject(rounds=1, every_tasks=0.8),
            flow.submit_all(TASKS, most_per_second=2.5),
            killer.run(KILLS, in_flight=6),
        )
    finally:
        vendor.http.delete("/_control/faults").raise_for_status()
    await flow.settled(deliveries, patience_s=PATIENCE_S)
    audit = await flow.audit(deliveries)
    await flow.http.aclose()
    ticks.cancel()
    assert len(injected) > 40
    assert killer.killed.total() >= 10
    assert set(killer.killed) == {"submit", "poll"}
    assert audit.accepted + audit.refused == TASKS
    assert (audit.lost, audit.double_paid, audit.broken) == (0, 0, [])
    lines = history.about(history_file, f"m{marker}")
    assert len(lines) > 3 * TASKS
    assert judge(lines) == []
    # What is left waits until it is unknown, or for its next attempt: most, where processors are slow.
    assert audit.delivered > TASKS / 6
