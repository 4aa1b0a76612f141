"""The keys of a deployment: what a secret holds, what keeps it from being read, what is derived."""

import asyncio
import json
from datetime import timedelta
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from taskhook.adapters.aws.secrets import StackSecret, StoredKey
from taskhook.adapters.aws.webhook_urls import SignedWebhookUrls
from taskhook.core.encryption import derived_key
from taskhook.core.errors import KeyUnavailableError, KeyUnusableError
from tests.rows import each_row

BROKEN = [
    "AccessDeniedException",
    "DecryptionFailure",
    "InvalidRequestException",
    "ResourceNotFoundException",
]
PASSING = ["ThrottlingException", "InternalServiceError", "ServiceUnavailable"]


class Secrets:
    """Secrets Manager's API, as far as it is used: each read finds the next answer, the last for ever."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        self.answers = list(answers)
        self.reads = 0

    def get_secret_value(self, **_request: str) -> dict[str, Any]:
        """Give the next answer."""
        self.reads += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def refused(code: str) -> ClientError:
    """Make an error of Secrets Manager."""
    return ClientError({"Error": {"Code": code, "Message": "no"}}, "GetSecretValue")


def stored(*answers: dict[str, Any] | Exception) -> tuple[StoredKey, Secrets]:
    """Make a key that is kept in a secret."""
    secrets = Secrets(*answers)
    return StoredKey(StackSecret(cast("Any", secrets), "arn"), "key"), secrets


def held(key: str) -> dict[str, Any]:
    """Make the answer that shows a secret with one key in it."""
    return {"SecretString": json.dumps({"key": key})}


async def test_a_key_is_read_once_and_again_when_asked_for() -> None:
    """A white space around it was pasted with it."""
    key, secrets = stored(held(" one\n"), held("two"))
    assert [await key(fresh=False), await key(fresh=False), secrets.reads] == ["one", "one", 1]
    assert [await key(fresh=True), await key(fresh=False), secrets.reads] == ["two", "two", 2]


async def test_keys_of_one_secret_are_read_together() -> None:
    """And none of them is another's."""
    secrets = Secrets({"SecretString": '{"one": "1", "other": "2"}'})
    secret = StackSecret(cast("Any", secrets), "arn")
    assert [await StoredKey(secret, name)(fresh=False) for name in ("one", "other")] == ["1", "2"]
    assert secrets.reads == 1


@each_row(
    "answer",
    [
        held(""),
        held(" \r\n"),
        {"SecretString": '{"another": "key"}'},
        {"SecretString": "key"},
        {"SecretString": '"key"'},
        {"SecretString": '{"key": 1}'},
        {"SecretString": ""},
        {"SecretBinary": b"key"},
        *map(refused, BROKEN),
    ],
)
async def test_a_secret_that_holds_no_key_or_may_not_be_read_is_a_fault_of_the_configuration(
    answer: Any,
) -> None:
    """No repetition cures it."""
    with pytest.raises(KeyUnusableError):
        await stored(answer)[0](fresh=False)


@each_row("answer", [ReadTimeoutError(endpoint_url="https://x"), *map(refused, PASSING)])
async def test_a_secret_that_cannot_be_read_now_is_read_later(answer: Exception) -> None:
    """A failure is not kept."""
    key, _ = stored(answer, held("key"))
    with pytest.raises(KeyUnavailableError):
        await key(fresh=False)
    assert await key(fresh=False) == "key"


async def test_each_task_has_a_token_of_its_own() -> None:
    """One that two processes with the same deployment key agree on."""
    one, other = (SignedWebhookUrls("https://x", stored(held("material"))[0]) for _ in range(2))
    url = await one.url("tk_1")
    assert url is not None
    token = url.removeprefix("https://x/hooks/tk_1/")
    assert await other.valid("tk_1", token) is True
    assert [
        await other.valid("tk_2", token),
        await other.valid("tk_1", "x"),
        await other.valid("tk_1", "ü"),
    ] == [False] * 3


@pytest.mark.parametrize(
    "answer", [held(""), refused("AccessDeniedException"), refused("ThrottlingException")]
)
async def test_without_the_key_there_is_no_address_and_no_verdict(answer: Any) -> None:
    """A submit goes on without, and a webhook is asked to come again."""
    hooks = SignedWebhookUrls("https://x", stored(answer)[0])
    assert (await hooks.url("tk_1"), await hooks.valid("tk_1", "token")) == (None, None)


async def test_a_key_that_takes_long_keeps_no_submit_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor's webhook is a convenience; the time belongs to the paid POST."""
    monkeypatch.setattr("taskhook.adapters.aws.webhook_urls._HOOK_TIME", timedelta(milliseconds=1))

    async def hangs(*, fresh: bool) -> str:
        del fresh
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    assert await asyncio.wait_for(SignedWebhookUrls("https://x", hangs).url("tk_1"), timeout=10) is None


def test_each_use_has_a_key_of_its_own() -> None:
    """One tells nothing of another, nor of the material."""
    keys = {
        derived_key("material", "hook tokens"),
        derived_key("material", "signing secrets"),
        derived_key("other", "hook tokens"),
    }
    assert len(keys) == 3
    assert {len(key) for key in keys} == {32}
