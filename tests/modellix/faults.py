"""What goes wrong at the vendor when it is told to, call by call."""

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

SLOW_DEFAULT_S = 2.0

type FailedForm = Literal["message", "string", "object", "both"]
type FaultTarget = Literal["submit", "task", "balance", "file", "media"]

FAILED_FAULTS: dict[str, FailedForm] = {
    "failed": "both",
    "failed_message": "message",
    "failed_string": "string",
    "failed_object": "object",
}
FILE_FAULTS = frozenset({"slow", "drop_before", "drop_after", "not_json"})
TASK_FAULTS = FILE_FAULTS | {"code_nonzero", "wrong_id", "canceled", *FAILED_FAULTS}


class Fault(BaseModel):
    """What goes wrong with the next `times` calls of one kind; `times` null lasts until cleared."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    on: FaultTarget
    fault: str
    times: int | None = Field(default=1, ge=1)
    seconds: float | None = Field(default=None, ge=0)  # a delay before any fault; `slow` has a default
    message: str | None = None
    headers: dict[str, str] | None = None  # of a status fault: exactly these instead of X-RateLimit-*

    @field_validator("fault")
    @classmethod
    def _possible_there(cls, fault: str, info: ValidationInfo) -> str:
        if fault.isascii() and fault.isdigit() and len(fault) == 3 and 200 <= int(fault) <= 599:
            return fault
        target: FaultTarget | None = info.data.get("on")
        known = TASK_FAULTS if target in {"submit", "task", None} else FILE_FAULTS
        if fault not in known:
            msg = f"must be a status from 200 to 599 or one of {', '.join(sorted(known))}"
            raise ValueError(msg)
        return fault

    @property
    def status(self) -> int | None:
        """The HTTP status to answer with, when this fault is one."""
        return int(self.fault) if self.fault.isdigit() else None

    @property
    def delay_s(self) -> float:
        """How long to wait before anything else happens."""
        if self.seconds is not None:
            return self.seconds
        return SLOW_DEFAULT_S if self.fault == "slow" else 0.0

    @property
    def ends_badly(self) -> bool:
        """Whether it is the task that fails, and not the call."""
        return self.fault == "canceled" or self.fault in FAILED_FAULTS


@dataclass(slots=True)
class _ArmedFault:
    fault: Fault
    left: int | None


class Faults:
    """The faults in force; a call meets one of them, those of its kind strike in turn."""

    def __init__(self) -> None:
        self._armed: defaultdict[FaultTarget, deque[_ArmedFault]] = defaultdict(deque)

    def inject(self, fault: Fault) -> None:
        """Put a fault behind those already in force for the same kind of call."""
        self._armed[fault.on].append(_ArmedFault(fault, fault.times))

    def clear(self) -> None:
        """Forget every fault that has not struck yet."""
        self._armed.clear()

    def strike(self, target: FaultTarget) -> Fault | None:
        """Use up the fault that is next for this kind of call, and give it."""
        queue = self._armed[target]
        if not queue:
            return None
        armed = queue[0]
        if armed.left is not None:
            armed.left -= 1
            if armed.left == 0:
                queue.popleft()
        return armed.fault
