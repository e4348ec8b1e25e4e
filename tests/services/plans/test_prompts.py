"""Steps that ask a model, and steps that are processes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.runtime import running
from app.worker import working
from models.states import RunState
from services import plans
from services.base import Deps
from services.plans import StepInput
from tests.fixtures import Api, settings_for
from tests.services.llm.scripted_server import Hang, ScriptedServer, Status, calls, delta, says
from tests.services.plans.conftest import Sandboxes, begin, code, follow, has_text, states


@asynccontextmanager
async def prompted(tmp_path: Path, *turns: Any) -> AsyncIterator[tuple[Deps, ScriptedServer]]:
    async with ScriptedServer(turns) as server:
        settings = settings_for(
            tmp_path, llm_base_url=server.base_url, llm_api_key="key", llm_model="scripted"
        )
        async with running(settings) as deps:
            yield deps, server


async def test_a_prompt_is_told_what_it_waited_for_and_may_call_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = (calls(("run_code", {"code": "inner says 42"})), says("It is 42."))
    async with prompted(tmp_path, *turns) as (deps, server):
        sandboxes = Sandboxes()
        monkeypatch.setattr(deps.sandboxes, "run_code", sandboxes.run_code)
        person = await Api(deps).person("planner")
        execution = await begin(
            deps,
            person.viewer,
            code("first says seven"),
            StepInput("What is {{steps.0.output}} times six?", depends_on=[0]),
            code("last says {{steps.1.result.text}}", 1),
        )
        async with working(deps):
            await follow(deps, person.viewer, execution.id)

        rows = await states(deps, execution.id)
        assert [row.status for row in rows] == [RunState.COMPLETED] * 3
        assert rows[1].output is not None
        assert rows[1].output.endswith("It is 42.")
        assert rows[2].output is not None
        assert rows[2].output.endswith("It is 42.\n")
        asked = server.requests[0].body["messages"]
        assert asked[-1] == {"role": "user", "content": "What is seven times six?"}
        assert any("seven" in m["content"] for m in asked if m["role"] == "system")
        assert server.requests[1].body["messages"][-1]["role"] == "tool"
        assert "42" in server.requests[1].body["messages"][-1]["content"]


async def test_cancelling_a_prompt_closes_the_stream_of_the_model(tmp_path: Path) -> None:
    turn = [Status(), delta(role="assistant"), delta("Begun"), Hang()]
    async with prompted(tmp_path, turn) as (deps, server):
        person = await Api(deps).person("planner")
        execution = await begin(deps, person.viewer, StepInput("Think for ever"))
        async with working(deps):
            await follow(deps, person.viewer, execution.id, until=has_text)
            await plans.cancel(deps, person.viewer, execution_id=execution.id)
            await server.left()
            await follow(deps, person.viewer, execution.id)
        (row,) = await states(deps, execution.id)
        assert (row.status, row.output) == (RunState.CANCELED, "Begun")


@pytest.mark.bubblewrap
async def test_cancelling_a_step_ends_its_process(tmp_path: Path) -> None:
    marker = f"sleep {31_536_000 + hash(str(tmp_path)) % 1_000_000}"
    settings = settings_for(tmp_path, sandbox_driver="bubblewrap")
    async with running(settings) as deps:
        person = await Api(deps).person("planner")
        program = f"import os, subprocess\nos.write(1, b'up')\nsubprocess.run('{marker}'.split())"
        execution = await begin(
            deps, person.viewer, StepInput("Sleep", "run_code", {"code": program})
        )
        async with working(deps):
            await follow(deps, person.viewer, execution.id, until=has_text)
            async with asyncio.timeout(60):
                while not _runs(marker):  # noqa: ASYNC110 - other processes tell nobody.
                    await asyncio.sleep(0.02)
            await plans.cancel(deps, person.viewer, execution_id=execution.id)
            await follow(deps, person.viewer, execution.id)
        assert not _runs(marker)
        (row,) = await states(deps, execution.id)
        assert (row.status, row.output) == (RunState.CANCELED, "up")


def _runs(command: str) -> bool:
    """Whether a process of this very command line is alive on the machine."""
    wanted = command.replace(" ", "\0").encode() + b"\0"
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes() == wanted:
                    return True
            except OSError:
                continue
    return False
