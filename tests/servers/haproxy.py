"""HAProxy, to run the reverse proxy's configuration."""

from tests.servers.base import Place
from tests.servers.packages import find

PER_WORKER = False


async def start(place: Place) -> dict[str, str]:
    """Give the path of the program; each test runs one of its own."""
    programs = await find(place, {"haproxy": "haproxy"})
    return {"NOOSPHERE_TEST_HAPROXY": programs["haproxy"]}
