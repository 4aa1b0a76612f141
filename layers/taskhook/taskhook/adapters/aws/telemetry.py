"""Log lines and metrics."""

import resource

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import Metrics, MetricUnit

# Facts that are measured too, not only the lines that they stand in counted.
_MEASURES = {
    "late_s": ("Lateness", MetricUnit.Seconds),
    "deadline_used": ("DeadlineUsed", MetricUnit.Percent),
    "queued": ("QueueLength", MetricUnit.Count),
    "oldest_queued_s": ("OldestQueued", MetricUnit.Seconds),
}

# An alarm in the emulated account looks at one metric, so what shall ring alike is counted under one name.
_SAME = {"TaskSubmittedRefusedHere": "VendorRefused", "VendorPausedKeyRefused": "VendorRefused"}

# Each metric costs while it is written. Where all goes well, TaskAccepted and the samples of Lateness count a
# task.
_LINES_ONLY = {"TaskSubmittedTaken", "TaskEndedSuccess", "CallbackAttemptedDelivered"}


class LogReporter:
    """`Reporter`: one log line per outcome, and a metric that counts it; some facts are measured."""

    def __init__(self, logger: Logger, metrics: Metrics) -> None:
        self._logger = logger
        self._metrics = metrics

    def report(self, event: str, **facts: str | float | None) -> None:
        """Write the line `event` with its facts, and with how much memory this process has used at most.

        Lambda's own report of it is not logged: of a tick that did nothing it would be the only line.
        """
        known = {name: value for name, value in facts.items() if value is not None}
        known["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        self._logger.info(event, extra=known)
        counter = _metric(event, facts)
        if counter not in _LINES_ONLY:
            self._metrics.add_metric(
                name=counter, unit=MetricUnit.Count, value=float(facts.get("count") or 1)
            )
        for fact, (name, unit) in _MEASURES.items():
            if (value := facts.get(fact)) is not None:
                self._metrics.add_metric(name=name, unit=unit, value=float(value))


def _metric(event: str, facts: dict[str, str | float | None]) -> str:
    """Name the metric: `task.ended` with state `failed` is TaskEndedFailed."""
    words = [*event.replace(".", "_").split("_")]
    words += str(facts.get("state") or facts.get("outcome") or facts.get("reason") or "").split("_")
    name = "".join(word.capitalize() for word in words)
    return _SAME.get(name, name)
