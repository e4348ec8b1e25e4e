"""Ports of servers inside sandboxes: their owners open and share them; the channel carries all."""

import asyncio
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from models.accounts import User
from models.base import now, row_columns, rows_of
from models.sandboxes import Sandbox, SandboxPort
from models.states import PortProtocol, SandboxStatus
from sandbox.errors import PortError, ResourceExhaustedError, TimeoutError_
from sandbox.tunnels import Tunnel
from services.base import Deps, Viewer, Work, work
from services.errors import UserError, UserErrorCode
from services.events.base import Json
from services.sandboxes import links, operations, relay, rows
from services.sandboxes.live import Live
from services.text import clean

if TYPE_CHECKING:
    from services.sandboxes.node import Node

PORTS_PER_SANDBOX = 32
CONNECTIONS_PER_SANDBOX = 64
_DIAL_S = 10.0
_DESCRIPTION_CHARS = 255
# Why there is no connection, as the head of a pipe says it.
CLOSED, SLOW, FULL = "closed", "slow", "full"


@dataclass(frozen=True, slots=True)
class Door:
    """A way to a port, for somebody who may use it; `until` a link expires."""

    sandbox: Sandbox
    port: SandboxPort
    epoch: int | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """A link: its path on this server, and when it expires."""

    port: SandboxPort
    path: str
    expires_at: datetime


# What owners do.


async def open(
    deps: Deps, viewer: Viewer, *, sandbox_id: str, port: int, description: str | None = None
) -> SandboxPort:
    """Let a TCP port of a server inside be reached; one that is open stays as it is.

    Raises UserError NOT_FOUND, INVALID for no port, CONFLICT unless the sandbox lives, LIMIT.
    """
    viewer.require("sandboxes:write")
    if not 1 <= port <= 65535:
        raise UserError(UserErrorCode.INVALID, "Ports are 1 to 65535.", ("port",))
    text = clean(
        description or "", "description", max_chars=_DESCRIPTION_CHARS, min_chars=0, multiline=False
    )
    try:
        async with work(deps) as unit:
            return await _open(unit, viewer, sandbox_id, port, text or None)
    except IntegrityError as error:
        raise UserError(
            UserErrorCode.CONFLICT, "The port is being opened already; try again.", ("port",)
        ) from error


async def _open(
    unit: Work, viewer: Viewer, sandbox_id: str, port: int, description: str | None
) -> SandboxPort:
    sandbox = await rows.own(unit, viewer, sandbox_id, path="sandbox_id")
    if sandbox.status not in (SandboxStatus.RUNNING, SandboxStatus.PAUSED):
        raise UserError(
            UserErrorCode.CONFLICT,
            f"Only ports of a live sandbox can be opened; this one is {sandbox.status}.",
            ("sandbox_id",),
        )
    mine = SandboxPort.sandbox_id == sandbox_id
    found = await unit.session.scalar(
        select(SandboxPort).where(
            mine, SandboxPort.container_port == port, SandboxPort.protocol == PortProtocol.TCP
        )
    )
    if found is not None:
        return found.frozen()
    count = await unit.session.scalar(select(func.count()).select_from(SandboxPort).where(mine))
    if (count or 0) >= PORTS_PER_SANDBOX:
        raise UserError(
            UserErrorCode.LIMIT,
            f"A sandbox has at most {PORTS_PER_SANDBOX} open ports; close one first.",
            ("port",),
        )
    made = SandboxPort(
        sandbox_id=sandbox_id,
        container_port=port,
        host_port=unit.deps.options.port,
        description=description,
    )
    unit.session.add(made)
    await unit.session.flush()
    return made.frozen()


async def _own(unit: Work, viewer: Viewer, port_id: str) -> tuple[Sandbox, SandboxPort]:
    port = await unit.lock(SandboxPort, port_id)
    sandbox = await unit.session.get(Sandbox, port.sandbox_id) if port is not None else None
    if port is None or sandbox is None or sandbox.user_id != viewer.id:
        raise UserError(UserErrorCode.NOT_FOUND, "There is no such port.", ("id",))
    return sandbox, port


async def close(deps: Deps, viewer: Viewer, *, port_id: str) -> SandboxPort:
    """Let a port be reached no more; its links are void and its connections end.

    Raises UserError NOT_FOUND, UNAVAILABLE when the host does not answer: it is closed anyhow.
    """
    viewer.require("sandboxes:write")
    async with work(deps) as unit:
        sandbox, port = await _own(unit, viewer, port_id)
        gone, row = port.frozen(), sandbox.frozen()
        await unit.session.delete(port)
    if row.status.is_live:
        await deps.sandboxes.ask(row, "port_close", port_id=gone.id)
    return gone


async def share(
    deps: Deps,
    viewer: Viewer,
    *,
    port_id: str,
    seconds: int | None = None,
    revokes_earlier: bool = False,
) -> Shared:
    """Give a link by which anybody reaches a port until it expires.

    `revokes_earlier` voids the links given before, and ends connections made by them. Raises
    UserError NOT_FOUND, INVALID and LIMIT for a time that cannot be.
    """
    viewer.require("sandboxes:write")
    most = deps.options.port_link_ttl_s
    life_s = most if seconds is None else seconds
    if not 1 <= life_s <= most:
        raise UserError(
            UserErrorCode.INVALID if life_s < 1 else UserErrorCode.LIMIT,
            f"A link lives 1 to {most:,} seconds.",
            ("seconds",),
        )
    async with work(deps) as unit:
        sandbox, port = await _own(unit, viewer, port_id)
        if revokes_earlier:
            port.token_epoch += 1
            await unit.session.flush()
        row, found = sandbox.frozen(), port.frozen()
    if revokes_earlier and row.status.is_live:
        await deps.sandboxes.ask(row, "port_close", port_id=found.id, below=found.token_epoch)
    expires_at = now().replace(microsecond=0) + timedelta(seconds=life_s)
    token = links.sign(
        deps.options.link_secret, port_id=found.id, expires_at=expires_at, epoch=found.token_epoch
    )
    return Shared(found, f"{path(row.id, found.container_port)}/~{token}/", expires_at)


def path(sandbox_id: str, port: int) -> str:
    """The path at which a port is reached, without the slash at its end."""
    return f"/sandboxes/{sandbox_id}/ports/{port}"


# What those do who reach it.


async def by_viewer(deps: Deps, viewer: Viewer, *, sandbox_id: str, port: int) -> Door:
    """Let the owner of a sandbox in.

    Raises UnauthenticatedError, UserError FORBIDDEN without the permission, NOT_FOUND for what is
    not the viewer's or not open, CONFLICT unless it runs.
    """
    viewer.require("sandboxes:execute")
    sandbox, found = await _find(deps, sandbox_id, port)
    if sandbox.user_id != viewer.id:
        raise _absent()
    rows.require_running(sandbox, path="id")
    return Door(sandbox, found)


async def by_link(deps: Deps, token: str, *, sandbox_id: str, port: int) -> Door:
    """Let somebody with a link in.

    Raises UserError NOT_FOUND for one that is void, FORBIDDEN for one that has expired, CONFLICT
    unless the sandbox runs.
    """
    sandbox, found = await _find(deps, sandbox_id, port)
    link = links.verify(deps.options.link_secret, token, port_id=found.id)
    if link is None or link.epoch != found.token_epoch:
        raise _absent()
    if link.expires_at <= now():
        raise UserError(UserErrorCode.FORBIDDEN, "The link has expired; ask for another one.")
    rows.require_running(sandbox, path="id")
    return Door(sandbox, found, link.epoch, link.expires_at)


def _absent() -> UserError:
    return UserError(UserErrorCode.NOT_FOUND, "There is no such port.")


async def _find(deps: Deps, sandbox_id: str, port: int) -> tuple[Sandbox, SandboxPort]:
    """Give a port that is open, of a person who may still sign in."""
    sandbox = await rows.sandbox(deps, sandbox_id)
    if sandbox is None:
        raise _absent()
    async with deps.db.reading() as connection:
        result = await connection.execute(
            select(*row_columns(SandboxPort))
            .join(User, User.id == sandbox.user_id)
            .where(
                SandboxPort.sandbox_id == sandbox_id,
                SandboxPort.container_port == port,
                SandboxPort.protocol == PortProtocol.TCP,
                User.is_active.is_(True),
            )
        )
        found = next(iter(rows_of(SandboxPort, result)), None)
    if found is None:
        raise _absent()
    return sandbox, found


async def connect(deps: Deps, door: Door) -> relay.Pipe:
    """Connect to a port; `head["refusal"]` says why nobody is there, if so.

    It is `CLOSED` when nothing listens, `SLOW` when nobody answered in time, `FULL` when too many
    connections are open. Raises UserError as `relay.open` does.
    """
    return await relay.open(
        deps,
        door.sandbox,
        "port",
        port=door.port.container_port,
        port_id=door.port.id,
        epoch=door.epoch,
    )


# The node that hosts it.


class _Stream:
    """A connection to a port, for one reader and one writer."""

    def __init__(self, doors: "_Doors", live: Live, port_id: str, epoch: int | None) -> None:
        self.head: dict[str, str | None] = {"refusal": None}
        self.sandbox_id = live.sandbox_id
        self.port_id = port_id
        self.epoch = epoch
        self.tunnel: Tunnel | None = None
        self._doors = doors
        self._live = live

    @property
    def _open(self) -> Tunnel:
        if self.tunnel is None:
            raise PortError("There is no connection.")
        self._live.used_at = now()
        return self.tunnel

    async def read(self) -> bytes:
        return await self._open.read()

    async def write(self, data: bytes) -> None:
        await self._open.write(data)

    async def end(self) -> None:
        await self._open.end()

    async def aclose(self) -> None:
        self._doors.open.discard(self)
        if self.tunnel is not None:
            await self.tunnel.aclose()


class _Doors:
    """The connections to ports of one node's sandboxes."""

    def __init__(self) -> None:
        self.open: set[_Stream] = set()

    async def dial(self, node: "Node", live: Live, request: Json) -> _Stream:
        stream = _Stream(self, live, request["port_id"], request["epoch"])
        count = sum(held.sandbox_id == live.sandbox_id for held in self.open)
        if count >= CONNECTIONS_PER_SANDBOX:
            stream.head["refusal"] = FULL
            return stream
        # Held before the row is read: whoever closes the port from now on closes this as well.
        self.open.add(stream)
        try:
            await self._dial(node, stream, request["port"])
        except BaseException:
            await stream.aclose()
            raise
        if stream.tunnel is None:
            await stream.aclose()
        return stream

    async def _dial(self, node: "Node", stream: _Stream, port: int) -> None:
        try:
            async with asyncio.timeout(_DIAL_S):
                stream.tunnel = await node.client(stream.sandbox_id).dial(port)
        except PortError:
            stream.head["refusal"] = CLOSED
            return
        except ResourceExhaustedError:
            stream.head["refusal"] = FULL
            return
        except (TimeoutError, TimeoutError_):
            stream.head["refusal"] = SLOW
            return
        async with node.deps.db.reading() as connection:
            epoch = await connection.scalar(
                select(SandboxPort.token_epoch).where(SandboxPort.id == stream.port_id)
            )
        if epoch is None or stream not in self.open or stream.epoch not in (None, epoch):
            raise _absent()

    async def close(self, port_id: str, below: int | None) -> None:
        """End the connections of a port: all, or those by links of earlier generations."""
        for stream in list(self.open):
            is_meant = below is None or (stream.epoch is not None and stream.epoch < below)
            if stream.port_id == port_id and is_meant:
                await stream.aclose()


_doors: "weakref.WeakKeyDictionary[Node, _Doors]" = weakref.WeakKeyDictionary()


@operations.attachment
@asynccontextmanager
async def _attached(node: "Node") -> "AsyncIterator[None]":
    made = _doors[node] = _Doors()
    try:
        yield
    finally:
        for stream in list(made.open):
            await stream.aclose()


@relay.kind("port")
async def _port(node: "Node", sandbox_id: str, request: Json) -> relay.Pipe:
    live = node.live.get(sandbox_id)
    if live is None or live.is_paused:
        raise UserError(UserErrorCode.CONFLICT, "The sandbox does not run now.", ("id",))
    return await _doors[node].dial(node, live, request)


@operations.operation("port_close")
async def _close(node: "Node", sandbox_id: str, request: Json) -> None:
    await _doors[node].close(request["port_id"], request.get("below"))
