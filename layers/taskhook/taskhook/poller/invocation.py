"""One invocation of the poller.

Acquire leadership, look for work, start what is due, sleep, resign, drain, report.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from taskhook.core.errors import StoreUnavailableError
from taskhook.core.message import Json
from taskhook.core.ports import TaskApi
from taskhook.core.vendor import PollOutcome
from taskhook.delivery.hosts import Hosts
from taskhook.poller.archiving import Archiving
from taskhook.poller.delivery import Delivery
from taskhook.poller.endings import Endings
from taskhook.poller.leadership import Leadership
from taskhook.poller.pacing import Pacing
from taskhook.poller.polls import Polls
from taskhook.poller.queue import Queue
from taskhook.poller.scheduler import Scheduler
from taskhook.poller.watch import Watch
from taskhook.poller.work import DRAIN, SCAN, TICK, PollerPorts, Rules, Standing

BEAT = timedelta(seconds=0.25)  # between looks at what is due

type Ends = Mapping[str, PollOutcome | None]


@dataclass(frozen=True)
class _AtVendor:
    """The work at one vendor."""

    pacing: Pacing
    watch: Watch
    queue: Queue


@dataclass(frozen=True)
class PollReport:
    """What one invocation did, by kind of step."""

    steps: dict[str, int]
    led: bool


def ends_of(event: Json) -> Ends:
    """Read which tasks a wake says have ended, and what the vendor said of each, where that is known."""
    ended = event.get("ended", {})
    named = ended if isinstance(ended, dict) else dict.fromkeys(ended)
    return {task_id: PollOutcome.model_validate(said) if said else None for task_id, said in named.items()}


async def poll(
    *,
    accepted: Iterable[str] = (),
    ended: Ends | None = None,
    scheduled: bool,
    hard_stop: datetime,
    rules: Rules,
    ports: PollerPorts,
) -> PollReport:
    """Serve the ids of a wake, then whatever else is due.

    Stay as the leader while more is due before the next tick.

    `accepted` names tasks to look after, `ended` tasks whose end is stored at once, and the vendor asked
    about it where it is not said. A scheduled invocation takes leadership over, a wake only where there is no
    leader. Writes nothing where nothing is due.
    """
    return await _Invocation(rules, ports, hard_stop).run(tuple(accepted), ended or {}, scheduled=scheduled)


class _Invocation:
    """What the index answers only says where to look: every write is conditional."""

    def __init__(self, rules: Rules, ports: PollerPorts, hard_stop: datetime) -> None:
        self._rules = rules
        self._ports = ports
        self._clock = ports.clock
        self._started = self._clock.now()
        self._hard_stop = hard_stop
        self._draining = False
        self._blind = False  # what there is to do could not be looked for
        self._standing = standing = Standing.at(self._started)
        self._leadership = Leadership(
            secrets.token_hex(8), hard_stop, rules=rules, ports=ports, standing=standing
        )
        self._scheduler = scheduler = Scheduler(clock=ports.clock, reporter=ports.reporter)
        self._hosts = Hosts(ports.clock)
        self._endings = endings = Endings(rules=rules, ports=ports, hosts=self._hosts, steps=scheduler.steps)
        self._vendors = {name: self._of(api) for name, api in ports.vendors.items()}
        archiving = Archiving(rules=rules, ports=ports, endings=endings, started=self._started)
        delivery = Delivery(
            rules=rules,
            ports=ports,
            hosts=self._hosts,
            endings=endings,
            steps=scheduler.steps,
            horizon=self._horizon,
            closed=self._closed,
            is_running=scheduler.is_running,
            wrote_unanswered=scheduler.wrote_unanswered,
        )
        # What leaves a queue enters the watch of its vendor, so the queues are looked at first.
        queues, watches = ([one.queue for one in self._all], [one.watch for one in self._all])
        scheduler.assign((*queues, *watches, archiving, delivery), closed=self._closed)

    @property
    def _all(self) -> Iterable[_AtVendor]:
        return self._vendors.values()

    def _of(self, api: TaskApi) -> _AtVendor:
        """Make what is the work of one vendor alone: its trouble is none of the others'."""
        pacing = Pacing(self._rules, self._ports, api, standing=self._standing)
        watch = Watch(
            rules=self._rules,
            ports=self._ports,
            pacing=pacing,
            standing=self._standing,
            endings=self._endings,
            steps=self._scheduler.steps,
            is_running=self._scheduler.is_running,
            known=self._scheduler.knows,
            track=self._scheduler.track,
            wrote_unanswered=self._scheduler.wrote_unanswered,
            started=self._started,
        )
        queue = Queue(
            rules=self._rules,
            ports=self._ports,
            pacing=pacing,
            watch=watch,
            closed=self._closed,
            track=self._scheduler.track,
            steps=self._scheduler.steps,
            started=self._started,
        )
        return _AtVendor(pacing, watch, queue)

    async def run(self, accepted: tuple[str, ...], ended: Ends, *, scheduled: bool) -> PollReport:
        """Do the work of one event."""
        try:
            await self._take_up(accepted, ended)
            if scheduled:
                await self._scheduler.find()
            if self._rules.leads and self._has_work():
                await self._acquire(takeover=scheduled)
            if self._standing.leads:
                await self._lead(scanned=scheduled)
            else:
                if not scheduled:
                    for one in self._all:
                        one.watch.leave_to_leader()
                        one.queue.leave_to_leader()
                await self._serve_once()
        finally:
            await self._leave()
        return PollReport(steps=dict(self._scheduler.steps), led=self._standing.leads)

    async def _take_up(self, accepted: tuple[str, ...], ended: Ends) -> None:
        for task_id in accepted:
            if (task := await self._ports.tasks.get(task_id)) is not None:
                self._scheduler.track(task)
        for task_id, outcome in ended.items():
            task = await self._ports.tasks.get(task_id)
            if task is not None and task.vendor in self._vendors:
                self._vendors[task.vendor].watch.keep_ended(task, outcome)

    async def _acquire(self, *, takeover: bool) -> bool:
        acquired = await self._leadership.acquire(takeover=takeover, beat=BEAT)
        if acquired:
            await self._read_admissions()
            for one in self._all:
                one.watch.replan_all()
        return acquired

    async def _lead(self, *, scanned: bool) -> None:
        """Work until nothing is due before the next tick, another invocation leads, or the time is up."""
        next_scan = self._clock.now() + (SCAN if scanned else timedelta(0))
        while not self._closed():
            if self._clock.now() >= next_scan:
                next_scan = self._clock.now() + SCAN
                if not await self._scan():
                    await self._leadership.leave_to_successor(self._unserved())
                    return
            await self._scheduler.start()
            if not self._has_work() and not await self._more_came():
                return
            await self._clock.sleep(BEAT)

    async def _scan(self) -> bool:
        """Look at the leadership and for work; False where another invocation leads."""
        try:
            webhooks_came = self._standing.view.webhooks_come(self._clock.now())
            if not await self._leadership.refresh():
                return False
            if self._standing.view.webhooks_come(self._clock.now()) is not webhooks_came:
                for one in self._all:
                    one.watch.replan_pending()
            await self._inherit()
            await self._scheduler.find()
            self._blind = False
        except StoreUnavailableError as error:
            self._blind = True
            self._ports.reporter.report("poll.scan_failed", error=str(error))
        return True

    async def _inherit(self) -> None:
        left = await self._leadership.inherited()
        if left is None:
            return
        for one in self._all:
            one.watch.replan_all()  # of a leader that has died, it is not known what it served
            one.watch.inherit(left)

    def _unserved(self) -> dict[str, datetime]:
        """List the poll times that are left to the successor, of all vendors."""
        return {task_id: due for one in self._all for task_id, due in one.watch.unserved().items()}

    async def _more_came(self) -> bool:
        """Resign, then look once more: a wake that found a leader until now has left its task to it."""
        try:
            await self._leadership.resign(served_until=self._served_until())
            for one in self._all:
                one.watch.index.look_back()
            await self._scheduler.find()
            return self._has_work() and await self._acquire(takeover=False)
        except StoreUnavailableError:
            return False

    def _served_until(self) -> datetime | None:
        """Tell until when every poll time was served; None where one may not have been."""
        now = self._clock.now()
        answered = all(one.watch.all_answered() and one.pacing.paused_until(now) <= now for one in self._all)
        if self._blind or not answered:
            return None
        return min(now, self._hard_stop - DRAIN)

    async def _serve_once(self) -> None:
        """Do what was due at the start, each once, waiting for the requests that takes."""
        if self._has_work():  # vendors are about to be asked, and some may want to be left alone
            await self._read_admissions()
        await self._scheduler.start(self._started)
        while not self._closed():
            if not await self._scheduler.wait(BEAT):
                at = self._scheduler.next_at()
                if at is None or at > self._started:
                    return
                await self._clock.sleep(BEAT)  # until the budget has room again
            await self._scheduler.start(self._started)

    async def _read_admissions(self) -> None:
        """Read what is known of the way to each vendor."""
        await asyncio.gather(*(one.pacing.read_admission() for one in self._all))

    async def _leave(self) -> None:
        """Resign, then let finish what has begun: no task must be left to an invocation that drains."""
        self._draining = True
        try:
            if self._leadership.holds:
                with contextlib.suppress(StoreUnavailableError):
                    await self._leadership.resign()
            for one in self._all:
                self._scheduler.cancel(one.pacing.held)  # no claim is dropped with them
            await self._scheduler.drain()
            await self._ports.callbacks.close()  # connections do not outlive a freeze
        finally:
            self._report()
            for one in self._all:
                one.watch.forget()

    def _closed(self) -> bool:
        """Whether it is too late to begin anything: the next invocation will."""
        return self._draining or self._clock.now() >= self._hard_stop - DRAIN

    def _horizon(self) -> datetime:
        """Until when work is this invocation's to wait for; the next tick finds what comes later."""
        return min(self._hard_stop - DRAIN, max(self._started + TICK, self._clock.now() + SCAN))

    def _has_work(self) -> bool:
        at = self._scheduler.next_at()
        return self._scheduler.is_busy() or (at is not None and at < self._horizon())

    def _report(self) -> None:
        """Report of each vendor the polls, those without an answer, and the queue's longest wait, if any."""
        for name, one in self._vendors.items():
            self._report_on(name, one.watch.polls, one.queue.longest_wait)

    def _report_on(self, vendor: str, polls: Polls, waited: timedelta | None) -> None:
        reporter = self._ports.reporter
        if polls.asked:
            used = round(100 * polls.deadline_used, 1)
            reporter.report("vendor.polled", vendor=vendor, count=polls.asked, deadline_used=used)
        if polls.unanswered:
            reporter.report(
                "vendor.unavailable", vendor=vendor, count=polls.unanswered, error=polls.complaint
            )
        if waited is not None:
            used = round(100 * (waited / self._rules.max_queue_age), 1)
            reporter.report(
                "queue.waited",
                vendor=vendor,
                oldest_queued_s=round(waited.total_seconds()),
                deadline_used=used,
            )
