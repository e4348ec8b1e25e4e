"""Where groups can be made here, and which limits the kernel really takes.

A controller counts only once a group of its own took every limit that we would set, so that
nothing is called enforced because a folder could be made.
"""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from sandbox import cgroups
from sandbox.limits import MIB, Limits

PROBE = "probe-"  # Groups of this name are none of any sandbox.
LEAF = "server"  # Where this process goes, out of a group that is to have others in it.
_PROBED = Limits(cpu_millis=500, memory_bytes=64 * MIB, pids=8, disk_bytes=MIB)
_ESCAPE = re.compile(r"\\([0-7]{3})")


def mounts(text: str) -> dict[str, Path]:
    """Mount points by v1 controller name, and of version 2 as `unified`, from mountinfo."""
    found: dict[str, Path] = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if len(fields) < 5 or len(tail) < 3:
            continue
        point = Path(_ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), fields[4]))
        if tail[0] == "cgroup2":
            found.setdefault("unified", point)
        elif tail[0] == "cgroup":
            for option in tail[2].split(","):
                if option in cgroups.CONTROLLERS:
                    found.setdefault(option, point)
    return found


def machine_has_swap() -> bool:
    """Whether anything can be swapped out at the moment."""
    return len(_read(Path("/proc/swaps")).splitlines()) > 1


def detect(
    namespace: str,
    *,
    mountinfo: str | None = None,
    has_swap: Callable[[], bool] = machine_has_swap,
) -> cgroups.Hierarchies | None:
    """Where this process may make groups, or None. Makes `namespace` there."""
    found = mounts(_read(Path("/proc/self/mountinfo")) if mountinfo is None else mountinfo)
    unified = found.pop("unified", None)
    if unified is not None and "memory" in _read(unified / "cgroup.controllers").split():
        folder = _delegated(unified, namespace)
        if folder is None:
            return None
        enabled = set(_read(folder / "cgroup.subtree_control").split())
        names = [name for name in ("memory", "cpu", "pids") if name in enabled]
        return _honest(2, dict.fromkeys((*names, "freezer"), folder), has_swap)
    made: dict[str, Path] = {}
    for controller, point in found.items():
        folder = point / "noosphere" / namespace
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            made[controller] = folder
    return _honest(1, made, has_swap)


def _honest(
    version: int, folders: dict[str, Path], has_swap: Callable[[], bool]
) -> cgroups.Hierarchies | None:
    """The folders whose controllers took their limits in a group made for the purpose."""
    holding: dict[str, Path] = {}
    bounds_swap = False
    for controller, folder in folders.items():
        one = cgroups.Hierarchies(version, {controller: folder})
        group = one.group(f"{PROBE}{controller}-{os.getpid()}")
        try:
            group.remove()
            group.create(_PROBED)
            if not group.holds(controller):
                continue
            if controller == "memory":
                bounds_swap = group.limits_swap or not has_swap()
        except OSError:
            continue
        finally:
            group.remove()
        holding[controller] = folder
    for folder in set(folders.values()) - set(holding.values()):
        with contextlib.suppress(OSError):
            folder.rmdir()
    return cgroups.Hierarchies(version, holding, bounds_swap) if holding else None


def _delegated(root: Path, namespace: str) -> Path | None:
    """A v2 folder with its controllers handed down: under the root, or under our own group."""
    own = root / _read(Path("/proc/self/cgroup")).rpartition("0::/")[2].strip()
    # Whoever looks again, after having gone into the leaf, is not to make groups within it.
    bases = (root, own.parent, own) if own.name == LEAF else (root, own)
    for base in dict.fromkeys(bases):
        folder = base / "noosphere" / namespace
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if _leave(base) and cgroups.enable(base):
                cgroups.enable(folder.parent)
                cgroups.enable(folder)
                return folder
        except OSError:
            pass
        for made in (folder, folder.parent, base / LEAF):
            with contextlib.suppress(OSError):
                made.rmdir()
    return None


def _leave(base: Path) -> bool:
    """Go out of a v2 group into a leaf of it, since a group with processes hands nothing down.

    False if others are in it, whose place is not ours to choose. Raises OSError.
    """
    if not cgroups.has_processes(base):
        return True
    if set(_read(base / "cgroup.procs").split()) != {str(os.getpid())}:
        return False
    leaf = base / LEAF
    leaf.mkdir(exist_ok=True)
    (leaf / "cgroup.procs").write_text("0")
    return True


def groups_of(pid: int, name: str, *, mountinfo: str | None = None) -> cgroups.Group | None:
    """The groups that a process of this machine is in, if `name` is part of their paths.

    The name proves that the number means the process asked for: an engine elsewhere, or one
    beyond a namespace, tells numbers that mean other processes here.
    """
    points = mounts(_read(Path("/proc/self/mountinfo")) if mountinfo is None else mountinfo)
    folders: dict[str, Path] = {}
    unified: Path | None = None
    for line in _read(Path(f"/proc/{pid}/cgroup")).splitlines():
        _, names, path = line.split(":", 2)
        if name not in path:
            continue
        if not names and "unified" in points:
            unified = points["unified"] / path.lstrip("/")
        for controller in names.split(","):
            if controller in points:
                folders[controller] = points[controller] / path.lstrip("/")
    if "memory" in folders:
        version = 1
    elif unified is not None:
        version, folders = 2, dict.fromkeys(("memory", "cpu", "pids", "freezer"), unified)
    else:
        return None
    if not all(folder.is_dir() for folder in folders.values()):
        return None
    return cgroups.Group(cgroups.Hierarchies(version, {}), folders=folders)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
