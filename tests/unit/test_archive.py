import asyncio
import json
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from taskhook.api.answers import task_answer
from taskhook.archive import copy as archive_module
from taskhook.archive.copy import CLAIM, ArchivePorts, archive, link
from taskhook.core.errors import (
    ArchiveUnavailableError,
    RejectedError,
    SourceChangedError,
    SourceGoneError,
    SourceUnavailableError,
)
from taskhook.core.leadership import LeadershipView
from taskhook.core.message import Json
from taskhook.core.record import ARCHIVE_TIME, CallbackState, State
from taskhook.core.task import MAX_COPIES, Task
from taskhook.core.vendor import PollKind, PollOutcome
from tests.unit.test_poll import PollerWorld
from tests.world import FakeOriginals, MemoryArchive, RecordingArchiver, RecordingWake

ORIGIN = "https://tasks.example.com"
URL = "https://files.example.com/task-t.mp4"
PART = 10
BROKEN = SourceUnavailableError("reset")


@dataclass
class ArchiveWorld(PollerWorld):
    """Both functions' worlds in memory, where results are archived."""

    woken: RecordingWake = field(default_factory=RecordingWake)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.archive, self.originals, self.started = (
            MemoryArchive(),
            FakeOriginals(self.clock),
            RecordingArchiver(),
        )
        self.originals.files[URL] = bytes(range(35))
        self.rules = replace(self.rules, origin=ORIGIN)
        self.ports = replace(self.ports, archiver=self.started)
        self.archive_ports = ArchivePorts(
            tasks=self.tasks,
            archive=self.archive,
            originals=self.originals,
            wake=self.woken,
            clock=self.clock,
            reporter=self.reported,
        )

    async def succeed(self, *urls: str) -> Task:
        """Have a task succeed, and wait for its copies."""
        task = await self.add(State.WATCHED)
        data = {
            "result": {"resources": [{"url": url, "type": "video"} for url in urls or (URL,)]},
            "billing": {"amount": "0.24"},
        }
        now = self.clock.now()
        tokens = iter(f"{n:032x}" for n in range(100))
        return await self.tasks.swap(task, task.archiving(data, now, new_token=lambda: next(tokens)))

    async def copy(self, task: Task, within: timedelta = timedelta(minutes=10)) -> dict[str, int]:
        """Invoke the archive function."""
        report = await archive([task.task_id], hard_stop=self.clock.now() + within, ports=self.archive_ports)
        return report.files

    def resources(self, task: Task) -> list[Json]:
        """Read what the callback says of the files."""
        listed: list[Json] = json.loads(self.now_of(task).message or "")["data"]["result"]["resources"]
        return listed


@pytest.fixture
def archiver(monkeypatch: pytest.MonkeyPatch) -> ArchiveWorld:
    """Give a fresh world in which parts are short."""
    monkeypatch.setattr(archive_module, "PART", PART)
    return ArchiveWorld()


async def test_from_success_to_a_callback_with_a_stable_link(archiver: ArchiveWorld) -> None:
    """The success is stored first, without a callback; the message is rendered when the copy is there."""
    task = await archiver.add(State.WATCHED)
    await archiver.tick(task.task_id)
    archiving = archiver.now_of(task)
    assert (archiving.state, archiving.message, archiver.started.task_ids) == (
        State.ARCHIVING,
        None,
        [task.task_id],
    )
    assert task_answer(archiving).body()["data"]["status"] == "processing"
    assert archiver.receivers.attempts == []

    archiver.originals.pace = timedelta(0)
    assert await archiver.copy(task) == {"archived": 1}
    assert archiver.woken.task_ids == [task.task_id]
    await archiver.tick(task.task_id)
    ended = archiver.now_of(task)
    assert (ended.state, ended.callback, ended.result) == (State.SUCCESS, CallbackState.DELIVERED, None)
    [resource] = archiver.resources(task)
    [(key, content)] = archiver.archive.files.items()
    assert content == archiver.originals.files[URL]
    assert archiver.archive.media_types[key] == "video/mp4"
    assert resource == {"url": f"{ORIGIN}/r/{key}", "source_url": URL, "archived": True}
    assert task_answer(ended).body()["data"]["result"]["resources"] == [resource]
    [(_, _, _, body)] = archiver.receivers.attempts
    assert body.decode() == ended.message
    # of which the success, the claim and the end of the copying are the archive's
    assert archiver.tasks.writes == 6


async def test_without_the_archive_nothing_changes(archiver: ArchiveWorld) -> None:
    """The same task in a deployment that does not archive: the same body as ever, and not a write more."""
    archiver.ports = replace(archiver.ports, archiver=None)
    task = await archiver.add(State.WATCHED)
    await archiver.tick(task.task_id)
    assert archiver.resources(task) == [{"url": URL}]
    assert archiver.tasks.writes == 3  # added, ended and claimed at once, delivered


async def test_a_success_without_files_is_not_archived(archiver: ArchiveWorld) -> None:
    """There is nothing to wait for."""
    task = await archiver.add(State.WATCHED)
    for data in ({}, {"result": None}, {"result": {"resources": ["x", {"url": 1}]}}):
        assert task.archiving(data, archiver.clock.now(), new_token=str).copies == ()
    archiver.vendor.task_time = timedelta(0)
    archiver.vendor.poll_outcomes.append(
        PollOutcome(kind=PollKind.SUCCEEDED, data={"result": {"resources": []}})
    )
    await archiver.tick(task.task_id)
    assert (archiver.now_of(task).state, archiver.started.task_ids) == (State.SUCCESS, [])


async def test_the_callback_waits_a_quarter_of_an_hour(archiver: ArchiveWorld) -> None:
    """Then it goes out with the vendor's link, and says so; ticks have tried again until then."""
    task = await archiver.add(State.WATCHED)
    await archiver.run(timedelta(minutes=17))
    assert archiver.resources(task) == [{"url": URL, "archived": False}]
    ended = archiver.now_of(task)
    assert ended.ended_at is not None
    assert ended.archiving_since is not None
    assert timedelta(0) <= ended.ended_at - ended.archiving_since - ARCHIVE_TIME < timedelta(seconds=1)
    assert 12 <= len(archiver.started.task_ids) <= 16


async def test_the_invocation_that_sees_the_success_has_it_copied_at_once(archiver: ArchiveWorld) -> None:
    """Also a wake beside another leader: nothing waits for the next tick."""
    task = await archiver.add(State.WATCHED)
    archiver.clock.pass_by(archiver.vendor.task_time)
    archiver.control.leadership = LeadershipView(
        leader="another", until=archiver.clock.now() + timedelta(minutes=1)
    )
    await archiver.tick(ended=(task.task_id,))
    assert (archiver.now_of(task).state, archiver.started.task_ids) == (State.ARCHIVING, [task.task_id])


async def test_an_archiver_is_left_alone_until_its_claim_is_over(
    archiver: ArchiveWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other archiver is started meanwhile, and the task is not read again and again."""
    task = await archiver.succeed()
    until = archiver.clock.now() + timedelta(seconds=40)
    await archiver.tasks.swap(task, task.copying(task.copies, until=until))
    looks = []
    get = archiver.tasks.get

    async def counted(task_id: str) -> Task | None:
        looks.append(archiver.clock.now())
        return await get(task_id)

    monkeypatch.setattr(archiver.tasks, "get", counted)
    await archiver.tick()
    assert [look for look in looks if look < until] == []
    assert archiver.started.task_ids == [task.task_id]


async def test_no_archiver_is_started_where_another_has_begun_meanwhile(
    archiver: ArchiveWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index showed the task unclaimed; the table, looked at right before, does not."""
    archiver.rules = replace(archiver.rules, leads=False)
    task = await archiver.succeed()
    get = archiver.tasks.get

    async def claimed_meanwhile(task_id: str) -> Task | None:
        if not archiver.now_of(task).claimed(archiver.clock.now()):
            await archiver.tasks.swap(task, task.copying(task.copies, until=archiver.clock.now() + CLAIM))
        return await get(task_id)

    monkeypatch.setattr(archiver.tasks, "get", claimed_meanwhile)
    await archiver.tick()
    assert archiver.started.task_ids == []


async def test_a_copy_that_could_not_be_asked_for_is_asked_for_soon(archiver: ArchiveWorld) -> None:
    """Not only by the next tick."""
    archiver.started.failing = 2
    task = await archiver.add(State.WATCHED)
    began = archiver.clock.now()
    await archiver.tick(task.task_id)
    assert archiver.started.task_ids == [task.task_id] * 3
    assert archiver.clock.now() - began - archiver.vendor.task_time < timedelta(seconds=20)


async def test_switched_off_meanwhile_it_ends_with_the_vendors_link(archiver: ArchiveWorld) -> None:
    """Links to our copies would lead nowhere."""
    task = await archiver.succeed()
    await archiver.copy(task)
    archiver.ports, archiver.rules = (
        replace(archiver.ports, archiver=None),
        replace(archiver.rules, origin=None),
    )
    await archiver.tick(task.task_id)
    assert archiver.resources(task) == [{"url": URL, "type": "video", "archived": False}]


async def test_files_of_which_one_is_gone(archiver: ArchiveWorld) -> None:
    """The callback goes out at once, with what there is; more than a few are never copied."""
    urls = [f"https://files.example.com/{n}.mp4" for n in range(MAX_COPIES + 1)]
    archiver.originals.files |= dict.fromkeys(urls[1:], b"x" * 20)
    task = await archiver.succeed(*urls)
    assert await archiver.copy(task) == {"given_up": 1, "archived": MAX_COPIES - 1}
    await archiver.tick(task.task_id)
    said = [(resource["archived"], resource["url"] in urls) for resource in archiver.resources(task)]
    assert said == [(False, True), *[(True, False)] * (MAX_COPIES - 1), (False, True)]
    assert archiver.reported.count("archive.failed") == 1


@pytest.mark.parametrize("tells_size", [True, False])
@pytest.mark.parametrize("size", [1, PART, PART + 1, 3 * PART])
async def test_every_size(archiver: ArchiveWorld, *, size: int, tells_size: bool) -> None:
    """Also where the last part is a whole one, and where the server tells no size."""
    archiver.originals.files[URL] = bytes(range(size))
    archiver.originals.tells_size = tells_size
    assert await archiver.copy(await archiver.succeed()) == {"archived": 1}
    assert list(archiver.archive.files.values()) == [bytes(range(size))]


@pytest.mark.parametrize(("size", "reason"), [(0, "empty"), (101, "too_large")])
@pytest.mark.parametrize("tells_size", [True, False])
async def test_what_is_not_archived(
    archiver: ArchiveWorld,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    reason: str,
    tells_size: bool,  # noqa: FBT001  # a column of the table
) -> None:
    """Nothing, and more than a limit."""
    monkeypatch.setattr(archive_module, "MOST", 100)
    archiver.originals.files[URL] = b"x" * size
    archiver.originals.tells_size = tells_size
    task = await archiver.succeed()
    assert await archiver.copy(task) == {"given_up": 1}
    assert archiver.now_of(task).copies[0].given_up == reason


async def test_a_copy_goes_on_where_it_broke_off(archiver: ArchiveWorld) -> None:
    """No byte is read twice, within an invocation and after one that ran out of time."""
    archiver.originals.errors.extend([None, None, BROKEN])
    task = await archiver.succeed()
    assert await archiver.copy(task, within=timedelta(seconds=3.5)) == {"left": 1}
    assert archiver.now_of(task).claimed_until is None
    assert await archiver.copy(task) == {"archived": 1}
    assert [start for _, start in archiver.originals.reads] == [0, 10, 20, 20, 30]
    assert list(archiver.archive.files.values()) == [archiver.originals.files[URL]]
    assert not archiver.originals.open


async def test_a_killed_copy_is_gone_on_with_when_its_claim_is_over(archiver: ArchiveWorld) -> None:
    """Until then no other archiver copies; the claim is renewed for as long as the first does."""
    archiver.originals.pace = timedelta(seconds=14)
    task = await archiver.succeed()
    killed = asyncio.create_task(archiver.copy(task))
    await archiver.clock.sleep(timedelta(seconds=30))
    assert await archiver.copy(task) == {}
    noted = archiver.now_of(task)
    archiver.tasks.items[task.task_id] = noted.model_copy(
        update={"nonce": "of the archiver that comes after the kill"}
    )
    await killed  # its next note is refused
    archiver.tasks.items[task.task_id] = noted
    await archiver.clock.sleep(CLAIM)
    reads = len(archiver.originals.reads)
    assert await archiver.copy(task) == {"archived": 1}
    assert archiver.originals.reads[reads][1] >= PART
    assert list(archiver.archive.files.values()) == [archiver.originals.files[URL]]


async def test_an_archiver_that_finished_and_was_killed_is_believed(archiver: ArchiveWorld) -> None:
    """The file is there, the upload is not, and the task does not know it yet."""
    task = await archiver.succeed()
    key = task.copies[0].key(task.task_id)
    copies = (task.copies[0].model_copy(update={"upload": "ended", "size": 35, "tag": "v1"}),)
    await archiver.tasks.swap(task, task.copying(copies, until=None))
    archiver.archive.files[key] = b"all of it"
    assert await archiver.copy(task) == {"archived": 1}
    assert archiver.originals.reads == []


async def test_an_upload_that_was_removed_is_begun_anew(archiver: ArchiveWorld) -> None:
    """Neither the file nor the upload is there."""
    task = await archiver.succeed()
    copies = (task.copies[0].model_copy(update={"upload": "removed", "size": 35, "tag": "v1"}),)
    await archiver.tasks.swap(task, task.copying(copies, until=None))
    assert await archiver.copy(task) == {"archived": 1}


async def test_a_file_that_changes_is_copied_anew(archiver: ArchiveWorld) -> None:
    """A copy is never made of two versions."""
    task = await archiver.succeed()
    copying = asyncio.create_task(archiver.copy(task))
    await archiver.clock.sleep(timedelta(seconds=2.5))
    archiver.originals.files[URL], archiver.originals.tags[URL] = b"y" * 45, "v2"
    assert await copying == {"archived": 1}
    assert list(archiver.archive.files.values()) == [b"y" * 45]
    assert archiver.archive.uploads == {}


async def test_a_file_that_changes_each_time_is_given_up(archiver: ArchiveWorld) -> None:
    """Whatever was copied of it in between; its callback goes out with the vendor's link, and soon."""
    archiver.originals.errors.extend([None, SourceChangedError()] * 1000)
    task = await archiver.succeed()
    assert await archiver.copy(task) == {"given_up": 1}
    assert len(archiver.originals.reads) == 2 * archive_module.CHANGES
    assert archiver.archive.uploads == {}
    await archiver.tick(task.task_id)
    assert archiver.resources(task) == [{"url": URL, "type": "video", "archived": False}]


async def test_three_failures_in_a_row_are_left_to_the_tick(archiver: ArchiveWorld) -> None:
    """Each part that was put makes the count begin anew."""
    archiver.originals.errors.extend([BROKEN, BROKEN, None, BROKEN, BROKEN, None, BROKEN, BROKEN, BROKEN])
    task = await archiver.succeed()
    assert await archiver.copy(task) == {"left": 1}
    assert archiver.woken.task_ids == []
    assert not archiver.now_of(task).claimed(archiver.clock.now())
    assert await archiver.copy(task) == {"archived": 1}


async def test_an_archive_that_does_not_answer_is_asked_again(archiver: ArchiveWorld) -> None:
    """Whichever call it is."""
    for failing in range(1, 3):
        archiver.archive.failing = failing
        task = await archiver.succeed()
        assert await archiver.copy(task) == {"archived": 1}
        archiver.tasks.items.clear()


async def test_an_ended_task_is_left_alone(archiver: ArchiveWorld) -> None:
    """Ended while copying: the message is rendered, so the copy comes too late and writes nothing."""
    task = await archiver.succeed()
    copying = asyncio.create_task(archiver.copy(task))
    await archiver.clock.sleep(timedelta(seconds=1.5))
    claimed = archiver.now_of(task)
    now = archiver.clock.now()
    ended = await archiver.tasks.swap(
        claimed, claimed.archived(ORIGIN, now, retention=timedelta(days=7), claim=now)
    )
    assert await copying == {}
    assert archiver.now_of(task) == ended
    assert await archiver.copy(task) == {}
    assert archiver.woken.task_ids == []


async def test_a_poisoned_copy_is_told_without_its_text(archiver: ArchiveWorld) -> None:
    """Nothing of a stranger's error reaches the log but its class."""
    archiver.originals.errors.append(ZeroDivisionError("https://files.example.com/?signature=secret"))
    task = await archiver.succeed()
    assert await archiver.copy(task) == {}
    [facts] = [facts for event, facts in archiver.reported.events if event == "task.crashed"]
    assert facts == {"task_id": task.task_id, "error": "ZeroDivisionError"}


async def test_nothing_told_names_a_link(archiver: ArchiveWorld) -> None:
    """Neither the vendor's nor ours, nor the token in it."""
    archiver.originals.errors.extend([SourceUnavailableError("reset"), None, SourceGoneError("status_403")])
    task = await archiver.succeed()
    await archiver.copy(task)
    await archiver.tick(task.task_id)
    told = repr(archiver.reported.events)
    assert "archive.failed" in told
    assert "files.example.com" not in told
    assert task.copies[0].token not in told


async def test_few_are_copied_at_once(archiver: ArchiveWorld) -> None:
    """The others wait until one is done, and lose no minute with it."""
    archiver.rules = replace(archiver.rules, archives_at_once=2)
    tasks = []
    for n in range(5):
        task = await archiver.add(State.WATCHED, name=str(n))
        archiver.originals.files[f"https://files.example.com/task-{n}.mp4"] = b"x"
        tasks.append(task)
    ticking = asyncio.create_task(archiver.tick())
    await archiver.clock.sleep(timedelta(seconds=40))
    assert len(set(archiver.started.task_ids)) == 2
    for _ in range(5):
        for task_id in archiver.started.task_ids:
            await archive(
                [task_id], hard_stop=archiver.clock.now() + timedelta(minutes=1), ports=archiver.archive_ports
            )
        await archiver.clock.sleep(timedelta(seconds=8))
    assert set(archiver.started.task_ids) == {task.task_id for task in tasks}
    await ticking
    await archiver.tick(*archiver.woken.task_ids)
    assert {archiver.now_of(task).state for task in tasks} == {State.SUCCESS}


async def test_the_slot_of_a_killed_copy_is_free_when_its_claim_is_over(archiver: ArchiveWorld) -> None:
    """Where there is but one, for itself too: it is copied again long before it would wait no longer."""
    archiver.rules = replace(archiver.rules, archives_at_once=1)
    task = await archiver.succeed()
    claim = archiver.clock.now() + timedelta(seconds=5)
    await archiver.tasks.swap(task, task.copying(task.copies, until=claim))
    await archiver.tick()
    assert archiver.started.task_ids == [task.task_id]


async def test_a_task_that_waits_for_a_place_is_not_read(
    archiver: ArchiveWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait: only those whose results are copied are looked at, for one of them may be done."""
    archiver.rules = replace(archiver.rules, archives_at_once=1)
    for n in range(20):
        await archiver.add(State.WATCHED, name=str(n))
    ticking = asyncio.create_task(archiver.tick())
    await archiver.clock.sleep(timedelta(seconds=40))
    [first] = set(archiver.started.task_ids)
    copied = archiver.tasks.items[first]
    claim = archiver.clock.now() + timedelta(minutes=1)
    await archiver.tasks.swap(copied, copied.copying(copied.copies, until=claim))
    looks, get = [], archiver.tasks.get

    async def counted(task_id: str) -> Task | None:
        looks.append(task_id)
        return await get(task_id)

    monkeypatch.setattr(archiver.tasks, "get", counted)
    await archiver.clock.sleep(timedelta(seconds=10))
    assert set(looks) == {first}
    assert 5 <= len(looks) <= 10
    ticking.cancel()


async def test_a_link_leads_to_the_file(archiver: ArchiveWorld) -> None:
    """As long as it is kept, also when the task is not; anything else is a 404, a silent archive a 503."""
    task = await archiver.succeed()
    await archiver.copy(task)
    [key] = archiver.archive.files
    archiver.tasks.items.clear()
    assert await link(key, archive=archiver.archive) == f"https://bucket.example.com/{key}?signature=1"
    for wrong in (key[:-1] + "g", key.replace("/0/", "/1/"), "../" + key, key + "/", key.upper(), ""):
        with pytest.raises(RejectedError) as rejected:
            await link(wrong, archive=archiver.archive)
        assert rejected.value.status == 404
    archiver.archive.failing = 1
    with pytest.raises(RejectedError) as rejected:
        await link(key, archive=archiver.archive)
    assert rejected.value.status == 503
    with pytest.raises(ArchiveUnavailableError):
        raise rejected.value.__cause__ or AssertionError
