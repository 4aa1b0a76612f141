"""Standard Webhooks 1.0.0, version `v1`.

HMAC-SHA256 over `id.timestamp.body`, one signature per valid secret.

Source: the specification's "Signature scheme". Checked against its vectors and, property by property, its
reference library.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from datetime import datetime

PREFIX = "whsec_"
_KEY_BYTES = 32  # the specification asks for 24 to 64


def new_secret() -> str:
    """Make a signing secret: `whsec_` and the base64 of 32 random bytes."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Sign one message; `timestamp` is the attempt's, in Unix seconds.

    Raises ValueError for a secret that is not base64.
    """
    key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    digest = hmac.digest(key, b"%s.%d.%s" % (message_id.encode(), timestamp, body), hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def headers(
    signing_secrets: Iterable[str], message_id: str, attempted_at: datetime, body: bytes
) -> dict[str, str]:
    """Render the three headers of one attempt.

    Every valid secret signs, so that a receiver may hold either during rotation.
    """
    timestamp = int(attempted_at.timestamp())
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        # Exactly one space: the reference library stumbles over an empty list item.
        "webhook-signature": " ".join(
            sign(secret, message_id, timestamp, body) for secret in signing_secrets
        ),
    }
