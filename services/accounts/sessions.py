"""Sign-ins: short access tokens, single-use refresh tokens, revocation."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, bindparam, select, update
from sqlalchemy.orm import InstrumentedAttribute

from models.accounts import (
    AuthRefreshToken,
    AuthSession,
    Permission,
    Role,
    RolePermission,
    User,
    UserRole,
)
from models.base import now
from models.statements import Reading
from services import access
from services.accounts import passwords
from services.base import Deps, Viewer, Work, work
from services.batches import Batches
from services.contention import repeatable
from services.errors import RateLimitedError, UnauthenticatedError, UserError, UserErrorCode

log = logging.getLogger("noosphere.accounts")
_LOGIN_FACTOR = 10
_ADDRESS_FACTOR = 100
# A viewer's last activity is written at most this often, so that reads stay reads.
_ACTIVITY_STEP = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A sign-in as its owner gets it, once: the tokens are stored nowhere in clear."""

    session: AuthSession
    token: str
    refresh_token: str
    refresh_expires_at: datetime


class Client(NamedTuple):
    """Where a sign-in comes from."""

    ip_address: str | None = None
    user_agent: str | None = None


@access.rule(AuthSession)
def _sessions(viewer: Viewer) -> ColumnElement[bool]:
    return AuthSession.user_id == viewer.user_id


access.personal(AuthSession)


async def open_session(unit: Work, user_id: str, client: Client) -> Credentials:
    """Begin a sign-in of a user within the caller's transaction."""
    options, at = unit.deps.options, now()
    token = passwords.new_token()
    session = AuthSession(
        user_id=user_id,
        token_hash=passwords.hash_token(token),
        ip_address=client.ip_address,
        user_agent=(client.user_agent or "")[:255] or None,
        expires_at=at + timedelta(seconds=options.access_token_ttl_s),
    )
    unit.session.add(session)
    await unit.session.flush()
    refresh, refresh_expires_at = _add_refresh_token(unit, session.id)
    return Credentials(session.frozen(), token, refresh, refresh_expires_at)


def _add_refresh_token(unit: Work, session_id: str) -> tuple[str, datetime]:
    refresh = passwords.new_token()
    expires_at = now() + timedelta(seconds=unit.deps.options.refresh_token_ttl_s)
    unit.session.add(
        AuthRefreshToken(
            session_id=session_id,
            token_hash=passwords.hash_token(refresh),
            expires_at=expires_at,
        )
    )
    return refresh, expires_at


async def create(
    deps: Deps, *, login: str, password: str, client: Client
) -> tuple[Credentials, User]:
    """Sign in with a username or e-mail address and a password.

    Raises UserError INVALID for a wrong pair (the same whether the user exists or not), and
    RateLimitedError after too many attempts for one login or from one address.
    """
    # Half a surrogate pair names nobody, and no database could be asked for it.
    name = login.strip().casefold()[:255].encode(errors="replace").decode()
    # Somebody else's wrong guesses must not lock the owner out at once, so the narrowest bound is
    # that of one login from one address.
    login_hash, address = passwords.hash_token(name), client.ip_address or "nowhere"
    narrow = f"sign-in:{login_hash}:{address}"
    await throttle(deps, narrow, 1)
    await throttle(deps, f"sign-in:login:{login_hash}", _LOGIN_FACTOR)
    await throttle(deps, f"sign-in:address:{address}", _ADDRESS_FACTOR)
    async with deps.db.reading() as connection:
        found = (
            await connection.execute(
                select(User.id, User.password_hash, User.is_active).where(
                    (User.username == name) | (User.email == name)
                )
            )
        ).first()
    matches = await passwords.verify(password[:1000], found.password_hash if found else None)
    if not matches or found is None or not found.is_active:
        log.info("sign-in refused", extra={"ip": client.ip_address})
        raise UserError(UserErrorCode.INVALID, "The login or the password is wrong.", ("password",))
    await deps.bus.forget(narrow)
    async with work(deps) as unit:
        user = await unit.lock(User, found.id)
        if user is None or not user.is_active or user.password_hash != found.password_hash:
            # Changed while the password was checked: what was checked does not hold any more.
            raise UserError(
                UserErrorCode.INVALID, "The login or the password is wrong.", ("password",)
            )
        user.last_login_at = now()
        credentials = await open_session(unit, user.id, client)
        await unit.session.flush()
        return credentials, user.frozen()


async def throttle(deps: Deps, name: str, factor: int) -> None:
    """Count an attempt under a name; raise RateLimitedError past `factor` times the limit."""
    options = deps.options
    attempts = await deps.bus.count(name, options.sign_in_window_s)
    if attempts > options.sign_in_attempts * factor:
        raise RateLimitedError(
            f"Too many attempts; try again within {options.sign_in_window_s} seconds.",
            retry_after_s=options.sign_in_window_s,
        )


@repeatable
async def refresh(deps: Deps, *, refresh_token: str, client: Client) -> Credentials:
    """Renew a sign-in. The old tokens end; a refresh token that was used before ends the sign-in.

    Raises UserError INVALID for an unknown, expired, revoked or reused token.
    """
    refused = UserError(
        UserErrorCode.INVALID,
        "The refresh token is unknown, expired, revoked or already used; sign in again.",
        ("refresh_token",),
    )
    async with work(deps) as unit:
        token_id = await unit.session.scalar(
            select(AuthRefreshToken.id).where(
                AuthRefreshToken.token_hash == passwords.hash_token(refresh_token[:1000])
            )
        )
        used = None if token_id is None else await unit.lock(AuthRefreshToken, token_id)
        session = None if used is None else await unit.lock(AuthSession, used.session_id)
        if used is None or session is None or session.revoked_at or used.expires_at <= now():
            raise refused
        is_active = await unit.session.scalar(
            select(User.is_active).where(User.id == session.user_id)
        )
        if not is_active:
            raise refused
        if used.used_at is None:
            token = passwords.new_token()
            used.used_at = now()
            session.token_hash = passwords.hash_token(token)
            session.last_active_at = now()
            session.expires_at = now() + timedelta(seconds=deps.options.access_token_ttl_s)
            session.ip_address = client.ip_address or session.ip_address
            renewed, expires_at = _add_refresh_token(unit, session.id)
            await unit.session.flush()
            news = {"renewed": session.id, "expires_at": session.expires_at.timestamp()}
            unit.signal(f"session:{session.id}", news)
            return Credentials(session.frozen(), token, renewed, expires_at)
        log.warning("refresh token reused, session revoked", extra={"session_id": session.id})
        _end(unit, session, "refresh token reused")
    raise refused


def _end(unit: Work, session: AuthSession, reason: str) -> None:
    session.revoked_at, session.revoked_reason = now(), reason
    unit.signal(f"session:{session.id}", {"revoked": True})


@repeatable
async def revoke(deps: Deps, viewer: Viewer, *, session_id: str | None = None) -> None:
    """End one of the viewer's sign-ins, the present one by default.

    Raises UserError NOT_FOUND for a session that is not the viewer's. Ending twice is no error.
    """
    user_id = viewer.id
    async with work(deps) as unit:
        chosen = viewer.session_id if session_id is None else session_id
        session = await unit.lock(AuthSession, chosen or "")
        if session is None or session.user_id != user_id:
            raise UserError(UserErrorCode.NOT_FOUND, "You have no such session.", ("id",))
        if session.revoked_at is None:
            _end(unit, session, "revoked by its owner")


async def revoke_all(unit: Work, user_id: str, *, reason: str, keep: str | None = None) -> None:
    """End every open sign-in of a user, except the session `keep`."""
    for session in await unit.session.scalars(
        select(AuthSession).where(AuthSession.user_id == user_id, AuthSession.revoked_at.is_(None))
    ):
        if session.id != keep:
            _end(unit, session, reason)


@dataclass(frozen=True, slots=True)
class Standing:
    """A sign-in as it stands: whom it signs in and until when, and the hash of its token."""

    viewer: Viewer
    token_hash: str


async def authenticate(deps: Deps, token: str) -> Viewer:
    """Give the viewer an access token stands for.

    Raises UnauthenticatedError when the token is unknown, expired or revoked, or the user inactive.
    """
    rows = await _read(deps, _BY_TOKEN, passwords.hash_token(token))
    if not rows or rows[0].revoked_at is not None or not rows[0].is_active:
        raise UnauthenticatedError("The token is unknown or revoked; sign in again.")
    first, at = rows[0], now()
    if first.expires_at <= at:
        raise UnauthenticatedError("The token has expired; renew it with sessionRefresh.")
    if at - first.last_active_at > _ACTIVITY_STEP:
        await _touch(deps, first.id)
    return _viewer(rows)


async def standing(deps: Deps, session_id: str, *, is_active: bool = False) -> Standing | None:
    """Give how a sign-in stands, though its token may have expired; None if revoked or gone.

    `is_active` tells that it was used since somebody last asked.
    """
    rows = await _read(deps, _BY_ID, session_id)
    if not rows or rows[0].revoked_at is not None or not rows[0].is_active:
        return None
    if is_active and now() - rows[0].last_active_at > _ACTIVITY_STEP:
        await _touch(deps, session_id)
    return Standing(_viewer(rows), rows[0].token_hash)


class _Row(NamedTuple):
    id: str
    user_id: str
    token_hash: str
    expires_at: datetime
    revoked_at: datetime | None
    last_active_at: datetime
    username: str
    is_active: bool
    role: str | None
    permission: str | None


def _read_by(column: InstrumentedAttribute[str]) -> Reading:
    """Give what reads a row for every permission of every role of a user, or one without any."""
    return Reading(
        select(
            AuthSession.id,
            AuthSession.user_id,
            AuthSession.token_hash,
            AuthSession.expires_at,
            AuthSession.revoked_at,
            AuthSession.last_active_at,
            User.username,
            User.is_active,
            Role.name.label("role"),
            Permission.name.label("permission"),
        )
        .join(User, User.id == AuthSession.user_id)
        .outerjoin(UserRole, UserRole.user_id == User.id)
        .outerjoin(Role, Role.id == UserRole.role_id)
        .outerjoin(RolePermission, RolePermission.role_id == Role.id)
        .outerjoin(Permission, Permission.id == RolePermission.permission_id)
        .where(column.in_(bindparam("wanted", type_=column.type, expanding=True))),
        _Row,
    )


_BY_TOKEN, _BY_ID = _read_by(AuthSession.token_hash), _read_by(AuthSession.id)


async def _read(deps: Deps, reading: Reading, wanted: str) -> Sequence[_Row]:
    """Give the rows of one sign-in, read together with whatever others ask in the same moment."""
    column = 2 if reading is _BY_TOKEN else 0

    async def read(all_wanted: Sequence[str]) -> Mapping[str, list[_Row]]:
        found: dict[str, list[_Row]] = defaultdict(list)
        for row in await deps.db.rows(reading, wanted=all_wanted):
            found[row[column]].append(row)
        return found

    key = "sign-ins by token" if reading is _BY_TOKEN else "sign-ins"
    known = deps.caches.get(key)
    if not isinstance(known, Batches):
        known = deps.caches[key] = Batches(read)
    return await known.of(wanted) or ()


def _viewer(rows: Sequence[Any]) -> Viewer:
    first = rows[0]
    return Viewer(
        user_id=first.user_id,
        session_id=first.id,
        username=first.username,
        roles=frozenset(row.role for row in rows if row.role),
        permissions=frozenset(row.permission for row in rows if row.permission),
        expires_at=first.expires_at,
    )


async def _touch(deps: Deps, session_id: str) -> None:
    async with work(deps) as unit:
        await unit.session.execute(
            update(AuthSession).where(AuthSession.id == session_id).values(last_active_at=now())
        )


async def viewer_of(deps: Deps, user_id: str, session_id: str | None = None) -> Viewer | None:
    """Give the viewer a background task acts for: the user with today's roles, or None if gone."""
    async with deps.db.reading() as connection:
        rows = (
            await connection.execute(
                select(User.username, Role.name.label("role"), Permission.name.label("permission"))
                .outerjoin(UserRole, UserRole.user_id == User.id)
                .outerjoin(Role, Role.id == UserRole.role_id)
                .outerjoin(RolePermission, RolePermission.role_id == Role.id)
                .outerjoin(Permission, Permission.id == RolePermission.permission_id)
                .where(User.id == user_id, User.is_active)
            )
        ).all()
    if not rows:
        return None
    return Viewer(
        user_id=user_id,
        session_id=session_id,
        username=rows[0].username,
        roles=frozenset(row.role for row in rows if row.role),
        permissions=frozenset(row.permission for row in rows if row.permission),
    )
