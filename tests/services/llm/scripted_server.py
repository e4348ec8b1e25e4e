"""A scripted server that speaks OpenAI's streaming chat completions over real HTTP.

    async with ScriptedServer([says("Hello"), calls(("run_code", {"code": "print(1)"}))]) as server:
        provider = open_provider(base_url=server.base_url, api_key="k", model="m", embedder=…)

Every request takes the next turn; `server.requests` holds their JSON bodies and headers in order.
Beyond the last turn the server answers 500 and `server.unscripted` counts it. A turn is a list of
acts, made by the helpers below or by hand:

    says("text", usage=(3, 5))          text in word-sized chunks, then stop, usage and [DONE]
    calls((name, arguments), …)         tool calls, arguments in fragments of `size` characters
    refuses(429, headers={…}, body={…}) an HTTP error
    Send(bytes) Chunk({...}) Wait(event) Cut() Hang()    the acts themselves

`Hang` answers nothing until the client leaves; `await server.left()` waits for that (it is how a
cancellation is observed). Nothing here sleeps.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

_WAIT_S = 30


@dataclass(frozen=True)
class Status:
    """The response's head, and for an error its whole body."""

    code: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True)
class Send:
    """Bytes of the event stream as they are."""

    data: bytes


@dataclass(frozen=True)
class Chunk:
    """One event with this JSON."""

    data: dict[str, Any]


@dataclass(frozen=True)
class Wait:
    """Go on when the test sets the event."""

    event: asyncio.Event


@dataclass(frozen=True)
class Cut:
    """Close the connection in the middle of the stream."""


@dataclass(frozen=True)
class Hang:
    """Say nothing more until the client closes."""


Act = Status | Send | Chunk | Wait | Cut | Hang
Turn = Sequence[Act]
DONE = Send(b"data: [DONE]\n\n")


def delta(content: str | None = None, *, reason: str | None = None, **more: Any) -> Chunk:
    """One chunk of one choice."""
    inner = {"content": content, **more} if content is not None or more else {}
    return Chunk({"choices": [{"index": 0, "delta": inner, "finish_reason": reason}]})


def usage_chunk(input_tokens: int, output_tokens: int) -> Chunk:
    """The chunk that reports usage: no choices."""
    counts = {"prompt_tokens": input_tokens, "completion_tokens": output_tokens}
    return Chunk({"choices": [], "usage": counts | {"total_tokens": input_tokens + output_tokens}})


def says(text: str, *, usage: tuple[int, int] | None = (7, 11), reason: str = "stop") -> Turn:
    """A whole answer, a word a chunk."""
    words = [word + " " for word in text.split(" ")]
    words[-1] = words[-1][:-1]
    acts: list[Act] = [Status(), delta(role="assistant"), *(delta(word) for word in words)]
    acts.append(delta(reason=reason))
    if usage:
        acts.append(usage_chunk(*usage))
    return [*acts, DONE]


def calls(
    *wanted: tuple[str, dict[str, Any]], size: int = 4, usage: tuple[int, int] | None = (7, 11)
) -> Turn:
    """Tool calls in one turn, named call_0, call_1, …; arguments come in fragments, interleaved."""
    acts: list[Act] = [Status(), delta(role="assistant")]
    texts = [json.dumps(arguments, ensure_ascii=False) for _, arguments in wanted]
    for index, (name, _) in enumerate(wanted):
        head = {"name": name, "arguments": ""}
        acts.append(
            delta(
                tool_calls=[
                    {"index": index, "id": f"call_{index}", "type": "function", "function": head}
                ]
            )
        )
    for start in range(0, max(map(len, texts), default=0), size):
        for index, text in enumerate(texts):
            part = {"arguments": text[start : start + size]}
            if part["arguments"]:
                acts.append(delta(tool_calls=[{"index": index, "function": part}]))
    acts.append(delta(reason="tool_calls"))
    if usage:
        acts.append(usage_chunk(*usage))
    return [*acts, DONE]


def refuses(
    code: int, *, headers: dict[str, str] | None = None, body: dict[str, Any] | None = None
) -> Turn:
    """An HTTP error instead of a stream."""
    content = json.dumps({"error": body or {"message": f"scripted {code}", "type": "error"}})
    return [Status(code, headers or {}, content.encode())]


@dataclass(frozen=True)
class Received:
    """One request as the server read it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class ScriptedServer:
    """See the module. Serves 127.0.0.1 on a free port while entered."""

    def __init__(self, turns: Sequence[Turn] = ()) -> None:
        self.turns = list(turns)
        self.requests: list[Received] = []
        self.unscripted = 0
        self._left: asyncio.Queue[int] = asyncio.Queue()
        self._arrived: asyncio.Queue[int] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        """What to give a client."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def left(self) -> None:
        """Return when a client has closed a hanging stream."""
        async with asyncio.timeout(_WAIT_S):
            await self._left.get()

    async def arrived(self) -> None:
        """Return when a request has been read."""
        async with asyncio.timeout(_WAIT_S):
            await self._arrived.get()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Received | None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        return Received(first.split(" ")[1], headers, json.loads(raw) if raw else {})

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Play one turn; whether the connection can be used again."""
        request = await self._read(reader)
        assert request is not None
        if request.path.endswith("/models"):
            await self._whole(writer, Status(200, {}, b'{"object": "list", "data": []}'))
            return True
        self.requests.append(request)
        self._arrived.put_nowait(len(self.requests))
        if not self.turns:
            self.unscripted += 1
            turn: Turn = refuses(500, body={"message": "no turn is scripted"})
        else:
            turn = self.turns.pop(0)
        return await self._play(turn, reader, writer)

    async def _play(
        self, turn: Turn, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        for act in turn:
            if isinstance(act, Status):
                if act.body is not None:
                    await self._whole(writer, act)
                    return True
                writer.write(self._head(act, "transfer-encoding: chunked"))
            elif isinstance(act, Chunk):
                base = {"id": "chat_1", "object": "chat.completion.chunk", "model": "scripted"}
                event = json.dumps(base | {"created": 0} | act.data, ensure_ascii=False)
                self._part(writer, f"data: {event}\n\n".encode())
            elif isinstance(act, Send):
                self._part(writer, act.data)
            elif isinstance(act, Wait):
                await writer.drain()
                async with asyncio.timeout(_WAIT_S):
                    await act.event.wait()
            elif isinstance(act, Cut):
                await writer.drain()
                return False
            else:
                await writer.drain()
                # A client that leaves closes its side, which reads as the end.
                await reader.read(1)
                self._left.put_nowait(1)
                return False
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    @staticmethod
    def _head(status: Status, *more: str) -> bytes:
        kind = "application/json" if status.body is not None else "text/event-stream"
        lines = [f"HTTP/1.1 {status.code} Scripted", f"content-type: {kind}", *more]
        lines += [f"{name}: {value}" for name, value in status.headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def _whole(self, writer: asyncio.StreamWriter, status: Status) -> None:
        body = status.body or b""
        writer.write(self._head(status, f"content-length: {len(body)}") + body)
        await writer.drain()

    @staticmethod
    def _part(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
