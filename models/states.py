"""One spelling of states, shared by tables, services and the schema.

The members' values are the schema's spelling; columns hold the lower-case form.
"""

from enum import StrEnum


class RunState(StrEnum):
    """Where a plan, a step or an execution stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    TIMED_OUT = "TIMED_OUT"
    SKIPPED = "SKIPPED"

    @property
    def is_final(self) -> bool:
        """Whether nothing can change it any more."""
        return self not in (RunState.PENDING, RunState.RUNNING)


class ConversationStatus(StrEnum):
    """Where a conversation stands in its owner's list."""

    ACTIVE = "ACTIVE"
    ARCHIVED = "ARCHIVED"
    DELETED = "DELETED"


class MessageRole(StrEnum):
    """Who speaks in a message."""

    USER = "USER"
    ASSISTANT = "ASSISTANT"
    SYSTEM = "SYSTEM"
    TOOL = "TOOL"


class MessageStatus(StrEnum):
    """How far the text of a message has come."""

    PENDING = "PENDING"
    STREAMING = "STREAMING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def is_final(self) -> bool:
        """Whether the text will not grow any more."""
        return self not in (MessageStatus.PENDING, MessageStatus.STREAMING)


class ToolEnvironment(StrEnum):
    """Where a tool runs."""

    HOST = "HOST"
    SANDBOX = "SANDBOX"
    BOTH = "BOTH"


class MemoryType(StrEnum):
    """What kind of thing is remembered."""

    EPISODIC = "EPISODIC"
    SEMANTIC = "SEMANTIC"
    PROCEDURAL = "PROCEDURAL"
    PREFERENCE = "PREFERENCE"


class MemoryRelationType(StrEnum):
    """How one memory stands to another."""

    SUPERSEDES = "SUPERSEDES"
    RELATED = "RELATED"


class SandboxStatus(StrEnum):
    """Where a sandbox stands in its life."""

    CREATING = "CREATING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    DELETED = "DELETED"

    @property
    def is_live(self) -> bool:
        """Whether it holds resources of the host."""
        return self in (SandboxStatus.CREATING, SandboxStatus.RUNNING, SandboxStatus.PAUSED)


class ExecutionReason(StrEnum):
    """Why an execution in a sandbox ended."""

    EXITED = "EXITED"
    TIMED_OUT = "TIMED_OUT"
    OOM_KILLED = "OOM_KILLED"
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    KILLED = "KILLED"
    SANDBOX_LOST = "SANDBOX_LOST"


class PortProtocol(StrEnum):
    """The transport of a sandbox's port."""

    TCP = "TCP"
    UDP = "UDP"


class SandboxExpiry(StrEnum):
    """What happens to a sandbox whose time is over."""

    STOP = "STOP"
    PAUSE = "PAUSE"


class FileVerdict(StrEnum):
    """What a scan says of a file."""

    CLEAN = "CLEAN"
    INFECTED = "INFECTED"
    UNSCANNED = "UNSCANNED"


class ConnectionVerdict(StrEnum):
    """What became of a connection that code in a sandbox asked for."""

    ALLOWED = "ALLOWED"
    DENIED = "DENIED"
    FAILED = "FAILED"


class SentimentLabel(StrEnum):
    """The tone of a message."""

    POSITIVE = "POSITIVE"
    NEGATIVE = "NEGATIVE"
    NEUTRAL = "NEUTRAL"
    MIXED = "MIXED"
