"""Runs functions in warm processes, each invocation with a time limit, and what goes its way beside them."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any

from taskhook.archive.copy import ArchiveReport
from taskhook.core.errors import RejectedError
from taskhook.poller.invocation import PollReport
from taskhook.submit.submit import SubmitResult
from taskhook.wiring import App
from tests.sim.injector import INVOCATION, FaultInjector, Invocation


class Runner:
    """Starts invocations; a container serves one at a time, and another when that one has ended well."""

    def __init__(self, injector: FaultInjector, start_container: Callable[[], App]) -> None:
        self.invocations: list[Invocation] = []
        self._injector, self._loop = injector, injector.loop
        self._start_container = start_container
        self._idle: dict[str, list[App]] = defaultdict(list)  # by function
        self._lives: list[asyncio.Task[Any]] = []
        self._asides: list[asyncio.Task[Any]] = []
        self._pristine = copy_context()

    def invoke(
        self,
        name: str,
        function: str,
        run: Callable[[App], Coroutine[Any, Any, Any]],
        again: Callable[[], Invocation],
        limit: float,
        heard: list[Any] | None = None,
    ) -> Invocation:
        """Run a function for at most `limit` seconds; `heard` gets its answer, `again` follows an error."""
        idle = self._idle[function]
        container = idle.pop() if idle else self._start_container()
        invocation = Invocation(f"#{len(self.invocations)} {name}", again)
        self.invocations.append(invocation)

        async def live() -> None:
            INVOCATION.set(invocation)
            self._injector.note(f"{invocation.name} begins")
            try:
                invocation.answer = await run(container)
            except RejectedError as error:
                invocation.answer = error
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001  # the function fails, as it would
                invocation.answer = error
            finally:
                if not invocation.dead and not self._injector.over:
                    self._injector.note(f"{invocation.name} ends: {_brief(invocation.answer)}")
                    idle.append(container)
                    if heard is not None:
                        heard.append(invocation.answer)
                invocation.ended.set()

        def time_out() -> None:
            if not invocation.ended.is_set() and not invocation.thawed:
                self._injector.note(f"{invocation.name} has run out of time")
                invocation.kill()

        self._lives.append(self._loop.create_task(live(), context=self._pristine.copy()))
        self._loop.call_later(limit, time_out)
        return invocation

    def aside(self, course: Coroutine[Any, Any, None]) -> None:
        """Let something of the world's go its way beside."""
        self._asides.append(self._loop.create_task(course, context=self._pristine.copy()))

    def cool(self) -> None:
        """Forget the warm processes."""
        self._idle.clear()

    def all_ended(self) -> bool:
        """Whether no invocation is under way."""
        return all(invocation.ended.is_set() for invocation in self.invocations)

    def asides_done(self) -> bool:
        """Whether nothing goes its way beside any more."""
        return all(task.done() for task in self._asides)

    async def clear(self) -> None:
        """Cancel whatever is left on the loop."""
        left = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, *self._asides, *self._lives, return_exceptions=True)


def _brief(answer: Any) -> str:
    match answer:
        case SubmitResult():
            return f"{answer.status} {answer.task.state}"
        case RejectedError():
            return f"{answer.status} {answer.message}"
        case PollReport():
            return f"{answer.steps} led={answer.led}"
        case ArchiveReport():
            return str(answer.files)
        case _:
            return repr(answer)[:200]
