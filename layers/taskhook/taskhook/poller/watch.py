"""Tasks at one vendor: asked about when it is time, ended when the vendor says so, or never does."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import chain

from taskhook.core import rate_limit, schedule
from taskhook.core.ports import Row
from taskhook.core.record import State
from taskhook.core.task import Task
from taskhook.core.vendor import PollOutcome
from taskhook.poller.adoption import LOOK_REQUESTS
from taskhook.poller.aside import Place, SetAside
from taskhook.poller.endings import Endings
from taskhook.poller.pacing import Pacing, most_urgent
from taskhook.poller.polls import Entry, Polls
from taskhook.poller.watch_index import WatchIndex, accepted
from taskhook.poller.work import SCAN, PollerPorts, Rules, Standing

LOADED = 2000  # tasks kept in memory; of those beyond, an id and two times
LOOKS_AT_ONCE = 2  # for submits whose outcome is unknown: each reads all tasks of the vendor's
TABLE_STEPS = 32  # steps under way that only the table answers
MOST_LEFT = 2000  # unserved poll times that a leader hands over

_OURS = {State.SUBMITTING, State.WATCHED, State.UNKNOWN}


class Watch:
    """The kind of work of a vendor's task from its submit to its end; only LOADED tasks are kept whole."""

    eager = False

    def __init__(
        self,
        *,
        rules: Rules,
        ports: PollerPorts,
        pacing: Pacing,
        standing: Standing,
        endings: Endings,
        steps: Counter[str],
        is_running: Callable[[str], bool],
        known: Callable[[str], bool],
        track: Callable[[Task], None],
        wrote_unanswered: Callable[[Task], bool],
        started: datetime,
    ) -> None:
        self._ports = ports
        self._clock = ports.clock
        self._pacing = pacing
        self._standing = standing
        self._endings = endings
        self._is_running = is_running
        self._known = known
        self._track = track  # hands a task that was read to the kind that takes it
        self._started = started  # of the invocation; one that does not lead serves once what was due by then
        self._entries: dict[str, Entry] = {}
        self._aside = SetAside(ports.tasks, ports.clock, track=track, known=known)
        self.index = WatchIndex(ports.work, pacing.vendor.name, ports.clock, started=started)
        self._table_steps = 0
        self._looks: set[str] = set()  # under way, for submits whose outcome is unknown
        self._given: dict[str, datetime] = {}  # poll times that the predecessor left unserved
        self.polls = Polls(
            rules=rules,
            ports=ports,
            pacing=pacing,
            standing=standing,
            endings=endings,
            steps=steps,
            replan_pending=self.replan_pending,
            wrote_unanswered=wrote_unanswered,
            started=started,
        )

    # --- finding ----------------------------------------------------------------------------------

    async def find(self) -> None:
        """Look after what has come. Raises StoreUnavailableError."""
        async for rows in self.index.pages():
            await self._take_rows([row for row in rows if not self._known(row.task_id)])

    async def _take_rows(self, rows: list[Row]) -> None:
        """Read the tasks of new rows while there is room in memory; plan the rest by what their rows say."""
        room = max(LOADED - len(self._entries), 0)
        unread = {row.task_id: accepted(row) for row in rows[:room]}
        read = await self._ports.tasks.read_many(list(unread))
        if any(self.polls.is_looked_for(task) for task in read):  # at the end of a pause, too
            await self._pacing.read_admission()
        for task in read:
            unread.pop(task.task_id, None)
            self._track(task)
        self._aside.look_later(unread, SCAN)
        for row in rows[room:]:
            since = accepted(row)
            age = self._standing.polled_until.timestamp() - since
            wait = schedule.next_poll(timedelta(seconds=age), first=timedelta(0)).total_seconds()
            self._aside.add(row.task_id, due=since + wait, accepted=since)
            self._aside.only_row_read(row.task_id)

    def _waits_for_vendor(self, task: Task) -> bool:
        if task.state is State.WATCHED:
            return not self.polls.past_grace(task)
        return self.takes(task) and len(self._entries) >= 2 * LOADED  # an end that is to be told goes first

    # --- keeping ----------------------------------------------------------------------------------

    def takes(self, task: Task) -> bool:
        """Whether it is on its way to, or at, this vendor."""
        return task.state in _OURS and task.vendor == self._pacing.vendor.name

    def keep(self, task: Task) -> bool:
        """Look after a task from what was just read or stored."""
        entry, now = self._entries.get(task.task_id), self._clock.now()
        if entry is None:
            self.drop(task.task_id)
            due = self.polls.due(task, after=self._standing.polled_until)
            entry = self._entries[task.task_id] = Entry(task, due)
            left = self._given.pop(task.task_id, None)
            if left is not None and self.polls.is_asked_about(task):
                entry.unserved, entry.due = left, min(entry.due, left)
            return False
        entry.task = task
        again = self.polls.due(task, after=now, entry=entry)
        entry.due = max(again, entry.not_before or again)
        is_polled = task.state is State.WATCHED and not entry.webhook
        if len(self._entries) > LOADED and entry.due > now + SCAN and is_polled:
            del self._entries[task.task_id]
            self._aside.add(task.task_id, due=entry.due.timestamp(), accepted=task.age_since.timestamp())
        return False

    def keep_ended(self, task: Task, outcome: PollOutcome | None) -> None:
        """Look after a task of which a vendor webhook tells the end; `outcome`: what the vendor said."""
        self._track(task)
        entry = self._entries.get(task.task_id)
        if entry is not None:
            entry.webhook, entry.known_outcome = True, outcome
            if task.state is State.WATCHED:
                entry.due = self._started

    def leave_to_leader(self) -> None:
        """Keep only what cannot wait for the leader's next scan: a task that is known to have ended."""
        for task_id, entry in list(self._entries.items()):
            if entry.task.state is State.WATCHED and not entry.webhook:
                del self._entries[task_id]

    def drop(self, task_id: str) -> None:
        """Look after a task no longer."""
        self._entries.pop(task_id, None)
        self._aside.drop(task_id)

    def forget(self) -> None:
        """Keep nothing: a warm process frees late what refers to itself, and its next event has its own."""
        self._entries.clear()
        self._aside.clear()

    def knows(self, task_id: str) -> bool:
        """Whether the task is looked after."""
        return task_id in self._entries or task_id in self._aside

    def postpone(self, task_id: str, pause: timedelta) -> None:
        """Try a step that has failed again after a pause."""
        entry, now = self._entries.get(task_id), self._clock.now()
        if entry is not None:
            entry.not_before = now + pause
            entry.due = max(self.polls.due(entry.task, after=now, entry=entry), entry.not_before)

    def running(self, *, besides: str = "") -> int:
        """Count the tasks that fill a slot at the vendor, as far as is known."""
        return len(self._entries) + len(self._aside) - (besides in self._entries)

    def a_running_task(self) -> Task | None:
        """Give any task that the vendor has, as far as is known; None where none is kept whole."""
        return next((one.task for one in self._entries.values() if one.task.state is State.WATCHED), None)

    # --- when -------------------------------------------------------------------------------------

    def next_at(self) -> datetime | None:
        """Tell when the next step may start: when it is due, and the vendor may be asked if it must."""
        now = self._clock.now()
        free_at = self._pacing.paused_until(now)
        if free_at <= now:
            free_at = self._started  # for want of a request it is waited, not left to the next invocation
        times = [self.polls.free_at(entry, free_at) for entry in self._entries.values()]
        if self._aside.has_unread():
            times.append(self._started)
        if self._aside.overdue_count():
            times.append(free_at)
        if (due := self._aside.next_at()) is not None:
            times.append(max(datetime.fromtimestamp(due, UTC), free_at))
        return min(times, default=None)

    def replan_all(self) -> None:
        """Plan all polls anew, from the first poll time that is not known to be served."""
        for entry in self._idle():
            if not entry.asked:
                due = self._pacing.next_poll(entry.task, after=self._standing.polled_until)
                due = min(due, entry.unserved or due)
                entry.due = max(due, entry.not_before or due)

    def replan_pending(self) -> None:
        """Plan polls anew that are not due yet, where it was learnt how else the ends of tasks are told."""
        now = self._clock.now()
        for entry in self._idle():
            if entry.due > now:
                task, plain = entry.task, entry.is_plain(now)
                due = self._pacing.next_poll(task, after=now, answered=entry.answered, plain=plain)
                entry.due = max(due, entry.not_before or now)

    def _idle(self) -> list[Entry]:
        """List the tasks that wait for their next poll."""
        return [
            entry
            for task_id, entry in self._entries.items()
            if entry.task.state is State.WATCHED and not entry.webhook and not self._is_running(task_id)
        ]

    def all_answered(self) -> bool:
        """Whether no poll has been without an answer since."""
        return all(entry.answered for entry in self._entries.values())

    # --- hand-over --------------------------------------------------------------------------------

    def unserved(self) -> dict[str, datetime]:
        """List the poll times that are due and were not served, the most urgent ones."""
        now = self._clock.now()
        waiting = (
            _waiting(entry)
            for task_id, entry in self._entries.items()
            if self.polls.is_asked_about(entry.task) and entry.due <= now and not self._is_running(task_id)
        )
        left = most_urgent(chain(waiting, self._aside.overdue()), MOST_LEFT, now.timestamp())
        return {task_id: datetime.fromtimestamp(due, UTC) for due, task_id, _ in left}

    def inherit(self, left: Mapping[str, datetime]) -> None:
        """Take over the poll times that the predecessor has left unserved."""
        for task_id, due in left.items():
            entry = self._entries.get(task_id)
            if entry is not None:
                if not entry.asked and not self._is_running(task_id):
                    entry.unserved, entry.due = due, min(entry.due, due)
                continue
            self._given[task_id] = due  # for when it is read
            self._aside.bring_forward(task_id, due.timestamp())

    # --- starting ---------------------------------------------------------------------------------

    async def admit(self, due_by: datetime) -> Iterable[str]:
        """Start the steps that the table answers, and the most urgent polls that there are requests for."""
        now = self._clock.now()
        if self._pacing.believe_held_polls(now):  # of those, too, that were asked plainly meanwhile
            self.replan_all()
            self.replan_pending()
        if self._aside.has_unread():
            await self._aside.read_unread(waits=self._waits_for_vendor)
        self._aside.wake(min(now, due_by).timestamp())
        started: list[str] = []
        polls: list[str] = []
        for task_id, entry in self._entries.items():
            if entry.due > due_by or self._is_running(task_id):
                continue
            if self.polls.asks_vendor(entry):
                polls.append(task_id)
            elif self._table_steps + len(started) < TABLE_STEPS or entry.known_outcome is not None:
                started.append(task_id)
        if (polls or self._aside.overdue_count()) and self._pacing.paused_until(now) <= now:
            started += await self._admit_polls(polls, now, due_by)
        return started

    async def _admit_polls(self, polls: list[str], now: datetime, due_by: datetime) -> list[str]:
        unknown = {each for each in polls if self.polls.is_looked_for(self._entries[each].task)}
        polls = [each for each in polls if each not in unknown]
        looks = sorted(unknown, key=lambda each: self._entries[each].due)[: LOOKS_AT_ONCE - len(self._looks)]
        wanted = len(polls) + LOOK_REQUESTS * len(looks) + self._aside.overdue_count()
        room = await self._pacing.room(min(wanted, self._pacing.free_slots()), expected=self._expected(now))
        if room == 0:
            return []
        polls += looks if room >= LOOK_REQUESTS else []
        waiting = chain((_waiting(self._entries[task_id]) for task_id in polls), self._aside.overdue())
        chosen = [task_id for _, task_id, _ in self._pacing.most_urgent(waiting, room, now)]
        await self._aside.load(task_id for task_id in chosen if task_id in self._aside)
        started = []
        for task_id in chosen:
            entry = self._entries.get(task_id)
            if (
                entry is None
                or self._is_running(task_id)
                or entry.due > max(due_by, now)
                or not self.polls.asks_vendor(entry)
            ):
                continue  # read just now, and not due after all, or begun by another event meanwhile
            is_look = self.polls.is_looked_for(entry.task)
            requests = LOOK_REQUESTS if is_look else 1
            may_hold = not is_look and not self._pacing.is_probing(now)
            entry.hold = may_hold and self._pacing.may_hold(entry.task, plain=entry.is_plain(now))
            if requests > self._pacing.allowance.left or (is_look and len(self._looks) >= LOOKS_AT_ONCE):
                continue
            if not entry.hold and not self._pacing.plain_is_free():
                continue
            self._pacing.begin(entry.task, hold=entry.hold, requests=requests)
            entry.polling = True
            if is_look:
                self._looks.add(task_id)
            started.append(task_id)
        return started

    def _expected(self, now: datetime) -> int:
        """Count the requests that are likely to be made by the end of the budget's window."""
        end = rate_limit.window_end(now)
        return sum(
            entry.due < end and not self._is_running(task_id) for task_id, entry in self._entries.items()
        )

    # --- one step ---------------------------------------------------------------------------------

    async def step(self, task_id: str) -> Task | None:
        """Ask the vendor about a task, or end it; settle a submit whose process has died."""
        entry = self._entries[task_id]
        self._table_steps += not entry.polling
        try:
            return await self.polls.step(entry)
        finally:
            if entry.polling:
                self._pacing.end(entry.task, hold=entry.hold)
            else:
                self._table_steps -= 1
            self._looks.discard(task_id)
            entry.polling = entry.hold = False


def _waiting(entry: Entry) -> Place:
    """Say of a task since when its poll is due, and since when its age counts, as `most_urgent` takes it."""
    return entry.due.timestamp(), entry.task.task_id, entry.task.age_since.timestamp()
