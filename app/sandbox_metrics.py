"""Metrics of sandboxes: those that live, those kept ready, what was made and what ran."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypedDict

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from services.sandboxes.counts import TOTALS, Durations, Totals
from services.sandboxes.node import Node
from services.sandboxes.pool import WarmPool
from services.sandboxes.warming import NODES

_POOL_COUNTERS = {
    "hits": "Sandboxes asked for that were ready.",
    "misses": "Sandboxes asked for of a kind that is kept ready, when none was.",
    "made": "Sandboxes made for the pool.",
    "failures": "Sandboxes that could not be made for the pool.",
    "lost": "Sandboxes of the pool that ended by themselves.",
}


class SandboxMetrics(Collector):
    """Reads the numbers of this process when they are asked for."""

    def __init__(
        self,
        nodes: Sequence[tuple[Node, WarmPool]] = NODES,
        totals: Totals = TOTALS,
    ) -> None:
        self._nodes = nodes
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        """Give counters since the start, and what there is now."""
        yield self._live()
        yield from self._pool()
        executions = CounterMetricFamily(
            "noosphere_sandbox_executions",
            "Executions in sandboxes that ended here, by reason.",
            labels=["reason"],
        )
        for reason, count in sorted(self._totals.executions.items()):
            executions.add_metric([reason], count)
        yield executions
        yield HistogramMetricFamily(
            "noosphere_sandbox_execution_seconds",
            "Time from the start of an execution to its end.",
            **_histogram(self._totals.execution_seconds),
        )
        creations = HistogramMetricFamily(
            "noosphere_sandbox_creation_seconds",
            "Time until a sandbox could be used, by whether there was one ready (warm or cold).",
            labels=["start"],
        )
        for start, durations in self._totals.creations.items():
            creations.add_metric([start], **_histogram(durations))
        yield creations
        yield from self._quarantine()

    def _quarantine(self) -> Iterable[Metric]:
        findings = CounterMetricFamily(
            "noosphere_sandbox_findings",
            "Files that were taken for harmful and put in quarantine here, by engine.",
            labels=["engine"],
        )
        for engine, count in sorted(self._totals.findings.items()):
            findings.add_metric([engine], count)
        yield findings
        yield GaugeMetricFamily(
            "noosphere_sandbox_quarantine_files",
            "Files in the quarantine of this server.",
            self._totals.quarantine_files,
        )

    def _live(self) -> Metric:
        live = GaugeMetricFamily(
            "noosphere_sandboxes_live",
            "Sandboxes this process hosts, by driver and state (running, paused or ending).",
            labels=["driver", "state"],
        )
        for driver in sorted({node.driver.name for node, _ in self._nodes}):
            states = Counter(
                "ending" if box.is_ending else "paused" if box.is_paused else "running"
                for node, _ in self._nodes
                if node.driver.name == driver
                for box in node.live.values()
            )
            for state in ("running", "paused", "ending"):
                live.add_metric([driver, state], states[state])
        return live

    def _pool(self) -> Iterable[Metric]:
        pools = [pool for _, pool in self._nodes]
        for name, description in _POOL_COUNTERS.items():
            yield CounterMetricFamily(
                f"noosphere_sandbox_pool_{name}",
                description,
                sum(getattr(pool.stats, name) for pool in pools),
            )
        hits = sum(pool.stats.hits for pool in pools)
        asked = hits + sum(pool.stats.misses for pool in pools)
        gauges = {
            "wanted": ("Sandboxes that shall be ready.", sum(pool.wanted for pool in pools)),
            "ready": ("Sandboxes that are ready.", sum(pool.ready for pool in pools)),
            "making": ("Sandboxes being made for the pool.", sum(pool.making for pool in pools)),
            "breakers_open": (
                "Kinds of sandboxes not made for now, because that failed again and again.",
                sum(pool.open_breakers for pool in pools),
            ),
            "hit_rate": (
                "Part of the sandboxes of kinds kept ready that were ready when asked for.",
                hits / asked if asked else float("nan"),
            ),
        }
        for name, (description, value) in gauges.items():
            yield GaugeMetricFamily(f"noosphere_sandbox_pool_{name}", description, value)


class _Histogram(TypedDict):
    buckets: list[tuple[str, float]]
    sum_value: float


def _histogram(durations: Durations) -> _Histogram:
    """Give buckets, each with all below it, and the sum."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*durations.bounds_s, "+Inf"), durations.counts, strict=True):
        total += count
        buckets.append((str(bound), total))
    return {"buckets": buckets, "sum_value": durations.sum_s}
