"""Take over a task that was submitted elsewhere, with the same vendor's key: watched, and never paid for."""

from collections.abc import Mapping
from http import HTTPStatus

from pydantic import ConfigDict, Field

from taskhook.core import parameters
from taskhook.core.caller import Caller
from taskhook.core.errors import RejectedError, TaskExistsError
from taskhook.core.limits import MAX_MODEL, MAX_UPSTREAM_ID, PRINTABLE
from taskhook.core.message import Json
from taskhook.core.ports import Clock, Reporter, TaskApi, TaskStore, Wake
from taskhook.core.rate_limit import Allowance
from taskhook.core.record import CallbackState, State
from taskhook.core.targets import TargetPolicy
from taskhook.core.task import Task
from taskhook.core.vendor import PollKind, PollOutcome
from taskhook.submit.request import OwnFields, derived_id


class Takeover(OwnFields):
    """A task that is at its vendor already."""

    model_config = ConfigDict(extra="forbid")

    vendor: str = Field(description="The vendor that has the task.", examples=["modellix"])
    task_id: str = Field(
        min_length=1,
        max_length=MAX_UPSTREAM_ID,
        pattern=PRINTABLE,
        description="The vendor's own id of it.",
        examples=["task-17c0ffee"],
    )
    model: str = Field(
        default="",
        max_length=MAX_MODEL,
        description="The model's name; it comes back in answers and callback.",
    )


async def take_over(
    body: Json,
    *,
    caller: Caller,
    targets: TargetPolicy,
    tasks: TaskStore,
    vendors: Mapping[str, TaskApi],
    allowances: Mapping[str, Allowance],
    wake: Wake | None,
    clock: Clock,
    reporter: Reporter,
) -> Task:
    """Watch a task that the vendor has; a repeat gets the first one, and one that has ended is ended at once.

    Raises RejectedError (404 where the vendor does not have it), StoreUnavailableError.
    """
    wanted = parameters.read(Takeover, body, what="a task to watch")
    api = vendors.get(wanted.vendor)
    if api is None:
        raise parameters.wrong("vendor", f"must be one of {', '.join(sorted(vendors))}")
    parameters.check_callback_url(wanted.callback_url, targets)
    # The same task meets the first one; no idempotency key can be spelled like this.
    task_id = derived_id(caller.caller, "watch", wanted.vendor, wanted.task_id)
    first = await tasks.get(task_id)
    if first is not None:
        return first
    now = clock.now()
    await allowances[wanted.vendor].require(now)
    outcome = await api.poll(wanted.task_id)
    _check(outcome, wanted)
    callback_url = wanted.callback_url or caller.callback_url
    task = Task(
        task_id=task_id,
        caller=caller.caller,
        vendor=wanted.vendor,
        model=wanted.model,
        fingerprint="",
        callback_url=callback_url,
        reference=wanted.reference,
        accepted_at=now,
        state=State.WATCHED,
        answer_status=HTTPStatus.OK,
        upstream_task_id=wanted.task_id,
        operation=api.origin + api.vendor.operation(wanted.task_id),
        taken_at=now,
        callback=CallbackState.WAITING if callback_url else CallbackState.NONE,
    )
    try:
        stored = await tasks.add(task)
    except TaskExistsError as exists:  # the same request, twice at once
        return exists.current
    reporter.report(
        "task.taken_over", task_id=task_id, caller=caller.caller, vendor=wanted.vendor, kind=outcome.kind
    )
    if wake is not None:
        has_ended = outcome.kind is not PollKind.PENDING
        await wake.wake(task_id, ended=has_ended, known_outcome=outcome if has_ended else None)
    return stored


def _check(outcome: PollOutcome, wanted: Takeover) -> None:
    """Raise RejectedError where the vendor does not say that it has the task."""
    match outcome.kind:
        case PollKind.PENDING | PollKind.SUCCEEDED | PollKind.FAILED:
            return
        case PollKind.MISSING:
            raise RejectedError(
                HTTPStatus.NOT_FOUND,
                f"Resource not found: vendor '{wanted.vendor}' has no task '{wanted.task_id}' under this "
                "deployment's key",
            )
        case PollKind.KEY_REFUSED:
            raise RejectedError(HTTPStatus.BAD_GATEWAY, "Upstream refused: this deployment's key or balance")
        case _:
            raise RejectedError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "Service unavailable: the vendor gave no answer about the task",
                retry_after=5,
            )
