"""How executions begin: shims, some of them ahead of need, and what connects them to the agent."""

import os
import signal
import time
from collections import deque
from typing import TYPE_CHECKING

from sandbox.inside.barriers import write_rules
from sandbox.inside.core import Agent
from sandbox.inside.processes import (
    MAX_ORDER,
    Request,
    end_orphans,
    pack_order,
    send_signal,
    shim,
    tells_children,
)
from sandbox.inside.strays import has_subreapers
from sandbox.inside.terminals import open_terminal
from sandbox.inside.wire import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.inside.processes import Order

BUSY_S = 1.0
MAX_USES = 8  # Of one shim: each takes three pipes from the beginning.
MAX_LENT = 8  # Shims at work that will serve again: descriptors are few.


class Shim:
    """A shim as the agent sees it."""

    def __init__(self, pid: int, report: int, order: int, later: list[list[int]]) -> None:
        self.pid = pid
        self.report = report
        self.order = order  # Where it waits for orders; -1 if it takes none (any more).
        self.later = later  # Our ends of standard input, output and error of what it may serve.

    def dismiss(self) -> None:
        """Have it end once nothing is left of what it serves. Idempotent."""
        for fd in [fd for ours in self.later for fd in ours]:
            os.close(fd)
        self.later = []
        if self.order >= 0:
            os.close(self.order)
            self.order = -1

    def forget(self) -> None:
        """Dismiss it and hear no more of it."""
        self.dismiss()
        os.close(self.report)


class Shims:
    """Forks shims; spares wait, so that most executions start without that delay.

    Each fork makes the agent copy the pages that it touches next, and the shim those that it
    touches. Where executions come one upon the other, a shim therefore serves several, one after
    the other, and there are as many spares as the option `spares` allows, each forked with another
    execution, lest one of them wait for all; elsewhere there is one, for one execution. A shim
    serves another execution only when the kernel has said that nothing is left of the one before,
    and none that had to be ended.
    """

    def __init__(self, agent: Agent, bury: "Callable[[Shim, int], bool]") -> None:
        self.agent = agent
        self.bury = bury  # Told of each that is gone; False if it served no execution.
        self.root = os.fsencode(agent.options.get("workspace", "/workspace"))
        self.most = int(agent.options.get("spares", "1"))
        self.batch = 1
        self.missing = 0  # Spares still to be forked, one with each execution.
        self.uses = 1
        self.adopts = not has_subreapers()  # See strays.
        self.most_uses = MAX_USES if tells_children() and not self.adopts else 1
        self.prepared = 0.0  # When spares were forked last.
        self.spares: deque[Shim] = deque()
        self.lent: dict[Shim, float] = {}  # Those that will serve again, and since when they serve.
        self.wants_spares = True
        self.rules = write_rules()
        agent.idle_hooks.append(self.prepare_spares)

    def start(self, request: Request) -> tuple[Shim, list[int]]:
        """A shim, and our ends: stdin, stdout[, stderr]."""
        self.wants_spares = True
        order = request.order(self.root)
        if order[-1] and self.adopts:
            # Nobody is told there that all have let go of a terminal, and Ctrl-C reaches no one.
            raise Refused("UNSUPPORTED", "gVisor before July 2023 has no terminals that serve.")
        if order[-1]:
            return self.fork_on_terminal(order, request.rows, request.columns)
        return self.hand_over(order) or self.lend(*self.fork_now(order))

    def fork_now(self, order: "Order") -> tuple[Shim, list[int]]:
        """A new shim at work; where there is no room, what others have for later gives way."""
        try:
            return self.fork_shim(order, self.uses if len(self.lent) < MAX_LENT else 1)
        except OSError:
            if not self.lent:
                raise
        for one in self.lent:
            one.dismiss()
        self.lent.clear()
        return self.fork_shim(order, 1)

    def fork_shim(self, order: "Order | None", uses: int) -> tuple[Shim, list[int]]:
        """A shim, and our ends of its first pipes: stdin, stdout, stderr."""
        ours: list[int] = []
        theirs: list[int] = []
        waits = order is None or uses > 1
        directions = (True, False, False) * uses + ((False, True) if waits else (False,))
        try:
            for writes in directions:
                read, write = os.pipe()
                ours.append(write if writes else read)
                theirs.append(read if writes else write)
            after = 3 * uses
            pid = self.fork(order, ours, [*theirs[:3], *theirs[after:]], theirs[3:after])
        except OSError:
            for fd in ours + theirs:
                os.close(fd)
            raise
        later = [ours[at : at + 3] for at in range(3, after, 3)]
        return self.made(Shim(pid, ours[after], ours[-1] if waits else -1, later)), ours[:3]

    def fork_on_terminal(self, order: "Order", rows: int, columns: int) -> tuple[Shim, list[int]]:
        """A shim, and our ends of the terminal, for writing and for reading."""
        held: list[int] = []
        try:
            held += open_terminal(rows, columns)
            held.append(os.dup(held[0]))
            held += os.pipe()
            reading, slave, writing, report, theirs = held
            pid = self.fork(order, [writing, reading, report], [slave, slave, slave, theirs], [])
        except OSError:
            for fd in held:
                os.close(fd)
            raise
        return self.made(Shim(pid, report, -1, [])), [writing, reading]

    def fork(
        self, order: "Order | None", ours: list[int], theirs: list[int], later: list[int]
    ) -> int:
        """Fork a shim that keeps the descriptors `theirs`, which the agent then closes."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                shim(theirs, later, order, self.rules)
                status = 0  # Nothing is left below it; see Executions.bury.
            finally:
                os._exit(status)
        for fd in {*theirs, *later}:
            os.close(fd)
        for fd in ours:
            os.set_blocking(fd, False)
        return pid

    def made(self, one: Shim) -> Shim:
        self.agent.children[one.pid] = lambda status: self.on_gone(one, status)
        return one

    def prepare_spares(self) -> None:
        """Fork a shim ahead of need: an execution then starts without that delay."""
        if not self.wants_spares:
            return
        self.wants_spares = False
        now = time.monotonic()
        if not self.missing:
            if self.spares or any(now - since < BUSY_S for since in self.lent.values()):
                return
            is_busy = now - self.prepared < BUSY_S
            self.batch = min(2 * self.batch, self.most) if is_busy else 1
            self.uses = self.most_uses if is_busy else 1
            self.missing = self.batch
        self.prepared = now
        self.missing -= 1
        try:
            one, ours = self.fork_shim(None, self.uses)
        except OSError:
            self.missing = 0
            return  # No room now; executions fork their own and say so if there is none.
        one.later.insert(0, ours)
        self.spares.appendleft(one)

    def hand_over(self, order: "Order") -> tuple[Shim, list[int]] | None:
        """Give an order to a spare; None if there is none or the order fills its pipe.

        The one that served last goes first: its memory is at hand.
        """
        if not self.spares:
            return None
        sent = pack_order(order)
        if len(sent) > MAX_ORDER:
            return None
        one = self.spares.pop()
        try:
            os.write(one.order, sent)
        except OSError:
            # Code of the same uid has killed it.
            one.forget()
            return None
        send_signal(one.pid, signal.SIGCONT)
        return self.lend(one, one.later.pop(0))

    def lend(self, one: Shim, ours: list[int]) -> tuple[Shim, list[int]]:
        if one.later:
            self.lent[one] = time.monotonic()
        else:
            one.dismiss()
        return one, ours

    def take_back(self, one: Shim) -> None:
        """Nothing is left of what it served: it may serve again, if it can and is needed."""
        self.lent.pop(one, None)
        if one.later and len(self.spares) < self.most:
            self.spares.append(one)
        else:
            one.forget()

    def on_gone(self, one: Shim, status: int) -> None:
        self.lent.pop(one, None)
        if one in self.spares:
            self.spares.remove(one)
            one.forget()
        if not self.bury(one, status) and status != 0 and not self.adopts:
            # It was killed: should anything have been below it, that is ours now.
            end_orphans(set(self.agent.children))
