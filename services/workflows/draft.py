"""An answer being written: all that its parts share."""

from dataclasses import dataclass, field
from decimal import Decimal

from models.conversations import Message
from models.system import Task
from services.base import Deps, Viewer
from services.conversations import threads
from services.llm.base import ChatMessage, RecalledMemory
from services.streams import TextWriter


@dataclass(slots=True)
class Draft:
    """An answer being written."""

    deps: Deps
    viewer: Viewer
    task: Task
    message: Message
    text: TextWriter
    prompt: list[ChatMessage]
    memories: list[RecalledMemory]
    round: int
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal | None = None
    cited: list[str] = field(default_factory=list)

    @property
    def topic(self) -> str:
        return threads.topic(self.message.conversation_id)
