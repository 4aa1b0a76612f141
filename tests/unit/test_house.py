"""How large a file, a class and a function of the package may be."""

import ast
from pathlib import Path

import pytest

import taskhook

PACKAGE = Path(taskhook.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_OF_A_FILE, MOST_OF_A_CLASS, MOST_OF_A_FUNCTION = 400, 300, 60  # lines


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_what_is_long_says_why(file: Path) -> None:
    """A long file or class has `Over … lines, for …` in its docstring; no function is long."""
    text = file.read_text()
    tree = ast.parse(text)
    lines = text.count("\n")
    assert lines <= MOST_OF_A_FILE or f"Over {MOST_OF_A_FILE} lines, for" in (ast.get_docstring(tree) or "")
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if isinstance(node, ast.ClassDef):
                reason = f"Over {MOST_OF_A_CLASS} lines, for" in (ast.get_docstring(node) or "")
                assert length <= MOST_OF_A_CLASS or reason, f"{node.name} has {length} lines"
            else:
                assert length <= MOST_OF_A_FUNCTION, f"{node.name} has {length} lines"
