"""What invocations share beside tasks: control items of the same table, under keys that no task has."""

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from taskhook.adapters.dynamodb.items import Attributes, ConditionFailedError, Table, change
from taskhook.core.admission import AdmissionState
from taskhook.core.errors import StoreUnavailableError
from taskhook.core.leadership import LeadershipView
from taskhook.core.ports import EXTRA_DELIVERY_GAP, Clock
from taskhook.core.record import milliseconds

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

_LEADERSHIP, _ADMISSION = "leadership", "admission"
_SPENT = "spent"
_BUDGET_KEPT = timedelta(hours=1)
_HANDED_OVER_KEPT = timedelta(minutes=10)
_RESERVED_KEPT = timedelta(days=1)  # after the latest moment that may have been reserved
_RESERVE_TRIES = 3
_MS = timedelta(milliseconds=1)


class DynamoControl:
    """`LeadershipStore`, `AdmissionStore`, `Budget`, `DeliveryRate` and `SpendStore`, in table `Tasks`."""

    def __init__(self, client: "DynamoDBClient", table: str, *, clock: Clock) -> None:
        self.table = Table(client, table, "task_id")
        self._clock = clock

    # --- LeadershipStore --------------------------------------------------------------------------

    async def view(self) -> LeadershipView:
        """Read the leadership as of now."""
        return LeadershipView.model_validate(await self._read(_LEADERSHIP))

    async def acquire(self, seen: LeadershipView, new: LeadershipView, *, takeover: bool) -> bool:
        """Store `new` as leader, if the leader is still the one `seen`, or in any case when `takeover`."""
        until = milliseconds(new.until) if new.until else 0
        values = {":leader": new.leader, ":until": until, ":held": list(new.held_models)}
        condition = ""
        if not takeover:  # two wakes at once: the second finds the first one's name; a repeat finds its own
            values[":seen"] = seen.leader
            condition = "attribute_not_exists(leader) OR leader = :seen OR leader = :leader"
        update = "SET leader = :leader, #until = :until, held_models = :held REMOVE drained_at"
        return await self._set(_LEADERSHIP, update, values, names={"#until": "until"}, condition=condition)

    async def resign(self, leader: str, *, drained_at: datetime | None = None) -> None:
        """Give the leadership up if `leader` still has it; `drained_at` says that nothing was due by then."""
        values, update = {":leader": leader, ":over": 0}, "SET #until = :over"
        if drained_at is not None:
            values[":drained"] = milliseconds(drained_at)
            update += ", drained_at = :drained"
        await self._set(_LEADERSHIP, update, values, names={"#until": "until"}, condition="leader = :leader")

    async def webhook_came(self, at: datetime | None) -> None:
        """Remember when a vendor webhook last proved true; None forgets it."""
        await self._set(_LEADERSHIP, "SET webhook_at = :at", {":at": milliseconds(at) if at else 0})

    async def hand_over(self, leader: str, unserved: Mapping[str, datetime]) -> None:
        """Leave to the successor of `leader` which poll times were due and not served."""
        left = {task_id: milliseconds(due) for task_id, due in unserved.items()}
        end = _ttl(self._clock.now() + _HANDED_OVER_KEPT)
        await self._set(
            f"{_LEADERSHIP}#{leader}", "SET unserved = :left, expires_at = :end", {":left": left, ":end": end}
        )

    async def handed_over(self, leader: str) -> dict[str, datetime] | None:
        """Read what `leader` has left; None where it has said nothing (yet)."""
        left = (await self._read(f"{_LEADERSHIP}#{leader}")).get("unserved")
        return (
            None
            if left is None
            else {task_id: datetime.fromtimestamp(int(due) / 1000, UTC) for task_id, due in left.items()}
        )

    # --- AdmissionStore ---------------------------------------------------------------------------

    async def admission(self, vendor: str) -> AdmissionState:
        """Read the admission as of now."""
        return AdmissionState.model_validate(await self._read(f"{_ADMISSION}#{vendor}"))

    async def set_admission(self, vendor: str, old: AdmissionState, new: AdmissionState) -> AdmissionState:
        """Store `new` if `old` still stands; give what stands then."""
        new = new.model_copy(update={"nonce": secrets.token_hex(8)})
        update, names, values = change(
            dict.fromkeys(AdmissionState.model_fields), new.model_dump(exclude_none=True)
        )
        condition = "attribute_not_exists(task_id) OR nonce = :old"
        stored = await self._set(
            f"{_ADMISSION}#{vendor}",
            update,
            {**values, ":old": old.nonce},
            names=names,
            condition=condition,
        )
        return new if stored else await self.admission(vendor)

    # --- Budget -----------------------------------------------------------------------------------

    async def take_tokens(self, vendor: str, wanted: int, *, window: int, limit: int) -> int:
        """Take up to `wanted` requests out of the `limit` of a window; give how many."""
        if wanted <= 0 or limit <= 0:
            return 0
        taken = min(wanted, limit)
        values = {":taken": taken, ":rest": limit - taken, ":end": _ttl(self._clock.now() + _BUDGET_KEPT)}
        update, condition = (
            "ADD used :taken SET expires_at = :end",
            "attribute_not_exists(used) OR used <= :rest",
        )
        try:
            await self.table.update(f"budget#{vendor}#{window}", update, values, condition=condition)
        except ConditionFailedError as failed:
            left = limit - int((failed.found or {}).get("used", limit))
            return (
                await self.take_tokens(vendor, min(taken, left), window=window, limit=limit)
                if 0 < left < taken
                else 0
            )
        return taken

    # --- DeliveryRate -----------------------------------------------------------------------------

    async def reserve_deliveries(
        self, caller: str, count: int, *, now: datetime, latest: datetime
    ) -> datetime:
        """Reserve `count` moments of a caller's rate.

        Give the first, which is after `latest` where nothing was reserved.
        """
        key, end = f"redelivery#{caller}", _ttl(latest + _RESERVED_KEPT)
        span, start = count * EXTRA_DELIVERY_GAP // _MS, milliseconds(now)
        last = start + (latest - now) // _MS
        for _ in range(_RESERVE_TRIES):
            try:
                await self.table.update(
                    key,
                    "SET next_at = :next, expires_at = :end",
                    {":next": start + span, ":now": start, ":end": end},
                    condition="attribute_not_exists(next_at) OR next_at < :now",
                )
            except ConditionFailedError as failed:
                free = int((failed.found or {}).get("next_at", start))
            else:
                return now
            if free > last:
                return now + (free - start) * _MS
            try:
                reserved = await self.table.update(
                    key,
                    "ADD next_at :span SET expires_at = :end",
                    {":span": span, ":now": start, ":last": last, ":end": end},
                    condition="next_at >= :now AND next_at <= :last",
                    returned="UPDATED_NEW",
                )
            except ConditionFailedError:  # another invocation was faster: look again
                continue
            return now + (int(reserved["next_at"]) - span - start) * _MS
        raise StoreUnavailableError("the caller's rate changes too fast")

    # --- SpendStore -------------------------------------------------------------------------------

    async def count_task(self, caller: str, task_id: str, *, day: str, at_most: int, until: datetime) -> bool:
        """Count one more task of the day, no task twice in a row; False where there were `at_most`."""
        values = {":one": 1, ":most": at_most, ":id": task_id, ":end": _ttl(until + _BUDGET_KEPT)}
        update = "ADD used :one SET expires_at = :end, counted_last = :id"
        condition = "attribute_not_exists(used) OR used < :most AND counted_last <> :id"
        try:
            await self.table.update(f"{_SPENT}#{caller}#{day}", update, values, condition=condition)
        except ConditionFailedError as failed:
            return (failed.found or {}).get("counted_last") == task_id
        return True

    async def counted(self, caller: str, *, day: str) -> int:
        """Tell how many were counted."""
        return int((await self._read(f"{_SPENT}#{caller}#{day}")).get("used", 0))

    async def _read(self, key: str) -> Attributes:
        return await self.table.get(key) or {}

    async def _set(self, key: str, update: str, values: Attributes, **on: Any) -> bool:
        """Change a control item; tell whether the condition held."""
        try:
            await self.table.update(key, update, values, **on)
        except ConditionFailedError:
            return False
        return True


def _ttl(moment: datetime) -> int:
    """Give a time as TTL reads it: Unix seconds."""
    return int(moment.timestamp())
