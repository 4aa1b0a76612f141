"""A submit request: read and validated before anything is stored."""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from taskhook.core import parameters
from taskhook.core.caller import Caller
from taskhook.core.errors import RejectedError
from taskhook.core.limits import MAX_IDEMPOTENCY_KEY, MAX_REFERENCE
from taskhook.core.message import Json
from taskhook.core.record import FIRST_VENDOR, CallbackState, State
from taskhook.core.targets import CallbackUrl, TargetPolicy
from taskhook.core.task import Task
from taskhook.core.vendor import PaidRequest, Vendor

RETRY_COUNT = "[0-9]{1,3}"  # how a client that counts its repeats does it


class OwnFields(BaseModel):
    """What a submit may hold beside the model's own fields."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    callback_url: CallbackUrl | None = Field(
        default=None,
        description="Where the signed result is posted; without it the caller's default, or none.",
    )
    reference: str | None = Field(
        default=None, max_length=MAX_REFERENCE, description="Comes back in answers and callback."
    )


@dataclass(frozen=True)
class SubmitRequest:
    """A valid submit request: what the vendor gets, where the result goes, and under which id."""

    task_id: str
    keyed: bool  # the id is an earlier request's too: it follows from an idempotency key, or is a repeat's
    vendor: str
    paid: PaidRequest  # what the vendor gets
    fingerprint: str
    callback_url: str | None
    reference: str | None
    retry_count: int | None = None  # how often its client has repeated it already, where it counts that

    @classmethod
    def read(
        cls,
        vendor: Vendor,
        path: str,
        body: Json,
        *,
        caller: Caller,
        targets: TargetPolicy,
        headers: Mapping[str, str],
    ) -> Self:
        """Validate a submit to a path of the vendor's; header names are lower-case. Raises RejectedError."""
        key = headers.get("idempotency-key")
        _check_key(key)
        own, by_header = _own(vendor, body, headers)
        paid = vendor.paid_request(
            path, headers, {name: value for name, value in body.items() if name not in _own_names(vendor)}
        )
        parameters.check_callback_url(own.callback_url, targets, headers=by_header)
        counted = re.fullmatch(RETRY_COUNT, headers.get("x-stainless-retry-count", ""))
        identity = [paid.model, paid.identity, own.callback_url, own.reference]
        if vendor.name != FIRST_VENDOR:  # whose requests were there before there were others
            identity.append(vendor.name)
        return cls(
            task_id=_task_id(caller.caller, key),
            keyed=key is not None,
            vendor=vendor.name,
            paid=paid,
            fingerprint=_digest(json.dumps(identity, sort_keys=True)),
            callback_url=own.callback_url or caller.callback_url,
            reference=own.reference,
            retry_count=int(counted[0]) if counted else None,
        )

    def task(
        self, caller: Caller, now: datetime, *, unchecked: dict[str, str], claimed_until: datetime | None
    ) -> Task:
        """Make the task: submitting under a claim, or queued where no time is left to pay for it."""
        paying = claimed_until is not None
        return Task(
            task_id=self.task_id,
            caller=caller.caller,
            vendor=self.vendor,
            model=self.paid.model,
            target=self.paid.target if self.paid.target != self.paid.model else "",
            headers=dict(self.paid.headers),
            validated=self.paid.validated,
            request=self.paid.body,
            fingerprint=self.fingerprint,
            callback_url=self.callback_url,
            reference=self.reference,
            unchecked=unchecked,
            accepted_at=now,
            state=State.SUBMITTING if paying else State.QUEUED,
            submitted_at=now if paying else None,
            claimed_until=claimed_until,
            answer_status=None if paying else HTTPStatus.OK,
            callback=CallbackState.WAITING if self.callback_url else CallbackState.NONE,
        )


def _own_names(vendor: Vendor) -> Collection[str]:
    """List the fields of a body that are not the vendor's: a form of another vendor has none."""
    return OwnFields.model_fields if vendor.form is None else ()


def _own(vendor: Vendor, body: Json, headers: Mapping[str, str]) -> tuple[OwnFields, dict[str, str]]:
    """Read what is not the vendor's, out of body and headers; and say which fields came in which header.

    Raises RejectedError.
    """
    given = {name: body[name] for name in _own_names(vendor) if body.get(name) is not None}
    by_header = {}
    for name, header in (("callback_url", "X-Webhook-URL"), ("reference", "X-Reference")):
        value = headers.get(header.lower())
        if value is None:
            continue
        if name not in given:
            given[name], by_header[name] = value, header
        elif given[name] != value:
            raise RejectedError(
                HTTPStatus.BAD_REQUEST,
                f"Invalid parameters: parameter '{name}' and header '{header}' differ; give one",
            )
    return parameters.read(OwnFields, given, what="a submit", headers=by_header), by_header


def _check_key(idempotency_key: str | None) -> None:
    """Raise RejectedError for a key that is given and is not one."""
    if idempotency_key is None:
        return
    if 0 < len(idempotency_key) <= MAX_IDEMPOTENCY_KEY and idempotency_key.isprintable():
        return
    complaint = f"must be 1 to {MAX_IDEMPOTENCY_KEY} printable characters"
    raise parameters.wrong_header("Idempotency-Key", complaint)


def _task_id(caller: str, idempotency_key: str | None) -> str:
    """Derive the id from caller and key, so that a repeat meets the first; random without a key. 132 bits."""
    if idempotency_key is None:
        return f"tk_{secrets.token_urlsafe(17)[:22]}"
    return derived_id(caller, idempotency_key)


def derived_id(*parts: str) -> str:
    """Make the id of a task from what must meet it again; no part holds the character between them."""
    return f"tk_{_digest('\0'.join(parts))}"


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()[:22]
