"""Archived results outlive the vendor's links, and a killed copy is gone on with. A stack of its own."""

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import boto3
import httpx
import psutil
import pytest

from tests.e2e.conftest import Inbox, Json, Stack, User, Vendor, eventually, fetch, ready, started
from tests.local.bulk import Bulk

MB = 2**20
# 300 is the size that counts; CI has no time for it
SIZE = int(os.environ.get("TASKHOOK_ARCHIVE_MB", "24")) * MB
MEMORY = 512 * MB  # the function's, as the template gives it


class Archiving:
    """A stack that archives, with its caller, vendor and receiver."""

    def __init__(self, process: int, stack: Stack) -> None:
        self.process, self.stack = psutil.Process(process), stack
        self.user, self.vendor, self.inbox = User(stack, stack.token), Vendor(stack), Inbox(stack)
        account = {"endpoint_url": stack.aws_endpoint_url, "region_name": stack.aws_region}
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        client: Any = boto3.client
        self.s3, self.functions, self.formation = (
            client(name, **account, **keys) for name in ("s3", "lambda", "cloudformation")
        )
        outputs = self.formation.describe_stacks(StackName=stack.stack)["Stacks"][0]["Outputs"]
        self.outputs: dict[str, str] = {output["OutputKey"]: output["OutputValue"] for output in outputs}

    def results(self, **form: object) -> None:
        """Say what result files are like."""
        self.vendor.http.post("/_control/results", json=form).raise_for_status()

    def workers(self) -> list[psutil.Process]:
        """List the processes in which the archive function runs."""
        found = []
        for process in self.process.children(recursive=True):
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            if environment.get("AWS_LAMBDA_FUNCTION_NAME") == self.outputs["ArchiveFunction"]:
                found.append(process)
        return found

    def parts(self, key_of: str) -> int:
        """Count the parts that have been put of a task's file so far."""
        bucket = self.outputs["ResultsBucket"]
        uploads = [
            upload
            for upload in self.s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
            if upload["Key"].startswith(key_of)
        ]
        return sum(
            len(
                self.s3.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]).get(
                    "Parts", []
                )
            )
            for upload in uploads
        )

    def tick(self) -> None:
        """Let the clock strike early."""
        self.functions.invoke(
            FunctionName=self.outputs["PollFunction"], InvocationType="Event", Payload=b"{}"
        )

    def ended(self, task_id: str) -> Json:
        """Wait until a task's callback is delivered."""
        return (
            eventually(
                lambda: (
                    task if (task := self.user.task(task_id))["callback"]["state"] == "delivered" else None
                )
            )
            or {}
        )

    def download(self, url: str) -> tuple[int, str]:
        """Follow a link; give the size and the digest of what comes."""
        digest, size = hashlib.sha256(), 0
        with httpx.stream("GET", url, follow_redirects=True, timeout=60, trust_env=False) as answer:
            assert answer.status_code == 200, answer.read()
            for chunk in answer.iter_bytes(MB):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()


@pytest.fixture(scope="module")
def archiving() -> Iterator[Archiving]:
    """A stack with the parameter on."""
    with started("--task-seconds", "1", "--rpm", "100000", "--parameter", "ArchiveResults=on") as process:
        archiving = Archiving(process.pid, ready(process))
        with contextlib.ExitStack() as open_:
            for one in (archiving.user, archiving.vendor, archiving.inbox):
                open_.enter_context(one.http)
            for client in (archiving.s3, archiving.functions, archiving.formation):
                open_.callback(client.close)
            yield archiving


def peak(process: psutil.Process) -> int:
    """Tell the most memory that a process has had, in bytes."""
    with open(f"/proc/{process.pid}/status") as status:  # noqa: PTH123  # not a file
        [line] = [line for line in status if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def test_a_result_outlives_the_vendors_link(archiving: Archiving, marker: str) -> None:
    """The link leads to the same bytes when the vendor's copy is gone, and copying took little memory."""
    archiving.results(bytes=SIZE)
    began = time.monotonic()
    task_id = archiving.user.accepted(marker, callback_url=archiving.inbox.url(marker))
    task = archiving.ended(task_id)
    took = time.monotonic() - began
    [delivery] = archiving.inbox.deliveries(task_id)
    assert delivery["verified"]
    [resource] = task["result"]["resources"]
    assert resource["archived"] is True
    assert resource["source_url"] == f"{archiving.stack.upstream}/files/{task['upstream_task_id']}.mp4"
    assert resource["url"].startswith(f"{archiving.stack.endpoint}/r/{task_id}/0/")
    assert httpx.Response(200, text=delivery["body"]).json()["data"]["result"] == task["result"]

    archiving.results(bytes=SIZE, gone=True)
    assert fetch(resource["source_url"]).status_code == 404
    bulk = Bulk(task["upstream_task_id"], SIZE)
    assert archiving.download(resource["url"]) == (SIZE, bulk.digest())
    most = max(peak(worker) for worker in archiving.workers())
    figures = f"{SIZE // MB} MB: delivered {took:.1f} s after the submit, worker's peak {most / MB:.0f} MB"
    print(figures)  # noqa: T201  # for tests/README.md
    assert most < MEMORY / 2

    for wrong in (
        resource["url"][:-1] + "_",
        resource["url"].replace("/0/", "/1/"),
        resource["url"].replace("tk_", "tk-"),
    ):
        answer = fetch(wrong)
        assert (answer.status_code, answer.json()["code"]) == (404, 404)


def test_a_killed_copy_goes_on_where_it_was(archiving: Archiving, marker: str) -> None:
    """It loses nothing, and delays no other task."""
    archiving.results(bytes=24 * MB, rate=3 * MB)
    slow = archiving.user.accepted(f"{marker}-slow", callback_url=archiving.inbox.url(f"{marker}-slow"))
    eventually(lambda: archiving.parts(slow) >= 2)
    archiving.results(bytes=MB, rate=3 * MB)
    for worker in archiving.workers():
        worker.send_signal(signal.SIGKILL)
    other = archiving.user.accepted(f"{marker}-other", callback_url=archiving.inbox.url(f"{marker}-other"))
    archiving.tick()
    [other_file] = archiving.ended(other)["result"]["resources"]
    assert other_file["archived"] is True

    task = archiving.ended(slow)
    [resource] = task["result"]["resources"]
    assert resource["archived"] is True
    assert archiving.download(resource["url"]) == (24 * MB, Bulk(task["upstream_task_id"], 24 * MB).digest())
    [late], [early] = archiving.inbox.deliveries(slow), archiving.inbox.deliveries(other)
    assert late["verified"]
    # the claim of the killed copy, and most of its file, lie between them
    assert early["received_at"] < late["received_at"]


def test_a_file_that_is_gone_is_linked_as_the_vendor_has_it(archiving: Archiving, marker: str) -> None:
    """The callback waits no longer than it takes to know."""
    archiving.results(bytes=MB, gone=True)
    task = archiving.ended(archiving.user.accepted(marker, callback_url=archiving.inbox.url(marker)))
    [resource] = task["result"]["resources"]
    assert resource["archived"] is False
    assert resource["url"] == f"{archiving.stack.upstream}/files/{task['upstream_task_id']}.mp4"
    assert "source_url" not in resource
