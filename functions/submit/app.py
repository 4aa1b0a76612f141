"""The submit function: HTTP in, HTTP out."""

import gc

gc.disable()  # while it is loaded: none of this is garbage, and looking for some is a twentieth of a cold start

from pathlib import Path
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from taskhook import wiring
from taskhook.api import routes

gc.freeze()  # it stays, so that no later collection looks at it either
gc.enable()

PAGES = Path(__file__).parent  # console and documentation are beside this file


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer one request of the HTTP API."""
    try:
        return routes.handle(event, context, pages=PAGES)
    finally:
        wiring.flush_metrics()
