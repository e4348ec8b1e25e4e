"""What a new user does in the first minute, against the product as it is started."""

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.api import operations as op
from tests.product import Client, Product

pytestmark = pytest.mark.bubblewrap


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    data = tmp_path_factory.mktemp("product") / "data"
    with Product(data, NOOSPHERE_SANDBOX_DRIVER="bubblewrap").started() as server:
        yield server


@pytest.fixture
async def client(product: Product, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    async with Client(product.url) as client:
        await client.register(f"u{abs(hash(request.node.name)) % 10**12}")
        yield client


async def converse(client: Client, conversation_id: str, content: str) -> list[dict[str, object]]:
    """Send a message, follow its answer, and give the events."""
    async with client.subscribe(op.CONVERSATION_EVENTS, id=conversation_id) as events:
        assert (await events.next())["__typename"] == "ConversationReset"
        sent = await client.run(op.SEND, id=conversation_id, content=content)
        assert sent["messageSend"]["errors"] == []
        await events.until("MessageCompleted")
        return events.seen


async def create_conversation(client: Client) -> str:
    data = await client.run(op.CREATE_CONVERSATION)
    return str(data["conversationCreate"]["conversation"]["id"])


async def test_code_in_a_message_runs_in_a_sandbox_and_its_result_streams_in(
    client: Client,
) -> None:
    conversation = await create_conversation(client)

    events = await converse(client, conversation, "run `print(2**10)`")

    kinds = [event["__typename"] for event in events]
    assert kinds.count("MessageAdded") == 2
    assert kinds.index("ToolCallStarted") < kinds.index("ToolCallFinished")
    assert kinds.count("MessageDelta") > 1
    finished = next(e for e in events if e["__typename"] == "ToolCallFinished")
    assert finished["toolCall"]["status"] == "COMPLETED"
    assert finished["toolCall"]["result"]["stdout"] == "1024\n"
    text = ""
    for event in events:
        if event["__typename"] == "MessageDelta":
            assert event["offset"] == len(text)
            text += event["text"]
    assert "1024" in text
    assert events[-1]["message"]["content"] == text


async def test_a_remembered_preference_is_recalled_in_a_new_conversation_and_cited(
    client: Client,
) -> None:
    await converse(client, await create_conversation(client), "remember that I prefer metric units")
    fresh = await create_conversation(client)

    events = await converse(client, fresh, "what units do I prefer?")

    answer = events[-1]["message"]
    assert "metric" in answer["content"]
    data = await client.run(op.MESSAGES, id=fresh)
    reply = data["conversation"]["messages"]["nodes"][-1]
    cited = [memory["content"] for memory in reply["citedMemories"]]
    assert len(cited) == 1
    assert "metric" in cited[0]


async def test_a_diamond_plan_runs_its_middle_side_by_side_and_passes_outputs_on(
    client: Client,
) -> None:
    created = (await client.run(op.CREATE_PLAN, input=op.DIAMOND))["planCreate"]
    assert created["errors"] == []
    depends_on = [[d["orderIndex"] for d in step["dependsOn"]] for step in created["plan"]["steps"]]
    assert depends_on == [[], [0], [0], [1, 2]]

    started = (await client.run(op.EXECUTE_PLAN, id=created["plan"]["id"]))["planExecute"]
    async with client.subscribe(op.PLAN_EVENTS, id=started["execution"]["id"]) as events:
        seen = await events.rest()

    assert seen[0]["__typename"] == "PlanExecutionReset"
    finished = [e for e in seen if e["__typename"] == "PlanStepFinished"]
    assert [e["stepExecution"]["status"] for e in finished] == ["COMPLETED"] * 4
    outputs = {e["step"]["orderIndex"]: e["stepExecution"]["output"] for e in finished}
    assert outputs == {0: "6\n", 1: "12\n", 2: "18\n", 3: "30\n"}
    order = [(e["__typename"], e["step"]["orderIndex"]) for e in seen if "step" in e]
    both_started = max(order.index(("PlanStepStarted", 1)), order.index(("PlanStepStarted", 2)))
    first_ended = min(order.index(("PlanStepFinished", 1)), order.index(("PlanStepFinished", 2)))
    assert both_started < first_ended
    assert seen[-1]["__typename"] == "PlanExecutionFinished"
    assert seen[-1]["execution"]["status"] == "COMPLETED"


async def test_lines_of_a_slow_loop_arrive_as_they_are_printed(client: Client) -> None:
    created = (await client.run(op.CREATE_SANDBOX, input={}))["sandboxCreate"]
    assert created["errors"] == []
    command = "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done"
    started = await client.run(
        op.EXECUTE, input={"sandboxId": created["sandbox"]["id"], "command": command}
    )
    execution = started["sandboxExecute"]["execution"]

    async with client.subscribe(op.OUTPUT, id=execution["id"]) as events:
        times, text = [], ""
        while (event := await events.next()) is not None:
            if event["__typename"] == "SandboxOutputChunk":
                times.append(time.monotonic())
                text += event["text"]

    assert text == "".join(f"line {i}\n" for i in range(1, 6))
    assert len(times) >= 4, "the lines came together, not one by one"
    last = events.seen[-1]
    assert last["__typename"] == "SandboxExecutionExited"
    assert last["execution"]["exitCode"] == 0
    assert last["execution"]["stdout"] == text


async def test_a_conversation_can_be_left_and_resumed_in_the_middle_of_an_answer(
    client: Client,
) -> None:
    conversation = await create_conversation(client)
    async with client.subscribe(op.CONVERSATION_EVENTS, id=conversation) as events:
        await events.next()
        await client.run(op.SEND, id=conversation, content="what can you do?")
        first = await events.until("MessageDelta", count=2)
        text = "".join(e["text"] for e in events.seen if e["__typename"] == "MessageDelta")

    async with client.subscribe(
        op.CONVERSATION_EVENTS, id=conversation, after=first["cursor"]
    ) as events:
        done = await events.until("MessageCompleted")
        for event in events.seen:
            assert event["__typename"] != "ConversationReset"
            if event["__typename"] == "MessageDelta":
                assert event["offset"] == len(text)
                text += event["text"]
    assert done["message"]["content"] == text


async def test_a_second_start_is_ready_soon_and_finds_everything_again(tmp_path: Path) -> None:
    first, second = [
        Product(tmp_path / "data", NOOSPHERE_SANDBOX_DRIVER="off").started() for _ in range(2)
    ]
    with first as server:
        async with Client(server.url) as client:
            await client.register("keeper")
            conversation = await create_conversation(client)
        assert server.stop() == 0
    with second as server:
        async with Client(server.url, client.token) as again:
            data = await again.run(op.MESSAGES, id=conversation)
        assert data["conversation"]["id"] == conversation
