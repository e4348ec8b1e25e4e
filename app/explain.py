"""`python -m app explain`: the plan of an operation, its cost, and the statements it sends."""

from typing import Any

from sqlalchemy import event, select

import schema
from app.beside import looking
from app.config import Settings
from app.errors import ConfigurationError
from models.accounts import User
from resolvers.base import Context
from schema.execution import Engine, Limits, Prepared
from schema.execution.describing import describe
from schema.execution.plan import Plan
from services.accounts.sessions import viewer_of
from services.base import Deps


async def explain(
    settings: Settings,
    text: str,
    *,
    operation: str | None,
    variables: dict[str, Any],
    username: str | None,
) -> str:
    """Explain an operation; with a user's name, run it as they would and add what it sends.

    Only queries are run. Raises ConfigurationError for a document that cannot be, and for a user
    there is not.
    """
    limits = Limits(
        max_depth=settings.max_query_depth,
        max_aliases=settings.max_query_aliases,
        max_tokens=settings.max_query_tokens,
        max_values=settings.max_variable_values,
        max_objects=settings.max_query_objects,
    )
    engine = Engine(schema.build()._schema, limits=limits)
    prepared = engine.prepare(text, operation, variables)
    if isinstance(prepared, list):
        raise ConfigurationError("; ".join(error["message"] for error in prepared))
    plan = engine.plan(prepared)
    lines = [
        f"points   {prepared.points} (at most {prepared.objects} objects)",
        f"executor {'plan' if isinstance(plan, Plan) else f'graphql-core ({plan})'}",
    ]
    if isinstance(plan, Plan):
        lines += ["", describe(plan)]
    if username is not None:
        lines += ["", *await _statements(settings, engine, prepared, username)]
    return "\n".join(lines)


async def _statements(
    settings: Settings, engine: Engine, prepared: Prepared, username: str
) -> list[str]:
    if prepared.type != "query":
        raise ConfigurationError(f"--as runs queries alone, and this is a {prepared.type}")
    async with looking(settings) as deps:
        return await _sent(deps, engine, prepared, username)


async def _sent(deps: Deps, engine: Engine, prepared: Prepared, username: str) -> list[str]:
    async with deps.db.reading() as connection:
        user_id = await connection.scalar(select(User.id).where(User.username == username))
    viewer = None if user_id is None else await viewer_of(deps, user_id)
    if viewer is None:
        raise ConfigurationError(f"--as {username}: there is no such user")
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(" ".join(statement.split()))

    event.listen(deps.db.engine.sync_engine, "before_cursor_execute", note)
    try:
        result = await engine.execute(prepared, Context(deps, viewer, "explain"))
    finally:
        event.remove(deps.db.engine.sync_engine, "before_cursor_execute", note)
    errors = [f"error    {error['message']}" for error in result.errors]
    return [f"statements {len(sent)}", *(f"  {statement}" for statement in sent), *errors]
