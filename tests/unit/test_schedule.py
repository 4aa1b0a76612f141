from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskhook.core import schedule
from taskhook.core.schedule import (
    GONE_WAIT,
    MOST_PATIENCE,
    MOST_SOON,
    SOON_WAIT,
    means_soon,
    next_poll,
    retry_wait,
)
from tests.rows import each_row

DAY = timedelta(hours=24)
ZERO = timedelta(0)
IMMEDIATE = ZERO
TYPICAL = timedelta(seconds=20)
MICROSECOND = timedelta(microseconds=1)  # what a timedelta rounds to

ages = st.timedeltas(-timedelta(hours=1), timedelta(hours=72))
firsts = st.sampled_from([IMMEDIATE, TYPICAL]) | st.timedeltas(ZERO, timedelta(minutes=20))


def chain(age: timedelta, *, first: timedelta, until: timedelta) -> Iterator[timedelta]:
    """Follow `next_poll` from an age on."""
    while (age := next_poll(age, first=first)) <= until:
        yield age


@given(age=ages, first=firsts)
def test_next_poll_is_strictly_later(age: timedelta, first: timedelta) -> None:
    """The next poll is after the age asked about, so that a loop always moves on."""
    assert next_poll(age, first=first) > age


@given(age=ages, first=firsts)
def test_nothing_is_polled_before_the_first_point(age: timedelta, first: timedelta) -> None:
    """Below the first point the answer is the first point, and no point is earlier."""
    point = next_poll(age, first=first)
    assert point >= first
    if age < first:
        assert point == first


@given(age=ages, first=firsts)
def test_gaps_are_between_two_and_sixty_seconds(age: timedelta, first: timedelta) -> None:
    """Two polls in a row are never closer than 2 s and never further apart than 60 s."""
    point = next_poll(age, first=first)
    gap = next_poll(point, first=first) - point
    assert timedelta(seconds=2) <= gap <= timedelta(seconds=60)


@given(end=ages, first=firsts)
def test_end_is_found_within_a_tenth_of_the_age(end: timedelta, first: timedelta) -> None:
    """A task that ends past the first poll time is found within 2 s or 10 % of its age, and within 60 s."""
    lateness = next_poll(end, first=first) - end
    if end >= first:
        assert lateness <= max(timedelta(seconds=2), end * 0.1) + MICROSECOND
        assert lateness <= timedelta(seconds=60)


@given(age=ages, first=firsts)
def test_poll_times_do_not_depend_on_the_invocation(age: timedelta, first: timedelta) -> None:
    """A leader that takes over at any age polls when one from the start would have polled."""
    until = max(age, first) + timedelta(minutes=30)
    from_the_start = [point for point in chain(ZERO - MICROSECOND, first=first, until=until) if point > age]
    assert list(chain(age, first=first, until=until)) == from_the_start


@given(age=ages, nearer=st.floats(0, 1), first=firsts)
def test_every_age_between_two_points_has_the_same_next_one(
    age: timedelta, nearer: float, first: timedelta
) -> None:
    """Asking again while waiting does not move the point."""
    point = next_poll(age, first=first)
    between = age + (point - age - MICROSECOND) * nearer
    assert next_poll(between, first=first) == point


@pytest.mark.parametrize(("first", "count"), [(IMMEDIATE, 1476), (TYPICAL, 1466)])
def test_polls_in_a_day_are_counted(first: timedelta, count: int) -> None:
    """A task watched for a whole day costs this many polls, hardly more than one a minute."""
    assert sum(1 for _ in chain(-MICROSECOND, first=first, until=DAY)) == count


def test_first_points_of_the_typical_minimum() -> None:
    """The documented rule gives 20 s, then gaps of 2 s that grow by a tenth of the age."""
    points = [point.total_seconds() for point in chain(ZERO, first=TYPICAL, until=timedelta(seconds=30))]
    assert points == pytest.approx([20, 22, 24.2, 26.62, 29.282], abs=1e-5)


def test_immediate_polls_start_at_once() -> None:
    """A deployment that polls immediately asks at the vendor's acceptance, then 2 s later."""
    points = [
        point.total_seconds() for point in chain(-MICROSECOND, first=IMMEDIATE, until=timedelta(seconds=6))
    ]
    assert points == [0, 2, 4, 6]


def test_retries_are_ten_attempts_over_the_standard_time() -> None:
    """Ten attempts, nine waits of the standard's schedule, 75 h 35 min 5 s in all; then there is none."""
    waits = [retry_wait(attempts, jitter=0.5) for attempts in range(1, 11)]
    assert waits[:-1] == [
        timedelta(seconds=s) for s in (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
    ]
    assert waits[-1] is None
    assert sum((wait for wait in waits if wait), ZERO) == timedelta(hours=75, minutes=35, seconds=5)
    assert len(schedule.RETRY_WAITS) == 10


def test_first_attempt_waits_for_nothing() -> None:
    """The first attempt is due at once, whatever the jitter."""
    assert [retry_wait(0, jitter=jitter) for jitter in (0.0, 0.5, 0.999)] == [ZERO] * 3


@given(attempts=st.integers(1, 9), jitter=st.floats(0, 1, exclude_max=True))
def test_jitter_stays_within_a_tenth(attempts: int, jitter: float) -> None:
    """Jitter moves a wait by at most 10 % to either side, never below zero."""
    wait = retry_wait(attempts, jitter=jitter)
    assert wait is not None
    planned = schedule.RETRY_WAITS[attempts]
    assert planned * 0.9 - MICROSECOND <= wait <= planned * 1.1 + MICROSECOND


@each_row(("jitter", "factor"), [(0.0, 0.9), (0.25, 0.95), (0.5, 1.0), (0.75, 1.05)])
def test_jitter_spreads_over_the_whole_range(jitter: float, factor: float) -> None:
    """The extremes of the random number give the extremes of the wait."""
    wait = retry_wait(9, jitter=jitter)
    assert wait is not None
    assert wait / timedelta(hours=24) == pytest.approx(factor)


@given(attempts=st.integers(10, 10_000), jitter=st.floats(0, 1, exclude_max=True))
def test_no_attempt_after_the_tenth(attempts: int, jitter: float) -> None:
    """Whatever the count says, the schedule is through after the tenth attempt."""
    assert retry_wait(attempts, jitter=jitter) is None


# --- what a receiver may ask for ------------------------------------------------------------------

jitters = st.floats(0, 1, exclude_max=True)
statuses = st.none() | st.integers(100, 599).filter(lambda status: not 200 <= status < 300)


@given(
    tried=st.integers(1, 9),
    jitter=jitters,
    status=statuses,
    soon=st.integers(0, 9),
    asked=st.timedeltas(ZERO, timedelta(days=9)),
)
def test_retry_after_is_never_earlier_and_not_much_later(
    tried: int, jitter: float, status: int | None, soon: int, asked: timedelta
) -> None:
    """Whatever is asked: at least the schedule's wait, at most twice that or ten minutes, exactly between."""
    planned = retry_wait(tried, jitter=jitter, status=status, uncounted=soon)
    assert planned is not None
    granted = retry_wait(tried, jitter=jitter, status=status, uncounted=soon, retry_after=asked)
    assert granted == min(max(planned, asked), max(2 * planned, MOST_PATIENCE))


@each_row(
    ("tried", "asked", "granted"),
    [
        (1, timedelta(seconds=1), timedelta(seconds=5)),
        (1, timedelta(seconds=90), timedelta(seconds=90)),
        (1, timedelta(hours=1), timedelta(minutes=10)),
        (2, timedelta(minutes=9), timedelta(minutes=9)),
        (3, timedelta(hours=24), timedelta(hours=1)),
        (9, timedelta(hours=30), timedelta(hours=30)),
        (9, timedelta(days=30), timedelta(hours=48)),
    ],
)
def test_retry_after_by_example(tried: int, asked: timedelta, granted: timedelta) -> None:
    """What the contract means in numbers."""
    assert retry_wait(tried, jitter=0.5, status=503, retry_after=asked) == granted


@given(tried=st.integers(10, 99), jitter=jitters, asked=st.timedeltas(ZERO, timedelta(days=9)))
def test_retry_after_adds_no_attempt(tried: int, jitter: float, asked: timedelta) -> None:
    """After the last attempt nothing follows, whatever the receiver asks for."""
    assert retry_wait(tried, jitter=jitter, status=503, retry_after=asked) is None


@pytest.mark.parametrize("status", [409, 425])
def test_soon_is_believed_five_times(status: int) -> None:
    """Then it is an answer like any other, and the schedule goes on where it was."""
    assert [means_soon(status, soon) for soon in range(7)] == [True] * 5 + [False] * 2
    assert [retry_wait(3, jitter=0.5, status=status, uncounted=soon) for soon in range(5)] == [
        SOON_WAIT
    ] * MOST_SOON
    assert retry_wait(3, jitter=0.5, status=status, uncounted=5) == timedelta(minutes=30)


@given(status=statuses.filter(lambda status: status not in {409, 425}), soon=st.integers(0, 9))
def test_nothing_else_means_soon(status: int | None, soon: int) -> None:
    """Every other failure is counted."""
    assert not means_soon(status, soon)


@given(tried=st.integers(1, 9))
def test_gone_is_believed_the_second_time(tried: int) -> None:
    """410 is tried once more, in an hour whatever the schedule; then it is the end. Nothing else ends it."""
    assert retry_wait(tried, jitter=0.5, status=410) == GONE_WAIT
    assert retry_wait(tried, jitter=0.5, status=410, answered_gone=True) is None
    assert retry_wait(tried, jitter=0.5, status=404, answered_gone=True) == schedule.RETRY_WAITS[tried]
