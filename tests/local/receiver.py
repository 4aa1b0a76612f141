"""The server behind callback URLs: it verifies with the reference library, records, answers as told."""

import asyncio
import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import BaseModel, ConfigDict, Field, field_validator
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.local.server import DroppedError, control_body, envelope, json_response
from tests.modellix.words import minified, success_body


@dataclass(slots=True, kw_only=True)
class Delivery:
    """One callback as it arrived; header names are in lower case, the times are unix seconds."""

    path: str
    query: str
    task_id: str | None
    received_at: float
    headers: dict[str, str]
    body: str
    verified: bool
    reason: str | None  # why it is not verified
    answered_at: float | None = None  # None while the answer is held back
    status_answered: int | None = None  # 0: closed without an answer


class Behaviour(BaseModel):
    """How the next `times` deliveries to a path are answered; 0 closes; `times` null: until forgotten."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    path: str = Field(pattern="^/")
    status: int = 200
    headers: dict[str, str] = {}
    delay_s: float = Field(default=0.0, ge=0)
    times: int | None = Field(default=1, ge=1)
    body: str = ""

    @field_validator("status")
    @classmethod
    def _can_be_answered(cls, status: int) -> int:
        if status != 0 and not 200 <= status <= 599:
            msg = "must be 0 or from 200 to 599"
            raise ValueError(msg)
        return status


@dataclass(slots=True)
class _Armed:
    behaviour: Behaviour
    left: int | None


class Receiver:
    """The state of one receiver: the secrets it knows, how it is to answer, and what it was sent."""

    def __init__(
        self, secrets: Iterable[str] = (), *, on_delivery: Callable[[Delivery], None] | None = None
    ) -> None:
        """Answer 200 until told otherwise; `on_delivery` gets each delivery as it is answered."""
        self.deliveries: list[Delivery] = []
        self._secrets: dict[str, Webhook] = {}
        self._behaviours: defaultdict[str, deque[_Armed]] = defaultdict(deque)
        self._on_delivery = on_delivery
        for secret in secrets:
            self.add_secret(secret)

    def app(self, *listening: Middleware) -> web.Application:
        """Build the application that serves this state, and `listening` to it."""
        app = web.Application(middlewares=[*listening, envelope], client_max_size=16 * 2**20)
        app.router.add_post("/_control", self._behave)
        app.router.add_get("/_control", self._list)
        app.router.add_get("/_control/counts", self._counts)
        app.router.add_delete("/_control", self._forget)
        app.router.add_post("/{path:.*}", self._receive)
        return app

    def add_secret(self, secret: str) -> None:
        """Accept signatures made with this secret too, besides those already known."""
        self._secrets[secret] = Webhook(secret)

    def behave(self, behaviour: Behaviour) -> None:
        """Put a behaviour behind those already waiting for its path."""
        self._behaviours[behaviour.path].append(_Armed(behaviour, behaviour.times))

    def forget_behaviours(self) -> None:
        """Answer everything with 200 again; what was recorded stays."""
        self._behaviours.clear()

    async def _behave(self, request: web.Request) -> web.Response:
        self.behave(await control_body(request, Behaviour))
        return json_response(success_body({}))

    async def _list(self, request: web.Request) -> web.Response:
        task_id = request.query.get("task_id")
        wanted = [
            asdict(delivery) for delivery in self.deliveries if not task_id or delivery.task_id == task_id
        ]
        return json_response(minified({"deliveries": wanted}))

    async def _counts(self, _: web.Request) -> web.Response:
        return json_response(minified({"deliveries": len(self.deliveries)}))

    async def _forget(self, _: web.Request) -> web.Response:
        self.forget_behaviours()
        return json_response(success_body({}))

    async def _receive(self, request: web.Request) -> web.Response:
        received_at = time.time()
        body = await request.read()
        headers = {name.lower(): ", ".join(request.headers.getall(name)) for name in request.headers}
        reason = self._refute(body, headers)
        delivery = Delivery(
            path=request.path,
            query=request.query_string,
            task_id=headers.get("x-modellix-task-id") or _task_id(body),
            received_at=received_at,
            headers=headers,
            body=body.decode(errors="replace"),
            verified=reason is None,
            reason=reason,
        )
        self.deliveries.append(delivery)
        behaviour = self._next_behaviour(request.path)
        await asyncio.sleep(behaviour.delay_s)
        delivery.status_answered = behaviour.status
        delivery.answered_at = time.time()
        if self._on_delivery is not None:
            self._on_delivery(delivery)
        if behaviour.status == 0:
            raise DroppedError
        return web.Response(status=behaviour.status, headers=behaviour.headers, text=behaviour.body or None)

    def _next_behaviour(self, path: str) -> Behaviour:
        queue = self._behaviours[path]
        if not queue:
            return Behaviour(path=path)
        armed = queue[0]
        if armed.left is not None:
            armed.left -= 1
            if armed.left == 0:
                queue.popleft()
        return armed.behaviour

    def _refute(self, body: bytes, headers: dict[str, str]) -> str | None:
        """Return why no known secret verifies a message, or None when one does."""
        reason = "No signing secret is known"
        for webhook in self._secrets.values():
            try:
                # Only the signature is judged: the library's own parsing raises on an empty body.
                webhook.verify(body, headers, json_parse=False)
            except WebhookVerificationError as error:
                reason = str(error)
            except ValueError as error:
                # A list item without a comma, bad base64 or a body that is not UTF-8.
                reason = f"Malformed: {error}"
            else:
                return None
        return reason


def _task_id(body: bytes) -> str | None:
    try:
        task_id: Any = json.loads(body)["data"]["task_id"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return task_id if isinstance(task_id, str) else None
