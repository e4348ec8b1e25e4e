"""One of everything that a person may own."""

from typing import Any

from sqlalchemy import update

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
    SandboxResources,
    SandboxSecurityPolicy,
    SandboxSnapshot,
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
from models.tools import ToolExecution
from services.base import Work

Ids = dict[str, str]
SECRET = "sesame-of-"


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
