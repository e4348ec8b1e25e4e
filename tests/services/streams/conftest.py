"""Histories of answers, played over a database and a bus."""

import asyncio
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from app.runtime import running
from services.base import Deps, Viewer
from services.conversations import threads
from services.streams import following
from tests.fixtures import Api, settings_for
from tests.services.faulty_bus import FaultyBus
from tests.services.streams.authors import NAMES, Author
from tests.services.streams.followers import Reader, Shown

Step = tuple[str, int, int]


VERBS = [
    "add", "write", "write", "write", "write+store", "end", "again", "take_back", "read", "read",
    "reconnect", "return", "deaf", "hear", "away", "back", "log_gone", "forget", "anew",
]  # fmt: skip


STEPS = st.lists(
    st.tuples(st.sampled_from(VERBS), st.integers(0, 9), st.integers(1, 9)),
    min_size=10,
    max_size=50,
)


async def play(deps: Deps, viewer: Viewer, steps: list[Step]) -> None:
    conversation = await threads.create(deps, viewer)
    author = Author(deps, viewer, conversation.id)
    bus = deps.bus
    assert isinstance(bus, FaultyBus)
    bus.is_away = bus.is_deaf = False
    reader = Reader(author)
    # Where the client was at some time: it may come back there.
    past: list[Shown] = []
    try:
        for name, which, count in steps:
            growing = [a for a in author.answers if not a.is_final]
            finished = [a for a in author.answers if a.is_final]
            if name == "add":
                await author.add()
            elif name in ("write", "write+store") and growing:
                answer = growing[which % len(growing)]
                await author.write(answer, count, store=name != "write")
            elif name == "end" and growing:
                await author.end(growing[which % len(growing)])
            elif name == "again" and finished:
                await author.again(finished[which % len(finished)])
            elif name == "take_back" and growing and not bus.is_away:
                answer = growing[which % len(growing)]
                length = len(answer.texts[answer.key]) * which // 9
                await author.take_back(answer, length)
            elif name == "read":
                reader.allow(count)
                for _ in range(count * 4):
                    await asyncio.sleep(0)
            elif name in ("reconnect", "return"):
                await reader.close()
                past.append(reader.shown.copy())
                shown = past[which % len(past)] if name == "return" else reader.shown
                reader = reader.again(shown.copy())
            elif name in ("deaf", "hear"):
                bus.is_deaf = name == "deaf"
            elif name in ("away", "back"):
                bus.is_away = name == "away"
            elif name == "log_gone" and not bus.is_away:
                await deps.bus.expire(author.topic, 0)
            elif name == "forget":
                await author.forget_events(count)
            elif name == "anew":
                await author.begin_anew()
        bus.is_away = False
        for answer in author.answers:
            if not answer.is_final:
                # As its writer does every few milliseconds, and every second.
                await answer.writer.flush()
                await answer.writer.store()
        await reader.catch_up()
    finally:
        bus.is_away = bus.is_deaf = False
        await reader.close()


@dataclass(repr=False)
class Stage:
    """A process of the application that examples are played on, one after the other."""

    runner: asyncio.Runner
    deps: Deps
    viewer: Viewer

    def play(self, steps: list[Step]) -> None:
        self.runner.run(play(self.deps, self.viewer, deepcopy(steps)))


def staged(tmp_path: Path, **values: Any) -> Iterator[Stage]:
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        # What was lost in silence is looked for after this time.
        patch.setattr(following, "_IDLE_S", 0.02)
        opened = running(settings_for(tmp_path, **values))
        deps = runner.run(opened.__aenter__())
        try:
            person = runner.run(Api(deps).person(next(NAMES)))
            deps.bus = FaultyBus(deps.bus)
            yield Stage(runner, deps, person.viewer)
        finally:
            runner.run(opened.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    yield from staged(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="module")
def mysql_stage(tmp_path_factory: pytest.TempPathFactory, mysql_module_url: str) -> Iterator[Stage]:
    yield from staged(tmp_path_factory.mktemp("stage"), database_url=mysql_module_url)


@pytest.fixture
async def faulty(deps: Deps) -> FaultyBus:
    """The bus of `deps`, with faults."""
    bus = FaultyBus(deps.bus)
    deps.bus = bus
    return bus
