"""Nothing is lost, doubled or out of order, whatever happens between a writer and its readers.

Random stories are played over the real engine, the real services and the bus of one process, with
the bounds of the readers' queues made so small that they merge and lag all the time. More of them
are played with NOOSPHERE_TEST_EXAMPLES=5000 in the environment.
"""

import asyncio
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.pool import QueuePool

from app.runtime import running
from models.database import Database
from schema.execution import Engine, feed, stream
from services.base import Deps, Viewer
from services.conversations import threads
from services.streams import following
from tests.fixtures import Api, settings_for
from tests.schema.journal import until
from tests.schema.watching import DOCUMENTS, Watcher
from tests.services.faulty_bus import FaultyBus
from tests.services.faulty_database import FaultyDatabase
from tests.services.streams.authors import Author
from tests.services.streams.followers import Shown

EXAMPLES = int(os.environ.get("NOOSPHERE_TEST_EXAMPLES", "150"))

Step = tuple[str, int, int]
WRITING = [
    "add", "say", *["write"] * 4, *["burst"] * 3, "write+store",
    "end", "fail", "again", "take_back",
]  # fmt: skip
READING = ["join", "join", *["read"] * 6, "leave", "reconnect", "reconnect", "return"]
FAULTS = [
    "deaf", "slow", "doubles", "away", *["mend"] * 4, "release", "lose",
    "unreadable", "unreadable soon", "log_gone", "forget", "anew",
]  # fmt: skip
STEPS = st.lists(
    st.tuples(
        st.sampled_from(WRITING + READING) | st.sampled_from(WRITING + READING + FAULTS),
        st.integers(0, 11),
        st.integers(1, 9),
    ),
    min_size=30,
    max_size=90,
)


@dataclass(repr=False)
class Stage:
    """A process of the application that stories are played on, one after the other."""

    runner: asyncio.Runner
    deps: Deps
    viewers: tuple[Viewer, ...]
    engine: Engine

    def play(self, steps: list[Step]) -> None:
        self.runner.run(Story(self).play(deepcopy(steps)))


class Story:
    """Two conversations, their writers, and up to eight clients that come and go."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.engine = stage.engine
        assert isinstance(stage.deps.bus, FaultyBus)
        self.bus = stage.deps.bus
        assert isinstance(stage.deps.db, FaultyDatabase)
        self.database = stage.deps.db
        self.writers: list[Author] = []
        self.watchers: list[Watcher] = []
        # Where clients were at some time: they may come back there.
        self.past: dict[Author, list[Shown]] = {}

    async def play(self, steps: list[Step]) -> None:
        deps, owner = self.stage.deps, self.stage.viewers[0]
        self._mend()
        for _ in range(2):
            conversation = await threads.create(deps, owner)
            self.writers.append(Author(deps, owner, conversation.id))
        self.past = {writer: [Shown()] for writer in self.writers}
        try:
            for which, writer in enumerate(self.writers):
                await writer.add()
                for number in range(2):
                    self._join(which + 2 * number)
            for name, which, count in steps:
                await self._write(name, self.writers[which % 2], which, count)
                await self._read(name, which, count)
                await self._go_wrong(name, self.writers[which % 2], count)
            await self._end()
        finally:
            self._mend()
            await asyncio.gather(*(w.close() for w in self.watchers), return_exceptions=True)
        await self._leave_nothing()

    async def _write(self, name: str, writer: Author, which: int, count: int) -> None:
        growing = [answer for answer in writer.answers if not answer.is_final]
        finished = [answer for answer in writer.answers if answer.is_final]
        if name == "add" and len(writer.answers) < 8:
            await writer.add()
        elif name == "say":
            await writer.say()
        elif name in ("write", "burst", "write+store") and growing:
            answer = growing[which % len(growing)]
            for _ in range(count * 4 if name == "burst" else 1):
                await writer.write(answer, count)
            if name == "write+store":
                await answer.writer.store()
        elif name in ("end", "fail") and growing:
            answer = growing[which % len(growing)]
            await (writer.end(answer) if name == "end" else writer.fail(answer))
        elif name == "again" and finished:
            await writer.again(finished[which % len(finished)])
        elif name == "take_back" and growing and not self.bus.is_away:
            answer = growing[which % len(growing)]
            await writer.take_back(answer, len(answer.texts[answer.key]) * which // 12)

    async def _read(self, name: str, which: int, count: int) -> None:
        if name == "join" and len(self.watchers) < 8:
            self._join(which)
        if not self.watchers:
            return
        place = which % len(self.watchers)
        watcher = self.watchers[place]
        if name == "read":
            watcher.allow(count)
            for _ in range(count * 4):
                await asyncio.sleep(0)
        elif name in ("leave", "reconnect", "return"):
            await watcher.close()
            del self.watchers[place]
            past = self.past[watcher.author]
            past.append(watcher.shown.copy())
            if name != "leave":
                shown = past[count % len(past)] if name == "return" else watcher.shown
                self.watchers.append(watcher.again(shown.copy()))

    def _mend(self) -> None:
        self.bus.mend()
        self.database.mend()

    def _join(self, which: int) -> None:
        viewers = self.stage.viewers
        self.watchers.append(
            Watcher(
                self.engine,
                self.writers[which % 2],
                viewers[which % 5 == 0],
                DOCUMENTS[which % len(DOCUMENTS)],
                is_pushed=which % 4 < 2,
            )
        )

    async def _go_wrong(self, name: str, writer: Author, count: int) -> None:
        if name == "deaf":
            self.bus.is_deaf = True
        elif name == "slow":
            self.bus.is_slow = True
        elif name == "doubles":
            self.bus.doubles = True
        elif name == "away":
            self.bus.is_away = True
        elif name == "unreadable":
            self.database.is_away = True
        elif name == "unreadable soon":
            self.database.reads_left = count
        elif name == "mend":
            self._mend()
        elif name == "release":
            self.bus.release(backwards=count % 2 == 0)
        elif name == "lose":
            self.bus.lose()
        elif name == "log_gone" and not self.bus.is_away:
            await self.bus.expire(writer.topic, 0)
        elif name == "forget":
            await writer.forget_events(count)
        elif name == "anew":
            await writer.begin_anew()

    async def _end(self) -> None:
        """See that everybody ends with what there is, and that those alike are answered once."""
        self._mend()
        for writer in self.writers:
            for answer in writer.answers:
                if not answer.is_final:
                    # As its writer does every few milliseconds, and every second.
                    await answer.writer.flush()
                    await answer.writer.store()
            rows = await writer.rows()
            assert writer.answered().items() <= rows.items()
            for watcher in self.watchers:
                if watcher.author is writer:
                    await watcher.until(partial(watcher.shown.shows, rows))
        kinds = {(w.author, w.document, w.viewer) for w in self.watchers}
        await until(lambda: self.engine.feeds.open_feeds <= len(kinds))
        for watcher in self.watchers:
            await watcher.close()

    async def _leave_nothing(self) -> None:
        found, database = self.engine.feeds, self.stage.deps.db
        pool = cast("QueuePool", database.engine.pool)
        # What was asked of the database together is answered though one of them has left.
        await until(lambda: not found.open_feeds and pool.checkedout() == database.at_hand)
        assert not any(found.queues())
        assert not found._shared
        assert not found._waiting
        assert self.bus.stats.taps == 0


def _stage(directory: Path, **values: str) -> Iterator[Stage]:
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        # What was lost in silence is looked for after this time.
        patch.setattr(following, "_IDLE_S", 0.02)
        patch.setattr(feed, "_RETRY_S", 0.01)
        for name, value in {
            "LOW_EVENTS": 3,
            "MAX_EVENTS": 6,
            "LOW_BYTES": 1_500,
            "MAX_BYTES": 5_000,
            "_MERGED_BYTES": 900,
        }.items():
            patch.setattr(stream, name, value)
        opened = running(settings_for(directory, **values))
        deps = runner.run(opened.__aenter__())
        try:
            api = Api(deps)
            owner = runner.run(api.person("owner")).viewer
            deps.bus = FaultyBus(deps.bus)
            deps.db = cast("Database", FaultyDatabase(deps.db))
            elsewhere = replace(owner, session_id="ses_elsewhere")
            yield Stage(runner, deps, (owner, elsewhere), api.engine)
            runner.run(api.engine.feeds.aclose())
        finally:
            runner.run(opened.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    yield from _stage(tmp_path_factory.mktemp("stage"))


@pytest.mark.timeout(0)
def test_every_reader_ends_with_what_there_is_and_saw_it_in_order(stage: Stage) -> None:
    @given(steps=STEPS)
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    def play(steps: list[Step]) -> None:
        stage.play(steps)

    play()
    stats = stage.engine.feeds.stats
    # Or the stories were too dull to show anything.
    assert (
        min(stats.merged, stats.lagged, stats.resets, stats.joined, stats.answered) > EXAMPLES / 10
    )
