"""The submit function: HTTP in, HTTP out."""

import os
from pathlib import Path
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from taskhook.api import routes
from taskhook.settings import Settings
from taskhook.wiring import App

PAGES = Path(__file__).parent  # console and documentation are beside this file

app = App(Settings.of(os.environ)).built(
    "runner",
    "callers",
    "targets",
    "inspection",
    "payment",
    "admitting",
    "test_callbacks",
    "vendor_webhooks",
    "archive",
    "account",
)


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer one request of the HTTP API."""
    try:
        return routes.handle(event, context, app=app, pages=PAGES)
    finally:
        app.flush_metrics()
