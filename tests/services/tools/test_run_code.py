"""The tool `run_code` in a real sandbox."""

import asyncio

import pytest
from sqlalchemy import select

from app.config import Settings
from app.runtime import running
from models.states import RunState
from models.tools import ToolExecution
from services import tools
from services.tools import ToolContext
from tests.services.small_world import person

pytestmark = pytest.mark.bubblewrap


@pytest.fixture
async def deps(tmp_path):
    async with running(Settings(data_dir=tmp_path / "data", sandbox_driver="bubblewrap")) as made:
        yield made


async def last_run(deps):
    async with deps.db.reading() as connection:
        return (
            await connection.execute(
                select(*ToolExecution.__table__.c).order_by(ToolExecution.id.desc()).limit(1)
            )
        ).one()


async def test_code_runs_and_its_output_is_heard(deps):
    ann = await person(deps, "ann")
    heard = []

    async def hear(text):
        heard.append(text)

    context = ToolContext(deps, ann, on_output=hear)
    outcome = await tools.execute(context, "run_code", {"code": "print(2**10)"})
    assert outcome.is_ok, outcome.result
    assert (outcome.result["stdout"], outcome.result["exitCode"]) == ("1024\n", 0)
    assert "".join(heard) == "1024\n"
    assert (await last_run(deps)).sandbox_id == outcome.result["sandboxId"]
    array = {"code": "a=(1 2 3); echo ${#a[@]}", "language": "bash"}
    second = await tools.execute(context, "run_code", array)
    assert second.result["stdout"] == "3\n"
    assert second.result["sandboxId"] == outcome.result["sandboxId"]


async def test_code_that_fails_tells_its_output_and_status(deps):
    ann = await person(deps, "ann")
    code = "print('so far')\nraise KeyError('missing')"
    outcome = await tools.execute(ToolContext(deps, ann), "run_code", {"code": code})
    assert not outcome.is_ok
    assert outcome.result["stdout"] == "so far\n"
    assert outcome.result["exitCode"] == 1
    assert "KeyError: 'missing'" in outcome.result["error"]["message"]
    shell = {"code": "exit 3", "language": "sh"}
    outcome = await tools.execute(ToolContext(deps, ann), "run_code", shell)
    assert (outcome.result["exitCode"], outcome.result["error"]["code"]) == (3, "EXIT_CODE")


async def test_cancelling_stops_the_code(deps):
    ann = await person(deps, "ann")
    began = asyncio.Event()

    async def hear(text):
        began.set()

    code = "import time\nprint('on', flush=True)\ntime.sleep(600)"
    context = ToolContext(deps, ann, on_output=hear)
    task = asyncio.create_task(tools.execute(context, "run_code", {"code": code}))
    async with asyncio.timeout(60):
        await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await last_run(deps)).status is RunState.CANCELED
