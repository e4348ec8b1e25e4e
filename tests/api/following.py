"""Clients that come back with their last cursor, and check everything they are told.

A follower holds one subscription over any number of connections and servers: when a connection
breaks it opens another one from its last cursor. A gap or a duplicate fails it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from tests.api import operations as op
from tests.api.transports import BROKEN, POLITE, Subscription, Transport

FINAL = {"COMPLETED", "FAILED", "STOPPED"}
# How long a client waits before it tries a server again that did not let it in.
_AGAIN_S = 0.05


def _nothing() -> None:
    return None


class Follower:
    """One subscription; `url()` names the server for each connection."""

    query = ""

    def __init__(self, url: Callable[[], str], token: str | None, **variables: Any) -> None:
        self._url, self._token, self.variables = url, token, variables
        self._changed = asyncio.Event()
        # Whoever looks at many followers may be called after each event.
        self.on_event: Callable[[], None] = _nothing
        self.transport: Transport = POLITE
        # Leave after so many events and come back; 0: stay.
        self.hop_after = 0
        # If set, it is asked at each connection after how many events to leave it; None: stay.
        self.leaves: Callable[[], int | None] | None = None
        self.cursor: str | None = None
        self.kinds: list[str] = []
        self.connections = 0
        self.is_over = False

    @property
    def resets(self) -> int:
        """How often it was told to begin anew."""
        return sum(kind.endswith("Reset") for kind in self.kinds)

    def take(self, event: dict[str, Any]) -> None:
        """Check one event against what was told before."""
        raise NotImplementedError

    async def run(self) -> None:
        """Follow until the subscription completes, or for ever."""
        while not self.is_over:
            try:
                await self._connect()
            except BROKEN:
                await asyncio.sleep(_AGAIN_S)

    async def _connect(self) -> None:
        left = (self.hop_after or None) if self.leaves is None else self.leaves()
        wanted = Subscription(self.query, self.variables, self._token, self.cursor)
        async with self.transport.open(self._url(), wanted) as events, aclosing(events):
            self.connections += 1
            self._told()
            if left == 0:
                return
            async for event in events:
                self.take(event)
                self.cursor = event["cursor"]
                self.kinds.append(event["__typename"])
                self._told()
                left = None if left is None else left - 1
                if left == 0:
                    return
            self.is_over = True
            self._told()

    def _told(self) -> None:
        self._changed.set()
        self.on_event()

    async def until_over(self) -> None:
        """Wait until the subscription has completed."""
        await self.until(lambda: self.is_over)

    async def until_told(self, count: int) -> None:
        """Wait until there were so many events."""
        await self.until(lambda: len(self.kinds) >= count)

    async def until(self, condition: Callable[[], object], *, within_s: float = 60.0) -> None:
        """Wait for something that events bring about."""
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"it did not come to it; {vars(self)}") from None


class ConversationFollower(Follower):
    """The texts of a conversation as a client shows them."""

    query = op.CONVERSATION_EVENTS

    def __init__(self, url: Callable[[], str], token: str | None, conversation_id: str) -> None:
        super().__init__(url, token, id=conversation_id)
        self.texts: dict[str, str] = {}
        self.states: dict[str, str] = {}

    def take(self, event: dict[str, Any]) -> None:
        kind = event["__typename"]
        message: dict[str, Any] = event.get("message") or {}
        if kind == "ConversationReset":
            nodes = event["conversation"]["messages"]["nodes"]
            self.texts = {node["id"]: node["content"] for node in nodes}
            self.states = {node["id"]: node["status"] for node in nodes}
        elif kind == "MessageAdded":
            assert message["id"] not in self.texts, f"told twice: {event}"
            self.texts[message["id"]] = ""
            self.states[message["id"]] = "PENDING" if message["role"] == "ASSISTANT" else "SENT"
        elif kind == "MessageDelta":
            known = self.texts[message["id"]]
            assert event["offset"] == len(known), f"{event} after {known!r}"
            assert self.states[message["id"]] not in FINAL, f"text after the end: {event}"
            self.texts[message["id"]] = known + event["text"]
        elif kind in ("MessageCompleted", "MessageFailed"):
            assert self.states[message["id"]] not in FINAL, f"ended twice: {event}"
            self.states[message["id"]] = message["status"]
            if kind == "MessageCompleted":
                assert message["content"] == self.texts[message["id"]]

    def is_final(self, message_id: str) -> bool:
        """Whether an answer has ended."""
        return self.states.get(message_id) in FINAL

    async def until_final(self, message_id: str) -> None:
        """Wait for the end of an answer."""
        await self.until(lambda: self.is_final(message_id))

    async def until_written(self, message_id: str, chars: int) -> None:
        """Wait until an answer has so many characters."""
        await self.until(lambda: len(self.texts.get(message_id, "")) >= chars)


class PlanFollower(Follower):
    """The steps of a run, with the output of their newest attempt."""

    query = op.PLAN_EVENTS

    def __init__(self, url: Callable[[], str], token: str | None, execution_id: str) -> None:
        super().__init__(url, token, id=execution_id)
        self._begin()

    def _begin(self) -> None:
        self.outputs: dict[int, str] = {}
        self.attempts: dict[int, int] = {}
        self.finished: dict[int, str] = {}
        self.status: str | None = None

    def take(self, event: dict[str, Any]) -> None:
        kind = event["__typename"]
        assert self.status is None, f"after the end: {event}"
        if kind == "PlanExecutionReset":
            self._begin()
        elif kind == "PlanExecutionFinished":
            self.status = event["execution"]["status"]
        elif kind == "PlanStepOutput":
            step = event["stepExecution"]["step"]["orderIndex"]
            assert event["offset"] == len(self.outputs[step]), f"{event} after {self.outputs}"
            self.outputs[step] += event["text"]
        else:
            step = event["step"]["orderIndex"]
            assert step not in self.finished, f"finished before: {event}"
            if kind == "PlanStepStarted":
                self.outputs[step] = ""
                self.attempts[step] = self.attempts.get(step, 0) + 1
            else:
                self.finished[step] = event["stepExecution"]["status"]
                if self.finished[step] == "COMPLETED":
                    assert event["stepExecution"]["output"] == self.outputs[step]


class OutputFollower(Follower):
    """What an execution wrote."""

    query = op.OUTPUT

    def __init__(self, url: Callable[[], str], token: str | None, execution_id: str) -> None:
        super().__init__(url, token, id=execution_id)
        self.text = ""
        self.execution: dict[str, Any] | None = None

    def take(self, event: dict[str, Any]) -> None:
        assert self.execution is None, f"after the end: {event}"
        if event["__typename"] == "SandboxOutputChunk":
            self.text += event["text"]
        elif event["__typename"] == "SandboxOutputReset":
            self.text = event["execution"]["stdout"]
        else:
            self.execution = event["execution"]


@asynccontextmanager
async def following(*followers: Follower) -> AsyncIterator[None]:
    """Run followers beside the block. What fails one of them fails the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(follower.run()) for follower in followers]
        yield
        for task in tasks:
            task.cancel()
