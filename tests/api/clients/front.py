"""The web server of a frontend: it serves the page, and passes /graphql on to the product.

Its network can be cut: connections under way break, new ones come to nothing until it is mended.
They can be frozen, too: nothing arrives over them any more, and nobody is told. And as the proxy
that it is, the server can answer that there is nobody to pass anything on to.
"""

import asyncio
from asyncio import StreamReader, StreamWriter
from typing import Self

_UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/html\r\nContent-Length: 4\r\n"
    b"Connection: close\r\n\r\nBusy"
)


class Front:
    """See the module. Serves 127.0.0.1 on a free port while entered."""

    def __init__(self, files: dict[str, tuple[str, bytes]]) -> None:
        self._files = files
        # The product's.
        self.port = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._is_open = True
        self._frozen: set[StreamWriter] = set()
        self._refusal = b""
        self._refused = asyncio.Condition()
        # Connections to the product so far, and how many were refused.
        self.count = self.refusals = 0

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

    async def refuse(self, count: int) -> None:
        """Cut, answer every new connection with an error, and return after `count` of them."""
        self._refusal = _UNAVAILABLE
        self.cut()
        async with asyncio.timeout(60), self._refused:
            most = self.refusals + count
            await self._refused.wait_for(lambda: self.refusals >= most)

    def mend(self) -> None:
        """Let new connections through again."""
        self._is_open, self._refusal = True, b""

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
            await self._refuse(writer)
            return
        self.count += 1
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
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

    async def _refuse(self, writer: StreamWriter) -> None:
        if self._refusal:
            writer.write(self._refusal)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        async with self._refused:
            self.refusals += 1
            self._refused.notify_all()

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
