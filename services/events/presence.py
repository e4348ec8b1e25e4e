"""Who is present at topics: the members of this process, and what keeps them present in Redis."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.events.base import BusUnavailableError, Json
from services.events.hub import decode, encode
from services.events.scripts import JOIN, LEAVE, MEMBERS, STAY, SWEEP, Argument, Script

_log = logging.getLogger(__name__)

# How often a process looks for members of dead ones.
_TICK_S = 2.0
# A member is confirmed so many times within its time: one lost answer makes nobody vanish.
_CONFIRMATIONS = 3
_BATCH = 200
_TTL_MAX_S = 3600.0
_CLOSE_S = 1.0

Run = Callable[..., Awaitable[Any]]


def check(topic: str, member: str, ttl_s: float) -> None:
    """Raise ValueError for names and times that no bus takes."""
    if "\0" in topic or "\0" in member:
        raise ValueError("The names of topics and members hold no NUL.")
    if not 0 < ttl_s <= _TTL_MAX_S:
        raise ValueError(f"A member's time is at most {_TTL_MAX_S:,.0f} seconds.")


def signal(member: str, *, is_present: bool) -> Json:
    """Give what is announced of a member."""
    return {"member": member, "is_present": is_present}


class LocalMembers:
    """Who is present in the only process there is: as long as it lives."""

    def __init__(self) -> None:
        self._members: dict[str, dict[str, Json]] = {}

    def join(self, topic: str, member: str, data: Json) -> bool:
        """Add a member; tells whether that changed anything."""
        members = self._members.setdefault(topic, {})
        # A copy, as it would come back from elsewhere.
        data = decode(encode(data))
        is_new = members.get(member) != data
        members[member] = data
        return is_new

    def leave(self, topic: str, member: str) -> bool:
        """Remove a member; tells whether there was one."""
        members = self._members.get(topic, {})
        was_present = members.pop(member, None) is not None
        if not members:
            self._members.pop(topic, None)
        return was_present

    def of(self, topic: str) -> Mapping[str, Json]:
        """Give the members of a topic."""
        return dict(self._members.get(topic, {}))


@dataclass(frozen=True, slots=True)
class _Held:
    data: bytes
    ttl_ms: int


class RedisMembers:
    """The members of this process, said to Redis again and again by one task for all of them.

    `run(script, keys, *arguments)` runs a script; `read` does on a connection where a long answer
    delays nobody.
    """

    def __init__(
        self, run: Run, read: Run, *, key: str, prefix: str, channel_prefix: bytes
    ) -> None:
        self._run, self._read = run, read
        self._keys = [key]
        self._prefixes: tuple[Argument, ...] = (prefix, channel_prefix)
        self._held: dict[tuple[str, str], _Held] = {}
        # Those who have left, as long as Redis was not told.
        self._leaving: set[tuple[str, str]] = set()
        self._stay_at = 0.0
        self._awake = asyncio.Event()

    async def join(self, topic: str, member: str, data: Json, ttl_s: float) -> None:
        """Add a member, or change its data. Raises BusUnavailableError."""
        name = (topic, member)
        self._leaving.discard(name)
        self._held[name] = _Held(encode(data), round(ttl_s * 1000))
        try:
            await self._join([name])
        except BaseException:
            # The caller knows of no member: its time runs out, should it be there.
            self._held.pop(name, None)
            raise
        # It may have less time than those before.
        self._stay_at = min(self._stay_at, _now() + self._interval_s())
        if self._interval_s() < _TICK_S:
            self._awake.set()

    async def leave(self, topic: str, member: str) -> None:
        """Remove a member. Raises BusUnavailableError.

        Redis is told later if that fails, or is broken off, unless its time has run out by then.
        """
        name = (topic, member)
        if self._held.pop(name, None) is not None:
            self._leaving.add(name)
        try:
            await self._leave([name])
        except asyncio.CancelledError:
            self._awake.set()
            raise

    async def of(self, topic: str) -> Mapping[str, Json]:
        """Give the members of a topic. Raises BusUnavailableError."""
        found = await self._execute(self._read, MEMBERS, topic)
        pairs = zip(found[::2], found[1::2], strict=True)
        return {member.decode(): decode(data) for member, data in pairs}

    def wake(self) -> None:
        """Look at once whether Redis still knows the members: it came back from somewhere."""
        self._stay_at = 0.0
        self._awake.set()

    async def keep(self) -> None:
        """Keep the members of this process present, and drop those of dead ones, for ever."""
        while True:
            try:
                async with asyncio.timeout(min(_TICK_S, self._interval_s())):
                    await self._awake.wait()
            except TimeoutError:
                pass
            self._awake.clear()
            try:
                for gone in _batches(list(self._leaving)):
                    await self._leave(gone)
                if self._held and _now() >= self._stay_at:
                    self._stay_at = _now() + self._interval_s()
                    await self._stay()
                while await self._execute(self._run, SWEEP, _BATCH) == _BATCH:
                    pass
            except BusUnavailableError as error:
                _log.warning("Who is present could not be told to Redis: %s", error)
                self._stay_at = 0.0

    async def aclose(self) -> None:
        """Take all members away, if Redis answers soon enough; else their time runs out."""
        names = [*self._held, *self._leaving]
        self._held.clear()
        try:
            async with asyncio.timeout(_CLOSE_S):
                for batch in _batches(names):
                    await self._leave(batch)
        except (BusUnavailableError, TimeoutError):
            _log.info("Redis was not told who leaves; their time will run out")

    def _interval_s(self) -> float:
        shortest_ms = min((held.ttl_ms for held in self._held.values()), default=_TTL_MAX_S * 1000)
        return shortest_ms / 1000 / _CONFIRMATIONS

    async def _join(self, names: Iterable[tuple[str, str]]) -> None:
        arguments: list[Argument] = []
        for name in names:
            held = self._held.get(name)
            if held is not None:
                arguments += [*name, held.data, held.ttl_ms]
        if arguments:
            await self._execute(self._run, JOIN, *arguments)

    async def _leave(self, names: Sequence[tuple[str, str]]) -> None:
        await self._execute(self._run, LEAVE, *(part for name in names for part in name))
        self._leaving.difference_update(names)

    async def _stay(self) -> None:
        for batch in _batches(list(self._held)):
            # Some may have left while those before them were confirmed.
            names = [name for name in batch if name in self._held]
            arguments = [part for name in names for part in (*name, self._held[name].ttl_ms)]
            unknown = await self._execute(self._run, STAY, *arguments)
            await self._join([names[place] for place in unknown])

    async def _execute(self, run: Run, script: Script, *arguments: Argument) -> Any:
        return await run(script, self._keys, *self._prefixes, *arguments)


def _batches(names: Sequence[tuple[str, str]]) -> Iterable[Sequence[tuple[str, str]]]:
    return (names[start : start + _BATCH] for start in range(0, len(names), _BATCH))


def _now() -> float:
    return asyncio.get_running_loop().time()
