"""The emulated account: MiniStack under a supervisor, and the unchanged template deployed into it."""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import boto3

from layers.template import TEMPLATE, load
from tests.local import share
from tests.local.supervisor import LOG, clear

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

ROOT = Path(__file__).parents[2]
template = load
WORK = ROOT / ".aws-sam"  # the folders of living stacks, and what was built
SAM = ROOT / ".tools/sam/bin/sam"
EMULATOR = "tests.local.emulator"
UV = shutil.which("uv") or str(ROOT / ".tools/uv/bin/uv")
MINISTACK_PYTHON = ROOT / ".tools/ministack/bin/python"
BUILD_INPUTS = ("template.yaml", "layers", "functions", "tests/local/sam.txt")
BUILD_KEPT_S = 86400.0
ANSWERS_WITHIN_S = 300.0  # two seconds on a quiet machine
DIES_WITHIN_S = 1.0  # a command that was killed
ENDS_WITHIN_S = 30.0  # the account's processes; its files may take longer

REGION = "us-east-1"
STACK = "taskhook"
ARCHITECTURE = "arm64" if platform.machine() in {"aarch64", "arm64"} else "x86_64"


class StackError(Exception):
    """The stack cannot start, or does not live any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An emulated account that lives."""

    endpoint_url: str
    folder: Path  # everything that it writes
    group: int  # every process of it
    supervisor: asyncio.subprocess.Process

    def environment(self) -> dict[str, str]:
        """Return the environment of this account's administrator."""
        return clean_environment() | {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "TMPDIR": str(self.folder),
            "ARCHITECTURE": ARCHITECTURE,
            "UV": UV,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
            "SAM_CLI_TELEMETRY": "0",
            "SAM_CLI_POLL_DELAY": "0.3",
            "__SAM_CLI_APP_DIR": str(self.folder),
        }

    def last_words(self) -> str:
        """Give the last lines that the account wrote; none where its folder is gone with it."""
        log = self.folder / LOG
        return "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""

    async def run(self, *command: str | Path, said: str = "") -> str:
        """Run a command in this account, `said` on stdin; give its output. It dies with the account."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.folder,
            env=self.environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            process_group=self.group,
        )
        try:
            printed, complaint = await process.communicate(said.encode())
        finally:
            if process.returncode is None:
                process.kill()
                # Its pipes are waited for too, and its children hold them until the account ends, just after.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), DIES_WITHIN_S)
        if process.returncode != 0:
            name = " ".join(str(part) for part in command[:3])
            lines = [
                line
                for line in (printed + complaint).decode(errors="replace").splitlines()
                if "Uploading to" not in line
            ]
            tail = "\n".join(lines[-30:])
            msg = f"{name} failed ({process.returncode})\n{tail}"
            raise StackError(msg)
        return printed.decode()


def clean_environment() -> dict[str, str]:
    """Return this process's environment without AWS accounts, vendor key, or proxy for loopback."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AWS_") and name != "MODELLIX_API_KEY"
    }
    return kept | {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}


@contextlib.asynccontextmanager
async def emulated_account(
    meter: Path | None = None, *, cpu: share.Cpu | None = None, executions: int | None = None
) -> AsyncIterator[Account]:
    """Start an account of its own on a free port; nothing of it lives on, whatever happens to this process.

    What DynamoDB is asked is counted into the file `meter`. `processors` tells what functions get of a
    processor. At most so many `executions` run at once, else what the machine's memory allows. Raises
    StackError.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = clean_environment() | {
        "AUTH": "true",
        "BIND_HOST": "127.0.0.1",
        "DOCKER_HOST": "unix:///nowhere",  # or it tidies up containers that are none of its business
        "GATEWAY_PORT": str(port),
        "LAMBDA_CPU": processors(cpu)[0],
        "IOT_MTLS_ENABLED": "0",
        "MINISTACK_REGION": REGION,
        "SFTP_ENABLED": "0",
    }
    if executions is not None:
        environment["LAMBDA_ACCOUNT_CONCURRENCY"] = str(executions)
    if meter is not None:
        environment["METER"] = str(meter)
    supervisor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.local.supervisor", WORK, MINISTACK_PYTHON, "-m", EMULATOR),
        cwd=ROOT,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        process_group=0,  # the terminal's Ctrl-C is for us, not for the supervisor
    )
    assert supervisor.stdin is not None, "it is a pipe"
    assert supervisor.stdout is not None, "it is a pipe"
    begun: dict[str, Any] | None = None
    try:
        begun = json.loads(await supervisor.stdout.readline() or "null")
        if begun is None:
            msg = "the supervisor did not start"
            raise StackError(msg)
        folder, group = Path(begun["folder"]), begun["group"]
        yield Account(
            endpoint_url=f"http://127.0.0.1:{port}", folder=folder, group=group, supervisor=supervisor
        )
    finally:
        supervisor.stdin.close()
        group = None if begun is None else int(begun["group"])
        if await _ended(supervisor, group) != 0 and begun is not None:  # it was killed: its work is ours
            with contextlib.suppress(ProcessLookupError):
                os.killpg(begun["group"], signal.SIGKILL)
            clear(Path(begun["folder"]))


async def _ended(supervisor: asyncio.subprocess.Process, group: int | None) -> int:
    """Wait for its end, and kill it where it leaves the account alive; give the exit code."""
    try:
        return await asyncio.wait_for(supervisor.wait(), ENDS_WITHIN_S)
    except TimeoutError:
        if group is not None and not _lives(group):
            return await supervisor.wait()  # it removes files, on a slow disk
        print(f"the emulated account did not end within {ENDS_WITHIN_S:g} s; it is killed", file=sys.stderr)
        supervisor.kill()
        return await supervisor.wait()


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def processors(wanted: share.Cpu | None = None) -> tuple[share.Cpu, str]:
    """Tell what functions get of a processor, and put it into words.

    By default what LAMBDA_CPU says; where it says nothing, Lambda's share if it can be had. Raises StackError
    where that is asked for and cannot be had.
    """
    wish = wanted or os.environ.get("LAMBDA_CPU")
    if wish not in {None, "lambda", "full"}:
        raise StackError(f"LAMBDA_CPU is {wish!r}; it may be lambda or full")
    if wish == "full":
        return "full", "functions get a whole processor, as was asked for; Lambda gives them less"
    why_not = share.refusal()
    if why_not is None:
        return "lambda", f"functions get Lambda's share of a processor: {', '.join(_shares())}"
    if wish is None:
        return "full", f"functions get a whole processor, more than Lambda gives them: {why_not}"
    raise StackError(f"functions cannot get Lambda's share of a processor: {why_not}")


def _shares() -> list[str]:
    """Say of each function how much memory it has, and what share comes with it."""
    sizes = {
        name.removesuffix("Function").lower(): resource["Properties"]["MemorySize"]
        for name, resource in template()["Resources"].items()
        if resource["Type"] == "AWS::Serverless::Function"
    }
    return [f"{name} {memory} MB {share.share(memory):.3f}" for name, memory in sizes.items()]


async def answering(account: Account) -> None:
    """Wait until the account answers."""
    ended = asyncio.ensure_future(account.supervisor.wait())
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession() as session:
        while not ended.done() and time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(
                    f"{account.endpoint_url}/_ministack/health", timeout=timeout
                ) as answer:
                    if answer.status == 200:
                        ended.cancel()
                        return
            await asyncio.sleep(0.05)
    how = "ended" if ended.done() else "does not answer"
    msg = f"the emulated account {how}; it said last:\n{account.last_words()}"
    ended.cancel()
    raise StackError(msg)


async def build(account: Account) -> Path:
    """Return the folder that `sam build` made of these very files, now or before."""
    built = build_folder()
    async with _alone(WORK / "build.lock"):
        if not built.exists():
            fresh = account.folder / "build"
            options = ("--template-file", TEMPLATE, "--build-dir", fresh)
            await _sam(account, "build", {"Architecture": ARCHITECTURE}, *options)
            if build_folder() != built:
                return fresh  # a file changed meanwhile: good for this stack, not to be found again
            fresh.rename(built)  # what is found there is whole
    os.utime(built)
    for old in WORK.glob("built-*"):
        if old.stat().st_mtime < time.time() - BUILD_KEPT_S:
            shutil.rmtree(old, ignore_errors=True)
    return built


@contextlib.asynccontextmanager
async def _alone(lock: Path) -> AsyncIterator[None]:
    """Be the only process that builds: stacks that start at once need one. The lock ends with its process."""
    with lock.open("w") as file:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            await asyncio.sleep(0.2)
        yield


def build_folder() -> Path:
    """Return where the build of the present files is kept, named by a digest of all that it depends on."""
    digest = hashlib.sha256(f"{platform.python_version()} {ARCHITECTURE}".encode())
    for name in BUILD_INPUTS:
        for file in sorted((ROOT / name).rglob("*")) or [ROOT / name]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(
                    f"{file.relative_to(ROOT)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode()
                )
    return WORK / f"built-{digest.hexdigest()[:16]}"


async def deploy(account: Account, built: Path, parameters: Mapping[str, str]) -> str:
    """Deploy what was built and return the address at which its HTTP API answers inside the account."""
    await _sam(
        account,
        "deploy",
        parameters,
        "--template-file",
        built / "template.yaml",
        "--stack-name",
        STACK,
        "--region",
        REGION,
    )
    return await asyncio.to_thread(_api_address, account)


async def _sam(account: Account, verb: str, parameters: Mapping[str, str], *options: str | Path) -> None:
    """Run SAM as `make deploy` does; the parameters go through a file, so that no value needs quoting."""
    file = account.folder / "parameters.yaml"
    file.write_text(json.dumps(dict(parameters)))
    await account.run(
        SAM,
        verb,
        "--config-file",
        ROOT / "samconfig.toml",
        "--parameter-overrides",
        f"file://{file}",
        *options,
    )


def _api_address(account: Account) -> str:
    cloudformation = boto3.client(
        "cloudformation",
        endpoint_url=account.endpoint_url,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    resource = cloudformation.describe_stack_resource(StackName=STACK, LogicalResourceId="HttpApi")
    api_id = resource["StackResourceDetail"].get("PhysicalResourceId", "")
    return f"{account.endpoint_url}/_aws/execute-api/{api_id}/$default"


async def add_caller(account: Account, name: str) -> tuple[str, str]:
    """Return the token and the signing secret of a new caller."""
    printed = await account.run(
        sys.executable, "-m", "taskhook", "callers", "add", name, "--stack", STACK, "--json"
    )
    caller = json.loads(printed)
    return caller["token"], caller["signing_secret"]


async def set_vendor_key(account: Account, vendor: str, key: str) -> None:
    """Store a vendor's key in the stack's secret, as an operator does."""
    await account.run(sys.executable, "-m", "taskhook", "vendors", "set", vendor, "--stack", STACK, said=key)


def make_table(client: "DynamoDBClient", resource: str, name: str) -> None:
    """Make a table as the template has it, under a name of its own."""
    properties = template()["Resources"][resource]["Properties"]
    given = ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes")
    wanted: dict[str, Any] = {key: properties[key] for key in given if key in properties}
    client.create_table(TableName=name, BillingMode="PAY_PER_REQUEST", **wanted)
    client.get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 120})
