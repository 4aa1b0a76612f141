"""What the functions find around them: an emulated account (tables, a caller, a secret) and a vendor."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator

import boto3
from aiohttp import web

from taskhook.adapters.dynamodb.items import item
from tests.bench.own_stack import end
from tests.local import stack
from tests.local.server import serving
from tests.world import MATERIAL, a_caller, as_stored

QUIET = "Quiet"  # a table of tasks that stays empty


@contextlib.asynccontextmanager
async def surroundings() -> AsyncIterator[dict[str, str]]:
    """Start them; give the environment of both functions.

    A wake is taken by a listener of our own: the account would start a process for it beside what is being
    measured.
    """
    async with contextlib.AsyncExitStack() as room:
        account = await room.enter_async_context(stack.emulated_account())
        upstream = await room.enter_async_context(_vendor())
        wakes = web.Application()
        wakes.router.add_post("/{path:.*}", _taken)
        waking = await room.enter_async_context(serving(wakes))
        await stack.answering(account)
        yield {
            **await asyncio.to_thread(_furnish, account.endpoint_url, upstream["api_key"]),
            "AWS_ENDPOINT_URL": account.endpoint_url,
            "AWS_ENDPOINT_URL_LAMBDA": waking,
            "MODELLIX_VENDOR_URL": upstream["upstream"],
            "TMPDIR": str(account.folder),
        }


@contextlib.asynccontextmanager
async def _vendor() -> AsyncIterator[dict[str, str]]:
    """Start a vendor in a process of its own; give its origin and a key."""
    vendor = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "tests.local.vendor",
            "--task-seconds",
            "999999",
            "--no-webhooks",
            "--no-long-poll",
        ),
        *("--rpm", "100000000", "--concurrent", "1000000"),
        cwd=stack.ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert vendor.stdout is not None
    try:
        yield json.loads(await vendor.stdout.readline())
    finally:
        await end(vendor)


async def _taken(_: web.Request) -> web.Response:
    return web.Response(status=202)


def _furnish(account_url: str, vendor_key: str) -> dict[str, str]:
    """Make tables, caller and secret; give the environment that names them."""
    session = boto3.Session(region_name=stack.REGION, aws_access_key_id="test", aws_secret_access_key="test")
    dynamodb = session.client("dynamodb", endpoint_url=account_url)
    for name, resource in (("Tasks", "Tasks"), (QUIET, "Tasks"), ("Callers", "Callers")):
        stack.make_table(dynamodb, resource, name)
    dynamodb.put_item(TableName="Callers", Item=item(as_stored(a_caller()).model_dump(exclude_none=True)))
    secrets = session.client("secretsmanager", endpoint_url=account_url)
    keys = {"modellix": vendor_key, "deployment_key": MATERIAL}
    secret = secrets.create_secret(Name="keys", SecretString=json.dumps(keys))
    variables = stack.template()["Globals"]["Function"]["Environment"]["Variables"]
    parameters = {name: str(one.get("Default", "")) for name, one in stack.template()["Parameters"].items()}
    defaults = {
        name: parameters[value["Ref"]] for name, value in variables.items() if value.get("Ref") in parameters
    }
    return {
        **defaults,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": stack.REGION,
        "STACK_NAME": stack.STACK,
        "TASKS_TABLE": "Tasks",
        "CALLERS_TABLE": "Callers",
        "KEYS_SECRET": secret["ARN"],
        "PUBLIC_URL": "https://tasks.example.com",
        "API_URL": "https://abcdefghij.execute-api.us-east-1.amazonaws.com",
        "POLL_FUNCTION": "poll",
        "CALLBACK_TARGETS": "public",
        "REQUESTS_PER_MINUTE": "100000",
        "MEDIA_CHECKS": "off",  # what a look at media costs is measured apart
    }
