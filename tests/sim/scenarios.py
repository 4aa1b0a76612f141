"""What happens, one scenario after another: which caller submits what, how vendor and receivers behave."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from taskhook.core import callers
from taskhook.core.errors import RejectedError
from taskhook.core.record import CallbackState, State, Submission, milliseconds
from taskhook.core.vendor import PollKind
from taskhook.submit.submit import REPEATED_WITHIN, SubmitResult
from taskhook.vendors import VENDORS
from tests.sim.deployment import LATER_MODEL, TASKS, TICK, Deployment
from tests.sim.scene import Scene

Script = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """A script, the deployment it runs in, and how its tasks end when nothing goes wrong."""

    name: str
    script: Script
    deployment: Callable[[], Deployment]
    ends: dict[str, str] = field(default_factory=dict)  # by task: `success delivered`, `failed none`, …
    beat: float = 2.0  # seconds between a poller's looks at what is due; slower where it waits long


SCENARIOS: dict[str, Scenario] = {}


# What a scenario is about that one vendor alone has, or a parameter for.
_OF_ONE = {"vendor", "webhooks", "holds", "inspects", "requests_per_minute"}
OTHERS = tuple(name for name in VENDORS if name != "modellix")


def _scenario(
    ends: dict[str, str],
    *,
    beat: float = 2.0,
    elsewhere: dict[str, str] | None = None,
    **deployment: Any,
) -> Callable[[Script], Script]:
    """Keep a scenario, at Modellix and at each other vendor; `elsewhere` is what ends otherwise there."""

    def keep(script: Script) -> Script:
        name = script.__name__
        SCENARIOS[name] = Scenario(name, script, lambda: Deployment(**deployment), ends, beat)
        for vendor in OTHERS if _OF_ONE.isdisjoint(deployment) else ():
            if "max_task_age" in deployment and VENDORS[vendor].longest_task:
                continue  # its own limit is days away
            there = partial(Deployment, vendor=vendor, **deployment)
            other = f"{name}@{vendor}"
            SCENARIOS[other] = Scenario(other, script, there, ends | (elsewhere or {}), beat)
        return script

    return keep


async def _insist(scene: Scene, name: str, key: str, **more: Any) -> None:
    """Submit with a key, and again with the same one until there is an answer, as a careful client does."""
    for pause in (1, 5, 40, 120, 400):
        visit = scene.submit(name, key=key, **more)
        await visit.ended.wait()
        if isinstance(visit.answer, SubmitResult) or (
            isinstance(visit.answer, RejectedError) and visit.answer.status not in {409, 429}
        ):
            return
        await asyncio.sleep(pause)


# --- submitting -----------------------------------------------------------------------------------


@_scenario({"a": "success delivered"})
async def submits(scene: Scene) -> None:
    """One task, from the request to the callback."""
    await scene.submit("a").ended.wait()


@_scenario({"a": "success none"})
async def submits_without_url(scene: Scene) -> None:
    """A task that is only watched."""
    await scene.submit("a", callback_url=None).ended.wait()


@_scenario({"a": "success delivered"})
async def repeats_with_key(scene: Scene) -> None:
    """Twice at once with one key, once more later, and with another request."""
    first = scene.submit("a", key="k")
    await asyncio.sleep(0.1)
    await asyncio.gather(_insist(scene, "a", "k"), first.ended.wait())
    await _insist(scene, "a", "k")
    await scene.submit("a", key="k", reference="other").ended.wait()


@_scenario({"a": "success delivered", "b": "success delivered"})
async def counts_its_repeats(scene: Scene) -> None:
    """Official SDKs without a key: repeats at once and later, one that overtakes, one without a first."""
    for name, counts in (("a", "0112"), ("b", "102")):
        began = scene.loop.time()
        visits = [scene.submit(name, count=count) for count in counts]
        await asyncio.gather(*(visit.ended.wait() for visit in visits))
        for count, pause in (("3", 1), ("4", 5), ("5", 40), ("6", 60)):
            if scene.loop.time() - began > REPEATED_WITHIN.total_seconds():
                break  # by then it would be another request
            visit = scene.submit(name, count=count)
            await visit.ended.wait()
            if isinstance(visit.answer, SubmitResult):
                break
            await asyncio.sleep(pause)


@_scenario(dict.fromkeys("abc", "success delivered"), beat=4.0, slots=1, task_time=25.0)
async def waits_for_slots(scene: Scene) -> None:
    """More tasks of two callers than the vendor runs at once."""
    for name, caller in (("a", "alice"), ("b", "alice"), ("c", "bob")):
        await scene.submit(name, caller=caller).ended.wait()


@_scenario(
    {"a": "success delivered", "b": "failed delivered", "c": "failed delivered"},
    beat=4.0,
    slots=1,
    task_time=90.0,
    elsewhere={"a": "failed delivered"},
)
async def cancels(scene: Scene) -> None:
    """Queued tasks taken back, one of them twice; what runs only where its vendor can cancel it."""
    for name in ("a", "b", "c"):
        await scene.submit(name).ended.wait()
    for name in ("b", "a", "c", "b"):
        await scene.cancel(name).ended.wait()


@_scenario({"a": "success delivered"}, task_time=90.0)
async def cancels_too_late(scene: Scene) -> None:
    """A task that has just ended at its vendor, which no poller has seen yet: its result is not lost."""
    await scene.submit("a").ended.wait()
    await asyncio.sleep(90)
    await scene.cancel("a").ended.wait()


@_scenario({"a": "success delivered", "bad": "failed delivered"})
async def takes_over(scene: Scene) -> None:
    """Tasks that were submitted elsewhere, one of them twice."""
    for name in ("a", "bad"):
        scene.vendor.has(name)
        await scene.watch(name).ended.wait()
    await scene.watch("a").ended.wait()


@_scenario({"a": "success delivered", "b": "success delivered"})
async def spends_its_day(scene: Scene) -> None:
    """Two tasks a day and no third, however often they are repeated."""
    scene.people["alice"] = scene.people["alice"].model_copy(update={"per_day": 2})
    for name in ("a", "b", "c"):
        await _insist(scene, name, name)
    await scene.limits().ended.wait()


@_scenario({"a": "failed none", "b": "success delivered"})
async def is_refused(scene: Scene) -> None:
    """The vendor says that the request is wrong; the next one is not."""
    scene.vendor.script["a"] = [Submission.REFUSED]
    await scene.submit("a").ended.wait()
    await scene.submit("b").ended.wait()


@_scenario({"a": "success delivered", "b": "success delivered"}, inspects=True)
async def has_ugly_media(scene: Scene) -> None:
    """Media are looked at first; what is bad is refused, and the key may be used for better."""
    await scene.submit("ugly").ended.wait()
    await scene.submit("ugly-b", key="k").ended.wait()
    first = scene.submit("a", key="k")
    await _insist(scene, "a", "k")
    await first.ended.wait()
    await scene.submit("b", late=2).ended.wait()


@_scenario({"a": "success delivered"})
async def uses_the_key_again(scene: Scene) -> None:
    """After 402 the same key may be used again, twice at once."""
    scene.vendor.script["a"] = [Submission.REFUSED_HERE]
    await _insist(scene, "a", "k")
    first = scene.submit("a", key="k")
    await _insist(scene, "a", "k")
    await first.ended.wait()


@_scenario(
    {"a": "success delivered", "b": "success delivered", "c": "failed delivered"},
    vendor="dashscope",
    task_time=150.0,
    beat=4.0,
)
async def looks_for_its_task(scene: Scene) -> None:
    """The answer to a paid POST is lost; the vendor's list shows one task that is not another of ours."""
    scene.vendor.script |= {"a": ["silent"], "c": ["dropped"]}
    await asyncio.gather(*(scene.submit(name).ended.wait() for name in "ab"))
    await asyncio.sleep(40)
    await scene.submit("c").ended.wait()


@_scenario(dict.fromkeys("ab", "failed delivered"), vendor="dashscope", task_time=150.0, beat=4.0)
async def cannot_tell_its_tasks(scene: Scene) -> None:
    """Two answers are lost at the same time: neither task is adopted."""
    for name in "ab":
        scene.vendor.script[name] = ["silent"]
    await asyncio.gather(*(scene.submit(name).ended.wait() for name in "ab"))


@_scenario({**dict.fromkeys("abc", "failed delivered"), "d": "success delivered"}, beat=4.0)
async def vendor_is_down(scene: Scene) -> None:
    """Three answers in a row are lost; the fourth task waits until the vendor answers a free request."""
    for name in "abc":
        scene.vendor.script[name] = ["dropped"]
    for name in "abcd":
        await scene.submit(name).ended.wait()


@_scenario({"a": "success delivered", "b": "success delivered"}, beat=4.0)
async def balance_is_short(scene: Scene) -> None:
    """The balance runs out while a task is queued; it stays there until it is paid in."""
    scene.vendor.script["a"] = [Submission.BUSY, Submission.REFUSED_HERE]
    await scene.submit("a").ended.wait()
    await scene.submit("b").ended.wait()


@_scenario(dict.fromkeys("abcd", "success delivered"), requests_per_minute=22)
async def budget_is_short(scene: Scene) -> None:
    """Two requests in six seconds, four tasks, two callers."""
    await asyncio.gather(
        *(
            scene.submit(name, caller=caller).ended.wait()
            for name, caller in zip("abcd", ("alice", "bob") * 2, strict=True)
        )
    )


@_scenario({"a": "success delivered"})
async def has_little_time(scene: Scene) -> None:
    """A cold start has used up the time: the task is queued unpaid."""
    await scene.submit("a", late=6).ended.wait()


@_scenario({"a": "success delivered", "b": "success delivered"}, beat=4.0, max_queued=1, slots=0)
async def queue_is_full(scene: Scene) -> None:
    """The caller's own queue has an end; the vendor has a slot again after a while."""
    await scene.submit("a").ended.wait()
    await asyncio.sleep(2)  # until the index shows it
    await scene.submit("c").ended.wait()
    await asyncio.sleep(30)
    scene.deployment.slots = 2
    await scene.until(lambda: not _queued(scene, "a"))
    await asyncio.sleep(2)
    await scene.submit("b").ended.wait()


@_scenario({"a": "failed delivered"}, beat=20.0, slots=0, max_queue_age=timedelta(minutes=3))
async def waits_too_long(scene: Scene) -> None:
    """There never is a slot."""
    await scene.submit("a").ended.wait()


# --- watching -------------------------------------------------------------------------------------


@_scenario({"a": "success delivered", "b": "success delivered"}, task_time=140.0)
async def is_handed_over(scene: Scene) -> None:
    """Tasks that outlive the invocation which began to watch them."""
    await scene.submit("a").ended.wait()
    await asyncio.sleep(20)
    await scene.submit("b", caller="bob").ended.wait()


@_scenario(dict.fromkeys("abcdef", "success delivered"))
async def ends_at_the_hand_over(scene: Scene) -> None:
    """Tasks that end while one leader hands over to the next: before, with and after the tick."""
    await scene.tick.wait()
    began = scene.loop.time()
    for number, name in enumerate("abcdef"):
        # Looked at every 2 s from its 20th second on, so that each is found ended at another moment around
        # the next tick.
        scene.vendor.times[name] = TICK - 1.5 + 0.7 * number - (scene.loop.time() - began)
        await scene.submit(name, callback_url=f"https://r{number}.example.com/ok").ended.wait()


@_scenario({"a": "success delivered", "b": "success delivered"}, holds=True, immediate=True)
async def is_held_at_the_hand_over(scene: Scene) -> None:
    """Held polls that a leader drops as it hands over, and their ends right then."""
    await scene.tick.wait()
    began = scene.loop.time()
    for name, after in (("a", 0.6), ("b", 1.9)):
        scene.vendor.times[name] = TICK + after - (scene.loop.time() - began)
        await scene.submit(name).ended.wait()


@_scenario({"a": "success delivered"}, holds=True, immediate=True, task_time=70.0)
async def is_held(scene: Scene) -> None:
    """The vendor holds polls open."""
    await scene.submit("a").ended.wait()


@_scenario({"bad": "failed delivered"})
async def fails(scene: Scene) -> None:
    """The vendor could not do it."""
    await scene.submit("bad").ended.wait()


@_scenario({"a": "failed delivered"}, beat=20.0, task_time=1e9, max_task_age=timedelta(minutes=4))
async def meets_its_deadline(scene: Scene) -> None:
    """The vendor never ends the task."""
    await scene.submit("a").ended.wait()


@_scenario({"a": "failed delivered"}, beat=20.0, task_time=1e9, max_task_age=timedelta(minutes=4))
async def meets_its_hard_stop(scene: Scene) -> None:
    """The vendor does not answer any more, for days."""
    scene.vendor.misses = [PollKind.UNAVAILABLE] * 100_000
    await scene.submit("a").ended.wait()


@_scenario({"a": "failed delivered", "b": "success delivered"}, beat=4.0, task_time=130.0)
async def is_lost(scene: Scene) -> None:
    """The vendor forgets one task, and another one for a moment."""
    await scene.submit("a").ended.wait()
    await scene.submit("b").ended.wait()
    await asyncio.sleep(50)
    for task in scene.vendor.tasks.values():
        task.known = task.name != "a"
    scene.vendor.misses = [PollKind.MISSING]


@_scenario({"a": "success delivered"}, webhooks=True, task_time=45.0)
async def is_told_by_webhook(scene: Scene) -> None:
    """The vendor's webhook tells of the end."""
    await scene.submit("a").ended.wait()
    scene.cool()
    await asyncio.sleep(100)
    await scene.listing().ended.wait()


@_scenario({"a": "success delivered", "b": "failed delivered"}, webhooks=True, task_time=45.0)
async def is_recovered(scene: Scene) -> None:
    """The answer to the paid POST breaks off; the vendor had taken one task, and not the other."""
    scene.vendor.script |= {"a": ["silent"], "b": ["dropped"]}
    await scene.submit("a").ended.wait()
    await scene.submit("b").ended.wait()


@_scenario({"a": "failed delivered"})
async def is_never_known(scene: Scene) -> None:
    """The answer to the paid POST breaks off, and the vendor calls no webhooks."""
    scene.vendor.script["a"] = ["silent"]
    await _insist(scene, "a", "k")


@_scenario({"a": "success delivered", "b": "success delivered"}, wakes=False)
async def saves_money(scene: Scene) -> None:
    """One pass per tick, no wakes, no leader."""
    await scene.submit("a").ended.wait()
    await scene.submit("b", late=6).ended.wait()


# --- calling back ---------------------------------------------------------------------------------


def _receiver(behaviour: str, end: str, *, task_time: float = 22.0, beat: float = 4.0) -> None:
    async def script(scene: Scene) -> None:
        await scene.submit("a", callback_url=f"https://r.example.com/{behaviour}").ended.wait()
        await scene.submit("b", callback_url="https://other.example.com/ok", caller="bob").ended.wait()

    name = f"receiver_{behaviour.replace('-', '_').replace('+', '_after_')}"
    SCENARIOS[name] = Scenario(
        name, script, lambda: Deployment(task_time=task_time), {"a": end, "b": "success delivered"}, beat
    )


_receiver("503-503-503-ok", "success delivered")
_receiver("timeout-reset-ok", "success delivered")
_receiver("302-429-409-ok", "success delivered")
_receiver("425-425-502-504-ok", "success delivered")
_receiver("503+40-429+8-404-ok", "success delivered")
_receiver("500", "success undelivered", beat=20.0)
_receiver("410", "success undelivered")
_receiver("410-ok", "success delivered")


@_scenario({"a": "success delivered"})
async def tries_a_receiver(scene: Scene) -> None:
    """Samples first, then the task itself."""
    await scene.send_test_callbacks("https://r.example.com/500-ok").ended.wait()
    await scene.submit("a").ended.wait()


@_scenario({"a": "success delivered", "b": "success delivered", "c": "success delivered"}, beat=4.0)
async def delivers_again(scene: Scene) -> None:
    """One message that was delivered, one that waits for its next attempt, and all that were given up."""
    await scene.submit("a").ended.wait()
    await scene.submit("b", callback_url="https://r.example.com/503-503-ok").ended.wait()
    await scene.submit("c", callback_url="https://r.example.com/410-410-ok").ended.wait()
    await scene.redeliver("a").ended.wait()  # too early
    await scene.until(lambda: _is(scene, "a", "delivered") and _attempts(scene, "b") > 1)
    for name in ("a", "b", "a"):
        await scene.redeliver(name).ended.wait()
    # an hour, and until the index shows it
    await scene.until(lambda: _is(scene, "c", "undelivered"), 6000, step=20)
    await asyncio.sleep(2)
    await scene.redeliver_many(CallbackState.UNDELIVERED).ended.wait()


@_scenario({"a": "success delivered"}, beat=4.0)
async def rotates_its_secret(scene: Scene) -> None:
    """A new signing secret between two attempts; for a while both sign."""
    await scene.command("rotate", _second_caller).ended.wait()
    await scene.submit("a", callback_url="https://r.example.com/500-500-500-500-ok").ended.wait()
    await scene.until(lambda: len(scene.receivers.visits) > 1)
    for _ in range(3):
        rotation = scene.command("rotate", _rotation)
        await rotation.ended.wait()
        if rotation.answer is not None and not isinstance(rotation.answer, Exception):
            break
    await scene.command("list", lambda admin: admin.every()).ended.wait()
    await scene.command("disable", lambda admin: callers.disable("carol", admin=admin)).ended.wait()
    await scene.command("remove", lambda admin: callers.remove("carol", admin=admin)).ended.wait()


async def _rotation(admin: Any) -> Any:
    now = (await admin.read("alice")).created_at
    return await callers.rotate_secret("alice", overlap=timedelta(hours=1000), now=now, admin=admin)


async def _second_caller(admin: Any) -> Any:
    now = (await admin.read("alice")).created_at
    return await callers.add("carol", callback_url=None, now=now, admin=admin)


# --- archiving ------------------------------------------------------------------------------------


@_scenario({"a": "success delivered", "b": "success none"}, archives=True)
async def archives(scene: Scene) -> None:
    """Results are copied before the callback, and can be had by the link that was sent."""
    await scene.submit("a").ended.wait()
    await scene.submit("b", caller="bob", callback_url=None).ended.wait()
    if await scene.until(lambda: _in_state(scene, "a", State.SUCCESS), 1800):
        await scene.follow("a").ended.wait()


@_scenario({"a": "success delivered"}, archives=True, changes=True)
async def archives_what_changes(scene: Scene) -> None:
    """The vendor's file becomes another one while it is copied."""
    await scene.submit("a").ended.wait()


@_scenario({"a": "success delivered", "b": "success delivered"}, archives=True, pace=4.0)
async def archive_is_killed(scene: Scene) -> None:
    """The archiver is killed half-way; another goes on, and another task comes to its end meanwhile."""
    await scene.submit("a").ended.wait()
    if await scene.until(lambda: any(scene.bucket.uploads.values())):
        await asyncio.sleep(5)
        for invocation in scene.invocations:
            if "archive" in invocation.name and not invocation.ended.is_set():
                invocation.kill()
    await scene.submit("b", caller="bob").ended.wait()


@_scenario({"a": "success delivered", "b": "success delivered"}, beat=20.0, archives=True, serves=False)
async def archives_too_late(scene: Scene) -> None:
    """The vendor's file server is down for longer than a callback waits, and up again for the next task."""
    await scene.submit("a").ended.wait()
    await asyncio.sleep(1200)
    scene.deployment.serves = True
    await scene.submit("b").ended.wait()


# --- running --------------------------------------------------------------------------------------


@_scenario({"a": "success delivered", "b": "success delivered"}, beat=4.0, task_time=40.0)
async def is_deployed(scene: Scene) -> None:
    """Another version runs too: attributes, models and states that this one does not know."""
    await scene.submit("a").ended.wait()
    await scene.submit("b").ended.wait()
    for item in scene.items_of("a"):
        scene.table.write(TASKS, item | {"novelty": {"S": "kept"}})
    for item in scene.items_of("b"):
        scene.table.write(TASKS, item | {"model": {"S": LATER_MODEL}, "novelty": {"S": "kept"}})
    now = scene.loop.now()
    for number, (partition, state) in enumerate(
        (("watch", "dreaming"), ("queue", "queued"), ("retry", "success"))
    ):
        task_id = f"tk_{number:022d}"
        scene.poison.add(task_id)
        at = f"{milliseconds(now):013d}_{task_id}"
        words = {
            "task_id": task_id,
            "work": partition,
            "work_at": f"alice#{at}" if partition == "queue" else at,
            "state": state,
        }
        scene.table.write(TASKS, {name: {"S": word} for name, word in words.items()})
    await scene.submit("c", late=6).ended.wait()


@_scenario(dict.fromkeys("abcde", "success delivered"), slots=2, task_time=25.0, webhooks=True)
async def is_busy(scene: Scene) -> None:
    """Several callers at once, few slots, receivers that fail, a list in between."""
    await asyncio.gather(
        *(
            scene.submit(name, caller=caller).ended.wait()
            for name, caller in (("a", "alice"), ("b", "bob"), ("c", "bob"))
        )
    )
    await scene.submit("d", callback_url="https://r.example.com/500-timeout-ok").ended.wait()
    await scene.listing("bob").ended.wait()
    await asyncio.sleep(10)
    await _insist(scene, "e", "k", late=5.5)


def _queued(scene: Scene, name: str) -> bool:
    return _in_state(scene, name, State.QUEUED)


def _in_state(scene: Scene, name: str, state: State) -> bool:
    return any(item["state"]["S"] == state for item in scene.items_of(name))


def _is(scene: Scene, name: str, callback: str) -> bool:
    return any(item.get("callback", {"S": ""})["S"] == callback for item in scene.items_of(name))


def _attempts(scene: Scene, name: str) -> int:
    return sum(int(item.get("attempts", {"N": "0"})["N"]) for item in scene.items_of(name))
