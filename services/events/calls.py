"""Handlers of calls between nodes: they run as tasks of their own and answer in JSON."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from services.events.base import BusUnavailableError, CallError, Json, NodeUnavailableError
from services.events.hub import decode, encode

Handler = Callable[[Json], Awaitable[Json]]
T = TypeVar("T")

INTERNAL = "INTERNAL"
_INTERNAL_MESSAGE = "The call failed on the other node."

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


def _refusal(method: str, error: Exception) -> Reply:
    code = getattr(error, "code", None)
    code = code.value if isinstance(code, Enum) else code
    message = getattr(error, "message", None)
    if isinstance(code, str) and code and isinstance(message, str):
        return Reply({}, code, message)
    _log.error("The handler of call %s failed", method, exc_info=error)
    return Reply({}, INTERNAL, _INTERNAL_MESSAGE)
