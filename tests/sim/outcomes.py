"""What may become of a call, by its kind."""

_DIED, _FROZEN, _TWINNED = (
    ("died before", "died after"),
    ("thaw before", "thaw after"),
    ("twin before", "twin after"),
)
_DOWN = ("unavailable", "unavailable for good", "throttled", "outage", "slow")

# What may become of a call, by kind. Only the outcome that a kind cannot have is missing.
OUTCOMES: dict[str, tuple[str, ...]] = {
    "write": (
        *(*_DIED, *_FROZEN, *_TWINNED, *_DOWN, "sdk retry", "sdk retry late"),
        *("answer lost", "answer lost for good", "beaten"),
    ),
    "read": (*_DIED, *_FROZEN, *_TWINNED, *_DOWN),
    "lagging read": (*_DIED, *_FROZEN, *_TWINNED, *_DOWN, "stale", "out of order"),
    "key": (*_DIED, *_FROZEN, "unavailable for good"),
    "invoke": (*_DIED, *_FROZEN, "lost", "twice", "late", "unavailable for good"),
    "submit": (
        *(*_DIED, *_FROZEN, *_TWINNED, "answer lost", "timed out", "not sent"),
        *("busy", "too many", "key refused", "refused", "slow"),
    ),
    "look": (*_DIED, *_FROZEN, *_TWINNED, "wrong", "slow"),
    "poll": (*_DIED, *_FROZEN, *_TWINNED, "unavailable", "throttled", "key refused", "missing", "slow"),
    "cancel": (*_DIED, *_FROZEN, *_TWINNED, "unavailable", "answer lost", "key refused", "missing", "slow"),
    "send": (*_DIED, *_FROZEN, *_TWINNED, "answer lost", "timed out", "refused", "error", "slow"),
    "s3": (
        *(*_DIED, *_FROZEN, *_TWINNED),
        *("unavailable", "unavailable for good", "slow", "sdk retry", "answer lost"),
    ),
    "fetch": (*_DIED, *_FROZEN, *_TWINNED, "reset", "gone", "changed", "slow"),
    "close": (*_DIED, *_FROZEN, *_TWINNED),
    "sleep": ("died before", "thaw before", "twin before"),
    "tell": ("died before",),
}
TABLE = {"write", "read", "lagging read"}
KINDS = {
    "put_item": "write",
    "update_item": "write",
    "delete_item": "write",
    "get_item": "read",
    "scan": "read",
    "query": "lagging read",
    "batch_get_item": "lagging read",
    "get_secret_value": "key",
    "invoke": "invoke",
    "create_multipart_upload": "s3",
    "list_parts": "s3",
    "upload_part": "s3",
    "complete_multipart_upload": "s3",
    "abort_multipart_upload": "s3",
    "head_object": "s3",
}
