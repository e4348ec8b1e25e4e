"""ClamAV's daemon, with signatures of our own: no database is ever fetched for it.

Each test runs one of its own, which is there in a moment and takes some 15 MB:

    async with running(program, folder, StreamMaxLength="1M") as daemon:
        Options(clamav_url=daemon.url)
"""

import asyncio
import signal
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.servers.base import Place, Process, UnavailableError, free_port
from tests.servers.packages import find

PER_WORKER = False
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
# What no rule of the product knows, and the name that the daemon gives it.
HARMFUL = b"noosphere harmful words"
NAME = "Noosphere.Test.Words.UNOFFICIAL"
_SIGNATURES = f"{NAME.removesuffix('.UNOFFICIAL')}:0:*:{HARMFUL.hex()}\n"
_TRIES = 5


async def start(place: Place) -> dict[str, str]:
    """Give the path of the program, which has to start once."""
    programs = await find(place, {"clamd": "clamav-daemon"})
    async with running(programs["clamd"], place.directory):
        return {"NOOSPHERE_TEST_CLAMD": programs["clamd"]}


class Clamd:
    """One daemon, on a TCP port and on a socket in its folder."""

    def __init__(self, program: str, folder: Path, settings: dict[str, str]) -> None:
        self._program, self._folder, self._settings = program, folder, settings
        self._process: Process | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def local_url(self) -> str:
        return f"unix://{self._folder / 'clamd.ctl'}"

    async def start(self) -> None:
        """Start it, on the port that it had before if it had one; returns when it answers."""
        for left in reversed(range(_TRIES)):
            port = self.port or free_port()
            try:
                await self._start(port)
            except UnavailableError:
                # Somebody else took the port between.
                if self.port or not left:
                    raise
            else:
                self.port = port
                return

    async def _start(self, port: int) -> None:
        database = self._folder / "signatures"
        database.mkdir(exist_ok=True)
        (database / "own.ndb").write_text(_SIGNATURES)
        settings = {
            "Foreground": "yes",
            "DatabaseDirectory": str(database),
            "TemporaryDirectory": str(self._folder),
            "TCPAddr": "127.0.0.1",
            "TCPSocket": str(port),
            "LocalSocket": str(self._folder / "clamd.ctl"),
            "AlertExceedsMax": "yes",
            **self._settings,
        }
        config = self._folder / "clamd.conf"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        process = Process("clamd", (self._program, "-c", config), self._folder / "clamd.log")
        await process.start()
        self._process = process
        try:
            await process.answer(lambda: _pongs(port))
        except UnavailableError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End it. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            await process.stop()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send(number)

    async def know(self, name: str, data: bytes) -> None:
        """Call what contains these bytes by a name from now on; returns when it does."""
        more = self._folder / "signatures" / f"{name}.ndb"
        more.write_text(f"{name}:0:*:{data.hex()}\n")
        assert await self.ask("RELOAD") == "RELOADING"
        async with asyncio.timeout(60):
            while not await self.finds(data):
                continue

    async def finds(self, data: bytes) -> bool:
        """Tell whether it finds anything in these bytes, which are less than a connection holds."""
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(b"zINSTREAM\0" + struct.pack(">I", len(data)) + data + bytes(4))
                return (await reader.readuntil(b"\0")).endswith(b" FOUND\0")
            finally:
                writer.close()

    async def ask(self, command: str) -> str:
        """Give it a command other than INSTREAM; gives what it says."""
        return await _ask(self.port, command)


async def _ask(port: int, command: str) -> str:
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"z%s\0" % command.encode())
            return (await reader.readuntil(b"\0"))[:-1].decode()
        finally:
            writer.close()


async def _pongs(port: int) -> bool:
    return await _ask(port, "PING") == "PONG"


@asynccontextmanager
async def running(program: str, folder: Path, **settings: str) -> AsyncIterator[Clamd]:
    """Run a daemon with its files in a folder; `settings` are of its configuration."""
    daemon = Clamd(program, folder, settings)
    await daemon.start()
    try:
        yield daemon
    finally:
        await daemon.stop()
