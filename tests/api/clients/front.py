"""The web server of a frontend: it serves the page, and passes /graphql on to the product.

Its network can be cut: connections under way break, new ones come to nothing until it is mended.
They can be frozen, too: nothing arrives over them any more, and nobody is told.
"""

import asyncio
from asyncio import StreamReader, StreamWriter
from typing import Self


class Front:
    """See the module. Serves 127.0.0.1 on a free port while entered."""

    def __init__(self, files: dict[str, tuple[str, bytes]], port: int) -> None:
        self._files, self._port = files, port
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._is_open = True
        self._frozen: set[StreamWriter] = set()
        # Connections to the product so far.
        self.count = 0

    @property
    def url(self) -> str:
        """Where the page is."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Break every connection, and let no new one through."""
        self._is_open = False
        for writer in tuple(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        """Let new connections through again."""
        self._is_open = True

    def freeze(self) -> None:
        """Let nothing more through the connections there are, without a word. New ones work."""
        self._frozen |= self._writers

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode("latin-1")
            if path.startswith("/graphql"):
                await self._pass_on(head, reader, writer)
            else:
                await self._answer(path, writer)
        except (OSError, asyncio.IncompleteReadError):
            # A browser opens connections it does not use, and leaves as it likes.
            return
        finally:
            writer.transport.abort()

    async def _answer(self, path: str, writer: StreamWriter) -> None:
        kind, body = self._files.get(path, ("text/plain", b""))
        status = "200 OK" if path in self._files else "404 Not Found"
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def _pass_on(self, head: bytes, reader: StreamReader, writer: StreamWriter) -> None:
        if not self._is_open:
            return
        self.count += 1
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        ends = {writer, up_writer}
        self._writers |= ends
        try:
            up_writer.write(_alone(head))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, up_writer))
                group.create_task(self._pump(up_reader, writer))
        except* OSError:
            pass
        finally:
            self._writers -= ends
            self._frozen -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: StreamReader, writer: StreamWriter) -> None:
        while data := await reader.read(65536):
            if writer in self._frozen:
                continue
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("the other end has left")


def _alone(head: bytes) -> bytes:
    """Let no second request, which may be for another path, follow on a connection."""
    if b"\r\nupgrade:" in head.lower():
        return head
    kept = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([kept[0], b"Connection: close", *kept[1:]])
