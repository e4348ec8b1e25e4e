"""The processes inside, listed and signalled one by one."""

import os
import signal
import time

from sandbox.inside.core import PARTS, Agent
from sandbox.inside.executions import Executions
from sandbox.inside.processes import processes, read_file
from sandbox.inside.wire import (
    CHUNK,
    DATA,
    DONE,
    KILL,
    KILL_BODY,
    MAX_COMMAND_LINE,
    MAX_PROCESSES,
    PROC,
    PROCESSES,
    Refused,
    pack,
)

LONG_LINES = 1024 * 1024  # Bytes of command lines in one list; beyond them each is cut short.
SHORT_LINE = 128


class Listing:
    """Shows and ends what user code started; the agent and its own children are not there."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.executions = agent.part(Executions)
        agent.operations[PROCESSES] = self.on_processes
        agent.operations[KILL] = self.on_kill

    def own(self) -> set[int]:
        return {os.getpid(), *self.agent.children}

    def on_processes(self, op: int, body: bytes) -> None:
        table = processes()
        own = self.own()
        ticks = os.sysconf("SC_CLK_TCK")
        page = os.sysconf("SC_PAGE_SIZE")
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        batch = b""
        total = 0
        for pid in sorted(set(table) - own)[:MAX_PROCESSES]:
            fields = table[pid]
            # Counted from the state, field 3 of proc(5).
            used = int(fields[11]) + int(fields[12])
            started = max(0, int((boot + int(fields[19]) / ticks) * 1000))
            parent = int(fields[1])
            resident = max(0, int(fields[21])) * page
            most = MAX_COMMAND_LINE if total < LONG_LINES else SHORT_LINE
            line = read_file("/proc/%d/cmdline" % pid, most)  # noqa: UP031 - bytes alike.
            total += len(line)
            op_of = self.execution_of(pid, table)
            batch += PROC.pack(
                pid, parent, op_of, fields[0], started, used * 1000000 // ticks, resident
            ) + pack(line)
            if len(batch) > CHUNK:
                self.agent.send(DATA, op, batch)
                batch = b""
        if batch:
            self.agent.send(DATA, op, batch)
        self.agent.send(DONE, op)

    def execution_of(self, pid: int, table: dict[int, list[bytes]]) -> int:
        """The operation of the execution above a process, 0 for none that a client knows."""
        for _ in range(len(table)):
            if pid not in table:
                break
            pid = int(table[pid][1])
            execution = self.executions.shims.get(pid)
            if execution is not None:
                known = self.executions.running.get(execution.op) is execution
                return execution.op if known else 0
        return 0

    def on_kill(self, op: int, body: bytes) -> None:
        pid, number = KILL_BODY.unpack(body)
        if not 0 < number <= 64:
            raise Refused("INVALID", "There is no such signal.")
        if pid not in processes() or pid in self.own():
            raise Refused("NOT_FOUND", "There is no such process.")
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            raise Refused("NOT_FOUND", "There is no such process.") from None
        for execution in self.executions.running.values():
            if execution.main == pid and number == signal.SIGKILL:
                execution.killed = True
        self.agent.send(DONE, op)


PARTS.append(Listing)
