"""A table of rows as one test: each row is checked, and each that fails is named."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any

import pytest
from _pytest.mark import ParameterSet

MOST_SHOWN = 60  # characters of a value

type Test = Callable[..., Any]
type Rows = list[tuple[str, dict[str, Any]]]  # what a row is called, and its values by parameter


def each_row(
    names: str | Sequence[str],
    table: Iterable[Any],
    *,
    ids: Iterable[Any] | Callable[[Any], Any] | None = None,
) -> Callable[[Test], Test]:
    """Take a table as `pytest.mark.parametrize` does; two of them are all their combinations.

    Fixtures are made once for all rows, so that none may keep what a row has done. What takes long, or needs
    a fixture of its own, stays several tests.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    rows = _rows(names, list(table), ids)

    def decorate(test: Test) -> Test:
        inner: Rows = getattr(test, "rows", [("", {})])
        of_one: Test = getattr(test, "of_one", test)
        return _of_all(of_one, [(f"{a} {b}".strip(), x | y) for a, x in rows for b, y in inner])

    return decorate


def _of_all(test: Test, rows: Rows) -> Test:
    signature = inspect.signature(test)
    fixtures = [one for name, one in signature.parameters.items() if name not in rows[0][1]]
    subtests = inspect.Parameter("subtests", inspect.Parameter.KEYWORD_ONLY)

    if inspect.iscoroutinefunction(test):

        @wraps(test)
        async def asynchronous(*, subtests: pytest.Subtests, **fixtures: Any) -> None:
            for name, row in rows:
                with subtests.test(_shown(name, row)):
                    await test(**fixtures, **row)

        made: Any = asynchronous
    else:

        @wraps(test)
        def synchronous(*, subtests: pytest.Subtests, **fixtures: Any) -> None:
            for name, row in rows:
                with subtests.test(_shown(name, row)):
                    test(**fixtures, **row)

        made = synchronous
    del made.__wrapped__
    made.rows, made.of_one = rows, test
    made.__signature__ = signature.replace(
        parameters=[one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in fixtures] + [subtests]
    )
    return made  # type: ignore[no-any-return]  # it is one


def _rows(
    names: Sequence[str], table: Sequence[Any], ids: Iterable[Any] | Callable[[Any], Any] | None
) -> Rows:
    called = [None] * len(table) if ids is None or callable(ids) else list(ids)
    rows: Rows = []
    for row, name in zip(table, called, strict=True):
        values, said = row, name
        if isinstance(row, ParameterSet):
            assert not row.marks, "what is marked is a test of its own"
            values, said = row.values if len(names) > 1 else row.values[0], row.id or name
        named = dict(zip(names, values if len(names) > 1 else (values,), strict=True))
        if callable(ids):
            said = " ".join(str(ids(value)) for value in named.values())
        rows.append(("" if said is None else str(said), named))
    assert rows, "a table without rows checks nothing"
    return rows


def _shown(name: str, row: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{key}={value!r}"[:MOST_SHOWN] for key, value in row.items())]).strip()
