"""Calls between nodes: handlers run as tasks of their own, and requests and answers are JSON."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import orjson

from services.events.base import BusUnavailableError, CallError, Json, NodeUnavailableError
from services.events.hub import decode, encode

Handler = Callable[[Json], Awaitable[Json]]
T = TypeVar("T")

INTERNAL = "INTERNAL"
_INTERNAL_MESSAGE = "The call failed on the other node."
# How often one that waits for an answer looks whether the other node is still alive.
_LIVENESS_S = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of one call: `data`, or the handler's refusal."""

    data: Json
    code: str = ""
    message: str = ""

    def result(self) -> Json:
        """Give the data, or raise CallError."""
        if self.code:
            raise CallError(self.code, self.message)
        return self.data


class TaskSet:
    """Tasks owned by an object, cancelled and awaited by `aclose`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `work` as a task of this set."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def ended(self) -> None:
        """Return when all tasks have ended by themselves."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self) -> None:
        """Cancel all tasks and return when they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Handlers:
    """The methods this node answers, at most `max_running` calls at a time.

    A handler goes on when its caller is cancelled or gives up; it is cancelled by `aclose` only.
    """

    def __init__(self, *, max_running: int = 1_000) -> None:
        self._handlers: dict[str, Handler] = {}
        self._max_running = max_running
        self._tasks = TaskSet()
        self._is_closed = False

    def add(self, method: str, handler: Handler) -> None:
        """Answer `method` with `handler`, in place of an earlier one."""
        self._handlers[method] = handler

    def start(self, method: str, payload: bytes) -> asyncio.Task[Reply]:
        """Run the handler of `method` as a task that gives a Reply and never fails."""
        if self._is_closed:
            raise BusUnavailableError("The bus is closed.")
        return self._tasks.start(self._run(method, payload), name=f"call {method}")

    async def call(self, node_id: str, method: str, data: Json, timeout_s: float) -> Json:
        """Run `method` on this very node, under the terms of a call to another one."""
        task = self.start(method, encode(data))
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            raise NodeUnavailableError(f"Node {node_id} did not answer in {timeout_s:g} s.")
        if task.cancelled():
            raise NodeUnavailableError(f"Node {node_id} is closing.")
        return task.result().result()

    async def aclose(self) -> None:
        """Cancel the running handlers and refuse new calls."""
        self._is_closed = True
        await self._tasks.aclose()

    async def _run(self, method: str, payload: bytes) -> Reply:
        handler = self._handlers.get(method)
        if handler is None:
            return Reply({}, "UNKNOWN_METHOD", f"This node does not answer {method!r}.")
        if len(self._tasks) > self._max_running:
            return Reply({}, "BUSY", "This node answers too many calls already; try again.")
        try:
            return Reply(decode(encode(await handler(decode(payload)))))
        except Exception as refusal:  # noqa: BLE001 - whatever a handler raises is its answer.
            return _refusal(method, refusal)


class RedisCalls:
    """Calls to other nodes and from them, each a message on the channel of a node and one back.

    `execute` runs a command of Redis, `alive` gives the ids of the nodes alive. What is answered to
    others runs in `tasks`. The owner subscribes to `requests` and `replies`, and passes what comes
    there on to `answer` and `settle`.
    """

    def __init__(
        self,
        node_id: str,
        handlers: Handlers,
        tasks: TaskSet,
        execute: Callable[..., Awaitable[Any]],
        alive: Callable[[], Awaitable[set[str]]],
        *,
        channel_prefix: bytes,
        reply_channel: bytes,
    ) -> None:
        self._node_id = node_id
        self._handlers = handlers
        self._tasks = tasks
        self._execute = execute
        self._alive = alive
        self._channel_prefix = channel_prefix
        self.requests = self._channel(node_id)
        self.replies = reply_channel
        self._waiting: dict[str, asyncio.Future[Reply]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def call(self, node_id: str, method: str, data: Json, timeout_s: float) -> Json:
        """Give what the handler of `method` on a node answers.

        Raises CallError for its refusal, NodeUnavailableError for a node that is dead, dies or is
        late, and BusUnavailableError.
        """
        if node_id == self._node_id:
            return await self._handlers.call(node_id, method, data, timeout_s)
        call_id = secrets.token_hex(8)
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = reply
        request = orjson.dumps(
            {
                "id": call_id,
                "to": self.replies.decode(),
                "method": method,
                "data": orjson.Fragment(encode(data)),
            }
        )
        try:
            async with asyncio.timeout(timeout_s):
                if not await self._execute("PUBLISH", self._channel(node_id), request):
                    raise NodeUnavailableError(f"Node {node_id} is not alive.")
                while not (await asyncio.wait({reply}, timeout=_LIVENESS_S))[0]:
                    if node_id not in await self._alive():
                        raise NodeUnavailableError(f"Node {node_id} died before it answered.")
        except TimeoutError as error:
            raise NodeUnavailableError(
                f"Node {node_id} did not answer in {timeout_s:g} s."
            ) from error
        finally:
            del self._waiting[call_id]
        if reply.cancelled():
            raise BusUnavailableError("The bus is closed.")
        return reply.result().result()

    def answer(self, message: bytes) -> None:
        """Run the handler another node asks for, and send it the answer."""
        request = orjson.loads(message)
        task = self._handlers.start(request["method"], orjson.dumps(request["data"]))
        self._tasks.start(self._reply(request["id"], request["to"], task), name="call reply")

    def settle(self, message: bytes) -> None:
        """Give the answer of another node to whoever waits for it."""
        answer = orjson.loads(message)
        waiting = self._waiting.get(answer["id"])
        if waiting is not None and not waiting.done():
            waiting.set_result(Reply(answer["data"], answer["code"], answer["message"]))

    def close(self) -> None:
        """Let whoever waits for an answer hear that the bus is closed."""
        for waiting in self._waiting.values():
            waiting.cancel()

    def _channel(self, node_id: str) -> bytes:
        return self._channel_prefix + node_id.encode()

    async def _reply(self, call_id: str, channel: str, task: asyncio.Task[Reply]) -> None:
        await asyncio.wait({task})
        if task.cancelled():
            return
        reply = task.result()
        answer = {
            "id": call_id,
            "data": orjson.Fragment(encode(reply.data)),
            "code": reply.code,
            "message": reply.message,
        }
        try:
            await self._execute("PUBLISH", channel, orjson.dumps(answer))
        except BusUnavailableError as error:
            _log.warning("The answer to a call did not reach Redis: %s", error)


def _refusal(method: str, error: Exception) -> Reply:
    code = getattr(error, "code", None)
    code = code.value if isinstance(code, Enum) else code
    message = getattr(error, "message", None)
    if isinstance(code, str) and code and isinstance(message, str):
        return Reply({}, code, message)
    _log.error("The handler of call %s failed", method, exc_info=error)
    return Reply({}, INTERNAL, _INTERNAL_MESSAGE)
