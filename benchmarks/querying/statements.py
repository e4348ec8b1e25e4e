"""What one operation asks the database, counted in the database's own log."""

import asyncio
import re
from collections import Counter
from typing import Any

import httpx

from benchmarks.querying.operations import Operation
from benchmarks.querying.servers import Server
from benchmarks.querying.world import World

READS, SIGN_IN, OTHERS = "reads", "sign-in", "others"
_READ = re.compile(r"\bFROM\s+`?(conversations|messages|users)\b", re.IGNORECASE)
_SIGN_IN = re.compile(r"\b(auth_sessions|user_roles|role_permissions)\b", re.IGNORECASE)
_OURS = re.compile(r"general_log|log_output", re.IGNORECASE)
# The product's own housekeeping, which has nothing to do with a request.
_BACKGROUND = re.compile(r"\b(tasks|events|topics|sandbox\w*|executions)\b", re.IGNORECASE)


async def count(server: Server, world: World, operation: Operation) -> Counter[str]:
    """Give how many statements one request of an operation takes, by what they are for.

    The request is one of those that came often before: what is cached is cached.
    """
    database = await world.mariadb()
    variables = operation.variables(world.shape)[0]
    body = {"query": operation.text, "variables": variables}
    url, headers = f"http://127.0.0.1:{server.ports[0]}/graphql", world.headers(server.kind)
    async with httpx.AsyncClient(timeout=60, headers=headers) as client:
        for _ in range(3):
            await client.post(url, json=body)
        await asyncio.to_thread(_switch, database.connect, "ON")
        try:
            answer = (await client.post(url, json=body)).json()
        finally:
            await asyncio.to_thread(_switch, database.connect, "OFF")
    assert answer["data"] == world.expected(operation)[0], answer
    return await asyncio.to_thread(_logged, database.connect)


def _switch(connect: Any, state: str) -> None:
    with connect() as connection, connection.cursor() as cursor:
        if state == "ON":
            cursor.execute("SET GLOBAL log_output = 'TABLE'")
            cursor.execute("TRUNCATE TABLE mysql.general_log")
        cursor.execute(f"SET GLOBAL general_log = {state}")


def _logged(connect: Any) -> Counter[str]:
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT thread_id, CONVERT(argument USING utf8mb4) FROM mysql.general_log"
            " WHERE command_type IN ('Query', 'Execute')"
        )
        logged = [(int(thread), str(text)) for thread, text in cursor.fetchall()]
    ours = {thread for thread, text in logged if _OURS.search(text)}
    return Counter(
        _purpose(text)
        for thread, text in logged
        if thread not in ours and not _BACKGROUND.search(text)
    )


def _purpose(text: str) -> str:
    if _SIGN_IN.search(text):
        return SIGN_IN
    return READS if _READ.search(text) else OTHERS
