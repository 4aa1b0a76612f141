"""`make deploy` and `make destroy`: every check first, with a sentence each; then what takes minutes.

Then what to do next.

STACK, VENDOR_KEY_FILE, ARCHITECTURE, PARAMETERS, CONFIRM and CONFIRM_DATA are read from the environment,
where make puts what it was given. With STACK and VENDOR_KEY_FILE nothing is asked. ARGS=--help tells all of
this. Exit codes: 0 done, 1 failed, 2 called wrongly, 130 interrupted.
"""

from layers.interruption import INTERRUPTED, PROGRAM, at_once, orderly

if __name__ in PROGRAM:
    at_once()

import asyncio
import difflib
import getpass
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from layers import template
from taskhook.adapters.aws.secrets import StackSecret
from taskhook.admin import EXPECTED, AdminError, checked_key, client, explain, resource
from taskhook.core.errors import KeyUnusableError
from taskhook.vendors.modellix import MODELLIX

ROOT = Path(__file__).parents[1]
SAM: tuple[str | Path, ...] = (ROOT / ".tools/sam/bin/sam",)
WORK = ROOT / ".aws-sam"
FAILED, USAGE = 1, 2
AMPLE = 1000  # invocations at once, which AWS gives an account that asks; a new one has 10
_QUOTA = "L-B99A9384"  # Lambda's concurrent executions
_LEFT_AFTER_S = 86_400
_SET_KEY = f".venv/bin/taskhook vendors set {MODELLIX.name}"
_STACK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,127}")
# What CloudFormation calls a stack that `sam deploy` can bring up to date, or make.
_READY = {
    "CREATE_COMPLETE",
    "UPDATE_COMPLETE",
    "UPDATE_ROLLBACK_COMPLETE",
    "IMPORT_COMPLETE",
    "IMPORT_ROLLBACK_COMPLETE",
    "REVIEW_IN_PROGRESS",
}


class UsageError(Exception):
    """The command was called wrongly; the text says how it is called."""


class Terminal:
    """The operator, where there is one."""

    @property
    def is_there(self) -> bool:
        """Whether questions can be answered."""
        return sys.stdin.isatty()

    def ask(self, question: str) -> str:
        """Ask for a line."""
        return input(question).strip()

    def ask_secretly(self, question: str) -> str:
        """Ask for a line that is not shown."""
        return getpass.getpass(question)


@dataclass(frozen=True)
class Present:
    """A stack as it is now."""

    status: str
    parameters: Mapping[str, str]
    outputs: Mapping[str, str]

    @property
    def is_taskhook(self) -> bool:
        """Whether it is a deployment, or was made by importing what one has left, and has no outputs yet."""
        return self.status == "IMPORT_COMPLETE" or "CallersTable" in self.outputs


def main(
    arguments: Sequence[str] | None = None,
    environment: Mapping[str, str] = os.environ,
    *,
    terminal: Terminal | None = None,
) -> int:
    """Deploy or destroy; give the exit code."""
    verb, *more = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"}.intersection(more):
        print(_HELP[verb] + (_parameters_help() if verb == "deploy" else ""))
        return 0
    try:
        {"deploy": deploy, "destroy": destroy}[verb](more, environment, terminal or Terminal())
    except UsageError as error:
        print(f"make {verb}: {error}", file=sys.stderr)
        return USAGE
    except EXPECTED as error:
        print(f"make {verb}: {explain(error)}", file=sys.stderr)
        return FAILED
    except (KeyboardInterrupt, EOFError):
        print(
            f"\nmake {verb}: interrupted; what CloudFormation has begun goes on without us", file=sys.stderr
        )
        return INTERRUPTED
    return 0


_HELP = {
    "deploy": """\
make deploy [STACK=name] [VENDOR_KEY_FILE=file] [ARCHITECTURE=arm64|x86_64] [ARGS="Name=Value ..."]

Checks everything, builds, deploys, and says what to do next. What is not given is asked for, the vendor's
key included. Account and region are AWS's own: AWS_PROFILE, AWS_DEFAULT_REGION, ...

  make deploy STACK=taskhook VENDOR_KEY_FILE=key.txt ARGS="Alarms=on AlarmEmail=ops@example.com"

What others have typed belongs into the variable PARAMETERS, which is read as ARGS is, but by no shell.

Parameters; one that is not named keeps its value, or at first has the default:
""",
    "destroy": """\
make destroy [STACK=name] [CONFIRM=name] [CONFIRM_DATA=name]

Deletes a stack, once its name was typed. Tables, keys and results stay, and are listed, unless the name is
typed again. Without a terminal, CONFIRM and CONFIRM_DATA are the name typed.""",
}


def _parameters_help() -> str:
    """Give a line for each parameter of the template: its name, its default, and what it is."""
    known = template.load()["Parameters"]
    width = max(map(len, known))
    return "".join(
        f"\n  {name.ljust(width)}  {one['Description']} [{one.get('Default', '') or 'none'}]"
        for name, one in known.items()
    )


# --- deploy ---------------------------------------------------------------------------------------


def deploy(arguments: Sequence[str], environment: Mapping[str, str], terminal: Terminal) -> None:
    """Check everything, build, deploy, store the vendor's key, and say what to do next.

    Raises UsageError and `EXPECTED`.
    """
    given = read_parameters([*arguments, *environment.get("PARAMETERS", "").split()], environment)
    key = _key_of_file(environment.get("VENDOR_KEY_FILE", ""))
    account, region = _account()
    stack = _stack_name(environment, terminal, default="taskhook")
    print(f"account {account}, region {region}, stack {stack}", file=sys.stderr)
    _say_quota()
    present = _present(stack)
    parameters = _settled(given, present, account)
    key = key or _asked_key(stack, present, terminal)

    WORK.mkdir(exist_ok=True)
    for left in WORK.glob("deploy-*"):  # by one that was killed
        if left.stat().st_mtime < time.time() - _LEFT_AFTER_S:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="deploy-", dir=WORK) as folder:
        file, built = Path(folder, "parameters.yaml"), Path(folder, "build")
        file.write_text(json.dumps(parameters))  # a file, so that no value needs quoting
        common = ("--config-file", ROOT / "samconfig.toml", "--parameter-overrides", f"file://{file}")
        build = ("build", *common, "--template-file", template.TEMPLATE, "--build-dir", built)
        _sam(build, parameters["Architecture"], "the build failed; nothing was deployed")
        upload = (
            "deploy",
            *common,
            "--template-file",
            built / "template.yaml",
            "--stack-name",
            stack,
            "--region",
            region,
        )
        _sam(
            upload, parameters["Architecture"], "the deployment failed; CloudFormation's reason stands above"
        )
    if key:
        _store_key(stack, key)
    key_is_missing = not key and not _has_key(stack, unreadable_is_none=terminal.is_there)
    _say_what_next(stack, _present(stack), key_is_missing=key_is_missing)


def read_parameters(arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Read `Name=Value …`, each checked against the template. Raises UsageError."""
    known: dict[str, dict[str, Any]] = template.load()["Parameters"]
    given: dict[str, str] = {}
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if not separator:
            raise UsageError(f'{argument!r} is not Name=Value; write ARGS="Name=Value Name=Value …"')
        if name not in known:
            close = {one.lower(): one for one in known}
            near = difflib.get_close_matches(name.lower(), close, n=1)
            hint = f"; did you mean {close[near[0]]}?" if near else "."
            raise UsageError(f"there is no parameter {name!r}{hint} The parameters are {', '.join(known)}")
        if name in given:
            raise UsageError(f"{name} is given twice")
        given[name] = value
    architecture = environment.get("ARCHITECTURE", "")
    if architecture and given.setdefault("Architecture", architecture) != architecture:
        raise UsageError(
            f"ARCHITECTURE={architecture} and Architecture={given['Architecture']} contradict each other; "
            "give one"
        )
    for name, value in given.items():
        if (wrong := _fault(known[name], value)) is not None:
            raise UsageError(f"{name}={value}: {wrong}")
    return given


def _fault(parameter: Mapping[str, Any], value: str) -> str | None:
    """Say what CloudFormation would refuse a value for, after minutes."""
    allowed = [str(one) for one in parameter.get("AllowedValues", ())]
    if allowed and value not in allowed:
        return f"it must be one of {', '.join(allowed)}"
    if "AllowedPattern" in parameter and not re.fullmatch(parameter["AllowedPattern"], value):
        return f"it must be {parameter.get('ConstraintDescription', parameter['AllowedPattern'])}"
    if len(value) > parameter.get("MaxLength", len(value)):
        return f"it must have at most {parameter['MaxLength']} characters"
    if parameter["Type"] == "Number" and not allowed:
        least, most = parameter["MinValue"], parameter["MaxValue"]
        if not re.fullmatch(r"[0-9]+", value) or not least <= int(value) <= most:
            return f"it must be a number from {least} to {most}"
    return None


def _key_of_file(path: str) -> str:
    if not path:
        return ""
    try:
        return checked_key(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise AdminError(f"VENDOR_KEY_FILE={path} cannot be read: {why}") from error


def _account() -> tuple[str, str]:
    """Tell whose credentials these are, and the region. Raises what `explain` explains."""
    region: str = client("cloudformation").meta.region_name  # STS would be content with none
    account: str = client("sts").get_caller_identity()["Account"]
    return account, region


def _say_quota() -> None:
    """Say what to ask for where the account runs few invocations at once.

    A quota that cannot be read stops nothing.
    """
    try:
        runs: int = client("lambda").get_account_settings()["AccountLimit"]["ConcurrentExecutions"]
    except EXPECTED as error:
        print(f"the account's quota of Lambda could not be read: {explain(error)}", file=sys.stderr)
        return
    if runs < AMPLE:
        print(
            f"this account runs {runs} invocations of Lambda at once, those of all its functions together, "
            "as new ones do."
            f" That is enough to begin with; before more than five submits a second, ask for {AMPLE}:\n"
            "  aws service-quotas request-service-quota-increase --service-code lambda"
            f" --quota-code {_QUOTA} --desired-value {AMPLE}",
            file=sys.stderr,
        )


def _stack_name(environment: Mapping[str, str], terminal: Terminal, *, default: str = "") -> str:
    name = environment.get("STACK", "")
    if not name:
        if not terminal.is_there:
            raise UsageError("there is no terminal to ask for the stack's name; give it: STACK=taskhook")
        shown = f" [{default}]" if default else ""
        name = terminal.ask(f"Name of the stack{shown}: ") or default
    if not _STACK_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a stack's name: a letter, then letters, digits and hyphens, at most 128"
        )
    return name


def _present(stack: str) -> Present | None:
    """Look at a stack as it is now; None where there is none. Raises botocore's errors."""
    try:
        [described] = client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    except ClientError as error:
        if error.response["Error"]["Code"] == "ValidationError":
            return None
        raise
    return Present(
        status=described["StackStatus"],
        parameters={one["ParameterKey"]: one["ParameterValue"] for one in described.get("Parameters", ())},
        outputs={one["OutputKey"]: one["OutputValue"] for one in described.get("Outputs", ())},
    )


def _settled(given: Mapping[str, str], present: Present | None, account: str) -> dict[str, str]:
    """Decide what is built and deployed: what is given, and the architecture, which both have to know.

    Raises AdminError.
    """
    if present is not None:
        if present.status not in _READY:
            raise AdminError(
                f"the stack is in state {present.status}, which no deployment can change; "
                f"{_way_out(present.status)}"
            )
        if present.status != "REVIEW_IN_PROGRESS" and not present.is_taskhook:
            raise AdminError(
                "there is a stack of this name that is no taskhook; choose another name with STACK=…"
            )
    declared = template.load()
    defaults = {name: str(parameter.get("Default", "")) for name, parameter in declared["Parameters"].items()}
    before = present.parameters if present else {}
    effective = defaults | {name: value for name, value in before.items() if name in defaults} | dict(given)
    for rule in declared["Rules"].values():
        facts = effective | {"AWS::AccountId": account}
        if _holds(rule["RuleCondition"], facts):
            for assertion in rule["Assertions"]:
                if not _holds(assertion["Assert"], facts):
                    raise AdminError(assertion["AssertDescription"])
    return {**given, "Architecture": effective["Architecture"]}


def _way_out(status: str) -> str:
    if status.endswith("_IN_PROGRESS"):
        return "wait until what is under way has ended"
    if status == "UPDATE_ROLLBACK_FAILED":
        return "`aws cloudformation continue-update-rollback --stack-name …` mends it"
    return "`make destroy STACK=…` removes it"


def _holds(condition: Any, facts: Mapping[str, str]) -> bool:
    """Evaluate what the template's rules are made of."""
    [(function, argument)] = condition.items()
    match function:
        case "Fn::Equals":
            left, right = (facts[one["Ref"]] if isinstance(one, dict) else str(one) for one in argument)
            return left == right
        case "Fn::Not":
            return not _holds(argument[0], facts)
        case "Fn::And":
            return all(_holds(one, facts) for one in argument)
        case "Fn::Or":
            return any(_holds(one, facts) for one in argument)
        case _:
            raise NotImplementedError(function)


def _asked_key(stack: str, present: Present | None, terminal: Terminal) -> str:
    """Ask for the vendor's key; none is needed where one is in place. Raises UsageError, AdminError."""
    in_place = (
        present is not None and present.is_taskhook and _has_key(stack, unreadable_is_none=terminal.is_there)
    )
    if terminal.is_there:
        kept = (
            "Enter: the one in place stays"
            if in_place
            else "Enter: later, with `taskhook vendors set modellix`"
        )
        typed = terminal.ask_secretly(f"Vendor key ({kept}): ")
        return checked_key(typed) if typed.strip() else ""
    if not in_place:
        raise UsageError(
            "there is no terminal to ask for the vendor's key, and no key in place; give a file: "
            "VENDOR_KEY_FILE=…"
        )
    return ""


def _secret(stack: str) -> StackSecret:
    return StackSecret(client("secretsmanager"), resource(stack, "Secret"))


def _has_key(stack: str, *, unreadable_is_none: bool = False) -> bool:
    try:
        return bool(asyncio.run(_secret(stack).keys()).get(MODELLIX.name))
    except KeyUnusableError as error:
        if unreadable_is_none:
            return False
        raise AdminError(f"the stack's secret cannot be used: {error}") from error


def _store_key(stack: str, key: str) -> None:
    try:
        asyncio.run(_secret(stack).store(MODELLIX.name, key))
    except EXPECTED as error:
        what = "the stack is deployed, but the vendor's key could not be stored"
        raise AdminError(f"{what}: {explain(error)}; then `{_SET_KEY} --stack {stack}`") from error


def _sam(arguments: Sequence[str | Path], architecture: str, failure: str) -> None:
    """Run SAM; its output is the operator's to see. Raises AdminError with `failure`."""
    uv = shutil.which("uv") or str(ROOT / ".tools/uv/bin/uv")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    # The layer's makefile is told no parameter, so that the architecture goes beside it.
    environment = os.environ | {
        "ARCHITECTURE": architecture,
        "UV": uv,
        "PATH": path,
        "SAM_CLI_TELEMETRY": "0",
    }
    ended = subprocess.run([*SAM, *arguments], env=environment, cwd=ROOT, check=False)  # noqa: S603
    if ended.returncode != 0:
        raise AdminError(failure)


def _say_what_next(stack: str, present: Present | None, *, key_is_missing: bool) -> None:
    endpoint = present.outputs["Endpoint"] if present else ""
    task = {
        "image_url": "https://example.com/actor.jpg",
        "video_url": "https://example.com/scene.mp4",
        "mode": "wan-std",
        "callback_url": "https://you.example.com/hook",
    }
    if key_is_missing:
        print(f"\nThere is no vendor's key yet, and every task waits for it:\n\n  {_SET_KEY} --stack {stack}")
    print(f"""
endpoint  {endpoint}
console   {endpoint}/
docs      {endpoint}/docs

Next, a caller with its token, and a task with files of yours:

  make caller NAME=me STACK={stack}
  curl -sS {endpoint}/api/v1/alibaba/wan2.2-animate-mix \\
    -H 'Authorization: Bearer TOKEN' -H 'Content-Type: application/json' -H 'Idempotency-Key: first' \\
    -d '{json.dumps(task)}'""")


# --- destroy --------------------------------------------------------------------------------------


def destroy(arguments: Sequence[str], environment: Mapping[str, str], terminal: Terminal) -> None:
    """Delete a stack; say what stays, and delete that too only when the name is given once more.

    Raises UsageError, `EXPECTED`.
    """
    if arguments:
        raise UsageError(f"{arguments[0]!r} is not known; it takes STACK, CONFIRM and CONFIRM_DATA")
    account, region = _account()
    stack = _stack_name(environment, terminal)
    present = _present(stack)
    if present is None:
        raise AdminError(f"there is no stack {stack!r} in region {region} of account {account}")
    if "CallersTable" not in present.outputs and not _declares_callers(stack):
        raise AdminError(f"the stack {stack!r} is no taskhook; delete it where it came from")
    kept = _kept(stack)
    print(
        f"This deletes the stack {stack} in region {region} of account {account}. {len(kept)} of its "
        "resources stay:",
        file=sys.stderr,
    )
    print("".join(f"  {one}\n" for one in kept), end="", file=sys.stderr)
    if not _confirmed(stack, environment, "CONFIRM", terminal, "Type the stack's name to delete it: "):
        raise AdminError(
            "nothing was deleted, for the name was not given once more (without a terminal: CONFIRM=…)"
        )
    _delete(stack)
    print(
        f"The stack {stack} is deleted. What stays costs its storage, and the secret $0.40 a month.",
        file=sys.stderr,
    )
    question = "Type the name again to delete tasks, callers, keys and results for good (Enter keeps them): "
    if not kept or not _confirmed(stack, environment, "CONFIRM_DATA", terminal, question):
        return
    left = [one for one in kept if not one.deleted()]
    if left:
        raise AdminError(
            f"these could not be deleted: {', '.join(one.name for one in left)}; try it in the AWS console"
        )
    print(
        "Deleted. The secret can be restored for 30 days (aws secretsmanager restore-secret).",
        file=sys.stderr,
    )


@dataclass(frozen=True)
class Kept:
    """A resource that outlives its stack."""

    kind: str
    name: str

    def __str__(self) -> str:
        """Say what it is."""
        return f"{self.kind.split('::')[1]} {self.kind.split('::')[2].lower()} {self.name}"

    def deleted(self) -> bool:
        """Delete it for good; False where that failed, which is told."""
        try:
            match self.kind:
                case "AWS::DynamoDB::Table":
                    client("dynamodb").delete_table(TableName=self.name)
                case "AWS::SecretsManager::Secret":
                    client("secretsmanager").delete_secret(SecretId=self.name, RecoveryWindowInDays=30)
                case "AWS::S3::Bucket":
                    _delete_bucket(self.name)
                case _:
                    return False
        except EXPECTED as error:
            print(f"make destroy: {self}: {explain(error)}", file=sys.stderr)
            return False
        return True


def _declares_callers(stack: str) -> bool:
    """Tell a stack of this template by its resources, where it has no outputs.

    One that has failed has none, nor has one that was imported and never deployed.
    """
    resources = client("cloudformation").describe_stack_resources(StackName=stack)["StackResources"]
    declared = {(one["LogicalResourceId"], one["ResourceType"]) for one in resources}
    callers, tasks = (("Callers", "AWS::DynamoDB::Table"), ("Tasks", "AWS::DynamoDB::Table"))
    failed = {callers, ("SubmitRole", "AWS::IAM::Role")}
    imported = {callers, tasks, ("Secret", "AWS::SecretsManager::Secret")}
    return failed <= declared or imported <= declared


def _kept(stack: str) -> list[Kept]:
    """List what the stack has of what the template keeps."""
    declared = template.load()["Resources"]
    keeps = {name for name, one in declared.items() if one.get("DeletionPolicy", "").startswith("Retain")}
    resources = client("cloudformation").describe_stack_resources(StackName=stack)["StackResources"]
    return [
        Kept(one["ResourceType"], one["PhysicalResourceId"])
        for one in resources
        if one["LogicalResourceId"] in keeps and one.get("PhysicalResourceId")
    ]


def _confirmed(
    stack: str, environment: Mapping[str, str], variable: str, terminal: Terminal, question: str
) -> bool:
    if variable in environment:
        return environment[variable] == stack
    return terminal.is_there and terminal.ask(question) == stack


def _delete(stack: str) -> None:
    cloudformation = client("cloudformation")
    [described] = cloudformation.describe_stacks(StackName=stack)["Stacks"]
    name = described["StackId"]  # by its name it cannot be asked for any more
    cloudformation.delete_stack(StackName=name)
    print("deleting; some minutes …", file=sys.stderr)
    try:
        cloudformation.get_waiter("stack_delete_complete").wait(
            StackName=name, WaiterConfig={"Delay": 5, "MaxAttempts": 360}
        )
    except EXPECTED as error:
        events = cloudformation.describe_stack_events(StackName=name)["StackEvents"]
        reasons = [
            f"{one['LogicalResourceId']}: {one.get('ResourceStatusReason', '')}"
            for one in events
            if one["ResourceStatus"] == "DELETE_FAILED"
        ]
        raise AdminError(f"the stack could not be deleted: {'; '.join(reasons) or explain(error)}") from error


def _delete_bucket(name: str) -> None:
    s3 = client("s3")
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=name):
        found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
        if found:
            objects = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in found]
            s3.delete_objects(Bucket=name, Delete={"Objects": objects, "Quiet": True})
    s3.delete_bucket(Bucket=name)


if __name__ == "__main__":
    orderly(main)
