import math
from base64 import urlsafe_b64encode

import pytest

from models.states import MemoryType
from services import memories
from services.memories.vectors import Library
from tests.services.small_world import answer, ask, message, person, statements

CREATE = """mutation($input: MemoryCreateInput!) { memoryCreate(input: $input) {
  memory { id type content importance isCurrent accessCount } isNew
  errors { code message path } } }"""
LIST = """query($first: Int, $after: String, $last: Int, $before: String,
              $filter: MemoryFilter, $order: MemoryOrder! = CREATED_AT_DESC) {
  memories(first: $first, after: $after, last: $last, before: $before,
           filter: $filter, orderBy: $order) {
    nodes { content } pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }"""


async def create(deps, viewer, content, **values):
    payload = (await ask(deps, CREATE, viewer, input={"content": content, **values}))[
        "memoryCreate"
    ]
    assert payload["errors"] == [], payload
    return payload["memory"]


async def names(deps, viewer, **variables):
    page = (await ask(deps, LIST, viewer, **variables))["memories"]
    return [node["content"] for node in page["nodes"]], page["pageInfo"]


async def test_a_memory_is_created_once(deps, ann):
    data = await ask(deps, CREATE, ann, input={"content": "I live in Seoul"})
    made = data["memoryCreate"]
    assert made["isNew"] is True
    assert made["memory"] == {
        "id": made["memory"]["id"],
        "type": "SEMANTIC",
        "content": "I live in Seoul",
        "importance": 0.5,
        "isCurrent": True,
        "accessCount": 0,
    }
    again = (await ask(deps, CREATE, ann, input={"content": "i live in seoul!"}))["memoryCreate"]
    assert (again["isNew"], again["memory"]["id"]) == (False, made["memory"]["id"])


@pytest.mark.parametrize(
    ("values", "code", "path"),
    [
        ({"content": ""}, "REQUIRED", ["input", "content"]),
        ({"content": "x" * 4001}, "LIMIT", ["input", "content"]),
        ({"content": "a\x00"}, "INVALID", ["input", "content"]),
        ({"content": "tea", "importance": 1.5}, "INVALID", ["input", "importance"]),
        ({"content": "tea", "importance": -1}, "INVALID", ["input", "importance"]),
    ],
)
async def test_bad_input_is_told_with_its_place(deps, ann, values, code, path):
    payload = (await ask(deps, CREATE, ann, input=values))["memoryCreate"]
    assert payload["memory"] is None
    assert [(error["code"], error["path"]) for error in payload["errors"]] == [(code, path)]
    assert (await names(deps, ann))[0] == []


async def test_not_a_number_is_no_importance(deps, ann):
    result = await answer(deps, CREATE, ann, input={"content": "tea", "importance": math.nan})
    assert result.errors
    assert (await names(deps, ann))[0] == []


async def test_history_and_links_are_told_from_both_sides(deps, ann):
    old = await create(deps, ann, "I live in Seoul")
    tea = await create(deps, ann, "I love green tea")
    cup = await create(deps, ann, "I drink a cup of green tea every morning")
    new = await create(deps, ann, "I moved to Busan")
    data = await ask(
        deps,
        """query($ids: [ID!]!) { nodes(ids: $ids) { ... on Memory {
             isCurrent validFrom validUntil supersededBy { id } supersedes { id }
             related { id } user { username } sourceMessage { id } } } }""",
        ann,
        ids=[old["id"], tea["id"], cup["id"], new["id"]],
    )
    seoul, tea_node, cup_node, busan = data["nodes"]
    assert seoul["isCurrent"] is False
    assert seoul["validUntil"] == busan["validFrom"]
    assert seoul["supersededBy"] == {"id": new["id"]}
    assert busan["supersedes"] == [{"id": old["id"]}]
    assert busan["supersededBy"] is None
    assert tea_node["related"] == [{"id": cup["id"]}]
    assert cup_node["related"] == [{"id": tea["id"]}]
    assert busan["user"] == {"username": "ann"}
    assert busan["sourceMessage"] is None


async def test_the_message_a_fact_was_told_in_is_shown(deps, ann):
    told = await message(deps, ann, "I live in Seoul.")
    await memories.remember_from_message(deps, ann, told.id, told.content)
    data = await ask(deps, "{ memories { nodes { sourceMessage { id content } } } }", ann)
    assert data["memories"]["nodes"] == [
        {"sourceMessage": {"id": told.id, "content": "I live in Seoul."}}
    ]


async def test_pages_orders_and_filters(deps, ann):
    for content, type_, importance in (
        ("I live in Seoul", "SEMANTIC", 0.55),
        ("I prefer metric units", "PREFERENCE", 0.9),
        ("My dog is called Max", "SEMANTIC", 0.55),
        ("I moved to Busan", "SEMANTIC", 0.3),
    ):
        await create(deps, ann, content, type=type_, importance=importance)
    every = ["I moved to Busan", "My dog is called Max", "I prefer metric units", "I live in Seoul"]
    assert (await names(deps, ann))[0] == every
    assert (await names(deps, ann, order="CREATED_AT_ASC"))[0] == every[::-1]
    by_importance = [every[2], every[1], every[3], every[0]]
    for order, expected in (
        ("IMPORTANCE_DESC", by_importance),
        ("UPDATED_AT_DESC", None),
        ("ACCESS_COUNT_DESC", every),
    ):
        seen, cursor = [], None
        for _ in range(4):
            page, info = await names(deps, ann, first=1, after=cursor, order=order)
            seen += page
            cursor = info["endCursor"]
        assert info["hasNextPage"] is False
        assert sorted(seen) == sorted(every)
        assert expected is None or seen == expected
    page, info = await names(deps, ann, last=2)
    assert page == every[2:]
    assert info["hasPreviousPage"] is True
    assert (await names(deps, ann, last=2, before=info["startCursor"]))[0] == every[:2]
    for chosen, expected in (
        ({"isCurrent": True}, every[:3]),
        ({"isCurrent": False}, every[3:]),
        ({"types": ["PREFERENCE"]}, [every[2]]),
        ({"types": []}, []),
        ({"importanceAtLeast": 0.55}, every[1:]),
        ({"createdAfter": "2000-01-01T00:00:00"}, every),
        ({"createdBefore": "2000-01-01T00:00:00Z"}, []),
    ):
        assert (await names(deps, ann, filter=chosen))[0] == expected, chosen


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "bm90IGEgY3Vyc29y", "W10", "WzFd"]
    # Of the right shape, with a time without a zone, and with no time at all.
    + [urlsafe_b64encode(c).decode() for c in (b'["2024-01-01T00:00:00","m"]', b'["x","m"]')],
)
async def test_a_foreign_cursor_is_refused(deps, ann, cursor):
    result = await answer(deps, LIST, ann, after=cursor, order="UPDATED_AT_DESC")
    assert result.errors[0].original_error.code == "BAD_USER_INPUT"


async def test_a_search_gives_matches_and_counts_them(deps, ann):
    await create(deps, ann, "I live in Seoul")
    await create(deps, ann, "I prefer metric units", type="PREFERENCE")
    query = """query($types: [MemoryType!], $first: Int) {
      memorySearch(query: "where is my home?", types: $types, first: $first) {
        score memory { content accessCount related { id } } } }"""
    found = (await ask(deps, query, ann))["memorySearch"]
    assert found[0]["memory"]["content"] == "I live in Seoul"
    assert 0 < found[1]["score"] < found[0]["score"] <= 1
    found = (await ask(deps, query, ann, types=["SEMANTIC"], first=1))["memorySearch"]
    assert [match["memory"]["accessCount"] for match in found] == [1]
    assert (await ask(deps, query))["memorySearch"] == []
    for first in (0, -1, 101):
        result = await answer(deps, query, ann, first=first)
        assert result.errors[0].original_error.code == "BAD_USER_INPUT"


async def test_changes_and_deletion(deps, ann):
    made = await create(deps, ann, "I live in Seoul")
    update = """mutation($id: ID!, $input: MemoryUpdateInput!) {
      memoryUpdate(id: $id, input: $input) {
        memory { content type importance } errors { code path } } }"""
    payload = await ask(deps, update, ann, id=made["id"], input={"importance": 0.25})
    assert payload["memoryUpdate"] == {
        "memory": {"content": "I live in Seoul", "type": "SEMANTIC", "importance": 0.25},
        "errors": [],
    }
    payload = (await ask(deps, update, ann, id=made["id"], input={"content": ""}))["memoryUpdate"]
    assert payload["errors"] == [{"code": "REQUIRED", "path": ["input", "content"]}]
    delete = """mutation($id: ID!) { memoryDelete(id: $id) {
      memory { id } errors { code path } } }"""
    payload = (await ask(deps, delete, ann, id=made["id"]))["memoryDelete"]
    assert payload == {"memory": {"id": made["id"]}, "errors": []}
    payload = (await ask(deps, delete, ann, id=made["id"]))["memoryDelete"]
    assert payload["errors"] == [{"code": "NOT_FOUND", "path": ["id"]}]


async def test_who_sees_and_changes_what(deps, ann, bob):
    made = await create(deps, ann, "I live in Seoul")
    admin = await person(deps, "root", role="admin")
    reader = await person(deps, "reader", role="viewer")
    read = """query($id: ID!) { memory(id: $id) { content } memories { nodes { id } }
      memorySearch(query: "Seoul") { score } viewer { memories { nodes { content } } } }"""
    own = await ask(deps, read, ann, id=made["id"])
    assert own["memory"] == {"content": "I live in Seoul"}
    assert own["viewer"]["memories"]["nodes"] == [{"content": "I live in Seoul"}]
    for viewer in (bob, reader):
        assert await ask(deps, read, viewer, id=made["id"]) == {
            "memory": None,
            "memories": {"nodes": []},
            "memorySearch": [],
            "viewer": {"memories": {"nodes": []}},
        }
    anonymous = await ask(deps, read, id=made["id"])
    assert anonymous == {
        "memory": None,
        "memories": {"nodes": []},
        "memorySearch": [],
        "viewer": None,
    }
    # An administrator sees it by its id, but has no memories of their own.
    seen = await ask(deps, read, admin, id=made["id"])
    assert seen["memory"] == {"content": "I live in Seoul"}
    assert seen["memories"]["nodes"] == []
    assert seen["memorySearch"] == []
    write = (
        "mutation($id: ID!) { memoryUpdate(id: $id, input: {importance: 0}) { errors { code } } }"
    )
    for viewer, code in ((bob, "NOT_FOUND"), (admin, "NOT_FOUND"), (reader, "FORBIDDEN")):
        payload = (await ask(deps, write, viewer, id=made["id"]))["memoryUpdate"]
        assert payload["errors"] == [{"code": code}]
    result = await answer(deps, write, id=made["id"])
    assert result.errors[0].original_error.code == "UNAUTHENTICATED"
    assert (await memories.search(deps, ann, "Seoul"))[0].memory.importance == 0.5


async def test_statements_do_not_grow_with_the_number_of_memories(deps, ann):
    query = """{ memories(first: 100) { nodes { content user { username } supersededBy { id }
      supersedes { id } related { id related { id } } sourceMessage { id } } } }"""
    counts = []
    for n in range(12):
        told = await message(deps, ann, f"I met person number {n} in Berlin")
        await memories.create(
            deps,
            ann,
            type=MemoryType.EPISODIC,
            content=told.content,
            source_message_id=told.id,
        )
        if n in (2, 11):
            with statements(deps) as found:
                data = await ask(deps, query, ann)
            counts.append(len(found))
            assert len(data["memories"]["nodes"]) == n + 1
    assert counts[0] == counts[1] <= 7
    assert len(Library.of(deps)._shelves) == 1
