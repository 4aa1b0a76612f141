"""Whether a vendor may be sent one more task: what its answers have shown of its slots and its trouble."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from taskhook.core.record import Moment
from taskhook.core.task import Task

# Between two tries for one slot more than the vendor was known to have: over a minute, so that with the tries
# that follow from an end not seen yet, less than one submit a minute is refused.
PROBE = timedelta(seconds=75)
MOST_UNKNOWN = 3  # outcomes in a row that are not known, until submits pause
FIRST_PAUSE = timedelta(seconds=10)  # of such a pause; it doubles with each probe that fails
NEWS = 10  # a change of less than a tenth is none
MOST_REFUSED_POLLS = 100  # tasks of which it is remembered
MOST_MODELS = 50  # of which is remembered how long their tasks took
MOST_KINDS = 50  # of tasks, of which trouble is remembered
MOST_REFUSED_KINDS = 10  # that are tried after all others
MOST_OF_NAMES = 2500  # characters of their names, for what is known is read with each submit
LONGEST_PAUSE = timedelta(minutes=5)

type Kinds = tuple[str, ...]


class AdmissionState(BaseModel):
    """What is known of the way to one vendor: whether tasks wait, how many it runs at once, when to pause.

    While anything waits, submits queue behind it without asking, so that no task overtakes another.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    waiting: bool = False
    slots: int | None = None  # running tasks at which the vendor refused one more; None: not known
    probed_at: Moment | None = None  # when the last such refusal came
    # Of submits: the vendor refused the key, asked for a pause, or is in trouble.
    paused_until: Moment | None = None
    polls_paused_until: Moment | None = None  # of every request: the vendor asked for it when it was polled
    unknown: int = 0  # submits in a row whose outcome is not known, and free probes that met no answer
    served: str = ""  # the caller whose turn was last, where more than one waits
    # By model that is not described: how soon its tasks have ended lately, in seconds.
    took: dict[str, int] = {}
    # Of the tasks that the vendor refused since it took more than it was known to, newest first.
    refused_kinds: tuple[str, ...] = ()
    suspect: str = ""  # the kind of one that was refused, where another was taken then
    unknown_of: dict[str, int] = {}  # by kind: submits in a row whose outcome is not known
    # By kind: until when none of its tasks is submitted, for the vendor refuses or loses them, while it takes
    # others.
    kinds_paused_until: dict[str, Moment] = {}
    # Tasks whose poll made the vendor ask for a pause; whether it has answered about others after it, so that
    # this is the trouble of that task alone.
    refused_polls: dict[str, bool] = {}
    nonce: str = ""

    @property
    def in_trouble(self) -> bool:
        """Whether so many outcomes in a row are unknown that only a probe may be submitted."""
        return self.unknown >= MOST_UNKNOWN

    def paused(self, now: datetime) -> bool:
        """Whether nothing at all should be submitted."""
        return now < self._paused_until(now)

    def is_paused_for(self, kinds: Iterable[str], now: datetime) -> bool:
        """Whether no task of these kinds should be submitted."""
        return any(now < self.kinds_paused_until.get(kind, now) for kind in kinds)

    def is_full(self, running: int) -> bool:
        """Whether a task that is submitted while so many run only tries for one slot more."""
        return self.slots is not None and running >= self.slots

    def doubts(self, kinds: Kinds, running: int) -> int:
        """Tell how far others should be tried first, which tells whether the trouble is these kinds' own.

        Where only one slot more is tried for, of the kinds that were refused, most of the last one;
        in trouble, of those that were lost three times in a row.
        """
        refused = self.refused_kinds if self.is_full(running) else ()
        lost = [kind for kind in kinds if self.in_trouble and self.unknown_of.get(kind, 0) >= MOST_UNKNOWN]
        return sum(len(refused) - refused.index(kind) for kind in kinds if kind in refused) + len(lost)

    def next_try(self, running: int, now: datetime) -> datetime:
        """Tell when one more task may be submitted while `running` are: now, or at the next probe."""
        soonest = self._paused_until(now)
        if not self.is_full(running) or self.probed_at is None:
            return soonest
        return max(soonest, self.probed_at + PROBE)

    def _paused_until(self, now: datetime) -> datetime:
        return max(now, self.paused_until or now, self.polls_paused_until or now)

    def refused(
        self, running: int, now: datetime, *, kinds: Kinds = (), retry_after: timedelta | None = None
    ) -> "AdmissionState":
        """Learn from a refusal: the vendor has as many slots as were filled.

        `retry_after` only makes the wait longer. Where the vendor asks for one, no other kind can be tried at
        once: a suspect kind that is refused again is paused, for the slots that are lacking are its own.
        """
        known = self.answered(kinds)
        if retry_after and self.suspect in kinds:
            return known.pause_kind(self.suspect, now).pause(now + retry_after)
        suspect = self.suspect if self.suspect in kinds or self.is_paused_for((self.suspect,), now) else ""
        refused = (*kinds, *(kind for kind in self.refused_kinds if kind not in kinds))[:MOST_REFUSED_KINDS]
        news = {"waiting": True, "slots": running, "probed_at": now, "refused_kinds": refused}
        known = known.model_copy(update=news | {"suspect": suspect})
        return known if retry_after is None else known.pause(now + retry_after)

    def taken(self, running: int, *, kinds: Kinds = (), served: str) -> "AdmissionState":
        """Learn from an acceptance while `running` others ran.

        Where these fill more slots than were known, how many there are is not known any more. If a task of
        another kind was refused then, that kind is suspect.
        """
        suspect = "" if self.suspect in kinds else self.suspect
        known = self.answered(kinds).model_copy(update={"served": served, "suspect": suspect})
        if not self.is_full(running):
            return known
        others = (*(kind for kind in self.refused_kinds if kind not in kinds), suspect)
        return known.model_copy(update={"slots": None, "refused_kinds": (), "suspect": others[0]})

    def pause_kind(self, kind: str, now: datetime) -> "AdmissionState":
        """Submit no task of this kind until the next probe: the vendor refuses it, and takes others."""
        return self.model_copy(
            update={"waiting": True, "kinds_paused_until": _with(self.kinds_paused_until, kind, now + PROBE)}
        )

    def outcome_unknown(
        self, now: datetime, *, kinds: Kinds = (), served: str | None = None
    ) -> "AdmissionState":
        """Learn from a submit whose outcome is not known: from the third in a row on, pause.

        From a kind's third in a row on it is paused by itself, for the vendor may serve the others.

        Where that submit was a probe, a task was spent although the vendor had answered a free request: the
        next probe waits as long as any. `served` is the caller whose turn it was, so that the next probe is
        another caller's; None: no turn was taken.
        """
        counts, paused = self.unknown_of, self.kinds_paused_until
        for kind in kinds:
            count = counts.get(kind, 0) + 1
            counts = _with(counts, kind, count)
            if count >= MOST_UNKNOWN:
                pause = FIRST_PAUSE if count == MOST_UNKNOWN else LONGEST_PAUSE
                paused = _with(paused, kind, now + pause)
        admission = self.model_copy(
            update={
                "unknown": self.unknown + 1,
                "unknown_of": counts,
                "kinds_paused_until": paused,
                "served": self.served if served is None else served,
            }
        )
        if self.in_trouble:
            return admission.pause(now + LONGEST_PAUSE)
        return admission.pause(now + FIRST_PAUSE) if admission.in_trouble else admission

    def unanswered(self, now: datetime) -> "AdmissionState":
        """Learn from a free probe without an answer: the pause doubles."""
        pause = min(FIRST_PAUSE * 2 ** min(self.unknown + 1 - MOST_UNKNOWN, 10), LONGEST_PAUSE)
        return self.model_copy(update={"unknown": self.unknown + 1}).pause(now + pause)

    def answered(self, kinds: Kinds = ()) -> "AdmissionState":
        """Learn from an answer whose meaning is clear: the vendor's trouble is over, and these kinds'."""
        known = self
        if any(kind in self.unknown_of or kind in self.kinds_paused_until for kind in kinds):
            news = {"unknown_of": _without(self.unknown_of, *kinds)}
            known = self.model_copy(
                update=news | {"kinds_paused_until": _without(self.kinds_paused_until, *kinds)}
            )
        if not self.unknown:
            return known
        return known.model_copy(
            update={"unknown": 0, "paused_until": None if self.in_trouble else self.paused_until}
        )

    def task_took(self, model: str, took: timedelta) -> "AdmissionState":
        """Learn how long a task of a model took: a shorter time counts at once, longer ones a little each."""
        seconds, known = round(took.total_seconds()), self.took.get(model)
        lately = seconds if known is None or seconds < known else known + (seconds - known) // 4
        if known is not None and abs(lately - known) <= known // NEWS:
            return self
        return self.model_copy(update={"took": _with(self.took, model, lately, most=MOST_MODELS)})

    def in_turn(self, heads: Iterable[Task], running: int, now: datetime) -> list[Task]:
        """Order the callers' oldest tasks by name, beginning after the caller that was served last.

        Without those of a kind that is paused; those of a doubtful one come last.
        """
        ready = [(task, kinds_of(task.caller, task.model)) for task in heads]
        ready = [(task, kinds) for task, kinds in ready if not self.is_paused_for(kinds, now)]
        ready.sort(
            key=lambda each: (
                self.doubts(each[1], running),
                each[0].caller <= self.served,
                each[0].caller,
            )
        )
        return [task for task, _ in ready]

    def pause(self, until: datetime) -> "AdmissionState":
        """Submit nothing before `until`; a longer pause stays."""
        return self.model_copy(update={"paused_until": max(until, self.paused_until or until)})

    def pause_polls(self, until: datetime) -> "AdmissionState":
        """Ask the vendor nothing before `until`; a longer pause stays."""
        return self.model_copy(update={"polls_paused_until": max(until, self.polls_paused_until or until)})

    def poll_refused(self, task_id: str, until: datetime) -> "AdmissionState":
        """Learn that a poll was answered with a pause: the vendor is asked nothing before `until`."""
        refused = _with(self.refused_polls, task_id, value=False, most=MOST_REFUSED_POLLS)
        return self.pause_polls(until).model_copy(update={"refused_polls": refused})

    def poll_answered(self, task_id: str, asked_at: datetime) -> "AdmissionState":
        """Learn that a poll was answered without: what others were refused before is their own trouble."""
        if not self.refused_polls or asked_at < (self.polls_paused_until or asked_at):
            return self
        own = dict.fromkeys(_without(self.refused_polls, task_id), True)
        return self if own == self.refused_polls else self.model_copy(update={"refused_polls": own})


def kinds_of(caller: str, model: str) -> Kinds:
    """Name the kinds of a task that the vendor's trouble may be with: its model, and its caller's of it."""
    return model, f"{caller} {model}"


def _without[T](of: dict[str, T], *keys: str) -> dict[str, T]:
    return {name: value for name, value in of.items() if name not in keys}


def _with[T](of: dict[str, T], key: str, value: T, *, most: int = MOST_KINDS) -> dict[str, T]:
    """Remember something of a model, kind or task, and of those learnt of last for which there is room."""
    kept, room = [(key, value)], MOST_OF_NAMES - len(key)
    for name, known in reversed(_without(of, key).items()):
        room -= len(name)
        if room < 0 or len(kept) == most:
            break
        kept.append((name, known))
    return dict(reversed(kept))
