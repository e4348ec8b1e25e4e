"""Settings of work in the background, and of what is kept of it."""

from pydantic import Field
from pydantic_settings import BaseSettings


class TaskSettings(BaseSettings):
    """Tasks and events."""

    worker_concurrency: int = Field(100, ge=1, le=1000, description="Tasks run at once.")
    worker_in_server: bool = Field(True, description="Whether `serve` runs tasks as well.")
    task_lease: float = Field(30.0, ge=1, description="Seconds a task is leased for.")
    event_retention: int = Field(
        7 * 86400, ge=60, description="Seconds the events of a topic are kept for resuming."
    )
