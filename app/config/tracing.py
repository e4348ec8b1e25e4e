"""OpenTelemetry's own variables, as far as they decide whether there are traces."""

import os
from dataclasses import dataclass

from app.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Traces:
    """Where spans go, and the most that may wait to go there."""

    endpoint: str
    max_waiting: int


def traces() -> Traces | None:
    """Give what OpenTelemetry's own variables say of tracing; None if they ask for none.

    What remains (headers, certificates, sampling, attributes of the resource) the library reads by
    itself. Raises ConfigurationError.
    """

    def given(*names: str) -> str:
        return next((value for name in names if (value := os.environ.get(name, "").strip())), "")

    endpoint = given("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    exporter = given("OTEL_TRACES_EXPORTER") or ("otlp" if endpoint else "none")
    if given("OTEL_SDK_DISABLED").lower() == "true" or exporter == "none":
        return None
    if exporter != "otlp":
        raise ConfigurationError(f"OTEL_TRACES_EXPORTER={exporter} is not usable, expected otlp")
    protocol = given("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in ("", "http/protobuf"):
        raise ConfigurationError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not usable, expected http/protobuf"
        )
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is not usable, expected a URL such as http://host:4318"
        )
    waiting = given("OTEL_BSP_MAX_QUEUE_SIZE") or "2048"
    if not waiting.isdecimal() or int(waiting) < 1:
        raise ConfigurationError(
            f"OTEL_BSP_MAX_QUEUE_SIZE={waiting} is not usable, expected a number from 1 on"
        )
    return Traces(endpoint or "http://localhost:4318", int(waiting))
