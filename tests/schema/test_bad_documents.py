"""What is wrong with a request is told as graphql-core tells it, word for word."""

from typing import Any

import pytest
from graphql import graphql, validate
from graphql.language import parse

import schema
from schema.execution import Engine, Prepared

GRAPH = schema.build()._schema

SYNTAX = [
    "",
    " ",
    "# nothing but a comment",
    "{",
    "}",
    "{}",
    "{ viewer",
    "{ viewer { id }",
    "{ viewer { id } } }",
    "{ viewer { } }",
    "query",
    "query Q",
    "query Q {",
    "query Q() { viewer { id } }",
    "query ($a) { viewer { id } }",
    "query ($a:) { viewer { id } }",
    "query ($a: Int = ) { viewer { id } }",
    "query ($a: [Int) { viewer { id } }",
    "query ($a: Int!!) { viewer { id } }",
    "query ($a: Int = $b) { viewer { id } }",
    "mutation { : }",
    "{ a: }",
    "{ a: b: c }",
    "{ viewer(first: ) { id } }",
    "{ viewer(: 1) { id } }",
    "{ viewer() { id } }",
    "{ conversation(id: 'x') { id } }",
    '{ conversation(id: "x) { id } }',
    '{ conversation(id: "\n") { id } }',
    '{ conversation(id: "\\q") { id } }',
    '{ conversation(id: "\\u12") { id } }',
    '{ conversation(id: "\\uD800") { id } }',
    '{ conversation(id: "\\u{110000}") { id } }',
    '{ conversation(id: """x) { id } }',
    "{ conversations(first: 01) { nodes { id } } }",
    "{ conversations(first: 1.) { nodes { id } } }",
    "{ conversations(first: 1e) { nodes { id } } }",
    "{ conversations(first: -) { nodes { id } } }",
    "{ conversations(first: 1a) { nodes { id } } }",
    "{ conversations(first: +1) { nodes { id } } }",
    "{ ... }",
    "{ ... on }",
    "{ ... on User }",
    "{ ...F } fragment F { id }",
    "{ ...F } fragment F on { id }",
    "{ ...F } fragment on on User { id }",
    "fragment F on User { id",
    "{ viewer @ { id } }",
    "{ viewer @include(if) { id } }",
    "query @ { viewer { id } }",
    "{ viewer { id } } junk",
    "{ viewer { id } } query",
    "extend { a }",
    "type { a: Int }",
    "{ viewer { id } }\x00",
    "{ viewer ? { id } }",
    "{ viewer { id.name } }",
    "{ vïewer { id } }",
    "{ viewer { id } } \u200b",
    "{ viewer { id \U0001f986 } }",
    "{ viewer\r\n  { id }\r",
    "subscription { viewerEvents(",
    "{ nodes(ids: [) { id } }",
    "{ nodes(ids: [1, {a: }]) { id } }",
    "{ node(id: {a: 1, a}) { id } }",
    "..",
    "{ $a }",
    "{ viewer { $id } }",
    "query Q { viewer { id } } { viewer",
]

INVALID = [
    "{ ...on on { id } }",
    "{ nothing }",
    "{ viewr { id } }",
    "{ viewer { idd } }",
    "{ viewer { usernam emial } }",
    "mutation { nothing }",
    "subscription { nothing }",
    "{ viewer }",
    "{ viewer { id { x } } }",
    "{ viewer { roles } }",
    "{ conversation { id } }",
    '{ conversation(id: "a", id: "b") { id } }',
    '{ conversation(ids: "a") { id } }',
    "{ conversation(id: null) { id } }",
    "{ conversation(id: 1.5) { id } }",
    "{ conversation(id: true) { id } }",
    "{ conversation(id: A) { id } }",
    "{ conversation(id: [1]) { id } }",
    '{ conversations(first: "x") { nodes { id } } }',
    "{ conversations(first: 1.5) { nodes { id } } }",
    "{ conversations(first: 99999999999) { nodes { id } } }",
    "{ conversations(first: 1, firs: 2) { nodes { id } } }",
    "{ toolExecutions(status: NOTHING) { nodes { id } } }",
    '{ toolExecutions(status: "COMPLETED") { nodes { id } } }',
    "{ toolExecutions(status: COMPLETE) { nodes { id } } }",
    "{ nodes { id } }",
    '{ nodes(ids: ["a", null]) { id } }',
    "{ nodes(ids: [1, 2.5]) { id } }",
    "query Q { viewer { id } } query Q { viewer { id } }",
    "query Q { viewer { id } } { viewer { id } }",
    "{ viewer { id } } { viewer { id } }",
    "fragment F on User { id }",
    "{ viewer { ...F } }",
    "{ viewer { ...F } } fragment F on User { id } fragment F on User { id }",
    "{ viewer { id } } fragment F on User { id }",
    "{ viewer { ...F } } fragment F on User { ...F }",
    "{ viewer { ...A } } fragment A on User { ...B } fragment B on User { ...A }",
    "{ viewer { ...F } } fragment F on Nothing { id }",
    "{ viewer { ...F } } fragment F on Usr { id }",
    "{ viewer { ...F } } fragment F on Conversation { id }",
    "{ viewer { ... on Conversation { id } } }",
    "{ viewer { ... on ID { id } } }",
    "{ viewer { ...F } } fragment F on MessageSendInput { content }",
    "{ viewer { id: username id } }",
    '{ a: node(id: "a") { id } a: node(id: "b") { id } }',
    "{ viewer { a: id a: createdAt } }",
    "{ viewer @nothing { id } }",
    "{ viewer @include { id } }",
    "{ viewer @include(if: 1) { id } }",
    "{ viewer @include(if: null) { id } }",
    "{ viewer @include(if: true, unless: false) { id } }",
    "{ viewer @skip(if: true) @skip(if: true) { id } }",
    "query @skip(if: true) { viewer { id } }",
    "{ viewer @deprecated { id } }",
    "{ viewer @defer { id } }",
    "{ viewer { ... @stream { id } } }",
    "{ viewer { ... @defer(if: 1) { id } } }",
    "{ conversations { nodes @stream(initialCount: null) { id } } }",
    "query($a: Int) { viewer { id } }",
    "query($a: Int, $a: Int) { conversations(first: $a) { nodes { id } } }",
    "{ conversations(first: $a) { nodes { id } } }",
    "query($a: String) { conversations(first: $a) { nodes { id } } }",
    "query($a: Int) { conversation(id: $a) { id } }",
    "query($a: ID) { conversation(id: $a) { id } }",
    "query($a: [ID]) { nodes(ids: $a) { id } }",
    "query($a: ID!) { nodes(ids: $a) { id } }",
    "query($a: Nothing) { conversation(id: $a) { id } }",
    "query($a: User) { conversation(id: $a) { id } }",
    "query($a: Usr!) { conversation(id: $a) { id } }",
    'query($a: Int = "x") { conversations(first: $a) { nodes { id } } }',
    "query($a: ID! = null) { conversation(id: $a) { id } }",
    "query Q { viewer { ...F } } fragment F on User { conversations(first: $a) { nodes { id } } }",
    "mutation { messageSend { errors { code } } }",
    "mutation { messageSend(input: {}) { errors { code } } }",
    'mutation { messageSend(input: {content: "x"}) { errors { code } } }',
    'mutation { messageSend(input: {conversationId: "c", content: null}) { errors { code } } }',
    'mutation { messageSend(input: {conversationId: "c", content: 7}) { errors { code } } }',
    'mutation { messageSend(input: {conversationId: "c", content: "x", contnt: "y"}) '
    "{ errors { code } } }",
    'mutation { messageSend(input: {conversationId: "c", conversationId: "d", content: "x"}) '
    "{ errors { code } } }",
    'mutation { messageSend(input: "x") { errors { code } } }',
    'mutation { memoryCreate(input: {content: "x", importance: "high"}) { errors { code } } }',
    'mutation { planCreate(input: {title: "x", steps: [{}]}) { errors { code } } }',
    "subscription { viewerEvents { cursor } viewer: viewerEvents { cursor } }",
    'subscription { viewerEvents { cursor } conversationEvents(conversationId: "x") { cursor } }',
    "subscription { __typename }",
    "subscription { ...F } "
    "fragment F on Subscription { viewerEvents { cursor } a: viewerEvents { cursor } }",
    "type A { a: Int }",
    "schema { query: Query }",
    "{ viewer { id } } type A { a: Int }",
    "{ __schema }",
    "{ __type { name } }",
    '{ __type(name: "A", name: "B") { name } }',
    "{ __typename { a } }",
    "{ viewer { __nothing } }",
    "{ viewerEvents { cursor } }",
    "{ " + " ".join(f"nothing{n}" for n in range(9)) + " }",
]

ID = "query Q($id: ID!) { conversation(id: $id) { id } }"
FIRST = (
    "query($n: Int, $m: Int! = 3) { conversations(first: $n) { nodes { id } } "
    "a: memories(first: $m) { nodes { id } } }"
)
IDS = "query($ids: [ID!]!) { nodes(ids: $ids) { id } }"
SEND = "mutation($input: MessageSendInput!) { messageSend(input: $input) { errors { code } } }"
PLAN = "mutation($input: PlanCreateInput!) { planCreate(input: $input) { errors { code } } }"
STATUS = "query($s: RunState) { toolExecutions(status: $s) { nodes { id } } }"
FLAG = "query($b: Boolean!) { viewer @include(if: $b) { id } }"
VARIABLES: list[tuple[str, dict[str, Any]]] = [
    (ID, {}),
    (ID, {"id": None}),
    (ID, {"id": True}),
    (ID, {"id": 1.5}),
    (ID, {"id": ["a"]}),
    (ID, {"id": {"a": 1}}),
    (FIRST, {"n": "x"}),
    (FIRST, {"n": 1.5}),
    (FIRST, {"n": 2**31}),
    (FIRST, {"n": True}),
    (FIRST, {"m": None}),
    (FIRST, {"n": [1]}),
    (FIRST, {"n": "x", "m": "y"}),
    (IDS, {}),
    (IDS, {"ids": None}),
    (IDS, {"ids": [None]}),
    (IDS, {"ids": ["a", 1, None, {}]}),
    (IDS, {"ids": [["a"]]}),
    (IDS, {"ids": [None] * 60}),
    (SEND, {"input": None}),
    (SEND, {"input": "x"}),
    (SEND, {"input": {}}),
    (SEND, {"input": {"conversationId": "c"}}),
    (SEND, {"input": {"conversationId": None, "content": None}}),
    (SEND, {"input": {"conversationId": "c", "content": 7}}),
    (SEND, {"input": {"conversationId": "c", "content": "x", "contents": 1}}),
    (SEND, {"input": {"conversationId": "c", "content": "x", "\U0001f986": 1}}),
    (SEND, {"input": []}),
    (PLAN, {"input": {"title": "x", "steps": [{}]}}),
    (PLAN, {"input": {"title": "x", "steps": [{"description": None}]}}),
    (PLAN, {"input": {"title": "x", "steps": [{"description": "d", "dependsOn": [1, "2"]}]}}),
    (PLAN, {"input": {"title": "x", "steps": "none"}}),
    (STATUS, {"s": "NOTHING"}),
    (STATUS, {"s": "completed"}),
    (STATUS, {"s": 1}),
    (STATUS, {"s": ["COMPLETED"]}),
    (FLAG, {"b": "true"}),
    (FLAG, {"b": 1}),
    (FLAG, {}),
]

A_AND_B = "query A { viewer { id } } mutation B { sessionRevoke { errors { code } } }"
NAMES: list[tuple[str, str | None]] = [
    (A_AND_B, None),
    (A_AND_B, "C"),
    (A_AND_B, "a"),
    (A_AND_B, "A B"),
    (A_AND_B, "\U0001f986"),
    ("{ viewer { id } }", "Q"),
    ("fragment F on User { id }", None),
]


def told(errors: Any) -> list[dict[str, Any]]:
    """Give errors without what we add: codes and advice."""
    return [{k: v for k, v in dict(error).items() if k != "extensions"} for error in errors]


async def compare(
    query: str, variables: dict[str, Any] | None = None, name: str | None = None
) -> list[dict[str, Any]]:
    ours = Engine(GRAPH).prepare(query, name, variables)
    assert not isinstance(ours, Prepared), query
    theirs = await graphql(GRAPH, query, variable_values=variables, operation_name=name)
    assert theirs.data is None
    assert theirs.errors
    assert told(ours) == told(error.formatted for error in theirs.errors)
    assert all(error["extensions"]["code"] for error in ours)
    return ours


@pytest.mark.parametrize("query", SYNTAX)
async def test_what_is_no_document(query: str) -> None:
    (error,) = await compare(query)
    assert error["extensions"]["code"] == "GRAPHQL_PARSE_FAILED"


@pytest.mark.parametrize("query", INVALID)
async def test_a_document_that_the_schema_does_not_allow(query: str) -> None:
    errors = await compare(query)
    assert {error["extensions"]["code"] for error in errors} == {"GRAPHQL_VALIDATION_FAILED"}


@pytest.mark.parametrize(("query", "variables"), VARIABLES)
async def test_variables_of_the_wrong_kind(query: str, variables: dict[str, Any]) -> None:
    errors = await compare(query, variables)
    assert {error["extensions"]["code"] for error in errors} == {"BAD_USER_INPUT"}


@pytest.mark.parametrize(("query", "name"), NAMES)
async def test_an_operation_that_is_not_there(query: str, name: str | None) -> None:
    await compare(query, name=name)


@pytest.mark.parametrize("count", [11, 300])
def test_of_many_mistakes_the_first_ten_are_told_as_graphql_core_would(count: int) -> None:
    query = "{ viewer { " + " ".join(f"nothing{n}" for n in range(count)) + " } }"
    ours = Engine(GRAPH).prepare(query)
    assert not isinstance(ours, Prepared)
    theirs = validate(GRAPH, parse(query), max_errors=10)
    assert len(ours) == 11
    assert told(ours) == told(error.formatted for error in theirs)
