"""A private Redis for each test process: pub/sub knows no databases, so sharing would leak."""

import asyncio

from tests.servers.base import Place, free_port
from tests.servers.packages import find

PER_WORKER = True


async def start(place: Place) -> dict[str, str]:
    """Give the URL of a server that keeps everything in memory."""
    programs = await find(place, {"redis-server": "redis-server"})
    port = free_port()
    process = await place.run(
        "redis-server",
        *(programs["redis-server"], "--bind", "127.0.0.1", "--port", str(port)),
        *("--dir", place.directory, "--save", "", "--appendonly", "no"),
    )
    await process.answer(lambda: _pongs(port))
    return {"NOOSPHERE_TEST_REDIS_URL": f"redis://127.0.0.1:{port}/0"}


async def _pongs(port: int) -> bool:
    async with asyncio.timeout(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"PING\r\n")
            return await reader.readexactly(5) == b"+PONG"
        finally:
            writer.close()
