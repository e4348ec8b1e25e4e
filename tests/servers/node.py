"""Node.js and npm, for the client libraries and audits that are written in JavaScript."""

from tests.servers.base import Place, UnavailableError, run_once
from tests.servers.packages import find

PER_WORKER = False

_OLDEST = 18


async def start(place: Place) -> dict[str, str]:
    """Give the paths of the two programs."""
    programs = await find(place, {"node": "nodejs", "npm": "npm"})
    code, output = await run_once(programs["node"], "--version", timeout_s=20)
    version = output.strip().removeprefix("v")
    if code != 0 or int(version.partition(".")[0]) < _OLDEST:
        raise UnavailableError(f"Node.js {version} is older than {_OLDEST}")
    return {"NOOSPHERE_TEST_NODE": programs["node"], "NOOSPHERE_TEST_NPM": programs["npm"]}
