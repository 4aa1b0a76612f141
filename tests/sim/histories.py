"""Random histories: callers that submit, repeat, cancel, ask, while processes die, freeze and come back."""

import contextlib
from datetime import timedelta
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from taskhook.core.record import CallbackState, Submission
from taskhook.poller import invocation
from tests.sim import checks
from tests.sim.deployment import Deployment
from tests.sim.injector import FREEZE, FaultInjector
from tests.sim.loop import seeded
from tests.sim.scene import Scene
from tests.world import a_caller

CALLERS = tuple(f"caller{number}" for number in range(6))
RECEIVERS = ("ok", "ok", "500-ok", "timeout-503-ok", "429-ok", "410-ok", "425-ok", "500")
FATES = (
    None,
    None,
    Submission.BUSY,
    Submission.REFUSED,
    Submission.REFUSED_HERE,
    Submission.NOT_SENT,
    "silent",
    "dropped",
)


class Histories(RuleBasedStateMachine):
    """A deployment that lives on while anything happens to it; once quiet, every invariant must hold."""

    @initialize(
        seed=st.integers(0, 2**32),
        slots=st.sampled_from((1, 3, 1_000_000)),
        webhooks=st.booleans(),
        holds=st.booleans(),
        wakes=st.booleans(),
        storm=st.sampled_from((0.0, 0.0, 0.02)),
    )
    def deploy(
        self, *, seed: int, slots: int, webhooks: bool, holds: bool, wakes: bool, storm: float
    ) -> None:
        """Begin with nothing stored, and let the ticks come."""
        self.room = contextlib.ExitStack()
        dice = self.room.enter_context(seeded(seed))
        self.room.enter_context(mock.patch.object(invocation, "BEAT", timedelta(seconds=2)))
        deployment = Deployment(
            slots=slots, webhooks=webhooks and wakes, holds=holds, wakes=wakes, max_queued=3
        )
        self.scene = Scene(
            deployment,
            FaultInjector(dice, storm=storm),
            2.0,
            people={name: a_caller(name) for name in CALLERS},
        )
        self.scene.begin()
        self.frozen = storm > 0
        self.made: list[tuple[str, str]] = []

    @rule(
        caller=st.sampled_from(CALLERS),
        key=st.sampled_from((None, "k", "l")),
        receiver=st.sampled_from(RECEIVERS),
        fate=st.sampled_from(FATES),
        seconds=st.sampled_from((3.0, 22.0, 90.0)),
        late=st.sampled_from((0.0, 0.0, 6.0)),
    )
    def submit(
        self, *, caller: str, key: str | None, receiver: str, fate: Any, seconds: float, late: float
    ) -> None:
        """A caller submits; with a key that was used before it is a repeat, or a conflict."""
        name = f"{caller}.{key}" if key else f"{caller}.n{len(self.made)}"
        if (name, caller) not in self.made:
            self.made.append((name, caller))
            self.scene.vendor.times[name] = seconds
            self.scene.vendor.script[name] = [fate] if fate else []
        self.scene.submit(
            name,
            caller=caller,
            key=key,
            late=late,
            callback_url=f"https://{caller}.example.com/{name}/{receiver}",
        )

    @rule(data=st.data(), what=st.sampled_from(("cancel", "redeliver", "redeliver_many", "listing")))
    def ask(self, *, data: st.DataObject, what: str) -> None:
        """A caller takes a task back, has one or all delivered again, or looks."""
        name, caller = data.draw(st.sampled_from(self.made)) if self.made else ("none", CALLERS[0])
        match what:
            case "cancel":
                self.scene.cancel(name, caller)
            case "redeliver":
                self.scene.redeliver(name, caller)
            case "redeliver_many":
                self.scene.redeliver_many(CallbackState.UNDELIVERED, caller)
            case _:
                self.scene.listing(caller)

    @rule(seconds=st.sampled_from((0.02, 0.3, 1.0, 5.0, 31.0, 400.0)))
    def pass_time(self, *, seconds: float) -> None:
        """Let everything go on for a while."""
        self.scene.go_on(seconds)

    @rule(data=st.data(), frozen=st.booleans())
    def strike(self, *, data: st.DataObject, frozen: bool) -> None:
        """Kill or freeze an invocation wherever it stands."""
        alive = [one for one in self.scene.invocations if not one.ended.is_set()]
        if not alive:
            return
        victim = data.draw(st.sampled_from(alive), label="victim")
        if frozen:
            victim.thawed, victim.frozen_until = True, self.scene.loop.time() + FREEZE
            self.frozen = True
        else:
            victim.kill()

    @rule(data=st.data())
    def double(self, *, data: st.DataObject) -> None:
        """Invoke again what runs already, as an event source may."""
        alive = [one for one in self.scene.invocations if not one.ended.is_set()]
        if alive:
            data.draw(st.sampled_from(alive), label="doubled").again()

    @rule()
    def cool(self) -> None:
        """Forget the warm processes."""
        self.scene.cool()

    def teardown(self) -> None:
        """Let ticks come until nothing is left to do, and look from the outside."""
        if not hasattr(self, "scene"):
            return
        with self.room:
            self.scene.finish()
            found = checks.violations(self.scene, "thaw history" if self.frozen else "history")
        trace = "\n".join(self.scene.injector.trace[-120:])
        assert not found, f"{found}\n{trace}"
