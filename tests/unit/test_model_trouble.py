"""A vendor in lasting trouble with one model: it costs that model's tasks time, and no other's anything."""

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from taskhook.core.admission import LONGEST_PAUSE, MOST_MODELS, MOST_UNKNOWN, PROBE, AdmissionState
from taskhook.core.record import State, Submission, SubmitOutcome
from taskhook.core.task import Task
from tests.unit.test_poll import PollerWorld
from tests.unit.test_submit import MODEL, SubmitWorld
from tests.world import START, FakeVendor

MINUTE = timedelta(minutes=1)
HOUR = 60 * MINUTE
ILL = "alibaba/ill"
BUSY = SubmitOutcome(submission=Submission.BUSY, status=429)
BUSY_LONG = SubmitOutcome(submission=Submission.BUSY, status=429, retry_after=timedelta(seconds=30))
LOST = SubmitOutcome(submission=Submission.AMBIGUOUS, status=503)


class OneIll(FakeVendor):
    """Serves all models but one."""

    trouble: SubmitOutcome | None = None
    asked_in_vain = 0

    async def submit(self, model: str, request: bytes, **more: Any) -> SubmitOutcome:
        """Take the task, if it is not the ill model's."""
        if model != ILL or self.trouble is None:
            return await super().submit(model, request, **more)
        self.asked_in_vain += 1
        await self.clock.sleep(timedelta(milliseconds=400))
        return self.trouble


async def queued(poller: PollerWorld, count: int, caller: str, model: str) -> list[Task]:
    """Queue tasks of one model."""
    tasks = []
    for number in range(count):
        task = await poller.add(State.QUEUED, f"{caller[0]}{number:03}", caller)
        tasks.append(await poller.tasks.swap(task, task.model_copy(update={"model": model})))
    return tasks


def states(poller: PollerWorld, tasks: list[Task]) -> Counter[State]:
    """Count in which states they are."""
    return Counter(poller.now_of(task).state for task in tasks)


@pytest.mark.parametrize(("trouble", "slots"), [(BUSY, 1000), (BUSY, 2), (BUSY_LONG, 1000), (LOST, 2)])
async def test_it_keeps_no_other_model_waiting_and_is_not_spent_on(
    trouble: SubmitOutcome, slots: int
) -> None:
    """Thousands of one caller beside another's few, for an hour; then all end."""
    poller = PollerWorld()
    vendor = poller.vendor = OneIll(poller.clock, slots=slots, task_time=timedelta(seconds=20))
    poller.ports.vendors["modellix"] = vendor  # type: ignore[index]  # a dict
    vendor.trouble = trouble
    ill = await queued(poller, 50, "alice", ILL)
    well = await queued(poller, 20, "bob", MODEL)
    await poller.run(10 * MINUTE)
    assert states(poller, well) == {State.SUCCESS: len(well)}
    await poller.run(HOUR - 10 * MINUTE)
    assert vendor.asked_in_vain <= 60
    lost = len(ill) - states(poller, ill)[State.QUEUED]
    assert lost <= (0 if trouble.submission is Submission.BUSY else MOST_UNKNOWN + HOUR / LONGEST_PAUSE + 1)
    vendor.trouble = None
    await poller.run(HOUR)
    assert states(poller, ill)[State.SUCCESS] == len(ill) - lost
    assert not poller.control.the_admission.waiting


async def test_a_vendor_without_a_free_slot_serves_both_callers_alike() -> None:
    """That a task is refused for want of any slot is no trouble of its model."""
    poller = PollerWorld()
    poller.vendor.slots, poller.vendor.task_time = 1, timedelta(minutes=2)
    both = [await queued(poller, 20, "alice", ILL), await queued(poller, 20, "bob", MODEL)]
    await poller.run(40 * MINUTE)
    one, other = (states(poller, tasks)[State.SUCCESS] for tasks in both)
    assert one + other >= 15
    assert abs(one - other) <= 2
    assert poller.vendor.refused <= 2 * 40


async def test_a_direct_submit_of_a_model_that_rests_is_queued_and_others_are_not() -> None:
    """Its trouble is learnt of by direct submits as well; an answer that is clear ends it."""
    world = SubmitWorld()
    for number in range(MOST_UNKNOWN):
        world.vendor.submit_outcomes.append(LOST)
        await world.submit(reference=f"lost {number}")
        world.control.the_admission = world.control.the_admission.answered()  # by another model's task
    assert world.control.the_admission.rests(MODEL, world.clock.now())
    resting = await world.submit(reference="resting")
    assert (resting.task.state, len(world.vendor.submits)) == (State.QUEUED, MOST_UNKNOWN)
    world.clock.pass_by(MINUTE)
    world.control.the_admission = world.control.the_admission.model_copy(update={"waiting": False})
    assert (await world.submit(reference="well")).task.state is State.WATCHED
    assert world.control.the_admission.unknown_of == {}


def test_a_model_rests_once_another_is_taken_where_it_was_refused() -> None:
    """Until the next probe, or its own acceptance; two refusals say only how many slots there are."""
    refused = AdmissionState().refused(3, START, model=ILL)
    assert not refused.refused(3, START, model=MODEL).rests(ILL, START)
    assert not refused.taken(2, START, model=MODEL, served="").rests(ILL, START)  # a slot was free
    resting = refused.taken(3, START, model=MODEL, served="")
    assert (resting.rests(ILL, START), resting.rests(ILL, START + PROBE)) == (True, False)
    assert resting.next_try(9, START) == START
    assert not resting.taken(9, START, model=ILL, served="").rests(ILL, START)


def test_what_is_known_of_models_is_bounded() -> None:
    """A caller may name any number of them."""
    state = AdmissionState()
    for number in range(2 * MOST_MODELS):
        for _ in range(MOST_UNKNOWN):
            state = state.outcome_unknown(START, model=f"m{number}")
    assert len(state.unknown_of) == len(state.rests_until) == MOST_MODELS
