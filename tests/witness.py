"""A witness of what really becomes of rows: triggers of SQLite, which see every write.

They know nothing of the application's own watching. Beside the changes they note the events told,
in the order of the writes, so that each transaction can be held to what it told.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any

from sqlalchemy import text

from services.base import Deps

# What people see of their things, by table; that a thing is used is left out.
VISIBLE = {
    "conversations": ("ConversationChanged", "id", "title status created_at updated_at"),
    "plans": ("PlanChanged", "id", "title description status started_at completed_at"),
    "plan_executions": ("PlanChanged", "plan_id", "status started_at"),
    "sandboxes": (
        "SandboxChanged",
        "id",
        "conversation_id template_id status driver failure created_at started_at paused_at "
        "stop_requested_at stopped_at expires_at",
    ),
    "memories": (
        "MemoryChanged",
        "id",
        "type content importance valid_from valid_until superseded_by_id source_message_id",
    ),
}
# Rows that are kept when what they stand for is deleted.
SOFT = ("conversations", "sandboxes")

_NOTE = "INSERT INTO witnessed (is_told, owner, event, id, change) VALUES"
Change = tuple[str, str, str, str]


def _statements() -> list[str]:
    made = [
        "CREATE TABLE witnessed (n INTEGER PRIMARY KEY AUTOINCREMENT, is_told INTEGER, "
        "owner TEXT, event TEXT, id TEXT, change TEXT)",
        "CREATE TRIGGER witness_told AFTER INSERT ON event_store "
        "WHEN NEW.topic LIKE 'viewer-events:%' BEGIN "
        f"{_NOTE} (1, substr(NEW.topic, 15), NEW.type, json_extract(NEW.payload, '$.id'), "
        "json_extract(NEW.payload, '$.change')); END",
    ]
    for table, (event, id_, columns) in VISIBLE.items():
        is_part = id_ != "id"
        differs = " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in columns.split())
        changed = "'UPDATED'"
        if table in SOFT:
            differs = f"OLD.status <> 'deleted' AND ({differs})"
            changed = "CASE NEW.status WHEN 'deleted' THEN 'DELETED' ELSE 'UPDATED' END"
        told = {
            "INSERT": ("NEW", "", "'UPDATED'" if is_part else "'CREATED'"),
            "UPDATE": ("NEW", f"WHEN {differs}", changed),
            "DELETE": ("OLD", "", "'DELETED'"),
        }
        if is_part:
            # They go only with the whole.
            del told["DELETE"]
        made += [
            f"CREATE TRIGGER witness_{table}_{verb} AFTER {verb} ON {table} {when} BEGIN {_NOTE} "
            f"(0, {row}.user_id, '{event}', {row}.{id_}, {change}); END"
            for verb, (row, when, change) in told.items()
        ]
    return made


class Witness:
    """Notes what is done to the database of `deps`, once installed."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._last = 0

    async def install(self) -> "Witness":
        """Begin to watch; does nothing where a witness was installed before."""
        async with self._deps.db.writing() as session:
            connection = await session.connection()
            known = await connection.scalar(
                text("SELECT count(*) FROM sqlite_master WHERE name = 'witnessed'")
            )
            if not known:
                for statement in _statements():
                    await connection.exec_driver_sql(statement)
            await session.commit()
        return self

    async def told(self) -> list[Change]:
        """Give what was told since last asked, having held each transaction to what it did."""
        async with self._deps.db.reading() as connection:
            rows = (
                await connection.execute(
                    text(
                        "SELECT n, is_told, owner, event, id, change FROM witnessed "
                        "WHERE n > :last ORDER BY n"
                    ),
                    {"last": self._last},
                )
            ).all()
        told: list[Change] = []
        done: dict[tuple[Any, ...], str] = {}
        for is_told, group in groupby(rows, key=lambda row: row.is_told):
            block = list(group)
            if not is_told:
                for row in block:
                    _collapse(done, row)
                continue
            changes = [(row.owner, row.event, row.id, row.change) for row in block]
            assert sorted(changes) == sorted((*key, change) for key, change in done.items())
            done.clear()
            told += changes
        assert not done, f"done, and told to nobody: {done}"
        if rows:
            self._last = rows[-1].n
        return told


def _collapse(done: dict[tuple[Any, ...], str], row: Any) -> None:
    """Add one write to what its transaction did: one change of a thing is told at most."""
    key = (row.owner, row.event, row.id)
    if row.change == "DELETED" or key not in done:
        done[key] = row.change


@asynccontextmanager
async def witnessed(deps: Deps) -> AsyncIterator[Witness | None]:
    """Hold what happens meanwhile to what it told; None, and no witness, but on SQLite."""
    if not deps.db.is_sqlite:
        yield None
        return
    witness = await Witness(deps).install()
    yield witness
    await witness.told()
