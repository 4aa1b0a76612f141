"""The documents, cut into what tests compare: sections, tables, code blocks, sentences, links and anchors."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "events/README.md",
    "functions/OPERATE.md",
    "functions/README.md",
    "layers/README.md",
    "tests/README.md",
)
_FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^    \S.*\n(?:\n(?=    ))?)+", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code: `info` stands behind its fence, and is empty where it is only indented."""

    info: str
    code: str


@cache
def page(name: str) -> str:
    """Give a page by its path from the root."""
    return (ROOT / name).read_text()


def section(name: str, title: str) -> str:
    """Give one section of a page, with the sections below it."""
    text = page(name)
    [heading] = re.findall(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    after = text.split(f"\n{heading} {title}\n", 1)[1]
    return re.split(rf"^#{{1,{len(heading)}}} ", after, maxsplit=1, flags=re.MULTILINE)[0]


def blocks(text: str) -> list[Block]:
    """List the blocks of code, fenced ones first."""
    fenced = [Block(info, code) for info, code in _FENCED.findall(text)]
    indented = [re.sub(r"^    ", "", code, flags=re.MULTILINE) for code in _INDENTED.findall(prose(text))]
    return fenced + [Block("", code) for code in indented]


def block(name: str, info: str) -> str:
    """Give the one fenced block of a page that has these words behind its fence."""
    [code] = [one.code for one in blocks(page(name)) if one.info == info]
    return code


def prose(text: str) -> str:
    """Leave out fenced code."""
    return _FENCED.sub("", text)


def tables(text: str) -> Iterator[list[list[str]]]:
    """Give each table as rows of cells: the head, then what stands below the line of dashes."""
    for table in re.findall(r"(?:^\|.*\|\n)+", prose(text), re.MULTILINE):
        rows = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in table.splitlines()]
        assert set("".join(rows[1])) <= set("-"), f"no table: {table[:80]}"
        yield [rows[0], *rows[2:]]


def table(text: str, *head: str) -> list[list[str]]:
    """Give the rows of the one table with this head."""
    [rows] = [found[1:] for found in tables(text) if found[0] == list(head)]
    return rows


def sentences(text: str) -> Iterator[str]:
    """Give each sentence of paragraphs and lists; a link counts as its words, a span of code as one."""
    for part in re.split(r"\n\s*\n|\n(?=\s*(?:-|\d+\.) )", _INDENTED.sub("", prose(text))):
        if part.lstrip().startswith(("|", "#", "!", "<!--")):
            continue
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "code", part)).replace("*", "")
        yield from filter(None, re.split(r"(?<=[.!?])\s+", " ".join(plain.split())))


def links(name: str) -> list[str]:
    """List where a page leads, pictures included."""
    without_code = re.sub(r"`[^`\n]*`", "", prose(page(name)))
    return re.findall(r"\]\(([^)\s]+)\)", without_code)


def anchors(name: str) -> set[str]:
    """List what can be linked to on a page: its headings, as GitHub names them, and ids."""
    text = prose(page(name))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    named = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {*named, *re.findall(r'<a id="([^"]+)">', text)}
