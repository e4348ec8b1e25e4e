"""What an operation may ask for, and what reading a document may take."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from graphql import get_introspection_query

import schema
from app.graphql_reply import status_of
from app.server import Server
from schema.execution import Engine, Limits, ParsedDocument, Prepared, Result
from schema.execution import documents as documents_module
from schema.execution import reader as reader_module
from schema.execution.reader import Reader, is_small
from tests.api.transport.conftest import hear, serving, subscribe
from tests.api.transport.sample import graphql_schema
from tests.fixtures import settings_for

PRODUCT = schema.build()._schema


def objects(query: str, **variables: Any) -> int:
    prepared = Engine(PRODUCT, limits=Limits(max_objects=10**12)).prepare(query, None, variables)
    assert isinstance(prepared, Prepared), prepared
    return prepared.objects


def codes(answer: Prepared | list[dict[str, Any]]) -> list[str]:
    return [] if isinstance(answer, Prepared) else [e["extensions"]["code"] for e in answer]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("{ viewer { __typename } }", 2),
        ("{ conversations { nodes { user { __typename } } } }", 1 + 20 * 2 + 2),
        ("{ conversations(first: 7) { nodes { user { __typename } } } }", 1 + 7 * 2 + 1),
        ("{ conversations(last: 7) { edges { node { __typename } } } }", 1 + 7 * 2 + 1),
        ("{ conversations(first: null) { nodes { user { __typename } } } }", 1 + 20 * 2 + 2),
        ("{ conversations(first: 0) { nodes { id } pageInfo { hasNextPage } } }", 3),
        ("{ conversations(first: 5000) { nodes { id } } }", 1 + 100 + 10),
        ("{ memorySearch(query: 1) { memory { id } } }".replace("1", '"x"'), 10 * 2 + 1),
        ('{ memorySearch(query: "x", first: 50) { memory { id } } }', 50 * 2 + 5),
        ('{ nodes(ids: ["a", "b", "c"]) { ... on Message { id } } }', 4),
        ("{ viewer { roles { id } } }", 1 + 10 + 1),
        ('{ plan(id: "p") { steps { id } } }', 1 + 100 + 10),
        (
            "{ conversations(first: 10) { nodes { messages(first: 10) { nodes { id } } } } }",
            1 + 10 * 2 + 100 + 10,
        ),
        (
            "{ conversations(first: 10) { ...C } } fragment C on ConversationConnection "
            "{ nodes { ...D } ... { edges { node { ...D } } } } fragment D on Conversation { id }",
            1 + 10 * 3 + 2,
        ),
    ],
)
def test_objects_are_counted_by_page_sizes_along_the_path(query: str, expected: int) -> None:
    assert objects(query) == expected


def test_page_sizes_and_ids_may_be_variables() -> None:
    query = "query($n: Int = 30) { conversations(first: $n) { nodes { id } } }"
    assert (objects(query), objects(query, n=90)) == (1 + 30 + 3, 1 + 90 + 9)
    bare = "query($n: Int) { conversations(first: $n) { nodes { id } } }"
    assert (objects(bare), objects(bare, n=None)) == (23, 23)
    ids = "query($ids: [ID!]!) { nodes(ids: $ids) { id } }"
    assert objects(ids, ids=["a"] * 40) == 44
    assert objects(ids, ids=["a"] * 4000) == 110


def test_nested_pages_are_refused_with_the_estimate_and_advice() -> None:
    inner = "messages(first: 50) { nodes { id } }"
    for _ in range(2):
        inner = f"messages(first: 50) {{ nodes {{ conversation {{ {inner} }} }} }}"
    answer = Engine(PRODUCT).prepare(f'{{ conversation(id: "c") {{ {inner} }} }}')
    assert isinstance(answer, list)
    assert answer[0]["extensions"] == {"code": "LIMIT"}
    assert answer[0]["message"] == (
        "The operation asks for up to 145,152 objects; the limit is 50,000. "
        "Ask for smaller pages (`first` or `last`), or nest fewer lists."
    )
    steps = '{ plan(id: "p") { steps { plan { steps { plan { steps { id } } } } } } }'
    assert codes(Engine(PRODUCT).prepare(steps)) == ["LIMIT"]


def test_fragments_that_multiply_pages_are_weighed_once_each() -> None:
    chain = "{ conversations(first: 100) { nodes { ...F0 } } } " + " ".join(
        f"fragment F{n} on Conversation {{ messages(first: 100) {{ nodes {{ "
        f"conversation {{ ...F{n + 1} }} }} }} }}"
        for n in range(3)
    )
    answer = Engine(PRODUCT).prepare(chain + " fragment F3 on Conversation { id }")
    assert isinstance(answer, list)
    assert "up to 213,030,201 objects" in answer[0]["message"]


@pytest.mark.parametrize(
    "query",
    [
        "{ conversations(first: 100) { nodes { id title messages(first: 100) { nodes { id content "
        "role status createdAt author { id username displayName } } } } } }",
        "{ conversations(first: 100) { edges { cursor node { id messages(first: 100) { edges { "
        "cursor node { id content author { id username } } } } } } } }",
        "{ plans(first: 100) { nodes { id title steps { id description } } } }",
        get_introspection_query(
            specified_by_url=True,
            directive_is_repeatable=True,
            schema_description=True,
            input_value_deprecation=True,
        ),
    ],
)
def test_generous_queries_pass(query: str) -> None:
    assert codes(Engine(PRODUCT).prepare(query)) == []


async def test_http_and_websocket_refuse_what_asks_for_too_much() -> None:
    much = "{ inner { inner { inner { id } } } }"
    async with serving(engine={"limits": Limits(max_objects=3)}) as server:
        answer = await server.post(f"{{ thing {much} }}")
        assert codes(answer.json()["errors"]) == ["LIMIT"]
        async with server.socket() as socket:
            for id_, query in (("1", f"{{ thing {much} }}"), ("2", "subscription { things M }")):
                await subscribe(socket, id_, query.replace("M", much))
                heard = await hear(socket)
                assert (heard["id"], heard["type"]) == (id_, "error")
                assert codes(heard["payload"]) == ["LIMIT"]


def test_a_mutation_that_asks_for_too_much_is_refused() -> None:
    mutation = (
        'mutation { messageSend(input: {conversationId: "c", content: "x"}) { message { '
        "conversation { messages(first: 100) { nodes { conversation { messages(first: 100) { "
        "nodes { conversation { messages { nodes { id } } } } } } } } } } } }"
    )
    assert codes(Engine(PRODUCT).prepare(mutation)) == ["LIMIT"]


def test_the_setting_reaches_the_engine(tmp_path: Path) -> None:
    server = Server(settings_for(tmp_path, max_query_objects=100))
    query = "{ conversations(first: 100) { nodes { id } } }"
    answer = server.http.engine.prepare(query)
    assert isinstance(answer, list)
    assert "the limit is 100." in answer[0]["message"]


IDS = " ".join(f"...F{n}" for n in range(190))


@pytest.mark.parametrize(
    "attack",
    [
        "{ viewer { " + "id " * 640 + "} }",
        "{ viewer { " + "id " * 4950 + "} }",
        "{ viewer { " + "conversations { nodes { id } } " * 600 + "} }",
        "{ viewer { " + "conversations(first: 1) { nodes { id } } " * 400 + "} }",
        "{ " + ("viewer { " + "id " * 45 + "} ") * 30 + "}",
        f"{{ viewer {{ {IDS} }} }} "
        + " ".join(f"fragment F{n} on User {{ id username }}" for n in range(190)),
        "{ viewer { id } } fragment A on User { ...A " + "id " * 640 + "}",
        "{ viewer { id } } fragment A on User { ...B ...B } fragment B on User { ...A ...A "
        + "id " * 300
        + "}",
        " ".join(f"query Q{n} {{ ...F }}" for n in range(100))
        + " fragment F on Query { viewer { id username email displayName "
        + " ".join(f"a{n}: id" for n in range(40))
        + " } }",
    ],
)
def test_documents_dear_to_validate_are_refused_before_validation(
    attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(PRODUCT)
    plain = engine.prepare("{ viewer { id id username } }")
    assert isinstance(plain, Prepared)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("validated")

    monkeypatch.setattr(documents_module, "validate", never)
    assert codes(engine.prepare(attack)) == ["LIMIT"]


def test_repeats_of_colocated_fragments_pass() -> None:
    names = range(40)
    query = "{ viewer { id " + " ".join(f"...F{n}" for n in names) + " } } "
    query += " ".join(f"fragment F{n} on User {{ id username roles {{ id name }} }}" for n in names)
    assert codes(Engine(PRODUCT).prepare(query)) == []


def test_invalid_documents_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(graphql_schema)
    first = engine.prepare("{ nothing }")
    read: list[str] = []
    real = documents_module.read_document

    def counted(query: str, *rest: Any) -> Any:
        read.append(query)
        return real(query, *rest)

    monkeypatch.setattr(documents_module, "read_document", counted)
    assert engine.prepare("{ nothing }") == first
    assert read == []
    for number in range(300):
        engine.prepare(f"{{ nothing{number} }}")
    assert len(engine.documents._refused) == 256
    assert engine.prepare("{ nothing }") == first
    assert read[-1] == "{ nothing }"
    long = "{ " + "n" * 5000 + " }"
    engine.prepare(long)
    engine.prepare(long)
    assert read[-2:] == [long, long]


def test_size_is_told_by_tokens() -> None:
    assert is_small('{ hello(name: "' + "x" * 3000 + '") }')
    assert is_small("{ " + "id " * 290 + "}")
    assert not is_small("{ " + "id " * 310 + "}")
    assert not is_small("{" * 301)
    assert not is_small("x" * 4001)


class Gate:
    """Stands for the reading of documents, and lets it go on when told."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.threads: set[str] = set()
        self.count = 0

    def __call__(self, query: str, *rest: Any) -> Any:
        assert self.go_on.wait(60)
        self.count += 1
        self.threads.add(threading.current_thread().name)
        return documents_module.read_document(query, *rest)


async def test_one_thread_reads_and_what_overflows_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate()
    monkeypatch.setattr(reader_module, "read_document", gate)
    reader = Reader(graphql_schema, Limits(), queued=2)
    waiting = [asyncio.ensure_future(reader.read(f"query {name} {{ hello }}")) for name in "AABB"]
    await asyncio.sleep(0)
    refused = await reader.read("query C { hello }")
    assert isinstance(refused, list)
    assert refused[0]["extensions"] == {"code": "UNAVAILABLE", "retryAfter": 1}
    assert status_of(Result.refused(refused), "application/json") == 503
    waiting[0].cancel()
    gate.go_on.set()
    cancelled, *read = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert all(isinstance(document, ParsedDocument) for document in read)
    assert gate.count == 2
    assert len(gate.threads) == 1
    assert isinstance(await reader.read("query C { hello }"), ParsedDocument)
    assert reader._reading == {}


async def test_unavailable_is_not_remembered_for_the_document() -> None:
    engine = Engine(graphql_schema)
    query = "{ hello } # " + "x " * 400
    engine._reader = Reader(graphql_schema, Limits(), queued=1)
    assert engine._reader._room.acquire(blocking=False)
    assert codes(await engine.prepare_async(query)) == ["UNAVAILABLE"]
    engine._reader._room.release()
    assert codes(await engine.prepare_async(query)) == []
