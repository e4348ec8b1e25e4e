"""Counters of the GraphQL transports, in the process's Prometheus registry."""

from prometheus_client import Counter, Gauge, Histogram

from schema.execution import Result

WEBSOCKETS_OPEN = Gauge("noosphere_websockets_open", "WebSocket connections open now.")

HTTP_STREAMS_OPEN = Gauge(
    "noosphere_http_streams_open",
    "Subscriptions over HTTP open now, by transport (sse or multipart).",
    ["transport"],
)

OPERATIONS = Counter(
    "noosphere_operations",
    "GraphQL operations ended, by type (query, mutation, subscription or unknown), transport "
    "(http, sse, multipart or ws) and outcome (ok, error, refused, timed_out or canceled).",
    ["type", "transport", "outcome"],
)

OPERATION_SECONDS = Histogram(
    "noosphere_operation_seconds",
    "Time a query or mutation took, in seconds.",
    ["type", "transport"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)


def outcome(result: Result) -> str:
    """Give the outcome an operation's result counts as."""
    if not result.errors:
        return "ok"
    if "TIMED_OUT" in result.codes():
        return "timed_out"
    return "error" if result.is_executed else "refused"


def record(type_: str, transport: str, ended: str, seconds: float | None = None) -> None:
    """Count one operation that ended, and its duration where that means something."""
    OPERATIONS.labels(type_, transport, ended).inc()
    if seconds is not None:
        OPERATION_SECONDS.labels(type_, transport).observe(seconds)
