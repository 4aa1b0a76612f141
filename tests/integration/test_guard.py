"""The guard on real connections: a listener that sees no byte of what is forbidden, all of the rest."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from taskhook.adapters.http.callbacks import AiohttpCallbacks
from taskhook.adapters.http.guard import guarded_connector
from taskhook.core.errors import ForbiddenTargetError
from taskhook.core.reply import Reply
from taskhook.core.targets import CALLBACK, TargetPolicy, Use
from tests.listener import Listener, answer, answering, free_port, listening
from tests.rows import each_row
from tests.vectors import FORBIDDEN, FORBIDDEN_ADDRESSES, FORBIDDEN_HOSTS, naming, numeric

NAME = "receiver.example.com"
LIMIT = timedelta(seconds=60)  # against a hang; a loaded machine is no finding
OK = answering(answer(200, b"ok"))
LOOPBACK = ("127.0.0.1", "::1") if socket.has_dualstack_ipv6() else ("127.0.0.1",)
STAND_IN = "127.0.0.99"  # plays a public address, for no test can own a real one


@dataclass(frozen=True)
class StandInPolicy(TargetPolicy):
    """The public policy, but that it takes one more address for a public one, and http for https."""

    def check_url(self, url: str, use: Use = CALLBACK) -> None:
        """Check the URL as if it were an https one."""
        super().check_url(url.replace("http://", "https://", 1), use)

    def check_address(self, address: str) -> None:
        """Let the stand-in pass."""
        if address != STAND_IN:
            super().check_address(address)


@dataclass
class Names(AbstractResolver):
    """A name server in the hands of an attacker: each lookup gets the next answer, the last one for ever."""

    answers: list[Sequence[str]]
    asked: list[str] = field(default_factory=list)

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002
    ) -> list[ResolveResult]:  # aiohttp's form
        """Answer with the next list of addresses; an odd spelling is read as the C library would."""
        self.asked.append(host)
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if (spelled := numeric(host)) is not None:
            addresses = [spelled]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is open."""


@asynccontextmanager
async def sending(policy: TargetPolicy, *answers: Sequence[str]) -> AsyncIterator[AiohttpCallbacks]:
    """Make a sender whose names resolve to these addresses, one answer per lookup."""
    callbacks = AiohttpCallbacks(policy, limit=LIMIT, resolver=Names(list(answers)))
    try:
        yield callbacks
    finally:
        await callbacks.close()


async def send(callbacks: AiohttpCallbacks, url: str) -> Reply:
    """Send one attempt of anything."""
    return await callbacks.send(url, {"content-type": "application/json"}, b"{}")


async def untouched(listener: Listener) -> bool:
    """Connect once more, so that what was accepted before has been counted; it must be the only one."""
    _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    async with asyncio.timeout(LIMIT.total_seconds()):
        await listener.accepted.wait()
    writer.close()
    await writer.wait_closed()
    return (listener.connections, bytes(listener.received)) == (1, b"")


async def test_forbidden_host_is_refused_by_the_connection() -> None:
    """Even without a URL check before: no connection to a forbidden literal, odd spelling or name."""
    async with listening(OK, hosts=LOOPBACK) as listener:
        for row in FORBIDDEN_HOSTS:
            connector = guarded_connector(TargetPolicy(), connections=5, resolver=Names([LOOPBACK]))
            async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
                with naming(row), pytest.raises((ForbiddenTargetError, aiohttp.InvalidURL)):
                    await session.post(f"http://{row[1]}:{listener.port}/hook", data=b"{}")
            assert (row, listener.connections) == (row, 0)
        assert await untouched(listener)


async def test_forbidden_url_is_refused_by_the_sender() -> None:
    """The sender checks the URL itself at every attempt, before it looks up anything."""
    for row in FORBIDDEN:
        async with sending(TargetPolicy(), LOOPBACK) as callbacks:
            reply = await send(callbacks, row[1])
        assert (row, reply.status, reply.error) == (row, None, "forbidden_target")


async def test_name_that_resolves_to_a_forbidden_address_is_refused() -> None:
    """A public name that resolves to any forbidden address is refused, without a connection."""
    async with listening(OK, hosts=LOOPBACK) as listener:
        for address in FORBIDDEN_ADDRESSES:
            async with sending(StandInPolicy(), [address]) as callbacks:
                reply = await send(callbacks, f"http://{NAME}:{listener.port}/hook")
            assert (address, reply.status, reply.error) == (address, None, "forbidden_target")
            assert (address, listener.connections) == (address, 0)
        assert await untouched(listener)


@each_row(
    "addresses",
    [
        ["127.0.0.1", "127.0.0.1"],
        ["127.0.0.1", "::1"],
        ["::1", "127.0.0.1"],
        ["127.0.0.1", "10.0.0.1", "169.254.169.254"],
        ["127.0.0.1", STAND_IN],
        [STAND_IN, "127.0.0.1"],
        [STAND_IN, "::1"],
        ["::1", STAND_IN],
        [STAND_IN, STAND_IN, STAND_IN, "127.0.0.1"],
    ],
)
async def test_name_that_resolves_to_a_mix_is_refused(addresses: list[str]) -> None:
    """One forbidden address among several makes the name forbidden, wherever it stands in the list."""
    async with listening(OK, hosts=LOOPBACK) as listener:
        async with sending(StandInPolicy(), addresses) as callbacks:
            reply = await send(callbacks, f"http://{NAME}:{listener.port}/hook")
        assert (reply.status, reply.error) == (None, "forbidden_target")
        assert await untouched(listener)


async def test_public_name_is_reached() -> None:
    """What the tests above refuse is refused for its address alone: the same name reaches a public one."""
    async with (
        listening(OK, hosts=(STAND_IN,)) as listener,
        sending(StandInPolicy(), [STAND_IN]) as callbacks,
    ):
        reply = await send(callbacks, f"http://{NAME}:{listener.port}/hook")
        assert (reply.status, reply.answer, listener.connections) == (200, "ok", 1)


async def test_rebinding_between_two_attempts_is_refused() -> None:
    """A name that was public at the first attempt is checked at the second, which finds it on loopback."""
    async with (
        listening(OK, hosts=(STAND_IN,)) as public,
        sending(StandInPolicy(), [STAND_IN], LOOPBACK) as callbacks,
    ):
        url = f"http://{NAME}:{public.port}/hook"
        async with listening(OK, hosts=LOOPBACK) as forbidden:
            first = await send(callbacks, url)
            second = await send(callbacks, f"http://{NAME}:{forbidden.port}/hook")
            assert (first.status, public.connections) == (200, 1)
            assert (second.status, second.error) == (None, "forbidden_target")
            assert await untouched(forbidden)


async def test_name_is_looked_up_once_per_connection() -> None:
    """One lookup serves check and use, so that nothing changes between; nothing is kept for the next one."""
    async with (
        listening(OK, hosts=(STAND_IN,)) as listener,
        sending(StandInPolicy(), [STAND_IN]) as callbacks,
    ):
        names = callbacks._resolver
        assert isinstance(names, Names)
        for connection in (1, 2):
            for _ in range(2):
                await send(callbacks, f"http://{NAME}:{listener.port}/hook")
                assert (len(names.asked), listener.connections) == (connection, connection)
            await callbacks.close()


async def test_forbidden_address_is_not_tried_when_the_public_one_fails() -> None:
    """A public address that does not answer is no way round the guard to the next in the list."""
    async with listening(OK, hosts=LOOPBACK) as listener:  # on loopback only: the stand-in refuses
        async with sending(StandInPolicy(), [STAND_IN, *LOOPBACK]) as callbacks:
            reply = await send(callbacks, f"http://{NAME}:{listener.port}/hook")
        assert reply.status is None
        assert await untouched(listener)


async def test_redirect_to_a_forbidden_target_is_not_followed() -> None:
    """A public receiver cannot send the request on to a forbidden one."""
    async with listening(OK, hosts=LOOPBACK) as forbidden:
        moved = answering(answer(307, location=f"http://127.0.0.1:{forbidden.port}/"))
        async with (
            listening(moved, hosts=(STAND_IN,)) as public,
            sending(StandInPolicy(), [STAND_IN]) as callbacks,
        ):
            reply = await send(callbacks, f"http://{NAME}:{public.port}/hook")
        assert (reply.status, reply.error) == (307, None)
        assert await untouched(forbidden)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
async def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A proxy would connect in our place, past the guard; so none is taken from the environment."""
    async with listening(OK, hosts=LOOPBACK) as proxy, listening(OK, hosts=(STAND_IN,)) as public:
        monkeypatch.setenv(variable, proxy.origin)
        async with sending(StandInPolicy(), [STAND_IN]) as callbacks:
            reply = await send(callbacks, f"http://{NAME}:{public.port}/hook")
        assert reply.status == 200
        assert await untouched(proxy)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", NAME])
async def test_relaxed_policy_reaches_the_listener(host: str) -> None:
    """The emulated account's policy lets the very same connector reach loopback, by address and by name."""
    async with (
        listening(OK, hosts=LOOPBACK) as listener,
        sending(TargetPolicy(relaxed=True), LOOPBACK) as callbacks,
    ):
        reply = await send(callbacks, f"http://{host}:{listener.port}/hook")
        assert (reply.status, reply.answer) == (200, "ok")
        assert len(listener.requests) == 1


@pytest.mark.skipif(len(LOOPBACK) == 1, reason="this machine has no IPv6")
async def test_relaxed_policy_reaches_the_listener_over_ipv6() -> None:
    """IPv6 literals go through the same guard, and pass where the policy lets them."""
    async with (
        listening(OK, hosts=LOOPBACK) as listener,
        sending(TargetPolicy(relaxed=True), LOOPBACK) as callbacks,
    ):
        reply = await send(callbacks, f"http://[::1]:{listener.port}/hook")
        assert (reply.status, len(listener.requests)) == (200, 1)


async def test_system_resolver_is_guarded_too() -> None:
    """With the system's own resolver, `localhost` is refused by the connection, not only by its name."""
    async with listening(OK, hosts=LOOPBACK) as listener:
        connector = guarded_connector(TargetPolicy(), connections=5)
        async with aiohttp.ClientSession(connector=connector) as session:
            with pytest.raises(ForbiddenTargetError):
                await session.get(f"http://localhost:{listener.port}/")
        assert await untouched(listener)


async def test_refusal_does_not_stop_the_next_attempt() -> None:
    """A refused target leaves nothing behind: the slots of the connector are free again."""
    async with listening(OK, hosts=(STAND_IN,)) as public:
        connector = guarded_connector(StandInPolicy(), connections=1)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            asyncio.timeout(LIMIT.total_seconds()),
        ):
            for _ in range(5):
                with pytest.raises(ForbiddenTargetError):
                    await session.get(f"http://127.0.0.1:{public.port}/")
            async with session.get(f"http://{STAND_IN}:{public.port}/") as response:
                assert response.status == 200


async def test_refused_connection_is_no_guard_matter() -> None:
    """A public target without a listener is told apart from a forbidden one."""
    port = await free_port()
    async with sending(StandInPolicy(), [STAND_IN]) as callbacks:
        reply = await send(callbacks, f"http://{NAME}:{port}/hook")
    assert reply.error == "refused"


async def test_lookups_that_hang_hold_no_other_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have their own threads: however many name servers are dead, calls to AWS find theirs free."""
    loop, asked, given_up = asyncio.get_running_loop(), asyncio.Semaphore(0), threading.Event()

    def hang(*_: object, **__: object) -> None:
        loop.call_soon_threadsafe(asked.release)
        given_up.wait(LIMIT.total_seconds())
        raise socket.gaierror

    # the system's, as no test can have a name server that is dead
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    loop.set_default_executor(ThreadPoolExecutor(2))
    callbacks = AiohttpCallbacks(TargetPolicy(), limit=LIMIT)
    sending = [asyncio.create_task(send(callbacks, f"https://r{number}.example.com/")) for number in range(4)]
    try:
        async with asyncio.timeout(LIMIT.total_seconds() / 2):
            for _ in sending:
                await asked.acquire()
            assert await asyncio.to_thread(lambda: "free") == "free"
    finally:
        given_up.set()
        replies = await asyncio.gather(*sending)
        await callbacks.close()
    assert {reply.error for reply in replies} == {"dns"}
