import hmac
from datetime import timedelta

import pytest

from taskhook.core import callers
from taskhook.core.errors import CallerError
from tests.world import START, MemoryCallers, a_caller, token_of

HOUR = timedelta(hours=1)


@pytest.fixture
def directory() -> MemoryCallers:
    """Give a directory with alice in it."""
    return MemoryCallers(a_caller("alice"))


async def test_the_right_token_finds_its_caller(directory: MemoryCallers) -> None:
    """The name in the token finds the record, the rest proves it."""
    caller = await callers.authenticate(f"Bearer {token_of('alice')}", callers=directory, now=START)
    assert caller == directory.items["alice"]


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        token_of("alice"),
        f"Basic {token_of('alice')}",
        f"Bearer {token_of('alice')[:-1]}",
        f"Bearer {token_of('alice')}x",
        f"Bearer {token_of('alice')[:-1]}b",
        f"Bearer {token_of('bob')}",
        f"Bearer thk_ALICE_{'a' * 43}",
        f"Bearer thk__{'a' * 43}",
        f"Bearer mdlx_alice_{'a' * 43}",
        f"Bearer {token_of('alice')}\n",
        f"Bearer thk_alicé_{'a' * 43}",
    ],
)
async def test_any_other_token_finds_no_caller(directory: MemoryCallers, authorization: str | None) -> None:
    """Missing, malformed, wrong and unknown are one answer."""
    assert await callers.authenticate(authorization, callers=directory, now=START) is None


async def test_a_disabled_caller_is_refused(directory: MemoryCallers) -> None:
    """Disabling takes the token away and nothing else."""
    await callers.disable("alice", admin=directory)
    directory.kept.clear()
    assert await callers.authenticate(f"Bearer {token_of('alice')}", callers=directory, now=START) is None
    assert directory.items["alice"].secrets


REFUSED = {
    "known, wrong": f"Bearer thk_alice_{'x' * 43}",
    "unknown": f"Bearer thk_mallory_{'x' * 43}",
    "disabled, right": f"Bearer {token_of('bob')}",
    "expired": f"Bearer {token_of('carol')}",
    "malformed": "Bearer thk_alice_short",
    "no bearer": f"Basic {token_of('alice')}",
    "missing": None,
}


@pytest.mark.parametrize("authorization", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("cached", [False, True], ids=["cold", "cached"])
async def test_every_refusal_costs_the_same(
    monkeypatch: pytest.MonkeyPatch,
    authorization: str | None,
    cached: bool,  # noqa: FBT001
) -> None:
    """One read and two comparisons, first and later: time does not tell which names exist or work."""
    disabled = a_caller("bob").model_copy(update={"disabled": True})
    gone = a_caller("carol")
    gone = gone.model_copy(update={"tokens": (gone.tokens[0].model_copy(update={"expires_at": START}),)})
    directory = MemoryCallers(a_caller("alice"), disabled, gone)
    if cached:
        for name in ("alice", "bob", "carol", "mallory"):
            await directory.find(name)
    compared: list[str] = []
    compare = hmac.compare_digest

    def counting(ours: str, theirs: str) -> bool:
        compared.append(theirs)
        return compare(ours, theirs)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    for again in range(1, 4):
        directory.reads.clear()
        compared.clear()
        assert await callers.authenticate(authorization, callers=directory, now=START) is None
        assert (len(directory.reads), len(compared)) == (1, 2), f"request {again}"


async def test_what_the_cache_cannot_prove_is_read_anew(directory: MemoryCallers) -> None:
    """A caller tried before it was made, a new token, an enabled caller: at once; no second read."""
    assert await callers.authenticate(f"Bearer {token_of('alice')}", callers=directory, now=START)
    _, fresh = await callers.rotate_token("alice", overlap=HOUR, now=START, admin=directory)
    assert await callers.authenticate(f"Bearer {fresh}", callers=directory, now=START)
    directory.reads.clear()
    assert await callers.authenticate(f"Bearer {fresh}", callers=directory, now=START)
    assert directory.reads == []
    await callers.disable("alice", admin=directory)
    await directory.read("alice")
    assert await callers.authenticate(f"Bearer {fresh}", callers=directory, now=START) is None
    await callers.enable("alice", admin=directory)
    assert await callers.authenticate(f"Bearer {fresh}", callers=directory, now=START)


async def test_a_caller_is_removed_only_when_it_is_disabled(directory: MemoryCallers) -> None:
    """What is deleted signs nothing any more, so that takes two steps."""
    with pytest.raises(CallerError, match="disable alice"):
        await callers.remove("alice", admin=directory)
    await callers.disable("alice", admin=directory)
    await callers.remove("alice", admin=directory)
    assert directory.items == {}


async def test_a_new_caller_has_a_hashed_token_and_a_secret_of_32_bytes(directory: MemoryCallers) -> None:
    """The token works, and what is stored does not give it away."""
    caller, token, secret = await callers.add("bob-2", callback_url=None, now=START, admin=directory)
    assert await callers.authenticate(f"Bearer {token}", callers=directory, now=START) == caller
    assert token not in caller.model_dump_json()
    assert caller.secrets[0].value == await directory.encrypted("bob-2", secret)
    assert secret.startswith("whsec_")
    assert len(secret) == len("whsec_") + 44


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a" * 33, "a b", "é"])
async def test_a_bad_name_is_refused(directory: MemoryCallers, name: str) -> None:
    """Names are part of tokens and keys of tables."""
    with pytest.raises(CallerError, match="not a caller's name"):
        await callers.add(name, callback_url=None, now=START, admin=directory)


async def test_a_taken_name_is_refused(directory: MemoryCallers) -> None:
    """Adding twice would take the first one's token away."""
    before = directory.items["alice"]
    with pytest.raises(CallerError, match="exists already"):
        await callers.add("alice", callback_url=None, now=START, admin=directory)
    assert directory.items["alice"] == before


async def test_both_tokens_work_during_the_overlap(directory: MemoryCallers) -> None:
    """The old one ends when the overlap does, the new one stays."""
    _, fresh = await callers.rotate_token("alice", overlap=HOUR, now=START, admin=directory)
    for token, at, works in [
        (token_of("alice"), START, True),
        (fresh, START, True),
        (token_of("alice"), START + HOUR, False),
        (fresh, START + HOUR, True),
    ]:
        assert (await callers.authenticate(f"Bearer {token}", callers=directory, now=at) is not None) is works


async def test_an_overlap_of_nothing_ends_the_old_secret_at_once(directory: MemoryCallers) -> None:
    """After a leak there is no time to give."""
    old = directory.items["alice"].secrets[0].value
    _, fresh = await callers.rotate_secret("alice", overlap=timedelta(0), now=START, admin=directory)
    assert [secret.value for secret in directory.items["alice"].secrets] == [fresh]
    assert fresh != old


async def test_a_second_rotation_never_lengthens_the_first_ones_overlap(directory: MemoryCallers) -> None:
    """What was to end in an hour ends in an hour."""
    first = directory.items["alice"].secrets[0].value
    await callers.rotate_secret("alice", overlap=HOUR, now=START, admin=directory)
    await callers.rotate_secret("alice", overlap=24 * HOUR, now=START, admin=directory)
    ends = {secret.value: secret.expires_at for secret in directory.items["alice"].secrets}
    assert ends[first] == START + HOUR


async def test_changing_an_unknown_caller_says_so(directory: MemoryCallers) -> None:
    """The message says where to look."""
    with pytest.raises(CallerError, match="callers list"):
        await callers.disable("mallory", admin=directory)
