"""The servers that tests run on: started when first needed, ended with the run.

`require("docker")` in a fixture, or the marker `docker` on a test, is all a test has to say. The
coordinates are in the environment from then on. A variable that is set from the start names a
server of the user's own; nothing is started in its place.

| name       | variables                                               |
|------------|---------------------------------------------------------|
| mysql      | NOOSPHERE_TEST_MYSQL_URL                                 |
| redis      | NOOSPHERE_TEST_REDIS_URL                                 |
| docker     | NOOSPHERE_TEST_DOCKER_URL, NOOSPHERE_TEST_DOCKER_IMAGE   |
| bubblewrap | NOOSPHERE_TEST_BUBBLEWRAP                                |
| browser    | NOOSPHERE_TEST_BROWSER, NOOSPHERE_TEST_CHROMEDRIVER      |
| node       | NOOSPHERE_TEST_NODE, NOOSPHERE_TEST_NPM                  |
| ext4       | NOOSPHERE_TEST_MKFS                                      |
| kubectl    | NOOSPHERE_TEST_KUBECTL                                   |
| compose    | NOOSPHERE_TEST_COMPOSE                                   |
| haproxy    | NOOSPHERE_TEST_HAPROXY                                   |
| clamd      | NOOSPHERE_TEST_CLAMD                                     |
| network    | NOOSPHERE_TEST_IP                                        |
| runsc      | NOOSPHERE_TEST_RUNSC_URL, NOOSPHERE_TEST_RUNSC_IMAGE     |
"""

import os
from typing import NoReturn

from tests.servers.base import UnavailableError
from tests.servers.client import Session, coordinates

__all__ = ["Session", "UnavailableError", "coordinates", "give_up", "require", "required"]


def required() -> frozenset[str]:
    """Give the names in NOOSPHERE_TEST_REQUIRE, which a run may not go without."""
    names = os.environ.get("NOOSPHERE_TEST_REQUIRE", "").replace(",", " ").split()
    return frozenset(names)


def require(name: str) -> dict[str, str]:
    """Give the environment variables of a server, started now if it was not yet.

    Skips the calling test, saying why, if the server cannot be had here; fails it if
    NOOSPHERE_TEST_REQUIRE names the server.
    """
    try:
        return coordinates(name)
    except UnavailableError as error:
        reason = str(error)
    return give_up(name, reason)


def give_up(name: str, reason: str) -> NoReturn:
    """Skip the calling test for want of a server, or fail it if NOOSPHERE_TEST_REQUIRE names it."""
    # Here, because the keeper imports this package too and shall start at once.
    import pytest

    if name in required():
        pytest.fail(f"NOOSPHERE_TEST_REQUIRE names {name}, but {reason}", pytrace=False)
    pytest.skip(f"no {name}: {reason}")
