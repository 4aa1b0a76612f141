"""A submit request: read and validated before anything is stored."""

import base64
import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taskhook.core import parameters
from taskhook.core.caller import Caller
from taskhook.core.errors import ForbiddenTargetError, RejectedError
from taskhook.core.limits import MAX_IDEMPOTENCY_KEY, MAX_REFERENCE
from taskhook.core.message import Json, minified
from taskhook.core.models import MediaRule
from taskhook.core.record import CallbackState, State
from taskhook.core.targets import CallbackUrl, TargetPolicy
from taskhook.core.task import Task
from taskhook.vendors.modellix import MODELS

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
    model: str
    request: str
    media: tuple[tuple[MediaRule, str], ...]  # what is to be looked at, and where it is
    fingerprint: str
    callback_url: str | None
    reference: str | None
    retry_count: int | None = None  # how often its client has repeated it already, where it counts that

    @classmethod
    def read(
        cls,
        slug: str,
        body: Json,
        *,
        caller: Caller,
        targets: TargetPolicy,
        webhook_url: str | None,
        idempotency_key: str | None,
        retry_count: str | None = None,
    ) -> Self:
        """Validate a submit. Raises RejectedError.

        The last three are `X-Webhook-URL`, `Idempotency-Key`, `X-Stainless-Retry-Count`.
        """
        model = MODELS.get(slug)
        if model is None:
            raise RejectedError(
                HTTPStatus.NOT_FOUND,
                f"Resource not found: model '{slug}' is not known here; known are "
                f"{', '.join(sorted(MODELS))}",
            )
        _check_key(idempotency_key)
        try:
            own = OwnFields.model_validate(body)
            fields = model.request.model_validate(
                {name: value for name, value in body.items() if name not in OwnFields.model_fields}
            )
        except ValidationError as error:
            known = (*model.request.model_fields, *OwnFields.model_fields)
            raise parameters.rejected(error, what="this model", known=known) from error
        if webhook_url is not None and own.callback_url is not None and webhook_url != own.callback_url:
            raise RejectedError(
                HTTPStatus.BAD_REQUEST,
                "Invalid parameters: parameter 'callback_url' and header 'X-Webhook-URL' differ; give one",
            )
        callback_url = own.callback_url if own.callback_url is not None else webhook_url
        if callback_url is not None:
            try:
                targets.check_url(callback_url)
            except ForbiddenTargetError as error:
                raise parameters.wrong("callback_url", error) from error
        counted = re.fullmatch(RETRY_COUNT, retry_count or "")
        identity = [slug, fields.model_dump(mode="json"), callback_url, own.reference]
        return cls(
            task_id=_task_id(caller.caller, idempotency_key),
            keyed=idempotency_key is not None,
            model=slug,
            request=minified(fields.model_dump(mode="json", exclude_unset=True)),
            media=tuple(
                (rule, getattr(fields, rule.field))
                for rule in model.media
                if not rule.unless_off or getattr(fields, rule.unless_off)
            ),
            fingerprint=_digest(json.dumps(identity, sort_keys=True)),
            callback_url=callback_url or caller.callback_url,
            reference=own.reference,
            retry_count=int(counted[0]) if counted else None,
        )

    def task(
        self, caller: Caller, now: datetime, *, unchecked: dict[str, str], claimed_until: datetime | None
    ) -> Task:
        """Make the task.

        Submitting under a claim, or queued where there is no time to pay before the answer is due.
        """
        paying = claimed_until is not None
        return Task(
            task_id=self.task_id,
            caller=caller.caller,
            model=self.model,
            request=self.request,
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


def _check_key(idempotency_key: str | None) -> None:
    """Raise RejectedError for a key that is given and is not one."""
    if idempotency_key is None:
        return
    if 0 < len(idempotency_key) <= MAX_IDEMPOTENCY_KEY and idempotency_key.isprintable():
        return
    message = f"header 'Idempotency-Key' must be 1 to {MAX_IDEMPOTENCY_KEY} printable characters"
    raise RejectedError(HTTPStatus.BAD_REQUEST, f"Invalid parameters: {message}")


def _task_id(caller: str, idempotency_key: str | None) -> str:
    """Derive the id from caller and key, so that a repeat meets the first.

    Random without a key. 132 bits either way.
    """
    if idempotency_key is None:
        return f"tk_{secrets.token_urlsafe(17)[:22]}"
    digest = hashlib.sha256(f"{caller}\0{idempotency_key}".encode()).digest()
    return f"tk_{base64.urlsafe_b64encode(digest).decode()[:22]}"


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()[:22]
