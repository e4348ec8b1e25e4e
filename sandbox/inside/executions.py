"""Executions: one command each, with its shim, its pipes or terminal, and its limits."""

import errno
import math
import os
import select
import signal
import time

from sandbox.inside.core import PARTS, Agent
from sandbox.inside.execution import Execution
from sandbox.inside.processes import (
    REPORT,
    Request,
    end_below,
    end_orphans,
    is_childless,
    send_signal,
)
from sandbox.inside.results import Ooms, result
from sandbox.inside.shims import Shim, Shims
from sandbox.inside.strays import Adopted
from sandbox.inside.terminals import set_size
from sandbox.inside.wire import (
    AMOUNT,
    EXEC,
    EXEC_STDIN,
    EXITED,
    KILLED,
    MAX_KEPT,
    MAX_PID,
    OUTPUT_LIMIT,
    RESIZE,
    RESULT,
    SIGNAL,
    SIZE,
    STARTED,
    STDIN,
    STDIN_CLOSE,
    TIMED_OUT,
    Refused,
)

MAX_REPORTS = 8  # Of one shim; it needs four.
LINGER_S = 60.0  # How long output held open by others waits for its end, where no deadline ends it.


class Executions:
    """Starts, feeds, limits and ends executions.

    Those with a name outlive their client: `ended` has them from their end until they are released.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.starting = Shims(agent, self.on_gone)
        self.ooms = Ooms(agent.options.get("oom", ""))
        self.running: dict[int, Execution] = {}
        self.ended: dict[int, Execution] = {}
        self.shims: dict[int, Execution] = {}
        self.adopted = Adopted(agent)
        agent.operations[EXEC] = self.on_exec
        agent.operations[STDIN] = self.on_stdin
        agent.operations[STDIN_CLOSE] = self.on_stdin_close
        agent.operations[SIGNAL] = self.on_signal
        agent.operations[RESIZE] = self.on_resize
        agent.reset_hooks.append(self.on_reset)
        agent.room_hooks.append(self.on_room)
        agent.due_hooks.append(self.next_due)
        agent.tick_hooks.append(self.tick)

    def on_reset(self) -> None:
        for execution in self.known():
            if execution.kept is None:
                self.drop(execution)
            else:
                execution.kept.away = True
                self.listen(execution)

    def known(self) -> list[Execution]:
        return [*self.running.values(), *self.ended.values()]

    def find(self, op: int) -> "Execution | None":
        return self.running.get(op) or self.ended.get(op)

    def drop(self, execution: Execution) -> None:
        """End one that nobody wants to hear of any more."""
        execution.silent = execution.input.silent = execution.output.silent = True
        self.agent.forget(execution.op)
        if execution.empty:
            self.finish(execution)
        else:
            self.end(execution, KILLED)
        self.running.pop(execution.op, None)
        self.ended.pop(execution.op, None)

    # Starting.

    def on_exec(self, op: int, body: bytes) -> None:
        request = Request(body)
        if request.name and sum(bool(one.kept) for one in self.known()) >= MAX_KEPT:
            raise Refused("EXHAUSTED", "Too many executions outlive their clients.")
        oom_before = self.ooms.count()
        shim, ours = self.starting.start(request)
        execution = Execution(self.agent, op, request, shim, self.settle, self.exceed)
        execution.oom_before = oom_before
        self.shims[shim.pid] = execution
        self.running[op] = execution
        if execution.terminal or request.flags & EXEC_STDIN:
            execution.input.fd = ours[0]
        else:
            os.close(ours[0])
        for index, fd in enumerate(ours[1:]):
            execution.output.streams[fd] = index
        self.listen(execution)
        self.agent.watch(
            execution.report, select.EPOLLIN, lambda events: self.on_report_ready(execution)
        )
        execution.output.watch()

    def listen(self, execution: Execution) -> None:
        self.agent.cancel_hooks[execution.op] = lambda: self.on_cancel(execution)
        if execution.kept is None:
            self.agent.credit_hooks[execution.op] = execution.output.on_credit

    # Input.

    def on_stdin(self, op: int, body: bytes) -> None:
        execution = self.running.get(op)
        if execution is not None:
            execution.input.add(body)

    def on_stdin_close(self, op: int, body: bytes) -> None:
        execution = self.running.get(op)
        if execution is not None:
            execution.input.end()

    def on_signal(self, op: int, body: bytes) -> None:
        execution = self.running.get(op)
        if execution is not None and execution.main and execution.status is None:
            try:
                os.killpg(execution.main, body[0])
            except ProcessLookupError:
                return
            execution.killed = execution.killed or body[0] == signal.SIGKILL

    def on_resize(self, op: int, body: bytes) -> None:
        rows, columns = SIZE.unpack(body)
        execution = self.running.get(op)
        if execution is not None and execution.terminal:
            for fd in execution.output.streams:
                set_size(fd, rows, columns)

    # Output.

    def on_room(self) -> None:
        for execution in self.known():
            if execution.kept is not None:
                execution.kept.send()
            if execution.output.crowded:
                execution.output.watch()

    def exceed(self, execution: Execution) -> None:
        self.end(execution, OUTPUT_LIMIT)

    # What the shim says.

    def on_report_ready(self, execution: Execution) -> None:
        if execution.report >= 0:
            self.on_report(execution)

    def on_report(self, execution: Execution) -> bool:
        """Take in what the shim wrote; False when there is no more now.

        Nothing here ends an execution, for user code may have found a way to write it.
        """
        try:
            data = os.read(execution.report, REPORT.size * MAX_REPORTS)
        except BlockingIOError:
            return False
        execution.reports += len(data) // REPORT.size
        forged = bool(len(data) % REPORT.size) or execution.reports > MAX_REPORTS
        if not forged:
            for kind, value, cpu, peak in REPORT.iter_unpack(data):
                forged = forged or not self.take_report(execution, kind, value, (cpu, peak))
        if forged:
            self.end(execution, KILLED)
        if forged or not data:
            self.agent.close(execution.report)
            execution.report = -1
        elif execution.reported and self.shims.get(execution.shim.pid) is execution:
            self.release(execution)
        return execution.report >= 0

    def take_report(
        self, execution: Execution, kind: bytes, value: int, usage: tuple[int, int]
    ) -> bool:
        """False for what no shim says."""
        if kind == b"S" and not execution.main and 1 < value <= MAX_PID:
            execution.main = value
            if not execution.silent:
                self.agent.send(STARTED, execution.op, AMOUNT.pack(value))
            if execution.ending:
                # Ended before it began: what has just begun must not wait for the next sweep.
                self.sweep(execution)
        elif kind == b"X" and not execution.main and 0 < value <= 0xFFFF:
            execution.failed = value
        elif kind == b"M" and execution.main and value <= 0xFFFF:
            execution.status = value
            if not execution.background:
                self.end(execution, execution.reason)
        elif kind == b"E" and execution.main and value <= 0xFFFF and not execution.reported:
            execution.status = value
            execution.usage = usage
            execution.reported = True
        else:
            return False
        return True

    def not_started(self, execution: Execution, number: int) -> None:
        if number == errno.ENOENT:
            refused = Refused("NOT_STARTED", "The program or working directory was not found.")
        elif number in (errno.EAGAIN, errno.ENOMEM):
            refused = Refused("EXHAUSTED", "The sandbox has no room for another process.")
        else:
            refused = Refused("NOT_STARTED", os.strerror(number) + ".")
        if not execution.silent:
            self.agent.fail(execution.op, refused)
        execution.silent = True
        execution.empty = True
        self.finish(execution)

    # Ending.

    def on_cancel(self, execution: Execution) -> None:
        if execution.empty:
            # Only unread output is left, and nobody wants it.
            execution.output.truncated = True
            self.finish(execution)
        else:
            self.end(execution, KILLED)

    def end(self, execution: Execution, reason: int) -> None:
        """Kill the tree of an execution; the first reason stands."""
        if execution.ending or execution.empty:
            return
        execution.reason = reason
        execution.ending = time.monotonic()
        self.sweep(execution)

    def sweep(self, execution: Execution) -> None:
        if execution in self.adopted.left:
            self.over(execution)
            return
        pid = execution.shim.pid
        if self.shims.get(pid) is not execution:
            return  # Reaped: its number may be another's by now.
        execution.shim.dismiss()
        now = time.monotonic()
        end_below({pid})
        # Code of the same uid may have stopped the shim.
        send_signal(pid, signal.SIGCONT)
        if now - execution.ending > 1.0:
            send_signal(pid, signal.SIGKILL)
        execution.next_sweep = now + 0.005

    def settle(self, execution: Execution, overdue: bool = False) -> None:
        """Send the result once the processes are gone and the output is out.

        Output of an execution that was ended by force, or whose deadline has passed, is sent as
        far as the credit goes.
        """
        if not execution.empty or execution.settling:
            return
        if overdue and execution.kept is not None and execution.output.credit <= 0:
            # It does not write into the void: its client will come back, or the sandbox ends.
            execution.deadline = time.monotonic() + LINGER_S
            return
        forced = execution.ending and execution.reason != EXITED
        if execution.silent or overdue or forced:
            execution.settling = True
            execution.output.drain()
            self.finish(execution)
        elif not execution.output.streams:
            self.finish(execution)
        elif execution.deadline == math.inf:
            execution.deadline = time.monotonic() + LINGER_S

    def finish(self, execution: Execution) -> None:
        if self.running.get(execution.op) is execution:
            del self.running[execution.op]
            self.agent.forget(execution.op)
        elif not execution.silent:
            return
        execution.input.close()
        execution.output.close()
        if execution.report >= 0:
            self.agent.close(execution.report)
            execution.report = -1
        if not execution.silent:
            self.tell(execution, result(execution, self.ooms, not self.running))

    def tell(self, execution: Execution, result: bytes) -> None:
        if execution.kept is None:
            self.agent.send(RESULT, execution.op, result)
        else:
            self.ended[execution.op] = execution
            execution.kept.end(result)

    def release(self, execution: Execution) -> None:
        """The shim says that nothing is left: if the kernel says so too, the execution is over.

        Otherwise, and where it had to be ended, the end of the shim will tell.
        """
        shim = execution.shim
        if execution.ending or not is_childless(shim.pid):
            shim.dismiss()
            return
        del self.shims[shim.pid]
        self.agent.unwatch(shim.report)
        execution.report = -1
        self.starting.take_back(shim)
        self.over(execution)

    def on_gone(self, shim: Shim, status: int) -> bool:
        """A shim is gone; False if it had served what it served to the end."""
        execution = self.shims.pop(shim.pid, None)
        if execution is not None:
            self.bury(execution, status)
        return execution is not None

    def bury(self, execution: Execution, status: int) -> None:
        """The shim is gone, and with what it left behind the execution is over.

        The kernel tells its status, so nobody forges it: with 0 it had waited for all below it.
        """
        execution.shim.dismiss()
        while execution.report >= 0 and self.on_report(execution):
            continue
        if execution.report >= 0:
            # Someone else holds the other end.
            self.agent.close(execution.report)
            execution.report = -1
        if status != 0:
            # What it guarded is ours now.
            execution.reported = False
            if not self.adopted.needed:
                end_orphans(set(self.agent.children))
        if execution.failed and not execution.main:
            self.not_started(execution, execution.failed)
            return
        if not execution.reported and not execution.ending:
            execution.reason = KILLED
            execution.ending = time.monotonic()
        self.over(execution)

    def over(self, execution: Execution) -> None:
        """Nothing is left of its processes, unless the agent has adopted some."""
        if self.adopted.keep(execution, self.shims):
            return
        execution.empty = True
        execution.output.leave()
        self.settle(execution)

    # Time.

    def timed(self) -> list[Execution]:
        """What lives, and what is over except for output that nobody has taken."""
        over = [one for one in self.running.values() if one.empty]
        return [*self.shims.values(), *self.adopted.left, *over]

    def next_due(self) -> float:
        """The nearest deadline or sweep."""
        nearest = math.inf
        for execution in self.timed():
            sweeping = execution.ending and not execution.empty
            due = execution.next_sweep if sweeping else execution.deadline
            if execution in self.adopted.left:
                due = min(due, execution.next_sweep)
            nearest = min(nearest, due)
        return nearest

    def tick(self, now: float, lost: float) -> None:
        for execution in self.timed():
            if lost > 1.0:
                # The whole sandbox was frozen: that time is not the execution's.
                execution.deadline += lost
            if execution.empty:
                if now >= execution.deadline:
                    self.settle(execution, overdue=True)
            elif execution.ending:
                if now >= execution.next_sweep:
                    self.sweep(execution)
            elif now >= execution.deadline:
                self.end(execution, TIMED_OUT)
            elif execution in self.adopted.left and now >= execution.next_sweep:
                self.over(execution)


PARTS.append(Executions)
