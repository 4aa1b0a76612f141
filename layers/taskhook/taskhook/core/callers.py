"""How a token proves its caller, and how the admin command makes and changes callers."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from taskhook.core import signature
from taskhook.core.caller import Caller, Credential
from taskhook.core.errors import CallerError
from taskhook.core.ports import CallerAdmin, CallerDirectory

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_TOKEN = re.compile(rf"thk_({NAME.pattern})_([A-Za-z0-9_-]{{43}})")
_NO_NAME = "-"  # what a malformed token is looked up by: no caller can have it
_DUMMY_HASH = hashlib.sha256(b"no token has this hash").hexdigest()
DEFAULT_OVERLAP = timedelta(hours=24)
_CHANGED = "caller {!r} was changed at the same time; try again"


async def authenticate(
    authorization: str | None, *, callers: CallerDirectory, now: datetime
) -> Caller | None:
    """Find the caller of an `Authorization` header; None where it proves none that is enabled.

    Every None costs the same: one read of the table, and two comparisons. So its time tells no caller's name.
    A token that the cached record proves costs no read; what the cache cannot prove is read anew, so that a
    new token works at once.
    """
    scheme, _, token = (authorization or "").partition(" ")
    parsed = _TOKEN.fullmatch(token) if scheme.lower() == "bearer" else None
    name, hashed = parsed[1] if parsed else _NO_NAME, hash_token(token)
    cached = await callers.cached(name)
    if _proves(hashed, cached, now):
        return cached
    read = await callers.read(name)
    return read if _proves(hashed, read, now) else None


def _proves(hashed: str, caller: Caller | None, now: datetime) -> bool:
    """Compare with each valid token of an enabled caller, or with a dummy where there is none."""
    stored = (
        [token.value for token in caller.tokens if token.valid(now)] if caller and not caller.disabled else []
    )
    matched = [hmac.compare_digest(hashed, one) for one in stored or [_DUMMY_HASH]]
    return any(matched)


async def add(
    name: str,
    *,
    callback_url: str | None,
    now: datetime,
    admin: CallerAdmin,
    models: Sequence[str] = (),
    per_day: int | None = None,
) -> tuple[Caller, str, str]:
    """Make a caller; give it, its token (stored as a hash) and its signing secret (stored encrypted).

    Raises CallerError.
    """
    if not NAME.fullmatch(name):
        raise CallerError(f"{name!r} is not a caller's name: use 1 to 32 of a-z, 0-9 and inner hyphens")
    token, secret = _new_token(name), signature.new_secret()
    caller = Caller(
        caller=name,
        tokens=(Credential(value=hash_token(token)),),
        secrets=(Credential(value=await admin.encrypted(name, secret)),),
        callback_url=callback_url,
        models=tuple(models),
        per_day=per_day,
        created_at=now,
    )
    if not await admin.add(caller):
        raise CallerError(
            f"caller {name!r} exists already; `callers rotate {name} --token` makes a new token for it"
        )
    return caller, token, secret


async def rotate_token(
    name: str, *, overlap: timedelta, now: datetime, admin: CallerAdmin
) -> tuple[Caller, str]:
    """Make a new token; the old ones go on working for `overlap`. Raises CallerError."""
    caller = await _existing(name, admin)
    token = _new_token(name)
    tokens = (Credential(value=hash_token(token)), *_ending(caller.tokens, now, overlap))
    return await _stored(caller, caller.model_copy(update={"tokens": tokens}), admin), token


async def rotate_secret(
    name: str, *, overlap: timedelta, now: datetime, admin: CallerAdmin
) -> tuple[Caller, str]:
    """Make a new signing secret; for `overlap` the old ones sign too. Raises CallerError."""
    caller = await _existing(name, admin)
    secret = signature.new_secret()
    fresh = Credential(value=await admin.encrypted(name, secret))
    rotated = caller.model_copy(update={"secrets": (fresh, *_ending(caller.secrets, now, overlap))})
    return await _stored(caller, rotated, admin), secret


async def disable(name: str, *, admin: CallerAdmin) -> Caller:
    """Refuse the caller's token from now on; its waiting callbacks still go out. Raises CallerError."""
    return await _changed(name, {"disabled": True}, admin)


async def enable(name: str, *, admin: CallerAdmin) -> Caller:
    """Take the caller's tokens again. Raises CallerError."""
    return await _changed(name, {"disabled": False}, admin)


async def update(name: str, changes: Mapping[str, Any], *, admin: CallerAdmin) -> Caller:
    """Change `callback_url` (None: nowhere), `models` or `per_day` of a caller. Raises CallerError."""
    return await _changed(name, changes, admin)


async def remove(name: str, *, admin: CallerAdmin) -> Caller:
    """Delete a disabled caller with its tokens and signing secrets: its callbacks cannot be signed any more.

    Raises CallerError.
    """
    caller = await _existing(name, admin)
    if not caller.disabled:
        raise CallerError(
            f"caller {name!r} is enabled; `callers disable {name}` first, and let its waiting callbacks go "
            "out"
        )
    if not await admin.remove(caller):
        raise CallerError(_CHANGED.format(name))
    return caller


async def _changed(name: str, changes: Mapping[str, Any], admin: CallerAdmin) -> Caller:
    caller = await _existing(name, admin)
    return await _stored(caller, caller.model_copy(update=changes), admin)


async def _existing(name: str, admin: CallerAdmin) -> Caller:
    caller = await admin.read(name)
    if caller is None:
        raise CallerError(f"there is no caller {name!r}; `callers list` names them")
    return caller


async def _stored(old: Caller, new: Caller, admin: CallerAdmin) -> Caller:
    if not await admin.update(old, new):
        raise CallerError(_CHANGED.format(old.caller))
    return new


def _ending(credentials: tuple[Credential, ...], now: datetime, overlap: timedelta) -> list[Credential]:
    """Keep what is still valid, for `overlap` at most."""
    return [
        Credential(value=old.value, expires_at=min(old.expires_at or now + overlap, now + overlap))
        for old in credentials
        if overlap > timedelta(0) and old.valid(now)
    ]


def _new_token(name: str) -> str:
    return f"thk_{name}_{secrets.token_urlsafe(32)}"


def hash_token(token: str) -> str:
    """Hash a token as it is stored; its 256 random bits need no salt."""
    return hashlib.sha256(token.encode()).hexdigest()
