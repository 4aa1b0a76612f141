import io
import json
import uuid
from typing import Any

import pytest
from aws_lambda_powertools import Logger, Metrics

from taskhook.adapters.aws.telemetry import LogReporter


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """Tell one outcome, and give its log line and its metrics: names, and values as they are written."""

    def tell(event: str, **facts: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        lines, metrics = io.StringIO(), Metrics(namespace="taskhook", service="shop")
        metrics.clear_metrics()
        # one of that name may be kept, with its stream
        logger = Logger(service=uuid.uuid4().hex, stream=lines)
        LogReporter(logger, metrics).report(event, **facts)
        metrics.flush_metrics()
        written = json.loads(capsys.readouterr().out)
        [declared] = written.pop("_aws")["CloudWatchMetrics"]
        assert (declared["Namespace"], declared["Dimensions"], written.pop("service")) == (
            "taskhook",
            [["service"]],
            "shop",
        )
        assert {metric["Name"] for metric in declared["Metrics"]} == set(written)
        return json.loads(lines.getvalue()), written

    return tell


@pytest.mark.parametrize(
    ("event", "facts", "metrics"),
    [
        ("task.ended", {"state": "failed"}, {"TaskEndedFailed": [1.0]}),
        ("task.submitted", {"outcome": "not_sent"}, {"TaskSubmittedNotSent": [1.0]}),
        ("vendor.paused", {"reason": "throttled", "seconds": 5.0}, {"VendorPausedThrottled": [1.0]}),
        (
            "vendor.polled",
            {"count": 57, "deadline_used": 12.5},
            {"VendorPolled": [57.0], "DeadlineUsed": [12.5]},
        ),
        ("callback.attempted", {"state": "delivered", "late_s": 0.0}, {"Lateness": [0.0]}),
        ("task.accepted", {"queued": None}, {"TaskAccepted": [1.0]}),
        ("task.submitted", {"outcome": "refused_here"}, {"VendorRefused": [1.0]}),
        ("vendor.paused", {"reason": "key_refused"}, {"VendorRefused": [1.0]}),
    ],
)
def test_an_outcome_is_a_line_and_a_count(
    told: Any, event: str, facts: dict[str, Any], metrics: dict[str, Any]
) -> None:
    """What is measured stands in the line, and in this stack's metrics; nothing is said of the unknown."""
    line, counted = told(event, **facts)
    assert line["message"] == event
    assert {name: line[name] for name in facts if name in line} == {
        k: v for k, v in facts.items() if v is not None
    }
    assert counted == metrics


@pytest.mark.parametrize(
    ("event", "facts"),
    [
        ("task.submitted", {"outcome": "taken"}),
        ("task.ended", {"state": "success"}),
        ("callback.attempted", {"state": "delivered", "late_s": None}),
    ],
)
def test_what_another_metric_counts_is_a_line_only(event: str, facts: dict[str, Any]) -> None:
    """A task that goes well is accepted and delivered; every name of a metric costs while it is written."""
    lines, metrics = io.StringIO(), Metrics(namespace="taskhook", service="shop")
    metrics.clear_metrics()
    LogReporter(Logger(service=uuid.uuid4().hex, stream=lines), metrics).report(event, **facts)
    assert json.loads(lines.getvalue())["message"] == event
    assert metrics.metric_set == {}
