"""What the agent knows of one command."""

import math
import time
from collections.abc import Callable

from sandbox.inside.core import Agent
from sandbox.inside.inputs import Input
from sandbox.inside.keeping import Kept
from sandbox.inside.outputs import Output
from sandbox.inside.processes import Request
from sandbox.inside.shims import Shim
from sandbox.inside.strays import ticks
from sandbox.inside.wire import (
    EXEC_BACKGROUND,
    EXEC_PTY,
    EXITED,
    KEPT,
    KEPT_ENDED,
    KEPT_TERMINAL,
    pack,
)


class Execution:
    """One command and what is known of it."""

    def __init__(
        self,
        agent: Agent,
        op: int,
        request: Request,
        shim: Shim,
        settle: "Callable[[Execution], None]",
        exceed: "Callable[[Execution], None]",
    ) -> None:
        self.op = op
        self.name = request.name
        self.kept = Kept(agent, op) if request.name else None
        self.window = request.credit
        self.terminal = bool(request.flags & EXEC_PTY)
        self.background = bool(request.flags & EXEC_BACKGROUND)
        self.started = time.monotonic()
        self.since = ticks()  # When it began, by the clock of /proc.
        timeout_s = request.timeout_ms / 1000 if request.timeout_ms else math.inf
        self.deadline = self.started + timeout_s
        self.shim = shim
        self.main = 0
        self.report = shim.report
        self.reports = 0
        self.reported = False  # The shim said itself that nothing is left.
        self.failed = 0  # The errno for which the program did not start.
        self.input = Input(agent, op, -1, self.terminal)
        self.output = Output(
            agent,
            op,
            self.kept,
            request.credit,
            request.limit,
            ended=lambda: settle(self),
            exceeded=lambda: exceed(self),
        )
        self.killed = False  # The client asked for its SIGKILL; a program may send its own.
        self.reason = EXITED
        self.status: int | None = None
        self.usage = (0, 0)
        self.ending = 0.0  # When the tree was first killed; 0 while it may live.
        self.next_sweep = 0.0
        self.empty = False
        self.silent = False
        self.settling = False
        self.oom_before = 0

    def record(self) -> bytes:
        """What a client that takes over is told of it, where it outlives its client."""
        if self.kept is None:
            return b""
        flags = (KEPT_ENDED if self.input.ends else 0) | (KEPT_TERMINAL if self.terminal else 0)
        counts = (*self.kept.acknowledged, *self.output.counts)
        waiting = sum(map(len, self.input.pending))
        number = (self.op, self.main, self.window)
        return KEPT.pack(*number, *counts, self.input.received, waiting, flags) + pack(self.name)
