"""Quotas of sandboxes through the contract: administrators set them, people see their own."""

from typing import Any

import pytest

from tests.api.people import everything_stored
from tests.fixtures import Api

AMOUNT = "{ count cpuMillis memoryBytes diskBytes }"
OWN = f"{{ viewer {{ sandboxQuota {{ limit {AMOUNT} used {AMOUNT} }} }} }}"
ROLES = f"{{ roles {{ id name description sandboxQuota {AMOUNT} }} }}"
UPDATE = f"""
mutation($id: ID!, $input: RoleUpdateInput!) {{ roleUpdate(id: $id, input: $input) {{
  role {{ name description sandboxQuota {AMOUNT} }} errors {{ code message path }} }} }}
"""
CONFIGURED = {
    "count": 10,
    "cpuMillis": 10_000,
    "memoryBytes": 8192 * 1_048_576,
    "diskBytes": 8192 * 1_048_576,
}
NOTHING = dict.fromkeys(CONFIGURED, 0)


async def role_ids(api: Api, who: Any) -> dict[str, str]:
    return {role["name"]: role["id"] for role in await api.run(ROLES, who)}


async def test_an_administrator_says_what_a_role_allows_and_its_holders_see_it(api: Api) -> None:
    root, ada = await api.person("root", "admin"), await api.person("ada", "user")
    assert (await api.run(OWN, ada))["sandboxQuota"] == {"limit": CONFIGURED, "used": NOTHING}
    ids = await role_ids(api, root)

    wish = {"sandboxQuota": {"count": 2, "memoryBytes": 2**40}}
    answer = await api.run(UPDATE, root, id=ids["user"], input=wish)
    said = {"count": 2, "cpuMillis": None, "memoryBytes": 2**40, "diskBytes": None}
    assert answer["errors"] == []
    assert answer["role"]["sandboxQuota"] == said
    assert answer["role"]["description"] == "Uses everything for their own work."

    limit = (await api.run(OWN, ada))["sandboxQuota"]["limit"]
    assert limit == {**CONFIGURED, "count": 2, "memoryBytes": 2**40}
    assert (await api.run(OWN, root))["sandboxQuota"]["limit"] == CONFIGURED

    answer = await api.run(
        UPDATE, root, id=ids["user"], input={"sandboxQuota": None, "description": "People."}
    )
    assert answer["role"]["sandboxQuota"] == dict.fromkeys(CONFIGURED)
    assert answer["role"]["description"] == "People."
    assert (await api.run(OWN, ada))["sandboxQuota"]["limit"] == CONFIGURED


@pytest.mark.parametrize(
    ("change", "code", "path"),
    [
        ({"sandboxQuota": {"count": -1}}, "INVALID", ["input", "sandboxQuota", "count"]),
        ({"sandboxQuota": {"diskBytes": 2**50}}, "LIMIT", ["input", "sandboxQuota", "diskBytes"]),
        ({"description": ""}, "REQUIRED", ["input", "description"]),
        ({"description": "a\x00"}, "INVALID", ["input", "description"]),
        ({"description": "a" * 1001}, "LIMIT", ["input", "description"]),
    ],
)
async def test_what_a_role_cannot_say_is_refused_and_changes_nothing(
    api: Api, change: dict[str, Any], code: str, path: list[str]
) -> None:
    root = await api.person("root", "admin")
    ids = await role_ids(api, root)
    before = await everything_stored(api.deps)

    answer = await api.run(UPDATE, root, id=ids["user"], input=change)

    assert [(error["code"], error["path"]) for error in answer["errors"]] == [(code, path)]
    assert await everything_stored(api.deps) == before


async def test_nobody_else_changes_a_role(api: Api) -> None:
    root, ada = await api.person("root", "admin"), await api.person("ada", "user")
    ids = await role_ids(api, root)
    before = await everything_stored(api.deps)
    wish = {"sandboxQuota": {"count": 1000}}

    answer = await api.run(UPDATE, ada, id=ids["user"], input=wish)
    assert [error["code"] for error in answer["errors"]] == ["FORBIDDEN"]
    answer = await api.run(UPDATE, root, id="rol_00000000000000000000000000", input=wish)
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [("NOT_FOUND", ["id"])]
    assert await everything_stored(api.deps) == before


async def test_quotas_of_others_are_seen_by_who_sees_everything(api: Api) -> None:
    root, ada = await api.person("root", "admin"), await api.person("ada", "user")
    await api.person("bob", "user")
    query = f"{{ users(first: 10) {{ nodes {{ username sandboxQuota {{ used {AMOUNT} }} }} }} }}"

    seen = (await api.run(query, root))["nodes"]
    assert {user["username"]: user["sandboxQuota"] for user in seen} == {
        name: {"used": NOTHING} for name in ("root", "ada", "bob")
    }
    assert [user["username"] for user in (await api.run(query, ada))["nodes"]] == ["ada"]
