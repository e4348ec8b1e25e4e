"""Bad input: a clear error each time, and nothing left behind."""

import asyncio
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from models.base import now
from models.sandboxes import Sandbox, SandboxExecution, SandboxFile
from models.states import ExecutionReason, RunState, SandboxStatus
from sandbox.limits import MIB
from services.base import Viewer, work
from services.sandboxes import executions, files, lifecycle, output, rows
from services.sandboxes.wishes import Resources, Security
from tests.services.sandboxes.conftest import Launch, Server, finished, ran
from tests.services.sandboxes.refusing import (
    CONFLICT,
    INVALID,
    LIMIT,
    NOT_FOUND,
    QUOTA,
    REQUIRED,
    Found,
    count,
    held_by_driver,
    refusal,
)


@pytest.fixture
async def place(launch: Launch, any_kind: str) -> Server:
    """A server with each driver."""
    return await launch(any_kind)


@pytest.fixture
async def eve(place: Server) -> Viewer:
    return await place.person("eve")


@pytest.fixture
async def box(place: Server, eve: Viewer) -> Sandbox:
    return await lifecycle.create(place.deps, eve)


COMMANDS: dict[str, tuple[dict[str, Any], Found]] = {
    "64 KB and one byte": ({"command": "x" * 65_537}, [(LIMIT, ("command",))]),
    "64 KB of two bytes each": ({"command": "é" * 65_536}, [(LIMIT, ("command",))]),
    "a megabyte": ({"command": "x" * 1_000_000}, [(LIMIT, ("command",))]),
    "nothing": ({"command": ""}, [(REQUIRED, ("command",))]),
    "blanks": ({"command": " \n\t "}, [(REQUIRED, ("command",))]),
    "a NUL byte": ({"command": "echo \0"}, [(INVALID, ("command",))]),
    "half a character": ({"command": "echo \ud83d"}, [(INVALID, ("command",))]),
    "a directory with a NUL byte": ({"working_dir": "a\0b"}, [(INVALID, ("working_dir",))]),
    "a directory of many words": ({"working_dir": "d" * 5000}, [(LIMIT, ("working_dir",))]),
    "a directory above": ({"working_dir": "../.."}, [(INVALID, ("working_dir",))]),
    "a directory beside": ({"working_dir": "a/../../b"}, [(INVALID, ("working_dir",))]),
    "no time": ({"timeout_s": 0}, [(INVALID, ("timeout_seconds",))]),
    "time before now": ({"timeout_s": -(10**12)}, [(INVALID, ("timeout_seconds",))]),
    "all the time there is": ({"timeout_s": 10**12}, [(LIMIT, ("timeout_seconds",))]),
    "input of more than a megabyte": ({"stdin": "x" * 1_048_577}, [(LIMIT, ("stdin",))]),
    "input that is no text": ({"stdin": "\udfff"}, [(INVALID, ("stdin",))]),
}


async def test_commands_that_cannot_be_are_refused(
    place: Server, eve: Viewer, box: Sandbox
) -> None:
    for name, (given, expected) in COMMANDS.items():
        arguments: dict[str, Any] = {"command": "touch ran", **given}
        refused = executions.execute(place.deps, eve, sandbox_id=box.id, **arguments)
        assert await refusal(refused) == expected, name
    assert await count(place, SandboxExecution) == 0
    assert (await ran(place.deps, eve, box.id, "ls -a")).stdout == ".\n..\n"


@pytest.mark.parametrize("snapshot_id", ["", " ", "ssn_"])
async def test_a_snapshot_that_is_none_makes_no_empty_sandbox(
    place: Server, eve: Viewer, snapshot_id: str
) -> None:
    refused = lifecycle.create(place.deps, eve, snapshot_id=snapshot_id)
    assert await refusal(refused) == [(NOT_FOUND, ("snapshot_id",))]
    assert await count(place, Sandbox) == 0


async def test_a_command_of_exactly_64_kb_runs(place: Server, eve: Viewer, box: Sandbox) -> None:
    command = "echo whole #" + "x" * (65_536 - 12)
    assert (await ran(place.deps, eve, box.id, command)).stdout == "whole\n"


@pytest.mark.parametrize("folder", ["nowhere", "/no/such/place", "file", "file/below", "loop"])
async def test_a_working_directory_that_is_none_is_told(
    place: Server, eve: Viewer, box: Sandbox, folder: str
) -> None:
    await ran(place.deps, eve, box.id, "touch file; ln -s loop loop")
    done = await ran(place.deps, eve, box.id, "touch /workspace/ran", working_dir=folder)
    assert (done.status, done.reason) == (RunState.FAILED, ExecutionReason.EXITED)
    assert (done.exit_code, done.stdout) == (126, "")
    assert done.stderr
    assert (await ran(place.deps, eve, box.id, "test -e ran; echo $?")).stdout == "1\n"


RESOURCES: dict[str, tuple[Resources, Found]] = {
    "too little of everything": (
        Resources(cpu_millis=1, memory_bytes=MIB, disk_bytes=1, pids=1),
        [(INVALID, ("resources", name))
         for name in ("cpu_millis", "memory_bytes", "disk_bytes", "pids")],
    ),
    "less than nothing": (
        Resources(memory_bytes=-1, pids=-(2**63)),
        [(INVALID, ("resources", "memory_bytes")), (INVALID, ("resources", "pids"))],
    ),
    "too much of everything": (
        Resources(cpu_millis=10**9, memory_bytes=2**62, disk_bytes=2**62, pids=10**9),
        [(LIMIT, ("resources", name))
         for name in ("cpu_millis", "memory_bytes", "disk_bytes", "pids")],
    ),
    "more disk than memory": (
        Resources(memory_bytes=128 * MIB, disk_bytes=128 * MIB),
        [(INVALID, ("resources", "disk_bytes"))],
    ),
    "a rate that no driver holds": (
        Resources(network_bytes_per_second=1000),
        [(INVALID, ("resources", "network_bytes_per_second"))],
    ),
}  # fmt: skip


async def test_limits_that_cannot_be_are_refused(place: Server, eve: Viewer) -> None:
    for name, (given, expected) in RESOURCES.items():
        refused = lifecycle.create(place.deps, eve, resources=given)
        assert await refusal(refused) == expected, name
    for seconds, code in ((0, INVALID), (-1, INVALID), (10**10, LIMIT)):
        refused = lifecycle.create(place.deps, eve, timeout_s=seconds)
        assert await refusal(refused) == [(code, ("timeout_seconds",))]
    assert await count(place, Sandbox) == 0
    assert await held_by_driver(place) == set()


async def test_policies_that_cannot_be_enforced_are_refused(place: Server, eve: Viewer) -> None:
    policies: dict[str, Security] = {
        "syscalls": Security(syscalls=("mount",)),
        "mounts": Security(mounts=("/etc:/etc",)),
        "capabilities": Security(capabilities=("CAP_SYS_ADMIN",)),
        "env_variables": Security(env_variables={"LD=PRELOAD": "x"}),
    }
    for name, given in policies.items():
        refused = lifecycle.create(place.deps, eve, security=given)
        assert await refusal(refused) == [(INVALID, ("security", name))]
    many = Security(env_variables={f"NAME{n}": "x" * 1000 for n in range(100)})
    refused = lifecycle.create(place.deps, eve, security=many)
    assert await refusal(refused) == [(LIMIT, ("security", "env_variables"))]
    assert await count(place, Sandbox) == 0
    assert await held_by_driver(place) == set()


async def test_templates_that_are_not_there_are_refused(place: Server, eve: Viewer) -> None:
    for template_id in ("stp_none", "", "x" * 300, "../etc", "a\0b"):
        refused = lifecycle.create(place.deps, eve, template_id=template_id)
        assert await refusal(refused) == [(NOT_FOUND, ("template_id",))]
    assert await count(place, Sandbox) == 0


@pytest.mark.bubblewrap
async def test_more_than_the_quota_is_refused(launch: Launch) -> None:
    server = await launch(
        sandboxes_per_user=2, sandbox_user_cpu_millis=1500, sandbox_user_memory_bytes=600 * MIB,
        sandbox_user_disk_bytes=200 * MIB,
    )  # fmt: skip
    eve, bob = await server.person("eve"), await server.person("bob")
    wish = Resources(cpu_millis=500, memory_bytes=256 * MIB, disk_bytes=64 * MIB)
    first = await lifecycle.create(server.deps, eve, resources=wish)
    for more, name in (
        ({"cpu_millis": 1001}, "cpu_millis"),
        ({"memory_bytes": 345 * MIB}, "memory_bytes"),
        ({"disk_bytes": 137 * MIB, "memory_bytes": 344 * MIB}, "disk_bytes"),
    ):
        given: dict[str, int] = {"cpu_millis": 500, "memory_bytes": 256 * MIB, "disk_bytes": MIB}
        refused = lifecycle.create(server.deps, eve, resources=Resources(**{**given, **more}))
        assert await refusal(refused) == [(QUOTA, ("resources", name))]
    await lifecycle.create(server.deps, eve, resources=wish)
    small = Resources(cpu_millis=50, memory_bytes=96 * MIB, disk_bytes=MIB)
    assert (QUOTA, ()) in await refusal(lifecycle.create(server.deps, eve, resources=small))
    await lifecycle.create(server.deps, bob, resources=small)
    await lifecycle.stop(server.deps, eve, sandbox_id=first.id)
    await lifecycle.create(server.deps, eve, resources=small)
    assert await count(server, Sandbox) == 4
    assert len(await held_by_driver(server)) == 3


PATHS = ("..", "../x", "a/../../x", "/etc/passwd", "/", "/workspace/../etc/passwd", "/workspacex/a")


@pytest.mark.parametrize("path", PATHS)
async def test_paths_that_leave_are_refused(
    place: Server, eve: Viewer, box: Sandbox, path: str
) -> None:
    deps, base = place.deps, {"sandbox_id": box.id, "path": path}
    for verb in (
        files.read(deps, eve, **base),
        files.stat(deps, eve, **base),
        files.write(deps, eve, **base, content="x"),
        files.remove(deps, eve, **base, is_recursive=True),
        files.listing(deps, box, path),
    ):
        assert await refusal(verb) == [(INVALID, ("path",))]
    assert await count(place, SandboxFile) == 0


async def test_links_that_leave_are_refused(place: Server, eve: Viewer, box: Sandbox) -> None:
    deps = place.deps
    await ran(deps, eve, box.id, "ln -s /etc out; ln -s / root; ln -s ../tmp up; touch /tmp/mine")
    for path in ("out/passwd", "root/etc/passwd", "up/mine"):
        base = {"sandbox_id": box.id, "path": path}
        for verb in (
            files.read(deps, eve, **base),
            files.stat(deps, eve, **base),
            files.write(deps, eve, **base, content="x"),
            files.remove(deps, eve, **base),
            files.listing(deps, box, path.rpartition("/")[0]),
        ):
            assert await refusal(verb) == [(INVALID, ("path",))]
    assert (await ran(deps, eve, box.id, "cat /tmp/mine; ls /tmp")).stdout == "mine\n"


async def usable(server: Server, viewer: Viewer, sandbox_id: str) -> list[Found]:
    """Give how everything that needs a running sandbox of one's own is refused."""
    deps, base = server.deps, {"sandbox_id": sandbox_id}
    return [
        await refusal(executions.execute(deps, viewer, **base, command="touch ran")),
        await refusal(files.write(deps, viewer, **base, path="new", content="x")),
        await refusal(files.read(deps, viewer, **base, path="old")),
        await refusal(files.stat(deps, viewer, **base, path="old")),
        await refusal(files.remove(deps, viewer, **base, path="old")),
    ]


async def test_only_a_running_sandbox_of_ones_own_is_used(
    place: Server, eve: Viewer, box: Sandbox
) -> None:
    deps = place.deps
    await files.write(deps, eve, sandbox_id=box.id, path="old", content="old")
    conflict, absent = [[(CONFLICT, ("sandbox_id",))]] * 5, [[(NOT_FOUND, ("sandbox_id",))]] * 5
    stranger = await place.person("stranger")
    assert await usable(place, stranger, box.id) == absent, "foreign"
    for wrong in ("sbx_none", "", "a\0b", "x" * 500):
        assert await usable(place, eve, wrong) == absent, wrong
    await lifecycle.pause(deps, eve, sandbox_id=box.id)
    assert await usable(place, eve, box.id) == conflict, "paused"
    await lifecycle.resume(deps, eve, sandbox_id=box.id)
    before = await rows.sandbox(deps, box.id)
    assert before is not None
    async with work(deps) as unit:
        past = now() - timedelta(seconds=1)
        await unit.session.execute(update(Sandbox).values(expires_at=past))
    assert await usable(place, eve, box.id) == conflict, "expired"
    async with work(deps) as unit:
        await unit.session.execute(
            update(Sandbox)
            .where(Sandbox.status == SandboxStatus.RUNNING)
            .values(expires_at=before.expires_at)
        )
    standing = await rows.sandbox(deps, box.id)
    assert standing is not None
    if standing.status is SandboxStatus.RUNNING and standing.stop_requested_at is None:
        # Otherwise the housekeeper has seen it expire meanwhile, and rightly ends it.
        done = await ran(deps, eve, box.id, "ls")
        assert done.stdout == "old\n", "nothing was written by what was refused"
        await lifecycle.stop(deps, eve, sandbox_id=box.id)
    assert await usable(place, eve, box.id) == conflict, "stopped"
    await lifecycle.delete(deps, eve, sandbox_id=box.id)
    assert await usable(place, eve, box.id) == conflict, "deleted"
    assert await held_by_driver(place) == set()


async def test_cancelling_twice_and_at_once_is_harmless(
    place: Server, eve: Viewer, box: Sandbox
) -> None:
    deps = place.deps
    made = await executions.execute(deps, eve, sandbox_id=box.id, command="echo on; sleep 600")
    async with asyncio.timeout(60), aclosing(output.follow(deps, eve, made.id)) as items:
        await anext(items)
    await asyncio.gather(*(executions.cancel(deps, eve, execution_id=made.id) for _ in range(5)))
    ended = await finished(deps, eve, made.id)
    assert (ended.status, ended.reason) == (RunState.CANCELED, ExecutionReason.KILLED)
    for _ in range(2):
        assert await executions.cancel(deps, eve, execution_id=made.id) == ended
    absent = [(NOT_FOUND, ("id",))]
    stranger = await place.person("stranger")
    for viewer, execution_id in ((stranger, made.id), (eve, "sex_none"), (eve, "")):
        refused = executions.cancel(deps, viewer, execution_id=execution_id)
        assert await refusal(refused) == absent
    assert (await ran(deps, eve, box.id, "echo well")).stdout == "well\n"
