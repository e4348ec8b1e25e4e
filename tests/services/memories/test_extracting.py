from sqlalchemy import select, update

from models.conversations import Conversation
from models.memories import Memory
from models.states import ConversationStatus, MemoryType, MessageRole
from models.system import Task
from services import memories, tasks
from services.base import work
from services.memories import EXTRACT_MEMORIES
from tests.services.small_world import message, person

TEXT = "My dog is called Max. I prefer metric units. What is the weather like?"


async def run_task(deps, message_id):
    async with work(deps) as unit:
        tasks.enqueue(unit, EXTRACT_MEMORIES, {"id": message_id})
    [task] = await tasks.claim(deps, limit=5)
    result = await tasks.kinds[EXTRACT_MEMORIES].run(deps, task)
    await tasks.complete(deps, task, result)
    return result


async def kept(deps):
    async with deps.db.reading() as connection:
        return (await connection.execute(select(*Memory.__table__.c).order_by(Memory.id))).all()


async def test_facts_are_kept_with_the_message_they_were_told_in(deps, ann):
    told = await message(deps, ann, TEXT)
    result = await run_task(deps, told.id)
    rows = await kept(deps)
    assert [(row.content, row.type) for row in rows] == [
        ("My dog is called Max", MemoryType.SEMANTIC),
        ("I prefer metric units", MemoryType.PREFERENCE),
    ]
    assert result == {"memoryIds": [row.id for row in rows]}
    assert {row.source_message_id for row in rows} == {told.id}
    assert {row.valid_from for row in rows} == {told.created_at}


async def test_a_fact_that_is_too_long_leaves_the_others(deps, ann):
    long = "Remember that " + "my cat likes fish and " * 200 + "milk."
    told = await message(deps, ann, f"I prefer metric units.\n{long}\nMy dog is called Max.")
    await run_task(deps, told.id)
    contents = [row.content for row in await kept(deps)]
    assert contents == ["I prefer metric units", "My dog is called Max"]


async def test_reading_a_message_again_changes_nothing(deps, ann):
    told = await message(deps, ann, TEXT)
    first = await run_task(deps, told.id)
    before = await kept(deps)
    assert await run_task(deps, told.id) == first
    assert await kept(deps) == before


async def test_reading_an_outdated_message_again_changes_nothing(deps, ann):
    old = await message(deps, ann, "I live in Seoul.")
    new = await message(deps, ann, "I moved to Busan.")
    await run_task(deps, old.id)
    await run_task(deps, new.id)
    before = await kept(deps)
    assert [row.valid_until is None for row in before] == [False, True]
    await run_task(deps, old.id)
    await run_task(deps, new.id)
    assert await kept(deps) == before


async def test_a_fact_told_in_ten_messages_is_one_memory(deps, ann):
    for _ in range(10):
        told = await message(deps, ann, "I prefer metric units.")
        await run_task(deps, told.id)
    [row] = await kept(deps)
    assert row.content == "I prefer metric units"


async def test_what_is_remembered_on_request_and_found_by_itself_is_one_new_memory(deps, ann):
    before = await memories.create(
        deps, ann, type=MemoryType.PREFERENCE, content="I prefer imperial units"
    )
    told = await message(deps, ann, "Remember that I prefer metric units")
    await run_task(deps, told.id)
    # The assistant's own note of the same message comes later and is told as news all the same.
    made = await memories.create(
        deps,
        ann,
        type=MemoryType.PREFERENCE,
        content="I prefer metric units",
        source_message_id=told.id,
    )
    assert made.is_new
    assert [memory.id for memory in made.superseded] == [before.memory.id]
    assert len(await kept(deps)) == 2


async def test_nothing_is_kept_of_what_nobody_told(deps, ann):
    answer = await message(deps, ann, TEXT, role=MessageRole.ASSISTANT, user_id=None)
    assert await run_task(deps, answer.id) == {"memoryIds": []}
    assert await run_task(deps, "msg_0") == {"memoryIds": []}
    reader = await person(deps, "reader", role="viewer")
    assert await run_task(deps, (await message(deps, reader, TEXT)).id) == {"memoryIds": []}
    gone = await message(deps, ann, TEXT)
    async with work(deps) as unit:
        await unit.session.execute(
            update(Conversation)
            .where(Conversation.id == gone.conversation_id)
            .values(status=ConversationStatus.DELETED)
        )
    assert await run_task(deps, gone.id) == {"memoryIds": []}
    assert await kept(deps) == []
    async with deps.db.reading() as connection:
        assert len((await connection.execute(select(Task.id))).all()) == 4


async def test_a_memory_outlives_the_message_it_was_told_in(deps, ann):
    told = await message(deps, ann, "I live in Seoul.")
    await run_task(deps, told.id)
    async with work(deps) as unit:
        await unit.session.execute(
            Conversation.__table__.delete().where(Conversation.id == told.conversation_id)
        )
    [row] = await kept(deps)
    assert row.source_message_id is None
    # A task that comes too late keeps the fact without its message.
    [made] = await memories.remember_from_message(deps, ann, told.id, "I play the violin.")
    assert made.memory.source_message_id is None
