"""Media are looked at before a task is taken."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus

from taskhook.core.caller import Caller
from taskhook.core.errors import RejectedError
from taskhook.core.models import Judgement, Verdict
from taskhook.core.ports import Clock, MediaProbe, Reporter
from taskhook.submit.request import SubmitRequest

# For all media of a request together, out of the time that the POST does not need.
PROBE_TIME = timedelta(seconds=3)


@dataclass(frozen=True)
class MediaInspection:
    """How media are looked at before a task is taken."""

    probe: MediaProbe
    enforce: bool  # False: what is wrong passes, and the task says so


async def inspect(
    request: SubmitRequest,
    *,
    caller: Caller,
    until: datetime,
    inspection: MediaInspection | None,
    clock: Clock,
    reporter: Reporter,
) -> dict[str, str]:
    """Look at all media at once, within PROBE_TIME and not past `until`; tell what could not be checked.

    Raises RejectedError where something is wrong.
    """
    if inspection is None or not request.paid.media:
        return {}
    limit = min(PROBE_TIME, until - clock.now())
    if limit <= timedelta(0):
        judged = [
            Judgement(rule.field, Verdict.UNCHECKED, "no time was left") for rule, _ in request.paid.media
        ]
    else:
        seen = await asyncio.gather(
            *(inspection.probe.look(url, limit=limit) for _, url in request.paid.media)
        )
        judged = [rule.judge(facts) for (rule, _), facts in zip(request.paid.media, seen, strict=True)]
    for one in judged:
        if one.verdict is not Verdict.FINE:
            reporter.report(
                "media.checked",
                caller=caller.caller,
                model=request.paid.model,
                input=one.field,
                outcome=one.verdict,
                reason=one.reason,
            )
    wrong = [one.reason for one in judged if one.verdict is Verdict.WRONG]
    if wrong and inspection.enforce:
        raise RejectedError(HTTPStatus.BAD_REQUEST, ". ".join(wrong))
    return {one.field: one.reason for one in judged if one.verdict is not Verdict.FINE}
