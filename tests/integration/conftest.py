import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import pytest_asyncio

from taskhook.adapters.clock import SystemClock
from taskhook.adapters.dynamodb.callers import DynamoCallers
from taskhook.adapters.dynamodb.tasks import DynamoTasks
from tests.local import stack
from tests.local.dynamodb_local import NotHereError, dynamodb_local
from tests.world import RecordingReporter, deployment_key

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a longer run be asked for."""
    parser.addoption(
        "--mutations", type=int, default=200, help="how many broken media files the probe is given"
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def account_url() -> AsyncIterator[str]:
    """Start an emulated account for the session; give the URL of its services."""
    async with stack.emulated_account() as account:
        await stack.answering(account)
        yield account.endpoint_url


@pytest.fixture(scope="session")
def dynamodb(request: pytest.FixtureRequest) -> "DynamoDBClient":
    """Give a client for DynamoDB: of the endpoint in AWS_ENDPOINT_URL_DYNAMODB, or the account's."""
    return _client(os.environ.get("AWS_ENDPOINT_URL_DYNAMODB") or request.getfixturevalue("account_url"))


@pytest.fixture(scope="session")
def another_dynamodb() -> Iterator["DynamoDBClient"]:
    """Give a client for AWS's own DynamoDB Local, where Java and Maven are on the machine."""
    with contextlib.ExitStack() as room:
        try:
            url = room.enter_context(dynamodb_local())
        except NotHereError as error:
            pytest.skip(f"DynamoDB Local: {error}")
        yield _client(url)


def _client(url: str) -> "DynamoDBClient":
    """Make a client; any keys will do where the endpoint is an emulator."""
    keys: dict[str, Any] = {}
    if "AWS_ACCESS_KEY_ID" not in os.environ:
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client: DynamoDBClient = boto3.client("dynamodb", endpoint_url=url, region_name=stack.REGION, **keys)
    return client


@contextlib.contextmanager
def made_from_template(client: "DynamoDBClient", resource: str) -> Iterator[str]:
    """Make a table as the template has it, and delete it in the end."""
    name = _made_from_template(client, resource)
    try:
        yield name
    finally:
        client.delete_table(TableName=name)


def _made_from_template(client: "DynamoDBClient", resource: str) -> str:
    """Make a table as the template has it, under a name of its own."""
    name = f"{resource}-{os.urandom(4).hex()}"
    stack.make_table(client, resource, name)
    return name


@pytest.fixture
def tasks_table(dynamodb: "DynamoDBClient") -> Iterator[str]:
    """Give an empty `Tasks` table, as the template makes it."""
    with made_from_template(dynamodb, "Tasks") as name:
        yield name


@pytest.fixture
def callers_table(dynamodb: "DynamoDBClient") -> Iterator[str]:
    """Give an empty `Callers` table, as the template makes it."""
    with made_from_template(dynamodb, "Callers") as name:
        yield name


@pytest.fixture
def told() -> RecordingReporter:
    """Give a reporter that keeps what it is told."""
    return RecordingReporter()


@pytest.fixture
def dynamo_tasks(dynamodb: "DynamoDBClient", tasks_table: str, told: RecordingReporter) -> DynamoTasks:
    """Give the real store on the real table."""
    return DynamoTasks(dynamodb, tasks_table, clock=SystemClock(), reporter=told)


@pytest.fixture
def dynamo_callers(dynamodb: "DynamoDBClient", callers_table: str) -> DynamoCallers:
    """Give the real directory on the real table."""
    return DynamoCallers(dynamodb, callers_table, clock=SystemClock(), deployment_key=deployment_key)
