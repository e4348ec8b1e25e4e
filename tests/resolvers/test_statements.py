"""One statement for each level of a query, whatever the number of parents."""

from typing import Any

import pytest
from graphql import GraphQLField, GraphQLObjectType, get_named_type

from schema.execution import Engine, Limits
from tests.api.access.expectations import FIELDS
from tests.api.access.graph import NODE_TYPES, object_type
from tests.resolvers.conftest import PEOPLE, Crowd

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Of sandboxes none runs here, so the index of files answers for their files.
LINKS = [
    (type_, name)
    for type_ in NODE_TYPES
    for name in object_type(type_).fields
    if FIELDS[type_][name].kind != "PLAIN"
]


def selection(field: GraphQLField) -> str:
    type_ = get_named_type(field.type)
    assert isinstance(type_, GraphQLObjectType)
    nodes = type_.fields.get("nodes")
    if nodes is not None:
        return f"(first: 3) {{ nodes {selection(nodes)} }}"
    return f"{{ {'id' if 'id' in type_.fields else '__typename'} }}"


@pytest.mark.parametrize(("type_", "name"), LINKS, ids="-".join)
async def test_a_field_takes_one_statement_for_all_parents(
    crowd: Crowd, type_: str, name: str
) -> None:
    field = object_type(type_).fields[name]
    document = (
        f"query($ids: [ID!]!) {{ nodes(ids: $ids) {{ ... on {type_} {{ "
        f"id it: {name} {selection(field)} }} }} }}"
    )
    counts = {}
    for count in (1, PEOPLE):
        row = FIELDS[type_][name].target or type_
        with crowd.counting() as statements:
            found = await crowd.api.run(document, crowd.admin, ids=crowd.ids(row, count))
        assert len(found) == count
        assert all(node is not None for node in found) or type_ == "Session"
        if FIELDS[type_][name].kind not in ("PERSONAL", "MOMENT"):
            assert all(node["it"] for node in found), "nothing was found, so nothing is measured"
        counts[count] = len(statements.reads())
        assert len(statements.reads()) <= 2, statements.reads()
    assert counts[1] == counts[PEOPLE]


NESTED: dict[str, tuple[str, int]] = {
    "conversations": (
        """query($n: Int) { conversations(first: $n) { nodes { id
          user { id roles { id permissions } }
          messages(last: 5) { pageInfo { hasPreviousPage } edges { cursor node { id content
            author { id } replyTo { id author { id } } conversation { id }
            toolCalls { id execution { id tool { id parameters { id } } user { id } } }
            citedMemories { id related { id } } error { code }
            context { id messages { id } memories { id } } } } } } } }""",
        # conversations, user, its roles, their permissions, messages, author, replyTo, its author,
        # conversation, toolCalls, execution, tool, parameters, user, citedMemories, related,
        # context, its messages and memories
        19,
    ),
    "plans": (
        """query($n: Int) { plans(first: $n) { nodes { id user { id }
          steps { id dependsOn { id plan { id } } }
          executions(first: 5) { nodes { id plan { id }
            steps { id step { id } toolExecution { id } } } } } } }""",
        # plans, user, steps, dependsOn, its plan, executions, plan, steps, step, toolExecution
        10,
    ),
    "memories": (
        """query($n: Int) { memories(first: $n) { nodes { id isCurrent user { id }
          sourceMessage { id author { id } } supersededBy { id } supersedes { id }
          related { id sourceMessage { id } } } } }""",
        # memories, user, sourceMessage, its author, supersededBy, supersedes, related, its message
        8,
    ),
    "sandboxes": (
        """query($n: Int) { sandboxes(first: $n) { nodes { id user { id } conversation { id }
          template { id } workspace { id } resources { id } security { id } ports { id }
          executions(first: 5) { nodes { id user { id } sandbox { id } resourceUsage {
            cpuMilliseconds } } } } } }""",
        # sandboxes, user, conversation, template, workspace, resources, security, ports,
        # executions, their user and sandbox
        11,
    ),
    "toolExecutions": (
        """query($n: Int) { toolExecutions(first: $n) { nodes { id user { id }
          tool { id parameters { id } } } } }""",
        4,
    ),
}


@pytest.mark.parametrize("name", NESTED)
async def test_a_nested_query_takes_one_statement_a_level(crowd: Crowd, name: str) -> None:
    document, levels = NESTED[name]
    # All lists of the graph at once are more than a server answers by default.
    limits = Limits(max_objects=1_000_000)
    crowd.api.engine = Engine(crowd.api.engine.schema, limits=limits)
    sent: dict[int, list[str]] = {}
    for count in (1, 2, PEOPLE):
        with crowd.counting() as statements:
            found = await crowd.api.run(document, crowd.owner, n=count)
        assert len(found["nodes"]) == count
        sent[count] = statements.reads()
        assert len(statements.sent) - len(statements.reads()) <= levels * 3, statements.sent
    # Fields of two places that happen to be asked at the same moment share a statement.
    for count, reads in sent.items():
        assert levels - 2 <= len(reads) <= levels, (count, reads)


async def test_people_with_all_that_is_theirs_take_one_statement_a_level(crowd: Crowd) -> None:
    document = """query($n: Int) { users(last: $n) { nodes { id roles { id }
      conversations(first: 2) { nodes { id messages(first: 2) { nodes { id } } } }
      plans(first: 2) { nodes { id steps { id } } } memories(first: 2) { nodes { id } }
      sandboxes(first: 2) { nodes { id } } sessions(first: 2) { nodes { id } } } } }"""
    counts = {}
    for count in (2, PEOPLE):
        with crowd.counting() as statements:
            found = await crowd.api.run(document, crowd.admin, n=count)
        assert len(found["nodes"]) == count
        counts[count] = len(statements.reads())
    # users, roles, conversations, messages, plans, steps, memories, sandboxes, sessions
    assert counts == {2: 9, PEOPLE: 9}


async def test_the_same_field_under_two_names_costs_one_statement(crowd: Crowd) -> None:
    with crowd.counting() as statements:
        found: Any = await crowd.api.run(
            "{ conversations(first: 50) { nodes { a: user { id } b: user { username } } } }",
            crowd.owner,
        )
    assert found["nodes"][0]["a"]["id"] == crowd.owner.id
    assert len(statements.reads()) == 2


async def test_objects_of_many_kinds_by_their_ids_take_one_statement_a_kind(crowd: Crowd) -> None:
    kinds = ["Conversation", "Message", "Memory", "Plan", "Sandbox"]
    ids = [id_ for kind in kinds for id_ in crowd.ids(kind, 20)]
    with crowd.counting() as statements:
        found = await crowd.api.run(
            "query($ids: [ID!]!) { nodes(ids: $ids) { id __typename } }", crowd.admin, ids=ids
        )
    assert [node["id"] for node in found] == ids
    assert len(statements.reads()) == len(kinds)


async def test_answers_are_each_parents_own_and_in_order(crowd: Crowd) -> None:
    found = await crowd.api.run(
        """query($ids: [ID!]!) { nodes(ids: $ids) { ... on Conversation { id user { id }
          messages(last: 1) { nodes { id conversation { id } } } } } }""",
        crowd.admin,
        ids=crowd.ids("Conversation", PEOPLE),
    )
    for node, of in zip(found, crowd.people, strict=True):
        assert node["id"] == of["Conversation"]
        assert node["user"] == {"id": of["User"]}
        (message,) = node["messages"]["nodes"]
        assert message["conversation"] == {"id": node["id"]}
        assert message["id"] == max(of["Question"], of["Message"])


ROOTS = {
    "viewer": ("{ viewer { username } }", "email"),
    "users": ("{ users(first: 2) { nodes { username } } }", "email"),
    "tools": ("{ tools(first: 2) { nodes { name } } }", "input_schema"),
    "tool": ('{ tool(name: "run_code") { id } }', "input_schema"),
    "toolExecutions": ("{ toolExecutions(first: 2) { nodes { status } } }", "parameters"),
    "sandboxes": ("{ sandboxes(first: 2) { nodes { status } } }", "image_name"),
    "sandboxTemplates": ("{ sandboxTemplates(first: 2) { nodes { name } } }", "security_config"),
    "sandboxSnapshots": ("{ sandboxSnapshots(first: 2) { nodes { id } } }", "sha256"),
}


@pytest.mark.parametrize("name", ROOTS)
async def test_a_root_field_loads_no_column_nobody_asked_for(crowd: Crowd, name: str) -> None:
    document, column = ROOTS[name]
    crowd.api.core, core = None, crowd.api.core
    try:
        with crowd.counting() as statements:
            found = await crowd.api.run(document, crowd.admin)
    finally:
        crowd.api.core = core
    assert found
    assert statements.reads()
    assert not any(column in statement for statement in statements.reads()), statements.reads()
