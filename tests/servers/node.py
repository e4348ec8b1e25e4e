"""Node.js and npm, for the client libraries and audits that are written in JavaScript.

Debian 12 has a Node.js that is too old for what builds the page of GraphiQL. A newer one comes from
npm then, as the lock file of `tests/servers/nodejs` has it, once per machine.
"""

import asyncio
import os
import platform
import subprocess
from pathlib import Path

from tests.servers.base import Place, UnavailableError, run_once
from tests.servers.installed import npm_packages
from tests.servers.packages import find

PER_WORKER = False

_OLDEST = (20, 19)
_LOCK = Path(__file__).with_name("nodejs")
_INSTALL_S = 300.0


async def start(place: Place) -> dict[str, str]:
    """Give the paths of the two programs; where the system's is too old, a PATH as well."""
    programs = await find(place, {"node": "nodejs", "npm": "npm"})
    node, npm = programs["node"], programs["npm"]
    version = await _version(node)
    if version >= _OLDEST:
        return {"NOOSPHERE_TEST_NODE": node, "NOOSPHERE_TEST_NPM": npm}
    place.say(f"installing a Node.js newer than {'.'.join(map(str, version))}")
    node = await asyncio.to_thread(_newer, npm)
    await _version(node)
    # Programs of packages, and npm itself, look for `node` there.
    path = os.pathsep.join((str(Path(node).parent), os.environ.get("PATH", os.defpath)))
    return {"NOOSPHERE_TEST_NODE": node, "NOOSPHERE_TEST_NPM": npm, "PATH": path}


async def _version(node: str) -> tuple[int, ...]:
    code, output = await run_once(node, "--version", timeout_s=20)
    if code != 0:
        raise UnavailableError(f"{node} does not run: {output[-1000:].strip()}")
    return tuple(int(part) for part in output.strip().removeprefix("v").split(".")[:2])


def _newer(npm: str) -> str:
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine())
    if machine is None:
        raise UnavailableError(f"there is no newer Node.js for {platform.machine()}")
    try:
        folder = npm_packages(_LOCK, "nodejs", npm=npm, timeout_s=_INSTALL_S)
    except subprocess.CalledProcessError as error:
        told = (error.stderr or b"").decode(errors="replace")[-1000:].strip()
        raise UnavailableError(f"npm could not install a newer Node.js: {told}") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"npm took more than {_INSTALL_S:.0f} s for Node.js") from error
    return str(folder / "node_modules" / f"node-linux-{machine}" / "bin" / "node")
