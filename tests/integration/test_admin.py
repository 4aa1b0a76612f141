"""The admin command as people and programs meet it: help, tables, JSON, exit codes, helpful errors."""

import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import boto3
import pytest

from taskhook.cli import main
from taskhook.vendors import VENDORS
from tests.local import stack

LEVELS: tuple[list[str], ...] = (
    [],
    ["callers"],
    ["callers", "add"],
    ["callers", "list"],
    ["callers", "rotate"],
    ["callers", "update"],
    ["callers", "disable"],
    ["callers", "enable"],
    ["callers", "remove"],
    ["vendors"],
    ["vendors", "list"],
    ["vendors", "set"],
    ["vendors", "remove"],
    ["audit"],
)
NO_CONFIGURATION = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
ACCOUNT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": stack.REGION}

type Ran = tuple[int, str, str]  # exit code, stdout, stderr
type Command = Callable[..., Ran]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in an environment that holds no more of AWS than is given."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)

    def run(*arguments: str, **environment: str) -> Ran:
        with monkeypatch.context() as context:
            for name, value in (NO_CONFIGURATION | environment).items():
                context.setenv(name, value)
            context.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the environment of its first use
            try:
                code = main(arguments)
            except SystemExit as left:
                code = int(left.code or 0)
        return (code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def deployed(account_url: str) -> Iterator[str]:
    """Deploy a stack that has nothing but its tables and the secret."""
    name = f"admin-{uuid.uuid4().hex[:8]}"
    client = boto3.client(
        "cloudformation",
        endpoint_url=account_url,
        region_name=stack.REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    resources = {name: stack.template()["Resources"][name] for name in ("Callers", "Secret", "Tasks")}
    body = {"AWSTemplateFormatVersion": "2010-09-09", "Resources": resources}
    client.create_stack(StackName=name, TemplateBody=json.dumps(body))
    client.get_waiter("stack_create_complete").wait(
        StackName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 120}
    )
    yield name
    client.delete_stack(StackName=name)


@pytest.fixture
def admin(command: Command, deployed: str, account_url: str) -> Command:
    """Run the command on the stack."""
    return lambda *arguments: command(
        "callers", *arguments, "--stack", deployed, **ACCOUNT, AWS_ENDPOINT_URL=account_url
    )


@pytest.fixture
def vendors(command: Command, deployed: str, account_url: str) -> Command:
    """Run the command on the stack's secret."""
    return lambda *arguments: command(
        "vendors", *arguments, "--stack", deployed, **ACCOUNT, AWS_ENDPOINT_URL=account_url
    )


@dataclass(frozen=True)
class Keys:
    """The stack's secret, from the outside."""

    client: Any
    name: str

    def read(self) -> str:
        """Read it."""
        text: str = self.client.get_secret_value(SecretId=self.name)["SecretString"]
        return text

    def write(self, text: str) -> None:
        """Write over all of it."""
        self.client.put_secret_value(SecretId=self.name, SecretString=text)


@pytest.fixture
def keys(deployed: str, account_url: str) -> Keys:
    """Give the stack's secret."""
    session = boto3.Session(region_name=stack.REGION, aws_access_key_id="test", aws_secret_access_key="test")
    resource = session.client("cloudformation", endpoint_url=account_url).describe_stack_resource(
        StackName=deployed, LogicalResourceId="Secret"
    )
    client = session.client("secretsmanager", endpoint_url=account_url)
    return Keys(client, resource["StackResourceDetail"]["PhysicalResourceId"])


@pytest.mark.parametrize("level", LEVELS, ids=" ".join)
def test_help_has_examples_at_every_level(command: Command, level: list[str]) -> None:
    """An operator that does not know what to type finds something to copy."""
    code, shown, complaint = command(*level, "--help")
    assert (code, complaint) == (0, "")
    assert f"\nexamples:\n  taskhook {(level or ['callers'])[0]} " in shown


@pytest.mark.parametrize("level", LEVELS, ids=" ".join)
def test_the_examples_are_good(command: Command, level: list[str]) -> None:
    """Each gets as far as asking AWS, for which it has no credentials."""
    _, shown, _ = command(*level, "--help")
    for line in re.findall(r"^  taskhook (.*)$", shown, re.MULTILINE):
        # without what a shell does with it, and without the remark
        words = shlex.split(re.split(r" >| <| \||     ", line)[0])
        code, _, complaint = command(*words, AWS_DEFAULT_REGION=stack.REGION)
        assert (code, "credentials" in complaint) == (1, True), f"{words}: {complaint}"


def test_an_update_promises_no_default(command: Command) -> None:
    """What it does not name stays, which for a new caller is the default."""
    defaults = [command("callers", area, "--help")[1].count("(default") for area in ("add", "update")]
    assert defaults == [2, 1]  # and `--stack` has one in both


def test_people_get_a_table_and_programs_json(admin: Command) -> None:
    """The same facts, once as columns under headings, once as values of their own types."""
    code, shown, note = admin("list")
    assert (code, shown) == (0, "")
    assert "callers add NAME" in note
    code, added, note = admin("add", "shop", "--callback-url", "https://shop.example.com/hook")
    assert code == 0
    assert [line.split()[0] for line in added.splitlines()] == ["caller", "token", "signing"]
    assert "Keep both now" in note
    assert set(json.loads(admin("add", "depot", "--json")[1])) == {"caller", "token", "signing_secret"}
    assert json.loads(admin("disable", "depot", "--json")[1]) == {"caller": "depot", "disabled": True}
    rotated = json.loads(admin("rotate", "shop", "--token", "--json")[1])
    assert rotated["token"].startswith("thk_shop_")

    heading, *rows = (line.split() for line in admin("list")[1].splitlines())
    assert heading == [
        "CALLER",
        "DISABLED",
        "TOKENS",
        "SECRETS",
        "CALLBACK",
        "URL",
        "MODELS",
        "PER",
        "DAY",
        "CREATED",
    ]
    assert [row[:5] for row in rows] == [
        ["depot", "yes", "1", "1", "-"],
        ["shop", "no", "2", "1", "https://shop.example.com/hook"],
    ]
    listed = json.loads(admin("list", "--json")[1])
    assert [(row["caller"], row["disabled"], row["tokens"], row["callback_url"]) for row in listed] == [
        ("depot", True, 1, None),
        ("shop", False, 2, "https://shop.example.com/hook"),
    ]


def test_a_caller_is_disabled_enabled_updated_and_removed(admin: Command) -> None:
    """Each step says what it means for tokens and callbacks; removing wants the caller disabled first."""
    token = json.loads(admin("add", "store", "--json")[1])["token"]
    changed = admin("update", "store", "--callback-url", "https://store.example.com/hook", "--json")
    url = "https://store.example.com/hook"
    assert json.loads(changed[1]) == {
        "caller": "store",
        "callback_url": url,
        "models": "*",
        "per_day": None,
    }
    limited = json.loads(
        admin("update", "store", "--models", "alibaba/*", "runway/*", "--per-day", "7", "--json")[1]
    )
    assert (limited["callback_url"], limited["models"], limited["per_day"]) == (url, "alibaba/* runway/*", 7)
    open_again = json.loads(admin("update", "store", "--models", "*", "--per-day", "0", "--json")[1])
    assert (open_again["models"], open_again["per_day"]) == ("*", None)
    assert json.loads(admin("update", "store", "--no-callback-url", "--json")[1])["callback_url"] is None

    code, _, complaint = admin("remove", "store")
    assert (code, "`callers disable store` first" in complaint) == (1, True)
    admin("disable", "store")
    code, shown, note = admin("rotate", "store", "--token")
    assert (code, "disabled" in shown, "taskhook callers enable store" in note) == (0, True, True)
    assert token not in shown
    assert json.loads(admin("enable", "store", "--json")[1]) == {"caller": "store", "disabled": False}
    assert "stays disabled" not in admin("rotate", "store", "--token")[2]

    admin("disable", "store")
    code, _, note = admin("remove", "store")
    assert (code, "cannot be signed any more" in note) == (0, True)
    assert "store" not in admin("list")[1].split()
    assert admin("remove", "store")[0] == 1


def test_an_export_of_the_table_forges_nothing(admin: Command, deployed: str, account_url: str) -> None:
    """Tokens are hashed, and signing secrets encrypted, also those that a rotation made."""
    shown = json.loads(admin("add", "sealed", "--json")[1])
    rotated = json.loads(admin("rotate", "sealed", "--secret", "--json")[1])["signing_secret"]
    session = boto3.Session(region_name=stack.REGION, aws_access_key_id="test", aws_secret_access_key="test")
    resource = session.client("cloudformation", endpoint_url=account_url).describe_stack_resource(
        StackName=deployed, LogicalResourceId="Callers"
    )
    table = resource["StackResourceDetail"]["PhysicalResourceId"]
    export = json.dumps(session.client("dynamodb", endpoint_url=account_url).scan(TableName=table)["Items"])
    for secret in (shown["token"], shown["signing_secret"], rotated):
        assert secret.removeprefix("whsec_") not in export
    assert "whsec_" not in export


def test_a_vendors_key_goes_into_the_secret_from_standard_input(
    admin: Command, vendors: Command, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the deployment's own key, which stays; no command shows a key."""
    own = json.loads(keys.read())["deployment_key"]
    assert len(own) >= 32
    assert json.loads(vendors("list", "--json")[1]) == [{"vendor": name, "key": False} for name in VENDORS]
    for text, complaint in (
        ("", "is empty"),
        ("two\nlines", "one line"),
        ("schlüssel", "one line"),
        ("\x00", "one line"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        code, shown, told = vendors("set", "modellix")
        assert (code, shown, complaint in told) == (1, "", True)
    monkeypatch.setattr(sys, "stdin", io.StringIO(" mdlx_key\n"))
    code, shown, told = vendors("set", "modellix")
    assert (code, "mdlx_key" in shown + told) == (0, False)
    assert json.loads(keys.read()) == {"modellix": "mdlx_key", "deployment_key": own}
    assert vendors("list")[1].split()[:4] == ["VENDOR", "KEY", "modellix", "yes"]
    assert admin("add", "keyed")[0] == 0
    assert json.loads(vendors("remove", "modellix", "--json")[1]) == {"vendor": "modellix", "key": False}
    assert json.loads(keys.read()) == {"modellix": "", "deployment_key": own}


def test_a_secret_that_lost_its_form_is_not_written_over(
    vendors: Command, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deployment key in its version before is what the table of callers is encrypted under."""
    before = keys.read()
    keys.write("a key that was pasted over it all")
    monkeypatch.setattr(sys, "stdin", io.StringIO("mdlx_key"))
    code, _, complaint = vendors("set", "modellix")
    assert (code, "AWSPREVIOUS" in complaint, "pasted" in complaint) == (1, True, False)
    keys.write(before)


def test_the_command_is_a_script_too(command: Command) -> None:
    """What functions/OPERATE.md tells to type is there, and is the same program."""
    script = subprocess.run(
        [Path(sys.executable).parent / "taskhook", "--help"], capture_output=True, text=True, check=True
    )
    assert script.stdout == command("--help")[1]


def test_the_command_tells_its_version(command: Command) -> None:
    """As pyproject.toml has it, for a report."""
    assert command("--version") == (0, f"taskhook {version('taskhook')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["rotate", "mallory", "--token"], "`callers list` names them"),
        (["disable", "mallory"], "`callers list` names them"),
        (["enable", "mallory"], "`callers list` names them"),
        (["remove", "mallory"], "`callers list` names them"),
        (["update", "mallory", "--no-callback-url"], "`callers list` names them"),
        (["add", "taken"], "`callers rotate taken --token`"),
    ],
)
def test_what_cannot_be_done_is_an_error_that_says_what_can(
    admin: Command, arguments: list[str], advice: str
) -> None:
    """Exit code 1, nothing on stdout, one line on stderr."""
    admin("add", "taken")
    code, shown, complaint = admin(*arguments)
    assert (code, shown, complaint.count("\n")) == (1, "", 1)
    assert complaint.startswith("taskhook: ")
    assert advice in complaint


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["callers"],
        ["nope"],
        ["callers", "nope"],
        ["callers", "add"],
        ["callers", "add", "Not_A_Name"],
        ["callers", "add", "x", "--callback-url", "ftp://example.com"],
        ["callers", "rotate", "x"],
        ["callers", "rotate", "x", "--token", "--secret"],
        ["callers", "rotate", "x", "--token", "--overlap", "soon"],
        ["callers", "list", "--js"],
        ["callers", "update", "x"],
        ["callers", "update", "x", "--per-day", "-1"],
        ["callers", "update", "x", "--models", "a b"],
        ["callers", "update", "x", "--callback-url", "https://example.com", "--no-callback-url"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_and_names_the_help(command: Command, arguments: list[str]) -> None:
    """Before AWS is asked anything: there are no credentials here."""
    code, shown, complaint = command(*arguments)
    assert (code, shown) == (2, "")
    assert complaint.startswith("taskhook: ")
    assert "--help` has examples" in complaint


@pytest.mark.parametrize(
    ("environment", "advice"),
    [
        ({**ACCOUNT, "AWS_DEFAULT_REGION": ""}, "set AWS_DEFAULT_REGION"),
        ({**ACCOUNT, "AWS_DEFAULT_REGION": "us east"}, "format; set AWS_DEFAULT_REGION"),
        ({**ACCOUNT, "AWS_ENDPOINT_URL": "nowhere"}, "AWS_ENDPOINT_URL must be"),
        ({"AWS_DEFAULT_REGION": "us-east-1"}, "set AWS_PROFILE, or AWS_ACCESS_KEY_ID"),
        ({**ACCOUNT, "AWS_PROFILE": "mallory"}, "`aws configure list-profiles`"),
        ({**ACCOUNT, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "check the network"),
    ],
    ids=["region", "no region's name", "endpoint", "credentials", "profile", "network"],
)
def test_trouble_with_aws_says_what_to_do(command: Command, environment: dict[str, str], advice: str) -> None:
    """Instead of a trace."""
    code, shown, complaint = command("callers", "list", **environment)
    assert (code, shown, complaint.count("\n")) == (1, "", 1)
    assert advice in complaint


@pytest.mark.parametrize("name", ["nope", "deployed"])
def test_a_stack_that_is_not_there_is_told_with_where_it_was_looked_for(
    command: Command, account_url: str, deployed: str, name: str
) -> None:
    """Most often it is in another region."""
    elsewhere = ACCOUNT | {"AWS_DEFAULT_REGION": "eu-west-1" if name == "deployed" else stack.REGION}
    wanted = deployed if name == "deployed" else name
    code, _, complaint = command(
        "callers", "list", "--stack", wanted, **elsewhere, AWS_ENDPOINT_URL=account_url
    )
    assert code == 1
    assert f"no taskhook stack '{wanted}' in region {elsewhere['AWS_DEFAULT_REGION']}" in complaint
    assert "--stack" in complaint


def test_ctrl_c_leaves_at_once_and_without_a_trace() -> None:
    """Though AWS does not answer, and the request for it cannot be stopped."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        environment = (
            os.environ
            | NO_CONFIGURATION
            | ACCOUNT
            | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{deaf.getsockname()[1]}"}
        )
        command: Any = [sys.executable, "-m", "taskhook", "callers", "list"]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            deaf.settimeout(60)
            connection, _ = deaf.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                # AWS would be waited for for a minute, several times
                shown, complaint = process.communicate(timeout=45)
    assert (process.returncode, shown) == (130, "")
    assert complaint == "\ntaskhook: interrupted; `callers list` and `vendors list` tell what was done\n"


# A terminal of its own, whose keys are what is written to standard input; then how the command left it.
AT_A_TERMINAL = """
import pty, sys
pty.spawn([sys.executable, "-c", sys.argv[1], *sys.argv[2:]])
"""
AND_AFTERWARDS = """
import signal, subprocess, sys, termios
signal.signal(signal.SIGINT, lambda *_: None)
code = subprocess.call([sys.executable, "-m", "taskhook", *sys.argv[1:]])
print("exit code", code, "echo", bool(termios.tcgetattr(0)[3] & termios.ECHO))
"""


@pytest.mark.parametrize(
    ("typed", "code", "told"),
    [
        (b"\x03", 130, ""),
        (b"\x04", 1, "taskhook: no key was given; nothing was changed"),
        (b"mdlx_typed\n", 0, "modellix"),
    ],
    ids=["Ctrl-C", "Ctrl-D", "a key"],
)
def test_a_key_is_asked_for_and_the_terminal_left_as_it_was(
    deployed: str, account_url: str, keys: Keys, typed: bytes, code: int, told: str
) -> None:
    """Without a trace, showing what is typed again; and where no key was typed the secret is not written."""
    before = keys.read()
    environment = os.environ | NO_CONFIGURATION | ACCOUNT | {"AWS_ENDPOINT_URL": account_url}
    arguments = ("vendors", "set", "modellix", "--stack", deployed)
    command: Any = [sys.executable, "-c", AT_A_TERMINAL, AND_AFTERWARDS, *arguments]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        shown = b""
        while not shown.endswith(b"API key of modellix: "):
            piece = os.read(process.stdout.fileno(), 1000)
            assert piece, shown
            shown += piece
        process.stdin.write(typed)
        process.stdin.flush()
        shown += process.communicate(timeout=60)[0]
    assert f"exit code {code} echo True" in shown.decode()
    assert told in shown.decode()
    assert b"Traceback" not in shown
    assert b"mdlx_typed" not in shown
    assert (keys.read() == before) == (code != 0)
    keys.write(before)


def test_an_audit_counts_and_lists_what_breaks_a_promise(
    command: Command, deployed: str, account_url: str
) -> None:
    """Exit code 0 and counts where all is well, 1 and what to do where a task is not as it should be."""
    environment = {**ACCOUNT, "AWS_ENDPOINT_URL": account_url}
    session = boto3.Session(region_name=stack.REGION, aws_access_key_id="test", aws_secret_access_key="test")
    cloudformation, table = (
        session.client(name, endpoint_url=account_url) for name in ("cloudformation", "dynamodb")
    )
    described = cloudformation.describe_stack_resource(StackName=deployed, LogicalResourceId="Tasks")
    name = described["StackResourceDetail"]["PhysicalResourceId"]
    now = round(time.time() * 1000)
    fields: dict[str, Any] = {
        "caller": {"S": "shop"},
        "model": {"S": "alibaba/wan2.2-animate-mix"},
        "fingerprint": {"S": "f"},
        "accepted_at": {"N": str(now - 60_000)},
        "state": {"S": "watched"},
        "upstream_task_id": {"S": "up"},
        "work": {"S": "watch"},
        "work_at": {"S": f"{now}_tk_good"},
    }
    table.put_item(TableName=name, Item={"task_id": {"S": "tk_good"}, **fields})
    table.put_item(TableName=name, Item={"task_id": {"S": "budget#modellix#1"}, "used": {"N": "1"}})
    code, shown, note = command("audit", "--since", "1h", "--stack", deployed, "--json", **environment)
    assert (code, note) == (0, "")
    counts = {"running": 1, "ended": 0, "delivered": 0, "exhausted": 0, "unknown": 0, "findings": []}
    assert json.loads(shown) == {"accepted": 1, **counts}
    old = {"taken_at": {"N": str(now - 30 * 3_600_000)}}
    table.put_item(TableName=name, Item={"task_id": {"S": "tk_old"}, **fields, **old})
    table.put_item(TableName=name, Item={"task_id": {"S": "tk_odd"}, **fields, "state": {"S": "dreaming"}})
    code, shown, note = command("audit", "--stack", deployed, **environment)
    assert (code, note) == (1, "2 tasks break a promise\n")
    assert "tk_odd cannot be read; " in shown
    assert re.search(
        r"tk_old is watched since before .*, past MaxTaskHours; its vendor does not answer", shown
    )
    for task_id in ("tk_good", "tk_old", "tk_odd"):
        table.delete_item(TableName=name, Key={"task_id": {"S": task_id}})
