"""Counters of the GraphQL transports, in the process's Prometheus registry."""

from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from schema.execution import Result

WEBSOCKETS_OPEN = Gauge("noosphere_websockets_open", "WebSocket connections open now.")

HTTP_STREAMS_OPEN = Gauge(
    "noosphere_http_streams_open",
    "Streams and answers in pieces open over HTTP now, by transport (sse, sse_single or "
    "multipart).",
    ["transport"],
)

OPERATIONS = Counter(
    "noosphere_operations",
    "GraphQL operations ended, by type (query, mutation, subscription or unknown), transport "
    "(http, sse, sse_single, multipart or ws; a query by multipart came in pieces) and outcome "
    "(ok, error, refused, timed_out or canceled).",
    ["type", "transport", "outcome"],
)

OPERATION_SECONDS = Histogram(
    "noosphere_operation_seconds",
    "Time a query or mutation took, in seconds.",
    ["type", "transport"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)


class Delivery(Collector):
    """Times from an event's recording or sending to its handing over to a connection, in seconds.

    By the clock of whoever sent it; what is read from a log counts from its reading.

    Counted by hand: a histogram of the library takes a lock for each observation, and events come
    by the hundred thousand.
    """

    bounds_s = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

    def __init__(self) -> None:
        self._counts = [0] * (len(self.bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float, events: int) -> None:
        """Count events handed over together, the oldest of which waited so long."""
        self._counts[bisect_left(self.bounds_s, seconds)] += events
        self._sum_s += seconds * events

    def collect(self) -> Iterable[Metric]:
        """Give the histogram."""
        total, buckets = 0, []
        for bound, count in zip((*self.bounds_s, "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((str(bound), total))
        yield HistogramMetricFamily(
            "noosphere_delivery_seconds",
            "Time from an event's sending, by any process, until a connection took it; the oldest "
            "of those that are handed over together counts for all.",
            buckets=buckets,
            sum_value=self._sum_s,
        )


DELIVERY = Delivery()
REGISTRY.register(DELIVERY)


def outcome(result: Result) -> str:
    """Give the outcome an operation's result counts as."""
    if not result.errors:
        return "ok"
    if "TIMED_OUT" in result.codes():
        return "timed_out"
    return "error" if result.is_executed else "refused"


def record(type_: str, transport: str, ended: str, seconds: float | None = None) -> None:
    """Count one operation that ended, and its duration where that means something."""
    _count(type_, transport, ended).inc()
    if seconds is not None:
        _duration(type_, transport).observe(seconds)


# Finding a child takes the library longer than counting with it.
_count = lru_cache(OPERATIONS.labels)
_duration = lru_cache(OPERATION_SECONDS.labels)
