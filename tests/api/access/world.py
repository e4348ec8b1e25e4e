"""A world in which people own one of everything, and a stranger's rows point at an owner's.

The crossed references cannot come about through the product; they are there so that every link
of the graph is tried from a row its viewer may see to a row they may not."""

import itertools
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update

from models.accounts import RateLimitConfig, Role, User
from models.base import new_id
from models.conversations import Context, Message, MessageToolCall
from models.memories import Memory, MemoryRelation
from models.plans import PlanExecution, PlanStep, PlanStepDependency, PlanStepExecution
from models.sandboxes import (
    Sandbox,
    SandboxExecution,
    SandboxRemoval,
    SandboxSnapshot,
    SandboxTemplate,
    SandboxTemplateVersion,
)
from models.states import RunState
from models.tools import ToolParameter
from services import memories
from services.base import Deps, work
from tests.api.access.belongings import SECRET, Ids, belongings
from tests.api.people import sign_up
from tests.fixtures import Api, Person


@dataclass
class World:
    """The people, and the ids of what belongs to them by the names of their types."""

    api: Api
    owner: Person
    stranger: Person
    admin: Person
    reader: Person
    of_owner: Ids
    of_stranger: Ids
    of_reader: Ids
    of_admin: Ids
    shared: Ids

    @property
    def deps(self) -> Deps:
        """What the application works with."""
        return self.api.deps

    def target(self, who: str, type_: str) -> str:
        """Give the id of what `who` looks at: a reader at their own, others at the owner's."""
        own = self.of_reader if who == "reader" else self.of_owner
        return self.shared.get(type_) or own[type_]

    def person(self, who: str) -> Person | None:
        """Give who asks; None for anonymous."""
        return None if who == "anonymous" else getattr(self, who)


WHO = ("anonymous", "stranger", "owner", "admin", "reader")


def absent(id_: str) -> str:
    """Give an id of the same kind that nothing has."""
    return new_id(id_.split("_", maxsplit=1)[0])


_names = itertools.count()


def filled(world: World, who: str, value: Any, *, is_absent: bool = False) -> Any:
    """Put ids and names in the places of `<Type>` and `<new>`."""
    if isinstance(value, dict):
        return {key: filled(world, who, inner, is_absent=is_absent) for key, inner in value.items()}
    if not isinstance(value, str):
        return value
    if "<new>" in value:
        return value.replace("<new>", f"new{id(world)}-{next(_names)}")
    if value.startswith("<"):
        id_ = world.target(who, value.strip("<>"))
        return absent(id_) if is_absent else id_
    return value


async def build(deps: Deps) -> World:
    """Fill an empty database."""
    admin = await sign_up(deps, "admin", "admin")
    owner = await sign_up(deps, "owner")
    stranger = await sign_up(deps, "stranger")
    reader = await sign_up(deps, "reader", "viewer")
    shared = await shared_ids(deps)
    of_owner = await _all_of(deps, owner, shared)
    of_reader = await _all_of(deps, reader, shared)
    of_admin = await _all_of(deps, admin, shared)
    of_stranger = await _all_of(deps, stranger, shared)
    await _cross(deps, of_stranger, of_owner)
    for person in (admin, owner, stranger, reader):
        # Embeds what was not, so that no later look has anything to write.
        await memories.search(deps, person.viewer, "trees", first=1)
    return World(
        Api(deps),
        owner,
        stranger,
        admin,
        reader,
        of_owner,
        of_stranger,
        of_reader,
        of_admin,
        shared,
    )


async def shared_ids(deps: Deps) -> Ids:
    """Give the ids of what is everybody's, the default template with a version and a variable."""
    async with work(deps) as unit:
        template = await unit.session.scalar(select(SandboxTemplate))
        assert template is not None
        template.security_config = {"env_variables": {"GREETING": "hello"}}
        version = SandboxTemplateVersion(template_id=template.id, version=1)
        unit.session.add(version)
        removal = SandboxRemoval(node_id="n", kind="container", name="c", reason="r")
        unit.session.add(removal)
        role_id = await unit.session.scalar(select(Role.id).where(Role.name == "viewer"))
        # Of both kinds at once, so that both its links are tried.
        user_id = await unit.session.scalar(select(User.id).limit(1))
        limit = RateLimitConfig(role_id=role_id, user_id=user_id, points_per_minute=500_000)
        unit.session.add(limit)
        await unit.session.flush()
        version_id, removal_id, limit_id = version.id, removal.id, limit.id
    async with deps.db.reading() as connection:

        async def first(column: Any) -> str:
            return str(await connection.scalar(select(column).limit(1)))

        return {
            "Role": await first(Role.id),
            "Tool": await first(ToolParameter.tool_id),
            "ToolParameter": await first(ToolParameter.id),
            "SandboxTemplate": await first(SandboxTemplate.id),
            "SandboxTemplateVersion": version_id,
            "SandboxRemoval": removal_id,
            "RateLimitConfig": limit_id,
        }


async def _all_of(deps: Deps, person: Person, shared: Ids) -> Ids:
    ids = {"User": person.id, "Session": person.viewer.session_id or ""}
    async with work(deps) as unit:
        return await belongings(unit, ids, shared, f"{SECRET}{person.viewer.username}")


async def _cross(deps: Deps, mine: Ids, theirs: Ids) -> None:
    """Let every link that leads from a stranger's row to another table lead to the owner's."""
    points: list[tuple[Any, str, dict[str, Any]]] = [
        (
            Message,
            "Message",
            {
                "user_id": theirs["User"],
                "reply_to_id": theirs["Question"],
                "meta": {"citedMemoryIds": [theirs["Memory"]]},
            },
        ),
        (MessageToolCall, "MessageToolCall", {"tool_execution_id": theirs["ToolExecution"]}),
        (
            Context,
            "MessageContext",
            {
                "data": {
                    "messageIds": [theirs["Question"]],
                    "memories": [{"id": theirs["Memory"], "score": 0.5}],
                }
            },
        ),
        (
            Memory,
            "Memory",
            {
                "source_message_id": theirs["Question"],
                "superseded_by_id": theirs["Memory"],
            },
        ),
        (Memory, "OldMemory", {"superseded_by_id": theirs["Memory"]}),
        (MemoryRelation, "MemoryRelation", {"target_memory_id": theirs["Memory"]}),
        (PlanStepDependency, "PlanStepDependency", {"depends_on_id": theirs["FirstStep"]}),
        (PlanStep, "PlanStep", {}),
        (
            PlanStepExecution,
            "PlanStepExecution",
            {"step_id": theirs["PlanStep"], "tool_execution_id": theirs["ToolExecution"]},
        ),
        (PlanExecution, "PlanExecution", {"plan_id": theirs["Plan"]}),
        (Sandbox, "Sandbox", {"conversation_id": theirs["Conversation"]}),
        (SandboxExecution, "SandboxExecution", {"user_id": theirs["User"]}),
        (SandboxSnapshot, "SandboxSnapshot", {"sandbox_id": theirs["Sandbox"]}),
    ]
    async with work(deps) as unit:
        for table, name, values in points:
            if values:
                await unit.session.execute(
                    update(table).where(table.id == mine[name]).values(**values)
                )
        # And back: rows of the owner that claim to belong under the stranger's.
        await unit.session.execute(
            update(Memory)
            .where(Memory.id == theirs["NearMemory"])
            .values(superseded_by_id=mine["Memory"])
        )
        for table, values in (
            (
                PlanExecution,
                {"plan_id": mine["Plan"], "user_id": theirs["User"], "status": RunState.COMPLETED},
            ),
        ):
            unit.session.add(table(**values))
