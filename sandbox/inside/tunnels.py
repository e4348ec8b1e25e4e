"""Tunnels: TCP connections on the loopback of the sandbox, carried over the channel.

DIAL connects to a port of a program; LISTEN accepts connections of programs. Either way data
flows as far as the other side has given credit, each direction ends on its own, and what waits
here is bounded by TUNNEL_WINDOW.
"""

import _socket
import errno
import os
import select
from collections import deque

from sandbox.inside.core import PARTS, Agent
from sandbox.inside.wire import (
    ACCEPTED,
    AGENT_OPERATION,
    AMOUNT,
    CHUNK,
    DATA,
    DIAL,
    LISTEN,
    LISTEN_BODY,
    MAX_TUNNELS,
    OPENED,
    PORT,
    TUNNEL_DATA,
    TUNNEL_END,
    TUNNEL_ENDED,
    TUNNEL_WINDOW,
    WRITE_CREDIT,
    Refused,
)

# The module below `socket`, which takes a tenth of the agent's start to load.
LOOPBACKS = ((_socket.AF_INET, "127.0.0.1"), (_socket.AF_INET6, "::1"))
STREAM = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
BACKLOG = 64
MAX_LISTENERS = 16


def port_refusal(error: OSError) -> Refused:
    """What a program would be told, as an answer."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
        return Refused("EXHAUSTED", "The sandbox has no room for another connection.")
    return Refused("REFUSED", os.strerror(error.errno or errno.EIO) + ".")


class Tunnel:
    """One connection, from the attempt to its end on both sides."""

    def __init__(self, tunnels: "Tunnels", op: int, port: int, credit: int) -> None:
        self.tunnels = tunnels
        self.agent = tunnels.agent
        self.op = op
        self.port = port
        self.credit = credit
        self.fd = -1
        self.sock: _socket.socket | None = None
        self.connecting = False
        self.left = list(LOOPBACKS)
        self.pending: deque[bytes] = deque()
        self.read_ended = False
        self.write_ends = False
        self.write_ended = False
        self.broken: Refused | None = None  # Why writing failed; what came before is still read.
        tunnels.open[op] = self
        self.agent.cancel_hooks[op] = self.close
        self.agent.credit_hooks[op] = self.on_credit

    # Opening.

    def dial(self) -> None:
        """Try the next address; what fails last is the answer."""
        family, host = self.left.pop(0)
        try:
            self.sock = _socket.socket(family, STREAM)
            self.fd = self.sock.fileno()
            self.connecting = True
            self.sock.connect((host, self.port))
        except BlockingIOError:
            self.watch()
        except OSError as error:
            self.not_opened(error)
        else:
            self.opened()

    def not_opened(self, error: OSError) -> None:
        if self.left and error.errno == errno.ECONNREFUSED:
            self.close_socket()
            self.dial()
        else:
            # That there is no IPv6 is not why nobody answers.
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                error = OSError(errno.ECONNREFUSED, "refused")
            self.break_off(port_refusal(error))

    def opened(self) -> None:
        self.connecting = False
        self.agent.send(OPENED, self.op)
        self.watch()

    def adopt(self, fd: int) -> None:
        """Take an accepted connection."""
        self.sock = _socket.socket(fileno=fd)
        self.sock.setblocking(False)
        self.fd = fd
        self.agent.send(ACCEPTED, self.op, PORT.pack(self.port, TUNNEL_WINDOW))
        self.watch()

    # Carrying.

    def watch(self) -> None:
        """Wait for what can be done now; a descriptor that waits for nothing is not watched."""
        if self.fd < 0:
            return
        events = 0
        if self.connecting or self.pending:
            events |= select.EPOLLOUT
        reads = not self.connecting and not self.read_ended and self.credit > 0
        if reads and not self.agent.is_full():
            events |= select.EPOLLIN
        if events:
            self.agent.watch(self.fd, events, self.on_ready)
        else:
            self.agent.unwatch(self.fd)

    def on_ready(self, events: int) -> None:
        sock = self.sock
        if sock is None:
            return
        try:
            if self.connecting:
                number = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
                if number:
                    self.not_opened(OSError(number, "connect"))
                else:
                    self.opened()
                return
            self.flush()
            if events & ~select.EPOLLOUT and not self.read_ended and self.credit > 0:
                self.receive(sock)
        except OSError as error:
            self.break_off(port_refusal(error))
            return
        self.watch()
        self.close_if_done()

    def receive(self, sock: "_socket.socket") -> None:
        try:
            data = sock.recv(min(CHUNK, self.credit))
        except BlockingIOError:
            return
        if data:
            self.credit -= len(data)
            self.agent.send(DATA, self.op, data)
        elif self.broken is not None:
            self.break_off(self.broken)
        else:
            self.read_ended = True
            self.agent.send(TUNNEL_ENDED, self.op)

    def flush(self) -> None:
        sock = self.sock
        if sock is None or self.connecting or self.write_ended:
            return
        taken = 0
        try:
            while self.pending:
                written = sock.send(self.pending[0], _socket.MSG_NOSIGNAL)
                taken += written
                if written < len(self.pending[0]):
                    self.pending[0] = self.pending[0][written:]
                else:
                    self.pending.popleft()
            if self.write_ends:
                self.write_ended = True
                sock.shutdown(_socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError as error:
            # The program closed it without reading all; what it said before is still to be read.
            self.broken = port_refusal(error)
            self.write_ended = True
            taken += sum(map(len, self.pending))
            self.pending.clear()
        self.acknowledge(taken)

    def acknowledge(self, taken: int) -> None:
        if taken:
            self.agent.send(WRITE_CREDIT, self.op, AMOUNT.pack(taken))

    def on_data(self, data: bytes) -> None:
        if self.broken is not None:
            self.acknowledge(len(data))
            return
        if self.write_ends or sum(map(len, self.pending)) + len(data) > TUNNEL_WINDOW:
            self.close()
            raise Refused("INVALID", "More was sent than there was room for.")
        self.pending.append(data)
        self.proceed()

    def on_end(self) -> None:
        self.write_ends = True
        self.proceed()

    def proceed(self) -> None:
        self.flush()
        self.watch()
        self.close_if_done()

    def on_credit(self, amount: int) -> None:
        self.credit += amount
        self.watch()

    # Ending.

    def close_if_done(self) -> None:
        if self.read_ended and self.broken is not None:
            self.break_off(self.broken)
        elif self.read_ended and self.write_ended:
            self.close()

    def break_off(self, refused: Refused) -> None:
        self.agent.fail(self.op, refused)
        self.close()

    def close_socket(self) -> None:
        if self.sock is not None:
            self.agent.unwatch(self.fd)
            self.sock.close()
            self.sock = None
            self.fd = -1

    def close(self) -> None:
        self.close_socket()
        if self.tunnels.open.pop(self.op, None) is not None:
            self.agent.forget(self.op)
            self.tunnels.watch_listeners()


class Tunnels:
    """All connections, and the ports on which more are accepted."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.open: dict[int, Tunnel] = {}
        self.listeners: dict[int, tuple[_socket.socket, int]] = {}
        self.last = 0
        agent.operations[DIAL] = self.on_dial
        agent.operations[LISTEN] = self.on_listen
        agent.operations[TUNNEL_DATA] = self.on_data
        agent.operations[TUNNEL_END] = self.on_end
        agent.reset_hooks.append(self.on_reset)
        agent.room_hooks.append(self.on_room)
        agent.tick_hooks.append(self.tick)

    def on_reset(self) -> None:
        for op in list(self.listeners):
            self.close_listener(op)
        for tunnel in list(self.open.values()):
            tunnel.close()

    def on_room(self) -> None:
        for tunnel in list(self.open.values()):
            tunnel.watch()

    def on_dial(self, op: int, body: bytes) -> None:
        port, credit = PORT.unpack(body)
        if len(self.open) >= MAX_TUNNELS:
            raise Refused("EXHAUSTED", "Too many connections are open.")
        Tunnel(self, op, port, credit).dial()

    def on_data(self, op: int, body: bytes) -> None:
        tunnel = self.open.get(op)
        if tunnel is not None:
            tunnel.on_data(body)

    def on_end(self, op: int, body: bytes) -> None:
        tunnel = self.open.get(op)
        if tunnel is not None:
            tunnel.on_end()

    def on_listen(self, op: int, body: bytes) -> None:
        (port,) = LISTEN_BODY.unpack(body)
        if len(self.listeners) >= MAX_LISTENERS:
            raise Refused("EXHAUSTED", "The agent listens on too many ports.")
        family, host = LOOPBACKS[0]
        sock = _socket.socket(family, STREAM)
        try:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise port_refusal(error) from None
        port = sock.getsockname()[1]
        self.listeners[op] = (sock, port)
        self.agent.cancel_hooks[op] = lambda: self.close_listener(op)
        self.agent.send(OPENED, op, PORT.pack(port, 0))
        self.watch_listeners()

    def watch_listeners(self) -> None:
        """Accept while there is room; what comes meanwhile waits in the kernel."""
        for op, (sock, _) in self.listeners.items():
            if len(self.open) >= MAX_TUNNELS:
                self.agent.unwatch(sock.fileno())
            elif sock.fileno() not in self.agent.handlers:
                self.watch_listener(op, sock)

    def tick(self, now: float, lost: float) -> None:
        self.watch_listeners()

    def watch_listener(self, op: int, sock: "_socket.socket") -> None:
        self.agent.watch(sock.fileno(), select.EPOLLIN, lambda events: self.on_connection(op))

    def on_connection(self, op: int) -> None:
        if op not in self.listeners:
            return
        sock, port = self.listeners[op]
        try:
            fd, _ = sock._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return  # Gone already.
        except OSError:
            self.agent.unwatch(sock.fileno())  # No descriptor is left: it waits for the next turn.
            return
        while True:
            self.last = self.last % 0x7FFFFFF0 + 1
            if AGENT_OPERATION | self.last not in self.open:
                break
        Tunnel(self, AGENT_OPERATION | self.last, port, 0).adopt(fd)
        self.watch_listeners()

    def close_listener(self, op: int) -> None:
        sock, _ = self.listeners.pop(op)
        self.agent.unwatch(sock.fileno())
        sock.close()
        self.agent.forget(op)


PARTS.append(Tunnels)
