"""Subscriptions' fields called directly answer as the executor does, whatever they are given."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
import strawberry
from graphql import GraphQLSchema

from schema.execution import Engine, Prepared, Result
from schema.execution.roots import PlainVariables, Root
from services.errors import RequestError

Calls = list[tuple[str, dict[str, Any]]]


class Context:
    """Notes what resolvers were called with."""

    request_id = "request-1"

    def __init__(self) -> None:
        self.calls: Calls = []


@strawberry.input
class Window:
    size: int = 1


Info = strawberry.Info[Context, None]


async def _once(text: str) -> AsyncGenerator[str, None]:
    yield text


@strawberry.type
class Query:
    here: bool = True


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def news(
        self,
        info: Info,
        topic_name: strawberry.ID,
        after: str | None = None,
        limit: int = 7,
        ratio: float | None = None,
        is_loud: bool = False,
    ) -> AsyncGenerator[str, None]:
        given = {"topic": topic_name, "after": after, "limit": limit, "ratio": ratio}
        info.context.calls.append((info.field_name, {**given, "loud": is_loud, "at": info.path}))
        return _once(str(topic_name))

    @strawberry.subscription
    async def windowed(self, info: Info, window: Window) -> AsyncGenerator[str, None]:
        info.context.calls.append(("windowed", {"size": window.size}))
        return _once("w")

    @strawberry.subscription
    async def refused(self, info: Info, secret: bool = False) -> AsyncGenerator[str, None]:
        info.context.calls.append(("refused", {}))
        if secret:
            raise OSError("the password is hunter2")
        raise RequestError("BAD_USER_INPUT", "Not like this.")

    @strawberry.subscription
    async def generated(self, name: str) -> AsyncGenerator[str, None]:
        yield name


SCHEMA: GraphQLSchema = strawberry.Schema(Query, subscription=Subscription)._schema


async def answer(query: str, variables: dict[str, Any] | None) -> tuple[list[Any], Calls]:
    """Give all answers of a subscription, and the calls they took."""
    engine, context = Engine(SCHEMA), Context()
    prepared = await engine.prepare_async(query, None, variables)
    if not isinstance(prepared, Prepared):
        return [prepared], []
    stream = await engine.subscribe(prepared, context)
    if isinstance(stream, Result):
        return [stream.payload()], context.calls
    return [result.payload() async for result in stream], context.calls


Given = list[tuple[str, dict[str, Any] | None]]

PLAIN: Given = [
    ('subscription { news(topicName: "a") }', None),
    ("subscription { news(topicName: 3, limit: 2, ratio: 1, isLoud: true) }", None),
    ('subscription { news(topicName: "a", after: null) }', None),
    ('subscription { other: news(topicName: "a", after: "é\\n") }', None),
    ("subscription($id: ID!) { news(topicName: $id) }", {"id": "x", "more": 1}),
    ("subscription($id: ID!) { news(topicName: $id) }", {"id": 12}),
    ("subscription($id: ID!) { news(topicName: $id) }", {"id": None}),
    ("subscription($id: ID!) { news(topicName: $id) }", {}),
    ("subscription($id: ID!) { news(topicName: $id) }", {"id": ["x"]}),
    ("subscription($i: ID!, $a: String) { news(topicName: $i, after: $a) }", {"i": "x"}),
    (
        "subscription($i: ID!, $a: String) { news(topicName: $i, after: $a) }",
        {"i": "x", "a": None},
    ),
    ("subscription($i: ID!, $a: String) { news(topicName: $i, after: $a) }", {"i": "", "a": 5}),
    ('subscription($n: Int) { news(topicName: "a", limit: $n) }', {}),
    ('subscription($n: Int) { news(topicName: "a", limit: $n) }', {"n": None}),
    ('subscription($n: Int!) { news(topicName: "a", limit: $n) }', {"n": 5}),
    ('subscription($n: Int!) { news(topicName: "a", limit: $n) }', {"n": "5"}),
    ('subscription($i: ID = "d") { news(topicName: $i) }', {}),
    ('subscription($i: ID = "d") { news(topicName: $i) }', {"i": None}),
    ("subscription { refused }", None),
    ("subscription { refused(secret: true) }", None),
    ('subscription { generated(name: "g") }', None),
    ("subscription A { __typename }", None),
]
OTHER: Given = [
    ("subscription($w: Window!) { windowed(window: $w) }", {"w": {"size": 4}}),
    ("subscription { windowed(window: {}) }", None),
    ('subscription($no: Boolean!) { news(topicName: "a") @skip(if: $no) }', {"no": True}),
    ('subscription($no: Boolean!) { news(topicName: "a") @skip(if: $no) }', {"no": False}),
    ('subscription { ... on Subscription { news(topicName: "a") } }', None),
    ('subscription { ...F } fragment F on Subscription { news(topicName: "a") }', None),
]


@pytest.mark.parametrize(("query", "variables"), PLAIN + OTHER)
async def test_the_answer_is_that_of_the_executor(
    query: str, variables: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = await answer(query, variables)
    monkeypatch.setattr(Root, "of", lambda *_: None)
    monkeypatch.setattr(PlainVariables, "of", lambda *_: None)
    assert direct == await answer(query, variables)


@pytest.mark.parametrize(("query", "is_plain"), [(PLAIN[4][0], True), (OTHER[0][0], False)])
async def test_what_is_plain_goes_past_the_executor(
    query: str, is_plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the executor was called")

    monkeypatch.setattr("schema.execution.engine.execute_subscription", fail)
    monkeypatch.setattr("schema.execution.prepared.get_variable_values", fail)
    if is_plain:
        answers, calls = await answer(query, {"id": "x"})
        assert answers == [{"data": {"news": "x"}}]
        assert len(calls) == 1
    else:
        with pytest.raises(AssertionError):
            await answer(query, {"w": {}})


async def test_operations_of_one_document_are_told_apart() -> None:
    engine, context = Engine(SCHEMA), Context()
    query = """subscription A($id: ID!) { news(topicName: $id) }
        subscription B($id: Int!) { news(topicName: "b", limit: $id) }"""
    for name, given in (("A", "x"), ("B", 9), ("A", "y")):
        prepared = engine.prepare(query, name, {"id": given})
        assert isinstance(prepared, Prepared)
        stream = await engine.subscribe(prepared, context)
        assert not isinstance(stream, Result)
        assert [result.errors async for result in stream] == [[]]
    assert [call["topic"] for _, call in context.calls] == ["x", "b", "y"]
    assert [call["limit"] for _, call in context.calls] == [7, 9, 7]
