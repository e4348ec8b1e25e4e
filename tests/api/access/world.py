"""A world in which people own one of everything, and a stranger's rows point at an owner's.

The crossed references cannot come about through the product; they are there so that every link
of the graph is tried from a row its viewer may see to a row they may not.
"""

import itertools
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update

from models.accounts import RateLimitConfig, Role, User
from models.base import new_id
from models.conversations import Context, Conversation, Message, MessageToolCall
from models.language import MessageEntity, MessageIntent, MessageSentiment
from models.memories import Memory, MemoryRelation
from models.plans import Plan, PlanExecution, PlanStep, PlanStepDependency, PlanStepExecution
from models.sandboxes import (
    Sandbox,
    SandboxConnection,
    SandboxExecution,
    SandboxFile,
    SandboxFinding,
    SandboxPort,
    SandboxRemoval,
    SandboxResources,
    SandboxSecurityPolicy,
    SandboxSnapshot,
    SandboxTemplate,
    SandboxTemplateVersion,
    SandboxUsage,
    SandboxWorkspace,
)
from models.states import (
    ConnectionVerdict,
    ExecutionReason,
    MemoryRelationType,
    MemoryType,
    MessageRole,
    MessageStatus,
    RunState,
    SandboxStatus,
    SentimentLabel,
)
from models.tools import ToolExecution, ToolParameter
from services import memories
from services.base import Deps, Work, work
from tests.api.people import sign_up
from tests.fixtures import Api, Person

Ids = dict[str, str]
SECRET = "sesame-of-"


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


async def belongings(unit: Work, ids: Ids, shared: Ids, secret: str) -> Ids:
    """Give a user one of everything; `ids` name the user and a sign-in, and are added to."""
    await _conversation(unit, ids, shared, secret)
    await _memories(unit, ids, secret)
    await _plan(unit, ids, secret)
    await _sandbox(unit, ids, shared, secret)
    await unit.session.execute(
        update(Message)
        .where(Message.id == ids["Message"])
        .values(meta={"citedMemoryIds": [ids["Memory"]]})
    )
    context = Context(
        session_id=ids["Session"],
        message_id=ids["Message"],
        data={
            "messageIds": [ids["Question"]],
            "memories": [{"id": ids["Memory"], "score": 0.5}],
        },
    )
    await _add(unit, ids, "MessageContext", context)
    return ids


async def _add(unit: Work, ids: Ids, name: str, row: Any) -> None:
    row.id = new_id(row.prefix)
    ids[name] = row.id
    unit.session.add(row)
    await unit.session.flush()


async def _conversation(unit: Work, ids: Ids, shared: Ids, secret: str) -> None:
    await _add(unit, ids, "Conversation", Conversation(user_id=ids["User"], title=secret))
    unit.open_topic(f"conversation:{ids['Conversation']}")
    question = Message(
        conversation_id=ids["Conversation"],
        user_id=ids["User"],
        role=MessageRole.USER,
        content=secret,
    )
    await _add(unit, ids, "Question", question)
    answer = Message(
        conversation_id=ids["Conversation"],
        user_id=ids["User"],
        reply_to_id=ids["Question"],
        role=MessageRole.ASSISTANT,
        status=MessageStatus.FAILED,
        content=secret,
        error_code="UNAVAILABLE",
        error_message=secret,
    )
    await _add(unit, ids, "Message", answer)
    execution = ToolExecution(
        tool_id=shared["Tool"],
        user_id=ids["User"],
        parameters={"code": secret},
        result={"text": secret},
        status=RunState.COMPLETED,
    )
    await _add(unit, ids, "ToolExecution", execution)
    call = MessageToolCall(
        message_id=ids["Message"],
        tool_execution_id=ids["ToolExecution"],
        call_id="call_0",
        round=0,
        position=0,
        text_offset=0,
        tool_name="recall",
        arguments=secret,
        status=RunState.COMPLETED,
    )
    await _add(unit, ids, "MessageToolCall", call)
    understood: dict[str, Any] = {
        "MessageSentiment": MessageSentiment(label=SentimentLabel.NEUTRAL, score=0.0),
        "MessageIntent": MessageIntent(name=secret, confidence=0.5),
        "MessageEntity": MessageEntity(
            type="CODE", name="code", value=secret, start_pos=0, end_pos=len(secret)
        ),
    }
    for name, row in understood.items():
        row.message_id = ids["Message"]
        await _add(unit, ids, name, row)


async def _memories(unit: Work, ids: Ids, secret: str) -> None:
    def memory(content: str, **values: Any) -> Memory:
        return Memory(
            user_id=ids["User"],
            type=MemoryType.SEMANTIC,
            content=content,
            content_hash=content,
            source_message_id=ids["Question"],
            **values,
        )

    await _add(unit, ids, "Memory", memory(secret))
    await _add(unit, ids, "NearMemory", memory(f"{secret} near"))
    await _add(unit, ids, "OldMemory", memory(f"{secret} old", superseded_by_id=ids["Memory"]))
    for source, target in (("Memory", "NearMemory"), ("NearMemory", "Memory")):
        relation = MemoryRelation(
            source_memory_id=ids[source],
            target_memory_id=ids[target],
            relation_type=MemoryRelationType.RELATED,
            strength=0.9,
        )
        await _add(unit, ids, f"{source}Relation", relation)


async def _plan(unit: Work, ids: Ids, secret: str) -> None:
    await _add(unit, ids, "Plan", Plan(user_id=ids["User"], title=secret, description=secret))
    for index, name in enumerate(("FirstStep", "PlanStep")):
        step = PlanStep(plan_id=ids["Plan"], order_index=index, description=secret)
        await _add(unit, ids, name, step)
    edge = PlanStepDependency(step_id=ids["PlanStep"], depends_on_id=ids["FirstStep"])
    await _add(unit, ids, "PlanStepDependency", edge)
    execution = PlanExecution(
        plan_id=ids["Plan"], user_id=ids["User"], status=RunState.COMPLETED, result={"0": secret}
    )
    await _add(unit, ids, "PlanExecution", execution)
    unit.open_topic(f"plan-execution:{ids['PlanExecution']}")
    run = PlanStepExecution(
        execution_id=ids["PlanExecution"],
        step_id=ids["PlanStep"],
        tool_execution_id=ids["ToolExecution"],
        status=RunState.COMPLETED,
        output=secret,
    )
    await _add(unit, ids, "PlanStepExecution", run)


async def _sandbox(unit: Work, ids: Ids, shared: Ids, secret: str) -> None:
    sandbox = Sandbox(
        user_id=ids["User"],
        template_id=shared["SandboxTemplate"],
        conversation_id=ids["Conversation"],
        status=SandboxStatus.STOPPED,
        driver="bubblewrap",
        node_id="local",
        image_name="none",
    )
    await _add(unit, ids, "Sandbox", sandbox)
    inside: dict[str, Any] = {
        "SandboxWorkspace": SandboxWorkspace(),
        "SandboxSnapshot": SandboxSnapshot(
            user_id=ids["User"], node_id="local", name=secret, path="none", sha256="0" * 64
        ),
        "SandboxExecution": SandboxExecution(
            user_id=ids["User"],
            command=secret,
            stdout=secret,
            status=RunState.COMPLETED,
            reason=ExecutionReason.EXITED,
            exit_code=0,
            resource_usage={"cpu_ms": 1.0},
            environment={"TOKEN": secret},
            terminal_rows=24,
            terminal_cols=80,
        ),
        "SandboxResources": SandboxResources(
            cpu_limit=1, memory_limit=1, disk_limit=1, pids_limit=1, timeout_s=1
        ),
        "SandboxSecurityPolicy": SandboxSecurityPolicy(
            network_policy={"mode": "allow", "rules": [{"host": f"{secret}.test", "ports": [80]}]},
            syscall_policy={},
            mount_policy={},
            env_variables={"TOKEN": secret},
            capabilities=[],
        ),
        "SandboxUsage": SandboxUsage(),
        "SandboxFile": SandboxFile(path=f"{secret}.txt"),
        "SandboxFinding": SandboxFinding(
            user_id=ids["User"], path=f"{secret}.txt", rule=secret, engine="yara", sha256="0" * 64
        ),
        "SandboxPort": SandboxPort(container_port=80, host_port=8080),
        "SandboxNetworkAccess": SandboxConnection(
            host=f"{secret}.test", port=80, verdict=ConnectionVerdict.DENIED
        ),
    }
    for name, row in inside.items():
        row.sandbox_id = ids["Sandbox"]
        await _add(unit, ids, name, row)
    ids["SandboxSecurity"] = ids["SandboxSecurityPolicy"]


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
