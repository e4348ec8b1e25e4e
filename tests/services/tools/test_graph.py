from sqlalchemy import select, update

from models.tools import Tool, ToolParameter
from services import tools
from services.base import work
from services.tools import ToolContext
from services.tools.builtin import BUILT_IN
from tests.services.small_world import answer, ask, person, statements

UPDATE = """mutation($id: ID!, $input: ToolUpdateInput!) { toolUpdate(id: $id, input: $input) {
  tool { name isEnabled } errors { code path } } }"""


async def test_seeding_twice_changes_nothing_and_a_changed_tool_is_brought_in_line(deps):
    async def snapshot():
        async with deps.db.reading() as connection:
            return [
                (await connection.execute(select(*table.__table__.c).order_by(table.id))).all()
                for table in (Tool, ToolParameter)
            ]

    async def seed():
        async with work(deps) as unit:
            await tools.seed(unit)

    before = await snapshot()
    assert [row.name for row in before[0]] == [tool.name for tool in BUILT_IN]
    assert len(before[1]) == sum(len(tool.properties) for tool in BUILT_IN)
    await seed()
    assert await snapshot() == before
    # An earlier version knew another text and another parameter; somebody switched the tool off.
    recall = next(row.id for row in before[0] if row.name == "recall")
    async with work(deps) as unit:
        await unit.session.execute(
            update(Tool).where(Tool.id == recall).values(description="old", enabled=False)
        )
        await unit.session.execute(
            update(ToolParameter)
            .where(ToolParameter.tool_id == recall, ToolParameter.name == "first")
            .values(name="count")
        )
    await seed()
    async with deps.db.reading() as connection:
        row = (await connection.execute(select(*Tool.__table__.c).where(Tool.id == recall))).one()
        names = set(
            await connection.scalars(
                select(ToolParameter.name).where(ToolParameter.tool_id == recall)
            )
        )
    assert (row.description != "old", row.enabled) == (True, False)
    assert names == {"query", "first"}


async def test_tools_are_shown_to_people_signed_in(deps, ann):
    query = """{ tools { nodes { name isEnabled environment timeoutSeconds inputSchema
      parameters { name type isRequired defaultValue description } } }
      tool(name: "run_code") { id name } }"""
    data = await ask(deps, query, ann)
    nodes = {node["name"]: node for node in data["tools"]["nodes"]}
    assert list(nodes) == sorted(tool.name for tool in BUILT_IN)
    code = nodes["run_code"]
    assert (code["isEnabled"], code["environment"]) == (True, "SANDBOX")
    assert code["inputSchema"]["required"] == ["code"]
    assert [
        (item["name"], item["type"], item["isRequired"], item["defaultValue"])
        for item in code["parameters"]
    ] == [("code", "string", True, None), ("language", "string", False, "python")]
    by_id = await ask(
        deps, "query($id: ID!) { tool(id: $id) { name } }", ann, id=data["tool"]["id"]
    )
    assert by_id["tool"] == {"name": "run_code"}
    assert await ask(deps, '{ tools { nodes { id } } tool(name: "run_code") { id } }') == {
        "tools": {"nodes": []},
        "tool": None,
    }
    for arguments in ("", '(id: "tol_1", name: "x")'):
        result = await answer(deps, f"{{ tool{arguments} {{ id }} }}", ann)
        assert result.errors[0].original_error.code == "BAD_USER_INPUT"


async def test_only_an_administrator_switches_tools(deps, ann, admin):
    tool_id = (await ask(deps, '{ tool(name: "recall") { id } }', ann))["tool"]["id"]
    off = {"isEnabled": False}
    payload = (await ask(deps, UPDATE, ann, id=tool_id, input=off))["toolUpdate"]
    assert payload == {"tool": None, "errors": [{"code": "FORBIDDEN", "path": []}]}
    result = await answer(deps, UPDATE, id=tool_id, input=off)
    assert result.errors[0].original_error.code == "UNAUTHENTICATED"
    assert (await ask(deps, "{ tools(isEnabled: false) { nodes { id } } }", ann))["tools"] == {
        "nodes": []
    }
    payload = (await ask(deps, UPDATE, admin, id=tool_id, input=off))["toolUpdate"]
    assert payload == {"tool": {"name": "recall", "isEnabled": False}, "errors": []}
    payload = (await ask(deps, UPDATE, admin, id=tool_id, input={}))["toolUpdate"]
    assert payload["tool"]["isEnabled"] is False
    payload = (await ask(deps, UPDATE, admin, id="tol_0", input=off))["toolUpdate"]
    assert payload["errors"] == [{"code": "NOT_FOUND", "path": ["id"]}]
    names = (await ask(deps, "{ tools(isEnabled: false) { nodes { name } } }", ann))["tools"]
    assert names == {"nodes": [{"name": "recall"}]}


async def test_executions_are_their_users(deps, ann, admin):
    bob = await person(deps, "bob")
    good = await tools.execute(ToolContext(deps, ann), "current_time", {})
    bad = await tools.execute(ToolContext(deps, ann), "current_time", {"timeZone": "Mars"})
    query = """query($id: ID!, $status: RunState) { toolExecution(id: $id) { id }
      toolExecutions(status: $status) { nodes { id status errorCode errorMessage parameters result
        startedAt completedAt tool { name } user { username } } } }"""
    data = await ask(deps, query, ann, id=good.execution_id)
    assert data["toolExecution"] == {"id": good.execution_id}
    failed, done = data["toolExecutions"]["nodes"]
    assert (failed["id"], failed["status"], failed["errorCode"]) == (
        bad.execution_id,
        "FAILED",
        "INVALID",
    )
    assert failed["result"] == bad.result
    assert (done["id"], done["status"], done["errorCode"]) == (good.execution_id, "COMPLETED", None)
    assert done["result"] == good.result
    assert done["parameters"] == {"timeZone": "UTC"}
    assert (done["tool"], done["user"]) == ({"name": "current_time"}, {"username": "ann"})
    data = await ask(deps, query, ann, id=good.execution_id, status="FAILED")
    assert [node["id"] for node in data["toolExecutions"]["nodes"]] == [bad.execution_id]
    nothing = {"toolExecution": None, "toolExecutions": {"nodes": []}}
    assert await ask(deps, query, bob, id=good.execution_id) == nothing
    assert await ask(deps, query, id=good.execution_id) == nothing
    seen = await ask(deps, query, admin, id=good.execution_id)
    assert seen == {"toolExecution": {"id": good.execution_id}, "toolExecutions": {"nodes": []}}


async def test_statements_do_not_grow_with_the_number_of_executions(deps, ann):
    query = """{ toolExecutions(first: 100) { nodes { user { id }
      tool { name parameters { name } } } } tools { nodes { parameters { name } } } }"""
    counts = []
    for n in range(8):
        await tools.execute(ToolContext(deps, ann), "current_time", {})
        if n in (0, 7):
            with statements(deps) as found:
                data = await ask(deps, query, ann)
            counts.append(len(found))
            assert len(data["toolExecutions"]["nodes"]) == n + 1
    # Two fields that ask for parameters share a statement where they ask in the same moment.
    assert max(counts) <= 6
    assert abs(counts[0] - counts[1]) <= 1
