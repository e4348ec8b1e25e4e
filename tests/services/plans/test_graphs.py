"""What a plan may be: a graph without cycles, whose references lead somewhere."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from models.plans import Plan
from services import plans
from services.base import Deps
from services.errors import UserError, UserErrors
from services.plans import StepInput, graph
from tests.fixtures import Person
from tests.services.plans.conftest import code

# Graphs.


@given(st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=8, max_size=8))
def test_a_graph_is_acyclic_or_shows_its_cycle(depends_on: list[list[int]]) -> None:
    found = graph.cycle(depends_on)
    if found is None:
        waits_for = graph.ancestors(depends_on)
        for step, direct in enumerate(depends_on):
            assert step not in waits_for[step]
            expected = set(direct).union(*(waits_for[d] for d in direct))
            assert waits_for[step] == expected
    else:
        assert found[0] == found[-1]
        assert all(b in depends_on[a] for a, b in pairwise(found))


def test_references_are_found_and_replaced_wherever_they_stand() -> None:
    value = {"a": ["{{steps.0.output}}!", {"b": "{{ steps.2.result.x.1 }}"}], "c": 3}
    assert sorted(graph.references(value)) == [0, 2]
    resolved = graph.resolve(value, {0: "zero\n"}, {2: {"x": [1, {"deep": True}]}})
    assert resolved == {"a": ["zero!", {"b": {"deep": True}}], "c": 3}


@pytest.mark.parametrize("path", ["nothing", "x.9", "x.y", "x.0.z"])
def test_a_reference_that_leads_nowhere_is_empty(path: str) -> None:
    results = {0: {"x": [1]}}
    assert graph.resolve("{{steps.0.result.%s}}" % path, {}, results) is None  # noqa: UP031
    assert graph.resolve("a {{steps.0.result.%s}} b" % path, {}, results) == "a  b"  # noqa: UP031


# Making.


@pytest.mark.parametrize(
    ("steps", "path", "said"),
    [
        ([], "steps", "at least one"),
        ([code("a"), code("b", 0), code("c", 3), code("d", 2)], "steps.2.depends_on", "2 → 3 → 2"),
        ([code("a", 0)], "steps.0.depends_on", "itself"),
        ([code("a", 5)], "steps.0.depends_on", "steps 0 to 0"),
        ([code("a"), code("b", 0, 0)], "steps.1.depends_on", "more than once"),
        ([code("a"), code("{{steps.0.output}}")], "steps.1.arguments", "without depending"),
        ([StepInput("a", "no_such_tool", {})], "steps.0.tool", "no_such_tool"),
        ([StepInput("a", "run_code", {"code": 3})], "steps.0.arguments.code", "string"),
        ([StepInput("a", None, {"code": "x"})], "steps.0.arguments", "no tool"),
        ([StepInput("", "run_code", {"code": "x"})], "steps.0.description", ""),
    ],
)
async def test_what_cannot_run_is_refused_and_shown(
    deps: Deps, person: Person, steps: Sequence[StepInput], path: str, said: str
) -> None:
    with pytest.raises((UserError, UserErrors)) as refused:
        await plans.create(deps, person.viewer, title="Plan", steps=steps)
    error = refused.value
    assert isinstance(error, UserError | UserErrors)
    (found,) = error.errors if isinstance(error, UserErrors) else (error,)
    assert ".".join(found.path) == path
    assert said in found.message
    async with deps.db.reading() as connection:
        assert (await connection.execute(select(Plan.id))).all() == []
