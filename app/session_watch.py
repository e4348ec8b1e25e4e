"""The life of sign-ins in use: one watch per session and process, shared by its connections.

A watch attaches to what is announced about a session and only then reads how the session stands, so
that nothing that happens later can escape it. From then on it knows whom the session's token signs
in, and further connections and requests with that token need no database; any doubt takes that back
until the session was read again. Every connection that holds a watch hears of the end of its
sign-in at once: when the session is revoked (by any process, and within two seconds even if the bus
is away), when its token expires unrenewed, and when the rights of its user change, for what is
running was begun with the old ones.
"""

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from weakref import WeakValueDictionary

from services.accounts import sessions
from services.accounts.passwords import hash_token
from services.base import Deps, Viewer
from services.errors import UnauthenticatedError
from services.events.base import News, Tap

log = logging.getLogger("noosphere.auth")

REVOKED = "Session revoked"
EXPIRED = "Session expired"
CHANGED = "Rights changed"

_RECHECK_S = 20.0
_LOOK_S = 1.5
"""Revocations are announced; this is for those whose announcement was lost with the bus."""
_RETRY_S = 2.0
_READ_TIMEOUT_S = 10.0
_SETTLE_S = 2.0
_CLOSE_TIMEOUT_S = 5.0
_LINGER_S = 15.0
"""How long a watch outlives its last connection or request, which often comes back."""
_AGAIN_S = 10.0
"""A token that comes twice in this time is watched; for one that comes once that is too dear."""
_SEEN_MAX = 10_000

OnEnd = Callable[[str], None]


class SessionWatch:
    """Keeps one session's sign-in true: who it is and may do, until when, and its end."""

    def __init__(self, deps: Deps, viewer: Viewer) -> None:
        self.viewer = viewer
        self.ended: str | None = None
        # For the register of watches: the token it is found by, whether a request came with it
        # since somebody looked, and what to do without holders.
        self.token_noted: str | None = None
        self.is_used = False
        self.on_idle: Callable[[], None] = _nothing
        self._deps = deps
        self._holders: dict[object, OnEnd] = {}
        self._token_hash: str | None = None
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
        return self._token_hash == token_hash and self.expires_at > datetime.now(UTC)

    def use(self) -> Viewer:
        """Give the viewer to a request; what keeps the watch, and its session's last activity."""
        self.is_used = self._has_been_active = True
        return self.viewer

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
        self._doubt()
        self._settled.set()
        holders, self._holders = self._holders, {}
        for on_end in holders.values():
            try:
                on_end(reason)
            except Exception:
                # One connection that cannot be ended must not keep the others open.
                log.exception("a connection could not be told that its sign-in is over")

    # ---- watching

    def stop(self) -> None:
        """Let `run` return soon, without breaking off what it reads."""
        self._is_stopping = True
        if self._tap is not None:
            self._tap.wake()

    async def run(self) -> None:
        """Watch until the sign-in has ended, the bus is closed, or `stop` was called."""
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
                self._doubt()
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
        while self.ended is None:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                standing = await sessions.standing(
                    self._deps, self.session_id, is_active=self._has_been_active
                )
            self._has_been_active = False
            self._judge(standing)
            if self.ended is not None or self._is_stopping:
                return
            recheck_s = _RECHECK_S * random.uniform(0.8, 1.2)  # noqa: S311
            news = await tap.get(min(recheck_s, max(0.001, self._left_s())))
            if tap.is_closed or self._is_stopping:
                return
            if tap.lost():
                self._doubt()
            elif news is not None:
                self._passes(news)

    def _passes(self, news: News) -> bool:
        """Act on what is announced, the moment it is; True if the session need not be read."""
        if news.seq or not news.data.keys() & {"revoked", "renewed", "changed"}:
            return True
        self._doubt()
        if news.data.get("revoked"):
            self.end(REVOKED)
        return False

    def _judge(self, standing: sessions.Standing | None) -> None:
        if standing is None:
            self.end(REVOKED)
            return
        before, self.viewer = self.viewer, standing.viewer
        if self._left_s() <= 0:
            self.end(EXPIRED)
        elif (before.roles, before.permissions) != (self.viewer.roles, self.viewer.permissions):
            self.end(CHANGED)
        else:
            self._token_hash = standing.token_hash
            self._settled.set()

    def _doubt(self) -> None:
        self._token_hash = None

    def _left_s(self) -> float:
        return (self.expires_at - datetime.now(UTC)).total_seconds()


class SessionWatches:
    """The watches of a process, by session."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._watches: dict[str, SessionWatch] = {}
        self._tasks: dict[SessionWatch, asyncio.Task[None]] = {}
        self._lingering: dict[SessionWatch, asyncio.TimerHandle] = {}
        # Which session a token was last seen to sign in; its watch knows whether it still does.
        self._sessions: dict[str, str] = {}
        # Tokens of requests that are not watched, and when each came last.
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._looking: asyncio.Task[None] | None = None
        self._is_closing = False
        # Nobody is watched any more, or all is to be closed: no need to wait for the next look.
        self._has_changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._watches)

    async def authenticate(self, token: str) -> Viewer:
        """Give the viewer of a token, without the database if a watch knows it.

        Raises UnauthenticatedError as `sessions.authenticate` does. Whoever comes with the same
        token at the same time waits for the first, and is spared the reading.
        """
        token_hash = hash_token(token)
        known = self._known(token_hash)
        if known is not None:
            return known
        turn = self._turns.get(token_hash)
        if turn is None:
            turn = self._turns[token_hash] = asyncio.Lock()
        async with turn:
            known = self._known(token_hash)
            if known is not None:
                return known
            viewer = await sessions.authenticate(self._deps, token)
            before = self._watches.get(viewer.session_id or "")
            watch = self.watch(viewer)
            if watch is not before:
                await watch.settled(_SETTLE_S)
            if watch.ended == REVOKED:
                raise UnauthenticatedError("The token is unknown or revoked; sign in again.")
            self._note(token_hash, watch)
            return viewer

    async def sign_in(self, token: str) -> Viewer:
        """Give the viewer of a request's token, without the database if a watch knows it.

        Raises UnauthenticatedError as `sessions.authenticate` does. Whoever comes again soon is
        watched from then on, as long as that goes on; nobody waits for the watch to begin.
        """
        known = self.signed_in(token)
        if known is not None:
            return known
        token_hash = hash_token(token)
        viewer = await sessions.authenticate(self._deps, token)
        if self._comes_again(token_hash) and not self._is_closing:
            self._note(token_hash, self.watch(viewer))
        return viewer

    def signed_in(self, token: str) -> Viewer | None:
        """Do as `sign_in` where that takes no waiting; None where it does."""
        token_hash = hash_token(token)
        watch = self._watches.get(self._sessions.get(token_hash, ""))
        return watch.use() if watch is not None and watch.knows(token_hash) else None

    def _comes_again(self, token_hash: str) -> bool:
        at = asyncio.get_running_loop().time()
        before = self._seen.pop(token_hash, None)
        self._seen[token_hash] = at
        if len(self._seen) > _SEEN_MAX:
            self._seen.popitem(last=False)
        return before is not None and at - before < _AGAIN_S

    def known(self, token: str) -> Viewer | None:
        """Give the viewer of a token that a watch knows to be good right now."""
        return self._known(hash_token(token))

    def watch(self, viewer: Viewer) -> SessionWatch:
        """Give the watch of a signed-in viewer's session, begun now if there is none.

        It lasts while it is held, and a moment longer.
        """
        session_id = viewer.session_id or ""
        watch = self._watches.get(session_id)
        if watch is None or watch.ended is not None:
            watch = SessionWatch(self._deps, viewer)
            watch.on_idle = partial(self._linger, watch)
            self._watches[session_id] = watch
            task = asyncio.get_running_loop().create_task(watch.run())
            self._tasks[watch] = task
            # A callback, for a task cancelled before its first step never reaches a `finally`.
            task.add_done_callback(partial(self._over, watch))
            self._linger(watch)
            if self._looking is None:
                self._looking = asyncio.get_running_loop().create_task(self._look())
        return watch

    async def aclose(self) -> None:
        """Stop watching; breaks off what takes longer than a few seconds."""
        self._is_closing = True
        self._has_changed.set()
        tasks = [*self._tasks.values(), *([self._looking] if self._looking else ())]
        if not tasks:
            return
        for watch in tuple(self._tasks):
            watch.stop()
        _, late = await asyncio.wait(tasks, timeout=_CLOSE_TIMEOUT_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _look(self) -> None:
        """Ask for revocations that nobody could announce, for all watches together."""
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._has_changed.wait()
            except TimeoutError:
                pass
            self._has_changed.clear()
            if not self._watches or self._is_closing:
                break
            try:
                revoked = await sessions.revoked_among(self._deps, list(self._watches))
            except Exception as error:  # noqa: BLE001 - a database that is away comes back.
                log.warning("revocations cannot be looked for right now: %s", error)
                continue
            for session_id in revoked:
                watch = self._watches.get(session_id)
                if watch is not None:
                    watch.end(REVOKED)
                    watch.stop()
        self._looking = None

    def _known(self, token_hash: str) -> Viewer | None:
        watch = self._watches.get(self._sessions.get(token_hash, ""))
        return watch.viewer if watch is not None and watch.knows(token_hash) else None

    def _note(self, token_hash: str, watch: SessionWatch) -> None:
        if watch.token_noted is not None:
            self._sessions.pop(watch.token_noted, None)
        watch.token_noted = None
        if self._watches.get(watch.session_id) is watch:
            watch.token_noted = token_hash
            self._sessions[token_hash] = watch.session_id

    def _linger(self, watch: SessionWatch) -> None:
        timer = self._lingering.pop(watch, None)
        if timer is not None:
            timer.cancel()
        task = self._tasks.get(watch)
        if task is not None and not task.done():
            loop = asyncio.get_running_loop()
            self._lingering[watch] = loop.call_later(_LINGER_S, self._leave, watch)

    def _leave(self, watch: SessionWatch) -> None:
        del self._lingering[watch]
        if watch.is_used and not watch.is_held:
            watch.is_used = False
            self._linger(watch)
        elif not watch.is_held:
            self._forget(watch)
            watch.stop()

    def _forget(self, watch: SessionWatch) -> None:
        if self._watches.get(watch.session_id) is watch:
            del self._watches[watch.session_id]
            if not self._watches:
                self._has_changed.set()
        if watch.token_noted is not None:
            self._sessions.pop(watch.token_noted, None)
            watch.token_noted = None

    def _over(self, watch: SessionWatch, task: asyncio.Task[None]) -> None:
        del self._tasks[watch]
        timer = self._lingering.pop(watch, None)
        if timer is not None:
            timer.cancel()
        self._forget(watch)
        if not task.cancelled() and task.exception() is not None:
            log.error("the watch of a sign-in failed", exc_info=task.exception())


def _nothing() -> None:
    return None
