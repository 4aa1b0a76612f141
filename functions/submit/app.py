"""The submit function: HTTP in, HTTP out."""

import gc

gc.disable()  # none of what init makes is garbage: looking for some is a twelfth of init

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
gc.freeze()  # nor is it looked at later, which takes 30 ms of a processor: 200 of the function's share
gc.enable()


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer one request of the HTTP API."""
    try:
        return routes.handle(event, context, app=app, pages=PAGES)
    finally:
        app.flush_metrics()
