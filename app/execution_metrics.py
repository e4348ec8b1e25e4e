"""Metrics of execution: on which executor operations ran, and what the caches hold."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from schema.execution import Engine


class ExecutionMetrics(Collector):
    """Reads the numbers when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """Give counters since the start, and what there is now."""
        executions = CounterMetricFamily(
            "noosphere_executions",
            "Operations, and events of subscriptions, run by type, executor (plan or graphql-core) "
            "and, on graphql-core, the reason.",
            labels=["type", "executor", "reason"],
        )
        for (type_, reason), count in list(self._engine.executed.items()):
            executor = "graphql-core" if reason else "plan"
            executions.add_metric([type_, executor, reason], count)
        yield executions
        pieces = CounterMetricFamily(
            "noosphere_pieces",
            "Deferred fragments and streamed lists (kind: defer or stream) that were told later, "
            "or broken by an error.",
            labels=["kind", "outcome"],
        )
        for labels, count in list(self._engine.pieces.items()):
            pieces.add_metric(list(labels), count)
        yield pieces
        undivided = CounterMetricFamily(
            "noosphere_undivided",
            "Operations with @defer or @stream that were answered whole, by reason: not accepted "
            "(by the client), mutation, too many, no room, or why they had no plan.",
            labels=["reason"],
        )
        for reason, count in list(self._engine.undivided.items()):
            undivided.add_metric([reason], count)
        yield undivided
        documents = self._engine.documents
        yield CounterMetricFamily(
            "noosphere_documents_hits", "Documents read before.", documents.hits
        )
        yield CounterMetricFamily(
            "noosphere_documents_misses", "Documents parsed and validated.", documents.misses
        )
        yield GaugeMetricFamily("noosphere_documents_kept", "Documents kept.", len(documents))
        yield GaugeMetricFamily(
            "noosphere_documents_bytes",
            "About how much memory documents and their plans take.",
            documents.size_bytes,
        )
