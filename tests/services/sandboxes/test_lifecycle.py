"""Sandboxes from creation to deletion."""

import asyncio
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from models.base import now
from models.sandboxes import Sandbox, SandboxResources, SandboxSecurityPolicy, SandboxTemplate
from models.states import ExecutionReason, RunState, SandboxStatus
from sandbox.errors import Resource, ResourceExhaustedError
from sandbox.limits import MIB
from services.base import ANONYMOUS, Viewer, work
from services.errors import UnauthenticatedError, UserError, UserErrorCode, UserErrors
from services.sandboxes import executions, lifecycle, output, rows
from services.sandboxes.wishes import Resources, Security
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server, finished, ran


async def count(server: Server) -> int:
    async with server.deps.db.reading() as connection:
        return await connection.scalar(select(func.count()).select_from(Sandbox)) or 0


async def refusal(awaitable: object) -> list[tuple[UserErrorCode, tuple[str, ...]]]:
    """Give codes and paths of what a verb refuses."""
    with pytest.raises((UserError, UserErrors)) as caught:
        await awaitable  # type: ignore[misc]
    error = caught.value
    found = error.errors if isinstance(error, UserErrors) else [error]
    return [(item.code, item.path) for item in found]


async def test_a_sandbox_is_created_runs_a_command_and_is_deleted(
    launch: Launch, any_kind: str
) -> None:
    server = await launch(any_kind)
    ada = await server.person("ada")
    sandbox = await lifecycle.create(server.deps, ada)
    assert sandbox.status is SandboxStatus.RUNNING
    assert sandbox.driver == any_kind
    assert sandbox.started_at is not None
    done = await ran(server.deps, ada, sandbox.id, "echo hello; echo oh >&2; exit 3")
    assert (done.stdout, done.stderr) == ("hello\n", "oh\n")
    assert (done.stdout_bytes, done.stderr_bytes) == (6, 3)
    assert (done.status, done.reason) == (RunState.FAILED, ExecutionReason.EXITED)
    assert done.exit_code == 3
    deleted = await lifecycle.delete(server.deps, ada, sandbox_id=sandbox.id)
    assert deleted.status is SandboxStatus.DELETED
    again = await lifecycle.delete(server.deps, ada, sandbox_id=sandbox.id)
    assert again.status is SandboxStatus.DELETED
    node = await server.host.node()
    assert sandbox.id not in {info.sandbox_id for info in await node.driver.list({})}
    refused = executions.execute(server.deps, ada, sandbox_id=sandbox.id, command="true")
    assert await refusal(refused) == [(UserErrorCode.CONFLICT, ("sandbox_id",))]


async def test_a_paused_sandbox_stands_still_and_goes_on(launch: Launch, any_kind: str) -> None:
    server = await launch(any_kind)
    deps, ada = server.deps, await server.person("ada")
    sandbox = await lifecycle.create(deps, ada, timeout_s=600)
    running = await executions.execute(
        deps, ada, sandbox_id=sandbox.id, command="while [ ! -e go ]; do sleep 0.01; done"
    )
    paused = await lifecycle.pause(deps, ada, sandbox_id=sandbox.id)
    assert paused.status is SandboxStatus.PAUSED
    assert (await lifecycle.pause(deps, ada, sandbox_id=sandbox.id)).paused_at == paused.paused_at
    refused = executions.execute(deps, ada, sandbox_id=sandbox.id, command="true")
    assert await refusal(refused) == [(UserErrorCode.CONFLICT, ("sandbox_id",))]
    resumed = await lifecycle.resume(deps, ada, sandbox_id=sandbox.id)
    assert resumed.status is SandboxStatus.RUNNING
    assert resumed.paused_at is None
    assert resumed.expires_at is not None
    assert paused.expires_at is not None
    assert resumed.expires_at > paused.expires_at
    await ran(deps, ada, sandbox.id, "touch go")
    assert (await finished(deps, ada, running.id)).exit_code == 0


@BOTH_DATABASES
@pytest.mark.bubblewrap
async def test_stopping_ends_what_runs(server: Server, ada: Viewer) -> None:
    deps = server.deps
    sandbox = await lifecycle.create(deps, ada)
    running = await executions.execute(
        deps, ada, sandbox_id=sandbox.id, command="echo begun; sleep 600", timeout_s=900
    )
    stopped = await lifecycle.stop(deps, ada, sandbox_id=sandbox.id)
    assert stopped.status is SandboxStatus.STOPPED
    assert stopped.stopped_at is not None
    assert stopped.failure is None
    ended = await finished(deps, ada, running.id)
    assert (ended.status, ended.reason) == (RunState.CANCELED, ExecutionReason.KILLED)
    assert (await lifecycle.stop(deps, ada, sandbox_id=sandbox.id)) == stopped
    for verb in (lifecycle.pause, lifecycle.resume):
        wrong = verb(deps, ada, sandbox_id=sandbox.id)
        assert await refusal(wrong) == [(UserErrorCode.CONFLICT, ("id",))]
    extended = lifecycle.extend(deps, ada, sandbox_id=sandbox.id, seconds=10)
    assert await refusal(extended) == [(UserErrorCode.CONFLICT, ("id",))]


@pytest.mark.bubblewrap
async def test_others_sandboxes_are_absent_and_stay_untouched(server: Server, ada: Viewer) -> None:
    deps, eve = server.deps, await server.person("eve")
    sandbox = await lifecycle.create(deps, ada)
    execution = await executions.execute(
        deps, ada, sandbox_id=sandbox.id, command="sleep 600", timeout_s=900
    )
    for verb in (lifecycle.pause, lifecycle.resume, lifecycle.stop, lifecycle.delete):
        for sandbox_id in (sandbox.id, "sbx_00000000000000000000000000", "nonsense\0"):
            found = await refusal(verb(deps, eve, sandbox_id=sandbox_id))
            assert found == [(UserErrorCode.NOT_FOUND, ("id",))]
    foreign = [
        (lifecycle.extend(deps, eve, sandbox_id=sandbox.id, seconds=9), "id"),
        (executions.execute(deps, eve, sandbox_id=sandbox.id, command="true"), "sandbox_id"),
        (executions.cancel(deps, eve, execution_id=execution.id), "id"),
    ]
    for attempt, name in foreign:
        assert await refusal(attempt) == [(UserErrorCode.NOT_FOUND, (name,))]
    row = await rows.sandbox(deps, sandbox.id)
    assert row is not None
    assert (row.status, row.expires_at) == (SandboxStatus.RUNNING, sandbox.expires_at)
    still = await rows.execution(deps, execution.id)
    assert still is not None
    assert still.cancel_requested_at is None


@pytest.mark.bubblewrap
async def test_an_administrator_may_end_what_others_made(server: Server, ada: Viewer) -> None:
    deps, root = server.deps, await server.person("root", rows.MANAGE_EVERYTHING)
    sandbox = await lifecycle.create(deps, ada)
    running = await executions.execute(
        deps, ada, sandbox_id=sandbox.id, command="sleep 600", timeout_s=900
    )
    await executions.cancel(deps, root, execution_id=running.id)
    assert (await finished(deps, ada, running.id)).status is RunState.CANCELED
    stopped = await lifecycle.stop(deps, root, sandbox_id=sandbox.id)
    assert stopped.status is SandboxStatus.STOPPED
    own = executions.execute(deps, root, sandbox_id=sandbox.id, command="true")
    assert await refusal(own) == [(UserErrorCode.NOT_FOUND, ("sandbox_id",))]


@pytest.mark.bubblewrap
async def test_without_permission_nothing_is_made(server: Server) -> None:
    nobody = Viewer("usr_x")
    assert await refusal(lifecycle.create(server.deps, nobody)) == [(UserErrorCode.FORBIDDEN, ())]
    with pytest.raises(UnauthenticatedError):
        await lifecycle.create(server.deps, ANONYMOUS)
    assert await count(server) == 0


@BOTH_DATABASES
@pytest.mark.bubblewrap
async def test_the_quota_holds_for_creations_at_once(launch: Launch) -> None:
    server = await launch(sandboxes_per_user=2)
    ada, eve = await server.person("ada"), await server.person("eve")
    made = await asyncio.gather(
        *(lifecycle.create(server.deps, ada) for _ in range(4)), return_exceptions=True
    )
    refused = [item for item in made if isinstance(item, UserError)]
    assert [error.code for error in refused] == [UserErrorCode.QUOTA] * 2
    assert await count(server) == 2
    assert (await lifecycle.create(server.deps, eve)).status is SandboxStatus.RUNNING
    kept = [item for item in made if isinstance(item, tuple)]
    await lifecycle.stop(server.deps, ada, sandbox_id=kept[0].id)  # type: ignore[attr-defined]
    assert (await lifecycle.create(server.deps, ada)).status is SandboxStatus.RUNNING


@pytest.mark.bubblewrap
async def test_limits_out_of_range_are_refused_by_name(server: Server, ada: Viewer) -> None:
    wrong = Resources(
        cpu_millis=-1,
        memory_bytes=1 << 60,
        disk_bytes=0,
        pids=1 << 31,
        network_bytes_per_second=1000,
    )
    assert await refusal(lifecycle.create(server.deps, ada, resources=wrong)) == [
        (UserErrorCode.INVALID, ("resources", "cpu_millis")),
        (UserErrorCode.LIMIT, ("resources", "memory_bytes")),
        (UserErrorCode.INVALID, ("resources", "disk_bytes")),
        (UserErrorCode.LIMIT, ("resources", "pids")),
        (UserErrorCode.INVALID, ("resources", "network_bytes_per_second")),
    ]
    crowded = Resources(memory_bytes=128 * MIB, disk_bytes=127 * MIB)
    assert await refusal(lifecycle.create(server.deps, ada, resources=crowded)) == [
        (UserErrorCode.INVALID, ("resources", "disk_bytes"))
    ]
    for timeout_s, code in ((0, UserErrorCode.INVALID), (10**9, UserErrorCode.LIMIT)):
        attempt = lifecycle.create(server.deps, ada, timeout_s=timeout_s)
        assert await refusal(attempt) == [(code, ("timeout_seconds",))]
    assert await count(server) == 0


@BOTH_DATABASES
@pytest.mark.bubblewrap
async def test_limits_given_are_those_of_the_sandbox(server: Server, ada: Viewer) -> None:
    small = Resources(cpu_millis=500, memory_bytes=160 * MIB, pids=16)
    sandbox = await lifecycle.create(server.deps, ada, resources=small, timeout_s=77)
    async with server.deps.db.reading() as connection:
        row = (await connection.execute(select(SandboxResources.__table__))).one()
    assert (row.cpu_limit, row.memory_limit, row.pids_limit) == (500, 160 * MIB, 16)
    assert row.timeout_s == 77
    # 64 MiB stay free and an eighth is /tmp.
    assert row.disk_limit == 76 * MIB
    assert sandbox.expires_at is not None
    assert sandbox.started_at is not None
    assert sandbox.expires_at - sandbox.started_at == timedelta(seconds=77)
    done = await ran(server.deps, ada, sandbox.id, "df -B1 --output=size . | tail -1")
    assert int(done.stdout or "") == 76 * MIB


@pytest.mark.bubblewrap
async def test_a_policy_the_driver_cannot_enforce_is_refused(server: Server, ada: Viewer) -> None:
    wish = Security(
        network="ALLOW_LIST",
        syscalls=["bpf"],
        mounts=["/etc"],
        capabilities=["SYS_ADMIN"],
        env_variables={"1BAD": "x", "A=B": "x", "": "x", "GOOD": "nul\0"},
    )
    env = (UserErrorCode.INVALID, ("security", "env_variables"))
    assert await refusal(lifecycle.create(server.deps, ada, security=wish)) == [
        (UserErrorCode.INVALID, ("security", "network")),
        (UserErrorCode.INVALID, ("security", "syscalls")),
        (UserErrorCode.INVALID, ("security", "mounts")),
        (UserErrorCode.INVALID, ("security", "capabilities")),
        *[env] * 4,
    ]
    large = Security(env_variables={"BIG": "x" * 70_000})
    assert await refusal(lifecycle.create(server.deps, ada, security=large)) == [
        (UserErrorCode.LIMIT, ("security", "env_variables"))
    ]
    assert await count(server) == 0


@pytest.mark.bubblewrap
async def test_the_environment_reaches_every_execution(server: Server, ada: Viewer) -> None:
    wish = Security(env_variables={"GREETING": "안녕 world"})
    sandbox = await lifecycle.create(server.deps, ada, security=wish)
    done = await ran(server.deps, ada, sandbox.id, 'printf %s "$GREETING"')
    assert done.stdout == "안녕 world"
    async with server.deps.db.reading() as connection:
        policy = (await connection.execute(select(SandboxSecurityPolicy.__table__))).one()
    assert policy.env_variables == {"GREETING": "안녕 world"}
    assert policy.network_policy == {"mode": "none", "rules": []}


@pytest.mark.bubblewrap
async def test_templates_are_found_by_id_and_refused_where_they_cannot_run(
    server: Server, ada: Viewer
) -> None:
    async with work(server.deps) as unit:
        default = await unit.session.scalar(
            select(SandboxTemplate.id).where(SandboxTemplate.name == "python")
        )
        other = SandboxTemplate(name="node", image_name="node", image_tag="22")
        off = SandboxTemplate(name="off", image_name="x", is_active=False)
        unit.session.add_all([other, off])
    sandbox = await lifecycle.create(server.deps, ada, template_id=default)
    assert sandbox.template_id == default
    absent = (UserErrorCode.NOT_FOUND, ("template_id",))
    assert await refusal(lifecycle.create(server.deps, ada, template_id="stp_x")) == [absent]
    assert await refusal(lifecycle.create(server.deps, ada, template_id=off.id)) == [absent]
    assert await refusal(lifecycle.create(server.deps, ada, template_id=other.id)) == [
        (UserErrorCode.UNAVAILABLE, ("template_id",))
    ]
    unknown = lifecycle.create(server.deps, ada, conversation_id="cnv_x")
    assert await refusal(unknown) == [(UserErrorCode.NOT_FOUND, ("conversation_id",))]


@BOTH_DATABASES
@pytest.mark.bubblewrap
async def test_a_sandbox_ends_when_its_time_is_over(server: Server, ada: Viewer) -> None:
    deps = server.deps
    sandbox = await lifecycle.create(deps, ada, timeout_s=3)
    running = await executions.execute(
        deps, ada, sandbox_id=sandbox.id, command="sleep 600", timeout_s=900
    )
    ended = await finished(deps, ada, running.id)
    assert (ended.status, ended.reason) == (RunState.CANCELED, ExecutionReason.KILLED)
    node = await server.host.node()
    async with node.lock(sandbox.id):
        row = await rows.sandbox(deps, sandbox.id)
    assert row is not None
    assert row.status is SandboxStatus.STOPPED
    assert row.failure == "It reached the end of its time."


@pytest.mark.bubblewrap
async def test_extending_adds_time_up_to_the_longest_life(launch: Launch) -> None:
    server = await launch(sandbox_max_ttl_s=1000)
    ada = await server.person("ada")
    sandbox = await lifecycle.create(server.deps, ada, timeout_s=100)
    longer = await lifecycle.extend(server.deps, ada, sandbox_id=sandbox.id, seconds=500)
    assert longer.expires_at is not None
    assert sandbox.expires_at is not None
    added = longer.expires_at - sandbox.expires_at
    assert abs(added - timedelta(seconds=500)) < timedelta(milliseconds=1)
    for seconds, code in (
        (-5, UserErrorCode.INVALID),
        (0, UserErrorCode.INVALID),
        (999, UserErrorCode.LIMIT),
        (1001, UserErrorCode.LIMIT),
    ):
        attempt = lifecycle.extend(server.deps, ada, sandbox_id=sandbox.id, seconds=seconds)
        assert await refusal(attempt) == [(code, ("seconds",))]


@pytest.mark.bubblewrap
async def test_a_sandbox_that_is_killed_from_outside_fails_with_its_executions(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    deps = server.deps
    node = await server.host.node()
    lost, lose = asyncio.Event(), node.lose

    async def tell(sandbox_id: str, why: str) -> None:
        await lose(sandbox_id, why)
        lost.set()

    monkeypatch.setattr(node, "lose", tell)
    sandbox = await lifecycle.create(deps, ada)
    running = await executions.execute(
        deps, ada, sandbox_id=sandbox.id, command="echo one; sleep 600", timeout_s=900
    )
    async with aclosing(output.follow(deps, ada, running.id)) as items:
        assert isinstance(await anext(items), output.Chunk)
        await node.driver.stop(sandbox.id)
        last = [item async for item in items][-1]
    assert isinstance(last, output.Exited)
    ended = last.execution
    assert (ended.status, ended.reason) == (RunState.FAILED, ExecutionReason.SANDBOX_LOST)
    assert ended.stdout == "one\n"
    async with asyncio.timeout(30):
        await lost.wait()
    row = await rows.sandbox(deps, sandbox.id)
    assert row is not None
    assert row.status is SandboxStatus.FAILED
    assert row.failure == "The sandbox ended unexpectedly."


async def test_without_a_driver_sandboxes_are_refused_with_the_reason(
    launch: Launch, tmp_path: Path
) -> None:
    server = await launch("off")
    ada = await server.person("ada")
    with pytest.raises(UserError) as caught:
        await lifecycle.create(server.deps, ada)
    assert caught.value.code is UserErrorCode.UNAVAILABLE
    assert caught.value.message == "Sandboxes are turned off by configuration."
    assert await count(server) == 0
    assert await server.host.check() == "off: Sandboxes are turned off by configuration."


@pytest.mark.bubblewrap
async def test_a_sandbox_that_cannot_be_made_leaves_a_failed_row(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await server.host.node()

    async def full(_spec: object) -> None:
        raise ResourceExhaustedError(
            "The host has no room.", resource=Resource.HOST, engine="at /var/lib/x/y"
        )

    monkeypatch.setattr(node.driver, "create", full)
    with pytest.raises(UserError) as caught:
        await lifecycle.create(server.deps, ada)
    assert caught.value.code is UserErrorCode.UNAVAILABLE
    assert "/var" not in caught.value.message
    async with server.deps.db.reading() as connection:
        row = (await connection.execute(select(Sandbox.__table__))).one()
    assert (row.status, row.failure) == (SandboxStatus.FAILED, caught.value.message)
    assert row.created_at < now()
