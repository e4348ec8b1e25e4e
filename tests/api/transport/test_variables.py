"""Variables with more values than an operation may have are refused before any is coerced."""

import json
from pathlib import Path
from typing import Any

import pytest

import schema
from app.server import Server
from schema.execution import Engine, Limits, Prepared, count_values
from schema.execution import prepared as prepared_module
from tests.api.transport import streams
from tests.api.transport.conftest import hear, serving, subscribe
from tests.fixtures import settings_for

HELLO = "query($name: String) { hello(name: $name) }"
COUNT = "subscription($to: Int) { count(to: $to) }"
TOLD = "The variables have more than 100 values, "
FEW: dict[str, Any] = {"limits": Limits(max_values=100)}


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 0),
        ({"a": None, "b": 1, "c": "text, of [one] {value}"}, 3),
        ({"a": [], "b": {}}, 2),
        ({"a": [1, 2, 3]}, 4),
        ({"a": {"b": {"c": [1, {"d": True}]}}}, 6),
        ({"a": nested(50)}, 51),
    ],
)
def test_values_are_counted_at_every_depth(given: dict[str, Any], expected: int) -> None:
    assert count_values(given, 1000) == expected


@pytest.mark.parametrize(
    "values",
    [
        {"name": list(range(99))},
        {f"v{n}": n for n in range(100)},
        {"name": {"a": [{"b": n} for n in range(49)]}},
        {"name": nested(99)},
    ],
)
def test_the_most_there_may_be_pass_and_one_more_is_refused(values: dict[str, Any]) -> None:
    engine = Engine(schema.build()._schema, **FEW)
    assert isinstance(engine.prepare("{ viewer { id } }", None, values), Prepared)
    (error,) = engine.prepare("{ viewer { id } }", None, values | {"more": 0})
    assert error["extensions"]["code"] == "LIMIT"
    assert error["message"].startswith(TOLD)
    assert error["message"].endswith("Send less at a time, in several requests.")


def test_nothing_is_coerced_of_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    coerced: list[Any] = []

    def coerce(_schema: Any, _definitions: Any, given: Any, **_options: Any) -> Any:
        coerced.append(given)
        return given

    monkeypatch.setattr(prepared_module, "get_variable_values", coerce)
    engine = Engine(schema.build()._schema, **FEW)
    query = "query($ids: [ID!]!) { nodes(ids: $ids) { id } }"
    assert isinstance(engine.prepare(query, None, {"ids": ["a"] * 100}), list)
    assert coerced == []
    assert isinstance(engine.prepare(query, None, {"ids": ["a"] * 99}), Prepared)
    assert len(coerced) == 1


def refusal(answer: Any) -> str:
    (error,) = answer["errors"]
    assert error["extensions"]["code"] == "LIMIT"
    return str(error["message"])


async def test_http_refuses_them_by_post_and_by_get() -> None:
    much = {"name": [0] * 100}
    async with serving(engine=FEW) as server, server.client() as client:
        accept = {"accept": "application/graphql-response+json"}
        posted = await server.post(HELLO, headers=accept, variables=much)
        parameters = {"query": HELLO, "variables": json.dumps(much)}
        got = await client.get(server.url, params=parameters, headers=accept)
        for answer in (posted, got):
            assert answer.status_code == 400
            assert refusal(answer.json()).startswith(TOLD)
        fine = await server.post(HELLO, variables={"name": "Ann"})
        assert fine.json()["data"] == {"hello": "Hello, Ann!"}


async def test_operations_of_one_list_share_what_one_may_have() -> None:
    def items(*sizes: int) -> list[dict[str, Any]]:
        # The first variable is one of the values.
        return [{"query": HELLO, "variables": {"x": [0] * (size - 1)}} for size in sizes]

    async with serving(engine=FEW, http={"max_batch": 10}) as server, server.client() as client:
        for fine in (items(50, 50), items(*[10] * 10), items(100)):
            answer = await client.post(server.url, json=fine)
            assert answer.status_code == 200
            assert [one["data"] for one in answer.json()] == [{"hello": "Hello, world!"}] * len(
                fine
            )
        for wide in (items(50, 51), items(*[11] * 10)):
            answer = await client.post(server.url, json=wide)
            assert answer.status_code == 400
            told = refusal(answer.json())
            assert told.startswith("The variables of the operations have more than 100 values ")
        # Those that have none, or no map of them, are told by themselves what is wrong.
        odd = await client.post(
            server.url, json=[{"query": HELLO, "variables": [0] * 200}, {"query": HELLO}, 7]
        )
        assert [one.get("data") for one in odd.json()] == [None, {"hello": "Hello, world!"}, None]


async def test_sockets_refuse_them_and_stay_open() -> None:
    async with serving(engine=FEW) as server, server.socket() as socket:
        for id_, query in (("1", HELLO), ("2", COUNT)):
            await subscribe(socket, id_, query, variables={"to": [0] * 100})
            heard = await hear(socket)
            assert (heard["id"], heard["type"]) == (id_, "error")
            assert refusal({"errors": heard["payload"]}).startswith(TOLD)
        await subscribe(socket, "3", HELLO, variables={"name": "Ann"})
        assert (await hear(socket))["payload"]["data"] == {"hello": "Hello, Ann!"}


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_event_streams_tell_it_and_complete(method: str) -> None:
    async with serving(engine=FEW) as server:
        much = {"to": [0] * 100}
        response, text = await streams.read(server.url, COUNT, method=method, variables=much)
        assert response.status_code == 200
        refused, end = streams.answers(text)
        assert refusal(refused).startswith(TOLD)
        assert end == "complete"
        _, text = await streams.read(server.url, COUNT, method=method, variables={"to": 1})
        assert [one if one == "complete" else one["data"] for one in streams.answers(text)] == [
            {"count": 1},
            "complete",
        ]


async def test_multipart_streams_are_refused_as_requests_are() -> None:
    async with serving(engine=FEW) as server:
        response, text = await streams.read(
            server.url, COUNT, accept=streams.MULTIPART, variables={"to": [0] * 100}
        )
        assert response.status_code == 400
        assert refusal(json.loads(text)).startswith(TOLD)


def test_the_setting_reaches_the_engine(tmp_path: Path) -> None:
    server = Server(settings_for(tmp_path, max_variable_values=100))
    (error,) = server.http.engine.prepare("{ viewer { id } }", None, {"x": [0] * 100})
    assert error["message"].startswith(TOLD)
    assert server.http.max_values == 100
    assert Server(settings_for(tmp_path)).http.max_values == 10_000
