"""The floor: a hand-written ASGI application with the same SQL, the same answers, and no more.

No GraphQL, no sign-in, no layer between it and the driver.
"""

import argparse
import asyncio
import importlib
from typing import Any
from urllib.parse import urlsplit

import orjson
import uvicorn
import uvloop

_CONVERSATION = "SELECT id, title FROM conversations WHERE id = %s AND user_id = %s"
_LIST = (
    "SELECT id, title FROM conversations WHERE user_id = %s"
    " ORDER BY updated_at DESC, id DESC LIMIT 20"
)
_MESSAGES = (
    "(SELECT conversation_id, id, content, role, user_id FROM messages"
    " WHERE conversation_id = %s ORDER BY id LIMIT {})"
)
_AUTHORS = "SELECT id, username FROM users WHERE id IN ({})"
_CONNECTIONS = 20
_HEADERS = (b"content-type", b"application/json")
Data = dict[str, Any]


class Floor:
    """Answers POST /Q1 {id, user} and POST /Q2 {user}."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._pool: Any = None
        self._lock = asyncio.Lock()

    async def _connections(self) -> Any:
        async with self._lock:
            if self._pool is None:
                # aiomysql or asyncmy: both have the same interface.
                driver = importlib.import_module(self._url.scheme.removeprefix("mysql+"))
                self._pool = await driver.create_pool(
                    host=self._url.hostname,
                    port=self._url.port,
                    user=self._url.username,
                    password=self._url.password,
                    db=self._url.path.strip("/"),
                    charset="utf8mb4",
                    autocommit=True,
                    minsize=1,
                    maxsize=_CONNECTIONS,
                )
        return self._pool

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        asked = orjson.loads((await receive())["body"])
        pool = self._pool or await self._connections()
        async with pool.acquire() as connection, connection.cursor() as cursor:
            answer = await (
                self.one(cursor, asked) if scope["path"] == "/Q1" else self.many(cursor, asked)
            )
        body = orjson.dumps({"data": answer})
        headers = [_HEADERS, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def one(self, cursor: Any, asked: Data) -> Data:
        """Q1: a conversation with 50 messages and their authors."""
        await cursor.execute(_CONVERSATION, (asked["id"], asked["user"]))
        (found,) = await self._with_messages(cursor, await cursor.fetchall(), 50)
        return {"conversation": found}

    async def many(self, cursor: Any, asked: Data) -> Data:
        """Q2: 20 conversations with 10 messages and authors each."""
        await cursor.execute(_LIST, (asked["user"],))
        nodes = await self._with_messages(cursor, await cursor.fetchall(), 10)
        return {"conversations": {"nodes": nodes}}

    async def _with_messages(self, cursor: Any, conversations: Any, count: int) -> list[Data]:
        ids = [id_ for id_, _ in conversations]
        part = _MESSAGES.format(count)
        await cursor.execute(" UNION ALL ".join([part] * len(ids)), ids)
        messages = await cursor.fetchall()
        authors = list({row[4] for row in messages if row[4]})
        await cursor.execute(_AUTHORS.format(", ".join(["%s"] * len(authors))), authors)
        people = {id_: {"id": id_, "username": name} for id_, name in await cursor.fetchall()}
        nodes: dict[str, list[Data]] = {id_: [] for id_ in ids}
        for conversation, id_, content, role, author in messages:
            nodes[conversation].append(
                {
                    "id": id_,
                    "content": content,
                    "role": role.upper(),
                    "author": people.get(author),
                }
            )
        return [
            {"id": id_, "title": title, "messages": {"nodes": nodes[id_]}}
            for id_, title in conversations
        ]


def main() -> None:
    """Serve the floor until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="mysql+asyncmy://… or mysql+aiomysql://…")
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    config = uvicorn.Config(
        Floor(arguments.url), port=arguments.port, log_level="warning", access_log=False
    )
    uvloop.run(uvicorn.Server(config).serve())


if __name__ == "__main__":
    main()
