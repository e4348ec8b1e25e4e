"""What depends on the database: locks, numbers, JSON and keyset pages, on each kind of it."""

import asyncio

from sqlalchemy import func, select

from models.memories import Memory
from models.states import MemoryType, RunState
from models.tools import ToolExecution
from services import memories, tools
from services.base import work
from services.tools import ToolContext
from tests.services.small_world import ask, person, process

PREFERENCE = MemoryType.PREFERENCE


async def test_writers_and_readers_of_one_user_at_once(tmp_path, database_url):
    path = tmp_path / "unused.db"
    async with process(path, url=database_url) as one, process(path, url=database_url) as two:
        ann = await person(one, "ann")
        wordings = ["I prefer metric units", "i prefer metric units!", "My dog is called Max"]
        made = await asyncio.gather(
            *(
                memories.create(deps, ann, type=PREFERENCE, content=content)
                for content in wordings * 4
                for deps in (one, two)
            ),
            *(
                memories.search(deps, ann, "units and dogs")
                for deps in (one, two)
                for _ in range(6)
            ),
        )
        assert sum(item.is_new for item in made if isinstance(item, memories.Remembered)) == 2
        old = made[0].memory
        assert old.importance >= 0.5
        flipped = await asyncio.gather(
            *(
                memories.create(deps, ann, type=PREFERENCE, content="I prefer imperial units")
                for deps in (one, two)
            )
        )
        assert [len(item.superseded) for item in flipped if item.is_new] == [1]
        for deps in (one, two):
            found = await memories.search(deps, ann, "metric units", include_superseded=True)
            assert found[0].memory.content == "I prefer imperial units"
            [past] = [match.memory for match in found if match.memory.id == old.id]
            assert past.superseded_by_id == found[0].memory.id
            assert past.valid_until == found[0].memory.valid_from
        await memories.delete(two, ann, memory_id=found[0].memory.id)
        left = [match.memory.content for match in await memories.search(one, ann, "units")]
        assert left == ["My dog is called Max"]
        async with one.db.reading() as connection:
            assert await connection.scalar(select(func.count()).select_from(Memory)) == 2


async def test_pages_by_importance_and_time(tmp_path, database_url):
    async with process(tmp_path / "unused.db", url=database_url) as deps:
        ann = await person(deps, "ann")
        contents = ["I live in Seoul", "My dog is called Max", "I play chess", "I drive a Volvo"]
        for content, importance in zip(contents, (0.55, 0.1, 0.55, 1.0), strict=True):
            await memories.create(
                deps, ann, type=MemoryType.SEMANTIC, content=content, importance=importance
            )
        query = """query($order: MemoryOrder!, $after: String) {
          memories(first: 1, orderBy: $order, after: $after) {
            nodes { content importance } pageInfo { endCursor } } }"""
        for order, expected in (
            ("IMPORTANCE_DESC", [contents[3], contents[2], contents[0], contents[1]]),
            ("UPDATED_AT_DESC", contents[::-1]),
            ("ACCESS_COUNT_DESC", contents[::-1]),
        ):
            seen, cursor = [], None
            for _ in contents:
                page = (await ask(deps, query, ann, order=order, after=cursor))["memories"]
                seen += [node["content"] for node in page["nodes"]]
                cursor = page["pageInfo"]["endCursor"]
            assert seen == expected


async def test_tools_are_seeded_and_run(tmp_path, database_url):
    async with process(tmp_path / "unused.db", url=database_url) as deps:
        ann = await person(deps, "ann")
        for _ in range(2):
            async with work(deps) as unit:
                await tools.seed(unit)
        done = await tools.execute(
            ToolContext(deps, ann),
            "remember",
            {"content": "나는 서울에 살아 🌱", "importance": 0.7},
        )
        assert done.is_ok
        bad = await tools.execute(ToolContext(deps, ann), "recall", {"first": 1})
        async with deps.db.reading() as connection:
            rows = {
                row.id: row for row in await connection.execute(select(*ToolExecution.__table__.c))
            }
        assert rows[done.execution_id].result == done.result
        assert rows[done.execution_id].parameters["content"] == "나는 서울에 살아 🌱"
        assert rows[bad.execution_id].status is RunState.FAILED
