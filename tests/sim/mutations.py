"""Does a test notice? `python -m tests.sim.mutations [--only TEXT] [--list]`.

Finds in the source of the product every condition of a write, every look at a nonce, every claim, every write
ahead of an effect, and every look for what was there before; and what time and paging rest on: how long a
claim lasts and what it must cover, how far an index lags, since when a time counts, whose turn it is, the
pages and keys that are still to be read. Removes one at a time, in a copy of the package, and runs the
cheapest test that could notice, then the next: unit tests, the store's exam over a table in memory, the
simulator. Exit code 1 when something can be removed and no test notices.
"""

from layers.interruption import PROGRAM, at_once, orderly

if __name__ in PROGRAM:
    at_once()

import argparse
import ast
import contextlib
import importlib
import io
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "layers/taskhook/taskhook"
SOURCES = (
    "adapters/dynamodb/callers.py",
    "adapters/dynamodb/control.py",
    "adapters/dynamodb/items.py",
    "adapters/dynamodb/tasks.py",
    "archive/copy.py",
    "core/callers.py",
    "core/rate_limit.py",
    "core/record.py",
    "core/task.py",
    "delivery/attempt.py",
    "delivery/samples.py",
    "poller/adoption.py",
    "poller/archiving.py",
    "poller/delivery.py",
    "poller/endings.py",
    "poller/invocation.py",
    "poller/leadership.py",
    "poller/polls.py",
    "poller/queue.py",
    "poller/submit_answers.py",
    "poller/watch.py",
    "poller/watch_index.py",
    "submit/payment.py",
    "submit/request.py",
    "submit/submit.py",
    "submit/vendor_webhook.py",
    "tasks/commands.py",
    "tasks/query.py",
)
ALWAYS = "attribute_exists(task_id) OR attribute_not_exists(task_id)"
# Words by which a test speaks of a claim, or of what was there before; a condition on them may not be
# inverted.
_CLAIMS = {"claimed", "claimed_until", "claim_covers_attempt", "LEAST_POST_TIME"}
_DEDUPES = {"fingerprint", "is_new", "reusable", "idempotency_key", "looked_at", "QUEUED"}
_CLAIM_TIMES = {
    "timedelta(seconds=30)": "timedelta(seconds=60)",
    "timedelta(seconds=60)": "timedelta(seconds=30)",
}
# by which a comparison, or what is read again, is wider than it seems to need to be
_MARGINS = {"ATTEMPT_TIME", "INDEX_LAG"}
_SPLIT = re.compile(r" (AND|OR) ")
# The cheapest first: the tests of the module itself, of those that use it, then the simulator.
UNIT = (
    "task",
    "submit",
    "poll",
    "deliver",
    "vendor_webhook",
    "query",
    "callers",
    "archive",
    "aside",
    "held_polls",
    "lost_writes",
    "cancel",
    "deadline",
    "endings",
    "lost_key",
    "pause",
    "lasting_pause",
    "model_trouble",
    "refused_poll",
)
OWN_TEST = {  # of a file whose folder does not name it
    "core/callers.py": "callers",
    "core/record.py": "task",
    "core/task.py": "task",
    "delivery/attempt.py": "deliver",
    "delivery/samples.py": "deliver",
    "submit/vendor_webhook.py": "vendor_webhook",
    "tasks/commands.py": "cancel",
    "tasks/query.py": "query",
    **{
        f"poller/{name}.py": "poll"
        for name in (
            "archiving",
            "delivery",
            "endings",
            "invocation",
            "leadership",
            "polls",
            "queue",
            "submit_answers",
            "watch",
            "watch_index",
        )
    },
}


@dataclass(frozen=True, order=True)
class Mutation:
    """One thing removed from one file."""

    file: str
    function: str
    kind: str
    what: str
    becomes: str
    start: int  # in characters
    end: int
    line: int

    @property
    def name(self) -> str:
        """Name it, whatever line it stands in."""
        return f"{self.file} {self.function}: {self.kind}: {self.what} -> {self.becomes}"

    def apply(self, source: str) -> str:
        """Write the source without it."""
        return source[: self.start] + self.becomes + source[self.end :]


class _Finder(ast.NodeVisitor):
    """Looks through one file."""

    def __init__(self, file: str, source: str) -> None:
        self.file, self.source = file, source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[Mutation] = []
        self.functions: list[str] = []
        self.tree = ast.parse(source)
        self.visit(self.tree)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:  # ast's way
        """Remember where we are."""
        self._within(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Remember where we are."""
        self._within(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """Remember where we are."""
        self._within(node)

    def _within(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.functions.append(node.name)
        self.generic_visit(node)
        self.functions.pop()

    # --- conditions and nonces of writes ----------------------------------------------------------

    def visit_Constant(self, node: ast.Constant) -> None:
        """Find conditions of writes, whole and term by term, and that a failed one shows what stood there."""
        text = node.value
        if text == "ALL_OLD":
            self._add(node, "nonce", '"NONE"')
        if not isinstance(text, str) or not _is_condition(text):
            return
        parts = _SPLIT.split(text)
        self._add(node, "condition", repr(ALWAYS))
        for index in range(0, len(parts), 2) if len(parts) > 1 else ():
            rest = parts[2:] if index == 0 else parts[: index - 1] + parts[index + 1 :]
            self._add(node, "condition", repr(" ".join(rest)))

    def visit_Compare(self, node: ast.Compare) -> None:
        """Find the looks at the last write's nonce, and what a question's time judges, not its answer's."""
        text = self._text(node)
        if isinstance(node.left, ast.Name) and node.left.id == "asked_at":
            clock = "self._clock" if "self._clock." in self.source else "self.clock"
            self._add(node.left, "time", f"{clock}.now()")
        if "nonce" in text or "failed.found) ==" in text.replace("))", ")"):
            self._add(node, "nonce", "True")
            self._add(node, "nonce", "False")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Find fresh nonces, joined conditions, guards of transitions, and claims that are handed on."""
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name == "model_copy" and "token_hex" in self._text(node):
            assert isinstance(node.func, ast.Attribute)
            self._add(node, "nonce", self._text(node.func.value))
        if name == "join" and self._text(node).startswith('" AND "'):
            self._add(node, "condition", repr(ALWAYS))
        if name == "_require" and self.file == "core/task.py":
            self._add(node, "guard", "None")
        if name == "get" and self._text(node).endswith('("LastEvaluatedKey")'):
            self._add(node, "paging", "None")
        for keyword in node.keywords:
            if keyword.arg == "served" and self.file != "core/admission.py":
                self._add(keyword.value, "turn", '""')
            if keyword.arg == "claimed_until" and self._text(keyword.value) != "None":
                self._add(keyword.value, "claim", "None")
        self.generic_visit(node)

    # --- claims, and what was there before --------------------------------------------------------

    def visit_If(self, node: ast.If) -> None:
        """Look at what is tested."""
        self._test(node.test)
        text = self._text(node.test)
        if '"LastEvaluatedKey" not in' in text or (
            text.endswith("cursor is None") and isinstance(node.body[0], ast.Break)
        ):
            self._add(node.test, "paging", "True")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """Look at what is tested."""
        self._test(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        """Look at what is tested."""
        self._test(node.test)
        self.generic_visit(node)

    def visit_match_case(self, node: ast.match_case) -> None:
        """Look at what is tested."""
        if node.guard is not None:
            self._test(node.guard)
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        """Look at answers that are tests."""
        if isinstance(node.value, ast.BoolOp | ast.Compare):
            self._test(node.value)
            self._margins(node.value)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """Find bounds by a claim, `task.claimed_until or deadline`, and times counted from the paid POST."""
        first = self._text(node.values[0])
        if isinstance(node.op, ast.Or) and first.endswith((".claimed_until", ".submitted_at")):
            self._add(node, "claim" if first.endswith("_until") else "time", self._text(node.values[-1]))
        self.generic_visit(node)

    # --- times, units, and what is still to be read -----------------------------------------------

    def visit_Assign(self, node: ast.Assign) -> None:
        """Find how long claims last, since when an index is read again, and keys that a batch left out."""
        name, value = (
            node.targets[0].id if isinstance(node.targets[0], ast.Name) else "",
            self._text(node.value),
        )
        if not self.functions and name.endswith("CLAIM") and value in _CLAIM_TIMES:
            self._add(node.value, "time", _CLAIM_TIMES[value])
        if name == "since":
            self._margins(node.value)
        if '"UnprocessedKeys"' in value:
            self._add(node.value, "paging", "[]")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Find what is stored in seconds."""
        if isinstance(node.op, ast.FloorDiv) and "expires_at" in self._text(node.left):
            self._add(node, "time", self._text(node.left))
        self.generic_visit(node)

    def _margins(self, within: ast.expr) -> None:
        """Find what is added or taken away to be on the safe side."""
        for node in ast.walk(within):
            if isinstance(node, ast.BinOp) and isinstance(node.right, ast.Name) and node.right.id in _MARGINS:
                self._add(node, "time", self._text(node.left))

    def _test(self, test: ast.expr) -> None:
        """Find the single tests that speak of a claim, or of what was there before."""
        if isinstance(test, ast.BoolOp):
            for part in test.values:
                self._test(part)
            return
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            self._test(test.operand)
            return
        if (
            isinstance(test, ast.Compare)
            and isinstance(test.ops[0], ast.Is | ast.IsNot)
            and self._text(test.comparators[0]) == "None"
        ):
            return  # there is nothing to compare with
        words = {child.attr for child in ast.walk(test) if isinstance(child, ast.Attribute)}
        words |= {child.id for child in ast.walk(test) if isinstance(child, ast.Name)}
        kind = "claim" if words & _CLAIMS else "dedupe" if words & _DEDUPES else ""
        if kind:
            self._add(test, kind, "True")
            self._add(test, kind, "False")

    # --- writes ahead -----------------------------------------------------------------------------

    def visit_Await(self, node: ast.Await) -> None:
        """Find the writes of tasks: what is stored before, and after, anything is done."""
        call = node.value
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr in {"add", "swap"}
            and self._text(call.func.value).rpartition(".")[2] == "tasks"
        ):
            self._add(node, "write-ahead", self._text(call.args[-1]))
        self.generic_visit(node)

    # --- keeping ----------------------------------------------------------------------------------

    def _at(self, line: int, column: int) -> int:
        begins = self.starts[line - 1]
        text = self.source[begins : self.starts[line]]
        return begins + len(text.encode()[:column].decode())

    def _text(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.source, node) or ""

    def _add(self, node: ast.expr, kind: str, becomes: str) -> None:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start, end = self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)
        what = " ".join(self.source[start:end].split())
        found = Mutation(self.file, ".".join(self.functions), kind, what, becomes, start, end, node.lineno)
        if (start, end, becomes) not in {(one.start, one.end, one.becomes) for one in self.found}:
            self.found.append(found)


def _is_condition(text: str) -> bool:
    """Tell a condition of a write from the condition of a query and from an update."""
    term = r"(attribute_(not_)?exists\(\w+\)|\w+ (=|<=) :\w+)"
    written = re.fullmatch(
        rf"{term}( (AND|OR) {term})*",
        text,
    )
    return written is not None


def find() -> list[Mutation]:
    """List everything that can be removed."""
    return [found for file in SOURCES for found in _Finder(file, (PACKAGE / file).read_text()).found]


# --- which test notices ---------------------------------------------------------------------------


def _stages(file: str) -> Iterator[tuple[str, list[str]]]:
    """List the tests to ask, the cheapest first; the simulator is asked by other means."""
    names = "simulated or moved or anywhere or beyond or seconds or others_reserved"
    store = ["tests/integration/test_store.py", "-k", names]
    own = OWN_TEST.get(file, Path(file).parent.name)
    if own == "dynamodb":
        yield "store", store
    if own in UNIT:
        yield "unit", [f"tests/unit/test_{own}.py"]
    yield "units", [f"tests/unit/test_{name}.py" for name in UNIT if name != own]
    yield "trouble", ["tests/unit/test_trouble.py"]


def notice(mutation: Mutation, *, room: str, quick: bool) -> tuple[Mutation, str, float]:
    """Give the stage that notices the mutation; an empty string when none does.

    Runs in its own process, with its copy in a folder that the command removes, however this process ends.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=room) as folder:
        copy = Path(folder) / "taskhook"
        shutil.copytree(PACKAGE, copy)
        (copy / mutation.file).write_text(mutation.apply((copy / mutation.file).read_text()))
        sys.path.insert(0, folder)
        sys.dont_write_bytecode = True
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            stage = _stage_that_notices(mutation.file, copy, quick=quick)
    return mutation, stage, time.monotonic() - began


def _stage_that_notices(file: str, copy: Path, *, quick: bool) -> str:
    import pytest  # noqa: PLC0415  # loaded before the fork; named where it is used

    # What loops for ever without this look is noticed by that.
    options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--timeout", "300"]
    for stage, arguments in _stages(file):
        code = pytest.main([*options, *arguments])
        loaded = Path(importlib.import_module("taskhook").__file__ or "").parent
        assert loaded == copy, f"{loaded} was tested, not the copy"
        if code != 0:
            return stage
    from tests.sim import __main__ as sim  # noqa: PLC0415  # of the copy
    from tests.sim.scenarios import SCENARIOS  # noqa: PLC0415

    for stage, some in (("simulator, quick", True), ("simulator", False))[: 1 if quick else 2]:
        for name in SCENARIOS:
            result, _ = sim.explore([name], sim.SEED, quick=some, each=1, workers=1)
            if result.violations:
                return f"{stage}: {name}"
    return ""


def _preload() -> None:
    """Load what does not depend on the package, once for all processes."""
    for name in (
        "aiohttp",
        "boto3",
        "boto3.dynamodb.types",
        "botocore.session",
        "httpx",
        "pydantic",
        "pytest",
    ):
        importlib.import_module(name)


def main() -> int:
    """Remove one thing after the other."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.mutations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose name holds it")
    parser.add_argument(
        "--quick", action="store_true", help="do not ask the whole simulator, only a share of it"
    )
    parser.add_argument("--list", action="store_true", help="name them, and run nothing")
    options = parser.parse_args()
    wanted = [mutation for mutation in find() if options.only in mutation.name]
    if options.list:
        print("\n".join(mutation.name for mutation in wanted))
        return 0
    os.chdir(ROOT)
    _preload()
    began, survivors = time.monotonic(), []
    with (
        tempfile.TemporaryDirectory() as room,
        multiprocessing.get_context("fork").Pool(os.cpu_count() or 1, maxtasksperchild=1) as pool,
    ):
        for mutation, stage, seconds in pool.imap_unordered(
            partial(notice, room=room, quick=options.quick), wanted, chunksize=1
        ):
            where, change = (
                f"{mutation.file}:{mutation.line}",
                f"{mutation.what[:90]} -> {mutation.becomes[:60]}",
            )
            what = f"{where} {mutation.kind}: {change}"
            print(f"{stage or 'UNNOTICED':24} {seconds:5.1f} s  {what}", flush=True)
            if not stage:
                survivors.append(mutation)
    print(
        f"\n{len(wanted)} removed, {len(wanted) - len(survivors)} noticed, {time.monotonic() - began:.0f} s"
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    orderly(main)
