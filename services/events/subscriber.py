"""The one pub/sub connection of a process: channels held by count, reconnected for ever."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from services.events.base import BusUnavailableError
from services.events.wire import Wire, pack

_log = logging.getLogger(__name__)

_TICK_S = 2.0
_SILENCE_S = 10.0
_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 5.0
_CHANNELS_PER_COMMAND = 500
_TURN, _TURN_S = 16, 0.005


class Subscriber:
    """Receives what is published on the channels that somebody holds, and on the permanent ones.

    While connected, what is published after `hold` returned is given to `on_message`, in the order
    of Redis. After a broken connection all channels are subscribed again and then `on_restored`
    is called: what was published between is lost. A channel nobody holds any more is unsubscribed
    within some seconds, so that readers that come and go cost Redis nothing.
    """

    def __init__(
        self,
        make: Callable[[], Wire],
        *,
        permanent: Iterable[bytes],
        on_message: Callable[[bytes, bytes], None],
        on_restored: Callable[[], None],
        timeout_s: float,
    ) -> None:
        self._make = make
        self._on_message = on_message
        self._on_restored = on_restored
        self._timeout_s = timeout_s
        # The permanent channels keep the connection in pub/sub mode when nobody follows anything.
        self._holders: dict[bytes, int] = dict.fromkeys(permanent, 1)
        self._waiters: dict[bytes, list[asyncio.Future[None]]] = {}
        # Of the present connection: to be subscribed, asked for and not answered yet (with those
        # that `on_restored` waits for), subscribed, and subscribed though nobody holds them.
        self._unsent: dict[bytes, None] = {}
        self._sent: set[bytes] = set()
        self._missing: set[bytes] = set()
        self._acknowledged: set[bytes] = set()
        self._unheld: set[bytes] = set()
        self._has_work = asyncio.Event()
        self._is_ready = asyncio.Event()
        self._was_ready = False
        self._heard_at = 0.0
        # Since the start: messages that came, and connections that took the place of a broken one.
        self.received = 0
        self.reconnects = 0

    @property
    def is_ready(self) -> bool:
        """Whether all channels held are subscribed."""
        return self._is_ready.is_set()

    async def wait_ready(self) -> None:
        """Return when all channels held are subscribed."""
        await self._is_ready.wait()

    async def hold(self, channels: Iterable[bytes]) -> None:
        """Begin to receive `channels`; returns when Redis has acknowledged.

        Raises BusUnavailableError, and holds nothing, if that takes longer than the time limit.
        """
        channels = list(channels)
        waiters: list[asyncio.Future[None]] = []
        for channel in channels:
            self._holders[channel] = self._holders.get(channel, 0) + 1
            self._unheld.discard(channel)
            if channel not in self._sent:
                self._unsent[channel] = None
            if channel not in self._acknowledged:
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.setdefault(channel, []).append(waiter)
                waiters.append(waiter)
        if not waiters:
            return
        self._has_work.set()
        try:
            async with asyncio.timeout(self._timeout_s):
                for waiter in waiters:
                    await waiter
        except BaseException as error:
            for waiter in waiters:
                waiter.cancel()
            for channel in channels:
                self._waiters[channel] = [
                    waiter for waiter in self._waiters.get(channel, ()) if not waiter.done()
                ]
            self.release(channels)
            if isinstance(error, TimeoutError):
                raise BusUnavailableError(
                    f"Redis did not acknowledge a subscription in {self._timeout_s:g} s."
                ) from error
            raise

    def release(self, channels: Iterable[bytes]) -> None:
        """Let go of `channels`, each held once less."""
        for channel in channels:
            self._holders[channel] -= 1
            if not self._holders[channel]:
                del self._holders[channel]
                self._waiters.pop(channel, None)
                self._unsent.pop(channel, None)
                self._missing.discard(channel)
                if channel in self._sent:
                    self._unheld.add(channel)

    async def run(self) -> None:
        """Serve until cancelled, reconnecting with growing, jittered delays."""
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                await self._session()
            except* (RedisError, OSError, TimeoutError) as errors:
                _log.warning("The subscriptions to Redis broke: %s", errors.exceptions[0])
            except* Exception:  # noqa: BLE001 - a process outlives whatever one connection did.
                _log.exception("The subscriptions to Redis broke unexpectedly")
            if self._is_ready.is_set():
                delay_s = _FIRST_DELAY_S
            self._is_ready.clear()
            self._acknowledged.clear()
            # Jitter keeps many processes from coming back to a weak server at the same moment.
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret.
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    async def _session(self) -> None:
        wire = self._make()
        try:
            async with asyncio.timeout(self._timeout_s):
                await wire.open()
            self._unsent = dict.fromkeys(self._holders)
            self._missing = set(self._holders)
            self._sent.clear()
            self._acknowledged.clear()
            self._unheld.clear()
            self._heard_at = asyncio.get_running_loop().time()
            self._has_work.set()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(wire), name="redis subscriptions")
                group.create_task(self._tend(wire), name="redis subscription keeper")
        finally:
            await wire.close()

    async def _receive(self, wire: Wire) -> None:
        now = asyncio.get_running_loop().time
        while True:
            # No limit of its own: `_tend` pings, and breaks a connection that stays silent.
            replies = await wire.receive()
            self._heard_at = turn_at = now()
            for number, reply in enumerate(replies, 1):
                if number % _TURN == 0 and now() - turn_at > _TURN_S:
                    # A burst is handed on in portions that its readers can send meanwhile.
                    await asyncio.sleep(0)
                    turn_at = now()
                if not isinstance(reply, list):
                    if isinstance(reply, RedisError):
                        raise reply
                elif reply[0] == b"message":
                    self.received += 1
                    try:
                        self._on_message(reply[1], reply[2])
                    except Exception:  # noqa: BLE001 - one bad message must not stop the others.
                        _log.exception("A message of Redis could not be delivered")
                elif reply[0] == b"subscribe":
                    self._acknowledge(reply[1])

    def _acknowledge(self, channel: bytes) -> None:
        self._acknowledged.add(channel)
        for waiter in self._waiters.pop(channel, ()):
            if not waiter.done():
                waiter.set_result(None)
        self._missing.discard(channel)
        if not self._missing and not self._is_ready.is_set():
            self._is_ready.set()
            if self._was_ready:
                self.reconnects += 1
                self._on_restored()
            self._was_ready = True

    async def _tend(self, wire: Wire) -> None:
        """Subscribe what is held, unsubscribe what is not, ping, and notice silence."""
        now = asyncio.get_running_loop().time
        next_tick = now() + _TICK_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_tick):
                    await self._has_work.wait()
            self._has_work.clear()
            wanted = list(self._unsent)
            self._unsent.clear()
            self._sent.update(wanted)
            await self._send(wire, b"SUBSCRIBE", wanted)
            if now() < next_tick:
                continue
            next_tick = now() + _TICK_S
            if now() - self._heard_at > _SILENCE_S:
                raise RedisConnectionError(f"Redis was silent for {_SILENCE_S:g} s.")
            # One that is not yet acknowledged waits for the next tick: its late acknowledgement
            # would be taken for that of a new subscription.
            unwanted = list(self._unheld & self._acknowledged)
            self._unheld.difference_update(unwanted)
            self._sent.difference_update(unwanted)
            self._acknowledged.difference_update(unwanted)
            await self._send(wire, b"UNSUBSCRIBE", unwanted)
            await self._send(wire, b"PING", [b""])

    async def _send(self, wire: Wire, name: bytes, channels: list[bytes]) -> None:
        for first in range(0, len(channels), _CHANNELS_PER_COMMAND):
            async with asyncio.timeout(self._timeout_s):
                await wire.send(pack(name, *channels[first : first + _CHANNELS_PER_COMMAND]))
