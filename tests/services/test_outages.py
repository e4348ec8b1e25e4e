"""What is an outage of the database, and what is a bug."""

import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from services.outages import outage


def lost() -> DBAPIError:
    return DBAPIError("SELECT", None, Exception("no number"), connection_invalidated=True)


@pytest.mark.parametrize(
    "error",
    [
        PoolTimeoutError("no connection"),
        OperationalError("SELECT", {}, Exception(2003, "Can't connect to secret.host")),
        OperationalError("SELECT", {}, Exception(2013, "Lost connection")),
        OperationalError("SELECT", {}, Exception(1040, "Too many connections")),
        lost(),
    ],
)
def test_who_asks_meanwhile_is_told_to_try_again(error: Exception) -> None:
    told = outage(error)
    assert told is not None
    assert told.code == "UNAVAILABLE"
    assert told.retry_after_s
    assert "secret" not in told.message


@pytest.mark.parametrize(
    "error",
    [
        ValueError(2003),
        IntegrityError("INSERT", {}, Exception(1062, "Duplicate entry")),
        ProgrammingError("SELECT", {}, Exception(1064, "syntax")),
        OperationalError("SELECT", {}, Exception("no such table")),
        OperationalError("SELECT", {}, Exception()),
    ],
)
def test_everything_else_stays_a_bug(error: Exception) -> None:
    assert outage(error) is None
