"""Metrics of transactions that got in each other's way."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from services import contention

_MET = {"deadlock", "lock_wait", "busy"}


class DatabaseMetrics(Collector):
    """Reads the counts of this process when they are asked for."""

    def collect(self) -> Iterable[Metric]:
        """Give counters since the start."""
        met = CounterMetricFamily(
            "noosphere_database_contentions",
            "Transactions that the database took back for the sake of others, by reason (deadlock, "
            "lock_wait, or busy with SQLite).",
            labels=["reason"],
        )
        for reason in sorted(_MET):
            met.add_metric([reason], contention.COUNTS[reason])
        yield met
        yield CounterMetricFamily(
            "noosphere_database_repetitions",
            "Transactions run again after that.",
            contention.COUNTS["repeated"],
        )
        yield CounterMetricFamily(
            "noosphere_database_given_up",
            "Transactions that were run again in vain: their client was told to try again.",
            contention.COUNTS["given_up"],
        )
