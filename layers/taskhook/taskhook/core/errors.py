"""Every error that crosses a room, in one tree; what it says of what was begun is part of it.

```
TaskhookError
├── RejectedError            the request is not acceptable; nothing was stored
├── UnavailableError         asked again later, it may work
│   ├── StoreUnavailableError    a write may or may not have happened
│   │   ├── SecretUnavailableError   without the deployment's own key
│   │   └── OutOfTimeError           a use case was broken off: a request to a vendor may have been sent
│   ├── ArchiveUnavailableError  what was put there may be there or not
│   ├── SourceUnavailableError
│   └── KeyUnavailableError
├── TaskExistsError, StaleTaskError    another writer was first; the error carries what stands there
├── SourceGoneError, SourceChangedError
├── KeyUnusableError ── KeyMissingError
├── DecryptionError
├── ForbiddenTargetError ── NotPublicError
└── CallerError
```

Beside it stand `task.IllegalTransitionError`, a bug, which no code expects, and `admin.AdminError` of an
operator's commands. What an adapter raises for itself alone stays in its room.
"""

from taskhook.core.task import Task


class TaskhookError(Exception):
    """The root."""


class RejectedError(TaskhookError):
    """The request is not acceptable: an HTTP status and a message that names the field.

    Nothing was stored.
    """

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


class UnavailableError(TaskhookError):
    """What was asked did not answer, or its answer was lost."""


class StoreUnavailableError(UnavailableError):
    """The table could not be asked, or its answer was lost: a write may or may not have happened.

    `nonce` is what a task bears if its write happened; empty where nothing was written.
    """

    what = "the task table did not answer"
    nonce = ""


class SecretUnavailableError(StoreUnavailableError):
    """What the table holds cannot be read without the deployment's own key, and that was not to be had."""

    what = "the stack's secret could not be read"


class OutOfTimeError(StoreUnavailableError):
    """A use case was broken off when its time was over, whatever hung; a paid POST is never part of one."""

    what = "no answer in time"


class ArchiveUnavailableError(UnavailableError):
    """The archive could not be asked, or its answer was lost: what was put there may be there or not."""


class SourceUnavailableError(UnavailableError):
    """The original cannot be had right now; the text says why, in a word or two."""


class KeyUnavailableError(UnavailableError):
    """A key could not be read right now."""


class TaskExistsError(TaskhookError):
    """A task with this id is stored already; `current` is it."""

    def __init__(self, current: Task) -> None:
        super().__init__(current.task_id)
        self.current = current


class StaleTaskError(TaskhookError):
    """Another invocation wrote the task since it was read.

    `current` is what stands there now, None if it is gone.
    """

    def __init__(self, current: Task | None) -> None:
        super().__init__(current.task_id if current else "gone")
        self.current = current


class SourceGoneError(TaskhookError):
    """The original cannot be had, now or later; the text says why, in a word or two."""


class SourceChangedError(TaskhookError):
    """The original is not what it was when copying began."""


class KeyUnusableError(TaskhookError):
    """A key is missing, may not be read, or cannot be sent: a fault of the configuration.

    The text shows nothing of the key.
    """


class KeyMissingError(KeyUnusableError):
    """There is no such key."""


class DecryptionError(TaskhookError):
    """The text was not encrypted under this key for this context, or was changed since.

    Shows nothing of it.
    """


class ForbiddenTargetError(TaskhookError):
    """The URL or address is one that requests must not go to.

    The text says why, without repeating the URL.
    """


class NotPublicError(ForbiddenTargetError):
    """It cannot be reached from the public Internet, by the vendor neither."""


class CallerError(TaskhookError):
    """The admin command cannot do this; the text says why and what to do."""
