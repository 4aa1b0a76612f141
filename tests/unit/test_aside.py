"""Tasks beyond those in memory: what of them has ended waits for no request to the vendor."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from taskhook.core.admission import AdmissionState
from taskhook.core.record import CallbackState, ErrorCode, State
from taskhook.core.task import Task
from taskhook.poller import aside, watch
from tests.unit.test_poll import RETENTION, PollerWorld, minutes, ticks

HOUR = minutes(60)


@pytest.fixture
def poller() -> PollerWorld:
    """Give a fresh world."""
    return PollerWorld()


def paused(poller: PollerWorld) -> None:
    """Let the vendor have asked for an hour without requests."""
    poller.control.the_admission = AdmissionState(polls_paused_until=poller.clock.now() + HOUR)


def short(poller: PollerWorld) -> None:
    """Let there be one request in six seconds."""
    poller.rules = replace(poller.rules, requests_per_minute=11)


async def crowd(poller: PollerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let more tasks run than are kept in memory, all older than what is added next."""
    monkeypatch.setattr(watch, "LOADED", 20)
    monkeypatch.setattr(aside, "READ_AT_ONCE", 7)
    poller.rules = replace(poller.rules, long_poll=False)
    poller.vendor.task_time = minutes(600)
    for number in range(200):
        await poller.add(State.WATCHED, f"t{number}")
    poller.clock.pass_by(minutes(2))


async def orphan(poller: PollerWorld, name: str) -> Task:
    """Add a task that has ended; the process that was to deliver it has died."""
    task, now = await poller.add(State.WATCHED, name), poller.clock.now()
    return await poller.tasks.swap(task, task.succeeded({}, now, retention=RETENTION, claim=now))


@pytest.mark.parametrize("trouble", [paused, short])
@pytest.mark.parametrize("leads", [True, False])
async def test_what_has_ended_is_called_back_though_the_vendor_may_not_be_asked(
    poller: PollerWorld,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[PollerWorld], None],
    *,
    leads: bool,
) -> None:
    """However many other tasks wait for their polls: this one needs none."""
    await crowd(poller, monkeypatch)
    ended = [await orphan(poller, f"e{number}") for number in range(30)]
    trouble(poller)
    poller.rules = replace(poller.rules, leads=leads)
    began = poller.clock.now()
    await ticks(poller, minutes(1))
    assert {poller.now_of(task).callback for task in ended} == {CallbackState.DELIVERED}
    assert max(at for at, *_ in poller.receivers.attempts) - began <= timedelta(seconds=20)


@pytest.mark.parametrize("state", [State.SUBMITTING, State.UNKNOWN])
async def test_what_the_table_alone_can_end_ends_though_the_vendor_may_not_be_asked(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    """A submit whose process died, or whose outcome was never learnt, beyond what is in memory."""
    await crowd(poller, monkeypatch)
    task = await poller.add(state)
    paused(poller)
    await ticks(poller, minutes(20))
    ended = poller.now_of(task)
    assert (ended.error, ended.callback) == (ErrorCode.SUBMISSION_UNKNOWN, CallbackState.DELIVERED)
    assert ended.ended_at is not None
    assert ended.ended_at - task.accepted_at <= minutes(17)


async def test_what_is_set_aside_is_read_once_by_a_leader(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pause nothing else is to be read of it."""
    await crowd(poller, monkeypatch)
    paused(poller)
    read, read_many = list[str](), poller.tasks.read_many

    async def reading(task_ids: list[str]) -> list[Task]:
        read.extend(task_ids)
        return await read_many(task_ids)

    monkeypatch.setattr(poller.tasks, "read_many", reading)
    await poller.tick()
    assert len(read) == len(set(read)) == 200
    assert poller.tasks.writes == 200


async def test_an_invocation_that_is_over_keeps_no_crowd_in_a_warm_process(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one's crowd takes the memory of this one's; a cycle of references would hold both."""
    kept: list[aside.SetAside] = []
    begin = aside.SetAside.__init__

    def noted(self: aside.SetAside, *given: object, **named: object) -> None:
        kept.append(self)
        begin(self, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(aside.SetAside, "__init__", noted)
    await crowd(poller, monkeypatch)
    most: list[int] = []
    add = aside.SetAside.add

    def counted(self: aside.SetAside, task_id: str, *, due: float, accepted: float) -> None:
        add(self, task_id, due=due, accepted=accepted)
        most.append(len(self))

    monkeypatch.setattr(aside.SetAside, "add", counted)
    await poller.tick()
    assert max(most) >= 150
    assert [len(one) for one in kept if len(one)] == []
