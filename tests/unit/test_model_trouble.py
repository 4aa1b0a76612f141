"""A vendor in lasting trouble with one kind of tasks: it costs these time, and the others next to nothing."""

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest

from taskhook.core.admission import (
    LONGEST_PAUSE,
    MOST_KINDS,
    MOST_REFUSED_POLLS,
    MOST_UNKNOWN,
    PROBE,
    AdmissionState,
    kinds_of,
)
from taskhook.core.limits import MAX_MODEL
from taskhook.core.record import State, Submission, SubmitOutcome
from taskhook.core.task import Task
from taskhook.core.vendor import PollKind, PollOutcome
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
    """Serves all but one model, or one caller's requests."""

    trouble: SubmitOutcome | None = None
    asked_in_vain = 0

    async def submit(self, model: str, request: bytes, **more: Any) -> SubmitOutcome:
        """Take the task, if it is not the ill model's."""
        is_ill = model == ILL or b"/b0" in request
        if not is_ill or self.trouble is None:
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
@pytest.mark.parametrize("model", [ILL, MODEL])
async def test_it_keeps_no_others_waiting_and_is_not_spent_on(
    trouble: SubmitOutcome, slots: int, model: str
) -> None:
    """Thousands of one caller beside another's few, for an hour; then all end."""
    poller = PollerWorld()
    vendor = poller.vendor = OneIll(poller.clock, slots=slots, task_time=timedelta(seconds=20))
    poller.ports.vendors["modellix"] = vendor  # type: ignore[index]  # a dict
    vendor.trouble = trouble
    ill = await queued(poller, 50, "bob", model)
    well = await queued(poller, 20, "carol", MODEL)
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


@pytest.mark.parametrize("trouble", [BUSY, BUSY_LONG, LOST])
async def test_it_keeps_no_other_model_of_the_same_caller_waiting(trouble: SubmitOutcome) -> None:
    """Tasks of models that are well pass by those that have waited for longer."""
    poller = PollerWorld()
    vendor = poller.vendor = OneIll(poller.clock, task_time=timedelta(seconds=20))
    poller.ports.vendors["modellix"] = vendor  # type: ignore[index]  # a dict
    vendor.trouble = trouble
    ill = await queued(poller, 50, "alice", ILL)
    poller.clock.pass_by(MINUTE)
    well = [await poller.add(State.QUEUED, f"w{number:03}", "alice") for number in range(20)]
    await poller.run(15 * MINUTE)
    assert states(poller, well) == {State.SUCCESS: len(well)}
    lost = len(ill) - states(poller, ill)[State.QUEUED]
    vendor.trouble = None
    await poller.run(HOUR)
    assert states(poller, ill)[State.SUCCESS] == len(ill) - lost
    assert lost <= (0 if trouble.submission is Submission.BUSY else MOST_UNKNOWN + 4)


async def test_it_takes_no_turns_of_a_vendor_with_few_slots() -> None:
    """A task that is refused where a slot was free, and another taken right after, tells of its kind."""
    poller = PollerWorld()
    vendor = poller.vendor = OneIll(poller.clock, slots=2, task_time=timedelta(seconds=20))
    poller.ports.vendors["modellix"] = vendor  # type: ignore[index]  # a dict
    vendor.trouble, well = BUSY, []
    for number in range(40):
        for caller in ("alice", "carol"):
            task = await poller.add(State.QUEUED, f"{caller[0]}{number:03}", caller)
            if number % 2:
                well.append(task)
            else:
                await poller.tasks.swap(task, task.model_copy(update={"model": ILL}))
    await poller.run(10 * MINUTE)
    assert states(poller, well) == {State.SUCCESS: len(well)}
    assert vendor.refused + vendor.asked_in_vain <= 30


async def test_two_kinds_in_trouble_do_not_take_turns_for_ever() -> None:
    """Those that were refused longest ago are tried first, and those that were not before all others."""
    poller = PollerWorld()
    vendor = poller.vendor = OneIll(poller.clock, task_time=timedelta(seconds=20))
    poller.ports.vendors["modellix"] = vendor  # type: ignore[index]  # a dict
    vendor.trouble = BUSY
    await queued(poller, 9, "alice", ILL)
    await queued(poller, 9, "bob", "alibaba/other")
    well = await queued(poller, 9, "carol", MODEL)
    await poller.run(10 * MINUTE)
    assert states(poller, well) == {State.SUCCESS: len(well)}
    assert vendor.asked_in_vain <= 2 * 10


@pytest.mark.parametrize("model", [ILL, MODEL])
@pytest.mark.parametrize(("slots", "seconds"), [(1, 120), (1, 50), (3, 100)])
async def test_a_vendor_without_a_free_slot_serves_both_callers_alike(
    model: str, slots: int, seconds: int
) -> None:
    """That a task is refused for want of any slot is no trouble of its kind."""
    poller = PollerWorld()
    poller.vendor.slots, poller.vendor.task_time = slots, timedelta(seconds=seconds)
    both = [await queued(poller, 90, "alice", model), await queued(poller, 90, "bob", MODEL)]
    await poller.run(40 * MINUTE)
    one, other = (states(poller, tasks)[State.SUCCESS] for tasks in both)
    assert one + other >= 0.85 * slots * 40 * 60 / (seconds + 5)
    assert abs(one - other) <= slots + 0.1 * (one + other)
    assert poller.vendor.refused <= 1.4 * 40  # as with one model


class Limited(FakeVendor):
    """Takes two tasks in any second, of whatever kind."""

    began: list[datetime]

    async def submit(self, model: str, request: bytes, **more: Any) -> SubmitOutcome:
        """Take the task, if two of this second were not taken before it."""
        now = self.clock.now()
        if len(self.began) < 2 or self.began[-2] <= now - timedelta(seconds=1):
            self.began.append(now)
            return await super().submit(model, request, **more)
        self.refused += 1
        await self.clock.sleep(timedelta(milliseconds=400))
        return BUSY


async def test_a_limit_of_all_submits_is_not_met_again_and_again() -> None:
    """That one of another model is taken right after it shows no trouble of the first one's."""
    poller = PollerWorld()
    vendor = poller.vendor = Limited(poller.clock, task_time=timedelta(seconds=30))
    vendor.began = []
    poller.ports.vendors["modellix"] = vendor  # type: ignore[index]  # a dict
    for number in range(100):
        task = await poller.add(State.QUEUED, f"t{number:03}")
        await poller.tasks.swap(task, task.model_copy(update={"model": (ILL, MODEL)[number % 2]}))
    await poller.run(2 * MINUTE)
    assert vendor.refused <= 2 * 3


async def test_a_direct_submit_of_a_model_that_rests_is_queued_and_others_are_not() -> None:
    """Its trouble is learnt of by direct submits as well; an answer that is clear ends it."""
    world = SubmitWorld()
    for number in range(MOST_UNKNOWN):
        world.vendor.submit_outcomes.append(LOST)
        await world.submit(reference=f"lost {number}")
        world.control.the_admission = world.control.the_admission.answered()  # by another model's task
    assert world.control.the_admission.is_paused_for((MODEL,), world.clock.now())
    late = await world.submit(reference="late")
    assert (late.task.state, len(world.vendor.submits)) == (State.QUEUED, MOST_UNKNOWN)
    world.clock.pass_by(MINUTE)
    world.control.the_admission = world.control.the_admission.model_copy(update={"waiting": False})
    assert (await world.submit(reference="well")).task.state is State.WATCHED
    assert world.control.the_admission.unknown_of == {}


async def test_a_free_request_that_alone_is_in_trouble_keeps_no_queue_waiting() -> None:
    """Polls show as well that the vendor is there; where neither is answered no task is risked."""
    poller = PollerWorld()
    poller.vendor.answered, poller.vendor.task_time = False, 2 * HOUR
    poller.vendor.submit_outcomes.extend([LOST] * MOST_UNKNOWN)
    tasks = [*await queued(poller, 9, "alice", MODEL), *await queued(poller, 9, "bob", ILL)]
    watched = await poller.add(State.WATCHED, "w")
    poller.vendor.poll_outcomes.extend([PollOutcome(kind=PollKind.UNAVAILABLE)] * 1000)
    await poller.run(HOUR / 2)
    assert len(poller.vendor.submits) == MOST_UNKNOWN
    poller.vendor.poll_outcomes.clear()
    await poller.run(HOUR / 4)
    assert states(poller, [*tasks, watched])[State.WATCHED] == len(tasks) - MOST_UNKNOWN + 1


def test_a_kind_rests_if_it_is_refused_again_where_another_was_taken() -> None:
    """Until the next probe, or its own acceptance, and only where the vendor asks for a pause.

    Else another is tried at once. That no slot is free at all makes no kind suspect.
    """
    pause = timedelta(seconds=30)
    ill, well = kinds_of("alice", ILL), kinds_of("alice", MODEL)
    refused = AdmissionState().refused(3, START, kinds=ill)
    assert refused.refused(3, START, kinds=well).suspect == ""
    assert refused.taken(2, kinds=well, served="").suspect == ""  # a slot was free
    suspect = refused.taken(3, kinds=well, served="")
    assert (suspect.suspect, suspect.taken(4, kinds=ill, served="").suspect) == (ILL, "")
    assert suspect.refused(4, START, kinds=ill).kinds_paused_until == {}
    paused = suspect.refused(4, START, kinds=ill, retry_after=pause)
    assert (paused.is_paused_for(ill, START), paused.is_paused_for(ill, START + PROBE)) == (True, False)
    assert paused.next_try(9, START) == START + pause
    assert not paused.taken(9, kinds=ill, served="").is_paused_for(ill, START)
    full = paused.refused(9, START, kinds=well)
    assert (full.suspect, full.slots) == (ILL, 9)  # of which was not asked
    full = paused.refused(9, START + PROBE, kinds=well)
    assert (full.suspect, full.slots) == ("", 9)
    assert full.refused(9, START + PROBE, kinds=ill).kinds_paused_until == {}


@pytest.mark.parametrize(("length", "kinds"), [(8, MOST_KINDS), (2 * MAX_MODEL, 9)])
def test_what_is_known_of_models_is_bounded(length: int, kinds: int) -> None:
    """A caller may name any number of them, and at length: all is read with each submit."""
    state = AdmissionState()
    for number in range(2 * MOST_REFUSED_POLLS):
        of = kinds_of("a" * 32, f"{number:0{length}}")
        state = (
            state.refused(1, START, kinds=of).task_took(of[0], MINUTE).poll_refused(f"tk_{number:022}", START)
        )
        for _ in range(MOST_UNKNOWN):
            state = state.outcome_unknown(START, kinds=of)
    assert len(state.unknown_of) == len(state.kinds_paused_until) == kinds
    assert list(state.kinds_paused_until)[-2:] == list(of)
    assert len(state.model_dump_json()) < 16_000
