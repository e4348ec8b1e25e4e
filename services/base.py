"""What every service verb is given: the dependencies, the viewer, and a unit of work."""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import insert, select, update
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import Record, now
from models.database import Database
from models.system import Event, Topic
from services import changes, contention
from services.errors import UnauthenticatedError, UserError, UserErrorCode
from services.events.base import Bus, BusUnavailableError, Json
from services.options import Options

if TYPE_CHECKING:
    from services.language.embeddings import Embedder
    from services.llm.base import Provider
    from services.sandboxes.host import SandboxHost

log = logging.getLogger("noosphere")
_LATER_MAX, _LATER_S, _LATER_RETRY_S = 10_000, 600.0, 0.25
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who asks. Anonymous when `user_id` is None."""

    user_id: str | None = None
    session_id: str | None = None
    username: str | None = None
    roles: frozenset[str] = frozenset()
    permissions: frozenset[str] = frozenset()
    expires_at: datetime | None = None

    @property
    def is_authenticated(self) -> bool:
        """Whether somebody is signed in."""
        return self.user_id is not None

    def may(self, permission: str) -> bool:
        """Tell whether a role of the viewer has the permission `domain:action`."""
        return permission in self.permissions

    @property
    def id(self) -> str:
        """The id of the signed-in user. Raises UnauthenticatedError for an anonymous viewer."""
        if self.user_id is None:
            raise UnauthenticatedError
        return self.user_id

    def require(self, permission: str) -> str:
        """Give the viewer's user id if the viewer has the permission.

        Raises UnauthenticatedError when anonymous, UserError FORBIDDEN without the permission.
        """
        user_id = self.id
        if permission not in self.permissions:
            held = ", ".join(sorted(self.roles)) or "none"
            raise UserError(
                UserErrorCode.FORBIDDEN,
                f"This needs the permission {permission}, which your roles ({held}) do not have. "
                "Ask an administrator.",
            )
        return user_id


ANONYMOUS = Viewer()


@dataclass(slots=True)
class Deps:
    """What one process works with. Built once at start, closed at the end."""

    options: Options
    db: Database
    bus: Bus
    provider: "Provider"
    embedder: "Embedder"
    sandboxes: "SandboxHost"
    # What this process caches between requests, by the service that owns it.
    caches: dict[str, Any] = field(default_factory=dict)
    # Who in this process is given the topic and data of signals the moment they are committed.
    # They neither wait nor raise.
    listeners: list[Callable[[str, Json], None]] = field(default_factory=list)


@dataclass(slots=True)
class Work:
    """One transaction and the news it makes. News go out after the commit, never before."""

    deps: Deps
    session: AsyncSession
    _news: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)
    _after: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    _signals: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _told: list[tuple[str, Json]] = field(default_factory=list)

    def record(self, topic: str, kind: str, payload: Mapping[str, Any]) -> None:
        """Add an event to the topic's durable log, and announce it after the commit."""
        self._news.append((topic, kind, payload))

    def open_topic(self, topic: str) -> None:
        """Begin the log of a topic, so that it has an epoch before its first event."""
        self.session.add(Topic(id=topic, epoch=secrets.token_hex(4)))

    def after_commit(self, action: Callable[[], Awaitable[None]]) -> None:
        """Run `action` once the transaction is committed. It may get lost in a crash."""
        self._after.append(action)

    def signal(self, topic: str, data: Json) -> None:
        """Announce after the commit what no log repairs.

        The listeners of this process hear of it at once, whatever becomes of the bus; those who are
        attached to the topic when the bus tells them, which may be later, if it is away. It names
        this `node`, so that nobody need act on it twice.
        """
        bus, told = self.deps.bus, {**data, "node": self.deps.bus.node_id}
        self._told.append((topic, told))
        self.after_commit(lambda: bus.publish(topic, told))

    async def lock(self, record: type[R], id_: str) -> R | None:
        """Give the row `id_` locked until the end of the transaction, or None if absent."""
        return (
            await self.session.scalars(select(record).where(record.id == id_).with_for_update())  # type: ignore[attr-defined]
        ).one_or_none()

    async def commit(self) -> None:
        """Number the news, with those of what was changed, and commit."""
        await self.session.flush()
        self._news += changes.take(self.session)
        self._signals = [
            signal
            for topic in sorted({topic for topic, _, _ in self._news})
            for signal in await self._number(topic)
        ]
        await self.session.commit()
        # Nothing is awaited in between: neither a cancellation nor the bus can get in the way.
        for topic, data in self._told:
            for listener in tuple(self.deps.listeners):
                listener(topic, data)

    async def announce(self) -> None:
        """Tell whoever listens. What is lost here is found in the log: readers look again."""
        for topic, data in self._signals:
            try:
                await self.deps.bus.publish(topic, data)
            except BusUnavailableError:
                log.warning("bus unavailable, an announcement was lost", extra={"topic": topic})
        for action in self._after:
            try:
                await action()
            except BusUnavailableError:
                log.warning("bus unavailable, a signal is sent later")
                _later(self.deps).add(action)

    async def _number(self, topic: str) -> list[tuple[str, dict[str, Any]]]:
        """Write the topic's events with the next numbers, under the lock of the topic's row."""
        news = [(kind, payload) for name, kind, payload in self._news if name == topic]
        changed = await self.session.execute(
            update(Topic).where(Topic.id == topic).values(seq=Topic.seq + len(news))
        )
        if changed.rowcount == 0:  # type: ignore[attr-defined]
            await self._begin(topic, len(news))
        head, epoch = (
            await self.session.execute(select(Topic.seq, Topic.epoch).where(Topic.id == topic))
        ).one()
        recorded_at, signals = now(), []
        for seq, (kind, payload) in enumerate(news, head - len(news) + 1):
            await self.session.execute(
                insert(Event).values(
                    topic=topic, seq=seq, type=kind, payload=dict(payload), recorded_at=recorded_at
                )
            )
            signals.append(
                (
                    topic,
                    {
                        "epoch": epoch,
                        "seq": seq,
                        "type": kind,
                        "payload": dict(payload),
                        "at": round(recorded_at.timestamp(), 3),
                    },
                )
            )
        return signals

    async def _begin(self, topic: str, seq: int) -> None:
        """Begin the log of a topic with its first events."""
        values = {"id": topic, "epoch": secrets.token_hex(4), "seq": seq}
        if self.deps.db.is_sqlite:
            # Writers follow each other: nobody else can begin it now.
            await self.session.execute(insert(Topic).values(values))
            return
        # Another transaction may begin it at the same moment; this one then comes after it.
        await self.session.execute(
            mysql.insert(Topic).values(values).on_duplicate_key_update(seq=Topic.seq + seq)
        )


class _Later:
    """Signals that no log repairs (a sign-in ended, rights changed): sent once the bus is back.

    Kept in memory: who dies meanwhile leaves it to those concerned to look for themselves.
    """

    def __init__(self) -> None:
        self._actions: deque[Callable[[], Awaitable[None]]] = deque(maxlen=_LATER_MAX)
        self._task: asyncio.Task[None] | None = None

    def add(self, action: Callable[[], Awaitable[None]]) -> None:
        """Try an action again and again."""
        self._actions.append(action)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._send(), name="late signals")

    async def _send(self) -> None:
        until = asyncio.get_running_loop().time() + _LATER_S
        try:
            while self._actions and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(_LATER_RETRY_S)
                try:
                    await self._actions[0]()
                except BusUnavailableError:
                    continue
                self._actions.popleft()
        finally:
            self._actions.clear()
            self._task = None


def _later(deps: Deps) -> _Later:
    known = deps.caches.get("late signals")
    if not isinstance(known, _Later):
        known = deps.caches["late signals"] = _Later()
    return known


@asynccontextmanager
async def work(deps: Deps) -> AsyncIterator[Work]:
    """Open a unit of work: commits and announces at the end of the block, rolls back on error.

    Raises ContendedError when the database took the transaction back for the sake of another.
    """
    with contention.told():
        async with _transaction(deps) as unit:
            yield unit
    await unit.announce()


@asynccontextmanager
async def _transaction(deps: Deps) -> AsyncIterator[Work]:
    async with deps.db.writing() as session:
        unit = Work(deps, session)
        try:
            yield unit
            await unit.commit()
        except BaseException:
            await session.rollback()
            raise
