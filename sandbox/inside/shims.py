"""How executions begin: shims, some of them ahead of need, and what connects them to the agent."""

import os
import signal
import time
from collections import deque
from typing import TYPE_CHECKING

from sandbox.inside.barriers import write_rules
from sandbox.inside.core import Agent
from sandbox.inside.processes import Request, pack_order, send_signal, shim
from sandbox.inside.terminals import open_terminal

if TYPE_CHECKING:
    from sandbox.inside.processes import Order

MAX_ORDER = 4096  # Bytes that any pipe takes at once.
BUSY_S = 1.0


class Shims:
    """Forks shims; spares wait, so that most executions start without that delay.

    Each fork makes the agent copy the pages that it touches next. Where executions come one upon
    the other, spares are therefore forked several at once, as many as the option `spares` allows;
    elsewhere there is one. A shim serves one execution and no other.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.root = os.fsencode(agent.options.get("workspace", "/workspace"))
        self.most = int(agent.options.get("spares", "1"))
        self.batch = 1
        self.prepared = 0.0  # When spares were forked last.
        self.spares: deque[tuple[int, list[int]]] = deque()
        self.wants_spares = True
        self.rules = write_rules()
        agent.idle_hooks.append(self.prepare_spares)

    def start(self, request: Request) -> tuple[int, list[int]]:
        """A shim's PID, and our ends: stdin, stdout[, stderr], report."""
        self.wants_spares = True
        order = request.order(self.root)
        if order[-1]:
            return self.fork_on_terminal(order, request.rows, request.columns)
        return self.hand_over(order) or self.fork_shim(order)

    def fork_shim(self, order: "Order | None") -> tuple[int, list[int]]:
        """Its PID, and our ends of its pipes: stdin, stdout, stderr, report[, order]."""
        ours: list[int] = []
        theirs: list[int] = []
        directions = (True, False, False, False) if order else (True, False, False, False, True)
        try:
            for writes in directions:
                read, write = os.pipe()
                ours.append(write if writes else read)
                theirs.append(read if writes else write)
            return self.fork(order, ours, theirs), ours
        except OSError:
            for fd in ours + theirs:
                os.close(fd)
            raise

    def fork_on_terminal(self, order: "Order", rows: int, columns: int) -> tuple[int, list[int]]:
        """Its PID, and our ends: of the terminal for writing and for reading, and the report."""
        held: list[int] = []
        try:
            held += open_terminal(rows, columns)
            held.append(os.dup(held[0]))
            held += os.pipe()
            reading, slave, writing, report, theirs = held
            pid = self.fork(order, [writing, reading, report], [slave, slave, slave, theirs])
        except OSError:
            for fd in held:
                os.close(fd)
            raise
        return pid, [writing, reading, report]

    def fork(self, order: "Order | None", ours: list[int], theirs: list[int]) -> int:
        """Fork a shim that keeps the descriptors `theirs`, which the agent then closes."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                shim(theirs, order, self.rules)
                status = 0  # Nothing is left below it; see Executions.bury.
            finally:
                os._exit(status)
        for fd in set(theirs):
            os.close(fd)
        for fd in ours:
            os.set_blocking(fd, False)
        return pid

    def prepare_spares(self) -> None:
        """Fork shims ahead of need: the next executions then start without that delay."""
        if not self.wants_spares:
            return
        self.wants_spares = False
        if self.spares:
            return
        now = time.monotonic()
        self.batch = min(2 * self.batch, self.most) if now - self.prepared < BUSY_S else 1
        self.prepared = now
        for _ in range(self.batch):
            try:
                pid, ours = self.fork_shim(None)
            except OSError:
                return  # No room now; executions fork their own and say so if there is none.
            self.spares.append((pid, ours))
            self.agent.children[pid] = lambda status, pid=pid: self.forget_spare(pid)  # type: ignore[misc]

    def hand_over(self, order: "Order") -> tuple[int, list[int]] | None:
        """Give an order to a spare; None if there is none or the order fills its pipe."""
        if not self.spares:
            return None
        sent = pack_order(order)
        if len(sent) > MAX_ORDER:
            return None
        pid, ours = self.spares.popleft()
        pipe = ours.pop()
        try:
            os.write(pipe, sent)
        except OSError:
            # Code of the same uid has killed it.
            for fd in ours:
                os.close(fd)
            return None
        finally:
            os.close(pipe)
        send_signal(pid, signal.SIGCONT)
        return pid, ours

    def forget_spare(self, pid: int) -> None:
        for spare in self.spares:
            if spare[0] == pid:
                self.spares.remove(spare)
                for fd in spare[1]:
                    os.close(fd)
                return
