"""A daemon like ClamAV's that says what the real one cannot be made to say, as far as INSTREAM."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from services.sandboxes import clamav


@dataclass
class Double:
    """One daemon. `signatures` are bytes and the name of what contains them."""

    url: str = ""
    signatures: dict[bytes, str] = field(
        default_factory=lambda: {b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE": "Eicar-Test-Signature"}
    )
    # As StreamMaxLength: a longer stream is refused as soon as it is.
    most_bytes: int = 1024 * 1024
    # What is answered whatever comes, instead; b"" hangs up.
    answer: bytes | None = None
    scanned: list[bytes] = field(default_factory=list)

    serving: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self.serving.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await reader.readuntil(b"\0")
        if command != b"zINSTREAM\0":
            writer.write(b"UNKNOWN COMMAND\0")
            return
        data = b""
        while True:
            (size,) = struct.unpack(">I", await reader.readexactly(4))
            if size == 0:
                break
            if len(data) + size > self.most_bytes:
                writer.write(b"INSTREAM size limit exceeded. ERROR\0")
                await writer.drain()
                return
            data += await reader.readexactly(size)
        if data == clamav.too_deep():
            writer.write(b"stream: Heuristics.Limits.Exceeded.MaxRecursion FOUND\0")
            await writer.drain()
            return
        self.scanned.append(data)
        if self.answer is not None:
            writer.write(self.answer)
        else:
            names = [name for bytes_, name in self.signatures.items() if bytes_ in data]
            writer.write(f"stream: {names[0]} FOUND\0".encode() if names else b"stream: OK\0")
        await writer.drain()


@asynccontextmanager
async def double(folder: Path | None = None) -> AsyncIterator[Double]:
    """Run a daemon on a free port, or on a socket in a folder."""
    daemon = Double()
    if folder is None:
        server = await asyncio.start_server(daemon.serve, "127.0.0.1", 0)
        daemon.url = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    else:
        server = await asyncio.start_unix_server(daemon.serve, folder / "clamd.ctl")
        daemon.url = f"unix://{folder / 'clamd.ctl'}"
    async with server:
        yield daemon
    async with asyncio.timeout(10):
        await asyncio.gather(*daemon.serving)
