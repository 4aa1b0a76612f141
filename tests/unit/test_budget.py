from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskhook.core import admission, rate_limit
from taskhook.core.admission import AdmissionState
from tests.rows import each_row

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@given(rpm=st.integers(11, 100_000), offset=st.floats(0, 5.999))
def test_no_minute_wherever_it_begins_sees_more_than_allowed(rpm: int, offset: float) -> None:
    """Even if every window is used up to its limit in its last or first moment."""
    begin = NOW + timedelta(seconds=offset)
    touched = rate_limit.window(begin + timedelta(minutes=1)) - rate_limit.window(begin) + 1
    assert touched * rate_limit.window_limit(rpm) <= rpm


@given(seconds=st.floats(0, 1_000_000))
def test_a_window_ends_where_the_next_begins(seconds: float) -> None:
    """Its end is after every moment in it, and belongs to the next."""
    now = NOW + timedelta(seconds=seconds)
    end = rate_limit.window_end(now)
    assert now < end <= now + rate_limit.WINDOW
    assert rate_limit.window(end) == rate_limit.window(now) + 1


def test_a_reserve_is_left_to_submits() -> None:
    """A quarter of a window, rounded down, never all of it."""
    assert [rate_limit.reserve(limit) for limit in (1, 3, 4, 9, 90)] == [0, 0, 1, 2, 22]


def test_a_free_slot_is_taken_at_once_and_one_more_is_tried_now_and_then() -> None:
    """After a refusal at two running: with one running now, with two after the time between probes."""
    state = AdmissionState().refused(2, NOW)
    assert state.waiting
    assert state.next_try(1, NOW) == NOW
    assert state.next_try(2, NOW) == NOW + admission.PROBE
    assert state.next_try(2, NOW + timedelta(minutes=5)) == NOW + timedelta(minutes=5)


def test_nothing_is_known_before_the_first_refusal() -> None:
    """Then there is nothing to wait for."""
    assert AdmissionState().next_try(1000, NOW) == NOW


def test_a_probe_that_is_taken_shows_that_the_limit_is_not_known() -> None:
    """The next one may be tried at once, until the vendor refuses again; a free slot shows nothing."""
    state = AdmissionState().refused(2, NOW)
    assert state.taken(2, served="").next_try(3, NOW) == NOW
    assert state.taken(1, served="").next_try(2, NOW) == NOW + admission.PROBE


@pytest.mark.parametrize("running", [0, 1, 3])
def test_a_refusal_that_was_not_for_want_of_slots_is_soon_forgotten(running: int) -> None:
    """Of tasks that end before the next probe, too: the first one taken lifts the limit."""
    state = AdmissionState().refused(running, NOW)
    later = NOW + admission.PROBE
    assert state.next_try(running, later) == later
    assert state.taken(running, served="").next_try(running + 50, later) == later


def test_a_refusal_with_nothing_running_waits_too() -> None:
    """Another deployment fills the vendor's slots; it is not asked in a circle."""
    assert AdmissionState().refused(0, NOW).next_try(0, NOW) == NOW + admission.PROBE


@each_row("retry_after_s", [0, 1, 59, 600])
def test_the_slots_learnt_decide_and_retry_after_only_makes_the_wait_longer(retry_after_s: int) -> None:
    """A vendor that says `Retry-After: 1` to each refusal for want of a slot is not asked every second."""
    wait = timedelta(seconds=retry_after_s)
    assert AdmissionState().refused(2, NOW, retry_after=wait).next_try(2, NOW) == NOW + max(
        admission.PROBE, wait
    )


def test_three_unknown_outcomes_in_a_row_pause_submits_ever_longer() -> None:
    """10 s after the third, doubling to 5 min while nothing free is answered; a clear answer ends it."""
    state, pauses = AdmissionState(), []
    for number in range(12):
        state = state.outcome_unknown(NOW) if number < admission.MOST_UNKNOWN else state.unanswered(NOW)
        pauses.append(round((state.next_try(0, NOW) - NOW).total_seconds()))
    assert pauses == [0, 0, 10, 20, 40, 80, 160, 300, 300, 300, 300, 300]
    assert (state.in_trouble, state.answered().in_trouble, state.answered().next_try(0, NOW)) == (
        True,
        False,
        NOW,
    )


def test_a_task_that_was_spent_as_a_probe_makes_the_next_one_rare() -> None:
    """Where the vendor answers what is free and loses submits, each probe costs a task."""
    state = AdmissionState()
    for _ in range(admission.MOST_UNKNOWN + 1):
        state = state.outcome_unknown(NOW)
    assert state.next_try(0, NOW) == NOW + admission.LONGEST_PAUSE


def test_unknown_outcomes_between_clear_ones_pause_nothing() -> None:
    """Only a row of them speaks of an outage."""
    state = AdmissionState()
    for _ in range(5):
        state = state.outcome_unknown(NOW).outcome_unknown(NOW).taken(0, served="")
    assert not state.in_trouble


@each_row("unknown", range(2 * admission.MOST_UNKNOWN))
def test_a_clear_answer_ends_the_pause_of_a_trouble_and_no_other(unknown: int) -> None:
    """Before the third unknown outcome in a row, a pause is one that the vendor asked for."""
    until = NOW + timedelta(minutes=10)
    state = AdmissionState(unknown=unknown).pause(until)
    assert state.answered().unknown == 0
    assert state.answered().next_try(0, NOW) == (NOW if state.in_trouble else until)
    assert state.taken(0, served="").next_try(0, NOW) == (NOW if state.in_trouble else until)


def test_a_pause_of_every_request_holds_for_submits_too() -> None:
    """And a shorter one later on does not cut it short."""
    state = AdmissionState().pause_polls(NOW + timedelta(minutes=30)).pause_polls(NOW + timedelta(seconds=5))
    assert state.next_try(0, NOW) == NOW + timedelta(minutes=30)


def test_a_pause_is_kept() -> None:
    """Free slots do not help while the key is refused."""
    state = AdmissionState().pause(NOW + timedelta(seconds=30))
    assert state.paused(NOW)
    assert state.next_try(0, NOW) == NOW + timedelta(seconds=30)
    assert not state.paused(NOW + timedelta(seconds=30))
