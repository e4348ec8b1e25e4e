"""A WebSocket to a server inside a sandbox: its frames are read here, messages are passed on."""

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.types import Receive, Scope, Send
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, ProtocolError
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from app.sandbox_port_headers import Place, inward, outward
from app.sandbox_port_http import GoneError, UpstreamError
from services.errors import UserError
from services.sandboxes.relay import Pipe

_HANDSHAKE_S = 30.0
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_UNSENDABLE = {1004, 1005, 1006, 1015}


class SocketExchange:
    """Carries messages both ways, each as fast as the other side takes them."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, pipe: Pipe, place: Place, target: bytes
    ) -> None:
        self._fields: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive, self._send = receive, send
        self._pipe, self._place = pipe, place
        path, _, query = target.decode("latin-1").partition("?")
        self._protocol = ClientProtocol(
            WebSocketURI(False, "localhost", place.port, path, query),
            subprotocols=[Subprotocol(name) for name in scope.get("subprotocols", ())] or None,
            max_size=_MAX_MESSAGE_BYTES,
        )
        self._writing = asyncio.Lock()
        self._parts: list[bytes] = []
        self._is_text = False
        self._code = 1000

    async def run(self) -> None:
        """Until either side ends. Raises GoneError, UserError; UpstreamError before it accepted."""
        async with asyncio.timeout(_HANDSHAKE_S):
            frames = await self._shake_hands()
        try:
            async with asyncio.TaskGroup() as group:
                inward_task = group.create_task(self._take())
                await self._give(frames)
                inward_task.cancel()
        except BaseExceptionGroup as errors:
            first = errors.exceptions[0]
            if isinstance(first, GoneError):
                await self._leave()
            raise first from None
        await self._send({"type": "websocket.close", "code": self._code})

    async def drop(self) -> None:
        """End a socket whose way in is lost."""
        await self._send({"type": "websocket.close", "code": 1011})

    async def _shake_hands(self) -> Sequence[Any]:
        request = self._protocol.connect()
        for name, value in inward(self._fields, self._place):
            if name != b"host":
                request.headers[name.decode("latin-1")] = value.decode("latin-1")
        self._protocol.send_request(request)
        await self._flush()
        events: list[Any] = []
        while not events:
            events += await self._read()
            if not events and self._protocol.handshake_exc is not None:
                raise UpstreamError(502, "The server inside does not speak WebSocket.")
            if not events and self._protocol.state is State.CLOSED:
                raise UpstreamError(502, "The server inside ended without an answer.")
        response = events.pop(0)
        if not isinstance(response, Response) or self._protocol.handshake_exc is not None:
            status = getattr(response, "status_code", 502)
            is_refusal = 400 <= status < 600
            raise UpstreamError(
                status if is_refusal else 502, "The server inside refused the WebSocket."
            )
        raw = response.headers.raw_items()
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in raw]
        cookies = [field for field in outward(fields, self._place) if field[0] == b"set-cookie"]
        await self._send(
            {
                "type": "websocket.accept",
                "subprotocol": self._protocol.subprotocol,
                "headers": cookies,
            }
        )
        return events

    async def _read(self) -> Sequence[Any]:
        data = await self._pipe.read()
        try:
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
        except (InvalidHandshake, ProtocolError, EOFError) as error:
            raise UpstreamError(502, "The server inside does not speak WebSocket.") from error
        await self._flush()
        return self._protocol.events_received()

    async def _flush(self) -> None:
        async with self._writing:
            for data in self._protocol.data_to_send():
                if data:
                    await self._pipe.write(data)

    # Outward.

    async def _give(self, frames: Sequence[Any]) -> None:
        while True:
            for frame in frames:
                await self._give_frame(frame)
            if self._protocol.close_rcvd is not None:
                code = self._protocol.close_rcvd.code
                self._code = 1000 if code in _UNSENDABLE else code
                return
            if self._protocol.state is State.CLOSED or self._protocol.parser_exc is not None:
                self._code = 1011
                return
            frames = await self._read()

    async def _give_frame(self, frame: Frame) -> None:
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return
        message, self._parts = b"".join(self._parts), []
        if self._is_text:
            text = message.decode("utf-8", "replace")
            await self._send({"type": "websocket.send", "text": text})
        else:
            await self._send({"type": "websocket.send", "bytes": message})

    # Inward.

    async def _take(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self._code = message.get("code") or 1001
                raise GoneError
            text = message.get("text")
            if self._protocol.state is not State.OPEN:
                continue
            if text is not None:
                self._protocol.send_text(text.encode())
            else:
                self._protocol.send_binary(message.get("bytes") or b"")
            await self._flush()

    async def _leave(self) -> None:
        """Tell the server inside that its client has gone."""
        if self._protocol.state is not State.OPEN:
            return
        code = 1001 if self._code in _UNSENDABLE or self._code < 1000 else self._code
        try:
            self._protocol.send_close(code)
            await self._flush()
        except (ProtocolError, UserError):
            return
