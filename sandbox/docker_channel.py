"""Docker's hijacked attach stream as a channel, and the events of an engine."""

import asyncio
import contextlib
import json
import logging
from datetime import UTC, datetime
from typing import Any

import aiodocker
from aiodocker.containers import DockerContainer
from aiodocker.stream import Stream

from sandbox import docker_config
from sandbox.base import DriverEvent, DriverEventKind
from sandbox.docker_engine import BROKEN, answers
from sandbox.errors import SandboxLostError
from sandbox.events import Broadcast

log = logging.getLogger(__name__)

_EVENTS = {
    "oom": DriverEventKind.OOM,
    "die": DriverEventKind.DIED,
    "pause": DriverEventKind.PAUSED,
    "unpause": DriverEventKind.RESUMED,
}


class AttachChannel:
    """See `sandbox.base.Channel`. `complaints` is the end of what came on standard error."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._closed = False
        self._first = b""
        self.complaints = b""

    @classmethod
    async def open(cls, container: DockerContainer) -> "AttachChannel":
        """Attach to a container, whether or not it was started already."""
        stream = container.attach(stdin=True, stdout=True, stderr=True)
        try:
            async with answers("attach to the sandbox"):
                await stream._init()
        except BaseException:
            await stream.close()
            raise
        return cls(stream)

    async def read(self) -> bytes:
        first, self._first = self._first, b""
        if first:
            return first
        while not self._closed:
            try:
                message = await self._stream.read_out()
            except BROKEN:
                break
            if message is None:
                break
            if message.stream == 1:
                return message.data
            self.complaints = (self.complaints + message.data)[-4096:]
        return b""

    def put_back(self, data: bytes) -> None:
        self._first = data + self._first

    def write(self, data: bytes) -> None:
        response = self._stream._resp
        connection = None if response is None else response.connection
        transport = None if connection is None else connection.transport
        if transport is not None and not transport.is_closing():
            transport.write(data)

    async def drain(self) -> None:
        if self._closed:
            raise SandboxLostError("The sandbox is gone.")
        try:
            await self._stream.write_in(b"")
        except (RuntimeError, AssertionError, *BROKEN) as error:
            raise SandboxLostError("The sandbox is gone.") from error

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            with contextlib.suppress(AssertionError, OSError):
                await self._stream.close()


async def listen(engine: aiodocker.Docker, listeners: Broadcast) -> None:
    """Pass the engine's events on until cancelled; come back when the connection breaks."""
    filters = json.dumps({"label": [docker_config.ID_LABEL], "event": list(_EVENTS)})
    delay_s = 0.1
    while True:
        events: Any = engine.events  # Without annotations of its own.
        subscriber = events.subscribe(create_task=False)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(events.run(filters=filters))
                while (event := await subscriber.get()) is not None:
                    delay_s = 0.1
                    _pass_on(event, listeners)
        except* BROKEN as broken:
            log.warning("The Docker engine's events broke off: %s", broken.exceptions[0])
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, 10.0)


def _pass_on(event: dict[str, Any], listeners: Broadcast) -> None:
    sandbox_id = event.get("Actor", {}).get("Attributes", {}).get(docker_config.ID_LABEL)
    kind = _EVENTS.get(event.get("Action", ""))
    if sandbox_id and kind:
        listeners.emit(DriverEvent(kind, sandbox_id, datetime.now(UTC)))
