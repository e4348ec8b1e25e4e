"""What is written to an execution: kept while its pipe or terminal is full, then its end."""

import os
import select
from collections import deque

from sandbox.inside.core import Agent
from sandbox.inside.terminals import end_of_input
from sandbox.inside.wire import AMOUNT, STDIN_CREDIT


class Input:
    """The way to the standard input of one execution; `fd` is -1 once it is closed."""

    def __init__(self, agent: Agent, op: int, fd: int, terminal: bool) -> None:
        self.agent = agent
        self.op = op
        self.fd = fd
        self.terminal = terminal
        self.pending: deque[bytes] = deque()
        self.ends = False
        self.last = b""  # The last byte written.
        self.received = 0
        self.silent = False  # Nobody wants to hear of it any more.

    def add(self, data: bytes) -> None:
        self.received += len(data)
        if self.fd < 0:
            self.credit(len(data))
        else:
            self.pending.append(data)
            self.feed(0)

    def credit(self, size: int) -> None:
        """Tell that there is room for more; not of an operation whose number may be another's."""
        if not self.silent:
            self.agent.send(STDIN_CREDIT, self.op, AMOUNT.pack(size))

    def end(self) -> None:
        self.ends = True
        self.feed(0)

    def feed(self, events: int) -> None:
        """Write what the pipe takes; wait for room by epoll, never by blocking."""
        if self.fd < 0:
            return
        taken = 0
        closed = False
        while self.pending:
            data = self.pending[0]
            try:
                written = os.write(self.fd, data)
            except BlockingIOError:
                break
            except OSError:
                taken += sum(map(len, self.pending))
                self.pending.clear()
                closed = True
                break
            taken += written
            self.last = data[written - 1 : written]
            if written < len(data):
                self.pending[0] = data[written:]
            else:
                self.pending.popleft()
        if taken:
            self.credit(taken)
        waits = bool(self.pending)
        if not waits and self.ends and self.terminal and not closed:
            waits = not self.type_end()
        if waits:
            self.agent.watch(self.fd, select.EPOLLOUT, self.feed)
        elif closed or self.ends:
            self.close()
        else:
            self.agent.unwatch(self.fd)

    def type_end(self) -> bool:
        """Let the program see the end of its input; False where the terminal has no room now."""
        try:
            os.write(self.fd, end_of_input(self.fd, self.last))
        except BlockingIOError:
            return False
        except OSError:
            return True  # The other end is closed.
        return True

    def close(self) -> None:
        if self.fd >= 0:
            self.agent.close(self.fd)
            self.fd = -1
