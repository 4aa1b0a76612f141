from pathlib import Path

import pytest

from tests.local import share, stack


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that looks like control groups of version 2."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    return tmp_path


def files(folder: Path) -> dict[str, str]:
    """Read what was written into a group."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_version_2_limits_memory_from_the_start_and_the_processor_once_init_has_ended(root: Path) -> None:
    """One folder is both; controllers are passed down to it.

    Swap would be memory that Lambda does not have.
    """
    group = share.Group("taskhook-stack-1", "7", 256, root)
    folder = root / "taskhook-stack-1/7"
    assert files(folder) == {"memory.max": str(256 << 20), "memory.swap.max": "0"}
    group.throttle()
    assert files(folder)["cpu.max"] == "2894 20000"
    for above in (root, folder.parent):
        assert files(above)["cgroup.subtree_control"] == "+cpu +memory"
    assert share.folders("taskhook-stack-1", root) == [folder.parent]


def test_version_2_is_entered_by_one_file(root: Path) -> None:
    """The process that becomes the function's enters before it is that."""
    group = share.Group("taskhook-stack-1", "7", 256, root)
    shell, flag, script, *command = group.entering(["python", "worker.py"])
    assert (shell, flag, command) == ("/bin/sh", "-c", ["python", "worker.py"])
    assert script == f'echo $$ >{root}/taskhook-stack-1/7/cgroup.procs && exec "$0" "$@"'


def test_version_2_tells_of_processes_killed_for_memory(root: Path) -> None:
    """As its `memory.events` count them."""
    group = share.Group("taskhook-stack-1", "7", 256, root)
    (group.memory / "memory.events").write_text("low 0\nmax 31\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert group.killed() == 1


def test_more_memory_than_comes_with_a_processor_is_more_than_one(root: Path) -> None:
    """The quota of a period is longer than the period where two processors may work at once."""
    group = share.Group("taskhook-stack-1", "1", 3538, root)
    group.throttle()
    assert files(group.cpu)["cpu.max"] == "40000 20000"


def test_a_system_without_control_groups_is_told_apart(tmp_path: Path) -> None:
    """As macOS, or a container that was given none."""
    assert share.refusal(tmp_path) == "this system has no control groups for processors"


@pytest.mark.parametrize(
    ("why_not", "wanted", "cpu", "words"),
    [
        (
            None,
            None,
            "lambda",
            "functions get Lambda's share of a processor: submit 224 MB 0.127, poll 256 MB 0.145",
        ),
        (None, "full", "full", "functions get a whole processor, as was asked for"),
        ("no right", None, "full", "functions get a whole processor, more than Lambda gives them: no right"),
        ("no right", "full", "full", "functions get a whole processor, as was asked for"),
    ],
)
def test_the_share_is_on_wherever_it_can_be(
    monkeypatch: pytest.MonkeyPatch, why_not: str | None, wanted: share.Cpu | None, cpu: str, words: str
) -> None:
    """Off where it cannot, or was not wanted; what it is is told."""
    monkeypatch.delenv("LAMBDA_CPU", raising=False)
    monkeypatch.setattr(share, "refusal", lambda: why_not)
    what, said = stack.processors(wanted)
    assert what == cpu
    assert said.startswith(words)


def test_the_environment_names_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests and benches, all of whose stacks then are alike; what a stack is started with goes before."""
    monkeypatch.setattr(share, "refusal", lambda: None)
    monkeypatch.setenv("LAMBDA_CPU", "full")
    assert stack.processors()[0] == "full"
    assert stack.processors("lambda")[0] == "lambda"
    monkeypatch.setenv("LAMBDA_CPU", "half")
    with pytest.raises(stack.StackError, match="may be lambda or full"):
        stack.processors()


def test_a_share_that_was_asked_for_and_cannot_be_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure under another processor than was asked for would be a wrong one."""
    monkeypatch.setattr(share, "refusal", lambda: "no right")
    with pytest.raises(stack.StackError, match="no right"):
        stack.processors("lambda")
