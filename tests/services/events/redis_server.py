"""A private redis-server on a Unix socket, for tests that stop, flush or freeze it."""

import asyncio
import shutil
import signal
import tempfile
from pathlib import Path


class RedisServer:
    """One server whose data lives in a short-lived directory and survives `kill` and `start`."""

    def __init__(self) -> None:
        # Not under pytest's tmp_path: a socket's path may have 107 characters at most.
        self._directory = Path(tempfile.mkdtemp(prefix="nsr-"))
        self._process: asyncio.subprocess.Process | None = None
        self.url = f"unix://{self._directory}/redis.sock"

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            "redis-server",
            *("--port", "0", "--unixsocket", f"{self._directory}/redis.sock"),
            *("--dir", str(self._directory), "--save", ""),
            *("--appendonly", "yes", "--appendfsync", "always"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            while line := await self._process.stdout.readline():
                if b"eady to accept connections" in line:
                    return
        raise AssertionError("redis-server did not start")

    async def kill(self) -> None:
        """End the server as a crash would. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.communicate()

    def freeze(self) -> None:
        """Let the server accept connections and bytes, and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def aclose(self) -> None:
        await self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)
