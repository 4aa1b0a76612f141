"""`make deploy`, `make caller` and `make destroy` as README says, beside the stack that is there."""

import json
import os
import subprocess
from pathlib import Path

import boto3
import httpx

from tests.e2e.conftest import Stack
from tests.local.stack import ARCHITECTURE, ROOT, clean_environment

NAME = "second"


def test_a_second_stack_is_deployed_used_changed_and_destroyed(stack: Stack, tmp_path: Path) -> None:
    """Nothing is asked; the second deployment needs neither the key nor the architecture again."""
    (tmp_path / "key.txt").write_text("mdlx_a_key\n")
    parameters = f"VendorUrl={stack.upstream} CallbackTargets=any Architecture={ARCHITECTURE}"
    printed = make(stack, "deploy", f"VENDOR_KEY_FILE={tmp_path / 'key.txt'}", f"ARGS={parameters}")
    for line in (
        "endpoint  http",
        "console   http",
        "docs      http",
        f"make caller NAME=me STACK={NAME}",
        "curl -sS http",
    ):
        assert f"\n{line}" in f"\n{printed}".replace("\n  ", "\n")
    token = make(stack, "caller", "NAME=me").split("token", 1)[1].split()[0]
    assert valid(stack, token)

    make(stack, "deploy", "ARGS=MediaChecks=off")
    assert valid(stack, token)
    make(stack, "destroy", f"CONFIRM={NAME}", f"CONFIRM_DATA={NAME}")
    session = boto3.Session(
        aws_access_key_id="test", aws_secret_access_key="test", region_name=stack.aws_region
    )
    tables = session.client("dynamodb", endpoint_url=stack.aws_endpoint_url).list_tables()["TableNames"]
    assert [name for name in tables if name.startswith(f"{NAME}-")] == []


def make(stack: Stack, *arguments: str) -> str:
    """Run make without a terminal; give what it printed."""
    environment = clean_environment() | {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": stack.aws_region,
        "AWS_ENDPOINT_URL": stack.aws_endpoint_url,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    command = ["make", *arguments, f"STACK={NAME}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def valid(stack: Stack, token: str) -> bool:
    """Ask the second stack's API whether it knows a token."""
    session = boto3.Session(
        aws_access_key_id="test", aws_secret_access_key="test", region_name=stack.aws_region
    )
    cloudformation = session.client("cloudformation", endpoint_url=stack.aws_endpoint_url)
    api = cloudformation.describe_stack_resource(StackName=NAME, LogicalResourceId="HttpApi")[
        "StackResourceDetail"
    ]
    stage = f"{stack.aws_endpoint_url}/_aws/execute-api/{api['PhysicalResourceId']}/$default"
    url = f"{stage}/api/v1/apikey/validate"
    answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=60)
    return bool(json.loads(answer.text)["data"]["is_valid"])
