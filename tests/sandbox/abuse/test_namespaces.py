"""Namespaces and mounts: nothing can be made, entered, left or covered."""

import pytest

from tests.sandbox.abuse.attack import Attempt, attempts, is_contained
from tests.sandbox.conftest import Box

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLAGS = {
    "CLONE_NEWTIME": 0x80,
    "CLONE_NEWNS": 0x20000,
    "CLONE_NEWCGROUP": 0x2000000,
    "CLONE_NEWUTS": 0x4000000,
    "CLONE_NEWIPC": 0x8000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}
ALL = sum(FLAGS.values())
HIGH = 0xFFFFFFFF_00000000  # The kernel looks at the low 32 bits of clone's flags alone.
SIGCHLD = 17


@attempts(
    *(Attempt(f"unshare({n})", f"call('unshare', {f:#x})", "EPERM") for n, f in FLAGS.items()),
    Attempt("unshare(all namespaces)", f"call('unshare', {ALL:#x})", "EPERM"),
    Attempt("unshare(all namespaces, high bits)", f"call('unshare', {HIGH | ALL:#x})", "EPERM"),
    Attempt("unshare by the program", "print(subprocess.run(['unshare', '-Ur', 'id'],"
            " capture_output=True).returncode == 0)", "False"),
)  # fmt: skip
async def test_no_namespace_is_left(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


def clone(flags: int) -> str:
    return f"call('clone', {flags | SIGCHLD:#x}, 0, 0, 0, 0)"


@attempts(
    *(Attempt(f"clone({name})", clone(flag), "EPERM") for name, flag in FLAGS.items()),
    *(Attempt(f"clone({n}, high bits)", clone(HIGH | f), "EPERM") for n, f in FLAGS.items()),
    Attempt("clone(all namespaces)", clone(ALL), "EPERM"),
    Attempt(
        "clone3(CLONE_NEWUSER)",
        "import struct\n"
        "call('clone3', struct.pack('<11Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0), 88)",
        "ENOSYS",
    ),
)
async def test_no_process_is_born_into_a_namespace(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


@attempts(
    *(
        Attempt(
            f"setns({kind})",
            f"call('setns', os.open('/proc/self/ns/{kind}', os.O_RDONLY), 0)",
            "EPERM",
        )
        for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
    ),
    Attempt(
        "setns(pidfd of process 1)",
        "call('setns', raw(NUMBERS['pidfd_open'], 1, 0), 0x10000000 | 0x20000)",
        "EPERM",
    ),
    Attempt("namespaces of process 1", "attempt(lambda: os.open('/proc/1/ns/mnt', 0))", "EACCES"),
    Attempt("nsenter by the program", "print(subprocess.run(['nsenter', '-t', '1', '-m', 'id'],"
            " capture_output=True).returncode == 0)", "False"),
)  # fmt: skip
async def test_no_namespace_is_entered(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


@attempts(
    Attempt("mount a tmpfs", "call('mount', b'none', b'/tmp', b'tmpfs', 0, 0)", "EPERM"),
    Attempt("mount proc", "call('mount', b'proc', b'/tmp', b'proc', 0, 0)", "EPERM"),
    Attempt("mount cgroup2", "call('mount', b'none', b'/tmp', b'cgroup2', 0, 0)", "EPERM"),
    Attempt("mount overlay", "call('mount', b'none', b'/tmp', b'overlay', 0,"
            " b'lowerdir=/,upperdir=/tmp,workdir=/workspace')", "EPERM"),
    Attempt("bind / to /tmp", "call('mount', b'/', b'/tmp', 0, 0x1000, 0)", "EPERM"),
    Attempt("remount / writable", "call('mount', 0, b'/', 0, 0x20 | 0x1000, 0)", "EPERM"),
    Attempt("remount /proc/sys writable", "call('mount', 0, b'/proc/sys', 0, 0x1020, 0)", "EPERM"),
    Attempt("move /proc", "call('mount', b'/proc', b'/tmp', 0, 0x2000, 0)", "EPERM"),
    Attempt("unmount /proc", "call('umount2', b'/proc', 2)", "EPERM"),
    Attempt("unmount a mask", "call('umount2', b'/proc/kcore', 2)", "EPERM"),
    Attempt("pivot_root", "call('pivot_root', b'/tmp', b'/tmp')", "EPERM"),
    Attempt("chroot", "call('chroot', b'/tmp')", "EPERM"),
    Attempt("open_tree", "call('open_tree', -100, b'/', 1)", "EPERM"),
    Attempt("fsopen", "call('fsopen', b'tmpfs', 0)", "EPERM"),
    Attempt("fsconfig", "call('fsconfig', 0, 6, 0, 0, 0)", "EPERM"),
    Attempt("fsmount", "call('fsmount', 0, 0, 0)", "EPERM"),
    Attempt("fspick", "call('fspick', -100, b'/', 0)", "EPERM"),
    Attempt("move_mount", "call('move_mount', -1, b'', -1, b'', 0)", "EPERM"),
    Attempt("mount_setattr", "call('mount_setattr', -100, b'/', 0, 0, 0)", "EPERM"),
)  # fmt: skip
async def test_no_mount_is_made_or_changed(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


async def test_an_ordinary_process_is_still_born(box: Box) -> None:
    # Were everything refused, the refusals above would prove nothing.
    await is_contained(box, Attempt("", "pid = os.fork()\nif pid == 0: os._exit(0)\n"
                                        "print(os.waitpid(pid, 0)[1])", "0"))  # fmt: skip
