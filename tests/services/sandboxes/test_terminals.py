"""Executions one speaks with: input as it is written, terminals, signals; here and elsewhere."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest

from models.sandboxes import Sandbox, SandboxExecution
from models.states import ExecutionReason, RunState
from services.base import Deps, Viewer
from services.errors import UserError, UserErrorCode
from services.events.redis import RedisBus
from services.sandboxes import executions, interaction, lifecycle, output, running
from services.sandboxes.interaction import Signal
from tests.services.sandboxes.conftest import Launch, Server, finished, ran, recorded

pytestmark = pytest.mark.bubblewrap


@dataclass
class Place:
    """A sandbox, and the process that somebody asks who uses it."""

    deps: Deps
    ada: Viewer
    box: Sandbox
    server: Server

    async def begin(self, **wish: Any) -> SandboxExecution:
        return await executions.execute(self.deps, self.ada, sandbox_id=self.box.id, **wish)

    async def write(self, row: SandboxExecution, data: str | bytes, **more: Any) -> int:
        found = await interaction.write(self.deps, self.ada, execution_id=row.id, data=data, **more)
        return found.stdin_bytes

    async def fill(self, row: SandboxExecution) -> int:
        """Write until it is refused, which it must be before there were four of them."""
        data = b"x" * interaction.WRITE_BYTES
        for count in range(4):
            try:
                assert await self.write(row, data) == (count + 1) * len(data)
            except UserError as error:
                found = re.fullmatch(
                    r"The program does not read its input: ([\d,]+) of 262,144 bytes were taken\.",
                    error.message,
                )
                return count * len(data) + int(found[1].replace(",", "")) if found else -1
        return 4 * len(data)

    async def until(self, row: SandboxExecution, is_there: Callable[[bytes], bool]) -> bytes:
        """Follow an execution until its standard output is as wanted."""
        seen = b""
        async with (
            asyncio.timeout(60),
            aclosing(output.follow(self.deps, self.ada, row.id)) as items,
        ):
            async for item in items:
                assert isinstance(item, output.Chunk), (item, seen)
                seen += item.data
                if is_there(seen):
                    return seen
        raise AssertionError(seen)

    async def refused(self, action: Any, code: UserErrorCode, match: str) -> UserError:
        with pytest.raises(UserError, match=match) as caught:
            await action
        assert caught.value.code is code
        return caught.value


@pytest.fixture(params=["here", pytest.param("redis", marks=pytest.mark.redis)])
async def place(request: pytest.FixtureRequest, launch: Launch) -> AsyncIterator[Place]:
    """A sandbox of the process that is asked, and one of another process."""
    if request.param == "here":
        server = await launch()
        ada = await server.person("ada")
        yield Place(server.deps, ada, await lifecycle.create(server.deps, ada), server)
        return
    url, prefix = request.getfixturevalue("redis_url"), f"test-{secrets.token_hex(4)}:"

    async def process(name: str) -> Server:
        bus = RedisBus(url, name, prefix)
        await bus.start()
        return await launch(bus=bus, folder=name)

    near, other = await process("near"), await process("other")
    ada = await other.person("ada")
    box = await lifecycle.create(other.deps, ada)
    assert (box.node_id, near.deps.bus.node_id) == ("other", "near")
    yield Place(near.deps, ada, box, other)


@pytest.fixture
async def here(launch: Launch) -> Place:
    """A sandbox of the process that is asked."""
    server = await launch()
    ada = await server.person("ada")
    return Place(server.deps, ada, await lifecycle.create(server.deps, ada), server)


async def test_a_terminal_is_written_to_resized_and_read(place: Place) -> None:
    shell = await place.begin(argv=["/bin/sh"], terminal=(24, 80))
    assert (shell.terminal_rows, shell.terminal_cols, shell.is_interactive) == (24, 80, True)
    assert shell.timeout_s == place.deps.options.execution_max_timeout_s
    first = "stty size; tty; echo $TERM\n"
    assert await place.write(shell, first) == len(first)
    seen = await place.until(shell, lambda seen: b"xterm" in seen)
    assert b"24 80\r\n/dev/pts/" in seen
    wide = await interaction.resize(place.deps, place.ada, execution_id=shell.id, rows=50, cols=132)
    assert (wide.terminal_rows, wide.terminal_cols) == (50, 132)
    await place.write(shell, "stty size\n")
    await place.until(shell, lambda seen: b"50 132\r\n" in seen)
    await place.write(shell, "exit 3\n")
    done = await finished(place.deps, place.ada, shell.id)
    assert (done.exit_code, done.reason) == (3, ExecutionReason.EXITED)
    assert (done.terminal_rows, done.terminal_cols) == (50, 132)
    assert done.stdin_bytes == len(first) + len("stty size\n") + len("exit 3\n")
    assert done.pid is not None
    assert done.pid > 1


async def test_the_end_of_a_terminals_input_ends_what_reads_it(place: Place) -> None:
    reader = await place.begin(argv=["cat"], terminal=(24, 80))
    await place.write(reader, "a line\n", is_last=True)
    done = await finished(place.deps, place.ada, reader.id)
    assert (done.status, done.exit_code, done.reason, done.stdout) == (
        RunState.COMPLETED,
        0,
        ExecutionReason.EXITED,
        "a line\r\n" * 2,
    )


async def test_input_arrives_exactly_and_ends_when_it_is_closed(place: Place) -> None:
    reader = await place.begin(command="cat", stdin=b"\0\xff", keep_stdin_open=True)
    assert await place.write(reader, "é\n") == 5
    assert await place.write(reader, bytes(range(256))) == 261
    assert await place.write(reader, b"", is_last=True) == 261
    again = place.write(reader, "more")
    await place.refused(again, UserErrorCode.CONFLICT, "closed|ended")
    done = await finished(place.deps, place.ada, reader.id)
    assert done.stdout == (b"\0\xff" + "é\n".encode() + bytes(range(256))).decode(
        "utf-8", "replace"
    )
    assert (done.stdout_bytes, done.stdin_bytes) == (261, 261)


async def test_what_it_began_with_comes_before_what_is_written_later(place: Place) -> None:
    # More than is ever on its way at once: the program takes it while the rest is being written.
    begun = "first\n" * 100_000
    reader = await place.begin(command="cat", stdin=begun, keep_stdin_open=True)
    total = await place.write(reader, "last\n", is_last=True)
    assert total == len(begun) + 5
    done = await finished(place.deps, place.ada, reader.id)
    assert done.stdout == begun + "last\n"


async def test_writes_at_once_arrive_one_whole_after_the_other(place: Place) -> None:
    reader = await place.begin(command="cat", keep_stdin_open=True)
    size = 100_000
    await asyncio.gather(*(place.write(reader, letter * size) for letter in "abcdef"))
    await place.write(reader, "", is_last=True)
    done = await finished(place.deps, place.ada, reader.id)
    parts = re.findall(r"(a+|b+|c+|d+|e+|f+)", done.stdout or "")
    assert sorted(part[0] for part in parts) == list("abcdef")
    assert {len(part) for part in parts} == {size}


async def test_input_that_nobody_reads_is_refused_and_said_how_much_of_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "READ_S", 1.0)
    waiting = await place.begin(
        command="while [ ! -e go ]; do sleep 0.01; done; exec wc -c", keep_stdin_open=True
    )
    taken = await place.fill(waiting)
    assert 0 < taken < 4 * interaction.WRITE_BYTES
    # Nothing else waits for it.
    await ran(place.deps, place.ada, place.box.id, "touch go")
    assert await place.write(waiting, "end", is_last=True) == taken + 3
    done = await finished(place.deps, place.ada, waiting.id)
    assert (done.stdout, done.stdin_bytes) == (f"{taken + 3}\n", taken + 3)


async def test_half_a_character_is_heard_by_one_who_has_to_answer(place: Place) -> None:
    program = "import os\nos.write(1, b'\\xe2')\nos.write(1, b'\\x82' + os.read(0, 1))\n"
    asking = await place.begin(argv=["python3", "-c", program], keep_stdin_open=True)
    assert await place.until(asking, bool) == b"\xe2"
    await place.write(asking, b"\xac", is_last=True)
    heard = await place.until(asking, lambda seen: len(seen) == 3)
    assert heard.decode() == "€"
    done = await finished(place.deps, place.ada, asking.id)
    assert done.stdout == "€"


async def test_a_terminals_output_is_exact_whatever_it_is(here: Place) -> None:
    program = "import os; os.write(1, bytes(range(256)) * 40 + b'\\x1b]0;t\\x07\\xf0\\x9f')"
    wild = await here.begin(command=f'stty raw; exec python3 -c "{program}"', terminal=(2, 20))
    data = bytes(range(256)) * 40 + b"\x1b]0;t\x07\xf0\x9f"
    chunks = []
    async with asyncio.timeout(60), aclosing(output.follow(here.deps, here.ada, wild.id)) as items:
        async for item in items:
            if isinstance(item, output.Chunk):
                item.text.encode()
                chunks.append(item.data)
    assert b"".join(chunks) == data
    done = await recorded(here, wild.id)
    assert done.stdout == data.decode("utf-8", "replace")


async def test_a_signal_reaches_the_command(place: Place) -> None:
    trap = "trap 'echo hup; exit 7' HUP; echo ready; while :; do sleep 0.05; done"
    waiting = await place.begin(command=trap)
    await place.until(waiting, lambda seen: seen == b"ready\n")
    told = await interaction.signal(
        place.deps, place.ada, execution_id=waiting.id, signal=Signal.HUP
    )
    assert told.id == waiting.id
    done = await finished(place.deps, place.ada, waiting.id)
    assert (done.stdout, done.exit_code) == ("ready\nhup\n", 7)
    sleeping = await place.begin(command="exec sleep 600")
    await interaction.signal(place.deps, place.ada, execution_id=sleeping.id, signal=Signal.TERM)
    ended = await finished(place.deps, place.ada, sleeping.id)
    assert (ended.signal, ended.exit_code, ended.reason) == (15, None, ExecutionReason.EXITED)


async def test_what_cannot_be_spoken_with_says_why(place: Place) -> None:
    deps, ada = place.deps, place.ada
    bob = await place.server.person("bob")
    reader = Viewer(ada.id, username="ada", permissions=frozenset())
    deaf = await place.begin(command="sleep 600")
    shell = await place.begin(argv=["sh"], terminal=(24, 80))
    done = await ran(deps, ada, place.box.id, "true")

    async def every(viewer: Viewer, row_id: str, code: UserErrorCode, match: str) -> None:
        for action in (
            interaction.write(deps, viewer, execution_id=row_id, data="x"),
            interaction.signal(deps, viewer, execution_id=row_id, signal=Signal.INT),
            interaction.resize(deps, viewer, execution_id=row_id, rows=1, cols=1),
        ):
            error = await place.refused(action, code, match)
            assert error.path == ("execution_id",)

    await every(ada, done.id, UserErrorCode.CONFLICT, "has ended; it is COMPLETED")
    await every(bob, shell.id, UserErrorCode.NOT_FOUND, "no such execution")
    await every(ada, "sbe_nothing", UserErrorCode.NOT_FOUND, "no such execution")
    unable = interaction.write(deps, reader, execution_id=shell.id, data="x")
    await place.refused(unable, UserErrorCode.FORBIDDEN, "sandboxes:execute")
    refused = place.refused
    await refused(place.write(deaf, "x"), UserErrorCode.CONFLICT, "takes no input")
    still = interaction.resize(deps, ada, execution_id=deaf.id, rows=1, cols=1)
    await refused(still, UserErrorCode.CONFLICT, "no terminal")
    await refused(place.write(shell, ""), UserErrorCode.REQUIRED, "nothing to write")
    await refused(place.write(shell, "\ud800"), UserErrorCode.INVALID, "invalid character")
    large = place.write(shell, "x" * (interaction.WRITE_BYTES + 1))
    await refused(large, UserErrorCode.LIMIT, "at most 262,144 at once")
    for size in ({"rows": 0, "cols": 80}, {"rows": 24, "cols": -1}, {"rows": 4097, "cols": 1}):
        bad = interaction.resize(deps, ada, execution_id=shell.id, **size)
        await refused(bad, UserErrorCode.INVALID, "1 to 4,096 rows and columns")
    await lifecycle.pause(deps, ada, sandbox_id=place.box.id)
    await every(ada, shell.id, UserErrorCode.CONFLICT, "paused; resume it first")
    await lifecycle.resume(deps, ada, sandbox_id=place.box.id)
    await place.write(shell, "exit 0\n")
    assert (await finished(deps, ada, shell.id)).exit_code == 0


async def test_a_write_that_waits_is_let_go_when_the_execution_ends(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = await here.begin(command="exec sleep 600", keep_stdin_open=True)
    node = await here.server.host.node()
    current = node.live[here.box.id].runs[waiting.id]
    execution = await current.started()
    monkeypatch.setattr(running, "READ_S", 1.0)
    await here.fill(waiting)
    # Nothing more fits in: one more write can only wait.
    monkeypatch.setattr(running, "READ_S", 60.0)
    is_writing = asyncio.Event()
    write_stdin = execution.write_stdin

    async def writing(data: bytes) -> None:
        is_writing.set()
        await write_stdin(data)

    monkeypatch.setattr(execution, "write_stdin", writing)
    late = asyncio.ensure_future(here.write(waiting, b"y" * interaction.WRITE_BYTES))
    async with asyncio.timeout(60):
        await is_writing.wait()
        await executions.cancel(here.deps, here.ada, execution_id=waiting.id)
        # What nobody reads any more may be taken all the same; nobody waits for it.
        (told,) = await asyncio.gather(late, return_exceptions=True)
    assert isinstance(told, int) or "has ended: " in str(told)
    assert (await finished(here.deps, here.ada, waiting.id)).status is RunState.CANCELED
