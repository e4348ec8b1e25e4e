"""The floor: a hand-written ASGI application with the same SQL, the same answers, and no more."""

import argparse
import asyncio
from typing import Any

import orjson
import uvicorn
from sqlalchemy import bindparam, text

from models.database import Database

_CONVERSATION = text("SELECT id, title FROM conversations WHERE id = :id AND user_id = :user")
_MESSAGES = text(
    "SELECT id, content, role, user_id FROM messages"
    " WHERE conversation_id = :id ORDER BY id LIMIT :n"
)
_AUTHORS = text("SELECT id, username FROM users WHERE id IN :ids").bindparams(
    bindparam("ids", expanding=True)
)
_LIST = text(
    "SELECT id, title FROM conversations WHERE user_id = :user"
    " ORDER BY updated_at DESC, id DESC LIMIT :n"
)


class Floor:
    """Answers POST /one {id, user} and POST /many {user}."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        body = orjson.loads((await receive())["body"])
        async with self.database.reading() as connection:
            answer = (
                await self.one(connection, body)
                if scope["path"] == "/one"
                else await self.many(connection, body)
            )
        data = orjson.dumps({"data": answer})
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(data)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    async def one(self, connection: Any, body: dict[str, Any]) -> dict[str, Any]:
        """Q1: a conversation with 50 messages and their authors."""
        found = (await connection.execute(_CONVERSATION, body)).one()
        messages = await self._messages(connection, found.id, 50)
        return {"conversation": {"id": found.id, "title": found.title, "messages": messages}}

    async def many(self, connection: Any, body: dict[str, Any]) -> dict[str, Any]:
        """Q2: 20 conversations with 10 messages and authors each."""
        rows = (await connection.execute(_LIST, {"user": body["user"], "n": 20})).all()
        nodes = [
            {"id": r.id, "title": r.title, "messages": await self._messages(connection, r.id, 10)}
            for r in rows
        ]
        return {"conversations": {"nodes": nodes}}

    async def _messages(self, connection: Any, id_: str, count: int) -> dict[str, Any]:
        rows = (await connection.execute(_MESSAGES, {"id": id_, "n": count})).all()
        ids = {row.user_id for row in rows if row.user_id}
        authors = (await connection.execute(_AUTHORS, {"ids": list(ids)})).all()
        names = {row.id: {"id": row.id, "username": row.username} for row in authors}
        return {
            "nodes": [
                {
                    "id": row.id,
                    "content": row.content,
                    "role": row.role.upper(),
                    "author": names.get(row.user_id),
                }
                for row in rows
            ]
        }


def main() -> None:
    """Serve the floor until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    config = uvicorn.Config(
        Floor(arguments.url), port=arguments.port, log_level="warning", access_log=False
    )
    asyncio.run(uvicorn.Server(config).serve())


if __name__ == "__main__":
    main()
