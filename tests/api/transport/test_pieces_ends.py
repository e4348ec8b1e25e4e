"""How answers in pieces go wrong, and how they end."""

import asyncio
from pathlib import Path

import pytest

from app.graphql_stream import StreamOptions, Streams
from app.slow_operations import SlowOperations
from app.watching import Watch
from schema.execution.pieces import Pieces
from tests.api.transport.conftest import run_node
from tests.api.transport.pieces import GATED, JSON, _bare, _empty, metric, pieces, told
from tests.api.transport.pieces_sample import BY_ID, BY_PATH, parts
from tests.api.transport.streams import read, reading

# Errors.


async def test_an_error_within_a_piece_is_masked_and_stays_in_it() -> None:
    query = "{ thing { id ... @defer { maybeBug unmended } } }"
    for accept in (BY_PATH, BY_ID):
        first, second = await told(query, accept)
        assert "errors" not in first
        (piece,) = second["incremental"]
        assert piece["data"] == {"maybeBug": None, "unmended": None}
        codes = {error["path"][-1]: error["extensions"]["code"] for error in piece["errors"]}
        assert codes == {"maybeBug": "INTERNAL", "unmended": "INVALID"}
        assert "Quote request id" in piece["errors"][0]["message"] + piece["errors"][1]["message"]
        assert piece["errors"][0]["path"][0] == "thing"


async def test_an_error_that_no_null_takes_breaks_its_fragment_alone() -> None:
    query = """{ thing { id ... @defer(label: "x") { bug inner { ... @defer { id } } }
        ... @defer(label: "y") { inner { id } } } }"""
    first, *rest = await told(query, BY_PATH)
    assert first["data"] == {"thing": {"id": "t"}}
    by_label = {one["label"]: one for told_ in rest for one in told_["incremental"]}
    assert by_label["y"]["data"] == {"inner": {"id": "t1"}}
    assert by_label["x"]["data"] is None
    (error,) = by_label["x"]["errors"]
    assert error["path"] == ["thing", "bug"]
    assert error["extensions"]["code"] == "INTERNAL"
    first, *rest = await told(query, BY_ID)
    done = {one["id"]: one for told_ in rest for one in told_["completed"]}
    assert done["0"]["errors"][0]["path"] == ["thing", "bug"]
    assert "errors" not in done["1"]
    given = [one for told_ in rest for one in told_.get("incremental", ())]
    assert given == [
        {"id": "1", "data": {"inner": {}}},
        {"id": "1", "subPath": ["inner"], "data": {"id": "t1"}},
    ]


async def test_what_is_deferred_below_a_null_is_dropped() -> None:
    query = '{ thing { maybe { bug ... @defer { a: gate(name: "a") } } id } }'
    async with pieces() as (server, gates):
        answer = await server.post(query, headers={"accept": f"{BY_PATH},{JSON}"})
        assert gates.asked == []
    assert answer.json()["data"] == {"thing": {"maybe": None, "id": "t"}}
    assert "hasNext" not in answer.json()


async def test_an_item_that_no_null_takes_ends_its_list_there() -> None:
    query = "{ thing { things @stream { odd } } }"
    first, second = await told(query)
    assert first["data"] == {"thing": {"things": []}}
    assert second["incremental"] == [{"id": "0", "items": [{"odd": 1}]}]
    (done,) = second["completed"]
    assert done["errors"][0]["path"] == ["thing", "things", 1, "odd"]
    first, second = await told(query, BY_PATH)
    good, bad = second["incremental"]
    assert good == {"items": [{"odd": 1}], "path": ["thing", "things", 0]}
    assert (bad["items"], bad["path"]) == (None, ["thing", "things", 1])


async def test_what_is_not_ready_in_time_is_told_to_be_late() -> None:
    query = """{ thing { id ... @defer(label: "a") { a: gate(name: "a") }
        ... @defer(label: "b") { b: gate(name: "b") } } }"""
    async with pieces(http={"timeout_s": 1.0}) as (server, gates):
        gates.open["b"].set()
        _, text = await read(server.url, query, accept=BY_ID)
        assert gates.cancelled["a"].is_set()
    first, second, third, end = parts(text)
    assert second["incremental"] == [{"id": "1", "data": {"b": "b of t"}}]
    (done,) = third["completed"]
    assert done["id"] == "0"
    assert done["errors"][0]["extensions"]["code"] == "TIMED_OUT"
    assert (first["hasNext"], third["hasNext"], end) == (True, False, "end")


@pytest.mark.parametrize("ending", ["ok", "canceled", "error"])
async def test_how_what_is_left_ends_is_told_to_who_watches(
    ending: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the password is hunter2")

    if ending == "error":
        monkeypatch.setattr(Pieces, "_settle", broken)
    caplog.set_level("WARNING", "noosphere.slow")
    async with pieces(http={"timeout_s": 1.0 if ending == "canceled" else 60.0}) as (server, gates):
        server.engine.watch = Watch(SlowOperations(0.0), None)
        if ending != "canceled":
            gates.open["a"].set()
        _, text = await read(server.url, GATED, accept=BY_ID)
        assert (b"TIMED_OUT" in text, b"INTERNAL" in text) == (
            ending == "canceled",
            ending == "error",
        )
        await _empty(server)
    told_ = [one.__dict__["outcome"] for one in caplog.records if one.name == "noosphere.slow"]
    assert told_ == ["ok", ending]


async def test_a_first_piece_that_is_late_is_an_answer_by_itself() -> None:
    query = '{ thing { a: gate(name: "a") ... @defer { id } } }'
    async with pieces(http={"timeout_s": 0.2}) as (server, _):
        answer = await server.post(query, headers={"accept": f"{BY_ID},{JSON}"})
    assert answer.json()["errors"][0]["extensions"]["code"] == "TIMED_OUT"


# The life of an answer.


async def test_a_client_that_leaves_cancels_the_rest() -> None:
    async with pieces() as (server, gates):
        async with reading(server.url, GATED, accept=BY_PATH) as body:
            await body.until(b"\r\n---", count=2)
            await asyncio.wait_for(gates.entered["a"].wait(), 60)
        await asyncio.wait_for(gates.cancelled["a"].wait(), 60)
        assert len(server.http.streams) == 0 or await _empty(server)


async def test_an_answer_that_waits_has_heartbeats() -> None:
    streams = Streams(options=StreamOptions(keep_alive_s=0.05))
    async with (
        pieces(http={"streams": streams}) as (server, gates),
        reading(server.url, GATED, accept=BY_PATH) as body,
    ):
        text = await body.until(b"\r\n---", count=4)
        gates.open["a"].set()
        rest = parts(await body.rest())
    assert parts(text)[1:] == [{"hasNext": True}] * 2
    assert rest[-2]["incremental"][0]["data"] == {"a": "a of t"}


async def test_a_restart_breaks_the_answer_off_without_the_last_boundary() -> None:
    async with pieces() as (server, gates), reading(server.url, GATED, accept=BY_PATH) as body:
        await body.until(b"\r\n---", count=2)
        await asyncio.wait_for(gates.entered["a"].wait(), 60)
        await server.http.streams.drain(60)
        assert "end" not in parts(await body.rest())
        assert gates.cancelled["a"].is_set()
        # From now on answers come whole.
        gates.open["a"].set()
        answer = await server.post(GATED, headers={"accept": f"{BY_PATH},{JSON}"})
        assert answer.json()["data"] == {"thing": {"id": "t", "a": "a of t"}}
        assert metric(server) == {"no room": 1}


async def test_apollo_client_and_urql_read_what_is_deferred(node_modules: Path) -> None:
    query = """query Late { thing { id ... @defer(label: "late") {
        a: gate(name: "a") maybeBug inner { id } } } }"""
    async with pieces() as (server, _):
        report = await run_node(node_modules, "pieces_clients.mjs", server.url, query)
    late = {"a": "a of t", "maybeBug": None, "inner": {"id": "t1"}}
    for client in ("apolloByPath", "apolloById", "urql"):
        first, *_, last = report[client]
        assert _bare(first["data"]) == {"thing": {"id": "t"}}, report[client]
        assert _bare(last["data"]) == {"thing": {"id": "t", **late}}, report[client]
        assert (first["errors"], last["errors"]) == ([], ["INTERNAL"])
    for client in ("apolloByPath", "apolloById"):
        states = [one["state"] for one in report[client]]
        assert (states[0], states[-1]) == ("streaming", "complete")
    assert [one["hasNext"] for one in report["urql"]] == [True, False]


async def test_apollo_client_and_urql_read_what_is_streamed(node_modules: Path) -> None:
    query = """query Rest { thing { id things(count: 3) @stream(initialCount: 1) {
        id gate(name: "a", spared: "t1") } } }"""
    async with pieces() as (server, _):
        report = await run_node(node_modules, "pieces_clients.mjs", server.url, query)
    late = [{"id": f"t{n}", "gate": f"a of t{n}"} for n in (2, 3)]
    for client in ("apolloByPath", "apolloById", "urql"):
        first, *_, last = (_bare(one["data"]["thing"]["things"]) for one in report[client])
        assert first == [{"id": "t1", "gate": "spared"}], report[client]
        assert last == [*first, *late], report[client]


async def test_pieces_and_their_fates_are_counted() -> None:
    query = """{ thing { ... @defer { bug } ... @defer { id }
        things(count: 2) @stream { id } } }"""
    async with pieces() as (server, _):
        await read(server.url, query, accept=BY_ID)
        counted = dict(server.engine.pieces)
    assert counted == {("defer", "broken"): 1, ("defer", "kept"): 1, ("stream", "kept"): 1}
