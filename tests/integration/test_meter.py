"""The meter of the embedded stack, by which the bill is counted."""

import asyncio
import json
from pathlib import Path

import boto3
import pytest

from tests.local import stack
from tests.local.__main__ import arguments
from tests.local.emulator import size


async def test_units_are_counted_by_kind(tmp_path: Path) -> None:
    """Writes with their indexes, reads by size and consistency, failed conditions, and whose item it was."""
    meter = tmp_path / "meter.json"
    async with stack.emulated_account(meter) as account:
        await stack.answering(account)
        await asyncio.to_thread(_use, account.endpoint_url)
    assert json.loads(meter.read_text()) == {
        "calls put_item task": 2,
        "write put_item task": 5 + 1,  # 2 KB and both indexes; then the condition fails
        "calls update_item budget": 1,
        "write update_item budget": 1,
        "calls get_item task": 2,
        "read get_item task": 1 + 0.5,
        "calls query by_caller": 1,
        "read query by_caller": 0.5,
    }


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("missing/meter.json", "No such file or directory"),
        ("file/meter.json", "Not a directory"),
        (".", "it is a folder"),
    ],
)
def test_a_meter_that_cannot_be_written_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, why: str
) -> None:
    """Not after the stack has started: then the first count would fail inside the emulated account."""
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as left:
        arguments().parse_args(["--meter", str(tmp_path / place)])
    assert left.value.code == 2
    assert f"cannot be written: {why}" in capsys.readouterr().err
    assert arguments().parse_args(["--meter", str(tmp_path / "meter.json")]).meter == tmp_path / "meter.json"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _use(url: str) -> None:
    session = boto3.Session(region_name=stack.REGION, aws_access_key_id="test", aws_secret_access_key="test")
    dynamodb = session.client("dynamodb", endpoint_url=url)
    stack.make_table(dynamodb, "Tasks", "Tasks")
    row = {
        "task_id": "tk_1",
        "caller": "alice",
        "listed": "1",
        "work": "watch",
        "work_at": "1",
        "callback_url": "x" * 2000,
    }
    for _ in range(2):
        try:
            dynamodb.put_item(
                TableName="Tasks",
                Item={name: {"S": value} for name, value in row.items()},
                ConditionExpression="attribute_not_exists(task_id)",
            )
        except dynamodb.exceptions.ConditionalCheckFailedException:
            continue
    dynamodb.update_item(
        TableName="Tasks",
        Key={"task_id": {"S": "budget#7"}},
        UpdateExpression="ADD used :one",
        ExpressionAttributeValues={":one": {"N": "1"}},
    )
    for consistent in (True, False):
        dynamodb.get_item(TableName="Tasks", Key={"task_id": {"S": "tk_1"}}, ConsistentRead=consistent)
    dynamodb.query(
        TableName="Tasks",
        IndexName="by_caller",
        KeyConditionExpression="caller = :caller",
        ExpressionAttributeValues={":caller": {"S": "alice"}},
    )


def test_an_item_weighs_names_and_values() -> None:
    """By AWS's own rules for the sizes of items."""
    assert size({"ab": {"S": "ü"}, "n": {"N": "1234"}, "b": {"BOOL": True}}) == 2 + 2 + 1 + 3 + 1 + 1
    assert (
        size({"l": {"L": [{"S": "x"}]}, "m": {"M": {"k": {"S": "v"}}}}) == 1 + 3 + 1 + 1 + 1 + 3 + 1 + 1 + 1
    )
