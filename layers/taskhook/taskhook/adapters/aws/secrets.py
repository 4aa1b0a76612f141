"""The stack's one secret.

A JSON object that holds the keys of vendors by their names, and the deployment's own key.

One secret, for each costs $0.40 a month. The stack makes it with a random deployment key and no vendor's; the
admin command writes.
"""

import asyncio
import json
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from taskhook.core.errors import KeyMissingError, KeyUnavailableError, KeyUnusableError

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

DEPLOYMENT_KEY = "deployment_key"
# Codes of Secrets Manager that no repetition cures: the secret is gone or about to be, or its reader has no
# right to it.
_MISCONFIGURED = {
    "AccessDeniedException",
    "DecryptionFailure",
    "InvalidParameterException",
    "InvalidRequestException",
    "ResourceNotFoundException",
    "ValidationException",
}


class StackSecret:
    """The secret, read once and kept while its keys work. No error shows what it holds."""

    def __init__(self, client: "SecretsManagerClient", secret_id: str) -> None:
        self._client = client
        self._secret_id = secret_id
        self._keys: dict[str, str] = {}

    async def key(self, name: str, *, fresh: bool) -> str:
        """Give a key by its name, read again when `fresh`. Raises KeyUnusableError, KeyUnavailableError."""
        if fresh or not self._keys.get(name):
            self._keys = await self.keys()
        key = self._keys.get(name, "")
        if not key:
            raise KeyMissingError(f"the stack's secret holds no {name}")
        return key

    async def keys(self) -> dict[str, str]:
        """Read every key as of now. Raises KeyUnusableError, KeyUnavailableError."""
        try:
            answer = await asyncio.to_thread(self._client.get_secret_value, SecretId=self._secret_id)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            raise (KeyUnusableError if code in _MISCONFIGURED else KeyUnavailableError)(code) from error
        except BotoCoreError as error:
            raise KeyUnavailableError(type(error).__name__) from error
        try:
            held = json.loads(answer.get("SecretString", ""))
        except ValueError:
            held = None
        if not isinstance(held, dict) or not all(isinstance(key, str) for key in held.values()):
            raise KeyUnusableError(
                "the stack's secret is not the JSON object that the stack made; its version AWSPREVIOUS may "
                "be"
            )
        # A key that was pasted may end in a new line.
        return {name: key.strip() for name, key in held.items()}

    async def store(self, name: str, key: str) -> None:
        """Write one key beside the others; an empty one removes it.

        Raises KeyUnusableError, KeyUnavailableError, ClientError.
        """
        held = await self.keys() | {name: key}
        await asyncio.to_thread(
            self._client.put_secret_value, SecretId=self._secret_id, SecretString=json.dumps(held)
        )


class StoredKey:
    """`ApiKey`: one key out of the stack's secret."""

    def __init__(self, secret: StackSecret, name: str) -> None:
        self._secret = secret
        self._name = name

    async def __call__(self, *, fresh: bool) -> str:
        """Give the key, read again when `fresh`. Raises KeyUnusableError, KeyUnavailableError."""
        return await self._secret.key(self._name, fresh=fresh)
