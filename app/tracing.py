"""Tracing, where it is asked for: nothing of OpenTelemetry is loaded otherwise."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from app.config import Settings, traces
from app.errors import ConfigurationError
from services.base import Deps

if TYPE_CHECKING:
    from app.spans import Tracing

_FLUSH_S = 5.0


@asynccontextmanager
async def tracing(settings: Settings, deps: Deps) -> "AsyncIterator[Tracing | None]":
    """Trace while the block lasts, if the configuration says so; then send what waits to be sent.

    That takes no longer than stopping may, and five seconds at most. Raises ConfigurationError.
    """
    wanted = traces()
    if wanted is None:
        yield None
        return
    try:
        from app.span_export import exporting
        from app.spans import Tracing
    except ImportError as error:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT asks for tracing, which is not installed; `pip install "
            "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http` does that"
        ) from error
    flush_s = min(_FLUSH_S, settings.shutdown_timeout)
    async with exporting(wanted, deps.bus.node_id, flush_s=flush_s) as provider:
        yield Tracing(provider, deps.db.url)
