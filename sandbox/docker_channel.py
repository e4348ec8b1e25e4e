"""Docker's hijacked attach stream as a channel, and the events of an engine."""

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import Any

import aiodocker
import aiohttp
from aiodocker.containers import DockerContainer

from sandbox import docker_config
from sandbox.base import DriverEvent, DriverEventKind
from sandbox.docker_engine import BROKEN, answers
from sandbox.docker_stream import Demultiplexer, Intake
from sandbox.errors import SandboxLostError
from sandbox.events import Broadcast

log = logging.getLogger(__name__)

_ATTACHED: dict[str, str | int] = {
    "stream": 1,
    "stdin": 1,
    "stdout": 1,
    "stderr": 1,
    "logs": 0,
    "detachKeys": "",
}
_EVENTS = {
    "oom": DriverEventKind.OOM,
    "die": DriverEventKind.DIED,
    "pause": DriverEventKind.PAUSED,
    "unpause": DriverEventKind.RESUMED,
}


class AttachChannel:
    """See `sandbox.base.Channel`. `complaints` is the end of what came on standard error."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        connection = response.connection
        protocol = None if connection is None else connection.protocol
        if protocol is None or protocol.transport is None:
            raise SandboxLostError("The engine closed the way to the sandbox.")
        self._response = response
        self._protocol = protocol
        self._transport = protocol.transport
        self._closed = False
        self._first = b""
        self._output = Demultiplexer(protocol.pause_reading, protocol.resume_reading)
        # What has come already; then, unless that was the end of it, what is still to come.
        protocol.set_parser(self._output, self._output)
        protocol.force_close()
        Intake.insert(self._transport, protocol, self._output.feed_data)

    @classmethod
    async def open(cls, container: DockerContainer) -> "AttachChannel":
        """Attach to a container, whether or not it was started already."""
        engine = container.docker
        async with answers("attach to the sandbox"):
            response = await engine._do_query(
                f"containers/{container.id}/attach",
                method="POST",
                params=_ATTACHED,
                headers={"Connection": "Upgrade", "Upgrade": "tcp"},
                timeout=None,  # Streams have no end; the answer has its own.
                read_until_eof=False,
            )
        try:
            return cls(response)
        except BaseException:
            response.close()
            raise

    @property
    def complaints(self) -> bytes:
        return self._output.complaints

    async def read(self) -> bytes:
        first, self._first = self._first, b""
        if first or self._closed:
            return first
        return await self._output.read()

    def put_back(self, data: bytes) -> None:
        self._first = data + self._first

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        if self._closed or self._transport.is_closing():
            raise SandboxLostError("The sandbox is gone.")
        try:
            await self._protocol._drain_helper()
        except BROKEN as error:
            raise SandboxLostError("The sandbox is gone.") from error

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._output.feed_eof()
            if self._transport.can_write_eof() and not self._transport.is_closing():
                self._transport.write_eof()
            self._response.close()


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
