"""The configuration: environment variables `NOOSPHERE_*`, and OpenTelemetry's own for tracing.

This is the only package that reads the environment.
"""

from app.config.reading import load, unknown
from app.config.settings import PREFIX, Settings
from app.config.tracing import Traces, traces

__all__ = ["PREFIX", "Settings", "Traces", "load", "traces", "unknown"]
