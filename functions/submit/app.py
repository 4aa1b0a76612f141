"""The submit function: HTTP in, HTTP out."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from taskhook import api, wiring


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer one request of the HTTP API."""
    try:
        return api.handle(event, context)
    finally:
        wiring.flush_metrics()
