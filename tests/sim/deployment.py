"""What a simulated deployment and its vendor are like, and the numbers that template.yaml gives them."""

from dataclasses import dataclass
from datetime import timedelta

MODEL = "alibaba/wan2.2-animate-mix"
LATER_MODEL = "alibaba/wan9"  # which another version's task names
TASKS, CALLERS = "tasks", "callers"
ORIGIN = "https://tasks.example.com"
# the functions' own timeouts, as template.yaml has them
SUBMIT_TIME, POLL_TIME, ARCHIVE_TIME = 20.0, 150.0, 900.0
SUBMIT_CLAIM = timedelta(seconds=SUBMIT_TIME + 15)
RESERVE = timedelta(seconds=30)
RETENTION = timedelta(days=7)
TICK = 60.0


@dataclass
class Deployment:
    """What the deployment and its vendor are like."""

    vendor: str = "modellix"
    others: tuple[str, ...] = ()  # vendors beside it
    clocks: tuple[float, ...] = (0.0,)  # seconds by which those of processes are ahead, in turn
    newer: bool = False  # every other process is of a newer version, which writes attributes of its own
    requests_per_minute: int = 1000  # to Modellix; of other vendors their files say it
    max_task_age: timedelta = timedelta(hours=24)
    max_queue_age: timedelta = timedelta(hours=24)
    max_queued: int = 10
    wakes: bool = True
    webhooks: bool = False
    holds: bool = False  # the vendor holds polls open
    slots: int = 1_000_000  # of the vendor
    task_time: float = 22.0
    immediate: bool = False
    inspects: bool = False  # media are looked at
    archives: bool = False
    pace: float = 0.5  # seconds for which a part of a result is read
    changes: bool = False  # a result is another one after its second part was read
    serves: bool = True  # the vendor's file server answers
