"""Tasks that end together: the first are delivered before the last are stored, and none waits long."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from taskhook.core import task as core_task
from taskhook.core.message import rendered
from taskhook.core.record import CallbackState, State
from taskhook.core.reply import Reply
from taskhook.core.task import Task
from taskhook.core.vendor import PollKind, PollOutcome
from taskhook.delivery.hosts import HOST_SLOTS
from taskhook.poller.endings import MOST_WAITING_SIZE, PATIENCE, SLOT_LOOK_GAP
from tests.unit.test_poll import PollerWorld

TOGETHER = 5 * HOST_SLOTS


@pytest.fixture
def poller() -> PollerWorld:
    """Give a fresh world, whose vendor may be asked about all of them at once."""
    world = PollerWorld()
    world.rules = replace(world.rules, requests_per_minute=100_000)
    return world


async def ended_together(poller: PollerWorld, host: str, count: int = TOGETHER) -> list[Task]:
    """Add tasks of a receiver that end at the vendor at once."""
    url = f"https://{host}.example.com/"
    tasks = [await poller.add(State.WATCHED, f"{host}-{number}", url=url) for number in range(count)]
    poller.vendor.task_time = timedelta(0)
    return tasks


def stored_at(poller: PollerWorld, tasks: list[Task]) -> list[datetime]:
    """Tell when their ends were stored."""
    return [ended for task in tasks if (ended := poller.now_of(task).ended_at) is not None]


async def test_tasks_that_end_together_are_written_twice_each(poller: PollerWorld) -> None:
    """Each end waits for a slot that is in use, and claims its first delivery."""
    tasks = await ended_together(poller, "good")
    written = poller.tasks.writes
    await poller.tick(ended=tuple(task.task_id for task in tasks))
    assert {poller.now_of(task).callback for task in tasks} == {CallbackState.DELIVERED}
    assert poller.tasks.writes - written == 2 * TOGETHER
    assert len(poller.receivers.attempts) == TOGETHER


async def test_the_first_are_delivered_before_the_last_are_stored(poller: PollerWorld) -> None:
    """What is further along goes first."""
    tasks = await ended_together(poller, "good")
    await poller.tick(ended=tuple(task.task_id for task in tasks))
    first_answer = poller.receivers.attempts[0][0] + poller.receivers.answer_time
    assert max(stored_at(poller, tasks)) > first_answer


@pytest.mark.parametrize("reply", [Reply(error="timeout"), Reply(status=503)])
async def test_a_receiver_that_is_slow_or_dead_holds_up_no_end_for_long(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch, reply: Reply
) -> None:
    """Its own ends wait as long as patience lasts, other receivers' not at all."""
    send = poller.receivers.send

    async def behave(url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if "slow" in url:
            await poller.clock.sleep(timedelta(seconds=14))
            return reply
        return await send(url, headers, body)

    monkeypatch.setattr(poller.receivers, "send", behave)
    slow, good = await ended_together(poller, "slow"), await ended_together(poller, "good", HOST_SLOTS)
    began = poller.clock.now()
    await poller.tick(ended=tuple(task.task_id for task in (*slow, *good)))
    asked = timedelta(seconds=2)  # twenty at once, 200 ms each
    assert len(stored_at(poller, slow)) == TOGETHER
    assert max(stored_at(poller, slow)) <= began + asked + PATIENCE
    assert max(stored_at(poller, good)) <= began + asked
    assert {poller.now_of(task).callback for task in good} == {CallbackState.DELIVERED}


async def test_the_message_of_an_end_that_waits_is_rendered_once(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be large, and many wait."""
    messages: list[str] = []

    def render(kind: str, at: datetime, **parts: Any) -> str:
        messages.append(rendered(kind, at, **parts))
        return messages[-1]

    monkeypatch.setattr(core_task, "rendered", render)
    tasks = await ended_together(poller, "good")
    await poller.tick(ended=tuple(task.task_id for task in tasks))
    assert {poller.now_of(task).callback for task in tasks} == {CallbackState.DELIVERED}
    assert len(messages) == TOGETHER


@pytest.mark.parametrize("kind", [PollKind.SUCCEEDED, PollKind.FAILED])
async def test_large_ends_do_not_wait_for_a_slot_in_crowds(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch, kind: PollKind
) -> None:
    """Each would keep the vendor's answer in memory, where it takes twenty times its size."""

    async def never(url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        del url, headers, body
        await poller.clock.sleep(timedelta(seconds=14))
        return Reply(status=200)

    monkeypatch.setattr(poller.receivers, "send", never)
    tasks = await ended_together(poller, "slow")
    said = {"result": {}, "raw": {"text": "x" * 200_000}}
    large = PollOutcome(kind=kind, data=said, size=200_000)
    poller.vendor.poll_outcomes.extend([large] * TOGETHER)
    began = poller.clock.now()
    await poller.tick(ended=tuple(task.task_id for task in tasks))
    waited = [at for at in stored_at(poller, tasks) if at >= began + timedelta(seconds=2) + SLOT_LOOK_GAP]
    assert len(stored_at(poller, tasks)) == TOGETHER
    assert len(waited) <= MOST_WAITING_SIZE // 200_000
