"""The admin command `taskhook`, also `python -m taskhook`: callers, written with the operator's own AWS credentials."""

import argparse
import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, override

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import ValidationError

from taskhook import callers
from taskhook.adapters.dynamodb import DynamoCallers
from taskhook.adapters.surroundings import SystemClock
from taskhook.callers import CallerError
from taskhook.ports import Caller, StoreUnavailableError
from taskhook.targets import ForbiddenTargetError, TargetPolicy

FAILED, USAGE, INTERRUPTED = 1, 2, 130
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_PATIENCE = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3})

# What to do about an error of AWS's, by its code, or by the name of its class where it never came to an answer.
_LOG_IN = "log in with the AWS CLI, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_DENIED = (
    "these credentials need cloudformation:DescribeStackResource, "
    "and GetItem, PutItem, DeleteItem and Scan on the stack's Callers table"
)
_REACH = "check the network, the region's name and AWS_ENDPOINT_URL"
_ADVICE = {
    "NoCredentialsError": _LOG_IN,
    "PartialCredentialsError": _LOG_IN,
    "CredentialRetrievalError": _LOG_IN,
    "SSOTokenLoadError": _LOG_IN,
    "UnauthorizedSSOTokenError": _LOG_IN,
    "ExpiredToken": _LOG_IN,
    "ExpiredTokenException": _LOG_IN,
    "InvalidClientTokenId": _LOG_IN,
    "UnrecognizedClientException": _LOG_IN,
    "SignatureDoesNotMatch": _LOG_IN,
    "ProfileNotFound": "`aws configure list-profiles` names those there are; AWS_PROFILE chooses one",
    "NoRegionError": "set AWS_DEFAULT_REGION to the region that the stack was deployed to",
    "InvalidRegionError": "set AWS_DEFAULT_REGION to the region that the stack was deployed to",
    "AccessDenied": _DENIED,
    "AccessDeniedException": _DENIED,
    "EndpointConnectionError": _REACH,
    "ConnectTimeoutError": _REACH,
    "ConnectionClosedError": _REACH,
    "ProxyConnectionError": _REACH,
    "ReadTimeoutError": _REACH,
    "ResourceNotFoundException": "the stack's table is gone; deploy the stack again",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 (failed) or 2 (usage)."""
    options = _parser().parse_args(arguments)
    try:
        admin = DynamoCallers(_client("dynamodb"), _callers_table(options.stack), clock=SystemClock())
        asyncio.run(_commands(options, admin))
    except CallerError as error:
        return _failed(str(error))
    except StoreUnavailableError as error:
        return _failed(f"the table of callers did not answer: {error}", _ADVICE.get(str(error), "try again"))
    except (BotoCoreError, ClientError) as error:
        code = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
        return _failed(str(error), _ADVICE.get(code, "try again; `aws sts get-caller-identity` tells whether AWS can be reached"))
    except ValidationError as error:
        return _failed(f"a record in the table of callers cannot be read: {error}", "delete it there, and add the caller again")
    return 0


def _failed(what: str, advice: str = "") -> int:
    print("; ".join(part for part in (f"taskhook: {what.rstrip('.')}", advice) if part), file=sys.stderr)
    return FAILED


def _interrupted(_number: int, _frame: object) -> NoReturn:
    """Leave at once: a request under way is in a thread that nobody can stop."""
    os.write(sys.stderr.fileno(), b"\ntaskhook: interrupted; `callers list` tells what was done\n")
    os._exit(INTERRUPTED)


def _commands(options: argparse.Namespace, admin: DynamoCallers) -> Coroutine[Any, Any, None]:
    now = datetime.now(UTC)
    match options.command:
        case "add":
            return _add(options, admin, now)
        case "list":
            return _list(options, admin)
        case "rotate":
            return _rotate(options, admin, now)
        case "update":
            return _update(options, admin)
        case "remove":
            return _remove(options, admin)
        case _:
            return _switch(options, admin)


async def _add(options: argparse.Namespace, admin: DynamoCallers, now: datetime) -> None:
    _warn_of_http(options.callback_url)
    caller, token = await callers.add(options.name, callback_url=options.callback_url, now=now, admin=admin)
    shown = {"caller": caller.caller, "token": token, "signing_secret": caller.secrets[0].value}
    _show(options, shown, note="Keep both now: the token is stored only as a hash, and the secret is not shown again here.")


async def _list(options: argparse.Namespace, admin: DynamoCallers) -> None:
    now = datetime.now(UTC)
    found = [_summary(caller, now) for caller in await admin.every()]
    if options.json:
        print(json.dumps(found))
    elif not found:
        print("no callers yet; make one with: taskhook callers add NAME", file=sys.stderr)
    else:
        columns = [column.replace("_", " ").upper() for column in found[0]]
        rows = [columns, *([_cell(value) for value in row.values()] for row in found)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: str | bool | int | None) -> str:  # noqa: FBT001  # a row of the table has any of these
    words = {True: "yes", False: "no"}
    return "-" if value is None else words[value] if isinstance(value, bool) else str(value)


async def _rotate(options: argparse.Namespace, admin: DynamoCallers, now: datetime) -> None:
    rotate = callers.rotate_token if options.token else callers.rotate_secret
    caller, fresh = await rotate(options.name, overlap=options.overlap, now=now, admin=admin)
    what = "token" if options.token else "signing_secret"
    until = (now + options.overlap).isoformat(timespec="seconds")
    note = "Keep it now: it is not shown again here."
    if caller.disabled:
        note += f" The caller stays disabled: `taskhook callers enable {options.name}` lets it submit again."
    _show(options, {"caller": options.name, what: fresh, "old_valid_until": until, "disabled": caller.disabled}, note=note)


async def _update(options: argparse.Namespace, admin: DynamoCallers) -> None:
    _warn_of_http(options.callback_url)
    caller = await callers.update(options.name, callback_url=options.callback_url, admin=admin)
    note = "Submits see it within 60 s; tasks that were accepted before keep the URL they had."
    _show(options, {"caller": caller.caller, "callback_url": caller.callback_url}, note=note)


async def _switch(options: argparse.Namespace, admin: DynamoCallers) -> None:
    if options.command == "disable":
        caller = await callers.disable(options.name, admin=admin)
        note = "Its token is refused within 60 s; callbacks that are waiting still go out."
    else:
        caller = await callers.enable(options.name, admin=admin)
        note = "Its tokens that are still valid are taken again; `callers list` counts them, `callers rotate --token` makes one."
    _show(options, {"caller": caller.caller, "disabled": caller.disabled}, note=note)


async def _remove(options: argparse.Namespace, admin: DynamoCallers) -> None:
    caller = await callers.remove(options.name, admin=admin)
    note = (
        "Callbacks of its tasks cannot be signed any more, and end undelivered. Its tasks are kept as long as any, "
        "and a caller added under the same name would see them."
    )
    _show(options, {"caller": caller.caller, "removed": True}, note=note)


def _warn_of_http(callback_url: str | None) -> None:
    if callback_url and callback_url.startswith("http:"):
        print("taskhook: warning: only the emulated account calls an http URL back", file=sys.stderr)


def _summary(caller: Caller, now: datetime) -> dict[str, str | bool | int | None]:
    return {
        "caller": caller.caller,
        "disabled": caller.disabled,
        "tokens": sum(token.valid(now) for token in caller.tokens),
        "secrets": sum(secret.valid(now) for secret in caller.secrets),
        "callback_url": caller.callback_url,
        "created": caller.created_at.isoformat(timespec="seconds"),
    }


def _show(options: argparse.Namespace, facts: Mapping[str, str | bool | None], *, note: str) -> None:
    if options.json:
        print(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.replace('_', ' ').ljust(width)}  {_cell(value)}")
    print(note, file=sys.stderr)


def _callers_table(stack: str) -> str:
    """Find the stack's `Callers` table. Raises CallerError, botocore's errors."""
    client = _client("cloudformation")
    try:
        described = client.describe_stack_resource(StackName=stack, LogicalResourceId="Callers")
    except ClientError as error:
        if error.response["Error"]["Code"] != "ValidationError":
            raise
        where = f"in region {client.meta.region_name} of this account"
        advice = "name it with --stack, its region with AWS_DEFAULT_REGION; `make deploy` makes one"
        raise CallerError(f"there is no taskhook stack {stack!r} {where}; {advice}") from error
    table: str = described["StackResourceDetail"]["PhysicalResourceId"]
    return table


def _client(service: Any) -> Any:
    try:
        return boto3.client(service, config=_PATIENCE)
    except ValueError as error:  # an address that is none
        advice = "set AWS_DEFAULT_REGION to the region that the stack was deployed to; AWS_ENDPOINT_URL must be a URL, or not set"
        raise CallerError(f"{error}; {advice}") from error


def _duration(text: str) -> timedelta:
    matched = re.fullmatch(r"([0-9]{1,4})([smhd])", text)
    if matched is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 24h, 30m or 7d")
    return timedelta(**{_UNITS[matched[2]]: int(matched[1])})


def _name(text: str) -> str:
    if callers.NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a caller's name: use 1 to 32 of a-z, 0-9 and inner hyphens")
    return text


def _callback_url(text: str) -> str:
    try:
        TargetPolicy(relaxed=text.startswith("http:")).check_url(text)
    except ForbiddenTargetError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


class _Parser(argparse.ArgumentParser):
    """A parser whose help keeps its examples as they are written, and whose errors name it."""

    def __init__(self, *, examples: str = "", **more: Any) -> None:
        epilog = f"examples:\n{examples}" if examples else None
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, epilog=epilog, **more)

    @override
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"taskhook: {message}\n{self.format_usage()}`{self.prog} --help` has examples\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="taskhook",
        description=(
            "Administer a deployed taskhook. `make tools` puts this command into .venv/bin; `python -m taskhook` is the same.\n"
            "Credentials and region are AWS's own: AWS_PROFILE, AWS_DEFAULT_REGION, …"
        ),
        examples="""\
  taskhook callers add shop
  taskhook callers list --json

exit codes: 0 done; 1 failed, and stderr says what to do; 2 called wrongly; 130 interrupted""",
    )
    areas = parser.add_subparsers(required=True, metavar="AREA", title="what to administer")
    area = areas.add_parser(
        "callers",
        help="who may submit tasks",
        description="Who may submit tasks, and how callbacks are signed.",
        examples="""\
  taskhook callers add shop --callback-url https://shop.example.com/hook
  taskhook callers list
  taskhook callers rotate shop --secret --overlap 7d
  taskhook callers update shop --callback-url https://shop.example.com/new
  taskhook callers disable shop""",
    )
    commands = area.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    common = _Parser(add_help=False)
    common.add_argument("--stack", default="taskhook", help="the stack's name (default: %(default)s)")
    common.add_argument("--json", action="store_true", help="print JSON, for programs")
    named = _Parser(add_help=False)
    named.add_argument("name", metavar="NAME", type=_name, help="the caller's name: a-z, 0-9 and inner hyphens, at most 32")

    add = commands.add_parser(
        "add",
        parents=[named, common],
        help="make a caller",
        description="Make a caller, and show its token and signing secret, once.",
        examples="""\
  taskhook callers add shop
  taskhook callers add shop --callback-url https://shop.example.com/hook
  taskhook callers add shop --stack taskhook-test --json > shop.json""",
    )
    add.add_argument(
        "--callback-url", metavar="URL", type=_callback_url, help="where results go when a submit names no callback URL"
    )
    commands.add_parser(
        "list",
        parents=[common],
        help="list the callers",
        description="List the callers: how many tokens and secrets are valid now, and where results go by default.",
        examples="""\
  taskhook callers list
  taskhook callers list --json | jq -r '.[] | select(.disabled | not) | .caller'""",
    )
    rotate = commands.add_parser(
        "rotate",
        parents=[named, common],
        help="make a new token or signing secret",
        description="Make a new token or signing secret, and show it, once. The old one stays valid during the overlap.",
        examples="""\
  taskhook callers rotate shop --token
  taskhook callers rotate shop --secret --overlap 7d
  taskhook callers rotate shop --token --overlap 0s     it has leaked""",
    )
    which = rotate.add_mutually_exclusive_group(required=True)
    which.add_argument("--token", action="store_true", help="a new token")
    which.add_argument("--secret", action="store_true", help="a new signing secret; old and new both sign during the overlap")
    rotate.add_argument(
        "--overlap",
        type=_duration,
        default=callers.DEFAULT_OVERLAP,
        metavar="24h",
        help="how long the old one stays valid: a number with s, m, h or d (default: 24h)",
    )
    update = commands.add_parser(
        "update",
        parents=[named, common],
        help="change where results go by default",
        description="Change where results go when a submit names no callback URL.",
        examples="""\
  taskhook callers update shop --callback-url https://shop.example.com/hook
  taskhook callers update shop --no-callback-url""",
    )
    where = update.add_mutually_exclusive_group(required=True)
    where.add_argument("--callback-url", metavar="URL", type=_callback_url, help="the new default")
    where.add_argument("--no-callback-url", action="store_true", help="none: tasks without a URL of their own are only watched")
    commands.add_parser(
        "disable",
        parents=[named, common],
        help="refuse the caller's token from now on",
        description="Refuse the caller's token from now on. Callbacks that are waiting still go out, signed.",
        examples="  taskhook callers disable shop",
    )
    commands.add_parser(
        "enable",
        parents=[named, common],
        help="take a disabled caller's token again",
        description="Take the tokens of a disabled caller again, those that are still valid.",
        examples="  taskhook callers enable shop",
    )
    commands.add_parser(
        "remove",
        parents=[named, common],
        help="delete a disabled caller",
        description="Delete a disabled caller, its tokens and signing secrets. Its callbacks cannot be signed any more.",
        examples="  taskhook callers remove shop",
    )
    return parser


def command() -> NoReturn:
    """Be the program `taskhook`."""
    signal.signal(signal.SIGINT, _interrupted)
    sys.exit(main())


if __name__ == "__main__":
    command()
