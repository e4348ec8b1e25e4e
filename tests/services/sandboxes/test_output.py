"""Following: whatever a reader misses or brings, it gets all, once, in order."""

import asyncio
import base64
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import orjson
import pytest

from models.sandboxes import Sandbox
from models.states import RunState
from services.access import READ_EVERYTHING
from services.base import ANONYMOUS, Viewer
from services.errors import RequestError
from services.events.local import LocalBus
from services.events.store import Retention
from services.sandboxes import executions, lifecycle, output, rows
from services.sandboxes.output import Chunk, Exited, Item, Position, Reset
from services.streams import following as driving
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server, collect, finished, ran

pytestmark = pytest.mark.bubblewrap
SLOW = "for i in 1 2 3 4 5 6; do echo out $i; echo err $i >&2; sleep 0.06; done"


@pytest.fixture
async def box(server: Server, ada: Viewer) -> Sandbox:
    return await lifecycle.create(server.deps, ada)


def written(items: Sequence[Item], stream: str) -> bytes:
    """Join what the chunks of one stream carry."""
    return b"".join(i.data for i in items if isinstance(i, Chunk) and i.stream == stream)


OUT = b"".join(b"out %d\n" % i for i in range(1, 7))
ERR = b"".join(b"err %d\n" % i for i in range(1, 7))


@BOTH_DATABASES
async def test_every_cursor_leads_to_the_same_whole(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    made = await executions.execute(server.deps, ada, sandbox_id=box.id, command=SLOW)
    live = await collect(server.deps, ada, made.id)
    assert (written(live, "STDOUT"), written(live, "STDERR")) == (OUT, ERR)
    assert [type(item) for item in live].count(Exited) == 1
    assert isinstance(live[-1], Exited)
    assert sum(isinstance(item, Chunk) for item in live) > 2
    for index, item in enumerate(live):
        rest = await collect(server.deps, ada, made.id, item.cursor)
        for stream, whole in (("STDOUT", OUT), ("STDERR", ERR)):
            assert written(live[: index + 1], stream) + written(rest, stream) == whole
        assert not any(isinstance(i, Reset) for i in rest)
        ends = 0 if isinstance(item, Exited) else 1
        assert sum(isinstance(i, Exited) for i in rest) == ends


async def test_readers_that_come_and_go_miss_and_repeat_nothing(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    made = await executions.execute(server.deps, ada, sandbox_id=box.id, command=SLOW)
    heard: list[Item] = []
    async with asyncio.timeout(60):
        while not heard or not isinstance(heard[-1], Exited):
            after = heard[-1].cursor if heard else None
            async with aclosing(output.follow(server.deps, ada, made.id, after)) as items:
                heard.append(await anext(items))
    assert (written(heard, "STDOUT"), written(heard, "STDERR")) == (OUT, ERR)
    assert not any(isinstance(item, Reset) for item in heard)


async def test_a_late_reader_gets_what_piled_up_in_few_pieces(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    command = "for i in $(seq 20); do echo $i; sleep 0.03; done"
    made = await executions.execute(server.deps, ada, sandbox_id=box.id, command=command)
    live = await collect(server.deps, ada, made.id)
    late = await collect(server.deps, ada, made.id)
    assert sum(isinstance(item, Chunk) for item in live) > 3
    assert [type(item) for item in late] == [Chunk, Exited]
    assert written(late, "STDOUT") == written(live, "STDOUT")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "nonsense",
        "ä",
        "\0",
        base64.urlsafe_b64encode(b"{}").decode(),
        base64.urlsafe_b64encode(orjson.dumps(["e", -1, 0, False])).decode(),
        base64.urlsafe_b64encode(orjson.dumps(["e", 2**62, 0, False])).decode(),
        base64.urlsafe_b64encode(orjson.dumps(["e", True, 0, False])).decode(),
        base64.urlsafe_b64encode(orjson.dumps(["e", 1, 0])).decode(),
    ],
)
async def test_what_is_no_cursor_is_refused(
    server: Server, ada: Viewer, box: Sandbox, cursor: str
) -> None:
    done = await ran(server.deps, ada, box.id, "true")
    with pytest.raises(RequestError) as caught:
        await collect(server.deps, ada, done.id, cursor)
    assert caught.value.code == "BAD_USER_INPUT"


async def test_foreign_and_future_cursors_begin_anew(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    first = await ran(server.deps, ada, box.id, "echo one")
    second = await ran(server.deps, ada, box.id, "echo two")
    cursor = (await collect(server.deps, ada, first.id))[0].cursor
    known = Position.decode((await collect(server.deps, ada, second.id))[0].cursor)
    future = Position(known.epoch, known.seq + 5, known.at + 100).encode()
    for strange in (cursor, future, Position("other", 1, 4).encode()):
        reset, exited = await collect(server.deps, ada, second.id, strange)
        assert isinstance(reset, Reset)
        assert reset.execution.stdout == "two\n"
        assert isinstance(exited, Exited)
        assert await collect(server.deps, ada, second.id, exited.cursor) == []
        (end,) = await collect(server.deps, ada, second.id, reset.cursor)
        assert isinstance(end, Exited)


async def test_after_the_log_is_gone_the_row_tells(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    done = await ran(server.deps, ada, box.id, "echo kept")
    cursor = (await collect(server.deps, ada, done.id))[0].cursor
    await server.deps.bus.expire(rows.topic(done.id), 0)
    for after in (None, cursor):
        reset, exited = await collect(server.deps, ada, done.id, after)
        assert isinstance(reset, Reset)
        assert reset.execution.stdout == "kept\n"
        assert isinstance(exited, Exited)
        assert await collect(server.deps, ada, done.id, exited.cursor) == []
    silent = await ran(server.deps, ada, box.id, "true")
    await server.deps.bus.expire(rows.topic(silent.id), 0)
    assert [type(item) for item in await collect(server.deps, ada, silent.id)] == [Exited]


async def test_a_log_trimmed_while_it_runs_begins_anew_from_what_is_stored(
    launch: Launch, tmp_path: Path
) -> None:
    bus = LocalBus(tmp_path / "small.sqlite", retention=Retention(max_entries=30))
    await bus.start()
    server = await launch(bus=bus)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    # Streams alternate, so that each flush makes several entries.
    command = (
        "for i in $(seq 60); do echo $i; echo $i >&2; sleep 0.03; done; "
        "while [ ! -e go ]; do sleep 0.01; done; echo end"
    )
    made = await executions.execute(server.deps, ada, sandbox_id=box.id, command=command)
    heard: list[Item] = []
    async with asyncio.timeout(60), aclosing(output.follow(server.deps, ada, made.id)) as items:
        async for item in items:
            heard.append(item)
            if written(heard, "STDOUT").endswith(b"60\n"):
                break
    assert not (await server.deps.bus.read(rows.topic(made.id))).is_complete
    async with asyncio.timeout(60), aclosing(output.follow(server.deps, ada, made.id)) as items:
        reset = await anext(items)
        assert isinstance(reset, Reset)
        assert reset.execution.status is RunState.RUNNING
        assert reset.execution.stdout == "".join(f"{i}\n" for i in range(1, 61))
        await ran(server.deps, ada, box.id, "touch go")
        rest = [item async for item in items]
    assert written(rest, "STDOUT") == b"end\n"
    last = rest[-1]
    assert isinstance(last, Exited)
    whole = (reset.execution.stdout or "") + "end\n"
    assert last.execution.stdout == whole


async def test_a_log_lost_while_it_runs_loses_readers_nothing(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    command = "echo one; while [ ! -e go ]; do sleep 0.01; done; echo two"
    made = await executions.execute(server.deps, ada, sandbox_id=box.id, command=command)
    async with asyncio.timeout(60), aclosing(output.follow(server.deps, ada, made.id)) as items:
        first = await anext(items)
        await server.deps.bus.expire(rows.topic(made.id), 0)
        await ran(server.deps, ada, box.id, "touch go")
        rest = [item async for item in items]
    # Who was there goes on in the new log at the very byte.
    assert [type(item) for item in rest] == [Chunk, Exited]
    assert written([first, *rest], "STDOUT") == b"one\ntwo\n"
    # Who comes back from the old log begins anew.
    reset, _ = await collect(server.deps, ada, made.id, first.cursor)
    assert isinstance(reset, Reset)
    assert reset.execution.stdout == "one\ntwo\n"


async def test_only_the_owner_and_who_sees_everything_may_follow(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    done = await ran(server.deps, ada, box.id, "echo secret")
    eve, root = await server.person("eve"), await server.person("root", READ_EVERYTHING)
    for viewer in (eve, ANONYMOUS):
        with pytest.raises(RequestError) as caught:
            await collect(server.deps, viewer, done.id)
        assert caught.value.code == "NOT_FOUND"
    with pytest.raises(RequestError):
        await collect(server.deps, ada, "sbe_absent")
    assert (await finished(server.deps, root, done.id)).stdout == "secret\n"


async def test_megabytes_stay_whole_for_a_reader_that_is_slow(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    command = "head -c 6000000 /dev/zero | tr '\\0' x"
    made = await executions.execute(server.deps, ada, sandbox_id=box.id, command=command)
    size = 0
    async with asyncio.timeout(60), aclosing(output.follow(server.deps, ada, made.id)) as items:
        async for item in items:
            if isinstance(item, Chunk):
                size += len(item.data)
                assert set(item.data) == {ord("x")}
                # Others write meanwhile: the queue of this reader overflows.
                await server.deps.db.ping()
            else:
                assert isinstance(item, Exited)
    assert size == 6_000_000


async def test_texts_are_read_only_when_they_are_told(
    server: Server, ada: Viewer, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driving, "_IDLE_S", 0.01)
    read, looked = [], asyncio.Event()
    whole, standing = rows.execution, rows.standing

    async def execution(*arguments: Any) -> Any:
        read.append(arguments)
        return await whole(*arguments)

    looks = []

    async def look(*arguments: Any) -> Any:
        looks.append(arguments)
        if len(looks) == 5:
            looked.set()
        return await standing(*arguments)

    command = "while [ ! -e go ]; do sleep 0.01; done; echo end"
    made = await executions.execute(server.deps, ada, sandbox_id=box.id, command=command)
    monkeypatch.setattr(rows, "execution", execution)
    monkeypatch.setattr(rows, "standing", look)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        following = group.create_task(collect(server.deps, ada, made.id))
        await looked.wait()
        assert read == []
        await executions.execute(server.deps, ada, sandbox_id=box.id, command="touch go")
    assert [type(item) for item in following.result()] == [Chunk, Exited]
    assert len(read) == 1
