"""A poll that makes the vendor ask for a pause, each time, while it answers about all other tasks."""

from collections import deque
from datetime import datetime, timedelta
from typing import Any

import pytest

from taskhook.core.admission import MOST_REFUSED_POLLS, AdmissionState
from taskhook.core.record import State
from taskhook.core.vendor import PollKind, PollOutcome
from tests.unit.test_poll import PollerWorld
from tests.world import START, FakeVendor

MINUTE = timedelta(minutes=1)
REFUSALS = [
    PollOutcome(kind=PollKind.KEY_REFUSED),
    PollOutcome(kind=PollKind.THROTTLED, retry_after=MINUTE),
    PollOutcome(kind=PollKind.UNAVAILABLE, retry_after=MINUTE),
]


class SomeIll(FakeVendor):
    """Answers about all tasks but the ill ones."""

    trouble: PollOutcome | None = None

    async def poll(self, upstream_task_id: str, *, hold: bool = False, **more: Any) -> PollOutcome:
        """Say how far the task is, if it is well."""
        if self.trouble is None or not upstream_task_id.startswith("task-ill"):
            return await super().poll(upstream_task_id, hold=hold, **more)
        self.polls.append((self.clock.now(), upstream_task_id))
        await self.clock.sleep(self.answer_time)
        return self.trouble


@pytest.fixture
def poller() -> PollerWorld:
    """Give a world with such a vendor."""
    poller = PollerWorld()
    poller.vendor = SomeIll(poller.clock, task_time=3 * MINUTE)
    poller.ports.vendors["modellix"] = poller.vendor  # type: ignore[index]  # a dict
    return poller


@pytest.mark.parametrize("trouble", REFUSALS, ids=[refusal.kind for refusal in REFUSALS])
@pytest.mark.parametrize("count", [1, 3])
async def test_it_delays_no_other_task_for_long(
    poller: PollerWorld, trouble: PollOutcome, count: int
) -> None:
    """More of them than are asked about after a pause, too; they end once they are answered about."""
    assert isinstance(poller.vendor, SomeIll)
    poller.vendor.trouble = trouble
    ill = [await poller.add(State.WATCHED, f"ill{number}") for number in range(count)]
    well = [await poller.add(State.WATCHED, f"w{number}", "bob") for number in range(100)]
    await poller.run(6 * MINUTE)
    assert {poller.now_of(task).state for task in well} == {State.SUCCESS}
    before = len(poller.vendor.polls)
    later = [await poller.add(State.WATCHED, f"l{number}", "bob") for number in range(20)]
    await poller.run(4 * MINUTE)
    assert {poller.now_of(task).state for task in later} == {State.SUCCESS}
    asked = [name for _, name in poller.vendor.polls[before:] if name.startswith("task-ill")]
    assert len(asked) <= count * (4 + 1) * 2  # a minute apart, and anew by each invocation
    assert any("refuses to tell" in str(told["error"]) for told in poller.facts("vendor.unavailable"))
    poller.vendor.trouble = None
    await poller.run(5 * MINUTE)
    assert {poller.now_of(task).state for task in ill} == {State.SUCCESS}


@pytest.mark.parametrize("trouble", REFUSALS, ids=[refusal.kind for refusal in REFUSALS])
async def test_a_vendor_that_refuses_all_polls_is_left_alone_each_time(
    poller: PollerWorld, trouble: PollOutcome
) -> None:
    """Two polls a pause, also where the same tasks were refused before; then all end."""
    tasks = [await poller.add(State.WATCHED, f"ill{number}") for number in range(30)]
    assert isinstance(poller.vendor, SomeIll)
    for _ in range(2):
        poller.vendor.task_time = timedelta(days=1)
        poller.vendor.trouble = trouble
        await poller.run(2 * MINUTE)
        before = len(poller.vendor.polls)
        await poller.run(20 * MINUTE)
        assert len(poller.vendor.polls) - before <= 2 * 21
        poller.vendor.trouble = None
        await poller.run(5 * MINUTE)
        assert not poller.control.the_admission.refused_polls
    poller.vendor.task_time = timedelta(0)
    await poller.run(5 * MINUTE)
    assert {poller.now_of(task).state for task in tasks} == {State.SUCCESS}


async def test_no_answer_about_others_says_nothing_of_it(poller: PollerWorld) -> None:
    """The vendor is left alone as before: the key may be refused for all."""
    assert isinstance(poller.vendor, SomeIll)
    poller.vendor.trouble = REFUSALS[0]
    ill = await poller.add(State.WATCHED, "ill")
    await poller.run(MINUTE)
    await poller.add(State.WATCHED, "other")
    poller.vendor.poll_outcomes.extend([PollOutcome(kind=PollKind.UNAVAILABLE)] * 1000)
    await poller.run(3 * MINUTE)
    assert len(poller.vendor.poll_outcomes) < 1000
    assert poller.control.the_admission.refused_polls == {ill.task_id: False}


async def test_a_refusal_that_names_no_time_pauses_all_the_same(poller: PollerWorld) -> None:
    """`Retry-After: 0`, or a date that is over by our clock."""
    for number in range(30):
        await poller.add(State.WATCHED, f"ill{number}")
    assert isinstance(poller.vendor, SomeIll)
    poller.vendor.task_time = timedelta(days=1)
    poller.vendor.trouble = PollOutcome(kind=PollKind.THROTTLED)
    await poller.run(10 * MINUTE)
    without = len(poller.vendor.polls)
    poller.vendor.trouble = PollOutcome(kind=PollKind.THROTTLED, retry_after=timedelta(0))
    await poller.run(10 * MINUTE)
    assert len(poller.vendor.polls) - without <= 1.5 * without


class Limited(FakeVendor):
    """Answers so many polls in any minute, whatever tasks they are of."""

    answered_at: deque[datetime]
    in_vain = 0

    async def poll(self, upstream_task_id: str, *, hold: bool = False, **more: Any) -> PollOutcome:
        """Say how far the task is, if the minute has had fewer than 20 answers."""
        now = self.clock.now()
        lately = [at for at in self.answered_at if at > now - MINUTE]
        if len(lately) < 20:
            self.answered_at.append(now)
            return await super().poll(upstream_task_id, hold=hold, **more)
        self.in_vain += 1
        await self.clock.sleep(self.answer_time)
        return PollOutcome(kind=PollKind.THROTTLED, retry_after=MINUTE / 2)


async def test_a_limit_of_all_polls_is_no_trouble_of_those_that_meet_it(poller: PollerWorld) -> None:
    """It is chance which tasks are refused: each pause is kept by all, and is met by few."""
    poller.vendor = vendor = Limited(poller.clock, task_time=10 * MINUTE)
    vendor.answered_at = deque(maxlen=20)
    poller.ports.vendors["modellix"] = vendor  # type: ignore[index]  # a dict
    tasks = [await poller.add(State.WATCHED, f"t{number}") for number in range(100)]
    await poller.run(20 * MINUTE)
    assert {poller.now_of(task).state for task in tasks} == {State.SUCCESS}
    assert vendor.in_vain <= 2.5 * 20 * 2


def test_what_is_known_of_refused_polls_is_bounded() -> None:
    """However many are refused."""
    state = AdmissionState()
    for number in range(2 * MOST_REFUSED_POLLS):
        state = state.poll_refused(f"t{number}", START)
    assert len(state.refused_polls) == MOST_REFUSED_POLLS
    assert state.poll_answered("t", START - MINUTE) is state  # asked before the pause
