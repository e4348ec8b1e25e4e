"""kubectl, to see the double of Kubernetes as another client does."""

import json

from tests.servers.base import Place, UnavailableError, program, run_once

PER_WORKER = False

_OLDEST = (1, 23)  # The first that waits for what a path of JSON holds.


async def start(place: Place) -> dict[str, str]:
    """Give the path of the program. Debian 12 has an older one, so that none is installed."""
    path = program("kubectl")
    if path is None:
        raise UnavailableError("kubectl not found; install one of Kubernetes 1.23 or later")
    code, output = await run_once(path, "version", "--client", "--output", "json", timeout_s=20)
    if code != 0:
        raise UnavailableError(f"{path} does not run: {output[-1000:].strip()}")
    version = json.loads(output)["clientVersion"]
    if (int(version["major"]), int(version["minor"].rstrip("+"))) < _OLDEST:
        raise UnavailableError(f"kubectl {version['gitVersion']} is older than 1.23")
    return {"NOOSPHERE_TEST_KUBECTL": path}
