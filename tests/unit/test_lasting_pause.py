"""A pause that an invocation has learnt of lasts, whatever others write of the same vendor meanwhile."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from taskhook.core.admission import AdmissionState
from taskhook.core.record import State, Submission, SubmitOutcome
from taskhook.core.vendor import PollKind, PollOutcome
from tests.unit.test_poll import PollerWorld
from tests.unit.test_submit import SubmitWorld
from tests.world import MemoryControl

MINUTE = timedelta(minutes=1)
PAUSE = 30 * MINUTE


class Beside(MemoryControl):
    """The writes of other invocations come first, so many times."""

    rivals = 0

    async def set_admission(self, vendor: str, old: AdmissionState, new: AdmissionState) -> AdmissionState:
        """Store the state, if no other one is faster."""
        if self.rivals:
            self.rivals -= 1
            await super().set_admission(vendor, self.the_admission, self.the_admission)
        return await super().set_admission(vendor, old, new)


@pytest.fixture
def poller() -> PollerWorld:
    """Give a world in which others write too."""
    return PollerWorld(control=Beside())


async def _throttled_submit(poller: PollerWorld) -> Callable[[], int]:
    poller.vendor.submit_outcomes.append(
        SubmitOutcome(submission=Submission.BUSY, status=429, retry_after=PAUSE)
    )
    await poller.add(State.QUEUED)
    return lambda: len(poller.vendor.submits)


async def _refused_key(poller: PollerWorld) -> Callable[[], int]:
    refused = SubmitOutcome(submission=Submission.REFUSED_HERE, status=401, retry_after=PAUSE)
    poller.vendor.submit_outcomes.append(refused)
    await poller.add(State.QUEUED)
    return lambda: len(poller.vendor.submits)


async def _throttled_poll(poller: PollerWorld) -> Callable[[], int]:
    poller.vendor.poll_outcomes.append(PollOutcome(kind=PollKind.THROTTLED, retry_after=PAUSE))
    await poller.add(State.WATCHED)
    return lambda: len(poller.vendor.polls)


@pytest.mark.parametrize("trouble", [_throttled_submit, _refused_key, _throttled_poll])
@pytest.mark.parametrize("rivals", [1, 2])
async def test_a_pause_outlasts_the_writes_of_others(
    poller: PollerWorld,
    trouble: Callable[[PollerWorld], Awaitable[Callable[[], int]]],
    rivals: int,
) -> None:
    """Nothing more is asked before it is over, and what was to be done is done then."""
    asked = await trouble(poller)
    assert isinstance(poller.control, Beside)
    poller.control.rivals = rivals
    await poller.run(PAUSE - MINUTE)
    assert asked() == 1
    await poller.run(10 * MINUTE)
    assert {task.state for task in poller.tasks.items.values()} == {State.SUCCESS}


@pytest.mark.parametrize("rivals", [1, 2])
@pytest.mark.parametrize("submission", [Submission.BUSY, Submission.AMBIGUOUS])
async def test_what_a_direct_submit_learns_outlasts_them_too(rivals: int, submission: Submission) -> None:
    """The pause that the vendor asked for, and that a task waits or an outcome is unknown."""
    world = SubmitWorld(control=Beside())
    world.vendor.submit_outcomes.append(SubmitOutcome(submission=submission, status=429, retry_after=PAUSE))
    assert isinstance(world.control, Beside)
    world.control.rivals = rivals
    await world.submit()
    admission = world.control.the_admission
    assert admission.paused(world.clock.now() + PAUSE - MINUTE)
    assert (admission.waiting, admission.unknown) == (
        (True, 0) if submission is Submission.BUSY else (False, 1)
    )
