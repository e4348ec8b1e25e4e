"""No page, cursor, text or filter breaks a query or a subscription."""

from typing import Any

import pytest
from graphql import (
    GraphQLScalarType,
    get_named_type,
    is_required_argument,
)

from resolvers.base import Order
from tests.api.access.expectations import SUBSCRIPTIONS
from tests.api.access.graph import root
from tests.api.access.world import World
from tests.api.hostile import IDS, TEXTS, WORDS, assert_decent

pytestmark = pytest.mark.asyncio(loop_scope="module")

# ---- queries

CONNECTIONS = [
    name for name, field in root("query").items() if "first" in field.args and "last" in field.args
]


@pytest.mark.parametrize("name", CONNECTIONS)
@pytest.mark.parametrize(
    "page", ["first: -1", "first: 101", "last: -1", "last: 101", "first: 1, last: 1"]
)
async def test_an_impossible_page_is_refused(world: World, name: str, page: str) -> None:
    answer = await world.api.raw(f"{{ {name}({page}) {{ nodes {{ __typename }} }} }}", world.owner)

    assert_decent(answer)
    assert [e["extensions"]["code"] for e in answer["errors"]] == ["BAD_USER_INPUT"]
    assert answer["data"] is None


async def test_an_impossible_page_within_an_object_is_refused(world: World) -> None:
    answer = await world.api.raw(
        "query($id: ID!) { conversation(id: $id) { messages(first: 101) { nodes { id } } } }",
        world.owner,
        id=world.of_owner["Conversation"],
    )
    assert_decent(answer)
    assert [e["extensions"]["code"] for e in answer["errors"]] == ["BAD_USER_INPUT"]


def _cursor(*values: Any) -> str:
    """Make a cursor of values as if a list had made it."""

    class Row:
        def __getattr__(self, name: str) -> Any:
            return values[int(name[1:])] if name != "id" else values[-1]

    return Order(tuple(f"v{i}" for i in range(len(values) - 1))).cursors([Row()])[0]


CURSORS = {
    "empty": "",
    "no base64": "%%%",
    "no JSON": "AAAA",
    "emoji": "🦆",
    "10 KB": "A" * 10_240,
    "NUL": "\x00",
    "a subscription's": "WyJhYmNkIiwwLHt9XQ",
    "one value": _cursor("cnv_1"),
    "two values": _cursor("2026-01-01T00:00:00+00:00", "cnv_1"),
    "three values": _cursor("a", "b", "c"),
    "a time without a zone": _cursor("2026-01-01T00:00:00", "cnv_1"),
    "a time at the edge": _cursor("0001-01-01T00:00:00+14:00", "cnv_1"),
    "a number": _cursor(2**63, "cnv_1"),
    "infinity": _cursor("Infinity", "cnv_1"),
    "NaN": _cursor("NaN", "cnv_1"),
    "an id in emoji": _cursor("2026-01-01T00:00:00+00:00", "🦆"),
    "only an id in emoji": _cursor("🦆"),
    "an id that is none": _cursor("2026-01-01T00:00:00+00:00", "' OR 1=1"),
    "null": _cursor(None, "cnv_1"),
    "a list": _cursor(["a"], "cnv_1"),
}


_ORDERS = {
    "memories": ["CREATED_AT_DESC", "UPDATED_AT_DESC", "IMPORTANCE_DESC", "ACCESS_COUNT_DESC"],
    "conversations": ["{field: UPDATED_AT}", "{field: CREATED_AT, direction: ASC}"],
}


@pytest.mark.parametrize("name", CONNECTIONS)
async def test_a_cursor_of_nobodys_is_refused_or_leads_nowhere(world: World, name: str) -> None:
    for order in _ORDERS.get(name, [""]):
        by = f", orderBy: {order}" if order else ""
        document = (
            f"query($c: String) {{ {name}(first: 5, after: $c{by}) {{ nodes {{ __typename }} }} }}"
        )
        refused = 0
        for what, cursor in CURSORS.items():
            for text in (document, document.replace("first: 5, after", "last: 5, before")):
                answer = await world.api.raw(text, world.owner, c=cursor)
                assert_decent(answer)
                if answer.get("errors"):
                    codes = [e["extensions"]["code"] for e in answer["errors"]]
                    assert codes == ["BAD_USER_INPUT"], (what, answer)
                    refused += 1
        assert refused >= 2 * 8, f"only {refused} cursors were refused"


ARGUMENTS = [
    (name, argument)
    for name, field in root("query").items()
    for argument, value in field.args.items()
    if isinstance(get_named_type(value.type), GraphQLScalarType)
    and get_named_type(value.type).name in ("ID", "String")
    and argument not in ("after", "before")
]


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS, ids="-".join)
async def test_no_text_breaks_a_query(world: World, name: str, argument: str) -> None:
    field = root("query")[name]
    type_ = field.args[argument].type
    others = "".join(
        f", {other}: {'[]' if str(v.type).startswith('[') else chr(34) + 'a' + chr(34)}"
        for other, v in field.args.items()
        if other != argument and is_required_argument(v)
    )
    composite = get_named_type(field.type)
    is_connection = composite.name.endswith("Connection")
    inner = "nodes { __typename }" if is_connection else "__typename"
    document = f"query($v: {type_}) {{ {name}({argument}: $v{others}) {{ {inner} }} }}"
    for what, text in (TEXTS | IDS | WORDS).items():
        value = [text] * 3 if str(type_).startswith("[") else text
        answer = await world.api.raw(document, world.owner, v=value)
        assert_decent(answer)
        if answer.get("errors"):
            assert answer["errors"][0]["extensions"]["code"] in (
                "BAD_USER_INPUT",
                "REQUIRED",
                "LIMIT",
                "INVALID",
            ), (what, answer)


FILTERS: list[tuple[str, str, Any]] = [
    ("conversations", "ConversationFilter", {"titleContains": text}) for text in TEXTS.values()
] + [
    ("conversations", "ConversationFilter", {"titleContains": "%_\\" * 20_000}),
    ("memories", "MemoryFilter", {"importanceAtLeast": -1e308}),
    ("memories", "MemoryFilter", {"importanceAtLeast": 1e308}),
    ("memories", "MemoryFilter", {"types": []}),
    ("memories", "MemoryFilter", {"types": ["SEMANTIC"] * 1000}),
    ("memories", "MemoryFilter", {"createdAfter": "0001-01-01T00:00:00+14:00"}),
    ("memories", "MemoryFilter", {"createdBefore": "9999-12-31T23:59:59-14:00"}),
    ("memories", "MemoryFilter", {"createdBefore": "9999-12-31T23:59:59"}),
    ("memories", "MemoryFilter", {"createdBefore": "yesterday"}),
]


@pytest.mark.parametrize("index", range(len(FILTERS)))
async def test_no_filter_breaks_a_list(world: World, index: int) -> None:
    name, type_, value = FILTERS[index]
    answer = await world.api.raw(
        f"query($f: {type_}) {{ {name}(filter: $f) {{ nodes {{ id }} }} }}", world.owner, f=value
    )
    assert_decent(answer)


async def test_more_than_100_ids_at_once_are_refused(world: World) -> None:
    answer = await world.api.raw(
        "query($ids: [ID!]!) { nodes(ids: $ids) { id } }",
        world.owner,
        ids=[world.of_owner["Plan"]] * 101,
    )
    assert_decent(answer)
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


# ---- subscriptions

EVENT_CURSORS = {
    "garbage": "garbage",
    "emoji": "🦆",
    "no JSON": "AAAA",
    "NUL": "\x00",
    "10 KB": "A" * 10_240,
    "a page's": _cursor("cnv_1"),
    "a negative number": _cursor("abcd", -1, {}),
    "a fraction": _cursor("abcd", 1.5, {}),
    "no offsets": _cursor("abcd", 1, []),
    "negative offsets": _cursor("abcd", 1, {"msg_1": -1}),
}


@pytest.mark.parametrize("name", sorted(n for n, s in SUBSCRIPTIONS.items() if s.is_resumable))
async def test_a_cursor_that_is_none_is_refused(world: World, name: str) -> None:
    expected = SUBSCRIPTIONS[name]
    document = (
        f"subscription({expected.variable}$c: String) {{ {name}({expected.given}after: $c) "
        "{ __typename cursor } }"
    )
    ids = {"id": world.of_owner[expected.type]} if expected.type else {}
    for what, cursor in EVENT_CURSORS.items():
        async with world.api.subscribe(document, world.owner, c=cursor, **ids) as stream:
            first = await stream.next()
            assert_decent([first, stream.refusal])
            if first is None:
                assert [e["extensions"]["code"] for e in stream.refusal] == ["BAD_USER_INPUT"], what
            else:
                # An execution's cursor of another form is an unknown one: it begins anew.
                assert first["__typename"].endswith("Reset"), what


@pytest.mark.parametrize("name", sorted(n for n, s in SUBSCRIPTIONS.items() if s.type))
async def test_no_id_breaks_a_subscription(world: World, name: str) -> None:
    expected = SUBSCRIPTIONS[name]
    document = f"subscription($id: ID!) {{ {name}({expected.argument}: $id) {expected.selection} }}"
    for what, id_ in IDS.items():
        async with world.api.subscribe(document, world.owner, id=id_) as stream:
            assert await stream.next() is None
            assert_decent(stream.refusal)
            assert [e["extensions"]["code"] for e in stream.refusal] == ["NOT_FOUND"], what
