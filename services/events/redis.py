"""The bus of many processes: Redis pub/sub for signals, streams for logs."""

import asyncio
import functools
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio.connection import ConnectionPool
from redis.exceptions import NoScriptError, RedisError

from services.events import naming, presence
from services.events.base import (
    BusUnavailableError,
    Json,
    Log,
    News,
    Spent,
    Stats,
)
from services.events.calls import Handlers, RedisCalls, TaskSet
from services.events.hub import Hub, HubTap, decode, encode
from services.events.lane import RUN_ID, Lane, RunId
from services.events.liveness import RedisNodes
from services.events.scripts import APPEND, COUNT, READ, SPEND, Argument, Script
from services.events.store import Retention
from services.events.subscriber import Subscriber
from services.events.wire import Wire

_log = logging.getLogger(__name__)


class RedisBus:
    """The `Bus` of all processes that share a Redis and a `prefix`.

    A process holds three connections: one for all subscriptions, one for short commands and one for
    reading logs, so that a long log delays no append. Commands that wait at the same time share a
    round trip. Every wait on Redis ends within `timeout_s` seconds with BusUnavailableError; no
    command is sent twice. The bus reconnects by itself, and then all taps report lost.

    A log is a stream (ids `seq-0`) and a hash with its epoch, trimmed about `retention` (Redis
    trims whole nodes of a stream, and bytes are judged by the average entry). It begins a new epoch
    when its keys are gone (FLUSHALL, eviction) or Redis was restarted or replaced by another server
    since its last entry.

    `node_id` must be unique among the processes. All methods belong to the loop that ran `start`.
    """

    def __init__(
        self,
        url: str,
        node_id: str,
        prefix: str = "noosphere:",
        *,
        retention: Retention | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        self.node_id = node_id
        self._prefix = prefix
        self._retention = retention or Retention()
        self._timeout_s = timeout_s
        # The pool only makes connections from the URL: each of the three lives as long as the bus.
        self._pool = ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=timeout_s,
            client_name="noosphere-" + re.sub(r"[^\w.-]", "-", node_id, flags=re.ASCII),
        )
        self._commands = Lane(self._wire, timeout_s=timeout_s)
        self._reads = Lane(self._wire, timeout_s=timeout_s)
        self._topic_prefix = f"{prefix}topic:".encode()
        self._handlers = Handlers()
        self._tasks = TaskSet()
        node_prefix = f"{prefix}node:".encode()
        self._calls = RedisCalls(
            node_id,
            self._handlers,
            self._tasks,
            self._execute,
            self.nodes,
            channel_prefix=node_prefix,
            reply_channel=f"{prefix}reply:{secrets.token_hex(8)}".encode(),
        )
        self._hub = Hub()
        self._subscriber = Subscriber(
            self._wire,
            permanent=(self._calls.requests, self._calls.replies),
            on_message=self._receive,
            on_restored=self._restored,
            timeout_s=timeout_s,
        )
        run = functools.partial(self._run, self._commands)
        self._nodes = RedisNodes(
            node_id,
            run,
            key=self._key("nodes"),
            channel_prefix=node_prefix,
            is_subscribed=lambda: self._subscriber.is_ready,
        )
        self._members = presence.RedisMembers(
            run,
            functools.partial(self._run, self._reads),
            key=self._key("members"),
            prefix=f"{prefix}members:",
            channel_prefix=self._topic_prefix,
        )
        self._state = "new"

    @property
    def stats(self) -> Stats:
        """Give the counts of this process."""
        subscriber = self._subscriber
        return self._hub.stats(received=subscriber.received, reconnects=subscriber.reconnects)

    async def start(self) -> None:
        """Connect and begin to serve. Raises BusUnavailableError, and NodeTakenError (`naming`)."""
        if self._state != "new":
            raise RuntimeError("A bus is started once.")
        self._state = "running"
        self._tasks.start(self._commands.run(), name="redis commands")
        self._tasks.start(self._reads.run(), name="redis reads")
        try:
            await naming.until_free(self.node_id, self._calls.requests, self._execute, self.nodes)
            self._tasks.start(self._subscriber.run(), name="redis subscriber")
            await self._nodes.beat()
            async with asyncio.timeout(self._timeout_s):
                await self._subscriber.wait_ready()
        except BaseException as error:
            await self.aclose()
            if isinstance(error, TimeoutError):
                raise BusUnavailableError("Redis did not accept the subscriptions.") from error
            raise
        self._tasks.start(self._nodes.keep(), name="redis heartbeat")
        self._tasks.start(self._members.keep(), name="redis presence")

    async def aclose(self) -> None:
        """Say goodbye to the other nodes, close the connections and wake all taps. Idempotent."""
        if self._state == "closed":
            return
        was_running, self._state = self._state == "running", "closed"
        await self._handlers.aclose()
        if was_running:
            await self._members.aclose()
            try:
                async with asyncio.timeout(1.0):
                    await self._commands.execute("ZREM", self._key("nodes"), self.node_id)
            except (BusUnavailableError, RedisError, TimeoutError):
                _log.info("Redis was not told that this node closes; its heartbeat will lapse")
        await self._tasks.aclose()
        self._calls.close()
        self._hub.close()
        await self._pool.aclose()

    async def ping(self) -> None:
        """Return when Redis has answered, to commands and to subscriptions."""
        self._require_running()
        await self._execute("PING")
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._subscriber.wait_ready()
        except TimeoutError as error:
            raise BusUnavailableError("The subscriptions to Redis are broken.") from error

    async def publish(self, topic: str, data: Json) -> None:
        """Send a signal to everybody attached to `topic`, in any process."""
        self._require_running()
        await self._execute("PUBLISH", self._channel(topic), b"0 - " + encode(data))

    async def append(self, topic: str, data: Json) -> int:
        """Write one entry to the topic's stream, announce it, and give its sequence number."""
        self._require_running()
        seq: int = await self._run(
            self._commands,
            APPEND,
            [self._key("meta", topic), self._key("log", topic)],
            self._channel(topic),
            encode(data),
            secrets.token_hex(8),
            RUN_ID,
            self._retention.max_entries,
            self._retention.max_bytes,
            _milliseconds(self._retention.idle_s),
        )
        return seq

    async def read(self, topic: str, after: int = 0, limit: int | None = None) -> Log:
        """Read the log after `after`, oldest first, at most `limit` entries."""
        self._require_running()
        if after < 0 or (limit is not None and limit < 0):
            raise ValueError("A position and a limit must not be negative.")
        name, floor, head, rows = await self._run(
            self._reads,
            READ,
            [self._key("meta", topic), self._key("log", topic)],
            after,
            -1 if limit is None else limit,
        )
        epoch = name.decode()
        return Log(
            epoch,
            head,
            floor <= after <= head,
            [
                News(topic, int(entry.partition(b"-")[0]), decode(fields[1]), epoch)
                for entry, fields in rows
            ],
        )

    async def expire(self, topic: str, ttl_s: float) -> None:
        """Forget the topic's log `ttl_s` seconds from now (0: at once)."""
        self._require_running()
        keys = (self._key("meta", topic), self._key("log", topic))
        if ttl_s <= 0:
            await self._execute("DEL", *keys)
        else:
            # If only one is gone, a reader finds its position trimmed, and an append begins anew.
            for key in reversed(keys):
                await self._execute("PEXPIRE", key, _milliseconds(ttl_s))

    @asynccontextmanager
    async def attach(
        self, *topics: str, max_items: int = 256, max_bytes: int = 1_048_576
    ) -> AsyncIterator[HubTap]:
        """Attach to topics; enters once Redis has acknowledged the subscriptions."""
        self._require_running()
        tap = HubTap(topics, max_items=max_items, max_bytes=max_bytes)
        channels = [self._channel(topic) for topic in tap.topics]
        # The tap joins the hub first: what is acknowledged may deliver before this task runs.
        async with self._hub.attached(tap):
            await self._subscriber.hold(channels)
            try:
                yield tap
            finally:
                self._subscriber.release(channels)

    async def present(self, topic: str, member: str, data: Json, ttl_s: float) -> None:
        """Say that `member` is present at `topic`."""
        self._require_running()
        presence.check(topic, member, ttl_s)
        await self._members.join(topic, member, data, ttl_s)

    async def absent(self, topic: str, member: str) -> None:
        """Say that a member of this process has left."""
        self._require_running()
        await self._members.leave(topic, member)

    async def members(self, topic: str) -> Mapping[str, Json]:
        """Give who is present at `topic`, by the clock of Redis."""
        self._require_running()
        return await self._members.of(topic)

    def serve(self, method: str, handler: Callable[[Json], Awaitable[Json]]) -> None:
        """Answer calls of `method`; handlers run concurrently, at most 1,000 at a time."""
        self._handlers.add(method, handler)

    async def call(self, node_id: str, method: str, data: Json, *, timeout_s: float = 30.0) -> Json:
        """Ask the node `node_id`.

        A node that is not subscribed is found dead at once, one that dies before it answers within
        some ten seconds.
        """
        self._require_running()
        return await self._calls.call(node_id, method, data, timeout_s)

    async def nodes(self) -> set[str]:
        """Give the ids of the nodes alive: a killed one leaves within 3 s, a silent one within 8.

        After an outage of Redis, those alive before it are given until they must have come back.
        """
        self._require_running()
        return await self._nodes.alive()

    def unbroken_since(self) -> float:
        """Give the loop time since which no other node had reason to take this one for dead."""
        if self._state != "running":
            return asyncio.get_running_loop().time()
        return self._nodes.unbroken_since()

    async def count(self, name: str, window_s: float) -> int:
        """Count one hit on `name` in a window of `window_s` seconds that its first hit began."""
        self._require_running()
        hits: int = await self._run(
            self._commands, COUNT, [self._key("count", name)], _milliseconds(window_s)
        )
        return hits

    async def spend(self, name: str, amount: int, *, limit: int, window_s: float) -> Spent:
        """Spend `amount` of a limit in a window of `window_s` seconds that its first use began."""
        self._require_running()
        key, window_ms = self._key("budget", name), _milliseconds(window_s)
        is_granted, total, ends_ms, left_ms = await self._run(
            self._commands, SPEND, [key], amount, limit, window_ms
        )
        return Spent(total, ends_ms / 1000 or None, left_ms / 1000, is_granted=bool(is_granted))

    def spend_at_once(self, name: str, amount: int, *, limit: int, window_s: float) -> Spent | None:
        """Give None: Redis counts, and is always waited for."""

    async def forget(self, name: str) -> None:
        """Set the count of `name` back to nothing."""
        self._require_running()
        await self._execute("DEL", self._key("count", name))

    def _require_running(self) -> None:
        if self._state != "running":
            raise BusUnavailableError(f"The bus is {self._state}.")

    def _wire(self) -> Wire:
        return Wire(self._pool.make_connection())  # type: ignore[no-untyped-call]

    def _key(self, kind: str, name: str = "") -> str:
        return f"{self._prefix}{kind}:{name}" if name else f"{self._prefix}{kind}"

    def _channel(self, topic: str) -> bytes:
        return self._topic_prefix + topic.encode()

    async def _execute(self, *arguments: Argument | RunId) -> Any:
        try:
            return await self._commands.execute(*arguments)
        except RedisError as error:
            raise BusUnavailableError(f"Redis refused a command: {error}") from error

    async def _run(
        self, lane: Lane, script: Script, keys: list[str], *arguments: Argument | RunId
    ) -> Any:
        try:
            try:
                return await lane.execute("EVALSHA", script.sha, len(keys), *keys, *arguments)
            except NoScriptError:
                # Not executed: this Redis does not know the script yet, or forgot it.
                return await lane.execute("EVAL", script.source, len(keys), *keys, *arguments)
        except RedisError as error:
            raise BusUnavailableError(f"Redis refused a script: {error}") from error

    def _restored(self) -> None:
        self._nodes.doubt()
        self._hub.lose()
        self._members.wake()

    def _receive(self, channel: bytes, message: bytes) -> None:
        if channel.startswith(self._topic_prefix):
            topic = channel[len(self._topic_prefix) :].decode()
            if self._hub.follows(topic):
                seq, epoch, payload = message.split(b" ", 2)
                number = int(seq)
                news = News(topic, number, decode(payload), epoch.decode() if number else "")
                self._hub.deliver(news, len(payload))
        elif channel == self._calls.requests and self._state == "running":
            self._calls.answer(message)
        elif channel == self._calls.replies:
            self._calls.settle(message)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
