"""The environment of a function, read once into one frozen model.

`template.yaml` sets it, and a test compares the two.
"""

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict

_VENDOR_URL = "_VENDOR_URL"  # how the names of variables end that hold a vendor's origin


class CallbackTargets(StrEnum):
    """Where callbacks may go; anything but `public` exists in the emulated account alone."""

    PUBLIC = "public"
    ANY = "any"


class CallbackLatency(StrEnum):
    """`fast`: submit wakes the poller, which leads while work is due. `economy`: one pass per tick."""

    FAST = "fast"
    ECONOMY = "economy"


class FirstPoll(StrEnum):
    """`typical`: when the model's typical minimum has passed.

    `immediate`: as soon as the vendor has the task.
    """

    TYPICAL = "typical"
    IMMEDIATE = "immediate"


class MediaChecks(StrEnum):
    """`enforce`: media that break the vendor's limits are refused.

    `record`: they pass, and the task says so.
    """

    ENFORCE = "enforce"
    RECORD = "record"
    OFF = "off"


class Switch(StrEnum):
    """Whether something is used."""

    ON = "on"
    OFF = "off"


class Settings(BaseModel):
    """What a deployment decides. Field `tasks_table` is the variable `TASKS_TABLE`, and so on."""

    model_config = ConfigDict(frozen=True)

    stack_name: str  # the `service` of its metrics: several stacks live in one account
    tasks_table: str
    callers_table: str
    vendor_origins: Mapping[str, str] = {}  # `DASHSCOPE_VENDOR_URL` is that of `dashscope`, and so on
    keys_secret: str  # a JSON object: the vendors' keys by name, and the deployment's own
    public_url: str
    api_url: str  # the API's own, whatever the public one is
    poll_function: str = ""  # submit's alone: a function cannot name itself in its own environment
    aws_lambda_function_name: str = ""  # set by Lambda itself
    archive_function: str = ""  # poll's alone, and empty where results are not archived
    results_bucket: str = ""  # empty likewise
    example_media: str = ""  # where media for examples are, in the emulated account alone
    callback_targets: CallbackTargets
    callback_latency: CallbackLatency
    first_poll: FirstPoll
    requests_per_minute: int
    long_poll: Switch
    vendor_webhooks: Switch
    media_checks: MediaChecks
    models: str = "*"  # patterns with commas between them
    max_queued: int
    max_task_hours: int
    max_queue_hours: int
    retention_days: int
    archives_at_once: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """Raises `pydantic.ValidationError`, which names every variable that is missing or wrong."""
        given: dict[str, object] = {
            name: environment[name.upper()] for name in cls.model_fields if name.upper() in environment
        }
        given["vendor_origins"] = {
            name.removesuffix(_VENDOR_URL).lower(): value
            for name, value in environment.items()
            if name.endswith(_VENDOR_URL) and value
        }
        return cls.model_validate(given)

    @property
    def open_models(self) -> tuple[str, ...]:
        """The patterns of the models that may be submitted."""
        return tuple(pattern for part in self.models.split(",") if (pattern := part.strip()))

    @property
    def max_task_age(self) -> timedelta:
        """Counted from the vendor's acceptance."""
        return timedelta(hours=self.max_task_hours)

    @property
    def max_queue_age(self) -> timedelta:
        """Counted from our acceptance."""
        return timedelta(hours=self.max_queue_hours)

    @property
    def retention(self) -> timedelta:
        """Counted from the moment the callback's state is final."""
        return timedelta(days=self.retention_days)
