"""Whether the sign-ins in use still stand, looked at for all watches of a process together.

What is announced reaches the watches at once. This is for what is not: a revocation whose news were
lost with the bus, an account that its operator ended in the database.
"""

import asyncio
import logging
from collections.abc import Mapping
from time import monotonic

from app.session_watch import SessionWatch, Sight
from services.accounts import lookout
from services.base import Deps

log = logging.getLogger("noosphere.auth")

_LOOK_S = 1.5
_REST_S = 0.5
"""What a database that is slow to answer is left in peace."""
_SURE_S = 2.0
"""How long what was seen to stand is taken to stand; a look that takes longer is of no use."""


class Lookout:
    """Looks every 1.5 s, as long as there are watches.

    For two seconds from the beginning of a look that succeeded the watches may know their sign-ins;
    after that, until the next succeeds, they know none, and every request reads its own.
    """

    def __init__(self, deps: Deps, watches: Mapping[str, SessionWatch]) -> None:
        self.sight = Sight()
        self._deps = deps
        self._watches = watches
        self.task: asyncio.Task[None] | None = None
        self._is_closing = False
        # Nobody is watched any more, or all is to be closed: no need to wait for the next look.
        self._has_changed = asyncio.Event()

    def begin(self) -> None:
        """Look from now on; nothing happens if that is under way."""
        if self.task is None:
            # There was nobody: whoever is known from now on was read later.
            self.sight.until = monotonic() + _SURE_S
            self.task = asyncio.get_running_loop().create_task(self._run(), name="sign-ins")

    def wake(self) -> None:
        """Have it seen that nobody is watched any more."""
        self._has_changed.set()

    def stop(self) -> None:
        """Let the task end soon."""
        self._is_closing = True
        self._has_changed.set()

    async def _run(self) -> None:
        began = monotonic()
        while True:
            await self._pause(max(_REST_S, began + _LOOK_S - monotonic()))
            if not self._watches or self._is_closing:
                break
            began = monotonic()
            try:
                async with asyncio.timeout(_SURE_S):
                    await self._look()
            except Exception as error:  # noqa: BLE001 - a database that is away comes back.
                log.warning("sign-ins cannot be looked at, each request reads its own: %r", error)
            else:
                self.sight.until = began + _SURE_S
        self.task = None

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._has_changed.wait()
        except TimeoutError:
            pass
        self._has_changed.clear()

    async def _look(self) -> None:
        known: list[lookout.Known] = []
        watches: dict[str, SessionWatch] = {}
        for watch in self._watches.values():
            if watch.token_hash is None:
                # What it reads just now may be older than this look, which does not ask for it.
                watch.doubt()
            else:
                viewer = watch.viewer
                known.append(lookout.Known(watch.token_hash, viewer.roles, viewer.permissions))
                watches[watch.token_hash] = watch
        for token_hash in await lookout.changed_among(self._deps, known):
            watch = watches[token_hash]
            if watch.token_hash == token_hash:
                watch.doubt()
