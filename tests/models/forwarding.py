"""A road to a server that can forget the connections it carries, as a NAT does: without a word."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Road:
    """Carries connections to a server; `port` is where it listens."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._target = host, port
        self._generation = 0
        self.port = 0
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    def forget(self) -> None:
        """Carry nothing more of the connections there are; neither side hears of it."""
        self._generation += 1

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        there, back = await asyncio.open_connection(self._host, self._target)
        self._writers += [writer, back]
        for source, target in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._carry(source, target, self._generation))
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, generation: int
    ) -> None:
        try:
            while data := await source.read(65_536):
                if generation == self._generation:
                    target.write(data)
                    await target.drain()
            if generation == self._generation:
                target.close()
        except OSError:
            return

    async def open(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._server = await asyncio.start_server(self.accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Break off whatever is carried, and refuse what comes."""
        self._server.close()
        for task in tuple(self._pipes):
            task.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        await self._server.wait_closed()


@asynccontextmanager
async def forwarding(host: str, port: int) -> AsyncIterator[Road]:
    """Give a road to a server."""
    road = Road(host, port)
    await road.open()
    try:
        yield road
    finally:
        await road.close()
