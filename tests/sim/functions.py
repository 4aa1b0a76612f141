"""A deployment in memory: its functions over the real adapters of the table, and the world around them."""

import itertools
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from http import HTTPStatus
from typing import Any

from taskhook.adapters.dynamodb.callers import DynamoCallers
from taskhook.api import answers
from taskhook.archive.copy import ArchiveReport, archive, link
from taskhook.core import callers, ports
from taskhook.core.caller import Caller
from taskhook.core.errors import RejectedError
from taskhook.core.message import Json
from taskhook.core.record import CallbackState
from taskhook.core.targets import TargetPolicy
from taskhook.delivery.samples import send_test_callbacks
from taskhook.poller.invocation import PollReport, ends_of, poll
from taskhook.settings import CallbackLatency, FirstPoll, MediaChecks, Switch
from taskhook.submit.request import SubmitRequest
from taskhook.submit.spending import left_today
from taskhook.submit.submit import submit
from taskhook.submit.takeover import take_over
from taskhook.submit.vendor_webhook import check_webhook
from taskhook.tasks import commands, query
from taskhook.vendors import VENDORS
from taskhook.wiring import App
from tests import history
from tests.sim.bucket import MemoryS3
from tests.sim.containers import as_client, own_key, start_container
from tests.sim.deployment import (
    ARCHIVE_TIME,
    CALLERS,
    ORIGIN,
    POLL_TIME,
    RESERVE,
    SUBMIT_CLAIM,
    SUBMIT_TIME,
    TASKS,
    Deployment,
)
from tests.sim.files import SimMedia, SimOriginals
from tests.sim.injector import FaultInjector, InjectedClock, Invocation
from tests.sim.loop import VirtualLoop
from tests.sim.receivers import SimReceivers
from tests.sim.runner import Runner
from tests.sim.table import Item, MemoryDynamo, NewerVersion
from tests.sim.vendor import SimVendor
from tests.world import SETTINGS, START, RecordingReporter, a_caller, as_stored


@dataclass
class Functions:
    """What is deployed, and around it a vendor, receivers and files that keep the truth."""

    deployment: Deployment
    injector: FaultInjector
    beat: float = 2.0
    people: dict[str, Caller] = field(
        default_factory=lambda: {name: a_caller(name) for name in ("alice", "bob")}
    )
    table: MemoryDynamo = field(init=False)
    reported: RecordingReporter = field(default_factory=RecordingReporter)
    # by task's name: what its submitter heard
    answers: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    names: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # of tasks, by id
    calls: list[history.Event] = field(default_factory=list)  # what callers asked, and were told

    def __post_init__(self) -> None:
        self.loop: VirtualLoop = self.injector.loop
        self.table = MemoryDynamo({TASKS: "task_id", CALLERS: "caller"}, time=self.loop.time)
        self.runner = Runner(self.injector, self._start_container)
        self.vendor = SimVendor(
            self.injector,
            self.deployment,
            states_of=self._states_of,
            webhook=self.webhook,
            aside=self.runner.aside,
        )
        self.media = SimMedia(self.injector)
        self.receivers = SimReceivers(self.injector, self.table)
        self.originals, self.bucket = SimOriginals(self.injector, self.deployment), MemoryS3()
        self.clock = self.injector.port(InjectedClock(self.injector), ports.Clock)
        self.reporter = self.injector.port(self.reported, ports.Reporter)
        on = self.deployment
        self.settings = SETTINGS.model_copy(
            update={
                "public_url": ORIGIN,
                "requests_per_minute": on.requests_per_minute,
                "max_queued": on.max_queued,
                "callback_latency": CallbackLatency.FAST if on.wakes else CallbackLatency.ECONOMY,
                "first_poll": FirstPoll.IMMEDIATE if on.immediate else FirstPoll.TYPICAL,
                "long_poll": Switch.ON if on.holds else Switch.OFF,
                "vendor_webhooks": Switch.ON if on.webhooks else Switch.OFF,
                "media_checks": MediaChecks.ENFORCE if on.inspects else MediaChecks.OFF,
                "results_bucket": "results" if on.archives else "",
            }
        )
        rules = App(self.settings).rules
        self.rules = replace(rules, max_task_age=on.max_task_age, max_queue_age=on.max_queue_age)
        self.vendors = {on.vendor: self.vendor}
        for name in on.others:
            self.vendors[name] = self.vendor.beside(name)
        self._vendor_ports = {
            name: self.injector.port(vendor, ports.TaskApi) for name, vendor in self.vendors.items()
        }
        self._clocks = itertools.cycle(on.clocks)
        self._newer = itertools.cycle((False, on.newer))
        self._media_port = self.injector.port(self.media, ports.MediaProbe)
        self._receivers_port = self.injector.port(self.receivers, ports.CallbackSender)
        admin = DynamoCallers(
            as_client(self.table), CALLERS, clock=self.clock, deployment_key=own_key(self.injector)
        )
        self.admin = self.injector.port(admin, ports.CallerAdmin)
        for caller in self.people.values():
            self.loop.run_until_complete(self.admin.inner.add(as_stored(caller)))

    # --- what is invoked --------------------------------------------------------------------------

    def submit(
        self,
        name: str,
        *,
        caller: str = "alice",
        key: str | None = None,
        count: str | None = None,
        late: float = 0.0,
        vendor: str | None = None,
        **changes: Any,
    ) -> Invocation:
        """Invoke the submit function as its API does; what the submitter hears is kept under the task's name.

        `count` is how often the submitter says that it has repeated the request.
        """
        body = {
            "image_url": f"https://example.com/{name}",
            "video_url": "https://example.com/v.mp4",
            "mode": "wan-std",
            "callback_url": f"https://r.example.com/{name}/ok",
            **changes,
        }
        url = body["callback_url"]
        headers = {"idempotency-key": key, "x-stainless-retry-count": count}
        request = self._request(body, caller, headers, vendor or self.deployment.vendor)
        self.names[request.task_id].add(name)

        repeated = name if count is not None else None
        intent = f"{caller} {key or repeated or request.task_id}"

        async def run(app: App) -> Any:
            call = self._asks(caller, "submit", intent=intent, work=name, url=url)
            try:
                answer = await submit(
                    request,
                    caller=self.people[caller],
                    arrived_at=app.clock.now() - timedelta(seconds=late),
                    claim=SUBMIT_CLAIM,
                    inspection=app.inspection,
                    payment=app.payment,
                    admitting=app.admitting,
                )
            except RejectedError as error:
                self._told(call, status=int(error.status))
                raise
            unknown = "refused" if "Outcome unknown" not in answer.message else "unknown"
            state = "accepted" if answer.status == HTTPStatus.OK else unknown
            self._told(call, status=answer.status, task=answer.task.task_id, state=state)
            return answer

        def start() -> Invocation:
            # an API call is not made twice
            twin: Callable[[], Invocation] = start if key is not None else lambda: self.poll({})
            return self.runner.invoke(
                f"submit {name}", "submit", run, twin, SUBMIT_TIME, heard=self.answers[name]
            )

        return start()

    def _asks(self, caller: str, what: str, **facts: Any) -> history.Event:
        self.calls.append(history.callers(START.timestamp() + self.loop.time(), caller, what, **facts))
        return self.calls[-1]

    def _told(self, call: history.Event, **facts: Any) -> None:
        call |= {"until": START.timestamp() + self.loop.time(), **facts}

    def _request(
        self, body: Json, caller: str, headers: Mapping[str, str | None], vendor_name: str
    ) -> SubmitRequest:
        """Read a submit in the form of its vendor; others than Modellix have what is ours as headers."""
        vendor = VENDORS[vendor_name]
        if vendor.form is not None:
            body = {"model": "a-video-model", **body}
            own = {
                "x-webhook-url": body.pop("callback_url", None),
                "x-reference": body.pop("reference", None),
            }
            theirs = {name.lower(): value for name, value in vendor.example.headers.items()}
            headers = {**headers, **own, **theirs}
        return SubmitRequest.read(
            vendor,
            vendor.example.path,
            body,
            caller=self.people[caller],
            targets=TargetPolicy(),
            headers={name: value for name, value in headers.items() if value is not None},
        )

    def poll(self, event: Json) -> Invocation:
        """Invoke the poll function with a tick or a wake."""
        accepted, ended = event.get("accepted", []), ends_of(event)

        async def run(app: App) -> PollReport:
            return await poll(
                accepted=accepted,
                ended=ended,
                scheduled=not (accepted or ended),
                hard_stop=app.clock.now() + timedelta(seconds=POLL_TIME) - RESERVE,
                rules=app.rules,
                ports=app.poller,
            )

        name = (
            f"wake {','.join(sorted(self.name_of(task_id) for task_id in (*accepted, *ended)))}"
            if event
            else "tick"
        )
        return self.runner.invoke(name, "poll", run, lambda: self.poll(event), POLL_TIME)

    def archive(self, event: Json) -> Invocation:
        """Invoke the archive function."""

        async def run(app: App) -> ArchiveReport:
            return await archive(
                event["archive"],
                hard_stop=app.clock.now() + timedelta(seconds=ARCHIVE_TIME) - RESERVE,
                ports=app.archiving("poll" if self.deployment.wakes else None),
            )

        name = f"archive {','.join(sorted(self.name_of(task_id) for task_id in event['archive']))}"
        return self.runner.invoke(name, "archive", run, lambda: self.archive(event), ARCHIVE_TIME)

    def follow(self, name: str) -> Invocation:
        """Invoke the submit function with the link in a task's callback."""

        async def run(app: App) -> str:
            task = await app.tasks.get(self.id_of(name))
            assert task is not None, "it was accepted"
            assert app.archive is not None, "results are archived"
            [resource] = json.loads(task.message or "")["data"]["result"]["resources"]
            return await link(resource["url"].removeprefix(f"{ORIGIN}/r/"), archive=app.archive)

        return self.runner.invoke(f"follow {name}", "submit", run, lambda: self.follow(name), SUBMIT_TIME)

    def webhook(self, url: str, upstream_task_id: str) -> Invocation:
        """Invoke the submit function with the vendor's webhook."""
        *_, task_id, token = url.split("/")

        async def run(app: App) -> None:
            assert app.vendor_webhooks is not None, "the vendor was given an address"
            await check_webhook(task_id, token, upstream_task_id, ports=app.vendor_webhooks)

        name = f"webhook {self.name_of(task_id)}"
        return self.runner.invoke(
            name, "submit", run, lambda: self.webhook(url, upstream_task_id), SUBMIT_TIME
        )

    def watch(self, name: str, caller: str = "alice") -> Invocation:
        """Invoke the submit function to take over a task that was submitted elsewhere."""
        vendor = self.deployment.vendor
        body = {
            "vendor": vendor,
            "task_id": f"up-elsewhere-{name}",
            "callback_url": f"https://r.example.com/{name}/ok",
        }

        async def run(app: App) -> Any:
            call = self._asks(caller, "watch", intent=f"{caller} {vendor} {name}", url=body["callback_url"])
            task = await take_over(
                body,
                caller=self.people[caller],
                targets=TargetPolicy(),
                tasks=app.tasks,
                vendors=app.vendors,
                allowances=app.allowances,
                wake=app.wake,
                clock=self.clock,
                reporter=self.reporter,
            )
            self.names[task.task_id].add(name)
            self._told(call, status=HTTPStatus.OK, task=task.task_id, state="accepted")
            return task

        return self.runner.invoke(
            f"watch {name}", "submit", run, lambda: self.watch(name, caller), SUBMIT_TIME
        )

    def limits(self, caller: str = "alice") -> Invocation:
        """Invoke the submit function to tell what a caller may still spend."""

        async def run(app: App) -> Any:
            return await left_today(self.people[caller], spent=app.control, now=self.clock.now())

        return self.runner.invoke("limits", "submit", run, lambda: self.limits(caller), SUBMIT_TIME)

    def cancel(self, name: str, caller: str = "alice") -> Invocation:
        """Invoke the submit function to take a task back."""

        async def run(app: App) -> Any:
            return await commands.cancel(
                self.id_of(name),
                caller=self.people[caller],
                tasks=app.tasks,
                vendors=app.vendors,
                allowances=app.allowances,
                wake=app.wake,
                clock=self.clock,
                reporter=self.reporter,
                retention=app.settings.retention,
            )

        return self.runner.invoke(
            f"cancel {name}", "submit", run, lambda: self.cancel(name, caller), SUBMIT_TIME
        )

    def redeliver(self, name: str, caller: str = "alice") -> Invocation:
        """Invoke the submit function to have a message delivered again."""

        async def run(app: App) -> Any:
            return await commands.redeliver(
                self.id_of(name),
                caller=self.people[caller],
                tasks=app.tasks,
                rate=app.control,
                wake=app.wake,
                clock=self.clock,
                reporter=self.reporter,
            )

        return self.runner.invoke(
            f"redeliver {name}", "submit", run, lambda: self.redeliver(name, caller), SUBMIT_TIME
        )

    def redeliver_many(self, state: CallbackState, caller: str = "alice") -> Invocation:
        """Invoke the submit function to have every message of that state delivered again."""

        async def run(app: App) -> Any:
            return await commands.redeliver_many(
                query.RedeliveryFilter.read({"state": state}),
                caller=self.people[caller],
                history=app.tasks,
                tasks=app.tasks,
                rate=app.control,
                wake=app.wake,
                clock=self.clock,
                reporter=self.reporter,
            )

        return self.runner.invoke(
            f"redeliver {state}", "submit", run, lambda: self.redeliver_many(state, caller), SUBMIT_TIME
        )

    def send_test_callbacks(self, url: str, caller: str = "alice") -> Invocation:
        """Invoke the submit function to send a receiver samples."""

        async def run(app: App) -> Any:
            return await send_test_callbacks(
                {"callback_url": url},
                caller=self.people[caller],
                targets=app.targets,
                rate=app.control,
                callbacks=app.test_callbacks,
                clock=self.clock,
                reporter=self.reporter,
            )

        return self.runner.invoke(
            f"try {caller}", "submit", run, lambda: self.send_test_callbacks(url, caller), SUBMIT_TIME
        )

    def listing(self, caller: str = "alice") -> Invocation:
        """Invoke the submit function to list tasks, and to authenticate."""

        async def run(app: App) -> Any:
            authorization = f"Bearer thk_{caller}_{caller[:1] * 43}"
            known = await callers.authenticate(authorization, callers=app.callers, now=self.clock.now())
            if known is None:
                return []
            call = self._asks(caller, "other")
            wanted, stored = query.Filter(limit=2), app.tasks
            listing = await query.list_tasks(
                wanted, caller=known, history=stored, tasks=stored, clock=app.clock
            )
            self._told(call, status=HTTPStatus.OK, tasks=[task.task_id for task in listing.tasks])
            return [answers.task_answer(task).body() for task in listing.tasks]

        return self.runner.invoke(f"list {caller}", "submit", run, lambda: self.listing(caller), SUBMIT_TIME)

    def command(self, name: str, run: Callable[[Any], Awaitable[Any]]) -> Invocation:
        """Run the admin command, which the operator repeats when it failed."""

        async def act(_app: App) -> Any:
            return await run(self.admin)

        return self.runner.invoke(name, "admin", act, lambda: self.command(name, run), 60.0)

    def _start_container(self) -> App:
        ahead, newer = next(self._clocks), next(self._newer)
        clock = self.injector.port(InjectedClock(self.injector, ahead), ports.Clock) if ahead else self.clock
        return start_container(
            self.injector,
            self.settings,
            table=NewerVersion(self.table) if newer else self.table,
            bucket=self.bucket,
            start=lambda function, event: {"poll": self.poll, "archive": self.archive}[function](event),
            rules=self.rules,
            vendors=self._vendor_ports,
            callbacks=self._receivers_port,
            test_callbacks=self._receivers_port,
            media_probe=self._media_port,
            originals=self.injector.port(self.originals, ports.Originals),
            clock=clock,
            reporter=self.reporter,
        )

    @property
    def invocations(self) -> list[Invocation]:
        """All that there were."""
        return self.runner.invocations

    def cool(self) -> None:
        """Forget the warm processes."""
        self.runner.cool()

    # --- names ------------------------------------------------------------------------------------

    def name_of(self, task_id: str) -> str:
        """Tell a task's name, or its id where the world did not make it."""
        return "/".join(sorted(self.names.get(task_id, ()))) or task_id

    def id_of(self, name: str) -> str:
        """Tell the id of a task by its name."""
        return next((task_id for task_id, names in self.names.items() if name in names), "tk_" + "0" * 22)

    def items_of(self, name: str) -> list[Item]:
        """List the items of a task."""
        return [
            item
            for task_id, names in self.names.items()
            if name in names and (item := self.table.peek(TASKS, task_id))
        ]

    def _states_of(self, name: str) -> set[str]:
        return {str(item["state"]["S"]) for item in self.items_of(name)}
