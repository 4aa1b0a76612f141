"""What the admin command does: `taskhook.__main__` is the program.

Callers and vendors' keys, written with the operator's own AWS credentials; and an audit of the tasks.
"""

import argparse
import asyncio
import getpass
import json
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from taskhook.adapters.aws.secrets import DEPLOYMENT_KEY, StackSecret, StoredKey
from taskhook.adapters.clock import SystemClock
from taskhook.adapters.dynamodb.audit import expiry, stored_tasks
from taskhook.adapters.dynamodb.callers import DynamoCallers
from taskhook.admin import EXPECTED, AdminError, checked_key, client, explain, parameters, resource
from taskhook.core import callers
from taskhook.core.caller import Caller
from taskhook.core.vendor import task_age
from taskhook.grammar import parser
from taskhook.tasks.audit import Audit, Limits, StoredTask
from taskhook.vendors import VENDORS

FAILED, INTERRUPTED = 1, 130
type _Fact = str | bool | int | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 (failed) or 2 (usage)."""
    grammar = parser()
    options = grammar.parse_args(arguments)
    if options.area == "callers" and options.command == "update" and not _changes(options):
        grammar.error(
            "callers update: nothing to change; give --callback-url, --no-callback-url, --models or --per-day"
        )
    try:
        if options.area == "audit":
            return FAILED if asyncio.run(_audit(options)) else 0
        asyncio.run(_vendors(options) if options.area == "vendors" else _callers(options))
    except EXPECTED as error:
        print(f"taskhook: {explain(error)}", file=sys.stderr)
        return FAILED
    return 0


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
        options.name,
        callback_url=options.callback_url,
        models=options.models or (),
        per_day=options.per_day or None,
        now=now,
        admin=admin,
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
    caller = await callers.update(options.name, _changes(options), admin=admin)
    note = "Submits see it within 60 s; tasks that were accepted before keep the URL they had."
    shown = {"caller": caller.caller, "callback_url": caller.callback_url, **_limits(caller)}
    _show(options, shown, note=note)


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if options.callback_url is not None or options.no_callback_url:
        changes["callback_url"] = options.callback_url
    if options.models is not None:
        changes["models"] = () if options.models == ["*"] else tuple(options.models)
    if options.per_day is not None:
        changes["per_day"] = options.per_day or None
    return changes


def _limits(caller: Caller) -> dict[str, _Fact]:
    return {"models": " ".join(caller.models) or "*", "per_day": caller.per_day}


async def _switch(options: argparse.Namespace, admin: DynamoCallers) -> None:
    if options.command == "disable":
        caller = await callers.disable(options.name, admin=admin)
        note = "Its token is refused within 60 s; callbacks that are waiting still go out."
    else:
        caller = await callers.enable(options.name, admin=admin)
        note = (
            "Its tokens that are still valid are taken again; `callers list` counts them, `callers rotate "
            "--token` makes one."
        )
    _show(options, {"caller": caller.caller, "disabled": caller.disabled}, note=note)


async def _remove(options: argparse.Namespace, admin: DynamoCallers) -> None:
    caller = await callers.remove(options.name, admin=admin)
    note = (
        "Callbacks of its tasks cannot be signed any more, and end undelivered. Its tasks are kept as long "
        "as any, "
        "and a caller added under the same name would see them."
    )
    _show(options, {"caller": caller.caller, "removed": True}, note=note)


async def _audit(options: argparse.Namespace) -> bool:
    """Print counts and findings; tell whether there are any."""
    table, given = resource(options.stack, "Tasks"), parameters(options.stack)
    max_task_age = timedelta(hours=int(given.get("MaxTaskHours", "24")))
    limits = Limits(
        max_queue_age=timedelta(hours=int(given.get("MaxQueueHours", "24"))),
        max_task_age=max_task_age,
        task_ages={name: task_age(vendor, max_task_age) for name, vendor in VENDORS.items()},
    )
    audit, began = Audit(), datetime.now(UTC)
    async for task_id, task, values in stored_tasks(client("dynamodb"), table):
        stored = StoredTask(task_id, task, "work" in values, "work_at" in values, expiry(values))
        audit.add(stored, since=began - options.since, now=began, limits=limits)
    if options.json:
        print(json.dumps({**audit.counts, "findings": [one._asdict() for one in audit.findings]}))
        return bool(audit.findings)
    for name, count in audit.counts.items():
        print(f"{name.ljust(9)}  {count}")
    for finding in audit.findings:
        print(f"{finding.task_id} {finding.problem}; {finding.advice}")
    broken = len(audit.findings)
    words = {0: "no task breaks a promise", 1: "1 task breaks a promise"}
    print(words.get(broken, f"{broken} tasks break a promise"), file=sys.stderr)
    return bool(audit.findings)


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
    # `getpass` has to give the terminal its echo back.
    at_once = signal.signal(signal.SIGINT, signal.default_int_handler)
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
        **_limits(caller),
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
