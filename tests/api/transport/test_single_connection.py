"""One reserved event stream for many operations, as graphql-sse's single connection mode has it."""

import asyncio
import json
from typing import Any

import pytest

from app.graphql_register import Register
from app.graphql_single import TOKEN_HEADER
from app.graphql_stream import StreamOptions, Streams
from tests.api.transport.conftest import Server, serving, until
from tests.api.transport.hearing import viewer_of
from tests.api.transport.reserving import ACCEPT, ANN, BOB, code_of
from tests.api.transport.streams import TOKEN, events, reserved, told_of
from tests.api.transport.test_single_connection_ends import gauge


async def test_operations_of_all_kinds_answer_over_the_stream_that_was_reserved(
    server: Server,
) -> None:
    async with reserved(server.url, ANN) as single:
        response = single.body.response
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache, no-store, no-transform"
        assert gauge() == 1
        for id_, query in (
            ("q", "{ hello viewer }"),
            ("m", 'mutation { note(text: "hi") }'),
            ("s", "subscription { numbered(to: 2) { number } }"),
            ('odd "\n id', "{ hello }"),
        ):
            accepted = await single.post(id_, query)
            assert (accepted.status_code, accepted.content) == (202, b"")
        text = await single.body.until(b"event: complete", count=4)
        text = await single.body.until(b"\n\n", count=text.count(b"\n\n"))
    told = {id_: told_of(id_, text) for id_ in ("q", "m", "s", 'odd "\n id')}
    assert told["q"][0]["data"] == {"hello": "Hello, world!", "viewer": "Bearer ann"}
    assert told["m"][0]["data"] == {"note": "hi"}
    assert [event["data"]["numbered"]["number"] for event in told["s"][:-1]] == [1, 2]
    assert told['odd "\n id'][0]["data"] == {"hello": "Hello, world!"}
    assert all(answers[-1] == "complete" for answers in told.values())
    # What has a cursor has it as the id of the event; the others leave the last one alone.
    numbered = [e for e in events(text) if '"numbered"' in e["data"]]
    assert [event["id"] for event in numbered] == ["c1", "c2"]
    assert server.probe.mutations == ["hi"]
    await until(lambda: len(server.http.single) == 0)
    assert gauge() == 0
    assert not server.http.streams.register.counts


async def test_a_reservation_is_told_by_its_body_and_by_a_header(server: Server) -> None:
    async with server.client() as client:
        made = await client.put(server.url)
    assert made.status_code == 201
    assert made.headers["content-type"] == "text/plain; charset=utf-8"
    assert made.headers["cache-control"] == "no-store"
    assert made.headers[TOKEN_HEADER] == made.text
    assert len(made.text) >= 43


async def test_what_is_asked_before_the_stream_opens_waits_for_it(server: Server) -> None:
    async with server.client() as client:
        token = {TOKEN: (await client.put(server.url)).text}
        for number in range(3):
            query = {"query": "{ hello }", "extensions": {"operationId": f"{number}"}}
            assert (await client.post(server.url, json=query, headers=token)).status_code == 202
        flood = {"query": "subscription { flood }", "extensions": {"operationId": "flood"}}
        assert (await client.post(server.url, json=flood, headers=token)).status_code == 202
        # As much of it as waits on a connection that does not read, and no more.
        await until(lambda: server.probe.produced > 90)
        produced = server.probe.produced
        assert produced <= 120
        # As an EventSource has it: no header, the token in the address.
        params = {"token": token[TOKEN]}
        async with client.stream("GET", server.url, params=params, headers=ACCEPT) as response:
            seen = b""
            async for chunk in response.aiter_raw():
                seen += chunk
                if b'"flood":"%d:' % (produced + 50) in seen:
                    break
        whole = seen[: seen.rindex(b"\n\n") + 2]
        for number in range(3):
            assert told_of(str(number), whole)[0]["data"] == {"hello": "Hello, world!"}
        flooded = [answer["data"]["flood"].split(":")[0] for answer in told_of("flood", whole)]
        assert [int(number) for number in flooded] == list(range(1, len(flooded) + 1))
    await asyncio.wait_for(server.probe.closed.wait(), 60)


async def test_a_reservation_that_nobody_opens_expires() -> None:
    register = Register(max_per_viewer=1, max_per_address=1)
    streams = Streams(register, options=StreamOptions(unused_s=0.3), viewer_id=viewer_of)
    async with serving(http={"streams": streams}) as server, server.client() as client:
        token = {TOKEN: (await client.put(server.url)).text}
        forever = {"query": "subscription { forever }", "extensions": {"operationId": "1"}}
        assert (await client.post(server.url, json=forever, headers=token)).status_code == 202
        await asyncio.wait_for(server.probe.closed.wait(), 60)
        late = await client.get(server.url, headers={**ACCEPT, **token})
        assert (late.status_code, code_of(late)) == (404, "NOT_FOUND")
        assert not register.counts
        # Its place is free again, and one that is opened in time stays.
        async with reserved(server.url) as single:
            loop = asyncio.get_running_loop()
            later = loop.time() + 0.6
            await until(lambda: loop.time() > later)
            assert (await single.post("1", "{ hello }")).status_code == 202
            await single.body.until(b"event: complete")


async def test_a_token_opens_one_stream_and_is_over_with_it(server: Server) -> None:
    async with reserved(server.url) as single:
        second = await single.client.get(server.url, headers={**ACCEPT, **single.headers})
        assert (second.status_code, code_of(second)) == (409, "CONFLICT")
        assert (await single.post("1", "subscription { forever }")).status_code == 202
        await single.body.until(b'"forever":1')
        token = single.headers
    await asyncio.wait_for(server.probe.closed.wait(), 60)
    await until(lambda: len(server.http.single) == 0)
    async with server.client() as client:
        for response in (
            await client.get(server.url, headers={**ACCEPT, **token}),
            await client.post(server.url, json={"query": "{ hello }"}, headers=token),
            await client.delete(server.url, params={"operationId": "1"}, headers=token),
        ):
            assert (response.status_code, code_of(response)) == (404, "NOT_FOUND")


@pytest.mark.parametrize("who", [{}, BOB])
async def test_a_token_of_somebody_else_is_as_unknown_as_any(who: dict[str, str]) -> None:
    streams = Streams(viewer_id=viewer_of)
    async with serving(http={"streams": streams}) as server:
        async with reserved(server.url, ANN) as single:
            assert (await single.post("1", "subscription { forever }")).status_code == 202
            await single.body.until(b'"forever":1')
            async with server.client(headers=who) as stranger:
                answers = []
                for token in (single.headers, {TOKEN: "unknown"}):
                    query = {"query": "{ hello }", "extensions": {"operationId": "2"}}
                    params = {"operationId": "1"}
                    posted = await stranger.post(server.url, json=query, headers=token)
                    deleted = await stranger.delete(server.url, params=params, headers=token)
                    answers.append([(r.status_code, r.json()) for r in (posted, deleted)])
            assert answers[0] == answers[1]
            assert [status for status, _ in answers[0]] == [404, 404]
            assert server.probe.open_streams == 1
            assert single.told("2") == []
        # Nor does a stranger who signs in open what is reserved.
        async with server.client() as client, server.client(headers=BOB) as stranger:
            token = {TOKEN: (await client.put(server.url, headers=ANN)).text}
            theirs = await stranger.get(server.url, headers={**ACCEPT, **token})
            assert (theirs.status_code, code_of(theirs)) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "headers", "body", "status"),
    [
        ("POST", {}, {"query": "{ hello }"}, 400),
        ("POST", {}, {"query": "{ hello }", "extensions": {"operationId": 7}}, 400),
        ("POST", {}, {"query": "{ hello }", "extensions": {"operationId": ""}}, 400),
        ("POST", {}, {"query": "{ hello }", "extensions": {"operationId": "x" * 257}}, 400),
        ("POST", {}, [{"query": "{ hello }", "extensions": {"operationId": "1"}}], 400),
        ("POST", {}, {"query": "{", "extensions": {"operationId": "1"}}, 400),
        ("POST", {}, {"query": "{ nothing }", "extensions": {"operationId": "1"}}, 400),
        ("POST", {"authorization": "Bearer bad"}, {"query": "{ hello }"}, 401),
        ("POST", {"content-type": "text/plain"}, {"query": "{ hello }"}, 415),
        ("DELETE", {}, None, 400),
        ("DELETE", {"authorization": "Bearer bad"}, None, 401),
        ("DELETE", {TOKEN: ""}, None, 400),
        ("GET", {"accept": "application/json"}, None, 406),
        ("PUT", {"authorization": "Bearer bad"}, None, 401),
        ("PUT", {"authorization": "Bearer busy"}, None, 429),
        ("PATCH", {}, None, 405),
    ],
)
async def test_what_is_wrong_is_told_by_the_request_and_leaves_the_stream_alone(
    server: Server, method: str, headers: dict[str, str], body: Any, status: int
) -> None:
    async with reserved(server.url) as single:
        given = {**single.headers, "content-type": "application/json", **headers}
        content = None if body is None else json.dumps(body).encode()
        response = await single.client.request(method, server.url, content=content, headers=given)
        assert response.status_code == status, response.text
        assert response.json()["errors"][0]["message"]
        assert ("retry-after" in response.headers) == (status == 429)
        assert (await single.post("ok", "{ hello }")).status_code == 202
        await single.body.until(b"event: complete")
        assert single.body.seen.count(b"event: next") == 1
        assert len(server.http.single) == 1


async def test_an_operation_is_stopped_by_its_id_and_the_others_go_on(server: Server) -> None:
    async with reserved(server.url) as single:
        assert (await single.post("1", "subscription { forever }")).status_code == 202
        assert (await single.post("2", "subscription { paced(to: 3) { number } }")).is_success
        await asyncio.wait_for(server.probe.entered.wait(), 60)
        await asyncio.wait_for(server.probe.paused.wait(), 60)
        again = await single.post("1", "{ hello }")
        assert (again.status_code, code_of(again)) == (409, "CONFLICT")
        # One that is not there is over: the answer and the wish to stop it may have crossed.
        assert (await single.delete("nothing")).status_code == 200
        stopped = await single.delete("1")
        assert (stopped.status_code, stopped.content) == (200, b"")
        await asyncio.wait_for(server.probe.closed.wait(), 60)
        server.probe.gate.set()
        await single.body.until(b"event: complete")
        assert [answer["data"] for answer in single.told("1")] == [{"forever": 1}]
        numbers = [answer["data"]["paced"]["number"] for answer in single.told("2")[:-1]]
        assert numbers == [1, 2, 3]
        # The id is free again.
        assert (await single.post("1", "{ hello }")).status_code == 202
        await single.body.until(b"event: complete", count=2)


async def test_an_operation_stopped_before_it_began_never_begins(server: Server) -> None:
    prepare = server.http.prepare
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def slow(*given: Any) -> Any:
        reading.set()
        await go_on.wait()
        return await prepare(*given)

    async with reserved(server.url) as single:
        server.http.prepare = slow  # type: ignore[method-assign]
        posting = asyncio.create_task(single.post("1", 'mutation { note(text: "never") }'))
        await asyncio.wait_for(reading.wait(), 60)
        assert (await single.delete("1")).status_code == 200
        go_on.set()
        assert (await posting).status_code == 204
        assert server.probe.mutations == []


async def test_a_stopped_mutation_is_finished_unheard_and_keeps_its_place_until_then() -> None:
    async with serving(http={"max_operations": 1}) as server, reserved(server.url) as single:
        assert (await single.post("1", 'mutation { slowNote(text: "late") }')).status_code == 202
        await asyncio.wait_for(server.probe.entered.wait(), 60)
        assert (await single.delete("1")).status_code == 200
        full = await single.post("1", "{ hello }")
        assert (full.status_code, code_of(full)) == (400, "LIMIT")
        server.probe.gate.set()
        await asyncio.wait_for(server.probe.finished.wait(), 60)
        # Its id was free at once, and its place is.
        assert (await single.post("1", "{ hello }")).status_code == 202
        await single.body.until(b"event: complete")
        hello, complete = single.told("1")
        assert (hello["data"], complete) == ({"hello": "Hello, world!"}, "complete")
        assert server.probe.mutations == ["late"]


async def test_a_source_that_fails_says_so_masked_and_completes(server: Server) -> None:
    async with reserved(server.url) as single:
        for id_, query in (
            ("failing", "subscription { failing }"),
            ("absent", "subscription { absent }"),
            ("unspeakable", '{ data(kind: "object") }'),
        ):
            assert (await single.post(id_, query)).status_code == 202
        await single.body.until(b"event: complete", count=3)
        await single.body.until(b"\n\n", count=9)
        first, failure, complete = single.told("failing")
        assert first["data"] == {"failing": 1}
        assert failure["errors"][0]["extensions"]["code"] == "INTERNAL"
        assert complete == "complete"
        absent, complete = single.told("absent")
        assert absent["errors"][0]["extensions"]["code"] == "NOT_FOUND"
        unspeakable, complete = single.told("unspeakable")
        assert unspeakable["errors"][0]["extensions"]["code"] == "INTERNAL"
        assert b"hunter2" not in single.body.seen


async def test_an_operation_resumes_behind_the_cursor_that_its_request_names(
    server: Server,
) -> None:
    query = "subscription { numbered(to: 4) { number } }"
    async with reserved(server.url) as single:
        headers = {"last-event-id": "c2"}
        assert (await single.post("1", query, headers=headers)).status_code == 202
        await single.body.until(b"event: complete")
        numbers = [answer["data"]["numbered"]["number"] for answer in single.told("1")[:-1]]
        assert numbers == [3, 4]


async def test_a_parameter_named_token_beside_a_query_is_none_of_this_mode(
    server: Server,
) -> None:
    async with server.client() as client:
        params = {"query": "{ hello }", "token": "of something else"}
        assert (await client.get(server.url, params=params)).json()["data"] == {
            "hello": "Hello, world!"
        }
