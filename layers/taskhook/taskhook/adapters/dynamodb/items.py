"""DynamoDB's attribute values: plain values in, `{"S": "…"}` out, and back.

Written here, for boto3's own serializer comes with all of boto3 and its S3 transfers: a twelfth of a cold start.
"""

import asyncio
import contextlib
import zlib
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel

from taskhook.core.errors import StoreUnavailableError
from taskhook.core.task import Task, milliseconds

Attributes = dict[str, Any]


def item(attributes: Attributes) -> Attributes:
    """Write plain values as attribute values."""
    return {name: _typed(value) for name, value in attributes.items()}


def plain(item: Attributes) -> Attributes:
    """Read attribute values as plain ones; a whole number is an int, any other one a Decimal."""
    return {name: _untyped(value) for name, value in item.items()}


def _typed(value: Any) -> Attributes:
    match value:
        case None:
            return {"NULL": True}
        case bool():
            return {"BOOL": value}
        case str():
            return {"S": value}
        case bytes():
            return {"B": value}
        case int():
            return {"N": str(value)}
        case dict():
            return {"M": item(value)}
        case list() | tuple():
            return {"L": [_typed(entry) for entry in value]}
    raise TypeError(f"{type(value).__name__} is not stored here")


def _untyped(attribute: Attributes) -> Any:
    [(kind, value)] = attribute.items()
    match kind:
        case "NULL":
            return None
        case "N":
            return _number(value)
        case "M":
            return plain(value)
        case "L":
            return [_untyped(entry) for entry in value]
        case "NS":
            return {_number(entry) for entry in value}
        case "SS" | "BS":
            return set(value)
        case _:
            return value


def _number(digits: str) -> int | Decimal:
    try:
        return int(digits)
    except ValueError:
        return Decimal(digits)


# What a request and a message have in common with the next. Never to be changed: what is stored cannot be read without it.
_COMMON = (
    b"?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=&X-Amz-Date=&X-Amz-Expires=&X-Amz-Security-Token="
    b"&X-Amz-SignedHeaders=host&X-Amz-Signature="
    b'{"image_url":"https://","video_url":"https://","mode":"wan-std","check_image":true}wan-pro.jpg.png.mp4'
    b'{"type":"prediction.task.failed","timestamp":"2026-11-25T00:00:00Z","code":0,"message":"","data":{"status":"failed",'
    b'"error":{"code":"upstream_failed","message":"'
    b'{"type":"prediction.task.succeeded","timestamp":"2026-11-25T00:00:00Z","code":0,"message":"success","data":{'
    b'"status":"success","task_id":"tk_","upstream_task_id":"task-","model_id":"alibaba/wan2.2-animate-mix","reference":"",'
    b'"result":{"resources":[{"url":"https://","type":"video","width":1280,"height":720,"format":"mp4","role":"primary",'
    b'"duration":5.0,"size":}],"metadata":{"video_count":1,"request_id":"req-"},"extensions":{"submit_time":"2026-11-25T00:00:00Z",'
    b'"end_time":"2026-11-25T00:00:00Z"}},"billing":{"status":"succeeded","amount":"0.2400"},"result_expires_at":17'
)


def packed(text: str, known: str = "") -> str | bytes:
    """Compress a text where that makes it shorter: an item's bulk is most of the bill.

    What is `known` to whoever reads it again, because it stands beside it, takes next to no room a second time. It comes
    first in the dictionary, whose places count from its end: what was stored without it is read as it was.
    """
    press = zlib.compressobj(9, wbits=-15, zdict=known.encode() + _COMMON)
    pressed = press.compress(text.encode()) + press.flush()
    return pressed if len(pressed) < len(text.encode()) else text


def unpacked(value: Any, known: str = "") -> Any:
    """Give the text back, from whatever `packed` made of it with the same `known`. Raises zlib.error, ValueError."""
    if not isinstance(value, bytes):
        return value
    press = zlib.decompressobj(wbits=-15, zdict=known.encode() + _COMMON)
    return (press.decompress(value) + press.flush()).decode()


_INLINE = 420  # characters of request and callback URL that fit into one write unit together with all else

_BULKY = {"callback_url", "message", "request", "result"}

_BUGS = {"ValidationException", "AccessDeniedException", "ResourceNotFoundException"}  # ours, and not to be waited out


class ConditionFailedError(Exception):
    """The condition of a write did not hold; `item` is what stood there, where that was asked for."""

    def __init__(self, item: Attributes | None) -> None:
        super().__init__()
        self.item = item


async def call(method: Callable[..., Any], **request: Any) -> Any:
    """Call AWS off the event loop; its errors become this package's."""
    try:
        return await asyncio.to_thread(method, **request)
    except ClientError as error:
        if error.response["Error"]["Code"] == "ConditionalCheckFailedException":
            answer: Attributes = {**error.response}
            raise ConditionFailedError(answer.get("Item")) from error
        if error.response["Error"]["Code"] in _BUGS:
            raise
        raise StoreUnavailableError(error.response["Error"]["Code"]) from error
    except BotoCoreError as error:
        raise StoreUnavailableError(type(error).__name__) from error


def attributes(model: BaseModel) -> Attributes:
    """Turn a model into attributes: names as they are, defaults left out, and for a task what the indexes and TTL need.

    What is bulky is stored compressed: writes are most of the bill, and are billed by the size of the item.
    """
    if not isinstance(model, Task):
        return model.model_dump(exclude_none=True)
    attributes = model.model_dump(exclude_defaults=True)
    attributes["listed"] = model.listed
    if is_apart(model):
        attributes.pop("request", None)
    for name in _BULKY & attributes.keys():
        attributes[name] = packed(attributes[name], _known(name, attributes))
    if model.work is not None:
        attributes["work"], attributes["work_at"] = model.work
    if model.expires_at is not None:
        attributes["expires_at"] = milliseconds(model.expires_at) // 1000  # TTL counts in seconds
    return attributes


def is_apart(task: Task) -> bool:
    """Tell whether a task's request is stored apart: with it, every write of the task would be billed as two."""
    return task.request is None or len(task.request) + len(task.callback_url or "") > _INLINE


def request_key(task: Task) -> str:
    """Name the item that a task's request is stored in; no task's own id has a #."""
    return f"{task.task_id}#{task.fingerprint}"


def with_request(task: Task, apart: Attributes | None) -> Task:
    """Give a task the request that is stored apart; as it is where that is gone or cannot be read."""
    with contextlib.suppress(KeyError, ValueError, zlib.error):
        return task.model_copy(update={"request": stored_values(apart or {})["request"]})
    return task


def stored_values(item: Attributes) -> Attributes:
    """Read an item: plain values, texts as they were before they were compressed. Raises zlib.error, ValueError."""
    attributes = plain(item)
    if "expires_at" in attributes:
        attributes["expires_at"] = attributes["expires_at"] * 1000
    for name in _BULKY & attributes.keys():
        attributes[name] = unpacked(attributes[name], _known(name, attributes))
    return attributes


def _known(name: str, item: Attributes) -> str:
    """Give what a task's item says beside a bulky attribute, and that says again; it does not change once that is there."""
    return "".join(str(item.get(told, "")) for told in ("reference", "upstream_task_id", "task_id")) if name == "message" else ""
