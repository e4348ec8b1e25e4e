"""Sandboxes kept ready, so that whoever asks for one need not wait until it is made.

None of them has run anything, and none comes back: what is claimed is its owner's until it ends.
"""

import asyncio
import hashlib
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from sandbox.base import Capabilities, SandboxDriver, SandboxSpec, require
from sandbox.client import SandboxClient
from sandbox.errors import SandboxError
from services.events.calls import TaskSet
from services.sandboxes.live import Ready

log = logging.getLogger("noosphere.sandboxes")
PREFIX = "pool-"
_LOOK_S = 5.0
_REST_S = 0.05
_MAKE_S = 120.0
_REMOVE_S = 8.0
# A claimed one may be furnished for so long before the node that claimed it shows it.
HANDED_S = 300.0
_FAILURES = 3
_OPEN_S = 30.0
_OPEN_MAX_S = 600.0


def key_of(spec: SandboxSpec) -> str:
    """Name the kind of a sandbox: image, policy without environment, limits, where files lie.

    64 hexadecimal digits. The environment is no part of it, because it is given to executions.
    """
    parts = [
        spec.image_digest or spec.image,
        spec.policy.to_json(with_env=False),
        asdict(spec.limits),
        spec.disk,
        spec.accepts_per_process,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(slots=True)
class Breaker:
    """Lets a thing be tried again and again, until it has failed three times in a row.

    Then not for 30 seconds; after that a single attempt at a time, each failure of which doubles
    the wait, up to ten minutes. A success closes it. Times are those of any steady clock.
    """

    failures: int = 0
    wait_s: float = 0.0
    opens_at: float | None = None
    is_trying: bool = False

    def allows(self, at: float) -> bool:
        """Tell whether an attempt may begin."""
        if self.opens_at is None:
            return True
        return at >= self.opens_at and not self.is_trying

    def begin(self) -> None:
        """Note that an attempt begins."""
        self.is_trying = self.opens_at is not None

    def succeed(self) -> None:
        """Note that an attempt succeeded."""
        self.failures, self.wait_s, self.opens_at, self.is_trying = 0, 0.0, None, False

    def fail(self, at: float) -> None:
        """Note that an attempt failed; one that began before it opened changes nothing more."""
        self.failures += 1
        if self.failures < _FAILURES or (self.opens_at is not None and not self.is_trying):
            return
        self.is_trying = False
        self.wait_s = min(2 * self.wait_s, _OPEN_MAX_S) if self.wait_s else _OPEN_S
        self.opens_at = at + self.wait_s

    def give_up(self) -> None:
        """Note that an attempt was broken off, which tells nothing."""
        self.is_trying = False

    @property
    def is_open(self) -> bool:
        """Whether it waits, or tries a single time."""
        return self.opens_at is not None


@dataclass(slots=True)
class PoolStats:
    """Counts since the start. A miss is a claim of a kind that is kept, when none was ready."""

    hits: int = 0
    misses: int = 0
    others: int = 0
    made: int = 0
    failures: int = 0
    lost: int = 0
    ended: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A kind of sandbox, and how many of it shall be ready.

    Id, labels and environment of the spec do not count.
    """

    spec: SandboxSpec
    size: int


@dataclass(slots=True)
class _Kind:
    spec: SandboxSpec
    size: int = 0
    ready: deque[Ready] = field(default_factory=deque)
    making: int = 0
    breaker: Breaker = field(default_factory=Breaker)


class WarmPool:
    """The sandboxes that one node keeps ready with its driver; see `live.Pool`.

    `labels` go on every one of them. At most `refills` are made at once. `on_leftover` is told of
    one that could not be removed. `clock` gives seconds that never go back.
    """

    def __init__(
        self,
        driver: SandboxDriver,
        *,
        labels: Mapping[str, str] | None = None,
        refills: int = 2,
        on_leftover: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._driver = driver
        self._labels = dict(labels or {})
        self._refills = refills
        self._on_leftover = on_leftover
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}
        self._making: set[str] = set()
        self._ending: set[str] = set()
        self._handed: dict[str, float] = {}
        self._capabilities: Capabilities | None = None
        self._tasks = TaskSet()
        self._news = asyncio.Event()
        self._filled = asyncio.Event()
        self.stats = PoolStats()

    # What is kept.

    @property
    def wanted(self) -> int:
        """How many shall be ready."""
        return sum(kind.size for kind in self._kinds.values())

    @property
    def ready(self) -> int:
        """How many are ready."""
        return sum(len(kind.ready) for kind in self._kinds.values())

    @property
    def making(self) -> int:
        """How many are being made."""
        return len(self._making)

    @property
    def open_breakers(self) -> int:
        """How many kinds are not made for now, because that failed again and again."""
        return sum(kind.breaker.is_open for kind in self._kinds.values())

    async def want(self, kinds: Sequence[Wanted]) -> None:
        """Keep these from now on, and end the others. Those of equal kinds are one kind."""
        before, self._kinds = self._kinds, {}
        for wanted in kinds:
            bare = replace(
                wanted.spec,
                policy=replace(wanted.spec.policy, env={}),
                demanded=frozenset(),
            )
            key = key_of(bare)
            if key not in self._kinds:
                self._kinds[key] = before.get(key) or _Kind(bare)
                self._kinds[key].size = 0
            self._kinds[key].size += wanted.size
        surplus: list[Ready] = []
        for key, kind in before.items():
            surplus += _surplus(kind, kind.size if key in self._kinds else 0)
        self._news.set()
        self.stats.ended += len(surplus)
        await self._end(surplus)

    async def claim(self, spec: SandboxSpec) -> Ready | None:
        """Give one that is as the spec says; see `live.Pool`. Never waits."""
        key = key_of(spec)
        kind = self._kinds.get(key)
        if kind is None or not self._holds_limits(spec):
            self.stats.others += 1
            return None
        # What is made in its place would take the processor from what it runs first.
        asyncio.get_running_loop().call_later(_REST_S, self._news.set)
        while kind.ready:
            ready = kind.ready.popleft()
            self._hand_over(ready.driver_id)
            if not ready.client.is_lost:
                ready.client.set_env(spec.policy.env)
                self.stats.hits += 1
                return ready
            self._lose(ready)
        self.stats.misses += 1
        return None

    def holds(self, driver_id: str) -> bool:
        """Tell whether a sandbox is the pool's, or on its way to whom it was given."""
        return (
            driver_id in self._making
            or driver_id in self._ending
            or self._clock() - self._handed.get(driver_id, float("-inf")) < HANDED_S
            or any(
                ready.driver_id == driver_id
                for kind in self._kinds.values()
                for ready in kind.ready
            )
        )

    def _holds_limits(self, spec: SandboxSpec) -> bool:
        """Whether what is asked for holds here; the driver itself says why it does not."""
        if self._capabilities is None:
            return False
        try:
            require(self._capabilities, spec)
        except SandboxError:
            return False
        return True

    def _hand_over(self, name: str) -> None:
        at = self._clock()
        self._handed = {key: t for key, t in self._handed.items() if at - t < HANDED_S}
        self._handed[name] = at

    # Making and ending them.

    async def run(self) -> None:
        """Keep as many ready as are wanted, until cancelled."""
        while True:
            self._news.clear()
            try:
                self._look()
            except Exception:
                log.exception("the pool of sandboxes was not looked after; trying again")
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def wait_filled(self) -> None:
        """Return when as many are ready as are wanted; does not make any by itself."""
        while self.ready < self.wanted:
            self._filled.clear()
            await self._filled.wait()

    async def aclose(self) -> None:
        """Give up what is being made, and end all that are ready."""
        self._kinds, before = {}, self._kinds
        await self._tasks.aclose()
        await self._end([ready for kind in before.values() for ready in kind.ready])

    def _look(self) -> None:
        """Drop those that have ended by themselves, and begin what is missing."""
        for kind in self._kinds.values():
            for ready in [ready for ready in kind.ready if ready.client.is_lost]:
                kind.ready.remove(ready)
                self._lose(ready)
        while len(self._making) < self._refills:
            needy = self._neediest()
            if needy is None:
                return
            needy.breaker.begin()
            needy.making += 1
            name = f"{PREFIX}{secrets.token_hex(8)}"
            self._making.add(name)
            self._tasks.start(self._refill(needy, name), name=f"make {name}")

    def _neediest(self) -> _Kind | None:
        at = self._clock()
        needy = [
            kind
            for kind in self._kinds.values()
            if len(kind.ready) + kind.making < kind.size and kind.breaker.allows(at)
        ]
        return min(
            needy, key=lambda kind: (len(kind.ready) + kind.making) / kind.size, default=None
        )

    async def _refill(self, kind: _Kind, name: str) -> None:
        try:
            ready = await self._make(kind, name)
        except asyncio.CancelledError:
            kind.breaker.give_up()
            await self._discard(name)
            raise
        except Exception as error:
            kind.breaker.fail(self._clock())
            self.stats.failures += 1
            is_usual = isinstance(error, (SandboxError, TimeoutError, OSError))
            log.warning("no sandbox was made for the pool: %s", error, exc_info=not is_usual)
            await self._discard(name)
        else:
            kind.breaker.succeed()
            self.stats.made += 1
            if self._kinds.get(ready.key or "") is kind and len(kind.ready) < kind.size:
                kind.ready.append(ready)
            else:
                self.stats.ended += 1
                await self._end([ready])
        finally:
            kind.making -= 1
            self._making.discard(name)
            self._news.set()
            self._filled.set()

    async def _make(self, kind: _Kind, name: str) -> Ready:
        spec = replace(kind.spec, sandbox_id=name, labels={**kind.spec.labels, **self._labels})
        async with asyncio.timeout(_MAKE_S):
            capabilities = await self._driver.capabilities()
            await self._driver.create(spec)
            client = await SandboxClient.connect(await self._driver.open_channel(name))
        self._capabilities = capabilities
        return Ready(name, client, key_of(spec))

    def _lose(self, ready: Ready) -> None:
        self.stats.lost += 1
        log.warning("a sandbox of the pool ended by itself", extra={"driver_id": ready.driver_id})
        self._tasks.start(self._end([ready]), name=f"end {ready.driver_id}")

    async def _end(self, several: Sequence[Ready]) -> None:
        self._ending.update(ready.driver_id for ready in several)
        async with asyncio.TaskGroup() as group:
            for ready in several:
                group.create_task(self._end_one(ready))

    async def _end_one(self, ready: Ready) -> None:
        try:
            await ready.client.aclose()
            await self._discard(ready.driver_id)
        finally:
            self._ending.discard(ready.driver_id)

    async def _discard(self, name: str) -> None:
        try:
            async with asyncio.timeout(_REMOVE_S):
                await self._driver.remove(name)
        except (SandboxError, TimeoutError, OSError):
            log.warning("a sandbox of the pool resists", extra={"driver_id": name}, exc_info=True)
            self._on_leftover(name)


def _surplus(kind: _Kind, size: int) -> list[Ready]:
    return [kind.ready.popleft() for _ in range(max(0, len(kind.ready) - size))]


def _fullness(kind: _Kind) -> float:
    return (len(kind.ready) + kind.making) / kind.size
