"""What a transaction did to the things people keep in lists, for the log of each owner.

Conversations, plans, sandboxes and memories are watched where their rows are written: in the
session, whichever verb, worker or housekeeping wrote them. So no verb can forget to tell, and one
transaction tells at most one change of a thing, however often it wrote it.

Rows added, changed or deleted through the session are seen as they are flushed; an UPDATE or DELETE
of many is preceded by a look at the rows it will reach. An `insert()` is not seen: add rows to the
session instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, cast

from sqlalchemy import Connection, event, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstanceState, Mapper, ORMExecuteState, Session, object_session
from sqlalchemy.sql.dml import Delete, Update

from models.base import Record
from models.conversations import Conversation
from models.memories import Memory
from models.plans import Plan, PlanExecution
from models.sandboxes import Sandbox
from models.states import ConversationStatus, SandboxStatus

_INFO: Final = "changes"


class ChangeKind(StrEnum):
    """What became of a thing."""

    CREATED = "CREATED"
    UPDATED = "UPDATED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class _Watched:
    """A table whose rows are things in somebody's list, or parts of such a thing.

    `event` is the type of the event. `quiet` are columns that change without anybody wanting to
    know: a thing being used is no change of it. `deleted` is the status of rows that are kept and
    yet gone. `whole` names the column with the id of the thing that a row is part of.
    """

    event: str
    quiet: frozenset[str] = frozenset()
    deleted: StrEnum | None = None
    whole: str | None = None

    @property
    def id(self) -> str:
        return self.whole or "id"


_WATCHED: Final[dict[type[Record], _Watched]] = {
    Conversation: _Watched("ConversationChanged", deleted=ConversationStatus.DELETED),
    Plan: _Watched("PlanChanged", frozenset({"updated_at"})),
    PlanExecution: _Watched(
        "PlanChanged",
        # They change with the status, or tell what is only asked for.
        frozenset({"cancel_requested_at", "completed_at", "result", "error_details"}),
        whole="plan_id",
    ),
    Sandbox: _Watched(
        "SandboxChanged", frozenset({"last_active_at", "node_id"}), deleted=SandboxStatus.DELETED
    ),
    Memory: _Watched(
        "MemoryChanged",
        frozenset(
            {"access_count", "last_accessed_at", "embedding", "embedding_model", "updated_at"}
        ),
    ),
}

# By owner, event and id, in the order of the first change.
Found = dict[tuple[str, str, str], ChangeKind]
Told = list[tuple[str, str, Mapping[str, Any]]]


def topic(user_id: str) -> str:
    """Name the topic of what becomes of a user's things.

    Behind all others in their order, which is that of their locks: it is the one that most
    transactions of a user share, so it is locked last and held shortest.
    """
    return f"viewer-events:{user_id}"


def take(session: AsyncSession) -> Told:
    """Give what was flushed since last asked, as events: topic, type and payload."""
    found: Found = session.info.pop(_INFO, {})
    return [
        (topic(owner), kind, {"id": id_, "change": change.value})
        for (owner, kind, id_), change in found.items()
    ]


def note(session: AsyncSession, kind: str, owner: str, id_: str) -> None:
    """Tell of an update of a thing whose own row stays as it is: of what belongs to it."""
    found: Found = session.info.setdefault(_INFO, {})
    found.setdefault((owner, kind, id_), ChangeKind.UPDATED)


def _note(session: Session, watched: _Watched, owner: str, id_: str, change: ChangeKind) -> None:
    if watched.whole is not None:
        change = ChangeKind.UPDATED
    found: Found = session.info.setdefault(_INFO, {})
    key = (owner, watched.event, id_)
    # What was made in this very transaction is new to everybody, however often it was written.
    if key not in found or change is ChangeKind.DELETED:
        found[key] = change


def _of(row: Record) -> tuple[Session, _Watched, str, str]:
    session = object_session(row)
    assert session is not None  # noqa: S101 - rows are flushed by a session.
    watched = _WATCHED[type(row)]
    return session, watched, row.user_id, getattr(row, watched.id)  # type: ignore[attr-defined]


def _inserted(_mapper: Mapper[Any], _connection: Connection, row: Record) -> None:
    session, watched, owner, id_ = _of(row)
    _note(session, watched, owner, id_, ChangeKind.CREATED)


def _updated(_mapper: Mapper[Any], _connection: Connection, row: Record) -> None:
    session, watched, owner, id_ = _of(row)
    state = cast("InstanceState[Any]", inspect(row))
    changed = {name for name, item in state.attrs.items() if item.history.has_changes()}
    if not changed - watched.quiet:
        return
    is_gone = watched.deleted is not None and row.status is watched.deleted  # type: ignore[attr-defined]
    if not is_gone:
        _note(session, watched, owner, id_, ChangeKind.UPDATED)
    elif "status" in changed:
        _note(session, watched, owner, id_, ChangeKind.DELETED)


def _deleted(_mapper: Mapper[Any], _connection: Connection, row: Record) -> None:
    session, watched, owner, id_ = _of(row)
    if watched.whole is None:
        _note(session, watched, owner, id_, ChangeKind.DELETED)


def _before_many(execution: ORMExecuteState) -> None:
    """Note the rows that an UPDATE or DELETE will reach, and lock them."""
    statement = execution.statement
    if not isinstance(statement, Update | Delete):
        return
    mapper = execution.bind_mapper
    watched = None if mapper is None else _WATCHED.get(mapper.class_)
    if mapper is None or watched is None:
        return
    change = _change(statement, watched)
    if change is None:
        return
    record = mapper.class_
    wanted = [record.user_id, getattr(record, watched.id)]
    if watched.deleted is not None:
        wanted.append(record.status)
    rows = select(*wanted).with_for_update()
    if statement.whereclause is not None:
        rows = rows.where(statement.whereclause)
    for owner, id_, *status in execution.session.execute(rows).all():
        if watched.deleted is None or status != [watched.deleted]:
            _note(execution.session, watched, owner, id_, change)


def _change(statement: Update | Delete, watched: _Watched) -> ChangeKind | None:
    """Tell what a statement does to the rows it reaches; None when nobody wants to know."""
    if isinstance(statement, Delete):
        return ChangeKind.DELETED if watched.whole is None else None
    # Of what it sets SQLAlchemy tells nothing in public before it has compiled it.
    values = {
        column if isinstance(column, str) else column.key: value
        for column, value in (statement._values or {}).items()
    }
    if not values:
        raise TypeError(f"Which rows it changes is not known; give {statement.table} `values`.")
    if not values.keys() - watched.quiet:
        return None
    status = getattr(values.get("status"), "value", None)
    is_end = watched.deleted is not None and status is watched.deleted
    return ChangeKind.DELETED if is_end else ChangeKind.UPDATED


def _watch() -> None:
    for record in _WATCHED:
        event.listen(record, "after_insert", _inserted)
        event.listen(record, "after_update", _updated)
        event.listen(record, "after_delete", _deleted)
    event.listen(Session, "do_orm_execute", _before_many)


_watch()
