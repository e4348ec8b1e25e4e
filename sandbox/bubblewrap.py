"""The embedded driver: bubblewrap, without any daemon.

As root every sandbox has a host user, cgroups and filesystems of its own; unprivileged it keeps
the isolation and reports honestly which limits hold only per process. Sandboxes are children of
a spawner process and end with the server; what a killed server leaves (cgroups, records) is
found by `list` and cleared by `remove`.
"""

import asyncio
import hashlib
import logging
import os
import platform
import shutil
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from sandbox import agent as wire
from sandbox import bubblewrap_command as command
from sandbox import bubblewrap_leftovers as leftovers
from sandbox import cgroup_detect, cgroups, disk_images, seccomp
from sandbox.agent_file import AgentFile
from sandbox.base import (
    Capabilities,
    Channel,
    DriverEvent,
    DriverEventKind,
    ResourceUsage,
    SandboxHandle,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
    require,
)
from sandbox.bubblewrap_box import Box, remove_group, send
from sandbox.bubblewrap_change import change, usage
from sandbox.bubblewrap_report import changeable, report
from sandbox.bubblewrap_start import Means, launch, probe, to_end
from sandbox.changes import require_change
from sandbox.errors import (
    ConflictError,
    DriverUnavailableError,
    NotFoundError,
    PolicyUnsupportedError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    TemplateError,
)
from sandbox.events import Broadcast
from sandbox.limits import Limits
from sandbox.records import Record, Records, UidSlots, start_time
from sandbox.spawning import Spawner

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 1.0
IMAGE = leftovers.IMAGE


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
        self._sandboxes: dict[str, Box] = {}
        self._by_pid: dict[int, Box] = {}
        self._events = Broadcast()
        self._hierarchies: cgroups.Hierarchies | None = None
        self._program: command.Program | None = None
        self._interpreter: tuple[str, list[str]] = ("", [])
        self._copy: Path | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._source = wire.source()
        self._agent: AgentFile | None = None
        self._checked = False
        self._starting = asyncio.Lock()
        self._probing = asyncio.Lock()
        self._no_images: str | None = "Workspaces on disk were not tried."
        self._images_tried = False

    # Life of the driver.

    async def start(self) -> None:
        async with self._starting:
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
        self._agent = self._agent or AgentFile(self._interpreter[0])
        self._agent.descriptor(self._source)
        if os.geteuid() == 0:
            if not self._uids.available:
                raise DriverUnavailableError(
                    "As root each sandbox needs a user of its own, and no range of users is"
                    " mapped here. Start the server as an ordinary user."
                )
            if not command.reachable_by_others(Path(self._program.path)):
                self._copy = command.copy_for_all(self._program)
                path = str(command.copy_in(self._copy))
                self._program = replace(self._program, path=path)
        try:
            self._records.prepare()
        except OSError as error:
            raise DriverUnavailableError(
                "The state directory of the sandboxes cannot be written; check its owner."
            ) from error
        self._hierarchies = cgroup_detect.detect(self._namespace)

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
        if self._agent is not None:
            self._agent.close()
        self._events.close()

    async def check(self) -> None:
        """Make one small sandbox and take it away: nothing less shows that it works here."""
        if self._checked and self._spawner.is_running:
            return
        await self.start()
        try:
            await self._try_one(probe())
        except SandboxError as error:
            raise DriverUnavailableError(
                f"bubblewrap cannot make a sandbox here. {error.message} User namespaces must be"
                " allowed (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces"
                " above 0, and on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0)."
            ) from error
        self._checked = True

    async def _try_one(self, spec: SandboxSpec) -> None:
        await self._create(spec)
        await self.remove(spec.sandbox_id)

    async def _try_images(self) -> None:
        """Find out, once, whether workspaces can be on disk; only mounting one shows it."""
        async with self._probing:
            if self._images_tried:
                return
            reason = disk_images.why_not()
            if reason is None:
                try:
                    await self._try_one(probe("image"))
                except SandboxError as error:
                    reason = f"Workspaces cannot be on disk: {error.message}"
            self._no_images, self._images_tried = reason, True

    async def capabilities(self) -> Capabilities:
        try:
            await self.check()
        except DriverUnavailableError as error:
            return Capabilities(self.name, {}, unavailable=error.message)
        await self._try_images()
        return self._report()

    def _report(self) -> Capabilities:
        return report(
            self.name,
            program=self._program,
            hierarchies=self._hierarchies,
            has_uids=self._uids.available,
            no_images=self._no_images,
        )

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
        if spec.image_digest is not None:
            raise TemplateError("The host's own system has no digest to be known by.")
        await self.start()
        if spec.disk == "image":
            await self._try_images()
        require(self._report(), spec)
        return await self._create(spec)

    async def _create(self, spec: SandboxSpec) -> SandboxHandle:
        if spec.sandbox_id in self._sandboxes or self._records.read(spec.sandbox_id):
            raise ConflictError("The sandbox exists already.", state="exists")
        box = self._register(spec)
        try:
            await to_end(self._records.write, box.record)
            await launch(box, spec, self._means, self._spawner, self._note_pid)
            await to_end(self._records.write, box.record)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self.remove(spec.sandbox_id)))
            raise
        return box.handle

    @property
    def _means(self) -> Means:
        if self._program is None or self._agent is None:
            raise DriverUnavailableError("The driver is not started.")
        agent = self._agent.descriptor(self._source)
        images = self._state_dir / "images"
        return Means(self._program, self._interpreter, self._hierarchies, agent, images)

    def _register(self, spec: SandboxSpec) -> Box:
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
        box = Box(handle, group, uid, record, spec.disk, spec.limits.tmp_bytes)
        self._sandboxes[spec.sandbox_id] = box
        return box

    def _note_pid(self, box: Box, pid: int) -> None:
        box.record.pid = pid
        box.record.start = start_time(pid)
        self._by_pid[pid] = box
        if not box.record.start:
            self._on_exit(pid, 0)  # It ended before we were told of its start.

    def _on_exit(self, pid: int, status: int) -> None:
        box = self._by_pid.pop(pid, None)
        if box is None:
            return
        box.exited.set()
        if box.state is not SandboxState.STOPPED:
            self._count_ooms(box)
            box.state = SandboxState.STOPPED
            self._emit(DriverEventKind.DIED, box)
            if said := box.last_words():
                log.error("The agent of sandbox %s ended: %s", box.handle.sandbox_id, said)

    def _on_spawner_lost(self) -> None:
        """The kernel ends what the spawner started, but nobody reports it: make it so, and say it.

        A number that has become another process's since then is left alone.
        """
        for pid, sandbox in list(self._by_pid.items()):
            if sandbox.record.is_alive:
                send(pid, signal.SIGKILL)
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
        return await asyncio.to_thread(
            leftovers.listing, self._records, self._hierarchies, dict(self._sandboxes), labels
        )

    async def pause(self, sandbox_id: str) -> None:
        await self._freeze(self._running(sandbox_id), True)

    async def resume(self, sandbox_id: str) -> None:
        await self._freeze(self._running(sandbox_id), False)

    async def _freeze(self, box: Box, frozen: bool) -> None:
        if box.group is None or not (self._hierarchies and self._hierarchies.has_freezer):
            raise PolicyUnsupportedError("Sandboxes cannot be paused here: no writable cgroups.")
        wanted = SandboxState.PAUSED if frozen else SandboxState.RUNNING
        if box.state is wanted:
            return
        await box.freeze(frozen)
        box.state = wanted
        self._emit(DriverEventKind.PAUSED if frozen else DriverEventKind.RESUMED, box)

    async def stop(self, sandbox_id: str, grace_s: float = 0) -> None:
        """See the protocol. `grace_s` is how long processes get between SIGTERM and SIGKILL."""
        sandbox = self._find(sandbox_id)
        if sandbox.state is SandboxState.STOPPED and sandbox.exited.is_set():
            return
        if grace_s > 0 and sandbox.group is not None:
            await sandbox.terminate(grace_s)
        sandbox.state = SandboxState.STOPPED
        await sandbox.kill()

    async def remove(self, sandbox_id: str) -> None:
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            await leftovers.remove(self._records, self._hierarchies, sandbox_id)
            return
        sandbox.state = SandboxState.STOPPED
        await sandbox.kill()
        if sandbox.group is not None:
            await remove_group(sandbox.group)
        await asyncio.to_thread(self._records.remove, sandbox_id)
        sandbox.close()
        if sandbox.uid is not None:
            self._uids.release(sandbox.uid)
        self._sandboxes.pop(sandbox_id, None)

    async def update(self, sandbox_id: str, *, limits: Limits) -> Limits:
        """All limits change at once, or none; sizes only where the server mounted the files."""
        box = self._running(sandbox_id)
        limits.check(disk=box.disk)
        has_own_files = box.uid is not None and box.disk == "memory"
        able = changeable(self._hierarchies, has_own_files=has_own_files)
        async with box.changing:
            require_change(self._report(), box.handle, limits, able)
            await change(box, limits, self._spawner)
        return limits

    async def stats(self, sandbox_id: str) -> ResourceUsage:
        return await asyncio.to_thread(usage, self._find(sandbox_id))

    def events(self) -> AsyncIterator[DriverEvent]:
        return self._events.subscribe()

    # Helpers.

    def _find(self, sandbox_id: str) -> Box:
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            raise NotFoundError("There is no such sandbox.")
        return sandbox

    def _running(self, sandbox_id: str) -> Box:
        sandbox = self._find(sandbox_id)
        if sandbox.state is SandboxState.STOPPED:
            raise ConflictError("The sandbox has ended.", state=SandboxState.STOPPED)
        return sandbox

    def _emit(self, kind: DriverEventKind, sandbox: Box) -> None:
        self._events.emit(DriverEvent(kind, sandbox.handle.sandbox_id, datetime.now(UTC)))

    def _count_ooms(self, box: Box) -> None:
        if box.count_ooms():
            self._emit(DriverEventKind.OOM, box)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            for sandbox in list(self._sandboxes.values()):
                if sandbox.state is not SandboxState.STOPPED:
                    self._count_ooms(sandbox)
