"""Server-sent events, as graphql-sse's distinct connections mode and EventSource have them."""

import json
import re
from typing import Any

import pytest

from app.graphql_media import EVENT_STREAM, JSON, MULTIPART, RESPONSE_JSON, Media, choose
from schema.execution import Form
from tests.api.transport.conftest import Server
from tests.api.transport.hearing import NUMBERED
from tests.api.transport.streams import answers, events, read

BY_PATH, BY_ID = Form


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


# GET, and coming back.


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
