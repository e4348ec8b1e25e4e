"""A collector of traces as far as OTLP over HTTP goes: POST /v1/traces, protobuf both ways."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent


@dataclass(frozen=True)
class Span:
    """A span as it came, ids in hexadecimal."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    is_error: bool
    resource: dict[str, Any]

    @property
    def is_statement(self) -> bool:
        """Whether it is of a statement."""
        return "db.query.text" in self.attributes


@dataclass
class Collector:
    """One collector. It answers `status`, and nothing at all while `is_silent`."""

    url: str = ""
    status: int = 200
    is_silent: bool = False
    spans: list[Span] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)
    serving: set[asyncio.Task[None]] = field(default_factory=set)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def until(self, is_enough: Callable[["Collector"], bool], within_s: float = 60) -> None:
        """Return once enough has come."""
        async with asyncio.timeout(within_s), self._changed:
            await self._changed.wait_for(lambda: is_enough(self))

    async def span(self, is_it: Callable[[Span], bool]) -> Span:
        """Give the first span that fits, once it has come."""
        await self.until(lambda _: any(map(is_it, self.spans)))
        return next(filter(is_it, self.spans))

    def below(self, parent: Span) -> list[Span]:
        """Give the children of a span."""
        return [span for span in self.spans if span.parent == parent.id]

    def trace(self, trace: str) -> list[Span]:
        """Give all spans of a trace."""
        return [span for span in self.spans if span.trace == trace]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            self.serving.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        body = await reader.readexactly(int(headers["content-length"]))
        self.requests.append({":request": head[0], **headers})
        if self.is_silent:
            async with self._changed:
                self._changed.notify_all()
            await reader.read()
            return False
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert head[0] == "POST /v1/traces HTTP/1.1"
        assert headers["content-type"] == "application/x-protobuf"
        if self.status == 200:
            self.spans += _read(body)
        answer = ExportTraceServiceResponse().SerializeToString()
        writer.write(
            f"HTTP/1.1 {self.status} X\r\nContent-Type: application/x-protobuf\r\n"
            f"Content-Length: {len(answer)}\r\n\r\n".encode()
            + answer
        )
        await writer.drain()
        async with self._changed:
            self._changed.notify_all()
        return True


def _read(body: bytes) -> list[Span]:
    found = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = _attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            assert scope.scope.name == "noosphere"
            found += [_span(span, about) for span in scope.spans]
    return found


def _span(sent: Sent, resource: dict[str, Any]) -> Span:
    assert sent.end_time_unix_nano >= sent.start_time_unix_nano
    return Span(
        sent.name,
        Sent.SpanKind.Name(sent.kind).removeprefix("SPAN_KIND_"),
        sent.trace_id.hex(),
        sent.span_id.hex(),
        sent.parent_span_id.hex(),
        _attributes(sent.attributes),
        tuple((link.trace_id.hex(), link.span_id.hex()) for link in sent.links),
        sent.status.code == 2,
        resource,
    )


def _attributes(sent: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in sent}


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Run a collector beside the block."""
    collector = Collector()
    server = await asyncio.start_server(collector.serve, "127.0.0.1", 0)
    collector.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield collector
    finally:
        server.close()
        for task in tuple(collector.serving):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await server.wait_closed()
