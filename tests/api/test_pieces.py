"""Pieces of the product's answers: what they read, what they cost, and what is counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import event

from schema.execution import Form
from services.base import Deps
from tests.api.people import sign_up
from tests.api.serving import Served, served
from tests.api.transport.pieces_sample import parts
from tests.fixtures import Person
from tests.schema.differential.merging import Merged

QUERY = """{ viewer { id conversations(first: 5) { nodes { id user { username }
  ... @defer(label: "late") { title user { username displayName }
    messages(first: 2) { nodes { id content author { id username } } } }
  ... @defer(label: "later") { createdAt user { email } } } } }
  sandboxTemplates { nodes @stream(initialCount: 1) { id name } } }"""

APART = ("auth_sessions", "role_permissions", "rate_limit_configs")
CREATE = 'mutation { conversationCreate(input: {title: "Trees"}) { errors { code } } }'


@contextmanager
def statements(deps: Deps) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        # Whether the sign-in lasts is asked as long as the answer goes on, limits now and then.
        if statement.startswith("SELECT") and not any(one in statement for one in APART):
            seen.append(statement)

    engine = deps.db.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def told(server: Served, who: Person, form: Form) -> Merged:
    accept = f"multipart/mixed;{form.value}"
    answer = await server.post(QUERY, who, accept=accept)
    merged = Merged()
    *payloads, end = parts(answer.content)
    assert end == "end"
    assert [("extensions" in payload) for payload in payloads] == [True] + [False] * (
        len(payloads) - 1
    )
    for payload in payloads:
        merged.add(payload)
    assert payloads[0]["extensions"]["cost"]["requested"] > 0
    return merged


@pytest.mark.parametrize("form", list(Form))
async def test_pieces_are_read_with_as_many_statements_as_the_whole(
    form: Form, tmp_path: Path
) -> None:
    async with served(tmp_path) as server:
        ann = await sign_up(server.deps, "ann")
        for title in ("Trees", "Ferns", "Moss"):
            await server.post(CREATE.replace("Trees", title), ann)
        # What is kept of roles and limits is read the first time.
        await server.post(QUERY, ann)
        with statements(server.deps) as of_whole:
            whole = (await server.post(QUERY, ann)).json()
        with statements(server.deps) as of_pieces:
            merged = await told(server, ann, form)
    assert merged.errors == []
    assert len(whole["data"]["viewer"]["conversations"]["nodes"]) == 3
    assert orjson.dumps(merged.data, option=orjson.OPT_SORT_KEYS) == orjson.dumps(
        whole["data"], option=orjson.OPT_SORT_KEYS
    )
    assert len(of_pieces) == len(of_whole), (of_whole, of_pieces)


async def test_pieces_that_take_long_are_logged_with_their_plan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path, slow_operation=0.000001) as server:
        ann = await sign_up(server.deps, "ann")
        await server.post(CREATE, ann)
        with caplog.at_level("WARNING", "noosphere.slow"):
            merged = await told(server, ann, Form.BY_ID)
    assert merged.errors == []
    first, rest = [vars(one) for one in caplog.records if one.name == "noosphere.slow"][-2:]
    assert "later (late):" in first["plan"]
    assert "items from 1 on later" in first["plan"]
    assert rest["plan"] == first["plan"]
    assert first["statements"]["count"] + rest["statements"]["count"] == 5
    (messages,) = rest["statements"]["longest"]
    assert "FROM messages" in messages["text"]


async def test_an_operation_is_paid_for_once_and_its_pieces_are_counted(tmp_path: Path) -> None:
    async with served(tmp_path, points_per_minute=10_000) as server:
        ann = await sign_up(server.deps, "ann")
        await server.post(CREATE, ann)
        before = (await server.post(QUERY, ann)).json()["extensions"]["cost"]
        answer = await server.post(QUERY, ann, accept=f"multipart/mixed;{Form.BY_ID.value}")
        cost = parts(answer.content)[0]["extensions"]["cost"]
        after = (await server.post("{ viewer { id } }", ann)).json()["extensions"]["cost"]
        assert cost["requested"] == before["requested"]
        assert cost["spent"] == before["spent"] + before["requested"]
        assert after["spent"] == cost["spent"] + after["requested"]
        async with httpx.AsyncClient() as client:
            metrics = (await client.get(f"{server.url}/metrics")).text.splitlines()
    assert 'noosphere_pieces_total{kind="defer",outcome="kept"} 2.0' in metrics
    assert 'noosphere_undivided_total{reason="not accepted"} 1.0' in metrics


async def test_what_is_put_off_goes_by_this_request_and_not_by_one_before(tmp_path: Path) -> None:
    document = (
        "query($a: Boolean, $b: Boolean) { viewer { id"
        ' ... @defer(if: $a, label: "A") { username } ... @defer(if: $b, label: "B") { email } } }'
    )
    async with served(tmp_path) as server:
        ann = await sign_up(server.deps, "ann")
        for variables, at_once in (({"a": False}, "username"), ({"b": False}, "email")):
            body = {"query": document, "variables": variables}
            answer = await server.send(body, ann, accept=f"multipart/mixed;{Form.BY_ID.value}")
            first, *_ = parts(answer.content)
            assert set(first["data"]["viewer"]) == {"id", at_once}
