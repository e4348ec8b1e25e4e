"""Generators of clients, installed once, and the operations that clients are generated from."""

import asyncio
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api import operations
from tests.servers import require
from tests.servers.installed import cache, npm_packages, once

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SCHEMA = ROOT / "schema" / "schema.graphql"
ARIADNE = ("ariadne-codegen==0.19.0", "websockets==15.0.1")
CREATE_MEMORY = """
mutation CreateMemory($input: MemoryCreateInput!) { memoryCreate(input: $input) {
  memory { id content createdAt } errors { code message path } } }
"""


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The pinned generator and compiler of TypeScript."""
    npm = require("node")["NOOSPHERE_TEST_NPM"]
    return npm_packages(HERE, "codegen", npm=npm) / "node_modules"


@pytest.fixture(scope="session")
def ariadne() -> Path:
    """The Python of an environment of its own with the pinned generator of Python clients."""

    def install(folder: Path) -> None:
        subprocess.run(
            [sys.executable, "-m", "venv", str(folder / "venv")], check=True, timeout=120
        )
        pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "install", "-q", *ARIADNE]
        subprocess.run(pip, check=True, capture_output=True, timeout=240)

    digest = hashlib.sha256(f"{sys.version} {ARIADNE}".encode()).hexdigest()[:16]
    folder = once(cache() / f"ariadne-{digest}", install)
    return folder / "venv" / "bin" / "python"


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the operations that the tests of the API share, named."""
    named = []
    for constant, text in vars(operations).items():
        if isinstance(text, str) and re.match(r"\s*(query|mutation|subscription)\b", text):
            name = "".join(part.capitalize() for part in constant.split("_"))
            # A generated client has a method `execute` already.
            name = "SandboxExecute" if name == "Execute" else name
            named.append(re.sub(r"(query|mutation|subscription)\s*", rf"\1 {name}", text, count=1))
    assert len(named) >= 18
    path = tmp_path_factory.mktemp("operations") / "operations.graphql"
    path.write_text("\n".join([*named, CREATE_MEMORY]))
    return path


async def run(*command: str, cwd: Path, within_s: float = 240) -> str:
    """Run a command beside the server in this loop; give what it prints."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(within_s):
        out, err = await process.communicate()
    assert process.returncode == 0, (out + err).decode()[-4000:]
    return out.decode()
