"""The server's side of the spawner process."""

import array
import asyncio
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sandbox.errors import DriverUnavailableError, Resource, ResourceExhaustedError, TimeoutError_

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 10.0
ENDED = "The spawner process ended."


class Spawner:
    """Starts processes through `spawner.py`. They all end when this object is closed.

    They end with the spawner process too, and nobody reports their exits then: `on_lost` is told
    once. The next `spawn` starts another spawner process.
    """

    def __init__(
        self, on_exit: Callable[[int, int], None], on_lost: Callable[[], None] = lambda: None
    ) -> None:
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._closed = False
        self._restarting: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._answers: dict[str, asyncio.Future[int]] = {}
        self._sending = asyncio.Lock()
        self._writable: asyncio.Future[None] | None = None

    async def start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        program = str(Path(__file__).with_name("spawner.py"))
        with theirs:
            self._process = await asyncio.to_thread(self._popen, program, theirs)
        self._control = ours
        asyncio.get_running_loop().add_reader(ours, self._receive)

    @staticmethod
    def _popen(program: str, control: socket.socket) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(  # noqa: S603 - our own interpreter and file.
            [sys.executable, "-I", "-S", program], stdin=control.fileno(), stdout=subprocess.DEVNULL
        )

    async def _revive(self) -> None:
        """Have a spawner process again. Whoever gives up waiting does not stop the others'."""
        if self._closed:
            raise DriverUnavailableError(ENDED)
        if self._restarting is None or self._restarting.done():
            self._restarting = asyncio.create_task(self._restart())
        await asyncio.shield(self._restarting)

    async def _restart(self) -> None:
        await self._bury()
        await self.start()
        log.warning("The spawner process had ended; another one serves now.")

    @property
    def is_running(self) -> bool:
        return self._control is not None

    def _receive(self) -> None:
        while self._control is not None:
            try:
                data = self._control.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            answer: dict[str, Any] = json.loads(data)
            if "exit" in answer:
                self._on_exit(answer["exit"], answer["status"])
                continue
            waiting = self._answers.get(answer["id"])
            if waiting is None or waiting.done():
                continue
            if "pid" in answer:
                waiting.set_result(answer["pid"])
            else:
                waiting.set_exception(OSError(answer["errno"], answer["error"]))

    def _lost(self) -> None:
        if self._control is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._control)
        loop.remove_writer(self._control)
        self._control.close()
        self._control = None
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(DriverUnavailableError(ENDED))
        if not self._closed:
            self._on_lost()

    async def spawn(self, name: str, request: dict[str, Any], fds: Sequence[int]) -> int:
        """Start a process; its PID. The descriptors may be closed afterwards.

        Raises ResourceExhaustedError, TimeoutError_, DriverUnavailableError (closed, or the
        spawner process died twice).
        """
        try:
            if self.is_running:
                try:
                    return await self._ask(name, request, fds)
                except DriverUnavailableError:
                    # It died with the request, and what it may have started died with it.
                    log.warning("The spawner process ended while it was asked.")
            await self._revive()
            return await self._ask(name, request, fds)
        except OSError as error:
            raise ResourceExhaustedError(
                "The host has no room for another process.",
                resource=Resource.HOST,
                engine=str(error),
            ) from error

    async def remount(
        self, name: str, pid: int, start: str, filesystems: Sequence[dict[str, str]]
    ) -> None:
        """Change filesystems that were mounted for a process it started: all of them or none.

        Raises OSError (EINVAL: more is in use than shall be left), TimeoutError_,
        DriverUnavailableError (the spawner process died, and with it what it started).
        """
        request = {"pid": pid, "start": start, "remount": list(filesystems)}
        await self._ask(f"remount {name}", request, [])

    async def _ask(self, name: str, request: dict[str, Any], fds: Sequence[int]) -> int:
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answers[name] = waiting
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._send(json.dumps({"id": name, **request}).encode(), fds)
                return await waiting
        except TimeoutError as error:
            raise TimeoutError_("The spawner process did not answer in time.") from error
        finally:
            del self._answers[name]
            waiting.cancel()

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        loop = asyncio.get_running_loop()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        async with self._sending:
            while True:
                if self._control is None:
                    raise DriverUnavailableError(ENDED)
                try:
                    self._control.sendmsg([data], rights)
                except BlockingIOError:
                    self._writable = ready = loop.create_future()
                    loop.add_writer(self._control, _wake, ready)
                    try:
                        await ready
                    finally:
                        self._writable = None
                        if self._control is not None:
                            loop.remove_writer(self._control)
                    continue
                except OSError as error:
                    self._lost()
                    raise DriverUnavailableError(ENDED) from error
                return

    async def aclose(self) -> None:
        self._closed = True
        if self._restarting is not None:
            await asyncio.gather(self._restarting, return_exceptions=True)
        self._lost()
        await self._bury()

    async def _bury(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            try:
                await asyncio.to_thread(process.wait, 5)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
