"""A submit whose outcome is unknown, looked for in the vendor's own list of tasks, where it has one.

Adopted is the only task that can be it: of the same model, made while the request was on its way, none of the
deployment's own, and still running. One that has ended counts as well, for it may be the one; it is not
adopted itself, for it may as well be one of ours.

The order of the looks is what makes this safe: a task of ours stands in the index before its POST and until
its end was stored, so that one which is not there, and which the vendor says afterwards is still running, was
not ours.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from taskhook.core.ports import TaskApi, TaskStore, WorkIndex
from taskhook.core.record import State
from taskhook.core.task import Task
from taskhook.core.vendor import PollKind, PollOutcome
from taskhook.poller.work import INDEX_LAG

SKEW = timedelta(seconds=5)  # between the vendor's clock and ours
POST_TIME = timedelta(seconds=20)  # of a paid POST at most
# After the submit; by the first one the index shows every task that was submitted at the same time.
LOOKS = tuple(POST_TIME + SKEW + INDEX_LAG + timedelta(seconds=pause) for pause in (5, 60, 300))
APART = POST_TIME + SKEW + SKEW  # submits that are so close may each have made what is found
LOOK_REQUESTS = 2  # to the vendor, of one look
MOST_OWN = 1000  # tasks of ours that are compared; where there are more, none is adopted


def next_look(
    submitted_at: datetime, *, after: datetime, paused_until: datetime | None = None
) -> datetime | None:
    """Tell when the list is looked at next; None where the last look is over.

    The end of a pause is a time to look as well: the pause may have passed over another.
    """
    times = [submitted_at + age for age in LOOKS]
    if paused_until is not None and paused_until > times[0]:
        times.append(paused_until)
    return min((at for at in times if at > after), default=None)


def looked_for_until(task: Task) -> datetime:
    """Tell from when on a task is not looked for any more.

    A rival that was submitted before it may end as unknown before it does, and is not seen then: what it made
    would be taken for this one's. Twice the time between them, for a look itself takes some.
    """
    return task.unknown_until - 2 * APART


async def found(
    task: Task,
    *,
    api: TaskApi,
    tasks: TaskStore,
    work: WorkIndex,
    obey: Callable[[PollOutcome], Awaitable[object]],
) -> str | None:
    """Give the vendor's id of a task whose submit is unknown; None where that is not certain.

    Makes LOOK_REQUESTS requests to the vendor at most, and none after it has asked for a pause, which `obey`
    is told of. Raises StoreUnavailableError.
    """
    assert task.submitted_at is not None  # noqa: S101  # an unknown task was submitted
    since, until = task.submitted_at - SKEW, task.submitted_at + POST_TIME + SKEW
    own = await _own(task, tasks=tasks, work=work)
    if own is None or any(_is_rival(other, task.model, task.submitted_at) for other in own):
        return None
    listed = await api.tasks_made(task.model, since=since, until=until)
    await obey(listed)
    ours = {other.upstream_task_id for other in own}
    candidates = [upstream for upstream in listed.upstream_task_ids or () if upstream not in ours]
    if len(candidates) != 1 or listed.retry_after is not None:
        return None
    outcome = await api.poll(candidates[0])
    await obey(outcome)
    return candidates[0] if outcome.kind is PollKind.PENDING else None


async def _own(task: Task, *, tasks: TaskStore, work: WorkIndex) -> list[Task] | None:
    """Read the deployment's tasks at this vendor; None where not all can be had."""
    ids: list[str] = []
    cursor = None
    while True:
        rows = await work.watched(task.vendor, None, cursor=cursor)
        ids += [row.task_id for row in rows.rows if row.task_id != task.task_id]
        if len(ids) > MOST_OWN:
            return None
        cursor = rows.cursor
        if cursor is None:
            break
    own = await tasks.read_many(ids)
    return own if len(own) == len(set(ids)) else None


def _is_rival(other: Task, model: str, submitted_at: datetime) -> bool:
    """Tell whether what is found could as well be this one, which was submitted at about the same time."""
    if other.state not in {State.SUBMITTING, State.UNKNOWN} or other.model != model:
        return False
    return abs((other.submitted_at or submitted_at) - submitted_at) <= APART
