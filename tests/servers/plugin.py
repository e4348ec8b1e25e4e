"""pytest's side of the servers: start what the collected tests are marked for, tell what lacked."""

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.servers import Session, client, installed, require, required
from tests.servers.databases import empty_redis, fresh_database

_MARKERS = ("mysql", "redis", "docker", "bubblewrap", "browser", "clamd", "runsc")
_session = pytest.StashKey[Session]()

if TYPE_CHECKING:
    from tests.servers.chromium import OpenChromium


def _keep_bytecode() -> None:
    """Have this process and those it starts compile each module once per machine.

    Where the environment says that no bytecode is to be written, it would be every process, for
    longer than most of them live. Nothing is written beside the code.
    """
    folder = installed.cache() / "bytecode"
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(folder))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"]
    sys.dont_write_bytecode = False


def pytest_configure(config: pytest.Config) -> None:
    _keep_bytecode()
    unknown = required() - client.VARIABLES.keys()
    if unknown:
        known = ", ".join(client.VARIABLES)
        raise pytest.UsageError(
            f"NOOSPHERE_TEST_REQUIRE names {', '.join(sorted(unknown))}; known are {known}."
        )
    # The workers of xdist, and a pytest that a test runs, ask the keeper of the run above them.
    if client.available() or config.option.collectonly:
        return
    reporter = config.pluginmanager.get_plugin("terminalreporter")

    def say(text: str) -> None:
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(f"servers: {text}")

    config.stash[_session] = Session(say)


def pytest_unconfigure(config: pytest.Config) -> None:
    if session := config.stash.get(_session, None):
        session.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Start what is needed before the first test, whose time limit would include it."""
    if session.config.option.collectonly:
        return
    items: list[pytest.Item] = getattr(session, "items", [])
    marked = {marker.name for item in items for marker in item.iter_markers()}
    client.prepare(marked.intersection(_MARKERS))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers():
        if marker.name in _MARKERS:
            require(marker.name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    session = terminalreporter.config.stash.get(_session, None)
    reasons = session.unavailable() if session else {}
    if not reasons:
        return
    terminalreporter.section("servers that could not be had", yellow=True, bold=True)
    for name, reason in sorted(reasons.items()):
        fate = "failed" if name in required() else "were SKIPPED"
        terminalreporter.write_line(f"{name}: its tests {fate}: {reason}", yellow=True)


@pytest.fixture
def mysql_url() -> Iterator[str]:
    """The URL (`mysql+aiomysql://`) of an empty database of this test alone."""
    with fresh_database(require("mysql")["NOOSPHERE_TEST_MYSQL_URL"]) as url:
        yield url


@pytest.fixture(scope="module")
def mysql_module_url() -> Iterator[str]:
    """The URL of a database that the tests of a module share; it is empty at first."""
    with fresh_database(require("mysql")["NOOSPHERE_TEST_MYSQL_URL"]) as url:
        yield url


@pytest.fixture
def redis_url() -> str:
    """The URL of an empty Redis that no test running at the same time talks to.

    On a Redis of the user's own, workers have a database each, but share its pub/sub.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    return empty_redis(require("redis")["NOOSPHERE_TEST_REDIS_URL"], database=int(worker))


@pytest.fixture(scope="session")
def docker_url() -> str:
    """The URL of a Docker engine, `unix://…` or `tcp://…`."""
    return require("docker")["NOOSPHERE_TEST_DOCKER_URL"]


@pytest.fixture(scope="session")
def docker_image() -> str:
    """The name of an image with Python in the engine of `docker_url`."""
    return require("docker")["NOOSPHERE_TEST_DOCKER_IMAGE"]


@pytest.fixture
def clamd_program() -> str:
    """The path of ClamAV's daemon; see `tests.servers.clamd.running`."""
    return require("clamd")["NOOSPHERE_TEST_CLAMD"]


@pytest.fixture
def chromium() -> "Iterator[OpenChromium]":
    """Open headless browsers with empty profiles; they are closed after the test.

    Selenium blocks: an async test calls it through `asyncio.to_thread`.
    """
    # Here, because Selenium takes long to import and few tests need it.
    from tests.servers.chromium import open_chromium

    with open_chromium(require("browser")) as opening:
        yield opening
