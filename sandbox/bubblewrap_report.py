"""What the embedded driver enforces on this machine, and what it says about it."""

from sandbox import bubblewrap_command as command
from sandbox import cgroups
from sandbox.base import Capabilities, Enforcement
from sandbox.inside import barriers


def report(
    name: str,
    *,
    program: command.Program | None,
    hierarchies: cgroups.Hierarchies | None,
    has_uids: bool,
    no_images: str | None,
) -> Capabilities:
    """The report, given that sandboxes can be made at all.

    `no_images` says why workspaces cannot be on disk; None if they can.
    """
    groups = hierarchies.folders if hierarchies else {}
    full, partly, none = Enforcement.ENFORCED, Enforcement.PER_PROCESS, Enforcement.UNAVAILABLE
    memory = partly
    if hierarchies is not None and "memory" in groups:
        memory = full if hierarchies.has_memory else none
    items = {
        "isolation": full,
        "network": full,
        "syscalls": full,
        "agent": full,
        "disk": full,
        "disk_image": full if no_images is None else none,
        "pids": full,
        "memory": memory,
        "cpu": full if "cpu" in groups else none,
        "pause": full if "freezer" in groups else none,
        "inodes": full if has_uids else none,
        "uid": full if has_uids else none,
        "network_bandwidth": none,
    }
    notes = []
    if program is not None:
        notes.append(f"bubblewrap {program.version} ({program.source})")
    if hierarchies is None:
        notes.append("No writable cgroups: CPU is not limited, memory only per process.")
    else:
        notes.append(f"cgroups version {hierarchies.version}: {', '.join(sorted(groups))}")
        if "memory" in groups and not hierarchies.bounds_swap:
            notes.append(
                "The kernel does not count swap (swapaccount=1): memory is limited without it."
            )
        if hierarchies.version == 1:
            notes.append("What waits in TCP sockets counts in part (cgroups version 1).")
    if barriers.landlock(*barriers.VERSION_ASKED) < barriers.LEAST_VERSION:
        notes.append(
            "The kernel has no Landlock (5.19): code that lowers its OOM score can have its own"
            " sandbox ended for want of memory."
        )
    if not has_uids:
        notes.append("Not root: sandboxes share the server's user on the host.")
    if no_images is not None:
        notes.append(no_images)
    return Capabilities(name, items, tuple(notes))


def changeable(hierarchies: cgroups.Hierarchies | None, *, has_own_files: bool) -> set[str]:
    """Limits that can change while a sandbox runs; those set on processes cannot."""
    groups = hierarchies.folders if hierarchies else {}
    names = {"memory": "memory_bytes", "cpu": "cpu_millis", "pids": "pids"}
    found = {"output_bytes"} | {name for key, name in names.items() if key in groups}
    return found | ({"disk_bytes", "inodes"} if has_own_files else set())
