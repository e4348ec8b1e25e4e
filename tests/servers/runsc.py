"""gVisor's runtime in a private Docker engine of its own, beside others that are set up wrongly.

It runs without KVM and without a network of its own, as sandboxes want it.
"""

import os
from typing import Any

from tests.servers import docker
from tests.servers.base import Place, UnavailableError, run_once
from tests.servers.packages import find

PER_WORKER = False

OPTIONS = ("--platform=ptrace", "--network=none")
_TRY_TIMEOUT_S = 60.0


async def start(place: Place) -> dict[str, str]:
    """Give the URL of an engine that knows the runtimes below, and an image in it with Python."""
    if os.geteuid() != 0:
        raise UnavailableError("only root may start a private Docker engine")
    program = (await find(place, {"runsc": "runsc"}))["runsc"]
    # Where the kernel lets it not work, its own words are worth more than those of an engine.
    code, output = await run_once(
        *(program, *OPTIONS, "--ignore-cgroups", "do", "/bin/true"), timeout_s=_TRY_TIMEOUT_S
    )
    if code != 0:
        raise UnavailableError(f"runsc does not work here: {output[-500:].strip()}")
    url = await docker.private_engine(place, {"runtimes": _runtimes(program)})
    await docker.provide_image(place, url)
    return {"NOOSPHERE_TEST_RUNSC_URL": url, "NOOSPHERE_TEST_RUNSC_IMAGE": docker.IMAGE}


def _runtimes(program: str) -> dict[str, dict[str, Any]]:
    return {
        "runsc": {"path": program, "runtimeArgs": list(OPTIONS)},
        "runsc-without-cgroups": {
            "path": program,
            "runtimeArgs": [*OPTIONS, "--ignore-cgroups"],
        },
        "runsc-with-seccomp": {"path": program, "runtimeArgs": [*OPTIONS, "--oci-seccomp"]},
        "runsc-broken": {"path": "/bin/false"},
    }
