"""However long table, vendor and secrets hang: every path ends before its function and its answer.

Each sum is of the code's own numbers, so that a change of one breaks it.
"""

from datetime import timedelta
from typing import Any

import pytest

from taskhook import wiring
from taskhook.adapters.aws import webhook_urls
from taskhook.adapters.dynamodb import tasks
from taskhook.adapters.http import vendor
from taskhook.archive import copy
from taskhook.core.ports import ATTEMPT_TIME, LEAST_POST_TIME
from taskhook.poller import endings, queue, work
from taskhook.submit.payment import SETTLE_TIME, STORE_TRY, STORE_TRY_LEAST
from taskhook.submit.submit import ANSWER_DUE, ANSWER_TIME
from taskhook.wiring import App
from tests.local import stack
from tests.world import SETTINGS

ANSWER = timedelta(seconds=14)  # what the contract promises for a submit
_BACKOFF = timedelta(seconds=1)  # before the SDK's second try, at most; longer before each later one


def worst(client: Any) -> timedelta:
    """Add up one call of a client: each try may take its time to connect and its time to answer."""
    config = client.meta.config
    tries = config.retries["total_max_attempts"]
    waits = sum((_BACKOFF * 2**number for number in range(tries - 1)), timedelta())
    spent: timedelta = tries * timedelta(seconds=config.connect_timeout + config.read_timeout)
    return spent + waits


def life(function: str) -> timedelta:
    """Tell how long a function may run."""
    return timedelta(seconds=stack.template()["Resources"][function]["Properties"]["Timeout"])


@pytest.fixture(autouse=True)
def region(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the clients what they want to be made."""
    for name, value in {"REGION": stack.REGION, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}.items():
        monkeypatch.setenv(f"AWS_DEFAULT_{name}" if name == "REGION" else f"AWS_{name}", value)


@pytest.fixture
def call() -> timedelta:
    """One call of the table."""
    return worst(App(SETTINGS).dynamodb)


@pytest.fixture
def write(call: timedelta) -> timedelta:
    """One write on condition, which is tried once more."""
    return 2 * call + tasks._WRITE_AGAIN


WAKE = timedelta(seconds=wiring.CONNECT_S + wiring.WAKE_READ_S)


def test_a_submit_is_answered_in_time(call: timedelta) -> None:
    """What precedes the POST, the POST, its storing, what follows: each has its end, from the arrival on."""
    assert ANSWER_TIME + STORE_TRY_LEAST <= ANSWER_DUE  # one try at least, when the POST took all its time
    assert ANSWER_DUE < ANSWER < life("SubmitFunction")
    assert call < ANSWER_DUE - STORE_TRY_LEAST  # the caller is read before that, in one call
    assert STORE_TRY_LEAST <= STORE_TRY


def test_a_late_submit_posts_nothing_that_would_be_cut_off() -> None:
    """Where the POST begins, webhook address included, its time ends before the answer is due."""
    latest = ANSWER_TIME - LEAST_POST_TIME
    # the hook took long: not sent, and stored
    assert latest + webhook_urls._HOOK_TIME + STORE_TRY < ANSWER_DUE


def test_every_other_request_ends_before_the_function_does(call: timedelta) -> None:
    """Whose it is, and then the time of a use case."""
    assert call + wiring.API_TIME < life("SubmitFunction")


def test_a_poller_ends_what_it_has_begun(call: timedelta, write: timedelta) -> None:
    """What was begun right before the drain is over before the function's end, whatever hangs."""
    left = work.DRAIN + work.RESERVE
    paid = max(write, queue.PAY_TIME) + webhook_urls._HOOK_TIME + SETTLE_TIME + STORE_TRY_LEAST
    learnt = 2 * call  # what the answer says of the vendor's slots
    paths = {
        "pay": paid + learnt,
        "poll, end, deliver": vendor.POLL_TIME + endings.PATIENCE + write + ATTEMPT_TIME + write,
        "deliver": write + ATTEMPT_TIME + write,
        "let another lead": call,
    }
    assert {path: time for path, time in paths.items() if time >= left} == {}
    assert life("PollFunction") > work.RESERVE


def test_the_claim_of_a_paid_post_covers_it(write: timedelta) -> None:
    """From before the claim is written until its outcome is stored, or given up."""
    paid = max(write, queue.PAY_TIME) + webhook_urls._HOOK_TIME + SETTLE_TIME + STORE_TRY_LEAST
    assert paid < queue.PAY_CLAIM


def test_an_archiver_notes_how_far_it_came(write: timedelta) -> None:
    """A note that was begun before its end, the last one, and the wake."""
    assert 2 * write + WAKE < copy.RESERVE < life("ArchiveFunction")
    assert write < copy.CLAIM


def test_a_wake_is_short(call: timedelta) -> None:
    """It is a convenience, and waits for no second try."""
    assert call > WAKE
