"""Answers in pieces: the two forms clients ask for, to the byte, and who is given them."""

import json
from email import message_from_bytes
from typing import Any

import pytest

from schema.execution import Limits
from tests.api.transport.conftest import hear, subscribe
from tests.api.transport.pieces import COST, GATED, JSON, _only, metric, pieces, told
from tests.api.transport.pieces_sample import BY_ID, BY_PATH, parts
from tests.api.transport.streams import read, reading

# On the wire.


async def test_the_first_piece_comes_at_once_and_the_rest_when_it_is_there() -> None:
    async with (
        pieces() as (server, gates),
        reading(server.url, GATED, accept=f"{BY_PATH},{JSON}") as body,
    ):
        text = await body.until(b"\r\n---", count=2)
        assert parts(text) == [
            {"data": {"thing": {"id": "t"}}, "hasNext": True, "extensions": COST}
        ]
        gates.open["a"].set()
        text = await body.rest()
        content_type = body.response.headers["content-type"]
        assert body.response.headers["x-accel-buffering"] == "no"
        assert body.response.headers["cache-control"] == "no-cache, no-store, no-transform"
        assert body.response.headers["vary"] == "Accept, Origin"
    assert content_type == 'multipart/mixed; boundary="-"; deferSpec=20220824'
    assert text == (
        b"\r\n---\r\ncontent-type: application/json\r\n\r\n"
        b'{"data":{"thing":{"id":"t"}},"hasNext":true,"extensions":{"cost":{"requested":1}}}'
        b"\r\n---\r\ncontent-type: application/json\r\n\r\n"
        b'{"incremental":[{"data":{"a":"a of t"},"path":["thing"],"label":"late"}],"hasNext":false}'
        b"\r\n-----\r\n"
    )
    message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + text)
    bodies: list[Any] = [one for one in message.walk() if one.get_content_type() == JSON]
    assert [json.loads(part.get_payload()) for part in bodies] == parts(text)[:-1]
    assert message.defects == []


async def test_the_form_of_today_goes_by_ids() -> None:
    async with (
        pieces() as (server, gates),
        reading(server.url, GATED, accept=f"{BY_ID},{JSON};q=0.9") as body,
    ):
        gates.open["a"].set()
        text = await body.rest()
        content_type = body.response.headers["content-type"]
    assert content_type == 'multipart/mixed; boundary="-"; incrementalSpec=v0.2'
    first, second, end = parts(text)
    assert first == {
        "data": {"thing": {"id": "t"}},
        "pending": [{"id": "0", "path": ["thing"], "label": "late"}],
        "hasNext": True,
        "extensions": COST,
    }
    assert second == {
        "incremental": [{"id": "0", "data": {"a": "a of t"}}],
        "completed": [{"id": "0"}],
        "hasNext": False,
    }
    assert end == "end"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("multipart/mixed", "deferSpec=20220824"),
        (f"multipart/mixed, {JSON}", "deferSpec=20220824"),
        (f"{JSON}, multipart/mixed;incrementalSpec=v0.2", "incrementalSpec=v0.2"),
        (f"{BY_PATH};q=0.5, {BY_ID}", "incrementalSpec=v0.2"),
        ('multipart/mixed; deferSpec="20220824"; q=0.2, */*;q=0.1', "deferSpec=20220824"),
    ],
)
async def test_who_accepts_parts_is_given_them(accept: str, form: str) -> None:
    async with pieces() as (server, gates):
        gates.open["a"].set()
        response, text = await read(server.url, GATED, accept=accept)
    assert response.headers["content-type"] == f'multipart/mixed; boundary="-"; {form}'
    assert len(parts(text)) == 3


@pytest.mark.parametrize(
    "accept",
    [
        JSON,
        "*/*",
        "multipart/*, application/*",
        f"multipart/mixed;deferSpec=20300101, {JSON}",
        f"multipart/mixed;subscriptionSpec=1.0, {JSON}",
        f"text/event-stream;q=0.5, {JSON}",
        f"{BY_PATH};q=0, {JSON}",
    ],
)
async def test_for_all_others_the_directives_are_as_if_absent(accept: str) -> None:
    async with pieces() as (server, gates):
        gates.open["a"].set()
        _, text = await read(server.url, GATED, accept=accept)
        assert metric(server) == {"not accepted": 1}
    payload = json.loads(text) if accept.find("subscription") < 0 else json.loads(_only(text))
    payload = payload.get("payload", payload)
    assert payload["data"] == {"thing": {"id": "t", "a": "a of t"}}
    assert "hasNext" not in payload


async def test_a_get_may_be_answered_in_pieces_which_nobody_keeps() -> None:
    async with pieces() as (server, gates):
        gates.open["a"].set()
        response, text = await read(server.url, GATED, accept=BY_PATH, method="GET")
    assert len(parts(text)) == 3
    assert response.headers["cache-control"] == "no-cache, no-store, no-transform"


async def test_over_websocket_the_directives_are_as_if_absent() -> None:
    async with pieces() as (server, gates), server.socket() as socket:
        gates.open["a"].set()
        await subscribe(socket, "1", GATED)
        heard = await hear(socket)
        assert heard["payload"]["data"] == {"thing": {"id": "t", "a": "a of t"}}
        assert (await hear(socket))["type"] == "complete"


async def test_an_answer_of_one_piece_is_json() -> None:
    query = "query($no: Boolean!) { thing { ... @defer(if: $no) { id } } }"
    async with pieces() as (server, _), server.client() as client:
        answer = await client.post(
            server.url,
            json={"query": query, "variables": {"no": False}},
            headers={"accept": f"{BY_PATH},{JSON}"},
        )
        assert answer.json()["data"] == {"thing": {"id": "t"}}
        assert answer.headers["content-type"].startswith(JSON)
        _, text = await read(server.url, "{ thing { id } }", accept=BY_PATH)
    (only, end) = parts(text)
    assert (only["data"], end) == ({"thing": {"id": "t"}}, "end")


async def test_what_is_refused_is_refused_as_ever() -> None:
    async with pieces() as (server, _):
        headers = {"accept": BY_PATH}
        answer = await server.post("{ thing { ... @defer { nothing } } }", headers=headers)
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"


async def test_a_mutation_is_answered_whole() -> None:
    query = "mutation { make { id ... @defer { inner { id } } } }"
    async with pieces() as (server, _):
        answer = await server.post(query, headers={"accept": f"{BY_PATH},{JSON}"})
        assert answer.json()["data"] == {"make": {"id": "t", "inner": {"id": "t1"}}}
        assert metric(server) == {"mutation": 1}


async def test_an_answer_of_too_many_pieces_comes_whole() -> None:
    query = "{ thing { things { ... @defer { id } } } }"
    async with pieces(engine={"limits": Limits(max_pieces=9)}) as (server, _):
        answer = await server.post(query, headers={"accept": f"{BY_PATH},{JSON}"})
        assert answer.json()["data"]["thing"]["things"] == [{"id": f"t{n}"} for n in (1, 2, 3)]
        assert metric(server) == {"too many": 1}


# What is told when.


async def test_pieces_come_in_the_order_they_are_ready() -> None:
    query = """{ thing { ... @defer(label: "a") { a: gate(name: "a") }
        ... @defer(label: "b") { b: gate(name: "b") inner { ... @defer(label: "c") {
            c: gate(name: "c") } } } } }"""
    async with pieces() as (server, gates), reading(server.url, query, accept=BY_ID) as body:
        first = parts(await body.until(b"\r\n---", count=2))[0]
        assert first["data"] == {"thing": {}}
        assert [one["label"] for one in first["pending"]] == ["a", "b"]
        gates.open["b"].set()
        second = parts(await body.until(b"\r\n---", count=3))[1]
        assert second == {
            "pending": [{"id": "2", "path": ["thing", "inner"], "label": "c"}],
            "incremental": [{"id": "1", "data": {"b": "b of t", "inner": {}}}],
            "completed": [{"id": "1"}],
            "hasNext": True,
        }
        gates.open["c"].set()
        third = parts(await body.until(b"\r\n---", count=4))[2]
        assert third["incremental"] == [{"id": "2", "data": {"c": "c of t1"}}]
        gates.open["a"].set()
        fourth = parts(await body.rest())[3]
        assert fourth["incremental"] == [{"id": "0", "data": {"a": "a of t"}}]
        assert not fourth["hasNext"]


async def test_a_field_of_two_fragments_is_told_once_with_the_first_that_is_ready() -> None:
    query = """{ thing { inner { id }
        ... @defer(label: "a") { inner { a: gate(name: "a") odd: id } }
        ... @defer(label: "b") { inner { odd: id b: gate(name: "b") } } } }"""
    async with pieces() as (server, gates), reading(server.url, query, accept=BY_ID) as body:
        first = parts(await body.until(b"\r\n---", count=2))[0]
        assert first["data"] == {"thing": {"inner": {"id": "t1"}}}
        gates.open["b"].set()
        second = parts(await body.until(b"\r\n---", count=3))[1]
        told_ = sorted(second["incremental"], key=lambda one: len(one["data"].keys() & {"odd"}))
        assert told_ == [
            {"id": "1", "subPath": ["inner"], "data": {"b": "b of t1"}},
            {"id": "1", "subPath": ["inner"], "data": {"odd": "t1"}},
        ]
        assert second["completed"] == [{"id": "1"}]
        gates.open["a"].set()
        third = parts(await body.rest())[2]
        assert third["incremental"] == [{"id": "0", "subPath": ["inner"], "data": {"a": "a of t1"}}]
        # Once, though it stands in three places.
        assert gates.asked.count("t.inner") == 1


async def test_by_path_each_fragment_is_whole_and_nothing_is_asked_twice() -> None:
    query = """{ thing { inner { id a: gate(name: "a") }
        ... @defer(label: "l") { inner { id a: gate(name: "a") b: gate(name: "b") } } } }"""
    async with pieces() as (server, gates):
        for name in "ab":
            gates.open[name].set()
        _, text = await read(server.url, query, accept=BY_PATH)
        assert gates.asked == ["t.inner", "t1.a", "t1.b"]
    first, second, _ = parts(text)
    assert first["data"] == {"thing": {"inner": {"id": "t1", "a": "a of t1"}}}
    (piece,) = second["incremental"]
    assert piece["data"] == {"inner": {"id": "t1", "a": "a of t1", "b": "b of t1"}}


async def test_items_of_a_list_come_later_from_an_index_on() -> None:
    query = '{ thing { things @stream(initialCount: 1, label: "s") { id odd: inner { id } } } }'
    first, second = await told(query)
    assert first["data"] == {"thing": {"things": [{"id": "t1", "odd": {"id": "t11"}}]}}
    assert first["pending"] == [{"id": "0", "path": ["thing", "things"], "label": "s"}]
    rest = [{"id": f"t{n}", "odd": {"id": f"t{n}1"}} for n in (2, 3)]
    assert second["incremental"] == [{"id": "0", "items": rest}]
    assert second["completed"] == [{"id": "0"}]
    first, second = await told(query, BY_PATH)
    assert second["incremental"] == [{"items": rest, "path": ["thing", "things", 1], "label": "s"}]


async def test_a_list_is_divided_each_time_it_is_asked_for() -> None:
    query = "{ thing { things @stream(initialCount: 1) { id } } }"
    async with pieces() as (server, _):
        # From the second time on it is known what the items are.
        texts = [(await read(server.url, query, accept=BY_ID))[1] for _ in range(3)]
    for text in texts:
        first, second, *_ = parts(text)
        assert first["data"] == {"thing": {"things": [{"id": "t1"}]}}
        assert second["incremental"] == [{"id": "0", "items": [{"id": "t2"}, {"id": "t3"}]}]


async def test_fragments_in_streamed_items_come_after_them() -> None:
    query = "{ thing { things(count: 2) @stream { id ... @defer { inner { id } } } } }"
    first, second, third = await told(query)
    assert first["data"] == {"thing": {"things": []}}
    assert second["incremental"] == [{"id": "0", "items": [{"id": "t1"}, {"id": "t2"}]}]
    assert [one["path"] for one in second["pending"]] == [["thing", "things", n] for n in (0, 1)]
    assert [one["data"] for one in third["incremental"]] == [
        {"inner": {"id": "t11"}},
        {"inner": {"id": "t21"}},
    ]
