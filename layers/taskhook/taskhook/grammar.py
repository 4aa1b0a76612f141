"""What the admin command takes: areas, commands, options, and their help."""

import argparse
import re
from datetime import timedelta
from importlib.metadata import version
from typing import Any, NoReturn, override

from taskhook.core import callers
from taskhook.core.errors import ForbiddenTargetError
from taskhook.core.limits import MAX_MODEL
from taskhook.core.targets import TargetPolicy
from taskhook.vendors import VENDORS

USAGE = 2
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


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


def _pattern(text: str) -> str:
    if re.fullmatch(rf"[A-Za-z0-9._:/*?-]{{1,{MAX_MODEL}}}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a pattern of models such as 'alibaba/*'")
    return text


def _count(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tasks")
    return int(text)


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


def parser() -> argparse.ArgumentParser:
    """Say what the command takes, with help and examples for each part."""
    whole = _Parser(
        prog="taskhook",
        description=(
            "Administer a deployed taskhook. `make tools` puts this command into .venv/bin; `python -m "
            "taskhook` is the same.\n"
            "Credentials and region are AWS's own: AWS_PROFILE, AWS_DEFAULT_REGION, …"
        ),
        examples="""\
  taskhook callers add shop
  taskhook callers list --json
  taskhook audit --since 7d

exit codes: 0 done; 1 failed, and stderr says what to do; 2 called wrongly; 130 interrupted""",
    )
    whole.add_argument("--version", action="version", version=f"taskhook {version('taskhook')}")
    areas = whole.add_subparsers(dest="area", required=True, metavar="AREA", title="what to administer")
    common = _Parser(add_help=False)
    common.add_argument("--stack", default="taskhook", help="the stack's name (default: %(default)s)")
    common.add_argument("--json", action="store_true", help="print JSON, for programs")
    _add_callers(areas, common)
    _add_vendors(areas, common)
    _add_audit(areas, common)
    return whole


def _add_callers(areas: Any, common: argparse.ArgumentParser) -> None:
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
    _add_limits(add, models="without it all that the deployment is open to", per_day=" (default)")
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
        description="List the callers: how many tokens and secrets are valid now, and where results go by "
        "default.",
        examples="""\
  taskhook callers list
  taskhook callers list --json | jq -r '.[] | select(.disabled | not) | .caller'""",
    )
    _add_changes(commands, [named, common])


def _add_limits(command: argparse.ArgumentParser, *, models: str, per_day: str) -> None:
    command.add_argument(
        "--models",
        metavar="PATTERN",
        nargs="+",
        type=_pattern,
        help=f"which models it may use, such as 'alibaba/*'; {models}",
    )
    command.add_argument(
        "--per-day",
        metavar="N",
        type=_count,
        help=f"how many tasks it may submit a day, counted from midnight UTC; 0: any number{per_day}",
    )


def _add_changes(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    rotate = commands.add_parser(
        "rotate",
        parents=parents,
        help="make a new token or signing secret",
        description="Make a new token or signing secret, and show it, once. The old one stays valid during "
        "the overlap.",
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
        parents=parents,
        help="change where results go by default, and what may be spent",
        description="Change where results go when a submit names no callback URL, and what may be spent.\n"
        "What is not named stays as it is.",
        examples="""\
  taskhook callers update shop --callback-url https://shop.example.com/hook
  taskhook callers update shop --no-callback-url
  taskhook callers update shop --models 'alibaba/*' 'runway/*' --per-day 100
  taskhook callers update shop --models '*' --per-day 0     any model, any number""",
    )
    _add_limits(update, models="'*': all that the deployment is open to", per_day="")
    where = update.add_mutually_exclusive_group()
    where.add_argument("--callback-url", metavar="URL", type=_callback_url, help="the new default")
    where.add_argument(
        "--no-callback-url",
        action="store_true",
        help="none: tasks without a URL of their own are only watched",
    )
    _add_switches(commands, parents)


def _add_switches(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    commands.add_parser(
        "disable",
        parents=parents,
        help="refuse the caller's token from now on",
        description="Refuse the caller's token from now on. Callbacks that are waiting still go out, signed.",
        examples="  taskhook callers disable shop",
    )
    commands.add_parser(
        "enable",
        parents=parents,
        help="take a disabled caller's token again",
        description="Take the tokens of a disabled caller again, those that are still valid.",
        examples="  taskhook callers enable shop",
    )
    commands.add_parser(
        "remove",
        parents=parents,
        help="delete a disabled caller",
        description="Delete a disabled caller, its tokens and signing secrets. Its callbacks cannot be "
        "signed any more.",
        examples="  taskhook callers remove shop",
    )


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
        description="Store a vendor's key, read from standard input, so that no list of processes and no "
        "shell history holds it.",
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


def _add_audit(areas: Any, common: argparse.ArgumentParser) -> None:
    area = areas.add_parser(
        "audit",
        parents=[common],
        help="count the tasks, and find what breaks a promise",
        description=(
            "Read the stack's table of tasks: count them, and list every task that breaks a promise, with "
            "what to do.\n"
            "Exit code 1 where there is one. It reads the whole table: a million tasks of 2 KB cost about "
            "$0.03."
        ),
        examples="""\
  taskhook audit --since 30d
  taskhook audit --since 24h --json | jq .findings""",
    )
    area.add_argument(
        "--since",
        type=_duration,
        default=timedelta(days=7),
        metavar="7d",
        help="count what was accepted since then: a number with s, m, h or d (default: 7d); "
        "what breaks a promise is listed however old it is",
    )
