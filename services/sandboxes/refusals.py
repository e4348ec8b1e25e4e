"""Errors of drivers and agents, in words for the user."""

from sandbox.errors import (
    ConflictError,
    DriverUnavailableError,
    FileError,
    FileErrorCode,
    InvalidArgumentError,
    NotFoundError,
    PolicyDeniedError,
    PolicyUnsupportedError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    TemplateError,
)
from services.errors import UserError, UserErrorCode

_CODES: tuple[tuple[type[SandboxError], UserErrorCode], ...] = (
    (InvalidArgumentError, UserErrorCode.INVALID),
    (PolicyUnsupportedError, UserErrorCode.INVALID),
    (PolicyDeniedError, UserErrorCode.FORBIDDEN),
    (TemplateError, UserErrorCode.INVALID),
    (ConflictError, UserErrorCode.CONFLICT),
    (NotFoundError, UserErrorCode.CONFLICT),
    (DriverUnavailableError, UserErrorCode.UNAVAILABLE),
)
_FILE_CODES = {
    FileErrorCode.NOT_FOUND: UserErrorCode.NOT_FOUND,
    FileErrorCode.TOO_LARGE: UserErrorCode.LIMIT,
    FileErrorCode.NO_SPACE: UserErrorCode.LIMIT,
    FileErrorCode.EXISTS: UserErrorCode.CONFLICT,
}


def explain(error: SandboxError, path: tuple[str, ...] = ()) -> UserError:
    """Give the user error for a driver's error; its message is free of host paths already."""
    if isinstance(error, FileError):
        return UserError(
            _FILE_CODES.get(error.code, UserErrorCode.INVALID), error.message, ("path",)
        )
    if isinstance(error, ResourceExhaustedError):
        is_own = error.resource in (Resource.SANDBOX, Resource.QUOTA, Resource.DISK)
        code = UserErrorCode.LIMIT if is_own else UserErrorCode.UNAVAILABLE
        return UserError(code, error.message, path)
    if isinstance(error, ConflictError) and error.limit is not None:
        return UserError(UserErrorCode.CONFLICT, error.message, ("resources", error.limit))
    code = next(
        (code for kind, code in _CODES if isinstance(error, kind)), UserErrorCode.UNAVAILABLE
    )
    return UserError(code, error.message, path)
