"""The bodies of callbacks, as `core.task` renders them: these models only describe them."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from taskhook.api.answers import Answer, Failure, Result
from taskhook.core.message import Json
from taskhook.core.record import State

Raw = Annotated[
    Json | None, Field(description="The vendor's own answer, where its form is another one than this.")
]


class _Event(Answer):
    type: str
    timestamp: datetime = Field(description="When the task ended.")
    code: Literal[0]
    message: str


class _Ended(Answer):
    status: State
    task_id: str
    upstream_task_id: str | None = None
    vendor: str = Field(description="Whose task it is: one form for all vendors.")
    model_id: str
    reference: str | None = None


class Succeeded(_Ended):
    """A task that has succeeded; whatever else the vendor says is there too."""

    model_config = ConfigDict(extra="allow")

    status: Literal[State.SUCCESS]
    result: Result
    raw: Raw = None


class Failed(_Ended):
    """A task that has failed."""

    status: Literal[State.FAILED]
    error: Failure
    raw: Raw = None


class TaskSucceeded(_Event):
    """What is posted when a task has succeeded."""

    type: Literal["prediction.task.succeeded"]
    data: Succeeded


class TaskFailed(_Event):
    """What is posted when a task has failed."""

    type: Literal["prediction.task.failed"]
    data: Failed
