"""The submit function: HTTP in, HTTP out."""

from pathlib import Path
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from taskhook import api, wiring

PAGES = Path(__file__).parent  # console and documentation are beside this file


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer one request of the HTTP API."""
    try:
        return api.handle(event, context, pages=PAGES)
    finally:
        wiring.flush_metrics()
