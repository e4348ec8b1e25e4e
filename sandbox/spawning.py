"""The server's side of the spawner process."""

import array
import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sandbox.errors import DriverUnavailableError, Resource, ResourceExhaustedError, TimeoutError_

ANSWER_TIMEOUT_S = 10.0


class Spawner:
    """Starts processes through `spawner.py`. They all end when this object is closed."""

    def __init__(self, on_exit: Callable[[int, int], None]) -> None:
        self._on_exit = on_exit
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._answers: dict[str, asyncio.Future[int]] = {}
        self._sending = asyncio.Lock()

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

    @property
    def is_running(self) -> bool:
        return self._control is not None

    def _receive(self) -> None:
        while self._control is not None:
            try:
                data = self._control.recv(1 << 16)
            except BlockingIOError:
                return
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
                waiting.set_exception(
                    ResourceExhaustedError(
                        "The host has no room for another process.",
                        resource=Resource.HOST,
                        engine=answer["error"],
                    )
                )

    def _lost(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(DriverUnavailableError("The spawner process ended."))

    async def spawn(self, name: str, request: dict[str, Any], fds: Sequence[int]) -> int:
        """Start a process; its PID. The descriptors may be closed afterwards."""
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

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        loop = asyncio.get_running_loop()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        async with self._sending:
            while True:
                if self._control is None:
                    raise DriverUnavailableError("The spawner process ended.")
                try:
                    self._control.sendmsg([data], rights)
                except BlockingIOError:
                    ready: asyncio.Future[None] = loop.create_future()
                    loop.add_writer(self._control, ready.set_result, None)
                    try:
                        await ready
                    finally:
                        loop.remove_writer(self._control)
                    continue
                return

    async def aclose(self) -> None:
        self._lost()
        if self._process is not None:
            process, self._process = self._process, None
            try:
                await asyncio.to_thread(process.wait, 5)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)
