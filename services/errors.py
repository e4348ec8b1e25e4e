"""What can go wrong in a way the caller can mend.

Everything that is not one of these is a bug: it rises, is logged with a request id and masked.
"""

from collections.abc import Sequence
from enum import StrEnum


class UserErrorCode(StrEnum):
    """Why a mutation refused its input."""

    INVALID = "INVALID"
    REQUIRED = "REQUIRED"
    NOT_FOUND = "NOT_FOUND"
    CONFLICT = "CONFLICT"
    FORBIDDEN = "FORBIDDEN"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    LIMIT = "LIMIT"
    QUOTA = "QUOTA"
    UNAVAILABLE = "UNAVAILABLE"


class UserError(Exception):
    """Something the user can fix; it becomes one entry of `errors` in a mutation's payload.

    `path` names the argument at fault from the mutation's arguments down, for example
    `("input", "steps", "2", "dependsOn")`.
    """

    def __init__(self, code: UserErrorCode, message: str, path: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.path = tuple(path)


class UserErrors(Exception):  # noqa: N818 - a group of user errors, named as one.
    """Several user errors found in one input, reported together."""

    def __init__(self, errors: Sequence[UserError]) -> None:
        super().__init__("; ".join(error.message for error in errors))
        self.errors = tuple(errors)


class RequestError(Exception):
    """A refusal of the whole request: a top-level GraphQL error with `extensions.code`.

    Used for sign-in, rate limits and malformed requests only. `retry_after_s`, where known, tells
    the client how many seconds to wait.
    """

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class UnauthenticatedError(RequestError):
    """The request carries no valid sign-in, or none at all where one is needed."""

    def __init__(
        self, message: str = "Sign in first: send the header `Authorization: Bearer TOKEN`."
    ) -> None:
        super().__init__("UNAUTHENTICATED", message)


class ForbiddenError(RequestError):
    """The viewer is known but may not do this."""

    def __init__(self, message: str) -> None:
        super().__init__("FORBIDDEN", message)


class RateLimitedError(RequestError):
    """Too many attempts; try again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__("RATE_LIMITED", message, retry_after_s)


class UnavailableError(RequestError):
    """A part the request needs (a bus, a driver, a provider) does not answer right now."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__("UNAVAILABLE", message, retry_after_s)
