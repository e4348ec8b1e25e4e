"""What an execution writes: sent as far as its credit, its limit and the channel go."""

import errno
import os
import select
from collections.abc import Callable

from sandbox.inside.core import Agent
from sandbox.inside.keeping import Kept
from sandbox.inside.wire import CHUNK, OUTPUT


class Output:
    """The ways from the standard output and error, or the terminal, of one execution.

    `ended()` is called when one of them has come to its end, `exceeded()` when more came than may.
    """

    def __init__(
        self,
        agent: Agent,
        op: int,
        kept: "Kept | None",
        credit: int,
        limit: int,
        ended: "Callable[[], None]",
        exceeded: "Callable[[], None]",
    ) -> None:
        self.agent = agent
        self.op = op
        self.kept = kept
        self.credit = credit
        self.limit = limit
        self.ended = ended
        self.exceeded = exceeded
        self.streams: dict[int, int] = {}  # Descriptors still open, and the stream of each.
        self.counts = [0, 0]
        self.truncated = False
        self.crowded = False  # The channel is full.
        self.unheld = False  # Nobody holds the terminal open; see set_unheld.
        self.left = False  # Nobody is left who could open the terminal again.
        self.silent = False  # Nobody wants to hear of it any more.

    def on_credit(self, amount: int) -> None:
        self.credit += amount
        self.watch()

    def watch(self) -> None:
        self.crowded = self.agent.is_full()
        for fd in self.streams:
            if self.credit > 0 and not self.crowded:
                self.watch_stream(fd)
            else:
                self.agent.unwatch(fd)

    def watch_stream(self, fd: int) -> None:
        if fd not in self.agent.handlers:
            # A terminal that nobody holds open is always ready: only what is new there is told.
            events = select.EPOLLIN | (select.EPOLLET if self.unheld else 0)
            self.agent.watch(fd, events, lambda events: self.on_ready(fd))

    def set_unheld(self, unheld: bool) -> None:
        """Whether nobody holds the terminal open, though the program lives and may open it again.

        The agent's end stays open: to close it would end the program by SIGHUP.
        """
        if unheld != self.unheld:
            self.unheld = unheld
            for fd in self.streams:
                self.agent.unwatch(fd)
            self.watch()

    def on_ready(self, fd: int) -> None:
        if fd in self.streams:
            self.forward(fd)

    def forward(self, fd: int) -> bool:
        """Forward one chunk; False when there is nothing more to read now or no credit."""
        if self.credit <= 0:
            return False
        index = self.streams[fd]
        room = self.limit - self.counts[index]
        size = min(CHUNK, self.credit, room + 1)
        try:
            count = os.readv(fd, [self.agent.buffer[:size]])
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            if not self.left:
                self.set_unheld(True)
                return False
            count = 0
        data = bytes(self.agent.buffer[:count])
        if not data:
            del self.streams[fd]
            self.agent.close(fd)
            self.ended()
            return False
        self.set_unheld(False)
        if len(data) > room:
            data = data[:room]
            self.truncated = True
        self.counts[index] += len(data)
        self.credit -= len(data)
        if self.silent or not data:
            pass
        elif self.kept is not None:
            self.kept.add(index, data)
        else:
            self.agent.send(OUTPUT, self.op, bytes((index,)), data)
        if self.truncated:
            self.exceeded()
            return False
        if self.credit <= 0 or self.agent.is_full():
            self.watch()
            return False
        return True

    def leave(self) -> None:
        """Nothing is left of the processes: what a terminal holds is its last."""
        self.left = True
        self.set_unheld(False)

    def drain(self) -> None:
        """Forward what is there now, as far as the credit goes; the rest is not waited for."""
        for fd in list(self.streams):
            while fd in self.streams and self.forward(fd):
                continue
        self.truncated = self.truncated or bool(self.streams)

    def close(self) -> None:
        for fd in self.streams:
            self.agent.close(fd)
        self.streams.clear()
        # They know the execution, which knows this: so it is freed at once, with what it keeps.
        self.ended = self.exceeded = ignore


def ignore() -> None:
    """What is called of an output that is closed."""
