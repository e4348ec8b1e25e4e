"""Answering all who ask in the same moment together."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Batches(Generic[K, V]):
    """Reads once for all who ask at the same time, and for those who ask meanwhile, next.

    `read` is given up to `size` keys and gives the values it finds. The busier the database, the
    more are read together. Nobody is given what was read before they asked.
    """

    def __init__(
        self, read: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], *, size: int = 500
    ) -> None:
        self._read = read
        self._size = size
        self._wanted: dict[K, asyncio.Future[V | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def of(self, key: K) -> V | None:
        """Give the value of a key; None if there is none. Raises what `read` raises."""
        wanted = self._wanted.get(key)
        if wanted is None:
            loop = asyncio.get_running_loop()
            wanted = self._wanted[key] = loop.create_future()
            if self._task is None:
                self._task = loop.create_task(self._answer(), name="batches")
        # One who leaves takes the answer from nobody else.
        return await asyncio.shield(wanted)

    async def _answer(self) -> None:
        try:
            # Whoever else asks in this turn of the loop asks with us.
            await asyncio.sleep(0)
            while self._wanted:
                keys = list(self._wanted)[: self._size]
                asked = {key: self._wanted.pop(key) for key in keys}
                try:
                    found = await self._read(keys)
                except BaseException as error:
                    for future in asked.values():
                        _refuse(future, error)
                    if not isinstance(error, Exception):
                        raise
                else:
                    for key, future in asked.items():
                        if not future.done():
                            future.set_result(found.get(key))
        finally:
            self._task = None
            for future in self._wanted.values():
                future.cancel()
            self._wanted.clear()


def _refuse(future: "asyncio.Future[V | None]", error: BaseException) -> None:
    if future.done():
        return
    if isinstance(error, Exception):
        future.set_exception(error)
        # Nobody may be left who asked; then nobody needs to hear of it.
        future.exception()
    else:
        future.cancel()
