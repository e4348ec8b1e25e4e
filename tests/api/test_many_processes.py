"""Two servers and a worker over one MySQL and one Redis, as one product."""

import asyncio
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from websockets.exceptions import ConnectionClosed

from tests.api import operations as op
from tests.api.following import ConversationFollower, OutputFollower, PlanFollower, following
from tests.product import Client, Events, Product
from tests.servers import require

pytestmark = [
    pytest.mark.mysql,
    pytest.mark.redis,
    pytest.mark.bubblewrap,
    pytest.mark.timeout(300),
]

ASK = "what can you do?"
_names = (f"person{n}" for n in itertools.count())
WRITE_FILE = """
mutation($input: SandboxFileWriteInput!) { sandboxFileWrite(input: $input) {
  errors { code message path } } }
"""
READ_FILE = """
query($id: ID!, $path: String!) { sandboxFile(sandboxId: $id, path: $path) { content } }
"""


class Redis:
    """A server of these tests alone that forgets everything when it is killed."""

    def __init__(self) -> None:
        # Not under pytest's tmp_path: a socket's path may have 107 characters at most.
        self.directory = Path(tempfile.mkdtemp(prefix="nsr-"))
        self.url = f"unix://{self.directory}/redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                "redis-server",
                *("--port", "0", "--unixsocket", f"{self.directory}/redis.sock"),
                *("--dir", str(self.directory), "--save", "", "--appendonly", "no"),
            ],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if b"eady to accept connections" in line:
                return
        raise AssertionError("redis-server did not start")

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate(timeout=10)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class Cluster:
    """Servers `a` (which runs no tasks) and `b`, and the worker `w`."""

    def __init__(self, directory: Path, database_url: str, redis: Redis) -> None:
        self.database_url, self.redis = database_url, redis

        def product(name: str, command: str, **more: str) -> Product:
            return Product(
                directory / name,
                command=command,
                NOOSPHERE_DATABASE_URL=database_url,
                NOOSPHERE_REDIS_URL=redis.url,
                NOOSPHERE_NODE_ID=name,
                NOOSPHERE_SANDBOX_DRIVER="bubblewrap",
                NOOSPHERE_EMBEDDED_WORD_DELAY_MS="50",
                # Far longer than any test waits: dead processes must be noticed by themselves.
                NOOSPHERE_TASK_LEASE="600",
                **more,
            )

        self.a = product("a", "serve", NOOSPHERE_WORKER_IN_SERVER="false")
        self.b = product("b", "serve")
        self.w = product("w", "worker")
        self.by_name = {"a": self.a, "b": self.b, "w": self.w}

    def start(self) -> None:
        """Start all at the same moment, on whatever the database holds."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda product: product.start(), self.by_name.values()))

    def revive(self) -> None:
        """Start again what a test has ended."""
        for product in self.by_name.values():
            if product.process is None or product.process.poll() is not None:
                product.start()

    def close(self) -> None:
        for product in self.by_name.values():
            product.close()

    async def writer_of(self, payload_id: str) -> str:
        """Give the name of the process that works on a message or a run, once one does."""
        engine = create_async_engine(self.database_url)
        try:
            async with asyncio.timeout(60), engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                while True:
                    found = await connection.execute(
                        text(
                            "SELECT payload, lease_owner FROM tasks WHERE status = 'running' "
                            "AND task_type IN ('answer', 'run_plan')"
                        )
                    )
                    for payload, owner in found:
                        if json.loads(payload)["id"] == payload_id:
                            return str(owner)
                    await asyncio.sleep(0.02)
        finally:
            await engine.dispose()


@pytest.fixture(scope="module")
def running_cluster(
    tmp_path_factory: pytest.TempPathFactory, mysql_module_url: str
) -> Iterator[Cluster]:
    require("redis")
    redis = Redis()
    redis.start()
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), mysql_module_url, redis)
    try:
        # On an empty database: one of them migrates and seeds, the others wait for it.
        cluster.start()
        yield cluster
    finally:
        cluster.close()
        redis.close()


@pytest.fixture
def cluster(running_cluster: Cluster) -> Cluster:
    running_cluster.revive()
    return running_cluster


@pytest.fixture
async def on_a(cluster: Cluster) -> AsyncIterator[Client]:
    client = Client(cluster.a.url)
    await client.register(next(_names))
    yield client
    await client.aclose()


@pytest.fixture
async def on_b(cluster: Cluster, on_a: Client) -> AsyncIterator[Client]:
    """The same person at the other server."""
    client = Client(cluster.b.url, on_a.token)
    yield client
    await client.aclose()


async def begin(client: Client, content: str = ASK) -> tuple[str, str]:
    """Ask in a new conversation; give the ids of the conversation and the reply."""
    created = await client.run(op.CREATE_CONVERSATION)
    conversation = created["conversationCreate"]["conversation"]["id"]
    sent = (await client.run(op.SEND, id=conversation, content=content))["messageSend"]
    assert sent["errors"] == []
    return conversation, sent["reply"]["id"]


async def content_of(client: Client, conversation: str, message: str) -> tuple[str, str]:
    data = await client.run(op.MESSAGES, id=conversation)
    nodes = data["conversation"]["messages"]["nodes"]
    return next((n["status"], n["content"]) for n in nodes if n["id"] == message)


async def close_code(events: Events, *, within_s: float) -> int | None:
    """Read until the server closes the socket, and give the code it gives."""
    try:
        await events.rest(within_s)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else None
    raise AssertionError("the subscription completed")


def follower_of(client: Client, conversation: str, *urls: str) -> ConversationFollower:
    """Follow a conversation, by turns at the servers given."""
    turns = itertools.cycle(urls or (client.url,))
    return ConversationFollower(lambda: next(turns), client.token, conversation)


async def test_a_client_that_hops_between_servers_reads_one_exact_text(
    cluster: Cluster, on_a: Client
) -> None:
    conversation, reply = await begin(on_a)
    hopping = follower_of(on_a, conversation, cluster.b.url, cluster.a.url)
    hopping.hop_after = 3
    staying = [follower_of(on_a, conversation, server.url) for server in (cluster.a, cluster.b)]

    async with following(hopping, *staying):
        for follower in (hopping, *staying):
            await follower.until_final(reply)

    status, content = await content_of(on_a, conversation, reply)
    assert status == "COMPLETED"
    assert [f.texts[reply] for f in (hopping, *staying)] == [content] * 3
    # How often depends on how busy the machine is: an answer ends when it ends.
    assert hopping.connections > 1
    assert [f.resets for f in (hopping, *staying)] == [1, 1, 1]


async def test_an_answer_is_stopped_from_a_server_that_does_not_write_it(
    cluster: Cluster, on_a: Client
) -> None:
    conversation, reply = await begin(on_a)
    follower = follower_of(on_a, conversation, cluster.b.url)

    async with following(follower):
        await follower.until_written(reply, 20)
        assert await cluster.writer_of(reply) != "a"
        stopped = await on_a.run(
            "mutation($id: ID!) { messageStop(id: $id) { message { status content }"
            " errors { code message } } }",
            id=reply,
        )
        await follower.until_final(reply)

    assert stopped["messageStop"]["errors"] == []
    assert stopped["messageStop"]["message"]["status"] == "STOPPED"
    assert stopped["messageStop"]["message"]["content"] == follower.texts[reply]


async def test_a_run_is_cancelled_from_a_server_that_does_not_run_it(
    cluster: Cluster, on_a: Client
) -> None:
    endless = {"code": "import time\nwhile True:\n  print('x', flush=True)\n  time.sleep(0.05)"}
    step = {"description": "Go", "tool": "run_code", "arguments": endless}
    plan = {"title": "Endless", "steps": [step]}
    made = (await on_a.run(op.CREATE_PLAN, input=plan))["planCreate"]
    assert made["errors"] == []
    run = (await on_a.run(op.EXECUTE_PLAN, id=made["plan"]["id"]))["planExecute"]["execution"]
    follower = PlanFollower(lambda: cluster.a.url, on_a.token, run["id"])

    async with following(follower):
        await follower.until(lambda: len(follower.outputs.get(0, "")) > 4)
        assert await cluster.writer_of(run["id"]) != "a"
        await on_a.run(op.CANCEL_PLAN, id=run["id"])
        await follower.until_over()

    assert follower.status == "CANCELED"
    data = (await on_a.run(op.PLAN_EXECUTION, id=run["id"]))["planExecution"]
    assert [step["status"] for step in data["steps"]] == ["CANCELED"]
    assert data["steps"][0]["output"] == follower.outputs[0]
    owned = await on_a.run(
        "{ sandboxes(first: 10) { nodes { executions(first: 10) { nodes { status } } } } }"
    )
    states = [
        execution["status"]
        for sandbox in owned["sandboxes"]["nodes"]
        for execution in sandbox["executions"]["nodes"]
    ]
    assert states == ["CANCELED"]


async def test_a_revoked_session_closes_its_socket_on_the_other_server(
    cluster: Cluster, on_a: Client, on_b: Client
) -> None:
    conversation, _ = await begin(on_a)
    async with on_b.subscribe(op.CONVERSATION_EVENTS, id=conversation) as events:
        await events.next()
        revoked = await on_a.run("mutation { sessionRevoke { errors { code message } } }")
        assert revoked["sessionRevoke"]["errors"] == []
        # The signal does it: without one the socket would be looked at after 20 s only.
        assert await close_code(events, within_s=10) == 4403


async def test_a_sandbox_of_one_server_is_used_through_the_other(
    cluster: Cluster, on_a: Client, on_b: Client
) -> None:
    made = (await on_a.run(op.CREATE_SANDBOX, input={}))["sandboxCreate"]
    assert made["errors"] == []
    sandbox = made["sandbox"]["id"]
    file = {"sandboxId": sandbox, "path": "words.txt", "content": "one two\n"}
    assert (await on_b.run(WRITE_FILE, input=file))["sandboxFileWrite"]["errors"] == []
    assert (await on_a.run(READ_FILE, id=sandbox, path="words.txt"))["sandboxFile"] == {
        "content": "one two\n"
    }
    command = "cat words.txt; for i in 1 2 3 4 5; do echo $i; sleep 0.05; done"
    run = (await on_b.run(op.EXECUTE, input={"sandboxId": sandbox, "command": command}))[
        "sandboxExecute"
    ]
    assert run["errors"] == []
    turns = itertools.cycle((cluster.b.url, cluster.a.url))
    hopping = OutputFollower(lambda: next(turns), on_a.token, run["execution"]["id"])
    hopping.hop_after = 1

    async with following(hopping):
        await hopping.until_over()

    assert hopping.text == "one two\n1\n2\n3\n4\n5\n"
    assert hopping.execution is not None
    assert hopping.execution["stdout"] == hopping.text
    assert hopping.execution["exitCode"] == 0


async def test_an_answer_whose_writer_is_killed_goes_on_elsewhere(
    cluster: Cluster, on_a: Client
) -> None:
    conversation, reply = await begin(on_a)
    follower = follower_of(on_a, conversation, cluster.a.url)

    async with following(follower):
        await follower.until_written(reply, 40)
        writer = await cluster.writer_of(reply)
        await asyncio.to_thread(cluster.by_name[writer].kill)
        told = len(follower.kinds)
        await follower.until_final(reply)

    assert len(follower.kinds) > told
    status, content = await content_of(on_a, conversation, reply)
    assert (status, content) == ("COMPLETED", follower.texts[reply])
    # The embedded assistant says the same again, so that nobody had to begin anew.
    assert follower.resets == 1


async def test_stopping_drains_sockets_and_gives_tasks_back(
    cluster: Cluster, on_a: Client, on_b: Client
) -> None:
    await asyncio.to_thread(cluster.w.stop)
    conversation, reply = await begin(on_a)
    follower = follower_of(on_a, conversation, cluster.a.url)
    async with following(follower):
        async with on_b.subscribe(op.CONVERSATION_EVENTS, id=conversation) as events:
            await follower.until_written(reply, 40)
            assert await cluster.writer_of(reply) == "b"
            stopping = asyncio.create_task(asyncio.to_thread(cluster.b.stop))
            assert await close_code(events, within_s=60) == 1012
            assert await stopping == 0
        assert not follower.is_final(reply)
        await asyncio.to_thread(cluster.w.start)
        assert await cluster.writer_of(reply) == "w"
        await follower.until_final(reply)
    status, content = await content_of(on_a, conversation, reply)
    assert (status, content) == ("COMPLETED", follower.texts[reply])
    assert follower.resets == 1
    assert await asyncio.to_thread(cluster.w.stop) == 0


async def test_a_redis_that_comes_back_empty_costs_no_text(cluster: Cluster, on_a: Client) -> None:
    conversation, reply = await begin(on_a)
    follower = follower_of(on_a, conversation, cluster.a.url)
    engine = create_async_engine(cluster.database_url)

    async def stored() -> int:
        async with engine.connect() as connection:
            statement = text("SELECT CHAR_LENGTH(content) FROM messages WHERE id = :id")
            return int(await connection.scalar(statement, {"id": reply}) or 0)

    try:
        async with following(follower), asyncio.timeout(120):
            await follower.until_written(reply, 40)
            await asyncio.to_thread(cluster.redis.kill)
            known = len(follower.texts[reply])
            while await stored() <= known + 20:  # noqa: ASYNC110 - rows tell nobody.
                await asyncio.sleep(0.05)
            # The text is stored all the same, and reaches who follows without Redis.
            await follower.until_written(reply, known + 1)
            await asyncio.to_thread(cluster.redis.start)
            await follower.until_final(reply)
            late = follower_of(on_a, conversation, cluster.b.url)
            async with following(late):
                await late.until_final(reply)
    finally:
        await engine.dispose()
    status, content = await content_of(on_a, conversation, reply)
    assert (status, content) == ("COMPLETED", follower.texts[reply])
    assert late.texts[reply] == content
    # And everything works as before.
    again: Any = await begin(on_a)
    after = follower_of(on_a, again[0], cluster.b.url)
    async with following(after):
        await after.until_final(again[1])
    assert after.texts[again[1]] == content
