"""How large a file, a class and a function of the package may be, and which room imports which."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import taskhook

PACKAGE = Path(taskhook.__file__).parent
ROOT = Path(__file__).parents[2]
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_OF_A_FILE, MOST_OF_A_CLASS, MOST_OF_A_FUNCTION = 400, 300, 60  # lines


def too_long(file: Path) -> Iterator[str]:
    """Name the file where it is too long, and each class and function of it that is, with its lines."""
    text = file.read_text()
    tree = ast.parse(text)
    lines = text.count("\n")
    if lines > MOST_OF_A_FILE and f"Over {MOST_OF_A_FILE} lines, for" not in (ast.get_docstring(tree) or ""):
        yield f"{file.name}: {lines}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length, reason = (node.end_lineno or 0) - node.lineno + 1, f"Over {MOST_OF_A_CLASS} lines, for"
        is_class = isinstance(node, ast.ClassDef)
        says_why = is_class and reason in (ast.get_docstring(node) or "")
        if length > (MOST_OF_A_CLASS if is_class else MOST_OF_A_FUNCTION) and not says_why:
            yield f"{file.name}: {node.name} {length}"


def test_what_is_long_says_why() -> None:
    """A long file or class has `Over … lines, for …` in its docstring; no function is long."""
    assert [what for file in FILES for what in too_long(file)] == []


def rooms_drawn() -> tuple[dict[str, set[str]], set[tuple[str, str]]]:
    """Read the picture of the rooms: by letter the rooms of a box, and the solid arrows between boxes."""
    picture = (ROOT / "layers/README.md").read_text().partition("flowchart TB\n")[2].partition("```")[0]
    boxes, arrows = {}, set()
    for line in picture.splitlines():
        if box := re.fullmatch(r' +(\w)\["(.+?)<br>.+"]', line):
            boxes[box[1]] = {re.split(r"[./]", name)[0] for name in box[2].split(", ")}
        elif "-->" in line:
            steps = [step.strip().split(" & ") for step in line.split("-->")]
            arrows |= {(a, b) for one, other in pairwise(steps) for a in one for b in other}
    return boxes, arrows


def rooms_imported() -> Iterator[tuple[str, str, str]]:
    """List the imports between rooms: from which, to which, and where."""
    for file in [*FILES, *(ROOT / "functions").rglob("*.py")]:
        path = file.relative_to(PACKAGE if file.is_relative_to(PACKAGE) else ROOT)
        room = path.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("taskhook"):
                for name in node.names:
                    other = f"{node.module}.{name.name}".split(".")[1]
                    if other != room:
                        yield room, other, f"{path}:{node.lineno}"


def test_the_picture_of_the_rooms_is_true() -> None:
    """Each of its arrows is an import; each import leads along its arrows, or stays in a box."""
    boxes, arrows = rooms_drawn()
    imports = list(rooms_imported())
    for a, b in arrows:
        assert any(one in boxes[a] and other in boxes[b] for one, other, _ in imports), f"{a} --> {b}"
    reached = {(box, box) for box in boxes} | arrows
    for _ in boxes:
        reached |= {(a, d) for a, b in reached for c, d in arrows if b == c}
    drawn = {(one, other) for a, b in reached for one in boxes[a] for other in boxes[b]}
    assert [at for one, other, at in imports if (one, other) not in drawn] == []
