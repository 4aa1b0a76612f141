"""The callers in DynamoDB."""

from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from taskhook.adapters.dynamodb.items import Attributes, ConditionFailedError, Table
from taskhook.core.caller import Caller
from taskhook.core.encryption import decrypt, encrypt
from taskhook.core.errors import (
    DecryptionError,
    KeyUnavailableError,
    KeyUnusableError,
    SecretUnavailableError,
)
from taskhook.core.ports import ApiKey, Clock

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


_CALLER_KEPT = timedelta(seconds=60)

_CACHED_CALLERS = 1000


class DynamoCallers:
    """The `Callers` table.

    `CallerDirectory`, cached, for the functions, and `CallerAdmin` for the admin command.

    Signing secrets are encrypted in it, each for its caller, so that an export of the table forges no
    callback.
    """

    def __init__(self, client: "DynamoDBClient", table: str, *, clock: Clock, deployment_key: ApiKey) -> None:
        self.table = Table(client, table, "caller")
        self._clock = clock
        self._deployment_key = deployment_key
        self._cache: dict[str, tuple[datetime, Caller]] = {}
        # The same secret signs one delivery after another.
        self._decrypt = lru_cache(_CACHED_CALLERS)(decrypt)

    async def cached(self, name: str) -> Caller | None:
        """Give a caller that was read within the last 60 s."""
        until, caller = self._cache.get(name, (None, None))
        return caller if until is not None and self._clock.now() < until else None

    async def read(self, name: str) -> Caller | None:
        """Read a caller as of now, and keep it.

        Names that no caller has are not kept, so they cannot fill the cache.
        """
        values = await self.table.get(name)
        self._cache.pop(name, None)
        if values is None:
            return None
        caller = Caller.model_validate(values)
        if len(self._cache) >= _CACHED_CALLERS:
            self._cache.clear()
        self._cache[name] = (self._clock.now() + _CALLER_KEPT, caller)
        return caller

    async def find(self, name: str) -> Caller | None:
        """Give a caller as of at most 60 s ago, with its signing secrets decrypted.

        Raises DecryptionError too.
        """
        caller = await self.cached(name) or await self.read(name)
        if caller is None:
            return None
        try:
            return self._decrypted(caller, await self._material())
        except DecryptionError:  # the key may have been replaced since this process read it
            return self._decrypted(caller, await self._material(fresh=True))

    def _decrypted(self, caller: Caller, material: str) -> Caller:
        """Decrypt the secrets that sign now; one that cannot be read is left out while another one signs."""
        plain, failure = [], DecryptionError("no secret is valid")
        for secret in caller.signing(self._clock.now()):
            try:
                value = self._decrypt(secret.value, material=material, context=caller.caller)
            except DecryptionError as error:
                failure = error
            else:
                plain.append(secret.model_copy(update={"value": value}))
        if not plain:
            raise failure
        return caller.model_copy(update={"secrets": tuple(plain)})

    async def encrypted(self, name: str, secret: str) -> str:
        """Encrypt a signing secret as the table holds it."""
        return encrypt(secret, material=await self._material(), context=name)

    async def _material(self, *, fresh: bool = False) -> str:
        try:
            return await self._deployment_key(fresh=fresh)
        except (KeyUnusableError, KeyUnavailableError) as error:
            raise SecretUnavailableError(f"the deployment's own key cannot be read: {error}") from error

    async def add(self, caller: Caller) -> bool:
        """Store a new caller; False if the name is taken."""
        return await self._put(caller, condition="attribute_not_exists(caller)")

    async def update(self, old: Caller, new: Caller) -> bool:
        """Store `new` if the table still holds `old`; False if not."""
        return await self._put(new, **_holds(old))

    async def remove(self, caller: Caller) -> bool:
        """Delete a caller if the table still holds it as given, or no longer: our own first try.

        False if not.
        """
        try:
            await self.table.delete(caller.caller, **_holds(caller))
        except ConditionFailedError as failed:
            return failed.found is None
        return True

    async def every(self) -> list[Caller]:
        """List all callers, by name."""
        items, cursor = await self.table.scan()
        while cursor is not None:
            more, cursor = await self.table.scan(cursor=cursor)
            items += more
        return sorted(map(Caller.model_validate, items), key=lambda caller: caller.caller)

    async def _put(self, caller: Caller, **on: Any) -> bool:
        try:
            await self.table.put(_values_of(caller), **on)
        except ConditionFailedError as failed:
            # Ours, stored at the first try.
            return failed.found is not None and Caller.model_validate(failed.found) == caller
        return True


def _values_of(caller: Caller) -> Attributes:
    return caller.model_dump(exclude_none=True)


def _holds(caller: Caller) -> Attributes:
    """Say, as the condition of a write, that the table must still hold the caller as it was read."""
    was = _values_of(caller)
    names = {
        f"#{name}": name for name in ("tokens", "secrets", "disabled", "callback_url", "models", "per_day")
    }
    condition = " AND ".join(
        f"#{name} = :{name}" if name in was else f"attribute_not_exists(#{name})" for name in names.values()
    )
    return {
        "condition": condition,
        "names": names,
        "values": {f":{name}": was[name] for name in names.values() if name in was},
    }
