"""What a caller hears where no function of ours has answered: the HTTP API's own words, here as in AWS."""

import asyncio
import io
import json
import socket
import zipfile
from typing import Any

import boto3
import httpx
import pytest

from tests.local import stack
from tests.local.front import Front
from tests.local.server import serving

FUNCTIONS = {
    "good": """def handler(event, _):
        return {"statusCode": 502, "headers": {"x-should-retry": "false"}, "body": "ours"}""",
    "raises": """def handler(event, _): raise ValueError("a secret")""",
    "slow": """import time\ndef handler(event, _): time.sleep(60)""",
    "dies": """import os\ndef handler(event, _): os._exit(1)""",
    "crowded": """def handler(event, _): return {"statusCode": 200}""",
}


def api_of(account_url: str, name: str) -> str:
    """Deploy a function behind an HTTP API of its own; give the API's address."""
    account: Any = boto3.Session(
        aws_access_key_id="test", aws_secret_access_key="test", region_name=stack.REGION
    )
    clients = [
        account.client(service, endpoint_url=account_url) for service in ("lambda", "apigatewayv2", "iam")
    ]
    functions, apis, roles = clients
    trust = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = roles.create_role(RoleName=f"front-{name}", AssumeRolePolicyDocument=policy)["Role"]["Arn"]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("app.py", FUNCTIONS[name])
    function = functions.create_function(
        FunctionName=f"front-{name}",
        Runtime="python3.13",
        Role=role,
        Handler="app.handler",
        Code={"ZipFile": packed.getvalue()},
        Timeout=2,
    )["FunctionArn"]
    if name == "crowded":
        functions.put_function_concurrency(FunctionName=f"front-{name}", ReservedConcurrentExecutions=0)
    functions.add_permission(
        FunctionName=function,
        StatementId="api",
        Action="lambda:InvokeFunction",
        Principal="apigateway.amazonaws.com",
    )
    api = apis.create_api(Name=f"front-{name}", ProtocolType="HTTP")["ApiId"]
    integration = {"IntegrationType": "AWS_PROXY", "IntegrationUri": function, "PayloadFormatVersion": "2.0"}
    target = apis.create_integration(ApiId=api, **integration)["IntegrationId"]
    apis.create_route(ApiId=api, RouteKey="$default", Target=f"integrations/{target}")
    apis.create_stage(ApiId=api, StageName="$default", AutoDeploy=True)
    for client in clients:
        client.close()
    return f"{account_url}/_aws/execute-api/{api}/$default"


async def asked(front: Front) -> httpx.Response:
    """Ask the front door for something."""
    async with serving(front.app()) as origin, httpx.AsyncClient(trust_env=False, timeout=60) as client:
        return await client.post(f"{origin}/api/v1/alibaba/wan2.2-animate-mix", json={})


def refused(answer: httpx.Response) -> tuple[int, str, Any]:
    """Give what of an answer tells a refusal of the API from an answer of ours."""
    return answer.status_code, answer.headers["content-type"], answer.json()


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("raises", 500, "Internal Server Error"),
        ("slow", 500, "Internal Server Error"),
        ("dies", 500, "Internal Server Error"),
        ("crowded", 503, "Service Unavailable"),
    ],
)
async def test_a_function_that_does_not_answer(
    account_url: str, name: str, status: int, message: str
) -> None:
    """It fails, runs out of time, dies or has no room: nothing of it is shown, and there is no `code`."""
    front = Front()
    front.upstream = await asyncio.to_thread(api_of, account_url, name)
    assert refused(await asked(front)) == (status, "application/json", {"message": message})


async def test_an_answer_of_a_function_is_passed_on(account_url: str) -> None:
    """With its status, whatever that is, and its headers."""
    front = Front()
    front.upstream = await asyncio.to_thread(api_of, account_url, "good")
    answer = await asked(front)
    assert (answer.status_code, answer.headers["x-should-retry"], answer.text) == (502, "false", "ours")


async def test_an_api_that_does_not_answer_in_time() -> None:
    """As AWS's after 30 s; and so where there is none, or none is known yet."""
    nothing = (503, "application/json", {"message": "Service Unavailable"})
    front = Front(timeout_s=0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes the connection, and says nothing
        front.upstream = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert refused(await asked(front)) == nothing
    assert refused(await asked(front)) == nothing
    assert refused(await asked(Front())) == nothing
