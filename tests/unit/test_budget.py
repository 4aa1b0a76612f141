from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from taskhook import budget
from taskhook.budget import Gate

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@given(rpm=st.integers(11, 100_000), offset=st.floats(0, 5.999))
def test_no_minute_wherever_it_begins_sees_more_than_allowed(rpm: int, offset: float) -> None:
    """Even if every window is used up to its limit in its last or first moment."""
    begin = NOW + timedelta(seconds=offset)
    touched = budget.window(begin + timedelta(minutes=1)) - budget.window(begin) + 1
    assert touched * budget.window_limit(rpm) <= rpm


@given(seconds=st.floats(0, 1_000_000))
def test_a_window_ends_where_the_next_begins(seconds: float) -> None:
    """Its end is after every moment in it, and belongs to the next."""
    now = NOW + timedelta(seconds=seconds)
    end = budget.window_end(now)
    assert now < end <= now + budget.WINDOW
    assert budget.window(end) == budget.window(now) + 1


def test_a_reserve_is_left_to_submits() -> None:
    """A quarter of a window, rounded down, never all of it."""
    assert [budget.reserve(limit) for limit in (1, 3, 4, 9, 90)] == [0, 0, 1, 2, 22]


def test_a_place_is_filled_at_once_and_one_more_is_tried_once_a_minute() -> None:
    """After a refusal at two running: with one running now, with two after a minute."""
    gate = Gate().refused(2, NOW)
    assert gate.waiting
    assert gate.next_try(1, NOW) == NOW
    assert gate.next_try(2, NOW) == NOW + budget.PROBE
    assert gate.next_try(2, NOW + timedelta(minutes=5)) == NOW + timedelta(minutes=5)


def test_nothing_is_known_before_the_first_refusal() -> None:
    """Then there is nothing to wait for."""
    assert Gate().next_try(1000, NOW) == NOW


def test_a_probe_that_is_taken_makes_a_place() -> None:
    """And the next one may be tried at once, until the vendor refuses again."""
    gate = Gate().refused(2, NOW).taken(2, served="")
    assert gate.places == 3
    later = NOW + timedelta(minutes=1)
    assert gate.next_try(3, later) == later
    assert gate.taken(1, served="").places == 3


def test_a_refusal_with_nothing_running_waits_too() -> None:
    """Somebody else fills the vendor's places; it is not asked in a circle."""
    assert Gate().refused(0, NOW).next_try(0, NOW) == NOW + budget.PROBE


def test_a_pause_is_kept() -> None:
    """Free places do not help while the key is refused."""
    gate = Gate().pause(NOW + timedelta(seconds=30))
    assert gate.paused(NOW)
    assert gate.next_try(0, NOW) == NOW + timedelta(seconds=30)
    assert not gate.paused(NOW + timedelta(seconds=30))
