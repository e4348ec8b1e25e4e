"""Traces as a collector gets them: what is below what, and what is told of it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from websockets.asyncio.client import connect

from tests.api.operations import CONVERSATION_EVENTS, CREATE_CONVERSATION, SEND
from tests.api.paced_model import PacedModel, writes
from tests.product import Client, Product, free_port
from tests.servers.collector import Collector, Span, collecting

TREE = """
query Tree($first: Int!) { conversations(first: $first) { nodes {
  id title messages(last: 2) { nodes { id content author { id username } } } } } }
"""
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{CALLER}-01"
SECRET = "correct horse"


@asynccontextmanager
async def traced(tmp_path: Path, url: str, **environment: str) -> AsyncIterator[Product]:
    """Run a server that sends its spans at once."""
    product = Product(
        tmp_path / "data",
        OTEL_EXPORTER_OTLP_ENDPOINT=url,
        OTEL_BSP_SCHEDULE_DELAY="20",
        NOOSPHERE_SANDBOX_DRIVER="off",
        NOOSPHERE_LOG_FORMAT="json",
        **environment,
    )
    try:
        await asyncio.to_thread(product.start)
        yield product
    finally:
        await asyncio.to_thread(product.close)


@asynccontextmanager
async def signed_in(product: Product) -> AsyncIterator[Client]:
    """Give a client with an account."""
    async with Client(product.url) as client:
        await client.register("asker")
        yield client


async def conversation(client: Client, title: str = "traced") -> str:
    """Begin a conversation."""
    made = await client.run(CREATE_CONVERSATION, title=title)
    return str(made["conversationCreate"]["conversation"]["id"])


def is_operation(span: Span, type_: str, name: str | None = None) -> bool:
    """Tell whether a span is of an operation."""
    given = span.attributes.get("graphql.operation.name")
    return span.kind == "SERVER" and span.name == type_ and (name is None or given == name)


async def test_an_operation_has_its_levels_below_and_those_their_statements(
    tmp_path: Path, database_url: str
) -> None:
    is_sqlite = database_url.startswith("sqlite")
    # The driver that does the least by itself.
    url = database_url.replace("aiomysql", "asyncmy")
    async with (
        collecting() as collector,
        traced(tmp_path, collector.url, NOOSPHERE_DATABASE_URL=url) as product,
        signed_in(product) as client,
    ):
        id_ = await conversation(client, "a title nobody else reads")
        await client.run(SEND, id=id_, content="words nobody else reads")
        answer = await client.http.post(
            "/graphql",
            json={"query": TREE, "variables": {"first": 71}},
            headers={**client.headers, "traceparent": PARENT, "X-Request-Id": "asked-1"},
        )
        assert "errors" not in answer.json()
        root = await collector.span(lambda span: is_operation(span, "query", "Tree"))
        assert (root.trace, root.parent) == (TRACE, CALLER)
        assert not root.is_error
        assert root.resource["service.name"] == "noosphere"
        digest = root.attributes.pop("graphql.document.hash")
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
        assert root.attributes.pop("noosphere.points") > 1
        assert root.attributes == {
            "graphql.operation.type": "query",
            "graphql.operation.name": "Tree",
            "http.request.method": "POST",
            "http.route": "/graphql",
            "url.path": "/graphql",
            "url.scheme": "http",
            "noosphere.transport": "http",
            "noosphere.request_id": "asked-1",
            "noosphere.executor": "plan",
            "noosphere.outcome": "ok",
        }
        (top,) = (span for span in collector.below(root) if not span.is_statement)
        assert (top.name, _tree(collector, top)) == (
            "Query.conversations",
            [
                ("SELECT conversations", []),
                (
                    "Conversation.messages",
                    [("SELECT messages", []), ("Message.author", [("SELECT users", [])])],
                ),
            ],
        )
        (level,) = (span for span in collector.trace(TRACE) if span.name == "Message.author")
        assert level.attributes["noosphere.level.parents"] == 2
        (statement,) = (span for span in collector.trace(TRACE) if span.name == "SELECT messages")
        assert statement.kind == "CLIENT"
        if is_sqlite:
            assert statement.attributes["db.system.name"] == "sqlite"
        else:
            assert statement.attributes["db.system.name"] in ("mysql", "mariadb")
            assert statement.attributes["db.namespace"] == make_url(url).database
            assert statement.attributes["server.port"] == make_url(url).port
        assert statement.attributes["db.response.returned_rows"] == 2
        assert statement.attributes["db.collection.name"] == "messages"
        assert statement.attributes["db.query.text"].startswith("SELECT ")
        mark = "?" if is_sqlite else "%s"
        assert f"LIMIT {mark}" in statement.attributes["db.query.text"]

        sent = await collector.span(lambda span: is_operation(span, "mutation"))
        told = json.dumps([span.attributes for span in collector.spans])
        for hidden in ("nobody else reads", "asker", SECRET, client.token or "-", "nodes {"):
            assert hidden not in told.replace(digest, ""), hidden
        assert sent.attributes["noosphere.executor"] == "graphql-core"
        # What goes through SQLAlchemy, not straight to the driver.
        assert "INSERT users" in {span.name for span in collector.below(sent)}


def _tree(collector: Collector, span: Span) -> list[tuple[str, Any]]:
    """Give the names below a span, statements first."""
    below = sorted(collector.below(span), key=lambda one: (not one.is_statement, one.name))
    return [(one.name, _tree(collector, one)) for one in below]


async def test_events_have_traces_of_their_own_linked_with_their_subscription(
    tmp_path: Path,
) -> None:
    async with (
        collecting() as collector,
        traced(tmp_path, collector.url) as product,
        signed_in(product) as client,
    ):
        id_ = await conversation(client)
        address = client.url.replace("http", "ws") + "/graphql"
        async with connect(address, subprotocols=["graphql-transport-ws"]) as socket:
            start = {"type": "connection_init", "payload": client.headers}
            await socket.send(json.dumps(start))
            assert json.loads(await asyncio.wait_for(socket.recv(), 30))["type"] == "connection_ack"
            payload = {
                "query": CONVERSATION_EVENTS,
                "variables": {"id": id_},
                "extensions": {"traceparent": PARENT},
            }
            await socket.send(json.dumps({"id": "1", "type": "subscribe", "payload": payload}))
            opened = await collector.span(lambda span: is_operation(span, "subscription"))
            event = await collector.span(lambda span: "noosphere.event" in span.attributes)
        assert (opened.trace, opened.parent) == (TRACE, CALLER)
        assert opened.attributes["noosphere.transport"] == "ws"
        assert event.links == ((TRACE, opened.id),)
        assert (event.parent, event.kind) == ("", "INTERNAL")
        assert event.trace != TRACE
        (level,) = collector.below(event)
        assert level.name == "ConversationReset.conversation"
        assert "SELECT conversations" in {span.name for span in collector.below(level)}


async def test_a_task_is_linked_with_what_caused_it_and_the_model_is_told_of_it(
    tmp_path: Path,
) -> None:
    async with (
        collecting() as collector,
        PacedModel(lambda _: writes("Hello there.", word_s=0)) as model,
        traced(
            tmp_path,
            collector.url,
            NOOSPHERE_LLM_BASE_URL=model.base_url,
            NOOSPHERE_LLM_API_KEY="k",
            NOOSPHERE_LLM_MODEL="m",
        ) as product,
        signed_in(product) as client,
    ):
        await client.run(SEND, id=await conversation(client), content="hello")
        task = await collector.span(lambda span: span.name == "process answer")
        sent = await collector.span(
            lambda span: any(below.name == "INSERT tasks" for below in collector.below(span))
        )
        assert is_operation(sent, "mutation")
        assert task.links == ((sent.trace, sent.id),)
        assert (task.kind, task.parent) == ("CONSUMER", "")
        assert task.attributes["noosphere.outcome"] == "ok"
        assert "UPDATE messages" in {span.name for span in collector.below(task)}
        (told,) = (request.headers.get("traceparent", "") for request in model.requests)
        assert told.startswith(f"00-{task.trace}-{task.id}-")
        assert int(told[-2:], 16) & 1


async def test_operations_in_one_body_are_traced_each_and_failures_are_marked(
    tmp_path: Path,
) -> None:
    async with (
        collecting() as collector,
        traced(tmp_path, collector.url) as product,
        signed_in(product) as client,
    ):
        body = [{"query": "query One { viewer { id } }"}, {"query": "query Two { viewer { id } }"}]
        headers = {**client.headers, "traceparent": PARENT}
        answer = await client.http.post("/graphql", json=body, headers=headers)
        assert len(answer.json()) == 2
        for name in ("One", "Two"):
            found = await collector.span(lambda span, n=name: is_operation(span, "query", n))  # type: ignore[misc]
            assert (found.trace, found.parent) == (TRACE, CALLER)
        assert "errors" in await client.raw("query Wrong { nothing }")
        refused = await collector.span(lambda span: span.name == "GraphQL Operation")
        assert refused.attributes["noosphere.outcome"] == "refused"
        assert "errors" in await client.raw(
            'query Failing { conversations(after: "what") { nodes { id } } }'
        )
        failing = await collector.span(lambda span: is_operation(span, "query", "Failing"))
        assert failing.attributes["noosphere.outcome"] == "error"
        assert failing.is_error


async def test_what_a_caller_does_not_sample_is_not_sent(tmp_path: Path) -> None:
    sampled_never = {
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0",
    }
    async with (
        collecting() as collector,
        traced(tmp_path, collector.url, **sampled_never) as product,
        signed_in(product) as client,
    ):
        for flags, trace in (("00", "1" * 32), ("01", "2" * 32)):
            headers = {**client.headers, "traceparent": f"00-{trace}-{CALLER}-{flags}"}
            body = {"query": TREE, "variables": {"first": 1}}
            await client.http.post("/graphql", json=body, headers=headers)
        await collector.span(lambda span: is_operation(span, "query"))
        # Sent in order: whatever came before would be here.
        assert {span.trace for span in collector.spans} == {"2" * 32}


@pytest.mark.parametrize("is_silent", [False, True], ids=["refused", "silent"])
async def test_a_collector_that_is_away_harms_nothing(tmp_path: Path, is_silent: bool) -> None:
    async with collecting() as collector:
        collector.is_silent = is_silent
        url = collector.url if is_silent else f"http://127.0.0.1:{free_port()}"
        limits = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1", "OTEL_BSP_MAX_QUEUE_SIZE": "8"}
        async with traced(tmp_path, url, **limits) as product, signed_in(product) as client:
            while not _lost(await _metrics(client)) > 20:
                await client.run(TREE, first=1)
            assert await asyncio.to_thread(product.stop) == 0
        events = [
            json.loads(line)["event"] for line in product.output().splitlines() if line[:1] == "{"
        ]
        assert sum("are not taken by" in event for event in events) == 1
        assert not [event for event in events if "xception" in event]


async def _metrics(client: Client) -> str:
    return (await client.http.get("/metrics")).text


def _lost(metrics: str) -> float:
    found = re.findall(
        r'^noosphere_trace_spans_total\{outcome="(\w+)"\} (\S+)$', metrics, re.MULTILINE
    )
    counts = {outcome: float(count) for outcome, count in found}
    assert counts["sent"] == 0
    return min(counts["failed"], 1) * (counts["failed"] + counts["dropped"])
