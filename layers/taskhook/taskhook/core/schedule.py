"""When to poll and when to try a callback again: pure functions of age and count."""

import re
from bisect import bisect_right
from datetime import timedelta
from functools import cache
from http import HTTPStatus

MIN_GAP = timedelta(seconds=2)
MAX_GAP = timedelta(seconds=60)
SHARE = 0.1  # of the age: how late a poll may find the end

# Standard Webhooks' recommended schedule: the wait before attempt 1, 2, … 10; 75 h 35 min 5 s in all.
RETRY_WAITS = (
    timedelta(0),
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
RETRY_JITTER = 0.1  # of the wait, to either side
MOST_PATIENCE = timedelta(minutes=10)  # granted to a receiver's Retry-After, where twice the wait is less
# The receiver is at it right now, or wants to be sure that this is no replay.
_SOON = {
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_EARLY,
}
SOON_WAIT = timedelta(seconds=10)
MOST_SOON = 5
GONE = HTTPStatus.GONE  # often means "being deployed": believed the second time
GONE_WAIT = timedelta(hours=1)


# What makes videos takes a while, as far as the name of a model tells it.
_VIDEO = re.compile(
    r"video|movie|animate|motion|avatar|lip-?sync|(?:[itvrs]|kf)2v|veo|sora|kling|hailuo|seedance|vidu|ltx"
    r"|gen[34]|aleph|act_two",
    re.IGNORECASE,
)
VIDEO_FIRST = timedelta(seconds=20)


def typical_minimum(model: str) -> timedelta:
    """Tell how soon the result of a model can be there of which only the name is known."""
    return VIDEO_FIRST if _VIDEO.search(model) else MIN_GAP


def next_poll(age: timedelta, *, first: timedelta) -> timedelta:
    """Tell at what age a task is polled next, strictly after `age`.

    The ages are fixed by `first` alone: `first`, then gaps of 10 % of the age, at least 2 s, at most 60 s.
    So a successor knows, without a stored word, which polls were another's and which are its own.
    """
    ages = _poll_ages(first)
    position = bisect_right(ages, age)
    if position < len(ages):
        return ages[position]
    return ages[-1] + MAX_GAP * ((age - ages[-1]) // MAX_GAP + 1)


def gap(age: timedelta) -> timedelta:
    """Tell how long after a poll at `age` the next one is due."""
    return min(max(MIN_GAP, age * SHARE), MAX_GAP)


def next_rare_poll(age: timedelta) -> timedelta:
    """Tell at what age a task is polled next, after `age`, where something faster tells of its end."""
    return MAX_GAP * max(1, age // MAX_GAP + 1)


@cache
def _poll_ages(first: timedelta) -> tuple[timedelta, ...]:
    """List the ages at which a task is polled, until the gap has grown to its maximum.

    From the last one on they are `MAX_GAP` apart.
    """
    ages = [first]
    while (gap := max(MIN_GAP, ages[-1] * SHARE)) < MAX_GAP:
        ages.append(ages[-1] + gap)
    return tuple(ages)


def retry_wait(
    attempts_this_round: int,
    *,
    jitter: float,
    status: int | None = None,
    uncounted: int = 0,
    answered_gone: bool = False,
    retry_after: timedelta | None = None,
) -> timedelta | None:
    """Tell how long to wait after an attempt failed with `status`, or None when it was the last.

    `jitter` is in [0, 1).

    `attempts_this_round` counts the schedule's attempts up to and with this one, `uncounted` those before it
    that were answered with "soon"; `answered_gone` says that the receiver has answered 410 before.
    `retry_after` is what the receiver asks for: never sooner than the schedule has it, and not much later.
    """
    if means_soon(status, uncounted):
        wait = SOON_WAIT
    elif attempts_this_round >= len(RETRY_WAITS) or (status == GONE and answered_gone):
        return None
    else:
        wait = GONE_WAIT if status == GONE else RETRY_WAITS[attempts_this_round]
    wait *= 1 + RETRY_JITTER * (2 * jitter - 1)
    return min(max(wait, retry_after or wait), max(2 * wait, MOST_PATIENCE))


def means_soon(status: int | None, uncounted: int) -> bool:
    """Tell whether an answer asks for another attempt soon, which the schedule does not count.

    A receiver is believed MOST_SOON times in a round, of which `uncounted` are over.
    """
    return status in _SOON and uncounted < MOST_SOON
