"""Metrics of shared execution: feeds, streams, and what became of their events."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from schema.execution import Feeds

_COUNTERS = {
    "executed": "Events answered by the executor.",
    "answered": "Events answered from themselves, without the executor.",
    "delivered": "Events given to readers; shared ones count once for each.",
    "merged": "Texts joined to the one before, because their reader was behind.",
    "lagged": "Times a reader fell so far behind that it had to read the log again.",
    "snapshots": "Snapshots given at the beginning of a subscription.",
    "resets": "Snapshots given to readers who had come further: a log did not reach back, or text "
    "was taken back.",
    "joined": "Readers that moved to an execution shared with others.",
    "interrupted": "Times following a topic failed and was taken up again.",
}


class FeedMetrics(Collector):
    """Reads the numbers when they are asked for."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds

    def collect(self) -> Iterable[Metric]:
        """Give counters since the start, and what there is now."""
        for name, description in _COUNTERS.items():
            yield CounterMetricFamily(
                f"noosphere_stream_{name}", description, getattr(self._feeds.stats, name)
            )
        streams, queued, queued_bytes, lagging = self._feeds.queues()
        for name, description, value in (
            ("feeds_open", "Executions at work, shared or not.", self._feeds.open_feeds),
            ("streams_open", "Readers of live subscriptions.", streams),
            ("stream_queue_events", "Events that wait for their readers.", queued),
            ("stream_queue_bytes", "Bytes of the events that wait, shared ones too.", queued_bytes),
            ("streams_lagging", "Readers that let go and have not read again yet.", lagging),
        ):
            yield GaugeMetricFamily(f"noosphere_{name}", description, value)


@contextmanager
def exporting(metrics: Collector) -> Iterator[None]:
    """Give the metrics to whoever asks the process while the context lasts."""
    REGISTRY.register(metrics)
    try:
        yield
    finally:
        REGISTRY.unregister(metrics)
