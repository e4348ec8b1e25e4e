"""What lost its parent, on kernels where no process but the first can be a reaper of others.

gVisor has subreapers from July 2023 on. Before that whatever loses its parent becomes a child of
process 1, so of the agent, which finds out whose it is: its session is that of a shim. What has
left that too counts as part of each execution that had begun before it and ends while it lives.
"""

import os
import signal
import struct
import time
from typing import TYPE_CHECKING

from sandbox.inside.native import Memory, libc_prctl
from sandbox.inside.processes import descendants, is_dead, processes, send_signal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox.inside.core import Agent
    from sandbox.inside.execution import Execution

PR_GET_CHILD_SUBREAPER = 37
ANSWER = struct.Struct("i")
# Of the clock that processes are dated by, 10 ms each: within them, numbers tell who was first.
TICKS_OF_DOUBT = 1


def has_subreapers() -> bool:
    """Whether this process, which has asked to be one, is told that it is a subreaper."""
    answer = Memory()
    return libc_prctl(PR_GET_CHILD_SUBREAPER, answer, 0, 0, 0) == 0 and ANSWER.unpack_from(
        answer
    ) == (1,)


def ticks() -> int:
    """Now, as /proc dates processes."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def strays(own: "set[int]", execution: "Execution", others: "set[int]") -> "set[int]":
    """Orphans of an execution's session, and those of none of the `others` that began later.

    `own` are the children of the agent itself.
    """
    found = set()
    for pid, fields in processes().items():
        if fields[1] != b"1" or pid in own or is_dead(fields):
            continue
        session, age = int(fields[3]), int(fields[19]) - execution.since
        is_later = age > TICKS_OF_DOUBT or (age >= -TICKS_OF_DOUBT and pid > execution.main)
        if session == execution.shim.pid or (session not in others and is_later):
            found.add(pid)
    return found


def end_strays(found: "set[int]") -> None:
    """Stop orphans and all below them until nothing new appears there, then kill all of it."""
    for _ in range(64):
        for pid in found:
            send_signal(pid, signal.SIGSTOP)
        fresh = descendants(found) - found
        if not fresh:
            break
        found = found | fresh
    for pid in found:
        send_signal(pid, signal.SIGKILL)


class Adopted:
    """Executions whose shim is gone, but not what had lost its parent: that is ours now."""

    def __init__(self, agent: "Agent") -> None:
        self.agent = agent
        self.needed = not has_subreapers()
        self.left: list[Execution] = []

    def keep(self, execution: "Execution", shims: "Iterable[int]") -> bool:
        """Whether there is something left of it; it is ended where that is due, now and later."""
        if not self.needed:
            return False
        others = {*shims, *(one.shim.pid for one in self.left)}
        found = strays(set(self.agent.children), execution, others)
        if execution in self.left:
            self.left.remove(execution)
        if not found:
            return False
        self.left.append(execution)
        now = time.monotonic()
        if not execution.background:
            execution.ending = execution.ending or now
        if execution.ending:
            end_strays(found)
        execution.next_sweep = now + (0.005 if execution.ending else 0.05)
        return True
