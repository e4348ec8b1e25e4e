"""The way out of sandboxes that may reach named hosts: a proxy each, on the node that hosts it."""

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update

from models.sandboxes import Sandbox, SandboxResources, SandboxSecurityPolicy
from sandbox import proxy
from sandbox.addresses import is_own, parse_ranges
from sandbox.bandwidth import Bandwidth
from sandbox.client import SandboxClient
from sandbox.errors import SandboxError
from sandbox.network_rules import NetworkRules
from sandbox.policy import NetworkPolicy, NetworkRule, Policy
from sandbox.proxy import Proxy
from sandbox.tunnels import Listener
from services.base import Deps, Work
from services.events.base import Json
from services.events.calls import TaskSet
from services.sandboxes import connections, operations, wishes
from services.sandboxes.live import Live

if TYPE_CHECKING:
    from services.sandboxes.node import Node

log = logging.getLogger("noosphere.sandboxes")
_ADDRESS = f"http://127.0.0.1:{proxy.PORT}"
_HERE = "localhost,127.0.0.1,::1"
# Programs read the one or the other.
ENVIRONMENT = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), _ADDRESS),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), _HERE),
}


@dataclass(slots=True)
class _Way:
    """The way out of one sandbox, as long as its client lasts."""

    client: SandboxClient
    proxy: Proxy
    listener: Listener
    environment: Mapping[str, str]


class Networks:
    """The ways out of the sandboxes of one node.

    `resolve`, `connect` and `is_own` say how the network outside is reached; see `Proxy`.
    """

    def __init__(self, node: "Node") -> None:
        self.resolve = proxy.resolve
        self.connect = proxy.connect
        self.is_own = is_own
        self._node = node
        self._deps = node.deps
        self._ways: dict[str, _Way] = {}
        self._recorder = connections.Recorder(node.deps)
        self._tasks = TaskSet()
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def start(self) -> None:
        """Begin to write connections down."""
        self._tasks.start(self._recorder.run(), name="sandbox connections")

    async def prepare(self, live: Live) -> None:
        """Open the way out of a sandbox that may reach something, before anything runs in it.

        What cannot be opened stays closed, so this raises nothing of the sandbox.
        """
        network, rate = await _terms(self._deps, live.sandbox_id)
        try:
            await self.apply(live, network, rate)
        except SandboxError:
            log.warning("no way out of a sandbox", extra={"id": live.sandbox_id}, exc_info=True)

    async def apply(self, live: Live, network: NetworkPolicy, rate: int | None) -> None:
        """Let a sandbox reach what a policy says, at so many bytes a second; it holds at once.

        One that is frozen gets a way out when it is resumed. Raises SandboxError.
        """
        async with self._locks.setdefault(live.sandbox_id, asyncio.Lock()):
            way = self._ways.get(live.sandbox_id)
            if way is not None and way.client is not live.client:
                await self._close(live.sandbox_id)
                way = None
            if network.mode == "none" or not self._deps.options.sandbox_network_allowed:
                await self._close(live.sandbox_id)
            elif way is not None:
                way.proxy.replace(self._rules(network))
                way.proxy.bandwidth.bytes_per_s = rate
            elif live.client is not None and not live.is_paused and not live.is_ending:
                await connections.settle(self._deps, live.sandbox_id)
                await self._open(live, live.client, network, rate)

    def _rules(self, network: NetworkPolicy) -> NetworkRules:
        private = parse_ranges(self._deps.options.sandbox_network_private)
        return NetworkRules(network.rules, private)

    async def _open(
        self, live: Live, client: SandboxClient, network: NetworkPolicy, rate: int | None
    ) -> None:
        sandbox_id = live.sandbox_id
        made = Proxy(
            self._rules(network),
            max_connections=self._deps.options.proxy_max_connections,
            bandwidth=Bandwidth(rate),
            on_change=lambda connection: self._recorder.note(sandbox_id, connection),
            resolve=self.resolve,
            connect=self.connect,
            is_own=self.is_own,
        )
        client.on_accepted = made.accept
        try:
            listener = await client.listen(proxy.PORT)
        except BaseException:
            client.on_accepted = None
            await made.aclose()
            raise
        # What a person set goes first.
        environment = {k: v for k, v in ENVIRONMENT.items() if k not in live.env}
        client.export(environment)
        self._ways[sandbox_id] = _Way(client, made, listener, environment)

    async def _close(self, sandbox_id: str) -> None:
        way = self._ways.pop(sandbox_id, None)
        if way is not None:
            way.client.on_accepted = None
            way.client.export({}, without=way.environment)
            await way.listener.aclose()
            await way.proxy.aclose()

    def ending(self, live: Live) -> None:
        """Close the way out of a sandbox that ends, beside the caller."""
        self._tasks.start(self._end(live.sandbox_id), name="close a way out")

    async def _end(self, sandbox_id: str) -> None:
        async with self._locks.setdefault(sandbox_id, asyncio.Lock()):
            await self._close(sandbox_id)
        self._recorder.forget(sandbox_id)

    async def flush(self) -> None:
        """Write down what has happened up to now."""
        await self._recorder.flush()

    async def aclose(self) -> None:
        """Close all ways out, and write down that they are closed."""
        await self._tasks.aclose()
        for sandbox_id in list(self._ways):
            await self._close(sandbox_id)
        await self._recorder.flush()


_networks: "weakref.WeakKeyDictionary[Node, Networks]" = weakref.WeakKeyDictionary()


def of(node: "Node") -> Networks:
    """Give the ways out of the sandboxes of a node."""
    return _networks[node]


@operations.attachment
@asynccontextmanager
async def _attached(node: "Node") -> "AsyncIterator[None]":
    made = _networks[node] = Networks(node)
    made.start()
    node.preparing.append(made.prepare)
    node.on_ending.append(made.ending)
    try:
        yield
    finally:
        await made.aclose()


async def _terms(deps: Deps, sandbox_id: str) -> tuple[NetworkPolicy, int | None]:
    async with deps.db.reading() as connection:
        found = (
            await connection.execute(
                select(SandboxSecurityPolicy.network_policy, SandboxResources.network_limit).where(
                    SandboxSecurityPolicy.sandbox_id == sandbox_id,
                    SandboxResources.sandbox_id == SandboxSecurityPolicy.sandbox_id,
                )
            )
        ).one()
    return Policy.from_json({"network": found.network_policy}).network, found.network_limit


# Changes while it lives.


async def store(
    unit: Work,
    sandbox: Sandbox,
    *,
    mode: str | None,
    rules: Sequence[NetworkRule] | None,
    bytes_per_s: int | None,
) -> bool:
    """Change what a sandbox may reach, within the caller's transaction; None: it stays as it is.

    Gives whether anything is to be enforced (`enforce`, after the commit). Raises UserErrors as
    `wishes.network` does.
    """
    if mode is None and rules is None and bytes_per_s is None:
        return False
    before = await _stored(unit, sandbox.id)
    if mode is not None or rules is not None:
        was = wishes.ALLOW_LIST if before.mode == "allow" else wishes.NO_NETWORK
        chosen = was if mode is None else mode
        kept = before.rules if chosen.lower() != wishes.NO_NETWORK else ()
        after = wishes.network(unit.deps.options, chosen, kept if rules is None else rules)
        stored = Policy(after).to_json(with_env=False)["network"]
        await unit.session.execute(
            update(SandboxSecurityPolicy)
            .where(SandboxSecurityPolicy.sandbox_id == sandbox.id)
            .values(network_policy=stored)
        )
    if bytes_per_s is not None:
        await unit.session.execute(
            update(SandboxResources)
            .where(SandboxResources.sandbox_id == sandbox.id)
            .values(network_limit=bytes_per_s)
        )
    return True


async def _stored(unit: Work, sandbox_id: str) -> NetworkPolicy:
    stored: Mapping[str, Any] | None = await unit.session.scalar(
        select(SandboxSecurityPolicy.network_policy).where(
            SandboxSecurityPolicy.sandbox_id == sandbox_id
        )
    )
    return Policy.from_json({"network": stored or {}}).network


async def is_networked(unit: Work, sandbox_id: str) -> bool:
    """Tell whether a sandbox may reach anything."""
    return (await _stored(unit, sandbox_id)).mode != "none"


async def enforce(deps: Deps, row: Sandbox) -> None:
    """Have the host go by what is stored. Raises UserError when it does not answer."""
    await deps.sandboxes.ask(row, "network")


@operations.operation("network")
async def _network(node: "Node", sandbox_id: str, request: Json) -> None:
    live = node.live.get(sandbox_id)
    if live is not None:
        network, rate = await _terms(node.deps, sandbox_id)
        await of(node).apply(live, network, rate)
