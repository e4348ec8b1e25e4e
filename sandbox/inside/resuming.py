"""Clients that take executions over from others, and say what of them is safe."""

from sandbox.inside.core import PARTS, Agent
from sandbox.inside.executions import Executions
from sandbox.inside.wire import (
    ACKNOWLEDGE,
    AMOUNT,
    OFFSETS,
    RELEASE,
    RESUME,
    STARTED,
    Refused,
)


class Resuming:
    """Tells of what outlived a client, sends it again, and lets go of it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.executions = agent.part(Executions)
        agent.operations[ACKNOWLEDGE] = self.on_acknowledge
        agent.operations[RESUME] = self.on_resume
        agent.operations[RELEASE] = self.on_release
        agent.greeting_hooks.append(self.greet)

    def greet(self) -> bytes:
        return b"".join(execution.record() for execution in self.executions.known())

    def on_acknowledge(self, op: int, body: bytes) -> None:
        execution = self.executions.find(op)
        if execution is not None and execution.kept is not None:
            freed = execution.kept.acknowledge(OFFSETS.unpack(body))
            execution.output.on_credit(freed)

    def on_resume(self, op: int, body: bytes) -> None:
        execution = self.executions.find(op)
        if execution is None or execution.kept is None:
            raise Refused("NOT_FOUND", "There is no such execution.")
        if execution.main:
            self.agent.send(STARTED, op, AMOUNT.pack(execution.main))
        freed = execution.kept.resume(OFFSETS.unpack(body))
        execution.output.on_credit(freed)

    def on_release(self, op: int, body: bytes) -> None:
        execution = self.executions.find(op)
        if execution is not None:
            self.executions.drop(execution)


PARTS.append(Resuming)
