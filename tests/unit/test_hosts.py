from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from taskhook.core.ports import SLOTS
from taskhook.core.record import State
from taskhook.core.reply import Reply
from taskhook.core.task import Task
from taskhook.delivery.hosts import (
    CALLER_WAITING,
    FAILURES,
    FEW_WAITING,
    FIRST_SLOTS,
    HOST_SLOTS,
    IDLE_HOSTS,
    MAX_RETRY_AFTER,
    MIN_RETRY_AFTER,
    OPEN_TIME,
    RESERVED_SLOTS,
    TOTAL_WAITING,
    WAITING_PER_SLOT,
    BreakerState,
    Candidate,
    Hosts,
    Order,
)
from tests.rows import each_row
from tests.world import START, VirtualClock, open_until

UP, DOWN = Reply(status=200), Reply(error="timeout")
callers, hosts = st.sampled_from(["a", "b", "c", "d"]), st.sampled_from(["x", "y", "z"])
replies = st.builds(
    Reply,
    status=st.integers(100, 599) | st.none(),
    error=st.sampled_from([None, "timeout", "dns", "refused", "forbidden_target"]),
    retry_after=st.none() | st.timedeltas(timedelta(0), timedelta(days=3)),
)

MOST_OF_ONE = (SLOTS - RESERVED_SLOTS) // 2  # slots of a caller that is alone


# --- one host's breaker ---------------------------------------------------------------------------


def after(*recorded: Reply, state: BreakerState | None = None) -> BreakerState:
    """Record replies, all at once."""
    known = state or BreakerState()
    for reply in recorded:
        known = known.record(reply, START)
    return known


@given(recorded=st.lists(st.tuples(replies, st.timedeltas(timedelta(0), timedelta(minutes=20))), max_size=60))
def test_a_host_always_has_a_slot_and_its_breaker_is_open_for_a_bounded_time(
    recorded: list[tuple[Reply, timedelta]],
) -> None:
    """Whatever it does, it is not shut out for good, and it gets no more than one host may have."""
    state, now = BreakerState(), START
    for reply, passed in recorded:
        now += passed
        state = state.record(reply, now)
        assert 1 <= state.slots <= HOST_SLOTS
        assert not state.is_open(now + max(OPEN_TIME, MAX_RETRY_AFTER))


def test_the_breaker_opens_after_five_failures_in_a_row() -> None:
    """Then nothing is sent for a minute, and a single further failure opens it again."""
    assert not after(*[DOWN] * (FAILURES - 1)).is_open(START)
    down = after(*[DOWN] * FAILURES)
    assert (down.is_open(START), down.slots) == (True, 1)
    later = START + timedelta(seconds=60)
    assert not down.is_open(later)
    assert down.record(DOWN, later).is_open(later)


@each_row("status", [200, 302, 404, 409, 410, 500, 503])
def test_any_answer_shows_that_the_host_is_up(status: int) -> None:
    """What it says of the message is not a failure of the host."""
    mixed = [*[DOWN] * (FAILURES - 1), Reply(status=status)] * 3
    assert not after(*mixed).is_open(START)
    assert after(Reply(status=status)) == BreakerState(slots=FIRST_SLOTS + 1, answered=True)


@pytest.mark.parametrize("error", ["forbidden_target", "caller_unreadable"])
def test_what_was_never_sent_says_nothing_of_the_host(error: str) -> None:
    """A broken record of a caller does not open a breaker."""
    assert after(*[Reply(error=error)] * 50) == BreakerState()


@each_row("status", [429, 502, 504])
@each_row(
    ("asked", "wait"),
    [
        (None, MIN_RETRY_AFTER),
        (timedelta(0), MIN_RETRY_AFTER),
        (timedelta(minutes=2), timedelta(minutes=2)),
        (timedelta(days=1), MAX_RETRY_AFTER),
    ],
)
def test_a_throttling_host_gets_a_pause_and_half_the_slots(
    status: int, asked: timedelta | None, wait: timedelta
) -> None:
    """For as long as it asks for, within bounds."""
    state = after(Reply(status=status, retry_after=asked), state=BreakerState(slots=20, answered=True))
    assert (state.slots, state.open_until) == (10, START + wait)


def test_what_was_under_way_when_the_breaker_opened_does_not_prolong_it() -> None:
    """Twenty attempts that fail together are one finding."""
    assert after(*[DOWN] * 20, state=BreakerState(slots=20)) == after(*[DOWN] * FAILURES)


# --- slots and turns ------------------------------------------------------------------------------


@dataclass
class Deliveries:
    """Attempts under way, each started by its slot and ended by the test."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    running: list[Candidate] = field(default_factory=list)
    offered: int = 0

    def __post_init__(self) -> None:
        self.hosts = Hosts(self.clock)

    def offer(self, caller: str, host: str, count: int = 1, order: Order = Order.FIRST) -> int:
        """Offer some candidates; give how many found room."""
        found = 0
        for _ in range(count):
            found += self.hosts.offer(Candidate(f"tk_{self.offered}", caller, host, order))
            self.offered += 1
        return found

    def start(self) -> list[Candidate]:
        """Start all that may start."""
        started = []
        while (candidate := self.hosts.next()) is not None:
            started.append(candidate)
        self.running += started
        return started

    def end(self, candidate: Candidate, reply: Reply | None = None) -> None:
        """End an attempt."""
        if reply is not None:
            self.hosts.record(candidate.caller, candidate.host, reply)
        self.running.remove(candidate)
        self.hosts.leave(candidate.caller, candidate.host)

    def held(self, caller: str) -> int:
        """Count a caller's attempts."""
        return sum(candidate.caller == caller for candidate in self.running)

    def answered(self, caller: str, host: str, times: int = HOST_SLOTS) -> None:
        """Make a host known as one that answers."""
        for _ in range(times):
            self.hosts.record(caller, host, UP)


@pytest.fixture
def deliveries() -> Deliveries:
    """Give an invocation without attempts."""
    return Deliveries()


@pytest.mark.parametrize("known", [False, True])
def test_a_thousand_silent_hosts_of_one_caller_leave_slots_for_another(
    deliveries: Deliveries,
    known: bool,  # noqa: FBT001
) -> None:
    """They hold their slots to the end; even so another caller's attempt starts at once."""
    for number in range(1000):
        if known:
            deliveries.answered("bob", f"silent-{number}", times=1)
        deliveries.offer("bob", f"silent-{number}")
    assert 20 <= len(deliveries.start()) <= MOST_OF_ONE
    assert deliveries.hosts.waiting() >= 1000 - MOST_OF_ONE
    deliveries.offer("alice", "good", 10)
    assert len(deliveries.start()) == FIRST_SLOTS
    assert deliveries.hosts.enter("carol", "good")


def test_twenty_callers_with_silent_hosts_leave_a_slot_for_one_more(deliveries: Deliveries) -> None:
    """Each new one finds fewer, none finds none."""
    for caller in range(20):
        for number in range(100):
            deliveries.offer(f"caller-{caller}", f"silent-{number}")
        deliveries.start()
        assert deliveries.held(f"caller-{caller}") >= 1
    assert deliveries.hosts.enter("alice", "good")


def test_with_time_all_callers_hold_the_same(deliveries: Deliveries) -> None:
    """The first one, which had many slots, gives way as its attempts end."""
    callers = [f"caller-{number}" for number in range(4)]
    for caller in callers:
        for number in range(10):
            deliveries.answered(caller, f"host-{number}")
            deliveries.offer(caller, f"host-{number}", 100)
        deliveries.start()
    assert deliveries.held("caller-0") > 2 * deliveries.held("caller-3")
    for _ in range(400):
        deliveries.end(deliveries.running[0])
        deliveries.start()
    held = [deliveries.held(caller) for caller in callers]
    assert max(held) - min(held) <= 1


def test_callers_have_turns_and_so_have_a_callers_hosts(deliveries: Deliveries) -> None:
    """One that has just been served comes last, however many of its candidates wait."""
    for caller, host, count in (("a", "h1", 6), ("a", "h2", 3), ("b", "h3", 2), ("c", "h4", 2)):
        deliveries.offer(caller, host, count)
    started = [f"{candidate.caller} {candidate.host}" for candidate in deliveries.start()]
    assert started == ["a h1", "b h3", "c h4", "a h2", "b h3", "c h4", "a h1", "a h2", "a h1", "a h2"]


def test_turns_go_on_where_they_stopped(deliveries: Deliveries) -> None:
    """A slot at a time, as attempts end, goes to each caller in turn and to each host in turn."""
    for number in range(SLOTS):  # saturated by callers that hold one each
        assert deliveries.hosts.enter(f"busy-{number}", "host")
    for caller in ("a", "b", "c"):
        for number in range(2):
            deliveries.offer(caller, f"host-{number}", 2)
    served = []
    for number in range(6):
        deliveries.hosts.leave(f"busy-{number}", "host")
        [candidate] = deliveries.start()
        served.append((candidate.caller, candidate.host))
        deliveries.end(candidate)
        assert deliveries.hosts.enter(f"busy-{number}", "host")
    assert served == [(caller, host) for host in ("host-0", "host-1") for caller in ("a", "b", "c")]


def test_first_attempts_go_before_repeats_before_redeliveries(deliveries: Deliveries) -> None:
    """Whatever came first, and at whatever host of the caller."""
    for order in reversed(Order):
        for number in range(10):
            deliveries.offer("alice", f"host-{number}", 1, order)
    orders = [candidate.order for candidate in deliveries.start()]
    assert orders[:10] == [Order.FIRST] * 10
    assert orders == sorted(orders)


def test_dead_hosts_leave_the_callers_other_hosts_slots(deliveries: Deliveries) -> None:
    """Those that answer find some, and so do first attempts where repeats hold all they may."""
    deliveries.answered("alice", "good")
    for number in range(200):
        deliveries.offer("alice", f"dead-{number}", 1, Order.REPEAT)
    repeats = len(deliveries.start())
    deliveries.offer("alice", "new", 1)
    assert [candidate.host for candidate in deliveries.start()] == ["new"]
    for number in range(200):
        deliveries.offer("alice", f"dead-{number}")
    deliveries.start()
    deliveries.offer("alice", "good", 100)
    assert len(deliveries.start()) >= 10
    assert repeats < len(deliveries.running) <= MOST_OF_ONE


def test_hosts_that_begin_to_answer_are_counted_with_those_that_do(deliveries: Deliveries) -> None:
    """Then more may start; and attempts that have ended count no longer."""
    for number in range(2 * MOST_OF_ONE):
        deliveries.offer("alice", f"host-{number}")
    doubtful = len(deliveries.start())
    for candidate in deliveries.running:
        deliveries.hosts.record("alice", candidate.host, UP)
    more = len(deliveries.start())
    assert doubtful + more == MOST_OF_ONE
    for candidate in list(deliveries.running):
        deliveries.end(candidate)
    assert len(deliveries.start()) == doubtful


def test_a_busy_host_that_answers_does_not_shut_out_the_callers_new_one(deliveries: Deliveries) -> None:
    """They are served in turn, however many wait for the busy one."""
    for number in range(3):
        deliveries.answered("alice", f"busy-{number}")
        deliveries.offer("alice", f"busy-{number}", 200)
    deliveries.start()
    deliveries.offer("alice", "new")
    started: list[Candidate] = []
    for _ in range(4):
        deliveries.end(deliveries.running[0], UP)
        started += deliveries.start()
    assert "new" in [candidate.host for candidate in started]


def test_slots_grow_with_answers(deliveries: Deliveries) -> None:
    """A host that answers is soon served by twenty at once."""
    deliveries.offer("alice", "good", WAITING_PER_SLOT * FIRST_SLOTS)
    assert len(deliveries.start()) == FIRST_SLOTS
    for _ in range(HOST_SLOTS):
        deliveries.end(deliveries.running[0], UP)
        deliveries.start()
    assert len(deliveries.running) == HOST_SLOTS
    assert not deliveries.hosts.enter("alice", "good")
    assert deliveries.hosts.enter("bob", "good")


def test_a_first_attempt_that_waits_is_not_overtaken(deliveries: Deliveries) -> None:
    """`enter` is for the one that finds the way clear; repeats in the line do not count."""
    deliveries.offer("alice", "host")
    deliveries.offer("alice", "other", 1, Order.REPEAT)
    assert not deliveries.hosts.enter("alice", "host")
    assert deliveries.hosts.enter("alice", "other")


# --- breakers and those that wait -----------------------------------------------------------------


def test_those_that_wait_for_a_host_whose_breaker_opens_are_dropped(deliveries: Deliveries) -> None:
    """They are named once; later ones find no room until the breaker closes, then a single slot."""
    deliveries.offer("alice", "dead", 20)
    deliveries.offer("alice", "dead", 10, Order.REPEAT)
    deliveries.offer("alice", "good", 5)
    deliveries.start()
    opened = [deliveries.hosts.record("alice", "dead", DOWN) for _ in range(FAILURES + 3)]
    assert opened == [None] * (FAILURES - 1) + [OPEN_TIME] + [None] * 3
    assert len(deliveries.hosts.dropped()) == 30 - FIRST_SLOTS
    assert (deliveries.hosts.dropped(), deliveries.hosts.waiting()) == ([], 5 - FIRST_SLOTS)
    assert deliveries.offer("alice", "dead") == 0
    assert not deliveries.hosts.enter("alice", "dead")
    assert open_until(deliveries.hosts, "alice", "dead") == START + OPEN_TIME
    for candidate in list(deliveries.running):
        deliveries.end(candidate)
    deliveries.start()
    deliveries.clock.pass_by(OPEN_TIME)
    assert open_until(deliveries.hosts, "alice", "dead") is None
    assert deliveries.offer("alice", "dead", 3) == 3
    assert [candidate.host for candidate in deliveries.start()] == ["dead"]
    deliveries.hosts.record("alice", "dead", UP)
    assert [candidate.host for candidate in deliveries.start()] == ["dead"]


@pytest.mark.parametrize("reply", [Reply(status=429, retry_after=timedelta(minutes=10)), DOWN])
def test_what_a_caller_meets_at_a_shared_host_says_nothing_to_another(
    deliveries: Deliveries, reply: Reply
) -> None:
    """The one's breaker is open; the other's first attempts go out, as many as to any host."""
    deliveries.offer("mallory", "shared", 10)
    deliveries.offer("alice", "shared", 10)
    for _ in range(FAILURES):
        deliveries.hosts.record("mallory", "shared", reply)
    assert open_until(deliveries.hosts, "mallory", "shared") is not None
    assert open_until(deliveries.hosts, "alice", "shared") is None
    assert [candidate.caller for candidate in deliveries.start()] == ["alice"] * FIRST_SLOTS


def test_what_is_learnt_of_hosts_is_bounded(deliveries: Deliveries) -> None:
    """Of those without attempts, the longest idle one is forgotten; never one in use."""
    deliveries.hosts.enter("alice", "used")
    deliveries.answered("alice", "used")
    deliveries.answered("alice", "first")
    for number in range(IDLE_HOSTS * 2):
        deliveries.answered("alice", f"host-{number}", times=1)
    deliveries.offer("alice", "used", HOST_SLOTS)
    deliveries.offer("alice", "first", HOST_SLOTS)
    started = Counter(candidate.host for candidate in deliveries.start())
    assert started == {"used": HOST_SLOTS - 1, "first": FIRST_SLOTS}
    assert len(deliveries.hosts._hosts) <= IDLE_HOSTS + 2


# --- what waits in memory -------------------------------------------------------------------------


def test_a_hundred_thousand_candidates_stay_few_in_memory(deliveries: Deliveries) -> None:
    """Whatever their hosts; a caller that comes late still finds room."""
    for number in range(50_000):
        deliveries.offer("bob", f"host-{number}", 1, Order.REDELIVERY)
        deliveries.offer(f"caller-{number % 100}", "host")
    assert deliveries.hosts.waiting() <= TOTAL_WAITING + 101 * FEW_WAITING
    assert deliveries.offer("alice", "host", 100) == FEW_WAITING
    assert len(deliveries.hosts._hosts) <= deliveries.hosts.waiting()


@pytest.mark.parametrize(("answers", "room"), [(0, FIRST_SLOTS), (1, FIRST_SLOTS + 1), (30, HOST_SLOTS)])
def test_room_for_a_host_is_in_proportion_to_its_slots(
    deliveries: Deliveries, answers: int, room: int
) -> None:
    """A host that has not answered fills no memory."""
    deliveries.answered("alice", "host", answers)
    assert deliveries.offer("alice", "host", 1000) == room * WAITING_PER_SLOT


@pytest.mark.parametrize("host", ["host", "host-{}"])
def test_redeliveries_take_no_room_of_first_attempts(deliveries: Deliveries, host: str) -> None:
    """At one host or many: each order has as much, less what goes before it."""
    deliveries.answered("alice", "host")
    rooms = {}
    for order in reversed(Order):
        rooms[order] = sum(deliveries.offer("alice", host.format(number), 1, order) for number in range(3000))
    most = CALLER_WAITING if "{}" in host else HOST_SLOTS * WAITING_PER_SLOT
    assert rooms == dict.fromkeys(Order, most)
    for order in Order:
        assert deliveries.offer("alice", "host-0", 1, order) == 0 or host == "host"


def test_an_id_waits_once_and_may_be_withdrawn(deliveries: Deliveries) -> None:
    """Offering again what waits is harmless, withdrawing what does not wait too."""
    candidate = Candidate("tk", "alice", "host", Order.FIRST)
    assert deliveries.hosts.offer(candidate)
    assert deliveries.hosts.offer(candidate)
    assert (deliveries.hosts.waiting(), "tk" in deliveries.hosts, "other" in deliveries.hosts) == (
        1,
        True,
        False,
    )
    deliveries.hosts.withdraw("other")
    deliveries.hosts.withdraw("tk")
    assert (deliveries.hosts.waiting(), "tk" in deliveries.hosts, deliveries.hosts.next()) == (0, False, None)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens, in any order: a candidate starts once, is withdrawn or dropped; no bound breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.hosts = Hosts(self.clock)
        self.waiting: set[str] = set()
        self.held: Counter[tuple[str, str]] = Counter()
        self.offered = 0

    @rule(caller=callers, host=hosts, order=st.sampled_from(Order), count=st.sampled_from([1, 7, 40]))
    def offer(self, caller: str, host: str, order: Order, count: int) -> None:
        """There is room exactly where it is said to be."""
        for _ in range(count):
            candidate = Candidate(f"tk_{self.offered}", caller, host, order)
            self.offered += 1
            room = self.hosts.has_room(candidate)
            assert self.hosts.offer(candidate) is room
            self.waiting |= {candidate.task_id} if room else set()

    @rule(at_most=st.integers(1, SLOTS))
    def start(self, at_most: int) -> None:
        """What starts had waited, and its breaker is closed."""
        for _ in range(at_most):
            if not self.start_one():
                break

    def start_one(self) -> bool:
        """Start the next, if there is one."""
        candidate = self.hosts.next()
        if candidate is not None:
            self.waiting.remove(candidate.task_id)
            assert open_until(self.hosts, candidate.caller, candidate.host) is None
            self.held[candidate.caller, candidate.host] += 1
        return candidate is not None

    @rule(caller=callers, host=hosts)
    def enter(self, caller: str, host: str) -> None:
        """An attempt that need not wait."""
        self.held[caller, host] += self.hosts.enter(caller, host)

    @precondition(lambda self: self.held.total())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """An attempt ends."""
        ended = data.draw(st.sampled_from(sorted(self.held.elements())))
        self.held[ended] -= 1
        self.hosts.leave(*ended)

    @rule(caller=callers, host=hosts, reply=replies, times=st.sampled_from([1, FAILURES]))
    def record(self, caller: str, host: str, reply: Reply, times: int) -> None:
        """Those that a breaker drops wait no longer."""
        for _ in range(times):
            self.hosts.record(caller, host, reply)
        self.waiting -= set(self.hosts.dropped())

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        """One waits no longer."""
        task_id = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting.remove(task_id)
        self.hosts.withdraw(task_id)

    @rule()
    def time_passes(self) -> None:
        """Breakers close with time."""
        self.clock.pass_by(timedelta(seconds=30))

    @invariant()
    def no_bound_is_passed(self) -> None:
        """Of slots, and of what waits."""
        assert self.hosts.waiting() == len(self.waiting)
        assert self.held.total() <= SLOTS
        assert all(count <= HOST_SLOTS for count in self.held.values())

    def teardown(self) -> None:
        """Where every attempt ends, every candidate starts, and nothing is left."""
        self.everything_ends()
        while self.waiting:
            assert self.start_one()
            self.everything_ends()
        assert (self.hosts._callers, self.hosts._caller_turns, self.hosts._free) == ({}, {}, SLOTS)
        assert self.hosts._hosts.keys() == self.hosts._idle.keys()

    def everything_ends(self) -> None:
        """Give all slots back."""
        for ended in self.held.elements():
            self.hosts.leave(*ended)
        self.held.clear()


test_nothing_is_lost_or_starved_and_no_bound_is_passed = AnyOrder.TestCase
AnyOrder.TestCase.settings = settings(max_examples=40, stateful_step_count=40)


def test_a_host_is_name_and_port() -> None:
    """Two servers on one machine are two hosts; a name in capitals is the same."""
    task = Task(
        task_id="t", caller="a", model="m", request="", fingerprint="", accepted_at=START, state=State.QUEUED
    )
    urls = ("https://a.example.com/x?y", "https://A.example.com:8443/", None)
    hosts = [task.model_copy(update={"callback_url": url}).host for url in urls]
    assert hosts == ["a.example.com", "a.example.com:8443", ""]
