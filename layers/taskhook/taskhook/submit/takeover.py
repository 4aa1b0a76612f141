"""Take over a task that was submitted elsewhere, with the same vendor's key: watched, and never paid for."""

import base64
import hashlib
from collections.abc import Mapping
from http import HTTPStatus

from pydantic import BaseModel, ConfigDict, Field

from taskhook.core import parameters
from taskhook.core.caller import Caller
from taskhook.core.errors import ForbiddenTargetError, RejectedError, TaskExistsError
from taskhook.core.limits import MAX_REFERENCE, MAX_UPSTREAM_ID
from taskhook.core.message import Json
from taskhook.core.ports import Clock, Reporter, TaskApi, TaskStore, Wake
from taskhook.core.rate_limit import Allowance
from taskhook.core.record import CallbackState, State
from taskhook.core.targets import CallbackUrl, TargetPolicy
from taskhook.core.task import Task
from taskhook.core.vendor import PollKind, PollOutcome


class Takeover(BaseModel):
    """A task that is at its vendor already."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vendor: str = Field(description="Whose task it is.", examples=["modellix"])
    task_id: str = Field(
        min_length=1,
        max_length=MAX_UPSTREAM_ID,
        pattern="^[!-~]+$",
        description="The vendor's own id of it.",
        examples=["task-17c0ffee"],
    )
    model: str = Field(default="", max_length=128, description="What made it, to be told again.")
    callback_url: CallbackUrl | None = Field(
        default=None,
        description="Where the signed result is posted; without it the caller's default, or none.",
    )
    reference: str | None = Field(
        default=None, max_length=MAX_REFERENCE, description="Comes back in answers and callback."
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
    """Watch a task that the vendor has; the same one again is the first one.

    One that has ended is ended at once. Raises RejectedError (404 where the vendor does not have it),
    StoreUnavailableError.
    """
    wanted = parameters.read(Takeover, body, what="a task to watch")
    api = vendors.get(wanted.vendor)
    if api is None:
        raise parameters.wrong("vendor", f"must be one of {', '.join(sorted(vendors))}")
    if wanted.callback_url is not None:
        try:
            targets.check_url(wanted.callback_url)
        except ForbiddenTargetError as error:
            raise parameters.wrong("callback_url", error) from error
    task_id = _task_id(caller.caller, wanted)
    first = await tasks.get(task_id)
    if first is not None:
        return first
    now = clock.now()
    if not await allowances[wanted.vendor].take(now):
        raise RejectedError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Service unavailable: no request to the vendor is left for now",
            retry_after=6,
        )
    outcome = await api.poll(wanted.task_id)
    _check(outcome, wanted)
    task = Task(
        task_id=task_id,
        caller=caller.caller,
        vendor=wanted.vendor,
        model=wanted.model,
        fingerprint="",
        callback_url=wanted.callback_url or caller.callback_url,
        reference=wanted.reference,
        accepted_at=now,
        state=State.WATCHED,
        answer_status=HTTPStatus.OK,
        upstream_task_id=wanted.task_id,
        operation=api.origin + api.vendor.operation(wanted.task_id),
        taken_at=now,
        callback=CallbackState.WAITING if wanted.callback_url or caller.callback_url else CallbackState.NONE,
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
        await wake.wake(task_id, ended=has_ended, told=outcome if has_ended else None)
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
            raise RejectedError(
                HTTPStatus.BAD_GATEWAY, f"Upstream refused: this deployment's key ({outcome.message})"
            )
        case _:
            raise RejectedError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "Service unavailable: the vendor gave no answer about the task",
                retry_after=5,
            )


def _task_id(caller: str, wanted: Takeover) -> str:
    """Derive the id, so that a repeat meets the first; no idempotency key can be spelled like it."""
    digest = hashlib.sha256(f"{caller}\0watch\0{wanted.vendor}\0{wanted.task_id}".encode()).digest()
    return f"tk_{base64.urlsafe_b64encode(digest).decode()[:22]}"
