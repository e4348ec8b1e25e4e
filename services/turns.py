"""Reading once for all who ask the same at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from services.base import Deps

T = TypeVar("T")


class Turns:
    """Runs one reading per key at a time; who asks meanwhile shares the next one.

    So nobody is given what was read before they asked, and a thousand who ask at once cost two
    readings.
    """

    def __init__(self) -> None:
        self._next: dict[Hashable, asyncio.Task[Any]] = {}
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    async def share(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """Give what `read` gives, or what the `read` of another with the same key does.

        Raises what it raises. A cancelled caller leaves the reading to the others.
        """
        task = self._next.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._read(key, read))
            task.add_done_callback(_heard)
            self._next[key] = task
        result: T = await asyncio.shield(task)
        return result

    async def _read(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        try:
            await lock.acquire()
        finally:
            del self._next[key]
        try:
            return await read()
        finally:
            lock.release()


def _heard(task: "asyncio.Task[Any]") -> None:
    """Take note of a failure whose askers have all gone."""
    if not task.cancelled():
        task.exception()


def turns(deps: Deps) -> Turns:
    """Give the process's one."""
    known = deps.caches.get("turns")
    if not isinstance(known, Turns):
        known = deps.caches["turns"] = Turns()
    return known
