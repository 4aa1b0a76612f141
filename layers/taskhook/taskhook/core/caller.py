"""A caller as it is stored."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from taskhook.core.record import Moment


class Credential(BaseModel):
    """A hashed token or an encrypted signing secret, valid until `expires_at`, or for good."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    value: str
    expires_at: Moment | None = None

    def valid(self, now: datetime) -> bool:
        """Whether it still counts."""
        return self.expires_at is None or now < self.expires_at


class Caller(BaseModel):
    """A user of this deployment, with its tokens and the secrets that sign its callbacks."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    caller: str
    tokens: tuple[Credential, ...]  # sha256 of the token, hexadecimal
    # Encrypted, but where `CallerDirectory.find` gave them.
    secrets: Annotated[tuple[Credential, ...], Field(min_length=1)]
    callback_url: str | None = None
    models: tuple[str, ...] = ()  # patterns of the models that it may use; none: all of the deployment's
    per_day: int | None = None  # tasks, counted from midnight UTC; None: any number
    disabled: bool = False
    created_at: Moment

    def signing(self, now: datetime) -> list[Credential]:
        """List the secrets that sign this caller's callbacks, the newest first."""
        return [secret for secret in self.secrets if secret.valid(now)]
