"""The sign-ins in use in a process: one watch for each session, found by its token.

Further connections and requests with a token that is watched need no database. What becomes of
sign-ins is told at the commit by this process, announced by others, and looked for besides, for all
watches together.
"""

import asyncio
import logging
from collections import OrderedDict
from functools import partial
from weakref import WeakValueDictionary

from app.session_lookout import Lookout
from app.session_watch import REVOKED, SessionWatch
from services.accounts import sessions
from services.accounts.passwords import hash_token
from services.base import Deps, Viewer
from services.errors import UnauthenticatedError
from services.events.base import Json

log = logging.getLogger("noosphere.auth")

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
        self._lookout = Lookout(deps, self._watches)
        self._is_closing = False
        deps.listeners.append(self._hear)

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
            watch = SessionWatch(self._deps, viewer, self._lookout.sight)
            watch.on_idle = partial(self._linger, watch)
            self._watches[session_id] = watch
            task = asyncio.get_running_loop().create_task(watch.run())
            self._tasks[watch] = task
            # A callback, for a task cancelled before its first step never reaches a `finally`.
            task.add_done_callback(partial(self._over, watch))
            self._linger(watch)
            self._lookout.begin()
        return watch

    async def aclose(self) -> None:
        """Stop watching; breaks off what takes longer than a few seconds."""
        self._is_closing = True
        self._lookout.stop()
        if self._hear in self._deps.listeners:
            self._deps.listeners.remove(self._hear)
        looking = self._lookout.task
        tasks = [*self._tasks.values(), *([looking] if looking else ())]
        if not tasks:
            return
        for watch in tuple(self._tasks):
            watch.stop()
        _, late = await asyncio.wait(tasks, timeout=_CLOSE_TIMEOUT_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _hear(self, topic: str, data: Json) -> None:
        """Act on what this process has committed, before anybody is answered."""
        noun, _, id_ = topic.partition(":")
        if noun == "session" and id_ in self._watches:
            self._watches[id_].hear(data)
        elif noun == "viewer":
            for watch in tuple(self._watches.values()):
                if watch.viewer.user_id == id_:
                    watch.hear(data)

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
                self._lookout.wake()
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
