"""The life of the operations that share one connection, whatever words it speaks.

An operation has a place from `add` on. `run` executes it and tells what it answers into the outbox
of the connection; streams are connected to that, and cost no task from then on. It is silenced by
whoever gives it up, and forgotten, counted by how it ended, when nothing of it is under way.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from app import graphql_metrics
from app.graphql_outbox import Line, Outbox
from schema.execution import Engine, Event, Prepared, Result, Stream, request_failure

MAX_ID = 256
"""Characters of an operation's id."""

_SETTLE_S = 1.0
_TURN = 16
"""Events of one stream that are handled before the other streams of the process get their turn."""

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Words(Protocol):
    """How a transport tells what its operations answer."""

    transport: str
    """Its name in the metrics."""

    def head(self, id_: str) -> bytes:
        """Give all of an answer that comes before its payload."""

    def tail(self, answer: Event | Result) -> bytes:
        """Give all of an answer that comes after its payload."""

    def complete(self, id_: str) -> bytes:
        """Give the last message of an operation that came to its end."""

    def failed(self, id_: str, refusal: Result) -> bytes:
        """Give the last message of an operation that failed."""


@dataclass(slots=True, eq=False)
class Operation:
    """One operation of a connection."""

    id: str
    type: str = "unknown"
    outcome: str = "canceled"
    is_silent: bool = False
    started: float = field(default_factory=time.perf_counter)
    task: "asyncio.Task[None] | None" = None
    line: Line | None = None


class Operations:
    """The operations of one connection, at most `max_running` at once.

    Their owner looks after the tasks that `spawn` begins: a mutation under way is finished,
    unheard, when its client gives it up or has gone, and keeps its place until then.
    """

    __slots__ = (
        "_engine",
        "_heard",
        "_outbox",
        "_running",
        "_spawn",
        "_timeout_s",
        "_words",
        "max_running",
    )

    def __init__(
        self,
        engine: Engine,
        outbox: Outbox,
        words: Words,
        spawn: Spawn,
        *,
        max_running: int,
        timeout_s: float,
    ) -> None:
        self.max_running = max_running
        self._engine = engine
        self._outbox = outbox
        self._words = words
        self._spawn = spawn
        self._timeout_s = timeout_s
        # Those heard, by their ids, and with them those that still take a place.
        self._heard: dict[str, Operation] = {}
        self._running: set[Operation] = set()

    def __contains__(self, id_: str) -> bool:
        return id_ in self._heard

    @property
    def is_full(self) -> bool:
        """Whether there is no place for one more."""
        return len(self._running) >= self.max_running

    # ---- places

    def add(self, id_: str) -> Operation:
        """Give a new operation its place. There must be one, and the id be free."""
        operation = self._heard[id_] = Operation(id_)
        self._running.add(operation)
        return operation

    def drop(self, operation: Operation) -> None:
        """Let go of the place of an operation."""
        self._running.discard(operation)
        if self._heard.get(operation.id) is operation:
            del self._heard[operation.id]

    def start(self, operation: Operation, work: Coroutine[Any, Any, None]) -> None:
        """Begin the work of an operation: `run`, or what leads to it.

        Who knows by now that it is a mutation has said so: that is begun even if it is given up.
        """
        task = operation.task = self._spawn(work)
        # A callback, for a task cancelled before its first step never reaches a `finally`.
        task.add_done_callback(partial(self._ended, operation))

    def stop(self, id_: str) -> None:
        """Say no more of an operation and stop it; one that is not there is over already."""
        operation = self._heard.pop(id_, None)
        if operation is not None:
            self._silence(operation)

    def close(self) -> None:
        """Stop them all."""
        for operation in tuple(self._running):
            self._silence(operation)
        self._heard.clear()

    async def finish(self, timeout_s: float) -> None:
        """Stop all but mutations, and let those be answered that are soon."""
        answered = []
        for operation in tuple(self._running):
            if operation.type != "mutation":
                self._silence(operation)
            elif operation.task is not None and not operation.is_silent:
                answered.append(operation.task)
        if answered:
            await asyncio.wait(answered, timeout=timeout_s)

    async def settle(self) -> None:
        """Let an operation end that is about to, such as one that was just stopped."""
        tasks = [operation.task for operation in self._running if operation.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=_SETTLE_S, return_when=asyncio.FIRST_COMPLETED)

    # ---- what they do

    async def run(
        self, operation: Operation, prepared: Prepared, context: Any, request_id: str
    ) -> None:
        """Execute an operation and tell what it answers, or that it failed, masked and logged."""
        operation.type = prepared.type
        try:
            if prepared.type == "subscription":
                await self._stream(operation, prepared, context)
            else:
                result = await self._engine.execute(prepared, context, timeout_s=self._timeout_s)
                await self._tell_last(operation, result)
        except Exception as error:  # noqa: BLE001 - masked and logged as any other bug.
            failed = Result.refused([request_failure(error, request_id)])
            await self.fail(operation, failed, "error")

    async def fail(self, operation: Operation, refusal: Result, outcome: str) -> None:
        """Tell why an operation ends before its time, or did not begin."""
        operation.outcome = outcome
        await self._tell(operation, self._words.failed(operation.id, refusal))

    async def _stream(self, operation: Operation, prepared: Prepared, context: Any) -> None:
        source = await self._engine.subscribe(prepared, context, timeout_s=self._timeout_s)
        if isinstance(source, Result):
            await self._tell_last(operation, source)
            return
        head = self._words.head(operation.id)
        if isinstance(source, Stream):
            # From here on nothing but the stream's queue costs: no task waits for its events.
            ended = partial(self._stream_ended, operation)
            operation.line = self._outbox.connect(head, source, ended)
            return
        count = 0
        async with aclosing(source):
            async for result in source:
                if not result.is_executed:
                    await self._tell_last(operation, result)
                    return
                await self._tell(operation, head + result.json() + self._words.tail(result))
                count += 1
                if count % _TURN == 0:
                    # Neither a source with a backlog nor the queue need ever suspend.
                    await asyncio.sleep(0)
        operation.outcome = "ok"
        await self._tell(operation, self._words.complete(operation.id))

    def _stream_ended(self, operation: Operation, stream: Stream) -> bytes:
        """Give the last message of an operation, and forget it."""
        end = stream.end
        operation.outcome = "ok" if end is None else graphql_metrics.outcome(end)
        self._forget(operation)
        if end is None:
            return self._words.complete(operation.id)
        return self._words.failed(operation.id, end)

    async def _tell_last(self, operation: Operation, result: Result) -> None:
        if not result.is_executed:
            await self.fail(operation, result, graphql_metrics.outcome(result))
            return
        words, id_ = self._words, operation.id
        answer = words.head(id_) + result.json() + words.tail(result)
        operation.outcome = graphql_metrics.outcome(result)
        await self._tell(operation, answer)
        await self._tell(operation, words.complete(id_))

    async def _tell(self, operation: Operation, message: bytes) -> None:
        if not operation.is_silent:
            await self._outbox.put(message)

    # ---- how they end

    def _silence(self, operation: Operation) -> None:
        """Say no more about an operation, and cancel it unless it is a mutation.

        Once: what it does at its end must not be broken off by whoever gives it up again.
        """
        if operation.is_silent:
            return
        operation.is_silent = True
        if operation.line is not None:
            self._forget(operation)
        elif operation.type != "mutation" and operation.task is not None:
            operation.task.cancel()

    def _ended(self, operation: Operation, _task: "asyncio.Task[None]") -> None:
        operation.task = None
        if operation.line is None:
            self._forget(operation)

    def _forget(self, operation: Operation) -> None:
        if operation not in self._running:
            return
        if operation.line is not None:
            operation.line.close()
        self.drop(operation)
        is_stream = operation.type in ("subscription", "unknown")
        seconds = None if is_stream else time.perf_counter() - operation.started
        graphql_metrics.record(operation.type, self._words.transport, operation.outcome, seconds)
