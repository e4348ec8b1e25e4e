"""The sign-ins in use in a process: one watch for each session, found by its token.

Further connections and requests with a token that is watched need no database. Revocations are
announced, and looked for besides, for all watches together.
"""

import asyncio
import logging
from collections import OrderedDict
from functools import partial
from weakref import WeakValueDictionary

from app.session_watch import REVOKED, SessionWatch
from services.accounts import sessions
from services.accounts.passwords import hash_token
from services.base import Deps, Viewer
from services.errors import UnauthenticatedError

log = logging.getLogger("noosphere.auth")

_LOOK_S = 1.5
"""Revocations are announced; this is for those whose announcement was lost with the bus."""
_LOOK_TIMEOUT_S = 10.0
_SETTLE_S = 2.0
_CLOSE_TIMEOUT_S = 5.0
_LINGER_S = 15.0
"""How long a watch outlives its last connection or request, which often comes back."""
_AGAIN_S = 10.0
"""A token that comes twice in this time is watched; for one that comes once that is too dear."""
_SEEN_MAX = 10_000


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
                async with asyncio.timeout(_LOOK_TIMEOUT_S):
                    revoked = await sessions.revoked_among(self._deps, list(self._watches))
            except Exception as error:  # noqa: BLE001 - a database that is away comes back.
                log.warning("revocations cannot be looked for right now: %r", error)
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
