"""How much a viewer may ask for: points a minute, counted for all processes together."""

import asyncio
import ipaddress
import logging
import math
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from sqlalchemy import false, select
from sqlalchemy.sql.elements import ColumnElement

from models.accounts import RateLimitConfig, Role, User
from services import access
from services.base import Deps, Viewer, work
from services.errors import RateLimitedError, RequestError, UserError, UserErrorCode
from services.events.base import BusUnavailableError, Spent
from services.events.windows import Windows

log = logging.getLogger("noosphere.accounts")
WINDOW_S = 60.0
POINTS_MAX = 2_000_000_000
# Who manages accounts has as many whatever is configured, or could lock everybody out for good.
_MANAGER_POINTS = 1_000
# What was changed by another process holds here this much later.
_CONFIGS_S = 5.0
# A bus that does not answer is asked again after a while; meanwhile each process counts by itself.
_BUS_TIMEOUT_S, _BUS_AWAY_S = 0.5, 5.0
_SPENT_MAX = 10_000
_UNBOUNDED = 1 << 52


@access.rule(RateLimitConfig)
def _configs(viewer: Viewer) -> ColumnElement[bool]:
    return false()


class Budget(NamedTuple):
    """The points a viewer has in the present minute.

    It ends in `reset_s` seconds, `ends_s` seconds since 1970; None as long as nothing was spent.
    """

    limit: int
    spent: int
    left: int
    ends_s: float | None
    reset_s: float

    @property
    def reset_at(self) -> datetime | None:
        """When the minute ends."""
        return None if self.ends_s is None else datetime.fromtimestamp(self.ends_s, UTC)


@dataclass(slots=True)
class _State:
    """What one process knows between requests."""

    by_user: dict[str, int] = field(default_factory=dict)
    by_role: dict[str, int] = field(default_factory=dict)
    read_at: float = -math.inf
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    # Who has nothing left of which limit, and until when: told without asking the bus.
    exhausted: OrderedDict[str, tuple[int, float]] = field(default_factory=OrderedDict)
    own: Windows = field(default_factory=Windows)
    bus_away_until: float = -math.inf


async def spend(deps: Deps, viewer: Viewer, address: str | None, points: int) -> Budget | None:
    """Spend points of a viewer's budget, or of an address's where nobody is signed in.

    Gives what is left, or None where there is no limit. Raises RateLimitedError when too little is
    left, and RequestError LIMIT when a whole minute's budget would not do; nothing is spent then.
    While the bus does not answer, every process counts for itself.
    """
    limit = await _limit(deps, viewer)
    if limit == 0:
        return None
    if points > limit:
        raise _too_dear(viewer, limit, points)
    name = _name(viewer, address)
    spent = await _spend(deps, name, points, limit)
    if not spent.is_granted:
        raise _refused(deps, viewer, name, limit, spent, points)
    return _budget(limit, spent)


def spend_at_once(
    deps: Deps, viewer: Viewer, address: str | None, points: int
) -> Budget | Literal[False] | None:
    """Do as `spend` where that takes no waiting; gives False, with nothing spent, where it does."""
    state = _state(deps)
    now = time.monotonic()
    if now < state.bus_away_until or (
        viewer.user_id is not None and now - state.read_at > _CONFIGS_S
    ):
        return False
    limit = _present_limit(deps, viewer, state)
    if limit == 0:
        return None
    if points > limit:
        raise _too_dear(viewer, limit, points)
    name = _name(viewer, address)
    spent = deps.bus.spend_at_once(_count(name), points, limit=limit, window_s=WINDOW_S)
    if spent is None:
        return False
    if not spent.is_granted:
        raise _refused(deps, viewer, name, limit, spent, points)
    return _budget(limit, spent)


async def charge(deps: Deps, viewer: Viewer, address: str | None, points: int) -> None:
    """Spend points for what was refused already, whether or not they are left."""
    limit = await _limit(deps, viewer)
    if limit == 0:
        return
    name = _name(viewer, address)
    spent = await _spend(deps, name, points, _UNBOUNDED)
    if spent.total >= limit:
        _note(_state(deps), name, limit, spent.left_s)


def require_some(deps: Deps, viewer: Viewer, address: str | None) -> None:
    """Raise RateLimitedError if the viewer is known to have nothing left. Asks nobody.

    Nothing is known of whose limit has changed since, nor while it is to be read anew.
    """
    state = _state(deps)
    if not state.exhausted:
        return
    known = state.exhausted.get(_name(viewer, address))
    if known is None:
        return
    limit, until = known
    left_s = until - time.monotonic()
    if left_s <= 0 or _known_limit(deps, viewer) != limit:
        del state.exhausted[_name(viewer, address)]
        return
    raise RateLimitedError(
        f"{_whose(viewer).capitalize()} has spent all points of this minute. "
        f"Try again in {math.ceil(left_s)} seconds.",
        left_s,
    )


async def budget(deps: Deps, viewer: Viewer, address: str | None) -> Budget | None:
    """Give what a viewer has in the present minute, or None where there is no limit."""
    limit = await _limit(deps, viewer)
    if limit == 0:
        return None
    spent = await _spend(deps, _name(viewer, address), 0, limit)
    return _budget(limit, spent)


def _budget(limit: int, spent: Spent) -> Budget:
    return Budget(limit, spent.total, max(0, limit - spent.total), spent.ends_s, spent.left_s)


def _too_dear(viewer: Viewer, limit: int, points: int) -> RequestError:
    return RequestError(
        "LIMIT",
        f"The operation costs {points:,} points; {_whose(viewer)} may spend {limit:,} a "
        "minute. Ask for smaller pages (`first` or `last`), or for less at a time.",
    )


def _refused(
    deps: Deps, viewer: Viewer, name: str, limit: int, spent: Spent, points: int
) -> RateLimitedError:
    """Give what is told to who has too little left; who has nothing is remembered."""
    if spent.total >= limit:
        _note(_state(deps), name, limit, spent.left_s)
    return RateLimitedError(
        f"{_whose(viewer).capitalize()} has spent {spent.total:,} of {limit:,} points of this "
        f"minute, and the operation costs {points:,}. "
        f"Try again in {math.ceil(spent.left_s)} seconds.",
        spent.left_s,
    )


def _whose(viewer: Viewer) -> str:
    return "your account" if viewer.is_authenticated else "your address"


def _note(state: _State, name: str, limit: int, left_s: float) -> None:
    state.exhausted[name] = limit, time.monotonic() + left_s
    state.exhausted.move_to_end(name)
    if len(state.exhausted) > _SPENT_MAX:
        state.exhausted.popitem(last=False)


def _count(name: str) -> str:
    """Give the name by which the bus counts."""
    return f"points:{name}"


def _name(viewer: Viewer, address: str | None) -> str:
    return viewer.user_id or f"address:{_network(address)}"


def _network(address: str | None) -> str:
    """Give what addresses are counted by: of IPv6 a whole /64, for one client has all of it."""
    try:
        known = ipaddress.ip_address(address or "")
    except ValueError:
        return address or "nowhere"
    if isinstance(known, ipaddress.IPv6Address):
        if known.ipv4_mapped is not None:
            return str(known.ipv4_mapped)
        return str(ipaddress.ip_network((known.packed, 64), strict=False))
    return str(known)


async def _spend(deps: Deps, name: str, points: int, limit: int) -> Spent:
    state = _state(deps)
    if time.monotonic() >= state.bus_away_until:
        try:
            async with asyncio.timeout(_BUS_TIMEOUT_S):
                return await deps.bus.spend(_count(name), points, limit=limit, window_s=WINDOW_S)
        except (BusUnavailableError, TimeoutError):
            log.warning("bus unavailable, points are counted by this process alone")
            state.bus_away_until = time.monotonic() + _BUS_AWAY_S
    return state.own.spend(name, points, limit, WINDOW_S)


async def _limit(deps: Deps, viewer: Viewer) -> int:
    """Give the points a minute; 0: no limit. A user's own comes before the most of their roles'."""
    known = _known_limit(deps, viewer)
    if known is None:
        state = _state(deps)
        await _read(deps, state)
        known = _present_limit(deps, viewer, state)
    return known


def _known_limit(deps: Deps, viewer: Viewer) -> int | None:
    """Do as `_limit`; None where what is configured must be read anew."""
    state = _state(deps)
    if viewer.user_id is not None and time.monotonic() - state.read_at > _CONFIGS_S:
        return None
    return _present_limit(deps, viewer, state)


def _present_limit(deps: Deps, viewer: Viewer, state: _State) -> int:
    if viewer.user_id is None:
        return deps.options.anonymous_points_per_minute
    limit = state.by_user.get(viewer.user_id)
    if limit is None and not state.by_role:
        limit = deps.options.points_per_minute
    elif limit is None:
        of_roles = [state.by_role[role] for role in viewer.roles if role in state.by_role]
        limit = max(of_roles) if of_roles else deps.options.points_per_minute
    if limit and "accounts:manage" in viewer.permissions:
        return max(limit, _MANAGER_POINTS)
    return limit


async def _read(deps: Deps, state: _State) -> None:
    async with state.reading:
        if time.monotonic() - state.read_at <= _CONFIGS_S:
            return
        async with deps.db.reading() as connection:
            rows = (
                await connection.execute(
                    select(
                        RateLimitConfig.user_id,
                        Role.name.label("role"),
                        RateLimitConfig.points_per_minute,
                    ).outerjoin(Role, Role.id == RateLimitConfig.role_id)
                )
            ).all()
        state.by_user = {row.user_id: row.points_per_minute for row in rows if row.user_id}
        state.by_role = {row.role: row.points_per_minute for row in rows if row.role}
        state.read_at = time.monotonic()


def _state(deps: Deps) -> _State:
    known: _State | None = deps.caches.get("rate_limits")
    if known is None:
        known = deps.caches["rate_limits"] = _State()
    return known


async def configure(
    deps: Deps, viewer: Viewer, *, holder_id: str, points_per_minute: int
) -> RateLimitConfig:
    """Say how much a user, or each holder of a role, may spend a minute; the id tells which.

    Other processes follow within five seconds. Who manages accounts keeps at least 1,000 points, to
    be able to take a limit back. Raises UserError FORBIDDEN without
    `accounts:manage`, INVALID for points out of range, NOT_FOUND.
    """
    viewer.require("accounts:manage")
    if not 1 <= points_per_minute <= POINTS_MAX:
        raise UserError(
            UserErrorCode.INVALID,
            f"Points a minute are between 1 and {POINTS_MAX:,}.",
            ("points_per_minute",),
        )
    async with work(deps) as unit:
        # Locked, so that two who say it first do not both add a row.
        role = await unit.lock(Role, holder_id) if holder_id.startswith("rol_") else None
        user = await unit.lock(User, holder_id) if holder_id.startswith("usr_") else None
        if role is None and user is None:
            raise UserError(
                UserErrorCode.NOT_FOUND, "There is no such role or user.", ("holder_id",)
            )
        column = RateLimitConfig.user_id if role is None else RateLimitConfig.role_id
        config = await unit.session.scalar(select(RateLimitConfig).where(column == holder_id))
        if config is None:
            config = RateLimitConfig(**{column.key: holder_id})
            unit.session.add(config)
        config.points_per_minute = points_per_minute
        await unit.session.flush()
        made = config.frozen()
    _forget(deps)
    return made


async def remove(deps: Deps, viewer: Viewer, *, config_id: str) -> RateLimitConfig:
    """Take a limit away: what is configured otherwise holds again.

    Raises UserError FORBIDDEN without `accounts:manage`, NOT_FOUND.
    """
    viewer.require("accounts:manage")
    async with work(deps) as unit:
        config = await unit.lock(RateLimitConfig, config_id)
        if config is None:
            raise UserError(UserErrorCode.NOT_FOUND, "There is no such limit.", ("id",))
        gone = config.frozen()
        await unit.session.delete(config)
    _forget(deps)
    return gone


def _forget(deps: Deps) -> None:
    """Have this process look anew at what is configured, and at who has nothing left."""
    state = _state(deps)
    state.read_at = -math.inf
    state.exhausted.clear()


__all__ = [
    "Budget",
    "budget",
    "charge",
    "configure",
    "remove",
    "require_some",
    "spend",
    "spend_at_once",
]
