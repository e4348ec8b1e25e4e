"""Programs from Debian's packages, where this process may install them."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.servers.base import Place, UnavailableError, program, run_once

_POLICY = Path("/usr/sbin/policy-rc.d")
_FORBID = "#!/bin/sh\n# Put here while the tests install packages: start no service.\nexit 101\n"
_APT = ("apt-get", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0", "-qq")
_UPDATE_TIMEOUT_S = 300.0
_INSTALL_TIMEOUT_S = 900.0

_one_at_a_time = asyncio.Lock()
_updated = False


def installable() -> str | None:
    """Give None if packages can be installed here, else the reason why not."""
    if program("apt-get") is None:
        return "this is not Debian"
    if os.geteuid() != 0:
        return "only root may install packages"
    if os.environ.get("NOOSPHERE_TEST_INSTALL", "1") == "0":
        return "NOOSPHERE_TEST_INSTALL=0 forbids it"
    return None


async def find(place: Place, programs: dict[str, str]) -> dict[str, str]:
    """Give the paths of `programs` (name → package), installing the packages of missing ones.

    Raises UnavailableError if one is missing and cannot be installed.
    """
    missing = {name: package for name, package in programs.items() if program(name) is None}
    if missing:
        await install(place, sorted(set(missing.values())), f"{', '.join(missing)} not found")
    found = {name: program(name) for name in programs}
    if absent := [name for name, path in found.items() if path is None]:
        raise UnavailableError(f"the packages were installed, but not {', '.join(absent)}")
    return {name: path for name, path in found.items() if path is not None}


async def install(place: Place, packages: list[str], why: str) -> None:
    """Install Debian packages without starting what they bring.

    Raises UnavailableError if this process may not, or if apt-get fails.
    """
    global _updated
    if reason := installable():
        raise UnavailableError(f"{why}; install {' '.join(packages)} ({reason})")
    async with _one_at_a_time:
        place.say(f"installing {' '.join(packages)}")
        with _no_services():
            if not _updated:
                await _apt("update", timeout_s=_UPDATE_TIMEOUT_S)
                _updated = True
            await _apt(
                *("install", "-y", "--no-install-recommends", *packages),
                timeout_s=_INSTALL_TIMEOUT_S,
            )


async def idle() -> None:
    """Return when no package is being installed: dpkg must not be cut off."""
    async with _one_at_a_time:
        return


async def _apt(*arguments: str, timeout_s: float) -> None:
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
    code, output = await run_once(*_APT, *arguments, timeout_s=timeout_s, env=quiet)
    if code != 0:
        raise UnavailableError(f"apt-get {arguments[0]} failed: {output[-1000:].strip()}")


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Forbid services to start. A policy of the machine's own that does so is left alone."""
    if _forbids():
        yield
        return
    saved = _POLICY.read_bytes() if _POLICY.exists() else None
    _POLICY.write_text(_FORBID)
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        if saved is None:
            _POLICY.unlink()
        else:
            _POLICY.write_bytes(saved)


def _forbids() -> bool:
    if not os.access(_POLICY, os.X_OK):
        return False
    asked = subprocess.run(
        [_POLICY, "--quiet", "mariadb", "start"], check=False, capture_output=True, timeout=10
    )
    return asked.returncode == 101
