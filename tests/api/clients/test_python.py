"""Python's gql with the code of docs/realtime.md, over a network that breaks."""

import asyncio
import importlib.util
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.api.clients import blocks
from tests.api.clients.conftest import serving
from tests.api.following import following

ONE = "Es war einmal 👩🏽‍🚀 eine Reisende, 옛날 옛적에 한 나그네가 살았습니다"
TWO = "and went on 🚂 while nobody listened"
THREE = "until the 🎉 end."


@pytest.fixture
def documented(tmp_path: Path) -> ModuleType:
    """The page's follow.py."""
    blocks.write(tmp_path)
    spec = importlib.util.spec_from_file_location("documented_follow", tmp_path / "follow.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_an_answer_survives_a_broken_connection_and_a_deploy(
    documented: ModuleType, tmp_path: Path
) -> None:
    async with serving({}, tmp_path) as backend:
        tale, id_ = backend.teller.tale(ONE, TWO, THREE), await backend.begin()
        one, two, _ = tale.parts
        conversation = documented.Conversation()
        told: list[dict[str, Any]] = []
        changed = asyncio.Condition()

        async def token() -> str:
            assert backend.client.token is not None
            return backend.client.token

        async def follow() -> None:
            url = backend.front.url.replace("http", "ws") + "/graphql"
            async with aclosing(documented.follow(url, token, id_, conversation)) as events:
                async for event in events:
                    async with changed:
                        told.append(event)
                        changed.notify_all()

        async def until(condition: Callable[[], object]) -> None:
            async with asyncio.timeout(60), changed:
                await changed.wait_for(condition)

        witness = backend.witness(id_)
        async with following(witness), asyncio.TaskGroup() as group:
            task = group.create_task(follow())
            await until(lambda: told)
            answer = await backend.send(id_, tale.request)
            await until(lambda: conversation.texts.get(answer) == one)
            before = len(told)

            backend.front.cut()
            tale.go_on()
            await witness.until_written(answer, len(one + two))
            backend.front.mend()
            await until(lambda: conversation.texts[answer] == one + two)
            assert [(e["offset"], e["text"]) for e in told[before:]] == [(len(one), two)]

            assert await asyncio.to_thread(backend.product.stop) == 0
            await asyncio.to_thread(backend.product.start)
            tale.go_on()
            await until(lambda: told[-1]["__typename"] == "MessageCompleted")
            task.cancel()
        row = await backend.row(id_, answer)
        assert row["content"] == conversation.texts[answer] == tale.text
