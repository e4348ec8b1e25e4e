"""The life of one sign-in in use, shared by all connections of a process that rest on it.

A watch attaches to what is announced about a session and only then reads how the session stands, so
that nothing that happens later can escape it. From then on it knows whom the session's token signs
in; any doubt takes that back until the session was read again. What this very process changes it is
told at the commit; what escaped it is looked for (`app/session_lookout.py`), and it knows nothing
while that cannot be done. Every connection that holds a watch hears of the end of its sign-in at
once: when the session is revoked or its user deactivated, when its token expires unrenewed, and
when the rights of its user change, for what is running was begun with the old ones.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from time import monotonic, time

from services.accounts import sessions
from services.base import Deps, Viewer
from services.errors import UnauthenticatedError
from services.events.base import Json, News, Tap

log = logging.getLogger("noosphere.auth")

REVOKED = "Session revoked"
EXPIRED = "Session expired"
CHANGED = "Rights changed"

_RECHECK_S = 20.0
_RETRY_S = 2.0
_READ_TIMEOUT_S = 10.0

OnEnd = Callable[[str], None]


class Sight:
    """Until when (of the loop's clock) a look confirms what the watches of a process know."""

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = 0.0


class SessionWatch:
    """Keeps one session's sign-in true: who it is and may do, until when, and its end."""

    def __init__(self, deps: Deps, viewer: Viewer, sight: Sight) -> None:
        self.viewer = viewer
        self.ended: str | None = None
        # That of the token known to be good, but for its time; None while there is any doubt.
        self.token_hash: str | None = None
        # For the register of watches: the token it is found by, whether a request came with it
        # since somebody looked, and what to do without holders.
        self.token_noted: str | None = None
        self.is_used = False
        self.on_idle: Callable[[], None] = _nothing
        self._deps = deps
        self._sight = sight
        self._doubts = 0
        self._expires_at_s = self.expires_at.timestamp()
        self._holders: dict[object, OnEnd] = {}
        self._settled = asyncio.Event()
        self._tap: Tap | None = None
        self._is_stopping = False
        self._has_been_active = False

    @property
    def session_id(self) -> str:
        """The session watched."""
        return self.viewer.session_id or ""

    @property
    def expires_at(self) -> datetime:
        """When the sign-in ends unless it is renewed."""
        return self.viewer.expires_at or datetime.max.replace(tzinfo=UTC)

    @property
    def is_held(self) -> bool:
        """Whether any connection needs it."""
        return bool(self._holders)

    def knows(self, token_hash: str) -> bool:
        """Tell whether this token is known to be good right now."""
        return (
            self.token_hash == token_hash
            and self._expires_at_s > time()
            and self._sight.until > monotonic()
        )

    def use(self) -> Viewer:
        """Give the viewer to a request; what keeps the watch, and its session's last activity."""
        self.is_used = self._has_been_active = True
        return self.viewer

    async def certain(self) -> Viewer:
        """Give the viewer as the sign-in stands now, read from the database while that is in doubt.

        Raises UnauthenticatedError once it does not stand any more.
        """
        if self.token_hash is not None and self.knows(self.token_hash):
            return self.viewer
        standing = await sessions.standing(self._deps, self.session_id)
        if standing is None:
            raise UnauthenticatedError("The sign-in was revoked; sign in again.")
        expires_at = standing.viewer.expires_at
        if expires_at is not None and expires_at <= datetime.now(UTC):
            raise UnauthenticatedError("The token has expired; renew it with sessionRefresh.")
        return standing.viewer

    def hold(self, on_end: OnEnd) -> Callable[[], None]:
        """Have `on_end` called once with the reason when the sign-in ends; gives what lets go.

        Called before this returns if it has ended already.
        """
        if self.ended is not None:
            on_end(self.ended)
            return _nothing
        holder = object()
        self._holders[holder] = on_end
        return partial(self._let_go, holder)

    async def settled(self, timeout_s: float) -> None:
        """Wait until the session has been read, or could not be, or `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        except TimeoutError:
            return

    def _let_go(self, holder: object) -> None:
        if self._holders.pop(holder, None) is not None and not self._holders:
            self.on_idle()

    def end(self, reason: str) -> None:
        """Tell every connection that the sign-in is over."""
        if self.ended is not None:
            return
        self.ended = reason
        self.doubt()
        self._settled.set()
        holders, self._holders = self._holders, {}
        for on_end in holders.values():
            try:
                on_end(reason)
            except Exception:
                # One connection that cannot be ended must not keep the others open.
                log.exception("a connection could not be told that its sign-in is over")

    # ---- watching

    def hear(self, data: Json) -> None:
        """Act on what is announced, the moment it is."""
        if data.get("revoked"):
            self.end(REVOKED)
        elif data.keys() & {"renewed", "changed"}:
            self.doubt()

    def doubt(self) -> None:
        """Know nothing until the session has been read anew, from now on."""
        self.token_hash = None
        self._doubts += 1
        if self._tap is not None:
            self._tap.wake()

    def stop(self) -> None:
        """Let `run` return soon, without breaking off what it reads."""
        self._is_stopping = True
        if self._tap is not None:
            self._tap.wake()

    async def run(self) -> None:
        """Watch until the sign-in has ended, the bus is closed, or `stop` was called."""
        try:
            await self._run()
        finally:
            self.doubt()

    async def _run(self) -> None:
        topics = (f"session:{self.session_id}", f"viewer:{self.viewer.id}")
        is_closed = False
        while self.ended is None and not (is_closed or self._is_stopping):
            try:
                async with self._deps.bus.attach(*topics) as tap:
                    self._tap, tap.sink = tap, self._passes
                    try:
                        await self._follow(tap)
                    finally:
                        self._tap, is_closed = None, tap.is_closed
            except Exception as error:  # noqa: BLE001 - whatever is away comes back.
                # A database or a bus that is away for a moment is no reason to drop anybody; the
                # sign-in's own end is kept all the same.
                self.doubt()
                self._settled.set()
                if not is_closed:
                    log.warning("a sign-in cannot be watched right now: %s", error)
                    await self._pause()

    async def _pause(self) -> None:
        pause_s = _RETRY_S * random.uniform(0.5, 1.5)  # noqa: S311
        await asyncio.sleep(min(pause_s, max(0.0, self._left_s())))
        if self._left_s() <= 0:
            self.end(EXPIRED)

    async def _follow(self, tap: Tap) -> None:
        while len(tap):
            # It came before the sink was there, and is older than what is read next.
            await tap.get(0.0)
        while self.ended is None:
            doubts = self._doubts
            async with asyncio.timeout(_READ_TIMEOUT_S):
                standing = await sessions.standing(
                    self._deps, self.session_id, is_active=self._has_been_active
                )
            self._has_been_active = False
            if tap.lost():
                self.doubt()
            self._judge(standing, is_certain=self._doubts == doubts)
            if self.ended is not None or self._is_stopping:
                return
            if self.token_hash is None:
                continue
            recheck_s = _RECHECK_S * random.uniform(0.8, 1.2)  # noqa: S311
            await tap.get(min(recheck_s, max(0.001, self._left_s())))
            if tap.is_closed or self._is_stopping:
                return
            if tap.lost():
                self.doubt()

    def _passes(self, news: News) -> bool:
        """Act on what the bus tells, the moment it does: nothing is left to be read."""
        # What this process did itself was heard at the commit.
        if not news.seq and news.data.get("node") != self._deps.bus.node_id:
            self.hear(news.data)
        return True

    def _judge(self, standing: sessions.Standing | None, *, is_certain: bool) -> None:
        """Take what was read; it is not known to stand if a doubt arose meanwhile."""
        if self.ended is not None:
            return
        if standing is None:
            self.end(REVOKED)
            return
        before, self.viewer = self.viewer, standing.viewer
        self._expires_at_s = self.expires_at.timestamp()
        if self._left_s() <= 0:
            self.end(EXPIRED)
        elif (before.roles, before.permissions) != (self.viewer.roles, self.viewer.permissions):
            self.end(CHANGED)
        else:
            self.token_hash = standing.token_hash if is_certain else None
            self._settled.set()

    def _left_s(self) -> float:
        return (self.expires_at - datetime.now(UTC)).total_seconds()


def _nothing() -> None:
    return None
