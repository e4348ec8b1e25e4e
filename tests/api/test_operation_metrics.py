"""Operations are counted by hand: what is exported is what the library would export."""

import re

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from app.graphql_metrics import Operations

LABELS = ["type", "transport"]
RECORDS = [
    ("query", "http", "ok", 0.0),
    ("query", "http", "ok", 0.001),
    ("query", "http", "error", 0.7),
    ("mutation", "ws", "ok", 31.0),
    ("subscription", "sse", "canceled", None),
]


def _text(registry: CollectorRegistry) -> str:
    """Give what is exported, but for the times since when, and the words about it."""
    text = re.sub(
        r"^(\S+_created\{.*\}) .*$",
        r"\1 then",
        generate_latest(registry).decode(),
        flags=re.MULTILINE,
    )
    return re.sub(r"^# HELP (\S+) .*$", r"# HELP \1", text, flags=re.MULTILINE)


def test_what_is_exported_is_what_the_library_exports() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    operations = Operations()
    ours.register(operations)
    ended = Counter("noosphere_operations", "a", [*LABELS, "outcome"], registry=theirs)
    seconds = Histogram(
        "noosphere_operation_seconds", "b", LABELS, registry=theirs, buckets=operations.bounds_s
    )
    assert _text(ours) == _text(theirs)
    for type_, transport, outcome, took in RECORDS:
        operations.record(type_, transport, outcome, took)
        ended.labels(type_, transport, outcome).inc()
        if took is not None:
            seconds.labels(type_, transport).observe(took)
    assert _text(ours) == _text(theirs)
    assert (
        'noosphere_operation_seconds_bucket{le="1.0",transport="http",type="query"} 3.0'
        in _text(ours)
    )
