"""A database that does not answer: told apart from bugs, so that clients know to try again."""

from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from services.errors import UnavailableError

_RETRY_AFTER_S = 1.0
# By the numbers of MySQL's errors: too many connections, shut down, no connection to be had, lost
# before or in the middle of an answer, ended by an operator or for idleness.
_AWAY = frozenset({1040, 1053, 1203, 1927, 2002, 2003, 2006, 2013, 2014, 2055, 4031})


def outage(error: BaseException) -> UnavailableError | None:
    """Give what a client is told of an error, if it is one of a database that is away."""
    if isinstance(error, PoolTimeoutError):
        message = "The database has more to do than it can right now. Try again in a moment."
        return UnavailableError(message, _RETRY_AFTER_S)
    if not isinstance(error, DBAPIError) or not _is_away(error):
        return None
    message = (
        "The database does not answer right now. Try again in a moment; a change that was asked "
        "for may have been made all the same."
    )
    return UnavailableError(message, _RETRY_AFTER_S)


def _is_away(error: DBAPIError) -> bool:
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    given = error.orig.args[:1] if error.orig is not None else ()
    return bool(given) and isinstance(given[0], int) and given[0] in _AWAY
