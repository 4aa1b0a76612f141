"""The whole of taskhook on this machine: an emulated account, vendor and receiver.

Prints one line of JSON when it is ready, then one for every callback received; everything else goes to
stderr. Ends with exit code 0 on Ctrl-C, SIGTERM and SIGHUP, and when its parent dies; with 130 on a Ctrl-C
before there is anything to end; with 1 when it cannot start, the account dies, or it does not end in a
minute; with 2 when it is called wrongly. Nothing of it stays, even after `kill -9`.
"""

from layers.interruption import PROGRAM, at_once, orderly

if __name__ in PROGRAM:
    at_once()

import argparse
import asyncio
import contextlib
import json
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, replace
from http import HTTPStatus
from pathlib import Path

import aiohttp
from aiohttp.typedefs import Middleware

from layers import template
from taskhook.vendors import VENDORS
from tests import history
from tests.local import stack
from tests.local.emulators import EMULATORS
from tests.local.front import Front
from tests.local.receiver import Delivery, Receiver
from tests.local.recorder import Recorder
from tests.local.server import serving
from tests.local.wire import Wire
from tests.modellix.vendor import VendorProfile, new_key

# Always emulated: no money is spent at them.
OTHERS = tuple(name for name in VENDORS if name != "modellix")
REAL_VENDOR = "https://api.modellix.ai"
KEY_VARIABLE = "MODELLIX_API_KEY"
ENDS_WITHIN_S = 60.0  # once it is told to; the account's own end is a part of it
# The real vendor cannot fetch from loopback: these are to be replaced.
PUBLIC_SAMPLES = ("https://example.com/new_actor.jpg", "https://example.com/original_scene.mp4")


def main() -> int:
    """Run until told to stop, and return the exit code."""
    parser = arguments()
    options = parser.parse_args()
    if options.real_vendor and not os.environ.get(KEY_VARIABLE):
        parser.error(f"--real-vendor needs the key in {KEY_VARIABLE}")
    try:
        return asyncio.run(_live(options))
    except stack.StackError as error:
        _say(f"\n{error}")
        return 1


def arguments() -> argparse.ArgumentParser:
    """Say what can be asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.local",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--port",
        type=_number(int, 0, 65535),
        default=8080,
        help="of the front door; 0: any free one (default: %(default)s)",
    )
    add(
        "--task-seconds",
        type=_number(float, 0, 86_400),
        default=8.0,
        metavar="S",
        help="how long the emulated vendor works on a task (default: %(default)s)",
    )
    add(
        "--rpm",
        type=_number(int, 1, 1_000_000),
        default=1000,
        metavar="N",
        help="calls a minute that it allows (default: %(default)s)",
    )
    add(
        "--concurrent",
        type=_number(int, 1, 1_000_000),
        default=100,
        metavar="N",
        help="tasks that it runs at once (default: %(default)s)",
    )
    add("--no-long-poll", dest="long_poll", action="store_false", help="it never holds a poll")
    add("--no-webhooks", dest="webhooks", action="store_false", help="it never calls a webhook")
    add(
        "--parameter",
        action="append",
        default=[],
        type=_parameter,
        metavar="NAME=VALUE",
        help="of template.yaml; may be repeated",
    )
    add(
        "--meter",
        type=_file,
        metavar="FILE",
        help="count into a file what the functions ask of DynamoDB, in units that AWS bills, and beside it"
        " what leaves AWS",
    )
    add(
        "--history",
        type=_file,
        metavar="FILE",
        help="write what vendors, receiver and callers were asked and answered, for `python -m tests.judge`",
    )
    add(
        "--real-vendor",
        action="store_true",
        help=f"spend real money at {REAL_VENDOR}, with the key in {KEY_VARIABLE}",
    )
    add(
        "--executions",
        type=_number(int, 1, 1000),
        metavar="N",
        help="how many invocations the account runs at once; a new AWS account runs 10 (default: 1000, or"
        " what memory allows)",
    )
    add(
        "--cpu",
        choices=("lambda", "full"),
        help="how much of a processor a function gets: Lambda's share, or all of it"
        " (default: LAMBDA_CPU; where that is not set lambda, if control groups can be written here, else "
        "full)",
    )
    return parser


def _number[T: (int, float)](kind: Callable[[str], T], least: T, most: T) -> Callable[[str], T]:
    def read(text: str) -> T:
        with contextlib.suppress(ValueError):
            if least <= (value := kind(text)) <= most:
                return value
        msg = f"{text!r} is not a number from {least} to {most}"
        raise argparse.ArgumentTypeError(msg)

    return read


def _file(text: str) -> Path:
    """Prove, before minutes are spent, that a file can be made there: it is written beside it, and moved."""
    file = Path(text).absolute()
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        msg = f"{text!r} cannot be written: {error.strerror}: {str(file.parent)!r}"
        raise argparse.ArgumentTypeError(msg) from error
    if file.is_dir():
        msg = f"{text!r} cannot be written: it is a folder"
        raise argparse.ArgumentTypeError(msg)
    return file


def _parameter(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    known = stack.template()["Parameters"]
    if not separator or name not in known:
        msg = f"{text!r} is not NAME=VALUE with a NAME of {', '.join(known)}"
        raise argparse.ArgumentTypeError(msg)
    return name, value


async def _live(options: argparse.Namespace) -> int:
    """Serve until a signal, the death of the parent, or the end of the account."""
    parent = os.getppid()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    served = asyncio.ensure_future(_serve(options))
    told = asyncio.ensure_future(stop.wait())
    while not served.done() and not told.done() and os.getppid() == parent:
        await asyncio.wait((served, told), timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    last = threading.Timer(ENDS_WITHIN_S, _give_up)
    last.daemon = True
    last.start()
    if served.done():
        served.result()
    served.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await served
    return 0


def _give_up() -> None:
    """Leave, whatever hangs; the supervisor of the account sees it and removes what there is."""
    _say(f"the stack did not end within {ENDS_WITHIN_S:g} s, and is left to the account's supervisor")
    os._exit(1)


async def _serve(options: argparse.Namespace) -> None:
    started = time.monotonic()
    vendor_key = os.environ.get(KEY_VARIABLE, "") if options.real_vendor else new_key()
    parameters = {
        "Architecture": stack.ARCHITECTURE,
        "CallbackTargets": "any",
        "FirstPoll": "immediate",
        "RequestsPerMinute": str(min(max(options.rpm, 11), 100_000)),
    } | dict(options.parameter)
    profile = VendorProfile(
        api_keys=(vendor_key,),
        task_seconds=options.task_seconds,
        rpm=options.rpm,
        concurrent=options.concurrent,
        long_poll=options.long_poll,
        webhooks=options.webhooks,
    )
    async with contextlib.AsyncExitStack() as room:
        tell = room.enter_context(_lines())
        front = Front()
        recorder = Recorder(options.history) if options.history else None
        if recorder is not None:
            room.callback(recorder.close)

        def received(delivery: Delivery) -> None:
            _show(delivery, tell)
            if recorder is not None:
                recorder.delivered(delivery, receiver_url)

        receiver = Receiver(on_delivery=received)
        at_the_door, at_vendors, at_receiver = _listening(recorder, options.meter)
        try:
            endpoint = await room.enter_async_context(serving(front.app(*at_the_door), port=options.port))
        except OSError as error:
            msg = f"port {options.port} cannot be had: choose another --port, or any free one with --port 0"
            raise stack.StackError(msg) from error
        media, others, profiles = await _emulated_vendors(room, profile, at_vendors)
        if recorder is not None:
            limits = {name: VENDORS[name].requests_per_minute for name in OTHERS}
            limits["modellix"] = int(parameters["RequestsPerMinute"])
            recorder.write(history.deployment(time.time(), limits))
        upstream = REAL_VENDOR if options.real_vendor else media
        samples = (
            PUBLIC_SAMPLES
            if options.real_vendor
            else (f"{media}/media/actor.jpg", f"{media}/media/scene.mp4")
        )
        receiver_url = await room.enter_async_context(serving(receiver.app(*at_receiver)))

        cpu, share = stack.processors(options.cpu)
        _say(f"{share}\nsam build, MiniStack, sam deploy: up to a minute the first time")
        account = await room.enter_async_context(
            stack.emulated_account(options.meter, cpu=cpu, executions=options.executions)
        )
        built, _ = await asyncio.gather(
            _timed("functions and layer built", stack.build(account)),
            _timed("emulated account started", stack.answering(account)),
        )
        parameters = {
            **{template.url_parameter(name): origin for name, origin in others.items()},
            "VendorUrl": upstream,
            "PublicUrl": endpoint,
        } | parameters
        front.upstream = await _timed("stack deployed", stack.deploy(account, built, parameters))
        (token, signing_secret), _ = await asyncio.gather(
            _timed("caller added", stack.add_caller(account, "local")),
            _timed("vendors' keys stored", _set_keys(account, vendor_key, profiles)),
        )
        receiver.add_secret(signing_secret)
        await _timed("first request answered", _validate(endpoint, token))
        _say(f"{time.monotonic() - started:6.1f} s  in all: ready\n")
        tell(
            {
                "endpoint": endpoint,
                "token": token,
                "signing_secret": signing_secret,
                "receiver": receiver_url,
                "upstream": upstream,
                "vendors": {"modellix": upstream, **others},
                "aws_endpoint_url": account.endpoint_url,
                "aws_region": stack.REGION,
                "stack": stack.STACK,
            }
        )
        more = _other_curls(endpoint, token, receiver_url, samples)
        _say(f"A task of each other vendor's to submit:\n\n{more}\n")
        exported = _exported(endpoint, token, signing_secret, samples)
        _say(f"What the samples in README read, and receive at:\n\n{exported}\n")
        _say(
            f"console   {endpoint}/\ndocs      {endpoint}/docs\ntoken     {token}\n"
            f"receiver  {receiver_url}/callbacks, which verifies and shows what comes\n"
        )
        first = _curl(endpoint, token, receiver_url, samples)
        _say(f"A task to submit (Ctrl-C here ends all of it):\n\n{first}\n")
        await account.supervisor.wait()
        msg = "the emulated account is gone"
        raise stack.StackError(msg)


def _listening(
    recorder: Recorder | None, meter: Path | None
) -> tuple[list[Middleware], list[Callable[[str], Middleware]], list[Middleware]]:
    """Give what listens at the front door, at each vendor by its name, and at the receiver."""
    door, vendors, receiver = list[Middleware](), list[Callable[[str], Middleware]](), list[Middleware]()
    if recorder is not None:
        door.append(recorder.of_callers())
        vendors.append(recorder.of_vendor)
    if meter is not None:
        wire = Wire(meter.with_name(f"{meter.name}.wire"))
        door.append(wire.of_answers("caller"))
        vendors.append(wire.of_requests)
        receiver.append(wire.of_requests("receiver"))
    return door, vendors, receiver


async def _emulated_vendors(
    room: contextlib.AsyncExitStack, profile: VendorProfile, listening: list[Callable[[str], Middleware]]
) -> tuple[str, dict[str, str], dict[str, VendorProfile]]:
    """Serve Modellix and the others, listened to; give where they are, and what the others are like."""
    profiles = {name: replace(profile, api_keys=(new_key(),)) for name in OTHERS}
    emulators = {name: made(profiles.get(name, profile)) for name, made in EMULATORS.items()}
    served = {
        name: await room.enter_async_context(serving(emulator.app(*(at(name) for at in listening))))
        for name, emulator in emulators.items()
    }
    return served["modellix"], {name: served[name] for name in OTHERS}, profiles


async def _set_keys(account: stack.Account, key: str, others: Mapping[str, VendorProfile]) -> None:
    """One after the other: they are in one secret."""
    await stack.set_vendor_key(account, "modellix", key)
    for name, profile in others.items():
        await stack.set_vendor_key(account, name, profile.api_keys[0])


def _show(delivery: Delivery, tell: Callable[[object], None]) -> None:
    """Print a callback for programs, and beside it what a reader at a terminal wants to know."""
    tell(asdict(delivery))
    verdict = "verified" if delivery.verified else f"not verified ({delivery.reason})"
    _say(
        f"callback {verdict}, answered {delivery.status_answered}: "
        f"{delivery.headers.get('x-modellix-event', delivery.path)} {delivery.task_id or ''}"
    )


async def _timed[T](what: str, work: Awaitable[T]) -> T:
    started = time.monotonic()
    done = await work
    _say(f"{time.monotonic() - started:6.1f} s  {what}")
    return done


async def _validate(endpoint: str, token: str) -> None:
    """Prove that door, API, function and caller's record work together; the function is warm from here on."""
    url, headers = f"{endpoint}/api/v1/apikey/validate", {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        body = await answer.text()
    if answer.status != HTTPStatus.OK or '"is_valid":true' not in body.replace(" ", ""):
        msg = f"GET {url} answered {answer.status} {body}"
        raise stack.StackError(msg)


def _exported(endpoint: str, token: str, secret: str, samples: tuple[str, str]) -> str:
    """Write what a shell has to export for the samples in README; the receiver in them listens at HOOK."""
    image, video = samples
    return (
        f"export TASKHOOK={endpoint} TOKEN={token} SECRET={secret} \\\n"
        f"  IMAGE={image} VIDEO={video} HOOK=http://127.0.0.1:8000/"
    )


def _curl(endpoint: str, token: str, receiver: str, samples: tuple[str, str]) -> str:
    image, video = samples
    task = {
        "image_url": image,
        "video_url": video,
        "mode": "wan-std",
        "callback_url": f"{receiver}/callbacks",
    }
    headers = (
        f"-H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' "
        '-H "Idempotency-Key: $(date +%s)"'
    )
    return (
        f"curl -sS {endpoint}/api/v1/alibaba/wan2.2-animate-mix \\\n  {headers} \\\n  -d '{json.dumps(task)}'"
    )


def _other_curls(endpoint: str, token: str, receiver: str, samples: tuple[str, str]) -> str:
    """Submit in the form of each other vendor: callback URL and key are headers."""
    return "\n\n".join(
        f"curl -sS {endpoint}{example.path} \\\n"
        f"  -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' "
        f"-H 'X-Webhook-URL: {receiver}/callbacks' \\\n"
        + "".join(f"  -H '{name}: {value}' \\\n" for name, value in example.headers.items())
        + f"  -H \"Idempotency-Key: {vendor}-$(date +%s)\" -d '{json.dumps(example.with_media(*samples))}'"
        for vendor, example in ((name, VENDORS[name].example) for name in OTHERS)
    )


@contextlib.contextmanager
def _lines() -> Iterator[Callable[[object], None]]:
    """Print objects as lines of JSON; a reader that does not read, or has left, holds nothing up."""
    waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError):
            while (line := waiting.get()) is not None:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield lambda value: waiting.put(json.dumps(value, ensure_ascii=False))
    finally:
        waiting.put(None)
        writer.join(timeout=1)


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    orderly(main)
