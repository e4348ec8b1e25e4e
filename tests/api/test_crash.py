"""What is left when the power goes, at any moment: nothing that was acknowledged is lost."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.api import operations as op
from tests.api.following import (
    ConversationFollower,
    Follower,
    OutputFollower,
    PlanFollower,
)
from tests.api.paced_model import PacedModel, calls, writes
from tests.product import Client, Product
from tests.services.llm.scripted_server import Turn

pytestmark = [pytest.mark.bubblewrap, pytest.mark.timeout(300)]

# Far longer than any test waits: work must be taken up without waiting for a lease to run out.
LEASE_S = "600"
# What is interrupted more often is given up, and FAILED.
MOST = 3
SLOW = "import time\nfor i in range(10):\n    print(i, flush=True)\n    time.sleep(0.1)"
COUNTING = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.05; done"
PLAN = {
    "title": "Slow diamond",
    "steps": [
        {"description": "Begin", "tool": "run_code", "arguments": {"code": SLOW}, "dependsOn": []},
        {
            "description": "Left",
            "tool": "run_code",
            "arguments": {"code": SLOW},
            "dependsOn": [0],
        },
        {"description": "what can you do?", "dependsOn": [0]},
        {
            "description": "Join",
            "tool": "run_code",
            "arguments": {"code": "print(len('''{{steps.1.output}}'''.split()))"},
            "dependsOn": [1, 2],
        },
    ],
}


def script() -> Callable[[list[dict[str, Any]]], Turn]:
    """Give a model: steady, or of another mind each time it is asked, or calling a tool."""
    asked = 0

    def answer(messages: list[dict[str, Any]]) -> Turn:
        nonlocal asked
        asked += 1
        last = next(m["content"] for m in reversed(messages) if m["role"] == "user")
        steady = " ".join(f"word{n}" for n in range(60))
        if last.startswith("vary"):
            return writes(f"{steady} mind {asked} " + " ".join("abcdefghij" * 3))
        if last.startswith("run") and messages[-1]["role"] != "tool":
            return calls(("run_code", {"code": SLOW}))
        return writes(steady)

    return answer


class World:
    """A server that is killed again and again, and everything asked of it."""

    def __init__(self, product: Product, seed: int) -> None:
        self.product = product
        self.random = random.Random(seed)
        self.client = Client(product.url)
        self.answers: list[tuple[ConversationFollower, str]] = []
        self.plans: list[PlanFollower] = []
        self.outputs: list[OutputFollower] = []
        self.group = asyncio.TaskGroup()
        self.tasks: list[asyncio.Task[None]] = []
        self.heard = asyncio.Event()

    @property
    def followers(self) -> list[Follower]:
        return [*(f for f, _ in self.answers), *self.plans, *self.outputs]

    def follow(self, follower: Follower) -> None:
        follower.on_event = self.heard.set
        self.tasks.append(self.group.create_task(follower.run()))

    async def start(self) -> None:
        await asyncio.to_thread(self.product.start)
        token = self.client.token
        await self.client.aclose()
        self.client = Client(self.product.url, token)

    async def kill(self) -> None:
        await asyncio.to_thread(self.product.kill)

    async def ask(self, content: str) -> None:
        created = await self.client.run(op.CREATE_CONVERSATION)
        conversation = created["conversationCreate"]["conversation"]["id"]
        follower = ConversationFollower(lambda: self.product.url, self.client.token, conversation)
        sent = (await self.client.run(op.SEND, id=conversation, content=content))["messageSend"]
        assert sent["errors"] == []
        self.answers.append((follower, sent["reply"]["id"]))
        self.follow(follower)

    async def kill_while_asked(self) -> None:
        """Kill the server with a message on its way to it; send that again after the restart."""
        created = await self.client.run(op.CREATE_CONVERSATION)
        conversation = created["conversationCreate"]["conversation"]["id"]
        asked = {"id": conversation, "content": "what can you do?", "key": "once"}
        on_its_way = asyncio.create_task(self.client.raw(op.SEND, **asked))
        # It gets as far as it gets.
        await asyncio.wait({on_its_way}, timeout=self.random.random() * 0.05)
        await self.kill()
        await asyncio.gather(on_its_way, return_exceptions=True)
        await self.start()
        sent = (await self.client.run(op.SEND, **asked))["messageSend"]
        assert sent["errors"] == []
        follower = ConversationFollower(lambda: self.product.url, self.client.token, conversation)
        self.answers.append((follower, sent["reply"]["id"]))
        self.follow(follower)

    async def run_plan(self) -> None:
        made = (await self.client.run(op.CREATE_PLAN, input=PLAN))["planCreate"]
        assert made["errors"] == []
        run = await self.client.run(op.EXECUTE_PLAN, id=made["plan"]["id"])
        execution = run["planExecute"]["execution"]["id"]
        self.plans.append(PlanFollower(lambda: self.product.url, self.client.token, execution))
        self.follow(self.plans[-1])

    async def execute(self) -> None:
        made = (await self.client.run(op.CREATE_SANDBOX, input={}))["sandboxCreate"]
        assert made["errors"] == []
        target = {"sandboxId": made["sandbox"]["id"], "command": COUNTING}
        run = await self.client.run(op.EXECUTE, input=target)
        execution = run["sandboxExecute"]["execution"]["id"]
        self.outputs.append(OutputFollower(lambda: self.product.url, self.client.token, execution))
        self.follow(self.outputs[-1])

    async def until_told(self, count: int) -> None:
        """Wait until the clients were told so many events more."""
        goal = self.told() + count
        async with asyncio.timeout(60):
            while self.told() < goal:
                self.heard.clear()
                await self.heard.wait()

    def told(self) -> int:
        return sum(len(follower.kinds) for follower in self.followers)


@asynccontextmanager
async def world(tmp_path: Path, seed: int, **environment: str) -> AsyncIterator[World]:
    product = Product(
        tmp_path / "data",
        **{
            "NOOSPHERE_SANDBOX_DRIVER": "bubblewrap",
            "NOOSPHERE_TASK_LEASE": LEASE_S,
            "NOOSPHERE_EMBEDDED_WORD_DELAY_MS": "50",
            **environment,
        },
    )
    made = World(product, seed)
    try:
        async with made.group:
            await made.start()
            await made.client.register("survivor")
            yield made
            for task in made.tasks:
                task.cancel()
    finally:
        await made.client.aclose()
        await asyncio.to_thread(product.close)


async def check_answers(world: World) -> None:
    for follower, reply in world.answers:
        await follower.until_final(reply)
        data = await world.client.run(op.MESSAGES, id=follower.variables["id"])
        nodes = data["conversation"]["messages"]["nodes"]
        assert [n["role"] for n in nodes] == ["USER", "ASSISTANT"]
        node = next(n for n in nodes if n["id"] == reply)
        assert node["content"] == follower.texts[reply]
        assert node["status"] == "COMPLETED", node
        assert node["content"].strip()


async def check_plans(world: World, *, interrupted: bool) -> None:
    for plan in world.plans:
        await plan.until_over()
        data = (await world.client.run(op.PLAN_EXECUTION, id=plan.variables["id"]))["planExecution"]
        assert plan.status == data["status"] == "COMPLETED", data
        assert plan.finished == dict.fromkeys(range(4), "COMPLETED")
        for step in data["steps"]:
            index = step["step"]["orderIndex"]
            assert step["attempt"] == plan.attempts[index]
            assert step["output"] == plan.outputs[index]
        assert plan.outputs[0] == plan.outputs[1] == "".join(f"{i}\n" for i in range(10))
        assert plan.outputs[3] == "10\n"
    if interrupted:
        assert max(n for plan in world.plans for n in plan.attempts.values()) > 1


async def check_outputs(world: World) -> None:
    for output in world.outputs:
        await output.until_over()
        ended = output.execution
        assert ended is not None
        assert (ended["status"], ended["reason"]) == ("FAILED", "SANDBOX_LOST")
        assert ended["stdout"] == output.text
        lines = output.text.splitlines()
        assert lines == [f"line {i}" for i in range(len(lines))]
    assert any(output.text for output in world.outputs)


@pytest.mark.parametrize(
    ("provider", "kills"), [("scripted", MOST), ("embedded", 2)], ids=["scripted", "embedded"]
)
async def test_kills_at_any_point_lose_nothing(tmp_path: Path, provider: str, kills: int) -> None:
    await _suffer(tmp_path, provider, kills, seed=kills * 1000 + 7)


@pytest.mark.mysql
async def test_kills_at_any_point_lose_nothing_on_mysql(tmp_path: Path, mysql_url: str) -> None:
    await _suffer(tmp_path, "scripted", 2, seed=11, NOOSPHERE_DATABASE_URL=mysql_url)


async def _suffer(tmp_path: Path, provider: str, kills: int, seed: int, **environment: str) -> None:
    async with AsyncExitStack() as stack:
        if provider == "scripted":
            model = await stack.enter_async_context(PacedModel(script()))
            environment |= {
                "NOOSPHERE_LLM_BASE_URL": model.base_url,
                "NOOSPHERE_LLM_API_KEY": "key",
                "NOOSPHERE_LLM_MODEL": "scripted",
            }
        w = await stack.enter_async_context(world(tmp_path, seed, **environment))
        for _ in range(kills):
            await w.ask("what can you do?")
            await w.ask("vary" if provider == "scripted" else "run `print(2**10)`")
            await w.ask("run something")
            await w.run_plan()
            await w.execute()
            # Under way all at once; the kill falls on whatever each of them is doing then.
            await w.outputs[-1].until_told(1)
            await w.until_told(w.random.randint(1, 80))
            await w.kill_while_asked()
        await check_answers(w)
        await check_plans(w, interrupted=True)
        await check_outputs(w)
