"""DynamoDB Local's jars, where several processes want them at once."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.local import dynamodb_local

MAVEN = """#!/bin/sh
echo once >> {calls}
for argument; do case $argument in -DoutputDirectory=*) folder=${{argument#*=}};; esac; done
mkdir -p "$folder"
sleep 0.3
echo jar > "$folder/a.jar"
"""


def test_the_jars_are_fetched_once_however_many_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each began anew by removing them: a server that another process had started lost its classes."""
    maven, calls, jars = tmp_path / "mvn", tmp_path / "calls", tmp_path / "tools/dynamodb-local"
    maven.write_text(MAVEN.format(calls=calls))
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(dynamodb_local, "JARS", jars)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: dynamodb_local._fetch(), range(4)))
    assert calls.read_text().split() == ["once"]
    assert (jars / "a.jar").exists()
