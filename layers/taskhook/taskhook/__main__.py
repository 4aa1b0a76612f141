"""The admin command `taskhook`, also `python -m taskhook`: callers, written with the operator's own AWS credentials."""

import argparse
import asyncio
import getpass
import json
import os
import re
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, override

from taskhook.adapters.aws.secrets import DEPLOYMENT_KEY, VENDORS, StackSecret, StoredKey
from taskhook.adapters.clock import SystemClock
from taskhook.adapters.dynamodb.callers import DynamoCallers
from taskhook.admin import EXPECTED, AdminError, checked_key, client, explain, resource
from taskhook.core import callers
from taskhook.core.errors import ForbiddenTargetError
from taskhook.core.ports import Caller
from taskhook.core.targets import TargetPolicy

FAILED, USAGE, INTERRUPTED = 1, 2, 130
type _Fact = str | bool | int | None
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 (failed) or 2 (usage)."""
    options = _parser().parse_args(arguments)
    try:
        asyncio.run(_vendors(options) if options.area == "vendors" else _callers(options))
    except EXPECTED as error:
        print(f"taskhook: {explain(error)}", file=sys.stderr)
        return FAILED
    return 0


def _interrupted(_number: int, _frame: object) -> NoReturn:
    """Leave at once: a request under way is in a thread that cannot be stopped."""
    os.write(
        sys.stderr.fileno(),
        b"\ntaskhook: interrupted; `callers list` and `vendors list` tell what was done\n",
    )
    os._exit(INTERRUPTED)


def _callers(options: argparse.Namespace) -> Coroutine[Any, Any, None]:
    now = datetime.now(UTC)
    key = StoredKey(StackSecret(client("secretsmanager"), resource(options.stack, "Secret")), DEPLOYMENT_KEY)
    admin = DynamoCallers(
        client("dynamodb"), resource(options.stack, "Callers"), clock=SystemClock(), deployment_key=key
    )
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
    caller, token, secret = await callers.add(
        options.name, callback_url=options.callback_url, now=now, admin=admin
    )
    shown = {"caller": caller.caller, "token": token, "signing_secret": secret}
    _show(
        options,
        shown,
        note="Keep both now: the token is stored only as a hash, and the secret is not shown again here.",
    )


async def _list(options: argparse.Namespace, admin: DynamoCallers) -> None:
    now = datetime.now(UTC)
    found = [_summary(caller, now) for caller in await admin.every()]
    _table(options, found, nothing="no callers yet; make one with: taskhook callers add NAME")


def _table(options: argparse.Namespace, found: Sequence[Mapping[str, _Fact]], *, nothing: str = "") -> None:
    if options.json:
        print(json.dumps(found))
    elif not found:
        print(nothing, file=sys.stderr)
    else:
        columns = [column.replace("_", " ").upper() for column in found[0]]
        rows = [columns, *([_cell(value) for value in row.values()] for row in found)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: _Fact) -> str:
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
    _show(
        options,
        {"caller": options.name, what: fresh, "old_valid_until": until, "disabled": caller.disabled},
        note=note,
    )


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


async def _vendors(options: argparse.Namespace) -> None:
    secret = StackSecret(client("secretsmanager"), resource(options.stack, "Secret"))
    if options.command == "list":
        keys = await secret.keys()
        _table(options, [{"vendor": vendor, "key": bool(keys.get(vendor))} for vendor in VENDORS])
        return
    key = checked_key(_typed_or_piped(options.name)) if options.command == "set" else ""
    await secret.store(options.name, key)
    use = (
        "read it when the vendor refuses the one they hold"
        if key
        else "that hold the old one go on with it while they are warm"
    )
    _show(options, {"vendor": options.name, "key": bool(key)}, note=f"Functions {use}.")


def _typed_or_piped(vendor: str) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.read()
    at_once = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # getpass has to give the terminal its echo back
    try:
        return getpass.getpass(f"API key of {vendor}: ")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except EOFError as error:
        raise AdminError("no key was given; nothing was changed") from error
    finally:
        signal.signal(signal.SIGINT, at_once)


def _warn_of_http(callback_url: str | None) -> None:
    if callback_url and callback_url.startswith("http:"):
        print("taskhook: warning: only the emulated account calls an http URL back", file=sys.stderr)


def _summary(caller: Caller, now: datetime) -> dict[str, _Fact]:
    return {
        "caller": caller.caller,
        "disabled": caller.disabled,
        "tokens": sum(token.valid(now) for token in caller.tokens),
        "secrets": sum(secret.valid(now) for secret in caller.secrets),
        "callback_url": caller.callback_url,
        "created": caller.created_at.isoformat(timespec="seconds"),
    }


def _show(options: argparse.Namespace, facts: Mapping[str, _Fact], *, note: str) -> None:
    if options.json:
        print(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.replace('_', ' ').ljust(width)}  {_cell(value)}")
    print(note, file=sys.stderr)


def _duration(text: str) -> timedelta:
    matched = re.fullmatch(r"([0-9]{1,4})([smhd])", text)
    if matched is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 24h, 30m or 7d")
    return timedelta(**{_UNITS[matched[2]]: int(matched[1])})


def _name(text: str) -> str:
    if callers.NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a caller's name: use 1 to 32 of a-z, 0-9 and inner hyphens"
        )
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
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, epilog=epilog, **more
        )

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
    areas = parser.add_subparsers(dest="area", required=True, metavar="AREA", title="what to administer")
    area = areas.add_parser(
        "callers",
        help="those that may submit tasks",
        description="The callers: what may submit tasks, and how callbacks are signed.",
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
    named.add_argument(
        "name", metavar="NAME", type=_name, help="the caller's name: a-z, 0-9 and inner hyphens, at most 32"
    )

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
        "--callback-url",
        metavar="URL",
        type=_callback_url,
        help="where results go when a submit names no callback URL",
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
    which.add_argument(
        "--secret", action="store_true", help="a new signing secret; old and new both sign during the overlap"
    )
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
    where.add_argument(
        "--no-callback-url",
        action="store_true",
        help="none: tasks without a URL of their own are only watched",
    )
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
    _add_vendors(areas, common)
    return parser


def _add_vendors(areas: Any, common: argparse.ArgumentParser) -> None:
    area = areas.add_parser(
        "vendors",
        help="the vendors' API keys",
        description="The vendors' API keys, in the stack's secret.",
        examples="""\
  taskhook vendors list
  taskhook vendors set modellix < key.txt""",
    )
    commands = area.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    named = _Parser(add_help=False)
    named.add_argument("name", metavar="NAME", choices=VENDORS, help=f"the vendor: {', '.join(VENDORS)}")
    commands.add_parser(
        "list",
        parents=[common],
        help="tell which vendors have a key",
        description="Tell which vendors have a key. No key is shown.",
        examples="  taskhook vendors list --json",
    )
    commands.add_parser(
        "set",
        parents=[named, common],
        help="store a vendor's key",
        description="Store a vendor's key, read from standard input, so that no list of processes and no shell history holds it.",
        examples="""\
  taskhook vendors set modellix              asks for it
  taskhook vendors set modellix --stack taskhook-test < key.txt""",
    )
    commands.add_parser(
        "remove",
        parents=[named, common],
        help="forget a vendor's key",
        description="Forget a vendor's key. Its tasks wait until there is one again.",
        examples="  taskhook vendors remove modellix",
    )


def command() -> NoReturn:
    """Be the program `taskhook`."""
    signal.signal(signal.SIGINT, _interrupted)
    sys.exit(main())


if __name__ == "__main__":
    command()
