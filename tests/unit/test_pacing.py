from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from taskhook.core.admission import AdmissionState
from taskhook.poller.long_poll import NOT_HELD_FOR, LongPollSupport
from taskhook.poller.pacing import urgency

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def test_two_refused_holds_in_a_row_mean_not_held_for_a_while() -> None:
    """Then it is found out again."""
    support = LongPollSupport()
    support.found("m", NOW, holds=True)
    support.refused("m", NOW)
    assert support.holding("m", NOW) is True
    support.refused("m", NOW)
    assert support.holding("m", NOW) is False
    assert support.holding("m", NOW + NOT_HELD_FOR) is None


def test_a_held_poll_between_two_refusals_clears_the_first() -> None:
    """A vendor that drops one poll in a hundred goes on being asked to hold."""
    support = LongPollSupport()
    for _ in range(5):
        support.refused("m", NOW)
        support.held("m", NOW, since=NOW)
    assert support.holding("m", NOW) is True


def test_lateness_relative_to_the_own_gap_decides() -> None:
    """Two seconds are much for a young task and little for an old one."""
    young, old = urgency(100, 90, 102), urgency(100, -3600, 102)
    assert young < old


@given(age=st.floats(0, 10_000), late=st.floats(0, 10_000), others=st.lists(st.floats(0, 10_000), max_size=5))
def test_a_task_that_has_waited_five_of_its_gaps_goes_before_what_is_due_since(
    age: float, late: float, others: list[float]
) -> None:
    """So its turn comes before any of the others is asked twice."""
    gap = min(max(2.0, age * 0.1), 60.0)
    waits = late + 4.01 * gap
    now = 100_000.0
    mine = urgency(now - waits, now - waits - age, now)
    assert all(mine <= urgency(now - other, now - other - 1, now) for other in others if other < waits)


# --- what is learnt of models that are not described ----------------------------------------------


def test_a_model_is_polled_a_little_before_its_tasks_have_lately_ended() -> None:
    """A shorter time counts at once, a longer one a quarter, and what is no news is not stored."""
    learnt = AdmissionState().task_took("kling/v2", timedelta(seconds=100))
    assert learnt.took == {"kling/v2": 100}
    assert learnt.task_took("kling/v2", timedelta(seconds=120)) is learnt
    longer = learnt.task_took("kling/v2", timedelta(seconds=200))
    assert longer.took == {"kling/v2": 125}
    assert longer.task_took("kling/v2", timedelta(seconds=40)).took == {"kling/v2": 40}


def test_few_models_are_remembered() -> None:
    """Those that were learnt of last."""
    admission = AdmissionState()
    for number in range(60):
        admission = admission.task_took(f"m{number}", timedelta(seconds=30))
    assert (len(admission.took), next(iter(admission.took))) == (50, "m10")
