"""What a tool is given and what it gives back."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.states import RunState, ToolEnvironment
from services.base import Deps, Viewer

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class ToolContext:
    """For whom a tool works, and on what occasion.

    `on_output(text)` is told what the tool writes while it runs, where it writes anything.
    """

    deps: Deps
    viewer: Viewer
    conversation_id: str | None = None
    message_id: str | None = None
    plan_execution_id: str | None = None
    on_output: Callable[[str], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What a tool made: JSON, and the sandbox it ran in, if any."""

    value: Any
    sandbox_id: str | None = None


class ToolError(Exception):
    """A tool did not do what it was asked; the model and the user read `message`.

    `details` are further members of the result, beside `error`.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
        status: RunState = RunState.FAILED,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = dict(details or {})
        self.sandbox_id = sandbox_id
        self.status = status


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A tool that ships with the application.

    `properties` and `required` make the JSON Schema of its arguments. `timeout_s` bounds a run.
    """

    name: str
    description: str
    category: str
    environment: ToolEnvironment
    timeout_s: int
    run: Callable[[ToolContext, Arguments], Awaitable[Done]]
    properties: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    version: str = "1.0.0"

    @property
    def input_schema(self) -> dict[str, Any]:
        """The JSON Schema (draft 2020-12) of the arguments."""
        return {
            "type": "object",
            "properties": {name: dict(schema) for name, schema in self.properties.items()},
            "required": list(self.required),
            "additionalProperties": False,
        }
