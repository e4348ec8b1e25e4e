"""The bus of a single process: an in-process hub, logs in a SQLite file."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from services.events import presence
from services.events.base import (
    BusUnavailableError,
    Json,
    Log,
    News,
    NodeUnavailableError,
    Spent,
    Stats,
)
from services.events.calls import Handlers
from services.events.hub import NEWS_OVERHEAD_BYTES, Hub, HubTap, decode, encode
from services.events.store import Retention, Store
from services.events.windows import Windows
from services.events.writer import Writer

_DISK_TIMEOUT_S = 15.0
_RELEASE_INTERVAL_S = 15.0


class _Ring:
    """The newest entries of one log, in memory: all with seq > `floor`, dense, oldest first."""

    __slots__ = ("entries", "epoch", "floor", "size_bytes", "sizes", "used_at")

    def __init__(self, epoch: str, floor: int) -> None:
        self.epoch = epoch
        self.floor = floor
        self.entries: deque[News] = deque()
        self.sizes: deque[int] = deque()
        self.size_bytes = 0
        self.used_at = 0.0

    def add(self, news: News, size_bytes: int) -> None:
        self.entries.append(news)
        self.sizes.append(size_bytes)
        self.size_bytes += size_bytes

    def shrink(self) -> int:
        """Let go of the oldest entry; gives the bytes freed."""
        freed_bytes = self.sizes.popleft()
        self.floor = self.entries.popleft().seq
        self.size_bytes -= freed_bytes
        return freed_bytes

    def after(self, after: int, limit: int | None) -> list[News]:
        first = after - self.floor
        last = len(self.entries) if limit is None else min(first + limit, len(self.entries))
        if first == 0 and last == len(self.entries):
            return list(self.entries)
        return [self.entries[index] for index in range(first, last)]


class _Rings:
    """Rings of the topics in use, bounded per topic and in sum; the longest unused go first."""

    def __init__(self, *, max_items: int, max_bytes: int, total_bytes: int, idle_s: float) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._total_bytes = total_bytes
        self._idle_s = idle_s
        self._rings: OrderedDict[str, _Ring] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._rings)

    def get(self, topic: str) -> _Ring | None:
        return self._rings.get(topic)

    def add(self, news: News, size_bytes: int) -> None:
        ring = self._rings.get(news.topic)
        if (
            ring is None
            or ring.epoch != news.epoch
            or ring.floor + len(ring.entries) + 1 != news.seq
        ):
            self.drop(news.topic)
            ring = self._rings[news.topic] = _Ring(news.epoch, news.seq - 1)
        ring.add(news, size_bytes + NEWS_OVERHEAD_BYTES)
        ring.used_at = time.monotonic()
        self._bytes += size_bytes + NEWS_OVERHEAD_BYTES
        self._rings.move_to_end(news.topic)
        while len(ring.entries) > self._max_items or (
            ring.size_bytes > self._max_bytes and len(ring.entries) > 1
        ):
            self._bytes -= ring.shrink()
        while self._bytes > self._total_bytes and len(self._rings) > 1:
            self.drop(next(iter(self._rings)))

    def drop(self, topic: str) -> None:
        ring = self._rings.pop(topic, None)
        if ring is not None:
            self._bytes -= ring.size_bytes

    def release(self) -> None:
        """Let go of the rings nobody appended to for a while; they are the first in the order."""
        now = time.monotonic()
        while self._rings:
            topic, ring = next(iter(self._rings.items()))
            if ring.used_at + self._idle_s > now:
                return
            self.drop(topic)

    def clear(self) -> None:
        self._rings.clear()
        self._bytes = 0


class LocalBus:
    """The `Bus` of one process.

    Logs live in the SQLite file `path` (in memory only, if None). An entry is on disk, and so
    survives SIGKILL, before `append` returns and before any tap receives it; appends that wait at
    the same time share one commit. The newest entries of topics in use are also kept in memory, at
    most `ring_items` and `ring_bytes` per topic and 64 MB in all, for a minute after the last
    append; older ones are read back from disk.

    The same file gives the same epochs and entries after a restart. A lost file, or one that is
    corrupt (it is then moved aside, and said so in the log), begins new epochs. One process at a
    time may hold the file: `start` raises BusUnavailableError after 5 s otherwise.

    All methods belong to the loop that ran `start`; a closed bus cannot be started again.
    """

    def __init__(
        self,
        path: Path | None,
        node_id: str = "local",
        *,
        retention: Retention | None = None,
        ring_items: int = 1_024,
        ring_bytes: int = 1_048_576,
        ring_idle_s: float = 60.0,
    ) -> None:
        self.node_id = node_id
        self._hub = Hub()
        self._received = 0
        self._handlers = Handlers()
        self._counts = Windows()
        self._budgets = Windows()
        self._members = presence.LocalMembers()
        retention = retention or Retention()
        self._rings = _Rings(
            # No more than the file keeps after a trim, so that both tell the same story.
            max_items=min(ring_items, max(1, retention.max_entries * 9 // 10)),
            max_bytes=min(ring_bytes, retention.max_bytes * 9 // 10),
            total_bytes=64 * 1024 * 1024,
            idle_s=ring_idle_s,
        )
        self._writer = Writer(
            Store(path, retention),
            on_dropped=self._forget_rings,
            on_reset=self._begin_anew,
        )
        self._release_timer: asyncio.TimerHandle | None = None
        self._started_at = 0.0
        self._state = "new"

    @property
    def stats(self) -> Stats:
        """Give the counts of this process; there is no connection that could break."""
        return self._hub.stats(received=self._received, reconnects=0)

    async def start(self) -> None:
        """Open the file and begin to serve. Raises BusUnavailableError if it cannot be opened."""
        if self._state != "new":
            raise RuntimeError("A bus is started once.")
        self._state = "starting"
        await self._writer.start()
        self._state, self._started_at = "running", asyncio.get_running_loop().time()
        self._release()

    async def aclose(self) -> None:
        """Write what waits, close the file and wake all taps with `lost()`. Idempotent."""
        self._state = "closed"
        if self._release_timer is not None:
            self._release_timer.cancel()
        await self._handlers.aclose()
        await self._writer.aclose()
        self._hub.close()
        self._rings.clear()

    async def ping(self) -> None:
        """Return when the disk has answered."""
        self._require_running()
        await self._writer.submit(_nothing, timeout_s=_DISK_TIMEOUT_S)

    async def publish(self, topic: str, data: Json) -> None:
        """Send a signal to everybody attached to `topic`."""
        self._require_running()
        payload = encode(data)
        self._received += 1
        if self._hub.follows(topic):
            self._hub.deliver(News(topic, 0, decode(payload)), len(payload))
            # Readers get their turn, or a busy publisher would overflow every one of them.
            await asyncio.sleep(0)

    async def append(self, topic: str, data: Json) -> int:
        """Write one entry to disk, announce it, and give its sequence number."""
        self._require_running()
        payload = encode(data)

        def announce(written: tuple[str, int]) -> None:
            epoch, seq = written
            self._received += 1
            news = News(topic, seq, decode(payload), epoch)
            self._rings.add(news, len(payload))
            self._hub.deliver(news, len(payload))

        _, seq = await self._writer.submit(
            lambda store: store.append(topic, payload), announce, timeout_s=_DISK_TIMEOUT_S
        )
        return seq

    async def read(self, topic: str, after: int = 0, limit: int | None = None) -> Log:
        """Read the log after `after`, from memory if it reaches back that far, else from disk."""
        self._require_running()
        if after < 0 or (limit is not None and limit < 0):
            raise ValueError("A position and a limit must not be negative.")
        # Even what memory answers gives others their turn: whoever reads in a loop starves nobody.
        await asyncio.sleep(0)
        ring = self._rings.get(topic)
        if ring is not None and ring.floor <= after <= ring.floor + len(ring.entries):
            head = ring.floor + len(ring.entries)
            return Log(ring.epoch, head, True, ring.after(after, limit))
        page = await self._writer.submit(
            lambda store: store.read(topic, after, limit), timeout_s=_DISK_TIMEOUT_S
        )
        return Log(
            page.epoch,
            page.head,
            page.floor <= after <= page.head,
            [News(topic, seq, decode(payload), page.epoch) for seq, payload in page.entries],
        )

    async def expire(self, topic: str, ttl_s: float) -> None:
        """Forget the topic's log `ttl_s` seconds from now (0: at once)."""
        self._require_running()

        def forget(_: None) -> None:
            if ttl_s <= 0:
                self._rings.drop(topic)

        await self._writer.submit(
            lambda store: store.expire(topic, ttl_s), forget, timeout_s=_DISK_TIMEOUT_S
        )

    @asynccontextmanager
    async def attach(
        self, *topics: str, max_items: int = 256, max_bytes: int = 1_048_576
    ) -> AsyncIterator[HubTap]:
        """Attach to topics with a queue of at most `max_items` news and `max_bytes` bytes."""
        self._require_running()
        tap = HubTap(topics, max_items=max_items, max_bytes=max_bytes)
        async with self._hub.attached(tap):
            yield tap

    async def present(self, topic: str, member: str, data: Json, ttl_s: float) -> None:
        """Say that `member` is present at `topic`: as long as this process lives."""
        self._require_running()
        presence.check(topic, member, ttl_s)
        if self._members.join(topic, member, data):
            await self.publish(topic, presence.signal(member, is_present=True))

    async def absent(self, topic: str, member: str) -> None:
        """Say that a member has left."""
        self._require_running()
        if self._members.leave(topic, member):
            await self.publish(topic, presence.signal(member, is_present=False))

    async def members(self, topic: str) -> Mapping[str, Json]:
        """Give who is present at `topic`."""
        self._require_running()
        return self._members.of(topic)

    def serve(self, method: str, handler: Callable[[Json], Awaitable[Json]]) -> None:
        """Answer calls of `method`; handlers run concurrently, at most 1,000 at a time."""
        self._handlers.add(method, handler)

    async def call(self, node_id: str, method: str, data: Json, *, timeout_s: float = 30.0) -> Json:
        """Run this node's own handler; any other node is unknown here."""
        self._require_running()
        if node_id != self.node_id:
            raise NodeUnavailableError(f"Node {node_id} is not alive.")
        return await self._handlers.call(node_id, method, data, timeout_s)

    async def nodes(self) -> set[str]:
        """Give this node's id."""
        self._require_running()
        return {self.node_id}

    def unbroken_since(self) -> float:
        """Give the loop time of the start: there is no other node that could be mistaken."""
        return self._started_at if self._state == "running" else asyncio.get_running_loop().time()

    async def count(self, name: str, window_s: float) -> int:
        """Count one hit on `name` in a window of `window_s` seconds that its first hit began."""
        self._require_running()
        return self._counts.hit(name, window_s)

    async def spend(self, name: str, amount: int, *, limit: int, window_s: float) -> Spent:
        """Spend `amount` of a limit in a window of `window_s` seconds that its first use began."""
        self._require_running()
        return self._budgets.spend(name, amount, limit, window_s)

    def spend_at_once(self, name: str, amount: int, *, limit: int, window_s: float) -> Spent | None:
        """Do as `spend`, unless this bus is not running: that is told by `spend`."""
        if self._state != "running":
            return None
        return self._budgets.spend(name, amount, limit, window_s)

    async def forget(self, name: str) -> None:
        """Set the count of `name` back to nothing."""
        self._require_running()
        self._counts.forget(name)

    def _require_running(self) -> None:
        if self._state != "running":
            raise BusUnavailableError(f"The bus is {self._state}.")

    def _release(self) -> None:
        self._rings.release()
        self._release_timer = asyncio.get_running_loop().call_later(
            _RELEASE_INTERVAL_S, self._release
        )

    def _forget_rings(self, topics: Sequence[str]) -> None:
        for topic in topics:
            self._rings.drop(topic)

    def _begin_anew(self) -> None:
        self._rings.clear()
        self._hub.lose()


def _nothing(_: Store) -> None:
    return None
