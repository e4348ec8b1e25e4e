"""Blocking jobs in a child of the agent: archives, walks, removal of whole trees.

A worker has the memory and the descriptors of nobody but itself to lose: it cannot be opened by
other code (it is not dumpable), but it can be killed by it, which fails its operation.
"""

import os
import select
import signal
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from sandbox.inside.processes import (
    WORKER_SCORE,
    leave_agent,
    open_oom_score,
    read_all,
    send_signal,
    set_oom_score,
)
from sandbox.inside.wire import (
    AMOUNT,
    CHUNK,
    DATA,
    DONE,
    ERROR,
    WRITE_CREDIT,
    WRITE_WINDOW,
    Refused,
    refusal,
)

if TYPE_CHECKING:
    from sandbox.inside.core import Agent

    Work = Callable[[int, int], bytes | None]

MAX_WORKERS = 16
MAX_ANSWER = 4096  # Bytes of an answer; a pipe takes them at once.


class Worker:
    """One job: what it writes goes out as DATA as far as credit allows, then DONE or ERROR.

    `work(output, input)` runs in the child with two blocking descriptors (`input` is -1 unless
    the job receives WRITE_DATA) and returns the body of DONE, or raises Refused or OSError.
    """

    def __init__(self, agent: "Agent", op: int, work: "Work", credit: int, receives: bool) -> None:
        self.agent = agent
        self.op = op
        self.credit = credit
        self.gone = False
        self.pending: deque[bytes] = deque()
        self.input_ends = False
        pipes = [os.pipe() for _ in range(3 if receives else 2)]
        try:
            self.pid = os.fork()
        except OSError:
            for pair in pipes:
                os.close(pair[0])
                os.close(pair[1])
            raise
        # Ours are what the child writes, output and answer, and the other end of what it reads.
        theirs = [pipes[0][1], pipes[1][1]] + [pair[0] for pair in pipes[2:]]
        if self.pid == 0:
            try:
                run_worker(theirs, work)
            finally:
                os._exit(0)
        for fd in theirs:
            os.close(fd)
        self.output, self.answer = pipes[0][0], pipes[1][0]
        self.input = pipes[2][1] if receives else -1
        for fd in (self.output, self.input):
            if fd >= 0:
                os.set_blocking(fd, False)
        agent.workers[op] = self
        agent.children[self.pid] = self.on_exit
        agent.cancel_hooks[op] = self.stop
        agent.credit_hooks[op] = self.on_credit
        if receives:
            agent.data_hooks[op] = self.on_data
            agent.end_hooks[op] = self.on_data_end
        self.watch()

    def watch(self) -> None:
        agent = self.agent
        if self.output >= 0:
            if self.credit > 0 and not agent.is_full():
                agent.watch(self.output, select.EPOLLIN, self.on_output)
            else:
                agent.unwatch(self.output)

    def on_credit(self, amount: int) -> None:
        self.credit += amount
        self.watch()

    def on_output(self, events: int) -> None:
        if self.credit <= 0:
            return
        try:
            data = os.read(self.output, min(CHUNK, self.credit))
        except BlockingIOError:
            return
        if data:
            self.credit -= len(data)
            self.agent.send(DATA, self.op, data)
            self.watch()
            return
        self.agent.close(self.output)
        self.output = -1
        self.settle()

    def on_exit(self, status: int) -> None:
        self.gone = True
        self.settle()

    def settle(self) -> None:
        """Answer once the worker is gone and all that it wrote is out."""
        if not self.gone or self.answer < 0:
            return
        if self.output >= 0:
            look = select.poll()
            look.register(self.output, select.POLLIN)
            if look.poll(0) != [(self.output, select.POLLHUP)]:
                return  # There is more, which waits for credit.
        answer = read_all(self.answer)
        if answer[:1] == b"D":
            self.agent.send(DONE, self.op, answer[1:])
        elif answer[:1] == b"E":
            self.agent.send(ERROR, self.op, answer[1:])
        else:
            self.agent.fail(self.op, Refused("EXHAUSTED", "The operation was killed."))
        self.stop()

    def on_data(self, data: bytes) -> None:
        self.pending.append(data)
        if sum(map(len, self.pending)) > WRITE_WINDOW:
            self.stop()
            raise Refused("INVALID", "More was sent than there was room for.")
        self.feed(0)

    def on_data_end(self) -> None:
        self.input_ends = True
        self.feed(0)

    def feed(self, events: int) -> None:
        if self.input < 0:
            # It needs no more: what comes is thrown away, so that its answer is reached.
            self.acknowledge(sum(map(len, self.pending)))
            self.pending.clear()
            return
        taken = 0
        while self.pending:
            try:
                written = os.write(self.input, self.pending[0])
            except BlockingIOError:
                break
            except OSError:
                taken += sum(map(len, self.pending))
                self.pending.clear()
                self.input_ends = True
                break
            taken += written
            if written < len(self.pending[0]):
                self.pending[0] = self.pending[0][written:]
            else:
                self.pending.popleft()
        self.acknowledge(taken)
        if self.pending:
            self.agent.watch(self.input, select.EPOLLOUT, self.feed)
        elif self.input_ends:
            self.agent.close(self.input)
            self.input = -1
        else:
            self.agent.unwatch(self.input)

    def acknowledge(self, taken: int) -> None:
        if taken:
            self.agent.send(WRITE_CREDIT, self.op, AMOUNT.pack(taken))

    def stop(self) -> None:
        """End the job without an answer; the child is reaped by the agent."""
        if not self.gone:
            send_signal(self.pid, signal.SIGKILL)
        for fd in (self.output, self.answer, self.input):
            if fd >= 0:
                self.agent.close(fd)
        self.output = self.answer = self.input = -1
        if self.agent.workers.get(self.op) is self:
            del self.agent.workers[self.op]
            self.agent.forget(self.op)


def run_worker(pipes: list[int], work: "Work") -> None:
    """In the child: do the work, then say how it went."""
    null = os.open("/dev/null", os.O_RDWR)
    leave_agent([null, null, 2, *pipes])
    score = open_oom_score()
    set_oom_score(score, WORKER_SCORE)
    try:
        body = work(3, 5 if len(pipes) > 2 else -1)
        answer = b"D" + (body or b"")
    except Refused as refused:
        answer = b"E" + refused.body()
    except OSError as error:
        answer = b"E" + refusal(error).body()
    except MemoryError:
        answer = b"E" + Refused("EXHAUSTED", "The sandbox has no memory left.").body()
    except Exception as error:  # noqa: BLE001 - told to the client; the child ends.
        answer = b"E" + Refused("DENIED", "The operation failed: " + repr(error)[:200]).body()
    os.write(4, answer[:MAX_ANSWER])
