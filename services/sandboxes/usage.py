"""What live sandboxes use: sampled by the node that hosts them, followed by whoever looks.

Every sample of a sandbox that somebody looks at is kept; of others one in twelve.
"""

import asyncio
import logging
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select

from models.base import now, row_columns, rows_of
from models.sandboxes import Sandbox, SandboxUsage
from models.states import SandboxStatus
from sandbox.base import ResourceUsage
from sandbox.errors import SandboxError
from services import access
from services.base import Deps, Viewer, work
from services.errors import RequestError, UserError, UserErrorCode
from services.events.base import Json
from services.events.calls import TaskSet
from services.sandboxes.live import Live
from services.sandboxes.operations import attachment, operation

if TYPE_CHECKING:
    from services.sandboxes.node import Node

log = logging.getLogger("noosphere.sandboxes")
_TAKE_S = 10.0
_ASK_S = 15.0
_AT_ONCE = 8
# In intervals: how long a look lasts, and how rarely what nobody looks at is sampled.
_LOOK = 3
_QUIET = 12
_PRUNE_S = 600.0
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """What a sandbox had used at some time; None where nothing counts it.

    `cpu_ms`, `rx` and `tx` are totals since it was made, the latter in bytes over its network.
    """

    at: datetime
    cpu_ms: int | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    disk_bytes: int | None = None
    rx: int | None = None
    tx: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `from_json`."""
        return {**asdict(self), "at": self.at.isoformat()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Sample":
        """The sample that `to_json` told of."""
        return cls(**{**value, "at": datetime.fromisoformat(value["at"])})


class Meter:
    """Samples the sandboxes of a node. `clock` gives seconds that never go back."""

    def __init__(self, node: "Node", *, clock: Callable[[], float] = time.monotonic) -> None:
        self._node = node
        self._clock = clock
        self._interval_s = node.deps.options.sandbox_usage_interval_s
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._last: dict[str, tuple[float, Sample]] = {}
        self._looked: dict[str, float] = {}
        self._kept: dict[str, float] = {}
        self._pruned_at = float("-inf")

    async def run(self) -> None:
        """Sample what is due again and again, until cancelled."""
        while True:
            try:
                await self.tick()
                if self._clock() - self._pruned_at >= _PRUNE_S:
                    self._pruned_at = self._clock()
                    await prune(self._node.deps)
            except Exception:
                log.exception("sandboxes were not sampled; trying again")
            await asyncio.sleep(self._interval_s)

    async def look(self, live: Live) -> Sample:
        """Give what a sandbox uses now, and go on looking for a while.

        Whoever looks within half an interval sees the same. Raises SandboxError, TimeoutError.
        """
        self._looked[live.sandbox_id] = self._clock()
        return await self._take(live)

    async def tick(self) -> int:
        """Take and keep the samples that are due; gives how many were kept."""
        room = asyncio.Semaphore(_AT_ONCE)

        async def take(live: Live) -> Sample | None:
            async with room:
                try:
                    return await self._take(live)
                except (SandboxError, TimeoutError) as error:
                    log.info("no sample: %s", error, extra={"sandbox_id": live.sandbox_id})
                    return None

        due = [live for live in list(self._node.live.values()) if self._is_due(live)]
        async with asyncio.TaskGroup() as group:
            taken = {live.sandbox_id: group.create_task(take(live)) for live in due}
        found = {id_: task.result() for id_, task in taken.items()}
        return await self._keep({id_: sample for id_, sample in found.items() if sample})

    def forget(self, live: Live) -> None:
        """Let go of what is known of a sandbox that ends."""
        for known in (self._last, self._looked, self._kept):
            known.pop(live.sandbox_id, None)

    def _is_due(self, live: Live) -> bool:
        if live.is_ending:
            return False
        at = self._clock()
        looked = self._looked.get(live.sandbox_id, float("-inf"))
        if at - looked <= _LOOK * self._interval_s:
            return True
        kept = self._kept.get(live.sandbox_id, float("-inf"))
        return not live.is_paused and at - kept >= _QUIET * self._interval_s

    async def _take(self, live: Live) -> Sample:
        lock = self._locks.setdefault(live.sandbox_id, asyncio.Lock())
        async with asyncio.timeout(_TAKE_S), lock:
            known = self._last.get(live.sandbox_id)
            if known is not None and self._clock() - known[0] < self._interval_s / 2:
                return known[1]
            usage = await self._node.driver.stats(live.driver_id)
            sample = _sample(usage, await self._disk(live, usage))
            if not live.is_ending:
                self._last[live.sandbox_id] = (self._clock(), sample)
            return sample

    async def _disk(self, live: Live, usage: ResourceUsage) -> int | None:
        """Ask the agent where the driver does not see the workspace; a frozen one cannot say."""
        if usage.disk_bytes is not None or live.client is None or live.is_paused:
            return usage.disk_bytes
        return (await live.client.files.measure()).bytes

    async def _keep(self, samples: Mapping[str, Sample]) -> int:
        if not samples:
            return 0
        async with work(self._node.deps) as unit:
            unit.session.add_all(
                SandboxUsage(sandbox_id=sandbox_id, **asdict(sample))
                for sandbox_id, sample in samples.items()
            )
        at = self._clock()
        self._kept.update(dict.fromkeys(samples.keys() & self._node.live.keys(), at))
        return len(samples)


def _sample(usage: ResourceUsage, disk_bytes: int | None) -> Sample:
    return Sample(
        at=now(),
        cpu_ms=None if usage.cpu_ms is None else round(usage.cpu_ms),
        memory_bytes=usage.memory_bytes,
        pids=usage.pids,
        disk_bytes=disk_bytes,
        rx=usage.net_rx,
        tx=usage.net_tx,
    )


async def prune(deps: Deps) -> int:
    """Drop samples that are older than they are kept; gives how many."""
    before = now() - timedelta(seconds=deps.options.sandbox_usage_retention_s)
    dropped = 0
    while True:
        async with deps.db.reading() as connection:
            old = (
                await connection.scalars(
                    select(SandboxUsage.id).where(SandboxUsage.at < before).limit(_BATCH)
                )
            ).all()
        if old:
            async with work(deps) as unit:
                await unit.session.execute(delete(SandboxUsage).where(SandboxUsage.id.in_(old)))
            dropped += len(old)
        if len(old) < _BATCH:
            return dropped


async def follow(deps: Deps, viewer: Viewer, sandbox_id: str) -> AsyncGenerator[Sample, None]:
    """Give what a sandbox uses, now and at every interval, until it ends or is out of sight.

    Of one that has ended before, the last that is known is given. Consume it through
    `contextlib.aclosing`. Raises UnauthenticatedError for an anonymous viewer, RequestError
    NOT_FOUND when the viewer cannot see the sandbox.
    """
    _ = viewer.id
    row = await _visible(deps, viewer, sandbox_id)
    if row is None:
        raise RequestError("NOT_FOUND", "There is no such sandbox.")
    if not row.status.is_live:
        ended = await _last(deps, sandbox_id)
        if ended is not None:
            yield ended
        return
    last: Sample | None = None
    while row is not None and row.status.is_live:
        if row.status is not SandboxStatus.CREATING:
            sample = await _ask(deps, row)
            if sample is not None and sample != last:
                last = sample
                yield sample
        await asyncio.sleep(deps.options.sandbox_usage_interval_s)
        row = await _visible(deps, viewer, sandbox_id)


async def _visible(deps: Deps, viewer: Viewer, sandbox_id: str) -> Sandbox | None:
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(*row_columns(Sandbox)).where(
                Sandbox.id == sandbox_id, access.visible(Sandbox, viewer)
            )
        )
        return next(iter(rows_of(Sandbox, found)), None)


async def _last(deps: Deps, sandbox_id: str) -> Sample | None:
    columns = [getattr(SandboxUsage, name) for name in Sample.__dataclass_fields__]
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(*columns)
            .where(SandboxUsage.sandbox_id == sandbox_id)
            .order_by(SandboxUsage.at.desc(), SandboxUsage.id.desc())
            .limit(1)
        )
        return next((Sample(*values) for values in found), None)


async def _ask(deps: Deps, row: Sandbox) -> Sample | None:
    """Ask the host of a sandbox; None while it does not answer, or the sandbox is ending."""
    try:
        return Sample.from_json(await deps.sandboxes.ask(row, "usage", wait_s=_ASK_S))
    except UserError as error:
        log.info("usage is not known: %s", error, extra={"sandbox_id": row.id})
        return None


_METERS: "weakref.WeakKeyDictionary[Node, Meter]" = weakref.WeakKeyDictionary()


@operation("usage")
async def _usage(node: "Node", sandbox_id: str, request: Json) -> dict[str, Any]:
    live = node.live.get(sandbox_id)
    if live is None or live.is_ending:
        raise UserError(UserErrorCode.CONFLICT, "The sandbox has ended.", ("sandbox_id",))
    return (await _METERS[node].look(live)).to_json()


@attachment
@asynccontextmanager
async def _metering(node: "Node") -> AsyncIterator[None]:
    meter = _METERS[node] = Meter(node)
    tasks = TaskSet()
    node.on_ending.append(meter.forget)
    tasks.start(meter.run(), name="usage of sandboxes")
    try:
        yield
    finally:
        await tasks.aclose()
