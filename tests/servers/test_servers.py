"""Every server answers, each test finds it empty, and none outlives its run."""

import asyncio
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiodocker
import pytest
from redis.asyncio import Redis
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.servers import require
from tests.servers.chromium import OpenChromium
from tests.servers.databases import MadeDatabases, fresh_database

_ROOT = Path(__file__).parents[2]


@pytest.mark.mysql
@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_an_empty_utf8_database(mysql_url: str, turn: int) -> None:
    engine = create_async_engine(mysql_url)
    try:
        async with engine.begin() as connection:
            assert (await connection.execute(text("SHOW TABLES"))).all() == []
            await connection.execute(text("CREATE TABLE words (word VARCHAR(20) PRIMARY KEY)"))
            await connection.execute(
                text("INSERT INTO words VALUES (:word)"), {"word": "누스피어🌍"}
            )
            assert (await connection.execute(text("SELECT word FROM words"))).all() == [
                ("누스피어🌍",)
            ]
    finally:
        await engine.dispose()


@pytest.mark.mysql
async def test_two_databases_of_one_module_are_distinct(
    mysql_url: str, mysql_module_url: str
) -> None:
    assert make_url(mysql_url).database != make_url(mysql_module_url).database


async def _sent(url: str, *statements: str) -> list[Any]:
    """Run statements; give the rows of the last one."""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            for statement in statements:
                answer = await connection.execute(text(statement))
            return list(answer.all()) if answer.returns_rows else []
    finally:
        await engine.dispose()


@pytest.mark.mysql
async def test_a_database_made_once_is_as_it_was_made_for_whoever_comes_next() -> None:
    url_of_server = require("mysql")["NOOSPHERE_TEST_MYSQL_URL"]
    made: list[str] = []

    def make(url: str) -> None:
        made.append(url)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(
                asyncio.run,
                _sent(
                    url,
                    "CREATE TABLE people (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(9))",
                    "CREATE TABLE pets (owner INT, FOREIGN KEY (owner) REFERENCES people (id))",
                    "CREATE TABLE version (number INT)",
                    "INSERT INTO version VALUES (7)",
                ),
            ).result()

    databases = MadeDatabases(url_of_server, make)
    try:
        for _ in range(2):
            with databases.one() as url:
                # The first person there ever was, and nobody's pets.
                found = await _sent(
                    url,
                    "INSERT INTO people (name) VALUES ('ann')",
                    "INSERT INTO pets SELECT id FROM people",
                    "SELECT p.id, t.owner, v.number FROM people p, pets t, version v",
                )
                assert found == [(1, 1, 7)]
        with databases.one() as one, databases.one() as other:
            assert one != other
            await _sent(one, "CREATE TABLE more (id INT)")
        assert len(made) == 2
        with databases.one() as url:
            assert url == other
    finally:
        databases.close()
    with fresh_database(url_of_server) as url:
        names = {name for (name,) in await _sent(url, "SHOW DATABASES")}
    assert names.isdisjoint(make_url(url).database for url in made)


@pytest.mark.redis
@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_an_empty_redis(redis_url: str, turn: int) -> None:
    async with Redis.from_url(redis_url) as client:
        assert await client.dbsize() == 0
        assert await client.set("left", "behind")


@pytest.mark.docker
async def test_the_image_runs_python_without_network(docker_url: str, docker_image: str) -> None:
    async with aiodocker.Docker(url=docker_url) as docker, asyncio.timeout(60):
        container = await docker.containers.run(
            {
                "Image": docker_image,
                "Cmd": ["python3", "-c", "import json, ssl, sqlite3; print(2**10)"],
                "User": "65534:65534",
                "HostConfig": {"NetworkMode": "none", "CapDrop": ["ALL"]},
            }
        )
        try:
            assert (await container.wait())["StatusCode"] == 0
            assert await container.log(stdout=True, stderr=True) == ["1024\n"]
        finally:
            await container.delete(force=True)


@pytest.mark.bubblewrap
def test_bubblewrap_is_said_to_work() -> None:
    assert require("bubblewrap") == {"NOOSPHERE_TEST_BUBBLEWRAP": "1"}
    assert os.environ["NOOSPHERE_TEST_BUBBLEWRAP"] == "1"


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<title>before</title><script>document.title = 2 ** 10</script>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def page_url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join(30)


@pytest.mark.browser
def test_chromium_runs_the_scripts_of_a_page(chromium: OpenChromium, page_url: str) -> None:
    browser = chromium()
    browser.get(page_url)
    assert browser.title == "1024"


_UNMARKED = """
from tests.servers import require

def test_asks_in_its_body():
    assert require("redis")["NOOSPHERE_TEST_REDIS_URL"]
"""
_MARKED = """
import pytest

@pytest.mark.redis
def test_says_it_by_a_marker():
    raise AssertionError("ran without a server")
"""


def _pytest(
    folder: Path, source: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a test file under a keeper of its own, with nothing given by the run above."""
    (folder / "test_it.py").write_text(source)
    own = {k: v for k, v in os.environ.items() if not k.startswith(("NOOSPHERE_", "PYTEST_"))}
    return subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "tests.servers.plugin",
                "-p",
                "no:cacheprovider",
            ),
            *("-c", str(_ROOT / "pyproject.toml"), "--rootdir", str(folder), str(folder)),
            *arguments,
        ],
        cwd=_ROOT,
        env={**own, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


_TELLING = """
import json, os
from pathlib import Path
from tests.servers import require

def tell(path):
    url = require("redis")["NOOSPHERE_TEST_REDIS_URL"]
    home = os.path.dirname(os.environ["NOOSPHERE_TEST_SERVERS"])
    assert os.listdir(home)
    Path(path).write_text(json.dumps([home, int(url.rpartition(":")[2].partition("/")[0])]))
"""


@pytest.mark.redis
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_server_is_started_on_first_use_and_its_data_removed(
    tmp_path: Path, workers: str
) -> None:
    found = tmp_path / "found.json"
    source = f"{_TELLING}\ndef test_tells():\n    tell({str(found)!r})\n"
    run = _pytest(tmp_path, source, "-n", workers)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout
    home, port = json.loads(found.read_text())
    assert not Path(home).exists()
    with pytest.raises(ConnectionRefusedError), socket.socket() as probe:
        probe.connect(("127.0.0.1", port))


@pytest.mark.parametrize("source", [_UNMARKED, _MARKED])
def test_a_missing_server_skips_by_name(tmp_path: Path, source: str) -> None:
    run = _pytest(tmp_path, source, **_NOTHING_INSTALLED)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 skipped" in run.stdout
    assert "redis: its tests were SKIPPED: redis-server not found" in run.stdout


@pytest.mark.parametrize("source", [_UNMARKED, _MARKED])
def test_a_missing_server_that_is_required_fails(tmp_path: Path, source: str) -> None:
    run = _pytest(tmp_path, source, NOOSPHERE_TEST_REQUIRE="mysql,redis", **_NOTHING_INSTALLED)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "NOOSPHERE_TEST_REQUIRE names redis, but redis-server not found" in run.stdout
    assert "redis: its tests failed" in run.stdout


def test_a_misspelt_requirement_is_refused(tmp_path: Path) -> None:
    run = _pytest(tmp_path, _MARKED, NOOSPHERE_TEST_REQUIRE="mysql,reddis")
    assert run.returncode == 4
    assert "NOOSPHERE_TEST_REQUIRE names reddis; known are mysql, redis," in run.stderr


def test_a_server_of_the_user_is_used_as_it_is(tmp_path: Path) -> None:
    source = _UNMARKED + '    assert require("redis")["NOOSPHERE_TEST_REDIS_URL"] == "redis://mine"'
    run = _pytest(tmp_path, source, NOOSPHERE_TEST_REDIS_URL="redis://mine", **_NOTHING_INSTALLED)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.redis
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT", "SIGTERM"])
async def test_servers_end_however_the_run_ends(tmp_path: Path, name: str) -> None:
    found = tmp_path / "found.json"
    # To this very thread: another one that takes the signal does not end the pause. What a shell
    # runs in the background ignores SIGINT, and so does everything below it.
    heeded = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    body = f"{heeded}; tell({str(found)!r}); signal.raise_signal(signal.{name}); signal.pause()"
    source = f"{_TELLING}\nimport signal\n\ndef test_dies():\n    {body}\n"
    run = await asyncio.to_thread(_pytest, tmp_path, source)
    assert run.returncode != 0
    home, port = json.loads(found.read_text())
    async with asyncio.timeout(60):
        while Path(home).exists():  # noqa: ASYNC110, ASYNC240 - another process removes it.
            await asyncio.sleep(0.05)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


_FORKING = """
import json, os, signal, sys
from pathlib import Path
from tests.servers.client import Session, coordinates

session = Session(print)
url = coordinates("redis")["NOOSPHERE_TEST_REDIS_URL"]
child = os.fork()
if child == 0:
    signal.pause()
home = os.path.dirname(os.environ["NOOSPHERE_TEST_SERVERS"])
Path(sys.argv[1]).write_text(json.dumps([home, child]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.redis
async def test_servers_end_though_a_forked_process_lives_on(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    own = {k: v for k, v in os.environ.items() if not k.startswith("NOOSPHERE_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _FORKING, str(found)),
        cwd=_ROOT,
        env=own,
        stdout=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(60):
        assert await process.wait() == -signal.SIGKILL
        home, child = json.loads(found.read_text())
        try:
            while Path(home).exists():  # noqa: ASYNC110, ASYNC240 - another process removes it.
                await asyncio.sleep(0.05)
        finally:
            os.kill(child, signal.SIGKILL)


_NOTHING_INSTALLED = {"NOOSPHERE_TEST_INSTALL": "0", "PATH": "/nowhere"}
