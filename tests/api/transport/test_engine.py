"""The engine without a transport: documents, limits, coercion, streams."""

import asyncio
from typing import Any

import pytest
from graphql import get_introspection_query

from schema.execution import Engine, Limits, Prepared, Result
from services.errors import RateLimitedError
from tests.api.transport.sample import Context, Probe, graphql_schema


def make_context() -> Context:
    return Context(Probe(), "req-1")


def prepared(engine: Engine, query: str, name: str | None = None, **variables: Any) -> Prepared:
    result = engine.prepare(query, name, variables)
    assert isinstance(result, Prepared), result
    return result


def refusal(engine: Engine, query: str, name: str | None = None, variables: Any = None) -> Any:
    result = engine.prepare(query, name, variables)
    assert isinstance(result, list)
    assert "extensions" in result[0]
    return result[0]


def nested(depth: int) -> str:
    return "{ thing " + "{ inner " * (depth - 2) + "{ id }" + "}" * (depth - 2) + "}"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("{", "GRAPHQL_PARSE_FAILED"),
        ("", "GRAPHQL_PARSE_FAILED"),
        ("{ nothing }", "GRAPHQL_VALIDATION_FAILED"),
        ("fragment F on Thing { id }", "GRAPHQL_VALIDATION_FAILED"),
        ("query A { hello } query B { hello }", "OPERATION_RESOLUTION_FAILURE"),
        ("query($i: ThingInput!) { make(input: $i) }", "BAD_USER_INPUT"),
        ("{ ...A } fragment A on Query { ...A }", "GRAPHQL_VALIDATION_FAILED"),
        ("subscription($v: Boolean!) { count @skip(if: $v) }", "GRAPHQL_VALIDATION_FAILED"),
        (
            "subscription($v: Boolean = true) { ... @include(if: $v) { count } }",
            "GRAPHQL_VALIDATION_FAILED",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_its_code(query: str, code: str) -> None:
    assert refusal(Engine(graphql_schema), query)["extensions"]["code"] == code


def test_operations_are_chosen_by_name() -> None:
    engine = Engine(graphql_schema)
    both = "query A { hello } mutation B { note(text: 1) }".replace("1", '"x"')
    assert prepared(engine, both, "A").type == "query"
    assert prepared(engine, both, "B").type == "mutation"
    error = refusal(engine, both, "C")
    assert error["extensions"]["code"] == "OPERATION_RESOLUTION_FAILURE"
    assert error["message"] == "Unknown operation named 'C'."
    assert prepared(engine, "{ hello }", "").type == "query"


def test_variables_are_coerced_once_and_checked() -> None:
    engine = Engine(graphql_schema)
    query = "query($i: ThingInput!) { make(input: $i) }"
    made = prepared(engine, query, i={"name": "ab"})
    assert made.variables["i"]["count"] == 1
    error = refusal(engine, query, None, {"i": {"name": "ab", "count": "many"}})
    assert error["extensions"]["code"] == "BAD_USER_INPUT"
    assert "Int cannot represent" in error["message"]
    assert refusal(engine, query, None, [1])["extensions"]["code"] == "BAD_USER_INPUT"


async def test_an_input_object_reaches_its_resolver() -> None:
    engine = Engine(graphql_schema)
    query = "query($i: ThingInput!) { make(input: $i) }"
    operation = prepared(engine, query, i={"name": "ab", "count": 2})
    result = await engine.execute(operation, make_context())
    assert result.payload() == {"data": {"make": "abab"}, "extensions": {"requestId": "req-1"}}


@pytest.mark.parametrize(
    ("within", "beyond", "limit", "words"),
    [
        (nested(15), nested(16), 15, "levels of fields"),
        (
            "{ " + " ".join(f"a{n}: hello" for n in range(30)) + " }",
            "{ " + "hello " * 31 + " }",
            30,
            "fields at its root",
        ),
        (
            "{ thing { " + " ".join(f"a{n}: id" for n in range(50)) + " } }",
            "{ thing { " + " ".join(f"a{n}: id" for n in range(51)) + " } }",
            50,
            "aliases",
        ),
        (
            "{ thing { " + " ".join("id @include(if: true)" for _ in range(50)) + " } }",
            "{ thing { " + " ".join("id @include(if: true)" for _ in range(51)) + " } }",
            50,
            "directives",
        ),
        (
            "{ " + " ".join(f"a{n}: __typename " for n in range(30)) + "}",
            "{ " + " ".join(f'a{n}: __type(name: "A") {{ name }} ' for n in range(6)) + "}",
            5,
            "aliases in introspection",
        ),
        (
            "{ hello " + "#\n" * 4997 + "}",
            "{ hello " + "#\n" * 5001 + "}",
            5000,
            "tokens",
        ),
        (
            '{ hello(name: "' + "x" * 99_000 + '") }',
            '{ hello(name: "' + "ü" * 50_000 + '") }',
            100_000,
            "bytes",
        ),
    ],
)
def test_each_limit_lets_in_what_is_within_and_names_itself_otherwise(
    within: str, beyond: str, limit: int, words: str
) -> None:
    engine = Engine(graphql_schema)
    assert isinstance(engine.prepare(within, None, None), Prepared)
    error = refusal(engine, beyond)
    assert error["extensions"]["code"] == "LIMIT"
    assert words in error["message"]
    assert str(limit) in error["message"]


def test_fragments_are_counted_where_they_are_spread() -> None:
    engine = Engine(graphql_schema, limits=Limits(max_aliases=7))
    # Each level doubles: F0 has 2 aliases, F1 has 2 + 2·2, F2 has 2 + 2·6.
    fragments = (
        "fragment F0 on Thing { a: id b: id } "
        "fragment F1 on Thing { a: inner { ...F0 } b: inner { ...F0 } } "
        "fragment F2 on Thing { a: inner { ...F1 } b: inner { ...F1 } } "
    )
    error = refusal(engine, fragments + "{ thing { ...F2 } }")
    assert "14 aliases; the limit is 7" in error["message"]


def test_exponential_fragments_and_long_chains_are_refused_quickly() -> None:
    engine = Engine(graphql_schema)
    doubling = "{ thing { ...F0 } } " + " ".join(
        f"fragment F{n} on Thing {{ a: inner {{ ...F{n + 1} }} b: inner {{ ...F{n + 1} }} }}"
        for n in range(60)
    )
    error = refusal(engine, doubling + " fragment F60 on Thing { id }")
    assert error["extensions"]["code"] == "LIMIT"
    chain = "{ thing { ...F0 } } " + " ".join(
        f"fragment F{n} on Thing {{ ...F{n + 1} }}" for n in range(1000)
    )
    chain += " fragment F1000 on Thing { id }"
    roomy = Engine(graphql_schema, limits=Limits(max_tokens=50_000))
    message = refusal(roomy, chain)["message"]
    assert message.startswith("The document has 1001 fragments; the limit is 200.")
    lenient = Engine(graphql_schema, limits=Limits(max_fragments=5000, max_tokens=50_000))
    error = refusal(lenient, chain)
    assert error["extensions"]["code"] == "LIMIT"
    assert "nests its fragments too deeply" in error["message"]
    deep = "{ thing " + "{ inner " * 2000 + "}" * 2001
    assert refusal(engine, deep)["extensions"]["code"] == "LIMIT"


async def test_the_introspection_of_graphiql_and_code_generators_passes() -> None:
    engine = Engine(graphql_schema)
    query = get_introspection_query(
        specified_by_url=True,
        directive_is_repeatable=True,
        schema_description=True,
        input_value_deprecation=True,
    )
    result = await engine.execute(prepared(engine, query), make_context())
    assert result.errors == []
    assert result.data["__schema"]["queryType"]["name"] == "Query"
    looping = "{ __schema { types { fields { type { fields { type { fields { name } } } } } } } }"
    assert refusal(engine, looping)["extensions"]["code"] == "LIMIT"


async def test_documents_are_read_once_and_forgotten_by_bytes() -> None:
    engine = Engine(graphql_schema, cache_bytes=100_000)
    first = prepared(engine, "{ hello }")
    assert prepared(engine, "{ hello }").document is first.document
    assert (engine.documents.hits, engine.documents.misses) == (1, 1)
    for number in range(200):
        assert isinstance(engine.prepare(f"query Q{number} {{ hello }}"), Prepared)
        assert engine.documents.size_bytes <= 100_000
    assert 5 < len(engine.documents) < 200
    assert engine.documents.known("{ hello }") is None
    assert engine.documents.known("query Q199 { hello }") is not None
    count = len(engine.documents)
    refusal(engine, "{ nothing }")
    assert len(engine.documents) == count


async def test_large_new_documents_are_read_off_the_loop_with_the_same_outcome() -> None:
    engine = Engine(graphql_schema)
    query = '{ hello(name: "' + "x" * 3000 + '") }'
    ready = await engine.prepare_async(query)
    assert isinstance(ready, Prepared)
    assert engine.prepare(query).document is ready.document  # type: ignore[union-attr]
    invalid = await engine.prepare_async(query.replace("hello", "nothing"))
    assert isinstance(invalid, list)
    assert invalid[0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"


async def test_admission_refuses_before_anything_runs() -> None:
    asked: list[str] = []

    async def admit(operation: Prepared, context: Any) -> None:
        asked.append(operation.type)
        context.extensions["cost"] = 7
        raise RateLimitedError("You have spent your points.", 3)

    engine = Engine(graphql_schema, admit=admit)
    context = make_context()
    result = await engine.execute(prepared(engine, 'mutation { note(text: "x") }'), context)
    assert not result.is_executed
    assert result.errors[0]["extensions"] == {"code": "RATE_LIMITED", "retryAfter": 3}
    assert result.payload()["extensions"]["cost"] == 7
    stream = await engine.subscribe(prepared(engine, "subscription { count }"), context)
    assert isinstance(stream, Result)
    assert not stream.is_executed
    assert asked == ["mutation", "subscription"]
    assert context.probe.mutations == []


async def test_cancelling_passes_through() -> None:
    engine = Engine(graphql_schema)
    context = make_context()
    task = asyncio.ensure_future(engine.execute(prepared(engine, "{ wait }"), context))
    await asyncio.wait_for(context.probe.entered.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert context.probe.cancelled.is_set()


async def test_every_event_is_executed_with_extensions_of_its_own() -> None:
    engine = Engine(graphql_schema)
    context = make_context()
    operation = prepared(engine, "subscription { things { id inner { label(size: 2) } } }")
    stream = await engine.subscribe(operation, context)
    assert not isinstance(stream, Result)
    results = [result async for result in stream]
    assert [result.data["things"]["id"] for result in results] == ["thing_1", "thing_2"]
    assert results[1].data["things"]["inner"] == {"label": "xx"}
    assert [dict(result.extensions or {})["event"] for result in results] == [1, 2]
    assert context.events == 2


async def test_closing_a_stream_closes_its_source_at_once() -> None:
    engine = Engine(graphql_schema)
    context = make_context()
    stream = await engine.subscribe(prepared(engine, "subscription { forever }"), context)
    assert not isinstance(stream, Result)
    assert (await anext(stream)).data == {"forever": 1}
    assert context.probe.open_streams == 1
    await stream.aclose()
    assert context.probe.open_streams == 0


async def test_a_source_that_fails_ends_its_stream_with_a_masked_error() -> None:
    engine = Engine(graphql_schema)
    stream = await engine.subscribe(prepared(engine, "subscription { failing }"), make_context())
    assert not isinstance(stream, Result)
    first, last = [result async for result in stream]
    assert first.data == {"failing": 1}
    assert not last.is_executed
    assert last.errors[0]["extensions"] == {"code": "INTERNAL", "requestId": "req-1"}


def test_a_shared_result_is_encoded_once() -> None:
    result = Result({"a": 1}, extensions={"b": 2})
    assert result.json() is result.json()
    assert result.json() == b'{"data":{"a":1},"extensions":{"b":2}}'
