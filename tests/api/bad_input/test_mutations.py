"""What is wrong with an input is told to its sender; nothing is written, nothing leaks."""

from typing import Any

import pytest
from graphql import (
    GraphQLInputObjectType,
    get_named_type,
)

from tests.api.access.expectations import MUTATIONS
from tests.api.access.graph import root
from tests.api.access.world import World, absent, filled
from tests.api.bad_input.inputs import (
    ALWAYS,
    CODES,
    FULL,
    MAY_BE_EMPTY,
    asker,
    errors_of,
    leaf_cases,
    put,
)
from tests.api.hostile import IDS, TEXTS, WORDS, assert_decent
from tests.api.people import everything_stored

pytestmark = pytest.mark.asyncio(loop_scope="module")

# These need a sandbox that runs, or a driver: either refusal is right, and no file is touched.
NEEDS_A_SANDBOX = {name for name in FULL if name.startswith("sandbox")}


@pytest.fixture(autouse=True)
def the_whole_schema_is_tried() -> None:
    """Fail when an input has a field that is not in the table."""
    assert set(FULL) == set(root("mutation")) == set(MUTATIONS)
    for name, field in root("mutation").items():
        argument = field.args.get("input")
        if argument is not None:
            check_complete(name, get_named_type(argument.type), FULL[name]["input"])


def check_complete(name: str, type_: Any, given: Any) -> None:
    if isinstance(type_, GraphQLInputObjectType):
        assert set(given) == set(type_.fields), (name, type_.name)
        for field_name, field in type_.fields.items():
            inner = given[field_name]
            one = inner[0] if str(field.type).startswith("[") and inner else inner
            check_complete(name, get_named_type(field.type), one)


@pytest.mark.parametrize(
    ("name", "path"), leaf_cases("text"), ids=lambda v: ".".join(v) if isinstance(v, tuple) else v
)
async def test_an_unfit_text_is_told_and_changes_nothing(
    world: World, name: str, path: tuple[str, ...]
) -> None:
    who, given = asker(world, name), filled(world, "owner", FULL[name])
    leaf = next(part for part in reversed(path) if not part.isdigit())
    before = await everything_stored(world.deps)
    for what, text in TEXTS.items():
        if what in ("empty", "blank") and (name, leaf) in MAY_BE_EMPTY:
            continue
        answer = await world.api.raw(MUTATIONS[name].document, who, **put(given, path, text))

        assert_decent(answer)
        errors = errors_of(answer)
        assert errors, (what, answer)
        if name in NEEDS_A_SANDBOX:
            continue
        expected = ALWAYS.get((name, leaf))
        if expected is not None:
            assert (errors[0]["code"], errors[0]["path"]) == expected, what
        else:
            assert errors[0]["code"] in CODES[what], (what, errors)
            assert errors[0]["path"] == list(path), (what, errors)
        assert errors[0]["message"].endswith("."), errors
    assert await everything_stored(world.deps) == before


@pytest.mark.parametrize(
    ("name", "path"), leaf_cases("id"), ids=lambda v: ".".join(v) if isinstance(v, tuple) else v
)
async def test_a_wrong_id_is_an_absent_one_and_changes_nothing(
    world: World, name: str, path: tuple[str, ...]
) -> None:
    who, given = asker(world, name), filled(world, "owner", FULL[name])
    own = given[path[0]] if len(path) == 1 else given[path[0]][path[1]]
    others = {"another kind": world.of_owner["User"], "a foreign one": ""}
    kind = FULL[name][path[0]] if len(path) == 1 else FULL[name][path[0]][path[1]]
    others["a foreign one"] = world.of_stranger.get(kind.strip("<>"), absent(own))
    if own.startswith("usr_"):
        others = {"another kind": world.of_owner["Plan"]}
    before = await everything_stored(world.deps)
    answers = {}
    for what, id_ in (IDS | others | {"absent": absent(own)}).items():
        answer = await world.api.raw(MUTATIONS[name].document, who, **put(given, path, id_))

        assert_decent(answer)
        errors = errors_of(answer)
        assert errors, (what, answer)
        if not (name in NEEDS_A_SANDBOX and path[0] == "input"):
            assert errors[0]["code"] == "NOT_FOUND", (what, errors)
            assert errors[0]["path"] == list(path), (what, errors)
        answers[what] = answer
    assert all(answer == answers["absent"] for answer in answers.values())
    assert await everything_stored(world.deps) == before


@pytest.mark.parametrize("what", WORDS)
async def test_texts_in_all_the_worlds_scripts_are_kept_as_they_are(
    world: World, what: str
) -> None:
    text, owner = WORDS[what], world.owner
    made = await world.api.run(
        "mutation($t: String!) { conversationCreate(input: {title: $t}) {"
        " conversation { id title } errors { code message } } }",
        owner,
        t=text,
    )
    assert made["errors"] == []
    assert made["conversation"]["title"] == text
    sent = await world.api.run(
        "mutation($c: ID!, $t: String!) { messageSend(input: {conversationId: $c, content: $t,"
        " idempotencyKey: $t}) { message { id content } errors { code message } } }",
        owner,
        c=made["conversation"]["id"],
        t=text,
    )
    assert sent["errors"] == []
    found = await world.api.run(
        "query($id: ID!) { message(id: $id) { content } }", owner, id=sent["message"]["id"]
    )
    assert found == {"content": text}
    listed = await world.api.run(
        "query($t: String!) { conversations(filter: {titleContains: $t}) { nodes { id } } }",
        owner,
        t=text,
    )
    assert {"id": made["conversation"]["id"]} in listed["nodes"]
