import asyncio
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskhook.hosts import (
    FAILURES,
    FIRST_PLACES,
    LEAST_THROTTLE,
    MOST_PLACES,
    MOST_THROTTLE,
    PLACES,
    REST,
    Health,
    Hosts,
    host_of,
)
from taskhook.ports import Reply
from taskhook.task import State, Task
from tests.world import START, VirtualClock

UP, DOWN = Reply(status=200), Reply(error="refused")
replies = st.builds(
    Reply,
    status=st.integers(100, 599) | st.none(),
    error=st.sampled_from([None, "timeout", "dns", "refused", "forbidden_target"]),
    retry_after=st.none() | st.timedeltas(timedelta(0), timedelta(days=3)),
)


def after(*heard: Reply, health: Health | None = None) -> Health:
    """Let a host be heard, all at once."""
    known = health or Health()
    for reply in heard:
        known = known.heard(reply, START)
    return known


@given(heard=st.lists(st.tuples(replies, st.timedeltas(timedelta(0), timedelta(minutes=20))), max_size=60))
def test_a_host_always_has_a_place_and_rests_a_bounded_time(heard: list[tuple[Reply, timedelta]]) -> None:
    """Whatever it does, nobody is shut out for good, and nobody gets more than one host may have."""
    health, now = Health(), START
    for reply, passed in heard:
        now += passed
        health = health.heard(reply, now)
        assert 1 <= health.places <= MOST_PLACES
        assert not health.resting(now + max(REST, MOST_THROTTLE))


def test_a_host_is_down_after_five_failures_in_a_row() -> None:
    """Then it rests, and a single further failure sends it to rest again."""
    assert not after(*[DOWN] * (FAILURES - 1)).resting(START)
    down = after(*[DOWN] * FAILURES)
    assert (down.resting(START), down.places) == (True, 1)
    later = START + REST
    assert not down.resting(later)
    assert down.heard(DOWN, later).resting(later)


@pytest.mark.parametrize("status", [200, 302, 404, 409, 410, 500, 503])
def test_any_answer_shows_that_the_host_is_up(status: int) -> None:
    """What it says of the message is not a failure of the host."""
    mixed = [*[DOWN] * (FAILURES - 1), Reply(status=status)] * 3
    assert not after(*mixed).resting(START)
    assert after(Reply(status=status)).places == FIRST_PLACES + 1


@pytest.mark.parametrize("error", ["forbidden_target", "caller_unreadable"])
def test_what_was_never_sent_says_nothing_of_the_host(error: str) -> None:
    """A broken record of one caller does not stop the others' callbacks."""
    assert after(*[Reply(error=error)] * 50) == Health()


@pytest.mark.parametrize("status", [429, 502, 504])
@pytest.mark.parametrize(
    ("asked", "rest"),
    [
        (None, LEAST_THROTTLE),
        (timedelta(0), LEAST_THROTTLE),
        (timedelta(minutes=2), timedelta(minutes=2)),
        (timedelta(days=1), MOST_THROTTLE),
    ],
)
def test_a_throttling_host_rests_and_gets_half_the_places(status: int, asked: timedelta | None, rest: timedelta) -> None:
    """For as long as it asks for, within bounds."""
    health = after(Reply(status=status, retry_after=asked), health=Health(places=20))
    assert (health.places, health.rests_until) == (10, START + rest)


def test_what_was_under_way_when_the_rest_began_does_not_prolong_it() -> None:
    """Twenty attempts that fail together are one finding."""
    assert after(*[DOWN] * 20, health=Health(places=20)) == after(*[DOWN] * FAILURES)


class Crowd:
    """Deliveries that hold their place until they are told to end."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.hosts = Hosts(self.clock)
        self.inside: list[str] = []
        self.dismissed = 0
        self.ends: list[asyncio.Event] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, host: str, count: int) -> None:
        """Let some ask for a place."""
        self.tasks += [asyncio.create_task(self._deliver(host)) for _ in range(count)]
        await self.settle()

    async def _deliver(self, host: str) -> None:
        async with self.hosts.place(host) as granted:
            if not granted:
                self.dismissed += 1
                return
            end = asyncio.Event()
            self.ends.append(end)
            self.inside.append(host)
            await end.wait()
            self.inside.remove(host)

    async def end(self, count: int) -> None:
        """Let those that have been inside the longest leave."""
        for end in self.ends[:count]:
            end.set()
        del self.ends[:count]
        await self.settle()

    @staticmethod
    async def settle() -> None:
        """Let everybody go as far as they can."""
        for _ in range(20):
            await asyncio.sleep(0)


async def test_a_host_gets_its_own_share_and_no_more() -> None:
    """Hosts that never answer take the first few places each; another one is served at once."""
    crowd = Crowd()
    for number in range(10):
        await crowd.come(f"slow-{number}", 100)
    await crowd.come("good", 1)
    assert crowd.inside.count("slow-0") == FIRST_PLACES
    assert "good" in crowd.inside


async def test_no_more_than_all_places_are_taken_and_hosts_have_turns() -> None:
    """A place that becomes free goes to the host that has the fewest, not to whoever came first."""
    crowd = Crowd()
    for number in range(90):
        await crowd.come(f"host-{number}", 10)
    assert len(crowd.inside) == PLACES
    assert [crowd.inside.count(f"host-{number}") for number in (0, 70)] == [FIRST_PLACES, 1]  # where room is short, one each
    await crowd.end(1)
    assert len(crowd.inside) == PLACES
    assert crowd.inside.count("host-0") == FIRST_PLACES - 1
    assert crowd.inside[-1] == "host-80"
    while crowd.ends:
        await crowd.end(PLACES)
    assert (crowd.inside, all(task.done() for task in crowd.tasks)) == ([], True)


async def test_places_grow_with_answers() -> None:
    """A host that answers is soon served by twenty at once."""
    crowd = Crowd()
    await crowd.come("good", 100)
    for _ in range(30):
        crowd.hosts.heard("good", UP)
        await crowd.end(1)
    assert len(crowd.inside) == MOST_PLACES


async def test_who_waits_for_a_host_that_goes_down_is_sent_away() -> None:
    """So that nothing hangs on a dead host; what comes later does not even wait."""
    crowd = Crowd()
    await crowd.come("dead", 50)
    rests = [crowd.hosts.heard("dead", DOWN) for _ in range(FAILURES)]
    assert rests == [None] * (FAILURES - 1) + [REST]
    await crowd.settle()
    assert crowd.dismissed == 50 - FIRST_PLACES
    await crowd.come("dead", 1)
    assert crowd.dismissed == 51 - FIRST_PLACES
    await crowd.end(FIRST_PLACES)
    crowd.clock.pass_by(REST)
    assert crowd.hosts.rests_until("dead") is None
    await crowd.come("dead", 3)
    assert crowd.inside == ["dead"]
    crowd.hosts.heard("dead", UP)
    await crowd.end(1)
    assert crowd.inside == ["dead"] * 2
    await crowd.end(2)


async def test_who_gives_up_waiting_takes_no_place_along() -> None:
    """Whether the place was granted already or not."""
    crowd = Crowd()
    await crowd.come("host", FIRST_PLACES + 2)
    crowd.tasks[-1].cancel()
    crowd.ends[0].set()
    await crowd.settle()
    crowd.tasks[1].cancel()
    await crowd.come("host", 2)
    assert len(crowd.inside) == FIRST_PLACES + 1  # the cancelled one is still listed, its place is not taken
    assert crowd.hosts._taken["host"] == FIRST_PLACES


def test_a_host_is_name_and_port() -> None:
    """Two servers on one machine are two hosts."""
    task = Task(task_id="t", caller="a", model="m", request="", fingerprint="", accepted_at=START, state=State.QUEUED)
    urls = ("https://a.example.com/x?y", "https://a.example.com:8443/", None)
    hosts = [host_of(task.model_copy(update={"callback_url": url})) for url in urls]
    assert hosts == ["a.example.com", "a.example.com:8443", ""]
