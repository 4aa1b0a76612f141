"""Life and death of the embedded stack."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import boto3
import psutil
import pytest

from tests.e2e.conftest import ENDED_WITHIN_S, ROOT, Stack, ready, started
from tests.local import share
from tests.local.stack import EMULATOR, build_folder


def processes_and_folder(process: subprocess.Popen[bytes]) -> tuple[list[psutil.Process], Path]:
    """Wait until the emulated account runs, and return all processes of the stack and its folder."""
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):  # some live for a moment only
            family = psutil.Process(process.pid).children(recursive=True)
            for member in family:
                if member.cmdline()[1:3] == ["-m", EMULATOR]:
                    return [psutil.Process(process.pid), *family], Path(member.environ()["TMPDIR"])
        time.sleep(0.05)
    pytest.fail(f"the stack has ended with {process.returncode} before the emulated account ran")


def command_of(process: psutil.Process) -> list[str]:
    """Give its command line; nothing, where it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def assert_nothing_stays(processes: list[psutil.Process], folder: Path) -> None:
    """Wait until no process lives; the folder and the control groups go with the last of them."""
    _, alive = psutil.wait_procs(processes, timeout=ENDED_WITHIN_S)
    assert alive == []
    assert not folder.exists()
    assert share.folders(share.stack_of(folder)) == []


def test_nothing_stays_of_a_ready_stack_after_kill_9() -> None:
    """The supervisor ends everything that a killed stack leaves: the account, its workers, its folder."""
    with started() as process:
        ready(process)
        processes, folder = processes_and_folder(process)
        assert any("_worker.py" in part for member in processes for part in command_of(member)), (
            "no worker lives: the test would prove little"
        )
        process.kill()
        process.wait()
        assert_nothing_stays(processes, folder)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGKILL, -signal.SIGKILL)],
    ids=str,
)
def test_nothing_stays_of_a_starting_stack(number: signal.Signals, code: int) -> None:
    """Told to stop while it still builds or deploys, the stack ends just as cleanly."""
    with started() as process:
        processes, folder = processes_and_folder(process)
        process.send_signal(number)
        assert process.ended() == code
        assert_nothing_stays(processes, folder)


def test_nothing_stays_when_the_supervisor_is_killed() -> None:
    """The stack does its supervisor's work when that is what dies, and says that it failed."""
    with started() as process:
        processes, folder = processes_and_folder(process)
        [supervisor] = [member for member in processes if "tests.local.supervisor" in command_of(member)]
        supervisor.kill()
        assert process.ended() == 1
        assert_nothing_stays(processes, folder)


def test_the_stack_ends_with_its_parent() -> None:
    """A process that started the stack and died without a word does not leave it running."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'tests.local', '--port', '0'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as parent:
        processes, folder = processes_and_folder(parent)
        parent.kill()
    assert_nothing_stays(processes, folder)


@pytest.mark.parametrize(
    "flags",
    [
        ("--parameter", "Nope=1"),
        ("--parameter", "RetentionDays"),
        ("--real-vendor",),
        ("--nope",),
        ("--port", "65536"),
        ("--task-seconds", "nan"),
        ("--rpm", "0"),
        ("--meter", "/nowhere/meter.json"),
        ("--cpu", "half"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_and_starts_nothing(flags: tuple[str, ...]) -> None:
    """An unknown parameter, a senseless number, no key for the real vendor: refused before anything is up."""
    with started(*flags) as process:
        assert process.ended() == 2
        assert process.stdout is not None
        assert process.stdout.read() == b""


def test_the_deployed_functions_may_call_loopback(stack: Stack) -> None:
    """The emulator-only relaxation is in force here, so that callbacks reach the receiver."""
    account = boto3.Session(
        aws_access_key_id="test", aws_secret_access_key="test", region_name=stack.aws_region
    )
    cloudformation = account.client("cloudformation", endpoint_url=stack.aws_endpoint_url)
    functions = account.client("lambda", endpoint_url=stack.aws_endpoint_url)
    for logical in ("SubmitFunction", "PollFunction"):
        resource = cloudformation.describe_stack_resource(StackName=stack.stack, LogicalResourceId=logical)
        name = resource["StackResourceDetail"]["PhysicalResourceId"]
        environment = functions.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
        assert environment["CALLBACK_TARGETS"] == "any"
        assert environment["PUBLIC_URL"] == stack.endpoint


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize("function", ["SubmitFunction", "PollFunction"])
def test_handlers_need_nothing_but_the_layer(function: str) -> None:
    """The emulator's packages are on a function's path too, only an import without them proves it whole."""
    built = build_folder()
    path = [str(built / function), str(built / "Layer/python")]
    needed = "taskhook.wiring, taskhook.api.routes, taskhook.archive.copy, pymediainfo, imagesize"
    code = f"import sys; sys.path[:0] = {path}; import {needed}"
    environment = {"AWS_DEFAULT_REGION": "us-east-1", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("stack")
def test_the_layer_is_small() -> None:
    """A cold start fetches it: 20 MB, zipped as `sam deploy` zips it."""
    files = [path for path in (build_folder() / "Layer").rglob("*") if path.is_file()]
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) < 20_000_000


def test_every_port_is_on_loopback(stack: Stack) -> None:
    """No other machine on the network reaches the stack."""
    ports = {
        int(url.rsplit(":", 1)[1])
        for url in (stack.endpoint, stack.receiver, stack.upstream, stack.aws_endpoint_url)
    }
    listening = {
        it.laddr
        for it in psutil.net_connections("inet")
        if it.status == psutil.CONN_LISTEN and it.laddr and it.laddr.port in ports
    }
    assert {address.port for address in listening} == ports
    assert {address.ip for address in listening} == {"127.0.0.1"}
