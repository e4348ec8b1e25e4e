"""A way to a server that breaks at a chosen moment: a relay in front of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

CHUNK = 65536


class Relay:
    """Passes bytes to and from a server until it is cut, and again once it is mended."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._ends: set[asyncio.StreamWriter] = set()
        self._cut_at = b""
        self._passes_on = True
        self.is_cut = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        """Where the relay listens, `tcp://…`."""
        return f"tcp://127.0.0.1:{self.port}"

    def cut_at(self, request: bytes, *, passes_on: bool) -> None:
        """Break every connection when a request with these bytes comes.

        With `passes_on` the server still gets it, and its answer is lost.
        """
        self._cut_at, self._passes_on = request, passes_on

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        self.is_cut.set()
        for end in self._ends:
            end.transport.abort()

    def mend(self) -> None:
        """Let connections through again."""
        self._cut_at = b""
        self.is_cut.clear()

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        with contextlib.suppress(OSError):
            if not self.is_cut.is_set():
                await self._relay(reader, writer)
        writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._url.scheme == "unix":
            there, back = await asyncio.open_unix_connection(self._url.path)
        else:
            there, back = await asyncio.open_connection(self._url.hostname, self._url.port)
        ends = {writer, back}
        self._ends |= ends
        try:
            await asyncio.gather(self._listen(reader, back), self._pass_on(there, writer))
        finally:
            self._ends -= ends
            back.transport.abort()

    async def _listen(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            is_last = bool(self._cut_at) and self._cut_at in data
            if self._passes_on or not is_last:
                back.write(data)
                await back.drain()
            if is_last:
                self.cut()
        if not back.is_closing():
            back.write_eof()

    async def _pass_on(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await there.read(CHUNK):
            writer.write(data)
            await writer.drain()
        # An engine that has said all closes; who asked may have nothing more to say either.
        writer.close()


@contextlib.asynccontextmanager
async def relay(url: str) -> AsyncIterator[Relay]:
    """Put a relay in front of a server."""
    made = Relay(url)
    async with await asyncio.start_server(made.welcome, "127.0.0.1", 0) as server:
        made.port = server.sockets[0].getsockname()[1]
        try:
            yield made
        finally:
            made.cut()
