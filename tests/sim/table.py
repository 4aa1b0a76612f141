"""A DynamoDB client in memory, so that the simulator tries the real adapter: conditions, lagging indexes.

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
MOST_LAG = 60.0  # seconds; what left an index longer ago is not looked for there any more
GET_MANY = 100  # keys of a batch, at most
MOST_BYTES = 400 * 1024  # of an item
_INDEXES = {"work": ("work", "work_at"), "by_caller": ("caller", "listed")}
_TERM = re.compile(r"attribute_(not_)?exists\(([#\w]+)\)|([#\w]+) (=|<>|<=|>=|<|>) (:\w+)")
_BETWEEN = re.compile(r"(\S+) BETWEEN (\S+) AND (\S+)")


class MemoryDynamo:
    """A client's reads and writes over dicts that remember their past."""

    def __init__(self, keys: Mapping[str, str], *, time: Callable[[], float] = lambda: 0.0) -> None:
        self._keys = keys  # of each table
        self._time = time
        self._past: dict[str, dict[str, list[tuple[float, Item]]]] = {table: {} for table in keys}
        # by index and its partition
        self._indexed: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        self.novel: set[str] = set()  # tasks that a newer version has stored
        self.lag: Lag = lambda _key: 0.0  # how old what an index or a batch shows of an item is
        self.page: Callable[[], int] | None = (
            None  # rows after which an answer of an index is cut, and goes on in another
        )
        # whether a batch leaves a key out this time
        self.unprocessed: Callable[[str], bool] = lambda _key: False

    # --- what a client does -----------------------------------------------------------------------

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
                item[name] = {
                    "N": str(Decimal(item.get(name, {"N": "0"})["N"]) + Decimal(values[value]["N"]))
                }
        self._store(table, key, item)
        return {} if request.get("ReturnValues", "NONE") == "NONE" else {"Attributes": item}

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
        keys = [key[self._keys[table]]["S"] for key in wanted["Keys"]]
        assert 0 < len(set(keys)) == len(keys) <= GET_MANY
        left = {key for key in keys if self.unprocessed(key)}
        items = [self._then(table, key) for key in keys if key not in left]
        again = (
            {table: {"Keys": [key for key in wanted["Keys"] if key[self._keys[table]]["S"] in left]}}
            if left
            else {}
        )
        return {"Responses": {table: [item for item in items if item is not None]}, "UnprocessedKeys": again}

    def query(self, **request: Any) -> dict[str, Any]:
        """Read rows of an index, each perhaps as it was a while ago, in order."""
        table, index = request["TableName"], request["IndexName"]
        key, (hash_key, range_key) = self._keys[table], _INDEXES[index]
        forward = request.get("ScanIndexForward", True)
        partition, within = _range(request, hash_key, range_key)
        rows = [
            (item[range_key]["S"], name, item)
            for name, item in self._rows(table, index, partition)
            if all(_is(item[range_key]["S"], comparison, bound) for comparison, bound in within)
        ]
        rows.sort(key=lambda row: row[:2], reverse=not forward)
        if start := request.get("ExclusiveStartKey"):
            after = start[range_key]["S"], start[key]["S"]
            rows = [row for row in rows if (row[:2] > after if forward else row[:2] < after)]
        limits = [limit for limit in (request.get("Limit"), self.page and self.page()) if limit]
        kept = {key, hash_key, range_key}
        shown = [{name: item[name] for name in kept} for _, _, item in rows[: min(limits, default=len(rows))]]
        answer: dict[str, Any] = {"Items": shown}
        if limits and shown and len(shown) == min(limits):
            answer["LastEvaluatedKey"] = shown[-1]
        return answer

    def _rows(self, table: str, index: str, partition: str) -> list[tuple[str, Item]]:
        """List the items that a partition of an index shows now, in any order."""
        hash_key, range_key = _INDEXES[index]
        keys, shown, gone = self._indexed[index, partition], [], []
        for key in keys:
            item = self._then(table, key)
            if item is not None and range_key in item and item.get(hash_key) == {"S": partition}:
                shown.append((key, item))
            elif self._is_gone(table, key, hash_key, partition):
                gone.append(key)
        for key in gone:
            del keys[key]
        return shown

    def _is_gone(self, table: str, key: str, hash_key: str, partition: str) -> bool:
        """Tell whether no answer can show a key in that partition any more."""
        versions = self._past[table].get(key)
        if not versions:
            return True
        stored_at, item = versions[-1]
        return stored_at < self._time() - MOST_LAG and item.get(hash_key) != {"S": partition}

    def scan(self, **request: Any) -> dict[str, Any]:
        """Read a table, or what follows a key of it."""
        table = request["TableName"]
        keys = list(self._past[table])
        if start := request.get("ExclusiveStartKey"):
            keys = keys[keys.index(start[self._keys[table]]["S"]) + 1 :]
        shown = keys[: self.page() if self.page else len(keys)]
        answer: dict[str, Any] = {"Items": [self._past[table][key][-1][1] for key in shown]}
        if len(shown) < len(keys):
            answer["LastEvaluatedKey"] = {self._keys[table]: {"S": shown[-1]}}
        return answer

    # --- what the simulator sees ------------------------------------------------------------------

    def everything(self, table: str) -> list[Item]:
        """List the items as they are, from the outside."""
        return [versions[-1][1] for versions in self._past[table].values()]

    def working(self, table: str) -> list[Item]:
        """List the items with work to do, and without expiry of their own."""
        found = {
            key: self._now(table, key)
            for (index, _), keys in self._indexed.items()
            if index == "work"
            for key in keys
        }
        return [item for item in found.values() if item is not None and "work" in item]

    def peek(self, table: str, key: str) -> Item | None:
        """Read an item as it is, from the outside."""
        return self._now(table, key)

    def write(self, table: str, item: Item) -> None:
        """Store an item as it is, from the outside."""
        self._store(table, item[self._keys[table]]["S"], item)

    def expire(self, table: str, now: float) -> list[Item]:
        """Delete what has expired by `now`, in Unix seconds, as TTL does sooner or later; give what went."""
        gone = [
            item
            for item in self.everything(table)
            if "expires_at" in item and int(item["expires_at"]["N"]) <= now
        ]
        for item in gone:
            del self._past[table][item[self._keys[table]]["S"]]
        return gone

    # --- how it is kept ---------------------------------------------------------------------------

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
        seen_at = self._time() - self.lag(key)
        if versions[-1][0] <= seen_at:
            return versions[-1][1]
        seen = bisect_right(versions, seen_at, key=lambda version: version[0])
        return versions[seen - 1][1] if seen else None

    def _store(self, table: str, key: str, item: Item) -> None:
        if sum(len(name) + len(str(value)) for name, value in item.items()) > MOST_BYTES:
            raise ClientError(
                {"Error": {"Code": "ValidationException", "Message": "the item is too large"}}, "Write"
            )
        self._past[table].setdefault(key, []).append((self._time(), item))
        for index, (hash_key, range_key) in _INDEXES.items():
            if hash_key in item and range_key in item:
                self._indexed[index, item[hash_key]["S"]][key] = None

    def _require(self, request: Any, item: Item | None) -> None:
        if "ConditionExpression" in request and not _holds(request, "ConditionExpression", item or {}):
            answer: Any = {
                "Error": {"Code": "ConditionalCheckFailedException", "Message": "the condition failed"}
            }
            if request.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD" and item is not None:
                answer["Item"] = item
            raise ClientError(answer, "Write")


class NewerVersion:
    """The client of a version that is still to come: its tasks have an attribute that ours do not know."""

    def __init__(self, table: MemoryDynamo) -> None:
        self._table = table

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def put_item(self, **request: Any) -> dict[str, Any]:
        """Store a task with it."""
        if "state" not in request["Item"]:
            return self._table.put_item(**request)
        answer = self._table.put_item(**request | {"Item": request["Item"] | {"novelty": {"S": "kept"}}})
        self._table.novel.add(request["Item"]["task_id"]["S"])  # a put that is refused has stored nothing
        return answer


def _holds(request: Any, expression: str, item: Item) -> bool:
    names, values = request.get("ExpressionAttributeNames", {}), request.get("ExpressionAttributeValues", {})
    return any(
        all(_met(term, item, names, values) for term in terms) for terms in _alternatives(request[expression])
    )


def _met(term: tuple[str, str, str], item: Item, names: Mapping[str, str], values: Item) -> bool:
    name, comparison, value = term
    name = names.get(name, name)
    if not value:
        return (name in item) is (comparison == "exists")
    return name in item and _is(_comparable(item[name]), comparison, _comparable(values[value]))


def _range(request: Any, hash_key: str, range_key: str) -> tuple[str, list[tuple[str, str]]]:
    """Read a query's condition: the partition, and the comparisons of its sort key."""
    names, values = request.get("ExpressionAttributeNames", {}), request["ExpressionAttributeValues"]
    [terms] = _alternatives(request["KeyConditionExpression"])
    read = [(names.get(name, name), comparison, values[value]["S"]) for name, comparison, value in terms]
    [partition] = [value for name, comparison, value in read if (name, comparison) == (hash_key, "=")]
    assert {name for name, *_ in read} <= {hash_key, range_key}
    return partition, [(comparison, value) for name, comparison, value in read if name == range_key]


def _is(mine: Any, comparison: str, theirs: Any) -> bool:
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
        (clause, argument)
        for clause, listed in zip(words[1::2], words[2::2], strict=True)
        for argument in listed.split(", ")
    ]
    for clause, argument in clauses:
        form = {"SET": r"[#\w]+ = :\w+", "REMOVE": r"[#\w]+", "ADD": r"[#\w]+ :\w+"}[clause]
        if words[0] or not re.fullmatch(form, argument):
            raise NotImplementedError(f"update {expression!r}")
    return clauses
