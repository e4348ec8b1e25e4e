"""The operations, as each kind of server wants them. All of them give the same data."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.load import post
from benchmarks.querying.data import ASKED_MESSAGES, Shape

Variables = dict[str, Any]
CURSORS = frozenset({"cursor", "startCursor", "endCursor"})

_Q1 = """query Conversation($id: ID!) { conversation(id: $id) { id title
  messages(first: 50) { nodes { id content role author { id username } } } } }"""
_Q2 = """query Recent { conversations(first: 20) { nodes { id title
  messages(first: 10) { nodes { id content role author { id username } } } } } }"""
_Q3 = """
query Feed($id: ID!, $count: Int!, $lines: Int!, $details: Boolean!) {
  node(id: $id) {
    __typename
    id
    ... on User { username }
    ... on Message { content }
    ... on Conversation { ...Card messages(first: $lines) { ...Lines } }
  }
  conversations(first: $count) {
    edges { cursor node { ...Card messages(first: $lines) { ...Lines } } }
    pageInfo { ...Place }
  }
}
fragment Card on Conversation {
  __typename id title status
  createdAt @include(if: $details)
  updatedAt @skip(if: $details)
  user { ...Person }
}
fragment Lines on MessageConnection {
  edges { cursor node { __typename ... on Message { id role text: content } author { ...Person } } }
  pageInfo { ...Place }
}
fragment Place on PageInfo { hasNextPage hasPreviousPage startCursor endCursor }
fragment Person on User { __typename id username displayName }
"""

# The same of what PostGraphile makes of the tables; `rowId` is the column `id`.
_POSTGRAPHILE_Q1 = """query Conversation($id: String!) {
  conversation: conversationByRowId(rowId: $id) { id: rowId title
    messages: messagesByConversationId(first: 50, orderBy: ROW_ID_ASC) {
      nodes { id: rowId content role author: userByUserId { id: rowId username } } } } }"""
_POSTGRAPHILE_Q2 = """query Recent($user: String!) {
  conversations: allConversations(
    first: 20, condition: {userId: $user}, orderBy: [UPDATED_AT_DESC, ROW_ID_DESC]
  ) { nodes { id: rowId title
    messages: messagesByConversationId(first: 10, orderBy: ROW_ID_ASC) {
      nodes { id: rowId content role author: userByUserId { id: rowId username } } } } } }"""
_POSTGRAPHILE_Q3 = """
query Feed($id: ID!, $user: String!, $count: Int!, $lines: Int!, $details: Boolean!) {
  node(id: $id) {
    __typename
    ... on User { id: rowId username }
    ... on Message { id: rowId content }
    ... on Conversation {
      ...Card
      messages: messagesByConversationId(first: $lines, orderBy: ROW_ID_ASC) { ...Lines }
    }
  }
  conversations: allConversations(
    first: $count, condition: {userId: $user}, orderBy: [UPDATED_AT_DESC, ROW_ID_DESC]
  ) {
    edges { cursor node {
      ...Card
      messages: messagesByConversationId(first: $lines, orderBy: ROW_ID_ASC) { ...Lines }
    } }
    pageInfo { ...Place }
  }
}
fragment Card on Conversation {
  __typename id: rowId title status
  createdAt @include(if: $details)
  updatedAt @skip(if: $details)
  user: userByUserId { ...Person }
}
fragment Lines on MessageConnection {
  edges { cursor node {
    __typename
    ... on Message { id: rowId role text: content }
    author: userByUserId { ...Person }
  } }
  pageInfo { ...Place }
}
fragment Place on PageInfo { hasNextPage hasPreviousPage startCursor endCursor }
fragment Person on User { __typename id: rowId username displayName }
"""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: its text here and for PostGraphile, and the levels of objects it reads.

    `levels` is how many statements it may take: one for each object field, whatever the number of
    parents. `authors` is how often the viewer is at least in the answer.
    """

    name: str
    title: str
    text: str
    postgraphile: str
    variables: Callable[[Shape], Sequence[Variables]]
    levels: int
    authors: int


def _each(shape: Shape) -> Sequence[Variables]:
    return [{"id": id_} for id_ in shape.asked_ids]


def _feeds(shape: Shape) -> Sequence[Variables]:
    rest = {"count": 10, "lines": 5, "details": True}
    return [{"id": id_, **rest} for id_ in shape.asked_ids]


OPERATIONS = {
    "Q1": Operation(
        "Q1",
        f"a conversation with {ASKED_MESSAGES} messages and their authors",
        *(_Q1, _POSTGRAPHILE_Q1, _each),
        levels=3,
        authors=ASKED_MESSAGES // 2,
    ),
    "Q2": Operation(
        "Q2",
        "20 conversations with 10 messages and authors each",
        *(_Q2, _POSTGRAPHILE_Q2, lambda _: [{}]),
        levels=3,
        authors=100,
    ),
    "Q3": Operation(
        "Q3",
        "`node` and 10 conversations with 5 messages each, as Relay asks",
        *(_Q3, _POSTGRAPHILE_Q3, _feeds),
        # The node and what hangs on it are read beside the list: twice as many object fields.
        levels=8,
        authors=30,
    ),
}


def graphql(operation: Operation, shape: Shape, headers: dict[str, str]) -> list[bytes]:
    """Give the requests of an operation in the product's schema."""
    name = operation.text.split("query ")[1].split("(")[0].split(" ")[0]
    return [
        _request({"query": operation.text, "operationName": name, "variables": variables}, headers)
        for variables in operation.variables(shape)
    ]


def postgraphile(operation: Operation, shape: Shape) -> list[bytes]:
    """Give the requests of an operation in PostGraphile's schema."""
    text = operation.postgraphile
    found = []
    for variables in operation.variables(shape):
        given = {**variables}
        if "$user" in text:
            given["user"] = shape.viewer_id
        if "node(" in text:
            node_id = orjson.dumps(["Conversation", variables["id"]])
            given["id"] = base64.b64encode(node_id).decode()
        found.append(_request({"query": text, "variables": given}, {}))
    return found


def floor(operation: Operation, shape: Shape) -> list[bytes]:
    """Give the requests of an operation to the hand-written application."""
    return [
        post(f"/{operation.name}", orjson.dumps({**variables, "user": shape.viewer_id}), {})
        for variables in operation.variables(shape)
    ]


def _request(body: dict[str, Any], headers: dict[str, str]) -> bytes:
    return post("/graphql", orjson.dumps(body), headers)
