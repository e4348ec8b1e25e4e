"""Plans answer what graphql-core answers: any document, any viewer, whatever goes wrong."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import schema
from app.runtime import running
from resolvers.base import Context
from schema.execution import Engine, Limits
from services.accounts.sessions import Client
from services.base import ANONYMOUS
from tests.api.access.world import WHO, World, build
from tests.fixtures import settings_for
from tests.schema.differential.comparing import difference
from tests.schema.differential.documents import Document, documents
from tests.schema.differential.faults import Faults, breaking
from tests.schema.differential.still import standing_still

# The nightly target tries more: `make nightly`.
CASES = int(os.environ.get("NOOSPHERE_TEST_DIFFERENTIAL_CASES", "1000"))
# graphql-core leaves coroutines behind where a field fails beside them.
pytestmark = [
    pytest.mark.timeout(900 + CASES // 4),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LIMITS = Limits(max_objects=10**9)


class Both:
    """The two executors over one world, and a loop to run them on."""

    def __init__(self, runner: asyncio.Runner, world: World) -> None:
        self.runner = runner
        self.world = world
        graph = schema.build()._schema
        self.plans = Engine(graph, limits=LIMITS)
        self.core = Engine(graph, limits=LIMITS, is_compiling=False)
        self.seen: Counter[str] = Counter()
        of = (world.of_owner, world.of_stranger, world.of_reader, world.of_admin, world.shared)
        self.ids = sorted({id_ for ids in of for id_ in ids.values()} | {"msg_nothing", "", "x"})

    def answer(self, engine: Engine, document: Document, who: str) -> dict[str, Any]:
        prepared = engine.prepare(document.text, None, document.variables)
        if isinstance(prepared, list):
            return {"errors": prepared}
        person = self.world.person(who)
        viewer = ANONYMOUS if person is None else person.viewer
        context = Context(self.world.deps, viewer, "test", Client("127.0.0.1", "tests"))
        return self.runner.run(engine.execute(prepared, context)).payload()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        process = running(settings_for(tmp_path_factory.mktemp("process")))
        deps = runner.run(stack.enter_async_context(process))
        try:
            yield Both(runner, runner.run(build(deps)))
        finally:
            runner.run(stack.aclose())


def test_plans_answer_what_graphql_core_answers(
    both: Both, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")

    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        document=documents(both.core.schema, both.ids),
        who=st.sampled_from(WHO),
        seed=st.integers(0, 10**6),
        one_in=st.sampled_from([10**9, 10**9, 60, 12]),
    )
    def holds(document: Document, who: str, seed: int, one_in: int) -> None:
        caplog.clear()
        with breaking(monkeypatch, Faults(seed, one_in)):
            expected = both.answer(both.core, document, who)
            given_ = both.answer(both.plans, document, who)
            found = difference(expected, given_)
        assert found is None, (found, document.text, document.variables, who, expected, given_)
        both.seen["data" if expected.get("data") else "none"] += 1
        both.seen["errors"] += bool(expected.get("errors"))
        both.seen["refused"] += "data" not in expected

    with standing_still(monkeypatch):
        holds()
    assert both.seen["data"] > CASES // 3, both.seen
    assert both.seen["errors"] > CASES // 20, both.seen
    covered = sum(count for (_, why), count in both.plans.executed.items() if not why)
    assert covered > 0.9 * sum(both.plans.executed.values()), both.plans.executed
