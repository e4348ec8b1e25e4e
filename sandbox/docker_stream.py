"""Docker's hijacked stream: what several streams write, taken apart as it comes."""

import asyncio
import struct
from collections import deque
from collections.abc import Callable

_HEAD = struct.Struct(">BxxxI")  # Which stream, and how much of it follows.
_STDOUT = 1
# What is read at once: the loops' own buffers take a quarter of it, or are made anew each time.
_READ_BYTES = 256 * 1024
# Beyond it nothing is read: more than a window of output of several executions, so that the engine
# need not wait for each of our turns.
READ_AHEAD_BYTES = 2 * 1024 * 1024
COMPLAINT_BYTES = 4096


class Intake(asyncio.BufferedProtocol):
    """Stands between a connection and the protocol it had, and reads more of it at once.

    What comes goes to `take`, which keeps nothing of the buffer; all else is the protocol's.
    """

    def __init__(self, before: asyncio.Protocol, take: Callable[[memoryview], object]) -> None:
        self._before, self._take = before, take
        self._buffer = memoryview(bytearray(_READ_BYTES))

    @classmethod
    def insert(
        cls,
        transport: asyncio.Transport,
        before: asyncio.Protocol,
        take: Callable[[memoryview], object],
    ) -> None:
        """Take over a connection."""
        # How a transport reads is settled when it begins to.
        transport.pause_reading()
        transport.set_protocol(cls(before, take))
        transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._take(self._buffer[:nbytes])

    def eof_received(self) -> bool | None:
        return self._before.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        self._before.pause_writing()

    def resume_writing(self) -> None:
        self._before.resume_writing()


class Demultiplexer:
    """A parser of an upgraded connection; aiodocker's own copies every byte five times.

    `pause` and `resume` stop and start the reading of the connection. `complaints` is the end of
    what came on standard error.
    """

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause, self._resume = pause, resume
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._is_paused = False
        self._head = b""  # Of a frame, as far as it has come.
        self._stream = self._left = 0
        self._news = asyncio.Event()
        self._is_over = False
        self.complaints = b""

    # What the connection calls.

    def feed_data(self, data: bytes | memoryview) -> tuple[bool, bytes]:
        view = memoryview(data)
        while view:
            if not self._left:
                view = self._begin(view)
                continue
            part, view = view[: self._left], view[self._left :]
            self._left -= len(part)
            if self._stream == _STDOUT:
                self._chunks.append(bytes(part))
                self._held += len(part)
            else:
                self.complaints = (self.complaints + part)[-COMPLAINT_BYTES:]
        if self._held:
            self._news.set()
        if self._held > READ_AHEAD_BYTES and not self._is_paused:
            self._is_paused = True
            self._pause()
        return False, b""

    def _begin(self, view: memoryview) -> memoryview:
        """Take in the head of a frame, or what has come of it; gives what is behind."""
        missing = _HEAD.size - len(self._head)
        self._head += view[:missing]
        if len(self._head) == _HEAD.size:
            self._stream, self._left = _HEAD.unpack(self._head)
            self._head = b""
        return view[missing:]

    def feed_eof(self) -> None:
        self._is_over = True
        self._news.set()

    def set_exception(self, error: BaseException, cause: BaseException | None = None) -> None:
        self.feed_eof()

    # What the channel calls.

    async def read(self) -> bytes:
        """All that has come, waiting for something; nothing at the end."""
        while not self._chunks:
            if self._is_over:
                return b""
            self._news.clear()
            await self._news.wait()
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._held = 0
        if self._is_paused:
            self._is_paused = False
            self._resume()
        return data
