"""Uvicorn as this product runs it: it says where to look, and drains its sockets first."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette

from app import memory


class Server(uvicorn.Server):
    """A server for one application made by `create_app`.

    `on_ready(settings, deps, port)` runs once it listens. Stopping closes the WebSockets with a
    code that lets clients come back, ends streams likewise, then finishes open requests.
    """

    def __init__(
        self, config: uvicorn.Config, app: Starlette, *, on_ready: Callable[[Any, Any, int], None]
    ) -> None:
        super().__init__(config)
        self._application = app.state.server
        self._on_ready = on_ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, and let the process close what it opened afterwards.

        Uvicorn's own way raises the signal again at the end, which would end the process at once.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the application and listen."""
        await super().startup(sockets)
        if self.started:
            memory.settle()
            port = self.servers[0].sockets[0].getsockname()[1]
            self._on_ready(self._application.settings, self._application.deps, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then close."""
        if self.started:
            await self._application.drain()
        await super().shutdown(sockets)
