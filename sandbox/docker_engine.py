"""The Docker engine itself: reaching it, what it says it enforces, and its complaints."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import aiodocker
import aiohttp  # The transport of aiodocker, whose errors it lets through.
from aiodocker.exceptions import DockerError

from sandbox import docker_config
from sandbox.base import Capabilities, Enforcement
from sandbox.errors import (
    ConflictError,
    DriverUnavailableError,
    NotFoundError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    TemplateError,
    TimeoutError_,
)

BROKEN = (DockerError, aiohttp.ClientError, OSError, TimeoutError)
ENGINE_TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 20.0  # systemd starts an engine when it is first asked: that is waited for, too.
_CONNECTION_FAILED = 900  # aiodocker's own status: no answer came at all.
# Runtimes whose sandboxes run on the kernel of the host.
_KERNEL_RUNTIMES = ("runc", "crun", "youki", "io.containerd.runc.v2")
_CGROUPS_V1_RUNTIME = "io.containerd.runtime.v1.linux"  # Listed everywhere by engines before 23.


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime as the engine knows it: its name, program, and the options it is run with."""

    name: str
    program: str
    options: frozenset[str]

    @property
    def has_own_kernel(self) -> bool:
        """Whether sandboxes run on another kernel than the host's, which counts for itself."""
        return self.program not in _KERNEL_RUNTIMES

    @property
    def is_gvisor(self) -> bool:
        return self.program.startswith(("runsc", "io.containerd.runsc"))


def runtime_of(info: Mapping[str, Any], runtime: str) -> Runtime:
    """The runtime of that name; the engine's own for ""."""
    used = runtime or str(info.get("DefaultRuntime") or "runc")
    found = (info.get("Runtimes") or {}).get(used) or {}
    # Newer engines name a shim of containerd in place of a program.
    program = PurePath(found.get("path") or found.get("runtimeType") or used).name
    given = (str(each).lstrip("-") for each in found.get("runtimeArgs") or ())
    return Runtime(used, program, frozenset(each.removesuffix("=true") for each in given))


async def reach(url: str | None) -> tuple[aiodocker.Docker, dict[str, Any]]:
    """A client of an engine that answers, and what it says of itself.

    Raises DriverUnavailableError.
    """
    try:
        docker = aiodocker.Docker(url=url)
    except (AssertionError, ValueError, OSError, DockerError) as error:
        raise DriverUnavailableError(
            f"No Docker engine was found. {docker_config.INSTALL}"
        ) from error
    # Every sandbox holds one connection, and the client would stop at a hundred.
    docker.session.connector._limit = 0  # type: ignore[union-attr]
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await docker.version()
            return docker, dict(await docker.system.info())
    except BROKEN as error:
        await docker.close()
        raise DriverUnavailableError(
            f"No Docker engine answers. {docker_config.INSTALL}"
        ) from error
    except BaseException:
        await docker.close()
        raise


def check(info: Mapping[str, Any], runtime: str) -> None:
    """Raise DriverUnavailableError unless the engine can hold a sandbox with this runtime."""
    if info.get("OSType") != "linux":
        raise DriverUnavailableError("The Docker engine does not run Linux containers.")
    if "seccomp" not in security(info):
        raise DriverUnavailableError(
            "The Docker engine was built without seccomp, so system calls cannot be filtered."
        )
    known = sorted(info.get("Runtimes") or ())
    if runtime and runtime not in known:
        raise DriverUnavailableError(
            f"The Docker engine has no runtime {runtime!r}; it has {', '.join(known) or 'none'}."
            f' Install it, name it under "runtimes" in the engine\'s daemon.json (for gVisor:'
            " runsc install) and restart the engine, or choose another runtime."
        )
    used = runtime_of(info, runtime)
    if used.name == _CGROUPS_V1_RUNTIME and info.get("CgroupVersion") == "2":
        raise DriverUnavailableError(
            f"The runtime {used.name} knows version 1 of cgroups alone, and this machine has"
            " version 2; choose runc or io.containerd.runc.v2."
        )
    if used.is_gvisor and "oci-seccomp" in used.options:
        raise DriverUnavailableError(
            f"The Docker engine runs {used.name} with --oci-seccomp. gVisor then answers EPERM"
            " where the policy of system calls says that a call is absent, so that no program"
            " starts. Take the option out of the engine's daemon.json: gVisor's kernel is in the"
            " place of the policy."
        )


def security(info: Mapping[str, Any]) -> str:
    return " ".join(info.get("SecurityOptions") or ())


def has_own_uids(info: Mapping[str, Any]) -> bool:
    """Whether sandboxes can have users of their own; remapped engines have only the first few."""
    found = security(info)
    return "userns" not in found and "rootless" not in found


def report(
    name: str, info: Mapping[str, Any], runtime: str, *, keeps_agent: bool | None = None
) -> Capabilities:
    """What the engine enforces with this runtime, by its own account.

    `keeps_agent` is what a trial found of a runtime with a kernel of its own.
    """
    full, none = Enforcement.ENFORCED, Enforcement.UNAVAILABLE

    def told(*keys: str) -> Enforcement:
        return full if all(info.get(key) for key in keys) else none

    used = runtime_of(info, runtime)
    is_kernels = not used.has_own_kernel
    has_groups = info.get("CgroupDriver") != "none"
    limits = has_groups and not (used.is_gvisor and "ignore-cgroups" in used.options)
    items = {
        "isolation": full,
        "network": full,
        "syscalls": full,
        "agent": full if is_kernels or keeps_agent else none,
        "disk": full,
        "disk_image": none,
        "inodes": full if is_kernels else none,
        "uid": full if has_own_uids(info) else none,
        # Without its swap a sandbox's memory is not limited.
        "memory": told("MemoryLimit", "SwapLimit") if limits else none,
        "cpu": told("CpuCfsPeriod", "CpuCfsQuota") if limits else none,
        # A kernel of its own counts processes of its own.
        "pids": told("PidsLimit") if limits and is_kernels else none,
        # gVisor stops its own tasks, without a freezer.
        "pause": full if has_groups or used.is_gvisor else none,
        "network_bandwidth": none,
    }
    notes = [
        f"Docker {info.get('ServerVersion', '?')}, runtime {used.name}",
        f"cgroups version {info.get('CgroupVersion', '1')}",
    ]
    if info.get("MemoryLimit") and not info.get("SwapLimit"):
        notes.append(
            "The kernel does not count swap (swapaccount=1): memory is limited without it."
        )
    if not is_kernels:
        notes.append(
            f"The runtime {used.name} has a kernel or rules of its own in place of our policy of"
            " system calls, and does not count inodes and processes as asked."
        )
        if keeps_agent is not True:
            found = "lets" if keeps_agent is False else "may let"
            notes.append(
                f"The runtime {used.name} {found} code reach the agent of its own sandbox, and"
                " forge the results of others that run there (gVisor before December 2025 does)."
            )
    if used.is_gvisor:
        notes.append(
            "gVisor cannot change the limits of a sandbox that runs. What exceeds its memory, or"
            " starts far more processes than asked for, can end the whole sandbox."
        )
    if has_groups and not limits:
        notes.append(
            f"The engine runs {used.name} with --ignore-cgroups: memory and CPU are not limited."
        )
    return Capabilities(name, items, tuple(notes))


class answers:  # noqa: N801 - reads as a verb where it is used.
    """Bounds a wait for the engine and puts its complaints into our words."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._timeout = asyncio.timeout(ENGINE_TIMEOUT_S)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise TimeoutError_(f"The Docker engine did not {self._what} in time.") from late
        if isinstance(error, DockerError):
            raise self._translate(error) from error
        if isinstance(error, aiohttp.ClientError | OSError):
            raise DriverUnavailableError("The Docker engine does not answer.") from error

    def _translate(self, error: DockerError) -> SandboxError:
        message = str(error.message)
        if error.status == _CONNECTION_FAILED:
            return DriverUnavailableError("The Docker engine does not answer.")
        if error.status == 404:
            return NotFoundError("There is no such sandbox or image.")
        if error.status in (304, 409):
            return ConflictError(
                f"The Docker engine cannot {self._what}.", state="conflict", engine=message
            )
        if "no space left" in message or "cannot allocate memory" in message:
            return ResourceExhaustedError(
                "The host has no room for the sandbox.", resource=Resource.HOST
            )
        return TemplateError(f"The Docker engine refuses to {self._what}.", engine=message)
