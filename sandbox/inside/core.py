"""The loop of the agent: one channel of frames, and hooks by which the parts take part.

A part is a class made once with the agent. It puts itself into

- `operations[KIND]`: `function(op, body)` for frames of a kind; it may raise Refused or OSError,
  which answer ERROR;
- `cancel_hooks[op]`, `credit_hooks[op](amount)`, `data_hooks[op](bytes)` and `end_hooks[op]()`:
  CANCEL, CREDIT, WRITE_DATA and WRITE_END of one operation; `forget(op)` takes all of them away;
- `watch(fd, events, handler)`: `handler(events)` when a descriptor is ready; `unwatch`, `close`;
- `children[pid](status)`: the end of a child, which then counts as the agent's own until it is
  reaped (nothing else that has process 1 as its parent is left alive);
- `reset_hooks`: another client takes over: end everything that is not to outlive its client,
  answer nothing; `greeting_hooks` give what it is told of the rest;
- `room_hooks`: the channel has room again, after `is_full()` was true;
- `due_hooks` and `tick_hooks`: when to wake up next, and what to do at each turn;
- `idle_hooks`: after a turn's frames are out.

Blocking work goes to `fork_worker`. `PARTS` lists the parts in the order they are made.
"""

import _frozen_importlib_external
import os
import select
import signal
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sandbox.inside.lateness import Lateness
from sandbox.inside.wire import (
    AMOUNT,
    CANCEL,
    CREDIT,
    ERROR,
    HAS_ZLIB,
    HEADER,
    HELLO,
    HELLO_ACK,
    HELLO_BODY,
    HOLDS_ARCHIVES,
    MAX_PAYLOAD,
    PING,
    PONG,
    READY,
    READY_BODY,
    VERSION,
    WRITE_DATA,
    WRITE_END,
    Refused,
    refusal,
)
from sandbox.inside.workers import MAX_WORKERS, Worker

if TYPE_CHECKING:
    from sandbox.inside.workers import Work

    P = TypeVar("P")

HIGH_WATER = 1024 * 1024  # Bytes waiting for the channel beyond which no pipe is read.
PARTS: list[Callable[["Agent"], object]] = []


class Agent:
    """One channel, any number of operations at once."""

    def __init__(self, reading: int, writing: int, options: dict[str, str]) -> None:
        self.reading = reading
        self.writing = writing
        self.options = options
        self.poll = select.epoll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.incoming = bytearray()
        # Memory for every read alike: taking so much anew each time costs more than the read.
        self.buffer = memoryview(bytearray(MAX_PAYLOAD))
        self.outgoing: deque[bytes] = deque()
        self.waiting = 0
        self.blocked = False
        self.was_full = False
        self.features = 0
        self.lateness = Lateness()
        self.operations: dict[int, Callable[[int, bytes], None]] = {
            HELLO: self.on_hello,
            PING: self.on_ping,
            CANCEL: self.on_cancel,
            CREDIT: self.on_credit,
            WRITE_DATA: self.on_write_data,
            WRITE_END: self.on_write_end,
        }
        self.cancel_hooks: dict[int, Callable[[], None]] = {}
        self.credit_hooks: dict[int, Callable[[int], None]] = {}
        self.data_hooks: dict[int, Callable[[bytes], None]] = {}
        self.end_hooks: dict[int, Callable[[], None]] = {}
        self.children: dict[int, Callable[[int], None]] = {}
        self.workers: dict[int, Worker] = {}
        self.reset_hooks: list[Callable[[], None]] = [self.end_workers]
        self.greeting_hooks: list[Callable[[], bytes]] = []
        self.room_hooks: list[Callable[[], None]] = [self.watch_workers]
        self.due_hooks: list[Callable[[], float]] = []
        self.tick_hooks: list[Callable[[float, float], None]] = []
        self.idle_hooks: list[Callable[[], None]] = []
        self.parts: dict[object, object] = {}
        for part in PARTS:
            self.part(part)

    def part(self, kind: "Callable[[Agent], P]") -> "P":
        """The one instance of a part, made when it is first asked for."""
        if kind not in self.parts:
            self.parts[kind] = kind(self)
        return self.parts[kind]  # type: ignore[return-value]

    # Channel out.

    def send(self, kind: int, op: int, *parts: bytes) -> None:
        size = sum(map(len, parts))
        self.outgoing.append(HEADER.pack(kind, op, size))
        self.outgoing.extend(part for part in parts if part)
        self.waiting += HEADER.size + size

    def is_full(self) -> bool:
        """Whether to send nothing that can wait for `room_hooks`."""
        full = self.waiting >= HIGH_WATER
        self.was_full = self.was_full or full
        return full

    def flush(self) -> None:
        while self.outgoing:
            batch = [self.outgoing[i] for i in range(min(len(self.outgoing), 64))]
            try:
                written = os.writev(self.writing, batch)
            except BlockingIOError:
                break
            self.waiting -= written
            while written:
                head = self.outgoing.popleft()
                if len(head) > written:
                    self.outgoing.appendleft(head[written:])
                    break
                written -= len(head)
        blocked = bool(self.outgoing)
        if blocked != self.blocked:
            self.blocked = blocked
            self.watch_channel()

    def watch_channel(self) -> None:
        if self.reading == self.writing:
            events = select.EPOLLIN | (select.EPOLLOUT if self.blocked else 0)
            self.poll.modify(self.reading, events)
        elif self.blocked:
            self.poll.register(self.writing, select.EPOLLOUT)
        else:
            self.poll.unregister(self.writing)

    def fail(self, op: int, refused: Refused) -> None:
        self.send(ERROR, op, refused.body())

    # Channel in.

    def on_channel(self) -> None:
        try:
            size = os.readv(self.reading, [self.buffer])
        except BlockingIOError:
            return
        if not size:
            # The server closed its end for good: a sandbox without a server has no purpose.
            os._exit(0)
        self.incoming += self.buffer[:size]
        at = 0
        held = self.incoming
        while at < len(held):
            if held[at] == 0:
                at = len(held) - len(held[at:].lstrip(b"\0"))
                continue
            if len(held) - at < HEADER.size:
                break
            kind, op, size = HEADER.unpack_from(held, at)
            if size > MAX_PAYLOAD:
                os._exit(65)
            end = at + HEADER.size + size
            if end > len(held):
                break
            self.dispatch(kind, op, bytes(held[at + HEADER.size : end]))
            at = end
        del held[:at]

    def dispatch(self, kind: int, op: int, body: bytes) -> None:
        operation = self.operations.get(kind)
        try:
            if operation is None:
                raise Refused("UNSUPPORTED", "The agent knows no such operation.")
            operation(op, body)
        except Refused as refused:
            self.fail(op, refused)
        except OSError as error:
            self.fail(op, refusal(error))
        except (LookupError, struct.error, ValueError):
            self.fail(op, Refused("INVALID", "The request is malformed."))

    def on_hello(self, op: int, body: bytes) -> None:
        """A client takes over: end what the previous one began, forget its pending answers."""
        for hooks in (self.cancel_hooks, self.credit_hooks, self.data_hooks, self.end_hooks):
            hooks.clear()
        for hook in self.reset_hooks:
            hook()
        self.outgoing.clear()
        self.waiting = 0
        kept = [greet() for greet in self.greeting_hooks]
        self.send(HELLO_ACK, op, body[:16], HELLO_BODY.pack(VERSION, self.features), *kept)

    def on_ping(self, op: int, body: bytes) -> None:
        self.send(PONG, op)

    def on_cancel(self, op: int, body: bytes) -> None:
        hook = self.cancel_hooks.get(op)
        if hook is not None:
            hook()

    def on_credit(self, op: int, body: bytes) -> None:
        (amount,) = AMOUNT.unpack(body)
        hook = self.credit_hooks.get(op)
        if hook is not None:
            hook(amount)

    def on_write_data(self, op: int, body: bytes) -> None:
        hook = self.data_hooks.get(op)
        if hook is not None:
            hook(body)

    def on_write_end(self, op: int, body: bytes) -> None:
        hook = self.end_hooks.get(op)
        if hook is not None:
            hook()

    def forget(self, op: int) -> None:
        """No frame of this operation reaches anybody any more."""
        for hooks in (self.cancel_hooks, self.credit_hooks, self.data_hooks, self.end_hooks):
            hooks.pop(op, None)

    # Blocking work.

    def fork_worker(self, op: int, work: "Work", credit: int, receives: bool = False) -> None:
        """Run `work(output, input)` in a child; see Worker. DONE or ERROR ends the operation.

        Raises Refused when too many run already, OSError when there is no room for a process.
        """
        if len(self.workers) >= MAX_WORKERS:
            raise Refused("EXHAUSTED", "Too many operations of this kind run at once.")
        Worker(self, op, work, credit, receives)

    def end_workers(self) -> None:
        for worker in list(self.workers.values()):
            worker.stop()

    def watch_workers(self) -> None:
        for worker in list(self.workers.values()):
            worker.watch()

    # The loop.

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call `handler(events)` whenever the descriptor is ready for any of these events."""
        if fd in self.handlers:
            self.poll.modify(fd, events)
        else:
            self.poll.register(fd, events)
        self.handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        if fd in self.handlers:
            self.poll.unregister(fd)
            del self.handlers[fd]

    def close(self, fd: int) -> None:
        self.unwatch(fd)
        os.close(fd)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            hook = self.children.pop(pid, None)
            if hook is not None:
                hook(status)

    def next_wait(self) -> float:
        """Seconds until something is due, at most one."""
        now = time.monotonic()
        nearest = min([now + 1.0] + [due() for due in self.due_hooks])
        return max(0.0, nearest - now)

    def tick(self, expected_s: float) -> None:
        now = time.monotonic()
        lost = self.lateness.turn(now, expected_s)
        for hook in self.tick_hooks:
            hook(now, lost)

    def serve(self) -> None:
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.poll.register(wake_read, select.EPOLLIN)
        self.poll.register(self.reading, select.EPOLLIN)
        self.send(READY, 0, READY_BODY.pack(VERSION, _frozen_importlib_external.MAGIC_NUMBER))
        self.flush()
        # What the first client needs, while it is still on its way here.
        self.features = features()
        for hook in self.idle_hooks:
            hook()
        while True:
            wait = self.next_wait()
            events = self.poll.poll(wait)
            self.tick(wait)
            for fd, event in events:
                if fd == wake_read:
                    os.read(wake_read, 4096)
                    self.reap()
                elif fd == self.reading and event & ~select.EPOLLOUT:
                    self.on_channel()
                else:
                    handler = self.handlers.get(fd)
                    if handler is not None:  # Not closed by an earlier event of the same round.
                        handler(event)
            self.flush()
            for hook in self.idle_hooks:
                hook()
            if self.was_full and self.waiting < HIGH_WATER:
                self.was_full = False
                for hook in self.room_hooks:
                    hook()


def features() -> int:
    """What this interpreter can do beyond what every agent does."""
    try:
        import zlib
    except ImportError:
        return HOLDS_ARCHIVES
    return HOLDS_ARCHIVES | (HAS_ZLIB if zlib else 0)
