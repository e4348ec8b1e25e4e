"""`python -m app explain`: the plan of an operation, its cost, and the statements it sends."""

from typing import Any

from sqlalchemy import select

import schema
from app.beside import looking
from app.config import Settings
from app.errors import ConfigurationError
from app.graphql_documents import hash_of
from app.slow_operations import shortened
from models.accounts import User
from models.journal import Journal, journal, listen
from resolvers.base import Context
from schema.execution import Engine, ErrorDict, Limits, Prepared
from schema.execution.describing import describe
from schema.execution.plan import Plan
from services.accounts.sessions import viewer_of
from services.base import Deps


async def explain(
    settings: Settings,
    text: str,
    *,
    source: str,
    operation: str | None,
    variables: dict[str, Any],
    username: str | None,
) -> str:
    """Explain an operation; with a user's name, run it as they would and add what it sends.

    Only queries are run. Raises ConfigurationError for a document that cannot be, naming the places
    in `source`, and for a user there is not.
    """
    limits = Limits(
        max_depth=settings.max_query_depth,
        max_aliases=settings.max_query_aliases,
        max_tokens=settings.max_query_tokens,
        max_values=settings.max_variable_values,
        max_objects=settings.max_query_objects,
    )
    engine = Engine(schema.build()._schema, limits=limits, is_compiling=settings.compile_queries)
    prepared = engine.prepare(text, operation, variables)
    if isinstance(prepared, list):
        raise ConfigurationError("\n".join(_told(error, source) for error in prepared))
    plan = engine.plan(prepared)
    lines = [
        f"operation {prepared.type} {prepared.name or 'without a name'}",
        f"document sha256:{hash_of(text)}",
        f"points   {prepared.points} (at most {prepared.objects} objects)",
        f"executor {'plan' if isinstance(plan, Plan) else f'graphql-core ({plan})'}",
    ]
    if isinstance(plan, Plan):
        lines += ["", describe(plan)]
    if username is not None:
        lines += ["", *await _statements(settings, engine, prepared, username)]
    elif prepared.type == "query":
        lines += ["", "statements are told with --as USER: the query is then run as they would"]
    return "\n".join(lines)


def _told(error: ErrorDict, source: str) -> str:
    """Give one line for what is wrong, and where."""
    places = error.get("locations") or ()
    where = "".join(f":{place['line']}:{place['column']}" for place in places[:1])
    told = str(error["message"])
    if told.startswith("Must provide operation name"):
        told += " Name it with --operation."
    return f"{source}{where}: {told}"


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
    noted = Journal()
    stop, token = listen(deps.db.engine.sync_engine), journal.set(noted)
    try:
        result = await engine.execute(prepared, Context(deps, viewer, "explain"))
    finally:
        journal.reset(token)
        stop()
    return [
        f"statements {noted.count} in {noted.seconds * 1000:.1f} ms",
        *(f"  {seconds * 1000:7.1f} ms  {shortened(text)}" for text, seconds in noted.sent),
        *([f"  and {noted.count - len(noted.sent)} more"] if noted.count > len(noted.sent) else []),
        *(f"error    {error['message']}" for error in result.errors),
    ]
