"""A model at the far end of the network whose answers go on when the test lets them."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

from tests.api.paced_model import PacedModel, writes
from tests.services.llm.scripted_server import Act, Turn, Wait

WORD_S = 0.01


class Tale:
    """An answer in parts; the model stops before every part but the first."""

    def __init__(self, request: str, parts: Sequence[str]) -> None:
        self.request = request
        # The model ends every word with a space.
        self.parts = [f"{part} " for part in parts]
        self._gates = [asyncio.Event() for _ in parts[1:]]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.parts)

    def go_on(self) -> None:
        """Let the model tell the next part."""
        next(gate for gate in self._gates if not gate.is_set()).set()

    def turn(self) -> Turn:
        """What the model does."""
        acts: list[Act] = []
        for part, gate in itertools.zip_longest(self.parts, self._gates):
            *head, reason, done = writes(part.rstrip(), word_s=WORD_S)
            acts += head if not acts else head[2:]
            acts += [reason, done] if gate is None else [Wait(gate)]
        return acts


class Teller(PacedModel):
    """Tells every tale it was given, to whoever asks for it by its request."""

    def __init__(self) -> None:
        self._tales: dict[str, Tale] = {}
        super().__init__(self._turn)

    def tale(self, *parts: str) -> Tale:
        """Learn a tale."""
        tale = Tale(f"Tell me tale number {len(self._tales) + 1}", parts)
        self._tales[tale.request] = tale
        return tale

    def _turn(self, messages: list[dict[str, Any]]) -> Turn:
        return self._tales[messages[-1]["content"]].turn()
