"""What tells the operator that tasks wait for a vendor: each tick says so, and each pause says why."""

from datetime import timedelta

import pytest

from taskhook.core.admission import MOST_UNKNOWN, AdmissionState
from taskhook.core.record import State, Submission, SubmitOutcome
from tests.unit.test_poll import PollerWorld

MINUTE = timedelta(minutes=1)


@pytest.fixture
def poller() -> PollerWorld:
    """Give a fresh world."""
    return PollerWorld()


def waits(poller: PollerWorld) -> list[float]:
    """Tell how long the oldest queued task had waited, as often as that was told."""
    return [told["oldest_queued_s"] for told in poller.facts("queue.waited")]


def pauses(poller: PollerWorld) -> list[tuple[str, float]]:
    """List the pauses that were told, with their reasons."""
    return [(told["reason"], told["seconds"]) for told in poller.facts("vendor.paused")]


async def test_each_tick_of_a_long_pause_tells_that_tasks_wait(poller: PollerWorld) -> None:
    """The oldest of all callers'; so the alarm of the queue's deadline rings in a pause, too."""
    await poller.add(State.QUEUED, "old")
    poller.clock.pass_by(MINUTE)
    await poller.add(State.QUEUED, "new", "bob")
    until = poller.clock.now() + 30 * MINUTE
    poller.control.the_admission = AdmissionState(waiting=True, paused_until=until)
    await poller.run(3 * MINUTE)
    assert waits(poller) == [60, 120, 180]
    assert poller.vendor.submits == []


async def test_each_tick_with_all_slots_taken_tells_that_tasks_wait(poller: PollerWorld) -> None:
    """Also one that does not try a slot more."""
    poller.vendor.slots, poller.vendor.task_time = 0, timedelta(hours=3)
    await poller.add(State.QUEUED)
    await poller.run(5 * MINUTE)
    assert len(waits(poller)) == 5


async def test_what_waited_too_long_is_told_when_it_ends_in_a_pause(poller: PollerWorld) -> None:
    """Those behind it, which wait on, are told of too."""
    old = await poller.add(State.QUEUED, "old")
    poller.clock.pass_by(poller.rules.max_queue_age - MINUTE)
    await poller.add(State.QUEUED, "new")
    poller.clock.pass_by(2 * MINUTE)
    until = poller.clock.now() + 30 * MINUTE
    poller.control.the_admission = AdmissionState(waiting=True, paused_until=until)
    await poller.tick()
    assert poller.now_of(old).state is State.FAILED
    assert waits(poller) == [120]


async def test_a_vendor_in_trouble_is_told_of_at_each_probe_and_when_it_is_over(poller: PollerWorld) -> None:
    """Three unknown outcomes, free requests without an answer, and the first answer."""
    unknown = SubmitOutcome(submission=Submission.AMBIGUOUS, status=503)
    poller.vendor.submit_outcomes.extend([unknown] * MOST_UNKNOWN)
    poller.vendor.answered = False
    for number in range(MOST_UNKNOWN + 1):
        await poller.add(State.QUEUED, f"q{number}")
    await poller.run(2 * MINUTE)
    assert pauses(poller)[:3] == [("no_answer", 10), ("no_answer", 20), ("no_answer", 40)]
    assert poller.facts("vendor.resumed") == []
    poller.vendor.answered = True
    await poller.run(6 * MINUTE)
    assert poller.facts("vendor.resumed") == [{"vendor": "modellix"}]


@pytest.mark.parametrize("submission", [Submission.BUSY, Submission.TAKEN])
async def test_a_pause_that_the_vendor_asks_for_at_a_submit_is_told(
    poller: PollerWorld, submission: Submission
) -> None:
    """Whatever became of the task."""
    asks = SubmitOutcome(submission=submission, status=429, upstream_task_id="up", retry_after=20 * MINUTE)
    poller.vendor.submit_outcomes.append(asks)
    await poller.add(State.QUEUED)
    await poller.tick()
    assert pauses(poller) == [("throttled", 1200)]


async def test_a_refusal_that_asks_for_no_pause_is_not_told_as_one(poller: PollerWorld) -> None:
    """`Retry-After: 0` of a vendor whose slots are taken: what waits for them is told."""
    busy = SubmitOutcome(submission=Submission.BUSY, status=429, retry_after=timedelta(0))
    poller.vendor.submit_outcomes.append(busy)
    await poller.add(State.QUEUED)
    await poller.tick()
    assert pauses(poller) == []


async def test_a_vendor_that_serves_is_not_told_of(poller: PollerWorld) -> None:
    """Neither are slots that are taken: what waits for them is."""
    poller.vendor.slots = 1
    for number in range(3):
        await poller.add(State.QUEUED, f"q{number}")
    await poller.run(10 * MINUTE)
    assert (pauses(poller), poller.facts("vendor.resumed")) == ([], [])
