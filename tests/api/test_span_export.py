"""Spans on their way out: bounded while nobody takes them, and flushed at the end."""

import threading
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from app.span_export import Exporter, Waiting


class Slow(SpanExporter):
    """Takes nothing until it is let."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.is_asked = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.is_asked.set()
        assert self.is_open.wait(60)
        return SpanExportResult.SUCCESS


def _outcomes(waiting: Waiting) -> dict[str, float]:
    (family,) = waiting.collect()
    return {sample.labels["outcome"]: sample.value for sample in family.samples}


def test_spans_that_nobody_takes_are_dropped_beyond_a_limit_and_counted() -> None:
    slow = Slow()
    waiting = Waiting(Exporter(slow, "there"), 4)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(waiting)
    tracer = provider.get_tracer("test")

    def end(spans: int) -> None:
        for _ in range(spans):
            tracer.start_span("one").end()

    end(4)
    assert slow.is_asked.wait(60)
    # Four are on their way; as many more may wait.
    end(10)
    assert _outcomes(waiting) == {"sent": 0, "failed": 0, "dropped": 6}
    slow.is_open.set()
    waiting.shutdown()
    assert _outcomes(waiting) == {"sent": 8, "failed": 0, "dropped": 6}
