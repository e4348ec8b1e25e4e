"""What a watch has to tell: changes, until they are frames, and frames, until there is credit."""

from collections import deque

from sandbox.inside.core import Agent
from sandbox.inside.wire import CHANGE, CREATED, DATA, OVERFLOW, REMOVED, RENAMED, pack

MAX_PATH = 4096
PACKED = 16 * 1024  # Bytes beyond which a frame of changes takes no more.


class Changes:
    """The changes of one watch. `overflow`: that some were lost is still to be told."""

    def __init__(self, agent: Agent, op: int, credit: int) -> None:
        self.agent = agent
        self.op = op
        self.credit = credit
        self.pending: list[tuple[int, bool, int, bytes, bytes]] = []
        self.latest: dict[bytes, int] = {}
        self.outbox: deque[bytes] = deque()
        self.overflow = True
        self.partial = False

    def miss(self) -> None:
        """Something cannot be watched: the reader must look for itself."""
        if not self.partial:
            self.partial = self.overflow = True

    def lose(self) -> None:
        """Forget what is not packed yet: more than that was lost, and all is looked at anew."""
        self.overflow = True
        self.partial = False
        self.pending.clear()
        self.latest.clear()

    def tell_overflow(self) -> None:
        """Say that from here on every change is told."""
        self.overflow = False
        self.pending.append((OVERFLOW, self.partial, 0, b"", b""))
        self.latest.clear()

    def note(self, kind: int, is_directory: bool, path: bytes, size: int, old: bytes = b"") -> None:
        """Add a change to those that are told next; several of one path become one."""
        if len(path) > MAX_PATH or len(old) > MAX_PATH:
            self.miss()
            return
        at = self.latest.get(path)
        if kind == RENAMED:
            # What came before was told of other names.
            self.latest.clear()
        elif at is not None and self.pending[at][1] == is_directory:
            before = self.pending[at][0]
            if REMOVED in (kind, before):
                self.latest.pop(path)
            else:
                kind = before if before in (CREATED, RENAMED) else kind
                self.pending[at] = (kind, is_directory, size, path, self.pending[at][4])
                return
        self.latest[path] = len(self.pending)
        self.pending.append((kind, is_directory, size, path, old))

    def pack(self) -> None:
        """Put the changes into frames that wait for credit."""
        frame = b""
        for kind, is_directory, size, path, old in self.pending:
            frame += CHANGE.pack(kind, is_directory, size) + pack(path) + pack(old)
            if len(frame) > PACKED:
                self.outbox.append(frame)
                frame = b""
        if frame:
            self.outbox.append(frame)
        self.pending.clear()
        self.latest.clear()
        self.flush()

    def flush(self) -> None:
        while self.outbox and self.credit >= len(self.outbox[0]) and not self.agent.is_full():
            frame = self.outbox.popleft()
            self.credit -= len(frame)
            self.agent.send(DATA, self.op, frame)

    def on_credit(self, amount: int) -> None:
        self.credit += amount
        self.flush()
