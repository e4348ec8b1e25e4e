"""Counters of the GraphQL transports, in the process's Prometheus registry."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import time

from prometheus_client import REGISTRY, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from schema.execution import Result

WEBSOCKETS_OPEN = Gauge("noosphere_websockets_open", "WebSocket connections open now.")

HTTP_STREAMS_OPEN = Gauge(
    "noosphere_http_streams_open",
    "Streams and answers in pieces open over HTTP now, by transport (sse, sse_single or "
    "multipart).",
    ["transport"],
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
        yield HistogramMetricFamily(
            "noosphere_delivery_seconds",
            "Time from an event's sending, by any process, until a connection took it; the oldest "
            "of those that are handed over together counts for all.",
            buckets=_buckets(self.bounds_s, self._counts),
            sum_value=self._sum_s,
        )


class Operations(Collector):
    """GraphQL operations that ended, and how long queries and mutations took.

    Counted by hand, as `Delivery` is: a count and an observation by the library are a dozen calls
    and three locks, for every request.
    """

    bounds_s = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

    def __init__(self) -> None:
        self._ended: dict[tuple[str, str, str], int] = {}
        self._took: dict[tuple[str, str], _Took] = {}
        self._since: dict[tuple[str, ...], float] = {}

    def record(self, type_: str, transport: str, ended: str, seconds: float | None = None) -> None:
        """Count one operation that ended, and its duration where that means something."""
        key = (type_, transport, ended)
        count = self._ended.get(key)
        if count is None:
            count, self._since[key] = 0, time()
        self._ended[key] = count + 1
        if seconds is None:
            return
        took = self._took.get((type_, transport))
        if took is None:
            took = self._took[type_, transport] = _Took([0] * (len(self.bounds_s) + 1))
            self._since[type_, transport] = time()
        took.counts[bisect_left(self.bounds_s, seconds)] += 1
        took.sum_s += seconds

    def collect(self) -> Iterable[Metric]:
        """Give the counter and the histogram."""
        ended = CounterMetricFamily(
            "noosphere_operations",
            "GraphQL operations ended, by type (query, mutation, subscription or unknown), "
            "transport (http, sse, sse_single, multipart or ws; a query by multipart came in "
            "pieces) and outcome (ok, error, refused, timed_out or canceled).",
            labels=["type", "transport", "outcome"],
        )
        for key, count in self._ended.items():
            ended.add_metric(key, count, created=self._since[key])
        yield ended
        name, labels = "noosphere_operation_seconds", ["type", "transport"]
        seconds = HistogramMetricFamily(
            name, "Time a query or mutation took, in seconds.", labels=labels
        )
        for pair, took in self._took.items():
            seconds.add_metric(pair, _buckets(self.bounds_s, took.counts), took.sum_s)
            since = self._since[pair]
            seconds.add_sample(f"{name}_created", dict(zip(labels, pair, strict=True)), since)
        yield seconds


@dataclass(slots=True)
class _Took:
    """How many durations fell between each two bounds, and all of them together."""

    counts: list[int]
    sum_s: float = 0.0


def _buckets(bounds_s: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Give counts as Prometheus wants them: of all up to each bound."""
    return list(zip((*map(str, bounds_s), "+Inf"), accumulate(counts), strict=True))


DELIVERY = Delivery()
OPERATIONS = Operations()
record = OPERATIONS.record
REGISTRY.register(DELIVERY)
REGISTRY.register(OPERATIONS)


def outcome(result: Result) -> str:
    """Give the outcome an operation's result counts as."""
    if not result.errors:
        return "ok"
    if "TIMED_OUT" in result.codes():
        return "timed_out"
    return "error" if result.is_executed else "refused"
