"""What alarms and dashboards look at: the metrics that they name."""

from collections.abc import Iterable
from typing import Any

type Metric = tuple[str, str]  # namespace and name


def of_alarms(alarms: Iterable[dict[str, Any]]) -> set[Metric]:
    """List the metrics of alarms, each of which looks at one."""
    return {(alarm["Namespace"], alarm["MetricName"]) for alarm in alarms}


def of_dashboard(body: dict[str, Any]) -> set[Metric]:
    """List the metrics of a dashboard, whose rows repeat those above by `.` and `...`; no calculated ones."""
    found: set[Metric] = set()
    for widget in body["widgets"]:
        above: list[str] = []
        for row in widget["properties"]["metrics"]:
            named = [part for part in row if isinstance(part, str)]
            if not named:
                assert row[0]["expression"]
                continue
            if named[0] == "...":
                named = above[: len(above) - len(named) + 1] + named[1:]
            above = [above[index] if part == "." else part for index, part in enumerate(named)]
            found.add((above[0], above[1]))
    return found
