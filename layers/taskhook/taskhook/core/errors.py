"""Every error that crosses a module: one tree, each with what it means for what was begun."""

from taskhook.core.task import Task


class TaskExistsError(Exception):
    """A task with this id is stored already; `current` is it."""

    def __init__(self, current: Task) -> None:
        super().__init__(current.task_id)
        self.current = current


class StaleTaskError(Exception):
    """Somebody else wrote the task since it was read; `current` is what stands there now, None if it is gone."""

    def __init__(self, current: Task | None) -> None:
        super().__init__(current.task_id if current else "gone")
        self.current = current


class StoreUnavailableError(Exception):
    """The table could not be asked, or its answer was lost: a write may or may not have happened."""


class KeyUnusableError(Exception):
    """A key is missing, may not be read, or cannot be sent: a fault of the configuration. The text shows nothing of the key."""


class KeyUnavailableError(Exception):
    """A key could not be read right now."""


class ArchiveUnavailableError(Exception):
    """The archive could not be asked, or its answer was lost: what was put there may be there or not."""


class SourceGoneError(Exception):
    """The original cannot be had, now or later; the text says why, in a word or two."""


class SourceChangedError(Exception):
    """The original is not what it was when copying began."""


class SourceUnavailableError(Exception):
    """The original cannot be had right now; the text says why, in a word or two."""


class ForbiddenTargetError(ValueError):
    """The URL or address is one that requests must not go to; the text says why, without repeating the URL."""


class DecryptionError(ValueError):
    """The text was not encrypted under this key for this context, or was changed since."""


class RejectedError(Exception):
    """The request is not acceptable: an HTTP status and a message that names the field. Nothing was stored."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after
