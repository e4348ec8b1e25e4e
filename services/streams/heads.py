"""The newest event of many topics, asked for together."""

import asyncio

from sqlalchemy import select

from models.system import Topic
from services.base import Deps

Head = tuple[str, int]
_PER_STATEMENT = 500


class Heads:
    """Answers all who ask in the same moment with one statement for 500 topics."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._wanted: dict[str, asyncio.Future[Head | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def of(self, topic: str) -> Head | None:
        """Give epoch and number of the newest event; None before the first. Raises DBAPIError."""
        wanted = self._wanted.get(topic)
        if wanted is None:
            loop = asyncio.get_running_loop()
            wanted = self._wanted[topic] = loop.create_future()
            if self._task is None:
                self._task = loop.create_task(self._answer(), name="heads of topics")
        # One who leaves takes the answer from nobody else.
        return await asyncio.shield(wanted)

    async def _answer(self) -> None:
        try:
            # Whoever else asks in this turn of the loop asks with us.
            await asyncio.sleep(0)
            while self._wanted:
                topics = list(self._wanted)[:_PER_STATEMENT]
                asked = {topic: self._wanted.pop(topic) for topic in topics}
                try:
                    async with self._deps.db.reading() as connection:
                        rows = await connection.execute(
                            select(Topic.id, Topic.epoch, Topic.seq).where(Topic.id.in_(topics))
                        )
                        found = {row.id: (row.epoch, row.seq) for row in rows}
                except BaseException as error:
                    for future in asked.values():
                        _refuse(future, error)
                    if not isinstance(error, Exception):
                        raise
                else:
                    for topic, future in asked.items():
                        if not future.done():
                            future.set_result(found.get(topic))
        finally:
            self._task = None
            for future in self._wanted.values():
                future.cancel()
            self._wanted.clear()


def _refuse(future: "asyncio.Future[Head | None]", error: BaseException) -> None:
    if future.done():
        return
    if isinstance(error, Exception):
        future.set_exception(error)
        # Nobody may be left who asked; then nobody needs to hear of it.
        future.exception()
    else:
        future.cancel()


def heads(deps: Deps) -> Heads:
    """Give the process's one."""
    known = deps.caches.get("heads")
    if not isinstance(known, Heads):
        known = deps.caches["heads"] = Heads(deps)
    return known
