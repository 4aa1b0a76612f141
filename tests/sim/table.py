"""A DynamoDB client in memory, so that the real adapter is what the simulator tries: conditions, nonces, lagging indexes.

It knows the expressions that this project uses and refuses all others loudly.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from botocore.exceptions import ClientError

Item = dict[str, dict[str, Any]]
Lag = Callable[[str], float]
_INDEXES = {"work": ("work", "work_at"), "by_caller": ("caller", "listed")}
_TERM = re.compile(r"attribute_(not_)?exists\(([#\w]+)\)|([#\w]+) (=|<>|<=|>=|<|>) (:\w+)")
_BETWEEN = re.compile(r"(\S+) BETWEEN (\S+) AND (\S+)")


class MemoryDynamo:
    """A client's reads and writes over dicts that remember their past."""

    def __init__(self, keys: Mapping[str, str], *, time: Callable[[], float] = lambda: 0.0) -> None:
        self._keys = keys  # of each table
        self._time = time
        self._past: dict[str, dict[str, list[tuple[float, Item]]]] = {table: {} for table in keys}
        self._indexed: dict[str, dict[str, None]] = defaultdict(dict)
        self.lag: Lag = lambda _key: 0.0  # how old what an index or a batch shows of an item is

    # --- what a client does ----------------------------------------------------------------------------------------------

    def put_item(self, **request: Any) -> dict[str, Any]:
        """Replace an item, on condition."""
        table, item = request["TableName"], dict(request["Item"])
        key = item[self._keys[table]]["S"]
        self._require(request, self._now(table, key))
        self._store(table, key, item)
        return {}

    def update_item(self, **request: Any) -> dict[str, Any]:
        """Change attributes of an item, on condition; makes it where it is missing."""
        table, key = request["TableName"], self._key(request)
        before = self._now(table, key)
        self._require(request, before)
        item = dict(before or request["Key"])
        names, values = request.get("ExpressionAttributeNames", {}), request["ExpressionAttributeValues"]
        for clause, argument in _clauses(request["UpdateExpression"]):
            name, _, value = argument.partition(" ")
            name = names.get(name, name)
            if clause == "SET":
                item[name] = values[value.removeprefix("= ")]
            elif clause == "REMOVE":
                item.pop(name, None)
            else:
                item[name] = {"N": str(Decimal(item.get(name, {"N": "0"})["N"]) + Decimal(values[value]["N"]))}
        self._store(table, key, item)
        return {"Attributes": item} if "ReturnValues" in request else {}

    def delete_item(self, **request: Any) -> dict[str, Any]:
        """Delete an item, on condition."""
        table, key = request["TableName"], self._key(request)
        self._require(request, self._now(table, key))
        self._past[table].pop(key, None)
        return {}

    def get_item(self, **request: Any) -> dict[str, Any]:
        """Read an item as of now."""
        assert request["ConsistentRead"]
        item = self._now(request["TableName"], self._key(request))
        return {"Item": item} if item is not None else {}

    def batch_get_item(self, **request: Any) -> dict[str, Any]:
        """Read items, each perhaps as it was a while ago."""
        [(table, wanted)] = request["RequestItems"].items()
        items = [self._then(table, key[self._keys[table]]["S"]) for key in wanted["Keys"]]
        return {"Responses": {table: [item for item in items if item is not None]}, "UnprocessedKeys": {}}

    def query(self, **request: Any) -> dict[str, Any]:
        """Read rows of an index, each perhaps as it was a while ago, in order."""
        table, index = request["TableName"], request["IndexName"]
        hash_key, range_key = _INDEXES[index]
        rows = []
        for key in self._indexed[index]:
            item = self._then(table, key)
            if item is not None and hash_key in item and range_key in item and _holds(request, "KeyConditionExpression", item):
                rows.append(item)
        rows.sort(
            key=lambda item: (item[range_key]["S"], item[self._keys[table]]["S"]), reverse=not request.get("ScanIndexForward", True)
        )
        start = request.get("ExclusiveStartKey")
        if start is not None:
            [at] = [number for number, item in enumerate(rows) if item[self._keys[table]] == start[self._keys[table]]]
            rows = rows[at + 1 :]
        limit = request.get("Limit", len(rows))
        kept = {self._keys[table], hash_key, range_key}
        answer: dict[str, Any] = {"Items": [{name: item[name] for name in kept} for item in rows[:limit]]}
        if "Limit" in request and len(rows) >= limit:
            answer["LastEvaluatedKey"] = {"task_id": rows[limit - 1]["task_id"]}
        return answer

    def scan(self, **request: Any) -> dict[str, Any]:
        """Read a whole table."""
        return {"Items": self.everything(request["TableName"])}

    # --- what the simulator sees -----------------------------------------------------------------------------------------

    def everything(self, table: str) -> list[Item]:
        """List the items as they are, from the outside."""
        return [versions[-1][1] for versions in self._past[table].values()]

    def working(self, table: str) -> list[Item]:
        """List the items with work to do, and without expiry of their own."""
        return [item for key in self._indexed["work"] if "work" in (item := self._past[table][key][-1][1])]

    def peek(self, table: str, key: str) -> Item | None:
        """Read an item as it is, from the outside."""
        return self._now(table, key)

    def write(self, table: str, item: Item) -> None:
        """Store an item as it is, from the outside."""
        self._store(table, item[self._keys[table]]["S"], item)

    # --- how it is kept --------------------------------------------------------------------------------------------------

    def _key(self, request: Any) -> str:
        key: str = request["Key"][self._keys[request["TableName"]]]["S"]
        return key

    def _now(self, table: str, key: str) -> Item | None:
        versions = self._past[table].get(key)
        return versions[-1][1] if versions else None

    def _then(self, table: str, key: str) -> Item | None:
        versions = self._past[table].get(key)
        if not versions:
            return None
        seen = bisect_right(versions, self._time() - self.lag(key), key=lambda version: version[0])
        return versions[seen - 1][1] if seen else None

    def _store(self, table: str, key: str, item: Item) -> None:
        self._past[table].setdefault(key, []).append((self._time(), item))
        for index, (hash_key, range_key) in _INDEXES.items():
            if hash_key in item and range_key in item:
                self._indexed[index][key] = None

    def _require(self, request: Any, item: Item | None) -> None:
        if "ConditionExpression" in request and not _holds(request, "ConditionExpression", item or {}):
            answer: Any = {"Error": {"Code": "ConditionalCheckFailedException", "Message": "the condition failed"}}
            if request.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD" and item is not None:
                answer["Item"] = item
            raise ClientError(answer, "Write")


def _holds(request: Any, expression: str, item: Item) -> bool:
    names, values = request.get("ExpressionAttributeNames", {}), request.get("ExpressionAttributeValues", {})
    return any(all(_met(term, item, names, values) for term in terms) for terms in _alternatives(request[expression]))


def _met(term: tuple[str, str, str], item: Item, names: Mapping[str, str], values: Item) -> bool:
    name, comparison, value = term
    name = names.get(name, name)
    if not value:
        return (name in item) is (comparison == "exists")
    if name not in item:
        return False
    mine, theirs = _comparable(item[name]), _comparable(values[value])
    match comparison:
        case "=":
            return bool(mine == theirs)
        case "<>":
            return bool(mine != theirs)
        case "<":
            return bool(mine < theirs)
        case "<=":
            return bool(mine <= theirs)
        case ">":
            return bool(mine > theirs)
        case _:
            return bool(mine >= theirs)


def _comparable(value: dict[str, Any]) -> Any:
    [(kind, content)] = value.items()
    return Decimal(content) if kind == "N" else content


@lru_cache
def _alternatives(expression: str) -> list[list[tuple[str, str, str]]]:
    """Read a condition: alternatives of terms that must all be met."""
    plain = _BETWEEN.sub(r"\1 >= \2 AND \1 <= \3", expression)
    return [[_term(term) for term in alternative.split(" AND ")] for alternative in plain.split(" OR ")]


def _term(term: str) -> tuple[str, str, str]:
    parsed = _TERM.fullmatch(term)
    if parsed is None:
        raise NotImplementedError(f"condition {term!r}")
    if parsed[2]:
        return parsed[2], "not exists" if parsed[1] else "exists", ""
    return parsed[3], parsed[4], parsed[5]


@lru_cache(maxsize=1024)
def _clauses(expression: str) -> list[tuple[str, str]]:
    """Read an update: clauses with one argument each."""
    words = re.split(r"(?:^|\s)(SET|REMOVE|ADD)\s", expression)
    clauses = [
        (clause, argument) for clause, listed in zip(words[1::2], words[2::2], strict=True) for argument in listed.split(", ")
    ]
    for clause, argument in clauses:
        form = {"SET": r"[#\w]+ = :\w+", "REMOVE": r"[#\w]+", "ADD": r"[#\w]+ :\w+"}[clause]
        if words[0] or not re.fullmatch(form, argument):
            raise NotImplementedError(f"update {expression!r}")
    return clauses
