"""A model at the far end of the network that writes at the pace of a real one."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from typing import Any

from tests.services.llm.scripted_server import (
    DONE,
    Act,
    ScriptedServer,
    Status,
    Turn,
    Wait,
    calls,
    delta,
)

WORD_S = 0.02


class _Pause(asyncio.Event):
    """Comes by itself, after the time a model takes for a word."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def wait(self) -> Any:
        await asyncio.sleep(self._seconds)
        return True


def writes(text: str, *, word_s: float = WORD_S) -> Turn:
    """An answer, a word at a time."""
    acts: list[Act] = [Status(), delta(role="assistant")]
    for word in text.split(" "):
        acts += [Wait(_Pause(word_s)), delta(word + " ")]
    return [*acts, delta(reason="stop"), DONE]


class PacedModel(ScriptedServer):
    """Answers every request by `script(messages)`, as often as it is asked."""

    def __init__(self, script: Callable[[list[dict[str, Any]]], Turn]) -> None:
        super().__init__()
        self._script = script

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> bool:
        request = await self._read(reader)
        assert request is not None
        self.requests.append(request)
        return await self._play(self._script(request.body["messages"]), reader, writer)


__all__ = ["PacedModel", "calls", "writes"]
