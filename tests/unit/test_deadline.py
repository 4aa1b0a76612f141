"""The deadline of a task, at each vendor: none is given up, for it is paid, that its vendor may still end."""

from dataclasses import replace
from datetime import timedelta

import pytest

from taskhook.core.record import ErrorCode, State
from taskhook.core.task import EXPIRY_GRACE, Task
from taskhook.core.vendor import PollKind, PollOutcome, Vendor
from taskhook.vendors import VENDORS
from taskhook.vendors.ark import ARK
from taskhook.wiring import App
from tests.unit.test_poll import PollerWorld
from tests.world import SETTINGS, START, RecordingReporter

MINUTE = timedelta(minutes=1)
EACH = pytest.mark.parametrize("vendor", VENDORS.values(), ids=list(VENDORS))


async def at(vendor: Vendor) -> tuple[PollerWorld, Task]:
    """Give a world with this vendor alone, which never ends the task that it has."""
    poller = PollerWorld()
    poller.vendor.vendor, poller.ports = vendor, replace(poller.ports, vendors={vendor.name: poller.vendor})
    task = await poller.add(State.WATCHED)
    poller.vendor.task_time = timedelta(days=30)
    return poller, await poller.tasks.swap(task, task.model_copy(update={"vendor": vendor.name}))


@EACH
async def test_no_task_is_given_up_that_its_vendor_may_still_end(vendor: Vendor) -> None:
    """Whatever MaxTaskHours says; past both it is."""
    poller, task = await at(vendor)
    limit = max(poller.rules.max_task_age, vendor.longest_task)
    for age, error in ((limit - 5 * MINUTE, None), (limit + MINUTE, ErrorCode.EXPIRED)):
        poller.clock.pass_by(START + age - poller.clock.now())
        await poller.tick()
        assert poller.now_of(task).error is error
        assert poller.facts("vendor.polled")[-1]["deadline_used"] == pytest.approx(100 * age / limit, abs=0.2)


@EACH
async def test_a_vendor_that_does_not_answer_is_waited_for_past_its_own_limit(vendor: Vendor) -> None:
    """By as much as past MaxTaskHours."""
    poller, task = await at(vendor)
    limit = max(poller.rules.max_task_age, vendor.longest_task) + EXPIRY_GRACE
    poller.vendor.poll_outcomes.extend([PollOutcome(kind=PollKind.UNAVAILABLE)] * 1000)
    for age, error in ((limit - 5 * MINUTE, None), (limit + MINUTE, ErrorCode.EXPIRED)):
        poller.clock.pass_by(START + age - poller.clock.now())
        await poller.tick()
        assert poller.now_of(task).error is error


def test_the_operators_limit_counts_where_it_is_the_longer_one() -> None:
    """A vendor's own is no reason to give a task up sooner."""
    rules = PollerWorld().rules
    assert ARK.longest_task > rules.max_task_age
    for hours in (1, 24, 168):
        limit = replace(rules, max_task_age=timedelta(hours=hours)).task_age_at(ARK)
        assert limit == max(timedelta(hours=hours), timedelta(hours=72))


def test_requests_are_kept_for_as_long_as_any_task_may_take() -> None:
    """A deployment's table has them beside its tasks, until then at least."""
    tasks = App(SETTINGS, dynamodb=None, reporter=RecordingReporter()).tasks
    least = SETTINGS.max_queue_age + ARK.longest_task + EXPIRY_GRACE + SETTINGS.retention
    assert tasks._requests_kept >= least  # no item shows it before it is written
