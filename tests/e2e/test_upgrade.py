"""A running stack is taken back to the released version and forward again, with tasks under way each time."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Inbox, Stack, User, Vendor, eventually, ready, started
from tests.local.stack import ARCHITECTURE, ROOT, SAM, UV, build_folder, clean_environment

RELEASED = "5591bc68a6cc88db6050b40cf2089ad814c72bbc"  # what runs in deployments
# Before, between and after both deployments: 120 in all. 100 each take twice the time, and meet nothing else.
TASKS, AT_ONCE = 40, 4
TASK_S = 45.0  # about what two deployments take
LONG = "long-"  # marks the one of each batch that outlasts every deployment, on a busy machine too


@pytest.fixture(scope="module")
def own() -> Iterator[Stack]:
    """A stack of its own, whose functions change."""
    flags = ("--cpu", "full", "--rpm", "100000", "--concurrent", "1000")  # no figure is taken
    with started(*flags, "--task-seconds", str(TASK_S)) as process:
        yield ready(process)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder in which the released version is built; skip where the history does not hold it."""
    folder = tmp_path_factory.mktemp("released")
    tree = subprocess.run(["git", "archive", RELEASED], cwd=ROOT, capture_output=True, check=False)
    if tree.returncode != 0:
        pytest.skip("history is not here")
    subprocess.run(["tar", "-x", "-C", folder], input=tree.stdout, check=True)
    sam("build", folder, "--template-file", folder / "template.yaml", "--build-dir", folder / "built")
    return folder / "built"


def test_tasks_under_way_outlive_an_upgrade_and_the_way_back(released: Path, own: Stack) -> None:
    """Each is paid for once and delivered once, whichever version took it, watched it and told of it."""
    user, vendor, inbox = User(own, own.token), Vendor(own), Inbox(own)
    with user.http, vendor.http, inbox.http:
        current = submitted(user, inbox, "current")
        deploy(own, released)
        older = submitted(user, inbox, "released")
        under_way(user, current | older)
        deploy(own, build_folder())
        newer = submitted(user, inbox, "upgraded")
        under_way(user, older)
        taken = current | older | newer
        urls = [task["request"]["image_url"] for task in vendor.paid("upgrade-")]
        paid = Counter(url.partition("?")[2].partition("&")[0] for url in urls)
        assert paid == dict.fromkeys(taken, 1)
        for marker, task_id in taken.items():
            if marker.endswith(LONG):
                continue
            task = user.ended(task_id)
            assert (marker, task["status"]) == (marker, "success")
            # A receiver that answers while the poller is replaced is told again, under the same id.
            deliveries = inbox.deliveries(task_id)
            assert all(one["verified"] for one in deliveries)
            assert len({one["headers"]["webhook-id"] for one in deliveries}) == 1


def submitted(user: User, inbox: Inbox, when: str) -> dict[str, str]:
    """Submit tasks; give their ids by marker."""
    markers = [f"upgrade-{when}-{name}" for name in (LONG, *(f"{number}-" for number in range(TASKS)))]

    def taken(marker: str) -> str | None:
        asked = "&task_seconds=86000" if marker.endswith(LONG) else ""
        image = f"https://media.invalid/new_actor.jpg?{marker}{asked}"
        answer = user.submit(marker, key=marker, image_url=image, callback_url=inbox.url(marker))
        return answer.json()["data"]["task_id"] if answer.status_code == HTTPStatus.OK else None

    def submit(marker: str) -> str:
        return eventually(lambda: taken(marker)) or ""  # again with the same key, as the contract has it

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(markers, pool.map(submit, markers), strict=True))


def under_way(user: User, tasks: dict[str, str]) -> None:
    """Prove that a deployment met tasks at work, each of which the version that runs can read."""
    # Another client: what the released version says is not what this one's document promises.
    headers, told = {"authorization": user.http.headers["authorization"]}, set()
    with httpx.Client(base_url=user.http.base_url, headers=headers, timeout=60, trust_env=False) as http:
        for task_id in tasks.values():
            told.add(http.get(f"/api/v1/tasks/{task_id}").raise_for_status().json()["data"]["status"])
    assert "processing" in told


def deploy(stack: Stack, built: Path) -> None:
    """Deploy what was built over the stack, whose parameters stay as they are."""
    account = {"AWS_DEFAULT_REGION": stack.aws_region, "AWS_ENDPOINT_URL": stack.aws_endpoint_url}
    where = ("--stack-name", stack.stack, "--region", stack.aws_region)
    sam("deploy", ROOT, "--template-file", built / "template.yaml", *where, **account)


def sam(verb: str, source: Path, *options: str | Path, **account: str) -> None:
    """Run SAM as `make deploy` does."""
    environment = clean_environment() | {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "ARCHITECTURE": ARCHITECTURE,
        "UV": UV,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        "SAM_CLI_TELEMETRY": "0",
        "SAM_CLI_POLL_DELAY": "0.3",
    }
    common = (
        "--config-file",
        source / "samconfig.toml",
        "--parameter-overrides",
        f"Architecture={ARCHITECTURE}",
    )
    command = (SAM, verb, *common, *options)
    done = subprocess.run(
        command, cwd=source, env=environment | account, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
