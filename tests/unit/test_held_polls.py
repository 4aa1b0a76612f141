"""Held polls that meet anything but a held and true answer; and the first polls after a pause."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from taskhook.core.record import State
from taskhook.core.task import Task
from taskhook.core.vendor import PollKind, PollOutcome
from taskhook.poller.long_poll import CHECK_GAP, NOT_HELD_FOR, LongPollSupport
from taskhook.poller.pacing import PROBES
from tests.unit.test_poll import PollerWorld, minutes, ticks

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
MODEL = "alibaba/wan2.2-animate-mix"
TASK_TIME = timedelta(seconds=45)


@pytest.fixture
def poller() -> PollerWorld:
    """Give a world whose vendor holds polls."""
    world = PollerWorld()
    world.vendor.holds, world.vendor.task_time = True, TASK_TIME
    return world


def answers_held_polls(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch, after_s: float, outcome: PollOutcome
) -> list[str]:
    """Let every poll that is to be held be answered so, and list the others."""
    ask, plain = poller.vendor.poll, list[str]()

    async def poll(upstream_task_id: str, *, hold: bool = False, **_: object) -> PollOutcome:
        if hold:
            await poller.clock.sleep(timedelta(seconds=after_s))
            return outcome
        plain.append(upstream_task_id)
        return await ask(upstream_task_id)

    monkeypatch.setattr(poller.vendor, "poll", poll)
    return plain


async def stream(poller: PollerWorld, count: int) -> list[timedelta]:
    """Let a task come every 12 s, and an invocation every minute; give how late each end was seen."""
    tasks: list[Task] = []

    async def come() -> None:
        for number in range(count):
            tasks.append(await poller.add(State.WATCHED, f"t{number}"))
            await poller.clock.sleep(timedelta(seconds=12))

    coming = asyncio.create_task(come())
    await ticks(poller, count * timedelta(seconds=12) + minutes(5))
    await coming
    never = poller.clock.now() + minutes(60)
    return [(poller.now_of(task).ended_at or never) - task.accepted_at - TASK_TIME for task in tasks]


@pytest.mark.parametrize("after_s", [6, 40])
async def test_held_polls_that_always_say_pending_are_found_out(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch, after_s: float
) -> None:
    """Whatever serves `?wait=true` is behind; now and then a task is asked about plainly."""
    answers_held_polls(poller, monkeypatch, after_s, PollOutcome(kind=PollKind.PENDING))
    late = await stream(poller, 40)
    assert max(late) <= CHECK_GAP + minutes(1)
    assert max(late[-10:]) <= timedelta(seconds=5)


async def test_polls_that_are_always_cut_are_held_no_more(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a proxy that waits for less than the vendor does, while other tasks' polls are younger ones."""
    cut = PollOutcome(kind=PollKind.UNAVAILABLE, message="the vendor answered 504")
    answers_held_polls(poller, monkeypatch, 29, cut)
    late = await stream(poller, 30)
    assert max(late[-10:]) <= timedelta(seconds=5)


async def test_a_key_that_is_refused_for_held_polls_alone_pauses_nothing(
    poller: PollerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain poll says more of the key."""
    plain = answers_held_polls(poller, monkeypatch, 0.1, PollOutcome(kind=PollKind.KEY_REFUSED))
    late = await stream(poller, 10)
    assert max(late) <= timedelta(seconds=10)
    assert plain
    assert poller.reported.count("vendor.paused") == 0


async def test_a_key_that_is_refused_for_every_poll_pauses_them(poller: PollerWorld) -> None:
    """Of many tasks that were asked about at once a few are asked about plainly, until the first answer."""
    for number in range(30):
        await poller.add(State.WATCHED, f"t{number}")
    poller.vendor.poll_outcomes.extend([PollOutcome(kind=PollKind.KEY_REFUSED)] * 200)
    await ticks(poller, minutes(1))
    assert poller.reported.count("vendor.paused") == 1
    assert len(poller.vendor.polls) <= 50


def refuses(polls: int, outcome: PollOutcome) -> Callable[[PollerWorld], None]:
    """Let the next polls be answered so."""
    return lambda poller: poller.vendor.poll_outcomes.extend([outcome] * polls)


@pytest.mark.parametrize("long_poll", [True, False])
@pytest.mark.parametrize(
    "refuse",
    [
        refuses(500, PollOutcome(kind=PollKind.THROTTLED, retry_after=minutes(20))),
        refuses(500, PollOutcome(kind=PollKind.UNAVAILABLE, retry_after=minutes(20))),
        refuses(500, PollOutcome(kind=PollKind.PENDING, retry_after=minutes(20))),
    ],
)
async def test_after_a_pause_few_polls_show_whether_another_one_follows(
    poller: PollerWorld, refuse: Callable[[PollerWorld], None], *, long_poll: bool
) -> None:
    """A vendor's trouble may last longer than what it asks for, and longer than one answer may ask for."""
    poller.rules = replace(poller.rules, long_poll=long_poll)
    poller.vendor.task_time = minutes(600)
    for number in range(60):
        await poller.add(State.WATCHED, f"t{number}")
    refuse(poller)
    await ticks(poller, minutes(5))
    first = len(poller.vendor.polls)
    await ticks(poller, minutes(60))
    assert 2 <= len(poller.vendor.polls) - first <= 3 * PROBES


async def test_when_a_probe_is_answered_all_that_wait_are_asked_about(poller: PollerWorld) -> None:
    """Within moments, however many there are."""
    poller.rules = replace(poller.rules, long_poll=False)
    for number in range(60):
        await poller.add(State.WATCHED, f"t{number}")
    poller.clock.pass_by(minutes(1))
    poller.vendor.poll_outcomes.extend(
        [PollOutcome(kind=PollKind.THROTTLED, retry_after=timedelta(seconds=20))] * 20
    )
    began = poller.clock.now()
    await ticks(poller, minutes(1))
    ended = [task.ended_at for task in poller.tasks.items.values() if task.ended_at is not None]
    assert len(ended) == 60
    assert max(ended) - began <= timedelta(seconds=25)


def test_what_was_held_before_it_was_found_out_is_no_proof() -> None:
    """Polls that were under way then say what they would have said anyway."""
    support = LongPollSupport()
    support.found(MODEL, NOW, holds=False)
    support.held(MODEL, NOW + timedelta(seconds=20), since=NOW - timedelta(seconds=20))
    assert support.holding(MODEL, NOW + timedelta(seconds=20)) is False
    support.held(MODEL, NOW + timedelta(seconds=40), since=NOW + timedelta(seconds=1))
    assert support.holding(MODEL, NOW + timedelta(seconds=40)) is True


def test_one_task_that_ended_in_that_very_moment_proves_nothing() -> None:
    """Two in a while do."""
    support = LongPollSupport()
    support.found(MODEL, NOW, holds=True)
    support.belied(MODEL, NOW)
    support.belied(MODEL, NOW + NOT_HELD_FOR)
    assert support.holding(MODEL, NOW + NOT_HELD_FOR) is True
    support.belied(MODEL, NOW + NOT_HELD_FOR + minutes(1))
    assert support.holding(MODEL, NOW + NOT_HELD_FOR + minutes(1)) is False
