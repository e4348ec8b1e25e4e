"""Operations on conversations, and what their cursors are made of."""

import base64
from typing import Any

import orjson

from tests.api import operations as op
from tests.fixtures import Api, Person

STOP = """
mutation($id: ID!) { messageStop(id: $id) {
  message { id status content completedAt } errors { code message path } } }
"""
RETRY = """
mutation($id: ID!) { messageRetry(id: $id) {
  message { id status content } errors { code message path } } }
"""
UPDATE = """
mutation($id: ID!, $input: ConversationUpdateInput!) { conversationUpdate(id: $id, input: $input) {
  conversation { id title status } errors { code message path } } }
"""
DELETE = """
mutation($id: ID!) { conversationDelete(id: $id) {
  conversation { id status } errors { code message path } } }
"""
LIST = """
query($order: ConversationOrder, $filter: ConversationFilter, $first: Int, $after: String) {
  conversations(first: $first, after: $after, orderBy: $order, filter: $filter) {
    nodes { id title status } pageInfo { hasNextPage endCursor } } }
"""


def codes(payload: dict[str, Any]) -> list[tuple[str, str]]:
    return [(error["code"], ".".join(error["path"])) for error in payload["errors"]]


async def begin(api: Api, who: Person, title: str | None = None) -> str:
    made = await api.run(op.CREATE_CONVERSATION, who, title=title)
    assert made["errors"] == []
    return str(made["conversation"]["id"])


async def send(api: Api, who: Person, id_: str, content: str, key: str | None = None) -> Any:
    sent = await api.run(op.SEND, who, id=id_, content=content, key=key)
    assert sent["errors"] == [], sent
    return sent


def position(cursor: str) -> list[Any]:
    return list(orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))))


def encoded(position: list[Any]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(position)).decode().rstrip("=")
