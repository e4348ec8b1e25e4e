"""Everything in the graph, tried by everybody: anonymous, a stranger, the owner, an administrator
and somebody who may only look."""

import json
from typing import Any

import pytest
from graphql import (
    GraphQLField,
    GraphQLObjectType,
    get_named_type,
    is_composite_type,
    is_required_argument,
)

from tests.api.access.belongings import SECRET
from tests.api.access.expectations import (
    ABSENT,
    ADMINS,
    EVERYBODYS,
    FIELDS,
    FORBIDDEN,
    MUTATIONS,
    OK,
    QUERIES,
    SUBSCRIPTIONS,
    UNAUTHENTICATED,
)
from tests.api.access.graph import NODE_TYPES, object_type
from tests.api.access.world import WHO, World, absent, filled
from tests.api.people import everything_stored

pytestmark = pytest.mark.asyncio(loop_scope="module")

NODE = "query($id: ID!) { node(id: $id) { id __typename } }"


# ---- objects by their ids


@pytest.mark.parametrize("type_", NODE_TYPES)
async def test_a_foreign_id_answers_as_one_that_nothing_has(world: World, type_: str) -> None:
    for who in WHO:
        person, id_ = world.person(who), world.target(who, type_)
        nothing = absent(id_)

        found = await world.api.raw(NODE, person, id=id_)
        missing = await world.api.raw(NODE, person, id=nothing)
        many = await world.api.raw(
            "query($ids: [ID!]!) { nodes(ids: $ids) { id __typename } }",
            person,
            ids=[nothing, id_, nothing],
        )

        assert missing == {"data": {"node": None}}, who
        if sees(who, type_):
            assert found["data"]["node"] == {"id": id_, "__typename": type_}, who
        else:
            assert found == missing, who
        assert many == {"data": {"nodes": [None, found["data"]["node"], None]}}, who


def sees(who: str, type_: str) -> bool:
    if who == "anonymous":
        return False
    if who == "admin":
        return type_ != "Session"
    if type_ in ADMINS:
        return False
    return who != "stranger" or type_ in EVERYBODYS


@pytest.mark.parametrize("type_", sorted({"Question", "Conversation", "Plan", "Memory"}))
async def test_nobody_sees_anything_of_another_through_an_id(world: World, type_: str) -> None:
    answer = await world.api.raw(NODE, world.owner, id=world.of_stranger[type_])
    assert answer == {"data": {"node": None}}


# ---- fields of objects


def selection(field: GraphQLField) -> str:
    """Select the plain fields of what a field leads to; of a connection, of its nodes."""
    type_ = get_named_type(field.type)
    if not isinstance(type_, GraphQLObjectType):
        return ""
    if "nodes" in type_.fields:
        return f"{{ nodes {selection(type_.fields['nodes'])} edges {{ cursor }} }}"
    plain = [
        name
        for name, inner in type_.fields.items()
        if not is_composite_type(get_named_type(inner.type))
        and not any(is_required_argument(a) for a in inner.args.values())
    ]
    return f"{{ {' '.join(plain) or '__typename'} }}"


def fields_of(kinds: set[str]) -> list[tuple[str, str]]:
    return [
        (type_, name)
        for type_ in NODE_TYPES
        for name in object_type(type_).fields
        if type_ in FIELDS and name in FIELDS[type_] and FIELDS[type_][name].kind in kinds
    ]


async def look(world: World, who: str, id_: str, type_: str, name: str) -> Any:
    field = object_type(type_).fields[name]
    inner = f"it: {name} {selection(field)}"
    document = f"query($id: ID!) {{ node(id: $id) {{ ... on {type_} {{ {inner} }} }} }}"
    answer = await world.api.raw(document, world.person(who), id=id_)
    assert "errors" not in answer, answer
    node = answer["data"]["node"]
    assert node is not None, (who, type_)
    found = node["it"]
    return found["nodes"] if isinstance(found, dict) and "nodes" in found else found


@pytest.mark.parametrize("type_", NODE_TYPES)
async def test_whoever_sees_an_object_sees_its_own_values(world: World, type_: str) -> None:
    plain = [name for at, name in fields_of({"PLAIN"}) if at == type_]
    document = f"query($id: ID!) {{ node(id: $id) {{ ... on {type_} {{ {' '.join(plain)} }} }} }}"
    for who in WHO:
        answer = await world.api.raw(document, world.person(who), id=world.target(who, type_))
        assert "errors" not in answer, (who, answer)
        if sees(who, type_):
            assert set(answer["data"]["node"]) == set(plain), who
        else:
            assert answer == {"data": {"node": None}}, who


@pytest.mark.parametrize(
    ("type_", "name"), fields_of({"PART", "LINK", "SHARED", "PERSONAL"}), ids="-".join
)
async def test_a_link_shows_what_its_viewer_may_see(world: World, type_: str, name: str) -> None:
    expected = FIELDS[type_][name]
    row = expected.target or type_
    for who in ("owner", "reader", "admin"):
        if not sees(who, type_):
            continue
        found = await look(world, who, world.target(who, row), type_, name)
        if who == "admin" and expected.kind == "PERSONAL":
            assert not found, who
        else:
            assert found, who


@pytest.mark.parametrize(("type_", "name"), fields_of({"LINK"}), ids="-".join)
async def test_a_link_to_a_foreign_object_leads_nowhere(
    world: World, type_: str, name: str
) -> None:
    row = FIELDS[type_][name].target or type_

    found = await look(world, "stranger", world.of_stranger[row], type_, name)

    assert not found, found


@pytest.mark.parametrize(("type_", "name"), fields_of({"PART", "LINK", "PERSONAL"}), ids="-".join)
async def test_no_link_of_a_stranger_shows_the_owners_rows(
    world: World, type_: str, name: str
) -> None:
    for row in {FIELDS[type_][name].target or type_, type_}:
        found = json.dumps(await look(world, "stranger", world.of_stranger[row], type_, name))

        assert f"{SECRET}owner" not in found
        assert not [id_ for id_ in world.of_owner.values() if id_ in found]


# ---- queries


@pytest.mark.parametrize("name", [n for n, q in QUERIES.items() if q.kind == "LOOKUP"])
async def test_looking_up_a_foreign_object_answers_as_for_an_absent_one(
    world: World, name: str
) -> None:
    type_ = QUERIES[name].type
    document = f"query($id: ID!) {{ {name}(id: $id) {{ id }} }}"
    for who in WHO:
        id_ = world.target(who, type_)
        found = await world.api.raw(document, world.person(who), id=id_)
        missing = await world.api.raw(document, world.person(who), id=absent(id_))
        wrong_kind = await world.api.raw(document, world.person(who), id=world.of_owner["User"])

        assert missing == wrong_kind == {"data": {name: None}}, who
        if sees(who, type_):
            assert found == {"data": {name: {"id": id_}}}, who
        else:
            assert found == missing, who


@pytest.mark.parametrize("name", [n for n, q in QUERIES.items() if q.kind in ("LIST", "ALL")])
async def test_a_list_holds_ones_own(world: World, name: str) -> None:
    query = QUERIES[name]
    document = f"{{ {name}{query.arguments} {query.selection} }}"
    everybodys = {
        who: {id_ for id_ in ids.values() if id_.startswith(prefix(world, query.type))}
        for who, ids in (
            ("owner", world.of_owner),
            ("stranger", world.of_stranger),
            ("reader", world.of_reader),
            ("admin", world.of_admin),
        )
    }
    for who in WHO:
        found = ids_in(await world.api.run(document, world.person(who)))
        if who == "anonymous":
            assert found == set()
        elif who == "admin" and query.kind == "ALL":
            assert found >= set().union(*everybodys.values())
        else:
            foreign = set().union(*(ids for of, ids in everybodys.items() if of != who))
            assert found
            assert not found & foreign, who


@pytest.mark.parametrize("name", [n for n, q in QUERIES.items() if q.kind == "SHARED"])
async def test_what_is_everybodys_needs_a_sign_in(world: World, name: str) -> None:
    query = QUERIES[name]
    document = f"{{ {name}{query.arguments} {query.selection} }}"
    for who in WHO:
        found = ids_in(await world.api.run(document, world.person(who)))
        assert bool(found) == (who != "anonymous"), who


@pytest.mark.parametrize("name", [n for n, q in QUERIES.items() if q.kind == "ADMIN"])
async def test_what_is_for_administrators_is_for_nobody_else(world: World, name: str) -> None:
    query = QUERIES[name]
    document = f"{{ {name}{query.arguments} {query.selection} }}"
    for who in WHO:
        found = ids_in(await world.api.run(document, world.person(who)))
        assert found == ({world.shared[query.type]} if who == "admin" else set()), who


def prefix(world: World, type_: str) -> str:
    return (world.shared.get(type_) or world.of_owner[type_]).split("_", maxsplit=1)[0] + "_"


def ids_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["id"]} if isinstance(value.get("id"), str) else set()
        return own.union(*(ids_in(inner) for inner in value.values()))
    if isinstance(value, list):
        return set().union(*map(ids_in, value))
    return set()


# ---- subscriptions


@pytest.mark.parametrize("name", sorted(n for n, s in SUBSCRIPTIONS.items() if s.type))
async def test_following_a_foreign_object_is_refused_as_for_an_absent_one(
    world: World, name: str
) -> None:
    expected = SUBSCRIPTIONS[name]
    document = f"subscription($id: ID!) {{ {name}({expected.argument}: $id) {expected.selection} }}"
    before = await everything_stored(world.deps)
    for who in WHO:
        id_ = world.target(who, expected.type)
        async with world.api.subscribe(document, world.person(who), id=absent(id_)) as stream:
            assert await stream.next() is None
            missing = stream.refusal
        async with world.api.subscribe(document, world.person(who), id=id_) as stream:
            first = await stream.next()
            if sees(who, expected.type):
                assert first is not None, (who, stream.refusal)
                assert not expected.is_resumable or first["cursor"]
            else:
                assert first is None, who
                assert stream.refusal == missing, who
        code = UNAUTHENTICATED if who == "anonymous" else "NOT_FOUND"
        assert missing[0]["extensions"]["code"] == code, who
    assert await everything_stored(world.deps) == before


@pytest.mark.parametrize("name", sorted(n for n, s in SUBSCRIPTIONS.items() if not s.type))
async def test_following_ones_own_shows_nothing_of_others_and_needs_a_sign_in(
    world: World, name: str
) -> None:
    lists = " ".join(
        f"{of}(first: 100) {{ nodes {{ id }} }}"
        for of in ("conversations", "plans", "sandboxes", "memories")
    )
    document = (
        f"subscription {{ {name} {{ __typename cursor ... on ViewerReset {{"
        f" viewer {{ id {lists} }} }} }} }}"
    )
    before = await everything_stored(world.deps)
    for who, own in (
        ("anonymous", {}),
        ("owner", world.of_owner),
        ("stranger", world.of_stranger),
        ("reader", world.of_reader),
        ("admin", world.of_admin),
    ):
        async with world.api.subscribe(document, world.person(who)) as stream:
            first = await stream.next()
        if not own:
            assert first is None
            assert [e["extensions"]["code"] for e in stream.refusal] == [UNAUTHENTICATED]
            continue
        assert first is not None, (who, stream.refusal)
        assert first["cursor"], who
        kinds = ("User", "Conversation", "Plan", "Sandbox", "Memory", "NearMemory", "OldMemory")
        assert ids_in(first["viewer"]) == {own[kind] for kind in kinds}, who
    assert await everything_stored(world.deps) == before


# ---- mutations


def outcome(answer: Any) -> str:
    """Give UNAUTHENTICATED, FORBIDDEN or NOT_FOUND for a denial, OK for everything else."""
    if answer.get("errors"):
        codes = {error["extensions"]["code"] for error in answer["errors"]}
        assert codes == {UNAUTHENTICATED}, answer
        assert answer["data"] is None
        return UNAUTHENTICATED
    (payload,) = answer["data"].values()
    codes = {error["code"] for error in payload["errors"]}
    return codes.pop() if codes & {ABSENT, FORBIDDEN} else OK


@pytest.mark.parametrize("who", WHO)
async def test_who_may_not_change_something_changes_nothing(world: World, who: str) -> None:
    before = await everything_stored(world.deps)
    for name, mutation in MUTATIONS.items():
        expected = getattr(mutation, who)
        if expected == OK:
            continue
        variables = filled(world, who, mutation.variables)
        answer = await world.api.raw(mutation.document, world.person(who), **variables)

        assert outcome(answer) == expected, (name, answer)
        nothing = filled(world, who, mutation.variables, is_absent=True)
        assert answer == await world.api.raw(mutation.document, world.person(who), **nothing), name
        if expected == ABSENT:
            (payload,) = answer["data"].values()
            assert payload["errors"][0]["path"], name
    after = await everything_stored(world.deps)
    assert {table: rows for table, rows in after.items() if rows != before[table]} == {}


async def test_a_file_of_a_foreign_sandbox_answers_as_one_of_an_absent_sandbox(
    world: World,
) -> None:
    assert [name for name, query in QUERIES.items() if query.kind == "FILE"] == ["sandboxFile"]
    document = 'query($id: ID!) { sandboxFile(sandboxId: $id, path: "a") { path content } }'
    for who in ("anonymous", "stranger"):
        id_ = world.target(who, "Sandbox")
        found = await world.api.raw(document, world.person(who), id=id_)
        missing = await world.api.raw(document, world.person(who), id=absent(id_))
        assert found == missing, who
        assert found["data"] == {"sandboxFile": None}, who
