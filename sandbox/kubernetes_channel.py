"""A Pod's attach stream as a channel: one WebSocket, each message led by the stream's number."""

import asyncio
import contextlib
import json
import struct
from collections import deque

import aiohttp

from sandbox import kubernetes_boot as boot
from sandbox.errors import SandboxLostError, TemplateError

STDIN, STDOUT, STDERR, ERROR = range(4)
MESSAGE_BYTES = 64 * 1024
HIGH_WATER = 512 * 1024
CLOSE_TIMEOUT_S = 3.0
# Kubelets and runtimes end streams on which nothing passed for hours; pings are not noticed there.
KEEPALIVE_S = 600.0
PADDING = bytes(2)  # Between frames, where the agent skips zeros.
REPORT_BYTES = 64 * 1024


class AttachChannel:
    """See `sandbox.base.Channel`. Lost connections are not mended here: bytes would be missing.

    Whoever reads then sees the end and takes the sandbox over with a fresh channel. The container
    goes on, and what its agent has kept is sent again.
    """

    def __init__(
        self, socket: aiohttp.ClientWebSocketResponse, *, serves_agent: bool = True
    ) -> None:
        """`serves_agent` is False while another program than the agent is at the other end."""
        self._socket = socket
        self._serves_agent = serves_agent
        self._first = b""
        self._waiting: deque[bytes] = deque()
        self._held = 0
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._over = False
        self.complaints = b""
        self.status = ""  # What the cluster says about the end of the stream.
        self._writer = asyncio.ensure_future(self._write())

    async def read(self) -> bytes:
        first, self._first = self._first, b""
        if first:
            return first
        while not self._over:
            message = await self._socket.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                break
            data: bytes = message.data
            if not data:
                continue
            if data[0] == STDOUT and len(data) > 1:
                return data[1:]
            if data[0] == STDERR:
                self.complaints = (self.complaints + data[1:])[-4096:]
            elif data[0] == ERROR:
                self.status = _status(data[1:])
        self._end()
        return b""

    def put_back(self, data: bytes) -> None:
        """Let `read` give these bytes first."""
        self._first = data + self._first

    def write(self, data: bytes) -> None:
        if self._over or not data:
            return
        self._waiting.append(data)
        self._held += len(data)
        self._work.set()
        if self._held > HIGH_WATER:
            self._room.clear()

    async def drain(self) -> None:
        await self._room.wait()
        if self._over:
            raise SandboxLostError("The sandbox is gone.")

    async def aclose(self) -> None:
        """Let go; the container and its standard input stay as they are. Idempotent."""
        self._end()
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)
        # Its own limit counts for each message, and a busy sandbox never lets that pass.
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._socket.close()

    async def _write(self) -> None:
        """Send what waits, several frames in one message where they are small."""
        try:
            while True:
                try:
                    async with asyncio.timeout(KEEPALIVE_S):
                        await self._work.wait()
                except TimeoutError:
                    if self._serves_agent:
                        await self._socket.send_bytes(bytes((STDIN,)) + PADDING)
                    continue
                self._work.clear()
                while self._waiting:
                    data = b"".join(self._waiting)
                    self._waiting.clear()
                    for at in range(0, len(data), MESSAGE_BYTES):
                        part = data[at : at + MESSAGE_BYTES]
                        await self._socket.send_bytes(bytes((STDIN,)) + part)
                        self._held -= len(part)
                        if self._held <= HIGH_WATER:
                            self._room.set()
        except (aiohttp.ClientError, OSError, TimeoutError):
            # The reader may wait for a server that is gone without a word: end its wait too.
            self._end()
            await self._socket.close()

    def _end(self) -> None:
        self._over = True
        self._waiting.clear()
        self._room.set()

    async def exactly(self, size: int) -> bytes:
        """That many bytes; `read` gives those behind. Raises SandboxLostError."""
        data = b""
        while len(data) < size:
            part = await self.read()
            if not part:
                raise SandboxLostError("The sandbox is gone.")
            data += part
        self.put_back(data[size:])
        return data[:size]

    async def report(self) -> bytes:
        """What the first program in the Pod measured. Raises SandboxLostError, TemplateError."""
        self.write(boot.MAGIC)
        head = await self.exactly(len(boot.MAGIC) + 4)
        (size,) = struct.unpack_from(">I", head, len(boot.MAGIC))
        if not head.startswith(boot.MAGIC) or size > REPORT_BYTES:
            raise TemplateError("The image's Python is not one that the agent can use.")
        return await self.exactly(size)

    async def begin(self, source: str, first_word: int) -> None:
        """Send the agent, and wait for its first word of so many bytes, which stays to be read."""
        data = source.encode()
        self.write(struct.pack(">I", len(data)) + data)
        await self.drain()
        self.put_back(await self.exactly(first_word))
        self._serves_agent = True


def _status(data: bytes) -> str:
    """The sentence of a Status object; nothing where all went well."""
    try:
        value = json.loads(data)
        return "" if value.get("status") == "Success" else str(value.get("message", ""))[:500]
    except (ValueError, AttributeError):
        return data[:500].decode("utf-8", "replace")
