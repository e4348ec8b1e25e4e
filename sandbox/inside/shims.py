"""How executions begin: shims, one of them ahead of need, and what connects them to the agent."""

import os
import signal

from sandbox.inside.barriers import write_rules
from sandbox.inside.core import Agent
from sandbox.inside.processes import Request, send_signal, shim
from sandbox.inside.terminals import open_terminal
from sandbox.inside.wire import EXEC_PTY


class Shims:
    """Forks shims; one spare waits, so that most executions start without that delay."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.root = os.fsencode(agent.options.get("workspace", "/workspace"))
        self.spare: tuple[int, list[int]] | None = None
        self.wants_spare = True
        self.rules = write_rules()
        agent.idle_hooks.append(self.prepare_spare)

    def start(self, body: bytes, request: Request) -> tuple[int, list[int]]:
        """A shim's PID, and our ends: stdin, stdout[, stderr], report."""
        self.wants_spare = True
        if request.flags & EXEC_PTY:
            return self.fork_on_terminal(body, request)
        return self.hand_over(body) or self.fork_shim(body)

    def fork_shim(self, body: bytes | None) -> tuple[int, list[int]]:
        """Its PID, and our ends of its pipes: stdin, stdout, stderr, report[, request]."""
        ours: list[int] = []
        theirs: list[int] = []
        directions = (True, False, False, False) if body else (True, False, False, False, True)
        try:
            for writes in directions:
                read, write = os.pipe()
                ours.append(write if writes else read)
                theirs.append(read if writes else write)
            return self.fork(body, ours, theirs), ours
        except OSError:
            for fd in ours + theirs:
                os.close(fd)
            raise

    def fork_on_terminal(self, body: bytes, request: Request) -> tuple[int, list[int]]:
        """Its PID, and our ends: of the terminal for writing and for reading, and the report."""
        held: list[int] = []
        try:
            held += open_terminal(request.rows, request.columns)
            held.append(os.dup(held[0]))
            held += os.pipe()
            reading, slave, writing, report, theirs = held
            pid = self.fork(body, [writing, reading, report], [slave, slave, slave, theirs])
        except OSError:
            for fd in held:
                os.close(fd)
            raise
        return pid, [writing, reading, report]

    def fork(self, body: bytes | None, ours: list[int], theirs: list[int]) -> int:
        """Fork a shim that keeps the descriptors `theirs`, which the agent then closes."""
        pid = os.fork()
        if pid == 0:
            try:
                shim(self.root, theirs, body, self.rules)
            finally:
                os._exit(0)
        for fd in set(theirs):
            os.close(fd)
        for fd in ours:
            os.set_blocking(fd, False)
        return pid

    def prepare_spare(self) -> None:
        """Fork a shim ahead of need: the next execution then starts without that delay."""
        if not self.wants_spare:
            return
        self.wants_spare = False
        if self.spare is None:
            try:
                self.spare = self.fork_shim(None)
            except OSError:
                return  # No room now; executions fork their own and say so if there is none.
            pid = self.spare[0]
            self.agent.children[pid] = lambda status: self.forget_spare(pid)

    def hand_over(self, body: bytes) -> tuple[int, list[int]] | None:
        """Give a request to the spare; None if there is none or the request fills its pipe."""
        if self.spare is None or len(body) > 4096:
            return None
        pid, ours = self.spare
        self.spare = None
        request = ours.pop()
        try:
            os.write(request, body)
        except OSError:
            # Code of the same uid has killed it.
            for fd in ours:
                os.close(fd)
            return None
        finally:
            os.close(request)
        send_signal(pid, signal.SIGCONT)
        return pid, ours

    def forget_spare(self, pid: int) -> None:
        if self.spare is not None and self.spare[0] == pid:
            for fd in self.spare[1]:
                os.close(fd)
            self.spare = None
