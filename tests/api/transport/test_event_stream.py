"""Server-sent events, as graphql-sse's distinct connections mode and EventSource have them."""

import asyncio
import json
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from app.graphql_framing import EventStream
from app.graphql_media import EVENT_STREAM, JSON, MULTIPART, RESPONSE_JSON, Media, choose
from app.graphql_register import Register
from app.graphql_stream import StreamOptions, Streams
from schema.execution import Form
from tests.api.transport.conftest import Server, closing, hear, say, serving, until
from tests.api.transport.streams import answers, deaf_request, events, read, reading

BY_PATH, BY_ID = Form
NUMBERED = (
    "subscription($to: Int! = 2, $after: String) { numbered(to: $to, after: $after) { number } }"
)


def viewer_of(context: Any) -> str | None:
    return None if context.viewer is None else str(context.viewer)


async def test_a_subscription_is_told_as_events_with_cursors_and_completes(server: Server) -> None:
    response, text = await read(server.url, NUMBERED)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache, no-store, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    assert len(response.headers["x-request-id"]) == 32
    begin, first, second, complete, nothing = text.decode().split("\n\n")
    assert re.fullmatch(r"retry: [123]\d{3}", begin)
    head, data = first.rsplit("\n", 1)
    assert head == "event: next\nid: c1"
    assert json.loads(data.removeprefix("data: "))["data"] == {"numbered": {"number": 1}}
    assert second.startswith("event: next\nid: c2\ndata: {")
    assert complete == "event: complete\ndata:"
    assert nothing == ""
    assert [event["id"] for event in events(text)] == ["c1", "c2", "c2"]


async def test_events_without_a_cursor_have_no_id(server: Server) -> None:
    _, text = await read(server.url, "subscription { count(to: 2) }")
    assert b"id:" not in text
    assert [a if a == "complete" else a["data"] for a in answers(text)] == [
        {"count": 1},
        {"count": 2},
        "complete",
    ]


async def test_queries_and_mutations_answer_once_and_complete(server: Server) -> None:
    for query, data in (
        ("{ hello }", {"hello": "Hello, world!"}),
        ('mutation { note(text: "hi") }', {"note": "hi"}),
    ):
        response, text = await read(server.url, query)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert int(response.headers["content-length"]) == len(text)
        told = answers(text)
        assert (told[0]["data"], told[1:]) == (data, ["complete"])
    assert server.probe.mutations == ["hi"]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("{", "GRAPHQL_PARSE_FAILED"),
        ("subscription { nothing }", "GRAPHQL_VALIDATION_FAILED"),
        ("subscription($to: Int!) { count(to: $to) }", "BAD_USER_INPUT"),
        ("subscription { absent }", "NOT_FOUND"),
        ('subscription { numbered(after: "nonsense") { number } }', "BAD_USER_INPUT"),
    ],
)
async def test_what_graphql_refuses_is_told_in_the_stream(
    server: Server, query: str, code: str
) -> None:
    response, text = await read(server.url, query)
    assert response.status_code == 200
    refusal, complete = answers(text)
    assert set(refusal) == {"errors"} or set(refusal) == {"errors", "extensions"}
    assert [error["extensions"]["code"] for error in refusal["errors"]] == [code]
    assert complete == "complete"
    assert b"id:" not in text


@pytest.mark.parametrize(
    ("headers", "query", "status", "code"),
    [
        ({"authorization": "Bearer bad"}, NUMBERED, 401, "UNAUTHENTICATED"),
        ({"authorization": "Bearer busy"}, NUMBERED, 429, "RATE_LIMITED"),
        ({"authorization": "Bearer bug"}, NUMBERED, 500, "INTERNAL"),
        ({}, "subscription { limited }", 429, "RATE_LIMITED"),
    ],
)
async def test_a_request_that_is_refused_has_a_status_and_no_stream(
    server: Server, headers: dict[str, str], query: str, status: int, code: str
) -> None:
    response, text = await read(server.url, query, headers=headers)
    assert response.status_code == status
    assert response.headers["content-type"].startswith(RESPONSE_JSON)
    assert [e["extensions"]["code"] for e in json.loads(text)["errors"]] == [code]
    assert ("retry-after" in response.headers) == (status == 429)
    assert ("www-authenticate" in response.headers) == (status == 401)
    assert b"hunter2" not in text
    assert len(server.http.streams) == 0
    assert not server.http.streams.register.counts


async def test_a_body_that_is_no_request_is_400(server: Server) -> None:
    async with server.client() as client:
        headers = {"accept": EVENT_STREAM, "content-type": JSON}
        broken = await client.post(server.url, content=b"{", headers=headers)
        assert broken.status_code == 400
        plain = {"accept": EVENT_STREAM, "content-type": "text/plain"}
        assert (await client.post(server.url, content=b"{}", headers=plain)).status_code == 415


@pytest.mark.parametrize(
    ("query", "first"),
    [("subscription { failing }", {"failing": 1}), ("subscription { unspeakable }", None)],
)
async def test_a_stream_that_breaks_says_so_masked_and_completes(
    server: Server, query: str, first: Any
) -> None:
    _, text = await read(server.url, query)
    event, failure, complete = answers(text)
    assert first is None or event["data"] == first
    assert [error["extensions"]["code"] for error in failure["errors"]] == ["INTERNAL"]
    assert b"hunter2" not in text
    assert complete == "complete"


# ---- GET, and coming back


async def test_an_event_source_asks_with_get_and_its_last_event_id_comes_before_after(
    server: Server,
) -> None:
    variables = {"to": 5, "after": "c1"}
    for last, numbers in ((None, [2, 3, 4, 5]), ("c3", [4, 5]), ("", [2, 3, 4, 5])):
        headers = {} if last is None else {"last-event-id": last}
        _, text = await read(
            server.url, NUMBERED, method="GET", headers=headers, variables=variables
        )
        *told, complete = answers(text)
        assert [answer["data"]["numbered"]["number"] for answer in told] == numbers
        assert complete == "complete"
        _, posted = await read(server.url, NUMBERED, headers=headers, variables=variables)
        assert [event["id"] for event in events(posted)] == [event["id"] for event in events(text)]


@pytest.mark.parametrize("cursor", ["nonsense", "c", "c1 OR 1", "\u00ff"])
async def test_a_malformed_last_event_id_is_an_error_as_after_would_be(
    server: Server, cursor: str
) -> None:
    headers = {b"accept": EVENT_STREAM.encode(), b"last-event-id": cursor.encode("latin-1")}
    async with server.client() as client:
        response = await client.post(server.url, json={"query": NUMBERED}, headers=headers)
    refusal, complete = answers(response.content)
    assert [error["extensions"]["code"] for error in refusal["errors"]] == ["BAD_USER_INPUT"]
    assert complete == "complete"


async def test_a_last_event_id_means_nothing_outside_event_streams(server: Server) -> None:
    headers = {"last-event-id": "c1"}
    await server.post("{ hello }", headers=headers)
    await read(server.url, NUMBERED, accept=MULTIPART, headers=headers)
    await read(server.url, NUMBERED, headers=headers)
    assert [context.resume_after for context in server.probe.contexts] == [None, None, "c1"]


async def test_mutations_and_pages_of_other_sites_cannot_use_get(server: Server) -> None:
    mutation, _ = await read(server.url, 'mutation { note(text: "x") }', method="GET")
    assert mutation.status_code == 405
    server.probe.contexts.clear()
    cross = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
    refused, _ = await read(server.url, NUMBERED, method="GET", headers=cross)
    assert refused.status_code == 403
    assert server.probe.mutations == []
    assert server.probe.contexts == []


async def test_subscriptions_are_refused_to_those_who_accept_no_stream(server: Server) -> None:
    response = await server.post(NUMBERED)
    assert response.status_code == 400
    (error,) = response.json()["errors"]
    assert error["extensions"]["code"] == "SUBSCRIPTION_NOT_SUPPORTED"
    for word in ("text/event-stream", "multipart/mixed", "graphql-transport-ws"):
        assert word in error["message"]


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("text/event-stream", Media(None, EVENT_STREAM, True)),
        ("text/event-stream, */*", Media(JSON, EVENT_STREAM, True)),
        ("*/*", Media(JSON, None, False)),
        ("text/*, multipart/*", Media(None, None, False)),
        # Apollo Client 3 and 4.
        (
            f"multipart/mixed;boundary=graphql;subscriptionSpec=1.0,{JSON}",
            Media(JSON, MULTIPART, True),
        ),
        (
            'multipart/mixed; subscriptionSpec="1.0", application/graphql-response+json',
            Media(RESPONSE_JSON, MULTIPART, True),
        ),
        # What is deferred goes by other rules than subscriptions do.
        (f"multipart/mixed;deferSpec=20220824,{JSON}", Media(JSON, None, False, BY_PATH)),
        (f"multipart/mixed;incrementalSpec=v0.2,{JSON}", Media(JSON, None, False, BY_ID)),
        (f"multipart/mixed;incrementalSpec=v9,{JSON}", Media(JSON, None, False)),
        ("multipart/mixed", Media(None, None, False, BY_PATH)),
        # urql: a subscription, and anything else.
        ("text/event-stream, multipart/mixed", Media(None, EVENT_STREAM, True, BY_PATH)),
        (
            "application/graphql-response+json, application/graphql+json, application/json, "
            "text/event-stream, multipart/mixed",
            Media(RESPONSE_JSON, EVENT_STREAM, False, BY_PATH),
        ),
        (f"text/event-stream;q=0.5, {JSON}", Media(JSON, EVENT_STREAM, False)),
        (f"text/event-stream;q=0, {JSON}", Media(JSON, None, False)),
        (f"{MULTIPART};q=0.5, text/event-stream;q=0.9", Media(None, EVENT_STREAM, True)),
        ("text/html, text/event-stream;q=0.9", Media("text/html", None, False)),
    ],
)
def test_streams_go_to_those_who_name_their_type(accept: str, media: Media) -> None:
    assert choose(accept, allows_html=True) == media


# ---- the life of a stream


async def test_an_idle_stream_is_kept_alive_by_comments(server: Server) -> None:
    options = StreamOptions(keep_alive_s=0.05)
    async with (
        serving(http={"streams": Streams(options=options)}) as quick,
        reading(quick.url, "subscription { forever }") as body,
    ):
        text = await body.until(b":\n\n", count=5)
    assert [answer["data"] for answer in answers(text)] == [{"forever": 1}]
    begin, _, rest = text.partition(b"event: next")
    assert begin.startswith(b"retry: ")
    assert rest.partition(b"\n\n")[2].strip(b":\n") == b""


async def test_a_client_that_leaves_closes_its_source_at_once(server: Server) -> None:
    open_before = gauge("sse")
    async with reading(server.url, "subscription { forever }") as body:
        await body.until(b"event: next")
        assert len(server.http.streams) == server.probe.open_streams == 1
        assert gauge("sse") == open_before + 1
    await asyncio.wait_for(server.probe.closed.wait(), 60)
    await until(lambda: len(server.http.streams) == 0)
    assert server.probe.open_streams == 0
    assert gauge("sse") == open_before
    assert not server.http.streams.register.counts


async def test_a_reader_that_stops_stops_its_stream_and_loses_nothing(server: Server) -> None:
    connection = deaf_request(server.port, "subscription { flood(size: 10000) }")
    connection.setblocking(False)
    probe = server.probe
    # Whatever the buffers take, in the end one event is not taken any more.
    (live,) = await one_stream(server)
    await until(lambda: live._sending_since is not None and stalled_s(live) > 0.2)
    stopped_at = probe.produced
    loop = asyncio.get_running_loop()
    text = b""
    async with asyncio.timeout(60):
        while text.count(b"data: ") < stopped_at + 50:  # Reading on lets the stream go on.
            text += await loop.sock_recv(connection, 1 << 16)
    connection.close()
    numbers = [int(number) for number in re.findall(rb'"flood":"(\d+):', text)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > stopped_at > 0
    await asyncio.wait_for(probe.closed.wait(), 60)


async def test_a_reader_that_takes_nothing_is_given_up() -> None:
    options = StreamOptions(send_timeout_s=0.3, keep_alive_s=0.1)
    async with serving(http={"streams": Streams(options=options)}) as server:
        connection = deaf_request(server.port, "subscription { flood(size: 100000) }")
        await asyncio.wait_for(server.probe.closed.wait(), 60)
        await until(lambda: len(server.http.streams) == 0)
        # It was cut off, not ended: the end never fitted into what it did not read.
        connection.settimeout(60)
        taken = await asyncio.to_thread(everything, connection)
        assert taken.startswith(b"HTTP/1.1 200 OK")
        assert not taken.endswith(b"0\r\n\r\n")
        connection.close()
        assert (await server.post("{ hello }")).status_code == 200


async def test_a_reader_that_takes_no_sign_of_life_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So large that signs of life alone fill the buffers.
    monkeypatch.setattr(EventStream, "idle", b":" + b"x" * 1_000_000 + b"\n\n")
    options = StreamOptions(send_timeout_s=0.2, keep_alive_s=0.05)
    async with serving(http={"streams": Streams(options=options)}) as server:
        connection = deaf_request(server.port, "subscription { forever }")
        await asyncio.wait_for(server.probe.closed.wait(), 60)
        await until(lambda: len(server.http.streams) == 0)
        connection.close()


async def test_many_streams_come_and_go_and_leave_nothing(server: Server) -> None:
    await server.post("{ hello }")
    before = len(asyncio.all_tasks())

    async def visit(number: int) -> None:
        query = "subscription { forever }" if number % 2 else "subscription { count(to: 3) }"
        async with reading(server.url, query) as body:
            await body.until(b"event: next")

    for _ in range(4):
        await asyncio.gather(*(visit(number) for number in range(25)))
    await until(lambda: len(server.http.streams) == 0 and server.probe.open_streams == 0)
    await until(lambda: len(asyncio.all_tasks()) <= before)
    assert not server.http.streams.register.counts


async def test_streams_are_counted_by_how_they_end(server: Server) -> None:
    def count(outcome: str) -> float:
        labels = {"type": "subscription", "transport": "sse", "outcome": outcome}
        return REGISTRY.get_sample_value("noosphere_operations_total", labels) or 0.0

    outcomes = ("ok", "error", "refused", "canceled")
    before = [count(outcome) for outcome in outcomes]
    await read(server.url, NUMBERED)
    await read(server.url, "subscription { failing }")
    await read(server.url, "subscription { absent }")
    async with reading(server.url, "subscription { forever }") as body:
        await body.until(b"event: next")
    await until(lambda: len(server.http.streams) == 0)
    assert [count(outcome) for outcome in outcomes] == [value + 1 for value in before]


# ---- draining, bounds, sign-ins


async def test_draining_ends_streams_without_completing_them_and_refuses_new_ones(
    server: Server,
) -> None:
    async with (
        reading(server.url, "subscription { forever }") as first,
        reading(server.url, "subscription { forever }") as second,
    ):
        await first.until(b"event: next")
        await second.until(b"event: next")
        await server.http.streams.drain()
        assert len(server.http.streams) == server.probe.open_streams == 0
        for body in (first, second):
            # The response ends as a whole one does, but nothing says that the operation did.
            assert b"complete" not in await body.rest()
    response, text = await read(server.url, NUMBERED)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert json.loads(text)["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
    single, _ = await read(server.url, "{ hello }")
    assert single.status_code == 200


async def test_draining_gives_up_a_reader_that_takes_nothing() -> None:
    options = StreamOptions(close_timeout_s=0.1)
    async with serving(http={"streams": Streams(options=options)}) as server:
        connection = deaf_request(server.port, "subscription { flood(size: 100000) }")
        (live,) = await one_stream(server)
        await until(lambda: stalled_s(live) > 0.1)
        await server.http.streams.drain(60)
        assert len(server.http.streams) == 0
        connection.close()


async def test_streams_and_sockets_of_one_viewer_are_bounded_together() -> None:
    register = Register(max_per_viewer=2, max_per_address=1)
    streams = Streams(register, viewer_id=viewer_of)
    ann = {"authorization": "Bearer ann"}
    async with serving(http={"streams": streams}, ws={"register": register}) as server:
        # Sockets are signed in as `ann`, requests here as `Bearer ann`.
        payload = {"Authorization": "Bearer Bearer ann"}
        async with (
            server.socket(payload) as opened,
            reading(server.url, "subscription { forever }", headers=ann) as body,
        ):
            await body.until(b"event: next")
            response, text = await read(server.url, NUMBERED, headers=ann)
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
            assert json.loads(text)["errors"][0]["extensions"]["code"] == "RATE_LIMITED"
            async with server.connect() as third:
                await say(third, {"type": "connection_init", "payload": payload})
                assert (await closing(third))[0] == 1013
            bob, _ = await read(server.url, NUMBERED, headers={"authorization": "Bearer bob"})
            assert bob.status_code == 200
            single, _ = await read(server.url, "{ hello }", headers=ann)
            assert single.status_code == 200
            await opened.close()
            await until(lambda: server.ws.open_sockets == 0)
            again, _ = await read(server.url, NUMBERED, headers=ann)
            assert again.status_code == 200
        await until(lambda: not register.counts)


async def test_those_of_nobody_are_bounded_by_their_address() -> None:
    register = Register(max_per_viewer=1, max_per_address=2)
    streams = Streams(register, viewer_id=viewer_of)
    async with serving(http={"streams": streams}, ws={"register": register}) as server:
        async with (
            server.socket(),
            reading(server.url, "subscription { forever }") as body,
        ):
            await body.until(b"event: next")
            response, _ = await read(server.url, NUMBERED)
            assert response.status_code == 429
            async with server.connect() as third:
                await say(third, {"type": "connection_init"})
                assert (await closing(third))[0] == 1013
            async with server.socket({"Authorization": "Bearer ann"}):
                pass
        await until(lambda: not register.counts)


def test_an_address_is_what_one_client_has_of_them() -> None:
    register = Register(max_per_address=1)
    assert register.enter(None, "2001:db8::1") == register_place("2001:db8::")
    assert register.enter(None, "2001:db8::2") is None
    assert register.enter(None, "2001:db8:0:1::2") == register_place("2001:db8:0:1::")
    assert register.enter(None, "::ffff:192.0.2.1") == "address:192.0.2.1"
    assert register.enter(None, "192.0.2.1") is None
    assert register.enter(None, "not an address") == "address:not an address"
    # Nobody knows whose these are: they are not counted.
    assert register.enter(None, None) == register.enter(None, "") == ""


def register_place(network: str) -> str | None:
    return Register().enter(None, network)


class Session:
    """The sign-in of every stream of a server."""

    def __init__(self) -> None:
        self.holders: list[Callable[[str], None]] = []
        self.is_over = False

    def hold(self, _context: Any, on_end: Callable[[str], None]) -> Callable[[], None]:
        if self.is_over:
            on_end("Session revoked")
        self.holders.append(on_end)
        return lambda: self.holders.remove(on_end)


async def test_a_sign_in_that_ends_ends_its_streams_without_completing_them() -> None:
    session = Session()
    async with serving(http={"streams": Streams(hold=session.hold)}) as server:
        async with reading(server.url, "subscription { forever }") as body:
            await body.until(b"event: next")
            (on_end,) = session.holders
            on_end("Session expired")
            on_end("Session revoked")  # Both at once is no more than one.
            text = await body.rest()
        assert answers(text)[1:] == []
        await asyncio.wait_for(server.probe.closed.wait(), 60)
        await until(lambda: not session.holders)
        await read(server.url, NUMBERED)
        assert not session.holders

        session.is_over = True
        response, text = await read(server.url, NUMBERED)
        assert response.status_code == 200
        assert answers(text) == []
        assert not session.holders


async def test_a_socket_beside_streams_hears_as_ever(server: Server) -> None:
    async with reading(server.url, "subscription { forever }") as body, server.socket() as other:
        await body.until(b"event: next")
        await say(other, {"type": "ping"})
        assert await hear(other) == {"type": "pong"}


def everything(connection: socket.socket) -> bytes:
    taken = b""
    while chunk := connection.recv(1 << 16):
        taken += chunk
    return taken


def gauge(transport: str) -> float:
    return REGISTRY.get_sample_value("noosphere_http_streams_open", {"transport": transport}) or 0.0


async def one_stream(server: Server) -> Any:
    await until(lambda: len(server.http.streams) == 1)
    return tuple(server.http.streams._open)


def stalled_s(stream: Any) -> float:
    since = stream._sending_since
    return 0.0 if since is None else asyncio.get_running_loop().time() - since
