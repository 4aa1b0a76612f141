"""A vendor's key that is lost: whatever is under way there, the alarm rings, and no task ends for it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from taskhook.adapters.aws.secrets import StackSecret, StoredKey
from taskhook.adapters.http.vendor import HttpTaskApi
from taskhook.adapters.http.vendor_wire import trust
from taskhook.core.admission import MOST_UNKNOWN, AdmissionState
from taskhook.core.record import State
from taskhook.core.task import Task
from taskhook.core.vendor import PollKind, Vendor
from taskhook.vendors import VENDORS
from taskhook.vendors.dashscope import DASHSCOPE
from taskhook.vendors.modellix import MODELLIX
from tests.unit.test_keys import Secrets
from tests.unit.test_poll import PollerWorld

EACH = pytest.mark.parametrize("vendor", VENDORS.values(), ids=list(VENDORS))
GONE = ClientError({"Error": {"Code": "ResourceNotFoundException", "Message": "no"}}, "GetSecretValue")
LOST: dict[str, dict[str, Any] | Exception] = {
    "none": {"SecretString": "{}"},
    "empty": {"SecretString": '{"%s": ""}'},
    "no header can carry it": {"SecretString": '{"%s": "two words"}'},
    "binary": {"SecretBinary": b"key"},
    "no secret": GONE,
}


def lost(vendor: Vendor, how: dict[str, Any] | Exception) -> HttpTaskApi:
    """Ask a vendor without a key, for which no socket is needed."""
    if isinstance(how, dict) and "SecretString" in how:
        how = {"SecretString": how["SecretString"].replace("%s", vendor.name)}
    secret: Any = Secrets(how)
    key = StoredKey(StackSecret(secret, "arn"), vendor.name)
    return HttpTaskApi("https://vendor.invalid", key, vendor=vendor, tls=trust(), least=timedelta(0))


async def at(vendor: Vendor, how: dict[str, Any] | Exception, state: State) -> tuple[PollerWorld, Task]:
    """Give a world with this vendor alone, whose key is lost, and one task there that is a minute old."""
    poller = PollerWorld()
    poller.ports = replace(poller.ports, vendors={vendor.name: lost(vendor, how)})
    task = await poller.add(state)
    path = {"target": vendor.example.path}
    task = await poller.tasks.swap(task, task.model_copy(update={"vendor": vendor.name, **path}))
    poller.clock.pass_by(timedelta(minutes=1))
    return poller, task


def rings(poller: PollerWorld) -> list[str]:
    """Tell of which vendors the alarm VendorRefuses learns."""
    return [str(told["vendor"]) for told in poller.facts("vendor.paused") if told["reason"] == "key_refused"]


@EACH
@pytest.mark.parametrize("how", LOST.values(), ids=list(LOST))
@pytest.mark.parametrize("state", [State.WATCHED, State.QUEUED])
async def test_it_rings_within_a_tick_and_ends_no_task(
    vendor: Vendor, how: dict[str, Any] | Exception, state: State
) -> None:
    """Whether tasks run at the vendor, or only wait for it."""
    poller, task = await at(vendor, how, state)
    await poller.tick()
    assert vendor.name in rings(poller)
    assert poller.now_of(task).state is state


async def test_it_rings_while_the_vendor_is_in_trouble() -> None:
    """Its queue only asks then what is free; the trouble is not over for it, nor does it grow."""
    poller, task = await at(MODELLIX, LOST["none"], State.QUEUED)
    poller.control.the_admission = AdmissionState(waiting=True, unknown=MOST_UNKNOWN)
    await poller.tick()
    assert rings(poller)
    assert poller.now_of(task).state is State.QUEUED
    admission = poller.control.the_admission
    assert (admission.unknown, admission.paused(poller.clock.now())) == (MOST_UNKNOWN, True)


async def test_it_rings_while_only_a_submit_is_looked_for() -> None:
    """In the vendor's list, which it does not show without a key."""
    poller, task = await at(DASHSCOPE, LOST["none"], State.UNKNOWN)
    await poller.tick()
    assert rings(poller)
    assert poller.now_of(task).state is State.UNKNOWN


@EACH
async def test_with_nothing_under_way_it_is_not_looked_for(vendor: Vendor) -> None:
    """A tick asks no vendor for nothing, and reads no secret."""
    poller = PollerWorld()
    poller.ports = replace(poller.ports, vendors={vendor.name: lost(vendor, LOST["none"])})
    await poller.tick()
    assert poller.reported.events == []


@EACH
async def test_without_a_key_nothing_was_asked(vendor: Vendor) -> None:
    """So a cancel is refused, not doubtful; and the vendor is not said to serve."""
    api = lost(vendor, LOST["none"])
    asked: list[Callable[[], Any]] = [api.balance, lambda: api.cancel("up-1")]
    for ask in asked if vendor.cancel("") is not None else asked[:1]:
        said = await ask()
        assert (said.answered, said.no_key) == (False, True)
    assert (await api.poll("up-1")).kind is PollKind.KEY_REFUSED
