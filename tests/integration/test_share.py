"""Functions of the emulated account are held to Lambda's share of a processor and to their memory."""

import asyncio
import io
import json
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import pytest_asyncio

from tests.local import share, stack
from tests.local.supervisor import LOG

MEMORY_MB = 512
PERIOD_S = share.PERIOD_US / 1e6
QUOTA_S = PERIOD_S * share.share(MEMORY_MB)
INIT_CPU_S = 0.4
FUNCTION = f"""
import resource, subprocess, sys, time

def used():
    times = [resource.getrusage(it) for it in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(it.ru_utime + it.ru_stime for it in times)

def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

burn({INIT_CPU_S})

def handler(event, context):
    before = used()
    match event:
        case {{"burn": seconds}}:
            code = f"import time\\nwhile time.process_time() < {{seconds}}: pass"
            child = subprocess.Popen([sys.executable, "-c", code])
            burn(seconds)
            child.wait()
        case {{"take_mb": size}}:
            bytearray(size << 20)
        case {{"exit": code}}:
            import os
            os._exit(code)
    return used() - before
"""

type Invoke = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def _shares() -> None:
    if (why_not := share.refusal()) is not None:
        pytest.skip(f"Lambda's share of a processor: {why_not}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def account() -> AsyncIterator[stack.Account]:
    """An account whose functions are throttled."""
    async with stack.emulated_account(cpu="lambda") as account:
        await stack.answering(account)
        yield account


@pytest.fixture(scope="module")
def invoke(account: stack.Account) -> Invoke:
    """One function for all tests; a call invokes it and gives its answer."""
    return deployed(account.endpoint_url)


def deployed(url: str) -> Invoke:
    """Make a function; give what invokes it."""
    session = boto3.Session(region_name=stack.REGION, aws_access_key_id="test", aws_secret_access_key="test")
    iam, functions = (session.client(name, endpoint_url=url) for name in ("iam", "lambda"))
    name = f"f{time.monotonic_ns()}"
    trust = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=policy)["Role"]["Arn"]
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as file:
        file.writestr("app.py", FUNCTION)
    functions.create_function(
        FunctionName=name,
        Runtime="python3.13",
        Handler="app.handler",
        Role=role,
        Code={"ZipFile": code.getvalue()},
        MemorySize=MEMORY_MB,
        Timeout=300,
    )

    def invoke(**event: object) -> Any:
        answer = functions.invoke(FunctionName=name, Payload=json.dumps(event))
        return json.loads(answer["Payload"].read())

    return invoke


def groups(folder: Path) -> list[Path]:
    """Find the groups of a stack's processes, one for each in each hierarchy."""
    return [
        group
        for place in share.folders(share.stack_of(folder))
        for group in place.iterdir()
        if group.is_dir()
    ]


def periods(account: stack.Account) -> tuple[int, int]:
    """Count the periods in which the newest process computed, and those in which it was throttled."""
    group = max(
        (one for one in groups(account.folder) if (one / "cpu.stat").exists()),
        key=lambda one: int(one.name.split("-")[1]),
    )
    counts = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    return int(counts["nr_periods"]), int(counts["nr_throttled"])


def test_a_function_gets_its_share(account: stack.Account, invoke: Invoke) -> None:
    """With what it starts, and counted in periods.

    In some of them a busy machine gives it less than its share.
    """
    invoke()
    wanted, throttled = periods(account)
    used = invoke(burn=1.2)
    wanted, throttled = (
        now - before for now, before in zip(periods(account), (wanted, throttled), strict=True)
    )
    assert used > 2
    assert throttled > 0
    assert 0.8 * throttled * QUOTA_S < used < 1.2 * wanted * QUOTA_S


def test_init_is_free_of_the_throttle_and_told(account: stack.Account) -> None:
    """Under its share, what it computes in init alone would have been throttled nearly seventy times."""
    before = cold_starts(account)
    fresh = deployed(account.endpoint_url)
    fresh()
    assert INIT_CPU_S / QUOTA_S > 60
    _, throttled = periods(account)
    assert throttled < 10
    fresh()
    [told] = cold_starts(account)[len(before) :]
    init_ms, first_event_ms = map(int, re.findall(r"(\d+) ms", told))
    assert init_ms > INIT_CPU_S * 1000
    assert 0 <= first_event_ms < init_ms


def cold_starts(account: stack.Account) -> list[str]:
    """List what the log says of them."""
    return [line for line in (account.folder / LOG).read_text().splitlines() if "cold start of" in line]


def test_an_init_without_end_is_throttled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ten seconds are what Lambda gives it."""
    monkeypatch.setattr(share, "INIT_S", 0.2)
    name, told = share.stack_of(tmp_path), list[str]()
    environment = {"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(MEMORY_MB)}
    process = share.FunctionProcess(
        [sys.executable, "-c", "while True: pass"], env=environment, stack=name, tell=told.append
    )
    try:
        wait_until(lambda: "nr_throttled 0" not in (process.group.cpu / "cpu.stat").read_text())
    finally:
        process.kill()
        process.wait()
        wait_until(lambda: not groups(tmp_path))
        share.remove_all(name)
    assert told == []


def test_a_function_over_its_memory_is_killed(account: stack.Account, invoke: Invoke) -> None:
    """The invocation fails as Lambda's does, the next one finds a new process, no group is left."""
    invoke()
    before = groups(account.folder)
    failed = invoke(take_mb=MEMORY_MB)
    assert failed["errorMessage"].endswith("Error: Runtime exited with error: signal: killed")
    assert failed["errorType"] == "Runtime.ExitError"
    assert "out of memory" in account.last_words()
    assert invoke(take_mb=MEMORY_MB // 2) >= 0
    wait_until(lambda: len(groups(account.folder)) == len(before))


def test_a_function_that_exits_fails_as_lambdas_do(invoke: Invoke) -> None:
    """With its exit code."""
    failed = invoke(exit=3)
    assert failed["errorMessage"].endswith("Error: Runtime exited with error: exit status 3")
    assert failed["errorType"] == "Runtime.ExitError"


async def test_no_group_is_left_after_an_orderly_end() -> None:
    """Of a process that still lives when the stack ends."""
    async with stack.emulated_account(cpu="lambda") as account:
        await stack.answering(account)
        (await asyncio.to_thread(deployed, account.endpoint_url))()
        assert groups(account.folder)
    assert share.folders(share.stack_of(account.folder)) == []


@pytest.mark.parametrize("victim", ["stack", "supervisor"])
def test_no_group_is_left_after_kill_9(victim: str) -> None:
    """Of the stack: its supervisor tidies up; of the supervisor: the stack does."""
    code = "import asyncio; from tests.integration.test_share import live; asyncio.run(live())"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=stack.ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        folder = Path(told["folder"])
        assert groups(folder)
        subprocess.run(["kill", "-KILL", str({"stack": process.pid, **told}[victim])], check=True)
        wait_until(lambda: not share.folders(share.stack_of(folder)))


async def live() -> None:
    """Run an account with a function that has been invoked, until its supervisor ends."""
    async with stack.emulated_account(cpu="lambda") as account:
        await stack.answering(account)
        (await asyncio.to_thread(deployed, account.endpoint_url))()
        sys.stdout.write(
            json.dumps({"supervisor": account.supervisor.pid, "folder": str(account.folder)}) + "\n"
        )
        sys.stdout.flush()
        await account.supervisor.wait()


def wait_until(true: Callable[[], object], *, within_s: float = 60.0) -> None:
    """Wait for what is to come true by itself."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.02)
