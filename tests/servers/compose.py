"""docker-compose, to read the compose file as its users' program does."""

import shutil

from tests.servers.base import Place, UnavailableError, run_once
from tests.servers.packages import find

PER_WORKER = False


async def start(place: Place) -> dict[str, str]:
    """Give the command, in words separated by spaces."""
    if docker := shutil.which("docker"):
        code, _ = await run_once(docker, "compose", "version", timeout_s=20)
        if code == 0:
            return {"NOOSPHERE_TEST_COMPOSE": f"{docker} compose"}
    programs = await find(place, {"docker-compose": "docker-compose"})
    path = programs["docker-compose"]
    code, output = await run_once(path, "version", timeout_s=20)
    if code != 0:
        raise UnavailableError(f"{path} does not run: {output[-1000:].strip()}")
    return {"NOOSPHERE_TEST_COMPOSE": path}
