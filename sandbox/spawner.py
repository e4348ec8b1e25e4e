"""A small process of its own that starts bubblewrap for the server.

Forking a server with threads is unsafe and slow, and bubblewrap's --die-with-parent fires when
the thread that forked it ends. This process has one thread and little memory. It ends when the
server does (its socket then closes), and with it every sandbox.

It speaks JSON over a SOCK_SEQPACKET socket on descriptor 0. A request brings descriptors:
standard error, the channel, the system call filter, then files. In the child they have the
numbers 2, 10, 11, 12, …; a disk image, if there is one, comes last and is mounted only. Another
kind of request changes the sizes of filesystems that were mounted for a sandbox. This file runs
alone and imports the standard library only.
"""

import array
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from typing import Any

CLONE_NEWNS = 0x20000
MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_REC, MS_PRIVATE = 2, 4, 0x20, 0x4000, 0x40000
LOOP_CTL_GET_FREE, LOOP_CONFIGURE, LO_FLAGS_AUTOCLEAR = 0x4C82, 0x4C0A, 4
LOOP_TRIES = 64  # Others on the machine may take the device that was free a moment ago.
STAGE = "/mnt"  # Covered by a private mount in the child; nothing of the host changes.
FIRST_FD = 10
LIBC = ctypes.CDLL(None, use_errno=True)


def check(code: int, what: str) -> None:
    if code != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: bytes, target: str, kind: bytes, flags: int, data: str) -> None:
    check(
        LIBC.mount(source, target.encode(), kind, ctypes.c_ulong(flags), data.encode()),
        f"mount {kind.decode()}",
    )


def stage(filesystems: list[dict[str, Any]], image: int) -> None:
    """Mount filesystems with limits on size and inodes, which bubblewrap itself cannot limit."""
    check(LIBC.unshare(CLONE_NEWNS), "unshare")
    mount(b"none", "/", b"none", MS_REC | MS_PRIVATE, "")
    mount(b"noosphere", STAGE, b"tmpfs", MS_NOSUID | MS_NODEV, "size=64k,mode=0755")
    for each in filesystems:
        folder = f"{STAGE}/{each['name']}"
        os.mkdir(folder)
        if each.get("image"):
            mount_image(image, folder)
        else:
            mount(b"noosphere", folder, b"tmpfs", MS_NOSUID | MS_NODEV, each["options"])


def mount_image(image: int, folder: str) -> None:
    """Mount a file; the loop device under it goes with the last mount of it."""
    device, path = loop(image)
    try:
        mount(path.encode(), folder, b"ext4", MS_NOSUID | MS_NODEV, "")
    finally:
        os.close(device)
    os.rmdir(f"{folder}/lost+found")


def loop(image: int) -> tuple[int, str]:
    """A loop device over a file, and its path; it clears itself once nobody has it open."""
    details = struct.pack("5Q4I64s64s32s2Q", *[0] * 8, LO_FLAGS_AUTOCLEAR, b"", b"", b"", 0, 0)
    configuration = struct.pack("II", image, 0) + details + bytes(64)
    control = os.open("/dev/loop-control", os.O_RDWR)
    try:
        for _ in range(LOOP_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDWR)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, configuration)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "every loop device is taken")


def remount(request: dict[str, Any]) -> None:
    """Change filesystems of a sandbox, in a child: only one thread may change its namespace.

    Raises OSError, having changed nothing: EINVAL where more is in use than shall be left.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            resize(request)
        except OSError as error:
            os.write(write, json.dumps([error.errno or errno.EIO, error.strerror]).encode())
        except BaseException as error:  # noqa: BLE001 - the child must end here.
            os.write(write, json.dumps([errno.EIO, repr(error)]).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as answers:
        said = answers.read()
    os.waitpid(pid, 0)
    if said:
        raise OSError(*json.loads(said))


def resize(request: dict[str, Any]) -> None:
    namespace = os.open(f"/proc/{request['pid']}/ns/mnt", os.O_RDONLY)
    with open(f"/proc/{request['pid']}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    # The number may have become another process's before the namespace was opened, not after.
    if fields[0] in "ZX" or fields[19] != request["start"]:
        raise OSError(errno.ESRCH, "the sandbox has ended")
    check(LIBC.setns(namespace, CLONE_NEWNS), "setns")
    flags = MS_REMOUNT | MS_NOSUID | MS_NODEV
    done: list[dict[str, Any]] = []
    try:
        for each in request["remount"]:
            mount(b"noosphere", f"{STAGE}/{each['name']}", b"tmpfs", flags, each["options"])
            done.append(each)
    except OSError:
        for each in done:
            with contextlib.suppress(OSError):
                mount(b"noosphere", f"{STAGE}/{each['name']}", b"tmpfs", flags, each["before"])
        raise


def become(request: dict[str, Any], fds: list[int]) -> None:
    """In the child: groups, limits, filesystems, user, descriptors, bubblewrap."""
    for path in request["procs"]:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"0")
        os.close(fd)
    if request["filesystems"]:
        stage(request["filesystems"], fds.pop() if request.get("image") else -1)
    for name, value in request["rlimits"].items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (least, least))
    if request["uid"] is not None:
        os.setgroups([])
        os.setresgid(request["uid"], request["uid"], request["uid"])
        os.setresuid(request["uid"], request["uid"], request["uid"])
    # Out of the way first: a target number may be the number of another source.
    high = [os.dup(fd) for fd in fds]
    moved = [_above(fd, FIRST_FD + len(high)) for fd in high]
    null = os.open("/dev/null", os.O_RDWR)
    for target in (0, 1):
        os.dup2(null, target)
    os.dup2(moved[0], 2)
    for index, fd in enumerate(moved[1:]):
        os.dup2(fd, FIRST_FD + index)
    os.closerange(3, FIRST_FD)
    os.closerange(FIRST_FD + len(moved) - 1, 4096)
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
    os.execve(request["argv"][0], request["argv"], {})  # noqa: S606 - the point of this file.


def _above(fd: int, least: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD, least)


def spawn(request: dict[str, Any], fds: list[int]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() == parent:
            become(request, fds)
    except BaseException as error:  # noqa: BLE001 - the child must end here whatever happened.
        os.write(fds[0], f"spawner: {error}\n".encode())
    os._exit(126)


def receive(control: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    size = 1 << 20
    data, ancillary, _, _ = control.recvmsg(size, socket.CMSG_SPACE(64 * 4))
    fds = array.array("i")
    for _, kind, body in ancillary:
        if kind == socket.SCM_RIGHTS:
            fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
    return (json.loads(data) if data else None), list(fds)


def reap(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        control.sendall(json.dumps({"exit": pid, "status": status}).encode())


def main() -> None:
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open("/dev/null", os.O_RDWR), 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A terminal's Ctrl-C reaches the whole group; the server decides when sandboxes end.
        signal.signal(number, signal.SIG_IGN)
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(read, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == read:
                os.read(read, 4096)
                reap(control)
                continue
            request, fds = receive(control)
            if request is None:
                sys.exit(0)
            try:
                if "remount" in request:
                    remount(request)
                    answer = {"id": request["id"], "pid": 0}
                else:
                    answer = {"id": request["id"], "pid": spawn(request, fds)}
            except OSError as error:
                answer = {"id": request["id"], "error": error.strerror, "errno": error.errno}
            control.sendall(json.dumps(answer).encode())
            for each in fds:
                os.close(each)


if __name__ == "__main__":
    main()
