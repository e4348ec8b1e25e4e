"""Code of conversations and plans."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from models.base import now
from models.conversations import Conversation
from models.sandboxes import Sandbox, SandboxExecution
from models.states import ExecutionReason, RunState, SandboxStatus
from services.base import Viewer, work
from services.conversations import threads
from services.errors import UserError, UserErrorCode
from services.sandboxes import housekeeping, lifecycle, rows
from tests.services.sandboxes.conftest import Launch, Server, finished, present

pytestmark = pytest.mark.bubblewrap


async def conversation(server: Server, viewer: Viewer) -> str:
    async with work(server.deps) as unit:
        made = Conversation(user_id=viewer.id)
        unit.session.add(made)
        await unit.session.flush()
        return made.id


async def test_code_runs_and_tells_what_it_writes(server: Server, ada: Viewer) -> None:
    heard: list[str] = []

    async def hear(text: str) -> None:
        heard.append(text)

    code = "import sys\nprint(2**10)\nprint('oh', file=sys.stderr)\nsys.exit(4)"
    ran = await server.host.run_code(ada, code=code, on_output=hear)
    assert (ran.stdout, ran.stderr, ran.exit_code) == ("1024\n", "oh\n", 4)
    assert ran.reason is ExecutionReason.EXITED
    assert sorted("".join(heard).splitlines()) == ["1024", "oh"]
    assert ran.duration_ms >= 0
    shell = await server.host.run_code(ada, code="echo $((6*7))", language="Shell")
    assert (shell.stdout, shell.sandbox_id) == ("42\n", ran.sandbox_id)


async def test_code_of_one_conversation_shares_a_sandbox(server: Server, ada: Viewer) -> None:
    first, second = await conversation(server, ada), await conversation(server, ada)
    code = "open('f', 'a').write('x'); print(open('f').read())"
    made = await asyncio.gather(
        *(server.host.run_code(ada, code=code, conversation_id=first) for _ in range(3))
    )
    other = await server.host.run_code(ada, code=code, conversation_id=second)
    assert len({run.sandbox_id for run in made}) == 1
    assert other.sandbox_id != made[0].sandbox_id
    assert other.stdout == "x\n"
    again = await server.host.run_code(ada, code=code, conversation_id=first)
    assert again.stdout == "xxxx\n"


async def test_a_sandbox_that_is_gone_is_replaced(server: Server, ada: Viewer) -> None:
    first = await server.host.run_code(ada, code="print(1)")
    await lifecycle.stop(server.deps, ada, sandbox_id=first.sandbox_id)
    second = await server.host.run_code(ada, code="print(2)")
    assert second.sandbox_id != first.sandbox_id
    assert second.stdout == "2\n"


async def test_canceling_the_call_cancels_the_execution(server: Server, ada: Viewer) -> None:
    begun = asyncio.Event()

    async def hear(_: str) -> None:
        begun.set()

    code = "import time\nprint('begun')\ntime.sleep(600)"
    call = asyncio.create_task(server.host.run_code(ada, code=code, timeout_s=900, on_output=hear))
    async with asyncio.timeout(60):
        await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with server.deps.db.reading() as connection:
        id_ = await connection.scalar(select(SandboxExecution.id))
    assert id_ is not None
    ended = await finished(server.deps, ada, id_)
    assert (ended.status, ended.reason) == (RunState.CANCELED, ExecutionReason.KILLED)


async def test_code_that_runs_too_long_is_a_result(server: Server, ada: Viewer) -> None:
    ran = await server.host.run_code(ada, code="while True: pass", timeout_s=1)
    assert ran.reason is ExecutionReason.TIMED_OUT


async def test_code_that_cannot_be_run_is_refused(server: Server, ada: Viewer) -> None:
    eve = await server.person("eve")
    foreign = await conversation(server, eve)
    for arguments, code in (
        ({"code": ""}, UserErrorCode.REQUIRED),
        ({"code": "a\0"}, UserErrorCode.INVALID),
        ({"code": "x" * 1_048_577}, UserErrorCode.LIMIT),
        ({"code": "x", "language": "cobol"}, UserErrorCode.INVALID),
        ({"code": "x", "timeout_s": 10**6}, UserErrorCode.LIMIT),
        ({"code": "x", "conversation_id": foreign}, UserErrorCode.NOT_FOUND),
    ):
        with pytest.raises(UserError) as caught:
            await server.host.run_code(ada, **arguments)  # type: ignore[arg-type]
        assert caught.value.code is code
    async with server.deps.db.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(SandboxExecution)) == 0


async def test_a_private_sandbox_is_not_taken_for_tools(server: Server, ada: Viewer) -> None:
    mine = await lifecycle.create(server.deps, ada)
    ran = await server.host.run_code(ada, code="print(1)")
    assert ran.sandbox_id != mine.id
    row = await present(server, ran.sandbox_id)
    assert row.config == {"purpose": "tools"}
    async with server.deps.db.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(Sandbox)) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"sandboxes_per_user": 3},
        # As by default: as many sandboxes have all the memory as well.
        {"sandboxes_per_user": 3, "sandbox_user_memory_bytes": 3 * 512 * 2**20},
    ],
    ids=["count", "count and memory"],
)
async def test_the_longest_unused_sandbox_of_tools_makes_room(
    launch: Launch, options: dict[str, int]
) -> None:
    server = await launch(**options)
    ada = await server.person("ada")
    mine = await lifecycle.create(server.deps, ada)
    talks = [await conversation(server, ada) for _ in range(3)]
    first, second = [
        await server.host.run_code(ada, code="print(1)", conversation_id=talk) for talk in talks[:2]
    ]
    again = await server.host.run_code(ada, code="print(1)", conversation_id=talks[0])
    assert again.sandbox_id == first.sandbox_id
    third = await server.host.run_code(ada, code="print(3)", conversation_id=talks[2])
    assert third.stdout == "3\n"
    statuses = {}
    for sandbox_id in (mine.id, first.sandbox_id, second.sandbox_id, third.sandbox_id):
        row = await present(server, sandbox_id)
        statuses[sandbox_id] = row.status
    assert statuses == {
        mine.id: SandboxStatus.RUNNING,
        first.sandbox_id: SandboxStatus.RUNNING,
        second.sandbox_id: SandboxStatus.STOPPED,
        third.sandbox_id: SandboxStatus.RUNNING,
    }


async def test_a_deleted_conversation_leaves_no_sandbox_of_its_own(
    server: Server, ada: Viewer
) -> None:
    talk = await conversation(server, ada)
    ran = await server.host.run_code(ada, code="print(1)", conversation_id=talk)
    mine = await lifecycle.create(server.deps, ada, conversation_id=talk)
    owner = replace(ada, permissions=ada.permissions | {"conversations:write"})
    await threads.delete(server.deps, owner, conversation_id=talk)
    node = await server.host.node()
    await housekeeping._expire(node)
    # Housekeeping may have been about it by itself.
    async with asyncio.timeout(60), node.lock(ran.sandbox_id):
        ended = await rows.sandbox(server.deps, ran.sandbox_id)
    assert ended is not None
    assert (ended.status, ended.failure) == (SandboxStatus.STOPPED, None)
    left = await present(server, mine.id)
    assert (left.status, left.stop_requested_at) == (SandboxStatus.RUNNING, None)


async def test_a_sandbox_in_use_lives_longer(launch: Launch) -> None:
    server = await launch(sandbox_ttl_s=100)
    ada = await server.person("ada")
    talk = await conversation(server, ada)
    box = await lifecycle.create(server.deps, ada, conversation_id=talk, timeout_s=20)
    ran = await server.host.run_code(ada, code="print(1)", conversation_id=talk)
    assert ran.sandbox_id == box.id
    row = await present(server, box.id)
    assert row.expires_at is not None
    assert box.expires_at is not None
    assert row.expires_at - box.expires_at > timedelta(seconds=60)


async def test_code_runs_in_no_sandbox_that_is_being_stopped(server: Server, ada: Viewer) -> None:
    first = await server.host.run_code(ada, code="print(1)")
    async with work(server.deps) as unit:
        await unit.session.execute(
            update(Sandbox)
            .where(Sandbox.id == first.sandbox_id)
            .values(stop_requested_at=now(), is_persistent=True)
        )
    second = await server.host.run_code(ada, code="print(2)")
    assert (second.stdout, second.sandbox_id != first.sandbox_id) == ("2\n", True)
