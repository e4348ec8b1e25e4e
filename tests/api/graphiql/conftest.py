"""A browser, the stand-in server, and Node with the bundle's pinned packages."""

import asyncio
import contextlib
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from selenium.webdriver import Chrome

from app.graphiql import ROOT, SOURCES
from app.graphql_outlet import WebSocketProtocol
from tests.api.graphiql.driver import GraphiQL
from tests.api.graphiql.standin import State, create, cut_sockets
from tests.product import Product
from tests.servers import require
from tests.servers.chromium import OpenChromium
from tests.servers.installed import npm_packages


class _Server(uvicorn.Server):
    """A server outside the main thread, where signal handlers cannot be set."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@dataclass
class StandIn:
    """The running stand-in."""

    url: str
    state: State

    def cut_sockets(self, code: int = 1012) -> None:
        """Close every open socket, and wait until that is done."""
        assert self.state.loop is not None
        asyncio.run_coroutine_threadsafe(cut_sockets(self.state, code), self.state.loop).result(30)


@pytest.fixture
def serve() -> Iterator[Callable[..., StandIn]]:
    """Give a function that starts the stand-in on a free port, in a thread of its own."""
    started: list[tuple[_Server, threading.Thread]] = []

    def start(**options: float) -> StandIn:
        state = State(**options)
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            create(state),
            ws=WebSocketProtocol,
            lifespan="off",
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        server = _Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        assert server.ready.wait(60)
        started.append((server, thread))
        return StandIn(f"http://127.0.0.1:{listener.getsockname()[1]}", state)

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the product as a user starts it, on defaults."""
    with Product(tmp_path_factory.mktemp("product") / "data").started() as product:
        yield product.url


@pytest.fixture
def browser(chromium: OpenChromium) -> Chrome:
    """Open a browser as large as a common screen."""
    opened = chromium()
    opened.set_window_size(1440, 900)
    return opened


@pytest.fixture
def graphiql(browser: Chrome, server_url: str) -> GraphiQL:
    """Open the page of the product as somebody who has never been there."""
    return GraphiQL(browser, server_url).open()


@pytest.fixture(scope="session")
def npm_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the npm project aside, with its packages installed once per lock file."""
    packages = npm_packages(ROOT, "graphiql", npm=require("node")["NOOSPHERE_TEST_NPM"])
    project = tmp_path_factory.mktemp("graphiql")
    for name in SOURCES:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, project / name)
    (project / "node_modules").symlink_to(packages / "node_modules")
    return project
