"""Who may see which fields, and what shapes there are."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """What a field leads to, tried from the row `target` (by default its type's own)."""

    kind: str
    target: str | None = None


PLAIN = Field("PLAIN")
PART = Field("PART")
LINK = Field("LINK")
SHARED = Field("SHARED")
PERSONAL = Field("PERSONAL")
MOMENT = Field("MOMENT")


def _plain(names: str) -> dict[str, Field]:
    return dict.fromkeys(names.split(), PLAIN)


FIELDS: dict[str, dict[str, Field]] = {
    "User": _plain("id username displayName email isActive createdAt updatedAt lastLoginAt")
    | {
        "roles": PART,
        "sessions": PERSONAL,
        "memories": PART,
        "conversations": PART,
        "plans": PART,
        "sandboxes": PART,
        "sandboxQuota": PART,
    },
    "Role": _plain("id name description permissions") | {"sandboxQuota": SHARED},
    "Session": _plain(
        "id ipAddress userAgent createdAt lastActiveAt expiresAt isCurrent isExpired"
    ),
    "Conversation": _plain("id title status createdAt updatedAt")
    | {"user": PART, "messages": PART, "presence": PART, "sandboxes": LINK},
    "Message": _plain(
        "id role content status createdAt updatedAt completedAt provider model inputTokens "
        "outputTokens costUsd"
    )
    | {
        "conversation": PART,
        "author": LINK,
        "replyTo": LINK,
        "toolCalls": PART,
        "citedMemories": LINK,
        "context": PART,
        "error": PART,
        "sentiment": PART,
        "intents": PART,
        "entities": PART,
    },
    "MessageToolCall": _plain(
        "id toolName arguments status result round textOffset createdAt completedAt"
    )
    | {"execution": LINK, "message": PART},
    "MessageContext": _plain("id createdAt") | {"messages": LINK, "memories": LINK},
    "Memory": _plain(
        "id type content importance accessCount lastAccessedAt validFrom validUntil createdAt "
        "updatedAt isCurrent"
    )
    | {
        "user": PART,
        "sourceMessage": LINK,
        "supersededBy": Field("LINK", "OldMemory"),
        "supersedes": LINK,
        "related": LINK,
    },
    "Plan": _plain("id title description status startedAt completedAt createdAt updatedAt")
    | {"user": PART, "steps": PART, "executions": LINK},
    "PlanStep": _plain(
        "id orderIndex description tool arguments status startedAt completedAt executionDetails"
    )
    | {"plan": PART, "dependsOn": LINK},
    "PlanExecution": _plain("id status startedAt completedAt result errorDetails")
    | {"plan": LINK, "steps": PART},
    "PlanStepExecution": _plain(
        "id status attempt output result errorCode errorMessage startedAt completedAt"
    )
    | {"step": LINK, "toolExecution": LINK, "execution": PART},
    "Tool": _plain(
        "id name description category version isEnabled environment inputSchema timeoutSeconds "
        "createdAt updatedAt"
    )
    | {"parameters": SHARED},
    "ToolParameter": _plain("id name description type isRequired defaultValue"),
    "ToolExecution": _plain(
        "id parameters result status errorCode errorMessage createdAt startedAt completedAt"
    )
    | {"tool": SHARED, "user": PART},
    "SandboxTemplate": _plain(
        "id name description language imageName imageTag imageDigest version pythonVersion "
        "checkedAt isActive createdAt updatedAt"
    )
    | {"versions": SHARED, "resources": SHARED, "envVariables": SHARED},
    "SandboxTemplateVersion": _plain("id version imageDigest pythonVersion createdAt"),
    "Sandbox": _plain(
        "id status driver failure createdAt startedAt lastActiveAt pausedAt stoppedAt expiresAt "
        "stopRequestedAt idleTimeoutSeconds onExpiry isPersistent templateVersion imageDigest"
    )
    | {
        "user": PART,
        "conversation": LINK,
        "template": SHARED,
        "workspace": PART,
        "resources": PART,
        "security": PART,
        "ports": PART,
        "files": PART,
        "snapshots": PART,
        "usage": PART,
        "connections": PART,
        "findings": PART,
        "executions": PART,
        "processes": MOMENT,
    },
    "SandboxSnapshot": _plain(
        "id name sizeBytes contentBytes entries sha256 isAutomatic createdAt expiresAt"
    )
    | {"sandbox": LINK},
    "SandboxFinding": _plain("id path rule engine sha256 sizeBytes createdAt") | {"sandbox": PART},
    "RateLimitConfig": _plain("id pointsPerMinute createdAt updatedAt")
    | {"role": SHARED, "user": SHARED},
    "SandboxRemoval": _plain("id kind name reason node sandbox removedAt"),
    "SandboxWorkspace": _plain("id rootPath sizeBytes createdAt modifiedAt"),
    "SandboxResources": _plain(
        "id cpuMillis memoryBytes diskBytes networkBytesPerSecond pids timeoutSeconds"
    ),
    "SandboxSecurity": _plain("id capabilities network syscalls mounts")
    | {
        "envVariables": PART,
        "networkRules": PART,
    },
    "SandboxNetworkAccess": _plain(
        "id host address port verdict rule bytesIn bytesOut openedAt closedAt"
    ),
    "SandboxPort": _plain("id containerPort hostPort protocol description createdAt path"),
    "SandboxExecution": _plain(
        "id command workingDir timeoutSeconds status reason exitCode signal stdout stderr "
        "stdoutBytes stderrBytes isTruncated createdAt startedAt completedAt isInteractive "
        "isBackground outputLimitBytes pid stdinBytes argv"
    )
    | {
        "sandbox": PART,
        "user": LINK,
        "resourceUsage": PART,
        "environment": PART,
        "terminal": PART,
    },
}
# Types without rows of their own: each is seen only within the object or answer it is part of.
STRUCTURES = {
    "AuthSession",
    "MemoryMatch",
    "MessageError",
    "Sentiment",
    "Intent",
    "Entity",
    "PageInfo",
    "UserError",
    # Events of conversations
    "MessageAdded",
    "MessageDelta",
    "MessageCompleted",
    "MessageFailed",
    "ToolCallStarted",
    "ToolCallFinished",
    "ConversationDeleted",
    "ConversationReset",
    # Who looks at a conversation
    "ConversationPresence",
    "ConversationViewer",
    # What becomes of one's own things
    "ConversationChanged",
    "PlanChanged",
    "SandboxChanged",
    "MemoryChanged",
    "ViewerReset",
    # Events of executions of plans
    "PlanStepStarted",
    "PlanStepOutput",
    "PlanStepFinished",
    "PlanExecutionFinished",
    "PlanExecutionReset",
    # What is in a sandbox, and events of executions
    "SandboxEnvVariable",
    "SandboxNetworkRule",
    "SandboxAllowance",
    "SandboxTemplateResources",
    "SandboxQuota",
    "SandboxQuotaRule",
    "RateLimit",
    "SandboxFile",
    "SandboxResourceUsage",
    "SandboxTerminal",
    "SandboxProcess",
    "SandboxUsage",
    "SandboxOutputChunk",
    "SandboxExecutionExited",
    "SandboxOutputReset",
    "SandboxFileChanged",
    "SandboxFileQuarantined",
    "SandboxFilesReset",
}
# What only administrators see.
ADMINS = {"RateLimitConfig", "SandboxRemoval"}
# What every signed-in person sees.
EVERYBODYS = {"Role", "Tool", "ToolParameter", "SandboxTemplate", "SandboxTemplateVersion"}
