"""The addresses for the vendor's webhooks."""

import asyncio
import hmac
from datetime import timedelta

from taskhook.core.encryption import derived_key
from taskhook.core.ports import ApiKey

# For reading the key, where it is not known yet: a submit does not wait for a convenience.
_HOOK_TIME = timedelta(seconds=2)


class SignedWebhookUrls:
    """`WebhookUrls`.

    The token is an HMAC of the task's id, under a key that is derived for this use alone.
    """

    def __init__(self, public_url: str, deployment_key: ApiKey) -> None:
        self._public_url = public_url
        self._deployment_key = deployment_key

    async def url(self, task_id: str) -> str | None:
        """Make the address for a task, None where the key cannot be read."""
        token = await self._token(task_id)
        return None if token is None else f"{self._public_url}/hooks/{task_id}/{token}"

    async def valid(self, task_id: str, token: str) -> bool | None:
        """Tell whether this is that task's token, in constant time; None where the key cannot be read."""
        expected = await self._token(task_id)
        return None if expected is None else hmac.compare_digest(token.encode(), expected.encode())

    async def _token(self, task_id: str) -> str | None:
        try:
            async with asyncio.timeout(_HOOK_TIME.total_seconds()):
                material = await self._deployment_key(fresh=False)
        except Exception:  # noqa: BLE001  # whatever keeps the key from being read, there is the poll
            return None
        return hmac.digest(derived_key(material, "hook tokens"), task_id.encode(), "sha256").hex()[:32]
