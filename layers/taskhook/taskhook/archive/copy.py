"""Archive results.

Copy a task's files from the vendor, part by part, in an invocation that may be killed at any of them.

Nothing is lost with the invocation: parts that were put are there, and the next invocation goes on behind
them. The claim is short and kept alive, so that a successor need not wait long; two invocations that copy at
once put the same bytes in the same place.
"""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus

from taskhook.core.errors import (
    ArchiveUnavailableError,
    RejectedError,
    SourceChangedError,
    SourceGoneError,
    SourceUnavailableError,
    StaleTaskError,
    StoreUnavailableError,
)
from taskhook.core.limits import TASK_ID
from taskhook.core.ports import Archive, Clock, Originals, Reporter, TaskStore, Wake
from taskhook.core.record import Copy, State
from taskhook.core.task import Task

CLAIM = timedelta(seconds=20)
HEARTBEAT = timedelta(seconds=5)  # between two notes of how far the copying has come, which renew the claim
FIRST_HEARTBEAT = timedelta(seconds=2)  # what is copied sooner costs no note
RESERVE = timedelta(seconds=35)  # before the function's own end, for the note of how far it has come
PART = 8 * 1024 * 1024  # bytes in memory; S3 takes no less than 5 MB
MOST = 2 * 1024**3  # bytes of a file: 256 parts
CHANGES = 5  # of a file, each of which is another version, or another server's, that begins anew
TRIES = 3  # in a row without progress; the tick comes back for more
PAUSE = timedelta(seconds=1)  # before the second of them, longer each time
_KEY = re.compile(rf"{TASK_ID}/[0-9]{{1,6}}/[0-9a-f]{{32}}")


@dataclass(frozen=True)
class ArchivePorts:
    """What it takes to archive."""

    tasks: TaskStore
    archive: Archive
    originals: Originals
    wake: Wake | None
    clock: Clock
    reporter: Reporter


@dataclass(frozen=True)
class ArchiveReport:
    """What one invocation did, by kind of outcome."""

    files: dict[str, int]


async def archive(task_ids: Iterable[str], *, hard_stop: datetime, ports: ArchivePorts) -> ArchiveReport:
    """Copy the results of tasks, one after the other, until `hard_stop`; the next invocation goes on."""
    done: Counter[str] = Counter()
    for task_id in task_ids:
        if ports.clock.now() < hard_stop:
            await _archive(task_id, hard_stop, ports, done)
    return ArchiveReport(files=dict(done))


async def link(key: str, *, archive: Archive) -> str:
    """Make a link that works for some minutes out of one that works as long as the file is kept.

    Raises RejectedError.
    """
    try:
        url = await archive.link(key) if _KEY.fullmatch(key) else None
    except ArchiveUnavailableError as error:
        raise RejectedError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Service unavailable: the archive did not answer, try again",
            retry_after=5,
        ) from error
    if url is None:
        raise RejectedError(
            HTTPStatus.NOT_FOUND, "Resource not found: there is no such result, or it is not kept any more"
        )
    return url


async def _archive(task_id: str, hard_stop: datetime, ports: ArchivePorts, done: Counter[str]) -> None:
    """Copy one task's results under a claim."""
    try:
        task, now = await ports.tasks.get(task_id), ports.clock.now()
        if task is None or task.state is not State.ARCHIVING or task.copied or task.claimed(now):
            return
        task = await ports.tasks.swap(task, task.copying(task.copies, until=now + CLAIM))
        copies = await _run_with_heartbeat(
            _Copying(task, ports, list(task.copies)), min(hard_stop, task.archive_by)
        )
        done.update(
            "archived" if copy.archived else "given_up" if copy.settled else "left" for copy in copies
        )
    except (StaleTaskError, StoreUnavailableError):
        return  # another invocation has it, or the tick comes back for it
    except Exception as error:  # noqa: BLE001  # its text may hold a link; the tick comes back for it
        ports.reporter.report("task.crashed", task_id=task_id, error=type(error).__name__)
        return
    if all(copy.settled for copy in copies):
        archived = sum(copy.archived for copy in copies)
        ports.reporter.report(
            "task.archived",
            task_id=task_id,
            caller=task.caller,
            files=archived,
            given_up=len(copies) - archived,
        )
        if ports.wake is not None:
            await ports.wake.wake(task_id)


async def _run_with_heartbeat(copying: "_Copying", stop: datetime) -> list[Copy]:
    """Copy until done or `stop`.

    The only place that writes, so that notes of progress and the claim cannot meet each other.

    Raises StaleTaskError where another invocation has ended the task, StoreUnavailableError where the end
    cannot be stored.
    """
    ports, task = copying.ports, copying.task
    work, pause = asyncio.create_task(copying.run()), FIRST_HEARTBEAT
    try:
        while not work.done() and (now := ports.clock.now()) < stop:
            heartbeat, pause = asyncio.ensure_future(ports.clock.sleep(min(pause, stop - now))), HEARTBEAT
            await asyncio.wait({work, heartbeat}, return_when=asyncio.FIRST_COMPLETED)
            heartbeat.cancel()
            if not work.done() and ports.clock.now() < stop:
                try:
                    task = await ports.tasks.swap(
                        task, task.copying(tuple(copying.copies), until=ports.clock.now() + CLAIM)
                    )
                except StoreUnavailableError:
                    continue  # the claim lasts for more than one heartbeat
    finally:
        work.cancel()
        await asyncio.wait({work})
        await ports.originals.close()
    if not work.cancelled():
        work.result()
    await ports.tasks.swap(task, task.copying(tuple(copying.copies), until=None))
    return copying.copies


@dataclass
class _Copying:
    """The copying of one task's files; `copies` is how far they have come."""

    task: Task
    ports: ArchivePorts
    copies: list[Copy]
    failures: int = field(default=0)  # in a row, without progress

    async def run(self) -> None:
        """Copy the files, one after the other."""
        for index, copy in enumerate(self.copies):
            if not copy.settled:
                await self._copy_with_retries(index)

    async def _copy_with_retries(self, index: int) -> None:
        """Copy a file, from where it broke off when it breaks off; one that changes each time is given up."""
        self.failures = changes = 0
        while True:
            try:
                await self._copy(index)
            except SourceGoneError as error:
                self._save(index, given_up=str(error))
                self._report("archive.failed", index, reason=str(error))
            except SourceChangedError:
                changes += 1
                await self._restart(index)
                if changes == CHANGES:
                    self._save(index, given_up="changes")
                    self._report("archive.failed", index, reason="changes")
                    return
                await self._back_off("changed", index)
            except (SourceUnavailableError, ArchiveUnavailableError) as error:
                await self._back_off(str(error), index)
            if self.copies[index].settled or self.failures == TRIES:
                return

    async def _back_off(self, reason: str, index: int) -> None:
        self.failures += 1
        self._report("archive.interrupted", index, reason=reason)
        if self.failures < TRIES:
            await self.ports.clock.sleep(PAUSE * 4 ** (self.failures - 1))

    async def _copy(self, index: int) -> None:
        """Copy what is missing of a file."""
        archive, key = self.ports.archive, self.copies[index].key(self.task.task_id)
        began, sizes = self.ports.clock.now(), await self._uploaded_parts(index)
        if self.copies[index].settled:
            return
        at, number = sum(sizes), len(sizes) + 1
        url = self.task.original(self.copies[index])
        while not self._complete(index, at, sizes):
            piece = await self.ports.originals.read(url, start=at, length=PART, tag=self.copies[index].tag)
            size, at = piece.size, at + len(piece.data)
            if max(at, size or 0) > MOST:
                raise SourceGoneError("too_large")
            if at == 0:
                raise SourceGoneError("empty")
            upload = self.copies[index].upload
            if upload is None:
                upload = await archive.begin(key, piece.media_type)
                self._save(index, upload=upload, size=size, tag=piece.tag)
            if size != self.copies[index].size:
                raise SourceChangedError
            if piece.data:
                await archive.put(key, upload, number, piece.data)
                sizes, number, self.failures = [*sizes, len(piece.data)], number + 1, 0
            if piece.last:
                break
        await archive.finish(key, self.copies[index].upload or "")
        self._save(index, archived=True)
        self._report(
            "result.archived",
            index,
            bytes=at,
            seconds=round((self.ports.clock.now() - began).total_seconds(), 3),
        )

    async def _uploaded_parts(self, index: int) -> list[int]:
        """List the sizes of the parts that are there already; a file that is there is settled."""
        copy = self.copies[index]
        key = copy.key(self.task.task_id)
        if copy.upload is None:
            return []
        sizes = await self.ports.archive.parts(key, copy.upload)
        if sizes is None and await self.ports.archive.link(key) is not None:
            self._save(index, archived=True)
            self._report("result.archived", index)
        elif sizes is None:
            self._save(index, upload=None, size=None, tag=None)
        elif sizes:
            self._report("archive.resumed", index, bytes=sum(sizes))
        return sizes or []

    def _complete(self, index: int, at: int, sizes: list[int]) -> bool:
        """Whether nothing is missing of a file.

        All bytes are there where its size is known; else the last part is shorter than any but the last can
        be.
        """
        size = self.copies[index].size
        return at == size if size is not None else bool(sizes) and sizes[-1] != PART

    async def _restart(self, index: int) -> None:
        copy = self.copies[index]
        self._save(index, upload=None, size=None, tag=None)
        if copy.upload is not None:
            with contextlib.suppress(ArchiveUnavailableError):  # what is left there is removed after a day
                await self.ports.archive.drop(copy.key(self.task.task_id), copy.upload)

    def _save(self, index: int, **progress: object) -> None:
        self.copies[index] = self.copies[index].model_copy(update=progress)

    def _report(self, event: str, index: int, **facts: str | float | None) -> None:
        task = self.task
        self.ports.reporter.report(
            event, task_id=task.task_id, caller=task.caller, n=self.copies[index].n, **facts
        )
