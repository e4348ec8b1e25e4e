"""The node's half of the Kubernetes double: a Pod's container as a local process in bubblewrap.

It runs the manifest's own command as the manifest's user, with its volumes at their sizes, on a
root that cannot be written, without capabilities, under the system call policy if the manifest
asks for it, and with or without a way to the API server. What a node lacks can be set.
"""

import asyncio
import contextlib
import os
import re
import signal
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sandbox import seccomp

Output = Callable[[int, bytes], Awaitable[None]]
_READ_BYTES = 32 * 1024
_ROOT_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


def expand(word: str, env: Mapping[str, str]) -> str:
    """A word of a command with $(NAMES) replaced and $$ made $, as kubelets do."""
    return re.sub(
        r"\$\$|\$\((\w+)\)",
        lambda found: "$" if found[0] == "$$" else env.get(found[1], found[0]),
        word,
    )


class Container:
    """One running container. Its standard input stays open whoever comes and goes."""

    def __init__(self, process: asyncio.subprocess.Process, output: Output) -> None:
        self._process = process
        self._stdin = process.stdin
        assert self._stdin is not None
        self._pumps = [
            asyncio.ensure_future(self._pump(number, reader, output))
            for number, reader in ((1, process.stdout), (2, process.stderr))
            if reader is not None
        ]

    @classmethod
    async def start(
        cls,
        pod: Mapping[str, Any],
        *,
        service: tuple[str, int],
        is_open: bool,
        oddities: Mapping[str, Any],
        output: Output,
    ) -> "Container":
        """`is_open` leaves the way to the API server open; `oddities` are what is done wrongly:
        `uid`, `size` and `seccomp` replace what the manifest asks for.
        """
        spec = pod["spec"]
        (container,) = spec["containers"]
        env = {entry["name"]: entry["value"] for entry in container.get("env") or ()}
        env |= {"KUBERNETES_SERVICE_HOST": service[0], "KUBERNETES_SERVICE_PORT": str(service[1])}
        words = [*container["command"], *container.get("args", ())]
        with tempfile.TemporaryFile() as program:
            arguments = _arguments(spec, container, oddities, is_open=is_open)
            profile = (spec.get("securityContext") or {}).get("seccompProfile") or {}
            if profile.get("type") != "Unconfined" and oddities.get("seccomp", True):
                program.write(seccomp.load_program())
                program.flush()
                program.seek(0)
                arguments += ["--seccomp", str(program.fileno())]
            for name, value in env.items():
                arguments += ["--setenv", name, value]
            # A user of the machine, for which its kernel counts processes.
            own: dict[str, Any] = {}
            if os.geteuid() == 0:
                uid = spec["securityContext"]["runAsUser"]
                own = {"user": uid, "group": uid, "extra_groups": []}
            process = await asyncio.create_subprocess_exec(
                *("bwrap", *arguments, "--", *(expand(word, env) for word in words)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(program.fileno(),),
                start_new_session=True,
                **own,
            )
        return cls(process, output)

    async def _pump(self, number: int, reader: asyncio.StreamReader, output: Output) -> None:
        while data := await reader.read(_READ_BYTES):
            await output(number, data)

    async def write(self, data: bytes) -> None:
        """Pass on what somebody attached has sent. A container that has ended takes nothing."""
        assert self._stdin is not None
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._stdin.write(data)
            await self._stdin.drain()

    async def wait(self) -> int:
        """Wait until the process and its output have ended; the exit code."""
        code = await self._process.wait()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        return code

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def aclose(self) -> None:
        self.kill()
        for pump in self._pumps:
            pump.cancel()
        await self._process.wait()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        if self._stdin is not None:
            self._stdin.close()
        # Its transport lets go of the pipes in a later turn of the loop.
        transport = getattr(self._process, "_transport", None)
        if transport is not None:
            transport.close()


def _arguments(
    spec: Mapping[str, Any],
    container: Mapping[str, Any],
    oddities: Mapping[str, Any],
    *,
    is_open: bool,
) -> list[str]:
    context = spec.get("securityContext") or {}
    uid = str(oddities.get("uid", context.get("runAsUser", 0)))
    arguments = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    if not is_open:
        arguments.append("--unshare-net")
    arguments += ["--uid", uid, "--gid", uid, "--hostname", spec.get("hostname", "pod")]
    arguments += ["--die-with-parent", "--as-pid-1", "--cap-drop", "ALL", "--clearenv"]
    arguments += ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]
    for name in _ROOT_LINKS:
        if os.path.islink(f"/{name}"):
            arguments += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
    if os.path.exists("/etc/ld.so.cache"):
        arguments += ["--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    volumes = {volume["name"]: volume["emptyDir"] for volume in spec.get("volumes") or ()}
    for mount in container.get("volumeMounts") or ():
        size = str(oddities.get("size", volumes[mount["name"]]["sizeLimit"]))
        arguments += ["--perms", "0777", "--size", size, "--tmpfs", mount["mountPath"]]
    if (container.get("securityContext") or {}).get("readOnlyRootFilesystem"):
        arguments += ["--remount-ro", "/dev", "--remount-ro", "/"]
    return [*arguments, "--chdir", container.get("workingDir", "/")]
