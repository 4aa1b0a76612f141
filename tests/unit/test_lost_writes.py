"""A write that happened and was not answered: its claim keeps no later step of the same poller waiting."""

from datetime import timedelta

import pytest

from taskhook.core.errors import StoreUnavailableError
from taskhook.core.record import CallbackState, State
from taskhook.core.task import Task
from taskhook.poller.work import PAUSE_SHORT, SCAN
from tests.unit.test_poll import PollerWorld, seed

SOON = PAUSE_SHORT + 2 * SCAN + timedelta(seconds=1)


@pytest.fixture
def poller(monkeypatch: pytest.MonkeyPatch) -> PollerWorld:
    """Give a world where no answer comes to the first write that claims a task."""
    world = PollerWorld()
    swap, lost = world.tasks.swap, list[str]()

    async def unanswered_once(old: Task, new: Task) -> Task:
        stored = await swap(old, new)
        if stored.claimed_until is not None and world.clock.now() < stored.claimed_until and not lost:
            lost.append(stored.nonce)
            error = StoreUnavailableError("ReadTimeoutError")
            error.nonce = stored.nonce
            raise error
        return stored

    monkeypatch.setattr(world.tasks, "swap", unanswered_once)
    return world


async def test_an_end_whose_write_was_not_answered_is_called_back_soon(poller: PollerWorld) -> None:
    """The next poll finds the end stored, with a claim of the poller's own."""
    task = await poller.add(State.WATCHED)
    poller.clock.pass_by(poller.vendor.task_time)
    began = poller.clock.now()
    await poller.tick()
    assert poller.now_of(task).callback is CallbackState.DELIVERED
    [(at, *_)] = poller.receivers.attempts
    assert at - began <= SOON


async def test_a_repeat_whose_claim_was_not_answered_is_made_soon(poller: PollerWorld) -> None:
    """Nothing was sent under that claim."""
    [task] = await seed(poller, "good", 1, overdue=timedelta(0))
    began = poller.clock.now()
    await poller.tick()
    assert poller.now_of(task).callback is CallbackState.DELIVERED
    [(at, *_)] = poller.receivers.attempts
    assert at - began <= SOON


async def test_a_queued_task_whose_claim_was_not_answered_is_paid_once_and_soon(poller: PollerWorld) -> None:
    """The claim's holder knows that it has not paid; without, its outcome would be called unknown."""
    task = await poller.add(State.QUEUED)
    began = poller.clock.now()
    await poller.run(timedelta(minutes=3))
    assert poller.now_of(task).callback is CallbackState.DELIVERED
    assert len(poller.vendor.submits) == 1
    assert min(poller.vendor.taken.values()) - began <= SOON


async def test_another_invocation_leaves_a_claim_alone_that_is_not_its_own(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot know what goes on under it: a task that is being paid for stays unpaid by anyone else."""
    task = await poller.add(State.QUEUED)
    sleep = poller.clock.sleep

    async def dies(duration: timedelta) -> None:
        if poller.now_of(task).state is State.SUBMITTING:
            raise RuntimeError("killed")
        await sleep(duration)

    monkeypatch.setattr(poller.clock, "sleep", dies)
    with pytest.raises(RuntimeError, match="killed"):
        await poller.tick()
    monkeypatch.setattr(poller.clock, "sleep", sleep)
    assert poller.now_of(task).state is State.SUBMITTING
    await poller.run(timedelta(minutes=3))
    assert poller.now_of(task).state is State.UNKNOWN
    assert poller.vendor.submits == []
