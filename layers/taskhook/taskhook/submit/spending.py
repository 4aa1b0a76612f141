"""What a token can spend: on which models, and how many tasks a day."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from http import HTTPStatus

from taskhook.core.caller import Caller
from taskhook.core.errors import RejectedError
from taskhook.core.message import MAX_NOTE
from taskhook.core.ports import SpendStore
from taskhook.submit.request import SubmitRequest


def check_model(request: SubmitRequest, *, caller: Caller, models: Sequence[str]) -> None:
    """Raise RejectedError (403) for a model that deployment or caller is not open to."""
    _check_model(request, models, "in this deployment")
    _check_model(request, caller.models or ("*",), f"to caller {caller.caller!r}")


async def count(request: SubmitRequest, *, caller: Caller, spent: SpendStore, now: datetime) -> None:
    """Count one more task of the day. Raises RejectedError (429) where all of them are used."""
    if caller.per_day is None:
        return
    midnight = next_midnight(now)
    if await spent.count_task(
        caller.caller, request.task_id, day=_day(now), at_most=caller.per_day, until=midnight
    ):
        return
    message = (
        f"Too many requests: caller {caller.caller!r} may have {caller.per_day} tasks a day, all are used"
    )
    raise RejectedError(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"{message}; the next day begins at {midnight:%Y-%m-%dT%H:%M:%SZ}",
        retry_after=math.ceil((midnight - now).total_seconds()),
    )


async def left_today(caller: Caller, *, spent: SpendStore, now: datetime) -> int | None:
    """Tell how many tasks the caller may still have today; None: any number."""
    if caller.per_day is None:
        return None
    return max(0, caller.per_day - await spent.counted(caller.caller, day=_day(now)))


def next_midnight(now: datetime) -> datetime:
    """Tell when the day ends, in UTC."""
    return datetime.combine(now.astimezone(UTC).date() + timedelta(days=1), datetime.min.time(), UTC)


def _day(now: datetime) -> str:
    return f"{now.astimezone(UTC):%Y-%m-%d}"


def _check_model(request: SubmitRequest, models: Sequence[str], where: str) -> None:
    """Hold a model's name, alone and with its vendor's before it, against patterns. Raises RejectedError."""
    names = (request.paid.model, f"{request.vendor}/{request.paid.model}")
    if any(fnmatchcase(name, pattern) for name in names for pattern in models):
        return
    message = f"Forbidden: model '{request.paid.model}' is not open {where}; open are {', '.join(models)}"
    raise RejectedError(HTTPStatus.FORBIDDEN, message[:MAX_NOTE])
