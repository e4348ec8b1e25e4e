"""What can go wrong with a sandbox; what the user's own code returns is a result, not an error."""

import re
from enum import StrEnum

_HOST_PATHS = re.compile(
    r"(?<![\w.])/(?:var|run|root|home|proc|sys|usr|etc|opt|srv|tmp|mnt|media|data|private|Users)"
    r"(?:/[^\s:'\",;)\]]*)?"
)


def scrub(message: str) -> str:
    """The message without paths of the host (an engine's errors name its storage)."""
    return _HOST_PATHS.sub("(path)", message)


class SandboxError(Exception):
    """Base of all errors here; `message` is safe to show to a user.

    Messages that come from an engine or the system must be passed through `engine=`.
    """

    def __init__(self, message: str, *, engine: str = "") -> None:
        self.message = f"{message} {scrub(engine)}".strip() if engine else message
        super().__init__(self.message)


class NotFoundError(SandboxError):
    """No such sandbox."""


class InvalidArgumentError(SandboxError):
    """The request itself is wrong: a NUL byte, a command beyond 64 KB, a negative limit."""


class ConflictError(SandboxError):
    """The sandbox is in a state that does not allow this; `state` names it.

    `limit` is the field of `Limits` that could not be changed because of it.
    """

    def __init__(
        self, message: str, *, state: str, limit: str | None = None, engine: str = ""
    ) -> None:
        super().__init__(message, engine=engine)
        self.state = state
        self.limit = limit


class Resource(StrEnum):
    QUOTA = "quota"
    POOL = "pool"
    DISK = "disk"
    HOST = "host"
    SANDBOX = "sandbox"


class ResourceExhaustedError(SandboxError):
    """There is no room; `resource` says where."""

    def __init__(self, message: str, *, resource: Resource, engine: str = "") -> None:
        super().__init__(message, engine=engine)
        self.resource = resource


class TimeoutError_(SandboxError):  # noqa: N801, N818 - the built-in name is taken.
    """The engine or the agent did not answer in time (not: the user's code ran too long)."""


class SandboxLostError(SandboxError):
    """The sandbox or the way to it is gone."""


class PortError(SandboxError):
    """Nothing answers on a port inside, the port is taken, or the connection broke off."""


class PolicyDeniedError(SandboxError):
    """The policy forbids this."""


class PolicyUnsupportedError(SandboxError):
    """The driver cannot enforce the policy, so it refuses it."""


class DriverUnavailableError(SandboxError):
    """The driver cannot work here; the message says what to install."""


class TemplateError(SandboxError):
    """The image cannot be used: absent, or without the Python the agent needs."""


class FileErrorCode(StrEnum):
    NOT_FOUND = "NOT_FOUND"
    NOT_A_DIRECTORY = "NOT_A_DIRECTORY"
    IS_A_DIRECTORY = "IS_A_DIRECTORY"
    OUTSIDE = "OUTSIDE"
    TOO_LARGE = "TOO_LARGE"
    NO_SPACE = "NO_SPACE"
    EXISTS = "EXISTS"
    DENIED = "DENIED"


class FileError(SandboxError):
    """A file operation failed; `path` is the path as the caller gave it."""

    def __init__(self, code: FileErrorCode, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.path = path
