"""The process that starts servers when they are first asked for, and ends them with its client.

The client holds the other end of its standard input. Whatever way the client ends, by its last
line or by SIGKILL, that pipe closes, and the keeper ends its servers and removes their data. On
Linux it also watches the client itself, since a process forked from it may keep the pipe open.

A question is a line of JSON, `{"require": [name, …], "worker": id}` or `{"status": true}`; so is
the answer. Lines on standard output tell of what takes long.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.servers import (
    browser,
    bubblewrap,
    clamd,
    compose,
    docker,
    ext4,
    haproxy,
    kubectl,
    mysql,
    network,
    node,
    packages,
    redis,
    runsc,
)
from tests.servers.base import Place, UnavailableError

SERVERS: dict[str, ModuleType] = {
    "mysql": mysql,
    "redis": redis,
    "docker": docker,
    "bubblewrap": bubblewrap,
    "browser": browser,
    "node": node,
    "ext4": ext4,
    "kubectl": kubectl,
    "compose": compose,
    "haproxy": haproxy,
    "clamd": clamd,
    "network": network,
    "runsc": runsc,
}
# The sum of what the slowest server's steps may take.
_START_TIMEOUT_S = 1500.0


class Keeper:
    """Servers by name, each started once; those of a worker once for each worker."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._places: dict[str, Place] = {}
        self._starts: dict[str, asyncio.Task[dict[str, str]]] = {}
        self._unavailable: dict[str, str] = {}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it hangs up."""
        try:
            while line := await reader.readline():
                question: dict[str, Any] = json.loads(line)
                if "status" in question:
                    answer: dict[str, Any] = {"unavailable": self._unavailable}
                else:
                    names, worker = question["require"], question["worker"]
                    coordinates = await asyncio.gather(
                        *(self._require(name, worker) for name in names)
                    )
                    answer = dict(zip(names, coordinates, strict=True))
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()

    async def _require(self, name: str, worker: str) -> dict[str, Any]:
        key = f"{name}-{worker}" if SERVERS[name].PER_WORKER else name
        if key not in self._starts:
            self._starts[key] = asyncio.create_task(self._start(name, key))
        try:
            # The client that asked first may leave; the others still want the answer.
            return {"environment": await asyncio.shield(self._starts[key])}
        except UnavailableError as error:
            self._unavailable[name] = str(error)
            return {"unavailable": str(error)}

    async def _start(self, name: str, key: str) -> dict[str, str]:
        directory = self._directory / key
        directory.mkdir()
        place = self._places[key] = Place(directory, _say)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                environment: dict[str, str] = await SERVERS[name].start(place)
                return environment
        except (TimeoutError, OSError) as error:
            raise UnavailableError(f"{name} did not start: {error!r}") from error

    async def aclose(self) -> None:
        """End everything that was started, also what is starting. Idempotent."""
        await packages.idle()
        starts = list(self._starts.values())
        for task in starts:
            task.cancel()
        await asyncio.gather(*starts, return_exceptions=True)
        closings = (place.aclose() for place in self._places.values())
        await asyncio.gather(*closings, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)


def _say(text: str) -> None:
    # Nobody may be left to read it.
    with contextlib.suppress(OSError):
        print(text, flush=True)


def _watch(client: int, ended: asyncio.Event) -> None:
    if not hasattr(os, "pidfd_open"):
        return
    try:
        descriptor = os.pidfd_open(client)
    except ProcessLookupError:
        ended.set()
        return
    asyncio.get_running_loop().add_reader(descriptor, ended.set)


async def _keep(listener: socket.socket, directory: Path, client: int) -> None:
    keeper = Keeper(directory)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, ended.set)
    _watch(client, ended)
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    server = await asyncio.start_unix_server(keeper.answer, sock=listener)
    waits = {asyncio.create_task(stdin.read()), asyncio.create_task(ended.wait())}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        server.close()
        await keeper.aclose()


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as opened:
        asyncio.run(_keep(opened, Path(sys.argv[2]), int(sys.argv[3])))
