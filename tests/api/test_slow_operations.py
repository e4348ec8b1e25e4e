"""The log of slow operations: what it tells, what it never tells, and that it stays short."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from graphql import build_schema
from prometheus_client import REGISTRY

from app.slow_operations import SlowOperations, shortened
from models.journal import Journal
from schema.execution import Engine, Prepared
from tests.api.operations import CONVERSATION_EVENTS, CREATE_CONVERSATION
from tests.product import Client, Product

TREE = """
query Tree($first: Int!) { conversations(first: $first) { nodes {
  id title messages(last: 2) { nodes { id author { id username } } } } } }
"""


def _slow(product: Product) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in product.output().splitlines() if line[:1] == "{"]
    return [line for line in lines if line["logger"] == "noosphere.slow"]


async def test_what_is_slow_is_logged_with_its_plan_and_without_values(tmp_path: Path) -> None:
    product = Product(
        tmp_path / "data",
        NOOSPHERE_SLOW_OPERATION="0.000001",
        NOOSPHERE_SANDBOX_DRIVER="off",
        NOOSPHERE_LOG_FORMAT="json",
    )
    client = Client(product.url)
    try:
        await asyncio.to_thread(product.start)
        await client.register("asker")
        made = await client.run(CREATE_CONVERSATION, title="a title nobody else reads")
        id_ = made["conversationCreate"]["conversation"]["id"]
        headers = {**client.headers, "X-Request-Id": "asked-1"}
        body = {"query": TREE, "variables": {"first": 71}}
        assert (await client.http.post("/graphql", json=body, headers=headers)).status_code == 200
        async with client.subscribe(CONVERSATION_EVENTS, id=id_) as events:
            await events.next()
        metrics = (await client.http.get("/metrics")).text
    finally:
        await client.aclose()
        await asyncio.to_thread(product.close)
    register, create, query, snapshot = _slow(product)
    for type_, found in (("mutation", register), ("mutation", create), ("subscription", snapshot)):
        assert found["event"] == f"slow {type_}: without a name"
        assert found["statements"]["count"] >= 1
        assert f'noosphere_slow_operations_total{{type="{type_}"}}' in metrics
    assert register["executor"] == "graphql-core (mutation)"
    texts = [statement["text"] for statement in register["statements"]["longest"]]
    # There are more of them than are told, and which took longest is chance.
    assert len(texts) == 10
    assert any(text.startswith("INSERT INTO ") for text in texts)
    assert "ConversationReset" in snapshot["plan"] or "conversationEvents" in snapshot["plan"]

    assert query["event"] == "slow query: Tree"
    assert query["level"] == "warning"
    assert query["operation"] == "Tree"
    assert query["request_id"] == "asked-1"
    assert query["document"].startswith("sha256:")
    assert query["seconds"] >= 0
    assert query["points"] > 1
    assert query["executor"] == "plan"
    assert query["outcome"] == "ok"
    root, field, *_ = query["plan"].splitlines()
    assert root == "Query { }"
    assert field.startswith("  conversations (once for each")
    # No messages, so nobody wrote any.
    assert query["statements"]["count"] == 2
    (conversations,) = (
        one for one in query["statements"]["longest"] if "FROM conversations" in one["text"]
    )
    assert conversations["count"] == 1
    assert 0 <= conversations["seconds"] <= query["statements"]["seconds"] + 0.001
    told = json.dumps([register, create, query, snapshot])
    for hidden in ("nobody else reads", "asker", "correct horse", client.token or "-", id_):
        assert hidden not in told, hidden


@pytest.fixture
def prepared() -> Prepared:
    """An operation."""
    found = Engine(build_schema("type Query { a: Int }")).prepare("query Q { a }")
    assert isinstance(found, Prepared)
    return found


def _count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"noosphere_{name}_total", labels) or 0.0


def test_a_flood_of_slow_operations_is_counted_and_a_few_are_told(
    prepared: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    slow = SlowOperations(1.0, clock=lambda: now)
    before, untold = _count("slow_operations", type="query"), _count("slow_operations_untold")

    def tell(times: int) -> list[int]:
        caplog.clear()
        for _ in range(times):
            slow.tell(prepared, "turned off", "r", Journal(), 2.0, "ok")
        return [record.__dict__["untold"] for record in caplog.records]

    with caplog.at_level(logging.WARNING, "noosphere.slow"):
        assert tell(500) == [0] * 10
        now = 5.9
        assert tell(1) == []
        now = 6.1
        assert tell(2) == [491]
        now = 1000.0
        assert tell(20) == [1, *[0] * 9]
    assert _count("slow_operations", type="query") - before == 523
    assert _count("slow_operations_untold") - untold == 523 - 21


def test_a_statement_is_shown_on_one_line_without_its_lists() -> None:
    assert shortened("SELECT a\n FROM b WHERE c IN (?, ?, ?) AND d = ?") == (
        "SELECT a FROM b WHERE c IN (?, …) AND d = ?"
    )
    assert (
        shortened("INSERT INTO a (b, c) VALUES (%s, %s)") == "INSERT INTO a (b, c) VALUES (%s, …)"
    )
    assert shortened("x" * 9_000) == "x" * 4_096 + "…"


def test_a_journal_keeps_no_more_statements_than_anybody_reads() -> None:
    noted = Journal()
    for _ in range(1_000):
        noted.end(0.0, "SELECT 1", 1, None)
    assert noted.count == 1_000
    assert len(noted.sent) == 200
    noted.is_open = False
    noted.end(0.0, "SELECT 1", 1, None)
    assert noted.count == 1_000
