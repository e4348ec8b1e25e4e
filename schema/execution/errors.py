"""Errors as clients see them: what they can act on is told, what is our fault is masked."""

import logging
from collections.abc import Iterable
from typing import Any

from graphql import GraphQLError

from services.errors import RequestError, UserError, UserErrors
from services.outages import outage

logger = logging.getLogger(__name__)

ErrorDict = dict[str, Any]
"""One entry of `errors`: message, and where known locations, path and extensions."""


def failure(code: str, message: str, **extensions: Any) -> ErrorDict:
    """Give an error without a place in the document."""
    return {"message": message, "extensions": {"code": code, **extensions}}


def request_failure(error: BaseException, request_id: str) -> ErrorDict:
    """Give the client's view of an exception; whatever is not meant for clients is logged."""
    cause = _unwrap(error)
    away = outage(cause)
    if away is not None:
        logger.warning("The database was away (request id %s): %s", request_id, cause)
        cause = away
    match cause:
        case RequestError():
            extra = {} if cause.retry_after_s is None else {"retryAfter": cause.retry_after_s}
            return failure(cause.code, cause.message, **extra)
        case UserError():
            return failure(cause.code.value, cause.message)
        case UserErrors():
            return failure(cause.errors[0].code.value, str(cause))
    logger.error(
        "A request failed (request id %s).",
        request_id,
        exc_info=cause,
        extra={"request_id": request_id},
    )
    return masked(request_id)


def request_id_of(context: Any) -> str:
    """Give the id by which logs and masked errors tell the request of a resolver's context."""
    return str(getattr(context, "request_id", None) or "unknown")


def out_of_time(timeout_s: float | None) -> ErrorDict:
    """Give the error of an operation that took longer than it may."""
    return failure(
        "TIMED_OUT",
        f"The operation took longer than {timeout_s:g} seconds and was stopped. "
        "Ask for less at a time.",
    )


def masked(request_id: str) -> ErrorDict:
    """Give the one error that stands for every bug."""
    return failure(
        "INTERNAL",
        f"Something went wrong on our side. Quote request id {request_id} when you report it.",
        requestId=request_id,
    )


def refusals(errors: Iterable[GraphQLError], code: str) -> list[ErrorDict]:
    """Format errors found before execution; those without a code of their own get `code`."""
    return [_with_code(error, code) for error in errors]


def execution_failures(errors: Iterable[GraphQLError] | None, request_id: str) -> list[ErrorDict]:
    """Format and mask what execution collected. One exception met by many fields is logged once."""
    logged: set[int] = set()
    return [_located(error, request_id, logged) for error in errors or ()]


def _located(error: GraphQLError, request_id: str, logged: set[int]) -> ErrorDict:
    cause = error.original_error
    if cause is None or isinstance(cause, GraphQLError):
        return _about_input(error)
    inner = _unwrap(cause)
    if isinstance(inner, RequestError | UserError | UserErrors) or outage(inner) is not None:
        told = request_failure(inner, request_id)
    else:
        if id(inner) not in logged:
            logged.add(id(inner))
            where = ".".join(str(part) for part in error.path or ())
            logger.error(
                "A resolver failed at %s (request id %s).",
                where or "the root",
                request_id,
                exc_info=inner,
                extra={"request_id": request_id},
            )
        told = masked(request_id)
    return {**error.formatted, **told}


def _about_input(error: GraphQLError) -> ErrorDict:
    """Give a failure of the executor's own, and whose mistake it is where that is the client's."""
    if not error.message.startswith(("Argument '", "Expected value of type")):
        return dict(error.formatted)
    told = _with_code(error, "BAD_USER_INPUT")
    # What follows is advice to whoever writes the schema.
    told["message"] = error.message.partition(" Field of type 'Maybe[")[0]
    return told


def _unwrap(error: BaseException) -> BaseException:
    """Give the one exception inside nested groups, as TaskGroups wrap a lone failure."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, GraphQLError) and error.original_error is not None:
        return _unwrap(error.original_error)
    return error


def _with_code(error: GraphQLError, code: str) -> ErrorDict:
    formatted: ErrorDict = dict(error.formatted)
    formatted["extensions"] = {"code": code, **(error.extensions or {})}
    return formatted
