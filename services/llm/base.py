"""The protocol between the application and a model, whoever serves it.

A provider turns a `ChatRequest` into a stream of `ChatEvent`s. Cancelling the consumer (closing the
generator) stops the generation at the far end as well.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol


class Role(StrEnum):
    """Who speaks in a message given to a model."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool offered to the model; `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model asks for. `arguments` is the model's JSON text, not yet validated."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of the prompt. A `tool` message answers the call named by `tool_call_id`."""

    role: Role
    content: str
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class RecalledMemory:
    """A memory the application recalled for this request, best first; `score` in 0…1."""

    id: str
    type: str
    content: str
    score: float


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """Everything one answer is made from.

    `memories` are given apart from `messages` so that each provider can present them its own way;
    `max_output_tokens` bounds the answer; `user_id` is an opaque id for abuse control.
    """

    messages: Sequence[ChatMessage]
    tools: Sequence[ToolSpec] = ()
    memories: Sequence[RecalledMemory] = ()
    max_output_tokens: int | None = None
    user_id: str | None = None
    locale: str | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallRequested:
    """A complete tool call; several may come in one turn."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one turn; `cost_usd` where the price is configured."""

    input_tokens: int
    output_tokens: int
    cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a turn. `reason`: stop, tool_calls, length or content_filter.

    `cited_memory_ids` names memories the text relies on: the embedded provider knows them; of
    others those count that the text cites by their marker.
    """

    reason: str
    usage: Usage | None = None
    cited_memory_ids: Sequence[str] = field(default_factory=tuple)


ChatEvent = TextDelta | ToolCallRequested | Finished


class ProviderError(Exception):
    """The provider failed. `is_retryable` says whether trying again later may help.

    `code`: UNAVAILABLE, RATE_LIMITED, TIMED_OUT, BAD_RESPONSE, REFUSED (bad key, bad model) or
    TOO_LONG.
    The message is fit for the user: no keys, no host-internal paths.
    """

    def __init__(
        self, code: str, message: str, *, is_retryable: bool, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.is_retryable = is_retryable
        self.retry_after_s = retry_after_s


class Provider(Protocol):
    """A model behind a name. `is_generative` is False for the embedded assistant."""

    name: str
    model: str
    is_generative: bool

    def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Answer one turn: text deltas and tool calls in order, then exactly one Finished.

        Raises ProviderError. Consume through `contextlib.aclosing`.
        """

    async def ping(self) -> None:
        """Return when the provider answers; raises ProviderError."""

    async def aclose(self) -> None:
        """Close connections."""
