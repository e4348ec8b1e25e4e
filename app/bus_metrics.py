"""What the bus does, in the process's Prometheus registry."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.events.base import Bus


class BusCollector(Collector):
    """Reads the counts of the buses that run in this process when somebody asks for metrics."""

    def __init__(self) -> None:
        self._buses: list[Bus] = []

    @contextmanager
    def exporting(self, bus: Bus) -> Iterator[None]:
        """Count `bus` in while the context lasts."""
        self._buses.append(bus)
        try:
            yield
        finally:
            self._buses.remove(bus)

    def collect(self) -> Iterator[Metric]:
        """Give the sums over the buses of this process."""
        stats = [bus.stats for bus in self._buses]
        yield CounterMetricFamily(
            "noosphere_bus_received",
            "Messages of the bus that came to this process.",
            sum(s.received for s in stats),
        )
        yield CounterMetricFamily(
            "noosphere_bus_delivered",
            "News of the bus handed to taps; one message to three taps counts three times.",
            sum(s.delivered for s in stats),
        )
        yield CounterMetricFamily(
            "noosphere_bus_losses",
            "Times a tap lost news (its reader was too slow, or the bus was away) and re-read.",
            sum(s.losses for s in stats),
        )
        yield CounterMetricFamily(
            "noosphere_bus_reconnects",
            "Times a broken connection for the subscriptions of this process was replaced.",
            sum(s.reconnects for s in stats),
        )
        yield GaugeMetricFamily(
            "noosphere_bus_taps", "Taps attached to the bus now.", sum(s.taps for s in stats)
        )
        yield GaugeMetricFamily(
            "noosphere_bus_queued", "News that wait in taps now.", sum(s.queued for s in stats)
        )


BUSES = BusCollector()
REGISTRY.register(BUSES)
