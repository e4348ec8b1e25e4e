"""Tables of sandboxes: what rows of before become, and what the database itself refuses."""

# ruff: noqa: S608 - what is put into statements here is written here as well.

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from app.database import migrate
from models.accounts import User
from models.base import Record, now
from models.database import Database
from models.sandboxes import (
    Sandbox,
    SandboxConnection,
    SandboxFinding,
    SandboxPort,
    SandboxRemoval,
    SandboxSnapshot,
    SandboxTemplate,
    SandboxTemplateVersion,
    SandboxUsage,
)
from models.states import ConnectionVerdict, FileVerdict, PortProtocol, SandboxExpiry

AT = "2026-01-02 03:04:05.000006"
# As the version before wrote them: only its columns are named.
BEFORE = (
    "INSERT INTO users (id, username, email, password_hash, display_name, is_active, created_at, "
    f"updated_at) VALUES ('usr_1', 'ada', 'ada@example.org', 'x', 'Ada', 1, '{AT}', '{AT}')",
    "INSERT INTO roles (id, name) VALUES ('rol_1', 'user')",
    "INSERT INTO sandbox_templates (id, name, language, image_name, image_tag, is_active, "
    f"created_at, updated_at) VALUES ('stp_1', 'python', 'python', 'i', 't', 1, '{AT}', '{AT}')",
    "INSERT INTO sandboxes (id, user_id, template_id, status, driver, node_id, image_name, "
    "image_tag, created_at) VALUES "
    f"('sbx_1', 'usr_1', 'stp_1', 'running', 'docker', 'n', 'i', 't', '{AT}')",
    "INSERT INTO sandbox_workspaces (id, sandbox_id, root_path, size_bytes, created_at, "
    f"modified_at) VALUES ('swk_1', 'sbx_1', '/workspace', 3, '{AT}', '{AT}')",
    "INSERT INTO sandbox_executions (id, sandbox_id, command, timeout_s, status, stdout_bytes, "
    "stderr_bytes, is_truncated, created_at) VALUES "
    f"('sbe_1', 'sbx_1', 'true', 30, 'completed', 0, 0, 0, '{AT}')",
    "INSERT INTO sandbox_resources (id, sandbox_id, cpu_limit, memory_limit, disk_limit, "
    "pids_limit, timeout_s, created_at, updated_at) VALUES "
    f"('srs_1', 'sbx_1', 1000, 1, 1, 1, 1, '{AT}', '{AT}')",
    "INSERT INTO sandbox_files (id, sandbox_id, path, size_bytes, is_directory, created_at, "
    f"modified_at) VALUES ('sfl_1', 'sbx_1', 'a.txt', 3, 0, '{AT}', '{AT}')",
    "INSERT INTO sandbox_ports (id, sandbox_id, container_port, host_port, protocol, created_at) "
    f"VALUES ('spt_1', 'sbx_1', 80, 8000, 'tcp', '{AT}')",
)
# What the columns that came later hold in those rows.
AFTER: dict[str, dict[str, Any]] = {
    "roles": {"sandbox_quota": None},
    "sandbox_templates": {
        "image_digest": None,
        "version": 1,
        "python_version": None,
        "checked_at": None,
    },
    "sandboxes": {
        "image_digest": None,
        "template_version": None,
        "idle_timeout_s": None,
        "on_expiry": SandboxExpiry.STOP,
        "is_persistent": False,
        "restored_from": None,
        "pool_key": None,
    },
    "sandbox_workspaces": {"inodes": 0, "snapshot_id": None},
    "sandbox_executions": {
        "argv": None,
        "is_background": False,
        "terminal_rows": None,
        "terminal_cols": None,
        "output_limit": None,
        "pid": None,
        "stdin_bytes": 0,
    },
    "sandbox_resources": {"inodes_limit": 65536},
    "sandbox_files": {"scanned_at": None, "verdict": FileVerdict.UNSCANNED, "finding": None},
    "sandbox_ports": {"token_epoch": 0},
}


@pytest.fixture
async def database(empty_database_url: str) -> AsyncIterator[Database]:
    opened = Database(empty_database_url)
    try:
        yield opened
    finally:
        await opened.aclose()


async def run(database: Database, statements: Sequence[str]) -> None:
    async with database.engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def test_rows_of_before_keep_what_they_have_and_get_what_is_new(database: Database) -> None:
    await migrate(database, "0002")
    await run(database, BEFORE)

    await migrate(database)

    found: dict[str, dict[str, Any]] = {}
    async with database.reading() as connection:
        for name, expected in AFTER.items():
            table = Record.metadata.tables[name]
            columns = [table.columns[column] for column in expected]
            found[name] = dict((await connection.execute(select(*columns))).mappings().one())
        kept = (await connection.execute(select(Sandbox.driver, Sandbox.created_at))).one()
    assert found == AFTER
    assert (kept.driver, f"{kept.created_at:%Y-%m-%d %H:%M:%S.%f}") == ("docker", AT)


async def test_going_back_keeps_the_rows_there_were(database: Database) -> None:
    await migrate(database, "0002")
    await run(database, BEFORE)
    await migrate(database)

    await migrate(database, "0002")

    async with database.reading() as connection:
        counts = [await connection.scalar(text(f"SELECT COUNT(*) FROM {table}")) for table in AFTER]
    assert counts == [1] * len(AFTER)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [("sandboxes", "on_expiry", "linger"), ("sandbox_files", "verdict", "dubious")],
)
async def test_the_database_itself_refuses_a_state_there_is_not(
    database: Database, table: str, column: str, value: str
) -> None:
    await migrate(database, "0002")
    await run(database, BEFORE)
    await migrate(database)

    with pytest.raises(DBAPIError):
        await run(database, [f"UPDATE {table} SET {column} = '{value}'"])


NEW_TABLES = [
    (
        SandboxTemplateVersion,
        {"template_id": "stp_1", "version": 1, "image_digest": "sha256:0", "python_version": "3.1"},
    ),
    (
        SandboxSnapshot,
        {
            "user_id": "usr_1",
            "sandbox_id": "sbx_1",
            "node_id": "n",
            "path": "a.tar.gz",
            "sha256": "0" * 64,
            "size_bytes": 2**40,
        },
    ),
    (
        SandboxConnection,
        {
            "sandbox_id": "sbx_1",
            "host": "example.org",
            "port": 443,
            "verdict": ConnectionVerdict.DENIED,
            "bytes_in": 2**40,
        },
    ),
    (SandboxUsage, {"sandbox_id": "sbx_1", "cpu_ms": 2**40, "memory_bytes": 2**40}),
    (
        SandboxFinding,
        {
            "sandbox_id": "sbx_1",
            "user_id": "usr_1",
            "path": "a",
            "rule": "EICAR",
            "engine": "yara",
            "sha256": "0" * 64,
        },
    ),
    (
        SandboxRemoval,
        {"node_id": "n", "kind": "container", "name": "c", "sandbox_id": "sbx_1", "reason": "r"},
    ),
]


@pytest.fixture
async def peopled(database: Database) -> Database:
    await migrate(database)
    await run(database, BEFORE)
    return database


@pytest.mark.parametrize(("table", "values"), NEW_TABLES, ids=lambda v: getattr(v, "prefix", ""))
async def test_a_row_comes_back_as_it_went(
    peopled: Database, table: type[Record], values: dict[str, Any]
) -> None:
    async with peopled.engine.begin() as connection:
        await connection.execute(insert(table).values(**values))

    async with peopled.reading() as connection:
        columns = [getattr(table, name) for name in values]
        row = (await connection.execute(select(*columns))).one()
    assert dict(row._mapping) == values


async def test_with_its_sandbox_goes_what_is_known_of_it_but_no_snapshot_and_no_removal(
    peopled: Database,
) -> None:
    async with peopled.engine.begin() as connection:
        for table, values in NEW_TABLES:
            await connection.execute(insert(table).values(**values))
        await connection.execute(text("DELETE FROM sandboxes"))

    left: dict[str, int] = {}
    async with peopled.reading() as connection:
        for table, _ in NEW_TABLES:
            left[table.__tablename__] = len((await connection.execute(select(table.id))).all())  # type: ignore[attr-defined]
        origin = await connection.scalar(select(SandboxSnapshot.sandbox_id))
    assert left == {
        "sandbox_template_versions": 1,
        "sandbox_snapshots": 1,
        "sandbox_connections": 0,
        "sandbox_usage": 0,
        "sandbox_findings": 0,
        "sandbox_removals": 1,
    }
    assert origin is None


async def test_a_template_has_a_version_once(peopled: Database) -> None:
    version = {"template_id": "stp_1", "version": 2}
    async with peopled.engine.begin() as connection:
        await connection.execute(insert(SandboxTemplateVersion).values(**version))

    with pytest.raises(IntegrityError):
        async with peopled.engine.begin() as connection:
            await connection.execute(insert(SandboxTemplateVersion).values(**version))


async def test_what_a_model_leaves_out_is_as_in_rows_of_before(peopled: Database) -> None:
    async with peopled.engine.begin() as connection:
        await connection.execute(
            insert(Sandbox).values(
                id="sbx_2", user_id="usr_1", driver="docker", node_id="n", image_name="i"
            )
        )
        await connection.execute(
            insert(SandboxPort).values(
                sandbox_id="sbx_2", container_port=1, host_port=1, protocol=PortProtocol.TCP
            )
        )
        await connection.execute(insert(SandboxTemplate).values(name="b", image_name="i"))
        await connection.execute(
            insert(User).values(
                username="b", email="b", password_hash="", display_name="b", created_at=now()
            )
        )
        sandbox = (
            await connection.execute(
                select(Sandbox.on_expiry, Sandbox.is_persistent).where(Sandbox.id == "sbx_2")
            )
        ).one()
        epoch = await connection.scalar(
            select(SandboxPort.token_epoch).where(SandboxPort.sandbox_id == "sbx_2")
        )
    assert tuple(sandbox) == (SandboxExpiry.STOP, False)
    assert epoch == 0
