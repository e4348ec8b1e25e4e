"""A writer that was silent asks whether the text is still its own, unless it surely is."""

import asyncio
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from services import tasks
from services.base import Deps
from services.streams import TextWriter
from services.tasks import LeaseLostError

TOPIC, KEY = "conversation:cnv_1", "msg_1:0"


class Heart:
    """A bus whose heartbeats a test breaks."""

    def __init__(self, bus: Any) -> None:
        self._bus = bus
        self.broken_at: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def unbroken_since(self) -> float:
        return self._bus.unbroken_since() if self.broken_at is None else self.broken_at


@dataclass
class Silent:
    """A writer that sent something a while ago, and what it asked since."""

    writer: TextWriter
    heart: Heart
    asked: list[str] = field(default_factory=list)
    answer: Exception | None = None

    async def checkpoint(self, text: str) -> None:
        self.asked.append(text)
        if self.answer is not None:
            raise self.answer

    async def sent(self) -> str:
        return "".join([news.data["text"] for news in (await self.heart.read(TOPIC)).entries])


async def silent(deps: Deps, *, sent_s: float, held_s: float) -> Silent:
    """Give a writer that sent last `sent_s` seconds ago, and was told `held_s` ago it may."""
    heart = Heart(deps.bus)
    deps = dataclasses.replace(deps, bus=heart)

    async def checkpoint(text: str) -> None:
        await made.checkpoint(text)

    made = Silent(TextWriter(deps, TOPIC, KEY, checkpoint=checkpoint), heart)
    await made.writer.write("before, ")
    assert await made.writer.flush()
    now = asyncio.get_running_loop().time()
    # The bus had been running for as long.
    heart._bus._started_at = now - 3600
    made.writer._sent_at, made.writer._held_at = now - sent_s, now - held_s
    await made.writer.write("after")
    return made


async def test_whose_heartbeats_are_unbroken_asks_nobody(deps: Deps) -> None:
    made = await silent(deps, sent_s=10, held_s=10)
    assert await made.writer.flush()
    assert made.asked == []
    assert await made.sent() == "before, after"


@pytest.mark.parametrize("ago_s", [0.0, 9.0])
async def test_whose_heartbeats_were_late_since_asks_before_it_sends(
    deps: Deps, ago_s: float
) -> None:
    made = await silent(deps, sent_s=10, held_s=10)
    made.heart.broken_at = asyncio.get_running_loop().time() - ago_s
    made.answer = LeaseLostError("Another has it.")
    with pytest.raises(LeaseLostError):
        await made.writer.flush()
    assert await made.sent() == "before, "
    made.answer = OperationalError("UPDATE", {}, Exception("gone away"))
    assert not await made.writer.flush()
    assert await made.sent() == "before, "
    made.answer = None
    assert await made.writer.flush()
    assert made.asked == ["before, after"] * 3
    assert await made.sent() == "before, after"


async def test_whose_lease_may_have_run_out_asks_before_it_sends(deps: Deps) -> None:
    made = await silent(deps, sent_s=10, held_s=deps.options.task_lease_s)
    assert await made.writer.flush()
    assert made.asked == ["before, after"]
    # The answer holds for a time, and what was asked with is stored.
    made.writer._sent_at -= 10
    await made.writer.write(", and more")
    assert await made.writer.flush()
    assert len(made.asked) == 1
    assert await made.sent() == "before, after, and more"


async def test_whose_lease_the_worker_renews_asks_nobody(deps: Deps) -> None:
    made = await silent(deps, sent_s=60, held_s=60)
    assert tasks.renewed_at(deps) == -math.inf
    before = asyncio.get_running_loop().time()
    assert await tasks.renew(deps, ["tsk_none"]) == set()
    assert tasks.renewed_at(deps) >= before
    assert await made.writer.flush()
    assert made.asked == []
    # A worker that cannot renew its leases may lose them.
    deps.caches[tasks._RENEWED_AT] = before - 3600
    made.writer._sent_at -= 60
    await made.writer.write(", and more")
    assert await made.writer.flush()
    assert made.asked == ["before, after, and more"]


async def test_a_text_that_did_not_change_is_not_stored_again(deps: Deps) -> None:
    made = await silent(deps, sent_s=0, held_s=0)
    assert await made.writer.flush()
    assert await made.writer.store()
    assert await made.writer.store()
    assert made.asked == ["before, after"]
