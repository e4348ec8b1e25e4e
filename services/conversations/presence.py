"""Who is looking at a conversation now. Nothing of it is kept."""

import asyncio
import logging
import random
import secrets
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from models.base import now
from models.conversations import Conversation
from services import access
from services.base import Deps, Viewer
from services.errors import RequestError
from services.events.base import BusUnavailableError, Tap

log = logging.getLogger("noosphere.presence")
# After the death of a process whoever looked through it is shown for this long, and a tick more.
_TTL_S = 10.0
# Who comes, goes or asks within so long is told, or told of, together: one look serves them all.
_GATHER_S = 0.02
# Signals are lost with a connection, which is told; this is for what nobody tells, such as rights.
_IDLE_S = 60.0
_AWAY_S = 1.0
VIEWERS_MAX = 100
_CACHE = "presence"


@dataclass(frozen=True, slots=True)
class Presence:
    """Somebody who looks: since when, and through how many sign-ins."""

    user_id: str
    joined_at: datetime
    device_count: int


@dataclass(frozen=True, slots=True)
class Audience:
    """Who looks: those here longest, at most 100 of them, and how many people there are in all."""

    viewers: tuple[Presence, ...]
    total_count: int


def topic(conversation_id: str) -> str:
    """Name the topic at which those who look are present."""
    return f"presence:{conversation_id}"


async def follow(
    deps: Deps, viewer: Viewer, conversation_id: str
) -> AsyncGenerator[Audience, None]:
    """Be present at a conversation, and give who else is: at once, and whenever that changes.

    Ends when the viewer cannot see the conversation any more. Closed, or cancelled, the viewer is
    not present any more. Consume it through `contextlib.aclosing`.

    Raises UnauthenticatedError for an anonymous viewer, RequestError NOT_FOUND when the viewer
    cannot see the conversation, BusUnavailableError when the bus does not answer at the beginning,
    or is closed.
    """
    _ = viewer.id
    if not await _is_visible(deps, viewer, conversation_id):
        raise RequestError("NOT_FOUND", "There is no such conversation.")
    room = _room(deps, conversation_id)
    # What becomes of the conversation itself is told to its writer, on the other topic.
    async with (
        deps.bus.attach(topic(conversation_id), f"control:{conversation_id}") as tap,
        _present(deps, viewer, conversation_id),
    ):
        shown = await room.look(deps)
        yield shown
        wait_s = _idle_s()
        while True:
            await _news(tap, wait_s)
            if not await _is_visible(deps, viewer, conversation_id):
                return
            try:
                found = await room.look(deps)
            except BusUnavailableError:
                # It comes back; until then nobody knows better.
                wait_s = _AWAY_S
                continue
            wait_s = _idle_s()
            if found != shown:
                shown = found
                yield shown


async def look(deps: Deps, conversation_id: str) -> Audience | None:
    """Give who looks at a conversation now; None while the bus does not answer."""
    try:
        return await _room(deps, conversation_id).look(deps)
    except BusUnavailableError:
        return None


async def _is_visible(deps: Deps, viewer: Viewer, conversation_id: str) -> bool:
    async with deps.db.reading() as connection:
        found = await connection.scalar(
            select(Conversation.id).where(
                Conversation.id == conversation_id, access.visible(Conversation, viewer)
            )
        )
    return found is not None


@asynccontextmanager
async def _present(deps: Deps, viewer: Viewer, conversation_id: str) -> AsyncIterator[None]:
    member = secrets.token_hex(8)
    data = {
        "user": viewer.id,
        "session": viewer.session_id or member,
        "joined_at": now().isoformat(),
    }
    try:
        await deps.bus.present(topic(conversation_id), member, data, _TTL_S)
        yield
    finally:
        try:
            await deps.bus.absent(topic(conversation_id), member)
        except BusUnavailableError as error:
            log.info("who left is shown for %g s more: %s", _TTL_S, error)


async def _news(tap: Tap, timeout_s: float) -> None:
    """Wait for news, and take all there are: what they say is read anew anyhow."""
    await tap.get(timeout_s)
    while tap.lost() or await tap.get(0) is not None:
        pass


def _idle_s() -> float:
    return _IDLE_S * random.uniform(0.8, 1.2)  # noqa: S311 - not a secret.


class _Room:
    """What all who follow one conversation in this process look at together."""

    def __init__(self, conversation_id: str) -> None:
        self._topic = topic(conversation_id)
        self._looking = asyncio.Lock()
        self._begun = self._ended = 0
        self._found = Audience((), 0)

    async def look(self, deps: Deps) -> Audience:
        """Give who is here, as of now or later."""
        asked = self._begun
        async with self._looking:
            if self._ended <= asked:
                await asyncio.sleep(_GATHER_S)
                self._begun += 1
                self._found = _audience((await deps.bus.members(self._topic)).values())
                self._ended = self._begun
            return self._found


def _room(deps: Deps, conversation_id: str) -> _Room:
    rooms: weakref.WeakValueDictionary[str, _Room] = deps.caches.setdefault(
        _CACHE, weakref.WeakValueDictionary()
    )
    room = rooms.get(conversation_id)
    if room is None:
        room = rooms[conversation_id] = _Room(conversation_id)
    return room


def _audience(members: Iterable[Mapping[str, Any]]) -> Audience:
    since: dict[str, str] = {}
    devices: dict[str, set[str]] = {}
    for member in members:
        user, joined_at = member["user"], member["joined_at"]
        since[user] = min(joined_at, since.get(user, joined_at))
        devices.setdefault(user, set()).add(member["session"])
    longest = sorted(since, key=lambda user: (since[user], user))[:VIEWERS_MAX]
    return Audience(
        tuple(
            Presence(user, datetime.fromisoformat(since[user]), len(devices[user]))
            for user in longest
        ),
        len(since),
    )
