"""Answers in pieces, put together, are the whole answer: any document, viewer and failure."""

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resolvers.base import Context
from schema.execution import Divided, Divider, Form
from services.accounts.sessions import Client
from services.base import ANONYMOUS
from tests.api.access.world import WHO
from tests.schema.differential.documents import Document, documents
from tests.schema.differential.faults import Faults, breaking
from tests.schema.differential.merging import Merged, disagreement
from tests.schema.differential.still import standing_still
from tests.schema.differential.test_differential import CASES, Both, both

__all__ = ["both"]

pytestmark = [
    pytest.mark.timeout(900 + CASES // 4),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


async def _merged(both: Both, document: Document, context: Any, form: Form) -> Merged:
    engine = both.plans
    prepared = engine.prepare(document.text, None, document.variables)
    assert not isinstance(prepared, list)
    answer = await Divider(engine).execute(prepared, context, form)
    merged = Merged()
    if not isinstance(answer, Divided):
        both.seen["whole"] += 1
        merged.add(orjson.loads(answer.json()) | {"hasNext": False})
        return merged
    try:
        async with asyncio.timeout(60):
            async for payload in answer:
                both.seen["payloads"] += 1
                merged.add(orjson.loads(payload.json()))
    finally:
        await answer.aclose()
    both.seen["divided"] += 1
    both.seen["broken"] += bool(merged.missing)
    assert not merged.has_next
    return merged


def test_pieces_put_together_are_the_whole_answer(
    both: Both, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    both.seen.clear()

    def merged(document: Document, who: str, form: Form) -> Merged:
        person = both.world.person(who)
        viewer = ANONYMOUS if person is None else person.viewer
        context = Context(both.world.deps, viewer, "test", Client("127.0.0.1", "tests"))
        return both.runner.run(_merged(both, document, context, form))

    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        document=documents(both.core.schema, both.ids, divided_one_in=2),
        who=st.sampled_from(WHO),
        form=st.sampled_from(Form),
        seed=st.integers(0, 10**6),
        one_in=st.sampled_from([10**9, 10**9, 60, 12]),
    )
    def holds(document: Document, who: str, form: Form, seed: int, one_in: int) -> None:
        caplog.clear()
        with breaking(monkeypatch, Faults(seed, one_in)):
            expected = both.answer(both.core, document, who)
            if "data" not in expected:
                both.seen["refused"] += 1
                return
            found = merged(document, who, form)
        wrong = disagreement(expected["data"], found)
        told = (document.text, document.variables, who, form, expected, found.data, found.errors)
        assert wrong is None, (wrong, *told)
        assert bool(expected.get("errors")) == bool(found.errors), told
        if not found.errors:
            ordered = [
                orjson.dumps(one, option=orjson.OPT_SORT_KEYS)
                for one in (expected["data"], found.data)
            ]
            assert ordered[0] == ordered[1], told

    with standing_still(monkeypatch):
        holds()
    assert both.seen["divided"] > CASES // 6, both.seen
    assert both.seen["broken"] > CASES // 200, both.seen
