"""A frontend made of the documented code, in a browser, before the product and a paced model."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from selenium.webdriver import Chrome

from tests.api import operations as op
from tests.api.clients import blocks
from tests.api.clients.front import Front
from tests.api.clients.tales import Teller
from tests.api.following import ConversationFollower
from tests.product import Client, Product
from tests.servers import require
from tests.servers.chromium import open_chromium
from tests.servers.installed import npm_packages

HERE = Path(__file__).parent
PASSWORD = "correct horse"


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Install the pinned packages once per lock file; give the folder to build in."""
    npm = require("node")["NOOSPHERE_TEST_NPM"]
    return npm_packages(HERE, "clients", npm=npm) / "node_modules"


@pytest.fixture(scope="module")
def page(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Bundle the documented code with its harness; give the frontend's files by path."""
    folder = tmp_path_factory.mktemp("page")
    blocks.write(folder)
    (folder / "conversation.js").rename(folder / "conversation.documented.js")
    for source in (HERE / "page").iterdir():
        shutil.copy(source, folder)
    (folder / "node_modules").symlink_to(node_modules)
    bundle = folder / "bundle.js"
    command = ["node_modules/.bin/esbuild", "harness.js", "--bundle", f"--outfile={bundle}"]
    options = ["--log-level=warning", '--define:process.env.NODE_ENV="production"']
    subprocess.run([*command, *options], cwd=folder, check=True, timeout=60)
    return {
        "/": ("text/html", (folder / "index.html").read_bytes()),
        "/bundle.js": ("text/javascript", bundle.read_bytes()),
    }


@dataclass
class Tab:
    """The browser's tab, of somebody with an account. Selenium blocks, hence the threads."""

    chromium: Chrome
    front: Front

    async def open(self, url: str = "") -> None:
        """Load the page, or load it anew."""
        await asyncio.to_thread(self.chromium.get, url or self.front.url)

    async def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of an async function in the page and give what it returns."""
        wrapped = f"""const [...given] = arguments, done = given.pop();
            (async () => {{ {script} }})()
              .then((value) => done({{ value }}), (error) => done({{ error: String(error) }}))"""
        answer = await asyncio.to_thread(self.chromium.execute_async_script, wrapped, *arguments)
        assert "error" not in answer, f"{script}: {answer['error']}; {await self.said()}"
        return answer.get("value")

    async def until(self, condition: str, *arguments: Any) -> None:
        """Wait for `condition` of what is `shown` and `told`; `given` are the arguments."""
        look = f"harness.until((shown, told) => {condition})"
        late = "setTimeout(() => fail(JSON.stringify(harness)), 90000)"
        await self.run(
            f"await Promise.race([{look}, new Promise((_, fail) => {late})])", *arguments
        )

    async def said(self) -> list[str]:
        """Give what the browser's console holds."""
        entries = await asyncio.to_thread(self.chromium.get_log, "browser")
        return [entry["message"] for entry in entries]


@dataclass
class Backend:
    """The product, the model it asks, the web server before it, and a person with an account."""

    product: Product
    teller: Teller
    front: Front
    client: Client
    name: str = "ada"

    async def begin(self) -> str:
        """Begin a conversation."""
        made = await self.client.run(op.CREATE_CONVERSATION, title="Tales")
        return str(made["conversationCreate"]["conversation"]["id"])

    async def send(self, conversation_id: str, content: str) -> str:
        """Send a message and give the id of its answer."""
        sent = await self.client.run(op.SEND, id=conversation_id, content=content)
        return str(sent["messageSend"]["reply"]["id"])

    async def row(self, conversation_id: str, message_id: str) -> dict[str, Any]:
        """Give a message as it is stored."""
        stored = await self.client.run(op.MESSAGES, id=conversation_id)
        nodes = stored["conversation"]["messages"]["nodes"]
        (row,) = [node for node in nodes if node["id"] == message_id]
        return dict(row)

    def witness(self, conversation_id: str) -> ConversationFollower:
        """Follow a conversation over a network that is always well."""
        return ConversationFollower(lambda: self.product.url, self.client.token, conversation_id)


@dataclass
class World(Backend):
    """All of it, and a browser."""

    tab: Tab = field(kw_only=True)

    async def sign_in(self) -> None:
        """Open the page and sign in on it."""
        await self.tab.open()
        await self.tab.run("await harness.session.signIn(...given)", self.name, PASSWORD)


@asynccontextmanager
async def serving(page: dict[str, Any], folder: Path, **environment: str) -> AsyncIterator[Backend]:
    """Serve a page and the product behind it."""
    async with Teller() as teller, Front(page) as front:
        product = Product(
            folder / "data",
            NOOSPHERE_LLM_BASE_URL=teller.base_url,
            NOOSPHERE_LLM_API_KEY="key",
            NOOSPHERE_LLM_MODEL="paced",
            NOOSPHERE_SANDBOX_DRIVER="off",
            NOOSPHERE_SIGN_IN_ATTEMPTS="100",
            # Only for pages that speak to the product itself; others go through their own server.
            NOOSPHERE_CORS_ORIGINS=front.url,
            **environment,
        )
        front.port = product.port
        client = Client(product.url)
        try:
            await asyncio.to_thread(product.start)
            await client.register("ada")
            yield Backend(product, teller, front, client)
        finally:
            await client.aclose()
            await asyncio.to_thread(product.close)


@asynccontextmanager
async def browsing(backend: Backend) -> AsyncIterator[World]:
    """Open a browser before it."""
    with open_chromium(require("browser")) as opening:
        chromium = await asyncio.to_thread(opening)
        chromium.set_script_timeout(100)
        yield World(**vars(backend), tab=Tab(chromium, backend.front))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    page: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("product")
    async with serving(page, folder) as backend, browsing(backend) as opened:
        yield opened
