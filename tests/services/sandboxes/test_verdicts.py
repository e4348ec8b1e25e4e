"""What scans said of files, as the graph shows it."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from app.sandbox_metrics import SandboxMetrics
from models.states import FileVerdict
from schema.execution.engine import Engine
from services.base import Viewer
from services.errors import UserError
from services.sandboxes import files, findings, lifecycle
from services.sandboxes.counts import TOTALS
from tests.servers.clamd import EICAR
from tests.services.sandboxes.conftest import BOTH_DATABASES, Server, ran
from tests.services.sandboxes.graph import ask
from tests.services.sandboxes.watching.conftest import indexed

pytestmark = pytest.mark.bubblewrap
FILES = """query ($id: ID!) {
  sandbox(id: $id) { files { path verdict finding scannedAt } }
}"""
WRITE = """mutation ($input: SandboxFileWriteInput!) {
  sandboxFileWrite(input: $input) {
    file { path verdict finding scannedAt } errors { code message path }
  }
}"""


async def shown(engine: Engine, server: Server, viewer: Viewer, id_: str) -> dict[str, Any]:
    found = await ask(engine, server, viewer, FILES, id=id_)
    return {file.pop("path"): file for file in found["sandbox"]["files"]}


@BOTH_DATABASES
async def test_files_say_what_their_last_scan_found(engine: Engine, server: Server) -> None:
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    written = await ask(
        engine, server, ada, WRITE, input={"sandboxId": box.id, "path": "clean", "content": "1"}
    )
    file = written["sandboxFileWrite"]["file"]
    assert (file["path"], file["verdict"], file["finding"]) == ("clean", "CLEAN", None)
    assert file["scannedAt"] is not None
    await ran(server.deps, ada, box.id, "mkdir d")
    found = await shown(engine, server, ada, box.id)
    assert found["clean"] == {key: file[key] for key in ("verdict", "finding", "scannedAt")}
    assert found["d"] == {"verdict": "UNSCANNED", "finding": None, "scannedAt": None}

    # What was written since is not what was scanned.
    await ran(server.deps, ada, box.id, "echo 22 >clean")
    await indexed(server, box, "clean", 3, FileVerdict.CLEAN)
    await ran(server.deps, ada, box.id, "echo 4444 >clean")
    entry = await files.stat(server.deps, ada, sandbox_id=box.id, path="clean")
    assert entry.size_bytes == 5
    await indexed(server, box, "clean", 5, FileVerdict.CLEAN)
    found = await shown(engine, server, ada, box.id)
    assert found["clean"]["verdict"] == "CLEAN"
    assert found["clean"]["scannedAt"] > file["scannedAt"]

    # It is known of a sandbox that has ended as well.
    await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    assert (await shown(engine, server, ada, box.id))["clean"] == found["clean"]


async def test_a_file_that_changed_since_its_scan_is_unscanned(
    engine: Engine, server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await lifecycle.create(server.deps, ada)
    await files.write(server.deps, ada, sandbox_id=box.id, path="f", content="one")
    node = await server.host.node()
    # Nobody watches any more.
    for tell in node.on_ending:
        tell(node.live[box.id])
    await ran(server.deps, ada, box.id, "echo -n two >f")
    found = await shown(engine, server, ada, box.id)
    assert found["f"] == {"verdict": "UNSCANNED", "finding": None, "scannedAt": None}


def told() -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(SandboxMetrics((), TOTALS))
    lines = generate_latest(registry).decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


async def test_what_is_in_quarantine_is_counted(server: Server, ada: Viewer) -> None:
    box = await lifecycle.create(server.deps, ada)
    engine_of = 'noosphere_sandbox_findings_total{engine="yara"}'
    held = "noosphere_sandbox_quarantine_files"
    await findings.clear(server.deps)
    before = told()
    assert before[held] == 0
    for path in ("a", "b"):
        with pytest.raises(UserError, match="taken for harmful"):
            await files.write(
                server.deps, ada, sandbox_id=box.id, path=path, content=EICAR.decode()
            )
    found = told()
    assert found[engine_of] - before.get(engine_of, 0) == 2
    assert found[held] == 2
    (kept, _) = sorted((server.options.data_dir / "quarantine").glob("sfd_*"))
    kept.unlink()
    await findings.clear(server.deps)
    assert told()[held] == 1
