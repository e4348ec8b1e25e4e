"""Sending spans by OTLP over HTTP: beside the event loop, bounded, harmless if nobody takes them.

What concerns the sending itself is read by OpenTelemetry's library from its own variables.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from app.cli import VERSION
from app.config import Traces
from app.errors import ConfigurationError
from app.feed_metrics import exporting as counting

log = logging.getLogger("noosphere.tracing")


class Exporter(SpanExporter):
    """Sends batches, in the thread of whoever waits for them; says once that nobody takes them."""

    def __init__(self, inner: SpanExporter, place: str) -> None:
        self.taken = 0
        self.sent = 0
        self.failed = 0
        self._inner = inner
        self._place = place
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch. Never raises."""
        self.taken += len(spans)
        try:
            result = self._inner.export(spans)
        except Exception:
            log.exception("Spans cannot be sent")
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self.sent += len(spans)
            if self._is_failing:
                log.info("Spans are taken again by %s", self._place)
            self._is_failing = False
        else:
            self.failed += len(spans)
            if not self._is_failing:
                log.warning("Spans are not taken by %s; this is said once", self._place)
            self._is_failing = True
        return result

    def shutdown(self) -> None:
        """Give up what is under way."""
        self._inner.shutdown()


class Waiting(SpanProcessor, Collector):
    """Spans that have ended and wait to be sent; beyond the limit new ones are dropped."""

    def __init__(self, exporter: Exporter, most: int) -> None:
        self.dropped = 0
        self._accepted = 0
        self._exporter = exporter
        self._most = most
        self._batches = BatchSpanProcessor(
            exporter, max_queue_size=most, max_export_batch_size=min(most, 512)
        )

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Take no notice: only what has ended is sent."""

    def on_end(self, span: ReadableSpan) -> None:
        """Let a span wait, if it is to be sent and there is room."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if self._accepted - self._exporter.taken >= self._most:
            self.dropped += 1
            return
        self._accepted += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        """Send what waits; returns when that is done, or the exporter has given up."""
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits."""
        return self._batches.force_flush(timeout_millis)

    def collect(self) -> Iterable[Metric]:
        """Give what became of the spans."""
        family = CounterMetricFamily(
            "noosphere_trace_spans",
            "Spans of traces by what became of them: sent, failed (not taken by the collector) or "
            "dropped (too many waited).",
            labels=["outcome"],
        )
        family.add_metric(["sent"], self._exporter.sent)
        family.add_metric(["failed"], self._exporter.failed)
        family.add_metric(["dropped"], self.dropped)
        yield family


@asynccontextmanager
async def exporting(
    wanted: Traces, instance: str, *, flush_s: float
) -> AsyncIterator[TracerProvider]:
    """Send spans while the block lasts, and for `flush_s` seconds afterwards.

    Raises ConfigurationError.
    """
    _hush()
    place = urlsplit(wanted.endpoint)
    shown = place._replace(netloc=place.netloc.rpartition("@")[2], query="").geturl()
    try:
        exporter = Exporter(OTLPSpanExporter(), shown)
        waiting = Waiting(exporter, wanted.max_waiting)
        provider = TracerProvider(resource=_resource(instance), shutdown_on_exit=False)
    except ValueError as error:
        raise ConfigurationError(f"OTEL_*: {error}") from error
    provider.add_span_processor(waiting)
    log.info("Spans go to %s", shown)
    try:
        with counting(waiting):
            yield provider
    finally:
        await _flush(waiting, exporter, flush_s)


def _hush() -> None:
    """Have what we say once not said again for every batch, and for every span."""
    for name in ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _resource(instance: str) -> Resource:
    resource = Resource.create({"service.version": VERSION, "service.instance.id": instance})
    name = resource.attributes.get(SERVICE_NAME)
    if isinstance(name, str) and not name.startswith("unknown_service"):
        return resource
    return resource.merge(Resource({SERVICE_NAME: "noosphere"}))


async def _flush(waiting: Waiting, exporter: Exporter, flush_s: float) -> None:
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def flush() -> None:
        waiting.shutdown()
        loop.call_soon_threadsafe(done.set)

    # The process does not wait for this thread, nor for that which sends.
    threading.Thread(target=flush, name="spans", daemon=True).start()
    try:
        async with asyncio.timeout(flush_s):
            await done.wait()
    except TimeoutError:
        log.warning("Spans that were left could not be sent in time")
    finally:
        exporter.shutdown()
