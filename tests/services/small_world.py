"""One process of the application without its shell: a real database, bus and embedder."""

import importlib
import pkgutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from graphql import ExecutionResult
from sqlalchemy import event

import models
import schema
from models.accounts import User
from models.base import Record
from models.conversations import Conversation, Message
from models.database import Database
from models.states import MessageRole
from resolvers.base import Context
from services.accounts import roles
from services.accounts.sessions import viewer_of
from services.base import ANONYMOUS, Deps, Viewer, work
from services.events.local import LocalBus
from services.language.embeddings import Embedder
from services.options import Options
from services.plans import running as _running  # noqa: F401 - registers how plans are run.


class NoSandboxes:
    """The far end of `run_code`; a test replaces it by what it needs."""

    async def run_code(self, viewer: Viewer, **_: Any) -> Any:
        raise AssertionError("this test runs no code")


@asynccontextmanager
async def process(
    path: Path, *, url: str | None = None, sandboxes: Any = None, **options: Any
) -> AsyncIterator[Deps]:
    """Open one process over the SQLite file `path`, or the database `url`; several may share it."""
    for module in pkgutil.iter_modules(models.__path__):
        importlib.import_module(f"models.{module.name}")
    db, bus, embedder = Database(url or f"sqlite+aiosqlite:///{path}"), LocalBus(None), Embedder()
    await bus.start()
    made = Deps(
        options=Options(data_dir=path.parent, **options),
        db=db,
        bus=bus,
        provider=None,
        embedder=embedder,
        sandboxes=sandboxes or NoSandboxes(),
    )
    try:
        async with db.engine.begin() as connection:
            await connection.run_sync(Record.metadata.create_all)
        async with work(made) as unit:
            await roles.seed(unit)
        yield made
    finally:
        await bus.aclose()
        await embedder.aclose()
        await db.aclose()


async def person(deps: Deps, name: str, role: str = "user") -> Viewer:
    """Give somebody with an account and a role."""
    async with work(deps) as unit:
        user = User(
            username=name, email=f"{name}@example.org", password_hash="-", display_name=name
        )
        unit.session.add(user)
        await unit.session.flush()
        await roles.grant(unit, user.id, [role])
        user_id = user.id
    viewer = await viewer_of(deps, user_id)
    assert viewer is not None
    return viewer


async def message(deps: Deps, viewer: Viewer, content: str, **values: Any) -> Message:
    """Give a message of somebody in a conversation of its own."""
    async with work(deps) as unit:
        conversation = Conversation(user_id=viewer.id)
        unit.session.add(conversation)
        await unit.session.flush()
        row = Message(
            **{
                "conversation_id": conversation.id,
                "user_id": viewer.id,
                "role": MessageRole.USER,
                "content": content,
                **values,
            }
        )
        unit.session.add(row)
        await unit.session.flush()
        return row.frozen()


async def ask(
    deps: Deps, query: str, viewer: Viewer = ANONYMOUS, **variables: Any
) -> dict[str, Any]:
    """Give the data of an operation that must have no top-level errors."""
    result = await answer(deps, query, viewer, **variables)
    assert result.errors is None, result.errors
    assert result.data is not None
    return result.data


async def answer(
    deps: Deps, query: str, viewer: Viewer = ANONYMOUS, **variables: Any
) -> ExecutionResult:
    """Give the whole answer to an operation."""
    return await schema.build().execute(
        query, variable_values=variables, context_value=Context(deps, viewer)
    )


@contextmanager
def statements(deps: Deps):
    """Collect the SELECT statements run inside the block."""
    found: list[str] = []

    def note(_connection, _cursor, statement, *_):
        if statement.lstrip().upper().startswith("SELECT"):
            found.append(statement)

    engine = deps.db.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)
