"""What waits to be sent on one socket: bounded, written by one task."""

import asyncio
from collections import deque

from starlette.types import Send


class Outbox:
    """A bounded queue of text frames and the task that sends them.

    Holds at most `max_items` frames or `max_bytes` bytes (one larger frame is let into an empty
    queue). `put` waits while it is full, so that a client that stops reading stops the streams it
    asked for instead of filling memory; nothing is dropped.
    """

    def __init__(self, send: Send, *, max_items: int, max_bytes: int) -> None:
        self._send = send
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._frames: deque[bytes] = deque()
        self._size_bytes = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._sending_since: float | None = None
        self._is_closed = False

    @property
    def size_bytes(self) -> int:
        """Bytes queued now."""
        return self._size_bytes

    def __len__(self) -> int:
        return len(self._frames)

    async def put(self, frame: bytes) -> None:
        """Queue a frame once there is room. Does nothing when closed."""
        while not self._room.is_set():
            await self._room.wait()
        self.put_nowait(frame)

    def put_nowait(self, frame: bytes) -> None:
        """Queue a frame even past the bounds; for the few the server itself begins."""
        if self._is_closed:
            return
        self._frames.append(frame)
        self._size_bytes += len(frame)
        if len(self._frames) >= self._max_items or self._size_bytes >= self._max_bytes:
            self._room.clear()
        self._news.set()

    async def run(self) -> None:
        """Send frames until cancelled. Raises OSError when the connection is lost."""
        frames = self._frames
        loop = asyncio.get_running_loop()
        while True:
            while frames:
                frame = frames.popleft()
                self._size_bytes -= len(frame)
                self._sending_since = loop.time()
                await self._send({"type": "websocket.send", "text": frame.decode()})
                # Streams are let in again at half the bounds: once per batch, not once per frame.
                if (
                    len(frames) * 2 <= self._max_items
                    and self._size_bytes * 2 <= self._max_bytes
                    and not self._room.is_set()
                ):
                    self._room.set()
            self._sending_since = None
            self._news.clear()
            await self._news.wait()

    def stalled_s(self) -> float:
        """Seconds for which the frame now being sent has not been taken by the connection."""
        if self._sending_since is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._sending_since

    def close(self) -> None:
        """Forget what is queued and let everybody go who waits for room."""
        self._is_closed = True
        self._frames.clear()
        self._size_bytes = 0
        self._room.set()
