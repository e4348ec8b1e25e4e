"""The README's first minute, copied out of it and run as it is written."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api.transport.conftest import node_modules
from tests.product import ROOT, Client, Product

pytestmark = pytest.mark.bubblewrap
_README = (ROOT / "README.md").read_text(encoding="utf-8")

__all__ = ["node_modules"]


def block(language: str, containing: str) -> str:
    """Give the one code block of a language that holds some text."""
    found = [
        code
        for code in re.findall(rf"^```{language}\n(.*?)^```", _README, re.MULTILINE | re.DOTALL)
        if containing in code
    ]
    assert len(found) == 1, f"{len(found)} blocks of {language} with {containing}"
    return found[0]


async def run(*command: str, **environment: str) -> str:
    """Run a program to its end and give what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    assert process.returncode == 0, (out.decode(), err.decode())
    return out.decode()


@pytest.fixture
async def product(tmp_path: Path) -> AsyncIterator[Product]:
    with Product(tmp_path / "data", NOOSPHERE_SANDBOX_DRIVER="bubblewrap").started() as server:
        yield server


async def signed_in(product: Product) -> tuple[str, str]:
    """Run the shell blocks and give the token and the conversation they made."""
    script = block("sh", "userRegister") + block("sh", "conversationCreate")
    script = script.replace("http://localhost:8000", product.url)
    token, conversation = (
        await run("bash", "-euc", script + 'echo "$TOKEN $CONVERSATION"')
    ).split()
    assert conversation.startswith("cnv_")
    return token, conversation


async def test_the_shell_and_python_blocks_run_code_and_see_1024_arrive(
    product: Product, tmp_path: Path
) -> None:
    token, conversation = await signed_in(product)
    script = tmp_path / "first_minute.py"
    code = block("python", "WebsocketsTransport")
    script.write_text(code.replace("localhost:8000", f"127.0.0.1:{product.port}"))

    printed = await run(sys.executable, str(script), token, conversation)

    assert "'stdout': '1024\\n'" in printed
    assert "MessageCompleted" in printed.splitlines()[-1]
    assert "1024" in printed.splitlines()[-1]


async def test_the_javascript_block_remembers_and_a_new_conversation_recalls(
    product: Product, tmp_path: Path, node_modules: Path
) -> None:
    token, conversation = await signed_in(product)
    (tmp_path / "node_modules").symlink_to(node_modules / "node_modules")
    script = tmp_path / "first-minute.mjs"
    code = block("js", "graphql-ws")
    script.write_text(code.replace("localhost:8000", f"127.0.0.1:{product.port}"))

    printed = await run("node", str(script), token, conversation)

    assert "MessageCompleted" in printed
    assert "metric" in printed
    client = Client(product.url, token)
    found = await client.run('{ memorySearch(query: "units") { memory { content } } }')
    await client.aclose()
    assert "metric" in found["memorySearch"][0]["memory"]["content"]


async def test_the_graphql_blocks_are_valid_against_the_schema() -> None:
    from graphql import parse, validate

    import schema

    graph = schema.build()._schema
    blocks = re.findall(r"^```graphql\n(.*?)^```", _README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        for operation in re.split(r"\n\n(?=mutation|subscription|query)", code):
            assert validate(graph, parse(operation)) == []
