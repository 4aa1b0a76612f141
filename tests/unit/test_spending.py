"""What a token can spend."""

import contextlib
from datetime import timedelta

import pytest

from taskhook.core.admission import AdmissionState
from taskhook.core.errors import KeyMissingError, KeyUnavailableError, RejectedError
from taskhook.core.record import State
from taskhook.submit.spending import left_today
from tests.unit.test_submit import SubmitWorld, world

__all__ = ["world"]


def limited(world: SubmitWorld, *, models: tuple[str, ...] = (), per_day: int | None = None) -> None:
    """Limit the world's caller."""
    world.caller = world.caller.model_copy(update={"models": models, "per_day": per_day})


@pytest.mark.parametrize(
    "pattern", ["*", "alibaba/*", "modellix/*", "modellix/alibaba/wan2.2-animate-mix", "*/wan2.?-animate-mix"]
)
async def test_an_open_model_is_submitted(world: SubmitWorld, pattern: str) -> None:
    """A pattern is held against the model's name, alone and with its vendor's before it."""
    limited(world, models=("runway/*", pattern))
    assert (await world.submit()).task.state is State.WATCHED


@pytest.mark.parametrize("of", ["caller", "deployment"])
async def test_a_closed_model_is_a_403_that_names_the_open_ones(world: SubmitWorld, of: str) -> None:
    """Nothing is stored, and nothing is sent."""
    if of == "caller":
        limited(world, models=("runway/*", "kling/*"))
    else:
        world.models = "runway/*,kling/*"
    with pytest.raises(RejectedError, match=r"runway/\*, kling/\*") as rejected:
        await world.submit()
    assert (rejected.value.status, world.tasks.items, world.vendor.submits) == (403, {}, [])


async def test_a_days_tasks_are_counted_and_the_next_day_begins_anew(world: SubmitWorld) -> None:
    """429 naming the limit and when it ends; a repeat of a key is no second task."""
    limited(world, per_day=2)
    await world.submit(key="a")
    await world.submit(key="a")
    await world.submit(key="b")
    assert await left_today(world.caller, spent=world.control, now=world.clock.now()) == 0
    with pytest.raises(RejectedError, match="may have 2 tasks a day") as rejected:
        await world.submit(key="c")
    left = rejected.value.retry_after
    assert rejected.value.status == 429
    assert left is not None
    assert 0 < left <= 24 * 3600
    world.clock.pass_by(timedelta(seconds=left))
    assert (await world.submit(key="c")).task.state is State.WATCHED


async def test_what_is_refused_here_is_not_counted(world: SubmitWorld) -> None:
    """A request that is wrong, and one that finds the queue full, leave the day's tasks as they were."""
    limited(world, per_day=2)
    world.control.the_admission = AdmissionState(waiting=True)
    for number in range(3):
        with contextlib.suppress(RejectedError):
            await world.submit(key=f"queued-{number}")
    assert await left_today(world.caller, spent=world.control, now=world.clock.now()) == 0
    world.clock.pass_by(timedelta(days=1))
    world.caller = world.caller.model_copy(update={"per_day": 9})
    for number in range(3):  # one more finds room in the queue, which holds three
        with contextlib.suppress(RejectedError):
            await world.submit(key=f"more-{number}")
    assert await left_today(world.caller, spent=world.control, now=world.clock.now()) == 8
    with pytest.raises(RejectedError):
        await world.submit(mode="no such mode")
    assert await left_today(world.caller, spent=world.control, now=world.clock.now()) == 8


async def test_a_vendor_without_a_key_is_a_503_that_says_so(world: SubmitWorld) -> None:
    """Nothing is stored, and no alarm rings; a secret that cannot be read right now is no missing key."""
    raised: type[Exception] = KeyMissingError

    async def key(*, fresh: bool) -> str:
        del fresh
        raise raised("no")

    world.keys = {"modellix": key}
    with pytest.raises(RejectedError, match="taskhook vendors set modellix") as rejected:
        await world.submit()
    assert (rejected.value.status, world.tasks.items) == (503, {})
    assert [event for event in world.reported.events if event[0].startswith("vendor.")] == []
    raised = KeyUnavailableError
    assert (await world.submit()).task.state is State.WATCHED
