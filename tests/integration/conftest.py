import os
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import boto3
import pytest
import pytest_asyncio

from taskhook.adapters.dynamodb import DynamoCallers, DynamoTasks
from taskhook.adapters.surroundings import SystemClock
from tests.local import stack
from tests.world import Told

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a longer run be asked for."""
    parser.addoption("--mutations", type=int, default=200, help="how many broken media files the probe is given")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def account_url() -> AsyncIterator[str]:
    """Start an emulated account for the session; give the URL of its services."""
    async with stack.emulated_account() as account:
        await stack.answering(account)
        yield account.endpoint_url


@pytest.fixture(scope="session")
def dynamodb(account_url: str) -> "DynamoDBClient":
    """Give a client for DynamoDB: the one named by AWS_ENDPOINT_URL_DYNAMODB, or the emulated account's."""
    client: DynamoDBClient = boto3.client(
        "dynamodb",
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL_DYNAMODB", account_url),
        region_name=stack.REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    return client


def _made_from_template(client: "DynamoDBClient", resource: str) -> str:
    """Make a table as the template has it, under a name of its own."""
    name = f"{resource}-{os.urandom(4).hex()}"
    stack.make_table(client, resource, name)
    return name


@pytest.fixture
def tasks_table(dynamodb: "DynamoDBClient") -> Iterator[str]:
    """Give an empty `Tasks` table, as the template makes it."""
    name = _made_from_template(dynamodb, "Tasks")
    yield name
    dynamodb.delete_table(TableName=name)


@pytest.fixture
def callers_table(dynamodb: "DynamoDBClient") -> Iterator[str]:
    """Give an empty `Callers` table, as the template makes it."""
    name = _made_from_template(dynamodb, "Callers")
    yield name
    dynamodb.delete_table(TableName=name)


@pytest.fixture
def told() -> Told:
    """Give a reporter that keeps what it is told."""
    return Told()


@pytest.fixture
def dynamo_tasks(dynamodb: "DynamoDBClient", tasks_table: str, told: Told) -> DynamoTasks:
    """Give the real store on the real table."""
    return DynamoTasks(dynamodb, tasks_table, clock=SystemClock(), reporter=told)


@pytest.fixture
def dynamo_callers(dynamodb: "DynamoDBClient", callers_table: str) -> DynamoCallers:
    """Give the real directory on the real table."""
    return DynamoCallers(dynamodb, callers_table, clock=SystemClock())
