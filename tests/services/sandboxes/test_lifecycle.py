"""Sandboxes from creation to deletion."""

from models.states import ExecutionReason, RunState, SandboxStatus
from services.sandboxes import lifecycle
from tests.services.sandboxes.conftest import Launch, ran


async def test_a_sandbox_is_created_runs_a_command_and_is_deleted(
    launch: Launch, any_kind: str
) -> None:
    server = await launch(any_kind)
    ada = await server.person("ada")
    sandbox = await lifecycle.create(server.deps, ada)
    assert sandbox.status is SandboxStatus.RUNNING
    assert sandbox.driver == any_kind
    done = await ran(server.deps, ada, sandbox.id, "echo hello; echo oh >&2; exit 3")
    assert (done.stdout, done.stderr) == ("hello\n", "oh\n")
    assert (done.stdout_bytes, done.stderr_bytes) == (6, 3)
    assert (done.status, done.reason, done.exit_code) == (
        RunState.FAILED,
        ExecutionReason.EXITED,
        3,
    )
    deleted = await lifecycle.delete(server.deps, ada, sandbox_id=sandbox.id)
    assert deleted.status is SandboxStatus.DELETED
