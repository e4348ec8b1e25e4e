"""The task that analyses messages, and what is seen of it."""

import asyncio

import pytest
from sqlalchemy import delete, event, func, select, update

from models.conversations import Conversation, Message
from models.language import MessageEntity, MessageIntent, MessageSentiment
from models.states import ConversationStatus, MessageRole, SentimentLabel
from models.system import Task
from services import tasks
from services.base import work
from services.conversations import messages, threads
from services.language.analyzing import ANALYZE_MESSAGE
from tests.services.small_world import ask, message, person, process, statements

TEXT = "I love it, but it is terribly slow. What time is it? Mail ann@example.com by 3pm 😀 42"
TABLES = (MessageSentiment, MessageIntent, MessageEntity)
QUERY = """query($id: ID!) { message(id: $id) { sentiment { label score }
  intents { name confidence } entities { type name value start end } } }"""


@pytest.fixture
async def deps(tmp_path):
    async with process(tmp_path / "test.db") as made:
        yield made


@pytest.fixture
async def ann(deps):
    return await person(deps, "ann")


async def run_task(deps, message_id):
    task = Task(task_type=ANALYZE_MESSAGE, payload={"id": message_id})
    return await tasks.kinds[ANALYZE_MESSAGE].run(deps, task)


async def kept(deps, *, tables=TABLES):
    async with deps.db.reading() as connection:
        return [
            (await connection.execute(select(*table.__table__.c).order_by(table.id))).all()
            for table in tables
        ]


async def test_a_message_is_understood(deps, ann):
    told = await message(deps, ann, TEXT)
    before = await ask(deps, QUERY, ann, id=told.id)
    assert before["message"] == {"sentiment": None, "intents": [], "entities": []}

    assert await run_task(deps, told.id) == {"isNew": True}

    found = (await ask(deps, QUERY, ann, id=told.id))["message"]
    assert found["sentiment"]["label"] == "MIXED"
    assert -1 <= found["sentiment"]["score"] <= 1
    assert found["intents"][0]["name"] == "ask_time"
    sure = [intent["confidence"] for intent in found["intents"]]
    assert sure == sorted(sure, reverse=True)
    assert [(e["type"], e["value"]) for e in found["entities"]] == [
        ("EMAIL", "ann@example.com"),
        ("TIME", "3pm"),
        ("NUMBER", "42"),
    ]
    for entity in found["entities"]:
        assert TEXT[entity["start"] : entity["end"]] == entity["value"]


async def test_analysing_again_changes_nothing(deps, ann):
    told = await message(deps, ann, TEXT)
    assert await run_task(deps, told.id) == {"isNew": True}
    first = await kept(deps)
    assert all(first)
    assert await run_task(deps, told.id) == {"isNew": False}
    assert await kept(deps) == first


async def test_two_runs_at_once_write_one_analysis(deps, ann):
    told = await message(deps, ann, TEXT)
    results = await asyncio.gather(*(run_task(deps, told.id) for _ in range(4)))
    assert sorted(result["isNew"] for result in results) == [False, False, False, True]
    tones, _, entities = await kept(deps)
    assert (len(tones), len(entities)) == (1, 3)


async def test_only_what_people_write_in_conversations_that_exist_is_analysed(deps, ann):
    answer = await message(deps, ann, TEXT, role=MessageRole.ASSISTANT, user_id=None)
    assert await run_task(deps, answer.id) == {"isNew": False}
    assert await run_task(deps, "msg_0") == {"isNew": False}
    gone = await message(deps, ann, TEXT)
    async with work(deps) as unit:
        await unit.session.execute(
            update(Conversation)
            .where(Conversation.id == gone.conversation_id)
            .values(status=ConversationStatus.DELETED)
        )
    assert await run_task(deps, gone.id) == {"isNew": False}
    assert await kept(deps) == [[], [], []]


async def test_a_message_deleted_meanwhile_leaves_nothing(deps, ann, monkeypatch):
    told = await message(deps, ann, TEXT)
    embed = deps.embedder.embed

    async def embed_late(texts):
        async with work(deps) as unit:
            await unit.session.execute(delete(Message).where(Message.id == told.id))
        return await embed(texts)

    monkeypatch.setattr(deps.embedder, "embed", embed_late)
    assert await run_task(deps, told.id) == {"isNew": False}
    assert await kept(deps) == [[], [], []]


async def test_an_analysis_goes_with_its_message(deps, ann):
    told = await message(deps, ann, TEXT)
    await run_task(deps, told.id)
    async with work(deps) as unit:
        await unit.session.execute(delete(Message).where(Message.id == told.id))
    assert await kept(deps) == [[], [], []]


async def test_sending_a_message_asks_for_its_analysis(deps, ann):
    conversation = await threads.create(deps, ann, title=None)
    sent, reply = await messages.send(
        deps, ann, conversation_id=conversation.id, content="What a wonderful day!"
    )
    async with deps.db.reading() as connection:
        wanted = (
            await connection.scalars(select(Task.payload).where(Task.task_type == ANALYZE_MESSAGE))
        ).all()
    assert wanted == [{"id": sent.id}]
    [task] = [t for t in await tasks.claim(deps, limit=5) if t.task_type == ANALYZE_MESSAGE]
    assert await tasks.kinds[ANALYZE_MESSAGE].run(deps, task) == {"isNew": True}
    [[tone], [aim], _] = await kept(deps)
    assert (tone.message_id, tone.label) == (sent.id, SentimentLabel.POSITIVE)
    assert aim.name == "statement"
    assert (await ask(deps, QUERY, ann, id=reply.id))["message"]["sentiment"] is None


async def test_a_message_without_words_and_a_very_long_one_are_analysed(deps, ann):
    for text in ("?!", "```\nx = 1\n```", "나는 정말 행복해. " * 8_000):
        told = await message(deps, ann, text)
        assert await run_task(deps, told.id) == {"isNew": True}
    async with deps.db.reading() as connection:
        labels = (
            await connection.scalars(select(MessageSentiment.label).order_by(MessageSentiment.id))
        ).all()
    assert [label.value for label in labels] == ["NEUTRAL", "NEUTRAL", "POSITIVE"]


async def test_nobody_else_sees_an_analysis(deps, ann):
    told = await message(deps, ann, TEXT)
    await run_task(deps, told.id)
    bob, admin = await person(deps, "bob"), await person(deps, "admin", role="admin")
    assert (await ask(deps, QUERY, bob, id=told.id))["message"] is None
    assert (await ask(deps, QUERY, id=told.id))["message"] is None
    assert (await ask(deps, QUERY, admin, id=told.id))["message"]["sentiment"]["label"] == "MIXED"


async def test_the_fields_of_many_messages_take_a_statement_each(deps, ann):
    conversation = await threads.create(deps, ann, title="Many")
    async with work(deps) as unit:
        rows = [
            Message(
                conversation_id=conversation.id,
                user_id=ann.id,
                role=MessageRole.USER,
                content=f"Thanks! I will call at {hour}pm, please run `f({hour})`",
            )
            for hour in range(1, 9)
        ]
        unit.session.add_all(rows)
        await unit.session.flush()
        ids = [row.id for row in rows]
    for id_ in ids:
        await run_task(deps, id_)
    query = """query($id: ID!) { conversation(id: $id) { messages { nodes { content
      sentiment { label } intents { name confidence } entities { value start end } } } } }"""
    with statements(deps) as found:
        data = await ask(deps, query, ann, id=conversation.id)
    # The conversation, its messages, and one statement for each of the three fields.
    assert len(found) == 5, found
    nodes = data["conversation"]["messages"]["nodes"]
    assert len(nodes) == 8
    for node in nodes:
        starts = [entity["start"] for entity in node["entities"]]
        assert len(starts) == 2
        assert starts == sorted(starts)
        for entity in node["entities"]:
            assert node["content"][entity["start"] : entity["end"]] == entity["value"]
        assert node["sentiment"] is not None
        assert node["intents"]


async def test_no_database_connection_is_held_while_a_text_is_read(deps, ann, monkeypatch):
    told = await message(deps, ann, TEXT)
    held, out = [], 0
    pool = deps.db.engine.sync_engine.pool

    def lend(*_):
        nonlocal out
        out += 1

    def take_back(*_):
        nonlocal out
        out -= 1

    event.listen(pool, "checkout", lend)
    event.listen(pool, "checkin", take_back)
    embed = deps.embedder.embed

    async def note(texts):
        held.append(out)
        return await embed(texts)

    monkeypatch.setattr(deps.embedder, "embed", note)
    await run_task(deps, told.id)
    assert held
    assert set(held) == {0}
    async with deps.db.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(MessageSentiment)) == 1
