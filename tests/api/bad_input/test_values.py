"""Steps that cannot be, values of wrong types, and numbers out of range are refused."""

import math
from typing import Any

import pytest

from tests.api.access.expectations import MUTATIONS
from tests.api.access.world import World, filled
from tests.api.bad_input.inputs import STEP, errors_of
from tests.api.hostile import assert_decent, nested
from tests.api.people import everything_stored

pytestmark = pytest.mark.asyncio(loop_scope="module")

# ---- plans

PLAN = MUTATIONS["planCreate"].document


STEPS: dict[str, tuple[list[dict[str, Any]], str, list[str]]] = {
    "no steps": ([], "REQUIRED", ["steps"]),
    "too many": ([STEP] * 101, "LIMIT", ["steps"]),
    "on itself": ([STEP | {"dependsOn": [0]}], "INVALID", ["steps", "0", "dependsOn"]),
    "in a cycle": (
        [STEP | {"dependsOn": [1]}, STEP | {"dependsOn": [2]}, STEP | {"dependsOn": [0]}],
        "INVALID",
        ["steps", "0", "dependsOn"],
    ),
    "on one that is not there": (
        [STEP | {"dependsOn": [7]}],
        "INVALID",
        ["steps", "0", "dependsOn"],
    ),
    "on one before all": ([STEP | {"dependsOn": [-1]}], "INVALID", ["steps", "0", "dependsOn"]),
    "twice on one": (
        [STEP, STEP | {"dependsOn": [0, 0]}],
        "INVALID",
        ["steps", "1", "dependsOn"],
    ),
    "an unknown tool": ([STEP | {"tool": "no_such"}], "NOT_FOUND", ["steps", "0", "tool"]),
    "arguments without a tool": ([STEP | {"tool": None}], "INVALID", ["steps", "0", "arguments"]),
    "a missing argument": (
        [STEP | {"arguments": {}}],
        "REQUIRED",
        ["steps", "0", "arguments", "query"],
    ),
    "an argument too many": (
        [STEP | {"arguments": {"query": "a", "colour": "b"}}],
        "INVALID",
        ["steps", "0", "arguments", "colour"],
    ),
    "an argument of another type": (
        [STEP | {"arguments": {"query": 7}}],
        "INVALID",
        ["steps", "0", "arguments", "query"],
    ),
    "arguments that are a list": (
        [STEP | {"arguments": ["query"]}],
        "INVALID",
        ["steps", "0", "arguments"],
    ),
    "arguments that are a text": (
        [STEP | {"arguments": "query"}],
        "INVALID",
        ["steps", "0", "arguments"],
    ),
    "a reference to a step not waited for": (
        [STEP, STEP | {"arguments": {"query": "{{steps.0.output}}"}}],
        "INVALID",
        ["steps", "1", "arguments"],
    ),
    "NaN": (
        [STEP | {"arguments": {"query": "a", "first": math.nan}}],
        "INVALID",
        ["steps", "0", "arguments", "first"],
    ),
    "infinity": (
        [STEP | {"arguments": {"query": "a", "first": math.inf}}],
        "INVALID",
        ["steps", "0", "arguments", "first"],
    ),
    "a huge number": (
        [STEP | {"arguments": {"query": "a", "first": 10**400}}],
        "INVALID",
        ["steps", "0", "arguments"],
    ),
    "300 KB of arguments": (
        [STEP | {"arguments": {"query": "x" * 300_000}}],
        "LIMIT",
        ["steps", "0", "arguments"],
    ),
    "5,000 levels": (
        [STEP | {"arguments": {"query": nested(5_000)}}],
        "INVALID",
        ["steps", "0", "arguments"],
    ),
    "a NUL in a name": (
        [STEP | {"arguments": {"query": "a", "a\x00": 1}}],
        "INVALID",
        ["steps", "0", "arguments"],
    ),
}


@pytest.mark.parametrize("what", STEPS)
async def test_a_plan_with_an_impossible_step_is_refused(world: World, what: str) -> None:
    steps, code, path = STEPS[what]
    before = await everything_stored(world.deps)

    answer = await world.api.raw(PLAN, world.owner, input={"title": "Trees", "steps": steps})

    assert_decent(answer)
    (error, *_) = errors_of(answer)
    assert error["code"] == code, error
    assert error["path"][: len(path) + 1] == ["input", *path], error
    if what == "in a cycle":
        assert "0 → 1 → 2 → 0" in error["message"]
    assert await everything_stored(world.deps) == before


async def test_every_step_at_fault_is_named(world: World) -> None:
    steps = [STEP | {"tool": "no_such"}, STEP, STEP | {"description": ""}]

    answer = await world.api.raw(PLAN, world.owner, input={"title": "Trees", "steps": steps})

    assert [(e["code"], e["path"]) for e in errors_of(answer)] == [
        ("NOT_FOUND", ["input", "steps", "0", "tool"]),
        ("REQUIRED", ["input", "steps", "2", "description"]),
    ]


# ---- values of wrong types

WRONG_TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    "a number for a text": ("conversationCreate", {"input": {"title": 7}}),
    "a list for a text": ("conversationCreate", {"input": {"title": ["a"]}}),
    "an unknown field": ("conversationCreate", {"input": {"colour": "red"}}),
    "a text for an input": ("conversationCreate", {"input": "title"}),
    "null for an input": ("conversationCreate", {"input": None}),
    "nothing for an input": ("conversationCreate", {}),
    "an unknown enum value": ("memoryCreate", {"input": {"content": "a", "type": "HEARSAY"}}),
    "a text for a number": ("memoryCreate", {"input": {"content": "a", "importance": "0.5"}}),
    "NaN for a number": ("memoryCreate", {"input": {"content": "a", "importance": math.nan}}),
    "infinity for a number": ("memoryCreate", {"input": {"content": "a", "importance": math.inf}}),
    "an object for an id": ("conversationDelete", {"id": {"a": 1}}),
    "true for an id": ("conversationDelete", {"id": True}),
    "null for an id": ("conversationDelete", {"id": None}),
    "a fraction for a whole number": (
        "planCreate",
        {"input": {"title": "a", "steps": [STEP | {"dependsOn": [0.5]}]}},
    ),
    "a huge whole number": (
        "planCreate",
        {"input": {"title": "a", "steps": [STEP | {"dependsOn": [2**31]}]}},
    ),
    "a text for bytes": ("sandboxCreate", {"input": {"resources": {"memoryBytes": "much"}}}),
    "a fraction for bytes": ("sandboxCreate", {"input": {"resources": {"memoryBytes": 1.5}}}),
    "true for bytes": ("sandboxCreate", {"input": {"resources": {"memoryBytes": True}}}),
    "huge bytes": ("sandboxCreate", {"input": {"resources": {"memoryBytes": 2**63}}}),
}


@pytest.mark.parametrize("what", WRONG_TYPES)
async def test_a_value_of_a_wrong_type_is_refused_before_anything_runs(
    world: World, what: str
) -> None:
    name, variables = WRONG_TYPES[what]

    answer = await world.api.raw(MUTATIONS[name].document, world.owner, **variables)

    assert_decent(answer)
    assert "data" not in answer or answer["data"] is None
    assert {e["extensions"]["code"] for e in answer["errors"]} == {"BAD_USER_INPUT"}


OUT_OF_RANGE = [
    ("memoryCreate", {"input": {"content": "a", "importance": -0.1}}, "importance"),
    ("memoryCreate", {"input": {"content": "a", "importance": 1.1}}, "importance"),
    ("memoryCreate", {"input": {"content": "a", "importance": 1e308}}, "importance"),
    ("memoryUpdate", {"id": "<Memory>", "input": {"importance": -5}}, "importance"),
]


@pytest.mark.parametrize(("name", "variables", "field"), OUT_OF_RANGE)
async def test_a_number_out_of_range_is_refused(
    world: World, name: str, variables: dict[str, Any], field: str
) -> None:
    before = await everything_stored(world.deps)

    answer = await world.api.raw(
        MUTATIONS[name].document, world.owner, **filled(world, "owner", variables)
    )

    assert_decent(answer)
    assert [(e["code"], e["path"]) for e in errors_of(answer)] == [("INVALID", ["input", field])]
    assert await everything_stored(world.deps) == before
