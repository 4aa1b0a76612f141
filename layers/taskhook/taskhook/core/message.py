"""The body of a callback, rendered once for each task."""

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

MAX_VENDOR_DATA = 256 * 1024  # bytes; an item may hold 400 KB

MAX_NOTE = 1000  # characters of an error message, bytes of a billing note

Json = dict[str, Any]


def kept_data(data: Json) -> Json:
    """Keep what the vendor says of the result: without what is ours to say, and what a table can hold."""
    ours = {"status", "task_id", "upstream_task_id", "model_id", "reference", "get_result", "error", "vendor"}
    kept = {name: value for name, value in data.items() if name not in ours}
    if _size(kept) <= MAX_VENDOR_DATA:
        return kept
    result = kept.get("result")
    resources = result.get("resources") if isinstance(result, dict) else None
    shortened: Json = {
        "result": {"resources": resources if isinstance(resources, list) else []},
        "truncated": True,
        **{
            name: kept[name]
            for name in ("billing", "result_expires_at")
            if name in kept and _size(kept[name]) < MAX_NOTE
        },
    }
    while _size(shortened) > MAX_VENDOR_DATA:
        listed = shortened["result"]["resources"]
        shortened["result"]["resources"] = listed[: len(listed) // 2]
    return shortened


def rendered(kind: str, at: datetime, *, message: str, about: Json, data: Json) -> str:
    """Render a callback's body: `about` the task first, without what is None, then the vendor's `data`."""
    body = {
        "type": kind,
        "timestamp": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "code": 0,
        "message": message,
        "data": {name: value for name, value in about.items() if value is not None} | data,
    }
    return minified(body)


def linked(data: Json, links: Mapping[int, str]) -> Json:
    """Put links to archived files, by number, in the place of the vendor's.

    Each file says whether it is archived.
    """
    moved: dict[str, str] = {}
    for n in file_numbers(data):
        file = data["result"]["resources"][n]
        if n in links:
            moved[file["url"]] = links[n]
            file |= {"url": links[n], "source_url": file["url"]}
        file["archived"] = n in links
    if "raw" in data:
        data["raw"] = _moved(data["raw"], moved)
    return data


def _moved(value: Any, moved: Mapping[str, str]) -> Any:
    """Put links in the place of others, however deep they are."""
    match value:
        case dict():
            return {name: _moved(entry, moved) for name, entry in value.items()}
        case list():
            return [_moved(entry, moved) for entry in value]
        case str():
            return moved.get(value, value)
    return value


def file_numbers(data: Json) -> list[int]:
    """Tell which of the result's resources are files that could be copied."""
    result = data.get("result")
    resources = result.get("resources") if isinstance(result, dict) else None
    listed = resources if isinstance(resources, list) else []
    return [
        n
        for n, resource in enumerate(listed)
        if isinstance(resource, dict) and isinstance(resource.get("url"), str)
    ]


def minified(value: object) -> str:
    """Write JSON without white space, in the order given."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _size(value: object) -> int:
    return len(minified(value).encode())


def finite(value: Any) -> Any:
    """Put null for a number beyond a float's range, which reads as infinite: no JSON can hold that."""
    match value:
        case dict():
            for name in value:
                value[name] = finite(value[name])
        case list():
            for index, entry in enumerate(value):
                value[index] = finite(entry)
        case float() if not math.isfinite(value):
            return None
    return value
