"""Keeping house: built-in rows, and rows whose time is over."""

from datetime import timedelta

from sqlalchemy import delete, false, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.elements import ColumnElement

from models.accounts import AuthRefreshToken, AuthSession
from models.base import now
from models.system import Event, Task, TaskStatus, Topic
from services import access, sandboxes, tools
from services.accounts import roles
from services.base import Deps, Viewer, work

_BATCH = 500
_KEEP_TASKS = timedelta(days=7)
_KEEP_SESSIONS = timedelta(days=30)


@access.rule(Task)
def _tasks(viewer: Viewer) -> ColumnElement[bool]:
    return false()


@access.rule(Topic)
def _topics(viewer: Viewer) -> ColumnElement[bool]:
    return false()


@access.rule(Event)
def _events(viewer: Viewer) -> ColumnElement[bool]:
    return false()


@access.rule(AuthRefreshToken)
def _refresh_tokens(viewer: Viewer) -> ColumnElement[bool]:
    return false()


async def seed(deps: Deps) -> None:
    """Add the built-in roles, tools and templates that are missing. Safe to run side by side."""
    for attempt in range(3):
        try:
            async with work(deps) as unit:
                await roles.seed(unit)
                await tools.seed(unit)
                await sandboxes.seed(unit)
        except IntegrityError:
            # Another process seeded at the same moment; what it added is found next time.
            if attempt == 2:
                raise
        else:
            return


async def clean(deps: Deps) -> dict[str, int]:
    """Drop events, tasks, dead sign-ins and sandboxes that are old; give how many of each."""
    return {
        "events": await _clean_events(deps),
        "tasks": await _clean_tasks(deps),
        "sessions": await _clean_sessions(deps),
        **await sandboxes.clean(deps),
    }


async def _clean_events(deps: Deps) -> int:
    """Drop events that are too old, and of each topic those beyond its newest."""
    dropped = 0
    for find in (_too_old, _too_many):
        while True:
            found = await find(deps)
            for topic, seq in found:
                dropped += await _drop_events(deps, topic, seq)
            if len(found) < _BATCH:
                break
    return dropped


async def _too_old(deps: Deps) -> list[tuple[str, int]]:
    cutoff = now() - timedelta(seconds=deps.options.event_retention_s)
    async with deps.db.reading() as connection:
        rows = await connection.execute(
            select(Event.topic, func.max(Event.seq))
            .where(Event.recorded_at < cutoff)
            .group_by(Event.topic)
            .limit(_BATCH)
        )
        return [(topic, seq) for topic, seq in rows]


async def _too_many(deps: Deps) -> list[tuple[str, int]]:
    kept = deps.options.event_retention_count
    async with deps.db.reading() as connection:
        rows = await connection.execute(
            select(Topic.id, Topic.seq - kept)
            .where(Topic.seq - Topic.first_seq >= kept)
            .limit(_BATCH)
        )
        return [(topic, seq) for topic, seq in rows]


async def _drop_events(deps: Deps, topic: str, seq: int) -> int:
    """Drop a topic's events up to `seq`, some at a time: its writers wait meanwhile."""
    dropped = floor = 0
    while floor <= seq:
        async with work(deps) as unit:
            row = await unit.lock(Topic, topic)
            floor = seq + 1
            if row is not None:
                # The floor rises before the rows go, so that no reader takes a gap for the truth;
                # and it never falls, whoever else cleans at the same time.
                floor = max(row.first_seq, min(row.first_seq + _BATCH, floor))
                row.first_seq = floor
                await unit.session.flush()
            gone = await unit.session.execute(
                delete(Event).where(Event.topic == topic, Event.seq < floor)
            )
            dropped += int(gone.rowcount)  # type: ignore[attr-defined]
    return dropped


async def _clean_tasks(deps: Deps) -> int:
    async with work(deps) as unit:
        gone = await unit.session.execute(
            delete(Task).where(
                Task.status.in_((TaskStatus.COMPLETED, TaskStatus.CANCELED)),
                Task.completed_at < now() - _KEEP_TASKS,
            )
        )
        return int(gone.rowcount)  # type: ignore[attr-defined]


async def _clean_sessions(deps: Deps) -> int:
    async with work(deps) as unit:
        live = select(AuthRefreshToken.session_id).where(AuthRefreshToken.expires_at > now())
        gone = await unit.session.execute(
            update(AuthSession)
            .where(
                AuthSession.expires_at < now() - _KEEP_SESSIONS,
                AuthSession.revoked_at.is_(None),
                AuthSession.id.not_in(live),
            )
            .values(revoked_at=now(), revoked_reason="expired")
        )
        return int(gone.rowcount)  # type: ignore[attr-defined]
