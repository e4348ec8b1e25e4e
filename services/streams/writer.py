"""Writing a growing text: gathered, sent every few milliseconds, stored every few seconds."""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import SQLAlchemyError

from services import tasks
from services.base import Deps
from services.events.base import BusUnavailableError
from services.streams.pace import Pace
from services.streams.texts import append_text

log = logging.getLogger("noosphere.streams")
# How long a writer waits before it tries a bus again that did not answer.
_AWAY_S = 0.5
# Whoever sent within so long was not taken for dead since.
_TRUSTED_S = 4.0
# Leases are renewed more often; those that were not for this part of their time are in danger.
_LEASE_PART = 0.5
# Turns of the loop in which what has gathered on a connection is read.
_READING_TURNS = 4


class TextWriter:
    """Gathers the small pieces of one growing text and sends them every few milliseconds.

    `run()` must be running beside the writer. The coalescing window is `options.text_flush_ms`, and
    longer while the process has more to do than it can (`Pace`): `write` then holds its caller back
    until the window ends, so that what it reads from gathers, too, and is read in one go. About
    every `options.text_checkpoint_s` seconds `checkpoint(text)` stores what is new, writers that
    began together at different times. A bus that is away only delays the sending, and followers get
    the text from where it is stored; a database that is away only delays the storing.

    A writer that goes on after a crash begins with the `text` sent so far. What it is given from
    `replay_from` on is compared with that text and not sent again, as long as it is the same; where
    it differs, `rewind(text)` is called with the part that holds; it stores that and gives the key
    under which writing goes on from there.

    Whatever `checkpoint` and `rewind` raise, except that the database is away, ends the writing:
    so they refuse one whose text was given to another. After a silence in which that may have
    happened (heartbeats were late, or the lease could have run out) nothing is sent before
    `checkpoint` was asked.
    """

    def __init__(
        self,
        deps: Deps,
        topic: str,
        key: str,
        *,
        checkpoint: Callable[[str], Awaitable[None]],
        rewind: Callable[[str], Awaitable[str]] | None = None,
        text: str = "",
        replay_from: int | None = None,
    ) -> None:
        self._deps, self._topic, self._key = deps, topic, key
        self._checkpoint, self._rewind = checkpoint, rewind
        self._sent = text
        # What was sent before a crash need not have been stored.
        self._stored = None if text else ""
        self.text = text if replay_from is None else text[:replay_from]
        self._head = 0
        self._is_away = False
        self._sent_at = self._held_at = asyncio.get_running_loop().time()
        self._pending = asyncio.Event()
        self._rested: asyncio.Event | None = None
        self._sending = asyncio.Lock()
        self._storing = asyncio.Lock()

    async def write(self, piece: str) -> None:
        """Add a piece to the text. Raises what `rewind` raises.

        Waits while the process is late; a caller that is cancelled meanwhile has added the piece.
        """
        self.text += piece
        if len(self.text) > len(self._sent):
            self._pending.set()
            if self._rested is not None:
                await self._rested.wait()
        elif not self._sent.startswith(self.text):
            async with self._sending:
                await self._diverge()

    async def run(self) -> None:
        """Send and store what gathers until cancelled. Raises what `rewind` raises."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_sending())
            group.create_task(self._keep_storing())

    async def _keep_sending(self) -> None:
        base_s = self._deps.options.text_flush_ms / 1000
        pace = Pace(base_s)
        while True:
            await self._pending.wait()
            if not await self.flush():
                await asyncio.sleep(max(base_s, _AWAY_S))
                continue
            window_s = pace.window_s
            # Not the loop's clock: that stands still while a turn takes long.
            until = time.monotonic() + window_s
            if pace.is_stretched:
                await self._rest(window_s)
            else:
                await asyncio.sleep(window_s)
            pace.woke(time.monotonic() - until)

    async def _rest(self, seconds: float) -> None:
        """Sleep, and hold back whoever writes; then let them read on before the next sending."""
        self._rested = asyncio.Event()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._rested.set()
            self._rested = None
        for _ in range(_READING_TURNS):
            await asyncio.sleep(0)

    async def _keep_storing(self) -> None:
        while True:
            # Many texts begin together; stored at the same moments, they would wait for each other.
            spread = random.uniform(0.5, 1.5)  # noqa: S311 - guards nothing.
            await asyncio.sleep(self._deps.options.text_checkpoint_s * spread)
            await self.store()

    async def flush(self) -> bool:
        """Send what has gathered; False when the bus does not answer. Nothing is lost then."""
        async with self._sending:
            self._pending.clear()
            if len(self.text) > len(self._sent) and not self.text.startswith(self._sent):
                await self._diverge()
            text, start = self.text, len(self._sent)
            if len(text) <= start:
                return True
            if not await self._is_trusted(text):
                self._pending.set()
                return False
            # Not the time of the answer: a process may stall before it hears of it.
            sent_at = asyncio.get_running_loop().time()
            try:
                head = await append_text(self._deps, self._topic, self._key, start, text[start:])
                if head <= self._head:
                    # The log began anew (Redis lost it): it is made whole again.
                    head = await append_text(self._deps, self._topic, self._key, 0, text)
            except BusUnavailableError as error:
                self._pending.set()
                if not self._is_away:
                    log.warning("text is sent later: %s", error, extra={"topic": self._topic})
                self._is_away = True
                return False
            self._head, self._sent, self._is_away = head, text, False
            self._sent_at = sent_at
            return True

    async def _is_trusted(self, text: str) -> bool:
        """Tell whether the text is surely still this writer's; raises if it is not."""
        now = asyncio.get_running_loop().time()
        if now - self._sent_at < _TRUSTED_S:
            return True
        held_at = max(self._held_at, tasks.renewed_at(self._deps))
        is_held = now - held_at < self._deps.options.task_lease_s * _LEASE_PART
        if is_held and self._deps.bus.unbroken_since() <= self._sent_at:
            return True
        try:
            async with self._storing:
                await self._ask(text)
        except SQLAlchemyError as error:
            log.warning("text is sent later: %s", error, extra={"topic": self._topic})
            return False
        return True

    async def _ask(self, text: str) -> None:
        asked_at = asyncio.get_running_loop().time()
        await self._checkpoint(text)
        self._stored, self._held_at = text, asked_at

    async def store(self) -> bool:
        """Store what there is, unless it is stored; False when the database does not answer."""
        async with self._storing:
            # While a crash is made good for, the text sent before is longer than the one at hand.
            text = self.text if self.text.startswith(self._sent) else self._sent
            if text == self._stored:
                return True
            try:
                await self._ask(text)
            except SQLAlchemyError as error:
                log.warning("text is stored later: %s", error, extra={"topic": self._topic})
                return False
            return True

    async def settle(self) -> None:
        """Send the rest; the text is complete as it is, whatever was sent before a crash.

        What a bus that is away did not take, followers get from where the caller stores it.
        """
        await self.flush()
        async with self._sending:
            if len(self._sent) > len(self.text):
                await self._diverge()

    async def _diverge(self) -> None:
        pairs = zip(self.text, self._sent, strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        kept = self._sent[:same]
        async with self._storing:
            if self._rewind is not None:
                self._key = await self._rewind(kept)
            self._sent = self._stored = kept
        if len(self.text) > len(kept):
            self._pending.set()
