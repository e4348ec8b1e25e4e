"""Subscriptions in parts, as Apollo's router sends and Apollo Client reads them."""

import asyncio
import json
from email import message_from_bytes
from typing import Any

import pytest

from app.graphql_stream import StreamOptions, Streams
from tests.api.transport.conftest import Server, serving, until
from tests.api.transport.streams import MULTIPART, parts, read, reading

APOLLO = f"{MULTIPART},application/graphql-response+json,application/json;q=0.9"
NUMBERED = "subscription { numbered(to: 2) { number } }"


async def test_a_subscription_is_told_in_parts_and_ends_with_the_last_boundary(
    server: Server,
) -> None:
    response, text = await read(server.url, NUMBERED, accept=APOLLO)
    assert response.status_code == 200
    content_type = 'multipart/mixed; boundary="graphql"; subscriptionSpec=1.0'
    assert response.headers["content-type"] == content_type
    assert response.headers["cache-control"] == "no-cache, no-store, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    first, second, end = parts(text)
    assert set(first) == set(second) == {"payload"}
    assert first["payload"]["data"] == {"numbered": {"number": 1}}
    assert second["payload"]["data"] == {"numbered": {"number": 2}}
    assert end == "end"
    assert text.startswith(b"\r\n--graphql\r\ncontent-type: application/json\r\n\r\n{")
    assert text.endswith(b"}\r\n--graphql--\r\n")

    message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + text)
    bodies: list[Any] = list(message.walk())
    read_by_the_book = [json.loads(part.get_payload()) for part in bodies if is_json(part)]
    assert read_by_the_book == [first, second]
    assert message.defects == []


def is_json(part: Any) -> bool:
    return bool(part.get_content_type() == "application/json")


async def test_a_part_is_whole_as_soon_as_its_event_is_sent(server: Server) -> None:
    async with reading(server.url, "subscription { forever }", accept=APOLLO) as body:
        text = await body.until(b"\r\n--graphql", count=2)
    assert [part["payload"]["data"] for part in parts(text)] == [{"forever": 1}]
    await asyncio.wait_for(server.probe.closed.wait(), 60)


async def test_an_idle_stream_has_heartbeats() -> None:
    streams = Streams(options=StreamOptions(keep_alive_s=0.05))
    async with (
        serving(http={"streams": streams}) as server,
        reading(server.url, "subscription { forever }", accept=APOLLO) as body,
    ):
        text = await body.until(b"\r\n--graphql", count=5)
    first, *rest = parts(text)
    assert first["payload"]["data"] == {"forever": 1}
    assert rest[:3] == [{}, {}, {}]


async def test_a_stream_that_breaks_ends_with_an_error_of_the_transport(server: Server) -> None:
    _, text = await read(server.url, "subscription { failing }", accept=APOLLO)
    event, failure, end = parts(text)
    assert event["payload"]["data"] == {"failing": 1}
    assert set(failure) == {"payload", "errors"}
    assert failure["payload"] is None
    assert [error["extensions"]["code"] for error in failure["errors"]] == ["INTERNAL"]
    assert b"hunter2" not in text
    assert end == "end"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("subscription { nothing }", "GRAPHQL_VALIDATION_FAILED"),
        ("subscription { absent }", "NOT_FOUND"),
        ('subscription { numbered(after: "nonsense") { number } }', "BAD_USER_INPUT"),
    ],
)
async def test_what_cannot_begin_is_refused_as_any_request_is(
    server: Server, query: str, code: str
) -> None:
    for accept, media_type, status in (
        (APOLLO, "application/graphql-response+json", 400),
        (f"{MULTIPART}, application/json", "application/json", 200),
        (MULTIPART, "application/graphql-response+json", 400),
    ):
        response, text = await read(server.url, query, accept=accept)
        assert response.status_code == status
        assert response.headers["content-type"] == f"{media_type}; charset=utf-8"
        body = json.loads(text)
        assert [error["extensions"]["code"] for error in body["errors"]] == [code]
        assert "data" not in body


async def test_a_request_that_is_refused_has_a_status(server: Server) -> None:
    bad = {"authorization": "Bearer bad"}
    response, text = await read(server.url, NUMBERED, accept=APOLLO, headers=bad)
    assert response.status_code == 401
    assert json.loads(text)["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"


async def test_a_query_answers_as_json_or_in_one_part_for_those_who_accept_nothing_else(
    server: Server,
) -> None:
    response, text = await read(server.url, "{ hello }", accept=APOLLO)
    assert response.headers["content-type"].startswith("application/graphql-response+json")
    assert json.loads(text)["data"] == {"hello": "Hello, world!"}
    response, text = await read(server.url, "{ hello }", accept=MULTIPART)
    assert response.headers["content-type"].startswith("multipart/mixed")
    only, end = parts(text)
    assert only["payload"]["data"] == {"hello": "Hello, world!"}
    assert end == "end"


async def test_subscriptions_do_not_go_by_other_kinds_of_parts(server: Server) -> None:
    accept = "multipart/mixed;deferSpec=20220824"
    response, text = await read(server.url, NUMBERED, accept=accept)
    assert response.status_code == 400
    (error,) = json.loads(text)["errors"]
    assert error["extensions"]["code"] == "SUBSCRIPTION_NOT_SUPPORTED"
    accept = "multipart/mixed;deferSpec=20300101"
    response, _ = await read(server.url, NUMBERED, accept=accept)
    assert response.status_code == 406


async def test_resuming_is_by_the_argument_alone(server: Server) -> None:
    query = 'subscription { numbered(to: 3, after: "c1") { number } }'
    headers = {"last-event-id": "c2"}
    _, text = await read(server.url, query, accept=APOLLO, headers=headers)
    *told, end = parts(text)
    assert [part["payload"]["data"]["numbered"]["number"] for part in told] == [2, 3]
    assert end == "end"


async def test_draining_ends_a_stream_without_the_last_boundary(server: Server) -> None:
    async with reading(server.url, "subscription { forever }", accept=APOLLO) as body:
        await body.until(b"\r\n--graphql", count=2)
        await server.http.streams.drain()
        text = await body.rest()
    # Apollo Client takes that for a premature end, which its RetryLink mends.
    assert b"--graphql--" not in text
    assert "end" not in parts(text)
    await until(lambda: len(server.http.streams) == 0)
    assert server.probe.open_streams == 0
