"""The admin command: `python -m taskhook callers add|list|rotate|disable NAME [--stack taskhook] [--json]`."""

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from taskhook import callers
from taskhook.adapters.dynamodb import DynamoCallers
from taskhook.adapters.surroundings import SystemClock
from taskhook.callers import CallerError
from taskhook.ports import Caller, StoreUnavailableError
from taskhook.targets import ForbiddenTargetError, TargetPolicy

FAILED = 1
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 (failed) or 2 (usage)."""
    options = _parser().parse_args(arguments)
    try:
        admin = DynamoCallers(boto3.client("dynamodb"), _callers_table(options.stack), clock=SystemClock())
        asyncio.run(_commands(options, admin))
    except (CallerError, StoreUnavailableError, BotoCoreError, ClientError) as error:
        print(f"taskhook: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 130
    return 0


def _commands(options: argparse.Namespace, admin: DynamoCallers) -> Coroutine[Any, Any, None]:
    now = datetime.now(UTC)
    match options.command:
        case "add":
            return _add(options, admin, now)
        case "list":
            return _list(options, admin)
        case "rotate":
            return _rotate(options, admin, now)
        case _:
            return _disable(options, admin)


async def _add(options: argparse.Namespace, admin: DynamoCallers, now: datetime) -> None:
    if options.callback_url:
        try:
            TargetPolicy(relaxed=options.callback_url.startswith("http:")).check_url(options.callback_url)
        except ForbiddenTargetError as error:
            raise CallerError(f"--callback-url {error}") from error
        if options.callback_url.startswith("http:"):
            print("warning: only the emulated account calls an http URL back", file=sys.stderr)
    caller, token = await callers.add(options.name, callback_url=options.callback_url, now=now, admin=admin)
    shown = {"caller": caller.caller, "token": token, "signing_secret": caller.secrets[0].value}
    _show(options, shown, note="Keep both now: the token is stored only as a hash, and the secret is not shown again here.")


async def _list(options: argparse.Namespace, admin: DynamoCallers) -> None:
    now = datetime.now(UTC)
    found = [_summary(caller, now) for caller in await admin.every()]
    if options.json:
        print(json.dumps(found))
    elif not found:
        print("no callers yet; make one with: python -m taskhook callers add NAME")
    else:
        columns = list(found[0])
        rows = [columns, *([str(row[column]) if row[column] is not None else "-" for column in columns] for row in found)]
        widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


async def _rotate(options: argparse.Namespace, admin: DynamoCallers, now: datetime) -> None:
    rotate = callers.rotate_token if options.token else callers.rotate_secret
    _, fresh = await rotate(options.name, overlap=options.overlap, now=now, admin=admin)
    what = "token" if options.token else "signing_secret"
    until = (now + options.overlap).isoformat(timespec="seconds")
    _show(options, {"caller": options.name, what: fresh, "old_valid_until": until}, note="Keep it now: it is not shown again here.")


async def _disable(options: argparse.Namespace, admin: DynamoCallers) -> None:
    caller = await callers.disable(options.name, admin=admin)
    note = "Its token is refused within 60 s; callbacks that are waiting still go out."
    _show(options, {"caller": caller.caller, "disabled": "true"}, note=note)


def _summary(caller: Caller, now: datetime) -> dict[str, str | int | None]:
    return {
        "caller": caller.caller,
        "disabled": "yes" if caller.disabled else "no",
        "tokens": sum(token.valid(now) for token in caller.tokens),
        "secrets": sum(secret.valid(now) for secret in caller.secrets),
        "callback_url": caller.callback_url,
        "created": caller.created_at.isoformat(timespec="seconds"),
    }


def _show(options: argparse.Namespace, facts: dict[str, str], *, note: str) -> None:
    if options.json:
        print(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {value}")
    print(note, file=sys.stderr)


def _callers_table(stack: str) -> str:
    """Find the stack's `Callers` table. Raises CallerError, botocore's errors."""
    try:
        described = boto3.client("cloudformation").describe_stack_resource(StackName=stack, LogicalResourceId="Callers")
    except ClientError as error:
        if error.response["Error"]["Code"] == "ValidationError":
            raise CallerError(f"there is no stack {stack!r} in this account and region; name it with --stack") from error
        raise
    table: str = described["StackResourceDetail"]["PhysicalResourceId"]
    return table


def _duration(text: str) -> timedelta:
    matched = re.fullmatch(r"([0-9]{1,4})([smhd])", text)
    if matched is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 24h, 30m or 7d")
    return timedelta(**{_UNITS[matched[2]]: int(matched[1])})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m taskhook", description="Administer a deployed taskhook.")
    areas = parser.add_subparsers(required=True, metavar="callers")
    area = areas.add_parser(
        "callers", help="who may submit tasks", description="Who may submit tasks, and how callbacks are signed."
    )
    commands = area.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--stack", default="taskhook", help="the stack's name (default: %(default)s)")
    common.add_argument("--json", action="store_true", help="print JSON, for programs")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("name", metavar="NAME", help="the caller's name: a-z, 0-9 and inner hyphens, at most 32")

    add = commands.add_parser("add", parents=[named, common], help="make a caller; shows its token and signing secret, once")
    add.add_argument("--callback-url", metavar="URL", help="where results go when a submit names no callback URL")
    commands.add_parser("list", parents=[common], help="list the callers")
    rotate = commands.add_parser("rotate", parents=[named, common], help="make a new token or signing secret")
    which = rotate.add_mutually_exclusive_group(required=True)
    which.add_argument("--token", action="store_true", help="a new token")
    which.add_argument("--secret", action="store_true", help="a new signing secret; old and new both sign during the overlap")
    rotate.add_argument(
        "--overlap", type=_duration, default=callers.DEFAULT_OVERLAP, metavar="24h", help="how long the old one stays valid"
    )
    commands.add_parser("disable", parents=[named, common], help="refuse the caller's token from now on")
    return parser


if __name__ == "__main__":
    sys.exit(main())
